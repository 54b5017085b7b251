"""What is compared: tasks, epochs, output channels, trials by a condition, or losses and masks of one's own."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard, final

import torch
from jaxtyping import Bool
from torch import Tensor

from kpflow.tasks import MultiTask, Task, Trials

from .tensors import fingerprint

__all__ = ["KINDS", "Compared", "Losses", "OwnLosses", "compare", "identity_of", "task_groups", "task_objectives"]

KINDS = ("tasks", "epochs", "channels", "condition:NAME")
"""What the trials of a task can be compared by."""

CONDITION = "condition:"

Losses = Mapping[str, Callable[[Tensor], Tensor]]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class OwnLosses:
    """Losses by name, with words for what they are, by which results that are kept are told from those of others.

    Args:
        losses: From the model's outputs `[B, T, O]` to a scalar, by name.
        identity: Anything that changes when the functions do, such as "errors of x and y, second version".

    Raises:
        ValueError: `identity` is empty.

    Example:
        >>> OwnLosses({"x": lambda y: y[..., 0].square().mean()}, identity="power of x").identity
        'power of x'
    """

    losses: Losses
    identity: str

    def __post_init__(self) -> None:
        if not self.identity.strip():
            raise ValueError("`identity` must say what the losses are; got no words.")


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Compared:
    """Objectives on some trials.

    Args:
        words: What they are.
        losses: L_i by name, from the model's outputs to a scalar.
        groups: The trials `[B]` of each, where objectives are groups of trials that do not overlap.
    """

    words: str
    losses: Losses
    groups: Mapping[str, Bool[Tensor, " B"]]

    def check(self, outputs: Tensor) -> None:
        """Try each loss on the outputs.

        Raises:
            ValueError: One fails, or gives no scalar.
        """
        for name, loss in self.losses.items():
            try:
                value = loss(outputs)
            except Exception as problem:  # whatever a user's function raises
                raise ValueError(
                    f"`objectives[{name!r}]` fails on outputs of shape {tuple(outputs.shape)}: {problem}"
                ) from problem
            if not isinstance(value, Tensor) or value.ndim:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"`objectives[{name!r}]` must give a scalar tensor; got {got}. Take a mean.")


def compare(objectives: Any, task: Task | None, trials: Trials) -> Compared | None:
    """The objectives that an analysis asks for; None if it asks for nothing and there are not two.

    Args:
        objectives: One of `KINDS`; or, by name, functions of the outputs, boolean tensors `[B]` (groups of trials) or
            weights that broadcast to `[B, T, O]`; or `OwnLosses`; or None for what the task's loss is made of.
        task: That of the trials.
        trials: The trials.

    Raises:
        TypeError: It is none of these.
        ValueError: The kind or the condition is unknown, a mask leaves nothing or does not fit, or there is one only.
    """
    if objectives is None or isinstance(objectives, str):
        losses, groups = task_objectives(task, trials, objectives), task_groups(task, trials, objectives)
        if objectives is None and len(losses) < 2:
            return None
        return _several(Compared(_words(objectives or _default(task)), losses, groups))
    if isinstance(objectives, OwnLosses):
        return _several(Compared(objectives.identity, objectives.losses, {}))
    if not isinstance(objectives, Mapping) or not all(callable(one) or _is_mask(one) for one in objectives.values()):
        raise TypeError(
            f"`objectives` must be one of {', '.join(KINDS)}, or map names to functions of the outputs or to masks; "
            f"got {objectives!r}."
        )
    losses = {name: _own(name, one, trials) if _is_mask(one) else one for name, one in objectives.items()}
    found = _several(Compared("given by name", losses, {}))
    rows = [one for one in objectives.values() if _is_mask(one) and one.dtype == torch.bool and one.ndim == 1]
    apart = len(rows) == len(losses) and int(torch.stack(rows).sum(0).max()) < 2
    return dataclasses.replace(found, groups=dict(objectives)) if apart else found


def identity_of(objectives: Any) -> Any:
    """What stands for objectives in the key of an analysis, of which JSON is made.

    Raises:
        ValueError: There are functions without words for what they are: they cannot be told from other functions.
    """
    if isinstance(objectives, OwnLosses):
        return [*objectives.losses, objectives.identity]
    if not isinstance(objectives, Mapping):
        return objectives
    functions = ", ".join(str(name) for name, one in objectives.items() if not _is_mask(one))
    if functions:
        raise ValueError(
            f"`objectives` must say what its functions are, since results are kept; got {functions} without words. "
            'Give OwnLosses({...}, identity="...").'
        )
    return [[name, fingerprint({"mask": value})] for name, value in objectives.items()]


def task_objectives(task: Task | None, trials: Trials, by: str | None = None) -> dict[str, Callable[[Tensor], Tensor]]:
    """The objectives that the loss of a task is made of: its tasks, epochs or output channels, or groups of trials.

    Each is the masked mean squared error Σ m (ŷ − y)² / Σ m over its own trials, steps and channels; what has no weight
    in the mask is left out. The task's loss is their mean, weighted by Σ m.

    Args:
        task: The task; only "tasks" and None look at it.
        trials: Trials of it.
        by: "tasks" (of a MultiTask), "epochs", "channels", or "condition:NAME", the trials of each value of a
            condition; None for the tasks of a MultiTask, else the epochs.

    Raises:
        ValueError: `by` is none of these, there is no such condition, or the task is not made of tasks.

    Example:
        >>> import kpflow as kp
        >>> task = kp.tasks.MemoryPro()
        >>> trials = task.sample(4, mode="grid")
        >>> list(task_objectives(task, trials)), list(task_objectives(task, trials, "channels"))
        (['stimulus', 'memory', 'response'], ['fixation', 'cos', 'sin'])
        >>> list(task_objectives(task, trials, "condition:angle"))
        ['angle 0', 'angle 1.5708', 'angle 3.14159', 'angle 4.71239']
    """
    kind = by or _default(task)
    rows = task_groups(task, trials, kind)
    if kind == "channels":
        channels = torch.eye(len(trials.output_labels), dtype=torch.bool, device=trials.mask.device)
        places = dict(zip(trials.output_labels, channels, strict=True))
    elif kind == "epochs":
        places = {name: trials.inside(name)[:, :, None] for name in trials.epochs}
    else:
        places = {name: row[:, None, None] for name, row in rows.items()}
    weights = {name: trials.mask * place for name, place in places.items()}
    return {name: _masked_error(weight, trials.targets) for name, weight in weights.items() if bool(weight.any())}


def task_groups(task: Task | None, trials: Trials, by: str | None = None) -> dict[str, Bool[Tensor, " B"]]:
    """Which trials are of each objective of `task_objectives`, as booleans `[B]`; nothing where all trials are of all.

    Args:
        task: The task.
        trials: Trials of it.
        by: As of `task_objectives`.

    Raises:
        ValueError: As of `task_objectives`.

    Example:
        >>> import kpflow as kp
        >>> task = kp.tasks.MultiTask()
        >>> task_groups(task, task.sample(4, mode="grid"))["memory_anti"]
        tensor([False,  True, False, False])
    """
    kind = by or _default(task)
    if kind in ("epochs", "channels"):
        return {}
    if kind == "tasks":
        if not isinstance(task, MultiTask):
            raise ValueError(f"`objectives` by tasks need a MultiTask; got {type(task).__name__}. Try epochs.")
        number = trials.conditions["task"]
        return {task.tasks[k].name: number == k for k in number.unique().tolist()}
    if not kind.startswith(CONDITION):
        raise ValueError(f"`objectives` must be one of {', '.join(KINDS)}, or a mapping; got {kind!r}.")
    name = kind.removeprefix(CONDITION)
    if name not in trials.conditions:
        known = ", ".join(trials.conditions) or "none"
        raise ValueError(f"`objectives` must name a condition of the trials; got {name!r}, and there are: {known}.")
    values = trials.conditions[name]
    return {f"{name} {value:g}": values == value for value in values[~values.isnan()].unique().tolist()}


def _default(task: Task | None) -> str:
    return "tasks" if isinstance(task, MultiTask) else "epochs"


def _words(kind: str) -> str:
    return f"trials by {kind.removeprefix(CONDITION)}" if kind.startswith(CONDITION) else kind


def _is_mask(one: Any) -> TypeGuard[Tensor]:
    return isinstance(one, Tensor)


def _several(found: Compared) -> Compared:
    if len(found.losses) < 2:
        raise ValueError(
            f"`objectives` must be two or more; got {', '.join(map(str, found.losses)) or 'none'} ({found.words}). "
            "There is nothing to compare: leave them out, or choose others."
        )
    return found


def _own(name: str, mask: Tensor, trials: Trials) -> Callable[[Tensor], Tensor]:
    """The masked error of the task's targets on trials or weights of one's own."""
    full = mask[:, None, None] if mask.ndim == 1 else mask
    try:
        weight = trials.mask * full.to(trials.mask)
    except RuntimeError:
        weight = full
    if weight.shape != trials.mask.shape:
        raise ValueError(
            f"`objectives[{name!r}]` must have shape ({trials.num_trials},), or broadcast to the outputs' "
            f"{tuple(trials.mask.shape)}; got {tuple(mask.shape)}."
        )
    if not bool(weight.any()):
        raise ValueError(f"`objectives[{name!r}]` must have weight somewhere; got zeros where the task's mask is not.")
    return _masked_error(weight, trials.targets)


def _masked_error(weight: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda outputs: (weight * (outputs - targets).square()).sum() / weight.sum()
