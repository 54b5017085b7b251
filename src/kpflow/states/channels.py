"""Channels: what one gate makes of the features that its weights see, and the smallest factor of K made of channels."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from .gates import Gates

__all__ = ["Channel", "core_channels", "site_channels"]

CHUNK_ENTRIES = 2**19
"""Entries of the states of some probes that are multiplied by slopes and summed at a time: 2 MB in float32, which stay
in the cache."""

CORE_TOLERANCE = 4.0
"""Eigenvalues of a Gram matrix M Mᵀ below so many rounding units of the largest are left out of a core."""

WORTHWHILE = 0.9
"""A core is compressed where its rank is below this part of its features."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Channel:
    """D (M ⊗ I) of one gate with U units: coefficients c `[F, U]` move the state by D (M c).

    Args:
        features: M, shape `[B·T, F]`.
        slope: D's diagonal, how the gate moves R blocks of U state entries, shape `[B·T, R, U]`; None for the identity.
        mixing: Shape `[H, U]`, a constant matrix from the gate's units to the state; None for the identity. It goes
            with the slope None.
        units: U.
    """

    features: Float[Tensor, "N F"]
    slope: Float[Tensor, "N R U"] | None
    mixing: Float[Tensor, "H U"] | None
    units: int

    @property
    def shape(self) -> tuple[int, int]:
        """(F, U)."""
        return self.features.shape[1], self.units

    @property
    def size(self) -> int:
        """F·U."""
        return self.features.shape[1] * self.units

    def pull(self, state: Float[Tensor, "S B T n"]) -> Float[Tensor, "S F U"]:
        """Mᵀ (Dᵀ q), a few probes at a time."""
        rows = state.flatten(1, 2)  # [S, B·T, n]
        if self.mixing is not None:
            rows = rows @ self.mixing
        if self.slope is None:
            return self.features.mT @ rows
        result = rows.new_empty(len(rows), *self.shape)
        for probes in self._chunks(rows):
            part = self.slope[:, 0] * rows[probes, :, self._block(0)]
            for r in range(1, self.slope.shape[1]):
                part.addcmul_(self.slope[:, r], rows[probes, :, self._block(r)])
            result[probes] = self.features.mT @ part
        return result

    def push(self, coefficients: Float[Tensor, "S F U"], out: Float[Tensor, "S B T n"]) -> None:
        """Add D (M c) to `out`."""
        rows = out.view(len(out), -1, out.shape[3])
        for probes in self._chunks(rows):
            gates = self.features @ coefficients[probes]  # [S, B·T, U]
            if self.mixing is not None:
                gates = gates @ self.mixing.mT
            if self.slope is None:
                rows[probes].add_(gates)
                continue
            for r in range(self.slope.shape[1]):
                rows[probes, :, self._block(r)].addcmul_(self.slope[:, r], gates)

    def _chunks(self, rows: Tensor) -> Iterator[slice]:
        """Probes that are done together."""
        count = max(1, CHUNK_ENTRIES // max(1, rows.shape[1] * self.units))
        return (slice(start, start + count) for start in range(0, len(rows), count))

    def _block(self, r: int) -> slice:
        return slice(r * self.units, (r + 1) * self.units)


def site_channels(features: Float[Tensor, "B T F"], gates: Gates) -> list[Channel]:
    """The channels of a weight site, a gate each; a slope that is the same for all units goes into the features."""
    rows = features.flatten(0, 1)
    channels = []
    for slope in gates.slope.flatten(0, 1).unbind(2):  # [B·T, R, H]
        units = slope.shape[2] if gates.mixing is None else gates.mixing.shape[1]
        if slope.shape[1] == 1 and bool((slope == slope[..., :1]).all()):
            channels.append(Channel(slope[:, 0, :1] * rows, None, gates.mixing, units))
        elif gates.mixing is None:
            channels.append(Channel(rows, slope.contiguous(), None, units))
        else:
            raise ValueError("A gate with a mixing matrix must have the same slope for all units.")
    return channels


def core_channels(channels: Sequence[Channel]) -> list[Channel]:
    """The smallest channels with the same Σ D (M Mᵀ ⊗ I) Dᵀ, to rounding.

    Gates with the same slopes are one, their features side by side; then M is replaced by M V, with V the leading
    eigenvectors of MᵀM.
    """
    groups: list[list[Channel]] = []
    for channel in channels:
        group = next((g for g in groups if _same_gate(g[0], channel)), None)
        if group is None:
            groups.append([channel])
        else:
            group.append(channel)
    merged = [dataclasses.replace(g[0], features=torch.cat([c.features for c in g], dim=1)) for g in groups]
    return [dataclasses.replace(channel, features=_compressed(channel.features)) for channel in merged]


def _same_gate(left: Channel, right: Channel) -> bool:
    if left.mixing is not right.mixing or left.units != right.units:
        return False
    if left.slope is None or right.slope is None:
        return left.slope is right.slope
    return torch.equal(left.slope, right.slope)


def _compressed(features: Float[Tensor, "N F"]) -> Float[Tensor, "N R"]:
    """M V with ‖M Mᵀ − M V Vᵀ Mᵀ‖₂ of the order of rounding; M itself where that would save little."""
    wide = features.double()
    values, vectors = torch.linalg.eigh(wide.mT @ wide)
    kept = values > CORE_TOLERANCE * torch.finfo(features.dtype).eps * values[-1]
    if int(kept.sum()) > WORTHWHILE * features.shape[1]:
        return features
    return (wide @ vectors[:, kept]).to(features.dtype)
