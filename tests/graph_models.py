"""The table of models that the graph route must work for, and those that are known to be beyond it."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

import kpflow as kp
from graph_attention import ATTENTION, LANGUAGE
from graph_cases import GraphCase, Table, integers, made, ready
from graph_dynamics import RECURRENT, STATE_SPACE
from graph_layers import LAYERS, OPERATIONS, WEIGHTS, operation, tokens
from kpflow.states.graph import GraphLinearisation
from models import randn

__all__ = ["BEYOND", "GRAPH_MODELS", "graph_case", "linearised_case", "linearised_graph"]

GRAPH_MODELS: Table = {**LAYERS, **WEIGHTS, **OPERATIONS, **ATTENTION, **LANGUAGE, **RECURRENT, **STATE_SPACE}


@functools.cache
def graph_case(name: str) -> GraphCase:
    """A model of the table; tests leave it as it is."""
    return (GRAPH_MODELS | {key: build for key, (build, _) in BEYOND.items()})[name]()


@functools.cache
def linearised_graph(name: str) -> GraphLinearisation:
    """The linearisation of a model of the table, made once."""
    return linearised_case(graph_case(name))


def linearised_case(case: GraphCase) -> GraphLinearisation:
    lin = kp.linearise(case.model, case.inputs, route="graph")
    assert isinstance(lin, GraphLinearisation)
    return lin


def view_as_complex(m: nn.Module, x: Tensor) -> Tensor:
    return torch.view_as_real(torch.view_as_complex(m.rate) * torch.complex(m.first(x), x)).flatten(1)


X = randn(4, 3, seed=1)

BEYOND: dict[str, tuple[Callable[[], GraphCase], str]] = {
    "embedding-bag": (
        lambda: tokens(nn.EmbeddingBag(5, 3, mode="mean"), integers(5, 2, 4)),
        "the backward pass of aten._embedding_bag has no derivative, and no pattern is known",
    ),
    "linalg-solve": (
        lambda: operation(lambda h: torch.linalg.inv(torch.eye(3, dtype=h.dtype) + h @ h.mT)),
        "a checked operation of linear algebra brings a token among the inputs of the graph",
    ),
    "embedding-scaled-gradient": (
        lambda: tokens(nn.Embedding(5, 3, scale_grad_by_freq=True), integers(5, 2, 6)),
        "scale_grad_by_freq makes the gradient another thing than the derivative, which J is",
    ),
    "embedding-sparse": (
        lambda: tokens(nn.Embedding(5, 3, sparse=True), integers(5, 2, 6)),
        "sparse gradients are not compared",
    ),
    "view-as-complex": (
        lambda: ready(made(view_as_complex, first=nn.Linear(3, 3, bias=False), rate=(3, 2)), X),
        "torch.view_as_complex refuses a slice of a block at an odd place",
    ),
}
"""Models that do not work, each with the reason."""
