"""Generalised teacher forcing: a factor 1 − α inside P, and how large α must be."""

import dataclasses
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_range
from kpflow.states import Linearisation
from kpflow.states.credit import damped, windowed

__all__ = ["Forcing", "forcing", "teacher_forced"]


def teacher_forced(linearisation: Linearisation, strength: float | Tensor) -> Linearisation:
    """The linearisation of z_t = F((1−α) z_{t−1} + α ẑ_{t−1}), whose P is (I − (1−α) ∂F/∂S)⁻¹ over times.

    Its operators are those of training under forcing by the recorded states themselves, ẑ = z: at teacher states that
    the network reproduces, or on the recorded trajectory of a forced step. Products Φ(t, s) of Jacobians are multiplied
    by (1−α)^(t−s), so all Lyapunov exponents fall by −ln(1−α) a step. Layers see each other within a step as before.

    Args:
        linearisation: Of a recurrent network.
        strength: α in [0, 1]; or one for every step, shape `[T]`: 0 and 1 for sparse forcing. α_t acts on what step t
            receives from t − 1.

    Raises:
        ValueError: The linearisation is that of a graph, or a strength is no number in [0, 1] or not one a step.

    References:
        Hess, Monfared, Brenner, Durstewitz 2023, arXiv 2306.04406.

    Example:
        >>> import kpflow as kp
        >>> lin = kp.linearise(torch.nn.RNN(1, 4, batch_first=True), torch.ones(2, 5, 1))
        >>> kick = torch.zeros(2, 5, 4)
        >>> kick[:, 0] = 1.0
        >>> free, forced = (kp.Propagator(at)(kick) for at in (lin, teacher_forced(lin, 0.5)))
        >>> torch.allclose(forced[:, 3], 0.125 * free[:, 3])
        True
    """
    if not isinstance(strength, Tensor):
        check_range("strength", strength, 0, 1)
        steps = linearisation.states.shape[1] if linearisation.states.ndim == 3 else 1
        return damped(linearisation, torch.full((steps,), 1.0 - float(strength), dtype=torch.float64))
    if tuple(strength.shape) != tuple(linearisation.states.shape[1:2]):
        raise ValueError(
            f"`strength` must be one number, or one for each of the {linearisation.states.shape[1]} steps; got shape "
            f"{tuple(strength.shape)}."
        )
    if not bool(((strength >= 0) & (strength <= 1)).all()):
        raise ValueError("`strength` must be within [0, 1] at every step. Clamp it.")
    return damped(linearisation, 1 - strength.detach())


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Forcing:
    """How large the forcing α must be along recorded trajectories; critical ≤ geometric ≤ strict.

    Args:
        norms: σ_t = ‖A_t‖ of the steps after the first, shape `[B, T − 1]`, float64.
        growth: ln‖A_{T−1} … A_1‖ / (T − 1) of each trial, shape `[B]`: its largest finite-time Lyapunov exponent; −∞
            where nothing of a perturbation is left.
    """

    norms: Float[Tensor, "B S"]
    growth: Float[Tensor, " B"]

    @property
    def critical(self) -> float:
        """1 − e^{−λ} with λ the mean growth: the smallest α at which perturbations and gradients do not grow."""
        return max(0.0, -float(torch.expm1(-self.growth.mean())))

    @property
    def geometric(self) -> float:
        """1 − 1/exp⟨ln σ_t⟩."""
        return max(0.0, -float(torch.expm1(-self.norms.log().mean())))

    @property
    def strict(self) -> float:
        """1 − 1/max σ_t: no product of the forced Jacobians exceeds one."""
        largest = float(self.norms.max())
        return 1 - 1 / largest if largest > 1 else 0.0

    def bound(self, strength: float) -> float:
        """1 / (1 − (1−α) max σ), which ‖P‖ does not exceed; inf below `strict`."""
        left = 1 - (1 - strength) * float(self.norms.max())
        return 1 / left if left > 0 else float("inf")

    def __repr__(self) -> str:
        return f"Forcing(critical {self.critical:.3g}, geometric {self.geometric:.3g}, strict {self.strict:.3g})"


def forcing(linearisation: Linearisation) -> Forcing:
    """Measure the Jacobians A_t = ∂z_t/∂z_{t−1} along trajectories: what generalised teacher forcing needs.

    The Jacobians are formed, B·T·H² numbers.

    Args:
        linearisation: Of a recurrent network, unforced, at the teacher's states, with two steps at least.

    Raises:
        ValueError: The linearisation is that of a graph, or has one step.

    References:
        Hess, Monfared, Brenner, Durstewitz 2023, arXiv 2306.04406 (α* = 1 − 1/max σ, and its geometric mean).

    Example:
        >>> import kpflow as kp
        >>> rnn = kp.states.cells.RateRNN(1, 8, gain=3.0)
        >>> forcing(kp.linearise(rnn, torch.ones(2, 50, 1)))
        Forcing(critical 0..., geometric 0..., strict 0...)
    """
    within = windowed(linearisation, 1)  # what layers do within a step
    trials, steps, width = linearisation.states.shape
    if steps < 2:
        raise ValueError(f"`linearisation` must have two steps at least, to have a Jacobian; got {steps}.")
    units = torch.eye(width, dtype=within.states.dtype, device=within.states.device)
    probes = units[:, None, None].expand(width, trials, steps, width).contiguous()
    moved = within.propagate(within.residual(probes) - linearisation.residual(probes))
    jacobians = moved[:, :, 1:].permute(1, 2, 3, 0).double()  # [B, T − 1, H, H]
    norms = torch.linalg.matrix_norm(jacobians, ord=2)
    product, growth = jacobians[:, 0], torch.zeros_like(norms[:, 0])
    for step in range(steps - 1):
        product = jacobians[:, step] @ product if step else product
        size = torch.linalg.matrix_norm(product, ord=2)
        growth, product = growth + size.log(), product / torch.where(size > 0, size, 1.0)[:, None, None]
    return Forcing(norms.cpu(), (growth / (steps - 1)).cpu())
