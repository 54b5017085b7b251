"""What libraries take for the same quantities, one after the other in one run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import kpflow as kp

from ..graphs import stages_of
from ..problems import Problem, cnn, mlp
from ..timing import Cost, measured
from . import with_kpflow
from .peer import Peer

__all__ = ["compare", "matrices", "products", "traces"]

CPU = torch.device("cpu")

PROBES = 16

FEW = 128
"""Inputs of the MLP for all libraries; those that hold the Jacobian take 6 to 9 GB at 512."""

FEWER = 32
"""Images of the CNN for all libraries; products for every column take minutes at 256."""

ALL = ("Jacobian", "layers", "products")

SLOW = 5.0
"""CPU seconds of a first run after which there is no second."""

Calls = Mapping[str, Callable[[], Any]]


def matrices(peers: Sequence[Peer], repeats: int) -> list[dict[str, Any]]:
    """The whole output NTK, by the libraries that do it at that size in reasonable time and memory."""
    cases = ((mlp(), ("layers", "products")), (mlp(FEW), ALL), (cnn(), ("layers", "Jacobian")), (cnn(FEWER), ALL))
    return [
        row
        for problem, ways in cases
        for row in _with_kpflow("output NTK", problem, [peer for peer in peers if peer.way in ways], repeats)
    ]


def traces(peers: Sequence[Peer], repeats: int) -> list[dict[str, Any]]:
    """The exact trace, where a library has it without the matrix."""
    able = [peer for peer in peers if peer.trace]
    return [row for problem in (mlp(), cnn()) for row in _with_kpflow("exact trace", problem, able, repeats)]


def products(peers: Sequence[Peer], repeats: int) -> list[dict[str, Any]]:
    """A block of NTK products, on operators that are made already."""
    able = [peer for peer in (with_kpflow.PEER, *peers) if peer.product]
    rows = []
    for problem in (mlp(), cnn()):
        calls = {peer.name: _multiplied(peer, problem) for peer in able}
        rows += compare(f"{PROBES} NTK products", problem.name, calls, repeats)
    return rows


def compare(quantity: str, problem: str, calls: Calls, repeats: int) -> list[dict[str, Any]]:
    """Medians of every library, and its CPU seconds over those of the first."""
    costs: dict[str, list[Cost]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            if not costs[name] or costs[name][0].cpu < SLOW:
                costs[name].append(measured(call, CPU)[1])
    medians = {name: Cost.median(found) for name, found in costs.items()}
    first = next(iter(medians.values())).cpu
    return [
        {
            "quantity": quantity,
            "problem": problem,
            "library": name,
            "cpu_seconds": cost.cpu,
            "seconds": cost.wall,
            "runs": len(costs[name]),
            "ratio_to_kpflow": cost.cpu / first,
        }
        for name, cost in medians.items()
    ]


def _with_kpflow(quantity: str, problem: Problem, peers: Sequence[Peer], repeats: int) -> list[dict[str, Any]]:
    """kpflow from the module on, and once the network is linearised and its trials are known; then the others."""
    whole = quantity != "exact trace"
    few = Problem(problem.name, problem.model, problem.inputs[:4], problem.readout)
    calls = {peer.name: _call(peer, problem, whole) for peer in (with_kpflow.PEER, *peers)}
    for peer in (with_kpflow.PEER, *peers):
        _call(peer, few, whole)()
    rows = compare(quantity, problem.name, calls, repeats)
    ours = kp.operators.to_dense if whole else with_kpflow.trace_of
    alone = Cost.median([stages_of(problem, ours, CPU)[1][2] for _ in range(repeats)])
    rows[0] |= {"alone_cpu_seconds": alone.cpu, "alone_seconds": alone.wall}
    for row in rows[1:]:
        row["ratio_to_kpflow_alone"] = row["cpu_seconds"] / alone.cpu
    return rows


def _call(peer: Peer, problem: Problem, whole: bool) -> Callable[[], Any]:
    quantity = peer.gram if whole else peer.trace
    assert quantity is not None
    return lambda: quantity(problem)


def _multiplied(peer: Peer, problem: Problem) -> Callable[[], Any]:
    """A block of products, once done so that nothing is left to be made."""
    assert peer.product is not None
    product = peer.product(problem)
    block = torch.randn(PROBES, 10 * len(problem.inputs), generator=torch.Generator().manual_seed(2))
    product(block)
    return lambda: product(block)
