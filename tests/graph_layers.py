"""Small models of the graph route: layers of every kind, weights on many ways to their operation, and operations."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from graph_cases import GraphCase, Table, integers, made, ready
from models import randn

__all__ = ["LAYERS", "OPERATIONS", "WEIGHTS", "operation", "tokens"]

X = (4, 3)


def chain(*layers: nn.Module) -> nn.Module:
    """Layers with a nonlinearity between each two."""
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))


def image(*layers: nn.Module, shape: tuple[int, ...], loose: tuple[str, ...] = ()) -> GraphCase:
    """Layers on `[B, C, *L]`, behind a convolution of single places."""
    before = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 3](shape[1], shape[1], 1)
    return ready(chain(before, *layers), randn(*shape, seed=1), loose)


def rows(*layers: nn.Module) -> GraphCase:
    """Layers on rows of 4 entries."""
    return ready(chain(nn.Linear(3, 4), *layers), randn(2, 3, 3, seed=1))


def residual(pool: nn.Module) -> GraphCase:
    """A convolutional network with a residual block and poolings."""

    def forward(m, x):
        h = torch.relu(m.norm(m.first(x)))
        h = h + m.second(torch.relu(m.third(h)))
        return m.last(m.pool(h).flatten(1))

    parts = {
        "first": nn.Conv2d(1, 4, 3, padding=1, bias=False),
        "norm": nn.BatchNorm2d(4),
        "second": nn.Conv2d(4, 4, 3, padding=1),
        "third": nn.Conv2d(4, 4, 1),
        "pool": pool,
        "last": nn.Linear(8, 3),
    }
    return ready(made(forward, **parts), randn(2, 1, 4, 4, seed=1))


def tokens(module: nn.Module, inputs: Tensor) -> GraphCase:
    return ready(nn.Sequential(module, nn.Tanh(), nn.Linear(3, 2)), inputs)


LAYERS: Table = {
    "embedding-bag": lambda: tokens(nn.EmbeddingBag(5, 3, mode="mean", padding_idx=2), integers(5, 2, 4)),
    "embedding-bag-sum": lambda: tokens(nn.EmbeddingBag(5, 3, mode="sum"), integers(5, 2, 4)),
    "mlp": lambda: ready(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), randn(6, 4, seed=1)),
    "mlp-positions": lambda: ready(
        nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5, bias=False), nn.GELU(), nn.Linear(5, 2)),
        randn(2, 3, 4, seed=1),
    ),
    "cnn-max": lambda: residual(nn.Sequential(nn.MaxPool2d(2, stride=1), nn.AdaptiveAvgPool2d((1, 2)))),
    "cnn-average": lambda: residual(nn.Sequential(nn.AvgPool2d(3, stride=1, padding=1), nn.AdaptiveMaxPool2d((2, 1)))),
    "conv1d": lambda: image(
        nn.Conv1d(2, 4, 3, stride=2, padding=2),
        nn.Conv1d(4, 3, 3, padding="same", dilation=2, bias=False),
        nn.Conv1d(3, 2, 3, padding=1, padding_mode="circular"),
        shape=(2, 2, 6),
    ),
    "conv2d": lambda: image(
        nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(1, 0), groups=2),
        nn.Conv2d(6, 2, 2, dilation=2, padding=1, bias=False),
        shape=(2, 4, 4, 4),
    ),
    "conv2d-depthwise": lambda: image(
        nn.Conv2d(3, 6, 2, groups=3, bias=False),
        nn.Conv2d(6, 1, 3, padding=1, padding_mode="reflect"),
        shape=(2, 3, 3, 3),
    ),
    "conv2d-unbatched": lambda: ready(nn.Conv2d(2, 3, 2), randn(2, 4, 3, seed=1)),
    "conv3d": lambda: image(nn.Conv3d(2, 2, 2, stride=2, padding=1, groups=2), shape=(2, 2, 2, 3, 3)),
    "transposed1d": lambda: image(nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1, output_padding=1), shape=(2, 2, 3)),
    "transposed2d": lambda: image(
        nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, groups=2),
        nn.ConvTranspose2d(2, 1, 2, dilation=2, bias=False),
        shape=(2, 4, 2, 2),
    ),
    "transposed3d": lambda: image(nn.ConvTranspose3d(2, 1, 2, padding=1), shape=(1, 2, 2, 2, 3)),
    "embedding": lambda: tokens(nn.Embedding(5, 3, padding_idx=1), integers(5, 2, 6)),
    "row-norms": lambda: rows(nn.LayerNorm(4), nn.RMSNorm(4), nn.LayerNorm((3, 4)), nn.LayerNorm(4, bias=False)),
    "channel-norms": lambda: image(
        nn.GroupNorm(2, 4),
        nn.BatchNorm1d(4),
        nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
        shape=(2, 4, 3),
    ),
    "instance-norm": lambda: image(nn.InstanceNorm1d(3, affine=True), shape=(2, 3, 4), loose=("2.weight", "2.bias")),
    "batch-norm-rows": lambda: ready(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), randn(5, 3, seed=1)),
    "prelu": lambda: image(nn.PReLU(), nn.PReLU(3), shape=(2, 3, 2)),
    "bilinear": lambda: ready(nn.Bilinear(3, 4, 2), (randn(5, 3, seed=1), randn(5, 4, seed=2)), ("weight",)),
}


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([[1.0, 0, 1], [0, 1, 1]]))

    def forward(self, weight):
        return weight * self.mask


class Adapted(nn.Module):
    """Low-rank adaptation: W + B A."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.zeros(1, 2)), nn.Parameter(torch.zeros(3, 1))

    def forward(self, weight):
        return weight + self.up @ self.down


def parametrised(linear: nn.Module, parametrisation: nn.Module) -> nn.Module:
    parametrize.register_parametrization(linear, "weight", parametrisation)
    return linear


def parametrisations() -> GraphCase:
    layers = (
        parametrizations.weight_norm(nn.Linear(2, 3)),
        parametrizations.spectral_norm(nn.Linear(3, 3)),
        parametrised(nn.Linear(3, 2), Masked()),
        parametrised(nn.Linear(2, 3), Adapted()),
        parametrizations.orthogonal(nn.Linear(3, 2)),
    )
    return ready(chain(*layers), randn(4, 2, seed=1))


def shared_modules() -> GraphCase:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    return ready(nn.Sequential(first, nn.Tanh(), second), randn(*X, seed=1))


def frozen() -> GraphCase:
    case = ready(chain(nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(2, 2)), randn(*X, seed=1))
    case.model[0].weight.requires_grad_(False)
    case.model[2].bias.requires_grad_(False)
    return case


def of_weights(
    function: Callable[..., Tensor], shape: tuple[int, ...] = X, loose: tuple[str, ...] = (), **parts
) -> GraphCase:
    """A function of a module with these parts, and of an input."""
    return ready(made(function, **parts), randn(*shape, seed=1), loose)


def unembedded(m, x):
    return torch.tanh(m.table(x) + m.positions) @ m.table.weight.mT


def split(m, x):
    query, key, value = (x @ w.mT for w in m.weight.chunk(3))
    return torch.softmax(query @ key.mT, -1) @ value


def sliced(m, x):
    h = torch.tanh(functional.linear(x, m.w[1:4]))
    return functional.linear(h, m.w[0:2], m.b[1:3]) @ m.v[::2, 1:]


def summed(m, x):
    heads = torch.einsum("bgi,ghik->bghk", x, m.heads).tanh()
    return torch.einsum("bghk,hko->bgo", heads, m.mix)


def low_rank(m, x):
    return m.last(torch.tanh(m.base(x) + 0.5 * m.up(m.down(x))))


def classified(m, x):
    h = torch.cat([m.token.expand(len(x), 1, 3), x], 1) + m.positions
    return m.last(torch.tanh(h).mean(1))


def read_between(m, x):
    """A product of weights that is read before its bias is added, and after."""
    h = x @ m.w
    return torch.tanh(h + m.b) * h


def modulated(m, x):
    return torch.bmm(m.weights(x).unflatten(-1, (3, 2)).mT, x[..., None]).squeeze(-1).tanh()


WEIGHTS: Table = {
    "tied-embedding": lambda: ready(made(unembedded, table=nn.Embedding(5, 3), positions=(4, 3)), integers(5, 2, 4)),
    "tied-twice": lambda: of_weights(lambda m, x: m.a(torch.tanh(m.a(x))), a=nn.Linear(3, 3)),
    "tied-modules": shared_modules,
    "tied-transposed": lambda: of_weights(lambda m, x: torch.tanh(x @ m.w) @ m.w.T, w=(3, 2)),
    "frozen": frozen,
    "split": lambda: of_weights(split, (2, 4, 3), weight=(6, 3)),
    "sliced": lambda: of_weights(sliced, w=(5, 3), b=(4,), v=(4, 3)),
    "einsum": lambda: of_weights(summed, (3, 2, 3), heads=(2, 2, 3, 2), mix=(2, 2, 2)),
    "matmul-broadcast": lambda: of_weights(
        lambda m, x: (m.left @ torch.tanh(x @ m.right)).sin(), (3, 2, 4, 3), left=(2, 4), right=(2, 3, 2)
    ),
    "matmul-vector": lambda: of_weights(lambda m, x: torch.tanh(x @ m.w)[:, None] * m.v @ m.w, w=(3,), v=(3,)),
    "parametrisations": parametrisations,
    "low-rank": lambda: of_weights(
        low_rank,
        base=nn.Linear(3, 2),
        down=nn.Linear(3, 1, bias=False),
        up=nn.Linear(1, 2, bias=False),
        last=nn.Linear(2, 2),
    ),
    "functions-of-weights": lambda: of_weights(
        lambda m, x: torch.tanh(x @ m.w.square() @ m.w.exp()) @ (m.u[:, None] * m.v), w=(3, 3), u=(3,), v=(2,)
    ),
    "gains": lambda: of_weights(lambda m, x: m.g * torch.tanh(m.g * x) - m.shift + (m.g - x), g=(), shift=(3,)),
    "gains-not-linear": lambda: of_weights(
        lambda m, x: torch.tanh(x / m.g) + m.g / (2 + x.square()) + x.exp() ** m.p, loose=("g", "p"), g=(3,), p=(3,)
    ),
    "one-weight-three-ways": lambda: of_weights(lambda m, x: torch.tanh(x @ m.w + m.w[0] + m.w.sum()), w=(3, 2)),
    "read-between": lambda: of_weights(read_between, w=(3, 2), b=(2,)),
    "class-token": lambda: of_weights(
        classified, (2, 4, 3), ("token",), token=(1, 1, 3), positions=(1, 5, 3), last=nn.Linear(3, 2)
    ),
    "initial-state": lambda: of_weights(
        lambda m, x: torch.tanh(m.start.expand(len(x), -1) @ m.w + x) @ m.w, start=(3,), w=(3, 3)
    ),
    "hypernetwork": lambda: of_weights(modulated, weights=nn.Linear(3, 6)),
}


def operation(*functions: Callable[[Tensor], Tensor], shape: tuple[int, ...] = (3, 4)) -> GraphCase:
    """Functions of what a linear layer gives, side by side, before another one."""

    def forward(m, x):
        h = m.first(x)
        return m.last(torch.cat([function(h).reshape(len(h), -1) for function in functions], dim=-1))

    x = randn(*shape, seed=1)
    model = made(forward, first=nn.Linear(shape[-1], shape[-1]), last=nn.LazyLinear(2))
    model(x.float())
    return ready(model, x)


def put(h: Tensor) -> Tensor:
    return h.cos().index_put((torch.tensor([0, 2]), torch.tensor([1, 1])), h[:2, 0]) * h


def written(h: Tensor) -> Tensor:
    """Writing into slices of a new tensor, as a loop over time does that fills its result."""
    result = torch.zeros_like(h)
    result[:, 1:] = h[:, :-1].sin()
    result[0] *= 2.0
    return result


def stopped(m, x):
    """Gradients stop at what is detached, and at what is computed without them."""
    h = torch.tanh(m.a(x))
    with torch.no_grad():
        target = m.b(h)
    return m.a(h + (h.round() - h).detach()) * target + m.b(h.detach())


def several(m, x):
    """Results in another order than they come about, one of them twice."""
    h = m.first(x)
    return {"last": torch.tanh(m.last(h)), "count": h.argmax(), "first": [h, h]}


def rotated(m, x):
    """One step of a diagonal system with complex entries, from real parameters."""
    rate = torch.exp(torch.complex(-m.decay.exp(), m.frequency))
    return torch.view_as_real(rate * torch.complex(m.real(x), m.imaginary(x))).flatten(1)


OPERATIONS: Table = {
    "inverse": lambda: operation(lambda h: torch.linalg.inv(torch.eye(3, dtype=h.dtype) + h @ h.mT)),
    "choices": lambda: operation(
        lambda h: torch.where(h > 0, h.sin(), h.exp()),
        lambda h: h.clamp(-0.5, 0.5) * h.clamp(min=0.1),
        lambda h: h.sort(-1).values.cumsum(-1),
        lambda h: h.topk(2, -1).values,
        lambda h: h.amax(-1, keepdim=True) * h - h.min(0).values + h.median(0).values,
        lambda h: h * (h.argmax(-1, keepdim=True) + 1) + (h > 0),
    ),
    "places": lambda: operation(
        lambda h: h.gather(1, torch.tensor([[0, 2], [1, 1], [3, 0]])),
        lambda h: torch.zeros_like(h).scatter_add(1, torch.tensor([[0, 2, 2, 1]] * 3), h),
        put,
        written,
        lambda h: torch.cat([h.flip(0), h.roll(1, 1)], -1) * torch.stack([h, h], 1).flatten(1),
        lambda h: functional.pad(h, (1, 1), value=0.5).unfold(1, 3, 1).prod(-1),
    ),
    "sums": lambda: operation(
        lambda h: h.cumsum(1) * h.cumprod(1) + torch.logcumsumexp(h, 0),
        lambda h: functional.normalize(h, dim=-1) * h.norm() + h.logsumexp(0) + h.var(0),
        lambda h: h.log_softmax(-1) * h.softmax(0),
        lambda h: torch.linalg.cholesky_ex(torch.eye(3, dtype=h.dtype) + h @ h.mT)[0],
    ),
    "fourier": lambda: operation(
        lambda h: torch.fft.irfft(torch.fft.rfft(h) * torch.fft.rfft(h.flip(-1)), n=4),
        lambda h: torch.view_as_real(torch.exp(1j * h) * torch.complex(h, h.cos())),
    ),
    "stopped": lambda: of_weights(stopped, a=nn.Linear(3, 3), b=nn.Linear(3, 3)),
    "several-outputs": lambda: of_weights(several, first=nn.Linear(3, 2), last=nn.Linear(2, 2)),
    "complex-parameters-within": lambda: of_weights(
        rotated, decay=(3,), frequency=(3,), real=nn.Linear(3, 3), imaginary=nn.Linear(3, 3)
    ),
    "activations": lambda: operation(
        functional.gelu,
        lambda h: functional.gelu(h, approximate="tanh"),
        lambda h: functional.glu(functional.silu(h)) * functional.softplus(h[:, :2]),
        lambda h: functional.elu(h) + functional.selu(h) + functional.hardswish(h),
        lambda h: functional.leaky_relu(h) + functional.mish(h) + functional.relu6(h) + torch.erf(h),
    ),
    "images": lambda: operation(
        lambda h: functional.interpolate(h[:, None], size=(5, 3), mode="bilinear", align_corners=False),
        lambda h: functional.grid_sample(h[:, None], torch.tanh(h[..., :2])[:, None], align_corners=False),
        lambda h: functional.pixel_shuffle(h.reshape(2, 4, 3, 1), 2),
        shape=(2, 3, 4),
    ),
}
