"""Small learning systems with known answers: each runnable, predicted, checked, and seen through K and P."""

from .entry import Check, Entry, Line, Panel, Result, at_least, at_most, close
from .flows import rk4
from .registry import ENTRIES, get, names, run

__all__ = [
    "ENTRIES",
    "Check",
    "Entry",
    "Line",
    "Panel",
    "Result",
    "at_least",
    "at_most",
    "close",
    "get",
    "names",
    "rk4",
    "run",
]
