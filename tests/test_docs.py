"""The pages of the documentation say what is so: their examples run, and the API pages miss no public name."""

import importlib
import re
from pathlib import Path

import pytest
import torch

from helpers import check_operator
from kpflow import Space
from test_readme import examples, outputs

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    "kpflow": ("spaces", "states", "flow", "operators", "estimate", "tasks"),
    **{f"kpflow.{name}": (name,) for name in ("operators", "states", "flow", "estimate", "dynamics", "optim")},
    **{f"kpflow.{name}": (name,) for name in ("tasks", "study", "plots", "gallery")},
    "kpflow.report": ("report",),
    "kpflow.flow.truncation": ("flow",),
}
PROSE = {"Record", "SCHEMA", "NARROW", "WIDE", "PALETTE", "SECTIONS", "ENTRIES", "identity", "formula", "monte_carlo"}
"""Constants and an alias, in words."""


def test_quickstart_runs(tmp_path):
    found = examples((DOCS / "quickstart.md").read_text(encoding="utf-8"))
    assert len(found) >= 6
    outputs(found, tmp_path)
    assert len(list((tmp_path / "runs/mine").glob("*.safetensors"))) > 3


def test_performance_page_runs(tmp_path):
    (found,) = examples((DOCS / "performance.md").read_text(encoding="utf-8"))
    (printed,) = outputs([found], tmp_path)
    assert printed == found.shown


def test_the_operator_of_how_to_extend_keeps_the_contract():
    (found,) = examples((DOCS / "how-to-extend.md").read_text(encoding="utf-8"))
    names: dict = {}
    exec(found.code, names)
    space = Space.of((3, 2), ("time", "unit"))
    check_operator(names["Shift"](space), torch.kron(torch.ones(2).diag(-1), torch.eye(2)).double())


@pytest.mark.parametrize("module", PAGES)
def test_api_pages_have_every_public_name(module):
    text = "".join((DOCS / "api" / f"{page}.md").read_text(encoding="utf-8") for page in PAGES[module])
    listed = set(re.findall(r"auto(?:class|function|data):: (?:\w+\.)+(\w+)$", text, re.MULTILINE))
    written = {name for name in PROSE if f"`{name}`" in text}
    public = set(importlib.import_module(module).__all__)
    packages = {path.stem for path in (DOCS / "api").glob("*.md")}
    assert public - packages - listed - written - {"cells", "truncation"} == set()


def test_tests_that_the_theory_names_exist():
    text = (DOCS / "theory.md").read_text(encoding="utf-8")
    named = set(re.findall(r"::(test_\w+)", text))
    written = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    assert len(named) > 10
    assert {name for name in named if f"def {name}(" not in written} == set()


def test_links_between_pages_lead_somewhere():
    names = [path.stem.removeprefix("plot_") for path in (DOCS.parent / "examples").glob("plot_*.py")]
    made = {f"examples/plot_{name}.rst" for name in names}  # by the gallery
    for page in DOCS.glob("*.md"):
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        assert [link for link in links if link not in made and not (DOCS / link).exists()] == [], page.name
