"""Linear algebra without matrices: operators between spaces, and their closed algebra."""

from .blocks import MAX_BLOCK_ENTRIES
from .convert import from_scipy, to_dense, to_scipy
from .core import Adjoint, Composed, Operator, Scaled, Sum
from .gramian import Gram, Gramian
from .kronecker import BlockDiagonal, Kronecker
from .leaves import Dense, Diagonal, Function, Identity, LowRank
from .reduce import DEFAULT_PROBES, MAX_BASIS, PartialTrace, Restriction
from .resolvent import Resolvent
from .structure import Exact, Sampled, SampledParts, Structure

__all__ = [
    "DEFAULT_PROBES",
    "MAX_BASIS",
    "MAX_BLOCK_ENTRIES",
    "Adjoint",
    "BlockDiagonal",
    "Composed",
    "Dense",
    "Diagonal",
    "Exact",
    "Function",
    "Gram",
    "Gramian",
    "Identity",
    "Kronecker",
    "LowRank",
    "Operator",
    "PartialTrace",
    "Resolvent",
    "Restriction",
    "Sampled",
    "SampledParts",
    "Scaled",
    "Structure",
    "Sum",
    "from_scipy",
    "to_dense",
    "to_scipy",
]
