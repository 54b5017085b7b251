"""Time of one NTK product a probe, against `torch.func.vmap(jvp ∘ vjp)` of the module, in pairs within one run."""

import statistics
from typing import Any

import torch

import kpflow as kp

from .measures import relative_difference
from .problems import PROBLEMS, ByHand, Problem
from .timing import paired, seconds

__all__ = ["run"]

PROBES = 64


def run(repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """One row a problem: seconds a probe of both, the median ratio of the pairs, and how far the results differ."""
    return [_row(build(name), repeats, device) for name, build in PROBLEMS.items()]


def _row(problem: Problem, repeats: int, device: torch.device) -> dict[str, Any]:
    problem.model.to(device)
    problem = Problem(problem.name, problem.model, problem.inputs.to(device), problem.readout)
    lin = kp.linearise(problem.model, problem.inputs)
    ntk, by_hand = kp.Ntk(lin, readout=problem.readout), ByHand(problem)
    space = ntk.in_space
    probes = torch.randn(PROBES, *space.shape, generator=torch.Generator().manual_seed(2), dtype=space.dtype).to(device)
    expected, got = by_hand.ntk(probes), ntk(probes)
    singly = [seconds(lambda: by_hand.ntk(probes[:1]), device) for _ in range(repeats)]
    times = paired(lambda: by_hand.ntk(probes), lambda: ntk(probes), repeats, device)
    return {
        "problem": problem.name,
        "states": lin.space.size,
        "parameters": lin.parameters.size,
        "core": lin.core.size,
        "baseline": "torch.func.vmap(jvp ∘ vjp) of the module",
        "probes_in_a_block": PROBES,
        "baseline_ms_one_probe_at_a_time": 1e3 * statistics.median(singly),
        "baseline_ms_per_probe": 1e3 * times["baseline_seconds"] / PROBES,
        "kpflow_ms_per_probe": 1e3 * times["kpflow_seconds"] / PROBES,
        "ratio": times["ratio"],
        "ratios": times["ratios"],
        "linearise_ms": 1e3 * seconds(lambda: kp.linearise(problem.model, problem.inputs), device),
        "relative_difference": relative_difference(got, expected),
    }
