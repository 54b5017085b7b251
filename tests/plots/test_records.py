"""What figures ask of a record, and the one message for each way in which it can be wrong."""

import numpy as np
import pytest
import xarray as xr

from kpflow import plots
from kpflow.plots import records, style
from report.records import small_record


@pytest.fixture
def record():
    return small_record()


def test_not_a_dataset():
    with pytest.raises(TypeError, match=r"must be an xarray.Dataset; got ndarray. Open a stored one with"):
        plots.check_record(np.ones(3))


@pytest.mark.parametrize(
    "bad", [xr.Dataset(), xr.Dataset({"loss": ("time", [1.0])}), xr.Dataset({"loss": ("step", [1.0])})]
)
def test_without_steps(bad):
    with pytest.raises(ValueError, match="must have an axis `step` with the training step of each entry; got the axes"):
        plots.check_record(bad)


def test_with_no_step_yet():
    with pytest.raises(ValueError, match="holds no step: nothing was analysed yet"):
        plots.check_record(xr.Dataset({"loss": ("step", [])}, coords={"step": np.array([], dtype=int)}))


def test_wrong_axes(record):
    bad = record.assign(loss=record["loss"] * record["time"])
    with pytest.raises(ValueError, match=r"`record\['loss'\]` must have the axes \(step\); got \(step, time\)"):
        records.series(bad, "loss")


def test_nothing_finite(record):
    with pytest.raises(ValueError, match=r"`record\['loss'\]` must hold a finite value; got none in 9 entries"):
        records.series(record.assign(loss=record["loss"] * np.nan), "loss")


def test_axes_in_another_order_are_put_right(record):
    turned = record.assign(trajectory=record["trajectory"].transpose("component", "time", "trial", "step"))
    assert records.series(turned, "trajectory").identical(records.series(record, "trajectory"))


def test_steps_are_sorted(record):
    shuffled = record.isel(step=[4, 0, 8, 2])
    assert plots.check_record(shuffled)["step"].values.tolist() == record["step"].values[[0, 2, 4, 8]].tolist()


def test_every_variable_of_the_made_up_record_is_in_the_schema(record):
    assert {str(name) for name in record.data_vars} == set(plots.SCHEMA)
    for name, axes in plots.SCHEMA.items():
        assert record[name].dims == axes


def test_missing_steps(record):
    assert plots.missing_steps(record, ["loss"]) == []
    assert plots.missing_steps(record, ["loss", "ntk_trace"]) == [int(record["step"][3])]
    assert plots.missing_steps(record, ["nothing"]) == record["step"].values.tolist()


def test_conditions_by_name_angle_number_category_or_index(record):
    by_angle = plots.conditions(record)
    assert (by_angle.kind, by_angle.label) == ("angle", "angle (rad)")
    number = record.assign_coords(coherence=("trial", np.linspace(-1, 1, 8))).assign_attrs(condition="coherence")
    assert plots.conditions(number).kind == "number"
    names = record.assign_coords(cue=("trial", ["left", "right"] * 4)).assign_attrs(condition="cue")
    assert plots.conditions(names).categories == ("left", "right")
    bare = record.drop_vars("angle").drop_attrs()
    assert (plots.conditions(bare).label, plots.conditions(bare).values.tolist()) == ("trial", list(range(8)))


def test_few_whole_numbers_are_categories_in_the_colours_of_their_lines():
    tasks = np.array([0, 3, 1, 2, 1, 0, 3, 3])
    record = xr.Dataset(coords={"step": [0], "task": ("trial", tasks)}, attrs={"condition": "task"})
    condition = plots.conditions(record)
    assert (condition.kind, condition.categories) == ("category", ("0", "1", "2", "3"))
    colours = plots.condition_colours(condition)
    for name, colour, members in plots.condition_groups(condition):
        assert tasks[members].tolist() == [int(name)] * int((tasks == int(name)).sum())
        assert {colours[trial] for trial in members} == {colour}
    negative = plots.conditions(record.assign_coords(task=("trial", tasks - 2)))
    assert negative.categories == ("-2", "-1", "0", "1")
    assert plots.condition_colours(negative) == colours
    many = record.drop_vars("task").assign_coords(task=("trial", np.arange(9)))
    assert plots.conditions(many).kind == "number"


@pytest.mark.parametrize("kind", ["angle", "number", "category"])
def test_trials_without_the_condition_are_in_no_group(kind):
    condition = plots.Conditions("cue", np.array([np.nan, 1.0, 0.0, np.nan, 1.0]), kind, ("left", "right"))
    groups = plots.condition_groups(condition)
    assert sorted(np.concatenate([members for _, _, members in groups]).tolist()) == [1, 2, 4]
    colours = plots.condition_colours(condition)
    assert colours[0] == colours[3] == style.PALETTE["muted"]
    assert [colours[trial] for trial in (1, 2)] == plots.condition_colours(
        plots.Conditions("cue", np.array([1.0, 0.0]), kind, ("left", "right"))
    )
    nowhere = plots.Conditions("cue", np.full(3, np.nan), kind, ("left", "right"))
    assert plots.condition_groups(nowhere) == []
    assert plots.condition_colours(nowhere) == [style.PALETTE["muted"]] * 3


def test_a_condition_that_is_not_there(record):
    with pytest.raises(ValueError, match="must name a coordinate over trials; got 'colour', and there are"):
        plots.conditions(record.assign_attrs(condition="colour"))


def test_a_condition_that_is_not_over_trials(record):
    with pytest.raises(ValueError, match=r"`record\['time'\]` must have the axis \(trial\); got \(time\)"):
        plots.conditions(record.assign_attrs(condition="time"))


def test_every_trial_is_in_one_group(record):
    for attrs in ({"condition": "angle"}, {"condition": "trial"}):
        groups = plots.condition_groups(plots.conditions(record.assign_attrs(attrs)))
        assert sorted(np.concatenate([members for _, _, members in groups]).tolist()) == list(range(8))


def test_colours_go_round_with_angles():
    angles = plots.Conditions("angle", np.array([0.0, 1e-9, 2 * np.pi - 1e-9, np.pi]), "angle")
    first, near, before, opposite = plots.condition_colours(angles)
    assert first == near == before != opposite


def test_palette_colours_are_distinct():
    assert len(set(style.PALETTE.values()) | {"#ffffff"}) == len(style.PALETTE) + 1


@pytest.mark.parametrize(("size", "limit"), [(5, 10), (10, 5), (1, 1), (1000, 60)])
def test_thinning_keeps_both_ends(size, limit):
    kept = records.thin(size, limit)
    assert len(kept) == min(size, limit)
    assert (kept[0], kept[-1]) == (0, size - 1)
    assert (np.diff(kept) > 0).all()


def test_probe_words():
    assert records.probe_words({}) == ""
    assert (
        records.probe_words({"probes": {"ntk": 8, "kernel": 16}})
        == " Estimated from 8 (ntk), 16 (kernel) random probes."
    )
    assert "random probes, stopping at a relative standard error of 0.1." in records.probe_words({"rtol": 0.1})
