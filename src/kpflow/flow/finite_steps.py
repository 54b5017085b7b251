"""Gradient descent with finite steps as a flow: modified fields, and the kernel that makes the linear theory exact."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Inexact
from torch import Tensor
from torch.func import grad, vjp

from kpflow._checks import check_positive, check_range, check_tensor

__all__ = ["finite_step_kernel", "finite_step_rates", "modified_flow", "modified_gradient_flow"]


def finite_step_rates(eigenvalues: Float[Tensor, "*K"], learning_rate: float) -> Inexact[Tensor, "*K"]:
    """r = −log(1 − ηλ)/η, with which e^{−rt} = (1 − ηλ)^{t/η} after every step: λ (1 + ηλ/2 + (ηλ)²/3 + …).

    A mode of an NTK decays by r where the continuous theory says λ. Where ηλ > 2 the real part is negative, and
    the mode grows; where ηλ > 1 the sign alternates, and r has an imaginary part −π/η.

    Args:
        eigenvalues: λ.
        learning_rate: η.

    Returns:
        In complex128; infinite where ηλ = 1, which one step learns.

    Raises:
        ValueError: η is not positive.

    Example:
        >>> finite_step_rates(torch.tensor([0.1, 1.5, 2.5]), 1.0).real
        tensor([ 0.1054,  0.6931, -0.4055], dtype=torch.float64)
    """
    check_positive("learning_rate", learning_rate)
    return -(1 - learning_rate * eigenvalues.to(torch.complex128)).log() / learning_rate


def finite_step_kernel(kernel: Any, learning_rate: float) -> Inexact[Tensor, "N N"]:
    """Θ_η = −log(I − ηΘ)/η: exp(−Θ_η t) r is what gradient descent leaves of a residual r after t/η steps, exactly.

    For a squared loss ½‖r‖² and a model that is linear in its parameters, as the NTK takes every model to be (Rosca et
    al. 2023, arXiv 2310.14036, for a quadratic loss). Modes with ηλ near 2 differ most from Θ.

    Args:
        kernel: Θ, symmetric, shape `[N, N]`.
        learning_rate: η, in the units of ½‖r‖²: of a mean over N outputs, η/N.

    Returns:
        In float64 if ηλ < 1 for all modes, else in complex128.

    Raises:
        TypeError: `kernel` is no floating-point tensor.
        ValueError: η is not positive, or the kernel is not a symmetric matrix.

    Example:
        >>> kernel = torch.diag(torch.tensor([0.1, 0.5], dtype=torch.float64))
        >>> decay = torch.matrix_exp(-3 * finite_step_kernel(kernel, 1.0))
        >>> decay.diagonal(), (1 - kernel.diagonal()) ** 3
        (tensor([0.7290, 0.1250], dtype=torch.float64), tensor([0.7290, 0.1250], dtype=torch.float64))
    """
    theta = check_tensor("kernel", kernel).double()
    if theta.ndim != 2 or not torch.allclose(theta, theta.mT, rtol=1e-4, atol=1e-6 * float(theta.abs().max())):
        raise ValueError(
            f"`kernel` must be a symmetric matrix; got shape {tuple(theta.shape)}. A rule whose operator is not "
            "symmetric has no such modes."
        )
    values, vectors = torch.linalg.eigh((theta + theta.mT) / 2)
    rates = finite_step_rates(values, learning_rate)
    if bool((learning_rate * values < 1).all()):
        return (vectors * rates.real) @ vectors.mT
    vectors = vectors.to(rates.dtype)
    return (vectors * rates) @ vectors.mT


def modified_flow(
    field: Callable[[Tensor], Tensor], learning_rate: float, order: int = 2
) -> Callable[[Tensor], Tensor]:
    """The field of which one step θ ← θ + η f(θ) is the flow for a time η, up to an error O(η^(order + 1)).

    f (order 1), f − η/2 ∂f f (2), and f − η/2 ∂f f + η² (∂f ∂f f/3 + ∂²f[f, f]/12) (3), by nested derivatives along
    vectors. For learning that descends no single loss: a game whose players step at the same time (Rosca et al. 2021,
    arXiv 2105.13922, order 2; Hairer, Lubich, Wanner, Geometric Numerical Integration, IX.1, any order). Where players
    have learning rates vᵢη of their own, f has the parts vᵢfᵢ.

    Args:
        field: f, from parameters of any shape to their velocity, of the same shape, `order` − 1 times differentiable.
        learning_rate: η.
        order: 1, 2 or 3.

    Returns:
        From parameters to their velocity; it raises a ValueError where that of f has another shape.

    Raises:
        ValueError: η is not positive, or `order` is none of these.

    Example:
        >>> def game(players):  # −∂L₁/∂x and −∂L₂/∂y of L₁ = xy = −L₂, which gradient flow turns around
        ...     return torch.stack([-players[1], players[0]])
        >>> modified_flow(game, 0.1)(torch.tensor([1.0, 0.0]))  # and steps drive away, by η/2
        tensor([0.0500, 1.0000])
    """
    check_positive("learning_rate", learning_rate)
    check_range("order", order, 1, 3, integer=True)

    def modified(theta: Tensor) -> Tensor:
        f = field(theta)
        if f.shape != theta.shape:
            raise ValueError(
                f"`field` must give a velocity of the shape of the parameters, {tuple(theta.shape)}; "
                f"got {tuple(f.shape)}. Return one value for each parameter."
            )
        if order == 1:
            return f
        bent = _derivative(field, theta, f)
        if order == 2:
            return f - learning_rate / 2 * bent
        turned = _derivative(lambda at: _derivative(field, at, f), theta, f)  # ∂²f[f, f]
        return f - learning_rate / 2 * bent + learning_rate**2 * (_derivative(field, theta, bent) / 3 + turned / 12)

    return modified


def _derivative(field: Callable[[Tensor], Tensor], theta: Tensor, direction: Tensor) -> Tensor:
    """∂f v as the adjoint of u ↦ ∂fᵀ u: more has a reverse mode than a forward one, which warns in torch 2.13."""
    pull = vjp(field, theta)[1]
    return vjp(lambda u: pull(u)[0], torch.zeros_like(theta))[1](direction)[0]


def modified_gradient_flow(
    loss: Callable[[Tensor], Tensor], learning_rate: float, order: int
) -> Callable[[Tensor], Tensor]:
    """The field of which one step of gradient descent is the flow for a time η, up to an error O(η^(order + 1)).

    With g = ∇L and H = ∇²L: −g (order 1), −g − η/2 H g (2), and −g − η/2 H g − η² (H H g/3 + ∂H[g] g/12) (3), which is
    `modified_flow` of −g. That of order 2 descends L + η/4 ‖g‖² (Barrett and Dherin 2021, arXiv 2009.11162; Rosca et
    al. 2023, arXiv 2310.14036).

    Args:
        loss: From parameters, of any shape, to a scalar, `order` times differentiable.
        learning_rate: η.
        order: 1, 2 or 3.

    Raises:
        ValueError: η is not positive, or `order` is none of these.

    Example:
        >>> flow = modified_gradient_flow(lambda w: 0.5 * (w * w).sum(), 0.1, 3)
        >>> flow(torch.ones(1, dtype=torch.float64))  # −log(1 − 0.1)/0.1 = 1.05361
        tensor([-1.0533], dtype=torch.float64)
    """
    slope = grad(loss)
    return modified_flow(lambda theta: -slope(theta), learning_rate, order)
