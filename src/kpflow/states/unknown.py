"""Unknown steps: any callable z' = step(z, x), linearised by automatic differentiation."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .derivatives import pullback
from .purity import check_pure
from .recurrent import Layer
from .steps import Drive
from .transitions import DenseTransition
from .weights import AutodiffWeights

__all__ = ["step_layer"]

NOISE = "`model` as a step(h, x) gives another state each time it is called. Remove noise and memory of earlier calls."

Step = Callable[[Mapping[str, Tensor], Tensor, Tensor], Any]


def step_layer(step: Step, values: dict[str, Tensor], drive: Drive, names: Mapping[int, str], leak: str) -> Layer:
    """Run and linearise `step(parameters, z [N, n], x [N, I]) → z' [N, n]`, whose samples must not interact.

    Args:
        step: The step as a function of its parameters.
        values: The trainable parameters.
        drive: Inputs, initial state and lengths.
        names: Names of the step's parameters by their identity.
        leak: Message where it reaches others, with a place for their names.
    """
    states = drive.unroll(lambda t, z: _checked(step({}, z, drive.inputs[t]), z))
    previous = drive.previous(states)
    flat_states, flat_inputs = previous.flatten(0, 1), drive.inputs.flatten(0, 1)
    check_pure(lambda: [step({}, flat_states, flat_inputs)], names, NOISE, leak)
    _check_independent(step, flat_states, flat_inputs)

    def next_states(parameters: Mapping[str, Tensor]) -> Tensor:
        return drive.masked(step(parameters, flat_states, flat_inputs).unflatten(0, states.shape[:2])).transpose(0, 1)

    jacobian = _jacobians(lambda z: step({}, z, flat_inputs), flat_states).unflatten(0, states.shape[:2])
    weights = AutodiffWeights(next_states, values)
    transition = DenseTransition(drive.masked(jacobian).transpose(0, 1))
    return Layer(states, transition, weights, None, states.shape[-1])


def _jacobians(function: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """∂f/∂z of N samples that do not interact, `[N, n, n]`: one vector-Jacobian product a row, all samples at once."""
    size = states.shape[-1]
    rows = torch.eye(size, dtype=states.dtype, device=states.device).unsqueeze(1).expand(-1, len(states), -1)
    return pullback(function, states)(rows).movedim(0, 1).contiguous()


def _checked(state: Any, previous: Tensor) -> Tensor:
    if not isinstance(state, Tensor):
        raise TypeError(f"`model` as a step(h, x) must give a tensor; got {type(state).__name__}.")
    if state.shape != previous.shape:
        raise ValueError(
            f"`model` as a step(h, x) must give a state of the shape of h, {tuple(previous.shape)}; "
            f"got {tuple(state.shape)}."
        )
    return state


def _check_independent(step: Step, states: Tensor, inputs: Tensor) -> None:
    """One sample by itself must give what it gives in the batch, or the Jacobians would be wrong."""
    alone = step({}, states[-1:], inputs[-1:])
    together = step({}, states, inputs)[-1:]
    tolerance = 100 * torch.finfo(states.dtype).eps * (1 + together.abs().max())
    if bool((alone - together).abs().max() > tolerance):
        raise ValueError(
            "`model` as a step(h, x) must treat the trials of a batch independently; the last trial by itself gives "
            "another state than in the batch. Remove batch statistics from the step."
        )
