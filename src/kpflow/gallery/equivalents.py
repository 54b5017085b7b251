"""Deterministic equivalents: test errors of ridge regression and gradient flow on many data of as many features."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["expected_error", "flow_nodes", "level"]


def flow_nodes(count: int = 16) -> tuple[Tensor, Tensor]:
    """ζ and c of e^{−x} ≈ Σ cₖ ζₖ/(x + ζₖ) for x ≥ 0, on a parabola (Weideman, Trefethen 2007), to 1e-7.

    So gradient flow for a time t is the sum of ridge regressions with λₖ = ζₖ/t and weights cₖ, whose sum is 1.

    Example:
        >>> nodes, shares = flow_nodes()
        >>> round(float((shares * nodes / (2 + nodes)).sum().real - math.exp(-2)), 6)
        0.0
    """
    turns = math.pi * (2 * torch.arange(count, dtype=torch.float64) + 1 - count) / count
    nodes = count * torch.complex(0.1309 - 0.1194 * turns**2, 0.25 * turns)
    return nodes, nodes.exp() * torch.complex(0.25 + 0 * turns, 0.2388 * turns) / nodes


def level(data: int, ridges: Tensor, sizes: Tensor, counts: Tensor) -> Tensor:
    """κ of n = λ/κ + Σ mₛ s/(s + κ) for two sizes s: of a cubic's roots the one with an angle between 0 and λ's.

    Args:
        data: n.
        ridges: λ, complex, of any shape.
        sizes: s, variances of the features, shape `[2]`.
        counts: m, number of features of each size, shape `[2]`.

    Example:
        >>> one = torch.ones(1, dtype=torch.complex128)
        >>> level(2, one, torch.ones(2), torch.tensor([1.0, 0.0]))[0].real  # 2 = 1/κ + 1/(1 + κ)
        tensor(0.7071, dtype=torch.float64)
    """
    (a, b), (p, q), ridges = sizes, counts * sizes / data, ridges / data
    terms = [a + b - p - q - ridges, a * b - p * b - q * a - ridges * (a + b), -ridges * a * b]
    companion = torch.zeros(*ridges.shape, 3, 3, dtype=ridges.dtype)
    companion[..., 0, :] = -torch.stack(terms, dim=-1)
    companion[..., 1, 0] = companion[..., 2, 1] = 1.0
    roots = torch.linalg.eigvals(companion)
    nearest = (roots.angle() - ridges.angle()[..., None] / 2).abs().argmin(dim=-1, keepdim=True)
    return roots.gather(-1, nearest)[..., 0]


def expected_error(
    data: int, noise: float, sizes: Tensor, counts: Tensor, levels: Sequence[Tensor], shares: Tensor
) -> Tensor:
    """½ Σ cⱼcₖ [Σ rᵢ(j) rᵢ(k)/d + σ²] / (1 − Σ (1 − rᵢ(j)) (1 − rᵢ(k))/n) with rᵢ = κ/(sᵢ + κ).

    Args:
        data: n.
        noise: σ.
        sizes: s of each kind of features, shape `[2]`.
        counts: Number of features of each kind, shape `[2]`.
        levels: κ for each kind, or one for both, shape `[t, k]`.
        shares: c of each ridge, shape `[k]`, complex.

    Returns:
        Shape `[t]`.

    Example:
        >>> one, two = torch.ones(1, dtype=torch.complex128), torch.ones(2)
        >>> expected_error(8, 0.0, two, 2 * two, [one[None]], one)  # ½ (½)²/(1 − 4 (½)²/8)
        tensor([0.1429], dtype=torch.float64)
    """
    kappa = torch.stack(tuple(levels), dim=-1)
    kept = kappa / (sizes + kappa)  # [t, k, 2]
    counts = counts.to(kept.dtype)
    bias, learned = ((part[:, :, None] * part[:, None]) @ counts for part in (kept, 1 - kept))  # [t, k, k]
    errors = (bias / counts.sum() + noise**2) / (1 - learned / data)
    return 0.5 * (errors @ shares @ shares).real
