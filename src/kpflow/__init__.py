"""kpflow: why gradient descent finds the dynamics it finds.

A model's state S solves S = F(S, x, θ); a step of gradient descent moves it by dS = −η P K Pᵀ ∂L/∂S.
"""

from . import operators
from .spaces import Part, Space

__all__ = ["Part", "Space", "operators"]
