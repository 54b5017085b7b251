"""Noisy units that are coupled along a graph: redundancy makes their mean precise."""

import itertools
from typing import NamedTuple, final

import torch
from torch import Tensor

from kpflow.flow import ParameterKernel, Propagator
from kpflow.operators import to_dense
from kpflow.states import linearise
from kpflow.states.cells import RateRNN

from .draws import normal
from .entry import Check, Entry, Panel, curve, formula, identity, monte_carlo, pair, points

__all__ = ["Synchronisation"]

UNITS, RATE, NOISE, STEP = 8, 1.0, 1.0, 0.01
SETTLE, COUNT = 400, 500
GRAPHS = ("none", "ring", "star", "complete")
PULSES = torch.outer(torch.arange(1.0, 7.0), torch.eye(UNITS)[0]).double()  # [6, n], inputs at which K is seen


@final
class System(NamedTuple):
    """dx = −λ x − κ L x − c x³ + σ dW on four graphs, without and with the cubic term."""

    laplacians: Tensor  # [g, n, n]
    coupling: float  # κ
    trials: int
    seed: int
    scale: float  # of κ in what is run


@final
class Observed(NamedTuple):
    """Second moments in the stationary state, and the propagator."""

    unit: Tensor  # [g], mean variance of a unit
    mean: Tensor  # [g], variance of the mean of all
    apart: Tensor  # [2, g], Σ (x_i − x̄)², linear and cubic
    gains: Tensor  # [g, n], response of each mode of L to a constant drive, by P
    kernels: Tensor  # [g, 6n, 6n], K of the input weights at six inputs


@final
class Predicted(NamedTuple):
    """From the eigenvalues ν of L; corrected for the length of the step."""

    unit: Tensor
    mean: Tensor
    apart: Tensor
    bound: Tensor  # of the cubic system
    modes: Tensor  # [g, n], ν
    gains: Tensor  # [g, n], 1/(λ + κ ν)
    kernel: Tensor  # [6n, 6n], dt² x_t·x_u ⊗ I


@final
class Synchronisation(Entry[System, Observed, Predicted]):
    """Of dx = −λx − κLx + σ dW, the variance of mode k is σ²/(2(λ + κν_k)); the mean has σ²/(2λn) whatever the graph.

    Where units are contracting, but not linear, Σ(x_i − x̄)² ≤ (n−1) σ²/(2(λ + κν₂)).
    """

    name = "synchronisation"
    title = "Synchronisation and redundancy"
    paper = "Bouvrie and Slotine 2010, arXiv 1010.4517"
    kernels = (
        "Coupling enters the propagator alone: mode k of the Laplacian has the gain 1/(λ + κν_k) at zero frequency, "
        "and the parameter kernel of what the units are driven by stays."
    )
    omits = "Non-convex losses, other noise than white, and graphs that are directed or change."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, coupling: float = 1.0) -> System:
        if not 0 <= coupling <= 5:
            raise ValueError(
                f"`coupling` must be between 0 and 5; got {coupling!r}. Negative coupling makes units diverge, and "
                "with a stronger one the steps of the simulation are too long."
            )
        laplacians = torch.stack([_laplacian(kind) for kind in GRAPHS])
        return System(laplacians, coupling, 800 if short else 4000, seed, 0.7 if broken else 1.0)

    def run(self, system: System) -> Observed:
        coupling = system.scale * system.coupling
        generator = torch.Generator().manual_seed(system.seed)
        drift = (1 - STEP * RATE) * torch.eye(UNITS, dtype=torch.float64) - STEP * coupling * system.laplacians
        cubic = torch.tensor([0.0, STEP], dtype=torch.float64)[:, None, None, None]
        shape = (2, len(GRAPHS), system.trials, UNITS)
        x = torch.zeros(shape, dtype=torch.float64)
        total = torch.zeros(3, 2, len(GRAPHS), dtype=torch.float64)
        for step in range(SETTLE + COUNT):
            noise = normal(generator, *shape[1:])
            x = x @ drift - cubic * x**3 + NOISE * STEP**0.5 * noise
            if step >= SETTLE and step % 10 == 0:
                mean = x.mean(dim=3)
                both = x.square().sum(dim=3).mean(dim=2), mean.square().mean(dim=2)
                total += torch.stack([both[0] / UNITS, both[1], both[0] - UNITS * both[1]])
        unit, mean, apart = total / (COUNT // 10)
        gains, kernels = zip(*(_response(L, coupling) for L in system.laplacians), strict=True)
        return Observed(unit[0], mean[0], apart, torch.stack(gains), torch.stack(kernels))

    def predict(self, system: System) -> Predicted:
        modes = torch.linalg.eigvalsh(system.laplacians).clamp(min=0.0)
        rates = RATE + system.coupling * modes
        variances = NOISE**2 / (2 * rates * (1 - STEP * rates / 2))
        bound = (UNITS - 1) * NOISE**2 / (2 * rates[:, 1] * (1 - STEP * rates[:, 1] / 2))
        unit, mean, apart = variances.mean(dim=1), variances[:, 0] / UNITS, variances[:, 1:].sum(dim=1)
        kernel = torch.kron(STEP**2 * PULSES @ PULSES.mT, torch.eye(UNITS, dtype=torch.float64))
        return Predicted(unit, mean, apart, bound, modes, 1 / rates, kernel)

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        cubic, mean = observed.apart[1] / predicted.bound, 0.05 if system.trials > 800 else 0.07
        return [
            monte_carlo.close("variance of a unit", predicted.unit, observed.unit, 0.04, relative=True),
            monte_carlo.close("variance of the mean", predicted.mean, observed.mean, mean, relative=True),
            monte_carlo.close("Σ(x − x̄)²", predicted.apart, observed.apart[0], 0.05, relative=True),
            monte_carlo.at_most("Σ(x − x̄)² with −x³, over its bound", 1.0, cubic.max()),
            formula.close("gains of the modes by P", predicted.gains, observed.gains, 1e-6),
            identity.close("K of the input weights, whatever the graph", predicted.kernel, observed.kernels, 1e-15),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        places = predicted.modes[:, 1]
        rows = (
            ("Σ(x − x̄)²", predicted.apart, observed.apart[0]),
            ("of one unit", predicted.unit, observed.unit),
            ("of the mean", predicted.mean, observed.mean),
        )
        variances = itertools.chain(*(pair(label, places, law, seen, i) for i, (label, law, seen) in enumerate(rows)))
        along = torch.linspace(0.0, UNITS, 50, dtype=torch.float64)
        expected = curve("1/(λ + κν)", along, 1 / (RATE + system.coupling * along))
        found = [points(kind, predicted.modes[i], observed.gains[i], group=i + 1) for i, kind in enumerate(GRAPHS)]
        return (
            Panel.of("Variances: none, ring, star, complete", "ν₂ of the graph", "variance", *variances, log="y"),
            Panel.of("Gain of P at zero frequency", "ν", "gain", expected, *found),
        )


def _laplacian(kind: str) -> Tensor:
    links = torch.zeros(UNITS, UNITS, dtype=torch.float64)
    for i in range(UNITS if kind != "none" else 0):
        if kind == "ring":
            links[i, (i + 1) % UNITS] = 1.0
        elif kind == "star":
            links[0, i] = float(i > 0)
        else:
            links[i, i + 1 :] = 1.0
    links = links + links.mT
    return torch.diag(links.sum(dim=1)) - links


def _response(laplacian: Tensor, coupling: float) -> tuple[Tensor, Tensor]:
    """Gain of each mode after 16/λ by P of z' = z − dt (λ + κL) z + dt x, and K of its input weights."""
    network = RateRNN(UNITS, UNITS, alpha=STEP, nonlinearity=lambda z: z, dtype=torch.float64)
    with torch.no_grad():
        network.weight_hh.copy_((1 - RATE) * torch.eye(UNITS) - coupling * laplacian)
    steps = 16 * round(1 / STEP)
    lin = linearise(network, torch.zeros(1, steps, UNITS, dtype=torch.float64))
    modes = torch.linalg.eigh(laplacian).eigenvectors
    drive = STEP * modes.mT[:, None, None].expand(UNITS, 1, steps, UNITS).contiguous()
    final = Propagator(lin)(drive)[:, 0, -1]
    few = linearise(network, PULSES[None])
    return (final * modes.mT).sum(dim=1), to_dense(ParameterKernel(few, params=["weight_ih"]))
