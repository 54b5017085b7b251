"""Roots that several searches came to are one; and whether the index sum of those found is that of all."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .maps import StaticMap
from .points import IndexVerdict
from .searches import Searched

__all__ = ["NEAR_ONE", "PIECE_ENTRIES", "SLOW_APART", "bounds", "distinct", "index"]

PIECE_ENTRIES = 2**22
"""Entries of the Jacobians that are kept at once: seeds are searched from in pieces."""

COARSE = 1e-3
"""The most that an error bound may merge, relative to 1 + ‖h‖: at a singular I − J it would be infinite."""

SLOW_APART = 1e-3
"""Slow points that are nearer, relative to 1 + ‖h‖, are one: a minimum of q is known to the root of rounding only."""

NEAR_ONE = 1e-6
"""|1 − μ| below which the sign of det(I − J) is not trusted: at a double root it is about √tolerance."""


def bounds(mapping: StaticMap, states: Float[Tensor, "k H"]) -> Float[Tensor, "k"]:
    """2‖(I − J)⁻¹ (F(h) − h)‖, twice that where I − J is nearly singular, at most COARSE (1 + ‖h‖).

    At a triple root, such as a pitchfork, Newton's step is a third of the distance.
    """
    most = COARSE * (1 + states.norm(dim=1))
    found = []
    for piece in states.split(max(1, PIECE_ENTRIES // states.shape[1] ** 2)):
        values, jacobians = mapping.linearised(piece)
        eye = torch.eye(piece.shape[1], dtype=piece.dtype, device=piece.device)
        offset = torch.linalg.solve_ex(eye - jacobians, (values - piece)[:, :, None])[0]
        size, distance = (values - piece).norm(dim=1), offset[:, :, 0].norm(dim=1)
        found.append(torch.where(NEAR_ONE * distance > size, 4 * distance, 2 * distance))
    return torch.minimum(torch.cat(found).nan_to_num(nan=torch.inf), most)


def distinct(
    found: Searched, kept: Tensor, radii: Float[Tensor, "m"], apart: float
) -> tuple[Int[Tensor, "k"], Int[Tensor, "m"]]:
    """Where the distinct ones of the kept states are, the best residuals first, and the one of each kept state."""
    at = kept.nonzero()[:, 0]
    best_first = found.residual[at].argsort(stable=True)
    at, radii = at[best_first], radii[best_first]
    states = found.states[at]
    reach = radii + apart * (1 + states.norm(dim=1))
    labels = torch.full_like(at, -1)
    chosen: list[int] = []
    while bool((labels < 0).any()):
        best = int((labels < 0).nonzero()[0])
        near = (states - states[best]).norm(dim=1) <= reach + radii[best]
        labels[near & (labels < 0)] = len(chosen)
        chosen.append(best)
    return at[chosen], labels[at.argsort()]


def index(jacobians: Tensor, multipliers: Tensor, bounded: bool) -> tuple[int, IndexVerdict]:
    """Σ sign det(I − J), and what it tells."""
    eye = torch.eye(jacobians.shape[-1], dtype=jacobians.dtype, device=jacobians.device)
    total = int(torch.linalg.slogdet(eye - jacobians)[0].sum())
    if not bounded:
        return total, IndexVerdict.NOT_APPLICABLE
    if bool(((1 - multipliers).abs() < NEAR_ONE).any()):
        return total, IndexVerdict.SINGULAR
    return total, IndexVerdict.CONSISTENT if total == 1 else IndexVerdict.MISSING
