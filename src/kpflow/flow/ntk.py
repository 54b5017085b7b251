"""NTK = P K Pᵀ, the neural tangent kernel of all states, and of the outputs."""

import functools
from collections.abc import Sequence
from typing import final

from torch import Tensor

from kpflow.operators import Function, Gramian, Operator, Structure
from kpflow.operators.gramian import metric_on
from kpflow.states import Linearisation

from .exact import NtkStructure, chosen_sites
from .jacobians import OutputJacobian, StateJacobian, restricted, state_core
from .outputs import output_structure

__all__ = ["Ntk"]


@final
class Ntk(Gramian):
    """NTK = P K Pᵀ = (dS/dθ)(dS/dθ)ᵀ: a step of gradient descent moves the states by −η NTK ∂L/∂S.

    The state-space NTK of arXiv 2605.08746 and 2605.12763. A product is Pᵀ, Jᵀ, J, P in one pass over a block.

    Args:
        linearisation: The linearised state equation.
        params: Names of the parameters that learn; None for all trainable ones.
        metric: M in P J M Jᵀ Pᵀ: a tensor of the parameters' shape `[P]` for a diagonal (learning rates, or Adam's
            1/(√v + ε)), or a symmetric operator on parameter space; None for the identity.
        readout: None for the kernel of the states; "outputs" for that of the model's outputs y = g(S, θ), with Jacobian
            ∂g/∂S P J + ∂g/∂θ, the read-out's own parameters included; or an operator R from states to anything, for
            R P K Pᵀ Rᵀ.

    Raises:
        ValueError: `params`, `metric` or `readout` do not fit the linearisation.

    Example:
        >>> import torch, kpflow as kp
        >>> lin = kp.linearise(torch.nn.GRU(1, 4, batch_first=True), torch.zeros(2, 3, 1))
        >>> ntk = Ntk(lin)
        >>> error = torch.ones(2, 3, 4)
        >>> P, K = kp.Propagator(lin), kp.ParameterKernel(lin)
        >>> torch.allclose(ntk(error), (P @ K @ P.T)(error))
        True
    """

    def __init__(
        self,
        linearisation: Linearisation,
        params: Sequence[str] | None = None,
        metric: Tensor | Operator | None = None,
        readout: str | Operator | None = None,
    ) -> None:
        self._jacobian = restricted(_whole_jacobian(linearisation, readout), params)
        self._metric = metric_on(self._jacobian.in_space, metric)
        self._linearisation = linearisation
        self._readout = readout
        self._own_core = params is None and metric is None

    @property
    def jacobian(self) -> Operator:
        """P J, or the Jacobian of the outputs."""
        return self._jacobian

    @property
    def metric(self) -> Operator | None:
        """M, or None for the identity."""
        return self._metric

    @property
    def structure(self) -> Structure | None:
        """Exact quantities, without a metric: of the states of a recurrent network, of the outputs of a graph.

        All sites must be known, and the trials of a graph independent.
        """
        return self._known_structure

    @functools.cached_property
    def _known_structure(self) -> Structure | None:
        names = [part.name for part in self._jacobian.in_space.parts] if self._metric is None else []
        if self._readout == "outputs" and names:
            return output_structure(self._linearisation, names)
        if self._readout is not None or not names:
            return None
        sites = chosen_sites(self._linearisation, names)
        return None if sites is None else NtkStructure(self._linearisation, sites)

    @property
    def factor(self) -> Operator:
        """P C with K = C Cᵀ, for the states and all parameters; else the Jacobian."""
        return self._cheapest

    @functools.cached_property
    def _cheapest(self) -> Operator:
        return _core(self._linearisation, self._readout) if self._own_core else self._jacobian


def _core(linearisation: Linearisation, readout: str | Operator | None) -> Operator:
    """P C, or R P C; the Jacobian itself where the read-out's own parameters act too."""
    if readout is None:
        return state_core(linearisation)
    if isinstance(readout, Operator):
        return readout @ state_core(linearisation)
    outputs = linearisation.readout
    if outputs is None or outputs.has_parameters:
        return _whole_jacobian(linearisation, readout)
    of_states = Function(outputs.state_jvp, outputs.state_vjp, linearisation.space, outputs.space)
    return of_states @ state_core(linearisation)


def _whole_jacobian(linearisation: Linearisation, readout: str | Operator | None) -> Operator:
    if readout is None:
        return StateJacobian(linearisation)
    if isinstance(readout, Operator):
        return readout @ StateJacobian(linearisation)
    if readout != "outputs":
        raise ValueError(f'`readout` must be None, "outputs" or an operator from states; got {readout!r}.')
    if linearisation.readout is None:
        raise ValueError(
            '`readout` "outputs" needs a model with outputs; a step by itself has states only. '
            "Give an operator from states to outputs instead."
        )
    return OutputJacobian(linearisation, linearisation.readout)
