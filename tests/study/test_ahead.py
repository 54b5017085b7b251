"""Forecasts of the loss between checkpoints: those of the optimizer as it was, kept beside the weights."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.optim import forecast_optimizer
from kpflow.study import Recorder, Settings, analyse_folder, every, list_checkpoints, save_checkpoint
from kpflow.study.ahead import KRYLOV, LEFT_OUT, POINTS, look_ahead
from kpflow.study.demo import Net
from kpflow.study.optimizers import read_optimizer, save_optimizer
from kpflow.tasks import MemoryPro

TASK = MemoryPro(context=0, stimulus=2, memory=2, response=2, grace=0.0)
TRIALS = TASK.sample(4, mode="grid", noise=False)
QUICK = Settings(modes=2, leading=2, width=4, budget=12, starts=0)
OPTIMIZERS = {
    "descent": lambda model: torch.optim.SGD(model.parameters(), lr=0.02),
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.8),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
    "groups": lambda model: torch.optim.AdamW(
        [{"params": model.readout.parameters(), "lr": 1e-2}, {"params": model.rnn.parameters()}],
        lr=1e-3,
        weight_decay=0.0,
    ),
}


def make():
    return Net(3, 4, 3, torch.Generator().manual_seed(0))


def descend(model, optimizer, steps, at=None):
    """Full-batch steps; gives losses before each, and calls `at` with the step before it."""
    losses = []
    for step in range(steps):
        if at is not None:
            at(step)
        loss = TASK.loss(model(TRIALS.inputs), TRIALS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def recorded(folder, kind, **more):
    """A run of 24 steps, checkpoints every 12, and what the optimizer was at each."""
    model = make()
    optimizer = OPTIMIZERS[kind](model)
    kept = {}

    def keep(step):
        if step % 12 == 0:
            kept[step] = copy.deepcopy((model, optimizer.state_dict()))

    with Recorder(model, folder, steps=every(12), **more).attach(optimizer):
        losses = descend(model, optimizer, 24, keep)
    return model, losses, kept


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_that_was_kept_goes_on_to_the_last_bit(tmp_path, kind):
    model = make()
    optimizer = OPTIMIZERS[kind](model)
    descend(model, optimizer, 3)
    save_optimizer(tmp_path / "a.safetensors", optimizer, model, 3)
    other = copy.deepcopy(model)
    again = read_optimizer(tmp_path / "a.safetensors", other)
    assert type(again) is type(optimizer)
    descend(model, optimizer, 3)
    descend(other, again, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_what_was_not_kept_or_is_of_another_kind_is_none(tmp_path):
    model = make()
    assert read_optimizer(tmp_path / "a.safetensors", model) is None
    save_optimizer(tmp_path / "a.safetensors", torch.optim.RMSprop(model.parameters()), model, 0)
    assert read_optimizer(tmp_path / "a.safetensors", model) is None


def test_parameters_of_other_modules_are_refused(tmp_path):
    model, other = make(), nn.Linear(2, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    with pytest.raises(
        ValueError, match=r"`optimizer` must have parameters of `model` alone .* leave `optimizer_state` out"
    ):
        Recorder(model, tmp_path, optimizer_state=True).attach(optimizer)


def test_training_is_the_same_and_the_states_are_those_of_the_steps(tmp_path):
    plain, losses, _ = recorded(tmp_path / "plain", "momentum")
    model, others, kept = recorded(tmp_path / "kept", "momentum", optimizer_state=True)
    assert losses == others
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert not (tmp_path / "plain" / "optimizers").exists()
    assert len(list((tmp_path / "kept" / "optimizers").glob("*.safetensors"))) == 3
    assert [file.step for file in list_checkpoints(tmp_path / "kept")] == [0, 12, 24]
    path = tmp_path / "kept" / "optimizers" / "step-00000012.safetensors"
    state = read_optimizer(path, model).state_dict()["state"]
    expected = kept[12][1]["state"]
    assert all(torch.equal(state[k]["momentum_buffer"], expected[k]["momentum_buffer"]) for k in expected)
    Recorder(model, tmp_path / "kept").continue_from(12)
    assert not (tmp_path / "kept" / "optimizers" / "step-00000024.safetensors").exists()
    assert (tmp_path / "kept" / "abandoned" / "optimizers" / "step-00000024.safetensors").is_file()


def study(folder, seen=None, **more):
    options = {"forecast": forecast_optimizer} | more
    progress = None if seen is None else (lambda done: seen.append(done.outcome) if done.part == "intervals" else None)
    return analyse_folder(folder, make, TASK, core="rnn", trials=4, settings=QUICK, progress=progress, **options)


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_the_record_has_the_forecasts_of_the_optimizer_as_it_was(tmp_path, kind):
    _, losses, kept = recorded(tmp_path, kind, optimizer_state=True)
    record = study(tmp_path)
    assert record.step.values.tolist() == [0, 12, 24]
    assert np.isnan(record.forecast_loss.values[0]).all()
    for row, step in ((1, 0), (2, 12)):
        if kind == "adam" and step == 0:  # it has no second moments yet
            assert np.isnan(record.forecast_loss.values[row]).all()
            continue
        model, state = kept[step]
        optimizer = OPTIMIZERS[kind](model)
        optimizer.load_state_dict(state)
        lin = kp.linearise(model, TRIALS.inputs, core="rnn")
        loss = lambda y: TASK.loss(y, TRIALS)  # noqa: E731
        ahead = forecast_optimizer(lin, loss, optimizer, model, steps=12, krylov=KRYLOV)
        at = np.linspace(0, 12, POINTS).round().astype(int)
        assert record.forecast_step.values[row].tolist() == (step + at).tolist()
        np.testing.assert_allclose(record.forecast_loss.values[row], ahead.losses.numpy()[at], rtol=1e-5)
        assert float(record.forecast_error[row]) == pytest.approx(ahead.error, rel=1e-2, abs=1e-7)
    fall = losses[12] - float(record.loss[2])
    assert fall > 0
    missed = abs(float(record.forecast_loss[2, -1]) - float(record.loss[2]))
    assert missed < {"momentum": 0.1, "adam": 0.3}[kind] * fall  # full-batch, small steps; Adam's metric moves
    assert LEFT_OUT not in record.attrs


def test_without_an_optimizer_there_is_no_forecast_and_it_is_said(tmp_path):
    for step in (0, 1):
        save_checkpoint(tmp_path / f"step-{step}", make(), step)
    seen = []
    record = study(tmp_path, seen)
    assert record.forecast_loss.isnull().all()
    assert record.attrs[LEFT_OUT].startswith("No forecast of the loss from step 0 on: the optimizer is not known")
    without = study(tmp_path, seen, forecast=None)
    assert "forecast_loss" not in without
    assert LEFT_OUT not in without.attrs
    model = make()
    save_optimizer(tmp_path / "optimizers" / "step-0.safetensors", OPTIMIZERS["descent"](model), model, 0)
    found = study(tmp_path, seen)
    assert found.forecast_loss.notnull().any()
    study(tmp_path, seen)
    assert seen == ["analysed"] * 3 + ["found"]


def test_an_optimizer_that_cannot_be_forecast_says_why():
    model = make()
    lin = kp.linearise(model, TRIALS.inputs, core="rnn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    found = look_ahead(forecast_optimizer, lin, lambda y: TASK.loss(y, TRIALS), optimizer, model, (3, 5))
    assert found.attrs[LEFT_OUT].startswith("No forecast of the loss from step 3 on: `optimizer` must not have")
    assert found.step.values.tolist() == [5]
    assert found.forecast_loss.isnull().all()


def test_few_steps_are_exact_in_as_many_products():
    model = make()
    lin = kp.linearise(model, TRIALS.inputs, core="rnn")
    optimizer = OPTIMIZERS["descent"](model)
    loss = lambda y: TASK.loss(y, TRIALS)  # noqa: E731
    found = look_ahead(forecast_optimizer, lin, loss, optimizer, model, (0, 3))
    whole = forecast_optimizer(lin, loss, optimizer, model, steps=3, krylov=60)
    assert float(found.forecast_error[0]) == 0
    np.testing.assert_allclose(found.forecast_loss.values[0, -1], float(whole.losses[-1]), rtol=1e-6)
