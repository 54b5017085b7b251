"""Recorder: checkpoints during training, at the steps of a schedule, without changing the training."""

import copy
import math
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, final

import torch
import xarray as xr
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.hooks import RemovableHandle

from kpflow import _checks

from . import checkpoints, files, gradients, optimizers, tensors, tree
from .budget import Meter, TimeBudget
from .schedules import LogSpaced, Schedule, log_spaced
from .store import Store, key_of

__all__ = ["LogSpaced", "Recorder", "log_spaced"]

OWN = r"step-(\d{8,})\.(safetensors|json)"  # the names of the files that a recorder writes


@final
class Recorder:
    """Writes checkpoints of a model while it is trained, by hooks on its optimizer or called by hand.

    Recording reads the model, the optimizer and the generators and changes none of them: training goes on bit for bit
    as without it. Step n is the state after n steps of the optimizer; step 0 is written when the recorder is attached,
    the last one when it is closed.

    Gradients are read before the optimizer steps, where they belong to the weights of step n; where the loop gives
    `optimizer.step` a closure, after its first call, which also tells the loss. For Lightning and transformers there
    are callbacks, `kpflow.study.lightning_callback` and `kpflow.study.transformers_callback`.

    Args:
        model: The module that is trained.
        folder: Where the checkpoints go: `step-00000010.safetensors`, a JSON file beside each, and, in the folder
            `resume`, what is needed to go on from the newest.
        steps: Which steps to write: a schedule, such as `log_spaced() | every(500) | on_loss_jump()`, or any predicate.
        metadata: Kept in each JSON file; anything that JSON can hold.
        generators: Random generators of the training by name, kept so that a resumed run draws what this one would;
            dropout draws from `torch.default_generator`.
        gradients: Also write the gradient at the weights of every recorded step, as it is before the optimizer takes
            it, to `gradients/step-00000010.safetensors`; `read_checkpoint` reads it, with loss and norm as metadata.
        optimizer_state: Also write the optimizer's state of every recorded step, from which `analyse_folder` forecasts
            the loss, to `optimizers/step-00000010.safetensors`; for Adam twice the size of the weights.
        analysis: Called with a copy of the model, in evaluation mode, and the step, after each checkpoint; what it
            gives, as `study.analyse` does, becomes the record in the folder `analysis`, which `kpflow report` reads.
            Weights that are not finite are not analysed. Where a later analysis fails, a warning says why, and training
            goes on.
        budget: How long recording may take, the analysis with it. The first step and the last are always written,
            others that are due are skipped where they do not fit, and the metadata of the checkpoints after them says
            which, as `skipped`.

    Raises:
        FileExistsError: On `attach` or `record`, the folder holds a run already and `resume` was not called.
        OSError: The disk is full; earlier checkpoints are intact.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Recorder(model, folder).attach(optimizer):
        ...         for _ in range(12):
        ...             model(torch.ones(1, 2)).sum().backward()
        ...             optimizer.step()
        ...     [file.step for file in checkpoints.list_checkpoints(folder)]
        [0, 1, 2, 3, 4, 6, 7, 10, 12]
    """

    def __init__(
        self,
        model: nn.Module,
        folder: str | Path,
        steps: Callable[[int], bool] | None = None,
        metadata: Mapping[str, Any] | None = None,
        generators: Mapping[str, torch.Generator] | None = None,
        gradients: bool = False,
        budget: TimeBudget | None = None,
        analysis: Any = None,
        optimizer_state: bool = False,
    ) -> None:
        """Set up; nothing is written yet."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"`model` must be a torch.nn.Module; got {type(model).__name__}.")
        if steps is not None and not callable(steps):
            raise TypeError(f"`steps` must be a callable step -> bool; got {type(steps).__name__}. Try log_spaced().")
        if budget is not None and not isinstance(budget, TimeBudget):
            raise TypeError(
                f"`budget` must be a TimeBudget or None; got {type(budget).__name__}. Try TimeBudget(fraction=0.02)."
            )
        if analysis is not None and not callable(analysis):
            raise TypeError(
                f"`analysis` must be a function of the model and the step; got {type(analysis).__name__}. Try "
                "lambda model, step: study.analyse(model, trials, loss=..., step=step)."
            )
        self.model = model
        self.folder = Path(folder)
        self.steps = log_spaced() if steps is None else steps
        self.metadata = dict(metadata or {})
        self.generators = dict(generators or {})
        self.gradients = gradients
        self.analysis = analysis
        self.optimizer_state = optimizer_state
        self.step = 0
        self.skipped: list[int] = []
        self._meter = Meter(budget)
        self._written = -1  # the newest step on disk that belongs to this run
        self._observed = -1  # the newest step whose gradient was looked at
        self._noted = -1  # the newest step before which a loss was told
        self._losses: deque[float] = deque(maxlen=max(1, steps.memory if isinstance(steps, Schedule) else 1))
        self._optimizer: Optimizer | None = None
        self._scheduler: LRScheduler | None = None
        self._hooks: list[RemovableHandle] = []

    def attach(self, optimizer: Optimizer, scheduler: LRScheduler | None = None) -> "Recorder":
        """Count and record the steps of `optimizer` from now on; writes step 0 unless resumed.

        The state of `scheduler` is kept too, as it is when the optimizer has taken a step. Let it step before that,
        `optimizer.register_step_post_hook(lambda *_: scheduler.step())` ahead of this call; a loop that steps it by
        itself has that one call to make up for when it resumes.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"`optimizer` must be a torch.optim.Optimizer; got {type(optimizer).__name__}.")
        if scheduler is not None and not isinstance(scheduler, LRScheduler):
            raise TypeError(
                f"`scheduler` must be a scheduler of torch.optim.lr_scheduler; got {type(scheduler).__name__}."
            )
        if self._hooks:
            raise ValueError("The recorder is attached already. Call detach() first.")
        self._check_folder()
        self._optimizer, self._scheduler = optimizer, scheduler
        self._meter.start()
        if self._written < 0:
            self._write()
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        return self

    def detach(self) -> None:
        """Take the hooks off the optimizer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def close(self) -> None:
        """Write the last step, if it is not written yet, and detach."""
        self.detach()
        if self.step != self._written:
            self.skipped = [step for step in self.skipped if step != self.step]
            self._write()

    def note(self, loss: float) -> None:
        """Keep the `loss` of the step to come, for the JSON file of the next checkpoint and for `on_loss_jump`.

        To be called before `optimizer.step()`; what a closure gives in that step is then not noted once more. A loss
        that is not finite is left out of the JSON file, which cannot hold it.
        """
        self._noted = self.step
        self._losses.append(float(loss))

    def observe(self) -> None:
        """Read the gradient of this step now, if it is to be written; the hook before the optimizer's step does this.

        For loops that tell when gradients are there, as callbacks of training frameworks do. Only the first call
        counts in each step.
        """
        if self._observed == self.step:
            return
        self._observed = self.step
        if self.gradients and self._written == self.step:
            with self._meter.measuring(whole=False):
                path = self.folder / "gradients" / self._name(self.step)
                gradients.save_gradients(path, self.model, self.step, self._loss)

    def record(self, step: int, loss: float | None = None) -> bool:
        """Write a checkpoint of `step` if it is on the grid, and say whether it was; for loops without an optimizer."""
        if self._written < 0:
            self._check_folder()
        if step <= self._written:
            raise ValueError(f"`step` must grow from call to call; got {step} after {self._written}.")
        self.step = step
        if loss is not None:
            self.note(loss)
        return self._write_if_due()

    def resume(self, optimizer: Optimizer | None = None, scheduler: LRScheduler | None = None) -> int:
        """Put model, `optimizer`, `scheduler` and generators back to the newest checkpoint.

        Returns:
            Its step; 0 for a fresh run.

        Raises:
            FileNotFoundError: There are checkpoints, but not what is needed to go on from them.
            ValueError: The checkpoint belongs to another model, to other generators, or to another scheduler.
        """
        if not (found := self._find()):
            return 0
        file = found[-1]
        resume = self._resume_path(file.step)
        if not resume.is_file():
            raise FileNotFoundError(
                f"`{self.folder}` holds checkpoints up to step {file.step}, but not the state to go on from them "
                f"(`{resume}`). Analyse them as they are, or train into an empty folder."
            )
        checkpoints.load_into(self.model, checkpoints.read_checkpoint(file.path))
        layout = files.read_json(resume.with_suffix(".json"))
        parts = {name: value.clone() for name, value in tensors.read_tensors(resume).items()}  # aligned, as when made
        self._restore(tree.unpack(layout, parts), optimizer, scheduler)
        self.step = self._written = file.step
        return self.step

    def continue_from(self, step: int) -> None:
        """Go on after `step`, to which the training framework itself has put model and optimizer back.

        Steps beyond it, of the run that was left, are moved to the folder `abandoned`: nothing is lost or mixed.

        Raises:
            OSError: The files cannot be moved; calling it again goes on with those that are left.
        """
        _checks.check_range("step", step, 0, integer=True)
        for place in (self.folder, self.folder / "gradients", self.folder / "optimizers"):
            for path in sorted(place.glob("step-*.*"), reverse=True):  # the weights before their JSON file
                ours = re.fullmatch(OWN, path.name)
                if ours and int(ours[1]) > step:
                    target = self.folder / "abandoned" / path.relative_to(self.folder)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(path, target)
        self.step = step
        self._written = max((file.step for file in self._find()), default=-1)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.detach()  # an interrupted step is not a result

    @property
    def _loss(self) -> float | None:
        return self._losses[-1] if self._losses else None

    def _before_step(self, _optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        watched = gradients.watched(args, kwargs, self._after_closure)
        if watched is None:
            self.observe()
        return watched

    def _after_closure(self, result: Any) -> None:
        """Called with what the closure gave the first time in a step."""
        loss = gradients.loss_in(result)
        if loss is not None and self._noted != self.step:
            self.note(loss)
        if any(p.grad is not None for p in self.model.parameters()):
            self.observe()

    def _after_step(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self.observe()  # of an optimizer that takes the gradient itself, as NaturalGradient does
        self.step += 1
        self._write_if_due()

    def _write_if_due(self) -> bool:
        """Write this step, if it is due and fits into the budget, and say whether it was written."""
        schedule = self.steps
        if not (schedule(self.step, tuple(self._losses)) if isinstance(schedule, Schedule) else schedule(self.step)):
            return False
        if not self._meter.allows():
            self.skipped.append(self.step)
            return False
        self._write()
        return True

    def _write(self) -> None:
        with self._meter.measuring():
            self._write_pair()
            if self.analysis is not None:
                self._analyse(self.analysis)

    def _analyse(self, analysis: Callable[[nn.Module, int], Any]) -> None:
        """Append to the record what the analysis gives of a copy; the global generators are put back."""
        weights = self.model.state_dict()
        if tensors.first_not_finite(weights) is not None:
            return
        store = Store(self.folder / "analysis")
        try:
            with torch.random.fork_rng(devices={value.device for value in weights.values() if value.is_cuda}):
                record = analysis(copy.deepcopy(self.model).eval(), self.step)
        except Exception as error:
            if not store.steps():
                raise
            warnings.warn(f"Step {self.step} is not analysed, and training goes on: {error}", stacklevel=2)
            return
        steps = record.get("step", xr.DataArray()).values.tolist() if isinstance(record, xr.Dataset) else None
        if steps != [self.step]:
            raise ValueError(
                f"`analysis` must give an xarray.Dataset of the step {self.step}; got {type(record).__name__} of "
                f"{steps}. Return study.analyse(model, trials, loss=..., step=step)."
            )
        store.advance(record, key_of({"analysis": "of the recorder"}, tensors.fingerprint(weights)))

    def _write_pair(self) -> None:
        """Write what resuming needs, then the checkpoint: a kill between the two leaves the older pair whole."""
        state = {
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "scheduler_kind": _kind(self._scheduler),
            "generators": {name: generator.get_state() for name, generator in self.generators.items()},
            "losses": list(self._losses),
            "skipped": self.skipped,
            "meter": self._meter.state(),
        }
        layout, parts = tree.pack(state)
        resume = self._resume_path(self.step)
        files.write_json(resume.with_suffix(".json"), layout)
        tensors.write_tensors(resume, parts, {"step": str(self.step)})
        if self.optimizer_state and self._optimizer is not None:
            path = self.folder / "optimizers" / self._name(self.step)
            optimizers.save_optimizer(path, self._optimizer, self.model, self.step)
        finite = self._loss is not None and math.isfinite(self._loss)
        told = {"loss": self._loss if finite else None, "skipped": self.skipped or None}
        metadata = {**self.metadata, **{name: value for name, value in told.items() if value is not None}}
        checkpoints.save_checkpoint(self.folder / self._name(self.step), self.model, self.step, metadata)
        self._written = self.step
        for old in resume.parent.iterdir():
            if old.stem != resume.stem and re.fullmatch(rf"{OWN}|\.{OWN}\.tmp", old.name):
                old.unlink()

    def _restore(self, state: dict[str, Any], optimizer: Optimizer | None, scheduler: LRScheduler | None) -> None:
        kept, given = state.get("scheduler_kind", _kind(None)), _kind(scheduler)  # runs of older versions have none
        if (optimizer, scheduler) != (None, None) and kept != given:
            raise ValueError(
                f"`scheduler` must be what `{self.folder}` was written with, {kept}; got {given}. Give resume() and "
                "attach() the same kind, or train into an empty folder."
            )
        if set(state["generators"]) != set(self.generators):
            raise ValueError(
                f"`generators` must be {sorted(state['generators'])}, as when `{self.folder}` was written; got "
                f"{sorted(self.generators)}."
            )
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name])
        if optimizer is not None and state["optimizer"] is not None:
            optimizer.load_state_dict(state["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(state["scheduler"])
        self._losses.extend(state.get("losses", ()))  # runs of older versions have none
        self.skipped = state.get("skipped", [])
        self._meter.restore(state.get("meter", []))

    def _find(self) -> list[checkpoints.CheckpointFile]:
        present = self.folder.is_dir() and any(self.folder.glob("step-*.safetensors"))
        return checkpoints.list_checkpoints(self.folder) if present else []

    def _check_folder(self) -> None:
        if self._written < 0 and (found := self._find()):
            raise FileExistsError(
                f"`{self.folder}` must be free for a new run; got one that holds checkpoints up to step "
                f"{found[-1].step}. Call resume() to go on from them, or choose another folder."
            )

    def _resume_path(self, step: int) -> Path:
        return self.folder / "resume" / self._name(step)

    def _name(self, step: int) -> str:
        return f"step-{step:08d}.safetensors"


def _kind(scheduler: LRScheduler | None) -> str:
    return "no scheduler" if scheduler is None else type(scheduler).__name__
