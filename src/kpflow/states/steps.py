"""Analytic layers: trajectories, Jacobians and weight sites of the named recurrent cells.

Formulas: theory of the Kronecker core, architecture by architecture (arXiv 2605.08746); gate orders are PyTorch's.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from .derivatives import entrywise_slope
from .gates import Gates
from .recurrent import InputMap, Layer
from .transitions import GatedTransition
from .weights import SiteWeights, WeightSite

__all__ = ["Drive", "Roles", "gru_layer", "low_rank_layer", "lstm_layer", "rate_layer", "rnn_layer"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Roles:
    """The parameters of one layer by their role in the formulas.

    Args:
        tensors: The values of the roles that exist (`weight_hh`, `weight_ih`, `bias_ih`, ...), detached.
        names: The full parameter names of the trainable ones.
    """

    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]

    def __getitem__(self, role: str) -> Tensor:
        return self.tensors[role]

    def bias(self, role: str) -> Tensor | float:
        """The bias, or 0 where there is none."""
        return self.tensors.get(role, 0.0)

    def site(
        self, features: Mapping[str, Tensor | None], gates: Gates, gate_names: tuple[str, ...]
    ) -> WeightSite | None:
        """The site of the trainable roles among `features`, which says what each acts on (None: a bias)."""
        roles = [role for role in features if role in self.names]
        if not roles:
            return None
        like = next(value for value in features.values() if value is not None)
        columns = [_ones(like) if (value := features[role]) is None else value for role in roles]
        names = tuple((self.names[role], tuple(self.tensors[role].shape)) for role in roles)
        return WeightSite(_trial_first(torch.cat(columns, dim=-1)), gates, names, gate_names)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Drive:
    """What drives one layer.

    Args:
        inputs: x, shape `[T, B, I]`.
        initial: z before the first step, shape `[B, n]`.
        valid: 1 while a trial lasts and 0 after, shape `[T, B, 1]`; None where all trials have the same length.
    """

    inputs: Float[Tensor, "T B I"]
    initial: Float[Tensor, "B n"]
    valid: Float[Tensor, "T B 1"] | None

    def unroll(self, step: Callable[[int, Tensor], Tensor]) -> Tensor:
        """States `[T, B, n]` of z_t = step(t, z_{t−1}); zero after a trial has ended."""
        state, states = self.initial, []
        for t in range(len(self.inputs)):
            state = step(t, state)
            if self.valid is not None:
                state = torch.where(self.valid[t] > 0, state, 0.0)
            states.append(state)
        return torch.stack(states)

    def previous(self, states: Tensor) -> Tensor:
        """z_{t−1} for every t."""
        return torch.cat([self.initial.unsqueeze(0), states[:-1]])

    def masked(self, value: Tensor) -> Tensor:
        """`[T, B, ...]` set to zero where a trial has ended."""
        if self.valid is None:
            return value
        return value * self.valid.reshape(*self.valid.shape[:2], *[1] * (value.ndim - 2))

    def gates(self, slope: Tensor, mixing: Tensor | None = None) -> Gates:
        """Gates with the slope `[T, B, R, G, H]` set to zero where a trial has ended."""
        return Gates(_trial_first(self.masked(slope)), mixing)


def rnn_layer(roles: Roles, drive: Drive, nonlinearity: Callable[[Tensor], Tensor]) -> Layer:
    """h' = φ(W_hh h + b_hh + W_ih x + b_ih), as in `torch.nn.RNN`."""
    driven = drive.inputs @ roles["weight_ih"].mT + roles.bias("bias_ih") + roles.bias("bias_hh")
    weight = roles["weight_hh"]
    states = drive.unroll(lambda t, h: nonlinearity(driven[t] + h @ weight.mT))
    previous = drive.previous(states)
    slope = entrywise_slope(nonlinearity, driven + previous @ weight.mT)
    gates = drive.gates(slope[:, :, None, None])
    features = {"weight_hh": previous, "weight_ih": drive.inputs, "bias_ih": None, "bias_hh": None}
    transition = GatedTransition(weight, gates)
    return _layer(states, transition, [roles.site(features, gates, ("state",))], InputMap(roles["weight_ih"], gates))


def rate_layer(
    roles: Roles, drive: Drive, nonlinearity: Callable[[Tensor], Tensor], alpha: float, inside: bool
) -> Layer:
    """z' = (1−α) z + α (W φ(z) + U x + b) if φ is inside the weights, else (1−α) z + α φ(W z + U x + b)."""
    weight = roles["weight_hh"]
    driven = drive.inputs @ roles["weight_ih"].mT + roles.bias("bias")
    within, outer = (nonlinearity, _identity) if inside else (_identity, nonlinearity)
    states = drive.unroll(lambda t, z: (1 - alpha) * z + alpha * outer(driven[t] + within(z) @ weight.mT))
    previous = drive.previous(states)
    seen = within(previous)
    slope = alpha * entrywise_slope(outer, driven + seen @ weight.mT)
    gates = drive.gates(slope[:, :, None, None])
    gain = _trial_first(entrywise_slope(nonlinearity, previous)) if inside else None
    transition = GatedTransition(weight, gates, gain, _leak(drive, states, alpha))
    features = {"weight_hh": seen, "weight_ih": drive.inputs, "bias": None}
    return _layer(states, transition, [roles.site(features, gates, ("state",))], InputMap(roles["weight_ih"], gates))


def low_rank_layer(roles: Roles, drive: Drive, nonlinearity: Callable[[Tensor], Tensor], alpha: float) -> Layer:
    """z' = (1−α) z + α (m nᵀ φ(z) + U x + b): a rate network with W = m nᵀ; `right` holds nᵀ."""
    left, right = roles["left"], roles["right"]
    driven = drive.inputs @ roles["weight_ih"].mT + roles.bias("bias")
    states = drive.unroll(lambda t, z: (1 - alpha) * z + alpha * (driven[t] + (nonlinearity(z) @ right.mT) @ left.mT))
    previous = drive.previous(states)
    seen = nonlinearity(previous)
    slope = alpha * torch.ones_like(states)[:, :, None, None]
    gates, mixed = drive.gates(slope), drive.gates(slope, left)
    gain = _trial_first(entrywise_slope(nonlinearity, previous))
    transition = GatedTransition(right, mixed, gain, _leak(drive, states, alpha))
    outer = roles.site({"left": seen @ right.mT, "weight_ih": drive.inputs, "bias": None}, gates, ("state",))
    inner = roles.site({"right": seen}, mixed, ("rank",))
    return _layer(states, transition, [outer, inner], InputMap(roles["weight_ih"], gates))


def gru_layer(roles: Roles, drive: Drive) -> Layer:
    """r, u = σ(·), n = tanh(W_in x + b_in + r ∘ (W_hn h + b_hn)), h' = (1−u) ∘ n + u ∘ h, as in `torch.nn.GRU`."""
    weight = roles["weight_hh"]
    driven = drive.inputs @ roles["weight_ih"].mT + roles.bias("bias_ih")
    bias = roles.bias("bias_hh")
    states = drive.unroll(lambda t, h: _gru_step(driven[t], h @ weight.mT + bias, h))
    previous = drive.previous(states)
    recurrent = previous @ weight.mT + bias
    reset, update, new = _gru_gates(driven, recurrent)
    inner = recurrent.chunk(3, dim=-1)[2]
    of_new = (1 - update) * (1 - new.square())
    of_update = (previous - new) * update * (1 - update)
    of_reset = of_new * inner * reset * (1 - reset)
    hidden = drive.gates(torch.stack([of_reset, of_update, of_new * reset], dim=2).unsqueeze(2))
    external = drive.gates(torch.stack([of_reset, of_update, of_new], dim=2).unsqueeze(2))
    names = ("reset", "update", "new")
    sites = [
        roles.site({"weight_hh": previous, "bias_hh": None}, hidden, names),
        roles.site({"weight_ih": drive.inputs, "bias_ih": None}, external, names),
    ]
    transition = GatedTransition(weight, hidden, None, _trial_first(drive.masked(update)).unsqueeze(2))
    return _layer(states, transition, sites, InputMap(roles["weight_ih"], external))


def lstm_layer(roles: Roles, drive: Drive) -> Layer:
    """i, f, o = σ(·), g = tanh(·), c' = f ∘ c + i ∘ g, h' = o ∘ tanh(c'), as in `torch.nn.LSTM`; the state is h‖c."""
    weight = roles["weight_hh"]
    size = weight.shape[1]
    driven = drive.inputs @ roles["weight_ih"].mT + roles.bias("bias_ih") + roles.bias("bias_hh")
    states = drive.unroll(lambda t, z: _lstm_step(driven[t] + z[..., :size] @ weight.mT, z[..., size:]))
    previous = drive.previous(states)
    hidden, cell = previous.split(size, dim=-1)
    i, f, g, o = _lstm_gates(driven + hidden @ weight.mT)
    squashed = torch.tanh(f * cell + i * g)
    of_cell = torch.stack([i * (1 - i) * g, f * (1 - f) * cell, i * (1 - g.square()), torch.zeros_like(o)], dim=2)
    through = o * (1 - squashed.square())  # ∂h'/∂c'
    of_hidden = through.unsqueeze(2) * of_cell
    of_hidden[:, :, 3] = o * (1 - o) * squashed
    gates = drive.gates(torch.stack([of_hidden, of_cell], dim=2))
    carry = _trial_first(drive.masked(torch.stack([through * f, f], dim=2)))
    transition = GatedTransition(weight, gates, None, carry)
    features = {"weight_hh": hidden, "weight_ih": drive.inputs, "bias_ih": None, "bias_hh": None}
    site = roles.site(features, gates, ("input", "forget", "cell", "output"))
    return _layer(states, transition, [site], InputMap(roles["weight_ih"], gates), size)


def _layer(
    states: Tensor,
    transition: GatedTransition,
    sites: list[WeightSite | None],
    inputs: InputMap,
    size: int | None = None,
) -> Layer:
    trainable = [site for site in sites if site is not None]
    return Layer(states, transition, SiteWeights(trainable), inputs, size or states.shape[-1])


def _gru_gates(driven: Tensor, recurrent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    reset_x, update_x, new_x = driven.chunk(3, dim=-1)
    reset_h, update_h, new_h = recurrent.chunk(3, dim=-1)
    reset = torch.sigmoid(reset_x + reset_h)
    return reset, torch.sigmoid(update_x + update_h), torch.tanh(new_x + reset * new_h)


def _gru_step(driven: Tensor, recurrent: Tensor, hidden: Tensor) -> Tensor:
    _, update, new = _gru_gates(driven, recurrent)
    return (1 - update) * new + update * hidden


def _lstm_gates(gates: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    i, f, g, o = gates.chunk(4, dim=-1)
    return torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)


def _lstm_step(gates: Tensor, cell: Tensor) -> Tensor:
    i, f, g, o = _lstm_gates(gates)
    cell = f * cell + i * g
    return torch.cat([o * torch.tanh(cell), cell], dim=-1)


def _leak(drive: Drive, states: Tensor, alpha: float) -> Tensor | None:
    return None if alpha == 1.0 else _trial_first(drive.masked(torch.full_like(states, 1 - alpha))).unsqueeze(2)


def _identity(value: Tensor) -> Tensor:
    return value


def _ones(like: Tensor) -> Tensor:
    return torch.ones_like(like[..., :1])


def _trial_first(value: Tensor) -> Tensor:
    """`[T, B, ...]` to `[B, T, ...]`."""
    return value.transpose(0, 1).contiguous()
