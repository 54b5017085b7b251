"""Purity: a forward pass must be a function of the parameters that it is handed, and of no others."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .derivatives import is_same
from .tapes import recording

__all__ = ["check_pure", "leaves_of"]


def check_pure(run: Callable[[], Sequence[Tensor]], names: Mapping[int, str], noise: str, leak: str) -> None:
    """Refuse a forward pass that is random, or that reaches trainable parameters other than those it is handed.

    With constants in place of all parameters the results have no graph, unless the forward pass finds parameters by
    another way (a closure, a container that is not registered), which would be taken for constants.

    Args:
        run: The forward pass with all parameters replaced by constants; it is called twice.
        names: Names of the parameters by their identity.
        noise: Message where the results differ.
        leak: Message where other parameters are reached, with a place for their names.

    Raises:
        ValueError: With one of the two messages.
    """
    with recording():
        one, other = run(), run()
    if len(one) != len(other) or not all(is_same(a, b) for a, b in zip(one, other, strict=True)):
        raise ValueError(noise)
    leaves, again = leaves_of(one), leaves_of(other)  # a leaf made by the forward pass itself is another one each time
    reached = [
        names.get(key, f"one of shape {tuple(leaf.shape)}") for key, leaf in leaves.items() if leaf is again.get(key)
    ]
    if reached:
        raise ValueError(leak.format(", ".join(sorted(reached))))


def leaves_of(results: Sequence[Tensor]) -> dict[int, Tensor]:
    """The leaves of the graphs of the results, by their identity."""
    stack: list[Any] = [torch.autograd.graph.get_gradient_edge(r).node for r in results if r.requires_grad]
    seen, leaves = set(stack), {}
    while stack:
        node = stack.pop()
        if type(node).__name__ == "AccumulateGrad":
            leaves[id(node.variable)] = node.variable
        following = {edge for edge, _ in node.next_functions if edge is not None} - seen
        seen |= following
        stack += following
    return leaves
