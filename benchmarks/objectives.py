"""Alignment of the objectives of many tasks at all stages, beside gradients and changes by autograd, one at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import kpflow as kp

from .measures import peak_gib, relative_difference
from .timing import Cost, measured

__all__ = ["BASELINE", "Network", "by_autograd", "row", "run"]

BASELINE = "one objective at a time: backward() for its gradient, torch.func.jvp for its change of the states"
"""Two of the five stages; nothing that it knows gives the adjoint, or what a step changes at once."""

Losses = dict[str, Callable[[Tensor], Tensor]]


CORES: dict[str, Callable[[int, int], nn.Module]] = {
    "rate network": lambda inputs, units: kp.states.cells.RateRNN(inputs, units, alpha=0.2),
    "GRU": lambda inputs, units: nn.GRU(inputs, units, batch_first=True),
}


class Network(nn.Module):
    """A recurrent core and a linear read-out."""

    def __init__(self, kind: str, inputs: int, units: int, outputs: int) -> None:
        super().__init__()
        self.core = CORES[kind](inputs, units)
        self.read = nn.Linear(units, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.read(_states(self.core(inputs)))


def run(_repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """On one thread, once, since each takes a while: the times are CPU seconds of the process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row(kind, 15, 32, 150, 256, device) for kind in CORES]
    finally:
        torch.set_num_threads(threads)


def row(kind: str, tasks: int, trials: int, steps: int, units: int, device: torch.device) -> dict[str, Any]:
    """`tasks` objectives, each of its own trials."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(tasks * trials, steps, 3 + tasks, generator=generator).to(device)
    targets = torch.randn(tasks * trials, steps, 3, generator=generator).to(device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Network(kind, 3 + tasks, units, 3).to(device)
    losses: Losses = {
        f"task {k}": lambda y, rows=slice(k * trials, (k + 1) * trials): (y[rows] - targets[rows]).square().mean()
        for k in range(tasks)
    }
    lin, linearised = measured(lambda: kp.linearise(model, inputs, core="core"), device)
    found, ours = measured(lambda: kp.flow.objectives(lin, losses), device)
    peak = peak_gib()
    (gradients, changes), theirs = measured(lambda: by_autograd(model, inputs, losses), device)
    total = linearised + ours
    return {
        "quantity": f"{tasks} objectives, 5 stages, {kind} of {units}, {tasks * trials} trials of {steps} steps",
        "baseline": BASELINE,
        "relative_difference": relative_difference(found.gradients, gradients),
        "relative_difference_of_alignments": relative_difference(found.alignments["change"], changes),
        **_seconds("kpflow", total),
        **_seconds("alone", ours),
        **_seconds("baseline", theirs),
        "ratio": theirs.cpu / total.cpu,
        "peak_gib": peak,
    }


def _seconds(name: str, cost: Cost) -> dict[str, float]:
    return {f"{name}_seconds": cost.wall, f"{name}_cpu_seconds": cost.cpu}


def _states(found: Any) -> Tensor:
    """Of what a core gives: those of nn.GRU come with the last one beside them."""
    return found[0] if isinstance(found, tuple) else found


def by_autograd(model: Network, inputs: Tensor, losses: Losses) -> tuple[Tensor, Tensor]:
    """Gradients, and the cosines between the changes of the states that they make, `[K, P]` and `[K, K]`."""
    parameters = {name: value.detach() for name, value in model.core.named_parameters()}

    def states(values: dict[str, Tensor]) -> Tensor:
        return _states(torch.func.functional_call(model.core, values, (inputs,)))

    gradients, changes = [], []
    for loss in losses.values():
        model.zero_grad()
        loss(model(inputs)).backward()
        gradient = {name: value.grad for name, value in model.core.named_parameters()}
        gradients.append(torch.cat([value.grad.flatten() for value in model.parameters()]))
        changes.append(torch.func.jvp(states, (parameters,), (gradient,))[1].flatten())
    rows = nn.functional.normalize(torch.stack(changes), dim=1)  # in the dtype of the network, as one writes it
    return torch.stack(gradients), (rows @ rows.mT).double().cpu()
