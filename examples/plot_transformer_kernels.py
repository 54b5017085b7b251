"""
How narrow the kernels of a transformer are
===========================================

**The claim** (arXiv 2605.08746): the NTK of a self-attention transformer is low-rank by structure, as that of a
recurrent network is. All positions of all trials go through the same few weights, so that K = ⊕ (M Mᵀ) ⊗ I over the
weight sites, and the rank of M is at most the number of its columns, however long the sequences are.

**The numbers** below: ranks and effective ranks of K, P and the NTK for every weight site and layer of a transformer
with two layers, before and after it learns to add, over lengths of the sequence, and the same for a GRU and a simple
recurrent network that learn the same task. The bound on the rank is exact, and before training the NTK is
about as narrow as K: 4 to 11 of 96 positions. After training K is hardly wider, but the NTK is, up to 34 positions: P
has changed, and no core knows of P.
"""

import copy
import statistics

import matplotlib.pyplot as plt
import torch

import kpflow as kp
from kpflow.operators import Function, Operator, Restriction
from kpflow.plots import PALETTE

torch.set_num_threads(1)  # the tensors are small

# %%
# A task and three networks
# -------------------------
# Sequences of twelve digits below eight. At every step the sum, modulo eight, of the digit and the one two steps before
# is asked for.

DIGITS, WIDTH, STEPS, SEEDS = 8, 32, 12, (0, 1, 2)


def sample(trials: int, generator: torch.Generator, steps: int = STEPS) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences and what is asked for, `[trial, time]`."""
    digits = torch.randint(DIGITS, (trials, steps), generator=generator)
    before = torch.nn.functional.pad(digits, (2, 0))[:, :steps]
    return digits, (digits + before) % DIGITS


class Transformer(torch.nn.Module):
    """Two layers of causal self-attention with four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.token = torch.nn.Embedding(DIGITS, WIDTH)
        self.position = torch.nn.Embedding(4 * STEPS, WIDTH)
        self.layers = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.readout = torch.nn.Linear(WIDTH, DIGITS)

    def forward(self, digits: torch.Tensor) -> torch.Tensor:
        """Scores of every step, `[trial, time, digit]`."""
        hidden = self.token(digits) + self.position.weight[: digits.shape[1]]
        mask = torch.nn.Transformer.generate_square_subsequent_mask(digits.shape[1], dtype=hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, mask, is_causal=True)
        return self.readout(self.norm(hidden))


class Recurrent(torch.nn.Module):
    """An embedding, a recurrent layer of the same width, and a read-out."""

    def __init__(self, layer: type[torch.nn.GRU] | type[torch.nn.RNN]) -> None:
        super().__init__()
        self.token = torch.nn.Embedding(DIGITS, WIDTH)
        self.rnn = layer(WIDTH, WIDTH, batch_first=True)
        self.readout = torch.nn.Linear(WIDTH, DIGITS)

    def forward(self, digits: torch.Tensor) -> torch.Tensor:
        """Scores of every step, `[trial, time, digit]`."""
        return self.readout(self.rnn(self.token(digits))[0])


def accuracy(model: torch.nn.Module) -> float:
    """On fresh sequences, without the first two steps, which are trivial."""
    digits, targets = sample(256, torch.Generator().manual_seed(100))
    with torch.no_grad():
        return float((model(digits).argmax(-1) == targets)[:, 2:].double().mean())


def trained(model: torch.nn.Module, steps: int, seed: int) -> torch.nn.Module:
    """A trained copy."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        digits, targets = sample(32, generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(digits).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
    return model


RECIPES = {
    "transformer": (Transformer, 250),
    "GRU": (lambda: Recurrent(torch.nn.GRU), 500),
    "RNN": (lambda: Recurrent(torch.nn.RNN), 300),
}
networks: dict[tuple[str, int], tuple[torch.nn.Module, torch.nn.Module]] = {}
for kind, (make, steps) in RECIPES.items():
    for seed in SEEDS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            untrained = make()
        networks[kind, seed] = untrained, trained(untrained, steps, seed)
    accuracies = [accuracy(networks[kind, seed][1]) for seed in SEEDS]
    print(f"accuracy of the {kind}:", *(f"{value:.1%}" for value in accuracies))
    assert min(accuracies) > 0.95

# %%
# The weight sites
# ----------------
# ``linearise`` captures the graph of the transformer. Its states are what the weights make: here the sites of one
# network with the factor M of their cores, on eight trials of twelve steps, so at 96 positions. K is exactly
# (M Mᵀ) ⊗ I at every site, of rank ``rank(M)`` times the size of the identity.

digits, _ = sample(8, torch.Generator().manual_seed(200))
lin = kp.linearise(copy.deepcopy(networks["transformer", 0][0]).double(), digits)
cores = kp.flow.cores(lin)
print(f"{'site':42} {'M':>12} {'identity':>8} {'rank K':>7} of states")
for part in lin.space.parts:
    core = cores[part.name]
    size = "×".join(map(str, core.factor.shape))
    print(f"{part.name:42} {size:>12} {core.multiplicity:8} {core.rank * core.multiplicity:7} of {part.size}")

# %%
# The projections of a layer see its 32 features and a one, for the bias, so M has 33 columns. In the first layer the
# features are made of 8 tokens and 12 positions, which span 20 directions at most. A norm acts channel by channel, with
# two columns in each. So attention with its 4 · 32 · 96 states has rank K ≤ 3 · 32 · rank[X, 1] + 32 · rank[Y, 1], for
# what goes into the projections, X, and out of the heads, Y.
#
# P is invertible, so the rank of the NTK of all states is that of K, and its null space is P⁻ᵀ applied to that of K:
# errors that no step of gradient descent answers. Here is one, made from a random one by taking away what M spans.

P, K, ntk = kp.Propagator(lin), kp.ParameterKernel(lin), kp.Ntk(lin)
kick = torch.randn(lin.space.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
pieces = lin.space.split(kick)
for part in lin.space.parts:
    core = cores[part.name]
    factors = core.factor if core.factor.ndim == 3 else core.factor[None]  # [group, position, feature]
    places = core.places.permute(1, 0, 2)  # [group, position, unit]
    for factor, place in zip(factors, places, strict=True):
        U, values, _ = torch.linalg.svd(factor, full_matrices=False)
        span = U[:, values > 1e-10 * values[0]]
        kick[place] -= span @ (span.T @ kick[place])
unseen = P.inverse.T(kick)
left = float(ntk(unseen).norm() / unseen.norm()) / kp.estimate.operator_norm(ntk, rtol=0.1).value
rank = sum(core.rank * core.multiplicity for core in cores.values())
print(f"rank of the NTK: {rank} of {lin.space.size} states; |NTK z|/(‖NTK‖ |z|) in its null space: {left:.0e}")
assert left < 1e-13

# %%
# By site
# -------
# Each site is looked at by itself, as a matrix of positions × units. Of K, the effective rank over positions is that of
# the activity that the weights see, and over units it is the number of units; both are known from the cores. For the
# NTK and P they are estimated. The errors of K and the NTK are standard errors over the three seeds, which include
# those of the estimates; P is that of one network, with the errors of the estimates.

SITES = {
    "layers.0.self_attn.in_proj_weight": "layer 1: queries, keys, values",
    "layers.0.self_attn.out_proj": "layer 1: out of attention",
    "layers.0.linear1": "layer 1: into the perceptron",
    "layers.0.linear2": "layer 1: out of the perceptron",
    "layers.1.self_attn.in_proj_weight": "layer 2: queries, keys, values",
    "layers.1.self_attn.out_proj": "layer 2: out of attention",
    "layers.1.linear1": "layer 2: into the perceptron",
    "layers.1.linear2": "layer 2: out of the perceptron",
    "readout": "read-out",
}
AXES = ("position", "unit")


def at_site(space: kp.Space, name: str) -> Operator:
    """From all states to those of a site, `[position, unit]`."""
    (part,) = [part for part in space.parts if part.name == name]
    chosen = Restriction(space, parts=[name])
    units = part.shape[-1]
    site = kp.Space.of((part.size // units, units), AXES, space.dtype)
    return Function(lambda v: v.unflatten(-1, site.shape), lambda v: v.flatten(-2), chosen.out_space, site) @ chosen


def effective_rank(operator: Operator, budget: int, axes: tuple[str, ...] | None = None) -> tuple[float, float]:
    """The estimate and its standard error."""
    found = kp.estimate.effective_rank(operator, axes=axes, budget=budget)
    assert found.standard_error < 0.2 * found.value, found
    return found.value, found.standard_error


def linearised(seed: int, stage: int) -> kp.states.Linearisation:
    """A transformer, untrained or trained, on the eight trials."""
    return kp.linearise(copy.deepcopy(networks["transformer", seed][stage]).double(), digits)


def over_seeds(rows: list[dict]) -> dict:
    """Mean and standard error."""
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return {key: (statistics.fmean(v), statistics.stdev(v) / len(v) ** 0.5) for key, v in columns.items()}


STAGES = ("before", "after")
lins = [[linearised(seed, stage) for seed in SEEDS] for stage in (0, 1)]
by_site = []
for stage in (0, 1):
    rows = []
    for lin in lins[stage]:
        ntk, cores = kp.Ntk(lin), kp.flow.cores(lin)
        row = {("kernel", name, "position"): cores[name].effective_rank for name in SITES}
        row |= {("kernel", name, "unit"): float(cores[name].multiplicity) for name in SITES}
        for name in SITES:
            R = at_site(lin.space, name)
            row |= {("ntk", name, axis): effective_rank(R @ ntk @ R.T, 32, (axis,))[0] for axis in AXES}
        rows.append(row)
    lin = lins[stage][0]
    P = kp.Propagator(lin)
    one = {
        ("propagator", n, axis): effective_rank(at_site(lin.space, n) @ P, 48, (axis,)) for n in SITES for axis in AXES
    }
    by_site.append({**over_seeds(rows), **one})

print(f"{'effective rank over 96 positions':32} {'':7} {'K':>14} {'NTK':>14} {'P':>14}")
for name, words in SITES.items():
    for stage, found in zip(STAGES, by_site, strict=True):
        shown = [found[key, name, "position"] for key in ("kernel", "ntk", "propagator")]
        print(f"{words if stage == 'before' else '':32} {stage:7}", *(f"{mean:8.1f} ± {e:3.1f}" for mean, e in shown))

# %%

LABELS = {"kernel": "K", "ntk": "NTK", "propagator": "P"}
MARKERS = {"kernel": "^", "ntk": "o", "propagator": "s"}
fig, panels = plt.subplots(1, 2, figsize=(9, 4.8), sharey=True, layout="constrained")
for panel, axis in zip(panels, AXES, strict=True):
    for number, name in enumerate(SITES):
        full = 96 if axis == "position" else by_site[0]["kernel", name, "unit"][0]
        for shift, key in zip((-0.22, 0.0, 0.22), LABELS, strict=True):
            for stage, (found, fill) in enumerate(zip(by_site, ("none", PALETTE[key]), strict=True)):
                mean, error = found[key, name, axis]
                panel.errorbar(
                    mean / full, number + shift, xerr=error / full, fmt=MARKERS[key], color=PALETTE[key],
                    markerfacecolor=fill, markersize=5, capsize=2, elinewidth=1,
                    label=f"{LABELS[key]}, {STAGES[stage]} training" if number == 0 else None,
                )  # fmt: skip
    panel.set_xlim(0, 1.05)
    panel.set_xlabel(f"effective rank over {axis}s / their number")
    panel.grid(axis="x", color=PALETTE["grid"])
panels[0].set_yticks(range(len(SITES)), list(SITES.values()))
panels[0].invert_yaxis()
fig.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8, frameon=False)

# %%
# Before training, the NTK is as narrow over positions as K. At the sites that read a norm the two agree within their
# errors; at the others, where the activity is narrower still, weights of earlier sites add to what the site's own can
# do. P is broad throughout, as the theory has it: the narrowness is that of K.
#
# Training makes K wider by little, but for what leaves the heads of the first layer. The NTK becomes wider over
# positions, the more the later the site, and narrower over units. That is mostly the work of P, which becomes narrow
# over units as well. So the effective rank of the core is that of K, but only its rank is a bound for the NTK of all
# states: what lies below it is up to P.

for name in SITES:
    before, after = ({key: found[key, name, "position"][0] for key in LABELS} for found in by_site)
    assert before["ntk"] < 2 * before["kernel"] < 0.3 * before["propagator"]
    assert after["kernel"] < 3 * before["kernel"]
    assert name.startswith("layers.0.self_attn.in_proj") or 1.2 * before["ntk"] < after["ntk"] < 48
    assert by_site[1]["ntk", name, "unit"][0] < 1.02 * by_site[0]["ntk", name, "unit"][0]

# %%
# By layer
# --------
# All states of a layer together, norms included. The effective rank of K follows from the cores, since each acts on
# states of its own. The bound is the number of directions that the weights of the layer itself can reach; the NTK of
# a single layer may have others besides, from the layers below.

LAYERS = {"layer 1": "layers.0.", "layer 2": "layers.1.", "read-out": "readout"}


def of_cores(cores: list[kp.flow.Core]) -> float:
    """The effective rank of the part of K that some cores make, each on its own states."""
    trace = sum(core.multiplicity * float(core.spectrum.sum()) for core in cores)
    return trace**2 / sum(core.multiplicity * float(core.spectrum.square().sum()) for core in cores)


def by_layer(lin: kp.states.Linearisation, prefix: str) -> dict[str, float]:
    """Sizes, ranks and effective ranks of the states of a layer."""
    names = [part.name for part in lin.space.parts if part.name.startswith(prefix)]
    cores, R = kp.flow.cores(lin), Restriction(lin.space, parts=names)
    rank = sum(cores[name].rank * cores[name].multiplicity for name in names)
    ntk, _ = effective_rank(R @ kp.Ntk(lin) @ R.T, 32)
    return {"states": R.out_space.size, "rank K": rank, "K": of_cores([cores[name] for name in names]), "NTK": ntk}


print(f"{'':19} states   rank of K   eff. rank of K   of the NTK")
for words, prefix in LAYERS.items():
    for stage, name in enumerate(STAGES):
        found = over_seeds([by_layer(lin, prefix) for lin in lins[stage]])
        (size, _), (rank, _), (k, k_error), (ntk, ntk_error) = found.values()
        shown = f"{size:7.0f} {rank:11.0f} {k:10.0f} ± {k_error:3.0f} {ntk:8.0f} ± {ntk_error:3.0f}"
        print(f"{words if stage == 0 else '':10} {name:7} {shown}")

# %%
# Taken together, positions and units, the NTK of the two layers becomes narrower with training, by more than half; that
# of the read-out does not.
#
# Over the length of the sequence
# -------------------------------
# Attention in the second layer of an untrained network, with its own weights, on four sequences: the number of its
# states grows with the length, the bound stops at 32 · (3 · rank[X, 1] + rank[Y, 1]). X has been through a norm, which
# takes one direction away, so that the ranks are 32 and 33.

BLOCK = ("layers.1.self_attn.in_proj_weight", "layers.1.self_attn.out_proj")
lengths = [3, 12, 24, 48]
curves: dict[str, list[float]] = {"states": [], "rank of K and NTK": [], "effective rank of K": [], "of the NTK": []}
errors = []
model = copy.deepcopy(networks["transformer", 0][0]).double()
for length in lengths:
    lin = kp.linearise(model, sample(4, torch.Generator().manual_seed(200), length)[0])
    block = [kp.flow.cores(lin)[name] for name in BLOCK]
    R = Restriction(lin.space, parts=BLOCK)
    ntk, error = effective_rank(R @ kp.Ntk(lin, params=[n for core in block for n in core.parameters]) @ R.T, 32)
    rank = sum(core.rank * core.multiplicity for core in block)
    for row, value in zip(curves.values(), (R.out_space.size, rank, of_cores(block), ntk), strict=True):
        row.append(value)
    errors.append(error)
for name, row in curves.items():
    print(f"{name:20}", *(f"{value:7.0f}" for value in row))
print(f"{'its standard error':20}", *(f"{value:7.0f}" for value in errors))
assert curves["rank of K and NTK"][1:] == [32 * (3 * 32 + 33)] * 3

fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for (name, row), line, key in zip(curves.items(), (":", "-", "-", "-"), ("ink", "muted", "kernel", "ntk"), strict=True):
    bars = [2 * error for error in errors] if key == "ntk" else None
    ax.errorbar(lengths, row, bars, fmt="o" + line, color=PALETTE[key], markersize=4, capsize=3, label=name)
ax.set_xscale("log", base=2)
ax.set_yscale("log")
ax.set_xticks(lengths, [str(length) for length in lengths])
ax.set_xlabel("length of the sequences")
ax.legend(fontsize=8, frameon=False)

# %%
# The effective ranks still rise where the rank has stopped, but ever more slowly. (Bars are two standard errors.) This
# is one network on random digits; what the lengths do to a network that is trained on them is not shown.
#
# GRU and RNN
# -----------
# The same trials and the same task, through the recurrent route: P, K and the NTK of the hidden states and the
# recurrent layer's weights. In a simple network all weights act through one slope, K = D (M Mᵀ ⊗ I) D, and M sees 32
# hidden units and eight tokens. In a GRU there is such a core for each gate and each side.

TIMES, UNITS = ("trial", "time"), ("unit",)


def recurrent_ranks(model: torch.nn.Module) -> dict:
    """Effective ranks by operator and axes, and the bound on the rank of K."""
    lin = kp.linearise(copy.deepcopy(model).double(), digits, core="rnn")
    weights = [part.name for part in lin.parameters.parts if part.name.startswith("rnn.")]
    kernel, ntk = kp.ParameterKernel(lin, params=weights), kp.Ntk(lin, params=weights)
    cores = list(kp.flow.cores(lin).values())
    found: dict = {"bound": sum(core.rank * core.multiplicity for core in cores), "activity": cores[0].effective_rank}
    for key, operator in {"kernel": kernel, "ntk": ntk, "propagator": kp.Propagator(lin)}.items():
        found |= {(key, axes): effective_rank(operator, 64, axes)[0] for axes in (TIMES, UNITS)}
    return found


recurrent = {
    kind: [over_seeds([recurrent_ranks(networks[kind, seed][stage]) for seed in SEEDS]) for stage in (0, 1)]
    for kind in ("GRU", "RNN")
}
print(f"{'effective rank over':17} {'activity':>24} {'K':>12} {'NTK':>12} {'P':>12}   bound on rank K,")
print(f"{'trials × times, 96':95} of 3072 states")
for kind, stages in recurrent.items():
    for stage, found in zip(STAGES, stages, strict=True):
        pairs = [found["activity"], *(found[key, TIMES] for key in LABELS)]
        shown = " ".join(f"{mean:6.1f} ± {error:3.1f}" for mean, error in pairs)
        print(f"{kind if stage == 'before' else '':21} {stage:7} {shown}   {found['bound'][0]:6.0f}")

# %%

fig, panels = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True, layout="constrained")
for panel, axes, full in zip(panels, (TIMES, UNITS), (96, 32), strict=True):
    for number, stages in enumerate(recurrent.values()):
        for shift, key in zip((-0.22, 0.0, 0.22), LABELS, strict=True):
            for stage, (found, fill) in enumerate(zip(stages, ("none", PALETTE[key]), strict=True)):
                mean, error = found[key, axes]
                panel.errorbar(
                    mean / full, number + shift, xerr=error / full, fmt=MARKERS[key], color=PALETTE[key],
                    markerfacecolor=fill, markersize=5, capsize=2, elinewidth=1,
                    label=f"{LABELS[key]}, {STAGES[stage]} training" if number == 0 else None,
                )  # fmt: skip
    panel.set_xlim(0, 1.05)
    panel.set_xlabel(f"effective rank over {'trials × times' if axes == TIMES else 'units'} / their number")
    panel.grid(axis="x", color=PALETTE["grid"])
panels[0].set_yticks(range(2), list(recurrent))
panels[0].set_ylim(1.5, -0.5)
fig.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8, frameon=False)

# %%
# Before training the NTK of the GRU has half the effective rank of that of the simple network, 5 against 11: its K is
# a little narrower, and its P much. After training both are at about 40, wider than the transformer at any site. Over
# units the simple network has become the narrower one.
#
# Unlike in the transformer, K itself becomes wide with training, two to three times as wide as the activity that the
# (recurrent) weights see. The rest is the work of the slopes that stand on both sides of a recurrent core; a core of a
# graph has none. The bound on the rank is 40 · 32 of 96 · 32 directions for the simple network; of the GRU it says
# nothing here, being larger than the number of states, since gates multiply the number of cores.
#
# What is not shown: that narrow kernels are the reason for what is learned fast or slowly; networks of other sizes;
# tasks other than this one. Three seeds tell apart effects as large as these, and no smaller ones.

for kind in recurrent:
    before, after = ({key: found[key, TIMES][0] for key in LABELS} for found in recurrent[kind])
    assert before["ntk"] < 14 < 35 < after["ntk"]
    assert before["kernel"] < 10 < 20 < after["kernel"]
    assert after["kernel"] > 1.7 * recurrent[kind][1]["activity"][0]
assert recurrent["GRU"][0]["ntk", TIMES][0] < 0.65 * recurrent["RNN"][0]["ntk", TIMES][0]
assert recurrent["RNN"][1]["ntk", UNITS][0] < recurrent["GRU"][1]["ntk", UNITS][0]
assert recurrent["GRU"][0]["bound"][0] > 3072 > recurrent["RNN"][0]["bound"][0] == 40 * 32
