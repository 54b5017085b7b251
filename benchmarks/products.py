"""Time of one NTK product a probe, against the baseline, in pairs within one run."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import kpflow as kp

from .problems import PROBLEMS, Problem, baseline_product

__all__ = ["run"]

PROBES = 64


def run(repeats: int = 3) -> list[dict[str, Any]]:
    """One row a problem: milliseconds a probe of both, their ratio (median of pairs), and how far results differ."""
    return [_row(build(), repeats) for build in PROBLEMS.values()]


def _row(problem: Problem, repeats: int) -> dict[str, Any]:
    lin = kp.linearise(problem.model, problem.inputs)
    ntk, by_hand = kp.Ntk(lin), baseline_product(problem.model, problem.inputs)
    probes = torch.randn(PROBES, *lin.space.shape, generator=torch.Generator().manual_seed(2))
    expected, got = by_hand(probes), ntk(probes)
    single = probes[:1]
    by_hand(single)
    pairs = [(_seconds(by_hand, probes) / PROBES, _seconds(ntk, probes) / PROBES) for _ in range(repeats)]
    return {
        "problem": problem.name,
        "states": lin.space.size,
        "parameters": lin.parameters.size,
        "baseline": "torch.func.vmap(jvp ∘ vjp) of the module",
        "probes_in_a_block": PROBES,
        "baseline_ms_one_probe_at_a_time": 1e3 * statistics.median(_seconds(by_hand, single) for _ in range(repeats)),
        "baseline_ms_per_probe": 1e3 * statistics.median(pair[0] for pair in pairs),
        "kpflow_ms_per_probe": 1e3 * statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(pair[0] / pair[1] for pair in pairs),
        "ratios": [pair[0] / pair[1] for pair in pairs],
        "linearise_ms": 1e3 * _seconds(lambda _: kp.linearise(problem.model, problem.inputs), None),
        "relative_difference": float(
            torch.linalg.vector_norm(got - expected, dtype=torch.float64)
            / torch.linalg.vector_norm(expected, dtype=torch.float64)
        ),
    }


def _seconds(function: Callable[[Any], Any], argument: Any) -> float:
    start = time.perf_counter()
    function(argument)
    return time.perf_counter() - start
