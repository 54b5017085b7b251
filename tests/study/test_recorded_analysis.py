"""The analysis of a recorder: the record is that of the checkpoints, and training does not notice."""

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from kpflow.cli import app
from kpflow.study import Recorder, Settings, analyse, analyse_folder, every, list_checkpoints, read_record, train
from kpflow.study.demo import Net
from kpflow.tasks import MemoryPro

TASK = MemoryPro(context=1, stimulus=2, memory=3, response=2, grace=0.0)
SETTINGS = Settings(starts=0, budget=8, modes=2, leading=2, width=4)


def make():
    return Net(3, 6, 3, torch.Generator().manual_seed(0))


def analysis(model, step):
    assert not model.training
    torch.rand(3)  # what it draws is drawn on its own
    trials = TASK.sample(4, mode="grid", noise=False)
    with torch.no_grad():
        next(model.parameters()).mul_(1.0)  # it has a copy
    return analyse(
        model, trials, loss=lambda y: TASK.loss(y, trials), core="rnn", task=TASK, step=step, settings=SETTINGS
    )


def trained(folder=None, steps=4, resume=False, analysis=analysis):
    torch.manual_seed(1)
    model = make().train()
    recorder = None if folder is None else Recorder(model, folder, steps=every(2), analysis=analysis)
    done = train(model, TASK, steps=steps, batch=4, recorder=recorder, resume=resume)
    return model, done, torch.get_rng_state()


def test_training_is_the_same_and_the_record_that_of_the_checkpoints(tmp_path):
    plain, without, state = trained()
    model, done, after = trained(tmp_path)
    assert torch.equal(done.losses, without.losses)
    assert torch.equal(after, state)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    record = read_record(tmp_path / "analysis")
    assert record.step.values.tolist() == [0, 2, 4]
    again = analyse_folder(tmp_path, make, TASK, core="rnn", trials=4, settings=SETTINGS, store=tmp_path / "again")
    for name in ("loss", "ntk_trace", "effective_dimension"):
        assert (record[name].values == again[name].values).all()


def test_a_run_that_went_on_from_earlier_replaces_what_came_later(tmp_path):
    trained(tmp_path, steps=4)
    recorder = Recorder(make(), tmp_path, steps=every(1), analysis=analysis)
    recorder.continue_from(2)
    recorder.attach(torch.optim.SGD(recorder.model.parameters(), lr=0.1))
    recorder.record(3)
    assert read_record(tmp_path / "analysis").step.values.tolist() == [0, 2, 3]


def test_the_report_reads_it(tmp_path):
    trained(tmp_path, steps=2)
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "report.html").stat().st_size > 1e5


def test_weights_that_are_not_finite_are_not_analysed(tmp_path):
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    recorder = Recorder(model, tmp_path, analysis=lambda model, step: pytest.fail("it was asked"))
    assert recorder.record(0)
    assert [file.step for file in list_checkpoints(tmp_path)] == [0]


def test_what_is_no_analysis_is_refused(tmp_path):
    with pytest.raises(TypeError, match="`analysis` must be a function of the model and the step; got int"):
        Recorder(make(), tmp_path, analysis=3)
    for step, given in enumerate((None, analysis(make().eval(), 7)), start=1):
        recorder = Recorder(make(), tmp_path / str(step), steps=every(1), analysis=lambda *_, given=given: given)
        with pytest.raises(ValueError, match=r"`analysis` must give an xarray\.Dataset of the step 0; got"):
            recorder.record(0)
        assert len(list_checkpoints(tmp_path / str(step))) == 1  # the checkpoint is there


def test_an_analysis_that_fails_later_does_not_end_the_training(tmp_path):
    def fails(model, step):
        if step:
            raise ValueError("it does not converge")
        return analysis(model, step)

    recorder = Recorder(make().eval(), tmp_path, steps=every(1), analysis=fails)
    assert recorder.record(0)
    with pytest.warns(UserWarning, match="Step 1 is not analysed, and training goes on: it does not converge"):
        assert recorder.record(1)
    assert [file.step for file in list_checkpoints(tmp_path)] == [0, 1]
    assert read_record(tmp_path / "analysis").step.values.tolist() == [0]
    with pytest.raises(ValueError, match="it does not converge"):
        Recorder(make(), tmp_path / "other", steps=every(1), analysis=lambda *_: fails(None, 1)).record(0)
