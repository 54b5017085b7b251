"""Prompts of linear regression, and the softmax attention that reads them."""

import math
from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from .draws import normal

__all__ = ["attend", "regression_prompts", "sampled_loss"]


def attend(prompts: Tensor, model: Mapping[str, Tensor]) -> Tensor:
    """Σ_h OV_h·Σ_l z_l softmax_l(z_lᵀ KQ_h x_q) of tokens z = (x, y), the query last, `[B, 1]`.

    Example:
        >>> model = {"key": torch.zeros(1, 2, 1), "value": torch.tensor([[0.0, 1.0]])}
        >>> attend(torch.tensor([[[1.0, 2.0], [1.0, 4.0], [1.0, 0.0]]]), model)  # no keys: the mean of y
        tensor([[3.]])
    """
    tokens, query = prompts[:, :-1], prompts[:, -1, :-1]
    scores = tokens @ (model["key"] @ query[:, None, :, None])[..., 0].mT  # [B, L, heads]
    read = torch.softmax(scores, dim=1).mT @ tokens  # [B, heads, d + 1]
    return (read * model["value"]).sum(dim=(1, 2))[:, None]


def regression_prompts(count: int, size: int, length: int, noise: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Prompts `[B, L + 1, d + 1]`, of which the last holds the query and 0, and their targets `[B, 1]`.

    Example:
        >>> [tuple(part.shape) for part in regression_prompts(3, 4, 5, 0.1, Generator())]
        [(3, 6, 5), (3, 1)]
    """
    x, beta = normal(generator, count, length + 1, size), normal(generator, count, size, 1) / math.sqrt(size)
    y = x @ beta + math.sqrt(noise) * normal(generator, count, length + 1, 1)
    target = y[:, -1].clone()
    y[:, -1] = 0.0
    return torch.cat([x, y], dim=2), target


def sampled_loss(model: Mapping[str, Tensor], length: int, noise: float, generator: Generator) -> float:
    """Mean square error over 20 000 prompts.

    Example:
        >>> nothing = {"key": torch.zeros(1, 2, 1).double(), "value": torch.zeros(1, 2).double()}
        >>> abs(sampled_loss(nothing, 2, 0.0, Generator().manual_seed(0)) - 1) < 0.1  # the variance of the targets
        True
    """
    losses = []
    for _ in range(40):
        prompts, target = regression_prompts(500, model["key"].shape[2], length, noise, generator)
        losses.append((attend(prompts, model) - target).square().mean())
    return float(torch.stack(losses).mean())
