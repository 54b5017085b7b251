"""LowRankForecast: many observations of a small linear system, one step ahead."""

import dataclasses
from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_positive, check_range

from .base import Task, check_noise, trials_of
from .scores import explained, within
from .timing import consecutive
from .trials import Trials

__all__ = ["LowRankForecast"]


@final
@dataclasses.dataclass(frozen=True)
class LowRankForecast(Task):
    """Forecast nonlinear observations of K latent variables from other such observations.

    z_{t+1} = 0.8 z_t + 0.2 A z_t with A orthogonal `[K, K]` and z_0 ~ N(0, I); x_t = C z_t in `dim` dimensions. The
    input at step t is sin(W_i x_t + b_i) in `num_observed` channels, the target sin(W_o x_{t+1} + b_o) in
    `num_forecast` channels, and all steps have weight. So whatever the numbers of channels are, inputs and targets are
    functions of K variables.

    C has entries N(0, 1), W_i and W_o N(0, 1/dim), b_i and b_o N(0, 1); all are drawn from `seed`, in the order A, C,
    W_i, b_i, W_o, b_o, and are the same in every batch: `system()` gives them.

    One epoch, `forecast`, whose static input is that of z = 0, sin b_i. No conditions. On the grid, the z_0 are the
    first B of one fixed sequence of draws.

    An output is right where |ŷ − y| < `tolerance`. `score` returns `accuracy`, the fraction of right outputs, and `r2`,
    the variance explained.

    Args:
        K: Number of latent variables.
        dim: Dimension of x.
        num_observed: Number of inputs, D_inp.
        num_forecast: Number of outputs, D_targ.
        steps: T.
        seed: Of the system.
        tolerance: Error below which an output is right.
        sigma: Standard deviation of the noise per step, on the inputs.
        dt: Duration of a step, ms.
        tau: Time constant of the units, ms.

    Raises:
        ValueError: A parameter is out of range.

    Source: Hazelden et al. (2025), arXiv 2507.06381, for the system and the sizes; they have noise 0.01 on x instead of
    the inputs. The scale of W and b is ours.

    Example:
        >>> task = LowRankForecast(K=2, num_observed=5, num_forecast=3, steps=4)
        >>> trials = task.sample(6)
        >>> trials.inputs.shape, trials.targets.shape
        (torch.Size([6, 4, 5]), torch.Size([6, 4, 3]))
    """

    K: int = 10
    dim: int = 100
    num_observed: int = 100
    num_forecast: int = 100
    steps: int = 30
    seed: int = 0
    tolerance: int | float = 0.1
    sigma: int | float = 0.01
    dt: int | float = 20.0
    tau: int | float = 20.0

    def __post_init__(self) -> None:
        for name in ("K", "dim", "num_observed", "num_forecast", "steps"):
            check_positive(name, getattr(self, name), integer=True)
        check_range("seed", self.seed, 0, integer=True)
        check_positive("tolerance", self.tolerance)
        check_noise(self)

    @property
    def name(self) -> str:
        return "low_rank_forecast"

    @property
    def input_labels(self) -> tuple[str, ...]:
        return tuple(f"observed {i}" for i in range(self.num_observed))

    @property
    def output_labels(self) -> tuple[str, ...]:
        return tuple(f"forecast {i}" for i in range(self.num_forecast))

    @property
    def epoch_names(self) -> tuple[str, ...]:
        return ("forecast",)

    @property
    def condition_names(self) -> tuple[str, ...]:
        return ()

    @property
    def noise_std(self) -> float:
        return float(self.sigma)

    def system(self) -> dict[str, Tensor]:
        """A, C, W_i, b_i, W_o, b_o, float64."""
        g = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        return {
            "A": torch.linalg.qr(normal(self.K, self.K))[0],
            "C": normal(self.dim, self.K),
            "W_i": normal(self.num_observed, self.dim) / self.dim**0.5,
            "b_i": normal(self.num_observed),
            "W_o": normal(self.num_forecast, self.dim) / self.dim**0.5,
            "b_o": normal(self.num_forecast),
        }

    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:  # noqa: ARG002
        source = torch.Generator().manual_seed(0) if generator is None else generator
        system = self.system()
        x = self._latents(torch.randn(B, self.K, generator=source, dtype=torch.float64), system) @ system["C"].T
        targets = (x[:, 1:] @ system["W_o"].T + system["b_o"]).sin()  # [B, T, O]
        return trials_of(
            self,
            inputs=(x[:, :-1] @ system["W_i"].T + system["b_i"]).sin(),
            targets=targets,
            mask=torch.ones_like(targets),
            epochs=consecutive(self.epoch_names, torch.full((B, 1), self.steps)),
            conditions={},
        )

    def _latents(self, z: Float[Tensor, "B K"], system: Mapping[str, Tensor]) -> Float[Tensor, "B T1 K"]:
        """z_0 … z_T."""
        course = [z]
        for _ in range(self.steps):
            course.append(0.8 * course[-1] + 0.2 * course[-1] @ system["A"].T)
        return torch.stack(course, dim=1)

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:  # noqa: ARG002
        return self.system()["b_i"].sin().to(zeros).repeat(len(zeros), 1)

    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        return {"accuracy": within(outputs, trials, self.tolerance), "r2": explained(outputs, trials)}
