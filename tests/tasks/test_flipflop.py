"""FlipFlop against its definition, step by step."""

import itertools
import math

import pytest
import torch

from kpflow.tasks import FlipFlop


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_targets(pulses):
    targets = torch.zeros_like(pulses)
    B, T, K = pulses.shape
    for b, k in itertools.product(range(B), range(K)):
        held = 0.0
        for t in range(T):
            held = float(pulses[b, t, k]) or held
            targets[b, t, k] = held
    return targets


def naive_mask(targets, blind):
    mask = torch.ones_like(targets)
    B, T, K = targets.shape
    for b, k in itertools.product(range(B), range(K)):
        for t in range(T):
            if targets[b, t, k] != (targets[b, t - 1, k] if t else 0.0):
                mask[b, t : t + blind, k] = 0
    return mask


@pytest.mark.parametrize("mode", ["random", "grid"])
@pytest.mark.parametrize("first", ["zero", "pulse"])
@pytest.mark.parametrize("blind", [0, 1, 4])
def test_targets_hold_the_last_pulse_and_blind_steps_have_no_weight(mode, first, blind):
    task = FlipFlop(K=3, steps=40, p=0.1, first=first, blind=blind)
    trials = task.sample(9, generator=seeded(0), mode=mode, dtype=torch.float64)
    assert torch.equal(trials.targets, naive_targets(trials.inputs_clean))
    assert torch.equal(trials.mask, naive_mask(trials.targets, blind))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("p", [0.05, 0.5])
def test_pulses_are_as_frequent_as_said_and_of_either_sign(seed, p):
    pulses = FlipFlop(p=p).sample(500, generator=seeded(seed)).inputs_clean
    assert pulses.unique().tolist() == [-1, 0, 1]
    n, count = pulses.numel(), int((pulses != 0).sum())
    assert abs(count / n - p) < 4 * math.sqrt(p * (1 - p) / n)
    assert abs(float(pulses.sum())) < 4 * math.sqrt(count)
    bits = (pulses != 0).double().flatten(0, 1).T
    assert (torch.corrcoef(bits) - torch.eye(3)).abs().max() < 4 / math.sqrt(500 * 90)


def test_the_first_step_is_pulsed_only_if_asked():
    assert FlipFlop(p=0.0, first="pulse").sample(50).targets.abs().min() == 1
    assert not FlipFlop(p=0.0).sample(50).targets.any()
    rare = FlipFlop(p=0.05).sample(400).inputs_clean[:, 0]
    assert 0 < int((rare != 0).sum()) < 200


def test_every_step_is_pulsed_at_p_one():
    trials = FlipFlop(p=1.0).sample(5)
    assert torch.equal(trials.inputs_clean, trials.targets)
    assert trials.targets.abs().min() == 1


def test_the_grid_begins_with_every_pattern_once():
    trials = FlipFlop(K=4).sample(16, mode="grid")
    patterns = {tuple(row) for row in trials.targets[:, 0].tolist()}
    assert patterns == set(itertools.product([-1.0, 1.0], repeat=4))


@pytest.mark.parametrize("K", [2, 3, 4])
def test_the_grid_first_makes_every_transition_of_one_bit(K):
    task = FlipFlop(K=K)
    period = round(1 / (task.p * K))
    trials = task.sample(K * 2**K, mode="grid")
    before, after = trials.targets[:, period - 1], trials.targets[:, period]
    transitions = {(tuple(a), tuple(b)) for a, b in zip(before.tolist(), after.tolist(), strict=True)}
    assert len(transitions) == K * 2**K
    assert all(sum(x != y for x, y in zip(a, b, strict=True)) == 1 for a, b in transitions)


@pytest.mark.parametrize(("K", "p"), [(1, 0.05), (3, 0.05), (3, 0.5), (2, 0.0), (5, 1.0)])
def test_every_pulse_of_the_grid_after_the_first_step_flips_one_bit(K, p):
    trials = FlipFlop(K=K, p=p).sample(2 ** (K + 1), mode="grid")
    later = trials.inputs_clean[:, 1:] != 0
    assert torch.equal(trials.targets.abs(), torch.ones_like(trials.targets))
    assert torch.equal(later, torch.diff(trials.targets, dim=1) != 0)
    times = later.any(dim=2)[0].nonzero()[:, 0] + 1
    period = max(1, round(1 / (p * K))) if p else 90
    assert times.tolist() == list(range(period, 90, period))
    assert torch.equal(later.sum(dim=2), later.any(dim=2).long())
    counts = later.sum(dim=1)  # the flips go round the bits
    assert int(counts.max() - counts.min()) <= 1


def test_final_is_the_number_of_the_last_pattern():
    trials = FlipFlop(K=3, p=0.03).sample(200, generator=seeded(0))
    for number, bits in zip(trials.conditions["final"].tolist(), trials.targets[:, -1].tolist(), strict=True):
        assert number == (-1 if 0.0 in bits else sum(2**k for k in range(3) if bits[k] > 0))
    assert {-1, 0, 7} <= set(trials.conditions["final"].tolist())


def test_static_input_is_zero():
    task = FlipFlop(K=2)
    assert task.static_inputs("memory", {}).tolist() == [[0.0, 0.0]]
    assert task.static_inputs("delay1", {"final": torch.arange(5)}, dtype=torch.float64).shape == (5, 2)


def test_score_is_the_fraction_of_outputs_within_a_half():
    task = FlipFlop(K=2, steps=10, p=0.3)
    trials = task.sample(4, dtype=torch.float64)
    assert task.score(trials.targets + 0.499, trials) == {"accuracy": 1.0, "perfect_trials": 1.0}
    assert task.score(trials.targets - 0.5, trials) == {"accuracy": 0.0, "perfect_trials": 0.0}
    outputs = trials.targets.clone()
    outputs[1, 3, 0] += 0.6
    assert task.score(outputs, trials) == {"accuracy": pytest.approx(79 / 80), "perfect_trials": 0.75}


def test_score_leaves_out_what_has_no_weight():
    task = FlipFlop(K=2, steps=30, p=0.1, blind=3)
    trials = task.sample(4, dtype=torch.float64)
    assert (trials.mask == 0).any()
    outputs = torch.where(trials.mask > 0, trials.targets, 9.0)
    assert task.score(outputs, trials) == {"accuracy": 1.0, "perfect_trials": 1.0}
    outputs = torch.where(trials.mask > 0, 9.0, trials.targets)
    assert task.score(outputs, trials) == {"accuracy": 0.0, "perfect_trials": 0.0}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"K": 0}, "`K` must be a whole number between 1 and 62; got 0"),
        ({"K": 63}, "`K` must be a whole number between 1 and 62; got 63"),
        ({"K": "3"}, "`K` must be a whole number between 1 and 62; got '3'"),
        ({"steps": 0}, "`steps` must be a positive whole number; got 0"),
        ({"steps": -90}, "`steps` must be a positive whole number; got -90"),
        ({"p": 1.5}, "`p` must be a number between 0 and 1; got 1.5"),
        ({"p": -0.1}, "`p` must be a number between 0 and 1; got -0.1"),
        ({"sigma": -1.0}, "`sigma` must be a number at least 0; got -1.0"),
        ({"first": "one"}, "`first` must be one of 'zero', 'pulse'; got 'one'"),
        ({"blind": -1}, "`blind` must be a whole number at least 0; got -1"),
        ({"dt": -1}, "`dt` must be a positive finite number; got -1"),
        ({"tau": 0.0}, "`tau` must be a positive finite number; got 0.0"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_parameters_out_of_range(parameters, message):
    with pytest.raises(ValueError, match=message):
        FlipFlop(**parameters)
