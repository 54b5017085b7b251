"""Recurrent steps of ReLU networks at a static input as piecewise-linear maps, with their matrices."""

import dataclasses
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kpflow._checks import check_finite, check_tensor
from kpflow.states.cells import LowRankRNN, RateRNN

from .maps import float64_step

__all__ = ["PiecewiseLinear", "piecewise_linear"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class PiecewiseLinear:
    """F(h) = A h + B relu(C h + d) + e: linear in each region of the state space where the active units are the same.

    A network (A + W D(h)) h + b, D(h) = diag(h > 0), has B = W, C = I, d = 0, e = b: `PiecewiseLinear.inside(A, W, b)`.

    Args:
        linear: A, shape `[H, H]`.
        outgoing: B, shape `[H, M]`.
        incoming: C, shape `[M, H]`.
        offset: d, shape `[M]`.
        constant: e, shape `[H]`.

    Raises:
        TypeError: One of them is no floating-point tensor.
        ValueError: Shapes do not fit, dtypes or devices differ, or an entry is not finite.

    Example:
        >>> tent = PiecewiseLinear(torch.eye(1), -4 * torch.ones(1, 1), torch.ones(1, 1), -torch.ones(1), torch.ones(1))
        >>> tent(torch.tensor([[0.0], [1.0], [2.0]])).flatten()
        tensor([ 1.,  2., -1.])
    """

    linear: Float[Tensor, "H H"]
    outgoing: Float[Tensor, "H M"]
    incoming: Float[Tensor, "M H"]
    offset: Float[Tensor, "M"]
    constant: Float[Tensor, "H"]

    def __post_init__(self) -> None:
        names = [field.name for field in dataclasses.fields(self)]
        for name in names:
            check_tensor(name, getattr(self, name))
            check_finite(name, getattr(self, name))
        size = self.constant.shape[0] if self.constant.ndim == 1 else 0
        units = self.offset.shape[0] if self.offset.ndim == 1 else 0
        expected = ((size, size), (size, units), (units, size), (units,), (size,))
        got = tuple(tuple(getattr(self, name).shape) for name in names)
        if got != expected or not size or not units:
            raise ValueError(
                "`linear`, `outgoing`, `incoming`, `offset`, `constant` must have the shapes (H, H), (H, M), (M, H), "
                f"(M,), (H,); got {', '.join(map(str, got))}."
            )
        kinds = {f"{getattr(self, name).dtype} on {getattr(self, name).device}" for name in names}
        if len(kinds) > 1:
            raise ValueError(f"The matrices must be of one dtype and on one device; got {', '.join(sorted(kinds))}.")

    @staticmethod
    def inside(
        linear: Float[Tensor, "H H"], weight: Float[Tensor, "H H"], bias: Float[Tensor, "H"]
    ) -> "PiecewiseLinear":
        """F(h) = A h + W relu(h) + b."""
        check_tensor("bias", bias)
        eye = torch.eye(bias.numel(), dtype=bias.dtype, device=bias.device)
        return PiecewiseLinear(linear, weight, eye, torch.zeros_like(bias), bias)

    def __call__(self, states: Float[Tensor, "*n H"], inputs: Tensor | None = None) -> Float[Tensor, "*n H"]:
        """F(h); a step(h, x) for searches, where x is not looked at, as the matrices hold it."""
        del inputs
        kept = states @ self.linear.mT + self.constant
        return kept + torch.relu(self.preactivations(states)) @ self.outgoing.mT

    def preactivations(self, states: Float[Tensor, "*n H"]) -> Float[Tensor, "*n M"]:
        """C h + d, whose signs tell the region."""
        return states @ self.incoming.mT + self.offset

    def jacobians(self, active: Bool[Tensor, "n M"]) -> Float[Tensor, "n H H"]:
        """A + B D C in the region of each pattern of active units."""
        gates = active.to(self.offset.dtype)
        return self.linear + (self.outgoing * gates[:, None, :]) @ self.incoming

    def constants(self, active: Bool[Tensor, "n M"]) -> Float[Tensor, "n H"]:
        """B D d + e in the region of each pattern of active units."""
        return (active.to(self.offset.dtype) * self.offset) @ self.outgoing.mT + self.constant


def piecewise_linear(step: Callable[..., Any], inputs: Float[Tensor, "I"] | None) -> PiecewiseLinear:
    """The float64 matrices of a ReLU network at x; the module is not touched.

    Raises:
        TypeError: The step is of no kind whose matrices are known.
        ValueError: Its nonlinearity is not ReLU, `inputs` is missing or does not fit, or it has several layers.
    """
    if isinstance(step, PiecewiseLinear):
        values = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
        return PiecewiseLinear(**{name: value.detach().to(torch.float64) for name, value in values.items()})
    if not isinstance(step, (nn.RNN, nn.RNNCell, RateRNN, LowRankRNN)):
        raise TypeError(
            "`step` must be an nn.RNN, nn.RNNCell, RateRNN, LowRankRNN or PiecewiseLinear; got "
            f"{type(step).__name__}. Give its matrices as a PiecewiseLinear."
        )
    _check_relu(step)
    if inputs is None:
        raise ValueError(f"`inputs` must be the static input of {type(step).__name__}, shape (I,); got None.")
    x = inputs.detach().to(torch.float64)
    module, _ = float64_step(step, x, x.new_zeros(1, step.hidden_size))
    if isinstance(module, RateRNN):
        return _rate(module, x)
    if isinstance(module, LowRankRNN):
        return _leaky(module.left @ module.right, module.weight_ih, module.bias, module.alpha, x)
    return _elman(module, x)


def _rate(module: RateRNN, x: Tensor) -> PiecewiseLinear:
    if module.convention == "inside":
        return _leaky(module.weight_hh, module.weight_ih, module.bias, module.alpha, x)
    driven = module.weight_ih @ x + (0.0 if module.bias is None else module.bias)
    eye = torch.eye(len(driven)).to(driven)
    return PiecewiseLinear(
        (1 - module.alpha) * eye, module.alpha * eye, module.weight_hh.detach(), driven, torch.zeros_like(driven)
    )


def _leaky(weight: Tensor, drive: Tensor, bias: Tensor | None, alpha: float, x: Tensor) -> PiecewiseLinear:
    """(1−α) h + α (W relu(h) + U x + b)."""
    driven = drive @ x + (0.0 if bias is None else bias)
    eye = torch.eye(len(driven)).to(driven)
    return PiecewiseLinear.inside((1 - alpha) * eye, alpha * weight.detach(), alpha * driven)


def _elman(module: Any, x: Tensor) -> PiecewiseLinear:
    """relu(W h + U x + b)."""
    tail = "_l0" if isinstance(module, nn.RNNBase) else ""
    weight, drive = getattr(module, f"weight_hh{tail}"), getattr(module, f"weight_ih{tail}")
    driven = drive @ x
    if module.bias:
        driven = driven + getattr(module, f"bias_ih{tail}") + getattr(module, f"bias_hh{tail}")
    eye = torch.eye(len(driven)).to(driven)
    return PiecewiseLinear(torch.zeros_like(eye), eye, weight.detach(), driven, torch.zeros_like(driven))


def _check_relu(step: Any) -> None:
    phi = step.nonlinearity
    if phi not in ("relu", torch.relu, nn.functional.relu) and not isinstance(phi, nn.ReLU):
        raise ValueError(
            f"`step` must have the nonlinearity ReLU; got {phi!r}. For a smooth one use find_fixed_points."
        )
