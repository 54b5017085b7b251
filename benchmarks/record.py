"""What is kept of a run: where it was measured, and how it is printed."""

import datetime
import os
import pathlib
import platform
from typing import Any

import torch

import kpflow as kp

__all__ = ["RESULTS", "machine", "tell"]

RESULTS = pathlib.Path(__file__).parent / "results"


def machine(threads: int, device: torch.device) -> dict[str, object]:
    """What the numbers were measured on."""
    return {
        "date": datetime.date.today().isoformat(),
        "kpflow": kp.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
    }


def _processor() -> str:
    """The processor's name, where the system tells it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def tell(part: str, result: Any) -> None:
    """Print what was measured."""
    print(f"\n{part}")
    for row in result if isinstance(result, list) else [result]:
        shown = {key: value for key, value in row.items() if not isinstance(value, list)}
        print("  " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()))
