"""Checks of the arguments that searches, paths and critical points have in common."""

from torch import Tensor

from kpflow._checks import check_finite, check_positive, check_range, check_tensor

__all__ = ["check_device", "check_search", "check_search_numbers", "check_static_input"]


def check_static_input(name: str, value: Tensor, what: str = "Fixed points") -> None:
    """Raise unless `value` is one static input and finite; the message says `what` belong to it."""
    check_tensor(name, value)
    if value.ndim != 1:
        raise ValueError(
            f"`{name}` must be one static input, shape (I,); got {tuple(value.shape)}. {what} belong to one input: "
            "give one step of a sequence, inputs[trial, time]."
        )
    check_finite(name, value, ("input",))


def check_device(name: str, value: Tensor, other: str, at: Tensor) -> None:
    """Raise unless `value` is on the device of `at`, the argument `other`; before any of their entries is read."""
    if value.device != at.device:
        raise ValueError(f"`{name}` must be on the device of `{other}`, {at.device}; got {value.device}. Move it.")


def check_search(inputs: Tensor, seeds: Tensor, what: str = "Fixed points", *, phases: bool = False) -> None:
    """Raise unless these are one static input and states, or those of all phases if `phases`."""
    for name, value in (("inputs", inputs), ("seeds", seeds)):
        check_tensor(name, value)
    check_device("inputs", inputs, "seeds", seeds)
    check_static_input("inputs", inputs, what)
    if seeds.ndim not in ((2, 3) if phases else (2,)) or not seeds.numel():
        shapes = "(n, H), or of all phases, shape (n, period, H)" if phases else "(n, H)"
        raise ValueError(
            f"`seeds` must be states to start from, shape {shapes}, at least one; got {tuple(seeds.shape)}."
        )
    check_finite("seeds", seeds, ("seed", "phase", "unit")[:: 2 if seeds.ndim == 2 else 1], "Leave such states out.")


def check_search_numbers(
    tolerance: float, descent: int, iterations: int, merge: float, marginal: float, dt: float
) -> None:
    """Raise unless the numbers of a search are in range."""
    check_positive("tolerance", tolerance)
    check_range("descent", descent, 0, integer=True)
    check_range("iterations", iterations, 0, integer=True)
    check_range("merge", merge, 0)
    check_range("marginal", marginal, 0)
    check_positive("dt", dt)
