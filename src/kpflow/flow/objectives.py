"""Several objectives on one model: where on the way from error to change they help or hinder each other."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow._checks import check_one_of, check_positive
from kpflow.states import Linearisation

from .response import error_signal

__all__ = ["STAGES", "Objectives", "objectives"]

STAGES = ("error", "adjoint", "gradient", "immediate", "change")
"""∂L/∂S, Pᵀ ∂L/∂S, ∂L/∂θ, J ∂L/∂θ, P J ∂L/∂θ."""

ENTRIES = 2**18
"""Entries that are converted to float64 at once: they stay in the cache, and more are up to five times slower."""

MEMORY = 4 * 2**30

Vectors = Float[Tensor, "K *shape"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Objectives:
    """Objectives L_i on one linearised model, their gradients, and how they align at each stage.

    A gradient step on L_j moves the states by −η P J g_j with g_j = ∂L_j/∂θ, and so L_i by −η ⟨g_i, g_j⟩. The stages on
    this way are those of `STAGES`; where two objectives turn towards or against each other between "error" and
    "adjoint", or "immediate" and "change", P does it; between "adjoint" and "immediate" K does.

    Args:
        linearisation: The linearised state equation.
        names: Of the K objectives.
        losses: L_i, shape `[K]`.
        errors: ∂L_i/∂y by the outputs (by the states, for objectives of states), shape `[K, *shape]`.
        gradients: g_i, flat in the space of the parameters, shape `[K, P]`.
        alignments: For each stage the cosines between the objectives, shape `[K, K]`, float64.
        of_states: Whether the objectives are functions of the states.
    """

    linearisation: Linearisation
    names: tuple[str, ...]
    losses: Float[Tensor, " K"]
    errors: Tensor
    gradients: Float[Tensor, "K P"]
    alignments: Mapping[str, Float[Tensor, "K K"]]
    of_states: bool

    @property
    def interference(self) -> Float[Tensor, "K K"]:
        """−⟨g_i, g_j⟩, the change of L_i by a gradient step on L_j for each unit of η; positive where j hinders i."""
        return -_inner(self.gradients, self.gradients)

    def at(self, stage: str, names: Sequence[str] | None = None) -> Tensor:
        """The vectors of some objectives (all, if none are named) at a stage, shape `[k, *shape]`.

        Raises:
            ValueError: There is no such stage or objective.
        """
        check_one_of("stage", stage, STAGES)
        for name in names or ():
            check_one_of("names", name, self.names)
        chosen = [self.names.index(name) for name in (self.names if names is None else names)]
        lin, gradients = self.linearisation, self.gradients[chosen]
        if stage == "gradient":
            return gradients
        if stage == "immediate":
            return lin.parameter_jvp(gradients)
        if stage == "change":
            return lin.state_jvp(gradients)
        error = _of_states(lin, self.errors[chosen], self.of_states)
        return error if stage == "error" else lin.propagate_adjoint(error)

    def __repr__(self) -> str:
        pairs = len(self.names) * (len(self.names) - 1)
        off = {stage: float((cos.sum() - cos.trace()) / max(pairs, 1)) for stage, cos in self.alignments.items()}
        shown = ", ".join(f"{stage} {value:.3g}" for stage, value in off.items())
        return f"Objectives({', '.join(self.names)}; mean cosine between two: {shown})"


def objectives(
    linearisation: Any,
    losses: Any,
    *,
    of: str = "outputs",
    memory: int = MEMORY,
) -> Objectives:
    """Compare objectives on one model: tasks, epochs, output channels or groups of trials (arXiv 2507.06381).

    All go through Pᵀ, Jᵀ, J and P together, as one block of probes. Where the vectors of all would take more than
    `memory`, pairs of smaller blocks are compared and their vectors are made again.

    Args:
        linearisation: The linearised state equation, a `Linearisation` on the trials of all objectives.
        losses: Functions by name, from the model's outputs (or the states, with `of="states"`), batch first, to a
            scalar. Each may look at some trials, times or channels only.
        of: "outputs" or "states".
        memory: Bytes that the vectors in state space may take.

    Raises:
        TypeError: `linearisation` is none, such as a list of several, or `losses` are not functions by name.
        ValueError: No objective, no outputs, a loss fails or is no scalar, does not depend on its argument, is not
            finite, or has zero error or a zero gradient: it has no direction then.

    Example:
        >>> import kpflow as kp
        >>> lin = kp.linearise(torch.nn.GRU(1, 4, batch_first=True), torch.ones(4, 3, 1))
        >>> both = objectives(lin, {"early": lambda y: y[:, 0].sum(), "late": lambda y: y[:, 2].sum()})
        >>> float(both.alignments["error"][0, 1]), both.interference.shape
        (0.0, torch.Size([2, 2]))
    """
    check_one_of("of", of, ("outputs", "states"))
    check_positive("memory", memory, integer=True)
    if not isinstance(linearisation, Linearisation):
        raise TypeError(
            f"`linearisation` must be that of kp.linearise; got {type(linearisation).__name__}. Objectives are "
            "compared on one model and one batch: linearise the trials of all of them together."
        )
    if not isinstance(losses, Mapping) or not all(callable(loss) for loss in losses.values()):
        raise TypeError(f"`losses` must map names to functions of the outputs; got {losses!r}. Give {{'name': loss}}.")
    if not losses:
        raise ValueError("`losses` must hold at least one objective by name; got none.")
    readout = linearisation.readout
    if of == "outputs" and readout is None:
        raise ValueError('The model has no outputs. Give losses of the states, with of="states".')
    at = linearisation.states if of == "states" or readout is None else readout.outputs
    signals = [_signal(name, loss, at) for name, loss in losses.items()]
    names, errors = tuple(losses), torch.stack([error for _, error in signals])
    of_states = of == "states"
    gradients = torch.zeros(len(names), linearisation.parameters.size, dtype=at.dtype, device=at.device)

    def backward(rows: slice) -> dict[str, Tensor]:
        error = _of_states(linearisation, errors[rows], of_states)
        adjoint = linearisation.propagate_adjoint(error)
        gradients[rows] = linearisation.parameter_vjp(adjoint)
        if not of_states and readout is not None:
            gradients[rows] += readout.parameter_vjp(errors[rows])
        return {"error": error, "adjoint": adjoint}

    def forward(rows: slice) -> dict[str, Tensor]:
        immediate = linearisation.parameter_jvp(gradients[rows])
        return {"immediate": immediate, "change": linearisation.propagate(immediate)}

    blocks = _blocks(len(names), 2 * linearisation.states.nbytes, memory)
    products = _products(backward, blocks, len(names))
    products["gradient"] = _inner(gradients, gradients)
    products |= _products(forward, blocks, len(names))
    alignments = {stage: _cosines(products[stage], names, stage) for stage in STAGES}
    values = torch.tensor([value for value, _ in signals], dtype=torch.float64)
    return Objectives(linearisation, names, values, errors, gradients, alignments, of_states)


def _signal(name: str, loss: Callable[[Tensor], Tensor], at: Tensor) -> tuple[float, Tensor]:
    """L and ∂L/∂y; an error names the objective."""
    try:
        value, error = error_signal(loss, at)
    except Exception as problem:
        raise ValueError(
            f"`losses[{name!r}]` fails on what it is handed, shape {tuple(at.shape)}: {problem} All objectives are "
            "functions of the same outputs; select trials, times and channels within the loss."
        ) from problem
    if not bool(error.any()):
        raise ValueError(
            f"`losses[{name!r}]` has zero error: its mask is empty, or it is at its minimum already. Leave it out."
        )
    return value, error


def _of_states(linearisation: Linearisation, errors: Tensor, of_states: bool) -> Tensor:
    readout = linearisation.readout
    return errors if of_states or readout is None else readout.state_vjp(errors)


def _blocks(count: int, each: int, memory: int) -> list[slice]:
    """All objectives together if they fit, else blocks of which two fit."""
    size = count if count * each <= memory else max(1, memory // (2 * each))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _products(stages: Callable[[slice], dict[str, Tensor]], blocks: list[slice], count: int) -> dict[str, Tensor]:
    """Inner products of all pairs at the stages that a function gives for a block."""
    found: dict[str, Tensor] = {}
    for i, rows in enumerate(blocks):
        left = stages(rows)
        for j in range(i + 1):
            right = left if i == j else stages(blocks[j])
            for stage, vectors in left.items():
                table = found.setdefault(stage, torch.zeros(count, count, dtype=torch.float64))
                block = _inner(vectors, right[stage])
                table[rows, blocks[j]] = block
                table[blocks[j], rows] = block.mT
            del right
        del left
    return found


def _inner(left: Vectors, right: Vectors) -> Float[Tensor, "K L"]:
    """⟨left_i, right_j⟩ in float64, on the CPU."""
    total = torch.zeros(len(left), len(right), dtype=torch.float64, device=left.device)
    length = max(1, ENTRIES // (len(left) + len(right)))
    pieces = zip(left.flatten(1).split(length, dim=1), right.flatten(1).split(length, dim=1), strict=True)
    for one, other in pieces:
        rows = one.double()
        total += rows @ (rows if left is right else other.double()).mT
    return total.cpu()


def _cosines(products: Float[Tensor, "K K"], names: tuple[str, ...], stage: str) -> Float[Tensor, "K K"]:
    sizes = products.diagonal().sqrt()
    nothing = [name for name, size in zip(names, sizes.tolist(), strict=True) if not size > 0]
    if nothing:
        raise ValueError(
            f"The objectives {nothing} vanish at the stage {stage!r}: no trained parameter moves them, and their "
            "alignment is not defined. Leave them out, or unfreeze parameters."
        )
    return (products / torch.outer(sizes, sizes)).clamp(-1, 1)
