"""
The self-referential bias
=========================

**The claim** (arXiv 2605.08746): K is a Gram matrix of what the weights see, K = (M Mᵀ) ⊗ I for a rate network, where M
holds the joint activity of hidden units and inputs. Therefore gradient descent learns preferentially within the
dominant modes of the network's own activity over time and trials, and these modes move when the activity does.

**The numbers** below: how much of the NTK lies in the leading modes of the activity, before and after training, against
what is expected by chance, and how much of the task's targets does.
"""

import matplotlib.pyplot as plt
import torch

import kpflow as kp

# %%
# A rate network with a read-out, on a short MemoryPro
# ----------------------------------------------------


class Network(torch.nn.Module):
    """A leaky rate network and a linear read-out of its rates."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.rnn = kp.states.cells.RateRNN(3, 32, alpha=0.5, generator=generator, dtype=torch.float64)
        self.readout = torch.nn.utils.skip_init(torch.nn.Linear, 32, 3, dtype=torch.float64)
        with torch.no_grad():
            self.readout.weight.copy_(torch.randn(3, 32, generator=generator, dtype=torch.float64) / 32**0.5)
            self.readout.bias.zero_()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs of every step, `[trial, time, output]`."""
        return self.readout(torch.tanh(self.rnn(inputs)))


task = kp.tasks.MemoryPro(stimulus=8, memory=8, response=8)
model = Network(torch.Generator().manual_seed(0))
trials = task.sample(8, mode="grid", noise=False, dtype=torch.float64)  # to analyse on


# %%
# Activity and kernel
# -------------------
# ``cores`` gives M for each weight site, here one, since recurrent and input weights act through the same slope. The
# left singular vectors of M are patterns over trials and times. The kernel of time and trial is the NTK summed over
# units, a partial trace, here exact.


def time_trial(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """The modes of the joint activity, as columns, and the NTK summed over units."""
    lin = kp.linearise(model, trials.inputs, core="rnn")
    (core,) = kp.flow.cores(lin).values()
    modes = torch.linalg.svd(core.factor, full_matrices=False).U
    ntk = kp.Ntk(lin, params=["rnn.weight_hh", "rnn.weight_ih"])
    return modes, kp.operators.to_dense(kp.operators.PartialTrace(ntk, ("unit",)))


def inside(modes: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """The part of the kernel's trace that lies within the first k modes, for every k."""
    return ((modes.T @ kernel) * modes.T).sum(1).cumsum(0) / kernel.trace()


# %%
# For K itself the claim is an identity: its eigenvectors over time and trial *are* the modes of the activity, and
# its eigenvalues are their squared singular values, times α², times the number of units summed over.

lin = kp.linearise(model, trials.inputs, core="rnn")
(core,) = kp.flow.cores(lin).values()
kernel = kp.ParameterKernel(lin, params=list(core.parameters))
K = kp.operators.to_dense(kp.operators.PartialTrace(kernel, ("unit",)))
modes = torch.linalg.svd(core.factor, full_matrices=False).U[:, :3]
values = torch.diagonal(modes.T @ K @ modes)
expected = 32 * 0.5**2 * core.spectrum[:3]
print("eigenvalues of K over time and trial:", *(f"{value:.6f}" for value in values.tolist()))
print("from the activity alone:             ", *(f"{value:.6f}" for value in expected.tolist()))
residual = ((K @ modes - modes * values).norm(dim=0) / values).max()
print(f"largest residual |K v − λ v|/λ: {float(residual):.1e}")

# %%
# Training
# --------

before = time_trial(model)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
generator = torch.Generator().manual_seed(1)
for _ in range(300):
    batch = task.sample(16, generator=generator, dtype=torch.float64)
    optimizer.zero_grad()
    task.loss(model(batch.inputs), batch).backward()
    optimizer.step()
after = time_trial(model)
with torch.no_grad():
    outputs = model(trials.inputs)
loss, score = task.loss(outputs, trials), task.score(outputs, trials)
print(f"loss {float(loss):.4f}, accuracy {score['accuracy']:.2f}")

# %%
# The NTK follows the activity
# ----------------------------
# P mixes times, so for the NTK the claim is no identity, but a preference. It is compared with chance, k of the 192
# time-trials, and, after training, with the modes that the activity had before it: the first few modes are still much
# the same, beyond them the kernel has moved with the activity.

chance = torch.arange(1, len(before[0].T) + 1) / len(before[0])
curves = {
    "before training": inside(*before),
    "after training": inside(*after),
    "after training, modes of before": inside(before[0], after[1]),
    "chance": chance,
}
for name, curve in curves.items():
    shown = "   ".join(f"first {k}: {float(curve[k - 1]):6.1%}" for k in (1, 4, 8))
    print(f"{name:32} {shown}")

fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
for (name, curve), line in zip(curves.items(), ("-", "-", "--", ":"), strict=True):
    ax.plot(range(1, 13), curve[:12], line, marker="o", markersize=3, label=name)
ax.set_xlabel("leading modes of the joint activity")
ax.set_ylabel("part of the NTK within")
ax.set_ylim(0, 1.02)
ax.legend(loc="center right", bbox_to_anchor=(1, 0.3))

# %%
# What the task asks for
# ----------------------
# The targets, as patterns over trials and times, lie in other modes than those that the untrained network prefers:
# the NTK's Rayleigh quotient of the targets, against its largest eigenvalue, says how slowly they are learned at first.

targets = trials.targets.flatten(0, 1)
for name, (_, kernel) in {"before": before, "after": after}.items():
    top = torch.linalg.eigvalsh(kernel)[-1]
    quotients = (targets * (kernel @ targets)).sum(0) / targets.square().sum(0) / top
    shown = "   ".join(f"{label} {float(q):.3f}" for label, q in zip(trials.output_labels, quotients, strict=True))
    print(f"{name:7} {shown}")
