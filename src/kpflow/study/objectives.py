"""Several objectives at one training step: how they align, what each does to the others, and blocks of the NTK."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from kpflow import _checks, flow
from kpflow.estimate.base import MIN_PROBES, jackknife
from kpflow.estimate.products import Products, gram, inner, signs
from kpflow.flow.objectives import STAGES
from kpflow.operators import Restriction
from kpflow.states import Linearisation

from .compared import Compared, Losses
from .measures import Variables

__all__ = ["LEFT_OUT", "objective_measures", "objective_record", "with_objectives"]

LEFT_OUT = "objectives_left_out"
"""The attribute that says, in a sentence, why there is nothing on objectives."""

_AXES = {
    "objective_loss": ("objective",),
    "objective_alignment": ("objective_stage", "objective", "other"),
    "objective_interference": ("objective", "other"),
}

_BLOCKS = ("ntk_block_size", "ntk_block_size_error", "ntk_block_alignment", "ntk_block_alignment_error")

BASIS = 12
"""Vectors of the basis that is taken out of the probes, for groups of one shape. Chosen by experience."""


def objective_record(
    linearisation: Linearisation,
    losses: Losses,
    *,
    groups: Mapping[str, Any] | None = None,
    step: int = 0,
    probes: int = 24,
    seed: int = 0,
) -> xr.Dataset:
    """How objectives align on one model at one training step, and how strongly groups of trials meet in its NTK.

    Variables, with axes `objective` and `other` besides `step`: `objective_loss`; `objective_alignment`, cosines at
    each `objective_stage`, which are those of `kpflow.flow.Objectives`; `objective_interference`, −⟨g_i, g_j⟩, the
    change of L_i by a gradient step on L_j for each unit of the learning rate.

    With groups, and axes `group` and `other_group`: `ntk_block_size`, ‖NTK_ij‖_F / √(‖NTK_ii‖_F ‖NTK_jj‖_F), 1 at most,
    by which a step on the errors of group j moves the states of group i; and `ntk_block_alignment`, the cosine of
    NTK_ii and NTK_jj, trial by trial, NaN where the groups differ in size; each with its standard error, `…_error`.
    Both come from the same random probes, deflated by a common basis, as in `kpflow.estimate.frobenius_norm`.

    Args:
        linearisation: The linearised state equation, on the trials of all objectives.
        losses: From the model's outputs to a scalar, by name; see `kpflow.flow.objectives` and `task_objectives`.
        groups: Trials of each group, by name: positions, a slice, or a boolean tensor `[B]`.
        step: The training step, a label.
        probes: Random probes for each group, at least 8; the errors of few are up to a third too small.
        seed: Of the probes.

    Raises:
        ValueError: As `kpflow.flow.objectives`; or groups are empty, overlap, or hold trials that are not there; or the
            states have no axis of trials.

    Example:
        >>> import kpflow as kp
        >>> lin = kp.linearise(torch.nn.GRU(1, 4, batch_first=True), torch.ones(4, 3, 1))
        >>> halves = {"first": slice(0, 2), "last": slice(2, 4)}
        >>> losses = {name: lambda y, k=k: y[k].sum() for name, k in halves.items()}
        >>> record = objective_record(lin, losses, groups=halves)
        >>> record.objective_alignment.dims
        ('step', 'objective_stage', 'objective', 'other')
        >>> bool(record.ntk_block_size[0, 0, 1] > 0.99)  # the same inputs in all trials
        True
    """
    found = objective_measures(linearisation, losses, groups=groups or {}, probes=probes, seed=seed)
    variables = {name: (("step", *axes), values[None]) for name, (axes, values) in found.items()}
    return xr.Dataset(variables, {"step": [step], **coordinates(list(losses), list(groups or {}))})


def coordinates(objectives: Sequence[str], groups: Sequence[str]) -> dict[str, list[str]]:
    """The names along the axes of the record; none for what it does not have."""
    named: dict[str, list[str]] = {}
    if objectives:
        named |= {"objective_stage": list(STAGES), "objective": list(objectives), "other": list(objectives)}
    if groups:
        named |= {"group": list(groups), "other_group": list(groups)}
    return named


def with_objectives(
    record: xr.Dataset, linearisation: Linearisation, compared: Compared | None, *, probes: int, seed: int
) -> xr.Dataset:
    """A record of one step with the variables of `objective_record`, and the attribute `objectives`, what they are.

    Without objectives it stays as it is. Where one of them has no direction at this step, as with a loss of zero, the
    variables are NaN, and the attribute `LEFT_OUT` says why.
    """
    if compared is None:
        return record
    losses, groups = compared.losses, compared.groups
    said = {"objectives": compared.words}
    try:
        found = objective_measures(linearisation, losses, groups=groups, probes=max(probes, MIN_PROBES), seed=seed)
    except ValueError as problem:
        said[LEFT_OUT] = f"At step {int(record['step'][0])}: {problem}"
        found = _nothing(len(losses), len(groups))
    variables = {name: (("step", *axes), values[None]) for name, (axes, values) in found.items()}
    return record.assign(variables).assign_coords(coordinates(list(losses), list(groups))).assign_attrs(said)


def _nothing(objectives: int, groups: int) -> Variables:
    sizes = {"objective_stage": len(STAGES), "objective": objectives, "other": objectives}
    sizes |= {"group": groups, "other_group": groups}
    axes = _AXES | ({name: ("group", "other_group") for name in _BLOCKS} if groups else {})
    return {name: (of, np.full([sizes[axis] for axis in of], np.nan)) for name, of in axes.items()}


def objective_measures(
    linearisation: Linearisation, losses: Losses, *, groups: Mapping[str, Any], probes: int, seed: int
) -> Variables:
    """The variables of `objective_record`."""
    with torch.no_grad():
        rows = _positions(linearisation, groups)
        found = flow.objectives(linearisation, losses)
        alignments = torch.stack([found.alignments[stage] for stage in STAGES])
        values = (found.losses.double(), alignments, found.interference)
        variables: Variables = {
            name: (axes, value.cpu().numpy()) for (name, axes), value in zip(_AXES.items(), values, strict=True)
        }
        return variables | (_blocks(linearisation, rows, probes, seed) if rows else {})


def _positions(linearisation: Linearisation, groups: Mapping[str, Any]) -> dict[str, Tensor]:
    """The trials of each group, checked."""
    if not groups:
        return {}
    if linearisation.space.axes is None or "trial" not in linearisation.space.axes:
        raise ValueError(
            f"`groups` need states with an axis of trials; got {linearisation.space}. Leave them out, or linearise by "
            'the recurrent route: linearise(..., core="name").'
        )
    count = linearisation.space.shape[linearisation.space.axis("trial")]
    rows = {name: _group(name, index, count) for name, index in groups.items()}
    for (one, first), (other, second) in itertools.combinations(rows.items(), 2):
        both = sorted(set(first.tolist()) & set(second.tolist()))
        if both:
            raise ValueError(f"`groups` must not overlap; got trial {both[0]} in {one!r} and in {other!r}.")
    return rows


def _group(name: str, index: Any, count: int) -> Tensor:
    index = torch.arange(count)[index] if isinstance(index, slice) else torch.as_tensor(index).cpu()
    if index.dtype == torch.bool:
        if tuple(index.shape) != (count,):
            raise ValueError(f"`groups[{name!r}]` must have shape ({count},) if boolean; got {tuple(index.shape)}.")
        index = index.nonzero()[:, 0]
    if index.ndim != 1 or not len(index):
        raise ValueError(f"`groups[{name!r}]` must hold at least one trial, on one axis; got {tuple(index.shape)}.")
    if index.dtype.is_floating_point or int(index.min()) < 0 or int(index.max()) >= count:
        raise ValueError(f"`groups[{name!r}]` must hold whole numbers in 0 … {count - 1}; got {index.tolist()}.")
    if len(index.unique()) < len(index):
        raise ValueError(f"`groups[{name!r}]` must hold each trial once; got {index.tolist()}.")
    return index


def _blocks(linearisation: Linearisation, rows: Mapping[str, Tensor], probes: int, seed: int) -> Variables:
    """Sizes and alignments of the blocks NTK_ij between groups, and their standard errors.

    ⟨A, B⟩_F = ⟨A Q, B Q⟩ + E ⟨A (I − QQᵀ) g, B (I − QQᵀ) g⟩ for any orthonormal Q, with random signs g.
    """
    _checks.check_range("probes", probes, MIN_PROBES, integer=True)
    ntk = flow.Ntk(linearisation)
    parts = [Restriction(ntk.in_space, {"trial": index}) for index in rows.values()]
    products = [Products(ntk @ part.T) for part in parts]
    generator = torch.Generator(ntk.in_space.device).manual_seed(seed)
    K = len(parts)
    held = torch.zeros(2, K, K, dtype=torch.float64)  # ‖NTK_ij Q‖² and ⟨NTK_ii Q, NTK_jj Q⟩
    samples = torch.zeros(probes, 2, K, K, dtype=torch.float64)  # the same for each probe
    for alike in _alike(parts):
        basis = _basis(products, parts, alike, generator)
        random = signs(parts[alike[0]].out_space, probes, generator)
        vectors = torch.cat([basis, random - gram(random, basis).to(basis.dtype) @ basis])
        found, own = torch.zeros(len(vectors), 2, K, K, dtype=torch.float64), {}
        for j in alike:
            own[j] = _images(products[j], parts, j, vectors, found[:, 0, :, j])
        for i, j in itertools.product(alike, alike):
            found[:, 1, i, j] = inner(own[i], own[j]).cpu()
        held += found[: len(basis)].sum(0)
        samples += found[len(basis) :]
    return _read(held, samples, [part.out_shape for part in parts])


def _alike(parts: Sequence[Restriction]) -> list[list[int]]:
    """The numbers of the groups of each shape."""
    shapes = dict.fromkeys(part.out_shape for part in parts)
    return [[k for k, part in enumerate(parts) if part.out_shape == shape] for shape in shapes]


def _basis(
    products: Sequence[Products], parts: Sequence[Restriction], alike: Sequence[int], generator: torch.Generator
) -> Float[Tensor, "Q N"]:
    """An orthonormal basis of what the groups' own blocks make of random signs, the groups taking turns."""
    space = parts[alike[0]].out_space
    probes = signs(space, min(BASIS, space.size), generator)
    images = []
    for turn, probe in enumerate(probes):
        k = alike[turn % len(alike)]
        image = products[k](probe[None])
        images.append(parts[k](image.reshape(products[k].out_space.shape)).flatten())
    return torch.linalg.qr(torch.stack(images, dim=1)).Q.mT


def _images(
    product: Products, parts: Sequence[Restriction], own: int, vectors: Tensor, squares: Tensor
) -> Float[Tensor, "S N"]:
    """The vectors' images in their own group; the squared norms in all groups go to `squares` `[S, K]`."""
    kept = []
    for block, out in zip(vectors.split(product.block), squares.split(product.block), strict=True):
        images = product(block).reshape(len(block), *product.out_space.shape)
        for i, part in enumerate(parts):
            image = part(images).flatten(1)
            out[:, i] = inner(image, image).cpu()
            if i == own:
                kept.append(image)
    return torch.cat(kept)


def _read(held: Tensor, samples: Tensor, shapes: Sequence[tuple[int, ...]]) -> Variables:
    K = len(shapes)
    tables = {name: np.eye(K) * (not name.endswith("error")) for name in _BLOCKS}
    for i, j in itertools.combinations(range(K), 2):
        size = _ratio(held, samples, ((0, i, j), (0, j, i), (0, i, i), (0, j, j)), _size)
        cosine = (np.nan, np.nan)
        if shapes[i] == shapes[j]:
            cosine = _ratio(held, samples, ((1, i, j), (0, i, i), (0, j, j)), _cosine)
        for name, value in zip(_BLOCKS, (*size, *cosine), strict=True):
            tables[name][i, j] = tables[name][j, i] = value
    return {name: (("group", "other_group"), table) for name, table in tables.items()}


def _size(parts: Float[Tensor, "*S 4"]) -> Float[Tensor, "*S"]:
    """‖NTK_ij‖ / √(‖NTK_ii‖ ‖NTK_jj‖) from the squares of NTK_ij, NTK_ji, NTK_ii and NTK_jj."""
    return (parts[..., :2].mean(-1) / parts[..., 2:].prod(-1).sqrt()).sqrt()


def _cosine(parts: Float[Tensor, "*S 3"]) -> Float[Tensor, "*S"]:
    """⟨A, B⟩ / (‖A‖ ‖B‖) from ⟨A, B⟩ and the two squares."""
    return parts[..., 0] / parts[..., 1:].prod(-1).sqrt()


def _ratio(
    held: Tensor, samples: Tensor, chosen: Sequence[tuple[int, int, int]], function: Callable[[Tensor], Tensor]
) -> tuple[float, float]:
    """A function of chosen inner products, and its jackknife error."""
    fixed = torch.stack([held[place] for place in chosen])
    random = torch.stack([samples[(slice(None), *place)] for place in chosen], dim=1)
    return jackknife(lambda mean: function(fixed + mean), random)
