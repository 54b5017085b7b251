"""Entries and blocks: against the dense matrix, the number of products, indices of all kinds, refusals."""

from typing import Any

import pytest
import torch

from kpflow.estimate import entries, products, sampling
from kpflow.operators import Dense, Function, to_dense
from kpflow.spaces import Space

from .problems import Counter, FactorGramian, matrix, randn

STATES = Space.of((2, 3, 4), ("trial", "time", "unit"))
INPUTS = Space.of((5, 7))
RECTANGLE = Dense(randn(24, 35), (INPUTS, STATES))
SQUARE = Dense(randn(24, 24), (STATES, STATES))


def test_multi_and_flat_indices():
    rows = torch.tensor([[0, 1, 2], [1, 2, 3], [0, 0, 0]])
    columns = torch.tensor([[4, 6], [0, 0]])
    truth = RECTANGLE.matrix[[6, 23, 0]][:, [34, 0]]
    assert torch.equal(entries(RECTANGLE, rows, columns), truth)
    assert torch.equal(entries(RECTANGLE, [6, 23, 0], [34, 0]), truth)
    assert torch.equal(entries(RECTANGLE, [[0, 1, 2], [1, 2, 3], [0, 0, 0]], torch.tensor([34, 0])), truth)
    assert torch.equal(entries(RECTANGLE, [6, -1, 0], [[-1, -1], [0, -7]]), truth)
    assert torch.equal(entries(RECTANGLE, rows.int(), columns.short()), truth)


@pytest.mark.parametrize(("k", "l"), [(1, 20), (20, 1), (5, 5), (3, 8), (0, 4), (4, 0)])
def test_takes_the_fewer_of_rows_and_columns(k, l):
    counter = Counter(RECTANGLE)
    rows, columns = torch.arange(k), torch.arange(34, 34 - l, -1)
    block = entries(counter, rows, columns)
    assert block.shape == (k, l)
    torch.testing.assert_close(block, RECTANGLE.matrix[rows][:, columns], rtol=0, atol=1e-14)
    assert counter.total == min(k, l)
    assert (counter.forward == 0) if k < l else (counter.backward == 0)


def test_indices_given_twice_cost_once():
    counter = Counter(SQUARE)
    block = entries(counter, [3, 1, 3, 3], [2, 2, 5, 2, 2])
    assert torch.equal(block, SQUARE.matrix[[3, 1, 3, 3]][:, [2, 2, 5, 2, 2]])
    assert counter.total == 2


def test_columns_are_the_rows_if_not_given():
    assert torch.equal(entries(SQUARE, [2, 7]), SQUARE.matrix[[2, 7]][:, [2, 7]])


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns", "halves"),
    [
        ([1, 5, 9, 2], None, 4),  # a principal block: half of whole products
        ([1, 5, 9, 2], [2, 5, 1, 9, 11], 5),  # 5 different indices, where 4 whole products are 8 halves
        ([1, 2, 3], [4, 5, 6], 6),  # nothing shared: whole products are as cheap
        ([1], [4, 5, 6], 2),  # one row
    ],
)
def test_gramians_take_the_cheaper_way(rows, columns, halves, metric):
    factor, middle = Counter(Dense(randn(24, 9), (Space.of((9,)), STATES))), matrix("bulk", 9)
    gramian = FactorGramian(factor, Dense(middle) if metric else None)
    truth = factor.base.matrix @ (middle if metric else torch.eye(9).double()) @ factor.base.matrix.mT
    block = entries(gramian, rows, columns)
    torch.testing.assert_close(block, truth[rows][:, rows if columns is None else columns], rtol=0, atol=1e-12)
    assert factor.total == halves
    assert (factor.forward == 0) == (halves in (4, 5))


def test_gramians_of_a_large_factor_keep_no_vectors_of_it(monkeypatch):
    monkeypatch.setattr(sampling, "KEPT_ENTRIES", 4 * 9 - 1)
    factor = Counter(Dense(randn(24, 9), (Space.of((9,)), STATES)))
    block = entries(FactorGramian(factor), [1, 5, 9, 2])
    torch.testing.assert_close(block, to_dense(FactorGramian(factor.base))[[1, 5, 9, 2]][:, [1, 5, 9, 2]])
    assert factor.forward == 4


def test_blocks_that_do_not_fit_go_in_pieces(monkeypatch):
    monkeypatch.setattr(products, "BLOCK_ENTRIES", 70)  # two vectors at a time
    assert torch.equal(entries(RECTANGLE, torch.arange(24), [0, 5, 9, 11, 30]), RECTANGLE.matrix[:, [0, 5, 9, 11, 30]])
    factor = Dense(randn(24, 9), (Space.of((9,)), STATES))
    truth = factor.matrix @ factor.matrix.mT
    torch.testing.assert_close(entries(FactorGramian(factor), list(range(5))), truth[:5, :5])


def test_dtype_is_the_operators():
    assert entries(Dense(randn(4, 4).float()), [0, 1]).dtype == torch.float32
    factor = Dense(randn(4, 3).float())
    assert entries(FactorGramian(factor), [0, 1]).dtype == torch.float32


def test_not_finite():
    broken = Function(lambda v: v / 0.0, None, STATES)
    with pytest.raises(
        FloatingPointError, match=r"`entries` of Function: .* is not finite: a product holds NaN or inf"
    ):
        entries(broken, [0])


@pytest.mark.parametrize(
    ("operator", "rows", "columns", "match"),
    [
        (SQUARE, [[0, 1, 4]], None, r"`rows` must lie in Space\(trial 2 × time 3 × unit 4, float64\); got \[0, 1, 4\]"),
        (SQUARE, [24], None, r"`rows` must lie in Space\(.*\); got 24"),
        (SQUARE, [3, -25], None, r"`rows` must lie in Space\(.*\); got -25"),
        (RECTANGLE, [0], [[5, 0]], r"`columns` must lie in Space\(axis0 5 × axis1 7, float64\); got \[5, 0\]"),
        (SQUARE, [[0, 1]], None, r"`rows` must have shape \[K, 3\] \(trial × time × unit\) or \[K\]; got \(1, 2\)"),
        (SQUARE, torch.tensor(3), None, r"`rows` must have shape \[K, 3\] .* got \(\)"),
        (RECTANGLE, [0], None, r"`columns` must be given for an operator between two spaces; got Dense: "),
    ],
)
def test_refusals(operator, rows, columns, match):
    with pytest.raises(ValueError, match=match):
        entries(operator, rows, columns)


@pytest.mark.parametrize(
    ("index", "match"),
    [
        (
            torch.tensor([0.0, 1.0]),
            r"`rows` must hold whole numbers; got torch.float32. For a mask give mask.nonzero\(\)",
        ),
        (torch.tensor([True, False]), r"`rows` must hold whole numbers; got torch.bool. For a mask"),
        ([[0, 1], [2]], r"`rows` must hold whole numbers, as many in each row; got \[\[0, 1\], \[2\]\]"),
        ("ab", r"`rows` must hold whole numbers, as many in each row; got 'ab'"),
    ],
)
def test_refuses_what_is_no_index(index: Any, match):
    with pytest.raises(TypeError, match=match):
        sampling._flat("rows", index, STATES)
