"""Seconds of a call, in pairs, on any device."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

__all__ = ["Cost", "measured", "paired", "seconds"]

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Wall-clock seconds of a call, and those of all cores together."""

    wall: float
    cpu: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.wall + other.wall, self.cpu + other.cpu)

    @staticmethod
    def median(costs: Sequence["Cost"]) -> "Cost":
        return Cost(statistics.median(cost.wall for cost in costs), statistics.median(cost.cpu for cost in costs))


def measured(function: Callable[[], Value], device: torch.device) -> tuple[Value, Cost]:
    """The result of one call, and what it took."""
    _wait(device)
    start, busy = time.perf_counter(), time.process_time()
    value = function()
    _wait(device)
    return value, Cost(time.perf_counter() - start, time.process_time() - busy)


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of one call."""
    _wait(device)
    start = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - start


def paired(
    baseline: Callable[[], Any], ours: Callable[[], Any], repeats: int, device: torch.device
) -> dict[str, float | list[float]]:
    """Medians of both, and the median of the ratios of pairs that were run one after the other."""
    baseline()
    ours()
    pairs = [(seconds(baseline, device), seconds(ours, device)) for _ in range(repeats)]
    ratios = [one / other for one, other in pairs]
    return {
        "baseline_seconds": statistics.median(one for one, _ in pairs),
        "kpflow_seconds": statistics.median(other for _, other in pairs),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
