"""Effective rank, of the whole and along axes: closed forms, formulas transcribed, budgets, refusals."""

import math

import pytest
import torch

from kpflow.estimate import Status, effective_rank, ranks, sketch
from kpflow.estimate.sketch import Sketch
from kpflow.operators import Dense, Diagonal, Function, Identity, LowRank
from kpflow.spaces import Space

from .problems import Counter, matrix, randn, seeded, wishart
from .test_traces import enumerate_signs

STATES = Space.of((2, 5, 8), ("trial", "time", "unit"))


def on_states(a: torch.Tensor) -> Dense:
    return Dense(a, (STATES, STATES))


def participation(a: torch.Tensor) -> float:
    return float(a.trace() ** 2 / a.square().sum())


def partial(a: torch.Tensor, axes: str) -> torch.Tensor:
    """Partial trace over the axes b t h that are not in `axes`."""
    tensor, other = a.reshape(*STATES.shape, *STATES.shape), {"b": "B", "t": "T", "h": "H"}
    right = "".join(other[x] if x in axes else x for x in "bth")
    kept = torch.einsum(f"bth{right}->{axes}{''.join(other[x] for x in axes)}", tensor)
    side = math.isqrt(kept.numel())
    return kept.reshape(side, side)


def test_closed_forms():
    assert effective_rank(Identity(STATES), budget=80).value == pytest.approx(80, rel=1e-12)
    assert effective_rank(3.0 * Identity(STATES), budget=30).value == pytest.approx(80, rel=0.2)
    assert effective_rank(LowRank(randn(50, 1))).value == pytest.approx(1, rel=1e-12)
    assert effective_rank(Diagonal(torch.tensor([2.0, 1.0]))).value == pytest.approx(9 / 5)
    a, b = wishart(6, 3), wishart(8, 2)
    assert effective_rank(Dense(torch.kron(a, b))).value == pytest.approx(participation(a) * participation(b))


def test_of_any_operator_is_that_of_its_squared_singular_values():
    g = randn(12, 30)
    estimate = effective_rank(Dense(g))
    assert estimate.value == pytest.approx(participation(g @ g.mT), rel=1e-12)
    assert estimate.num_matvecs == 24
    assert effective_rank(Dense(randn(300, 3) @ randn(3, 200)), budget=80).value == pytest.approx(
        participation((randn(300, 3) @ randn(3, 200)) @ (randn(300, 3) @ randn(3, 200)).mT), rel=1e-10
    )


AXES = {("unit",): "h", ("trial", "time"): "bt", ("time",): "t", ("unit", "trial"): "hb"}


@pytest.mark.parametrize("axes", AXES)
def test_along_axes_exactly(axes):
    a = wishart(80, 5)
    estimate = effective_rank(on_states(a), axes=axes, method="exact")
    assert estimate.value == pytest.approx(participation(partial(a, AXES[axes])), rel=1e-12)
    assert (estimate.standard_error, estimate.num_matvecs) == (0.0, 80)


@pytest.mark.parametrize("axes", AXES)
def test_along_axes_if_the_sketch_holds_the_range(axes):
    a = wishart(80, 5)
    estimate = effective_rank(on_states(a), axes=axes, budget=40)
    assert estimate.method == "deflated"
    assert estimate.value == pytest.approx(participation(partial(a, AXES[axes])), rel=1e-10)


def test_along_axes_of_a_product():
    """Of A ⊗ B the partial trace over the second factor is tr(B) A."""
    a, b = wishart(10, 3), wishart(8, 2)
    operator = on_states(torch.kron(a, b))
    assert effective_rank(operator, axes=("trial", "time")).value == pytest.approx(participation(a), rel=0.02)
    assert effective_rank(operator, axes=("unit",)).value == pytest.approx(participation(b), rel=0.02)


def test_along_axes_of_a_rectangle():
    g = Dense(randn(80, 20), (Space.of((20,)), STATES))
    truth = participation(partial(g.matrix @ g.matrix.mT, "h"))
    assert effective_rank(g, axes=("unit",), method="exact").value == pytest.approx(truth, rel=1e-12)
    assert effective_rank(g, axes=("unit",), rtol=1e-2).value == pytest.approx(truth, rel=3e-2)


def test_partial_trace_samples_over_all_signs(monkeypatch):
    space = Space.of((2, 4), ("time", "unit"))
    a = wishart(8, 6)
    enumerate_signs(monkeypatch, sketch, 8)
    both = Sketch([Dense(a, (space, space))], 2.5 / 260, seeded(), two_sided=True)
    both.grow(260)
    kept = ranks._Kept(space, ("unit",))
    mean = ranks._held(both, kept) + kept.sum(both.residual(), both.probes) / 256
    truth = torch.einsum("aiaj->ij", a.reshape(2, 4, 2, 4))
    torch.testing.assert_close(mean, truth, rtol=1e-12, atol=1e-12)


def test_along_axes_is_the_mean_over_pairs():
    """The U-statistic and its jackknife, transcribed."""
    both = Sketch([on_states(wishart(80, 60))], 1 / 3, seeded(3), two_sided=True)
    both.grow(30)
    kept = ranks._Kept(STATES, ("unit",))
    held = ranks._held(both, kept)
    samples = [held + kept.of(r[None], g[None])[0] for r, g in zip(both.residual(), both.probes, strict=True)]

    def naive(some: list[torch.Tensor]) -> torch.Tensor:
        pairs = [float((x * y).sum()) for i, x in enumerate(some) for j, y in enumerate(some) if i != j]
        trace = float(torch.stack([x.trace() for x in some]).mean())
        return torch.tensor(trace**2 / (sum(pairs) / len(pairs)), dtype=torch.float64)

    out = torch.stack([naive(samples[:i] + samples[i + 1 :]) for i in range(10)])
    value, error = ranks._along(both, kept)
    assert value == pytest.approx(float(naive(samples)), rel=1e-10)
    assert error == pytest.approx(math.sqrt(9 / 10 * float((out - out.mean()).square().sum()) * 9 / 7), rel=1e-9)


@pytest.mark.parametrize("axes", [None, ("unit",)])
@pytest.mark.parametrize("budget", [2, 9, 50])
@pytest.mark.parametrize("symmetric", [True, False])
def test_budget_is_a_hard_limit(axes, budget, symmetric):
    counter = Counter(on_states(wishart(80, 70) if symmetric else randn(80, 80)))
    estimate = effective_rank(counter, axes=axes, budget=budget, rtol=1e-9)
    assert estimate.num_matvecs == counter.total <= budget
    assert estimate.num_matvecs >= budget - (not symmetric)  # a probe of G Gᵀ takes two
    assert estimate.status is Status.BUDGET_EXHAUSTED


@pytest.mark.parametrize("axes", [None, ("unit",)])
def test_seeds_scale_and_float32(axes):
    a, before = matrix("slow power law", 80), torch.random.get_rng_state()
    run = lambda m, seed: effective_rank(on_states(m), axes=axes, budget=40, generator=seed)  # noqa: E731
    first = run(a, seeded(1))
    assert run(a, seeded(1)) == first != run(a, seeded(2))
    assert run(7 * a, seeded(1)).value == pytest.approx(first.value, rel=1e-12)
    assert torch.equal(torch.random.get_rng_state(), before)
    space = Space.of((2, 5, 8), ("trial", "time", "unit"), torch.float32)
    single = effective_rank(Dense(a.float(), (space, space)), axes=axes, budget=40, generator=seeded(1))
    assert single.value == pytest.approx(first.value, rel=0.2)  # other rounding of A S, another basis


@pytest.mark.parametrize("method", ["deflated", "exact"])
@pytest.mark.parametrize("axes", [None, ("unit",)])
def test_zero_and_not_finite(axes, method):
    zero = on_states(torch.zeros(80, 80, dtype=torch.float64))
    with pytest.raises(FloatingPointError, match=r"`effective_rank` of Dense: .* has no value .* is zero"):
        effective_rank(zero, axes=axes, method=method)
    assert effective_rank(zero, axes=axes, method=method, raise_on_failure=False).status is Status.NOT_FINITE
    with pytest.raises(FloatingPointError, match=r"`effective_rank` of Function: .* a product holds NaN or inf"):
        effective_rank(Function(lambda v: v / 0.0, None, STATES), axes=axes, method=method)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"axes": ()}, r"`axes` must name some of the axes 'trial', 'time', 'unit', but not all; got \(\)"),
        ({"axes": ("unit", "time", "trial")}, r"`axes` must name some .* leave it out"),
        ({"axes": ("units",)}, r"`axes` must be different names out of 'trial', 'time', 'unit'; got \('units',\)"),
        ({"axes": ("unit", "unit")}, r"`axes` must be different names"),
        ({"method": "magic"}, r"`method` must be one of 'auto', 'deflated', 'one-sided-blocks', 'exact'; got 'magic'"),
        ({"method": "exact", "budget": 79}, r"`budget` must be at least 80 for method 'exact'"),
        ({"rtol": 0.0}, r"`rtol` must be a positive number"),
    ],
)
def test_refusals(arguments, match):
    with pytest.raises(ValueError, match=match):
        effective_rank(on_states(wishart(80, 5)), **arguments)


def test_refuses_a_budget_below_one_probe():
    with pytest.raises(ValueError, match=r"`budget` must be at least 2 here, for one probe; got 1"):
        effective_rank(Dense(randn(80, 80)), budget=1)
