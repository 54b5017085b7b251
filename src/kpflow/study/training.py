"""Training on a task, or on several: fresh trials in every step, scores on trials held out, a recorder at the side."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from kpflow import _checks
from kpflow.tasks import Task, Trials

from .recorder import Recorder

__all__ = ["Trained", "train", "train_step"]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What became of a training.

    Args:
        losses: Of each step, on its own trials, before it was taken.
        steps: At which scores were taken, in order.
        scores: By name, as the task gives them: "accuracy", others, and of a `MultiTask` "accuracy NAME" for each task;
            each of the length of `steps`.
        reached: Whether `until` was reached.
    """

    losses: Float[Tensor, " N"]
    steps: Int[Tensor, " M"]
    scores: dict[str, Float[Tensor, " M"]]
    reached: bool


def train(
    model: nn.Module,
    task: Task,
    *,
    steps: int,
    optimizer: torch.optim.Optimizer | None = None,
    learning_rate: float = 1e-3,
    batch: int = 64,
    clip: float | None = None,
    score_every: int = 100,
    score_trials: int = 128,
    until: float | None = None,
    scheduler: LRScheduler | None = None,
    recorder: Recorder | None = None,
    resume: bool = False,
    generator: torch.Generator | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Trained:
    """Train a model on fresh trials of a task; a `MultiTask` mixes its tasks, and each is scored by itself.

    Args:
        model: From inputs `[B, T, I]` to outputs `[B, T, O]`; changed in place.
        task: What it is trained on, with the task's own loss.
        steps: Of the optimizer.
        optimizer: Of the model's parameters; Adam if None. One whose closure gives outputs beside the loss,
            `NaturalGradient`, gets such a closure.
        learning_rate: Of that Adam.
        batch: Trials in each step.
        clip: The most that the norm of the gradient is; None for no limit.
        score_every: Steps between two scores; the last step is scored too.
        score_trials: Trials of a score, the same each time, with noise; the model is in evaluation mode.
        until: Training ends when all accuracies are at least this.
        scheduler: Of the learning rate of that optimizer, stepped after each of its steps.
        recorder: Writes checkpoints on the way; it is attached here, and keeps the generator that draws the trials.
        resume: Go on from the recorder's newest checkpoint, if there is one, with all arguments as at first: the
            training ends with the same bits as one that was not interrupted, and at once if `until` was reached. Losses
            and scores are of the steps taken now.
        generator: Draws the trials; a fresh one with seed 0 if None.
        progress: Called after each step with the step and the loss.

    Raises:
        TypeError: `task` is no task, or the scheduler needs a metric.
        ValueError: A number is out of range, a loss is not finite, the scheduler is of another optimizer, or there is
            no recorder to resume from.
        FileNotFoundError: As `Recorder.resume`.

    Example:
        >>> import kpflow as kp
        >>> from kpflow.study.demo import Net
        >>> task = kp.tasks.MultiTask.memory_and_delay(context=5, stimulus=5, memory=5, response=5, grace=0.0)
        >>> net = Net(task.num_inputs, 32, task.num_outputs, torch.Generator().manual_seed(0))
        >>> done = train(net, task, steps=20, batch=16, score_every=10, learning_rate=1e-2)
        >>> done.steps.tolist(), sorted(done.scores)[:2], bool(done.losses[-1] < done.losses[0])
        ([10, 20], ['accuracy', 'accuracy delay_anti'], True)
    """
    _check(task, steps, batch, clip, score_every, score_trials, until)
    source = _checks.check_generator("generator", generator, torch.device("cpu"))
    optimizer = _optimizer(model, optimizer, scheduler, learning_rate)
    held_out = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=source)))
    tested = task.sample(score_trials, generator=held_out, dtype=_dtype(model), device=_device(model))
    taken = _resumed(recorder, resume, source, optimizer, scheduler)
    losses, at, scores = [], [], {}
    scored = taken > 0 and until is not None and (taken % score_every == 0 or taken >= steps)  # it may have ended there
    reached = scored and _reached(_score(model, task, tested), until)
    left = () if reached else range(taken + 1, steps + 1)
    with contextlib.ExitStack() as stack:
        if (
            scheduler is not None
        ):  # before the recorder's hook, so that it keeps the scheduler as the next step finds it
            stack.callback(optimizer.register_step_post_hook(lambda *_: scheduler.step()).remove)
        if recorder is not None:
            stack.enter_context(recorder.attach(optimizer, scheduler))
        note = None if recorder is None else recorder.note
        for step in left:
            losses.append(train_step(model, optimizer, task, batch, source, clip, note))
            if progress is not None:
                progress(step, losses[-1])
            if step % score_every == 0 or step == steps:
                found = _score(model, task, tested)
                at.append(step)
                for name, value in found.items():
                    scores.setdefault(name, []).append(value)
                reached = _reached(found, until)
                if reached:
                    break
    kept = {name: torch.tensor(values, dtype=torch.float64) for name, values in scores.items()}
    return Trained(torch.tensor(losses, dtype=torch.float64), torch.tensor(at, dtype=torch.int64), kept, reached)


def _score(model: nn.Module, task: Task, tested: Trials) -> dict[str, float]:
    """Scores of the model in evaluation mode; each of its modules is then in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            return task.score(model(tested.inputs), tested)
    finally:
        for module, training in modes:
            module.training = training


def _reached(scores: dict[str, float], until: float | None) -> bool:
    return until is not None and min(value for name, value in scores.items() if name.startswith("accuracy")) >= until


def _optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, scheduler: LRScheduler | None, learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer that was given, or that of the scheduler, or Adam."""
    if scheduler is None:
        return optimizer or torch.optim.Adam(model.parameters(), lr=learning_rate)
    if isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError(
            "`scheduler` must step without a metric; got ReduceLROnPlateau. Write the loop with train_step."
        )
    if optimizer is not None and optimizer is not scheduler.optimizer:
        raise ValueError("`scheduler` must be of `optimizer`; got that of another. Make it from the one given here.")
    return scheduler.optimizer


def _resumed(
    recorder: Recorder | None,
    resume: bool,
    source: torch.Generator,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None,
) -> int:
    """Have the recorder keep the generator, and go on where it was left; returns the steps taken before."""
    if recorder is None:
        if resume:
            raise ValueError("`recorder` must be given to resume; got None. Give the one with the folder of the run.")
        return 0
    if all(kept is not source for kept in recorder.generators.values()):
        recorder.generators["train"] = source
    return recorder.resume(optimizer, scheduler) if resume else 0


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    batch: int,
    generator: torch.Generator,
    clip: float | None = None,
    note: Callable[[float], None] | None = None,
) -> float:
    """One step on fresh trials; returns the loss before it.

    `note` is told that loss before the optimizer steps, as `Recorder.note` must be; not where the optimizer gets a
    closure, which tells it to the recorder's hook.
    """
    trials = task.sample(batch, generator=generator, dtype=_dtype(model), device=_device(model))

    def closure() -> tuple[Tensor, Tensor]:
        outputs = model(trials.inputs)
        loss = task.loss(outputs, trials)
        if not bool(torch.isfinite(loss)):
            raise ValueError("The loss must stay finite; got NaN or inf: training diverged. Lower the learning rate.")
        return loss, outputs

    if getattr(optimizer, "closure_gives_outputs", False):
        if clip is not None:
            raise ValueError(f"`clip` must be None with {type(optimizer).__name__}, whose steps are no gradients.")
        return float(optimizer.step(closure))  # type: ignore[arg-type]
    loss, _ = closure()
    optimizer.zero_grad()
    loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    value = float(loss.detach())
    if note is not None:
        note(value)
    optimizer.step()
    return value


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _check(
    task: Task,
    steps: int,
    batch: int,
    clip: float | None,
    score_every: int,
    score_trials: int,
    until: float | None,
) -> None:
    if not isinstance(task, Task):
        raise TypeError(f"`task` must be a task of kpflow.tasks; got {type(task).__name__}. See kpflow.tasks.names().")
    numbers = {"steps": steps, "batch": batch, "score_every": score_every, "score_trials": score_trials}
    for name, value in numbers.items():
        _checks.check_positive(name, value, integer=True)
    if clip is not None:
        _checks.check_positive("clip", clip)
    if until is not None:
        _checks.check_range("until", until, 0, 1)
