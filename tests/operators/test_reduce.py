"""Restriction and PartialTrace against indexing and einsum; the random signs against their exact mean and variance."""

import itertools
import math
import re

import pytest
import torch

from helpers import close, randn, without_annotation_checks
from kpflow import Space
from kpflow.operators import (
    DEFAULT_PROBES,
    MAX_BASIS,
    Dense,
    Diagonal,
    Function,
    Identity,
    Kronecker,
    PartialTrace,
    Restriction,
    blocks,
    reduce,
    to_dense,
)

SPACE = Space.of((3, 4, 2), ("trial", "time", "unit"))
A = Dense(randn(24, 24, seed=1), (SPACE, SPACE))
TENSOR = A.matrix.reshape(3, 4, 2, 3, 4, 2)
GRAM = Dense(A.matrix @ A.matrix.mT, (SPACE, SPACE))
PARTS = Space.of_parts({"w": (2, 2), "b": (2,), "h0": (3,)}, "parameter")

INDICES = {
    "int": (1, [1]),
    "negative": (-1, [3]),
    "slice": (slice(1, 3), [1, 2]),
    "slice with a step": (slice(None, None, -2), [3, 1]),
    "range": (range(2), [0, 1]),
    "list in any order": ([2, 0], [2, 0]),
    "tensor": (torch.tensor([3, 1]), [3, 1]),
    "booleans": (torch.tensor([True, False, False, True]), [0, 3]),
    "list of booleans": ([False, True, True, False], [1, 2]),
}


@pytest.mark.parametrize("name", INDICES)
def test_restriction_is_indexing(name):
    index, positions = INDICES[name]
    R = Restriction(SPACE, {"time": index})
    v = randn(5, *SPACE.shape, seed=2)
    close(R(v), v[:, :, positions])
    assert R.out_space == Space.of((3, len(positions), 2), SPACE.axes)


def test_block_of_an_operator():
    R = Restriction(SPACE, {"trial": [0, 2], "time": slice(1, 3)})
    block = TENSOR[[0, 2]][:, 1:3][:, :, :, [0, 2]][:, :, :, :, 1:3]
    close(to_dense(R @ A @ R.T), block.reshape(8, 8))


@pytest.mark.parametrize(
    "R",
    [Restriction(SPACE, {"trial": [2, 0], "unit": 1}), Restriction(PARTS, parts=["h0", "w"])],
    ids=["axes", "parts"],
)
def test_restriction_undoes_its_adjoint(R):
    close(to_dense(R @ R.T), torch.eye(R.out_space.size))
    projector = to_dense(R.T @ R)
    close(projector @ projector, projector)
    assert (R.T @ R).symmetric
    assert float(projector.trace()) == R.out_space.size


def test_parts_in_the_order_wanted():
    R = Restriction(PARTS, parts=["h0", "w"])
    v = randn(5, 9, seed=1)
    assert [part.name for part in R.out_space.parts] == ["h0", "w"]
    assert R.out_space.axes == ("parameter",)
    close(R(v), torch.cat([v[:, 6:], v[:, :4]], 1))


def test_entries_of_a_flat_axis():
    assert Restriction(PARTS, {"parameter": [8, 0]})(torch.arange(9.0, dtype=torch.float64)).tolist() == [8.0, 0.0]


REFUSED = {
    "neither": (ValueError, lambda: Restriction(SPACE), "Give `axes` or `parts`, one of them; got neither."),
    "both": (ValueError, lambda: Restriction(PARTS, {"parameter": 0}, ["w"]), "one of them; got both."),
    "no such axis": (ValueError, lambda: Restriction(SPACE, {"neuron": 0}), "its axes are trial, time, unit."),
    "out of range": (
        ValueError,
        lambda: Restriction(SPACE, {"time": [0, 4]}),
        "`axes['time']` must lie in an axis of 4",
    ),
    "below": (
        ValueError,
        lambda: Restriction(SPACE, {"time": -5}),
        "`axes['time']` must lie in an axis of 4; got [-5].",
    ),
    "twice": (ValueError, lambda: Restriction(SPACE, {"time": [3, -1]}), "`axes['time']` must hold no entry twice"),
    "nothing": (
        ValueError,
        lambda: Restriction(SPACE, {"time": slice(2, 2)}),
        "`axes['time']` keeps nothing of an axis",
    ),
    "no True": (ValueError, lambda: Restriction(SPACE, {"unit": [False, False]}), "`axes['unit']` keeps nothing of an"),
    "booleans": (ValueError, lambda: Restriction(SPACE, {"time": [True]}), "`axes['time']` must hold 4 booleans; got"),
    "fraction": (
        TypeError,
        lambda: Restriction(SPACE, {"time": 0.5}),
        "`axes['time']` must be an int, a slice, ints or",
    ),
    "text": (TypeError, lambda: Restriction(SPACE, {"time": "all"}), "ints or booleans; got 'all'."),
    "matrix": (TypeError, lambda: Restriction(SPACE, {"time": [[0], [1]]}), "ints or booleans; got [[0], [1]]."),
    "parts of one": (
        ValueError,
        lambda: Restriction(SPACE, parts=["w"]),
        "`parts` needs a space of several parts; got",
    ),
    "no such part": (ValueError, lambda: Restriction(PARTS, parts=["u"]), "`parts` must be some of ['w', 'b', 'h0'],"),
    "part twice": (ValueError, lambda: Restriction(PARTS, parts=["w", "w"]), "none twice; got ['w', 'w']."),
    "bare name": (ValueError, lambda: Restriction(PARTS, parts="w"), "none twice; got 'w'."),
    "no part": (ValueError, lambda: Restriction(PARTS, parts=[]), "none twice; got []."),
    "not square": (
        ValueError,
        lambda: PartialTrace(Dense(randn(2, 3, seed=1)), ["axis0"]),
        "`operator` must be square",
    ),
    "trace of parts": (ValueError, lambda: PartialTrace(Identity(PARTS), ["parameter"]), "a space of one part with"),
    "no axis": (ValueError, lambda: PartialTrace(A, ["neuron"]), "its axes are trial, time, unit."),
    "axis twice": (ValueError, lambda: PartialTrace(A, ["unit", "unit"]), "`axes` must be different names of axes"),
    "bare axis": (ValueError, lambda: PartialTrace(A, "unit"), "such as ('trial', 'time'); got 'unit'."),
    "no probes": (
        ValueError,
        lambda: PartialTrace(A, num_probes=0),
        "`num_probes` must be a positive whole number; got 0",
    ),
    "generator": (TypeError, lambda: PartialTrace(A, generator=3), "`generator` must be a torch.Generator or None"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    kind, call, message = REFUSED[name]
    with without_annotation_checks(), pytest.raises(kind, match=re.escape(message)):
        call()


def einsum_trace(tensor, traced):
    """tr over the axes `traced` of [b, t, h; B, T, H], by giving both letters of a traced axis the same name."""
    inner = [upper.lower() if axis in traced else upper for axis, upper in zip(SPACE.axes, "BTH", strict=True)]
    kept = [i for i, axis in enumerate(SPACE.axes) if axis not in traced]
    result = "".join("bth"[i] for i in kept) + "".join("BTH"[i] for i in kept)
    size = math.prod(SPACE.shape[i] for i in kept)
    return torch.einsum(f"bth{''.join(inner)}->{result}", tensor).reshape(size, size)


SUBSETS = [axes for k in range(4) for axes in itertools.permutations(SPACE.axes, k)]


@pytest.mark.parametrize("axes", SUBSETS, ids="-".join)
def test_exact_partial_trace_of_any_axes(axes):
    partial = PartialTrace(A, axes)
    assert partial.exact
    assert partial.in_space.axes == tuple(axis for axis in SPACE.axes if axis not in axes)
    close(to_dense(partial), einsum_trace(TENSOR, axes))
    close(to_dense(partial).trace(), A.matrix.trace())


def test_partial_trace_of_a_tensor_product():
    core, units = Dense(randn(3, 3, seed=1)), Dense(randn(4, 4, seed=2))
    product = Kronecker(core, units)
    close(to_dense(PartialTrace(product, [product.in_space.axes[1]])), core.matrix * units.matrix.trace())
    close(to_dense(PartialTrace(product, [product.in_space.axes[0]])), units.matrix * core.matrix.trace())


def test_signs_are_unbiased_exactly(monkeypatch):
    """The mean over all 2⁸ sign vectors on (time, unit) is the partial trace."""
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=8)), dtype=torch.float64) / 16
    monkeypatch.setattr(reduce, "_signs", lambda *_: signs)
    close(to_dense(PartialTrace(A, ("time", "unit"), num_probes=7)), einsum_trace(TENSOR, ("time", "unit")))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_signs_have_the_variance_of_theory(seed):
    """Entry [a, b] of S probes has variance Σ_{i<j} (A[ai,bj] + A[aj,bi])² / S; over 9 entries z² averages 1 or so."""
    space = Space.of((3, 40), ("trial", "unit"))
    tensor = randn(3, 40, 3, 40, seed=5)
    sampled = PartialTrace(
        Dense(tensor.reshape(120, 120), (space, space)),
        ["unit"],
        num_probes=39,
        generator=torch.Generator().manual_seed(seed),
    )
    pairs = (tensor + tensor.permute(0, 3, 2, 1)).permute(0, 2, 1, 3).triu(1)
    deviation = (pairs.square().sum((2, 3)) / 39).sqrt()
    z = (to_dense(sampled) - torch.einsum("aibi->ab", tensor)) / deviation
    assert not sampled.exact
    assert float(z.abs().max()) < 4
    assert 0.3 < float(z.square().mean()) < 3


def test_ones_would_be_wrong_by_tens_of_percent():
    """K = Σ_g D_g (C_g ⊗ I) D_g made non-separable by a smooth coupling of units, as P does to a kernel.

    Probing with ones sums all pairs of units. Signs on 40 units are within a few percent, the basis is exact.
    """
    space = Space.of((30, 40), ("time", "unit"))
    t, u = torch.arange(30.0, dtype=torch.float64), torch.arange(40.0, dtype=torch.float64)
    smooth = torch.exp(-((t[:, None] - t) ** 2) / 50)
    near = torch.exp(-((u[:, None] - u) ** 2) / 0.5)
    slopes = Diagonal(torch.sigmoid(randn(30, 40, seed=1)), space)
    couple = Kronecker(Dense(smooth), Dense(near), spaces=(space, space))
    operator = slopes @ couple @ slopes.T
    true = torch.einsum("aibi->ab", to_dense(operator).reshape(30, 40, 30, 40))

    def error(matrix):
        return float((matrix - true).norm() / true.norm())

    ones = Function(lambda q: q.sum(-1), lambda v: v[..., None].expand(-1, -1, 40), space, Space.of((30,), ("time",)))
    sampled = PartialTrace(operator, ["unit"], num_probes=39, generator=torch.Generator().manual_seed(0))
    assert error(to_dense(ones @ operator @ ones.T)) > 0.2
    assert error(to_dense(sampled)) < 0.05
    assert error(to_dense(PartialTrace(operator, ["unit"]))) < 1e-12


def test_signs_are_frozen():
    def draw(seed):
        return PartialTrace(GRAM, ("trial", "time"), num_probes=4, generator=torch.Generator().manual_seed(seed))

    state, partial, v = torch.get_rng_state(), draw(0), randn(2, seed=1)
    assert torch.equal(partial(v), partial(v))
    assert torch.equal(partial(v), draw(0)(v))
    assert torch.equal(PartialTrace(GRAM, num_probes=4)(v), draw(0)(v))  # the generator if none is given
    assert not torch.allclose(partial(v), draw(1)(v))
    assert torch.equal(torch.get_rng_state(), state)
    assert partial.symmetric
    assert not PartialTrace(A, num_probes=4).symmetric


@pytest.mark.parametrize(
    ("entries", "num_probes", "exact", "used"),
    [
        (MAX_BASIS, None, True, MAX_BASIS),
        (MAX_BASIS + 1, None, False, DEFAULT_PROBES),
        (MAX_BASIS + 1, MAX_BASIS + 1, True, MAX_BASIS + 1),
        (6, 6, True, 6),
        (6, 100, True, 6),
        (6, 5, False, 5),
    ],
)
def test_exact_where_that_is_no_dearer(entries, num_probes, exact, used):
    space = Space.of((2, entries), ("unit", "time"))
    products = []
    spy = Function(lambda block: products.append(len(block)) or block, None, space)
    partial = PartialTrace(spy, ["time"], num_probes=num_probes)
    close(partial(randn(3, 2, seed=1)), entries * randn(3, 2, seed=1))  # the identity: signs are exact as well
    assert (partial.exact, sum(products)) == (exact, 3 * used)


@pytest.mark.parametrize("limit", [24, 60, 24 * 12, 24 * 25, 10**6])
def test_blocks_are_bounded(limit, monkeypatch):
    """Probes × vectors go as one block where it fits the limit, else in as few as fit."""
    monkeypatch.setattr(blocks, "MAX_BLOCK_ENTRIES", limit)
    sizes = []
    spy = Function(lambda v: sizes.append(v.numel()) or A(v), A.T, SPACE, SPACE)
    partial = PartialTrace(spy, ("trial", "time"))
    v = randn(4, 2, seed=1)
    close(partial(v), v @ einsum_trace(TENSOR, ("trial", "time")).mT)
    assert max(sizes) <= limit
    assert sum(sizes) == 4 * 12 * 24
    if limit == 10**6:
        assert len(sizes) == 1


def test_of_nothing_traced_and_of_everything():
    v = randn(*SPACE.shape, seed=3)
    close(PartialTrace(A, ())(v), A(v))
    trace = PartialTrace(A, SPACE.axes)
    close(trace(torch.tensor(2.0, dtype=torch.float64)), 2 * A.matrix.trace())
    assert repr(trace) == "PartialTrace: Space(scalar, float64) → Space(scalar, float64)"
