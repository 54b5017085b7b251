"""A recurrent step at a static input, as a map F of the state to itself in float64."""

import copy
import dataclasses
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kpflow.states.cells import LowRankRNN, RateRNN

from .jacobians import Analytic, dense, known_cell

__all__ = ["StaticMap", "exact_derivatives", "float64_copy", "float64_step", "static_map"]

BOUNDED = (torch.tanh, torch.sigmoid, nn.functional.tanh, nn.functional.sigmoid, torch.erf, torch.atan)
"""Nonlinearities whose values stay within a ball."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class StaticMap:
    """F = step(·, x): states `[n, H]` to states `[n, H]`, each row by itself.

    Args:
        function: F.
        bounded: Whether F is known to map some ball into itself.
        limits: The most that each |hᵢ| can be at a fixed point, inf where that is not known; shape `[H]`.
        jacobian: ∂F/∂h `[n, H, H]` by formula, where that is known; else it is by automatic differentiation.
        target: A map with the same fixed points that is easier to search, if one is known: gates do not slow it down.
        flow: Whether it is h + f(h) of a flow f: stable where the real parts of the multipliers are below 1.
        of_input: ∂F/∂x at states `[n, H]`, shape `[n, H, I]`, where x is known.
    """

    function: Callable[[Tensor], Tensor]
    bounded: bool
    limits: Float[Tensor, "H"]
    jacobian: Callable[[Tensor], Tensor] | None = None
    target: "StaticMap | None" = None
    flow: bool = False
    of_input: Callable[[Tensor], Tensor] | None = None

    def __call__(self, states: Float[Tensor, "n H"]) -> Float[Tensor, "n H"]:
        with torch.no_grad():
            return self.function(states)

    def confined(self, states: Float[Tensor, "n H"]) -> Float[Tensor, "n H"]:
        """The nearest states within the limits: far outside, a saturated gate keeps any state, to rounding."""
        return torch.maximum(torch.minimum(states, self.limits), -self.limits)

    def pulled(self, states: Float[Tensor, "n H"]) -> tuple[Float[Tensor, "n H"], Float[Tensor, "n H"]]:
        """r = F(h) − h, and the gradient (∂F/∂h − I)ᵀ r of ½‖r‖² by one backward pass."""
        start = states.detach().requires_grad_()
        residual = self.function(start) - start
        (gradient,) = torch.autograd.grad(0.5 * residual.square().sum(), start)
        return residual.detach(), gradient

    def linearised(self, states: Float[Tensor, "n H"]) -> tuple[Float[Tensor, "n H"], Float[Tensor, "n H H"]]:
        """F(h) and J = ∂F/∂h; rows are independent, so that row i of all J is the gradient of Σₙ Fₙᵢ."""
        if not len(states):
            return states, states.new_zeros(0, states.shape[1], states.shape[1])
        if self.jacobian is not None:
            return self(states), self.jacobian(states.detach())  # a tenth of the time of rows one by one
        start = states.detach().requires_grad_()
        values = self.function(start)
        rows = [torch.autograd.grad(values[:, i].sum(), start, retain_graph=True)[0] for i in range(states.shape[1])]
        return values.detach(), torch.stack(rows, dim=1)


@contextmanager
def exact_derivatives() -> Iterator[None]:
    """Derivatives are on whatever the caller switched off; cuDNN, which has none in evaluation mode, is off."""
    with torch.inference_mode(False), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        yield


def static_map(
    step: Callable[..., Any], inputs: Float[Tensor, "I"], seeds: Float[Tensor, "n H"], *, flow: bool = False
) -> StaticMap:
    """The map of a step at x, tried once on the seeds; both in float64. That of a flow f is h + f(h).

    A module, or the module of a bound method, is copied and the copy is cast: the user's is not touched.

    Raises:
        ValueError: Sizes do not fit, the module has several layers or directions, or cannot be copied, the step fails,
            gives no state, is random, mixes the samples of a batch, or has no derivative; a flow is a discrete cell.
        TypeError: The step does not give a float64 tensor.
    """
    given = step.__self__ if inspect.ismethod(step) else step
    if flow and isinstance(given, (nn.RNNBase, nn.RNNCellBase, RateRNN, LowRankRNN)):
        raise ValueError(
            f"`flow=True` takes a vector field f(h, x), with dh/dt = f; {type(given).__name__} is a step from one time "
            "to the next. Leave `flow` out, or write its vector field as a function."
        )
    module, call = float64_step(step, inputs, seeds)
    x = inputs.to(torch.float64)

    def function(states: Tensor) -> Any:
        return call(states, x.expand(len(states), -1))

    result = StaticMap(function, _is_bounded(step), _limits(step, seeds))
    _check_map(result, seeds)
    if flow:
        result = dataclasses.replace(result, function=lambda states: states + function(states), flow=True)
    cell = known_cell(module) if module is not None and isinstance(step, nn.Module) else None
    if cell is None:
        return dataclasses.replace(result, of_input=lambda states: _of_input(call, states, x))
    return dataclasses.replace(
        result,
        jacobian=lambda states: cell.jacobian(states, x),
        target=_target(result, cell.target(x)),
        of_input=lambda states: cell.input_jacobian(states, x),
    )


def _of_input(call: Callable[[Tensor, Tensor], Any], states: Tensor, x: Tensor) -> Tensor:
    """∂F/∂x by automatic differentiation, zero where the step does not look at its input."""
    rows = x.expand(len(states), -1).clone().requires_grad_()
    values = call(states, rows)
    if not len(states) or not values.requires_grad:
        return states.new_zeros(*states.shape, len(x))
    slopes = [
        torch.autograd.grad(values[:, i].sum(), rows, retain_graph=True, materialize_grads=True)[0]
        for i in range(states.shape[1])
    ]
    return torch.stack(slopes, dim=1)


def _target(mapping: StaticMap, analytic: Analytic | None) -> StaticMap | None:
    if analytic is None:
        return None
    return StaticMap(
        lambda states: analytic(states)[0], mapping.bounded, mapping.limits, lambda states: dense(analytic(states)[1])
    )


def float64_step(
    step: Callable[..., Any], inputs: Tensor, seeds: Tensor
) -> tuple[nn.Module | None, Callable[[Tensor, Tensor], Any]]:
    """The float64 copy of the step's module, None for a function, and the step as a function of (h, x) that uses it."""
    if inspect.ismethod(step) and isinstance(step.__self__, nn.Module):
        module = float64_copy(step.__self__)
        return module, types.MethodType(step.__func__, module)
    if not isinstance(step, nn.Module):
        return None, step
    _check_sizes(step, inputs, seeds)
    module = float64_copy(step)
    return module, _call(module)


def _call(module: nn.Module) -> Callable[[Tensor, Tensor], Any]:
    if isinstance(module, (RateRNN, LowRankRNN)):
        return module.step
    if isinstance(module, (nn.RNNCell, nn.GRUCell)):
        return lambda h, x: module(x, h)
    if isinstance(module, nn.LSTMCell):
        return lambda h, x: torch.cat(module(x, h.chunk(2, dim=1)), dim=1)
    if isinstance(module, nn.RNNBase):
        return _one_step(module)
    return module


def _one_step(module: nn.RNNBase) -> Callable[[Tensor, Tensor], Tensor]:
    """A sequence module as a step: its last state after a sequence of length 1."""
    axis = 1 if module.batch_first else 0

    def run(state: Tensor, x: Tensor) -> Tensor:
        if isinstance(module, nn.LSTM):
            hidden, cell = (part.contiguous()[None] for part in state.chunk(2, dim=1))
            return torch.cat(module(x.unsqueeze(axis), (hidden, cell))[1], dim=2)[0]
        return module(x.unsqueeze(axis), state[None])[1][0]

    return run


def float64_copy(module: nn.Module, name: str = "step") -> nn.Module:
    """A float64 copy, in evaluation mode, without gradients to its parameters."""
    try:
        return copy.deepcopy(module).double().eval().requires_grad_(False)
    except Exception as error:
        raise ValueError(
            f"`{name}` must be a module that copy.deepcopy copies, for a float64 copy; {type(module).__name__} is not: "
            f"{type(error).__name__}: {error}. Give a function that computes in float64."
        ) from error


def _is_bounded(step: Any) -> bool:
    """Whether F is known to map a ball into itself: leaky or gated means of bounded numbers."""
    kind = type(step)
    if kind in (nn.GRU, nn.GRUCell, nn.LSTM, nn.LSTMCell):  # of an LSTM, |h| < 1 and so f < 1 uniformly: c is bounded
        return True
    if kind in (nn.RNN, nn.RNNCell):
        return step.nonlinearity == "tanh"
    if kind in (RateRNN, LowRankRNN):
        phi = step.nonlinearity
        return phi in BOUNDED or isinstance(phi, (nn.Tanh, nn.Sigmoid))
    return False


def _limits(step: Any, seeds: Tensor) -> Tensor:
    """|h| ≤ 1 of tanh RNNs, GRUs and LSTMs; nothing is said of an LSTM's c."""
    limits = torch.full_like(seeds[0], torch.inf)
    if _is_bounded(step) and isinstance(step, (nn.RNNBase, nn.RNNCellBase)):
        limits[: step.hidden_size] = 1.0
    return limits


def _check_sizes(module: nn.Module, inputs: Tensor, seeds: Tensor) -> None:
    """Refuse stacks, and seeds and inputs that a known module does not take."""
    if isinstance(module, nn.RNNBase) and (module.num_layers > 1 or module.bidirectional or module.proj_size):
        raise ValueError(
            f"`step` must have one layer, one direction and no projection; got {module}. Write the stack as a "
            "step(h, x) of all layers' states side by side."
        )
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        blocks = 2 if isinstance(module, (nn.LSTM, nn.LSTMCell)) else 1
        width, taken = blocks * module.hidden_size, module.input_size
    elif isinstance(module, (RateRNN, LowRankRNN)):
        width, taken = module.hidden_size, module.weight_ih.shape[1]
    else:
        return
    if seeds.shape[1] != width:
        state = "h and c side by side" if isinstance(module, (nn.LSTM, nn.LSTMCell)) else "the states"
        raise ValueError(
            f"`seeds` must have shape (n, {width}), {state} of {type(module).__name__}; got {tuple(seeds.shape)}."
        )
    if len(inputs) != taken:
        raise ValueError(
            f"`inputs` must have shape ({taken},), one input of {type(module).__name__}; got {tuple(inputs.shape)}."
        )


def _check_map(mapping: StaticMap, seeds: Tensor) -> None:
    """Refuse a step that fails, gives no state, is random, mixes samples, or has no derivative."""
    few = seeds[:3].detach().clone().requires_grad_()
    try:
        moved = mapping.function(few)
    except Exception as error:
        raise ValueError(
            f"`step` fails as step(h, x) in float64 with h of shape {tuple(few.shape)}: {type(error).__name__}: "
            f"{error}. A module or its bound method is copied to float64; the tensors of a function must be float64, "
            "on the device of `seeds`."
        ) from error
    if not isinstance(moved, Tensor) or moved.dtype != torch.float64:
        got = moved.dtype if isinstance(moved, Tensor) else type(moved).__name__
        raise TypeError(f"`step` must give a float64 tensor for float64 states; got {got}.")
    if moved.shape != few.shape:
        raise ValueError(
            f"`step` must give states of the shape that it takes, {tuple(few.shape)}; got {tuple(moved.shape)}."
        )
    if not moved.requires_grad:
        raise ValueError("`step` must be differentiable in h; its result has no gradient. Do not detach the state.")
    again, alone = mapping(few.detach()), mapping(few[:1].detach())
    if not torch.equal(again.nan_to_num(), moved.detach().nan_to_num()):
        raise ValueError("`step` must be deterministic; two calls differ. Switch off its noise or dropout.")
    if not torch.allclose(alone, moved[:1].detach(), rtol=1e-9, atol=1e-12, equal_nan=True):
        raise ValueError(
            "`step` must treat the samples of a batch apart; the first one moves otherwise when it is alone. Remove "
            "what averages over the batch."
        )
