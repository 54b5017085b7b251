"""Every entry of the gallery: its checks pass, hold for other seeds, and fail where the system is broken."""

import dataclasses
import json
import math

import pytest
import torch

from gallery_tolerances import broken_rules
from kpflow import gallery, plots
from kpflow.gallery import formula, identity, points, rk4

HELD_OUT = (11, 12)
"""Seeds that no tolerance was set with."""


@pytest.fixture(scope="module")
def results():
    """Short runs, each once."""
    kept = {}

    def run(name):
        if name not in kept:
            kept[name] = gallery.run(name, short=True)
        return kept[name]

    return run


@pytest.mark.parametrize("name", gallery.names())
def test_every_check_passes(name, results):
    failed = [str(check) for check in results(name).checks if not check.passed]
    assert failed == []
    assert len(results(name).checks) >= 3


@pytest.mark.parametrize("name", gallery.names())
def test_tolerances_of_monte_carlo_checks_are_set_from_their_spread(name, results):
    assert broken_rules(results(name), short=True) == []


@pytest.mark.parametrize("name", gallery.names())
def test_a_broken_system_fails_a_check(name):
    checks = gallery.run(name, short=True, broken=True).checks
    assert any(not check.passed and math.isfinite(check.error) for check in checks), "not by numbers that overflow"


@pytest.mark.parametrize("name", gallery.names())
@pytest.mark.parametrize("seed", HELD_OUT)
def test_identities_and_formulas_hold_for_other_seeds(name, seed):
    checks = gallery.run(name, seed, short=True).checks
    assert [str(check) for check in checks if check.kind != "monte-carlo" and not check.passed] == []


@pytest.mark.parametrize("name", gallery.names())
def test_an_entry_can_be_drawn_and_kept(name, results):
    record = json.loads(json.dumps(results(name).record(), allow_nan=False))
    figure = plots.entry_figure(record)
    assert len(figure.axes) == len(record["panels"]) == 2
    for panel in record["panels"]:
        assert {line["observed"] for line in panel["lines"]} <= {True, False}
        assert all(len(line["x"]) for line in panel["lines"])
    observed = {line["observed"] for line in record["panels"][0]["lines"]}
    assert observed == {True, False}, "the first panel shows what was observed on what was predicted"


@pytest.mark.parametrize("name", gallery.names())
def test_an_entry_says_what_it_is(name):
    entry = gallery.get(name)
    for text in (entry.title, entry.paper, entry.kernels, entry.omits, type(entry).__doc__):
        assert text
        assert len(text) > 10
    assert entry.kernels.count(". ") == 0, "one sentence"


def test_the_same_seed_gives_the_same_result_and_nothing_global_is_touched():
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    first, again = (gallery.run("saxe", 3, short=True) for _ in range(2))
    assert dataclasses.replace(first, seconds=0.0) == dataclasses.replace(again, seconds=0.0)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_a_name_that_is_none_gets_the_nearest():
    with pytest.raises(ValueError, match=r"must be an entry of the gallery; got 'sax'. Did you mean 'saxe'\?"):
        gallery.run("sax")
    with pytest.raises(TypeError, match=r"`depth` is no parameter of saxe\. It has none"):
        gallery.run("saxe", depth=3)
    with pytest.raises(ValueError, match="`seed` must be a whole number at least 0"):
        gallery.run("saxe", seed=-1)


def test_a_check_takes_the_number_that_agrees_least():
    check = formula.close("a", [1.0, 2.0, 4.0], [1.1, 2.0, 4.2], 0.15)
    assert (check.predicted, check.observed) == (4.0, 4.2)
    assert not check.passed
    assert formula.close("a", [1.0, 2.0, 4.0], [1.1, 2.0, 4.2], 0.11, relative=True).predicted == 1.0
    assert not formula.close("a", 1.0, float("nan"), 1.0).passed
    assert identity.at_least("a", 0.5, 0.6).passed
    assert not identity.at_least("a", 0.5, 0.4).passed
    assert identity.at_most("a", 0.5, 0.4).passed
    assert not identity.at_most("a", 0.5, float("nan")).passed


def test_a_line_has_as_many_ordinates_as_abscissae():
    with pytest.raises(ValueError, match="must be as many; got 2 and 1"):
        points("a", [0.0, 1.0], [2.0])


def test_a_record_without_panels_cannot_be_drawn():
    with pytest.raises(ValueError, match="`record` must hold `panels`"):
        plots.entry_figure({})


def test_rk4_is_of_fourth_order():
    start = torch.ones((), dtype=torch.float64)
    errors = [float((rk4(lambda y: -y, start, 1 / n, n)[-1] - torch.exp(-start)).abs()) for n in (10, 20)]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.1)
