"""Refusals: what a module or its inputs may not do on the graph route, each in one sentence with its place."""

import inspect
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from kpflow._checks import check_finite

from .derivatives import is_same

__all__ = [
    "check_effects",
    "check_inputs",
    "check_outputs",
    "check_plain",
    "check_same",
    "export_error",
    "failure",
    "gradient_error",
    "place_of",
]

LIBRARY = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep, "<eval_with_key>")
"""Beginnings of the files of frames that are not the user's own."""

WRITES = {
    "USER_INPUT_MUTATION": ("into its inputs in place", "Use the forms that give new tensors."),
    "BUFFER_MUTATION": ("into its buffers as it runs", "Call model.eval(), or make it pure."),
    "PARAMETER_MUTATION": ("into its parameters as it runs", "Compute the changed weight as a new tensor."),
}

Named = Mapping[str, Tensor]
Leaves = Mapping[int, Tensor]


def check_plain(model: nn.Module) -> None:
    """Refuse wrappers whose forward pass is not that of a module tree."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    inner = "_orig_mod" if "_orig_mod" in model._modules else "module" if isinstance(model, wrappers) else ""
    if inner:
        raise ValueError(
            f"`model` must be a plain module; got {type(model).__name__}, a wrapper of one. Give `model.{inner}`."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("`model` must be a plain module; got one in TorchScript. Give it before torch.jit.script.")


def check_inputs(inputs: Any) -> None:
    """Refuse inputs without values, without trials or with values that are not finite; −inf is fine: masks hold it."""
    plain = dict(inputs) if isinstance(inputs, Mapping) else inputs
    leaves = [(f"inputs{pytree.keystr(path)}", leaf) for path, leaf in pytree.tree_leaves_with_path(plain)]
    tensors = [(name, leaf) for name, leaf in leaves if isinstance(leaf, Tensor)]
    if isinstance(inputs, nn.utils.rnn.PackedSequence):
        raise ValueError("`inputs` may be packed on the recurrent route only; here give the padded batch as a tensor.")
    for name, leaf in leaves:
        if isinstance(leaf, np.ndarray):
            raise TypeError(f"`{name}` must be a torch.Tensor; got ndarray. Convert it with torch.as_tensor({name}).")
    for name, tensor in tensors[:1]:
        if tensor.numel() == 0:
            raise ValueError(f"`{name}` must hold at least one trial; got an empty tensor of shape {_shape(tensor)}.")
    for name, tensor in tensors:
        if tensor.is_meta:
            raise ValueError(f"`{name}` must hold values; got a tensor on the meta device. Give one with data.")
        if tensor.dtype.is_floating_point:
            check_finite(name, tensor.detach().masked_fill(tensor == -torch.inf, 0.0))


def check_outputs(
    outputs: Sequence[Tensor], reached: Leaves, again: Callable[[], Leaves], names: Mapping[int, str]
) -> None:
    """Refuse outputs without a floating-point tensor, or from trainable parameters that the model does not hold.

    Args:
        outputs: The model's tensors.
        reached: The leaves that they depend on beside the parameters that the model is handed, by identity.
        again: The same once more: what the forward pass makes itself is another tensor each time.
        names: Names of the model's parameters by their identity.
    """
    if not any(output.dtype.is_floating_point for output in outputs):
        got = ", ".join(str(output.dtype) for output in outputs) or "no tensor"
        raise ValueError(
            f"`model` must give a floating-point tensor, or nested tuples, lists, dicts or dataclasses with one; got "
            f"{got}. Wrap it in a module whose forward pass returns its tensors."
        )
    later = again() if reached else {}
    listed = [names.get(k, f"one of shape {_shape(leaf)}") for k, leaf in reached.items() if leaf is later.get(k)]
    if listed:
        raise ValueError(
            f"`model` reaches trainable parameters past its registered submodules ({', '.join(sorted(listed))}), so "
            "their part of K would be missing. Keep them as nn.Parameter of the model or in its nn.ModuleList or "
            "nn.ModuleDict, or freeze them with requires_grad_(False)."
        )


def check_effects(program: Any) -> None:
    """Refuse an exported program that writes to what it is given, or draws random numbers."""
    nodes = {node.name: node for node in program.graph.nodes}
    for kind, (where, remedy) in WRITES.items():
        specs = [spec for spec in program.graph_signature.output_specs if spec.kind.name == kind]
        if specs:
            names = ", ".join(f"`{spec.target}` {place_of(nodes[spec.arg.name])}" for spec in specs[:3])
            raise ValueError(f"`model` writes {where}: {names}. {remedy}")
    for node in program.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise ValueError(
                f"`model` draws random numbers ({_operation(node)}) {place_of(node)}, so states are random. "
                "Call model.eval() first, or remove the noise."
            )
        if node.target is torch.ops.aten.embedding.default and any(node.args[3:]):
            raise ValueError(
                f"`model` has an embedding {place_of(node)} with `scale_grad_by_freq` or `sparse`: its gradient is "
                "another thing than its derivative, or no dense tensor. Set both to False."
            )


def check_same(
    ours: tuple[Sequence[Tensor], Named],
    theirs: tuple[Sequence[Tensor], Named],
    again: Callable[[], Sequence[Tensor]],
) -> None:
    """Refuse a graph whose outputs, or whose gradients of a random sum of them, are not the model's.

    Args:
        ours: Outputs and gradients by parameter, of the graph.
        theirs: The same of the model.
        again: The model's outputs once more.
    """
    (found, slopes), (expected, gradients) = ours, theirs
    if not _all_close(found, expected):
        if not all(is_same(a, b) for a, b in zip(again(), expected, strict=True)):
            raise ValueError(
                "`model` gives other outputs each time: it is random, or remembers earlier calls. Remove that from its "
                "forward pass."
            )
        raise ValueError(
            "`model` gives other outputs than its captured graph: it depends on something that is not among its "
            "inputs, or rounding grows in it. Hand everything in as inputs or buffers, or try torch.float64."
        )
    if found and not any(output.requires_grad for output in expected):
        raise ValueError(
            "`model` gives outputs that no gradient flows from to its trainable parameters. Remove torch.no_grad, "
            "detach and .data from its forward pass, or unfreeze the parameters that act on its outputs."
        )
    scale = max((float(g.abs().max()) for g in gradients.values() if g.numel()), default=0.0)
    worst = [name for name, g in gradients.items() if not _near(slopes[name], g, scale)]
    if worst:
        raise ValueError(
            f"The gradient of `model` with respect to {_listed(worst)} is not that of its captured graph: "
            f"{_custom(expected)}. Write it with operations that torch differentiates, x + (f(x) - x).detach() for one."
        )


def failure(error: Exception, model: nn.Module, call: Any) -> ValueError:
    """The model fails on its inputs."""
    return ValueError(
        f"`model` fails on these inputs ({_described(call)}){_where(error)} with {type(error).__name__}: "
        f"{_first_line(error)}. {_remedy(model, call)}".rstrip()
    )


def gradient_error(error: Exception) -> ValueError:
    """The model runs, and has no gradient."""
    return ValueError(
        f"`model` cannot be differentiated{_where(error)}: {type(error).__name__}: {_first_line(error)}. Use "
        "operations with a derivative, and checkpoints with use_reentrant=False."
    )


def export_error(error: Exception) -> ValueError:
    """The model runs, and cannot be captured."""
    if any(word in f"{type(error).__name__} {error}" for word in ("data-dependent", "DataDependent")):
        reason = "its control flow or a shape depends on the values of tensors"
        remedy = "Use torch.where, give what decides as a Python number among the inputs, or set branches='recorded'."
    elif "fake tensor in the exported program" in str(error):
        reason = "it writes to the .data of a tensor, or differentiates (torch.autograd.grad) as it runs"
        remedy = "Compute changed weights as new tensors, and write derivatives out."
    else:
        reason = f"torch.export says {type(error).__name__}: {_first_line(error)}"
        remedy = "Rewrite this operation, or linearise the part of the model that goes without it."
    return ValueError(f"`model` cannot be captured as a graph{_where(error)}: {reason.rstrip('.')}. {remedy}")


def place_of(node: fx.Node) -> str:
    """Where in the user's source a node comes from, as "at file:line (code)", and in which module."""
    scope = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    module = f"in module `{scope[-1]}`" if scope and scope[-1] else ""
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()
    for index in range(len(lines) - 1, -1, -1):
        if not lines[index].lstrip().startswith("File "):
            continue
        _, path, rest = lines[index].split('"', 2)
        if path.startswith(LIBRARY):
            continue
        code = lines[index + 1].strip() if index + 1 < len(lines) else ""
        return f"{_at(path, rest.split(',')[1].removeprefix(' line '), code)} {module}".rstrip()
    return module or "in its forward pass"


def _where(error: BaseException) -> str:
    """Where in the user's source an error was raised."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(LIBRARY)]
    return f" {_at(frames[-1].filename, frames[-1].lineno, frames[-1].line)}" if frames else ""


def _at(path: str, line: Any, code: str | None) -> str:
    return f"at {path}:{line}" + (f" ({code})" if code else "")


def _all_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Equal to about the square root of rounding: fused kernels and their decompositions round differently."""
    return len(found) == len(expected) and all(map(_close, found, expected))


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not (one.dtype.is_floating_point or one.dtype.is_complex) or is_same(one, other):
        return torch.equal(one, other) or one.dtype.is_floating_point
    gap = (one - other).abs()
    return not bool(gap.max() > torch.finfo(one.dtype).eps ** 0.5 * other.abs().max())  # NaN is the same


def _near(one: Tensor, other: Tensor, scale: float) -> bool:
    """Equal up to what rounding does to gradients: kinks are passed, and a gradient of zero is a sum that cancels."""
    eps = torch.finfo(one.dtype).eps
    gap = float((one - other).norm())
    return not gap > eps**0.25 * float(other.norm()) + 1000 * eps * scale * one.numel() ** 0.5


def _custom(outputs: Sequence[Tensor]) -> str:
    """What the graphs of the model's outputs hold that a captured graph does not know."""
    stack: list[Any] = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            kind = node._forward_cls  # type: ignore[attr-defined]
            return f"it applies `{kind.__name__}`{_source(kind)}, an autograd Function with a backward of its own"
        following = {edge for edge, _ in node.next_functions if edge is not None} - seen
        seen |= following
        stack += following
    return "it has hooks on tensors, or a backward of its own"


def _source(kind: type) -> str:
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return f" at {code.co_filename}:{code.co_firstlineno}" if code else ""


def _operation(node: fx.Node) -> str:
    """As "dropout" for torch.ops.aten.native_dropout.default."""
    return str(node.target).partition(".")[2].partition(".")[0].removeprefix("native_") or str(node.target)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else "no message"


def _described(call: Any) -> str:
    return ", ".join(f"{t.dtype} of shape {_shape(t)} on {t.device}" for t in _tensors(call)) or "no tensor"


def _remedy(model: nn.Module, call: Any) -> str:
    """What is likely wrong with inputs on which a model fails."""
    tensors = _tensors(call)
    floating = [tensor for tensor in tensors if tensor.dtype.is_floating_point]
    own = next(iter(model.parameters()))
    if tensors and not floating:
        return "The inputs are whole numbers: a model without an embedding needs floating-point ones."
    if any(tensor.dtype != own.dtype for tensor in floating):
        return f"The parameters are {own.dtype}: convert the inputs, or the model."
    if any(tensor.device != own.device for tensor in tensors):
        return f"The parameters are on {own.device}: move the inputs, or the model."
    return "A tuple is taken as several arguments, a dict as named ones, anything else as one argument."


def _tensors(call: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor)]


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _listed(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
