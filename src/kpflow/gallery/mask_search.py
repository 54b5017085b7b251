"""Which weights to keep: a relaxed search against all masks, and against their sizes."""

import itertools
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from kpflow._checks import check_range

from .entry import Check, Entry, Panel, curve, identity, monte_carlo, points
from .students import output_jacobian

__all__ = ["MaskSearch"]

SIZE, SAMPLES, SEEN = 12, 40, 4
RATES = torch.linspace(0.2, 0.8, SIZE, dtype=torch.float64)


@final
class System(NamedTuple):
    """Dense linear networks with correlated features; `sign` of the search's steps is 1."""

    inputs: Tensor  # [problems, 40, 12]
    weights: Tensor  # [problems, 12]
    kept: int
    sign: float
    steps: int
    generator: torch.Generator


@final
class Observed(NamedTuple):
    """Losses of the masks that were found, over the loss of no weight at all."""

    search: Tensor  # [problems]
    saliency: Tensor  # [problems]
    enumerated: Tensor  # [problems], mean loss of random masks, by all of them
    jacobians: Tensor  # [4, 40, 12], of the outputs in the mask


@final
class Predicted(NamedTuple):
    """By all masks, and by the Gram of the mask."""

    best: Tensor  # [problems]
    mean: Tensor  # [problems]
    gram: Tensor  # [problems, 12, 12]


@final
class MaskSearch(Entry[System, Observed, Predicted]):
    """Keep k of d weights so that the outputs stay: ½‖X(m∘w) − Xw‖², the divergence from the dense net with unit noise.

    It is ½(1 − m)ᵀJᵀJ(1 − m) with J = X diag w, and ½(1 − p)ᵀJᵀJ(1 − p) + ½Σ(JᵀJ)ᵢᵢ pᵢ(1 − pᵢ) on average over
    independent masks. Descent on relaxed (concrete) masks comes within 5 % of the best of all masks; keeping the
    largest (JᵀJ)ᵢᵢ, the saliency, often does not.
    """

    name = "mask_search"
    title = "Concrete search for masks"
    paper = "Concrete Ticket Search, 2025, arXiv 2512.07142"
    kernels = (
        "JᵀJ is the parameters' Gram of the mask, whose spectrum is that of the NTK J Jᵀ: saliency reads its diagonal, "
        "and what the search gains is in the rest, in weights that stand in for each other."
    )
    omits = "Deep networks, retraining of the ticket, and the balance of gradients with a sparsity target."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, kept: int = 6) -> System:
        check_range("kept", kept, 1, integer=True)
        if kept >= SIZE:
            raise ValueError(
                f"`kept` must be below the number of weights, {SIZE}; got {kept!r}: there is nothing to choose."
            )
        generator = torch.Generator().manual_seed(seed)
        problems = 20
        factors = torch.randn(problems, SAMPLES, 4, generator=generator, dtype=torch.float64)
        loads = torch.randn(problems, 4, SIZE, generator=generator, dtype=torch.float64)
        noise = torch.randn(problems, SAMPLES, SIZE, generator=generator, dtype=torch.float64)
        weights = torch.randn(problems, SIZE, generator=generator, dtype=torch.float64)
        inputs = (factors @ loads / 2 + 0.6 * noise) / SAMPLES**0.5
        return System(inputs, weights, kept, -1.0 if broken else 1.0, 300 if short else 900, generator)

    def run(self, system: System) -> Observed:
        J = system.inputs * system.weights[:, None]
        masks = _masks()
        chances = torch.where(masks, RATES, 1 - RATES).prod(dim=1)
        outputs = J @ (1 - masks.double()).mT  # [problems, 40, 2^d]
        jacobians = [output_jacobian(Masked(w), x) for w, x in zip(system.weights[:SEEN], system.inputs, strict=False)]
        return Observed(
            _losses(system, _search(system)),
            _losses(system, _largest(J.square().sum(dim=1), system.kept)),
            0.5 * outputs.square().sum(dim=1) @ chances,
            torch.stack(jacobians),
        )

    def predict(self, system: System) -> Predicted:
        J = system.inputs * system.weights[:, None]
        gram = J.mT @ J
        dropped = 1 - _masks()[_masks().sum(dim=1) == system.kept].double()
        losses = 0.5 * torch.einsum("mi,pij,mj->pm", dropped, gram, dropped)
        spread = gram.diagonal(dim1=1, dim2=2) @ (RATES * (1 - RATES))
        mean = 0.5 * (torch.einsum("i,pij,j->p", 1 - RATES, gram, 1 - RATES) + spread)
        return Predicted(losses.min(dim=1).values, mean, gram)

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        near = [int((losses <= 1.05 * predicted.best).sum()) for losses in (observed.search, observed.saliency)]
        kernels = observed.jacobians @ observed.jacobians.mT
        # eight seeds: the search 20 seven times and 19 once, saliency 4 to 9
        return [
            identity.close(
                "Gram of the mask is JᵀJ", predicted.gram[:SEEN], observed.jacobians.mT @ observed.jacobians, 1e-12
            ),
            identity.close(
                "its spectrum is that of the NTK",
                torch.linalg.eigvalsh(predicted.gram[:SEEN]),
                torch.linalg.eigvalsh(kernels)[:, -SIZE:],
                1e-10,
            ),
            identity.close("mean loss over all 2^d random masks", predicted.mean, observed.enumerated, 1e-10),
            monte_carlo.close("problems of 20 in which the search is within 5 % of the best", 20, near[0], 1.0),
            monte_carlo.at_most("the same by saliency", 14.0, float(near[1])),
            identity.at_least(
                "no mask is better than the best of all", 0.0, (observed.search - predicted.best).min() + 1e-12
            ),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        order = predicted.best.argsort()
        number = torch.arange(1, len(order) + 1)
        gram = predicted.gram[0]
        ranks = torch.arange(1, SIZE + 1)
        values = torch.linalg.eigvalsh(observed.jacobians[0] @ observed.jacobians[0].mT)[-SIZE:]
        return (
            Panel.of(
                "Loss of the masks that were found",
                "problem, by its best loss",
                "loss",
                curve("best of all masks", number, predicted.best[order]),
                points("search", number, observed.search[order]),
                points("saliency", number, observed.saliency[order], group=1),
            ),
            Panel.of(
                "Spectrum of the mask's NTK, one problem",
                "number",
                "",
                curve("eigenvalues of JᵀJ", ranks, torch.linalg.eigvalsh(gram).flip(0)),
                points("of J Jᵀ", ranks, values.flip(0)),
                curve("diagonal of JᵀJ: saliency", ranks, gram.diagonal().sort(descending=True).values, group=1),
                log="y",
            ),
        )


@final
class Masked(nn.Module):
    """x ↦ Σ xᵢ wᵢ mᵢ, as a function of the mask m = 1."""

    def __init__(self, weights: Tensor) -> None:
        nn.Module.__init__(self)
        self.mask = nn.Parameter(torch.ones_like(weights))
        self.register_buffer("weights", weights.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs @ (self.mask * self.get_buffer("weights")))[:, None]


def _masks() -> Tensor:
    """All 2^d of them."""
    return torch.tensor(list(itertools.product([False, True], repeat=SIZE)))


def _largest(scores: Tensor, kept: int) -> Tensor:
    """Masks of the largest scores."""
    return torch.zeros_like(scores).scatter(1, scores.topk(kept, dim=1).indices, 1.0)


def _losses(system: System, masks: Tensor) -> Tensor:
    """½‖X(m∘w) − Xw‖² of each problem."""
    gap = (system.inputs @ ((1 - masks.double()) * system.weights)[..., None])[..., 0]
    return 0.5 * gap.square().sum(dim=1)


def _search(system: System) -> Tensor:
    """Masks by descent on concrete ones, σ((ℓ + logistic noise)/τ), colder as it goes on, the best of 64 runs."""
    runs, problems = 64, len(system.weights)
    J = system.inputs * system.weights[:, None]
    gram = J.mT @ J
    gram = gram / gram.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    logits = torch.randn(runs, problems, SIZE, generator=system.generator, dtype=torch.float64)
    for step in range(system.steps):
        heat = 1.0 - 0.7 * step / system.steps
        draw = torch.rand(logits.shape, generator=system.generator, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
        soft = ((logits + draw.logit()) / heat).sigmoid()
        slope = -(gram @ (1 - soft)[..., None])[..., 0]
        excess = soft.sum(dim=-1, keepdim=True) - system.kept
        logits = logits - 0.3 * system.sign * (slope + 0.3 * excess) * soft * (1 - soft) / heat
    found = torch.stack([_largest(part, system.kept) for part in logits])
    losses = torch.stack([_losses(system, masks) for masks in found])
    return found[losses.argmin(dim=0), torch.arange(problems)]
