"""Schedules and time budgets: exact on losses and clocks that are given."""

import inspect
import math
from typing import Any

import pytest
import torch
from torch import nn

from kpflow.study import (
    AnyOf,
    Every,
    LossJump,
    Recorder,
    TimeBudget,
    budget,
    every,
    list_checkpoints,
    log_spaced,
    read_checkpoint,
)
from kpflow.study import on_loss_jump as jump
from kpflow.study.budget import Meter


def steps_of(schedule, losses):
    return [step for step in range(len(losses) + 1) if schedule(step, losses[:step])]


def test_every_and_any_of():
    assert steps_of(every(3), [1.0] * 10) == [0, 3, 6, 9]
    both = log_spaced(1) | every(4)
    assert isinstance(both, AnyOf)
    assert steps_of(both | Every(7), [1.0] * 12) == [0, 1, 4, 7, 8, 10, 12]
    assert both.memory == 0
    assert (both | jump(2.0, 5)).memory == 11


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_jump_is_seen_half_a_window_later_and_once(factor):
    losses = [1.0] * 30 + [factor * 1.01 if factor > 1 else factor / 1.01] * 30
    assert steps_of(jump(2.0, 5), losses) == [33]  # three of the newest five
    assert steps_of(jump(2.0, 1), losses) == [31]
    below = [1.0] * 30 + [factor / 1.01 if factor > 1 else factor * 1.01] * 30
    assert steps_of(jump(2.0, 5), below) == []


def test_each_of_two_jumps():
    assert steps_of(jump(1.5, 3), [8.0] * 10 + [4.0] * 10 + [1.0] * 10) == [12, 22]


def test_what_is_no_jump():
    outlier = [1.0] * 20 + [50.0] + [1.0] * 20
    assert steps_of(jump(1.5, 3), outlier) == []
    assert steps_of(jump(1.5, 1), outlier) == [21]  # the next change follows at once
    drift = [math.exp(-0.01 * i) for i in range(200)]
    assert steps_of(jump(1.5, 10), drift) == []
    noise = (1 + 0.3 * torch.rand(500, generator=torch.Generator().manual_seed(0))).tolist()
    assert steps_of(jump(1.5, 10), noise) == []
    for broken in (math.nan, math.inf):
        assert steps_of(jump(1.5, 2), [1.0] * 9 + [broken] * 9) == []
        assert steps_of(jump(1.5, 2), [1.0] * 5 + [broken] + [1.0] * 9 + [0.1] * 5) == [16]
    assert steps_of(jump(1.5, 2), [0.0] * 20) == []
    assert steps_of(jump(1.5, 2), [-1.0] * 9 + [-2.0] * 9) == [11]  # of negative losses too


def test_bad_schedules():
    with pytest.raises(ValueError, match=r"`n` must be a positive whole number; got 0"):
        every(0)
    with pytest.raises(ValueError, match=r"`factor` must be above 1; got 1\.0\. Try 1\.5"):
        LossJump(1.0)
    with pytest.raises(ValueError, match=r"`factor` must be a positive number; got '2'"):
        inspect.unwrap(LossJump.__init__)(LossJump.__new__(LossJump), "2")
    with pytest.raises(ValueError, match=r"`window` must be a positive whole number; got 0"):
        LossJump(2.0, 0)
    with pytest.raises(TypeError, match=r"`\|` joins two schedules; got int\. Try log_spaced\(\) \| every\(500\)"):
        inspect.unwrap(type(every(3)).__or__)(every(3), 5)


def test_bad_budgets():
    with pytest.raises(ValueError, match=r"`fraction` or `seconds` must be given; got neither"):
        TimeBudget()
    with pytest.raises(ValueError, match=r"`fraction` must be a number between 0 and 1; got 1\.5"):
        TimeBudget(fraction=1.5)
    with pytest.raises(ValueError, match=r"`fraction` must be a positive number; got 0"):
        TimeBudget(fraction=0)
    with pytest.raises(ValueError, match=r"`seconds` must be a number at least 0; got -1"):
        TimeBudget(seconds=-1)


class Clock:
    """A clock that goes on by a second with every training step and every write."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(budget, "clock", made)
    return made


def run(folder, clock, monkeypatch, given: Any, steps=100, cost=1.0):
    """Train for a second a step, with `cost` seconds a record."""
    save = Recorder._write_pair

    def slow(recorder):
        clock.now += cost
        save(recorder)

    monkeypatch.setattr(Recorder, "_write_pair", slow)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, folder, steps=every(1), budget=given)
    with recorder.attach(optimizer):
        for _ in range(steps):
            clock.now += 1.0
            optimizer.step()
    return recorder, [file.step for file in list_checkpoints(folder)]


def test_a_fraction_of_the_time(tmp_path, clock, monkeypatch):
    recorder, written = run(tmp_path, clock, monkeypatch, TimeBudget(fraction=0.1))
    assert written[:4] == [0, 18, 27, 36]  # 2 of 20 seconds, 3 of 30, ...
    spent = sum(step < 100 for step in written)
    assert spent <= 0.1 * (100 + spent)
    assert recorder.skipped == [step for step in range(100) if step not in written]


def test_seconds_in_all(tmp_path, clock, monkeypatch):
    recorder, written = run(tmp_path, clock, monkeypatch, TimeBudget(seconds=7), cost=2.0)
    assert written == [0, 1, 2, 100]  # 6 seconds, and the last, which is always written
    assert recorder.skipped == list(range(3, 100))


def test_skipped_steps_are_in_the_metadata(tmp_path, clock, monkeypatch):
    run(tmp_path, clock, monkeypatch, TimeBudget(seconds=2), steps=4)
    last = list_checkpoints(tmp_path)[-1]
    assert read_checkpoint(last.path).metadata["skipped"] == [2, 3]


def test_no_budget_skips_nothing(tmp_path, clock, monkeypatch):
    recorder, written = run(tmp_path, clock, monkeypatch, None, steps=5)
    assert written == [0, 1, 2, 3, 4, 5]
    assert recorder.skipped == []


def test_a_resumed_run_goes_on_with_the_same_budget(tmp_path, clock, monkeypatch):
    run(tmp_path, clock, monkeypatch, TimeBudget(seconds=3), steps=4)  # 0, 1, 2, and 4 as the last: 4 seconds
    monkeypatch.undo()
    monkeypatch.setattr(budget, "clock", clock)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, tmp_path, steps=every(1), budget=TimeBudget(seconds=3))
    assert recorder.resume(optimizer) == 4
    assert recorder.skipped == [3]
    recorder.attach(optimizer)
    optimizer.step()
    assert recorder.skipped == [3, 5]


def test_the_meter_counts_and_goes_on(clock):
    meter = Meter(TimeBudget(fraction=0.5))
    clock.now = 10.0
    with meter.measuring():
        clock.now += 2.0
    with meter.measuring(whole=False):
        clock.now += 1.0
    assert (meter.spent, meter.last, meter.elapsed) == (3.0, 2.0, 13.0)
    clock.now += 100.0
    again = Meter(TimeBudget(fraction=0.5))
    again.restore(meter.state())
    assert (again.spent, again.last, again.elapsed) == (3.0, 2.0, 113.0)
    assert Meter(None).state() == []
