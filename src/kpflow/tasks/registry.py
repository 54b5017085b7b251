"""The tasks by name. A new task is one more line here."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from .base import Task
from .delayed_response import DelayAnti, DelayPro, MemoryAnti, MemoryPro
from .flipflop import FlipFlop

__all__ = ["TASKS", "get", "names"]

TASKS: Mapping[str, type[Task]] = {
    task.name: task
    for task in (
        MemoryPro,
        MemoryAnti,
        DelayPro,
        DelayAnti,
        FlipFlop,
    )
}
"""The class of each task by its name."""


def names() -> tuple[str, ...]:
    """The names of all tasks.

    Example:
        >>> names()
        ('memory_pro', 'memory_anti', 'delay_pro', 'delay_anti', 'flipflop')
    """
    return tuple(TASKS)


def get(name: str, **parameters: Any) -> Task:
    """Make the task called `name`, with its defaults where `parameters` say nothing.

    Raises:
        ValueError: There is no such task, or a parameter is out of range.
        TypeError: The task has no such parameter.

    Example:
        >>> get("flipflop", K=2)
        FlipFlop(K=2, steps=90, p=0.05, sigma=0.03, first='zero', blind=0, dt=20.0, tau=20.0)
        >>> get("memory_por")
        Traceback (most recent call last):
        ...
        ValueError: `name` must be a task; got 'memory_por'. Did you mean 'memory_pro'? ...
    """
    if name not in TASKS:
        raise ValueError(f"`name` must be a task; got {name!r}. {_suggest(name, TASKS)}")
    task = TASKS[name]
    fields = [field.name for field in dataclasses.fields(task)] if dataclasses.is_dataclass(task) else []
    for parameter in parameters:
        if parameter not in fields:
            raise TypeError(f"`{parameter}` is no parameter of {name}. {_suggest(parameter, fields)}")
    return task(**parameters)


def _suggest(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names, and all of them."""
    known = list(known)
    nearest = difflib.get_close_matches(str(name), known, n=1)
    question = f"Did you mean {nearest[0]!r}? " if nearest else ""
    return f"{question}There are: {', '.join(known)}."
