"""Taps and cuts: the two recordings of a captured graph that P, and that ∂F/∂S, J and the read-out come from."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx

from kpflow.spaces import Space

from .base import Readout
from .capture import Graph
from .derivatives import linear
from .tapes import Tape, recording, used

__all__ = ["Cut", "GraphReadout", "Tapped"]

Named = Mapping[str, Tensor]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Tapped:
    """The graph with a kick added at every state, of which P is the derivative.

    Args:
        states: The recorded states by name.
        propagator: P.
        nbytes: Bytes of all values of the graph, views aside.
    """

    states: dict[str, Tensor]
    propagator: Tape
    nbytes: int

    @staticmethod
    def of(graph: Graph, trained: Named, nodes: Mapping[str, fx.Node]) -> "Tapped":
        """Run the graph once."""
        names = {node: name for name, node in nodes.items()}
        taps: dict[str, Tensor] = {}
        states: dict[str, Tensor] = {}
        nbytes = 0

        def tap(node: fx.Node, arguments: Sequence[Any], value: Any) -> Any:
            nonlocal nbytes
            nbytes += _own_bytes(value, arguments)
            if node not in names:
                return value
            taps[names[node]] = torch.zeros_like(value, memory_format=torch.contiguous_format).requires_grad_()
            states[names[node]] = value + taps[names[node]]
            return states[names[node]]

        with recording():
            graph.run(trained, replaced=tap)
        recorded = {name: states[name].detach() for name in nodes}
        return Tapped(recorded, Tape([states[n] for n in nodes], [taps[n] for n in nodes]), nbytes)


def _own_bytes(value: Any, arguments: Sequence[Any]) -> int:
    """Bytes of a result that is no view of an argument."""
    if not isinstance(value, Tensor):
        return sum(_own_bytes(part, arguments) for part in value) if isinstance(value, (tuple, list)) else 0
    seen = {argument.untyped_storage().data_ptr() for argument in arguments if isinstance(argument, Tensor)}
    return 0 if value.untyped_storage().data_ptr() in seen else value.nbytes


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """The graph with every state replaced by its recorded value: S = F(S, θ) and y = g(S, θ), differentiated.

    Args:
        of_states: ∂F/∂S.
        of_parameters: ∂F/∂θ of the parameters `loose`, without the uses that are known.
        loose: The parameters that act on a state in another way than the known ones.
        outputs: y.
        outputs_of_states: ∂g/∂S.
        outputs_of_parameters: ∂g/∂θ of the parameters `own`.
        own: The parameters that act on y directly.
    """

    of_states: Tape
    of_parameters: Tape
    loose: tuple[str, ...]
    outputs: Tensor
    outputs_of_states: Tape
    outputs_of_parameters: Tape
    own: tuple[str, ...]

    @staticmethod
    def of(
        graph: Graph,
        trained: Named,
        states: Named,
        nodes: Mapping[str, fx.Node],
        output: fx.Node,
        known: Collection[tuple[fx.Node, fx.Node]],
    ) -> "Cut":
        """Run the graph once; `known` holds the pairs of an operation and a weight that are left out of J."""
        names = {node: name for name, node in nodes.items()}
        moved: dict[str, Tensor] = {}
        with recording():
            leaves = {name: states[name].detach().clone().requires_grad_() for name in nodes}
            values = {name: value.detach().clone().requires_grad_() for name, value in trained.items()}

            def cut(node: fx.Node, _: Sequence[Any], value: Any) -> Any:
                if node not in names:
                    return value
                moved[names[node]] = value
                return leaves[names[node]]

            y = graph.run(values, [output], replaced=cut, detached=known)[output]
        F, S = [moved[name] for name in nodes], list(leaves.values())
        loose, own = used(F, values), used([y], values)
        return Cut(
            Tape(F, S),
            Tape(F, [values[name] for name in loose]),
            loose,
            y.detach(),
            Tape([y], S),
            Tape([y], [values[name] for name in own]),
            own,
        )


@final
class GraphReadout(Readout):
    """The output of a captured graph, as a function of its states and of the parameters that act on it directly.

    Args:
        cut: The cut graph.
        states: Space of the states.
        parameters: Space of the trainable parameters.
    """

    def __init__(self, cut: Cut, states: Space, parameters: Space) -> None:
        self._cut = cut
        self._states = states
        self._parameters = parameters
        self.outputs = cut.outputs
        axes = ("trial", *(f"axis{i}" for i in range(1, self.outputs.ndim - 1)), "output")[: self.outputs.ndim]
        self.space = Space.of(self.outputs.shape, axes, self.outputs.dtype, self.outputs.device)

    @property
    def has_parameters(self) -> bool:
        return bool(self._cut.own)

    def state_jvp(self, state: Tensor) -> Tensor:
        return linear(self._state_jvp, self.state_vjp, state)

    def state_vjp(self, output: Tensor) -> Tensor:
        return linear(self._state_vjp, self.state_jvp, output)

    def parameter_jvp(self, parameter: Tensor) -> Tensor:
        return linear(self._parameter_jvp, self.parameter_vjp, parameter)

    def parameter_vjp(self, output: Tensor) -> Tensor:
        return linear(self._parameter_vjp, self.parameter_jvp, output)

    def _state_jvp(self, state: Tensor) -> Tensor:
        return self._cut.outputs_of_states.jvp(list(self._states.split(state).values()))[0]

    def _state_vjp(self, output: Tensor) -> Tensor:
        found = self._cut.outputs_of_states.vjp([output])
        return torch.cat([value.flatten(1) for value in found], dim=1)

    def _parameter_jvp(self, parameter: Tensor) -> Tensor:
        if not self._cut.own:
            return self.space.zeros(len(parameter))
        named = self._parameters.split(parameter)
        return self._cut.outputs_of_parameters.jvp([named[name].clone() for name in self._cut.own])[0]

    def _parameter_vjp(self, output: Tensor) -> Tensor:
        result = self._parameters.zeros(len(output))
        named = self._parameters.split(result)
        for name, value in zip(self._cut.own, self._cut.outputs_of_parameters.vjp([output]), strict=True):
            named[name].copy_(value)
        return result
