"""Fixed points to and from the arrays of fixed-point-finder (Golub and Sussillo 2018)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from kpflow._checks import check_finite, check_positive, check_tensor

from .arguments import check_static_input
from .fixed_points import find_fixed_points
from .maps import exact_derivatives, static_map
from .points import FixedPoints

__all__ = ["FinderPoints", "ImportedPoints", "from_fixed_point_finder", "to_fixed_point_finder"]

SAME_INPUT = 1e-6
"""Relative difference up to which an input, which may have been kept in float32, is the one asked for."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class ImportedPoints:
    """What the points x* of another search are, recomputed in float64.

    Args:
        states: x*, shape `[n, H]`, float64.
        rows: Their rows in the arrays that were given, shape `[n]`.
        q: ½‖F(x*) − x*‖², shape `[n]`.
        jacobians: ∂F/∂h at x*, shape `[n, H, H]`.
        jacobian_error: Largest entry of the difference to the Jacobian that was given, NaN where none was; shape `[n]`.
        distance: ‖x* − h‖ to the nearest root h found from all of them, inf where there is none; shape `[n]`.
        root: Whether that is at most near (1 + ‖x*‖), shape `[n]`.
        points: The roots and slow points, each once, that Levenberg–Marquardt and Newton come to from the x*.
    """

    states: Float[Tensor, "n H"]
    rows: Int[Tensor, "n"]
    q: Float[Tensor, "n"]
    jacobians: Float[Tensor, "n H H"]
    jacobian_error: Float[Tensor, "n"]
    distance: Float[Tensor, "n"]
    root: Bool[Tensor, "n"]
    points: FixedPoints

    @property
    def slow(self) -> Bool[Tensor, "n"]:
        """The others: slow points at best, whatever their q."""
        return ~self.root

    def __repr__(self) -> str:
        count = int(self.root.sum())
        return (
            f"ImportedPoints({len(self.rows)} points: {count} at a root, {len(self.rows) - count} at none; "
            f"{len(self.points.states)} distinct roots)"
        )


@final
@dataclasses.dataclass(frozen=True, eq=False)
class FinderPoints:
    """Fixed points under the names of fixed-point-finder, NumPy arrays with a row for each point.

    What reads the object of that name there, `points.xstar` or `points.is_stable`, reads this one.

    Args:
        xstar: The points, shape `[k, H]`.
        x_init: The seeds that came to them, shape `[k, H]`.
        inputs: The static input, shape `[k, I]`.
        F_xstar: F(x*), shape `[k, H]`.
        qstar: q = ½‖F(x*) − x*‖², shape `[k]`.
        dq: Last change of q, NaN, shape `[k]`.
        n_iters: Number of iterations, NaN, shape `[k]`.
        J_xstar: ∂F/∂x at x*, shape `[k, H, H]`.
        eigval_J_xstar: Its eigenvalues by falling modulus, complex, shape `[k, H]`.
        eigvec_J_xstar: Its right eigenvectors, in columns, complex, shape `[k, H, H]`.
        is_stable: Whether all eigenvalues are inside the unit circle, shape `[k]`.
        cond_id: The number of the condition, 0, shape `[k]`.
    """

    xstar: Float[np.ndarray, "k H"]
    x_init: Float[np.ndarray, "k H"]
    inputs: Float[np.ndarray, "k I"]
    F_xstar: Float[np.ndarray, "k H"]
    qstar: Float[np.ndarray, "k"]
    dq: Float[np.ndarray, "k"]
    n_iters: Float[np.ndarray, "k"]
    J_xstar: Float[np.ndarray, "k H H"]
    eigval_J_xstar: Complex[np.ndarray, "k H"]
    eigvec_J_xstar: Complex[np.ndarray, "k H H"]
    is_stable: Bool[np.ndarray, "k"]
    cond_id: Int[np.ndarray, "k"]

    @property
    def n(self) -> int:
        """Number of points."""
        return len(self.xstar)

    def __repr__(self) -> str:
        return f"FinderPoints({self.n} points, {int(self.is_stable.sum())} stable)"


def to_fixed_point_finder(
    points: FixedPoints,
    inputs: Tensor,
    *,
    step: Callable[..., Any] | None = None,
    seeds: Tensor | None = None,
) -> FinderPoints:
    """The fixed points under the names of fixed-point-finder; `FixedPoints(**vars(result))` makes its own object.

    A row for each fixed point; slow points are left out. What is not known is NaN, as there: dq, n_iters, F_xstar
    without `step`, x_init without `seeds`. cond_id is 0, as all points belong to one input. Numbers are float64 and
    complex128. Its dFdu, which only some versions take, is `points.input_jacobians`.

    Args:
        points: From `find_fixed_points`.
        inputs: The static input x that they belong to, shape `[I]`.
        step: That of the search, to compute F_xstar with.
        seeds: Those of the search, shape `[n, H]`; x_init is the first that came to the point, NaN where
            none did.

    Raises:
        TypeError: `points` are of another kind, or `inputs` or `seeds` no floating-point tensors.
        ValueError: The points are those of a flow, `inputs` is not static, there are not as many seeds as in the
            search, or the step does not fit.

    References:
        Golub and Sussillo 2018 (JOSS 3:1003).

    Example:
        >>> seeds = torch.linspace(-1, 1, 9)[:, None]
        >>> points = find_fixed_points(lambda h, x: torch.tanh(2 * h + x), torch.zeros(1), seeds)
        >>> fps = to_fixed_point_finder(points, torch.zeros(1), seeds=seeds)
        >>> fps.n, fps.xstar.shape, fps.is_stable.tolist()
        (3, (3, 1), [True, True, False])
    """
    if not isinstance(points, FixedPoints):
        raise TypeError(f"`points` must be a FixedPoints of find_fixed_points; got {type(points).__name__}.")
    if points.flow:
        raise ValueError(
            "`points` must be those of a step; got those of a flow, which has eigenvalues, no multipliers."
        )
    check_static_input("inputs", inputs)
    count, size = points.states.shape
    unknown = np.full((count, size), np.nan)
    return FinderPoints(
        xstar=_array(points.states),
        x_init=unknown if seeds is None else _first_seeds(points, seeds),
        inputs=np.tile(_array(inputs.to(torch.float64)), (count, 1)),
        F_xstar=unknown.copy() if step is None else _moved(step, inputs, points.states),
        qstar=_array(points.residual.square() / 2),
        dq=np.full(count, np.nan),
        n_iters=np.full(count, np.nan),
        J_xstar=_array(points.jacobians),
        eigval_J_xstar=_array(points.multipliers),
        eigvec_J_xstar=_array(points.right),
        is_stable=_array(points.multipliers.abs().amax(dim=1) < 1) if count else np.zeros(0, dtype=bool),
        cond_id=np.zeros(count, dtype=np.int64),
    )


def from_fixed_point_finder(
    data: Any,
    step: Callable[..., Any],
    inputs: Tensor | None = None,
    *,
    near: float = 1e-3,
    iterations: int = 200,
) -> ImportedPoints:
    """What the points of a `FixedPoints` object of fixed-point-finder are: roots, or slow points that q let pass.

    A small q is no proof of a fixed point: near a slow manifold it may be below any threshold. So q and the Jacobians
    are recomputed in float64, and Levenberg–Marquardt and Newton go on from every point to a root, as in
    `find_fixed_points` without descent. A point with a root within `near` (1 + ‖x*‖) is one; the others are not.

    Args:
        data: The object, or a mapping with its arrays: xstar `[n, H]`; if there, inputs `[n, I]` and J_xstar.
        step: The network, as of `find_fixed_points`.
        inputs: The static input x, shape `[I]`, on the device of the network; None for that of `data`, which must be
            the same for all points, on the CPU. Points of `data` at other inputs are left out.
        near: See above; the default is the distance at which fixed-point-finder takes points for one.
        iterations: The most steps of Levenberg–Marquardt.

    Raises:
        TypeError: `data` has no array xstar; `inputs` is no floating-point tensor.
        ValueError: Shapes do not fit, something is not finite, `data` has several inputs or none and `inputs` is None,
            or no point at `inputs`, or the step is one that `find_fixed_points` refuses.

    Example:
        >>> found = {"xstar": np.array([[0.957], [0.0], [-0.6]]), "inputs": np.zeros((3, 1))}
        >>> imported = from_fixed_point_finder(found, lambda h, x: torch.tanh(2 * h + x))
        >>> imported
        ImportedPoints(3 points: 2 at a root, 1 at none; 3 distinct roots)
    """
    check_positive("near", near)
    states = _read(data, "xstar", inputs)
    if states is None:
        raise TypeError(
            "`data` must be a FixedPoints object of fixed-point-finder or a mapping with its arrays, `xstar` among "
            f"them; got {type(data).__name__} without."
        )
    if states.ndim != 2 or not states.numel():
        raise ValueError(f"`data.xstar` must have shape (n, H), n at least 1; got {tuple(states.shape)}.")
    check_finite("data.xstar", states, ("point", "unit"), "Leave such points out.")
    x, rows = _at_one_input(_read(data, "inputs", inputs), inputs, len(states))
    given = _read(data, "J_xstar", inputs)
    if given is not None and given.shape != (*states.shape, states.shape[1]):
        raise ValueError(
            f"`data.J_xstar` must have shape {(*states.shape, states.shape[1])}, as xstar; got {tuple(given.shape)}."
        )
    states = states[rows]
    points = find_fixed_points(step, x, states, descent=0, iterations=iterations, rounds=0)
    with exact_derivatives():
        values, jacobians = static_map(step, x, states).linearised(states)
    gaps = torch.cdist(states, points.states, compute_mode="donot_use_mm_for_euclid_dist")
    distance = gaps.amin(dim=1) if gaps.shape[1] else torch.full_like(states[:, 0], torch.inf)
    nothing = torch.full_like(distance, torch.nan)
    return ImportedPoints(
        states,
        rows,
        (values - states).square().sum(dim=1) / 2,
        jacobians,
        nothing if given is None else (given[rows] - jacobians).abs().amax(dim=(1, 2)),
        distance,
        distance <= near * (1 + states.norm(dim=1)),
        points,
    )


def _array(value: Tensor) -> np.ndarray:
    return value.detach().resolve_conj().cpu().numpy().copy()


def _first_seeds(points: FixedPoints, seeds: Tensor) -> np.ndarray:
    """The first seed of each point, NaN where none came to it."""
    check_tensor("seeds", seeds)
    expected = (len(points.point), points.states.shape[1])
    if seeds.shape != expected:
        raise ValueError(f"`seeds` must be those of the search, shape {expected}; got {tuple(seeds.shape)}.")
    start = np.full(points.states.shape, np.nan)
    rooted = [end.value == "root" for end in points.status]
    for i in reversed(range(len(seeds))):
        if rooted[i]:
            start[int(points.point[i])] = _array(seeds[i].to(torch.float64))
    return start


def _moved(step: Callable[..., Any], inputs: Tensor, states: Tensor) -> np.ndarray:
    if not len(states):
        return _array(states)
    with exact_derivatives():
        return _array(static_map(step, inputs.to(torch.float64), states)(states))


def _read(data: Any, name: str, inputs: Tensor | None) -> Tensor | None:
    """An array of a mapping or an object, in float64, on the device of `inputs`; None where it is missing or None."""
    value = data.get(name) if isinstance(data, Mapping) else getattr(data, name, None)
    device = inputs.device if isinstance(inputs, Tensor) else "cpu"
    return None if value is None else torch.tensor(np.asarray(value, dtype=np.float64), device=device)


def _at_one_input(given: Tensor | None, inputs: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """The input, and the rows of the points that belong to it."""
    if given is not None and (given.ndim != 2 or len(given) != count):
        raise ValueError(f"`data.inputs` must have shape ({count}, I), a row for each point; got {tuple(given.shape)}.")
    if inputs is None:
        different = given.unique(dim=0) if given is not None else None
        if different is None or len(different) != 1:
            has = "none" if different is None else f"{len(different)} different ones"
            raise ValueError(
                f"`inputs` must tell the static input, shape (I,), where `data` has not just one; got {has}."
            )
        return different[0], torch.arange(count)
    check_static_input("inputs", inputs)
    x = inputs.detach().to(torch.float64)
    if given is None:
        return x, torch.arange(count, device=x.device)
    if given.shape[1] != len(x):
        raise ValueError(
            f"`inputs` must have shape ({given.shape[1]},), as those of `data`; got {tuple(inputs.shape)}."
        )
    rows = ((given - x).norm(dim=1) <= SAME_INPUT * (1 + x.norm())).nonzero()[:, 0]
    if not len(rows):
        raise ValueError("`inputs` must be an input of `data`, to 1e-6; no point belongs to the one given.")
    return x, rows
