"""
Learning in scalar normal forms
===============================

**The claim** (arXiv 2605.12763): near a bifurcation a recurrent network learns as a map of one number α does, and the
trajectories of such maps depend strongly on the parameter μ: for a linear map ‖d_μ α‖ grows with the number T of steps
like T^(3/2)/√3 at the bifurcation, and exponentially beyond. Loss landscapes have a plateau on one side and a cliff on
the other.

**The numbers** below: sensitivities, amplification and losses of the five maps of the paper over (μ, α₀), and the count
of attractors of a network beside its teacher.
"""

import matplotlib.pyplot as plt
import torch

import kpflow as kp
from kpflow.dynamics import amplification, loss_landscape, scalar_form, sensitivity

torch.set_num_threads(1)  # the tensors are small

NAMES = ("saddle-node", "transcritical", "pitchfork", "flip", "neimark-sacker")
mu = torch.linspace(-1, 1, 161, dtype=torch.float64)
start = torch.linspace(-2, 2, 161, dtype=torch.float64)

# %%
# How much the states depend on μ
# -------------------------------
# log₁₀ ‖d_μ α‖ over 25 steps; white lines are fixed points (radii, for the circle). Trajectories that leave are held at
# 1e7. On the right the amplification ‖Φ‖_F of five steps, without its diagonal.

figure, axes = plt.subplots(2, 5, figsize=(12, 5), sharex=True, sharey=True, layout="constrained")
for column, name in enumerate(NAMES):
    form = scalar_form(name)
    size = sensitivity(form, start[None, :], mu[:, None], 25).abs().square().sum(-1).sqrt()
    growth = amplification(form, start[None, :], mu[:, None], 5)
    for axis, values, low, high in (
        (axes[0, column], size.clamp_min(1e-3).log10(), -1, 7),
        (axes[1, column], growth, -1, 4),
    ):
        axis.pcolormesh(mu, start, values.mT, vmin=low, vmax=high, cmap="magma", rasterized=True)
        at = [(float(m), float(point)) for m in mu for point in form.fixed_points(float(m))]
        axis.plot(*zip(*at, strict=True), "w.", markersize=1)
        axis.set_ylim(-2, 2)
    axes[0, column].set_title(name)
    axes[1, column].set_xlabel("μ")
axes[0, 0].set_ylabel("α₀, sensitivity")
axes[1, 0].set_ylabel("α₀, amplification")
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
