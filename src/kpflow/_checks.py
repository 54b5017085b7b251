"""Checks of user input: every message names the argument, what was expected, what came, and the remedy."""

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "check_finite",
    "check_generator",
    "check_numbers",
    "check_one_of",
    "check_positive",
    "check_range",
    "check_tensor",
    "suggestion",
]


def check_tensor(name: str, value: Any) -> Tensor:
    """Return `value` if it is a floating-point tensor; otherwise say what it is and how to make one."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"`{name}` must be a torch.Tensor; got {type(value).__name__}. Convert it with torch.as_tensor({name})."
        )
    if not value.dtype.is_floating_point:
        raise TypeError(
            f"`{name}` must hold floating-point numbers; got {value.dtype}. Convert it with {name}.to(torch.float32)."
        )
    return value


def check_finite(name: str, value: Tensor, axes: Sequence[str] | None = None, remedy: str = "") -> None:
    """Raise if `value` holds NaN or inf, and say where the first one is, in the words of `axes`."""
    if bool(torch.isfinite(value.sum())):  # ten times as fast; a sum that leaves the range is looked at again
        return
    finite = torch.isfinite(value)
    if bool(finite.all()):
        return
    first = (~finite).nonzero()[0].tolist()
    letters = axes if axes is not None and len(axes) == len(first) else [f"axis {i}" for i in range(len(first))]
    where = ", ".join(f"{axis} {index}" for axis, index in zip(letters, first, strict=True)) or "its only entry"
    count = int((~finite).sum())
    kind = "NaN" if bool(torch.isnan(value[tuple(first)])) else "inf"
    message = f"`{name}` must be finite; got {kind} at {where} ({count} of {value.numel()} entries are not finite)."
    raise ValueError(f"{message} {remedy}".rstrip())


def check_positive(name: str, value: Any, *, integer: bool = False, finite: bool = False) -> None:
    """Raise unless `value` is a positive number (a whole one if `integer`, none that is inf if `finite`)."""
    kind = "a positive whole number" if integer else f"a positive{' finite' if finite else ''} number"
    right_type = isinstance(value, int if integer else (int, float)) and not isinstance(value, bool)
    if not right_type or not value > 0 or (finite and value == math.inf):
        raise ValueError(f"`{name}` must be {kind}; got {value!r}.")


def check_range(
    name: str, value: Any, low: int | float, high: int | float = math.inf, *, integer: bool = False
) -> None:
    """Raise unless `value` is a number (a whole one if `integer`) in [low, high]."""
    kind = "a whole number" if integer else "a number"
    limits = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
    right_type = isinstance(value, int if integer else (int, float)) and not isinstance(value, bool)
    if not right_type or not low <= value <= high or value == math.inf:
        raise ValueError(f"`{name}` must be {kind} {limits}; got {value!r}.")


def check_numbers(name: str, value: Any, count: int | None = None) -> None:
    """Raise unless `value` is a tuple or list of numbers, `count` of them or at least one."""
    right_type = isinstance(value, (tuple, list)) and all(isinstance(entry, (int, float)) for entry in value)
    if not right_type or not (len(value) == count if count else len(value)):
        words = f"{count} numbers" if count else "at least one number"
        raise ValueError(f"`{name}` must be a tuple of {words}; got {value!r}.")


def check_one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise unless `value` is one of `choices`, which the message lists."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}; got {value!r}.")


def check_generator(name: str, generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """Return `generator`, or a fresh one seeded with 0, on `device`: the global generator is never used."""
    if generator is None:
        return torch.Generator(device=device).manual_seed(0)
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"`{name}` must be a torch.Generator or None; got {type(generator).__name__}. "
            f"Make one with torch.Generator().manual_seed(0)."
        )
    if torch.device(generator.device).type != device.type:
        raise ValueError(
            f"`{name}` must live on {device.type}; got {generator.device}. "
            f"Make it with torch.Generator(device={device.type!r})."
        )
    return generator


def suggestion(name: Any, known: Iterable[str]) -> str:
    """The nearest of the known names, and all of them, for the end of a message."""
    known = list(known)
    nearest = difflib.get_close_matches(str(name), known, n=1)
    question = f"Did you mean {nearest[0]!r}? " if nearest else ""
    return f"{question}There are: {', '.join(known)}."
