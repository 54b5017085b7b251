"""Modular addition: training data are known at once, the rule long after, and only under weight decay."""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from .entry import Check, Entry, Panel, curve, monte_carlo, points
from .students import kinship
from .sums import pairs, square, sums

__all__ = ["Grokking"]

PRIME, WIDTH, INIT, RATE = 23, 256, 0.3, 1e-2
EVERY = 20


@final
class System(NamedTuple):
    """Pairs (a, b) as one-hot inputs, in a random order of which the first share trains; `decay` is λ of AdamW."""

    inputs: Tensor  # [529, 46]
    sums: Tensor  # [529]
    weights: tuple[Tensor, Tensor]  # U [46, 256], V [256, 23]
    decay: float
    steps: dict[float, int]  # for each share


@final
class Course(NamedTuple):
    """One training."""

    train: Tensor  # accuracy after every 20 steps
    test: Tensor
    power: float  # share of the dominant frequencies in the power of the first layer, in the end
    kinships: Tensor  # correlation of the NTK of pairs with having the same sum: at the start, half-way, in the end


@final
class Observed(NamedTuple):
    """With weight decay, and without."""

    decayed: dict[float, Course]
    plain: Course


@final
class Predicted(NamedTuple):
    """Seen in reference runs of the same system, by other code: there is no closed form."""

    learned: float  # step by which training accuracy is 99 %
    grokked: dict[float, float]  # step by which test accuracy is 95 %, for each share


@final
class Grokking(Entry[System, Observed, Predicted]):
    """Σ ξ[j](u[a] + v[b])², trained on 60 or 70 % of all sums modulo 23 by AdamW with the squared error.

    Training accuracy is 1 after 40 steps. With weight decay 0.1 test accuracy follows hundreds of steps later, the
    sooner the more data, while each unit takes up a single frequency; without decay it does not in as many.
    """

    name = "grokking"
    title = "Grokking modular addition"
    paper = "Tian 2025, arXiv 2509.21519; He, Wang, Chen, Yang 2026, Modular Addition, arXiv 2602.16849"
    kernels = (
        "While the rule is found the NTK between pairs comes to be large where they have the same sum, which no single "
        "feature of theirs shows, and learning of one answer then helps the other; without decay it does so less."
    )
    omits = "When the rule is found, as a formula; Muon, deep networks, other groups."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(PRIME**2, generator=generator)
        weights = (
            INIT * torch.randn(2 * PRIME, WIDTH, generator=generator),
            INIT / WIDTH**0.5 * torch.randn(WIDTH, PRIME, generator=generator),
        )
        steps = {0.7: 900} if short else {0.6: 4000, 0.7: 1200}
        return System(pairs(PRIME).float()[order], sums(PRIME)[order], weights, 0.0 if broken else 0.1, steps)

    def run(self, system: System) -> Observed:
        decayed = {share: _train(system, share, system.decay, count) for share, count in system.steps.items()}
        plain = _train(system, 0.7, 0.0, system.steps[0.7])
        return Observed(decayed, plain)

    def predict(self, system: System) -> Predicted:
        return Predicted(40.0, {0.6: 1490.0, 0.7: 770.0})

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        rows = []
        for share, course in observed.decayed.items():
            some, when = f"{share:.0%} of the data", predicted.grokked[share]
            learned, found = _reached(course.train, 0.99), _reached(course.test, 0.95)
            pure = 0.85 if system.steps[share] >= 4000 else 0.55
            rows += [
                monte_carlo.at_most(f"{some}: training accuracy is 99 % by step, 40 in a reference run", 60.0, learned),
                monte_carlo.close(f"{some}: test accuracy is 95 % by step of it", when, found, 0.25, relative=True),
                monte_carlo.at_least(f"{some}: power in dominant frequencies", pure, course.power),
            ]
        kinships, plain = observed.decayed[0.7].kinships, observed.plain
        return [
            *rows,
            monte_carlo.at_most("without decay, after as many steps: test accuracy", 0.45, plain.test[-1]),
            monte_carlo.at_most("without decay: power in dominant frequencies", 0.5, plain.power),
            monte_carlo.at_least("NTK and equal sums, with decay: correlation", 0.4, kinships[-1]),
            monte_carlo.at_least("the same, more than without decay by", 0.05, kinships[-1] - plain.kinships[-1]),
            monte_carlo.at_most("the same before training", 0.2, kinships[0].abs()),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        course, plain, count = observed.decayed[0.7], observed.plain, system.steps[0.7]
        steps = range(EVERY, count + 1, EVERY)
        return (
            Panel.of(
                "Accuracy, 70 % of the data",
                "step",
                "accuracy",
                curve("known, reference run", [predicted.learned] * 2, [0.0, 1.0]),
                points("training", steps, course.train),
                curve("found, reference run", [predicted.grokked[0.7]] * 2, [0.0, 1.0], group=1),
                points("test", steps, course.test, group=1),
                points("test, without decay", steps, plain.test, group=2),
            ),
            Panel.of(
                "The NTK sees which pairs have the same sum",
                "step",
                "correlation",
                points("with decay", [0, count // 2, count], course.kinships, group=1),
                points("without", [0, count // 2, count], plain.kinships, group=2),
            ),
        )


def _train(system: System, share: float, decay: float, count: int) -> Course:
    """AdamW by hand, all data at once: ½ of the squared error, summed over outputs, averaged over pairs."""
    cut = round(share * len(system.sums))
    inputs, wishes = system.inputs[:cut], torch.eye(PRIME)[system.sums[:cut]]
    weights = [part.clone() for part in system.weights]
    means, squares = ([torch.zeros_like(part) for part in weights] for _ in range(2))
    accuracy, kinships = [], [_kinship(*weights)]
    for step in range(1, count + 1):
        seen = inputs @ weights[0]
        hidden = seen.square()
        miss = (hidden @ weights[1] - wishes) / cut
        slopes = [inputs.mT @ (2 * seen * (miss @ weights[1].mT)), hidden.mT @ miss]
        for weight, slope, mean, second in zip(weights, slopes, means, squares, strict=True):
            mean.lerp_(slope, 0.1)
            second.mul_(0.999).addcmul_(slope, slope, value=0.001)
            size = (second / (1 - 0.999**step)).sqrt().add_(1e-8)
            weight.mul_(1 - RATE * decay).addcdiv_(mean, size, value=-RATE / (1 - 0.9**step))
        if step % EVERY == 0:
            right = ((system.inputs @ weights[0]).square() @ weights[1]).argmax(dim=1) == system.sums
            accuracy.append([float(part.float().mean()) for part in (right[:cut], right[cut:])])
        if step in (count // 2, count):
            kinships.append(_kinship(*weights))
    train, test = torch.tensor(accuracy).unbind(dim=1)
    power = torch.fft.rfft(weights[0][:PRIME], dim=0).abs().square()[1:]
    return Course(train, test, float(power.amax(dim=0).sum() / power.sum()), torch.tensor(kinships))


def _reached(accuracy: Tensor, level: float) -> float:
    """The first step with this accuracy; inf if there is none."""
    return next((EVERY * float(k) for k, value in enumerate(accuracy, 1) if value >= level), math.inf)


def _kinship(U: Tensor, V: Tensor) -> float:
    """Correlation of the NTK, traced over six outputs, of pairs (a, 0) and (a − 5, 5) with equality of sums."""
    table = pairs(PRIME).view(PRIME, PRIME, -1)
    places = torch.arange(12)
    parameters = {"U": U.double(), "V": V[:, :6].double()}
    return kinship(square, table[places, 0], table[places - 5, 5], parameters)
