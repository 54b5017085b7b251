"""`python -m benchmarks`: run all, print the tables, write `benchmarks/results/benchmarks.json` and its figure."""

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

import torch

from . import estimates, exponents, figure, fixed_points, graphs, growth, objectives, optimisers, products
from .record import RESULTS, machine, tell

PARTS: dict[str, Callable[[int, torch.device], Any]] = {
    "products": products.run,
    "estimates": estimates.run,
    "growth": growth.run,
    "graphs": graphs.run,
    "exponents": exponents.run,
    "objectives": objectives.run,
    "optimisers": optimisers.run,
    "fixed_points": fixed_points.run,
    "large": lambda _repeats, device: growth.large(device),
}


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
        tell(part, record[part])
    if set(PARTS) <= set(record):
        figure.draw(record, path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
