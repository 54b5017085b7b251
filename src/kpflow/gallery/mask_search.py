"""Which weights to keep: a relaxed search against all masks, and against their sizes."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple, final

import torch
from torch import Tensor

from kpflow._checks import check_range
from kpflow.estimate import spectrum
from kpflow.flow import Ntk
from kpflow.operators import Dense, Gram, to_dense

from .draws import normal
from .entry import Check, Entry, Panel, identity, monte_carlo, pair, points
from .students import linearise_map

__all__ = ["MaskSearch"]

SIZE, SAMPLES, PROBLEMS, SEEN = 12, 40, 20, 2
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

    @property
    def gram(self) -> Tensor:
        """JᵀJ with J = X diag w, [problems, 12, 12]."""
        J = self.inputs * self.weights[:, None]
        return J.mT @ J


@final
class Observed(NamedTuple):
    """Masks that were found, and their losses."""

    search: Tensor  # [problems]
    saliency: Tensor  # [problems]
    masks: Tensor  # [2, problems, 12], of search and saliency
    enumerated: Tensor  # [problems], mean loss of random masks, by all of them
    jacobians: Tensor  # [2, 40, 12], of the outputs in the mask


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
    paper = "Arora, Teuscher 2025, Concrete Ticket Search, arXiv 2512.07142"
    kernels = (
        "JᵀJ is the parameters' Gram of the mask, whose spectrum is that of the NTK J Jᵀ: saliency reads its diagonal, "
        "and what the search gains is in the rest, in weights that stand in for each other."
    )
    omits = "Deep networks, retraining of the ticket, and the balance of gradients with a sparsity target."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False, kept: int = 6) -> System:
        check_range("kept", kept, 2, integer=True)
        if kept > SIZE // 2:
            raise ValueError(
                f"`kept` must be at most half of the {SIZE} weights; got {kept!r}: with more there is little "
                "to choose, and saliency finds it too."
            )
        generator = torch.Generator().manual_seed(seed)
        factors, loads, noise, weights = (
            normal(generator, PROBLEMS, *shape) for shape in ((SAMPLES, 4), (4, SIZE), (SAMPLES, SIZE), (SIZE,))
        )
        inputs = (factors @ loads / 2 + 0.6 * noise) / SAMPLES**0.5
        return System(inputs, weights, kept, -1.0 if broken else 1.0, 300 if short else 900, generator)

    def run(self, system: System) -> Observed:
        masks = _masks()
        chances = torch.where(masks > 0, RATES, 1 - RATES).prod(dim=1)
        outputs = (system.inputs * system.weights[:, None]) @ (1 - masks).mT  # [problems, 40, 2^d]
        masks = torch.stack([_search(system), _largest(system.gram.diagonal(dim1=1, dim2=2), system.kept)])
        search, saliency = _losses(system, masks)
        return Observed(
            search,
            saliency,
            masks,
            0.5 * outputs.square().sum(dim=1) @ chances,
            torch.stack([to_dense(_kernel(system, k).jacobian) for k in range(SEEN)]),
        )

    def predict(self, system: System) -> Predicted:
        gram, masks = system.gram, _masks()
        best = _losses(system, masks[masks.sum(dim=1) == system.kept, None]).min(dim=0).values
        spread = gram.diagonal(dim1=1, dim2=2) @ (RATES * (1 - RATES))
        return Predicted(best, 0.5 * (torch.einsum("i,pij,j->p", 1 - RATES, gram, 1 - RATES) + spread), gram)

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        search, saliency = (int((found <= 1.05 * predicted.best).sum()) for found in observed[:2])
        jacobians, gram = observed.jacobians, predicted.gram[:SEEN]
        values = torch.stack([spectrum(_kernel(system, k))[:SIZE] for k in range(SEEN)])
        return [
            identity.close("Gram of the mask is JᵀJ", gram, jacobians.mT @ jacobians, 1e-12),
            identity.close("its spectrum is that of the NTK", torch.linalg.eigvalsh(gram).flip(1), values, 1e-10),
            identity.close("mean loss over all 2^d random masks", predicted.mean, observed.enumerated, 1e-10),
            monte_carlo.close("problems of 20 in which the search is within 5 % of the best", PROBLEMS, search, 1.0),
            monte_carlo.at_most("the same by saliency", 14.0, float(saliency)),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        order, number, ranks = predicted.best.argsort(), torch.arange(1, PROBLEMS + 1), torch.arange(1, SIZE + 1)
        losses = (
            *pair("best of all masks, and search", number, predicted.best[order], observed.search[order]),
            points("saliency", number, observed.saliency[order], group=1),
        )
        J = observed.jacobians[0]
        tickets = (
            points(label, ranks[: system.kept], spectrum(Gram(Dense(J * mask)))[: system.kept], group)
            for group, (label, mask) in enumerate(
                zip(("kept by search", "by saliency"), observed.masks[:, 0], strict=True), 1
            )
        )
        dense = pair("dense", ranks, torch.linalg.eigvalsh(predicted.gram[0]).flip(0), spectrum(Gram(Dense(J)))[:SIZE])
        return (
            Panel.of("Loss of the masks that were found", "problem, by its best loss", "loss", *losses),
            Panel.of("Spectrum of the NTK, whole and as kept, one problem", "number", "", *dense, *tickets, log="y"),
        )


def _masked(inputs: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Σ xᵢ wᵢ mᵢ."""
    return inputs @ (parameters["mask"] * parameters["weights"])[:, None]


def _kernel(system: System, problem: int) -> Ntk:
    """NTK of the dense network, of which the mask m = 1 learns."""
    parameters = {"mask": torch.ones(SIZE, dtype=torch.float64), "weights": system.weights[problem]}
    return Ntk(linearise_map(_masked, system.inputs[problem], parameters), params=["mask"])


def _masks() -> Tensor:
    """All 2^d of them."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=SIZE)), dtype=torch.float64)


def _largest(scores: Tensor, kept: int) -> Tensor:
    """Masks of the largest scores."""
    return torch.zeros_like(scores).scatter(-1, scores.topk(kept).indices, 1.0)


def _losses(system: System, masks: Tensor) -> Tensor:
    """½(1 − m)ᵀJᵀJ(1 − m) of masks of each problem, shape [*, problems or 1, 12]."""
    dropped = (1 - masks).expand(*masks.shape[:-2], PROBLEMS, SIZE)
    return 0.5 * torch.einsum("...pi,pij,...pj->...p", dropped, system.gram, dropped)


def _search(system: System) -> Tensor:
    """Masks by descent on concrete ones, σ((ℓ + logistic noise)/τ), colder as it goes on, the best of 64 runs."""
    gram = system.gram / system.gram.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
    logits = normal(system.generator, 64, PROBLEMS, SIZE)
    for step in range(system.steps):
        heat = 1.0 - 0.7 * step / system.steps
        draw = torch.rand(logits.shape, generator=system.generator, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
        soft = ((logits + draw.logit()) / heat).sigmoid()
        slope = -(gram @ (1 - soft)[..., None])[..., 0]
        excess = soft.sum(dim=-1, keepdim=True) - system.kept
        logits = logits - 0.3 * system.sign * (slope + 0.3 * excess) * soft * (1 - soft) / heat
    found = _largest(logits, system.kept)
    return found[_losses(system, found).argmin(dim=0), torch.arange(PROBLEMS)]
