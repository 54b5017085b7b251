"""Dynamics at one training step: fixed points and Lyapunov exponents where the input stands still, as arrays."""

import copy
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from kpflow.dynamics import IndexVerdict, Stop, find_fixed_points, lyapunov_spectrum
from kpflow.states.adapters import adapter_for
from kpflow.states.surround import Surround
from kpflow.tasks import Task, Trials

from .measures import Components, Variables, padded, seeded

__all__ = ["CODES", "LEFT_OUT", "Held", "dynamics_measures", "held_still"]

LEFT_OUT = "dynamics_left_out"
"""The attribute that says, in a sentence, why there is nothing on dynamics."""

WIDTH = 32
"""Length of the axis `point`: fixed points, then slow points; of more, those with few unstable directions are kept."""

ROUNDS = 3
"""Further rounds of seeds, at most: mixes of stable points, mixes of all, and deflation."""

TRIALS, STEPS = 8, 300
"""States that exponents are averaged over, and steps from each, of which a fifth is discarded."""

CODES: dict[str, tuple[str, ...]] = {
    "fixed_point_verdict": tuple(verdict.value.split(":")[0] for verdict in IndexVerdict),
    "fixed_point_stopped": tuple(stop.value.split(":")[0] for stop in Stop),
}
"""What the whole numbers of a variable stand for; its attribute `names` in a record."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """A recurrent core whose input stands still.

    Args:
        core: The recurrent module.
        epoch: Of the task, in which its input does not depend on the condition.
        inputs: What the core gets then, shape `[I]`.
        words: The task's input, by channel.
    """

    core: nn.Module
    epoch: str
    inputs: Float[Tensor, "I"]
    words: str


def held_still(model: nn.Module, core: str | None, task: Task, trials: Trials) -> Held:
    """The core with the input of the longest epoch whose static input is the same under all conditions.

    Raises:
        ValueError: There is no such epoch, or an encoder makes an input that moves of one that stands still.
    """
    epoch = _longest(task, trials)
    x = task.static_inputs(epoch, {}, dtype=trials.inputs.dtype).to(trials.inputs.device)  # [1, I]
    words = ", ".join(f"{name} {value:g}" for name, value in zip(task.input_labels, x[0].tolist(), strict=True))
    if core is None:
        return Held(model, epoch, x[0], words)
    module = model.get_submodule(core)
    adapter = adapter_for(module)
    if adapter is None:
        raise ValueError(f"No recurrence is known of the core, a {type(module).__name__}.")
    surround = Surround(copy.deepcopy(model).eval(), core, x[:, None].expand(-1, 4, -1), adapter)
    seen = surround.reach({}).inputs.detach()
    if not torch.allclose(seen, seen[:, -1:].expand_as(seen), rtol=1e-4, atol=1e-6):
        raise ValueError("The input of the core moves while that of the task stands still.")
    return Held(module, epoch, seen[0, -1], words)


def _longest(task: Task, trials: Trials) -> str:
    durations = {name: float((stop - start).double().mean()) for name, (start, stop) in trials.epochs.items()}
    free = [name for name, duration in durations.items() if duration > 0 and _is_free(task, name)]
    if not free:
        raise ValueError(f"No epoch of {type(task).__name__} has one input that stands still under all conditions.")
    return max(free, key=lambda name: durations[name])  # of equals the first


def _is_free(task: Task, epoch: str) -> bool:
    """Whether the static input is the same under all conditions."""
    try:
        return len(task.static_inputs(epoch, {})) == 1
    except ValueError:
        return False


def dynamics_measures(
    model: nn.Module,
    core: str | None,
    task: Task | None,
    trials: Trials,
    states: Float[Tensor, "B T H"],
    components: Components,
    *,
    starts: int,
    exponents: int,
    time_limit: float,
    seed: int,
) -> tuple[Variables, dict[str, Any]]:
    """Fixed points, slow points and Lyapunov exponents at a static input, with the attributes that belong to them.

    The static input is that of `held_still`. Searches start from `starts` states of that epoch, evenly over trials
    and times. On the axis `point` are the fixed points, then the slow points, in float64: `fixed_point_state`,
    `_position` (in the principal components of the trajectories), `_unstable` (how many |μ| > 1), `_stable`,
    `_multiplier` (the largest |μ|), `_residual`, `_slow` (1 for a slow point). `lyapunov_exponent` are conditional on
    the input, means over a few states of that epoch, with one standard error.

    What cannot be found is left out, and the attribute `dynamics_left_out` says why: nothing here raises.

    Args:
        model: The model.
        core: Name of its recurrent submodule.
        task: For its static inputs.
        trials: The trials.
        states: Their states.
        components: The principal components of the trajectories.
        starts: States to start from; 0 for no dynamics at all.
        exponents: Leading Lyapunov exponents.
        time_limit: Seconds for the search.
        seed: Of further seeds and of the first frame.
    """
    reasons: list[str] = []
    held = _tried(lambda: _asked(model, core, task, trials, starts), reasons)
    if held is None:
        return {}, {LEFT_OUT: reasons[0]}
    inside = states[trials.inside(held.epoch)]  # [N, H]
    source = seeded(states, seed)
    points = _tried(lambda: _points(held, _evenly(inside, starts), components, time_limit, source), reasons)
    rates = _tried(lambda: _exponents(held, _evenly(inside, TRIALS), exponents, seeded(states, seed)), reasons)
    said = {LEFT_OUT: " ".join(dict.fromkeys(reasons))} if reasons else {}
    return {**(points or {}), **(rates or {})}, {"static_epoch": held.epoch, "static_input": held.words, **said}


def _tried(function: Callable[[], Any], reasons: list[str]) -> Any:
    """What the function gives, without its warnings; None where it fails, with a sentence more in `reasons`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function()
        except Exception as error:  # whatever a user's module raises: the rest of the analysis goes on
            reasons.append(f"{str(error).split('. ')[0].rstrip('.')}.")
            return None


def _asked(model: nn.Module, core: str | None, task: Task | None, trials: Trials, starts: int) -> Held:
    if not starts:
        raise ValueError("Fixed points were not asked for: `starts` is 0.")
    if task is None:
        raise ValueError("No task was given, whose static inputs would be needed.")
    return held_still(model, core, task, trials)


def _points(
    held: Held, seeds: Tensor, components: Components, time_limit: float, generator: torch.Generator
) -> Variables:
    found = find_fixed_points(held.core, held.inputs, seeds, rounds=ROUNDS, time_limit=time_limit, generator=generator)
    states = torch.cat([found.states, found.slow.states])
    sizes = torch.cat([found.multipliers, found.slow.multipliers]).abs()
    columns = {
        "unstable": (sizes > 1).sum(dim=1),
        "stable": (sizes < 1).all(dim=1),
        "multiplier": sizes.amax(dim=1),
        "residual": torch.cat([found.residual, found.slow.residual]),
        "slow": torch.arange(len(states), device=states.device) >= len(found.states),
    }
    numbers = {
        "count": len(found.states),
        "index_sum": found.index_sum,
        "verdict": list(IndexVerdict).index(found.index_verdict),
        "stopped": list(Stop).index(found.stopped),
    }
    return {
        "fixed_point_position": (("point", "component"), _table(components.of(states)).astype(np.float32)),
        "fixed_point_state": (("point", "unit"), _table(states)),
        **{f"fixed_point_{name}": (("point",), padded(values.double(), WIDTH)) for name, values in columns.items()},
        **{f"fixed_point_{name}": ((), np.array(float(value))) for name, value in numbers.items()},
    }


def _exponents(held: Held, initial: Tensor, count: int, generator: torch.Generator) -> Variables:
    k = min(count, initial.shape[1])
    found = lyapunov_spectrum(held.core, held.inputs, initial, k, steps=STEPS, generator=generator)
    arrays = {"lyapunov_exponent": found.exponents, "lyapunov_exponent_error": found.standard_error}
    return {name: (("exponent",), padded(values, count)) for name, values in arrays.items()}


def _evenly(states: Float[Tensor, "N H"], count: int) -> Float[Tensor, "n H"]:
    """At most `count` of the states, evenly spaced."""
    return states[torch.linspace(0, len(states) - 1, min(count, len(states))).round().long().to(states.device)]


def _table(rows: Float[Tensor, "K N"]) -> np.ndarray:
    """The rows, followed by rows of NaN up to the width of the axis `point`."""
    table = np.full((WIDTH, rows.shape[1]), np.nan)
    table[: min(len(rows), WIDTH)] = rows[:WIDTH].cpu().numpy()
    return table
