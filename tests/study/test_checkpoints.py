"""Checkpoints: every bit comes back, no code runs, and each broken file has its message."""

import argparse
import errno
import inspect
import json
import math
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from kpflow.study import (
    Checkpoint,
    list_checkpoints,
    load_into,
    read_checkpoint,
    save_checkpoint,
)
from kpflow.study.tensors import fingerprint, read_tensors, write_tensors


class Net(nn.Module):
    def __init__(self, hidden=4, inputs=3):
        super().__init__()
        self.rnn = nn.GRU(inputs, hidden, batch_first=True)
        self.readout = nn.Linear(hidden, 2)


class Malicious:
    """A pickle that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def states_equal(a, b):
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k].view(torch.uint8), b[k].view(torch.uint8)) for k in a
    )


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]
)
def test_every_float_type_is_kept_to_the_last_bit(dtype, tmp_path):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(3, 5, generator=generator, dtype=torch.complex128 if dtype.is_complex else torch.float64)
    tensors = {"a": value.to(dtype), "flipped": value.to(dtype).mT, "scalar": value.to(dtype)[0, 0]}
    write_tensors(tmp_path / "a.safetensors", tensors, {})
    back = read_tensors(tmp_path / "a.safetensors")
    assert {name: (t.dtype, t.shape) for name, t in back.items()} == {n: (t.dtype, t.shape) for n, t in tensors.items()}
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_nan_payload_and_signed_zero_survive(tmp_path):
    bits = torch.tensor([0x7FC00123, -0x80000000, 0x00000001], dtype=torch.int32)
    write_tensors(tmp_path / "a.safetensors", {"a": bits.view(torch.float32)}, {})
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["a"].view(torch.int32), bits)


def test_tied_and_sliced_weights_are_saved_under_each_name(tmp_path):
    model = nn.ModuleDict({"embed": nn.Linear(3, 4, bias=False), "unembed": nn.Linear(3, 4, bias=False)})
    model["unembed"].weight = model["embed"].weight
    file = save_checkpoint(tmp_path / "tied", model, 3)
    assert states_equal(read_checkpoint(file.path).state_dict, dict(model.state_dict()))


def test_saving_reads_the_model_only(tmp_path):
    model = Net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    state = torch.get_rng_state()
    save_checkpoint(tmp_path / "a", model, 0)
    assert states_equal(before, dict(model.state_dict()))
    assert model.training
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert torch.equal(state, torch.get_rng_state())


def test_metadata_and_step_come_back(tmp_path):
    file = save_checkpoint(tmp_path / "a", Net(), 12, {"loss": 0.25, "task": "memory_pro"})
    checkpoint = read_checkpoint(file.path)
    assert (checkpoint.step, checkpoint.metadata) == (12, {"loss": 0.25, "task": "memory_pro"})


def test_a_name_with_a_number_keeps_it(tmp_path):
    names = ["lr0.1-step10", "lr0.1-step20", "lr0.1-step30.safetensors", "lr0.1-step40.pt"]
    files = [save_checkpoint(tmp_path / name, Net(), step) for step, name in enumerate(names)]
    assert [file.path.name for file in files] == [f"lr0.1-step{n}.safetensors" for n in (10, 20, 30, 40)]
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 1, 2, 3]


@pytest.mark.parametrize("step", [10.0, -1, torch.tensor(3), True])
def test_steps_that_would_not_be_read_back(step, tmp_path):
    with pytest.raises(ValueError, match=r"`step` must be a whole number at least 0; got (10\.0|-1|tensor\(3\)|True)"):
        inspect.unwrap(save_checkpoint)(tmp_path / "a", Net(), step)
    assert list(tmp_path.iterdir()) == []


def test_metadata_that_json_cannot_hold(tmp_path):
    with pytest.raises(
        TypeError, match=r"`metadata` must be what JSON can hold; got Tensor for 'loss': .*Give numbers"
    ):
        save_checkpoint(tmp_path / "a", Net(), 0, {"task": "x", "loss": torch.tensor(0.5)})
    with pytest.raises(ValueError, match=r"`metadata` must be what JSON can hold; got list for 'losses': Out of range"):
        save_checkpoint(tmp_path / "a", Net(), 0, {"losses": [1.0, math.nan]})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported_and_leaves_earlier_checkpoints(tmp_path, monkeypatch):
    model = Net()
    first = save_checkpoint(tmp_path / "step-1", model, 1)

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("kpflow.study.files.os.fsync", full)
    with pytest.raises(OSError, match=r"step-2.*could not be written: No space left on device.*is intact") as info:
        save_checkpoint(tmp_path / "step-2", model, 2)
    assert info.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert [file.step for file in list_checkpoints(tmp_path)] == [1]
    assert states_equal(read_checkpoint(first.path).state_dict, dict(model.state_dict()))
    assert not list(tmp_path.glob(".*"))


def test_what_is_written_over_stays_until_the_new_is_whole(tmp_path, monkeypatch):
    old = save_checkpoint(tmp_path / "a", Net(), 1, {"kept": True})
    before = [path.read_bytes() for path in (old.path, old.path.with_suffix(".json"))]

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("kpflow.study.files.os.fsync", full)
    with pytest.raises(OSError, match=r"could not be written"):
        save_checkpoint(tmp_path / "a", Net(), 2)
    assert before == [path.read_bytes() for path in (old.path, old.path.with_suffix(".json"))]


def test_sparse_weights_are_refused(tmp_path):
    model = nn.Module()
    model.register_buffer("mask", torch.eye(3).to_sparse())
    with pytest.raises(TypeError, match=r"`mask` must be a dense tensor to be stored; got one of layout torch\.spar"):
        save_checkpoint(tmp_path / "a", model, 0)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_weights_and_other_things_are_refused(tmp_path):
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    for value, said in ((quantized, "a quantized one"), (3, "int")):
        with pytest.raises(TypeError, match=f"`a` must be a dense tensor to be stored; got {said}. Convert it"):
            write_tensors(tmp_path / "a.safetensors", {"a": value}, {})


# reading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_state_dicts_of_torch_save(key, suffix, tmp_path):
    state = dict(Net().state_dict())
    torch.save(state if key is None else {key: state, "step": 5, "note": "x"}, tmp_path / f"a{suffix}")
    checkpoint = read_checkpoint(tmp_path / f"a{suffix}")
    assert states_equal(checkpoint.state_dict, state)
    assert checkpoint.step == (None if key is None else 5)


def lightning(model, step):
    """The layout of Lightning's checkpoints."""
    return {
        "epoch": 1,
        "global_step": step,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_k_models": {}}},
        "optimizer_states": [torch.optim.Adam(model.parameters()).state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-3},
    }


def test_lightnings_layout(tmp_path):
    model, other = Net(), Net()
    torch.save(lightning(model, 40), tmp_path / "epoch=1-step=40.ckpt")
    checkpoint = read_checkpoint(tmp_path / "epoch=1-step=40.ckpt")
    load_into(other, checkpoint)
    assert checkpoint.step == 40
    assert states_equal(dict(model.state_dict()), dict(other.state_dict()))


@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.", "a.b."])
def test_prefixes_of_wrappers_are_stripped(prefix):
    model, other = Net(), Net()
    state = {prefix + name: value for name, value in model.state_dict().items()} | {"loss.weight": torch.ones(2)}
    load_into(other, Checkpoint(0, state, Path("a.ckpt")))
    assert states_equal(dict(model.state_dict()), dict(other.state_dict()))


def test_two_models_in_one_file_are_ambiguous(tmp_path):
    state = {f"{prefix}.{name}": value for prefix in ("model", "ema") for name, value in Net().state_dict().items()}
    with pytest.raises(ValueError, match=r"weights of one such model; got several, under the prefixes model\., ema\."):
        load_into(Net(), Checkpoint(0, state, tmp_path / "a.ckpt"))


# code in pickles ----------------------------------------------------------------------------------------------------


def write_malicious(path, target, layout):
    payload = {"state_dict": dict(Net().state_dict()), "global_step": 1, "extra": Malicious(target)}
    if layout == "bare pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=layout == "zip")


@pytest.mark.parametrize("layout", ["zip", "legacy", "bare pickle"])
@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_code_in_a_pickle_does_not_run(layout, suffix, tmp_path):
    path, target = tmp_path / f"step-1{suffix}", tmp_path / "ran"
    write_malicious(path, target, layout)
    with pytest.raises(ValueError, match=r"carries code, which was not run.*--trust-pickle") as info:
        read_checkpoint(path)
    assert "\n" not in str(info.value)
    with pytest.raises(ValueError, match=r"--trust-pickle"):
        list_checkpoints(tmp_path)
    assert not target.exists()


def test_the_malicious_file_would_run_if_trusted(tmp_path):
    """Without this, the test above could pass with a file that is harmless anyway."""
    path, target = tmp_path / "a.pt", tmp_path / "ran"
    write_malicious(path, target, "zip")
    assert read_checkpoint(path, trust_pickle=True).step == 1
    assert target.exists()


def test_a_namespace_is_refused_and_can_be_trusted(tmp_path):
    state = dict(Net().state_dict())
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt.*carries code.*--trust-pickle"):
        read_checkpoint(tmp_path / "a.pt")
    assert states_equal(read_checkpoint(tmp_path / "a.pt", trust_pickle=True).state_dict, state)


def test_a_whole_module_can_be_read_if_trusted(tmp_path):
    model = nn.Linear(2, 1)
    torch.save(model, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"--trust-pickle"):
        read_checkpoint(tmp_path / "a.pt")
    state = read_checkpoint(tmp_path / "a.pt", trust_pickle=True).state_dict
    assert states_equal(state, dict(model.state_dict()))


def test_a_class_that_is_not_importable_is_named(tmp_path):
    class Config:
        pass

    Config.__qualname__ = "Config"
    globals()["Config"] = Config
    torch.save({"model": dict(Net().state_dict()), "config": Config()}, tmp_path / "a.pt")
    del globals()["Config"]
    with pytest.raises(ValueError, match=r"needs a class that cannot be imported here: .*Config"):
        read_checkpoint(tmp_path / "a.pt", trust_pickle=True)


# broken files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "bare pickle"])
def test_a_file_that_was_cut_off(kind, share, tmp_path):
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    if kind == "safetensors":
        save_checkpoint(path, Net(), 1)
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps({"weights": list(range(1000))}))
    else:
        torch.save(dict(Net().state_dict()), path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    for trust in (False, True):
        with pytest.raises(
            ValueError, match=r"a\.(safetensors|pt)` must be a whole .*cut off.*copy it again or delete"
        ):
            read_checkpoint(path, trust_pickle=trust)


def test_text_is_no_checkpoint(tmp_path):
    (tmp_path / "a.pt").write_text("hello, this is not a checkpoint " * 20)
    with pytest.raises(ValueError, match=r"must be a whole file of torch\.save"):
        read_checkpoint(tmp_path / "a.pt")


def test_no_weights_inside(tmp_path):
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"must hold a state_dict.*got the keys \['epoch', 'optimizer'\]"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_broken_sidecar(tmp_path):
    file = save_checkpoint(tmp_path / "a", Net(), 1)
    file.path.with_suffix(".json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json` must hold JSON"):
        read_checkpoint(file.path)


def test_no_file_and_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint `.*a\.pt`"):
        read_checkpoint(tmp_path / "a.pt")
    with pytest.raises(FileNotFoundError, match=r"no folder `.*nothing`"):
        list_checkpoints(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"must hold checkpoints .*got none"):
        list_checkpoints(tmp_path)


# loading ------------------------------------------------------------------------------------------------------------


def checkpoint_of(model, path):
    return Checkpoint(0, dict(model.state_dict()), path / "a.pt")


def test_missing_and_unexpected_names(tmp_path):
    checkpoint = checkpoint_of(Net(), tmp_path)
    checkpoint.state_dict["extra"] = checkpoint.state_dict.pop("readout.bias")
    with pytest.raises(ValueError, match=r"a\.pt.*got missing: readout\.bias; unexpected: extra\. Build the model"):
        load_into(Net(), checkpoint)


def test_a_shape_that_differs(tmp_path):
    with pytest.raises(ValueError, match=r"`rnn\.weight_ih_l0`.* \(12, 3\) of the given model; got \(12, 5\)"):
        load_into(Net(), checkpoint_of(Net(inputs=5), tmp_path))


def test_a_type_that_would_lose_bits(tmp_path):
    with pytest.raises(ValueError, match=r"torch\.float64, which the model's torch\.float32 cannot hold exactly"):
        load_into(Net(), checkpoint_of(Net().double(), tmp_path))
    load_into(Net().double(), checkpoint_of(Net(), tmp_path))


def test_a_refused_checkpoint_leaves_the_model(tmp_path):
    model = Net()
    before = fingerprint(model.state_dict())
    checkpoint = checkpoint_of(Net(), tmp_path)
    checkpoint.state_dict["readout.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"readout\.bias"):
        load_into(model, checkpoint)
    assert fingerprint(model.state_dict()) == before


# the step -----------------------------------------------------------------------------------------------------------


def test_the_step_comes_from_the_key_first(tmp_path):
    torch.save({"model": dict(Net().state_dict()), "step": 7}, tmp_path / "step-99.pt")
    torch.save({"model": dict(Net().state_dict()), "step": torch.tensor(3)}, tmp_path / "step-98.pt")
    found = list_checkpoints(tmp_path)
    assert [(file.path.name, file.step, file.step_from) for file in found] == [
        ("step-98.pt", 3, "key"),
        ("step-99.pt", 7, "key"),
    ]


def test_it_is_the_first_key_that_every_file_has(tmp_path):
    torch.save({"model": dict(Net().state_dict()), "global_step": 1000, "epoch": 2}, tmp_path / "a.pt")
    torch.save({"model": dict(Net().state_dict()), "epoch": 3}, tmp_path / "b.pt")
    assert [(file.step, file.step_from) for file in list_checkpoints(tmp_path)] == [(2, "key"), (3, "key")]
    torch.save({"model": dict(Net().state_dict()), "step": 7}, tmp_path / "c.pt")
    assert {file.step_from for file in list_checkpoints(tmp_path)} == {"time"}
    assert read_checkpoint(tmp_path / "a.pt").step == 1000


def test_then_from_the_name(tmp_path):
    names = ["net2_step100.pt", "epoch=3-step=20.pth", "model_5_of_9.pt"]
    for name in names:
        torch.save(dict(Net().state_dict()), tmp_path / name)
    found = list_checkpoints(tmp_path)
    assert [(file.step, file.step_from) for file in found] == [(9, "name"), (20, "name"), (100, "name")]


def test_then_from_the_time_and_never_mixed(tmp_path):
    for rank, name in enumerate(["step-100.pt", "best.pt", "last.pt"]):
        torch.save(dict(Net().state_dict()), tmp_path / name)
        os.utime(tmp_path / name, ns=(0, rank * 10**9))
    found = list_checkpoints(tmp_path)
    assert [(file.path.name, file.step, file.step_from) for file in found] == [
        ("step-100.pt", 0, "time"),
        ("best.pt", 1, "time"),
        ("last.pt", 2, "time"),
    ]


def test_folders_of_transformers(tmp_path):
    for step in (200, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
        write_tensors(tmp_path / f"checkpoint-{step}" / "model.safetensors", Net().state_dict(), {"format": "pt"})
    assert [file.step for file in list_checkpoints(tmp_path)] == [200, 1000]


def test_copies_count_once_and_rivals_are_refused(tmp_path):
    model = Net()
    for name in ("epoch=0-step=5.ckpt", "last.ckpt"):
        torch.save(lightning(model, 5), tmp_path / name)
    assert [file.path.name for file in list_checkpoints(tmp_path)] == ["epoch=0-step=5.ckpt"]
    torch.save(lightning(Net(), 5), tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"must not share a step; got step 5 for .* which differ"):
        list_checkpoints(tmp_path)


def test_copies_of_a_diverged_checkpoint_are_copies(tmp_path):
    model = Net()
    nn.init.constant_(model.readout.bias, torch.nan)
    for name in ("epoch=0-step=5.ckpt", "last.ckpt"):
        torch.save(lightning(model, 5), tmp_path / name)
    assert [file.path.name for file in list_checkpoints(tmp_path)] == ["epoch=0-step=5.ckpt"]


def test_half_written_files_are_not_seen(tmp_path):
    file = save_checkpoint(tmp_path / "step-1", Net(), 1)
    (tmp_path / ".step-2.safetensors.tmp").write_bytes(file.path.read_bytes()[:50])
    (tmp_path / "step-2.json").write_text(json.dumps({"step": 2}))
    assert [found.step for found in list_checkpoints(tmp_path)] == [1]
