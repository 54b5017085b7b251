"""What a change of μ does to the trajectories of a scalar normal form: sensitivities, propagators, landscapes."""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from kpflow._checks import check_one_of, check_positive

from .scalar_forms import ScalarForm

__all__ = ["amplification", "loss_landscape", "scalar_propagator", "sensitivity", "trajectory"]

LARGEST = 1e150
"""Products of slopes are held within this, so that their squares stay in the floating range."""

FARTHEST = 1e60
"""The most that `clip` is for a state, so that its cube stays in the floating range."""


def trajectory(
    form: ScalarForm, initial: Tensor | complex | float, mu: Tensor | float, steps: int, *, clip: float = 1e7
) -> Tensor:
    """α₁, …, α_T from α₀, for each pair of `initial` and `mu` that broadcasting makes.

    A trajectory that gets beyond `clip`, or starts there, has left for good: it is held at that size from then on.

    Args:
        form: The map.
        initial: α₀, any shape; complex for a circle form, or its radius.
        mu: μ, any shape that broadcasts with it.
        steps: T.
        clip: The size beyond which a trajectory has left.

    Returns:
        Float64 (complex128 for a circle form) of the common shape and an axis of T.

    Raises:
        ValueError: A number is out of range, or `initial` is complex for a real form.

    Example:
        >>> from kpflow.dynamics import scalar_form
        >>> trajectory(scalar_form("pitchfork"), torch.tensor([0.1, 3.0]), 0.0, 3)
        tensor([[ 9.9000e-02,  9.8030e-02,  9.7088e-02],
                [-2.4000e+01,  1.3800e+04, -1.0000e+07]], dtype=torch.float64)
    """
    return _complex(_run(form, initial, mu, steps, clip).states[..., 1:, :])


def sensitivity(
    form: ScalarForm,
    initial: Tensor | complex | float,
    mu: Tensor | float,
    steps: int,
    *,
    of: str = "mu",
    clip: float = 1e7,
) -> Tensor:
    """d_μ α at t = 1, …, T: S_{t+1} = ∂_α f S_t + ∂_μ f with S₀ = 0; α₀ does not depend on μ.

    Entries of a trajectory that has left, and those above `clip`, are `clip` with the sign they had. The landscape over
    (μ, α₀) is its norm over time.

    Args:
        form: The map.
        initial: α₀, any shape; complex for a circle form, or its radius.
        mu: μ, any shape that broadcasts with it.
        steps: T.
        of: "mu", or "omega" for d_ω of a circle form.
        clip: The most that an entry is.

    Returns:
        As `trajectory`.

    Raises:
        ValueError: As `trajectory`.

    Example:
        >>> from kpflow.dynamics import scalar_form
        >>> sensitivity(scalar_form("saddle-node"), 0.0, 0.0, 4)
        tensor([-1., -2., -3., -4.], dtype=torch.float64)
    """
    check_one_of("of", of, ("mu", "omega"))
    run = _run(form, initial, mu, steps, clip)
    current, kept = torch.zeros_like(run.states[..., 0, :]), []
    for t in range(steps):
        change = form.forcing(run.states[..., t, :], run.mu, of)
        moved = _held((run.slopes[..., t, :, :] @ current[..., None])[..., 0] + change)
        current = torch.where(run.left[..., t, None], current, moved)
        kept.append(_within(current, run.left[..., t + 1, None], clip))
    return _complex(torch.stack(kept, dim=-2))


def scalar_propagator(
    form: ScalarForm, initial: Tensor | complex | float, mu: Tensor | float, steps: int, *, clip: float = 1e7
) -> Tensor:
    """P_α[t, s] = Φ(t, s) = ∂α_t/∂α_s for 1 ≤ s ≤ t ≤ T, else 0; then d_μ α = P_α ∂_μ f.

    Args:
        form: The map.
        initial: α₀, any shape; complex for a circle form, or its radius.
        mu: μ, any shape that broadcasts with it.
        steps: T.
        clip: The most that the size of an entry is.

    Returns:
        Float64, the common shape and `[T, T]`; a circle form has `[T, T, 2, 2]`, of real and imaginary parts.

    Raises:
        ValueError: As `trajectory`.

    Example:
        >>> from kpflow.dynamics import scalar_form
        >>> scalar_propagator(scalar_form("transcritical"), 0.0, 0.5, 3)
        tensor([[1.0000, 0.0000, 0.0000],
                [1.5000, 1.0000, 0.0000],
                [2.2500, 1.5000, 1.0000]], dtype=torch.float64)
    """
    run = _run(form, initial, mu, steps, clip)
    phi = _transitions(run.slopes[..., 1:, :, :])  # [*, T, T, d, d]
    phi = phi.clamp(-clip, clip)
    return phi[..., 0, 0] if form.dimension == 1 else phi


def amplification(
    form: ScalarForm, initial: Tensor | complex | float, mu: Tensor | float, steps: int = 5, *, clip: float = math.inf
) -> Tensor:
    """log₁₀ ‖Φ‖_F, ‖Φ‖²_F = Σ_{0 ≤ s < t ≤ T} ‖Φ(t, s)‖²: the diagonal left out, t − s ≥ 1.

    The surfaces of arXiv 2605.12763 have T = 5 and g = 1 + μ. Products beyond the floating range are held at 1e150,
    and ‖Φ‖_F within [1/clip, clip] (with no `clip`, [1e-150, 1e152]), so that there is neither NaN nor inf.

    Args:
        form: The map.
        initial: α₀, any shape; complex for a circle form, or its radius.
        mu: μ, any shape that broadcasts with it.
        steps: T.
        clip: The most that ‖Φ‖_F is.

    Returns:
        Float64, the common shape.

    Raises:
        ValueError: As `trajectory`.

    Example:
        >>> from kpflow.dynamics import scalar_form
        >>> 10 ** amplification(scalar_form("pitchfork"), 0.0, 0.0, 2)  # three ones
        tensor(1.7321, dtype=torch.float64)
    """
    run = _run(form, initial, mu, steps, clip)
    total = torch.zeros_like(run.mu)
    for start in range(steps):
        phi = torch.eye(form.dimension, dtype=torch.float64, device=total.device)
        for t in range(start, steps):
            phi = _held(run.slopes[..., t, :, :] @ phi)
            total = total + phi.square().sum(dim=(-2, -1))
    size = total.sqrt()
    lowest, highest = (1e-150, 1e152) if clip == math.inf else (1 / clip, clip)
    return size.clamp(lowest, highest).log10()


def loss_landscape(
    form: ScalarForm,
    initial: Tensor | complex | float,
    mu: Tensor | float,
    teacher: float,
    steps: int,
    *,
    clip: float = 1e7,
) -> Tensor:
    """L = ½ mean_t |α_t(μ) − α_t(μ*)|² of a teacher μ* from the same α₀, clipped.

    Args:
        form: The map.
        initial: α₀, any shape; complex for a circle form, or its radius.
        mu: μ, any shape that broadcasts with it.
        teacher: μ*.
        steps: T.
        clip: The most that L is, and the size beyond which a trajectory has left.

    Returns:
        Float64, the common shape.

    Raises:
        ValueError: As `trajectory`.

    Example:
        >>> from kpflow.dynamics import scalar_form
        >>> loss_landscape(scalar_form("pitchfork"), 0.1, torch.tensor([0.0, 0.5, 1.0]), teacher=1.0, steps=25)
        tensor([0.3736, 0.0489, 0.0000], dtype=torch.float64)
    """
    student = trajectory(form, initial, mu, steps, clip=clip)
    taught = trajectory(form, initial, teacher, steps, clip=clip)
    return (0.5 * (student - taught).abs().square().mean(dim=-1)).clamp(max=clip)


@final
class _Run(NamedTuple):
    states: Tensor  # [*g, T + 1, d]
    slopes: Tensor  # [*g, T, d, d], of the step from t to t + 1
    left: Tensor  # [*g, T + 1], where a trajectory is beyond `clip`, now or before
    mu: Tensor  # [*g]


def _run(form: ScalarForm, initial: Tensor | complex | float, mu: Tensor | float, steps: int, clip: float) -> _Run:
    state, mu = _broadcast(form, initial, mu)
    check_positive("steps", steps, integer=True)
    check_positive("clip", clip)
    clip = min(clip, FARTHEST)
    left = _size(state) > clip
    state = torch.where(left[..., None], clip * state / _size(state)[..., None].clamp_min(1e-300), state)
    states, slopes, gone = [state], [], [left]
    for _ in range(steps):
        slopes.append(_held(form.jacobian(state, mu)))
        moved = form.step(state, mu)
        beyond = ~(_size(moved) <= clip)
        moved = torch.where(torch.isfinite(moved).all(dim=-1, keepdim=True), moved, state)
        moved = torch.where(beyond[..., None], clip * moved / _size(moved)[..., None].clamp_min(1e-300), moved)
        state = torch.where(left[..., None], state, moved)
        left = left | beyond
        states.append(state)
        gone.append(left)
    return _Run(torch.stack(states, dim=-2), torch.stack(slopes, dim=-3), torch.stack(gone, dim=-1), mu)


def _broadcast(form: ScalarForm, initial: Tensor | complex | float, mu: Tensor | float) -> tuple[Tensor, Tensor]:
    """α₀ as `[*g, d]` and μ as `[*g]`, float64."""
    kind = torch.complex128 if isinstance(initial, complex) else torch.float64
    start = initial if isinstance(initial, Tensor) else torch.tensor(initial, dtype=kind)
    if start.is_complex() and form.dimension == 1:
        raise ValueError(f"`initial` must be real for {form!r}; got {start.dtype}. Take its real part.")
    start = start.to(torch.complex128 if start.is_complex() else torch.float64)
    rate = torch.as_tensor(mu, dtype=torch.float64, device=start.device)
    for name, value in (("initial", start), ("mu", rate)):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"`{name}` must be finite; it holds NaN or inf. Leave such points of the grid out.")
    try:
        start, rate = torch.broadcast_tensors(start, rate)
    except RuntimeError as error:
        raise ValueError(
            f"`initial` and `mu` must broadcast; got shapes {tuple(start.shape)} and {tuple(rate.shape)}. For a grid "
            "give initial[None, :] and mu[:, None]."
        ) from error
    if form.dimension == 1:
        return start[..., None].clone(), rate
    return torch.stack([start.real, start.imag if start.is_complex() else torch.zeros_like(start)], dim=-1), rate


def _transitions(slopes: Tensor) -> Tensor:
    """Φ(t, s) `[*, T, T, d, d]` from the T − 1 slopes between."""
    shape, d = slopes.shape[:-3], slopes.shape[-1]
    steps = slopes.shape[-3] + 1
    phi = slopes.new_zeros(*shape, steps, steps, d, d)
    for s in range(steps):
        phi[..., s, s, :, :] = torch.eye(d, dtype=slopes.dtype, device=slopes.device)
        for t in range(s + 1, steps):
            phi[..., t, s, :, :] = _held(slopes[..., t - 1, :, :] @ phi[..., t - 1, s, :, :])
    return phi


def _held(values: Tensor) -> Tensor:
    return values.clamp(-LARGEST, LARGEST)


def _within(values: Tensor, left: Tensor, clip: float) -> Tensor:
    """Vectors no longer than `clip`, and as long as it where the trajectory has left."""
    size = _size(values)[..., None]
    return torch.where(left | (size > clip), clip * values / size.clamp_min(1e-300), values)


def _size(values: Tensor) -> Tensor:
    """|α|, without the squares, which would overflow."""
    return values[..., 0].abs() if values.shape[-1] == 1 else torch.hypot(values[..., 0], values[..., 1])


def _complex(values: Tensor) -> Tensor:
    """`[*, T, d]` as `[*, T]`, complex for d = 2."""
    return values[..., 0] if values.shape[-1] == 1 else torch.complex(values[..., 0], values[..., 1])
