"""States and operators → the theory: P, K, NTK = P K Pᵀ, their cores, and what a step of learning does."""

from .core import Core
from .cores import cores
from .gate_cores import GateCore
from .jacobians import ImmediateJacobian, OutputJacobian, StateJacobian
from .ntk import Ntk
from .objectives import Objectives, objectives
from .parameter import ParameterKernel
from .propagator import Generator, Propagator
from .response import Response, response
from .site_cores import JointCore, SiteCore

__all__ = [
    "Core",
    "GateCore",
    "Generator",
    "ImmediateJacobian",
    "JointCore",
    "Ntk",
    "Objectives",
    "OutputJacobian",
    "ParameterKernel",
    "Propagator",
    "Response",
    "SiteCore",
    "StateJacobian",
    "cores",
    "objectives",
    "response",
]
