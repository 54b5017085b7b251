"""Features of two scales, learned one after the other: the test error descends twice over training."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import torch
from scipy.optimize import brentq
from torch import Tensor

from .draws import normal
from .entry import Check, Entry, Panel, curve, identity, monte_carlo, pair, points
from .students import linear_network, output_ntk

__all__ = ["DoubleDescent"]

FAST, RATIO = 0.5, 100.0
TIMES = torch.logspace(-1, 7, 49, dtype=torch.float64)
SOME = [10, 20, 35]  # of the times


@final
class Setting(NamedTuple):
    """n data of d features, p of them large; deviation of the noise."""

    data: int
    size: int
    large: int
    noise: float
    ratio: float = RATIO

    @property
    def scales(self) -> Tensor:
        """Of every feature."""
        return FAST / self.ratio ** (torch.arange(self.size) >= self.large).double()


@final
class System(NamedTuple):
    """Settings; their inputs z ~ N(0, I/d), and single teachers for the last; `rate` over that of the stated flow."""

    settings: tuple[Setting, Setting]
    inputs: tuple[Tensor, ...]  # [draw, n, d]
    teachers: Tensor  # [d, 400]
    errors: Tensor  # [n, 400]
    rate: float


@final
class Observed(NamedTuple):
    """Errors given the inputs, by time."""

    ridge: Tensor  # [2, t]
    flow: Tensor
    plain: Tensor  # of features of one scale
    taught: Tensor  # [t'], mean of 400 teachers
    given: Tensor  # the same given the inputs
    kernel: Tensor  # spectrum of the NTK


@final
class Predicted(NamedTuple):
    """The deterministic equivalents of ridge regression."""

    ridge: Tensor  # [2, t]
    bands: list[int]


@final
class DoubleDescent(Entry[System, Observed, Predicted]):
    """y = w·z + σε is fitted on x = Fz, with features of two scales; ridge λ = 1/t stands for training for a time t.

    Equivalent for large n and d: κ solves n = λ/κ + Σ sᵢ/(sᵢ + κ) with sᵢ = Fᵢ²/d, and
    E = ½ [Σ κ²/(sᵢ + κ)²/d + σ²] / (1 − Σ sᵢ²/(sᵢ + κ)²/n). Under gradient flow φ(l) = (1 − e^{−lt})/l in the place of
    1/(l + λ).
    """

    name = "double_descent"
    title = "Double descent over training"
    paper = "Pezeshki, Mitra, Bengio, Lajoie 2021, Multi-scale feature learning dynamics, arXiv 2112.03215"
    kernels = (
        "The NTK has two bands of eigenvalues: the test error descends again when e^{−λt} reaches the slow one, so the "
        "spectrum of K alone predicts the epochs."
    )
    omits = (
        "Neural networks, and the released closed form, which is approximate and off by up to 79 % where E is small."
    )

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator = torch.Generator().manual_seed(seed)
        settings = Setting(450, 300, 210, 0.0), Setting(300, 300, 225, 0.1)
        draws = 8 if short else 16
        inputs = tuple(normal(generator, draws, s.data, s.size) / math.sqrt(s.size) for s in settings)
        teachers, errors = normal(generator, 300, 400), normal(generator, 300, 400)
        return System(settings, inputs, teachers, errors, 3.0 if broken else 1.0)

    def run(self, system: System) -> Observed:
        times, setting, Z = system.rate * TIMES, system.settings[1], system.inputs[1][0]
        fits = [[_fit(s, Z) for Z in inputs] for s, inputs in zip(system.settings, system.inputs, strict=True)]
        model = linear_network([torch.zeros(1, 300, dtype=torch.float64)])
        return Observed(
            torch.stack([_errors(drawn, _ridge, times) for drawn in fits]),
            _errors(fits[1], _flow, times),
            _errors([_fit(setting._replace(ratio=1.0), Z)], _flow, times),
            _taught(system, fits[1][0], times[SOME]),
            _errors(fits[1][:1], _flow, TIMES[SOME]),
            torch.linalg.eigvalsh(output_ntk(model, Z * setting.scales)),
        )

    def predict(self, system: System) -> Predicted:
        ridge = [[_equivalent(setting, 1 / time) for time in TIMES.tolist()] for setting in system.settings]
        large, size = system.settings[1].large, system.settings[1].size
        return Predicted(torch.tensor(ridge, dtype=torch.float64), [large, size - large])

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        middle = (TIMES > 100) & (TIMES < 1e5)
        peak = int((observed.flow * middle).argmax())
        first, second = int(observed.flow[:peak].argmin()), peak + int(observed.flow[peak:].argmin())
        places = [first, peak, second]
        after = observed.plain[int(observed.plain.argmin()) :]
        fall = (after.cummax(dim=0).values - after).max()
        bands = [int((observed.kernel > 1e-3).sum()), int((observed.kernel <= 1e-3).sum())]
        Z = system.inputs[1][0] * system.settings[1].scales
        (tall, square), (tall_law, square_law) = observed.ridge, predicted.ridge
        # eight seeds, short: at most .056, .042, .020 and .033; full: .051, .049, .027 and .041; always these times
        return [
            monte_carlo.close("ridge, 450 data, against the equivalent", tall_law, tall, 6e-2, relative=True),
            monte_carlo.close("ridge, as many data as features, noise", square_law, square, 5e-2, relative=True),
            monte_carlo.close("mean of 400 teachers", observed.given, observed.taught, 5e-2, relative=True),
            monte_carlo.close(
                "gradient flow: extremes", [0.261, 0.517, 0.114], observed.flow[places], 0.05, relative=True
            ),
            monte_carlo.close("their times", [10, 1e3, 2e6], TIMES[places], 0.1, relative=True),
            monte_carlo.at_most("features of one scale: fall after the least error", 1e-3, fall),
            identity.close("eigenvalues of the NTK in each band", predicted.bands, bands, 0.0),
            identity.close("the NTK is XXᵀ", torch.linalg.eigvalsh(Z @ Z.mT), observed.kernel, 1e-12),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        lines = [
            pair(f"{label}: equivalent", TIMES, predicted.ridge[i], observed.ridge[i], i)
            for i, label in enumerate(("450 data", "300 data, noise"))
        ]
        order, edge = torch.arange(1, 301), predicted.bands[1] + 0.5
        seen = points("", order, observed.kernel.clamp_min(1e-12))
        border = curve("slow | fast", [edge, edge], [1e-10, 1.0], group=1)
        return (
            Panel.of("Test error over time 1/λ", "time", "error", *itertools.chain(*lines), log="x"),
            Panel.of("Spectrum of the NTK: two bands", "number", "eigenvalue", seen, border, log="y"),
        )


@final
class Fit(NamedTuple):
    """X = ZF = USVᵀ."""

    setting: Setting
    left: Tensor  # Uᵀ
    values: Tensor  # S
    turned: Tensor  # FV
    seen: Tensor  # UᵀZ


def _fit(setting: Setting, Z: Tensor) -> Fit:
    left, values, right = torch.linalg.svd(Z * setting.scales, full_matrices=False)
    return Fit(setting, left.mT, values, setting.scales[:, None] * right.mT, left.mT @ Z)


Gains = Callable[[Tensor, Tensor], Tensor]
"""φ(l), shape [t, d], of eigenvalues l = S² and times [t, 1]."""


def _ridge(values: Tensor, times: Tensor) -> Tensor:
    return 1 / (values + 1 / times)


def _flow(values: Tensor, times: Tensor) -> Tensor:
    return -torch.expm1(-values * times) / values


def _errors(fits: Sequence[Fit], gains: Gains, times: Tensor) -> Tensor:
    """½ ((‖AZ − I‖² + σ²‖A‖²)/d + σ²) with A = F V φ(L) VᵀXᵀ, mean over fits, `[t]`."""
    errors = []
    for fit in fits:
        size, noise = fit.setting.size, fit.setting.noise**2
        kept = gains(fit.values**2, times[:, None]) * fit.values
        cross, gram = (fit.seen.mT * fit.turned).sum(dim=0), fit.turned.mT @ fit.turned
        bias = size - 2 * kept @ cross + ((kept @ (gram * (fit.seen @ fit.seen.mT))) * kept).sum(dim=1)
        errors.append(0.5 * ((bias + noise * kept**2 @ gram.diagonal()) / size + noise))
    return torch.stack(errors).mean(dim=0)


def _taught(system: System, fit: Fit, times: Tensor) -> Tensor:
    """Mean test error of the 400 students of the teachers under gradient flow."""
    seen = fit.seen @ system.teachers + fit.setting.noise * fit.left @ system.errors
    kept = _flow(fit.values**2, times[:, None]) * fit.values
    misses = fit.turned @ (kept[:, :, None] * seen) - system.teachers
    return 0.5 * (misses.square().sum(dim=1).mean(dim=1) / fit.setting.size + fit.setting.noise**2)


def _equivalent(setting: Setting, ridge: float) -> float:
    sizes = setting.scales**2 / setting.size

    def excess(log: float) -> float:
        k = math.exp(log)
        return float((sizes / (sizes + k)).sum()) + ridge / k - setting.data

    root: Any = brentq(excess, -60.0, 20.0)
    k = math.exp(root)
    bias = float((k**2 / (sizes + k) ** 2).mean()) + setting.noise**2
    return 0.5 * bias / (1 - float((sizes**2 / (sizes + k) ** 2).sum()) / setting.data)
