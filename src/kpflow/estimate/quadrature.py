"""Gauss rules of the spectral measure, and how far a sum over the spectrum is from what they say."""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

from .base import jackknife

__all__ = [
    "LEVELS",
    "Count",
    "DomainError",
    "Functional",
    "Integrand",
    "Outcome",
    "Rules",
    "Sums",
    "remaining",
    "sum_of",
]

LEVELS = (1.0, 0.75, 0.5, 0.375, 0.25)
"""Parts of the Lanczos steps at which sums are compared. Chosen by experience."""


Integrand: TypeAlias = Callable[[Tensor], Tensor]
"""Q functions of eigenvalues, `[...] → [..., Q]`."""


class DomainError(ValueError):
    """A function of the spectrum is not defined at an eigenvalue."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """The value, its standard error over the probes, and what the truncation and the rounding may add to it."""

    value: float
    spread: float
    truncation: float
    rounding: float

    @property
    def error(self) -> float:
        return math.hypot(self.spread, self.truncation) + self.rounding


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Rules:
    """Gauss rules of S spectral measures μₛ = Σᵢ cₛᵢ δ(λ − λᵢ), from compressions Tₛ of A to Krylov spaces.

    ∫ f dμₛ ≈ Σⱼ wₛⱼ f(θₛⱼ), with θ the eigenvalues of T and w the squared first entries of its eigenvectors, summed
    over `starts` of them: the entries of tr(f(T)[:starts, :starts]).

    Args:
        matrix: T, `[S, D, D]`.
        coupling: What leads out of the Krylov spaces, B in A Vᵀ = Vᵀ T + Wᵀ B, `[S, b, D]`; zero where A maps the
            space to itself: the rule is then exact.
        starts: Vectors at the start of the basis.
        mass: ∫ dμₛ of a measure over that of the rule.
        depths: Size of the leading part of T at each of the `LEVELS`.
        nodes: θ at each level, `[S, depth]`.
        weights: w at each level, `[S, depth]`.
    """

    matrix: Float[Tensor, "S D D"]
    coupling: Float[Tensor, "S b D"]
    starts: int
    mass: float
    nodes: tuple[Float[Tensor, "S _"], ...]
    weights: tuple[Float[Tensor, "S _"], ...]

    @staticmethod
    def of(matrix: Tensor, coupling: Tensor, starts: int, mass: float, depths: Sequence[int]) -> "Rules":
        """The rules of a compression, by one eigendecomposition for each level."""
        parts = [_gauss(matrix[:, :depth, :depth], starts, mass) for depth in depths]
        nodes, weights = zip(*parts, strict=True)
        return Rules(matrix, coupling, starts, mass, nodes, weights)

    def joined(self, other: "Rules") -> "Rules":
        """The measures of both."""
        return Rules(
            torch.cat([self.matrix, other.matrix]),
            torch.cat([self.coupling, other.coupling]),
            self.starts,
            self.mass,
            tuple(torch.cat(pair) for pair in zip(self.nodes, other.nodes, strict=True)),
            tuple(torch.cat(pair) for pair in zip(self.weights, other.weights, strict=True)),
        )

    @property
    def exact(self) -> Tensor:
        """Where the rule is exact, `[S]`."""
        return (self.coupling == 0).all(dim=(1, 2))

    @property
    def open(self) -> bool:
        """Whether nothing tells what more steps would change: one step, and not exact."""
        return self.nodes[0].shape[1] == self.nodes[2].shape[1] and not bool(self.exact.all())

    def sums(self, integrand: Integrand, level: int = 0) -> Float[Tensor, "S Q"]:
        """Σⱼ wₛⱼ f(θₛⱼ) of Q functions; rules that are exact are taken whole at all levels."""
        whole = (self.weights[level][..., None] * integrand(self.nodes[level])).sum(1)
        if level == 0 or not bool(self.exact.any()):
            return whole
        return torch.where(self.exact[:, None], self.sums(integrand), whole)

    def above(self, threshold: float) -> tuple[Float[Tensor, " S"], Float[Tensor, " S"]]:
        """The least and the largest mass of (threshold, ∞) that a measure of these moments can have.

        Of the Gauss–Radau rule with a node at the threshold, whose weight is the largest that a measure can have there
        (Chebyshev, Markov, Stieltjes): the mass above its node, without and with that weight. The node is forced by a
        block tI + B (T − t)⁻¹ Bᵀ at the end of T.
        """
        extended = self._radau(threshold)
        values, vectors = torch.linalg.eigh(extended)
        weights = self.mass * vectors[:, : self.starts].square().sum(1)
        near = 1e-9 * extended.abs().amax((1, 2))[:, None]
        at = ((values - threshold).abs() <= near) & ~self.exact[:, None]
        above = torch.where((values > threshold) & ~at, weights, 0.0).sum(1)
        return above, above + torch.where(at, weights, 0.0).sum(1)

    def _radau(self, threshold: float) -> Float[Tensor, "S E E"]:
        values, vectors = torch.linalg.eigh(self.matrix)
        gap = values - threshold
        least = 1e-13 * values.abs().amax(1, keepdim=True).clamp(min=1e-300)
        gap = torch.where(gap.abs() < least, torch.where(gap < 0, -least, least), gap)
        turned = self.coupling @ vectors
        block = (turned / gap[:, None]) @ turned.mT
        size = self.coupling.shape[1]
        block = block + threshold * torch.eye(size, dtype=block.dtype, device=block.device)
        top = torch.cat([self.matrix, self.coupling.mT], dim=2)
        return torch.cat([top, torch.cat([self.coupling, (block + block.mT) / 2], dim=2)], dim=1)


def _gauss(matrix: Float[Tensor, "S d d"], starts: int, mass: float) -> tuple[Tensor, Tensor]:
    """Nodes and weights; nodes without weight are moved to one that has some: functions need not exist there."""
    nodes, vectors = torch.linalg.eigh(matrix)
    weights = vectors[:, :starts].square().sum(1)
    heaviest = nodes.gather(1, weights.argmax(1, keepdim=True))
    return torch.where(weights > 1e-28, nodes, heaviest), mass * weights


class Functional(abc.ABC):
    """A number that belongs to a spectrum, read from what is known of the spectral measure."""

    @abc.abstractmethod
    def __call__(self, held: Rules | None, samples: Rules | None, delta: float) -> Outcome:
        """The number of the measure `held` plus the mean of `samples`, with eigenvalues known to ± `delta`."""


@final
@dataclasses.dataclass(frozen=True)
class Sums(Functional):
    """g(Σᵢ f(λᵢ)) with f of Q components and a smooth function g of them.

    Args:
        integrand: f, `[...] → [..., Q]`; its second argument is what rounding does to eigenvalues.
        combine: g, `[*, Q] → [*]`.
    """

    integrand: Callable[[Tensor, float], Tensor]
    combine: Callable[[Tensor], Tensor]

    def __call__(self, held: Rules | None, samples: Rules | None, delta: float) -> Outcome:
        def integrand(nodes: Tensor) -> Tensor:
            return self.integrand(nodes, delta)

        number = len(LEVELS)
        known = [sum_of(held, integrand, level) for level in range(number)]
        drawn = [_samples(samples, integrand, level) for level in range(number)]
        means = [_mean(part) for part in drawn]
        value, spread = float(self.combine(known[0] + means[0])), 0.0
        if drawn[0] is not None:
            value, spread = jackknife(lambda mean: self.combine(known[0] + mean), drawn[0])
        first = remaining(self.combine(torch.stack([part + means[0] for part in known])))
        second = remaining(self.combine(torch.stack([known[0] + mean for mean in means])))
        truncation = math.inf if samples is not None and samples.open else float(first + second)
        return Outcome(value, spread, truncation, self._rounding(held, samples, delta, value))

    def _rounding(self, held: Rules | None, samples: Rules | None, delta: float, value: float) -> float:
        """What a shift of all eigenvalues by `delta` does."""

        def shifted(nodes: Tensor) -> Tensor:
            return self.integrand(nodes + delta, delta)

        moved = self.combine(sum_of(held, shifted, 0) + _mean(_samples(samples, shifted, 0)))
        return abs(float(moved) - value) if math.isfinite(float(moved)) else 0.0


@final
@dataclasses.dataclass(frozen=True)
class Count(Functional):
    """The number of eigenvalues above a threshold: the middle of the bracket of `Rules.above`.

    A step is no polynomial; the width of the bracket, w, is what the steps leave open. A number uniform in it has
    standard deviation w/√12, which is the truncation here: the truth is never further than √3 of that.
    """

    threshold: float

    def __call__(self, held: Rules | None, samples: Rules | None, delta: float) -> Outcome:
        low, high = 0.0, 0.0
        if held is not None:
            low, high = (float(part.sum()) for part in held.above(self.threshold))
        at = functools.partial(self._at, delta)
        doubt = float((sum_of(held, at, 0) + _mean(_samples(samples, at, 0))).sum()) / 2
        if samples is None:
            return Outcome((low + high) / 2, 0.0, (high - low) / math.sqrt(12), doubt)
        drawn = torch.stack(samples.above(self.threshold), dim=1)
        value, spread = jackknife(lambda mean: (low + high) / 2 + mean.mean(-1), drawn)
        width = high - low + float((drawn[:, 1] - drawn[:, 0]).mean())
        return Outcome(value, spread, width / math.sqrt(12), doubt)

    def _at(self, delta: float, nodes: Tensor) -> Tensor:
        """1 where rounding may have moved an eigenvalue over the threshold."""
        return ((nodes - self.threshold).abs() <= delta).double()[..., None]


def remaining(values: Float[Tensor, "L *G"]) -> Float[Tensor, "*G"]:
    """What the sums at the `LEVELS`, deepest first, say of the error of the deepest.

    With d₁ the largest change since half the steps, and d₀ that in the quarter before, errors that go on to fall by
    r = d₁/d₀ for each doubling sum to d₁ r/(1 − r), and fall faster where convergence is geometric. No more than 3 d₁.
    """
    late = (values[0] - values[1:3]).abs().amax(0)
    early = (values[2] - values[3:]).abs().amax(0)
    return torch.where(late < 0.75 * early, late.square() / (early - late).clamp(min=1e-300), 3 * late)


def sum_of(held: Rules | None, integrand: Integrand, level: int) -> Tensor:
    """Sums of what is held, `[Q]`; zero for nothing."""
    return torch.zeros((), dtype=torch.float64) if held is None else held.sums(integrand, level).sum(0)


def _samples(samples: Rules | None, integrand: Integrand, level: int) -> Tensor | None:
    return None if samples is None else samples.sums(integrand, level)


def _mean(samples: Tensor | None) -> Tensor:
    return torch.zeros((), dtype=torch.float64) if samples is None else samples.mean(0)
