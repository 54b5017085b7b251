"""A check from outside: the NTK and the cores of wide perceptrons approach closed forms, as width^(−1/2)."""

import math

import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.flow import expectations, infinite_perceptron, infinite_recurrent
from kpflow.operators import to_dense
from models import F64, randn

WIDTHS, NETWORKS, OUTPUTS, DEPTH, VARIANCE = (16, 48, 144), 32, 3, 3, 0.1


class Layer(nn.Module):
    """√(g/n) W v + b with W of N(0, 1) and b of N(0, VARIANCE), of NETWORKS networks at once."""

    def __init__(self, size, units, gain, generator):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(NETWORKS, size, units, generator=generator, dtype=F64))
        bias = torch.randn(NETWORKS, 1, units, generator=generator, dtype=F64)
        self.bias = nn.Parameter(VARIANCE**0.5 * bias)
        self.scale = (gain / size) ** 0.5

    def forward(self, v):
        return torch.bmm(self.scale * v, self.weight) + self.bias


class Networks(nn.Module):
    """Perceptrons with two hidden layers; every network is a group of the cores."""

    def __init__(self, inputs, width, generator):
        super().__init__()
        self.first = Layer(inputs, width, 1.0, generator)
        self.second = Layer(width, width, 2.0, generator)
        self.third = Layer(width, OUTPUTS, 2.0, generator)

    def forward(self, x):
        hidden = torch.relu(self.first(x.expand(NETWORKS, -1, -1)))
        return self.third(torch.relu(self.second(hidden))).transpose(0, 1)  # [trial, network, output]


def relative_deviations(width, x):
    """From the limits, in units of their norm, `[network, ...]` by quantity."""
    lin = kp.linearise(Networks(x.shape[1], width, torch.Generator().manual_seed(0)), x)
    matrix = to_dense(kp.Ntk(lin, readout="outputs"))  # assembled from the cores
    infinite = infinite_perceptron(x, DEPTH, bias=VARIANCE)
    limit = torch.kron(infinite.ntk, torch.eye(OUTPUTS, dtype=F64))
    blocks = matrix.reshape(2 * (len(x), NETWORKS, OUTPUTS)).diagonal(dim1=1, dim2=4).movedim(-1, 0)
    found = {"ntk": (blocks.reshape(NETWORKS, *limit.shape), limit)}
    for (name, core), wanted in zip(kp.flow.cores(lin).items(), infinite.cores, strict=True):
        found[name] = core.gram, wanted
    return {name: (A - wanted) / wanted.norm() for name, (A, wanted) in found.items()}


@pytest.fixture(scope="module")
def deviations():
    """By quantity and width."""
    runs = [relative_deviations(width, randn(5, 4, seed=1)) for width in WIDTHS]
    return {name: [run[name] for run in runs] for name in runs[0]}


def root_mean_square(deviation):
    return float(torch.linalg.matrix_norm(deviation).square().mean().sqrt())


def test_closed_form_where_it_is_known():
    covariance = torch.tensor([[4.0, 0.0, -4.0], [0.0, 1.0, 0.0], [-4.0, 0.0, 4.0]], dtype=F64)
    values, slopes = (2 * part for part in expectations("relu", covariance))
    half = 2 / math.pi
    expected = torch.tensor([[4.0, half, 0.0], [half, 1.0, half], [0.0, half, 4.0]], dtype=F64)
    assert torch.allclose(values, expected, atol=1e-12)
    expected = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]], dtype=F64)
    assert torch.allclose(slopes, expected, atol=1e-12)


@pytest.mark.parametrize("name", ["ntk", "second", "third"])
def test_wide_networks_approach_the_limit_as_one_over_the_root_of_the_width(deviations, name):
    sizes = torch.tensor([root_mean_square(deviation) for deviation in deviations[name]], dtype=F64)
    assert bool((sizes.diff() < 0).all())
    logarithms = torch.stack([torch.tensor(WIDTHS, dtype=F64).log(), torch.ones(len(WIDTHS), dtype=F64)], dim=1)
    slope = float(torch.linalg.lstsq(logarithms, sizes.log()).solution[0])
    assert abs(slope + 0.5) < 0.1


@pytest.mark.parametrize("name", ["ntk", "second", "third"])
def test_the_mean_over_networks_is_the_limit(deviations, name):
    # to the order of 1/width, which is below the error of the mean
    widest = deviations[name][-1]
    assert float(widest.mean(0).norm()) < 2.5 * root_mean_square(widest) / NETWORKS**0.5


def test_the_first_core_is_known_at_any_width(deviations):
    assert max(map(root_mean_square, deviations["first"])) < 1e-14


def test_expectations_keep_all_digits_near_the_diagonal():
    variances = torch.rand(200, generator=torch.Generator().manual_seed(0)).add(0.1)
    for dtype, tolerance in ((torch.float32, 1e-7), (F64, 1e-16)):
        _, slopes = expectations("relu", variances.to(dtype).diag_embed() + 0.01)
        assert float((slopes.diagonal() - 0.5).abs().max()) <= tolerance
    for size in (1e4, 1e8):
        _, slopes = expectations("erf", torch.full((1, 1), size))
        assert float(slopes) == pytest.approx((4 / math.pi) / math.sqrt(1 + 4 * size), rel=1e-6)


@pytest.mark.parametrize("nonlinearity", ["relu", "erf"])
def test_expectations_are_those_of_gaussians(nonlinearity):
    covariance = torch.tensor([[1.3, 0.4], [0.4, 0.7]], dtype=F64)
    nodes = torch.linspace(-8, 8, 1601, dtype=F64)
    weights = torch.exp(-nodes.square() / 2) * (nodes[1] - nodes[0]) / math.sqrt(2 * math.pi)
    grid = torch.stack(torch.meshgrid(nodes, nodes, indexing="ij")).flatten(1)
    u = torch.linalg.cholesky(covariance) @ grid
    if nonlinearity == "relu":
        phi, slope = torch.relu(u), (u > 0).to(F64)
    else:
        phi, slope = torch.erf(u), 2 / math.sqrt(math.pi) * torch.exp(-u.square())
    measure = weights.outer(weights).flatten()
    values, slopes = expectations(nonlinearity, covariance)
    torch.testing.assert_close((phi * measure) @ phi.mT, values, atol=1e-4, rtol=0)
    torch.testing.assert_close((slope * measure) @ slope.mT, slopes, atol=3e-3, rtol=0)


@pytest.mark.parametrize("nonlinearity", ["relu", "erf"])
def test_a_recurrent_network_of_infinite_width(nonlinearity):
    x, width, count = randn(2, 3, 4, seed=2), 128, 40
    limit = infinite_recurrent(x, nonlinearity=nonlinearity, recurrent=1.5, drive=0.8, bias=0.2)
    phi = {"relu": torch.relu, "erf": torch.erf}[nonlinearity]
    generator = torch.Generator().manual_seed(0)

    def states(parameters):
        h, kept = torch.zeros(2, width, dtype=F64), []
        for t in range(3):
            seen = (1.5 / width) ** 0.5 * phi(h) @ parameters["W"] if t else 0.0
            h = seen + (0.8 / 4) ** 0.5 * x[:, t] @ parameters["U"] + 0.2**0.5 * parameters["b"]
            kept.append(h)
        return torch.stack(kept, dim=1)

    ntk, covariance, outputs = [], [], []
    for _ in range(count):
        shapes = {"W": (width, width), "U": (4, width), "b": (width,)}
        drawn = {name: torch.randn(shape, generator=generator, dtype=F64) for name, shape in shapes.items()}
        h, pullback = torch.func.vjp(states, drawn)
        covariance.append(torch.einsum("btn,cun->btcu", h, h) / width)
        outputs.append(torch.einsum("btn,cun->btcu", phi(h), phi(h)) / width)
        probes = torch.zeros(6, 2, 3, width, dtype=F64)
        probes.view(6, 6, width)[range(6), range(6), 0] = 1.0
        rows = torch.func.vmap(pullback)(probes)[0]
        flat = torch.cat([part.flatten(1) for part in rows.values()], dim=1)
        ntk.append((flat @ flat.mT).reshape(2, 3, 2, 3))
    for found, wanted in ((ntk, limit.ntk), (covariance, limit.covariance), (outputs, limit.output_covariance)):
        deviation = torch.stack(found) - wanted  # of the order of 1/width in the mean, beside its error
        error = float(deviation.flatten(1).norm(dim=1).square().mean().sqrt()) / count**0.5
        assert float(deviation.mean(0).norm()) < 2.5 * error + float(wanted.norm()) / width
        assert error < 0.1 * float(wanted.norm())


def test_the_output_of_a_recurrent_network_learns_too():
    x = randn(1, 3, 2, seed=3)
    limit = infinite_recurrent(x, recurrent=1.2, bias=0.1)
    values, slopes = expectations("erf", limit.covariance[0, :, 0])
    torch.testing.assert_close(limit.output_ntk[0, :, 0], values + slopes * limit.ntk[0, :, 0])
    assert torch.equal(limit.covariance[:, 0, :, 0], limit.ntk[:, 0, :, 0])


def test_a_limit_is_refused_where_there_is_none():
    x = randn(2, 3, seed=1)
    with pytest.raises(ValueError, match="`nonlinearity` must be one of 'relu', 'erf'"):
        infinite_perceptron(x, 2, nonlinearity="tanh")
    with pytest.raises(ValueError, match="`depth` must be a positive whole number"):
        infinite_perceptron(x, 0)
    with pytest.raises(ValueError, match=r"`inputs` must have shape \(N, m\); got \(0, 3\)"):
        infinite_perceptron(x[:0], 2)
    with pytest.raises(ValueError, match="`covariance` must have a positive diagonal; its least entry is 0"):
        infinite_perceptron(torch.zeros(2, 3, dtype=F64), 2)
    with pytest.raises(ValueError, match="`recurrent` must be a positive number"):
        infinite_recurrent(randn(1, 2, 3, seed=1), recurrent=-1.0)
    with pytest.raises(ValueError, match="`bias` must be a number at least 0"):
        infinite_recurrent(randn(1, 2, 3, seed=1), bias=-0.1)
    with pytest.raises(ValueError, match="`inputs` must be finite; got NaN"):
        infinite_recurrent(torch.full((1, 2, 3), math.nan, dtype=F64))
