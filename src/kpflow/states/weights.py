"""Weights: J = ∂f/∂θ along a trajectory, through weight sites or through automatic differentiation."""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Site
from .channels import Channel, core_channels, site_channels
from .derivatives import pullback, pushforward
from .gates import Gates

__all__ = ["AutodiffWeights", "SiteWeights", "WeightSite", "Weights", "flattened", "unflattened"]

Named = Mapping[str, Tensor]
Pairs = list[tuple[str, Tensor]]


class Weights(abc.ABC):
    """J of one layer, on blocks of probes: parameters by name `[S, *shape]`, states `[S, B, T, n]`.

    Its core is a factor C with C Cᵀ = J Jᵀ, from a space that may be smaller than that of the parameters.
    """

    @property
    @abc.abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the trainable parameters; a tied one comes several times."""

    @abc.abstractmethod
    def add_jvp(self, parameters: Named, out: Tensor) -> None:
        """Add J v to `out`."""

    @abc.abstractmethod
    def vjp(self, state: Tensor) -> Pairs:
        """Jᵀ q, for the trainable parameters of the layer; a tied one comes several times, to be added."""

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Bytes that its tensors take."""

    @property
    @abc.abstractmethod
    def core_size(self) -> int:
        """Entries of what C takes."""

    @abc.abstractmethod
    def add_core_jvp(self, core: Tensor, out: Tensor) -> None:
        """Add C c to `out`, for c `[S, core_size]`."""

    @abc.abstractmethod
    def core_vjp(self, state: Tensor) -> Tensor:
        """Cᵀ q."""

    @abc.abstractmethod
    def sites(self, offset: int) -> dict[str, Site]:
        """The weight sites by name, for a layer whose units start at `offset`."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class WeightSite:
    """Weights that act on the same features m through the same gates: a = [W₁ W₂ … b] m, columns side by side.

    Args:
        features: M, shape `[B, T, F]`, a column of ones for each bias.
        gates: D.
        columns: Name and shape of each parameter, a matrix `(G·U, width)` or a bias `(G·U,)`, in the features' order.
        gate_names: One name a gate.
    """

    features: Float[Tensor, "B T F"]
    gates: Gates
    columns: tuple[tuple[str, tuple[int, ...]], ...]
    gate_names: tuple[str, ...]

    @functools.cached_property
    def channels(self) -> list[Channel]:
        """One channel a gate."""
        return site_channels(self.features, self.gates)

    def add_jvp(self, parameters: Named, out: Tensor) -> None:
        """D (M dΘᵀ)."""
        blocks = [parameters[name] for name, _ in self.columns]
        matrix = torch.cat([b.unsqueeze(-1) if b.ndim == 2 else b for b in blocks], dim=-1)  # [S, G·U, F]
        for channel, part in zip(self.channels, matrix.chunk(len(self.channels), dim=1), strict=True):
            channel.push(part.mT, out)

    def vjp(self, state: Tensor) -> Pairs:
        """Mᵀ (Dᵀ q)."""
        gradient = torch.cat([channel.pull(state) for channel in self.channels], dim=2)  # [S, F, G·U]
        widths = [math.prod(shape[1:]) for _, shape in self.columns]
        pieces = gradient.mT.split(widths, dim=-1)
        return [
            (name, piece.reshape(len(piece), *shape)) for (name, shape), piece in zip(self.columns, pieces, strict=True)
        ]

    def public(self, offset: int) -> Site:
        """The same site for the user."""
        return Site(
            features=self.features,
            slope=self.gates.slope,
            offset=offset,
            parameters=tuple(name for name, _ in self.columns),
            gates=self.gate_names,
            mixing=self.gates.mixing,
        )


@final
@dataclasses.dataclass(frozen=True, eq=False)
class SiteWeights(Weights):
    """J as the sum over weight sites: analytic, one matrix product a gate and direction."""

    members: Sequence[WeightSite]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for site in self.members for name, _ in site.columns)

    def add_jvp(self, parameters: Named, out: Tensor) -> None:
        for site in self.members:
            site.add_jvp(parameters, out)

    def vjp(self, state: Tensor) -> Pairs:
        return [pair for site in self.members for pair in site.vjp(state)]

    @property
    def nbytes(self) -> int:
        return sum(site.features.nbytes + site.gates.slope.nbytes for site in self.members)

    @property
    def core_size(self) -> int:
        return sum(channel.size for channel in self._core)

    def add_core_jvp(self, core: Tensor, out: Tensor) -> None:
        parts = core.split([channel.size for channel in self._core], dim=1)
        for channel, part in zip(self._core, parts, strict=True):
            channel.push(part.unflatten(1, channel.shape), out)

    def core_vjp(self, state: Tensor) -> Tensor:
        pulled = [channel.pull(state).flatten(1) for channel in self._core]  # [S, F·U]
        return torch.cat([state.new_zeros(len(state), 0), *pulled], dim=1)

    def sites(self, offset: int) -> dict[str, Site]:
        named: dict[str, Site] = {}
        for site in self.members:
            name = site.columns[0][0]
            named[f"{name}@{len(named)}" if name in named else name] = site.public(offset)  # tied weights share a name
        return named

    @functools.cached_property
    def _core(self) -> list[Channel]:
        return core_channels([channel for site in self.members for channel in site.channels])


@final
@dataclasses.dataclass(frozen=True, eq=False)
class AutodiffWeights(Weights):
    """J of an unknown step, by reverse-mode differentiation of all recorded steps at once.

    Args:
        function: From parameters by name to the next states `[B, T, n]`, at the recorded previous states.
        parameters: The trainable parameters at which it is differentiated.
    """

    function: Callable[[dict[str, Tensor]], Tensor]
    parameters: dict[str, Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.parameters)

    def add_jvp(self, parameters: Named, out: Tensor) -> None:
        if self.parameters:
            block = {name: parameters[name] for name in self.parameters}
            out.add_(pushforward(self.function, self.parameters)(block))

    def vjp(self, state: Tensor) -> Pairs:
        return list(pullback(self.function, self.parameters)(state).items()) if self.parameters else []

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in self.parameters.values())

    @property
    def core_size(self) -> int:
        return sum(value.numel() for value in self.parameters.values())

    def add_core_jvp(self, core: Tensor, out: Tensor) -> None:
        self.add_jvp(unflattened(core, self.parameters), out)

    def core_vjp(self, state: Tensor) -> Tensor:
        return flattened(self.vjp(state), state)

    def sites(self, offset: int) -> dict[str, Site]:  # noqa: ARG002 - what acts where is not known
        return {}


def flattened(pairs: Pairs, like: Tensor) -> Tensor:
    """`[S, *shape]` by name as one `[S, P]`; `like` has as many probes."""
    rows = (value.reshape(len(value), math.prod(value.shape[1:])) for _, value in pairs)
    return torch.cat([like.new_zeros(len(like), 0), *rows], dim=1)


def unflattened(block: Tensor, like: Named) -> dict[str, Tensor]:
    """The inverse: `[S, P]` by name, with the shapes of `like`."""
    pieces = block.split([value.numel() for value in like.values()], dim=1)
    return {
        name: piece.reshape(len(block), *value.shape) for (name, value), piece in zip(like.items(), pieces, strict=True)
    }
