"""Recurrent steps → invariants of their dynamics: fixed points with multipliers, and normal forms of bifurcations."""

from .cycles import Cycles, CycleStatus, find_cycles
from .fixed_points import find_fixed_points
from .forms import NormalForm
from .normal_forms import flip, fold, hopf, neimark_sacker, pitchfork, reduced_equation
from .periods import Periods, detect_periods
from .points import FixedPoints, IndexVerdict, SlowPoints, Status

__all__ = [
    "CycleStatus",
    "Cycles",
    "FixedPoints",
    "IndexVerdict",
    "NormalForm",
    "Periods",
    "SlowPoints",
    "Status",
    "detect_periods",
    "find_cycles",
    "find_fixed_points",
    "flip",
    "fold",
    "hopf",
    "neimark_sacker",
    "pitchfork",
    "reduced_equation",
]
