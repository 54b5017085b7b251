"""Trials: a batch of trials of one task, the message from tasks to everything that trains or analyses on them."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from kpflow._checks import check_finite, check_one_of, check_positive, check_tensor

__all__ = ["EPOCH_ALIASES", "Trials", "resolve_epoch"]

EPOCH_ALIASES: Mapping[str, str] = {
    "fix1": "context",
    "stim1": "stimulus",
    "delay1": "memory",
    "go1": "response",
}
"""Names of epochs in the code of Driscoll et al. (2024), and what they are called here and in their paper."""


def resolve_epoch(name: str, known: Iterable[str]) -> str:
    """The epoch that `name` or its alias stands for, one of `known`; ValueError otherwise."""
    known = tuple(known)
    resolved = name if name in known else EPOCH_ALIASES.get(name, name)
    if resolved not in known:
        check_one_of("epoch", name, known)
    return resolved


@final
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Trials:
    """A batch of B trials of T steps, with what is shown, what is asked for, and when.

    Trials of unequal lengths are padded at the end: there inputs, targets and mask are 0.

    Args:
        inputs: u, shape `[B, T, I]`, noise included.
        inputs_clean: u without its noise, `[B, T, I]`.
        targets: y, `[B, T, O]`.
        mask: Weights m ≥ 0 of the squared errors in the loss, `[B, T, O]`.
        length: Steps of each trial before the padding, `[B]`, in 1 … T.
        epochs: `{name: (start, stop)}`, steps `[B]` each in 0 … length, stop exclusive; start = stop is an empty epoch.
        conditions: `{name: values}`, `[B]` each: what distinguishes the trials, for example the angle shown (radians).
        dt: Duration of a step, ms.
        tau: Time constant of the unit that the noise is scaled for, ms.
        input_labels: Names of the I input channels.
        output_labels: Names of the O output channels.

    Raises:
        TypeError: A field that must be a tensor of floating-point numbers is not.
        ValueError: Shapes disagree, a signal is NaN or inf, a weight is negative, a length is not in 1 … T, an epoch
            lies outside its trial, or `dt` or `tau` is not positive and finite.

    Example:
        >>> from kpflow.tasks import MemoryPro
        >>> trials = MemoryPro().sample(4, mode="grid")
        >>> trials
        Trials(4 trials × 90 steps, float32, dt 20 ms
          inputs: fixation, cos, sin
          outputs: fixation, cos, sin
          epochs: context, stimulus, memory, response
          conditions: angle)
        >>> trials.select(trials.conditions["angle"] < 3).num_trials
        2
        >>> trials.inside("response").sum(dim=1)
        tensor([30, 30, 30, 30])
    """

    inputs: Float[Tensor, "B T I"]
    inputs_clean: Float[Tensor, "B T I"]
    targets: Float[Tensor, "B T O"]
    mask: Float[Tensor, "B T O"]
    length: Int[Tensor, " B"]
    epochs: Mapping[str, tuple[Int[Tensor, " B"], Int[Tensor, " B"]]]
    conditions: Mapping[str, Shaped[Tensor, " B"]]
    dt: int | float
    tau: int | float
    input_labels: tuple[str, ...]
    output_labels: tuple[str, ...]

    def __post_init__(self) -> None:
        check_positive("dt", self.dt, finite=True)
        check_positive("tau", self.tau, finite=True)
        _check_signals(self)
        _check_times(self)

    @property
    def num_trials(self) -> int:
        """B."""
        return self.inputs.shape[0]

    @property
    def num_steps(self) -> int:
        """T."""
        return self.inputs.shape[1]

    @property
    def valid(self) -> Bool[Tensor, "B T"]:
        """Which steps are part of the trial; the others are padding."""
        return torch.arange(self.num_steps, device=self.length.device) < self.length[:, None]

    def inside(self, epoch: str) -> Bool[Tensor, "B T"]:
        """Which steps lie in `epoch`, start ≤ t < stop.

        Raises:
            ValueError: The trials have no such epoch.
        """
        start, stop = self.epochs[resolve_epoch(epoch, self.epochs)]
        step = torch.arange(self.num_steps, device=start.device)
        return (start[:, None] <= step) & (step < stop[:, None])

    def select(self, index: Any) -> "Trials":
        """The trials at `index`: a slice, a list or tensor of positions, or a boolean tensor `[B]`.

        Raises:
            ValueError: No trial is selected, a position is outside the batch, or a boolean index has another length.
        """
        positions = _positions(index, self.num_trials).to(self.length.device)
        return self._map(lambda tensor: tensor[positions])

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Trials":
        """The same trials with floating-point tensors in `dtype` and all tensors on `device`; None leaves as is."""
        return self._map(
            lambda tensor: tensor.to(device=device, dtype=dtype if tensor.dtype.is_floating_point else None)
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Trials":
        return dataclasses.replace(
            self,
            inputs=change(self.inputs),
            inputs_clean=change(self.inputs_clean),
            targets=change(self.targets),
            mask=change(self.mask),
            length=change(self.length),
            epochs={name: (change(start), change(stop)) for name, (start, stop) in self.epochs.items()},
            conditions={name: change(values) for name, values in self.conditions.items()},
        )

    def __repr__(self) -> str:
        dtype = str(self.inputs.dtype).removeprefix("torch.")
        place = "" if self.inputs.device.type == "cpu" else f", {self.inputs.device}"
        lines = {
            "inputs": self.input_labels,
            "outputs": self.output_labels,
            "epochs": self.epochs,
            "conditions": self.conditions,
        }
        head = f"{self.num_trials} trials × {self.num_steps} steps, {dtype}{place}, dt {self.dt:g} ms"
        body = "".join(f"\n  {name}: {', '.join(entries) or 'none'}" for name, entries in lines.items())
        return f"Trials({head}{body})"


def _positions(index: Any, count: int) -> Int[Tensor, " n"]:
    """`index` as the positions of trials among `count` of them."""
    if isinstance(index, slice):
        index = torch.arange(count)[index]
    index = torch.as_tensor(index)
    if index.dtype == torch.bool:
        if tuple(index.shape) != (count,):
            raise ValueError(f"A boolean `index` must have shape ({count},); got {tuple(index.shape)}.")
        index = index.nonzero()[:, 0]
    if index.ndim != 1 or index.numel() == 0 or index.dtype.is_floating_point:
        raise ValueError(
            f"`index` must select at least one trial by whole numbers in one axis; "
            f"got {index.dtype} of shape {tuple(index.shape)}. For one trial, pass [i]."
        )
    if int(index.min()) < -count or int(index.max()) >= count:
        raise ValueError(f"`index` must lie in 0 … {count - 1}; got {int(index.min())} … {int(index.max())}.")
    return index % count


def _check_signals(trials: Trials) -> None:
    """The four signals are finite floating-point tensors of matching shapes, with labels, and weights are ≥ 0."""
    for name in ("inputs", "targets"):
        value = check_tensor(name, getattr(trials, name))
        if value.ndim != 3 or 0 in value.shape:
            raise ValueError(f"`{name}` must have three axes [trial, time, channel]; got {tuple(value.shape)}.")
    B, T, I = trials.inputs.shape
    O = trials.targets.shape[2]
    for name, shape in {"inputs_clean": (B, T, I), "targets": (B, T, O), "mask": (B, T, O)}.items():
        _check_shape(name, check_tensor(name, getattr(trials, name)), shape)
    for name, count in {"input_labels": I, "output_labels": O}.items():
        if len(getattr(trials, name)) != count:
            raise ValueError(f"`{name}` must name {count} channels; got {getattr(trials, name)}.")
    for name in ("inputs", "inputs_clean", "targets", "mask"):
        remedy = "Give steps that do not count weight 0 and a finite target."
        check_finite(name, getattr(trials, name), ("trial", "step", "channel"), remedy)
    if bool((trials.mask < 0).any()):
        raise ValueError(f"`mask` must hold weights ≥ 0; its least entry is {float(trials.mask.min()):g}.")


def _check_times(trials: Trials) -> None:
    """Lengths lie in 1 … T, epochs inside their trial; there is one of each, and of conditions, a trial."""
    B, T = trials.num_trials, trials.num_steps
    _check_shape("length", trials.length, (B,))
    if int(trials.length.min()) < 1 or int(trials.length.max()) > T:
        raise ValueError(f"`length` must lie in 1 … {T}; got {trials.length.tolist()}.")
    for name, (start, stop) in trials.epochs.items():
        _check_shape(f"epochs[{name!r}][0]", start, (B,))
        _check_shape(f"epochs[{name!r}][1]", stop, (B,))
        outside = ((start < 0) | (stop < start) | (stop > trials.length)).nonzero()
        if len(outside):
            b = int(outside[0])
            raise ValueError(
                f"`epochs[{name!r}]` must have 0 ≤ start ≤ stop ≤ length = {int(trials.length[b])}; "
                f"got {int(start[b])} … {int(stop[b])} in trial {b}."
            )
    for name, values in trials.conditions.items():
        _check_shape(f"conditions[{name!r}]", values, (B,))


def _check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ValueError(f"`{name}` must have shape {shape}; got {tuple(value.shape)}.")
