"""Named tensors in a safetensors file: every float type to the last bit, written whole or not at all."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from . import files

__all__ = ["fingerprint", "first_not_finite", "read_header", "read_tensors", "write_tensors"]

PAIRS = "complex pairs"  # header entry: the names stored as pairs of real numbers


def write_tensors(path: Path, tensors: Mapping[str, Any], header: Mapping[str, str]) -> None:
    """Write copies of `tensors` and the texts of `header` to `path`.

    Tensors that share memory are written under each of their names. complex128, which the format lacks, is stored as
    pairs of real numbers.

    Raises:
        TypeError: A value is no dense tensor.
        OSError: The disk is full or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.safetensors"
        ...     write_tensors(path, {"z": torch.tensor([1 + 2j], dtype=torch.complex128)}, {"step": "3"})
        ...     read_tensors(path), read_header(path)
        ({'z': tensor([1.+2.j], dtype=torch.complex128)}, {'step': '3'})
    """
    copies = {name: _copy(name, value) for name, value in tensors.items()}
    pairs = [name for name, value in copies.items() if value.dtype == torch.complex128]
    real = {name: torch.view_as_real(value) if name in pairs else value for name, value in copies.items()}
    files.write_bytes(path, save(real, {**header, PAIRS: "\n".join(pairs)}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of `path` by name.

    Raises:
        ValueError: The file is cut off or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            pairs = (file.metadata() or {}).get(PAIRS, "").split("\n")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(_broken(path, error)) from error
    return {name: torch.view_as_complex(value) if name in pairs else value for name, value in tensors.items()}


def read_header(path: Path) -> dict[str, str]:
    """Read the texts in the header of `path`, without its tensors.

    Raises:
        ValueError: The file is cut off or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: text for key, text in (file.metadata() or {}).items() if key != PAIRS}
    except SafetensorError as error:
        raise ValueError(_broken(path, error)) from error


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and bits: equal for equal weights, whatever file they came from.

    Example:
        >>> fingerprint({"a": torch.zeros(2)}) == fingerprint({"a": torch.zeros(2)})
        True
        >>> fingerprint({"a": torch.zeros(2)}) == fingerprint({"a": -torch.zeros(2)})
        False
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = _copy(name, tensors[name])
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with an entry that is NaN or inf; None if there is none.

    Example:
        >>> first_not_finite({"a": torch.zeros(2), "b": torch.tensor([1.0, torch.inf])})
        'b'
    """
    return next((name for name, value in tensors.items() if not bool(torch.isfinite(value).all())), None)


def _copy(name: str, value: Any) -> Tensor:
    """A contiguous copy on the CPU with memory of its own: safetensors refuses tensors that share storage."""
    if not isinstance(value, Tensor):
        got = type(value).__name__
    elif value.layout != torch.strided:
        got = f"one of layout {value.layout}"
    else:
        got = "a quantized one" if value.is_quantized else ""
    if got:
        raise TypeError(
            f"`{name}` must be a dense tensor to be stored; got {got}. Convert it, or save the model with "
            "torch.save(model.state_dict(), path)."
        )
    return value.detach().to(device="cpu", copy=True).contiguous().resolve_conj().resolve_neg()


def _broken(path: Path, error: SafetensorError) -> str:
    return (
        f"`{path}` must be a whole safetensors file; got one that cannot be read ({error}). It was probably cut off "
        "while it was written or copied: copy it again or delete it."
    )
