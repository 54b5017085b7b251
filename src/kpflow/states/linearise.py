"""linearise: from a model and its inputs to a linearised state equation."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kpflow._checks import check_finite, check_tensor
from kpflow.spaces import Space

from .adapters import Adapter, Call, adapter_for
from .base import Linearisation
from .recurrent import Layer, RecurrentLinearisation
from .steps import Drive, Roles
from .surround import CoreReadout, ModelReadout, Surround, find_upstream
from .unknown import step_layer

__all__ = ["linearise"]

INITIAL = "initial"  # name of a trainable initial state among the parameters


def linearise(
    model: nn.Module | Callable[..., Tensor],
    inputs: Any,
    *,
    core: str | None = None,
    initial: Any = None,
    lengths: Tensor | None = None,
    parameters: Mapping[str, Tensor] | None = None,
) -> Linearisation:
    """Record the states of a model on `inputs` and linearise the equation S = F(S, x, θ) that they solve.

    With L = ∂F/∂S and J = ∂F/∂θ at the recorded states, dS = P J dθ with P = (I − L)⁻¹. Models:

    - `torch.nn.RNN`, `GRU`, `LSTM` and their cells, `kpflow.states.cells.RateRNN` and `LowRankRNN`: analytic;
    - a module that contains one of these (`core="name"`), with whatever is around it: the read-out and an encoder are
      differentiated automatically;
    - any step `step(h, x)` that maps states `[B, H]` and inputs `[B, I]` to states `[B, H]`, given with `initial`: a
      module, or a function, `step(h, x, parameters)` if it comes with `parameters`.

    The model is not changed: weights, gradients and their flags, mode, hooks and random state stay as they are. Frozen
    parameters (`requires_grad=False`) do not count.

    Args:
        model: The model.
        inputs: Shape `[B, T, I]`, or what the model takes: `[T, B, I]` for a module with `batch_first=False`.
        core: Name of the recurrent submodule of `model`; None if the model itself is recurrent.
        initial: Initial state, in the module's own layout or as `[B, H]` in the layout of the states (layers side by
            side, an LSTM's as h‖c); zero by default. If it requires a gradient, it is a parameter named "initial".
        lengths: Number of steps of each trial, shape `[B]`, for padded batches; states after the end are zero.
        parameters: Parameters of a step that is a function.

    Returns:
        The linearisation; its `states` are `[B, T, H]`.

    Raises:
        TypeError: `inputs` is no floating-point tensor, or `model` cannot be called.
        ValueError: Wrong shapes, dtypes or devices, NaN or inf (named where), an empty batch, no trainable parameter,
            dropout in training mode, a bidirectional module, or a model of which no recurrence is known.

    Example:
        >>> model = torch.nn.GRU(3, 8, batch_first=True)
        >>> lin = linearise(model, torch.zeros(2, 5, 3))
        >>> lin.space
        Space(trial 2 × time 5 × unit 8, float32)
        >>> lin.parameters
        Space(parameter 312 in 4 parts, float32)
    """
    if not callable(model):
        raise TypeError(f"`model` must be a torch.nn.Module or a function step(h, x); got {type(model).__name__}.")
    if isinstance(model, nn.Module):
        _check_module(model)
    with torch.no_grad():
        if core is not None:
            return _linearise_around(model, core, inputs, initial, lengths)
        adapter = adapter_for(model)
        if adapter is not None and isinstance(model, nn.Module):
            return _linearise_core(model, adapter, inputs, initial, lengths)
        return _linearise_step(model, inputs, initial, lengths, parameters)


def _linearise_core(
    model: nn.Module, adapter: Adapter, inputs: Any, initial: Any, lengths: Tensor | None
) -> RecurrentLinearisation:
    """A bare recurrent module."""
    trained = _trainable(model.named_parameters())
    check_tensor("inputs", inputs)
    if inputs.ndim != 3:
        raise ValueError(f"`inputs` must have three axes, trial, time and input; got shape {tuple(inputs.shape)}.")
    transposed = not getattr(model, "batch_first", True)
    call = Call(inputs.transpose(0, 1) if transposed else inputs, initial, lengths)
    trained |= _trainable_initial(initial)
    drive = _drive(adapter, call, next(model.parameters()))
    space = _parameter_space(trained)
    layers = _stack(adapter, model, "", trained, drive)

    def upstream(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {INITIAL: adapter.initial_state(_with_initial(initial, values), drive.inputs.shape[1])}

    found = find_upstream(upstream, _trainable_initial(initial)) if _trainable_initial(initial) else None
    lin = RecurrentLinearisation(layers, space, found, None)
    start = lin.states.shape[-1] - layers[-1].width
    lin.readout = CoreReadout(lin.states, slice(start, start + layers[-1].size), space)
    return _checked(lin)


def _linearise_around(
    model: Any, core: str, inputs: Any, initial: Any, lengths: Tensor | None
) -> RecurrentLinearisation:
    """A model around a recurrent core."""
    if not isinstance(model, nn.Module) or core not in dict(model.named_modules()) or not core:
        names = (
            [name for name, module in model.named_modules() if adapter_for(module)]
            if isinstance(model, nn.Module)
            else []
        )
        known = f"it has {', '.join(map(repr, names))}" if names else "it has none that is known"
        raise ValueError(f"`core` must name a recurrent submodule of the model ({known}); got {core!r}.")
    module = model.get_submodule(core)
    adapter = adapter_for(module)
    if adapter is None:
        raise ValueError(f"`core` must be a recurrent module that kpflow knows; {core!r} is a {type(module).__name__}.")
    if initial is not None:
        raise ValueError("`initial` goes with a bare recurrent module; with `core` the model gives the initial state.")
    trained = _trainable(model.named_parameters())
    surround = Surround(model, core, inputs, adapter)
    call = surround.reach({})
    call = Call(call.inputs, call.initial, lengths if call.lengths is None else call.lengths)
    drive = _drive(adapter, call, next(module.parameters()))
    trials = drive.inputs.shape[1]

    def upstream(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        reached = surround.reach(values)
        moved = {"inputs": reached.inputs.transpose(0, 1)}
        return moved if reached.initial is None else moved | {INITIAL: adapter.initial_state(reached.initial, trials)}

    space = _parameter_space(trained)
    lin = RecurrentLinearisation(
        _stack(adapter, module, f"{core}.", trained, drive), space, find_upstream(upstream, trained), None
    )
    # a model that packed its own batch gets it back packed; `lengths` of the caller leave the core's layout as it is
    packed = surround.reach({}).lengths
    lin.readout = ModelReadout(
        lambda values, states: surround.finish(values, states, packed), lin.states, trained, space
    )
    return _checked(lin)


def _linearise_step(
    model: Any, inputs: Any, initial: Any, lengths: Tensor | None, parameters: Mapping[str, Tensor] | None
) -> RecurrentLinearisation:
    """A step by itself."""
    if initial is None:
        raise ValueError(
            f"No recurrence is known of a {type(model).__name__}: name its recurrent submodule with `core`, or, if it is "
            "a step(h, x) itself, give the state before the first step as `initial`, shape [B, H]."
        )
    check_tensor("inputs", inputs)
    check_tensor("initial", initial)
    if inputs.ndim != 3 or initial.ndim not in (1, 2):
        raise ValueError(
            "A step needs `inputs` [B, T, I] and `initial` [B, H]; "
            f"got shapes {tuple(inputs.shape)} and {tuple(initial.shape)}."
        )
    trained = _trainable(model.named_parameters() if isinstance(model, nn.Module) else (parameters or {}).items())
    own = dict(trained)
    trained |= _trainable_initial(initial)
    trials = len(inputs)

    def step(values: Mapping[str, Tensor], state: Tensor, x: Tensor) -> Tensor:
        if isinstance(model, nn.Module):
            return torch.func.functional_call(model, dict(values), (state, x))
        return model(state, x) if parameters is None else model(state, x, {**_detached(parameters), **values})

    def upstream(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {INITIAL: _with_initial(initial, values).expand(trials, -1)}

    drive = _checked_drive(
        inputs.transpose(0, 1), initial.detach().expand(trials, -1), lengths, next(iter(trained.values()))
    )
    layer = step_layer(step, own, drive)
    found = find_upstream(upstream, _trainable_initial(initial)) if _trainable_initial(initial) else None
    return _checked(RecurrentLinearisation([layer], _parameter_space(trained), found, None))


def _stack(
    adapter: Adapter, module: nn.Module, prefix: str, trained: Mapping[str, Tensor], drive: Drive
) -> list[Layer]:
    """Run and linearise the layers from the bottom to the top."""
    layers: list[Layer] = []
    inputs = drive.inputs
    for index, initial in enumerate(drive.initial.split(list(adapter.widths), dim=-1)):
        local = adapter.roles(index)
        tensors = {role: getattr(module, name).detach() for role, name in local.items()}
        names = {role: prefix + name for role, name in local.items() if prefix + name in trained}
        layer = adapter.layer(index, Roles(tensors, names), Drive(inputs, initial, drive.valid))
        layers.append(layer)
        inputs = layer.states[..., : layer.size]
    return layers


def _drive(adapter: Adapter, call: Call, like: Tensor) -> Drive:
    """The drive of a known module, from one call of it."""
    trials = len(call.inputs)
    if call.inputs.shape[-1] != adapter.input_size:
        raise ValueError(
            f"`inputs` must have {adapter.input_size} channels on its last axis; got shape {tuple(call.inputs.shape)}."
        )
    if call.initial is None:
        initial = like.new_zeros(trials, sum(adapter.widths))
    else:
        initial = adapter.initial_state(call.initial, trials)
    return _checked_drive(call.inputs.transpose(0, 1), initial, call.lengths, like)


def _checked_drive(inputs: Tensor, initial: Tensor, lengths: Tensor | None, like: Tensor) -> Drive:
    """A drive from time-first inputs `[T, B, I]`, after checks that name what is wrong."""
    if inputs.numel() == 0:
        raise ValueError(
            "`inputs` must have at least one trial and one step; "
            f"got {inputs.shape[1]} trials of {inputs.shape[0]} steps."
        )
    for name, tensor in (("inputs", inputs), ("initial", initial)):
        if tensor.dtype != like.dtype:
            raise TypeError(
                f"`{name}` must have the parameters' dtype {like.dtype}; got {tensor.dtype}. Convert one of them."
            )
        if tensor.device != like.device:
            raise ValueError(
                f"`{name}` must be on the parameters' device {like.device}; got {tensor.device}. Move one of them."
            )
    check_finite("inputs", inputs.transpose(0, 1), ("trial", "time", "input"))
    check_finite("initial", initial, ("trial", "unit"))
    return Drive(inputs.detach().contiguous(), initial.detach().contiguous(), _valid(lengths, inputs))


def _valid(lengths: Tensor | None, inputs: Tensor) -> Tensor | None:
    if lengths is None:
        return None
    steps, trials = inputs.shape[:2]
    lengths = torch.as_tensor(lengths)
    if lengths.dtype.is_floating_point or tuple(lengths.shape) != (trials,):
        raise ValueError(
            f"`lengths` must hold one whole number for each of the {trials} trials; "
            f"got {lengths.dtype} of shape {tuple(lengths.shape)}."
        )
    if int(lengths.min()) < 1 or int(lengths.max()) > steps:
        raise ValueError(f"`lengths` must lie between 1 and {steps}; got {lengths.tolist()}.")
    time = torch.arange(steps, device=inputs.device).unsqueeze(-1)
    return (time < lengths.to(inputs.device)).to(inputs.dtype).unsqueeze(-1)


def _trainable(parameters: Any) -> dict[str, Tensor]:
    """The trainable parameters by name, checked and detached."""
    trained = {}
    for name, value in parameters:
        check_finite(name, value.detach(), remedy="The model may have diverged; load an earlier checkpoint.")
        if value.is_complex():
            raise TypeError(f"`{name}` must be real; complex parameters are not supported.")
        if value.requires_grad:
            trained[name] = value.detach()
    if not trained:
        raise ValueError(
            "The model has no trainable parameter, so K = 0. Unfreeze some with requires_grad_(True), or give "
            "a function its `parameters`."
        )
    return trained


def _trainable_initial(initial: Any) -> dict[str, Tensor]:
    if isinstance(initial, (tuple, list)):
        found = {f"{INITIAL}.{i}": tensor for i, tensor in enumerate(initial)}
    else:
        found = {INITIAL: initial}
    return {k: v.detach() for k, v in found.items() if isinstance(v, Tensor) and v.requires_grad}


def _with_initial(initial: Any, values: Mapping[str, Tensor]) -> Any:
    if isinstance(initial, (tuple, list)):
        return tuple(values.get(f"{INITIAL}.{i}", tensor) for i, tensor in enumerate(initial))
    return values.get(INITIAL, initial)


def _detached(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in parameters.items()}


def _parameter_space(trained: Mapping[str, Tensor]) -> Space:
    kinds = {(value.dtype, value.device) for value in trained.values()}
    if len(kinds) > 1:
        listed = ", ".join(f"{dtype} on {device}" for dtype, device in sorted(kinds, key=str))
        raise ValueError(f"The trainable parameters must share one dtype and one device; got {listed}.")
    ((dtype, device),) = kinds
    return Space.of_parts({name: value.shape for name, value in trained.items()}, "parameter", dtype, device)


def _check_module(model: nn.Module) -> None:
    """Refuse what would make the recorded states random or the parameters something else than they seem."""
    for name, module in model.named_modules():
        where = f"`{name}`" if name else "The model"
        random = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        between = isinstance(module, nn.RNNBase) and module.dropout > 0
        if module.training and (random or between):
            raise ValueError(
                f"{where} applies dropout in training mode, so its states are random. Call model.eval() first."
            )
        if module.training and isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"{where} is a batch norm in training mode, which couples trials. Call model.eval() first."
            )
        if nn.utils.parametrize.is_parametrized(module) and adapter_for(module):
            raise ValueError(
                f"{where} is parametrised, so its weights are not its parameters. Remove the parametrisation."
            )


def _checked(lin: RecurrentLinearisation) -> RecurrentLinearisation:
    check_finite("states", lin.states, ("trial", "time", "unit"), "The trajectory diverges; check weights and inputs.")
    return lin
