"""The entries by name. A new one is one more line here."""

from collections.abc import Mapping
from typing import Any

from kpflow._checks import suggestion

from .acceleration import Acceleration
from .approach import Approach
from .bayesian_gradient import BayesianGradient
from .consensus import Consensus
from .curl import Curl
from .directpred import DirectPred
from .double_descent import DoubleDescent
from .drift import Drift
from .entanglement import Entanglement
from .entry import Entry
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

__all__ = ["ENTRIES", "get", "names"]

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
