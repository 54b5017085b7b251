"""Samples of the NTK's trace within trials, and of its trace and norm from pairs of trials: unbiased and honest."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.estimate import Status, effective_rank, frobenius_norm, trace
from kpflow.flow import sampled
from kpflow.operators import Identity, to_dense
from models import WITH_SITES, linearised


def samples(ntk, probes):
    declared = ntk.structure.sampled_trace()
    return declared.energy(declared.operator(probes))


@pytest.mark.parametrize("name", WITH_SITES)
def test_the_sum_over_unit_vectors_is_the_trace(name):
    ntk = kp.Ntk(linearised(name))
    size = ntk.in_space.size
    units = torch.eye(size, dtype=torch.float64).reshape(size, *ntk.in_shape)
    total = float(samples(ntk, units).sum())
    assert total == pytest.approx(float(to_dense(ntk).trace()), rel=1e-10)


def test_mean_and_variance_over_all_signs(monkeypatch):
    """Of signs: Var = 2 Σ_b (‖N_b‖²_F − Σᵢ N_bᵢᵢ²) with the blocks N_b of the NTK within trials."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.GRU(1, 2, batch_first=True, dtype=torch.float64)
    ntk = kp.Ntk(kp.linearise(model, torch.randn(2, 3, 1, dtype=torch.float64, generator=_seeded(1))))
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=12)), dtype=torch.float64).reshape(-1, 2, 3, 2)
    monkeypatch.setattr(sampled, "CHUNK_BYTES", 2**12)
    values = samples(ntk, signs)
    matrix = to_dense(ntk).reshape(2, 6, 2, 6)
    blocks = [matrix[b, :, b] for b in range(2)]
    variance = sum(2 * (block.square().sum() - block.diagonal().square().sum()) for block in blocks)
    whole = 2 * (matrix.square().sum() - matrix.reshape(12, 12).diagonal().square().sum())
    assert float(values.mean()) == pytest.approx(float(sum(block.trace() for block in blocks)), rel=1e-12)
    assert float(values.var(correction=0)) == pytest.approx(float(variance), rel=1e-10)
    assert float(variance) < 0.7 * float(whole)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _ntk(**arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.GRU(3, 8, batch_first=True, dtype=torch.float64)
    lin = kp.linearise(model, torch.randn(6, 10, 3, generator=_seeded(), dtype=torch.float64))
    return kp.Ntk(lin, **arguments)


def test_error_bars_are_honest():
    ntk = _ntk()
    truth = float(to_dense(ntk).trace())
    found = [trace(ntk, method="one-sided-blocks", budget=20, generator=_seeded(seed)) for seed in range(100)]
    z = torch.tensor([(e.value - truth) / e.standard_error for e in found])
    assert bool((z[:3].abs() < 4).all())
    assert 0.8 < float(z.square().mean().sqrt()) < 1.3
    assert {(e.method, e.num_matvecs) for e in found} == {("one-sided-blocks", 20)}


def test_auto_takes_blocks_and_keeps_its_claim(monkeypatch):
    monkeypatch.setattr("kpflow.flow.exact.MEMORY", 1)  # the exact trace would be cheaper still
    ntk = _ntk()
    truth = float(to_dense(ntk).trace())
    found = [trace(ntk, rtol=0.1, generator=_seeded(seed)) for seed in range(200)]
    assert {e.method for e in found} == {"one-sided-blocks"}
    assert sum(abs(e.value / truth - 1) > 0.2 for e in found) <= 10


@pytest.mark.parametrize(
    "operator",
    [Identity(kp.Space.of((100,))), _ntk(metric=torch.ones(312, dtype=torch.float64))],
    ids=["other", "metric"],
)
def test_blocks_must_be_known(operator):
    with pytest.raises(ValueError, match="`method` 'one-sided-blocks' needs an operator"):
        trace(operator, method="one-sided-blocks")


def test_a_kernel_without_sites_has_no_samples():
    assert kp.ParameterKernel(_ntk()._linearisation).structure.sampled_trace() is None


def grams(ntk, left, right):
    declared = ntk.structure.sampled_parts()
    return declared.gram(declared.operator(left), declared.operator(right))


@pytest.mark.parametrize("name", WITH_SITES)
def test_inner_products_are_entries_of_the_ntk(name):
    """⟨y_b, y'_c⟩ = ⟨g_b, NTK_bc g'_c⟩: of unit vectors, with the others zero."""
    ntk = kp.Ntk(linearised(name))
    size, trials = ntk.in_space.size, ntk.in_shape[0]
    units = torch.eye(size, dtype=torch.float64).reshape(size, *ntk.in_shape)
    gram = grams(ntk, units, units[::3])
    blocks = to_dense(ntk).reshape(trials, -1, size)
    expected = torch.zeros_like(gram)
    for b, i, j in itertools.product(range(trials), range(blocks.shape[1]), range(len(units[::3]))):
        expected[b * blocks.shape[1] + i, b, j, 3 * j // blocks.shape[1]] = blocks[b, i, 3 * j]
    torch.testing.assert_close(gram, expected, rtol=1e-9, atol=1e-10 * float(expected.abs().max()))


def test_many_trials_together_and_small_pieces(monkeypatch):
    ntk = _ntk()
    g = torch.randn(5, *ntk.in_shape, dtype=torch.float64, generator=_seeded(1))
    h = torch.randn(3, *ntk.in_shape, dtype=torch.float64, generator=_seeded(2))
    apart = grams(ntk, g, h)
    monkeypatch.setattr(sampled, "ROW_BYTES", 2**12)
    torch.testing.assert_close(grams(ntk, g, h), apart)
    monkeypatch.setattr(sampled, "MOST_PARTS", 4)
    together = grams(ntk, g, h)
    assert together.shape == (5, 3, 3, 3)
    torch.testing.assert_close(together, apart.unflatten(3, (3, 2)).unflatten(1, (3, 2)).sum((2, 5)))


def test_gates_with_equal_slopes_are_one_and_features_are_compressed():
    """Of a GRU's six gates two pairs have equal slopes; the inputs are of rank two, the first states zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.GRU(5, 4, batch_first=True, dtype=torch.float64)
    inputs = torch.randn(3, 6, 2, dtype=torch.float64, generator=_seeded()) @ torch.randn(2, 5, dtype=torch.float64)
    gram = kp.Ntk(kp.linearise(model, inputs)).structure.sampled_parts().gram
    assert [site.features.shape[2] for site in gram.sites] == [7, 7, 5, 3]


def test_sites_that_see_nothing():
    """Inputs of zero, of which the input weights see nothing, and no bias."""
    model = nn.GRU(2, 3, batch_first=True, bias=False, dtype=torch.float64)
    h0 = torch.ones(1, 2, 3, dtype=torch.float64)
    lin = kp.linearise(model, torch.zeros(2, 4, 2, dtype=torch.float64), initial=h0)
    probes = torch.randn(3, *lin.space.shape, dtype=torch.float64, generator=_seeded())
    flat = probes.flatten(1)
    expected = flat @ to_dense(kp.Ntk(lin)) @ flat.mT
    torch.testing.assert_close(grams(kp.Ntk(lin), probes, probes).sum((1, 3)), expected)
    assert kp.flow.cores(lin)["weight_ih_l0.new"].effective_rank == 0.0


@pytest.mark.parametrize("scale", [2.0**-70, 2.0**60])
def test_scales_beyond_float32(scale):
    """Slopes and features so small or large that products of float32 would be 0 or inf."""
    lin = kp.linearise(nn.GRU(3, 8, batch_first=True), torch.randn(4, 6, 3, generator=_seeded()))
    sites = tuple(lin.sites().values())
    scaled = [dataclasses.replace(site, slope=scale * site.slope) for site in sites]
    a = torch.randn(3, *lin.space.shape, generator=_seeded(1))
    truth = sampled.TrialGram(sites)(a, a)
    torch.testing.assert_close(sampled.TrialGram(scaled)(a, a) / scale**2, truth, rtol=1e-5, atol=1e-5)
    assert bool((sampled.TrialGram(sites)(0 * a, a) == 0).all())


QUANTITIES = {
    effective_rank: lambda matrix: float(matrix.trace() ** 2 / matrix.square().sum()),
    frobenius_norm: lambda matrix: float(matrix.norm()),
}

NETWORKS = {
    "GRU": lambda: nn.GRU(3, 8, batch_first=True),
    "LSTM": lambda: nn.LSTM(3, 5, batch_first=True),
    "RNN": lambda: nn.RNN(3, 8, batch_first=True),
    "rate RNN": lambda: kp.states.cells.RateRNN(3, 8),
}


def _network(name: str, trials: int = 6):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETWORKS[name]().double()
    return kp.Ntk(kp.linearise(model, torch.randn(trials, 10, 3, generator=_seeded(), dtype=torch.float64)))


@pytest.mark.parametrize("function", QUANTITIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_rank_and_norm_of_networks(function, name):
    ntk = _network(name)
    truth = QUANTITIES[function](to_dense(ntk))
    found = [function(ntk, method="one-sided-blocks", budget=12, generator=_seeded(seed)) for seed in range(100)]
    z = torch.tensor([(e.value - truth) / e.standard_error for e in found])
    assert bool((z[:3].abs() < 4).all())
    assert 0.7 < float(z.square().mean().sqrt()) < 1.3


@pytest.mark.parametrize("function", QUANTITIES)
@pytest.mark.parametrize(("name", "method"), [("GRU", "auto"), ("rate RNN", "one-sided-blocks")])
def test_the_claim_of_rank_and_norm(function, name, method):
    ntk, rtol = _network(name, 12), 0.1
    truth = QUANTITIES[function](to_dense(ntk))
    found = [function(ntk, method=method, rtol=rtol, generator=_seeded(seed)) for seed in range(200)]
    assert {(e.method, e.status) for e in found} == {("one-sided-blocks", Status.CONVERGED)}
    assert sum(abs(e.value / truth - 1) > 2 * rtol for e in found) <= 10


def test_a_kernel_without_sites_has_no_parts():
    assert kp.ParameterKernel(_ntk()._linearisation).structure.sampled_parts() is None
