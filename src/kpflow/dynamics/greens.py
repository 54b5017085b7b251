"""How ‖Φ(t, s)‖ depends on the lag t − s: what is left at t of a small change of the state at s."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpflow._checks import check_positive, check_range

from .maps import exact_derivatives
from .trajectories import Segment, driven, stored

__all__ = ["GreensDecay", "greens_decay"]

LAGS = 32
"""Lags, if the user names none: about a constant factor apart."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class GreensDecay:
    """log ‖Φ(s + lag, s)‖₂ of the derivative Φ(t, s) = ∂h_t/∂h_s = J_t … J_{s+1}, blocks of the propagator P.

    log ‖Φ(t, s)‖₂ = (t − s) dt λ with the leading finite-time exponent λ from s to t. A matrix of blocks has at least
    the norm of each of them, and at most the sum over its diagonals of the largest on each:

        max_{t,s} ‖Φ(t, s)‖ ≤ ‖P‖ ≤ 1 + Σ_{lag ≥ 1} max_s ‖Φ(s + lag, s)‖,

    so that log ‖P‖ / (T dt) tends to λ along a stationary trajectory with λ > 0, and ‖P‖ stays bounded where ‖Φ‖ decays
    exponentially.

    Args:
        lags: Steps between the two states, rising, shape `[L]`.
        starts: Steps after which the change is made, from 0 (`initial` itself), shape `[S]`.
        log_norms: Shape `[B, S, L]`; −inf where Φ vanishes.
        dt: Duration of a step.
    """

    lags: Int[Tensor, "L"]
    starts: Int[Tensor, "S"]
    log_norms: Float[Tensor, "B S L"]
    dt: float

    @property
    def exponents(self) -> Float[Tensor, "B S L"]:
        """log ‖Φ‖ / (lag dt), the largest finite-time Lyapunov exponent from s to s + lag."""
        return self.log_norms / self.lags / self.dt

    @property
    def mean(self) -> Float[Tensor, "L"]:
        """Mean of log ‖Φ‖ over trials and starts: the decay of a typical gradient."""
        return self.log_norms.mean(dim=(0, 1))

    @property
    def largest(self) -> Float[Tensor, "L"]:
        """max log ‖Φ‖ over trials and starts; of all starts and lags, its exponential bounds ‖P‖₂ from below."""
        return self.log_norms.amax(dim=(0, 1))


def greens_decay(
    step: Callable[..., Any],
    inputs: Tensor,
    initial: Tensor,
    *,
    lags: Sequence[int] | None = None,
    starts: int = 8,
    steps: int | None = None,
    dt: float = 1.0,
    flow: bool = False,
) -> GreensDecay:
    """log ‖Φ(s + lag, s)‖₂ from several starts s, exact to rounding at any lag.

    Φ is carried in units of its own size, of which only the largest singular value is read.

    Args:
        step: As of `lyapunov_spectrum`.
        inputs: Shape `[B, T, I]`; or one static input `[I]` with `steps`.
        initial: State before the first step, shape `[B, H]`.
        lags: In steps, at most T; 1, 2, 3, 4, 5, 7, … up to T / 2 by default.
        starts: How many starts, evenly spread from 0 to T less the largest lag; fewer where there are not so many.
        steps: T, for a static input.
        dt: Duration of a step.
        flow: As of `lyapunov_spectrum`.

    Raises:
        TypeError: As `lyapunov_spectrum`.
        ValueError: As `lyapunov_spectrum`; a lag is no whole number between 1 and T; or the trajectory with its
            Jacobians does not fit 4 GiB.

    Example:
        >>> def halved(h, x):
        ...     return 0.5 * h + x
        >>> decay = greens_decay(halved, torch.ones(1), torch.zeros(1, 1), steps=10, lags=[1, 5])
        >>> decay.mean.exp()
        tensor([0.5000, 0.0312], dtype=torch.float64)
    """
    check_positive("starts", starts, integer=True)
    with exact_derivatives():
        problem = driven(step, inputs, initial, steps, dt, flow)
        wanted = _lags(lags, problem.steps)
        last = problem.steps - wanted[-1]
        begun = sorted({round(last * i / max(starts - 1, 1)) for i in range(starts)})
        extra = 3 * 8 * len(begun) * problem.trials * problem.width**2
        with torch.no_grad():
            whole = stored(problem, problem.width, extra)
            norms = torch.stack([_norms(whole, start, wanted) for start in begun], dim=1)
    device = norms.device
    return GreensDecay(torch.tensor(wanted, device=device), torch.tensor(begun, device=device), norms, float(dt))


def _lags(lags: Sequence[int] | None, steps: int) -> list[int]:
    """The user's, checked, rising, each once; or the default ones."""
    if lags is None:
        most = max(1, steps // 2)
        return sorted({round(most ** (i / (LAGS - 1))) for i in range(LAGS)})
    if not len(lags):
        raise ValueError("`lags` must hold at least one number of steps; got none. Leave it out for the default.")
    for lag in lags:
        check_range("lags", lag, 1, steps, integer=True)
    return sorted(set(lags))


def _norms(whole: Segment, start: int, lags: list[int]) -> Float[Tensor, "B L"]:
    """log ‖Φ(start + lag, start)‖₂."""
    trials, width = whole.states.shape[1:]
    eye = torch.eye(width, dtype=whole.states.dtype, device=whole.states.device)
    frame = eye[:, None].repeat(1, trials, 1)  # [H, B, H], row k the image of unit k
    logs, found = frame.new_zeros(trials), []
    for lag in range(1, lags[-1] + 1):
        frame = whole.product(start + lag - 1, frame)
        size = frame.square().sum(dim=(0, 2)).sqrt()
        if not bool(torch.isfinite(size).all()):
            raise ValueError(
                f"`step` has no finite derivative at step {start + lag - 1} of trial "
                f"{int((~torch.isfinite(size)).nonzero()[0])}. It must be smooth along the trajectory."
            )
        frame = frame / torch.where(size > 0, size, 1.0)[:, None]
        logs = logs + size.log()
        if lag in lags:
            found.append(logs + torch.linalg.matrix_norm(frame.transpose(0, 1), 2).log())
    return torch.stack(found, dim=1).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
