"""Figures from records alone: each function takes a record (xarray.Dataset) and returns a matplotlib Figure.

Nothing global is touched: no pyplot, no rcParams; every figure is laid out for the width it is asked for.
"""

from .bias import self_referential_bias
from .dynamics import bifurcations, fixed_points, lyapunov
from .eigenvalues import spectra
from .entries import entry_figure
from .forecasts import loss_forecasts
from .leading import ntk_modes
from .movement import kernel_movement
from .objectives import objective_alignment, objective_course, objective_interference
from .paths import aligned_trajectories, trajectories
from .ranks import effective_ranks, rank_bounds
from .records import SCHEMA, Conditions, Record, check_record, conditions, missing_steps
from .representations import neural_collapse, state_similarity
from .stages import collapse_axes, collapse_pipeline
from .style import NARROW, PALETTE, WIDE, condition_colours, condition_groups
from .training import loss_and_score, loss_change

__all__ = [
    "NARROW",
    "PALETTE",
    "SCHEMA",
    "WIDE",
    "Conditions",
    "Record",
    "aligned_trajectories",
    "bifurcations",
    "check_record",
    "collapse_axes",
    "collapse_pipeline",
    "condition_colours",
    "condition_groups",
    "conditions",
    "effective_ranks",
    "entry_figure",
    "fixed_points",
    "kernel_movement",
    "loss_and_score",
    "loss_change",
    "loss_forecasts",
    "lyapunov",
    "missing_steps",
    "neural_collapse",
    "ntk_modes",
    "objective_alignment",
    "objective_course",
    "objective_interference",
    "rank_bounds",
    "self_referential_bias",
    "spectra",
    "state_similarity",
    "trajectories",
]
