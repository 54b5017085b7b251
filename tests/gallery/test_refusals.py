"""Parameters outside of where a prediction holds are refused, with the reason."""

import pytest

from kpflow import gallery


@pytest.mark.parametrize(
    ("name", "parameters", "reason"),
    [
        ("consensus", {"noise": 0.8}, r"`noise` must be below √\(2λ/d\) = 0.707; got 0.8: at 2λ ≤ dσ² the swarm does"),
    ],
)
def test_where_no_prediction_holds(name, parameters, reason):
    with pytest.raises(ValueError, match=reason):
        gallery.get(name).make(**parameters)
