"""The derivatives of states and outputs with respect to parameters, as operators."""

import dataclasses
from collections.abc import Sequence
from typing import final

from torch import Tensor

from kpflow.operators import Function, Operator, Restriction
from kpflow.spaces import Space
from kpflow.states import Linearisation, Readout

__all__ = [
    "ImmediateJacobian",
    "OutputJacobian",
    "StateJacobian",
    "immediate_core",
    "restricted",
    "state_core",
]


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ImmediateJacobian(Operator):
    """J = ∂F/∂θ: what a change of the parameters does to the states at once, the states that F reads held fixed."""

    linearisation: Linearisation

    @property
    def in_space(self) -> Space:
        return self.linearisation.parameters

    @property
    def out_space(self) -> Space:
        return self.linearisation.space

    @property
    def symmetric(self) -> bool:
        return False

    def _apply(self, vector: Tensor) -> Tensor:
        return self.linearisation.parameter_jvp(vector)

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        return self.linearisation.parameter_vjp(vector)


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class StateJacobian(Operator):
    """dS/dθ = P J: what a change of the parameters does to the states in the end."""

    linearisation: Linearisation

    @property
    def in_space(self) -> Space:
        return self.linearisation.parameters

    @property
    def out_space(self) -> Space:
        return self.linearisation.space

    @property
    def symmetric(self) -> bool:
        return False

    def _apply(self, vector: Tensor) -> Tensor:
        return self.linearisation.state_jvp(vector)

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        return self.linearisation.state_vjp(vector)


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class OutputJacobian(Operator):
    """dy/dθ = ∂g/∂S P J + ∂g/∂θ, for outputs y = g(S, θ): the read-out's own parameters count."""

    linearisation: Linearisation
    readout: Readout

    @property
    def in_space(self) -> Space:
        return self.linearisation.parameters

    @property
    def out_space(self) -> Space:
        return self.readout.space

    @property
    def symmetric(self) -> bool:
        return False

    def _apply(self, vector: Tensor) -> Tensor:
        through_states = self.readout.state_jvp(self.linearisation.state_jvp(vector))
        return through_states + self.readout.parameter_jvp(vector)

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        through_states = self.linearisation.state_vjp(self.readout.state_vjp(vector))
        return through_states + self.readout.parameter_vjp(vector)


def immediate_core(linearisation: Linearisation) -> Operator:
    """C with C Cᵀ = J Jᵀ: J on a smaller space, the gates' features side by side at their numerical rank."""
    return Function(linearisation.core_jvp, linearisation.core_vjp, linearisation.core, linearisation.space)


def state_core(linearisation: Linearisation) -> Operator:
    """P C with C Cᵀ = J Jᵀ, so that NTK = (P C)(P C)ᵀ."""
    return Function(linearisation.state_core_jvp, linearisation.state_core_vjp, linearisation.core, linearisation.space)


def restricted(jacobian: Operator, params: Sequence[str] | None) -> Operator:
    """The Jacobian with respect to the parameters named in `params` only; None for all."""
    if params is None:
        return jacobian
    known = [part.name for part in jacobian.in_space.parts]
    names = [params] if isinstance(params, str) else list(params)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"`params` must name some of the trainable parameters {known}; got {names}.")
    return jacobian @ Restriction(jacobian.in_space, parts=names).T
