"""Objectives: their vectors at every stage against autograd, their interference against steps that are taken."""

import copy

import pytest
import torch
from torch import nn

import kpflow as kp
from models import F64, randn, seeded


class Network(nn.Module):
    """A GRU with a read-out."""

    def __init__(self):
        super().__init__()
        self.core = nn.GRU(2, 5, batch_first=True)
        self.read = nn.Linear(5, 2)

    def forward(self, inputs):
        return self.read(self.core(inputs)[0])


TARGET = randn(6, 4, 2, seed=2)
LOSSES = {
    "first trials": lambda y: (y[:3] - TARGET[:3]).square().mean(),
    "last trials": lambda y: (y[3:] - TARGET[3:]).square().mean(),
    "late": lambda y: (y[:, 2:] - TARGET[:, 2:]).square().sum(),
    "one channel": lambda y: y[..., 0].sin().sum(),
}


@pytest.fixture
def network():
    return seeded(Network())


@pytest.fixture
def inputs():
    return randn(6, 4, 2, seed=1)


def cosines(rows):
    flat = torch.nn.functional.normalize(rows.flatten(1), dim=1)
    return flat @ flat.mT


def test_gradients_and_losses_are_those_of_autograd(network, inputs):
    found = kp.flow.objectives(kp.linearise(network, inputs), LOSSES)
    for i, loss in enumerate(LOSSES.values()):
        value = loss(network(inputs))
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(network.parameters()))])
        torch.testing.assert_close(found.losses[i], value.detach())
        torch.testing.assert_close(found.gradients[i], gradient)


def test_each_stage_is_the_chain_of_one_objective(network, inputs):
    lin = kp.linearise(network, inputs)
    found = kp.flow.objectives(lin, LOSSES)
    chains = [kp.flow.response(lin, loss) for loss in LOSSES.values()]
    for stage in ("error", "adjoint", "gradient", "immediate", "change"):
        expected = torch.stack([getattr(chain, stage) for chain in chains])
        torch.testing.assert_close(found.at(stage), expected)
        torch.testing.assert_close(found.at(stage, ["late"]), expected[2:3])
        torch.testing.assert_close(found.alignments[stage], cosines(expected))
    assert float(found.alignments["error"][0, 1]) == 0  # other trials
    assert abs(float(found.alignments["change"][0, 1])) > 0.01  # meet in K


@pytest.mark.parametrize("probes", [1, 2, 3])
def test_small_memory_gives_the_same(network, inputs, probes):
    lin = kp.linearise(network, inputs)
    whole = kp.flow.objectives(lin, LOSSES)
    least = kp.flow.objectives(lin, LOSSES, memory=4 * probes * lin.states.nbytes)
    torch.testing.assert_close(least.gradients, whole.gradients)
    for stage, table in whole.alignments.items():
        torch.testing.assert_close(least.alignments[stage], table)


def test_interference_is_what_steps_do_to_first_order(network, inputs):
    found = kp.flow.objectives(kp.linearise(network, inputs), LOSSES)
    before = torch.stack([loss(network(inputs)).detach() for loss in LOSSES.values()])
    worst = []
    for rate in (1e-3, 5e-4):
        misses = []
        for j, gradient in enumerate(found.gradients):
            moved = copy.deepcopy(network)
            parts = gradient.split([p.numel() for p in moved.parameters()])
            with torch.no_grad():
                for parameter, part in zip(moved.parameters(), parts, strict=True):
                    parameter.sub_(rate * part.reshape(parameter.shape))
                after = torch.stack([loss(moved(inputs)) for loss in LOSSES.values()])
            misses.append((after - before) / rate - found.interference[:, j])
        worst.append(float(torch.stack(misses).abs().max()))
    assert worst[0] < 0.02 * float(found.interference.abs().max())
    assert worst[1] == pytest.approx(worst[0] / 2, rel=0.1)  # the error of the first order is of the second


def test_objectives_of_states(network, inputs):
    lin = kp.linearise(network.core, inputs)
    found = kp.flow.objectives(lin, {"a": lambda s: s[..., 0].sum(), "b": lambda s: s.square().sum()}, of="states")
    ntk = kp.operators.to_dense(kp.Ntk(lin))
    errors = found.errors.flatten(1)
    torch.testing.assert_close(found.interference, -errors @ ntk @ errors.mT)
    torch.testing.assert_close(found.alignments["change"], cosines(errors @ ntk))


def test_objectives_of_a_network_that_is_no_recurrence():
    model, inputs = seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))), randn(5, 3, seed=1)
    found = kp.flow.objectives(
        kp.linearise(model, inputs), {"a": lambda y: y[:, 0].sum(), "b": lambda y: y.square().sum()}
    )
    outputs = model(inputs)
    rows = [torch.autograd.grad(v, list(model.parameters()), retain_graph=True) for v in
            (outputs[:, 0].sum(), outputs.square().sum())]  # fmt: skip
    gradients = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    torch.testing.assert_close(found.gradients, gradients)
    torch.testing.assert_close(found.interference, -gradients @ gradients.mT)


BAD = {
    "zero error": ({"a": lambda y: (0 * y).sum()}, "has zero error: its mask is empty"),
    "other batch": ({"a": lambda y: (y - torch.zeros(5, 4, 2)).square().sum()}, r"`losses\['a'\]` fails .*\(6, 4, 2\)"),
    "no scalar": ({"a": lambda y: y[0]}, "must give a scalar tensor"),
    "no graph": ({"a": lambda _: torch.ones(())}, "must depend on its argument"),
    "not finite": ({"a": lambda y: (y / 0).sum()}, "must be finite"),
    "none": ({}, "`losses` must hold at least one objective"),
}


@pytest.mark.parametrize("name", BAD)
def test_objectives_that_say_nothing_are_refused(name, network, inputs):
    losses, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        kp.flow.objectives(kp.linearise(network, inputs), losses)


def test_an_objective_that_no_parameter_moves_is_refused(network, inputs):
    network.core.requires_grad_(False)
    with pytest.raises(ValueError, match=r"The objectives \['late'\] vanish at the stage"):
        kp.flow.objectives(kp.linearise(network, inputs, core="core"), {"late": LOSSES["late"]})


def test_names_and_numbers_are_checked(network, inputs):
    lin = kp.linearise(network, inputs)
    found = kp.flow.objectives(lin, LOSSES)
    with pytest.raises(ValueError, match="`stage` must be one of 'error', 'adjoint'"):
        found.at("errors")
    with pytest.raises(ValueError, match="`names` must be one of 'first trials'"):
        found.at("error", ["first"])
    with pytest.raises(ValueError, match="`of` must be one of 'outputs', 'states'"):
        kp.flow.objectives(lin, LOSSES, of="inputs")
    with pytest.raises(ValueError, match="`memory` must be a positive whole number"):
        kp.flow.objectives(lin, LOSSES, memory=0)
    step = kp.linearise(
        lambda h, x, p: torch.tanh(h * p["w"] + x),
        inputs,
        initial=torch.zeros(6, 2, dtype=F64),
        parameters={"w": torch.ones(2, dtype=F64, requires_grad=True)},
    )
    with pytest.raises(ValueError, match="The model has no outputs"):
        kp.flow.objectives(step, LOSSES)


def test_what_is_no_linearisation_or_no_loss_by_name_is_refused(network, inputs):
    lin = kp.linearise(network, inputs, core="core")
    with pytest.raises(TypeError, match=r"`linearisation` must be that of kp\.linearise; got list\. Objectives are"):
        kp.flow.objectives([lin, lin], LOSSES)
    for losses in ([LOSSES["late"]], {"late": 3.0}):
        with pytest.raises(TypeError, match="`losses` must map names to functions of the outputs; got"):
            kp.flow.objectives(lin, losses)
