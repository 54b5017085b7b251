"""Linearisations with other credit: the recorded states, with a propagator that forgets or that is fed back otherwise.

Their P is not that of the network: learning rules use its transpose in the place of back-propagation. That of `damped`
is the propagator of the network under teacher forcing.
"""

import dataclasses
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_generator, check_positive

from .base import Linearisation
from .gates import Times
from .recurrent import RecurrentLinearisation
from .transitions import GatedTransition, Transition

__all__ = ["damped", "fed_back", "windowed"]


def windowed(linearisation: Linearisation, window: int) -> RecurrentLinearisation:
    """The same states, detached before the steps 0, `window`, 2 `window`, …: back-propagation stops there.

    Args:
        linearisation: Of a recurrent network.
        window: Steps that back-propagation goes at most; 1 for none.

    Raises:
        ValueError: The linearisation is that of a graph, or `window` is no positive whole number.
    """
    check_positive("window", window, integer=True)
    steps = torch.arange(_recurrent(linearisation).states.shape[1])
    return damped(linearisation, (steps % window != 0).double())


def damped(linearisation: Linearisation, factors: Tensor) -> RecurrentLinearisation:
    """The same states, with factors c_t A_t in the place of A_t in every layer.

    Args:
        linearisation: Of a recurrent network.
        factors: c, shape `[T]`.

    Raises:
        ValueError: The linearisation is that of a graph.
    """
    given = _recurrent(linearisation)
    c = factors.to(given.states.device, given.states.dtype)
    layers = [dataclasses.replace(layer, transition=_Damped(layer.transition, c)) for layer in given.layers]
    return given.with_layers(layers)


def fed_back(
    linearisation: Linearisation, weights: list[Tensor] | None = None, generator: torch.Generator | None = None
) -> RecurrentLinearisation:
    """The same states, with other recurrent weights B in the derivative of each step, A_t = D_t B E_t + carry_t.

    Args:
        linearisation: Of a recurrent network whose weights are known, with one layer or several.
        weights: B of each layer, of the shape of its recurrent weights; None for random ones of their root mean square.
        generator: Draws them; a fresh one with seed 0 if None.

    Raises:
        ValueError: The linearisation is that of a graph or of an unknown step, or a shape does not fit.
    """
    given = _recurrent(linearisation)
    source = check_generator("generator", generator, given.states.device)
    changed = []
    for i, layer in enumerate(given.unformed):
        if not isinstance(layer.transition, GatedTransition):
            raise ValueError(
                "`linearisation` must have known recurrent weights for feedback weights in their place; this step is "
                "known by automatic differentiation alone. Use nn.RNN, GRU, LSTM, RateRNN or LowRankRNN."
            )
        weight = layer.transition.weight
        other = _random_like(weight, source) if weights is None else weights[i]
        if other.shape != weight.shape or other.dtype != weight.dtype:
            raise ValueError(
                f"`weights[{i}]` must have shape {tuple(weight.shape)} in {weight.dtype}, of the recurrent weights; "
                f"got {tuple(other.shape)} in {other.dtype}."
            )
        changed.append(dataclasses.replace(layer, transition=dataclasses.replace(layer.transition, weight=other)))
    return given.with_layers(changed)


def _random_like(weight: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(weight.shape, dtype=weight.dtype, device=weight.device, generator=generator)
    return noise * weight.square().mean().sqrt()


def _recurrent(linearisation: Linearisation) -> RecurrentLinearisation:
    if not isinstance(linearisation, RecurrentLinearisation):
        raise ValueError(
            "`linearisation` must be that of a recurrent network, whose states have times; this one is of a graph. "
            "Give the recurrent core, with route='recurrent'."
        )
    return linearisation


@final
@dataclasses.dataclass(frozen=True, eq=False)
class _Damped(Transition):
    """c_t A_t."""

    base: Transition
    factors: Float[Tensor, " T"]

    def add_product(self, times: Times, state: Tensor, out: Tensor) -> None:
        self.base.add_product(times, state * self._at(times), out)

    def add_product_adjoint(self, times: Times, state: Tensor, out: Tensor) -> None:
        self.base.add_product_adjoint(times, state * self._at(times), out)

    @property
    def nbytes(self) -> int:
        return self.base.nbytes

    def _at(self, times: Times) -> Tensor:
        """A number for a step, `[T, 1]` for a range."""
        return self.factors[times].unsqueeze(-1)
