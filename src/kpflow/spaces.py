"""Space: the named axes, shape, dtype and device of what an operator takes and gives.

The glossary of axes, in docstrings and annotations alike:
B trial · T time · H unit · I input · O output · P parameter · S probe · K eigenpair · N state entries.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

__all__ = ["Part", "Space"]


@final
@dataclasses.dataclass(frozen=True)
class Part:
    """One named tensor of a space: its name, the names of its axes, and its shape."""

    name: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.shape):
            raise ValueError(f"`axes` must name every axis of `shape`; got axes {self.axes} for shape {self.shape}.")
        if len(set(self.axes)) != len(self.axes):
            raise ValueError(f"`axes` must differ from each other; got {self.axes}.")
        if any(size < 0 for size in self.shape):
            raise ValueError(f"`shape` must hold no negative size; got {self.shape}.")

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@final
@dataclasses.dataclass(frozen=True)
class Space:
    """A space of tensors: one part with a tensor shape, or several named parts on one flat axis.

    A recurrent state is one part with axes trial, time, unit. The parameters of a model are several parts, which lie
    one after the other on a flat axis, each in row-major order.

    Args:
        parts: The named tensors of the space.
        dtype: Of every vector of the space, floating-point.
        device: Of every vector of the space; "cuda" is resolved to the current card.
        flat: None for a space of one part with a tensor shape, else the name of the one flat axis.

    Raises:
        ValueError: No part, several parts without a flat axis, two parts of one name, or a negative size.
        TypeError: `dtype` is not a floating-point one.

    Example:
        >>> states = Space.of((2, 3, 4), ("trial", "time", "unit"))
        >>> states
        Space(trial 2 × time 3 × unit 4, float64)
        >>> parameters = Space.of_parts({"weight": (4, 4), "bias": (4,)}, axis="parameter")
        >>> parameters.shape, parameters.split(parameters.zeros())["weight"].shape
        ((20,), torch.Size([4, 4]))
    """

    parts: tuple[Part, ...]
    dtype: torch.dtype = torch.float64
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    flat: str | None = None

    def __post_init__(self) -> None:
        if not self.parts or (self.flat is None and len(self.parts) != 1):
            raise ValueError(f"A space needs one part, or several and a flat axis; got {len(self.parts)} parts.")
        names = [part.name for part in self.parts]
        if len(set(names)) != len(names):
            raise ValueError(f"The parts of a space must have different names; got {names}.")
        if not self.dtype.is_floating_point:
            raise TypeError(f"`dtype` must be a floating-point one; got {self.dtype}.")
        if self.device.type != "cpu":  # "cuda" is not equal to the "cuda:0" of a tensor made there, so ask a tensor
            object.__setattr__(self, "device", torch.empty(0, device=self.device).device)

    @staticmethod
    def of(
        shape: Sequence[int],
        axes: Sequence[str] | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> "Space":
        """Make the space of tensors of one `shape`; unnamed axes are called axis0, axis1, ..."""
        names = tuple(axes) if axes is not None else tuple(f"axis{i}" for i in range(len(shape)))
        return Space((Part("", names, tuple(shape)),), dtype, torch.device(device))

    @staticmethod
    def of_parts(
        shapes: Mapping[str, Sequence[int]],
        axis: str = "entry",
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> "Space":
        """Make a space of several named parts that lie one after the other on the flat axis `axis`."""
        parts = (
            Part(name, tuple(f"axis{i}" for i in range(len(shape))), tuple(shape)) for name, shape in shapes.items()
        )
        return Space(tuple(parts), dtype, torch.device(device), axis)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one vector: the part's own shape, or `(size,)` for several parts."""
        return self.parts[0].shape if self.flat is None else (self.size,)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of `shape`."""
        return self.parts[0].axes if self.flat is None else (self.flat,)

    @property
    def size(self) -> int:
        """Number of entries of one vector."""
        return sum(part.size for part in self.parts)

    @property
    def ndim(self) -> int:
        """Number of axes of one vector."""
        return len(self.shape)

    def axis(self, name: str) -> int:
        """Position of the axis `name`."""
        if name not in self.axes:
            raise ValueError(f"`{name}` is not an axis of {self}; its axes are {', '.join(self.axes)}.")
        return self.axes.index(name)

    def same_vectors(self, other: "Space") -> bool:
        """Whether a vector of the one is a vector of the other: equal shape, dtype and device, names aside."""
        return (self.shape, self.dtype, self.device) == (other.shape, other.dtype, other.device)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of the parts of `vector [*, *shape]`, each `[*, *part.shape]`, by name."""
        self.check("vector", vector)
        if self.flat is None:
            return {self.parts[0].name: vector}
        pieces = vector.split([part.size for part in self.parts], dim=-1)
        return {
            part.name: piece.reshape((*piece.shape[:-1], *part.shape))  # splits one axis, so it stays a view
            for part, piece in zip(self.parts, pieces, strict=True)
        }

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Inverse of `split`: one vector `[*, *shape]` from the parts `[*, *part.shape]`."""
        if set(tensors) != {part.name for part in self.parts}:
            raise ValueError(f"`tensors` must hold the parts {[p.name for p in self.parts]}; got {list(tensors)}.")
        if self.flat is None:
            vector = tensors[self.parts[0].name]
        else:
            pieces = [_flatten(tensors[part.name], part) for part in self.parts]
            probes = {tuple(piece.shape[:-1]) for piece in pieces}
            if len(probes) > 1:
                raise ValueError(f"The parts must have the same probe axes; got {sorted(probes)}.")
            vector = torch.cat(pieces, dim=-1)
        self.check("tensors", vector)
        return vector

    def check(self, name: str, vector: Tensor) -> None:
        """Raise unless `vector` is a tensor of this space, with any number of leading probe axes."""
        if not isinstance(vector, Tensor):
            raise TypeError(f"`{name}` must be a torch.Tensor; got {type(vector).__name__}.")
        if vector.ndim < self.ndim or tuple(vector.shape[vector.ndim - self.ndim :]) != self.shape:
            raise ValueError(
                f"`{name}` must have shape [*, {', '.join(map(str, self.shape))}] "
                f"({' × '.join(self.axes)}); got {tuple(vector.shape)}."
            )
        if vector.dtype != self.dtype:
            raise TypeError(f"`{name}` must be {self.dtype}; got {vector.dtype}. Convert it with .to({self.dtype}).")
        if vector.device != self.device:
            raise ValueError(
                f"`{name}` must be on {self.device}; got {vector.device}. Move it with .to('{self.device}')."
            )

    def zeros(self, *probes: int) -> Tensor:
        """Zeros `[*probes, *shape]`."""
        return torch.zeros((*probes, *self.shape), dtype=self.dtype, device=self.device)

    def __repr__(self) -> str:
        if self.flat is None:
            body = " × ".join(f"{axis} {size}" for axis, size in zip(self.axes, self.shape, strict=True)) or "scalar"
        else:
            body = f"{self.flat} {self.size} in {len(self.parts)} part{'s' if len(self.parts) > 1 else ''}"
        place = "" if self.device.type == "cpu" else f", {self.device}"
        return f"Space({body}, {str(self.dtype).removeprefix('torch.')}{place})"


def _flatten(tensor: Tensor, part: Part) -> Tensor:
    """`[*, *part.shape]` to `[*, part.size]`."""
    probes = tensor.ndim - len(part.shape)
    if probes < 0 or tuple(tensor.shape[probes:]) != part.shape:
        shape = ", ".join(map(str, ("*", *part.shape)))
        raise ValueError(f"The part `{part.name}` must have shape [{shape}]; got {tuple(tensor.shape)}.")
    return tensor.reshape(*tensor.shape[:probes], part.size)
