"""States and operators → the theory: P, K, NTK = P K Pᵀ, their cores, and what a step of learning does."""

from .cores import Core, cores
from .jacobians import ImmediateJacobian, OutputJacobian, StateJacobian
from .ntk import Ntk
from .parameter import ParameterKernel
from .propagator import Generator, Propagator
from .response import Response, response

__all__ = [
    "Core",
    "Generator",
    "ImmediateJacobian",
    "Ntk",
    "OutputJacobian",
    "ParameterKernel",
    "Propagator",
    "Response",
    "StateJacobian",
    "cores",
    "response",
]
