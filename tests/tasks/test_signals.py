"""Integrals, waves, forecasts, a teacher and long memory, against their definitions."""

import itertools
import math

import pytest
import torch

from kpflow.tasks import (
    AngularIntegration,
    Copy,
    DelayedAddition,
    FlipFlop,
    Integration,
    LowRankForecast,
    SineGenerator,
    StudentTeacher,
)
from kpflow.tasks.directions import read_angle, ring, to_channels
from kpflow.tasks.scores import decision, explained, within

F64 = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("leak", "bound"), [(0.0, math.inf), (0.1, math.inf), (0.05, 0.1)])
def test_the_position_is_the_leaky_bounded_integral(leak, bound):
    trials = Integration(leak=leak, bound=bound).sample(4, generator=seeded(0), dtype=F64)
    for b in range(4):
        y = 0.0
        for t in range(100):
            y = min(max((1 - leak) * y + 0.02 * float(trials.inputs_clean[b, t, 0]), -bound), bound)
            assert float(trials.targets[b, t, 0]) == pytest.approx(y, abs=1e-14)
        assert float(trials.conditions["final"][b]) == pytest.approx(y, abs=1e-14)
    assert bound == math.inf or float(trials.targets.abs().max()) == bound


def test_the_variance_of_the_integral_does_not_depend_on_the_step():
    for dt, steps in ((20.0, 50), (5.0, 200)):
        trials = Integration(drift=0, dt=dt, steps=steps).sample(2000, generator=seeded(1), dtype=F64)
        variance = float(trials.targets[:, -1].var())
        assert abs(variance - 0.25) < 4 * 0.25 * math.sqrt(2 / 2000)  # s² × 1 s


def test_drifts_are_uniform_and_evenly_spaced_on_the_grid():
    drift = Integration(drift=2.0, steps=2).sample(3000, generator=seeded(2)).conditions["drift"]
    assert abs(float(drift.mean())) < 4 * 2 / math.sqrt(3 * 3000)
    assert 1.98 < float(drift.abs().max()) <= 2
    grid = Integration(drift=2.0, steps=2).sample(5, mode="grid").conditions["drift"]
    assert grid.tolist() == [-2, -1, 0, 1, 2]
    assert Integration().sample(1, mode="grid").conditions["drift"].tolist() == [0]


def test_pulses_move_the_position_by_a_jump_and_keep_their_distance():
    task = Integration(steps=2000, pulses=10.0, refractory=60.0, jump=0.3, drift=5.0)
    trials = task.sample(20, generator=seeded(20), dtype=F64)
    moves = trials.targets[:, :, 0].diff(dim=1, prepend=torch.zeros(20, 1, dtype=F64))
    torch.testing.assert_close(moves, 0.02 * trials.inputs_clean[:, :, 0], rtol=0, atol=1e-12)
    comes = moves.abs() > 1e-9
    torch.testing.assert_close(moves[comes].abs(), torch.full((int(comes.sum()),), 0.3, dtype=F64))
    gaps = torch.cat([row.nonzero()[:, 0].diff() for row in comes]).double()
    assert int(gaps.min()) == 4  # three steps of rest, and the next may have one
    assert abs(float(gaps.mean()) - (3 + 1 / 0.2)) < 4 * math.sqrt(0.8) / 0.2 / math.sqrt(len(gaps))  # geometric
    signs = moves[comes].sign()
    assert abs(float(signs.mean())) < 4 / math.sqrt(len(signs))
    assert not trials.conditions["drift"].any()
    assert not task.static_inputs("integration", trials.conditions).any()


def test_pulses_without_rest_come_at_every_step_if_so_wanted():
    trials = Integration(steps=30, pulses=50.0, refractory=0.0).sample(3, generator=seeded(21), dtype=F64)
    assert torch.equal(trials.inputs_clean.abs(), torch.full((3, 30, 1), 25.0, dtype=F64))
    assert len(trials.inputs_clean.unique()) == 2


def test_pulses_on_the_grid_are_regular():
    task = Integration(steps=12, pulses=10.0, refractory=100.0, jump=0.4, leak=0.1)
    trials = task.sample(3, mode="grid", dtype=F64)
    assert trials.inputs_clean[2, :, 0].nonzero()[:, 0].tolist() == [0, 6]  # of 5 steps for 1/r, 6 with the rest
    assert trials.inputs_clean[:, 0, 0].tolist() == pytest.approx([-20.0, 0.0, 20.0])
    assert float(trials.targets[2, 6, 0]) == pytest.approx(0.4 * (1 + 0.9**6))
    assert float(task.sample(1, mode="grid", dtype=F64).targets[0, 0, 0]) == pytest.approx(0.4)


@pytest.mark.parametrize("order", ["cos_sin", "sin_cos"])
def test_the_angle_is_the_integral_of_the_velocity(order):
    task = AngularIntegration(order=order)
    trials = task.sample(5, generator=seeded(3), dtype=F64)
    left, right = trials.inputs_clean[:, :, 0], trials.inputs_clean[:, :, 1]
    assert not (left * right).any()
    angle = trials.conditions["initial"][:, None] + 0.02 * (left - right).cumsum(1)
    torch.testing.assert_close(trials.targets, to_channels(angle, order), rtol=0, atol=1e-13)
    torch.testing.assert_close(trials.conditions["final"], angle[:, -1] % (2 * math.pi))
    shown = trials.inputs_clean[:, :, 2:]
    assert torch.equal(shown[:, :5], trials.targets[:, :1].expand(5, 5, 2))
    assert not shown[:, 5:].any()
    assert not left[:, :5].any()
    assert not right[:, :5].any()


def test_velocities_stand_for_at_least_a_block():
    task = AngularIntegration(steps=400, block=6, speed=2.0)
    trials = task.sample(50, generator=seeded(4), dtype=F64)
    velocity = (trials.inputs_clean[:, 5:, 0] - trials.inputs_clean[:, 5:, 1]).tolist()
    runs = []
    for row in velocity:
        lengths, count = [], 1
        for a, b in itertools.pairwise(row):
            count = count + 1 if a == b else (lengths.append(count), 1)[1]
        runs += lengths
    assert (min(runs), max(runs)) == (6, 17)
    assert abs(sum(runs) / len(runs) - 11.5) < 4 * math.sqrt((12**2 - 1) / 12 / len(runs)) + 0.2  # cut at the end
    flat = torch.tensor(velocity).flatten()
    assert 1.9 < float(flat.abs().max()) <= 2


def test_score_of_angles_counts_steps():
    task = AngularIntegration()
    trials = task.sample(4, generator=seeded(5), dtype=F64)
    angle, _ = read_angle(trials.targets, "cos_sin")
    outputs = to_channels(angle + 0.2, "cos_sin")
    assert task.score(outputs, trials) == {"accuracy": 1.0, "angular_error": pytest.approx(0.2)}
    outputs[:, ::2] = 0
    assert task.score(outputs, trials)["accuracy"] == pytest.approx(52 / 105)


def test_the_sine_has_the_frequency_of_its_level():
    trials = SineGenerator().sample(51, mode="grid", dtype=F64)
    for b in range(51):
        j, omega = int(trials.conditions["number"][b]), 1 + 0.1 * b
        assert j == b + 1
        assert float(trials.conditions["frequency"][b]) == pytest.approx(omega)
        assert torch.equal(trials.inputs_clean[b], torch.full((200, 1), j / 51 + 0.25, dtype=F64))
        time = 0.05 * torch.arange(200, dtype=F64)
        torch.testing.assert_close(trials.targets[b, :, 0], (omega * time).sin(), rtol=0, atol=1e-12)


def test_a_rotation_solves_the_sine_task():
    """The multiplier that the docstring states: arg μ/Δ = ω."""
    task = SineGenerator(low=2.0, high=5.0)
    trials = task.sample(4, generator=seeded(6), dtype=F64)
    mu = torch.exp(1j * trials.conditions["frequency"] * 0.05)
    outputs = torch.stack([(mu**t).imag for t in range(200)], dim=1)[:, :, None]
    assert task.score(outputs, trials)["accuracy"] == 1.0
    assert task.score(outputs, trials)["r2"] > 1 - 1e-12


def test_forecasts_follow_the_latent_system():
    task = LowRankForecast(K=3, dim=20, num_observed=7, num_forecast=5, steps=6)
    s = task.system()
    torch.testing.assert_close(s["A"] @ s["A"].T, torch.eye(3, dtype=F64))
    trials = task.sample(4, generator=seeded(7), dtype=F64)
    z = torch.randn(4, 3, generator=seeded(7), dtype=F64)
    for t in range(6):
        x = z @ s["C"].T
        torch.testing.assert_close(trials.inputs_clean[:, t], (x @ s["W_i"].T + s["b_i"]).sin())
        z = 0.8 * z + 0.2 * z @ s["A"].T
        torch.testing.assert_close(trials.targets[:, t], (z @ s["C"].T @ s["W_o"].T + s["b_o"]).sin())


def test_the_system_is_that_of_its_seed():
    task = LowRankForecast(K=2, dim=4)
    assert all(torch.equal(a, b) for a, b in zip(task.system().values(), task.system().values(), strict=True))
    assert not torch.equal(task.system()["C"], LowRankForecast(K=2, dim=4, seed=1).system()["C"])


def naive_teacher(task, inputs):
    w = task.weights()
    h, states = torch.zeros(len(inputs), task.N, dtype=F64), []
    for t in range(task.steps):
        h = torch.tanh(inputs[:, t] @ w["W_in"].T + h @ w["W"].T)
        states.append(h)
    return torch.stack(states, dim=1)


@pytest.mark.parametrize("recurrent", ["orthogonal", "gaussian"])
@pytest.mark.parametrize("target", ["outputs", "states"])
def test_a_student_with_the_teachers_weights_has_no_error(recurrent, target):
    task = StudentTeacher(g=1.3, recurrent=recurrent, target=target, num_readouts=2)
    trials = task.sample(5, generator=seeded(10), dtype=F64)
    states = naive_teacher(task, trials.inputs)
    outputs = states if target == "states" else states @ task.weights()["W_out"].T
    assert float(task.loss(outputs, trials)) < 1e-28
    assert task.score(outputs, trials)["accuracy"] == 1.0


def test_a_torch_network_can_be_the_student():
    task = StudentTeacher(g=0.9)
    trials = task.sample(3, dtype=F64)
    w = task.weights()
    with torch.random.fork_rng(devices=[]):
        rnn = torch.nn.RNN(16, 64, batch_first=True, bias=False, dtype=F64)
    rnn.load_state_dict({"weight_ih_l0": w["W_in"], "weight_hh_l0": w["W"]})
    assert float(task.loss(rnn(trials.inputs)[0].detach() @ w["W_out"].T, trials)) < 1e-28


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("r", [1, 6, 16])
def test_inputs_have_rank_r_and_the_stated_power(r, seed):
    task = StudentTeacher(r=r, seed=seed, power=2.0)
    x = task.sample(100, generator=seeded(seed), dtype=F64).inputs.flatten(0, 1)
    assert int(torch.linalg.matrix_rank(x)) == r
    n = 100 * 40
    power = x.square().sum(1)
    assert abs(float(power.mean()) - 2.0) < 4 * 2.0 * math.sqrt(2 / (r * n))


@pytest.mark.parametrize("correlation", [0.0, 30.0, 200.0])
def test_inputs_forget_with_their_correlation_time(correlation):
    """Variance and autocorrelation exp(−s dt/τ_c) from the first step on, in every direction apart."""
    n = 4000
    task = StudentTeacher(N=8, num_inputs_x=3, r=3, power=6.0, correlation=correlation, steps=20)
    x = task.sample(n, generator=seeded(3), dtype=F64).inputs
    for t in (0, 1, 19):
        assert float((x[:, t].T @ x[:, t] / n - 2 * torch.eye(3)).abs().max()) < 4 * 2 * math.sqrt(2 / n)
    for t, lag in ((0, 1), (0, 4), (10, 3)):
        expected = math.exp(-20.0 * lag / correlation) if correlation else 0.0
        found = x[:, t].T @ x[:, t + lag] / n / 2
        assert float((found - expected * torch.eye(3)).abs().max()) < 4 * math.sqrt((1 + expected**2) / n)


def test_correlated_inputs_are_made_of_the_white_ones():
    white, slow = (StudentTeacher(correlation=c).sample(3, generator=seeded(1), dtype=F64).inputs for c in (0.0, 100.0))
    assert torch.equal(white[:, 0], slow[:, 0])
    kept = math.exp(-0.2)
    torch.testing.assert_close(slow[:, 1], kept * slow[:, 0] + math.sqrt(1 - kept**2) * white[:, 1])


def test_weights_of_the_teacher():
    task = StudentTeacher(g=1.5)
    w = task.weights()
    torch.testing.assert_close(w["W"] @ w["W"].T, 2.25 * torch.eye(64, dtype=F64))
    torch.testing.assert_close(task.weights(0.5)["W"], w["W"] / 3)
    assert float(w["W_in"].std()) == pytest.approx(math.sqrt(2 / 80), rel=0.1)
    assert float(w["W_out"].std()) == pytest.approx(math.sqrt(2 / 65), rel=0.35)
    low = StudentTeacher(teacher_rank=3).weights()["W"]
    values = torch.linalg.svdvals(low)
    assert int((values > 1e-10).sum()) == 3
    gaussian = StudentTeacher(recurrent="gaussian", N=200).weights()["W"]
    assert float(gaussian.square().sum()) / 200 == pytest.approx(1, rel=4 * math.sqrt(2) / 200)


@pytest.mark.parametrize("mode", ["random", "grid"])
def test_copies_repeat_the_list(mode):
    trials = Copy(symbols=5, items=4, delay=3).sample(25, generator=seeded(11), mode=mode)
    assert trials.inputs.shape == (25, 11, 6)
    assert torch.equal(trials.targets[:, 7:], trials.inputs[:, :4, :5])
    assert trials.inputs[:, :4, :5].sum(2).unique().tolist() == [1]
    assert not trials.inputs[:, 4:, :5].any()
    assert trials.inputs[:, :, 5].nonzero()[:, 1].unique().tolist() == [6]
    assert torch.equal(trials.mask[0, :, 0], torch.tensor([0.0] * 7 + [1.0] * 4))
    said = trials.targets[:, 7:].argmax(2)
    if mode == "grid":
        assert len({tuple(row) for row in said.tolist()}) == 25
    assert set(said.flatten().tolist()) == set(range(5))


def test_score_of_copies():
    task = Copy(symbols=3, items=2, delay=1)
    trials = task.sample(6, generator=seeded(12))
    outputs = trials.targets.clone()
    outputs[0, 3] = outputs[0, 3].roll(1)
    assert task.score(outputs, trials) == {"accuracy": pytest.approx(11 / 12), "perfect_trials": pytest.approx(5 / 6)}


def test_marks_of_the_addition():
    n = 2000
    trials = DelayedAddition(steps=11).sample(n, generator=seeded(13), dtype=F64)
    numbers, marks = trials.inputs_clean.unbind(2)
    assert marks[:, :5].sum(1).unique().tolist() == marks[:, 5:].sum(1).unique().tolist() == [1]
    for half in (marks[:, :5], marks[:, 5:]):
        expected = n / half.shape[1]
        assert (half.sum(0) - expected).abs().max() < 4 * expected**0.5
    torch.testing.assert_close((numbers * marks).sum(1), trials.targets[:, -1, 0])
    assert not trials.targets[:, :-1].any()
    assert torch.equal(trials.conditions["sum"], trials.targets[:, -1, 0])
    task = DelayedAddition()
    wide = task.sample(4000, generator=seeded(14))
    always_one = task.score(torch.ones_like(wide.targets), wide)["accuracy"]
    assert abs(always_one - (1 - 0.96**2)) < 4 * math.sqrt(0.0784 * 0.9216 / 4000)


def test_flipflop_in_two_contexts():
    task = FlipFlop(K=2, anti=True)
    trials = task.sample(200, generator=seeded(15), dtype=F64)
    s = trials.conditions["context"]
    assert s.unique().tolist() == [-1, 1]
    assert abs(float(s.mean())) < 4 / 200**0.5
    assert torch.equal(trials.inputs_clean[:, :, 2], s[:, None].expand(200, 90))
    held = torch.zeros(200, 2, dtype=F64)
    for t in range(90):
        pulse = trials.inputs_clean[:, t, :2]
        held = torch.where(pulse != 0, pulse, held)
        assert torch.equal(trials.targets[:, t], held * s[:, None])
    assert task.static_inputs("memory", {"context": s[:2]}, dtype=F64).tolist() == [[0, 0, float(x)] for x in s[:2]]
    grid = task.sample(8, mode="grid")
    assert torch.equal(grid.targets[::2], -grid.targets[1::2])
    assert torch.equal(grid.inputs_clean[::2, :, :2], grid.inputs_clean[1::2, :, :2])


def test_rings_and_channels_read_back_their_angle():
    angle = torch.rand(50, generator=seeded(16), dtype=F64) * 2 * math.pi
    for channels, order in (
        (ring(angle, 32), None),
        (to_channels(angle, "cos_sin"), "cos_sin"),
        (to_channels(angle, "sin_cos"), "sin_cos"),
        (0.05 + ring(angle, 32), None),
    ):
        found, strength = read_angle(channels, order)
        assert float((torch.remainder(found - angle + math.pi, 2 * math.pi) - math.pi).abs().max()) < 1e-5
        assert float(strength.min()) > 0.5
    peak = ring(torch.tensor([math.pi / 2], dtype=F64), 32)
    assert int(peak.argmax()) == 8
    assert float(peak.max()) == pytest.approx(0.8)


def test_shared_scores():
    trials = SineGenerator(steps=10).sample(3, dtype=F64)
    assert within(trials.targets + 0.3, trials, 0.3001) == 1.0
    assert within(trials.targets + 0.3, trials, 0.2999) == 0.0
    mean = trials.targets.mean().expand_as(trials.targets)
    assert explained(mean, trials) == pytest.approx(0, abs=1e-12)
    assert explained(trials.targets, trials) == 1.0
    torch.testing.assert_close(decision(trials.targets, trials), trials.targets.mean(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Integration(leak=2), "`leak` must be a number between 0 and 1; got 2"),
        (lambda: Integration(bound=0), "`bound` must be a positive number; got 0"),
        (lambda: Integration(steps=0), "`steps` must be a positive whole number; got 0"),
        (lambda: Integration(spread=-1), "`spread` must be a number at least 0; got -1"),
        (lambda: Integration(pulses=51), "`pulses` must be a number between 0 and 50; got 51"),
        (lambda: Integration(refractory=-1), "`refractory` must be a number at least 0; got -1"),
        (lambda: Integration(jump=0), "`jump` must be a positive number; got 0"),
        (lambda: AngularIntegration(block=0), "`block` must be a positive whole number; got 0"),
        (lambda: AngularIntegration(speed=0), "`speed` must be a positive number; got 0"),
        (lambda: AngularIntegration(order="x"), "`order` must be one of 'cos_sin', 'sin_cos'; got 'x'"),
        (lambda: SineGenerator(n=1), "`n` must be a whole number at least 2; got 1"),
        (lambda: SineGenerator(high=0.5), "`high` must be a number at least 1; got 0.5"),
        (lambda: SineGenerator(dt=500.0), "`dt` must leave four steps to a period of 6 radians .*; got 500 ms"),
        (lambda: LowRankForecast(K=0), "`K` must be a positive whole number; got 0"),
        (lambda: LowRankForecast(seed=-1), "`seed` must be a whole number at least 0; got -1"),
        (lambda: StudentTeacher(r=17), "`r` must be a whole number between 1 and 16; got 17"),
        (lambda: StudentTeacher(teacher_rank=65), "`teacher_rank` must be a whole number between 1 and 64; got 65"),
        (lambda: StudentTeacher(g=-1), "`g` must be a number at least 0; got -1"),
        (lambda: StudentTeacher(recurrent="x"), "`recurrent` must be one of 'orthogonal', 'gaussian'; got 'x'"),
        (lambda: StudentTeacher(target="x"), "`target` must be one of 'outputs', 'states'; got 'x'"),
        (lambda: StudentTeacher(correlation=-1), "`correlation` must be a number at least 0; got -1"),
        (lambda: StudentTeacher(power=0), "`power` must be a positive number; got 0"),
        (lambda: Copy(symbols=1), "`symbols` must be a whole number at least 2; got 1"),
        (lambda: Copy(delay=0), "`delay` must be a positive whole number; got 0"),
        (lambda: DelayedAddition(steps=1), "`steps` must be a whole number at least 2; got 1"),
        (lambda: DelayedAddition(tolerance=0), "`tolerance` must be a positive number; got 0"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_parameters_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("no_type_checks")
def test_anti_is_a_flag():
    with pytest.raises(TypeError, match="`anti` must be True or False; got 1"):
        FlipFlop(anti=1)
