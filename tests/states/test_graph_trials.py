"""Trials of a graph: found along any axis, told apart only where nothing goes from one to another."""

import itertools

import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.states import trials
from models import F64, randn, seeded


class Mixing(nn.Module):
    """Two linear layers; in between, trials may meet."""

    def __init__(self, between):
        super().__init__()
        self.first, self.last, self.between = nn.Linear(3, 4), nn.Linear(4, 2), between

    def forward(self, x):
        return self.last(self.between(torch.tanh(self.first(x))))


def linearised(between, inputs):
    return kp.linearise(seeded(Mixing(between)).to(F64), inputs)


MEETING = {
    "mean over trials": lambda h: h - h.mean(0),
    "the next trial": lambda h: h + 1e-9 * h.roll(1, 0),
    "one pair": lambda h: h + torch.eye(7, dtype=F64).roll(3, 0).tril(-3)[:, :7] @ h * torch.eye(7, dtype=F64)[:, 5:6],
    "attention among trials": lambda h: torch.softmax(h @ h.mT, -1) @ h,
}


@pytest.mark.parametrize("name", MEETING)
@pytest.mark.parametrize("inputs", ["different", "the same"])
def test_trials_that_meet_are_not_taken_for_independent(name, inputs):
    x = randn(7, 3, seed=0) if inputs == "different" else torch.ones(7, 3, dtype=F64)
    assert linearised(MEETING[name], x).trials() is None


@pytest.mark.parametrize("inputs", ["different", "the same", "zero"])
def test_trials_that_do_not_meet_are_independent_whatever_the_inputs(inputs):
    x = {
        "different": randn(7, 3, seed=0),
        "the same": torch.ones(7, 3, dtype=F64),
        "zero": torch.zeros(7, 3, dtype=F64),
    }
    found = linearised(torch.relu, x[inputs]).trials()
    assert found is not None
    assert found.count == 7
    assert found.outputs.tolist() == [b for b in range(7) for _ in range(2)]
    assert found.states.tolist() == [b for b in range(7) for _ in range(4)] + [b for b in range(7) for _ in range(2)]


def test_trials_along_the_second_axis_and_merged_with_another():
    model = seeded(nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0)).to(F64)
    found = kp.linearise(model, randn(5, 3, 4, seed=0)).trials()
    assert found.count == 3
    assert found.outputs.reshape(5, 3, 4)[2, :, 1].tolist() == [0, 1, 2]


def test_inputs_with_other_numbers_of_trials_have_none():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x, y):
            return self.layer(x) + y

    assert kp.linearise(seeded(Two()).to(F64), (randn(4, 3, seed=0), randn(2, seed=1))).trials() is None


def test_values_settle_what_derivatives_need_not(monkeypatch):
    """With different inputs no product is made; with the same ones products decide."""
    calls = []
    monkeypatch.setattr("kpflow.states.graph.independent", lambda *_: calls.append(1) or True)
    assert linearised(torch.relu, randn(7, 3, seed=0)).trials() is not None
    assert not calls
    assert linearised(torch.relu, torch.ones(7, 3, dtype=F64)).trials() is not None
    assert calls


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_no_code_holds_another(count):
    codes = [set(row.nonzero().flatten().tolist()) for row in trials._codes(count)]
    assert len(codes) == count
    assert all(not one <= other for one, other in itertools.permutations(codes, 2))
