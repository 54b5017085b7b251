"""States to start searches from: those of trajectories, their convex mixes, and noise around them."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_finite, check_generator, check_positive, check_range, check_tensor

__all__ = ["mixed", "seeds_from"]

MOST = 6
"""The most states in a mix."""


def seeds_from(
    trajectories: Any,
    n: int,
    *,
    noise: float = 0.0,
    mix: float = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """States to search fixed points from: n of them, h = Σⱼ wⱼ hⱼ + noise σ ∘ ξ.

    A fraction 1 − `mix` of them are states of the trajectories, each at most once as long as there are enough (one
    member, w = 1); the others are convex mixes of 2 to 6 states with Dirichlet(1, ..., 1) weights. Trajectories stay
    near stable points; mixes lie between them, where the saddles are. ξ is white, and σ the standard deviation of each
    unit over the trajectories.

    Args:
        trajectories: States of trajectories, such as those of the epoch whose input is held, shape `[*, H]`.
        n: How many seeds.
        noise: Size of the noise in units of σ.
        mix: Fraction of mixes, between 0 and 1.
        generator: Source of randomness; None for a fresh one seeded with 0.

    Returns:
        Seeds of the dtype and on the device of `trajectories`, shape `[n, H]`: states first, then mixes.

    Raises:
        TypeError: `trajectories` is no floating-point tensor, or `generator` none.
        ValueError: `trajectories` has no state or is not finite, or a number is out of range.

    Example:
        >>> states = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> seeds = seeds_from(states, 100, mix=1.0)
        >>> seeds.shape, bool(((seeds >= 0).all(dim=1) & (seeds.sum(dim=1) <= 1)).all())
        (torch.Size([100, 2]), True)
    """
    check_tensor("trajectories", trajectories)
    if trajectories.ndim < 2 or not trajectories.numel():
        raise ValueError(
            f"`trajectories` must hold at least one state, shape (*, H); got {tuple(trajectories.shape)}. Give states "
            "[B, T, H], or [n, H]."
        )
    check_positive("n", n, integer=True)
    check_range("noise", noise, 0)
    check_range("mix", mix, 0, 1)
    check_finite("trajectories", trajectories)
    source = check_generator("generator", generator, trajectories.device)
    states = trajectories.detach().flatten(0, -2)
    mixes = round(n * mix)
    seeds = torch.cat([_drawn(states, n - mixes, source), mixed(states, mixes, source)])
    if noise == 0:
        return seeds
    white = torch.randn(seeds.shape, generator=source, dtype=seeds.dtype, device=seeds.device)
    return seeds + noise * states.std(dim=0, correction=0) * white


def mixed(states: Float[Tensor, "m H"], n: int, generator: torch.Generator) -> Float[Tensor, "n H"]:
    """Convex mixes of 2 to 6 states, with Dirichlet(1, ..., 1) weights."""
    like = {"generator": generator, "device": states.device}
    members = torch.randint(len(states), (n, MOST), **like)
    count = torch.randint(2, MOST + 1, (n, 1), **like)
    weights = -torch.rand(n, MOST, dtype=states.dtype, **like).clamp_min(1e-30).log()  # exponential
    weights = torch.where(torch.arange(MOST, device=states.device) < count, weights, 0.0)
    weights = weights / weights.sum(dim=1, keepdim=True)
    return (weights[:, :, None] * states[members]).sum(dim=1)


def _drawn(states: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Different states as long as there are enough, then the same ones once more."""
    order = torch.randperm(len(states), generator=generator, device=states.device)
    return states[order.repeat(-(-n // len(states)))[:n]]
