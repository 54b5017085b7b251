"""What captions add of the record at hand: what was thinned, what was searched, and what was found."""

import math
from collections.abc import Callable

import numpy as np
import xarray as xr

from kpflow.plots.forecasts import forecast_verdicts
from kpflow.plots.records import has
from kpflow.plots.style import step_words

from .headline import number, settings_of

__all__ = [
    "allowed",
    "classes",
    "components",
    "forecasts",
    "learning_rate",
    "movement",
    "objectives",
    "search",
    "shares",
    "static_input",
    "thinned",
    "unresolved",
]


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


def shares(record: xr.Dataset) -> str:
    """How much of the collapse is the error's own, the task's, and how much the network's, at the last step."""
    units = record.sizes.get("unit", 0)
    last = record["effective_dimension"].sortby("step").isel(step=-1)
    if not {"error", "change"} <= set(map(str, record.stage.values)):
        return ""
    error, change = (float(last.sel(stage=stage)) for stage in ("error", "change"))
    if not 1 <= change < units or not 1 <= error <= units:
        return ""
    share = min(1.0, math.log(units / error) / math.log(units / change))
    return (
        f" Of the {units} dimensions of the units the error has {error:.3g} and the change {change:.3g} at the last "
        f"step: on a logarithmic scale {share:.0%} of the collapse is there in the error already, the task's, the rest "
        "is that of P and K, the network's."
    )


def allowed(record: xr.Dataset) -> str:
    """What the structure leaves of the states, and what this network leaves of that, at the last step."""
    found, high = (float(record[name].sortby("step")[-1]) for name in ("ntk_effective_rank", "ntk_effective_rank_high"))
    states = math.prod(record.sizes.get(axis, 0) for axis in ("trial", "time", "unit"))
    return f" At the last step, of {states} states at most {high:.0f} by structure, and {found:.3g} as it is."


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


def forecasts(record: xr.Dataset) -> str:
    """How many forecasts hold, which is the first that breaks, and how much the NTK moved where they do either."""
    record = record.sortby("step")
    verdicts, steps = forecast_verdicts(record), record["step"].values
    said = f" {(verdicts == 'holds').sum()} of {(verdicts != '').sum()} hold, {(verdicts == 'breaks').sum()} break"
    if "breaks" in verdicts:
        said += f", first that of {step_words(steps[verdicts == 'breaks'][0])}"
    if has(record, "kernel_change") and "previous" in record["since"]:
        change = record["kernel_change"].sel(since="previous").values
        kinds = {"hold": change[verdicts == "holds"], "break": change[verdicts == "breaks"]}
        known = {kind: float(np.nanmedian(some)) for kind, some in kinds.items() if np.isfinite(some).any()}
        said += "".join(f"; where they {kind} the NTK changed by {value:.2g} (median)" for kind, value in known.items())
    return f"{said}."


def movement(record: xr.Dataset) -> str:
    """How far the NTK is from the first in the end, and between which checkpoints it moved most."""
    if not {"first", "previous"} <= set(map(str, record["since"].values)):
        return ""
    known = record.sortby("step").dropna("step", how="all", subset=["kernel_change"])
    change, steps = known["kernel_change"], known["step"].values
    first, cosine = (float(known[name].sel(since="first")[-1]) for name in ("kernel_change", "kernel_alignment"))
    error = float(known["kernel_change_error"].sel(since="first")[-1]) if "kernel_change_error" in known else math.nan
    between = change.sel(since="previous").fillna(0).values
    most = int(between.argmax())
    return (
        f" At {step_words(steps[-1])} it has changed by {number(first, error)} of the first, to which its cosine is "
        f"{cosine:.2g}; from one checkpoint to the next it changed most up to {step_words(steps[most])}, by "
        f"{float(between[most]):.2g}."
    )


def objectives(record: xr.Dataset) -> str:
    """What the objectives are."""
    return f" Objectives: {record.attrs['objectives']}." if "objectives" in record.attrs else ""


def components(record: xr.Dataset) -> str:
    """How much of the states' variance was compared."""
    if not has(record, "state_component_share"):
        return ""
    share = float(record["state_component_share"].min())
    return f" From the leading principal components of each, which carry at least {share:.2%} of the variance."
