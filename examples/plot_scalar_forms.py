"""
Learning in scalar normal forms
===============================

**The claim** (arXiv 2605.12763): near a bifurcation a recurrent network learns as a map of one number α does, and the
trajectories of such maps depend strongly on the parameter μ: for a linear map ‖d_μ α‖ grows with the number T of steps
like T^(3/2)/√3 at the bifurcation, and exponentially beyond. Loss landscapes have a plateau on one side and a cliff on
the other.

**The numbers** below: sensitivities, amplification and losses of the five maps of the paper, and of the Hopf form of
flows, over (μ, α₀), and the count of attractors of a network beside its teacher.
"""

import matplotlib.pyplot as plt
import torch

import kpflow as kp
from kpflow.dynamics import amplification, loss_landscape, scalar_form, sensitivity, trajectory

torch.set_num_threads(1)  # the tensors are small

NAMES = ("saddle-node", "transcritical", "pitchfork", "flip", "neimark-sacker", "hopf")
mu = torch.linspace(-1, 1, 161, dtype=torch.float64)
start = torch.linspace(-2, 2, 161, dtype=torch.float64)

# %%
# How much the states depend on μ
# -------------------------------
# Above, log₁₀ ‖d_μ α‖ over 25 steps; white lines are fixed points (radii, for the circles). Trajectories that leave are
# held at 1e7. In the middle, log₁₀ of the amplification ‖Φ‖_F of five steps, without its diagonal. Below, log₁₀ of the
# loss over 25 steps, with the teacher at the dashed line.
#
# Hopf is of a flow, whose exact map over a time of 1 is taken. Of the flow no trajectory leaves, however large α₀ is;
# the Neimark–Sacker map, critical in the same way, overshoots there.

TEACHERS = {name: -0.3 if name == "saddle-node" else 0.3 for name in NAMES}  # all with an attractor besides 0
figure, axes = plt.subplots(3, 6, figsize=(12, 6.4), sharex=True, sharey=True, layout="constrained")
for column, name in enumerate(NAMES):
    form = scalar_form(name)
    size = sensitivity(form, start[None, :], mu[:, None], 25).abs().square().sum(-1).sqrt()
    growth = amplification(form, start[None, :], mu[:, None], 5)
    loss = loss_landscape(form, start[None, :], mu[:, None], TEACHERS[name], 25)
    for axis, values, low, high in (
        (axes[0, column], size.clamp_min(1e-3).log10(), -1, 7),
        (axes[1, column], growth, -1, 4),
        (axes[2, column], loss.clamp_min(1e-9).log10(), -4, 2),
    ):
        axis.pcolormesh(mu, start, values.mT, vmin=low, vmax=high, cmap="magma", rasterized=True)
        at = [(float(m), float(point)) for m in mu for point in form.fixed_points(float(m))]
        axis.plot(*zip(*at, strict=True), "w.", markersize=1)
        axis.set_ylim(-2, 2)
    axes[0, column].set_title(name)
    axes[2, column].axvline(TEACHERS[name], color="white", linestyle="--", linewidth=0.8)
    axes[2, column].set_xlabel("μ")
    left = trajectory(form, start[None, :], mu[:, None], 25)[..., -1].abs() > 0.999e7
    print(f"{name:>14}: {float(left.double().mean()):4.0%} have left; ‖d_μ α‖ at most {float(size.max()):.1e}")
axes[0, 0].set_ylabel("α₀, sensitivity")
axes[1, 0].set_ylabel("α₀, amplification")
axes[2, 0].set_ylabel("α₀, loss")
plt.show()

linear = sensitivity(kp.dynamics.PolynomialForm(), 1.0, 0.0, 1000).norm() / (1000**1.5 / 3**0.5)
print(f"‖d_μ α‖ of a linear map at μ = 0 and T = 1000, in units of T^(3/2)/√3: {float(linear):.5f}")

# %%
# What a teacher beyond the bifurcation looks like from before it
# ---------------------------------------------------------------
# The loss of a pitchfork whose teacher has μ* = 0.5, for four lengths of time, from α₀ = 0.01 (mean over ±): the longer
# the trajectories, the flatter the plateau before the bifurcation and the steeper the cliff at it.

figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
for steps, colour in zip((5, 10, 25, 50), ("#e0912f", "#d4564e", "#a83279", "#2c1a66"), strict=True):
    curve = loss_landscape(scalar_form("pitchfork"), 0.01, mu, teacher=0.5, steps=steps)
    axis.semilogy(mu, curve.clamp_min(1e-8), color=colour, label=f"T = {steps}")
axis.set(xlabel="μ of the student", ylabel="loss", title="Pitchfork, teacher at μ* = 0.5", xlim=(-0.5, 1))
axis.legend(frameon=False)
plt.show()

# %%
# The attractors of a student and of its teacher
# ----------------------------------------------
# S stable fixed points, U unstable directions, O orbits: what separates a network from its teacher is a number of
# moves, each a bifurcation of a stable point. Here two tanh units; the last ones hold two bits, for which a saddle has
# to bifurcate too, and the count says so.


def attractors(*weights: float) -> kp.dynamics.BifurcationGraph:
    """Of tanh units with these weights onto themselves."""
    weight = torch.tensor(weights, dtype=torch.float64)
    seeds = torch.cartesian_prod(*[torch.linspace(-1, 1, 9, dtype=torch.float64)] * len(weights))
    points = kp.dynamics.find_fixed_points(lambda h, _: torch.tanh(weight * h), torch.zeros(1), seeds, bounded=True)
    return kp.dynamics.bifurcation_graph(points)


student, teacher, two_bits = attractors(0.7, 0.4), attractors(1.5, 0.4), attractors(1.5, 1.5)
print("student:", student)
print("teacher:", teacher)
print("moves from one to the other:", student.to(teacher))
print("two bits:", two_bits)
print("         ", two_bits.verdict.value)
