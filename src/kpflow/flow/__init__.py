"""States and operators → the theory: P, K, NTK = P K Pᵀ, their cores, and what a step of learning does."""

from . import truncation
from .bounds import RankBounds, rank_bounds
from .channels import Channels, FieldComparison, channels
from .charges import Charges, find_charges
from .core import Core
from .cores import cores
from .finite_steps import finite_step_kernel, finite_step_rates, modified_flow, modified_gradient_flow
from .gate_cores import GateCore
from .infinite_width import (
    InfinitePerceptron,
    InfiniteRecurrent,
    expectations,
    infinite_perceptron,
    infinite_recurrent,
)
from .jacobians import ImmediateJacobian, OutputJacobian, StateJacobian
from .ntk import Ntk
from .objectives import Objectives, objectives
from .parameter import ParameterKernel
from .propagator import Generator, Propagator
from .response import Response, response
from .rules import (
    LearningRule,
    back_propagation,
    feedback_alignment,
    functional_descent,
    local_learning,
    natural_gradient,
    preconditioned,
    truncated_back_propagation,
)
from .separability import Conditions, Dominance, Separability, conditions, critical_propagator, crosstalk
from .site_cores import JointCore, SiteCore
from .teacher_forcing import Forcing, forcing, teacher_forced

__all__ = [
    "Channels",
    "Charges",
    "Conditions",
    "Core",
    "Dominance",
    "FieldComparison",
    "Forcing",
    "GateCore",
    "Generator",
    "ImmediateJacobian",
    "InfinitePerceptron",
    "InfiniteRecurrent",
    "JointCore",
    "LearningRule",
    "Ntk",
    "Objectives",
    "OutputJacobian",
    "ParameterKernel",
    "Propagator",
    "RankBounds",
    "Response",
    "Separability",
    "SiteCore",
    "StateJacobian",
    "back_propagation",
    "channels",
    "conditions",
    "cores",
    "critical_propagator",
    "crosstalk",
    "expectations",
    "feedback_alignment",
    "find_charges",
    "finite_step_kernel",
    "finite_step_rates",
    "forcing",
    "functional_descent",
    "infinite_perceptron",
    "infinite_recurrent",
    "local_learning",
    "modified_flow",
    "modified_gradient_flow",
    "natural_gradient",
    "objectives",
    "preconditioned",
    "rank_bounds",
    "response",
    "teacher_forced",
    "truncated_back_propagation",
    "truncation",
]
