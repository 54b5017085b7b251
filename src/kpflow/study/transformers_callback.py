"""The recorder as a callback of transformers' Trainer. Imported on demand alone; tried with transformers 5.23.0."""

from typing import Any, final

from torch.optim import Optimizer

from .recorder import Recorder

try:
    from transformers.trainer_callback import TrainerCallback
except ImportError:  # said when a callback is made: tools that import every module need not have it
    TrainerCallback = object

__all__ = ["RecorderCallback"]


@final
class RecorderCallback(TrainerCallback):  # pyright: ignore[reportGeneralTypeIssues]
    """Attaches a `Recorder` to the optimizer of a `transformers.Trainer` and closes it at the end of the training.

    Gradients are read in `on_pre_optimizer_step`, after clipping; in `on_step_end` they are gone. Losses are those that
    the trainer logs, after the step: a checkpoint holds the one that was logged before. For `on_loss_jump`, set
    `logging_steps=1`. Only the first process records. If the trainer resumes from a checkpoint of its own, the recorder
    goes on from that step (`Recorder.continue_from`).

    Args:
        recorder: Made with the model that the trainer trains.

    Raises:
        ImportError: transformers is not installed.
        TypeError: `recorder` is no Recorder.

    Example:
        >>> import tempfile, torch
        >>> from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, TrainerControl, TrainerState
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> folder = tempfile.TemporaryDirectory()
        >>> callback = RecorderCallback(Recorder(model, folder.name))  # Trainer(..., callbacks=[callback])
        >>> handler = CallbackHandler([DefaultFlowCallback(), callback], model, None, optimizer, None)
        >>> _ = handler.on_train_begin(None, TrainerState(), TrainerControl())
        >>> callback.recorder.step
        0
        >>> folder.cleanup()
    """

    def __init__(self, recorder: Recorder) -> None:
        """Nothing is written yet."""
        if TrainerCallback is object:
            raise ImportError("RecorderCallback needs transformers, which is not installed: pip install transformers.")
        if not isinstance(recorder, Recorder):
            raise TypeError(f"`recorder` must be a kpflow.study.Recorder; got {type(recorder).__name__}.")
        self.recorder = recorder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if not state.is_world_process_zero:
            return
        if state.global_step:
            self.recorder.continue_from(int(state.global_step))
        self.recorder.attach(_inner(kwargs["optimizer"]))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero:
            self.recorder.observe()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero and logs and "loss" in logs:
            self.recorder.note(float(logs["loss"]))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero:
            self.recorder.close()


def _inner(optimizer: Any) -> Any:
    """The optimizer that steps: accelerate wraps it, and the hooks of the wrapper are never called."""
    inner = getattr(optimizer, "optimizer", None)
    return _inner(inner) if isinstance(inner, Optimizer) else optimizer
