"""Gates: how pre-activations move the state at once, along a recorded trajectory.

Blocks of probes are `[S, B, T, n]` all through the recurrent route. A step is a slice of them, so that its products are
one matrix product over all trials and probes, and no block is ever copied into another layout.
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
        slope: Shape `[B, T, R, G, H]`; zero where a trial has ended.
        mixing: Shape `[H, U]`, the matrix between a gate and its units; None for the identity (U = H).
    """

    slope: Float[Tensor, "B T R G H"]
    mixing: Float[Tensor, "H U"] | None = None

    def add_to_state(self, gates: Tensor, times: Times, out: Tensor) -> None:
        """Add D a to `out`: `[S, B, *T, G·U]` to `[S, B, *T, R·H]`."""
        slope = self.slope[:, times]  # [B, *T, R, G, H]
        blocks, count = slope.shape[-3], slope.shape[-2]
        gates = gates.unflatten(-1, (count, -1))
        if self.mixing is not None:
            gates = gates @ self.mixing.mT
        rows = out.unflatten(-1, (blocks, -1))
        for r in range(blocks):
            for g in range(count):
                rows[..., r, :].addcmul_(slope[..., r, g, :], gates[..., g, :])

    def to_gates(self, state: Tensor, times: Times) -> Tensor:
        """Dᵀ z: `[S, B, *T, R·H]` to `[S, B, *T, G·U]`."""
        slope = self.slope[:, times]
        blocks, count, size = slope.shape[-3:]
        rows = state.unflatten(-1, (blocks, -1))
        gates = state.new_empty(*state.shape[:-1], count, size)
        for g in range(count):
            torch.mul(slope[..., 0, g, :], rows[..., 0, :], out=gates[..., g, :])
            for r in range(1, blocks):
                gates[..., g, :].addcmul_(slope[..., r, g, :], rows[..., r, :])
        if self.mixing is not None:
            gates = gates @ self.mixing
        return gates.flatten(-2)
