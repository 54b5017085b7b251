"""Weights: J = ∂f/∂θ along a trajectory, through weight sites or through automatic differentiation."""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Site
from .derivatives import pullback, pushforward
from .gates import Gates

__all__ = ["AutodiffWeights", "SiteWeights", "WeightSite", "Weights"]

Named = Mapping[str, Tensor]
Pairs = list[tuple[str, Tensor]]
ALL = slice(None)


class Weights(abc.ABC):
    """J of one layer, on blocks of probes: parameters by name `[S, *shape]`, states `[T, B, S, n]`."""

    @abc.abstractmethod
    def jvp(self, parameters: Named) -> Tensor | None:
        """J v, or None where the layer has no trainable parameter."""

    @abc.abstractmethod
    def vjp(self, state: Tensor) -> Pairs:
        """Jᵀ q, for the trainable parameters of the layer; a tied one comes several times, to be added."""

    @abc.abstractmethod
    def sites(self, offset: int) -> dict[str, Site]:
        """The weight sites by name, for a layer whose units start at `offset`."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class WeightSite:
    """Weights that act on the same features m through the same gates: a = [W₁ W₂ … b] m, columns side by side.

    Args:
        features: M, shape `[T, B, F]`, a column of ones for each bias.
        gates: D.
        columns: Name and shape of each parameter, a matrix `(G·U, width)` or a bias `(G·U,)`, in the features' order.
        gate_names: One name a gate.
    """

    features: Float[Tensor, "T B F"]
    gates: Gates
    columns: tuple[tuple[str, tuple[int, ...]], ...]
    gate_names: tuple[str, ...]

    def jvp(self, parameters: Named) -> Tensor:
        """D (M dΘᵀ): one matrix product for all probes."""
        blocks = [parameters[name] for name, _ in self.columns]
        matrix = torch.cat([b.unsqueeze(-1) if b.ndim == 2 else b for b in blocks], dim=-1)  # [S, G·U, F]
        gates = self.features @ matrix.flatten(0, 1).mT  # [T, B, S·G·U]
        return self.gates.to_state(gates.unflatten(-1, matrix.shape[:2]), ALL)

    def vjp(self, state: Tensor) -> Pairs:
        """Mᵀ (Dᵀ q): one matrix product for all probes."""
        gates = self.gates.to_gates(state, ALL)  # [T, B, S, G·U]
        gradient = gates.flatten(2).flatten(0, 1).mT @ self.features.flatten(0, 1)  # [S·G·U, F]
        widths = [math.prod(shape[1:]) for _, shape in self.columns]
        pieces = gradient.unflatten(0, gates.shape[2:]).split(widths, dim=-1)
        return [
            (name, piece.reshape(len(piece), *shape)) for (name, shape), piece in zip(self.columns, pieces, strict=True)
        ]

    def public(self, offset: int) -> Site:
        """The same site with the trial first."""
        return Site(
            features=self.features.transpose(0, 1),
            slope=self.gates.slope.transpose(0, 1),
            offset=offset,
            parameters=tuple(name for name, _ in self.columns),
            gates=self.gate_names,
            mixing=self.gates.mixing,
        )


@final
@dataclasses.dataclass(frozen=True, eq=False)
class SiteWeights(Weights):
    """J as the sum over weight sites: analytic, two matrix products a site."""

    members: Sequence[WeightSite]

    def jvp(self, parameters: Named) -> Tensor | None:
        result = None
        for site in self.members:
            part = site.jvp(parameters)
            result = part if result is None else result.add_(part)
        return result

    def vjp(self, state: Tensor) -> Pairs:
        return [pair for site in self.members for pair in site.vjp(state)]

    def sites(self, offset: int) -> dict[str, Site]:
        named: dict[str, Site] = {}
        for site in self.members:
            name = site.columns[0][0]
            named[f"{name}@{len(named)}" if name in named else name] = site.public(offset)  # tied weights share a name
        return named


@final
@dataclasses.dataclass(frozen=True, eq=False)
class AutodiffWeights(Weights):
    """J of an unknown step, by reverse-mode differentiation of all recorded steps at once.

    Args:
        function: From parameters by name to the next states `[T, B, n]`, at the recorded previous states.
        parameters: The trainable parameters at which it is differentiated.
    """

    function: Callable[[dict[str, Tensor]], Tensor]
    parameters: dict[str, Tensor]

    def jvp(self, parameters: Named) -> Tensor | None:
        if not self.parameters:
            return None
        block = {name: parameters[name] for name in self.parameters}
        return pushforward(self.function, self.parameters)(block).movedim(0, 2)

    def vjp(self, state: Tensor) -> Pairs:
        return list(pullback(self.function, self.parameters)(state.movedim(2, 0)).items()) if self.parameters else []

    def sites(self, offset: int) -> dict[str, Site]:  # noqa: ARG002 - what acts where is not known
        return {}
