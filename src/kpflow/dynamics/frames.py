"""Frames: K orthonormal vectors for each trial, moved by Jacobians and made orthonormal again.

A frame is a block `[K, B, H]` of probes, as the products of `kpflow.states` take them; R has shape `[B, K, K]`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .trajectories import Segment

__all__ = ["carried", "check_range_of", "logarithms", "orthonormal", "random_frame", "spread"]

Frame = Float[Tensor, "K B H"]
Triangle = Float[Tensor, "B K K"]


def random_frame(columns: int, like: Float[Tensor, "B H"], generator: torch.Generator) -> Frame:
    """Orthonormal columns in directions that no symmetry knows."""
    noise = torch.randn(*like.shape, columns, generator=generator, dtype=like.dtype, device=like.device)
    return orthonormal(noise.permute(2, 0, 1))[0]


def orthonormal(block: Frame) -> tuple[Frame, Triangle]:
    """M = Q R with a diagonal of R ≥ 0, unique where M has full rank."""
    q, r = torch.linalg.qr(block.permute(1, 2, 0))
    signs = torch.where(r.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0)  # [B, K]
    return (q * signs[:, None]).permute(2, 0, 1).contiguous(), r * signs[:, :, None]


def carried(segment: Segment, start: int, stop: int, frame: Frame) -> tuple[Frame, Triangle]:
    """Q R = J_{stop−1} … J_start Q₀; times are those of the segment, and few: see `spread`."""
    for step in range(start, stop):
        frame = segment.product(step, frame)
    return orthonormal(frame)


def spread(triangle: Triangle) -> float:
    """log of the largest column over the smallest R_ii, the worst of all trials: R_ii is known to ε times that."""
    diagonal = triangle.diagonal(dim1=1, dim2=2).amin(dim=1)
    worst = (triangle.norm(dim=1).amax(dim=1) / diagonal).max()
    return float(worst.log())  # NaN and inf where R is not finite or singular


def logarithms(triangle: Triangle, width: int) -> Float[Tensor, "B K"]:
    """log R_ii; −inf where R_ii cannot be told from 0, since the Jacobian is singular to rounding."""
    diagonal = triangle.diagonal(dim1=1, dim2=2)
    least = width * torch.finfo(triangle.dtype).eps * triangle.norm(dim=1).amax(dim=1, keepdim=True)
    return torch.where(diagonal > least, diagonal, 0.0).log()


def check_range_of(triangle: Triangle, step: int) -> None:
    """Refuse a Jacobian that is not finite, and say where it is."""
    bad = ~torch.isfinite(triangle).all(dim=2).all(dim=1)
    if bool(bad.any()):
        raise ValueError(
            f"`step` has no finite derivative at step {step} of trial {int(bad.nonzero()[0])}. It must be smooth along "
            "the trajectory (no square root at 0, no norm of 0), and its Jacobian within the floating range."
        )
