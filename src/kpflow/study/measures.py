"""What is measured at one training step: operators, collapse, leading modes, cores and trajectories, as arrays."""

import dataclasses
from typing import TypeAlias, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kpflow import estimate, flow
from kpflow.estimate.structured import smaller_side
from kpflow.operators import Gramian, Operator
from kpflow.states import Linearisation

__all__ = [
    "AXES",
    "STAGES",
    "Components",
    "Variables",
    "axis_measures",
    "bound_measures",
    "core_measures",
    "effective_dimension",
    "operator_measures",
    "padded",
    "principal_components",
    "seeded",
    "stage_measures",
    "trajectory_measures",
]

Variables: TypeAlias = dict[str, tuple[tuple[str, ...], np.ndarray]]
"""Names to axes and values; every variable gets the axis `step` in front later."""

STAGES = ("inputs", "states", "error", "adjoint", "kernel_adjoint", "change", "targets")
"""The collapse pipeline: inputs, S, ∂L/∂S, Pᵀ ∂L/∂S, K Pᵀ ∂L/∂S, P K Pᵀ ∂L/∂S, targets."""

AXES = ("trial", "time", "unit")
"""Along which effective dimensions and ranks are measured."""

COMPONENTS = 3


def operator_measures(
    lin: Linearisation, *, width: int, modes: int, leading: int, tol: float, rtol: float, budget: int, seed: int
) -> Variables:
    """Effective rank, trace and leading spectrum of NTK, P and K, and the leading modes of the NTK.

    Effective rank and trace of P are those of P Pᵀ (the trace is ‖P‖²_F), its spectrum are singular values. The
    spectra of Gramians come from their smaller side, FᵀF and F Fᵀ having the same. Effective rank and trace come with
    one standard error; the spectra with a bound, within which each value has an eigenvalue or singular value. They are
    best at the top, and low by a few per cent where many values lie close together. Those of K are exact, with errors
    of 0, where its spectrum is known from its structure.

    Args:
        lin: The linearised state equation.
        width: Length of the axis `mode`; what is not computed is NaN.
        modes: Leading eigenvalues and singular values that are computed.
        leading: Leading eigenvectors of the NTK that are kept.
        tol: Residual of eigenvectors at which a spectrum is done, as a part of the largest value.
        rtol: Relative standard error at which an estimate stops.
        budget: The most products for one estimate.
        seed: Of the generator of each quantity, so that none depends on which were computed before.
    """
    P, K, ntk = flow.Propagator(lin), flow.ParameterKernel(lin), flow.Ntk(lin)
    effort = {"rtol": rtol, "budget": budget, "raise_on_failure": False}
    found = _exact_measures("kernel", K, modes, width)
    measured = [("ntk", ntk, smaller_side(ntk)), ("propagator", P, P.T @ P)]
    for name, operator, gram in measured if found else [*measured, ("kernel", K, smaller_side(K))]:
        rank = estimate.effective_rank(gram, generator=seeded(lin.states, seed), **effort)
        trace = estimate.trace(operator if operator.symmetric else gram, generator=seeded(lin.states, seed), **effort)
        for quantity, result in (("effective_rank", rank), ("trace", trace)):
            found[f"{name}_{quantity}"] = ((), np.array(result.value))
            found[f"{name}_{quantity}_error"] = ((), np.array(result.standard_error))
        spectrum = _modes(gram, modes, tol, 4 * budget, seed)
        values, residuals = spectrum.values.double().clamp(min=0), spectrum.residuals.double()
        if not operator.symmetric:  # singular values σ = √λ: |σ − √λ'| ≤ |λ − λ'| / σ
            values = values.sqrt()
            residuals = residuals / values
        found[f"{name}_spectrum"] = (("mode",), padded(values, width))
        found[f"{name}_spectrum_error"] = (("mode",), padded(residuals, width))
        if name == "ntk":
            found |= _ntk_modes(ntk, spectrum.vectors[:leading], leading)
    return found


def stage_measures(response: flow.Response, inputs: Tensor, lin: Linearisation, targets: Tensor) -> Variables:
    """Effective dimension along the collapse pipeline, from the inputs to the change of the states, on every axis."""
    stages = (inputs, lin.states, response.error, response.adjoint, response.immediate, response.change, targets)
    along = [[effective_dimension(stage.movedim(i, -1).flatten(0, 1)) for stage in stages] for i in range(len(AXES))]
    return {
        "effective_dimension": (("stage",), np.array(along[-1])),
        "effective_dimension_along": (("axis", "stage"), np.array(along)),
    }


def axis_measures(lin: Linearisation, *, rtol: float, budget: int, seed: int) -> Variables:
    """Effective ranks of the NTK's partial traces on one axis of the states, how many directions of it can change."""
    ntk = flow.Ntk(lin)
    found = [
        estimate.effective_rank(
            ntk, axes=(axis,), rtol=rtol, budget=budget, generator=seeded(lin.states, seed), raise_on_failure=False
        )
        for axis in AXES
    ]
    return {
        "ntk_effective_rank_along": (("axis",), np.array([one.value for one in found])),
        "ntk_effective_rank_along_error": (("axis",), np.array([one.standard_error for one in found])),
    }


def bound_measures(lin: Linearisation, largest: float, *, rtol: float, budget: int, seed: int) -> Variables:
    """What K's rank and spectrum and P's extreme singular values allow the NTK, whatever the task: `flow.rank_bounds`.

    The singular values are estimates from inside, too close together by about their errors, and so are the bounds.
    Empty where K's spectrum is not known from its structure and K is too large to be formed.

    Args:
        lin: The linearised state equation.
        largest: σ_max(P).
        rtol: Relative standard error at which the estimate of σ_min(P) stops.
        budget: The most products for it.
        seed: Of its generator.
    """
    inverse, source = flow.Propagator(lin).inverse, seeded(lin.states, seed)
    norm = estimate.operator_norm(inverse, rtol=rtol, budget=budget, generator=source, raise_on_failure=False)
    try:
        bounds = flow.rank_bounds(lin, (min(1 / norm.value, largest), largest))
    except ValueError:
        return {}
    found: Variables = {"ntk_rank": ((), np.array(float(bounds.kernel_rank)))}
    for name in ("effective_rank", "norm"):
        for end, value in zip(("low", "high"), getattr(bounds, name), strict=True):
            found[f"ntk_{name}_{end}"] = ((), np.array(value))
    return found


def effective_dimension(data: Float[Tensor, "N F"]) -> float:
    """(tr C)² / tr C² with C = ZᵀZ, uncentred: how many directions the rows of Z `[N, F]` take part in; NaN for Z = 0.

    Example:
        >>> round(effective_dimension(torch.eye(3)), 6), round(effective_dimension(torch.ones(5, 3)), 6)
        (3.0, 1.0)
    """
    squares = torch.linalg.svdvals(data.double()).square()
    return float(squares.sum().square() / squares.square().sum())


def core_measures(lin: Linearisation, valid: Bool[Tensor, "B T"], width: int) -> Variables:
    """The core's spectrum, the states' own, and how far their leading subspaces over time and trials agree.

    The core is C = M Mᵀ with M `[N, F]` what all weights of the recurrence see at the N steps that are no padding:
    earlier states, inputs, and a column of ones for each bias. `core_spectrum` are its eigenvalues, `state_spectrum`
    the variances of the states' principal components, and `core_state_overlap[m - 1]` is ‖Uᵀ V‖²_F / m for the m
    leading left singular vectors U of M and V of the (uncentred) states: 1 if the core's time-trial modes are those of
    the states. Empty where the weight sites are not known.
    """
    sites = lin.sites()
    if not sites:
        return {}
    seen = torch.cat([site.features[valid] for site in sites.values()], dim=1).double()
    states = lin.states[valid].double()  # [N, H]
    left, values, _ = torch.linalg.svd(seen, full_matrices=False)
    own, *_ = torch.linalg.svd(states, full_matrices=False)
    variances = torch.linalg.svdvals(states - states.mean(0)).square() / len(states)
    count = min(width, left.shape[1], own.shape[1])
    squares = (left[:, :count].mT @ own[:, :count]).square().cumsum(0).cumsum(1).diagonal()
    overlap = squares / torch.arange(1, count + 1, dtype=torch.float64)
    arrays = {"core_spectrum": values.square(), "state_spectrum": variances, "core_state_overlap": overlap}
    return {name: (("mode",), padded(array[:width], width)) for name, array in arrays.items()}


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Components:
    """The leading principal components of states over trials and times; one plane for all that is drawn among them.

    Args:
        mean: Shape `[H]`, float64.
        axes: Orthonormal rows, the largest entry of each positive, shape `[K, H]` with K ≤ 3.
        share: Of the variance along each, shape `[K]`.
    """

    mean: Float[Tensor, "H"]
    axes: Float[Tensor, "K H"]
    share: Float[Tensor, "K"]

    def of(self, states: Float[Tensor, "*n H"]) -> Float[Tensor, "*n 3"]:
        """The coordinates of states, float64; NaN beyond K.

        Example:
            >>> components = principal_components(torch.tensor([[0.0, 1.0], [0.0, 3.0]]))
            >>> components.of(torch.tensor([[0.0, 5.0]])).round().tolist()
            [[3.0, 0.0, nan]]
        """
        path = torch.full((*states.shape[:-1], COMPONENTS), torch.nan, dtype=torch.float64, device=states.device)
        path[..., : len(self.axes)] = (states.double() - self.mean) @ self.axes.mT
        return path


def principal_components(states: Float[Tensor, "N H"]) -> Components:
    """The first principal components of states."""
    rows = states.double()
    mean = rows.mean(0)
    _, values, axes = torch.linalg.svd(rows - mean, full_matrices=False)
    count = min(COMPONENTS, len(axes))
    share = values.square() / values.square().sum()
    return Components(mean, _fix_signs(axes[:count]), share[:count])


def trajectory_measures(
    states: Float[Tensor, "B T H"], valid: Bool[Tensor, "B T"], components: Components
) -> Variables:
    """The states in their own first principal components, NaN where there is padding, and their shares of variance."""
    path = components.of(states)
    path[~valid] = torch.nan
    return {
        "trajectory": (("trial", "time", "component"), path.cpu().numpy().astype(np.float32)),
        "trajectory_variance": (("component",), padded(components.share, COMPONENTS)),
    }


def padded(values: Float[Tensor, " K"], width: int) -> np.ndarray:
    """The values as float64, followed by NaN up to `width`.

    Example:
        >>> padded(torch.tensor([2.0, 1.0]), 3)
        array([ 2.,  1., nan])
    """
    result = np.full(width, np.nan)
    result[: min(len(values), width)] = values[:width].double().cpu().numpy()
    return result


def seeded(states: Tensor, seed: int) -> torch.Generator:
    """A fresh generator where the states are: one for each quantity, so that none depends on what came before."""
    return torch.Generator(states.device).manual_seed(seed)


def _exact_measures(name: str, gramian: Gramian, modes: int, width: int) -> Variables:
    """Effective rank, trace and leading spectrum by structure; empty where it does not tell the spectrum."""
    known = gramian.structure.spectrum() if gramian.structure is not None else None
    if known is None:
        return {}
    values = known.compute()
    rank = float(values.sum().square() / values.square().sum())
    found: Variables = {}
    for quantity, value in (("effective_rank", rank), ("trace", float(values.sum()))):
        found |= {f"{name}_{quantity}": ((), np.array(value)), f"{name}_{quantity}_error": ((), np.array(0.0))}
    leading = values[:modes]
    found[f"{name}_spectrum"] = (("mode",), padded(leading, width))
    found[f"{name}_spectrum_error"] = (("mode",), padded(torch.zeros_like(leading), width))
    return found


def _modes(gram: Operator, count: int, tol: float, budget: int, seed: int) -> estimate.Modes:
    """Leading eigenpairs, at most as many as there are."""
    generator = torch.Generator(gram.in_space.device).manual_seed(seed)
    count = min(count, gram.in_space.size)
    return estimate.modes(gram, count, tol=tol, budget=budget, generator=generator, raise_on_failure=False)


def _ntk_modes(ntk: flow.Ntk, vectors: Tensor, count: int) -> Variables:
    """The leading eigenvectors as matrices over (time and trials) × units: their dominant singular pairs.

    A vector of the smaller side, the core, becomes one of the states: u = P C v / ‖P C v‖.
    """
    states = ntk.factor(vectors) if vectors.shape[1:] == ntk.factor.in_shape else vectors  # [K, B, T, H]
    B, T, H = ntk.out_shape
    over_time = np.full((count, B, T), np.nan, np.float32)
    over_units = np.full((count, H), np.nan, np.float32)
    share = np.full(count, np.nan)
    for k, state in enumerate(states):
        left, values, right = torch.linalg.svd(state.flatten(0, 1).double(), full_matrices=False)
        column = left[:, 0]
        sign = torch.sign(column[column.abs().argmax()])
        over_time[k] = (sign * column).unflatten(0, (B, T)).cpu().numpy()
        over_units[k] = (sign * right[0]).cpu().numpy()
        share[k] = float(values[0].square() / values.square().sum())
    return {
        "ntk_mode_time": (("leading", "trial", "time"), over_time),
        "ntk_mode_unit": (("leading", "unit"), over_units),
        "ntk_mode_separability": (("leading",), share),
    }


def _fix_signs(rows: Float[Tensor, "K N"]) -> Float[Tensor, "K N"]:
    """Each row with its entry of largest magnitude positive."""
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return rows * torch.where(largest < 0, -1.0, 1.0).to(rows.dtype)
