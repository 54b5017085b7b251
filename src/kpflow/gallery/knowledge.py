"""Facts stored in one way of saying them, or in many, and what is there to be extracted later."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from .entry import Check, Entry, Panel, curve, formula, identity, monte_carlo, points
from .students import kinship

__all__ = ["Knowledge"]

SUBJECTS, ANSWERS, WIDTH, HIDDEN = 40, 8, 24, 64
TEMPLATES = (1, 8)
TUNING, RATE, EVERY = 60, 1e-2, 10


@final
class System(NamedTuple):
    """What the networks come from; `told` is the share of wrong answers among the data."""

    seeds: range
    noise: float
    told: float
    steps: int  # of pre-training


@final
class Observed(NamedTuple):
    """Of networks told in one way, and of networks told in eight."""

    losses: list[Tensor]  # each [net, step]
    divergences: list[Tensor]  # each [net], from the labels, in the end
    unseen: list[Tensor]  # each [net], accuracy with a template that was never seen
    errors: list[Tensor]  # each [net], of held-out subjects when other subjects were asked with it
    kinships: list[Tensor]  # each [net], of the NTK of the new question and the told ones, in the end
    courses: list[Tensor]  # each [4], of the first network along pre-training


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
    paper = "Xu, Chen 2025, Filtering with Self-Attention and Storing with MLP, arXiv 2508.00901"
    kernels = (
        "Where facts were told in many ways, the NTK between the new question and the told sentences is larger for the "
        "same subject: what is learned about one transfers to the other by that block of K."
    )
    omits = "Any closed form: this is a trend; and which layer stores, longer texts, several facts for a subject."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, noise: float = 0.1) -> System:
        if not 0 < noise <= 0.3:
            raise ValueError(
                f"`noise` must be above 0 and at most 0.3; got {noise!r}: with none there is no entropy to come "
                "down to, and with more a subject told once is told too little."
            )
        seeds = range(100 * seed, 100 * seed + (4 if short else 8))
        return System(seeds, noise, 2 * noise if broken else noise, 200 if short else 400)

    def run(self, system: System) -> Observed:
        return Observed(*(list(part) for part in zip(*(_run(system, count) for count in TEMPLATES), strict=True)))

    def predict(self, system: System) -> Predicted:
        wrong = system.noise / (ANSWERS - 1)
        return Predicted(-(1 - system.noise) * math.log(1 - system.noise) - system.noise * math.log(wrong))

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        excess = torch.stack(observed.losses)[:, :, -1] - predicted.floor
        unseen, errors, kinships = (
            [part.mean() for part in parts] for parts in (observed.unseen, observed.errors, observed.kinships)
        )
        return [
            formula.close(
                "loss of the median network is the conditional entropy", 0.0, excess.median(dim=1).values, 2e-2
            ),
            identity.close("what it is more is the divergence", torch.stack(observed.divergences), excess, 1e-5),
            monte_carlo.at_most("never seen template, told in 1: accuracy", 0.9, unseen[0]),
            monte_carlo.at_least("never seen template, told in 8: accuracy", 0.7, unseen[1]),
            monte_carlo.close("held-out subjects, told in 1: error, as in a reference run", 0.033, errors[0], 0.035),
            monte_carlo.at_most("held-out subjects, told in 8: error", 0.01, errors[1]),
            monte_carlo.at_least("NTK and same subject, told in 8 more than in 1 by", 0.02, kinships[1] - kinships[0]),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        steps = range(0, system.steps + 1, EVERY)
        told = [(group, f"told in {count}") for group, count in enumerate(TEMPLATES)]
        thirds = [step for step in range(system.steps + 1) if _is_third(step, system.steps)]
        return (
            Panel.of(
                "Loss in pre-training",
                "step",
                "nats",
                curve("conditional entropy", [0, system.steps], [predicted.floor] * 2, group=2),
                *(points(name, steps, observed.losses[k].mean(dim=0), group=k) for k, name in told),
            ),
            Panel.of(
                "NTK of the new question and the told sentences",
                "step",
                "correlation with the same subject",
                *(points(name, thirds, observed.courses[k], group=k) for k, name in told),
                *(points("", [system.steps] * len(system.seeds), observed.kinships[k], group=k) for k, _ in told),
            ),
        )


def _start(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """One network's parameters."""

    def draw(*shape: int, size: float = WIDTH**-0.5) -> Tensor:
        return size * torch.randn(*shape, generator=generator)

    return {
        "subject": draw(SUBJECTS, WIDTH, size=1.0),
        "template": draw(count + 1, WIDTH, size=1.0),
        "query": draw(WIDTH, WIDTH),
        "key": draw(WIDTH, WIDTH),
        "first": draw(WIDTH, HIDDEN, size=(2 / WIDTH) ** 0.5),
        "second": draw(HIDDEN, ANSWERS, size=HIDDEN**-0.5),
        "bias": torch.zeros(1, HIDDEN),
    }


def _logits(asked: Tensor, model: Mapping[str, Tensor]) -> Tensor:
    """Of rows of one-hot (subject, template): attention from the second token to both, then an MLP."""
    subject, template = asked[:, :SUBJECTS] @ model["subject"], asked[:, SUBJECTS:] @ model["template"]
    query = template @ model["query"] / WIDTH**0.5
    own, other = ((query * (token @ model["key"])).sum(dim=-1, keepdim=True) for token in (template, subject))
    share = (other - own).sigmoid()
    seen = share * subject + (1 - share) * template
    return (seen @ model["first"] + model["bias"]).relu() @ model["second"]


def _run(system: System, count: int) -> tuple[Tensor, ...]:
    """Losses, divergence, accuracy, error and kinship of networks told in so many ways, all trained at once."""
    generators = [torch.Generator().manual_seed(seed) for seed in system.seeds]
    answers = torch.stack([torch.randint(ANSWERS, (SUBJECTS,), generator=generator) for generator in generators])
    wishes = torch.full((*answers.shape, ANSWERS), system.told / (ANSWERS - 1))
    wishes.scatter_(2, answers[..., None], 1 - system.told)
    labels = wishes.repeat_interleave(count, dim=1)
    nets = [_start(count, generator) for generator in generators]
    model = {name: torch.stack([net[name] for net in nets]).requires_grad_() for name in nets[0]}
    one, ways = torch.eye(SUBJECTS), torch.eye(count + 1)
    told = torch.cat([one.repeat_interleave(count, dim=0), ways[:count].repeat(SUBJECTS, 1)], dim=1)
    asked = torch.cat([one, ways[count:].expand(SUBJECTS, -1)], dim=1)

    losses, course = _train(model, list(model), told, labels, system.steps)
    divergence = (labels * (labels.log() - _logits(told, model).detach().log_softmax(dim=-1))).sum(dim=-1).mean(dim=-1)
    unseen = (_logits(asked, model).argmax(dim=-1) == answers).float().mean(dim=1)
    nets = [{name: value[k] for name, value in model.items()} for k in range(len(nets))]
    shared, grown = (
        torch.tensor([kinship(_logits, asked[:12], told[: 12 * count : count], net) for net in some])
        for some in (nets, course)
    )
    half = SUBJECTS // 2
    _train(model, ["template", "query", "key"], asked[:half], wishes[:, :half], TUNING)
    wrong = (_logits(asked[half:], model).argmax(dim=-1) != answers[:, half:]).float().mean(dim=1)
    return losses, divergence, unseen, wrong, shared, grown


def _is_third(step: int, steps: int) -> bool:
    return 3 * step // steps > 3 * (step - 1) // steps


def _train(
    model: dict[str, Tensor], learned: Sequence[str], asked: Tensor, wishes: Tensor, steps: int
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Cross entropies of every network every ten steps of Adam, whose rate falls to 0, and the first at each third."""
    weights = [model[name] for name in learned]
    optimiser = torch.optim.Adam(weights, lr=RATE)
    kept, course = [], []
    for step in range(steps + 1):
        loss = -(wishes * _logits(asked, model).log_softmax(dim=-1)).sum(dim=-1).mean(dim=-1)
        if step % EVERY == 0:
            kept.append(loss.detach())
        if _is_third(step, steps):
            course.append({name: value[0].detach().clone() for name, value in model.items()})
        if step < steps:
            optimiser.param_groups[0]["lr"] = RATE * (1 - step / steps)
            for weight, slope in zip(weights, torch.autograd.grad(loss.sum(), weights), strict=True):
                weight.grad = slope
            optimiser.step()
    return torch.stack(kept, dim=1), course
