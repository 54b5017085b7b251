"""Trials of a captured graph: which entries belong to which, and whether they are independent of each other."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx

from .capture import Graph
from .derivatives import is_same

__all__ = ["Numbered", "independent", "trial_numbers"]

Named = Mapping[str, Tensor]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Numbered:
    """The trials of the entries of some values.

    Args:
        numbers: Trial of every entry, of the shape of each value.
        apart: Whether the trials are known to be independent: for no value is there any doubt along which axis they
            lie, and other inputs of some leave the values of the others as they are, bit for bit.
    """

    numbers: list[Tensor]
    apart: bool


def trial_numbers(graph: Graph, trained: Named, nodes: Sequence[fx.Node]) -> Iterator[Numbered]:
    """The trial of every entry of the values of some nodes, found by running the graph on the trials in another order.

    Trials lie along the first axis of all inputs, or along the second of all: each that fits is given, for attention
    does not mind the order of positions either. A value may have them along any axis, also merged with another axis.
    """
    given = {node: graph.constants[node] for node in graph.inputs if isinstance(graph.constants[node], Tensor)}
    for axis in (0, 1):
        if not given or any(value.ndim <= axis for value in given.values()):
            return
        counts = {value.shape[axis] for value in given.values()}
        if len(counts) == 1 and (found := _numbered(graph, trained, nodes, given, axis)) is not None:
            yield found


def _numbered(
    graph: Graph, trained: Named, nodes: Sequence[fx.Node], given: Mapping[fx.Node, Tensor], axis: int
) -> Numbered | None:
    trials = next(iter(given.values())).shape[axis]
    others = {node: value.roll(1, axis) for node, value in given.items()}
    plain, moved = graph.run(trained, nodes), graph.run(trained, nodes, inputs=others)
    found = [_along(plain[node], moved[node], trials) for node in nodes]
    if not all(found):
        return None
    numbers = [numbers[0] for numbers in found]
    changed = [(given[n] != others[n]).movedim(axis, 0).reshape(trials, -1).any(1) for n in given]
    certain = all(len(each) == 1 for each in found) and bool(torch.stack(changed).any(0).all())
    return Numbered(numbers, certain and _stay(graph, trained, nodes, (given, others, axis), (plain, numbers)))


def _stay(graph: Graph, trained: Named, nodes: Sequence[fx.Node], inputs: Any, values: Any) -> bool:
    """Whether values stay the same, bit for bit, when trials get the inputs of others, those of a set at a time."""
    (given, others, axis), (plain, numbers) = inputs, values
    for on in _codes(next(iter(given.values())).shape[axis]).mT:
        mixed = {}
        for node, value in given.items():
            chosen = on.to(value.device).reshape([-1 if d == axis else 1 for d in range(value.ndim)])
            mixed[node] = torch.where(chosen, others[node], value)
        found = graph.run(trained, nodes, inputs=mixed)
        for node, number in zip(nodes, numbers, strict=True):
            if bool(((found[node] != plain[node]) & ~on.to(number.device)[number]).any()):
                return False
    return True


def _along(plain: Any, moved: Any, trials: int) -> list[Tensor]:
    """The number of the trial of every entry, from values before and after all trials have moved by one.

    One tensor for every way in which the trials may lie; several where values repeat.
    """
    numbers = torch.arange(trials, device=plain.device)
    found = []
    for axis, size in enumerate(plain.shape):
        if size % trials:
            continue
        splits = [((trials, -1), axis), ((-1, trials), axis + 1)]
        for split, place in splits[: 1 if size == trials else 2]:
            if is_same(plain.unflatten(axis, split).roll(1, place), moved.unflatten(axis, split)):
                wide = plain.unflatten(axis, split).shape
                spread = numbers.reshape([-1 if d == place else 1 for d in range(len(wide))]).expand(wide)
                found.append(spread.reshape(plain.shape))
    return found


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
