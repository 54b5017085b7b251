"""K, the parameter kernel."""

import functools
from collections.abc import Sequence
from typing import final

from torch import Tensor

from kpflow.operators import Gramian, Operator, Structure
from kpflow.operators.gramian import metric_on
from kpflow.states import Linearisation

from .exact import KernelStructure, chosen_sites
from .jacobians import ImmediateJacobian, immediate_core, restricted

__all__ = ["ParameterKernel"]


@final
class ParameterKernel(Gramian):
    """K = J Jᵀ with J = ∂F/∂θ: what the weights can change at once (arXiv 2605.08746, the Kronecker core).

    For weight matrices K = Σ_sites D (M Mᵀ ⊗ I) Dᵀ, with M what the weights see. It is applied through the sites, two
    matrix products for a block of probes.

    Args:
        linearisation: The linearised state equation.
        params: Names of the parameters that learn; None for all trainable ones.
        metric: M in K = J M Jᵀ: a tensor of the parameters' shape `[P]` for a diagonal (learning rates, or Adam's
            1/(√v + ε)), or a symmetric operator on parameter space; None for the identity.

    Raises:
        ValueError: `params` names an unknown parameter, or `metric` does not act on their space or is not symmetric.

    Example:
        >>> import torch, kpflow as kp
        >>> lin = kp.linearise(torch.nn.GRU(1, 4, batch_first=True), torch.zeros(2, 3, 1))
        >>> K = ParameterKernel(lin, params=["weight_hh_l0"])
        >>> K.jacobian.in_space
        Space(parameter 48 in 1 part, float32)
    """

    def __init__(
        self,
        linearisation: Linearisation,
        params: Sequence[str] | None = None,
        metric: Tensor | Operator | None = None,
    ) -> None:
        self._jacobian = restricted(ImmediateJacobian(linearisation), params)
        self._metric = metric_on(self._jacobian.in_space, metric)
        self._linearisation = linearisation
        self._own_core = params is None and metric is None

    @property
    def jacobian(self) -> Operator:
        """J."""
        return self._jacobian

    @property
    def metric(self) -> Operator | None:
        """M, or None for the identity."""
        return self._metric

    @property
    def structure(self) -> Structure | None:
        """Exact quantities, for a recurrent network without a metric, all of whose sites are known."""
        return self._known_structure

    @functools.cached_property
    def _known_structure(self) -> Structure | None:
        if self._metric is not None:
            return None
        sites = chosen_sites(self._linearisation, [part.name for part in self._jacobian.in_space.parts])
        return None if sites is None else KernelStructure(self._linearisation.space, sites)

    @property
    def factor(self) -> Operator:
        """C with K = C Cᵀ, for all parameters; else J."""
        return self._cheapest

    @functools.cached_property
    def _cheapest(self) -> Operator:
        return immediate_core(self._linearisation) if self._own_core else self._jacobian
