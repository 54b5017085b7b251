"""The graph route: a product on a transformer, exact output kernels of an MLP and a CNN, capture of a BERT."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import kpflow as kp
from kpflow.states.capture import capture
from kpflow.states.prepare import trainable
from kpflow.states.sites import find_sites

from . import kernels
from .measures import relative_difference
from .problems import Problem, cnn, mlp, transformer
from .timing import Cost, measured, seconds

__all__ = ["Captured", "matrix_row", "products", "run", "stages_of", "trace_row"]

PROBES = 32

CHUNKS = (1, 2, 4, 8, 16)
"""Probes that the baseline may do at once; it gets the best."""

WARM = 4
"""Probes, and trials, of the calls that are not timed."""


def run(repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """One row a quantity and baseline; the contraction of the MLP's Jacobians, a minute long, is run once."""
    kp.linearise(nn.Linear(2, 2), torch.zeros(2, 2))  # what torch.export imports on its first call
    rows = products(_on(transformer(), device), PROBES, repeats, device)
    dense, convolved = _on(mlp(), device), _on(cnn(), device)
    by_contraction = ("Jacobian contraction of PyTorch's NTK tutorial", kernels.by_contraction)
    by_jacobians = (f"Jacobians by vmap(jacrev), {kernels.TRIALS_AT_ONCE} trials at once", kernels.trace_by_jacobians)
    by_hand = "core formula by hand"
    return [
        *rows,
        matrix_row(dense, *by_contraction, 1, repeats, device),
        matrix_row(dense, by_hand, kernels.by_cores, repeats, repeats, device),
        matrix_row(convolved, *by_contraction, repeats, repeats, device),
        trace_row(dense, *by_jacobians, 1, repeats, device),
        trace_row(dense, by_hand, kernels.trace_by_cores, repeats, repeats, device),
        trace_row(convolved, *by_jacobians, 1, repeats, device),
        bert(device),
    ]


class Captured:
    """Products of a captured graph by `torch.func`, with all that its weights give as the outputs: vmap(jvp ∘ vjp)."""

    def __init__(self, problem: Problem) -> None:
        self.parameters = trainable(problem.model.named_parameters())
        with torch.no_grad():
            self._graph = capture(problem.model, problem.inputs, self.parameters)
            self._nodes = list(find_sites(self._graph, self.parameters).nodes.values())
        _, self._pull, *_ = torch.func.vjp(self._states, self.parameters)

    def ntk(self, probes: Tensor, chunk: int) -> Tensor:
        """NTK products for a block of probes, some of them at once."""
        return torch.vmap(self._product, chunk_size=chunk)(probes)

    def _states(self, values: dict[str, Tensor]) -> Tensor:
        found = self._graph.run(values, self._nodes)
        return torch.cat([found[node].flatten() for node in self._nodes])

    def _product(self, probe: Tensor) -> Tensor:
        return torch.func.jvp(self._states, (self.parameters,), (self._pull(probe)[0],))[1]


def products(problem: Problem, count: int, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """NTK, P, Pᵀ and K against NTK products of the same captured function in one run."""
    lin, by_hand = kp.linearise(problem.model, problem.inputs), Captured(problem)
    P, K = kp.Propagator(lin), kp.ParameterKernel(lin)
    operators = {"NTK": kp.Ntk(lin), "P": P, "Pᵀ": P.T, "K": K}
    probes = torch.randn(count, *lin.space.shape, generator=torch.Generator().manual_seed(2)).to(device)
    chunk = _best_chunk(by_hand, probes, device)
    expected = by_hand.ntk(probes, chunk)
    differences = {"NTK": relative_difference(operators["NTK"](probes), expected)}
    few = probes[:WARM]
    together = relative_difference(P(K(P.T(few))), expected[:WARM])
    del expected
    runs = []
    for _ in range(repeats):
        run = {name: seconds(lambda op=op: op(probes), device) for name, op in operators.items()}
        runs.append(run | {"baseline": seconds(lambda: by_hand.ntk(probes, chunk), device)})
    return [
        {
            "quantity": f"product with {name}",
            "problem": problem.name,
            "states": lin.space.size,
            "parameters": lin.parameters.size,
            "baseline": f"vmap(jvp ∘ vjp) of the captured function, NTK, {chunk} probes at once (its best)",
            "probes_in_a_block": count,
            "baseline_ms_per_probe": 1e3 * statistics.median(run["baseline"] for run in runs) / count,
            "kpflow_ms_per_probe": 1e3 * statistics.median(run[name] for run in runs) / count,
            "ratio": statistics.median(run["baseline"] / run[name] for run in runs),
            "ratios": [run["baseline"] / run[name] for run in runs],
            "relative_difference": differences.get(name, together),
        }
        for name in operators
    ]


def matrix_row(
    problem: Problem,
    name: str,
    baseline: Callable[[Problem], Tensor],
    baseline_runs: int,
    repeats: int,
    device: torch.device,
) -> dict[str, Any]:
    """The whole output NTK."""
    row, expected, got = _row(problem, name, baseline, kp.operators.to_dense, baseline_runs, repeats, device)
    row["relative_difference"] = relative_difference(got, expected)
    return {"quantity": f"output NTK, {len(got)} × {len(got)}"} | row


def trace_row(
    problem: Problem,
    name: str,
    baseline: Callable[[Problem], float],
    baseline_runs: int,
    repeats: int,
    device: torch.device,
) -> dict[str, Any]:
    """The exact trace of the output NTK."""

    def trace(ntk: kp.Ntk) -> float:
        return float(kp.estimate.trace(ntk, method="exact"))

    row, expected, got = _row(problem, name, baseline, trace, baseline_runs, repeats, device)
    return {"quantity": "exact trace of the output NTK"} | row | {"relative_difference": abs(got / expected - 1)}


def bert(device: torch.device) -> dict[str, Any]:
    """In a process of its own, for its peak memory."""
    command = [sys.executable, "-m", "benchmarks.bert", str(device), str(torch.get_num_threads())]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    return {"quantity": "linearising"} | json.loads(found)


def _on(problem: Problem, device: torch.device) -> Problem:
    return Problem(problem.name, problem.model.to(device), problem.inputs.to(device), problem.readout)


def _best_chunk(by_hand: Captured, probes: Tensor, device: torch.device) -> int:
    """The number of probes at once with the least time for each, on as few as show it."""
    by_hand.ntk(probes[:1], 1)
    times = {}
    for chunk in CHUNKS:
        some = probes[: max(chunk, WARM)]
        if chunk <= len(probes):
            times[chunk] = seconds(lambda some=some, chunk=chunk: by_hand.ntk(some, chunk), device) / len(some)
    return min(times, key=lambda chunk: times[chunk])


def _row(
    problem: Problem,
    name: str,
    baseline: Callable[[Problem], Any],
    quantity: Callable[[kp.Ntk], Any],
    baseline_runs: int,
    repeats: int,
    device: torch.device,
) -> tuple[dict[str, Any], Any, Any]:
    """CPU and wall-clock seconds of both, kpflow's from the module to the result; and the two results."""
    few = Problem(problem.name, problem.model, problem.inputs[:WARM], problem.readout)
    baseline(few)
    stages_of(few, quantity, device)
    baselines, ours = [], []
    expected = got = None
    for count in range(repeats):
        if count < baseline_runs:
            expected, cost = measured(lambda: baseline(problem), device)
            baselines.append(cost)
        got, stages = stages_of(problem, quantity, device)
        ours.append(stages)
    theirs = Cost.median(baselines)
    linearising, structuring, alone = (Cost.median([stages[i] for stages in ours]) for i in range(3))
    total = Cost.median([stages[0] + stages[1] + stages[2] for stages in ours])
    row = {
        "problem": problem.name,
        "baseline": name,
        "baseline_runs": len(baselines),
        "baseline_cpu_seconds": theirs.cpu,
        "kpflow_cpu_seconds": total.cpu,
        "ratio": theirs.cpu / total.cpu,
        "baseline_seconds": theirs.wall,
        "kpflow_seconds": total.wall,
        "ratio_of_wall_clock": theirs.wall / total.wall,
        "linearise_cpu_seconds": linearising.cpu,
        "structure_cpu_seconds": structuring.cpu,
        "alone_cpu_seconds": alone.cpu,
        "alone_seconds": alone.wall,
        "ratio_alone": theirs.cpu / alone.cpu,
    }
    return row, expected, got


def stages_of(
    problem: Problem, quantity: Callable[[kp.Ntk], Any], device: torch.device
) -> tuple[Any, tuple[Cost, Cost, Cost]]:
    """The quantity, and what it took to linearise, to find the structure (which trials are independent), and for it."""
    lin, linearising = measured(lambda: kp.linearise(problem.model, problem.inputs), device)
    ntk = kp.Ntk(lin, readout="outputs")
    _, structuring = measured(lambda: ntk.structure, device)
    value, alone = measured(lambda: quantity(ntk), device)
    return value, (linearising, structuring, alone)
