r"""
How gradient descent cuts data off
==================================

**The claim** (T. Chen, arXiv 2501.07400): seen in input space, a ReLU layer with aligned weights W = W\_\*R puts the
points that an activation cuts off onto a wall, and gradient descent moves this wall towards the target. Each coordinate
moves at the rate n/N, the fraction of points that it has cut off, so that it gets faster as it goes; in the end the
cluster is one point, its target.

**The numbers** below: in a network whose biases are trained, each coordinate of the wall decays at the fraction n/N of
the points that it has cut off, measured between events, to 1e-6; the whole path is that of the closed form to 1e-9, and
the cluster ends in its target to rounding. Where weights learn too, or frames turn, how far from it they are.
"""

import matplotlib.pyplot as plt
import torch

from kpflow.flow import truncation
from kpflow.plots.style import PALETTE

# %%
# A cluster and its target
# ------------------------
# The layer is σ(R x + b), b = R β. Its truncation map τ(x) = Rᵀσ(R(x + β)) − β leaves a cone of input space alone, with
# apex −β, and projects all other points onto its walls.

random = torch.Generator().manual_seed(0)
angle = torch.tensor(0.4, dtype=torch.float64)
R = torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])
points = torch.randn(40, 2, generator=random, dtype=torch.float64) @ torch.diag(torch.tensor([1.0, 0.6]).double())
target, shift = R.T @ torch.tensor([3.0, 2.5]).double(), R.T @ torch.tensor([1.2, 0.7]).double()

flow = truncation.bias_flow(points, target, shift, R)
print(f"points cut off at first: {(40 * flow.fractions([0.0])[0]).int().tolist()} of 40, by coordinate")
print(f"all cut off from t = {flow.collapse_time:.4f} on; ends: {[course.end for course in flow.courses]}")

# %%
# Step by step: points that are cut off move along with the walls, until one point is all that is left of the cluster.

seen = [0.0, 0.8, 1.6, 2.2, float(flow.collapse_time), 8.0]
figure, axes = plt.subplots(2, 3, figsize=(9, 6), sharex=True, sharey=True, layout="constrained")
for axis, time in zip(axes.flat, seen, strict=True):
    beta = flow.at([time])[0]
    image = truncation.aligned_map(points, beta, R)
    cut = ((points + beta) @ R.T <= 0).any(dim=1)
    axis.scatter(*points.T, s=8, color=PALETTE["rule"])
    axis.scatter(*image[~cut].T, s=12, color=PALETTE["states"], label="let through")
    axis.scatter(*image[cut].T, s=12, color=PALETTE["error"], label="cut off")
    for wall in R:
        axis.plot(*torch.stack([-beta, -beta + 8 * wall]).T, color=PALETTE["muted"], linewidth=0.8)
    axis.plot(*target, "*", color=PALETTE["targets"], markersize=12, label="target")
    fractions = ", ".join(f"{value:.2f}" for value in flow.fractions([time])[0])
    axis.set(title=f"t = {time:.2f}:  n/N = {fractions}", xlim=(-3.2, 4.2), ylim=(-2.2, 4.4), aspect="equal")
axes[0, 0].legend(frameon=False, fontsize=8, loc="upper left")

# %%
# The closed form and the flow of the biases
# ------------------------------------------
# The biases of the network are integrated with gradients by autograd; the closed form knows the times of all events.

times = torch.linspace(0, 6, 31, dtype=torch.float64)
network = ([R, R.T], [R @ shift, torch.zeros(2, dtype=torch.float64)])
path = truncation.network_flow(network, points, target, times=times)
exact = flow.at(times)
events = [event for event in flow.events if event < 6]
late = max(abs(found - known) for found, known in zip(path.events, events, strict=True))
print(f"{len(events)} events, found to {late:.1e}; β agrees to {float((path.shifts[:, 0] - exact).abs().max()):.1e}")
assert late < 1e-9
assert float((path.shifts[:, 0] - exact).abs().max()) < 1e-9

# %%
# The rate n/N is measured in the network itself: in the middle of every piece between two events that is long enough,
# from how far β̂ + ŷ falls there, beside the number of points that the wall has cut off by then.

ends = torch.tensor([0.0, *events]).double()
long = (ends.diff() > 0.02).nonzero()[:, 0]
inside = torch.stack([ends[:-1] + 0.25 * ends.diff(), ends[:-1] + 0.75 * ends.diff()], dim=1)[long]  # [piece, 2]
shifts = truncation.network_flow(network, points, target, times=inside.flatten()).shifts[:, 0].reshape(-1, 2, 2)
gaps = (shifts + target) @ R.T  # [piece, begin and end, coordinate]
measured = (gaps[:, 0] / gaps[:, 1]).log() / inside.diff(dim=1)
cut_off = ((points + shifts[:, :1]) @ R.T <= 0).double().mean(dim=1)  # n/N, [piece, coordinate]
print(f"rates in {len(long)} pieces: from {measured.min():.6f} to {measured.max():.6f}")
print(f"  off from n/N by {float((measured - cut_off).abs().max()):.1e} at most; n from {40 * cut_off.min():.0f} to 40")
assert float((measured - cut_off).abs().max()) < 1e-6
assert float(cut_off.max()) == 1

image = truncation.aligned_map(points, flow.limit, R)
print(f"largest |τ(x) − y| at last: {float((image - target).abs().max()):.1e}")
assert float((image - target).abs().max()) < 1e-12

# %%
# Two clusters, one layer: they merge
# -----------------------------------
# Each coordinate of β is drawn to minus the mean of the targets of the points that it cuts off. A layer that cuts two
# clusters off brings both to the weighted mean of their targets; with one layer for each, they go each to its own.

labels = (torch.arange(40) >= 25).long()
pair = torch.stack([target, R.T @ torch.tensor([2.2, 3.2]).double()])
merged = truncation.bias_flow(points, pair, shift, R, clusters=labels)
mean = (25 * pair[0] + 15 * pair[1]) / 40
print(f"one layer: −β at last misses (25 y₁ + 15 y₂)/40 by {float((merged.limit + mean).abs().max()):.1e}")
assert float((merged.limit + mean).abs().max()) < 1e-12

frames = torch.stack([torch.eye(2), -torch.eye(2)]).double()
apart = torch.cat([0.3 * points[:25] - 2.5, 0.3 * points[25:] + 2.5])
goals = torch.tensor([[-1.0, -1.2], [1.2, 0.9]]).double()
starts = torch.tensor([[2.5, 2.5], [-2.5, -2.5]]).double()
both = truncation.effective_flow(apart, goals, starts, frames, clusters=labels, times=[50.0], turning=False)
image = truncation.aligned_map(
    truncation.aligned_map(apart, both.shifts[0, 0], frames[0]), both.shifts[0, 1], frames[1]
)
print(f"a layer for each: largest |τ(x) − y_j| {float((image - goals[labels]).abs().max()):.1e}")
assert float((image - goals[labels]).abs().max()) < 1e-6

# %%
# Where the closed form ends
# --------------------------
# Weights that learn with the biases leave the alignment, and their biases the closed form. So do frames R that turn,
# along the gradient on the orthogonal group.

short = times[times <= 1]
paths = {
    "weights that learn": truncation.network_flow(network, points, target, times=short, learn="all"),
    "frames that turn": truncation.effective_flow(points, target, shift, R, times=short),
}
deviations = {name: (one.shifts[:, 0] - exact[: len(short)]).norm(dim=1) for name, one in paths.items()}
for name, one in paths.items():
    deviation, off = deviations[name], one.misalignment[:, 0]
    print(f"{name}, t = 1: β deviates by {float(deviation[-1]):.3f}, misalignment {float(off[-1]):.3f}")
    assert float(deviation[0]) < 1e-12
    assert bool((deviation[1:] > 1e-3).all())
    assert bool((off[1:] > 0.02).all())
    assert 0.2 < float(deviation[-1]) < 0.5

fine = torch.linspace(0, 6, 601)
figure, (left, right, last) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
for k, colour in enumerate(("propagator", "kernel")):
    gap, found = (exact + target) @ R[k], (path.shifts[:, 0] + target) @ R[k]
    left.semilogy(times, gap, color=PALETTE[colour], label=f"coordinate {k + 1}, closed form")
    left.semilogy(times[::2], found[::2], "o", markersize=3.5, color=PALETTE[colour])
    right.plot(fine, flow.fractions(fine)[:, k], color=PALETTE[colour], label=f"coordinate {k + 1}")
left.set(title="Distance from the target", xlabel="time", ylabel="β̂ + ŷ")
right.set(title="Its rate: n / N (dots: measured)", xlabel="time", ylabel="n / N")
for k, colour in enumerate(("propagator", "kernel")):
    right.plot(inside.mean(dim=1), measured[:, k], "o", markersize=3.5, color=PALETTE[colour])
for (name, deviation), colour in zip(deviations.items(), ("ntk", "error"), strict=True):
    last.plot(short, deviation, color=PALETTE[colour], label=name)
last.set(title="Off the closed form", xlabel="time", ylabel="‖Δβ‖")
for axis in (left, right, last):
    axis.legend(frameon=False, fontsize=8)
plt.show()
