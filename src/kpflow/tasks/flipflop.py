"""FlipFlop: K bits, each remembering the sign of its last pulse."""

import dataclasses
from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpflow._checks import check_one_of, check_positive, check_range

from .base import Task, check_flag, check_noise, need_condition, noise_per_step, trials_of
from .scores import within
from .trials import Trials

__all__ = ["FlipFlop"]

MAX_BITS = 62  # the 2^K patterns are numbered in int64


@final
@dataclasses.dataclass(frozen=True)
class FlipFlop(Task):
    """K bits: each of K outputs holds the sign of the last pulse on its own input.

    u_k(t) = ±1 with probability p, each sign equally likely, else 0, independently for every bit and step;
    y_k(t) = the last non-zero u_k(s), s ≤ t, and 0 before the first one.

    There is one epoch, `memory`, the whole trial; its static input, between pulses, is 0. The condition `final` is
    the number Σ_k 2^k [y_k > 0] of the pattern held at the last step, or −1 where a bit had no pulse yet.

    On the grid, trial b begins with pulses on all bits, which set pattern b mod 2^K; then, every round(1/(p K)) steps,
    one bit is pulsed to the opposite of what it holds: bit ⌊b/2^K⌋ mod K first, the next one after it, and so on
    cyclically. So B = 2^K trials meet every pattern, B = K 2^K make every transition of one bit first, and there are as
    many pulses as at random. `first` plays no role.

    With `anti` there is one more input, s = ±1 throughout the trial, equally likely, and y_k is multiplied by it. s is
    the condition `context`. On the grid even trials have s = 1 and odd ones s = −1, and the pulses of both are those
    of trial ⌊b/2⌋ above.

    An output is right where |ŷ − y| < 1/2. `score` returns `accuracy`, the fraction of right outputs among those with
    weight, and `perfect_trials`, the fraction of trials whose outputs with weight are all right.

    Args:
        K: Number of bits.
        steps: T.
        p: Probability of a pulse per bit and step.
        sigma: σ; the noise per step is σ √(2 τ/dt), 0.042 by default.
        first: "zero" for targets that are 0 until the first pulse; "pulse" for pulses on all bits at the first step.
        blind: Steps without weight for a bit, from each step on at which its target changes.
        dt: Duration of a step, ms.
        tau: Time constant τ that the noise is scaled for, ms.
        anti: Whether an input says that every output is to be turned round.

    Raises:
        ValueError: A parameter is out of range.
        TypeError: `anti` is no bool.

    Source: Sussillo & Barak (2013). Defaults: Hazelden et al. (2025), arXiv 2507.06381. FixedPointFinder has
    `steps=64, p=0.5, first="pulse"`; Computation-through-Dynamics `steps=500, p=0.01 … 0.02`, with a `blind` of 4.

    Example:
        >>> task = FlipFlop(K=2, steps=6, p=0.25)
        >>> trials = task.sample(4, mode="grid", noise=False)
        >>> trials.inputs[2].int().T.tolist()
        [[-1, 0, 1, 0, 0, 0], [1, 0, 0, 0, -1, 0]]
        >>> trials.targets[2].int().T.tolist()
        [[-1, -1, 1, 1, 1, 1], [1, 1, 1, 1, -1, -1]]
    """

    K: int = 3
    steps: int = 90
    p: int | float = 0.05
    sigma: int | float = 0.03
    first: str = "zero"
    blind: int = 0
    dt: int | float = 20.0
    tau: int | float = 20.0
    anti: bool = False

    def __post_init__(self) -> None:
        check_range("K", self.K, 1, MAX_BITS, integer=True)
        check_positive("steps", self.steps, integer=True)
        check_range("p", self.p, 0, 1)
        check_one_of("first", self.first, ("zero", "pulse"))
        check_range("blind", self.blind, 0, integer=True)
        check_noise(self)
        check_flag("anti", self.anti)

    @property
    def name(self) -> str:
        return "flipflop_anti" if self.anti else "flipflop"

    @property
    def input_labels(self) -> tuple[str, ...]:
        return (*(f"pulse {k}" for k in range(self.K)), *(("context",) if self.anti else ()))

    @property
    def output_labels(self) -> tuple[str, ...]:
        return tuple(f"bit {k}" for k in range(self.K))

    @property
    def epoch_names(self) -> tuple[str, ...]:
        return ("memory",)

    @property
    def condition_names(self) -> tuple[str, ...]:
        return ("final", "context") if self.anti else ("final",)

    @property
    def noise_std(self) -> float:
        return noise_per_step(self.sigma, self.dt, self.tau)

    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:  # noqa: ARG002
        trial = torch.arange(B)
        if generator is None:
            pulses = self._grid_pulses(trial // 2 if self.anti else trial)  # [B, T, K]
            context = 1.0 - 2.0 * (trial % 2).double()
        else:
            pulses = self._random_pulses(B, generator)
            context = _signs((B,), generator) if self.anti else torch.ones(B, dtype=torch.float64)
        targets = _last_nonzero(pulses)
        inputs = pulses
        conditions = {"final": _pattern_number(targets[:, -1])}
        if self.anti:
            targets = targets * context[:, None, None]
            inputs = torch.cat((pulses, context[:, None, None].expand(B, self.steps, 1)), dim=2)
            conditions = {"final": _pattern_number(targets[:, -1]), "context": context}
        length = torch.full((B,), self.steps)
        return trials_of(
            self,
            inputs=inputs,
            targets=targets,
            mask=self._weights(targets),
            epochs={"memory": (torch.zeros_like(length), length)},
            conditions=conditions,
        )

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:
        silent = zeros[:, None].repeat(1, self.K)
        if not self.anti:
            return silent
        return torch.cat((silent, need_condition(conditions, "context", epoch)[:, None]), dim=1)

    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        weighted = trials.mask > 0
        right = (outputs - trials.targets).abs() < 0.5
        return {
            "accuracy": within(outputs, trials, 0.5),
            "perfect_trials": float((right | ~weighted).all(dim=2).all(dim=1).double().mean()),
        }

    def _random_pulses(self, B: int, generator: torch.Generator) -> Float[Tensor, "B T K"]:
        shape = (B, self.steps, self.K)
        pulsed = torch.rand(shape, generator=generator, dtype=torch.float64) < self.p
        signs = _signs(shape, generator)
        if self.first == "pulse":
            pulsed[:, 0] = True
        return signs * pulsed

    def _grid_pulses(self, trial: Int[Tensor, " B"]) -> Float[Tensor, "B T K"]:
        B, bits = len(trial), torch.arange(self.K)
        start = 2.0 * ((trial[:, None] >> bits) & 1) - 1  # [B, K], bit k of the number b mod 2^K
        period = max(1, round(1 / (self.p * self.K))) if self.p > 0 else self.steps
        times = torch.arange(period, self.steps, period)
        flipped = ((trial >> self.K)[:, None] + torch.arange(len(times))) % self.K  # [B, number of flips]
        pulsed = torch.zeros(B, self.steps, self.K, dtype=torch.float64)
        pulsed[:, times] = torch.nn.functional.one_hot(flipped, self.K).double()
        held = start[:, None, :] * (1 - 2 * (pulsed.cumsum(dim=1) % 2))  # the sign changes at every pulse, [B, T, K]
        pulsed[:, 0] = 1
        return held * pulsed

    def _weights(self, targets: Float[Tensor, "B T K"]) -> Float[Tensor, "B T K"]:
        """The mask: 1, but 0 for `blind` steps from each change of a bit's target; the first step changes from 0."""
        changed = torch.diff(targets, dim=1, prepend=torch.zeros_like(targets[:, :1])) != 0
        step = torch.arange(self.steps)[None, :, None]
        since = step - torch.where(changed, step, -self.blind).cummax(dim=1).values  # ≥ blind before any change
        return (since >= self.blind).double()


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "..."]:
    """±1, equally likely."""
    return torch.where(torch.rand(shape, generator=generator, dtype=torch.float64) < 0.5, 1.0, -1.0).double()


def _last_nonzero(pulses: Float[Tensor, "B T K"]) -> Float[Tensor, "B T K"]:
    """At every step the last pulse so far, 0 before the first."""
    step = torch.arange(pulses.shape[1])[None, :, None]
    last = torch.where(pulses != 0, step, 0).cummax(dim=1).values  # at step 0 there is the first pulse or a 0
    return pulses.gather(1, last)


def _pattern_number(bits: Float[Tensor, "B K"]) -> Int[Tensor, " B"]:
    """Σ_k 2^k [bit k > 0], or −1 if a bit is 0."""
    number = ((bits > 0).long() << torch.arange(bits.shape[1])).sum(dim=1)
    return torch.where((bits == 0).any(dim=1), -1, number)
