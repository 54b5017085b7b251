"""Exact traces, diagonals, norms and spectra of K and the NTK, where their structure makes them cheap."""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.operators import Exact, Sampled, SampledParts, Structure
from kpflow.operators.blocks import ranges
from kpflow.spaces import Space
from kpflow.states import Linearisation, Site

from .equal_times import OneStep, equal_time_blocks, groups_of, trial_entries, trial_work
from .propagator import Propagator
from .sampled import TrialGram, trial_energy

__all__ = ["MEMORY", "KernelStructure", "NtkStructure", "chosen_sites"]

MEMORY = 2**30
"""Bytes that an exact quantity may take at once; what needs more is not offered."""

CHUNK_BYTES = 2**24
"""Bytes of the trials that are done at once: fewer waste calls, more leave the cache; measured."""

Value = TypeVar("Value")


@final
@dataclasses.dataclass(frozen=True, eq=False)
class NtkStructure(Structure):
    """Of NTK = P K Pᵀ on the states of a recurrent network.

    Trace, diagonal and the partial trace that keeps units need the blocks at equal times only: about B T log T n³
    multiplications for n units, where B T n products take B² T² n (n² + p). Norm and spectrum couple the trials; for
    them products with the smaller side of P C, K = C Cᵀ, are as cheap as anything.

    Args:
        linearisation: The linearised state equation.
        sites: The weight sites that are all of J.
    """

    linearisation: Linearisation
    sites: tuple[Site, ...]

    def trace(self) -> Exact[float] | None:
        return self._exact(self._trace)

    def sampled_trace(self) -> Sampled:
        """E Σ_b ‖C_bᵀ P_bᵀ g_b‖²: trials do not meet in P, so that what K has between trials is left out."""
        return Sampled(Propagator(self.linearisation).T, functools.partial(trial_energy, self.sites))

    def sampled_parts(self) -> SampledParts:
        """The trials, y_b = C_bᵀ P_bᵀ g_b; some together where there are very many."""
        gram = TrialGram(self.sites)
        return SampledParts(Propagator(self.linearisation).T, gram, gram.parts, gram.pair_cost)

    def matrix(self) -> None:
        return None

    def diagonal(self) -> Exact[Tensor] | None:
        return self._exact(self._diagonal)

    def partial_trace(self, axes: tuple[str, ...]) -> Exact[Tensor] | None:
        return self._exact(self._over_units) if axes == ("unit",) else None

    def squared_norm(self) -> None:
        return None

    def spectrum(self) -> None:
        return None

    def _exact(self, compute: Callable[[], Value]) -> Exact[Value] | None:
        """The quantity, unless the Jacobians and what one trial takes are too large; a product has B T (n² + p)."""
        B, T, n = self.linearisation.space.shape
        if 2 * B * T * n * n * self.linearisation.states.element_size() + self._trial_bytes > MEMORY:
            return None
        product = T * (n * n + sum(_gate_rows(site) * site.features.shape[2] for site in self.sites))
        return Exact(n + trial_work(self.sites, n) / product, compute)

    @property
    def _trial_bytes(self) -> int:
        entries = trial_entries(self.sites, self.linearisation.space.shape[2])
        return entries * self.linearisation.states.element_size()

    def _blocks(self) -> Iterator[tuple[slice, int, Tensor]]:
        """Some trials, t, and the blocks `[B, n, n]` of the NTK there."""
        step = OneStep.of(self.linearisation)
        for trials in ranges(len(self.linearisation.states), max(1, CHUNK_BYTES // self._trial_bytes)):
            for t, block in enumerate(equal_time_blocks(step, self.sites, trials)):
                yield trials, t, block

    def _trace(self) -> float:
        return float(self._diagonal().sum())

    def _diagonal(self) -> Float[Tensor, "B T n"]:
        result = torch.empty_like(self.linearisation.states, dtype=torch.float64)
        for trials, t, block in self._blocks():
            result[trials, t] = block.diagonal(dim1=1, dim2=2).double()
        return result

    def _over_units(self) -> Float[Tensor, "n n"]:
        n = self.linearisation.space.shape[2]
        result = self.linearisation.states.new_zeros(n, n, dtype=torch.float64)
        for _, _, block in self._blocks():
            result += block.sum(0, dtype=torch.float64)
        return result


@final
@dataclasses.dataclass(frozen=True, eq=False)
class KernelStructure(Structure):
    """Of K = Σ D (M Mᵀ ⊗ I) Dᵀ, from what the weights see and the slopes, without a product.

    Norm and spectrum are those of each unit together, where no site has mixing.

    Args:
        space: Of the states.
        sites: The weight sites that are all of J.
    """

    space: Space
    sites: tuple[Site, ...]

    def trace(self) -> Exact[float] | None:
        return Exact(1.0, lambda: float(self._diagonal().sum()))

    def sampled_trace(self) -> None:
        return None

    def sampled_parts(self) -> None:
        return None

    def matrix(self) -> None:
        return None

    def diagonal(self) -> Exact[Tensor] | None:
        return Exact(1.0, self._diagonal)

    def partial_trace(self, axes: tuple[str, ...]) -> Exact[Tensor] | None:
        if axes == ("unit",):
            return Exact(1.0, self._over_units)
        return Exact(1.0, self._over_times) if axes == ("time",) else None

    def squared_norm(self) -> Exact[float] | None:
        return self._of_grams(lambda gram: gram.square().sum(), lambda values: float(torch.stack(values).sum()))

    def spectrum(self) -> Exact[Tensor] | None:
        return self._of_grams(
            lambda gram: torch.linalg.eigvalsh(gram).clamp_min(0).flatten(),
            lambda values: torch.cat(values).sort(descending=True).values,
        )

    def _of_grams(
        self, each: Callable[[Tensor], Tensor], together: Callable[[list[Tensor]], Value]
    ) -> Exact[Value] | None:
        """From the smaller Gram matrix of every unit; units do not meet without mixing."""
        if any(site.mixing is not None for site in self.sites):
            return None
        side = max(min(_unit_sides(group)) for group in groups_of(self.sites))
        longest = max(max(_unit_sides(group)) for group in groups_of(self.sites))
        if 8 * side * (2 * side + longest) > MEMORY:
            return None
        product = sum(site.features.numel() * _gate_rows(site) for site in self.sites)
        work = sum(site.slope.shape[4] for site in self.sites) * side * side * (longest + side)
        groups = groups_of(self.sites)

        def compute() -> Value:
            grams = (gram for group in groups for gram in _unit_grams([_compressed(one) for one in group]))
            return together([each(gram) for gram in grams])

        return Exact(work / product, compute)

    def _diagonal(self) -> Float[Tensor, "B T n"]:
        result = self.space.zeros().double()
        for site in self.sites:
            size = torch.linalg.vector_norm(site.features, dim=-1, dtype=torch.float64).square()
            moved = _slope_rows(site).square().sum(2).flatten(2)  # [B, T, R·H]
            result[..., _entries(site)] += size.unsqueeze(-1) * moved
        return result

    def _over_units(self) -> Float[Tensor, "n n"]:
        result = torch.zeros(*2 * self.space.shape[2:], dtype=torch.float64, device=self.space.device)
        for site in self.sites:
            size = torch.linalg.vector_norm(site.features, dim=-1, dtype=torch.float64)
            slope = (size[..., None, None, None] * site.slope).transpose(2, 3).flatten(3).flatten(0, 2)  # [B·T·G, R·H]
            R = site.slope.shape[2]
            same = torch.eye(site.slope.shape[4], dtype=torch.float64, device=slope.device)
            met = same if site.mixing is None else site.mixing.double() @ site.mixing.double().mT
            result[_entries(site), _entries(site)] += (slope.mT @ slope) * met.repeat(R, R)
        return result

    def _over_times(self) -> Float[Tensor, "T T"]:
        T = self.space.shape[1]
        result = torch.zeros(T, T, dtype=torch.float64, device=self.space.device)
        for site in self.sites:
            features, slope = site.features.double(), _slope_rows(site).flatten(2)
            result += ((features @ features.mT) * (slope @ slope.mT)).sum(0)
        return result


def _compressed(site: Site) -> Site:
    """The site with U S of its features U S Vᵀ: V drops out of N Nᵀ, and so do directions that rounding hides.

    What is left out of K is positive and no larger than eps σ_1² times the largest slope, below the rounding of the
    states themselves.
    """
    left, values, _ = torch.linalg.svd(site.features.flatten(0, 1).double(), full_matrices=False)
    keep = values.square() >= torch.finfo(site.features.dtype).eps * values[:1].square()
    features = (left[:, keep] * values[keep]).unflatten(0, site.features.shape[:2])
    return dataclasses.replace(site, features=features)


def _unit_sides(sites: Sequence[Site]) -> tuple[int, int]:
    """The two sides of the factor of K of one unit: state entries, and gates times features."""
    B, T, R = sites[0].slope.shape[:3]
    return B * T * R, sum(site.slope.shape[3] * site.features.shape[2] for site in sites)


def _unit_grams(sites: Sequence[Site]) -> Iterator[Float[Tensor, "m m"]]:
    """Of the factor N of K = N Nᵀ of every unit, rows (trial, time, block) and columns (gate, feature): N Nᵀ or NᵀN."""
    features = [site.features.double() for site in sites]
    for unit in range(sites[0].slope.shape[4]):
        slopes = [site.slope[..., unit].double() for site in sites]  # [B, T, R, G]
        blocks = [torch.einsum("btrg, btf -> btrgf", *pair).flatten(3) for pair in zip(slopes, features, strict=True)]
        factor = torch.cat(blocks, dim=-1).flatten(0, 2)
        yield factor @ factor.mT if factor.shape[0] < factor.shape[1] else factor.mT @ factor


def _gate_rows(site: Site) -> int:
    """G·U: the rows of the weights, and the units of all gates."""
    return site.slope.shape[3] * (site.slope.shape[4] if site.mixing is None else site.mixing.shape[1])


def chosen_sites(linearisation: Linearisation, names: Sequence[str]) -> tuple[Site, ...] | None:
    """The sites with the columns of the parameters `names`, if they are all that these parameters do to the states.

    None where a parameter acts at two sites, or before the recurrence, or in a step that is known by automatic
    differentiation only.
    """
    if linearisation.space.axes != ("trial", "time", "unit"):
        return None
    sites = linearisation.sites().values()
    count = Counter(name for site in sites for name in site.parameters if name in names)
    if not count or max(count.values()) > 1:
        return None
    shapes = {part.name: part.shape for part in linearisation.parameters.parts}
    chosen = tuple(
        dataclasses.replace(
            site,
            features=torch.cat([block for name, block in _columns(site, shapes) if name in names], dim=-1),
            parameters=tuple(name for name in site.parameters if name in names),
        )
        for site in sites
        if any(name in names for name in site.parameters)
    )
    return chosen if _are_all(linearisation, chosen, names) else None


def _columns(site: Site, shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, Tensor]]:
    """The features of a site by parameter."""
    widths = [math.prod(shapes[name][1:]) for name in site.parameters]
    return list(zip(site.parameters, site.features.split(widths, dim=-1), strict=True))


def _are_all(linearisation: Linearisation, sites: tuple[Site, ...], names: Sequence[str]) -> bool:
    """Whether J of these parameters is what the sites say: tried on random changes, which no other J maps alike."""
    space = linearisation.parameters
    generator = torch.Generator(space.device).manual_seed(0)
    noise = torch.randn(space.size, dtype=space.dtype, device=space.device, generator=generator)
    known = {name for site in sites for name in site.parameters}
    change = {name: part * (name in known) for name, part in space.split(noise).items()}
    other = {name: part * (name in names and name not in known) for name, part in space.split(noise).items()}
    whole, rest = linearisation.parameter_jvp(torch.stack([space.join(change), space.join(other)]))
    told = sum(_moved(site, change, linearisation.space) for site in sites)
    tolerance = torch.finfo(space.dtype).eps ** (2 / 3)
    return not bool(rest.any()) and _length(whole - told) <= tolerance * _length(whole)


def _length(block: Tensor) -> float:
    return float(torch.linalg.vector_norm(block, dtype=torch.float64))


def _moved(site: Site, change: dict[str, Tensor], space: Space) -> Tensor:
    """D M dΘᵀ: what a change of the weights of a site does to the states at once."""
    weights = torch.cat([change[name].reshape(len(change[name]), -1) for name in site.parameters], dim=1)  # [G·U, F]
    gates = (site.features @ weights.mT).unflatten(-1, (site.slope.shape[3], -1))  # [B, T, G, U]
    gates = gates if site.mixing is None else gates @ site.mixing.mT
    state = space.zeros()
    state[..., _entries(site)] = (site.slope * gates.unsqueeze(2)).sum(3).flatten(2)
    return state


def _entries(site: Site) -> slice:
    """The state entries that a site moves."""
    return slice(site.offset, site.offset + site.slope[0, 0, :, 0].numel())


def _slope_rows(site: Site) -> Float[Tensor, "B T G R H"]:
    """The slopes in float64, times the size of the mixing's row: how far a random gate moves each entry."""
    slope = site.slope.transpose(2, 3).double()
    return slope if site.mixing is None else slope * site.mixing.double().square().sum(1).sqrt()
