"""
The limit of infinite width
===========================

**The claim** (Jacot et al. 2018, arXiv 1806.07572): as the layers of a network become wide, its NTK at initialisation
stops being random and approaches a kernel of the architecture alone. The NTK of a network of width n deviates from it
by the order of n^(−1/2).

**The numbers** below: the limit for a perceptron with rectifiers, in closed form; the NTK of the outputs of networks of
width 16 to 512 against it, 32 networks for each; and the exponent, fitted with its error. It checks
``kp.Ntk(lin, readout="outputs")`` and ``kp.flow.cores`` against a formula that shares nothing with automatic
differentiation. The cores have limits of their own, which they approach at the same rate.
"""

import statistics

import matplotlib.pyplot as plt
import torch

import kpflow as kp
from kpflow.operators import to_dense
from kpflow.plots import PALETTE

torch.set_num_threads(1)  # the tensors are small

# %%
# Networks whose NTK has a limit
# ------------------------------
# Weights are drawn from N(0, 1), and what a layer sees is divided by the root of its number: a = √(g/n) W v + b, with
# g = 2 after a rectifier, and b drawn from N(0, 0.1). (With PyTorch's own initialisation the scale is in the weights,
# gradients do not shrink with the width, and the NTK grows with it.)

INPUTS, OUTPUTS, DEPTH, VARIANCE, NETWORKS = 4, 3, 3, 0.1, 32


class Layer(torch.nn.Module):
    """The linear layers, in NTK parametrisation, of many networks at once."""

    def __init__(self, size: int, units: int, gain: float, generator: torch.Generator) -> None:
        super().__init__()
        weight = torch.randn(NETWORKS, size, units, generator=generator, dtype=torch.float64)
        bias = VARIANCE**0.5 * torch.randn(NETWORKS, 1, units, generator=generator, dtype=torch.float64)
        self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        self.scale = (gain / size) ** 0.5

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        """`[network, trial, size]` to `[network, trial, units]`."""
        return torch.bmm(self.scale * v, self.weight) + self.bias


class Networks(torch.nn.Module):
    """Perceptrons with two hidden layers side by side, so that one graph holds them all."""

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first = Layer(INPUTS, width, 1.0, generator)
        self.second = Layer(width, width, 2.0, generator)
        self.third = Layer(width, OUTPUTS, 2.0, generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[trial, input]` to `[trial, network, output]`."""
        hidden = torch.relu(self.first(x.expand(NETWORKS, -1, -1)))
        return self.third(torch.relu(self.second(hidden))).transpose(0, 1)


# %%
# The limit in closed form
# ------------------------
# Let Σ be the covariance of the a of one unit of a layer between inputs, and φ the rectifier. For centred Gaussian
# u, v with covariance Σ and the angle ϑ between them (Cho and Saul 2009, the arc-cosine kernels),
#
# .. code-block:: text
#
#    2 E φ(u) φ(v)   = √(Σ[u,u] Σ[v,v]) (sin ϑ + (π − ϑ) cos ϑ)/π        2 E φ′(u) φ′(v) = (π − ϑ)/π
#
# The first is what the core of the next layer becomes, C = M Mᵀ → 2 E φφ + 1, the one being the bias. The second is
# the slopes of P. So in every layer Θ ← C + 2 E φ′φ′ Θ: what the layer's own weights do, and what those below do
# through it. ``kp.flow.infinite_perceptron`` does this, and ``kp.flow.infinite_recurrent`` for recurrent networks.

source = torch.Generator().manual_seed(0)
inputs = torch.randn(6, INPUTS, generator=source, dtype=torch.float64)
infinite = kp.flow.infinite_perceptron(inputs, DEPTH, bias=VARIANCE)

# %%
# Over the width
# --------------
# The NTK of three outputs is the limit for each of them, and zero between different ones. ``to_dense``
# assembles it from the cores; it holds a block for each network, and is zero between networks. In the cores every
# network is a group. The deviation is relative, in the Frobenius norm.

limit = torch.kron(infinite.ntk, torch.eye(OUTPUTS, dtype=torch.float64))


def deviations(width: int) -> dict[str, torch.Tensor]:
    """Of the NTK and the cores of random networks from their limits, `[network]`."""
    lin = kp.linearise(Networks(width, source), inputs)
    sizes = (len(inputs), NETWORKS, OUTPUTS)
    matrix = to_dense(kp.Ntk(lin, readout="outputs")).reshape(2 * sizes)  # trial, network, output, and again
    blocks = torch.stack([matrix[:, i, :, :, i].reshape(limit.shape) for i in range(NETWORKS)])
    found = {"NTK": (blocks, limit)}
    for layer, (core, wanted) in enumerate(zip(kp.flow.cores(lin).values(), infinite.cores, strict=True), 1):
        found[f"core of layer {layer}"] = core.gram, wanted
    return {name: torch.linalg.matrix_norm(A - wanted) / wanted.norm() for name, (A, wanted) in found.items()}


widths = [16, 32, 64, 128, 256, 512]
runs = {width: deviations(width) for width in widths}
assert max(float(run["core of layer 1"].max()) for run in runs.values()) < 1e-14  # known exactly

names = ["NTK", "core of layer 2", "core of layer 3"]
squares = {name: torch.stack([run[name] for run in runs.values()]).square() for name in names}
print(f"{'width':>18}", *(f"{width:7}" for width in widths))
for name in names:
    print(f"{name:>18}", *(f"{value:7.4f}" for value in squares[name].mean(1).sqrt().tolist()))

# %%
# The exponent is the slope of a straight line through logarithms, by least squares. Its error is from the
# jackknife, with one network of each width left out at a time.


def exponent(squares: torch.Tensor) -> float:
    """The slope of the root mean squares `[width, network]`."""
    abscissa = torch.tensor(widths).log()
    ordinate = squares.mean(1).log() / 2
    centred = abscissa - abscissa.mean()
    return float((centred * ordinate).sum() / centred.square().sum())


def jackknife(squares: torch.Tensor) -> float:
    """The standard error of the slope."""
    count = squares.shape[1]
    left_out = [exponent(squares[:, [j for j in range(count) if j != i]]) for i in range(count)]
    return (count - 1) ** 0.5 * statistics.pstdev(left_out)


fitted = {name: (exponent(values), jackknife(values)) for name, values in squares.items()}
for name, (slope, error) in fitted.items():
    print(f"{name:>18}: width^({slope:.3f} ± {error:.3f})")
    assert error < 0.1
    assert abs(slope + 0.5) < 3 * error

# %%

fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name, key, place in zip(names, ("ntk", "kernel", "states"), (1.0, 0.95, 1.05), strict=True):
    values = squares[name]
    ax.plot([place * width for width in widths], values.sqrt(), ".", color=PALETTE[key], markersize=3, alpha=0.5)
    label = f"{name}: {fitted[name][0]:.2f} ± {fitted[name][1]:.2f}"
    ax.plot(widths, values.mean(1).sqrt(), "o-", color=PALETTE[key], markersize=5, label=label)
first = squares["NTK"].mean(1).sqrt()[0]
ax.plot(widths, [first * (16 / width) ** 0.5 for width in widths], ":", color=PALETTE["ink"], label="width^(−1/2)")
ax.set_xscale("log", base=2)
ax.set_yscale("log")
ax.set_xticks(widths, [str(width) for width in widths])
ax.set_xlabel("width")
ax.set_ylabel("relative deviation from the limit")
ax.legend(fontsize=8, frameon=False)
