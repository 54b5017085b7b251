"""Recurrent steps → invariants of their dynamics: fixed points with multipliers, and normal forms of bifurcations."""

from .critical_points import CriticalPoint, Unfolding, critical
from .cycles import Cycles, CycleStatus, find_cycles
from .fixed_points import find_fixed_points
from .forms import NormalForm
from .graphs import BifurcationGraph, Move, Reachable, bifurcation_graph
from .landscapes import amplification, loss_landscape, scalar_propagator, sensitivity, trajectory
from .normal_forms import flip, fold, hopf, neimark_sacker, pitchfork, reduced_equation
from .periods import Periods, detect_periods
from .piecewise import PiecewiseLinear
from .points import FixedPoints, IndexVerdict, SlowPoints, Status
from .scalar_forms import HopfForm, NeimarkSackerForm, PolynomialForm, ScalarForm, reduced_form, scalar_form
from .regions import Continuum
from .relu_regions import RegionPoints, find_region_points

__all__ = [
    "BifurcationGraph",
    "CriticalPoint",
    "Continuum",
    "CycleStatus",
    "Cycles",
    "FixedPoints",
    "HopfForm",
    "IndexVerdict",
    "Move",
    "NeimarkSackerForm",
    "NormalForm",
    "Periods",
    "PiecewiseLinear",
    "RegionPoints",
    "PolynomialForm",
    "Reachable",
    "ScalarForm",
    "SlowPoints",
    "Status",
    "Unfolding",
    "amplification",
    "bifurcation_graph",
    "critical",
    "detect_periods",
    "find_cycles",
    "find_fixed_points",
    "find_region_points",
    "flip",
    "fold",
    "hopf",
    "loss_landscape",
    "neimark_sacker",
    "pitchfork",
    "reduced_equation",
    "reduced_form",
    "scalar_form",
    "scalar_propagator",
    "sensitivity",
    "trajectory",
]
