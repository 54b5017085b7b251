"""Checkpoints: the weights of a model at one training step, written and read without running code."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard, final

import torch
from torch import Tensor, nn

from kpflow import _checks

from . import files, pickles, tensors

__all__ = ["Checkpoint", "CheckpointFile", "list_checkpoints", "load_into", "read_checkpoint", "save_checkpoint"]

PICKLES = (".pt", ".pth", ".ckpt")
STEP_KEYS = ("global_step", "step", "iteration", "epoch")
STATE_KEYS = ("state_dict", "model_state_dict", "model")


@final
@dataclasses.dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint that was found: where it is, its training step, and what told the step.

    Args:
        path: The file of the weights.
        step: The training step.
        step_from: `"key"` (written in the file), `"name"` (a number in the file's name) or `"time"` (the rank of its
            modification time).
    """

    path: Path
    step: int
    step_from: str


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights of a model at one training step.

    Args:
        step: The training step that the file itself names, or None.
        state_dict: The parameters and buffers by name, on the CPU.
        source: The file that they came from.
        metadata: What was saved beside them.
    """

    step: int | None
    state_dict: dict[str, Tensor]
    source: Path
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


def save_checkpoint(
    path: str | Path, model: nn.Module, step: int, metadata: Mapping[str, Any] | None = None
) -> CheckpointFile:
    """Write the weights of `model` as safetensors, and `metadata` as JSON beside them, each whole or not at all.

    Every float type is kept to the last bit; tied weights are written under each of their names. The model is only
    read. The checkpoint exists once its safetensors file does, which is written last.

    Args:
        path: The file to write; `.safetensors` is added, or takes the place of `.pt`, `.pth` or `.ckpt`.
        model: Any module.
        step: The training step, kept inside the file.
        metadata: Anything that JSON can hold; numbers that are not finite it cannot.

    Raises:
        TypeError: A weight has a type that safetensors cannot hold, or `metadata` one that JSON cannot.
        ValueError: `step` is no whole number from 0 on, or a number in `metadata` is not finite.
        OSError: The disk is full or the folder cannot be written; earlier checkpoints are intact.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = nn.Linear(2, 1)
        ...     file = save_checkpoint(Path(folder) / "step-10", model, step=10, metadata={"loss": 0.5})
        ...     checkpoint = read_checkpoint(file.path)
        >>> checkpoint.step, sorted(checkpoint.state_dict), checkpoint.metadata
        (10, ['bias', 'weight'], {'loss': 0.5})
    """
    _checks.check_range("step", step, 0, integer=True)
    _check_metadata(metadata or {})
    given = Path(path)
    stem = given.stem if given.suffix in (".safetensors", *PICKLES) else given.name  # lr0.1-step10 has no suffix
    target = given.with_name(f"{stem}.safetensors")
    files.write_json(target.with_suffix(".json"), {"step": step, "metadata": dict(metadata or {})})
    tensors.write_tensors(target, model.state_dict(), {"step": str(step)})
    return CheckpointFile(target, step, "key")


def list_checkpoints(folder: str | Path, *, trust_pickle: bool = False) -> list[CheckpointFile]:
    """Find the checkpoints of `folder`, in the order of their training steps.

    Found are `*.safetensors`, `*.pt`, `*.pth`, `*.ckpt` and `*/model.safetensors`. The step comes from a key in the
    file, `global_step`, `step`, `iteration` or `epoch`, else from the last number in its name, else from the order of
    the modification times: the first of these six that every file has, so that steps of different kinds are never
    mixed. Copies of one checkpoint count once.

    Args:
        folder: Where the checkpoints are.
        trust_pickle: Read files that can run code of their own; only for files that you trust.

    Raises:
        FileNotFoundError: There is no such folder, or no checkpoint in it.
        ValueError: A file cannot be read, or two different checkpoints have the same step.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for step in (10, 9):
        ...         _ = torch.save(nn.Linear(2, 1).state_dict(), Path(folder) / f"step_{step}.pt")
        ...     [(file.path.name, file.step, file.step_from) for file in list_checkpoints(folder)]
        [('step_9.pt', 9, 'name'), ('step_10.pt', 10, 'name')]
    """
    paths = _find(Path(folder))
    inside = [_steps_in(path, trust_pickle) for path in paths]
    by_key = [("key", [steps.get(key) for steps in inside]) for key in STEP_KEYS]
    by_name = [_number_in(path) for path in paths]
    by_time = {path: rank for rank, path in enumerate(sorted(paths, key=lambda path: path.stat().st_mtime_ns))}
    for kind, steps in (*by_key, ("name", by_name), ("time", [by_time[path] for path in paths])):
        known = [step for step in steps if step is not None]
        if len(known) == len(paths):
            found = [CheckpointFile(path, step, kind) for path, step in zip(paths, known, strict=True)]
            return _without_copies(sorted(found, key=lambda file: file.step), trust_pickle)
    raise AssertionError("every file has a modification time")


def read_checkpoint(path: str | Path, *, trust_pickle: bool = False) -> Checkpoint:
    """Read the weights in one file, without running any code that the file may carry.

    Read are safetensors; state_dicts saved by `torch.save`, plain or under the key `state_dict`, `model_state_dict` or
    `model`; and Lightning's checkpoints, which are of that kind.

    Args:
        path: The file.
        trust_pickle: Read a file that can run code of its own; only for files that you trust.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is cut off, is no checkpoint, or carries code and is not trusted.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     state = {"model." + key: value for key, value in nn.Linear(2, 1).state_dict().items()}
        ...     torch.save({"state_dict": state, "global_step": 7, "epoch": 1}, Path(folder) / "last.ckpt")
        ...     checkpoint = read_checkpoint(Path(folder) / "last.ckpt")
        >>> checkpoint.step, sorted(checkpoint.state_dict)
        (7, ['model.bias', 'model.weight'])
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"There is no checkpoint `{source}`. Check the path.")
    if source.suffix == ".safetensors":
        return _read_safetensors(source)
    payload = pickles.load(source, trust_pickle)
    state = _state_in(payload, source)
    step = next(iter(_steps_of(payload).values()), None)
    return Checkpoint(step, {name: value.detach() for name, value in state.items()}, source)


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put the weights of `checkpoint` into `model`, by name, changing no bit of them.

    Names that carry the prefix of a wrapper (`model.`, `module.`, `_orig_mod.`, any other) lose it where the rest are
    exactly the names of `model`.

    Raises:
        ValueError: Names are missing or unexpected, a shape differs, or the model's type cannot hold the weights.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> state = {"net.weight": torch.ones(1, 2), "net.bias": torch.zeros(1)}
        >>> load_into(model, Checkpoint(0, state, Path("a.pt")))
        >>> model.weight.tolist()
        [[1.0, 1.0]]
    """
    expected = model.state_dict()
    state = _without_prefix(checkpoint, set(expected))
    for name, value in state.items():
        _check_fits(name, value, expected[name], checkpoint.source)
    model.load_state_dict(state)


def _find(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder `{folder}`. Check the path.")
    direct = [path for path in folder.iterdir() if path.suffix in (".safetensors", *PICKLES)]
    nested = folder.glob("*/model.safetensors")
    paths = sorted(path for path in (*direct, *nested) if path.is_file() and not path.name.startswith("."))
    if not paths:
        raise FileNotFoundError(
            f"`{folder}` must hold checkpoints (*.safetensors, *.pt, *.pth, *.ckpt); got none. "
            "Name the folder that holds the files themselves."
        )
    return paths


def _steps_in(path: Path, trust_pickle: bool) -> dict[str, int]:
    """The steps that a file names, by key."""
    if path.suffix != ".safetensors":
        return _steps_of(pickles.load(path, trust_pickle, lazily=True))
    step = _whole_number(tensors.read_header(path).get("step", ""))
    return {} if step is None else {"step": step}


def _steps_of(payload: Any) -> dict[str, int]:
    """The steps that a saved dictionary names beside its weights, by key, in the order of `STEP_KEYS`."""
    if not isinstance(payload, Mapping) or _is_state(payload):
        return {}
    found = {key: _number(payload.get(key)) for key in STEP_KEYS}
    return {key: value for key, value in found.items() if isinstance(value, int) and not isinstance(value, bool)}


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def _number_in(path: Path) -> int | None:
    """The number after `step` in the name of the file (of its folder, for `*/model.safetensors`), else the last one."""
    name = path.parent.name if path.name == "model.safetensors" else path.stem
    named = re.search(r"step[^0-9a-z]?(\d+)", name, re.IGNORECASE)
    numbers = [named.group(1)] if named else re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


def _without_copies(found: list[CheckpointFile], trust_pickle: bool) -> list[CheckpointFile]:
    """One file for each step; two at the same step must hold the same weights."""
    kept: list[CheckpointFile] = []
    for file in found:
        if not kept or kept[-1].step != file.step:
            kept.append(file)
            continue
        first, second = (read_checkpoint(one.path, trust_pickle=trust_pickle).state_dict for one in (kept[-1], file))
        if tensors.fingerprint(first) != tensors.fingerprint(second):
            raise ValueError(
                f"Two checkpoints must not share a step; got step {file.step} for `{kept[-1].path.name}` and "
                f"`{file.path.name}`, which differ. Move one of them elsewhere."
            )
    return kept


def _read_safetensors(path: Path) -> Checkpoint:
    step = _whole_number(tensors.read_header(path).get("step", ""))
    sidecar = path.with_suffix(".json")
    content = files.read_json(sidecar) if step is not None and sidecar.is_file() else {}
    return Checkpoint(step, tensors.read_tensors(path), path, dict(content.get("metadata", {})))


def _whole_number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _is_state(value: Any) -> TypeGuard[Mapping[str, Tensor]]:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


def _state_in(payload: Any, source: Path) -> Mapping[str, Tensor]:
    inner = [payload.get(key) for key in STATE_KEYS] if isinstance(payload, Mapping) else []
    for value in (payload, *inner):
        state = value.state_dict() if isinstance(value, nn.Module) else value
        if _is_state(state):
            return state
    got = f"the keys {list(payload)[:8]}" if isinstance(payload, Mapping) else type(payload).__name__
    raise ValueError(
        f"`{source}` must hold a state_dict, plain or under one of the keys {', '.join(STATE_KEYS)}; got {got}. "
        "Save it with torch.save(model.state_dict(), path)."
    )


def _without_prefix(checkpoint: Checkpoint, expected: set[str]) -> dict[str, Tensor]:
    state = checkpoint.state_dict
    if state.keys() == expected:
        return state
    anchor = min(expected, default="")
    prefixes = [name.removesuffix(anchor) for name in state if name.endswith("." + anchor)]
    fitting = []
    for prefix in prefixes:
        inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if inner.keys() == expected:
            fitting.append(inner)
    if len(fitting) == 1:
        return fitting[0]
    raise ValueError(_difference(checkpoint, expected, prefixes if len(fitting) > 1 else []))


def _difference(checkpoint: Checkpoint, expected: set[str], prefixes: list[str]) -> str:
    """What is wrong with the names, in one message."""
    if prefixes:
        return (
            f"`{checkpoint.source}` must hold the weights of one such model; got several, under the prefixes "
            f"{', '.join(prefixes)}. Save the one that you mean by itself."
        )
    got = checkpoint.state_dict.keys()
    missing, unexpected = sorted(expected - got), sorted(got - expected)
    parts = [
        f"{kind} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for kind, names in (("missing:", missing), ("unexpected:", unexpected))
        if names
    ]
    return (
        f"`{checkpoint.source}` must hold the weights of the given model; got {'; '.join(parts)}. "
        "Build the model as it was trained."
    )


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    for name, value in metadata.items():
        try:
            json.dumps({name: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"`metadata` must be what JSON can hold; got {type(value).__name__} for {name!r}: {error}. Give "
                "numbers as int or float, and those that are not finite as None or text."
            ) from error


def _check_fits(name: str, value: Tensor, target: Tensor, source: Path) -> None:
    if value.shape != target.shape:
        raise ValueError(
            f"`{name}` in `{source}` must have the shape {tuple(target.shape)} of the given model; got "
            f"{tuple(value.shape)}. Build the model with the sizes that it was trained with."
        )
    if torch.promote_types(value.dtype, target.dtype) != target.dtype:
        raise ValueError(
            f"`{name}` in `{source}` is {value.dtype}, which the model's {target.dtype} cannot hold exactly. "
            f"Build the model in {value.dtype}, e.g. with model.to({value.dtype})."
        )
