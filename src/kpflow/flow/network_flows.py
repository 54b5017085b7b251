"""Gradient flow of the weights and biases themselves, to be compared with the effective flow."""

import dataclasses
from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_one_of, check_tensor

from .bias_flows import goals
from .cumulative import Layers, aligned_frame, cumulative_parameters, relu_layers
from .switched import SwitchedPath, check_times, switched_flow
from .truncation_maps import check_clusters, check_points

__all__ = ["NetworkPath", "network_flow"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class NetworkPath:
    """Weights and biases along their own gradient flow.

    Args:
        times: Shape `[T]`.
        weights: W_ℓ, shapes `[T, M_ℓ, M_{ℓ−1}]`, the read-out's too.
        biases: b_ℓ, shapes `[T, M_ℓ]`.
        shifts: β^(ℓ), shape `[T, L, Q]`.
        misalignment: Of the cumulative weights W^(ℓ) with the activations, `aligned_frame`, shape `[T, L]`.
        costs: Shape `[T]`.
        events: Times at which an activation cuts a point off or releases it.
        slid: Steps along a kink of the cost, which are followed to first order only.
    """

    times: Float[Tensor, " T"]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    shifts: Float[Tensor, "T L Q"]
    misalignment: Float[Tensor, "T L"]
    costs: Float[Tensor, " T"]
    events: tuple[float, ...]
    slid: int


@final
@dataclasses.dataclass(frozen=True, eq=False)
class _Training:
    """A network with what it is trained on; the flat state is that of the parameters that learn."""

    layers: Layers
    points: Tensor
    targets: Tensor
    euclidean: bool
    everything: bool

    @property
    def start(self) -> Tensor:
        depth = self.layers.depth
        weights = self.layers.weights[:depth] if self.everything else ()
        return torch.cat([part.flatten() for part in (*weights, *self.layers.biases[:depth])])

    def parts(self, state: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases of all layers."""
        depth = self.layers.depth
        held = self.layers.weights[:depth]
        learning = [*(held if self.everything else ()), *self.layers.biases[:depth]]
        found = [
            piece.view_as(part)
            for piece, part in zip(state.split([part.numel() for part in learning]), learning, strict=True)
        ]
        weights = found[:depth] if self.everything else list(held)
        return [*weights, *self.layers.weights[depth:]], [*found[-depth:], *self.layers.biases[depth:]]

    def forward(self, state: Tensor, pattern: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inputs of all activations, flat, and the cost; with the pattern H, or that of the state."""
        weights, biases = self.parts(state)
        at, margins, place = self.points, [], 0
        width = self.points.shape[1]
        product, offset = torch.eye(width, dtype=torch.float64), self.points.new_zeros(width)
        for weight, bias in zip(weights[: self.layers.depth], biases, strict=False):
            before = at @ weight.mT + bias
            margins.append(before.flatten())
            held = (before > 0).double() if pattern is None else pattern[place : place + before.numel()].view_as(before)
            at, place = held * before, place + before.numel()
            product, offset = weight @ product, weight @ offset + bias
        if self.euclidean:  # τ̲(x) = (W^(L))⁻¹ (x^(L) − b^(L))
            miss = torch.linalg.solve(product, (at - offset).mT).mT - self.targets
        else:
            miss = at @ weights[-1].mT + biases[-1] - self.targets
        return torch.cat(margins), 0.5 * miss.square().sum() / len(miss)


def network_flow(
    network: Any,
    points: Tensor,
    targets: Tensor,
    *,
    times: Sequence[float] | Tensor,
    clusters: Tensor | None = None,
    cost: str = "euclidean",
    learn: str = "biases",
    step: float = 0.1,
    tolerance: float = 1e-10,
) -> NetworkPath:
    """Gradient flow of the parameters of a ReLU network, with its cumulative biases and its misalignment.

    For one layer with aligned weights W = W_* R that are held it is the effective flow, up to the error of integration:
    `bias_flow(..., scales=W_*)`. Elsewhere the two differ: deeper biases are not independent of each other, and weights
    that learn leave the alignment; with the standard cost, b_L moves b^(L+1) too, which the effective flow holds.

    Args:
        network: As of `cumulative_parameters`, with W^(ℓ) square and invertible for ℓ ≤ L. It is not changed.
        points: x, shape `[N, Q]`.
        targets: For "euclidean" y in input space (`input_targets`), for "standard" outputs: one for all points, one for
            each cluster with `clusters`, or one for each point.
        times: Rising, from 0 or later, shape `[T]`.
        clusters: Of each point, whole numbers from 0, shape `[N]`.
        cost: "euclidean", ½ ⟨|τ̲(x) − y|²⟩, or "standard", ½ ⟨|W_{L+1} x^(L) + b_{L+1} − y|²⟩.
        learn: "biases" of layers 1 … L, or "all" of their parameters; the read-out is held.
        step: The longest, of time.
        tolerance: Of the error of a step, relative to 1 + max |β|, or the largest parameter.

    Raises:
        TypeError: As `cumulative_parameters`, or a tensor is not of floating point.
        ValueError: As `cumulative_parameters`; a W^(ℓ) is rectangular or singular, or becomes so; there is no read-out
            for the standard cost; a shape or name does not fit; `times` do not rise.

    Example:
        >>> network = ([torch.eye(1), torch.eye(1)], [torch.zeros(1), torch.zeros(1)])
        >>> path = network_flow(network, torch.tensor([[-1.0], [1.0]]), torch.tensor([3.0]), times=[0.0, 1.0])
        >>> [round(float(shift), 6) for shift in path.shifts[:, 0, 0]]
        [0.0, -1.344543]
    """
    check_one_of("cost", cost, ("euclidean", "standard"))
    check_one_of("learn", learn, ("biases", "all"))
    asked = check_times(times, step, tolerance)
    layers, total = relu_layers(network), cumulative_parameters(network)
    if not total.invertible:
        shapes = ", ".join(str(tuple(weight.shape)) for weight in total.weights[: layers.depth])
        raise ValueError(
            f"`network` must have square, invertible cumulative weights; got shapes {shapes} of ranks {total.ranks}. "
            "Their truncated data are still those of truncated_data(network, points)."
        )
    if cost == "standard" and not layers.readout:
        raise ValueError('`cost` "standard" is that of outputs, and `network` has no read-out; end it with a Linear.')
    given = check_points(points, layers.weights[0].shape[1])
    wanted = goals(targets, clusters, given) if cost == "euclidean" else _outputs(targets, clusters, layers, len(given))
    training = _Training(layers, given, wanted, cost == "euclidean", learn == "all")
    return _record(training, asked, _integrated(training, asked, step, tolerance))


def _outputs(targets: Any, clusters: Any, layers: Layers, count: int) -> Tensor:
    """The output that each point should have."""
    width = len(layers.biases[-1])
    blank = torch.zeros(count, width, dtype=torch.float64)
    check_tensor("targets", targets)
    labels = None if clusters is None else check_clusters(clusters, count)
    return goals(targets, labels, blank)


def _integrated(training: _Training, times: list[float], step: float, tolerance: float) -> SwitchedPath:
    def field(state: Tensor, pattern: Tensor) -> Tensor:
        with torch.enable_grad():
            free = state.detach().requires_grad_()
            return -torch.autograd.grad(training.forward(free, pattern)[1], free)[0]

    def margins(state: Tensor, pattern: Tensor) -> Tensor:
        with torch.no_grad():
            return training.forward(state, pattern)[0]

    with torch.no_grad():
        pattern = training.forward(training.start, None)[0] > 0
    return switched_flow(field, margins, training.start, pattern, times, step, tolerance, lambda state: state)


def _record(training: _Training, times: list[float], path: SwitchedPath) -> NetworkPath:
    parts = [training.parts(state) for state in path.states]
    readout, depth = training.layers.readout, training.layers.depth
    totals = [cumulative_parameters(Layers(tuple(weights), tuple(biases), readout)) for weights, biases in parts]
    with torch.no_grad():
        costs = [training.forward(state, None)[1] for state in path.states]
    return NetworkPath(
        torch.tensor(times, dtype=torch.float64),
        tuple(torch.stack(stages) for stages in zip(*(weights for weights, _ in parts), strict=True)),
        tuple(torch.stack(stages) for stages in zip(*(biases for _, biases in parts), strict=True)),
        torch.stack([total.shifts for total in totals]),
        torch.tensor(
            [[aligned_frame(weight).misalignment for weight in total.weights[:depth]] for total in totals],
            dtype=torch.float64,
        ),
        torch.stack(costs),
        path.events,
        path.slid,
    )
