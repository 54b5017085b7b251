"""Optimisers that know the curvature that P and K make, and what descent will do while it stays as it is."""

from .forecast import Forecast, forecast
from .natural import NaturalGradient

__all__ = ["Forecast", "NaturalGradient", "forecast"]
