"""A check from outside: the NTK and the cores of wide perceptrons approach closed forms, as width^(−1/2)."""

import math

import pytest
import torch
from torch import nn

import kpflow as kp
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


def arc_cosines(covariance):
    """2 E φ(u) φ(v) and 2 E φ′(u) φ′(v) for the rectifier φ and Gaussian u, v (Cho and Saul 2009)."""
    sizes = covariance.diagonal().sqrt()
    angle = (covariance / sizes.outer(sizes)).clamp(-1, 1).acos()
    first = sizes.outer(sizes) * (angle.sin() + (math.pi - angle) * angle.cos()) / math.pi
    return first, (math.pi - angle) / math.pi


def limits(x):
    """Cores by layer and the NTK of one output, of infinite width."""
    seen = x @ x.mT / x.shape[1]
    cores, theta = [seen + 1], seen + 1
    for _ in range(DEPTH - 1):
        seen, slopes = arc_cosines(seen + VARIANCE)
        cores.append(seen + 1)
        theta = seen + 1 + slopes * theta
    return cores, theta


def relative_deviations(width, x):
    """From the limits, in units of their norm, `[network, ...]` by quantity."""
    lin = kp.linearise(Networks(x.shape[1], width, torch.Generator().manual_seed(0)), x)
    matrix = to_dense(kp.Ntk(lin, readout="outputs"))  # assembled from the cores
    cores, theta = limits(x)
    limit = torch.kron(theta, torch.eye(OUTPUTS, dtype=F64))
    blocks = matrix.reshape(2 * (len(x), NETWORKS, OUTPUTS)).diagonal(dim1=1, dim2=4).movedim(-1, 0)
    found = {"ntk": (blocks.reshape(NETWORKS, *limit.shape), limit)}
    for (name, core), wanted in zip(kp.flow.cores(lin).items(), cores, strict=True):
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
    values, slopes = arc_cosines(covariance)
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
