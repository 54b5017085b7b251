"""Seconds of a call, in pairs, on any device."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["paired", "seconds"]


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
