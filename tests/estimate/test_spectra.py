"""Leading modes: against dense decompositions over the table of spectra, residuals, signs, budgets, refusals."""

import pytest
import torch

from kpflow.estimate import Status, modes
from kpflow.operators import Dense, Diagonal, Function, LowRank
from kpflow.spaces import Space

from .problems import SPECTRA, Counter, matrix, randn, rotation, seeded, wishart


def by_magnitude(values: torch.Tensor) -> torch.Tensor:
    return values[values.abs().argsort(descending=True)]


@pytest.mark.parametrize("n", [40, 250])
@pytest.mark.parametrize("name", SPECTRA)
def test_eigenpairs(name, n):
    a = matrix(name, n)
    result = modes(Dense(a), k=6)
    assert result.status is Status.CONVERGED
    assert result.method == ("dense" if n == 40 else "block Krylov")
    torch.testing.assert_close(result.values, by_magnitude(SPECTRA[name](n))[:6], rtol=0, atol=1e-7)
    naive = (result.vectors @ a - result.values[:, None] * result.vectors).norm(dim=1)
    torch.testing.assert_close(result.residuals, naive, rtol=1e-6, atol=1e-12)
    assert (result.residuals <= 1e-5 * result.values[0].abs()).all()
    torch.testing.assert_close(result.vectors @ result.vectors.mT, torch.eye(6).double(), rtol=0, atol=1e-12)
    assert result.right_vectors is result.vectors


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (230, 260), (260, 230)])
def test_singular_triplets(shape):
    a = rotation(shape[0])[:, :30] @ torch.diag(0.7 ** torch.arange(30).double()) @ rotation(shape[1], 1)[:30]
    result = modes(Dense(a), k=5)
    assert result.status is Status.CONVERGED
    torch.testing.assert_close(result.values, 0.7 ** torch.arange(5).double(), rtol=0, atol=1e-9)
    u, v, s = result.vectors, result.right_vectors, result.values[:, None]
    torch.testing.assert_close(v @ a.mT, s * u, rtol=0, atol=1e-12)
    torch.testing.assert_close((u @ a - s * v).norm(dim=1), result.residuals, rtol=1e-6, atol=1e-12)


def test_shapes_and_signs():
    states, inputs = Space.of((2, 3, 4), ("trial", "time", "unit")), Space.of((5, 7))
    result = modes(Dense(randn(24, 35), (inputs, states)), k=3)
    assert result.vectors.shape == (3, 2, 3, 4)
    assert result.right_vectors.shape == (3, 5, 7)
    flat = result.vectors.flatten(1)
    assert (flat.gather(1, flat.abs().argmax(1, keepdim=True)) > 0).all()


def test_degenerate_modes_are_all_found():
    diagonal = torch.ones(300, dtype=torch.float64)
    diagonal[:6] = 2.0
    values = modes(Diagonal(diagonal), k=8).values
    torch.testing.assert_close(values, torch.tensor([2.0] * 6 + [1.0] * 2).double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [50, 300])
def test_more_modes_than_rank(n):
    a = wishart(n, 2)
    result = modes(Dense(a), k=5)
    assert result.status is Status.CONVERGED
    torch.testing.assert_close(result.values[:2], by_magnitude(torch.linalg.eigvalsh(a))[:2])
    assert (result.values[2:].abs() < 1e-10 * result.values[0]).all()
    left, right = randn(n, 2), randn(n, 2, seed=1)
    assert (modes(LowRank(left, right), k=5).values[2:] < 1e-10 * n).all()


@pytest.mark.parametrize("n", [50, 300])
def test_zero_operator(n):
    result = modes(Dense(torch.zeros(n, n)), k=3)
    assert result.values.tolist() == [0, 0, 0]
    assert result.residuals.tolist() == [0, 0, 0]
    assert result.status is Status.CONVERGED


def test_restarts_keep_what_was_found():
    """The default basis of 60 vectors is far too short for this spectrum without restarts."""
    result = modes(Dense(matrix("bulk", 300)), k=6)
    assert result.num_matvecs > 120
    torch.testing.assert_close(result.values, by_magnitude(SPECTRA["bulk"](300))[:6], rtol=0, atol=1e-6)


def test_all_modes():
    a = matrix("bulk", 40)
    torch.testing.assert_close(modes(Dense(a), k=40).values, by_magnitude(SPECTRA["bulk"](40)))
    wide = randn(210, 400)
    torch.testing.assert_close(modes(Dense(wide), k=210, budget=4000).values, torch.linalg.svdvals(wide))


@pytest.mark.parametrize("budget", [6, 7, 20, 31])
@pytest.mark.parametrize("symmetric", [True, False])
def test_budget_is_a_hard_limit(budget, symmetric):
    counter = Counter(Dense(matrix("bulk", 250) if symmetric else randn(250, 250)))
    result = modes(counter, k=3, budget=budget)
    assert counter.total == result.num_matvecs <= budget
    assert result.status is Status.BUDGET_EXHAUSTED
    assert "budget exhausted" in repr(result)
    assert len(result.values) == 3
    assert (result.residuals > 1e-5).any()


def test_seeds():
    a, before = Dense(matrix("power law", 250)), torch.random.get_rng_state()
    run = lambda seed: modes(a, k=3, generator=seed).vectors  # noqa: E731
    assert torch.equal(run(seeded(1)), run(seeded(1)))
    assert torch.equal(run(None), run(seeded(0)))
    torch.testing.assert_close(run(seeded(1)), run(seeded(2)), rtol=0, atol=1e-3)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("n", [50, 250])
def test_float32(n):
    result = modes(Dense(matrix("power law", n).float()), k=4)
    assert result.values.dtype == result.vectors.dtype == torch.float32
    assert result.status is Status.CONVERGED
    torch.testing.assert_close(result.values.double(), SPECTRA["power law"](n)[:4], rtol=1e-5, atol=0)


@pytest.mark.parametrize("n", [50, 300])
def test_not_finite(n):
    broken = Function(lambda v: v / 0.0, None, Space.of((n,)))
    with pytest.raises(FloatingPointError, match=r"`modes` of Function: .* is not finite: a product holds NaN or inf"):
        modes(broken, k=2)
    result = modes(broken, k=2, raise_on_failure=False)
    assert result.status is Status.NOT_FINITE
    assert len(result.values) == 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"k": 21}, r"`k` must be at most 20, the smaller side of Dense: .*; got 21"),
        ({"k": 0}, r"`k` must be a positive whole number; got 0"),
        ({"tol": 0.0}, r"`tol` must be a positive number; got 0.0"),
        ({"k": 5, "budget": 9}, r"`budget` must be at least 10 for 5 modes of this operator, one block; got 9"),
    ],
)
def test_refusals(arguments, match):
    with pytest.raises(ValueError, match=match):
        modes(Dense(randn(20, 30)), **arguments)


@pytest.mark.parametrize("name", SPECTRA)
def test_lanczos_agrees(name):
    a = matrix(name, 250)
    result = modes(Dense(a), k=6, method="lanczos")
    assert (result.method, result.status) == ("lanczos", Status.CONVERGED)
    torch.testing.assert_close(result.values, by_magnitude(SPECTRA[name](250))[:6], rtol=0, atol=1e-7)
    naive = (result.vectors @ a - result.values[:, None] * result.vectors).norm(dim=1)
    torch.testing.assert_close(result.residuals, naive, rtol=1e-6, atol=1e-12)
    assert (result.residuals <= 1e-5 * result.values[0].abs()).all()


@pytest.mark.parametrize("method", ["krylov", "lanczos"])
@pytest.mark.parametrize("shape", [(20, 40), (40, 20), (230, 260), (260, 230)])
def test_residuals_bound_singular_values(shape, method):
    """With few products: each value is within its residual of a singular value, and the residual is what it says."""
    a = randn(*shape)
    result = modes(Dense(a), k=3, method=method, tol=1e-2)
    u, v, s = result.vectors, result.right_vectors, result.values[:, None]
    torch.testing.assert_close(v @ a.mT, s * u, rtol=0, atol=1e-11)
    torch.testing.assert_close((u @ a - s * v).norm(dim=1), result.residuals, rtol=1e-6, atol=1e-11)
    distance = (torch.linalg.svdvals(a)[:, None] - result.values).abs().amin(0)
    assert (distance <= result.residuals + 1e-11).all()
    assert result.method == ("block Krylov" if method == "krylov" else "lanczos")


@pytest.mark.parametrize("budget", [18, 19, 20, 41, 60, 77])
@pytest.mark.parametrize("symmetric", [True, False])
def test_lanczos_stays_in_its_budget(budget, symmetric):
    counter = Counter(Dense(matrix("bulk", 250) if symmetric else randn(250, 250)))
    result = modes(counter, k=3, method="lanczos", budget=budget)
    assert counter.total == result.num_matvecs <= budget
    assert result.status is Status.BUDGET_EXHAUSTED
    assert len(result.values) == len(result.residuals) <= 3


@pytest.mark.parametrize("a", [torch.zeros(50, 50), wishart(300, 2), randn(300, 2) @ randn(2, 250)])
def test_lanczos_of_less_rank(a):
    result = modes(Dense(a), k=4, method="lanczos")
    truth = torch.linalg.svdvals(a)[:4]
    torch.testing.assert_close(result.values.abs(), truth, rtol=0, atol=1e-9)
    assert result.status is Status.CONVERGED


def test_lanczos_seeds_shapes_and_float32():
    states = Space.of((2, 3, 40), ("trial", "time", "unit"), torch.float32)
    a, before = Dense(matrix("power law", 240).float(), (states, states)), torch.random.get_rng_state()
    run = lambda seed: modes(a, k=3, method="lanczos", generator=seed).vectors  # noqa: E731
    assert torch.equal(run(None), run(seeded(0)))
    torch.testing.assert_close(run(seeded(1)), run(seeded(2)), rtol=0, atol=1e-3)
    assert run(None).dtype == torch.float32
    assert run(None).shape == (3, 2, 3, 40)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_lanczos_not_finite():
    broken = Function(lambda v: v / 0.0, None, Space.of((50,)))
    with pytest.raises(FloatingPointError, match=r"`modes` of Function: .* is not finite: a product holds NaN or inf"):
        modes(broken, k=2, method="lanczos")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"method": "magic"}, r"`method` must be one of 'auto', 'krylov', 'lanczos'; got 'magic'"),
        (
            {"method": "lanczos", "k": 20},
            r"`k` must be below 20 for method 'lanczos', on Dense: .*; got 20. Use 'auto'",
        ),
        ({"method": "lanczos", "k": 5, "budget": 12}, r"`budget` must be at least 13 for 5 modes .*; got 12"),
    ],
)
def test_lanczos_refusals(arguments, match):
    with pytest.raises(ValueError, match=match):
        modes(Dense(matrix("bulk", 20)), **arguments)
