"""Time to a number: exact trace, trace to 1 %, effective rank to 5 %, and a summary beside training."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import kpflow as kp
from kpflow.study.demo import Demo

from .problems import GRU, PROBLEMS, ByHand, Problem
from .timing import paired, seconds

__all__ = ["run"]

SEEDS = 20
"""Runs behind each root mean square error."""

GRID = (12, 24, 36, 48, 72, 96, 144, 192)
"""Products or backward passes that the methods by hand may take; each gets the fewest that reach the error."""


def run(repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """One row a quantity and baseline."""
    problem = PROBLEMS[GRU](GRU)
    problem.model.to(device)
    problem = Problem(problem.name, problem.model, problem.inputs.to(device))
    return [*_traces(problem, repeats, device), *_ranks(problem, repeats, device), _summary(repeats, device)]


def _traces(problem: Problem, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    by_hand = ByHand(problem)
    truth = float(_exact(problem))
    lin = kp.linearise(problem.model, problem.inputs)
    probes = torch.randn(64, *lin.space.shape, device=device)
    by_hand.ntk(probes)
    product = statistics.median(seconds(lambda: by_hand.ntk(probes), device) for _ in range(repeats)) / 64
    ours = statistics.median(seconds(lambda: _exact(problem), device) for _ in range(repeats))
    rows = [
        {
            "quantity": "exact trace",
            "baseline": f"{lin.space.size} products by hand (the time of one, times their number)",
            "baseline_seconds": product * lin.space.size,
            "kpflow_seconds": ours,
            "ratio": product * lin.space.size / ours,
            "relative_difference_to_hutchinson": float(kp.estimate.trace(kp.Ntk(lin), budget=200)) / truth - 1,
        }
    ]
    for name, method in (("Hutch++ by hand", _hutchpp), ("one-sided Hutchinson by hand", _one_sided)):
        count, error = _fewest(lambda m, seed, method=method: method(by_hand, lin.space.shape, m, seed), truth, 0.01)
        rows.append(
            {"quantity": "trace to 1 %", "baseline": f"{name}, {count} products", "baseline_rms_error": error}
            | _ours(lambda seed: float(_trace(problem, seed)), truth)
            | paired(
                lambda method=method, count=count: method(ByHand(problem), lin.space.shape, count, 0),
                lambda: _trace(problem, 0),
                repeats,
                device,
            )
        )
    return rows


def _ranks(problem: Problem, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    by_hand, shape = ByHand(problem), kp.linearise(problem.model, problem.inputs).space.shape
    truth = float(
        kp.estimate.effective_rank(kp.Ntk(kp.linearise(problem.model, problem.inputs)), rtol=5e-3, budget=4000)
    )
    rows = []
    for name, method in (
        ("Hutch++ of A and of A² by hand", _rank_hutchpp),
        ("one-sided by hand", _rank_one_sided),
        ("Hutchinson's probes for both by hand", _rank_two_sided),
    ):
        count, error = _fewest(lambda m, seed, method=method: method(by_hand, shape, m, seed), truth, 0.05)
        rows.append(
            {"quantity": "effective rank to 5 %", "baseline": f"{name}, {count} products", "baseline_rms_error": error}
            | _ours(lambda seed: float(_rank(problem, seed)), truth)
            | paired(
                lambda method=method, count=count: method(ByHand(problem), shape, count, 0),
                lambda: _rank(problem, 0),
                repeats,
                device,
            )
        )
    return rows


def _summary(repeats: int, device: torch.device) -> dict[str, Any]:
    """A summary of one checkpoint of the demo, beside 100 steps of its training."""
    demo = Demo()
    model = demo.model().to(device)
    draw = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=demo.learning_rate)

    def train() -> None:
        for _ in range(100):
            trials = demo.task.sample(demo.batch, generator=draw)
            loss = (
                (trials.mask.to(device) * (model(trials.inputs.to(device)) - trials.targets.to(device))).square().mean()
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    inputs = demo.task.sample(demo.trials, generator=torch.Generator().manual_seed(1)).inputs.to(device)

    def summarise() -> Any:
        return kp.estimate.summary(kp.Ntk(kp.linearise(model, inputs, core="rnn")), rtol=0.02)

    times = paired(train, summarise, repeats, device)
    return {
        "quantity": "summary to 2 % of the demo's network",
        "baseline": "100 steps of its training",
        "share_of_training": 1 / times["ratio"] if isinstance(times["ratio"], float) else None,
        "products": summarise().num_matvecs,
    } | times


def _exact(problem: Problem) -> Any:
    return kp.estimate.trace(kp.Ntk(kp.linearise(problem.model, problem.inputs)), method="exact")


def _trace(problem: Problem, seed: int) -> Any:
    return _of(kp.estimate.trace, problem, seed, 0.01)


def _rank(problem: Problem, seed: int) -> Any:
    return _of(kp.estimate.effective_rank, problem, seed, 0.05)


def _of(estimate: Callable[..., Any], problem: Problem, seed: int, rtol: float) -> Any:
    generator = torch.Generator(problem.inputs.device).manual_seed(seed)
    return estimate(kp.Ntk(kp.linearise(problem.model, problem.inputs)), rtol=rtol, generator=generator)


def _ours(value: Callable[[int], float], truth: float) -> dict[str, float]:
    errors = [value(seed) / truth - 1 for seed in range(SEEDS)]
    return {"kpflow_rms_error": _rms(errors)}


def _fewest(method: Callable[[int, int], float], truth: float, goal: float) -> tuple[int, float]:
    """The smallest effort of the grid whose error is below the goal, and that error."""
    for count in GRID:
        error = _rms([method(count, seed) / truth - 1 for seed in range(SEEDS)])
        if error <= goal:
            break
    return count, error


def _rms(errors: list[float]) -> float:
    return (sum(error**2 for error in errors) / len(errors)) ** 0.5


def _signs(by_hand: ByHand, shape: tuple[int, ...], count: int, seed: int) -> Tensor:
    like = next(iter(by_hand.parameters.values()))
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (count, *shape), generator=draw).mul_(2).sub_(1).to(like)


def _hutchpp(
    by_hand: ByHand, shape: tuple[int, ...], count: int, seed: int, apply: Callable[[Tensor], Tensor] | None = None
) -> float:
    """Meyer, Musco, Musco, Woodruff 2021, a third of the products each for the sketch, its image and the rest."""
    probes = _signs(by_hand, shape, 2 * count // 3, seed).flatten(1)

    def product(rows: Tensor) -> Tensor:
        return (apply or by_hand.ntk)(rows.reshape(-1, *shape)).flatten(1)

    sketch, rest = probes.chunk(2)
    basis = torch.linalg.qr(product(sketch).mT).Q.mT
    rest = rest - rest @ basis.mT @ basis
    return float((basis * product(basis)).sum() + (rest * product(rest)).sum() / len(rest))


def _one_sided(by_hand: ByHand, shape: tuple[int, ...], count: int, seed: int) -> float:
    pulled = by_hand.vjp(_signs(by_hand, shape, count, seed))
    return float(sum(value.square().sum() for value in pulled.values()) / count)


def _rank_hutchpp(by_hand: ByHand, shape: tuple[int, ...], count: int, seed: int) -> float:
    """As the trace paper's code does: a third of the products for tr A, two thirds for tr A² = ‖A‖²_F, two a probe."""

    def twice(rows: Tensor) -> Tensor:
        return by_hand.ntk(by_hand.ntk(rows))

    trace = _hutchpp(by_hand, shape, count // 3, seed)
    return trace**2 / _hutchpp(by_hand, shape, count // 3, seed + SEEDS, twice)


def _rank_two_sided(by_hand: ByHand, shape: tuple[int, ...], count: int, seed: int) -> float:
    probes = _signs(by_hand, shape, count, seed)
    images = by_hand.ntk(probes)
    return float((probes * images).sum() ** 2 / count / images.square().sum())


def _rank_one_sided(by_hand: ByHand, shape: tuple[int, ...], count: int, seed: int) -> float:
    pulled = by_hand.vjp(_signs(by_hand, shape, count, seed))
    rows = torch.cat([value.flatten(1) for value in pulled.values()], dim=1).double()
    gram = rows @ rows.mT
    squares = gram.square().sum() - gram.diagonal().square().sum()
    return float((gram.trace() / count) ** 2 / (squares / (count * (count - 1))))
