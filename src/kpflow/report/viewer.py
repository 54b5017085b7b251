"""The data of the interactive parts: the step slider's read-outs and the trajectories, thinned and packed."""

import base64
import json
from typing import Any

import numpy as np
import xarray as xr
from markupsafe import Markup

from kpflow.plots import aligned_trajectories, condition_colours, condition_groups, conditions
from kpflow.plots.records import covered_steps, has, series, thin
from kpflow.plots.style import step_words

from .headline import number

__all__ = ["MOST_VALUES", "json_data", "page_data", "trajectory_data", "viewer_note"]

MOST_VALUES = 600_000
"""Numbers in the viewer, two bytes each."""

_MOST_TRIALS, _MOST_TIMES = 48, 128

_READOUTS = {
    "loss": "loss",
    "score": "score",
    "rank NTK": "ntk_effective_rank",
    "rank P Pᵀ": "propagator_effective_rank",
    "rank K": "kernel_effective_rank",
}


def json_data(value: Any) -> Markup:
    r"""JSON that no HTML parser can mistake for anything else.

    Example:
        >>> json_data("</script>")
        Markup('"\\u003c/script\\u003e"')
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def page_data(record: xr.Dataset) -> dict[str, Any]:
    """Names of the steps and, per step, the headline numbers in words ("–" where there is none)."""
    rows = {words: series(record, name).values for words, name in _READOUTS.items() if has(record, name)}
    return {
        "steps": [step_words(step) for step in record["step"].values],
        "readouts": {words: [number(v) if np.isfinite(v) else "–" for v in values] for words, values in rows.items()},
    }


def trajectory_data(record: xr.Dataset) -> dict[str, Any] | None:
    """Thinned trajectories as base64 of 16-bit integers `[step, trial, time, 3]` (−32768: none); None without any."""
    if not has(record, "trajectory"):
        return None
    paths, condition = aligned_trajectories(record), conditions(record)
    steps, trials, times = _picks(paths, condition.order)
    kept = paths.values[np.ix_(steps, trials, times)]
    scale = float(np.nanmax(np.abs(kept), initial=0.0)) or 1.0
    packed = np.where(np.isfinite(kept), np.round(kept / scale * 32767), -32768).astype("<i2")
    places = {int(trial): place for place, trial in enumerate(trials)}
    groups = [
        (n, c, [places[t] for t in map(int, which) if t in places]) for n, c, which in condition_groups(condition)
    ]
    colours = condition_colours(condition)
    return {
        "steps": steps.tolist(),
        "shape": list(kept.shape),
        "values": base64.b64encode(packed.tobytes()).decode(),
        "colours": [colours[trial] for trial in trials],
        "condition": condition.label,
        "groups": [group for group in groups if group[2]],
        "shares": _shares(record, steps),
    }


def viewer_note(record: xr.Dataset) -> str:
    """What the viewer leaves out, in words; empty if it shows all."""
    paths = aligned_trajectories(record)
    covered = len(covered_steps(paths))
    sizes = (covered, paths.sizes["trial"], paths.sizes["time"])
    cut = [
        f"{len(kept)} of {size} {name}"
        for kept, size, name in zip(
            _picks(paths, np.arange(sizes[1])), sizes, ("steps", "trials", "times"), strict=True
        )
        if len(kept) < size
    ]
    return f" The viewer is subsampled evenly: {', '.join(cut)}." if cut else ""


def _picks(paths: xr.DataArray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of steps, trials and times to keep: trials and times to a fixed number, steps to what then fits."""
    trials = np.sort(order[thin(len(order), _MOST_TRIALS)])
    times = thin(paths.sizes["time"], _MOST_TIMES)
    covered = covered_steps(paths)
    return covered[thin(len(covered), max(2, MOST_VALUES // (3 * len(trials) * len(times))))], trials, times


def _shares(record: xr.Dataset, steps: np.ndarray) -> list[list[str]] | None:
    if not has(record, "trajectory_variance"):
        return None
    shares = series(record, "trajectory_variance").values[steps]
    return [[f"{share:.0%}" if np.isfinite(share) else "" for share in row] for row in shares]
