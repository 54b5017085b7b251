"""Samples of the NTK's trace within trials: unbiased, and of the variance that the blocks within trials give."""

import itertools

import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.estimate import trace
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
