"""Products with the Jacobian of a function, for blocks of probes, by reverse mode alone.

Forward mode is missing for fused kernels (recurrent layers, attention). The derivative of a vector-Jacobian product
with respect to its cotangent is the Jacobian-vector product, at the same cost, so it is used throughout.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["entrywise_slope", "is_same", "linear", "pullback", "pushforward", "recording"]

REMEDY = "Use a fixed function, or write the step(h, x) as a module and linearise that, with `initial`."

CHUNK = 16  # probes in one vmap: more is slower and takes more memory (a number found by trial)

Tree = Tensor | dict[str, Tensor]

Product = Callable[[Tensor], Tensor]


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Record gradients, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def pullback(function: Callable[[Any], Any], primal: Tree) -> Callable[[Tree], Any]:
    """Jᵀ of `function` at `primal`: from a tree of `[S, *out]` to a tree of `[S, *in]`."""
    point = _leaf(primal)
    with recording():
        value = function(point)

    def pull(block: Tree) -> Any:
        return _like(primal, _products(_tensors(value), _tensors(point), _tensors(block, value)))

    return pull


def pushforward(function: Callable[[Any], Any], primal: Tree) -> Callable[[Tree], Any]:
    """J of `function` at `primal`: from a tree of `[S, *in]` to a tree of `[S, *out]`, as the transpose of Jᵀ."""
    point = _leaf(primal)
    with recording():
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


@final
class _Linear(torch.autograd.Function):
    """A linear map, whose derivative is itself: gradients go through its adjoint."""

    @staticmethod
    def forward(block: Tensor, product: Product, adjoint: Product) -> Tensor:  # noqa: ARG004 - for the gradient
        return product(block)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004 - it is linear
        ctx.maps = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        product, adjoint = ctx.maps
        return linear(adjoint, product, gradients[0]), None, None


def linear(product: Product, adjoint: Product, block: Tensor) -> Tensor:
    """A linear product with a block that may require a gradient, or hold no probe at all.

    The product itself works in place, and on at least one probe.
    """
    if not len(block):
        return product(block.new_zeros(1, *block.shape[1:]))[:0]
    if block.requires_grad and torch.is_grad_enabled():
        return _Linear.apply(block, product, adjoint)  # type: ignore[return-value]
    return product(block)


def entrywise_slope(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """φ'(a) for a function φ that acts entry by entry; zero where it has no derivative on record.

    Raises:
        ValueError: φ writes into its argument, is random, has parameters of its own, or mixes entries: then
            Jᵀ s differs from s ∘ Jᵀ 1 for random signs s.
    """
    with recording():
        plain = function(value.detach().clone())
        point = value.detach().clone().requires_grad_()
        argument = point.clone()
        result = function(argument)
        if argument._version:
            raise ValueError("`nonlinearity` must not write into its argument. Use the form that gives a new tensor.")
        if plain.requires_grad:
            raise ValueError(f"`nonlinearity` must have no parameters of its own here. {REMEDY}")
        if result.shape != value.shape or not is_same(plain, result.detach()):
            raise ValueError(f"`nonlinearity` must act entry by entry and without noise. {REMEDY}")
        if not result.requires_grad:
            return torch.zeros_like(value)
        signs = _signs(value)
        slope, mixed = (
            torch.autograd.grad(result, point, seed, retain_graph=True, materialize_grads=True)[0]
            for seed in (torch.ones_like(value), signs)
        )
    if not is_same(mixed, signs * slope):
        raise ValueError(f"`nonlinearity` must act entry by entry; this one mixes units or trials. {REMEDY}")
    return slope


def is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two results agree up to rounding: sums on a GPU may run in another order each time."""
    if one.shape != other.shape or one.numel() == 0 or not one.dtype.is_floating_point:
        return torch.equal(one, other)
    return not bool((one - other).abs().max() > 100 * torch.finfo(one.dtype).eps * one.abs().max())  # NaN is the same


def _signs(like: Tensor) -> Tensor:
    """Entries ±1, always the same."""
    generator = torch.Generator(device=like.device).manual_seed(0)
    return torch.randint(0, 2, like.shape, generator=generator, device=like.device).to(like.dtype) * 2 - 1


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
