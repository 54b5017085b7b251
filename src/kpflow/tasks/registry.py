"""The tasks by name. A new task is one more line here."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from kpflow._checks import suggestion

from .base import Task
from .chaos import SYSTEMS, ChaosForecast
from .comparison import DelayedMatch, ParametricWorkingMemory
from .delayed_response import DelayAnti, DelayPro, MemoryAnti, MemoryPro
from .digits import SequentialDigits
from .evidence import ContextIntegration, PerceptualIntegration
from .flipflop import FlipFlop
from .forecast import LowRankForecast
from .integration import AngularIntegration, Integration
from .multitask import MultiTask
from .rule_task import YANG, RuleTask
from .rules import DRISCOLL_RULES, YANG_RULES
from .sequences import Copy, DelayedAddition
from .sine import SineGenerator
from .student import StudentTeacher

__all__ = ["TASKS", "get", "names"]

TASKS: Mapping[str, tuple[Callable[..., Task], Mapping[str, Any]]] = {
    "memory_pro": (MemoryPro, {}),
    "memory_anti": (MemoryAnti, {}),
    "delay_pro": (DelayPro, {}),
    "delay_anti": (DelayAnti, {}),
    "flipflop": (FlipFlop, {}),
    "flipflop_anti": (FlipFlop, {"anti": True}),
    "perceptual_integration": (PerceptualIntegration, {}),
    "context_integration": (ContextIntegration, {}),
    "integration": (Integration, {}),
    "angular_integration": (AngularIntegration, {}),
    "parametric_working_memory": (ParametricWorkingMemory, {}),
    "delayed_match_sample": (DelayedMatch, {}),
    "delayed_match_category": (DelayedMatch, {"kind": "category", "K": 8}),
    "sine_generator": (SineGenerator, {}),
    "low_rank_forecast": (LowRankForecast, {}),
    "student_teacher": (StudentTeacher, {}),
    "copy": (Copy, {}),
    "delayed_addition": (DelayedAddition, {}),
    "sequential_digits": (SequentialDigits, {}),
    **{f"chaos_{system}": (ChaosForecast, {"system": system}) for system in SYSTEMS},
    "multitask": (MultiTask, {}),
    **{f"driscoll_{rule}": (RuleTask, {"rule": rule}) for rule in DRISCOLL_RULES},
    **{f"yang_{rule}": (RuleTask, {"rule": rule, **YANG}) for rule in YANG_RULES},
}
"""The class of each task by its name, and the parameters that make it that task."""


def names() -> tuple[str, ...]:
    """The names of all tasks.

    Example:
        >>> len(names()), names()[:6]
        (65, ('memory_pro', 'memory_anti', 'delay_pro', 'delay_anti', 'flipflop', 'flipflop_anti'))
    """
    return tuple(TASKS)


def get(name: str, /, **parameters: Any) -> Task:
    """Make the task called `name`, with its defaults where `parameters` say nothing.

    Raises:
        ValueError: There is no such task, or a parameter is out of range.
        TypeError: The task has no such parameter.

    Example:
        >>> get("flipflop", K=2)
        FlipFlop(K=2, steps=90, p=0.05, sigma=0.03, first='zero', blind=0, dt=20.0, tau=20.0, anti=False)
        >>> get("memory_por")
        Traceback (most recent call last):
        ...
        ValueError: `name` must be a task; got 'memory_por'. Did you mean 'memory_pro'? ...
    """
    if name not in TASKS:
        raise ValueError(f"`name` must be a task; got {name!r}. {suggestion(name, TASKS)}")
    kind, own = TASKS[name]
    fields = list(inspect.signature(kind).parameters)
    for parameter in parameters:
        if parameter not in fields:
            raise TypeError(f"`{parameter}` is no parameter of {name}. {suggestion(parameter, fields)}")
    return kind(**{**own, **parameters})
