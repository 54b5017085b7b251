"""A network with symmetries, whose charges gradient flow conserves and finite steps move by a known law."""

from collections.abc import Callable
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn

from kpflow.flow import Charges, OutputJacobian, find_charges
from kpflow.operators import to_dense
from kpflow.states import linearise

from .entry import Check, Entry, Line, Panel, curve, formula, identity, points
from .flows import rk4

__all__ = ["Noether"]

SIZES = (48, 24, 18, 3)  # W₁ [8, 6], W₂ [3, 8], w [6, 3], b [3]
NORM = slice(72, 90)  # of w
RATE, DECAY = 0.1, 0.05


@final
class System(NamedTuple):
    """Inputs, classes, parameters at the start; the rate of W₂ over that of the others is 1."""

    inputs: Tensor  # [64, 6]
    classes: Tensor  # [64]
    start: Tensor  # [93]
    rates: Tensor  # [93]


@final
class Observed(NamedTuple):
    """Parameters on the ways, and the gradients where a law needs them."""

    gradient: Tensor
    flow: Tensor  # [t, P]
    descent: Tensor  # [501, P]
    forces: Tensor  # [501, P]
    slope: float  # of the integral's error over the step, in logarithms
    heavy: tuple[Tensor, Tensor, float]  # both sides of the law of a heavy ball, and its largest term
    orbit: float  # ‖w‖⁴
    found: Charges
    spectrum: Tensor  # of JᵀJ at the start
    image: Tensor  # J ξ of all charges that were found


@final
class Predicted(NamedTuple):
    """What can be written down before; the rest is checked against the gradients on the path."""

    scalings: Tensor  # [9, P]: of every hidden unit, and of w
    orbit: float  # ‖w‖⁴ where decay and steps balance
    charges: int
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
        inputs, start, teacher = (
            torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((64, 6), (93,), (6, 3))
        )
        rates = torch.ones_like(start)
        rates[48:72] = 0.9 if broken else 1.0
        return System(inputs, (inputs @ teacher).argmax(dim=1), 0.5 * start, rates)

    def run(self, system: System) -> Observed:
        def force(theta: Tensor) -> Tensor:
            return system.rates * _gradient(system, theta)

        path, forces = _descend(force, system.start, RATE, 500)
        steps = [0.05, 0.025, 0.0125]
        gaps = [_gap_of_integral(*_descend(force, system.start, step, round(8 / step)), step) for step in steps]
        model = Symmetric(system.start)
        lin = linearise(model, system.inputs)
        assert lin.readout is not None
        jacobian = to_dense(OutputJacobian(lin, lin.readout))
        found = find_charges(model, system.inputs, points=6)
        return Observed(
            _gradient(system, system.start),
            rk4(lambda theta: -force(theta), system.start, 0.02, 250, every=25),
            path,
            forces,
            float(np.polyfit(np.log(steps), np.log(gaps), 1)[0]),
            _heavy_ball(force, system.start),
            _orbit(),
            found,
            torch.linalg.eigvalsh(jacobian.mT @ jacobian).flip(0),
            jacobian @ found.generators(system.start).mT,
        )

    def predict(self, system: System) -> Predicted:
        scalings = torch.zeros_like(system.start).repeat(9, 1)
        for unit in range(8):
            scalings[unit, 6 * unit : 6 * unit + 6] = 2.0
            scalings[unit, 48 + unit : 72 : 8] = -2.0
        scalings[8, NORM] = 2.0
        # softmax also forgets a shift of W₂'s column of every unit; of w's rows too, by 5 directions without a charge
        return Predicted(scalings, RATE / (2 * DECAY - RATE * DECAY**2), 8 + 1 + 1 + 8, 18 + 5)

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        quadratic = 0.5 * torch.stack([observed.flow.square() @ row for row in predicted.scalings], dim=1)
        conserved = torch.cat([quadratic, observed.flow[:, 90:].sum(dim=1, keepdim=True)], dim=1)
        before, after = (
            0.5 * part.square() @ predicted.scalings.mT for part in (observed.descent[:-1], observed.descent[1:])
        )
        kicked = 0.5 * observed.forces[:-1].square() @ predicted.scalings.mT
        kept = 1 - RATE * DECAY
        shift = observed.descent[:, 90:].sum(dim=1)
        left, right, scale = observed.heavy
        written = torch.cat([predicted.scalings, torch.zeros_like(predicted.scalings)], dim=1)
        basis = torch.linalg.qr(torch.cat([observed.found.scalings, observed.found.shifts], dim=1).mT).Q
        stepped = observed.found.after_step(system.start, observed.gradient, RATE, DECAY)
        moved = kept * system.start - RATE * observed.gradient
        return [
            identity.close("⟨ξ, ∂L/∂θ⟩ vanishes", 0.0, _pairings(system.start, observed.gradient, predicted), 1e-14),
            identity.close("charges under gradient flow", conserved[:1], conserved, 1e-5),
            identity.close(
                "‖w‖² and ‖W₁ⱼ‖² − ‖W₂ⱼ‖² after each step", kept**2 * before + RATE**2 * kicked, after, 1e-12
            ),
            identity.close("Σ b after each step", kept * shift[:-1], shift[1:], 1e-12),
            formula.close("the continuous law of ‖w‖² errs by O(η): exponent", 1.0, observed.slope, 0.2),
            formula.close("heavy ball: law of ‖w‖² of second order, over 2λ‖w‖²", 0.0, (left - right) / scale, 1e-4),
            formula.close("‖w‖⁴ where steps and decay balance", predicted.orbit, observed.orbit, 1e-12, relative=True),
            identity.close("charges found as null vectors of J", predicted.charges, len(observed.found), 0.0),
            identity.close("those written down are among them", 0.0, written - written @ basis @ basis.mT, 1e-9),
            identity.close("J ξ of all", 0.0, observed.image, 1e-10),
            identity.close("all of them after a step with decay", stepped, observed.found.values(moved), 1e-11),
            identity.close("null directions of JᵀJ", predicted.nulls, int((observed.spectrum < 1e-10).sum()), 0.0),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        steps = torch.arange(len(observed.descent))
        lines: list[Line] = []
        for group, (label, row) in enumerate((("‖w‖²", 8), ("‖W₁₁‖² − ‖W₂₁‖²", 0), ("‖W₁₂‖² − ‖W₂₂‖²", 1))):
            charge = 0.5 * observed.descent.square() @ predicted.scalings[row]
            law = [float(charge[0])]
            for kick in (0.5 * observed.forces[:-1].square() @ predicted.scalings[row]).tolist():
                law.append((1 - RATE * DECAY) ** 2 * law[-1] + RATE**2 * kick)
            lines += [
                curve(label, steps, law, group=group),
                points("", steps[::20], charge[::20], group=group),
            ]
        shift = observed.descent[:, 90:].sum(dim=1)
        law = shift[0] * (1 - RATE * DECAY) ** steps
        lines += [
            curve("Σ b", steps, law, group=3),
            points("", steps[::20], shift[::20], group=3),
        ]
        order = torch.arange(1, len(observed.spectrum) + 1)
        shown = points("", order, observed.spectrum.clamp_min(1e-18))
        edge = len(observed.spectrum) - predicted.nulls + 0.5
        border = curve(f"{predicted.nulls} null directions", [edge, edge], [1e-18, 1e2], group=1)
        return (
            Panel.of("Charges under steps and decay, on their exact law", "step", "charge", *lines),
            Panel.of("Spectrum of JᵀJ: charges are its null vectors", "number", "eigenvalue", shown, border, log="y"),
        )


@final
class Symmetric(nn.Module):
    """log softmax of W₂ (W₁ x)₊ + xᵀ w/‖w‖ + b."""

    def __init__(self, theta: Tensor) -> None:
        nn.Module.__init__(self)
        first, second, branch, bias = theta.split(SIZES)
        self.first = nn.Parameter(first.reshape(8, 6).clone())
        self.second = nn.Parameter(second.reshape(3, 8).clone())
        self.branch = nn.Parameter(branch.reshape(6, 3).clone())
        self.bias = nn.Parameter(bias.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = (inputs @ self.first.mT).relu()
        scaled = self.branch / self.branch.square().sum().sqrt()
        return (hidden @ self.second.mT + inputs @ scaled + self.bias).log_softmax(dim=1)


def _gradient(system: System, theta: Tensor) -> Tensor:
    """Of the mean cross entropy."""
    first, second, branch, bias = theta.split(SIZES)
    first, second, branch = first.view(8, 6), second.view(3, 8), branch.view(6, 3)
    before = system.inputs @ first.mT
    hidden, length = before.relu(), torch.linalg.vector_norm(branch)
    logits = hidden @ second.mT + system.inputs @ branch / length + bias
    miss = logits.softmax(dim=1)
    miss[torch.arange(len(miss)), system.classes] -= 1
    miss = miss / len(miss)
    pulled = system.inputs.mT @ miss
    scaled = (pulled - branch * (branch * pulled).sum() / length**2) / length
    inner = ((miss @ second) * (before > 0)).mT @ system.inputs
    return torch.cat([inner.flatten(), (miss.mT @ hidden).flatten(), scaled.flatten(), miss.sum(dim=0)])


def _descend(force: Callable[[Tensor], Tensor], theta: Tensor, rate: float, count: int) -> tuple[Tensor, Tensor]:
    """Parameters of gradient descent with decay, and gradients there."""
    path, forces = [theta], [force(theta)]
    for _ in range(count):
        path.append((1 - rate * DECAY) * path[-1] - rate * forces[-1])
        forces.append(force(path[-1]))
    return torch.stack(path), torch.stack(forces)


def _gap_of_integral(path: Tensor, forces: Tensor, rate: float) -> float:
    """|‖w‖² − e^{−2λt} ‖w₀‖² − η ∫ e^{−2λ(t−s)} ‖g‖² ds| at the end."""
    left = rate * torch.arange(len(path) - 1, -1, -1, dtype=torch.float64)
    kicks = torch.exp(-2 * DECAY * left) * forces[:, NORM].square().sum(dim=1)
    law = torch.exp(-2 * DECAY * left[0]) * path[0, NORM].square().sum() + rate * torch.trapezoid(kicks, dx=rate)
    return float((path[-1, NORM].square().sum() - law).abs())


def _heavy_ball(force: Callable[[Tensor], Tensor], theta: Tensor, rate: float = 2e-3) -> tuple[Tensor, Tensor, float]:
    """η(1+β)/2 q̈ + (1−β) q̇ + 2λq and η(1+β) ‖ẇ‖² for q = ‖w‖², β = 0.9, by central differences."""
    before, kept = theta, []
    for _ in range(600):
        theta, before = theta + 0.9 * (theta - before) - rate * (force(theta) + DECAY * theta), theta
        kept.append(theta[NORM])
    w = torch.stack(kept[200:])
    q = w.square().sum(dim=1)
    first, second = (q[2:] - q[:-2]) / (2 * rate), (q[2:] - 2 * q[1:-1] + q[:-2]) / rate**2
    speed = ((w[2:] - w[:-2]) / (2 * rate)).square().sum(dim=1)
    decaying = 2 * DECAY * q[1:-1]
    return 0.95 * rate * second + 0.1 * first + decaying, 1.9 * rate * speed, float(decaying.max())


def _orbit() -> float:
    """‖w‖⁴ at rest under a gradient of size 1/‖w‖ across w, as of a loss that forgets the length of w."""
    w = torch.tensor([0.5, 0.0], dtype=torch.float64)
    for _ in range(3000):
        across = torch.stack([-w[1], w[0]]) / w.square().sum()
        w = (1 - RATE * DECAY) * w - RATE * across
    return float(w.square().sum() ** 2)


def _pairings(theta: Tensor, gradient: Tensor, predicted: Predicted) -> Tensor:
    """⟨ξ, g⟩ of the charges that are written down."""
    return torch.cat([predicted.scalings @ (theta * gradient), gradient[90:].sum(dim=0, keepdim=True)])
