"""Analysis of a folder of checkpoints, step by step, such that it can be interrupted at any moment."""

import copy
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from kpflow import __version__, _checks
from kpflow.states import Linearisation
from kpflow.tasks import Task, Trials

from .ahead import look_ahead
from .analysis import Settings, analyse, linearised
from .checkpoints import Checkpoint, CheckpointFile, list_checkpoints, load_into, read_checkpoint
from .compared import identity_of
from .dynamics import held_still
from .intervals import follow_interval, points_of, with_intervals
from .movement import Movement
from .optimizers import read_optimizer
from .representations import with_similarity
from .store import Store, key_of
from .tensors import fingerprint, first_not_finite

__all__ = ["Progress", "analyse_folder", "read_record"]


@final
@dataclasses.dataclass(frozen=True)
class Progress:
    """Where an analysis stands: `done` of `total` checkpoints; `step` is the one that was finished, and how.

    After the checkpoints come the intervals between them.

    Args:
        done: Checkpoints (intervals) that are finished.
        total: Checkpoints in the folder (intervals between them).
        step: The training step of the one that was just finished; of an interval that of its end.
        outcome: `"analysed"`, `"found"` (in the store already) or `"skipped"`.
        reason: Why it was skipped.
        part: `"checkpoints"` or `"intervals"`.
    """

    done: int
    total: int
    step: int
    outcome: str
    reason: str = ""
    part: str = "checkpoints"


def analyse_folder(
    folder: str | Path,
    make_model: Callable[[], nn.Module],
    task: Task,
    *,
    core: str | None = None,
    trials: int = 30,
    settings: Settings | None = None,
    store: str | Path | None = None,
    trust_pickle: bool = False,
    outside: Float[Tensor, "M T I"] | None = None,
    objectives: Any = None,
    forecast: Callable[..., Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> xr.Dataset:
    """Analyse every checkpoint in `folder` on the same trials, and return the record of all steps.

    Each step is stored as soon as it is done, whole or not at all. Steps that were analysed already, with the same
    weights, model, task and settings, are not analysed again; results of other ones stay in the store and are not
    mixed in. Checkpoints with weights that are not finite are skipped, and the attribute `skipped` says so.

    Then each step is compared with the one before it and with the first: how far the NTK moved
    (`kpflow.study.movement`), what the loss was to become (`kpflow.study.ahead`), and, where there are fixed points,
    which bifurcations they met on the way. Each interval is stored in the same manner, in a store of its own in the
    folder `intervals` of the first.

    Args:
        folder: Where the checkpoints are, of any kind that `list_checkpoints` finds.
        make_model: Makes the model that was trained; its weights are then those of each checkpoint.
        task: What it was trained on.
        core: Name of the recurrent submodule; None if the model itself is recurrent.
        trials: How many trials of the task's grid to analyse on, without noise.
        settings: What decides the numbers.
        store: Where the results go; by default `analysis` in the folder.
        trust_pickle: Read checkpoints that can run code of their own; only for files that you trust.
        outside: Inputs of no class, as of `analyse`.
        objectives: As of `analyse`, on `task.sample(trials, mode="grid", noise=False)`; functions as `OwnLosses`, since
            results are kept.
        forecast: `kpflow.optim.forecast_optimizer`, to forecast the loss from each checkpoint to the next where a
            `Recorder(optimizer_state=True)` kept what the optimizer was.
        progress: Called after each checkpoint, then after each interval.

    Raises:
        FileNotFoundError: There is no checkpoint.
        TypeError: `make_model` gives no module.
        ValueError: The weights do not fit the model, the model cannot be linearised, no weights are finite, or as of
            `analyse`.

    Example:
        >>> import tempfile, kpflow as kp
        >>> from kpflow.study import save_checkpoint
        >>> make = lambda: nn.GRU(3, 3, batch_first=True)
        >>> task = kp.tasks.MemoryPro(stimulus=2, memory=2, response=2, grace=0.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for step in (0, 10):
        ...         _ = save_checkpoint(f"{folder}/step-{step}", make(), step)
        ...     record = analyse_folder(folder, make, task, trials=3)
        >>> record.step.values.tolist(), record.attrs["task"]
        ([0, 10], 'MemoryPro')
    """
    _checks.check_positive("trials", trials, integer=True)
    settings = settings or Settings()
    model = _model(make_model)
    files = list_checkpoints(folder, trust_pickle=trust_pickle)
    results = Store(Path(folder) / "analysis" if store is None else store)
    results.clean()
    study = _Study(model, task, core, trials, settings, results, trust_pickle, outside, objectives, forecast)
    study.identity()  # refused before anything is analysed, if it is
    keys: dict[int, str] = {}
    skipped: dict[int, str] = {}
    for done, file in enumerate(files, start=1):
        checkpoint = read_checkpoint(file.path, trust_pickle=trust_pickle)
        reason = _not_finite(checkpoint)
        if reason:
            skipped[file.step] = reason
            outcome = "skipped"
        else:
            keys[file.step], outcome = study.run(file, checkpoint)
        if progress is not None:
            progress(Progress(done, len(files), file.step, outcome, reason))
    if not keys:
        raise ValueError(f"`{folder}` must hold finite weights; got none: {next(iter(skipped.values()))}")
    intervals_of(results).select({})  # those that were selected may belong to other steps
    results.select(keys)
    study.follow([file for file in files if file.step in keys], keys, progress or (lambda _: None))
    return read_record(results.path).assign_attrs(step_from=files[0].step_from, skipped=json.dumps(skipped))


def read_record(path: str | Path) -> xr.Dataset:
    """The record in a store: all selected steps, the CKA of their states, and what is known of the intervals so far.

    Args:
        path: The folder of the store, such as `analysis` in a folder that was analysed.

    Raises:
        FileNotFoundError: The store has no step.
        ValueError: As `Store.read`.
    """
    results = Store(path)
    record, intervals = with_similarity(results.read()), intervals_of(results)
    return with_intervals(record, intervals.read()) if intervals.steps() else record


def intervals_of(results: Store) -> Store:
    """The store of the intervals between the steps of another."""
    return Store(results.path / "intervals")


@final
@dataclasses.dataclass(frozen=True, eq=False)
class _Study:
    """What all steps of one analysis share."""

    model: nn.Module
    task: Task
    core: str | None
    trials: int
    settings: Settings
    store: Store
    trust_pickle: bool
    outside: Tensor | None
    objectives: Any
    forecast: Callable[..., Any] | None

    def run(self, file: CheckpointFile, checkpoint: Checkpoint) -> tuple[str, str]:
        """Analyse and store one checkpoint, unless that was done; returns its key and what was done."""
        key = key_of(self.identity(), fingerprint(checkpoint.state_dict))
        if self.store.has(file.step, key):
            return key, "found"
        load_into(self.model, checkpoint)
        trials = self._sample()
        record = analyse(
            self.model,
            trials,
            loss=lambda outputs: self.task.loss(outputs, trials),
            score=lambda outputs: self.task.score(outputs, trials)["accuracy"],
            core=self.core,
            task=self.task,
            step=file.step,
            settings=self.settings,
            outside=self.outside,
            objectives=self.objectives,
        )
        self.store.append(record.assign_attrs(task=type(self.task).__name__), key)
        return key, "analysed"

    def follow(
        self, files: Sequence[CheckpointFile], keys: Mapping[int, str], progress: Callable[[Progress], None]
    ) -> None:
        """Compare each step with the one before it and with the first, unless that was done."""
        record, intervals = self.store.read(), intervals_of(self.store)
        intervals.clean()
        selected: dict[int, str] = {}
        pairs = list(itertools.pairwise(files))
        at = {file.step: file for file in files}
        linearise = functools.lru_cache(maxsize=1)(
            lambda step: self._linearised(at[step])
        )  # its last is the next's first
        movement = Movement(linearise, files[0].step, budget=self.settings.budget, seed=self.settings.seed)
        for done, (previous, last) in enumerate(pairs, start=1):
            key = self._key_of_interval(keys, files[0], previous, last)
            outcome = "found" if intervals.has(last.step, key) else "analysed"
            if outcome == "analysed":
                ahead = self._ahead(linearise, previous, last)
                events = self._events((previous, last), record)
                moved = movement.between(previous.step, last.step)
                intervals.append(ahead.merge(moved).merge(events), key)
            selected[last.step] = key
            intervals.select(selected)
            progress(Progress(done, len(pairs), last.step, outcome, part="intervals"))

    def _key_of_interval(
        self, keys: Mapping[int, str], first: CheckpointFile, previous: CheckpointFile, last: CheckpointFile
    ) -> str:
        """The keys of its checkpoints stand for settings and weights."""
        forecast = self.forecast and [self.forecast.__name__, _optimizer_path(previous).is_file()]
        return key_of({"first": keys[first.step], "from": keys[previous.step], "forecast": forecast}, keys[last.step])

    def _ahead(
        self, linearise: Callable[[int], Linearisation], previous: CheckpointFile, last: CheckpointFile
    ) -> xr.Dataset:
        """The forecast of the loss between two checkpoints; nothing where none was asked for."""
        if self.forecast is None:
            return xr.Dataset()
        model, trials = self._model_at(previous), self._sample()
        optimizer = read_optimizer(_optimizer_path(previous), model)
        loss = functools.partial(self.task.loss, trials=trials)
        return look_ahead(self.forecast, linearise(previous.step), loss, optimizer, model, (previous.step, last.step))

    def _linearised(self, file: CheckpointFile) -> Linearisation:
        return linearised(self._model_at(file), self._sample(), self.core)

    def _events(self, pair: tuple[CheckpointFile, CheckpointFile], record: xr.Dataset) -> xr.Dataset:
        """The bifurcations between two checkpoints; nothing where no fixed points were searched."""
        if "fixed_point_state" not in record:
            return xr.Dataset()
        first, last = (held_still(self._model_at(file), self.core, self.task, self._sample()) for file in pair)
        steps = (pair[0].step, pair[1].step)
        points = (points_of(record.sel(step=steps[0])), points_of(record.sel(step=steps[1])))
        return follow_interval(first, last, points, steps, time_limit=self.settings.path_seconds)

    def _model_at(self, file: CheckpointFile) -> nn.Module:
        model = copy.deepcopy(self.model)
        load_into(model, read_checkpoint(file.path, trust_pickle=self.trust_pickle))
        return model

    def _sample(self) -> Trials:
        dtype = next(parameter.dtype for parameter in self.model.parameters())
        return self.task.sample(self.trials, mode="grid", noise=False, dtype=dtype)

    def identity(self) -> dict[str, Any]:
        """What decides the numbers besides the weights."""
        return {
            **dataclasses.asdict(self.settings),
            "model": str(self.model),
            "task": repr(self.task),
            "core": self.core,
            "trials": self.trials,
            "outside": None if self.outside is None else fingerprint({"inputs": self.outside}),
            "objectives": identity_of(self.objectives),
            "version": __version__,
        }


def _optimizer_path(file: CheckpointFile) -> Path:
    """Where a recorder keeps the optimizer of a checkpoint."""
    return file.path.parent / "optimizers" / file.path.name


def _model(make_model: Callable[[], nn.Module]) -> nn.Module:
    model = make_model()
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`make_model` must give a torch.nn.Module; got {type(model).__name__}. Return the model that was trained."
        )
    if next(model.parameters(), None) is None:
        raise ValueError("`make_model` must give a model with parameters; got one without any.")
    return model.eval()


def _not_finite(checkpoint: Checkpoint) -> str:
    """Which weights are not finite, in words; empty if all are."""
    name = first_not_finite(checkpoint.state_dict)
    return f"`{name}` in {checkpoint.source.name} is not finite: the training had diverged." if name else ""
