"""Analysis of a folder: what is done is not done again, and never mixed with what is something else."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from kpflow import report
from kpflow.study import (
    Demo,
    Settings,
    Store,
    analyse_demo,
    analyse_folder,
    list_checkpoints,
    read_checkpoint,
    save_checkpoint,
    train_demo,
)
from kpflow.study import demo as demo_module
from kpflow.study.tensors import fingerprint
from kpflow.tasks import MemoryPro, MultiTask

TASK = MemoryPro(context=0, stimulus=2, memory=2, response=2, grace=0.0)
QUICK = Settings(modes=4, budget=12, starts=0)


def make():
    return nn.GRU(3, 3, batch_first=True)


def write(folder, steps=(0, 10), seed=0):
    torch.manual_seed(seed)
    for step in steps:
        save_checkpoint(folder / f"step-{step}", make(), step)


def run(folder, **more):
    outcomes = []
    options = {"trials": 3, "settings": QUICK, "progress": outcomes.append} | more
    record = analyse_folder(folder, make, TASK, **options)
    return record, [(one.step, one.outcome) for one in outcomes if one.part == "checkpoints"]


def test_every_step_once(tmp_path):
    write(tmp_path)
    record, outcomes = run(tmp_path)
    assert outcomes == [(0, "analysed"), (10, "analysed")]
    assert record["step"].values.tolist() == [0, 10]
    again, outcomes = run(tmp_path)
    assert outcomes == [(0, "found"), (10, "found")]
    assert again.identical(record)
    write(tmp_path, steps=(100,))
    longer, outcomes = run(tmp_path)
    assert outcomes[-1] == (100, "analysed")
    assert longer.isel(step=slice(2), other_step=slice(2)).drop_attrs().identical(record.drop_attrs())


def test_an_interrupted_analysis_goes_on(tmp_path):
    write(tmp_path / "whole")
    write(tmp_path / "parts")
    whole, _ = run(tmp_path / "whole")

    def stop(progress):
        if progress.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", progress=stop)
    record, outcomes = run(tmp_path / "parts")
    assert outcomes == [(0, "found"), (10, "analysed")]
    assert record.drop_attrs().identical(whole.drop_attrs())


def test_the_report_sees_the_steps_of_an_interrupted_analysis(tmp_path):
    write(tmp_path)

    def stop(progress):
        if progress.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=stop)
    assert Store(tmp_path / "analysis").steps() == [0]


@pytest.mark.parametrize("change", [{"settings": Settings(modes=4, budget=16, starts=0)}, {"trials": 4}])
def test_other_settings_are_analysed_anew(change, tmp_path):
    write(tmp_path)
    first, _ = run(tmp_path)
    other, outcomes = run(tmp_path, **change)
    assert [outcome for _, outcome in outcomes] == ["analysed"] * 2
    assert other["step"].values.tolist() == [0, 10]
    assert other.attrs["settings"] != first.attrs["settings"]
    back, outcomes = run(tmp_path)
    assert [outcome for _, outcome in outcomes] == ["found"] * 2
    assert back.identical(first)


def test_other_weights_are_analysed_anew_and_old_steps_left_out(tmp_path):
    write(tmp_path)
    first, _ = run(tmp_path)
    write(tmp_path, steps=(0,), seed=1)
    (tmp_path / "step-10.safetensors").unlink()
    second, outcomes = run(tmp_path)
    assert outcomes == [(0, "analysed")]
    assert second["step"].values.tolist() == [0]
    assert not np.allclose(first["loss"][:1], second["loss"])


def test_a_diverged_checkpoint_is_skipped_and_said_so(tmp_path):
    write(tmp_path)
    model = make()
    nn.init.constant_(model.bias_hh_l0, float("nan"))
    save_checkpoint(tmp_path / "step-20", model, 20)
    record, outcomes = run(tmp_path)
    assert outcomes[-1] == (20, "skipped")
    assert record["step"].values.tolist() == [0, 10]
    assert "`bias_hh_l0` in step-20.safetensors is not finite" in json.loads(record.attrs["skipped"])["20"]


def test_nothing_but_diverged_checkpoints(tmp_path):
    model = make()
    nn.init.constant_(model.weight_hh_l0, float("inf"))
    save_checkpoint(tmp_path / "step-20", model, 20)
    with pytest.raises(ValueError, match=r"must hold finite weights; got none: `weight_hh_l0` in step-20"):
        run(tmp_path)


def test_weights_of_another_model(tmp_path):
    save_checkpoint(tmp_path / "step-1", nn.GRU(3, 5, batch_first=True), 1)
    with pytest.raises(ValueError, match=r"`bias_hh_l0` in .* must have the shape \(9,\).* got \(15,\)"):
        run(tmp_path)


def test_a_factory_that_gives_no_model(tmp_path):
    write(tmp_path)
    with pytest.raises(TypeError, match=r"`make_model` must give a torch\.nn\.Module; got dict"):
        analyse_folder(tmp_path, dict, TASK)
    with pytest.raises(ValueError, match=r"`make_model` must give a model with parameters"):
        analyse_folder(tmp_path, nn.Identity, TASK)


# the demo -----------------------------------------------------------------------------------------------------------

TINY = Demo(steps=12, hidden=3, batch=2, trials=3, per_decade=1)


@pytest.fixture(autouse=True)
def short_trials(monkeypatch):
    monkeypatch.setattr(demo_module, "MemoryPro", lambda: TASK)


def stop_training(at):
    def interrupt(step, _loss):
        if step == at:
            raise KeyboardInterrupt

    return interrupt


def stop_analysis(progress):
    if progress.done == 2:
        raise KeyboardInterrupt


def weights(folder):
    files = list_checkpoints(folder / "checkpoints")
    return {file.step: fingerprint(read_checkpoint(file.path).state_dict) for file in files}


def test_training_interrupted_at_any_step_ends_the_same(tmp_path):
    train_demo(TINY, tmp_path / "whole")
    assert list(weights(tmp_path / "whole")) == [0, 1, 10, 12]
    for stop in (1, 2, 9, 10, 11):
        folder = tmp_path / f"stopped at {stop}"
        with pytest.raises(KeyboardInterrupt):
            train_demo(TINY, folder, progress=stop_training(stop))
        train_demo(TINY, folder)
        assert weights(folder) == weights(tmp_path / "whole")


def test_a_demo_interrupted_twice_gives_the_same_record(tmp_path):
    train_demo(TINY, tmp_path / "whole")
    whole = analyse_demo(TINY, tmp_path / "whole", settings=QUICK)
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        train_demo(TINY, folder, progress=stop_training(6))
    train_demo(TINY, folder)
    with pytest.raises(KeyboardInterrupt):
        analyse_demo(TINY, folder, settings=QUICK, progress=stop_analysis)
    parts = analyse_demo(TINY, folder, settings=QUICK)
    assert parts.drop_attrs().identical(whole.drop_attrs())


def test_a_finished_demo_is_not_trained_again(tmp_path):
    train_demo(TINY, tmp_path)
    before = {file.path: file.path.stat().st_mtime_ns for file in list_checkpoints(tmp_path / "checkpoints")}
    train_demo(TINY, tmp_path, progress=lambda *_: pytest.fail("trained again"))
    assert before == {file.path: file.path.stat().st_mtime_ns for file in list_checkpoints(tmp_path / "checkpoints")}


def test_the_demo_uses_no_global_randomness_and_keeps_the_threads(tmp_path):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train_demo(TINY, tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_a_folder_of_another_demo(tmp_path):
    train_demo(TINY, tmp_path)
    with pytest.raises(ValueError, match=r"must be free or hold the same run; got one with seed 0, not 3\. Choose"):
        train_demo(Demo(steps=12, hidden=3, batch=2, trials=3, per_decade=1, seed=3), tmp_path)


def test_a_diverging_demo_stops(tmp_path):
    wild = Demo(steps=12, hidden=3, batch=2, trials=3, per_decade=1, learning_rate=1e30)
    with pytest.raises(ValueError, match=r"The loss must stay finite; .* Lower the learning rate"):
        train_demo(wild, tmp_path)


def test_a_folder_of_several_tasks_has_their_objectives_in_its_report(tmp_path):
    task = MultiTask.memory_and_delay(context=1, stimulus=2, memory=2, response=2, grace=0.0)
    torch.manual_seed(0)
    for step in (0, 10):
        save_checkpoint(tmp_path / f"step-{step}", Several(), step)
    settings = Settings(modes=4, budget=12, starts=0)
    record = analyse_folder(tmp_path, Several, task, core="core", trials=8, settings=settings)
    assert record["objective"].values.tolist() == ["memory_pro", "memory_anti", "delay_pro", "delay_anti"]
    assert record["objective_alignment"].shape == (2, 5, 4, 4)
    assert bool(np.isfinite(record["ntk_block_size"]).all())
    page = report.render(record)
    assert 'id="figure-objective-alignment"' in page
    assert 'id="figure-objective-course"' in page


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.core = nn.GRU(7, 4, batch_first=True)
        self.read = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.read(self.core(inputs)[0])
