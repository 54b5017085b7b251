"""SequentialDigits: handwritten digits that are seen pixel by pixel, or row by row."""

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpflow._checks import check_range

from .base import Task, check_flag, check_noise, trials_of
from .timing import consecutive
from .trials import Trials

__all__ = ["SequentialDigits"]

SIDE, CLASSES = 8, 10
HELD_OUT = 360  # the last ones


@final
@dataclasses.dataclass(frozen=True)
class SequentialDigits(Task):
    """Say which digit was shown, after seeing it pixel by pixel: a small sequential MNIST.

    The images are the 1797 of 8 × 8 pixels that scikit-learn brings, divided by 16, so that pixels lie in [0, 1]. One
    input shows the 64 pixels one after the other, row after row, T = 64; with `rows`, eight inputs show a row at a
    time, T = 8. With a `permutation_seed` the pixels of all images are first brought into one random order. Outputs
    are ten channels, whose target at the last step, the only one with weight, is the digit, one-hot.

    Random trials are drawn from the first 1437 images, each equally likely. On the grid, trial b is number b mod 360 of
    the other 360, so that `sample(360, mode="grid")` is the set to test on.

    One epoch, `image`, whose static input is 0, a blank pixel. Conditions: `digit`, and `image`, its number.

    A trial is right if the largest output at the last step is the digit's; `score` returns `accuracy`.

    Args:
        rows: Whether a row is shown at each step, and not a pixel.
        permutation_seed: Of the order of the pixels, or None for their own.
        sigma: Standard deviation of the noise per step.
        dt: Duration of a step, ms.
        tau: Time constant of the units, ms.

    Raises:
        ValueError: A parameter is out of range.
        TypeError: `rows` is no bool.
        ImportError: A trial is drawn, and scikit-learn is not installed.

    Source: Le, Jaitly & Hinton (2015) for sequential and permuted MNIST; the images are from Alpaydin & Kaynak (1998),
    Optical Recognition of Handwritten Digits, UCI.

    Example:
        >>> trials = SequentialDigits(rows=True).sample(360, mode="grid")
        >>> trials.inputs.shape, trials.conditions["digit"][:8].tolist()
        (torch.Size([360, 8, 8]), [2, 3, 4, 5, 6, 7, 8, 9])
    """

    rows: bool = False
    permutation_seed: int | None = None
    sigma: int | float = 0.0
    dt: int | float = 20.0
    tau: int | float = 20.0

    def __post_init__(self) -> None:
        check_flag("rows", self.rows)
        if self.permutation_seed is not None:
            check_range("permutation_seed", self.permutation_seed, 0, integer=True)
        check_noise(self)

    @property
    def name(self) -> str:
        return "sequential_digits"

    @property
    def input_labels(self) -> tuple[str, ...]:
        return tuple(f"column {i}" for i in range(SIDE)) if self.rows else ("pixel",)

    @property
    def output_labels(self) -> tuple[str, ...]:
        return tuple(f"digit {k}" for k in range(CLASSES))

    @property
    def epoch_names(self) -> tuple[str, ...]:
        return ("image",)

    @property
    def condition_names(self) -> tuple[str, ...]:
        return ("digit", "image")

    @property
    def noise_std(self) -> float:
        return float(self.sigma)

    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:  # noqa: ARG002
        images, digits = _images()
        first = len(images) - HELD_OUT
        if generator is None:
            image = first + torch.arange(B) % HELD_OUT
        else:
            image = torch.randint(first, (B,), generator=generator)
        inputs = images[image][:, self._order()].reshape(B, -1, self.num_inputs)
        targets = torch.zeros(B, inputs.shape[1], CLASSES, dtype=torch.float64)
        targets[torch.arange(B), -1, digits[image]] = 1
        mask = torch.zeros_like(targets)
        mask[:, -1] = 1
        return trials_of(
            self,
            inputs=inputs,
            targets=targets,
            mask=mask,
            epochs=consecutive(self.epoch_names, torch.full((B, 1), inputs.shape[1])),
            conditions={"digit": digits[image], "image": image},
        )

    def _order(self) -> Int[Tensor, " pixels"]:
        """The order in which the pixels are shown."""
        if self.permutation_seed is None:
            return torch.arange(SIDE**2)
        return torch.randperm(SIDE**2, generator=torch.Generator().manual_seed(self.permutation_seed))

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:  # noqa: ARG002
        return zeros[:, None].repeat(1, self.num_inputs)

    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        right = outputs[:, -1].argmax(dim=1) == trials.targets[:, -1].argmax(dim=1)
        return {"accuracy": float(right.double().mean())}


@functools.cache
def _images() -> tuple[Float[Tensor, "n pixels"], Int[Tensor, " n"]]:
    """All images, row after row, and their digits."""
    try:
        datasets = importlib.import_module("sklearn.datasets")  # takes a second, which other tasks need not
    except ImportError as error:
        raise ImportError(
            "SequentialDigits needs scikit-learn, which is not installed. Install it with pip install 'kpflow[digits]'."
        ) from error
    pixels, digits = datasets.load_digits(return_X_y=True)
    return torch.as_tensor(pixels, dtype=torch.float64) / 16, torch.as_tensor(digits, dtype=torch.int64)
