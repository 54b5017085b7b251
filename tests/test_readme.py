"""README.md runs as printed: every python block, in order, in one fresh process; its outputs are not stale."""

import dataclasses
import itertools
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)")
MARK = "=== the next block ==="


@dataclasses.dataclass(frozen=True)
class Example:
    code: str
    shown: str


def examples(text: str) -> list[Example]:
    """The python blocks, each with the text block that follows it directly, if one does."""
    blocks = [(match[1], match[2]) for match in BLOCK.finditer(text)]
    followers = [*blocks[1:], ("", "")]
    return [
        Example(code, shown if kind == "text" else "")
        for (language, code), (kind, shown) in zip(blocks, followers, strict=True)
        if language == "python"
    ]


def outputs(found: list[Example], folder: Path) -> list[str]:
    """What each example prints, all in one process and one namespace, in an empty folder."""
    script = f"print({MARK!r})\n".join(example.code + "\n" for example in found)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, encoding="utf-8", timeout=240, check=False
    )
    if done.returncode:
        raise AssertionError(f"a block of the README fails:\n{done.stderr}")
    return done.stdout.split(MARK + "\n")


def agree(shown: str, printed: str) -> bool:
    """Whether the words are the same, and the numbers within their errors, or to one in the last digits shown.

    Numbers may differ between machines and versions of torch. A value with an error bar must agree within four of its
    errors; counts of products and error bars within a factor of two; any other number to 2 %.
    """
    if NUMBER.sub("#", shown).split() != NUMBER.sub("#", printed).split():
        return False
    pairs = list(zip(NUMBER.finditer(shown), NUMBER.finditer(printed), strict=True))
    for index, (old, new) in enumerate(pairs):
        a, b = float(old[0]), float(new[0])
        before, after = shown[: old.start()].rstrip(), shown[old.end() :].lstrip()
        if after.startswith("±"):
            tolerance = 4 * math.hypot(*(float(number[0]) for number in pairs[index + 1]))
        elif before.endswith("±") or after.startswith("products"):
            tolerance = max(abs(a), abs(b)) / 2
        else:
            tolerance = 0.02 * abs(a)
        if abs(a - b) > tolerance:
            return False
    return True


def test_blocks_run_and_print_what_is_shown(tmp_path):
    found = examples(README.read_text(encoding="utf-8"))
    assert len(found) >= 2
    assert all(example.shown for example in found)
    for example, printed in zip(found, outputs(found, tmp_path), strict=True):
        assert agree(example.shown, printed), f"the README shows\n{example.shown}\nbut now it is\n{printed}"


def test_first_example_has_ten_lines_after_the_imports():
    code = examples(README.read_text(encoding="utf-8"))[0].code
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("import ")]
    assert len(lines) <= 10


def test_a_broken_block_is_caught(tmp_path):
    broken = examples("```python\nx = 1\n```\n\n```python\nprint(y)\n```\n")
    with pytest.raises(AssertionError, match="name 'y' is not defined"):
        outputs(broken, tmp_path)


def test_blocks_share_a_namespace_and_outputs_are_told_apart(tmp_path):
    text = "```python\nx = 1\nprint('a')\n```\n\n```text\na\n```\n\n```sh\nls\n```\n\n```python\nprint(x + 1)\n```\n"
    found = examples(text)
    assert [example.shown for example in found] == ["a\n", ""]
    assert outputs(found, tmp_path) == ["a\n", "2\n"]


@pytest.mark.parametrize(
    ("printed", "fits"),
    [
        ("rank 54.85 ± 0.63 (138 products, deflated)", True),
        ("rank  55.60 ± 0.50 (144 products, deflated)\n", True),
        ("rank 60.00 ± 0.63 (138 products, deflated)", False),  # off by more than the errors
        ("rank 54.85 ± 2.63 (138 products, deflated)", False),  # another error bar
        ("rank 54.85 ± 0.63 (1138 products, deflated)", False),  # another cost
        ("rank 54.85 ± 0.63 (138 products, exact)", False),  # another method
        ("rank 54.85 ± 0.63", False),
    ],
)
def test_stale_outputs_are_told_from_noise(printed, fits):
    assert agree("rank 54.85 ± 0.63 (138 products, deflated)", printed) is fits


@pytest.mark.parametrize(("printed", "fits"), [("loss 0.01416", True), ("loss 0.0142", True), ("loss 0.0146", False)])
def test_numbers_without_an_error_bar_agree_to_two_percent(printed, fits):
    assert agree("loss 0.01416", printed) is fits


def test_links_into_the_repository_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert len(local) > 5
    assert [link for link in local if not (README.parent / link).exists()] == []


def test_outputs_are_shown_once_for_each_block():
    kinds = [match[1] for match in BLOCK.finditer(README.read_text(encoding="utf-8"))]
    assert all(kind == "text" for kind, previous in zip(kinds[1:], kinds, strict=False) if previous == "python")
    assert not any(a == b == "text" for a, b in itertools.pairwise(kinds))
