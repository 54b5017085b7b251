"""Tasks: trials with inputs, targets, weights, epochs and conditions, and what counts as solving them.

Those that neurogym defines are in `kpflow.tasks.neurogym_task`, which is imported on demand alone.
"""

from .base import Task
from .chaos import ChaosForecast
from .comparison import DelayedMatch, ParametricWorkingMemory
from .delayed_response import DelayAnti, DelayedResponse, DelayPro, MemoryAnti, MemoryPro
from .digits import SequentialDigits
from .evidence import ContextIntegration, EvidenceTask, PerceptualIntegration
from .flipflop import FlipFlop
from .forecast import LowRankForecast
from .integration import AngularIntegration, Integration
from .multitask import MultiTask
from .registry import get, names
from .rule_task import RuleTask
from .sequences import Copy, DelayedAddition
from .sine import SineGenerator
from .student import StudentTeacher
from .trials import Trials

__all__ = [
    "AngularIntegration",
    "ChaosForecast",
    "ContextIntegration",
    "Copy",
    "DelayAnti",
    "DelayPro",
    "DelayedAddition",
    "DelayedMatch",
    "DelayedResponse",
    "EvidenceTask",
    "FlipFlop",
    "Integration",
    "LowRankForecast",
    "MemoryAnti",
    "MemoryPro",
    "MultiTask",
    "ParametricWorkingMemory",
    "PerceptualIntegration",
    "RuleTask",
    "SequentialDigits",
    "SineGenerator",
    "StudentTeacher",
    "Task",
    "Trials",
    "get",
    "names",
]
