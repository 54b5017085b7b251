"""
What a network will learn, from its first kernel
================================================

**The claim** (arXiv 2605.08746): the modes of the NTK before training give each part of the error its rate. Target
components that lie where the kernel is nearly null are not learned from that initialisation. Fixed points that are
planted before training change the kernel: the paper says that they confine it to modes that are constant in time, so
that the third component of a memory task stays unlearned.

**The numbers** below, for MemoryPro with thirty steps of memory. What agrees: the forecast from the first kernel says
that a network without planted points learns the fixation but a few parts in a million of the remembered angle in 400
steps, and so it is; all of the loss that is left is out of the kernel's reach. What does not: with
five or thirty planted points the remembered components are within reach, and are learned: slow modes are what memory
needs. There the forecast is good for some tens of steps only, because the kernel moves.
"""

import matplotlib.pyplot as plt
import torch

import kpflow as kp
from kpflow.optim import forecast
from kpflow.plots import PALETTE
from kpflow.states.cells import RateRNN

torch.set_num_threads(1)  # the tensors are small

# %%
# Networks with planted fixed points
# ----------------------------------
# Rate networks z' = W φ(z) + U x of 128 units with gain 1, without bias. For chosen states d_k, the least change of W
# with W φ(d_k) = d_k makes all of them fixed points at once: W ← D Φ⁺ + W (I − Φ Φ⁺). The task is MemoryPro, thirty
# steps each of stimulus, memory and response.

UNITS = 128
task = kp.tasks.MemoryPro(grace=0.0)
trials = task.sample(16, mode="grid", noise=False)


class Network(torch.nn.Module):
    """A rate network and a linear read-out."""

    def __init__(self, planted: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            self.core = RateRNN(task.num_inputs, UNITS)
            self.read = torch.nn.Linear(UNITS, task.num_outputs, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)
            if planted:
                points = torch.randn(UNITS, planted, generator=generator)
                seen = torch.tanh(points)
                inverse = torch.linalg.pinv(seen)
                weight = self.core.weight_hh
                weight.copy_(points @ inverse + weight @ (torch.eye(UNITS) - seen @ inverse))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs `[trial, time, channel]`."""
        return self.read(self.core(inputs))


def loss(outputs: torch.Tensor) -> torch.Tensor:
    """The task's masked mean of squared errors."""
    return task.loss(outputs, trials)


# %%
# Forecast and training
# ---------------------
# The target components are the singular vectors of the targets, `[trial and time, channel]`: fixation, and the two
# directions of the angle. `forecast` predicts how much of each is learned after n steps of descent; then the network is
# trained, with half of the step size at which its first kernel would diverge.

STEPS = 400
flat = trials.targets.flatten(0, 1).double()
vectors, sizes, channels = torch.linalg.svd(flat, full_matrices=False)
components = torch.stack([torch.outer(vectors[:, k], channels[k]).reshape(trials.targets.shape) for k in range(3)])


def trained(model: torch.nn.Module, rate: float, steps: int) -> tuple[list[float], torch.Tensor]:
    """Losses, and the outputs' parts along the components, at every step."""
    optimizer, losses, parts = torch.optim.SGD(model.parameters(), lr=rate), [], []
    for _ in range(steps + 1):
        outputs = model(trials.inputs)
        value = loss(outputs)
        losses.append(float(value.detach()))
        parts.append((components * outputs.detach()).sum((1, 2, 3)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return losses, torch.stack(parts, dim=1)


figure, axes = plt.subplots(2, 3, figsize=(10, 5.6), sharex=True, layout="constrained")
for column, planted in enumerate((0, 5, 30)):
    model = Network(planted)
    lin = kp.linearise(model, trials.inputs, core="core")
    first = kp.Ntk(lin, readout="outputs")
    rate = 0.5 / float(forecast(lin, loss, learning_rate=1.0, steps=1).rates[0])
    ahead = forecast(lin, loss, learning_rate=rate, steps=STEPS, components=components)
    losses, parts = trained(model, rate, STEPS)
    last = kp.Ntk(kp.linearise(model, trials.inputs, core="core"), readout="outputs")
    learned = (parts - parts[:, :1]) / ahead.wanted[:, None]
    print(f"{planted} planted points, step size {rate:.2g}")
    print(f"  loss {losses[0]:.3f} → {losses[-1]:.3f}, forecast {float(ahead.losses[-1]):.3f} ± {ahead.error:.0e}")
    print(f"  out of the first kernel's reach: {ahead.out_of_reach:.3f}")
    for name, row in (("forecast", ahead.learned), ("observed", learned)):
        print(f"  learned of each component, {name}: " + ", ".join(f"{float(value):.2g}" for value in row[:, -1]))
    moved = kp.estimate.alignment(first, last, rtol=0.03)
    print(f"  within 10 % for {ahead.holds(losses) - 1} of {STEPS} steps; the kernels' alignment is {moved.value:.2f}")
    top, bottom = axes[:, column]
    top.semilogy(losses, color=PALETTE["error"], label="observed")
    top.semilogy(ahead.losses, "--", color=PALETTE["ink"], label="forecast")
    top.set_title(f"{planted} planted points")
    for k, colour in enumerate(("kernel", "ntk", "score")):
        bottom.plot(learned[k], color=PALETTE[colour], label=f"component {k + 1}")
        bottom.plot(ahead.learned[k], "--", color=PALETTE[colour])
    bottom.set(xlabel="training step", ylim=(-0.05, 1.05))
axes[0, 0].set_ylabel("loss")
axes[1, 0].set_ylabel("learned (dashed: forecast)")
axes[0, 0].legend(frameon=False)
axes[1, 0].legend(frameon=False)
plt.show()
