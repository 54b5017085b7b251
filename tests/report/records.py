"""A made-up but plausible record of a GRU learning to remember an angle, in the schema of a study."""

import functools
import json

import numpy as np
import xarray as xr

from kpflow import report

STAGES = ("inputs", "states", "error", "adjoint", "kernel_adjoint", "change", "targets")


def make_record(steps=25, trials=30, times=90, units=128, modes=20, *, seed=0, missing=(7, 8)) -> xr.Dataset:
    """Every variable of the schema; the analysis of the steps at indices `missing` is NaN."""
    rng = np.random.default_rng(seed)
    step = np.unique(np.concatenate([[0], np.geomspace(1, 20000, steps - 1).round()])).astype(int)
    step = np.pad(step, (0, steps - len(step)), mode="linear_ramp", end_values=20000 + 500 * (steps - len(step)))
    learned = 1 / (1 + np.exp(-(np.log10(step + 1) - 2.6) * 3))
    angle = np.linspace(0, 2 * np.pi, trials, endpoint=False)
    record = xr.Dataset(
        coords={
            "step": step,
            "trial": np.arange(trials),
            "time": np.arange(times) * 0.02,
            "unit": np.arange(units),
            "mode": np.arange(modes),
            "stage": list(STAGES),
            "axis": ["trial", "time", "unit"],
            "angle": ("trial", angle),
        },
        attrs={
            "title": "A GRU learns to remember an angle",
            "model": "GRU(3, 128) with a linear read-out to 3",
            "task": "MemoryPro",
            "kpflow_version": "0.1.0",
            "torch_version": "2.13.0",
            "seed": 0,
            "settings": json.dumps({"probes": 64, "rtol": 0.05, "dt": 0.02, "stimulus_steps": 30}),
            "created": "2026-11-21T00:00:00+00:00",
            "condition": "angle",
        },
    )
    wobble = lambda scale=0.03: np.exp(scale * rng.standard_normal(steps))  # noqa: E731
    record["loss"] = "step", (0.35 * (1 - learned) + 4e-4) * wobble(0.06)
    record["score"] = "step", np.clip(0.06 + 0.93 * learned + 0.01 * rng.standard_normal(steps), 0, 1)
    _add_operators(record, learned, wobble, modes)
    _add_dimensions(record, learned, wobble)
    _add_modes(record, learned, angle, times, units, rng)
    _add_bias(record, learned, modes)
    _add_trajectories(record, learned, angle, times, rng)
    _add_points(record, learned, rng)
    _add_movement(record, learned)
    _add_forecasts(record)
    record = _with_representations(_with_objectives(record, learned), learned)
    record["predicted_loss_change"] = "step", -1e-3 * record.loss.values * wobble()
    record["actual_loss_change"] = "step", record.predicted_loss_change.values * (1 - 0.2 * learned) * wobble()
    return _forget(record, missing)


@functools.cache
def small_page() -> str:
    """The report of a small record with everything in it, rendered once for all tests."""
    return report.render(small_record())


def small_record() -> xr.Dataset:
    return make_record(steps=9, trials=8, times=12, units=5, modes=7, missing=(3,))


def _forget(record, missing):
    kept = np.ones(record.sizes["step"], dtype=bool)
    kept[list(missing)] = False
    analysed = [name for name in record.data_vars if name not in ("loss", "score")]
    here = xr.DataArray(kept, dims="step")
    return record.assign({name: record[name].where(here) for name in analysed if "step" in record[name].dims})


def _add_operators(record, learned, wobble, modes):
    ranks = {"ntk": (9.0, 3.2), "propagator": (420.0, 60.0), "kernel": (24.0, 5.5)}
    traces = {"ntk": (40.0, 5e4), "propagator": (3e5, 4e6), "kernel": (2e3, 9e3)}
    for name, (start, end) in ranks.items():
        rank = np.exp(np.log(start) * (1 - learned) + np.log(end) * learned) * wobble()
        record[f"{name}_effective_rank"] = "step", rank
        record[f"{name}_effective_rank_error"] = "step", 0.06 * rank
        low, high = np.log(traces[name])
        trace = np.exp(low + (high - low) * learned) * wobble()
        record[f"{name}_trace"] = "step", trace
        record[f"{name}_trace_error"] = "step", 0.03 * trace
        decay = np.exp(-np.arange(modes)[None, :] / (0.8 * np.sqrt(rank[:, None])))
        leading = trace[:, None] / rank[:, None] * decay
        leading[:, modes - 3 :] = np.nan  # fewer modes were asked for than the axis holds
        record[f"{name}_spectrum"] = ("step", "mode"), np.sqrt(leading) if name == "propagator" else leading


def _add_dimensions(record, learned, wobble):
    ends = [(3.0, 3.0), (6.5, 3.4), (2.8, 9.0), (4.5, 2.6), (3.6, 1.9), (2.9, 1.6), (2.6, 2.6)]
    columns = [(start * (1 - learned) + end * learned) * wobble(0.02) for start, end in ends]
    record["effective_dimension"] = ("step", "stage"), np.stack(columns, axis=1)
    along = np.stack([0.8 * np.stack(columns, axis=1), 1.2 * np.stack(columns, axis=1), np.stack(columns, axis=1)], 1)
    record["effective_dimension_along"] = ("step", "axis", "stage"), along
    record["ntk_effective_rank_along"] = ("step", "axis"), along[:, :, -2]
    record["ntk_effective_rank_along_error"] = ("step", "axis"), 0.05 * along[:, :, -2]
    for name, value in {"rank": 80.0, "effective_rank_low": 1.2, "effective_rank_high": 60.0}.items():
        record[f"ntk_{name}"] = "step", np.full(len(learned), value)
    for end, factor in (("low", 0.3), ("high", 4.0)):
        record[f"ntk_norm_{end}"] = factor * record["ntk_spectrum"].isel(mode=0, drop=True)


def _add_modes(record, learned, angle, times, units, rng):
    t = np.linspace(0, 1, times)
    early = [np.exp(-((t - c) ** 2) / 0.02) for c in (0.9, 0.6, 0.4, 0.2)]
    late = [1 / (1 + np.exp(-(t - c) * 25)) for c in (0.3, 0.3, 0.66, 0.66)]
    over_trials = [np.cos(angle), np.sin(angle), np.ones_like(angle), np.cos(2 * angle)]
    shape = (len(learned), 4, len(angle), times)
    pattern = np.empty(shape)
    for k in range(4):
        course = (1 - learned)[:, None] * early[k] + learned[:, None] * late[k]
        pattern[:, k] = over_trials[k][None, :, None] * course[:, None, :]
    pattern += 0.03 * rng.standard_normal(shape)
    record["ntk_mode_time"] = ("step", "leading", "trial", "time"), pattern
    record["ntk_mode_unit"] = ("step", "leading", "unit"), rng.standard_normal((len(learned), 4, units))
    shares = np.stack([0.7 + 0.28 * learned - 0.05 * k for k in range(4)], axis=1)
    record["ntk_mode_separability"] = ("step", "leading"), shares


def _add_bias(record, learned, modes):
    k = np.arange(modes)[None, :]
    width = (4 - 2.5 * learned)[:, None]
    record["core_spectrum"] = ("step", "mode"), 300 * np.exp(-k / width) + 1e-3
    record["state_spectrum"] = ("step", "mode"), 7 * np.exp(-k / (1.15 * width)) + 1e-5
    record["core_state_overlap"] = ("step", "mode"), 1 - (0.4 - 0.3 * learned[:, None]) * np.exp(-k / 6)


def _add_trajectories(record, learned, angle, times, rng):
    t = np.linspace(0, 1, times)
    rise, response = 1 / (1 + np.exp(-(t - 0.15) * 30)), 1 / (1 + np.exp(-(t - 0.67) * 30))
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=-1)  # trial, 2
    radius = (0.3 + 2.2 * learned)[:, None] * rise[None, :] * (1 - (1 - learned)[:, None] * 0.8 * t[None, :])
    path = np.zeros((len(learned), len(angle), times, 3))
    path[..., :2] = ring[None, :, None, :] * radius[:, None, :, None]
    path[..., 2] = ((1 + learned)[:, None] * (response - 0.5 * rise))[:, None, :]
    path += 0.02 * np.cumsum(rng.standard_normal(path.shape), axis=2) / np.sqrt(times)
    path *= rng.choice([-1.0, 1.0], size=(len(learned), 1, 1, 3))  # the sign of a component means nothing
    record["trajectory"] = ("step", "trial", "time", "component"), path
    share = np.stack([0.4 + 0.1 * learned, 0.25 + 0.1 * learned, 0.15 + 0.02 * learned], axis=1)
    record["trajectory_variance"] = ("step", "component"), share


def _add_points(record, learned, rng, points=6):
    """One stable point that becomes unstable half-way, in a pitchfork that leaves two stable ones, and a slow point."""
    late = learned > 0.5
    kept = np.stack([np.ones_like(late), late, late, ~late], axis=1)
    unstable, slow = (np.zeros(kept.shape, dtype=bool) for _ in range(2))
    unstable[:, 2], slow[:, 3] = True, True
    pad = lambda values: np.pad(np.where(kept, values, np.nan), ((0, 0), (0, points - 4)), constant_values=np.nan)  # noqa: E731
    stable = pad((~unstable).astype(float))
    record["fixed_point_stable"] = ("step", "point"), stable
    record["fixed_point_slow"] = ("step", "point"), pad(slow.astype(float))
    record["fixed_point_multiplier"] = ("step", "point"), pad(np.where(unstable, 1.1, 0.6) + 0.3 * learned[:, None])
    reach = np.array([1.0, -1.0, 0.0, 0.5])[None, :, None] * np.array([2.0, 1.0, 0.3])
    places = np.where(np.isfinite(stable)[..., None], np.pad(reach, ((0, 0), (0, points - 4), (0, 0))), np.nan)
    record["fixed_point_position"] = ("step", "point", "component"), places * (0.3 + learned[:, None, None])
    rates = -0.4 * (1 - learned[:, None]) - 0.05 * np.arange(4)
    record["lyapunov_exponent"] = ("step", "exponent"), rates + 0.01 * rng.standard_normal(rates.shape)
    record["lyapunov_exponent_error"] = ("step", "exponent"), np.full(rates.shape, 0.01)
    after = int(np.flatnonzero(late)[0]) if late.any() else 1
    between = record["step"].values[[after - 1, after]]
    record["event_step"] = "event", [between.mean(), 0.9 * between.max() + 0.1 * between.min()]
    record["event_kind"] = "event", [1, 0], {"names": ["fold", "pitchfork"]}
    record["unresolved_points"] = "step", np.where(np.arange(len(learned)) == after, 2.0, 0.0)
    record.attrs |= {"static_epoch": "memory", "static_input": "fixation 1, cos 0, sin 0"}


def _add_movement(record, learned):
    """A kernel that moves as the loss falls; there is nothing at the first step."""
    first = 2 * learned - 2 * learned[0]
    both = np.stack([first, np.diff(first, prepend=np.nan)], axis=1)
    both[0] = np.nan
    for name, values in {"change": both, "alignment": 1 - both / 3}.items():
        record[f"kernel_{name}"] = ("step", "since"), values
        record[f"kernel_{name}_error"] = ("step", "since"), 0.02 + 0 * values
    record.coords["since"] = ["first", "previous"]


def _add_forecasts(record, points=5):
    """From each checkpoint to the next: the loss that is reached, but for a fall in the middle that they miss."""
    step, loss = record["step"].values.astype(float), record["loss"].values
    share = np.linspace(0, 1, points)
    at, ahead = (np.full((len(step), points), np.nan) for _ in range(2))
    end = np.where(np.abs(np.arange(len(step)) - 2 * len(step) // 3) < 2, 1.5, 1.02) * loss
    at[1:] = step[:-1, None] + np.diff(step)[:, None] * share
    ahead[1:] = loss[:-1, None] + (end[1:] - loss[:-1])[:, None] * share
    record["forecast_step"], record["forecast_loss"] = (("step", "ahead"), at), (("step", "ahead"), ahead)
    error = np.where(np.arange(len(step)) == len(step) - 2, loss, 0.0)
    record["forecast_error"] = "step", np.where(np.isfinite(ahead[:, -1]), error, np.nan)


def _with_objectives(record, learned):
    """Two tasks that share everything at first, and part from the gradient on."""
    names = ["memory_pro", "memory_anti"]
    shares = np.stack([0 * learned, 0 * learned, *[1 - 0.1 * k * learned for k in (7, 5, 4)]], axis=1)
    table = np.where(np.eye(2, dtype=bool), 1.0, shares[..., None, None])
    record["objective_alignment"] = ("step", "objective_stage", "objective", "other"), table
    record["objective_interference"] = ("step", "objective", "other"), -table[:, 2] * [[4.0, 2.0], [2.0, 1.0]]
    for name in ("size", "alignment"):
        record[f"ntk_block_{name}"] = ("step", "group", "other_group"), table[:, -1]
        record[f"ntk_block_{name}_error"] = ("step", "group", "other_group"), np.full(table[:, -1].shape, 0.02)
    stages = ["error", "adjoint", "gradient", "immediate", "change"]
    return record.assign_coords(objective_stage=stages, objective=names, other=names, group=names, other_group=names)


def _with_representations(record, learned):
    """Classes that fall together, all but the read-out's; states that are the more alike the nearer in training."""
    starts = {"nc1": 4.0, "nc2_norms": 0.6, "nc2_angles": 0.4, "nc3": 1.5, "nc4": 0.5, "nc5": 0.7}
    columns = [start * (1 - 0.97 * learned) for start in starts.values()]
    record["neural_collapse"] = ("step", "measure"), np.stack(columns, axis=1)
    distance = np.abs(learned[:, None] - learned)
    record["state_similarity"] = ("step", "other_step"), 1 - 0.7 * distance
    return record.assign_coords(measure=list(starts), other_step=record["step"].values)
