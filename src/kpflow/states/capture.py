"""Capture: from a module and its inputs to a checked graph of elementary operations."""

import dataclasses
import traceback
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, InputSpec
from torch.utils import _pytree as pytree

from .derivatives import is_same
from .tapes import recording
from .twin import snapshot, twin

__all__ = ["Graph", "arguments_of", "capture", "place_of"]

LIBRARY = ("/torch/", "<eval_with_key>", "/kpflow/states/")  # frames that are not the user's own

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
            value = node.target(*arguments, **keywords)  # type: ignore[operator]
            values[node] = value if replaced is None else replaced(node, arguments, value)
            if node in wanted:
                found[node] = values[node]
            for argument in self._released.get(node, ()):
                values.pop(argument, None)
        return found

    def upstream_of(self, node: fx.Node) -> list[fx.Node]:
        """The operations that a node depends on, itself included, in order."""
        needed = {node}
        for other in reversed(self.nodes):
            if other in needed:
                needed.update(other.all_input_nodes)
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
    taken = snapshot(inputs)
    if isinstance(taken, Mapping):
        return (), dict(taken)
    return (taken, {}) if isinstance(taken, tuple) else ((taken,), {})


def capture(model: nn.Module, inputs: Any, trained: Named) -> Graph:
    """Capture the forward pass of `model` on `inputs`.

    The graph is that of `torch.export`, decomposed, with nothing left that writes in place or draws random numbers. Its
    outputs and the gradient of a random sum of them are those of the model itself.

    Args:
        model: The model; a twin of it is run.
        inputs: A tensor, a tuple of arguments, or a mapping of named arguments.
        trained: The trainable parameters by name.

    Raises:
        ValueError: The model fails on these inputs, its control flow depends on data, it writes to its inputs or
            buffers, draws random numbers, gives no tensor, reaches parameters past the module tree, or the graph does
            not compute what the model does. Each names the operation and its place in the user's source where there is
            one.
    """
    arguments, keywords = arguments_of(inputs)
    expected = _forward(twin(model), arguments, keywords)
    program = _export(model, arguments, keywords)
    _check_effects(program)
    names = {id(value): name for name, value in model.named_parameters()}
    own = dict(model.named_parameters(remove_duplicate=False))
    constants: dict[fx.Node, Any] = {}
    parameters: dict[fx.Node, str] = {}
    given: list[fx.Node] = []
    leaves = iter(pytree.tree_leaves((arguments, keywords)))
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
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
    outputs = tuple(node for node in last.args[0] if isinstance(node, fx.Node))
    nodes = tuple(node for node in program.graph.nodes if node.op == "call_function")
    graph = Graph(nodes, constants, parameters, tuple(given), outputs)
    _check_same(graph, expected, model, trained, (arguments, keywords))
    return graph


def _forward(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> list[Tensor]:
    """The tensors that the model itself gives."""
    try:
        outputs = module(*snapshot(arguments), **snapshot(keywords))
    except Exception as error:
        raise ValueError(
            f"`model` fails on these inputs ({_described((arguments, keywords))}){_where(error)} with "
            f"{type(error).__name__}: {error} {_integer_remedy((arguments, keywords))}".rstrip()
        ) from error
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    if not any(tensor.dtype.is_floating_point for tensor in tensors):
        raise ValueError(
            f"`model` must give a floating-point tensor, or nested tuples, lists or dicts with one; got "
            f"{type(outputs).__name__}. Wrap it in a module whose forward pass returns its tensors."
        )
    return tensors


def _export(model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The decomposed program."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.export about itself
            exported = torch.export.export(twin(model), arguments, keywords, strict=False)
            return exported.run_decompositions()
    except Exception as error:
        dependent = any(word in f"{type(error).__name__} {error}" for word in ("data-dependent", "DataDependent"))
        reason = (
            "its control flow or a shape depends on the values of tensors"
            if dependent
            else f"torch.export says: {type(error).__name__}: {_first_line(error)}"
        )
        remedy = "Use torch.where, or give the branch as an argument." if dependent else "Rewrite this operation."
        raise ValueError(f"`model` cannot be captured as a graph: {reason}{_where(error)}. {remedy}") from error


def _check_effects(program: Any) -> None:
    """Refuse what writes or is random."""
    signature = program.graph_signature
    if signature.user_inputs_to_mutate:
        names = sorted(set(signature.user_inputs_to_mutate.values()))
        raise ValueError(
            f"`model` writes into its inputs in place ({', '.join(names)}). Use the forms that give new tensors."
        )
    if signature.buffers_to_mutate:
        names = sorted(set(signature.buffers_to_mutate.values()))
        raise ValueError(
            f"`model` writes into its buffers ({', '.join(names)}) as it runs. Call model.eval(), or make it pure."
        )
    for node in program.graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags:
            raise ValueError(
                f"`model` draws random numbers ({node.target}) {place_of(node)}, so states are random. "
                f"Call model.eval() first, or remove the noise."
            )


def _stored(program: Any, spec: InputSpec) -> Any:
    """The value of a buffer, a frozen parameter or a constant; a parameter among the constants was not registered."""
    if spec.kind is InputKind.CONSTANT_TENSOR or str(spec.target) in program.constants:
        value = program.constants[str(spec.target)]
        if isinstance(value, Tensor) and value.requires_grad:
            raise ValueError(
                f"`model` reaches a trainable parameter past its registered submodules (one of shape "
                f"{tuple(value.shape)}), so its part of K would be missing. Keep submodules in nn.ModuleList or "
                "nn.ModuleDict, or freeze it with requires_grad_(False)."
            )
    else:
        value = program.state_dict[str(spec.target)]
    return value.detach().clone() if isinstance(value, Tensor) else value


def _check_same(graph: Graph, expected: list[Tensor], model: nn.Module, trained: Named, call: tuple[Any, Any]) -> None:
    """Refuse a graph whose outputs, or a gradient, are not the model's."""
    found = graph.run(trained, graph.outputs)
    outputs = [found[node] for node in graph.outputs if isinstance(found[node], Tensor)]
    same = len(outputs) == len(expected) and all(_close(o, e) for o, e in zip(outputs, expected, strict=True))
    if not same:
        raise ValueError(
            "`model` gives other outputs than its captured graph: it is random, or depends on something that changes "
            "between calls. Remove that from its forward pass."
        )
    ours = _gradient(trained, lambda values: list(graph.run(values, graph.outputs).values()))
    arguments, keywords = call
    module, names = twin(model), {id(value): name for name, value in model.named_parameters()}
    local = {name: names[id(value)] for name, value in module.named_parameters(remove_duplicate=False)}

    def functional(values: Named) -> list[Tensor]:
        swapped = {name: values[own] for name, own in local.items() if own in values}
        outputs = torch.func.functional_call(module, swapped, snapshot(arguments), snapshot(keywords))
        return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]

    theirs = _gradient(trained, functional)
    worst = [name for name in trained if not _close(ours[name], theirs[name])]
    if worst:
        raise ValueError(
            f"The gradient of `model` with respect to {', '.join(worst[:3])} is not that of its captured graph. It may "
            "have a custom backward pass, which a graph does not know."
        )


def _gradient(values: Named, function: Callable[[Named], list[Tensor]]) -> dict[str, Tensor]:
    """Of a random sum of the outputs."""
    with recording():
        leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
        outputs = [output for output in function(leaves) if output.requires_grad]
        if not outputs:
            return {name: torch.zeros_like(value) for name, value in values.items()}
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(o.shape, dtype=o.dtype, generator=generator).to(o.device) for o in outputs]
        found = torch.autograd.grad(outputs, list(leaves.values()), weights, materialize_grads=True)
    return dict(zip(values, found, strict=True))


def _close(one: Any, other: Any) -> bool:
    """Equal to about the square root of rounding: fused kernels and their decompositions round differently."""
    if not isinstance(one, Tensor) or one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not (one.dtype.is_floating_point or one.dtype.is_complex) or is_same(one, other):
        return True
    return bool((one - other).abs().max() <= torch.finfo(one.dtype).eps ** 0.5 * other.abs().max())


def place_of(node: fx.Node) -> str:
    """Where in the user's source a node comes from, as "at file:line (code)"."""
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].lstrip().startswith("File ") and not any(word in lines[index] for word in LIBRARY):
            _, path, rest = lines[index].split('"', 2)
            code = lines[index + 1].strip() if index + 1 < len(lines) else ""
            return f"at {path}:{rest.split(',')[1].removeprefix(' line ')} ({code})"
    scope = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return f"in module `{scope[-1]}`" if scope and scope[-1] else "in its forward pass"


def _where(error: BaseException) -> str:
    """Where in the user's source an error was raised."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not any(word in f.filename for word in LIBRARY)]
    frames = [f for f in frames if "/_pytest/" not in f.filename]
    return f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else ""


def _described(call: Any) -> str:
    tensors = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor)]
    return ", ".join(f"{tensor.dtype} of shape {tuple(tensor.shape)}" for tensor in tensors) or "no tensor"


def _integer_remedy(call: Any) -> str:
    tensors = [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor)]
    if tensors and not any(tensor.dtype.is_floating_point for tensor in tensors):
        return "The inputs are whole numbers: a model without an embedding needs floating-point ones."
    return ""
