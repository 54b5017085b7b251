"""Linear students of noisy teachers: training and test error at all times, from the Marchenko–Pastur law."""

import itertools
import math
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from kpflow.estimate import spectral_sum
from kpflow.flow import Ntk
from kpflow.operators import to_dense
from kpflow.states import linearise

from .draws import normal
from .entry import Check, Entry, Panel, curve, identity, monte_carlo, pair, points
from .students import linear_network, output_jacobian

__all__ = ["Generalisation"]

RATIOS = (0.5, 1.0, 2.0)  # α = P/N
NOISE, START = 0.25, 0.5  # σ_ε², and σ_w0² where students start at random; σ_w² = 1
TIMES = torch.logspace(-2, 3, 41, dtype=torch.float64)
SOME = [8, 16, 24, 32]  # of the times
STEP, STEPS = 0.01, 400  # of descent


@final
class System(NamedTuple):
    """Inputs of each ratio, and students of the first for descent; `rate` over that of the stated flow."""

    inputs: tuple[Tensor, ...]  # [draw, αN, N], each with tr XᵀX = αN
    teachers: Tensor  # [N, 64]
    noises: Tensor  # [N/2, 64]
    starts: Tensor  # [2, N, 64], from 0 and at random
    rate: float


@final
class Observed(NamedTuple):
    """Expected errors given the inputs, by ratio and time, and what descent did at α = 1/2 by the time 4."""

    errors: Tensor  # [α, 2, t], test and training
    kernel: Tensor  # spectrum of the NTK at α = 1/2
    quadrature: list[float]  # test error at some times by Lanczos quadrature of this NTK
    moved: float  # the most that any weight moved in the kernel of J
    unlearned: Tensor  # [2], mean square error in that kernel
    descent: Tensor  # [2, 64], test error of each teacher
    expected: Tensor  # [2], given the inputs
    best: Tensor  # [3], when the error in each of three bands of modes was least


@final
class Predicted(NamedTuple):
    """Integrals over the Marchenko–Pastur law."""

    errors: Tensor  # [α, 2, t]
    limits: list[float]
    best: Tensor
    shares: Tensor  # of the spectrum below each eigenvalue


@final
class Generalisation(Entry[System, Observed, Predicted]):
    """ẇ = Xᵀ(y − Xw) from w₀, y = Xw̄ + ε: the test error overfits, worst where there are as many data as weights.

    E(t) = ∫ ρ(λ) [(σ_w² + σ_w0²) e^{−2λt} + σ_ε²/λ (1 − e^{−λt})²] + σ_ε², ρ the Marchenko–Pastur law of XᵀX for
    α = P/N, with (1 − α) at λ = 0 if α < 1; σ_w0² of random initial weights.
    """

    name = "generalisation"
    title = "Generalisation over training"
    paper = "Advani, Saxe 2017, arXiv 1710.03667"
    kernels = (
        "Directions that never learn are the kernel of the constant NTK and the Marchenko–Pastur law is its spectrum, "
        "so the whole curve is a functional of the spectrum of K alone (P = I)."
    )
    omits = "Nonlinear and deep students, and the gap to finite teachers."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator = torch.Generator().manual_seed(seed)
        size, draws = (300, 4) if short else (600, 2)
        inputs = tuple(_scaled(normal(generator, draws, round(ratio * size), size)) for ratio in RATIOS)
        noises, teachers = math.sqrt(NOISE) * normal(generator, size // 2, 64), normal(generator, size, 64)
        start = math.sqrt(START) * normal(generator, size, 64)
        starts = torch.stack([torch.zeros_like(start), start])
        return System(inputs, teachers, noises, starts, 1.3 if broken else 1.0)

    def run(self, system: System) -> Observed:
        spectra = [torch.linalg.eigvalsh(X.mT @ X).clamp_min(0) for X in system.inputs]  # [draw, N]
        errors = [
            _errors(values.flatten(), system.rate * TIMES, ratio).mean(dim=1)
            for ratio, values in zip(RATIOS, spectra, strict=True)
        ]
        first, size = system.inputs[0][0], len(system.teachers)
        student = linear_network([torch.zeros(1, size, dtype=torch.float64)])
        ntk = Ntk(linearise(student, first), readout="outputs")
        frozen = torch.linalg.svd(output_jacobian(student, first)).Vh[len(first) :]
        weights, best = _descend(system)
        misses = weights - system.teachers
        time = torch.tensor([STEP * STEPS], dtype=torch.float64)
        expected = [_test(spectra[0][0], time, start).mean() for start in (0.0, START)]
        return Observed(
            torch.stack(errors),
            torch.linalg.eigvalsh(to_dense(ntk)),
            [_by_quadrature(ntk, time, size) for time in system.rate * TIMES[SOME]],
            float((frozen @ (weights - system.starts)).abs().max()),
            (frozen @ misses).square().mean(dim=(1, 2)),
            misses.square().mean(dim=1) + NOISE,
            torch.stack(expected),
            best,
        )

    def predict(self, system: System) -> Predicted:
        count = system.inputs[0].shape[1]
        values = _bands(system)[0].mean(dim=1)
        return Predicted(
            torch.stack([_average(ratio, TIMES) for ratio in RATIOS]),
            [0.5 + NOISE * (1 + 0.5 / 0.5), NOISE * (1 + 1 / (2 - 1))],
            torch.log1p(values / NOISE) / values,
            (torch.arange(count, dtype=torch.float64) + 0.5) / count,
        )

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        (test, train), (law, train_law) = (errors.transpose(0, 1) for errors in (observed.errors, predicted.errors))
        worst, ends = RATIOS[int(test[:, -1].argmax())], test[[0, 2], -1]
        off = (observed.descent.mean(dim=1) - observed.expected) / (observed.descent.std(dim=1) / 8)
        gram = torch.linalg.eigvalsh(system.inputs[0][0] @ system.inputs[0][0].mT)
        return [
            monte_carlo.close("test error, α = ½, 1, 2, given the inputs", law, test, 3e-2, relative=True),
            monte_carlo.close("training error", train_law, train, 3e-3),
            monte_carlo.close("test error in the end, α = ½ and 2", predicted.limits, ends, 1e-2, relative=True),
            monte_carlo.close("where it is worst in the end", 1.0, worst, 0.0),
            monte_carlo.close("descent from 0 and at random, off its mean by standard errors", 0.0, off, 4.0),
            monte_carlo.close(
                "best time to stop three bands of modes", predicted.best, observed.best, 0.2, relative=True
            ),
            identity.close("what lies in the kernel of J never moves", 0.0, observed.moved, 1e-12),
            monte_carlo.close("error there: σ_w², and σ_w² + σ_w0²", [1.0, 1 + START], observed.unlearned, 0.1),
            monte_carlo.close(
                "test error by quadrature of the NTK", law[0, SOME], observed.quadrature, 3e-2, relative=True
            ),
            monte_carlo.close("spectrum of the NTK: share below", _below(observed.kernel), predicted.shares, 2e-2),
            identity.close("modes of the NTK are those of XᵀX", gram, observed.kernel, 1e-11),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        lines = [
            pair(f"α = {ratio:g}", TIMES, law[0], seen[0], i, every=3)
            for i, (ratio, law, seen) in enumerate(zip(RATIOS, predicted.errors, observed.errors, strict=True))
        ]
        values, some = torch.linspace(0.05, 2.95, 200), slice(None, None, len(observed.kernel) // 40)
        below = curve("Marchenko–Pastur", values, _below(values))
        shares = points("", observed.kernel[some], predicted.shares[some])
        return (
            Panel.of("Test error over training", "time", "error", *itertools.chain(*lines), log="x"),
            Panel.of("Spectrum of the NTK, α = ½", "eigenvalue", "share below", below, shares),
        )


def _scaled(inputs: Tensor) -> Tensor:
    """With tr XᵀX = P, as it is on average."""
    return inputs * (inputs.shape[1] / inputs.square().sum(dim=(1, 2), keepdim=True)).sqrt()


def _test(values: Tensor, times: Tensor, start: float = 0.0) -> Tensor:
    """(σ_w² + σ_w0²) e^{−2λt} + σ_ε²/λ (1 − e^{−λt})² + σ_ε², `[λ, t]`."""
    left = torch.exp(-values[:, None] * times)
    return (1 + start) * left**2 + NOISE * (1 - left) ** 2 / values.clamp_min(1e-12)[:, None] + NOISE


def _errors(values: Tensor, times: Tensor, ratio: float) -> Tensor:
    """Of test, and of training (σ_w² λ + σ_ε² [λ > 0]) e^{−2λt}/α + (1 − 1/α)₊ σ_ε², `[2, λ, t]`."""
    train = (values + NOISE * (values > 1e-9))[:, None] * torch.exp(-2 * values[:, None] * times) / ratio
    return torch.stack([_test(values, times), train + max(0.0, 1 - 1 / ratio) * NOISE])


def _law(ratio: float) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the Marchenko–Pastur law, the part at 0 first."""
    turns = (torch.arange(20_000, dtype=torch.float64) + 0.5) * math.pi / 20_000
    values = 1 + ratio + 2 * math.sqrt(ratio) * turns.cos()
    weights = 2 * ratio * turns.sin() ** 2 / values / 20_000
    return torch.cat([torch.zeros(1), values]), torch.cat([torch.tensor([max(0.0, 1 - ratio)]), weights])


def _average(ratio: float, times: Tensor) -> Tensor:
    """Errors over the law, `[2, t]`."""
    values, weights = _law(ratio)
    return weights @ _errors(values, times, ratio)


def _below(eigenvalues: Tensor) -> np.ndarray:
    """Share of the nonzero part of the law at α = 1/2 below each."""
    values, weights = (part[1:].flip(0).numpy() for part in _law(0.5))
    return np.interp(eigenvalues.numpy(), values, (np.cumsum(weights) - weights / 2) / weights.sum())


def _by_quadrature(ntk: Ntk, time: Tensor, size: int) -> float:
    """Test error at one time, by the trace of a function of the NTK; where the NTK is 0 nothing is learned."""
    left = spectral_sum(ntk, lambda values: _test(values, time)[:, 0], method="slq", budget=400)
    return (left.value + (size - ntk.in_space.size) * (1 + NOISE)) / size


def _bands(system: System) -> tuple[Tensor, Tensor]:
    """Eigenvalues `[3, m]` of XᵀX at α = 1/2 and their vectors `[3, N, m]`, in three bands of a tenth of its rank."""
    X = system.inputs[0][0]
    values, vectors = torch.linalg.eigh(X.mT @ X)
    tenth = len(X) // 10
    some = len(values) - len(X) + tenth * torch.tensor([[2], [5], [8]]) + torch.arange(tenth)
    return values[some], vectors[:, some].movedim(1, 0)


def _descend(system: System) -> tuple[Tensor, Tensor]:
    """Weights `[2, N, 64]` at time 4, and when the error in each band was least, from 0."""
    X, (_, modes), errors = system.inputs[0][0], _bands(system), []
    targets, weights = X @ system.teachers + system.noises, system.starts
    for _ in range(STEPS):
        weights = weights + STEP * system.rate * X.mT @ (targets - X @ weights)
        errors.append((modes.mT @ (weights[0] - system.teachers)).square().mean(dim=(1, 2)))
    return weights, STEP * (1 + torch.stack(errors).argmin(dim=0))
