"""Several tasks in one batch."""

import math
import re

import pytest
import torch

from kpflow.tasks import DelayPro, FlipFlop, MemoryAnti, MemoryPro, MultiTask, RuleTask
from kpflow.tasks.multitask import _merge_epochs
from kpflow.tasks.rules import DRISCOLL_RULES, YANG_RULES


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SMALL = {"stimulus": 3, "memory": 4, "response": 7}


@pytest.mark.parametrize("rule_epoch", [None, "context", "fix1"])
def test_each_trial_is_a_trial_of_its_task_with_its_rule(rule_epoch):
    tasks = (MemoryPro(context=2, **SMALL), DelayPro(context=5, **SMALL), MemoryAnti(context=1, **SMALL))
    task = MultiTask(tasks, rule_epoch=rule_epoch)
    assert task.num_inputs == 6
    trials = task.sample(60, generator=seeded(0), dtype=torch.float64)
    for b in range(60):
        k = int(trials.conditions["task"][b])
        own = tasks[k]
        angle = trials.conditions["angle"][b : b + 1]
        T = own.context + 14
        assert int(trials.length[b]) == T
        for name in task.epoch_names:
            start, stop = (int(times[b]) for times in trials.epochs[name])
            if name not in own.epoch_names:
                assert start == stop
                continue
            seen = trials.inputs_clean[b, start:stop]
            assert torch.equal(seen[:, :3], own.static_inputs(name, {"angle": angle}).expand(stop - start, 3))
            rule = torch.zeros(3, dtype=torch.float64)
            rule[k] = float(rule_epoch is None or name == "context")
            assert torch.equal(seen[:, 3:], rule.expand(stop - start, 3))
            target = trials.targets[b, start:stop]
            goal = torch.zeros(3, dtype=torch.float64)
            if name == "response":
                sign = -1 if own.anti else 1
                goal[1:] = sign * torch.cat((angle.cos(), angle.sin()))
            else:
                goal[0] = 1
            torch.testing.assert_close(target, goal.expand(stop - start, 3), rtol=0, atol=1e-15)
        assert not trials.inputs[b, T:].any()
        assert not trials.mask[b, T:].any()


def test_tasks_are_drawn_uniformly_for_each_trial_or_each_batch():
    task = MultiTask(tuple(MultiTask().tasks))
    n = 2000
    counts = task.sample(n, generator=seeded(1), noise=False).conditions["task"].bincount().double()
    assert (counts - n / 4).abs().max() < 4 * math.sqrt(n * 3 / 16)
    batch = MultiTask(mixing="batch")
    seen = [batch.sample(3, generator=seeded(s)).conditions["task"].unique().tolist() for s in range(30)]
    assert all(len(which) == 1 for which in seen)
    assert {which[0] for which in seen} == {0, 1, 2, 3}


def test_the_grid_goes_round_the_tasks_and_is_the_grid_of_each():
    task = MultiTask()
    trials = task.sample(20, mode="grid", noise=False)
    assert trials.conditions["task"].tolist() == [0, 1, 2, 3] * 5
    for k, part in enumerate(task.split(trials).values()):
        own = task.tasks[k].sample(5, mode="grid", noise=False)
        assert torch.equal(part.inputs[:, :, :3], own.inputs)
        assert torch.equal(part.targets, own.targets)
        assert torch.equal(part.conditions["angle"], own.conditions["angle"])


def test_the_sets_of_the_papers():
    driscoll, yang, four = MultiTask.driscoll(), MultiTask.yang(), MultiTask.memory_and_delay()
    assert (len(driscoll.tasks), driscoll.num_inputs, driscoll.num_outputs) == (15, 20, 3)
    assert (len(yang.tasks), yang.num_inputs, yang.num_outputs) == (20, 85, 33)
    assert [task.rule for task in driscoll.tasks] == list(DRISCOLL_RULES)
    assert [task.rule for task in yang.tasks] == list(YANG_RULES)
    assert driscoll.epoch_names == ("context", "stimulus", "memory", "stimulus2", "memory2", "response")
    trials = four.sample(8)
    assert (trials.num_steps, four.num_inputs, four.num_outputs) == (120, 7, 3)
    rule = trials.inputs_clean[:, :, 3:]
    assert rule[:, :30].sum(2).unique().tolist() == [1]
    assert not rule[:, 30:].any()


def test_conditions_that_a_task_lacks_are_empty():
    task = MultiTask((RuleTask("delay_pro"), RuleTask("react_match2sample")))
    trials = task.sample(20, mode="grid")
    one, other = task.split(trials).values()
    assert one.conditions["angle1"].isnan().all()
    assert one.conditions["match"].tolist() == [-1] * 10
    assert other.conditions["angle"].isnan().all()
    assert sorted(other.conditions["match"].unique().tolist()) == [0, 1]
    assert other.conditions["modality"].tolist() == [-1] * 10


def test_scores_are_those_of_the_tasks():
    task = MultiTask.driscoll()
    trials = task.sample(150, generator=seeded(2), dtype=torch.float64)
    wrong = {2, 7, 11}
    outputs = trials.targets.clone()
    for k in wrong:
        rows = trials.conditions["task"] == k
        outputs[rows] = torch.tensor([0.0, 0.0, 0.0]).double()
    scores = task.score(outputs, trials)
    total = 0.0
    for k, own in enumerate(task.tasks):
        rows = trials.conditions["task"] == k
        expected = 0.0 if k in wrong else 1.0
        assert scores[f"accuracy {own.name}"] == expected
        total += expected * int(rows.sum())
    assert scores["accuracy"] == pytest.approx(total / 150)


def test_static_inputs_of_several_tasks_together():
    task = MultiTask((MemoryPro(), DelayPro()))
    c = {"task": torch.tensor([1, 0, 1]), "angle": torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)}
    static = task.static_inputs("stimulus", c)
    assert static.shape == (3, 5)
    assert static[:, 3:].tolist() == [[0, 1], [1, 0], [0, 1]]
    torch.testing.assert_close(static[:, 1], c["angle"].cos())
    cue = MultiTask((MemoryPro(context=3), DelayPro(context=3)), rule_epoch="context")
    assert not cue.static_inputs("stimulus", c)[:, 3:].any()
    assert cue.static_inputs("context", c)[:, 3:].sum(1).tolist() == [1, 1, 1]
    assert task.static_inputs("memory", {"task": torch.zeros(2).long()}).tolist() == [[1, 0, 0, 1, 0]] * 2


def test_a_network_can_learn_two_tasks_from_it():
    """The loop of the documentation: the loss falls."""
    task = MultiTask.memory_and_delay(2, stimulus=2, memory=1, response=3, grace=0.0, sigma=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rnn, out = torch.nn.GRU(task.num_inputs, 24, batch_first=True), torch.nn.Linear(24, task.num_outputs)
    optimizer = torch.optim.Adam([*rnn.parameters(), *out.parameters()], lr=1e-2)
    generator, losses = seeded(0), []
    for _ in range(40):
        trials = task.sample(32, generator=generator)
        loss = task.loss(out(rnn(trials.inputs)[0]), trials)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def message(error, pattern, make):
    with pytest.raises(error, match=pattern):
        make()


@pytest.mark.usefixtures("no_type_checks")
def test_tasks_must_fit_together():
    message(ValueError, "`tasks` must have at least one task; got none", lambda: MultiTask(()))
    message(TypeError, r"`tasks` must be tasks; got str. Make one with", lambda: MultiTask(("memory_pro",)))
    message(
        ValueError,
        "`tasks` must have different names; got memory_pro, memory_pro",
        lambda: MultiTask((MemoryPro(), MemoryPro(context=3))),
    )
    message(
        ValueError,
        r"`tasks` must agree on input_labels; got \('fixation', 'cos', 'sin'\) for memory_pro and .* for flipflop",
        lambda: MultiTask((MemoryPro(), FlipFlop())),
    )
    message(
        ValueError, "`tasks` must agree on dt; got 20.0 for .* and 10.0 for", lambda: MultiTask(pair(dt=10.0, tau=10.0))
    )
    message(ValueError, "`tasks` must agree on noise_std", lambda: MultiTask(pair(sigma=0.2)))
    message(ValueError, "`epoch` must be one of .*; got 'memory'", lambda: MultiTask(pair(), rule_epoch="memory"))
    message(ValueError, "`mixing` must be one of 'trial', 'batch'; got 'x'", lambda: MultiTask(mixing="x"))


def pair(**parameters):
    return MemoryPro(), DelayPro(**parameters)


@pytest.mark.usefixtures("no_type_checks")
def test_static_inputs_reject_what_no_task_has():
    task = MultiTask(pair())
    angle = torch.zeros(1)
    message(
        ValueError,
        "`conditions` must have 'task': the input in",
        lambda: task.static_inputs("memory", {"angle": angle}),
    )
    message(
        ValueError,
        re.escape("`epoch` must be one of context, stimulus, response for delay_pro; got 'memory'. Leave out"),
        lambda: task.static_inputs("memory", {"task": torch.ones(1).long()}),
    )
    message(
        ValueError,
        r"`conditions\['task'\]` must lie in 0 … 1; got 2",
        lambda: task.static_inputs("context", {"task": torch.tensor([2])}),
    )


@pytest.mark.usefixtures("no_type_checks")
def test_epochs_in_contrary_orders_are_refused():
    class Order:
        def __init__(self, name, *epochs):
            self.name, self.epoch_names = name, epochs

    assert _merge_epochs([Order("a", "x", "z"), Order("b", "x", "y", "z")]) == ("x", "y", "z")
    with pytest.raises(ValueError, match=r"`tasks` must agree on the order of epochs; got \('z', 'x'\) for b"):
        _merge_epochs([Order("a", "x", "z"), Order("b", "z", "x")])
