"""Linearisation: the recorded states of a model, and the linear maps around them."""

import abc
import dataclasses
from typing import final

from jaxtyping import Float, Int
from torch import Tensor

from kpflow.spaces import Space

__all__ = ["LinearSite", "Linearisation", "Readout", "Site", "Trials"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """A weight site: where a weight acts, and on what.

    The weights W (side by side, biases as columns) turn the features m into gates a = W m, and the gates move the state
    at once: dS[b, t, offset + r·H + h] = Σ_g slope[b, t, r, g, h] (mixing da[b, t, g])[h]. The site's part of K is
    D (M Mᵀ ⊗ I) Dᵀ, with M the features as a `[B·T, F]` matrix and D slope and mixing.

    Args:
        features: M, what the weights see, shape `[B, T, F]`.
        slope: Shape `[B, T, R, G, H]` for G gates that move R blocks of H state entries.
        offset: Where the R·H state entries start on the unit axis.
        parameters: Names of the parameters, in the order of the features' columns.
        gates: One name a gate.
        mixing: Shape `[H, U]` from the U units of a gate to H state entries; None for the identity.
    """

    features: Float[Tensor, "B T F"]
    slope: Float[Tensor, "B T R G H"]
    offset: int
    parameters: tuple[str, ...]
    gates: tuple[str, ...]
    mixing: Float[Tensor, "H U"] | None = None


@final
@dataclasses.dataclass(frozen=True, eq=False)
class LinearSite:
    """A weight that acts linearly: a change dW moves the state's entry places[n, g, u] by Σ_f M[g, n, f] dW[g, u, f].

    N positions (trials and times or places), G groups that do not meet (of a convolution, channels of a norm), U units
    that see the same: the part of K is ⊕_g (M_g M_gᵀ) ⊗ I_U.

    Args:
        features: M, what the weight sees, shape `[G, N, F]`.
        places: Numbers of the state's entries on its flat axis, shape `[N, G, U]`.
        parameters: Names of the parameters that the weight is made of.
        entries: Numbers of the entries of its one parameter that the weight's entries are, shape `[G, U, F]`; None for
            a weight that is computed from parameters (weight norm, low-rank adaptation).
    """

    features: Float[Tensor, "G N F"]
    places: Int[Tensor, "N G U"]
    parameters: tuple[str, ...]
    entries: Int[Tensor, "G U F"] | None


class Readout(abc.ABC):
    """The map y = g(S, θ) from states and parameters to the model's outputs, linearised."""

    outputs: Float[Tensor, "..."]
    """y, as the model gives it with the batch first."""

    space: Space
    """The space of y."""

    @property
    @abc.abstractmethod
    def has_parameters(self) -> bool:
        """Whether any trainable parameter acts on y directly, and not only through the states."""

    @abc.abstractmethod
    def state_jvp(self, state: Tensor) -> Tensor:
        """∂g/∂S · state, blocks `[S, *state shape]` to `[S, *output shape]`."""

    @abc.abstractmethod
    def state_vjp(self, output: Tensor) -> Tensor:
        """(∂g/∂S)ᵀ · output."""

    @abc.abstractmethod
    def parameter_jvp(self, parameter: Tensor) -> Tensor:
        """∂g/∂θ · parameter, blocks `[S, P]` to `[S, *output shape]`: the read-out's own parameters."""

    @abc.abstractmethod
    def parameter_vjp(self, output: Tensor) -> Tensor:
        """(∂g/∂θ)ᵀ · output."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Trials:
    """Which trial each entry belongs to, for states and outputs whose trials do not meet.

    Args:
        count: B.
        states: Trial of every entry of the flattened state.
        outputs: Trial of every entry of the flattened outputs; None without outputs.
    """

    count: int
    states: Int[Tensor, " N"]
    outputs: Int[Tensor, " O"] | None


class Linearisation(abc.ABC):
    """The state equation S = F(S, x, θ) of a model at its recorded states, linearised.

    With L = ∂F/∂S and J = ∂F/∂θ (S on the right held fixed), P = (I − L)⁻¹ and dS = P J dθ. Every method takes a block
    of probes `[S, *shape]` and does them together.
    """

    states: Tensor
    """The recorded states; `[B, T, H]` on the recurrent route."""

    space: Space
    """The space of the states."""

    parameters: Space
    """The space of the trainable parameters, by name on one flat axis."""

    readout: Readout | None
    """The map from states to the model's outputs, if the model has one."""

    @property
    @abc.abstractmethod
    def core(self) -> Space:
        """The space of the core C, a factor of K = J Jᵀ = C Cᵀ that may be smaller than J."""

    @abc.abstractmethod
    def peak_bytes(self, probes: int) -> int:
        """Predicted bytes of a product with so many probes, at most: the Jacobians, the block, its result, between."""

    @abc.abstractmethod
    def propagate(self, state: Tensor) -> Tensor:
        """P q."""

    @abc.abstractmethod
    def propagate_adjoint(self, state: Tensor) -> Tensor:
        """Pᵀ q: back-propagation of q through the states."""

    @abc.abstractmethod
    def residual(self, state: Tensor) -> Tensor:
        """P⁻¹ q = q − ∂F/∂S q."""

    @abc.abstractmethod
    def residual_adjoint(self, state: Tensor) -> Tensor:
        """P⁻ᵀ q."""

    @abc.abstractmethod
    def parameter_jvp(self, parameter: Tensor) -> Tensor:
        """J v, blocks `[S, P]` to `[S, *state shape]`."""

    @abc.abstractmethod
    def parameter_vjp(self, state: Tensor) -> Tensor:
        """Jᵀ q, blocks `[S, *state shape]` to `[S, P]`."""

    @abc.abstractmethod
    def state_jvp(self, parameter: Tensor) -> Tensor:
        """dS/dθ v = P J v, fused."""

    @abc.abstractmethod
    def state_vjp(self, state: Tensor) -> Tensor:
        """(dS/dθ)ᵀ q = Jᵀ Pᵀ q, fused."""

    @abc.abstractmethod
    def core_jvp(self, core: Tensor) -> Tensor:
        """C c, blocks `[S, *core shape]` to `[S, *state shape]`, with C Cᵀ = J Jᵀ to rounding."""

    @abc.abstractmethod
    def core_vjp(self, state: Tensor) -> Tensor:
        """Cᵀ q."""

    @abc.abstractmethod
    def state_core_jvp(self, core: Tensor) -> Tensor:
        """P C c, fused."""

    @abc.abstractmethod
    def state_core_vjp(self, state: Tensor) -> Tensor:
        """Cᵀ Pᵀ q, fused."""

    @abc.abstractmethod
    def sites(self) -> dict[str, Site]:
        """The weight sites of a recurrent network by name; empty where a step is known by autodiff only."""

    @abc.abstractmethod
    def linear_sites(self) -> dict[str, tuple[LinearSite, ...]] | None:
        """The weights that act on each state of a graph; None on the recurrent route.

        The parameters `loose` act in other ways too.
        """

    @property
    @abc.abstractmethod
    def loose(self) -> tuple[str, ...]:
        """The parameters that act in a way that is known by automatic differentiation only, on a graph's states."""

    @abc.abstractmethod
    def trials(self) -> Trials | None:
        """The trial of every entry of the states and outputs; None where trials meet in P or in the read-out."""
