"""Wide recurrent networks at initialisation: Gaussian outputs and a deterministic NTK."""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from kpflow.flow import InfiniteRecurrent, Ntk, infinite_recurrent
from kpflow.operators import to_dense
from kpflow.states import linearise

from .draws import normal
from .entry import Check, Entry, Panel, curve, monte_carlo, pair, points
from .exponents import exponent

__all__ = ["InfiniteWidth"]

RECURRENT, DRIVE, BIAS, STEPS, SIZE, TRIALS = 1.5, 1.0, 0.1, 4, 3, 3
WIDTHS = (32, 64, 128, 256)


@final
class System(NamedTuple):
    """Inputs, and how many networks are drawn."""

    inputs: Tensor  # [B, T, m]
    networks: int
    narrow: int  # of networks of 2 and of 8 units
    seed: int
    scale: float  # of the recurrent variance in what is run


@final
class Observed(NamedTuple):
    """Random networks of several widths."""

    deviations: Tensor  # [widths], root mean square over networks, relative
    ntk: Tensor  # [B, B], of the output at the end, mean over the widest
    covariance: Tensor  # [B, B], of the output at the end
    kurtosis: Tensor  # [2], in excess, of 2 and 8 units
    diagonal: Tensor  # [T], tr/n of the time blocks of the NTK of states
    off: Tensor  # [2], root mean square off the diagonal at the last time, 16 and 64 units


@final
class InfiniteWidth(Entry[System, Observed, InfiniteRecurrent]):
    """Networks h_t = √(w/n) W erf(h) + √(u/m) U x_t + √β b approach C^{tu} = w E φφ + u x·x/m + β, Θ = C + w E φ′φ′ Θ.

    The output's NTK deviates by the order of n^(−1/2), its excess kurtosis falls as 1/n, and the NTK of the states
    collapses to Θ(t, u) ⊗ I.
    """

    name = "infinite_width"
    title = "Tensor programs: recurrent networks of infinite width"
    paper = "Yang 2019, arXiv 1902.04760; Yang 2020, arXiv 2006.14548"
    kernels = (
        "The limit of P K Pᵀ is known time block by time block, Θ(t, u) ⊗ I, which is a reference for what is computed "
        "at finite width."
    )
    omits = "Other architectures, other parametrisations than the NTK's, and training."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator = torch.Generator().manual_seed(seed)
        inputs = normal(generator, TRIALS, STEPS, SIZE)
        return System(inputs, 40 if short else 160, 40_000 if short else 100_000, seed, 1.3 if broken else 1.0)

    def run(self, system: System) -> Observed:
        generator = torch.Generator().manual_seed(system.seed + 1)
        weight = system.scale * RECURRENT
        wanted = self.predict(system).output_ntk[:, -1, :, -1]
        found = {n: _networks(system.inputs, n, system.networks, weight, generator) for n in WIDTHS}
        sizes = [
            torch.linalg.matrix_norm(ntk - wanted).square().mean().sqrt() / wanted.norm() for ntk, _ in found.values()
        ]
        ends = [_networks(system.inputs[:1], n, system.narrow, weight, generator)[1][:, 0, 0] for n in (2, 8)]
        kurtosis = [3 * q.var() / q.mean().square() for q in ends]  # y is Gaussian, given the units
        small, large = (
            torch.stack([_states(system.inputs[:1], n, weight, generator) for _ in range(system.networks // 2)])
            for n in (16, 64)
        )
        return Observed(
            torch.stack(sizes),
            found[WIDTHS[-1]][0].mean(dim=0),
            torch.cat([q for _, q in list(found.values())[2:]]).mean(dim=0),
            torch.stack(kurtosis),
            large.diagonal(dim1=2, dim2=3).mean(dim=(0, 2)),
            torch.stack([_off_diagonal(small[:, -1]), _off_diagonal(large[:, -1])]),
        )

    def predict(self, system: System) -> InfiniteRecurrent:
        return infinite_recurrent(system.inputs, recurrent=RECURRENT, drive=DRIVE, bias=BIAS)

    def check(self, system: System, observed: Observed, predicted: InfiniteRecurrent) -> list[Check]:
        ntk, covariance = predicted.output_ntk[:, -1, :, -1], predicted.output_covariance[:, -1, :, -1]
        theta = predicted.ntk[0, :, 0].diagonal()
        slope, fall = exponent(WIDTHS, observed.deviations), exponent([2, 8], observed.kurtosis)
        bias = (observed.ntk - ntk).norm() / ntk.norm()
        off = (observed.covariance - covariance).norm() / covariance.norm()
        collapse, long = exponent([16, 64], observed.off), system.networks >= 100
        return [
            monte_carlo.close("exponent of the deviation over the width", -0.5, slope, 0.12 if long else 0.2),
            monte_carlo.close("mean NTK of 256 units, relative", 0.0, bias, 0.04),
            monte_carlo.close("covariance of outputs, relative", 0.0, off, 0.04),
            monte_carlo.close("exponent of the excess kurtosis", -1.0, fall, 0.15),
            monte_carlo.close("diagonal of the NTK of states", theta, observed.diagonal, 0.06, relative=True),
            monte_carlo.close("exponent of its off-diagonal", -0.5, collapse, 0.1 if long else 0.2),
        ]

    def panels(self, system: System, observed: Observed, predicted: InfiniteRecurrent) -> tuple[Panel, Panel]:
        times, line = range(1, STEPS + 1), observed.deviations[0] * (WIDTHS[0] / torch.tensor(WIDTHS)).sqrt()
        blocks = (
            curve("Θ(t, t)", times, predicted.ntk[0, :, 0].diagonal()),
            points("tr NTK/n, 64 units", times, observed.diagonal),
            curve("C(t, t)", times, predicted.covariance[0, :, 0].diagonal(), group=1),
        )
        deviations = pair("n^(−1/2)", WIDTHS, line, observed.deviations)
        return (
            Panel.of("Time blocks of the NTK of states", "t", "", *blocks),
            Panel.of("Deviation from the limit", "width", "relative", *deviations, log="xy"),
        )


def _networks(
    inputs: Tensor, width: int, count: int, weight: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """NTK of the output at the last time, and its covariance given the units, `[networks, B, B]`.

    Θ = Σ_{t,u} (a_t·a_u)(w/n s_{t−1}·s_{u−1} + u/m x_t·x_u + β) + s_T·s_T/n with the adjoints a.
    """
    trials, steps, size = inputs.shape

    def draw(*shape: int) -> Tensor:
        return normal(generator, count, *shape)

    W, U, b, v = math.sqrt(weight / width) * draw(width, width), draw(size, width), draw(1, width), draw(1, width)
    drive = torch.einsum("bti,kin->ktbn", math.sqrt(DRIVE / size) * inputs, U) + math.sqrt(BIAS) * b[:, None]
    seen, slopes = [torch.zeros(count, trials, width, dtype=torch.float64)], []
    for t in range(steps):
        h = drive[:, t] + seen[-1] @ W
        seen.append(torch.erf(h))
        slopes.append(2 / math.sqrt(math.pi) * torch.exp(-h.square()))
    adjoint = [slopes[-1] * v / math.sqrt(width)]
    for t in reversed(range(steps - 1)):
        adjoint.insert(0, slopes[t] * (adjoint[0] @ W.mT))
    a, s = torch.stack(adjoint, dim=2).flatten(1, 2), torch.stack(seen[:-1], dim=2).flatten(1, 2)  # [k, B·T, n]
    x = inputs.flatten(0, 1)
    local = weight / width * s @ s.mT + DRIVE / size * x @ x.mT + BIAS
    sums = ((a @ a.mT) * local).unflatten(1, (trials, steps)).unflatten(3, (trials, steps)).sum(dim=(2, 4))
    last = seen[-1] @ seen[-1].mT / width
    return sums + last, last


def _states(inputs: Tensor, width: int, weight: float, generator: torch.Generator) -> Tensor:
    """The diagonal time blocks of the NTK of h of one network and trial, by the package, `[T, n, n]`."""
    names = {"W": (width, width), "U": (inputs.shape[2], width), "b": (width,)}
    drawn = {name: normal(generator, *shape).requires_grad_() for name, shape in names.items()}

    def step(h: Tensor, x: Tensor, p: dict[str, Tensor]) -> Tensor:
        recurrent = math.sqrt(weight / width) * torch.erf(h) @ p["W"]
        return recurrent + math.sqrt(DRIVE / x.shape[-1]) * x @ p["U"] + math.sqrt(BIAS) * p["b"]

    start = torch.zeros(len(inputs), width, dtype=torch.float64)
    ntk = to_dense(Ntk(linearise(step, inputs, initial=start, parameters=drawn)))
    return torch.stack([ntk[t * width : (t + 1) * width, t * width : (t + 1) * width] for t in range(inputs.shape[1])])


def _off_diagonal(blocks: Tensor) -> Tensor:
    """Root mean square, of `[networks, n, n]`."""
    own = torch.diag_embed(blocks.diagonal(dim1=1, dim2=2))
    count, size = len(blocks), blocks.shape[1]
    return ((blocks - own).square().sum() / (count * size * (size - 1))).sqrt()
