"""The recurrent route: a stack of layers along a recorded trajectory, and its scans over time.

The state equation reads z[ℓ, t] = f_ℓ(z[ℓ, t−1], z[ℓ−1, t]): a layer sees the layer below at the same step. Hence
P⁻¹ q = q − A q[ℓ, t−1] − C q[ℓ−1, t], and P and Pᵀ are one scan over time a layer, from the bottom or from the top.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.spaces import Space

from .base import Readout, Site
from .channels import CHUNK_ENTRIES
from .derivatives import pullback, pushforward
from .gates import Gates
from .piecewise import PiecewiseLinearisation
from .transitions import GatedTransition, Transition
from .weights import Weights, flattened, unflattened

__all__ = ["InputMap", "Layer", "RecurrentLinearisation", "Upstream"]

ALL = slice(None)

MEMORY = 4 * 2**30
"""Bytes that the Jacobians and a product may take, if the user does not say."""

PIECE_BYTES = 24 * 2**20
"""Size of the states of the probes that are done at once: smaller pieces waste calls, larger ones are up to 1.5 times
slower, because buffers beyond 32 MiB are given back to the system after every use (measured on three networks)."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class InputMap:
    """C = ∂f/∂x, the derivative of a step with respect to what the layer reads at the same time: D W.

    Args:
        weight: W, shape `[G·U, I]`.
        gates: D.
    """

    weight: Float[Tensor, "GU I"]
    gates: Gates

    def add_product(self, inputs: Tensor, out: Tensor) -> None:
        """Add C dx to `out`: `[S, B, T, I]` to `[S, B, T, n]`."""
        self.gates.add_to_state(inputs @ self.weight.mT, ALL, out)

    def adjoint(self, state: Tensor) -> Tensor:
        """Cᵀ q."""
        return self.gates.to_gates(state, ALL) @ self.weight


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One recurrent layer along its trajectory.

    Args:
        states: z, shape `[T, B, n]`.
        transition: A = ∂f/∂z.
        weights: J = ∂f/∂θ.
        inputs: C = ∂f/∂x; None where it is not known.
        size: How many leading state entries the layer above and the read-out see (the h of h‖c).
    """

    states: Float[Tensor, "T B n"]
    transition: Transition
    weights: Weights
    inputs: InputMap | None
    size: int

    @property
    def width(self) -> int:
        """n."""
        return self.states.shape[-1]

    def within(self, memory: int) -> "Layer":
        """The same layer in its fastest form that takes at most `memory` bytes more."""
        if isinstance(self.transition, GatedTransition):
            return dataclasses.replace(self, transition=self.transition.within(memory))
        return self


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Upstream:
    """What happens before the recurrence and depends on parameters: an encoder, a trainable initial state.

    Args:
        function: From parameters by name to `{"inputs": [T, B, I], "initial": [B, n]}`, or the one of them that moves.
        parameters: The parameters that move them.
        moves: Which of "inputs" and "initial" the function gives.
    """

    function: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    parameters: dict[str, Tensor]
    moves: frozenset[str]

    def jvp(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Blocks of tangents `[S, T, B, I]` and `[S, B, n]`."""
        block = {name: parameters[name] for name in self.parameters}
        return pushforward(self.function, self.parameters)(block)

    def vjp(self, cotangents: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
        """The transpose of `jvp`."""
        return list(pullback(self.function, self.parameters)(cotangents).items())


@final
class RecurrentLinearisation(PiecewiseLinearisation):
    """The linearised state equation of a recurrent network; made by `kpflow.linearise`.

    Args:
        layers: From the bottom to the top; the state is their states side by side.
        parameters: Space of the trainable parameters.
        upstream: What depends on parameters before the recurrence, if anything does.
        readout: The map to the model's outputs, if there is one.
        memory: Bytes that the Jacobians and a product may take, beside its block and its result.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        parameters: Space,
        upstream: Upstream | None = None,
        readout: Readout | None = None,
        memory: int = MEMORY,
    ) -> None:
        self.layers = self.unformed = tuple(layers)
        self.parameters = parameters
        self._memory = memory
        self.readout = readout
        self._upstream = upstream
        self.states = torch.cat([layer.states for layer in self.layers], dim=-1).transpose(0, 1).contiguous()
        axes = ("trial", "time", "unit")
        self.space = Space.of(self.states.shape, axes, self.states.dtype, self.states.device)
        spare = self._spare(memory)
        self.layers = tuple(layer.within(spare // (2 * len(layers))) for layer in layers)
        self._piece = max(1, min(PIECE_BYTES // self.states.nbytes, 1 + self._spare(memory) // self._probe_bytes))

    def with_layers(self, layers: Sequence[Layer]) -> "RecurrentLinearisation":
        """The same around other layers; `unformed` are those of this one as they were given."""
        return RecurrentLinearisation(layers, self.parameters, self._upstream, self.readout, self._memory)

    @property
    def core(self) -> Space:
        if self._core_sizes is None:
            return self.parameters
        return Space.of((sum(self._core_sizes),), ("core",), self.space.dtype, self.space.device)

    def sites(self) -> dict[str, Site]:
        result, offset = {}, 0
        for layer in self.layers:
            for name, site in layer.weights.sites(offset).items():
                result[f"{name}@{offset}" if name in result else name] = site  # layers that share weights
            offset += layer.width
        return result

    def linear_sites(self) -> None:
        return

    @property
    def loose(self) -> tuple[str, ...]:
        return ()

    def trials(self) -> None:
        return

    def _spare(self, memory: int) -> int:
        """What is left of the memory beside the Jacobians and one probe."""
        least = self._fixed_bytes + self._probe_bytes
        if memory < least:
            raise ValueError(
                f"`memory` must be at least {least} bytes for the Jacobians and one probe of {self.space}; "
                f"got {memory}. Give more, or take fewer trials or steps."
            )
        return memory - least

    @property
    def _fixed_bytes(self) -> int:
        """Of the linearisation itself, and of the scratch of a product."""
        layers = sum(layer.states.nbytes + layer.transition.nbytes + layer.weights.nbytes for layer in self.layers)
        scratch = 4 * max(CHUNK_ENTRIES * self.states.element_size(), self.states.nbytes)
        return layers + self.states.nbytes + scratch

    @property
    def _probe_bytes(self) -> int:
        """Between the block and the result, for each probe of a piece."""
        return 2 * (self.states.nbytes + self._parameter_bytes)

    def _residual(self, state: Tensor) -> Tensor:
        moved = torch.zeros_like(state)
        parts, targets = self._split(state), self._split(moved)
        for i, (layer, part, target) in enumerate(zip(self.layers, parts, targets, strict=True)):
            layer.transition.add_product(slice(1, None), part[:, :, :-1], target[:, :, 1:])
            if i:
                _input_map(layer).add_product(self._seen_above(i - 1, parts), target)
        return state.sub_(moved)

    def _residual_adjoint(self, state: Tensor) -> Tensor:
        moved = torch.zeros_like(state)
        parts, targets = self._split(state), self._split(moved)
        for i, (layer, part, target) in enumerate(zip(self.layers, parts, targets, strict=True)):
            layer.transition.add_product_adjoint(slice(1, None), part[:, :, 1:], target[:, :, :-1])
            if i:
                self._seen_above(i - 1, targets).add_(_input_map(layer).adjoint(part))
        return state.sub_(moved)

    def _propagate(self, state: Tensor) -> Tensor:
        parts = self._split(state)
        for i, (layer, part) in enumerate(zip(self.layers, parts, strict=True)):
            if i:
                _input_map(layer).add_product(self._seen_above(i - 1, parts), part)
            layer.transition.propagate(part)
        return state

    def _propagate_adjoint(self, state: Tensor) -> Tensor:
        parts = self._split(state)
        for i, layer in reversed(list(enumerate(self.layers))):
            layer.transition.propagate_adjoint(parts[i])
            if i:
                self._seen_above(i - 1, parts).add_(_input_map(layer).adjoint(parts[i]))
        return state

    def _parameter_jvp(self, parameter: Tensor) -> Tensor:
        named = self.parameters.split(parameter)
        state = self.space.zeros(len(parameter))
        for layer, part in zip(self.layers, self._split(state), strict=True):
            layer.weights.add_jvp(named, part)
        if self._upstream is not None:
            self._add_upstream(self._upstream.jvp(named), state)
        return state

    def _parameter_vjp(self, state: Tensor) -> Tensor:
        parts = self._split(state)
        pairs = [pair for layer, part in zip(self.layers, parts, strict=True) for pair in layer.weights.vjp(part)]
        if self._upstream is not None:
            pairs += self._upstream.vjp(self._upstream_cotangents(self._upstream, parts))
        named: dict[str, Tensor] = {}
        for name, value in pairs:
            named[name] = named[name] + value if name in named else value
        missing = {p.name: state.new_zeros(len(state), *p.shape) for p in self.parameters.parts if p.name not in named}
        return self.parameters.join(named | missing)

    def _core_jvp(self, core: Tensor) -> Tensor:
        if self._core_sizes is None:
            return self._parameter_jvp(core)
        state, pieces = self.space.zeros(len(core)), core.split(self._core_sizes, dim=1)
        for layer, piece, part in zip(self.layers, pieces, self._split(state), strict=False):
            layer.weights.add_core_jvp(piece, part)
        if self._upstream is not None:
            self._add_upstream(self._upstream.jvp(unflattened(pieces[-1], self._upstream.parameters)), state)
        return state

    def _core_vjp(self, state: Tensor) -> Tensor:
        if self._core_sizes is None:
            return self._parameter_vjp(state)
        parts = self._split(state)
        pieces = [layer.weights.core_vjp(part) for layer, part in zip(self.layers, parts, strict=True)]
        if self._upstream is not None:
            pieces.append(flattened(self._upstream.vjp(self._upstream_cotangents(self._upstream, parts)), state))
        return torch.cat(pieces, dim=1)

    @functools.cached_property
    def _core_sizes(self) -> list[int] | None:
        """Sizes of the cores of the layers and of what comes before; None where a parameter acts in several places."""
        names = [name for layer in self.layers for name in layer.weights.names]
        sizes = [layer.weights.core_size for layer in self.layers]
        if self._upstream is not None:
            names += self._upstream.parameters
            sizes.append(sum(value.numel() for value in self._upstream.parameters.values()))
        return sizes if len(set(names)) == len(names) else None

    def _add_upstream(self, moved: Mapping[str, Tensor], state: Tensor) -> None:
        """Add to J v what an encoder moves at every step and an initial state at the first."""
        parts = self._split(state)
        if "inputs" in moved:
            _input_map(self.layers[0]).add_product(moved["inputs"].transpose(1, 2), parts[0])
        if "initial" in moved:
            for layer, part, initial in zip(self.layers, parts, self._split(moved["initial"]), strict=True):
                layer.transition.add_product(0, initial, part[:, :, 0])

    def _upstream_cotangents(self, upstream: Upstream, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        """What Jᵀ hands on to an encoder and to an initial state."""
        result = {}
        if "inputs" in upstream.moves:
            result["inputs"] = _input_map(self.layers[0]).adjoint(parts[0]).transpose(1, 2)
        if "initial" in upstream.moves:
            pulled = torch.cat([torch.zeros_like(part[:, :, 0]) for part in parts], dim=-1)
            for layer, part, target in zip(self.layers, parts, self._split(pulled), strict=True):
                layer.transition.add_product_adjoint(0, part[:, :, 0], target)
            result["initial"] = pulled
        return result

    def _seen_above(self, layer: int, parts: Sequence[Tensor]) -> Tensor:
        """What the layer above sees of the states of a layer, a view: the h of h‖c."""
        return parts[layer][..., : self.layers[layer].size]

    def _split(self, state: Tensor) -> Sequence[Tensor]:
        """The layers' parts of `[*, n]`, views."""
        return state.split([layer.width for layer in self.layers], dim=-1)


def _input_map(layer: Layer) -> InputMap:
    if layer.inputs is None:
        raise ValueError("A layer known by its step alone cannot sit above another one, nor above an encoder.")
    return layer.inputs
