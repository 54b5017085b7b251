"""The core of K: as few entries as the features' numerical rank allows, and the same K."""

import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.states import channels, transitions


def _gap(left, right):
    return float((left - right).norm() / right.norm())


def _low_dimensional_gru(dtype):
    """A GRU driven along two directions of its eight inputs: its states and inputs have few dimensions."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.GRU(8, 24, batch_first=True, dtype=dtype)
    inputs = torch.randn(6, 40, 2, generator=generator, dtype=torch.float64).cumsum(1) @ torch.randn(
        2, 8, generator=generator, dtype=torch.float64
    )
    return kp.linearise(model, (0.02 * inputs).to(dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_the_core_is_compressed_and_gives_the_same_kernel(dtype, tolerance):
    lin = _low_dimensional_gru(dtype)
    assert lin.core.size < 0.85 * lin.parameters.size
    probes = torch.randn(3, *lin.space.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    by_core = lin.core_jvp(lin.core_vjp(probes))
    assert _gap(by_core, lin.parameter_jvp(lin.parameter_vjp(probes))) < tolerance
    whole = lin.state_core_jvp(lin.state_core_vjp(probes))
    assert _gap(whole, lin.state_jvp(lin.state_vjp(probes))) < tolerance


def test_gates_with_the_same_slopes_share_a_channel():
    """Reset and update gates see inputs and states through the same slopes; the new gate does not."""
    lin = kp.linearise(
        nn.GRU(3, 5, batch_first=True), torch.randn(30, 4, 3, generator=torch.Generator().manual_seed(0))
    )
    (layer,) = lin.layers
    separate = [channel for site in layer.weights.members for channel in site.channels]
    assert len(separate) == 6
    merged = channels.core_channels(separate)
    assert sorted(channel.features.shape[1] for channel in merged) == [4, 6, 9, 9]  # one of two bias columns is spare


def test_a_slope_that_is_the_same_for_all_units_is_a_factor_of_the_features():
    lin = kp.linearise(kp.states.cells.RateRNN(2, 4, alpha=0.3), torch.ones(2, 3, 2), lengths=torch.tensor([3, 2]))
    (layer,) = lin.layers
    (channel,) = layer.weights.members[0].channels
    assert channel.slope is None
    expected = 0.3 * layer.weights.members[0].features.flatten(0, 1) * _valid()
    assert torch.allclose(channel.features, expected)


def _valid():
    return torch.tensor([[1.0, 1, 1], [1, 1, 0]]).reshape(6, 1)


def test_a_parameter_in_two_places_keeps_the_parameters_as_core():
    """K is then no sum over sites: the products of the two sites mix."""
    cell = nn.RNN(3, 3, batch_first=True)
    cell.weight_ih_l0 = cell.weight_hh_l0
    lin = kp.linearise(cell, torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)))
    assert lin.core is lin.parameters
    probe = torch.randn(1, *lin.space.shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(lin.core_jvp(lin.core_vjp(probe)), lin.parameter_jvp(lin.parameter_vjp(probe)))


def test_slopes_are_taken_a_few_probes_at_a_time(monkeypatch):
    lin = _low_dimensional_gru(torch.float64)
    probes = torch.randn(5, *lin.space.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = kp.Ntk(lin)(probes)
    monkeypatch.setattr(channels, "CHUNK_ENTRIES", 2 * lin.space.size)
    assert _gap(kp.Ntk(lin)(probes), together) < 1e-14


def test_probes_are_not_overwritten():
    lin = _low_dimensional_gru(torch.float64)
    probe = torch.randn(1, *lin.space.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = probe.clone()
    for operator in (kp.Propagator(lin), kp.Propagator(lin).inverse, kp.Ntk(lin)):
        operator(probe)
        operator.T(probe)
    assert torch.equal(probe, kept)


def test_the_jacobians_of_a_gru_are_formed_only_if_they_fit():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.GRU(3, 16, batch_first=True, dtype=torch.float64)
    inputs = torch.randn(4, 10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(ValueError, match="memory") as refusal:
        kp.linearise(model, inputs, memory=1000)
    least = int(str(refusal.value).split("at least ")[1].split(" ")[0])
    plenty, scarce = (kp.linearise(model, inputs, memory=memory) for memory in (2**32, least))
    assert isinstance(plenty.layers[0].transition, transitions.DenseTransition)
    assert isinstance(scarce.layers[0].transition, transitions.GatedTransition)
    probes = torch.randn(7, *plenty.space.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert _gap(kp.Ntk(scarce)(probes), kp.Ntk(plenty)(probes)) < 1e-13
    assert _gap(scarce.residual(scarce.propagate(probes)), probes) < 1e-13
    assert _gap(scarce.residual_adjoint(scarce.propagate_adjoint(probes)), probes) < 1e-13
    assert scarce.peak_bytes(7) < plenty.peak_bytes(7)


def test_too_little_memory_is_refused_with_what_is_needed():
    inputs = torch.zeros(2, 3, 3)
    with pytest.raises(ValueError, match=r"`memory` must be at least \d+ bytes for the Jacobians and one probe of"):
        kp.linearise(nn.GRU(3, 4, batch_first=True), inputs, memory=100)
    with pytest.raises(ValueError, match="`memory` must be a positive whole number"):
        kp.linearise(nn.GRU(3, 4, batch_first=True), inputs, memory=-1)
