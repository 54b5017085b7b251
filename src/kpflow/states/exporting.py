"""Exporting: a module's forward pass as a program of elementary operations, and nothing said about it."""

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .refusals import export_error
from .tapes import recording

__all__ = ["exported"]

aten = torch.ops.aten

STOPS = "kpflow_stops_gradients"
"""Mark of operations without a gradient: decomposing forgets `detach` and `torch.no_grad`, but hands marks on."""


def exported(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The exported program of a module, decomposed and functional; where the module stops gradients, so does it.

    Args:
        module: A module whose outputs are a tuple of tensors; what it keeps for itself is written over.
        arguments: Its positional arguments.
        keywords: Its named arguments.

    Raises:
        ValueError: It cannot be captured.
    """
    try:
        # the layouts of the math kernel are those of what it decomposes to
        with _silence(), _uncollected(), recording(), sdpa_kernel(SDPBackend.MATH):
            program = torch.export.export(module, arguments, keywords, strict=False)
            _mark(program.graph)
            program = program.run_decompositions({**torch.export.default_decompositions(), aten.copy.default: _copied})
    except Exception as error:
        raise export_error(error) from error
    _stop(program.graph)
    return program


def _copied(target: Tensor, value: Tensor, non_blocking: bool = False) -> Tensor:  # noqa: ARG001 - as torch calls it
    """What writing into a part of a tensor becomes, `target[i] = value`; torch has no derivative of that form."""
    return value.to(target.dtype).expand(target.shape).clone()


def _mark(graph: fx.Graph) -> None:
    """Mark what stops gradients: `detach`, and one more on what leaves a block of `torch.no_grad`."""
    for node in list(graph.nodes):
        if getattr(node.target, "__name__", "") == "wrap_with_set_grad_enabled" and not node.args[0]:
            for result in list(node.users):
                with graph.inserting_after(result):
                    stop = graph.call_function(aten.detach.default, (result,))
                result.replace_all_uses_with(stop, delete_user_cb=lambda user, stop=stop: user is not stop)
                stop.meta = dict(result.meta)
    for node in graph.nodes:
        if node.target is aten.detach.default:
            node.meta["custom"] = {**(node.meta.get("custom") or {}), STOPS: True}


def _stop(graph: fx.Graph) -> None:
    """Make the marked operations stop gradients again: they have become aliases."""
    for node in graph.nodes:
        if STOPS in (node.meta.get("custom") or {}) and node.target is aten.alias.default:
            node.target = aten.detach.default


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection, which would go through the many small objects of a large graph again and again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what torch.export prints, logs and warns about itself from the user; the model has run before."""
    loggers = [logging.getLogger(name) for name in logging.Logger.manager.loggerDict if name.split(".")[0] == "torch"]
    handlers = [handler for logger in loggers for handler in logger.handlers]

    def refuse(_record: logging.LogRecord) -> bool:
        return False

    for handler in handlers:
        handler.addFilter(refuse)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(refuse)
