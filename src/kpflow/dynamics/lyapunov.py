"""Lyapunov exponents along driven trajectories, by orthonormal frames (Benettin et al. 1980), with errors."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_generator, check_positive, check_range

from .averages import Growth, Measured, entropy, jackknife, kaplan_yorke, samples
from .frames import carried, check_range_of, logarithms, random_frame, spread
from .maps import exact_derivatives
from .trajectories import Driven, Segment, driven

__all__ = ["LyapunovSpectrum", "check_columns", "check_warmup", "lyapunov_spectrum"]

AIM, LIMIT = math.log(1e4), math.log(1e6)
"""log of the condition that the steps between two QR factorisations are chosen for, and of that which is refused."""

EVERY = 10
"""Steps between two factorisations, at most."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class LyapunovSpectrum:
    """The leading K Lyapunov exponents; times and rates are in units of `dt`, per step for dt = 1.

    Args:
        exponents: λ, means over the trials, shape `[K]`, in the order of the frames' columns: falling, where the run is
            long enough to tell them apart. −inf where Jacobians are singular to rounding.
        standard_error: Of each, shape `[K]`: from the spread of the trials if there are 8 or more, taken as independent
            draws; of fewer, from 20 stretches of time, as the error of the mean of these trials alone, right where a
            stretch is longer than the memory of the dynamics. inf where fewer than 8 samples tell nothing.
        trials: λ of each trial, shape `[B, K]`.
        times: Time since the warm-up, shape `[E]`.
        running: λ from the time up to then, mean over the trials, shape `[E, K]`.
        samples: Rates whose mean is λ and whose spread is behind the errors, shape `[S, K]`.
        final: States after the last step, shape `[B, H]`.
        warmup: Steps that were discarded.
        factorisations: How many times the frames were made orthonormal after that.
        dt: Duration of a step.
    """

    exponents: Float[Tensor, "K"]
    standard_error: Float[Tensor, "K"]
    trials: Float[Tensor, "B K"]
    times: Float[Tensor, "E"]
    running: Float[Tensor, "E K"]
    samples: Float[Tensor, "S K"]
    final: Float[Tensor, "B H"]
    warmup: int
    factorisations: int
    dt: float

    @property
    def sum(self) -> Measured:
        """Σ λ: of all exponents, the rate at which volumes grow, mean log |det J|."""
        return self._of(lambda values: values.sum(dim=1))

    @property
    def kaplan_yorke(self) -> Measured:
        """D = j + Σ_{i≤j} λ_i / |λ_{j+1}|, the largest j with Σ_{i≤j} λ_i ≥ 0: a dimension of the attractor.

        Raises:
            ValueError: The sum of the K exponents is not yet negative, and there are others.
        """
        if self._open and float(self.exponents.sum()) >= 0:
            raise ValueError(
                f"`k` must be larger for the Kaplan–Yorke dimension: the first {len(self.exponents)} of "
                f"{self.final.shape[1]} exponents sum to {float(self.exponents.sum()):.3g}, which is not negative."
            )
        return self._of(kaplan_yorke)

    @property
    def entropy_bound(self) -> Measured:
        """Σ of the positive λ: a bound of the Kolmogorov–Sinai entropy (Ruelle), in nats per time.

        Raises:
            ValueError: All K exponents are positive, and there are others.
        """
        if self._open and float(self.exponents.min()) > 0:
            raise ValueError(
                f"`k` must be larger for the entropy bound: all {len(self.exponents)} exponents are positive, of "
                f"{self.final.shape[1]}."
            )
        return self._of(entropy)

    @property
    def _open(self) -> bool:
        return len(self.exponents) < self.final.shape[1]

    def _of(self, function: Callable[[Tensor], Tensor]) -> Measured:
        return Measured(*(float(number) for number in jackknife(function, self.samples)))

    def __repr__(self) -> str:
        pairs = zip(self.exponents.tolist(), self.standard_error.tolist(), strict=True)
        shown = [f"{value:.4g} ± {error:.1g}" for value, error in pairs]
        rest = f", … {len(shown) - 4} more" if len(shown) > 4 else ""
        duration = float(self.times[-1])
        return f"LyapunovSpectrum({', '.join(shown[:4])}{rest}; {len(self.trials)} trials, time {duration:g})"


def lyapunov_spectrum(
    step: Callable[..., Any],
    inputs: Tensor,
    initial: Tensor,
    k: int | None = None,
    *,
    steps: int | None = None,
    warmup: int | None = None,
    every: int | None = None,
    dt: float = 1.0,
    flow: bool = False,
    generator: torch.Generator | None = None,
) -> LyapunovSpectrum:
    """The K largest rates at which neighbouring states move apart, in float64 whatever the dtype of the model.

    λ_i = lim 1/(T dt) Σ_t log R_ii(t) with Q_t R_t = J_t Q_{t−1}, Q of shape `[H, K]`, J = ∂h_t/∂h_{t−1}. With inputs
    that vary these are conditional exponents: of two states under the same input. All trials go at once; frames are
    made orthonormal again after `every` steps, or as soon as their condition demands. The Jacobians' product is never
    formed. The first `warmup` steps are discarded, in which both states and frames come to where they stay.

    In floating point some orbits are not those of the map: those of the tent map, which shifts binary digits, all end
    at 0, and others end in cycles. A trial that stands still at an unstable state is warned of; cycles are not found.

    Args:
        step: As of `find_fixed_points`: `nn.RNNCell`, `GRUCell`, `LSTMCell`; `nn.RNN`, `GRU`, `LSTM` of one layer;
            `RateRNN`, `LowRankRNN`, all with analytic Jacobians; any other module or function step(h, x), from h
            `[n, H]` and x `[n, I]` to `[n, H]`, each row by itself, in float64. The state of an LSTM is h‖c.
        inputs: Shape `[B, T, I]`; or one static input `[I]` for all trials, with `steps`.
        initial: State before the first step, shape `[B, H]`.
        k: K, how many exponents; all H by default.
        steps: T, for a static input.
        warmup: Steps to discard; a fifth of all by default.
        every: Steps between two QR factorisations, at most; 10 by default. Fewer where the frame's condition would
            exceed about 1e6.
        dt: Duration of a step, the unit of the exponents.
        flow: Whether `step` is the vector field f of h' = f(h, x). Then a step is one of the classical Runge–Kutta
            method of order 4, at x held fixed, and J its exact derivative, which is that method on the variational
            equation: exponents are those of the discretised flow, O(dt⁴) from the flow's.
        generator: Source of the first frames; None for a fresh one seeded with 0.

    Raises:
        TypeError: `inputs`, `initial` hold no floating-point numbers, the step gives no float64 tensor, or `generator`
            is none.
        ValueError: As `find_fixed_points`; shapes do not fit, `k` or `warmup` is out of range, a state leaves the
            floating range (with the step where), or J is not finite.

    Warns:
        UserWarning: A trial stands still while its largest exponent is positive.

    References:
        Benettin, Galgani, Giorgilli and Strelcyn 1980; Geist, Parlitz and Lauterborn 1990; Engelken, Wolf and Abbott
        2023 (arXiv 2006.02427); Vogt et al. 2022 (arXiv 2006.14123).

    Example:
        The Hénon map, whose exponents sum to log 0.3:

        >>> def henon(h, x):
        ...     return torch.stack([1 - 1.4 * h[:, 0] ** 2 + h[:, 1], 0.3 * h[:, 0]], dim=1)
        >>> start = 0.1 * torch.rand(16, 2, generator=torch.Generator().manual_seed(0))
        >>> found = lyapunov_spectrum(henon, torch.zeros(1), start, steps=1000)
        >>> found
        LyapunovSpectrum(0.41... ± 0.00..., -1.62... ± 0.00...; 16 trials, time 800)
        >>> abs(found.sum.value - math.log(0.3)) < 1e-12
        True
    """
    if every is not None:
        check_positive("every", every, integer=True)
    with exact_derivatives():
        problem = driven(step, inputs, initial, steps, dt, flow)
        columns = check_columns(k, problem.width)
        skipped = check_warmup(warmup, problem.steps)
        source = check_generator("generator", generator, problem.initial.device)
        with torch.no_grad():
            frame = random_frame(columns, problem.initial, source)
            run = _Run(problem, frame, skipped, every or EVERY)
            for segment in problem.segments(columns):
                run.through(segment)
    return run.result(dt)


@final
class _Run:
    """A frame on its way, with what it has grown.

    Args:
        problem: The trajectories.
        frame: Orthonormal, shape `[K, B, H]`.
        warmup: Steps to discard.
        every: Steps between two factorisations, at most.
    """

    def __init__(self, problem: Driven, frame: Tensor, warmup: int, every: int) -> None:
        self._problem, self._frame, self._warmup, self._every = problem, frame, warmup, every
        self._length, self._count = 1, 0
        self._growth = Growth(problem.steps - warmup, frame.new_zeros(problem.trials, len(frame)))
        self._last: list[Tensor] = [problem.initial]

    def through(self, segment: Segment) -> None:
        """Carry the frame through a segment."""
        time, end = segment.start, segment.start + len(segment.states)
        while time < end:
            stop = min(time + self._length, end, self._warmup if time < self._warmup else end)
            frame, triangle = carried(segment, time - segment.start, stop - segment.start, self._frame)
            condition = spread(triangle)
            if not condition <= LIMIT and stop > time + 1:
                self._length = 1
                continue
            check_range_of(triangle, time)
            self._frame = frame
            if stop > self._warmup:
                self._count += 1
                self._growth.add(logarithms(triangle, frame.shape[2]), stop - time, stop == self._problem.steps)
            self._length = self._next(condition / (stop - time))
            time = stop
        self._last = [*self._last, *segment.states[-2:]][-2:]

    def _next(self, rate: float) -> int:
        """Steps to the next factorisation, at this rate of log condition a step."""
        if not math.isfinite(rate):
            return 1
        return max(1, min(self._every, 2 * self._length, int(AIM / max(rate, 1e-3))))

    def result(self, dt: float) -> LyapunovSpectrum:
        """The rates."""
        times, marks = self._growth.times, self._growth.marks / dt
        rates = samples(times, marks)
        exponents, error = jackknife(lambda values: values, rates)
        trials = marks[-1] / times[-1]
        self._warn_of_rest(trials)
        running = marks.mean(dim=1) / times[:, None]
        return LyapunovSpectrum(
            exponents, error, trials, times * dt, running, rates, self._last[-1], self._warmup, self._count, float(dt)
        )

    def _warn_of_rest(self, trials: Float[Tensor, "B K"]) -> None:
        rest = (self._last[0] == self._last[1]).all(dim=1) & (trials.amax(dim=1) > 0)
        if bool(rest.any()):
            warnings.warn(
                f"Trial {int(rest.nonzero()[0])} stands still at an unstable state, to which rounding or its initial "
                f"state brought it ({int(rest.sum())} of {len(rest)} trials). Its exponents are those of that state, "
                "not of an attractor; start off it, or change a parameter in its last digits.",
                stacklevel=4,
            )


def check_columns(k: int | None, width: int) -> int:
    """How many columns a frame has."""
    if k is None:
        return width
    check_range("k", k, 1, width, integer=True)
    return k


def check_warmup(warmup: int | None, steps: int) -> int:
    """How many steps are discarded."""
    if warmup is None:
        return steps // 5
    check_range("warmup", warmup, 0, integer=True)
    if warmup >= steps:
        raise ValueError(
            f"`warmup` must leave at least one step of the {steps} to measure; got {warmup}. Give more steps, or "
            "discard fewer."
        )
    return warmup
