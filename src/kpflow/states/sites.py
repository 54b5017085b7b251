"""Weight sites of a graph: where its weights act, on which states, and on what."""

import dataclasses
import fnmatch
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx

from .capture import Graph
from .patterns import linear_use
from .uses import Derived, Gathered, Operand, Use, View

__all__ = ["Sites", "find_sites", "named_nodes"]

aten = torch.ops.aten

SAME_ORDER = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.clone.default,
}
"""Operations that keep the entries and their row-major order."""

MATERIAL = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.convolution.default}
"""Operations that make a state even where all but the weight is a constant that the forward pass makes (zeros)."""

FACTORIES = {aten.full.default, aten.zeros.default, aten.ones.default, aten.full_like.default, aten.zeros_like.default}
"""Operations that make a constant."""

Named = Mapping[str, Tensor]

Placed = tuple[fx.Node, fx.Node, Use]
"""An operation, the weight among its arguments, and how it uses it."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Sites:
    """Where the weights of a graph act.

    Args:
        uses: What weights do up to a node that adds up nothing else, for every such node.
        nodes: The last such node of every site, by name: the states.
    """

    uses: dict[fx.Node, list[Placed]]
    nodes: dict[str, fx.Node]


def find_sites(graph: Graph, trained: Named) -> Sites:
    """Find the operations that consume parameters, with what they see.

    A site goes on through what keeps its entries (a reshape of a linear layer's result) and through sums with other
    weights of the same module (a bias, a second product), as long as nothing else reads what lies between.

    Args:
        graph: The captured graph.
        trained: The trainable parameters by name.
    """
    finder = _Finder(graph, trained)
    graph.run(finder.trained, replaced=finder.visit)
    return finder.found()


@final
class _Finder:
    """One pass through a graph."""

    def __init__(self, graph: Graph, trained: Named) -> None:
        self.trained = {name: value.contiguous() for name, value in trained.items()}
        self._graph = graph
        self._owners = {value.untyped_storage().data_ptr(): name for name, value in self.trained.items()}
        (self._dtype,) = {value.dtype for value in trained.values()}
        self._weights: dict[fx.Node, tuple[str, ...]] = {
            node: (name,) for node, name in graph.parameters.items()
        }  # made of parameters alone
        self._moving = set(graph.inputs)
        self._made: set[fx.Node] = set()  # constants that the forward pass makes
        self._uses: dict[fx.Node, list[Placed]] = {}
        self._names: dict[fx.Node, str] = {}
        self._absorbed: set[fx.Node] = set()
        self._several: dict[fx.Node, tuple[str, list[Placed]]] = {}  # operations with several results

    def found(self) -> Sites:
        """The sites, named after their first weight."""
        nodes: dict[str, fx.Node] = {}
        count: Counter[str] = Counter()
        for node, name in self._names.items():
            if node not in self._absorbed:
                nodes[f"{name}@{count[name]}" if count[name] else name] = node
                count[name] += 1
        return Sites(self._uses, nodes)

    def visit(self, node: fx.Node, arguments: Sequence[Any], value: Any) -> Any:
        """Classify a node; its value goes on unchanged."""
        given = node.all_input_nodes
        weights = [argument for argument in given if argument in self._weights]
        others = [argument for argument in given if argument not in self._weights]
        if node.target in FACTORIES or (given and all(argument in self._made for argument in given)):
            self._made.add(node)
        acts = any(a in self._moving for a in others) or (
            node.target in MATERIAL and any(a in self._made for a in others)
        )
        if weights and not acts:
            self._weights[node] = tuple(dict.fromkeys(name for w in weights for name in self._weights[w]))
            return value
        if acts or any(argument in self._moving for argument in others):
            self._moving.add(node)
        if weights:
            self._open_or_extend(node, arguments, weights, value)
        elif node.target is operator.getitem and given[0] in self._several:
            if node.args[1] == 0:
                self._open(node, value, *self._several[given[0]])
        elif self._goes_on(node, given, value):
            self._take(node, given)
        return value

    def _open_or_extend(self, node: fx.Node, arguments: Sequence[Any], weights: Sequence[fx.Node], value: Any) -> None:
        """A node that consumes weights: a site of its own, or a bias of the one before."""
        result = value if isinstance(value, Tensor) else value[0]
        uses = [use for weight in weights for use in self._uses_of(node, arguments, weight, result)]
        before = [argument for argument in node.all_input_nodes if argument not in weights]
        if node.target is aten.add.Tensor and uses and self._goes_on(node, before, value):
            self._take(node, before)
            self._uses[node] += uses
            return
        name = _site_name([name for weight in weights for name in self._weights[weight]])
        if isinstance(value, Tensor):
            self._open(node, value, name, uses)
        else:
            self._several[node] = name, uses

    def _open(self, node: fx.Node, value: Any, name: str, uses: list[Placed]) -> None:
        if isinstance(value, Tensor) and value.dtype is self._dtype:
            self._uses[node] = list(uses)
            self._names[node] = name

    def _goes_on(self, node: fx.Node, given: Sequence[fx.Node], value: Any) -> bool:
        """Whether the sites that `node` reads go on in it."""
        if not given or any(a not in self._names or len(a.users) > 1 or _scope(a) != _scope(node) for a in given):
            return False
        shapes = {tuple(argument.meta["val"].shape) for argument in given}
        if node.target in SAME_ORDER:
            return value.ndim > 0 and next(iter(shapes))[-1:] == tuple(value.shape[-1:])
        return node.target is aten.add.Tensor and not node.kwargs and shapes == {tuple(value.shape)}

    def _take(self, node: fx.Node, given: Sequence[fx.Node]) -> None:
        self._uses[node] = [use for argument in given for use in self._uses[argument]]
        self._names[node] = self._names[given[0]]
        self._absorbed |= set(given)

    def _uses_of(self, node: fx.Node, arguments: Sequence[Any], weight: fx.Node, result: Tensor) -> list[Placed]:
        """How a node uses one weight; nothing where it is not known to be linear in it, or not once."""
        positions = [i for i, argument in enumerate(node.args) if argument is weight]
        if len(positions) != 1 or node.kwargs or node.all_input_nodes.count(weight) != 1:
            return []
        found = linear_use(node.target, arguments, positions[0], result)
        if found is None:
            return []
        seen, linear = found
        return [(node, weight, Use(self._operand(weight, arguments[positions[0]], seen), linear))]

    def _operand(self, weight: fx.Node, value: Tensor, seen: Callable[[Tensor], Tensor]) -> Operand:
        """A weight as a view of one parameter, or as a function of several."""
        taken = _viewed(seen, value)
        name = self._owners.get(value.untyped_storage().data_ptr())
        if taken is not None and name is not None and 0 not in taken.stride():
            return View(name, tuple(taken.shape), taken.stride(), int(taken.storage_offset()))
        upstream = self._graph.upstream_of(weight)

        def function(values: Named) -> Tensor:
            return seen(self._graph.run({**self.trained, **values}, [weight], nodes=upstream)[weight])

        values = {name: self.trained[name] for name in self._weights[weight]}
        return _gathered(function, values) or Derived(function, values)


def _gathered(function: Callable[[Named], Tensor], values: Named) -> Gathered | None:
    """The weight as entries of one parameter, if it is: tried on the entries' numbers, and on random ones."""
    if len(values) > 1:
        return None
    ((name, value),) = values.items()
    generator = torch.Generator(value.device).manual_seed(0)
    noise = torch.rand(value.shape, dtype=torch.float64, device=value.device, generator=generator)
    try:
        numbers = function({name: torch.arange(value.numel(), device=value.device).double().reshape(value.shape)})
        entries = numbers.round().long()
        if bool((entries < 0).any()) or bool((entries >= value.numel()).any()):
            return None
        same = torch.equal(function({name: noise}), noise.flatten()[entries])
    except RuntimeError:  # mixes data types
        return None
    return Gathered(name, entries) if same else None


def _viewed(seen: Callable[[Tensor], Tensor], value: Tensor) -> Tensor | None:
    """A view of the value, if there is one."""
    taken = seen(value)
    return taken if taken.untyped_storage().data_ptr() == value.untyped_storage().data_ptr() else None


def _scope(node: fx.Node) -> str:
    """The call of the module that a node belongs to."""
    return next(reversed(node.meta.get("nn_module_stack") or {"": ""}))


def _site_name(parameters: Sequence[str]) -> str:
    """The module of the first weight, or the weight itself."""
    name = next((p for p in parameters if "weight" in p.rpartition(".")[2] or ".weight." in p), parameters[0])
    return name.split(".parametrizations.")[0].removesuffix(".weight")


def named_nodes(graph: Graph, sites: Sites, wanted: Sequence[str]) -> dict[str, fx.Node]:
    """The nodes of the states that a user names: outputs of modules, sites, operations, the "output".

    Raises:
        ValueError: Nothing has one of the names.
    """
    dtypes = {node.meta["val"].dtype for node in graph.parameters}
    outputs = [node for node in graph.outputs if node.op == "call_function" and node.meta["val"].dtype in dtypes]
    named = {node.name: node for node in graph.nodes}
    known = [_module_outputs(graph), sites.nodes, named, dict(zip(["output"], outputs, strict=False))]
    chosen: dict[str, fx.Node] = {}
    for pattern in wanted:
        found = next((hits for names in known if (hits := _matches(pattern, names, dtypes))), {})
        if not found:
            raise ValueError(
                f"`states` must name modules, weight sites or operations of the graph; nothing is called {pattern!r}. "
                f"Modules: {_listed(known[0])}; sites: {_listed(known[1])}."
            )
        for name, node in found.items():
            if node not in chosen.values():
                chosen[name] = node
    return chosen


def _matches(pattern: str, names: Mapping[str, fx.Node], dtypes: set[torch.dtype]) -> dict[str, fx.Node]:
    """The nodes with floating-point values of the parameters' type whose name, calls aside, fits."""
    return {
        name: node
        for name, node in names.items()
        if fnmatch.fnmatchcase(name.partition("@")[0], pattern) or name == pattern
        if getattr(node.meta.get("val"), "dtype", None) in dtypes
    }


def _module_outputs(graph: Graph) -> dict[str, fx.Node]:
    """The nodes that leave each call of a module: `path`, `path@1` the second time, `path.1` for a second result."""
    inside: dict[str, tuple[str, list[fx.Node]]] = {}
    for node in graph.nodes:
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            inside.setdefault(key, (path, []))[1].append(node)
    names: dict[str, fx.Node] = {}
    calls: Counter[str] = Counter()
    for path, members in inside.values():
        if not path:  # the model itself
            continue
        own = set(members)
        leaving = [n for n in members if isinstance(n.meta.get("val"), Tensor) and not own.issuperset(n.users)]
        call = f"@{calls[path]}" if calls[path] else ""
        names |= {f"{path}{f'.{i}' if i else ''}{call}": node for i, node in enumerate(leaving)}
        calls[path] += 1
    return names


def _listed(names: Iterable[str], most: int = 12) -> str:
    listed = list(names)
    return ", ".join(map(repr, listed[:most])) + (f" and {len(listed) - most} more" if len(listed) > most else "")
