"""The effective flow of cumulative biases and frames: gradients in β and on the orthogonal group, integrated."""

import dataclasses
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_finite, check_tensor

from .bias_flows import goals
from .switched import check_times, switched_flow
from .truncation_maps import check_points, check_rotation

__all__ = ["EffectiveGradient", "EffectivePath", "effective_flow", "effective_gradient"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class EffectiveGradient:
    """Gradient of C = ½ ⟨(τ̲(x) − y)ᵀ G (τ̲(x) − y)⟩, τ̲ = τ^(L)∘…∘τ^(1) with aligned τ^(ℓ).

    Args:
        cost: C at these β and R.
        shifts: ∂C/∂β^(ℓ), shape `[L, Q]`.
        turns: ∂C/∂Ω^(ℓ) of R^(ℓ) → e^Ω R^(ℓ), antisymmetric, A − Aᵀ, shape `[L, Q, Q]`.
    """

    cost: float
    shifts: Float[Tensor, "L Q"]
    turns: Float[Tensor, "L Q Q"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class EffectivePath:
    """β^(ℓ) and R^(ℓ) along the effective flow.

    Args:
        times: Shape `[T]`.
        shifts: β^(ℓ), shape `[T, L, Q]`.
        rotations: R^(ℓ), shape `[T, L, Q, Q]`.
        misalignment: Root mean square angle by which R^(ℓ) has turned from R^(ℓ)(0), ‖log(R(t) R(0)ᵀ)‖_F / √Q, in
            radians, shape `[T, L]`.
        costs: Shape `[T]`.
        events: Times at which a coordinate cuts a point off or releases it.
        slid: Steps along a kink of the cost, which are followed to first order only.
    """

    times: Float[Tensor, " T"]
    shifts: Float[Tensor, "T L Q"]
    rotations: Float[Tensor, "T L Q Q"]
    misalignment: Float[Tensor, "T L"]
    costs: Float[Tensor, " T"]
    events: tuple[float, ...]
    slid: int


@final
@dataclasses.dataclass(frozen=True, eq=False)
class _Problem:
    """Points, their targets, G, and the number of layers."""

    points: Tensor
    targets: Tensor
    metric: Tensor
    depth: int

    @property
    def width(self) -> int:
        return self.points.shape[1]

    def parts(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """β and R of a flat state."""
        size = self.depth * self.width
        return state[:size].view(self.depth, -1), state[size:].view(self.depth, self.width, self.width)

    def forward(self, state: Tensor, pattern: Tensor | None) -> tuple[Tensor, Tensor]:
        """û of each layer, `[L, N, Q]`, and τ̲(x) − y; with the pattern H, or that of the state."""
        at, margins = self.points, []
        for index, (shift, rotation) in enumerate(zip(*self.parts(state), strict=True)):
            margins.append((at + shift) @ rotation.mT)
            held = (margins[-1] > 0).double() if pattern is None else pattern[index]
            at = at - ((1 - held) * margins[-1]) @ rotation
        return torch.stack(margins), at - self.targets

    def cost(self, miss: Tensor) -> float:
        return 0.5 * float(((miss @ self.metric) * miss).sum()) / len(miss)

    def gradient(self, state: Tensor, pattern: Tensor) -> tuple[float, Tensor, Tensor]:
        margins, miss = self.forward(state, pattern)
        error = miss @ self.metric
        shifts, turns = [], []
        for margin, held, rotation in zip(margins.flip(0), pattern.flip(0), self.parts(state)[1].flip(0), strict=True):
            turned = error @ rotation.mT  # [N, Q], in the coordinates of R
            passed = held * turned
            shifts.append(-(turned - passed).mean(0) @ rotation)
            outer = ((held * margin).mT @ turned + passed.mT @ margin) / len(margin)
            turns.append(outer - outer.mT)
            error = passed @ rotation
        return self.cost(miss), torch.stack(shifts[::-1]), torch.stack(turns[::-1])


def _problem(
    points: Any, targets: Any, shifts: Any, rotations: Any, clusters: Any, metric: Any
) -> tuple[_Problem, Tensor]:
    given = check_points(points)
    width = given.shape[1]
    start = check_tensor("shifts", shifts).detach().double()
    start = start[None] if start.ndim == 1 else start
    if start.ndim != 2 or len(start) == 0 or start.shape[1] != width:
        raise ValueError(
            f"`shifts` must have shape (L, {width}) or ({width},), β of each layer; got {tuple(shifts.shape)}."
        )
    check_finite("shifts", start, ("layer", "coordinate"))
    frames = [None] * len(start) if rotations is None else list(check_tensor("rotations", rotations))
    frames = [rotations] if rotations is not None and rotations.ndim == 2 else frames
    if len(frames) != len(start):
        raise ValueError(f"`rotations` must be R of each of the {len(start)} layers; got {len(frames)}.")
    turns = torch.stack([check_rotation(frame, width, "rotations") for frame in frames])
    problem = _Problem(given, goals(targets, clusters, given), _metric(metric, width), len(start))
    return problem, torch.cat([start.flatten(), turns.flatten()])


def _metric(metric: Any, width: int) -> Tensor:
    if metric is None:
        return torch.eye(width, dtype=torch.float64)
    given = check_tensor("metric", metric).detach().double()
    if tuple(given.shape) != (width, width) or not torch.allclose(given, given.mT):
        raise ValueError(
            f"`metric` must be symmetric, of shape ({width}, {width}); got {tuple(given.shape)}. Of a network it is "
            "cumulative_parameters(network).gram."
        )
    return given


def effective_gradient(
    points: Tensor,
    targets: Tensor,
    shifts: Tensor,
    rotations: Tensor | None = None,
    *,
    clusters: Tensor | None = None,
    metric: Tensor | None = None,
) -> EffectiveGradient:
    """Gradient of the Euclidean (or, with G, the standard) cost by cumulative biases and frames.

    One layer, û = R (x + β), ĉ = R (β + y), H = diag 1[û > 0]: ∂C/∂β = Rᵀ ⟨(1 − H) ĉ⟩ and ∂C/∂Ω = A − Aᵀ with
    A = ⟨(Hû)((1 − H)û)ᵀ − (Hĉ) ûᵀ + ĉ (Hû)ᵀ⟩. Through more layers errors pass backwards as Rᵀ H R.

    Args:
        points: x, shape `[N, Q]`.
        targets: y in input space: `[Q]` for all points, `[J, Q]` with `clusters`, or `[N, Q]`.
        shifts: β^(ℓ), shape `[L, Q]`, or `[Q]` for one layer.
        rotations: R^(ℓ), shape `[L, Q, Q]`, or `[Q, Q]`; None for identities.
        clusters: Of each point, whole numbers from 0, shape `[N]`.
        metric: G, shape `[Q, Q]`; None for the identity.

    Raises:
        TypeError: A tensor is not of floating point, or `clusters` not of whole numbers.
        ValueError: A shape does not fit, an R is not orthogonal, or G is not symmetric.

    References:
        Chen 2025 (arXiv 2501.07400); the formula of A and that of several layers are derived here.

    Example:
        >>> effective_gradient(torch.tensor([[-1.0], [1.0]]), torch.tensor([3.0]), torch.tensor([0.0])).shifts
        tensor([[1.5000]], dtype=torch.float64)
    """
    problem, state = _problem(points, targets, shifts, rotations, clusters, metric)
    pattern = (problem.forward(state, None)[0] > 0).double()
    return EffectiveGradient(*problem.gradient(state, pattern))


def effective_flow(
    points: Tensor,
    targets: Tensor,
    shifts: Tensor,
    rotations: Tensor | None = None,
    *,
    times: Sequence[float] | Tensor,
    step: float = 0.1,
    tolerance: float = 1e-10,
    turning: bool = True,
    clusters: Tensor | None = None,
    metric: Tensor | None = None,
) -> EffectivePath:
    """Integrate dβ/dt = −∂C/∂β and, if `turning`, dR/dt = −(A − Aᵀ) R, locating the times at which points are cut off.

    For clusters that are not separated, several layers, frames that move, and the standard cost; where `bias_flow`
    holds (one layer, no turning, no metric), that is exact and this agrees with it.

    Args:
        points: As of `effective_gradient`.
        targets: As of `effective_gradient`.
        shifts: β^(ℓ)(0), as of `effective_gradient`.
        rotations: R^(ℓ)(0), as of `effective_gradient`.
        times: Rising, from 0 or later, shape `[T]`.
        step: The longest, of time.
        tolerance: Of the error of a step, relative to 1 + max |β|, or the largest parameter.
        turning: Whether the frames move as well.
        clusters: As of `effective_gradient`.
        metric: As of `effective_gradient`.

    Raises:
        TypeError: As `effective_gradient`.
        ValueError: As `effective_gradient`; `times` do not rise, or `step` or `tolerance` is not positive.

    Example:
        >>> points, target, start = torch.tensor([[-1.0], [1.0]]), torch.tensor([3.0]), torch.tensor([0.0])
        >>> path = effective_flow(points, target, start, times=[0.0, 4.0])
        >>> [round(float(shift), 6) for shift in path.shifts[:, 0, 0]], [round(time, 6) for time in path.events]
        ([0.0, -2.91758], [0.81093])
    """
    asked = check_times(times, step, tolerance)
    problem, start = _problem(points, targets, shifts, rotations, clusters, metric)

    def field(state: Tensor, pattern: Tensor) -> Tensor:
        _, shift, turn = problem.gradient(state, pattern)
        spin = turn @ problem.parts(state)[1] if turning else torch.zeros_like(turn)
        return -torch.cat([shift.flatten(), spin.flatten()])

    def project(state: Tensor) -> Tensor:
        if not turning:
            return state
        shift, rotation = problem.parts(state)
        left, _, right = torch.linalg.svd(rotation)
        return torch.cat([shift.flatten(), (left @ right).flatten()])

    def margins(state: Tensor, held: Tensor) -> Tensor:
        return problem.forward(state, held)[0]

    path = switched_flow(field, margins, start, problem.forward(start, None)[0] > 0, asked, step, tolerance, project)
    parts = [problem.parts(state) for state in path.states]
    costs = [problem.cost(problem.forward(state, None)[1]) for state in path.states]
    frames = torch.stack([rotation for _, rotation in parts])
    return EffectivePath(
        torch.tensor(asked, dtype=torch.float64),
        torch.stack([shift for shift, _ in parts]),
        frames,
        _turned(frames, problem.parts(start)[1]),
        torch.tensor(costs, dtype=torch.float64),
        path.events,
        path.slid,
    )


def _turned(rotations: Float[Tensor, "T L Q Q"], origin: Float[Tensor, "L Q Q"]) -> Float[Tensor, "T L"]:
    angles = torch.linalg.eigvals(rotations @ origin.mT).angle()
    return angles.square().mean(dim=-1).sqrt()
