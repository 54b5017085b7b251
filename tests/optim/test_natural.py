"""The natural gradient: its factor against dense matrices, its steps against formulas, and a bifurcation."""

import copy
import itertools

import pytest
import torch
from benchmarks.optimisers import steps_to
from torch import nn

import kpflow as kp
from kpflow.optim import NaturalGradient
from kpflow.optim.curvature import Curvature, OfGraph
from models import F64, randn, seeded


def problem(outputs=2):
    """A small network with more parameters than outputs, and its exact J at the start."""
    model = seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs))).to(F64)
    inputs, targets = randn(5, 3, seed=1), randn(5, outputs, seed=2)
    values = {name: value.detach() for name, value in model.named_parameters()}
    rows = torch.func.jacrev(lambda v: torch.func.functional_call(model, v, inputs))(values)
    jacobian = torch.cat([row.reshape(5 * outputs, -1) for row in rows.values()], dim=1)
    return model, inputs, targets, jacobian


def squares(model, inputs, targets):
    def closure():
        outputs = model(inputs)
        return 0.5 * (outputs - targets).square().sum(), outputs

    return closure


def curvature_of(shards, model):
    parameters = list(model.parameters())
    return Curvature(shards, [OfGraph(outputs, parameters) for _, outputs in shards], parameters)


def flat_parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradient_of(closure, model):
    loss, _ = closure()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_curvature_is_that_of_the_gauss_newton_matrix():
    model, inputs, targets, jacobian = problem()
    curvature = curvature_of([squares(model, inputs, targets)()], model)
    block = randn(3, jacobian.shape[1], seed=3)
    torch.testing.assert_close(curvature(block), block @ jacobian.mT @ jacobian)


def test_curvature_of_cross_entropy_is_the_fisher_information():
    model, inputs, _, jacobian = problem(outputs=3)
    outputs = model(inputs)
    loss = nn.functional.cross_entropy(outputs, torch.tensor([0, 2, 1, 1, 0]), reduction="sum")
    p = outputs.detach().softmax(1)
    metric = torch.block_diag(*(torch.diag(row) - torch.outer(row, row) for row in p))
    block = randn(3, jacobian.shape[1], seed=3)
    expected = block @ jacobian.mT @ metric @ jacobian
    torch.testing.assert_close(curvature_of([(loss, outputs)], model)(block), expected)


def test_a_loss_that_is_linear_in_the_outputs_counts_them_alike():
    model, inputs, _, jacobian = problem()
    outputs = model(inputs)
    block = randn(3, jacobian.shape[1], seed=3)
    found = curvature_of([(outputs.sum(), outputs)], model)(block)
    torch.testing.assert_close(found, block @ jacobian.mT @ jacobian / outputs.numel())


def test_leading_eigenpairs_are_those_of_the_matrix():
    model, inputs, targets, jacobian = problem()
    curvature = curvature_of([squares(model, inputs, targets)()], model)
    found = curvature.leading(randn(6, jacobian.shape[1], seed=4), 8)
    values, vectors = torch.linalg.eigh(jacobian.mT @ jacobian)
    torch.testing.assert_close(found.values[:4], values.flip(0)[:4], rtol=1e-6, atol=0)
    overlap = (found.vectors[:3] @ vectors.flip(1)[:, :3]).abs()
    torch.testing.assert_close(overlap, torch.eye(3, dtype=F64), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.vectors @ found.vectors.mT, torch.eye(6, dtype=F64))


@pytest.mark.parametrize("form", ["flat", "damped"])
def test_a_step_is_the_formula(form):
    model, inputs, targets, jacobian = problem()
    closure = squares(model, inputs, targets)
    before, gradient = flat_parameters(model), gradient_of(closure, model)
    P = jacobian.shape[1]
    optimiser = NaturalGradient(model, lr=0.1, rank=P, form=form, damping=0.3)  # the whole space, so F is exact
    optimiser.step(closure)
    moved = (before - flat_parameters(model)) / 0.1
    values, vectors = torch.linalg.eigh(jacobian.mT @ jacobian)
    if form == "damped":
        expected = torch.linalg.solve(jacobian.mT @ jacobian + 0.3 * torch.eye(P, dtype=F64), gradient)
    else:
        expected = gradient - vectors @ ((values > 1e-9 * values[-1]) * (vectors.mT @ gradient))  # levelled to zero
    torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-8)


def test_the_flat_form_levels_the_top_curvatures_to_the_next_one(monkeypatch):
    monkeypatch.setattr("kpflow.optim.natural.FIRST", 60)
    model, inputs, targets, jacobian = problem()
    closure = squares(model, inputs, targets)
    before, gradient = flat_parameters(model), gradient_of(closure, model)
    NaturalGradient(model, lr=1.0, rank=2, generator=torch.Generator().manual_seed(1)).step(closure)
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(jacobian.mT @ jacobian))
    scale = torch.ones_like(values)
    scale[:2] = values[2] / values[:2]
    expected = vectors @ (scale * (vectors.mT @ gradient))
    torch.testing.assert_close(before - flat_parameters(model), expected, rtol=1e-4, atol=1e-6)


def test_shards_of_the_trials_give_the_step_of_all():
    results = []
    for parts in ([slice(0, 5)], [slice(0, 2), slice(2, 5)]):
        model, inputs, targets, _ = problem()

        def closure(parts=parts, model=model, inputs=inputs, targets=targets):
            return (squares(model, inputs[part], targets[part])() for part in parts)

        whole = closure if len(parts) > 1 else squares(model, inputs, targets)
        loss = NaturalGradient(model, lr=0.1, rank=3).step(whole)
        results.append((float(loss), flat_parameters(model)))
    assert results[0][0] == pytest.approx(results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


def test_a_saved_state_goes_on_as_if_nothing_had_happened():
    def trained(interrupted):
        model, inputs, targets, _ = problem()
        closure = squares(model, inputs, targets)
        optimiser = NaturalGradient(model, lr=0.05, rank=2, form="damped", damping="gain", refresh=4, momentum=0.5)
        for step in range(6):
            if interrupted and step == 3:
                state, optimiser = (
                    optimiser.state_dict(),
                    NaturalGradient(model, lr=0.05, rank=2, form="damped", damping="gain", refresh=4, momentum=0.5),
                )
                optimiser.load_state_dict(state)
            optimiser.step(closure)
        return flat_parameters(model), optimiser.damping

    whole, again = trained(False), trained(True)
    torch.testing.assert_close(again[0], whole[0])
    assert again[1] == whole[1]


def test_groups_have_their_own_steps_and_frozen_parameters_stay():
    model, inputs, targets, _ = problem()
    model[0].bias.requires_grad_(False)
    before = [p.detach().clone() for p in model.parameters()]
    groups = [{"params": model[0].parameters(), "lr": 1e-12}, {"params": model[2].parameters()}]
    NaturalGradient(groups, lr=0.1, rank=2).step(squares(model, inputs, targets))
    moved = [float((p.detach() - b).abs().max()) for p, b in zip(model.parameters(), before, strict=True)]
    assert moved[0] < 1e-10
    assert moved[1] == 0
    assert min(moved[2:]) > 1e-4


def test_the_gain_ratio_adapts_the_damping():
    model, inputs, targets, _ = problem()
    optimiser = NaturalGradient(model, lr=1.0, rank=30, form="damped", damping="gain", refresh=1)
    closure = squares(model, inputs, targets)
    losses, dampings = zip(*((float(optimiser.step(closure)), optimiser.damping) for _ in range(25)), strict=True)
    assert losses[-1] < 1e-3 * losses[0]
    assert len(set(dampings)) > 1


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_step_that_gains_nothing_is_taken_back_under_the_gain_ratio(momentum):
    model, inputs, targets, _ = problem()
    closure = squares(model, inputs, targets)
    optimiser = NaturalGradient(model, lr=40.0, rank=30, form="damped", damping="gain", refresh=1, momentum=momentum)
    before = flat_parameters(model)
    optimiser.step(closure)
    assert torch.equal(flat_parameters(model), before)
    assert optimiser.damping == pytest.approx(4e-3)
    losses = [float(optimiser.step(closure)) for _ in range(60)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < 0.9 * losses[0]


def test_a_loss_that_no_parameter_curves_is_descended_plainly():
    weight = nn.Parameter(torch.ones(3, dtype=F64))
    optimiser = NaturalGradient([weight], lr=0.1, rank=2, refresh=3)
    for _ in range(5):
        optimiser.step(lambda: (weight.sum(), torch.ones(2, dtype=F64) + 0 * weight.sum()))
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.5, dtype=F64))


def test_a_bifurcation_is_passed_in_a_third_of_the_steps():
    plain = min(steps_to(1e-4, lambda p, lr=lr: torch.optim.SGD(p, lr=lr), 150) for lr in (0.03, 0.05, 0.1, 0.15, 0.2))
    natural = steps_to(1e-4, lambda p: NaturalGradient(p, lr=1.0, rank=16, form="damped", damping=1e-2, refresh=1), 150)
    assert plain < 150
    assert 3 * natural < plain


BAD = {
    "lr": ({"lr": 0.0}, "`lr` must be a positive number; got 0.0"),
    "rank": ({"rank": 0}, "`rank` must be a positive whole number; got 0"),
    "form": ({"form": "sharp"}, "`form` must be one of 'flat', 'damped'; got 'sharp'"),
    "damping": ({"damping": -1.0}, "`damping` must be a positive number; got -1.0"),
    "refresh": ({"refresh": 0}, "`refresh` must be a positive whole number; got 0"),
    "momentum": ({"momentum": 2.0}, "`momentum` must be a number between 0 and 1; got 2.0"),
}


@pytest.mark.parametrize("name", BAD)
def test_options_out_of_range_are_refused(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        NaturalGradient(nn.Linear(2, 2), **options)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="`params` must hold a trainable parameter"):
        NaturalGradient(nn.Linear(2, 2).requires_grad_(False))


@pytest.mark.parametrize("given", [torch.ones(()), (1.0, torch.ones(2)), [], (torch.ones(3), torch.ones(3)), None])
def test_a_closure_must_give_losses_with_their_outputs(given):
    with pytest.raises(TypeError, match=r"`closure` must give a pair \(loss, outputs\) of tensors"):
        NaturalGradient(nn.Linear(2, 2)).step(lambda: given)


def test_a_step_needs_a_closure_and_a_finite_loss():
    optimiser = NaturalGradient(seeded(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="`closure` must be a function"):
        optimiser.step()
    model = seeded(nn.Linear(2, 2))
    outputs = model(torch.ones(1, 2, dtype=F64))
    with pytest.raises(ValueError, match="The loss must be finite; got nan"):
        NaturalGradient(model).step(lambda: ((outputs * torch.nan).sum(), outputs))


def test_a_gradient_that_is_not_finite_moves_nothing():
    model = seeded(nn.Linear(2, 2))
    before = copy.deepcopy(model.state_dict())

    def closure():
        outputs = model(torch.zeros(1, 2, dtype=F64)) - model.bias
        return outputs.sqrt().sum(), outputs  # 0, with an infinite slope

    with pytest.raises(ValueError, match=r"`gradient of parameter \d.*` must be finite; got NaN at .*damping"):
        NaturalGradient(model).step(closure)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_damping_comes_back_from_a_plateau():
    weight = nn.Parameter(torch.tensor([100.0], dtype=F64))
    optimiser = NaturalGradient([weight], form="damped", damping="gain", rank=1)

    def closure():
        outputs = weight * scale
        return (outputs - 1).square().sum(), outputs

    scale = 0.0
    for _ in range(60):
        optimiser.step(closure)
    assert optimiser.damping == 1e12
    scale = 1.0
    for _ in range(120):
        loss = optimiser.step(closure)
    assert float(loss) < 1e-9


class ReadOut(nn.Module):
    """A recurrent network with a read-out."""

    def __init__(self):
        super().__init__()
        self.core = nn.RNN(2, 4, batch_first=True)
        self.read = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.read(self.core(inputs)[0])


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("frozen", [(), ("core.bias_hh_l0",)])
def test_operators_of_the_linearised_model_give_the_step_of_the_graph(sharded, frozen):
    inputs = randn(4, 5, 2, seed=1)
    labels = torch.randint(0, 3, (4, 5), generator=torch.Generator().manual_seed(2))
    shards = [slice(0, 1), slice(1, 4)] if sharded else [slice(0, 4)]
    results = []
    for by_operator in (False, True):
        model = seeded(ReadOut()).to(F64)
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)

        def closure(model=model):
            pairs = []
            for part in shards:
                outputs = model(inputs[part])
                pairs.append((nn.functional.cross_entropy(outputs.flatten(0, 1), labels[part].flatten()), outputs))
            return pairs

        def jacobian(model=model):
            lins = [kp.linearise(model, inputs[part]) for part in shards]
            return [kp.Ntk(lin, readout="outputs").jacobian for lin in lins]

        optimiser = NaturalGradient(model, lr=0.1, rank=4, form="damped", damping=0.1)
        for _ in range(3):
            optimiser.step(closure, jacobian=jacobian if by_operator else None)
        results.append(flat_parameters(model))
    torch.testing.assert_close(results[1], results[0])


def test_states_do_not_depend_on_the_read_out_that_the_optimiser_trains_too():
    model, inputs = seeded(ReadOut()).to(F64), randn(4, 5, 2, seed=1)

    def closure():
        states = model.core(inputs)[0]
        return states.square().mean() + 0 * model.read.weight.sum(), states

    def jacobian():
        lin = kp.linearise(model.core, inputs)
        names = {name: f"core.{name}" for name, _ in model.core.named_parameters()}
        assert [part.name for part in lin.parameters.parts] == list(names)
        return kp.Ntk(lin).jacobian

    with pytest.raises(ValueError, match="`jacobian` must be one with respect to the trained parameters"):
        NaturalGradient(model).step(closure, jacobian=jacobian)
    before = model.read.bias.detach().clone()

    def of_states():
        return kp.Ntk(kp.linearise(model, inputs, core="core")).jacobian

    NaturalGradient(model, lr=0.1).step(closure, jacobian=of_states)
    assert torch.equal(model.read.bias, before)


def test_a_jacobian_that_does_not_fit_is_refused():
    model, inputs = seeded(ReadOut()).to(F64), randn(4, 5, 2, seed=1)
    lin = kp.linearise(model, inputs)

    def closure():
        outputs = model(inputs)
        return outputs.square().mean(), outputs

    with pytest.raises(TypeError, match="`jacobian` must give an operator for each shard of the closure, 1; got 3"):
        NaturalGradient(model).step(closure, jacobian=lambda: 3)
    with pytest.raises(ValueError, match="`jacobian` must be that of the outputs that the closure gives"):
        NaturalGradient(model).step(closure, jacobian=lambda: kp.Ntk(lin).jacobian)
    with pytest.raises(ValueError, match="`jacobian` needs the names of the parameters"):
        NaturalGradient(model.parameters()).step(closure, jacobian=lambda: kp.Ntk(lin, readout="outputs").jacobian)


def test_the_gradient_is_kept_as_after_backward():
    model, inputs, targets, _ = problem()
    closure = squares(model, inputs, targets)
    optimiser = NaturalGradient(model, lr=0.1, rank=2)
    for _ in range(3):
        expected = gradient_of(closure, model)
        optimiser.step(closure)
        torch.testing.assert_close(torch.cat([p.grad.flatten() for p in model.parameters()]), expected)


def test_gain_damping_counts_the_rates_of_all_groups():
    """The order of the groups is of no matter."""
    dampings = []
    for order in (1, -1):
        model, inputs, targets, _ = problem()
        groups = [{"params": [*model[0].parameters()], "lr": 1e-8}, {"params": [*model[2].parameters()], "lr": 0.5}]
        generator = torch.Generator().manual_seed(0)
        optimiser = NaturalGradient(groups[::order], rank=64, form="damped", damping="gain", generator=generator)
        for _ in range(6):
            optimiser.step(squares(model, inputs, targets))
        dampings.append(optimiser.damping)
    assert dampings[0] == dampings[1] != 1e-3


def test_predicted_gain_is_that_of_the_quadratic_model():
    """A quadratic loss gains what is predicted, so that damping falls at every step, with momentum and groups too."""
    weight, bias = (torch.nn.Parameter(randn(3, seed=s)) for s in (1, 2))
    matrix = randn(9, 6, seed=3)
    groups = [{"params": [weight], "lr": 0.2}, {"params": [bias], "lr": 0.1, "momentum": 0.3}]
    optimiser = NaturalGradient(groups, rank=6, form="damped", damping="gain", refresh=1)

    def closure():
        outputs = matrix @ torch.cat([weight, bias])
        return 0.5 * outputs.square().sum(), outputs

    for step in range(1, 7):
        optimiser.step(closure)
        assert optimiser.damping == 1e-3 / 2**step


@pytest.mark.parametrize("how", ["a new group", "unfrozen"])
def test_parameters_that_come_later_are_trained(how):
    model, inputs, targets, _ = problem()
    model[2].requires_grad_(False)
    optimiser = NaturalGradient(model[0] if how == "a new group" else model, lr=0.1, rank=2)
    optimiser.step(squares(model, inputs, targets))
    before = model[2].weight.clone()
    model[2].requires_grad_(True)
    if how == "a new group":
        optimiser.add_param_group({"params": list(model[2].named_parameters()), "lr": 0.2})
    for _ in range(2):
        optimiser.step(squares(model, inputs, targets))
    assert not torch.equal(model[2].weight, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "`lr` must be"),
        ({"momentum": 3.0}, "`momentum` must be"),
        ({"rank": 2}, r"A group may have options of its own for \['lr', 'momentum'\]; got \['rank'\]"),
    ],
)
def test_options_of_groups_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        NaturalGradient([{"params": [nn.Parameter(torch.ones(2))], **options}])


def test_gain_needs_damping():
    with pytest.raises(ValueError, match='`damping="gain"` needs `form="damped"`; got \'flat\', which has no damping'):
        NaturalGradient([nn.Parameter(torch.ones(2))], damping="gain")
