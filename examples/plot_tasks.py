"""
The tasks, one trial of each
============================

**What it shows**: inputs, targets and epochs of every task of :mod:`kpflow.tasks`, without noise, and what counts in
the loss. Nothing is trained here.

**The numbers** below: the sizes of each task, and that its own targets score 1 in it, while silence, an output of 0
throughout, scores at most by chance.
"""

import matplotlib.pyplot as plt
import torch

import kpflow as kp
from kpflow.plots import PALETTE

# %%
# By name
# -------
# ``get`` makes a task from its name, with parameters if wanted. Trials know their epochs and conditions.

task = kp.tasks.get("context_integration")
trials = task.sample(72, mode="grid", noise=False)
print(trials)
print({name: (int(start[0]), int(stop[0])) for name, (start, stop) in trials.epochs.items()})

# %%
# All of them can be sampled, trained on and scored in the same way.

print(f"{'task':32} {'steps':>5} {'inputs':>6} {'outputs':>7} {'targets score':>13} {'silence':>8}")
for name in kp.tasks.names():
    task = kp.tasks.get(name)
    trials = task.sample(16, mode="grid", noise=False)
    score = task.score(trials.targets, trials)["accuracy"]
    silent = task.score(torch.zeros_like(trials.targets), trials)["accuracy"]
    assert score == 1.0
    assert silent <= 0.5
    print(f"{name:32} {trials.num_steps:5} {task.num_inputs:6} {task.num_outputs:7} {score:13.2f} {silent:8.2f}")

# %%
# The pictures
# ------------
# In each panel inputs are above and targets below, a line for each channel, of which at most five are shown. Shades are
# the epochs, with their names or first letters. Targets are bold where they have weight in the loss.

MOST = 5
LONGER = {  # steps, to see the slow ones turn
    "chaos_rossler": {"dt": 150.0},
    "chaos_thomas": {"dt": 500.0},
    "chaos_diffusionless_lorenz": {"dt": 100.0},
    "chaos_chua": {"dt": 100.0},
    "chaos_windmi": {"dt": 200.0},
    "chaos_sprott_f": {"dt": 200.0},
}


def traces(axis: plt.Axes, signal: torch.Tensor, colour: str, top: float, weight: torch.Tensor | None = None) -> float:
    """Draw the channels of `signal [T, C]` under each other from `top` down, and return where they end."""
    scale = max(float(signal.abs().max()), 1e-9)
    for channel in range(min(MOST, signal.shape[1])):
        line = 0.38 * signal[:, channel] / scale + top
        axis.axhline(top, color=PALETTE["rule"], linewidth=0.4, zorder=-1)
        axis.stairs(line, baseline=None, color=colour, linewidth=0.8)
        if weight is not None:
            axis.stairs(
                torch.where(weight[:, channel] > 0, line, torch.nan), baseline=None, color=colour, linewidth=2.2
            )
        top -= 1.0
    return top


def panel(axis: plt.Axes, name: str, title: str) -> None:
    """One trial of a task."""
    task = kp.tasks.get(name, **LONGER.get(name, {}))
    trials = task.sample(1, generator=torch.Generator().manual_seed(3), noise=False)
    T = int(trials.length[0])
    bottom = traces(axis, trials.inputs[0, :T], PALETTE["inputs"], 0.0)
    bottom = traces(axis, trials.targets[0, :T], PALETTE["targets"], bottom - 0.3, trials.mask[0, :T])
    for number, (epoch, (start, stop)) in enumerate(trials.epochs.items()):
        a, b = int(start[0]), int(stop[0])
        if a == b:
            continue
        axis.axvspan(a, b, color=PALETTE["grid"] if number % 2 else "white", zorder=-2)
        words = epoch if (b - a) / T > 0.045 * len(epoch) else epoch[0]
        axis.text((a + b) / 2, 0.75, words, ha="center", va="center", fontsize=6, color=PALETTE["muted"])
    axis.set_title(title.replace("_", " "), fontsize=8)
    axis.set_xlim(0, T)
    axis.set_ylim(bottom + 0.3, 1.1)
    axis.set_yticks([])
    axis.tick_params(labelsize=6)


def sheet(names: dict[str, str], columns: int) -> plt.Figure:
    """A panel for each of the tasks."""
    rows = -(-len(names) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(2.4 * columns, 1.9 * rows), layout="constrained")
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    for axis, (name, title) in zip(axes.flat, names.items(), strict=False):
        panel(axis, name, title)
    return fig


single = [name for name in kp.tasks.names() if not name.startswith(("driscoll_", "yang_"))]
fig = sheet({name: name for name in single}, 4)

# %%
# The fifteen tasks of Driscoll et al. (2024), with the fixation and two modalities as inputs. In the delay, memory and
# integration tasks the fixation goes off when a response is asked for; in the reaction and matching tasks it never
# does.

driscoll = [name for name in kp.tasks.names() if name.startswith("driscoll_")]
fig = sheet({name: name.removeprefix("driscoll_") for name in driscoll}, 4)

# %%
# The twenty tasks of Yang et al. (2019), with both directions at once, each a trial with its whole inputs (above) and
# targets (below): the fixation, then rings of 32 units. Fifteen have the rules of those above, in this encoding and
# with their own durations and strengths (``encoding="ring"``, ``timing="yang"``).

yang = [name for name in kp.tasks.names() if name.startswith("yang_")]
fig, axes = plt.subplots(8, 5, figsize=(12, 12), layout="constrained", height_ratios=(2, 1) * 4)
pairs = axes.reshape(4, 2, 5).swapaxes(1, 2).reshape(20, 2)
for pair, name in zip(pairs, yang, strict=True):
    trials = kp.tasks.get(name).sample(1, generator=torch.Generator().manual_seed(3), noise=False)
    for axis, signal in zip(pair, (trials.inputs[0], trials.targets[0]), strict=True):
        axis.imshow(signal.T, aspect="auto", interpolation="nearest", cmap="magma", origin="lower", vmin=0, vmax=1)
        axis.set_yticks([])
        axis.tick_params(labelsize=6)
    pair[0].set_title(name.removeprefix("yang_").replace("_", " "), fontsize=8)
    pair[0].set_xticks([])
for axis in axes[-1]:
    axis.set_xlabel("step")

# %%
# Several at once
# ---------------
# ``MultiTask`` mixes tasks of the same channels, and adds an input for each. Here a batch of all fifteen, with the
# share of the correct answers of a network that always fixates.

task = kp.tasks.MultiTask.driscoll()
trials = task.sample(600, generator=torch.Generator().manual_seed(0))
fixating = torch.zeros_like(trials.targets)
fixating[:, :, 0] = 1
scores = task.score(fixating, trials)
for name, value in scores.items():
    print(f"{name:48} {value:.2f}")
matching = [value for name, value in scores.items() if "match" in name or "category" in name]
assert all(0.3 < value < 0.7 for value in matching)
assert all(value == 0 for name, value in scores.items() if "pro" in name and "category" not in name)
