"""
First steps: P, K and the NTK of a GRU
======================================

**The claim** (arXiv 2507.06381 and 2605.08746): the parameter kernel K is what narrows learning. The propagator P of an
untrained network acts on most directions of the state space, K on few combinations of time and trial, and the NTK,
P K Pᵀ, inherits the narrowness of K.

**The numbers** below: effective ranks of the three operators along each axis of the state, with error bars.
"""

import matplotlib.pyplot as plt
import torch

import kpflow as kp

# %%
# A model and trials
# ------------------
# The trials are those of MemoryPro: see a direction, wait, report it. The model is a plain :class:`torch.nn.GRU`. The
# constructors of torch draw from the global generator; here it is put back afterwards.

task = kp.tasks.MemoryPro(stimulus=15, memory=15, response=15)
trials = task.sample(6, mode="grid", noise=False, dtype=torch.float64)
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    model = torch.nn.GRU(task.num_inputs, 32, batch_first=True, dtype=torch.float64)

# %%
# From the model to operators
# ---------------------------
# ``linearise`` runs the model once and keeps the linear maps around its trajectory. The operators are products only:
# the NTK would be a matrix with a row for each of the trials × times × units.

lin = kp.linearise(model, trials.inputs)
P, K, ntk = kp.Propagator(lin), kp.ParameterKernel(lin), kp.Ntk(lin)
print(ntk)

# %%
# An operator acts on tensors of the shape of the states, any number of them at once.

kick = torch.zeros(2, *lin.states.shape, dtype=torch.float64)
kick[0, :, 20] = 1.0
kick[1, :, 40] = 1.0
moved = P(kick).abs().amax((1, 3)) > 1e-12  # [probe, time]
print("steps that a kick at step 20, and one at step 40, moves:", moved.sum(1).tolist())

# %%
# Numbers with error bars
# -----------------------

for name, operator in {"P": P @ P.T, "K": K, "NTK": ntk}.items():
    print(f"trace of {name:4}", kp.estimate.trace(operator, rtol=0.02))

# %%
# The effective rank of a kernel, (tr A)²/‖A‖²_F, can be asked along some axes: it is then that of the partial trace
# over the others. Each is compared with the size of its axis, which the identity would have.

axes = {"trial": 6, "time": 45, "unit": 32}
ranks = {
    name: [kp.estimate.effective_rank(operator, axes=(axis,), rtol=0.03) for axis in axes]
    for name, operator in {"P": P, "K": K, "NTK": ntk}.items()
}
for name, row in ranks.items():
    pairs = zip(axes, row, strict=True)
    print(f"{name:4}", *(f"{axis} {e.value:5.2f} ± {e.standard_error:.2f}   " for axis, e in pairs))

# %%

fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
for shift, (name, row) in zip((-0.25, 0.0, 0.25), ranks.items(), strict=True):
    sizes = list(axes.values())
    heights = [e.value / size for e, size in zip(row, sizes, strict=True)]
    errors = [e.standard_error / size for e, size in zip(row, sizes, strict=True)]
    places = [place + shift for place in range(3)]
    ax.bar(places, heights, 0.22, yerr=errors, capsize=3, label=name)
ax.set_xticks(range(3), [f"{axis} ({size})" for axis, size in axes.items()])
ax.set_ylabel("effective rank / size of the axis")
ax.legend()

# %%
# Over units all three are broad: K is an identity there, up to the slopes of the gates. Over time and trials, P
# is broad and K is not, and the NTK is as narrow as K.
#
# Leading modes
# -------------
# A mode of the NTK is a change of the states that gradient descent makes fast; it has the shape of the states. Here are
# the courses in time of the three leading ones, one line for each trial, as the size of the mode over units.

modes = kp.estimate.modes(ntk, k=3, tol=1e-3)
print(modes)

fig, panels = plt.subplots(1, 3, figsize=(7, 2.4), sharey=True, layout="constrained")
for panel, value, vector in zip(panels, modes.values, modes.vectors, strict=True):
    panel.plot(vector.norm(dim=-1).T)
    panel.set_title(f"eigenvalue {float(value):.3g}", fontsize=9)
    panel.set_xlabel("step")
panels[0].set_ylabel("norm over units")

# %%
# The lines of all trials lie on each other: before training, what is learned first is the same in every trial, and the
# direction that the task asks to remember plays no part in it. How much of the leading mode is one course in time,
# the same for all trials:

vector = modes.vectors[0]
shared = vector.mean(0).square().sum() * len(vector) / vector.square().sum()
print(f"{float(shared):.1%} of the leading mode is common to all trials")
