"""Two losses that share an embedding: added, apart, or the one on top of the other."""

import functools
from typing import NamedTuple, final

import torch
from torch import Tensor

from kpflow._checks import check_range

from .entry import Check, Entry, Panel, curve, formula, identity, pair, points
from .flows import rk4
from .students import map_jacobian

__all__ = ["Gdes"]

SIZE, STEP, COUNT = 3, 0.01, 800
TIMES = 20 * STEP * torch.arange(COUNT // 20 + 1, dtype=torch.float64)  # of what is kept
WAYS = ("shared", "apart", "disentangled")


@final
class System(NamedTuple):
    """Wishes p and q of a generator and a discriminator, how strong they are; `leak` of the second into the first."""

    wishes: Tensor  # [2, 3]
    pull: float  # a
    push: float  # b
    leak: float
    place: Tensor  # [2, 3], some parameters e and Δ


@final
class Observed(NamedTuple):
    """Embeddings that the generator and the discriminator see."""

    paths: dict[str, Tensor]  # each [t, 2, 3]
    alone: Tensor  # [t, 3], of the generator without a discriminator
    kernels: dict[str, Tensor]  # each [2, 2]
    moves: dict[str, Tensor]  # velocities of what is seen at some parameters, each [2, 3]
    slopes: dict[str, Tensor]  # of the two losses there, by what is seen


@final
class Predicted(NamedTuple):
    """Closed forms at the same times."""

    paths: dict[str, Tensor]
    late: Tensor  # what the discriminator misses late
    rates: dict[str, Tensor]  # each [2]


@final
class Gdes(Entry[System, Observed, Predicted]):
    """A generator wants its embedding at p (½a‖e − p‖²), a discriminator at q (½b‖e − q‖²): ways to share one.

    Shared, both end at (ap + bq)/(a + b). Disentangled, the discriminator has e + Δ and its gradient stops at e: the
    generator is as if alone, and what the discriminator misses, e_D − q, ends as a/(b − a) p e^{−at}.
    """

    name = "gdes"
    title = "Gradient-disentangled embedding sharing"
    paper = "He, Gao, Chen 2021, DeBERTaV3, arXiv 2111.09543"
    kernels = (
        "A stopped gradient makes the kernel J Bᵀ a product of two different Jacobians: shared it is [1 1; 1 1] with "
        "one rate a + b and a direction that never learns, disentangled [1 0; 1 1], triangular, with the rates a and b."
    )
    omits = "Replaced-token detection itself, and pre-training at scale."

    def make(
        self, seed: int = 0, *, short: bool = False, broken: bool = False, pull: float = 0.7, push: float = 2.0
    ) -> System:
        del short
        check_range("pull", pull, 0.1, 1)
        least = max(pull + 1, 2 - pull)
        if not least <= push <= 3:
            raise ValueError(
                f"`push` must be between {least:g}, the larger of 1 + `pull` and 2 − `pull`, and 3; got {push!r}: with "
                f"less what the discriminator misses late is not yet a/(b − a) p e^(−at) in the time that is run, with "
                f"more its steps are too long."
            )
        generator = torch.Generator().manual_seed(seed)
        wishes = 1 + torch.rand(2, SIZE, generator=generator, dtype=torch.float64)
        place = torch.rand(2, SIZE, generator=generator, dtype=torch.float64)
        return System(wishes * torch.tensor([[1.0], [-1.0]]), pull, push, 0.1 if broken else 0.0, place)

    def run(self, system: System) -> Observed:
        strengths = torch.tensor([[system.pull], [system.push]], dtype=torch.float64)

        def slopes(way: str, parameters: Tensor) -> Tensor:
            return strengths * (_seen(way, *parameters) - system.wishes)

        def velocity(way: str, parameters: Tensor) -> Tensor:
            first, second = -slopes(way, parameters)
            if way == "shared":
                return torch.stack([first + second, torch.zeros_like(second)])
            return torch.stack([first + system.leak * second if way == "disentangled" else first, second])

        def path(way: str) -> Tensor:
            start = torch.zeros(2, SIZE, dtype=torch.float64)
            return _seen(way, *rk4(functools.partial(velocity, way), start, STEP, COUNT, every=20).unbind(dim=1))

        nothing = torch.zeros(SIZE, dtype=torch.float64)
        alone = rk4(lambda e: -system.pull * (e - system.wishes[0]), nothing, STEP, COUNT, every=20)
        return Observed(
            {way: path(way) for way in WAYS},
            alone,
            {way: _kernel(way) for way in WAYS},
            {way: _seen(way, *velocity(way, system.place)) for way in WAYS},
            {way: slopes(way, system.place) for way in WAYS},
        )

    def predict(self, system: System) -> Predicted:
        (p, q), a, b = system.wishes, system.pull, system.push
        times = TIMES[:, None]
        both = (a * p + b * q) / (a + b) * (1 - torch.exp(-(a + b) * times))
        first, second = p * (1 - torch.exp(-a * times)), q * (1 - torch.exp(-b * times))
        late = a / (b - a) * p * torch.exp(-a * times)
        paths = {
            "shared": torch.stack([both, both], dim=1),
            "apart": torch.stack([first, second], dim=1),
            "disentangled": torch.stack([first, q + late - (q + a / (b - a) * p) * torch.exp(-b * times)], dim=1),
        }
        rates = {"shared": [0.0, a + b], "apart": [a, b], "disentangled": [a, b]}
        return Predicted(paths, late, {way: torch.tensor(rate, dtype=torch.float64) for way, rate in rates.items()})

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        (p, q), a, b = system.wishes, system.pull, system.push
        mixed, ends = observed.paths["disentangled"], observed.paths["shared"][-1]
        share = (mixed[30:, 1] - q) / predicted.late[30:] * a / (b - a)
        pushed, moves = ([part[way] for way in WAYS] for part in (observed.slopes, observed.moves))
        by_kernel = [-observed.kernels[way] @ slope for way, slope in zip(WAYS, pushed, strict=True)]
        rates = torch.stack([_rates(observed.kernels[way], a, b) for way in WAYS])
        return [
            formula.close("shared: both end at (ap + bq)/(a + b)", (a * p + b * q) / (a + b), ends, 1e-6),
            *(
                formula.close(f"{way}: embeddings at all times", predicted.paths[way], observed.paths[way], 1e-8)
                for way in WAYS
            ),
            identity.close("disentangled: the generator is as if alone", observed.alone, mixed[:, 0], 1e-12),
            formula.close("disentangled: late, (e_D − q) / p e^{−at} is a/(b − a)", a / (b - a), share, 5e-3),
            identity.close("embeddings move by −J Bᵀ slopes", torch.stack(by_kernel), torch.stack(moves), 1e-12),
            identity.close("rates by the kernels", torch.stack([predicted.rates[way] for way in WAYS]), rates, 1e-12),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        lines, rates = [], []
        for group, way in enumerate(WAYS):
            lines += pair(way, TIMES, predicted.paths[way][:, 1, 0], observed.paths[way][:, 1, 0], group, every=2)
            found = _rates(observed.kernels[way], system.pull, system.push)
            rates.append(points(way, [group - 0.2, group + 0.2], found, group=group))
            rates += [
                curve("", [group - 0.4, group + 0.4], [rate] * 2, group) for rate in predicted.rates[way].tolist()
            ]
        return (
            Panel.of(f"Discriminator's embedding, wished at {float(system.wishes[1, 0]):.2f}", "time", "e", *lines),
            Panel.of("Rates by the kernel: a and b, or 0 and a + b", "way of sharing", "rate", *rates),
        )


def _seen(way: str, embedding: Tensor, change: Tensor, *, stopped: bool = False) -> Tensor:
    """What the generator and the discriminator see, side by side along the last axis but one, from e and Δ."""
    below = embedding.detach() if stopped else embedding
    second = {"shared": embedding, "apart": change, "disentangled": below + change}[way]
    return torch.stack([embedding, second], dim=-2)


def _kernel(way: str) -> Tensor:
    """J Bᵀ of one coordinate: what moves, by what back-propagation sees."""
    one = torch.ones(1, 1, dtype=torch.float64)

    def jacobian(stopped: bool) -> Tensor:
        return map_jacobian(lambda _, p: _seen(way, p["e"], p["Δ"], stopped=stopped)[..., 0], one, {"e": one, "Δ": one})

    moved, taught = jacobian(stopped=False), jacobian(stopped=True)
    return moved @ taught.mT


def _rates(kernel: Tensor, pull: float, push: float) -> Tensor:
    return torch.linalg.eigvals(kernel * torch.tensor([pull, push], dtype=torch.float64)).real.sort().values
