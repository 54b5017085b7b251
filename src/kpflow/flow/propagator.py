"""P, the linearised flow propagator, and its inverse."""

import dataclasses
from typing import final

from torch import Tensor

from kpflow.operators import Operator
from kpflow.spaces import Space
from kpflow.states import Linearisation

__all__ = ["Generator", "Propagator"]


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Propagator(Operator):
    """P = (I − ∂F/∂S)⁻¹, the response of all states to a kick of the states (arXiv 2507.06381, Proposition 1).

    For a recurrent network (P q)_t = Σ_{s ≤ t} Φ(t, s) q_s with the state transition Φ(t, s) = A_t … A_{s+1}; Pᵀ is
    back-propagation through time: Pᵀ ∂L/∂S is the adjoint state. P is block diagonal over trials and det P = 1.

    Args:
        linearisation: The linearised state equation.

    Example:
        >>> import torch, kpflow as kp
        >>> lin = kp.linearise(torch.nn.RNN(1, 4, batch_first=True), torch.zeros(2, 3, 1))
        >>> P = Propagator(lin)
        >>> P
        Propagator: Space(trial 2 × time 3 × unit 4, float32) → Space(trial 2 × time 3 × unit 4, float32)
        >>> kick = torch.randn(7, 2, 3, 4, generator=torch.Generator().manual_seed(0))
        >>> torch.allclose(P.inverse(P(kick)), kick, atol=1e-5)
        True
    """

    linearisation: Linearisation

    @property
    def inverse(self) -> "Generator":
        """P⁻¹ = I − ∂F/∂S, the Fréchet derivative of the state equation."""
        return Generator(self.linearisation)

    @property
    def in_space(self) -> Space:
        return self.linearisation.space

    @property
    def out_space(self) -> Space:
        return self.linearisation.space

    @property
    def symmetric(self) -> bool:
        return False

    def _apply(self, vector: Tensor) -> Tensor:
        return self.linearisation.propagate(vector)

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        return self.linearisation.propagate_adjoint(vector)


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Generator(Operator):
    """P⁻¹ = I − ∂F/∂S: for a recurrent network (P⁻¹ q)_t = q_t − A_t q_{t−1}; no recursion over time.

    Args:
        linearisation: The linearised state equation.

    Example:
        >>> import torch, kpflow as kp
        >>> generator = Generator(kp.linearise(torch.nn.RNN(1, 4, batch_first=True), torch.zeros(2, 3, 1)))
        >>> states = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(generator(states)[:, 0], states[:, 0])  # nothing comes before the first step
        True
    """

    linearisation: Linearisation

    @property
    def inverse(self) -> Propagator:
        """P."""
        return Propagator(self.linearisation)

    @property
    def in_space(self) -> Space:
        return self.linearisation.space

    @property
    def out_space(self) -> Space:
        return self.linearisation.space

    @property
    def symmetric(self) -> bool:
        return False

    def _apply(self, vector: Tensor) -> Tensor:
        return self.linearisation.residual(vector)

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        return self.linearisation.residual_adjoint(vector)
