"""Twins: copies of a model and of its inputs, which a forward pass may write to without changing the user's."""

import collections
import copy
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .tapes import recording

__all__ = ["snapshot", "twin"]

ATOMS = (bool, int, float, str, torch.dtype)
QUICK = (dict, collections.OrderedDict)  # their own copy is ten times faster than copy.copy; modules have a dozen each

Leaf = Tensor | torch.Generator


def twin(module: nn.Module, *, generators: bool = True) -> nn.Module:
    """A module tree that shares the parameters of `module` and owns its buffers, tensors, containers and attributes.

    What is shared within the tree is shared within the twin, modules in plain containers and bound methods of modules
    included. Other objects, closures among them, are taken over as they are. Tensors keep their graph. A deep copy
    would fail on modules that keep the result of their last forward pass, a shallow one on parametrised modules.

    Args:
        module: The root of the tree.
        generators: Whether random generators are copied too. Twins of one twin that share its generators differ by
            the noise they draw.
    """

    def copied(leaf: Leaf) -> Leaf:
        if isinstance(leaf, nn.Parameter):
            return leaf
        return leaf.clone() if isinstance(leaf, Tensor) else _generator(leaf, generators)

    with recording():
        return _rebuilt(module, copied, {})


def snapshot(inputs: Any, *, generators: bool = True) -> Any:
    """Nested tuples, lists and dicts with their tensors copied and detached, and their random generators copied."""

    def copied(leaf: Leaf) -> Leaf:
        return leaf.detach().clone() if isinstance(leaf, Tensor) else _generator(leaf, generators)

    return _rebuilt(inputs, copied, {})


def _rebuilt(value: Any, copied: Callable[[Leaf], Leaf], made: dict[int, Any]) -> Any:
    """`value` with the leaves inside it copied; `made` holds what is done, by the identity of what it was made of."""
    if value is None or isinstance(value, ATOMS):
        return value
    if id(value) in made:
        return made[id(value)]

    def again(member: Any) -> Any:
        return _rebuilt(member, copied, made)

    result = value
    if isinstance(value, dict):
        result = made[id(value)] = value.copy() if type(value) in QUICK else copy.copy(value)
        result.update([(key, again(member)) for key, member in value.items()])
    elif isinstance(value, nn.Module):
        result = made[id(value)] = object.__new__(type(value))
        vars(result).update([(name, again(member)) for name, member in vars(value).items()])
    elif isinstance(value, (list, collections.deque)):
        result = made[id(value)] = copy.copy(value)
        result.clear()
        result.extend([again(member) for member in value])
    elif isinstance(value, set):
        result = made[id(value)] = copy.copy(value)
    elif type(value) is tuple:
        result = made[id(value)] = tuple([again(member) for member in value])
    elif isinstance(value, tuple) and hasattr(type(value), "_make"):  # a named tuple
        result = made[id(value)] = type(value)._make([again(m) for m in value])  # type: ignore[attr-defined]
    elif isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
        result = made[id(value)] = types.MethodType(value.__func__, again(value.__self__))
    elif isinstance(value, Leaf):
        result = made[id(value)] = copied(value)
    return result


def _generator(generator: torch.Generator, copied: bool) -> torch.Generator:
    """A generator in the same state, or the same generator."""
    if not copied:
        return generator
    result = torch.Generator(device=generator.device)
    result.set_state(generator.get_state())
    return result
