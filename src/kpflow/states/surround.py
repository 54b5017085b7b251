"""The model around its recurrent core: what happens before it (encoders, initial states) and after (the read-out)."""

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from kpflow._checks import check_finite
from kpflow.spaces import Space

from .adapters import Adapter, Call
from .base import Readout
from .derivatives import linear, pullback, pushforward
from .purity import check_pure
from .recurrent import Upstream
from .tapes import recording, used
from .twin import snapshot, twin

__all__ = ["LEAK", "CoreReadout", "ModelReadout", "Surround", "find_upstream"]

NOISE = "The model gives {} each time it is called. Remove noise from its forward pass."
LEAK = (
    "The model reaches trainable parameters past its registered submodules ({}), so their part of K would be missing. "
    "Keep submodules in nn.ModuleList or nn.ModuleDict and call them through self, or freeze with "
    "requires_grad_(False) what is not trained."
)

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

    Works on twins of the module tree that share the parameters and own the rest, in which the core's forward pass is
    replaced; the user's model is not touched. The model's state and its inputs are those at the time it was made.

    Args:
        model: The user's model, in evaluation mode as far as dropout and batch norm go.
        core: Name of its recurrent submodule.
        inputs: What the model is called with.
        adapter: Of the core.
    """

    def __init__(self, model: nn.Module, core: str, inputs: Any, adapter: Adapter) -> None:
        self._model = twin(model)
        self._core = core
        self._adapter = adapter
        several = isinstance(inputs, tuple) and not isinstance(inputs, nn.utils.rnn.PackedSequence)
        self._arguments = snapshot(inputs if several else (inputs,))
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        own = self._model.named_parameters(remove_duplicate=False)
        self._local = {name: self._names[id(parameter)] for name, parameter in own}
        self._values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def call(self) -> Call:
        """The call of the core at the model's own parameters, checked to depend on them and on no others."""

        def tensors() -> list[Tensor]:
            call = self.reach({})
            initial = call.initial if isinstance(call.initial, (tuple, list)) else [call.initial]
            return [call.inputs, *(state for state in initial if isinstance(state, Tensor))]

        check_pure(tensors, self._names, NOISE.format("the core other inputs"), LEAK)
        return self.reach({})

    def check_output(self, states: Tensor, lengths: Tensor | None) -> None:
        """Refuse an output that depends on other parameters than the model's own, or is random."""
        check_pure(lambda: [self.finish({}, states, lengths)], self._names, NOISE.format("another output"), LEAK)

    def reach(self, parameters: Named) -> Call:
        """The call of the core, as a function of the parameters."""

        def stop(*arguments: Any, **keywords: Any) -> Any:
            raise _ReachedCoreError(arguments, keywords)

        try:
            self._run(parameters, stop)
        except _ReachedCoreError as reached:
            return self._adapter.call(reached.arguments, reached.keywords)
        raise ValueError(
            "`core` is not called by the model's forward pass; name the recurrent module that is, and call it through "
            "self, not through a closure."
        )

    def finish(self, parameters: Named, states: Tensor, lengths: Tensor | None) -> Tensor:
        """The model's output, as a function of the parameters and of the core's states `[B, T, n]`."""
        calls = 0

        def resume(*arguments: Any, **keywords: Any) -> Any:  # noqa: ARG001 - the states are known
            nonlocal calls
            calls += 1
            return self._adapter.result(states, lengths)

        output = self._run(parameters, resume)
        if calls > 1:
            raise ValueError(f"`core` must be called once in a forward pass; it is called {calls} times.")
        if isinstance(output, (tuple, list)) and output:
            output = output[0]
        if not isinstance(output, Tensor):
            raise TypeError(
                f"The model must give a tensor, or a tuple that begins with one; got {type(output).__name__}."
            )
        return output

    def _run(self, parameters: Named, forward: Callable[..., Any]) -> Any:
        """The forward pass with the core's replaced: on a twin of its own, from the same state each time."""
        model = twin(self._model, generators=False)
        model.get_submodule(self._core).forward = forward
        values = {local: parameters.get(name, self._values[name]) for local, name in self._local.items()}
        return torch.func.functional_call(model, values, snapshot(self._arguments, generators=False))


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
        with recording():
            outputs = function(tracked, states)
        self._values = {name: values[name] for name in used([outputs], tracked)}
        self.outputs = outputs.detach()
        check_finite("outputs", self.outputs)
        self.space = Space.of(outputs.shape, _output_axes(outputs.ndim), outputs.dtype, outputs.device)

    @property
    def has_parameters(self) -> bool:
        return bool(self._values)

    def state_jvp(self, state: Tensor) -> Tensor:
        return linear(pushforward(self._of_states, self._states), self.state_vjp, state)

    def state_vjp(self, output: Tensor) -> Tensor:
        return linear(pullback(self._of_states, self._states), self.state_jvp, output)

    def parameter_jvp(self, parameter: Tensor) -> Tensor:
        if not self._values:
            return self.space.zeros(len(parameter))
        return linear(self._parameter_jvp, self.parameter_vjp, parameter)

    def parameter_vjp(self, output: Tensor) -> Tensor:
        return linear(self._parameter_vjp, self.parameter_jvp, output)

    def _parameter_jvp(self, parameter: Tensor) -> Tensor:
        named = self._parameters.split(parameter)
        return pushforward(self._of_parameters, self._values)({name: named[name] for name in self._values})

    def _parameter_vjp(self, output: Tensor) -> Tensor:
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

    @property
    def has_parameters(self) -> bool:
        return False

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
    with recording():
        results = function(tracked)
    moves = frozenset(key for key, value in results.items() if value.requires_grad)
    if not moves:
        return None
    names = used([results[key] for key in moves], tracked)
    if not names:
        return None

    def moved(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value for key, value in function(parameters).items() if key in moves}

    return Upstream(moved, {name: values[name] for name in names}, moves)


def _copies(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in values.items()}


def _output_axes(ndim: int) -> tuple[str, ...]:
    known = {1: ("trial",), 2: ("trial", "output"), 3: ("trial", "time", "output")}
    return known.get(ndim, tuple(f"axis{i}" for i in range(ndim)))
