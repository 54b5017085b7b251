"""`python -m benchmarks`: run all, print the table, write `benchmarks/results/products.json`."""

import argparse
import datetime
import json
import os
import pathlib
import platform

import torch

import kpflow as kp

from . import products

RESULTS = pathlib.Path(__file__).parent / "results"


def machine(threads: int) -> dict[str, object]:
    """What the numbers were measured on."""
    return {
        "date": datetime.date.today().isoformat(),
        "kpflow": kp.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "dtype": "float32",
    }


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = products.run(arguments.repeats)
    RESULTS.mkdir(exist_ok=True)
    record = {"machine": machine(arguments.threads), "rows": rows}
    (RESULTS / "products.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    print(f"{'NTK product, 64 probes':32}{'baseline':>12}{'kpflow':>12}{'ratio':>8}   ms a probe")
    for row in rows:
        times = f"{row['baseline_ms_per_probe']:12.1f}{row['kpflow_ms_per_probe']:12.2f}"
        print(f"{row['problem']:32}{times}{row['ratio']:8.1f}")


if __name__ == "__main__":
    main()
