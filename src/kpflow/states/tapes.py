"""Tapes: a function recorded once, whose Jacobian is applied to many blocks of probes."""

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import final

import torch
from torch import Tensor

__all__ = ["Tape", "recording", "used"]


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Record gradients, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@final
class Tape:
    """The Jacobian of recorded outputs with respect to leaves, by reverse mode alone.

    Forward mode is missing for fused kernels (recurrent layers, attention). The derivative of a vector-Jacobian product
    with respect to its cotangent is the Jacobian-vector product, at the same cost; it is recorded at its first use.

    Args:
        outputs: Tensors with the graph from `leaves`.
        leaves: Tensors that require a gradient.
    """

    def __init__(self, outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
        self._outputs = tuple(outputs)
        self._leaves = tuple(leaves)

    def vjp(self, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """Jᵀ: from a block `[S, *shape]` for each output to one for each leaf."""
        return _products(self._outputs, self._leaves, cotangents)

    def jvp(self, tangents: Sequence[Tensor]) -> list[Tensor]:
        """J, as the transpose of Jᵀ.

        Raises:
            ValueError: The derivative of an operation has no derivative on record.
        """
        try:
            seeds, pulled = self._transposed
            return _products(pulled, seeds, tangents)
        except NotImplementedError as error:
            raise ValueError(
                f"The model uses an operation whose derivative cannot be differentiated: {error} Write it with others "
                "(torch.cdist as a norm of differences), or ask for products with Jᵀ and Pᵀ alone."
            ) from error

    @functools.cached_property
    def _transposed(self) -> tuple[list[Tensor], Sequence[Tensor]]:
        """Cotangents of the outputs, and Jᵀ of them with its graph."""
        with recording():
            # at ones, for formulas that take logarithms of cotangents
            seeds = [torch.ones_like(output).requires_grad_() for output in self._outputs]
            moving = [(o, s) for o, s in zip(self._outputs, seeds, strict=True) if o.requires_grad]
            if not moving:
                return seeds, [torch.zeros_like(leaf) for leaf in self._leaves]
            outputs, cotangents = zip(*moving, strict=True)
            return seeds, torch.autograd.grad(
                outputs, self._leaves, cotangents, create_graph=True, materialize_grads=True
            )


def used(results: Sequence[Tensor], values: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the values on which any of the results depends."""
    moving = [result for result in results if result.requires_grad]
    if not moving or not values:
        return ()
    seeds = [torch.ones_like(result) for result in moving]
    found = torch.autograd.grad(moving, list(values.values()), seeds, allow_unused=True, retain_graph=True)
    return tuple(name for name, gradient in zip(values, found, strict=True) if gradient is not None)


def _products(outputs: Sequence[Tensor], inputs: Sequence[Tensor], block: Sequence[Tensor]) -> list[Tensor]:
    """Vector-Jacobian products of `outputs` with respect to `inputs` for a block of cotangents."""
    moving = [i for i, output in enumerate(outputs) if output.requires_grad]
    probes = len(block[0])
    if not moving or not inputs:
        return [i.new_zeros(probes, *i.shape) for i in inputs]
    return _batched([outputs[i] for i in moving], inputs, [block[i] for i in moving])


def _batched(outputs: Sequence[Tensor], inputs: Sequence[Tensor], block: Sequence[Tensor]) -> list[Tensor]:
    """All cotangents at once; one by one where an operation (packing a sequence) cannot be batched."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an operation that vmap does one by one is slower, not wrong
            found = torch.autograd.grad(
                outputs, inputs, block, is_grads_batched=True, retain_graph=True, allow_unused=True
            )
    except RuntimeError:
        rows = [
            torch.autograd.grad(outputs, inputs, row, retain_graph=True, materialize_grads=True)
            for row in zip(*block, strict=True)
        ]
        return [torch.stack(column) for column in zip(*rows, strict=True)]
    return [i.new_zeros(len(block[0]), *i.shape) if f is None else f for i, f in zip(inputs, found, strict=True)]
