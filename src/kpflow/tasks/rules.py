"""The rules of the tasks with directions of Driscoll et al. (2024) and Yang et al. (2019), as tables."""

import dataclasses
from collections.abc import Mapping
from typing import final

from .timing import Choice

__all__ = ["COHERENCES", "DRISCOLL_RULES", "EPOCHS", "GRIDS", "RULES", "TIMINGS", "YANG_RULES", "Rule", "resolve_rule"]


@final
@dataclasses.dataclass(frozen=True)
class Rule:
    """What distinguishes one task of the family from the others.

    Args:
        name: As in Driscoll et al. (2024), in lower case.
        code: In the code of Driscoll et al. and of Yang et al.
        label: In the figures of Yang et al. (2019).
        kind: "single", one direction; "decision", the stronger of two in one modality; "context", the stronger of two
            as `modality` has them, with both modalities shown; "sample", whether two directions are equal; "category",
            whether they lie on one half of the circle.
        schedule: Which of the tables of epochs and durations.
        opposite: Whether the answer is the opposite direction (single), or is given where there is no match.
        modality: The modality that counts: 1, 2, or 0 for any (single) or their sum (context).
    """

    name: str
    code: str
    label: str
    kind: str
    schedule: str
    opposite: bool = False
    modality: int = 0


RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("delay_pro", "fdgo", "Go", "single", "delay"),
        Rule("react_pro", "reactgo", "RT Go", "single", "react"),
        Rule("memory_pro", "delaygo", "Dly Go", "single", "memory"),
        Rule("delay_anti", "fdanti", "Anti", "single", "delay", opposite=True),
        Rule("react_anti", "reactanti", "RT Anti", "single", "react", opposite=True),
        Rule("memory_anti", "delayanti", "Dly Anti", "single", "memory", opposite=True),
        Rule("dm1", "dm1", "DM 1", "decision", "once", modality=1),
        Rule("dm2", "dm2", "DM 2", "decision", "once", modality=2),
        Rule("contextdm1", "contextdm1", "Ctx DM 1", "context", "once", modality=1),
        Rule("contextdm2", "contextdm2", "Ctx DM 2", "context", "once", modality=2),
        Rule("multidm", "multidm", "MultSen DM", "context", "once"),
        Rule("integration_modality1", "delaydm1", "Dly DM 1", "decision", "two", modality=1),
        Rule("integration_modality2", "delaydm2", "Dly DM 2", "decision", "two", modality=2),
        Rule("ctxt_int_modality1", "contextdelaydm1", "Ctx Dly DM 1", "context", "two_long", modality=1),
        Rule("ctxt_int_modality2", "contextdelaydm2", "Ctx Dly DM 2", "context", "two_long", modality=2),
        Rule("integration_multimodal", "multidelaydm", "MultSen Dly DM", "context", "two_long"),
        Rule("react_match2sample", "dmsgo", "DMS", "sample", "match"),
        Rule("react_nonmatch2sample", "dmsnogo", "DNMS", "sample", "match", opposite=True),
        Rule("react_category_pro", "dmcgo", "DMC", "category", "match_category"),
        Rule("react_category_anti", "dmcnogo", "DNMC", "category", "match_category", opposite=True),
    )
}
"""Each rule by its name, in the order of the rule inputs of Yang et al."""

YANG_RULES: tuple[str, ...] = tuple(RULES)
DRISCOLL_RULES: tuple[str, ...] = tuple(name for name, rule in RULES.items() if rule.schedule != "once")
"""The fifteen rules of Driscoll et al., in the order of their rule inputs."""


def resolve_rule(name: str) -> str:
    """The name of the rule that `name`, a code or a label of Yang et al. stands for; `name` itself if there is none.

    Example:
        >>> resolve_rule("delaygo"), resolve_rule("Dly Go"), resolve_rule("memory_pro")
        ('memory_pro', 'memory_pro', 'memory_pro')
    """
    also = {known: rule.name for rule in RULES.values() for known in (rule.code, rule.label)}
    return name if name in RULES else also.get(name, name)


TWO = ("context", "stimulus", "memory", "stimulus2", "memory2", "response")
MATCH = ("context", "stimulus", "memory", "response")

EPOCHS: Mapping[str, tuple[str, ...]] = {
    "delay": ("context", "stimulus", "response"),
    "memory": MATCH,
    "react": ("context", "response"),
    "two": TWO,
    "two_long": TWO,
    "once": ("context", "stimulus", "response"),
    "match": MATCH,
    "match_category": MATCH,
}
"""The epochs of each schedule, in the order of time."""

LONG = (200.0, 1600.0)
SHORT, DELAYS, FIXED = Choice((200.0, 400.0, 600.0)), Choice((200.0, 400.0, 800.0, 1600.0)), Choice((500.0,))
DRISCOLL_TWO = ((200.0, 600.0), LONG, LONG, LONG, (100.0, 300.0), (300.0, 700.0))
DRISCOLL_MATCH = ((200.0, 600.0), LONG, LONG, (300.0, 700.0))
YANG_TWO = (SHORT, SHORT, DELAYS, SHORT, (100.0, 300.0), FIXED)

TIMINGS: Mapping[str, Mapping[str, tuple[tuple[float, float] | Choice, ...]]] = {
    "driscoll": {
        "delay": ((300.0, 700.0), (200.0, 1500.0), (300.0, 700.0)),
        "memory": ((300.0, 700.0), LONG, LONG, (300.0, 700.0)),
        "react": ((500.0, 2500.0), (300.0, 1700.0)),
        "two": DRISCOLL_TWO,
        "two_long": DRISCOLL_TWO,
        "match": DRISCOLL_MATCH,
        "match_category": DRISCOLL_MATCH,
    },
    "yang": {
        "delay": ((300.0, 700.0), (500.0, 1500.0), FIXED),
        "memory": (Choice((300.0, 500.0, 700.0)), SHORT, DELAYS, FIXED),
        "react": ((500.0, 2500.0), FIXED),
        "two": YANG_TWO,
        "two_long": YANG_TWO,
        "once": ((100.0, 400.0), Choice((400.0, 800.0, 1600.0)), FIXED),
        "match": (SHORT, SHORT, DELAYS, FIXED),
        "match_category": (SHORT, SHORT, DELAYS, SHORT),
    },
}
"""Durations of the epochs of each schedule, ms: U(low, high), or one of a few."""

GRIDS: Mapping[str, tuple[float, ...]] = {
    "delay": (500.0, 1000.0, 500.0),
    "memory": (500.0, 500.0, 1000.0, 500.0),
    "react": (2000.0, 500.0),
    "two": (500.0, 500.0, 1000.0, 500.0, 200.0, 500.0),
    "two_long": (500.0, 500.0, 1000.0, 500.0, 500.0, 500.0),
    "once": (500.0, 1500.0, 500.0),
    "match": (500.0, 500.0, 1200.0, 500.0),
    "match_category": (500.0, 500.0, 1200.0, 500.0),
}
"""The same on the grid."""

COHERENCES: Mapping[str, Mapping[str, tuple[float, float] | Choice]] = {
    "driscoll": {"delayed": (0.005, 0.8), "sensory": (0.005, 0.8)},
    "yang": {
        "delayed": Choice((0.08, 0.16, 0.32)),
        "once": Choice((0.01, 0.02, 0.04, 0.08)),
        "sensory": (0.2, 0.8),
    },
}
"""Half the difference c of two strengths m ± c, one after the other or at once, and the share d in a (1 ± d/2)."""
