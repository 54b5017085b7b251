"""MemoryPro, MemoryAnti, DelayPro, DelayAnti against their definitions, step by step."""

import math

import pytest
import torch

from kpflow.tasks import DelayAnti, DelayPro, MemoryAnti, MemoryPro
from kpflow.tasks.timing import to_steps

KINDS = {MemoryPro: (False, 0.0), MemoryAnti: (False, math.pi), DelayPro: (True, 0.0), DelayAnti: (True, math.pi)}
SETTINGS = {
    "default": {},
    "sin_cos": {"order": "sin_cos", "context": 4, "fixation_target": 0.8},
    "driscoll": {"timing": "driscoll", "tau": 100.0},
    "driscoll weights": {"weighting": "driscoll", "context": 10},
    "coarse": {"timing": "driscoll", "dt": 50.0, "grace": 0.0},
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def channels(task, angle, amplitude=1.0):
    pair = [amplitude * math.cos(angle), amplitude * math.sin(angle)]
    return pair if task.order == "cos_sin" else pair[::-1]


def weights(task, t, go, end):
    """Driscoll's cost weights w, squared; or ones; none in the grace period."""
    grace = int(task.grace / task.dt)
    if go <= t < go + grace or t >= end:
        return [0.0, 0.0, 0.0]
    if task.weighting == "uniform":
        return [1.0, 1.0, 1.0]
    w = 0.0 if t < grace else 1.0 if t < go else 5.0
    return [(2 * w) ** 2, w**2, w**2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_step_is_as_defined(kind, setting):
    task = kind(**SETTINGS[setting])
    stays, turn = KINDS[kind]
    trials = task.sample(3, generator=seeded(0), dtype=torch.float64)
    for b in range(3):
        angle = float(trials.conditions["angle"][b])
        on, off = (int(times[b]) for times in trials.epochs["stimulus"])
        go, end = (int(times[b]) for times in trials.epochs["response"])
        assert end == int(trials.length[b])
        inputs, targets, mask = [], [], []
        for t in range(trials.num_steps):
            shown = t < end and on <= t and (stays or t < off)
            answered = go <= t < end
            inputs.append([float(t < go), *(channels(task, angle) if shown else [0.0, 0.0])])
            answer = channels(task, angle + turn) if answered else [0.0, 0.0]
            targets.append([task.fixation_target * (t < go), *answer])
            mask.append(weights(task, t, go, end))
        for name, expected in {"inputs_clean": inputs, "targets": targets, "mask": mask}.items():
            expected = torch.tensor(expected, dtype=torch.float64)
            torch.testing.assert_close(getattr(trials, name)[b], expected, rtol=0, atol=1e-15)


def test_the_default_is_thirty_steps_each():
    trials = MemoryPro().sample(1)
    assert [(int(a), int(b)) for a, b in trials.epochs.values()] == [(0, 0), (0, 30), (30, 60), (60, 90)]
    trials = DelayPro().sample(1)
    assert [(int(a), int(b)) for a, b in trials.epochs.values()] == [(0, 0), (0, 60), (60, 90)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", [MemoryAnti, DelayAnti])
def test_drawn_durations_are_uniform_in_their_ranges(kind, seed):
    """⌊U(a, b)/dt⌋ for a, b multiples of dt is uniform on a/dt … b/dt − 1."""
    ranges = {"context": (300, 700), "response": (300, 700)}
    ranges |= {"stimulus": (200, 1500)} if kind is DelayAnti else {"stimulus": (200, 1600), "memory": (200, 1600)}
    n = 4000
    trials = kind.driscoll().sample(n, generator=seeded(seed))
    for name, (low, high) in ranges.items():
        start, stop = trials.epochs[name]
        steps = (stop - start).double()
        low, high = low // 20, high // 20 - 1
        assert (int(steps.min()), int(steps.max())) == (low, high)
        std = math.sqrt(((high - low + 1) ** 2 - 1) / 12)
        assert abs(float(steps.mean()) - (low + high) / 2) < 4 * std / math.sqrt(n)
        assert float(steps.std()) == pytest.approx(std, rel=4 * math.sqrt(0.2 / n))  # kurtosis of the uniform law: 1.8


def test_durations_are_independent_of_each_other():
    trials = MemoryPro.driscoll().sample(4000)
    lengths = torch.stack([(stop - start).double() for start, stop in trials.epochs.values()])
    assert (torch.corrcoef(lengths) - torch.eye(4)).abs().max() < 4 / 4000**0.5


def test_shared_timing_is_one_draw_for_the_batch():
    task = MemoryPro.driscoll()
    trials = task.sample(20, generator=seeded(0), shared_timing=True)
    assert all(len(times.unique()) == 1 for pair in trials.epochs.values() for times in pair)
    assert len(trials.conditions["angle"].unique()) == 20
    other = task.sample(20, generator=seeded(1), shared_timing=True)
    assert int(other.length[0]) != int(trials.length[0])


def test_the_grid_of_driscoll_timings():
    memory = MemoryPro.driscoll().sample(2, mode="grid")
    assert [int(stop[0]) * 20 for _, stop in memory.epochs.values()] == [500, 1000, 2000, 2500]
    delay = DelayPro.driscoll().sample(2, mode="grid")
    assert [int(stop[1]) * 20 for _, stop in delay.epochs.values()] == [500, 1500, 2000]


def test_angles_of_the_grid_are_evenly_spaced_from_zero():
    angle = MemoryPro().sample(8, mode="grid", dtype=torch.float64).conditions["angle"]
    torch.testing.assert_close(angle, torch.arange(8, dtype=torch.float64) * math.pi / 4, rtol=1e-15, atol=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_drawn_angles_are_uniform_on_the_circle(seed):
    angle = MemoryPro().sample(4000, generator=seeded(seed), dtype=torch.float64).conditions["angle"]
    assert 0 <= float(angle.min()) < float(angle.max()) < 2 * math.pi
    for k in (1, 2, 3):  # cos kθ and sin kθ have mean 0 and variance 1/2
        assert abs(float((k * angle).cos().mean())) < 4 * math.sqrt(0.5 / 4000)
        assert abs(float((k * angle).sin().mean())) < 4 * math.sqrt(0.5 / 4000)


def test_static_inputs_in_each_epoch():
    angle = torch.tensor([0.3], dtype=torch.float64)
    c, s = math.cos(0.3), math.sin(0.3)
    memory, delay = MemoryPro(), DelayAnti(order="sin_cos")
    rows = {"context": [1, 0, 0], "stim1": [1, c, s], "memory": [1, 0, 0], "go1": [0, 0, 0]}
    for epoch, row in rows.items():
        assert memory.static_inputs(epoch, {"angle": angle}).tolist() == [row]
    rows = {"fix1": [1, 0, 0], "stimulus": [1, s, c], "response": [0, s, c]}
    for epoch, row in rows.items():
        assert delay.static_inputs(epoch, {"angle": angle}).tolist() == [row]


def test_static_inputs_without_conditions_are_one_row_where_none_matters():
    assert MemoryPro().static_inputs("memory", {}).tolist() == [[1.0, 0.0, 0.0]]
    assert MemoryPro().static_inputs("memory", {"angle": torch.zeros(4)}).shape == (4, 3)
    assert MemoryPro().static_inputs("memory", {}, dtype=torch.float64).dtype == torch.float64


def answer(task, trials, turn=0.0, fixation=0.0, amplitude=1.0):
    """Outputs that are nonsense except at the last step of each trial, where the angle is off by `turn`."""
    outputs = torch.full_like(trials.targets, 7.0)
    for b, angle in enumerate(trials.conditions["angle"].tolist()):
        goal = angle + (math.pi if task.anti else 0.0) + turn
        row = [fixation, *channels(task, goal, amplitude)]
        outputs[b, int(trials.length[b]) - 1] = torch.tensor(row, dtype=torch.float64)
    return outputs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["cos_sin", "sin_cos"])
def test_score_is_by_the_angle_and_the_fixation_at_the_last_step(kind, order):
    task = kind(timing="driscoll", order=order)
    trials = task.sample(25, generator=seeded(2), dtype=torch.float64)

    def accuracy(**how):
        return task.score(answer(task, trials, **how), trials)["accuracy"]

    tolerance = math.pi / 10
    assert accuracy(turn=tolerance - 1e-9) == accuracy(turn=1e-9 - tolerance) == 1.0
    assert accuracy(turn=tolerance + 1e-9) == accuracy(turn=-1e-9 - tolerance) == 0.0
    assert accuracy(amplitude=0.01) == accuracy(amplitude=30.0) == 1.0
    assert accuracy(fixation=0.5) == 1.0
    assert accuracy(fixation=0.5001) == 0.0
    assert accuracy(amplitude=0.0) == 0.0
    assert accuracy(turn=2 * math.pi) == 1.0


def test_score_reports_the_mean_error_and_the_release():
    task = MemoryPro()
    trials = task.sample(10, dtype=torch.float64)
    scores = task.score(answer(task, trials, turn=-0.7, fixation=0.9), trials)
    assert scores == {"accuracy": 0.0, "released": 0.0, "angular_error": pytest.approx(0.7, rel=1e-12)}
    silent = task.score(torch.zeros_like(trials.targets), trials)
    assert silent == {"accuracy": 0.0, "released": 1.0, "angular_error": pytest.approx(math.pi)}


def test_the_mirror_image_with_the_same_cosine_is_wrong():
    task = MemoryPro()
    trials = task.sample(8, mode="grid", dtype=torch.float64)
    mirrored = trials.targets * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    assert task.score(mirrored, trials)["accuracy"] == 2 / 8  # right at θ = 0 and π alone


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"stimulus": 0}, "`stimulus` must be a whole number at least 1; got 0"),
        ({"memory": -1}, "`memory` must be a whole number at least 0; got -1"),
        ({"response": -5}, "`response` must be a whole number at least 1; got -5"),
        ({"context": -5}, "`context` must be a whole number at least 0; got -5"),
        ({"stimulus": 2.5}, "`stimulus` must be a whole number at least 1; got 2.5"),
        ({"timing": "yang"}, "`timing` must be one of 'fixed', 'driscoll'; got 'yang'"),
        ({"order": "tan"}, "`order` must be one of 'cos_sin', 'sin_cos', 'one_hot'; got 'tan'"),
        ({"angles": 2}, "`angles` must be a whole number at least 3; got 2"),
        ({"weighting": "x"}, "`weighting` must be one of 'uniform', 'driscoll'; got 'x'"),
        ({"sigma": -0.1}, "`sigma` must be a number at least 0; got -0.1"),
        ({"sigma": math.nan}, "`sigma` must be a number at least 0; got nan"),
        ({"sigma": math.inf}, "`sigma` must be a number at least 0; got inf"),
        ({"fixation_target": 2}, "`fixation_target` must be a number between 0 and 1; got 2"),
        ({"dt": 0}, "`dt` must be a positive finite number; got 0"),
        ({"tau": "20"}, "`tau` must be a positive finite number; got '20'"),
        ({"grace": -1}, "`grace` must be a number at least 0; got -1"),
        ({"response": 5}, r"`grace` must be shorter than the response; got 100 ms = 5 steps for 5 steps.*grace=0.0"),
        ({"timing": "driscoll", "grace": 300.0}, "`grace` must be shorter than the response; got 300 ms = 15 steps"),
        ({"timing": "driscoll", "memory": 10}, "`memory` is for timing='fixed'"),
        ({"timing": "driscoll", "dt": 250.0}, "`dt` must be at most 200 ms with timing='driscoll'; got 250"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_parameters_out_of_range(parameters, message):
    with pytest.raises(ValueError, match=message):
        MemoryPro(**parameters)


def test_driscoll_takes_changes():
    task = MemoryAnti.driscoll(sigma=0.0)
    assert isinstance(task, MemoryAnti)
    assert (task.sigma, task.order, task.fixation_target, task.tau) == (0.0, "sin_cos", 0.8, 100.0)
    trials = task.sample(3)
    assert torch.equal(trials.inputs, trials.inputs_clean)


def test_steps_of_a_duration_are_floored_but_safe_against_rounding():
    assert [to_steps(ms, 20) for ms in (0, 19.9, 20, 39, 100)] == [0, 0, 1, 1, 5]
    assert 0.3 / 0.1 < 3
    assert [to_steps(k / 10, 0.1) for k in range(20)] == list(range(20))


@pytest.mark.parametrize("kind", KINDS)
def test_directions_one_hot(kind):
    task = kind(order="one_hot", angles=30)
    assert task.num_inputs == task.num_outputs == 31
    trials = task.sample(60, mode="grid", dtype=torch.float64)
    k = torch.arange(60) % 30
    torch.testing.assert_close(trials.conditions["angle"], 2 * math.pi * k.double() / 30)
    goal = (k + 15 * task.anti) % 30
    for b in range(60):
        assert trials.inputs_clean[b, 10].nonzero()[:, 0].tolist() == [0, 1 + int(k[b])]
        assert trials.targets[b, -1].nonzero()[:, 0].tolist() == [1 + int(goal[b])]
        assert trials.targets[b, 20].nonzero()[:, 0].tolist() == [0]
    assert task.score(trials.targets, trials) == {"accuracy": 1.0, "released": 1.0, "angular_error": pytest.approx(0)}
    neighbour = torch.cat((trials.targets[:, :, :1], trials.targets[:, :, 1:].roll(2, dims=2)), dim=2)
    assert task.score(neighbour, trials)["angular_error"] == pytest.approx(4 * math.pi / 30)
    drawn = task.sample(3000, generator=seeded(0), noise=False).conditions["angle"]
    counts = drawn.unique(return_counts=True)[1]
    assert len(counts) == 30
    assert (counts - 100).abs().max() < 45


@pytest.mark.usefixtures("no_type_checks")
def test_anti_needs_an_opposite_direction():
    with pytest.raises(ValueError, match="`angles` must be even, for there to be an opposite direction; got 7"):
        MemoryAnti(order="one_hot", angles=7)
    assert MemoryPro(order="one_hot", angles=7).num_inputs == 8
