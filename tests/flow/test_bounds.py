"""Bounds of the NTK by structure, against the dense matrices of every model of the table and of random ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import kpflow as kp
from kpflow.flow import rank_bounds
from kpflow.operators import to_dense
from kpflow.states.cells import RateRNN
from models import MODELS, WITH_SITES, linearised, randn, seeded

SLACK = 1e-9


def participation(matrix):
    return float(matrix.trace() ** 2 / matrix.square().sum())


def dense(lin):
    P, K, ntk = (to_dense(op) for op in (kp.Propagator(lin), kp.ParameterKernel(lin), kp.Ntk(lin)))
    return K, ntk, torch.linalg.svdvals(P)


def check(lin):
    """All that is claimed, on dense matrices; returns the bounds, and the NTK's effective rank."""
    K, ntk, sigma = dense(lin)
    bounds = rank_bounds(lin, (float(sigma[-1]), float(sigma[0])), tol=1e-12)
    eigenvalues = torch.linalg.eigvalsh(ntk).flip(0)
    rank = int((eigenvalues > 1e-13 * eigenvalues[0]).sum())
    assert rank <= bounds.rank <= min(bounds.num_states, bounds.num_parameters)
    assert bounds.kernel_effective_rank == pytest.approx(participation(K), rel=1e-9)
    whole = participation(ntk)
    low, high = bounds.effective_rank
    assert low * (1 - SLACK) <= whole <= high * (1 + SLACK)
    assert high <= bounds.kernel_rank * (1 + SLACK)
    low, high = bounds.norm
    assert low * (1 - SLACK) <= float(eigenvalues[0]) <= high * (1 + SLACK) <= bounds.norm_from_cores * (1 + SLACK) ** 2
    assert float(eigenvalues[bounds.kernel_rank - 1]) >= bounds.smallest * (1 - 1e-6)
    blocks = ntk.reshape(*lin.space.shape, *lin.space.shape)
    if lin.space.axes == ("trial", "time", "unit"):
        for axes, equation in (("unit", "bthbtk->hk"), ("time", "bthbsh->ts"), ("trial", "bthcth->bc")):
            low, high = bounds.along(axes)
            assert low * (1 - SLACK) <= participation(torch.einsum(equation, blocks)) <= high * (1 + SLACK)
        low, high = bounds.along("trial", "time")
        kept = torch.einsum("bthcsh->btcs", blocks).flatten(2).flatten(0, 1)
        assert low * (1 - SLACK) <= participation(kept) <= high * (1 + SLACK)
    return bounds, whole


@pytest.mark.parametrize("name", MODELS)
def test_bounds_hold_for_every_model(name):
    bounds, _ = check(linearised(name))
    assert (len(bounds.sites) > 0) == (name in WITH_SITES)


@pytest.mark.parametrize("kind", ["perceptron", "convolution", "tied"])
def test_bounds_hold_for_graphs(kind):
    models = {
        "perceptron": (nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), randn(4, 3, seed=0)),
        "convolution": (
            nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)),
            randn(3, 2, 4, seed=1),
        ),
        "tied": (Tied(), torch.tensor([[0, 1, 2], [2, 2, 0]])),
    }
    model, inputs = models[kind]
    bounds, _ = check(kp.linearise(seeded(model), inputs))
    assert bounds.sites
    with pytest.raises(ValueError, match=r"`axes` must be different ones of .*; got unit"):
        bounds.along("unit")


def test_frozen_weights_are_not_counted():
    model = seeded(nn.GRU(3, 4, batch_first=True))
    model.weight_ih_l0.requires_grad_(False)
    bounds, _ = check(kp.linearise(model, randn(2, 5, 3, seed=1)))
    everything = rank_bounds(linearised("GRU-1"))
    assert sum(bounds.sites.values()) < sum(everything.sites.values())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4, 3)

    def forward(self, tokens):
        return self.embedding(tokens).tanh() @ self.embedding.weight.T


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["RNN", "GRU", "LSTM", "rate"]),
    sizes=st.tuples(*[st.integers(1, 4)] * 4),
    scale=st.floats(0.05, 3.0),
    seed=st.integers(0, 10**6),
)
def test_bounds_hold_for_random_weights(kind, sizes, scale, seed):
    B, T, H, inputs = sizes
    made = RateRNN(inputs, H) if kind == "rate" else getattr(nn, kind)(inputs, H, batch_first=True)
    check(kp.linearise(seeded(made, seed, scale), randn(B, T, inputs, seed=seed)))


def test_the_rank_is_met_by_rate_networks():
    """rank NTK = H rank M, with far fewer directions seen than there are states and parameters."""
    lin = kp.linearise(seeded(RateRNN(2, 6)), torch.ones(4, 9, 2, dtype=torch.float64))
    bounds, _ = check(lin)
    core = kp.flow.cores(lin)["weight_hh"]
    ntk = torch.linalg.eigvalsh(to_dense(kp.Ntk(lin)))
    assert bounds.rank == 6 * core.rank == int((ntk > 1e-12 * ntk[-1]).sum())
    assert bounds.rank <= 6 * 8 < bounds.num_states  # trials are alike
    assert bounds.spectrum[0] == pytest.approx(float(core.spectrum[0]), rel=1e-12)
    assert bounds.core_norm == pytest.approx(float(core.spectrum[0]), rel=1e-12)  # slopes are 1


def test_without_recurrence_the_bounds_meet():
    """P = I: the NTK is K."""
    model = seeded(nn.RNN(3, 4, batch_first=True))
    with torch.no_grad():
        model.weight_hh_l0.zero_()
    lin = kp.linearise(model, randn(2, 5, 3, seed=1))
    bounds = rank_bounds(lin, (1.0, 1.0))
    whole = participation(to_dense(kp.Ntk(lin)))
    assert bounds.effective_rank == pytest.approx((whole, whole), rel=1e-9)
    assert bounds.kernel_effective_rank == pytest.approx(whole, rel=1e-12)


def test_the_upper_bound_is_sharp():
    """Nothing in the box of eigenvalues is more even than the bound; its maximum is attained by descent too."""
    lin = linearised("GRU-1")
    bounds = rank_bounds(lin, (0.7, 1.6))
    _, high = bounds.effective_rank
    lam = bounds.spectrum
    theta = 0.49 + (2.56 - 0.49) * torch.rand(
        20000, len(lam), generator=torch.Generator().manual_seed(0), dtype=lam.dtype
    )
    x = theta * lam
    assert float((x.sum(1).square() / x.square().sum(1)).max()) <= high
    x = (1.2 * lam).clone()
    for _ in range(20000):
        total, squares = x.sum(), x.square().sum()
        x = (x + 0.05 * (squares / total - x)).clamp(0.49 * lam, 2.56 * lam)
    assert float(x.sum().square() / x.square().sum()) == pytest.approx(high, rel=1e-6)


def test_more_amplification_leaves_more_room():
    lin = linearised("GRU-1")
    pairs = [rank_bounds(lin, (1 / s, s)).effective_rank for s in (1.0, 1.5, 3.0, 100.0)]
    lows, highs = zip(*pairs, strict=True)
    assert list(lows) == sorted(lows, reverse=True)
    assert list(highs) == sorted(highs)
    free = rank_bounds(lin)
    assert free.effective_rank == (1.0, float(free.kernel_rank))
    assert free.norm == (0.0, math.inf)
    assert free.smallest == 0.0


def test_estimates_give_the_singular_values():
    lin = linearised("RNN-1")
    P = kp.Propagator(lin)
    sigma = torch.linalg.svdvals(to_dense(P))
    norm, inverse = (kp.estimate.operator_norm(op, rtol=1e-6) for op in (P, P.inverse))
    bounds = rank_bounds(lin, (1 / inverse.value, norm.value))
    assert bounds.singular_values == pytest.approx((float(sigma[-1]), float(sigma[0])), rel=1e-4)


def test_bad_arguments(monkeypatch):
    lin = linearised("GRU-1")
    for wrong in ((2.0, 1.0), (1.0,), (-1.0, 1.0), (0.0, 0.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match=r"`singular_values` must be σ_min\(P\) ≤ σ_max\(P\), not negative; got"):
            rank_bounds(lin, wrong)
    for tol in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=f"`tol` must be a number between 0 and 1, both excluded; got {tol}"):
            rank_bounds(lin, tol=tol)
    with pytest.raises(ValueError, match=r"`axes` must be different ones of trial, time, unit; got none"):
        rank_bounds(lin).along()
    with pytest.raises(ValueError, match=r"`axes` must be different ones of .*; got unit, unit"):
        rank_bounds(lin).along("unit", "unit")
    monkeypatch.setattr("kpflow.flow.bounds.LARGEST_MATRIX", 3)
    with pytest.raises(ValueError, match=r"K is too large to be formed: 40 states, at most 3\. Linearise on fewer tri"):
        rank_bounds(linearised("step-function"))
    still = nn.RNN(2, 3, batch_first=True, bias=False, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"must have parameters that move its states; got K = 0"):
        rank_bounds(kp.linearise(still, torch.zeros(2, 3, 2, dtype=torch.float64)))
