"""Trials: restriction, conversion, and what they refuse."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from kpflow.tasks import DelayPro, MemoryPro


@pytest.fixture
def trials():
    return MemoryPro.driscoll().sample(6, dtype=torch.float64)


@pytest.mark.parametrize(
    ("index", "positions"),
    [
        (slice(1, 4), [1, 2, 3]),
        ([5, 0, -2], [5, 0, 4]),
        (np.array([3]), [3]),
        (torch.tensor([True, False, False, True, False, False]), [0, 3]),
    ],
)
def test_select_takes_every_field_of_the_chosen_trials(trials, index, positions):
    chosen = trials.select(index)
    assert chosen.num_trials == len(positions)
    for name in ("inputs", "inputs_clean", "targets", "mask", "length"):
        assert torch.equal(getattr(chosen, name), getattr(trials, name)[positions])
    for name, (start, stop) in trials.epochs.items():
        assert torch.equal(chosen.epochs[name][0], start[positions])
        assert torch.equal(chosen.epochs[name][1], stop[positions])
    assert torch.equal(chosen.conditions["angle"], trials.conditions["angle"][positions])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([6], r"`index` must lie in 0 … 5; got 6 … 6"),
        ([-7], r"`index` must lie in 0 … 5; got -7 … -7"),
        (2, r"`index` must select at least one trial.*For one trial, pass \[i\]"),
        (slice(3, 3), r"`index` must select at least one trial"),
        ([0.5], r"by whole numbers in one axis; got torch.float32"),
        (torch.tensor([True, False]), r"A boolean `index` must have shape \(6,\); got \(2,\)"),
    ],
)
def test_select_refuses(trials, index, message):
    with pytest.raises(ValueError, match=message):
        trials.select(index)


def test_to_converts_floating_tensors_and_moves_all(trials):
    single = trials.to(dtype=torch.float32)
    assert single.inputs.dtype == single.mask.dtype == single.conditions["angle"].dtype == torch.float32
    assert single.length.dtype == single.epochs["memory"][0].dtype == torch.int64
    torch.testing.assert_close(single.inputs.double(), trials.inputs, rtol=1e-6, atol=1e-6)
    assert trials.to(device="cpu").inputs.dtype == torch.float64


def test_to_moves_to_the_device(trials, device):
    moved = trials.to(device=device)
    assert moved.inputs.device.type == moved.length.device.type == moved.epochs["memory"][1].device.type == device.type
    task = MemoryPro.driscoll()
    assert task.score(moved.targets, moved)["accuracy"] == 1.0
    assert torch.equal(task.sample(6, dtype=torch.float64, device=device).inputs.cpu(), trials.inputs)


def test_inside_knows_both_names_of_an_epoch(trials):
    start, stop = trials.epochs["memory"]
    inside = trials.inside("delay1")
    assert torch.equal(inside, trials.inside("memory"))
    assert torch.equal(inside.sum(dim=1), stop - start)
    assert inside[0, start[0]]
    assert not inside[0, start[0] - 1]
    assert inside[0, stop[0] - 1]
    assert not inside[0, stop[0]]
    with pytest.raises(ValueError, match="`epoch` must be one of 'context', 'stimulus', 'response'; got 'delay1'"):
        DelayPro().sample(1).inside("delay1")


def test_repr_fits_a_notebook(trials):
    lines = repr(trials).splitlines()
    assert lines[0] == f"Trials(6 trials × {trials.num_steps} steps, float64, dt 20 ms"
    assert len(lines) == 5
    assert max(map(len, lines)) < 80


def wrong(**changes):
    return lambda trials: {name: change(trials) for name, change in changes.items()}


def spoiled(tensor):
    """A copy with one NaN."""
    tensor = tensor.clone()
    tensor[2, 5, 1] = math.nan
    return tensor


def tail(trials):
    """0 for the first trial and 1 for the others."""
    return torch.arange(trials.num_trials).clamp(max=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (wrong(inputs=lambda t: t.inputs[0]), r"`inputs` must have three axes \[trial, time, channel\]"),
        (wrong(inputs_clean=lambda t: t.inputs[:, 1:]), r"`inputs_clean` must have shape \(6, \d+, 3\)"),
        (wrong(targets=lambda t: t.targets[:3]), r"`targets` must have shape \(6, \d+, 3\); got \(3, "),
        (wrong(mask=lambda t: t.mask[:, :, :1]), r"`mask` must have shape \(6, \d+, 3\)"),
        (wrong(inputs=lambda t: spoiled(t.inputs)), "`inputs` must be finite; got NaN at trial 2, step 5, channel 1"),
        (wrong(inputs_clean=lambda t: t.inputs_clean / 0), "`inputs_clean` must be finite; got inf at trial 0, step 0"),
        (wrong(targets=lambda t: spoiled(t.targets)), "`targets` must be finite; got NaN at trial 2, step 5"),
        (wrong(mask=lambda t: spoiled(t.mask)), "`mask` must be finite.*do not count weight 0 and a finite target"),
        (wrong(mask=lambda t: t.mask - 1), r"`mask` must hold weights ≥ 0; its least entry is -1"),
        (wrong(length=lambda t: t.length[:2]), r"`length` must have shape \(6,\); got \(2,\)"),
        (wrong(length=lambda t: t.length * 0), r"`length` must lie in 1 … \d+; got \[0, 0"),
        (wrong(length=lambda t: t.length + 500), r"`length` must lie in 1 … "),
        (
            wrong(epochs=lambda t: {"memory": (t.length, t.length - 1)}, length=lambda t: 0 * t.length + 50),
            r"`epochs\['memory'\]` must have 0 ≤ start ≤ stop ≤ length = 50; got \d+ … \d+ in trial 0",
        ),
        (wrong(epochs=lambda t: {"go": (tail(t), 0 * tail(t))}), r"`epochs\['go'\]` .* got 1 … 0 in trial 1\."),
        (wrong(epochs=lambda t: {"go": (t.length - 1, t.length + tail(t))}), r"`epochs\['go'\]` must .* in trial 1\."),
        (wrong(epochs=lambda t: {"go": (-tail(t), t.length)}), r"`epochs\['go'\]` .* got -1 … \d+ in trial 1\."),
        (wrong(epochs=lambda t: {"memory": (t.length[:2], t.length)}), r"`epochs\['memory'\]\[0\]` must have shape"),
        (wrong(conditions=lambda t: {"angle": t.length[:2]}), r"`conditions\['angle'\]` must have shape \(6,\)"),
        (wrong(input_labels=lambda _: ("a",)), r"`input_labels` must name 3 channels; got \('a',\)"),
        (wrong(dt=lambda _: 0.0), r"`dt` must be a positive finite number; got 0.0"),
        (wrong(dt=lambda _: math.nan), r"`dt` must be a positive finite number; got nan"),
        (wrong(tau=lambda _: -1.0), r"`tau` must be a positive finite number; got -1.0"),
        (wrong(tau=lambda _: math.inf), r"`tau` must be a positive finite number; got inf"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_fields_must_fit(trials, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(trials, **changes(trials))


@pytest.mark.usefixtures("no_type_checks")
def test_signals_must_be_floating_tensors(trials):
    with pytest.raises(TypeError, match=r"`inputs` must be a torch.Tensor; got list"):
        dataclasses.replace(trials, inputs=[1.0])
    with pytest.raises(TypeError, match=r"`mask` must hold floating-point numbers; got torch.bool"):
        dataclasses.replace(trials, mask=trials.mask > 0)
