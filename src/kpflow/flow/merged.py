"""The weights of a graph put together: a weight with its biases, and all uses of a weight, are one Kronecker core."""

import dataclasses
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from kpflow.states import Linearisation, LinearSite

__all__ = ["MergedSites", "merged_sites"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class MergedSites:
    """K = Σ over `alone` of ⊕_g (M_g M_gᵀ) ⊗ I, plus J Jᵀ of every set of parameters of `joint`.

    Args:
        alone: Sites whose parameters act nowhere else, by name: a weight with its biases, or one weight at all the
            states that it acts on in the same way (layers that share it, steps of time).
        joint: Sets of parameters that act in several different ways (an embedding that is also the unembedding), that
            are computed from others (weight norm), or of whose action only derivatives are known.
    """

    alone: dict[str, LinearSite]
    joint: dict[str, tuple[str, ...]]


def merged_sites(linearisation: Linearisation, names: Sequence[str] | None = None) -> MergedSites:
    """Put the weights of a graph together.

    Args:
        linearisation: Of a graph.
        names: The parameters that count; None for all.
    """
    found = linearisation.linear_sites() or {}
    order = [part.name for part in linearisation.parameters.parts if names is None or part.name in names]
    sites = [(state, site) for state, those in found.items() for site in those if set(site.parameters) & set(order)]
    uses: dict[str, list[LinearSite]] = {}
    for _, site in sites:
        for name in site.parameters:
            uses.setdefault(name, []).append(site)
    together = [set(site.parameters) for _, site in sites if site.entries is None]
    together += [{name} for name in linearisation.loose if name in order]
    together += [{name} for name, those in uses.items() if not _apart(those) and not _alike(those)]
    joint = _connected(together)
    tied = set().union(*joint)
    alone = [(state, _all_of(site, uses)) for state, site in sites if site.parameters[0] not in tied]
    sets = [tuple(name for name in order if name in those) for those in joint]
    return MergedSites(_with_biases([(s, site) for s, site in alone if site is not None]), {s[0]: s for s in sets})


def _connected(sets: Sequence[set[str]]) -> list[set[str]]:
    """Sets that share a member are one."""
    result: list[set[str]] = []
    for names in sets:
        touching = [other for other in result if other & names]
        result = [other for other in result if not other & names] + [names.union(*touching)]
    return result


def _all_of(site: LinearSite, uses: dict[str, list[LinearSite]]) -> LinearSite | None:
    """The site; all uses of its weight, for the first of several on the same entries; None for the others."""
    own = uses[site.parameters[0]]
    if len(own) == 1 or _apart(own):
        return site
    return _stack(own) if site is own[0] else None


def _apart(sites: Sequence[LinearSite]) -> bool:
    """Whether the sites use different entries of a parameter: a projection that is split."""
    entries = [site.entries.unique() for site in sites if site.entries is not None]
    return len(entries) == len(sites) and len(torch.cat(entries).unique()) == sum(map(len, entries))


def _alike(sites: Sequence[LinearSite]) -> bool:
    """Whether the sites use one parameter in the same way."""
    first = sites[0].entries
    return first is not None and all(
        site.entries is not None and torch.equal(site.entries, first) and site.parameters == sites[0].parameters
        for site in sites
    )


def _stack(sites: Sequence[LinearSite]) -> LinearSite:
    """One weight at several states: positions one after the other."""
    features = torch.cat([site.features for site in sites], dim=1)
    return dataclasses.replace(sites[0], features=features, places=torch.cat([site.places for site in sites]))


def _with_biases(sites: Sequence[tuple[str, LinearSite]]) -> dict[str, LinearSite]:
    """Sites that move the same entries in the same way are one: [v, 1] for a weight and its bias."""
    merged: dict[str, LinearSite] = {}
    for state, site in sites:
        same = next((name for name, known in merged.items() if _same_places(known.places, site.places)), None)
        if same is not None:
            merged[same] = _side_by_side(merged[same], site)
        else:
            merged[site.parameters[0] if state in merged else state] = site
    return merged


def _same_places(one: Tensor, other: Tensor) -> bool:
    """Whether two sites move the same entries, each position the same ones, and one of them has no groups."""
    same_groups = one.shape == other.shape or 1 in (one.shape[1], other.shape[1])
    return same_groups and one.numel() == other.numel() and torch.equal(one.flatten(1), other.flatten(1))


def _side_by_side(one: LinearSite, other: LinearSite) -> LinearSite:
    """Features of both; a site without groups has the same features in every group of the other."""
    wide = one if one.places.shape[1] >= other.places.shape[1] else other
    G = wide.places.shape[1]
    features = torch.cat([site.features.expand(G, -1, -1) for site in (one, other)], dim=2)
    return LinearSite(features, wide.places, (*one.parameters, *other.parameters), None)
