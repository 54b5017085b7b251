"""
One gradient step, predicted and taken
======================================

**The claim** (arXiv 2507.06381, Proposition 1): one step of gradient descent with learning rate η changes the states by
dS = −η P K Pᵀ ∂L/∂S, and the loss by dL = −η ‖∂L/∂θ‖², to first order in η.

**The numbers** below: the ratio of actual to predicted change goes to 1 as η goes to 0, and the relative error falls in
proportion to η.
"""

import copy

import matplotlib.pyplot as plt
import torch

import kpflow as kp

# %%
# A GRU with a read-out. The read-out learns as well, but it does not move the states; the loss it does move.


class Network(torch.nn.Module):
    """A GRU and a linear read-out."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.GRU(3, 32, batch_first=True)
        self.readout = torch.nn.Linear(32, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs of every step, `[trial, time, output]`."""
        return self.readout(self.rnn(inputs)[0])


with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    model = Network().double()
task = kp.tasks.MemoryPro(stimulus=15, memory=15, response=15)
trials = task.sample(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

# %%
# The prediction
# --------------
# ``response`` follows the error signal through the chain: ∂L/∂S, Pᵀ ∂L/∂S (the adjoint state), Jᵀ Pᵀ ∂L/∂S (the
# gradient), K Pᵀ ∂L/∂S (what the step changes at once), P K Pᵀ ∂L/∂S (what it changes in the end).

lin = kp.linearise(model, trials.inputs, core="rnn")
step = kp.flow.response(lin, lambda outputs: task.loss(outputs, trials), learning_rate=1.0)

model.zero_grad()
task.loss(model(trials.inputs), trials).backward()
gradient = lin.parameters.split(step.gradient)
differences = [(gradient[name] - p.grad).abs().max() for name, p in model.named_parameters()]
print(f"largest difference from what backward() leaves: {float(max(differences)):.1e}")

# %%
# The step
# --------


def take_step(rate: float) -> tuple[torch.Tensor, float]:
    """States and loss after one step of gradient descent, on a copy of the model."""
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter -= rate * gradient[name]
        loss = float(task.loss(moved(trials.inputs), trials))
    return kp.linearise(moved, trials.inputs, core="rnn").states, loss


rates = [10.0**-k for k in range(-1, 6)]
state_errors, loss_ratios = [], []
print("     η   actual/predicted: states   loss    relative error of the states")
for rate in rates:
    states, loss = take_step(rate)
    actual, predicted = states - lin.states, -rate * step.change
    along = float((actual * predicted).sum() / predicted.square().sum())
    state_errors.append(float((actual - predicted).norm() / predicted.norm()))
    loss_ratios.append((loss - step.loss) / (rate * step.predicted_loss_change))
    print(f"{rate:7.0e} {along:25.6f} {loss_ratios[-1]:8.6f} {state_errors[-1]:15.2e}")

# %%
# The relative error falls with slope 1, as the next term of the expansion, proportional to η², asks for.

slope = torch.log10(torch.tensor(state_errors[-4]) / state_errors[-1]) / 3
print(f"slope of the error over the last three decades: {float(slope):.3f}")

fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
ax.loglog(rates, state_errors, "o-", label="states")
ax.loglog(rates, [abs(ratio - 1) for ratio in loss_ratios], "s-", label="loss")
line = [state_errors[-1] * rate / rates[-1] for rate in rates]
ax.loglog(rates, line, ":", color="gray", label="slope 1")
ax.set_xlabel("learning rate η")
ax.set_ylabel("relative error of the prediction")
ax.legend()
