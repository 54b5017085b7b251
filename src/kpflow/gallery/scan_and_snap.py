"""One attention layer and a decoder for the next token: attention scans, then snaps."""

from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from kpflow.flow import Ntk
from kpflow.operators import to_dense
from kpflow.states import linearise

from .draws import normal
from .entry import Check, Entry, Panel, curve, formula, identity, points

__all__ = ["ScanAndSnap"]

TOKENS = torch.tensor(
    [[0.25, 0.25, 0.25, 0.15, 0.10, 0, 0, 0], [0.25, 0.25, 0, 0, 0, 0.25, 0.15, 0.10]], dtype=torch.float64
)
"""P(l | n) of two classes: two common tokens, and three of each class alone."""

DECODER_RATES, ATTENTION_RATE, EARLY = (0.1, 1.0, 10.0), 0.05, 4
STEPS = torch.tensor([5.0, 5.0, 1.0], dtype=torch.float64)
"""Of time, for each rate of the decoder; the fastest is stable with the shortest."""


@final
class System(NamedTuple):
    """Where gradients are compared, and how long is run."""

    decoder: Tensor  # [2, l], a random Y
    scores: Tensor  # [l], a random z
    steps: int
    projected: float  # how much of the normalisation's derivative is in what is run; 1


@final
class Observed(NamedTuple):
    """Along descent from zero, one run for each rate of the decoder."""

    velocity: Tensor  # [l], −∂L/∂z by autograd at the random point
    early: Tensor  # [rate, l], z after a few steps
    scores: Tensor  # [t, rate, l], z at kept times
    speeds: Tensor  # [t, rate], |ż|
    times: Tensor
    peaks: Tensor  # [rate], the largest |ż|
    blocks: Tensor  # [t, 2], of the middle rate: the attention's block of the NTK, and r's share r ᵀ Θ_z r
    null: float  # |J_z 1|


@final
class Predicted(NamedTuple):
    """Closed forms."""

    velocity: Tensor
    early: Tensor  # [5], z over that of the first distinct token
    attention: Tensor  # [5], of the first class at the end


@final
class Module(nn.Module):
    """Logits Y f_n of f_n = c_n/|c_n| with c_n = P(· | n) e^z."""

    def __init__(self, decoder: Tensor, scores: Tensor) -> None:
        nn.Module.__init__(self)
        self.decoder, self.scores = nn.Parameter(decoder.clone()), nn.Parameter(scores.clone())

    def forward(self, tokens: Tensor) -> Tensor:
        c = tokens * torch.exp(self.scores)
        return (c / c.square().sum(dim=-1, keepdim=True).sqrt()) @ self.decoder.mT


@final
class ScanAndSnap(Entry[System, Observed, Predicted]):
    """ż = Σ_n P_n f_n ∘ (I − f_n f_nᵀ) Yᵀ(e_n − α_n): common tokens fall, distinct ones rise, then all stop.

    Early z_l ∝ f_nl² for distinct tokens, and z_c/z_d = −2f_c²(1 − F)/(f_d² F) for common ones, F = f_1·f_2. Σ_l z_l is
    conserved. The end is not one-hot.
    """

    name = "scan_and_snap"
    title = "Scan and snap"
    paper = "Tian, Wang, Chen, Du 2023, arXiv 2305.16380"
    kernels = (
        "Normalisation makes 1 a null vector of J_z, and the residual that the decoder removes freezes attention: "
        "|ż|² = rᵀΘ_z r falls, while the block Θ_z of the NTK itself stays."
    )
    omits = "Long sequences, positional encoding, several queries, and more than one layer."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator = torch.Generator().manual_seed(seed)
        return System(normal(generator, 2, 8), normal(generator, 8), 4000 if short else 20_000, 0.8 if broken else 1.0)

    def run(self, system: System) -> Observed:
        model = Module(system.decoder, system.scores)
        loss = -torch.log_softmax(model(TOKENS), dim=1).diagonal().mean()
        (slope,) = torch.autograd.grad(loss, [model.scores])
        rates = torch.tensor(DECODER_RATES, dtype=torch.float64)[:, None, None]
        decoder, scores = torch.zeros(3, 2, 8, dtype=torch.float64), torch.zeros(3, 8, dtype=torch.float64)
        kept, moments, peaks, early = [], set(_moments(system.steps)), torch.zeros(3, dtype=torch.float64), scores
        for step in range(1, system.steps + 1):
            turn, velocity = _velocities(decoder, scores, system.projected)
            decoder = decoder + STEPS[:, None, None] * rates * turn
            scores = scores + STEPS[:, None] * ATTENTION_RATE * velocity
            speed = velocity.norm(dim=1)
            peaks = torch.maximum(peaks, speed)
            if step == EARLY:
                early = scores
            if step in moments:
                speed = _velocities(decoder, scores, system.projected)[1].norm(dim=1)
                kept.append((scores, speed, decoder))
        linear = [_blocks(Y[1], z[1]) for z, _, Y in kept[::3]]
        return Observed(
            -slope,
            early,
            torch.stack([z for z, _, _ in kept]),
            torch.stack([speed for _, speed, _ in kept]),
            torch.tensor(_moments(system.steps), dtype=torch.float64),
            peaks,
            torch.tensor([[trace, share] for trace, share, _ in linear], dtype=torch.float64),
            max(null for _, _, null in linear),
        )

    def predict(self, system: System) -> Predicted:
        _, velocity = _velocities(system.decoder[None], system.scores[None], 1.0)
        f = TOKENS[0, :5] / TOKENS[0].norm()
        common = 2 * f[0] ** 2  # F
        ratio = -2 * f[0] ** 2 * (1 - common) / (f[2] ** 2 * common)
        early = torch.cat([ratio.expand(2), (f[2:] / f[2]).square()])
        final = torch.tensor([0.15, 0.15, 0.40, 0.19, 0.12], dtype=torch.float64)
        return Predicted(velocity[0], early, final)

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        final = observed.scores[-1, 1]
        weights = TOKENS[0] * final.exp()
        attention = (weights / weights.sum())[:5]
        first = observed.early[1, :5] / observed.early[1, 2]
        order = observed.scores[:, 1, :5].diff(dim=1)[:, 1:]  # from common up to the first distinct, then down
        drop = float(observed.speeds[-1, 1] / observed.peaks[1])
        residual = (observed.blocks[:, 1].clamp(min=0).sqrt() - observed.speeds[::3, 1]).abs().max()
        long = system.steps > 10_000
        late = torch.cat(
            [observed.scores[7, :2, 2], observed.scores[-1, 2:, 2]]
        )  # time 20 000, short: 4000 for the last
        slower = observed.scores[-1, :, 2].diff().max()
        return [
            identity.close("ż by autograd", predicted.velocity, observed.velocity, 1e-14),
            identity.close("Σ z is conserved", 0.0, observed.scores.sum(dim=2), 1e-10),
            formula.close("early z of distinct ∝ f²", predicted.early[2:], first[2:], 0.03, relative=True),
            formula.close("early z_c/z_d", predicted.early[:2], first[:2], 5e-3, relative=True),
            formula.at_most("largest z of a common token", 0.0, observed.scores[:, :, :2].max()),
            formula.at_least("z rises from common to distinct", 0.0, order[:, 0].min()),
            formula.at_most("and falls with co-occurrence", 0.0, order[:, 1:].max()),
            formula.at_most("snap: |ż| at the end over its peak", 2e-4 if long else 5e-3, drop),
            formula.close("attention at the end", predicted.attention, attention, 0.01 if long else 0.03),
            formula.close(
                "z of the first distinct token, three decoders", torch.tensor([0.64, 0.36, 0.11]), late, 0.04
            ),
            formula.at_most("by how much faster decoders leave more z", 0.0, slower),
            identity.close("|J_z 1|", 0.0, observed.null, 1e-12),
            identity.close("|ż| = √(rᵀ Θ_z r)", 0.0, residual, 1e-8),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        tokens = tuple(
            points(label, observed.times, observed.scores[:, 1, i], group=g)
            for g, (label, i) in enumerate((("common", 0), ("distinct, 0.25", 2), ("0.15", 3), ("0.10", 4)))
        )
        near = observed.times <= 10
        scale = observed.early[1, 2] / EARLY**2
        curves = tuple(
            curve("", observed.times[near], scale * predicted.early[i] * observed.times[near] ** 2, group=g)
            for g, i in enumerate((0, 2, 3, 4))
        )
        kernel = [
            points(label, observed.times[::3], observed.blocks[:, k], group=k)
            for k, label in enumerate(("tr Θ_z", "|ż|² = rᵀ Θ_z r"))
        ]
        return (
            Panel.of("Scores z; early, t² times the closed form", "step", "z", *curves, *tokens, log="x"),
            Panel.of("The attention's block of the NTK", "step", "", *kernel, log="xy"),
        )


def _velocities(decoder: Tensor, scores: Tensor, projected: float) -> tuple[Tensor, Tensor]:
    """Ẏ and ż, of several runs at once."""
    c = TOKENS * scores.exp()[:, None]
    f = c / c.norm(dim=2, keepdim=True)
    residual = (torch.eye(2, dtype=torch.float64) - torch.softmax(f @ decoder.mT, dim=2)) / 2
    pull = residual @ decoder
    pull = pull - projected * (pull * f).sum(dim=2, keepdim=True) * f
    return residual.mT @ f, (f * pull).sum(dim=1)


def _moments(steps: int) -> list[int]:
    return [step for step in (1, 4, 10, 40, 100, 400, 1000, 4000, 20_000) if step <= steps]


def _blocks(decoder: Tensor, scores: Tensor) -> tuple[float, float, float]:
    """tr Θ_z, rᵀ Θ_z r with the residuals r, and |J_z 1|."""
    model = Module(decoder, scores)
    kernel = Ntk(linearise(model, TOKENS), params=["scores"], readout="outputs")
    with torch.no_grad():
        residual = (torch.eye(2, dtype=torch.float64) - torch.softmax(model(TOKENS), dim=1)).flatten() / 2
    theta, jacobian = to_dense(kernel), to_dense(kernel.jacobian)
    return float(theta.trace()), float(residual @ theta @ residual), float(jacobian.sum(dim=1).norm())
