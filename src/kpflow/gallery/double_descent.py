"""Features of two scales, learned one after the other: the test error descends twice over training."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from kpflow.estimate import effective_rank
from kpflow.operators import Diagonal

from .draws import normal
from .entry import Check, Entry, Panel, curve, identity, monte_carlo, pair, points
from .equivalents import expected_error, flow_nodes, level
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
    flow: Tensor  # of the last setting
    plain: Tensor  # the same with features of one scale
    taught: Tensor  # [t'], mean of 400 teachers
    given: Tensor  # the same given the inputs
    kernel: Tensor  # spectrum of the NTK
    ranks: list[float]  # effective rank of the NTK on what is not yet learned


@final
class Predicted(NamedTuple):
    """The deterministic equivalents."""

    ridge: Tensor  # [2, t]
    apart: Tensor  # [t], of the first setting, with each scale taken as if it were alone
    flow: Tensor
    places: list[int]  # where the flow's error is least, most, and least again


@final
class DoubleDescent(Entry[System, Observed, Predicted]):
    """y = w·z + σε is fitted on x = Fz, with features of two scales, by ridge regression or by gradient flow.

    Equivalent for large n and d: with κ of a ridge λ from n = λ/κ + Σ sᵢ/(sᵢ + κ), sᵢ = Fᵢ²/d, and rᵢ = κ/(sᵢ + κ),
    E = ½ [Σ rᵢ²/d + σ²] / (1 − Σ (1 − rᵢ)²/n). Gradient flow is Σ cₖ of ridges λₖ = ζₖ/t, the nodes of
    e^{−x} ≈ Σ cₖ ζₖ/(x + ζₖ): its error is Σ cⱼcₖ of the same with rᵢ(λⱼ) rᵢ(λₖ) in the place of squares.
    """

    name = "double_descent"
    title = "Double descent over training"
    paper = "Pezeshki, Mitra, Bengio, Lajoie 2021, Multi-scale feature learning dynamics, arXiv 2112.03215"
    kernels = (
        "The NTK has two bands of eigenvalues: the test error descends again when e^{−λt} reaches the slow one, so the "
        "effective rank of K on what is not yet learned tells the epochs."
    )
    omits = "Neural networks; the paper's closed form, scales apart, is shown to fail where E is small."

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
        kernel = torch.linalg.eigvalsh(output_ntk(model, Z * setting.scales))
        left = [Diagonal(kernel * torch.exp(-2 * kernel * time)) for time in times]
        return Observed(
            torch.stack([_errors(drawn, _ridge, times) for drawn in fits]),
            _errors(fits[1], _flow, times),
            _errors([_fit(setting._replace(ratio=1.0), Z)], _flow, times),
            _taught(system, fits[1][0], times[SOME]),
            _errors(fits[1][:1], _flow, TIMES[SOME]),
            kernel,
            [effective_rank(operator).value for operator in left],
        )

    def predict(self, system: System) -> Predicted:
        tall, square = system.settings
        one = torch.ones(1, dtype=torch.complex128)  # λ = 1/t alone
        flow = _equivalent(square, *flow_nodes())
        ridge = torch.stack([_equivalent(setting, one, one) for setting in system.settings])
        apart = _equivalent(tall, one, one, apart=True)
        return Predicted(ridge, apart, flow, _extremes(flow))

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        places = _extremes(observed.flow)
        after = observed.plain[int(observed.plain.argmin()) :]
        fall = (after.cummax(dim=0).values - after).max()
        Z = system.inputs[1][0] * system.settings[1].scales
        (tall, square), (tall_law, square_law) = observed.ridge, predicted.ridge
        return [
            monte_carlo.close("ridge, 450 data, against the equivalent", tall_law, tall, 6e-2, relative=True),
            monte_carlo.close("ridge, as many data as features, noise", square_law, square, 5e-2, relative=True),
            monte_carlo.at_least(
                "what the form with scales apart misses by", 0.75, (predicted.apart / tall - 1).abs().max()
            ),
            monte_carlo.close("gradient flow, noise", predicted.flow, observed.flow, 5e-2, relative=True),
            monte_carlo.close("times of the flow's extremes", TIMES[predicted.places], TIMES[places]),
            monte_carlo.at_most("features of one scale: fall after the least error", 1e-3, fall),
            monte_carlo.close("mean of 400 teachers", observed.given, observed.taught, 5e-2, relative=True),
            identity.close(
                "eigenvalues of the NTK in the fast band",
                system.settings[1].large,
                int((observed.kernel > 1e-3).sum()),
                0.0,
            ),
            identity.close("the NTK is XXᵀ", torch.linalg.eigvalsh(Z @ Z.mT), observed.kernel, 1e-12),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        lines = (
            *pair("two scales", TIMES, predicted.flow, observed.flow),
            *pair("ridge λ = 1/t", TIMES, predicted.ridge[1], observed.ridge[1], 1),
        )
        extremes = zip(("error least", "most", "least again"), TIMES[predicted.places].tolist(), strict=True)
        marks = [curve(name, [time] * 2, [2.0, 200.0], i) for i, (name, time) in enumerate(extremes, 1)]
        ranks = points("effective rank", TIMES, observed.ranks)
        return (
            Panel.of("Test error over training", "time", "error", *lines, log="x"),
            Panel.of("The NTK on what is not yet learned", "time", "effective rank", ranks, *marks, log="xy"),
        )


@final
class Fit(NamedTuple):
    """XᵀX = V diag(l) Vᵀ of X = ZF."""

    setting: Setting
    values: Tensor  # l
    forth: Tensor  # FV
    back: Tensor  # F⁻¹V


def _fit(setting: Setting, Z: Tensor) -> Fit:
    X = Z * setting.scales
    values, vectors = torch.linalg.eigh(X.mT @ X)
    return Fit(setting, values, setting.scales[:, None] * vectors, vectors / setting.scales[:, None])


Left = Callable[[Tensor, Tensor], Tensor]
"""ψ(l), shape `[t, d]`, what is left of modes at times `[t, 1]`."""


def _ridge(values: Tensor, times: Tensor) -> Tensor:
    return 1 / (1 + values * times)


def _flow(values: Tensor, times: Tensor) -> Tensor:
    return torch.exp(-values * times)


def _errors(fits: Sequence[Fit], law: Left, times: Tensor) -> Tensor:
    """½ ((‖FVψVᵀF⁻¹‖² + σ²‖FV(1 − ψ)l^{−½}‖²)/d + σ²), mean over fits, `[t]`."""
    errors = []
    for setting, values, forth, back in fits:
        left = law(values, times[:, None])
        bias = (left @ (forth.mT @ forth * (back.mT @ back)) * left).sum(dim=1)
        variance = (1 - left) ** 2 / values @ forth.square().sum(dim=0)
        errors.append(0.5 * ((bias + setting.noise**2 * variance) / setting.size + setting.noise**2))
    return torch.stack(errors).mean(dim=0)


def _taught(system: System, fit: Fit, times: Tensor) -> Tensor:
    """Mean test error of the 400 students of the teachers under gradient flow."""
    setting, Z, w = fit.setting, system.inputs[1][0], system.teachers
    slope = (Z @ fit.forth).mT @ (Z @ w + setting.noise * system.errors)
    learned = (1 - _flow(fit.values, times[:, None])) / fit.values
    misses = fit.forth @ (learned[:, :, None] * slope) - w
    return 0.5 * (misses.square().sum(dim=1).mean(dim=1) / setting.size + setting.noise**2)


def _extremes(errors: Tensor) -> list[int]:
    """Where the error is least, most, and least again."""
    peak = int((errors * (TIMES > 100) * (TIMES < 1e5)).argmax())
    return [int(errors[:peak].argmin()), peak, peak + int(errors[peak:].argmin())]


def _equivalent(setting: Setting, nodes: Tensor, shares: Tensor, *, apart: bool = False) -> Tensor:
    """E of Σ cₖ of ridges λₖ = ζₖ/t at all times; apart, each scale has the κ that it would have alone."""
    sizes, ridges = setting.scales[[0, -1]] ** 2 / setting.size, nodes / TIMES[:, None].to(nodes.dtype)
    counts = torch.tensor([setting.large, setting.size - setting.large])
    levels = [level(setting.data, ridges, sizes, some) for some in (torch.diag(counts) if apart else counts[None])]
    return expected_error(setting.data, setting.noise, sizes, counts, levels, shares)
