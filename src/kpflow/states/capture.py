"""Capture: from a module and its inputs to a checked graph of elementary operations."""

import dataclasses
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, InputSpec, OutputKind
from torch.utils import _pytree as pytree

from .branches import Branches
from .exporting import exported
from .purity import leaves_of
from .refusals import (
    check_effects,
    check_inputs,
    check_outputs,
    check_plain,
    check_same,
    failure,
    gradient_error,
)
from .tapes import recording
from .twin import snapshot, twin

__all__ = ["Graph", "arguments_of", "capture"]

CALLED: dict[Any, Any] = {torch.ops.aten.view.default: torch.reshape}
"""What is called in place of an operation: a tensor may lie otherwise in memory than when it was captured."""

Named = Mapping[str, Tensor]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A forward pass on given inputs as elementary operations without side effects.

    Args:
        nodes: The operations in order.
        constants: Values of inputs, buffers, frozen parameters and constants, by their nodes.
        parameters: Names of the trainable parameters, by their nodes.
        inputs: The nodes of `constants` that are the user's inputs.
        outputs: The nodes of the tensors that the model gives.
    """

    nodes: tuple[fx.Node, ...]
    constants: dict[fx.Node, Any]
    parameters: dict[fx.Node, str]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]

    def run(
        self,
        parameters: Named,
        wanted: Collection[fx.Node] = (),
        replaced: Callable[[fx.Node, Sequence[Any], Any], Any] | None = None,
        detached: Collection[tuple[fx.Node, fx.Node]] = (),
        inputs: Mapping[fx.Node, Tensor] | None = None,
        nodes: Sequence[fx.Node] | None = None,
    ) -> dict[fx.Node, Any]:
        """Evaluate the graph.

        Args:
            parameters: Values of the trainable parameters by name.
            wanted: Nodes whose values are asked for.
            replaced: From a node, its arguments and its value to the value that its users see.
            detached: Pairs of a node and an argument of it that is taken as a constant there.
            inputs: Other values of some inputs.
            nodes: The operations that are done, if not all.

        Returns:
            The values of the wanted nodes, as `replaced` gives them.
        """
        own = {node: parameters[name] for node, name in self.parameters.items()}
        values: dict[fx.Node, Any] = {**self.constants, **own, **(inputs or {})}
        found: dict[fx.Node, Any] = {node: values[node] for node in wanted if node in values}
        for node in self.nodes if nodes is None else nodes:
            arguments, keywords = fx.map_arg((node.args, node.kwargs), _reader(node, values, detached))
            value = CALLED.get(node.target, node.target)(*arguments, **keywords)  # type: ignore[operator]
            values[node] = value if replaced is None else replaced(node, arguments, value)
            if node in wanted:
                found[node] = values[node]
            for argument in self._released.get(node, ()):
                values.pop(argument, None)
        return found

    def needed_for(self, nodes: Collection[fx.Node]) -> set[fx.Node]:
        """All that some nodes depend on, themselves included."""
        needed = set(nodes)
        for node in reversed(self.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        return needed

    def upstream_of(self, node: fx.Node) -> list[fx.Node]:
        """The operations that a node depends on, itself included, in order."""
        needed = self.needed_for([node])
        return [other for other in self.nodes if other in needed]

    def __post_init__(self) -> None:
        last: dict[fx.Node, fx.Node] = {}
        for node in self.nodes:
            last |= dict.fromkeys([node, *node.all_input_nodes], node)
        released: dict[fx.Node, list[fx.Node]] = {}
        for argument, node in last.items():
            if argument.op == "call_function":
                released.setdefault(node, []).append(argument)
        object.__setattr__(self, "_released", released)

    _released: dict[fx.Node, list[fx.Node]] = dataclasses.field(init=False)
    """Values that nobody needs after a node."""


def _reader(
    node: fx.Node, values: Mapping[fx.Node, Any], detached: Collection[tuple[fx.Node, fx.Node]]
) -> Callable[[fx.Node], Any]:
    """From the arguments of a node to their values."""
    return lambda argument: values[argument].detach() if (node, argument) in detached else values[argument]


def arguments_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments from what the user gives: a tensor, a tuple, or a mapping from names."""
    if isinstance(inputs, Mapping):
        return (), snapshot(dict(inputs))
    several = isinstance(inputs, tuple) and not isinstance(inputs, nn.utils.rnn.PackedSequence)
    return snapshot(inputs if several else (inputs,)), {}


def capture(model: nn.Module, inputs: Any, trained: Named, branches: Branches | None = None) -> Graph:
    """Capture the forward pass of `model` on `inputs`.

    The graph is that of `torch.export`, decomposed, with nothing left that writes in place or draws random numbers. Its
    outputs and the gradient of a random sum of them are those of the model itself: `detach` and `torch.no_grad` hold.
    A parameter that acts on no output is named in a warning, and has columns of zeros.

    Args:
        model: The model; a twin of it is run.
        inputs: A tensor, a tuple of arguments, or a mapping of named arguments.
        trained: The trainable parameters by name.
        branches: Where control flow that depends on values is recorded, to be followed; refused by default.

    Raises:
        TypeError: An input is a NumPy array.
        ValueError: The inputs are empty or not finite, the model fails on them, its control flow depends on data, it
            writes to its inputs or buffers, draws random numbers, gives no tensor, reaches parameters past the module
            tree, or the graph does not compute what the model does. Each names the operation and its place in the
            user's source where there is one.
    """
    check_plain(model)
    check_inputs(inputs)
    arguments, keywords = arguments_of(inputs)
    names = {id(value): name for name, value in model.named_parameters()}
    forward = _forward(model, names, (arguments, keywords))
    branches = branches or Branches("refuse")
    with branches.recorded():
        expected = _run(forward, trained)
    check_outputs(expected.outputs, expected.reached, lambda: _run(forward, trained).reached, names)
    with branches.followed():
        program = exported(_giving_tensors(twin(model)), arguments, keywords)
    check_effects(program)
    graph = _assembled(program, model, (arguments, keywords), trained)

    def run(values: Named) -> list[Tensor]:
        given = graph.run(values, graph.outputs)
        return [given[node] for node in graph.outputs]

    found = _run(run, trained)
    check_same((found.outputs, found.gradients), (expected.outputs, expected.gradients), lambda: forward(trained))
    _check_used(graph, trained)
    return graph


def _assembled(program: Any, model: nn.Module, call: Any, trained: Named) -> Graph:
    """The graph of an exported program, with the values of all that is not trained."""
    names = {id(value): name for name, value in model.named_parameters()}
    own = dict(model.named_parameters(remove_duplicate=False))
    constants: dict[fx.Node, Any] = {}
    parameters: dict[fx.Node, str] = {}
    given: list[fx.Node] = []
    leaves = iter(pytree.tree_leaves(call))
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.TOKEN:
            continue
        if spec.kind is InputKind.USER_INPUT:
            constants[node] = next(leaves)
            given.append(node)
        elif spec.kind is InputKind.PARAMETER and names[id(own[str(spec.target)])] in trained:
            parameters[node] = names[id(own[str(spec.target)])]
        else:
            constants[node] = _stored(program, spec)
    for node in program.graph.nodes:
        if node.op == "get_attr":
            constants[node] = getattr(program.graph_module, str(node.target))
    (last,) = (node for node in program.graph.nodes if node.op == "output")
    results = zip(last.args[0], program.graph_signature.output_specs, strict=True)
    outputs = tuple(node for node, spec in results if isinstance(node, fx.Node) and spec.kind is OutputKind.USER_OUTPUT)
    nodes = tuple(node for node in program.graph.nodes if node.op == "call_function" and not _is_check(node))
    return Graph(nodes, constants, parameters, tuple(given), outputs)


def _is_check(node: fx.Node) -> bool:
    """Whether a node only checks values (that a matrix can be inverted) and hands on a token of having done so."""
    of = node.args[0] if node.args and getattr(node.target, "__name__", "") == "getitem" else node
    return getattr(getattr(of, "target", None), "__name__", "") == "with_effects"


def _forward(model: nn.Module, names: Mapping[int, str], call: Any) -> Callable[[Named], list[Tensor]]:
    """The tensors that the model gives, as a function of its trainable parameters by name."""
    module = _giving_tensors(twin(model))
    local = {name: names[id(value)] for name, value in module.named_parameters(remove_duplicate=False)}
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}

    def run(values: Named) -> list[Tensor]:
        given = {**frozen, **values}
        swapped = {name: given[own] for name, own in local.items()}
        try:
            return list(torch.func.functional_call(twin(module), swapped, *snapshot(call)))
        except Exception as error:
            raise failure(error, model, call) from error

    return run


def _giving_tensors(module: nn.Module) -> nn.Module:
    """The module, which is a twin, with the tensors of its outputs as what it gives: by a last hook."""
    module.register_forward_hook(lambda _module, _arguments, outputs: tuple(_tensors_of(outputs)))
    return module


def _tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, mappings and dataclasses."""
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _tensors_of([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
        elif isinstance(leaf, Mapping):
            yield from _tensors_of(list(leaf.values()))


@final
@dataclasses.dataclass(frozen=True, eq=False)
class _Run:
    """What a function of the parameters gives.

    Args:
        outputs: Its tensors.
        gradients: Of a random sum of them, by parameter.
        reached: Other leaves that they depend on, by identity.
    """

    outputs: list[Tensor]
    gradients: dict[str, Tensor]
    reached: dict[int, Tensor]


def _run(function: Callable[[Named], list[Tensor]], values: Named) -> _Run:
    with recording():
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        own = {id(leaf) for leaf in leaves.values()}
        outputs = function(leaves)
        reached = {key: leaf for key, leaf in leaves_of(outputs).items() if key not in own}
        moving = [(number, output) for number, output in enumerate(outputs) if output.requires_grad]
        gradients: Sequence[Tensor] = [torch.zeros_like(value) for value in values.values()]
        if moving:
            weights = [_random_like(output, number) for number, output in moving]
            gradients = _gradients([output for _, output in moving], list(leaves.values()), weights)
    return _Run(outputs, dict(zip(values, gradients, strict=True)), reached)


def _gradients(outputs: Sequence[Tensor], leaves: Sequence[Tensor], weights: Sequence[Tensor]) -> Sequence[Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backward hooks, that nothing before them needs a gradient
            return torch.autograd.grad(outputs, leaves, weights, materialize_grads=True)
    except Exception as error:
        raise gradient_error(error) from error


def _random_like(output: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(output.shape, dtype=output.dtype, generator=generator).to(output.device)


def _stored(program: Any, spec: InputSpec) -> Any:
    """The value of a buffer, a frozen parameter or a constant."""
    held = program.constants if spec.kind is InputKind.CONSTANT_TENSOR else program.state_dict
    value = held[str(spec.target)] if str(spec.target) in held else program.constants[str(spec.target)]
    return value.detach().clone() if isinstance(value, Tensor) else value


def _check_used(graph: Graph, trained: Named) -> None:
    """Name the parameters that act on no output."""
    needed = graph.needed_for(graph.outputs)
    used = {name for node, name in graph.parameters.items() if node in needed}
    idle = [name for name in trained if name not in used]
    if idle:
        warnings.warn(
            f"The parameters {', '.join(idle)} of `model` act on none of its outputs, so their columns of J are zero. "
            "Freeze them with requires_grad_(False) to leave them out.",
            stacklevel=5,  # the caller of kpflow.linearise
        )
