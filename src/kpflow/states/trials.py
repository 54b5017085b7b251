"""Trials of a captured graph: which entries belong to which, and whether they are independent of each other."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .capture import Graph
from .derivatives import is_same

__all__ = ["independent", "trial_numbers"]

Named = Mapping[str, Tensor]


def trial_numbers(graph: Graph, trained: Named, nodes: Sequence[fx.Node]) -> list[Tensor] | None:
    """The trial of every entry of the values of some nodes, found by running the graph on the trials in another order.

    Trials lie along the first axis of all inputs, or along the second of all. A value may have them along any axis,
    also merged with another axis.

    Returns:
        Whole numbers of the shape of each value; None where an input or a value has no axis of trials.
    """
    given = {node: graph.constants[node] for node in graph.inputs if isinstance(graph.constants[node], Tensor)}
    for axis in (0, 1):
        if not given or any(value.ndim <= axis for value in given.values()):
            return None
        counts = {value.shape[axis] for value in given.values()}
        if len(counts) == 1 and (found := _numbers(graph, trained, nodes, given, axis)) is not None:
            return found
    return None


def _numbers(
    graph: Graph, trained: Named, nodes: Sequence[fx.Node], given: Mapping[fx.Node, Tensor], axis: int
) -> list[Tensor] | None:
    trials = next(iter(given.values())).shape[axis]
    plain = graph.run(trained, nodes)
    moved = graph.run(trained, nodes, inputs={node: value.roll(1, axis) for node, value in given.items()})
    numbers = [_along(plain[node], moved[node], trials) for node in nodes]
    return None if any(n is None for n in numbers) else [n for n in numbers if n is not None]


def _along(plain: Any, moved: Any, trials: int) -> Tensor | None:
    """The number of the trial of every entry, from values before and after all trials have moved by one."""
    numbers = torch.arange(trials, device=plain.device)
    for axis, size in enumerate(plain.shape):
        if size % trials:
            continue
        for split, place in (((trials, -1), axis), ((-1, trials), axis + 1)):
            if is_same(plain.unflatten(axis, split).roll(1, place), moved.unflatten(axis, split)):
                wide = plain.unflatten(axis, split).shape
                spread = numbers.reshape([-1 if d == place else 1 for d in range(len(wide))]).expand(wide)
                return spread.reshape(plain.shape)
    return None


def independent(
    product: Callable[[Tensor], Tensor], source: Tensor, target: Tensor, like: Tensor, block: int = 8
) -> bool:
    """Whether a linear map takes no trial to another one: then it leaves exact zeros there.

    Random vectors on several trials at once: trial b is on in the b-th set of half of the vectors. No such set holds
    another, so for every ordered pair of trials there is a vector with the first one on and the second one off.

    Args:
        product: Of blocks of flat vectors.
        source: Trial of every entry of what the map takes.
        target: Trial of every entry of what it gives.
        like: A tensor of the dtype and device of the vectors.
        block: Vectors at once.
    """
    codes = _codes(int(source.max()) + 1).to(like.device)  # [B, k]
    generator = torch.Generator(like.device).manual_seed(0)
    noise = torch.randn(len(source), dtype=like.dtype, device=like.device, generator=generator)
    for some in codes.mT.split(block):
        result = product(torch.stack([noise * on[source] for on in some]))
        if any(bool(row[~on[target]].any()) for row, on in zip(result, some, strict=True)):
            return False
    return True


def _codes(count: int) -> Tensor:
    """Different sets of half of k, `[count, k]`, for the smallest k that has so many."""
    k = next(k for k in itertools.count(1) if math.comb(k, k // 2) >= count)
    sets = itertools.islice(itertools.combinations(range(k), k // 2), count)
    return torch.tensor([[i in chosen for i in range(k)] for chosen in sets])
