"""Exact quantities by structure, against the dense matrix of the whole model by products, and the golden trace."""

import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.flow import equal_times, exact
from kpflow.operators import Diagonal, Gramian, to_dense
from kpflow.states.cells import LowRankRNN, RateRNN
from models import BEYOND_SITES, F64, WITH_SITES, Plain, linearised, randn, seeded

TOLERANCE = 1e-10  # relative, float64; measured values are below 1e-12


def relative(a, b) -> float:
    a, b = (torch.as_tensor(value, dtype=torch.float64) for value in (a, b))
    assert a.shape == b.shape
    return float((a - b).norm() / b.norm())


def check(operator: Gramian) -> None:
    """Every quantity that the structure declares, against the matrix."""
    structure, matrix = operator.structure, to_dense(operator)
    assert structure is not None
    trials, steps, units = operator.in_shape
    blocks = matrix.reshape(trials, steps, units, trials, steps, units)
    eigenvalues = torch.linalg.eigvalsh(matrix).flip(0)
    whole, over_times = structure.squared_norm(), structure.partial_trace(("time",))
    assert relative(structure.trace().compute(), matrix.trace()) < TOLERANCE
    assert relative(structure.diagonal().compute(), matrix.diagonal().reshape(operator.in_shape)) < TOLERANCE
    assert relative(structure.partial_trace(("unit",)).compute(), torch.einsum("bthbtk -> hk", blocks)) < TOLERANCE
    assert structure.partial_trace(("trial",)) is None
    assert (over_times is None) == isinstance(operator, kp.Ntk)
    if over_times is not None:
        assert relative(over_times.compute(), torch.einsum("bthbsh -> ts", blocks)) < TOLERANCE
    if whole is not None:
        spectrum = structure.spectrum().compute()
        padded = torch.nn.functional.pad(spectrum, (0, max(len(eigenvalues) - len(spectrum), 0)))
        assert relative(whole.compute(), matrix.square().sum()) < TOLERANCE
        assert relative(padded[: len(eigenvalues)], eigenvalues) < TOLERANCE
        assert float(spectrum[len(eigenvalues) :].sum()) < TOLERANCE * float(eigenvalues[0])


@pytest.mark.parametrize("name", WITH_SITES)
@pytest.mark.parametrize("kind", [kp.Ntk, kp.ParameterKernel])
def test_quantities_are_those_of_the_matrix(kind, name):
    check(kind(linearised(name)))


@pytest.mark.parametrize("name", WITH_SITES)
def test_core_quantities_are_those_of_the_matrix(name):
    for core in kp.flow.cores(linearised(name)).values():
        check(core.kernel)


@pytest.mark.parametrize("name", ["GRU-2", "LSTM-2", "low-rank", "rate-outside"])
@pytest.mark.parametrize("kind", [kp.Ntk, kp.ParameterKernel])
def test_one_parameter_at_a_time_and_all_but_one(kind, name):
    lin = linearised(name)
    names = [part.name for part in lin.parameters.parts]
    for i, one in enumerate(names):
        check(kind(lin, params=[one]))
        check(kind(lin, params=names[:i] + names[i + 1 :]))


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_padded_batches(kind):
    model = seeded(getattr(nn, kind)(3, 4, 2, batch_first=True))
    lin = kp.linearise(model, randn(3, 6, 3, seed=1), lengths=torch.tensor([2, 6, 4]))
    check(kp.Ntk(lin))
    check(kp.ParameterKernel(lin))


@pytest.mark.parametrize(
    "model",
    [
        nn.RNN(1, 2, batch_first=True),
        nn.GRU(1, 2, 2, batch_first=True),
        nn.LSTM(1, 2, batch_first=True),
        RateRNN(1, 3, alpha=0.3),
        LowRankRNN(1, 3, 1, bias=True),
    ],
    ids=lambda model: type(model).__name__,
)
def test_long_trials(model):
    lin = kp.linearise(seeded(model, scale=0.3), randn(2, 37, 1, seed=1))
    check(kp.Ntk(lin))
    check(kp.ParameterKernel(lin))


def test_one_trial_at_a_time(monkeypatch):
    monkeypatch.setattr(exact, "CHUNK_BYTES", 1)
    check(kp.Ntk(linearised("GRU-2")))


@pytest.mark.parametrize("name", ["GRU-2", "LSTM-1", "low-rank"])
def test_blocks_at_equal_times(name):
    lin = linearised(name)
    matrix = to_dense(kp.Ntk(lin)).reshape(2 * lin.space.shape)
    step = equal_times.OneStep.of(lin)
    assert step.layered == (name == "GRU-2")
    for t, block in enumerate(equal_times.equal_time_blocks(step, list(lin.sites().values()), slice(1, 2))):
        assert relative(block[0], matrix[1, t, :, 1, t]) < TOLERANCE


def test_golden_trace_of_the_gru():
    """tr NTK of nn.GRU(10, 64), 50 steps, 15 trials: 223 056.46 in float32 with torch's seed 0 (theory §10)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inputs, model = torch.randn(50, 15, 10), nn.GRU(10, 64)
    quantity = kp.Ntk(kp.linearise(model, inputs)).structure.trace()
    assert quantity.compute() == pytest.approx(223056.46, rel=1e-4)
    assert quantity.cost < 48000 / 100  # products with all unit vectors


def test_silence_before_the_input_stays_silent_under_amplification():
    """No rounding of K at late steps enters at early ones, where K is zero and P amplifies by 2^23."""
    model = seeded(RateRNN(1, 30, nonlinearity=lambda z: z))
    with torch.no_grad():
        model.weight_hh.copy_(2 * torch.eye(30))
    inputs = torch.zeros(1, 24, 1, dtype=torch.float64)
    inputs[0, 20:] = 1
    ntk = kp.Ntk(kp.linearise(model, inputs))
    assert relative(ntk.structure.trace().compute(), to_dense(ntk).trace()) < TOLERANCE


@pytest.mark.parametrize("name", BEYOND_SITES)
def test_no_structure_where_parameters_act_beyond_the_sites(name):
    lin = linearised(name)
    assert kp.Ntk(lin).structure is None
    assert kp.ParameterKernel(lin).structure is None
    inside = {name for site in lin.sites().values() for name in site.parameters}
    if inside:
        check(kp.Ntk(lin, params=sorted(inside)))


def test_no_structure_with_a_metric_or_a_readout():
    lin = linearised("plain-GRU")
    metric = Diagonal(torch.ones(lin.parameters.size, dtype=torch.float64), lin.parameters)
    assert kp.Ntk(lin, metric=metric).structure is None
    assert kp.ParameterKernel(lin, metric=metric).structure is None
    assert kp.Ntk(lin, readout="outputs").structure is None
    assert kp.Ntk(lin, params=["readout.weight"]).structure is None


def test_no_structure_for_a_weight_that_acts_twice():
    model = seeded(nn.GRU(4, 4, 2, batch_first=True))
    model.weight_hh_l1 = model.weight_hh_l0
    lin = kp.linearise(model, randn(2, 5, 4, seed=1))
    assert kp.Ntk(lin).structure is None
    check(kp.Ntk(lin, params=["weight_ih_l0", "bias_hh_l1"]))


class Tied(nn.Module):
    """An encoder whose weight is the recurrent core's own."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 4, batch_first=True)

    def forward(self, inputs):
        return self.rnn(inputs @ self.rnn.weight_hh_l0.mT)[0]


def test_no_structure_for_a_weight_that_also_encodes():
    lin = kp.linearise(seeded(Tied()), randn(2, 5, 4, seed=1), core="rnn")
    assert kp.Ntk(lin).structure is None
    check(kp.Ntk(lin, params=["rnn.weight_ih_l0"]))


def test_readout_parameters_do_not_matter_to_the_states():
    lin = kp.linearise(seeded(Plain(nn.GRU(3, 4, batch_first=True))), randn(2, 5, 3, seed=1), core="rnn")
    check(kp.Ntk(lin))
    check(kp.Ntk(lin, params=["readout.bias", "rnn.bias_hh_l0"]))


def test_nothing_is_offered_that_does_not_fit(monkeypatch):
    lin = linearised("GRU-1")
    monkeypatch.setattr(exact, "MEMORY", 2000)
    ntk, kernel = kp.Ntk(lin).structure, kp.ParameterKernel(lin).structure
    for quantity in (ntk.trace(), ntk.diagonal(), ntk.partial_trace(("unit",))):
        assert quantity is None
    assert kernel.squared_norm() is None
    assert kernel.spectrum() is None


def test_norm_and_spectrum_of_k_by_structure_unless_gates_mix_units():
    assert kp.ParameterKernel(linearised("LSTM-2")).structure.squared_norm() is not None
    assert kp.ParameterKernel(linearised("low-rank")).structure.squared_norm() is None
    assert kp.ParameterKernel(linearised("low-rank")).structure.spectrum() is None
    assert kp.Ntk(linearised("GRU-1")).structure.squared_norm() is None
    assert kp.Ntk(linearised("GRU-1")).structure.spectrum() is None


def test_exact_quantities_can_be_computed_again():
    structure = kp.ParameterKernel(linearised("GRU-1")).structure
    for found in (structure.squared_norm(), structure.spectrum()):
        torch.testing.assert_close(torch.as_tensor(found.compute()), torch.as_tensor(found.compute()))


def test_what_float32_can_hardly_hold():
    """Features of 1e-23, whose squares float32 does not have."""
    model = nn.LSTM(3, 5, bias=False, batch_first=True).float()
    inputs = 1e-23 * randn(2, 4, 3, seed=1).float()
    kernels = [kp.ParameterKernel(kp.linearise(model.to(dtype), inputs.to(dtype))) for dtype in (torch.float32, F64)]
    assert kp.estimate.trace(kernels[0]).value == pytest.approx(kp.estimate.trace(kernels[1]).value, rel=1e-5)
    blocks = [kp.Ntk(k._linearisation) for k in kernels]
    found = [kp.estimate.trace(ntk, method="one-sided-blocks", budget=16).value for ntk in blocks]
    assert found[0] == pytest.approx(found[1], rel=1e-3)
