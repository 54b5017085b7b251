"""The trainer: it is the loop that one writes, several tasks included, and a recorder changes nothing."""

import copy

import pytest
import torch

from kpflow.study import Recorder, list_checkpoints, train
from kpflow.study.demo import Net
from kpflow.tasks import MemoryPro, MultiTask

TASK = MultiTask.memory_and_delay(context=4, stimulus=4, memory=4, response=4, grace=0.0)


def net(task, seed=0, hidden=16):
    return Net(task.num_inputs, hidden, task.num_outputs, torch.Generator().manual_seed(seed))


def test_it_is_the_loop_that_one_writes():
    one, other = net(TASK), net(TASK)
    done = train(one, TASK, steps=5, batch=8, learning_rate=1e-2, generator=torch.Generator().manual_seed(3))
    source = torch.Generator().manual_seed(3)
    torch.randint(2**31, (), generator=source)  # of the trials that are held out
    optimizer, losses = torch.optim.Adam(other.parameters(), lr=1e-2), []
    for _ in range(5):
        trials = TASK.sample(8, generator=source)
        loss = TASK.loss(other(trials.inputs), trials)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert done.losses.tolist() == losses
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_every_task_is_scored_and_learned():
    done = train(net(TASK, hidden=48), TASK, steps=400, learning_rate=5e-3, score_every=100)
    assert done.steps.tolist() == [100, 200, 300, 400]
    assert set(done.scores) == {"accuracy", *(f"accuracy {task.name}" for task in TASK.tasks)}
    assert float(done.losses[-20:].mean()) < 0.2 * float(done.losses[:5].mean())
    assert float(done.scores["accuracy"][-1]) > float(done.scores["accuracy"][0])


def test_it_ends_when_the_scores_are_reached():
    task = MemoryPro(stimulus=3, memory=2, response=3, grace=0.0)
    done = train(net(task, hidden=32), task, steps=2000, learning_rate=1e-2, score_every=20, until=0.9)
    assert done.reached
    assert len(done.losses) == int(done.steps[-1]) < 2000
    assert float(done.scores["accuracy"][-1]) >= 0.9


def test_a_recorder_at_the_side_changes_nothing(tmp_path):
    plain, recorded = net(TASK), net(TASK)
    first = train(plain, TASK, steps=6, batch=4)
    recorder = Recorder(recorded, tmp_path)
    second = train(recorded, TASK, steps=6, batch=4, recorder=recorder)
    assert torch.equal(first.losses, second.losses)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), recorded.parameters(), strict=True))
    assert [file.step for file in list_checkpoints(tmp_path)][-1] == 6


def test_gradients_are_clipped_and_optimizers_taken():
    model, seen = net(TASK), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = copy.deepcopy(model)
    train(model, TASK, steps=1, optimizer=optimizer, clip=1e-3, progress=lambda step, loss: seen.append((step, loss)))
    moved = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), before.parameters(), strict=True)])
    assert float(moved.detach().norm()) == pytest.approx(1e-3, rel=1e-3)
    assert seen[0][0] == 1


def test_float64_models_are_trained_in_float64():
    model = net(TASK).double()
    assert train(model, TASK, steps=2, batch=4).losses.shape == (2,)


BAD = {
    "steps": {"steps": 0},
    "batch": {"steps": 1, "batch": 0},
    "score_every": {"steps": 1, "score_every": 0},
    "score_trials": {"steps": 1, "score_trials": 0},
    "clip": {"steps": 1, "clip": 0.0},
    "until": {"steps": 1, "until": 2.0},
}


@pytest.mark.parametrize("name", BAD)
def test_numbers_out_of_range_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be a"):
        train(net(TASK), TASK, **BAD[name])


def test_a_training_that_diverges_says_so():
    model = net(TASK)
    with torch.no_grad():
        model.readout.bias.fill_(torch.inf)
    with pytest.raises(ValueError, match="The loss must stay finite"):
        train(model, TASK, steps=1)
