"""Cumulative weights and biases of ReLU networks, and how far the weights are from activation coordinates."""

import dataclasses
import math
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kpflow._checks import check_finite, check_tensor

__all__ = [
    "AlignedFrame",
    "CumulativeParameters",
    "Layers",
    "aligned_frame",
    "cumulative_parameters",
    "input_targets",
    "relu_layers",
]

NEGLIGIBLE = 1e-10
"""Singular values below this part of the largest one are no rank; residuals below it are rounding."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Layers:
    """W_1 … W_L with a ReLU after each, and the read-out W_{L+1} without one, if there is any; float64.

    Args:
        weights: W_ℓ, shapes `[M_ℓ, M_{ℓ−1}]`.
        biases: b_ℓ, shapes `[M_ℓ]`.
        readout: Whether the last ones are the read-out.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    readout: bool

    @property
    def depth(self) -> int:
        """L, the number of layers with a ReLU."""
        return len(self.weights) - self.readout


def relu_layers(network: Any) -> Layers:
    """The layers of an `nn.Sequential` or of two lists, checked; see `cumulative_parameters`."""
    if isinstance(network, Layers):
        return network
    weights, biases, readout = _of_module(network) if isinstance(network, nn.Module) else _of_lists(network)
    made = Layers(tuple(weights), tuple(biases), readout)
    if made.depth < 1:
        raise ValueError("`network` must have a layer with a ReLU; got none. Truncation is what a ReLU does.")
    for index, (weight, bias) in enumerate(zip(made.weights, made.biases, strict=True), start=1):
        before = made.weights[index - 2].shape[0] if index > 1 else weight.shape[1]
        if tuple(weight.shape) != (len(bias), before):
            raise ValueError(
                f"The weight of layer {index} must have shape ({len(bias)}, {before}), as its bias and the layer "
                f"before it say; got {tuple(weight.shape)}. A weight acts as W x + b, outputs first."
            )
        check_finite(f"weight of layer {index}", weight, ("output", "input"))
        check_finite(f"bias of layer {index}", bias, ("output",))
    return made


def _of_module(network: nn.Module) -> tuple[list[Tensor], list[Tensor], bool]:
    if not isinstance(network, nn.Sequential):
        raise TypeError(
            f"`network` must be an nn.Sequential of Linear and ReLU, or a pair (weights, biases) of lists; got "
            f"{type(network).__name__}. Put its layers into an nn.Sequential."
        )
    weights, biases = [], []
    for place, module in enumerate(network):
        wanted = nn.ReLU if place % 2 else nn.Linear
        if not isinstance(module, wanted):
            raise ValueError(
                f"`network` must be Linear, ReLU, Linear, ReLU, …; got {type(module).__name__} at place {place}, "
                f"where {wanted.__name__} is due. Truncation maps are those of ReLU layers; drop or merge the others."
            )
        if isinstance(module, nn.Linear):
            weights.append(module.weight.detach().double())
            bias = module.weight.new_zeros(module.out_features) if module.bias is None else module.bias
            biases.append(bias.detach().double())
    return weights, biases, len(network) % 2 == 1


def _of_lists(network: Any) -> tuple[list[Tensor], list[Tensor], bool]:
    if not isinstance(network, tuple) or len(network) != 2:
        raise TypeError(
            f"`network` must be an nn.Sequential of Linear and ReLU, or a pair (weights, biases) of lists; got "
            f"{type(network).__name__}. The last of each list is the read-out, which has no ReLU."
        )
    weights, biases = (list(part) for part in network)
    if len(weights) != len(biases):
        raise ValueError(
            f"`network` must have as many biases as weights; got {len(weights)} weights and {len(biases)} biases. Give "
            "a layer without a bias torch.zeros."
        )
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
        axes = check_tensor(f"weight {index}", weight).ndim, check_tensor(f"bias {index}", bias).ndim
        if axes != (2, 1):
            raise ValueError(
                f"Layer {index} must have a weight of two axes (output, input) and a bias of one; got {axes[0]} and "
                f"{axes[1]}."
            )
    return [weight.detach().double() for weight in weights], [bias.detach().double() for bias in biases], True


@final
@dataclasses.dataclass(frozen=True, eq=False)
class CumulativeParameters:
    """W^(ℓ) = W_ℓ ⋯ W_1, b^(ℓ) = W_ℓ b^(ℓ−1) + b_ℓ, β^(ℓ) = (W^(ℓ))⁺ b^(ℓ); float64.

    Args:
        weights: W^(ℓ), shapes `[M_ℓ, Q]`, ℓ = 1 … L, and L + 1 for the read-out if there is one.
        biases: b^(ℓ), shapes `[M_ℓ]`, as many.
        shifts: β^(ℓ), shape `[L, Q]`.
        ranks: Of W^(ℓ), ℓ = 1 … L.
        residuals: |W^(ℓ) β^(ℓ) − b^(ℓ)| / |b^(ℓ)|, shape `[L]`: rounding where the rows of W^(ℓ) are independent.
        readout: Whether there is a read-out.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    shifts: Float[Tensor, "L Q"]
    ranks: tuple[int, ...]
    residuals: Float[Tensor, " L"]
    readout: bool

    @property
    def depth(self) -> int:
        """L, the number of layers with a ReLU."""
        return len(self.weights) - self.readout

    @property
    def invertible(self) -> bool:
        """Whether all W^(ℓ), ℓ ≤ L, are square and of full rank, as the flows ask for."""
        return all(
            rank == weight.shape[0] == weight.shape[1]
            for rank, weight in zip(self.ranks, self.weights[: self.depth], strict=True)
        )

    @property
    def gram(self) -> Float[Tensor, "Q Q"]:
        """G = (W^(L+1))ᵀ W^(L+1): the standard cost is ½ ⟨(τ(x) − ỹ)ᵀ G (τ(x) − ỹ)⟩ over truncated data.

        Raises:
            ValueError: There is no read-out.
        """
        if not self.readout:
            raise ValueError("`network` has no read-out, and so no standard cost. End it with a Linear layer.")
        return self.weights[-1].mT @ self.weights[-1]

    @property
    def gap(self) -> float:
        """λ_min(G): a cluster that is truncated in all coordinates approaches its target at least at this rate."""
        return max(float(torch.linalg.eigvalsh(self.gram)[0]), 0.0)


def cumulative_parameters(network: Any) -> CumulativeParameters:
    """Cumulative weights W^(ℓ), biases b^(ℓ) and shifts β^(ℓ) of a ReLU network (arXiv 2501.07400).

    Args:
        network: An `nn.Sequential` of Linear and ReLU in turn; if it ends with a Linear, that one is the read-out. Or a
            pair (weights, biases) of lists of tensors `[M_ℓ, M_{ℓ−1}]` and `[M_ℓ]`, whose last ones are the read-out.

    Raises:
        TypeError: `network` is neither.
        ValueError: A layer of another kind, shapes that do not chain, no ReLU, or numbers that are not finite.

    Example:
        >>> weights = [torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.eye(2)]
        >>> cumulative_parameters((weights, [torch.tensor([1.0, 3.0]), torch.zeros(2)])).shifts
        tensor([[0.5000, 3.0000]], dtype=torch.float64)
    """
    layers = relu_layers(network)
    weights, biases = [layers.weights[0]], [layers.biases[0]]
    for weight, bias in zip(layers.weights[1:], layers.biases[1:], strict=True):
        weights.append(weight @ weights[-1])
        biases.append(weight @ biases[-1] + bias)
    hidden = list(zip(weights[: layers.depth], biases, strict=False))
    shifts = torch.stack([torch.linalg.pinv(weight, rtol=NEGLIGIBLE) @ bias for weight, bias in hidden])
    misses = [
        float((weight @ shift - bias).norm() / bias.norm().clamp_min(torch.finfo(bias.dtype).tiny))
        for (weight, bias), shift in zip(hidden, shifts, strict=True)
    ]
    ranks = tuple(int(torch.linalg.matrix_rank(weight, rtol=NEGLIGIBLE)) for weight, _ in hidden)
    return CumulativeParameters(
        tuple(weights), tuple(biases), shifts, ranks, torch.tensor(misses, dtype=torch.float64), layers.readout
    )


def input_targets(network: Any, targets: Tensor) -> Float[Tensor, "J Q"]:
    """ỹ_j = (W^(L+1))⁺ (y_j − b^(L+1)), what targets of the output are among truncated data, where W^(L+1) ỹ + b = y.

    Args:
        network: As of `cumulative_parameters`, with a read-out.
        targets: y_j, shape `[J, outputs]`.

    Raises:
        TypeError: As `cumulative_parameters`.
        ValueError: There is no read-out, the shape does not fit, or no ỹ_j has y_j as its output.

    Example:
        >>> network = ([torch.eye(2), 2 * torch.eye(2)], [torch.zeros(2), torch.ones(2)])
        >>> input_targets(network, torch.tensor([[3.0, 5.0]]))
        tensor([[1., 2.]], dtype=torch.float64)
    """
    found = cumulative_parameters(network)
    if not found.readout:
        raise ValueError("`network` has no read-out, and so no outputs. End it with a Linear layer.")
    weight, bias = found.weights[-1], found.biases[-1]
    wanted = check_tensor("targets", targets)
    if wanted.ndim != 2 or wanted.shape[1] != len(bias):
        raise ValueError(f"`targets` must have shape (J, {len(bias)}), outputs last; got {tuple(wanted.shape)}.")
    moved = wanted.double() - bias
    result = moved @ torch.linalg.pinv(weight, rtol=NEGLIGIBLE).mT
    miss = (result @ weight.mT - moved).norm() / moved.norm().clamp_min(torch.finfo(moved.dtype).tiny)
    if not float(miss) < 1e-8:
        raise ValueError(
            f"`targets` must be outputs W^(L+1) z + b^(L+1) of some z; the nearest miss by {float(miss):.2g} of their "
            "size. The cumulative read-out is singular: take targets in its range."
        )
    return result


@final
@dataclasses.dataclass(frozen=True, eq=False)
class AlignedFrame:
    """W ≈ W_* R with W_* > 0 diagonal and R orthogonal.

    Args:
        scales: The diagonal of W_*, norms of the rows of W, shape `[Q]`.
        rotation: R, the orthogonal matrix nearest to W_*⁻¹ W, shape `[Q, Q]`.
        misalignment: Root mean square of the cosines between different rows of W, in [0, 1]; 0 where W = W_* R.
    """

    scales: Float[Tensor, " Q"]
    rotation: Float[Tensor, "Q Q"]
    misalignment: float


def aligned_frame(weight: Tensor) -> AlignedFrame:
    """How a square weight is aligned with the coordinates of the activation: W = W_* R, exactly or nearly.

    Raises:
        TypeError: `weight` is no floating-point tensor.
        ValueError: It is not square, or has a row of zeros.

    Example:
        >>> frame = aligned_frame(torch.tensor([[0.0, 2.0], [-3.0, 0.0]]))
        >>> frame.scales.tolist(), frame.misalignment
        ([2.0, 3.0], 0.0)
        >>> round(aligned_frame(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).misalignment, 4)
        0.7071
    """
    matrix = check_tensor("weight", weight).detach().double()
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"`weight` must be square; got shape {tuple(matrix.shape)}. Alignment is that of as many activations as "
            "coordinates of the input."
        )
    check_finite("weight", matrix, ("output", "input"))
    scales = matrix.norm(dim=1)
    if not bool((scales > 0).all()):
        raise ValueError(f"`weight` must have no row of zeros; got one at {int((scales == 0).nonzero()[0])}.")
    rows = matrix / scales[:, None]
    left, _, right = torch.linalg.svd(rows)
    size = len(rows)
    cosines = rows @ rows.mT - torch.diag(rows.square().sum(1))
    return AlignedFrame(scales, left @ right, float(cosines.norm()) / math.sqrt(max(size * (size - 1), 1)))
