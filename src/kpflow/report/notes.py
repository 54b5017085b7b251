"""What captions add of the record at hand: what was thinned, what was searched, and what was found."""

from collections.abc import Callable

import xarray as xr

from kpflow.plots.records import has

from .headline import settings_of

__all__ = ["classes", "components", "learning_rate", "search", "static_input", "thinned", "unresolved"]


def thinned(most: dict[str, int]) -> Callable[[xr.Dataset], str]:
    """What is drawn of axes that are longer than `most` says."""

    def note(record: xr.Dataset) -> str:
        cut = [f"{size} of {record.sizes[axis]} {axis}s" for axis, size in most.items() if record.sizes[axis] > size]
        return f" Subsampled evenly: {' and '.join(cut)} are drawn." if cut else ""

    return note


def learning_rate(record: xr.Dataset) -> str:
    """η of the step that was tried."""
    rate = settings_of(record).get("learning_rate")
    return "" if rate is None else f" Learning rate of that step: {rate}."


def static_input(record: xr.Dataset) -> str:
    """At which input fixed points were searched."""
    if "static_epoch" not in record.attrs:
        return ""
    return f" Static input: that of the epoch {record.attrs['static_epoch']} ({record.attrs.get('static_input', '')})."


def search(record: xr.Dataset) -> str:
    """How many states the search started from, and what the index sum says of what it found."""
    starts, found = settings_of(record).get("starts"), _verdicts(record)
    said = "" if starts is None else f" Searched from {starts} states of each step, and their mixes."
    return static_input(record) + said + (f" Index sum: {found}." if found else "")


def _verdicts(record: xr.Dataset) -> str:
    if not has(record, "fixed_point_verdict"):
        return ""
    codes, names = record["fixed_point_verdict"].values, record["fixed_point_verdict"].attrs.get("names", [])
    counts = {name: int((codes == code).sum()) for code, name in enumerate(names)}
    return ", ".join(f"{name} at {count} of {len(codes)} steps" for name, count in counts.items() if count)


def unresolved(record: xr.Dataset) -> str:
    """How much of the intervals between checkpoints was not followed to an end."""
    if not has(record, "unresolved_points"):
        return " Fixed points were not followed between checkpoints: no events are known."
    counts = record["unresolved_points"].values
    counts = counts[counts == counts]  # intervals that were looked at
    events = record.sizes.get("event", 0)
    open_ = int((counts > 0).sum())
    left = f"; in {open_} of them points were not followed to an end within the time, and events may be missing"
    return f" {events} event{'' if events == 1 else 's'} in {len(counts)} intervals{left if open_ else ''}."


def classes(record: xr.Dataset) -> str:
    """The condition whose values are the classes."""
    return f" Classes: {record.attrs['classes']}." if "classes" in record.attrs else ""


def components(record: xr.Dataset) -> str:
    """How much of the states' variance was compared."""
    if not has(record, "state_component_share"):
        return ""
    share = float(record["state_component_share"].min())
    return f" From the leading principal components of each, which carry at least {share:.2%} of the variance."
