"""Recorder: checkpoints during training, on a logarithmic grid of steps, without changing the training."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from kpflow import _checks

from . import checkpoints, files, tensors, tree

__all__ = ["LogSpaced", "Recorder", "log_spaced"]


@final
@dataclasses.dataclass(frozen=True)
class LogSpaced:
    """The steps round(10^(k / per_decade)), k = 0, 1, …, and 0; early changes are fast, so early steps are dense."""

    per_decade: int = 8

    def __post_init__(self) -> None:
        _checks.check_positive("per_decade", self.per_decade, integer=True)

    def __call__(self, step: int) -> bool:
        """Whether `step` is on the grid."""
        return step in self.grid(step)

    def grid(self, last: int) -> list[int]:
        """The steps of the grid from 0 to `last`."""
        steps = {0}
        power = 0
        while (step := round(10 ** (power / self.per_decade))) <= last:
            steps.add(step)
            power += 1
        return sorted(steps)


def log_spaced(per_decade: int = 8) -> LogSpaced:
    """Make the logarithmic grid of steps with about `per_decade` steps in each decade, 0 included.

    Example:
        >>> log_spaced(per_decade=4).grid(100)
        [0, 1, 2, 3, 6, 10, 18, 32, 56, 100]
    """
    return LogSpaced(per_decade)


@final
class Recorder:
    """Writes checkpoints of a model while it is trained, by hooks on its optimizer or called by hand.

    Recording reads the model, the optimizer and the generators and changes none of them: training goes on bit for bit
    as without it. Step n is the state after n steps of the optimizer; step 0 is written when the recorder is attached,
    the last one when it is closed.

    Args:
        model: The module that is trained.
        folder: Where the checkpoints go: `step-00000010.safetensors`, a JSON file beside each, and, in the folder
            `resume`, what is needed to go on from the newest.
        steps: Which steps to write: a predicate, such as `log_spaced()`.
        metadata: Kept in each JSON file; anything that JSON can hold.
        generators: Random generators of the training by name, kept so that a resumed run draws what this one would.

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
    ) -> None:
        """Set up; nothing is written yet."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"`model` must be a torch.nn.Module; got {type(model).__name__}.")
        if steps is not None and not callable(steps):
            raise TypeError(f"`steps` must be a callable step -> bool; got {type(steps).__name__}. Try log_spaced().")
        self.model = model
        self.folder = Path(folder)
        self.steps = log_spaced() if steps is None else steps
        self.metadata = dict(metadata or {})
        self.generators = dict(generators or {})
        self.step = 0
        self._written = -1  # the newest step on disk that belongs to this run
        self._loss: float | None = None
        self._optimizer: Optimizer | None = None
        self._hook: RemovableHandle | None = None

    def attach(self, optimizer: Optimizer) -> "Recorder":
        """Count and record the steps of `optimizer` from now on; writes step 0 unless resumed."""
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"`optimizer` must be a torch.optim.Optimizer; got {type(optimizer).__name__}.")
        if self._hook is not None:
            raise ValueError("The recorder is attached already. Call detach() first.")
        self._check_folder()
        self._optimizer = optimizer
        if self._written < 0:
            self._write()
        self._hook = optimizer.register_step_post_hook(self._after_step)
        return self

    def detach(self) -> None:
        """Take the hook off the optimizer."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def close(self) -> None:
        """Write the last step, if it is not written yet, and detach."""
        self.detach()
        if self.step != self._written:
            self._write()

    def note(self, loss: float) -> None:
        """Keep the `loss` of the step to come in the JSON file of the next checkpoint."""
        self._loss = float(loss)

    def record(self, step: int, loss: float | None = None) -> bool:
        """Write a checkpoint of `step` if it is on the grid, and say whether it was; for loops without an optimizer."""
        if self._written < 0:
            self._check_folder()
        if step <= self._written:
            raise ValueError(f"`step` must grow from call to call; got {step} after {self._written}.")
        self.step = step
        self._loss = self._loss if loss is None else float(loss)
        if not self.steps(step):
            return False
        self._write()
        return True

    def resume(self, optimizer: Optimizer | None = None) -> int:
        """Put model, `optimizer` and generators back to the newest checkpoint, and return its step (0: a fresh run).

        Raises:
            FileNotFoundError: There are checkpoints, but not what is needed to go on from them.
            ValueError: The checkpoint belongs to another model, or to other generators.
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
        self._restore(tree.unpack(layout, parts), optimizer)
        self.step = self._written = file.step
        return self.step

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.detach()  # an interrupted step is not a result

    def _after_step(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self.step += 1
        if self.steps(self.step):
            self._write()

    def _write(self) -> None:
        """Write what resuming needs, then the checkpoint: a kill between the two leaves the older pair whole."""
        state = {
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
            "generators": {name: generator.get_state() for name, generator in self.generators.items()},
        }
        layout, parts = tree.pack(state)
        resume = self._resume_path(self.step)
        files.write_json(resume.with_suffix(".json"), layout)
        tensors.write_tensors(resume, parts, {"step": str(self.step)})
        metadata = self.metadata if self._loss is None else {**self.metadata, "loss": self._loss}
        path = self.folder / f"step-{self.step:08d}.safetensors"
        checkpoints.save_checkpoint(path, self.model, self.step, metadata)
        self._written = self.step
        for old in resume.parent.iterdir():
            if old.stem != resume.stem:
                old.unlink()

    def _restore(self, state: dict[str, Any], optimizer: Optimizer | None) -> None:
        if set(state["generators"]) != set(self.generators):
            raise ValueError(
                f"`generators` must be {sorted(state['generators'])}, as when `{self.folder}` was written; got "
                f"{sorted(self.generators)}."
            )
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name])
        if optimizer is not None and state["optimizer"] is not None:
            optimizer.load_state_dict(state["optimizer"])

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
        return self.folder / "resume" / f"step-{step:08d}.safetensors"
