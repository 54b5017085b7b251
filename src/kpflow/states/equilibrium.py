"""Deep equilibrium models: states that solve z = f(z, x), and their linearisation.

The state equation S = F(S, x, θ) has no order in which it could be gone through: L = ∂f/∂z is full and not nilpotent,
and P = (I − L)⁻¹ is a linear solve (Bai, Kolter and Koltun 2019; the implicit function theorem).
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from kpflow._checks import check_finite, check_range, check_tensor
from kpflow.spaces import Space

from .base import Site, Trials
from .piecewise import PiecewiseLinearisation
from .prepare import parameter_space, trainable
from .purity import check_pure
from .solves import Direct, Gmres, Step, solved
from .tapes import Tape, recording
from .trials import independent
from .twin import snapshot, twin

__all__ = ["EquilibriumLinearisation", "linearise_equilibrium"]

PROBES = 32
"""Probes in one pass through f, at most."""

BASIS = 64
"""Vectors of a Krylov space before GMRES starts anew (a number chosen by experience)."""

DENSE = 1024
"""Up to this size systems are factorised: forming one takes as many products as a few solves by GMRES."""

NOISE = "`model` as f(z, x) gives another state each time it is called. Remove noise and memory of earlier calls."

LEAK = (
    "`model` as f(z, x) uses trainable parameters that it is not handed ({}), so their part of K would be missing. A "
    "module must register them; a function takes them as f(z, x, parameters), with `parameters`."
)

Named = Mapping[str, Tensor]


@final
class EquilibriumLinearisation(PiecewiseLinearisation):
    """The linearised state equation z = f(z, x; θ) at an equilibrium; made by `kpflow.linearise`.

    L = ∂f/∂z and J = ∂f/∂θ are products with one recorded evaluation of f. P = (I − L)⁻¹ is solved to ‖b − (I − L) P b‖
    ≤ tolerance ‖b‖ (or to rounding of P b, which is more where P is large): trial by trial if trials do not interact,
    else for all of them together. Systems of up to 1024 unknowns are factorised if that fits half the memory; others
    are left to GMRES.

    Args:
        function: f, from parameters by name and z to the next z.
        equilibrium: z, shape `[B, *shape]`.
        trained: The trainable parameters by name.
        tolerance: Of the solves, relative to the right-hand side.
        memory: Bytes that the factors and a product may take, beside its block and its result.

    Example:
        >>> import kpflow as kp
        >>> f = lambda z, x, p: torch.tanh(z @ p["w"] + x)
        >>> w = 0.5 * torch.eye(3, dtype=torch.float64)
        >>> x = torch.ones(2, 3, dtype=torch.float64)
        >>> z = torch.zeros_like(x)
        >>> for _ in range(50):
        ...     z = f(z, x, {"w": w})
        >>> lin = kp.linearise(f, x, equilibrium=z, parameters={"w": w.requires_grad_()})
        >>> P, kick = kp.Propagator(lin), torch.ones_like(x)
        >>> P
        Propagator: Space(trial 2 × unit 3, float64) → Space(trial 2 × unit 3, float64)
        >>> torch.allclose(P(kick), kick / (1 - 0.5 * (1 - z**2))), lin.solve_residual < 1e-12
        (True, True)
    """

    def __init__(
        self,
        function: Callable[[Named, Tensor], Tensor],
        equilibrium: Tensor,
        trained: Named,
        tolerance: float,
        memory: int,
    ) -> None:
        self.parameters = parameter_space(trained)
        self.readout = None
        self.states = equilibrium
        last = ("unit",) if equilibrium.ndim == 2 else tuple(f"axis{i}" for i in range(1, equilibrium.ndim))
        self.space = Space.of(equilibrium.shape, ("trial", *last), equilibrium.dtype, equilibrium.device)
        self._tolerance = tolerance
        self._residual_of_solves = 0.0
        self._tapes, self._tape_bytes = _recorded(function, equilibrium, trained)
        trial = torch.arange(len(equilibrium), device=equilibrium.device).repeat_interleave(equilibrium[0].numel())
        apart = independent(self._transposed, trial, trial, equilibrium)
        self._trials = Trials(len(equilibrium), trial, None) if apart else None
        self._systems = len(equilibrium) if apart else 1
        self._basis = min(BASIS, self._unknowns)
        factors = 3 * self._systems * self._unknowns**2 * equilibrium.element_size()
        self._factor_bytes = factors if self._unknowns <= DENSE and 2 * factors <= memory else 0
        self._piece = self._probes_within(memory)

    @property
    def solve_residual(self) -> float:
        """The largest relative residual ‖b − (I − L) x‖ / ‖b‖ of any solve so far; 0 before the first."""
        return self._residual_of_solves

    @property
    def core(self) -> Space:
        return self.parameters

    def sites(self) -> dict[str, Site]:
        return {}

    def linear_sites(self) -> None:
        return

    @property
    def loose(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parameters.parts)

    def trials(self) -> Trials | None:
        return self._trials

    def _residual(self, state: Tensor) -> Tensor:
        return state - self._tapes["z"].jvp([state])[0]

    def _residual_adjoint(self, state: Tensor) -> Tensor:
        return state - self._transposed(state)

    def _transposed(self, state: Tensor) -> Tensor:
        """Lᵀ q, for vectors of the state's shape or flat ones."""
        return self._tapes["z"].vjp([state.reshape(-1, *self.space.shape)])[0].reshape(state.shape)

    def _parameter_jvp(self, parameter: Tensor) -> Tensor:
        return self._tapes["θ"].jvp(list(self.parameters.split(parameter).values()))[0]

    def _parameter_vjp(self, state: Tensor) -> Tensor:
        return torch.cat([value.flatten(1) for value in self._tapes["θ"].vjp([state])], dim=1)

    def _core_jvp(self, core: Tensor) -> Tensor:
        return self._parameter_jvp(core)

    def _core_vjp(self, state: Tensor) -> Tensor:
        return self._parameter_vjp(state)

    def _propagate(self, state: Tensor) -> Tensor:
        return self._solve(self._residual, self._steps[0], state)

    def _propagate_adjoint(self, state: Tensor) -> Tensor:
        return self._solve(self._residual_adjoint, self._steps[1], state)

    def _solve(self, product: Callable[[Tensor], Tensor], step: Step, state: Tensor) -> Tensor:
        """Solve with I − L or its transpose for a block of right-hand sides."""

        def by_system(block: Tensor) -> Tensor:
            return product(block.reshape(-1, *self.space.shape)).reshape(block.shape)

        right = state.reshape(len(state), self._systems, self._unknowns)
        found = solved(by_system, step, right, self._tolerance)
        self._residual_of_solves = max(self._residual_of_solves, found.residual)
        if not found.converged:
            way = "GMRES" if isinstance(step, Gmres) else "The factorisation"
            raise torch.linalg.LinAlgError(  # type: ignore[attr-defined]
                f"{way} did not solve (I − ∂f/∂z) x = b: the relative residual is {found.residual:.1e} after "
                f"{found.iterations} iterations, above `tolerance` {self._tolerance:.1e}. Most likely ∂f/∂z has an "
                "eigenvalue at or near 1, as at a bifurcation, where P does not exist. Else give a larger tolerance."
            )
        return found.value.reshape(state.shape)

    @functools.cached_property
    def _steps(self) -> tuple[Step, Step]:
        """How I − L and its transpose are solved with."""
        if not self._factor_bytes:
            return Gmres(self._basis), Gmres(self._basis)
        size = self._unknowns
        rows = self.states.new_empty(self._systems, size, size)  # of I − L, for every system
        for start in range(0, size, self._piece):
            chosen = torch.arange(start, min(start + self._piece, size), device=rows.device)
            seeds = rows.new_zeros(len(chosen), self._systems, size)
            seeds[torch.arange(len(chosen)), :, chosen] = 1
            pulled = seeds - self._transposed(seeds)
            rows[:, chosen] = pulled.transpose(0, 1)
        factors, pivots, _ = torch.linalg.lu_factor_ex(rows)
        return Direct(factors, pivots), Direct(factors, pivots, transposed=True)

    @property
    def _unknowns(self) -> int:
        """Of one system."""
        return self.space.size // self._systems

    def _probes_within(self, memory: int) -> int:
        least = self._fixed_bytes + self._probe_bytes
        if memory < least:
            raise ValueError(
                f"`memory` must be at least {least} bytes for the recorded f and one probe of {self.space}; "
                f"got {memory}. Give more, or take fewer trials."
            )
        return max(1, min(PROBES, (memory - self._fixed_bytes) // self._probe_bytes))

    @property
    def _fixed_bytes(self) -> int:
        """Of the recording, the same for forward mode, and the factors."""
        return 3 * self._tape_bytes + self._factor_bytes + self.states.nbytes + self._parameter_bytes

    @property
    def _probe_bytes(self) -> int:
        """Between the block and the result, for each probe: a pass through f, and the basis of a Krylov space."""
        vectors = 5 if self._factor_bytes else self._basis + 7
        small = 0 if self._factor_bytes else 24 * self._systems * (self._basis + 1) ** 2  # Hessenberg matrices, float64
        return 2 * self._tape_bytes + vectors * self.states.nbytes + small + 2 * self._parameter_bytes


def linearise_equilibrium(
    model: Any, inputs: Any, equilibrium: Any, parameters: Named | None, tolerance: Any, memory: int
) -> EquilibriumLinearisation:
    """Linearise z = f(z, x; θ) at a given equilibrium.

    Args:
        model: f, a module f(z, x), or a function f(z, x, parameters).
        inputs: x, a tensor or whatever f takes.
        equilibrium: z, shape `[B, *shape]`, with ‖f(z, x) − z‖ ≤ √ε ‖z‖ for every trial.
        parameters: Those of a function.
        tolerance: Relative residual of the solves; ε^(3/4) by default, 2e-12 in float64 and 6e-6 in float32.
        memory: Bytes that the factors and a product may take.

    Raises:
        TypeError: z or f(z, x) is no tensor, or of another dtype than the parameters.
        ValueError: z is no equilibrium, f(z, x) has another shape, f is random or reaches parameters that it is not
            handed, or z, the inputs and the parameters do not fit together.
    """
    module = twin(model) if isinstance(model, nn.Module) else None
    given = dict(model.named_parameters()) if isinstance(model, nn.Module) else dict(parameters or {})
    trained = trainable(given.items())
    fixed = {name: value.detach().clone() for name, value in given.items()}
    z, x = _checked_equilibrium(equilibrium, next(iter(trained.values()))), snapshot(inputs)
    if tolerance is not None:
        check_range("tolerance", tolerance, torch.finfo(z.dtype).eps, 1)

    def function(values: Named, state: Tensor) -> Any:
        merged = {**fixed, **values}
        if module is not None:
            return torch.func.functional_call(module, merged, (state, x))
        return model(state, x, merged) if given else model(state, x)

    _check_next(function, z)
    names = {id(value): name for name, value in given.items()}
    check_pure(lambda: [function({}, z)], names, NOISE, LEAK)
    _check_equilibrium(z, function({}, z).detach())
    limit = torch.finfo(z.dtype).eps ** 0.75 if tolerance is None else float(tolerance)
    return EquilibriumLinearisation(function, z, trained, limit, memory)


def _recorded(
    function: Callable[[Named, Tensor], Tensor], equilibrium: Tensor, trained: Named
) -> tuple[dict[str, Tape], int]:
    """∂f/∂z and ∂f/∂θ from one evaluation of f, and the bytes that it keeps."""
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with recording(), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        z = equilibrium.detach().clone().requires_grad_()
        values = {name: value.detach().clone().requires_grad_() for name, value in trained.items()}
        moved = function(values, z)
    tapes = {"z": Tape([moved], [z]), "θ": Tape([moved], list(values.values()))}
    return tapes, sum(kept.values()) + moved.nbytes


def _checked_equilibrium(equilibrium: Any, like: Tensor) -> Tensor:
    z = check_tensor("equilibrium", equilibrium)
    if z.ndim == 0 or z.numel() == 0:
        raise ValueError(f"`equilibrium` must have shape [B, *], with at least one trial; got {tuple(z.shape)}.")
    if (z.dtype, z.device) != (like.dtype, like.device):
        raise TypeError(
            f"`equilibrium` must have the parameters' dtype {like.dtype} and device {like.device}; got {z.dtype} on "
            f"{z.device}. Convert it with .to(...)."
        )
    check_finite("equilibrium", z.detach(), ("trial", "unit"), "Its solver may have diverged.")
    return z.detach().clone(memory_format=torch.contiguous_format)


def _check_next(function: Callable[[Named, Tensor], Any], z: Tensor) -> None:
    """Refuse an f that fails, or gives no state."""
    try:
        moved = function({}, z)
    except Exception as error:
        raise ValueError(
            f"`model` fails as f(z, x) with z of shape {tuple(z.shape)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(moved, Tensor):
        raise TypeError(f"`model` as f(z, x) must give a tensor; got {type(moved).__name__}.")
    if moved.shape != z.shape or moved.dtype != z.dtype:
        raise ValueError(
            f"`model` as f(z, x) must give a state like z, {z.dtype} of shape {tuple(z.shape)}; got {moved.dtype} of "
            f"shape {tuple(moved.shape)}."
        )


def _check_equilibrium(z: Tensor, moved: Tensor) -> None:
    """Refuse a state that f moves by more than √ε of it: the derivative of the solution would be another one."""
    check_finite("f(z, x)", moved, ("trial", "unit"), "Look at `equilibrium`, `inputs` and the weights.")
    gaps = (moved - z).flatten(1).norm(dim=1) if z.ndim > 1 else (moved - z).abs()
    sizes = z.flatten(1).norm(dim=1) if z.ndim > 1 else z.abs()
    limit = math.sqrt(torch.finfo(z.dtype).eps)
    relative = torch.where(gaps > 0, gaps / sizes, 0.0)
    worst = int(relative.argmax())
    if float(relative[worst]) > limit:
        raise ValueError(
            f"`equilibrium` must solve z = f(z, x) to ‖f(z, x) − z‖ ≤ {limit:.1e} ‖z‖; it is "
            f"{float(relative[worst]):.1e} ‖z‖ for trial {worst}. Solve it further, for example by "
            "iterating f, or in float64."
        )
