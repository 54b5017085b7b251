"""Models → linearised state equations."""

from . import cells
from .base import Linearisation, LinearSite, Readout, Site, Trials
from .linearise import linearise

__all__ = ["LinearSite", "Linearisation", "Readout", "Site", "Trials", "cells", "linearise"]
