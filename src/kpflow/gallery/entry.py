"""A learning system of the gallery: how it is made, run, predicted and checked."""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar, final

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Check",
    "Checks",
    "Entry",
    "Line",
    "Panel",
    "Result",
    "curve",
    "formula",
    "identity",
    "monte_carlo",
    "pair",
    "points",
]

System = TypeVar("System")
Observed = TypeVar("Observed")
Predicted = TypeVar("Predicted")

Kind = Literal["identity", "formula", "monte-carlo"]
"""An identity and a formula hold for any seed; a Monte Carlo check's tolerance is set from its spread over seeds."""


@final
@dataclasses.dataclass(frozen=True)
class Check:
    """One row of an entry's table.

    Args:
        what: In words.
        predicted: By the theory; where many numbers were compared, the one that agrees least.
        observed: In the run.
        error: |observed − predicted|, divided by |predicted| if `relative`; for a bound, by how much it is missed.
        tolerance: The most that the error may be.
        relative: Whether the error is relative.
        kind: "identity", "formula" or "monte-carlo".
        sign: "=", "≥" or "≤", how observed and predicted should stand.
        spread: The errors with seeds 0, 1, …, of a Monte Carlo check, from which its tolerance is set.
    """

    what: str
    predicted: float
    observed: float
    error: float
    tolerance: float
    relative: bool
    kind: Kind
    sign: str = "="
    spread: tuple[float, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        unit = " relative" if self.relative else ""
        least, most = min(self.spread, default=0.0), max(self.spread, default=0.0)
        seeds = f", errors over {len(self.spread)} seeds {least:.2g} to {most:.2g}" if self.spread else ""
        return (
            f"{verdict}  {self.what}: {self.observed:.6g} {self.sign} {self.predicted:.6g} "
            f"(error {self.error:.2g} ≤ {self.tolerance:.2g}{unit}, {self.kind}{seeds})"
        )


Numbers = Tensor | np.ndarray | float | int | Sequence[float] | Sequence[int]


@final
@dataclasses.dataclass(frozen=True)
class Checks:
    """Makes the checks of one kind.

    Args:
        kind: Of the checks.

    Example:
        >>> print(Checks("formula").close("rate", [1.0, 2.0], [1.0, 2.1], 0.1, relative=True))
        passed  rate: 2.1 = 2 (error 0.05 ≤ 0.1 relative, formula)
    """

    kind: Kind

    def close(
        self, what: str, predicted: Numbers, observed: Numbers, tolerance: float = 0.0, *, relative: bool = False
    ) -> Check:
        """Observed numbers are those that were predicted, all of them."""
        expected, found = torch.broadcast_tensors(_numbers(predicted), _numbers(observed))
        error = (found - expected).abs()
        if relative:
            error = error / expected.abs()
        worst = int(error.nan_to_num(nan=math.inf).flatten().argmax())
        predicted_worst, observed_worst, miss = (float(part.flatten()[worst]) for part in (expected, found, error))
        return Check(what, predicted_worst, observed_worst, miss, tolerance, relative, self.kind)

    def at_least(self, what: str, bound: float, observed: float | Tensor) -> Check:
        """A number is no smaller than a bound."""
        value = float(observed)
        return Check(what, bound, value, bound - value, 0.0, False, self.kind, "≥")

    def at_most(self, what: str, bound: float, observed: float | Tensor) -> Check:
        """A number is no larger than a bound."""
        value = float(observed)
        return Check(what, bound, value, value - bound, 0.0, False, self.kind, "≤")


identity = Checks("identity")
formula = Checks("formula")
monte_carlo = Checks("monte-carlo")


@final
@dataclasses.dataclass(frozen=True)
class Line:
    """Points of one series.

    Args:
        label: For the legend; empty for none of its own.
        x: Abscissae.
        y: Ordinates, as many.
        observed: Whether it is drawn as points (observed) or as a curve (predicted).
        group: Lines with the same number have the same colour, so that points lie on their curve.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    observed: bool
    group: int = 0

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"`x` and `y` of {self.label!r} must be as many; got {len(self.x)} and {len(self.y)}.")


def points(label: str, x: Numbers, y: Numbers, group: int = 0, *, observed: bool = True) -> Line:
    """A series that was observed, from tensors or lists."""
    return Line(label, tuple(_numbers(x).flatten().tolist()), tuple(_numbers(y).flatten().tolist()), observed, group)


def curve(label: str, x: Numbers, y: Numbers, group: int = 0) -> Line:
    """A series that was predicted, from tensors or lists."""
    return points(label, x, y, group, observed=False)


def pair(
    label: str, x: Numbers, predicted: Numbers, observed: Numbers, group: int = 0, *, every: int = 1
) -> tuple[Line, Line]:
    """A curve, and the points that should lie on it, of which every so many are shown."""
    seen = points("", _numbers(x)[::every], _numbers(observed)[::every], group)
    return curve(label, x, predicted, group), seen


@final
@dataclasses.dataclass(frozen=True)
class Panel:
    """A picture of some series.

    Args:
        title: What is seen.
        x: Label of the abscissa.
        y: Label of the ordinate.
        lines: The series.
        log: Which axes are logarithmic: "", "x", "y" or "xy".
    """

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    log: Literal["", "x", "y", "xy"] = ""

    @staticmethod
    def of(title: str, x: str, y: str, *lines: Line, log: Literal["", "x", "y", "xy"] = "") -> "Panel":
        """From its series one by one."""
        return Panel(title, x, y, lines, log)


@final
@dataclasses.dataclass(frozen=True)
class Result:
    """What became of one entry.

    Args:
        name: Of the entry.
        title: Of the entry.
        seed: Of all that is random in it.
        checks: Its table.
        panels: The observed beside the predicted, and the view through K and P.
        seconds: What it took.
    """

    name: str
    title: str
    seed: int
    checks: tuple[Check, ...]
    panels: tuple[Panel, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)

    def record(self) -> dict[str, Any]:
        """Everything as plain numbers, words, lists and dicts, for figures and files."""
        return dataclasses.asdict(self) | {"passed": self.passed}

    def __str__(self) -> str:
        good = sum(check.passed for check in self.checks)
        rows = "\n".join(f"  {check}" for check in self.checks)
        return f"{self.title} ({self.name}, seed {self.seed}): {good} of {len(self.checks)} checks passed\n{rows}"


class Entry(abc.ABC, Generic[System, Observed, Predicted]):
    """A small self-contained learning system with its prediction.

    A subclass is final, in a file of its own, and is named in `kpflow.gallery.registry`. Its docstring states the
    system and the claim. All that is random comes from the seed.
    """

    name: str
    """By which it is called."""
    title: str
    """In a few words."""
    paper: str
    """Authors, year, arXiv number."""
    kernels: str
    """One sentence: what K and P add."""
    omits: str
    """What of the paper is not covered."""

    @abc.abstractmethod
    def make(self, seed: int = 0, *, short: bool = False, broken: bool = False) -> System:
        """Model, data, initialisation and learning rule.

        Args:
            seed: Of all that is random.
            short: A smaller form that takes a second or two, with the same checks.
            broken: With a deliberate mistake in what is run (a wrong sign, a wrong rate): then a check must fail.

        Raises:
            ValueError: A parameter is outside of where the prediction holds; says why.
        """

    @abc.abstractmethod
    def run(self, system: System) -> Observed:
        """Trajectories over training."""

    @abc.abstractmethod
    def predict(self, system: System) -> Predicted:
        """The closed form, without what was run."""

    @abc.abstractmethod
    def check(self, system: System, observed: Observed, predicted: Predicted) -> Sequence[Check]:
        """The table."""

    @abc.abstractmethod
    def panels(self, system: System, observed: Observed, predicted: Predicted) -> tuple[Panel, Panel]:
        """Observed points on the predicted curve; spectrum, effective rank or alignment of K, P or the NTK."""


def _numbers(values: Numbers | Mapping[str, float]) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64).detach().cpu()
