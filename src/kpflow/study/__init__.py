"""During and after training: checkpoints, their analysis, and the store of results.

The recorder's callbacks are in `kpflow.study.lightning_callback` and `kpflow.study.transformers_callback`, which are
imported on demand alone.
"""

from .analysis import Settings, analyse
from .budget import TimeBudget
from .checkpoints import Checkpoint, CheckpointFile, list_checkpoints, load_into, read_checkpoint, save_checkpoint
from .collapse import NeuralCollapse, linear_cka, neural_collapse
from .compared import OwnLosses, task_groups, task_objectives
from .demo import Demo, analyse_demo, train_demo
from .folder import Progress, analyse_folder, read_record
from .objectives import objective_record
from .recorder import Recorder
from .schedules import AnyOf, Every, LogSpaced, LossJump, Schedule, every, log_spaced, on_loss_jump
from .store import Store, key_of
from .training import Trained, train

__all__ = [
    "AnyOf",
    "Checkpoint",
    "CheckpointFile",
    "Demo",
    "Every",
    "LogSpaced",
    "LossJump",
    "NeuralCollapse",
    "OwnLosses",
    "Progress",
    "Recorder",
    "Schedule",
    "Settings",
    "Store",
    "TimeBudget",
    "Trained",
    "analyse",
    "analyse_demo",
    "analyse_folder",
    "every",
    "key_of",
    "linear_cka",
    "list_checkpoints",
    "load_into",
    "log_spaced",
    "neural_collapse",
    "objective_record",
    "on_loss_jump",
    "read_checkpoint",
    "read_record",
    "save_checkpoint",
    "task_groups",
    "task_objectives",
    "train",
    "train_demo",
]
