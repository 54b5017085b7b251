"""Samples of the trace of the NTK without the noise between trials."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.states import Site

__all__ = ["trial_energy"]

CHUNK_BYTES = 2**22
"""Bytes of the gates of the probes that are done at once, which stay in the cache."""


def trial_energy(sites: Sequence[Site], block: Float[Tensor, "S B T n"]) -> Float[Tensor, " S"]:
    """Σ_b ⟨a_b, K_bb a_b⟩ for a block of a, trial by trial.

    For a = Pᵀ g with E g gᵀ = I the expectation is Σ_b tr(P_b K_bb P_bᵀ) = tr NTK. The variance is 2 Σ_b ‖NTK_bb‖²_F
    (for Gaussian g) and not 2 ‖NTK‖²_F, which has the blocks between trials too: up to B times as much.
    """
    total = torch.zeros(len(block), dtype=torch.float64, device=block.device)
    for site in sites:
        factor = _trial_factor(site.features)
        for gate in range(site.slope.shape[3]):
            total += _gate_energy(site, gate, factor, block)
    return total


def _trial_factor(features: Float[Tensor, "B T F"]) -> Float[Tensor, "B K T"]:
    """N with NᵀN = M_b M_bᵀ in every trial, K = min(T, F)."""
    rows = features.mT
    return torch.linalg.qr(rows, mode="r").R if rows.shape[1] > rows.shape[2] else rows


def _gate_energy(
    site: Site, gate: int, factor: Float[Tensor, "B K T"], block: Float[Tensor, "S B T n"]
) -> Float[Tensor, " S"]:
    """‖M_bᵀ (Dᵀ a)_b‖² of one gate, summed over the trials, a few probes at a time."""
    slope = site.slope[..., gate, :]  # [B, T, R, H]
    entries = slice(site.offset, site.offset + slope[0, 0].numel())
    count = max(1, CHUNK_BYTES // max(1, slope.nbytes))
    results = []
    for probes in block[..., entries].split(count):
        rows = probes.unflatten(-1, slope.shape[2:])  # [S, B, T, R, H]
        gates = (slope * rows).sum(-2) if slope.shape[2] > 1 else slope[:, :, 0] * rows[..., 0, :]
        gates = gates if site.mixing is None else gates @ site.mixing
        results.append(torch.linalg.vector_norm(factor @ gates, dim=(1, 2, 3), dtype=torch.float64).square())
    return torch.cat(results)
