"""A ReLU layer whose biases learn to cut data off, at rates that are known between events that are known."""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

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
from kpflow.operators import to_dense
from kpflow.states import linearise

from .entry import Check, Entry, Panel, curve, formula, identity, points

__all__ = ["Truncation"]

AFTER = 1.5
"""Time that is seen after the collapse."""


@final
class System(NamedTuple):
    """One cluster and an aligned layer; two clusters and a layer for each; a deep network."""

    points: Tensor  # [N, Q]
    target: Tensor  # [Q], beyond the cluster in all coordinates of R
    rotation: Tensor  # [Q, Q]
    shift: Tensor  # [Q], β(0): two points are cut off in each coordinate
    times: Tensor  # [T]
    deep: tuple[list[Tensor], list[Tensor]]
    pair: tuple[Tensor, Tensor, Tensor, Tensor]  # points, targets, shifts and frames of two separated clusters
    rate: float  # of learning; 1


@final
class Observed(NamedTuple):
    """The flow of the biases by autograd, and maps."""

    path: NetworkPath
    spectra: Tensor  # [m, Q], the largest eigenvalues of the NTK of the truncated data by the bias, over N
    seen: Tensor  # numbers of the times of these
    outputs: Tensor  # of the deep network
    images: tuple[Tensor, Tensor, Tensor]  # τ of the points, τ∘τ, and τ with other scales
    other: Tensor  # gradient of the first layer by the second cluster
    pair: Tensor  # [T, 2, Q]


@final
class Predicted(NamedTuple):
    """Closed forms."""

    shifts: Tensor  # [T, Q]
    events: Tensor
    fractions: Tensor  # [T, Q], H_k = n_k / N
    outputs: Tensor  # affine in the truncated data
    pair: Tensor  # [T, 2, Q]


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

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        rotation = torch.linalg.qr(noise(width, width)).Q
        points, inner = noise(count, width), torch.zeros(width, dtype=torch.float64)
        order = (points @ rotation.mT).sort(dim=0).values
        goal, wall = order[-1] + 1.0, 0.5 * (order[1] + order[2])
        end = max(_crossings(order[:, k].tolist(), float(goal[k]), float(wall[k]))[-1] for k in range(width)) + AFTER
        turns = [torch.linalg.qr(noise(width, width)).Q for _ in range(4)]
        deep = ([turn + 0.05 * noise(width, width) for turn in turns], [0.3 * noise(width) for _ in turns])
        ones = torch.ones_like(inner)
        clusters = torch.cat(
            [0.2 * noise(count, width).clamp(-3, 3) - 3.0, 0.2 * noise(count, width).clamp(-3, 3) + 3.0]
        )
        frames = torch.stack([torch.diag(ones), -torch.diag(ones)])
        pair = (clusters, torch.stack([-1.5 * ones, 1.5 * ones]), torch.stack([3 * ones, -3 * ones]), frames)
        return System(
            points,
            goal @ rotation,
            rotation,
            -wall @ rotation,
            torch.linspace(0.0, end, 31, dtype=torch.float64),
            deep,
            pair,
            0.9 if broken else 1.0,
        )

    def run(self, system: System) -> Observed:
        turn, zero = system.rotation, torch.zeros_like(system.target)
        layers = ([turn, turn.mT], [turn @ system.shift, zero])
        path = network_flow(layers, system.points, system.target, times=system.rate * system.times)
        seen = torch.tensor([0, 8, 16, 30])
        image = aligned_map(system.points, system.shift, turn)
        scales = torch.arange(1.0, len(zero) + 1, dtype=torch.float64)
        scaled = truncation_map(system.points, scales[:, None] * turn, scales * (turn @ system.shift))
        clusters, targets, shifts, frames = system.pair
        half = len(clusters) // 2
        labels = (torch.arange(len(clusters)) >= half).long()
        both = effective_flow(clusters, targets, shifts, frames, clusters=labels, times=system.times, turning=False)
        return Observed(
            path,
            torch.stack([_spectrum(system, path.shifts[k, 0]) for k in seen.tolist()]),
            seen,
            _outputs(system),
            (image, aligned_map(image, system.shift, turn), scaled),
            effective_gradient(clusters[half:], targets[1], shifts[0], frames[0]).shifts,
            both.shifts,
        )

    def predict(self, system: System) -> Predicted:
        flow = bias_flow(system.points, system.target, system.shift, system.rotation)
        inner = system.points @ system.rotation.mT
        goal, wall = system.rotation @ system.target, -system.rotation @ system.shift
        events = [
            time
            for k in range(len(goal))
            for time in _crossings(inner[:, k].sort().values.tolist(), float(goal[k]), float(wall[k]))
        ]
        total, data = cumulative_parameters(system.deep), truncated_data(system.deep, system.points)
        clusters, targets, shifts, frames = system.pair
        labels = (torch.arange(len(clusters)) >= len(clusters) // 2).long()
        each = [bias_flow(clusters, targets, shifts[j], frames[j], clusters=labels).at(system.times) for j in (0, 1)]
        return Predicted(
            flow.at(system.times),
            torch.tensor(sorted(events), dtype=torch.float64),
            flow.fractions(system.times),
            data.points[-1] @ total.weights[-1].mT + total.biases[-1],
            torch.stack(each, dim=1),
        )

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        image, twice, scaled = observed.images
        events = torch.tensor(observed.path.events, dtype=torch.float64) / system.rate
        found = torch.full_like(predicted.events, math.nan)
        found[: len(events)] = events[: len(found)]
        last = float(predicted.events[-1])
        late = system.times > last + 0.1
        costs = observed.path.costs[late]
        decay = costs[0] * torch.exp(-2 * (system.times[late] - system.times[late][0]))
        collapsed = aligned_map(system.points, observed.path.shifts[-1, 0], system.rotation)
        slope = predicted.fractions[observed.seen].sort(dim=1).values
        return [
            identity.close("output is affine in the truncated data", predicted.outputs, observed.outputs, 1e-12),
            identity.close("τ∘τ = τ", image, twice, 1e-13),
            identity.close("τ does not see W_*", image, scaled, 1e-13),
            formula.close("β under gradient flow", predicted.shifts, observed.path.shifts[:, 0], 1e-6),
            formula.close("times at which points are cut off", predicted.events, found, 1e-6),
            formula.close("time of the collapse to a point", last, found[-1], 1e-6),
            identity.close("one point is left", collapsed[0], collapsed, 1e-13),
            formula.close("cost after it falls as e^{−2t}", decay, costs, 1e-6, relative=True),
            identity.close("gradient by a cluster that is let through", 0.0, observed.other, 0.0),
            formula.close("β of a layer for each of two clusters", predicted.pair, observed.pair, 1e-6),
            identity.close("eigenvalues of the bias's kernel are H_k", slope, observed.spectra, 1e-12),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        curves, kernels = [], []
        known = predicted.shifts @ system.rotation.mT
        found = observed.path.shifts[:, 0] @ system.rotation.mT
        goal, order = system.rotation @ system.target, predicted.fractions.sort(dim=1).values
        for k in range(len(goal)):
            curves.append(curve(f"k = {k + 1}", system.times, known[:, k] + goal[k], group=k))
            some = observed.seen
            curves.append(points("", system.times[some], found[some, k] + goal[k], group=k))
            kernels.append(curve("", system.times, order[:, k], group=k))
            kernels.append(points("", system.times[some], observed.spectra[:, k], group=k))
        return (
            Panel.of("Distance of the wall from the target", "time", "β̂ + ŷ", *curves, log="y"),
            Panel.of("Eigenvalues of the bias's kernel: H", "time", "eigenvalue / N", *kernels),
        )


@final
class _Truncated(nn.Module):
    """τ(x) = Rᵀ (σ(R x + b) − b), of which b learns."""

    def __init__(self, rotation: Tensor, bias: Tensor) -> None:
        nn.Module.__init__(self)
        self.register_buffer("rotation", rotation.clone())
        self.bias = nn.Parameter(bias.clone())

    def forward(self, points: Tensor) -> Tensor:
        turn = self.get_buffer("rotation")
        return (torch.relu(points @ turn.mT + self.bias) - self.bias) @ turn


def _spectrum(system: System, shift: Tensor) -> Tensor:
    """Of the NTK over N, but for zeros, rising."""
    model = _Truncated(system.rotation, system.rotation @ shift)
    ntk = to_dense(Ntk(linearise(model, system.points), readout="outputs"))
    return torch.linalg.eigvalsh(ntk)[-len(shift) :] / len(system.points)


def _outputs(system: System) -> Tensor:
    """Of the deep network."""
    modules: list[nn.Module] = []
    for weight, bias in zip(*system.deep, strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        layer.load_state_dict({"weight": weight, "bias": bias})
        modules.extend([layer, nn.ReLU()])
    with torch.no_grad():
        return nn.Sequential(*modules[:-1])(system.points)


def _crossings(points: list[float], goal: float, wall: float) -> list[float]:
    """Times at which a wall that rises towards `goal` meets the points, (N/k) ln((y − w)/(y − w')) after each other."""
    time, times = 0.0, []
    for cut in range(sum(point <= wall for point in points), len(points)):
        time += len(points) / cut * math.log((goal - wall) / (goal - points[cut]))
        wall = points[cut]
        times.append(time)
    return times
