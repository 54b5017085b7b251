"""Trials of a captured graph: which entries belong to which, and whether they are independent of each other."""

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
    product: Callable[[Tensor], Tensor], source: Tensor, target: Tensor, dtype: torch.dtype, block: int = 8
) -> bool:
    """Whether a linear map takes no trial to another one: then it leaves exact zeros there.

    Any two trials differ in some binary digit of their numbers, so random vectors on the trials with a digit 0, and on
    those with a digit 1, find every pair that meets.

    Args:
        product: Of blocks of vectors of the size of `source` to those of the size of `target`.
        source: Trial of every entry of what the map takes.
        target: Trial of every entry of what it gives.
        dtype: Of the vectors.
        block: Vectors at once.
    """
    trials = int(source.max()) + 1
    generator = torch.Generator(source.device).manual_seed(0)
    digits = [(source >> k) & 1 for k in range((trials - 1).bit_length())]
    sides = [(k, side) for k in range(len(digits)) for side in (0, 1)]
    for start in range(0, len(sides), block):
        some = sides[start : start + block]
        noise = torch.randn(len(some), len(source), dtype=dtype, device=source.device, generator=generator)
        on = torch.stack([digits[k] == side for k, side in some])
        result = product(noise * on)
        away = torch.stack([((target >> k) & 1) != side for k, side in some])
        if bool((result.reshape(len(some), -1) * away).any()):
            return False
    return True
