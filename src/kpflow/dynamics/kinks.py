"""Where a step is not smooth: the arguments of its ReLUs and clamps, whatever the code that calls them."""

import math
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["kinks"]

ATEN: Any = torch.ops.aten


def kinks(function: Callable[[], Any]) -> Tensor:
    """The numbers, in one vector in the order of the calls, at whose zeros `function` has a kink; empty if smooth."""
    seen = _Seen()
    with torch.no_grad(), seen:
        function()
    return torch.cat(seen.arguments) if seen.arguments else torch.zeros(0, dtype=torch.float64)


@final
class _Seen(TorchDispatchMode):
    """Notes the arguments of operations with a kink, below modules and autograd, where all of them are called."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.arguments: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        bends = BENDS.get(func)
        if bends is not None:
            given = dict(zip((item.name for item in func._schema.arguments), args, strict=False)) | (kwargs or {})
            self.arguments.extend(bend.detach().reshape(-1).clone() for bend in bends(given))
        return func(*args, **(kwargs or {}))


def _at_zero(given: Mapping[str, Any]) -> list[Tensor]:
    return [given["self"]]


def _at_limits(low: str, high: str, default: float | None) -> Callable[[Mapping[str, Any]], list[Tensor]]:
    def bends(given: Mapping[str, Any]) -> list[Tensor]:
        limits = (given.get(low, None if default is None else -default), given.get(high, default))
        return [given["self"] - limit for limit in limits if limit is not None and math.isfinite(limit)]

    return bends


def _where_equal(given: Mapping[str, Any]) -> list[Tensor]:
    return [given["self"] - given["other"]]


def _at_threshold(given: Mapping[str, Any]) -> list[Tensor]:
    return [given["self"] - given["threshold"]]


UNARY: Mapping[str, Callable[[Mapping[str, Any]], list[Tensor]]] = {
    "relu": _at_zero,
    "leaky_relu": _at_zero,
    "abs": _at_zero,
    "clamp": _at_limits("min", "max", None),
    "clamp_min": _at_limits("min", "", None),
    "clamp_max": _at_limits("", "max", None),
    "hardtanh": _at_limits("min_val", "max_val", 1.0),
    "threshold": _at_threshold,
}
"""What bends where, of the operations that are there in place as well."""

BENDS: Mapping[Any, Callable[[Mapping[str, Any]], list[Tensor]]] = {
    **{getattr(ATEN, name + place).default: bends for name, bends in UNARY.items() for place in ("", "_")},
    ATEN._prelu_kernel.default: _at_zero,
    ATEN.maximum.default: _where_equal,
    ATEN.minimum.default: _where_equal,
}
"""What bends where, by operation. Of smooth units such as softplus or GELU nothing is noted; and nothing of what is not
here: comparisons such as `torch.where`, clamps to tensors, hard sigmoids and swishes, ELU and SELU."""
