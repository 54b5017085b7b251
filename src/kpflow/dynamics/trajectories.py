"""Driven trajectories in float64, with the Jacobians J_t = ∂h_t/∂h_{t−1} along them as products with blocks of vectors.

Times are those of `kpflow.states`: h_t is the state after input t, and J_0 the derivative with respect to `initial`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kpflow._checks import check_finite, check_positive, check_tensor
from kpflow.states.adapters import Adapter, adapter_for
from kpflow.states.derivatives import pullback, pushforward
from kpflow.states.gates import Times
from kpflow.states.steps import Drive, Roles
from kpflow.states.transitions import DenseTransition, Transition

from .arguments import check_device
from .maps import float64_step, static_map

__all__ = ["Driven", "Segment", "driven", "stored"]

MEMORY = 4 * 2**30
"""Bytes that whole trajectories with their Jacobians or frames may take."""

SEGMENT_ENTRIES = 2**22
"""Entries of the Jacobians, or of the gates, that are held at once where one pass over time is enough."""

SEGMENT_STEPS = 2**12
"""Steps of a segment, at most."""

STEP_BYTES = 2**13
"""What the tensors of a step take beside their entries (an estimate)."""

SMALL = 32
"""Up to this width Jacobians are formed: all their rows cost little more than a few products."""

Step = Callable[[Tensor, Tensor], Any]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """Some steps of B trajectories.

    Args:
        start: Number of the first step.
        states: h after each step, shape `[C, B, H]`.
        transition: The Jacobians of these steps.
    """

    start: int
    states: Float[Tensor, "C B H"]
    transition: Transition

    def product(self, step: int, frame: Float[Tensor, "K B H"]) -> Float[Tensor, "K B H"]:
        """J_t v of every column v, for the step t = start + `step`."""
        out = torch.zeros_like(frame)
        self.transition.add_product(step, frame, out)
        return out

    def adjoint(self, step: int, frame: Float[Tensor, "K B H"]) -> Float[Tensor, "K B H"]:
        """J_tᵀ v."""
        out = torch.zeros_like(frame)
        self.transition.add_product_adjoint(step, frame, out)
        return out


@final
@dataclasses.dataclass(frozen=True, eq=False)
class TapedTransition(Transition):
    """The Jacobians of any step, never formed: every product records the step anew.

    Args:
        call: The step as a function of (h, x).
        before: States before each step, shape `[C, B, H]`.
        inputs: Shape `[C, B, I]`.
    """

    call: Step
    before: Float[Tensor, "C B H"]
    inputs: Float[Tensor, "C B I"]

    def add_product(self, times: Times, state: Tensor, out: Tensor) -> None:
        x = self.inputs[times]
        out.add_(pushforward(lambda h: self.call(h, x), self.before[times])(state))

    def add_product_adjoint(self, times: Times, state: Tensor, out: Tensor) -> None:
        x = self.inputs[times]
        out.add_(pullback(lambda h: self.call(h, x), self.before[times])(state))

    @property
    def nbytes(self) -> int:
        return self.before.nbytes


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Driven:
    """A step, what drives it, and where it starts; all in float64.

    Args:
        call: The step, as a function of h `[n, H]` and x `[n, I]`.
        adapter: Formulas of the step's Jacobians; None where only automatic differentiation knows them.
        parameters: What the formulas need, by role.
        inputs: Shape `[B, T, I]`, or `[I]` for a static input.
        initial: h before the first step, shape `[B, H]`.
        steps: T.
    """

    call: Step
    adapter: Adapter | None
    parameters: Mapping[str, Tensor]
    inputs: Tensor
    initial: Float[Tensor, "B H"]
    steps: int

    @property
    def trials(self) -> int:
        """B."""
        return self.initial.shape[0]

    @property
    def width(self) -> int:
        """H."""
        return self.initial.shape[1]

    def forms(self, columns: int) -> bool:
        """Whether Jacobians are formed for frames of so many columns: it pays for most of them (measured on GRUs)."""
        return self.width <= SMALL or 4 * columns >= 3 * self.width

    def segments(self, columns: int, *, whole: bool = False) -> Iterator[Segment]:
        """The trajectory in pieces, or as one piece, for frames of so many columns.

        Raises:
            ValueError: A state leaves the floating range.
        """
        dense = self.forms(columns)
        entries = self.trials * (self.width**2 if dense else 8 * self.width)
        length = self.steps if whole else max(1, min(self.steps, SEGMENT_STEPS, SEGMENT_ENTRIES // entries))
        state = self.initial
        for start in range(0, self.steps, length):
            x = self._inputs(start, min(start + length, self.steps))
            segment = self._known(start, x, state, dense) if self.adapter else self._rolled(start, x, state, dense)
            _check_states(segment)
            yield segment
            state = segment.states[-1]

    def _inputs(self, start: int, stop: int) -> Float[Tensor, "C B I"]:
        if self.inputs.ndim == 1:
            return self.inputs.expand(stop - start, self.trials, -1)
        return self.inputs[:, start:stop].transpose(0, 1)

    def _known(self, start: int, x: Tensor, state: Tensor, dense: bool) -> Segment:
        """By the formulas of the named cells."""
        assert self.adapter is not None
        layer = self.adapter.layer(0, Roles(self.parameters, {}), Drive(x, state, None))
        if dense:
            layer = layer.within(MEMORY)
        return Segment(start, layer.states, layer.transition)

    def _rolled(self, start: int, x: Tensor, state: Tensor, dense: bool) -> Segment:
        """By running the step, and by automatic differentiation."""
        states = [state]
        with torch.no_grad():
            for value in x:
                states.append(self.call(states[-1], value))
        before, after = torch.stack(states[:-1]), torch.stack(states[1:])
        if not dense:
            return Segment(start, after, TapedTransition(self.call, before, x))
        flat = x.reshape(-1, x.shape[-1])
        rows = torch.eye(self.width).to(state).unsqueeze(1).expand(-1, len(flat), -1)
        jacobian = pullback(lambda h: self.call(h, flat), before.flatten(0, 1))(rows)  # [n, C·B, n]
        return Segment(start, after, DenseTransition(jacobian.unflatten(1, after.shape[:2]).permute(2, 1, 0, 3)))


def driven(step: Any, inputs: Tensor, initial: Tensor, steps: int | None, dt: float, flow: bool) -> Driven:
    """Check a step and what drives it, and copy them to float64.

    Args:
        step: As of `find_fixed_points`; with `flow` the vector field f(h, x) of h' = f, of which one step of the
            classical Runge–Kutta method of order 4 is taken at x held fixed.
        inputs: Shape `[B, T, I]`, or one static input `[I]` with `steps`.
        initial: Shape `[B, H]`.
        steps: T of a static input, None for a sequence.
        dt: Duration of a step.
        flow: See `step`.

    Raises:
        TypeError: `inputs` or `initial` hold no floating-point numbers, or `step` does not give float64.
        ValueError: As `find_fixed_points`; shapes, `steps` or `dt` do not fit.
    """
    length = _check_arguments(inputs, initial, steps)
    check_positive("dt", dt)
    start = initial.detach().to(torch.float64).clone()
    x = inputs.detach().to(torch.float64).clone()
    first = x if x.ndim == 1 else x[0, 0]
    known = None if flow else _adapter(step)
    if known is not None and len(known.widths) == 1:
        _check_sizes(step, known, x, start)
    else:
        static_map(step, first, start)
    module, call = float64_step(step, first, start)
    adapter = _adapter(module) if known is not None else None
    if flow:
        call = _runge_kutta(call, dt)
    roles = {} if adapter is None else {role: getattr(module, name).detach() for role, name in adapter.roles(0).items()}
    return Driven(call, adapter, roles, x, start, length)


def stored(problem: Driven, columns: int, extra: int) -> Segment:
    """The whole trajectory as one segment, with `extra` bytes beside it.

    Raises:
        ValueError: It does not fit the memory.
    """
    entries = problem.steps * problem.trials * problem.width
    needed = 8 * entries * (problem.width if problem.forms(columns) else 8) + extra + STEP_BYTES * problem.steps
    if needed > MEMORY:
        raise ValueError(
            f"`inputs` with {problem.steps} steps of {problem.trials} trials need {needed / 2**30:.1f} GiB, for "
            f"Jacobians and frames of all steps; the limit is {MEMORY / 2**30:.0f} GiB. Take fewer trials, steps or k."
        )
    (segment,) = problem.segments(columns, whole=True)
    return segment


def _runge_kutta(field: Step, dt: float) -> Step:
    """h + dt/6 (k₁ + 2 k₂ + 2 k₃ + k₄); its derivative is the same method on the variational equation, exactly."""

    def run(h: Tensor, x: Tensor) -> Tensor:
        one = field(h, x)
        two = field(h + dt / 2 * one, x)
        three = field(h + dt / 2 * two, x)
        four = field(h + dt * three, x)
        return h + dt / 6 * (one + 2 * two + 2 * three + four)

    return run


def _adapter(step: Any) -> Adapter | None:
    """The formulas of a known module; those that no formula fits go by automatic differentiation."""
    try:
        return adapter_for(step)
    except ValueError:
        return None


def _check_arguments(inputs: Tensor, initial: Tensor, steps: int | None) -> int:
    for name, value in (("inputs", inputs), ("initial", initial)):
        check_tensor(name, value)
    if initial.ndim != 2 or not initial.numel():
        raise ValueError(f"`initial` must be states to start from, shape (B, H); got {tuple(initial.shape)}.")
    if inputs.ndim not in (1, 3) or (inputs.ndim == 3 and not inputs.shape[1]):
        raise ValueError(
            "`inputs` must have shape (B, T, I) with at least one step, or be one static input (I,) with `steps`; got "
            f"{tuple(inputs.shape)}."
        )
    if inputs.ndim == 3 and len(inputs) != len(initial):
        raise ValueError(
            f"`initial` must have a state for each of the {len(inputs)} trials of `inputs`; got {tuple(initial.shape)}."
        )
    check_device("inputs", inputs, "initial", initial)
    if (inputs.ndim == 1) == (steps is None):
        raise ValueError(
            "`steps` goes with one static input (I,), and says how many steps to take; a sequence (B, T, I) has its "
            f"own. Got inputs of shape {tuple(inputs.shape)} with steps={steps}."
        )
    check_finite("inputs", inputs, ("trial", "time", "input") if inputs.ndim == 3 else ("input",))
    check_finite("initial", initial, ("trial", "unit"))
    if steps is not None:
        check_positive("steps", steps, integer=True)
        return steps
    return inputs.shape[1]


def _check_sizes(step: nn.Module, adapter: Adapter, inputs: Tensor, initial: Tensor) -> None:
    """Refuse states and inputs that a known module does not take."""
    (width,) = adapter.widths
    if initial.shape[1] != width:
        lstm = isinstance(step, (nn.LSTM, nn.LSTMCell))
        raise ValueError(
            f"`initial` must have shape (B, {width}), {'h and c side by side' if lstm else 'the states'} of "
            f"{type(step).__name__}; got {tuple(initial.shape)}."
        )
    if inputs.shape[-1] != adapter.input_size:
        raise ValueError(
            f"`inputs` must have {adapter.input_size} channels on its last axis, for {type(step).__name__}; got "
            f"{tuple(inputs.shape)}."
        )


def _check_states(segment: Segment) -> None:
    """Refuse a trajectory that leaves the floating range, and say where."""
    if bool(torch.isfinite(segment.states.sum())):
        return
    bad = ~torch.isfinite(segment.states).all(dim=2)
    if bool(bad.any()):
        time, trial = bad.nonzero()[0].tolist()
        raise ValueError(
            f"`step` leaves the floating range at step {segment.start + time} of trial {trial}. Start elsewhere, take "
            "fewer steps, or, of a flow, a smaller `dt`."
        )
