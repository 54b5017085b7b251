"""Every figure: what it draws is what the record holds, at both widths, and nothing global changes."""

import inspect

import jaxtyping
import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from kpflow import plots
from kpflow.plots import leading, space, style
from report.records import small_record

FIGURES = {  # function: (a variable it cannot do without, panels of the full record)
    "loss_and_score": ("loss", 2),
    "loss_change": ("actual_loss_change", 2),
    "loss_forecasts": ("forecast_loss", 2),
    "effective_ranks": (None, 2),
    "spectra": (None, 3),
    "collapse_pipeline": ("effective_dimension", 2),
    "collapse_axes": ("effective_dimension_along", 3),
    "rank_bounds": ("ntk_effective_rank_low", 3),
    "ntk_modes": ("ntk_mode_time", 24),
    "self_referential_bias": ("core_spectrum", 3),
    "trajectories": ("trajectory", 3),
    "neural_collapse": ("neural_collapse", 2),
    "state_similarity": ("state_similarity", 2),
    "objective_alignment": ("objective_alignment", 15),
    "objective_course": ("objective_alignment", 7),
    "objective_interference": ("objective_interference", 3),
    "kernel_movement": ("kernel_alignment", 2),
    "fixed_points": ("fixed_point_position", 3),
    "bifurcations": ("fixed_point_multiplier", 2),
    "lyapunov": ("lyapunov_exponent", 1),
}


@pytest.fixture
def record():
    return small_record()


def crosses(axes) -> list[float]:
    """The steps that a panel marks as left out."""
    return [
        x
        for line in axes.lines
        if line.get_marker() == "x" and line.get_linestyle() == "None"
        for x in line.get_xdata()
    ]


def test_every_figure_is_in_the_table():
    public = {name: getattr(plots, name) for name in plots.__all__}
    drawing = {
        name
        for name, value in public.items()
        if inspect.isfunction(value) and inspect.signature(value).return_annotation in (Figure, "Figure")
    }
    assert drawing - {"entry_figure"} == set(FIGURES)  # that one takes a result of the gallery: see tests/gallery


@pytest.mark.parametrize("width", [style.WIDE, style.NARROW])
@pytest.mark.parametrize("name", FIGURES)
def test_draws_at_both_widths_and_touches_nothing(record, name, width):
    settings, before = dict(matplotlib.rcParams), record.copy(deep=True)
    figure = getattr(plots, name)(record, width=width)
    figure.draw_without_rendering()
    assert len(figure.axes) == FIGURES[name][1]
    assert figure.get_figwidth() == width
    assert dict(matplotlib.rcParams) == settings
    assert record.identical(before)
    boxes = [axes.get_position() for axes in figure.axes]
    assert all(box.width * width > 0.6 and box.height * figure.get_figheight() > 0.15 for box in boxes)


@pytest.mark.parametrize(("name", "variable"), [(n, v) for n, (v, _) in FIGURES.items() if v])
def test_a_missing_variable_is_named(record, name, variable):
    with pytest.raises(ValueError, match=f"must hold the variable '{variable}'; got "):
        getattr(plots, name)(record.drop_vars(variable))


@pytest.mark.parametrize("name", FIGURES)
def test_no_record_no_figure(name):
    with pytest.raises(TypeError, match=r"`record` must be an xarray.Dataset; got dict\."):
        getattr(plots, name)({"loss": [1.0]})


@pytest.mark.parametrize("name", ["effective_ranks", "spectra"])
def test_none_of_several_variables(record, name):
    with pytest.raises(ValueError, match="of an operator, such as 'ntk_"):
        getattr(plots, name)(record[["loss"]])


@pytest.mark.parametrize(
    "name", ["spectra", "collapse_pipeline", "trajectories", "fixed_points", "objective_alignment"]
)
@pytest.mark.parametrize("count", [0, 6, -1])
def test_a_count_out_of_range(record, name, count):
    with pytest.raises(ValueError, match=f"`count` must be a whole number from 1 to 5; got {count}"):
        getattr(plots, name)(record, count=count)


@pytest.mark.parametrize(
    ("name", "width"), [*((name, "9") for name in FIGURES), *(("lyapunov", width) for width in (1.5, np.nan, np.inf))]
)
def test_a_width_that_is_none(monkeypatch, record, name, width):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=f"`width` must be a number of inches above 2; got {width!r}"):
        getattr(plots, name)(record, width=width)


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("spectra", "ntk_spectrum", "kernel_spectrum"),
        ("fixed_points", "trajectory", "fixed_point_position"),
        ("self_referential_bias", "core_spectrum", "state_spectrum"),
    ],
)
def test_no_step_has_all_that_is_drawn(record, name, one, other):
    early = record["step"] < record["step"][4]
    apart = record.assign({one: record[one].where(early), other: record[other].where(~early)})
    with pytest.raises(ValueError, match="must have one step at which all that is drawn is finite; got none"):
        getattr(plots, name)(apart)


def test_loss_is_logarithmic_and_score_is_not(record):
    loss, score = plots.loss_and_score(record).axes
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), record["loss"])
    np.testing.assert_array_equal(score.lines[0].get_ydata(), record["score"])
    assert (loss.get_yscale(), score.get_yscale(), loss.get_xscale()) == ("log", "linear", "symlog")
    assert crosses(loss) == []


def test_a_loss_that_is_not_positive_stays_linear(record):
    record["loss"] = record["loss"] - 1
    assert plots.loss_and_score(record).axes[0].get_yscale() == "linear"


def test_ratio_of_loss_changes(record):
    ratio = plots.loss_change(record).axes[1]
    (line,) = (line for line in ratio.lines if len(line.get_ydata()) == record.sizes["step"])
    np.testing.assert_allclose(line.get_ydata(), record["actual_loss_change"] / record["predicted_loss_change"])


def test_error_bars_are_one_standard_error(record):
    ranks = plots.effective_ranks(record).axes[0]
    for container, name in zip(ranks.containers, ("ntk", "propagator", "kernel"), strict=True):
        line, _, (bars,) = container.lines
        values, errors = record[f"{name}_effective_rank"].values, record[f"{name}_effective_rank_error"].values
        np.testing.assert_array_equal(line.get_ydata(), values)
        heights = np.array([np.ptp(segment[:, 1]) for segment in bars.get_segments() if len(segment)])
        np.testing.assert_allclose(heights[np.isfinite(heights)], 2 * errors[np.isfinite(errors)])


@pytest.mark.parametrize("name", ["loss_change", "effective_ranks", "collapse_pipeline", "bifurcations", "lyapunov"])
def test_steps_left_out_are_marked(record, name):
    axes = getattr(plots, name)(record).axes[0]
    assert crosses(axes) == [record["step"].values[3]]


def test_a_step_that_one_operator_alone_lacks_is_marked(record):
    record["propagator_effective_rank"][5] = np.inf
    assert crosses(plots.effective_ranks(record).axes[0]) == record["step"].values[[3, 5]].tolist()


def test_a_step_without_the_actual_change_is_marked_in_both_panels(record):
    record["actual_loss_change"][6] = np.nan
    marked = record["step"].values[[3, 6]].tolist()
    assert [crosses(axes) for axes in plots.loss_change(record).axes] == [marked, marked]


def test_spectra_show_the_first_and_the_last_analysed_step(record):
    lines = plots.spectra(record, count=3).axes[0].lines
    np.testing.assert_array_equal(lines[0].get_ydata(), record["ntk_spectrum"][0])
    np.testing.assert_array_equal(lines[-1].get_ydata(), record["ntk_spectrum"][-1])
    assert len(lines) == 3


def test_pipeline_shows_each_stage_over_training_and_each_chosen_step_along_it(record):
    training, pipeline = plots.collapse_pipeline(record, count=2).axes
    np.testing.assert_array_equal(training.lines[0].get_ydata(), record["effective_dimension"][:, 0])
    np.testing.assert_array_equal(pipeline.lines[1].get_ydata(), record["effective_dimension"][-1])
    words = ["inputs", "states", "error", "Pᵀ error", "K Pᵀ error", "P K Pᵀ error", "targets"]
    assert [label.get_text() for label in pipeline.get_xticklabels()] == words
    assert {text.get_text() for text in training.texts} == set(words)


def test_pipeline_with_a_stage_of_its_own(record):
    renamed = record.assign_coords(stage=[*record["stage"].values[:-1], "a $ nobody knows"])
    figure = plots.collapse_pipeline(renamed)
    figure.draw_without_rendering()
    assert figure.axes[1].get_xticklabels()[-1].get_text() == "a $ nobody knows"


def test_pipeline_needs_names(record):
    with pytest.raises(ValueError, match="must name its stages in a coordinate `stage`"):
        plots.collapse_pipeline(record.drop_vars("stage"))


def test_neural_collapse_draws_each_measure_that_is_there(record):
    record["neural_collapse"].loc[{"measure": "nc3"}] = np.nan
    first, rest = plots.neural_collapse(record).axes
    np.testing.assert_array_equal(first.lines[0].get_ydata(), record["neural_collapse"].sel(measure="nc1"))
    labels = [line.get_label() for line in rest.lines if not line.get_label().startswith("_")]
    assert labels == ["NC2 norms", "NC2 angles", "NC4 decisions", "NC5 other data"]
    assert crosses(first) == [record["step"].values[3]]


def test_neural_collapse_needs_names(record):
    with pytest.raises(ValueError, match="must name its measures in a coordinate `measure`; got none"):
        plots.neural_collapse(record.drop_vars("measure"))


def test_similarity_with_the_first_and_the_last_step(record):
    pairs, course = plots.state_similarity(record).axes
    table = record["state_similarity"].values
    np.testing.assert_array_equal(course.lines[0].get_ydata(), table[:, 0])
    np.testing.assert_array_equal(course.lines[1].get_ydata(), table[:, -1])
    shown = np.asarray(pairs.images[0].get_array().filled(np.nan))
    low = np.nanmin(table)
    np.testing.assert_allclose(shown, (table - low) / (1 - low))
    assert pairs.get_title(loc="left") == f"CKA of pairs, {low:.2g} to 1"
    assert crosses(course) == [record["step"].values[3]]


def test_labels_at_the_edge_keep_their_distance(record):
    record["effective_dimension"][-1] = 3.0  # all stages end at one point
    figure = plots.collapse_pipeline(record)
    figure.draw_without_rendering()
    heights = sorted(text.get_position()[1] for text in figure.axes[0].texts)
    assert np.diff(heights).min() > 0.07


def test_modes_are_scaled_to_their_largest_entry_and_sorted_by_condition(record):
    record = record.assign_coords(angle=("trial", record["angle"].values[::-1].copy()))
    heat = plots.ntk_modes(record).axes[0]
    (image,) = (child for child in heat.get_children() if isinstance(child, AxesImage))
    mode = record["ntk_mode_time"].values[0, 0]
    expected = mode / mode.flat[np.abs(mode).argmax()]
    np.testing.assert_allclose(image.get_array(), expected[::-1])
    assert image.get_array().max() == 1


def test_modes_say_how_separable_they_are(record):
    titles = [axes.get_title(loc="left") for axes in plots.ntk_modes(record).axes]
    assert f"Mode 2 ({float(record['ntk_mode_separability'][0, 1]):.0%})" in titles


def test_modes_that_were_not_computed_are_left_out(record):
    record["ntk_mode_time"][:, 2:] = np.nan
    assert len(plots.ntk_modes(record).axes) == 2 * 2 * 3


def test_a_mode_that_one_step_lacks_is_empty_there(record):
    record["ntk_mode_time"][-1, 3] = np.nan
    record["ntk_mode_unit"][-1, 3] = np.nan
    heats = [axes for axes in plots.ntk_modes(record).axes if axes.get_title(loc="left")]
    assert [bool(np.ma.count(axes.images[0].get_array())) for axes in heats] == [True] * 7 + [False]


def test_modes_without_units(record):
    assert len(plots.ntk_modes(record.drop_vars("ntk_mode_unit")).axes) == 16


def test_modes_are_thinned(monkeypatch, record):
    monkeypatch.setattr(leading, "MOST_TRIALS", 3)
    (image,) = plots.ntk_modes(record).axes[0].images
    assert image.get_array().shape == (3, 12)


def test_bias_compares_shares(record):
    first = plots.self_referential_bias(record).axes[0]
    for line, name in zip(first.lines, ("core_spectrum", "state_spectrum"), strict=True):
        expected = record[name].values[0] / record[name].values[0].sum()
        np.testing.assert_allclose(line.get_ydata(), expected)


def test_bias_without_an_overlap(record):
    assert len(plots.self_referential_bias(record.drop_vars("core_state_overlap")).axes) == 2


def test_signs_of_components_agree_with_the_last_step(record):
    aligned, raw = plots.aligned_trajectories(record), record["trajectory"]
    np.testing.assert_allclose(np.abs(aligned), np.abs(raw))
    np.testing.assert_array_equal(aligned[-1], raw[-1])
    agreement = (aligned * aligned[-1]).sum(["trial", "time"]).values
    assert (agreement >= 0).all()
    assert ((raw * raw[-1]).sum(["trial", "time"]).values < 0).any()  # the record has signs to correct


def test_trajectories_need_three_components(record):
    with pytest.raises(ValueError, match="must have 3 components; got 2"):
        plots.trajectories(record.isel(component=slice(2)))


def test_trajectories_keep_right_angles_and_lengths():
    turned = space.on_page(np.eye(3))  # an orthographic view: rows are the images of the axes
    np.testing.assert_allclose(turned.T @ turned, np.eye(2), atol=1e-12)


def test_trajectories_draw_each_trial_in_the_colour_of_its_condition(record):
    axes = plots.trajectories(record, count=1).axes[0]
    drawn = {line.get_color() for line in axes.lines}
    assert set(plots.condition_colours(plots.conditions(record))) <= drawn


def drawn(axes, colour) -> np.ndarray:
    """The points of the markers of a colour in a panel, with which face."""
    lines = [line for line in axes.lines if line.get_marker() == "o" and line.get_color() == style.PALETTE[colour]]
    return np.concatenate([line.get_xydata() for line in lines])


def test_fixed_points_are_where_the_record_says_in_the_space_of_the_trajectories(record):
    record["trajectory"][-1] *= -1  # other signs: the points must turn with the trajectories
    record["fixed_point_position"][-1] *= -1
    last = plots.fixed_points(record, count=3).axes[-1]
    places = record["fixed_point_position"].values[-1]
    np.testing.assert_allclose(drawn(last, "stable"), space.on_page(places[[0, 1]]))
    np.testing.assert_allclose(drawn(last, "saddle"), space.on_page(places[[2]]))
    assert last.get_title(loc="left").endswith("2 stable, 1 saddle")
    first = plots.fixed_points(record, count=3).axes[0]
    signs = plots.aligned_trajectories(record)[0] / record["trajectory"][0]
    turned = record["fixed_point_position"].values[0] * signs.values[0, 0]
    np.testing.assert_allclose(drawn(first, "stable"), space.on_page(turned[[0]]))
    assert first.get_title(loc="left").endswith("1 stable, 1 slow")


def test_saddles_are_open_and_stable_points_filled(record):
    lines = {line.get_color(): line for line in plots.fixed_points(record).axes[-1].lines if line.get_marker() == "o"}
    assert lines[style.PALETTE["saddle"]].get_markerfacecolor() == "none"
    assert lines[style.PALETTE["stable"]].get_markerfacecolor() == style.PALETTE["stable"]


def test_points_are_counted_and_their_multipliers_shown(record):
    counts, multipliers = plots.bifurcations(record).axes
    stable, slow = record["fixed_point_stable"].values, record["fixed_point_slow"].values
    kept = np.delete(np.arange(9), 3)  # not analysed
    np.testing.assert_array_equal(drawn(counts, "stable")[:, 1], ((stable == 1) & (slow == 0)).sum(1)[kept])
    np.testing.assert_array_equal(drawn(counts, "saddle")[:, 1], ((stable == 0) & (slow == 0)).sum(1)[kept])
    assert (drawn(multipliers, "saddle")[:, 1] > 1).all()
    assert len(drawn(multipliers, "stable")) == ((stable == 1) & (slow == 0)).sum()


def test_events_stand_at_their_steps_with_their_kinds(record):
    figure = plots.bifurcations(record)
    marks = [line for line in figure.axes[0].lines if line.get_color() == style.PALETTE["event"]]
    assert sorted(x for line in marks for x in line.get_xdata()) == sorted(record["event_step"].values)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["stable", "saddle", "fold", "pitchfork"]


def test_events_without_a_kind_are_not_marked(record):
    assert len(plots.bifurcations(record.drop_vars("event_kind")).legends[0].get_texts()) == 2


def test_points_without_events(record):
    names = ["event_step", "event_kind"]
    for other in (record.drop_vars(names), record.isel(event=[])):
        figure = plots.bifurcations(other)
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["stable", "saddle"]


def test_exponents_have_bars_of_one_standard_error(record):
    (axis,) = plots.lyapunov(record).axes
    for k, container in enumerate(axis.containers):
        line, _, (bars,) = container.lines
        np.testing.assert_array_equal(line.get_ydata(), record["lyapunov_exponent"][:, k])
        heights = [np.ptp(segment[:, 1]) for segment in bars.get_segments() if np.size(segment)]
        np.testing.assert_allclose([height for height in heights if np.isfinite(height)], 0.02)
    assert len(axis.containers) == 4


def test_objectives_are_drawn_at_the_first_a_middle_and_the_last_step(record):
    figure = plots.objective_alignment(record, count=3)
    images = [axes.images[0].get_array() for axes in figure.axes]
    for row, step in enumerate((0, 5, 8)):
        for column in range(5):
            np.testing.assert_array_equal(images[5 * row + column], record["objective_alignment"].values[step, column])
    assert [text.get_text() for text in figure.axes[2].texts] == ["1.0", "1.0", "1.0", "1.0"]
    assert figure.axes[5].get_yticklabels()[1].get_text() == "memory_anti"


def test_many_objectives_have_no_words_in_their_cells(record):
    many = record.isel(objective=[0, 1] * 4, other=[0, 1] * 4)
    assert not plots.objective_alignment(many).axes[0].texts
    course = plots.objective_course(many).axes[2]
    lines = [line for line in course.lines if len(line.get_ydata()) == 9]
    assert len(lines) == 29  # 28 pairs and their median
    assert lines[-1].get_label() == "median of 28 pairs"
    pairs = np.stack([line.get_ydata() for line in lines[:-1]])
    np.testing.assert_allclose(lines[-1].get_ydata(), np.median(pairs, axis=0))


def test_the_course_of_objectives_has_a_line_for_each_pair(record):
    figure = plots.objective_course(record)
    for k, axes in enumerate(figure.axes[:5]):
        line = next(line for line in axes.lines if len(line.get_ydata()) == 9)
        np.testing.assert_array_equal(line.get_ydata(), record["objective_alignment"].values[:, k, 0, 1])
        assert crosses(axes) == [record["step"].values[3]]
    line = next(line for line in figure.axes[5].lines if len(line.get_ydata()) == 9)
    np.testing.assert_array_equal(line.get_ydata(), record["ntk_block_size"].values[:, 0, 1])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["memory_pro, memory_anti"]
    assert len(plots.objective_course(record.drop_vars(["ntk_block_size", "ntk_block_alignment"])).axes) == 5


def test_objectives_need_names(record):
    for name in ("objective_alignment", "objective_course"):
        with pytest.raises(ValueError, match="must name what stands along objective, other; got no such coordinate"):
            getattr(plots, name)(record.drop_vars(["objective", "other"]))


def test_one_step_is_enough(record):
    for name in FIGURES:
        getattr(plots, name)(record.isel(step=[4])).draw_without_rendering()


def test_the_movement_of_the_kernel_is_that_since_the_first_and_the_one_before(record):
    figure = plots.kernel_movement(record)
    for axes, name in zip(figure.axes, ("kernel_change", "kernel_alignment"), strict=True):
        named = [line for line in axes.lines if line.get_label().startswith("since the")]
        for since, line in enumerate(named):
            np.testing.assert_array_equal(line.get_ydata(), record[name].values[:, since])
        assert len(axes.collections) == 2  # bars
        assert crosses(axes) == [record["step"].values[0], record["step"].values[3]]
    bare = record.drop_vars(["kernel_change_error", "kernel_alignment_error"])
    assert not plots.kernel_movement(bare).axes[0].collections
    with pytest.raises(ValueError, match="must name the checkpoints compared with in a coordinate `since`; got none"):
        plots.kernel_movement(record.drop_vars("since"))


def test_forecasts_run_from_checkpoint_to_checkpoint_and_those_that_break_are_marked(record):
    loss, misses = plots.loss_forecasts(record).axes
    ahead = record["forecast_loss"].values
    known = np.flatnonzero(np.isfinite(ahead[:, -1]))
    reached = record["loss"].values
    forecasts = [line for line in loss.lines if line.get_label().startswith("forecast")]
    for row, line in zip(known, forecasts, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), ahead[row])
        np.testing.assert_array_equal(line.get_xdata(), record["forecast_step"].values[row])
        held = abs(ahead[row, -1] - reached[row]) <= 0.1 * reached[row]
        decided = "holds" if held else "breaks"
        expected = "is open" if record["forecast_error"].values[row] else decided
        assert line.get_label() == f"forecast that {expected}"
    assert len({line.get_label() for line in forecasts}) == 3
    labels = {line.get_label(): line.get_ydata() for line in misses.lines}
    np.testing.assert_allclose(labels["miss of the forecast"], np.abs(ahead[:, -1] - reached) / reached)
    np.testing.assert_array_equal(labels["change of the NTK"], record["kernel_change"].values[:, 1])
    alone = plots.loss_forecasts(record.drop_vars("kernel_change")).axes[1]
    assert "change of the NTK" not in {line.get_label() for line in alone.lines}


def test_a_forecast_that_diverges_stays_in_the_figure(record):
    wild = record.assign(forecast_loss=record["forecast_loss"].where(record["step"] < record["step"][-1], 1e200))
    loss, misses = plots.loss_forecasts(wild).axes
    assert loss.get_ylim()[1] < 10 * float(record["loss"].max())
    assert misses.get_ylim()[1] < 1e4
