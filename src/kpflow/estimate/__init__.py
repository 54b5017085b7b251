"""From operators to numbers with error bars; knows nothing of networks."""

from .alignments import alignment
from .base import Estimate, Status
from .densities import Density, density
from .diagonals import DiagonalEstimate, diagonal
from .ends import Ends, extreme_eigenvalues
from .inertias import Inertia, inertia
from .low_rank import Nystrom, nystrom
from .norms import frobenius_norm, operator_norm
from .ranks import effective_rank
from .sampling import entries
from .spectra import Modes, modes, spectrum
from .spectral_sums import count_above, entropy_rank, log_determinant, spectral_sum
from .stable import stable_rank
from .summaries import Summary, summary
from .traces import trace

__all__ = [
    "Density",
    "DiagonalEstimate",
    "Ends",
    "Estimate",
    "Inertia",
    "Modes",
    "Nystrom",
    "Status",
    "Summary",
    "alignment",
    "count_above",
    "density",
    "diagonal",
    "effective_rank",
    "entries",
    "entropy_rank",
    "extreme_eigenvalues",
    "frobenius_norm",
    "inertia",
    "log_determinant",
    "modes",
    "nystrom",
    "operator_norm",
    "spectral_sum",
    "spectrum",
    "stable_rank",
    "summary",
    "trace",
]
