"""Forward sensitivities: S_t = A_t S_{t−1} + N_t, with K = N Nᵀ for every trial, hence NTK = S Sᵀ.

Trials do not meet in P, so that the part of the NTK inside one trial needs only a factor N of K inside this trial.
Where a gate moves no unit but its own, K couples no units, and its Cholesky factor is a small one for every unit.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.operators.blocks import block_length, ranges
from kpflow.states import Linearisation, Site

__all__ = ["OneStep", "Part", "columns_of", "groups_of", "parts_of", "sensitivities"]

JITTER = 32
"""Times m eps: what is added to the unit diagonal of an m × m matrix that may be singular, before it is factored; some
times the error of a Cholesky factorisation."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class OneStep:
    """The blocks of P⁻¹ = I − ∂F/∂S, transposed: S_t reads S_{t−1} by A_t, and itself (the layer below) by C_t.

    Args:
        before: ((I − C_t)⁻¹ A_t)ᵀ, shape `[B, T, n, n]`; zero at t = 0.
        same: (I − C_t)⁻ᵀ, or None where it is the identity: one layer.
    """

    before: Float[Tensor, "B T n n"]
    same: Float[Tensor, "B T n n"] | None

    @staticmethod
    def of(linearisation: Linearisation) -> "OneStep":
        """The blocks, read off P⁻¹ by unit kicks at every other step: 2 n products with P⁻¹."""
        B, T, n = linearisation.space.shape
        before = linearisation.states.new_zeros(B, T, n, n)
        same = torch.zeros_like(before) if _reads_itself(linearisation) else None
        for units in ranges(n, block_length(B * T * n)):
            for kicked, free in ((0, 1), (1, 0)):
                index = torch.arange(units.start, units.stop, device=before.device)
                kick = linearisation.space.zeros(len(index))
                kick[index - units.start, :, kicked::2, index] = 1
                rows = linearisation.residual(kick).permute(1, 2, 0, 3)  # [B, T, S, n]
                before[:, free::2, units] = -rows[:, free::2]
                if same is not None:
                    same[:, kicked::2, units] = rows[:, kicked::2]
        if same is None:
            return OneStep(before, None)
        same = torch.linalg.inv(same)
        return OneStep(before @ same, same)


def _reads_itself(linearisation: Linearisation) -> bool:
    """Whether some C_t is not zero: a random kick at every other step, so that nothing cancels, comes back changed."""
    states = linearisation.states
    generator = torch.Generator(states.device).manual_seed(0)
    noise = torch.rand(states.shape, dtype=states.dtype, device=states.device, generator=generator)
    kick = linearisation.space.zeros(2)
    kick[0, :, ::2], kick[1, :, 1::2] = noise[:, ::2], noise[:, 1::2]
    back = linearisation.residual(kick)
    return not bool((back == kick)[kick > 0].all())


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A part of K inside each trial as N Nᵀ: N_t[r·H + h, (k, u)] = factor[t, r, k, h] mixing[h, u].

    Args:
        factor: Shape `[B, T, R, K, H]`.
        offset: Where the R·H state entries start.
        mixing: Shape `[H, U]`; None for the identity.
        triangular: Whether column k vanishes before step k // R.
    """

    factor: Float[Tensor, "B T R K H"]
    offset: int
    mixing: Float[Tensor, "H U"] | None
    triangular: bool

    def width(self, t: int) -> int:
        """How many k there are up to step t."""
        _, _, R, K, _ = self.factor.shape
        return min(K, (t + 1) * R) if self.triangular else K

    def add(self, t: int, state: Float[Tensor, "B K U n"]) -> None:
        """Add N_t to the transposed sensitivities."""
        H = self.factor.shape[-1]
        for r, rows in enumerate(self.factor[:, t, :, : state.shape[1]].unbind(1)):  # [B, K, H]
            start = self.offset + r * H
            moved = state[..., start : start + H]
            if self.mixing is None:
                moved.diagonal(dim1=2, dim2=3).add_(rows)
            else:
                moved += rows.unsqueeze(2) * self.mixing.mT


def groups_of(sites: Sequence[Site]) -> list[list[Site]]:
    """The sites together that move the same entries, every unit by itself; a site with mixing alone."""
    groups: dict[tuple[int, int, int, int], list[Site]] = {}
    for i, site in enumerate(sites):
        _, _, R, _, H = site.slope.shape
        groups.setdefault((site.offset, R, H, -1 if site.mixing is None else i), []).append(site)
    return list(groups.values())


def columns_of(sites: Sequence[Site]) -> int:
    """Σ_t of the columns of S_t over all parts: the cost of a pass for one trial, in products of A_t with a vector."""
    total = 0
    for group in groups_of(sites):
        _, T, R, _, H = group[0].slope.shape
        if _triangle_pays(group):
            total += H * R * T * (T + 1) // 2
        else:
            units = H if group[0].mixing is None else group[0].mixing.shape[1]
            total += T * units * _feature_columns(group)
    return total


def parts_of(sites: Sequence[Site], trials: slice) -> list[Part]:
    """K of these sites inside the trials, in the form with the fewest columns."""
    parts = []
    for group in groups_of(sites):
        if _triangle_pays(group):
            parts.append(_triangular(group, trials))
        else:
            parts += [_by_features(site, trials) for site in group]
    return parts


def _triangle_pays(sites: Sequence[Site]) -> bool:
    """Whether a Cholesky factor, half empty, has fewer columns on average than the features."""
    _, T, R, _, _ = sites[0].slope.shape
    return sites[0].mixing is None and 2 * _feature_columns(sites) >= (T + 1) * R


def _feature_columns(sites: Sequence[Site]) -> int:
    """Gates times features, or times steps where there are fewer."""
    return sum(site.slope.shape[3] * min(site.features.shape[1:]) for site in sites)


def _by_features(site: Site, trials: slice) -> Part:
    """Columns for every gate and every direction that the features take in the trial."""
    features, slope = site.features[trials], site.slope[trials]
    if features.shape[2] > features.shape[1]:
        features = torch.linalg.qr(features.double().mT, mode="r").R.mT.to(features)  # [B, T, T]
    factor = torch.einsum("btrgh, btf -> btrgfh", slope, features)
    return Part(factor.flatten(3, 4), site.offset, site.mixing, triangular=False)


def _triangular(sites: Sequence[Site], trials: slice) -> Part:
    """Cholesky factor of K of every unit, K_u[(t, i), (s, j)] = Σ ⟨m_t, m_s⟩ slope[t, i, g, u] slope[s, j, g, u]."""
    lower = _cholesky(sum((_unit_kernels(site, trials) for site in sites[1:]), start=_unit_kernels(sites[0], trials)))
    factor = lower.unflatten(2, sites[0].slope.shape[1:3]).permute(0, 2, 3, 4, 1)  # [B, T, R, T·R, H]
    return Part(factor.to(sites[0].slope), sites[0].offset, None, triangular=True)


def _unit_kernels(site: Site, trials: slice) -> Float[Tensor, "B H TR TR"]:
    """What a site adds to K of every unit."""
    slope, features = site.slope[trials].double(), site.features[trials].double()
    rows = slope.permute(0, 4, 1, 2, 3).flatten(2, 3)  # [B, H, T·R, G]
    R = slope.shape[2]
    gram = (features @ features.mT).repeat_interleave(R, 1).repeat_interleave(R, 2)
    return (rows @ rows.mT).mul_(gram.unsqueeze(1))


def _cholesky(matrix: Float[Tensor, "*B m m"]) -> Float[Tensor, "*B m m"]:
    """L with L Lᵀ = matrix, each entry up to rounding of its row and column, for matrices that may be singular.

    Each diagonal entry is raised by a few roundings of itself: an entry that is zero, as before the first input, stays
    zero, whatever P makes of it.
    """
    m, eps = matrix.shape[-1], torch.finfo(matrix.dtype).eps
    size = matrix.diagonal(dim1=-2, dim2=-1).sqrt().unsqueeze(-1)
    inverse = torch.where(size > 0, 1 / size, 0.0)
    scaled = matrix * inverse * inverse.mT
    scaled.diagonal(dim1=-2, dim2=-1).copy_(torch.full_like(size[..., 0], 1 + JITTER * m * eps))
    return size * torch.linalg.cholesky(scaled)


def sensitivities(step: OneStep, part: Part, trials: slice) -> Iterator[Float[Tensor, "B C n"]]:
    """S_tᵀ for t = 0, 1, …, shape `[B, columns, n]`, of these trials; each is written over two steps later."""
    B, T, n = step.before[trials].shape[:3]
    units = part.factor.shape[-1] if part.mixing is None else part.mixing.shape[1]
    now, last = part.factor.new_empty(2, B, part.width(T) * units, n)
    known = 0
    for t in range(T):
        width = part.width(t) * units
        now[:, known:width] = 0
        if t:
            torch.bmm(last[:, :known], step.before[trials, t], out=now[:, :known])
        if step.same is None:
            part.add(t, now[:, :width].unflatten(1, (-1, units)))
        else:
            fresh = torch.zeros_like(now[:, :width])
            part.add(t, fresh.unflatten(1, (-1, units)))
            now[:, :width].baddbmm_(fresh, step.same[trials, t])
        yield now[:, :width]
        now, last, known = last, now, width
