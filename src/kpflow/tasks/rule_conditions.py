"""What is shown in the tasks of rules.py, how it is drawn, and what the right answer is."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .base import need_condition
from .directions import draw_angles
from .rules import COHERENCES, Rule
from .timing import from_uniform

__all__ = ["angle_of", "answer", "condition_names", "draw_conditions", "grid_conditions", "strengths_of"]

Conditions = Mapping[str, Tensor]

NAMES: Mapping[str, tuple[str, ...]] = {
    "single": ("angle", "modality"),
    "decision": ("angle1", "angle2", "strength1", "strength2"),
    "context": ("angle1", "angle2", *(f"strength{i}_modality{m}" for m in (1, 2) for i in (1, 2))),
    "sample": ("angle1", "angle2", "modality1", "modality2", "match"),
    "category": ("angle1", "angle2", "modality1", "modality2", "match"),
}
YANG_CATEGORY_ANGLES = 10
GRID_FIRST, GRID_SECOND = (-0.4, -0.2, 0.2, 0.4), (-0.3, -0.1, 0.1, 0.3)  # no two of them cancel: no ties


def condition_names(rule: Rule) -> tuple[str, ...]:
    """The names of the conditions of a rule."""
    return NAMES[rule.kind]


def angle_of(rule: Rule, conditions: Conditions, stimulus: int, epoch: str) -> Float[Tensor, " n"]:
    """The direction of the first or second stimulus."""
    return need_condition(conditions, "angle" if rule.kind == "single" else f"angle{stimulus}", epoch)


def strengths_of(rule: Rule, conditions: Conditions, stimulus: int, epoch: str) -> Float[Tensor, "n 2"]:
    """How strongly the first or second stimulus is shown in each modality."""
    if rule.kind == "context":
        names = (f"strength{stimulus}_modality{m}" for m in (1, 2))
        return torch.stack([need_condition(conditions, name, epoch) for name in names], dim=-1)
    angle = angle_of(rule, conditions, stimulus, epoch)
    if rule.kind == "decision":
        strength = need_condition(conditions, f"strength{stimulus}", epoch)
        modality = torch.full_like(strength, rule.modality)
    else:
        strength = torch.ones_like(angle)
        modality = need_condition(conditions, "modality" if rule.kind == "single" else f"modality{stimulus}", epoch)
    return torch.stack([strength * (modality == m) for m in (1, 2)], dim=-1)


def answer(rule: Rule, conditions: Conditions) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """The direction of the response, and whether there is to be one at all."""
    epoch = "response"
    first = angle_of(rule, conditions, 1, epoch)
    always = torch.ones_like(first, dtype=torch.bool)
    if rule.kind == "single":
        return first + math.pi * rule.opposite, always
    second = angle_of(rule, conditions, 2, epoch)
    if rule.kind in ("decision", "context"):
        total = [strengths_of(rule, conditions, i, epoch) for i in (1, 2)]
        a, b = (s[:, rule.modality - 1] if rule.modality else s.sum(dim=-1) for s in total)
        return torch.where(a > b, first, second), always
    return second, (need_condition(conditions, "match", epoch) == 1) != rule.opposite


def draw_conditions(rule: Rule, timing: str, B: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Conditions of B random trials."""
    first = draw_angles(B, generator)
    if rule.kind == "single":
        return {"angle": first, "modality": _coin(B, generator) + 1}
    if rule.kind in ("decision", "context"):
        apart = _apart(B, generator, 0.5 * math.pi, 1.5 * math.pi)
        return {
            "angle1": first,
            "angle2": (first + apart) % (2 * math.pi),
            **_draw_strengths(rule, timing, B, generator),
        }
    if rule.kind == "sample":
        match = _coin(B, generator)
        apart = _apart(B, generator, math.pi / 9, 17 * math.pi / 9)
        second = torch.where(match == 1, first, (first + apart) % (2 * math.pi))
    else:
        second = draw_angles(B, generator)
        if timing == "yang":
            first, second = (_to_centres(angle, YANG_CATEGORY_ANGLES) for angle in (first, second))
        match = _same_half(first, second)
    modalities = {f"modality{i}": _coin(B, generator) + 1 for i in (1, 2)}
    return {"angle1": first, "angle2": second, **modalities, "match": match}


def grid_conditions(rule: Rule, B: int) -> dict[str, Tensor]:
    """Conditions of B trials with evenly spaced angles, going through modalities, strengths and matches in turn."""
    trial = torch.arange(B)
    first = draw_angles(B, None)
    if rule.kind == "single":
        return {"angle": first, "modality": trial % 2 + 1}
    opposite = (first + math.pi) % (2 * math.pi)
    if rule.kind in ("decision", "context"):
        one = torch.tensor(GRID_FIRST, dtype=torch.float64)[trial % 4]
        two = torch.tensor(GRID_SECOND, dtype=torch.float64)[trial // 4 % 4]
        if rule.kind == "decision":
            strengths = {"strength1": 1 + one, "strength2": 1 - one}
        else:
            strengths = dict(zip(NAMES["context"][2:], (1 + one, 1 - one, 1 + two, 1 - two), strict=True))
        return {"angle1": first, "angle2": opposite, **strengths}
    match = trial % 2
    if rule.kind == "sample":
        second = torch.where(match == 1, first, opposite)
    else:  # 0.1π … 0.9π and 1.1π … 1.9π, away from the borders; the mirror image in the same half, or a half turn on
        place = 2 * (trial.double() + 0.5) / B
        half = place.floor()
        first = math.pi * (half + 0.1 + 0.8 * (place - half))
        second = torch.where(match == 1, math.pi * (2 * half + 1) - first, (first + math.pi) % (2 * math.pi))
    modalities = {"modality1": trial // 2 % 2 + 1, "modality2": trial // 4 % 2 + 1}
    return {"angle1": first, "angle2": second, **modalities, "match": match}


def _draw_strengths(rule: Rule, timing: str, B: int, generator: torch.Generator) -> dict[str, Tensor]:
    spans = COHERENCES[timing]
    span = spans["once" if rule.schedule == "once" else "delayed"]

    def pair() -> tuple[Tensor, Tensor]:
        """m + s c and m − s c, with m ~ U(0.8, 1.2) and s = ±1."""
        mean = from_uniform((0.8, 1.2), _uniform(B, generator))
        difference = from_uniform(span, _uniform(B, generator)) * _sign(B, generator)
        return mean + difference, mean - difference

    if rule.kind == "decision":
        return dict(zip(("strength1", "strength2"), pair(), strict=True))
    if rule.modality:
        return dict(zip(NAMES["context"][2:], (*pair(), *pair()), strict=True))
    strengths = {}
    for i, strength in enumerate(pair(), start=1):  # a (1 + d/2) and a (1 − d/2): the sum over modalities is 2a
        share = from_uniform(spans["sensory"], _uniform(B, generator)) * _sign(B, generator)
        strengths[f"strength{i}_modality1"] = strength * (1 + share / 2)
        strengths[f"strength{i}_modality2"] = strength * (1 - share / 2)
    return {name: strengths[name] for name in NAMES["context"][2:]}


def _same_half(a: Tensor, b: Tensor) -> Tensor:
    """1 where both angles are below π or neither is, else 0."""
    return ((a < math.pi) == (b < math.pi)).long()


def _to_centres(angle: Tensor, count: int) -> Tensor:
    """The middle of the sector, of `count`, in which an angle lies."""
    return 2 * math.pi * ((angle * count / (2 * math.pi)).floor().clamp(max=count - 1) + 0.5) / count


def _apart(B: int, generator: torch.Generator, low: float, high: float) -> Tensor:
    return from_uniform((low, high), _uniform(B, generator)) * _sign(B, generator)


def _uniform(B: int, generator: torch.Generator) -> Tensor:
    return torch.rand(B, generator=generator, dtype=torch.float64)


def _coin(B: int, generator: torch.Generator) -> Tensor:
    """0 or 1, equally likely."""
    return torch.randint(2, (B,), generator=generator)


def _sign(B: int, generator: torch.Generator) -> Tensor:
    return 2.0 * _coin(B, generator).double() - 1.0
