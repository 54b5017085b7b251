"""Two losses that share an embedding: added, apart, or the one on top of the other."""

from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from kpflow._checks import check_positive

from .entry import Check, Entry, Panel, curve, formula, identity, points
from .flows import rk4
from .students import output_jacobian

__all__ = ["Gdes"]

SIZE, STEP, COUNT = 3, 0.01, 800
WAYS = ("shared", "apart", "disentangled")


@final
class System(NamedTuple):
    """Wishes p and q of a generator and a discriminator, how strong they are; `leak` of the second into the first."""

    wishes: Tensor  # [2, 3]
    pull: float  # a
    push: float  # b
    leak: float


@final
class Observed(NamedTuple):
    """Embeddings that the generator and the discriminator see."""

    paths: dict[str, Tensor]  # each [t, 2, 3]
    alone: Tensor  # [t, 3], of the generator without a discriminator
    kernels: dict[str, Tensor]  # each [2, 2]


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
        check_positive("pull", pull)
        if not push > 1.5 * pull:
            raise ValueError(
                f"`push` must be above 1.5 · `pull` = {1.5 * pull:g}; got {push!r}: what the discriminator misses "
                f"late is a/(b − a) p e^(−at) only where its own rate b is the faster one."
            )
        generator = torch.Generator().manual_seed(seed)
        wishes = 1 + torch.rand(2, SIZE, generator=generator, dtype=torch.float64)
        return System(wishes * torch.tensor([[1.0], [-1.0]]), pull, push, 0.1 if broken else 0.0)

    def run(self, system: System) -> Observed:
        strengths = torch.tensor([[system.pull], [system.push]], dtype=torch.float64)

        def velocity(way: str, parameters: Tensor) -> Tensor:
            seen = _seen(way, parameters)
            first, second = -strengths * (seen - system.wishes)
            if way == "shared":
                return torch.stack([first + second, torch.zeros_like(second)])
            return torch.stack([first + (system.leak * second if way == "disentangled" else 0), second])

        start = torch.zeros(2, SIZE, dtype=torch.float64)
        paths = {
            way: _seen(way, rk4(lambda y, way=way: velocity(way, y), start, STEP, COUNT, every=20)) for way in WAYS
        }
        alone = rk4(lambda e: -system.pull * (e - system.wishes[0]), start[0], STEP, COUNT, every=20)
        return Observed(paths, alone, {way: _kernel(way) for way in WAYS})

    def predict(self, system: System) -> Predicted:
        (p, q), a, b = system.wishes, system.pull, system.push
        times = 20 * STEP * torch.arange(COUNT // 20 + 1, dtype=torch.float64)[:, None]
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
        mixed = observed.paths["disentangled"]
        late = slice(30, None)
        kernels = torch.stack([observed.kernels[way] for way in WAYS])
        forms = [[[1.0, 1.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 1.0]]]
        return [
            formula.close(
                "shared: both end at (ap + bq)/(a + b)", (a * p + b * q) / (a + b), observed.paths["shared"][-1], 1e-6
            ),
            *(
                formula.close(f"{way}: embeddings at all times", predicted.paths[way], observed.paths[way], 1e-8)
                for way in WAYS
            ),
            identity.close("disentangled: the generator is as if alone", observed.alone, mixed[:, 0], 1e-12),
            formula.close(
                "disentangled: late, e_D − q is a/(b − a) p e^{−at}, over p e^{−at}",
                a / (b - a),
                (mixed[late, 1] - q) / predicted.late[late] * a / (b - a),
                5e-3,
            ),
            identity.close("kernels J Bᵀ", torch.tensor(forms), kernels, 0.0),
            identity.close(
                "rates of learning by the kernels",
                torch.stack([predicted.rates[way] for way in WAYS]),
                torch.stack([_rates(observed.kernels[way], a, b) for way in WAYS]),
                1e-12,
            ),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        times = 20 * STEP * torch.arange(COUNT // 20 + 1)
        lines, rates = [], []
        for group, way in enumerate(WAYS):
            lines.append(curve(way, times, predicted.paths[way][:, 1, 0], group=group))
            lines.append(points("", times[::2], observed.paths[way][::2, 1, 0], group=group))
            place = [group - 0.2, group + 0.2]
            found = _rates(observed.kernels[way], system.pull, system.push)
            rates.append(points(way, place, found, group=group))
            rates += [
                curve("", [group - 0.4, group + 0.4], [float(rate)] * 2, group=group) for rate in predicted.rates[way]
            ]
        return (
            Panel.of(f"Discriminator's embedding, wished at {float(system.wishes[1, 0]):.2f}", "time", "e", *lines),
            Panel.of("Rates by the kernel: a and b, or 0 and a + b", "way of sharing", "rate", *rates),
        )


@final
class Heads(nn.Module):
    """What the generator and the discriminator see of one coordinate of the parameters e and Δ."""

    def __init__(self, way: str, *, stopped: bool) -> None:
        nn.Module.__init__(self)
        self.way, self.stopped = way, stopped
        self.embedding, self.change = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
        self.change.requires_grad_(way != "shared")

    def forward(self, ones: Tensor) -> Tensor:
        first = ones * self.embedding
        if self.way == "shared":
            return torch.cat([first, first], dim=1)
        below = first.detach() if self.stopped else first
        own = ones * self.change
        return torch.cat([first, own + below if self.way == "disentangled" else own], dim=1)


def _seen(way: str, parameters: Tensor) -> Tensor:
    """The embeddings of both, from e and Δ along the last axis but one."""
    first, change = parameters.unbind(dim=-2)
    second = {"shared": first, "apart": change, "disentangled": first + change}[way]
    return torch.stack([first, second], dim=-2)


def _kernel(way: str) -> Tensor:
    """J Bᵀ: what moves, by what back-propagation sees."""
    ones = torch.ones(1, 1, dtype=torch.float64)
    moved, taught = (output_jacobian(Heads(way, stopped=stopped), ones) for stopped in (False, True))
    return moved @ taught.mT


def _rates(kernel: Tensor, pull: float, push: float) -> Tensor:
    return torch.linalg.eigvals(kernel * torch.tensor([pull, push], dtype=torch.float64)).real.sort().values
