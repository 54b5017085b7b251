"""Lyapunov exponents of a driven GRU, against Jacobians by vmap(jacrev) with a QR factorisation at every step."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

import kpflow as kp

from .measures import relative_difference
from .timing import paired

__all__ = ["by_jacobians", "run"]

WARMUP = 100


def run(repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """One row for each number of exponents; both in float64, from the same states and frames."""
    return [row(128, 16, 500, k, WARMUP, repeats, device) for k in (10, 128)]


def row(size: int, trials: int, steps: int, k: int, warmup: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Seconds of both, and how far the exponents of all trials differ."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(trials, steps, 10, generator=generator, dtype=torch.float64).to(device)
    initial = inputs.new_zeros(trials, size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cell = nn.GRUCell(10, size, dtype=torch.float64, device=device)

    def ours() -> Tensor:
        return kp.dynamics.lyapunov_spectrum(cell, inputs, initial, k=k, warmup=warmup).trials

    def baseline() -> Tensor:
        return by_jacobians(cell, inputs, initial, k, warmup)

    times = paired(baseline, ours, repeats, device)
    return {
        "quantity": f"{k} Lyapunov exponents of a GRU of {size}, {trials} trials of {steps} steps",
        "baseline": "vmap(jacrev) and QR, every step",
        **times,
        "relative_difference": relative_difference(ours(), baseline()),
    }


@torch.no_grad()
def by_jacobians(cell: nn.GRUCell, inputs: Tensor, initial: Tensor, k: int, warmup: int) -> Tensor:
    """Benettin's method as one writes it by hand, all trials at once: exponents `[B, K]`."""
    jacobians = vmap(jacrev(lambda h, x: cell(x, h)))
    generator = torch.Generator(inputs.device).manual_seed(0)
    noise = torch.randn(*initial.shape, k, generator=generator, dtype=initial.dtype, device=initial.device)
    frame, state = torch.linalg.qr(noise)[0], initial
    total = initial.new_zeros(len(initial), k)
    for t, x in enumerate(inputs.unbind(1)):
        frame, triangle = torch.linalg.qr(jacobians(state, x) @ frame)
        state = cell(x, state)
        if t >= warmup:
            total += triangle.diagonal(dim1=1, dim2=2).abs().log()
    return total / (inputs.shape[1] - warmup)
