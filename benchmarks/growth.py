"""How a product's time grows with trials, steps and probes, and what a problem of a million states takes."""

import json
import math
import statistics
import subprocess
import sys
from typing import Any

import torch
from torch import nn

import kpflow as kp

from .measures import peak_gib
from .timing import seconds

__all__ = ["large", "run"]

SIZES = {"trials": 16, "steps": 50, "probes": 32}
FACTORS = (1, 2, 4, 8)


def run(repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """For each of the three sizes, seconds of a block at 1, 2, 4 and 8 times it, and the exponent of a power law."""
    return [_row(name, repeats, device) for name in SIZES]


def _row(name: str, repeats: int, device: torch.device) -> dict[str, Any]:
    sizes = [factor * SIZES[name] for factor in FACTORS]
    times = [_time(SIZES | {name: size}, repeats, device) for size in sizes]
    logs = [(math.log(size), math.log(time)) for size, time in zip(sizes, times, strict=True)]
    return {
        "grows": name,
        "sizes": sizes,
        "seconds": times,
        "exponent": statistics.linear_regression(*zip(*logs, strict=True)).slope,
    }


def _time(sizes: dict[str, int], repeats: int, device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(sizes["trials"], sizes["steps"], 10, generator=generator).to(device)
    lin = kp.linearise(nn.GRU(10, 64, batch_first=True, device=device), inputs)
    ntk, probes = kp.Ntk(lin), torch.randn(sizes["probes"], *lin.space.shape, generator=generator).to(device)
    ntk(probes)
    return statistics.median(seconds(lambda: ntk(probes), device) for _ in range(repeats))


def large(device: torch.device) -> dict[str, Any]:
    """Trace and effective rank to 2 % of a GRU with a million states, in a process of its own, with its peak memory."""
    command = [sys.executable, "-m", "benchmarks.growth", str(device), str(torch.get_num_threads())]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _large(device: torch.device) -> dict[str, Any]:
    inputs = torch.randn(40, 100, 10, generator=torch.Generator().manual_seed(0)).to(device)
    model = nn.GRU(10, 256, batch_first=True, device=device)
    found: dict[str, Any] = {}

    def work() -> None:
        lin = kp.linearise(model, inputs)
        ntk = kp.Ntk(lin)
        found["states"] = lin.space.size
        found["trace"] = str(kp.estimate.trace(ntk, rtol=0.02))
        found["effective_rank"] = str(kp.estimate.effective_rank(ntk, rtol=0.02))

    found["seconds"] = seconds(work, device)
    found["peak_gib"] = peak_gib()
    return found


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    print(json.dumps(_large(torch.device(sys.argv[1]))))
