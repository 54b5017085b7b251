"""Small learning systems with known answers: each runnable, predicted, checked, and seen through K and P."""

from .entry import Check, Checks, Entry, Line, Panel, Result, curve, formula, identity, monte_carlo, pair, points
from .flows import rk4
from .registry import ENTRIES, get, names
from .runs import measure_spread, run

__all__ = [
    "ENTRIES",
    "Check",
    "Checks",
    "Entry",
    "Line",
    "Panel",
    "Result",
    "curve",
    "formula",
    "get",
    "identity",
    "measure_spread",
    "monte_carlo",
    "names",
    "pair",
    "points",
    "rk4",
    "run",
]
