"""Paths along inputs and between checkpoints: the functions, what is born on the way, and what is refused."""

import copy
import functools
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import randn, without_annotation_checks
from kpflow.dynamics import (
    Ending,
    TrainingPath,
    bifurcation_diagram,
    checkpoint_path,
    continue_branch,
    find_fixed_points,
    follow_training,
    input_path,
    training_path,
)
from kpflow.states.cells import LowRankRNN, RateRNN

STEPS = {
    "RNNCell": (lambda: nn.RNNCell(2, 3), 3),
    "GRUCell": (lambda: nn.GRUCell(2, 3), 3),
    "LSTMCell": (lambda: nn.LSTMCell(2, 3), 6),
    "RNN": (lambda: nn.RNN(2, 3, batch_first=True), 3),
    "GRU": (lambda: nn.GRU(2, 3), 3),
    "LSTM": (lambda: nn.LSTM(2, 3), 6),
    "rate": (lambda: RateRNN(2, 3), 3),
    "low rank": (lambda: LowRankRNN(2, 3, 1), 3),
}


def unit(h: Tensor, x: Tensor, theta: Mapping[str, Tensor]) -> Tensor:
    return torch.tanh(theta["w"] * h + x)


def of_unit(weight: float, x: float, seeds: int = 30) -> Tensor:
    named = {"w": torch.tensor(weight, dtype=torch.float64)}
    line = torch.linspace(-1, 1, seeds, dtype=torch.float64)[:, None]
    return find_fixed_points(lambda h, x: unit(h, x, named), torch.tensor([x], dtype=torch.float64), line).states


def along_weights(first: float, last: float, x: float, *points: Tensor, **more: Any) -> TrainingPath:
    theta = tuple({"w": torch.tensor(value, dtype=torch.float64)} for value in (first, last))
    given = points or (of_unit(first, x), of_unit(last, x))
    return training_path(unit, unit, torch.tensor([x], dtype=torch.float64), *given, parameters=theta, **more)


# The functions.


@pytest.mark.parametrize("name", STEPS)
def test_paths_are_the_step_at_both_ends_and_between(name):
    make, width = STEPS[name]
    torch.manual_seed(0)
    first, last = make(), make()
    h, x, other = randn(width, seed=0), randn(2, seed=1), randn(2, seed=2)
    between = copy.deepcopy(first).double()
    with torch.no_grad():
        for value, old, new in zip(between.parameters(), first.parameters(), last.parameters(), strict=True):
            value.copy_(old.double() + 0.3 * (new.double() - old.double()))

    for s, module in ((0.0, first), (1.0, last), (0.3, between)):
        path = checkpoint_path(first, last, x, h)
        here = input_path(module, x, other, h)
        torch.testing.assert_close(path(h, h.new_tensor(s)), here(h, h.new_tensor(0.0)))
    inputs = input_path(first, x, other, h)
    middle = input_path(first, x + 0.25 * (other - x), x, h)
    torch.testing.assert_close(inputs(h, h.new_tensor(0.25)), middle(h, h.new_tensor(0.0)))
    assert all(value.dtype == torch.float32 for value in first.parameters())
    start = find_fixed_points(first, x, h[None], descent=0).states[0]
    branch = continue_branch(checkpoint_path(first, last, x, h), start, 0.0, bounds=(0.0, 1.0), max_step=0.2)
    assert branch.endings[1] is Ending.BOUND
    assert float(branch.parameters[-1]) == 1.0
    end = find_fixed_points(last, x, branch.states[-1:], descent=0)
    torch.testing.assert_close(end.states, branch.states[-1:], rtol=0, atol=1e-9)


def test_an_input_path_agrees_with_dense_scanning():
    cell = nn.RNNCell(2, 4)
    with torch.no_grad():
        for i, value in enumerate(cell.parameters()):
            value.copy_((2.0 if value.shape == (4, 4) else 0.5) * randn(*value.shape, seed=i))
    one, other = torch.tensor([-3.0, 0.0]), torch.tensor([3.0, 0.5])
    seeds = 2 * torch.rand(80, 4, generator=torch.Generator().manual_seed(0)) - 1
    scanned = {s: find_fixed_points(cell, one + s * (other - one), seeds) for s in (0.0, 0.25, 0.5, 0.75)}
    path = input_path(cell, one, other, scanned[0.5].states[0])
    diagram = bifurcation_diagram(path, scanned[0.5].states, 0.5, bounds=(0.0, 1.0))
    for s, points in scanned.items():
        if s in (0.25, 0.75):
            count = sum(int(((b.parameters[:-1] - s) * (b.parameters[1:] - s) < 0).sum()) for b in diagram.branches)
            assert count >= len(points.states)
    assert max(len(points.states) for points in scanned.values()) >= 3
    assert any(event.kind == "fold" for event in diagram.events)


# Between checkpoints.


def test_a_fold_on_the_way_and_its_training_step():
    x = 0.01
    path = along_weights(0.5, 2.0, x, between=(100.0, 120.0))
    (fold,) = path.events
    assert fold.label == "imperfect pitchfork"
    weight = 0.5 + 1.5 * fold.parameter
    h = -math.sqrt(1 - 1 / weight)
    assert math.atanh(h) - weight * h == pytest.approx(x, abs=1e-12)
    assert path.step_of(fold) == pytest.approx(100 + 20 * fold.parameter, abs=1e-12)
    assert [path.first.given.shape[0], path.last.given.shape[0]] == [1, 3]
    ((_, goes_on),) = path.continued
    assert path.last.given[goes_on, 0] > 0
    assert path.born == (tuple(sorted({0, 1, 2} - {goes_on})),)
    assert (path.vanished, path.unresolved, path.index_sums) == ((), ((), ()), (1, 1))
    text = repr(path)
    assert text.startswith("TrainingPath(step ∈ [100, 120]: 1 → 3 points; imperfect pitchfork at 107.")
    assert "of the interpolant" in text


def test_backwards_they_vanish():
    path = along_weights(2.0, 0.5, 0.01)
    assert (len(path.vanished), path.born) == (1, ())
    assert len(path.vanished[0]) == 2
    assert len(path.events) == 1


def test_forward_only_finds_nothing():
    path = along_weights(0.5, 2.0, 0.01, of_unit(0.5, 0.01), torch.zeros(0, 1).double())
    assert path.events == ()
    assert path.last.missed.shape == (1, 1)  # where the one branch arrives


def test_points_that_were_not_given_are_found_and_said():
    every = of_unit(2.0, 0.01)
    for left in range(3):
        some = every[[i for i in range(3) if i != left]]
        path = along_weights(0.5, 2.0, 0.01, of_unit(0.5, 0.01), some)
        torch.testing.assert_close(path.last.missed, every[left : left + 1], rtol=0, atol=1e-9)
        assert path.index_sums == (1, 1)
        assert path.unresolved == ((), ())
        assert len(path.events) == 1


def test_a_pitchfork_is_generic_only_where_the_network_is_odd():
    path = along_weights(0.5, 2.0, 0.0)
    (event,) = path.events
    assert event.label == "supercritical pitchfork"
    assert event.parameter == pytest.approx(1 / 3, abs=1e-12)
    assert len(path.born) == 1
    assert path.index_sums == (1, 1)


def test_what_is_not_followed_to_an_end_is_unresolved():
    path = along_weights(0.5, 2.0, 0.01, steps=3)
    assert path.unresolved == ((0,), (0, 1, 2))
    assert "4 unresolved" in repr(path)
    late = along_weights(0.5, 2.0, 0.01, time_limit=1e-9)
    assert late.unresolved == ((0,), (0, 1, 2))


def test_a_point_given_twice_goes_on_once():
    path = along_weights(0.5, 0.8, 0.01, *(of_unit(weight, 0.01).repeat(2, 1) for weight in (0.5, 0.8)))
    assert path.first.branch == path.last.branch == (0, -1)
    assert path.continued == ((0, 0),)
    assert path.unresolved == ((1,), (1,))


# A network that learns to remember one bit.


def memory(checkpoint: int) -> tuple[nn.RNNCell, list[dict[str, Tensor]]]:
    """An RNN of 16 units that is trained on a flip-flop, with a checkpoint every so many steps."""
    generator = torch.Generator().manual_seed(0)
    cell, readout = nn.RNNCell(1, 16), nn.Linear(16, 1)
    parameters = [*cell.parameters(), *readout.parameters()]
    with torch.no_grad():
        for value in parameters:
            value.copy_(
                torch.randn(value.shape, generator=generator)
                * (0.2 if value.shape[-1] == 16 and value.ndim == 2 else 0.3)
            )
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    states = [copy.deepcopy(cell.state_dict())]
    for step in range(1, 201):
        signs = torch.randint(0, 2, (25, 32, 1), generator=generator) * 2.0 - 1
        pulses = signs * (torch.rand(25, 32, 1, generator=generator) < 0.15)
        pulses[0] = signs[0]
        h, bit, loss = torch.zeros(32, 16), pulses[0], torch.zeros(())
        for pulse in pulses:
            bit = torch.where(pulse != 0, pulse, bit)
            h = cell(pulse, h)
            loss = loss + (readout(h) - bit).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % checkpoint == 0:
            states.append(copy.deepcopy(cell.state_dict()))
    return cell, states


@functools.cache
def learned() -> tuple[nn.RNNCell, list[dict[str, Tensor]], list[Tensor]]:
    cell, states = memory(20)
    points = [find_fixed_points(with_state(cell, state), torch.zeros(1), SEEDS).states for state in states]
    return cell, states, points


SEEDS = 2 * torch.rand(40, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1


def with_state(cell: nn.RNNCell, state: Mapping[str, Tensor]) -> nn.RNNCell:
    model = copy.deepcopy(cell)
    model.load_state_dict(dict(state))
    return model


def test_a_memory_is_born_between_two_checkpoints():
    cell, states, points = learned()
    counts = [len(some) for some in points]
    k = next(i for i in range(len(counts) - 1) if counts[i : i + 2] == [1, 3])
    first, last = (with_state(cell, state) for state in states[k : k + 2])
    x, none = torch.zeros(1), torch.zeros(0, 16).double()
    forward = training_path(first, last, x, points[k], none)
    assert forward.events == ()
    path = training_path(first, last, x, *points[k : k + 2], between=(20.0 * k, 20.0 * k + 20))
    (fold,) = path.events
    assert fold.kind == "fold"
    assert 20 * k < path.step_of(fold) < 20 * k + 20
    assert len(path.born[0]) == 2
    assert len(path.continued) == 1
    assert path.unresolved == ((), ())
    assert path.index_sums == (1, 1)
    for side, count in ((-1e-3, 1), (1e-3, 3)):  # dense scanning, on both sides of the fold
        s = fold.parameter + side
        middle = {name: torch.lerp(states[k][name].double(), states[k + 1][name].double(), s) for name in states[k]}
        model = copy.deepcopy(cell).double()
        model.load_state_dict(middle)
        seeds = torch.cat([SEEDS[:10], fold.state + 0.1 * randn(20, 16, seed=0)])
        assert len(find_fixed_points(model, x, seeds).states) == count


def test_a_whole_training():
    cell, states, points = learned()
    paths = follow_training(cell, states[-3:], torch.zeros(1), SEEDS, every=20.0)
    assert [path.between for path in paths] == [(0, 20), (20, 40)]
    assert [len(path.last.given) for path in paths] == [len(some) for some in points[-2:]]
    assert all(path.index_sums == (1, 1) and path.unresolved == ((), ()) for path in paths)


class Affine(nn.Module):
    def __init__(self, slope: float) -> None:
        nn.Module.__init__(self)
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return self.slope * h + 1 + 0 * x.sum()


def test_checkpoints_without_fixed_points_have_no_path_and_the_others_keep_their_steps():
    states = [Affine(slope).state_dict() for slope in (1.0, 1.0, 0.5, 0.4, 1.0, 1.0)]
    paths = follow_training(Affine(0.0), states, torch.zeros(1), torch.zeros(1, 1), every=10.0)
    assert [path.between for path in paths] == [(10, 20), (20, 30), (30, 40)]
    assert [(len(path.first.given), len(path.last.given)) for path in paths] == [(0, 1), (1, 1), (1, 0)]


# What is refused.


class Shifted(nn.Module):
    def __init__(self, shift: float) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("shift", torch.tensor(shift))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(h * self.weight + self.shift) + 0 * x.sum()


POINT = torch.zeros(3).double()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_b": nn.GRUCell(2, 3)}, "Both checkpoints must have parameters of the same shapes; weight_ih has"),
        ({"step_b": RateRNN(2, 3)}, "Both checkpoints must have the same parameters; only one of them has bias_hh"),
        ({"inputs": torch.zeros(5, 2)}, r"`inputs` must be one static input, shape \(I,\); got \(5, 2\)"),
        ({"inputs": torch.full((2,), math.nan)}, "`inputs` must be finite; got NaN at input 0"),
        ({"point": torch.zeros(3)}, r"`point` must be one state of shape \(n,\) in float64"),
        ({"point": torch.zeros(4).double()}, r"`seeds` must have shape \(n, 3\), the states of RNNCell"),
        (
            {"step_a": Shifted(0.0), "step_b": Shifted(1.0)},
            "Both checkpoints must have equal buffers, which are not trained; shift differs",
        ),
    ],
)
def test_messages_of_checkpoint_path(arguments: dict[str, Any], message):
    given: dict[str, Any] = {
        "step_a": nn.RNNCell(2, 3),
        "step_b": nn.RNNCell(2, 3),
        "inputs": torch.zeros(2),
        "point": POINT,
    } | arguments
    with pytest.raises(ValueError, match=message):
        checkpoint_path(**given)


def test_checkpoints_that_are_not_finite():
    broken = nn.RNNCell(2, 3)
    with torch.no_grad():
        broken.weight_hh[0, 1] = math.nan
    with pytest.raises(ValueError, match="`weight_hh of step_b` must be finite; got NaN at axis 0 0, axis 1 1"):
        checkpoint_path(nn.RNNCell(2, 3), broken, torch.zeros(2), POINT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"start": torch.zeros(5, 2)},
            r"`start` must be one static input, shape \(I,\); got \(5, 2\).*one step of a s",
        ),
        ({"end": torch.zeros(3)}, r"`end` must have the shape of `start`, \(2,\); got \(3,\)"),
        ({"end": torch.full((2,), math.inf)}, "`end` must be finite; got inf at input 0"),
        ({"point": torch.zeros(4).double()}, r"`seeds` must have shape \(n, 3\)"),
        ({"step": nn.RNN(2, 3, 2)}, "`step` must have one layer"),
    ],
)
def test_messages_of_input_path(arguments: dict[str, Any], message):
    given: dict[str, Any] = {
        "step": nn.RNNCell(2, 3),
        "start": torch.zeros(2),
        "end": torch.ones(2),
        "point": POINT,
    } | arguments
    with pytest.raises(ValueError, match=message):
        input_path(**given)


ONE, NONE = torch.zeros(1, 1).double(), torch.zeros(0, 1).double()


@pytest.mark.parametrize(
    ("points", "more", "message"),
    [
        ((ONE, ONE), {"between": (20.0, 0.0)}, "`between` must be the training steps of both checkpoints, in order"),
        ((ONE[0], ONE), {}, r"`points_a` must be fixed points, shape \(k, H\); got \(1,\)"),
        ((ONE, ONE[0]), {}, r"`points_b` must be fixed points, shape \(k, H\); got \(1,\)"),
        ((NONE, NONE), {}, "`points_a` and `points_b` must hold at least one fixed point"),
        ((ONE, torch.zeros(1, 2).double()), {}, "`points_b` must have states of the size of `points_a`, 1; got 2"),
        ((ONE + 0.3, ONE), {}, r"`point` must be a fixed point, function\(h, λ\) = h at λ = 0"),
        ((ONE, ONE + 0.3), {}, r"`point` must be a fixed point, function\(h, λ\) = h at λ = 1"),
        ((ONE, ONE), {"max_step": -1.0}, "`max_step` must be a positive number"),
    ],
)
def test_messages_of_training_path(points, more: dict[str, Any], message):
    with without_annotation_checks(), pytest.raises(ValueError, match=message):
        along_weights(0.5, 2.0, 0.0, *points, **more)


def test_messages_of_follow_training():
    cell = nn.RNNCell(1, 2)
    seeds, x = torch.zeros(1, 2), torch.zeros(1)
    with pytest.raises(ValueError, match="`checkpoints` must be at least two state dicts; got 1"):
        follow_training(cell, [cell.state_dict()], x, seeds)
    with pytest.raises(ValueError, match=r"`checkpoints\[1\]` must fit the module; (?s:.*)size mismatch"):
        follow_training(cell, [cell.state_dict(), nn.RNNCell(1, 3).state_dict()], x, seeds)
    with pytest.raises(ValueError, match="`every` must be a positive number"):
        follow_training(cell, [cell.state_dict()] * 2, x, seeds, every=0.0)
