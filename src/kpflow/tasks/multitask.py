"""MultiTask: several tasks with the same channels in one batch, and an input that says which is which."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from kpflow._checks import check_one_of

from .base import Task, need_condition, trials_of
from .delayed_response import DelayAnti, DelayPro, MemoryAnti, MemoryPro
from .rule_task import RuleTask
from .rules import DRISCOLL_RULES, YANG_RULES
from .trials import Trials, resolve_epoch

__all__ = ["MultiTask"]

MEMORY_AND_DELAY = (MemoryPro, MemoryAnti, DelayPro, DelayAnti)


@final
@dataclasses.dataclass(frozen=True)
class MultiTask(Task):
    """Several tasks, of which each trial is one, with one more input per task that is 1 in its trials.

    The inputs are those of the tasks, which must be the same, followed by the rule inputs, which have noise too; the
    outputs are those of the tasks. The epochs are those of all tasks, in an order that fits each; in trials of a task
    that lacks an epoch, it is empty. The conditions are `task`, the number of the task, and those of all tasks, NaN
    (−1 for whole numbers) in trials of tasks that lack them. On the grid trial b is of task b mod n, and the trials of
    each task are its own grid. With `shared_timing`, timings are shared by the trials of each task.

    `score` returns `accuracy`, the mean over trials, and `accuracy NAME` for each task that has trials. `split` gives
    the trials of each. `static_inputs` needs the condition `task`, and tasks that have the epoch.

    Args:
        tasks: The tasks, with different names.
        rule_epoch: The epoch in which the rule inputs are on, or None for the whole trial.
        mixing: "trial" to draw a task for each trial, uniformly; "batch" to draw one for each batch.
        title: The name.

    Raises:
        TypeError: One of `tasks` is no task.
        ValueError: There are no tasks, or they do not fit together: names are equal, channels, dt, τ or noise differ,
            a task lacks `rule_epoch`, or no order of epochs fits all.

    Source: Yang et al. (2019) and Driscoll et al. (2024) for rule inputs that are on throughout; Hazelden et al.
    (2025), arXiv 2507.06381, for rules shown in a first epoch only, `memory_and_delay`.

    Example:
        >>> task = MultiTask.driscoll()
        >>> task.num_inputs, task.num_outputs
        (20, 3)
        >>> trials = task.sample(64, generator=torch.Generator().manual_seed(0))
        >>> scores = task.score(trials.targets, trials)  # of the outputs of a model on trials.inputs
        >>> scores["accuracy"], scores["accuracy driscoll_memory_pro"]
        (1.0, 1.0)
        >>> task.split(trials)["driscoll_memory_pro"].inputs[0, 0, 5:].round().int().argmax()
        tensor(2)
    """

    tasks: tuple[Task, ...] = tuple(kind() for kind in MEMORY_AND_DELAY)
    rule_epoch: str | None = None
    mixing: str = "trial"
    title: str = "multitask"

    @classmethod
    def driscoll(cls, **parameters: Any) -> "MultiTask":
        """The fifteen tasks of Driscoll et al. (2024); `parameters` are those of RuleTask."""
        return cls(tuple(RuleTask(rule, **parameters) for rule in DRISCOLL_RULES), title="driscoll")

    @classmethod
    def yang(cls, **parameters: Any) -> "MultiTask":
        """The twenty tasks of Yang et al. (2019); `parameters` are those of RuleTask."""
        return cls(tuple(RuleTask.yang(rule, **parameters) for rule in YANG_RULES), title="yang")

    @classmethod
    def memory_and_delay(cls, context: int = 30, **parameters: Any) -> "MultiTask":
        """MemoryPro, MemoryAnti, DelayPro and DelayAnti, with the rule in a first epoch of `context` steps only."""
        tasks = tuple(kind(context=context, **parameters) for kind in MEMORY_AND_DELAY)
        return cls(tasks, rule_epoch="context", title="memory_and_delay")

    def __post_init__(self) -> None:
        check_one_of("mixing", self.mixing, ("trial", "batch"))
        _check_tasks(self.tasks)
        if self.rule_epoch is not None:
            for task in self.tasks:
                resolve_epoch(self.rule_epoch, task.epoch_names)
            object.__setattr__(self, "rule_epoch", resolve_epoch(self.rule_epoch, self.epoch_names))
        _merge_epochs(self.tasks)

    @property
    def name(self) -> str:
        return self.title

    @property
    def dt(self) -> int | float:
        """Duration of a step of all tasks, ms."""
        return getattr(self.tasks[0], "dt")  # noqa: B009

    @property
    def tau(self) -> int | float:
        """Time constant of all tasks, ms."""
        return getattr(self.tasks[0], "tau")  # noqa: B009

    @property
    def input_labels(self) -> tuple[str, ...]:
        return (*self.tasks[0].input_labels, *(f"rule {task.name}" for task in self.tasks))

    @property
    def output_labels(self) -> tuple[str, ...]:
        return self.tasks[0].output_labels

    @property
    def epoch_names(self) -> tuple[str, ...]:
        return _merge_epochs(self.tasks)

    @property
    def condition_names(self) -> tuple[str, ...]:
        return ("task", *dict.fromkeys(name for task in self.tasks for name in task.condition_names))

    @property
    def noise_std(self) -> float:
        return self.tasks[0].noise_std

    def split(self, trials: Trials) -> dict[str, Trials]:
        """The trials of each task by its name, rule inputs included; tasks without trials are left out."""
        return {
            self.tasks[k].name: trials.select(trials.conditions["task"] == k)
            for k in trials.conditions["task"].unique().tolist()
        }

    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:
        which = self._assign(B, generator)
        present = which.unique().tolist()
        rows = [(which == k).nonzero()[:, 0] for k in present]
        parts = [self.tasks[k]._draw(len(r), generator, shared_timing) for k, r in zip(present, rows, strict=True)]
        order = torch.cat(rows).argsort()
        T = max(part.num_steps for part in parts)

        def gather(name: str) -> Tensor:
            return torch.cat([_pad(getattr(part, name), T) for part in parts])[order]

        epochs = [_all_epochs(part, self.epoch_names) for part in parts]
        joint = {
            name: (torch.cat([e[name][0] for e in epochs])[order], torch.cat([e[name][1] for e in epochs])[order])
            for name in self.epoch_names
        }
        conditions = {
            name: _fill([part.conditions.get(name) for part in parts], [len(r) for r in rows])[order]
            for name in self.condition_names[1:]
        }
        start, stop = (torch.zeros(B).long(), joint[self.epoch_names[-1]][1])
        if self.rule_epoch is not None:
            start, stop = joint[self.rule_epoch]
        step = torch.arange(T)
        on = ((start[:, None] <= step) & (step < stop[:, None])).double()  # [B, T]
        rule = on[:, :, None] * torch.nn.functional.one_hot(which, len(self.tasks))[:, None, :]
        return trials_of(
            self,
            inputs=torch.cat((gather("inputs"), rule), dim=2),
            targets=gather("targets"),
            mask=gather("mask"),
            epochs=joint,
            conditions={"task": which, **conditions},
        )

    def _assign(self, B: int, generator: torch.Generator | None) -> Int[Tensor, " B"]:
        """The number of the task of each trial."""
        n = len(self.tasks)
        if generator is None:
            return torch.arange(B) % n
        return torch.randint(n, (B if self.mixing == "trial" else 1,), generator=generator).expand(B).clone()

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:
        which = need_condition(conditions, "task", epoch)
        result = torch.zeros(len(which), self.num_inputs, dtype=zeros.dtype, device=zeros.device)
        own = self.tasks[0].num_inputs
        for k in which.unique().tolist():
            if k not in range(len(self.tasks)):
                raise ValueError(f"`conditions['task']` must lie in 0 … {len(self.tasks) - 1}; got {k}.")
            task, rows = self.tasks[k], which == k
            if epoch not in task.epoch_names:
                raise ValueError(
                    f"`epoch` must be one of {', '.join(task.epoch_names)} for {task.name}; got {epoch!r}. "
                    f"Leave out the conditions of tasks without this epoch."
                )
            known = {name: conditions[name][rows] for name in task.condition_names if name in conditions}
            result[rows, :own] = task._static_inputs(epoch, known, zeros[rows])
            result[rows, own + k] = float(self.rule_epoch in (None, epoch))
        return result

    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        scores, total = {}, 0.0
        for k in trials.conditions["task"].unique().tolist():
            rows = trials.conditions["task"] == k
            accuracy = self.tasks[k]._score(outputs[rows], self._own(trials, k))["accuracy"]
            scores[f"accuracy {self.tasks[k].name}"] = accuracy
            total += accuracy * int(rows.sum())
        return {"accuracy": total / trials.num_trials, **scores}

    def _own(self, trials: Trials, k: int) -> Trials:
        """The trials of task k as it draws them, without rule inputs."""
        task = self.tasks[k]
        part = trials.select(trials.conditions["task"] == k)
        return dataclasses.replace(
            part,
            inputs=part.inputs[:, :, : task.num_inputs],
            inputs_clean=part.inputs_clean[:, :, : task.num_inputs],
            epochs={name: part.epochs[name] for name in task.epoch_names},
            conditions={name: part.conditions[name] for name in task.condition_names},
            input_labels=task.input_labels,
        )


def _check_tasks(tasks: Sequence[Any]) -> None:
    """There are tasks, with different names and everything else that all trials share equal."""
    if len(tasks) == 0:
        raise ValueError("`tasks` must have at least one task; got none.")
    for task in tasks:
        if not isinstance(task, Task):
            raise TypeError(f"`tasks` must be tasks; got {type(task).__name__}. Make one with kpflow.tasks.get(name).")
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ValueError(f"`tasks` must have different names; got {', '.join(names)}.")
    for shared in ("input_labels", "output_labels", "dt", "tau", "noise_std"):
        for task in tasks[1:]:
            if getattr(task, shared) != getattr(tasks[0], shared):
                raise ValueError(
                    f"`tasks` must agree on {shared}; got {getattr(tasks[0], shared)} for {names[0]} and "
                    f"{getattr(task, shared)} for {task.name}."
                )


def _merge_epochs(tasks: Sequence[Task]) -> tuple[str, ...]:
    """The epochs of all tasks in an order that fits each: a new one goes right behind the one before it."""
    merged: list[str] = []
    for task in tasks:
        place = 0
        for name in task.epoch_names:
            if name not in merged:
                merged.insert(place, name)
            place = merged.index(name) + 1
    for task in tasks:
        places = [merged.index(name) for name in task.epoch_names]
        if places != sorted(places):
            raise ValueError(f"`tasks` must agree on the order of epochs; got {task.epoch_names} for {task.name}.")
    return tuple(merged)


def _all_epochs(trials: Trials, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """The epochs of trials, with empty ones where they lack one of `names`."""
    epochs, now = {}, torch.zeros_like(trials.length)
    for name in names:
        epochs[name] = trials.epochs.get(name, (now, now))
        now = epochs[name][1]
    return epochs


def _fill(values: Sequence[Tensor | None], counts: Sequence[int]) -> Tensor:
    """The values of parts one after the other, NaN or −1 for those that lack them."""
    whole = all(value is None or not value.dtype.is_floating_point for value in values)
    dtype = torch.int64 if whole else torch.float64
    return torch.cat(
        [
            torch.full((count,), -1 if whole else float("nan"), dtype=dtype) if value is None else value.to(dtype)
            for value, count in zip(values, counts, strict=True)
        ]
    )


def _pad(signal: Tensor, T: int) -> Tensor:
    """`signal [B, t, C]` with zeros behind, `[B, T, C]`."""
    return torch.nn.functional.pad(signal, (0, 0, 0, T - signal.shape[1]))
