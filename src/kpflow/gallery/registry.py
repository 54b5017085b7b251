"""The entries by name. A new one is one more line here."""

import inspect
import time
from collections.abc import Mapping
from typing import Any

import torch

from kpflow._checks import check_range, suggestion
from kpflow.states.keeping import one_thread

from .acceleration import Acceleration
from .approach import Approach
from .bayesian_gradient import BayesianGradient
from .consensus import Consensus
from .curl import Curl
from .directpred import DirectPred
from .double_descent import DoubleDescent
from .drift import Drift
from .entanglement import Entanglement
from .entry import Entry, Result
from .forcing import TeacherForcing
from .gdes import Gdes
from .generalisation import Generalisation
from .grokking import Grokking
from .guided import Guided
from .in_context import InContext
from .infinite_width import InfiniteWidth
from .knowledge import Knowledge
from .langevin import Langevin
from .low_rank import LowRank
from .mask_search import MaskSearch
from .modular import ModularAddition
from .noether import Noether
from .random_teacher import RandomTeacher
from .saddles import Saddles
from .saxe import Saxe
from .scan_and_snap import ScanAndSnap
from .ska import Ska
from .synchronisation import Synchronisation
from .truncation import Truncation
from .vagram import Vagram
from .workers import Workers

__all__ = ["ENTRIES", "get", "names", "run"]

ENTRIES: Mapping[str, Entry[Any, Any, Any]] = {
    entry.name: entry
    for entry in (
        Saxe(),
        Saddles(),
        Truncation(),
        Noether(),
        Approach(),
        Acceleration(),
        DoubleDescent(),
        DirectPred(),
        Generalisation(),
        Curl(),
        Drift(),
        TeacherForcing(),
        Consensus(),
        Entanglement(),
        Langevin(),
        Synchronisation(),
        Workers(),
        LowRank(),
        ScanAndSnap(),
        Gdes(),
        Ska(),
        Vagram(),
        BayesianGradient(),
        MaskSearch(),
        Guided(),
        InfiniteWidth(),
        RandomTeacher(),
        ModularAddition(),
        InContext(),
        Grokking(),
        Knowledge(),
    )
}
"""All entries by name, exact ones first."""


def names() -> tuple[str, ...]:
    """The names of all entries, exact ones first.

    Example:
        >>> names()[0]
        'saxe'
    """
    return tuple(ENTRIES)


def get(name: str) -> Entry[Any, Any, Any]:
    """The entry of a name.

    Raises:
        ValueError: There is none; says which is nearest.

    Example:
        >>> get("sax")
        Traceback (most recent call last):
        ...
        ValueError: `name` must be an entry of the gallery; got 'sax'. Did you mean 'saxe'? ...
    """
    if name not in ENTRIES:
        raise ValueError(f"`name` must be an entry of the gallery; got {name!r}. {suggestion(name, ENTRIES)}")
    return ENTRIES[name]


def run(name: str, seed: int = 0, *, short: bool = False, broken: bool = False, **parameters: Any) -> Result:
    """Make, run, predict and check one entry, on one thread: its tensors are tiny.

    Args:
        name: Of the entry.
        seed: Of all that is random.
        short: A smaller form that takes a second or two.
        broken: With a deliberate mistake, so that a check fails.
        parameters: Others of the entry's `make`.

    Raises:
        ValueError: There is no such entry, or a parameter is outside of where its prediction holds.
        TypeError: The entry has no such parameter.

    Example:
        >>> run("saxe", short=True).passed
        True
    """
    entry = get(name)
    check_range("seed", seed, 0, integer=True)
    known = [key for key in inspect.signature(entry.make).parameters if key not in ("seed", "short", "broken")]
    for parameter in parameters:
        if parameter not in known:
            there_are = f"There are: {', '.join(known)}." if known else "It has none."
            raise TypeError(f"`{parameter}` is no parameter of {name}. {there_are}")
    start = time.perf_counter()
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of what modules draw when they are made; put back afterwards
        system = entry.make(seed, short=short, broken=broken, **parameters)
        observed, predicted = entry.run(system), entry.predict(system)
        checks = tuple(entry.check(system, observed, predicted))
        panels = entry.panels(system, observed, predicted)
    return Result(name, entry.title, seed, checks, panels, time.perf_counter() - start)
