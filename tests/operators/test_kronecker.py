"""Tensor products and direct sums: order of axes, names, cost, and what they refuse."""

import re

import pytest
import torch

from helpers import close, randn, without_annotation_checks
from kpflow import Space
from kpflow.operators import BlockDiagonal, Dense, Function, Identity, Kronecker, LowRank, to_dense

A, B = Dense(randn(2, 3, seed=1)), Dense(randn(4, 5, seed=2))


def test_definition():
    product = to_dense(Kronecker(A, B)).reshape(2, 4, 3, 5)
    close(product, torch.einsum("ab,ij->aibj", A.matrix, B.matrix))


def test_axes_are_concatenated_and_told_apart():
    trials, units = Space.of((2, 3), ("trial", "time")), Space.of((4,), ("unit",))
    assert Kronecker(Identity(trials), Identity(units)).in_space == Space.of((2, 3, 4), ("trial", "time", "unit"))
    three = Kronecker(*[Identity(units)] * 3)
    assert three.in_space.axes == ("unit", "unit_2", "unit_3")
    taken = Kronecker(Identity(Space.of((2, 3), ("unit", "unit_2"))), Identity(units))
    assert taken.in_space.axes == ("unit", "unit_2", "unit_3")


def test_axes_can_be_named():
    square = Dense(torch.eye(2, dtype=torch.float64))
    space = Space.of((2, 2), ("row", "column"))
    named = Kronecker(square, square, spaces=(space, space))
    assert named.in_space == named.out_space == space
    assert named.symmetric
    other = Space.of((2, 2), ("in", "out"))
    assert not Kronecker(square, square, spaces=(space, other)).symmetric


def test_a_factor_on_parts_brings_one_axis():
    parts = Space.of_parts({"w": (2, 2), "b": (2,)}, "parameter")
    assert Kronecker(Identity(parts), Identity(Space.of((3,), ("unit",)))).in_space.axes == ("parameter", "unit")


def test_symmetric_if_all_factors_are():
    gram = LowRank(randn(3, 2, seed=3))
    assert Kronecker(gram, Identity(Space.of((4,), ("unit",)))).symmetric
    assert not Kronecker(gram, Dense(randn(3, 3, seed=4))).symmetric


def test_every_factor_is_applied_once_to_a_block_of_the_smallest_size():
    """The one that shrinks its axis goes first: it sees 4 vectors per probe, the one that grows it 1."""
    seen = {}

    def spy(name, dense):
        def forward(block):
            seen[name] = len(block)
            return block @ dense.matrix.mT

        return Function(forward, lambda block: block @ dense.matrix, dense.in_space, dense.out_space)

    grow, shrink = Dense(randn(6, 4, seed=1)), Dense(randn(1, 3, seed=2))
    product = Kronecker(spy("grow", grow), spy("shrink", shrink))
    close(to_dense(product), torch.kron(grow.matrix, shrink.matrix))
    product(randn(5, 4, 3, seed=3))
    assert seen == {"shrink": 5 * 4, "grow": 5 * 1}


def test_never_formed():
    """A product whose matrix would have 10¹² entries."""
    gram, space = LowRank(randn(1000, 2, seed=1)), Space.of((1000,), ("unit",))
    core = Kronecker(gram, Identity(space))
    q = randn(1000, 1000, seed=2)
    close(core(q), gram.left @ (gram.left.mT @ q), 1e-11)


def test_direct_sum_acts_on_parts():
    inner = BlockDiagonal([Dense(randn(2, 2, seed=1)), Dense(randn(1, 3, seed=2))])
    outer = BlockDiagonal((inner, Identity(Space.of((2, 2), ("trial", "unit")))), names=("recurrent", "readout"))
    assert inner.names == ("block0", "block1")
    assert [part.name for part in inner.in_space.parts] == ["block0", "block1"]
    assert [part.shape for part in outer.in_space.parts] == [(5,), (2, 2)]  # parts of parts are one flat part
    assert outer.in_space.parts[1].axes == ("trial", "unit")
    assert [part.shape for part in outer.out_space.parts] == [(3,), (2, 2)]
    v = randn(9, seed=3)
    parts = outer.out_space.split(outer(v))
    close(parts["recurrent"], inner(v[:5]))
    close(parts["readout"], v[5:].reshape(2, 2))


def test_direct_sum_symmetric_if_all_blocks_are():
    gram = LowRank(randn(3, 2, seed=3))
    assert BlockDiagonal([gram, gram]).symmetric
    assert not BlockDiagonal([gram, Dense(randn(3, 3, seed=4))]).symmetric


SINGLE = Dense(A.matrix.float())
REFUSED = {
    "nothing": (ValueError, lambda: Kronecker(), "`factors` must be one operator at least, of one dtype and device"),
    "matrix": (TypeError, lambda: Kronecker(A, B.matrix), "`factors` must be operators; got Tensor. Wrap a matrix in"),
    "dtypes": (ValueError, lambda: Kronecker(A, SINGLE), "`factors` must be one operator at least, of one dtype and"),
    "spaces": (
        ValueError,
        lambda: Kronecker(A, B, spaces=(Space.of((15,)), Space.of((2, 4)))),
        "`spaces` must have the shapes, dtype and device of Space(axis0 3 × axis0_2 5, float64); got Space(axis0 15",
    ),
    "no blocks": (ValueError, lambda: BlockDiagonal([]), "`operators` must be one operator at least"),
    "block matrix": (TypeError, lambda: BlockDiagonal([A.matrix]), "`operators` must be operators; got Tensor."),
    "block dtypes": (ValueError, lambda: BlockDiagonal([A, SINGLE]), "of one dtype and device; got [Dense: Space("),
    "few names": (
        ValueError,
        lambda: BlockDiagonal([A, B], ["a"]),
        "`names` must name each of 2 operators; got ['a'].",
    ),
    "same names": (ValueError, lambda: BlockDiagonal([A, B], ["a", "a"]), "must have different names; got ['a', 'a']."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    kind, call, message = REFUSED[name]
    with without_annotation_checks(), pytest.raises(kind, match=re.escape(message)):
        call()
