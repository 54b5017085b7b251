"""Patterns: operations that are linear in a weight, and what the weight sees there."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .uses import Contraction, Linear, Lookup

__all__ = ["linear_use"]

aten = torch.ops.aten

Found = tuple[Callable[[Tensor], Tensor], Linear]
"""The weight as the linear map takes it, a view of the weight as the operation takes it; and the linear map."""


def linear_use(target: Any, arguments: Sequence[Any], position: int, result: Tensor) -> Found | None:
    """How an operation uses the weight among its arguments, if it is linear in it and its pattern is known.

    Args:
        target: The operation.
        arguments: Its arguments, positional ones only.
        position: Which of them is the weight.
        result: What it gives (the first of several results).
    """
    pattern = PATTERNS.get(target)
    return None if pattern is None else pattern(arguments, position, result)


def _mm(arguments: Sequence[Any], position: int, result: Tensor) -> Found:
    return _whole, _product(arguments, position, result, ("nf", "fu", "nu"))


def _bmm(arguments: Sequence[Any], position: int, result: Tensor) -> Found:
    weight = arguments[position]
    if weight.shape[0] > 1 and weight.stride(0) > 0:
        return _whole, _product(arguments, position, result, ("bnf", "bfu", "bnu"))
    axes = ("bnf", "fu", "bnu") if position else ("nf", "bfu", "bnu")  # the same weight for all
    return lambda w: w[0], _product(arguments, position, result, axes)


def _addmm(arguments: Sequence[Any], position: int, result: Tensor) -> Found:
    if position == 0:
        return _added(arguments[0], result, 1.0)
    return _whole, _product(arguments[1:], position - 1, result, ("nf", "fu", "nu"))


def _product(arguments: Sequence[Any], position: int, result: Tensor, axes: tuple[str, str, str]) -> Contraction:
    """A matrix product; `axes` are those of its two factors and of the result."""
    seen, by = (axes[1], axes[0]) if position == 0 else (axes[0], axes[1])
    features = arguments[1 - position].detach()
    sizes = dict(zip(axes[2], result.shape, strict=True)) | dict(zip(seen, features.shape, strict=True))
    return Contraction(features, (seen, by, axes[2]), sizes, tuple(result.shape))


def _whole(weight: Tensor) -> Tensor:
    return weight


def _add(arguments: Sequence[Any], position: int, result: Tensor) -> Found | None:
    return _added(arguments[position], result, 1.0) if len(arguments) == 2 else None


def _sub(arguments: Sequence[Any], position: int, result: Tensor) -> Found | None:
    return _added(arguments[position], result, -1.0 if position else 1.0) if len(arguments) == 2 else None


def _added(weight: Tensor, result: Tensor, sign: float) -> Found:
    """What a weight adds, spread over the axes that it does not have."""
    return _entrywise(weight, result.new_full((), sign), result)


def _mul(arguments: Sequence[Any], position: int, result: Tensor) -> Found | None:
    other = arguments[1 - position]
    return _entrywise(arguments[position], other.detach(), result) if isinstance(other, Tensor) else None


def _div(arguments: Sequence[Any], position: int, result: Tensor) -> Found | None:
    other = arguments[1 - position]
    if position or not isinstance(other, Tensor):
        return None
    return _entrywise(arguments[0], other.detach().reciprocal(), result)


def _entrywise(weight: Tensor, factor: Tensor, result: Tensor) -> Found:
    """weight ∘ factor, each spread over the axes of the result that it lacks."""
    letters = "abcdefghijklmnop"[: result.ndim]
    own, wide = _own_axes(weight), _own_axes(factor)
    by, seen = ("".join(letters[d - t.ndim] for d in axes) for t, axes in ((weight, own), (factor, wide)))
    sizes = dict(zip(letters, result.shape, strict=True))
    alone = "".join(letter for letter in letters if letter not in by + seen)  # ones stand for these
    features = _squeezed(factor)
    if alone:
        ones = features.new_ones([sizes[letter] for letter in alone])
        features = torch.tensordot(features, ones, dims=0)
    return _squeezed, Contraction(features.contiguous(), (seen + alone, by, letters), sizes, tuple(result.shape))


def _own_axes(tensor: Tensor) -> list[int]:
    """The axes along which a tensor is not the same by its layout."""
    return [d for d in range(tensor.ndim) if tensor.shape[d] > 1 and tensor.stride(d) > 0]


def _squeezed(tensor: Tensor) -> Tensor:
    """The first entry along all other axes, a view."""
    own = _own_axes(tensor)
    return tensor[tuple(slice(None) if d in own else 0 for d in range(tensor.ndim))]


def _convolution(arguments: Sequence[Any], position: int, result: Tensor) -> Found | None:
    inputs, weight, _, stride, padding, dilation, transposed, extra, groups = arguments
    if position == 2:
        return _channelwise(result, result.new_ones(()))
    if position != 1:
        return None
    G, K = groups, math.prod(weight.shape[2:])
    seen = _patches(inputs.detach(), weight, (stride, padding, dilation, transposed, extra))  # [B, C, K, *out]
    seen = seen.reshape(len(inputs), G, -1, K, math.prod(result.shape[2:]))
    out = result.shape[1] // G
    sizes = {"b": len(inputs), "g": G, "u": out, "c": seen.shape[2], "k": K, "l": seen.shape[4]}
    by = "gcuk" if transposed else "guck"

    def split(kernel: Tensor) -> Tensor:
        return kernel.unflatten(0, (G, -1)).flatten(3)

    return split, Contraction(seen, ("bgckl", by, "bgul"), sizes, tuple(result.shape))


def _patches(inputs: Tensor, weight: Tensor, settings: tuple[Any, ...]) -> Tensor:
    """What every entry of a kernel sees, `[B, C, K, *out]`: convolutions with kernels of a single one."""
    stride, padding, dilation, transposed, extra = settings
    channels, kernel = inputs.shape[1], weight.shape[2:]
    K = math.prod(kernel)
    ones = torch.eye(K, dtype=inputs.dtype, device=inputs.device).reshape(1, K, *kernel)
    ones = ones.expand(channels, K, *kernel)
    shape = ones if transposed else ones.reshape(channels * K, 1, *kernel)
    seen = aten.convolution(inputs, shape, None, stride, padding, dilation, transposed, extra, channels)
    return seen.reshape(len(inputs), channels, K, *seen.shape[2:])


def _channelwise(result: Tensor, features: Tensor) -> Found:
    """A weight for every channel of `[B, C, *L]`, times features of that shape, or of none."""
    letters = "bcdefghij"[: result.ndim]
    sizes = dict(zip(letters, result.shape, strict=True))
    seen = letters if features.ndim else letters.replace("c", "")
    wide = features if features.ndim else features.expand([sizes[letter] for letter in seen]).contiguous()
    return _whole, Contraction(wide, (seen, "c", letters), sizes, tuple(result.shape))


def _layer_norm(arguments: Sequence[Any], position: int, result: Tensor) -> Found | None:
    inputs, shape, weight, bias, eps = arguments
    if position == 3:
        return _added(bias, result, 1.0)
    return _entrywise(weight, functional.layer_norm(inputs.detach(), shape, None, None, eps), result)


def _group_norm(arguments: Sequence[Any], position: int, result: Tensor) -> Found | None:
    inputs, groups, eps = arguments[0], arguments[6], arguments[7]
    if position == 2:
        return _channelwise(result, result.new_ones(()))
    return _channelwise(result, functional.group_norm(inputs.detach(), groups, None, None, eps))


def _batch_norm(arguments: Sequence[Any], position: int, result: Tensor) -> Found | None:
    inputs, _, _, mean, variance, _, eps = arguments
    if position == 2:
        return _channelwise(result, result.new_ones(()))
    if position != 1:
        return None
    return _channelwise(result, functional.batch_norm(inputs.detach(), mean, variance, eps=eps))


def _embedding(arguments: Sequence[Any], position: int, result: Tensor) -> Found | None:
    if position != 0:
        return None
    weight, index = arguments[:2]
    padding = arguments[2] if len(arguments) > 2 else -1
    seen = (index != padding).to(weight.dtype)  # the row of padding does not learn
    return _whole, Lookup(index, seen, weight.shape[0], weight.shape[1], tuple(result.shape))


def _embedding_bag(arguments: Sequence[Any], position: int, result: Tensor) -> Found | None:
    given = (*arguments, *BAG_DEFAULTS[len(arguments) :])
    weight, index, starts, _, mode, _, scales, _, padding = given
    if position or mode == 2:  # the maximum is not linear
        return None
    bags = torch.searchsorted(starts, torch.arange(len(index), device=index.device), right=True) - 1
    seen = (index != padding).to(weight.dtype)
    counts = weight.new_zeros(len(result), len(weight)).index_put_((bags, index), seen, accumulate=True)
    if mode == 1:
        counts /= counts.sum(1, keepdim=True).clamp_min(1)
    if scales is not None:
        counts = weight.new_zeros(counts.shape).index_put_((bags, index), seen * scales.detach(), accumulate=True)
    sizes = {"n": len(result), "f": len(weight), "u": weight.shape[1]}
    return _whole, Contraction(counts, ("nf", "fu", "nu"), sizes, tuple(result.shape))


BAG_DEFAULTS: tuple[Any, ...] = (None, None, None, False, 0, False, None, False, -1)
"""Of `aten._embedding_bag`: weight, indices, offsets, scaled gradient, mode, sparse, scales, last offset, padding."""


def _index(arguments: Sequence[Any], position: int, result: Tensor) -> Found | None:
    weight, indices = arguments
    if position or len(indices) != 1 or weight.ndim != 2 or indices[0].dtype not in (torch.int64, torch.int32):
        return None
    return _embedding((weight, indices[0] % weight.shape[0]), 0, result)


def _index_select(arguments: Sequence[Any], position: int, result: Tensor) -> Found | None:
    weight, axis, index = arguments
    return _embedding((weight, index), 0, result) if axis == 0 and weight.ndim == 2 and position == 0 else None


PATTERNS: dict[Any, Callable[[Sequence[Any], int, Tensor], Found | None]] = {
    aten.mm.default: _mm,
    aten.bmm.default: _bmm,
    aten.addmm.default: _addmm,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _sub,
    aten.mul.Tensor: _mul,
    aten.div.Tensor: _div,
    aten.convolution.default: _convolution,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _group_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.embedding.default: _embedding,
    aten._embedding_bag.default: _embedding_bag,
    aten._embedding_bag_forward_only.default: _embedding_bag,
    aten.index.Tensor: _index,
    aten.index_select.default: _index_select,
}
