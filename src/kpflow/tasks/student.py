"""StudentTeacher: imitate a given recurrent network on inputs of low rank."""

import dataclasses
import math
from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_one_of, check_positive, check_range

from .base import Task, check_noise, trials_of
from .scores import explained, within
from .timing import consecutive
from .trials import Trials

__all__ = ["StudentTeacher"]


@final
@dataclasses.dataclass(frozen=True)
class StudentTeacher(Task):
    """The outputs of a teacher h_t = tanh(W_in x_t + g W h_{t−1}), y_t = W_out h_t, h_{−1} = 0, at every step.

    Inputs are x_t = Q z_t with Q `[num_inputs, r]` of orthonormal columns and z_t white, of variance `power`/r in each
    of r directions: whatever r is, the total variance of x_t is `power`. With `power=r` it is 1 per direction. With a
    `correlation` time τ_c, z_t is an Ornstein–Uhlenbeck process of the same variance from the first step on,
    z_{t+1} = ρ z_t + √(1 − ρ²) √(`power`/r) ξ_t, ρ = exp(−dt/τ_c). All steps have weight.

    W is orthogonal, or has entries N(0, 1/N); with `teacher_rank` k it keeps its k leading singular directions. W_in
    and W_out have entries N(0, 2/(in + out)) (Xavier), and biases are 0. All are drawn from `seed`, in the order W,
    W_in, W_out, Q, and are the same in every batch. `weights(g)` gives them with any gain: a student of the same class
    starts with `weights(g_student)`, and with the teacher's gain it has no error.

    One epoch, `teaching`, whose static input is the mean, 0. No conditions. On the grid, the z are the first ones of
    one fixed sequence of draws.

    An output is right where |ŷ − y| < `tolerance`. `score` returns `accuracy`, the fraction of right outputs, and `r2`,
    the variance explained.

    Args:
        N: Units of the teacher.
        num_inputs_x: Dimension of x.
        r: Rank of the inputs, at most `num_inputs_x`.
        num_readouts: Outputs of the teacher.
        g: Gain of the teacher's recurrent weights.
        recurrent: "orthogonal" or "gaussian".
        teacher_rank: k, or None for full rank.
        power: Total variance of x_t.
        correlation: τ_c, ms, or 0 for white inputs.
        target: "outputs", or "states" for h_t, N outputs.
        steps: T.
        seed: Of the weights and of Q.
        tolerance: Error below which an output is right.
        sigma: Standard deviation of the noise per step on the inputs, which the teacher does not see.
        dt: Duration of a step, ms.
        tau: Time constant of the units, ms.

    Raises:
        ValueError: A parameter is out of range, or a rank is larger than the dimension.

    Source: Hazelden (2026), arXiv 2605.08746: N = 64, T = 40, 16 inputs of rank 6, one output, an orthogonal W. A rank
    above the dimension, which their code cuts down to it, is refused.

    Example:
        >>> task = StudentTeacher(r=2)
        >>> trials = task.sample(8, dtype=torch.float64)
        >>> int(torch.linalg.matrix_rank(trials.inputs.flatten(0, 1)))
        2
        >>> {name: tuple(weight.shape) for name, weight in task.weights(1.5).items()}
        {'W': (64, 64), 'W_in': (64, 16), 'W_out': (1, 64)}
    """

    N: int = 64
    num_inputs_x: int = 16
    r: int = 6
    num_readouts: int = 1
    g: int | float = 1.0
    recurrent: str = "orthogonal"
    teacher_rank: int | None = None
    power: int | float = 1.0
    correlation: int | float = 0.0
    target: str = "outputs"
    steps: int = 40
    seed: int = 0
    tolerance: int | float = 0.1
    sigma: int | float = 0.0
    dt: int | float = 20.0
    tau: int | float = 20.0

    def __post_init__(self) -> None:
        for name in ("N", "num_inputs_x", "num_readouts", "steps"):
            check_positive(name, getattr(self, name), integer=True)
        check_range("r", self.r, 1, self.num_inputs_x, integer=True)
        if self.teacher_rank is not None:
            check_range("teacher_rank", self.teacher_rank, 1, self.N, integer=True)
        check_range("g", self.g, 0)
        check_one_of("recurrent", self.recurrent, ("orthogonal", "gaussian"))
        check_one_of("target", self.target, ("outputs", "states"))
        check_range("seed", self.seed, 0, integer=True)
        check_positive("power", self.power)
        check_range("correlation", self.correlation, 0)
        check_positive("tolerance", self.tolerance)
        check_noise(self)

    @property
    def name(self) -> str:
        return "student_teacher"

    @property
    def input_labels(self) -> tuple[str, ...]:
        return tuple(f"input {i}" for i in range(self.num_inputs_x))

    @property
    def output_labels(self) -> tuple[str, ...]:
        if self.target == "states":
            return tuple(f"unit {i}" for i in range(self.N))
        return tuple(f"output {i}" for i in range(self.num_readouts))

    @property
    def epoch_names(self) -> tuple[str, ...]:
        return ("teaching",)

    @property
    def condition_names(self) -> tuple[str, ...]:
        return ()

    @property
    def noise_std(self) -> float:
        return float(self.sigma)

    def weights(self, g: int | float | None = None) -> dict[str, Float[Tensor, "..."]]:
        """W times a gain, the teacher's if None, with W_in and W_out; float64."""
        drawn = self._drawn()
        return {"W": (self.g if g is None else g) * drawn["W"], "W_in": drawn["W_in"], "W_out": drawn["W_out"]}

    def _drawn(self) -> dict[str, Tensor]:
        """W without its gain, W_in, W_out and Q."""
        source = torch.Generator().manual_seed(self.seed)

        def normal(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=source, dtype=torch.float64)

        W = normal(self.N, self.N)
        W = torch.linalg.qr(W)[0] if self.recurrent == "orthogonal" else W / self.N**0.5
        if self.teacher_rank is not None:
            left, values, right = torch.linalg.svd(W)
            k = self.teacher_rank
            W = left[:, :k] * values[:k] @ right[:k]
        return {
            "W": W,
            "W_in": normal(self.N, self.num_inputs_x) * (2 / (self.N + self.num_inputs_x)) ** 0.5,
            "W_out": normal(self.num_readouts, self.N) * (2 / (self.N + self.num_readouts)) ** 0.5,
            "Q": torch.linalg.qr(normal(self.num_inputs_x, self.r))[0],
        }

    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:  # noqa: ARG002
        source = torch.Generator().manual_seed(0) if generator is None else generator
        drawn = self._drawn()
        z = torch.randn(B, self.steps, self.r, generator=source, dtype=torch.float64) * (self.power / self.r) ** 0.5
        kept = math.exp(-self.dt / self.correlation) if self.correlation > 0 else 0.0
        for t in range(1, self.steps):
            z[:, t] = kept * z[:, t - 1] + (1 - kept**2) ** 0.5 * z[:, t]
        inputs = z @ drawn["Q"].T
        states = self._states(inputs, drawn)
        targets = states if self.target == "states" else states @ drawn["W_out"].T
        return trials_of(
            self,
            inputs=inputs,
            targets=targets,
            mask=torch.ones_like(targets),
            epochs=consecutive(self.epoch_names, torch.full((B, 1), self.steps)),
            conditions={},
        )

    def _states(self, inputs: Float[Tensor, "B T I"], drawn: Mapping[str, Tensor]) -> Float[Tensor, "B T N"]:
        """h_0 … h_{T−1} of the teacher."""
        pushed = inputs @ drawn["W_in"].T
        h = torch.zeros_like(pushed[:, 0])
        states = []
        for t in range(self.steps):
            h = torch.tanh(pushed[:, t] + self.g * h @ drawn["W"].T)
            states.append(h)
        return torch.stack(states, dim=1)

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:  # noqa: ARG002
        return zeros[:, None].repeat(1, self.num_inputs_x)

    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        return {"accuracy": within(outputs, trials, self.tolerance), "r2": explained(outputs, trials)}
