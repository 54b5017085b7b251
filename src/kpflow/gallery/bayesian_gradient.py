"""A policy gradient by Bayesian quadrature, exact after as many samples as there are parameters."""

from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .draws import normal
from .entry import Check, Entry, Panel, curve, formula, identity, monte_carlo, pair, points
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

    quadrature: Tensor  # [n], root mean squares
    plain: Tensor  # [n]
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
    paper = "Ghavamzadeh, Engel, Valko 2026, Bayesian policy gradient, arXiv 2604.27563; Ghavamzadeh, Engel 2006"
    kernels = (
        "Fisher's kernel is the NTK of log π with the metric G⁻¹, of rank d: samples beyond its rank bring no news, "
        "and the gradient is exact."
    )
    omits = "A baseline and noise in Q, actor and critic in turn, and what the posterior variance is good for."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, ridge: float = 1e-10) -> System:
        if not 1e-11 <= ridge <= 1e-9:
            raise ValueError(
                f"`ridge` must be between 1e-11 and 1e-9; got {ridge!r}: the gradient is exact from d samples on only "
                f"where Q is taken to be free of noise, as far as rounding allows."
            )
        generator = torch.Generator().manual_seed(seed)
        theta, weights = normal(generator, 2, SIZE)
        return System(theta, weights, 0.4 if broken else WIDTH, ridge, 12_000 if short else 40_000, generator)

    def run(self, system: System) -> Observed:
        errors = torch.stack([_errors(system, count) for count in COUNTS])  # [n, 2, repeats]
        quadrature, plain = errors.square().mean(dim=2).sqrt().unbind(dim=1)
        states, noise, score = _draw(system, 20)
        seen = torch.cat([states, (states @ system.theta)[:, None] + noise[:, None]], dim=1)
        many = _draw(system, 5 * system.repeats)[2]
        return Observed(
            quadrature,
            plain,
            float(errors[COUNTS.index(7) :, 0].max()),
            output_ntk(Policy(system.theta), seen, 1 / FISHER),
            score / FISHER @ score.mT,
            many.mT @ many / len(many),
        )

    def predict(self, system: System) -> Predicted:
        counts = torch.tensor(COUNTS, dtype=torch.float64)
        return Predicted((1 - counts / SIZE).clamp_min(0).sqrt(), ((3 * SIZE + 5) / counts).sqrt())

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        few = COUNTS.index(SIZE)
        values = torch.linalg.eigvalsh(observed.kernel)
        metric = observed.metric / FISHER.outer(FISHER).sqrt()
        left, gone = observed.quadrature.split([few, len(COUNTS) - few])
        return [
            monte_carlo.close("Bayesian quadrature, n < d: √(1 − n/d)", predicted.quadrature[:few], left, 0.01),
            formula.close("Bayesian quadrature, n ≥ d", 0.0, gone, 3e-6),
            formula.close("Bayesian quadrature, n ≥ 7: the worst", 0.0, observed.worst, 1e-9),
            monte_carlo.close("plain average: √((3d + 5)/n)", predicted.plain, observed.plain, 0.15, relative=True),
            monte_carlo.close("E u uᵀ is G, whitened", torch.eye(SIZE), metric, 0.1),
            identity.close("Fisher's kernel: NTK of log π with metric G⁻¹", observed.fisher, observed.kernel, 1e-10),
            identity.close("its rank is d", SIZE, int((values > 1e-9 * values[-1]).sum()), 0.0),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        few = COUNTS.index(SIZE)
        values = torch.linalg.eigvalsh(observed.kernel).flip(0)
        law = torch.cat([predicted.quadrature[:few], torch.tensor([1e-3, 1e-16])])
        errors = (
            *pair("plain average, √((3d + 5)/n)", COUNTS, predicted.plain, observed.plain),
            curve("quadrature, √(1 − n/d)", [*COUNTS[:few], SIZE, SIZE], law, group=1),
            points("", COUNTS, observed.quadrature, group=1),
        )
        spectrum = points("", torch.arange(1, 21), values.clamp_min(1e-16))
        rank = curve("rank d", [SIZE + 0.5] * 2, [1e-16, 1e2], group=1)
        return (
            Panel.of("Relative error of the policy gradient", "samples", "root mean square", *errors, log="xy"),
            Panel.of("Spectrum of the NTK of log π with G⁻¹", "number", "eigenvalue", spectrum, rank, log="y"),
        )


@final
class Policy(nn.Module):
    """log N(a; θ·s, σ²) of rows (s, a), up to a constant."""

    def __init__(self, theta: Tensor) -> None:
        nn.Module.__init__(self)
        self.theta = nn.Parameter(theta.clone())

    def forward(self, seen: Tensor) -> Tensor:
        return -0.5 * ((seen[:, -1] - seen[:, :-1] @ self.theta) / WIDTH).square()[:, None]


def _draw(system: System, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """States, noises of actions and scores (a − θ·s)s/σ²."""
    states = VARIANCES.sqrt() * normal(system.generator, *shape, SIZE)
    noise = system.width * normal(system.generator, *shape)
    return states, noise, noise[..., None] * states / WIDTH**2


def _errors(system: System, count: int) -> Tensor:
    """Of quadrature and of the plain average, for each of the draws, shape [2, repeats]."""
    whitened = _draw(system, system.repeats, count)[2] / FISHER.sqrt()
    truth = FISHER.sqrt() * system.weights
    values = whitened @ truth
    # U(K + ε²)⁻¹Q = (U UᵀG⁻¹ + ε²)⁻¹U Q, least squares with d rows more: well posed where K is singular
    ridge = system.ridge * torch.eye(SIZE, dtype=torch.float64)
    Q, R = torch.linalg.qr(torch.cat([whitened, ridge.expand(len(whitened), -1, -1)], dim=1))
    quadrature = torch.linalg.solve_triangular(R, Q.mT @ pad(values, (0, SIZE))[..., None], upper=True)[..., 0]
    gaps = torch.stack([quadrature, (whitened * values[..., None]).mean(dim=1)]) - truth
    return torch.linalg.vector_norm(gaps, dim=2) / torch.linalg.vector_norm(truth)
