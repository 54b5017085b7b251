"""The NTK of a graph's outputs, assembled from its Kronecker cores and never from the Jacobian."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TypeVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpflow.operators import Exact, Structure
from kpflow.operators.blocks import ranges
from kpflow.states import Linearisation, LinearSite, Readout, Trials

from .merged import merged_sites

__all__ = ["OutputStructure", "output_structure"]

MEMORY = 2**30
"""Bytes that an exact quantity may take at once; what needs more is not offered."""

CHUNK_BYTES = 2**26
"""Bytes of what the weights of some units receive that are held at once."""

BLOCKS = 8
"""Blocks of rows of a symmetric matrix; those below the diagonal are not computed (a number found by trial)."""

Value = TypeVar("Value")


@final
@dataclasses.dataclass(frozen=True, eq=False)
class _Weight:
    """One site with its positions in order of trials.

    Args:
        features: M, shape `[G, B, L, F]` for L positions a trial.
        places: Numbers of the state's entries, shape `[B, L, G, U]`.
    """

    features: Float[Tensor, "G B L F"]
    places: Int[Tensor, "B L G U"]

    @property
    def work(self) -> int:
        """Multiplications of the weight in one product with J."""
        return self.features.numel() * self.places.shape[3]


@final
class OutputStructure(Structure):
    """Of the NTK of the outputs of a graph whose trials are independent.

    NTK[b, b'] = Σ over sites of Σ_{l, l'} ⟨m_bl, m_b'l'⟩ G_bl G_b'l'ᵀ, with m what the site's weights see at the
    positions l of trial b, and G = ∂y/∂S there: as many products with Pᵀ as a trial has outputs give all of G.

    Args:
        linearisation: The linearised state equation.
        readout: The map to the outputs, without parameters of its own.
        trials: Which trial the entries belong to.
        sites: The weights, each acting by itself.
    """

    def __init__(
        self, linearisation: Linearisation, readout: Readout, trials: Trials, sites: Sequence[LinearSite]
    ) -> None:
        self._linearisation = linearisation
        self._readout = readout
        self._outputs = _by_trial(trials.outputs, trials.count)  # type: ignore[arg-type]
        self._weights = tuple(_in_order(site, trials) for site in sites)

    def trace(self) -> Exact[float] | None:
        return self._exact(self._one_by_one, lambda: float(self._energies().sum()))

    def diagonal(self) -> Exact[Tensor] | None:
        return self._exact(self._one_by_one, self._diagonal)

    def matrix(self) -> Exact[Tensor] | None:
        """The whole matrix, in row-major order of the outputs."""
        return self._exact(self._all_pairs, self._matrix) if self._holds_matrix else None

    def squared_norm(self) -> Exact[float] | None:
        if not self._holds_matrix:
            return None
        return self._exact(self._all_pairs, lambda: float(self._matrix().square().sum(dtype=torch.float64)))

    def spectrum(self) -> Exact[Tensor] | None:
        if not self._holds_matrix:
            return None
        work = self._all_pairs + 10 * self._outputs.numel() ** 3
        return self._exact(work, lambda: torch.linalg.eigvalsh(self._matrix().double()).flip(0).clamp_min(0))

    def partial_trace(self, axes: tuple[str, ...]) -> None:  # noqa: ARG002 - of no axes
        return None

    def sampled_trace(self) -> None:
        return None

    def sampled_parts(self) -> None:
        return None

    def _exact(self, work: int, compute: Callable[[], Value]) -> Exact[Value] | None:
        """The quantity, unless the derivatives of all outputs do not fit; a product with one side goes through each."""
        if self._derivative_bytes > MEMORY:
            return None
        product = sum(weight.work for weight in self._weights)
        return Exact(self._outputs.shape[1] + work / product, compute)

    @property
    def _holds_matrix(self) -> bool:
        return 2 * self._outputs.numel() ** 2 * self._linearisation.states.element_size() <= MEMORY

    @property
    def _derivative_bytes(self) -> int:
        return self._outputs.shape[1] * self._linearisation.states.nbytes

    @property
    def _one_by_one(self) -> int:
        """Multiplications for every output by itself."""
        return sum(min(_gram_work(weight, self._outputs.shape[1])) for weight in self._weights)

    @property
    def _all_pairs(self) -> int:
        """Multiplications for all pairs of outputs."""
        pairs = self._outputs.numel() ** 2
        each = (w.places.shape[3] * (1 if w.places.shape[1] == 1 else w.features.shape[3]) for w in self._weights)
        return pairs * sum(each)

    @functools.cached_property
    def _derivatives(self) -> Float[Tensor, "O N"]:
        """∂y_bo/∂S of every trial's output o, for all trials at once: they do not meet."""
        lin, (B, O) = self._linearisation, self._outputs.shape
        seeds = self._readout.space.zeros(O).reshape(O, B * O)
        seeds.scatter_(1, self._outputs.mT, 1.0)
        return lin.propagate_adjoint(self._readout.state_vjp(seeds.reshape(O, *self._readout.space.shape)))

    def _at(self, weight: _Weight, group: int) -> Float[Tensor, "B O L U"]:
        """∂y/∂S on the entries that a group of a weight moves; a view where they lie at regular steps."""
        places = weight.places[:, :, group]  # [B, L, U]
        steps = _steps(places)
        if steps is None:
            return self._derivatives[:, places].transpose(0, 1)
        (B, L, U), rows = places.shape, self._derivatives.stride(0)
        first = self._derivatives.storage_offset() + int(places[0, 0, 0])
        shape, strides = (B, len(self._derivatives), L, U), (steps[0], rows, *steps[1:])
        return self._derivatives.as_strided(shape, strides, first)

    def _energies(self) -> Float[Tensor, "B O"]:
        """‖∂y_bo/∂θ‖², in float64."""
        total = torch.zeros(self._outputs.shape, dtype=torch.float64, device=self._outputs.device)
        for weight in self._weights:
            gram, received = _gram_work(weight, self._outputs.shape[1])
            energy = _energy_by_gram if gram <= received else _energy_by_weight
            for group, features in enumerate(weight.features):
                total += energy(features, self._at(weight, group))
        return total

    def _diagonal(self) -> Tensor:
        result = torch.empty(self._outputs.numel(), dtype=torch.float64, device=self._outputs.device)
        result[self._outputs.flatten()] = self._energies().flatten()
        return result.reshape(self._readout.space.shape)

    def _matrix(self) -> Float[Tensor, "BO BO"]:
        """The blocks on and above the diagonal, and their mirror images."""
        B, O = self._outputs.shape
        total = self._derivatives.new_zeros(B * O, B * O)
        blocks = [slice(t.start * O, t.stop * O) for t in ranges(B, -(-B // BLOCKS))]
        for weight in self._weights:
            add = _add_products if weight.places.shape[1] == 1 else _add_received
            for group, features in enumerate(weight.features):
                add(features, self._at(weight, group), total, blocks)
        for rows in blocks:
            total[rows.stop :, rows] = total[rows, rows.stop :].mT
        order = self._outputs.flatten().argsort()
        if not torch.equal(order, torch.arange(len(order), device=order.device)):
            total = total[order][:, order]
        return total


def output_structure(linearisation: Linearisation, names: Sequence[str]) -> OutputStructure | None:
    """Of the NTK of the outputs with respect to the parameters `names`, if it is the sum over sites.

    None where a weight acts in several ways or is computed from others, where a parameter acts on the outputs directly,
    and where trials are not independent.
    """
    readout = linearisation.readout
    if readout is None or readout.has_parameters or linearisation.linear_sites() is None:
        return None
    merged = merged_sites(linearisation, names)
    trials = linearisation.trials() if not merged.joint else None
    if trials is None or trials.outputs is None or not merged.alone:
        return None
    sites = list(merged.alone.values())
    return (
        OutputStructure(linearisation, readout, trials, sites) if all(_keeps(site, trials) for site in sites) else None
    )


def _keeps(site: LinearSite, trials: Trials) -> bool:
    """Whether each position of a site lies in one trial, and every trial has as many."""
    numbers = trials.states[site.places.flatten(1)]
    counts = numbers[:, 0].bincount(minlength=trials.count)
    return bool((numbers == numbers[:, :1]).all()) and bool((counts == counts[0]).all())


def _by_trial(numbers: Int[Tensor, " N"], count: int) -> Int[Tensor, "B K"]:
    """The places of the entries of every trial, which has as many as the others."""
    return numbers.argsort(stable=True).reshape(count, -1)


def _in_order(site: LinearSite, trials: Trials) -> _Weight:
    order = _by_trial(trials.states[site.places[:, 0, 0]], trials.count)  # [B, L]
    return _Weight(site.features[:, order], site.places[order])


def _steps(places: Int[Tensor, "B L U"]) -> list[int] | None:
    """The steps along the axes if the numbers go by steps."""
    first = places[0, 0, 0]
    steps = [int(places.select(d, 1)[0, 0] - first) if n > 1 else 0 for d, n in enumerate(places.shape)]
    expected = first.clone()
    for d, step in enumerate(steps):
        number = torch.arange(places.shape[d], device=places.device) * step
        expected = expected + number.reshape([-1 if e == d else 1 for e in range(3)])
    return steps if torch.equal(places, expected) and min(steps) >= 0 else None


def _gram_work(weight: _Weight, outputs: int) -> tuple[int, int]:
    """Multiplications for ‖∂y/∂W‖² from two Gram matrices over positions, and from what the weights receive."""
    G, B, L, F = weight.features.shape
    U = weight.places.shape[3]
    return G * B * L * L * (F + outputs * U), G * B * outputs * L * U * F


def _energy_by_gram(features: Float[Tensor, "B L F"], at: Float[Tensor, "B O L U"]) -> Float[Tensor, "B O"]:
    """Σ_{l, l'} ⟨m_l, m_l'⟩⟨g_l, g_l'⟩."""
    if features.shape[1] == 1:
        size = torch.linalg.vector_norm(features, dim=(1, 2), dtype=torch.float64)
        return (size.unsqueeze(1) * torch.linalg.vector_norm(at, dim=(2, 3), dtype=torch.float64)).square()
    gram = (features @ features.mT).unsqueeze(1)
    return (gram * (at @ at.mT)).sum((2, 3), dtype=torch.float64)


def _energy_by_weight(features: Float[Tensor, "B L F"], at: Float[Tensor, "B O L U"]) -> Float[Tensor, "B O"]:
    """‖Σ_l g_l m_lᵀ‖²."""
    B, O, _, U = at.shape
    total = torch.zeros(B, O, dtype=torch.float64, device=at.device)
    for units in ranges(U, _units_at_once(features, B * O)):
        received = _received(features, at[..., units])
        total += torch.linalg.vector_norm(received, dim=2, dtype=torch.float64).square()
    return total


def _received(features: Float[Tensor, "B L F"], at: Float[Tensor, "B O L u"]) -> Float[Tensor, "B O uF"]:
    """Σ_l g_l m_lᵀ."""
    rows = at.transpose(2, 3).flatten(1, 2)  # [B, O·u, L]
    return (rows @ features).unflatten(1, at.shape[1:4:2]).flatten(2)


def _add_products(
    features: Float[Tensor, "B 1 F"], at: Float[Tensor, "B O 1 U"], total: Tensor, blocks: Sequence[slice]
) -> None:
    """⟨m_b, m_b'⟩⟨g_bo, g_b'o'⟩ on and above the blocks of the diagonal."""
    O = at.shape[1]
    rows, seen = at.flatten(2).flatten(0, 1), features[:, 0]  # [B·O, U], [B, F]
    for some in blocks:
        trials = slice(some.start // O, some.stop // O)
        gram = (seen[trials] @ seen[trials.start :].mT)[:, None, :, None]  # [b, 1, b', 1]
        products = (rows[some] @ rows[some.start :].mT).unflatten(0, (-1, O)).unflatten(2, (-1, O))
        total[some, some.start :].unflatten(0, (-1, O)).unflatten(2, (-1, O)).addcmul_(products, gram)


def _add_received(
    features: Float[Tensor, "B L F"], at: Float[Tensor, "B O L U"], total: Tensor, blocks: Sequence[slice]
) -> None:
    """⟨Σ_l g_l m_lᵀ, Σ_l g_l m_lᵀ⟩ on and above the blocks of the diagonal, some units at a time."""
    B, O, _, U = at.shape
    for units in ranges(U, _units_at_once(features, B * O)):
        received = _received(features, at[..., units]).flatten(0, 1)  # [B·O, u·F]
        for rows in blocks:
            total[rows, rows.start :].addmm_(received[rows], received[rows.start :].mT)


def _units_at_once(features: Tensor, outputs: int) -> int:
    return max(1, CHUNK_BYTES // (outputs * features.shape[2] * features.element_size()))
