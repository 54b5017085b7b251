"""What single entries refuse, and why."""

import pytest

from kpflow import gallery


def test_directpred_needs_a_decay_below_the_fold():
    with pytest.raises(
        ValueError, match=r"`decay` must be at least 0.005 and below τ²/4\(1 \+ σ²\) = 0.1667; got 0.2: with less"
    ):
        gallery.run("directpred", short=True, decay=0.2)


def test_acceleration_needs_something_to_accelerate():
    with pytest.raises(ValueError, match=r"`condition` must be above 1 and finite; got 1: nothing is left"):
        gallery.run("acceleration", short=True, condition=1.0)


def test_the_approach_stays_below_the_bifurcation():
    with pytest.raises(ValueError, match=r"`nearest` must be at least 0.5 and below 1; got 1: at w ≥ 1"):
        gallery.run("approach", short=True, nearest=1.0)
