"""What the states tell apart and how alike they are: neural collapse of classes of trials, CKA of checkpoints."""

import dataclasses
from typing import final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kpflow.states import Linearisation
from kpflow.tasks import Trials

from .collapse import NeuralCollapse, neural_collapse
from .measures import Variables

__all__ = [
    "LEFT_OUT",
    "MEASURES",
    "Classes",
    "class_measures",
    "classes_of",
    "component_measures",
    "similarities",
    "with_similarity",
]

LEFT_OUT = "neural_collapse_left_out"
"""The attribute that says, in a sentence, why there is nothing on neural collapse."""

MEASURES = tuple(field.name for field in dataclasses.fields(NeuralCollapse))
"""The names along the axis `measure`."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Classes:
    """Classes that trials are of.

    Args:
        name: The condition whose values they are.
        labels: The class of each trial, 0 … C − 1 in the order of the values, shape `[B]`.
        sizes: Trials of each class, shape `[C]`.
    """

    name: str
    labels: Int[Tensor, " B"]
    sizes: Int[Tensor, " C"]

    @property
    def enough(self) -> bool:
        """Whether there are two classes or more, of two trials or more each."""
        return len(self.sizes) > 1 and int(self.sizes.min()) > 1

    def __str__(self) -> str:
        low, high = int(self.sizes.min()), int(self.sizes.max())
        return f"{self.name}, {len(self.sizes)} classes of {low if low == high else f'{low} to {high}'} trials"


def classes_of(trials: Trials, name: str | None) -> Classes | None:
    """The classes that the condition `name` makes of trials; if None, those of the first condition that can.

    Those can whose values are whole numbers, with two classes or more, of two trials or more each; None if none can.

    Raises:
        ValueError: There is no condition `name`, or its classes are too few or too small.

    Example:
        >>> import kpflow as kp
        >>> trials = kp.tasks.get("delayed_match_sample").sample(8, mode="grid")
        >>> print(classes_of(trials, None))
        first, 2 classes of 4 trials
    """
    if name is None:
        whole = (one for one, values in trials.conditions.items() if not values.dtype.is_floating_point)
        return next((found for one in whole if (found := _classes(trials, one)).enough), None)
    if name not in trials.conditions:
        known = ", ".join(trials.conditions) or "none"
        raise ValueError(f"`labels` must name a condition of the trials; got {name!r}, and there are: {known}.")
    found = _classes(trials, name)
    if not found.enough:
        raise ValueError(
            f"`labels` must name a condition with two classes or more, of two trials or more each; got {found}. "
            "Analyse on more trials, or choose another condition."
        )
    return found


def class_measures(
    lin: Linearisation, trials: Trials, classes: Classes, outside: Float[Tensor, "M H"] | None
) -> Variables:
    """Neural collapse of the states at the last step of each trial, as in `kpflow.study.neural_collapse`.

    The classifier of nc3 and nc4 is the read-out, where it is affine and gives one output for each class, and the
    largest target at that step is the class.

    Args:
        lin: The linearised state equation.
        trials: Its trials.
        classes: The class of each.
        outside: States of data of no class.
    """
    end = torch.arange(trials.num_trials, device=lin.states.device), trials.length - 1
    weight, bias = _classifier(lin, trials, classes, end)
    found = neural_collapse(lin.states[end], classes.labels, weight=weight, bias=bias, outside=outside)
    return {"neural_collapse": (("measure",), np.array(dataclasses.astuple(found)))}


def component_measures(states: Float[Tensor, "B T H"], valid: Bool[Tensor, "B T"], width: int) -> Variables:
    """The states in their own leading principal components, from which `with_similarity` takes CKA.

    `state_component` are the coordinates, NaN at steps of padding and 0 beyond the last component;
    `state_component_share` is the share of the variance that they have together.
    """
    rows = states[valid].double()
    left, values, _ = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    kept = torch.zeros(len(rows), width, dtype=torch.float64, device=rows.device)
    kept[:, : len(values)] = left[:, :width] * values[:width]
    components = np.full((*states.shape[:2], width), np.nan, np.float32)
    components[valid.cpu().numpy()] = kept.cpu().numpy()
    share = values[:width].square().sum() / values.square().sum()
    return {
        "state_component": (("trial", "time", "mode"), components),
        "state_component_share": ((), np.array(float(share))),
    }


def with_similarity(record: xr.Dataset) -> xr.Dataset:
    """The record with `state_similarity(step, other_step)`, the linear CKA of the states at all pairs of its steps.

    It is that of `kpflow.study.linear_cka` for the leading principal components that `state_component` holds; a record
    without these stays as it is.
    """
    if "state_component" not in record:
        return record
    components = record["state_component"].transpose("step", "trial", "time", "mode").values
    rows = torch.from_numpy(components).double().flatten(1, 2)  # [K, B·T, F]
    table = similarities(rows[:, rows.isfinite().all(2).all(0)])
    named = record.assign_coords(other_step=record["step"].values)
    return named.assign(state_similarity=(("step", "other_step"), table.numpy()))


def similarities(representations: Float[Tensor, "K N F"]) -> Float[Tensor, "K K"]:
    """`kpflow.study.linear_cka` of all pairs, in one product; NaN for a representation that is constant.

    Example:
        >>> X = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
        >>> similarities(torch.stack([X, 3 * X.flip(1)])).round(decimals=6).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    K, _, F = representations.shape
    X = representations.double()
    X = (X - X.mean(1, keepdim=True)).movedim(0, 1).flatten(1)  # [N, K·F]
    inner = (X.mT @ X).reshape(K, F, K, F).square().sum((1, 3))  # ⟨X Xᵀ, Y Yᵀ⟩_F = ‖Xᵀ Y‖²_F
    norms = inner.diagonal().sqrt()
    return inner / norms.outer(norms)


def _classes(trials: Trials, name: str) -> Classes:
    _, labels, sizes = torch.unique(trials.conditions[name], return_inverse=True, return_counts=True)
    return Classes(name, labels, sizes)


def _classifier(
    lin: Linearisation, trials: Trials, classes: Classes, end: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Weight `[C, H]` and bias `[C]` of the read-out, if it is a linear classifier of these classes."""
    C, readout = len(classes.sizes), lin.readout
    if readout is None or readout.outputs.shape != trials.targets.shape or trials.targets.shape[2] != C:
        return None, None
    if bool((trials.targets[end].argmax(1) != classes.labels).any()):
        return None, None
    features, outputs = lin.states[end], readout.outputs[end]
    probes = torch.zeros(C, *readout.outputs.shape, dtype=outputs.dtype, device=outputs.device)
    time = int(end[1][0])
    probes[:, 0, time] = torch.eye(C, dtype=outputs.dtype, device=outputs.device)
    weight = readout.state_vjp(probes)[:, 0, time]
    bias = outputs[0] - weight @ features[0]
    affine = torch.allclose(features @ weight.mT + bias, outputs, rtol=1e-4, atol=1e-4 * float(outputs.abs().max()))
    return (weight, bias) if affine else (None, None)
