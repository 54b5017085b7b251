"""The recorder as a callback: transformers' own handler of callbacks, and a small stand-in for Lightning's loop."""

import importlib
import inspect
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, TrainerControl, TrainerState

import kpflow
from kpflow import report
from kpflow.study import (
    Recorder,
    Settings,
    analyse_folder,
    every,
    lightning_callback,
    list_checkpoints,
    on_loss_jump,
    read_checkpoint,
    transformers_callback,
)

TASK = kpflow.tasks.MemoryPro(context=0, stimulus=2, memory=2, response=2, grace=0.0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.drop, self.readout = nn.GRU(3, 4, batch_first=True), nn.Dropout(0.2), nn.Linear(4, 3)

    def forward(self, x):
        return self.readout(self.drop(self.rnn(x)[0]))


class AcceleratedOptimizer(torch.optim.Optimizer):
    """As accelerate's: an Optimizer that passes `step` on, so that hooks on itself are never called."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, closure=None):
        self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


def prepared():
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    trials = TASK.sample(24, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    loader = DataLoader(TensorDataset(trials.inputs, trials.targets), batch_size=6, shuffle=True)
    return model, optimizer, loader


def bits(model, optimizer):
    state = [v for one in optimizer.state_dict()["state"].values() for v in one.values()]
    tensors = [*model.state_dict().values(), *state]
    return [t.numpy(force=True).tobytes() for t in tensors], torch.get_rng_state().tolist(), model.training


def trainer(model, optimizer, loader, callbacks, first=0, epochs=2, process=True):
    """The loop of `transformers.Trainer` around its own CallbackHandler; gradients are gone at `on_step_end`."""
    wrapped = AcceleratedOptimizer(optimizer)
    handler = CallbackHandler([DefaultFlowCallback(), *callbacks], model, None, wrapped, None)
    arguments = types.SimpleNamespace(logging_first_step=False)
    state, control = TrainerState(global_step=first, is_world_process_zero=process), TrainerControl()
    handler.on_train_begin(arguments, state, control)
    for _ in range(epochs):
        for x, y in loader:
            loss = (model(x) - y).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            handler.on_pre_optimizer_step(arguments, state, control)
            wrapped.step()
            handler.call_event("on_optimizer_step", arguments, state, control)
            model.zero_grad()
            state.global_step += 1
            handler.on_log(arguments, state, control, {"loss": loss.item()})
            handler.on_log(arguments, state, control, {"eval_loss": 9.0})
    handler.on_train_end(arguments, state, control)


def test_transformers_training_is_bit_identical_and_recorded(tmp_path):
    model, optimizer, loader = prepared()
    trainer(model, optimizer, loader, [])
    without = bits(model, optimizer)
    model, optimizer, loader = prepared()
    recorder = Recorder(model, tmp_path, steps=every(3) | on_loss_jump(5.0, 1), gradients=True)
    callback = transformers_callback.RecorderCallback(recorder)
    trainer(model, optimizer, loader, [callback])
    assert bits(model, optimizer) == without
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 3, 6, 8]
    gradients = [read_checkpoint(file.path) for file in list_checkpoints(tmp_path / "gradients")]
    assert [one.step for one in gradients] == [0, 3, 6]
    assert all(one.metadata["norm"] <= 0.5 * (1 + 1e-5) for one in gradients)  # after clipping
    assert len(recorder._losses) == 3
    assert not optimizer._optimizer_step_post_hooks


def test_what_a_callback_recorded_is_analysed_and_reported(tmp_path):
    model, optimizer, loader = prepared()
    recorder = Recorder(model, tmp_path, steps=every(8), gradients=True)
    trainer(model, optimizer, loader, [transformers_callback.RecorderCallback(recorder)])
    record = analyse_folder(tmp_path, Net, TASK, core="rnn", trials=2, settings=Settings(modes=4, budget=8))
    assert record["step"].values.tolist() == [0, 8]
    report.write(record, tmp_path / "report.html", title="Recorded by a callback")
    assert "Recorded by a callback" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_transformers_resumes_from_its_own_checkpoint(tmp_path):
    model, optimizer, loader = prepared()
    trainer(model, optimizer, loader, [transformers_callback.RecorderCallback(Recorder(model, tmp_path, every(3)))])
    again = Recorder(model, tmp_path, every(5))
    trainer(model, optimizer, loader, [transformers_callback.RecorderCallback(again)], first=4, epochs=1)
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 3, 5, 8]
    assert len(list((tmp_path / "abandoned").glob("*.safetensors"))) == 2  # 6 and 8 of the run that was left


def test_other_processes_record_nothing(tmp_path):
    model, optimizer, loader = prepared()
    callback = transformers_callback.RecorderCallback(Recorder(model, tmp_path / "run", every(1), gradients=True))
    trainer(model, optimizer, loader, [callback], process=False)
    assert not (tmp_path / "run").exists()


# Lightning -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def lightning(monkeypatch):
    """The module, imported anew with a stand-in for `lightning.pytorch`, as of version 2.6."""
    package, inner = types.ModuleType("lightning"), types.ModuleType("lightning.pytorch")
    inner.Callback = type("Callback", (), {"on_train_start": lambda *_: None, "on_train_end": lambda *_: None})
    package.pytorch = inner
    monkeypatch.setitem(sys.modules, "lightning", package)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", inner)
    yield importlib.reload(lightning_callback)
    monkeypatch.undo()
    importlib.reload(lightning_callback)


class Lightning:
    """The order of events of a Lightning fit: gradients come inside the closure that `optimizer.step` is given."""

    def __init__(self, callback, model, optimizers, accumulate=1, zero=True, first=0, clip=0.5):
        self.callback, self.model, self.optimizers = callback, model, optimizers
        self.accumulate, self.is_global_zero, self.global_step, self.clip = accumulate, zero, first, clip
        self.gradients = []

    def call(self, name, *args):
        hook = getattr(self.callback, name, None)
        if hook is not None:
            hook(self, self.model, *args)

    def backward(self, x, y):
        loss = (self.model(x) - y).square().mean() / self.accumulate
        self.call("on_before_backward", loss)
        loss.backward()
        return loss

    def fit(self, loader, epochs=2, fail_at=None):
        self.call("on_train_start")
        try:
            batches = [batch for _ in range(epochs) for batch in loader]
            for start in range(0, len(batches), self.accumulate):
                if self.global_step == fail_at:
                    raise KeyboardInterrupt
                self.step(batches[start : start + self.accumulate])
        except KeyboardInterrupt as error:
            self.call("on_exception", error)
            raise
        self.call("on_train_end")

    def step(self, batches):
        def closure():
            self.optimizers[0].zero_grad()
            for x, y in batches:
                loss = self.backward(x, y)
            self.call("on_before_optimizer_step", self.optimizers[0])
            self.gradients.append(self.model.readout.weight.grad.clone())
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            return loss

        self.optimizers[0].step(closure=closure)
        self.global_step += 1


def test_lightning_training_is_bit_identical_and_recorded(lightning, tmp_path):
    model, optimizer, loader = prepared()
    Lightning(None, model, [optimizer]).fit(loader)
    without = bits(model, optimizer)
    model, optimizer, loader = prepared()
    recorder = Recorder(model, tmp_path, steps=every(3) | on_loss_jump(5.0, 1), gradients=True)
    loop = Lightning(lightning.RecorderCallback(recorder), model, [optimizer], clip=1e-3)
    loop.clip = 0.5
    loop.fit(loader)
    assert bits(model, optimizer) == without
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 3, 6, 8]
    for step in (0, 3, 6):  # those of the step itself, not of the one before, and not clipped
        read = read_checkpoint(tmp_path / "gradients" / f"step-{step:08d}.safetensors")
        assert torch.equal(read.state_dict["readout.weight"], loop.gradients[step])
    assert not optimizer._optimizer_step_pre_hooks


def test_lightning_adds_up_the_losses_of_accumulated_batches(lightning, tmp_path):
    model, optimizer, loader = prepared()
    model.eval()
    losses = []
    recorder = Recorder(model, tmp_path, steps=every(1), gradients=True)
    loop = Lightning(lightning.RecorderCallback(recorder), model, [optimizer], accumulate=4)
    backward = loop.backward
    loop.backward = lambda x, y: losses.append(backward(x, y).item()) or torch.tensor(0.0)
    loop.fit(loader)
    read = read_checkpoint(tmp_path / "gradients" / "step-00000001.safetensors")
    assert read.metadata["loss"] == pytest.approx(sum(losses[4:8]), rel=1e-6)
    read = read_checkpoint(tmp_path / "step-00000001.safetensors")  # told once, and not again by what the closure gives
    assert read.metadata["loss"] == pytest.approx(sum(losses[:4]), rel=1e-6)


def test_lightning_tells_each_loss_once(lightning, tmp_path):
    model, optimizer, loader = prepared()
    recorder = Recorder(model, tmp_path, steps=every(100) | on_loss_jump(5.0, 10), gradients=True)
    Lightning(lightning.RecorderCallback(recorder), model, [optimizer]).fit(loader)
    assert len(recorder._losses) == recorder.step == 8


def test_lightning_resumes_and_fails(lightning, tmp_path):
    model, optimizer, loader = prepared()
    recorder = Recorder(model, tmp_path, every(3))
    with pytest.raises(KeyboardInterrupt):
        Lightning(lightning.RecorderCallback(recorder), model, [optimizer]).fit(loader, fail_at=7)
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 3, 6]  # no last step of an interrupted run
    assert not optimizer._optimizer_step_post_hooks
    again = lightning.RecorderCallback(Recorder(model, tmp_path, every(3)))
    Lightning(again, model, [optimizer], first=5).fit(loader, epochs=1)
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 3, 6, 9]


def test_lightning_with_other_processes_and_optimizers(lightning, tmp_path):
    model, optimizer, loader = prepared()
    callback = lightning.RecorderCallback(Recorder(model, tmp_path / "other", every(1), gradients=True))
    Lightning(callback, model, [optimizer], zero=False).fit(loader)
    assert not (tmp_path / "other").exists()
    callback = lightning.RecorderCallback(Recorder(model, tmp_path / "run", every(1), gradients=True))
    loop = Lightning(callback, model, [optimizer])
    loop.call("on_train_start")
    model(torch.ones(2, 3, 3)).sum().backward()
    loop.call("on_before_optimizer_step", torch.optim.SGD(model.parameters()))
    assert not (tmp_path / "run" / "gradients").exists()


def test_without_the_packages_the_message_says_what_to_install(monkeypatch, tmp_path):
    recorder = Recorder(nn.Linear(2, 1), tmp_path)
    monkeypatch.setattr(lightning_callback, "Callback", object)
    with pytest.raises(ImportError, match=r"RecorderCallback needs lightning, which is not installed: pip install li"):
        lightning_callback.RecorderCallback(recorder)
    monkeypatch.setattr(transformers_callback, "TrainerCallback", object)
    with pytest.raises(ImportError, match=r"RecorderCallback needs transformers, which is not installed: pip install"):
        transformers_callback.RecorderCallback(recorder)


def test_something_else_than_a_recorder(lightning):
    for module in (lightning, transformers_callback):
        init = inspect.unwrap(module.RecorderCallback.__init__)
        with pytest.raises(TypeError, match=r"`recorder` must be a kpflow\.study\.Recorder; got Linear"):
            init(module.RecorderCallback.__new__(module.RecorderCallback), nn.Linear(2, 1))


def test_they_are_imported_on_demand_alone():
    """No module imports them, so that `import kpflow.study` does not import transformers."""
    modules = Path(kpflow.__file__).parent.rglob("*.py")
    importing = [
        p.name
        for p in modules
        if re.search(r"^\s*(from|import) .*(lightning|transformers)_callback", p.read_text("utf-8"), re.M)
    ]
    assert importing == []
