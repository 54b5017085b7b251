"""Models → linearised state equations."""

from . import cells
from .base import Linearisation, Readout, Site
from .linearise import linearise

__all__ = ["Linearisation", "Readout", "Site", "cells", "linearise"]
