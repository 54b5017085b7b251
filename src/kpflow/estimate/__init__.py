"""From operators to numbers with error bars; knows nothing of networks."""

from .alignments import alignment
from .base import Estimate, Status
from .norms import frobenius_norm, operator_norm
from .ranks import effective_rank
from .spectra import Modes, modes
from .traces import trace

__all__ = [
    "Estimate",
    "Modes",
    "Status",
    "alignment",
    "effective_rank",
    "frobenius_norm",
    "modes",
    "operator_norm",
    "trace",
]
