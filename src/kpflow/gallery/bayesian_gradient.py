"""A policy gradient by Bayesian quadrature, exact after as many samples as there are parameters."""

from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from .entry import Check, Entry, Panel, curve, identity, monte_carlo, points
from .students import output_ntk

__all__ = ["BayesianGradient"]

SIZE = 5
COUNTS = (1, 2, 3, 4, 5, 7, 10, 20)
WIDTH = 0.5
VARIANCES = torch.tensor([2.0, 1.0, 1.0, 0.5, 0.25], dtype=torch.float64)
FISHER = VARIANCES / WIDTH**2  # the diagonal of G


@final
class System(NamedTuple):
    """A policy a ~ N(θ·s, σ²), states s ~ N(0, diag), Q = w·∇log π; `ridge` is the noise that Q is taken to have."""

    theta: Tensor  # [5]
    weights: Tensor  # w, [5]
    width: float  # of the actions that are taken, σ
    ridge: float
    repeats: int
    generator: torch.Generator


@final
class Observed(NamedTuple):
    """Errors over draws, whitened: ‖G^{−½}(ĝ − g)‖ over that of g."""

    quadrature: Tensor  # [n], root mean squares; medians from d samples on, since d can be nearly dependent
    plain: Tensor  # [n], root mean squares
    worst: float  # of quadrature from seven samples on
    kernel: Tensor  # [20, 20], NTK of log π with the metric G⁻¹
    fisher: Tensor  # [20, 20], by the formula of the score
    metric: Tensor  # [5, 5], mean outer product of the score


@final
class Predicted(NamedTuple):
    """Of the same errors."""

    quadrature: Tensor
    plain: Tensor


@final
class BayesianGradient(Entry[System, Observed, Predicted]):
    """∇J = E[Q ∇log π] with a Gaussian process for Q whose kernel is Fisher's, uᵀG⁻¹u′ with the score u = ∇log π.

    The posterior mean is U(K + ε²)⁻¹Q. Where Q is linear in the score, n < d samples leave the share √(1 − n/d) of the
    gradient, whitened by G, and n ≥ d leave none; the plain average, √((3d + 5)/n).
    """

    name = "bayesian_gradient"
    title = "Policy gradients by Bayesian quadrature"
    paper = "Bayesian policy gradients with Fisher kernels, 2026, arXiv 2604.27563; Ghavamzadeh, Engel 2006"
    kernels = (
        "Fisher's kernel is the NTK of log π with the metric G⁻¹, of rank d: samples beyond its rank bring no news, "
        "and the gradient is exact."
    )
    omits = "A baseline and noise in Q, actor and critic in turn, and what the posterior variance is good for."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, ridge: float = 1e-6) -> System:
        if not 1e-6 <= ridge <= 1e-5:
            raise ValueError(
                f"`ridge` must be between 1e-6 and 1e-5; got {ridge!r}: the gradient is exact from d samples on only "
                f"where Q is taken to be free of noise, as far as rounding allows."
            )
        generator = torch.Generator().manual_seed(seed)
        theta, weights = torch.randn(2, SIZE, generator=generator, dtype=torch.float64)
        return System(theta, weights, 0.4 if broken else WIDTH, ridge, 12_000 if short else 40_000, generator)

    def run(self, system: System) -> Observed:
        errors = torch.stack([_errors(system, count) for count in COUNTS])  # [n, 2, repeats]
        below, beyond = errors[:, 0].split([COUNTS.index(SIZE), len(COUNTS) - COUNTS.index(SIZE)])
        states, noise, score = _draw(system, (20,))
        seen = torch.cat([states, (states @ system.theta)[:, None] + noise[:, None]], dim=1)
        many = _draw(system, (5 * system.repeats,))[2]
        return Observed(
            torch.cat([below.square().mean(dim=1).sqrt(), beyond.median(dim=1).values]),
            errors[:, 1].square().mean(dim=1).sqrt(),
            float(errors[COUNTS.index(7) :, 0].max()),
            output_ntk(Policy(system.theta), seen, 1 / FISHER),
            score / FISHER @ score.mT,
            many.mT @ many / len(many),
        )

    def predict(self, system: System) -> Predicted:
        counts = torch.tensor(COUNTS, dtype=torch.float64)
        return Predicted((1 - counts / SIZE).clamp_min(0).sqrt(), ((3 * SIZE + 5) / counts).sqrt())

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        exact = COUNTS.index(SIZE)
        values = torch.linalg.eigvalsh(observed.kernel)
        metric = observed.metric / FISHER.outer(FISHER).sqrt()
        # eight seeds, short: at most 5e-3, 7e-11, 8e-7, 6.5 % and 0.034
        return [
            monte_carlo.close(
                "Bayesian quadrature, n < d: √(1 − n/d)",
                predicted.quadrature[:exact],
                observed.quadrature[:exact],
                0.05,
            ),
            monte_carlo.close("Bayesian quadrature, n ≥ d: median", 0.0, observed.quadrature[exact:], 3e-6),
            monte_carlo.close("Bayesian quadrature, n ≥ 7: the worst", 0.0, observed.worst, 1e-5),
            monte_carlo.close("plain average: √((3d + 5)/n)", predicted.plain, observed.plain, 0.15, relative=True),
            monte_carlo.close("E u uᵀ is G, whitened", torch.eye(SIZE), metric, 0.1),
            identity.close(
                "Fisher's kernel is the NTK of log π with the metric G⁻¹", observed.fisher, observed.kernel, 1e-10
            ),
            identity.close("its rank is d", SIZE, int((values > 1e-9 * values[-1]).sum()), 0.0),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        below = COUNTS.index(SIZE)
        values = torch.linalg.eigvalsh(observed.kernel).flip(0)
        number = torch.arange(1, len(values) + 1)
        return (
            Panel.of(
                "Relative error of the policy gradient",
                "samples",
                "root mean square",
                curve("plain average, √((3d + 5)/n)", COUNTS, predicted.plain),
                points("", COUNTS, observed.plain),
                curve(
                    "quadrature, √(1 − n/d)",
                    [*COUNTS[:below], 5, 5],
                    [*predicted.quadrature[:below].tolist(), 1e-3, 1e-13],
                    group=1,
                ),
                points("", COUNTS, observed.quadrature, group=1),
                log="xy",
            ),
            Panel.of(
                "Spectrum of the NTK of log π with G⁻¹",
                "number",
                "eigenvalue",
                points("", number, values.clamp_min(1e-16)),
                curve("rank d", [SIZE + 0.5] * 2, [1e-16, 1e2], group=1),
                log="y",
            ),
        )


@final
class Policy(nn.Module):
    """log N(a; θ·s, σ²) of rows (s, a), up to a constant."""

    def __init__(self, theta: Tensor) -> None:
        nn.Module.__init__(self)
        self.theta = nn.Parameter(theta.clone())

    def forward(self, seen: Tensor) -> Tensor:
        return -0.5 * ((seen[:, -1] - seen[:, :-1] @ self.theta) / WIDTH).square()[:, None]


def _draw(system: System, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """States, noises of actions and scores (a − θ·s)s/σ²."""
    states = VARIANCES.sqrt() * torch.randn(*shape, SIZE, generator=system.generator, dtype=torch.float64)
    noise = system.width * torch.randn(*shape, generator=system.generator, dtype=torch.float64)
    return states, noise, noise[..., None] * states / WIDTH**2


def _errors(system: System, count: int) -> Tensor:
    """Of quadrature and of the plain average, for each of the draws, shape [2, repeats]."""
    score = _draw(system, (system.repeats, count))[2]
    values = score @ system.weights
    # U(K + ε²)⁻¹Q = (U UᵀG⁻¹ + ε²)⁻¹U Q: d equations for n, and well posed where K is singular
    inner = score.mT @ score / FISHER + system.ridge**2 * torch.eye(SIZE, dtype=torch.float64)
    quadrature = torch.linalg.solve(inner, score.mT @ values[..., None])[..., 0]
    truth = FISHER * system.weights
    gaps = torch.stack([quadrature, (score * values[..., None]).mean(dim=1)]) - truth
    return torch.linalg.vector_norm(gaps / FISHER.sqrt(), dim=2) / torch.linalg.vector_norm(truth / FISHER.sqrt())
