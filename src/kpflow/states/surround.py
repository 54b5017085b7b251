"""The model around its recurrent core: what happens before it (encoders, initial states) and after (the read-out)."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from kpflow._checks import check_finite
from kpflow.spaces import Space

from .adapters import Adapter, Call
from .base import Readout
from .derivatives import pullback, pushforward
from .recurrent import Upstream

__all__ = ["CoreReadout", "ModelReadout", "Surround"]

Named = Mapping[str, Tensor]


@final
class _ReachedCoreError(Exception):
    """Stops the model where its core is called."""

    def __init__(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        Exception.__init__(self)
        self.arguments = arguments
        self.keywords = keywords


@final
class Surround:
    """A model as functions of its parameters: up to the call of its core, and from the core's result to the output.

    Works on a twin of the module tree that shares the parameters and owns the rest, in which the core's forward pass is
    replaced; the user's model is not touched.

    Args:
        model: The user's model, in evaluation mode as far as dropout and batch norm go.
        core: Name of its recurrent submodule.
        inputs: What the model is called with.
        adapter: Of the core.
    """

    def __init__(self, model: nn.Module, core: str, inputs: Any, adapter: Adapter) -> None:
        self._model = _twin(model, {})
        self._core = self._model.get_submodule(core)
        self._core.forward = self._replaced  # type: ignore[method-assign]
        self._adapter = adapter
        self._arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        self._replacement: Callable[[], Any] | None = None
        self._calls = 0
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        own = self._model.named_parameters(remove_duplicate=False)
        self._local = {name: names[id(parameter)] for name, parameter in own}
        self._values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def reach(self, parameters: Named) -> Call:
        """The call of the core, as a function of the parameters."""
        self._replacement = None
        try:
            self._run(parameters)
        except _ReachedCoreError as reached:
            return self._adapter.call(reached.arguments, reached.keywords)
        raise ValueError("`core` is not called by the model's forward pass; name the recurrent module that is.")

    def finish(self, parameters: Named, states: Tensor, lengths: Tensor | None) -> Tensor:
        """The model's output, as a function of the parameters and of the core's states `[B, T, n]`."""
        self._replacement = lambda: self._adapter.result(states, lengths)
        self._calls = 0
        output = self._run(parameters)
        if self._calls > 1:
            raise ValueError(f"`core` must be called once in a forward pass; it is called {self._calls} times.")
        if isinstance(output, (tuple, list)) and output:
            output = output[0]
        if not isinstance(output, Tensor):
            raise TypeError(
                f"The model must give a tensor, or a tuple that begins with one; got {type(output).__name__}."
            )
        return output

    def _run(self, parameters: Named) -> Any:
        values = {local: parameters.get(name, self._values[name]) for local, name in self._local.items()}
        return torch.func.functional_call(self._model, values, self._arguments)

    def _replaced(self, *arguments: Any, **keywords: Any) -> Any:
        if self._replacement is None:
            raise _ReachedCoreError(arguments, keywords)
        self._calls += 1
        return self._replacement()


@final
class ModelReadout(Readout):
    """From the states of a core to the output of the model around it, by reverse-mode differentiation.

    Args:
        function: From the parameters and the states `[B, T, n]` to the output.
        states: The recorded states.
        values: Values of the trainable parameters.
        parameters: Their space.
    """

    def __init__(
        self, function: Callable[[Named, Tensor], Tensor], states: Tensor, values: dict[str, Tensor], parameters: Space
    ) -> None:
        self._function = function
        self._states = states
        self._parameters = parameters
        tracked = {name: value.requires_grad_() for name, value in _copies(values).items()}
        with torch.enable_grad():
            outputs = function(tracked, states)
        self._values = {name: values[name] for name in _used([outputs], tracked)}
        self.outputs = outputs.detach()
        check_finite("outputs", self.outputs)
        if not torch.equal(function({}, states), self.outputs):
            raise ValueError(
                "The model gives another output each time it is called. Remove noise from its forward pass."
            )
        self.space = Space.of(outputs.shape, _output_axes(outputs.ndim), outputs.dtype, outputs.device)

    def state_jvp(self, state: Tensor) -> Tensor:
        return pushforward(self._of_states, self._states)(state)

    def state_vjp(self, output: Tensor) -> Tensor:
        return pullback(self._of_states, self._states)(output)

    def parameter_jvp(self, parameter: Tensor) -> Tensor:
        if not self._values:
            return self.space.zeros(len(parameter))
        named = self._parameters.split(parameter)
        return pushforward(self._of_parameters, self._values)({name: named[name] for name in self._values})

    def parameter_vjp(self, output: Tensor) -> Tensor:
        named = self._parameters.split(self._parameters.zeros(len(output)))
        if self._values:
            named |= pullback(self._of_parameters, self._values)(output)
        return self._parameters.join(named)

    def _of_states(self, states: Tensor) -> Tensor:
        return self._function({}, states)

    def _of_parameters(self, values: Named) -> Tensor:
        return self._function(values, self._states)


@final
class CoreReadout(Readout):
    """The output of a bare recurrent module: the leading units of its top layer.

    Args:
        states: The recorded states `[B, T, n]`.
        units: Where the output lies on the unit axis.
        parameters: Space of the trainable parameters, none of which acts on the output directly.
    """

    def __init__(self, states: Tensor, units: slice, parameters: Space) -> None:
        self._units = units
        self._states_shape = states.shape
        self._parameters = parameters
        self.outputs = states[..., units]
        self.space = Space.of(self.outputs.shape, ("trial", "time", "output"), states.dtype, states.device)

    def state_jvp(self, state: Tensor) -> Tensor:
        return state[..., self._units]

    def state_vjp(self, output: Tensor) -> Tensor:
        state = output.new_zeros(len(output), *self._states_shape)
        state[..., self._units] = output
        return state

    def parameter_jvp(self, parameter: Tensor) -> Tensor:
        return self.space.zeros(len(parameter))

    def parameter_vjp(self, output: Tensor) -> Tensor:
        return self._parameters.zeros(len(output))


def find_upstream(function: Callable[[Named], dict[str, Tensor]], values: Mapping[str, Tensor]) -> Upstream | None:
    """Which parameters move the core's inputs or initial state, found from the graph of one forward pass."""
    tracked = {name: value.requires_grad_() for name, value in _copies(values).items()}
    with torch.enable_grad():
        results = function(tracked)
    moves = frozenset(key for key, value in results.items() if value.requires_grad)
    if not moves:
        return None
    used = _used([results[key] for key in moves], tracked)
    if not used:
        return None

    def moved(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value for key, value in function(parameters).items() if key in moves}

    return Upstream(moved, {name: values[name] for name in used}, moves)


def _twin(module: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    """A module tree that shares the parameters of `module` and has its own buffers, containers and attributes.

    A deep copy would fail on modules that keep the result of their last forward pass.
    """
    if id(module) in made:
        return made[id(module)]
    twin = made[id(module)] = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, (dict, list, set)):
            vars(twin)[name] = copy.copy(value)
    for name, buffer in module._buffers.items():
        twin._buffers[name] = None if buffer is None else buffer.clone()
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else _twin(child, made)
    return twin


def _copies(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in values.items()}


def _used(results: list[Tensor], tracked: dict[str, Tensor]) -> list[str]:
    """Names of the tensors on which any of the results depends."""
    moving = [result for result in results if result.requires_grad]
    if not moving or not tracked:
        return []
    seeds = [torch.ones_like(result) for result in moving]
    gradients = torch.autograd.grad(moving, list(tracked.values()), seeds, allow_unused=True)
    return [name for name, gradient in zip(tracked, gradients, strict=True) if gradient is not None]


def _output_axes(ndim: int) -> tuple[str, ...]:
    known = {1: ("trial",), 2: ("trial", "output"), 3: ("trial", "time", "output")}
    return known.get(ndim, tuple(f"axis{i}" for i in range(ndim)))
