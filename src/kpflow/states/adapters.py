"""Adapters: how a known recurrent module is called, and where its parameters and states are.

A new cell gets its formulas in `steps.py` and one adapter here.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from .cells import LowRankRNN, RateRNN
from .recurrent import Layer
from .steps import Drive, Roles, gru_layer, low_rank_layer, lstm_layer, rate_layer, rnn_layer

__all__ = ["Adapter", "Call", "adapter_for"]

ACTING = ("__call__", "forward", "step", "permute_hidden")  # what the formulas stand for, where a module has it
NONLINEARITIES = {"tanh": torch.tanh, "relu": torch.relu}


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a recurrent module: inputs `[B, T, I]`, initial state as given or None, lengths of the trials."""

    inputs: Tensor
    initial: Any
    lengths: Tensor | None


class Adapter(abc.ABC):
    """A known recurrent module as a stack of layers."""

    @property
    @abc.abstractmethod
    def widths(self) -> tuple[int, ...]:
        """Number of state entries of each layer."""

    @property
    @abc.abstractmethod
    def input_size(self) -> int:
        """I."""

    @abc.abstractmethod
    def roles(self, layer: int) -> dict[str, str]:
        """The module's parameter names of a layer by their role in the formulas."""

    @abc.abstractmethod
    def layer(self, layer: int, roles: Roles, drive: Drive) -> Layer:
        """Run and linearise one layer."""

    @abc.abstractmethod
    def initial_state(self, given: Any, trials: int) -> Tensor:
        """The initial state `[B, n]` from what the module takes."""

    @abc.abstractmethod
    def call(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Call:
        """Read the arguments of one call of the module."""

    @abc.abstractmethod
    def result(self, states: Tensor, lengths: Tensor | None) -> Any:
        """What the module returns when its states are `[B, T, n]`."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class TorchStack(Adapter):
    """`torch.nn.RNN`, `GRU` and `LSTM`."""

    module: nn.RNNBase

    def __post_init__(self) -> None:
        if self.module.bidirectional:
            raise ValueError(
                "The recurrent route takes one direction of time; got a bidirectional module. "
                "Leave out `core` and `initial`: the graph route takes both."
            )
        if self.module.proj_size:
            raise ValueError(f"`proj_size` must be 0 on the recurrent route; got {self.module.proj_size}.")

    @property
    def _blocks(self) -> int:
        return 2 if isinstance(self.module, nn.LSTM) else 1

    @property
    def widths(self) -> tuple[int, ...]:
        return (self._blocks * self.module.hidden_size,) * self.module.num_layers

    @property
    def input_size(self) -> int:
        return self.module.input_size

    def roles(self, layer: int) -> dict[str, str]:
        names = ("weight_hh", "weight_ih", "bias_ih", "bias_hh") if self.module.bias else ("weight_hh", "weight_ih")
        return {name: f"{name}_l{layer}" for name in names}

    def layer(self, layer: int, roles: Roles, drive: Drive) -> Layer:  # noqa: ARG002 - all layers are alike
        return _torch_layer(self.module, roles, drive)

    def initial_state(self, given: Any, trials: int) -> Tensor:
        tensors = _as_tuple(given)
        expected = (self.module.num_layers, trials, self.module.hidden_size)
        if len(tensors) == 1 and tensors[0].ndim <= 2:
            return _flat_initial(tensors[0], trials, sum(self.widths))
        if len(tensors) != self._blocks:
            raise ValueError(f"`initial` must be {self._blocks} tensor(s) of shape {expected}; got {len(tensors)}.")
        full = [_expanded(tensor, expected) for tensor in tensors]
        return torch.cat([tensor[i] for i in range(self.module.num_layers) for tensor in full], dim=-1)

    def call(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Call:
        inputs, initial = _two(arguments, keywords, ("input", "hx"))
        lengths = None
        if isinstance(inputs, nn.utils.rnn.PackedSequence):
            inputs, lengths = nn.utils.rnn.pad_packed_sequence(inputs, batch_first=True)
        elif not self.module.batch_first:
            inputs = inputs.transpose(0, 1)
        return Call(inputs, initial, lengths)

    def result(self, states: Tensor, lengths: Tensor | None) -> Any:
        size = self.module.hidden_size
        tops = states[..., sum(self.widths[:-1]) :][..., :size]
        ends = _last(states, lengths).unflatten(-1, (self.module.num_layers, self._blocks, size))
        finals = tuple(block.transpose(0, 1).contiguous() for block in ends.unbind(2))
        if lengths is not None:
            packed = nn.utils.rnn.pack_padded_sequence(tops, lengths.cpu(), batch_first=True, enforce_sorted=False)
            return packed, finals if self._blocks == 2 else finals[0]
        output = tops if self.module.batch_first else tops.transpose(0, 1)
        return output.contiguous(), finals if self._blocks == 2 else finals[0]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class TorchCell(Adapter):
    """`torch.nn.RNNCell`, `GRUCell` and `LSTMCell`, run over the steps of a sequence."""

    module: nn.RNNCell | nn.GRUCell | nn.LSTMCell

    @property
    def widths(self) -> tuple[int, ...]:
        return ((2 if isinstance(self.module, nn.LSTMCell) else 1) * self.module.hidden_size,)

    @property
    def input_size(self) -> int:
        return self.module.input_size

    def roles(self, layer: int) -> dict[str, str]:  # noqa: ARG002 - there is one layer
        names = ("weight_hh", "weight_ih", "bias_ih", "bias_hh") if self.module.bias else ("weight_hh", "weight_ih")
        return {name: name for name in names}

    def layer(self, layer: int, roles: Roles, drive: Drive) -> Layer:  # noqa: ARG002
        return _torch_layer(self.module, roles, drive)

    def initial_state(self, given: Any, trials: int) -> Tensor:
        return _flat_initial(torch.cat([*_as_tuple(given)], dim=-1), trials, self.widths[0])

    def call(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Call:
        return Call(*_two(arguments, keywords, ("input", "hx")), None)

    def result(self, states: Tensor, lengths: Tensor | None) -> Any:  # noqa: ARG002
        return states[..., : self.module.hidden_size]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class RateNetwork(Adapter):
    """kpflow's own `RateRNN` and `LowRankRNN`."""

    module: RateRNN | LowRankRNN

    def __post_init__(self) -> None:
        phi = self.module.nonlinearity
        if isinstance(phi, nn.Module) and any(True for _ in phi.parameters()):
            raise ValueError(
                f"`nonlinearity` must have no parameters of its own here; got {type(phi).__name__}. Use a fixed "
                "function, or write the step(h, x) as a module and linearise that, with `initial`."
            )

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.module.hidden_size,)

    @property
    def input_size(self) -> int:
        return self.module.weight_ih.shape[1]

    def roles(self, layer: int) -> dict[str, str]:  # noqa: ARG002 - there is one layer
        weights = ("left", "right") if isinstance(self.module, LowRankRNN) else ("weight_hh",)
        bias = () if self.module.bias is None else ("bias",)
        return {name: name for name in (*weights, "weight_ih", *bias)}

    def layer(self, layer: int, roles: Roles, drive: Drive) -> Layer:  # noqa: ARG002
        module = self.module
        if isinstance(module, LowRankRNN):
            return low_rank_layer(roles, drive, module.nonlinearity, module.alpha)
        return rate_layer(roles, drive, module.nonlinearity, module.alpha, module.convention == "inside")

    def initial_state(self, given: Any, trials: int) -> Tensor:
        (tensor,) = _as_tuple(given)
        return _flat_initial(tensor, trials, self.module.hidden_size)

    def call(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Call:
        noise = arguments[2] if len(arguments) > 2 else keywords.get("noise")
        if noise is not None:
            raise ValueError(
                f"`noise` must not be given to a {type(self.module).__name__} that is linearised: its states are "
                "random. Give it in training mode only, and call model.eval() first."
            )
        return Call(*_two(arguments, keywords, ("inputs", "initial")), None)

    def result(self, states: Tensor, lengths: Tensor | None) -> Any:  # noqa: ARG002
        return states


def adapter_for(module: Any) -> Adapter | None:
    """The adapter of a known recurrent module, or None.

    A module whose forward pass or step is its own, by a subclass or set on it, is not known: its formulas may differ.
    """
    for kinds, adapter in (
        ((nn.RNN, nn.GRU, nn.LSTM), TorchStack),
        ((nn.RNNCell, nn.GRUCell, nn.LSTMCell), TorchCell),
        ((RateRNN, LowRankRNN), RateNetwork),
    ):
        for kind in kinds:
            if isinstance(module, kind) and not any(_overrides(module, kind, name) for name in ACTING):
                return adapter(module)  # type: ignore[arg-type]
    return None


def _overrides(module: nn.Module, kind: type[nn.Module], name: str) -> bool:
    """Whether the module has a method other than that of its kind."""
    return name in vars(module) or getattr(type(module), name, None) is not getattr(kind, name, None)


def _torch_layer(module: nn.Module, roles: Roles, drive: Drive) -> Layer:
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        return lstm_layer(roles, drive)
    if isinstance(module, (nn.GRU, nn.GRUCell)):
        return gru_layer(roles, drive)
    return rnn_layer(roles, drive, NONLINEARITIES[str(module.nonlinearity)])


def _as_tuple(given: Any) -> tuple[Tensor, ...]:
    tensors = given if isinstance(given, (tuple, list)) else (given,)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"`initial` must be a tensor or a tuple of them; got {type(tensor).__name__}.")
    return tuple(tensors)


def _flat_initial(tensor: Tensor, trials: int, width: int) -> Tensor:
    if (
        tensor.ndim == 0
        or tensor.shape[-1] != width
        or tensor.ndim > 2
        or (tensor.ndim == 2 and len(tensor) not in (1, trials))
    ):
        raise ValueError(
            f"`initial` must have shape ({trials}, {width}), or ({width},) for all trials alike; "
            f"got {tuple(tensor.shape)}."
        )
    return tensor.expand(trials, width)


def _expanded(tensor: Tensor, shape: tuple[int, int, int]) -> Tensor:
    layers, trials, size = shape
    if tuple(tensor.shape) not in ((layers, trials, size), (layers, 1, size)):
        raise ValueError(f"`initial` must have shape {shape} (layer, trial, unit); got {tuple(tensor.shape)}.")
    return tensor.expand(shape)


def _two(arguments: Sequence[Any], keywords: Mapping[str, Any], names: tuple[str, str]) -> tuple[Any, Any]:
    """The first two arguments of a call, given by place or by name."""
    given = dict(zip(names, arguments, strict=False)) | dict(keywords)
    return given[names[0]], given.get(names[1])


def _last(states: Tensor, lengths: Tensor | None) -> Tensor:
    """The state of each trial at its last step, `[B, n]`."""
    if lengths is None:
        return states[:, -1]
    index = (lengths.to(states.device) - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1])
    return states.gather(1, index).squeeze(1)
