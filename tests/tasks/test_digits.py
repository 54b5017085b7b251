"""Digits in sequence, against the images that scikit-learn brings."""

import importlib

import pytest
import torch
from sklearn.datasets import load_digits

from kpflow.tasks import SequentialDigits, digits

F64 = torch.float64
IMAGES, DIGITS = load_digits(return_X_y=True)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mode", ["random", "grid"])
@pytest.mark.parametrize(("rows", "T"), [(False, 64), (True, 8)])
def test_every_pixel_is_shown_in_its_order(rows, T, mode):
    trials = SequentialDigits(rows=rows).sample(20, generator=seeded(0), mode=mode, dtype=F64)
    assert trials.inputs.shape == (20, T, 64 // T)
    for b in range(20):
        number = int(trials.conditions["image"][b])
        assert trials.inputs[b].flatten().tolist() == (IMAGES[number] / 16).tolist()
        assert int(trials.conditions["digit"][b]) == DIGITS[number]
        assert trials.targets[b, -1].tolist() == [float(k == DIGITS[number]) for k in range(10)]
    assert not trials.targets[:, :-1].any()
    assert not trials.mask[:, :-1].any()
    assert trials.mask[:, -1].unique().tolist() == [1]


def test_images_to_train_on_are_never_tested_on():
    drawn = SequentialDigits().sample(20000, generator=seeded(1), noise=False).conditions["image"]
    held_out = SequentialDigits().sample(361, mode="grid").conditions["image"].tolist()
    assert held_out == [*range(1437, 1797), 1437]
    counts = torch.bincount(drawn, minlength=1437)
    assert len(counts) == 1437  # none from 1437 on
    assert int(counts.min()) > 0
    expected = 20000 / 1437
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi2 - 1436) < 4 * (2 * 1436) ** 0.5


@pytest.mark.parametrize("rows", [False, True])
def test_a_permutation_is_one_for_all_images(rows):
    plain = SequentialDigits(rows=rows).sample(50, mode="grid", dtype=F64).inputs.flatten(1)
    permuted = SequentialDigits(rows=rows, permutation_seed=3).sample(50, mode="grid", dtype=F64).inputs.flatten(1)
    order = torch.randperm(64, generator=seeded(3))
    assert torch.equal(permuted, plain[:, order])
    other = SequentialDigits(rows=rows, permutation_seed=4).sample(50, mode="grid", dtype=F64).inputs.flatten(1)
    assert not torch.equal(permuted, other)


def test_score_looks_at_the_last_step_alone():
    task = SequentialDigits(rows=True)
    trials = task.sample(40, mode="grid")
    outputs = trials.targets.clone()
    outputs[:, :-1, 3] = 9.0
    assert task.score(outputs, trials) == {"accuracy": 1.0}
    outputs[:10, -1] = outputs[:10, -1].roll(1, dims=1)
    assert task.score(outputs, trials) == {"accuracy": 0.75}


def test_held_out_images_are_told_by_a_map_fitted_to_the_others():
    """Least squares on the pixels of random trials: the two sets belong together, and digits are not mixed up."""
    task = SequentialDigits(rows=True)
    fitted, tested = task.sample(4000, generator=seeded(2), dtype=F64), task.sample(360, mode="grid", dtype=F64)
    pixels = [torch.cat((t.inputs.flatten(1), torch.ones(len(t.inputs), 1)), dim=1) for t in (fitted, tested)]
    weights = torch.linalg.lstsq(pixels[0], fitted.targets[:, -1], driver="gelsd").solution
    outputs = torch.zeros_like(tested.targets)
    outputs[:, -1] = pixels[1] @ weights
    assert task.score(outputs, tested)["accuracy"] > 0.85


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    digits._images.cache_clear()
    task = SequentialDigits()  # can be described without
    with pytest.raises(ImportError, match=r"SequentialDigits needs scikit-learn.*pip install 'kpflow\[digits\]'"):
        task.sample(2)


@pytest.mark.usefixtures("no_type_checks")
def test_parameters_out_of_range():
    with pytest.raises(TypeError, match="`rows` must be True or False; got 1"):
        SequentialDigits(rows=1)
    with pytest.raises(ValueError, match="`permutation_seed` must be a whole number at least 0; got -1"):
        SequentialDigits(permutation_seed=-1)
    with pytest.raises(ValueError, match="`sigma` must be a number at least 0; got -1"):
        SequentialDigits(sigma=-1)
