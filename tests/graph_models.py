"""The table of models that the graph route must work for."""

import functools

import torch
from torch import Tensor, nn

import kpflow as kp
from graph_attention import ATTENTION, LANGUAGE
from graph_cases import GraphCase, Table, made, ready
from graph_dynamics import RECURRENT, STATE_SPACE
from graph_layers import LAYERS, OPERATIONS, WEIGHTS
from kpflow.states.graph import GraphLinearisation
from models import randn

__all__ = ["GRAPH_MODELS", "graph_case", "linearised_case", "linearised_graph"]


def view_as_complex(m: nn.Module, x: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(m.rate) * torch.complex(m.first(x), x)).flatten(1)


X = randn(4, 3, seed=1)

OTHERS: Table = {
    "view-as-complex": lambda: ready(made(view_as_complex, first=nn.Linear(3, 3, bias=False), rate=(3, 2)), X),
}
"""Models that need the parameters in a way of their own."""

GRAPH_MODELS: Table = {**LAYERS, **WEIGHTS, **OPERATIONS, **ATTENTION, **LANGUAGE, **RECURRENT, **STATE_SPACE, **OTHERS}


@functools.cache
def graph_case(name: str) -> GraphCase:
    """A model of the table; tests leave it as it is."""
    return GRAPH_MODELS[name]()


@functools.cache
def linearised_graph(name: str) -> GraphLinearisation:
    """The linearisation of a model of the table, made once."""
    return linearised_case(graph_case(name))


def linearised_case(case: GraphCase) -> GraphLinearisation:
    lin = kp.linearise(case.model, case.inputs, route="graph")
    assert isinstance(lin, GraphLinearisation)
    return lin
