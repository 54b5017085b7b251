"""The problems that are timed, and the baseline that a user would write by hand."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

import kpflow as kp

__all__ = ["PROBLEMS", "Problem", "baseline_product"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model with its inputs."""

    name: str
    model: nn.Module
    inputs: Tensor


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def _inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "rate RNN I=3 H=256, 30 × 90": lambda: Problem(
        "rate RNN I=3 H=256, 30 × 90", kp.states.cells.RateRNN(3, 256), _inputs(30, 90, 3)
    ),
    "GRU I=10 H=64, 15 × 50": lambda: Problem(
        "GRU I=10 H=64, 15 × 50", _seeded(lambda: nn.GRU(10, 64, batch_first=True)), _inputs(15, 50, 10)
    ),
    "nn.RNN I=3 H=128, 32 × 100": lambda: Problem(
        "nn.RNN I=3 H=128, 32 × 100", _seeded(lambda: nn.RNN(3, 128, batch_first=True)), _inputs(32, 100, 3)
    ),
}


def baseline_product(model: nn.Module, inputs: Tensor) -> Callable[[Tensor], Tensor]:
    """NTK products by `torch.func.vmap(jvp ∘ vjp)` of the unrolled module: what one writes by hand."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def states(values: dict[str, Tensor]) -> Tensor:
        result = torch.func.functional_call(model, values, (inputs,))
        return result[0] if isinstance(result, tuple) else result

    _, pull, *_ = torch.func.vjp(states, parameters)

    def product(probe: Tensor) -> Tensor:
        return torch.func.jvp(states, (parameters,), (pull(probe)[0],))[1]

    return torch.vmap(product)
