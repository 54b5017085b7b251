"""Optimisers that know the curvature that P and K make, and what descent will do while it stays as it is."""

from .forecast import Forecast, forecast
from .forecast_of_optimizers import forecast_optimizer
from .natural import NaturalGradient

__all__ = ["Forecast", "NaturalGradient", "forecast", "forecast_optimizer"]
