"""What the tests of tasks share: every task in several settings, and a way past the run-time type checks."""

import jaxtyping
import pytest

from kpflow.tasks import (
    ContextIntegration,
    FlipFlop,
    Integration,
    MemoryAnti,
    MemoryPro,
    MultiTask,
    RuleTask,
    SequentialDigits,
    StudentTeacher,
    get,
    names,
)
from kpflow.tasks.chaos import SYSTEMS
from kpflow.tasks.delayed_response import DelayAnti, DelayPro

SMALLER = {"yang": {"units": 8}, "chaos": {"steps": 10}}
"""Parameters that make the tasks of a family cheap and leave their definitions as they are."""

ALIKE = tuple(f"chaos_{system}" for system in SYSTEMS if system not in ("lorenz", "thomas"))
"""They differ from the other chaotic systems in numbers alone, which have tests of their own."""

CASES = {name: get(name, **SMALLER.get(name.split("_")[0], {})) for name in names() if name not in ALIKE} | {
    "memory_pro driscoll": MemoryPro.driscoll(),
    "memory_anti padded": MemoryAnti(timing="driscoll", context=0, order="sin_cos"),
    "delay_pro driscoll": DelayPro.driscoll(weighting="uniform"),
    "delay_anti tiny": DelayAnti(context=2, stimulus=1, memory=0, response=2, grace=20.0),
    "memory_anti one-hot": MemoryAnti(order="one_hot", angles=8, context=3),
    "flipflop dense": FlipFlop(K=2, steps=64, p=0.5, first="pulse", blind=2, dt=10.0, tau=100.0),
    "flipflop one bit": FlipFlop(K=1, steps=20, p=0.2),
    "integration with a bound": Integration(steps=40, bound=0.2, leak=0.1, sigma=0.3),
    "integration of pulses": Integration(steps=40, pulses=5.0, sigma=0.3),
    "context_integration paired": ContextIntegration(paired=True),
    "digits by rows": SequentialDigits(rows=True, sigma=0.1),
    "student_teacher correlated": StudentTeacher(correlation=100.0, sigma=0.1),
    "rules on rings": RuleTask("dmsgo", encoding="ring", units=6, order="sin_cos", weighting="uniform"),
    "rules in channels": RuleTask("multidm", timing="yang", baseline=0.1, dt=50.0),
    "fifteen tasks": MultiTask.driscoll(),
    "four tasks with a cue": MultiTask.memory_and_delay(5, stimulus=4, memory=6, response=7),
}


@pytest.fixture(params=list(CASES))
def task(request):
    return CASES[request.param]


@pytest.fixture
def no_type_checks():
    """Reach the package's own messages for values of a wrong type, as a user without the test hook does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
