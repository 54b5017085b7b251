"""What a page is made of: plots with what they need and what they say, in sections."""

import dataclasses
from collections.abc import Callable
from typing import final

import xarray as xr
from matplotlib.figure import Figure

from kpflow.plots.records import has, missing_steps, probe_words

from .headline import settings_of

__all__ = ["Plot", "Section"]


@final
@dataclasses.dataclass(frozen=True)
class Plot:
    """One figure of the page.

    Args:
        name: Its identifier in the page.
        title: What it is, in a few words.
        draw: Makes it from a record at a width in inches.
        needs: The variables it reads.
        caption: What it shows and how that was computed.
        any_of: Whether one of `needs` is enough.
        sampled: Whether the numbers are estimates from random probes.
        viewer: Whether the interactive viewer of trajectories stands above it.
        note: What was thinned for the page, if anything was.
    """

    name: str
    title: str
    draw: Callable[..., Figure]
    needs: tuple[str, ...]
    caption: str
    any_of: bool = False
    sampled: bool = False
    viewer: bool = False
    note: Callable[[xr.Dataset], str] = lambda _: ""

    def lacks(self, record: xr.Dataset) -> list[str]:
        """The variables that the figure needs and the record has no finite value of; none if it can be drawn."""
        missing = [name for name in self.needs if not has(record, name)]
        return [] if self.any_of and len(missing) < len(self.needs) else missing

    def words(self, record: xr.Dataset) -> str:
        """The caption with the probes, the steps left out and what was thinned."""
        sampled = probe_words(settings_of(record)) if self.sampled else ""
        return self.caption + sampled + _left_out(record, self.needs) + self.note(record)


@final
@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: a heading, one paragraph on the question, and the plots that answer it.

    Args:
        name: Its identifier in the page.
        title: The heading.
        lead: The question.
        plots: What answers it.
        reason: The attribute of a record that says why plots cannot be drawn; shown in place of them.
        optional: Whether the section is left out of a page that has nothing to show in it.
    """

    name: str
    title: str
    lead: str
    plots: tuple[Plot, ...]
    reason: str = ""
    optional: bool = False


def _left_out(record: xr.Dataset, names: tuple[str, ...]) -> str:
    missing = missing_steps(record, names)
    if not missing:
        return ""
    shown = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
    return f" Left out, because not analysed or not finite: step{'s' if len(missing) > 1 else ''} {shown}."
