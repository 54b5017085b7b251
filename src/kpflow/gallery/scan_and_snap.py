"""One attention layer and a decoder for the next token: attention scans, then snaps."""

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple, final

import numpy as np
import torch
from numpy import ndarray
from scipy.integrate import solve_ivp
from torch import Tensor

from kpflow.estimate import spectrum
from kpflow.flow import Ntk

from .draws import normal
from .entry import Check, Entry, Panel, formula, identity, pair, points
from .students import linearise_map

__all__ = ["ScanAndSnap"]

TOKENS = torch.tensor(
    [[0.25, 0.25, 0.25, 0.15, 0.10, 0, 0, 0], [0.25, 0.25, 0, 0, 0, 0.25, 0.15, 0.10]], dtype=torch.float64
)
"""P(l | n) of two classes: two common tokens, and three of each class alone."""

DECODER_RATES = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
ATTENTION_RATE, EARLY, LATE = 0.05, 1, 5  # of the moments
STEPS = torch.tensor([5.0, 5.0, 1.0], dtype=torch.float64)
"""Of time, for each rate of the decoder; the fastest is stable with the shortest."""


@final
class System(NamedTuple):
    """Where gradients are compared, and how long is run."""

    decoder: Tensor  # [2, l], a random Y
    scores: Tensor  # [l], a random z
    moments: list[int]  # steps that are kept, up to the last
    projected: float  # how much of the normalisation's derivative is in what is run; 1


@final
class Observed(NamedTuple):
    """Along descent from zero, one run for each rate of the decoder."""

    velocity: Tensor  # [l], −∂L/∂z by autograd at the random point
    scores: Tensor  # [t, rate, l], z at kept times
    speeds: Tensor  # [t, rate], |ż|
    kernels: Tensor  # [t, 2], eigenvalues of the attention's block Θ_z of the NTK, of the middle rate
    pulls: Tensor  # [t], rᵀ Θ_z r with the residuals r
    null: float  # |J_z 1|


@final
class Predicted(NamedTuple):
    """Closed forms, and the flow of one class, of which the other is the mirror image."""

    velocity: Tensor
    early: Tensor  # [5], z over that of the first distinct token
    scores: Tensor  # [t, rate, 5]
    kernels: Tensor  # [t, 2]


@final
class ScanAndSnap(Entry[System, Observed, Predicted]):
    """ż = Σ_n P_n f_n ∘ (I − f_n f_nᵀ) Yᵀ(e_n − α_n): common tokens fall, distinct ones rise, then all stop.

    Early z_l ∝ f_nl² for distinct tokens, and z_c/z_d = −2f_c²(1 − F)/(f_d² F) for common ones, F = f_1·f_2. Σ_l z_l is
    conserved. The end is not one-hot. What of f_n is at right angles to f_1 + f_2, the part that tells the classes
    apart, has the squared length (1 − F)/2, and grows.
    """

    name = "scan_and_snap"
    title = "Scan and snap"
    paper = (
        "Tian, Wang, Chen, Du 2023, arXiv 2305.16380; the part that classes share and the part at right angles to it "
        "as in Geometric Price of Discrete Logic, arXiv 2603.23577"
    )
    kernels = (
        "Normalisation makes 1 a null vector of J_z, and the residual that the decoder removes freezes attention: "
        "|ż|² = rᵀΘ_z r falls, while the block Θ_z of the NTK itself stays."
    )
    omits = "Long sequences, positional encoding, several queries, and more than one layer."

    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        generator = torch.Generator().manual_seed(seed)
        moments = [1, 4, 10, 40, 100, 400, 1000, 4000] + [20_000] * (not short)
        return System(normal(generator, 2, 8), normal(generator, 8), moments, 0.8 if broken else 1.0)

    def run(self, system: System) -> Observed:
        leaf = system.scores.clone().requires_grad_()
        logits = _logits(TOKENS, {"decoder": system.decoder, "scores": leaf})
        (slope,) = torch.autograd.grad(-torch.log_softmax(logits, dim=1).diagonal().mean(), [leaf])
        decoder, scores = torch.zeros(3, 2, 8, dtype=torch.float64), torch.zeros(3, 8, dtype=torch.float64)
        kept = []
        for step in range(1, system.moments[-1] + 1):
            turn, velocity = _velocities(decoder, scores, system.projected)
            decoder = decoder + (STEPS * DECODER_RATES)[:, None, None] * turn
            scores = scores + STEPS[:, None] * ATTENTION_RATE * velocity
            if step in system.moments:
                speed = _velocities(decoder, scores, system.projected)[1].norm(dim=1)
                kept.append((scores, speed, *_attention_block(decoder[1], scores[1])))
        path, speeds, kernels, pulls, nulls = (torch.stack(parts) for parts in zip(*kept, strict=True))
        return Observed(-slope, path, speeds, kernels, pulls, float(nulls.max()))

    def predict(self, system: System) -> Predicted:
        _, velocity = _velocities(system.decoder[None], system.scores[None], 1.0)
        f = TOKENS[0, :5] / TOKENS[0].norm()
        common = 2 * f[0] ** 2  # F
        ratio = -2 * f[0] ** 2 * (1 - common) / (f[2] ** 2 * common)
        early = torch.cat([ratio.expand(2), (f[2:] / f[2]).square()])
        flows = [
            _flow(rate, step * np.array(system.moments))
            for rate, step in zip(DECODER_RATES.tolist(), STEPS.tolist(), strict=True)
        ]
        own = _mirrored(*flows[1])[1] ** 2
        both = 2 * own.sum(axis=1)[:, None] + 4 * own[:, :1] * np.array(
            [1.0, -1.0]
        )  # common tokens are in both classes
        scores = torch.from_numpy(np.stack([z for z, _ in flows], axis=1))
        return Predicted(velocity[0], early, scores, torch.from_numpy(both))

    def check(self, system: System, observed: Observed, predicted: Predicted) -> list[Check]:
        seen = observed.scores[:, :, :5]
        first = seen[EARLY, 1] / seen[EARLY, 1, 2]
        common, distinct, attention = seen[..., :2], seen[..., 2:], _attention(seen[-1])
        drop = observed.speeds[-1, 1] / observed.speeds[:, 1].max()
        ones, others = _features(TOKENS, observed.scores[:, :, None]).unbind(dim=2)
        shared = torch.nn.functional.normalize(ones + others, dim=2)
        apart = (ones - (ones * shared).sum(dim=2, keepdim=True) * shared).square().sum(dim=2)
        known = 0.5 - _features(TOKENS[0, :5], predicted.scores)[..., 0].square()  # (1 − F)/2
        return [
            identity.close("ż by autograd", predicted.velocity, observed.velocity, 1e-14),
            identity.close("Σ z is conserved", 0.0, observed.scores.sum(dim=2), 1e-10),
            formula.close("early z of distinct ∝ f²", predicted.early[2:], first[2:], 0.03, relative=True),
            formula.close("early z_c/z_d", predicted.early[:2], first[:2], 5e-3, relative=True),
            formula.close("z by the flow of one class", predicted.scores, seen, 0.02),
            formula.close("attention by it, in the end", _attention(predicted.scores[-1]), attention, 5e-3),
            formula.at_most("common tokens fall: largest step of z", 0.0, common.diff(dim=0).max()),
            formula.at_least("distinct ones rise: least step of z", 0.0, distinct.diff(dim=0).min()),
            formula.at_most("in the order of co-occurrence", 0.0, distinct.diff(dim=2).max()),
            formula.at_most("snap: |ż| at the end over its peak", 2e-4 if len(seen) > 8 else 5e-3, drop),
            formula.at_most("attention is not one-hot: largest", 0.6, attention.max()),
            formula.at_most("by how much faster decoders leave more z", 0.0, seen[-1, :, 2].diff().max()),
            formula.close("share of f that tells the classes apart", known, apart, 5e-3),
            formula.at_least("which grows: least step", 0.0, apart.diff(dim=0).min()),
            identity.close("|J_z 1|", 0.0, observed.null, 1e-12),
            identity.close("|ż|² = rᵀ Θ_z r", observed.pulls, observed.speeds[:, 1].square(), 1e-12),
            formula.close(
                "late eigenvalues of Θ_z", predicted.kernels[LATE:], observed.kernels[LATE:], 0.06, relative=True
            ),
        ]

    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        steps = torch.tensor(system.moments, dtype=torch.float64)
        rows = (("common", 0), ("distinct, 0.25", 2), ("0.15", 3), ("0.10", 4))
        tokens = (
            pair(label, steps, predicted.scores[:, 1, i], observed.scores[:, 1, i], group)
            for group, (label, i) in enumerate(rows)
        )
        kernel = (
            *pair("largest", steps, predicted.kernels[:, 0], observed.kernels[:, 0]),
            *pair("second", steps, predicted.kernels[:, 1], observed.kernels[:, 1], 1),
            points("|ż|² = rᵀ Θ_z r", steps, observed.pulls, 2),
        )
        return (
            Panel.of("Scores z, and the flow of one class", "step", "z", *itertools.chain(*tokens), log="x"),
            Panel.of("The attention's block Θ_z of the NTK", "step", "eigenvalue", *kernel, log="xy"),
        )


def _logits(tokens: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """Y f_n of f_n = c_n/|c_n| with c_n = P(· | n) e^z."""
    return _features(tokens, parameters["scores"]) @ parameters["decoder"].mT


def _features(tokens: Tensor, scores: Tensor) -> Tensor:
    c = tokens * scores.exp()
    return c / c.norm(dim=-1, keepdim=True)


def _velocities(decoder: Tensor, scores: Tensor, projected: float) -> tuple[Tensor, Tensor]:
    """Ẏ and ż, of several runs at once."""
    f = _features(TOKENS, scores[:, None])
    residual = (torch.eye(2, dtype=torch.float64) - torch.softmax(f @ decoder.mT, dim=2)) / 2
    pull = residual @ decoder
    pull = pull - projected * (pull * f).sum(dim=2, keepdim=True) * f
    return residual.mT @ f, (f * pull).sum(dim=1)


def _attention_block(decoder: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues of Θ_z that are not 0, rᵀ Θ_z r with the residuals r, and |J_z 1|."""
    lin = linearise_map(_logits, TOKENS, {"decoder": decoder, "scores": scores})
    kernel = Ntk(lin, params=["scores"])
    residual = (torch.eye(2, dtype=torch.float64) - torch.softmax(lin.states[:, 0], dim=1))[:, None] / 2
    return spectrum(kernel)[:2], (residual * kernel(residual)).sum(), kernel.jacobian(torch.ones_like(scores)).norm()


def _mirrored(scores: ndarray, decoder: ndarray) -> tuple[ndarray, ndarray]:
    """f of the first class, and J_zᵀ of its own logit, by z and y of its tokens: Y is ±y on those of either class."""
    c = TOKENS[0, :5].numpy() * np.exp(scores)
    f = c / np.linalg.norm(c, axis=-1, keepdims=True)
    return f, f * (decoder - (f * decoder).sum(axis=-1, keepdims=True) * f)


def _flow(rate: float, times: ndarray) -> tuple[ndarray, ndarray]:
    """z and y of the first class, by its five tokens."""

    def velocity(_: float, state: ndarray) -> ndarray:
        z, y = state.reshape(2, 5)
        f, pull = _mirrored(z, y)
        left = 1 / (1 + math.exp(2 * f @ y))
        share = np.array([2.0, 2.0, 1.0, 1.0, 1.0])  # common tokens are pulled by both classes
        return np.concatenate([ATTENTION_RATE * left * share * pull, rate * 0.5 * left * (share < 2) * f])

    path = solve_ivp(velocity, (0.0, times[-1]), np.zeros(10), "LSODA", times, rtol=1e-9, atol=1e-12).y.T
    return path[:, :5], path[:, 5:]


def _attention(scores: Tensor) -> Tensor:
    """Of the first class, by the scores of its tokens."""
    return torch.softmax(TOKENS[0, :5].log() + scores, dim=-1)
