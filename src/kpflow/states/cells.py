"""Recurrent networks of the field that PyTorch does not have: leaky rate networks, full and low-rank."""

from collections.abc import Callable
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kpflow._checks import check_generator, check_one_of, check_positive

__all__ = ["LowRankRNN", "RateRNN"]

Nonlinearity = Callable[[Tensor], Tensor]


@final
class RateRNN(nn.Module):
    """Leaky rate network.

    With the nonlinearity inside the weights (the default), z' = (1−α) z + α (W φ(z) + U x + b + ξ); outside,
    z' = (1−α) z + α φ(W z + U x + b + ξ). α = dt/τ, the time step over the membrane time constant. ξ is recurrent
    noise, given to the forward pass in training, with standard deviation σ √(2/α) in Yang et al. (2019); there is none
    otherwise, and none is linearised.

    Parameters are `weight_hh` (W, `[H, H]`, entries N(0, gain²/H)), `weight_ih` (U, `[H, I]`, entries N(0, 1/I)) and
    `bias` (b, `[H]`, zero at first).

    Args:
        input_size: I.
        hidden_size: H.
        alpha: dt/τ, in (0, 1].
        bias: Whether there is a b.
        nonlinearity: φ, any function that acts entry by entry.
        convention: "inside" or "outside".
        gain: g of the initial W; its spectral radius is about g.
        generator: Source of the initial weights; None for a fresh one seeded with 0.
        dtype: Of the parameters.
        device: Of the parameters.

    Raises:
        ValueError: A size is not positive, `alpha` is outside (0, 1], or `convention` is unknown; in the forward pass,
            the noise is not one for each trial, step and unit.

    Example:
        >>> rnn = RateRNN(3, 8, alpha=0.2)
        >>> noise = 0.05 * (2 / rnn.alpha) ** 0.5 * torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
        >>> rnn(torch.zeros(2, 5, 3), noise=noise).shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        alpha: float = 1.0,
        bias: bool = False,
        nonlinearity: Nonlinearity = torch.tanh,
        convention: Literal["inside", "outside"] = "inside",
        gain: float = 1.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        nn.Module.__init__(self)
        _check_sizes(input_size, hidden_size, alpha)
        check_one_of("convention", convention, ("inside", "outside"))
        draw = _draw(generator, dtype, device)
        self.hidden_size = hidden_size
        self.alpha = alpha
        self.nonlinearity = nonlinearity
        self.convention = convention
        self.weight_hh = nn.Parameter(draw(hidden_size, hidden_size) * gain / hidden_size**0.5)
        self.weight_ih = nn.Parameter(draw(hidden_size, input_size) / input_size**0.5)
        self.bias = nn.Parameter(torch.zeros_like(self.weight_ih[:, 0])) if bias else None

    def step(
        self, state: Float[Tensor, "*B H"], inputs: Float[Tensor, "*B I"], noise: Float[Tensor, "*B H"] | None = None
    ) -> Float[Tensor, "*B H"]:
        """One step, from z `[*, H]` and x `[*, I]` to z' `[*, H]`, with ξ `[*, H]` if any."""
        driven = _driven(self, inputs, noise)
        if self.convention == "inside":
            target = self.nonlinearity(state) @ self.weight_hh.mT + driven
        else:
            target = self.nonlinearity(state @ self.weight_hh.mT + driven)
        return (1 - self.alpha) * state + self.alpha * target

    def forward(
        self,
        inputs: Float[Tensor, "B T I"],
        initial: Float[Tensor, "B H"] | None = None,
        noise: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B T H"]:
        """States z of every step, from `initial` (zero by default), with ξ of every step if any."""
        return _unroll(self, inputs, initial, noise)


@final
class LowRankRNN(nn.Module):
    """Leaky rate network with recurrent weights of low rank, W = m nᵀ: z' = (1−α) z + α (m nᵀ φ(z) + U x + b + ξ).

    Parameters are `left` (m, `[H, R]`), `right` (nᵀ, `[R, H]`), `weight_ih` (U, `[H, I]`) and `bias` (b, `[H]`). m and
    n have entries N(0, 1/H) at first. ξ is recurrent noise as in `RateRNN`.

    Args:
        input_size: I.
        hidden_size: H.
        rank: R, at most H.
        alpha: dt/τ, in (0, 1].
        bias: Whether there is a b.
        nonlinearity: φ, any function that acts entry by entry.
        generator: Source of the initial weights; None for a fresh one seeded with 0.
        dtype: Of the parameters.
        device: Of the parameters.

    Raises:
        ValueError: As `RateRNN`, or `rank` exceeds `hidden_size`.

    Example:
        >>> rnn = LowRankRNN(3, 8, rank=2)
        >>> (rnn.left @ rnn.right).shape
        torch.Size([8, 8])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        rank: int,
        *,
        alpha: float = 1.0,
        bias: bool = False,
        nonlinearity: Nonlinearity = torch.tanh,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        nn.Module.__init__(self)
        _check_sizes(input_size, hidden_size, alpha)
        check_positive("rank", rank, integer=True)
        if rank > hidden_size:
            raise ValueError(f"`rank` must be at most `hidden_size` ({hidden_size}); got {rank}.")
        draw = _draw(generator, dtype, device)
        self.hidden_size = hidden_size
        self.alpha = alpha
        self.nonlinearity = nonlinearity
        self.left = nn.Parameter(draw(hidden_size, rank) / hidden_size**0.5)
        self.right = nn.Parameter(draw(rank, hidden_size) / hidden_size**0.5)
        self.weight_ih = nn.Parameter(draw(hidden_size, input_size) / input_size**0.5)
        self.bias = nn.Parameter(torch.zeros_like(self.weight_ih[:, 0])) if bias else None

    def step(
        self, state: Float[Tensor, "*B H"], inputs: Float[Tensor, "*B I"], noise: Float[Tensor, "*B H"] | None = None
    ) -> Float[Tensor, "*B H"]:
        """One step, from z `[*, H]` and x `[*, I]` to z' `[*, H]`, with ξ `[*, H]` if any."""
        driven = _driven(self, inputs, noise)
        recurrent = (self.nonlinearity(state) @ self.right.mT) @ self.left.mT
        return (1 - self.alpha) * state + self.alpha * (recurrent + driven)

    def forward(
        self,
        inputs: Float[Tensor, "B T I"],
        initial: Float[Tensor, "B H"] | None = None,
        noise: Float[Tensor, "B T H"] | None = None,
    ) -> Float[Tensor, "B T H"]:
        """States z of every step, from `initial` (zero by default), with ξ of every step if any."""
        return _unroll(self, inputs, initial, noise)


def _check_sizes(input_size: int, hidden_size: int, alpha: float) -> None:
    check_positive("input_size", input_size, integer=True)
    check_positive("hidden_size", hidden_size, integer=True)
    if not 0 < alpha <= 1:
        raise ValueError(f"`alpha` = dt/τ must be in (0, 1]; got {alpha!r}.")


def _draw(
    generator: torch.Generator | None, dtype: torch.dtype | None, device: torch.device | str
) -> Callable[[int, int], Tensor]:
    source = check_generator("generator", generator, torch.device(device))
    return lambda rows, columns: torch.randn(rows, columns, generator=source, dtype=dtype, device=device)


def _driven(cell: RateRNN | LowRankRNN, inputs: Tensor, noise: Tensor | None) -> Tensor:
    """U x + b + ξ."""
    return sum((term for term in (cell.bias, noise) if term is not None), start=inputs @ cell.weight_ih.mT)


def _unroll(cell: RateRNN | LowRankRNN, inputs: Tensor, initial: Tensor | None, noise: Tensor | None) -> Tensor:
    B, T, _ = inputs.shape
    if noise is not None and noise.shape != (B, T, cell.hidden_size):
        raise ValueError(
            f"`noise` must have shape ({B}, {T}, {cell.hidden_size}), for trial, time and unit; got "
            f"{tuple(noise.shape)}. Draw it for each unit."
        )
    state = inputs.new_zeros(B, cell.hidden_size) if initial is None else initial
    states = []
    for x, xi in zip(inputs.unbind(1), [None] * T if noise is None else noise.unbind(1), strict=True):
        state = cell.step(state, x, xi)
        states.append(state)
    return torch.stack(states, dim=1)
