"""A ReLU layer whose biases learn to cut data off, at rates that are known between events that are known."""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from kpflow.estimate import spectrum
from kpflow.flow import Ntk
from kpflow.flow.truncation import (
    NetworkPath,
    aligned_map,
    bias_flow,
    cumulative_parameters,
    effective_flow,
    effective_gradient,
    network_flow,
    truncated_data,
    truncation_map,
)

from .draws import normal, orthogonal
from .entry import Check, Entry, Panel, curve, formula, identity, points
from .students import linearise_map

__all__ = ["Truncation"]

AFTER = 1.5  # time that is seen after the collapse
SEEN = [0, 8, 16, 30]  # numbers of the times at which the NTK is seen


@final
class System(NamedTuple):
    """One cluster and an aligned layer; two clusters and a layer for each; a deep network."""

    points: Tensor  # [N, Q]
    target: Tensor  # [Q], beyond the cluster in all coordinates of R
    rotation: Tensor  # [Q, Q]
    shift: Tensor  # [Q], β(0): two points are cut off in each coordinate
    times: Tensor  # [T]
    deep: tuple[list[Tensor], list[Tensor]]
    clusters: Tensor  # [2N, Q], two separated ones
    each: tuple[Tensor, Tensor, Tensor]  # targets, shifts and frames of a layer for each cluster
    rate: float  # of learning; 1


@final
class Observed(NamedTuple):
    """The flow of the biases by autograd, and maps."""

    path: NetworkPath
    spectra: Tensor  # [m, Q], the largest eigenvalues of the NTK of the truncated data by the bias, over N
    outputs: Tensor  # of the deep network
    images: tuple[Tensor, Tensor, Tensor]  # τ of the points, τ∘τ, and τ with other scales
    other: Tensor  # gradient of the first layer by the second cluster
    both: Tensor  # [T, 2, Q], shifts for two clusters


@final
class Predicted(NamedTuple):
    """Closed forms."""

    shifts: Tensor  # [T, Q]
    events: Tensor
    fractions: Tensor  # [T, Q], H_k = n_k / N, rising
    outputs: Tensor  # affine in the truncated data
    both: Tensor  # [T, 2, Q]


@final
class Truncation(Entry[System, Observed, Predicted]):
    """Biases of an aligned ReLU layer obey dβ̂_k/dt = −H_k (β̂_k + ŷ_k), H_k the fraction of points that k cuts off."""

    name = "truncation"
    title = "Truncation of data"
    paper = "Chen 2025, arXiv 2501.07400"
    kernels = (
        "Data that are cut off keep only the bias column of K, their input Gram being erased, so that the eigenvalues "
        "of the bias's kernel are exactly H_k."
    )
    omits = (
        "Weights that learn with the biases (Theorem 5.1): kpflow.flow.truncation integrates them, in no closed form."
    )

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator = torch.Generator().manual_seed(seed)
        count, width = (8, 3) if short else (12, 4)
        rotation, points = orthogonal(generator, width), normal(generator, count, width)
        order = (points @ rotation.mT).sort(dim=0).values
        goal, wall = order[-1] + 1.0, 0.5 * (order[1] + order[2])
        times = torch.linspace(
            0.0, float(_events(points @ rotation.mT, goal, wall)[-1]) + AFTER, 31, dtype=torch.float64
        )
        turns = [orthogonal(generator, width) for _ in range(4)]
        deep = (
            [turn + 0.05 * normal(generator, width, width) for turn in turns],
            [0.3 * normal(generator, width) for _ in turns],
        )
        clusters = torch.cat([0.2 * normal(generator, count, width).clamp(-3, 3) + at for at in (-3.0, 3.0)])
        signs, ones = torch.tensor([[-1.0], [1.0]], dtype=torch.float64), torch.ones(2, width, dtype=torch.float64)
        each = (1.5 * signs * ones, -3 * signs * ones, torch.diag_embed(-signs * ones))
        start = (points, goal @ rotation, rotation, -wall @ rotation)
        return System(*start, times, deep, clusters, each, 0.9 if broken else 1.0)

    def run(self, system: System) -> Observed:
        turn, zero = system.rotation, torch.zeros_like(system.target)
        layers = ([turn, turn.mT], [turn @ system.shift, zero])
        path = network_flow(layers, system.points, system.target, times=system.rate * system.times)
        image = aligned_map(system.points, system.shift, turn)
        scales = torch.arange(1.0, len(zero) + 1, dtype=torch.float64)
        scaled = truncation_map(system.points, scales[:, None] * turn, scales * (turn @ system.shift))
        clusters, (targets, shifts, frames) = system.clusters, system.each
        labels = torch.arange(2).repeat_interleave(len(clusters) // 2)
        both = effective_flow(clusters, targets, shifts, frames, clusters=labels, times=system.times, turning=False)
        outputs = system.points
        for k, (weight, bias) in enumerate(zip(*system.deep, strict=True)):
            outputs = (outputs.relu() if k else outputs) @ weight.mT + bias
        return Observed(
            path,
            torch.stack([_spectrum(system, path.shifts[k, 0]) for k in SEEN]),
            outputs,
            (image, aligned_map(image, system.shift, turn), scaled),
            effective_gradient(clusters[labels == 1], targets[1], shifts[0], frames[0]).shifts,
            both.shifts,
        )

    def predict(self, system: System) -> Predicted:
        turn, clusters, (targets, shifts, frames) = system.rotation, system.clusters, system.each
        flow = bias_flow(system.points, system.target, system.shift, turn)
        total, data = cumulative_parameters(system.deep), truncated_data(system.deep, system.points)
        labels = torch.arange(2).repeat_interleave(len(clusters) // 2)
        each = [bias_flow(clusters, targets, shifts[j], frames[j], clusters=labels).at(system.times) for j in (0, 1)]
        return Predicted(
            flow.at(system.times),
            _events(system.points @ turn.mT, turn @ system.target, -turn @ system.shift),
            flow.fractions(system.times).sort(dim=1).values,
            data.points[-1] @ total.weights[-1].mT + total.biases[-1],
            torch.stack(each, dim=1),
        )

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        path, (image, twice, scaled) = observed.path, observed.images
        events = torch.tensor(path.events, dtype=torch.float64) / system.rate
        found = torch.full_like(predicted.events, math.nan)
        found[: len(events)] = events[: len(found)]
        late = system.times > predicted.events[-1] + 0.1
        decay = path.costs[late][0] * torch.exp(-2 * (system.times[late] - system.times[late][0]))
        left = aligned_map(system.points, path.shifts[-1, 0], system.rotation)
        return [
            identity.close("output is affine in the truncated data", predicted.outputs, observed.outputs, 1e-12),
            identity.close("τ∘τ = τ", image, twice, 1e-13),
            identity.close("τ does not see W_*", image, scaled, 1e-13),
            formula.close("β under gradient flow", predicted.shifts, path.shifts[:, 0], 1e-6),
            formula.close("times at which points are cut off", predicted.events, found, 1e-6),
            identity.close("after the last one point is left", left[0], left, 1e-13),
            formula.close("cost after it falls as e^{−2t}", decay, path.costs[late], 1e-6, relative=True),
            identity.close("gradient by a cluster that is let through", 0.0, observed.other, 0.0),
            formula.close("β of a layer for each of two clusters", predicted.both, observed.both, 1e-6),
            identity.close(
                "eigenvalues of the bias's kernel are H_k", predicted.fractions[SEEN], observed.spectra, 1e-12
            ),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        goal, times = system.rotation @ system.target, system.times
        known, seen = (shifts @ system.rotation.mT + goal for shifts in (predicted.shifts, observed.path.shifts[:, 0]))
        walls, kernels = [], []
        for k in range(len(goal)):
            walls += [curve(f"k = {k + 1}", times, known[:, k], k), points("", times[SEEN], seen[SEEN, k], k)]
            kernels += [
                curve("", times, predicted.fractions[:, k], k),
                points("", times[SEEN], observed.spectra[:, k], k),
            ]
        return (
            Panel.of("Distance of the wall from the target", "time", "β̂ + ŷ", *walls, log="y"),
            Panel.of("Eigenvalues of the bias's kernel: H", "time", "eigenvalue / N", *kernels),
        )


def _spectrum(system: System, shift: Tensor) -> Tensor:
    """Of the NTK over N of τ(x) = Rᵀ (σ(R x + b) − b), of which b learns, but for zeros; rising."""
    turn, bias = system.rotation, {"b": system.rotation @ shift}
    lin = linearise_map(lambda x, p: (torch.relu(x @ turn.mT + p["b"]) - p["b"]) @ turn, system.points, bias)
    return spectrum(Ntk(lin))[: len(shift)].flip(0) / len(system.points)


def _events(points: Tensor, goals: Tensor, walls: Tensor) -> Tensor:
    """Times at which walls that rise towards their goals meet the points, of all coordinates.

    (N/k) ln((y − w)/(y − w′)) from one to the next with k points behind the wall w.
    """
    times = []
    for order, goal, wall in zip(points.sort(dim=0).values.mT.tolist(), goals.tolist(), walls.tolist(), strict=True):
        time, cut = 0.0, sum(point <= wall for point in order)
        for k in range(cut, len(order)):
            time += len(order) / k * math.log((goal - wall) / (goal - order[k]))
            wall = order[k]
            times.append(time)
    return torch.tensor(times, dtype=torch.float64).sort().values
