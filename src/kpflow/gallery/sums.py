"""Sums modulo p, and the network x ↦ (xU)² V that learns them."""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from .students import traced_ntk

__all__ = ["commutator", "counts", "fourier", "labels", "pairs", "square", "sums"]


@functools.cache
def pairs(p: int) -> Tensor:
    """All (a, b) as one-hot rows, (0, 0) first, then (0, 1).

    Returns:
        Shape `[p², 2p]`.

    Example:
        >>> pairs(2)[1]
        tensor([1., 0., 0., 1.], dtype=torch.float64)
    """
    one = torch.eye(p, dtype=torch.float64)
    return torch.cat([one.repeat_interleave(p, dim=0), one.repeat(p, 1)], dim=1)


@functools.cache
def counts(p: int) -> Tensor:
    """All (a, b), as how often each number is there, in the order of `pairs`.

    Returns:
        Shape `[p², p]`.

    Example:
        >>> counts(2)[:2]
        tensor([[2., 0.],
                [1., 1.]], dtype=torch.float64)
    """
    return pairs(p).view(-1, 2, p).sum(dim=1)


def fourier(rows: Tensor) -> Tensor:
    """α e^{iφ} of Σ_k α_k cos(2πkx/p + φ_k), for k = 1, …, (p−1)/2, of rows of length p.

    Example:
        >>> bool(fourier(counts(5)[:1])[0, 0].isclose(torch.tensor(0.8 + 0j).to(torch.complex128)))
        True
    """
    return torch.fft.rfft(rows, dim=-1)[..., 1:] * (2 / rows.shape[-1])


def sums(p: int) -> Tensor:
    """(a + b) mod p of all pairs.

    Returns:
        Shape `[p²]`.

    Example:
        >>> sums(2)
        tensor([0, 1, 1, 0])
    """
    return (torch.arange(p)[:, None] + torch.arange(p)).flatten() % p


@functools.cache
def labels(p: int) -> Tensor:
    """The sums one-hot, less their mean.

    Returns:
        Shape `[p², p]`.

    Example:
        >>> labels(2)[1]
        tensor([-0.5000,  0.5000], dtype=torch.float64)
    """
    return torch.eye(p, dtype=torch.float64)[sums(p)] - 1 / p


def square(inputs: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """(xU)² V.

    Example:
        >>> square(torch.ones(1, 2), {"U": torch.ones(2, 3), "V": torch.ones(3, 1)})
        tensor([[12.]])
    """
    return (inputs @ parameters["U"]).square() @ parameters["V"]


def commutator(parameters: Mapping[str, Tensor], inputs: Tensor) -> float:
    """‖SΘ − ΘS‖/2‖Θ‖ of the NTK, traced over outputs, with the shift S of inputs along their second axis.

    Args:
        parameters: U and V.
        inputs: Shape `[orbits, p, in]`; S takes each to the next one.

    Example:
        >>> one = torch.eye(3, dtype=torch.float64)
        >>> commutator({"U": one, "V": one}, one[None])
        0.0
    """
    orbits, p, _ = inputs.shape
    kernel = traced_ntk(square, inputs.flatten(0, 1), parameters).view(orbits, p, orbits, p)
    return float((kernel.roll((1, 1), dims=(1, 3)) - kernel).norm() / kernel.norm() / 2)
