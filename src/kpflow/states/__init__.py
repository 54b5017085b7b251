"""Models → linearised state equations."""

from . import cells
from .base import Linearisation, LinearSite, Readout, Site, Trials
from .equilibrium import EquilibriumLinearisation
from .linearise import linearise

__all__ = [
    "EquilibriumLinearisation",
    "LinearSite",
    "Linearisation",
    "Readout",
    "Site",
    "Trials",
    "cells",
    "linearise",
]
