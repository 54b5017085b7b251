"""The trainer: it is the loop that one writes, several tasks included, and a recorder changes nothing."""

import copy
import inspect

import pytest
import torch
from torch.optim import lr_scheduler

from kpflow.optim import NaturalGradient
from kpflow.study import Recorder, every, list_checkpoints, on_loss_jump, read_checkpoint, train
from kpflow.study.demo import Demo, Net, train_demo
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


def told(folder):
    return [read_checkpoint(file.path).metadata.get("loss") for file in list_checkpoints(folder)]


@pytest.mark.parametrize("watching", [{}, {"gradients": True}, {"steps": every(1) | on_loss_jump()}])
@pytest.mark.parametrize("kind", ["adam", "natural"])
def test_each_checkpoint_holds_the_loss_of_its_own_step(kind, watching, tmp_path):
    model = net(TASK)
    optimizer = NaturalGradient(model, lr=0.5, rank=2) if kind == "natural" else None
    recorder = Recorder(model, tmp_path, **{"steps": every(1), **watching})
    losses = train(model, TASK, steps=4, batch=4, optimizer=optimizer, recorder=recorder).losses.tolist()
    assert told(tmp_path) == [None, *losses]
    assert list(recorder._losses) == losses[-recorder._losses.maxlen :]
    if recorder.gradients:
        assert told(tmp_path / "gradients") == losses  # each at the weights of its step


def test_the_demo_records_the_losses_of_its_steps(tmp_path):
    losses = []
    demo = Demo(steps=4, hidden=4, batch=2)
    folder = train_demo(demo, tmp_path, progress=lambda _, loss: losses.append(loss))
    assert [file.step for file in list_checkpoints(folder)] == [0, 1, 2, 3, 4]
    assert told(folder) == [None, *losses]


def test_a_resumed_training_sees_the_same_losses(tmp_path):
    model, steps = net(TASK), every(6) | on_loss_jump(window=2)
    losses = train(model, TASK, steps=6, batch=4, recorder=Recorder(model, tmp_path, steps=steps)).losses
    again = Recorder(model, tmp_path, steps=steps, generators={"train": torch.Generator()})
    assert again.resume() == 6
    assert list(again._losses) == losses[-5:].tolist()


class Moody(torch.nn.Module):
    """Dropout, batch normalisation, and a part that is kept in evaluation mode."""

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.net, self.drop = net(TASK), torch.nn.Dropout(0.5)
        self.norm, self.frozen = torch.nn.BatchNorm1d(TASK.num_inputs), torch.nn.Dropout(0.9).eval()

    def forward(self, x):
        return self.net(self.frozen(self.drop(self.norm(x.movedim(2, 1)).movedim(1, 2))))


def test_scores_are_taken_in_evaluation_mode_and_change_nothing():
    def run(score_every):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Moody()
            done = train(model, TASK, steps=6, batch=4, score_every=score_every, score_trials=16)
        return model, done

    often, once = run(1), run(6)
    assert [module.training for module in often[0].modules()].count(False) == 1
    states = [model.state_dict() for model, _ in (often, once)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    source = torch.Generator().manual_seed(0)
    held_out = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=source)))
    tested = TASK.sample(16, generator=held_out)
    expected = TASK.score(once[0].eval()(tested.inputs).detach(), tested)
    assert {name: float(values[-1]) for name, values in once[1].scores.items()} == pytest.approx(expected)


def test_gradients_are_clipped_and_optimizers_taken():
    model, seen = net(TASK), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = copy.deepcopy(model)
    train(model, TASK, steps=1, optimizer=optimizer, clip=1e-3, progress=lambda step, loss: seen.append((step, loss)))
    moved = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), before.parameters(), strict=True)])
    assert float(moved.detach().norm()) == pytest.approx(1e-3, rel=1e-3)
    assert seen[0][0] == 1


def test_an_optimizer_whose_closure_gives_outputs():
    model = net(TASK)
    done = train(model, TASK, steps=15, batch=16, optimizer=NaturalGradient(model, lr=0.5, rank=3))
    assert float(done.losses[-3:].mean()) < 0.7 * float(done.losses[0])
    with pytest.raises(ValueError, match="`clip` must be None with NaturalGradient"):
        train(model, TASK, steps=1, clip=1.0, optimizer=NaturalGradient(model))


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


SCHEDULERS = {
    "none": lambda optimizer: None,
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 4, 0.3),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 11),
    "one_cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=14),
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda n: 0.9**n),
    "sequence": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.ConstantLR(optimizer, 0.5), lr_scheduler.MultiStepLR(optimizer, [2, 4])],
        milestones=[7],
    ),
}


def scheduled(kind):
    model = net(TASK)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return model, optimizer, SCHEDULERS[kind](optimizer)


def stop_at(last):
    def progress(step, _loss):
        if step == last:
            raise KeyboardInterrupt

    return progress


def bits(model, optimizer):
    state = [value for one in optimizer.state_dict()["state"].values() for value in one.values()]
    return [value.numpy(force=True).tobytes() for value in [*model.state_dict().values(), *state]]


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_resumed_training_ends_with_the_same_bits(kind, tmp_path):
    common = {"steps": 13, "batch": 4, "score_every": 5}
    model, optimizer, scheduler = scheduled(kind)
    plain = train(model, TASK, optimizer=optimizer, scheduler=scheduler, **common)
    rates = [group["lr"] for group in optimizer.param_groups]

    other, second, later = scheduled(kind)
    recorder = Recorder(other, tmp_path, steps=every(3))
    with pytest.raises(KeyboardInterrupt):
        train(other, TASK, optimizer=second, scheduler=later, recorder=recorder, progress=stop_at(8), **common)
    assert not second._optimizer_step_post_hooks

    other, second, later = scheduled(kind)
    recorder = Recorder(other, tmp_path, steps=every(3))
    done = train(other, TASK, optimizer=second, scheduler=later, recorder=recorder, resume=True, **common)
    assert done.losses.tolist() == plain.losses[6:].tolist()
    assert done.steps.tolist() == [10, 13]
    assert all(done.scores[name].tolist() == plain.scores[name][1:].tolist() for name in plain.scores)
    assert bits(other, second) == bits(model, optimizer)
    assert [group["lr"] for group in second.param_groups] == rates
    if scheduler is not None:
        assert later.last_epoch == scheduler.last_epoch == 13
        assert rates != [0.01]


def test_the_scheduler_steps_after_each_step_of_its_optimizer():
    model, optimizer, _ = scheduled("none")
    rates = []
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    train(model, TASK, steps=5, batch=2, scheduler=lr_scheduler.StepLR(optimizer, 2, 0.5))
    assert rates == pytest.approx([0.01, 0.01, 0.005, 0.005, 0.0025])


def test_resuming_what_was_not_begun_begins_it_and_what_is_done_stays(tmp_path):
    model, optimizer, scheduler = scheduled("step")
    common = {"steps": 3, "batch": 2, "optimizer": optimizer, "scheduler": scheduler, "resume": True}
    assert len(train(model, TASK, recorder=Recorder(model, tmp_path), **common).losses) == 3
    before = bits(model, optimizer)
    assert len(train(model, TASK, recorder=Recorder(model, tmp_path), **common).losses) == 0
    assert bits(model, optimizer) == before


def test_a_training_that_reached_its_scores_is_done_when_it_is_resumed(tmp_path):
    task = MemoryPro(stimulus=3, memory=2, response=3, grace=0.0)
    model = net(task, hidden=32)
    common = {"learning_rate": 1e-2, "batch": 32, "score_every": 20, "score_trials": 32}
    first = train(model, task, steps=2000, until=0.7, recorder=Recorder(model, tmp_path), **common)
    end, before = int(first.steps[-1]), {name: value.clone() for name, value in model.state_dict().items()}
    for steps in (2000, end):
        model = net(task, hidden=32)
        recorder = Recorder(model, tmp_path)
        again = train(model, task, steps=steps, until=0.7, recorder=recorder, resume=True, **common)
        assert again.reached
        assert (recorder.step, len(again.losses), len(again.steps)) == (end, 0, 0)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    more = train(model, task, steps=end + 5, until=1.0, recorder=Recorder(model, tmp_path), resume=True, **common)
    assert len(more.losses) == 5
    assert not more.reached


def test_a_checkpoint_without_a_scheduler_or_with_another(tmp_path):
    for first, second, said in (
        ("none", "step", "no scheduler; got StepLR"),
        ("step", "none", "StepLR; got no scheduler"),
        ("step", "cosine", "StepLR; got CosineAnnealingLR"),
    ):
        folder = tmp_path / f"{first}-{second}"
        model, optimizer, scheduler = scheduled(first)
        train(model, TASK, steps=1, batch=2, optimizer=optimizer, scheduler=scheduler, recorder=Recorder(model, folder))
        model, optimizer, scheduler = scheduled(second)
        common = {"optimizer": optimizer, "scheduler": scheduler, "recorder": Recorder(model, folder), "resume": True}
        with pytest.raises(ValueError, match=f"`scheduler` must be what `.*` was written with, {said}. Give resume"):
            train(model, TASK, steps=2, batch=2, **common)


def test_schedulers_that_do_not_fit():
    model, optimizer, scheduler = scheduled("step")
    other = torch.optim.SGD(model.parameters())
    with pytest.raises(ValueError, match=r"`scheduler` must be of `optimizer`; got that of another\. Make it from"):
        train(model, TASK, steps=1, optimizer=other, scheduler=scheduler)
    with pytest.raises(TypeError, match=r"`scheduler` must step without a metric; got ReduceLROnPlateau\. Write the"):
        train(model, TASK, steps=1, scheduler=lr_scheduler.ReduceLROnPlateau(optimizer))
    with pytest.raises(
        ValueError, match=r"`recorder` must be given to resume; got None\. Give the one with the folder"
    ):
        train(model, TASK, steps=1, resume=True)


def test_something_else_than_a_scheduler(tmp_path):
    model, optimizer, _ = scheduled("none")
    attach = inspect.unwrap(Recorder.attach)
    with pytest.raises(TypeError, match=r"`scheduler` must be a scheduler of torch\.optim\.lr_scheduler; got int"):
        attach(Recorder(model, tmp_path), optimizer, 3)
