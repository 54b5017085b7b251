"""Fixed points of a GRU that holds three bits: how many are found, in how long, beside a threshold on ½‖F(h) − h‖²."""

from typing import Any

import torch
from torch import Tensor, nn

import kpflow as kp
from kpflow.dynamics import FixedPoints, find_fixed_points, seeds_from

from .timing import Cost, measured

__all__ = ["TASK", "by_threshold", "compared", "run", "trained"]

TASK = kp.tasks.FlipFlop(K=3, steps=80, p=0.2, first="pulse", sigma=0.1)
"""Pulses that are frequent and noisy enough for attractors, not slow drifts, to hold the bits."""

SEEDS, REFERENCE = 1024, 8192

UNIQUE, THRESHOLD, ITERATIONS = 1e-3, 1e-6, 5000
"""Of the baseline: states nearer than the first are one; ½‖F(h) − h‖² that counts as a point; steps of Adam."""


def run(repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """On one thread, which is fastest at this size; the times of both are CPU seconds of the process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, training = measured(lambda: trained(0).to(device), device)
        return [{**row, "training_seconds": training.wall} for row in compared(model, SEEDS, REFERENCE, repeats)]
    finally:
        torch.set_num_threads(threads)


def trained(seed: int, steps: int = 1500, width: int = 32) -> nn.GRU:
    """A GRU with a linear read-out, trained on the task with Adam."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, readout = nn.GRU(3, width, batch_first=True), nn.Linear(width, 3)
    optimiser = torch.optim.Adam([*model.parameters(), *readout.parameters()], lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        trials = TASK.sample(64, generator=generator)
        error = readout(model(trials.inputs.float())[0]) - trials.targets.float()
        optimiser.zero_grad()
        (error.square() * trials.mask.float()).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.requires_grad_(False)


def compared(model: nn.GRU, count: int, many: int, repeats: int, iterations: int = ITERATIONS) -> list[dict[str, Any]]:
    """One row a method, against all points found from many seeds."""
    device = model.weight_hh_l0.device
    inputs = TASK.sample(64, generator=torch.Generator().manual_seed(5)).inputs
    held = model(inputs.to(device, model.weight_hh_l0.dtype))[0]
    zero = torch.zeros(3, device=device)
    reference = find_fixed_points(model, zero, seeds_from(held, many, mix=1.0, noise=0.1))
    rows = []
    for name, mix in (("states of trajectories", 0.0), ("half of them convex mixes", 0.5)):
        seeds = seeds_from(held, count, mix=mix)
        pairs = [measured(lambda seeds=seeds: find_fixed_points(model, zero, seeds), device) for _ in range(repeats)]
        points, ours = pairs[0][0], Cost.median([cost for _, cost in pairs])
        rows.append({"method": "find_fixed_points", "seeds": f"{count}, {name}", **_ours(points, reference, ours)})
        for rate in (1e-2, 1.0):
            found, cost = measured(lambda seeds=seeds, rate=rate: by_threshold(model, seeds, rate, iterations), device)
            method = f"threshold on ½‖F(h) − h‖², {iterations} steps of Adam from {rate:g} down"
            rows.append({"method": method, "seeds": f"{count}, {name}", **_theirs(found, reference, cost, ours)})
    return rows


def by_threshold(model: nn.GRU, seeds: Tensor, rate: float, iterations: int) -> Tensor:
    """Adam on the mean of ½‖F(h) − h‖² at a rate that falls to zero along a cosine, then the states below a limit."""
    cell = nn.GRUCell(model.input_size, model.hidden_size).to(seeds)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in model.state_dict().items()})
    cell.requires_grad_(False)
    states, zero = seeds.clone().requires_grad_(), seeds.new_zeros(len(seeds), model.input_size)
    optimiser = torch.optim.Adam([states], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    for _ in range(iterations):
        optimiser.zero_grad()
        (0.5 * (cell(zero, states) - states).square().sum(dim=1)).mean().backward()
        optimiser.step()
        schedule.step()
    ends = states.detach()
    speed = 0.5 * (cell(zero, ends) - ends).square().sum(dim=1)
    distinct: list[Tensor] = []
    for state in ends[speed < THRESHOLD]:
        if all(float((state - other).norm()) > UNIQUE for other in distinct):
            distinct.append(state)
    return torch.stack(distinct) if distinct else ends[:0]


def _ours(points: FixedPoints, reference: FixedPoints, cost: Cost) -> dict[str, Any]:
    recovered = _recovered(points.states, reference, 1e-6)
    return {
        **_counts(len(points.states), recovered, reference),
        "index_sum": points.index_sum,
        "verdict": points.index_verdict.name,
        "certified": int(points.certified.sum()),
        "seeds_added": points.added,
        "seconds": cost.wall,
        "cpu_seconds": cost.cpu,
        "ratio": 1.0,
    }


def _theirs(found: Tensor, reference: FixedPoints, cost: Cost, ours: Cost) -> dict[str, Any]:
    """Its points are known to about 1e-2 only: within that, one of the reference is recovered."""
    return {
        **_counts(len(found), _recovered(found.double(), reference, 1e-2), reference),
        "seconds": cost.wall,
        "cpu_seconds": cost.cpu,
        "ratio": cost.cpu / ours.cpu,
    }


def _counts(reported: int, recovered: int, reference: FixedPoints) -> dict[str, Any]:
    return {
        "reported": reported,
        "reference": len(reference.states),
        "reference_index_sum": reference.index_sum,
        "missed": len(reference.states) - recovered,
        "not_a_point_or_twice": reported - recovered,
    }


def _recovered(states: Tensor, reference: FixedPoints, within: float) -> int:
    """How many points of the reference are near one of the states."""
    return int((torch.cdist(reference.states, states) < within).any(dim=1).sum()) if len(states) else 0
