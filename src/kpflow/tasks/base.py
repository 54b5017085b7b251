"""Task: what every task gives, whichever it is. A new one is a file with a final subclass and a line in registry.py."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from kpflow._checks import check_finite, check_generator, check_one_of, check_positive, check_range, check_tensor

from .trials import Trials, resolve_epoch

__all__ = ["Task", "check_flag", "check_noise", "need_condition", "noise_per_step", "trials_of"]

MODES = ("random", "grid")


class Task(abc.ABC):
    """A task: a distribution of trials, and what counts as solving it.

    A subclass is a frozen final dataclass of parameters. It gives the names of its channels, epochs and conditions,
    the level of its noise, and `_draw`, `_static_inputs` and `_score`; everything else is here.

    Example:
        >>> import kpflow.tasks
        >>> task = kpflow.tasks.get("memory_pro")
        >>> trials = task.sample(32, generator=torch.Generator().manual_seed(0))
        >>> trials.inputs.shape, trials.targets.shape
        (torch.Size([32, 90, 3]), torch.Size([32, 90, 3]))
        >>> float(task.loss(trials.targets, trials)), task.score(trials.targets, trials)["accuracy"]
        (0.0, 1.0)
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The name of the task in the registry, for example "memory_pro"."""

    @property
    @abc.abstractmethod
    def input_labels(self) -> tuple[str, ...]:
        """Names of the input channels."""

    @property
    @abc.abstractmethod
    def output_labels(self) -> tuple[str, ...]:
        """Names of the output channels."""

    @property
    @abc.abstractmethod
    def epoch_names(self) -> tuple[str, ...]:
        """Names of the epochs, in the order of time."""

    @property
    @abc.abstractmethod
    def condition_names(self) -> tuple[str, ...]:
        """Names of what distinguishes trials."""

    @property
    @abc.abstractmethod
    def noise_std(self) -> float:
        """Standard deviation of the noise on every input channel at every step."""

    @abc.abstractmethod
    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:
        """B trials without noise, float64, on the CPU; those of the grid if `generator` is None."""

    @abc.abstractmethod
    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:
        """Static inputs `[n, I]` of `epoch`; `zeros [n]` has their number, dtype and device."""

    @abc.abstractmethod
    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        """Scores of checked, finite `outputs`; "accuracy" is one of them."""

    @property
    def num_inputs(self) -> int:
        """I, the number of input channels."""
        return len(self.input_labels)

    @property
    def num_outputs(self) -> int:
        """O, the number of output channels."""
        return len(self.output_labels)

    @final
    def sample(
        self,
        B: int,
        *,
        generator: torch.Generator | None = None,
        mode: str = "random",
        noise: bool = True,
        shared_timing: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Trials:
        """Draw B trials.

        Everything is drawn on the CPU in float64, conditions before noise: one seed gives the same trials in every
        dtype and on every device, and the same conditions with noise or without.

        Args:
            B: Number of trials.
            generator: Source of all randomness, on the CPU; a fresh one seeded with 0 if None. The global generator
                is neither used nor moved.
            mode: "random", or "grid" for conditions and timings that are the same at every call, evenly spaced. The
                noise is still drawn from `generator`; with `noise=False` nothing is.
            noise: Whether `inputs` have noise; `inputs_clean` never have.
            shared_timing: Whether random timings are drawn once for the whole batch, so that all lengths are equal.
            dtype: Of all floating-point tensors of the result.
            device: Of all tensors of the result.

        Returns:
            Trials with inputs = inputs_clean + ξ, ξ ~ N(0, σ²), σ = `noise_std`, independently per step and channel;
            the padding has none.

        Raises:
            TypeError: `noise` or `shared_timing` is no bool, `dtype` is not floating, `generator` is no generator.
            ValueError: `B` is not positive, `mode` is unknown, or `generator` is not on the CPU.
        """
        check_positive("B", B, integer=True)
        check_one_of("mode", mode, MODES)
        check_flag("noise", noise, "The level of the noise is a parameter of the task.")
        check_flag("shared_timing", shared_timing)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"`dtype` must be a floating-point type such as torch.float32; got {dtype}.")
        source = check_generator("generator", generator, torch.device("cpu"))
        trials = self._draw(B, source if mode == "random" else None, shared_timing)
        if noise:
            trials = _with_noise(trials, self.noise_std, source)
        return trials.to(dtype=dtype, device=device)

    @final
    def static_inputs(
        self, epoch: str, conditions: Mapping[str, Shaped[Tensor, " n"]], *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "n I"]:
        """The inputs that stand still inside an epoch, where fixed points are looked for.

        Equal to `inputs_clean` at every step of the epoch. Conditions that the epoch's input does not depend on may
        be left out; with none, there is one row.

        Args:
            epoch: One of `epoch_names`, or an alias (fix1, stim1, delay1, go1).
            conditions: `{name: values [n]}`; `trials.conditions` will do.
            dtype: Of the result; by default that of the floating-point conditions, float32 if there are none.

        Raises:
            TypeError: A condition is no tensor.
            ValueError: The epoch or a condition is unknown, one is missing, or the values have unequal shapes.
        """
        epoch = resolve_epoch(epoch, self.epoch_names)
        zeros = self._check_conditions(conditions, dtype)
        values = {name: v.to(zeros.dtype) if v.dtype.is_floating_point else v for name, v in conditions.items()}
        return self._static_inputs(epoch, values, zeros)

    @final
    def interpolate(self, a: Float[Tensor, "*m I"], b: Float[Tensor, "*m I"], n: int) -> Float[Tensor, "n *m I"]:
        """The straight line from a to b in n points, ends included: (1 − s) a + s b with s = 0 … 1 evenly.

        Following fixed points along such a line shows whether two epochs, conditions or tasks share them (Driscoll et
        al. 2024, fig. 4–6).

        Args:
            a: Static inputs, `[*m, I]`.
            b: Static inputs of the same shape.
            n: Number of points, at least 2.

        Raises:
            TypeError: `a` or `b` is no tensor of floating-point numbers.
            ValueError: Their shapes differ or do not end in I, or n < 2.
        """
        check_range("n", n, 2, integer=True)
        for name, value in {"a": a, "b": b}.items():
            check_tensor(name, value)
            if value.ndim == 0 or value.shape != a.shape or value.shape[-1] != self.num_inputs:
                raise ValueError(
                    f"`a` and `b` must have one shape [*, {self.num_inputs}]; "
                    f"got {tuple(a.shape)} and {tuple(b.shape)}."
                )
        s = torch.linspace(0, 1, n, dtype=a.dtype, device=a.device).reshape(n, *[1] * a.ndim)
        return (1 - s) * a + s * b

    @final
    def loss(self, outputs: Float[Tensor, "B T O"], trials: Trials) -> Float[Tensor, ""]:
        """The masked mean squared error L = Σ m (ŷ − y)² / Σ m over trials, steps and channels.

        Dividing by the sum of the weights makes L independent of padding and of the scale of the mask; where all
        weights are 1 it is the mean squared error.

        Args:
            outputs: ŷ, `[B, T, O]`, what the model says at every step.
            trials: Trials of this task, with y and m.

        Returns:
            A differentiable scalar.

        Raises:
            TypeError: `outputs` is no tensor of floating-point numbers.
            ValueError: `outputs` and `trials` do not fit, or the mask is zero everywhere.
        """
        self._check_outputs(outputs, trials)
        return (trials.mask * (outputs - trials.targets).square()).sum() / trials.mask.sum()

    @final
    def score(self, outputs: Float[Tensor, "B T O"], trials: Trials) -> dict[str, float]:
        """How well the task is solved, as its own definition says; "accuracy" in [0, 1] is always there.

        Args:
            outputs: ŷ, `[B, T, O]`.
            trials: Trials of this task.

        Raises:
            TypeError: `outputs` is no tensor of floating-point numbers.
            ValueError: `outputs` and `trials` do not fit, an output is NaN or inf, or the mask is zero everywhere.
        """
        self._check_outputs(outputs, trials)
        check_finite("outputs", outputs, ("trial", "step", "output"), "Has the training diverged?")
        return self._score(outputs.detach(), trials)

    def _check_outputs(self, outputs: Tensor, trials: Trials) -> None:
        check_tensor("outputs", outputs)
        if (trials.input_labels, trials.output_labels) != (self.input_labels, self.output_labels):
            raise ValueError(
                f"`trials` must be trials of {self.name}, with outputs {', '.join(self.output_labels)}; "
                f"got inputs {', '.join(trials.input_labels)} and outputs {', '.join(trials.output_labels)}."
            )
        if outputs.shape != trials.targets.shape:
            raise ValueError(
                f"`outputs` must have the shape of the targets [trial, time, output] "
                f"{tuple(trials.targets.shape)}; got {tuple(outputs.shape)}."
            )
        if outputs.device != trials.targets.device:
            raise ValueError(
                f"`outputs` are on {outputs.device}, the trials on {trials.targets.device}. "
                f"Move the trials with trials.to(device={str(outputs.device)!r})."
            )
        if not bool((trials.mask > 0).any()):
            raise ValueError("`trials.mask` is zero everywhere: no output counts. Select trials that have weight.")

    def _check_conditions(self, conditions: Mapping[str, Tensor], dtype: torch.dtype | None) -> Tensor:
        """Zeros `[n]` in the dtype and on the device of the static inputs that belong to `conditions`."""
        for name, values in conditions.items():
            if name not in self.condition_names:
                known = ", ".join(self.condition_names) or "none"
                raise ValueError(f"`conditions` has {name!r}, which {self.name} does not know; it has: {known}.")
            if not isinstance(values, Tensor):
                raise TypeError(f"`conditions[{name!r}]` must be a torch.Tensor; got {type(values).__name__}.")
        shapes = {tuple(values.shape) for values in conditions.values()}
        if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
            raise ValueError(f"`conditions` must be tensors [n] of one length; got shapes {sorted(shapes)}.")
        floating = (values.dtype for values in conditions.values() if values.dtype.is_floating_point)
        first = next(iter(conditions.values()), torch.zeros(1))
        return torch.zeros(len(first), dtype=dtype or next(floating, torch.float32), device=first.device)


def trials_of(
    task: Task,
    *,
    inputs: Tensor,
    targets: Tensor,
    mask: Tensor,
    epochs: Mapping[str, tuple[Tensor, Tensor]],
    conditions: Mapping[str, Tensor],
    length: Tensor | None = None,
) -> Trials:
    """Trials of `task` without noise, as long as their last epoch if not told; `task` has `dt` and `tau`."""
    return Trials(
        inputs=inputs,
        inputs_clean=inputs.clone(),
        targets=targets,
        mask=mask,
        length=epochs[task.epoch_names[-1]][1].clone() if length is None else length,
        epochs=epochs,
        conditions=conditions,
        dt=getattr(task, "dt"),  # noqa: B009
        tau=getattr(task, "tau"),  # noqa: B009
        input_labels=task.input_labels,
        output_labels=task.output_labels,
    )


def noise_per_step(sigma: int | float, dt: int | float, tau: int | float) -> float:
    """σ √(2/α) with α = dt/τ: the noise per step whose effect on a unit of time constant τ does not depend on dt.

    Source: Yang et al. (2019), Driscoll et al. (2024).

    Example:
        >>> round(noise_per_step(0.1, dt=20.0, tau=100.0), 3), round(noise_per_step(0.1, dt=20.0, tau=20.0), 3)
        (0.316, 0.141)
    """
    return sigma * math.sqrt(2 * tau / dt)


def need_condition(conditions: Mapping[str, Tensor], name: str, epoch: str) -> Tensor:
    """The condition `name`, or a ValueError that says that the input of `epoch` depends on it."""
    if name not in conditions:
        raise ValueError(f"`conditions` must have {name!r}: the input in epoch {epoch!r} depends on it.")
    return conditions[name]


def _with_noise(trials: Trials, std: float, generator: torch.Generator) -> Trials:
    """`trials` with white noise of standard deviation `std` on the inputs, none in the padding."""
    clean = trials.inputs_clean
    noise = std * torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    return dataclasses.replace(trials, inputs=clean + noise * trials.valid[:, :, None])


def check_flag(name: str, value: Any, remedy: str = "") -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False; got {value!r}. {remedy}".rstrip())


def check_noise(task: Task) -> None:
    """Raise unless the parameters of the noise of `task` are in range: σ ≥ 0, dt and τ positive, all finite."""
    parameters = vars(task)
    check_range("sigma", parameters["sigma"], 0)
    check_positive("dt", parameters["dt"], finite=True)
    check_positive("tau", parameters["tau"], finite=True)
