"""What is asked of a library."""

import dataclasses
from collections.abc import Callable

from torch import Tensor

from ..problems import Problem

__all__ = ["Peer"]


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library's exact quantities of the NTK of a model's outputs, entries in row-major order of (trial, output).

    Args:
        name: The library, and what of it is called.
        package: The package whose version is reported.
        way: How it makes the matrix: from the "Jacobian", from "layers", or by "products" for every column.
        gram: The whole matrix.
        trace: Its exact trace without it, where the library has that.
        product: From a problem to products with blocks `[probe, trial·output]`, where the library has them.
    """

    name: str
    package: str
    way: str
    gram: Callable[[Problem], Tensor]
    trace: Callable[[Problem], float] | None = None
    product: Callable[[Problem], Callable[[Tensor], Tensor]] | None = None
