"""During and after training: checkpoints, their analysis, and the store of results."""

from .analysis import Settings, analyse
from .checkpoints import Checkpoint, CheckpointFile, list_checkpoints, load_into, read_checkpoint, save_checkpoint
from .demo import Demo, analyse_demo, train_demo
from .folder import Progress, analyse_folder
from .recorder import LogSpaced, Recorder, log_spaced
from .store import Store, key_of

__all__ = [
    "Checkpoint",
    "CheckpointFile",
    "Demo",
    "LogSpaced",
    "Progress",
    "Recorder",
    "Settings",
    "Store",
    "analyse",
    "analyse_demo",
    "analyse_folder",
    "key_of",
    "list_checkpoints",
    "load_into",
    "log_spaced",
    "read_checkpoint",
    "save_checkpoint",
    "train_demo",
]
