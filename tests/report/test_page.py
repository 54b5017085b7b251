"""The page: complete, self-contained, safe whatever the record says, and written whole or not at all."""

import base64
import hashlib
import json
import re
import resource
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
import xarray as xr

from kpflow import report
from kpflow.plots import PALETTE, Conditions, aligned_trajectories, condition_colours, loss_and_score
from kpflow.plots.style import step_words
from kpflow.report import headline, svg, theme, viewer
from report.records import make_record, small_page, small_record

FIGURES = [plot for section in report.SECTIONS for plot in section.plots]
OPTIONAL = [plot for section in report.SECTIONS if section.optional for plot in section.plots]


@pytest.fixture(scope="module")
def record():
    return small_record()


@pytest.fixture(scope="module")
def page() -> str:
    return small_page()


class Elements(HTMLParser):
    """The start tags of a page with their attributes, and the text outside of scripts and styles."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.words, self._inside = [], "", ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.words += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def small(**changes) -> xr.Dataset:
    """A record with a loss alone: quick to render."""
    record = xr.Dataset({"loss": ("step", [1.0, 0.5, 0.1])}, coords={"step": [0, 10, 100]})
    return record.assign_attrs(title="Small", **changes)


def test_every_figure_stands_in_both_layouts_with_words(page):
    found = Elements(page)
    drawings = found.of("svg")
    assert len(drawings) == 2 * len(FIGURES)
    assert all(len(drawing["aria-label"]) > 20 and drawing["role"] == "img" for drawing in drawings)
    assert len(found.of("figcaption")) == len(FIGURES)
    for plot in FIGURES:
        assert plot.title in found.words
        assert plot.caption in found.words


def test_text_of_figures_is_text(page):
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", page)
    assert {"Effective rank", "P K Pᵀ error", "training step", "Step 0"} <= set(texts)
    assert "font-family" not in "".join(re.findall(r"<text[^>]*>", page))


def test_identifiers_are_unique_and_references_lead_somewhere(page):
    found = Elements(page)
    names = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(names) == len(set(names))
    inner = {attributes["href"][1:] for _, attributes in found.tags if attributes.get("href", "").startswith("#")}
    assert inner | set(re.findall(r"url\(#([^)]+)\)", page)) <= set(names)


def test_nothing_is_fetched(page):
    found = Elements(page)
    fetched = [a[key] for _, a in found.tags for key in ("src", "href") if key in a]
    assert all(address.startswith(("#", "data:")) for address in fetched)
    assert not re.search(r"@import|url\((?!#)", page)
    policy = found.of("meta")[1]["content"]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    assert not re.search(r"\beval\(|new Function|innerHTML", page)


def test_the_policy_allows_the_pages_own_script_and_no_other(page):
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    allowed = re.search(r"script-src 'sha256-([^']+)'", page).group(1)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == allowed
    assert len(Elements(page).of("script")) == 2  # the data, and the one script


def test_colours_are_the_pages_variables(page):
    for role in PALETTE:
        assert f"--{role}: {PALETTE[role]};" in page
        assert f"--{role}: {theme.DARK[role]};" in page
    assert f"stroke: var(--ntk, {PALETTE['ntk']})" in page
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "#000000" not in drawings
    assert not re.search(rf"[^,] {PALETTE['ink']}", drawings)


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> $\\frac{ & \" '"


def test_text_from_the_record_stays_text():
    record = make_record(steps=3, trials=4, times=6, units=2, modes=3, missing=())[
        ["loss", "effective_dimension", "trajectory"]
    ]
    short = "<b>$_{</b>"
    record = record.assign_coords(
        stage=[*record["stage"].values[:-1], short], cue=("trial", [short, "b", EVIL, "b"])
    ).assign_attrs(title=EVIL, model=EVIL, task=EVIL, settings=json.dumps({EVIL: EVIL}), seed=EVIL, condition="cue")
    found = Elements(report.render(record))
    assert len(found.of("script")) == 2
    assert found.of("img") == []
    assert not any(key.startswith("on") for _, attributes in found.tags for key in attributes)
    assert found.of("b") == [{}] * sum(not plot.lacks(record) for plot in FIGURES) + [{}] * sum(
        bool(plot.lacks(record)) for plot in FIGURES if plot not in OPTIONAL
    )
    assert found.words.count(EVIL) == 9  # title twice, model and task twice each, settings' key and value, seed
    assert found.words.count(short) >= 6  # the stage twice in two layouts, the condition in two


def test_settings_that_are_no_json_are_shown_as_they_are():
    assert "one <b> two" in Elements(report.render(small(settings="one <b> two"))).words


def test_provenance_names_skipped_steps_and_keeps_attributes_apart_from_settings():
    settings = json.dumps({"seed": 3, "model": "another", "learning_rate": 0.5})
    shown = headline.provenance(small(settings=settings, seed=3, model="mine", skipped='{"40": "weights not finite"}'))
    assert shown["skipped"] == "step 40: weights not finite"
    assert (shown["model"], shown["model (setting)"], shown["seed"]) == ("mine", "another", "3")
    assert "seed (setting)" not in shown


def test_what_is_missing_is_left_out_and_said(record):
    page = Elements(report.render(record.drop_vars(["core_spectrum", "trajectory"])[["loss", "state_spectrum"]]))
    assert len(page.of("svg")) == 2
    assert "is not shown: the record has no finite value of core_spectrum." in page.words
    assert page.words.count("is not shown") == len(FIGURES) - 1 - len(OPTIONAL)
    assert page.of("canvas") == []


@pytest.mark.parametrize("plot", FIGURES, ids=lambda plot: plot.name)
def test_a_figure_can_be_drawn_from_what_it_says_that_it_needs(record, plot):
    for needs in [[name] for name in plot.needs] if plot.any_of else [list(plot.needs)]:
        assert plot.lacks(record[needs]) == []
        assert plot.words(record[needs]).startswith(plot.caption)
        assert plot.draw(record[needs]).axes


def test_objectives_have_a_section_only_where_the_record_has_them(record):
    title = "What objectives do to each other"
    bare = record.drop_vars(["objective_alignment", "objective_interference", "ntk_block_size"])
    assert title in Elements(report.render(record)).words
    assert title not in Elements(report.render(bare)).words
    said = Elements(report.render(bare.assign_attrs(objectives_left_out="Its loss is zero."))).words
    assert title in said
    assert "Its loss is zero." in said


def test_why_there_is_no_neural_collapse_stands_beside_similarity(record):
    bare = record.drop_vars("neural_collapse").assign_attrs(neural_collapse_left_out="There are no classes.")
    words = Elements(report.render(bare[["loss", "state_similarity"]])).words
    assert words.count("There are no classes.") == 1
    assert "Similarity of the states between checkpoints" in words
    assert "What the states tell apart" not in Elements(report.render(small())).words


def test_how_many_forecasts_hold_is_said(record):
    names = ["loss", "forecast_step", "forecast_loss", "forecast_error"]
    words = Elements(report.render(record[[*names, "kernel_change"]])).words
    miss = np.abs(record.forecast_loss.values[:, -1] / record.loss.values - 1)
    known, decided = np.isfinite(miss), record.forecast_error.values == 0
    holds, broken = decided & (miss <= 0.1), decided & (miss > 0.1)
    first = step_words(record.step.values[broken][0])
    assert f"{holds.sum()} of {known.sum()} hold, {broken.sum()} break, first that of {first}; where they hold" in words
    change = np.nanmedian(record.kernel_change.values[broken, 1])
    assert f"where they break the NTK changed by {change:.2g} (median)." in words
    bare = Elements(report.render(record[["loss"]].assign_attrs(forecast_left_out="No forecast: <none>."))).words
    assert bare.count("No forecast: <none>.") == 1


def test_how_far_the_kernel_moved_is_said_in_numbers(record):
    words = Elements(report.render(record[["kernel_change", "kernel_alignment", "kernel_change_error"]])).words
    change = record.kernel_change.values
    most = int(np.nanargmax(change[:, 1]))
    assert f"it has changed by {change[-1, 0]:.3f} ± 0.020 of the first" in words
    assert f"it changed most up to {step_words(record.step.values[most])}, by {change[most, 1]:.2g}." in words


def test_classes_and_components_are_said(record):
    said = record.assign(state_component_share=("step", np.full(9, 0.98765))).assign_attrs(classes="final, 8 classes")
    words = Elements(report.render(said[["neural_collapse", "state_similarity", "state_component_share"]])).words
    assert "Classes: final, 8 classes." in words
    assert "From the leading principal components of each, which carry at least 98.77% of the variance." in words


def test_why_there_is_nothing_on_dynamics_stands_in_its_place(record):
    names = [name for name in record.data_vars if str(name).startswith(("fixed_point", "lyapunov", "event"))]
    bare = record[["loss", *names]].drop_vars(names)
    page = Elements(report.render(bare.assign_attrs(dynamics_left_out="No epoch stands <still>.")))
    assert page.words.count("No epoch stands <still>.") == 1
    assert "Lyapunov exponents over training is not shown" not in page.words
    assert "Lyapunov exponents over training is not shown" in Elements(report.render(bare)).words


def test_what_was_searched_and_followed_is_said(record):
    words = Elements(report.render(record.assign_attrs(settings='{"starts": 32}'))).words
    assert "Static input: that of the epoch memory (fixation 1, cos 0, sin 0). Searched from 32 states" in words
    assert "2 events in 8 intervals; in 1 of them points were not followed to an end within the time" in words
    verdict = ("step", np.array([0.0] * 7 + [1.0, np.nan]), {"names": ["consistent", "missing"]})
    known = record.assign(fixed_point_verdict=verdict)[["loss", "trajectory", *map(str, record.data_vars)]]
    assert (
        "Index sum: consistent at 7 of 9 steps, missing at 1 of 9 steps."
        in Elements(report.render(known.assign(fixed_point_verdict=verdict))).words
    )
    alone = Elements(report.render(record.drop_vars(["unresolved_points"]))).words
    assert "Fixed points were not followed between checkpoints: no events are known." in alone


def test_one_operator_is_enough_for_the_ranks(record):
    page = Elements(report.render(record[["kernel_effective_rank"]]))
    assert "Effective ranks and sizes is not shown" not in page.words
    assert len(page.of("svg")) == 2


def test_steps_left_out_are_named(record, page):
    assert f"Left out, because not analysed or not finite: step {int(record['step'][3])}." in page
    assert "8 of 9 analysed in full" in page


def test_captions_say_how_many_probes(page):
    assert "Estimated from 64 random probes, stopping at a relative standard error of 0.05." in page


def test_headline_has_first_and_last_with_errors(record):
    rows = {row.quantity: row for row in headline.headline(record)}
    rank, error = float(record["ntk_effective_rank"][-1]), float(record["ntk_effective_rank_error"][-1])
    assert rows["effective rank of the NTK"].last == headline.number(rank, error)
    assert rows["effective rank of the NTK"].steps == ""
    assert rows["loss"].first == f"{float(record['loss'][0]):.4g}"


def test_headline_says_when_a_number_is_of_another_step(record):
    late = record[["ntk_effective_rank"]].copy(deep=True)
    late["ntk_effective_rank"][-1] = np.nan
    (row,) = headline.headline(late)
    assert row.steps == f"step 0 to {int(record['step'][-2])}"


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (0.00041234, np.nan, "0.0004123"), (3.14159, 0.02, "3.142 ± 0.020"), (419.7, 24.0, "420 ± 24"),
        (12345.0, 321.0, "12\u202f345 ± 321"), (1e-9, 1e-11, "1e-09 ± 1e-11"), (2.0, 0.0, "2 ± 0"),
    ],
)  # fmt: skip
def test_numbers(value, error, words):
    assert headline.number(value, error) == words


def test_a_page_is_reproducible():
    assert report.render(small()) == report.render(small())


def test_a_users_style_changes_nothing():
    plain = svg.inline_svg(lambda: loss_and_score(small()), name="a", alt="b")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "lines.linewidth": 9, "axes.grid": True}):
        assert svg.inline_svg(lambda: loss_and_score(small()), name="a", alt="b") == plain


def test_cursors_are_where_the_points_are():
    markup = svg.inline_svg(lambda: loss_and_score(small()), name="a", alt="b", steps=[0, 10, 100])
    ((top, bottom, places),) = json.loads(re.search(r'data-cursors="([^"]+)"', markup).group(1))
    drawn = re.search(r'<path d="M ([\d.]+) ([\d.]+) L ([\d.]+) ([\d.]+) L ([\d.]+) ([\d.]+)" clip-path', markup)
    across = [float(drawn.group(k)) for k in (1, 3, 5)]
    np.testing.assert_allclose(places, across, atol=0.1)
    assert all(top < float(drawn.group(k)) < bottom for k in (2, 4, 6))


def test_trajectories_are_packed_to_sixteen_bits(record):
    data = viewer.trajectory_data(record)
    values = np.frombuffer(base64.b64decode(data["values"]), dtype="<i2").reshape(data["shape"])
    kept = aligned_trajectories(record).values[data["steps"]]
    np.testing.assert_allclose(values / 32767 * np.abs(kept).max(), kept, atol=np.abs(kept).max() / 32767)
    assert 3 not in data["steps"]  # not analysed


def test_a_state_that_is_not_finite_is_packed_as_none(record):
    record = record.copy(deep=True)
    record["trajectory"][0, 1, 2] = np.nan
    data = viewer.trajectory_data(record)
    values = np.frombuffer(base64.b64decode(data["values"]), dtype="<i2").reshape(data["shape"])
    assert (values[0, 1, 2] == -32768).all()
    assert (values == -32768).sum() == 3


def test_a_large_record_is_subsampled_and_says_so():
    large = make_record(steps=60, trials=100, times=300, units=2, modes=3, missing=())[["loss", "trajectory"]]
    page = report.render(large)
    assert len(page) < 4e6
    assert "Subsampled evenly: 60 of 100 trials and 150 of 300 times are drawn." in page
    assert re.search(r"The viewer is subsampled evenly: \d+ of 60 steps, 48 of 100 trials, 128 of 300 times\.", page)
    data = viewer.trajectory_data(large)
    assert np.prod(data["shape"]) <= viewer.MOST_VALUES
    assert sorted(place for _, _, places in data["groups"] for place in places) == list(range(48))


def test_json_survives_and_closes_no_script():
    value = {"a": ["</script>", "<!--", "&amp;", "\u2028", "ᵀ"]}
    text = viewer.json_data(value)
    assert not set("<>&") & set(text)
    assert json.loads(text) == value


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours as WCAG 2.1 defines it."""

    def light(colour):
        parts = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    low, high = sorted([light(one), light(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [theme.LIGHT, theme.DARK], ids=["light", "dark"])
def test_both_schemes_are_readable(colours):
    assert set(colours) == set(theme.LIGHT)
    for role in ("ink", "muted", "accent"):
        assert contrast(colours[role], colours["paper"]) > 4.5
        assert contrast(colours[role], colours["page"]) > 4.5
    for role in set(colours) - {"rule", "grid", "paper", "page"}:
        assert contrast(colours[role], colours["paper"]) > (2.3 if role == "early" else 3.0), role
    for kind in ("angle", "number"):
        for colour in condition_colours(Conditions("c", np.linspace(0, 2 * np.pi, 40), kind)):
            assert contrast(colour, colours["paper"]) > 2.3


def test_write_gives_the_path_and_the_page(tmp_path):
    target = tmp_path / "report.html"
    assert report.write(small(), str(target), title="Mine") == target
    assert target.read_text(encoding="utf-8") == report.render(small(), title="Mine")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_full_disk_leaves_the_old_page(tmp_path):
    target = tmp_path / "report.html"
    target.write_text("the old page")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # no file may grow beyond 1000 bytes
    try:
        with pytest.raises(OSError, match=r"could not be written to `path` = .*report.html: .*untouched\."):
            report.write(small(), target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_text() == "the old page"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match=r"could not be written to `path` = .*: No such file or directory"):
        report.write(small(), tmp_path / "nowhere" / "report.html")


def test_a_path_through_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"could not be written to `path` = .*: Not a directory"):
        report.write(small(), tmp_path / "file" / "report.html")


def test_a_path_that_is_a_folder(tmp_path):
    with pytest.raises(OSError, match="it is a folder; name a file in it"):
        report.write(small(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_type_writes_nothing(tmp_path):
    with pytest.raises(TypeError, match=r"`record` must be an xarray.Dataset; got list"):
        report.write([1.0], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_record_without_steps():
    with pytest.raises(ValueError, match="must have an axis `step`"):
        report.render(xr.Dataset({"loss": ("time", [1.0])}))


def test_a_record_without_any_step():
    with pytest.raises(ValueError, match="holds no step: nothing was analysed yet"):
        report.render(small().isel(step=[]))


def test_a_record_that_shows_nothing():
    record = xr.Dataset({"something": ("step", [1.0])}, coords={"step": [0]})
    with pytest.raises(ValueError, match="must hold a variable that the report shows, such as 'loss'; got something"):
        report.render(record)


def test_captions_part_the_collapse_into_the_tasks_and_the_networks():
    record = make_record()
    words = Elements(report.render(record)).words
    error, change = (float(record.effective_dimension[-1].sel(stage=stage)) for stage in ("error", "change"))
    share = np.log(128 / error) / np.log(128 / change)
    assert f"has {error:.3g} and the change {change:.3g} at the last step" in words
    assert f"on a logarithmic scale {share:.0%} of the collapse is there in the error already" in words
    assert "of 345600 states at most 60 by structure" in words
    few = record.isel(unit=slice(0, 2))  # fewer units than dimensions: there is nothing to part
    words = Elements(report.render(few.drop_vars("ntk_effective_rank"))).words
    assert "on a logarithmic scale" not in words
    assert "by structure, and" not in words
