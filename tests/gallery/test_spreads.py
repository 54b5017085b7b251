"""The spread of Monte Carlo checks over seeds: how it is measured, kept and stated, and the rule for tolerances."""

import dataclasses
import json

import pytest

from gallery_tolerances import broken_rules
from kpflow import gallery
from kpflow.cli import run as command
from kpflow.gallery import formula, monte_carlo, runs, spreads


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The file, empty at first."""
    file = tmp_path / "spreads.json"
    file.write_text("{}", "utf-8")
    monkeypatch.setattr(spreads, "FILE", file)
    return file


def result_of(*checks, seed=0):
    return gallery.Result("saxe", "", seed, checks, (), 0.0)


def fake_runs(monkeypatch, error_of, what_of=lambda seed: "a"):
    """Runs of one Monte Carlo check with these errors, beside a check of another kind."""
    done = []

    def run(name, seed=0, *, short=False):
        done.append((name, seed, short))
        chance = monte_carlo.close(what_of(seed), 0.0, error_of(seed, short), 1.0)
        return result_of(chance, formula.close("b", 0.0, 0.5, 1.0), seed=seed)

    monkeypatch.setattr(runs, "run", run)
    return done


def test_six_seeds_in_both_forms_are_kept(kept, monkeypatch):
    done = fake_runs(monkeypatch, lambda seed, short: 0.1234567 * seed + short)
    assert len(list(gallery.measure_spread("saxe"))) == 12
    assert done == [("saxe", seed, short) for short in (True, False) for seed in range(6)]
    assert spreads.read("saxe", short=False) == {"a": (0.0, 0.1235, 0.2469, 0.3704, 0.4938, 0.6173)}
    assert spreads.read("saxe", short=True)["a"][1] == 1.123
    assert spreads.read("curl", short=True) == {}
    assert kept.read_text("utf-8").splitlines()[3] == '   "a": [1.0, 1.123, 1.247, 1.37, 1.494, 1.617]'


def test_an_entry_whose_checks_are_no_longer_of_chance_is_forgotten(kept, monkeypatch):
    kept.write_text(json.dumps({"saxe": {"short": {"a": [1.0]}}, "curl": {"full": {"[0, 1]": [1.0]}}}), "utf-8")
    monkeypatch.setattr(runs, "run", lambda name, seed, *, short: result_of(formula.close("b", 0.0, 0.5, 1.0)))
    assert len(list(gallery.measure_spread("saxe"))) == 2
    assert json.loads(kept.read_text("utf-8")) == {"curl": {"full": {"[0, 1]": [1.0]}}}


def test_checks_are_called_the_same_with_all_seeds(kept, monkeypatch):
    fake_runs(monkeypatch, lambda seed, short: 0.0, lambda seed: f"error of {seed}")
    with pytest.raises(ValueError, match=r"called the same with all seeds; seed 1 differs from before in \['error"):
        list(gallery.measure_spread("saxe"))
    assert kept.read_text("utf-8") == "{}"


def test_a_run_states_the_spread_of_its_own_form(kept):
    what = "across v"
    kept.write_text(json.dumps({"approach": {"short": {what: [0.1, 0.3, 0.2]}, "full": {what: [9.0]}}}), "utf-8")
    check = next(check for check in gallery.run("approach", short=True).checks if check.what == what)
    assert check.spread == (0.1, 0.3, 0.2)
    assert "monte-carlo, errors over 3 seeds 0.1 to 0.3)" in str(check)
    others = gallery.run("approach", short=True, nearest=0.8).checks
    assert not any(check.spread for check in others), "of other parameters nothing is known"


def test_the_rule_for_tolerances(kept):
    def wrong(tolerance, *errors, error=0.1, full=(0.0,)):
        kept.write_text(json.dumps({"saxe": {"short": {"a": errors}, "full": {"a": full}}}), "utf-8")
        check = dataclasses.replace(monte_carlo.close("a", 0.0, error, tolerance), spread=errors)
        return " ".join(broken_rules(result_of(check), short=True))

    six = (0.1, 0.2, 0.3, 0.1, 0.2, 0.3)
    assert wrong(0.3, *six) == wrong(1.2, *six) == wrong(4.0, *six, full=(1.0,)) == ""
    assert "a seed fails" in wrong(0.29, *six)
    assert "a seed fails" in wrong(0.3, *six[:5], float("nan"))
    assert "too wide" in wrong(1.21, *six)
    assert "with seed 0 it was 0.1" in wrong(0.3, *six, error=0.11)
    assert "no spread" in wrong(0.3, *six[:4])
    assert "b: no such check any more" in wrong_without_check(kept)
    bound = dataclasses.replace(monte_carlo.at_most("a", 1.0, 0.5), spread=(-0.5, -0.5, -0.5, -0.5, 0.1))
    assert "a seed fails" in " ".join(broken_rules(result_of(bound), short=True))


def wrong_without_check(kept):
    kept.write_text(json.dumps({"saxe": {"short": {"b": [0.1]}}}), "utf-8")
    return " ".join(broken_rules(result_of(), short=True))


def test_the_command_measures_what_it_is_given(kept, monkeypatch, capsys):
    fake_runs(monkeypatch, lambda seed, short: 0.5)
    assert command(["gallery", "saxe", "--spread"]) == 0
    assert spreads.read("saxe", short=True) == {"a": (0.5,) * 6}
    assert command(["gallery", "--all", "--spread"]) == 0
    assert list(json.loads(kept.read_text("utf-8"))) == sorted(gallery.names())
    assert command(["gallery", "sax", "--spread"]) == 1
    assert "Did you mean 'saxe'?" in capsys.readouterr().err
