"""Samples of the trace and the size of the NTK without the noise between trials."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.states import Site

__all__ = ["TrialGram", "trial_energy"]

CHUNK_BYTES = 2**22
"""Bytes of the gates of the probes that are done at once, which stay in the cache."""

ROW_BYTES = 2**26
"""Bytes of the vectors whose inner products are taken at once."""

MOST_PARTS = 64
"""Trials that are kept apart; of more, some together are one part. Inner products grow with the square of this."""

PAIR_RATE = 5.0
"""Multiplications of inner products in the time of one of a product with P or C, by measurement on a CPU."""


def trial_energy(sites: Sequence[Site], block: Float[Tensor, "S B T n"]) -> Float[Tensor, " S"]:
    """Σ_b ⟨a_b, K_bb a_b⟩ for a block of a, trial by trial.

    For a = Pᵀ g with E g gᵀ = I the expectation is Σ_b tr(P_b K_bb P_bᵀ) = tr NTK. The variance is 2 Σ_b ‖NTK_bb‖²_F
    (for Gaussian g) and not 2 ‖NTK‖²_F, which has the blocks between trials too: up to B times as much.
    """
    total = torch.zeros(len(block), dtype=torch.float64, device=block.device)
    for site in sites:
        factor = _trial_factor(site.features)
        count = max(1, CHUNK_BYTES // max(1, site.slope[:, :, :, 0].nbytes))
        for gate in range(site.slope.shape[3]):
            sizes = [
                torch.linalg.vector_norm(factor @ _pulled(site, gate, probes), dim=(1, 2, 3), dtype=torch.float64)
                for probes in block.split(count)
            ]
            total += torch.cat(sizes).square()
    return total


def _trial_factor(features: Float[Tensor, "B T F"]) -> Float[Tensor, "B K T"]:
    """N with NᵀN = M_b M_bᵀ in every trial, K = min(T, F)."""
    rows = features.mT
    return torch.linalg.qr(rows, mode="r").R if rows.shape[1] > rows.shape[2] else rows


def _pulled(site: Site, gate: int, block: Float[Tensor, "S B T n"]) -> Float[Tensor, "S B T U"]:
    """Dᵀ a of one gate."""
    slope = site.slope[..., gate, :]  # [B, T, R, H]
    entries = slice(site.offset, site.offset + slope[0, 0].numel())
    rows = block[..., entries].unflatten(-1, slope.shape[2:])  # [S, B, T, R, H]
    gates = (slope * rows).sum(-2) if slope.shape[2] > 1 else slope[:, :, 0] * rows[..., 0, :]
    return gates if site.mixing is None else gates @ site.mixing


@final
class TrialGram:
    """Inner products of the vectors y_b = C_bᵀ a_b of single trials, with K = C Cᵀ.

    For a = Pᵀ g they are the rows of (P C)ᵀ g apart by trials, ⟨y_b, y'_c⟩ = ⟨g_b, NTK_bc g'_c⟩, whose square has the
    expectation ‖NTK_bc‖²_F. More than `MOST_PARTS` trials are put together to no more parts than that. The entries are
    scaled before they are multiplied, so that none leaves float32.

    Args:
        sites: The weight sites that are all of K.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = [dataclasses.replace(site, features=_compressed(site.features)) for site in _merged(sites)]
        self.trials = len(sites[0].features)
        self.together = -(-self.trials // MOST_PARTS)

    @property
    def parts(self) -> int:
        """How many vectors there are for each probe."""
        return -(-self.trials // self.together)

    @property
    def pair_cost(self) -> float:
        """What one pair of probes costs in products with Pᵀ and Cᵀ."""
        _, T, _, _, _ = self.sites[0].slope.shape
        width = max(site.offset + site.slope[0, 0, :, 0].numel() for site in self.sites)
        core = sum(_units(site) * site.features.shape[2] for site in self.sites)
        return self.parts**2 * core / (PAIR_RATE * self.trials * T * (width * width + core))

    def __call__(self, left: Float[Tensor, "S B T n"], right: Float[Tensor, "Z B T n"]) -> Float[Tensor, "S P Z P"]:
        """⟨y_b, y'_c⟩ in float64 of all probes of two blocks of a, which may be the same one."""
        P = self.parts
        total = torch.zeros(len(left) * P, len(right) * P, dtype=torch.float64, device=left.device)
        for site in self.sites:
            for rows, others, unit in self._rows(site, left, right):
                total += (rows @ others.mT).double().mul_(unit)
        return total.view(len(left), P, len(right), P)

    def _rows(self, site: Site, left: Tensor, right: Tensor) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Pieces `[S·P, k]` of y/√unit and y'/√unit of a site."""
        gates = [_scaled(_pulled(site, 0, block)) for block in ((left,) if left is right else (left, right))]
        features, size = _scaled(site.features)
        count = sum(len(values) for values, _ in gates)
        length = max(1, ROW_BYTES // max(1, count * self.trials * features.shape[2] * features.element_size()))
        for start in range(0, gates[0][0].shape[3], length):
            rows = [self._joined(features, values[..., start : start + length]) for values, _ in gates]
            yield rows[0], rows[-1], size**2 * gates[0][1] * gates[-1][1]

    def _joined(self, features: Float[Tensor, "B T F"], gates: Float[Tensor, "S B T k"]) -> Float[Tensor, "SP Fk"]:
        """Mᵀ times the gates of every trial, the trials of a part summed."""
        rows = gates.new_empty(*gates.shape[:2], features.shape[2], gates.shape[3])
        for probe, row in zip(gates, rows, strict=True):  # all at once would copy the features for every probe
            torch.bmm(features.mT, probe, out=row)
        if self.together > 1:
            part = torch.arange(self.trials, device=rows.device) // self.together
            rows = rows.new_zeros(len(rows), self.parts, *rows.shape[2:]).index_add_(1, part, rows)
        return rows.flatten(2).flatten(0, 1)


def _scaled(values: Tensor) -> tuple[Tensor, float]:
    """The values over their largest magnitude, and that; as they are if all are zero."""
    size = float(values.abs().max())
    return (values / size, size) if size else (values, 1.0)


def _merged(sites: Sequence[Site]) -> list[Site]:
    """One gate each; gates with the same slopes are one, with what they see side by side."""
    merged: list[Site] = []
    for gate in (_gate(site, index) for site in sites for index in range(len(site.gates))):
        for place, other in enumerate(merged):
            if _same_gate(gate, other):
                features = torch.cat([other.features, gate.features], dim=-1)
                merged[place] = dataclasses.replace(other, features=features)
                break
        else:
            merged.append(gate)
    return merged


def _gate(site: Site, index: int) -> Site:
    return dataclasses.replace(site, slope=site.slope[..., index : index + 1, :], gates=site.gates[index : index + 1])


def _same_gate(left: Site, right: Site) -> bool:
    same = left.offset == right.offset and left.mixing is right.mixing and left.slope.shape == right.slope.shape
    return same and torch.equal(left.slope, right.slope)


def _compressed(features: Float[Tensor, "B T F"]) -> Float[Tensor, "B T R"]:
    """M V with the leading eigenvectors V of MᵀM, so that M Mᵀ changes by rounding only."""
    wide = features.double().flatten(0, 1)
    values, vectors = torch.linalg.eigh(wide.mT @ wide)
    kept = values > 4 * torch.finfo(features.dtype).eps * values[-1]
    if bool(kept.all()) or not bool(kept.any()):  # all of them, or all zero
        return features
    return (wide @ vectors[:, kept]).to(features.dtype).view(*features.shape[:2], -1)


def _units(site: Site) -> int:
    """U of its gate."""
    return site.slope.shape[4] if site.mixing is None else site.mixing.shape[1]
