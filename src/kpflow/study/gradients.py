"""Gradients at the weights of a step: read where they are, before the optimizer moves the weights."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import files, tensors

__all__ = ["loss_in", "save_gradients", "watched"]


def save_gradients(path: Path, model: nn.Module, step: int, loss: float | None) -> None:
    """Write the gradients of `model` by name, and loss and norm beside them; nothing if no parameter has one.

    Raises:
        OSError: The disk is full or the folder cannot be written; what was there before is intact.

    Example:
        >>> import tempfile, kpflow as kp
        >>> model = nn.Linear(2, 1)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "step-00000003.safetensors"
        ...     save_gradients(path, model, step=3, loss=0.5)
        ...     read = kp.study.read_checkpoint(path)
        >>> read.step, read.state_dict["weight"].tolist(), round(read.metadata["norm"], 6)
        (3, [[1.0, 1.0]], 1.732051)
    """
    found = {name: _dense(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    if not found:
        return
    norms = [float(torch.linalg.vector_norm(value.detach(), dtype=_wide(value.dtype))) for value in found.values()]
    metadata = {"loss": loss, "norm": sum(norm**2 for norm in norms) ** 0.5}
    files.write_json(path.with_suffix(".json"), {"step": step, "metadata": metadata})
    tensors.write_tensors(path, found, {"step": str(step)})


def watched(args: Any, kwargs: Any, seen: Callable[[Any], None]) -> tuple[Any, Any] | None:
    """The arguments of `optimizer.step` with `seen` called after the closure's first call; None without a closure.

    Args:
        args: Positional arguments, with the optimizer first, as torch gives them to hooks.
        kwargs: Keyword arguments.
        seen: Called with what the closure gave.
    """
    if callable(kwargs.get("closure")):
        return args, {**kwargs, "closure": _watched(kwargs["closure"], seen)}
    if len(args) > 1 and callable(args[1]):
        return (args[0], _watched(args[1], seen), *args[2:]), kwargs
    return None


def loss_in(result: Any) -> float | None:
    """The loss that a closure gave, alone or before the outputs (`NaturalGradient`); None for anything else.

    Example:
        >>> loss_in(torch.tensor(0.5)), loss_in((torch.tensor(0.5), torch.ones(3))), loss_in(iter([1.0]))
        (0.5, 0.5, None)
    """
    match result:
        case (Tensor() as loss, Tensor()):
            return loss_in(loss)
        case Tensor() if result.numel() == 1:
            return float(result.detach())
        case int() | float():
            return float(result)
        case _:
            return None


def _watched(closure: Callable[[], Any], seen: Callable[[Any], None]) -> Callable[[], Any]:
    first = True

    @functools.wraps(closure, updated=())
    def call() -> Any:
        nonlocal first
        result = closure()
        if first:
            first = False
            seen(result)
        return result

    return call


def _dense(gradient: Tensor) -> Tensor:
    return gradient if gradient.layout == torch.strided else gradient.to_dense()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64
