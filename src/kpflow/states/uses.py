"""Uses of weights: the linear map from a weight to the state that it acts on."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor

from .base import LinearSite
from .tapes import Tape, recording

__all__ = ["Contraction", "Derived", "Factor", "Gathered", "Linear", "Lookup", "Operand", "Use", "View"]

Named = Mapping[str, Tensor]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
    """A linear map from a weight `[G, U, F]` to a state, ⊕_g M_g ⊗ I_U: what it reaches is ⊕_g (M_g M_gᵀ) ⊗ I.

    Args:
        features: M, shape `[G, N, F]`.
        places: Number of the state entry that position n, group g and unit u moves, shape `[N, G, U]`.
        entries: Number of the weight's entry at group g, unit u, feature f, shape `[G, U, F]`.
    """

    features: Tensor
    places: Tensor
    entries: Tensor


class Linear(abc.ABC):
    """A linear map from a weight to a state, for blocks of probes."""

    @abc.abstractmethod
    def jvp(self, weight: Tensor) -> Tensor:
        """`[S, *weight shape]` to `[S, *state shape]`."""

    @abc.abstractmethod
    def vjp(self, state: Tensor) -> Tensor:
        """The adjoint."""

    @abc.abstractmethod
    def factor(self) -> Factor:
        """Its Kronecker structure."""

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Bytes that its tensors take."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Contraction(Linear):
    """out[o] = Σ features[f] weight[w], axes by letters: matrix products, convolutions, products entry by entry.

    A letter of features and out alone is a position (N); of weight and out alone a unit (U); of all three a group (G);
    of features and weight alone is summed over (F).

    Args:
        features: What the weight sees.
        axes: Letters of the axes of features, weight and out.
        sizes: Size of every letter.
        shape: Shape of the state, whose entries in row-major order are those of out.
    """

    features: Tensor
    axes: tuple[str, str, str]
    sizes: Mapping[str, int]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        """Lay the features out as matrices of positions by what is summed over, so that no product need do it."""
        seen, by, out = self.axes
        order = sorted(range(len(seen)), key=lambda d: (seen[d] not in out, seen[d] not in by))  # groups first
        laid = self.features.permute(order).contiguous().permute([order.index(d) for d in range(len(seen))])
        object.__setattr__(self, "features", laid)

    def jvp(self, weight: Tensor) -> Tensor:
        seen, by, out = self.axes
        result = torch.einsum(f"{seen},Z{by}->Z{out}", self.features, weight)
        return result.reshape(len(weight), *self.shape)

    def vjp(self, state: Tensor) -> Tensor:
        seen, by, out = self.axes
        rows = state.reshape(len(state), *(self.sizes[letter] for letter in out))
        return torch.einsum(f"{seen},Z{out}->Z{by}", self.features, rows)

    def factor(self) -> Factor:
        seen, by, out = self.axes
        groups = "".join(letter for letter in by if letter in seen and letter in out)
        summed = "".join(letter for letter in by if letter in seen and letter not in out)
        units = "".join(letter for letter in by if letter not in seen)
        positions = "".join(letter for letter in out if letter not in by)
        wide = torch.einsum(f"{seen},{positions}->{groups}{positions}{summed}", self.features, self._ones(positions))
        G, N, F, U = (self._count(letters) for letters in (groups, positions, summed, units))
        places = self._numbered(out).permute([out.index(letter) for letter in positions + groups + units])
        entries = self._numbered(by).permute([by.index(letter) for letter in groups + units + summed])
        return Factor(wide.reshape(G, N, F), places.reshape(N, G, U), entries.reshape(G, U, F))

    @property
    def nbytes(self) -> int:
        return self.features.nbytes

    def _count(self, letters: str) -> int:
        count = 1
        for letter in letters:
            count *= self.sizes[letter]
        return count

    def _ones(self, letters: str) -> Tensor:
        return self.features.new_ones([self.sizes[letter] for letter in letters])

    def _numbered(self, letters: str) -> Tensor:
        numbers = torch.arange(self._count(letters), device=self.features.device)
        return numbers.reshape([self.sizes[letter] for letter in letters])


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Lookup(Linear):
    """out[n] = weight[index[n]], an embedding: its Gram matrix is the equality of tokens.

    Args:
        index: Rows of the weight, shape `[*N]`.
        seen: 1 for a position whose row learns and 0 for padding, shape `[*N]`.
        rows: Number of rows of the weight.
        width: Entries of a row.
        shape: Shape of the state, `[*N, width]` in row-major order.
    """

    index: Tensor
    seen: Tensor
    rows: int
    width: int
    shape: tuple[int, ...]

    def jvp(self, weight: Tensor) -> Tensor:
        found = weight.reshape(len(weight), self.rows, self.width)[:, self.index.flatten()]
        return (found * self.seen.reshape(-1, 1)).reshape(len(weight), *self.shape)

    def vjp(self, state: Tensor) -> Tensor:
        rows = state.reshape(len(state), -1, self.width) * self.seen.reshape(-1, 1)
        return rows.new_zeros(len(state), self.rows, self.width).index_add_(1, self.index.flatten(), rows)

    def factor(self) -> Factor:
        tokens, number = self.index.flatten().unique(return_inverse=True)
        N, D = number.numel(), self.width
        features = self.seen.new_zeros(1, N, len(tokens))
        features[0, torch.arange(N, device=number.device), number] = self.seen.flatten()
        places = torch.arange(N * D, device=number.device).reshape(N, 1, D)
        entries = (tokens.unsqueeze(0) * D + torch.arange(D, device=number.device).unsqueeze(1)).unsqueeze(0)
        return Factor(features, places, entries)

    @property
    def nbytes(self) -> int:
        return self.index.nbytes + self.seen.nbytes


class Operand(abc.ABC):
    """A weight as an operation sees it, made of parameters, with its derivative."""

    @property
    @abc.abstractmethod
    def names(self) -> tuple[str, ...]:
        """The parameters that it is made of."""

    @property
    @abc.abstractmethod
    def entries(self) -> Tensor | None:
        """Number of the entry of its one parameter that each of its entries is; None if it is not made that way."""

    @abc.abstractmethod
    def jvp(self, parameters: Named) -> Tensor:
        """Parameters `[S, *shape]` by name to the weight `[S, *weight shape]`."""

    @abc.abstractmethod
    def add_vjp(self, weight: Tensor, parameters: dict[str, Tensor]) -> None:
        """Add the adjoint to zero-initialised blocks of parameters."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class View(Operand):
    """A weight that is a view of one parameter: transposed, split, sliced, reshaped.

    Args:
        name: The parameter.
        shape: Of the weight.
        stride: Of the weight, in entries of the parameter in row-major order.
        offset: Its first entry.
    """

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def entries(self) -> Tensor:
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return torch.arange(self.offset, self.offset + last + 1).as_strided(self.shape, self.stride)

    def jvp(self, parameters: Named) -> Tensor:
        return self.of(parameters[self.name])

    def add_vjp(self, weight: Tensor, parameters: dict[str, Tensor]) -> None:
        self.of(parameters[self.name]).add_(weight)

    def of(self, block: Tensor) -> Tensor:
        """The weights in a block `[S, *parameter shape]` whose rows are contiguous, as a view."""
        start = block.storage_offset() + self.offset
        return block.as_strided((len(block), *self.shape), (block.stride(0), *self.stride), start)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Gathered(Operand):
    """A weight whose entries are entries of one parameter: rows picked by constant indices, copies, repetitions.

    Args:
        name: The parameter.
        numbers: Number of the parameter's entry that each entry of the weight is, of the weight's shape.
    """

    name: str
    numbers: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def entries(self) -> Tensor:
        return self.numbers

    def jvp(self, parameters: Named) -> Tensor:
        block = parameters[self.name]
        return block.flatten(1)[:, self.numbers.flatten()].reshape(len(block), *self.numbers.shape)

    def add_vjp(self, weight: Tensor, parameters: dict[str, Tensor]) -> None:
        block = parameters[self.name].view(len(weight), -1)
        block.index_add_(1, self.numbers.flatten(), weight.reshape(len(weight), -1))


@final
class Derived(Operand):
    """A weight computed from parameters: weight norm, low-rank adaptation, masks.

    Args:
        function: From parameters by name to the weight.
        parameters: Their values.
    """

    def __init__(self, function: Callable[[Named], Tensor], parameters: Named) -> None:
        self._function = function
        self._values = dict(parameters)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._values)

    @property
    def entries(self) -> None:
        return

    def jvp(self, parameters: Named) -> Tensor:
        return self._tape.jvp([parameters[name] for name in self._values])[0]

    def add_vjp(self, weight: Tensor, parameters: dict[str, Tensor]) -> None:
        for name, value in zip(self._values, self._tape.vjp([weight]), strict=True):
            parameters[name].add_(value)

    @functools.cached_property
    def _tape(self) -> Tape:
        with recording():
            leaves = {name: value.detach().requires_grad_() for name, value in self._values.items()}
            return Tape([self._function(leaves)], list(leaves.values()))


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """One place where a weight acts on a state: J's part there is the linear map after the operand's derivative.

    Args:
        operand: The weight, made of parameters.
        linear: What the operation does with it.
    """

    operand: Operand
    linear: Linear

    def jvp(self, parameters: Named) -> Tensor:
        """Parameters by name to the state, `[S, *state shape]`."""
        return self.linear.jvp(self.operand.jvp(parameters))

    def site(self, start: int) -> LinearSite:
        """Its Kronecker structure, for a state that starts at an entry of the flat axis."""
        factor, numbers = self.linear.factor(), self.operand.entries
        entries = None if numbers is None else numbers.to(factor.entries.device).flatten()[factor.entries]
        return LinearSite(factor.features, factor.places + start, self.operand.names, entries)

    def add_vjp(self, state: Tensor, parameters: dict[str, Tensor]) -> None:
        """Add Jᵀ q to blocks of parameters."""
        self.operand.add_vjp(self.linear.vjp(state), parameters)
