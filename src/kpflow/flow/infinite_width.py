"""The limit of infinite width: kernels that random networks have, in closed form."""

import dataclasses
import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_finite, check_one_of, check_positive, check_range, check_tensor

__all__ = ["InfinitePerceptron", "InfiniteRecurrent", "expectations", "infinite_perceptron", "infinite_recurrent"]


def expectations(
    nonlinearity: str, covariance: Float[Tensor, "*B N N"]
) -> tuple[Float[Tensor, "*B N N"], Float[Tensor, "*B N N"]]:
    """E φ(u_i) φ(u_j) and E φ′(u_i) φ′(u_j) of centred Gaussian u with this covariance C.

    For the rectifier, with the angle ϑ of u_i and u_j, √(C_ii C_jj) (sin ϑ + (π − ϑ) cos ϑ)/2π and (π − ϑ)/2π, the
    arc-cosine kernels; for erf, (2/π) arcsin(2C_ij/√((1 + 2C_ii)(1 + 2C_jj))) and
    (4/π)/√((1 + 2C_ii)(1 + 2C_jj) − 4C_ij²).

    Args:
        nonlinearity: φ, "relu" or "erf".
        covariance: C.

    Raises:
        TypeError: `covariance` holds no floating-point numbers.
        ValueError: `nonlinearity` is another, or `covariance` is no finite square matrix with positive diagonal.

    References:
        Cho and Saul 2009; Williams 1997.

    Example:
        >>> values, slopes = expectations("erf", torch.eye(2, dtype=torch.float64))
        >>> values
        tensor([[0.4646, 0.0000],
                [0.0000, 0.4646]], dtype=torch.float64)
    """
    check_one_of("nonlinearity", nonlinearity, ("relu", "erf"))
    check_tensor("covariance", covariance)
    if covariance.ndim < 2 or covariance.shape[-1] != covariance.shape[-2]:
        raise ValueError(f"`covariance` must be square, shape (*, N, N); got {tuple(covariance.shape)}.")
    check_finite("covariance", covariance)
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    if not bool((variances > 0).all()):
        raise ValueError(
            f"`covariance` must have a positive diagonal; its least entry is {float(variances.min()):.3g}. Inputs that "
            "are zero need a bias."
        )
    values, slopes = (_erf if nonlinearity == "erf" else _relu)(covariance.double(), variances.double())
    return values.to(covariance.dtype), slopes.to(covariance.dtype)


def _erf(covariance: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    sizes = (1 + 2 * variances).sqrt()
    outer = sizes[..., :, None] * sizes[..., None, :]
    values = (2 * covariance / outer).clamp(-1, 1).asin() * (2 / math.pi)
    return values, (4 / math.pi) / ((outer - 2 * covariance) * (outer + 2 * covariance)).sqrt()


def _relu(covariance: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    sizes = variances.sqrt()
    outer = sizes[..., :, None] * sizes[..., None, :]
    same = torch.eye(covariance.shape[-1], dtype=torch.bool, device=covariance.device)
    angle = (covariance / outer).clamp(-1, 1).acos().masked_fill(same, 0.0)  # acos loses half the digits at 1
    values = outer * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
    return values, (math.pi - angle) / (2 * math.pi)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class InfinitePerceptron:
    """What a perceptron of infinite width has at initialisation; the networks below deviate by the order of n^(−1/2).

    Args:
        cores: C = lim M Mᵀ of each layer, its bias included, shape `[N, N]`.
        covariance: Of one output between inputs, shape `[N, N]`.
        ntk: Of one output, shape `[N, N]`; zero between different outputs.
    """

    cores: tuple[Float[Tensor, "N N"], ...]
    covariance: Float[Tensor, "N N"]
    ntk: Float[Tensor, "N N"]


def infinite_perceptron(
    inputs: Float[Tensor, "N m"],
    depth: int,
    *,
    nonlinearity: str = "relu",
    gain: float = 2.0,
    input_gain: float = 1.0,
    bias: float = 0.0,
) -> InfinitePerceptron:
    """Kernels of a = √(g/n) W v + b in every layer, with v the inputs or φ(a) of the layer below (arXiv 1806.07572).

    Entries of W are N(0, 1), entries of b N(0, bias), and both learn: Θ ← C + g E φ′φ′ ∘ Θ with the core
    C = g E φφ + 1.

    Args:
        inputs: Shape `[N, m]`.
        depth: Number of linear layers.
        nonlinearity: φ, "relu" or "erf".
        gain: g of the layers after the first.
        input_gain: g of the first layer.
        bias: Variance of b.

    Raises:
        TypeError: `inputs` hold no floating-point numbers.
        ValueError: A number is out of range, an input is zero without a bias, or `nonlinearity` is another.

    Example:
        >>> limit = infinite_perceptron(torch.eye(2, dtype=torch.float64), 2)
        >>> limit.ntk
        tensor([[3.0000, 1.6592],
                [1.6592, 3.0000]], dtype=torch.float64)
    """
    _check_inputs(inputs, 2, "(N, m)")
    check_positive("depth", depth, integer=True)
    check_positive("gain", gain)
    check_positive("input_gain", input_gain)
    check_range("bias", bias, 0)
    seen = input_gain * inputs.double() @ inputs.double().mT / inputs.shape[1]
    cores, ntk = [seen + 1], seen + 1
    for _ in range(depth - 1):
        values, slopes = expectations(nonlinearity, seen + bias)
        seen = gain * values
        cores.append(seen + 1)
        ntk = seen + 1 + gain * slopes * ntk
    return InfinitePerceptron(tuple(cores), seen + bias, ntk)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class InfiniteRecurrent:
    """What a recurrent network of infinite width has at initialisation.

    Args:
        covariance: C, of one unit's pre-activation between trials and times, shape `[B, T, B, T]`.
        ntk: Θ, of the pre-activations: the NTK of the n units is Θ ⊗ I_n, shape `[B, T, B, T]`.
        output_covariance: Of y_t = v·φ(h_t)/√n between trials and times, v ~ N(0, 1), shape `[B, T, B, T]`.
        output_ntk: Of y, v being trained as well, shape `[B, T, B, T]`.
    """

    covariance: Float[Tensor, "B T B T"]
    ntk: Float[Tensor, "B T B T"]
    output_covariance: Float[Tensor, "B T B T"]
    output_ntk: Float[Tensor, "B T B T"]


def infinite_recurrent(
    inputs: Float[Tensor, "B T m"],
    *,
    nonlinearity: str = "erf",
    recurrent: float = 1.0,
    drive: float = 1.0,
    bias: float = 0.0,
) -> InfiniteRecurrent:
    """Kernels of h_t = √(w/n) W φ(h_{t−1}) + √(u/m) U x_t + √β b, φ(h_0) = 0, with standard normal W, U, b that learn.

    C^{tu} = w E φφ(C^{t−1,u−1}) + u x_t·x_u/m + β and Θ^{tu} = C^{tu} + w E φ′φ′ Θ^{t−1,u−1}, between all trials and
    times: the time blocks of the limit of P K Pᵀ (arXiv 1902.04760).

    Args:
        inputs: x, shape `[B, T, m]`.
        nonlinearity: φ, "relu" or "erf".
        recurrent: w.
        drive: u.
        bias: β.

    Raises:
        TypeError: `inputs` hold no floating-point numbers.
        ValueError: A number is out of range, a pre-activation has no variance, or `nonlinearity` is another.

    Example:
        >>> limit = infinite_recurrent(torch.ones(1, 3, 2, dtype=torch.float64))
        >>> limit.ntk[0, :, 0].diagonal()
        tensor([1.0000, 2.0340, 2.5245], dtype=torch.float64)
    """
    _check_inputs(inputs, 3, "(B, T, m)")
    check_positive("recurrent", recurrent)
    check_positive("drive", drive)
    check_range("bias", bias, 0)
    trials, steps, size = inputs.shape
    x = inputs.double().flatten(0, 1)
    driven = (drive * x @ x.mT / size + bias).reshape(trials, steps, trials, steps)
    covariance = driven
    values = slopes = torch.zeros_like(driven)
    for _ in range(steps):  # one more diagonal of times is right in every round
        values, slopes = _by_place(nonlinearity, covariance)
        covariance = driven.clone()
        covariance[:, 1:, :, 1:] += recurrent * values[:, :-1, :, :-1]
    ntk = covariance.clone()
    for t in range(1, steps):
        earlier = recurrent * slopes[:, t - 1, :, :-1] * ntk[:, t - 1, :, :-1]
        ntk[:, t, :, 1:] = covariance[:, t, :, 1:] + earlier
    return InfiniteRecurrent(covariance, ntk, values, values + slopes * ntk)


def _by_place(nonlinearity: str, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Expectations between all trials and times."""
    sizes = covariance.shape
    flat = covariance.reshape(sizes[0] * sizes[1], -1)
    values, slopes = expectations(nonlinearity, flat)
    return values.reshape(sizes), slopes.reshape(sizes)


def _check_inputs(inputs: Tensor, axes: int, shape: str) -> None:
    check_tensor("inputs", inputs)
    if inputs.ndim != axes or not inputs.numel():
        raise ValueError(f"`inputs` must have shape {shape}; got {tuple(inputs.shape)}.")
    check_finite("inputs", inputs)
