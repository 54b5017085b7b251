"""From A = F Fᵀ to FᵀF on the smallest space: the same norm and the same eigenvalues but zeros."""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.operators import Function, Operator
from kpflow.operators.blocks import block_length, ranges
from kpflow.spaces import Space
from kpflow.states import Site

__all__ = ["gram_spectrum", "gram_square", "narrowed"]


def narrowed(jacobian: Operator, sites: Sequence[Site]) -> Operator:
    """F G with the same F Fᵀ, on the smallest of state space, parameter space and core space; F or Fᵀ if that is it.

    What a weight sees, M = U Σ Vᵀ of rank r, makes no difference between changes of the weights that agree on V: F
    vanishes off the range of the isometry G: Y ↦ Y Vᵀ, `[gate rows, r]` to `[gate rows, features]`.
    """
    if not {name for site in sites for name in site.parameters} <= {part.name for part in jacobian.in_space.parts}:
        return _smaller(jacobian)
    bases = [_row_space(site.features.flatten(0, 1)) for site in sites]
    units = [site.slope.shape[4] if site.mixing is None else site.mixing.shape[1] for site in sites]
    rows = [site.slope.shape[3] * count for site, count in zip(sites, units, strict=True)]
    size = sum(row * len(basis) for row, basis in zip(rows, bases, strict=True))
    if size < min(jacobian.in_space.size, jacobian.out_space.size):
        return jacobian @ _isometry(jacobian.in_space, sites, rows, bases)
    return _smaller(jacobian)


def _smaller(jacobian: Operator) -> Operator:
    return jacobian if jacobian.in_space.size <= jacobian.out_space.size else jacobian.T


def _row_space(features: Float[Tensor, "BT F"]) -> Float[Tensor, "r F"]:
    """Orthonormal basis of the span of the rows, up to rounding."""
    _, values, basis = torch.linalg.svd(features.double(), full_matrices=False)
    floor = max(features.shape) * torch.finfo(features.dtype).eps * values[0]
    return basis[: int((values > floor).sum())].to(features)


def _isometry(space: Space, sites: Sequence[Site], rows: Sequence[int], bases: Sequence[Tensor]) -> Operator:
    """G, from the core space to parameters."""
    sizes = [row * len(basis) for row, basis in zip(rows, bases, strict=True)]
    shapes = {part.name: part.shape for part in space.parts}

    def apply(vector: Tensor) -> Tensor:
        named = {name: vector.new_zeros(len(vector), *shape) for name, shape in shapes.items()}
        for site, row, basis, piece in zip(sites, rows, bases, vector.split(sizes, dim=-1), strict=True):
            matrix = piece.unflatten(-1, (row, -1)) @ basis
            widths = [math.prod(shapes[name][1:]) for name in site.parameters]
            for name, block in zip(site.parameters, matrix.split(widths, dim=-1), strict=True):
                named[name] = block.reshape(len(vector), *shapes[name])
        return space.join(named)

    def apply_adjoint(vector: Tensor) -> Tensor:
        named = space.split(vector)
        pieces = []
        for site, row, basis in zip(sites, rows, bases, strict=True):
            matrix = torch.cat([named[name].reshape(len(vector), row, -1) for name in site.parameters], dim=-1)
            pieces.append((matrix @ basis.mT).flatten(1))
        return torch.cat(pieces, dim=-1)

    core = Space.of((sum(sizes),), ("core",), space.dtype, space.device)
    return Function(apply, apply_adjoint, core, space)


def gram_square(factor: Operator) -> float:
    """‖FᵀF‖²_F, a block of its columns at a time."""
    return float(sum(rows.square().sum(dtype=torch.float64) for _, rows in _gram_rows(factor)))


def gram_spectrum(factor: Operator) -> Float[Tensor, " K"]:
    """Eigenvalues of FᵀF, largest first, in float64."""
    size = factor.in_space.size
    gram = torch.empty(size, size, dtype=torch.float64, device=factor.in_space.device)
    for index, rows in _gram_rows(factor):
        gram[index] = rows.double()
    return torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)


def _gram_rows(factor: Operator) -> Iterator[tuple[slice, Float[Tensor, "S K"]]]:
    """Blocks of rows of FᵀF."""
    space = factor.in_space
    for index in ranges(space.size, block_length(max(space.size, factor.out_space.size))):
        unit = torch.zeros(index.stop - index.start, space.size, dtype=space.dtype, device=space.device)
        unit[:, index].fill_diagonal_(1)
        image = factor(unit.reshape(-1, *space.shape))
        yield index, factor.T(image).reshape(len(unit), -1)
