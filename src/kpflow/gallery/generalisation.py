"""Linear students of noisy teachers: training and test error at all times, from the Marchenko–Pastur law."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy import ndarray
from scipy.optimize import minimize_scalar
from torch import Tensor

from .entry import Check, Entry, Panel, curve, formula, identity, monte_carlo, points
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

    test: ndarray  # [α, t]
    train: ndarray
    kernel: ndarray  # spectrum of the NTK at α = 1/2
    frozen: float
    best: list[float]
    descent: ndarray  # [64], of each teacher at time 4
    expected: float
    peak: float


@final
class Predicted(NamedTuple):
    """Integrals over the Marchenko–Pastur law."""

    test: ndarray
    train: ndarray
    late: list[float]
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

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        inputs = tuple(_scaled(normal(draws, round(ratio * size), size)) for ratio in RATIOS)
        noises = math.sqrt(NOISE) * normal(size // 2, 64)
        return System(inputs, normal(size, 64), noises, 1.3 if broken else 1.0)

    def run(self, system: System) -> Observed:
        spectra = [torch.linalg.eigvalsh(X.mT @ X).flatten().numpy().clip(0) for X in system.inputs]
        first = system.inputs[0][0]
        kernel = output_ntk(linear_network([torch.zeros(1, first.shape[1], dtype=torch.float64)]), first)
        test = np.array([_test(values, system.rate * TIMES).mean(0) + NOISE for values in spectra])
        shares = [X.shape[2] / X.shape[1] for X in system.inputs]
        train = [
            share * _train(values, system.rate * TIMES).mean(0) + max(0.0, 1 - share) * NOISE
            for share, values in zip(shares, spectra, strict=True)
        ]
        weights, frozen = _descend(system)
        return Observed(
            test,
            np.array(train),
            torch.linalg.eigvalsh(kernel).numpy(),
            frozen,
            [_best(value) for value in STOPPED],
            (weights - system.teachers).square().mean(dim=0).numpy() + NOISE,
            float(_test(np.linalg.eigvalsh((first.mT @ first).numpy()).clip(0), np.array([4.0])).mean()) + NOISE,
            RATIOS[int(test[:, -1].argmax())],
        )

    def predict(self, system: System) -> Predicted:
        late = [1e9 if ratio != 1 else 1e3 for ratio in RATIOS]
        count = system.inputs[0].shape[1]
        return Predicted(
            np.array([_average(ratio, lambda values: _test(values, TIMES)) + NOISE for ratio in RATIOS]),
            np.array(
                [
                    _average(ratio, lambda values: _train(values, TIMES)) / ratio + max(0.0, 1 - 1 / ratio) * NOISE
                    for ratio in RATIOS
                ]
            ),
            [
                float(_average(r, lambda v, t=t: _test(v, np.array([t])))[0]) + NOISE
                for r, t in zip(RATIOS, late, strict=True)
            ],
            [0.5 + NOISE * (1 + 0.5 / 0.5), NOISE * (1 + 1 / (2 - 1))],
            [math.log1p(value / NOISE) / value for value in STOPPED],
            (np.arange(count) + 0.5) / count,
        )

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        mean, spread = observed.descent.mean(), observed.descent.std() / 8
        return [
            # by 8 seeds of short runs: 0.004 to 0.028, of training 4e-4 to 1.1e-3, of the spectrum 0.010 to 0.013
            monte_carlo.close(
                "test error, α = ½, 1, 2, given the inputs", predicted.test, observed.test, 3e-2, relative=True
            ),
            monte_carlo.close("training error", predicted.train, observed.train, 3e-3),
            formula.close(
                "test error in the end, α = ½ and 2",
                predicted.limits,
                [predicted.late[0], predicted.late[2]],
                1e-6,
                relative=True,
            ),
            monte_carlo.close("where it is worst in the end", 1.0, observed.peak, 0.0),
            formula.close("best time to stop a mode", predicted.best, observed.best, 1e-6, relative=True),
            identity.close("what lies in the kernel of the NTK never moves", 0.0, observed.frozen, 1e-12),
            monte_carlo.close(
                "share of the spectrum of the NTK below each", _below(observed.kernel), predicted.shares, 2e-2
            ),
            monte_carlo.close(
                f"error of descent on 64 teachers, over its standard error {spread:.2g}",
                observed.expected / spread,
                mean / spread,
                4.0,
            ),
            identity.close(
                "modes of the NTK are those of XᵀX",
                torch.linalg.eigvalsh(system.inputs[0][0] @ system.inputs[0][0].mT),
                observed.kernel,
                1e-11,
            ),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        lines = [
            line
            for i, ratio in enumerate(RATIOS)
            for line in (
                curve(f"α = {ratio:g}", TIMES, predicted.test[i], group=i),
                points("", TIMES[::3], observed.test[i, ::3], group=i),
            )
        ]
        values, some = np.linspace(0.05, 2.95, 200), slice(None, None, len(observed.kernel) // 40)
        law = curve("Marchenko–Pastur", values, _below(values))
        seen = points("", observed.kernel[some], predicted.shares[some])
        return (
            Panel.of("Test error over training", "time", "error", *lines, log="x"),
            Panel.of("Spectrum of the NTK, α = ½", "eigenvalue", "share below", law, seen),
        )


def _scaled(inputs: Tensor) -> Tensor:
    """With tr XᵀX = P, as it is on average."""
    return inputs * (inputs.shape[1] / inputs.square().sum(dim=(1, 2), keepdim=True)).sqrt()


def _mode(value: float, time: float) -> float:
    return float(_test(np.array([value]), np.array([time]))[0, 0])


def _best(value: float) -> float:
    """When the error of a mode is least."""
    found: Any = minimize_scalar(lambda time: _mode(value, time), bracket=(0.1, 1.0, 8.0), options={"xtol": 1e-10})
    return float(found.x)


def _test(values: ndarray, times: ndarray) -> ndarray:
    """σ_w² e^{−2λt} + σ_ε²/λ (1 − e^{−λt})², `[λ, t]`."""
    product = np.outer(values, times)
    learned = -np.expm1(-product)
    return np.exp(-2 * product) + NOISE * learned**2 / values.clip(1e-12)[:, None]


def _train(values: ndarray, times: ndarray) -> ndarray:
    """(σ_w² λ + σ_ε² [λ > 0]) e^{−2λt}."""
    return (values + NOISE * (values > 1e-9))[:, None] * np.exp(-2 * np.outer(values, times))


def _law(ratio: float) -> tuple[ndarray, ndarray]:
    """Nodes and weights of the Marchenko–Pastur law, the part at 0 first."""
    turns = (np.arange(20_000) + 0.5) * math.pi / 20_000
    values = 1 + ratio + 2 * math.sqrt(ratio) * np.cos(turns)
    weights = 2 * ratio * np.sin(turns) ** 2 / values / 20_000
    return np.append(0.0, values), np.append(max(0.0, 1 - ratio), weights)


def _average(ratio: float, of: Callable[[ndarray], ndarray]) -> ndarray:
    values, weights = _law(ratio)
    return weights @ of(values)


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
