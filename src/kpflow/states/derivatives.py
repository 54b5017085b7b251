"""Products with the Jacobian of a function, for blocks of probes, by reverse mode alone.

Forward mode is missing for fused kernels (recurrent layers, attention). The derivative of a vector-Jacobian product
with respect to its cotangent is the Jacobian-vector product, at the same cost, so it is used throughout.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["entrywise_slope", "pullback", "pushforward"]

CHUNK = 16  # probes in one vmap: more is slower and takes more memory (a number found by trial)

Tree = Tensor | dict[str, Tensor]


def pullback(function: Callable[[Any], Any], primal: Tree) -> Callable[[Tree], Any]:
    """Jᵀ of `function` at `primal`: from a tree of `[S, *out]` to a tree of `[S, *in]`."""
    point = _leaf(primal)
    with torch.enable_grad():
        value = function(point)

    def pull(block: Tree) -> Any:
        return _like(primal, _products(_tensors(value), _tensors(point), _tensors(block, value)))

    return pull


def pushforward(function: Callable[[Any], Any], primal: Tree) -> Callable[[Tree], Any]:
    """J of `function` at `primal`: from a tree of `[S, *in]` to a tree of `[S, *out]`, as the transpose of Jᵀ."""
    point = _leaf(primal)
    with torch.enable_grad():
        value = function(point)
        moving = [v for v in _tensors(value) if v.requires_grad]
        cotangents = [torch.zeros_like(v).requires_grad_() for v in _tensors(value)]
        seeds = [c for c, v in zip(cotangents, _tensors(value), strict=True) if v.requires_grad]
        pulled = _tensors(point)
        if moving:
            pulled = torch.autograd.grad(moving, pulled, seeds, create_graph=True, materialize_grads=True)

    def push(block: Tree) -> Any:
        return _like(value, _products(pulled if moving else [], cotangents, _tensors(block, primal)))

    return push


def entrywise_slope(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """φ'(a) for a function φ that acts entry by entry."""
    with torch.enable_grad():
        point = value.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(point).sum(), point, materialize_grads=True)
    return slope


def _products(outputs: Sequence[Tensor], inputs: Sequence[Tensor], block: Sequence[Tensor]) -> list[Tensor]:
    """Vector-Jacobian products of `outputs` with respect to `inputs` for a block of cotangents, in chunks."""
    moving = [i for i, output in enumerate(outputs) if output.requires_grad]
    if not moving:
        return [torch.zeros(len(block[0]), *i.shape, dtype=i.dtype, device=i.device) for i in inputs]
    chunks = zip(*(block[i].split(CHUNK) for i in moving), strict=True)
    results = [_batched([outputs[i] for i in moving], inputs, chunk) for chunk in chunks]
    return [torch.cat(pieces) for pieces in zip(*results, strict=True)]


def _batched(outputs: Sequence[Tensor], inputs: Sequence[Tensor], chunk: Sequence[Tensor]) -> Sequence[Tensor]:
    """One chunk of cotangents at once; one by one where an operation (packing a sequence) cannot be batched."""
    try:
        found = torch.autograd.grad(outputs, inputs, chunk, is_grads_batched=True, retain_graph=True, allow_unused=True)
        zeros = [torch.zeros_like(i).expand(len(chunk[0]), *i.shape) for i in inputs]
        return [zero if gradient is None else gradient for gradient, zero in zip(found, zeros, strict=True)]
    except RuntimeError:
        rows = [
            torch.autograd.grad(outputs, inputs, row, retain_graph=True, materialize_grads=True)
            for row in zip(*chunk, strict=True)
        ]
        return [torch.stack(column) for column in zip(*rows, strict=True)]


def _leaf(primal: Tree) -> Any:
    if isinstance(primal, Tensor):
        return primal.detach().requires_grad_()
    return {name: value.detach().requires_grad_() for name, value in primal.items()}


def _tensors(tree: Any, like: Any = None) -> list[Tensor]:
    """The tensors of a tree, in the order of the names of `like`."""
    return [tree] if isinstance(tree, Tensor) else [tree[name] for name in (tree if like is None else like)]


def _like(tree: Any, tensors: Sequence[Tensor]) -> Any:
    return tensors[0] if isinstance(tree, Tensor) else dict(zip(tree, tensors, strict=True))
