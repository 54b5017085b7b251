"""`python -m benchmarks`: run all, print the tables, write `benchmarks/results/benchmarks.json` and its figure."""

import argparse
import datetime
import json
import os
import pathlib
import platform
from collections.abc import Callable
from typing import Any

import torch

import kpflow as kp

from . import estimates, figure, growth, products

RESULTS = pathlib.Path(__file__).parent / "results"

PARTS: dict[str, Callable[[int, torch.device], Any]] = {
    "products": products.run,
    "estimates": estimates.run,
    "growth": growth.run,
    "large": lambda _repeats, device: growth.large(device),
}


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


def main() -> None:
    """Run the benchmarks that are asked for; the others keep their last results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown parts {sorted(unknown)}; choose from {', '.join(PARTS)}")
    torch.set_num_threads(arguments.threads)
    name = "benchmarks" if arguments.device.type == "cpu" else f"benchmarks-{arguments.device.type}"
    path = RESULTS / f"{name}.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    record["machine"] = machine(arguments.threads, arguments.device)
    for part in arguments.parts:
        record[part] = PARTS[part](arguments.repeats, arguments.device)
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        _tell(part, record[part])
    if set(PARTS) <= set(record):
        figure.draw(record, path.with_suffix(".svg"))


def _tell(part: str, result: Any) -> None:
    """Print what was measured."""
    print(f"\n{part}")
    for row in result if isinstance(result, list) else [result]:
        shown = {key: value for key, value in row.items() if not isinstance(value, list)}
        print("  " + ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()))


if __name__ == "__main__":
    main()
