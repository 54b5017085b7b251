"""Recurrent networks on both routes, and on the graph route alone where the recurrent one does not go."""

import functools

import pytest
import torch
from torch import Tensor, nn

import kpflow as kp
from graph_cases import made, ready
from graph_dynamics import KINDS, LRU, S4D, MultiPlasticity, S4DKernel, Selective
from helpers import close
from kpflow.operators import to_dense
from kpflow.states import Linearisation
from kpflow.states.graph import GraphLinearisation
from models import randn, seeded

TOLERANCE = 1e-10
B, T, I, H = 2, 4, 3, 4

CASES = {f"{kind}-{layers}": (kind, layers) for kind in KINDS for layers in (1, 2)}


def initial(kind: str, layers: int) -> Tensor | tuple[Tensor, Tensor]:
    hidden = randn(layers, B, H, seed=2)
    return (hidden, randn(layers, B, H, seed=3)) if kind == "LSTM" else hidden


@functools.cache
def both(name: str) -> tuple[Linearisation, Linearisation]:
    """The same network from a given initial state, on the recurrent route and on the graph route."""
    kind, layers = CASES[name]
    model, x = seeded(getattr(nn, kind)(I, H, layers, batch_first=layers == 1)), randn(B, T, I, seed=1)
    x = x if model.batch_first else x.transpose(0, 1).contiguous()
    start = initial(kind, layers)
    recurrent = kp.linearise(model, x, initial=start)
    graph = kp.linearise(model, (x, start), route="graph")
    assert type(recurrent) is not type(graph)
    return recurrent, graph


def batch_first(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows and columns in the order `[B, T, ...]`, of a matrix whose order may be `[T, B, ...]`."""
    if shape[:2] == (B, T):
        return matrix
    order = torch.arange(shape.numel()).reshape(shape).transpose(0, 1).flatten()
    return matrix[order][:, order]


@pytest.mark.parametrize("name", CASES)
def test_output_ntk_is_that_of_the_recurrent_route(name):
    recurrent, graph = both(name)
    shape = graph.readout.outputs.shape
    ours = batch_first(to_dense(kp.Ntk(graph, readout="outputs")), shape)
    theirs = batch_first(to_dense(kp.Ntk(recurrent, readout="outputs")), recurrent.readout.outputs.shape)
    close(ours, theirs, TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_output_traces_are_those_of_the_recurrent_route(name):
    """Exact ones, and those of the same probes: signs over the same space of outputs."""
    ntks = [kp.Ntk(lin, readout="outputs") for lin in both(name)]
    ours, theirs = (float(kp.estimate.trace(ntk, method="exact")) for ntk in ntks)
    assert ours == pytest.approx(theirs, rel=TOLERANCE)
    if CASES[name][1] == 1:  # of both routes batch-first
        ours, theirs = (float(kp.estimate.trace(ntk, method="hutchinson", budget=8)) for ntk in ntks)
        assert ours == pytest.approx(theirs, rel=TOLERANCE)


@pytest.mark.parametrize("layers", [1, 2])
def test_states_of_a_network_named_in_its_graph_give_the_operators_of_the_recurrent_route(layers):
    """The hidden states are what tanh gives, in the order of the graph: layer after layer, time after time."""
    model, x = seeded(nn.RNN(I, H, layers, batch_first=True)), randn(B, T, I, seed=1)
    recurrent, graph = kp.linearise(model, x), kp.linearise(model, x, states=["tanh*"])
    order = torch.arange(layers * T * B * H).reshape(layers, T, B, H).permute(2, 1, 0, 3).flatten()
    close(graph.states[order], recurrent.states.flatten(), TOLERANCE)
    for kind in (kp.Propagator, kp.ParameterKernel, kp.Ntk):
        close(to_dense(kind(graph))[order][:, order], to_dense(kind(recurrent)), TOLERANCE)
    inverse = to_dense(kp.Propagator(graph).inverse)[order][:, order]
    close(inverse, to_dense(kp.Propagator(recurrent).inverse), TOLERANCE)
    assert float(kp.estimate.trace(kp.Ntk(graph), method="exact")) == pytest.approx(
        float(kp.estimate.trace(kp.Ntk(recurrent), method="exact")), rel=TOLERANCE
    )


@pytest.mark.parametrize("kind", KINDS)
def test_bidirectional_layer_is_two_networks_of_which_one_runs_backwards(kind):
    model, x = seeded(getattr(nn, kind)(I, H, batch_first=True, bidirectional=True)), randn(B, T, I, seed=1)
    lin = kp.linearise(model, x)
    assert isinstance(lin, GraphLinearisation)
    ntk = to_dense(kp.Ntk(lin, readout="outputs")).reshape(B, T, 2, H, B, T, 2, H)
    for direction, suffix in enumerate(("", "_reverse")):
        one = getattr(nn, kind)(I, H, batch_first=True).to(torch.float64)
        one.load_state_dict({name: model.get_parameter(name + suffix) for name, _ in one.named_parameters()})
        alone = kp.linearise(one, x.flip(1) if direction else x)
        assert type(alone) is not type(lin)
        expected = to_dense(kp.Ntk(alone, readout="outputs")).reshape(B, T, H, B, T, H)
        expected = expected.flip(1, 4) if direction else expected
        close(ntk[:, :, direction, :, :, :, direction], expected, TOLERANCE)
    assert not ntk[:, :, 0, :, :, :, 1].any()


def test_projection_is_a_network_with_products_of_weights():
    """An LSTM that projects its state is one whose recurrent weights see the projection."""
    model, x = seeded(nn.LSTM(I, H, batch_first=True, proj_size=2)), randn(B, T, I, seed=1)
    cell = made(projected, w=(4 * H, I), u=(4 * H, 2), b=(4 * H,), c=(4 * H,), p=(2, H)).to(torch.float64)
    with torch.no_grad():
        for ours, theirs in zip(cell.parameters(), model.parameters(), strict=True):
            ours.copy_(theirs)
    lins = [kp.linearise(m, x) for m in (model, cell)]
    assert [type(lin) for lin in lins] == [GraphLinearisation, GraphLinearisation]
    one, other = (to_dense(kp.Ntk(lin, readout="outputs")) for lin in lins)
    close(one, other, TOLERANCE)


def projected(m, x):
    h, c, found = x.new_zeros(len(x), 2), x.new_zeros(len(x), H), []
    for u in x.unbind(1):
        i, f, g, o = (u @ m.w.mT + m.b + h @ m.u.mT + m.c).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = (torch.sigmoid(o) * torch.tanh(c)) @ m.p.mT
        found.append(h)
    return torch.stack(found, 1)


def test_state_space_scan_is_its_convolution():
    scan, x = seeded(S4D(I, 2), scale=0.5), randn(B, T, I, seed=1)
    one, other = (kp.linearise(model, x) for model in (scan, S4DKernel(scan)))
    close(one.readout.outputs, other.readout.outputs, TOLERANCE)
    ours, theirs = (to_dense(kp.Ntk(lin, readout="outputs")) for lin in (one, other))
    close(ours, theirs, TOLERANCE)


def test_linear_recurrent_unit_is_a_sum_of_powers():
    model, x = seeded(LRU(I, 2), scale=0.5), randn(B, T, I, seed=1)
    kept = torch.polar(torch.exp(-model.radius.exp()), model.angle.exp()).detach()
    driven = (model.gain.exp() * torch.complex(model.real(x), model.imaginary(x))).detach()
    states = torch.stack([sum(kept ** (t - s) * driven[:, s] for s in range(t + 1)) for t in range(T)], dim=1)
    expected = model.output(torch.view_as_real(states).flatten(-2)).detach()
    close(kp.linearise(model, x).readout.outputs, expected, TOLERANCE)


def test_selection_that_does_not_depend_on_the_input_is_a_linear_filter():
    """With a constant step and constant weights in and out, the selective recurrence is a convolution over time."""
    model, x = seeded(Selective(I, 2), scale=0.5), randn(B, T, I, seed=1)
    with torch.no_grad():
        model.select.weight[0] = 0.0  # the step is softplus of its bias
    model.select.register_forward_hook(lambda _, __, out: torch.cat([out[..., :1], torch.ones_like(out[..., 1:])], -1))
    u, gate = model.expand(x).chunk(2, -1)
    u = nn.functional.silu(model.mix(u.mT)[..., :T].mT)
    step = nn.functional.softplus(model.step.bias)
    powers = torch.exp(-step[:, None, None] * model.decay.exp()[..., None] * torch.arange(T)).sum(1)  # [C, T]
    kernel = step[:, None] * powers
    kernel[:, 0] += model.skip
    mixed = torch.stack([sum(kernel[:, t - s] * u[:, s] for s in range(t + 1)) for t in range(T)], dim=1)
    expected = model.contract(mixed * nn.functional.silu(gate)).detach()
    close(model(x).detach(), expected, TOLERANCE)


def test_without_learning_a_network_of_plastic_weights_is_a_perceptron():
    """With η = 0 the slow weights alone act; the fast ones' parameters still can, through what η would bring."""
    model, x = seeded(MultiPlasticity(I, 2), scale=0.5), randn(B, T, I, seed=1)
    with torch.no_grad():
        model.learn.zero_()
    plain = ready(nn.Sequential(nn.Linear(I, 2, bias=False), nn.Tanh(), nn.Linear(2, 2)), x).model
    with torch.no_grad():
        for ours, theirs in zip(plain.parameters(), (model.weight, *model.readout.parameters()), strict=True):
            ours.copy_(theirs)
    full = kp.Ntk(kp.linearise(model, x), readout="outputs").jacobian
    slow = kp.Ntk(kp.linearise(plain, x), readout="outputs").jacobian
    block = torch.eye(full.out_space.size, dtype=torch.float64).reshape(-1, *full.out_space.shape)
    ours = full.in_space.split(full.T(block))
    theirs = slow.in_space.split(slow.T(block)).values()
    for name, expected in zip(("weight", "readout.weight", "readout.bias"), theirs, strict=True):
        close(ours[name], expected, TOLERANCE)
    assert not ours["forget"].any()
    assert ours["learn"].any()
