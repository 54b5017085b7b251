"""The spectral measure of a symmetric operator from products: stochastic Lanczos quadrature, plain and deflated."""

import math
from typing import final

import torch
from torch import Tensor

from kpflow.operators import Operator

from .base import MIN_PROBES, PILOT, Effort, Estimate, Reading, check_exact_budget, settle
from .lanczos import BlockBasis, Lanczos, sphere
from .products import Products, basis_blocks
from .quadrature import LEVELS, Functional, Outcome, Rules

__all__ = ["BUDGET_FACTOR", "PILOT_PRODUCTS", "SpectralMeasure", "exact_measure", "measured"]

PILOT_PRODUCTS = 8 * PILOT
"""Products before the first look at the error: `MIN_PROBES` probes of that many steps. Chosen by experience."""

BUDGET_FACTOR = 10
"""The default budget is that of other estimates times this, since a probe takes a product for each step."""

GROUP_ENTRIES = 2**25
"""Entries of the Lanczos vectors that are kept at a time (256 MB in float64). Chosen by experience."""

FIRST_STEPS, GROWTH = 6, 1.5
"""Lanczos steps tried first, and how they grow while what they leave open is too much."""

DEFLATION = 1 / 3
"""Part of the products for the basis."""

BLOCKS = 16
"""Blocks of the basis at first. The later half of them is there to know f(A) on the first. Chosen by experience."""

REBUILD = 4
"""The basis grows, and the probes are drawn anew, when so many times the products are to be spent."""


@final
class SpectralMeasure:
    """Σᵢ δ(λ − λᵢ) as a known part plus a mean over probes, both by Lanczos, from which a `Functional` is read.

    With Q an orthonormal basis and g uniform on the sphere of its complement, of radius² N − q, for every f

        tr f(A) = tr(Qᵀ f(A) Q) + E ⟨g, f(A) g⟩.

    Q is the first half of the block Krylov basis V of A, and f(A) on it is f(V A Vᵀ): no products beyond those that
    make V (Chen and Hallman 2023). Without Q it is the quadrature of Ubaru, Chen and Saad (2017).

    Args:
        operator: A, symmetric.
        functional: What is read; its truncation decides on the number of steps.
        effort: The tolerance and the budget.
        generator: Draws the probes.
        deflated: Whether there is a Q.
        steps: Lanczos steps for each probe; None for as many as the functional needs.
        cost: What one product counts.
    """

    def __init__(
        self,
        operator: Operator,
        functional: Functional,
        effort: Effort,
        generator: torch.Generator,
        *,
        deflated: bool,
        steps: int | None,
        cost: int = 1,
    ) -> None:
        self.products = Products(operator, cost)
        self.space = operator.in_space
        self.functional = functional
        self.effort = effort
        self.generator = generator
        self.deflated = deflated
        self.given_steps = steps
        self.krylov: BlockBasis | None = None
        self.held: Rules | None = None
        self.samples: Rules | None = None
        self.probes = 0
        self.steps = 0
        self.built = 0
        self.outcome = Outcome(math.nan, math.inf, math.inf, 0.0)

    def read(self, total: int) -> Reading:
        """Spend products until no further probe fits into `total`."""
        if self.built == 0 or total >= REBUILD * self.built or self._too_short(total):
            self._build(total)
        self._add_probes(total)
        outcome = self.functional(self.held, self.samples, self.delta)
        self.outcome = outcome
        probes = self.probes if self.samples is not None else MIN_PROBES**4  # nothing is random
        return Reading(outcome.value, outcome.error, probes, self.products.count)

    @property
    def delta(self) -> float:
        """What rounding does to eigenvalues."""
        parts = [rules for rules in (self.held, self.samples) if rules is not None]
        largest = max((float(rules.nodes[0].abs().max()) for rules in parts), default=0.0)
        return 8 * torch.finfo(self.space.dtype).eps * largest

    @property
    def basis(self) -> Tensor:
        """Q, `[q, N]`."""
        if self.krylov is None or self.held is None:
            return self.space.zeros(0).reshape(0, self.space.size)
        return self.krylov.basis[: self.held.starts]

    def _too_short(self, total: int) -> bool:
        """Whether the steps leave more open than the probes, and many more steps can be had."""
        room = (1 - DEFLATION) * (total - self.products.count) / (MIN_PROBES * self.products.cost)
        longer = self.given_steps is None and GROWTH * self.steps <= min(room, self.space.size)
        return longer and self.outcome.truncation > self.outcome.spread

    def _build(self, total: int) -> None:
        """Grow the basis, and draw the first probes, with the steps that the functional needs."""
        self.built, self.samples, self.probes = total, None, 0
        if self.deflated:
            self._deflate(int(DEFLATION * (total - self.products.count)))
        if len(self.basis) == self.space.size:
            return
        room = (total - self.products.count) // self.products.cost
        most = self.given_steps or max(room // MIN_PROBES, FIRST_STEPS)
        self._first_probes(min(most, room, self.space.size))

    def _deflate(self, room: int) -> None:
        if self.krylov is None:
            block = max(1, math.ceil(room / (self.products.cost * BLOCKS)))
            self.krylov = BlockBasis(self.products, block, self.generator)
        self.krylov.extend(room)
        self.held = _held(self.krylov)

    def _first_probes(self, most: int) -> None:
        """Probes whose steps grow, up to `most`, until the error they leave is small beside that of the goal."""
        room = (self.built - self.products.count) // self.products.cost
        count = max(1, min(MIN_PROBES, room // most))
        lanczos = self._start(count)
        steps = most if self.given_steps else min(FIRST_STEPS, most)
        while True:
            lanczos.extend(steps)
            self.samples = self._rules(lanczos)
            outcome = self.functional(self.held, self.samples, self.delta)
            if steps >= most or not len(lanczos.active) or outcome.truncation <= self._allowed(outcome) / 4:
                break
            steps = min(math.ceil(GROWTH * steps), most)
        self.steps, self.probes = lanczos.steps, count

    def _allowed(self, outcome: Outcome) -> float:
        """The error over probes to be expected in the end."""
        if not self.effort.whole:
            return self.effort.rtol * abs(outcome.value)
        return outcome.spread * math.sqrt(self.products.count / self.effort.budget)

    def _add_probes(self, total: int) -> None:
        if self.samples is None:
            return
        while (room := (total - self.products.count) // (self.products.cost * self.steps)) > 0:
            count = min(room, max(1, GROUP_ENTRIES // (self.space.size * self.steps)))
            lanczos = self._start(count)
            lanczos.extend(self.steps)
            lanczos.pad(self.steps)
            self.samples = self.samples.joined(self._rules(lanczos))
            self.probes += count

    def _start(self, count: int) -> Lanczos:
        return Lanczos(self.products, sphere(self.space, count, self.basis, self.generator), self.space.size)

    def _rules(self, lanczos: Lanczos) -> Rules:
        matrix, size = lanczos.matrices(), lanczos.steps
        coupling = torch.zeros_like(matrix[:, :1])
        coupling[:, 0, -1] = lanczos.coupling[:, -1]
        depths = [max(1, math.ceil(size * level)) for level in LEVELS]
        return Rules.of(matrix, coupling, 1, float(self.space.size - len(self.basis)), depths)


def _held(krylov: BlockBasis) -> Rules | None:
    """The measure of Q, the first half of the blocks, or all of them if A maps their span to itself."""
    blocks = len(krylov.ends)
    first = blocks if krylov.complete else blocks // 2
    if first == 0:
        return None
    starts, extra = krylov.ends[first - 1], blocks - first
    depths = [krylov.ends[first - 1 + round(extra * level)] for level in LEVELS]
    return Rules.of(krylov.matrix()[None], _padded(krylov)[None], starts, 1.0, depths)


def _padded(krylov: BlockBasis) -> Tensor:
    """The coupling, or a row of zeros for none."""
    return krylov.matrix()[:1] * 0 if krylov.complete else krylov.coupling()


def measured(measure: SpectralMeasure, method: str) -> Estimate:
    """Read with ever more products until the tolerance is met or the budget is spent."""
    eps = torch.finfo(measure.space.dtype).eps
    return settle(measure.effort, method, measure.read, pilot=measure.products.cost * PILOT_PRODUCTS, eps=eps)


def exact_measure(operator: Operator, effort: Effort, cost: int = 1) -> tuple[Rules, float, int]:
    """All eigenvalues, as rules without error, what rounding does to them, and the products spent."""
    check_exact_budget(cost * operator.in_space.size, effort)
    products = Products(operator, cost)
    rows = [products(unit) for unit in basis_blocks(operator.in_space, products.block)]
    matrix = torch.cat(rows).double()
    values = torch.linalg.eigvalsh((matrix + matrix.mT) / 2)[None]
    nothing = torch.zeros_like(values)[:, None]
    nodes, ones = (values,) * len(LEVELS), (torch.ones_like(values),) * len(LEVELS)
    rules = Rules(torch.diag_embed(values), nothing, len(matrix), 1.0, nodes, ones)
    delta = 8 * torch.finfo(operator.in_space.dtype).eps * float(values.abs().max())
    return rules, delta, products.count
