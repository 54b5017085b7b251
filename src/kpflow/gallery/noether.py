"""A network with symmetries, whose charges gradient flow conserves and finite steps move by a known law."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kpflow.estimate import spectrum
from kpflow.flow import Charges, find_charges
from kpflow.operators import Dense, Gram
from kpflow.spaces import Space

from .draws import normal
from .entry import Check, Entry, Panel, curve, formula, identity, pair, points
from .exponents import exponent
from .flows import rk4
from .students import map_jacobian

__all__ = ["Noether"]

SIZES = (48, 24, 18, 3)  # W₁ [8, 6], W₂ [3, 8], w [6, 3], b [3]
NORM = slice(72, 90)  # of w
RATE, DECAY = 0.1, 0.05
STEPS = (0.05, 0.025, 0.0125)


@final
class System(NamedTuple):
    """Data of a classifier, its parameters at the start, and factors of their gradients, which are 1."""

    inputs: Tensor  # [64, 6]
    classes: Tensor  # [64]
    start: Tensor  # [P]
    factors: Tensor  # [P]
    pull: float  # ĝ

    def force(self, theta: Tensor) -> Tensor:
        """Gradient of the mean cross entropy."""
        theta = theta.detach().requires_grad_()
        return self.factors * torch.autograd.grad(cross_entropy(_logits(theta, self.inputs), self.classes), theta)[0]


@final
class Observed(NamedTuple):
    """Parameters on the ways, and the gradients where a law needs them."""

    flow: Tensor  # [t, P]
    descent: Tensor  # [501, P]
    forces: Tensor  # [501, P]
    gaps: list[float]  # of the continuous law of ‖w‖², by step
    heavy: Tensor  # [t], by how much a heavy ball misses its law, over its largest term
    orbit: float  # ‖w‖⁴
    found: Charges
    jacobians: Tensor  # [2, 192, P], at the start and after descent


@final
class Predicted(NamedTuple):
    """What can be written down before; the rest is checked against the gradients on the path."""

    charges: Charges  # of every hidden unit, ‖w‖² and Σ b
    orbit: float  # ‖w‖⁴ where decay and steps balance
    number: int  # of all charges
    nulls: int


@final
class Noether(Entry[System, Observed, Predicted]):
    """Symmetries of the loss have charges: conserved by gradient flow, moved at second order in η by descent.

    ReLU units rescale (‖W₁ⱼ‖² − ‖W₂ⱼ‖²), w/‖w‖ forgets its length (‖w‖²), softmax forgets a shift (Σ b). With steps η
    and weight decay λ, exactly: Σ b ← (1 − ηλ) Σ b and q ← (1 − ηλ)² q + η² ‖g‖².
    """

    name = "noether"
    title = "Charges of symmetric losses"
    paper = "Tanaka, Kunin 2021, Noether's Learning Dynamics, arXiv 2105.02716"
    kernels = (
        "The generator ξ of a symmetry obeys J ξ = 0, a null vector of the parameters' Gram JᵀJ: what a charge does "
        "under finite steps, decay and momentum is motion that the sNTK does not see."
    )
    omits = "Batch norm in deep networks, stochastic gradients, and the analogy with a Lagrangian."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator = torch.Generator().manual_seed(seed)
        inputs, start, teacher = (normal(generator, *shape) for shape in ((64, 6), (93,), (6, 3)))
        factors = torch.ones(93, dtype=torch.float64)
        factors[48:72] = 0.9 if broken else 1.0  # of W₂
        pull = 0.5 + float(torch.rand((), generator=generator))
        return System(inputs, (inputs @ teacher).argmax(dim=1), 0.5 * start, factors, pull)

    def run(self, system: System) -> Observed:
        path, forces = _descend(system, RATE, 500)
        return Observed(
            rk4(lambda theta: -system.force(theta), system.start, 0.02, 250, every=25),
            path,
            forces,
            [_gap_of_integral(*_descend(system, step, round(8 / step)), step) for step in STEPS],
            _heavy_ball(system),
            _orbit(system),
            find_charges(Symmetric(system.start), system.inputs, points=6),
            torch.stack([map_jacobian(_outputs, system.inputs, {"theta": theta}) for theta in path[[0, -1]]]),
        )

    def predict(self, system: System) -> Predicted:
        scalings, shifts = torch.zeros(2, 10, 93, dtype=torch.float64)
        for unit in range(8):
            scalings[unit, 6 * unit : 6 * unit + 6] = 2.0
            scalings[unit, 48 + unit : 72 : 8] = -2.0
        scalings[8, NORM] = 2.0
        shifts[9, 90:] = 1.0
        charges = Charges(scalings, shifts, torch.zeros(0).double(), Space.of((93,), ("parameter",)))
        # softmax also forgets a shift of W₂'s column of every unit; of w's rows too, by 5 directions without a charge
        return Predicted(charges, RATE * system.pull**2 / (2 * DECAY - RATE * DECAY**2), 10 + 8, 18 + 5)

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        charges, found, start, force = predicted.charges, observed.found, system.start, observed.forces[0]
        conserved, law, path = charges.values(observed.flow), _law(observed, charges), charges.values(observed.descent)
        written = torch.cat([charges.scalings, charges.shifts], dim=1)
        basis = torch.linalg.qr(torch.cat([found.scalings, found.shifts], dim=1).mT).Q
        found_law, found_path = _law(observed, found), found.values(observed.descent)
        nulls = [int((values < 1e-10).sum()) for values in _spectra(observed)]
        return [
            identity.close("⟨ξ, ∂L/∂θ⟩ vanishes", 0.0, charges.generators(start) @ force, 1e-14),
            identity.close("charges under gradient flow", conserved[:1], conserved, 1e-5),
            identity.close("‖w‖² and ‖W₁ⱼ‖² − ‖W₂ⱼ‖² after 500 steps", law[:, :9], path[:, :9], 1e-12),
            identity.close("Σ b after 500 steps", law[:, 9], path[:, 9], 1e-12),
            formula.close("continuous law of ‖w‖²: exponent of its error", 1.0, exponent(STEPS, observed.gaps), 0.2),
            formula.close("heavy ball: law of ‖w‖² of second order, over 2λ‖w‖²", 0.0, observed.heavy, 1e-4),
            formula.close("‖w‖⁴ where steps and decay balance", predicted.orbit, observed.orbit, 1e-12, relative=True),
            identity.close("charges found as null vectors of J", predicted.number, len(found), 0.0),
            identity.close("those written down are among them", 0.0, written - written @ basis @ basis.mT, 1e-9),
            identity.close("J ξ of all", 0.0, observed.jacobians[0] @ found.generators(start).mT, 1e-10),
            identity.close("all of them after 500 steps with decay", found_law, found_path, 1e-11),
            identity.close("null directions of JᵀJ", predicted.nulls, nulls[0], 0.0),
            identity.at_least("and after descent, where units may be silent", float(predicted.nulls), float(nulls[1])),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        steps, law = torch.arange(501), _law(observed, predicted.charges)
        path = predicted.charges.values(observed.descent)
        rows = {"‖w‖²": 8, "‖W₁₁‖² − ‖W₂₁‖²": 0, "‖W₁₂‖² − ‖W₂₂‖²": 1, "Σ b": 9}
        laws = [pair(label, steps, law[:, i], path[:, i], g, every=20) for g, (label, i) in enumerate(rows.items())]
        shown = [
            points(label, range(1, 94), values.clamp_min(1e-18), group=group)
            for group, (label, values) in enumerate(
                zip(("at the start", "after descent"), _spectra(observed), strict=True)
            )
        ]
        border = curve(f"{predicted.nulls} null directions", [93.5 - predicted.nulls] * 2, [1e-18, 1e2], group=2)
        return (
            Panel.of("Charges under steps and decay, on their exact law", "step", "charge", *itertools.chain(*laws)),
            Panel.of("Spectrum of JᵀJ: charges are its null vectors", "number", "eigenvalue", *shown, border, log="y"),
        )


@final
class Symmetric(nn.Module):
    """log softmax of the logits."""

    def __init__(self, theta: Tensor) -> None:
        nn.Module.__init__(self)
        self.theta = nn.Parameter(theta.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        return _outputs(inputs, {"theta": self.theta})


def _outputs(inputs: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    return _logits(parameters["theta"], inputs).log_softmax(dim=1)


def _spectra(observed: Observed) -> list[Tensor]:
    """Of JᵀJ."""
    return [spectrum(Gram(Dense(J.mT))) for J in observed.jacobians]


def _logits(theta: Tensor, inputs: Tensor) -> Tensor:
    """W₂ (W₁ x)₊ + xᵀ w/‖w‖ + b."""
    first, second, branch, bias = theta.split(SIZES)
    hidden = (inputs @ first.view(8, 6).mT).relu()
    return hidden @ second.view(3, 8).mT + inputs @ branch.view(6, 3) / branch.square().sum().sqrt() + bias


def _law(observed: Observed, charges: Charges) -> Tensor:
    """Charges at every step from those at the start and the gradients."""
    return charges.along(observed.descent[0], observed.forces[:-1], RATE, DECAY)


def _descend(system: System, rate: float, count: int) -> tuple[Tensor, Tensor]:
    """Parameters of gradient descent with decay, and gradients there."""
    path, forces = [system.start], [system.force(system.start)]
    for _ in range(count):
        path.append((1 - rate * DECAY) * path[-1] - rate * forces[-1])
        forces.append(system.force(path[-1]))
    return torch.stack(path), torch.stack(forces)


def _gap_of_integral(path: Tensor, forces: Tensor, rate: float) -> float:
    """|‖w‖² − e^{−2λt} ‖w₀‖² − η ∫ e^{−2λ(t−s)} ‖g‖² ds| at the end."""
    left = rate * torch.arange(len(path) - 1, -1, -1, dtype=torch.float64)
    kicks = torch.exp(-2 * DECAY * left) * forces[:, NORM].square().sum(dim=1)
    law = torch.exp(-2 * DECAY * left[0]) * path[0, NORM].square().sum() + rate * torch.trapezoid(kicks, dx=rate)
    return float((path[-1, NORM].square().sum() - law).abs())


def _heavy_ball(system: System, rate: float = 2e-3) -> Tensor:
    """η(1+β)/2 q̈ + (1−β) q̇ + 2λq − η(1+β) ‖ẇ‖² for q = ‖w‖², β = 0.9, by central differences, over 2λq."""
    theta, before, kept = system.start, system.start, []
    for _ in range(600):
        theta, before = theta + 0.9 * (theta - before) - rate * (system.force(theta) + DECAY * theta), theta
        kept.append(theta[NORM])
    w = torch.stack(kept[200:])
    q = w.square().sum(dim=1)
    first, second = (q[2:] - q[:-2]) / (2 * rate), (q[2:] - 2 * q[1:-1] + q[:-2]) / rate**2
    speed = ((w[2:] - w[:-2]) / (2 * rate)).square().sum(dim=1)
    decaying = 2 * DECAY * q[1:-1]
    return (0.95 * rate * second + 0.1 * first + decaying - 1.9 * rate * speed) / decaying.max()


def _orbit(system: System) -> float:
    """‖w‖⁴ at rest under a gradient of size ĝ/‖w‖ across w, that of the loss ĝ arg w, which forgets the length of w."""
    w = complex(*system.start[NORM][:2].tolist())
    for _ in range(3000):
        w = (1 - RATE * DECAY) * w - RATE * system.pull * 1j * w / abs(w) ** 2
    return abs(w) ** 4
