"""Tasks: trials with inputs, targets, weights, epochs and conditions, and what counts as solving them."""

from .base import Task
from .delayed_response import DelayAnti, DelayedResponse, DelayPro, MemoryAnti, MemoryPro
from .flipflop import FlipFlop
from .registry import get, names
from .trials import Trials

__all__ = [
    "DelayAnti",
    "DelayPro",
    "DelayedResponse",
    "FlipFlop",
    "MemoryAnti",
    "MemoryPro",
    "Task",
    "Trials",
    "get",
    "names",
]
