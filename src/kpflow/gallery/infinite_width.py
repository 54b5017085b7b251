"""Wide recurrent networks at initialisation: Gaussian outputs and a deterministic NTK."""

import math
from collections.abc import Mapping
from typing import NamedTuple, final

import torch
from torch import Tensor

from kpflow.estimate import spectrum
from kpflow.flow import InfiniteRecurrent, Ntk, infinite_recurrent
from kpflow.operators import Dense, to_dense
from kpflow.spaces import Space
from kpflow.states import Linearisation, linearise

from .draws import normal
from .entry import Check, Entry, Panel, curve, identity, monte_carlo, pair, points
from .exponents import exponent

__all__ = ["InfiniteWidth"]

RECURRENT, DRIVE, BIAS, STEPS, SIZE, TRIALS = 1.5, 1.0, 0.1, 4, 3, 3
WIDTHS, UNITS = (32, 64, 128, 256), (16, 64)


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
    firsts: Tensor  # [widths, B, B], NTK of the output of a network of each width
    package: Tensor  # [widths, B, B], the same by `Ntk`
    spectra: list[Tensor]  # of the NTK of states of a network of 16 and of 64 units


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
        gain, one = system.scale * RECURRENT, system.inputs[:1]
        wanted = self.predict(system).output_ntk[:, -1, :, -1]
        drawn = {n: _draw(system.networks, n, generator) for n in WIDTHS}
        ntks, ends = zip(*(_networks(system.inputs, weights, gain) for weights in drawn.values()), strict=True)
        sizes = [torch.linalg.matrix_norm(ntk - wanted).square().mean().sqrt() / wanted.norm() for ntk in ntks]
        narrow = [_networks(one, _draw(system.narrow, n, generator), gain)[1][:, 0, 0] for n in (2, 8)]
        states = [
            [Ntk(_linearised(one, _draw(1, n, generator), gain)) for _ in range(system.networks // 2)] for n in UNITS
        ]
        last, blocks = (torch.stack([_blocks(ntk, n) for ntk in some]) for n, some in zip(UNITS, states, strict=True))
        return Observed(
            torch.stack(sizes),
            ntks[-1].mean(dim=0),
            torch.cat(ends[2:]).mean(dim=0),
            torch.stack([3 * q.var() / q.mean().square() for q in narrow]),  # y is Gaussian, given the units
            blocks.diagonal(dim1=2, dim2=3).mean(dim=(0, 2)),
            torch.stack([_off_diagonal(last[:, -1]), _off_diagonal(blocks[:, -1])]),
            torch.stack([ntk[0] for ntk in ntks]),
            torch.stack([_output_ntk(system.inputs, weights, gain) for weights in drawn.values()]),
            [spectrum(some[0]) for some in states],
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
            identity.close("NTK of outputs by hand and by `Ntk`", observed.package, observed.firsts, 1e-12),
            monte_carlo.close("exponent of the deviation over the width", -0.5, slope, 0.12 if long else 0.2),
            monte_carlo.close("mean NTK of 256 units, relative", 0.0, bias, 0.04),
            monte_carlo.close("covariance of outputs, relative", 0.0, off, 0.04),
            monte_carlo.close("exponent of the excess kurtosis", -1.0, fall, 0.15),
            monte_carlo.close("diagonal of the NTK of states", theta, observed.diagonal, 0.06, relative=True),
            monte_carlo.close("exponent of its off-diagonal", -0.5, collapse, 0.1 if long else 0.2),
        ]

    def panels(self, system: System, observed: Observed, predicted: InfiniteRecurrent) -> tuple[Panel, Panel]:
        line = observed.deviations[0] * (WIDTHS[0] / torch.tensor(WIDTHS)).sqrt()
        theta = torch.linalg.eigvalsh(predicted.ntk[0, :, 0]).flip(0)
        steps = curve("Θ(t, u) ⊗ I", torch.arange(STEPS + 1).repeat_interleave(2)[1:-1], theta.repeat_interleave(2))
        seen = (
            points(f"{n} units", (torch.arange(len(values)) + 0.5) / n, values, group=1 + k)
            for k, (n, values) in enumerate(zip(UNITS, observed.spectra, strict=True))
        )
        return (
            Panel.of(
                "Deviation of the outputs' NTK from the limit",
                "width",
                "relative",
                *pair("n^(−1/2)", WIDTHS, line, observed.deviations),
                log="xy",
            ),
            Panel.of("Spectrum of the NTK of states", "number / units", "eigenvalue", steps, *seen, log="y"),
        )


def _draw(count: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Standard normal weights of several networks."""
    shapes = {"W": (width, width), "U": (SIZE, width), "b": (1, width), "v": (1, width)}
    return {name: normal(generator, count, *shape) for name, shape in shapes.items()}


def _networks(inputs: Tensor, weights: Mapping[str, Tensor], gain: float) -> tuple[Tensor, Tensor]:
    """NTK of the output at the last time, and its covariance given the units, `[networks, B, B]`, of many at once.

    Θ = Σ_{t,u} (a_t·a_u)(w/n s_{t−1}·s_{u−1} + u/m x_t·x_u + β) + s_T·s_T/n with the adjoints a.
    """
    trials, steps, _ = inputs.shape
    count, width, _ = weights["W"].shape
    W = math.sqrt(gain / width) * weights["W"]
    drive = torch.einsum("bti,kin->ktbn", math.sqrt(DRIVE / SIZE) * inputs, weights["U"])
    drive = drive + math.sqrt(BIAS) * weights["b"][:, None]
    seen, slopes = [torch.zeros(count, trials, width, dtype=torch.float64)], []
    for t in range(steps):
        h = drive[:, t] + seen[-1] @ W
        seen.append(torch.erf(h))
        slopes.append(2 / math.sqrt(math.pi) * torch.exp(-h.square()))
    adjoint = [slopes[-1] * weights["v"] / math.sqrt(width)]
    for t in reversed(range(steps - 1)):
        adjoint.insert(0, slopes[t] * (adjoint[0] @ W.mT))
    a, s = torch.stack(adjoint, dim=2).flatten(1, 2), torch.stack(seen[:-1], dim=2).flatten(1, 2)  # [k, B·T, n]
    x = inputs.flatten(0, 1)
    local = gain / width * s @ s.mT + DRIVE / SIZE * x @ x.mT + BIAS
    sums = ((a @ a.mT) * local).unflatten(1, (trials, steps)).unflatten(3, (trials, steps)).sum(dim=(2, 4))
    last = seen[-1] @ seen[-1].mT / width
    return sums + last, last


def _linearised(inputs: Tensor, weights: Mapping[str, Tensor], gain: float) -> Linearisation:
    """The first network, by the package."""

    def step(h: Tensor, x: Tensor, p: dict[str, Tensor]) -> Tensor:
        recurrent = math.sqrt(gain / h.shape[-1]) * torch.erf(h) @ p["W"]
        return recurrent + math.sqrt(DRIVE / SIZE) * x @ p["U"] + math.sqrt(BIAS) * p["b"]

    learned = {name: weights[name][0].clone().requires_grad_() for name in ("W", "U", "b")}
    start = torch.zeros(len(inputs), weights["W"].shape[-1], dtype=torch.float64)
    return linearise(step, inputs, initial=start, parameters=learned)


def _output_ntk(inputs: Tensor, weights: Mapping[str, Tensor], gain: float) -> Tensor:
    """Of v·erf(h_T)/√n of the first network, as R P K Pᵀ Rᵀ and what v adds, by the package, `[B, B]`."""
    lin = _linearised(inputs, weights, gain)
    (trials, steps, width), last = lin.states.shape, lin.states[:, -1]
    slopes = 2 / math.sqrt(math.pi) * torch.exp(-last.square()) * weights["v"][0] / math.sqrt(width)
    reader = torch.zeros(trials, trials, steps, width, dtype=torch.float64)
    reader[range(trials), range(trials), -1] = slopes
    R = Dense(reader.flatten(1), (lin.space, Space.of((trials,), ("trial",), torch.float64)))
    return to_dense(Ntk(lin, readout=R)) + torch.erf(last) @ torch.erf(last).mT / width


def _blocks(ntk: Ntk, width: int) -> Tensor:
    """The diagonal time blocks of the NTK of the states of one trial, `[T, n, n]`."""
    return to_dense(ntk).view(STEPS, width, STEPS, width).diagonal(dim1=0, dim2=2).movedim(2, 0)


def _off_diagonal(blocks: Tensor) -> Tensor:
    """Root mean square, of `[networks, n, n]`."""
    own = torch.diag_embed(blocks.diagonal(dim1=1, dim2=2))
    count, size = len(blocks), blocks.shape[1]
    return ((blocks - own).square().sum() / (count * size * (size - 1))).sqrt()
