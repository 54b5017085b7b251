"""Recurrent steps → invariants of their dynamics: fixed points with multipliers, and normal forms of bifurcations."""

from .fixed_points import find_fixed_points
from .forms import NormalForm
from .normal_forms import flip, fold, hopf, neimark_sacker, pitchfork, reduced_equation
from .points import FixedPoints, IndexVerdict, SlowPoints, Status

__all__ = [
    "FixedPoints",
    "IndexVerdict",
    "NormalForm",
    "SlowPoints",
    "Status",
    "find_fixed_points",
    "flip",
    "fold",
    "hopf",
    "neimark_sacker",
    "pitchfork",
    "reduced_equation",
]
