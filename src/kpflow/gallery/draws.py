"""What entries draw, in float64."""

import torch
from torch import Generator, Tensor

__all__ = ["normal", "orthogonal"]


def normal(generator: Generator, *shape: int) -> Tensor:
    """Independent N(0, 1).

    Example:
        >>> normal(torch.Generator().manual_seed(0), 2, 3).shape
        torch.Size([2, 3])
    """
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def orthogonal(generator: Generator, rows: int, columns: int | None = None) -> Tensor:
    """A random matrix with orthonormal columns; square if their number is not given.

    Example:
        >>> Q = orthogonal(torch.Generator().manual_seed(0), 5, 2)
        >>> torch.allclose(Q.mT @ Q, torch.eye(2).double())
        True
    """
    return torch.linalg.qr(normal(generator, rows, rows if columns is None else columns)).Q
