"""Operators of networks on blocks of every kind: with gradients, without probes, in any layout, never overwritten."""

import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.states.cells import RateRNN
from models import F64, randn, seeded


class Decoder(nn.Module):
    """An encoder, two layers and a read-out."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.encoder, self.core, self.readout = nn.Linear(2, 3), nn.LSTM(3, 4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, inputs):
        return self.readout(self.core(torch.tanh(self.encoder(inputs)))[0])


class Step(nn.Module):
    """A step that is known by automatic differentiation only."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(2, 4)

    def forward(self, state, inputs):
        return torch.tanh(self.inner(state) + self.outer(inputs))


MODELS = {
    "gru": (lambda: nn.GRU(2, 4, 2, batch_first=True), {}),
    "decoder": (Decoder, {"core": "core"}),
    "rate": (lambda: RateRNN(2, 4), {}),
    "step": (Step, {"initial": torch.zeros(3, 4, dtype=F64)}),
}


def operators(name: str) -> list[kp.operators.Operator]:
    make, keywords = MODELS[name]
    lin = kp.linearise(seeded(make()), randn(3, 5, 2, seed=1), **keywords)
    P, K, ntk = kp.Propagator(lin), kp.ParameterKernel(lin), kp.Ntk(lin)
    found = [P, P.inverse, K, K.jacobian, K.factor, ntk, ntk.jacobian, ntk.factor]
    if lin.readout is not None:
        outputs = kp.Ntk(lin, readout="outputs")
        found += [outputs, outputs.jacobian]
    return [*found, *(op.T for op in found)]


@pytest.mark.parametrize("name", MODELS)
def test_gradients_go_through_the_adjoint(name):
    for op in operators(name):
        v = randn(2, *op.in_shape, seed=2).requires_grad_()
        image, weights = op(v), randn(2, *op.out_shape, seed=3)
        (gradient,) = torch.autograd.grad((image * weights).sum(), v)
        torch.testing.assert_close(gradient, op.T(weights))
        torch.testing.assert_close(image.detach(), op(v.detach()))


def test_second_derivatives_and_torch_func():
    op = operators("gru")[5]
    v = randn(*op.in_shape, seed=2).requires_grad_()
    (first,) = torch.autograd.grad(op(v).square().sum() / 2, v, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), v)
    torch.testing.assert_close(second, op(op(torch.ones_like(v))))
    torch.testing.assert_close(torch.func.grad(lambda x: op(x).square().sum() / 2)(v.detach()), first.detach())


@pytest.mark.parametrize("name", MODELS)
def test_blocks_without_probes(name):
    for op in operators(name):
        assert op(torch.zeros(0, 2, *op.in_shape, dtype=F64)).shape == (0, 2, *op.out_shape)


@pytest.mark.parametrize("name", MODELS)
def test_blocks_in_any_layout_stay_as_they_are(name):
    for op in operators(name):
        v = randn(3, *op.in_shape, seed=2)
        image = op(v.clone())
        turned = v.movedim(0, -1).contiguous().movedim(-1, 0)
        for block in (v, turned, v.flip(0).flip(0), torch.stack([v, v], dim=-1)[..., 0]):
            torch.testing.assert_close(op(block), image)
            assert torch.equal(block, v)
        torch.testing.assert_close(op(v[:1].expand_as(v))[2], image[0])


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_numbers_are_the_same_in_every_mode(mode):
    reference = [kp.estimate.trace(op, method="exact").value for op in operators("decoder")[2:6:3]]
    with mode():
        inside = operators("decoder")[2:6:3]
        assert [kp.estimate.trace(op, method="exact").value for op in inside] == reference
        vector = torch.ones(inside[0].in_shape, dtype=F64)
    assert [kp.estimate.trace(op, method="exact").value for op in inside] == reference
    assert bool(inside[0](vector).isfinite().all())
