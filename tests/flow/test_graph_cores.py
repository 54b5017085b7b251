"""Cores of graphs: K is the sum of their kernels, and each is the Gram matrix that theory says."""

import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.operators import to_dense
from models import F64, randn, seeded


class Tied(nn.Module):
    """A language model whose unembedding is its embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)

    def forward(self, tokens):
        return self.layer(self.embed(tokens)) @ self.embed.weight.T


class Twice(nn.Module):
    """A layer used twice, and once more with its transpose."""

    def __init__(self, transposed=False):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.transposed = transposed

    def forward(self, x):
        h = self.layer(torch.tanh(self.layer(x)))
        return torch.tanh(h) @ self.layer.weight if self.transposed else h


TOKENS = torch.tensor([[0, 3, 3], [5, 0, 1]])
IMAGES = randn(2, 4, 5, 5, seed=1)

CASES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), randn(4, 3, seed=0), 2, 0),
    "grouped convolution": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU()), IMAGES, 1, 0),
    "norms": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Flatten(), nn.LayerNorm(100)), IMAGES, 2, 0),
    "layer used twice": (Twice, randn(4, 3, seed=0), 1, 0),
    "layer and its transpose": (lambda: Twice(transposed=True), randn(4, 3, seed=0), 1, 1),
    "tied embedding": (Tied, TOKENS, 6, 1),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 5)), randn(4, 3, seed=0), 1, 1),
    "bidirectional": (lambda: nn.GRU(3, 4, bidirectional=True, batch_first=True), randn(2, 3, 3, seed=0), 4, 0),
}


def linearised(name):
    build, inputs, _, _ = CASES[name]
    model = seeded(build()).to(F64).eval()
    return kp.linearise(model, inputs)


@pytest.mark.parametrize("name", CASES)
def test_k_is_the_sum_of_the_kernels_of_the_cores(name):
    lin = linearised(name)
    cores = kp.flow.cores(lin)
    whole = to_dense(kp.ParameterKernel(lin))
    parts = [to_dense(core.kernel) for core in cores.values()]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=1e-12)
    names = sorted(name for core in cores.values() for name in core.parameters)
    assert names == sorted(part.name for part in lin.parameters.parts)


@pytest.mark.parametrize("name", CASES)
def test_weights_with_their_biases_are_one_core_and_parameters_that_act_in_several_ways_another(name):
    _, _, alone, joint = CASES[name]
    cores = kp.flow.cores(linearised(name)).values()
    assert sum(isinstance(core, kp.flow.SiteCore) for core in cores) == alone
    assert sum(isinstance(core, kp.flow.JointCore) for core in cores) == joint


@pytest.mark.parametrize("name", CASES)
def test_the_spectrum_of_a_core_is_that_of_its_kernel(name):
    for core in kp.flow.cores(linearised(name)).values():
        expected = torch.linalg.eigvalsh(to_dense(core.kernel)).flip(0)
        found = core.spectrum.repeat_interleave(core.multiplicity)[: len(expected)]
        torch.testing.assert_close(found, expected[: len(found)], rtol=1e-9, atol=1e-10)
        assert bool((expected[core.rank * core.multiplicity :].abs() < 1e-10 * expected[0]).all())
        values = core.spectrum
        assert core.effective_rank == pytest.approx(float(values.sum() ** 2 / values.square().sum()), rel=1e-12)


def test_a_linear_layer_sees_its_inputs_and_a_column_of_ones():
    inputs = randn(4, 3, seed=0)
    core = kp.flow.cores(kp.linearise(seeded(nn.Linear(3, 5)).to(F64), inputs))["weight"]
    torch.testing.assert_close(core.gram, inputs @ inputs.mT + 1)
    assert core.multiplicity == 5
    assert set(core.parameters) == {"weight", "bias"}


def test_an_embedding_sees_the_equality_of_tokens():
    core = kp.flow.cores(kp.linearise(seeded(nn.Embedding(7, 4)).to(F64), TOKENS))["weight"]
    tokens = TOKENS.flatten()
    torch.testing.assert_close(core.gram, (tokens[:, None] == tokens).to(F64))


def test_the_channels_of_a_norm_see_themselves_and_a_constant():
    inputs = randn(6, 4, seed=0)
    core = kp.flow.cores(kp.linearise(nn.LayerNorm(4).to(F64), inputs))["weight"]
    seen = nn.functional.layer_norm(inputs, (4,)).mT
    torch.testing.assert_close(core.gram, seen[:, :, None] * seen[:, None, :] + 1)
    assert core.multiplicity == 1


def test_a_convolution_sees_patches():
    inputs = randn(2, 3, 5, 5, seed=0)
    core = kp.flow.cores(kp.linearise(seeded(nn.Conv2d(3, 2, 3, stride=2, padding=1)).to(F64), inputs))["weight"]
    patches = nn.functional.unfold(inputs, 3, stride=2, padding=1).mT.flatten(0, 1)
    torch.testing.assert_close(core.gram, patches @ patches.mT + 1)
