"""The callbacks in Lightning's and transformers' own trainers, where these are installed."""

import importlib.util

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from kpflow.study import Recorder, every, lightning_callback, list_checkpoints, read_checkpoint, transformers_callback

INPUTS = torch.randn(24, 6, 3, generator=torch.Generator().manual_seed(1))
TARGETS = INPUTS.cumsum(1)
WARNINGS = pytest.mark.filterwarnings("ignore")  # those of the trainers are theirs


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.drop, self.readout = nn.GRU(3, 4, batch_first=True), nn.Dropout(0.2), nn.Linear(4, 3)

    def forward(self, inputs, labels=None):
        outputs = self.readout(self.drop(self.rnn(inputs)[0]))
        return {"loss": (outputs - labels).square().mean()} if labels is not None else outputs


def bits(model, optimizer):
    state = [value for one in optimizer.state_dict()["state"].values() for value in one.values()]
    return [value.numpy(force=True).tobytes() for value in [*model.state_dict().values(), *state]]


def gradients_of(folder):
    files = list_checkpoints(folder / "gradients")
    return {file.step: read_checkpoint(file.path) for file in files}


def watch(model, seen):
    """Keep the gradient of the read-out that each step takes."""

    def before(*_):
        seen.append(model.readout.weight.grad.clone())

    return before


# Lightning -----------------------------------------------------------------------------------------------------------


def lightning_fit(folder, recorder_of=None, epochs=2, checkpoint=None, accumulate=1, **more):
    """A fit of Lightning's Trainer; returns the trainer, the network and the callback."""
    lightning = pytest.importorskip("lightning.pytorch")
    torch.manual_seed(0)
    net = Net()

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.taken, self.losses = net, [], []

        def training_step(self, batch, _):
            loss = self.net(*batch)["loss"]
            self.losses.append(float(loss.detach()))
            return loss

        def on_before_optimizer_step(self, _optimizer):
            self.taken.append(self.net.readout.weight.grad.clone())

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    module = Module()
    callbacks = [] if recorder_of is None else [lightning_callback.RecorderCallback(recorder_of(net))]
    trainer = lightning.Trainer(
        default_root_dir=folder / "lightning", max_epochs=epochs, accelerator="cpu", callbacks=callbacks + more.pop(
            "callbacks", []
        ), accumulate_grad_batches=accumulate, gradient_clip_val=0.05, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **more,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=6, shuffle=True)
    trainer.fit(module, loader, ckpt_path=checkpoint)
    return trainer, module


@WARNINGS
def test_lightning_training_is_bit_identical_and_recorded(tmp_path):
    trainer, module = lightning_fit(tmp_path)
    without = bits(module.net, trainer.optimizers[0]), torch.get_rng_state().tolist()
    trainer, module = lightning_fit(tmp_path, lambda net: Recorder(net, tmp_path, every(3), gradients=True))
    assert (bits(module.net, trainer.optimizers[0]), torch.get_rng_state().tolist()) == without
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 3, 6, 8]
    last = read_checkpoint(list_checkpoints(tmp_path)[-1].path).state_dict
    assert all(torch.equal(last[name], value) for name, value in module.net.state_dict().items())
    found = gradients_of(tmp_path)
    assert sorted(found) == [0, 3, 6]
    for step, gradient in found.items():  # of the step itself, whole
        assert torch.equal(gradient.state_dict["readout.weight"], module.taken[step])
        assert gradient.metadata["loss"] == pytest.approx(module.losses[step], rel=1e-6)
        assert gradient.metadata["norm"] > 0.05


@WARNINGS
def test_lightning_adds_up_accumulated_batches(tmp_path):
    _, module = lightning_fit(
        tmp_path, lambda net: Recorder(net, tmp_path, every(1), gradients=True), accumulate=2, epochs=1
    )
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 1, 2]
    found = gradients_of(tmp_path)
    for step in (0, 1):
        assert found[step].metadata["loss"] == pytest.approx(sum(module.losses[2 * step : 2 * step + 2]) / 2, rel=1e-6)


@WARNINGS
def test_lightning_resumes_from_its_own_checkpoint(tmp_path):
    recorder_of = lambda net: Recorder(net, tmp_path, every(3))  # noqa: E731
    trainer, _ = lightning_fit(tmp_path, recorder_of, epochs=1)
    trainer.save_checkpoint(tmp_path / "own" / "last.ckpt")
    trainer, module = lightning_fit(tmp_path, recorder_of, epochs=3, checkpoint=tmp_path / "own" / "last.ckpt")
    assert trainer.global_step == 12
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 3, 4, 6, 9, 12]
    last = read_checkpoint(list_checkpoints(tmp_path)[-1].path).state_dict
    assert all(torch.equal(last[name], value) for name, value in module.net.state_dict().items())


@WARNINGS
def test_lightning_writes_no_last_step_after_an_error(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Failing(lightning.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 4:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lightning_fit(tmp_path, lambda net: Recorder(net, tmp_path, every(3)), callbacks=[Failing()])
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 3]


# transformers --------------------------------------------------------------------------------------------------------


class Rows(Dataset):
    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, index):
        return {"inputs": INPUTS[index], "labels": TARGETS[index]}


def transformers_fit(folder, recorder_of=None, resume=None, **more):
    """A training of transformers' Trainer; returns the trainer, and the gradients that were taken."""
    if importlib.util.find_spec("accelerate") is None:
        pytest.skip("transformers.Trainer needs accelerate, which is not installed")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    net, taken = Net(), []

    class Watching(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, *_args, **_kwargs):
            taken.append(net.readout.weight.grad.clone())

    callbacks = [Watching()]
    if recorder_of is not None:
        callbacks.append(transformers_callback.RecorderCallback(recorder_of(net)))
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "transformers"), per_device_train_batch_size=6, learning_rate=0.01, logging_steps=1,
        max_grad_norm=0.05, use_cpu=True, report_to=[], disable_tqdm=True, seed=3, lr_scheduler_type="cosine",
        **{"num_train_epochs": 2, "save_strategy": "no", **more},
    )  # fmt: skip
    trainer = transformers.Trainer(model=net, args=arguments, train_dataset=Rows(), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, net, taken


def inner(optimizer):
    return getattr(optimizer, "optimizer", optimizer)


@WARNINGS
def test_transformers_training_is_bit_identical_and_recorded(tmp_path):
    trainer, net, _ = transformers_fit(tmp_path)
    without = bits(net, inner(trainer.optimizer)), torch.get_rng_state().tolist()
    trainer, net, taken = transformers_fit(tmp_path, lambda net: Recorder(net, tmp_path, every(3), gradients=True))
    assert (bits(net, inner(trainer.optimizer)), torch.get_rng_state().tolist()) == without
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 3, 6, 8]
    last = read_checkpoint(list_checkpoints(tmp_path)[-1].path).state_dict
    assert all(torch.equal(last[name], value) for name, value in net.state_dict().items())
    found = gradients_of(tmp_path)
    assert sorted(found) == [0, 3, 6]
    for step, gradient in found.items():  # of the step itself, clipped
        assert torch.equal(gradient.state_dict["readout.weight"], taken[step])
        assert gradient.metadata["norm"] == pytest.approx(0.05, rel=1e-3)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert found[3].metadata["loss"] == pytest.approx(logged[2], rel=1e-3)


@WARNINGS
def test_transformers_resumes_from_its_own_checkpoint(tmp_path):
    recorder_of = lambda net: Recorder(net, tmp_path, every(3))  # noqa: E731
    saving = {"save_strategy": "steps", "save_steps": 5}
    _, net, _ = transformers_fit(tmp_path, recorder_of, **saving)
    whole = {name: value.clone() for name, value in net.state_dict().items()}
    own = tmp_path / "transformers" / "checkpoint-5"
    trainer, net, _ = transformers_fit(tmp_path, recorder_of, resume=str(own), **saving)
    assert trainer.state.global_step == 8
    assert all(torch.equal(whole[name], value) for name, value in net.state_dict().items())
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 3, 6, 8]
    assert len(list((tmp_path / "abandoned").glob("*.safetensors"))) == 2  # 6 and 8 of the run that was left
