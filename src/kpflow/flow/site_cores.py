"""Cores of graphs: ⊕_g (M_g M_gᵀ) ⊗ I for every weight, and J Jᵀ of parameters that act in several ways."""

import dataclasses
import functools
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpflow.operators import Gram, Gramian, Operator
from kpflow.operators.convert import to_dense
from kpflow.spaces import Space
from kpflow.states import Linearisation, LinearSite

from .core import Core
from .parameter import ParameterKernel

__all__ = ["JointCore", "SiteCore"]


@final
class SiteCore(Core):
    """The core of a weight of a graph, with its biases: its part of K is ⊕_g (M_g M_gᵀ) ⊗ I on the entries it moves.

    A linear layer sees its inputs at all positions, a convolution patches, an embedding tokens (C is their equality), a
    norm's gain the normalised channel. A weight that acts at several states has one core over all of them.

    Args:
        site: What the weight sees and moves.
        space: Of the states.
    """

    def __init__(self, site: LinearSite, space: Space) -> None:
        self.parameters = site.parameters
        self.site = site
        self.space = space

    @property
    def factor(self) -> Float[Tensor, "*G N F"]:
        """M: `[N, F]`, or `[G, N, F]` for G groups (of a convolution, the channels of a norm)."""
        features = self.site.features
        return features[0] if len(features) == 1 else features

    @property
    def multiplicity(self) -> int:
        """U."""
        return self.site.places.shape[2]

    @property
    def places(self) -> Int[Tensor, "N G U"]:
        """Numbers of the state's entries that position n, group g and unit u move."""
        return self.site.places

    @property
    def kernel(self) -> Gramian:
        """⊕_g (M_g M_gᵀ) ⊗ I on the states."""
        return Gram(SiteFactor(self))


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SiteFactor(Operator):
    """M ⊗ I, from weights `[G, U, F]` to the states."""

    core: SiteCore

    @property
    def in_space(self) -> Space:
        G, _, F = self.core.site.features.shape
        space = self.core.space
        return Space.of((G, self.core.multiplicity, F), ("group", "unit", "feature"), space.dtype, space.device)

    @property
    def out_space(self) -> Space:
        return self.core.space

    @property
    def symmetric(self) -> bool:
        return False

    def _apply(self, vector: Tensor) -> Tensor:
        moved = torch.einsum("gnf,sguf->sngu", self.core.site.features, vector)
        state = self.core.space.zeros(len(vector))
        return state.index_add_(1, self.core.places.flatten(), moved.flatten(1))

    def _apply_adjoint(self, vector: Tensor) -> Tensor:
        return torch.einsum("gnf,sngu->sguf", self.core.site.features, vector[:, self.core.places])


@final
class JointCore(Core):
    """The core of parameters that act in several ways, or not linearly: their own J Jᵀ, cross terms included.

    An embedding that is also the unembedding; the parameters of a weight norm or of a low-rank adaptation.

    Args:
        linearisation: The linearised state equation.
        parameters: Names of the parameters.
    """

    def __init__(self, linearisation: Linearisation, parameters: tuple[str, ...]) -> None:
        self.parameters = parameters
        self._kernel = ParameterKernel(linearisation, params=parameters)

    @property
    def factor(self) -> Float[Tensor, "N P"]:
        """J of these parameters as a matrix, made at the first call: one product for each of their entries."""
        return self._factor

    @functools.cached_property
    def _factor(self) -> Tensor:
        return to_dense(self._kernel.jacobian)

    @property
    def multiplicity(self) -> int:
        """1."""
        return 1

    @property
    def kernel(self) -> Gramian:
        """J Jᵀ of these parameters."""
        return self._kernel
