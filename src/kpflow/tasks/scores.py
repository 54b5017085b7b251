"""Scores that several tasks share: outputs near the target, the sign of a decision, and the variance explained."""

import torch
from jaxtyping import Float
from torch import Tensor

from .trials import Trials

__all__ = ["decision", "explained", "within"]


def within(outputs: Float[Tensor, "B T O"], trials: Trials, tolerance: float) -> float:
    """The fraction of outputs with weight that are closer to their target than `tolerance`."""
    weighted = trials.mask > 0
    right = (outputs - trials.targets).abs() < tolerance
    return float((right & weighted).sum() / weighted.sum())


def explained(outputs: Float[Tensor, "B T O"], trials: Trials) -> float:
    """R² = 1 − Σ m (ŷ − y)² / Σ m (y − ȳ)², ȳ the weighted mean of each channel; NaN where targets do not vary."""
    mask, targets = trials.mask.double(), trials.targets.double()
    mean = (mask * targets).sum(dim=(0, 1)) / mask.sum(dim=(0, 1)).clamp_min(torch.finfo(torch.float64).tiny)
    total = (mask * (targets - mean).square()).sum()
    residual = (mask * (targets - outputs.double()).square()).sum()
    return float(1 - residual / total) if float(total) > 0 else float("nan")


def decision(signal: Float[Tensor, "B T O"], trials: Trials) -> Float[Tensor, "B O"]:
    """The mean of a signal over the steps with weight, of each trial and channel; 0 where there are none."""
    weight = trials.mask.double()
    return (weight * signal.double()).sum(dim=1) / weight.sum(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
