"""Trace and norm from pairs of half products in parts: exact over all signs, honest, and taken when they are cheap."""

import dataclasses
import itertools
import math
from typing import final

import pytest
import torch
from torch import Tensor

from kpflow.estimate import Estimate, Status, effective_rank, frobenius_norm, pairs
from kpflow.estimate.base import Effort
from kpflow.estimate.pairs import RANK, SIZE, PairSampler
from kpflow.operators import Dense, Exact, Gramian, Identity, Operator, Sampled, SampledParts, Structure
from kpflow.spaces import Space

from .problems import Counter, matrix, randn, seeded


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Parts(Structure):
    """Parts of an explicit F, blocks of its rows."""

    factor: Tensor
    counter: Operator
    number: int
    price: float

    def trace(self) -> Exact[float] | None:
        return None

    def matrix(self) -> None:
        return None

    def sampled_trace(self) -> Sampled | None:
        return None

    def sampled_parts(self) -> SampledParts:
        return SampledParts(self.counter, self._gram, self.number, self.price)

    def diagonal(self) -> Exact[Tensor] | None:
        return None

    def partial_trace(self, axes: tuple[str, ...]) -> Exact[Tensor] | None:
        assert not axes

    def squared_norm(self) -> Exact[float] | None:
        return None

    def spectrum(self) -> Exact[Tensor] | None:
        return None

    def _gram(self, left: Tensor, right: Tensor) -> Tensor:
        rows = self.factor.unflatten(0, (self.number, -1))
        y, other = (torch.einsum("spr, prk -> spk", g.unflatten(1, (self.number, -1)), rows) for g in (left, right))
        return torch.einsum("spk, zqk -> spzq", y.double(), other.double())


@final
class Parted(Gramian):
    """F Fᵀ of an explicit F, whose blocks of rows are known; its products are counted."""

    def __init__(self, factor: Tensor, number: int, price: float = 0.05) -> None:
        space = Space.of((len(factor),), None, factor.dtype)
        self.matrix = factor @ factor.mT
        self.full = Counter(Dense(factor, (Space.of((factor.shape[1],), None, factor.dtype), space)))
        self.half = Counter(Identity(space))
        self.parts = Parts(factor, self.half, number, price)

    @property
    def jacobian(self) -> Operator:
        return self.full

    @property
    def factor(self) -> Operator:
        return self.full

    @property
    def metric(self) -> None:
        return None

    @property
    def structure(self) -> Structure:
        return self.parts

    @property
    def products(self) -> int:
        """Half products, and full ones."""
        return self.half.total + self.full.backward


def parted(name: str, number: int = 8, size: int = 80, price: float = 0.05) -> Parted:
    """A with the eigenvalues of a problem, its rows in parts."""
    values, vectors = torch.linalg.eigh(matrix(name, size))
    return Parted(vectors * values.clamp(min=0).sqrt(), number, price)


QUANTITIES = {
    effective_rank: lambda a: float(a.trace() ** 2 / a.square().sum()),
    frobenius_norm: lambda a: float(a.norm()),
}


@pytest.mark.parametrize("number", [2, 1])
def test_norm_is_unbiased_and_its_variance_too_over_all_signs(monkeypatch, number):
    """Of four probes in two parts of two rows, or in one of three; −y makes the same squares as y, so half of all."""
    size = {2: 4, 1: 3}[number]
    a = Parted(randn(size, 5, seed=3), number)
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=size)), dtype=torch.float64)
    every = every[(every[:, :: size // number] > 0).all(1)]
    norms, variances, traces = [], [], []
    for four in itertools.product(every, repeat=4):
        monkeypatch.setattr(pairs, "signs", lambda *_, chosen=four: torch.stack(chosen))
        sampler = PairSampler(a.parts.sampled_parts(), seeded())
        sampler.draw(4)
        value = sampler.read((0.0, 1.0), 4).value
        change = sampler._squares_left_out()
        norms.append(value)
        variances.append(3 / 4 * float((change - change.mean(0)).square().sum()) - sampler._of_pairs())
        traces.append(sampler.read((1.0, 0.0), 4).value)
    norms, variances, traces = torch.tensor([norms, variances, traces], dtype=torch.float64)
    assert float(norms.mean()) == pytest.approx(float(a.matrix.square().sum()), rel=1e-12)
    assert float(traces.mean()) == pytest.approx(float(a.matrix.trace()), rel=1e-12)
    assert float(variances.mean()) == pytest.approx(float(norms.var(correction=0)), rel=1e-9)
    assert float(variances.mean()) > 0


def _naive(gram: Tensor, powers: tuple[float, float], without: tuple[int, int] | None = None) -> float:
    """The number from all pairs, written out; without one part of one probe."""
    S, P = gram.shape[:2]
    kept = {p: [s for s in range(S) if (s, p) != without] for p in range(P)}
    trace = sum(sum(float(gram[s, p, s, p]) for s in kept[p]) / len(kept[p]) for p in range(P))
    square = 0.0
    for p, q in itertools.product(range(P), repeat=2):
        some = [float(gram[s, p, z, q]) ** 2 for s in kept[p] for z in kept[q] if (s, p) != (z, q)]
        square += sum(some) / len(some)
    return trace ** powers[0] * square ** powers[1]


@pytest.mark.parametrize("powers", [RANK, SIZE])
def test_number_and_jackknife_transcribed(powers):
    """In growing blocks, with the error before and after what pairs alone explain."""
    a = parted("power law", 4, 40)
    sampler = PairSampler(a.parts.sampled_parts(), seeded(2))
    for total in (5, 8, 9):
        reading = sampler.read(powers, total)
    gram = a.parts._gram(sampler.images, sampler.images)
    naive = _naive(gram, powers)
    out = torch.tensor([[_naive(gram, powers, (s, p)) for p in range(4)] for s in range(9)], dtype=torch.float64)
    each = 8 / 9 * (out - out.mean(0)).square().sum(0)
    value, first, second, degrees = sampler._variances(powers)
    assert first + 2 * second == pytest.approx(float(each.sum()), rel=1e-8)
    assert 0 < second <= float(each.sum()) / 2
    assert degrees == pytest.approx(0.5 * 8 * float(each.sum() ** 2 / each.square().sum()), rel=1e-8)
    widened = math.sqrt((first + second) * degrees / (degrees - 2))
    assert reading.error == pytest.approx(widened, rel=1e-12)
    once = {RANK: 1.0, SIZE: -0.5}[powers] * second / naive
    assert value == reading.value == pytest.approx(naive - 8 * float((out.mean(0) - naive).sum()) + once, rel=1e-9)
    assert value != pytest.approx(naive, rel=1e-4)


@pytest.mark.parametrize("function", QUANTITIES)
@pytest.mark.parametrize(("number", "budget"), [(8, 12), (8, 20), (1, 40), (40, 8)])
@pytest.mark.parametrize("name", ["bulk", "power law"])
def test_error_bars_are_honest(function, name, number, budget):
    a = parted(name, number)
    truth = QUANTITIES[function](a.matrix)
    found = [function(a, method="one-sided-blocks", budget=budget, generator=seeded(seed)) for seed in range(100)]
    z = torch.tensor([(e.value - truth) / e.standard_error for e in found], dtype=torch.float64)
    assert bool((z[:3].abs() < 4).all())
    assert 0.7 < float(z.clamp(-5, 5).square().mean().sqrt()) < 1.3
    assert {(e.method, e.num_matvecs) for e in found} == {("one-sided-blocks", budget)}


@pytest.mark.parametrize("function", QUANTITIES)
@pytest.mark.parametrize(("name", "number"), [("bulk", 8), ("power law", 8), ("slow power law", 1), ("power law", 40)])
def test_auto_keeps_its_claim(function, name, number):
    rtol = 0.1
    a = parted(name, number, price=0.0)
    truth = QUANTITIES[function](a.matrix)
    found = [function(a, rtol=rtol, generator=seeded(seed)) for seed in range(200)]
    converged = [e for e in found if e.status is Status.CONVERGED]
    assert len(converged) >= 190
    assert all(e.standard_error <= rtol * e.value for e in converged)
    assert sum(abs(e.value / truth - 1) > 2 * rtol for e in converged) <= 0.05 * len(converged)


@pytest.mark.parametrize("function", QUANTITIES)
def test_auto_takes_what_promises_to_be_cheaper(function):
    a = parted("bulk", 8, 400)
    few = function(a, rtol=0.1)
    assert (few.method, few.num_matvecs) == ("one-sided-blocks", a.half.total)
    assert a.full.total == 0
    many = function(parted("power law", 8, 400), rtol=1e-3)
    assert many.method == "deflated"
    assert many.status is Status.CONVERGED
    assert function(parted("bulk", 8, 400, price=10.0), rtol=0.02).method == "deflated"


@pytest.mark.parametrize("function", QUANTITIES)
@pytest.mark.parametrize("budget", [1, 3, 8, 20, 60])
def test_budget_is_a_hard_limit_and_counts_both(function, budget):
    a = parted("slow power law", 8, 400)
    estimate = function(a, rtol=1e-6, budget=budget)
    assert estimate.num_matvecs == a.products == budget
    assert estimate.status is Status.BUDGET_EXHAUSTED
    # fewer than the first look takes, none; too few for a sketch after it, all; else the first look and a sketch
    assert a.half.total == {1: 0, 3: 0, 8: 8, 20: 20, 60: 8}[budget]


@pytest.mark.parametrize("function", QUANTITIES)
def test_a_budget_to_be_spent_as_a_whole_is_a_sketch(function):
    a = parted("bulk", 8, 400)
    assert function(a, budget=60).method == "deflated"
    assert a.half.total == 0


@pytest.mark.parametrize("function", QUANTITIES)
@pytest.mark.parametrize("budget", [2, 3])
def test_few_probes_tell_no_error(function, budget):
    estimate = function(parted("bulk"), method="one-sided-blocks", budget=budget)
    assert estimate.standard_error == math.inf
    assert estimate.status is Status.BUDGET_EXHAUSTED


def test_the_first_look_waits_for_degrees_of_freedom():
    samplers = [PairSampler(parted("bulk", number).parts.sampled_parts(), seeded()) for number in (1, 2, 8, 40)]
    assert [sampler.pilot for sampler in samplers] == [25, 13, 8, 8]


def test_seeds_and_blocks_of_products(monkeypatch):
    a, before = parted("bulk"), torch.random.get_rng_state()
    run = lambda seed: effective_rank(a, method="one-sided-blocks", budget=12, generator=seed)  # noqa: E731
    first = run(seeded(1))
    assert run(seeded(1)) == first != run(seeded(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    monkeypatch.setattr(pairs, "GRAM_ENTRIES", 8 * 8 * 12 * 5)
    assert run(seeded(1)).value == pytest.approx(first.value, rel=1e-12)
    assert run(seeded(1)).standard_error == pytest.approx(first.standard_error, rel=1e-9)


def test_zero_and_not_finite():
    zero = Parted(torch.zeros(80, 80, dtype=torch.float64), 8)
    for method in ("auto", "one-sided-blocks"):
        with pytest.raises(FloatingPointError, match=r"`effective_rank` of Parted: .* has no value .* is zero"):
            effective_rank(zero, method=method, rtol=0.1)
        nothing = frobenius_norm(zero, method=method, rtol=0.1)
        assert (nothing.value, nothing.standard_error, nothing.status) == (0.0, 0.0, Status.CONVERGED)


@pytest.mark.parametrize("function", QUANTITIES)
def test_refusals(function):
    with pytest.raises(ValueError, match=r"`method` 'one-sided-blocks' needs an operator whose structure knows blocks"):
        function(Dense(matrix("bulk", 80)), method="one-sided-blocks")
    with pytest.raises(ValueError, match=r"`budget` must be at least 2 here, for one pair of probes; got 1"):
        function(parted("bulk"), method="one-sided-blocks", budget=1)


def test_no_blocks_along_axes():
    with pytest.raises(ValueError, match=r"`method` 'one-sided-blocks' cannot go with `axes`; got \('unit',\)"):
        effective_rank(Dense(matrix("bulk", 80)), method="one-sided-blocks", axes=("unit",))


def test_predicted_cost_is_that_of_the_tolerance():
    """With a/S + b/S², at the S that it predicts; and in probes, what so much buys."""
    a = parted("slow power law", 8, 400, price=0.1)
    sampler = PairSampler(a.parts.sampled_parts(), seeded())
    sampler.draw(10)
    value, first, second, _ = sampler._variances(RANK)
    cost = sampler.cost_of(RANK, 0.02)
    probes = (math.sqrt(1 + 0.4 * cost) - 1) / 0.2
    assert cost == pytest.approx(probes * (1 + 0.1 * probes))
    assert first * 10 / probes + second * (10 / probes) ** 2 == pytest.approx((0.02 * value) ** 2 / 1.2)
    assert sampler.affordable(cost) == math.floor(probes)
    assert isinstance(sampler.finish(RANK, Effort.of(None, 12)), Estimate)
