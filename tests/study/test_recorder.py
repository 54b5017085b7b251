"""Recorder: training is bit for bit as without it, and goes on where it stopped."""

import copy
import errno
import inspect
import os

import numpy as np
import pytest
import torch
from torch import nn

from kpflow.study import LogSpaced, Recorder, list_checkpoints, log_spaced, read_checkpoint
from kpflow.study.tree import pack, unpack

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-2)),
    "adamw": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p),
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=2),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.drop = nn.Dropout(0.2)
        self.readout = nn.Linear(4, 2)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x):
        return self.norm(self.readout(self.drop(self.rnn(x)[0][:, -1])))


class Interrupt:
    def __init__(self, after):
        self.left = after

    def __call__(self, *_args):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1


def make(name):
    torch.manual_seed(0)
    np.random.seed(0)
    model = Net()
    return model, OPTIMIZERS[name](model.parameters()), torch.Generator().manual_seed(1)


def train(model, optimizer, generator, steps):
    for _ in range(steps):
        x = torch.randn(5, 6, 3, generator=generator)

        def closure(x=x):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def snapshot(model, optimizer, generator):
    """Everything that a recorder could change, as bits."""
    parts = [model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()], generator.get_state()]
    parts += [torch.get_rng_state(), [m.training for m in model.modules()]]  # beartype itself draws from `random`
    parts += [[p.requires_grad for p in model.parameters()], torch.is_grad_enabled(), str(torch.get_default_dtype())]
    state = np.random.get_state()
    layout, tensors = pack(copy.deepcopy([dict(parts[0]), *parts[1:], state[1].tolist(), state[2]]))
    hooks = [len(m._forward_hooks) + len(m._backward_hooks) + len(m._state_dict_hooks) for m in model.modules()]
    hooks += [len(optimizer._optimizer_step_post_hooks), len(optimizer._optimizer_step_pre_hooks)]
    return layout, [(t.dtype, t.numpy(force=True).tobytes()) for t in tensors.values()], hooks


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_bit_identical_with_and_without(name, tmp_path):
    model, optimizer, generator = make(name)
    train(model, optimizer, generator, 13)
    without = snapshot(model, optimizer, generator)
    model, optimizer, generator = make(name)
    recorder = Recorder(model, tmp_path, generators={"data": generator}, metadata={"a": 1})
    with recorder.attach(optimizer):
        recorder.note(loss=1.0)
        train(model, optimizer, generator, 13)
    assert snapshot(model, optimizer, generator) == without
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 1, 2, 3, 4, 6, 7, 10, 13]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_ends_with_the_same_bits(name, tmp_path):
    model, optimizer, generator = make(name)
    with Recorder(model, tmp_path / "whole", generators={"data": generator}).attach(optimizer):
        torch.manual_seed(5)
        model.eval()
        train(model, optimizer, generator, 20)
    whole = snapshot(model, optimizer, generator)

    model, optimizer, generator = make(name)
    recorder = Recorder(model, tmp_path / "parts", generators={"data": generator}).attach(optimizer)
    model.eval()
    train(model, optimizer, generator, 12)  # stopped between the checkpoints of steps 10 and 13
    recorder.detach()

    torch.manual_seed(99)
    model, optimizer = Net(), None
    optimizer = OPTIMIZERS[name](model.parameters())
    generator = torch.Generator().manual_seed(77)
    recorder = Recorder(model, tmp_path / "parts", generators={"data": generator})
    assert recorder.resume(optimizer) == 10
    torch.manual_seed(5)
    model.eval()
    with recorder.attach(optimizer):
        train(model, optimizer, generator, 10)
    assert snapshot(model, optimizer, generator)[1] == whole[1]
    steps = [file.step for file in list_checkpoints(tmp_path / "parts")]
    assert steps == [file.step for file in list_checkpoints(tmp_path / "whole")]
    for first, second in zip(list_checkpoints(tmp_path / "whole"), list_checkpoints(tmp_path / "parts"), strict=True):
        one, two = read_checkpoint(first.path).state_dict, read_checkpoint(second.path).state_dict
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_nothing_is_pickled(tmp_path):
    model, optimizer, generator = make("adam")
    with Recorder(model, tmp_path, generators={"data": generator}).attach(optimizer):
        train(model, optimizer, generator, 3)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors", ".json"}
    assert len(list((tmp_path / "resume").iterdir())) == 2  # only what the newest needs


def test_what_others_keep_in_its_folder_stays(tmp_path):
    model, optimizer, generator = make("adam")
    recorder = Recorder(model, tmp_path, generators={"data": generator}).attach(optimizer)
    kept = [tmp_path / "resume" / name for name in ("notes.txt", "step-1.json", "mine")]
    left = tmp_path / "resume" / ".step-00000000.safetensors.tmp"  # of a process that was killed
    kept[-1].mkdir()
    for path in (*kept[:2], left):
        path.write_text("{}")
    train(model, optimizer, generator, 2)
    recorder.detach()
    assert all(path.exists() for path in kept)
    assert not left.exists()
    assert sorted(path.stem for path in (tmp_path / "resume").glob("step-0*")) == 2 * ["step-00000002"]


def test_the_loss_is_kept_beside_the_weights(tmp_path):
    recorder = Recorder(nn.Linear(2, 1), tmp_path, steps=lambda step: step % 2 == 0, metadata={"task": "x"})
    written = [recorder.record(step, loss=1.0 / (1 + step)) for step in range(4)]
    recorder.close()
    assert written == [True, False, True, False]
    read = [read_checkpoint(file.path) for file in list_checkpoints(tmp_path)]
    assert [(one.step, one.metadata["loss"]) for one in read] == [(0, 1.0), (2, 1 / 3), (3, 0.25)]


def test_a_loss_that_is_not_finite_stops_no_training_and_is_left_out(tmp_path):
    recorder = Recorder(nn.Linear(2, 1), tmp_path, steps=lambda _step: True)
    for step, loss in enumerate((0.5, float("nan"), float("inf"))):
        recorder.record(step, loss=loss)
    assert [read_checkpoint(file.path).metadata for file in list_checkpoints(tmp_path)] == [{"loss": 0.5}, {}, {}]


def test_an_interrupted_block_writes_no_last_step(tmp_path):
    model, optimizer, generator = make("sgd")
    optimizer.register_step_pre_hook(Interrupt(after=5))
    with pytest.raises(KeyboardInterrupt), Recorder(model, tmp_path).attach(optimizer):
        train(model, optimizer, generator, 9)
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 1, 2, 3, 4]
    assert not optimizer._optimizer_step_post_hooks


def test_a_folder_of_another_run_is_not_written_over(tmp_path):
    model, optimizer, generator = make("sgd")
    with Recorder(model, tmp_path).attach(optimizer):
        train(model, optimizer, generator, 4)
    with pytest.raises(FileExistsError, match=r"must be free for a new run; .* up to step 4\. Call resume\(\)"):
        Recorder(model, tmp_path).attach(optimizer)
    with pytest.raises(FileExistsError, match=r"must be free for a new run"):
        Recorder(model, tmp_path).record(0)


def test_a_kill_between_the_two_files_resumes_from_the_older_pair(tmp_path, monkeypatch):
    model, optimizer, generator = make("adam")
    Recorder(model, tmp_path, generators={"data": generator}).attach(optimizer)
    train(model, optimizer, generator, 3)

    def killed(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("kpflow.study.recorder.checkpoints.save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        train(model, optimizer, generator, 1)
    monkeypatch.undo()
    model, optimizer, generator = make("adam")
    assert Recorder(model, tmp_path, generators={"data": generator}).resume(optimizer) == 3


def test_a_full_disk_keeps_earlier_checkpoints(tmp_path, monkeypatch):
    model, optimizer, generator = make("adam")
    Recorder(model, tmp_path, generators={"data": generator}).attach(optimizer)
    train(model, optimizer, generator, 2)

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("kpflow.study.files.os.fsync", full)
    with pytest.raises(OSError, match=r"could not be written: No space left on device.*start again to go on from"):
        train(model, optimizer, generator, 1)
    monkeypatch.undo()
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 1, 2]
    model, optimizer, generator = make("adam")
    assert Recorder(model, tmp_path, generators={"data": generator}).resume(optimizer) == 2


def test_a_fresh_folder_resumes_at_zero(tmp_path):
    assert Recorder(nn.Linear(2, 1), tmp_path / "new").resume() == 0


def test_checkpoints_without_the_state_to_go_on(tmp_path):
    model, optimizer, generator = make("sgd")
    with Recorder(model, tmp_path).attach(optimizer):
        train(model, optimizer, generator, 2)
    for path in (tmp_path / "resume").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"up to step 2, but not the state to go on"):
        Recorder(model, tmp_path).resume(optimizer)


def test_resume_with_other_generators(tmp_path):
    model, optimizer, generator = make("sgd")
    with Recorder(model, tmp_path, generators={"data": generator}).attach(optimizer):
        train(model, optimizer, generator, 1)
    with pytest.raises(ValueError, match=r"`generators` must be \['data'\].*got \[\]"):
        Recorder(model, tmp_path).resume(optimizer)


def test_bad_arguments(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters())
    init, attach = inspect.unwrap(Recorder.__init__), inspect.unwrap(Recorder.attach)  # as users call them, unhooked
    with pytest.raises(TypeError, match=r"`model` must be a torch\.nn\.Module; got dict"):
        init(Recorder.__new__(Recorder), {}, tmp_path)
    with pytest.raises(TypeError, match=r"`steps` must be a callable step -> bool; got list.*log_spaced"):
        init(Recorder.__new__(Recorder), model, tmp_path, steps=[1, 2])
    with pytest.raises(TypeError, match=r"`optimizer` must be a torch\.optim\.Optimizer; got Linear"):
        attach(Recorder(model, tmp_path), model)
    with pytest.raises(ValueError, match=r"attached already\. Call detach\(\) first"):
        Recorder(model, tmp_path / "a").attach(optimizer).attach(optimizer)
    recorder = Recorder(model, tmp_path / "b")
    recorder.record(4)
    with pytest.raises(ValueError, match=r"`step` must grow from call to call; got 3 after 4"):
        recorder.record(3)
    with pytest.raises(ValueError, match=r"`per_decade` must be a positive whole number; got 0"):
        log_spaced(0)


def test_the_logarithmic_grid():
    grid = log_spaced(8).grid(1000)
    assert grid[:5] == [0, 1, 2, 3, 4]
    assert grid[-2:] == [750, 1000]
    assert [step for step in range(1001) if LogSpaced(8)(step)] == grid
    assert LogSpaced(1).grid(1000) == [0, 1, 10, 100, 1000]


def test_trees_come_back_as_they_were():
    tree = {"a": [1, 2.5, None, True, float("inf")], 0: ("x", {}), "t": torch.arange(3)}
    back = unpack(*pack(tree))
    assert torch.equal(back.pop("t"), tree.pop("t"))
    assert back == tree
    assert isinstance(back[0], tuple)
    with pytest.raises(TypeError, match=r"`value\['f'\]\[0\]` must be made of .*; got set"):
        pack({"f": [set()]})
