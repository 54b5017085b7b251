"""Learning rules as operators: dS = −η G ∂L/∂S, each made of the parts of the NTK."""

import dataclasses
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_one_of, check_positive
from kpflow.operators import Gram, Identity, Operator, Resolvent
from kpflow.operators.gramian import metric_on
from kpflow.states import Linearisation
from kpflow.states.credit import fed_back, windowed

from .curvature import loss_curvature
from .jacobians import ImmediateJacobian, OutputJacobian, StateJacobian
from .propagator import Propagator

__all__ = [
    "LearningRule",
    "back_propagation",
    "feedback_alignment",
    "functional_descent",
    "local_learning",
    "natural_gradient",
    "preconditioned",
    "truncated_back_propagation",
]


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LearningRule:
    """dθ = −η M Jᵀ Q ∂L/∂S moves the states by dS = −η P J M Jᵀ Q ∂L/∂S, to first order.

    Q assigns credit: Pᵀ is back-propagation. M is a metric on parameter space. Functional descent moves the states
    without parameters, dS = −η P Pᵀ ∂L/∂S. A rule of the outputs y has these in the place of S, with J = dy/dθ and
    P = Q = 1, and is handed ∂L/∂y.

    Args:
        name: In words.
        propagator: P.
        jacobian: J, the immediate Jacobian; None for functional descent.
        credit: Q.
        metric: M; None for the identity.
    """

    name: str
    propagator: Operator
    jacobian: Operator | None
    credit: Operator
    metric: Operator | None = None

    @property
    def operator(self) -> Operator:
        """G = P J M Jᵀ Q."""
        if self.jacobian is None:
            return self.propagator @ self.credit
        return self.propagator @ self._moved @ self.jacobian.T @ self.credit

    def update(self, error: Tensor) -> Float[Tensor, "*S P"]:
        """−dθ/η = M Jᵀ Q ∂L/∂S, what the rule takes for the gradient, for errors `[*, *shape of the states]`.

        Raises:
            ValueError: The rule has no parameters.
        """
        if self.jacobian is None:
            raise ValueError("Functional descent moves the states themselves: it has no update of parameters.")
        pulled = self.jacobian.T(self.credit(error))
        return pulled if self.metric is None else self.metric(pulled)

    def predicted_loss_change(self, error: Tensor) -> float:
        """dL/η = −⟨∂L/∂S, G ∂L/∂S⟩; positive where the rule climbs."""
        return -float((error.double() * self.operator(error).double()).sum())

    def __repr__(self) -> str:
        return f"LearningRule({self.name})"

    @property
    def _moved(self) -> Operator:
        assert self.jacobian is not None
        return self.jacobian if self.metric is None else self.jacobian @ self.metric


def back_propagation(linearisation: Linearisation) -> LearningRule:
    """Gradient descent: Q = Pᵀ and G = P K Pᵀ, the NTK.

    Example:
        >>> import kpflow as kp
        >>> lin = kp.linearise(torch.nn.RNN(1, 4, batch_first=True), torch.ones(2, 5, 1))
        >>> error = torch.ones(2, 5, 4)
        >>> torch.allclose(back_propagation(lin).operator(error), kp.Ntk(lin)(error))
        True
    """
    P = Propagator(linearisation)
    return LearningRule("back-propagation", P, ImmediateJacobian(linearisation), P.T)


def truncated_back_propagation(linearisation: Linearisation, window: int) -> LearningRule:
    """States are detached every `window` steps: Q = P̃ᵀ, where P̃ is P within each window and zero between them.

    The states still carry what they carry: P on the left is the whole propagator. Layers hand credit down within a step
    whatever the window.

    Args:
        linearisation: Of a recurrent network.
        window: Steps between two detachments, the first before the first step.

    Raises:
        ValueError: The linearisation is that of a graph, or `window` is no positive whole number.

    Example:
        >>> import kpflow as kp
        >>> lin = kp.linearise(torch.nn.RNN(1, 4, batch_first=True), torch.ones(2, 5, 1))
        >>> error = torch.zeros(2, 5, 4)
        >>> error[:, 4] = 1.0
        >>> truncated_back_propagation(lin, 2).credit(error).abs().amax((0, 2)) > 0
        tensor([False, False, False, False,  True])
    """
    credit = Propagator(windowed(linearisation, window)).T
    J = ImmediateJacobian(linearisation)
    return LearningRule(f"back-propagation through {window} steps", Propagator(linearisation), J, credit)


def local_learning(linearisation: Linearisation) -> LearningRule:
    """No credit is propagated back: Q = I and G = P K, as in e-prop-like rules. G is not symmetric.

    Example:
        >>> import kpflow as kp
        >>> lin = kp.linearise(torch.nn.RNN(1, 4, batch_first=True), torch.ones(2, 5, 1))
        >>> local_learning(lin).operator.symmetric
        False
    """
    P, J = Propagator(linearisation), ImmediateJacobian(linearisation)
    return LearningRule("no back-propagation", P, J, Identity(linearisation.space))


def feedback_alignment(
    linearisation: Linearisation, weights: list[Tensor] | None = None, generator: torch.Generator | None = None
) -> LearningRule:
    """Random feedback in the adjoint: Q = P̂ᵀ, whose steps have weights B in the place of the recurrent W.

    The slopes of the activations and the leak or gates are the network's own. A read-out with random feedback is a
    matter of the error ∂L/∂S that the rule is handed.

    Args:
        linearisation: Of a recurrent network with known weights.
        weights: B of each layer, of the shape of its recurrent weights; None for random ones of their size.
        generator: Draws them; a fresh one with seed 0 if None.

    Raises:
        ValueError: The linearisation is that of a graph or of an unknown step, or a shape does not fit.

    Example:
        >>> import kpflow as kp
        >>> rnn = torch.nn.RNN(1, 4, batch_first=True)
        >>> lin = kp.linearise(rnn, torch.ones(2, 5, 1))
        >>> own = feedback_alignment(lin, [rnn.weight_hh_l0.detach()])
        >>> torch.allclose(own.credit(torch.ones(2, 5, 4)), kp.Propagator(lin).T(torch.ones(2, 5, 4)))
        True
    """
    credit = Propagator(fed_back(linearisation, weights, generator)).T
    return LearningRule("feedback alignment", Propagator(linearisation), ImmediateJacobian(linearisation), credit)


def functional_descent(linearisation: Linearisation) -> LearningRule:
    """The states are moved as if every one had parameters of its own: K = I and G = P Pᵀ.

    Example:
        >>> import kpflow as kp
        >>> lin = kp.linearise(torch.nn.RNN(1, 4, batch_first=True), torch.ones(2, 5, 1))
        >>> functional_descent(lin).predicted_loss_change(torch.ones(2, 5, 4)) < 0
        True
    """
    P = Propagator(linearisation)
    return LearningRule("functional descent", P, None, P.T)


def natural_gradient(
    linearisation: Linearisation,
    damping: float,
    loss: Callable[[Tensor], Tensor] | None = None,
    *,
    of: str = "states",
    tolerance: float = 1e-8,
) -> LearningRule:
    """Damped Gauss–Newton, or natural gradient: M = (F + λ)⁻¹ with F = Jᵀ H J, J = dy/dθ and H = ∂²L/∂y².

    y are the states or the outputs. H is the Fisher information of y where the loss is a log-likelihood whose curvature
    does not depend on its targets: the identity for squared errors and diag p − p pᵀ for the cross-entropy of a softmax
    p, with the loss's weights, masks and means. Then this is the natural gradient; for other losses it is Gauss–Newton,
    which needs H ≥ 0, as convex losses have. Without a loss H = 1, so that G = NTK (NTK + λ)⁻¹.

    Every product solves a system by conjugate gradients. `kpflow.optim.NaturalGradient` trains with the same steps.

    Args:
        linearisation: The linearised state equation.
        damping: λ > 0, in units of F.
        loss: From y, batch first, to a scalar.
        of: "states" or "outputs".
        tolerance: Of the systems, relative.

    Raises:
        ValueError: A number is not positive; the loss is linear in y, or no finite scalar that depends on it; `of` is
            another, or the model has no outputs.
        FloatingPointError: When applied: F is not positive, or λ too small for conjugate gradients.

    Example:
        >>> import kpflow as kp
        >>> x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)).double()
        >>> lin = kp.linearise(torch.nn.Linear(2, 1).double(), x)
        >>> rule = natural_gradient(lin, 1e-9, lambda y: (y - 1).square().sum() / 2, of="outputs")
        >>> y = lin.readout.outputs
        >>> torch.allclose(y - rule.operator(y - 1), torch.ones_like(y))  # one step to the least squares
        True
    """
    check_positive("damping", damping)
    jacobian, at = _moved(linearisation, of)
    curvature = None if loss is None else loss_curvature(loss, at, jacobian.out_space)
    inverse = Resolvent(Gram(jacobian.T, curvature), damping, tolerance)
    return preconditioned(linearisation, inverse, f"natural gradient, damping {damping:g}", of=of)


def preconditioned(
    linearisation: Linearisation, metric: Tensor | Operator, name: str = "preconditioned descent", *, of: str = "states"
) -> LearningRule:
    """Descent in a metric M: G = P J M Jᵀ Pᵀ. For Adam, M = diag 1/(√v + ε) of its second moments v.

    Args:
        linearisation: The linearised state equation.
        metric: M, a symmetric operator on parameter space, or a tensor of its shape for a diagonal; it need not be
            positive.
        name: In words.
        of: "states", or "outputs" for a rule that moves these: the read-out's own parameters count.

    Raises:
        TypeError: `metric` is neither.
        ValueError: It does not fit the parameters, or is not symmetric; the model has no outputs.

    Example:
        >>> import kpflow as kp
        >>> lin = kp.linearise(torch.nn.RNN(1, 4, batch_first=True), torch.ones(2, 5, 1))
        >>> rates = torch.full((lin.parameters.size,), 0.5)
        >>> error = torch.ones(2, 5, 4)
        >>> torch.allclose(preconditioned(lin, rates).operator(error), 0.5 * kp.Ntk(lin)(error))
        True
    """
    on_parameters = metric_on(linearisation.parameters, metric)
    jacobian, _ = _moved(linearisation, of)
    if of == "outputs":
        identity = Identity(jacobian.out_space)
        return LearningRule(name, identity, jacobian, identity, on_parameters)
    P = Propagator(linearisation)
    return LearningRule(name, P, ImmediateJacobian(linearisation), P.T, on_parameters)


def _moved(linearisation: Linearisation, of: str) -> tuple[Operator, Tensor]:
    """dy/dθ and y, of states or outputs."""
    check_one_of("of", of, ("states", "outputs"))
    if of == "states":
        return StateJacobian(linearisation), linearisation.states
    if linearisation.readout is None:
        raise ValueError('The model has no outputs. Take the rule of its states, of="states".')
    return OutputJacobian(linearisation, linearisation.readout), linearisation.readout.outputs
