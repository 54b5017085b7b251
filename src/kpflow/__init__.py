"""kpflow: why gradient descent finds the dynamics it finds.

A model's state S solves S = F(S, x, θ); a gradient step moves it by dS = −η P K Pᵀ ∂L/∂S, with the propagator
P = (I − ∂F/∂S)⁻¹ and the parameter kernel K = J Jᵀ, J = ∂F/∂θ. The map of the package:

    states     models → linearised state equations      linearise
    operators  linear algebra without matrices          Operator and its closed algebra
    flow       states + operators → the theory          Propagator, ParameterKernel, Ntk, cores, response
    estimate   operators → numbers with error bars      trace, effective_rank, alignment, modes, ...
    dynamics   recurrent steps → fixed points, normal forms
    tasks      inputs, targets, masks, epochs, conditions
    optim      NaturalGradient, and forecasts of learning
    gallery    small learning systems with known answers
    study      training runs on disk: recorder, analysis of checkpoints (extra `study`)
    plots      figures of an analysis (extra `study`)
    report     one self-contained HTML page from an analysis (extra `study`)

The last five are imported when they are first used.
"""

import importlib
from types import ModuleType

from . import dynamics, estimate, flow, operators, states, tasks
from .flow import Ntk, ParameterKernel, Propagator
from .spaces import Part, Space
from .states import linearise

__version__ = "0.1.0"

__all__ = [
    "Ntk",
    "ParameterKernel",
    "Part",
    "Propagator",
    "Space",
    "dynamics",
    "estimate",
    "flow",
    "linearise",
    "operators",
    "states",
    "tasks",
]

LATER = ("gallery", "optim", "plots", "report", "study")


def __getattr__(name: str) -> ModuleType:
    if name not in LATER:
        raise AttributeError(f"module 'kpflow' has no attribute {name!r}")
    return importlib.import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return [*__all__, *LATER]
