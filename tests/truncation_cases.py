"""Networks and points for the tests of truncation."""

import itertools
from typing import Any

import torch
from torch import Tensor


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(width: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(noise(width, width, seed=seed)).Q


def near(got: Tensor, expected: Any, tolerance: float) -> None:
    assert float((got - expected).abs().max()) <= tolerance


def network(widths: list[int], seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Well-conditioned layers: corners of orthogonal matrices with a perturbation."""
    weights, biases = [], []
    for place, (before, after) in enumerate(itertools.pairwise(widths)):
        corner = orthogonal(max(before, after), seed + place)[:after, :before]
        weights.append(corner + 0.05 * noise(after, before, seed=seed + 50 + place))
        biases.append(0.3 * noise(after, seed=seed + 100 + place))
    return weights, biases


def forward(layers: tuple[list[Tensor], list[Tensor]], points: Tensor) -> list[Tensor]:
    """x^(ℓ), and the output."""
    states = [points]
    for weight, bias in zip(*layers, strict=True):
        states.append((states[-1] @ weight.mT + bias).relu())
    states[-1] = states[-2] @ layers[0][-1].mT + layers[1][-1]
    return states[1:]
