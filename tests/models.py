"""A table of models, each with its states as a function of its parameters by the module's own forward pass."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

import kpflow as kp
from kpflow.states.cells import LowRankRNN, RateRNN

F64 = torch.float64


@dataclasses.dataclass(frozen=True)
class Case:
    model: object
    inputs: Tensor
    states: Callable[[dict[str, Tensor]], Tensor]  # trainable parameters -> [B, T, n]
    parameters: dict[str, Tensor]
    keywords: dict = dataclasses.field(default_factory=dict)
    outputs: Callable[[dict[str, Tensor]], Tensor] | None = None


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def seeded(module: nn.Module, seed: int = 0, scale: float = 0.6) -> nn.Module:
    """The module in float64, with weights from a local generator (torch's own constructors use the global one)."""
    generator = torch.Generator().manual_seed(seed)
    module = module.to(F64).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=F64))
    return module


def trainable(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def stepped_states(module: nn.RNNBase, parameters: dict[str, Tensor], inputs: Tensor, initial=None) -> Tensor:
    """All layers' states from the module's own kernel, called one step at a time: `[B, T, n]`, layers side by side."""
    if not module.batch_first:
        inputs = inputs.transpose(0, 1)
    hidden, states = initial, []
    for t in range(inputs.shape[1]):
        x = inputs[:, t : t + 1] if module.batch_first else inputs[:, t : t + 1].transpose(0, 1)
        arguments = (x,) if hidden is None else (x, hidden)
        _, hidden = torch.func.functional_call(module, parameters, arguments)
        pieces = hidden if isinstance(hidden, tuple) else (hidden,)
        states.append(torch.cat([piece[i] for i in range(module.num_layers) for piece in pieces], dim=-1))
    return torch.stack(states, dim=1)


def torch_case(kind: str, layers: int = 1, bias: bool = True, given: bool = False, **options) -> Case:
    batch_first = options.pop("batch_first", True)
    module = seeded(getattr(nn, kind)(3, 4, layers, bias=bias, batch_first=batch_first, **options))
    inputs = randn(2, 5, 3, seed=1)
    inputs = inputs if batch_first else inputs.transpose(0, 1).contiguous()
    initial = None
    if given:
        initial = randn(layers, 2, 4, seed=2)
        initial = (initial, randn(layers, 2, 4, seed=3)) if kind == "LSTM" else initial
    keywords = {} if initial is None else {"initial": initial}
    return Case(module, inputs, lambda p: stepped_states(module, p, inputs, initial), trainable(module), keywords)


def cell_case(kind: str, bias: bool = True) -> Case:
    cell = seeded(getattr(nn, kind)(3, 4, bias=bias))
    inputs = randn(2, 5, 3, seed=1)

    def states(parameters: dict[str, Tensor]) -> Tensor:
        hidden, result = None, []
        for x in inputs.unbind(1):
            hidden = torch.func.functional_call(cell, parameters, (x,) if hidden is None else (x, hidden))
            result.append(torch.cat(hidden, dim=-1) if isinstance(hidden, tuple) else hidden)
        return torch.stack(result, dim=1)

    return Case(cell, inputs, states, trainable(cell))


def rate_case(module: nn.Module, given: bool = False) -> Case:
    module = seeded(module)
    inputs = randn(2, 5, 3, seed=1)
    initial = randn(2, 4, seed=2) if given else None
    return Case(
        module,
        inputs,
        lambda p: torch.func.functional_call(module, p, (inputs, initial)),
        trainable(module),
        {"initial": initial} if given else {},
    )


class CustomStep(nn.Module):
    """A step that no formula knows: a gate of its own and a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(7, 4)
        self.gate = nn.Linear(7, 4, bias=False)
        self.norm = nn.LayerNorm(4)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        both = torch.cat([h, x], dim=-1)
        return self.norm(h + torch.sigmoid(self.gate(both)) * torch.tanh(self.mix(both)))


def step_states(step: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, initial: Tensor) -> Tensor:
    state, states = initial, []
    for x in inputs.unbind(1):
        state = step(state, x)
        states.append(state)
    return torch.stack(states, dim=1)


def module_step_case() -> Case:
    step = seeded(CustomStep())
    inputs, initial = randn(2, 5, 3, seed=1), randn(2, 4, seed=2)

    def states(parameters: dict[str, Tensor]) -> Tensor:
        return step_states(lambda h, x: torch.func.functional_call(step, parameters, (h, x)), inputs, initial)

    return Case(step, inputs, states, trainable(step), {"initial": initial})


def function_step_case() -> Case:
    parameters = {"w": randn(4, 4, seed=3).requires_grad_(), "u": randn(4, 3, seed=4).requires_grad_()}
    parameters["leak"] = torch.tensor(0.1, dtype=F64, requires_grad=True)  # without an axis
    inputs, initial = randn(2, 5, 3, seed=1), randn(2, 4, seed=2)

    def step(h: Tensor, x: Tensor, p: dict[str, Tensor]) -> Tensor:
        return torch.sin(h @ p["w"].mT + x @ p["u"].mT) - p["leak"] * h

    return Case(
        step,
        inputs,
        lambda p: step_states(lambda h, x: step(h, x, p), inputs, initial),
        {name: value.detach() for name, value in parameters.items()},
        {"initial": initial, "parameters": parameters},
    )


def trainable_initial_case(kind: str, layers: int) -> Case:
    module = seeded(getattr(nn, kind)(3, 4, layers, batch_first=True))
    inputs = randn(2, 5, 3, seed=1)
    width = layers * (8 if kind == "LSTM" else 4)
    initial = nn.Parameter(randn(width, seed=2))

    def states(parameters: dict[str, Tensor]) -> Tensor:
        own = {name: value for name, value in parameters.items() if name != "initial"}
        blocks = parameters["initial"].expand(2, -1).unflatten(-1, (layers, width // layers // 4, 4))
        hidden = tuple(block.transpose(0, 1).contiguous() for block in blocks.unbind(2))
        return stepped_states(module, own, inputs, hidden if kind == "LSTM" else hidden[0])

    return Case(module, inputs, states, trainable(module) | {"initial": initial.detach()}, {"initial": initial})


class Around(nn.Module):
    """An encoder, a trainable initial state, a recurrent core, and a read-out that also sees the inputs."""

    def __init__(self, core: nn.Module, outputs: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 3)
        self.start = nn.Parameter(torch.zeros(4))
        self.rnn = core
        self.readout = nn.Linear(4, outputs)
        self.skip = nn.Linear(3, outputs, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        encoded = torch.tanh(self.encoder(inputs))
        start = self.start.expand(1, len(inputs), -1).contiguous()
        states, last = self.rnn(encoded, start)
        return self.readout(states) * (1 + last.mean()) + self.skip(encoded)


class Plain(nn.Module):
    """A recurrent core and a linear read-out."""

    def __init__(self, core: nn.Module, outputs: int = 2) -> None:
        super().__init__()
        self.rnn = core
        self.readout = nn.Linear(4, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        states = self.rnn(inputs)
        return self.readout(states[0] if isinstance(states, tuple) else states)


def around_case(kind: str) -> Case:
    model = seeded(Around(getattr(nn, kind)(3, 4, batch_first=True)))
    inputs = randn(2, 5, 2, seed=1)

    def states(parameters: dict[str, Tensor]) -> Tensor:
        encoded = torch.tanh(inputs @ parameters["encoder.weight"].mT + parameters["encoder.bias"])
        own = {name.removeprefix("rnn."): value for name, value in parameters.items() if name.startswith("rnn.")}
        return stepped_states(model.rnn, own, encoded, parameters["start"].expand(1, 2, -1).contiguous())

    return Case(
        model,
        inputs,
        states,
        trainable(model),
        {"core": "rnn"},
        lambda p: torch.func.functional_call(model, p, (inputs,)),
    )


def plain_case(core: nn.Module) -> Case:
    model = seeded(Plain(core))
    inputs = randn(2, 5, 3, seed=1)

    def states(parameters: dict[str, Tensor]) -> Tensor:
        own = {name.removeprefix("rnn."): value for name, value in parameters.items() if name.startswith("rnn.")}
        if isinstance(model.rnn, nn.RNNBase):
            return stepped_states(model.rnn, own, inputs)
        return torch.func.functional_call(model.rnn, own, (inputs,))

    return Case(
        model,
        inputs,
        states,
        trainable(model),
        {"core": "rnn"},
        lambda p: torch.func.functional_call(model, p, (inputs,)),
    )


MODELS: dict[str, Callable[[], Case]] = {
    **{
        f"{kind}-{layers}{'' if bias else '-nobias'}{'-given' if given else ''}": (
            lambda kind=kind, layers=layers, bias=bias, given=given: torch_case(kind, layers, bias, given)
        )
        for kind in ("RNN", "GRU", "LSTM")
        for layers in (1, 2)
        for bias in (True, False)
        for given in (False, True)
    },
    "RNN-relu": lambda: torch_case("RNN", 2, nonlinearity="relu"),
    "GRU-time-first": lambda: torch_case("GRU", 2, batch_first=False),
    "LSTM-three": lambda: torch_case("LSTM", 3),
    **{
        f"{kind}{'' if bias else '-nobias'}": lambda kind=kind, bias=bias: cell_case(kind, bias)
        for kind in ("RNNCell", "GRUCell", "LSTMCell")
        for bias in (True, False)
    },
    "rate-inside": lambda: rate_case(RateRNN(3, 4, alpha=0.3, bias=True)),
    "rate-inside-map": lambda: rate_case(RateRNN(3, 4), given=True),
    "rate-outside": lambda: rate_case(RateRNN(3, 4, alpha=0.3, bias=True, convention="outside"), given=True),
    "rate-softplus": lambda: rate_case(RateRNN(3, 4, alpha=0.5, nonlinearity=nn.functional.softplus)),
    "low-rank": lambda: rate_case(LowRankRNN(3, 4, 2, alpha=0.4, bias=True)),
    "low-rank-given": lambda: rate_case(LowRankRNN(3, 4, 1), given=True),
    "step-module": module_step_case,
    "step-function": function_step_case,
    "trainable-initial-RNN": lambda: trainable_initial_case("RNN", 1),
    "trainable-initial-GRU": lambda: trainable_initial_case("GRU", 2),
    "trainable-initial-LSTM": lambda: trainable_initial_case("LSTM", 2),
    "around-RNN": lambda: around_case("RNN"),
    "around-GRU": lambda: around_case("GRU"),
    "plain-GRU": lambda: plain_case(nn.GRU(3, 4, 2, batch_first=True)),
    "plain-LSTM": lambda: plain_case(nn.LSTM(3, 4, 2, batch_first=True)),
    "plain-rate": lambda: plain_case(RateRNN(3, 4, alpha=0.3)),
}

BEYOND_SITES = [name for name in MODELS if name.startswith(("step", "trainable-initial", "around"))]
WITH_SITES = [name for name in MODELS if name not in BEYOND_SITES]
"""Models all of whose parameters act at known weight sites."""


def linearised(name: str) -> kp.states.Linearisation:
    """The linearisation of a model of the table."""
    case = MODELS[name]()
    return kp.linearise(case.model, case.inputs, **case.keywords)
