"""Linear students of noisy teachers: training and test error at all times, from the Marchenko–Pastur law."""

import itertools
import math
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy import ndarray
from scipy.optimize import minimize_scalar
from torch import Tensor

from .draws import normal
from .entry import Check, Entry, Panel, curve, formula, identity, monte_carlo, pair, points
from .students import linear_network, output_ntk

__all__ = ["Generalisation"]

RATIOS = (0.5, 1.0, 2.0)  # α = P/N
NOISE = 0.25  # σ_ε²; σ_w² = 1
TIMES = np.logspace(-2, 3, 41)
STOPPED = (0.05, 0.5, 2.0)  # eigenvalues whose best time is found


@final
class System(NamedTuple):
    """Inputs of each ratio, and a smaller student for descent; `rate` over that of the stated flow."""

    inputs: tuple[Tensor, ...]  # [draw, αN, N], each with tr XᵀX = αN
    teachers: Tensor  # [N', 64] of the smaller one
    noises: Tensor  # [N'/2, 64]
    rate: float


@final
class Observed(NamedTuple):
    """Expected errors given the inputs, by ratio and time, and what descent on single teachers did."""

    errors: ndarray  # [α, 2, t], test and training
    kernel: ndarray  # spectrum of the NTK at α = 1/2
    frozen: float
    best: list[float]
    descent: ndarray  # [64], test error of each teacher at time 4
    expected: float


@final
class Predicted(NamedTuple):
    """Integrals over the Marchenko–Pastur law."""

    errors: ndarray  # [α, 2, t]
    limits: list[float]
    best: list[float]
    shares: ndarray  # of the spectrum below each eigenvalue


@final
class Generalisation(Entry[System, Observed, Predicted]):
    """ẇ = Xᵀ(y − Xw) from 0, y = Xw̄ + ε: the test error overfits, worst where there are as many data as weights.

    E(t) = ∫ ρ(λ) [σ_w² e^{−2λt} + σ_ε²/λ (1 − e^{−λt})²] + σ_ε², ρ the Marchenko–Pastur law of XᵀX for α = P/N, with
    (1 − α) at λ = 0 if α < 1.
    """

    name = "generalisation"
    title = "Generalisation over training"
    paper = "Advani, Saxe 2017, arXiv 1710.03667"
    kernels = (
        "Directions that never learn are the kernel of the constant NTK and the Marchenko–Pastur law is its spectrum, "
        "so the whole curve is a functional of the spectrum of K alone (P = I)."
    )
    omits = "Random initial weights, nonlinear and deep students, and the gap to finite teachers."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator = torch.Generator().manual_seed(seed)
        size, draws = (300, 4) if short else (600, 2)
        inputs = tuple(_scaled(normal(generator, draws, round(ratio * size), size)) for ratio in RATIOS)
        noises = math.sqrt(NOISE) * normal(generator, size // 2, 64)
        return System(inputs, normal(generator, size, 64), noises, 1.3 if broken else 1.0)

    def run(self, system: System) -> Observed:
        spectra = [torch.linalg.eigvalsh(X.mT @ X).numpy().clip(0) for X in system.inputs]  # [draw, N]
        errors = [
            _errors(values.ravel(), system.rate * TIMES, ratio).mean(axis=1)
            for ratio, values in zip(RATIOS, spectra, strict=True)
        ]
        first = system.inputs[0][0]
        kernel = output_ntk(linear_network([torch.zeros(1, first.shape[1], dtype=torch.float64)]), first)
        weights, frozen = _descend(system)
        return Observed(
            np.array(errors),
            torch.linalg.eigvalsh(kernel).numpy(),
            frozen,
            [_best(value) for value in STOPPED],
            (weights - system.teachers).square().mean(dim=0).numpy() + NOISE,
            float(_errors(spectra[0][0], np.array([4.0]), 0.5)[0].mean()),
        )

    def predict(self, system: System) -> Predicted:
        count = system.inputs[0].shape[1]
        return Predicted(
            np.array([_average(ratio, TIMES) for ratio in RATIOS]),
            [0.5 + NOISE * (1 + 0.5 / 0.5), NOISE * (1 + 1 / (2 - 1))],
            [math.log1p(value / NOISE) / value for value in STOPPED],
            (np.arange(count) + 0.5) / count,
        )

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        (test, train), (law, train_law) = (errors.swapaxes(0, 1) for errors in (observed.errors, predicted.errors))
        spread, worst = observed.descent.std() / 8, RATIOS[int(test[:, -1].argmax())]
        descent = f"error of descent on 64 teachers, over its standard error {spread:.2g}"
        gram = torch.linalg.eigvalsh(system.inputs[0][0] @ system.inputs[0][0].mT)
        return [
            # by 8 seeds of short runs: 0.004 to 0.028, of training 4e-4 to 1.1e-3, in the end at most 0.0042, of the
            # spectrum 0.010 to 0.013
            monte_carlo.close("test error, α = ½, 1, 2, given the inputs", law, test, 3e-2, relative=True),
            monte_carlo.close("training error", train_law, train, 3e-3),
            monte_carlo.close(
                "test error in the end, α = ½ and 2", predicted.limits, test[[0, 2], -1], 1e-2, relative=True
            ),
            monte_carlo.close("where it is worst in the end", 1.0, worst, 0.0),
            formula.close("best time to stop a mode", predicted.best, observed.best, 1e-6, relative=True),
            identity.close("what lies in the kernel of the NTK never moves", 0.0, observed.frozen, 1e-12),
            monte_carlo.close("spectrum of the NTK: share below", _below(observed.kernel), predicted.shares, 2e-2),
            monte_carlo.close(descent, observed.expected / spread, observed.descent.mean() / spread, 4.0),
            identity.close("modes of the NTK are those of XᵀX", gram, observed.kernel, 1e-11),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        lines = [
            pair(f"α = {ratio:g}", TIMES, law[0], seen[0], i, every=3)
            for i, (ratio, law, seen) in enumerate(zip(RATIOS, predicted.errors, observed.errors, strict=True))
        ]
        values, some = np.linspace(0.05, 2.95, 200), slice(None, None, len(observed.kernel) // 40)
        below = curve("Marchenko–Pastur", values, _below(values))
        shares = points("", observed.kernel[some], predicted.shares[some])
        return (
            Panel.of("Test error over training", "time", "error", *itertools.chain(*lines), log="x"),
            Panel.of("Spectrum of the NTK, α = ½", "eigenvalue", "share below", below, shares),
        )


def _scaled(inputs: Tensor) -> Tensor:
    """With tr XᵀX = P, as it is on average."""
    return inputs * (inputs.shape[1] / inputs.square().sum(dim=(1, 2), keepdim=True)).sqrt()


def _best(value: float) -> float:
    """When the error of a mode is least."""

    def error(time: float) -> float:
        return float(_errors(np.array([value]), np.array([time]), 1.0)[0, 0, 0])

    found: Any = minimize_scalar(error, bracket=(0.1, 1.0, 8.0), options={"xtol": 1e-10})
    return float(found.x)


def _errors(values: ndarray, times: ndarray, ratio: float) -> ndarray:
    """Of test σ_w² e^{−2λt} + σ_ε²/λ (1 − e^{−λt})² + σ_ε², of training (σ_w² λ + σ_ε² [λ > 0]) e^{−2λt}/α + …."""
    product = np.outer(values, times)
    left, learned = np.exp(-2 * product), -np.expm1(-product)
    test = left + NOISE * learned**2 / values.clip(1e-12)[:, None] + NOISE
    train = (values + NOISE * (values > 1e-9))[:, None] * left / ratio + max(0.0, 1 - 1 / ratio) * NOISE
    return np.stack([test, train])  # [2, λ, t]


def _law(ratio: float) -> tuple[ndarray, ndarray]:
    """Nodes and weights of the Marchenko–Pastur law, the part at 0 first."""
    turns = (np.arange(20_000) + 0.5) * math.pi / 20_000
    values = 1 + ratio + 2 * math.sqrt(ratio) * np.cos(turns)
    weights = 2 * ratio * np.sin(turns) ** 2 / values / 20_000
    return np.append(0.0, values), np.append(max(0.0, 1 - ratio), weights)


def _average(ratio: float, times: ndarray) -> ndarray:
    """Errors over the law, `[2, t]`."""
    values, weights = _law(ratio)
    return weights @ _errors(values, times, ratio)


def _below(eigenvalues: ndarray) -> ndarray:
    """Share of the nonzero part of the law at α = 1/2 below each."""
    values, weights = (part[:0:-1] for part in _law(0.5))
    below = np.cumsum(weights) - weights / 2
    return np.interp(eigenvalues, values, below / weights.sum())


def _descend(system: System) -> tuple[Tensor, float]:
    """Weights for 64 teachers after a time 4 at α = 1/2, and how far they moved in the kernel of the NTK."""
    X, teachers = system.inputs[0][0], system.teachers
    targets, weights = X @ teachers + system.noises, torch.zeros_like(teachers)
    for _ in range(400):
        weights = weights + 0.01 * system.rate * X.mT @ (targets - X @ weights)
    kernel = torch.linalg.qr(X.mT, mode="complete").Q[:, len(X) :]
    return weights, float((kernel.mT @ weights).abs().max())
