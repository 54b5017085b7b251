"""Integration and AngularIntegration: the integral of the input so far, on a line and on a circle."""

import dataclasses
import math
from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_one_of, check_positive, check_range

from .base import Task, check_noise, need_condition, trials_of
from .directions import angular_distance, draw_angles, read_angle, to_channels
from .scores import explained, within
from .timing import consecutive, to_steps
from .trials import Trials

__all__ = ["AngularIntegration", "Integration"]


@final
@dataclasses.dataclass(frozen=True)
class Integration(Task):
    """The leaky integral of a noisy input: y_t = (1 − λ) y_{t−1} + u_t Δ, y_{−1} = 0, Δ = dt/1000 in seconds.

    u_t = b + s ξ_t/√Δ with ξ white noise of variance 1, so that the noise in y after a time does not depend on dt. With
    `bound` A, y is clamped to [−A, A] at every step, before it is carried on. One input, one output, all steps have
    weight. A network that solves the task has the leading multiplier 1 − λ.

    One epoch, `integration`, whose static input is the mean b, the condition `drift`; b ~ U(−`drift`, `drift`), and the
    other condition is `final`, y at the last step. On the grid b goes evenly from −`drift` to `drift`, and ξ is 0.

    With `pulses` r > 0 the input is pulses of one step instead, each of which moves y by ±`jump`, u = ±`jump`/Δ: one
    comes with probability r Δ at each step, but none within `refractory` of the one before. Then b = 0, also as the
    static input. On the grid they come regularly, and move y by amounts that go evenly from −`jump` to `jump`.

    An output is right where |ŷ − y| < `tolerance`. `score` returns `accuracy`, the fraction of right outputs, and `r2`,
    the variance explained.

    Args:
        steps: T.
        drift: The largest b, per second.
        spread: s, the noise that is to be integrated, per √second.
        leak: λ per step, in [0, 1].
        bound: A, or infinity.
        tolerance: Error below which an output is right.
        sigma: Standard deviation, per step, of further noise on the input that the target does not contain.
        dt: Duration of a step, ms.
        tau: Time constant of the units, ms.
        pulses: r, per second outside of refractory times; 0 for b and ξ.
        refractory: Time after a pulse in which there is no other, ms.
        jump: By how much a pulse moves y.

    Raises:
        ValueError: A parameter is out of range.

    Source: Maheswaranathan et al. (2019) and the tutorials of computation-through-dynamics for drift and noise, with
    targets Σ_{s ≤ t} u_s Δ; trainRNNbrain for pulses with refractory times; leak, bound and the parameters are ours.

    Example:
        >>> trials = Integration(steps=4, drift=1.0, leak=0.5, dt=1000.0).sample(2, mode="grid")
        >>> trials.targets[:, :, 0].tolist()
        [[-1.0, -1.5, -1.75, -1.875], [1.0, 1.5, 1.75, 1.875]]
        >>> Integration(steps=5, pulses=25.0, refractory=20.0).sample(2, mode="grid").targets[:, :, 0].tolist()
        [[-0.5, -0.5, -1.0, -1.0, -1.5], [0.5, 0.5, 1.0, 1.0, 1.5]]
    """

    steps: int = 100
    drift: int | float = 1.0
    spread: int | float = 0.5
    leak: int | float = 0.0
    bound: int | float = math.inf
    tolerance: int | float = 0.1
    sigma: int | float = 0.0
    dt: int | float = 20.0
    tau: int | float = 100.0
    pulses: int | float = 0.0
    refractory: int | float = 100.0
    jump: int | float = 0.5

    def __post_init__(self) -> None:
        check_positive("steps", self.steps, integer=True)
        check_range("drift", self.drift, 0)
        check_range("spread", self.spread, 0)
        check_range("leak", self.leak, 0, 1)
        check_positive("bound", self.bound)
        check_positive("tolerance", self.tolerance)
        check_noise(self)
        check_range("pulses", self.pulses, 0, 1000 / self.dt)
        check_range("refractory", self.refractory, 0)
        check_positive("jump", self.jump)

    @property
    def name(self) -> str:
        return "integration"

    @property
    def input_labels(self) -> tuple[str, ...]:
        return ("velocity",)

    @property
    def output_labels(self) -> tuple[str, ...]:
        return ("position",)

    @property
    def epoch_names(self) -> tuple[str, ...]:
        return ("integration",)

    @property
    def condition_names(self) -> tuple[str, ...]:
        return ("drift", "final")

    @property
    def noise_std(self) -> float:
        return float(self.sigma)

    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:  # noqa: ARG002
        step = self.dt / 1000
        if self.pulses:
            drift, velocity = torch.zeros(B, dtype=torch.float64), self._pulses(B, generator) / step
        elif generator is None:
            drift = self.drift * torch.linspace(-1, 1, B, dtype=torch.float64) if B > 1 else torch.zeros(1).double()
            velocity = drift[:, None].repeat(1, self.steps)
        else:
            drift = self.drift * (2 * torch.rand(B, generator=generator, dtype=torch.float64) - 1)
            noise = torch.randn(B, self.steps, generator=generator, dtype=torch.float64)
            velocity = drift[:, None] + self.spread / math.sqrt(step) * noise  # [B, T]
        position = torch.empty_like(velocity)
        held = torch.zeros(B, dtype=torch.float64)
        for t in range(self.steps):
            held = ((1 - self.leak) * held + step * velocity[:, t]).clamp(-self.bound, self.bound)
            position[:, t] = held
        targets = position[:, :, None]
        return trials_of(
            self,
            inputs=velocity[:, :, None].clone(),
            targets=targets,
            mask=torch.ones_like(targets),
            epochs=consecutive(self.epoch_names, torch.full((B, 1), self.steps)),
            conditions={"drift": drift, "final": position[:, -1].clone()},
        )

    def _pulses(self, B: int, generator: torch.Generator | None) -> Float[Tensor, "B T"]:
        """By how much the pulse of each step moves y; 0 where there is none."""
        chance, rest = self.pulses * self.dt / 1000, to_steps(self.refractory, self.dt)
        if generator is None:
            comes = (torch.arange(self.steps) % max(round(1 / chance), rest + 1) == 0).expand(B, self.steps)
            size = torch.linspace(-1, 1, B, dtype=torch.float64) if B > 1 else torch.ones(1, dtype=torch.float64)
            return self.jump * size[:, None] * comes
        comes = torch.rand(B, self.steps, generator=generator, dtype=torch.float64) < chance
        for t in range(1, self.steps):
            comes[:, t] &= ~comes[:, max(0, t - rest) : t].any(dim=1)
        sign = 2 * torch.randint(2, (B, self.steps), generator=generator) - 1
        return self.jump * (sign * comes).double()

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:
        return need_condition(conditions, "drift", epoch).to(zeros)[:, None].clone()

    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        return {"accuracy": within(outputs, trials, self.tolerance), "r2": explained(outputs, trials)}


@final
@dataclasses.dataclass(frozen=True)
class AngularIntegration(Task):
    """A direction that turns: θ_t = θ_0 + Σ_{s ≤ t} ω_s Δ, Δ = dt/1000 in seconds; report it at every step.

    Inputs are the angular velocity in two rectified channels, max(ω, 0) and max(−ω, 0), and (cos θ₀, sin θ₀) in the
    first epoch, `initial`, in which ω = 0; in the second one, `integration`, they are 0. ω is constant in blocks whose
    durations are uniform in b … 3b − 1 steps, b = `block`, and U(−`speed`, `speed`) in each. Outputs are
    (cos θ, sin θ), and all steps have weight. The static input of `integration` is that of rest, ω = 0.

    Conditions: `initial` and `final`, θ₀ and θ_T in [0, 2π). On the grid θ₀ is 2π b/B, and ω is one constant in each
    trial, which goes through −1, −½, 0, ½, 1 times `speed`.

    An output is right where its angle is within π/10 of θ. `score` returns `accuracy`, the fraction of right steps,
    and `angular_error`, the mean error.

    Args:
        steps: Steps of the integration.
        start: Steps in which θ₀ is shown.
        block: The least duration of a velocity, in steps.
        speed: The largest |ω|, radians per second.
        order: "cos_sin" or "sin_cos".
        sigma: Standard deviation of the noise per step, on all inputs.
        dt: Duration of a step, ms.
        tau: Time constant of the units, ms.

    Raises:
        ValueError: A parameter is out of range.

    Source: Cueva & Wei (2018) and Vafidis et al. (2022) for angular velocity in two channels; the parameters are ours.

    Example:
        >>> trials = AngularIntegration(steps=2, start=1, speed=math.pi / 2, dt=1000.0).sample(5, mode="grid")
        >>> trials.inputs_clean[4, :, 0].tolist(), trials.conditions["final"][0].item()
        ([0.0, 1.57..., 1.57...], 3.14...)
    """

    steps: int = 100
    start: int = 5
    block: int = 5
    speed: int | float = math.pi
    order: str = "cos_sin"
    sigma: int | float = 0.0
    dt: int | float = 20.0
    tau: int | float = 100.0

    def __post_init__(self) -> None:
        for name in ("steps", "start", "block"):
            check_positive(name, getattr(self, name), integer=True)
        check_positive("speed", self.speed)
        check_one_of("order", self.order, ("cos_sin", "sin_cos"))
        check_noise(self)

    @property
    def name(self) -> str:
        return "angular_integration"

    @property
    def input_labels(self) -> tuple[str, ...]:
        return ("left", "right", *self.order.split("_"))

    @property
    def output_labels(self) -> tuple[str, ...]:
        return tuple(self.order.split("_"))

    @property
    def epoch_names(self) -> tuple[str, ...]:
        return ("initial", "integration")

    @property
    def condition_names(self) -> tuple[str, ...]:
        return ("initial", "final")

    @property
    def noise_std(self) -> float:
        return float(self.sigma)

    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:  # noqa: ARG002
        initial = draw_angles(B, generator)
        if generator is None:
            velocity = (self.speed * (torch.arange(B) % 5 - 2).double() / 2)[:, None].repeat(1, self.steps)
        else:
            velocity = self._velocities(B, generator)
        still = torch.zeros(B, self.start, dtype=torch.float64)
        velocity = torch.cat((still, velocity), dim=1)  # [B, T]
        angle = initial[:, None] + self.dt / 1000 * velocity.cumsum(dim=1)
        shown = torch.zeros(B, velocity.shape[1], 2, dtype=torch.float64)
        shown[:, : self.start] = to_channels(initial, self.order)[:, None]
        targets = to_channels(angle, self.order)
        durations = torch.tensor([self.start, self.steps]).expand(B, 2)
        return trials_of(
            self,
            inputs=torch.cat((velocity.clamp_min(0)[:, :, None], (-velocity).clamp_min(0)[:, :, None], shown), dim=2),
            targets=targets,
            mask=torch.ones_like(targets),
            epochs=consecutive(self.epoch_names, durations),
            conditions={"initial": initial, "final": angle[:, -1] % (2 * math.pi)},
        )

    def _velocities(self, B: int, generator: torch.Generator) -> Float[Tensor, "B T"]:
        """ω in blocks of random durations."""
        blocks = -(-self.steps // self.block)
        durations = torch.randint(self.block, 3 * self.block, (B, blocks), generator=generator)
        values = self.speed * (2 * torch.rand(B, blocks, generator=generator, dtype=torch.float64) - 1)
        step = torch.arange(self.steps).expand(B, self.steps).contiguous()
        return values.gather(1, torch.searchsorted(durations.cumsum(dim=1), step, right=True))

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:
        rest = zeros[:, None].repeat(1, 2)
        if epoch == "integration":
            return torch.cat((rest, rest), dim=1)
        return torch.cat((rest, to_channels(need_condition(conditions, "initial", epoch), self.order)), dim=1)

    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        (answered, strength), (goal, _) = (read_angle(y.double(), self.order) for y in (outputs, trials.targets))
        error = torch.where(strength == 0, math.pi, angular_distance(answered, goal))[trials.mask[:, :, 0] > 0]
        return {"accuracy": float((error < math.pi / 10).double().mean()), "angular_error": float(error.mean())}
