"""What pulls at features below a ridge read-out, and the energy that a single feature climbs."""

import torch
from torch import Tensor

__all__ = ["climb", "ridge_force", "ridge_force_formula"]


def ridge_force(features: Tensor, wanted: Tensor, eta: float) -> Tensor:
    """−∂L/∂F of ½‖Ỹ − F V‖² by autograd, at the V that is best for F with ½η‖V‖² besides.

    Args:
        features: F, shape `[N, K]`.
        wanted: Ỹ, shape `[N, out]`.
        eta: η.

    Example:
        >>> ridge_force(torch.ones(1, 1), torch.ones(1, 1), 1.0)
        tensor([[0.2500]])
    """
    ridge = features.mT @ features + eta * torch.eye(features.shape[1], dtype=features.dtype)
    best = torch.linalg.solve(ridge, features.mT @ wanted)
    leaf = features.clone().requires_grad_()
    (slope,) = torch.autograd.grad(-(wanted - leaf @ best).square().sum() / 2, [leaf])
    return slope


def ridge_force_formula(features: Tensor, wanted: Tensor, eta: float) -> Tensor:
    """The same, η (FFᵀ + η)⁻¹ ỸỸᵀF (FᵀF + η)⁻¹.

    Example:
        >>> ridge_force_formula(torch.ones(1, 1), torch.ones(1, 1), 1.0)
        tensor([[0.2500]])
    """
    rows, columns = (eta * torch.eye(size, dtype=features.dtype) for size in features.shape)
    left = torch.linalg.solve(features @ features.mT + rows, wanted @ (wanted.mT @ features))
    return eta * torch.linalg.solve(features.mT @ features + columns, left, left=False)


def climb(starts: Tensor, inputs: Tensor, wanted: Tensor, *, rounds: int = 400) -> Tensor:
    """½‖Ỹᵀ(Xw)²‖² where w ← w + ∇E/|∇E|, of length 1, ends from each start.

    The gradient alone would swap the shares of two halves of w in every round.

    Args:
        starts: Shape `[starts, in]`.
        inputs: X, shape `[N, in]`.
        wanted: Ỹ, shape `[N, out]`.
        rounds: Of steps.

    Returns:
        Shape `[starts]`.

    Example:
        >>> climb(torch.tensor([[0.6, 0.8]]), torch.eye(2), torch.eye(2))
        tensor([0.5000])
    """
    w = torch.nn.functional.normalize(starts, dim=1)
    for _ in range(rounds):
        values = w @ inputs.mT
        slope = ((values.square() @ wanted) @ wanted.mT * values) @ inputs
        w = torch.nn.functional.normalize(w + torch.nn.functional.normalize(slope, dim=1), dim=1)
    return ((w @ inputs.mT).square() @ wanted).square().sum(dim=1) / 2
