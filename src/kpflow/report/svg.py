"""Figures as inline SVG: text stays text, colours become the page's variables, identifiers stay unique in a page."""

import io
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, SupportsFloat
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kpflow.plots.style import PALETTE, STEP_AXIS

__all__ = ["inline_svg"]

_ROLES = {colour: role for role, colour in PALETTE.items()} | {"#ffffff": "paper"}
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")


def inline_svg(draw: Callable[[], Figure], *, name: str, alt: str, steps: Sequence[SupportsFloat] = ()) -> Markup:
    """Draw a figure and return it as an SVG element to stand in an HTML page.

    Colours of the palette become `var(--role, colour)`, so that the page decides between light and dark; fonts are the
    page's; the background is transparent. Axes over training steps carry their geometry in `data-cursors`: a list of
    `[top, bottom, [abscissa of each step]]` in the SVG's own units.

    Args:
        draw: Makes the figure.
        name: Unique in the page; the prefix of every identifier.
        alt: What the figure shows, for those who do not see it.
        steps: The training steps that axes over training mark.

    Example:
        >>> markup = inline_svg(lambda: Figure(figsize=(2, 1)), name="empty", alt="Nothing at all")
        >>> str(markup)[:65]
        '<svg viewBox="0 0 144 72" role="img" aria-label="Nothing at all."'
    """
    stream = io.StringIO()
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "text.parse_math": False,
        "text.usetex": False,
    }
    with matplotlib.rc_context({**_defaults(), **style}):
        figure = draw()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    drawn = ElementTree.fromstring(stream.getvalue())
    return Markup(ElementTree.tostring(_page_element(drawn, figure, name, alt, steps), encoding="unicode"))


def _defaults() -> dict[Any, Any]:
    """Matplotlib's own settings: a user's style sheet must not change a report."""
    return {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}


def _page_element(
    drawn: ElementTree.Element, figure: Figure, name: str, alt: str, steps: Sequence[SupportsFloat]
) -> ElementTree.Element:
    root = ElementTree.Element("svg", {"viewBox": drawn.get("viewBox", ""), "role": "img"})
    titles = [title for axes in figure.axes if (title := axes.get_title(loc="left"))]
    root.set("aria-label", f"{alt}. Panels: {', '.join(titles)}." if titles else f"{alt}.")
    root.set("preserveAspectRatio", "xMidYMid meet")
    _, _, width, height = map(float, root.get("viewBox", "").split())
    if cursors := [_cursor(axes, steps, width, height) for axes in figure.axes if axes.get_label() == STEP_AXIS]:
        root.set("data-cursors", json.dumps(cursors, separators=(",", ":")))
    used = _used(drawn)
    root.extend(_clean(child, name, used) for child in drawn if _tag(child) != "metadata")
    return root


def _cursor(axes: Axes, steps: Sequence[SupportsFloat], width: float, height: float) -> list:
    to_page = axes.transData + axes.figure.transFigure.inverted()  # type: ignore[union-attr]
    box = axes.get_position()
    across = [to_page.transform((float(step), axes.get_ylim()[1]))[0] * width for step in steps]
    return [round((1 - box.y1) * height, 1), round((1 - box.y0) * height, 1), np.round(across, 1).tolist()]


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _used(drawn: ElementTree.Element) -> set[str]:
    """The identifiers that something refers to."""
    values = [value for element in drawn.iter() for value in element.attrib.values()]
    local = {value[1:] for value in values if value.startswith("#")}
    return local | {found for value in values for found in _REFERENCE.findall(value)}


def _clean(element: ElementTree.Element, name: str, used: set[str]) -> ElementTree.Element:
    copy = ElementTree.Element(_tag(element))
    for key, value in element.attrib.items():
        key = key.rpartition("}")[2]
        if key != "id" or value in used:
            copy.set(key, _attribute(key, value, name))
    copy.text = element.text if _tag(element) in ("text", "tspan") else None
    copy.extend(_clean(child, name, used) for child in element if _tag(child) != "style")
    return copy


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return f"#{name}-{value[1:]}" if value.startswith("#") else value.replace("\n", "")
    if key == "style":
        value = re.sub(r"font-family:[^;]*;?\s*", "", value)
        return _COLOUR.sub(lambda found: _variable(found.group()), value)
    if key in ("d", "x", "y", "transform", "points"):
        value = _NUMBER.sub(lambda found: f"{float(found.group()):.2f}", " ".join(value.split()))
    return _REFERENCE.sub(rf"url(#{name}-\1)", value)


def _variable(colour: str) -> str:
    return f"var(--{_ROLES[colour]}, {colour})" if colour in _ROLES else colour
