"""Neural collapse and CKA in a record: what the functions say of the states themselves, and why they are left out."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import kpflow as kp
from kpflow import report
from kpflow.study import Settings, analyse, analyse_folder, linear_cka, neural_collapse, read_record, save_checkpoint
from kpflow.study.representations import (
    MEASURES,
    class_measures,
    classes_of,
    component_measures,
    similarities,
    with_similarity,
)
from kpflow.tasks import MemoryPro

TASK = kp.tasks.get("delayed_match_sample", fixation=20.0, stimulus=40.0, delay=(40.0, 40.0), decision=40.0)
QUICK = Settings(modes=4, budget=12, starts=0)


class Net(nn.Module):
    def __init__(self, inputs=TASK.num_inputs, outputs=TASK.num_outputs):
        super().__init__()
        self.rnn, self.readout = nn.GRU(inputs, 5, batch_first=True), nn.Linear(5, outputs)

    def forward(self, x):
        return self.readout(self.rnn(x)[0])


def net(seed=0, **more):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(**more)


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(model, trials, **more):
    return analyse(model, trials, loss=lambda y: TASK.loss(y, trials), core="rnn", **{"settings": QUICK, **more})


def as_classifier(trials, labels, C):
    """The same trials with the class, one-hot, as targets."""
    targets = torch.eye(C)[labels][:, None].expand(-1, trials.num_steps, -1).contiguous()
    names = tuple(f"class {c}" for c in range(C))
    return dataclasses.replace(trials, targets=targets, mask=torch.ones_like(targets), output_labels=names)


def test_the_record_says_what_neural_collapse_says_of_the_last_states():
    model, trials = net(), TASK.sample(8, mode="grid", noise=False)
    outside = randn(6, 9, TASK.num_inputs, seed=1)
    record = run(model, trials, settings=dataclasses.replace(QUICK, labels="match"), outside=outside)
    with torch.no_grad():
        states, other = (model.rnn(x)[0][:, -1] for x in (trials.inputs, outside))
    expected = neural_collapse(states, trials.conditions["match"], outside=other)
    assert tuple(record["measure"].values) == MEASURES
    np.testing.assert_allclose(record["neural_collapse"][0], dataclasses.astuple(expected), rtol=1e-4, atol=1e-9)
    assert np.isnan(record["neural_collapse"].sel(measure=["nc3", "nc4"])).all()  # outputs are no classes
    assert record.attrs["classes"] == "match, 2 classes of 4 trials"


@pytest.mark.parametrize("affine", [True, False])
def test_the_read_out_is_the_classifier_where_it_is_affine(affine):
    model, trials = net(outputs=2), TASK.sample(8, mode="grid", noise=False)
    trials = as_classifier(trials, trials.conditions["match"], 2)
    if not affine:
        model.readout = nn.Sequential(model.readout, nn.Tanh())
    lin = kp.linearise(model, trials.inputs, core="rnn")
    found = class_measures(lin, trials, classes_of(trials, "match"), None)["neural_collapse"][1]
    linear = (model.readout if affine else model.readout[0]).requires_grad_(False)
    last = lin.states[:, -1]
    expected = neural_collapse(last, trials.conditions["match"], weight=linear.weight, bias=linear.bias)
    if affine:
        np.testing.assert_allclose(found[:5], dataclasses.astuple(expected)[:5], rtol=1e-4)
    else:
        assert np.isnan(found[3:5]).all()
    other = class_measures(lin, trials, classes_of(trials, "first"), None)["neural_collapse"][1]
    assert np.isnan(other[3:5]).all()  # the targets are other classes


def test_the_last_step_is_that_of_each_trial():
    model, trials = net(outputs=2), TASK.sample(8, mode="grid", noise=False)
    short = dataclasses.replace(trials, length=torch.tensor([3, 4] * 4), epochs={})
    lin = kp.linearise(model, trials.inputs, core="rnn")
    found = class_measures(lin, short, classes_of(short, "match"), None)["neural_collapse"][1]
    expected = neural_collapse(lin.states[torch.arange(8), short.length - 1], short.conditions["match"])
    np.testing.assert_array_equal(found, dataclasses.astuple(expected))


def test_classes_are_the_first_condition_that_has_enough_of_them():
    trials = TASK.sample(8, mode="grid", noise=False)
    assert classes_of(trials, None).name == "first"
    mine = dataclasses.replace(trials, conditions={"number": torch.arange(8), "mine": torch.tensor([7, 7, 3, 3] * 2)})
    assert (classes_of(mine, None).name, classes_of(mine, None).labels.tolist()) == ("mine", [1, 1, 0, 0] * 2)
    angles = MemoryPro().sample(4, mode="grid")
    assert classes_of(angles, None) is None
    assert str(classes_of(dataclasses.replace(trials, conditions={"a": torch.tensor([0.5] * 3 + [2] * 5)}), "a")) == (
        "a, 2 classes of 3 to 5 trials"
    )
    with pytest.raises(ValueError, match=r"`labels` must name a condition of the trials; got 'mach', and there are: "):
        classes_of(trials, "mach")
    with pytest.raises(ValueError, match=r"two trials or more each; got angle, 4 classes of 1 trials\. Analyse on mor"):
        classes_of(angles, "angle")


def test_similarities_are_those_of_pairs_and_unrelated_to_padding():
    states = [randn(4, 6, 5, seed=k) for k in range(3)]
    valid = torch.arange(6) < torch.tensor([[6], [3], [6], [5]])
    records = [
        xr.Dataset(
            {name: (("step", *axes), v[None]) for name, (axes, v) in component_measures(z, valid, 8).items()},
            {"step": [10 * k]},
        )
        for k, z in enumerate(states)
    ]
    record = with_similarity(xr.concat(records, "step"))
    assert float(record["state_component_share"].min()) == 1.0
    assert int(np.isnan(record["state_component"][0]).sum()) == 8 * (3 + 1)
    assert record["other_step"].values.tolist() == [0, 10, 20]
    for i, left in enumerate(states):
        for j, right in enumerate(states):
            expected = linear_cka(left[valid], right[valid])
            assert float(record["state_similarity"][i, j]) == pytest.approx(expected, abs=1e-6)


def test_what_components_leave_out_is_said():
    z = randn(20, 10, 6, seed=0) * torch.tensor([10.0, 5, 1, 0.1, 0.1, 0.1])
    other = z + 0.5 * randn(20, 10, 6, seed=1)
    valid = torch.ones(20, 10, dtype=torch.bool)
    kept = [component_measures(x, valid, 3) for x in (z, other)]
    assert all(0.98 < float(one["state_component_share"][1]) < 1 for one in kept)
    table = similarities(torch.stack([torch.from_numpy(one["state_component"][1]).flatten(0, 1) for one in kept]))
    assert float(table[0, 1]) == pytest.approx(linear_cka(z.flatten(0, 1), other.flatten(0, 1)), abs=1e-3)


def test_constant_states_are_like_none():
    table = similarities(torch.stack([torch.ones(5, 2), randn(5, 2, seed=0)]))
    assert torch.isnan(table[0]).all()
    assert float(table[1, 1]) == pytest.approx(1.0)


def test_a_folder_is_analysed_stored_and_reported(tmp_path):
    for step in (0, 10, 20):
        save_checkpoint(tmp_path / f"step-{step}", net(seed=step), step)
    record = analyse_folder(tmp_path, Net, TASK, core="rnn", trials=8, settings=QUICK)
    assert record.identical(read_record(tmp_path / "analysis").assign_attrs(record.attrs))
    assert record["neural_collapse"].dims == ("step", "measure")
    trials = TASK.sample(8, mode="grid", noise=False)
    states = [kp.linearise(net(seed=step), trials.inputs, core="rnn").states.flatten(0, 1) for step in (0, 20)]
    got = float(record["state_similarity"].sel(step=0, other_step=20))
    assert got == pytest.approx(linear_cka(*states), abs=1e-5)
    page = report.render(record[["neural_collapse", "state_similarity", "state_component_share"]])
    assert "Classes: first, 2 classes of 4 trials." in page
    assert "From the leading principal components of each, which carry at least 100.00% of the variance." in page
    outside, seen = randn(2, 4, TASK.num_inputs, seed=0), []
    again = analyse_folder(
        tmp_path, Net, TASK, core="rnn", trials=8, settings=QUICK, outside=outside, progress=seen.append
    )
    assert {one.outcome for one in seen if one.part == "checkpoints"} == {"analysed"}
    assert bool(again["neural_collapse"].sel(measure="nc5").notnull().all())


def test_without_classes_the_report_says_why(tmp_path):
    task = MemoryPro(context=0, stimulus=2, memory=2, response=2, grace=0.0)
    for step in (0, 10):
        save_checkpoint(tmp_path / f"step-{step}", net(seed=step, inputs=3, outputs=3), step)
    record = analyse_folder(tmp_path, lambda: Net(3, 3), task, core="rnn", trials=4, settings=QUICK)
    assert "neural_collapse" not in record
    page = report.render(record[["state_similarity"]])
    assert "No condition of the trials is made of classes, whole numbers that two trials or more share." in page
    assert "Similarity of the states between checkpoints" in page
