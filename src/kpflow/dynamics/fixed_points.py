"""Fixed points of a recurrent step at a static input, with an index sum that tells when some are missing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpflow._checks import check_finite, check_positive, check_range, check_tensor

from .maps import StaticMap, exact_derivatives, static_map
from .points import FixedPoints, IndexVerdict, SlowPoints, Status, spectrum
from .searches import Searched, search

__all__ = ["find_fixed_points"]

PIECE_ENTRIES = 2**22
"""Entries of the Jacobians that are kept at once: seeds are searched from in pieces."""

COARSE = 1e-3
"""The most that an error bound may merge, relative to 1 + ‖h‖: at a singular I − J it would be infinite."""

SLOW_APART = 1e-3
"""Slow points that are nearer, relative to 1 + ‖h‖, are one: a minimum of q is known to the root of rounding only."""


NEAR_ONE = 1e-6
"""|1 − μ| below which the sign of det(I − J) is not trusted: at a double root it is about √tolerance."""


def find_fixed_points(
    step: Callable[..., Any],
    inputs: Tensor,
    seeds: Tensor,
    *,
    tolerance: float = 1e-12,
    descent: int = 100,
    iterations: int = 200,
    merge: float = 1e-8,
    marginal: float = 1e-3,
    dt: float = 1.0,
    bounded: bool | None = None,
) -> FixedPoints:
    """Solutions of h = F(h), F = step(·, x), from many seeds at once, in float64 whatever the dtype of the model.

    From every seed by itself: Adam on q(h) = ½‖F(h) − h‖², which finds saddles that faster methods leave;
    Levenberg–Marquardt; Newton. States of tanh RNNs, GRUs and LSTMs are kept within |h| ≤ 1, where all their fixed
    points are. Points that are nearer than the sum of their error bounds 2‖(I − J)⁻¹ (F(h) − h)‖,
    plus `merge` (1 + ‖h‖), are one.

    If F maps a ball into itself, then Σ sign det(I − J) = 1 over all its fixed points, if all are regular (Brouwer's
    degree). Another sum shows that some are missing: give more seeds, such as convex mixes of states of trajectories.
    A sum of 1 does not show that all were found.

    Args:
        step: `nn.RNNCell`, `GRUCell`, `LSTMCell`; `nn.RNN`, `GRU`, `LSTM` of one layer; `RateRNN`, `LowRankRNN`; any
            other module or function step(h, x), from h `[n, H]` and x `[n, I]` to `[n, H]`, each row by itself. The
            state of an LSTM is h and c side by side. A module (or that of a bound method) is copied, the copy is cast
            to float64 and evaluated without dropout; the tensors of a function must be float64.
        inputs: The static input x, shape `[I]`.
        seeds: States to start from, shape `[n, H]`.
        tolerance: A root has ‖F(h) − h‖ ≤ tolerance (1 + ‖h‖).
        descent: Steps of Adam.
        iterations: The most steps of Levenberg–Marquardt.
        merge: See above.
        marginal: | |μ| − 1 | below which a point counts as marginal.
        dt: Duration of a step, for time scales.
        bounded: Whether F maps some ball into itself; None for what is known: so do tanh RNNs, GRUs, LSTMs, and leaky
            networks with tanh, sigmoid, erf or atan.

    Returns:
        Fixed points and, apart from them, slow points; how the search from each seed ended.

    Raises:
        TypeError: `inputs` or `seeds` are no floating-point tensors, or the step gives no float64 tensor.
        ValueError: `inputs` is not static, shapes do not fit, `inputs` or `seeds` are not finite, a number is out of
            range, the module has several layers or directions or cannot be copied, the step fails, is random, mixes
            samples or cannot be differentiated.

    References:
        Sussillo and Barak 2013; Golub and Sussillo 2018; Moré 1978 (Levenberg–Marquardt); Milnor 1965 (degree).

    Example:
        >>> points = find_fixed_points(lambda h, x: torch.tanh(2 * h + x), torch.zeros(1), torch.randn(
        ...     20, 1, generator=torch.Generator().manual_seed(0)), bounded=True)
        >>> points.kinds, points.index_sum
        (('stable', 'stable', 'saddle-1'), 1)
        >>> float(points.states.max())
        0.95750402...
    """
    _check_arguments(inputs, seeds)
    _check_numbers(tolerance, descent, iterations, merge, marginal, dt)
    with exact_derivatives():
        starts = seeds.detach().to(torch.float64).clone()
        mapping = static_map(step, inputs.detach().to(torch.float64).clone(), starts)
        if bounded is not None:
            mapping = dataclasses.replace(mapping, bounded=bounded)
        pieces = starts.split(max(1, PIECE_ENTRIES // starts.shape[1] ** 2))
        unit = float(starts.abs().mean(dim=1).median()) or 1.0
        found = _joined([search(mapping, piece, unit, tolerance, descent, iterations) for piece in pieces])
        return _described(mapping, found, merge, marginal, dt)


def _joined(parts: list[Searched]) -> Searched:
    names = [field.name for field in dataclasses.fields(Searched)]
    return Searched(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def _described(mapping: StaticMap, found: Searched, merge: float, marginal: float, dt: float) -> FixedPoints:
    """The tables of roots and of slow points, and who came to them."""
    point = torch.full((len(found.states),), -1, device=found.states.device)
    at, labels = _distinct(found, found.root, _bounds(mapping, found.states[found.root]), merge)
    states = found.states[at]
    jacobians = mapping.linearised(states)[1]
    eigen = spectrum(jacobians)
    order = (eigen.multipliers.abs() > 1).sum(dim=1).argsort(stable=True)
    point[found.root] = order.argsort()[labels]
    slow_at, slow_labels = _distinct(found, found.flat, torch.zeros(int(found.flat.sum())).to(states), SLOW_APART)
    point[found.flat] = slow_labels
    total, verdict = _index(jacobians, eigen.multipliers, mapping.bounded)
    return FixedPoints(
        states[order],
        found.residual[at][order],
        _bounds(mapping, states)[order],
        jacobians[order],
        eigen.multipliers[order],
        eigen.right[order],
        eigen.left[order],
        eigen.condition[order],
        total,
        verdict,
        _slow(mapping, found.states[slow_at], found.residual[slow_at]),
        _statuses(found),
        point,
        float(dt),
        float(marginal),
    )


def _bounds(mapping: StaticMap, states: Float[Tensor, "k H"]) -> Float[Tensor, "k"]:
    """2‖(I − J)⁻¹ (F(h) − h)‖, twice that where I − J is nearly singular, at most COARSE (1 + ‖h‖).

    At a triple root, such as a pitchfork, Newton's step is a third of the distance.
    """
    most = COARSE * (1 + states.norm(dim=1))
    bounds = []
    for piece in states.split(max(1, PIECE_ENTRIES // states.shape[1] ** 2)):
        values, jacobians = mapping.linearised(piece)
        eye = torch.eye(piece.shape[1], dtype=piece.dtype, device=piece.device)
        offset = torch.linalg.solve_ex(eye - jacobians, (values - piece)[:, :, None])[0]
        size, distance = (values - piece).norm(dim=1), offset[:, :, 0].norm(dim=1)
        bounds.append(torch.where(NEAR_ONE * distance > size, 4 * distance, 2 * distance))
    return torch.minimum(torch.cat(bounds).nan_to_num(nan=torch.inf), most)


def _distinct(
    found: Searched, kept: Tensor, radii: Float[Tensor, "m"], apart: float
) -> tuple[Int[Tensor, "k"], Int[Tensor, "m"]]:
    """Where the distinct ones of the kept states are, the best residuals first, and the one of each kept state."""
    index = kept.nonzero()[:, 0]
    index, radii = index[found.residual[index].argsort(stable=True)], radii[found.residual[index].argsort(stable=True)]
    states = found.states[index]
    reach = radii + apart * (1 + states.norm(dim=1))
    labels = torch.full_like(index, -1)
    chosen: list[int] = []
    while bool((labels < 0).any()):
        best = int((labels < 0).nonzero()[0])
        near = (states - states[best]).norm(dim=1) <= reach + radii[best]
        labels[near & (labels < 0)] = len(chosen)
        chosen.append(best)
    return index[chosen], labels[index.argsort()]


def _index(jacobians: Tensor, multipliers: Tensor, bounded: bool) -> tuple[int, IndexVerdict]:
    """Σ sign det(I − J), and what it tells."""
    eye = torch.eye(jacobians.shape[-1], dtype=jacobians.dtype, device=jacobians.device)
    total = int(torch.linalg.slogdet(eye - jacobians)[0].sum())
    if not bounded:
        return total, IndexVerdict.NOT_APPLICABLE
    if bool(((1 - multipliers).abs() < NEAR_ONE).any()):
        return total, IndexVerdict.SINGULAR
    return total, IndexVerdict.CONSISTENT if total == 1 else IndexVerdict.MISSING


def _slow(mapping: StaticMap, states: Tensor, residual: Tensor) -> SlowPoints:
    return SlowPoints(states, residual, spectrum(mapping.linearised(states)[1]).multipliers)


def _statuses(found: Searched) -> tuple[Status, ...]:
    ends = zip(found.root.tolist(), found.flat.tolist(), found.lost.tolist(), strict=True)
    return tuple(
        Status.ROOT if root else Status.SLOW if flat else Status.DIVERGED if lost else Status.MAXITER
        for root, flat, lost in ends
    )


def _check_arguments(inputs: Tensor, seeds: Tensor) -> None:
    for name, value in (("inputs", inputs), ("seeds", seeds)):
        check_tensor(name, value)
    if inputs.ndim != 1:
        raise ValueError(
            f"`inputs` must be one static input, shape (I,); got {tuple(inputs.shape)}. Fixed points belong to one "
            "input: give one step of a sequence, inputs[trial, time]."
        )
    if seeds.ndim != 2 or not seeds.numel():
        raise ValueError(f"`seeds` must be states to start from, shape (n, H), at least one; got {tuple(seeds.shape)}.")
    if inputs.device != seeds.device:
        raise ValueError(f"`inputs` must be on the device of `seeds`, {seeds.device}; got {inputs.device}. Move it.")
    check_finite("inputs", inputs, ("input",))
    check_finite("seeds", seeds, ("seed", "unit"), "Leave such states out.")


def _check_numbers(tolerance: float, descent: int, iterations: int, merge: float, marginal: float, dt: float) -> None:
    check_positive("tolerance", tolerance)
    check_range("descent", descent, 0, integer=True)
    check_range("iterations", iterations, 0, integer=True)
    check_range("merge", merge, 0)
    check_range("marginal", marginal, 0)
    check_positive("dt", dt)
