"""The graph route: any module, through its captured graph of elementary operations.

The states are the values of some nodes. A tap (a kick added at every state) makes P the derivative of the states with
respect to the taps; a cut (every state replaced by its recorded value) makes ∂F/∂S and J derivatives of the cut graph.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx

from kpflow.spaces import Part, Space

from .base import Linearisation, LinearSite, Site, Trials
from .branches import Branches
from .capture import Graph, capture
from .cuts import Cut, GraphReadout, Tapped
from .derivatives import linear
from .prepare import parameter_space, trainable
from .sites import Placed, find_sites, named_nodes
from .trials import independent, trial_numbers

__all__ = ["GraphLinearisation", "linearise_graph"]

PROBES = 64
"""Probes in one pass through a graph, at most: more take more memory and are no faster (found by trial)."""

PIECE_BYTES = 192 * 2**20
"""Bytes of the values of a graph for the probes of one pass: fewer waste calls, more leave the cache and make the
system hand out and take back pages, which is up to 1.3 times slower (measured on a transformer)."""

Named = Mapping[str, Tensor]

Product = Callable[[Sequence[Tensor]], list[Tensor]]


@final
class GraphLinearisation(Linearisation):
    """The linearised state equation of a captured graph; made by `kpflow.linearise`.

    The space of the states is flat, a part for every state. Weights that a state depends on linearly act through their
    sites; others through the derivative of the cut graph.

    Args:
        graph: The captured graph.
        trained: The trainable parameters by name.
        parameters: Their space.
        nodes: The nodes of the states by name.
        uses: What is known of how weights act on each of these nodes.
        memory: Bytes that a product may take, beside its block and its result.
    """

    def __init__(
        self,
        graph: Graph,
        trained: Named,
        parameters: Space,
        nodes: Mapping[str, fx.Node],
        uses: Mapping[fx.Node, Sequence[Placed]],
        memory: int,
    ) -> None:
        self.parameters = parameters
        self._graph = graph
        self._trained = dict(trained)
        self._nodes = dict(nodes)
        self._uses = {name: tuple(uses.get(node, ())) for name, node in nodes.items()}
        known = {(operation, weight) for found in self._uses.values() for operation, weight, _ in found}
        tapped = Tapped.of(graph, trained, self._nodes)
        self._propagator, self._recorded_bytes = tapped.propagator, tapped.nbytes
        recorded = tapped.states
        self._output = next(n for n in graph.outputs if n.meta["val"].dtype.is_floating_point)
        self._cut = Cut.of(graph, trained, recorded, self._nodes, self._output, known)
        shapes = {name: value.shape for name, value in recorded.items()}
        self.space = Space.of_parts(shapes, "state", parameters.dtype, parameters.device)
        self.states = self.space.join(recorded)
        self._outputs = self.readout = GraphReadout(self._cut, self.space, parameters)
        self._piece = self._probes_within(memory)

    def peak_bytes(self, probes: int) -> int:
        ends = probes * (2 * self.states.nbytes + self._parameter_bytes)
        return self._fixed_bytes + ends + min(probes, self._piece) * self._probe_bytes

    @property
    def core(self) -> Space:
        return self.parameters

    def propagate(self, state: Tensor) -> Tensor:
        return self._to_states(lambda q: self._propagator.jvp(self._parts(q)), state, self.propagate_adjoint)

    def propagate_adjoint(self, state: Tensor) -> Tensor:
        return self._to_states(lambda q: self._propagator.vjp(self._parts(q)), state, self.propagate)

    def residual(self, state: Tensor) -> Tensor:
        return self._to_states(lambda q: self._without(self._cut.of_states.jvp, q), state, self.residual_adjoint)

    def residual_adjoint(self, state: Tensor) -> Tensor:
        return self._to_states(lambda q: self._without(self._cut.of_states.vjp, q), state, self.residual)

    def parameter_jvp(self, parameter: Tensor) -> Tensor:
        return self._to_states(self._immediate, parameter, self.parameter_vjp)

    def parameter_vjp(self, state: Tensor) -> Tensor:
        return self._to_parameters(self._parts, state, self.parameter_jvp)

    def state_jvp(self, parameter: Tensor) -> Tensor:
        return self._to_states(lambda v: self._propagator.jvp(self._immediate(v)), parameter, self.state_vjp)

    def state_vjp(self, state: Tensor) -> Tensor:
        return self._to_parameters(lambda q: self._propagator.vjp(self._parts(q)), state, self.state_jvp)

    def core_jvp(self, core: Tensor) -> Tensor:
        return self.parameter_jvp(core)

    def core_vjp(self, state: Tensor) -> Tensor:
        return self.parameter_vjp(state)

    def state_core_jvp(self, core: Tensor) -> Tensor:
        return self.state_jvp(core)

    def state_core_vjp(self, state: Tensor) -> Tensor:
        return self.state_vjp(state)

    def sites(self) -> dict[str, Site]:
        return {}

    def linear_sites(self) -> dict[str, tuple[LinearSite, ...]]:
        starts = itertools.accumulate((part.size for part in self.space.parts), initial=0)
        return {
            name: tuple(use.site(start) for _, _, use in found)
            for (name, found), start in zip(self._uses.items(), starts, strict=False)
        }

    def trials(self) -> Trials | None:
        return self._trials

    @functools.cached_property
    def _trials(self) -> Trials | None:
        """Found by running the graph on other trials; where that leaves a doubt, by products that keep trials apart."""
        for found in trial_numbers(self._graph, self._trained, [*self._nodes.values(), self._output]):
            *parts, outputs = (numbers.flatten() for numbers in found.numbers)
            states = torch.cat(parts)
            source = torch.cat([states, outputs])
            if found.apart or independent(self._pulled_back, source, states, self.states, self._piece):
                return Trials(int(states.max()) + 1, states, outputs)
        return None

    def _pulled_back(self, flat: Tensor) -> Tensor:
        """Pᵀ of what states and outputs receive."""
        states, outputs = flat.split([self.space.size, self._outputs.space.size], dim=1)
        pulled = self._outputs.state_vjp(outputs.reshape(-1, *self._outputs.space.shape))
        return self.propagate_adjoint(states + pulled)

    @property
    def loose(self) -> tuple[str, ...]:
        return self._cut.loose

    def _immediate(self, parameter: Tensor) -> list[Tensor]:
        """J v, by states."""
        named = self.parameters.split(parameter.contiguous())
        moved = [self._moved(part, named, parameter) for part in self.space.parts]
        if self._cut.loose:
            rest = self._cut.of_parameters.jvp([named[name].clone() for name in self._cut.loose])
            moved = [part + other for part, other in zip(moved, rest, strict=True)]
        return moved

    def _moved(self, part: Part, named: Named, like: Tensor) -> Tensor:
        """What the known uses of weights do to one state."""
        moved = [use.jvp(named).reshape(len(like), *part.shape) for _, _, use in self._uses[part.name]]
        return functools.reduce(torch.Tensor.add_, moved) if moved else like.new_zeros(len(like), *part.shape)

    def _add_pulled(self, parts: Sequence[Tensor], named: dict[str, Tensor]) -> None:
        """Add Jᵀ q, given by states, to blocks of parameters."""
        for found, part in zip(self._uses.values(), parts, strict=True):
            for _, _, use in found:
                use.add_vjp(part, named)
        if self._cut.loose:
            for name, value in zip(self._cut.loose, self._cut.of_parameters.vjp(parts), strict=True):
                named[name].add_(value)

    def _without(self, product: Product, state: Tensor) -> list[Tensor]:
        """q minus a product with it."""
        parts = self._parts(state)
        return [part - moved for part, moved in zip(parts, product(parts), strict=True)]

    def _parts(self, state: Tensor) -> list[Tensor]:
        return list(self.space.split(state).values())

    def _to_states(
        self, function: Callable[[Tensor], Sequence[Tensor]], block: Tensor, adjoint: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """A linear function that gives states, on a block of probes, in pieces that fit the memory."""

        def product(block: Tensor) -> Tensor:
            result = block.new_empty(len(block), self.space.size)
            for piece in self._pieces(block):
                for target, part in zip(self._parts(result[piece]), function(block[piece]), strict=True):
                    target.copy_(part)
            return result

        return linear(product, adjoint, block)

    def _to_parameters(
        self, function: Callable[[Tensor], Sequence[Tensor]], block: Tensor, adjoint: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Jᵀ after a linear function that gives states."""

        def product(block: Tensor) -> Tensor:
            result = self.parameters.zeros(len(block))
            for piece in self._pieces(block):
                self._add_pulled(function(block[piece]), self.parameters.split(result[piece]))
            return result

        return linear(product, adjoint, block)

    def _pieces(self, block: Tensor) -> Iterator[slice]:
        """Probes that are done at once."""
        return (slice(start, start + self._piece) for start in range(0, len(block), self._piece))

    def _probes_within(self, memory: int) -> int:
        least = self._fixed_bytes + self._probe_bytes
        if memory < least:
            raise ValueError(
                f"`memory` must be at least {least} bytes for the recorded graph and one probe of {self.space}; "
                f"got {memory}. Give more, or take fewer trials."
            )
        fast = min(PROBES, PIECE_BYTES // max(1, self._recorded_bytes))
        return max(1, min(fast, (memory - self._fixed_bytes) // self._probe_bytes))

    @property
    def _fixed_bytes(self) -> int:
        """Of the recorded values, of which each tape keeps those that it needs, and of what the weights see."""
        seen = [use.linear.nbytes for found in self._uses.values() for _, _, use in found]
        return 2 * self._recorded_bytes + sum(seen) + max(seen, default=0)

    @property
    def _probe_bytes(self) -> int:
        """Between the block and the result, for each probe: as much as the recorded values at most."""
        return self._recorded_bytes + self.states.nbytes + self._parameter_bytes

    @property
    def _parameter_bytes(self) -> int:
        return self.parameters.size * self.states.element_size()


def linearise_graph(
    model: Any, inputs: Any, states: Any, memory: int, branches: Branches | None = None
) -> GraphLinearisation:
    """Capture a module and linearise it."""
    trained = trainable(model.named_parameters())
    space = parameter_space(trained)
    graph = capture(model, inputs, trained, branches)
    sites = find_sites(graph, trained)
    nodes = sites.nodes if states is None else named_nodes(graph, sites, states)
    if not nodes:
        raise ValueError(
            f"`model` must have a weight site whose result is {space.dtype}, as its parameters are; it has none. Turn "
            "torch.autocast off, or name `states`."
        )
    return GraphLinearisation(graph, trained, space, nodes, sites.uses, memory)
