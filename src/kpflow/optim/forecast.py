"""What the next steps of descent will do if the kernel stays: the loss, its parts' rates, the order of learning."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_one_of, check_positive, check_range, check_tensor
from kpflow.estimate.lanczos import BlockBasis
from kpflow.estimate.products import Products, gram
from kpflow.flow import Ntk
from kpflow.flow.curvature import loss_curvature
from kpflow.flow.response import error_signal
from kpflow.operators import Diagonal, Gram, Operator
from kpflow.spaces import Space
from kpflow.states import Linearisation

__all__ = ["Forecast", "forecast"]

FEWER = 3
"""The error of a Krylov space is taken from one that is smaller by so many products."""

LARGEST = 1e100
"""Moves are held within this where descent diverges, so that there is neither NaN nor inf."""

NEGLIGIBLE = 1e-12
"""Rates below this part of the largest are those of directions in which nothing moves."""


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Forecast:
    """Descent of a model that is linear in its parameters, with the curvature that the loss has now.

    With F = Jᵀ H J, J = ∂y/∂θ, H = ∂²L/∂y² and the gradient b: θ_n − θ_0 = −p_n(F) b with p_n(λ) = (1 − (1 − ηλ)ⁿ) / λ.
    With momentum β, steps are −η m with m ← β m + (1 − β) ∂L/∂θ, and p_n follows from the recursion of these two (heavy
    ball; Polyak 1964).
    For squared errors F has the spectrum of the NTK, up to the loss's factor. All is read off a Krylov space of b, and
    of the first m if it is not 0.

    Args:
        losses: L_0, …, L_n, shape `[n + 1]`, float64.
        error: The most that L_n may be off, from a smaller Krylov space.
        rates: λ_j, the parts' curvatures, largest first, shape `[m]`: part j falls as (1 − η λ_j)²ⁿ without momentum.
        parts: How much of the loss each of them is at the start, shape `[m]`.
        directions: For each target component u_i its ⟨u_i, y_n − y_0⟩, shape `[C, n + 1]`; no rows if none are asked.
        wanted: ⟨u_i, y* − y_0⟩, what each component lacks, shape `[C]`; y* is where the loss's gradient in y vanishes.
        learning_rate: η.
        momentum: β.
        products: Products with F that were used.
    """

    losses: Float[Tensor, " N"]
    error: float
    rates: Float[Tensor, " m"]
    parts: Float[Tensor, " m"]
    directions: Float[Tensor, "C N"]
    wanted: Float[Tensor, " C"]
    learning_rate: float
    momentum: float
    products: int

    @property
    def stable(self) -> bool:
        """Whether η λ < 2 (1 + β) / (1 − β) for every part: otherwise the linear model diverges.

        Below it the roots of z² − (1 + β − (1 − β) η λ) z + β, the factors of a part in a step, are in the unit disc.
        """
        return bool(((1 - self.momentum) * self.learning_rate * self.rates < 2 * (1 + self.momentum)).all())

    @property
    def out_of_reach(self) -> float:
        """The loss that stays for ever: what lies where the kernel is null."""
        return max(0.0, float(self.losses[0] - self.parts.sum()))

    @property
    def learned(self) -> Float[Tensor, "C N"]:
        """The share of each component that is learned after n steps: 0 at the start, 1 when it is what was wanted."""
        return self.directions / self.wanted[:, None]

    def times(self, share: float = 0.5) -> Float[Tensor, " C"]:
        """Steps until a share of each component is learned for the first time; inf if that is not within n.

        Raises:
            ValueError: `share` is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"`share` must be above 0 and at most 1; got {share}.")
        reached = self.learned >= share
        first = reached.to(torch.float64).argmax(dim=1).to(torch.float64)
        return torch.where(reached.any(dim=1), first, torch.inf)

    def holds(self, losses: Sequence[float] | Tensor, tolerance: float = 0.1) -> int:
        """Steps for which losses that were observed are within `tolerance` (relative to them) of the forecast.

        Args:
            losses: L_0, L_1, … of a run, at most as many as were predicted.
            tolerance: Relative.

        Raises:
            ValueError: There are more losses than were predicted.
        """
        seen = torch.as_tensor(losses, dtype=torch.float64)
        if len(seen) > len(self.losses):
            raise ValueError(f"`losses` must be at most {len(self.losses)}, as many as predicted; got {len(seen)}.")
        off = ~((self.losses[: len(seen)] - seen).abs() <= tolerance * seen.abs())
        return int(off.to(torch.int).argmax()) if bool(off.any()) else len(seen)

    def __repr__(self) -> str:
        ends = f"{float(self.losses[0]):.4g} → {float(self.losses[-1]):.4g}"
        return (
            f"Forecast(loss {ends} ± {self.error:.1g} in {len(self.losses) - 1} steps, {self.out_of_reach:.4g} out of "
            f"reach; {len(self.rates)} rates from {float(self.rates[0]):.3g}; {self.products} products)"
        )


def forecast(
    linearisation: Linearisation,
    loss: Callable[[Tensor], Tensor],
    *,
    learning_rate: float,
    steps: int,
    of: str = "outputs",
    metric: Tensor | None = None,
    momentum: float = 0.0,
    momentum_buffer: Tensor | None = None,
    components: Tensor | None = None,
    krylov: int = 40,
) -> Forecast:
    """Predict the next steps of full-batch descent in the kernel regime (arXiv 2605.08746).

    Exact where the model is linear in its parameters and the loss quadratic in y; otherwise good for as long as the NTK
    does not move: compare with `Forecast.holds`, and the kernels by `kpflow.estimate.alignment`.

    Adam is descent with a metric and momentum for as long as its v stays: `forecast_optimizer` reads these off an
    optimiser.

    Args:
        linearisation: The linearised state equation, on the trials that are trained on.
        loss: From the model's outputs y (or the states, with `of="states"`), batch first, to a scalar.
        learning_rate: η.
        steps: n.
        of: "outputs" or "states".
        metric: A positive diagonal M on parameter space, flat, for steps −η M ∂L/∂θ.
        momentum: β, for steps −η M m with m ← β m + (1 − β) ∂L/∂θ. SGD's, which is not averaged, is this one with
            η / (1 − β) for its η.
        momentum_buffer: m before the first step, flat; None for 0, as at the start of a training.
        components: u_i, orthonormal or not, shape `[C, *shape of y]`: target components to follow.
        krylov: Dimension of the Krylov space, and about as many products; twice that with a `momentum_buffer`.

    Raises:
        ValueError: The loss does not fit or is not curved, its gradient is zero, a number is out of range, `metric` is
            not positive, `momentum_buffer` is not of the parameters' shape or without momentum, or `components` have
            another shape than y; components that lack nothing.

    Example:
        >>> import kpflow as kp
        >>> model = torch.nn.Linear(3, 1).double()
        >>> x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
        >>> lin = kp.linearise(model, x)
        >>> ahead = forecast(lin, lambda y: (y - 1).square().mean(), learning_rate=0.1, steps=20)
        >>> optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     value = (model(x) - 1).square().mean()
        ...     losses.append(float(value.detach()))
        ...     value.backward()
        ...     optimizer.step()
        >>> ahead.holds(losses, tolerance=1e-4)  # a linear model
        20
    """
    check_positive("learning_rate", learning_rate)
    check_positive("steps", steps, integer=True)
    check_positive("krylov", krylov, integer=True)
    check_range("momentum", momentum, 0, 1)
    check_one_of("of", of, ("outputs", "states"))
    ntk = Ntk(linearisation, readout="outputs" if of == "outputs" else None)
    readout = linearisation.readout
    at = linearisation.states if of == "states" or readout is None else readout.outputs
    value, error = error_signal(loss, at)
    root = None if metric is None else _root(metric, ntk.jacobian.in_space)
    jacobian: Operator = ntk.jacobian if root is None else ntk.jacobian @ root
    curvature = loss_curvature(loss, at, ntk.out_space)
    gradient = jacobian.T(error.reshape(ntk.out_shape)).flatten()
    if not float(gradient.double().norm()) > 0:
        raise ValueError("The gradient of `loss` must not be zero; nothing would move. Is it at its minimum?")
    starts = [gradient]
    if momentum_buffer is not None:
        buffer = _buffer(momentum_buffer, momentum, gradient)
        starts.append(buffer if root is None else root(buffer))
    space = _krylov(Gram(jacobian.T, curvature), starts, krylov)
    less = space.ends[max(0, len(space.ends) - 1 - FEWER)]
    small, regime = (_Regime(space, size, value, starts, learning_rate, momentum) for size in (less, space.ends[-1]))
    if not float(regime.values[0]) > 0:
        raise ValueError("`loss` must be curved along its gradient, as squared errors are; absolute errors are not.")
    losses = regime.losses(steps)
    rates, parts = regime.parts()
    wanted, moved = _components(components, at, jacobian, curvature, error, regime, steps)
    off = 0.0 if space.complete else float((losses - small.losses(steps)).abs().max())
    return Forecast(
        losses, off, rates, parts, moved, wanted, float(learning_rate), float(momentum), space.products.count
    )


@final
class _Regime:
    """Heavy ball in the eigenvectors v_j of F, of the first k vectors of a Krylov space."""

    def __init__(
        self, space: BlockBasis, size: int, loss: float, starts: Sequence[Tensor], rate: float, momentum: float
    ) -> None:
        self.loss, self.rate, self.momentum = loss, rate, momentum
        self.basis = space.basis[:size]
        values, vectors = torch.linalg.eigh(space.matrix()[:size, :size].cpu())
        self.values, self.vectors = values.clamp_min(0).flip(0), vectors.flip(1)
        along = gram(torch.stack(list(starts)), self.basis).cpu() @ self.vectors
        self.gradient = along[0]
        self.buffer = along[1] if len(along) > 1 else torch.zeros_like(along[0])

    def _moves(self, steps: int) -> Float[Tensor, "N m"]:
        """x_n = −⟨v_j, θ_n − θ_0⟩ for n = 0, …, steps: x ← x + η m after m ← β m + (1 − β) (⟨v_j, b⟩ − λ_j x)."""
        moves = torch.zeros(steps + 1, len(self.values), dtype=torch.float64)
        mean = self.buffer
        for before, after in itertools.pairwise(moves):
            mean = self.momentum * mean + (1 - self.momentum) * (self.gradient - self.values * before)
            torch.add(before, mean, alpha=self.rate, out=after).clamp_(-LARGEST, LARGEST)
        return moves

    def losses(self, steps: int) -> Float[Tensor, " N"]:
        """L_0 − Σ_j ⟨v_j, b⟩ x − ½ λ_j x²."""
        moves = self._moves(steps)
        return self.loss - moves @ self.gradient + 0.5 * moves.square() @ self.values

    def parts(self) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        """λ_j and ⟨v_j, b⟩² / 2 λ_j of the directions that move."""
        kept = self.values > NEGLIGIBLE * self.values[0]
        return self.values[kept], self.gradient[kept].square() / (2 * self.values[kept])

    def moved(self, projections: Float[Tensor, "C k"], steps: int) -> Float[Tensor, "C N"]:
        """⟨u_i, y_n − y_0⟩ from ⟨u_i, J V⟩."""
        return -(projections @ self.vectors) @ self._moves(steps).mT


def _krylov(operator: Operator, starts: Sequence[Tensor], steps: int) -> BlockBasis:
    """The Krylov space of the starts together."""
    rows = torch.stack(list(starts))
    unit = torch.nn.functional.normalize(rows, eps=torch.finfo(rows.dtype).tiny)
    space = BlockBasis(Products(operator), len(unit), torch.Generator(), unit)  # nothing is drawn
    for _ in range(steps):
        if not space.complete:
            space.extend(len(space.fresh))
    return space


def _buffer(momentum_buffer: Tensor, momentum: float, like: Tensor) -> Tensor:
    """m_0."""
    check_tensor("momentum_buffer", momentum_buffer)
    if momentum_buffer.shape != like.shape:
        raise ValueError(
            f"`momentum_buffer` must be flat, of shape {tuple(like.shape)}; got {tuple(momentum_buffer.shape)}. Join "
            "those of the parameters with linearisation.parameters.join."
        )
    if momentum == 0:
        raise ValueError("`momentum_buffer` needs a `momentum`; got 0. Leave it out.")
    return momentum_buffer.to(like)


def _root(metric: Tensor, space: Space) -> Diagonal:
    """M^½."""
    check_tensor("metric", metric)
    if metric.shape != space.shape or not bool((metric > 0).all()):
        raise ValueError(
            f"`metric` must be a positive diagonal of shape {space.shape}; got {tuple(metric.shape)}, least entry "
            f"{float(metric.min()):g}."
        )
    return Diagonal(metric.sqrt(), space)


def _components(
    components: Tensor | None,
    at: Tensor,
    jacobian: Operator,
    curvature: Operator,
    error: Tensor,
    regime: _Regime,
    steps: int,
) -> tuple[Float[Tensor, " C"], Float[Tensor, "C N"]]:
    """What each component lacks, and how far it comes."""
    if components is None:
        return torch.zeros(0, dtype=torch.float64), torch.zeros(0, steps + 1, dtype=torch.float64)
    check_tensor("components", components)
    if components.shape[1:] != at.shape:
        raise ValueError(
            f"`components` must have shape (C, {', '.join(map(str, at.shape))}), that of the outputs; got "
            f"{tuple(components.shape)}."
        )
    rows = components.to(at).reshape(len(components), *jacobian.out_shape)
    pulled = jacobian.T(rows).flatten(1)  # [C, P]
    projections = (pulled.double() @ regime.basis.double().mT).cpu()
    lacking = -_minimum(curvature, error.reshape(jacobian.out_shape))
    wanted = (rows.flatten(1).double() @ lacking.flatten().double()).cpu()
    scale = rows.flatten(1).double().norm(dim=1).cpu() * float(lacking.double().norm())
    nothing = [int(i) for i in (wanted.abs() <= 1e-12 * scale).nonzero()[:, 0]]
    if nothing:
        raise ValueError(f"`components` must lack something each; the error has none of {nothing}. Leave them out.")
    return wanted, regime.moved(projections, steps)


def _minimum(curvature: Operator, error: Tensor) -> Tensor:
    """H⁺ ∂L/∂y by conjugate gradients, zero where the loss does not see y (a mask)."""
    solution, residual = torch.zeros_like(error), error.clone()
    direction, size = residual.clone(), float(residual.double().square().sum())
    first = size
    for _ in range(200):
        image = curvature(direction)
        bend = float((direction.double() * image.double()).sum())
        if not bend > 0 or size <= 1e-24 * first:
            break
        solution = solution + size / bend * direction
        residual = residual - size / bend * image
        before, size = size, float(residual.double().square().sum())
        direction = residual + size / before * direction
    return solution
