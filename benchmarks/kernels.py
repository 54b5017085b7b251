"""Output NTKs and their traces as one writes them by hand: by the Jacobian, or by the cores of a small network."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from .problems import Problem

__all__ = ["by_contraction", "by_cores", "trace_by_cores", "trace_by_jacobians"]

TRIALS_AT_ONCE = 64
"""Trials whose Jacobians are held at once for the trace."""


def by_contraction(problem: Problem) -> Tensor:
    """NTK[b·o, b'·o'] by contracting Jacobians, as PyTorch's tutorial on neural tangent kernels does: of both sides."""
    first, second = (list(_jacobians(problem, problem.inputs)) for _ in range(2))
    parts = torch.stack([torch.einsum("Naf,Mbf->NMab", a, b) for a, b in zip(first, second, strict=True)])
    kernel = parts.sum(0).transpose(1, 2)  # [N, a, M, b]
    return kernel.flatten(2).flatten(0, 1)


def trace_by_jacobians(problem: Problem) -> float:
    """Σ ‖∂y/∂θ‖² over trials and outputs, some trials at a time."""
    blocks = problem.inputs.split(TRIALS_AT_ONCE)
    return sum(float(part.square().sum(dtype=torch.float64)) for x in blocks for part in _jacobians(problem, x))


def by_cores(problem: Problem) -> Tensor:
    """NTK = (x xᵀ + 1)(G Gᵀ) + (a aᵀ + 1) I for two layers y = W₂ a + b₂, a = relu(W₁ x + b₁), G = W₂ relu'."""
    inputs, hidden, slopes, outward = _two_layers(problem)
    received = (outward * slopes.unsqueeze(1)).flatten(0, 1)  # [N·O, H]
    N, O = len(inputs), len(outward)
    kernel = (received @ received.mT).reshape(N, O, N, O)
    kernel *= (inputs @ inputs.mT + 1)[:, None, :, None]
    kernel.diagonal(dim1=1, dim2=3).add_((hidden @ hidden.mT + 1).unsqueeze(2))
    return kernel.reshape(N * O, N * O)


def trace_by_cores(problem: Problem) -> float:
    """Σ_b (‖x_b‖² + 1) ‖G_b‖² + O (‖a_b‖² + 1)."""
    inputs, hidden, slopes, outward = _two_layers(problem)
    received = slopes.square() @ outward.square().sum(0)  # [N]
    seen, later = (value.square().sum(1) + 1 for value in (inputs, hidden))
    return float((seen * received + len(outward) * later).sum(dtype=torch.float64))


def _jacobians(problem: Problem, inputs: Tensor) -> Iterator[Tensor]:
    """∂y/∂θ by parameter, `[N, O, size]`."""
    values = {name: value.detach() for name, value in problem.model.named_parameters()}

    def outputs(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(problem.model, values, (x.unsqueeze(0),)).squeeze(0)

    return (part.flatten(2) for part in vmap(jacrev(outputs), (None, 0))(values, inputs).values())


def _two_layers(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, a, relu' and W₂."""
    first, _, second = problem.model.children()
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    with torch.no_grad():
        hidden = first(problem.inputs).relu_()
    return problem.inputs, hidden, (hidden > 0).to(hidden), second.weight.detach()
