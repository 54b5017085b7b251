"""`python -m benchmarks.outside`: check and time kpflow beside other libraries, write `results/outside.json`."""

import argparse
import importlib
import importlib.metadata
import json
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import kpflow as kp

from ..record import RESULTS, machine, tell
from . import checks, times, with_kpflow
from .peer import Peer

PEERS = ("nngeometry", "curvlinops", "backpack", "torchjd")

PARTS = {"checks": ("agreement", "layer_used_twice"), "times": ("matrices", "traces", "products")}


def found() -> tuple[list[Peer], list[str]]:
    """The libraries that are here, and the names of those that are not."""
    peers, missing = [with_kpflow.CONTRACTION], []
    for name in PEERS:
        try:
            peers.append(importlib.import_module(f".with_{name}", __package__).PEER)
        except ImportError as error:
            missing.append(f"{name} ({error})")
    return peers, missing


def main() -> None:
    """Run the checks, and the times unless only checks are asked for; the others keep their last results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown parts {sorted(unknown)}; choose from {', '.join(PARTS)}")
    warnings.simplefilter("ignore")  # the libraries' own
    torch.set_num_threads(arguments.threads)
    kp.linearise(nn.Linear(2, 2), torch.zeros(2, 2))  # what torch.export imports on its first call
    peers, missing = found()
    path = RESULTS / "outside.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    record["machine"] = machine(arguments.threads, torch.device("cpu"))
    record["libraries"] = {peer.package: importlib.metadata.version(peer.package) for peer in peers}
    record["not_installed"] = missing
    RESULTS.mkdir(exist_ok=True)
    calls = _calls(peers, arguments.repeats)
    for name in (name for part in arguments.parts for name in PARTS[part]):
        record[name] = calls[name]()
        path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        tell(name, record[name])


def _calls(peers: Sequence[Peer], repeats: int) -> dict[str, Callable[[], list[dict[str, Any]]]]:
    return {
        "agreement": lambda: checks.agreement(peers),
        "layer_used_twice": lambda: checks.layer_used_twice(peers),
        "matrices": lambda: times.matrices(peers, repeats),
        "traces": lambda: times.traces(peers, repeats),
        "products": lambda: times.products(peers, repeats),
    }


if __name__ == "__main__":
    main()
