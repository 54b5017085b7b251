"""Objectives at one training step: interference against steps that are taken, blocks of the NTK against the matrix."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import kpflow as kp
from kpflow.flow.objectives import STAGES
from kpflow.study import objective_record, task_groups, task_objectives
from kpflow.study.compared import compare
from kpflow.study.objectives import LEFT_OUT, with_objectives

TASK = kp.tasks.MultiTask.memory_and_delay(context=1, stimulus=2, memory=2, response=2, grace=0.0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.core = nn.GRU(7, 4, batch_first=True)
        self.read = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.read(self.core(inputs)[0])


@pytest.fixture(scope="module")
def case():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net().double()
    trials = TASK.sample(9, mode="grid", noise=False, dtype=torch.float64)  # 3, 2, 2 and 2 of each task
    return model, trials, kp.linearise(model, trials.inputs, core="core")


def record_of(case, **more):
    _, trials, lin = case
    return objective_record(lin, task_objectives(TASK, trials), groups=task_groups(TASK, trials), **more)


def test_losses_and_alignments_are_those_of_the_tasks(case):
    model, trials, lin = case
    record = record_of(case, step=7)
    assert record.step.values.tolist() == [7]
    assert record.objective.values.tolist() == [task.name for task in TASK.tasks] == record.group.values.tolist()
    assert tuple(record.objective_stage.values) == STAGES
    outputs = model(trials.inputs).detach()
    for k, name in enumerate(record.objective.values):
        rows = trials.conditions["task"] == k
        part = trials.select(rows)
        expected = (part.mask * (outputs[rows] - part.targets).square()).sum() / part.mask.sum()
        np.testing.assert_allclose(record.objective_loss.sel(objective=name)[0], float(expected), rtol=1e-12)
    found = kp.flow.objectives(lin, task_objectives(TASK, trials))
    for stage in STAGES:
        got = record.objective_alignment.sel(objective_stage=stage)[0]
        np.testing.assert_array_equal(got, found.alignments[stage])
    assert float(record.objective_alignment.sel(objective_stage="error")[0, 0, 1]) == 0  # other trials


def test_interference_is_what_steps_do_to_first_order(case):
    model, trials, _ = case
    expected = record_of(case).objective_interference.values[0]
    losses = list(task_objectives(TASK, trials).values())
    worst = []
    for rate in (1e-4, 5e-5):
        measured = np.empty_like(expected)
        for j, loss in enumerate(losses):
            moved = copy.deepcopy(model)
            value = loss(moved(trials.inputs))
            gradient = torch.autograd.grad(value, list(moved.parameters()))
            with torch.no_grad():
                before = [float(each(moved(trials.inputs))) for each in losses]
                for parameter, slope in zip(moved.parameters(), gradient, strict=True):
                    parameter -= rate * slope
                after = [float(each(moved(trials.inputs))) for each in losses]
            measured[:, j] = (np.array(after) - before) / rate
        worst.append(np.abs(measured - expected).max())
    assert worst[0] < 1e-3 * np.abs(expected).max()
    assert worst[1] == pytest.approx(worst[0] / 2, rel=0.1)


def blocks_of(case):
    """The NTK's blocks between tasks, by kp.operators.Restriction, as matrices."""
    _, trials, lin = case
    ntk = kp.Ntk(lin)
    keep = [kp.operators.Restriction(ntk.in_space, {"trial": rows}) for rows in task_groups(TASK, trials).values()]
    return [[kp.operators.to_dense(R @ ntk @ Q.T) for Q in keep] for R in keep]


def exact_of(blocks):
    """Sizes and alignments from the matrices."""
    norms = [float(row[k].norm()) for k, row in enumerate(blocks)]
    size, cosine = np.eye(len(blocks)), np.eye(len(blocks))
    for i, j in itertools.permutations(range(len(blocks)), 2):
        size[i, j] = float(blocks[i][j].norm()) / (norms[i] * norms[j]) ** 0.5
        same = blocks[i][i].shape == blocks[j][j].shape
        cosine[i, j] = float((blocks[i][i] * blocks[j][j]).sum()) / norms[i] / norms[j] if same else np.nan
    return {"ntk_block_size": size, "ntk_block_alignment": cosine}


def test_blocks_of_the_ntk_are_within_their_errors(case):
    exact = exact_of(blocks_of(case))
    deviations = {name: [] for name in exact}
    for seed in range(20):
        record = record_of(case, seed=seed)
        for name, truth in exact.items():
            value, error = record[name].values[0], record[f"{name}_error"].values[0]
            np.testing.assert_array_equal(np.isnan(value), np.isnan(truth))
            np.testing.assert_array_equal(value, value.T)
            np.testing.assert_array_equal(np.diag(value), 1)
            assert np.nanmax(error) < 5e-3
            upper = np.triu_indices(len(truth), 1)
            deviations[name] += [(value - truth)[upper] / error[upper]]
    for name, rows in deviations.items():
        z = np.array(rows)
        z = z[:, ~np.isnan(z[0])]
        assert np.abs(z).max() < 6, name
        assert 0.6 < np.sqrt((z**2).mean()) < 1.5, name
        assert np.abs(z.mean(0)).max() < 1, name  # 4.5 errors of a mean of 20


def test_blocks_agree_with_estimates_of_each_block_alone(case):
    _, trials, lin = case
    ntk = kp.Ntk(lin)
    A, B = (kp.operators.Restriction(ntk.in_space, {"trial": trials.conditions["task"] == k}) for k in (1, 2))
    norms = [kp.estimate.frobenius_norm(L @ ntk @ R.T, rtol=1e-3).value for L, R in ((A, B), (A, A), (B, B))]
    cosine = kp.estimate.alignment(A @ ntk @ A.T, B @ ntk @ B.T, rtol=1e-3)
    record = record_of(case).isel(step=0, group=1, other_group=2)
    assert float(record.ntk_block_size) == pytest.approx(norms[0] / (norms[1] * norms[2]) ** 0.5, rel=0.01)
    assert float(record.ntk_block_alignment) == pytest.approx(cosine.value, rel=0.01)


def test_equal_groups_are_one_and_small_ones_exact():
    trials = TASK.sample(8, mode="grid", noise=False, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.RNN(7, 1, batch_first=True).double()
    inputs = trials.inputs[:, :5]
    lin = kp.linearise(model, torch.cat([inputs[:2], inputs[:2], inputs[5:7]]))
    groups = {"one": [0, 1], "same": [2, 3], "other": [4, 5]}
    record = objective_record(lin, {"a": lambda y: y.square().sum()}, groups=groups).isel(step=0)
    for name in ("ntk_block_size", "ntk_block_alignment"):
        assert float(record[name][0, 1]) == pytest.approx(1, abs=1e-9)
        assert float(record[f"{name}_error"][0, 2]) < 1e-9  # ten entries, all in the basis
        assert float(record[name][0, 2]) < 1 - 1e-3


def test_a_task_alone_has_its_epochs_and_no_groups():
    task = kp.tasks.MemoryPro(stimulus=2, memory=2, response=3, grace=20.0)
    trials = task.sample(4, mode="grid")
    losses = task_objectives(task, trials)
    assert list(losses) == ["stimulus", "memory", "response"]  # no step of context
    assert task_groups(task, trials) == {}
    outputs = torch.randn(trials.targets.shape, generator=torch.Generator().manual_seed(0))
    squares = (outputs - trials.targets).square()
    torch.testing.assert_close(losses["memory"](outputs), squares[:, 2:4].mean())
    torch.testing.assert_close(losses["response"](outputs), squares[:, 5:].mean())  # one step of grace
    weights = torch.tensor([2.0, 2.0, 2.0]) / 6
    parts = torch.stack([loss(outputs) for loss in losses.values()])
    torch.testing.assert_close((weights * parts).sum(), task.loss(outputs, trials))


def test_a_record_without_groups_has_no_blocks(case):
    _, trials, lin = case
    assert not any("ntk" in name for name in objective_record(lin, task_objectives(TASK, trials)).data_vars)


BAD_GROUPS = {
    "overlap": ({"a": [0, 1], "b": slice(1, 3)}, r"`groups` must not overlap; got trial 1 in 'a' and in 'b'\."),
    "empty": ({"a": []}, r"`groups\['a'\]` must hold at least one trial, on one axis; got \(0,\)\."),
    "no trial of a mask": ({"a": torch.zeros(9, dtype=torch.bool)}, r"`groups\['a'\]` must hold at least one trial"),
    "outside": ({"a": [9]}, r"`groups\['a'\]` must hold whole numbers in 0 … 8; got \[9\]\."),
    "fractions": ({"a": [0.5]}, r"`groups\['a'\]` must hold whole numbers in 0 … 8; got \[0\.5\]\."),
    "twice": ({"a": [1, 1]}, r"`groups\['a'\]` must hold each trial once; got \[1, 1\]\."),
    "other batch": (
        {"a": torch.ones(5, dtype=torch.bool)},
        r"`groups\['a'\]` must have shape \(9,\) if boolean; got \(5,\)",
    ),
}


@pytest.mark.parametrize("name", BAD_GROUPS)
def test_groups_that_make_no_blocks_are_refused(name, case):
    groups, message = BAD_GROUPS[name]
    with pytest.raises(ValueError, match=message):
        objective_record(case[2], {"a": lambda y: y.sum()}, groups=groups)


def test_groups_need_an_axis_of_trials():
    lin = kp.linearise(nn.Sequential(nn.Linear(3, 2)), torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"`groups` need states with an axis of trials; got Space\(.*linearise by"):
        objective_record(lin, {"a": lambda y: y.sum()}, groups={"a": [0]})


def test_probes_and_objectives_are_checked(case):
    _, trials, lin = case
    with pytest.raises(ValueError, match="`probes` must be a whole number at least 8; got 7"):
        record_of(case, probes=7)
    with pytest.raises(ValueError, match=r"`losses\['empty'\]` has zero error: its mask is empty"):
        objective_record(lin, {"empty": lambda y: (y * torch.zeros_like(trials.mask)).sum()})
    other = TASK.sample(5, mode="grid", dtype=torch.float64)
    with pytest.raises(ValueError, match=r"`losses\['memory_pro'\]` fails .*\(9, 7, 3\)"):
        objective_record(lin, task_objectives(TASK, other))
    with pytest.raises(ValueError, match="`losses` must hold at least one objective"):
        objective_record(lin, {})


def test_the_analysis_of_a_task_has_its_objectives(case):
    _, trials, lin = case
    bare = xr.Dataset(coords={"step": [3]})
    record = with_objectives(bare, lin, compare(None, TASK, trials), probes=4, seed=0)
    expected = record_of(case, step=3, probes=8)
    assert record.drop_attrs().identical(expected)
    assert record.attrs == {"objectives": "tasks"}
    assert with_objectives(bare, lin, None, probes=4, seed=0) is bare


def test_a_step_at_which_an_objective_has_no_direction_is_nan_and_said(case):
    _, trials, lin = case
    solved = compare(None, TASK, dataclasses.replace(trials, targets=lin.readout.outputs))
    record = with_objectives(xr.Dataset(coords={"step": [3]}), lin, solved, probes=4, seed=0)
    assert record.attrs[LEFT_OUT].startswith("At step 3: `losses['memory_pro']` has zero error")
    expected = record_of(case)
    assert {name: record[name].dims for name in record.data_vars} == {n: expected[n].dims for n in expected.data_vars}
    assert all(bool(np.isnan(record[name]).all()) for name in record.data_vars)
    for axis in ("objective_stage", "objective", "other", "group", "other_group"):
        assert record[axis].values.tolist() == expected[axis].values.tolist()
