"""Nyström: against the naive formula, exact for low rank, errors honest, tolerance and budget, refusals."""

import math

import pytest
import torch

from kpflow.estimate import Nystrom, Status, nystrom
from kpflow.estimate.low_rank import OVERSAMPLING
from kpflow.estimate.products import signs
from kpflow.operators import Dense, Diagonal, Function, to_dense
from kpflow.spaces import Space

from .problems import POSITIVE, SPECTRA, Counter, matrix, randn, seeded, wishart

N = 120


def dense(result: Nystrom) -> torch.Tensor:
    rows = result.vectors.flatten(1)
    return (rows.mT * result.values) @ rows


@pytest.mark.parametrize("name", POSITIVE)
def test_is_below_the_operator(name):
    a = matrix(name, N)
    result = nystrom(Dense(a), 12)
    low = dense(result)
    torch.testing.assert_close(to_dense(result.operator), low, rtol=0, atol=1e-12)
    assert result.operator.symmetric
    assert float(torch.linalg.eigvalsh(a - low).min()) > -1e-12
    eye = torch.eye(len(result.values)).double()
    torch.testing.assert_close(result.vectors @ result.vectors.mT, eye, rtol=0, atol=1e-11)
    assert (result.values <= SPECTRA[name](N).sort(descending=True).values[: len(result.values)] + 1e-12).all()
    assert (result.values.diff() <= 0).all()
    assert result.num_matvecs == 12 + OVERSAMPLING + 10


def test_is_the_naive_formula():
    """A Ω (Ωᵀ A Ω)⁻¹ Ωᵀ A with the Ω that the generator gives, truncated."""
    a = matrix("slow power law", N)
    generator = seeded(3)
    signs(Dense(a).in_space, 10, generator)
    omega = torch.randn(12 + OVERSAMPLING, N, generator=generator, dtype=torch.float64)
    image = a @ omega.mT
    values, vectors = torch.linalg.eigh(image @ torch.linalg.solve(omega @ image, image.mT))
    truncated = (vectors[:, -12:] * values[-12:]) @ vectors[:, -12:].mT
    torch.testing.assert_close(dense(nystrom(Dense(a), 12, generator=seeded(3))), truncated, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_low_rank_is_exact(dtype):
    a = wishart(N, 5).to(dtype)
    eps = torch.finfo(dtype).eps
    result = nystrom(Dense(a), 20)
    assert len(result.values) == 5
    assert result.values.dtype == result.vectors.dtype == dtype
    assert float((dense(result) - a).norm()) < 1e3 * eps * float(a.norm())
    assert result.relative_error < 1e3 * eps


def test_zero_operator_and_full_rank():
    zero = nystrom(Dense(torch.zeros(N, N)), 4)  # float32
    assert len(zero.values) == zero.relative_error == zero.error.value == 0
    assert zero.operator(torch.ones(N)).abs().max() == 0
    a = matrix("bulk", 30)
    torch.testing.assert_close(dense(nystrom(Dense(a), 30)), a, rtol=0, atol=1e-12)


def test_vectors_have_the_shape_of_states():
    states = Space.of((2, 3, 20), ("trial", "time", "unit"))
    result = nystrom(Dense(matrix("power law", N), (states, states)), 3)
    assert result.vectors.shape == (3, 2, 3, 20)
    assert result.operator.in_space == result.operator.out_space == states


@pytest.mark.parametrize("name", ["bulk", "power law", "exponential"])
def test_errors_are_honest(name):
    a = matrix(name, N)
    operator, scores = Dense(a), []
    for seed in range(100):
        result = nystrom(operator, 12, probes=16, generator=seeded(seed))
        rest = a - dense(result)
        scores.append((result.error.value - float(rest.norm())) / result.error.standard_error)
        scores.append((result.trace_error.value - float(rest.trace())) / result.trace_error.standard_error)
    z = torch.tensor(scores).reshape(100, 2)
    assert (z[:3].abs() < 4).all()
    size = z.square().mean(0).sqrt()
    assert ((size > 0.6) & (size < 1.5)).all()


@pytest.mark.parametrize("name", ["power law", "exponential"])
def test_converged_means_within_the_tolerance(name):
    a, rtol = matrix(name, 200), 5e-2
    results = [nystrom(Dense(a), rtol=rtol, generator=seeded(seed)) for seed in range(40)]
    assert all(result.status is Status.CONVERGED and result.relative_error <= rtol for result in results)
    errors = [float((a - dense(result)).norm() / a.norm()) for result in results]
    assert sum(error <= rtol for error in errors) >= 38
    assert max(errors) < 2 * rtol


@pytest.mark.parametrize("budget", [11, 17, 40, 130])
def test_budget_is_a_hard_limit(budget):
    counter = Counter(Dense(matrix("bulk", 300)))
    result = nystrom(counter, rtol=1e-3, budget=budget)
    assert counter.total == result.num_matvecs == budget
    assert result.status is Status.BUDGET_EXHAUSTED
    assert "budget exhausted" in repr(result)


def test_seeds_and_few_probes():
    a, before = Dense(matrix("bulk", N)), torch.random.get_rng_state()
    run = lambda seed: nystrom(a, 3, generator=seed).values  # noqa: E731
    assert torch.equal(run(None), run(seeded(0)))
    assert not torch.equal(run(seeded(1)), run(seeded(2)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert nystrom(a, 3, probes=7).error.standard_error == math.inf


def test_not_finite():
    broken = Function(lambda v: v / 0.0, None, Space.of((N,)))
    with pytest.raises(
        FloatingPointError, match=r"`nystrom` of Function: .* is not finite: a product holds NaN or inf"
    ):
        nystrom(broken, 3)
    result = nystrom(broken, 3, raise_on_failure=False)
    assert result.status is result.error.status is Status.NOT_FINITE
    assert len(result.values) == 0


@pytest.mark.parametrize(
    ("operator", "arguments", "match"),
    [
        (
            Diagonal(torch.tensor([1.0, -1.0])),
            {"rank": 2},
            r"`operator` must be positive semi-definite; got Diagonal: .*",
        ),
        (Dense(matrix("indefinite", N)), {"rank": 9}, r"positive semi-definite; .* Take A @ A, or modes\(A\) instead"),
        (Dense(randn(4, 4)), {"rank": 2}, r"`operator` must be known to be symmetric; got Dense: .* or modes\(A\)"),
        (Dense(randn(3, 4)), {"rank": 2}, r"`operator` must map a space to itself; .* Take A @ A.T"),
        (Dense(torch.eye(4)), {}, r"Give `rank` or `rtol`, one of them; got rank=None, rtol=None"),
        (Dense(torch.eye(4)), {"rank": 1, "rtol": 0.1}, r"Give `rank` or `rtol`, one of them; got rank=1, rtol=0.1"),
        (Dense(torch.eye(4)), {"rank": 5}, r"`rank` must be a whole number between 1 and 4; got 5"),
        (Dense(torch.eye(4)), {"rtol": 0.0}, r"`rtol` must be a positive number; got 0.0"),
        (Dense(torch.eye(4)), {"rank": 2, "probes": 0}, r"`probes` must be a positive whole number; got 0"),
        (
            Dense(torch.eye(4)),
            {"rank": 2, "budget": 13},
            r"`budget` must be at least 14 here, for 10 probes and the sketch",
        ),
    ],
)
def test_refusals(operator, arguments, match):
    with pytest.raises(ValueError, match=match):
        nystrom(operator, **arguments)
