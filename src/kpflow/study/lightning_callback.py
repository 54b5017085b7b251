"""The recorder as a callback of Lightning's Trainer. Imported on demand alone; tried with lightning 2.6.6."""

from typing import Any, final

from .recorder import Recorder

try:
    from lightning.pytorch import Callback  # pyright: ignore[reportMissingImports]
except ImportError:  # said when a callback is made: tools that import every module need not have it
    Callback = object

__all__ = ["RecorderCallback"]


@final
class RecorderCallback(Callback):  # pyright: ignore[reportGeneralTypeIssues]
    """Attaches a `Recorder` to the first optimizer of a Lightning `Trainer` and closes it at the end of the fit.

    Gradients are read in `on_before_optimizer_step`: the optimizer's own hook comes before the closure in which
    Lightning computes them, so it would see those of the step before. They are whole, before clipping. Losses are those
    of the training step, added up over accumulated batches, which Lightning has divided by their number. Only the
    process of rank zero records. If the trainer resumes from a checkpoint of its own, the recorder goes on from that
    step (`Recorder.continue_from`). After an error, hooks are taken off and no last step is written.

    Args:
        recorder: Made with the model that is trained: the LightningModule, or the network inside it.

    Raises:
        ImportError: lightning is not installed.
        TypeError: `recorder` is no Recorder.
    """

    def __init__(self, recorder: Recorder) -> None:
        """Nothing is written yet."""
        if Callback is object:
            raise ImportError("RecorderCallback needs lightning, which is not installed: pip install lightning.")
        if not isinstance(recorder, Recorder):
            raise TypeError(f"`recorder` must be a kpflow.study.Recorder; got {type(recorder).__name__}.")
        self.recorder = recorder
        self._loss: float | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        if not trainer.is_global_zero:
            return
        if trainer.global_step:
            self.recorder.continue_from(int(trainer.global_step))
        self.recorder.attach(trainer.optimizers[0])

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:  # noqa: ARG002
        if trainer.is_global_zero:
            self._loss = (self._loss or 0.0) + float(loss.detach())

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:  # noqa: ARG002
        if not trainer.is_global_zero or optimizer is not trainer.optimizers[0]:
            return
        if self._loss is not None:
            self.recorder.note(self._loss)
            self._loss = None
        self.recorder.observe()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        if trainer.is_global_zero:
            self.recorder.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        self.recorder.detach()
