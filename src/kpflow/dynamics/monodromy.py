"""Multipliers and eigenvectors of the product of Jacobians around a cycle, small multipliers as exact as large."""

import dataclasses
from typing import final

import numpy as np
import torch
from jaxtyping import Complex, Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .points import spectrum

__all__ = ["Monodromy", "cyclic_matrix", "monodromy", "multipliers"]

ROUNDING = 1e3 * torch.finfo(torch.float64).eps
"""A relative imaginary part that is rounding."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Monodromy:
    """Multipliers and eigenvectors of M_j = J_{j−1} ⋯ J₀ J_{p−1} ⋯ J_j; the fields are those of `Cycles`."""

    multipliers: Complex[Tensor, "c H"]
    right: Complex[Tensor, "c p H H"]
    left: Complex[Tensor, "c p H H"]
    condition: Float[Tensor, "c"]


def monodromy(jacobians: Float[Tensor, "c p H H"]) -> Monodromy:
    """The spectrum of the product at every phase, columns in the order of the multipliers."""
    values = multipliers(jacobians)
    period = jacobians.shape[1]
    right = torch.empty_like(jacobians, dtype=values.dtype)
    left, condition = torch.empty_like(right), jacobians.new_zeros(len(jacobians))
    for phase in range(period):
        product = jacobians[:, phase]
        for j in range(1, period):
            product = jacobians[:, (phase + j) % period] @ product
        eigen = spectrum(product)
        for i in range(len(jacobians)):
            gaps = (values[i, :, None] - eigen.multipliers[i]).abs().nan_to_num(posinf=1e300)
            order = torch.as_tensor(linear_sum_assignment(gaps.cpu().numpy())[1], device=values.device)
            right[i, phase], left[i, phase] = eigen.right[i][:, order], eigen.left[i][:, order]
        condition = torch.maximum(condition, eigen.condition)
    return Monodromy(values, right, left, condition)


def multipliers(jacobians: Float[Tensor, "c p H H"]) -> Complex[Tensor, "c H"]:
    """Eigenvalues of J_{p−1} ⋯ J₀ by falling modulus, without the product.

    They are λᵖ, where the λ are the p H eigenvalues of the block-cyclic matrix (all p-th roots of each). An eigenvalue
    solver makes errors of about 1e-16 ‖J‖ in λ, so that multipliers down to (1e-16 ‖J‖)ᵖ have correct digits; those of
    the product are lost below 1e-16 ‖J‖ᵖ.
    """
    period, size = jacobians.shape[1], jacobians.shape[2]
    if not len(jacobians):
        return jacobians.new_zeros(0, size, dtype=torch.complex128)
    matrix = cyclic_matrix(jacobians)
    roots = torch.linalg.eigvals(matrix)
    scales = torch.linalg.matrix_norm(jacobians, 2).amax(dim=1).tolist()
    rows = [_powers(row, period, scale) for row, scale in zip(roots.cpu().numpy(), scales, strict=True)]
    return torch.as_tensor(np.stack(rows), device=jacobians.device)


def cyclic_matrix(jacobians: Float[Tensor, "c p H H"]) -> Float[Tensor, "c N N"]:
    """The derivative of (h₀, …, h_{p−1}) ↦ (F(h_{p−1}), F(h₀), …, F(h_{p−2})): J_j in block row j + 1, column j."""
    count, period, size, _ = jacobians.shape
    blocks = jacobians.new_zeros(count, period, size, period, size)
    for j in range(period):
        blocks[:, (j + 1) % period, :, j] = jacobians[:, j]
    return blocks.reshape(count, period * size, period * size)


def _powers(roots: np.ndarray, period: int, scale: float) -> np.ndarray:
    """λᵖ, once for every p of the roots: λ, λ e^{2πi/p}, λ e^{4πi/p}, …, which are found from the largest on."""
    turns = np.exp(2j * np.pi * np.arange(period) / period)
    roots = roots[np.argsort(-np.abs(roots), kind="stable")]
    values = []
    while len(roots):
        gaps = np.abs(roots[None] - roots[0] * turns[:, None])
        at = linear_sum_assignment(gaps)[1]
        root = np.mean(roots[at] / turns)
        value = root**period
        noise = ROUNDING * period * scale * np.abs(root) ** (period - 1)
        values.append(value.real if abs(value.imag) <= noise else value)
        roots = np.delete(roots, at)
    values = np.asarray(values, dtype=np.complex128)
    return values[np.argsort(-np.abs(values), kind="stable")]
