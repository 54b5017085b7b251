"""Deep linear networks whose learning curves are known exactly."""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from kpflow.flow import Ntk
from kpflow.operators import to_dense
from kpflow.states import linearise

from .entry import Check, Entry, Panel, curve, formula, identity, points
from .flows import rk4

__all__ = ["Saxe"]

MODES = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
START = 1e-3
TIME, STEP = 8.0, 0.01


@final
class System(NamedTuple):
    """Σ = U diag(s) Vᵀ, and both weights at the start; `rate` of the second layer's learning is 1."""

    left: Tensor
    right: Tensor
    weights: Tensor  # [2, d, d]
    unaligned: Tensor  # [2, d, d], balanced, but not along the singular vectors
    rate: float
    depths: tuple[int, ...]
    descent: float

    @property
    def target(self) -> Tensor:
        """Σ."""
        return self.left @ torch.diag(MODES) @ self.right.mT


@final
class Observed(NamedTuple):
    """Strengths of the modes and what should vanish."""

    times: Tensor
    flow: Tensor  # [t, d], diagonal of Uᵀ W₂ W₁ V
    descent: Tensor  # [t, d] by gradient descent, at the same times
    coupling: float
    path: Tensor  # [t, 2, d, d]
    unaligned: Tensor  # [t, 2, d, d]
    deep: dict[int, Tensor]  # [t] of a single mode, by depth
    spectra: Tensor  # [m, d²] of the output NTK
    seen: Tensor  # the times of the spectra, as numbers of kept states


@final
class Predicted(NamedTuple):
    """Closed forms."""

    strengths: Tensor
    deep: dict[int, Tensor]
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
        left, right, turn, other = (
            torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q for _ in range(4)
        )
        small = math.sqrt(START)
        weights = torch.stack([small * turn @ right.mT, small * left @ turn.mT])
        spread = torch.diag(torch.tensor([0.3, 0.2, 0.1, 0.05], dtype=torch.float64))
        unaligned = torch.stack([other @ spread @ turn.mT, right @ spread @ other.mT])
        return System(
            left,
            right,
            weights,
            unaligned,
            0.9 if broken else 1.0,
            (3,) if short else (3, 4, 6),
            2e-3 if short else 5e-4,
        )

    def run(self, system: System) -> Observed:
        def velocity(weights: Tensor) -> Tensor:
            first, second = weights
            miss = system.target - second @ first
            return torch.stack([second.mT @ miss, system.rate * miss @ first.mT])

        path = rk4(velocity, system.weights, STEP, round(TIME / STEP), every=10)
        weights, kept = system.weights, [system.weights]
        each = round(10 * STEP / system.descent)
        for step in range(1, round(TIME / system.descent) + 1):
            weights = weights + system.descent * velocity(weights)
            if step % each == 0:
                kept.append(weights)
        maps = system.left.mT @ path[:, 1] @ path[:, 0] @ system.right
        plain = torch.stack(kept)
        off = maps - torch.diag_embed(maps.diagonal(dim1=1, dim2=2))
        seen = torch.tensor([0, 15, 30, 50, 80])
        return Observed(
            torch.arange(len(path)) * 10 * STEP,
            maps.diagonal(dim1=1, dim2=2),
            (system.left.mT @ plain[:, 1] @ plain[:, 0] @ system.right).diagonal(dim1=1, dim2=2),
            float(off.abs().max()),
            path,
            rk4(velocity, system.unaligned, STEP, 200, every=20),
            {depth: _deep(depth, system.rate) for depth in system.depths},
            torch.stack([_spectrum(path[k]) for k in seen.tolist()]),
            seen,
        )

    def predict(self, system: System) -> Predicted:
        times = torch.arange(round(TIME / STEP) // 10 + 1, dtype=torch.float64)[:, None] * 10 * STEP
        growth = torch.exp(2 * MODES * times)
        strengths = MODES * growth / (growth - 1 + MODES / START)
        deep = {depth: _reduced(depth) for depth in system.depths}
        return Predicted(strengths, deep, _riccati(system))

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        rise = [
            float(observed.times[int((mode > s / 2).nonzero()[0])])
            for mode, s in zip(observed.flow.mT, MODES, strict=True)
        ]
        half = torch.log((MODES - START) / START) / (2 * MODES)
        stacked = torch.cat([observed.unaligned[:, 0].mT, observed.unaligned[:, 1]], dim=1)
        charge = observed.path[:, 0] @ observed.path[:, 0].mT - observed.path[:, 1].mT @ observed.path[:, 1]
        sums = (
            predicted.strengths[observed.seen][:, :, None] + predicted.strengths[observed.seen][:, None, :]
        ).flatten(1)
        return [
            formula.close("strengths of the modes under gradient flow", predicted.strengths, observed.flow, 1e-7),
            formula.close(
                f"the same by gradient descent, step {system.descent:g}",
                predicted.strengths,
                observed.descent,
                10 * system.descent,
            ),
            identity.close("modes do not couple", 0.0, observed.coupling, 1e-12),
            formula.close("times of half the rise", half, rise, 10 * STEP),
            *(
                formula.close(f"strength of a mode in {depth} layers", predicted.deep[depth], path, 1e-6)
                for depth, path in observed.deep.items()
            ),
            formula.close("QQᵀ from any balanced start", predicted.product, stacked @ stacked.mT, 1e-7),
            identity.close("W₁W₁ᵀ − W₂ᵀW₂ is conserved", 0.0, charge - charge[:1], 1e-8),
            formula.close("time to learn in 10⁴ layers", _time_of_infinite_depth(), _time_of_depth(10_000), 2e-3),
            formula.close("spectrum of the NTK is {aᵢ + aⱼ}", sums.sort(dim=1).values, observed.spectra, 2e-7),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        some = slice(None, None, 4)
        modes = [
            line
            for i, s in enumerate(MODES.tolist())
            for line in (
                curve(f"s = {s:g}", observed.times, predicted.strengths[:, i], group=i),
                points("", observed.times[some], observed.descent[some, i], group=i),
            )
        ]
        pairs = predicted.strengths[:, :, None] + predicted.strengths[:, None, :]
        kernels = [points("", observed.times[observed.seen], observed.spectra[:, j], group=j) for j in range(16)]
        ordered = pairs.flatten(1).sort(dim=1).values
        curves = [curve("", observed.times, ordered[:, j], group=j) for j in range(16)]
        return (
            Panel.of("Strength of each mode", "time", "a", *modes),
            Panel.of("Spectrum of the NTK: aᵢ + aⱼ", "time", "eigenvalue", *curves, *kernels, log="y"),
        )


def _spectrum(weights: Tensor) -> Tensor:
    """Of the output NTK at whitened inputs."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)).double()
    model.load_state_dict({"0.weight": weights[0], "1.weight": weights[1]})
    lin = linearise(model, torch.eye(4, dtype=torch.float64))
    return torch.linalg.eigvalsh(to_dense(Ntk(lin, readout="outputs")))


def _deep(depth: int, rate: float) -> Tensor:
    """The strength of a mode with s = 2 in `depth` scalar layers, all started at a₀^(1/depth) with a₀ = 0.1."""

    def velocity(layers: Tensor) -> Tensor:
        total = layers.prod()
        return rate * (2.0 - total) * total / layers

    start = torch.full((depth,), 0.1 ** (1 / depth), dtype=torch.float64)
    return rk4(velocity, start, STEP / 4, 800, every=40).prod(dim=1)


def _reduced(depth: int) -> Tensor:
    """ȧ = L a^(2 − 2/L) (s − a)."""
    start = torch.tensor(0.1, dtype=torch.float64)
    return rk4(lambda a: depth * a ** (2 - 2 / depth) * (2.0 - a), start, STEP / 4, 800, every=40)


def _time_of_depth(depth: int) -> float:
    """L times the time in which a mode with s = 2 grows from 0.1 to 1.9 in L layers, by quadrature."""
    nodes = torch.linspace(math.log(0.1), math.log(1.9), 20_001, dtype=torch.float64).exp()
    return float(torch.trapezoid(nodes ** (2 / depth - 2) / (2.0 - nodes), nodes))


def _time_of_infinite_depth() -> float:
    """s⁻² ln[a_f (s − a₀) / (a₀ (s − a_f))] + 1/(s a₀) − 1/(s a_f)."""
    return math.log(1.9 * 1.9 / (0.1 * 0.1)) / 4 + 1 / 0.2 - 1 / 3.8


def _riccati(system: System) -> Tensor:
    """Q Qᵀ = e^{Ft} Q₀ [I + ½ Q₀ᵀ (e^{Ft} F⁻¹ e^{Ft} − F⁻¹) Q₀]⁻¹ Q₀ᵀ e^{Ft}, Q = [W₁ᵀ; W₂], F = [[0, Σᵀ], [Σ, 0]]."""
    zero = torch.zeros_like(system.target)
    force = torch.cat([torch.cat([zero, system.target.mT], dim=1), torch.cat([system.target, zero], dim=1)])
    start = torch.cat([system.unaligned[0].mT, system.unaligned[1]])
    inverse, identity = torch.linalg.inv(force), torch.eye(4, dtype=torch.float64)
    result = []
    for k in range(11):
        growth = torch.linalg.matrix_exp(force * (20 * STEP * k))
        inner = identity + 0.5 * start.mT @ (growth @ inverse @ growth - inverse) @ start
        moved = growth @ start
        result.append(moved @ torch.linalg.solve(inner, moved.mT))
    return torch.stack(result)
