"""Branches: a forward pass whose control flow depends on values, along the branches that it took.

What Python reads off tensors (`if error < 1`, `float(t)`, `.item()`) is recorded in one run and given again while the
graph is captured. The graph is then that of the operations that were done, and its derivative the one that
automatic differentiation takes, which does not see decisions either.
"""

import contextlib
import itertools
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, final, no_type_check

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from kpflow._checks import check_one_of

from .refusals import LIBRARY

__all__ = ["Branches"]

WAYS = ("refuse", "recorded")

READS = {
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__complex__, Tensor.__index__, Tensor.__contains__),
    *(Tensor.__format__, Tensor.item, Tensor.equal, Tensor.allclose, Tensor.is_nonzero),
    *(torch.equal, torch.allclose, torch.is_nonzero),
}
"""Functions that give Python the values of tensors."""

Read = tuple[str, int, str]
"""Where a value is read, file and line, and by which function."""


@final
class Branches:
    """What Python reads off tensors in a forward pass.

    With solvers of torchdiffeq, the sizes of adaptive steps are constants, the first one too, which torchdiffeq itself
    would differentiate: the map is that of the solver on the recorded steps.

    Args:
        way: "recorded", or "refuse" for doing nothing, so that the capture refuses what is read.
    """

    def __init__(self, way: Any) -> None:
        check_one_of("branches", way, WAYS)
        self._follows = way == "recorded"
        self._values: dict[Read, list[Any]] = {}

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record what a forward pass reads."""
        with self._within(_Recording(self._values)):
            yield

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """Give a forward pass on tensors without values what it reads."""
        with self._within(_Following(self._values)):
            yield

    @contextlib.contextmanager
    def _within(self, mode: TorchFunctionMode) -> Iterator[None]:
        if not self._follows:
            yield
            return
        with _constant_steps(), mode:
            yield


@final
class _Recording(TorchFunctionMode):
    def __init__(self, values: dict[Read, list[Any]]) -> None:
        self._values = values

    @no_type_check  # a check would stand between the call and the place that it is made from
    def __torch_function__(self, function, types, args=(), kwargs=None):
        value = function(*args, **(kwargs or {}))
        if function in READS:
            self._values.setdefault(_read(sys._getframe(1), function), []).append(value)
        elif function is Tensor.tolist:  # which capturing does one by one
            key = _read(sys._getframe(1), Tensor.item)
            self._values.setdefault(key, []).extend(pytree.tree_leaves(value))
        return value


@final
class _Following(TorchFunctionMode):
    def __init__(self, values: Mapping[Read, list[Any]]) -> None:
        self._values = {read: itertools.cycle(found) for read, found in values.items()}

    @no_type_check
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in READS:
            read = _read(sys._getframe(1), function)
            if read in self._values:
                return next(self._values[read])
        return function(*args, **(kwargs or {}))


def _read(frame: FrameType | None, function: Any) -> Read:
    """The place in the user's source, or in that of a library of theirs, that calls a function."""
    while frame is not None and frame.f_code.co_filename.startswith(LIBRARY):
        frame = frame.f_back
    if frame is None:
        return "", 0, function.__name__
    return frame.f_code.co_filename, frame.f_lineno, function.__name__


@contextlib.contextmanager
def _constant_steps() -> Iterator[None]:
    """Adaptive solvers of torchdiffeq, if a model may have them, with step sizes that are constants.

    Every step size but the first is one already. The first is made one here, and the stages of a step are put together
    by an operation that can be captured; torchdiffeq writes into memory that autograd is kept from seeing.
    """
    solvers: Any = sys.modules.get("torchdiffeq._impl.rk_common")
    if solvers is None:
        yield
        return
    first, assign = solvers._select_initial_step, solvers._UncheckedAssign
    solvers._select_initial_step, solvers._UncheckedAssign = torch.no_grad()(first), _Assign
    try:
        yield
    finally:
        solvers._select_initial_step, solvers._UncheckedAssign = first, assign


@final
class _Assign:
    """In place of an autograd function of torchdiffeq, with the same derivative."""

    @staticmethod
    def apply(stages: Tensor, value: Tensor, index: tuple[Any, int]) -> Tensor:
        """The stages, the last axis of the tensor, with one of them replaced."""
        return torch.select_scatter(stages, value, -1, index[-1])
