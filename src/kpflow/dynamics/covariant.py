"""Covariant Lyapunov vectors (Ginelli et al. 2007): directions that the dynamics carries into themselves."""

import dataclasses
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpflow._checks import check_generator, check_range

from .frames import check_range_of, logarithms, orthonormal, random_frame
from .lyapunov import check_columns
from .maps import exact_derivatives
from .trajectories import Segment, driven, stored

__all__ = ["CovariantVectors", "covariant_vectors"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class CovariantVectors:
    """Covariant Lyapunov vectors at M times along B trajectories: J_t v_i(t−1) = ± growth v_i(t).

    Args:
        times: Numbers of the states, shape `[M]`: t is the state after input t.
        states: h_t, shape `[B, M, H]`.
        vectors: v, columns of norm 1, shape `[B, M, H, K]`; that of the largest exponent first.
        frames: Q, the Gram–Schmidt vectors, shape `[B, M, H, K]`; the first column is v_1 too.
        growth: log ‖J_{t+1} v_i(t)‖, per step, shape `[B, M − 1, K]`.
        dt: Duration of a step.
    """

    times: Int[Tensor, "M"]
    states: Float[Tensor, "B M H"]
    vectors: Float[Tensor, "B M H K"]
    frames: Float[Tensor, "B M H K"]
    growth: Float[Tensor, "B M1 K"]
    dt: float

    @property
    def exponents(self) -> Float[Tensor, "B K"]:
        """Mean growth along each vector per unit of time; Lyapunov exponents as M grows."""
        return self.growth.mean(dim=1) / self.dt

    @property
    def cosines(self) -> Float[Tensor, "B M K K"]:
        """|cos| of the angle between each two vectors; 1 where they touch."""
        return (self.vectors.mT @ self.vectors).abs().clamp_max(1.0)

    def angles(self, split: int) -> Float[Tensor, "B M"]:
        """Smallest angle between the span of the first `split` vectors and that of the others, in [0, π/2].

        With `split` the number of positive exponents these are unstable and stable directions: dynamics is hyperbolic
        where the angle stays away from 0.

        Raises:
            ValueError: `split` leaves no vector on one side.
        """
        count = self.vectors.shape[-1]
        if count < 2:
            raise ValueError(f"`k` must be at least 2 for angles between vectors; got {count}.")
        check_range("split", split, 1, count - 1, integer=True)
        one, other = (torch.linalg.qr(part)[0] for part in self.vectors.split([split, count - split], dim=3))
        cosine = torch.linalg.matrix_norm(one.mT @ other, 2)
        # from both sides, since the cosine is flat at small angles: the distance of unit vectors that are nearest
        u, _, vh = torch.linalg.svd(one.mT @ other, full_matrices=False)
        apart = (one @ u[..., :1] - other @ vh[..., :1, :].mT).squeeze(-1).norm(dim=-1)
        return torch.where(cosine > 0.5, 2 * (apart / 2).clamp_max(1).asin(), cosine.clamp_max(1).acos())


def covariant_vectors(
    step: Callable[..., Any],
    inputs: Tensor,
    initial: Tensor,
    k: int | None = None,
    *,
    steps: int | None = None,
    warmup: int | None = None,
    cooldown: int | None = None,
    dt: float = 1.0,
    flow: bool = False,
    generator: torch.Generator | None = None,
) -> CovariantVectors:
    """The K leading covariant Lyapunov vectors, at every step but those at both ends, in float64.

    Forward, Q_t R_t = J_t Q_{t−1}; backward from any upper triangular C, C_{t−1} = R_t⁻¹ C_t with columns of norm 1;
    then V_t = Q_t C_t. Frames need the steps at the beginning to forget where they began, C those at the end: both are
    discarded. An error at either end falls as exp(−t gap), the gap between neighbouring exponents.

    Args:
        step: As of `lyapunov_spectrum`.
        inputs: Shape `[B, T, I]`; or one static input `[I]` with `steps`.
        initial: State before the first step, shape `[B, H]`.
        k: K; all H by default.
        steps: T, for a static input.
        warmup: Steps to discard at the beginning; a third of all by default.
        cooldown: Steps to discard at the end; a third of all by default.
        dt: Duration of a step.
        flow: As of `lyapunov_spectrum`.
        generator: Source of the first frames and of the last C; None for a fresh one seeded with 0.

    Raises:
        TypeError: As `lyapunov_spectrum`.
        ValueError: As `lyapunov_spectrum`; fewer than two times are left; a Jacobian is singular to rounding on the
            span of the frames; or frames of all steps do not fit 4 GiB.

    References:
        Ginelli et al. 2007 (Phys. Rev. Lett. 99, 130601); Kuptsov and Parlitz 2012.

    Example:
        A hyperbolic map of the torus: its vectors are the eigenvectors of its matrix, and not orthogonal.

        >>> matrix = torch.tensor([[3.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
        >>> found = covariant_vectors(lambda h, x: (h @ matrix.mT) % 1, torch.zeros(1), torch.rand(1, 2), steps=90)
        >>> bool(abs(found.cosines[0, 0, 0, 1] - 1 / 13**0.5) < 1e-12)
        True
    """
    with exact_derivatives():
        problem = driven(step, inputs, initial, steps, dt, flow)
        columns = check_columns(k, problem.width)
        first, last = _kept(warmup, cooldown, problem.steps)
        source = check_generator("generator", generator, problem.initial.device)
        extra = 8 * problem.steps * problem.trials * columns * (3 * problem.width + 3 * columns)
        with torch.no_grad():
            whole = stored(problem, columns, extra)
            frames, triangles = _forward(whole, random_frame(columns, problem.initial, source), first)
            mixing, growth = _backward(triangles, last - first, source)
    kept = frames[: last - first].transpose(0, 1)  # [B, M, H, K]
    vectors = kept @ mixing.transpose(0, 1)
    times = torch.arange(first, last, device=vectors.device)
    states = whole.states[first:last].transpose(0, 1)
    return CovariantVectors(times, states, vectors, kept, growth.transpose(0, 1), float(dt))


def _kept(warmup: int | None, cooldown: int | None, steps: int) -> tuple[int, int]:
    """The range of times that are kept."""
    for name, value in (("warmup", warmup), ("cooldown", cooldown)):
        if value is not None:
            check_range(name, value, 0, integer=True)
    first = steps // 3 if warmup is None else warmup
    last = steps - (steps // 3 if cooldown is None else cooldown)
    if last - first < 2:
        raise ValueError(
            f"`warmup` and `cooldown` must leave at least two of the {steps} steps; got {first} and {steps - last}. "
            "Give more steps, or discard fewer."
        )
    return first, last


def _forward(whole: Segment, frame: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Q_t from `first` on, `[·, B, H, K]`, and the R that led there from the one before, `[·, B, K, K]`."""
    frames, triangles = [], []
    for step in range(len(whole.states)):
        frame, triangle = orthonormal(whole.product(step, frame))
        check_range_of(triangle, step)
        if step >= first:
            singular = ~torch.isfinite(logarithms(triangle, frame.shape[2])).all(dim=1)
            if bool(singular.any()):
                raise ValueError(
                    f"`k` is too large: on the span of {len(frame)} vectors the Jacobian is singular to rounding at "
                    f"step {step} of trial {int(singular.nonzero()[0])}, and a vector that vanishes has no direction."
                )
            frames.append(frame.permute(1, 2, 0))
            triangles.append(triangle)
    return torch.stack(frames), torch.stack(triangles)


def _backward(triangles: Tensor, kept: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """C of the first `kept` times, `[M, B, K, K]`, and the growth from each to the next, `[M − 1, B, K]`."""
    noise = torch.randn(triangles[0].shape, generator=source, dtype=triangles.dtype, device=triangles.device)
    mixing = _normed(noise.triu(1) + torch.eye(noise.shape[1]).to(noise))[0]
    found, growth = [mixing], []
    for time in reversed(range(1, len(triangles))):
        mixing, sizes = _normed(torch.linalg.solve_triangular(triangles[time], mixing, upper=True))
        found.append(mixing)
        growth.append(-sizes.log())
    return torch.stack(found[::-1][:kept]), torch.stack(growth[::-1][: kept - 1])


def _normed(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of norm 1, and what their norms were, `[B, K]`."""
    sizes = columns.norm(dim=1)
    return columns / sizes[:, None], sizes
