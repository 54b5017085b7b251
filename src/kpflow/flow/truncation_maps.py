"""Truncation maps: what a ReLU layer does to the data, seen in input space, and whom it cuts off."""

import dataclasses
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_finite, check_tensor

from .cumulative import NEGLIGIBLE, cumulative_parameters, relu_layers

__all__ = [
    "Collapse",
    "TruncatedData",
    "aligned_map",
    "check_clusters",
    "check_points",
    "check_rotation",
    "check_shift",
    "collapse",
    "truncated_data",
    "truncated_fractions",
    "truncation_map",
]


ORTHOGONAL = 1e-8
"""The most that an entry of R Rᵀ − I may be, beside the rounding of R's own dtype."""


def check_points(points: Any, width: int | None = None) -> Float[Tensor, "N Q"]:
    """`points` in float64, if they are finite and of shape `[N, Q]`."""
    given = check_tensor("points", points)
    if given.ndim != 2 or len(given) == 0 or width not in (None, given.shape[1]):
        raise ValueError(
            f"`points` must have shape (N, {'Q' if width is None else width}), one point in each row; got "
            f"{tuple(given.shape)}."
        )
    check_finite("points", given, ("point", "coordinate"))
    return given.detach().double()


def check_clusters(clusters: Any, count: int) -> Tensor:
    """The cluster of each point, 0 for all if there is None."""
    if clusters is None:
        return torch.zeros(count, dtype=torch.long)
    if not isinstance(clusters, Tensor) or clusters.dtype.is_floating_point or clusters.dtype.is_complex:
        got = clusters.dtype if isinstance(clusters, Tensor) else type(clusters).__name__
        raise TypeError(f"`clusters` must be a tensor of whole numbers; got {got}. Make it with torch.tensor([0, 1]).")
    if tuple(clusters.shape) != (count,) or int(clusters.min()) < 0:
        raise ValueError(
            f"`clusters` must hold the number, 0 or more, of each of the {count} points' cluster; got shape "
            f"{tuple(clusters.shape)}, least {int(clusters.min()) if clusters.numel() else None}."
        )
    return clusters.long()


def check_rotation(rotation: Any, width: int, name: str = "rotation") -> Float[Tensor, "Q Q"]:
    """R in float64, the identity if it is None."""
    if rotation is None:
        return torch.eye(width, dtype=torch.float64)
    given = check_tensor(name, rotation).detach()
    matrix = given.double()
    if tuple(matrix.shape) != (width, width):
        raise ValueError(f"`{name}` must have shape ({width}, {width}), as the points; got {tuple(matrix.shape)}.")
    miss = float((matrix @ matrix.mT - torch.eye(width, dtype=torch.float64)).abs().max())
    if not miss <= max(ORTHOGONAL, 10 * width * torch.finfo(given.dtype).eps):
        raise ValueError(
            f"`{name}` must be orthogonal; R Rᵀ misses I by {miss:.2g}. Of a weight, take aligned_frame(W).rotation."
        )
    left, _, right = torch.linalg.svd(matrix)  # the nearest that is orthogonal to rounding of float64
    return left @ right


def check_shift(shift: Any, width: int) -> Float[Tensor, " Q"]:
    """β in float64."""
    given = check_tensor("shift", shift).detach().double()
    if tuple(given.shape) != (width,):
        raise ValueError(f"`shift` must have shape ({width},), β of one layer; got {tuple(given.shape)}.")
    check_finite("shift", given, ("coordinate",))
    return given


def truncation_map(points: Tensor, weight: Tensor, bias: Tensor, *, least_squares: bool = False) -> Tensor:
    """τ_{W,b}(x) = W⁺ (σ(W x + b) − b), with σ the ReLU (arXiv 2405.07098, equation 1).

    Computed as W⁺W x + W⁺ σ(−W x − b), the same, but exact where nothing is truncated. Where the rows of W are
    independent, W τ(x) + b = σ(W x + b) and τ∘τ = τ; a positive scale of each row, with its b, changes nothing.

    Args:
        points: x, shape `[N, Q]`.
        weight: W, shape `[M, Q]`.
        bias: b, shape `[M]`.
        least_squares: Also where the rows of W are dependent, and W τ(x) + b is but as near to σ(W x + b) as it can be.

    Returns:
        Shape `[N, Q]`, float64.

    Raises:
        TypeError: One is no floating-point tensor.
        ValueError: A shape does not fit, a number is not finite, or the rows of W are dependent.

    Example:
        >>> points = torch.tensor([[1.0, -3.0], [0.5, 2.0]])
        >>> truncation_map(points, torch.eye(2), torch.tensor([0.0, 1.0]))
        tensor([[ 1.0000, -1.0000],
                [ 0.5000,  2.0000]], dtype=torch.float64)
    """
    matrix, shift = check_tensor("weight", weight).detach().double(), check_tensor("bias", bias).detach().double()
    if matrix.ndim != 2 or tuple(shift.shape) != (matrix.shape[0],):
        raise ValueError(
            f"`weight` must have shape (M, Q) and `bias` (M,); got {tuple(matrix.shape)} and {tuple(shift.shape)}."
        )
    check_finite("weight", matrix, ("output", "input"))
    check_finite("bias", shift, ("output",))
    return _mapped(check_points(points, matrix.shape[1]), matrix, shift, least_squares, "`weight`")


def _mapped(points: Tensor, weight: Tensor, bias: Tensor, least_squares: bool, name: str) -> Tensor:
    """τ_{W,b} of what was checked before."""
    rows, columns = weight.shape
    rank = int(torch.linalg.matrix_rank(weight, rtol=NEGLIGIBLE))
    if rank < rows and not least_squares:
        raise ValueError(
            f"{name} must have independent rows; got {rows} rows of rank {rank}. No point of input space stands for an "
            "activation then. With least_squares=True the nearest is taken, and the identity's residual says how near."
        )
    missing = (-(points @ weight.mT + bias)).relu()
    if rank == rows == columns:
        return points + torch.linalg.solve(weight, missing.mT).mT
    inverse = torch.linalg.pinv(weight, rtol=NEGLIGIBLE)
    return points @ (inverse @ weight).mT + missing @ inverse.mT


def aligned_map(points: Tensor, shift: Tensor, rotation: Tensor) -> Tensor:
    """τ(x) = Rᵀ σ(R (x + β)) − β, the truncation map of all W = W_* R with W_* > 0 diagonal and b = W β.

    The coordinates k with R_k·(x + β) ≤ 0 are put onto the wall R_k·z = −R_k·β of a cone with apex −β.

    Args:
        points: x, shape `[N, Q]`.
        shift: β, shape `[Q]`.
        rotation: R, orthogonal, shape `[Q, Q]`.

    Raises:
        TypeError: An argument is no floating-point tensor.
        ValueError: `points` or `shift` are not finite, a shape does not fit, or `rotation` is not orthogonal.

    Example:
        >>> aligned_map(torch.tensor([[1.0, -3.0]]).double(), torch.tensor([0.0, 1.0]).double(), torch.eye(2).double())
        tensor([[ 1., -1.]], dtype=torch.float64)
    """
    given = check_points(points)
    turn, apex = check_rotation(rotation, given.shape[1]), check_shift(shift, given.shape[1])
    return given + (-((given + apex) @ turn.mT)).relu() @ turn


@final
@dataclasses.dataclass(frozen=True, eq=False)
class TruncatedData:
    """Data truncated by layer after layer, x^(ℓ) = W^(ℓ) τ̲^(ℓ)(x) + b^(ℓ) with τ̲^(ℓ) = τ^(ℓ)∘…∘τ^(1).

    Args:
        points: τ̲^(ℓ)(x), ℓ = 0 (the data) … L, shape `[L + 1, N, Q]`.
        cut: Whether activation k of layer ℓ cuts a point off, its input being ≤ 0, shapes `[N, M_ℓ]`.
        residuals: Largest |W^(ℓ) τ̲^(ℓ)(x) + b^(ℓ) − x^(ℓ)| over the largest |x^(ℓ)| or |b^(ℓ)|, shape `[L]`.
    """

    points: Float[Tensor, "L1 N Q"]
    cut: tuple[Tensor, ...]
    residuals: Float[Tensor, " L"]


def truncated_data(network: Any, points: Tensor, *, least_squares: bool = False) -> TruncatedData:
    """Which data each activation of a ReLU network cuts off, and where that puts them in input space.

    Args:
        network: As of `cumulative_parameters`.
        points: x, shape `[N, Q]`.
        least_squares: As of `truncation_map`, of all layers.

    Raises:
        TypeError: As `cumulative_parameters`, or `points` is no floating-point tensor.
        ValueError: As `cumulative_parameters`; `points` does not fit; or the rows of a W^(ℓ) are dependent: a layer is
            wider than one before it, or singular.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()).double()
        >>> data = truncated_data(network, torch.randn(5, 2, dtype=torch.float64))
        >>> data.points.shape, bool(data.residuals.max() < 1e-13)
        (torch.Size([2, 5, 2]), True)
    """
    layers, total = relu_layers(network), cumulative_parameters(network)
    kept = [check_points(points, layers.weights[0].shape[1])]
    state, cut, residuals = kept[0], [], []
    for index in range(layers.depth):
        before = state @ layers.weights[index].mT + layers.biases[index]
        cut.append(before <= 0)
        state = before.relu()
        weight, bias = total.weights[index], total.biases[index]
        kept.append(_mapped(kept[-1], weight, bias, least_squares, f"The cumulative weight of layer {index + 1}"))
        size = torch.maximum(state.abs().max(), bias.abs().max()).clamp_min(torch.finfo(state.dtype).tiny)
        residuals.append((kept[-1] @ weight.mT + bias - state).abs().max() / size)
    return TruncatedData(torch.stack(kept), tuple(cut), torch.stack(residuals))


def truncated_fractions(
    network: Any, points: Tensor, clusters: Tensor | None = None
) -> tuple[Float[Tensor, "J M"], ...]:
    """n_jk / N of each layer: which part of all N points is of cluster j and cut off by activation k.

    The sum over clusters is n_k / N, the rate at which the bias moves towards its equilibrium.

    Args:
        network: As of `cumulative_parameters`; of any widths.
        points: x, shape `[N, Q]`.
        clusters: Of each point, whole numbers from 0, shape `[N]`; None for one cluster.

    Raises:
        TypeError: As `truncated_data`, or `clusters` are no whole numbers.
        ValueError: As `truncated_data`, or `clusters` do not fit.

    Example:
        >>> network = ([torch.eye(1), torch.eye(1)], [torch.zeros(1), torch.zeros(1)])
        >>> truncated_fractions(network, torch.tensor([[-1.0], [1.0], [-2.0], [3.0]]), torch.tensor([0, 0, 1, 1]))
        (tensor([[0.2500],
                [0.2500]], dtype=torch.float64),)
    """
    layers = relu_layers(network)
    state = check_points(points, layers.weights[0].shape[1])
    labels = check_clusters(clusters, len(state))
    members = torch.nn.functional.one_hot(labels).double() / len(state)  # [N, J]
    result = []
    for weight, bias in zip(layers.weights[: layers.depth], layers.biases, strict=False):
        before = state @ weight.mT + bias
        result.append(members.mT @ (before <= 0).double())
        state = before.relu()
    return tuple(result)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Collapse:
    """How near clusters are to points (neural collapse).

    Args:
        within: Mean squared distance of the points of each cluster from their mean, shape `[J]`.
        diameters: Largest distance of two points of each cluster, shape `[J]`.
        between: Squared distances of the means, shape `[J, J]`.
    """

    within: Float[Tensor, " J"]
    diameters: Float[Tensor, " J"]
    between: Float[Tensor, "J J"]

    @property
    def ratio(self) -> float:
        """Mean variance within clusters over the mean squared distance between their means; NaN of one cluster."""
        count = len(self.within)
        return float(self.within.mean() / (self.between.sum() / (count * (count - 1)))) if count > 1 else float("nan")


def collapse(points: Tensor, clusters: Tensor | None = None) -> Collapse:
    """Sizes of clusters and the distances between them.

    Raises:
        TypeError: `points` is no floating-point tensor, or `clusters` are no whole numbers.
        ValueError: A shape does not fit, or a cluster is empty.

    Example:
        >>> found = collapse(torch.tensor([[0.0], [2.0], [9.0], [9.0]]), torch.tensor([0, 0, 1, 1]))
        >>> found.within.tolist(), found.diameters.tolist(), found.ratio
        ([1.0, 0.0], [2.0, 0.0], 0.0078125)
    """
    given = check_points(points)
    labels = check_clusters(clusters, len(given))
    groups = [given[labels == j] for j in range(int(labels.max()) + 1)]
    empty = [j for j, group in enumerate(groups) if len(group) == 0]
    if empty:
        raise ValueError(f"`clusters` must number the clusters 0, 1, … without gaps; got none of {empty}.")
    means = torch.stack([group.mean(0) for group in groups])
    within = torch.stack([(group - mean).square().sum(1).mean() for group, mean in zip(groups, means, strict=True)])
    diameters = torch.stack([_distances(group).max() for group in groups])
    return Collapse(within, diameters, _distances(means).square())


def _distances(points: Tensor) -> Tensor:
    return (points[:, None] - points).norm(dim=-1)
