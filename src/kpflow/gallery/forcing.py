"""Generalised teacher forcing of a chaotic system: how strong it must be for gradients not to explode."""

from typing import NamedTuple, final

import torch
from torch import Tensor

from kpflow.dynamics import lyapunov_spectrum
from kpflow.flow import Forcing, Propagator, forcing, teacher_forced
from kpflow.operators import to_dense
from kpflow.states import Linearisation, linearise

from .draws import normal
from .entry import Check, Entry, Panel, curve, formula, identity, monte_carlo, points
from .flows import rk4

__all__ = ["TeacherForcing"]

DT, SUBSTEPS = 0.05, 5
LORENZ = torch.tensor([10.0, 28.0, 8 / 3], dtype=torch.float64)
STRENGTHS = torch.tensor([0.0, 0.02, 0.1, 0.3], dtype=torch.float64)
HIDDEN, RIDGE = 60, 1e-6
LITERATURE = 0.9056  # λ of the Lorenz system (Viswanath 1998; Sprott 2003)


@final
class System(NamedTuple):
    """Trajectories of the Lorenz system on its attractor, and a piecewise linear network fitted to one step."""

    paths: Tensor  # [B, T + 1, 3]
    scaled: Tensor  # [8, T + 1, 3], the first ones, in units of their spread
    network: dict[str, Tensor]
    error: float  # mean square of its one-step predictions
    scale: float  # α of what is run over the α that is stated


@final
class Observed(NamedTuple):
    """Growth rates, Jacobians and gradients."""

    exponents: Tensor  # [3], of the Lorenz system
    rates: Tensor  # [α], of a small deviation under forcing
    far: Tensor  # [2], distance from the teacher after forcing below and above the critical α
    path: Forcing  # along a few trajectories of 400 steps
    lorenz: Forcing  # at many states of the attractor
    products: tuple[float, float]  # the largest ‖A_t … A_s‖ with and without forcing
    student: Forcing
    growth: list[float]  # of gradients from 25 to 400 steps, without forcing and with the strict α
    singular: Tensor  # [4, n], of P at α = 0, α*, 0.6 and 0.8


@final
class Predicted(NamedTuple):
    """From λ, from Jacobians by automatic differentiation, and from the norms of the network's weights."""

    rates: Tensor  # ln(1 − α)/dt
    strengths: list[float]  # the geometric and the strict α
    data_free: float  # the strength that the norms of the weights ask for


@final
class TeacherForcing(Entry[System, Observed, Predicted]):
    """Forcing z_t = F((1−α) z + α ẑ) moves Lyapunov exponents by ln(1−α)/dt: none is positive from 1 − e^{−λ dt}.

    The Lorenz system by its one-step map, and a piecewise linear network (shPLRNN, random hidden layer, ridge read-out)
    that was fitted to it.
    """

    name = "forcing"
    title = "Generalised teacher forcing"
    paper = "Hess, Monfared, Brenner, Durstewitz 2023, arXiv 2306.04406"
    kernels = (
        "Forcing is a factor inside the propagator, P = (I − (1−α)L)⁻¹ with ‖P‖ ≤ 1/(1 − (1−α)σ_max): to choose α "
        "is to choose ‖P‖, and the NTK follows."
    )
    omits = "Training with annealed α, observation models, and the quality of reconstructed attractors."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator = torch.Generator().manual_seed(seed)
        state = 8 * normal(generator, 96, 3) + torch.tensor([0.0, 0.0, 25.0])
        for _ in range(100):
            state = _lorenz(state)
        path = [state]
        for _ in range(401 if short else 1201):
            path.append(_lorenz(path[-1]))
        paths = torch.stack(path, dim=1)
        network, error, scaled = _fitted(paths, generator)
        return System(paths, scaled, network, error, 0.7 if broken else 1.0)

    def run(self, system: System) -> Observed:
        paths, zero = system.paths, torch.zeros(1, dtype=torch.float64)
        steps = paths.shape[1] - 1
        spectrum = lyapunov_spectrum(lambda h, _: _lorenz(h), zero, paths[:, 0], steps=steps, warmup=50, dt=DT)
        several, one = _linear(paths[:4, :400]), _linear(paths[:1, :120])
        student = forcing(_student(system, 0.0, _states(system.scaled)))
        path = forcing(several)
        forced = [to_dense(Propagator(teacher_forced(one, alpha))) for alpha in (0.0, path.strict, 0.6, 0.8)]
        return Observed(
            spectrum.exponents,
            _growth(system),
            _distance(system),
            path,
            forcing(_linear(_states(paths))),
            (_largest_product(several, path.strict * system.scale), _largest_product(several, 0.0)),
            student,
            [_gradient(system, alpha, 400) / _gradient(system, alpha, 25) for alpha in (0.0, student.strict)],
            torch.linalg.svdvals(torch.stack(forced)),
        )

    def predict(self, system: System) -> Predicted:
        weights = (system.network[name].detach() for name in ("A", "out", "in"))
        skip, out, hidden = (float(torch.linalg.matrix_norm(W, ord=2)) for W in weights)
        seen = _lorenz(_states(system.paths)[:, 0])  # the first Jacobian along a trial is at its second state
        jacobians = torch.func.vmap(torch.func.jacrev(_lorenz))(seen)
        norms = torch.linalg.matrix_norm(jacobians, ord=2)
        strengths = [1 - 1 / float(norms.log().mean().exp()), 1 - 1 / float(norms.max())]
        return Predicted(torch.log1p(-STRENGTHS) / DT, strengths, 1 - 1 / (skip + out * hidden))

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        leading, path, found, student = observed.exponents[0], observed.path, observed.lorenz, observed.student
        precise = 0.03 if system.paths.shape[1] > 500 else 0.05
        critical, (free, forced), norms = -torch.expm1(-leading * DT), observed.growth, observed.singular[:, 0]
        return [
            monte_carlo.close("λ of the Lorenz system", LITERATURE, leading, precise, relative=True),
            formula.close("Σλ is minus the divergence", -(10 + 1 + 8 / 3), observed.exponents.sum(), 1e-3),
            formula.close("growth under forcing: λ + ln(1−α)/dt", leading + predicted.rates, observed.rates, 6e-2),
            formula.at_least("below 1 − e^{−λ dt}, at α = 0.02, far trajectories stay off", 1.0, observed.far[0]),
            formula.at_most("above it, at α = 0.1, they come to the teacher", 1e-3, observed.far[1]),
            formula.close("critical α of 400 steps", critical, path.critical, 1e-2),
            identity.close("geometric and strict α", predicted.strengths, [found.geometric, found.strict], 1e-12),
            monte_carlo.close("geometric α, 0.189 in a reference run", 0.189, found.geometric, 1e-2),
            monte_carlo.close("strict α*, 0.483 in a reference run", 0.483, found.strict, 2e-2),
            identity.at_most("largest product of Jacobians at α*", 1.0, observed.products[0]),
            formula.at_least("largest product without forcing", 1e7, observed.products[1]),
            formula.at_most("one-step error of the network", 1e-3, system.error),
            formula.at_least("its gradient from 25 to 400 steps, α = 0", 1e6, free),
            formula.at_most("the same at its α*", 1.0, forced),
            identity.at_least("α from weight norms is at least that from data", student.strict, predicted.data_free),
            identity.at_most("‖P‖ at α = 0.6 over its bound", 1.0, norms[2] / found.bound(0.6)),
            identity.at_most("‖P‖ at α = 0.8 over its bound", 1.0, norms[3] / found.bound(0.8)),
            formula.at_least("‖P‖ without forcing", 1e3, norms[0]),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        alphas = torch.linspace(0.0, 0.35, 36, dtype=torch.float64)
        rates = (
            curve("λ + ln(1−α)/dt", alphas, observed.exponents[0] + torch.log1p(-alphas) / DT),
            points("two trajectories", STRENGTHS, observed.rates),
        )
        number, names = range(1, observed.singular.shape[1] + 1), ("α = 0", "α*", "α = 0.6", "α = 0.8")
        spectra = [points(names[i], number, values, group=i) for i, values in enumerate(observed.singular)]
        return (
            Panel.of("Growth rate under forcing", "α", "exponent", *rates),
            Panel.of("Singular values of P, 120 steps", "number", "σ", *spectra, log="xy"),
        )


def _lorenz(start: Tensor, theta: Tensor = LORENZ) -> Tensor:
    """One step of length dt."""

    def field(z: Tensor) -> Tensor:
        x, y, w = z.unbind(-1)
        return torch.stack([theta[0] * (y - x), x * (theta[1] - w) - y, x * y - theta[2] * w], dim=-1)

    return rk4(field, start, DT / SUBSTEPS, SUBSTEPS, every=SUBSTEPS)[-1]


def _states(paths: Tensor) -> Tensor:
    """Every fourth state of the first 400, as trials of two steps."""
    return paths[:, :400:4].flatten(0, 1)[:, None].expand(-1, 2, -1)


def _linear(paths: Tensor) -> Linearisation:
    """Of the Lorenz system's step, its three constants as parameters."""
    theta, inputs = {"theta": LORENZ.clone().requires_grad_()}, paths[:, :, :1]
    return linearise(lambda h, _, p: _lorenz(h, p["theta"]), inputs, initial=paths[:, 0], parameters=theta)


def _growth(system: System) -> Tensor:
    """Rates at which small deviations from the teacher grow in forced runs, made small again after every step."""
    strength, small = system.scale * STRENGTHS[:, None, None], 1e-6
    deviation = torch.full((len(STRENGTHS), len(system.paths), 3), small, dtype=torch.float64)
    count, total = system.paths.shape[1] - 1, torch.zeros(len(STRENGTHS), dtype=torch.float64)
    for t in range(count):
        teacher = system.paths[:, t]
        moved = _lorenz((1 - strength) * (teacher + deviation) + strength * teacher) - system.paths[:, t + 1]
        size = moved.norm(dim=2, keepdim=True)
        if t >= 50:
            total += (size / small).log().mean(dim=(1, 2))
        deviation = moved * (small / size)
    return total / ((count - 50) * DT)


def _distance(system: System) -> Tensor:
    """Median distance from the teacher over the last 100 steps of a run from far off, at α = 0.02 and 0.1."""
    strength = system.scale * STRENGTHS[1:3, None, None]
    state, kept = system.paths[:, 0].roll(1, 0).expand(2, -1, -1), []
    for t in range(300):
        state = _lorenz((1 - strength) * state + strength * system.paths[:, t])
        kept.append((state - system.paths[:, t + 1]).norm(dim=2))
    return torch.stack(kept[200:], dim=1).flatten(1).median(dim=1).values


def _largest_product(lin: Linearisation, alpha: float) -> float:
    """max ‖(1−α)^(t−s) A_t … A_{s+1}‖ over the first step s = 0 and all t: the first block column of the forced P."""
    width = lin.space.shape[2]
    kicks = torch.zeros(width, *lin.space.shape, dtype=torch.float64)
    kicks[:, :, 0] = torch.eye(width, dtype=torch.float64)[:, None]
    moved = Propagator(teacher_forced(lin, alpha))(kicks)[:, :, 1:].permute(1, 2, 3, 0)
    return float(torch.linalg.matrix_norm(moved, ord=2).max())


def _fitted(paths: Tensor, generator: torch.Generator) -> tuple[dict[str, Tensor], float, Tensor]:
    """A z + out · relu(in · z + shift) + bias, with a random hidden layer and the rest by ridge regression."""
    points = paths[:8]
    flat = points.flatten(0, 1)
    scaled = (points - flat.mean(0)) / flat.std(0)
    seen, wanted = scaled[:, :-1].flatten(0, 1), scaled[:, 1:].flatten(0, 1)
    hidden = normal(generator, HIDDEN, 3)
    shift = -(hidden * seen[torch.randint(len(seen), (HIDDEN,), generator=generator)]).sum(dim=1)
    features = torch.cat([seen, torch.relu(seen @ hidden.mT + shift), torch.ones_like(seen[:, :1])], dim=1)
    gram = features.mT @ features + RIDGE * len(seen) * torch.eye(features.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, features.mT @ wanted)
    error = float((features @ weights - wanted).square().mean())
    network = {"A": weights[:3].mT, "out": weights[3:-1].mT, "bias": weights[-1], "in": hidden, "shift": shift}
    return {name: value.clone().requires_grad_() for name, value in network.items()}, error, scaled


def _student(system: System, alpha: float, teacher: Tensor) -> Linearisation:
    """The network along teacher states `[B, T, 3]`, forced with strength α; it starts at the first of them."""

    def step(h: Tensor, x: Tensor, p: dict[str, Tensor]) -> Tensor:
        z = (1 - alpha) * h + alpha * x
        return z @ p["A"].mT + torch.relu(z @ p["in"].mT + p["shift"]) @ p["out"].mT + p["bias"]

    return linearise(step, teacher, initial=teacher[:, 0], parameters=system.network)


def _gradient(system: System, alpha: float, horizon: int) -> float:
    """Median size of the gradient of the mean square error over so many steps, by Jᵀ Pᵀ, of single trials."""
    lin = _student(system, alpha * system.scale, system.scaled[:, :horizon])
    miss = lin.states - system.scaled[:, 1 : horizon + 1]
    apart = torch.eye(len(miss), dtype=torch.float64)[:, :, None, None] * miss / (1.5 * horizon)  # [B, B, T, 3]
    return float(lin.state_vjp(apart).norm(dim=1).median())
