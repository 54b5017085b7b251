"""Operators made from tensors and functions: what they refuse."""

import re

import pytest
import torch

from helpers import without_annotation_checks
from kpflow import Space
from kpflow.operators import Dense, Diagonal, Function, LowRank

LINE = Space.of((3,), ("unit",))
PAIR = Space.of((2,), ("input",))
SINGLE = Space.of((3,), ("unit",), torch.float32)
EYE = torch.eye(3, dtype=torch.float64)
ONES = torch.ones(3, dtype=torch.float64)
NAN = torch.tensor([[1.0, 2.0], [float("nan"), 1.0]])

REFUSED = {
    "list": (TypeError, lambda: Dense([[1.0]]), "`matrix` must be a torch.Tensor; got list."),
    "whole numbers": (TypeError, lambda: Dense(torch.eye(2).long()), "`matrix` must hold floating-point numbers"),
    "vector": (ValueError, lambda: Dense(ONES), "`matrix` must have two axes (out, in); got shape (3,)."),
    "NaN": (ValueError, lambda: Dense(NAN), "`matrix` must be finite; got NaN at row 1, column 0"),
    "wrong space": (ValueError, lambda: Dense(EYE, (LINE, PAIR)), "`matrix` must have shape (2, 3) to fit `spaces`"),
    "other dtype": (
        ValueError,
        lambda: Dense(EYE, (SINGLE, SINGLE)),
        "`matrix` must be torch.float32 on cpu like Space(",
    ),
    "other dtype out": (ValueError, lambda: Dense(EYE, (LINE, SINGLE)), "`matrix` must be torch.float32 on cpu"),
    "diagonal shape": (ValueError, lambda: Diagonal(ONES, PAIR), "`diagonal` must have shape (2,); got (3,)."),
    "diagonal dtype": (ValueError, lambda: Diagonal(ONES, SINGLE), "`diagonal` must be torch.float32 on cpu"),
    "diagonal inf": (ValueError, lambda: Diagonal(ONES / 0, LINE), "`diagonal` must be finite; got inf at unit 0"),
    "diagonal list": (TypeError, lambda: Diagonal([1.0]), "`diagonal` must be a torch.Tensor; got list."),
    "factor vector": (ValueError, lambda: LowRank(ONES), "`left` must have two axes (size, rank); got shape (3,)."),
    "factor NaN": (ValueError, lambda: LowRank(EYE.float()[:2, :2], NAN), "`right` must be finite; got NaN at row 1"),
    "ranks": (ValueError, lambda: LowRank(EYE, EYE[:, :2]), "`left` and `right` must have the same rank; got 3 and 2."),
    "factor spaces": (ValueError, lambda: LowRank(EYE, spaces=(PAIR, LINE)), "must have (3, 2) rows to fit `spaces`"),
    "factor dtypes": (ValueError, lambda: LowRank(EYE, EYE.float()), "`left` must be torch.float32 on cpu"),
    "no adjoint": (ValueError, lambda: Function(torch.sum, None, LINE, PAIR), "`backward` may be None for a symmetric"),
    "function shape": (
        ValueError,
        lambda: Function(lambda v: v[:, :2], None, LINE)(ONES),
        "`forward(v)` must have shape [*, 3] (unit); got (1, 2).",
    ),
    "function probes": (
        ValueError,
        lambda: Function(lambda v: v.sum(0), None, LINE)(ONES.expand(2, 3)),
        "`forward` must give a block (2, 3); got (3,).",
    ),
    "function dtype": (
        TypeError,
        lambda: Function(lambda v: v, lambda v: v.float(), LINE).T(ONES),
        "`backward(v)` must be torch.float64; got torch.float32.",
    ),
    "function of nothing": (
        TypeError,
        lambda: Function(torch.Tensor.numpy, None, LINE)(ONES),
        "`forward(v)` must be a torch.Tensor; got ndarray.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    kind, call, message = REFUSED[name]
    with without_annotation_checks(), pytest.raises(kind, match=re.escape(message)):
        call()


def test_a_scalar_space():
    twice = Diagonal(torch.tensor(2.0))
    assert twice(torch.ones(4)).tolist() == [2.0] * 4
