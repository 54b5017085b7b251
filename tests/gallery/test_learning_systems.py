"""What single entries refuse, and why."""

import pytest

from kpflow import gallery


def test_directpred_needs_a_decay_below_the_fold():
    with pytest.raises(
        ValueError, match=r"`decay` must be between 0 and τ²/4\(1 \+ σ²\) = 0.1667; got 0.2: beyond the fold"
    ):
        gallery.run("directpred", short=True, decay=0.2)
