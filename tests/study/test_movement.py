"""How far the NTK moved between checkpoints: against the matrices, with errors that are honest."""

import numpy as np
import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.operators import to_dense
from kpflow.study import Settings, analyse_folder, save_checkpoint
from kpflow.study.movement import Movement
from kpflow.tasks import MemoryPro

TASK = MemoryPro(context=0, stimulus=2, memory=2, response=2, grace=0.0)
QUICK = Settings(modes=4, budget=24, starts=0)
STEPS = (0, 10, 20)


def moved_model(step, dtype=torch.float64):
    """A model that moves with the step, and is scaled by nothing else."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, other = (nn.GRU(3, 3, batch_first=True).to(dtype) for _ in range(2))
    with torch.no_grad():
        for parameter, towards in zip(model.parameters(), other.parameters(), strict=True):
            parameter += step / 30 * (towards - parameter)
    return model.eval()


def linearised(step, dtype=torch.float64):
    trials = TASK.sample(4, mode="grid", noise=False, dtype=dtype)
    return kp.linearise(moved_model(step, dtype), trials.inputs, route="recurrent")


def exact(step, since):
    A, B = (to_dense(kp.Ntk(linearised(at))) for at in (step, since))
    cosine = (A * B).sum() / A.norm() / B.norm()
    return {"kernel_change": float((A - B).norm() / B.norm()), "kernel_alignment": float(cosine)}


def test_movement_is_that_of_the_matrices_within_its_errors():
    deviations = []
    for seed in range(12):
        found = Movement(linearised, 0, budget=24, seed=seed).between(10, 20)
        assert found.step.values.tolist() == [20]
        for since, step in (("first", 0), ("previous", 10)):
            for name, truth in exact(20, step).items():
                value, error = (float(found[each].sel(since=since)[0]) for each in (name, f"{name}_error"))
                assert 0 < error < 0.2 * (truth if name == "kernel_change" else 1)
                deviations.append((value - truth) / error)
    z = np.array(deviations)
    assert np.abs(z).max() < 6
    assert 0.5 < np.sqrt((z**2).mean()) < 1.6
    assert np.abs(z.mean()) < 0.7


def test_enough_products_hold_the_whole_kernel():
    lin = kp.linearise(nn.RNN(1, 1, batch_first=True).double(), torch.ones(1, 4, 1).double())
    found = Movement(lambda step: lin, 0, budget=24, seed=0).between(0, 1)
    np.testing.assert_allclose(found.kernel_alignment, 1, atol=1e-12)
    np.testing.assert_array_equal(found.kernel_change, 0)


def test_a_small_change_is_not_lost_in_rounding():
    near = lambda step: linearised(1e-3 * step, torch.float32)  # noqa: E731
    found = Movement(near, 0, budget=24, seed=0).between(0, 1)
    A, B = (to_dense(kp.Ntk(linearised(1e-3 * step))) for step in (1, 0))
    truth = float((A - B).norm() / B.norm())
    assert truth < 1e-3
    assert abs(float(found.kernel_change[0, 0]) - truth) < 6 * float(found.kernel_change_error[0, 0]) + 1e-6
    assert float(found.kernel_change[0, 0]) == pytest.approx(truth, rel=0.3)


def test_kernels_that_are_not_finite_are_nan():
    def grown(step):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.RNN(1, 2, nonlinearity="relu", batch_first=True)
        with torch.no_grad():
            model.weight_hh_l0.abs_().mul_(1e5 if step == 10 else 1)
        return kp.linearise(model, torch.ones(1, 6, 1))

    movement = Movement(grown, 0, budget=24, seed=0)
    assert movement.between(0, 10).kernel_change.isnull().all()
    assert movement.between(10, 20).kernel_change.isnull().values.tolist() == [[False, True]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for step in STEPS:
        save_checkpoint(folder / f"step-{step}", moved_model(step, torch.float32), step)
    return folder


def study(folder, seen=None):
    make = lambda: nn.GRU(3, 3, batch_first=True)  # noqa: E731
    progress = None if seen is None else seen.append
    return analyse_folder(folder, make, TASK, trials=4, settings=QUICK, progress=progress)


def test_the_record_of_a_folder_has_the_movement_and_keeps_it(folder):
    seen = []
    record = study(folder, seen)
    assert record.since.values.tolist() == ["first", "previous"]
    assert np.isnan(record.kernel_change.values[0]).all()
    for at, (step, since) in {(1, 0): (10, 0), (1, 1): (10, 0), (2, 0): (20, 0), (2, 1): (20, 10)}.items():
        for name, truth in exact(step, since).items():
            off = abs(float(record[name].values[at]) - truth)
            assert off < 5 * float(record[f"{name}_error"].values[at]) + 1e-4, (name, at)
    assert [one.outcome for one in seen if one.part == "intervals"] == ["analysed"] * 2
    seen = []
    assert study(folder, seen).identical(record)
    assert [one.outcome for one in seen if one.part == "intervals"] == ["found"] * 2


def test_an_interval_of_other_weights_is_measured_anew(folder):
    first = study(folder)
    save_checkpoint(folder / "step-20", moved_model(25, torch.float32), 20)
    seen = []
    second = study(folder, seen)
    assert [one.outcome for one in seen if one.part == "intervals"] == ["found", "analysed"]
    assert float(second.kernel_change[2, 0]) > float(first.kernel_change[2, 0])
