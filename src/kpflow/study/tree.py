"""Nested Python values as tensors and JSON, so that no pickle is needed."""

import math
from collections import Counter
from typing import Any

from torch import Tensor

__all__ = ["pack", "unpack"]


def pack(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split nested dicts, lists, tuples, tensors and scalars into a JSON value and the tensors that it names.

    The optimizer's and the generators' states are such values. `unpack` is the inverse, to the last bit.

    Raises:
        TypeError: The value holds anything else.

    Example:
        >>> import torch
        >>> layout, tensors = pack({"lr": 0.1, "betas": (0.9, 0.99), "state": {0: torch.ones(2)}})
        >>> sorted(tensors), unpack(layout, tensors)
        (['0'], {'lr': 0.1, 'betas': (0.9, 0.99), 'state': {0: tensor([1., 1.])}})
    """
    tensors: dict[str, Tensor] = {}
    return _pack(value, tensors, "value"), tensors


def unpack(layout: Any, tensors: dict[str, Tensor]) -> Any:
    """Join what `pack` split."""
    match layout:
        case {"tensor": name}:
            return tensors[name]
        case {"list": items}:
            return [unpack(item, tensors) for item in items]
        case {"tuple": items}:
            return tuple(unpack(item, tensors) for item in items)
        case {"counter": items}:
            return Counter({key: count for key, count in items})
        case {"dict": items}:
            return {unpack(key, tensors): unpack(item, tensors) for key, item in items}
        case {"float": text}:
            return float(text)
        case _:
            return layout


def _pack(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    match value:
        case Tensor():
            name = str(len(tensors))
            tensors[name] = value
            return {"tensor": name}
        case float() if not math.isfinite(value):
            return {"float": repr(value)}
        case None | bool() | int() | float() | str():
            return value
        case list():
            return {"list": [_pack(item, tensors, f"{place}[{i}]") for i, item in enumerate(value)]}
        case tuple():
            return {"tuple": [_pack(item, tensors, f"{place}[{i}]") for i, item in enumerate(value)]}
        case Counter():  # such as the milestones of a scheduler
            return {"counter": [list(pair) for pair in value.items()]}
        case dict():
            pairs = (
                (_pack(key, tensors, place), _pack(item, tensors, f"{place}[{key!r}]")) for key, item in value.items()
            )
            return {"dict": [list(pair) for pair in pairs]}
        case _:
            raise TypeError(
                f"`{place}` must be made of dicts, lists, tuples, tensors, numbers, strings and None to be stored "
                f"without a pickle; got {type(value).__name__}."
            )
