"""Optimisers that know the curvature that P and K make: natural gradients from a few products with the Jacobian."""

from .natural import NaturalGradient

__all__ = ["NaturalGradient"]
