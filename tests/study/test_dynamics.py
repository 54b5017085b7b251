"""Dynamics in a study: fixed points, exponents and events are those of the core, and failures stay their own."""

import json

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from kpflow.dynamics import find_fixed_points, training_path
from kpflow.states import linearise
from kpflow.study import Settings, Store, analyse, analyse_folder, read_record, save_checkpoint
from kpflow.study import intervals as intervals_module
from kpflow.study.dynamics import WIDTH, Held, held_still
from kpflow.study.intervals import KINDS, _interpolant, follow_interval, with_intervals
from kpflow.study.measures import principal_components
from kpflow.tasks import FlipFlop, MemoryPro

TASK = FlipFlop(K=1, steps=8, p=0.3)
QUICK = Settings(modes=4, budget=12, starts=16, search_seconds=60.0, path_seconds=60.0)  # however busy the machine


class Net(nn.Module):
    """A read-out of a core that is driven through an encoder."""

    def __init__(self, core=nn.RNN, gain=1.0, **options):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Linear(1, 2)
        self.rnn = core(2, 4, batch_first=True, **options)
        self.readout = nn.Linear(4, 1)
        with torch.no_grad():
            for parameter in self.rnn.parameters():
                parameter.mul_(gain)

    def forward(self, x):
        return self.readout(self.rnn(self.encoder(x))[0])


def scalar(weight, bias=0.0):
    """h ↦ tanh(w h + b) in its first unit, a contraction in the other: a pitchfork at w = 1 for b = 0."""
    model = Net()
    with torch.no_grad():
        for parameter in [*model.encoder.parameters(), *model.rnn.parameters()]:
            parameter.zero_()
        model.encoder.weight[0, 0] = model.rnn.weight_ih_l0[0, 0] = 1.0  # pulses alone move the first unit
        model.rnn.weight_hh_l0.copy_(torch.diag(torch.tensor([weight, 0.2, 0.1, 0.3])))
        model.rnn.bias_ih_l0[0] = bias
    return model


def run(model, task=TASK, settings=QUICK, core="rnn"):
    trials = task.sample(4, mode="grid", noise=False)
    return analyse(model, trials, loss=lambda y: task.loss(y, trials), core=core, task=task, settings=settings), trials


@pytest.fixture(scope="module")
def bistable():
    return scalar(2.0), *run(scalar(2.0))


def test_the_points_of_a_network_that_is_known(bistable):
    _, record, _ = bistable
    record = record.isel(step=0)
    stable, size = record.fixed_point_stable.values, record.fixed_point_multiplier.values
    assert stable[:3].tolist() == [1, 1, 0]
    assert np.isnan(stable[3:]).all()
    h = 0.957504024077268  # = tanh 2h
    np.testing.assert_allclose(size[:3], [0.3, 0.3, 2.0], rtol=1e-6)  # 2 (1 − h²) = 0.17 is less
    np.testing.assert_allclose(np.sort(record.fixed_point_state.values[:3, 0]), [-h, 0, h], atol=1e-9)
    assert record.fixed_point_unstable.values[:3].tolist() == [0, 0, 1]
    assert (record.fixed_point_residual.values[:3] < 1e-11).all()
    assert record.fixed_point_slow.values[:3].tolist() == [0, 0, 0]
    assert (float(record.fixed_point_count), float(record.fixed_point_index_sum)) == (3, 1)
    named = {name: record[name].attrs["names"][int(record[name])] for name in ("fixed_point_verdict",)}
    assert named == {"fixed_point_verdict": "consistent"}
    assert record.fixed_point_stopped.attrs["names"][int(record.fixed_point_stopped)] == "complete"
    assert record.sizes["point"] == WIDTH


def test_points_and_trajectories_share_their_components(bistable):
    model, record, trials = bistable
    lin = linearise(model, trials.inputs, core="rnn")
    components = principal_components(lin.states[trials.valid])
    record = record.isel(step=0)
    states = torch.from_numpy(record.fixed_point_state.values[:3])
    np.testing.assert_allclose(record.fixed_point_position[:3], components.of(states), atol=1e-6)
    np.testing.assert_allclose(record.trajectory, components.of(lin.states), atol=1e-6)


def test_exponents_are_those_of_the_core(bistable):
    _, record, _ = bistable
    values, errors = record.lyapunov_exponent.values[0], record.lyapunov_exponent_error.values[0]
    assert (len(values), np.isfinite(values).sum()) == (8, 4)
    np.testing.assert_allclose(values[:4], np.log([0.3, 0.2, 2 * (1 - 0.957504024077268**2), 0.1]), atol=0.02)
    assert (errors[:4] >= 0).all()


def test_the_input_of_the_core_is_what_an_encoder_makes_of_that_of_the_task():
    model = Net()
    held = held_still(model, "rnn", TASK, TASK.sample(2, mode="grid"))
    assert (held.epoch, held.words) == ("memory", "pulse 0 0")
    torch.testing.assert_close(held.inputs, model.encoder.bias.detach())
    memory = MemoryPro(context=0, stimulus=2, memory=9, response=2, grace=0.0)
    core = nn.GRU(3, 4, batch_first=True)
    held = held_still(core, None, memory, memory.sample(2, mode="grid"))
    assert (held.epoch, held.inputs.tolist()) == ("memory", [1, 0, 0])
    assert held.core is core


class Moving(nn.Module):
    """An encoder that counts the steps."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(1, 4, batch_first=True)
        self.readout = nn.Linear(4, 1)

    def forward(self, x):
        return self.readout(self.rnn(x + torch.arange(x.shape[1])[:, None])[0])


@pytest.mark.parametrize(
    ("model", "settings", "says"),
    [
        (Net(num_layers=2), QUICK, "`step` must have one layer, one direction and no projection; got RNN"),
        (Moving(), QUICK, "The input of the core moves while that of the task stands still."),
        (Net(), Settings(modes=4, budget=12, starts=0), "Fixed points were not asked for: `starts` is 0."),
    ],
)
def test_what_has_no_fixed_points_says_why_and_the_rest_is_there(model, settings, says):
    record, _ = run(model, settings=settings)
    assert record.attrs["dynamics_left_out"].startswith(says)
    assert record.attrs["dynamics_left_out"].count(". ") == 0
    assert not [name for name in record.data_vars if str(name).startswith(("fixed_point", "lyapunov"))]
    assert np.isfinite(record.loss).all()


def test_no_task_and_no_epoch_that_stands_still(monkeypatch):
    trials = TASK.sample(4, mode="grid", noise=False)
    record = analyse(Net(), trials, loss=lambda y: TASK.loss(y, trials), core="rnn", settings=QUICK)
    assert record.attrs["dynamics_left_out"] == "No task was given, whose static inputs would be needed."
    monkeypatch.setattr("kpflow.study.dynamics._is_free", lambda *_: False)
    with pytest.raises(ValueError, match="No epoch of FlipFlop has one input that stands still under all conditions"):
        held_still(Net(), "rnn", TASK, trials)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="No recurrence is known of the core, a Linear"):
        held_still(Net(), "readout", TASK, trials)


@pytest.mark.parametrize("core", [nn.GRU, nn.LSTM])
def test_other_cores(core):
    record, _ = run(Net(core, 3.0))
    model = Net(core, 3.0)
    states = torch.from_numpy(record.fixed_point_state.isel(step=0).values)
    found = find_fixed_points(model.rnn, model.encoder.bias.detach(), states[:1])
    assert float((found.states - states[:1]).norm(dim=1).min()) < 1e-8
    assert record.fixed_point_slow.values[0, 0] == 0


# intervals ----------------------------------------------------------------------------------------------------------


def ends(*models):
    held = [held_still(model, "rnn", TASK, TASK.sample(2, mode="grid")) for model in models]
    seeds = torch.linspace(-1, 1, 9)[:, None].expand(9, 4)
    return held, tuple(find_fixed_points(one.core, one.inputs, seeds).states for one in held)


def test_a_pitchfork_between_two_checkpoints():
    held, points = ends(scalar(0.5), scalar(1.5))
    found = follow_interval(*held, points, (100, 200), time_limit=60.0)
    kinds = found.event_kind.values[0]
    assert [KINDS[int(kind)] for kind in kinds[np.isfinite(kinds)]] == ["pitchfork"]
    np.testing.assert_allclose(found.event_step.values[0, 0], 150, atol=1e-6)
    assert (found.step.values.tolist(), found.event_since.values.tolist()) == ([200], [100])
    assert found.unresolved_points.values.tolist() == [0]


def test_the_events_are_those_of_the_modules_themselves():
    held, points = ends(scalar(0.5, 0.02), scalar(1.6, 0.01))
    found = follow_interval(*held, points, (0, 10), time_limit=60.0)
    path = training_path(held[0].core, held[1].core, held[0].inputs, *points, between=(0.0, 10.0), max_step=0.2)
    steps = found.event_step.values[0]
    np.testing.assert_allclose(steps[np.isfinite(steps)], [path.step_of(event) for event in path.events], rtol=1e-8)
    assert len(path.events) == 1


def test_an_encoder_that_learns_moves_the_static_input_too():
    """tanh(w h + b) with the bias from the encoder alone: a fold where the sum of both crosses its critical value."""
    models = scalar(2.0), scalar(2.0)
    with torch.no_grad():
        for model, bias in zip(models, (0.0, 1.0), strict=True):
            model.encoder.bias[0] = bias
    found = follow_interval(*(both := ends(*models))[0], both[1], (0, 1), time_limit=60.0)
    np.testing.assert_allclose(found.event_step.values[0, 0], 0.5328399754, atol=1e-7)
    assert KINDS[int(found.event_kind.values[0, 0])] in ("fold", "imperfect pitchfork")


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")
@pytest.mark.parametrize("core", [nn.GRU, nn.LSTM, nn.RNN])
def test_the_interpolant_has_the_derivatives_of_first_order_in_the_parameters(core):
    one, other = Net(core), Net(core, 2.0)
    held = [Held(model.rnn, "", torch.tensor([0.1, 0.2]), "") for model in (one, other)]
    h = 0.1 * torch.arange(8 if core is nn.LSTM else 4).double()[None]
    step = _interpolant(held[0], held[1], h)

    model = core(2, 4, batch_first=True).double()

    def plain(state, s):
        theta = {
            name: a.double() * (1 - s) + s * b.detach().double()
            for (name, a), b in zip(one.rnn.named_parameters(), other.rnn.parameters(), strict=True)
        }
        x = torch.tensor([[[0.1, 0.2]]]).double()
        parts = tuple(part[None] for part in state[None].chunk(2 if core is nn.LSTM else 1, dim=1))
        given = parts if core is nn.LSTM else parts[0]
        last = torch.func.functional_call(model, theta, (x, given))[1]
        return torch.cat([part[0, 0] for part in (last if core is nn.LSTM else (last,))])

    def quick(state, s):
        return step(state[None], torch.zeros(1, 2), {"s": s})[0]

    s = torch.tensor(0.3).double()
    for found, truth in zip(
        torch.autograd.functional.jacobian(quick, (h[0], s)),
        torch.autograd.functional.jacobian(plain, (h[0], s)),
        strict=True,
    ):
        torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-7)  # the input is rounded to float32
    mixed = [
        torch.func.jvp(
            lambda r, f=f: torch.func.jvp(lambda g: f(g, r), (h[0],), (h[0],))[1], (s,), (torch.ones_like(s),)
        )[1]
        for f in (quick, plain)
    ]
    torch.testing.assert_close(*mixed, rtol=1e-6, atol=1e-7)


def test_a_path_that_fails_leaves_its_points_unresolved(monkeypatch):
    held, points = ends(scalar(0.5), scalar(1.5))

    def fail(*_args, **_options):
        raise RuntimeError("out of range")

    monkeypatch.setattr(intervals_module, "training_path", fail)
    found = follow_interval(*held, points, (1, 2), time_limit=60.0)
    assert found.unresolved_points.values.tolist() == [4]
    assert np.isnan(found.event_step).all()


def write(folder, weights=((0, 0.5), (10, 0.8), (20, 2.0))):
    for step, weight in weights:
        save_checkpoint(folder / f"step-{step}", scalar(weight), step)


def study(folder, settings=QUICK, **options):
    seen = []
    progress = options.pop("progress", seen.append)
    record = analyse_folder(folder, Net, TASK, core="rnn", trials=4, settings=settings, progress=progress, **options)
    return record, [(one.part, one.step, one.outcome) for one in seen]


def test_a_folder_has_the_events_between_its_steps_and_goes_on_where_it_stopped(tmp_path):
    write(tmp_path)

    def stop(progress):
        if progress.part == "intervals":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, progress=stop)
    partly = read_record(tmp_path / "analysis")
    np.testing.assert_array_equal(partly.unresolved_points, [np.nan, 0, np.nan])
    record, seen = study(tmp_path)
    assert seen[-2:] == [("intervals", 10, "found"), ("intervals", 20, "analysed")]
    assert [KINDS[kind] for kind in record.event_kind.values] == ["pitchfork"]
    np.testing.assert_allclose(record.event_step, 10 + 10 * 0.2 / 1.2, rtol=1e-6)
    assert (record.event_since.values.tolist(), record.event_until.values.tolist()) == ([10], [20])
    assert record.fixed_point_count.values.tolist() == [1, 1, 3]
    assert record.event_kind.attrs["names"] == list(KINDS)
    assert record.drop_attrs().identical(read_record(tmp_path / "analysis").drop_attrs())
    again, seen = study(tmp_path)
    assert {outcome for _, _, outcome in seen} == {"found"}
    assert again.identical(record)
    assert json.loads(record.attrs["settings"])["starts"] == 16


def test_events_of_other_weights_are_not_mixed_in(tmp_path):
    write(tmp_path)
    study(tmp_path)
    write(tmp_path, ((20, 0.9),))
    record, seen = study(tmp_path)
    assert [item for item in seen if item[2] == "analysed"] == [
        ("checkpoints", 20, "analysed"), ("intervals", 20, "analysed"),
    ]  # fmt: skip
    assert record.sizes["event"] == 0
    record, _ = study(tmp_path, Settings(modes=4, budget=12, starts=0))
    assert "event_step" not in record
    assert "event_step" not in Store(tmp_path / "analysis" / "intervals").read()


def test_a_step_without_points_leaves_the_others_alone(tmp_path, monkeypatch):
    write(tmp_path)
    calls = []

    def failing(*args, **options):
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("no. such thing")
        return find_fixed_points(*args, **options)

    monkeypatch.setattr("kpflow.study.dynamics.find_fixed_points", failing)
    record, _ = study(tmp_path)
    np.testing.assert_array_equal(record.fixed_point_count, [1, np.nan, 3])
    assert np.isfinite(record.lyapunov_exponent.values[1, 0])


def test_events_of_all_intervals_come_in_order():
    record = xr.Dataset({"loss": ("step", [3.0, 2.0, 1.0])}, {"step": [0, 10, 20]})
    slots = [[7.0, 3.0, np.nan], [15.0, np.nan, np.nan]]
    intervals = xr.Dataset(
        {
            "event_step": (("step", "slot"), slots),
            "event_kind": (("step", "slot"), [[0.0, 2.0, np.nan], [5.0, np.nan, np.nan]]),
            "event_since": ("step", [0.0, 10.0]),
            "unresolved_points": ("step", [0.0, 3.0]),
        },
        {"step": [10, 20]},
    )
    merged = with_intervals(record, intervals)
    assert merged.event_step.values.tolist() == [3, 7, 15]
    assert merged.event_kind.values.tolist() == [2, 0, 5]
    assert merged.event_since.values.tolist() == [0, 0, 10]
    assert merged.event_until.values.tolist() == [10, 10, 20]
    np.testing.assert_array_equal(merged.unresolved_points, [np.nan, 0, 3])
