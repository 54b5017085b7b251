"""Blocks of the NTK at equal times, N_t = NTK[(b, t), (b, t)], by halving the time.

Trials do not meet in P, so that N_t = Σ_{r, s ≤ t} P(t, r) K(r, s) P(t, s)ᵀ needs K inside one trial only. With
one-step maps Φ_t and V_t = Σ_{r < t} P(t, r) K(r, t) + P(t, t) K(t, t)/2 it obeys
N_t = Φ_t N_{t−1} Φ_tᵀ + V_t P(t, t)ᵀ + P(t, t) V_tᵀ. For all r before and t after the middle of a stretch of time,
P(t, r) = Φ_t … Φ_{c+1} P(c, r) with c the last step before it: for the sum over r no matrices need be multiplied, and
what is multiplied afterwards is one matrix for every t. The halves are halved again.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.operators.blocks import block_length, ranges
from kpflow.states import Linearisation, Site

__all__ = ["OneStep", "equal_time_blocks", "groups_of", "trial_entries", "trial_work"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class OneStep:
    """The blocks of P⁻¹ = I − ∂F/∂S, transposed: S_t reads S_{t−1} by A_t, and itself (the layer below) by C_t.

    Args:
        before: Φ(t, t−1)ᵀ = ((I − C_t)⁻¹ A_t)ᵀ, shape `[B, T, n, n]`; zero at t = 0.
        same: P(t, t)ᵀ = (I − C_t)⁻ᵀ; the identity for one layer.
        layered: Whether it is not.
    """

    before: Float[Tensor, "B T n n"]
    same: Float[Tensor, "B T n n"]
    layered: bool

    @staticmethod
    def of(linearisation: Linearisation) -> "OneStep":
        """The blocks, read off P⁻¹ by unit kicks: n products with P⁻¹, or 2 n with kicks at every other step."""
        B, T, n = linearisation.space.shape
        layered = _reads_itself(linearisation)
        before = linearisation.states.new_zeros(B, T, n, n)
        same = torch.eye(n, dtype=before.dtype, device=before.device).expand(B, T, n, n)
        same = same.clone() if layered else same
        every, even, odd = slice(None), slice(0, None, 2), slice(1, None, 2)
        for units in ranges(n, block_length(B * T * n)):
            index = torch.arange(units.start, units.stop, device=before.device)
            for kicked, free in ((even, odd), (odd, even)) if layered else ((every, every),):
                kick = linearisation.space.zeros(len(index))
                kick[index - units.start, :, kicked, index] = 1
                back = linearisation.residual(kick)
                before[:, free, units] = (kick - back)[:, :, free].permute(1, 2, 0, 3)  # [B, T, S, n]
                if layered:
                    same[:, kicked, units] = back[:, :, kicked].permute(1, 2, 0, 3)
        if layered:
            same = torch.linalg.inv(same)
            before = before @ same
        return OneStep(before, same, layered)


def _reads_itself(linearisation: Linearisation) -> bool:
    """Whether some C_t is not zero: a random kick at every other step, so that nothing cancels, comes back changed."""
    states = linearisation.states
    generator = torch.Generator(states.device).manual_seed(0)
    noise = torch.rand(states.shape, dtype=states.dtype, device=states.device, generator=generator)
    kick = linearisation.space.zeros(2)
    kick[0, :, ::2], kick[1, :, 1::2] = noise[:, ::2], noise[:, 1::2]
    back = linearisation.residual(kick)
    return not bool((back == kick)[kick > 0].all())


def groups_of(sites: Sequence[Site]) -> list[list[Site]]:
    """The sites together that move the same entries, every unit by itself; a site with mixing alone."""
    groups: dict[tuple[int, int, int, int], list[Site]] = {}
    for i, site in enumerate(sites):
        _, _, R, _, H = site.slope.shape
        groups.setdefault((site.offset, R, H, -1 if site.mixing is None else i), []).append(site)
    return list(groups.values())


def trial_work(sites: Sequence[Site], width: int) -> float:
    """Multiplications of one trial with `width` state entries."""
    T, total = sites[0].slope.shape[1], 0.0
    for group in groups_of(sites):
        R, G, H = group[0].slope.shape[2:]
        total += width * H * T * T / 2 * (R * R if group[0].mixing is None else G)
    return total + T * width**3 * (1.5 * math.log2(2 * T) + 4)


def trial_entries(sites: Sequence[Site], width: int) -> int:
    """Largest number of entries held for one trial, besides the Jacobians."""
    T, couplings = sites[0].slope.shape[1], 0
    for group in groups_of(sites):
        R, G, H = group[0].slope.shape[2:]
        couplings = max(couplings, H * (T * R) ** 2 // 2 if group[0].mixing is None else 3 * G * T * H * width)
    return 6 * T * width**2 + couplings


def equal_time_blocks(step: OneStep, sites: Sequence[Site], trials: slice) -> Iterator[Float[Tensor, "B n n"]]:
    """N_t of these trials, one step after another."""
    before, same = step.before[trials], step.same[trials]
    summed = _Halves(before, same, [_of_trials(site, trials) for site in sites]).summed()
    both = same.mT @ summed if step.layered else summed
    both = both + both.mT
    block = both[:, 0]
    yield block
    for t in range(1, before.shape[1]):
        block = before[:, t].mT @ block @ before[:, t] + both[:, t]
        yield block


@final
class _Halves:
    """V_tᵀ for every t, by halving: everything is `[B, time, n, n]` and, except Φ_t … Φ_start, transposed."""

    def __init__(self, before: Tensor, same: Tensor, sites: Sequence[Site]) -> None:
        self.before, self.same = before, same
        self.groups = groups_of(sites)
        alone = groups_of([_steps_as_trials(site) for site in sites])
        now = slice(0, 1)
        self.total = _coupled(alone, same.flatten(0, 1).unsqueeze(1), now, now).view_as(before) / 2

    def summed(self) -> Tensor:
        self._stretch(0, self.before.shape[1])
        return self.total

    def _stretch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Add all r < t of the stretch to V_t; give P(last, r)ᵀ and Φ_t … Φ_start for all its r and t."""
        if stop - start == 1:
            return self.same[:, start:stop], self.before[:, start:stop].mT
        middle = (start + stop) // 2
        out_of_left, into_left = self._stretch(start, middle)
        out_of_right, into_right = self._stretch(middle, stop)
        coupled = _coupled(self.groups, out_of_left, slice(start, middle), slice(middle, stop))
        self.total[:, middle:stop] += coupled @ into_right.mT
        out_of_left = (out_of_left.flatten(1, 2) @ into_right[:, -1].mT).view_as(out_of_left)
        into_right = (into_right.flatten(1, 2) @ into_left[:, -1]).view_as(into_right)
        return torch.cat([out_of_left, out_of_right], dim=1), torch.cat([into_left, into_right], dim=1)


def _of_trials(site: Site, trials: slice) -> Site:
    return dataclasses.replace(site, features=site.features[trials], slope=site.slope[trials])


def _steps_as_trials(site: Site) -> Site:
    """Every step as a trial of its own."""
    features, slope = (value.flatten(0, 1).unsqueeze(1) for value in (site.features, site.slope))
    return dataclasses.replace(site, features=features, slope=slope)


def _coupled(groups: Sequence[Sequence[Site]], out: Tensor, left: slice, right: slice) -> Tensor:
    """Σ_r K(t, r) out_r over the left times, for all right times t: `[B, time, n, n]`."""
    result = out.new_zeros(len(out), right.stop - right.start, *out.shape[2:])
    for group in groups:
        _, _, R, _, H = group[0].slope.shape
        entries = slice(group[0].offset, group[0].offset + R * H)
        couple = _by_unit if group[0].mixing is None else _mixed
        result[:, :, entries] += couple(group, out[:, :, entries], left, right)
    return result


def _by_unit(group: Sequence[Site], out: Tensor, left: slice, right: slice) -> Tensor:
    """Where K couples no units: a matrix over times and blocks for each."""
    first, *others = group
    kernel = sum((_unit_kernels(site, left, right) for site in others), start=_unit_kernels(first, left, right))
    _, _, R, _, H = first.slope.shape
    rows = out.unflatten(2, (R, H)).permute(0, 3, 1, 2, 4).flatten(2, 3)  # [B, H, T·R, n]
    return (kernel @ rows).unflatten(2, (-1, R)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _unit_kernels(site: Site, left: slice, right: slice) -> Float[Tensor, "B H tR sR"]:
    """K of every unit, ⟨m_t, m_s⟩ Σ_g slope[t, i, g, u] slope[s, j, g, u], at right times t and left times s."""
    R = site.slope.shape[2]
    rows, columns = (site.slope[:, times].permute(0, 4, 1, 2, 3).flatten(2, 3) for times in (right, left))
    gram = site.features[:, right] @ site.features[:, left].mT
    return (rows @ columns.mT).mul_(gram.repeat_interleave(R, 1).repeat_interleave(R, 2).unsqueeze(1))


def _mixed(group: Sequence[Site], out: Tensor, left: slice, right: slice) -> Tensor:
    """Of one site whose gates move all units: through its gates, K(t, r) = ⟨m_t, m_r⟩ D_t D_rᵀ."""
    (site,) = group
    _, _, R, G, H = site.slope.shape
    slope = site.slope.unsqueeze(-1)  # [B, T, R, G, H, 1]
    gates = (slope[:, left] * out.unflatten(2, (R, 1, H))).sum(2)  # [B, T, G, H, n]
    gram = site.features[:, right] @ site.features[:, left].mT
    moved = (gram @ gates.flatten(2)).unflatten(2, (G, H, -1))
    moved = moved if site.mixing is None else site.mixing @ (site.mixing.mT @ moved)
    return (slope[:, right] * moved.unsqueeze(2)).sum(3).flatten(2, 3)
