"""What the tests of tasks share: every task in several settings, and a way past the run-time type checks."""

import jaxtyping
import pytest

from kpflow.tasks import FlipFlop, MemoryAnti, MemoryPro, get, names
from kpflow.tasks.delayed_response import DelayAnti, DelayPro

CASES = {name: get(name) for name in names()} | {
    "memory_pro driscoll": MemoryPro.driscoll(),
    "memory_anti padded": MemoryAnti(timing="driscoll", context=0, order="sin_cos"),
    "delay_pro driscoll": DelayPro.driscoll(weighting="uniform"),
    "delay_anti tiny": DelayAnti(context=2, stimulus=1, memory=0, response=2, grace=20.0),
    "flipflop dense": FlipFlop(K=2, steps=64, p=0.5, first="pulse", blind=2, dt=10.0, tau=100.0),
    "flipflop one bit": FlipFlop(K=1, steps=20, p=0.2),
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
