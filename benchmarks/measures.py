"""How far results differ, and what a process has held at most."""

import pathlib
import resource

import torch
from torch import Tensor

__all__ = ["peak_gib", "relative_difference"]


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """‖got − expected‖ / ‖expected‖, accumulated in float64."""
    norms = [torch.linalg.vector_norm(value, dtype=torch.float64) for value in (got - expected, expected)]
    return float(norms[0] / norms[1])


def peak_gib() -> float:
    """The largest resident size of this process so far.

    The high-water mark of the process itself where the system tells it: that of `getrusage` includes what the process
    that started this one held.
    """
    status = pathlib.Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    marks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return (marks[0] if marks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**20
