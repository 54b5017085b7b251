"""What a model of the graph route's table is: a module with its inputs in float64, and how such are made."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from models import seeded

__all__ = ["GraphCase", "Made", "Table", "integers", "made", "outputs_of", "ready"]


@dataclasses.dataclass(frozen=True)
class GraphCase:
    """A model and its inputs.

    Args:
        loose: The parameters whose use is known by automatic differentiation only.
        tolerance: To which identities hold; larger for a model that computes in float32 inside.
    """

    model: nn.Module
    inputs: Any
    loose: tuple[str, ...] = ()
    tolerance: float = 1e-10

    def outputs(self) -> Tensor:
        return outputs_of(self.model, self.inputs)


Table = dict[str, Callable[[], GraphCase]]


class Made(nn.Module):
    """A module with some parts and a forward pass that is a function of it and its inputs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def made(function: Callable[..., Any], **parts: nn.Module | tuple[int, ...] | Tensor) -> nn.Module:
    """A module whose parts are modules, parameters (given by their shapes) and buffers (given as tensors)."""
    module = Made(function)
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            module.add_module(name, part)
        elif isinstance(part, Tensor):
            module.register_buffer(name, part)
        else:
            module.register_parameter(name, nn.Parameter(torch.zeros(part)))
    return module


def ready(model: nn.Module, inputs: Any, loose: tuple[str, ...] = (), scale: float = 0.6) -> GraphCase:
    """A case in float64 and evaluation mode, with weights and statistics from a local generator."""
    model = seeded(model, scale=scale)
    generator = torch.Generator().manual_seed(7)
    for name, buffer in model.named_buffers():
        noise = torch.randn(buffer.shape, generator=generator, dtype=torch.float64)
        if name.endswith("running_mean"):
            buffer.copy_(noise)
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + noise.square())
        elif name.endswith(("0._u", "0._v")):  # of spectral normalisation
            buffer.copy_(noise / noise.norm())
    return GraphCase(model, inputs, loose)


def integers(high: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def outputs_of(model: nn.Module, inputs: Any) -> Tensor:
    """The first floating-point tensor that the model gives."""
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    result = model(**inputs) if isinstance(inputs, dict) else model(*given)
    return next(leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point())
