"""Finite-time Lyapunov exponents, log σ_i(Φ)/T of Φ = J_{T−1} … J_0: singular values of a product never formed."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_generator, check_positive

from .frames import check_range_of, logarithms, orthonormal, random_frame
from .lyapunov import check_columns
from .maps import exact_derivatives
from .trajectories import Segment, driven, stored

__all__ = ["FiniteTimeExponents", "finite_time_exponents"]

WINDOW = math.log(1e5)
"""Singular values whose ratio is at most that are told apart by one dense factorisation, exact to 1e-11."""

BUFFER = 4
"""Columns beyond those that are asked for: the last one converges as its ratio to the next that is left out."""

NOISE = 10.0
"""Changes that count as rounding, in units of what is expected of it."""

STEEP = 50.0
"""The most that logarithms of columns in the wrong order may differ by, in an exponential."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class FiniteTimeExponents:
    """Singular values and vectors of Φ = ∂h_T/∂h_0 of each trial, h_0 the initial state.

    Args:
        exponents: log σ_i(Φ) / (T dt), falling, shape `[B, K]`; −inf where Φ is singular to rounding.
        right: Directions at the beginning that grow so, orthonormal columns, shape `[B, H, K]`.
        left: Where they go, Φ right_i = σ_i left_i, shape `[B, H, K]`.
        sweeps: Sweeps over time that were taken.
        change: Largest change of a log σ in the last two sweeps, relative to 1 + |log σ|.
        duration: T dt.
    """

    exponents: Float[Tensor, "B K"]
    right: Float[Tensor, "B H K"]
    left: Float[Tensor, "B H K"]
    sweeps: int
    change: float
    duration: float


def finite_time_exponents(
    step: Callable[..., Any],
    inputs: Tensor,
    initial: Tensor,
    k: int | None = None,
    *,
    steps: int | None = None,
    dt: float = 1.0,
    flow: bool = False,
    tolerance: float = 1e-12,
    sweeps: int = 50,
    generator: torch.Generator | None = None,
) -> FiniteTimeExponents:
    """log σ_i(Φ) / (T dt) of Φ = ∂h_T/∂h_0, all of them or the K largest, to rounding, however ill-conditioned Φ is.

    Sweeps of QR factorisations forward, Q R = J_t Q, and backward, Q R = J_tᵀ Q, in turn, each from where the last one
    ended, until Σ_t log R_ii settles; between two, nearby singular values are told apart by dense factorisations of
    blocks of R_{T−1} … R_0. A product of the J_t in floating point gives the first one alone.

    Args:
        step: As of `lyapunov_spectrum`.
        inputs: Shape `[B, T, I]`; or one static input `[I]` with `steps`.
        initial: State before the first step, shape `[B, H]`.
        k: K; all H by default.
        steps: T, for a static input.
        dt: Duration of a step.
        flow: As of `lyapunov_spectrum`.
        tolerance: Of the change of every log σ in a sweep, relative to 1 + |log σ|, beside what rounding of
            ill-conditioned J_t leaves in it.
        sweeps: The most sweeps.
        generator: Source of the first frames; None for a fresh one seeded with 0.

    Raises:
        TypeError: As `lyapunov_spectrum`.
        ValueError: As `lyapunov_spectrum`; the trajectory with its Jacobians does not fit 4 GiB; or the logarithms do
            not settle in `sweeps`.

    References:
        Stewart 1997; Golub, Sølna and Van Dooren 2000 (singular values of products).

    Example:
        >>> def shear(h, x):
        ...     return torch.stack([2 * h[:, 0] + h[:, 1], 0.5 * h[:, 1]], dim=1)
        >>> found = finite_time_exponents(shear, torch.zeros(1), torch.zeros(1, 2), steps=500)
        >>> bool(abs(found.exponents.sum()) < 1e-12), float(found.exponents[0, 0] - math.log(2))
        (True, 0.00036...)
    """
    check_positive("tolerance", tolerance)
    check_positive("sweeps", sweeps, integer=True)
    with exact_derivatives():
        problem = driven(step, inputs, initial, steps, dt, flow)
        wanted = check_columns(k, problem.width)
        columns = min(problem.width, wanted + BUFFER)
        source = check_generator("generator", generator, problem.initial.device)
        with torch.no_grad():
            whole = stored(problem, columns, 0)
            found = _alternate(whole, random_frame(columns, problem.initial, source), wanted, tolerance, sweeps)
    logs, ends, count, change = found
    order = logs.argsort(dim=1, descending=True, stable=True)[:, :wanted]
    right, left = (end.permute(1, 2, 0).gather(2, order[:, None].expand(-1, problem.width, -1)) for end in ends)
    duration = problem.steps * dt
    return FiniteTimeExponents(logs.gather(1, order) / duration, right, left, count, change, duration)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class _Swept:
    """Where a sweep ended, and the product P of all its R.

    Args:
        frame: Shape `[K, B, H]`.
        logs: log P_ii, shape `[B, K]`.
        unit: diag(P)⁻¹ P, shape `[B, K, K]`.
        noise: Size of what rounding leaves in `logs`: R_ii is known to ε times the largest column of R.
    """

    frame: Tensor
    logs: Tensor
    unit: Tensor
    noise: Tensor


Ends = tuple[Tensor, Tensor]


def _alternate(
    whole: Segment, frame: Tensor, wanted: int, tolerance: float, limit: int
) -> tuple[Tensor, Ends, int, float]:
    """Sweep until the logarithms settle: them, the frames at the beginning and at the end, and how it went."""
    before, change = None, math.inf
    for count in range(1, limit + 1):
        backward = count % 2 == 0
        swept = _sweep(whole, frame, backward)
        if before is not None:
            settled, change = _compared(before, swept, wanted, tolerance)
            if settled:
                ends = (swept.frame, frame) if backward else (frame, swept.frame)
                return swept.logs, ends, count, change
        before = swept
        frame = _rotated(swept, shifted=count % 4 >= 2)
    raise ValueError(
        f"`sweeps` must be more than {limit}: the logarithms of the singular values still change by {change:.1e} of 1 "
        "+ their size. Raise it or `tolerance`, or ask for another k: the last is close to those that are left out."
    )


def _sweep(whole: Segment, frame: Tensor, backward: bool) -> _Swept:
    """Over all steps."""
    count, trials, width = frame.shape
    logs, noise = frame.new_zeros(trials, count), frame.new_zeros(trials, count)
    eye = torch.eye(count, dtype=frame.dtype, device=frame.device)
    unit = eye.expand(trials, -1, -1)
    length = len(whole.states)
    for step in reversed(range(length)) if backward else range(length):
        frame, triangle = orthonormal((whole.adjoint if backward else whole.product)(step, frame))
        check_range_of(triangle, whole.start + step)
        growth = logarithms(triangle, width)
        lost = triangle.norm(dim=1).amax(dim=1, keepdim=True) / growth.exp()  # 0/0 where all of J Q vanishes
        noise = noise + lost.nan_to_num(nan=torch.inf, posinf=torch.inf).square()
        regular = torch.isfinite(growth + logs)[:, :, None]
        ratios = (logs[:, None, :] - logs[:, :, None] - growth[:, :, None]).nan_to_num(neginf=-STEEP)
        unit = torch.where(regular, triangle * ratios.clamp_max(STEEP).exp(), eye) @ unit
        logs = logs + growth
    return _Swept(frame, logs, unit, torch.finfo(frame.dtype).eps * noise.sqrt())


def _compared(before: _Swept, swept: _Swept, wanted: int, tolerance: float) -> tuple[bool, float]:
    """Whether the leading logarithms changed by no more than the tolerance and rounding, and the most they did."""
    old = before.logs.sort(dim=1, descending=True).values[:, :wanted]
    new, order = swept.logs.sort(dim=1, descending=True)
    new, noise = new[:, :wanted], swept.noise.gather(1, order)[:, :wanted]
    off = torch.where(old == new, 0.0, (old - new).abs())
    size = torch.where(torch.isfinite(new), 1 + new.abs(), 1.0)
    return bool((off <= tolerance * size + NOISE * noise).all()), float((off / size).max())


def _rotated(swept: _Swept, shifted: bool) -> Tensor:
    """The frame, turned within windows of nearby singular values to their left singular vectors in P."""
    frame = swept.frame.clone()
    for trial, row in enumerate(swept.logs.tolist()):
        for start, stop in _windows(row, shifted):
            part = slice(start, stop)
            sizes = swept.logs[trial, part]
            block = (sizes - sizes.max()).exp()[:, None] * swept.unit[trial, part, part]
            if stop - start > 1 and bool(torch.isfinite(block).all()):
                turn = torch.linalg.svd(block)[0]
                frame[part, trial] = turn.mT @ frame[part, trial]
    return frame


def _windows(logs: list[float], shifted: bool) -> list[tuple[int, int]]:
    """Ranges of columns whose logarithms differ by at most `WINDOW`, or half that in the first one if `shifted`."""
    result, start, reach = [], 0, WINDOW / 2 if shifted else WINDOW
    for stop in range(1, len(logs) + 1):
        if stop == len(logs) or not max(logs[start : stop + 1]) - min(logs[start : stop + 1]) <= reach:
            result.append((start, stop))
            start, reach = stop, WINDOW
    return result
