"""
What a network's state can come to
==================================

**The question**: where does the state of a recurrent network stay? At a fixed point, in a cycle, or on a set on which
neighbours part for ever. Each kind has its own exact description, and each description its own check.

**The numbers** below: the nine fixed points of a network that holds two bits, with an index sum that tells when some
are missing; exponents of a chaotic network, λ₁ = 0.16 per time constant, its dimension of 3.4 out of 32, with error
bars, and its directions; a cycle from its birth at a flip; and the 1023 fixed points of a ReLU network by linear
equations, to rounding.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import kpflow as kp
from kpflow.dynamics import (
    PiecewiseLinear,
    bifurcation_diagram,
    covariant_vectors,
    find_cycles,
    find_fixed_points,
    find_region_points,
    finite_time_exponents,
    lyapunov_spectrum,
    seeds_from,
)

torch.set_num_threads(1)  # the tensors are small
BLUE, ORANGE, GREY = "#0b6bb5", "#c8500a", "#667182"

# %%
# Fixed points: a network that holds two bits
# -------------------------------------------
# A GRU of 16 units learns to hold the signs of the last pulses on two lines. Its fixed points without input are
# searched from 256 seeds, states of trials and convex mixes of them, since saddles lie between what trials visit.

task = kp.tasks.FlipFlop(K=2, steps=40, p=0.2, first="pulse", sigma=0.1)
torch.manual_seed(0)
network, readout = nn.GRU(2, 16, batch_first=True), nn.Linear(16, 2)
optimiser = torch.optim.Adam([*network.parameters(), *readout.parameters()], lr=1e-2)
generator = torch.Generator().manual_seed(0)
for _ in range(400):
    trials = task.sample(64, generator=generator)
    error = readout(network(trials.inputs.float())[0]) - trials.targets.float()
    optimiser.zero_grad()
    (error.square() * trials.mask.float()).mean().backward()
    optimiser.step()

states = network(task.sample(64, generator=generator).inputs.float())[0].detach()
points = find_fixed_points(network, torch.zeros(2), seeds_from(states, 256), readout=readout)
print(points)
print("Σ sign det(I − J) =", points.index_sum, "·", points.index_verdict.value)

# %%
# The gates of a GRU keep its state in a box, so that the signs of det(I − J) of all fixed points sum to 1 (Brouwer).
# Four stable points hold the two bits, four saddles are the thresholds between neighbours, and one point with two
# unstable directions is in the middle: 4 − 4 + 1. Where one is missing the sum says so. From the last states of trials
# alone the middle is not found:

few = find_fixed_points(network, torch.zeros(2), states[:, -1], rounds=0)
print(few)

# %%

centre = states.flatten(0, 1).double().mean(dim=0)
axes_of_states = torch.linalg.svd(states.flatten(0, 1).double() - centre, full_matrices=False)[2][:2].mT


def on_page(h: torch.Tensor) -> torch.Tensor:
    """The two leading principal components of the states of trials."""
    return (h.double() - centre) @ axes_of_states


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for trial in on_page(states[:12]):
    left.plot(*trial.T, color=GREY, linewidth=0.5, alpha=0.6)
for count, colour, marker in ((0, BLUE, "o"), (1, ORANGE, "s"), (2, "black", "^")):
    members = points.unstable == count
    label = f"{int(members.sum())} with {count} unstable"
    left.plot(*on_page(points.states[members]).T, marker, color=colour, markersize=7, label=label)
    right.plot(
        points.multipliers[members].real.T, points.multipliers[members].imag.T, marker, color=colour, markersize=3
    )
left.set(xlabel="first component", ylabel="second component", title="Fixed points among twelve trials")
left.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
circle = torch.linspace(0, 2 * torch.pi, 200)
right.plot(circle.cos(), circle.sin(), color=GREY, linewidth=0.8)
right.set(xlabel="Re μ", ylabel="Im μ", title="Their multipliers", aspect="equal")
plt.show()

# %%
# Chaos: exponents with error bars, and the angles of covariant vectors
# ---------------------------------------------------------------------
# A random rate network with weights beyond g = 1 has no attracting point. Its Lyapunov exponents λ, of 16 trials, have
# standard errors from the spread of the trials; where their sum over the leading ones passes 0 is the Kaplan–Yorke
# dimension. Covariant vectors are the directions that belong to them; where the unstable and the stable ones touch, the
# dynamics is not hyperbolic.

chaotic = kp.states.cells.RateRNN(1, 32, alpha=0.5, gain=4.0, generator=torch.Generator().manual_seed(3))
initial = torch.randn(16, 32, generator=generator)
spectrum = lyapunov_spectrum(chaotic, torch.zeros(1), initial, steps=2000, warmup=500, dt=0.5)
dimension, entropy = spectrum.kaplan_yorke, spectrum.entropy_bound
print(spectrum)
print(f"Kaplan–Yorke dimension {dimension.value:.2f} ± {dimension.standard_error:.2f} of 32")
print(f"entropy at most {entropy.value:.3f} ± {entropy.standard_error:.3f} nats per time constant")

unstable = int((spectrum.exponents > 3 * spectrum.standard_error).sum())
vectors = covariant_vectors(chaotic, torch.zeros(1), spectrum.final[:4], steps=600, dt=0.5)
angles = torch.rad2deg(vectors.angles(unstable)).flatten()
print(
    f"the {unstable} unstable directions are {float(angles.min()):.2f}° to {float(angles.max()):.1f}° from the others"
)

# %%
# Over a finite time T the leading exponent is log ‖∂h_T/∂h_0‖ / T, which is what gradients through time grow by. It is
# above λ₁ at first, two to five times as large after ten steps, since a norm counts the direction that happens to grow
# most; as T grows it comes to λ₁.

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
left.errorbar(range(1, 33), spectrum.exponents, 3 * spectrum.standard_error, fmt="o", color=BLUE, markersize=3)
left.axhline(0, color=GREY, linewidth=0.8)
left.axvline(dimension.value, color=ORANGE, linestyle="--", label="Kaplan–Yorke dimension")
left.set(xlabel="i", ylabel="λᵢ per time constant", title="Lyapunov exponents, ± 3 standard errors")
left.legend(frameon=False)
middle.hist(angles, bins=40, color=BLUE)
middle.set(xlabel="smallest angle (degrees)", ylabel="states", title="Unstable and stable directions")
for steps in (10, 20, 40, 80, 160, 320):
    leading = finite_time_exponents(chaotic, torch.zeros(1), spectrum.final, k=1, steps=steps, dt=0.5).exponents
    right.plot([steps / 2] * 16, leading, ".", color=BLUE)
right.axhline(float(spectrum.exponents[0]), color=ORANGE, linestyle="--", label="λ₁")
right.set(xlabel="T", xscale="log", ylabel="log ‖∂h_T/∂h_0‖ / T", title="Finite-time exponents of 16 trials")
right.legend(frameon=False)
plt.show()

# %%
# A cycle: born at a flip, followed by the step taken twice
# ---------------------------------------------------------
# The unit h' = tanh(−w h + 0.3) has one fixed point. At a flip, μ = −1, a 2-cycle is born from it, which is a pair of
# fixed points of the step taken twice: there the flip is a pitchfork, and a branch can be followed from it. At w = 2
# multiple shooting finds the same cycle without knowledge of the branch.


def unit(h: torch.Tensor, w: torch.Tensor | float) -> torch.Tensor:
    """One inhibitory unit."""
    return torch.tanh(0.3 - w * h)


start = find_fixed_points(lambda h, _: unit(h, 0.5), torch.zeros(1), torch.zeros(1, 1), bounded=True).states
diagram = bifurcation_diagram(lambda h, w: unit(unit(h, w), w), start, 0.5, bounds=(0.5, 2.5))
print(diagram, [f"w = {event.parameter:.6f}" for event in diagram.events])
cycles = find_cycles(lambda h, _: unit(h, 2.0), torch.zeros(1), torch.linspace(-1, 1, 9)[:, None], 2)
print(cycles)
print(f"states {cycles.states.flatten().tolist()}, multiplier {float(cycles.multipliers.real):.4f}")

figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
for branch in diagram.branches:
    stays = branch.stable
    axis.plot(branch.parameters, branch.states[:, 0].where(stays, torch.nan), color=BLUE)
    axis.plot(branch.parameters, branch.states[:, 0].where(~stays, torch.nan), color=BLUE, linestyle=":")
for event in diagram.events:
    axis.plot(event.parameter, event.state, "o", color=ORANGE, label=f"flip at w = {event.parameter:.4f}")
axis.plot([2.0, 2.0], cycles.states.flatten(), "x", color="black", label="2-cycle by multiple shooting")
axis.set(xlabel="w", ylabel="h", title="Fixed points of the step taken twice")
axis.legend(frameon=False, fontsize=8)
plt.show()

# %%
# ReLU networks: fixed points without a tolerance
# -----------------------------------------------
# Where the active units are known the step is linear. Of M units there are 2ᴹ sets, each with one linear equation; its
# solution counts if it is where it was assumed to be. Units that inhibit each other by 1.5 and do not act on
# themselves: for each set of k units there is a point at which they are at 1/(1.5 k − 0.5), and the others below zero.
# Those with k = 1 are stable: one unit wins.


def competition(size: int) -> PiecewiseLinear:
    """h' = 1 − 1.5 Σ relu(h) over the others."""
    weights = -1.5 * (torch.ones(size, size) - torch.eye(size)).double()
    return PiecewiseLinear.inside(torch.zeros_like(weights), weights, torch.ones(size).double())


for size in (2, 6, 10):
    found = find_region_points(competition(size), bounded=True)
    active = found.active.sum(dim=1).double()
    values = (found.states * found.active).sum(dim=1) / active
    worst = float((values - 1 / (1.5 * active - 0.5)).abs().max())
    print(
        f"{size:2} units: {len(found.states)} points of {found.regions} regions, complete: {found.complete}; index sum "
        f"{found.index_sum}; error at most {worst:.0e}"
    )

# %%
# The regions of two such units, with the way of a state from each place to the next.

pair = competition(2)
found = find_region_points(pair, bounded=True)
side = torch.linspace(-0.8, 1.2, 15, dtype=torch.float64)
places = torch.cartesian_prod(side, side)
moves = pair(places) - places
figure, axis = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
axis.quiver(*places.T, *moves.T, color=GREY, width=0.003)
for border in (axis.axhline, axis.axvline):
    border(0, color=ORANGE, linewidth=0.8)
for kind, colour in (("stable", BLUE), ("repeller", "black")):
    members = [k for k, other in enumerate(found.kinds) if other == kind]
    axis.plot(*found.states[members].T, "o", color=colour, label=kind)
axis.set(xlabel="first unit", ylabel="second unit", title="Four regions, three fixed points")
axis.legend(loc="lower left")
plt.show()
