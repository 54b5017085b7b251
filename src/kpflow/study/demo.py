"""The demo: a GRU learns to remember an angle, and every checkpoint of its training is analysed."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import torch
import xarray as xr
from torch import Tensor, nn

from kpflow import _checks
from kpflow.states.keeping import one_thread
from kpflow.tasks import MemoryPro, Task

from . import files
from .analysis import Settings
from .folder import Progress, analyse_folder
from .recorder import Recorder, log_spaced
from .training import train_step

__all__ = ["Demo", "Net", "analyse_demo", "train_demo"]


@final
class Net(nn.Module):
    """A GRU and a linear read-out; its weights are drawn from U(−1/√H, 1/√H), PyTorch's own choice, by `generator`.

    Example:
        >>> net = Net(3, 8, 3, torch.Generator().manual_seed(0))
        >>> net(torch.zeros(2, 5, 3)).shape
        torch.Size([2, 5, 3])
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, generator: torch.Generator) -> None:
        """Draw the weights; the global generator is not used."""
        nn.Module.__init__(self)
        self.rnn = nn.GRU(inputs, hidden, batch_first=True, device="meta").to_empty(device="cpu")
        self.readout = nn.Linear(hidden, outputs, device="meta").to_empty(device="cpu")
        bound = 1 / math.sqrt(hidden)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-bound, bound, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs `[B, T, O]` for inputs `[B, T, I]`."""
        return self.readout(self.rnn(inputs)[0])


@final
@dataclasses.dataclass(frozen=True)
class Demo:
    """What is trained in the demo, and how; the same values give the same numbers.

    Args:
        steps: Steps of Adam.
        hidden: Units of the GRU, H.
        seed: Of weights, trials and probes.
        batch: Trials in each step.
        learning_rate: Of Adam.
        per_decade: Checkpoints in each decade of steps.
        trials: Trials that are analysed.
    """

    steps: int = 1000
    hidden: int = 128
    seed: int = 0
    batch: int = 32
    learning_rate: float = 5e-3
    per_decade: int = 7
    trials: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "hidden", "batch", "per_decade", "trials"):
            _checks.check_positive(name, getattr(self, name), integer=True)
        _checks.check_positive("learning_rate", self.learning_rate)

    @property
    def task(self) -> Task:
        """MemoryPro, with its usual durations."""
        return MemoryPro()

    def model(self) -> Net:
        """The network before training."""
        return Net(self.task.num_inputs, self.hidden, self.task.num_outputs, torch.Generator().manual_seed(self.seed))


def train_demo(demo: Demo, folder: str | Path, *, progress: Callable[[int, float], None] | None = None) -> Path:
    """Train, writing checkpoints on a logarithmic grid of steps; goes on from the newest if there are some.

    Args:
        demo: What to train.
        folder: Where the run goes; the checkpoints are in `checkpoints`.
        progress: Called after each step with the step and the loss.

    Returns:
        The folder of the checkpoints.

    Raises:
        ValueError: The folder holds a run with other values, or the loss is not finite.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = train_demo(Demo(steps=3, hidden=4, batch=2), folder)
        ...     len(list(checkpoints.glob("*.safetensors")))
        4
    """
    folder = Path(folder)
    _claim(demo, folder)
    task, model = demo.task, demo.model()
    generator = torch.Generator().manual_seed(demo.seed + 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=demo.learning_rate)
    recorder = Recorder(
        model,
        folder / "checkpoints",
        log_spaced(demo.per_decade),
        metadata=dataclasses.asdict(demo),
        generators={"trials": generator},
        optimizer_state=True,
    )
    first = recorder.resume(optimizer) + 1
    if first > demo.steps:
        return recorder.folder
    with one_thread(), recorder.attach(optimizer):
        for step in range(first, demo.steps + 1):
            loss = train_step(model, optimizer, task, demo.batch, generator, note=recorder.note)
            if progress is not None:
                progress(step, loss)
    return recorder.folder


def analyse_demo(
    demo: Demo,
    folder: str | Path,
    *,
    settings: Settings | None = None,
    forecast: Callable[..., Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> xr.Dataset:
    """Analyse the checkpoints of a trained demo; goes on where it was interrupted.

    Args:
        demo: What was trained.
        folder: Where the run is; the record goes to `analysis`.
        settings: What decides the numbers; the defaults with the demo's seed if None.
        forecast: As of `analyse_folder`.
        progress: Called after each checkpoint, then after each interval.

    Raises:
        FileNotFoundError: The demo was not trained there.
        ValueError: As `analyse_folder`.

    Example:
        >>> import tempfile
        >>> demo = Demo(steps=1, hidden=3, batch=2, trials=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = train_demo(demo, folder)
        ...     record = analyse_demo(demo, folder, settings=Settings(modes=4, budget=8, starts=0))
        >>> record.attrs["title"], record["step"].values.tolist()
        ('A GRU with 3 units learns MemoryPro', [0, 1])
    """
    record = analyse_folder(
        Path(folder) / "checkpoints",
        demo.model,
        demo.task,
        core="rnn",
        trials=demo.trials,
        settings=settings or Settings(seed=demo.seed),
        store=Path(folder) / "analysis",
        forecast=forecast,
        progress=progress,
    )
    return record.assign_attrs(title=f"A GRU with {demo.hidden} units learns {type(demo.task).__name__}")


def _claim(demo: Demo, folder: Path) -> None:
    """Write what is trained here, or check that it is the same."""
    path, wanted = folder / "demo.json", dataclasses.asdict(demo)
    if not path.is_file():
        files.write_json(path, wanted)
        return
    found = files.read_json(path)
    different = [
        f"{name} {found.get(name)!r}, not {value!r}" for name, value in wanted.items() if found.get(name) != value
    ]
    if different:
        raise ValueError(
            f"`{folder}` must be free or hold the same run; got one with {', '.join(different)}. "
            "Choose another folder, or delete this one."
        )
