"""The NTK of a graph's outputs, assembled from cores: against its Jacobian by automatic differentiation."""

import functools
import warnings

import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.operators import to_dense
from models import F64, randn, seeded


class Convolutional(nn.Module):
    """Convolution, norm, pooling, a residual connection and a linear layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        h = torch.relu(self.norm(self.first(x)))
        return self.out((h + self.second(h)).amax((2, 3)))


class Classifier(nn.Module):
    """A transformer layer on tokens with learned positions, read out at the last position."""

    def __init__(self, width=4):
        super().__init__()
        self.embed = nn.Embedding(7, width)
        self.positions = nn.Parameter(torch.randn(3, width))
        self.layer = nn.TransformerEncoderLayer(width, 2, 6, dropout=0.0, batch_first=True)
        self.out = nn.Linear(width, 2)

    def forward(self, tokens):
        return self.out(self.layer(self.embed(tokens) + self.positions)[:, -1])


TOKENS = torch.tensor([[0, 3, 3], [5, 0, 1], [2, 2, 4]])

KNOWN = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), randn(4, 3, seed=0)),
    "convolutional": (Convolutional, randn(3, 2, 4, 4, seed=1)),
    "transformer": (Classifier, TOKENS),
    "recurrent, trials second": (lambda: nn.GRU(3, 4, bidirectional=True), randn(5, 3, 3, seed=2)),
    "layer used twice": (lambda: nn.Sequential(*[nn.Linear(3, 3)] * 2), randn(4, 3, seed=0)),
}

UNKNOWN = {
    "tied embedding": (lambda: Tied(), TOKENS),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 5)), randn(4, 3, seed=0)),
    "trials meet": (lambda: Centred(), randn(4, 3, seed=0)),
}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)

    def forward(self, tokens):
        return torch.tanh(self.embed(tokens)) @ self.embed.weight.T


class Centred(nn.Module):
    """Subtracts the mean over trials."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(h - h.mean(0))


@functools.cache
def case(name):
    """The linearisation, and the Jacobian of the outputs by parameters."""
    build, inputs = (KNOWN | UNKNOWN)[name]
    model = seeded(build()).to(F64).eval()
    lin = kp.linearise(model, inputs)
    values = {name: value.detach() for name, value in model.named_parameters()}

    def outputs(values):
        result = torch.func.functional_call(model, values, inputs)
        return result[0] if isinstance(result, tuple) else result

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an operation that vmap does one by one
        rows = torch.func.jacrev(outputs)(values)
    return lin, {name: row.reshape(lin.readout.space.size, -1) for name, row in rows.items()}


def kernel(rows, names=None):
    jacobian = torch.cat([row for name, row in rows.items() if names is None or name in names], dim=1)
    return jacobian @ jacobian.mT


@pytest.mark.parametrize("name", KNOWN)
def test_the_matrix_and_what_is_read_off_it_are_those_of_the_jacobian(name):
    lin, rows = case(name)
    expected = kernel(rows)
    ntk = kp.Ntk(lin, readout="outputs")
    torch.testing.assert_close(to_dense(ntk), expected, rtol=1e-10, atol=1e-12)
    known = ntk.structure
    torch.testing.assert_close(known.matrix().compute(), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(known.diagonal().compute().flatten(), expected.diagonal(), rtol=1e-10, atol=1e-12)
    assert known.trace().compute() == pytest.approx(float(expected.trace()), rel=1e-12)
    assert known.squared_norm().compute() == pytest.approx(float(expected.square().sum()), rel=1e-12)
    values = torch.linalg.eigvalsh(expected).flip(0).clamp_min(0)
    torch.testing.assert_close(known.spectrum().compute(), values, rtol=1e-9, atol=1e-9 * float(values[0]))


@pytest.mark.parametrize("name", KNOWN)
def test_products_agree_with_the_matrix(name):
    lin, rows = case(name)
    ntk = kp.Ntk(lin, readout="outputs")
    vector = randn(3, *ntk.in_space.shape, seed=5)
    torch.testing.assert_close(ntk(vector).flatten(1), vector.flatten(1) @ kernel(rows), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", UNKNOWN)
def test_products_take_over_where_no_structure_is_known(name):
    lin, rows = case(name)
    ntk = kp.Ntk(lin, readout="outputs")
    assert ntk.structure is None
    torch.testing.assert_close(to_dense(ntk), kernel(rows), rtol=1e-10, atol=1e-12)


def test_trials_that_meet_are_found_and_others_are_told_apart():
    assert case("trials meet")[0].trials() is None
    trials = case("recurrent, trials second")[0].trials()
    assert trials.count == 3
    assert trials.outputs.reshape(5, 3, 8)[0, :, 0].tolist() == [0, 1, 2]


def test_some_parameters_alone():
    lin, rows = case("mlp")
    ntk = kp.Ntk(lin, params=["0.weight", "2.bias"], readout="outputs")
    expected = kernel(rows, ["0.weight", "2.bias"])
    torch.testing.assert_close(ntk.structure.matrix().compute(), expected, rtol=1e-10, atol=1e-12)
    assert kp.Ntk(lin, metric=torch.ones(lin.parameters.size, dtype=F64), readout="outputs").structure is None


def test_the_estimates_take_the_exact_values():
    lin, rows = case("mlp")
    ntk = kp.Ntk(lin, readout="outputs")
    estimate = kp.estimate.trace(ntk, method="exact")
    assert estimate.standard_error == 0
    assert estimate.value == pytest.approx(float(kernel(rows).trace()), rel=1e-12)
    assert kp.estimate.frobenius_norm(ntk, method="exact").value == pytest.approx(float(kernel(rows).norm()), rel=1e-12)


def test_positions_and_units_that_are_done_in_pieces_give_the_same(monkeypatch):
    monkeypatch.setattr("kpflow.flow.outputs.CHUNK_BYTES", 1)
    lin, rows = case("convolutional")
    known = kp.Ntk(lin, readout="outputs").structure
    torch.testing.assert_close(known.matrix().compute(), kernel(rows), rtol=1e-10, atol=1e-12)
    assert known.trace().compute() == pytest.approx(float(kernel(rows).trace()), rel=1e-12)


def test_what_does_not_fit_the_memory_is_not_offered(monkeypatch):
    known = kp.Ntk(case("mlp")[0], readout="outputs").structure
    monkeypatch.setattr("kpflow.flow.outputs.MEMORY", 1000)
    assert known.matrix() is None
    assert known.squared_norm() is None
    assert known.spectrum() is None
    monkeypatch.setattr("kpflow.flow.outputs.MEMORY", 10)
    assert known.trace() is None
    assert known.diagonal() is None


def test_a_model_that_uses_a_parameter_at_the_output_itself_goes_by_products():
    model = seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))).to(F64)
    lin = kp.linearise(model, randn(4, 3, seed=0), states=["0"])
    assert lin.readout.has_parameters
    assert kp.Ntk(lin, readout="outputs").structure is None
