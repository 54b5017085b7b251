"""A preference loss on chosen and rejected sequences, whose gradients are entangled."""

from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from kpflow.flow import objectives
from kpflow.flow.objectives import STAGES
from kpflow.states import linearise

from .entry import Check, Entry, Panel, curve, formula, identity, monte_carlo, points

__all__ = ["Entanglement"]

VOCABULARY, EMBEDDING, HIDDEN, LENGTH, BETA = 12, 8, 16, 7, 0.5
ETAS = (1e-6, 1e-4, 1e-3)
SOME = (0, 1, 64, 65, 128, 129)  # two pairs for each m

Weights = dict[str, Tensor]


@final
class System(NamedTuple):
    """A language model and pairs of sequences that differ in m tokens."""

    model: "LanguageModel"
    chosen: Tensor  # [n, LENGTH + 1], with the first token given
    rejected: Tensor
    differing: Tensor  # [n], m
    sign: float  # of the rejected gradient in the step; −1


@final
class Observed(NamedTuple):
    """Changes of the log-probabilities by steps."""

    moved: Tensor  # [η, n, 2], of chosen and rejected
    normalised: Tensor  # [n, 2], by a step along normalised gradients
    kernels: Tensor  # [k, 2, 2], Θ of some pairs by the package
    stages: Tensor  # [m, stages], mean cosine between chosen and rejected


@final
class Predicted(NamedTuple):
    """From the 2 × 2 kernels."""

    kernels: Tensor  # [n, 2, 2]
    moved: Tensor  # [n, 2], d (Θ (1, −1)ᵀ), over η
    normalised: Tensor  # [n, 2], over η


@final
class LanguageModel(nn.Module):
    """Tokens to logits by a recurrent network."""

    def __init__(self, generator: torch.Generator) -> None:
        nn.Module.__init__(self)
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDING)
        self.core = nn.RNN(EMBEDDING, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, VOCABULARY)
        self.double()
        with torch.no_grad():
            for value in self.parameters():
                scale = 0.3 if value.ndim == 1 else value.shape[1] ** -0.5
                value.copy_(scale * torch.randn(value.shape, generator=generator, dtype=torch.float64))

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.core(self.embedding(tokens))
        return self.head(states)


@final
class Entanglement(Entry[System, Observed, Predicted]):
    """A step on −ln σ(β (ln π_w − ln π_l)) moves (ln π_w, ln π_l) by η d Θ (1, −1)ᵀ, Θ = [[|g_w|², ⟨g_w, g_l⟩], …].

    Both rise, or both fall, where ⟨g_w, g_l⟩ exceeds one of |g_w|², |g_l|²; that the chosen falls and the rejected
    rises is impossible.
    """

    name = "entanglement"
    title = "Gradient entanglement of preference losses"
    paper = "Yuan, Zeng, Wu, Wang, Wang, Leqi 2024, arXiv 2410.13828"
    kernels = (
        "The two changes are η d Θ(1, −1)ᵀ with Θ the 2×2 cross-objective block of the NTK, and the stages of "
        "`kpflow.flow.objectives` show on the way from error to change where the two became alike."
    )
    omits = (
        "Large language models, reference policies, and the other margin losses; states split into what two answers "
        "share and where they part (The Geometric Price of Discrete Logic, arXiv 2603.23577)."
    )

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator = torch.Generator().manual_seed(seed)
        model = LanguageModel(generator)
        differing = torch.tensor([1] * 64 + [2] * 64 + [5] * 66)
        chosen = torch.randint(VOCABULARY, (len(differing), LENGTH + 1), generator=generator)
        places = torch.arange(LENGTH, 0, -1)  # the last ones differ
        shift = torch.randint(1, VOCABULARY, (len(differing), LENGTH), generator=generator)
        other = (chosen[:, 1:] + shift) % VOCABULARY
        rejected = torch.cat([chosen[:, :1], torch.where(places <= differing[:, None], other, chosen[:, 1:])], dim=1)
        return System(model, chosen, rejected, differing, 1.0 if broken else -1.0)

    def run(self, system: System) -> Observed:
        weights = {name: value.detach() for name, value in system.model.named_parameters()}
        pairs = torch.stack([system.chosen, system.rejected], dim=1)
        before = _log_probabilities(weights, pairs)
        gradients = _gradients(weights, pairs)
        slope = BETA * torch.sigmoid(-BETA * (before[:, 0] - before[:, 1]))

        def stepped(direction: Weights, eta: float) -> Tensor:
            moved = {name: value + eta * direction[name] for name, value in weights.items()}
            return torch.func.vmap(lambda w, p: _log_probabilities(w, p[None])[0])(moved, pairs) - before

        steps, units = {}, {}
        size = _flat(gradients).norm(dim=2)
        for name, value in gradients.items():
            shape = (-1, *(1,) * (value.ndim - 2))
            steps[name] = slope.reshape(shape) * (value[:, 0] + system.sign * value[:, 1])
            unit = value / size.reshape(-1, 2, *shape[1:])
            units[name] = unit[:, 0] + system.sign * unit[:, 1]
        seen = [_package(system, i) for i in SOME]
        stages = torch.stack([cosines for _, cosines in seen]).unflatten(0, (3, 2)).mean(dim=1)
        return Observed(
            torch.stack([stepped(steps, eta) for eta in ETAS]),
            stepped(units, 1e-7) / 1e-7,
            torch.stack([kernel for kernel, _ in seen]),
            stages,
        )

    def predict(self, system: System) -> Predicted:
        weights = {name: value.detach() for name, value in system.model.named_parameters()}
        pairs = torch.stack([system.chosen, system.rejected], dim=1)
        gradients = _flat(_gradients(weights, pairs))
        kernels = gradients @ gradients.mT
        direction = torch.tensor([1.0, -1.0], dtype=torch.float64)
        margin = _log_probabilities(weights, pairs) @ direction
        moved = (BETA * torch.sigmoid(-BETA * margin))[:, None] * (kernels @ direction)
        size = kernels.diagonal(dim1=1, dim2=2).sqrt()
        cosine = kernels[:, 0, 1] / size.prod(dim=1)
        return Predicted(kernels, moved, size * direction * (1 - cosine[:, None]))

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        remainder = torch.stack(
            [moved - eta * predicted.moved for eta, moved in zip(ETAS, observed.moved, strict=True)]
        )
        sizes = remainder.square().mean(dim=(1, 2)).sqrt()
        slope = torch.log10(sizes[2] / sizes[1])
        scale = predicted.kernels.diagonal(dim1=1, dim2=2).amax(dim=1, keepdim=True) * ETAS[0] * BETA
        wrong = (observed.moved[0] * predicted.moved < 0).sum()
        up, down = (observed.moved[0] > 0), (observed.moved[0] < 0)
        entangled = up.all(dim=1) | down.all(dim=1)
        reverse = (down[:, 0] & up[:, 1]).sum()
        product = predicted.kernels[:, 0, 1]
        least = predicted.kernels.diagonal(dim1=1, dim2=2).amin(dim=1)
        near = system.differing <= 2
        one_way = (product > least).double()
        return [
            identity.close("Θ by `objectives`, by gradients", predicted.kernels[list(SOME)], observed.kernels, 1e-10),
            formula.close("change of both, scaled, η = 1e-6", 0.0, remainder[0] / scale, 1e-4),
            formula.close("order of the remainder", 2.0, slope, 0.05),
            formula.close("wrong signs among 388", 0.0, float(wrong), 0.0),
            identity.close("the chosen falls and the rejected rises", 0.0, float(reverse), 0.0),
            formula.close("both move one way iff ⟨g, g⟩ > min |g|²", one_way, entangled.double(), 0.0),
            monte_carlo.at_least("share of such pairs, m ≤ 2", 0.02, entangled[near].double().mean()),
            monte_carlo.at_most("share of such pairs, m = 5", 0.05, entangled[~near].double().mean()),
            formula.close("step along normalised gradients", predicted.normalised, observed.normalised, 1e-5),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        values = observed.moved[0] / ETAS[0]
        reach = torch.stack([predicted.moved.min(), predicted.moved.max()])
        moved, stages = [], []
        for i, m in enumerate((1, 2, 5)):
            some = system.differing == m
            moved.append(points(f"m = {m}", predicted.moved[some], values[some], group=i))
            stages.append(points(f"m = {m}", range(len(STAGES)), observed.stages[i], group=i))
        equal = curve("", reach, reach, group=3)
        return (
            Panel.of("Change of ln π by a step", "predicted / η", "observed / η", equal, *moved),
            Panel.of("Cosine of chosen and rejected", ", ".join(STAGES), "cosine", *stages),
        )


def _log_probabilities(weights: Weights, tokens: Tensor) -> Tensor:
    """ln π of sequences `[*, LENGTH + 1]` given their first token, shape `[*]`."""
    embedded = weights["embedding.weight"][tokens[..., :-1]]
    state, total = embedded.new_zeros(()), 0.0
    for t in range(LENGTH):
        drive = embedded[..., t, :] @ weights["core.weight_ih_l0"].mT + weights["core.bias_ih_l0"]
        if t:
            drive = drive + state @ weights["core.weight_hh_l0"].mT
        state = torch.tanh(drive + weights["core.bias_hh_l0"])
        logits = state @ weights["head.weight"].mT + weights["head.bias"]
        total = total + torch.log_softmax(logits, dim=-1).gather(-1, tokens[..., t + 1, None])[..., 0]
    assert isinstance(total, Tensor)
    return total


def _gradients(weights: Weights, pairs: Tensor) -> Weights:
    """∂ ln π/∂θ, each `[n, 2, *shape]`."""
    gradient = torch.func.grad(_log_probabilities)
    return torch.func.vmap(torch.func.vmap(gradient, (None, 0)), (None, 0))(weights, pairs)


def _flat(gradients: Weights) -> Tensor:
    return torch.cat([value.flatten(2) for value in gradients.values()], dim=2)


def _package(system: System, i: int) -> tuple[Tensor, Tensor]:
    """Θ of a pair and the cosines at every stage, from the outputs alone."""
    tokens = torch.stack([system.chosen[i], system.rejected[i]])
    lin = linearise(system.model, tokens[:, :-1], core="core")

    def loss(row: int, logits: Tensor) -> Tensor:
        return torch.log_softmax(logits[row], dim=-1).gather(1, tokens[row, 1:, None]).sum()

    both = objectives(lin, {"chosen": lambda y: loss(0, y), "rejected": lambda y: loss(1, y)})
    return -both.interference, torch.stack([both.alignments[stage][0, 1] for stage in STAGES])
