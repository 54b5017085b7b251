"""The recurrent route: a stack of layers along a recorded trajectory, and its scans over time.

The state equation reads z[ℓ, t] = f_ℓ(z[ℓ, t−1], z[ℓ−1, t]): a layer sees the layer below at the same step. Hence
P⁻¹ q = q − A q[ℓ, t−1] − C q[ℓ−1, t], and P and Pᵀ are one scan over time a layer, from the bottom or from the top.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.spaces import Space

from .base import Linearisation, Readout, Site
from .derivatives import pullback, pushforward
from .gates import Gates
from .transitions import Transition
from .weights import Weights

__all__ = ["InputMap", "Layer", "RecurrentLinearisation", "Upstream"]

ALL = slice(None)

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

    def forward(self, inputs: Tensor) -> Tensor:
        """C dx: `[T, B, S, I]` to `[T, B, S, n]`."""
        return self.gates.to_state(inputs @ self.weight.mT, ALL)

    def backward(self, state: Tensor) -> Tensor:
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
        """Blocks of tangents with the probes before the last axis: `[T, B, S, I]` and `[B, S, n]`."""
        block = {name: parameters[name] for name in self.parameters}
        moved = pushforward(self.function, self.parameters)(block)
        return {key: value.movedim(0, -2) for key, value in moved.items()}

    def vjp(self, cotangents: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
        """The transpose of `jvp`."""
        block = {key: value.movedim(-2, 0) for key, value in cotangents.items()}
        return list(pullback(self.function, self.parameters)(block).items())


@final
class RecurrentLinearisation(Linearisation):
    """The linearised state equation of a recurrent network; made by `kpflow.linearise`.

    Args:
        layers: From the bottom to the top; the state is their states side by side.
        parameters: Space of the trainable parameters.
        upstream: What depends on parameters before the recurrence, if anything does.
        readout: The map to the model's outputs, if there is one.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        parameters: Space,
        upstream: Upstream | None = None,
        readout: Readout | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self.parameters = parameters
        self.readout = readout
        self._upstream = upstream
        self.states = torch.cat([layer.states for layer in self.layers], dim=-1).transpose(0, 1).contiguous()
        axes = ("trial", "time", "unit")
        self.space = Space.of(self.states.shape, axes, self.states.dtype, self.states.device)

    def propagate(self, state: Tensor) -> Tensor:
        return self._by_pieces(lambda q: _trial_first(self._propagate(_time_first(q))), state)

    def propagate_adjoint(self, state: Tensor) -> Tensor:
        return self._by_pieces(lambda q: _trial_first(self._propagate_adjoint(_time_first(q))), state)

    def residual(self, state: Tensor) -> Tensor:
        return self._by_pieces(lambda q: _trial_first(self._residual(_time_first(q))), state)

    def residual_adjoint(self, state: Tensor) -> Tensor:
        return self._by_pieces(lambda q: _trial_first(self._residual_adjoint(_time_first(q))), state)

    def parameter_jvp(self, parameter: Tensor) -> Tensor:
        return self._by_pieces(lambda v: _trial_first(self._parameter_jvp(v)), parameter)

    def parameter_vjp(self, state: Tensor) -> Tensor:
        return self._by_pieces(lambda q: self._parameter_vjp(_time_first(q)), state)

    def state_jvp(self, parameter: Tensor) -> Tensor:
        return self._by_pieces(lambda v: _trial_first(self._propagate(self._parameter_jvp(v))), parameter)

    def state_vjp(self, state: Tensor) -> Tensor:
        return self._by_pieces(lambda q: self._parameter_vjp(self._propagate_adjoint(_time_first(q))), state)

    def sites(self) -> dict[str, Site]:
        result, offset = {}, 0
        for layer in self.layers:
            for name, site in layer.weights.sites(offset).items():
                result[f"{name}@{offset}" if name in result else name] = site  # layers that share weights
            offset += layer.width
        return result

    def _by_pieces(self, function: Callable[[Tensor], Tensor], block: Tensor) -> Tensor:
        """The function on a block of probes, in pieces that the cache and the allocator handle well."""
        length = max(1, PIECE_BYTES // (self.states.numel() * self.states.element_size()))
        if len(block) <= length:
            return function(block)
        return torch.cat([function(piece) for piece in block.split(length)])

    def _residual(self, state: Tensor) -> Tensor:
        parts = self._split(state)
        results = [_unscan(layer.transition, part) for layer, part in zip(self.layers, parts, strict=True)]
        for i in range(1, len(parts)):
            results[i] -= _input_map(self.layers[i]).forward(self._seen_above(i - 1, parts[i - 1]))
        return self._join(results)

    def _residual_adjoint(self, state: Tensor) -> Tensor:
        parts = self._split(state)
        results = [_unscan_back(layer.transition, part) for layer, part in zip(self.layers, parts, strict=True)]
        for i in range(1, len(parts)):
            self._seen_above(i - 1, results[i - 1]).sub_(_input_map(self.layers[i]).backward(parts[i]))
        return self._join(results)

    def _propagate(self, state: Tensor) -> Tensor:
        parts = list(self._split(state))
        for i, layer in enumerate(self.layers):
            if i:
                parts[i] = parts[i] + _input_map(layer).forward(self._seen_above(i - 1, parts[i - 1]))
            parts[i] = _scan(layer.transition, parts[i])
        return self._join(parts)

    def _propagate_adjoint(self, state: Tensor) -> Tensor:
        parts = list(self._split(state))
        for i, layer in reversed(list(enumerate(self.layers))):
            parts[i] = _scan_back(layer.transition, parts[i])
            if i:
                parts[i - 1] = parts[i - 1].clone()
                self._seen_above(i - 1, parts[i - 1]).add_(_input_map(layer).backward(parts[i]))
        return self._join(parts)

    def _parameter_jvp(self, parameter: Tensor) -> Tensor:
        named = self.parameters.split(parameter)
        shape = (*self.states.shape[1::-1], len(parameter))  # T, B, S
        parts = []
        for layer in self.layers:
            part = layer.weights.jvp(named)
            parts.append(parameter.new_zeros(*shape, layer.width) if part is None else part)
        if self._upstream is not None:
            self._add_upstream(parts, self._upstream.jvp(named))
        return self._join(parts)

    def _add_upstream(self, parts: list[Tensor], moved: Mapping[str, Tensor]) -> None:
        """Add to J v what an encoder moves at every step and an initial state at the first."""
        if "inputs" in moved:
            parts[0] += _input_map(self.layers[0]).forward(moved["inputs"])
        if "initial" in moved:
            for layer, part, initial in zip(self.layers, parts, self._split(moved["initial"]), strict=True):
                part[0] = layer.transition.forward(0, initial, part[0])

    def _parameter_vjp(self, state: Tensor) -> Tensor:
        parts = self._split(state)
        pairs = [pair for layer, part in zip(self.layers, parts, strict=True) for pair in layer.weights.vjp(part)]
        if self._upstream is not None:
            pairs += self._upstream.vjp(self._upstream_cotangents(self._upstream, parts))
        named: dict[str, Tensor] = {}
        for name, value in pairs:
            named[name] = named[name] + value if name in named else value
        missing = {
            p.name: state.new_zeros(state.shape[2], *p.shape) for p in self.parameters.parts if p.name not in named
        }
        return self.parameters.join(named | missing)

    def _upstream_cotangents(self, upstream: Upstream, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        """What Jᵀ hands on to an encoder and to an initial state."""
        result = {}
        if "inputs" in upstream.moves:
            result["inputs"] = _input_map(self.layers[0]).backward(parts[0])
        if "initial" in upstream.moves:
            pulled = [
                layer.transition.backward(0, part[0], torch.zeros_like(part[0]))
                for layer, part in zip(self.layers, parts, strict=True)
            ]
            result["initial"] = torch.cat(pulled, dim=-1)
        return result

    def _seen_above(self, layer: int, state: Tensor) -> Tensor:
        """What the layer above sees of the states of a layer, a view: the h of h‖c."""
        return state[..., : self.layers[layer].size]

    def _split(self, state: Tensor) -> Sequence[Tensor]:
        """The layers' parts of `[*, n]`."""
        return state.split([layer.width for layer in self.layers], dim=-1)

    def _join(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)


def _scan(transition: Transition, state: Tensor) -> Tensor:
    """y_t = q_t + A_t y_{t−1}."""
    result = torch.empty_like(state)
    result[0] = state[0]
    for t in range(1, len(state)):
        result[t] = transition.forward(t, result[t - 1], state[t])
    return result


def _scan_back(transition: Transition, state: Tensor) -> Tensor:
    """a_t = v_t + A_{t+1}ᵀ a_{t+1}."""
    result = torch.empty_like(state)
    result[-1] = state[-1]
    for t in reversed(range(len(state) - 1)):
        result[t] = transition.backward(t + 1, result[t + 1], state[t])
    return result


def _unscan(transition: Transition, state: Tensor) -> Tensor:
    """q_t = y_t − A_t y_{t−1}: all steps at once."""
    result = state.clone()
    result[1:] -= transition.forward(slice(1, None), state[:-1], torch.zeros_like(state[:-1]))
    return result


def _unscan_back(transition: Transition, state: Tensor) -> Tensor:
    """v_t = a_t − A_{t+1}ᵀ a_{t+1}: all steps at once."""
    result = state.clone()
    result[:-1] -= transition.backward(slice(1, None), state[1:], torch.zeros_like(state[1:]))
    return result


def _input_map(layer: Layer) -> InputMap:
    if layer.inputs is None:
        raise ValueError("A layer known by its step alone cannot sit above another one, nor above an encoder.")
    return layer.inputs


def _time_first(state: Tensor) -> Tensor:
    """`[S, B, T, n]` to `[T, B, S, n]`."""
    return state.permute(2, 1, 0, 3).contiguous()


def _trial_first(state: Tensor) -> Tensor:
    """`[T, B, S, n]` to `[S, B, T, n]`."""
    return state.permute(2, 1, 0, 3)
