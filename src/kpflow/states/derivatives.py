"""Products with the Jacobian of a function, for blocks of probes; linear maps that gradients go through."""

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from .tapes import Tape, recording

__all__ = ["entrywise_slope", "is_same", "linear", "pullback", "pushforward"]

REMEDY = "Use a fixed function, or write the step(h, x) as a module and linearise that, with `initial`."

CHUNK = 16  # probes in one vmap: more is slower and takes more memory (a number found by trial)

SLOPES: tuple[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]], ...] = (
    (torch.tanh, lambda value: 1 - value * value),
    (torch.sigmoid, lambda value: (1 - value) * value),
    (torch.relu, lambda value: (value > 0).to(value.dtype)),
)
"""φ' as a function of φ, for those that need no trial: half the time of a linearisation (measured)."""

Tree = Tensor | dict[str, Tensor]

Product = Callable[[Tensor], Tensor]


def pullback(function: Callable[[Any], Any], primal: Tree) -> Callable[[Tree], Any]:
    """Jᵀ of `function` at `primal`: from a tree of `[S, *out]` to a tree of `[S, *in]`."""
    value, tape = _recorded(function, primal)
    return lambda block: _like(primal, _in_chunks(tape.vjp, _tensors(block, value)))


def pushforward(function: Callable[[Any], Any], primal: Tree) -> Callable[[Tree], Any]:
    """J of `function` at `primal`: from a tree of `[S, *in]` to a tree of `[S, *out]`."""
    value, tape = _recorded(function, primal)
    return lambda block: _like(value, _in_chunks(tape.jvp, _tensors(block, primal)))


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
    for known, slope in SLOPES:
        if function is known:
            return slope(function(value.detach()))
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


def _recorded(function: Callable[[Any], Any], primal: Tree) -> tuple[Any, Tape]:
    """The value of the function, and its Jacobian."""
    point = _leaf(primal)
    with recording():
        value = function(point)
    return value, Tape(_tensors(value), _tensors(point))


def _in_chunks(product: Callable[[Sequence[Tensor]], list[Tensor]], block: Sequence[Tensor]) -> list[Tensor]:
    """A product with a block of probes, some at a time."""
    results = [product(chunk) for chunk in zip(*(part.split(CHUNK) for part in block), strict=True)]
    return [torch.cat(pieces) for pieces in zip(*results, strict=True)]


def _leaf(primal: Tree) -> Any:
    if isinstance(primal, Tensor):
        return primal.detach().requires_grad_()
    return {name: value.detach().requires_grad_() for name, value in primal.items()}


def _tensors(tree: Any, like: Any = None) -> list[Tensor]:
    """The tensors of a tree, in the order of the names of `like`."""
    return [tree] if isinstance(tree, Tensor) else [tree[name] for name in (tree if like is None else like)]


def _like(tree: Any, tensors: Sequence[Tensor]) -> Any:
    return tensors[0] if isinstance(tree, Tensor) else dict(zip(tree, tensors, strict=True))
