"""Fixed points of a recurrent step at a static input, with an index sum that tells when some are missing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kpflow._checks import check_generator, check_range

from .arguments import check_search, check_search_numbers
from .certificates import kantorovich
from .deadlines import TIME_LIMIT, deadline_in
from .maps import StaticMap, exact_derivatives, float64_copy, static_map
from .merging import SLOW_APART, bounds, distinct, index
from .points import FixedPoints, SlowPoints, Status, Stop, spectrum
from .rounds import Plan, searched_in_rounds
from .searches import Searched, held

__all__ = ["find_fixed_points"]


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
    flow: bool = False,
    readout: Callable[[Tensor], Tensor] | None = None,
    rounds: int = 8,
    time_limit: float | None = TIME_LIMIT,
    generator: torch.Generator | None = None,
) -> FixedPoints:
    """Solutions of h = F(h), F = step(·, x), from many seeds at once, in float64 whatever the dtype of the model.

    From every seed by itself: Adam on q(h) = ½‖F(h) − h‖², which finds saddles that faster methods leave;
    Levenberg–Marquardt; Newton. States of tanh RNNs, GRUs and LSTMs are kept within |h| ≤ 1, where all their fixed
    points are. GRUs and LSTMs are searched first with gates that hold nothing back, which have the same fixed points
    but not the minima of q where an update or forget gate is almost 1. Points that are nearer than the sum of their
    error bounds 2‖(I − J)⁻¹ (F(h) − h)‖, plus `merge` (1 + ‖h‖), are one.

    If a continuous F maps a ball into itself, then Σ sign det(I − J) = 1 over all its fixed points, if all are regular
    (Brouwer's degree). Another sum shows that some are missing: then there are further rounds of seeds, from mixes of
    the points found and by deflation, until the sum is 1 and nothing new turns up. A sum of 1 does not show that all
    were found. Good seeds are made by `seeds_from`.

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
        dt: Duration of a step, for time scales; of a flow nothing.
        bounded: Whether F maps some ball into itself (of a flow: whether f points inwards on a sphere); None for what
            is known: so do tanh RNNs, GRUs, LSTMs, and leaky networks with tanh, sigmoid, erf or atan.
        flow: Whether `step` is the vector field f(h, x) of dh/dt = f, whose zeros are asked for: then all of the above
            is with F(h) = h + f(h), so that I − J = −∂f/∂h; eigenvalues are those of ∂f/∂h.
        readout: Outputs from states `[k, H]`, a function or a module, which is copied to float64.
        rounds: The most further rounds of at most 256 seeds each.
        time_limit: Seconds after which searches end where they are, 120 by default; None for no limit. A call of the
            step is never interrupted, and what was found is described after that.
        generator: Source of the seeds of further rounds; None for a fresh one seeded with 0.

    Returns:
        Fixed points and, apart from them, slow points; how the search from each seed ended.

    Raises:
        TypeError: `inputs` or `seeds` are no floating-point tensors, or the step gives no float64 tensor.
        ValueError: `inputs` is not static, shapes do not fit, `inputs` or `seeds` are not finite, a number is out of
            range, the module has several layers or directions or cannot be copied, the step fails, is random, mixes
            samples or cannot be differentiated; a flow is a discrete cell; the read-out fails.

    References:
        Sussillo and Barak 2013; Golub and Sussillo 2018; Moré 1978 (Levenberg–Marquardt); Milnor 1965 (degree);
        Farrell, Birkisson and Funke 2015 (deflation); Deuflhard 2011 (Newton and Kantorovich).

    Example:
        >>> points = find_fixed_points(lambda h, x: torch.tanh(2 * h + x), torch.zeros(1), torch.randn(
        ...     20, 1, generator=torch.Generator().manual_seed(0)), bounded=True)
        >>> points.kinds, points.index_sum
        (('stable', 'stable', 'repeller'), 1)
        >>> float(points.states.max())
        0.95750402...
    """
    check_search(inputs, seeds)
    check_search_numbers(tolerance, descent, iterations, merge, marginal, dt)
    check_range("rounds", rounds, 0, integer=True)
    source = check_generator("generator", generator, seeds.device)
    deadline = deadline_in(time_limit)
    with exact_derivatives():
        starts = seeds.detach().to(torch.float64).clone()
        mapping = static_map(step, inputs.detach().to(torch.float64).clone(), starts, flow=flow)
        if bounded is not None:
            mapping = dataclasses.replace(mapping, bounded=bounded)
        unit = float(starts.abs().mean(dim=1).median()) or 1.0
        plan = Plan(unit, tolerance, descent, iterations, merge, rounds, deadline, source)
        found, stopped = searched_in_rounds(mapping, starts, plan)
        points = _described(mapping, found, len(starts), stopped, merge, marginal, dt)
        return points if readout is None else dataclasses.replace(points, outputs=_read(readout, points.states))


def _described(
    mapping: StaticMap, found: Searched, given: int, stopped: Stop, merge: float, marginal: float, dt: float
) -> FixedPoints:
    """The tables of roots and of slow points, and who came to them."""
    point = torch.full((len(found.states),), -1, device=found.states.device)
    at, labels = distinct(found, found.root, bounds(mapping, found.states[found.root]), merge)
    states = found.states[at]
    jacobians = mapping.linearised(states)[1]
    eigen = spectrum(_own(mapping, jacobians), flow=mapping.flow)
    order = _unstable(mapping, eigen.multipliers).argsort(stable=True)
    point[found.root] = order.argsort()[labels]
    slow_at, slow_labels = distinct(found, found.flat, torch.zeros(int(found.flat.sum())).to(states), SLOW_APART)
    point[found.flat] = slow_labels
    ones = eigen.multipliers + 1 if mapping.flow else eigen.multipliers
    total, verdict = index(jacobians, ones, mapping.bounded)
    assert mapping.of_input is not None  # as `static_map` makes it
    return FixedPoints(
        states=states[order],
        residual=found.residual[at][order],
        error=bounds(mapping, states)[order],
        kantorovich=kantorovich(mapping, states, jacobians)[order],
        jacobians=_own(mapping, jacobians)[order],
        input_jacobians=mapping.of_input(states[order]),
        multipliers=eigen.multipliers[order],
        right=eigen.right[order],
        left=eigen.left[order],
        condition=eigen.condition[order],
        index_sum=total,
        index_verdict=verdict,
        slow=_slow(mapping, found.states[slow_at], found.residual[slow_at]),
        status=_statuses(mapping, found, stopped)[:given],
        point=point[:given],
        added=len(point) - given,
        stopped=stopped,
        outputs=None,
        flow=mapping.flow,
        dt=float(dt),
        marginal=float(marginal),
    )


def _own(mapping: StaticMap, jacobians: Tensor) -> Tensor:
    """∂F/∂h of a map, ∂f/∂h of a flow."""
    if not mapping.flow:
        return jacobians
    return jacobians - torch.eye(jacobians.shape[-1], dtype=jacobians.dtype, device=jacobians.device)


def _unstable(mapping: StaticMap, multipliers: Tensor) -> Tensor:
    return (multipliers.real > 0 if mapping.flow else multipliers.abs() > 1).sum(dim=1)


def _read(readout: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """The outputs at the states, by a float64 copy of a module."""
    read = float64_copy(readout, "readout") if isinstance(readout, nn.Module) else readout
    try:
        outputs = read(states)
    except Exception as error:
        raise ValueError(
            f"`readout` fails at states of shape {tuple(states.shape)} in float64: {type(error).__name__}: {error}. It "
            "takes the whole state, of an LSTM h and c side by side; the tensors of a function must be float64."
        ) from error
    if not isinstance(outputs, Tensor) or outputs.shape[:1] != states.shape[:1]:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"`readout` must give a tensor with a row for each of {len(states)} states; got {got}.")
    return outputs.detach()


def _slow(mapping: StaticMap, states: Tensor, residual: Tensor) -> SlowPoints:
    jacobians = _own(mapping, mapping.linearised(states)[1])
    return SlowPoints(states, residual, spectrum(jacobians, flow=mapping.flow).multipliers)


def _statuses(mapping: StaticMap, found: Searched, stopped: Stop) -> tuple[Status, ...]:
    at_limit = held(mapping, found.states)
    late = Status.TIMEOUT if stopped is Stop.TIME else Status.MAXITER
    ends = zip(*(column.tolist() for column in (found.root, found.flat, found.lost, at_limit)), strict=True)
    return tuple(
        Status.ROOT if root else Status.SLOW if flat else Status.DIVERGED if lost else Status.HELD if limited else late
        for root, flat, lost, limited in ends
    )
