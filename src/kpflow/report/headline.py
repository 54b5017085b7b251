"""The numbers at the top of the page, and where they come from."""

import dataclasses
import json
from typing import Any, final

import numpy as np
import xarray as xr

from kpflow.plots.records import covered_steps, has, missing_steps, series
from kpflow.plots.style import step_words

__all__ = ["Row", "headline", "number", "provenance", "settings_of"]

_ROWS = (
    ("loss", "loss"),
    ("score", "score"),
    ("effective rank of the NTK", "ntk_effective_rank"),
    ("effective rank of P Pᵀ", "propagator_effective_rank"),
    ("effective rank of K", "kernel_effective_rank"),
)


@final
@dataclasses.dataclass(frozen=True)
class Row:
    """One quantity at the first and at the last step that has it.

    Args:
        quantity: In words.
        first: Its value, with one standard error if there is one.
        last: Likewise.
        steps: The two steps in words if they are not the record's first and last; else empty.
    """

    quantity: str
    first: str
    last: str
    steps: str = ""


def number(value: float, error: float = float("nan")) -> str:
    """A number to four digits, or to two digits of its standard error.

    Example:
        >>> number(0.000412345), number(12.3456, 0.127), number(419.7, 24.0), number(3.0, 0.0)
        ('0.0004123', '12.35 ± 0.13', '420 ± 24', '3 ± 0')
    """
    if not np.isfinite(error) or error < 0:
        return f"{value:.4g}"
    if error == 0:
        return f"{value:.4g} ± 0"
    decimals = max(0, 1 - int(np.floor(np.log10(error))))
    if decimals > 6:
        return f"{value:.4g} ± {error:.1g}"
    return f"{value:,.{decimals}f} ± {error:,.{decimals}f}".replace(",", "\u202f")


def headline(record: xr.Dataset) -> list[Row]:
    """Loss, score and effective ranks at the first and the last step that has them."""
    return [_row(record, words, name) for words, name in _ROWS if has(record, name)]


def _row(record: xr.Dataset, words: str, name: str) -> Row:
    values = series(record, name)
    errors = series(record, f"{name}_error").values if has(record, f"{name}_error") else np.full(values.size, np.nan)
    covered, steps = covered_steps(values), values["step"].values
    first, last = (number(float(values.values[k]), float(errors[k])) for k in (covered[0], covered[-1]))
    whole = covered[0] == 0 and covered[-1] == len(steps) - 1
    return Row(words, first, last, "" if whole else f"{step_words(steps[covered[0]])} to {steps[covered[-1]]:g}")


def settings_of(record: xr.Dataset) -> dict[str, Any]:
    """The settings, from their JSON text; what is no JSON object stands under "settings" as it is.

    Example:
        >>> settings_of(xr.Dataset(attrs={"settings": "not JSON"}))
        {'settings': 'not JSON'}
    """
    text = record.attrs.get("settings")
    if text is None or isinstance(text, dict):
        return text or {}
    try:
        settings = json.loads(text)
    except (TypeError, ValueError):
        return {"settings": str(text)}
    return settings if isinstance(settings, dict) else {"settings": settings}


def provenance(record: xr.Dataset) -> dict[str, str]:
    """What was analysed, with what, when and how: attributes, sizes, settings, in words."""
    attributes = record.attrs
    labels = {"model": "model", "task": "task", "kpflow": "kpflow_version", "torch": "torch_version"}
    labels |= {"seed": "seed", "analysed": "created"}
    known = {label: str(attributes[key]) for label, key in labels.items() if key in attributes}
    analysed = [name for name in map(str, record.data_vars) if name not in ("loss", "score") and _is_mine(record, name)]
    left_out = missing_steps(record, analysed) if analysed else []
    known["steps"] = f"{record.sizes['step'] - len(left_out)} of {record.sizes['step']} analysed in full"
    known["sizes"] = " × ".join(f"{axis} {size}" for axis, size in record.sizes.items())
    known |= {"skipped": skipped} if (skipped := _skipped(record)) else {}
    settings = {str(key): _plain(value) for key, value in settings_of(record).items()}
    return known | {
        f"{key} (setting)" if key in known else key: value for key, value in settings.items() if known.get(key) != value
    }


def _skipped(record: xr.Dataset) -> str:
    """The steps that the study left out altogether, and why; empty if none."""
    text = record.attrs.get("skipped", "{}")
    try:
        reasons = json.loads(text)
    except (TypeError, ValueError):
        return str(text)
    if not isinstance(reasons, dict):
        return str(text)
    return "; ".join(f"step {step}: {reason}" for step, reason in reasons.items())


def _is_mine(record: xr.Dataset, name: str) -> bool:
    return "effective" in name and has(record, name)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
