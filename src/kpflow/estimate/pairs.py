"""Effective rank and Frobenius norm from half products in independent parts, and from all pairs of them."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.operators import Operator, SampledParts, Structure

from .base import Effort, Estimate, Reading, Status, check_least_budget, settle
from .products import Products, signs
from .structured import declared

__all__ = ["METHOD", "RANK", "SIZE", "PairSampler", "Powers", "by_pairs", "pairs_or"]

METHOD = "one-sided-blocks"

Powers = tuple[float, float]
"""p and q of a number (tr A)^p (‖A‖²_F)^q."""

SIZE: Powers = (0.0, 0.5)
RANK: Powers = (2.0, -1.0)

LEAST_PROBES, LEAST_DEGREES = 8, 24
"""Probes before the first look, and degrees of freedom of its error: P (S − 1) for S probes in P parts."""

LEAST_KNOWN = 4.0
"""Fewer degrees of freedom say nothing, so that the error is infinite."""

LEAST_COST, MOST_COST = 30.0, 150.0
"""Half products that "auto" is ready to take rather than try a sketch: a quarter of the effective rank, with which what
a sketch needs grows, but no fewer and no more than these. From measured times."""

FEWEST = 4
"""Probes of one part that show how much of its variance is of pairs."""

KNOWN = 0.5
"""Degrees of freedom beside those of normal samples, since spreads of squares are known less. Chosen by experience."""

CAUTION = 6
"""As many times fewer degrees of freedom are counted when it is decided to stop. Chosen by experience: probes that have
missed a leading direction by chance agree too well."""

GRAM_ENTRIES = 2**23
"""Inner products held at once: 64 MB."""


@final
class PairSampler:
    """Half products in parts y_sp, of which the pairs tell tr A and ‖A‖²_F, and any power of both.

    With h = ⟨y_sp, y_s'q⟩²: T is the sum over parts of the mean of ‖y_sp‖² over probes, N the sum over pairs of parts
    of the mean of h over pairs of probes (different ones, if p = q). Both are unbiased.

    Bias and error are a jackknife's that leaves out one part of one probe at a time: P (S − 1) degrees of freedom, so
    that few probes suffice. It counts twice what no single member of a pair explains of the variance of h (Efron and
    Stein 1981); that is estimated as in an analysis of variance, and taken off once.

    Args:
        sampled: What the operator declares.
        generator: Draws random signs.
    """

    def __init__(self, sampled: SampledParts, generator: torch.Generator) -> None:
        self.sampled = sampled
        self.generator = generator
        self.products = Products(sampled.operator)
        self.eps = torch.finfo(sampled.operator.in_space.dtype).eps
        self.images = sampled.operator.out_space.zeros(0)
        none = torch.zeros(0, sampled.parts, dtype=torch.float64, device=self.images.device)
        self.energies: Float[Tensor, "S P"] = none
        self.sums: Float[Tensor, "S P P"] = none.new_zeros(0, sampled.parts, sampled.parts)  # of h over s'
        self.fourths: Float[Tensor, "P P"] = none.new_zeros(sampled.parts, sampled.parts)  # of h² over s and s'

    @property
    def pilot(self) -> int:
        """Probes before the first look."""
        return max(LEAST_PROBES, 1 + math.ceil(LEAST_DEGREES / self.sampled.parts))

    def finish(self, powers: Powers, effort: Effort) -> Estimate:
        """Draw until the effort is met."""
        return settle(effort, METHOD, functools.partial(self.read, powers), pilot=self.pilot, eps=self.eps)

    def read(self, powers: Powers, total: int) -> Reading:
        """Draw until `total` products are spent, and read the number of these powers."""
        self.draw(total)
        value, first, second, degrees = self._variances(powers)
        error = math.sqrt(first + second)
        if math.isfinite(degrees):
            error = error * math.sqrt(degrees / (degrees - 2)) if degrees >= LEAST_KNOWN else math.inf
        return Reading(value, error, int(min(degrees, 1e6) / CAUTION) + 1, self.products.count)

    def cost_of(self, powers: Powers, rtol: float) -> float:
        """Predicted cost of this tolerance in half products: its variance is a/S + b/S² after S probes."""
        value, first, second, _ = self._variances(powers)
        goal = (rtol * value) ** 2 / 1.2
        if not goal > 0:
            return math.inf
        return self._cost(len(self.energies) * (first + math.sqrt(first**2 + 4 * second * goal)) / (2 * goal))

    @property
    def ready(self) -> float:
        """What "auto" is ready to spend here."""
        rank = self._variances(RANK)[0]
        return min(max(LEAST_COST, rank / 4), MOST_COST)

    def affordable(self, cost: float) -> int:
        """Probes that cost so many half products."""
        pair = max(self.sampled.pair_cost, 1e-9)
        return math.floor((math.sqrt(1 + 4 * pair * cost) - 1) / (2 * pair))

    def draw(self, total: int) -> None:
        """Draw until `total` products are spent."""
        room = total - self.products.count
        if room <= 0:
            return
        images = self.products(signs(self.products.in_space, room, self.generator))
        images = images.reshape(room, *self.sampled.operator.out_shape)
        for block in images.split(max(1, GRAM_ENTRIES // (self.sampled.parts**2 * total))):
            self._add(block)

    def _cost(self, probes: float) -> float:
        return probes * (1 + self.sampled.pair_cost * probes)

    def _add(self, block: Tensor) -> None:
        """Take some probes among those that are paired."""
        own = self.sampled.gram(block, block)  # [S, P, S, P]
        energies, squares = _same(own).clone(), own.square()
        _same(squares).zero_()
        sums = squares.sum(2)
        self.fourths += squares.square().sum((0, 2))
        if len(self.images):
            squares = self.sampled.gram(block, self.images).square()
            fourths = squares.square().sum((0, 2))
            self.fourths += fourths + fourths.mT
            sums += squares.sum(2)
            self.sums += squares.sum(0).permute(1, 2, 0)
        self.images = torch.cat([self.images, block])
        self.energies = torch.cat([self.energies, energies])
        self.sums = torch.cat([self.sums, sums])

    def _variances(self, powers: Powers) -> tuple[float, float, float, float]:
        """The number, the parts of its variance that fall as 1/S and as 1/S², and the degrees of freedom."""
        S, (p, q) = len(self.energies), powers
        within, across = self._sums()
        trace = float(self.energies.mean(0).sum())
        square = float(across.sum() / max(S, 1) ** 2 + within.sum() / max(S * (S - 1), 1))
        if not square:
            return (math.nan if q < 0 else 0.0), 0.0, 0.0, math.inf
        value = trace**p * square**q
        if S < FEWEST:
            return value, math.inf, 0.0, 0.0
        left_out = (trace + self._left_out(self.energies)) ** p * (square + self._squares_left_out()) ** q
        each = (S - 1) / S * (left_out - left_out.mean(0)).square().sum(0)  # of the parts' own jackknife
        total = float(each.sum())
        if not total:
            return value, 0.0, 0.0, math.inf
        second = min((q * value / square) ** 2 * self._of_pairs(), total / 2)
        bias = (S - 1) * float((left_out.mean(0) - value).sum())
        bias -= (1 - 1 / q) * second / (2 * value) if q else 0.0  # what pairs alone explain counts twice here too
        degrees = KNOWN * (S - 1) * total**2 / float(each.square().sum())
        return value - bias, total - 2 * second, second, degrees

    def _sums(self) -> tuple[Tensor, Tensor]:
        """Σ h over the other probes of the same part, and over all probes of all other parts: both `[S, P]`."""
        within = self.sums.diagonal(dim1=1, dim2=2)
        return within, self.sums.sum(2) - within

    def _left_out(self, values: Float[Tensor, "S P"]) -> Float[Tensor, "S P"]:
        """What the mean of values over probes, summed over parts, changes by without one of them."""
        return (values.mean(0) - values) / (len(values) - 1)

    def _squares_left_out(self) -> Float[Tensor, "S P"]:
        """What N changes by without one part of one probe."""
        S, (within, across) = len(self.sums), self._sums()
        pairs = within.sum(0)
        change = (pairs - 2 * within) / ((S - 1) * (S - 2)) - pairs / (S * (S - 1))
        return change + 2 * self._left_out(across) / S

    def _of_pairs(self) -> float:
        """The variance of N that neither of the two of a pair explains, as often as the jackknife counts it too much.

        From the residual sum of squares of h: for two parts that of a table S × S, for one part that of a symmetric
        table without its diagonal, over their degrees of freedom (S − 1)² and S (S − 3)/2.
        """
        S, total, rows = len(self.sums), self.sums.sum(0), self.sums.square().sum(0)
        residual = self.fourths - (rows + rows.mT) / S + total.square() / S**2
        across = (residual.sum() - residual.trace()) / (S - 1) ** 2
        diagonal = total.diagonal().square().sum() / (2 * (S - 1) * (S - 2))
        within = (self.fourths.trace() / 2 - rows.trace() / (S - 2) + diagonal) / (S * (S - 3) / 2)
        return max(float(2 * across / S**2 + 2 * within / ((S - 1) * (S - 2))), 0.0)


def _same(gram: Float[Tensor, "S P S P"]) -> Float[Tensor, "S P"]:
    """The entries of the same part of the same probe, a view."""
    return gram.diagonal(dim1=0, dim2=2).diagonal(dim1=0, dim2=1)


def by_pairs(operator: Operator, powers: Powers, effort: Effort, generator: torch.Generator) -> Estimate:
    """The number of these powers from pairs alone."""
    sampled = declared(operator, _parts_of)
    if sampled is None:
        raise ValueError(
            f"`method` {METHOD!r} needs an operator whose structure knows blocks (the NTK of the states of a recurrent "
            f"network); got {operator!r}. Use 'deflated' or 'auto'."
        )
    check_least_budget(2, effort, "one pair of probes")
    return PairSampler(sampled, generator).finish(powers, effort)


def pairs_or(
    operator: Operator,
    powers: Powers,
    effort: Effort,
    generator: torch.Generator,
    otherwise: Callable[[Effort], Estimate],
) -> Estimate:
    """From pairs where the operator declares parts and the first of them promise the tolerance soon; else `otherwise`.

    A budget that is to be spent as a whole is `otherwise`'s.
    """
    sampled = declared(operator, _parts_of)
    if sampled is None or effort.whole:
        return otherwise(effort)
    sampler = PairSampler(sampled, generator)
    if effort.budget < sampler.pilot:
        return otherwise(effort)
    found = sampler.finish(powers, dataclasses.replace(effort, budget=sampler.pilot))
    if sampler.cost_of(powers, effort.rtol) <= sampler.ready:
        most = max(sampler.affordable(1.5 * sampler.ready), sampler.pilot)
        found = sampler.finish(powers, dataclasses.replace(effort, budget=min(effort.budget, most)))
    room = effort.budget - found.num_matvecs
    if found.status is Status.CONVERGED or room == 0 or not math.isfinite(found.value):
        return found
    if room < effort.pilot:
        return sampler.finish(powers, effort)
    rest = otherwise(dataclasses.replace(effort, budget=room))
    return dataclasses.replace(rest, num_matvecs=rest.num_matvecs + found.num_matvecs)


def _parts_of(structure: Structure) -> SampledParts | None:
    return structure.sampled_parts()
