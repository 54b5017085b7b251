"""Keeping: what a forward pass may move although it runs on a twin, put back as it was."""

import contextlib
import functools
import inspect
import random
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["kept", "one_thread"]

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

CONTAINERS = (list, dict, set)

Restore = Callable[[], None]


@contextlib.contextmanager
def kept(model: Any) -> Iterator[None]:
    """Keep random states, and what the hooks on a module reach: lists, dicts and sets, variables, their own objects.

    A hook that records activations would else find those of a capture, which hold no values, in the user's own list.
    What hooks reach through further objects is not followed.
    """
    restores = [functools.partial(random.setstate, random.getstate()), _numpy_state(np.random.get_state())]
    for module in model.modules() if isinstance(model, nn.Module) else ():
        for hook in [hook for kind in HOOKS for hook in getattr(module, kind).values()]:
            restores += _reached(hook)
    with torch.random.fork_rng():
        try:
            yield
        finally:
            for restore in restores:
                restore()


def _numpy_state(state: Any) -> Restore:
    return lambda: np.random.set_state(state)


def _reached(hook: Any) -> list[Restore]:
    """What puts back the variables of a hook."""
    if isinstance(hook, functools.partial):
        return [restore for value in (hook.func, *hook.args, *hook.keywords.values()) for restore in _reached(value)]
    if isinstance(hook, CONTAINERS):
        return [_contents(hook)]
    if isinstance(hook, types.MethodType):
        return _reached(hook.__func__) + _reached(hook.__self__)
    if inspect.isfunction(hook):
        return _variables(hook)
    attributes = {} if isinstance(hook, (nn.Module, type)) else getattr(hook, "__dict__", {})
    call = inspect.getattr_static(type(hook), "__call__", None)
    called = _variables(call) if inspect.isfunction(call) else []
    return called + ([_contents(attributes), *_containers(attributes.values())] if attributes else [])


def _variables(function: types.FunctionType) -> list[Restore]:
    """What puts back the closure and the globals that a function names."""
    own = {name: function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__}
    closed = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell
            closed[name] = cell, cell.cell_contents

    def restore() -> None:
        for name, value in own.items():
            if function.__globals__[name] is not value:
                function.__globals__[name] = value
        for cell, value in closed.values():
            cell.cell_contents = value

    return [restore, *_containers(own.values()), *_containers(value for _, value in closed.values())]


def _containers(values: Iterable[Any]) -> list[Restore]:
    return [_contents(value) for value in values if isinstance(value, CONTAINERS)]


def _contents(container: Any) -> Restore:
    """What puts back the members of a container."""
    members = _members(container)

    def restore() -> None:
        if [id(value) for value in _members(container)] == [id(value) for value in members]:
            return
        container.clear()
        if isinstance(container, dict):
            half = len(members) // 2
            container.update(zip(members[:half], members[half:], strict=True))
        else:
            (container.extend if isinstance(container, list) else container.update)(members)

    return restore


def _members(container: Any) -> list[Any]:
    return [*container.keys(), *container.values()] if isinstance(container, dict) else list(container)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread: small tensors are no faster on more, and get the same bits whatever the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
