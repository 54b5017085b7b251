"""Paths of a recurrent step, as functions of the state and of one parameter: along inputs, and between checkpoints."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kpflow._checks import check_finite

from .arguments import check_static_input
from .expansions import checked_point
from .maps import exact_derivatives, float64_step, static_map
from .parametric import parametric_map

__all__ = ["checkpoint_path", "input_path"]

Path = Callable[[Tensor, Tensor], Tensor]
Named = Mapping[str, Tensor]


def input_path(step: Callable[..., Any], start: Tensor, end: Tensor, point: Tensor) -> Path:
    """F(h, λ) = step(h, (1 − λ) x₀ + λ x₁): a straight path between two static inputs.

    For `continue_branch` and `bifurcation_diagram`, with `bounds` such as (0, 1).

    Args:
        step: As of `find_fixed_points`; a module is copied to float64.
        start: x₀, shape `[I]`.
        end: x₁, shape `[I]`.
        point: A state, for the sizes, shape `[H]`, float64.

    Raises:
        TypeError: An input or the point is no floating-point tensor.
        ValueError: An input is not static or not finite, or as `find_fixed_points` of the step.

    Example:
        >>> from kpflow.dynamics import continue_branch, find_fixed_points, input_path
        >>> cell = torch.nn.RNNCell(1, 4, dtype=torch.float64)
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> start = find_fixed_points(cell, zero, torch.zeros(1, 4)).states[0]
        >>> continue_branch(input_path(cell, zero, one, start), start, 0.0, bounds=(0.0, 1.0)).endings
        (<Ending.BOUND: ...>, <Ending.BOUND: ...>)
    """
    for name, value in (("start", start), ("end", end)):
        check_static_input(name, value)
    if start.shape != end.shape:
        raise ValueError(
            f"`end` must have the shape of `start`, {tuple(start.shape)}; got {tuple(end.shape)}: two inputs of one "
            "network."
        )
    states = checked_point(point).detach()[None]
    first, last = (value.detach().to(states) for value in (start, end))
    with exact_derivatives():
        static_map(step, first, states)  # checks the step
        _, call = float64_step(step, first, states)

    def path(h: Tensor, parameter: Tensor) -> Tensor:
        return call(h[None], (first + parameter * (last - first))[None])[0]

    return path


def checkpoint_path(
    step_a: Callable[..., Any],
    step_b: Callable[..., Any],
    inputs: Tensor,
    point: Tensor,
    *,
    parameters: tuple[Named, Named] | None = None,
) -> Path:
    """F(h, s) = step(h, x; (1 − s) θ_a + s θ_b): parameters on a straight line between two checkpoints.

    Args:
        step_a: The step at the first checkpoint, a module or its bound method; or a function step(h, x, parameters).
        step_b: The same at the second checkpoint.
        inputs: The static input x, shape `[I]`.
        point: A state, for the sizes, shape `[H]`, float64.
        parameters: θ_a and θ_b by name, of a function.

    Raises:
        TypeError: `inputs` or the point is no floating-point tensor.
        ValueError: The checkpoints have other parameters, buffers or shapes than each other; `inputs` is not static or
            not finite; or as `find_fixed_points` of the steps.

    Example:
        >>> step = lambda h, x, theta: torch.tanh(theta["w"] * h + x)
        >>> theta = {"w": torch.tensor(0.5)}, {"w": torch.tensor(2.0)}
        >>> h = torch.ones(1, dtype=torch.float64)
        >>> path = checkpoint_path(step, step, torch.zeros(1), h, parameters=theta)
        >>> path(h, torch.tensor(0.5)), torch.tanh(1.25 * h)
        (tensor([0.8483], dtype=torch.float64), tensor([0.8483], dtype=torch.float64))
    """
    check_static_input("inputs", inputs)
    states = checked_point(point).detach()[None]
    x = inputs.detach().to(states)
    given = (None, None) if parameters is None else parameters
    with exact_derivatives():
        first, second = (
            parametric_map(step, x, states, named) for step, named in zip((step_a, step_b), given, strict=True)
        )
        _check_alike(first.parameters, second.parameters, "parameters")
        _check_buffers(step_a, step_b)
        static_map(lambda h, x: first.function(h, x, first.parameters), x, states)  # checks the step

    def path(h: Tensor, s: Tensor) -> Tensor:
        theta = {name: old + s * (second.parameters[name] - old) for name, old in first.parameters.items()}
        return first.function(h[None], x[None], theta)[0]

    return path


def _check_alike(first: Named, second: Named, what: str) -> None:
    """Both checkpoints have the same names and shapes, and finite numbers."""
    if first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        raise ValueError(f"Both checkpoints must have the same {what}; only one of them has {', '.join(odd)}.")
    for name, value in first.items():
        if value.shape != second[name].shape:
            raise ValueError(
                f"Both checkpoints must have {what} of the same shapes; {name} has {tuple(value.shape)} and "
                f"{tuple(second[name].shape)}."
            )
        check_finite(f"{name} of step_a", value)
        check_finite(f"{name} of step_b", second[name])


def _check_buffers(step_a: Any, step_b: Any) -> None:
    """Buffers are not interpolated: they must be equal."""
    first, second = (
        dict(module.named_buffers()) if isinstance(module, nn.Module) else {}
        for module in (getattr(step, "__self__", step) for step in (step_a, step_b))
    )
    _check_alike(first, second, "buffers")
    for name, value in first.items():
        if not torch.equal(value, second[name]):
            raise ValueError(f"Both checkpoints must have equal buffers, which are not trained; {name} differs.")
