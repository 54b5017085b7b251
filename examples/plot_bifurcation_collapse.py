"""
The NTK collapses where learning passes a bifurcation
=====================================================

**The claim** (arXiv 2605.12763): near a bifurcation the NTK of a recurrent network's states is dominated by one
amplified channel of rank one, which the classical normal form predicts; in a student that learns from a teacher, the
first bifurcation coincides with a sharp collapse of the NTK's effective rank; and a low-rank natural gradient cures the
instability there.

**The numbers** below. What agrees: the effective rank falls from 127 to 1.3, at step 92, and the pitchfork is at step
90.7; there one direction of parameter space, ∇_θ μ, carries 88 % of the NTK's trace and is its leading mode, its field
is that of the scalar map to 6 %, and the loss along it has the shape of the normal form's up to about μ = 0.15. The
student ends with the attractors of its teacher, one move away from those that it had. The natural gradient passes in
about a tenth of the steps of Adam. What does not: the least rank is a step or two after the multiplier passes 1; four
steps later the trajectories have reached the new fixed points, and the channel carries less than a quarter; at the end
the stable fixed points are still 14 % of their size away from the teacher's; on the straight line between checkpoints
twenty steps apart the pitchfork is five steps early.
"""

import copy

import matplotlib.pyplot as plt
import torch

import kpflow as kp
from kpflow.optim import NaturalGradient
from kpflow.plots import PALETTE

torch.set_num_threads(1)  # the tensors are small

# %%
# A student and a teacher
# -----------------------
# Both are autonomous: h' = tanh(W h) from sixteen small initial states. The origin of the student is stable, with a
# leading multiplier 0.7; that of the teacher is not (1.3), and two stable fixed points lie beside it. So the student
# must pass a pitchfork on its way. W is not normal, and all other eigenvalues are within ±0.4.

UNITS, STEPS, TRIALS = 24, 30, 16


def network(leading: float, seed: int) -> torch.nn.RNN:
    """A network with a given leading multiplier."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(UNITS, UNITS, generator=generator, dtype=torch.float64)).Q
    basis = basis + 0.15 * torch.randn(UNITS, UNITS, generator=generator, dtype=torch.float64)
    others = torch.linspace(-0.4, 0.4, UNITS - 1, dtype=torch.float64)
    eigenvalues = torch.cat([others, torch.tensor([leading], dtype=torch.float64)])
    with torch.random.fork_rng(devices=[]):
        rnn = torch.nn.RNN(1, UNITS, bias=False, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(basis @ torch.diag(eigenvalues) @ torch.linalg.inv(basis))
    rnn.weight_ih_l0.requires_grad_(False)
    return rnn


NOTHING = torch.zeros(TRIALS, STEPS, 1, dtype=torch.float64)


def problem(seed: int) -> tuple[torch.nn.RNN, torch.Tensor, torch.Tensor]:
    """The student, the initial states, and the teacher's states."""
    generator = torch.Generator().manual_seed(100 + seed)
    initial = 0.1 * torch.randn(1, TRIALS, UNITS, generator=generator, dtype=torch.float64)
    return network(0.7, seed), initial, network(1.3, seed)(NOTHING, initial)[0].detach()


def miss(states: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """½ E ‖h − h*‖²."""
    return 0.5 * (states - target).square().sum(-1).mean()


student, initial, target = problem(0)
optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
losses, checkpoints = [], []
for _ in range(121):
    checkpoints.append(copy.deepcopy(student))
    loss = miss(student(NOTHING, initial)[0], target)
    losses.append(float(loss.detach()))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
# Measurements that know nothing of each other
# --------------------------------------------
# The effective rank of the NTK at the checkpoints, and the bifurcations of the fixed points: by continuation between
# checkpoints that are twenty steps apart, from both ends.


def kernel(model: torch.nn.RNN) -> kp.Ntk:
    """The NTK of all states."""
    return kp.Ntk(kp.linearise(model, NOTHING, initial=initial))


at = [*range(0, 80, 8), *range(80, 101), *range(104, 121, 8)]
ranks = [float(kp.estimate.effective_rank(kernel(checkpoints[step]), rtol=0.03)) for step in at]
lowest = at[ranks.index(min(ranks))]

seeds = torch.cat([initial[0], target[:, -1]])


def bifurcations(steps: list[int]) -> list[tuple[float, str]]:
    """Those between checkpoints, in training steps."""
    saved = [checkpoints[step].state_dict() for step in steps]
    paths = kp.dynamics.follow_training(student, saved, torch.zeros(1), seeds, every=1)
    return [
        (steps[k] + (steps[k + 1] - steps[k]) * (path.step_of(event) - k), event.label)
        for k, path in enumerate(paths)
        for event in path.events
    ]


(coarse,) = bifurcations(list(range(0, 121, 20)))
(fine,) = bifurcations(list(range(80, 101)))
print(f"least effective rank: {min(ranks):.2f} at step {lowest}; {max(ranks):.0f} before")
print(f"between checkpoints twenty steps apart: {coarse[1]} at step {coarse[0]:.1f} of the straight line")
print(f"between all checkpoints: {fine[1]} at step {fine[0]:.2f}")
assert abs(fine[0] - lowest) < 2

# %%
# The attractors of the student and of its teacher
# ------------------------------------------------
# (S, U, O): stable fixed points, unstable directions, orbits. `bifurcation_graph` counts them, and says what moves lie
# between two networks; each of them is one bifurcation. No orbit is seen, and none was searched for.

teacher = network(1.3, 0)


def fixed_points(model: torch.nn.RNN) -> kp.dynamics.FixedPoints:
    """All of them, as the index sum says."""
    points = kp.dynamics.find_fixed_points(model, torch.zeros(1), seeds)
    assert points.index_verdict is kp.dynamics.IndexVerdict.CONSISTENT
    return points


attractors = {step: fixed_points(checkpoints[step]) for step in (*range(0, 81, 20), 85, *range(88, 97), 100, 110, 120)}
taught = fixed_points(teacher)
before, after, wanted = map(kp.dynamics.bifurcation_graph, (attractors[0], attractors[120], taught))
print("student, untrained:", before)
print("student, trained:  ", after)
print("teacher:           ", wanted)
moves = before.to(wanted)
print("moves from the untrained student to the teacher:", moves)
assert after == wanted
assert sum(map(abs, moves.values())) == 1
gaps = taught.distance(attractors[120].states) / taught.states.norm(dim=1).max()
print("from each fixed point of the trained student to the teacher's, by its size:", [f"{gap:.3f}" for gap in gaps])
for name, points in (("trained student", attractors[120]), ("teacher", taught)):
    print(f"leading multipliers of the {name}:", [f"{float(value):.3f}" for value in points.multipliers[:, 0].real])

along_teacher = taught.states[0] / taught.states[0].norm()
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
for step, points in [*attractors.items(), (128, taught)]:
    for place, kind in zip((points.states @ along_teacher).tolist(), points.kinds, strict=True):
        colour = PALETTE["targets"] if points is taught else PALETTE["states"]
        axis.plot(step, place, "o", color=colour, markersize=5, fillstyle="full" if kind == "stable" else "none")
axis.axvline(fine[0], color=PALETTE["muted"], linestyle=":")
for place, graph in ((45, before), (106, after)):
    axis.text(place, 0.4, f"({graph.stable}, {graph.unstable}, {graph.orbits})", ha="center")
axis.set(title="Fixed points; filled: stable. At the right: the teacher", xlabel="training step")
axis.set_ylabel("along the teacher's stable one")
plt.show()

# %%
# The student ends with the counts of its teacher, one move from where it began: the one pitchfork that continuation
# found, and no bifurcation besides.
#
# The channel
# -----------
# `critical` gives the multiplier of the origin, its eigenvectors and ∇_θ μ; `channels` splits the NTK at that direction
# of parameter space. How much of the NTK's trace it carries, whether it is the NTK's leading mode, and how far its
# field is from the one of the scalar map on the centre manifold, ‖∇μ‖ d_μ α ⊗ v:


def split(model: torch.nn.RNN) -> dict[str, float]:
    """How much of the NTK the channel is, and how far it is that of the scalar map."""
    point = kp.dynamics.critical(model, torch.zeros(UNITS), torch.zeros(1), multiplier=1.0)
    lin = kp.linearise(model, NOTHING, initial=initial)
    channel = kp.flow.channels(lin, {"weight_hh_l0": point.named_gradient["weight_hh_l0"]})
    form = kp.dynamics.reduced_form(point)
    alpha = initial[0] @ point.left
    predicted = channel.compare(kp.dynamics.sensitivity(form, alpha, 0.0, STEPS), point.right)
    top = kp.estimate.modes(channel.ntk, k=1, tol=1e-3).vectors[0]
    field = channel.field / channel.field.norm()
    return {
        "multiplier": point.multiplier.real,
        "dominance": channel.dominance,
        "leading mode": float((top * field).sum().abs()),
        "field error": predicted.relative_error,
    }


rows = [split(checkpoints[step]) for step in at]
print("step  multiplier  effective rank  dominance  |cos| to the leading mode  error of the field")
for step, rank, row in zip(at, ranks, rows, strict=True):
    if step in (0, 40, 80, 84, 88, 90, 92, 96, 120):
        print(f"{step:4d}  {row['multiplier']:10.4f}  {rank:14.2f}  {row['dominance']:9.3f}  ", end="")
        print(f"{row['leading mode']:24.3f}  {row['field error']:18.3f}")

# %%
# The channel carries little of the NTK at first, most of it at the bifurcation, and less again when the trajectories
# have saturated at the new fixed points. There the scalar map's field is off too: it knows one fixed point only.
#
# The landscape in the channel
# ----------------------------
# The loss along p̂ from the checkpoint at the bifurcation, beside that of the scalar normal form, whose teacher is the
# multiplier that the network's teacher has.

around = checkpoints[round(fine[0])]
point = kp.dynamics.critical(around, torch.zeros(UNITS), torch.zeros(1), multiplier=1.0)
slope = point.named_gradient["weight_hh_l0"]
shifts = torch.linspace(-0.3, 0.5, 41, dtype=torch.float64)


def along(shift: float) -> float:
    """The student's loss with the multiplier moved by about `shift` along ∇μ."""
    moved = copy.deepcopy(around)
    with torch.no_grad():
        moved.weight_hh_l0.add_(shift * slope / slope.square().sum())
        return float(miss(moved(NOTHING, initial)[0], target))


network_losses = torch.tensor([along(float(shift)) for shift in shifts])
form = kp.dynamics.reduced_form(point)
alpha = initial[0] @ point.left
goal = 1.3 - point.multiplier.real
scalar_losses = kp.dynamics.loss_landscape(form, alpha[None, :], shifts[:, None], goal, STEPS).mean(dim=1)
surface = kp.dynamics.loss_landscape(
    kp.dynamics.scalar_form("pitchfork"),
    torch.linspace(-0.5, 0.5, 81, dtype=torch.float64)[None, :],
    torch.linspace(-0.5, 0.6, 81, dtype=torch.float64)[:, None],
    0.3,
    STEPS,
)

# %%
# Optimisers at the transition
# ----------------------------
# Ten students, each with the step size of a grid that gets two other students below a loss of 1e-2 in the fewest steps.
# The natural gradient, damped by the gain ratio, has nothing to choose.


def trained(name: str, rate: float, seed: int, steps: int = 120) -> list[float]:
    """Losses of a student."""
    model, start, goal = problem(seed)

    def closure() -> tuple[torch.Tensor, torch.Tensor]:
        states = model(NOTHING, start)[0]
        return miss(states, goal), states

    def jacobian() -> kp.operators.Operator:
        return kp.Ntk(kp.linearise(model, NOTHING, initial=start)).jacobian

    if name == "natural gradient":
        natural = NaturalGradient(model, lr=rate, rank=16, form="damped", damping="gain", refresh=1)
        return [float(natural.step(closure, jacobian=jacobian)) for _ in range(steps)]
    optimizer = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}[name]([model.weight_hh_l0], lr=rate)
    kept = []
    for _ in range(steps):
        loss, _ = closure()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        kept.append(float(loss.detach()))
    return kept


def steps_to(losses: list[float], level: float = 1e-2) -> int:
    """Steps until the loss is below a level for the first time; all steps if it never is."""
    return next((step for step, loss in enumerate(losses) if loss < level), len(losses))


GRID = {"SGD": (0.01, 0.02, 0.03, 0.05), "Adam": (1e-3, 3e-3, 1e-2), "natural gradient": (1.0,)}
curves = {}
for name, rates in GRID.items():
    rate = min(rates, key=lambda r, name=name: sum(steps_to(trained(name, r, seed)) for seed in (50, 51)))
    curves[name] = torch.tensor([trained(name, rate, seed) for seed in range(10)])
    counts = sorted(steps_to(losses) for losses in curves[name].tolist())
    rises = int((curves[name][:, 1:] > 1.02 * curves[name][:, :-1]).sum())
    print(
        f"{name}, step size {rate:g}: loss 1e-2 after {counts[5]} steps (median of ten, from {counts[0]} to "
        f"{counts[-1]}, 120 is never); {rises} steps of 1190 raise the loss"
    )

# %%
# The figure
# ----------

figure, axes = plt.subplots(2, 3, figsize=(11, 6.2), layout="constrained")
axes[0, 0].semilogy(at, ranks, "o-", color=PALETTE["ntk"], markersize=3.5, label="effective rank of the NTK")
axes[0, 0].semilogy(range(121), losses, color=PALETTE["error"], label="loss")
axes[0, 0].set(title="The rank collapses", xlabel="training step")
axes[0, 1].plot(
    at, [row["dominance"] for row in rows], "o-", markersize=3.5, color=PALETTE["kernel"], label="dominance"
)
axes[0, 1].plot(at, [row["leading mode"] for row in rows], color=PALETTE["states"], label="|cos| to the leading mode")
axes[0, 1].plot(at, [row["field error"] for row in rows], color=PALETTE["targets"], label="error of the scalar field")
axes[0, 1].set(title="The channel ∇μ", xlabel="training step", ylim=(0, 1.05))
axes[0, 2].plot(at, [row["multiplier"] for row in rows], "o-", markersize=3.5, color=PALETTE["propagator"])
axes[0, 2].axhline(1, color=PALETTE["rule"])
axes[0, 2].set(title="Multiplier of the origin", xlabel="training step")
for axis in axes[0]:
    axis.axvline(fine[0], color=PALETTE["muted"], linestyle=":", label="pitchfork, by continuation")
shown = axes[1, 0].contourf(
    torch.linspace(-0.5, 0.6, 81),
    torch.linspace(-0.5, 0.5, 81),
    surface.mT.clamp_min(1e-6).log10(),
    levels=12,
    cmap="Blues",
)
figure.colorbar(shown, ax=axes[1, 0], label="log₁₀ loss")
axes[1, 0].set(title="Landscape of the normal form", xlabel="μ", ylabel="α₀")
axes[1, 1].plot(shifts, network_losses / network_losses[0], color=PALETTE["targets"], label="network, along ∇μ")
axes[1, 1].plot(shifts, scalar_losses / scalar_losses[0], "--", color=PALETTE["ink"], label="its scalar map")
axes[1, 1].set(title="Landscape in the channel", xlabel="μ", ylabel="loss, of its first")
for (name, losses_of), colour in zip(curves.items(), ("error", "ntk", "kernel"), strict=True):
    low, middle, high = losses_of.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=losses_of.dtype), dim=0)
    axes[1, 2].semilogy(middle, color=PALETTE[colour], label=name)
    axes[1, 2].fill_between(range(len(middle)), low, high, color=PALETTE[colour], alpha=0.2, linewidth=0)
axes[1, 2].set(title="Ten students, 10 % to 90 %", xlabel="training step", ylabel="loss")
for axis in (axes[0, 0], axes[0, 1], axes[1, 1], axes[1, 2]):
    axis.legend(frameon=False, fontsize=8)
plt.show()
