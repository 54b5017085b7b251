"""Networks of small initialisation, which learn from saddle to saddle."""

import math
from typing import NamedTuple, final

import numpy as np
import torch
from numpy import ndarray

from kpflow.estimate import spectrum
from kpflow.flow import Ntk

from .entry import Check, Entry, Panel, curve, formula, identity, pair, points
from .students import linear_map, linearise_map

__all__ = ["Saddles"]

MODES = np.array([4.0, 2.0, 1.0, 0.5])
SCALES = (1e-4, 1e-5, 1e-6, 1e-7)
RATE, EVERY = 0.02, 60
KNOTS = np.stack([np.linspace(-2.0, 2.0, 41), np.ones(41)])  # inputs (x, 1)
HEIGHTS = 0.9 * (KNOTS[0] + 1).clip(0) - 1.8 * (KNOTS[0] - 0.2).clip(0) + 1.9 * (KNOTS[0] - 1.2).clip(0)
COVARIANCE = np.array([2.0, 1.3, 0.8])
SECOND = (1 + 1 / 31) * COVARIANCE**2 + COVARIANCE.sum() * COVARIANCE / 31  # M, from sequences of 31


@final
class System(NamedTuple):
    """Directions of the initial weights; `rate` of the linear net's second layer is 1."""

    linear: ndarray  # [2, 4, 4]
    inward: ndarray  # [24, 2], of the ReLU net
    outward: ndarray  # [24]
    heads: ndarray  # [3, 7]: v, k, q of every head
    rate: float


@final
class Observed(NamedTuple):
    """Of the linear net the whole path, of all what was found where the gradient is least at each rank or width."""

    losses: ndarray
    rests: list[int]
    kernels: list[int]  # rank of the NTK at the rests
    course: list[int]  # and every 60 steps
    delays: ndarray  # [4], d time / d ln(1/scale) of every mode
    relu: list[float]
    neurons: list[int]
    attention: ndarray


@final
class Predicted(NamedTuple):
    """Closed forms, and for ReLU the loss that a net of so many neurons converges to."""

    plateaus: ndarray
    kernels: list[int]
    delays: ndarray
    relu: list[float]
    attention: ndarray


@final
class Saddles(Entry[System, Observed, Predicted]):
    """From small weights, a net of rank, width or heads k is nearly optimal before one of k + 1 is begun.

    Linear: the loss rests at ½ Σ_{i>k} sᵢ², and mode i comes ln(1/ε)/ln(1 + η sᵢ) steps after the start. ReLU: at what
    a net of k neurons converges to. Linear attention with k rank-one heads on sequences of N:
    tr Λ − Σ_{d≤k} λ_d [1 + (1 + tr Λ/λ_d)/N]⁻¹.
    """

    name = "saddles"
    title = "From saddle to saddle"
    paper = "Zhang, Saxe, Latham 2025, arXiv 2512.20607"
    kernels = (
        "At the k-th saddle of a linear d × d net the NTK has rank d² − (d − k)²: a saddle is a drop of the rank of K, "
        "and every escape adds 2(d − k) − 1 directions."
    )
    omits = "Convolutions, softmax attention, and the proof of which saddle comes next."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        del short
        draw = np.random.default_rng(seed)
        inward, heads = draw.standard_normal((24, 2)), draw.standard_normal((3, 7))
        heads[:, 0] = np.linalg.norm(heads[:, 1:4], axis=1) * np.sign(heads[:, 0])
        linear, outward = draw.standard_normal((2, 4, 4)), np.linalg.norm(inward, axis=1) * draw.choice([-1.0, 1.0], 24)
        return System(linear, inward, outward, heads, 0.5 if broken else 1.0)

    def run(self, system: System) -> Observed:
        paths = {scale: _linear(scale * system.linear, system.rate) for scale in SCALES}
        delays = [(path.diagonal(axis1=1, axis2=2) > MODES / 2).argmax(axis=0) for path, _, _ in paths.values()]
        path, slopes, weights = paths[1e-5]
        ranks = (np.linalg.svd(path, compute_uv=False) > 0.1 * MODES).sum(1)
        rests, moments = [_rest(slopes, ranks == k) for k in range(5)], range(0, len(path), EVERY)
        relu, neurons = _relu(system)
        return Observed(
            0.5 * ((np.diag(MODES) - path) ** 2).sum((1, 2)),
            rests,
            [_kernel_rank(weights[k]) for k in rests],
            [_kernel_rank(weights[k]) for k in moments],
            np.polyfit(-np.log(SCALES), RATE * np.array(delays), 1)[0],
            relu,
            neurons,
            _attention(2e-3 * system.heads),
        )

    def predict(self, system: System) -> Predicted:
        # one neuron that sees all inputs, one that sees those below 0; others die, or come to the same
        nets = [(0.01 * np.array([[0.0, 1.0], [-1.0, 0.0]])[:k], np.array([0.01, -0.01])[:k]) for k in (0, 1, 2)]
        gains = COVARIANCE / (1 + (1 + COVARIANCE.sum() / COVARIANCE) / 31)
        return Predicted(
            np.array([0.5 * (MODES[k:] ** 2).sum() for k in range(5)]),
            [16 - (4 - k) ** 2 for k in range(5)],
            RATE / np.log1p(RATE * MODES),
            [float(_train(*net, 8000)[0][-1]) for net in nets],
            COVARIANCE.sum() - np.cumsum([0.0, *gains]),
        )

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        rested, back = observed.losses[observed.rests], float((np.diff(observed.rests) <= 0).sum())
        return [
            formula.close("linear: loss where the gradient is least at each rank", predicted.plateaus, rested, 4e-3),
            identity.close("linear: the gradient is least at one rank after the other", 0.0, back, 0.0),
            formula.close("linear: delays by ln(1/scale)", predicted.delays, observed.delays, 2e-2, relative=True),
            identity.close("linear: rank of the NTK at each saddle", predicted.kernels, observed.kernels, 0.0),
            formula.close("ReLU: loss with 0 to 2 neurons, of so narrow a net", predicted.relu, observed.relu, 2e-3),
            identity.close("ReLU: distinct neurons at its rests", [1.0, 2.0], observed.neurons, 0.0),
            formula.close("attention: loss with 0 to 3 heads", predicted.attention, observed.attention, 2e-3),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        times = RATE * np.arange(len(observed.losses))
        rests = [
            curve(f"rank {k}", [0.0, float(times[-1])], [plateau] * 2, group=k)
            for k, plateau in enumerate(predicted.plateaus[:4].tolist())
        ]
        seen = points("", times[::12], observed.losses[::12], group=4)
        ranks = [
            *pair("d² − (d − k)² at saddle k", times[observed.rests], predicted.kernels, observed.kernels),
            points("on the way", times[::EVERY], observed.course, 1),
        ]
        return (
            Panel.of("Loss of a linear net: it rests at each rank", "time", "loss", *rests, seen),
            Panel.of("Rank of the NTK", "time", "rank", *ranks),
        )


def _kernel_rank(weights: ndarray) -> int:
    """Number of eigenvalues of a linear net's NTK at white inputs that are not tiny."""
    first, second = torch.from_numpy(weights)
    lin = linearise_map(linear_map, torch.eye(4, dtype=torch.float64), {"W₁": first, "W₂": second})
    return int((spectrum(Ntk(lin)) > 0.05).sum())


def _rest(slopes: ndarray, here: ndarray) -> int:
    """Where the gradient is least among the places; 0 if there are none."""
    return int(np.where(here, slopes, np.inf).argmin())


def _linear(weights: ndarray, rate: float) -> tuple[ndarray, ndarray, ndarray]:
    """Products, lengths of the gradient, and weights at every step."""
    (first, second), target = weights, np.diag(MODES)
    kept, slopes = [], []
    for _ in range(2200):
        miss = target - second @ first
        one, two = second.T @ miss, miss @ first.T
        kept.append(np.stack([first, second]))
        slopes.append(math.sqrt((one**2).sum() + (two**2).sum()))
        first, second = first + RATE * one, second + rate * RATE * two
    path = np.stack(kept)
    return path[:, 1] @ path[:, 0], np.array(slopes), path


def _relu(system: System) -> tuple[list[float], list[int]]:
    """Loss at rest with no, one and two distinct neurons, and how many distinct ones there are at the last two."""
    losses, slopes, path = _train(1e-5 * system.inward, 1e-5 * system.outward, 8000)
    counts = np.array([_distinct(inward, outward) for inward, outward in path[::20]])
    slopes, losses = slopes[::20], losses[::20]
    begun = int((losses < 0.9 * losses[0]).argmax())
    one, two = _rest(slopes, (counts == 1) & (np.arange(len(counts)) > begun)), len(counts) - 1
    return [float(losses[k]) for k in (0, one, two)], [int(counts[k]) for k in (one, two)]


def _train(inward: ndarray, outward: ndarray, steps: int) -> tuple[ndarray, ndarray, list[tuple[ndarray, ndarray]]]:
    """Losses, lengths of the gradient, and weights at every step."""
    losses, slopes, path = np.empty(steps), np.empty(steps), []
    for step in range(steps):
        seen = inward @ KNOTS
        active = seen.clip(0)
        miss = (outward @ active - HEIGHTS) / len(HEIGHTS)
        one, two = ((seen > 0) * miss * outward[:, None]) @ KNOTS.T, active @ miss
        losses[step] = 0.5 * len(HEIGHTS) * miss @ miss
        slopes[step] = math.sqrt((one**2).sum() + two @ two)
        path.append((inward, outward))
        inward, outward = inward - 0.05 * one, outward - 0.05 * two
    return losses, slopes, path


def _distinct(inward: ndarray, outward: ndarray) -> int:
    """Number of directions among the neurons that count, those nearer than 0.3 being one."""
    sizes = np.abs(outward) * np.linalg.norm(inward, axis=1)
    angles = np.sort(np.arctan2(inward[:, 1], inward[:, 0])[sizes > 0.01 * sizes.max()])
    gaps = np.diff(np.append(angles, angles[0] + 2 * math.pi))
    return max(1, int((gaps > 0.3).sum()))


def _attention(heads: ndarray) -> ndarray:
    """Loss tr Λ − 2 tr Λ²U + tr UᵀMUΛ, U = Σ v k qᵀ, where the gradient is least with 0 to 3 heads grown."""
    value, key, query = heads[:, 0], heads[:, 1:4], heads[:, 4:]
    losses, slopes, maps = [], [], []
    for _ in range(100_000):
        U = (value[:, None] * key).T @ query
        bent = SECOND[:, None] * U * COVARIANCE
        force = 2 * (bent - np.diag(COVARIANCE**2))
        pulled = query @ force.T
        steps = (key * pulled).sum(1), value[:, None] * pulled, value[:, None] * (key @ force)
        losses.append(COVARIANCE.sum() - 2 * COVARIANCE**2 @ U.diagonal() + (U * bent).sum())
        slopes.append(math.sqrt(sum(float((step**2).sum()) for step in steps)))
        maps.append(U)
        if len(losses) % 500 == 0 and slopes[-1] < 1e-6 and np.linalg.svd(U, compute_uv=False)[2] > 0.1:
            break
        value, key, query = value - 0.05 * steps[0], key - 0.05 * steps[1], query - 0.05 * steps[2]
    grown = (np.linalg.svd(np.stack(maps[::10]), compute_uv=False) > 0.1).sum(1)
    return np.array([losses[::10][_rest(np.array(slopes[::10]), grown == k)] for k in range(4)])
