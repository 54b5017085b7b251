"""What a figure may ask of a record: checked variables, the steps they cover, and the condition of each trial."""

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, final

import numpy as np
import xarray as xr

__all__ = [
    "SCHEMA",
    "Conditions",
    "Record",
    "check_record",
    "chosen_steps",
    "conditions",
    "covered_steps",
    "has",
    "missing_steps",
    "probe_words",
    "series",
    "shorten",
    "thin",
]

if TYPE_CHECKING:
    Record = xr.Dataset
else:
    Record = Any  # checked by check_record alone, so that a wrong type meets its message and not a type checker's

MOST_CATEGORIES = 8
"""More whole numbers than these are a scale and no categories."""

_OPERATORS = ("ntk", "propagator", "kernel")

SCHEMA: dict[str, tuple[str, ...]] = {
    "loss": ("step",),
    "score": ("step",),
    **{f"{name}_effective_rank{suffix}": ("step",) for name in _OPERATORS for suffix in ("", "_error")},
    **{f"{name}_trace{suffix}": ("step",) for name in _OPERATORS for suffix in ("", "_error")},
    **{f"{name}_spectrum": ("step", "mode") for name in _OPERATORS},
    "effective_dimension": ("step", "stage"),
    "effective_dimension_along": ("step", "axis", "stage"),
    **{f"ntk_effective_rank_along{suffix}": ("step", "axis") for suffix in ("", "_error")},
    "ntk_rank": ("step",),
    **{f"ntk_{name}_{end}": ("step",) for name in ("effective_rank", "norm") for end in ("low", "high")},
    "neural_collapse": ("step", "measure"),
    "state_similarity": ("step", "other_step"),
    "ntk_mode_time": ("step", "leading", "trial", "time"),
    "ntk_mode_unit": ("step", "leading", "unit"),
    "ntk_mode_separability": ("step", "leading"),
    "core_spectrum": ("step", "mode"),
    "state_spectrum": ("step", "mode"),
    "core_state_overlap": ("step", "mode"),
    "trajectory": ("step", "trial", "time", "component"),
    "trajectory_variance": ("step", "component"),
    "fixed_point_position": ("step", "point", "component"),
    **{f"fixed_point_{name}": ("step", "point") for name in ("stable", "multiplier", "slow")},
    "lyapunov_exponent": ("step", "exponent"),
    "lyapunov_exponent_error": ("step", "exponent"),
    "event_step": ("event",),
    "event_kind": ("event",),
    "unresolved_points": ("step",),
    "objective_alignment": ("step", "objective_stage", "objective", "other"),
    "objective_interference": ("step", "objective", "other"),
    **{
        f"ntk_block_{name}{suffix}": ("step", "group", "other_group")
        for name in ("size", "alignment")
        for suffix in ("", "_error")
    },
    **{f"kernel_{name}{suffix}": ("step", "since") for name in ("change", "alignment") for suffix in ("", "_error")},
    **{f"forecast_{name}": ("step", "ahead") for name in ("step", "loss")},
    "forecast_error": ("step",),
    "predicted_loss_change": ("step",),
    "actual_loss_change": ("step",),
}
"""The variables that figures read, each with its axes."""


def check_record(record: object) -> xr.Dataset:
    """Return `record` with its steps in order, or say what is wrong with it.

    Raises:
        TypeError: `record` is no xarray.Dataset.
        ValueError: it has no axis `step`, or no step at all.

    Example:
        >>> check_record(xr.Dataset({"loss": ("step", [0.1, 1.0])}, coords={"step": [10, 0]})).step.values
        array([ 0, 10])
    """
    if not isinstance(record, xr.Dataset):
        raise TypeError(
            f"`record` must be an xarray.Dataset; got {type(record).__name__}. Open a stored one with xarray.open_zarr."
        )
    if "step" not in record.dims or "step" not in record.coords:
        raise ValueError(
            f"`record` must have an axis `step` with the training step of each entry; got the axes "
            f"{_listed(map(str, record.dims))}. Add it with record.assign_coords(step=...)."
        )
    if record.sizes["step"] == 0:
        raise ValueError("`record` holds no step: nothing was analysed yet. Analyse at least one checkpoint.")
    return record.sortby("step")


def has(record: xr.Dataset, name: str) -> bool:
    """Whether `record` holds the variable `name` with at least one finite value."""
    return name in record and bool(np.isfinite(record[name].astype(float)).any())


def series(record: xr.Dataset, name: str) -> xr.DataArray:
    """The variable `name` as float64 with the axes of `SCHEMA` in order; what is not finite becomes NaN.

    Raises:
        ValueError: the variable is missing, has other axes, or holds no finite value.

    Example:
        >>> series(xr.Dataset({"loss": ("step", [1, np.inf])}, coords={"step": [0, 1]}), "loss").values
        array([ 1., nan])
    """
    if name not in record:
        raise ValueError(f"`record` must hold the variable {name!r}; got {_listed(map(str, record.data_vars))}.")
    axes, array = SCHEMA[name], record[name]
    if set(array.dims) != set(axes):
        raise ValueError(
            f"`record[{name!r}]` must have the axes ({_listed(axes)}); got ({_listed(map(str, array.dims))})."
        )
    array = array.transpose(*axes).astype(float)
    array = array.where(np.isfinite(array))
    if not bool(array.notnull().any()):
        raise ValueError(f"`record[{name!r}]` must hold a finite value; got none in {array.size} entries.")
    return array.load()


def covered_steps(*arrays: xr.DataArray) -> np.ndarray:
    """Indices of the steps at which every array has a finite value somewhere."""
    covered = [array.notnull().any([axis for axis in array.dims if axis != "step"]).values for array in arrays]
    return np.flatnonzero(np.logical_and.reduce(covered))


def missing_steps(record: xr.Dataset, names: Iterable[str]) -> list[int]:
    """The training steps at which one of the variables that are there has no finite value.

    Example:
        >>> missing_steps(xr.Dataset({"loss": ("step", [1, np.nan])}, coords={"step": [0, 8]}), ["loss", "score"])
        [8]
    """
    arrays = [series(record, name) for name in names if has(record, name)]
    covered = covered_steps(*arrays) if arrays else np.array([], dtype=int)
    return [int(step) for index, step in enumerate(record["step"].values) if index not in covered]


def chosen_steps(covered: np.ndarray, count: int) -> list[int]:
    """At most `count` of the indices `covered`: the first, the last, and evenly between.

    Raises:
        ValueError: `covered` is empty, or `count` is not a whole number from 1 to 5, the room that a figure has.

    Example:
        >>> chosen_steps(np.arange(10), 4)
        [0, 3, 6, 9]
    """
    if count not in range(1, 6):
        raise ValueError(f"`count` must be a whole number from 1 to 5; got {count!r}.")
    if len(covered) == 0:
        raise ValueError("`record` must have one step at which all that is drawn is finite; got none.")
    return [int(covered[index]) for index in thin(len(covered), count)]


def thin(size: int, limit: int) -> np.ndarray:
    """At most `limit` whole numbers below `size`, evenly spaced, ends included.

    Example:
        >>> thin(9, 3)
        array([0, 4, 8])
    """
    return np.arange(size) if size <= limit else np.unique(np.linspace(0, size - 1, limit).round().astype(int))


def shorten(text: str, most: int = 24) -> str:
    """A name from a record, cut to fit into a figure.

    Example:
        >>> shorten("a name that is far too long for the edge of a panel")
        'a name that is far too …'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Conditions:
    """What tells the trials apart.

    Args:
        label: What the values are, in words.
        values: One number per trial, NaN where it has none; for categories the index of the category.
        kind: "angle" (periodic, in radians), "number" or "category".
        categories: The names of the categories, if they are.
    """

    label: str
    values: np.ndarray
    kind: str
    categories: tuple[str, ...] = ()

    @property
    def order(self) -> np.ndarray:
        """The trials sorted by condition."""
        return np.argsort(self.values, kind="stable")


def conditions(record: xr.Dataset) -> Conditions:
    """The coordinate over trials named by the attribute "condition" (default "angle"), else the trial's index.

    Names are categories, and so are whole numbers if there are at most eight; others are angles or numbers.

    Raises:
        ValueError: the attribute names no coordinate over trials.

    Example:
        >>> record = xr.Dataset(coords={"step": [0], "angle": ("trial", [0.0, 3.1])})
        >>> conditions(record).kind
        'angle'
    """
    name = str(record.attrs.get("condition", "angle"))
    if name not in record.coords:
        if "condition" in record.attrs:
            raise ValueError(
                f"`record.attrs['condition']` must name a coordinate over trials; got {name!r}, "
                f"and there are {_listed(map(str, record.coords))}."
            )
        return Conditions("trial", np.arange(record.sizes.get("trial", 0), dtype=float), "number")
    coordinate = record.coords[name]
    if coordinate.dims != ("trial",):
        raise ValueError(f"`record[{name!r}]` must have the axis (trial); got ({_listed(map(str, coordinate.dims))}).")
    return _conditions_of(name, coordinate.values)


def _conditions_of(name: str, values: np.ndarray) -> Conditions:
    if not np.issubdtype(values.dtype, np.number):
        categories, codes = np.unique(values.astype(str), return_inverse=True)
        names = tuple(shorten(category) for category in categories.tolist())
        return Conditions(shorten(name), codes.astype(float), "category", names)
    if "angle" in name or "theta" in name:
        return Conditions(f"{shorten(name)} (rad)", np.mod(values.astype(float), 2 * np.pi), "angle")
    if np.issubdtype(values.dtype, np.integer) and len(known := np.unique(values)) <= MOST_CATEGORIES:
        codes = np.searchsorted(known, values).astype(float)
        return Conditions(shorten(name), codes, "category", tuple(map(str, known.tolist())))
    return Conditions(shorten(name), values.astype(float), "number")


def probe_words(settings: dict[str, Any]) -> str:
    """How many random probes the estimates took, from the record's settings; empty if they do not say.

    Example:
        >>> probe_words({"probes": 64, "rtol": 0.05})
        ' Estimated from 64 random probes, stopping at a relative standard error of 0.05.'
    """
    probes, rtol = settings.get("probes"), settings.get("rtol")
    if isinstance(probes, dict):
        probes = ", ".join(f"{count} ({name})" for name, count in probes.items())
    if probes is None:
        return (
            "" if rtol is None else f" Estimated from random probes, stopping at a relative standard error of {rtol}."
        )
    return f" Estimated from {probes} random probes" + (
        f", stopping at a relative standard error of {rtol}." if rtol is not None else "."
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
