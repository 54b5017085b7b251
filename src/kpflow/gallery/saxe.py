"""Deep linear networks whose learning curves are known exactly."""

import math
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from kpflow.estimate import spectrum
from kpflow.flow import Ntk

from .draws import orthogonal
from .entry import Check, Entry, Panel, curve, formula, identity, pair, points
from .exponents import exponent
from .flows import rk4
from .students import linear_map, linearise_map

__all__ = ["Saxe"]

MODES = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
START = 1e-3
TIMES = 0.1 * torch.arange(81, dtype=torch.float64)  # of the states that are kept
SEEN = [0, 15, 30, 50, 80]  # those of which the NTK is seen
DEPTHS = (3, 4, 6)


@final
class System(NamedTuple):
    """Σ = U diag(s) Vᵀ, and both weights at the start; `rate` of the second layer's learning is 1."""

    left: Tensor
    right: Tensor
    weights: Tensor  # [2, d, d]
    unaligned: Tensor  # [2, d, d], balanced, but not along the singular vectors
    rate: float
    descent: float

    @property
    def target(self) -> Tensor:
        """Σ."""
        return self.left * MODES @ self.right.mT


@final
class Observed(NamedTuple):
    """Paths of the weights, and of what is seen of them."""

    path: Tensor  # [t, 2, d, d]
    maps: Tensor  # [t, d, d], Uᵀ W₂ W₁ V
    descents: Tensor  # [2, t, d], its diagonal by gradient descent, with the step and twice the step
    unaligned: Tensor  # [t, 2, d, d]
    deep: Tensor  # [depth, t], of a single mode
    deepest: Tensor  # [t], in 10⁴ layers, every 0.02/10⁴
    spectra: Tensor  # [m, d²] of the output NTK


@final
class Predicted(NamedTuple):
    """Closed forms."""

    strengths: Tensor  # [t, d]
    sums: Tensor  # [t, d²]
    deep: Tensor  # [depth, t]
    product: Tensor  # [t, 2d, 2d], Q Qᵀ


@final
class Saxe(Entry[System, Observed, Predicted]):
    """Two linear layers learn Σ by gradient flow: mode i follows a(t) = s e^{2st} / (e^{2st} − 1 + s/a₀)."""

    name = "saxe"
    title = "Deep linear networks"
    paper = "Saxe, McClelland, Ganguli 2014, arXiv 1312.6120"
    kernels = (
        "The NTK of the map is W₂W₂ᵀ⊗I + I⊗W₁ᵀW₁, so its spectrum is {aᵢ + aⱼ} at every time: learning amplifies "
        "exactly the kernel modes that it already has."
    )
    omits = "Nonlinear networks, and greedy pre-training."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator = torch.Generator().manual_seed(seed)
        left, right, turn, other = (orthogonal(generator, 4) for _ in range(4))
        spread = torch.tensor([0.3, 0.2, 0.1, 0.05], dtype=torch.float64)
        weights = math.sqrt(START) * torch.stack([turn @ right.mT, left @ turn.mT])
        unaligned = torch.stack([other * spread @ turn.mT, right * spread @ other.mT])
        return System(left, right, weights, unaligned, 0.9 if broken else 1.0, 2e-3 if short else 5e-4)

    def run(self, system: System) -> Observed:
        def velocity(weights: Tensor) -> Tensor:
            first, second = weights
            miss = system.target - second @ first
            return torch.stack([second.mT @ miss, system.rate * miss @ first.mT])

        def descended(step: float) -> Tensor:
            weights, kept = system.weights, [system.weights]
            for count in range(1, round(8 / step) + 1):
                weights = weights + step * velocity(weights)
                if count % round(0.1 / step) == 0:
                    kept.append(weights)
            return turned(torch.stack(kept)).diagonal(dim1=1, dim2=2)

        def turned(path: Tensor) -> Tensor:
            return system.left.mT @ path[:, 1] @ path[:, 0] @ system.right

        path = rk4(velocity, system.weights, 0.01, 800, every=10)
        return Observed(
            path,
            turned(path),
            torch.stack([descended(step) for step in (system.descent, 2 * system.descent)]),
            rk4(velocity, system.unaligned, 0.01, 200, every=20),
            torch.stack([_deep(depth, system.rate) for depth in DEPTHS]),
            _deep(10_000, system.rate, 0.02 / 10_000, 400, every=1),
            torch.stack([_spectrum(path[k]) for k in SEEN]),
        )

    def predict(self, system: System) -> Predicted:
        growth = torch.exp(2 * MODES * TIMES[:, None])
        strengths = MODES * growth / (growth - 1 + MODES / START)
        sums = (strengths[:, :, None] + strengths[:, None, :]).flatten(1).sort(dim=1).values
        L = torch.tensor(DEPTHS, dtype=torch.float64)  # ȧ = L a^(2 − 2/L) (s − a)
        deep = rk4(lambda a: L * a ** (2 - 2 / L) * (2.0 - a), torch.full_like(L, 0.1), 0.0025, 800, every=40)
        return Predicted(strengths, sums, deep.mT, _riccati(system))

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        flow, step, descents = observed.maps.diagonal(dim1=1, dim2=2), system.descent, observed.descents
        rise = [float(np.interp(s / 2, mode, TIMES)) for mode, s in zip(flow.mT, MODES.tolist(), strict=True)]
        half = torch.log((MODES - START) / START) / (2 * MODES)
        order = exponent([1.0, 2.0], (descents - predicted.strengths).abs().amax(dim=(1, 2)))
        Q = torch.cat([observed.unaligned[:, 0].mT, observed.unaligned[:, 1]], dim=1)
        charge = observed.path[:, 0] @ observed.path[:, 0].mT - observed.path[:, 1].mT @ observed.path[:, 1]
        late = math.log(1.9 * 1.9 / (0.1 * 0.1)) / 4 + 1 / 0.2 - 1 / 3.8
        learned = 0.02 * float(np.interp(1.9, observed.deepest, range(len(observed.deepest))))
        return [
            formula.close("strengths of the modes under gradient flow", predicted.strengths, flow, 1e-7),
            formula.close(f"by gradient descent, step {step:g}", predicted.strengths, descents[0], 10 * step),
            formula.close("order of its error in the step", 1.0, order, 0.05),
            identity.close("modes do not couple", torch.diag_embed(flow), observed.maps, 1e-12),
            formula.close("times of half the rise", half, rise, 5e-3),
            formula.close("strength of a mode in 3, 4 and 6 layers", predicted.deep, observed.deep, 1e-6),
            formula.close("QQᵀ from any balanced start", predicted.product, Q @ Q.mT, 1e-7),
            identity.close("W₁W₁ᵀ − W₂ᵀW₂ is conserved", charge[:1], charge, 1e-8),
            # s⁻² ln[a_f (s − a₀) / (a₀ (s − a_f))] + 1/(s a₀) − 1/(s a_f), of infinitely many layers
            formula.close("time to learn in 10⁴ layers, times 10⁴", late, learned, 2e-3),
            formula.close("spectrum of the NTK is {aᵢ + aⱼ}", predicted.sums[SEEN], observed.spectra, 2e-7),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        modes = [
            line
            for i, s in enumerate(MODES.tolist())
            for line in pair(f"s = {s:g}", TIMES, predicted.strengths[:, i], observed.descents[0, :, i], i, every=4)
        ]
        spectra = [curve("", TIMES, predicted.sums[:, j], group=j) for j in range(16)]
        spectra += [points("", TIMES[SEEN], observed.spectra[:, j], group=j) for j in range(16)]
        return (
            Panel.of("Strength of each mode", "time", "a", *modes),
            Panel.of("Spectrum of the NTK: aᵢ + aⱼ", "time", "eigenvalue", *spectra, log="y"),
        )


def _spectrum(weights: Tensor) -> Tensor:
    """Of the NTK of both layers at white inputs, rising."""
    lin = linearise_map(linear_map, torch.eye(4, dtype=torch.float64), {"W₁": weights[0], "W₂": weights[1]})
    return spectrum(Ntk(lin)).flip(0)


def _deep(depth: int, rate: float, step: float = 0.0025, count: int = 800, *, every: int = 40) -> Tensor:
    """The strength of a mode with s = 2 in `depth` scalar layers, all started at a₀^(1/depth) with a₀ = 0.1."""

    def velocity(layers: Tensor) -> Tensor:
        total = layers.prod()
        return rate * (2.0 - total) * total / layers

    start = torch.full((depth,), 0.1 ** (1 / depth), dtype=torch.float64)
    return rk4(velocity, start, step, count, every=every).prod(dim=1)


def _riccati(system: System) -> Tensor:
    """Q Qᵀ = e^{Ft} Q₀ [I + ½ Q₀ᵀ (e^{Ft} F⁻¹ e^{Ft} − F⁻¹) Q₀]⁻¹ Q₀ᵀ e^{Ft}, Q = [W₁ᵀ; W₂], F = [[0, Σᵀ], [Σ, 0]]."""
    zero, start = torch.zeros_like(system.target), torch.cat([system.unaligned[0].mT, system.unaligned[1]])
    force = torch.cat([torch.cat([zero, system.target.mT], dim=1), torch.cat([system.target, zero], dim=1)])
    growth, inverse = torch.linalg.matrix_exp(force * TIMES[:21:2, None, None]), torch.linalg.inv(force)
    inner = torch.eye(4) + 0.5 * start.mT @ (growth @ inverse @ growth - inverse) @ start
    moved = growth @ start
    return moved @ torch.linalg.solve(inner, moved.mT)
