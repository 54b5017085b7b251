"""During and after training: checkpoints, their analysis, and the store of results."""

from .checkpoints import Checkpoint, CheckpointFile, list_checkpoints, load_into, read_checkpoint, save_checkpoint
from .recorder import LogSpaced, Recorder, log_spaced

__all__ = [
    "Checkpoint",
    "CheckpointFile",
    "LogSpaced",
    "Recorder",
    "list_checkpoints",
    "load_into",
    "log_spaced",
    "read_checkpoint",
    "save_checkpoint",
]
