"""Gates: how pre-activations move the state at once, along a recorded trajectory.

Inside the recurrent route time comes first and the unit last: states are `[T, B, n]`, blocks of probes `[T, B, S, n]`,
so that every step is one matrix product over all trials and probes.
"""

import dataclasses
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Gates", "Times"]

Times = int | slice
"""A step or a range of steps: what it indexes keeps its time axis for a range and loses it for a step."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Gates:
    """D: the derivative of the state with respect to the gates, at fixed previous state.

    dz[r·H + h] = Σ_g slope[r, g, h] · (mixing da_g)[h], for R blocks of H state entries and G gates of U units.

    Args:
        slope: Shape `[T, B, R, G, H]`; zero where a trial has ended.
        mixing: Shape `[H, U]`, the matrix between a gate and its units; None for the identity (U = H).
    """

    slope: Float[Tensor, "T B R G H"]
    mixing: Float[Tensor, "H U"] | None = None

    def to_state(self, gates: Tensor, times: Times) -> Tensor:
        """D a: `[*T, B, S, G·U]` to `[*T, B, S, R·H]`."""
        slope = self.slope[times].unsqueeze(-4)  # [*T, B, 1, R, G, H]
        blocks, count = slope.shape[-3], slope.shape[-2]
        gates = gates.unflatten(-1, (count, -1))
        if self.mixing is not None:
            gates = gates @ self.mixing.mT
        rows = []
        for r in range(blocks):
            row = slope[..., r, 0, :] * gates[..., 0, :]
            for g in range(1, count):
                row = row.addcmul_(slope[..., r, g, :], gates[..., g, :])
            rows.append(row)
        return rows[0] if blocks == 1 else torch.cat(rows, dim=-1)

    def to_gates(self, state: Tensor, times: Times) -> Tensor:
        """Dᵀ z: `[*T, B, S, R·H]` to `[*T, B, S, G·U]`."""
        slope = self.slope[times].unsqueeze(-4)
        blocks, count = slope.shape[-3], slope.shape[-2]
        rows = state.unflatten(-1, (blocks, -1))
        gates = state.new_empty(*state.shape[:-1], count, slope.shape[-1])
        for g in range(count):
            torch.mul(slope[..., 0, g, :], rows[..., 0, :], out=gates[..., g, :])
            for r in range(1, blocks):
                gates[..., g, :].addcmul_(slope[..., r, g, :], rows[..., r, :])
        if self.mixing is not None:
            gates = gates @ self.mixing
        return gates.flatten(-2)
