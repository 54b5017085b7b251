"""Sequence models for the graph route: recurrent layers, state-space models, weights that move with activity."""

import torch
from torch import Tensor, nn

from graph_cases import GraphCase, Table, made, ready
from models import randn

__all__ = ["KINDS", "RECURRENT", "STATE_SPACE", "recurrent"]

B, T, I, H = 2, 4, 3, 4


def recurrent(kind: str, given: bool = False, read: bool = False, **options) -> GraphCase:
    """A torch recurrent layer, with a given initial state or a read-out of all its results."""
    options = {"batch_first": True} | options
    module = getattr(nn, kind)(I, H, **options)
    x = randn(B, T, I, seed=1) if module.batch_first else randn(T, B, I, seed=1)
    if read:

        def forward(m, x):
            states, last = m.rnn(x)
            return m.head(states) + sum(part.sum() for part in (last if isinstance(last, tuple) else (last,)))

        return ready(made(forward, rnn=module, head=nn.Linear(module.proj_size or H, 1)), x)
    if not given:
        return ready(module, x)
    count = module.num_layers * (1 + module.bidirectional)
    hidden = randn(count, B, module.proj_size or H, seed=2)
    return ready(module, (x, (hidden, randn(count, B, H, seed=3)) if kind == "LSTM" else hidden))


KINDS = ("RNN", "GRU", "LSTM")

RECURRENT: Table = {
    **{f"{kind}-two": lambda kind=kind: recurrent(kind, read=True, num_layers=2) for kind in KINDS},
    **{
        f"{kind}-bidirectional": lambda kind=kind: recurrent(
            kind, given=True, num_layers=2, bidirectional=True, batch_first=False
        )
        for kind in KINDS
    },
    "RNN-relu": lambda: recurrent("RNN", nonlinearity="relu", bias=False),
    "LSTM-projection": lambda: recurrent("LSTM", given=True, proj_size=2, bidirectional=True),
}


class S4D(nn.Module):
    """A diagonal state-space model with complex states and real parameters, one per channel (zero-order hold)."""

    def __init__(self, channels: int, states: int) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.zeros(channels, states))
        self.frequency = nn.Parameter(torch.zeros(channels, states))
        self.step = nn.Parameter(torch.zeros(channels, 1))
        self.real = nn.Parameter(torch.zeros(channels, states))
        self.imaginary = nn.Parameter(torch.zeros(channels, states))
        self.skip = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        rate = torch.complex(-self.decay.exp(), self.frequency)
        kept = torch.exp(rate * self.step.exp())
        output = torch.complex(self.real, self.imaginary) * (kept - 1) / rate
        h, found = torch.zeros(len(x), *rate.shape, dtype=rate.dtype), []
        for u in x.unbind(1):
            h = kept * h + u[..., None]
            found.append(2 * (output * h).sum(-1).real + self.skip * u)
        return torch.stack(found, 1)


class S4DKernel(nn.Module):
    """The same map as a convolution over time, through Fourier transforms."""

    def __init__(self, inner: S4D) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        m, steps = self.inner, x.shape[1]
        rate = torch.complex(-m.decay.exp(), m.frequency)
        scaled = rate * m.step.exp()
        output = torch.complex(m.real, m.imaginary) * (scaled.exp() - 1) / rate
        powers = torch.exp(scaled[..., None] * torch.arange(steps, dtype=x.dtype))
        kernel = 2 * torch.einsum("cn,cnt->ct", output, powers).real
        mixed = torch.fft.irfft(torch.fft.rfft(kernel, n=2 * steps) * torch.fft.rfft(x.mT, n=2 * steps), n=2 * steps)
        return mixed[..., :steps].mT + m.skip * x


class LRU(nn.Module):
    """A linear recurrent unit: a diagonal complex recurrence in polar form, with real matrices before and after."""

    def __init__(self, inputs: int, states: int) -> None:
        super().__init__()
        self.radius = nn.Parameter(torch.zeros(states))
        self.angle = nn.Parameter(torch.zeros(states))
        self.gain = nn.Parameter(torch.zeros(states))
        self.real, self.imaginary = nn.Linear(inputs, states, bias=False), nn.Linear(inputs, states, bias=False)
        self.output = nn.Linear(2 * states, inputs)

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.polar(torch.exp(-self.radius.exp()), self.angle.exp())
        driven = self.gain.exp() * torch.complex(self.real(x), self.imaginary(x))
        h, states = torch.zeros_like(driven[:, 0]), []
        for u in driven.unbind(1):
            h = kept * h + u
            states.append(h)
        return self.output(torch.view_as_real(torch.stack(states, 1)).flatten(-2))


class Selective(nn.Module):
    """The selective state-space recurrence of Mamba: step, input and output weights depend on the input."""

    def __init__(self, channels: int, states: int) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, 2 * channels, bias=False)
        self.mix = nn.Conv1d(channels, channels, 2, groups=channels, padding=1)
        self.select = nn.Linear(channels, 1 + 2 * states, bias=False)
        self.step = nn.Linear(1, channels)
        self.decay = nn.Parameter(torch.zeros(channels, states))
        self.skip = nn.Parameter(torch.zeros(channels))
        self.contract = nn.Linear(channels, channels, bias=False)
        self.states = states

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.expand(x).chunk(2, -1)
        u = nn.functional.silu(self.mix(u.mT)[..., : x.shape[1]].mT)
        rank, inwards, outwards = self.select(u).split([1, self.states, self.states], -1)
        step = nn.functional.softplus(self.step(rank))  # [B, T, C]
        h, found = x.new_zeros(len(x), *self.decay.shape), []
        for t in range(x.shape[1]):
            kept = torch.exp(-step[:, t, :, None] * self.decay.exp())
            h = kept * h + (step[:, t] * u[:, t])[..., None] * inwards[:, t, None, :]
            found.append((h * outwards[:, t, None, :]).sum(-1) + self.skip * u[:, t])
        return self.contract(torch.stack(found, 1) * nn.functional.silu(gate))


class MultiPlasticity(nn.Module):
    """A recurrent-free network whose weights are modulated by activity: y = tanh((W ∘ (1 + M)) x), M Hebbian."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(units, inputs))
        self.forget, self.learn = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(units, inputs))
        self.readout = nn.Linear(units, 2)

    def forward(self, x: Tensor) -> Tensor:
        moved, found = x.new_zeros(len(x), *self.weight.shape), []
        for u in x.unbind(1):
            y = torch.tanh(torch.einsum("bui,bi->bu", self.weight * (1 + moved), u))
            moved = torch.sigmoid(self.forget) * moved + self.learn * y[..., None] * u[:, None]
            found.append(y)
        return self.readout(torch.stack(found, 1))


class FastWeights(nn.Module):
    """A recurrent network with fast weights beside slow ones."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.slow, self.drive = nn.Linear(units, units), nn.Linear(inputs, units, bias=False)
        self.rate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.slow.in_features)
        fast, found = x.new_zeros(len(x), h.shape[1], h.shape[1]), []
        for u in x.unbind(1):
            h = torch.tanh(self.slow(h) + self.drive(u) + torch.bmm(fast, h[..., None])[..., 0])
            fast = 0.9 * fast + self.rate * h[:, :, None] * h[:, None]
            found.append(h)
        return torch.stack(found, 1)


def sequences(module: nn.Module, loose: tuple[str, ...] = ()) -> GraphCase:
    return ready(module, randn(B, T, I, seed=1), loose, scale=0.5)


STATE_SPACE: Table = {
    "S4D": lambda: sequences(
        nn.Sequential(nn.Linear(3, 3), S4D(3, 2), nn.GELU(), nn.Linear(3, 3)),
        tuple(f"1.{name}" for name in ("decay", "frequency", "step", "real", "imaginary")),
    ),
    "S4D-kernel": lambda: sequences(S4DKernel(S4D(3, 2))),
    "LRU": lambda: sequences(LRU(3, 2), ("radius", "angle", "gain")),
    "Mamba": lambda: sequences(Selective(3, 2)),
    "multi-plasticity": lambda: sequences(MultiPlasticity(3, 2)),
    "fast-weights": lambda: sequences(FastWeights(3, 4)),
    "GRU-cell-loop": lambda: sequences(made(cell_loop, cell=nn.GRUCell(3, 4), head=nn.Linear(4, 2))),
    "LSTM-cell-loop": lambda: sequences(made(long_loop, cell=nn.LSTMCell(3, 4), head=nn.Linear(4, 2))),
}


def cell_loop(m, x):
    h = x.new_zeros(len(x), 4)
    for u in x.unbind(1):
        h = m.cell(u, h)
    return m.head(h)


def long_loop(m, x):
    state = None
    for u in x.unbind(1):
        state = m.cell(u, state)
    return m.head(state[0]) + state[1].sum()
