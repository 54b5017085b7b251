"""
Learning rules compared
=======================

**The claim** (arXiv 2605.08746): learning rules are operators, dS = −η G ∂L/∂S, made of the same parts: G = P K Pᵀ for
back-propagation, P K without back-propagated credit, P Pᵀ for functional descent, P K with random feedback in place of
Pᵀ. How far a rule goes with the gradient is the alignment of its operator with the NTK.

**The numbers** below: that alignment for nine rules, before and after training, and the decrease of the loss that each
operator predicts beside what a real update does; then the paper's own comparison, an image that is shown eleven times
to 256 units, with digits of 8 × 8 pixels in the place of MNIST. Setting and snapshots are the paper's; its values stand
in a figure that was not at hand, so that only the statement can be compared. It holds: both operators point along the
NTK and neither is it; we measure 0.84 and 0.72 before training, a third to a half of the NTK after it.
"""

import copy
import functools
import itertools
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch

import kpflow as kp
from kpflow.plots import PALETTE

torch.set_num_threads(1)  # the tensors are small

# %%
# A network before and after training
# -----------------------------------
# A tanh network that learns to remember an angle. Only the recurrent network is moved by the rules here; its read-out
# stays.

task = kp.tasks.MemoryPro(stimulus=8, memory=8, response=8, grace=0.0)


class Network(torch.nn.Module):
    """A tanh network and a linear read-out."""

    def __init__(self) -> None:
        super().__init__()
        self.core = torch.nn.RNN(3, 32, batch_first=True)
        self.read = torch.nn.Linear(32, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs of every step, `[trial, time, output]`."""
        return self.read(self.core(inputs)[0])


with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    model = Network().double()
networks = {"before": copy.deepcopy(model)}
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
generator = torch.Generator().manual_seed(0)
for _ in range(1500):
    trials = task.sample(32, generator=generator, dtype=torch.float64)
    optimizer.zero_grad()
    task.loss(model(trials.inputs), trials).backward()
    optimizer.step()
networks["after"] = model
grid = task.sample(8, mode="grid", noise=False, dtype=torch.float64)
second = {name: optimizer.state[p]["exp_avg_sq"] for name, p in model.named_parameters() if name.startswith("core")}

# %%
# The rules
# ---------
# Feedback alignment has random weights of the recurrent weights' size in its adjoint. The natural gradient of the
# states is damped by a hundredth of the NTK's norm; Gauss–Newton has the curvature of the task's loss, through the
# read-out and the mask, and is damped by a hundredth of its norm. For Adam, the metric is diag 1/(√v + ε) with its
# second moments v at the end of training, of both networks.


def loss_of_states(network: Network, states: torch.Tensor) -> torch.Tensor:
    """The loss as a function of the states, the read-out held fixed."""
    return task.loss(network.read(states), grid)


def rules_of(
    lin: kp.states.Linearisation, loss: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, kp.flow.LearningRule]:
    """Nine rules around one linearisation."""
    damping = 0.01 * kp.estimate.operator_norm(kp.Ntk(lin), rtol=0.05).value
    curved = 0.01 * float(kp.optim.forecast(lin, loss, learning_rate=1.0, steps=1, of="states").rates[0])
    moments = torch.cat([second[f"core.{part.name}"].flatten() for part in lin.parameters.parts])
    return {
        "back-propagation": kp.flow.back_propagation(lin),
        "truncated, 12 steps": kp.flow.truncated_back_propagation(lin, 12),
        "truncated, 4 steps": kp.flow.truncated_back_propagation(lin, 4),
        "no back-propagation": kp.flow.local_learning(lin),
        "feedback alignment": kp.flow.feedback_alignment(lin),
        "functional descent": kp.flow.functional_descent(lin),
        "Adam's metric": kp.flow.preconditioned(lin, 1 / (moments.sqrt() + 1e-8)),
        "natural gradient": kp.flow.natural_gradient(lin, damping),
        "Gauss–Newton": kp.flow.natural_gradient(lin, curved, loss),
    }


# %%
# Predictions and updates
# -----------------------
# For each rule the learning rate is such that its operator predicts a decrease of the loss by 1 %, or by 0.1 %. The
# update is then made, on a copy: parameters move by −η M Jᵀ Q ∂L/∂S; functional descent has none, and moves the states
# by −η P Pᵀ ∂L/∂S.


def stepped(network: Network, change: dict[str, torch.Tensor]) -> float:
    """The loss after a change of the core's parameters."""
    moved = copy.deepcopy(network)
    for name, value in change.items():
        moved.core.get_parameter(name).data += value
    return float(loss_of_states(moved, moved.core(grid.inputs)[0]).detach())


found = {}
for when, network in networks.items():
    lin = kp.linearise(network.core, grid.inputs)
    loss = functools.partial(loss_of_states, network)
    step = kp.flow.response(lin, loss, of="states")
    ntk = kp.Ntk(lin)
    print(f"{when} training: loss {step.loss:.4f}")
    print(f"{'':20} {'alignment':>18} {'cosine of the':>14}   actual/predicted decrease")
    print(f"{'rule':20} {'with the NTK':>18} {'update':>14} {'of 1 %':>10} {'of 0.1 %':>10}")
    for name, rule in rules_of(lin, loss).items():
        alignment = kp.estimate.alignment(ntk, rule.operator, budget=72)
        slope = rule.predicted_loss_change(step.error)  # for each unit of the learning rate
        ratios = []
        for part in (1e-2, 1e-3):
            rate = part * step.loss / abs(slope)
            if rule.jacobian is None:
                after = float(loss_of_states(network, lin.states - rate * rule.operator(step.error)).detach())
            else:
                after = stepped(network, lin.parameters.split(-rate * rule.update(step.error)))
            ratios.append((after - step.loss) / (rate * slope))
        cosine = float("nan")
        if rule.jacobian is not None:
            cosine = float(torch.nn.functional.cosine_similarity(rule.update(step.error), step.gradient, dim=0))
        found[when, name] = (alignment.value, alignment.standard_error, cosine, *ratios, slope)
        error = f"± {alignment.standard_error:.0e}"
        print(f"{name:20} {alignment.value:9.3f} {error:>8} {cosine:14.3f} {ratios[0]:10.3f} {ratios[1]:10.3f}")
    print()

# %%
# What the numbers say
# --------------------
# The operators predict what the rules do: of a decrease by 1 % at least 97 % comes, of one by 0.1 % at least 99.7 %.
# The alignment falls with the credit that a rule leaves out, and falls further in training: the network has learned to
# hold its memory, P reaches far back, and rules that do not look back miss that. Random feedback is worse than none.
# Adam's metric turns single updates (third column), and hardly the operator. Functional descent, in which K = I, is
# nearly orthogonal to the NTK before training: K decides what can change. Gauss–Newton of the task's loss, which sees
# few directions of the states, has an operator near the NTK before training, and the most different updates after it.

for (_, rule), row in found.items():
    assert abs(row[3] - 1) < 0.03, rule
    assert abs(row[4] - 1) < 0.003, rule
    assert row[5] < 0, rule
credit = ["back-propagation", "truncated, 12 steps", "truncated, 4 steps", "no back-propagation", "feedback alignment"]
for when in networks:
    row = [found[when, name][0] for name in credit]
    assert all(one > other for one, other in itertools.pairwise(row)), row
assert all(found["after", name][0] < found["before", name][0] for name in credit[1:])

names = list(dict.fromkeys(name for _, name in found))
fig, axes = plt.subplots(1, 2, figsize=(8.5, 3.4), sharey=True, layout="constrained")
for ax, column, title in zip(axes, (0, 2), ("operator and NTK", "update and gradient"), strict=True):
    for shift, when, colour in ((-0.18, "before", "inputs"), (0.18, "after", "ntk")):
        values = [found[when, name][column] for name in names]
        errors = [found[when, name][1] if column == 0 else 0.0 for name in names]
        places = [place + shift for place in range(len(names))]
        ax.barh(places, values, 0.34, xerr=errors, color=PALETTE[colour], label=f"{when} training")
    ax.set_title(f"cosine between {title}", fontsize=10)
    ax.set_xlim(0, 1)
axes[0].set_yticks(range(len(names)), names, fontsize=8)
axes[0].invert_yaxis()
fig.legend(*axes[0].get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside lower center", ncols=2)

# %%
# The paper's comparison
# ----------------------
# An image, repeated for T = 11 steps, to a tanh network of 256 units that is trained by Adam on its last state, with
# batches of 200; at six snapshots the operators of 32 other images. Two seeds.

T, SNAPSHOTS = 11, (0, 10, 50, 100, 200, 400)
digits = kp.tasks.SequentialDigits(rows=True)


def shown(trials: kp.tasks.Trials) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole images at every step `[trial, T, pixel]`, and which digit they are."""
    return trials.inputs.flatten(1)[:, None].repeat(1, T, 1), trials.conditions["digit"]


held_out, held_digits = shown(digits.sample(32, mode="grid"))
courses = {}
for seed in (0, 1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        core, read = torch.nn.RNN(64, 256, batch_first=True), torch.nn.Linear(256, 10)
    optimizer = torch.optim.Adam([*core.parameters(), *read.parameters()], lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    for step in range(SNAPSHOTS[-1] + 1):
        if step in SNAPSHOTS:
            lin = kp.linearise(core, held_out)
            right = float((read(lin.states[:, -1]).argmax(dim=1) == held_digits).double().mean())
            print(f"seed {seed}, step {step:3}: {right:4.0%} right; alignment with the NTK", end="")
            for rule in (kp.flow.local_learning(lin), kp.flow.feedback_alignment(lin)):
                measured = kp.estimate.alignment(kp.Ntk(lin), rule.operator, budget=48)
                courses[rule.name, seed, step] = measured
                print(f", {rule.name} {measured.value:.3f} ± {measured.standard_error:.3f}", end="")
            print()
        images, classes = shown(digits.sample(200, generator=generator))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(read(core(images)[0][:, -1]), classes).backward()
        optimizer.step()

# %%
# Both rules begin near the NTK and lose in the first ten steps; after 400 a third to a half is left. Random feedback is
# behind no back-propagation at every snapshot.

for seed in (0, 1):
    local, random = (
        torch.tensor([courses[name, seed, step].value for step in SNAPSHOTS])
        for name in ("no back-propagation", "feedback alignment")
    )
    assert bool((random < local).all())
    assert 0.8 < float(local[0]) < 0.9
    assert 0.65 < float(random[0]) < 0.8
    assert bool((local[1:] < 0.62).all())
    assert bool((random[1:] > 0.25).all())

fig, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
for name, colour in (("no back-propagation", "kernel"), ("feedback alignment", "error")):
    for seed, style in ((0, "o-"), (1, "s--")):
        row = [courses[name, seed, step] for step in SNAPSHOTS]
        values, errors = [one.value for one in row], [one.standard_error for one in row]
        ax.errorbar(
            range(len(SNAPSHOTS)), values, errors, fmt=style, color=PALETTE[colour], label=f"{name}, seed {seed}"
        )
ax.set_xticks(range(len(SNAPSHOTS)), SNAPSHOTS)
ax.set(xlabel="training step", ylabel="alignment with the NTK", ylim=(0, 1))
ax.legend(fontsize=8, frameon=False)
plt.show()
