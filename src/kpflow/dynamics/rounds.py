"""Rounds of searches: from the given seeds, and from more of them while the index sum shows that points are missing."""

import dataclasses
from collections.abc import Iterator
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from .deadlines import Deadline
from .deflation import deflated
from .maps import StaticMap
from .merging import PIECE_ENTRIES, bounds, distinct, index
from .points import IndexVerdict, Stop
from .searches import Searched, judged, newton, search
from .seeds import mixed

__all__ = ["Plan", "searched_in_rounds"]

FEWEST, MOST = 32, 256
"""Seeds of a further round: as many as were given, within these limits."""

REACH = 0.2
"""Reach of the deflation in units of the size of a state: with 1, many known roots drive all searches outwards; with
0.05 it goes back to the next ones (measured on three flip-flop networks)."""

BARREN = 3
"""Rounds in a row without a new point at which the search is saturated: mixes and deflation alike."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """How to search; the fields are the arguments of `find_fixed_points`, and `unit` the size of a state entry."""

    unit: float
    tolerance: float
    descent: int
    iterations: int
    merge: float
    rounds: int
    deadline: Deadline
    generator: torch.Generator


@final
@dataclasses.dataclass(frozen=True, eq=False)
class _Known:
    """The distinct roots so far: where they are among those found, how often each was found, and their index."""

    states: Float[Tensor, "k H"]
    stable: Float[Tensor, "s H"]
    singletons: int
    verdict: IndexVerdict


def searched_in_rounds(mapping: StaticMap, seeds: Float[Tensor, "n H"], plan: Plan) -> tuple[Searched, Stop]:
    """Searches from the seeds, then from those that were added, and why no more were added.

    Further rounds start from mixes of the stable points (saddles lie between them), from mixes of all points, and, by
    deflation, from the seeds that came to nothing, the last two by turns. They end when the index sum is 1 and nothing
    new turns up: nothing that only one of the given seeds found, or nothing at all in a round of deflation.
    """
    found = _from_seeds(mapping, seeds, plan)
    known = _known(mapping, found, plan.merge)
    fresh, barren = known.singletons, 0
    for done in range(plan.rounds + 1):
        if plan.deadline.over:
            return found, Stop.TIME
        if known.verdict in (IndexVerdict.NOT_APPLICABLE, IndexVerdict.SINGULAR):
            return found, Stop.GIVEN
        if known.verdict is IndexVerdict.CONSISTENT and not fresh and (not done or _deflates(done - 1)):
            return found, Stop.COMPLETE
        if barren == BARREN:
            return found, Stop.SATURATED
        if done < plan.rounds:
            found = Searched.joined([found, _round(mapping, found, known, seeds, done, plan)])
            before, known = len(known.states), _known(mapping, found, plan.merge)
            fresh = len(known.states) - before
            barren = 0 if fresh else barren + 1
    return found, Stop.ROUNDS


def _deflates(done: int) -> bool:
    """Whether the round after so many is one of deflation."""
    return done >= 2 and done % 2 == 0


def _round(mapping: StaticMap, found: Searched, known: _Known, seeds: Tensor, done: int, plan: Plan) -> Searched:
    count = min(max(len(seeds), FEWEST), MOST)
    source = known.states if done else known.stable
    if not _deflates(done) and len(source) > 1:
        return _from_seeds(mapping, mixed(source, count, plan.generator), plan)
    worst = _worst(found, seeds, count, plan.generator)
    searched = mapping if mapping.target is None else mapping.target
    reach = REACH * plan.unit * seeds.shape[1] ** 0.5
    ends = _from_seeds(deflated(searched, known.states, reach), worst, plan).states
    return judged(mapping, newton(mapping, newton(searched, ends, steps=3), steps=3), worst, plan.unit, plan.tolerance)


def _worst(found: Searched, seeds: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Seeds that came to no root, drawn at random, for at most half of the count; mixes of all seeds for the rest."""
    failed = seeds[~found.root[: len(seeds)]]
    order = torch.randperm(len(failed), generator=generator, device=seeds.device)[: count // 2]
    return torch.cat([failed[order], mixed(seeds, count - len(order), generator)])


def _known(mapping: StaticMap, found: Searched, merge: float) -> _Known:
    at, labels = distinct(found, found.root, bounds(mapping, found.states[found.root]), merge)
    states = found.states[at]
    if not mapping.bounded:
        return _Known(states, states[:0], 0, IndexVerdict.NOT_APPLICABLE)
    jacobians = mapping.linearised(states)[1]
    multipliers = torch.linalg.eigvals(jacobians)
    _, verdict = index(jacobians, multipliers, mapping.bounded)
    growth = multipliers.real if mapping.flow else multipliers.abs()
    stable = states[(growth < 1).all(dim=1)]
    return _Known(states, stable, int((labels.bincount(minlength=len(at)) == 1).sum()), verdict)


def _from_seeds(mapping: StaticMap, seeds: Tensor, plan: Plan) -> Searched:
    return Searched.joined([_piece(mapping, piece, plan) for piece in _pieces(seeds)])


def _piece(mapping: StaticMap, seeds: Tensor, plan: Plan) -> Searched:
    if plan.deadline.over:
        return judged(mapping, seeds, seeds, plan.unit, plan.tolerance)
    return search(mapping, seeds, plan.unit, plan.tolerance, plan.descent, plan.iterations, plan.deadline)


def _pieces(seeds: Tensor) -> Iterator[Tensor]:
    return iter(seeds.split(max(1, PIECE_ENTRIES // seeds.shape[1] ** 2)))
