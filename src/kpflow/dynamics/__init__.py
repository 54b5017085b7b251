"""Recurrent steps → invariants of their dynamics: fixed points with multipliers, and normal forms of bifurcations."""

from .averages import Measured
from .branches import Branch, Ending, Event
from .continuation import continue_branch
from .covariant import CovariantVectors, covariant_vectors
from .critical_points import CriticalPoint, Unfolding, critical
from .cycles import Cycles, CycleStatus, find_cycles
from .diagrams import Diagram, bifurcation_diagram, switch_branch
from .finite_time import FiniteTimeExponents, finite_time_exponents
from .fixed_point_finder import FinderPoints, ImportedPoints, from_fixed_point_finder, to_fixed_point_finder
from .fixed_points import find_fixed_points
from .forms import NormalForm
from .graphs import BifurcationGraph, Move, Reachable, bifurcation_graph
from .greens import GreensDecay, greens_decay
from .landscapes import amplification, loss_landscape, scalar_propagator, sensitivity, trajectory
from .lyapunov import LyapunovSpectrum, lyapunov_spectrum
from .normal_forms import flip, fold, hopf, neimark_sacker, pitchfork, reduced_equation
from .paths import checkpoint_path, input_path
from .periods import Periods, detect_periods
from .piecewise import PiecewiseLinear
from .points import FixedPoints, IndexVerdict, SlowPoints, Status, Stop
from .regions import Continuum
from .relu_regions import RegionPoints, find_region_points
from .scalar_forms import HopfForm, NeimarkSackerForm, PolynomialForm, ScalarForm, reduced_form, scalar_form
from .seeds import seeds_from
from .training_paths import PathEnd, TrainingPath, follow_training, training_path

__all__ = [
    "BifurcationGraph",
    "Branch",
    "Continuum",
    "CovariantVectors",
    "CriticalPoint",
    "CycleStatus",
    "Cycles",
    "Diagram",
    "Ending",
    "Event",
    "FinderPoints",
    "FiniteTimeExponents",
    "FixedPoints",
    "GreensDecay",
    "HopfForm",
    "ImportedPoints",
    "IndexVerdict",
    "LyapunovSpectrum",
    "Measured",
    "Move",
    "NeimarkSackerForm",
    "NormalForm",
    "PathEnd",
    "Periods",
    "PiecewiseLinear",
    "PolynomialForm",
    "Reachable",
    "RegionPoints",
    "ScalarForm",
    "SlowPoints",
    "Status",
    "Stop",
    "TrainingPath",
    "Unfolding",
    "amplification",
    "bifurcation_diagram",
    "bifurcation_graph",
    "checkpoint_path",
    "continue_branch",
    "covariant_vectors",
    "critical",
    "detect_periods",
    "find_cycles",
    "find_fixed_points",
    "find_region_points",
    "finite_time_exponents",
    "flip",
    "fold",
    "follow_training",
    "from_fixed_point_finder",
    "greens_decay",
    "hopf",
    "input_path",
    "loss_landscape",
    "lyapunov_spectrum",
    "neimark_sacker",
    "pitchfork",
    "reduced_equation",
    "reduced_form",
    "scalar_form",
    "scalar_propagator",
    "seeds_from",
    "sensitivity",
    "switch_branch",
    "to_fixed_point_finder",
    "training_path",
    "trajectory",
]
