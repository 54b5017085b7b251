"""A recurrent step as a function of its state, its input and its parameters, in float64."""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kpflow._checks import check_finite, check_tensor

from .maps import float64_step

__all__ = ["ParametricMap", "parametric_map"]

Named = Mapping[str, Tensor]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class ParametricMap:
    """F(h, x, θ), each row of h by itself; differentiable in all three, as often as the step is.

    Args:
        function: From h `[n, H]`, x `[n, I]` and all parameters by name to F `[n, H]`.
        parameters: θ by name, float64, detached copies; the trainable ones and the others.
        trainable: Names of the parameters that a gradient is taken of, in the order of the flat vector.
    """

    function: Callable[[Tensor, Tensor, Named], Tensor]
    parameters: Named
    trainable: tuple[str, ...]

    def __call__(
        self, states: Float[Tensor, "n H"], x: Float[Tensor, "I"], parameters: Named | None = None
    ) -> Float[Tensor, "n H"]:
        """F at one static input; `parameters` replace those of the same names."""
        return self.function(states, x.expand(len(states), -1), {**self.parameters, **(parameters or {})})

    def flat(self, values: Named) -> Float[Tensor, "P"]:
        """The trainable parameters of `values` in one vector."""
        return torch.cat([values[name].reshape(-1) for name in self.trainable])

    def named(self, vector: Float[Tensor, "P"]) -> dict[str, Tensor]:
        """The inverse of `flat`, as views."""
        shapes = [self.parameters[name].shape for name in self.trainable]
        parts = vector.split([shape.numel() for shape in shapes])
        return {n: part.reshape(shape) for n, part, shape in zip(self.trainable, parts, shapes, strict=True)}


def parametric_map(
    step: Callable[..., Any],
    inputs: Float[Tensor, "I"],
    states: Float[Tensor, "n H"],
    parameters: Named | None = None,
) -> ParametricMap:
    """The step with its parameters as arguments; the user's module is copied, not touched.

    Args:
        step: As of `find_fixed_points`; a function step(h, x, parameters) if it comes with `parameters`. Names are
            those of the module's `named_parameters` (of a bound method, its module's).
        inputs: One static input, for the sizes.
        states: A few states, for the sizes.
        parameters: Those of a function.

    Raises:
        ValueError: As `static_map`; parameters are given with a module, or there are none.
        TypeError: A parameter is no floating-point tensor.
    """
    module, call = float64_step(step, inputs, states)
    if module is None:
        return _of_function(step, parameters)
    if parameters is not None:
        raise ValueError("`parameters` goes with a step that is a function; a module has its own.")
    given: Any = step.__self__ if isinstance(step, types.MethodType) else step
    trainable = tuple(name for name, value in given.named_parameters() if value.requires_grad)
    if not trainable:
        raise ValueError(f"`step` must have trainable parameters; all of {type(given).__name__}'s are frozen or none.")
    values = {name: value.detach() for name, value in module.named_parameters()}
    held = _Held(module, call)

    def function(h: Tensor, x: Tensor, theta: Named) -> Tensor:
        return torch.func.functional_call(held, {f"module.{name}": value for name, value in theta.items()}, (h, x))

    return ParametricMap(function, values, trainable)


def _of_function(step: Callable[..., Any], parameters: Named | None) -> ParametricMap:
    if not parameters:
        raise ValueError(
            "`parameters` must hold the parameters of a step that is a function, by name, and the step be called as "
            f"step(h, x, parameters); got {parameters!r}. Or give the step as a module."
        )
    for name, value in parameters.items():
        check_tensor(f"parameters[{name!r}]", value)
        check_finite(f"parameters[{name!r}]", value)
    values = {name: value.detach().to(torch.float64).clone() for name, value in parameters.items()}
    return ParametricMap(lambda h, x, theta: step(h, x, dict(theta)), values, tuple(values))


@final
class _Held(nn.Module):
    """A call beside the module that it uses, whose parameters can so be replaced for one call."""

    def __init__(self, module: nn.Module, call: Callable[[Tensor, Tensor], Any]) -> None:
        nn.Module.__init__(self)
        self.module = module
        self.call = call

    def forward(self, states: Tensor, inputs: Tensor) -> Any:
        return self.call(states, inputs)
