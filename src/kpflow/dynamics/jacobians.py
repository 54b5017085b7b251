"""Analytic steps of the known cells: F(h) with ∂F/∂h, from the layers of `kpflow.states`."""

import dataclasses
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from kpflow.states.adapters import Adapter, adapter_for
from kpflow.states.gates import Gates
from kpflow.states.recurrent import InputMap
from kpflow.states.steps import Drive, Roles, gru_layer
from kpflow.states.transitions import GatedTransition

__all__ = ["Analytic", "Cell", "dense", "known_cell"]

Analytic = Callable[[Tensor], tuple[Tensor, GatedTransition]]
"""From states `[n, H]` to F(h) and the derivative there, a transition of one step in n trials."""

SHUT = -1e3
"""A pre-activation at which a sigmoid is 0 in float64."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """A known cell in float64.

    Args:
        module: The cell.
        adapter: Its formulas.
        roles: Its parameters.
    """

    module: nn.Module
    adapter: Adapter
    roles: Roles

    def jacobian(self, states: Tensor, x: Tensor) -> Tensor:
        """∂F/∂h of F = step(·, x), shape `[n, H, H]`."""
        transition = self.adapter.layer(0, self.roles, _drive(states, x)).transition
        assert isinstance(transition, GatedTransition)  # as those of all known cells
        return dense(transition)

    def input_jacobian(self, states: Tensor, x: Tensor) -> Tensor:
        """∂F/∂x, shape `[n, H, I]`."""
        inputs = self.adapter.layer(0, self.roles, _drive(states, x)).inputs
        assert isinstance(inputs, InputMap)  # likewise
        each = torch.eye(len(x), dtype=x.dtype, device=x.device)[:, None, None]  # [S, 1, 1, I] with S = I
        moved = states.new_zeros(len(x), len(states), 1, states.shape[1])
        inputs.add_product(each, moved)
        return moved[:, :, 0].permute(1, 2, 0)

    def target(self, x: Tensor) -> Analytic | None:
        """A map G with the fixed points of F where no gate slows the state down; None where F has no such gates.

        F(h) − h = (1 − u) ∘ (G(h) − h) with u the update gate of a GRU: G(h) = n. Of an LSTM, G(h, c) = (o tanh c̃, c̃)
        with c̃ = i g / (1 − f). Where u or f is almost 1, ½‖F(h) − h‖² has minima that are no fixed points.
        """
        if isinstance(self.module, (nn.GRU, nn.GRUCell)):
            return _gru_target(self.roles, x)
        return _lstm_target(self.roles, x) if isinstance(self.module, (nn.LSTM, nn.LSTMCell)) else None


def dense(transition: GatedTransition) -> Tensor:
    """The derivative of one step in n trials, shape `[n, H, H]`."""
    return transition.formed().jacobian[:, 0]


def known_cell(module: nn.Module) -> Cell | None:
    """The formulas of a module in float64, if they are known to be its own."""
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    try:
        adapter = adapter_for(module)
    except ValueError:  # a nonlinearity with parameters
        return None
    if adapter is None:
        return None
    own, names = dict(module.named_parameters(recurse=False, remove_duplicate=False)), adapter.roles(0)
    if not own.keys() >= {*names.values()}:  # weights that are computed from others
        return None
    return Cell(module, adapter, Roles({role: own[name].detach() for role, name in names.items()}, {}))


def _gru_target(roles: Roles, x: Tensor) -> Analytic:
    """A GRU whose update gate is shut."""
    size = roles["weight_hh"].shape[1]
    tensors = {"bias_ih": x.new_zeros(3 * size)} | {role: value.clone() for role, value in roles.tensors.items()}
    for value in tensors.values():
        value[size : 2 * size] = 0.0
    tensors["bias_ih"][size : 2 * size] = SHUT
    shut = Roles(tensors, {})

    def linearised(states: Tensor) -> tuple[Tensor, GatedTransition]:
        layer = gru_layer(shut, _drive(states, x))
        assert isinstance(layer.transition, GatedTransition)
        return layer.states[0], layer.transition

    return linearised


def _lstm_target(roles: Roles, x: Tensor) -> Analytic:
    weight = roles["weight_hh"]
    size = weight.shape[1]
    driven = x @ roles["weight_ih"].mT + roles.bias("bias_ih") + roles.bias("bias_hh")

    def linearised(states: Tensor) -> tuple[Tensor, GatedTransition]:
        i, f, g, o = (driven + states[:, :size] @ weight.mT).chunk(4, dim=1)
        i, lost, f, g, o = i.sigmoid(), (-f).sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()  # lost = 1 − f
        cell = i * g / lost
        squashed = cell.tanh()
        of_cell = torch.stack([(1 - i) * cell, f * cell, i * (1 - g.square()) / lost, torch.zeros_like(o)], dim=1)
        of_hidden = (o * (1 - squashed.square()))[:, None] * of_cell
        of_hidden[:, 3] = o * (1 - o) * squashed
        slope = torch.stack([of_hidden, of_cell], dim=1)[:, None]  # [n, 1, R, G, H]
        return torch.cat([o * squashed, cell], dim=1), GatedTransition(weight, Gates(slope))

    return linearised


def _drive(states: Tensor, x: Tensor) -> Drive:
    return Drive(x.expand(1, len(states), -1), states, None)
