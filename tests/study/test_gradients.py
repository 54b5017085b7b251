"""Gradients beside the checkpoints: those that the weights of the step had, in loops of every kind."""

import errno
import inspect
import os

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kpflow.optim import NaturalGradient
from kpflow.study import Recorder, every, list_checkpoints, on_loss_jump, read_checkpoint

INPUTS = torch.randn(24, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(3, 6), nn.Dropout(0.3), nn.Linear(6, 2)
        self.double()

    def forward(self, x):
        return self.second(self.drop(self.first(x).tanh()))


OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    "natural": lambda model: NaturalGradient(model, lr=0.3, rank=2),
    "damped": lambda model: NaturalGradient(model, form="damped", damping="gain", rank=2, momentum=0.5),
    "lbfgs": lambda model: torch.optim.LBFGS(model.parameters(), max_iter=3),
}


def train(name, folder=None, epochs=3, closure=False, **options):
    """As users do: dropout and the order of a data loader draw from the global generator."""
    torch.manual_seed(0)
    model = Net()
    optimizer = OPTIMIZERS[name](model)
    loader = DataLoader(TensorDataset(INPUTS), batch_size=8, shuffle=True)
    recorder = None if folder is None else Recorder(model, folder, **options).attach(optimizer)
    seen = []
    for _ in range(epochs):
        for (x,) in loader:

            def plain(x=x):
                optimizer.zero_grad()
                loss = model(x).square().mean()
                loss.backward()
                return loss

            def pair(x=x):
                outputs = model(x)
                return outputs.square().mean(), outputs

            before = {key: value.clone() for key, value in model.state_dict().items()}
            if name in ("natural", "damped"):
                optimizer.step(pair)
            elif closure or name == "lbfgs":
                optimizer.step(plain)
            else:
                if recorder is not None:
                    recorder.note(plain().item())
                else:
                    plain()
                seen.append((before, {key: p.grad.clone() for key, p in model.named_parameters()}))
                optimizer.step()
    if recorder is not None:
        recorder.close()
    return model, optimizer, recorder, seen


def bits(model, optimizer):
    state = optimizer.state_dict()["state"]
    moments = [v for one in state.values() for v in one.values() if isinstance(v, torch.Tensor)]
    tensors = [*model.state_dict().values(), *moments, *(p.grad for p in model.parameters() if p.grad is not None)]
    return [t.numpy(force=True).tobytes() for t in tensors], torch.get_rng_state().tolist(), model.training


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_bit_identical_with_everything_recorded(name, closure, tmp_path):
    without = bits(*train(name, closure=closure)[:2])
    steps = every(1) | on_loss_jump(1.1, 1)
    model, optimizer, recorder, _ = train(name, tmp_path, closure=closure, steps=steps, gradients=True)
    assert bits(model, optimizer) == without
    assert [file.step for file in list_checkpoints(tmp_path)] == list(range(10))
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert len(recorder._losses) == 3  # it saw the losses, of closures too


@pytest.mark.parametrize("closure", [False, True])
def test_gradients_belong_to_the_weights_of_the_step(closure, tmp_path):
    *_, seen = train("adam", epochs=2)
    train("adam", tmp_path, epochs=2, closure=closure, steps=every(2), gradients=True)
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 2, 4, 6]
    files = list_checkpoints(tmp_path / "gradients")
    assert [file.step for file in files] == [0, 2, 4]  # there is none yet at the last
    for file in files:
        read = read_checkpoint(file.path)
        weights, gradient = seen[file.step]
        assert all(torch.equal(read.state_dict[key], gradient[key]) for key in gradient)
        stored = read_checkpoint(tmp_path / file.path.name).state_dict
        assert all(torch.equal(stored[key], weights[key]) for key in weights)
        norm = torch.cat([value.flatten() for value in gradient.values()]).norm().item()
        assert read.metadata["norm"] == pytest.approx(norm, rel=1e-14)
        assert read.metadata["loss"] > 0


def test_a_closure_is_read_at_its_first_call(tmp_path):
    """L-BFGS moves the weights between calls: the gradient of the first is that of the recorded weights."""
    torch.manual_seed(0)
    model = Net().eval()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    wanted = []

    def closure():
        optimizer.zero_grad()
        loss = model(INPUTS).square().mean()
        loss.backward()
        wanted.append(model.first.weight.grad.clone())
        return loss

    recorder = Recorder(model, tmp_path, steps=every(1), gradients=True)
    with recorder.attach(optimizer):
        optimizer.step(closure)
    assert len(wanted) > 1
    assert len(recorder._losses) == 1
    read = read_checkpoint(tmp_path / "gradients" / "step-00000000.safetensors")
    assert torch.equal(read.state_dict["first.weight"], wanted[0])
    assert not torch.equal(wanted[0], wanted[-1])


def test_gradients_of_an_optimizer_that_takes_them_itself(tmp_path):
    """The natural gradient differentiates within its step: what is written is the gradient at the weights before."""
    train("natural", tmp_path, epochs=1, steps=every(1), gradients=True)
    files = list_checkpoints(tmp_path / "gradients")
    assert [file.step for file in files] == [0, 1, 2]
    torch.manual_seed(0)
    model = Net()
    for file, (x,) in zip(files, DataLoader(TensorDataset(INPUTS), batch_size=8, shuffle=True), strict=True):
        model.load_state_dict(read_checkpoint(tmp_path / file.path.name).state_dict)
        loss = model(x).square().mean()
        found = torch.autograd.grad(loss, list(model.parameters()))
        read = read_checkpoint(file.path)
        for (name, _), gradient in zip(model.named_parameters(), found, strict=True):
            torch.testing.assert_close(read.state_dict[name], gradient)
        assert read.metadata["loss"] == pytest.approx(loss.item())


class Consuming(torch.optim.Optimizer):
    """Plain descent that leaves no gradients behind."""

    def __init__(self, params):
        torch.optim.Optimizer.__init__(self, params, {})

    def step(self, closure=None):  # noqa: ARG002
        for p in self.param_groups[0]["params"]:
            p.data.sub_(p.grad)
            p.grad = None


def test_gradients_are_read_before_the_optimizer_takes_them(tmp_path):
    model = Net()
    optimizer = Consuming(model.parameters())
    with Recorder(model, tmp_path, steps=every(1), gradients=True).attach(optimizer):
        model(INPUTS).sum().backward()
        wanted = model.first.weight.grad.clone()
        optimizer.step()
    read = read_checkpoint(tmp_path / "gradients" / "step-00000000.safetensors")
    assert torch.equal(read.state_dict["first.weight"], wanted)


def test_parameters_without_gradients_are_left_out(tmp_path):
    model = Net()
    model.second.requires_grad_(False)
    optimizer = torch.optim.SGD(model.first.parameters(), lr=0.1)
    with Recorder(model, tmp_path, steps=every(1), gradients=True).attach(optimizer):
        model(INPUTS).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.step()
    files = list_checkpoints(tmp_path / "gradients")
    assert [file.step for file in files] == [0]
    assert set(read_checkpoint(files[0].path).state_dict) == {"first.weight", "first.bias"}


def test_sparse_and_complex_gradients(tmp_path):
    model = nn.Embedding(4, 2, sparse=True)
    model.phase = nn.Parameter(torch.ones(2, dtype=torch.complex128))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(model, tmp_path, steps=every(1), gradients=True).attach(optimizer):
        (model(torch.tensor([1, 1])).sum() + (model.phase * 1j).real.sum()).backward()
        optimizer.step()
    read = read_checkpoint(tmp_path / "gradients" / "step-00000000.safetensors")
    assert read.state_dict["weight"].tolist() == [[0, 0], [2, 2], [0, 0], [0, 0]]
    assert read.metadata["norm"] == pytest.approx(10**0.5, rel=1e-12)


def test_a_jump_of_the_loss_is_recorded(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, tmp_path, steps=every(1000) | on_loss_jump(2.0, 2))
    with recorder.attach(optimizer):
        for step in range(30):
            recorder.note(1.0 if step < 17 else 0.1)
            optimizer.step()
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 19, 30]


def test_a_resumed_run_sees_the_same_jump(tmp_path):
    def part(steps, stop):
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recorder = Recorder(model, tmp_path, steps=every(1) if stop else on_loss_jump(2.0, 4))
        recorder._losses = type(recorder._losses)(recorder._losses, maxlen=9)
        first = recorder.resume(optimizer)
        recorder.attach(optimizer)
        for step in range(first, first + steps):
            recorder.note(1.0 if step < 12 else 0.1)
            optimizer.step()
        return recorder

    part(12, stop=True).detach()
    part(6, stop=False)
    assert [file.step for file in list_checkpoints(tmp_path)][-2:] == [12, 15]  # seen although it is at the seam


def test_dropout_draws_the_same_after_resuming(tmp_path):
    def rest(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(INPUTS).square().mean().backward()
            optimizer.step()

    generators = {"torch": torch.default_generator}
    torch.manual_seed(4)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    with Recorder(model, tmp_path, steps=every(5), generators=generators).attach(optimizer):
        rest(model, optimizer, 5)
    rest(model, optimizer, 5)
    whole = bits(model, optimizer)
    torch.manual_seed(77)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    assert Recorder(model, tmp_path, generators=generators).resume(optimizer) == 5
    rest(model, optimizer, 5)
    assert bits(model, optimizer) == whole


def test_a_full_disk_while_gradients_are_written(tmp_path, monkeypatch):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(model, tmp_path, steps=every(1), gradients=True).attach(optimizer)
    model(INPUTS).sum().backward()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("kpflow.study.files.os.fsync", full)
    with pytest.raises(OSError, match=r"gradients.*could not be written: No space left on device"):
        optimizer.step()
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "gradients").iterdir()] == []
    assert [file.step for file in list_checkpoints(tmp_path)] == [0]
    recorder.detach()


def test_going_on_where_a_framework_has_put_the_training_back(tmp_path):
    def steps(count, recorder, optimizer, model):
        recorder.attach(optimizer)
        for _ in range(count):
            model(INPUTS).sum().backward()
            optimizer.step()
        recorder.detach()

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps(7, Recorder(model, tmp_path, steps=every(2), gradients=True), optimizer, model)
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 2, 4, 6]
    left = (tmp_path / "step-00000006.safetensors").read_bytes()
    again = Recorder(model, tmp_path, steps=every(3), gradients=True)
    again.continue_from(4)
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 2, 4]
    steps(3, again, optimizer, model)
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 2, 4, 6]
    abandoned = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "abandoned").rglob("step-*"))
    names = [f"abandoned/step-00000006.{kind}" for kind in ("json", "safetensors")]
    assert abandoned == [f"abandoned/gradients/step-00000006.{kind}" for kind in ("json", "safetensors")] + names
    assert (tmp_path / "abandoned" / "step-00000006.safetensors").read_bytes() == left
    fresh = Recorder(model, tmp_path / "fresh")
    fresh.continue_from(12)
    fresh.attach(optimizer).detach()
    assert [file.step for file in list_checkpoints(tmp_path / "fresh")] == [12]
    with pytest.raises(ValueError, match=r"`step` must be a whole number at least 0; got -1"):
        fresh.continue_from(-1)


def test_a_budget_of_another_kind(tmp_path):
    with pytest.raises(TypeError, match=r"`budget` must be a TimeBudget or None; got float\. Try TimeBudget\(fract"):
        inspect.unwrap(Recorder.__init__)(Recorder.__new__(Recorder), Net(), tmp_path, budget=0.1)
