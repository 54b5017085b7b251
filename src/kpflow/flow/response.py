"""What one step of gradient descent does: the chain error → adjoint → gradient → change of the states."""

import dataclasses
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_finite, check_positive
from kpflow.states import Linearisation

__all__ = ["Response", "error_signal", "response"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Response:
    """The response of states and loss to one gradient step θ → θ − η ∂L/∂θ, to first order in η.

    Args:
        loss: L.
        error: ∂L/∂S, the error signal, shape of the states.
        adjoint: Pᵀ ∂L/∂S, the adjoint state of back-propagation.
        gradient: ∂L/∂θ = Jᵀ Pᵀ ∂L/∂S + (∂g/∂θ)ᵀ ∂L/∂y, flat in the space of the parameters.
        immediate: J ∂L/∂θ, what the step changes at once: K Pᵀ ∂L/∂S, unless the read-out shares parameters with the
            recurrence.
        change: P J ∂L/∂θ, which is then P K Pᵀ ∂L/∂S = NTK ∂L/∂S.
        learning_rate: η.
    """

    loss: float
    error: Tensor
    adjoint: Tensor
    gradient: Float[Tensor, " P"]
    immediate: Tensor
    change: Tensor
    learning_rate: float

    @property
    def predicted_change(self) -> Tensor:
        """dS = −η P K Pᵀ ∂L/∂S, shape of the states."""
        return -self.learning_rate * self.change

    @property
    def predicted_loss_change(self) -> float:
        """dL = −η ‖∂L/∂θ‖²."""
        return -self.learning_rate * float(self.gradient.double().square().sum())


def response(
    linearisation: Linearisation, loss: Callable[[Tensor], Tensor], *, learning_rate: float = 1.0, of: str = "outputs"
) -> Response:
    """Predict what one step of gradient descent on `loss` does (arXiv 2507.06381, Proposition 1).

    Args:
        linearisation: The linearised state equation.
        loss: From the model's outputs (or the states, with `of="states"`), batch first, to a scalar.
        learning_rate: η.
        of: "outputs" or "states".

    Raises:
        ValueError: The model has no outputs, the loss is no scalar, does not depend on its argument, or is not finite.

    Example:
        >>> import kpflow as kp
        >>> lin = kp.linearise(torch.nn.GRU(1, 4, batch_first=True), torch.ones(2, 3, 1))
        >>> r = response(lin, lambda y: y.square().mean(), learning_rate=1e-3)
        >>> r.change.shape, r.predicted_loss_change < 0
        (torch.Size([2, 3, 4]), True)
    """
    check_positive("learning_rate", learning_rate)
    if of not in ("outputs", "states"):
        raise ValueError(f'`of` must be "outputs" or "states"; got {of!r}.')
    readout = linearisation.readout
    if of == "outputs" and readout is None:
        raise ValueError('The model has no outputs. Give a loss of the states, with of="states".')
    if of == "outputs" and readout is not None:
        value, output_error = error_signal(loss, readout.outputs)
        error = readout.state_vjp(output_error.unsqueeze(0))
        direct = readout.parameter_vjp(output_error.unsqueeze(0))
    else:
        value, state_error = error_signal(loss, linearisation.states)
        error, direct = state_error.unsqueeze(0), linearisation.parameters.zeros(1)
    adjoint = linearisation.propagate_adjoint(error)
    through_states = linearisation.parameter_vjp(adjoint)
    gradient = through_states + direct
    immediate = linearisation.parameter_jvp(gradient)
    return Response(
        loss=value,
        error=error[0],
        adjoint=adjoint[0],
        gradient=gradient[0],
        immediate=immediate[0],
        change=linearisation.propagate(immediate)[0],
        learning_rate=learning_rate,
    )


def error_signal(loss: Callable[[Tensor], Tensor], at: Tensor) -> tuple[float, Tensor]:
    """L and its gradient at a leaf copy of `at`."""
    with torch.enable_grad():
        point = at.detach().clone().requires_grad_()
        value = loss(point)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"`loss` must give a scalar tensor; got {got}. Sum or average it.")
        if not value.requires_grad:
            raise ValueError("`loss` must depend on its argument through differentiable operations; it does not.")
        (gradient,) = torch.autograd.grad(value, point)
    check_finite("loss", value.detach().reshape(1), ("entry",))
    check_finite("the gradient of `loss`", gradient)
    return float(value.detach()), gradient
