"""
What collapses the dimension: network or task
=============================================

**The claim** (Hazelden et al. 2025, arXiv 2507.06381): what a step of gradient descent does to the states of a
recurrent network, δS = −P K Pᵀ ∂L/∂S, is of far lower dimension than inputs, targets and errors, and it is the operator
K that makes it so: the collapse is of the network's structure, over and above that of the task.

**The numbers** below: the effective dimension from stage to stage at initialisation beside what the paper reads off for
a GRU; the same with white noise in place of the error, which has no task in it; both over the scale g of the recurrent
weights, and over the numbers of inputs and targets; what :func:`kpflow.flow.rank_bounds` allows for the NTK; and both
over training: seven tenths of the collapse are the task's at first, and about half once it is being learned.
"""

import itertools
import math

import matplotlib.pyplot as plt
import torch

import kpflow as kp
from kpflow.plots import PALETTE
from kpflow.study.measures import effective_dimension

torch.set_num_threads(1)  # the tensors are small

TRIALS, UNITS = 20, 128

# %%
# Forecasts in high dimension
# ---------------------------
# Ten latent variables drive a hundred observations; inputs are sines of these, targets those of the next step.
# :class:`kpflow.tasks.LowRankForecast` is this task with weights divided by the root of their number. Here they are as
# published, so that the sines are folded many times, and inputs and targets are of far more than ten dimensions.


def forecast(num_inputs: int, num_targets: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, `[trial, time, channel]`."""
    task = kp.tasks.LowRankForecast(num_observed=num_inputs, num_forecast=num_targets)
    system = {name: value.float() for name, value in task.system().items()}
    source = torch.Generator().manual_seed(1)
    z, observed = torch.randn(TRIALS, task.K, generator=source), []
    for _ in range(task.steps + 1):
        observed.append(z @ system["C"].T + 0.01 * torch.randn(TRIALS, task.dim, generator=source))
        z = 0.8 * z + 0.2 * z @ system["A"].T
    x, fold = torch.stack(observed, dim=1), task.dim**0.5
    inputs = torch.sin(fold * x[:, :-1] @ system["W_i"].T + system["b_i"])
    return inputs, torch.sin(fold * x[:, 1:] @ system["W_o"].T + system["b_o"])


class Network(torch.nn.Module):
    """A recurrent core with weights as PyTorch draws them, the recurrent ones times g, and a linear read-out."""

    def __init__(self, kind: str, num_inputs: int, num_targets: int, g: float, units: int = UNITS) -> None:
        super().__init__()
        self.rnn = getattr(torch.nn, kind)(num_inputs, units, batch_first=True)
        self.readout = torch.nn.Linear(units, num_targets)
        source = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_((2 * torch.rand(parameter.shape, generator=source) - 1) / units**0.5)
            self.rnn.weight_hh_l0.mul_(g)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.readout(self.rnn(inputs)[0])


# %%
# From stage to stage
# -------------------
# The effective dimension of a stage is that of its rows, one for each trial and time: (tr C)² / tr C², with C = ZᵀZ.
# White noise of the shape of the states goes through Pᵀ, K and P as the error does.

TASK = ("inputs", "targets", "states", "error")
CHAIN = ("Pᵀ err", "K Pᵀ err", "P K Pᵀ err")
NOISE = ("noise", "Pᵀ noise", "K Pᵀ noise", "P K Pᵀ noise")


def pipeline(model: Network, inputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every stage, `[trial, time, ...]`."""
    lin = kp.linearise(model, inputs, core="rnn")
    r = kp.flow.response(lin, lambda outputs: (outputs - targets).square().mean())
    P, K = kp.Propagator(lin), kp.ParameterKernel(lin)
    noise = [torch.randn(lin.states.shape, generator=torch.Generator().manual_seed(2))]
    for operator in (P.T, K, P):
        noise.append(operator(noise[-1]))
    found = (inputs, targets, lin.states, r.error, r.adjoint, r.immediate, r.change, *noise)
    return dict(zip((*TASK, *CHAIN, *NOISE), found, strict=True))


def stages(kind: str, g: float, num_inputs: int = 100, num_targets: int = 100) -> dict[str, float]:
    """The effective dimension of every stage."""
    found = pipeline(Network(kind, num_inputs, num_targets, g), *forecast(num_inputs, num_targets))
    return {name: effective_dimension(z.flatten(0, 1)) for name, z in found.items()}


published = dict(zip((*TASK, *CHAIN[:2]), (62, 58.5, 38, 43, 32, 2.5), strict=True))  # read off a figure, g → 0
found = stages("GRU", 0.0)
print(f"{'GRU, g = 0':>14} {'here':>6} {'paper':>6}")
for name in (*TASK, *CHAIN, *NOISE):
    print(f"{name:>14} {found[name]:6.1f} {published.get(name, math.nan):6.1f}")
assert all(abs(found[name] / published[name] - 1) < 0.25 for name in (*TASK, "Pᵀ err"))

# %%
# Everything before K agrees with the paper within a quarter. After K there are about ten dimensions here and 2.5 there:
# the collapse at K is the largest here too, but weaker. Which step takes how much is a matter of ratios: of all the
# dimensions that there could be, one for each unit, the task leaves the error's. Then Pᵀ, K and P take their part.


def factors(found: dict[str, float], chain: tuple[str, ...]) -> list[float]:
    """By what factor each step of the chain lowers the dimension, beginning with the number of units."""
    values = [UNITS, *(found[name] for name in chain)]
    return [a / b for a, b in itertools.pairwise(values)]


by_error, by_noise = factors(found, ("error", *CHAIN)), factors(found, NOISE)
print(f"{'factor lost':>14}", *(f"{name:>9}" for name in ("err", "Pᵀ", "K", "P")))
for name, values in (("of the error", by_error), ("of noise", by_noise)):
    print(f"{name:>14}", *(f"{value:9.2f}" for value in values))
assert by_error[2] == max(by_error)
assert by_noise[2] == max(by_noise)

# %%
# K alone takes about as much from white noise as from the error: no task is needed. It is of low dimension because what
# the weights see is: K q sums up M Mᵀ times slopes, and M Mᵀ has the fourth powers of the singular values of M, the
# inputs, states and ones for biases, where M itself has the squares.
#
# Over the scale of the recurrent weights
# ---------------------------------------

scales = [round(0.25 * i, 2) for i in range(13)]
runs = {kind: [stages(kind, g) for g in scales] for kind in ("RNN", "GRU")}
lines = {
    "inputs": ("inputs", "inputs", "-"),
    "states": ("states", "states", "-"),
    "error": ("error", "error", "-"),
    "Pᵀ err": ("propagator", "adjoint Pᵀ err", "-"),
    "K Pᵀ err": ("kernel", "K Pᵀ err", "-"),
    "P K Pᵀ err": ("ntk", "P K Pᵀ err", "-"),
    "K Pᵀ noise": ("kernel", "K Pᵀ noise", ":"),
}
fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
for ax, (kind, run) in zip(axes, runs.items(), strict=True):
    for name, (key, label, style) in lines.items():
        ax.plot(scales, [one[name] for one in run], style, color=PALETTE[key], label=label, marker=".", markersize=4)
    ax.set_yscale("log")
    ax.set_yticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
    ax.minorticks_off()
    ax.set_title(kind)
    ax.set_xlabel("g, times PyTorch's recurrent weights")
axes[0].set_ylabel("effective dimension")
axes[1].legend(fontsize=7, frameon=False, ncols=2, loc="lower left")

for kind, run in runs.items():
    ratios = {g: one["Pᵀ err"] / one["K Pᵀ err"] for g, one in zip(scales, run, strict=True)}
    print(f"{kind}: K lowers the dimension of the adjoint by", {g: round(ratios[g], 1) for g in scales[::2]})
    assert min(ratio for g, ratio in ratios.items() if g <= 1.5) > 2

# %%
# In the GRU K takes a factor above three at every g, and P more the larger g is. In the RNN K takes most up to g = √3,
# from where on its recurrent weights alone are unstable. Beyond, the adjoint has lost dimensions before, and at g = 3 K
# takes nothing more.
#
# Over the numbers of inputs and targets
# --------------------------------------
# If the task set the dimension of the change, it would grow with that of the error.

sizes = [1, 4, 16, 64, 256]
grid = [[stages("GRU", 0.0, i, o) for o in sizes] for i in sizes]
panels = {"error": "error", "K Pᵀ err": "K Pᵀ err", "K Pᵀ noise": "K Pᵀ noise"}
fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
for ax, (name, title) in zip(axes, panels.items(), strict=True):
    values = torch.tensor([[one[name] for one in row] for row in grid])
    ax.imshow(values.log(), cmap="viridis", vmin=0, vmax=math.log(UNITS), origin="lower")
    for (i, o), value in [((i, o), float(values[i, o])) for i in range(5) for o in range(5)]:
        ax.text(o, i, f"{value:.1f}", ha="center", va="center", fontsize=8, color="white" if value < 20 else "black")
    ax.set_xticks(range(5), [str(size) for size in sizes])
    ax.set_yticks(range(5), [str(size) for size in sizes])
    ax.set_title(title, fontsize=9)
    ax.set_xlabel("targets")
axes[0].set_ylabel("inputs")


def spread(name: str, over: str) -> float:
    """The mean ratio of the dimension with 256 to that with 1 channel, over the others."""
    table = torch.tensor([[one[name] for one in row] for row in grid])
    ratio = table[-1] / table[0] if over == "inputs" else table[:, -1] / table[:, 0]
    return float(ratio.log().mean().exp())


print("from 1 to 256      " + "".join(f"{name:>13}" for name in panels))
for over in ("inputs", "targets"):
    print(f"{over:>13} times " + "".join(f"{spread(name, over):13.2f}" for name in panels))
assert spread("K Pᵀ err", "targets") < spread("error", "targets") / 3
assert spread("K Pᵀ noise", "inputs") > 3
assert abs(spread("K Pᵀ noise", "targets") - 1) < 1e-3

# %%
# The error's dimension follows the number of targets and does not depend on the inputs. What K lets through of noise is
# set by the inputs, which the weights see, and does not depend on the targets. The change has about the smaller of the
# two, or less: a task with few targets limits it as well, but with few inputs no task gives it more dimensions.
#
# What structure allows
# ---------------------
# Rank and spectrum of K, and the least and largest singular value of P, bound rank and effective rank of the whole NTK.


def bounds_of(lin: kp.states.Linearisation) -> kp.flow.RankBounds:
    """With the singular values of P."""
    P = kp.Propagator(lin)
    least = 1 / kp.estimate.operator_norm(P.inverse, rtol=0.01).value
    return kp.flow.rank_bounds(lin, (least, kp.estimate.operator_norm(P, rtol=0.01).value))


inputs, _ = forecast(4, 4)
for kind in ("RNN", "GRU"):
    lin = kp.linearise(Network(kind, 4, 4, 1.0, units=32), inputs, core="rnn")
    bounds = bounds_of(lin)
    low, high = bounds.effective_rank
    ntk = kp.estimate.effective_rank(kp.Ntk(lin), budget=60)
    print(
        f"{kind}: {bounds.num_states} states, rank ≤ {bounds.rank} by what the weights see; effective rank of K "
        f"{bounds.kernel_effective_rank:.0f}, of the NTK {ntk.value:.0f} ± {ntk.standard_error:.0f}, within "
        f"{low:.0f} … {high:.0f}"
    )
    assert low <= ntk.value <= high <= bounds.rank < bounds.num_states

# %%
# Over training
# -------------
# An RNN of 64 units learns the task of the library. The dimension of a stage along trials or times is that of its rows,
# one for each of them; along units it is the one above. Of the collapse from 64 to the dimension of the change, the
# task's part is what the error lacks, in logarithms; the rest is the network's. (Training ends before Adam, from about
# step 480 on, oscillates along one direction, which is all of the change from then on.)

AXES = ("trial", "time", "unit")
AT = (0, 3, 10, 30, 60, 100, 150, 200, 300, 450)
task = kp.tasks.LowRankForecast()
trials = task.sample(TRIALS, generator=torch.Generator().manual_seed(4))
model = Network("RNN", task.num_inputs, task.num_outputs, 1.0, units=64)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
along: dict[str, list[list[float]]] = {name: [] for name in ("error", *CHAIN, NOISE[-1])}  # stage, checkpoint, axis
bounded, ranks, losses = [], [], []
for step in range(AT[-1] + 1):
    loss = (model(trials.inputs) - trials.targets).square().mean()
    losses.append(float(loss.detach()))
    if step in AT:
        found = pipeline(model, trials.inputs, trials.targets)
        for name, rows in along.items():
            rows.append([effective_dimension(found[name].movedim(axis, 0).flatten(1)) for axis in range(3)])
        lin = kp.linearise(model, trials.inputs, core="rnn")
        bounded.append(bounds_of(lin))
        kept = (None, *((axis,) for axis in AXES))
        ranks.append([kp.estimate.effective_rank(kp.Ntk(lin), axes=axes, budget=60).value for axes in kept])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

parts = [math.log(64 / e[-1]) / math.log(64 / c[-1]) for e, c in zip(along["error"], along[CHAIN[-1]], strict=True)]
print("step    loss  error  change  task's part   of noise | NTK: along trial  time  unit  whole     bounds  rank ≤")
for row, step in enumerate(AT):
    error, change, noise = (along[name][row][-1] for name in ("error", CHAIN[-1], NOISE[-1]))
    whole, *axes_of = ranks[row]
    low, high = bounded[row].effective_rank
    print(f"{step:4d}  {losses[step]:6.4f}  {error:5.1f}  {change:6.1f}  {parts[row]:11.0%}  {noise:9.1f} |", end="")
    print("".join(f"{value:{width}.1f}" for value, width in zip(axes_of, (17, 6, 6), strict=True)), end="")
    print(f"  {whole:5.0f}  {low:3.0f} … {high:4.0f}  {bounded[row].rank:6d}")
    assert low <= whole <= high <= bounded[row].rank
assert parts[0] > 0.6
assert max(parts[2:]) < 0.55
assert max(row[-1] for row in along[NOISE[-1]]) < 3
assert all(b.along(axis) == (1, size) for b in bounded for axis, size in b.axes.items())

styles = dict(zip(AXES, ("--", ":", "-"), strict=True))
fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.6), layout="constrained")
for name, rows in along.items():
    key, label, _ = lines.get(name, ("muted", name, "-"))
    axes[0].plot(AT, [row[-1] for row in rows], color=PALETTE[key], label=label, marker=".", markersize=4)
for number, (axis, style) in enumerate(styles.items()):
    for name in ("error", CHAIN[-1]):
        values, key = [row[number] for row in along[name]], lines[name][0]
        axes[1].plot(AT, values, style, color=PALETTE[key], label=f"{lines[name][1]}, {axis}")
    axes[2].plot(AT, [row[1 + number] for row in ranks], style, color=PALETTE["ntk"], label=f"NTK, {axis}")
axes[2].plot(AT, [row[0] for row in ranks], color=PALETTE["ink"], label="NTK, whole")
axes[2].plot(AT, [b.kernel_effective_rank for b in bounded], color=PALETTE["kernel"], label="K, whole")
axes[2].fill_between(
    AT,
    *zip(*(b.effective_rank for b in bounded), strict=True),
    color=PALETTE["kernel"],
    alpha=0.15,
    label="bounds, whole",
)
for axis, title in zip(axes, ("Along units", "Along each axis", "Effective rank of the NTK"), strict=True):
    axis.set_xscale("symlog", linthresh=10)
    axis.set(title=title, xlabel="training step", yscale="log", xlim=(0, AT[-1]))
    axis.legend(fontsize=6.5, frameon=False, loc="upper left")
axes[2].set_ylim(0.8, 2e6)

# %%
# The task's part falls from 71 % to 44 %: the error comes to have 28 of 64 dimensions, as what is left to learn is less
# and less of one kind, and the change follows it to ten. What the network takes is its own throughout: of white noise
# it never lets more than about two dimensions through. The NTK's effective rank is 110 to 210 of 38400 states, of which
# K accounts for all but a factor of two, and most along times, of which the NTK has two or three.
#
# The bounds hold at every checkpoint. That from above says that of the factor 180 to 350 a factor of about 20 is due to
# K's spectrum whatever P and the task are; with singular values that differ as those of P do here, no more can be said,
# and nothing along single axes.
