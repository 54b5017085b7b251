"""Spaces: shapes and names, views of parts, equality, and the errors of vectors that do not fit."""

import re

import pytest
import torch

from helpers import randn, without_annotation_checks
from kpflow import Part, Space

STATES = Space.of((2, 3, 4), ("trial", "time", "unit"))
PARAMETERS = Space.of_parts({"weight": (2, 3), "gain": (), "bias": (3,)}, "parameter")


def test_one_part():
    assert (STATES.shape, STATES.axes, STATES.size, STATES.ndim) == ((2, 3, 4), ("trial", "time", "unit"), 24, 3)
    assert STATES.axis("unit") == 2
    assert Space.of((5, 6)).axes == ("axis0", "axis1")
    assert Space.of(torch.ones(2, 3).shape).shape == (2, 3)
    assert STATES.zeros(7, 1).shape == (7, 1, 2, 3, 4)


def test_several_parts():
    assert (PARAMETERS.shape, PARAMETERS.axes, PARAMETERS.size) == ((10,), ("parameter",), 10)
    assert PARAMETERS.parts[0] == Part("weight", ("axis0", "axis1"), (2, 3))
    assert Space.of_parts({"only": (4,)}).axes == ("entry",)


def test_split_gives_views_in_row_major_order():
    v = torch.arange(10.0, dtype=torch.float64)
    parts = PARAMETERS.split(v)
    assert {name: part.tolist() for name, part in parts.items()} == {
        "weight": [[0, 1, 2], [3, 4, 5]],
        "gain": 6,
        "bias": [7, 8, 9],
    }
    parts["weight"][1, 0] = -1.0
    parts["gain"].fill_(-2.0)
    assert v.tolist() == [0, 1, 2, -1, 4, 5, -2, 7, 8, 9]
    assert STATES.split(STATES.zeros())[""].shape == (2, 3, 4)


@pytest.mark.parametrize("probes", [(), (0,), (5,), (2, 3)])
def test_join_undoes_split(probes):
    v = randn(10, *reversed(probes), seed=1).permute(*reversed(range(1 + len(probes))))
    parts = PARAMETERS.split(v)
    assert [tuple(part.shape) for part in parts.values()] == [(*probes, 2, 3), probes, (*probes, 3)]
    assert all(part.untyped_storage().data_ptr() == v.untyped_storage().data_ptr() for part in parts.values())
    assert torch.equal(PARAMETERS.join(dict(reversed(parts.items()))), v)
    state = STATES.zeros(*probes)
    assert STATES.join(STATES.split(state)) is state


def test_equality_and_hash():
    again = Space.of([2, 3, 4], ["trial", "time", "unit"], device="cpu")
    assert again == STATES
    assert len({STATES, again}) == 1
    renamed = Space.of((2, 3, 4))
    single = Space.of((2, 3, 4), STATES.axes, torch.float32)
    assert STATES not in (renamed, single, Space.of((2, 3, 4), STATES.axes, device="meta"))
    assert STATES.same_vectors(renamed)
    assert not STATES.same_vectors(single)
    assert Space.of((10,)).same_vectors(PARAMETERS)
    assert Space.of((10,)) != PARAMETERS


@pytest.mark.parametrize(
    ("space", "text"),
    [
        (STATES, "Space(trial 2 × time 3 × unit 4, float64)"),
        (PARAMETERS, "Space(parameter 10 in 3 parts, float64)"),
        (Space.of_parts({"w": (2, 2)}, dtype=torch.float32), "Space(entry 4 in 1 part, float32)"),
        (Space.of((2,), device="meta"), "Space(axis0 2, float64, meta)"),
        (Space.of(()), "Space(scalar, float64)"),
    ],
)
def test_repr(space, text):
    assert repr(space) == text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_current_card_has_a_number():
    space = Space.of((3,), device="cuda")
    space.check("vector", torch.ones(3, dtype=torch.float64, device="cuda"))
    assert space == Space.of((3,), device=torch.ones(1, device="cuda").device)


W, G, B = torch.ones(2, 3).double(), torch.ones(()).double(), torch.ones(3).double()
REFUSED = {
    "axes": (
        ValueError,
        lambda: Space.of((2, 3), ("unit",)),
        "`axes` must name every axis of `shape`; got axes ('unit',)",
    ),
    "same axes": (ValueError, lambda: Space.of((2, 3), ("unit", "unit")), "`axes` must differ from each other"),
    "negative": (ValueError, lambda: Space.of((2, -3)), "`shape` must hold no negative size; got (2, -3)."),
    "dtype": (
        TypeError,
        lambda: Space.of((2,), None, torch.int64),
        "`dtype` must be a floating-point one; got torch.int",
    ),
    "no parts": (ValueError, lambda: Space.of_parts({}), "A space needs one part, or several and a flat axis; got 0"),
    "not flat": (ValueError, lambda: Space(PARAMETERS.parts), "one part, or several and a flat axis; got 3 parts."),
    "same parts": (
        ValueError,
        lambda: Space(PARAMETERS.parts[:1] * 2, flat="entry"),
        "The parts of a space must have different names; got ['weight', 'weight'].",
    ),
    "axis": (ValueError, lambda: STATES.axis("neuron"), "`neuron` is not an axis of Space(trial 2 × time 3 × unit 4"),
    "no tensor": (TypeError, lambda: STATES.check("error", [1.0]), "`error` must be a torch.Tensor; got list."),
    "shape": (
        ValueError,
        lambda: STATES.check("error", torch.ones(2, 4, 3).double()),
        "`error` must have shape [*, 2, 3, 4] (trial × time × unit); got (2, 4, 3).",
    ),
    "too few axes": (ValueError, lambda: STATES.check("error", torch.ones(3, 4).double()), "got (3, 4)."),
    "single": (
        TypeError,
        lambda: STATES.check("error", torch.ones(2, 3, 4)),
        "`error` must be torch.float64; got torch.float32. Convert it with .to(torch.float64).",
    ),
    "device": (
        ValueError,
        lambda: STATES.check("error", torch.ones(2, 3, 4, dtype=torch.float64, device="meta")),
        "`error` must be on cpu; got meta. Move it with .to('cpu').",
    ),
    "split": (ValueError, lambda: PARAMETERS.split(B), "`vector` must have shape [*, 10] (parameter); got (3,)."),
    "part missing": (
        ValueError,
        lambda: PARAMETERS.join({"weight": W, "bias": B}),
        "`tensors` must hold the parts ['weight', 'gain', 'bias']; got ['weight', 'bias'].",
    ),
    "part transposed": (
        ValueError,
        lambda: PARAMETERS.join({"weight": W.mT, "gain": G, "bias": B}),
        "The part `weight` must have shape [*, 2, 3]; got (3, 2).",
    ),
    "part too small": (
        ValueError,
        lambda: PARAMETERS.join({"weight": B, "gain": G, "bias": B}),
        "The part `weight` must have shape [*, 2, 3]; got (3,).",
    ),
    "probes": (
        ValueError,
        lambda: PARAMETERS.join({"weight": W.expand(5, 2, 3), "gain": G, "bias": B}),
        "The parts must have the same probe axes; got [(), (5,)].",
    ),
    "parts single": (
        TypeError,
        lambda: PARAMETERS.join({"weight": W.float(), "gain": G.float(), "bias": B.float()}),
        "`tensors` must be torch.float64; got torch.float32.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    kind, call, message = REFUSED[name]
    with without_annotation_checks(), pytest.raises(kind, match=re.escape(message)):
        call()
