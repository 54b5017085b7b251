"""Optimisers: time per step beside SGD, and steps through a bifurcation beside SGD, Adam, the full natural gradient."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

import kpflow as kp
from kpflow.optim import NaturalGradient

from .timing import Cost, measured

__all__ = ["run", "steps_to", "student_and_teacher"]

STEPS = 10
"""Steps of each optimiser in one timed call: two refreshes of the factor."""

LOSS = 1e-4

LIMIT = 300

RATES = (0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3)
"""Grid of the learning rates that every optimiser may choose from; the natural ones also have 0.7 and 1."""

Make = Callable[[Iterable[Tensor], float], torch.optim.Optimizer]

PASSED: dict[str, Make] = {
    "SGD": lambda params, lr: torch.optim.SGD(params, lr=lr),
    "Adam": lambda params, lr: torch.optim.Adam(params, lr=lr),
    "natural gradient, full (rank 64 of 64), damping 1e-2": lambda params, lr: NaturalGradient(
        params, lr=lr, rank=64, form="damped", damping=1e-2, refresh=1
    ),
    "natural gradient, damped, rank 16, damping 1e-2": lambda params, lr: NaturalGradient(
        params, lr=lr, rank=16, form="damped", damping=1e-2, refresh=1
    ),
    "natural gradient, flat, rank 3": lambda params, lr: NaturalGradient(params, lr=lr, rank=3, refresh=1),
    "natural gradient, flat, rank 3, refreshed every 5": lambda params, lr: NaturalGradient(params, lr=lr, rank=3),
}


def run(repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """Rows of times per step, then rows of steps to a loss."""
    return [*_overheads(repeats, device), *_passages()]


def student_and_teacher() -> tuple[Tensor, Callable[[Tensor], Tensor], Tensor]:
    """A symmetric tanh network whose leading multiplier must grow from 0.7 to 1.3, through a pitchfork.

    Returns:
        The student's first weight, the states of a weight, and the teacher's states; 8 units, 25 steps, 16 trials.
    """
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    initial = 0.1 * torch.randn(16, 8, generator=generator, dtype=torch.float64)
    rest = torch.linspace(-0.4, 0.4, 8, dtype=torch.float64)

    def weight(top: float) -> Tensor:
        return basis @ torch.diag(torch.cat([rest[:-1], torch.tensor([top], dtype=torch.float64)])) @ basis.mT

    def states(weight: Tensor) -> Tensor:
        path = [initial]
        for _ in range(25):
            path.append(torch.tanh(path[-1] @ weight.mT))
        return torch.stack(path[1:], dim=1)

    return weight(0.7), states, states(weight(1.3)).detach()


def steps_to(loss: float, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], limit: int) -> int:
    """Steps of an optimiser until the student's loss is below `loss`; `limit` if it does not get there."""
    start, states_of, target = student_and_teacher()
    weight = nn.Parameter(start)
    optimiser = make([weight])

    def closure() -> tuple[Tensor, Tensor]:
        states = states_of(weight)
        return 0.5 * (states - target).square().sum(-1).mean(), states

    for step in range(limit):
        if isinstance(optimiser, NaturalGradient):
            reached = optimiser.step(closure)
        else:
            reached, _ = closure()
            optimiser.zero_grad()
            reached.backward()
            optimiser.step()
        if not bool(torch.isfinite(reached.detach())):
            return limit
        if float(reached.detach()) < loss:
            return step
    return limit


def _passages() -> list[dict[str, Any]]:
    """Fewest steps of each optimiser over the grid of its rates; one that diverges or fails counts as the limit."""
    rows = []
    for name, make in PASSED.items():
        rates = RATES if name in ("SGD", "Adam") else (*RATES, 0.7, 1.0)
        counts = {rate: _steps(make, rate) for rate in rates}
        best = min(counts, key=counts.__getitem__)
        rows.append(
            {
                "quantity": f"steps through a pitchfork to loss {LOSS:g}",
                "optimiser": name,
                "steps": counts[best],
                "rate": best,
                "steps_of_rates": [[rate, count] for rate, count in counts.items()],
            }
        )
    first = rows[0]["steps"]
    return [row | {"ratio_to_sgd": first / row["steps"]} for row in rows]


def _steps(make: Make, rate: float) -> int:
    try:
        return steps_to(LOSS, lambda params: make(params, rate), LIMIT)
    except ValueError:  # the natural gradient refuses a loss that is not finite
        return LIMIT


def _overheads(repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """Time per step at 64 trials, 50 steps, 64 units, as ratios to SGD's in the same round."""
    rows = []
    for name, kind in (("nn.RNN", nn.RNN), ("nn.GRU", nn.GRU)):
        calls = _optimisers(kind, device)
        for call in calls.values():
            call()
        rounds = [{key: _cost(call, device) for key, call in calls.items()} for _ in range(repeats)]
        for key in calls:
            costs = Cost.median([costs[key] for costs in rounds])
            ratios = sorted(costs[key].wall / costs["SGD"].wall for costs in rounds)
            rows.append(
                {
                    "quantity": f"time per step of {name}, 64 trials × 50 steps × 64 units",
                    "optimiser": key,
                    "milliseconds": 1e3 * costs.wall / STEPS,
                    "ratio_to_sgd": ratios[len(ratios) // 2],
                    "ratios": ratios,
                }
            )
    return rows


def _cost(call: Callable[[], None], device: torch.device) -> Cost:
    return measured(call, device)[1]


def _optimisers(kind: type[nn.RNN] | type[nn.GRU], device: torch.device) -> dict[str, Callable[[], None]]:
    """Calls that take `STEPS` steps each, on models of their own."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 50, 4, generator=generator).to(device)
    target = 0.1 * torch.randn(64, 50, 64, generator=generator).to(device)

    def fresh() -> tuple[nn.Module, Callable[[], tuple[Tensor, Tensor]]]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = kind(4, 64, batch_first=True).to(device)

        def closure() -> tuple[Tensor, Tensor]:
            states = model(inputs)[0]
            return (states - target).square().mean(), states

        return model, closure

    def plain(make: Make) -> Callable[[], None]:
        model, closure = fresh()
        optimiser = make(model.parameters(), 1e-3)

        def steps() -> None:
            for _ in range(STEPS):
                optimiser.zero_grad()
                closure()[0].backward()
                optimiser.step()

        return steps

    def natural(by_operators: bool) -> Callable[[], None]:
        model, closure = fresh()
        optimiser = NaturalGradient(model, lr=1e-3, rank=3, refresh=5)

        def jacobian() -> kp.operators.Operator:
            return kp.Ntk(kp.linearise(model, inputs, memory=2**26)).jacobian

        def steps() -> None:
            for _ in range(STEPS):
                optimiser.step(closure, jacobian=jacobian if by_operators else None)

        return steps

    return {
        "SGD": plain(PASSED["SGD"]),
        "Adam": plain(PASSED["Adam"]),
        "natural gradient, flat, rank 3, refreshed every 5, through operators": natural(True),
        "natural gradient, flat, rank 3, refreshed every 5, through the graph": natural(False),
    }
