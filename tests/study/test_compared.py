"""What an analysis compares: tasks, epochs, channels, trials by a condition, losses and masks of one's own."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import kpflow as kp
from kpflow import report
from kpflow.cli import app
from kpflow.study import (
    OwnLosses,
    Recorder,
    Settings,
    analyse,
    analyse_folder,
    every,
    read_record,
    save_checkpoint,
    task_groups,
    task_objectives,
)
from kpflow.study.compared import compare, identity_of

TASK = kp.tasks.MultiTask.memory_and_delay(context=1, stimulus=2, memory=2, response=2, grace=0.0)
ALONE = kp.tasks.MemoryPro(context=0, stimulus=2, memory=2, response=2, grace=0.0)
QUICK = Settings(starts=0, budget=8, modes=2, leading=2, width=4)


class Net(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.core = nn.GRU(inputs, 4, batch_first=True)
        self.read = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.read(self.core(inputs)[0])


def net(inputs=7, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(inputs)


def grid(task=TASK, count=8):
    return task.sample(count, mode="grid", noise=False)


def error(outputs, trials, weight):
    return (weight * (outputs - trials.targets) ** 2).sum() / weight.sum()


def by_hand(trials):
    """The weight of each objective of each kind, written out."""
    mask, number = trials.mask, trials.conditions["task"]
    nothing, angle = torch.zeros_like(mask), trials.conditions["angle"]
    found = {"tasks": {}, "epochs": {}, "channels": {}, "condition:task": {}, "condition:angle": {}}
    for k, part in enumerate(TASK.tasks):
        rows = (number == k)[:, None, None]
        found["tasks"][part.name] = found["condition:task"][f"task {k}"] = torch.where(rows, mask, nothing)
    for value in sorted(set(angle.tolist())):
        weight = torch.where((angle == value)[:, None, None], mask, nothing)
        found["condition:angle"][f"angle {value:g}"] = weight
    for channel, name in enumerate(trials.output_labels):
        found["channels"][name] = nothing.clone()
        found["channels"][name][:, :, channel] = mask[:, :, channel]
    for name, (start, stop) in trials.epochs.items():
        found["epochs"][name] = nothing.clone()
        for b in range(trials.num_trials):
            found["epochs"][name][b, start[b] : stop[b]] = mask[b, start[b] : stop[b]]
    return {kind: {name: w for name, w in weights.items() if w.sum() > 0} for kind, weights in found.items()}


@pytest.mark.parametrize("kind", ["tasks", "epochs", "channels", "condition:task", "condition:angle"])
def test_each_kind_is_the_masked_error_of_its_part(kind):
    trials = grid()
    outputs = torch.randn(trials.targets.shape, generator=torch.Generator().manual_seed(0))
    losses, weights = task_objectives(TASK, trials, kind), by_hand(trials)[kind]
    assert list(losses) == list(weights)
    for name, weight in weights.items():
        torch.testing.assert_close(losses[name](outputs), error(outputs, trials, weight))
    shares = {name: float(weight.sum() / trials.mask.sum()) for name, weight in weights.items()}
    whole = sum(share * losses[name](outputs) for name, share in shares.items())
    torch.testing.assert_close(whole, TASK.loss(outputs, trials))
    groups = task_groups(TASK, trials, kind)
    assert list(groups) == ([] if kind in ("epochs", "channels") else list(losses))
    for name, rows in groups.items():
        assert torch.equal(rows, weights[name].flatten(1).any(1))


def test_trials_that_lack_a_condition_are_of_no_group():
    trials = grid()
    angle = torch.where(torch.arange(8) < 4, torch.nan, trials.conditions["angle"])
    part = dataclasses.replace(trials, conditions={"angle": angle})
    groups = task_groups(TASK, part, "condition:angle")
    assert torch.equal(torch.stack(list(groups.values())).any(0), torch.arange(8) >= 4)


def analysed(objectives, model=None, trials=None, **more):
    trials = grid() if trials is None else trials
    options = {"loss": lambda y: TASK.loss(y, trials), "core": "core", "settings": QUICK, "task": TASK} | more
    return analyse((model or net()).eval(), trials, objectives=objectives, **options)


@pytest.mark.parametrize("kind", ["epochs", "channels", "condition:task"])
def test_the_record_is_that_of_flow_objectives(kind):
    trials, model = grid(), net()
    record = analysed(kind, model)
    weights = by_hand(trials)[kind]
    own = {name: lambda y, w=w: error(y, trials, w) for name, w in weights.items()}
    found = kp.flow.objectives(kp.linearise(model, trials.inputs, core="core"), own)
    assert record.objective.values.tolist() == list(own)
    np.testing.assert_allclose(record.objective_loss.values[0], found.losses, rtol=1e-6)
    np.testing.assert_allclose(record.objective_interference.values[0], found.interference, rtol=1e-4, atol=1e-7)
    for stage, expected in found.alignments.items():
        got = record.objective_alignment.sel(objective_stage=stage).values[0]
        np.testing.assert_allclose(got, expected, atol=1e-5)
    assert ("ntk_block_size" in record) == (kind == "condition:task")


def test_losses_of_ones_own_are_compared():
    own = {"first": lambda y: y[:, 0].square().mean(), "last": lambda y: y[:, -1].square().mean()}
    record = analysed(own)
    assert record.objective.values.tolist() == ["first", "last"]
    assert record.attrs["objectives"] == "given by name"
    stated = analysed(OwnLosses(own, identity="power at both ends"), task=None)
    assert stated.attrs["objectives"] == "power at both ends"
    np.testing.assert_array_equal(stated.objective_alignment, record.objective_alignment)


def test_masks_of_ones_own_are_compared():
    trials, number = grid(), grid().conditions["task"]
    rows = {"memory": number < 2, "delay": number >= 2}
    record = analysed(rows)
    assert record.group.values.tolist() == ["memory", "delay"]  # trials of their own: blocks of the NTK
    y = net()(trials.inputs).detach()
    expected = [float(error(y, trials, trials.mask * row[:, None, None])) for row in rows.values()]
    np.testing.assert_allclose(record.objective_loss.values[0], expected, rtol=1e-5)
    overlapping = analysed(rows | {"all": number >= 0})
    assert "group" not in overlapping.coords
    late = torch.zeros(7, 1)
    late[5:] = 2.0
    weighted = analysed({"late": late, "whole": lambda y: TASK.loss(y, trials)})
    expected = float(error(y, trials, trials.mask * late))
    assert float(weighted.objective_loss[0, 0]) == pytest.approx(expected, rel=1e-5)


def test_without_being_asked_one_objective_is_left_out():
    one = kp.tasks.MultiTask(TASK.tasks[:1])
    assert compare(None, one, one.sample(3, mode="grid")) is None
    assert compare(None, ALONE, grid(ALONE)).words == "epochs"


BAD = {
    "a kind that is none": (
        "layers",
        ValueError,
        "must be one of tasks, epochs, channels, condition:NAME.*got 'layers'",
    ),
    "a condition that is not there": (
        "condition:colour",
        ValueError,
        "must name a condition of the trials; got 'colour', and there are: angle",
    ),
    "tasks of one task": ("tasks", ValueError, "by tasks need a MultiTask; got MemoryPro. Try epochs"),
    "one group only": ({"all": torch.ones(4, dtype=torch.bool)}, ValueError, "must be two or more; got all"),
    "one loss only": ({"all": lambda y: y.sum()}, ValueError, "must be two or more; got all"),
    "none": ({}, ValueError, "must be two or more; got none"),
    "a mask of zeros": (
        {"no": torch.zeros(4, dtype=torch.bool), "all": torch.ones(4, dtype=torch.bool)},
        ValueError,
        r"`objectives\['no'\]` must have weight somewhere; got zeros",
    ),
    "a mask of another batch": (
        {"five": torch.ones(5), "all": torch.ones(4)},
        ValueError,
        r"`objectives\['five'\]` must have shape \(4,\), or broadcast to the outputs' \(4, 6, 3\); got \(5,\)",
    ),
    "a mask that is too wide": (
        {"wide": torch.ones(2, 4, 6, 3), "all": torch.ones(4)},
        ValueError,
        r"`objectives\['wide'\]` must have shape .*got \(2, 4, 6, 3\)",
    ),
    "a loss that fails": (
        {"a": lambda y: y[:, 99].sum(), "b": lambda y: y.sum()},
        ValueError,
        r"`objectives\['a'\]` fails on outputs of shape \(4, 6, 3\): index 99",
    ),
    "a loss of many numbers": (
        {"a": lambda y: y[:, 0], "b": lambda y: y.sum()},
        ValueError,
        r"`objectives\['a'\]` must give a scalar tensor; got \(4, 3\)",
    ),
    "a loss that is a number": (
        {"a": lambda y: 1.0, "b": lambda y: y.sum()},
        ValueError,
        r"`objectives\['a'\]` must give a scalar tensor; got float",
    ),
    "a number": (3, TypeError, "`objectives` must be one of .* or map names to functions.*got 3"),
    "numbers": ({"a": 1, "b": 2}, TypeError, "`objectives` must be one of .*got {'a': 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_compared_is_refused_in_one_message(name):
    objectives, kind, message = BAD[name]
    trials = grid(ALONE, 4)
    with pytest.raises(kind, match=message):
        analysed(objectives, net(3), trials, task=ALONE, loss=lambda y: ALONE.loss(y, trials))


def test_own_losses_need_words():
    with pytest.raises(ValueError, match="`identity` must say what the losses are; got no words"):
        OwnLosses({"a": lambda y: y.sum()}, identity=" ")


def in_folder(folder, objectives):
    outcomes = []
    record = analyse_folder(
        folder, lambda: net(3), ALONE, core="core", trials=4, settings=QUICK, objectives=objectives,
        progress=lambda done: outcomes.append(done.outcome),
    )  # fmt: skip
    return record, outcomes


def test_a_folder_keeps_results_by_their_objectives(tmp_path):
    save_checkpoint(tmp_path / "step-0", net(3), 0)
    channels, outcomes = in_folder(tmp_path, "channels")
    assert outcomes == ["analysed"]
    assert channels.objective.values.tolist() == ["fixation", "cos", "sin"]
    assert in_folder(tmp_path, "channels")[1] == ["found"]
    assert in_folder(tmp_path, None)[0].objective.values.tolist() == ["stimulus", "memory", "response"]
    halves = {"first": torch.arange(4) < 2, "last": torch.arange(4) >= 2}
    assert in_folder(tmp_path, halves)[1] == ["analysed"]
    assert in_folder(tmp_path, halves)[1] == ["found"]
    assert in_folder(tmp_path, {**halves, "last": torch.arange(4) > 2})[1] == ["analysed"]
    own = {"a": lambda y: y[..., 0].mean(), "b": lambda y: y[..., 1].mean()}
    assert in_folder(tmp_path, OwnLosses(own, identity="means"))[1] == ["analysed"]
    assert in_folder(tmp_path, OwnLosses(own, identity="means"))[1] == ["found"]
    assert in_folder(tmp_path, OwnLosses(own, identity="other means"))[1] == ["analysed"]


def test_functions_without_words_are_not_kept(tmp_path):
    save_checkpoint(tmp_path / "step-0", net(3), 0)
    own = {"a": lambda y: y[..., 0].mean(), "b": torch.ones(4)}
    with pytest.raises(
        ValueError, match="must say what its functions are, since results are kept; got a without words"
    ):
        in_folder(tmp_path, own)
    assert not (tmp_path / "analysis").exists()
    assert identity_of("epochs") == "epochs"


def test_a_recorder_and_the_report_have_them(tmp_path):
    model, trials = net(3), grid(ALONE, 4)
    analysis = lambda copy, step: analysed(  # noqa: E731
        "condition:angle", copy, trials, task=ALONE, step=step, loss=lambda y: ALONE.loss(y, trials)
    )
    recorder = Recorder(model, tmp_path, steps=every(1), analysis=analysis)
    assert recorder.record(0)
    assert recorder.record(1)
    record = read_record(tmp_path / "analysis")
    assert record.step.values.tolist() == [0, 1]
    assert record.group.values.tolist() == ["angle 0", "angle 1.5708", "angle 3.14159", "angle 4.71239"]
    page = report.render(record)
    assert "angle 1.5708" in page
    assert "Objectives: trials by angle." in page


def test_the_command_line_chooses_them(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "step-0", nn.GRU(3, 3, batch_first=True), 0)
    (tmp_path / "nets.py").write_text("from torch import nn\ndef build(): return nn.GRU(3, 3, batch_first=True)\n")
    monkeypatch.chdir(tmp_path)
    command = ["analyze", str(tmp_path), "--model", "nets:build", "--task", "memory_pro", "--trials", "4"]
    short = [part for name in ("context", "stimulus", "memory", "response") for part in ("--set", f"{name}=3")]
    result = CliRunner().invoke(
        app, [*command, *short, "--set", "grace=0.0", "--budget", "8", "--objectives", "channels"]
    )
    assert result.exit_code == 0, result.output
    assert read_record(tmp_path / "analysis").objective.values.tolist() == ["fixation", "cos", "sin"]
