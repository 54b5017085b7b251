"""What is checked and read off a model and its inputs before it is linearised."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kpflow._checks import check_finite, check_tensor
from kpflow.spaces import Space

from .steps import Drive

__all__ = [
    "INITIAL",
    "check_deterministic",
    "make_drive",
    "parameter_space",
    "sequence_inputs",
    "trainable",
    "trainable_initial",
    "with_initial",
]

INITIAL = "initial"  # name of a trainable initial state among the parameters


def check_deterministic(model: nn.Module) -> None:
    """Refuse what makes the recorded states random or couples trials."""
    for name, module in model.named_modules():
        where = f"`{name}`" if name else "The model"
        dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        between = isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1
        if module.training and (dropout or between):
            raise ValueError(
                f"{where} applies dropout in training mode, so states are random. Call model.eval() first."
            )
        if module.training and isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{where} is a batch norm in training mode, which couples trials. Call model.eval() first."
            )


def sequence_inputs(inputs: Any) -> Tensor:
    """The inputs of a recurrence: a floating-point tensor with three axes."""
    check_tensor("inputs", inputs)
    if inputs.ndim != 3:
        raise ValueError(f"`inputs` must have three axes, trial, time and input; got shape {tuple(inputs.shape)}.")
    return inputs


def trainable(parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The trainable parameters by name, checked and detached."""
    trained = {}
    for name, value in parameters:
        if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"The parameter `{name}` must be a real floating-point tensor; got {got}. Keep the two parts of "
                "complex numbers as real parameters, and join them with torch.complex in the forward pass."
            )
        if nn.parameter.is_lazy(value) or value.is_meta:
            raise ValueError(
                f"The parameter `{name}` has no values yet. Load or initialise it; call a lazy module once."
            )
        check_finite(name, value.detach(), remedy="The model may have diverged; load an earlier checkpoint.")
        if value.requires_grad:
            trained[name] = value.detach().clone()  # a snapshot: training goes on in place
    if not trained:
        raise ValueError(
            "The model has no trainable parameter, so K = 0. Unfreeze some with requires_grad_(True), or give a "
            "function its `parameters`."
        )
    return trained


def parameter_space(trained: Mapping[str, Tensor]) -> Space:
    """The flat space of the trainable parameters."""
    kinds = {(value.dtype, value.device) for value in trained.values()}
    if len(kinds) > 1:
        listed = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise ValueError(f"The trainable parameters must share one dtype and one device; got {listed}.")
    ((dtype, device),) = kinds
    return Space.of_parts({name: value.shape for name, value in trained.items()}, "parameter", dtype, device)


def trainable_initial(initial: Any) -> dict[str, Tensor]:
    """The parts of an initial state that require a gradient, as parameters by name."""
    return {name: value.detach().clone() for name, value in _named_initial(initial).items() if value.requires_grad}


def with_initial(initial: Any, values: Mapping[str, Tensor]) -> Any:
    """The initial state with its parameters replaced by `values`."""
    if isinstance(initial, (tuple, list)):
        return tuple(values.get(name, tensor) for name, tensor in _named_initial(initial).items())
    return values.get(INITIAL, initial)


def make_drive(inputs: Tensor, initial: Tensor, lengths: Tensor | None, like: Tensor) -> Drive:
    """A drive from inputs `[B, T, I]`, an initial state `[B, n]` and lengths, of the dtype and device of `like`."""
    trials, steps = inputs.shape[:2]
    if inputs.numel() == 0:
        raise ValueError(f"`inputs` must have at least one trial and one step; got {trials} trials of {steps} steps.")
    for name, tensor in (("inputs", inputs), ("initial", initial)):
        if tensor.dtype != like.dtype:
            raise TypeError(f"`{name}` must have the parameters' dtype {like.dtype}; got {tensor.dtype}. Convert one.")
        if tensor.device != like.device:
            raise ValueError(
                f"`{name}` must be on the parameters' device {like.device}; got {tensor.device}. Move one."
            )
    check_finite("inputs", inputs, ("trial", "time", "input"))
    check_finite("initial", initial, ("trial", "unit"))
    by_time = inputs.detach().transpose(0, 1).clone(memory_format=torch.contiguous_format)
    return Drive(by_time, initial.detach().clone(), _valid(lengths, inputs))


def _valid(lengths: Tensor | None, inputs: Tensor) -> Tensor | None:
    """1 while a trial lasts and 0 after, `[T, B, 1]`; None where all last to the end."""
    if lengths is None:
        return None
    trials, steps = inputs.shape[:2]
    lengths = torch.as_tensor(lengths, device=inputs.device)
    if lengths.dtype.is_floating_point or tuple(lengths.shape) != (trials,):
        raise ValueError(
            f"`lengths` must hold one whole number for each of the {trials} trials; "
            f"got {lengths.dtype} of shape {tuple(lengths.shape)}."
        )
    if int(lengths.min()) < 1 or int(lengths.max()) > steps:
        raise ValueError(f"`lengths` must lie between 1 and {steps}, the number of steps; got {lengths.tolist()}.")
    time = torch.arange(steps, device=inputs.device).unsqueeze(-1)
    return (time < lengths).to(inputs.dtype).unsqueeze(-1)


def _named_initial(initial: Any) -> dict[str, Tensor]:
    if isinstance(initial, (tuple, list)):
        return {f"{INITIAL}.{i}": tensor for i, tensor in enumerate(initial) if isinstance(tensor, Tensor)}
    return {INITIAL: initial} if isinstance(initial, Tensor) else {}
