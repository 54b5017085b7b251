"""The page: render a record to one self-contained HTML text, and write it without ever half replacing an old one."""

import base64
import dataclasses
import hashlib
import os
from pathlib import Path
from typing import final

import jinja2
import xarray as xr
from markupsafe import Markup

from kpflow.plots import NARROW, WIDE, Record, check_record
from kpflow.plots.style import step_words

from .headline import headline, provenance
from .parts import Plot, Section
from .sections import SECTIONS
from .svg import inline_svg
from .theme import DARK, LIGHT, scheme
from .viewer import json_data, page_data, trajectory_data, viewer_note

__all__ = ["render", "write"]

_HERE = Path(__file__).parent


def render(record: Record, *, title: str | None = None) -> str:
    """The report of a record as one HTML text that needs nothing else: no network, no other file.

    Figures are SVG in two layouts, for a phone and for a wide page; all follow the reader's light or dark scheme. A
    figure whose variables the record lacks is left out, and the page says so. Text from the record is escaped, and the
    page's content policy forbids any script but its own.

    Args:
        record: The dataset of a study: axes step, trial, time, unit, mode, stage, component; any of its variables may
            be missing, and entries that are not finite are left out.
        title: Of the page; by default the record's attribute "title".

    Returns:
        The page, below 10 MB: trajectories and modes are subsampled where needed, and their captions say so.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `record` has no step, or no variable that any figure shows.

    Example:
        >>> record = xr.Dataset({"loss": ("step", [1.0, 0.1])}, coords={"step": [0, 100]})
        >>> page = render(record, title="Two steps")
        >>> "<title>Two steps</title>" in page, page.count("<svg")
        (True, 2)
    """
    record = check_record(record)
    shown = [_filled(section, record) for section in SECTIONS if _has_place(section, record)]
    if not any(item.wide for _, items, _ in shown for item in items):
        names = ", ".join(map(str, record.data_vars)) or "none"
        raise ValueError(f"`record` must hold a variable that the report shows, such as 'loss'; got {names}.")
    script = _own("page.js")
    return _template().render(
        title=title or str(record.attrs.get("title", "kpflow report")),
        subtitle=" on ".join(str(record.attrs[key]) for key in ("model", "task") if record.attrs.get(key)),
        span=[step_words(step) for step in record["step"].values[[0, -1]]],
        rows=headline(record),
        sections=shown,
        provenance=provenance(record),
        style=_own("page.css"),
        light=scheme(LIGHT),
        dark=scheme(DARK),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=json_data({**page_data(record), "trajectory": trajectory_data(record)}),
    )


def write(record: Record, path: str | os.PathLike[str], *, title: str | None = None) -> Path:
    """Render a record and put the page at `path`; a page that stands there is replaced whole or not at all.

    Args:
        record: As of `render`.
        path: Where to; its folder must exist.
        title: As of `render`.

    Returns:
        The path.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: `record` has no step, or no variable that any figure shows.
        OSError: the page cannot be written (no such folder, not allowed, disk full); what stood there is untouched.

    Example:
        >>> import tempfile
        >>> record = xr.Dataset({"loss": ("step", [1.0, 0.1])}, coords={"step": [0, 100]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(record, f"{folder}/report.html").name
        'report.html'
    """
    path = Path(path)
    page = render(record, title=title)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder; name a file in it")
        with draft.open("w", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        _discard(draft)
        raise OSError(
            f"The report could not be written to `path` = {path}: {error.strerror or error}. "
            f"What stood there is untouched."
        ) from error
    except BaseException:
        _discard(draft)
        raise
    return path


def _discard(draft: Path) -> None:
    try:
        draft.unlink(missing_ok=True)
    except OSError:
        return  # its folder is no folder: there is no draft


@final
@dataclasses.dataclass(frozen=True)
class _Shown:
    """A plot as the page shows it; without `wide` it is left out, for want of the variables `lacks`."""

    plot: Plot
    caption: str = ""
    wide: Markup | None = None
    narrow: Markup | None = None
    lacks: tuple[str, ...] = ()


def _has_place(section: Section, record: xr.Dataset) -> bool:
    """Whether a section stands in the page: an optional one only if it has a plot, or a reason why not."""
    return (
        not section.optional or section.reason in record.attrs or any(not plot.lacks(record) for plot in section.plots)
    )


def _filled(section: Section, record: xr.Dataset) -> tuple[Section, list[_Shown], str]:
    """A section with its plots, and why some are not shown, if the record says so: then they are left out silently."""
    items = [_shown(plot, record) for plot in section.plots]
    reason = str(record.attrs.get(section.reason, "")) if any(item.wide is None for item in items) else ""
    return section, [item for item in items if item.wide is not None or not reason], reason


def _shown(plot: Plot, record: xr.Dataset) -> _Shown:
    lacks = plot.lacks(record)
    if lacks:
        return _Shown(plot, lacks=tuple(lacks))
    steps, caption = record["step"].values.tolist(), plot.words(record)
    wide, narrow = (
        inline_svg(
            lambda width=width: plot.draw(record, width=width), name=f"{plot.name}-{kind}", alt=plot.title, steps=steps,
        )
        for kind, width in (("wide", WIDE), ("narrow", NARROW))
    )  # fmt: skip
    return _Shown(plot, caption + (viewer_note(record) if plot.viewer else ""), wide, narrow)


def _own(name: str) -> Markup:
    return Markup((_HERE / name).read_text(encoding="utf-8").strip())


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html")
