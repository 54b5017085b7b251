"""Facts stored in one way of saying them, or in many, and what is there to be extracted later."""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from .entry import Check, Entry, Panel, curve, formula, identity, monte_carlo, points
from .students import kinship

__all__ = ["Knowledge"]

SUBJECTS, ANSWERS, WIDTH, HIDDEN = 40, 8, 24, 64
TEMPLATES = (1, 8)
TUNING, RATE, EVERY = 60, 1e-2, 10


@final
class System(NamedTuple):
    """What the networks come from; `told` is the share of wrong answers among the data."""

    seeds: tuple[int, ...]
    noise: float
    told: float
    steps: int  # of pre-training


@final
class Observed(NamedTuple):
    """For each number of templates; of all networks where there is an axis for them."""

    losses: dict[int, Tensor]  # [net, step]
    divergence: dict[int, Tensor]  # [net], from the labels, in the end
    unseen: dict[int, Tensor]  # [net], accuracy with a template that was never seen
    errors: dict[int, Tensor]  # [net], of held-out subjects when other subjects were asked with it
    kinships: dict[int, Tensor]  # [net]


@final
class Predicted(NamedTuple):
    """The conditional entropy of answers, in nats."""

    floor: float


@final
class Knowledge(Entry[System, Observed, Predicted]):
    """Forty facts (subject, template) → answer, a tenth of them told wrongly, in one attention layer and an MLP.

    Pre-training comes down to the conditional entropy of the answers, no lower. Facts told in eight templates are
    given with a ninth, never seen, at once; those told in one template only in part, before some are asked for with it.
    """

    name = "knowledge"
    title = "Storing facts, and asking for them"
    paper = "Filtering with Self-Attention and Storing with MLP, 2025, arXiv 2508.00901"
    kernels = (
        "Where facts were told in many ways, the NTK between the new question and the told sentences is larger for the "
        "same subject: what is learned about one transfers to the other by that block of K."
    )
    omits = "Any closed form: this is a trend; and which layer stores, longer texts, several facts for a subject."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, noise: float = 0.1) -> System:
        if not 0 < noise < 1 - 1 / ANSWERS:
            raise ValueError(
                f"`noise` must be between 0 and {1 - 1 / ANSWERS:g}, exclusive; got {noise!r}: beyond it a wrong "
                f"answer is as likely as the right one, and with none there is no entropy to come down to."
            )
        return System(
            tuple(100 * seed + k for k in range(2 if short else 6)),
            noise,
            2 * noise if broken else noise,
            200 if short else 400,
        )

    def run(self, system: System) -> Observed:
        runs = {count: [_run(system, seed, count) for seed in system.seeds] for count in TEMPLATES}
        parts = {count: [torch.stack(part) for part in zip(*some, strict=True)] for count, some in runs.items()}
        return Observed(*({count: part[k] for count, part in parts.items()} for k in range(5)))

    def predict(self, system: System) -> Predicted:
        wrong = system.noise / (ANSWERS - 1)
        return Predicted(-(1 - system.noise) * math.log(1 - system.noise) - system.noise * math.log(wrong))

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        one, many = TEMPLATES
        excess = torch.stack([observed.losses[count][:, -1] - predicted.floor for count in TEMPLATES])
        divergence = torch.stack([observed.divergence[count] for count in TEMPLATES])
        # seven seeds, two nets each: accuracy ≥ .76 and ≤ .9, errors 0 and ≤ .08, correlations ≥ .005 apart, most .12
        return [
            formula.close("loss is the conditional entropy in the end", 0.0, excess, 2e-2),
            identity.close("what it is more is the divergence from the labels", divergence, excess, 1e-5),
            monte_carlo.at_least("never seen template, told in 8: accuracy", 0.9, observed.unseen[many].mean()),
            monte_carlo.at_most("never seen template, told in 1: accuracy", 0.9, observed.unseen[one].mean()),
            monte_carlo.at_most("held-out subjects, told in 8: error", 0.01, observed.errors[many].mean()),
            monte_carlo.at_most("held-out subjects, told in 1: error", 0.1, observed.errors[one].mean()),
            monte_carlo.at_least(
                "NTK and same subject: correlation, told in 8 more than in 1 by",
                0.05,
                observed.kinships[many].mean() - observed.kinships[one].mean(),
            ),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        steps = EVERY * torch.arange(observed.losses[1].shape[1])
        lines = [curve("conditional entropy", [0, system.steps], [predicted.floor] * 2)]
        given = []
        for group, count in enumerate(TEMPLATES, start=1):
            name = f"told in {count}"
            lines.append(points(name, steps, observed.losses[count].mean(dim=0), group=group))
            given.append(points(name, observed.kinships[count], observed.unseen[count], group=group))
        return (
            Panel.of("Loss in pre-training", "step", "nats", *lines),
            Panel.of(
                "What the NTK shares, and what is given",
                "NTK and same subject: correlation",
                "accuracy, unseen template",
                *given,
            ),
        )


@final
class Store(nn.Module):
    """Tokens (subject, template), attention from the second to both, an MLP."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        nn.Module.__init__(self)

        def draw(*shape: int, size: float) -> nn.Parameter:
            return nn.Parameter(size * torch.randn(*shape, generator=generator))

        self.subject, self.template = draw(SUBJECTS, WIDTH, size=1.0), draw(count + 1, WIDTH, size=1.0)
        self.query, self.key = (draw(WIDTH, WIDTH, size=WIDTH**-0.5) for _ in range(2))
        self.first, self.second = draw(WIDTH, HIDDEN, size=(2 / WIDTH) ** 0.5), draw(HIDDEN, ANSWERS, size=HIDDEN**-0.5)
        self.bias = nn.Parameter(torch.zeros(HIDDEN))

    def forward(self, asked: Tensor) -> Tensor:
        """Logits for rows of one-hot (subject, template)."""
        subject, template = asked[:, :SUBJECTS] @ self.subject, asked[:, SUBJECTS:] @ self.template
        query = template @ self.query / WIDTH**0.5
        own, other = ((query * (token @ self.key)).sum(dim=1, keepdim=True) for token in (template, subject))
        share = (other - own).sigmoid()
        return ((share * subject + (1 - share) * template) @ self.first + self.bias).relu() @ self.second


def _run(system: System, seed: int, count: int) -> tuple[Tensor, ...]:
    """Losses, divergence, accuracy, error and kinship of one network."""
    generator = torch.Generator().manual_seed(seed)
    answers = torch.randint(ANSWERS, (SUBJECTS,), generator=generator)
    wishes = torch.full((SUBJECTS, ANSWERS), system.told / (ANSWERS - 1))
    wishes[torch.arange(SUBJECTS), answers] = 1 - system.told
    model = Store(count, generator)
    told = _ask(torch.arange(SUBJECTS).repeat_interleave(count), torch.arange(count).repeat(SUBJECTS), count)
    labels = wishes.repeat_interleave(count, dim=0)
    losses = _train(model, list(model.parameters()), told, labels, system.steps)
    divergence = (labels * (labels.log() - model(told).detach().log_softmax(dim=1))).sum(dim=1).mean()
    asked = _ask(torch.arange(SUBJECTS), torch.full((SUBJECTS,), count), count)
    unseen = (model(asked).argmax(dim=1) == answers).float().mean()
    shared = torch.tensor(kinship(model, asked[:12], told[: 12 * count : count]))
    half = SUBJECTS // 2
    _train(model, [model.template, model.query, model.key], asked[:half], wishes[:half], TUNING)
    error = (model(asked[half:]).argmax(dim=1) != answers[half:]).float().mean()
    return losses, divergence, unseen, error, shared


def _ask(subjects: Tensor, templates: Tensor, count: int) -> Tensor:
    return torch.cat([torch.eye(SUBJECTS)[subjects], torch.eye(count + 1)[templates]], dim=1)


def _train(model: Store, learned: list[nn.Parameter], asked: Tensor, wishes: Tensor, steps: int) -> Tensor:
    """Cross entropies every ten steps of Adam, whose rate falls to 0, and in the end."""
    optimiser = torch.optim.Adam(learned, lr=RATE)
    kept = []
    for step in range(steps + 1):
        loss = -(wishes * model(asked).log_softmax(dim=1)).sum(dim=1).mean()
        if step % EVERY == 0:
            kept.append(loss.detach())
        if step == steps:
            break
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / steps)
        for parameter, slope in zip(learned, torch.autograd.grad(loss, learned), strict=True):
            parameter.grad = slope
        optimiser.step()
    return torch.stack(kept)
