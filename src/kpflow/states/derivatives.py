"""Products with the Jacobian of a function, for blocks of probes, by reverse mode alone.

Forward mode is missing for fused kernels (recurrent layers, attention). The derivative of a vector-Jacobian product
with respect to its cotangent is the Jacobian-vector product, at the same cost, so it is used throughout.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["entrywise_slope", "pullback", "pushforward"]

CHUNK = 16  # probes in one vmap: more is slower and takes more memory (a number found by trial)

Tree = Tensor | dict[str, Tensor]


def pullback(function: Callable[[Any], Any], primal: Tree) -> Callable[[Tree], Any]:
    """Jᵀ of `function` at `primal`: from a tree of `[S, *out]` to a tree of `[S, *in]`."""
    _, vjp, *_ = torch.func.vjp(function, primal)
    return torch.vmap(lambda cotangent: vjp(cotangent)[0], chunk_size=CHUNK)


def pushforward(function: Callable[[Any], Any], primal: Tree) -> Callable[[Tree], Any]:
    """J of `function` at `primal`: from a tree of `[S, *in]` to a tree of `[S, *out]`, as the transpose of Jᵀ."""
    value, vjp, *_ = torch.func.vjp(function, primal)
    zeros = (
        {key: torch.zeros_like(v) for key, v in value.items()} if isinstance(value, dict) else torch.zeros_like(value)
    )
    _, transposed, *_ = torch.func.vjp(lambda cotangent: vjp(cotangent)[0], zeros)
    return torch.vmap(lambda tangent: transposed(tangent)[0], chunk_size=CHUNK)


def entrywise_slope(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """φ'(a) for a function φ that acts entry by entry."""
    result, vjp, *_ = torch.func.vjp(function, value)
    return vjp(torch.ones_like(result))[0].detach()
