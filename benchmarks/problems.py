"""The problems that are timed, and what a user would write by hand instead."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

import kpflow as kp

__all__ = ["GRU", "PROBLEMS", "ByHand", "Problem", "cnn", "low_dimensional", "mlp", "transformer"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model with its inputs; `readout` says whose kernel is compared, the states' (None) or the "outputs'"."""

    name: str
    model: nn.Module
    inputs: Tensor
    readout: str | None = None


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def _inputs(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def low_dimensional(trials: int, steps: int, channels: int) -> Tensor:
    """Smooth inputs along two directions, as those of a task are."""
    slow = _inputs(trials, steps, 2).cumsum(1) / steps**0.5
    return slow @ _inputs(2, channels)


def _rate(inputs: Tensor) -> tuple[nn.Module, Tensor]:
    return kp.states.cells.RateRNN(3, 256), inputs


def _lstm() -> tuple[nn.Module, Tensor]:
    """In float64: PyTorch's LSTM has no forward mode in float32 on the CPU. Its output is h, a part of its state."""
    model = _seeded(lambda: nn.LSTM(10, 64, batch_first=True, dtype=torch.float64))
    return model, _inputs(15, 50, 10, dtype=torch.float64)


def mlp(trials: int = 512, dtype: torch.dtype = torch.float32) -> Problem:
    """Two layers on inputs of MNIST's size."""
    layers = _seeded(lambda: nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10)))
    inputs = _inputs(trials, 784, dtype=dtype)
    return Problem(f"MLP 784-256-10, {trials} inputs", layers.to(dtype), inputs, readout="outputs")


def cnn(trials: int = 256, dtype: torch.dtype = torch.float32) -> Problem:
    """Two convolutions, a pooling and a linear layer, on small images."""

    def build() -> nn.Module:
        first, second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(512, 10))

    inputs = _inputs(trials, 1, 16, 16, dtype=dtype)
    return Problem(f"CNN 1-16-32-10, {trials} images 16 × 16", _seeded(build).to(dtype), inputs, readout="outputs")


def transformer(layers: int = 4, width: int = 128, trials: int = 16, tokens: int = 64) -> Problem:
    """An encoder with four heads; its states are what its weights give."""

    def build() -> nn.Module:
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()

    name = f"transformer encoder, {layers} layers, {width} wide, {trials} × {tokens}"
    return Problem(name, _seeded(build), _inputs(trials, tokens, width))


GRU = "GRU I=10 H=64, 15 × 50"

PROBLEMS: dict[str, Callable[[str], Problem]] = {
    GRU: lambda name: Problem(name, _seeded(lambda: nn.GRU(10, 64, batch_first=True)), _inputs(15, 50, 10)),
    "LSTM I=10 H=64, 15 × 50, float64": lambda name: Problem(name, *_lstm(), readout="outputs"),
    "rate RNN I=3 H=256, 30 × 90, white inputs": lambda name: Problem(name, *_rate(_inputs(30, 90, 3))),
    "rate RNN I=3 H=256, 30 × 90, smooth inputs": lambda name: Problem(name, *_rate(low_dimensional(30, 90, 3))),
    "nn.RNN I=3 H=128, 32 × 100": lambda name: Problem(
        name, _seeded(lambda: nn.RNN(3, 128, batch_first=True)), _inputs(32, 100, 3)
    ),
    "GRU I=3 H=128, 20 × 90, smooth inputs": lambda name: Problem(
        name, _seeded(lambda: nn.GRU(3, 128, batch_first=True)), low_dimensional(20, 90, 3)
    ),
}


class ByHand:
    """Products of the whole module by `torch.func`, as one writes them: vmap over vjp and jvp."""

    def __init__(self, problem: Problem) -> None:
        self.parameters = {name: value.detach() for name, value in problem.model.named_parameters()}
        self._model, self._inputs = problem.model, problem.inputs
        _, self._pull, *_ = torch.func.vjp(self._states, self.parameters)
        self.ntk = torch.vmap(self._product)
        """NTK products for a block of probes."""
        self.vjp = torch.vmap(lambda probe: self._pull(probe)[0])
        """Vector-Jacobian products for a block of probes."""

    def _states(self, values: dict[str, Tensor]) -> Tensor:
        result = torch.func.functional_call(self._model, values, (self._inputs,))
        return result[0] if isinstance(result, tuple) else result

    def _product(self, probe: Tensor) -> Tensor:
        return torch.func.jvp(self._states, (self.parameters,), (self._pull(probe)[0],))[1]
