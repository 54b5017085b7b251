"""The density of a spectrum and its cumulative count, by stochastic Lanczos quadrature."""

import dataclasses
import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_positive
from kpflow.operators import Operator

from .base import MIN_PROBES, Estimate, Status, not_finite
from .products import NotFiniteError
from .quadrature import LEVELS, Functional, Integrand, Outcome, Rules, remaining, sum_of
from .spectral_sums import Spectrum

__all__ = ["Density", "density"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Density:
    """The density ρ of the eigenvalues of an operator on a grid, smoothed with a Gaussian of width h; ∫ ρ dλ = N.

    Args:
        grid: λ, shape `[G]`, in the units of the operator.
        density: ρ(λ) = Σᵢ exp(−(λ − λᵢ)²/2h²)/(h √2π), eigenvalues per unit of λ, shape `[G]`.
        density_error: Standard error of ρ over probes and steps, shape `[G]`.
        counts: Σᵢ Φ((λ − λᵢ)/h), the (smoothed) number of eigenvalues below λ, from 0 to N, shape `[G]`.
        count_error: Its standard error, shape `[G]`.
        nodes: θ, at which the measure behind ρ is, ascending, shape `[Q]`.
        weights: The number of eigenvalues that each node stands for; their sum is N, shape `[Q]`.
        bandwidth: h.
        num_matvecs: Products taken.
        status: How it ended.
        method: The method that was used.
    """

    grid: Float[Tensor, " G"]
    density: Float[Tensor, " G"]
    density_error: Float[Tensor, " G"]
    counts: Float[Tensor, " G"]
    count_error: Float[Tensor, " G"]
    nodes: Float[Tensor, " Q"]
    weights: Float[Tensor, " Q"]
    bandwidth: float
    num_matvecs: int
    status: Status
    method: str

    def __repr__(self) -> str:
        if not len(self.grid):
            return f"Density({self.status.value})"
        ends = f"{float(self.grid[0]):.4g} to {float(self.grid[-1]):.4g}"
        total = f"{float(self.weights.sum()):.6g} eigenvalues"
        warning = "" if self.status is Status.CONVERGED else f"; {self.status.value}"
        return (
            f"Density({total}, {ends}, h = {self.bandwidth:.2g} ({self.num_matvecs} products, {self.method}{warning}))"
        )


def density(
    operator: Operator,
    *,
    points: int = 200,
    bandwidth: float | None = None,
    method: str = "auto",
    rtol: float | None = None,
    budget: int | None = None,
    steps: int | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
) -> Density:
    """The density of the eigenvalues of a symmetric operator, ρ(λ) = Σᵢ δ(λ − λᵢ), smoothed; ∫ ρ dλ = N.

    By stochastic Lanczos quadrature, as `spectral_sum` for the Gaussians around all points of a grid at once, with the
    same methods and the same parts of the error: spread over probes, truncation to k steps, rounding. The steps resolve
    about π/k of the width of the spectrum inside, much less near its ends, so a smaller bandwidth needs more steps.
    What the density does between points of the grid is not seen: for kernels that collapse on few modes, most
    eigenvalues lie within one bandwidth of 0, and the nodes say more than the grid.

    Args:
        operator: A, symmetric. For squared singular values use A @ A.T.
        points: G, of the grid, which goes 4 bandwidths beyond the extreme nodes.
        bandwidth: h, in the units of A; 1/50 of the width of the spectrum if None.
        method: As for `spectral_sum`, like the rest.
        rtol: Stop when the largest standard error of the cumulative count is below rtol · N; 1e-2 if neither `rtol` nor
            `budget` is given.
        budget: The most products with A (10 000 if not given); without `rtol`, all of them are taken.
        steps: k; None for as few as make the truncation small beside the error over the probes.
        generator: Draws the probes; a fresh one with seed 0 if None.
        raise_on_failure: Raise if a product is not finite; otherwise the status says so, and the grid is empty.

    Raises:
        TypeError: `operator` is no operator, or `generator` no generator.
        ValueError: `operator` is not known to be symmetric, `method` is unknown, or a number is out of range.
        FloatingPointError: A product holds NaN or inf.

    References:
        Theory §13.1; Lin, Saad, Yang, SIAM Review 58 (2016) 34; Ubaru, Chen, Saad, SIAM J. Matrix Anal.
        Appl. 38 (2017) 1075.

    Example:
        >>> from kpflow.operators import Diagonal
        >>> result = density(Diagonal(torch.cat([torch.zeros(300), torch.ones(100)]).double()))
        >>> abs(float(result.counts[100]) - 300) < 3 * float(result.count_error[100])
        True
        >>> round(float(torch.trapezoid(result.density, result.grid)), 1)
        400.0
    """
    check_positive("points", points, integer=True)
    if bandwidth is not None:
        check_positive("bandwidth", bandwidth)
    spectrum = Spectrum("density", operator, method, rtol, budget, steps, generator, raise_on_failure)
    smooth = _Smooth(points, bandwidth, operator.in_space.size)
    try:
        held, samples, ended = spectrum.reading(smooth)
    except NotFiniteError as failure:
        if raise_on_failure:
            raise not_finite("density", operator, failure.spent) from None
        none = operator.in_space.zeros(0).flatten().double()
        bare = none, none, none, none, none, none, none
        return Density(*bare, math.nan, failure.spent, Status.NOT_FINITE, spectrum.method)
    return _shaped(smooth, held, samples, ended)


@final
@dataclasses.dataclass(frozen=True)
class _Smooth(Functional):
    """The smoothed counts of a spectrum of N = `size` eigenvalues: their largest error, beside N."""

    points: int
    bandwidth: float | None
    size: int

    def __call__(self, held: Rules | None, samples: Rules | None, delta: float) -> Outcome:
        grid, width = self.grid(held, samples)
        _, spreads, truncations = _curve(held, samples, _Kernel(grid, width).counts)
        where = int((spreads.square() + truncations.square()).argmax())
        rounding = self.size * delta / (width * math.sqrt(2 * math.pi))
        return Outcome(float(self.size), float(spreads[where]), float(truncations[where]), rounding)

    def grid(self, held: Rules | None, samples: Rules | None) -> tuple[Tensor, float]:
        """The grid and the bandwidth, from the extreme nodes."""
        nodes = torch.cat([rules.nodes[0].flatten() for rules in (held, samples) if rules is not None])
        low, high = float(nodes.min()), float(nodes.max())
        width = self.bandwidth or (high - low) / 50
        if width <= 1e-10 * max(abs(low), abs(high)):  # one eigenvalue, many times
            width = abs(high) / 50 or 1.0
        ends = low - 4 * width, high + 4 * width
        return torch.linspace(*ends, self.points, dtype=torch.float64, device=nodes.device), width


@final
@dataclasses.dataclass(frozen=True, eq=False)
class _Kernel:
    """A Gaussian of a width around all points of a grid: integrands `[...] → [..., G]`."""

    grid: Float[Tensor, " G"]
    width: float

    def counts(self, nodes: Tensor) -> Tensor:
        return torch.special.ndtr((self.grid - nodes[..., None]) / self.width)

    def density(self, nodes: Tensor) -> Tensor:
        bell = torch.exp(-((self.grid - nodes[..., None]) / self.width).square() / 2)
        return bell / (self.width * math.sqrt(2 * math.pi))


def _curve(held: Rules | None, samples: Rules | None, integrand: Integrand) -> tuple[Tensor, Tensor, Tensor]:
    """Σᵢ f(λᵢ) for all points of the grid, the standard error over probes, and the truncation, each `[G]`."""
    levels = range(len(LEVELS))
    known = [sum_of(held, integrand, level) for level in levels]
    if samples is None:
        return known[0], torch.zeros_like(known[0]), remaining(torch.stack(known))
    drawn = [samples.sums(integrand, level) for level in levels]
    means = torch.stack([part.mean(0) for part in drawn])
    first = torch.stack([part + means[0] for part in known])
    second = known[0] + means
    truncation = remaining(first) + remaining(second)
    return second[0], _spread(drawn[0]), torch.full_like(truncation, math.inf) if samples.open else truncation


def _spread(samples: Float[Tensor, "S G"]) -> Float[Tensor, " G"]:
    """Standard error of the means, widened as in `base.spread`; infinite for fewer than `MIN_PROBES` probes."""
    count = len(samples)
    if count < MIN_PROBES:
        return torch.full_like(samples[0], math.inf)
    return samples.std(0) * math.sqrt((count - 1) / (count - 3) / count)


def _shaped(smooth: _Smooth, held: Rules | None, samples: Rules | None, ended: Estimate) -> Density:
    grid, width = smooth.grid(held, samples)
    kernel = _Kernel(grid, width)
    heights, height_spread, height_cut = _curve(held, samples, kernel.density)
    counts, count_spread, count_cut = _curve(held, samples, kernel.counts)
    nodes, weights = _pooled(held, samples)
    return Density(
        grid=grid,
        density=heights,
        density_error=torch.hypot(height_spread, height_cut),
        counts=counts,
        count_error=torch.hypot(count_spread, count_cut),
        nodes=nodes,
        weights=weights,
        bandwidth=width,
        num_matvecs=ended.num_matvecs,
        status=ended.status,
        method=ended.method,
    )


def _pooled(held: Rules | None, samples: Rules | None) -> tuple[Tensor, Tensor]:
    """All nodes in order, and their weights: those of the samples are divided by their number."""
    parts = [(rules, count) for rules, count in ((held, 1), (samples, 1 if samples is None else len(samples.matrix)))]
    nodes = torch.cat([rules.nodes[0].flatten() for rules, _ in parts if rules is not None])
    weights = torch.cat([rules.weights[0].flatten() / count for rules, count in parts if rules is not None])
    order = nodes.argsort()
    return nodes[order], weights[order]
