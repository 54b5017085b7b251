"""How far the NTK moves between checkpoints, from products of the kernels of all with the same random probes."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import final

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from kpflow import flow
from kpflow.estimate.base import MIN_PROBES, jackknife
from kpflow.estimate.products import NotFiniteError, Products, gram, inner, signs
from kpflow.estimate.sketch import orthonormal_rows, project_out
from kpflow.states import Linearisation

__all__ = ["SINCE", "Images", "Movement", "Probes"]

SINCE = ("first", "previous")
"""The names along the axis `since`: the checkpoints that one is compared with."""

NAMES = tuple(f"kernel_{name}{suffix}" for name in ("change", "alignment") for suffix in ("", "_error"))


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """What an NTK Θ makes of probes: W = Θ Q, its core Qᵀ W, and R = P Θ P g with P = I − Q Qᵀ.

    Args:
        held: W, shape `[Q, N]`.
        core: Qᵀ W.
        rest: R, shape `[S, N]`.
    """

    held: Float[Tensor, "Q N"]
    core: Float[Tensor, "Q Q"]
    rest: Float[Tensor, "S N"]

    def minus(self, other: "Images") -> "Images":
        """Those of the difference of two NTKs: taken of their squares it would be lost in rounding."""
        return Images(self.held - other.held, self.core - other.core, self.rest - other.rest)

    def inner(self, other: "Images") -> tuple[float, Float[Tensor, " S"]]:
        """⟨A, B⟩_F as the part that Q holds, and the samples whose mean is the rest; see `kpflow.estimate.sketch`."""
        held = 2 * inner(self.held, other.held).sum() - (self.core * other.core).sum()
        return float(held), inner(self.rest, other.rest).cpu()


@final
class Probes:
    """Random signs g, and a basis Q of the leading range of the first checkpoint's NTK: the same for all checkpoints.

    Args:
        first: The linearised state equation at the first checkpoint.
        budget: Products with each NTK, at least 12; a third goes to the basis.
        seed: Of the signs.
    """

    def __init__(self, first: Linearisation, budget: int, seed: int) -> None:
        """Take the products that make Q."""
        ntk, budget = flow.Ntk(first), max(budget, MIN_PROBES * 3 // 2)
        generator = torch.Generator(ntk.in_space.device).manual_seed(seed)
        starts = signs(ntk.in_space, budget // 3, generator)
        self.basis = orthonormal_rows(Products(ntk)(starts), starts[:0])
        self.signs = project_out(signs(ntk.in_space, budget - budget // 3, generator), self.basis)

    def images(self, linearisation: Linearisation) -> Images | None:
        """What the NTK of a checkpoint makes of them; None if that is not finite."""
        product = Products(flow.Ntk(linearisation))
        try:
            held, rest = product(self.basis), product(self.signs)
        except NotFiniteError:
            return None
        return Images(held, gram(self.basis, held), project_out(rest, self.basis))


@final
class Movement:
    """How far the NTK is from that of the first checkpoint, and of the one before it, for checkpoints in order.

    Args:
        linearise: From a training step to the linearised state equation there, on the same trials.
        first: The step of the first checkpoint.
        budget: Products with each NTK, at least 12.
        seed: Of the probes.

    Example:
        >>> import kpflow as kp
        >>> lin = kp.linearise(torch.nn.GRU(1, 4, batch_first=True), torch.ones(2, 3, 1))
        >>> found = Movement(lambda step: lin, 0, budget=24, seed=0).between(0, 10)
        >>> found.kernel_change.values.tolist(), found.kernel_alignment.round(4).values.tolist()
        ([[0.0, 0.0]], [[1.0, 1.0]])
    """

    def __init__(self, linearise: Callable[[int], Linearisation], first: int, *, budget: int, seed: int) -> None:
        """Nothing is computed yet."""
        self.first = first
        self._probes = functools.cache(lambda: Probes(linearise(first), budget, seed))
        self._images = functools.lru_cache(maxsize=3)(lambda step: self._probes().images(linearise(step)))

    @torch.no_grad()
    def between(self, previous: int, step: int) -> xr.Dataset:
        """The movement of the NTK Θ_t at `step` from Θ_s, on the axis `since`.

        `kernel_change` is ‖Θ_t − Θ_s‖_F / ‖Θ_s‖_F, 0 where the kernel stayed, and `kernel_alignment`
        ⟨Θ_t, Θ_s⟩_F / (‖Θ_t‖_F ‖Θ_s‖_F), 1 where it was scaled at most; each with its standard error, `…_error`. NaN
        where a product is not finite.
        """
        first, before, this = (self._images(at) for at in (self.first, previous, step))
        nothing = (math.nan,) * len(NAMES)
        rows = [
            nothing if this is None or other is None else (*_change(this, other), *_alignment(this, other))
            for other in (first, before)
        ]
        columns = zip(NAMES, zip(*rows, strict=True), strict=True)
        variables = {name: (("step", "since"), [column]) for name, column in columns}
        return xr.Dataset(variables, {"step": [step], "since": list(SINCE)})


def _change(this: Images, other: Images) -> tuple[float, float]:
    """‖A − B‖ / ‖B‖."""
    moved = this.minus(other)
    return _jackknife(lambda parts: (parts[..., 0] / parts[..., 1]).sqrt(), moved.inner(moved), other.inner(other))


def _alignment(this: Images, other: Images) -> tuple[float, float]:
    """⟨A, B⟩ / (‖A‖ ‖B‖)."""
    cosine = lambda parts: parts[..., 0] / parts[..., 1:].prod(-1).sqrt()  # noqa: E731
    return _jackknife(cosine, this.inner(other), this.inner(this), other.inner(other))


def _jackknife(function: Callable[[Tensor], Tensor], *parts: tuple[float, Tensor]) -> tuple[float, float]:
    """A function of inner products, each of a part that is held and the mean of samples."""
    held = torch.tensor([part for part, _ in parts], dtype=torch.float64)
    return jackknife(lambda mean: function(held + mean), torch.stack([samples for _, samples in parts], dim=1))
