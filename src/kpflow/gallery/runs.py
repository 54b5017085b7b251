"""Runs of entries: one with its table and panels, and several whose errors tell the spread over seeds."""

import dataclasses
import inspect
import time
from collections.abc import Iterator
from typing import Any

import torch

from kpflow._checks import check_range
from kpflow.states.keeping import one_thread

from . import spreads
from .entry import Result
from .registry import get

__all__ = ["measure_spread", "run"]


def run(name: str, seed: int = 0, *, short: bool = False, broken: bool = False, **parameters: Any) -> Result:
    """Make, run, predict and check one entry, on one thread: its tensors are tiny.

    Args:
        name: Of the entry.
        seed: Of all that is random.
        short: A smaller form that takes a second or two.
        broken: With a deliberate mistake, so that a check fails.
        parameters: Others of the entry's `make`.

    Returns:
        Its Monte Carlo checks state their errors over seeds, unless parameters were given.

    Raises:
        ValueError: There is no such entry, or a parameter is outside of where its prediction holds.
        TypeError: The entry has no such parameter.

    Example:
        >>> run("saxe", short=True).passed
        True
    """
    entry = get(name)
    check_range("seed", seed, 0, integer=True)
    known = [key for key in inspect.signature(entry.make).parameters if key not in ("seed", "short", "broken")]
    for parameter in parameters:
        if parameter not in known:
            there_are = f"There are: {', '.join(known)}." if known else "It has none."
            raise TypeError(f"`{parameter}` is no parameter of {name}. {there_are}")
    errors = {} if parameters else spreads.read(name, short=short)
    start = time.perf_counter()
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of what modules draw when they are made; put back afterwards
        system = entry.make(seed, short=short, broken=broken, **parameters)
        observed, predicted = entry.run(system), entry.predict(system)
        checks = entry.check(system, observed, predicted)
        panels = entry.panels(system, observed, predicted)
    checks = tuple(dataclasses.replace(check, spread=errors.get(check.what, ())) for check in checks)
    return Result(name, entry.title, seed, checks, panels, time.perf_counter() - start)


def measure_spread(name: str) -> Iterator[Result]:
    """Run an entry with each of six seeds, in both forms, and keep the errors of its Monte Carlo checks.

    They go to `spreads.json` beside the entries, which is for those who change an entry.

    Args:
        name: Of the entry; one without Monte Carlo checks is run with one seed.

    Yields:
        Each run.

    Raises:
        ValueError: There is no such entry, or a check is not called the same with all seeds.
    """
    for short in (True, False):
        errors: dict[str, list[float]] = {}
        for seed in spreads.SEEDS:
            result = run(name, seed, short=short)
            yield result
            chance = {check.what: check.error for check in result.checks if check.kind == "monte-carlo"}
            if not chance:
                break
            if seed and chance.keys() != errors.keys():
                raise ValueError(
                    f"Checks of {name} must be called the same with all seeds; seed {seed} differs from before in "
                    f"{sorted(chance.keys() ^ errors.keys())}. Leave what depends on the seed to `observed`."
                )
            for what, error in chance.items():
                errors.setdefault(what, []).append(error)
        spreads.write(name, {what: tuple(found) for what, found in errors.items()}, short=short)
