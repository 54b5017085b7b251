"""Parameters outside of where a prediction holds are refused, with the reason."""

import math

import pytest

from kpflow import gallery


@pytest.mark.parametrize(
    ("name", "parameters", "reason"),
    [
        ("consensus", {"noise": 0.8}, "`noise` must be at least 0 and at most 0.5; got 0.8: σ is"),
        ("consensus", {"noise": -0.3}, "`noise` must be at least 0 and at most 0.5; got -0.3: σ is"),
        ("acceleration", {"condition": math.nan}, r"`condition` must be above 1 and finite; got nan: nothing is left"),
        ("acceleration", {"condition": math.inf}, r"`condition` must be above 1 and finite; got inf: nothing is left"),
        (
            "langevin",
            {"strength": 0.8},
            "`strength` must be between 0.3 and 0.5; got 0.8: the mean is predicted",
        ),
        (
            "gdes",
            {"push": 1.0},
            r"`push` must be between 1.7, the larger of 1 \+ `pull` and 2 − `pull`, and 3; got",
        ),
        (
            "gdes",
            {"push": 1e4},
            r"`push` must be between 1.7, .* and 3; got 10000.0: .* steps are too long",
        ),
        (
            "gdes",
            {"push": math.inf},
            r"`push` must be between 1.7, .* and 3; got inf: with less what the",
        ),
        ("gdes", {"pull": 5.0}, r"`pull` must be a number between 0.1 and 1; got 5.0"),
        ("ska", {"time": 50.0}, r"`time` must be between 10 and 30; got 50.0: before, knowledge is too small"),
        ("vagram", {"largest": 1.0}, r"`largest` must be between 2.5 and 20; got 1.0: maximum likelihood misses"),
        ("vagram", {"largest": 1e6}, r"`largest` must be between 2.5 and 20; got 1000000.0: .* the steps are too long"),
        ("vagram", {"largest": math.inf}, r"`largest` must be between 2.5 and 20; got inf: maximum likelihood misses"),
        ("bayesian_gradient", {"ridge": 0.1}, r"`ridge` must be between 1e-11 and 1e-9; got 0.1: the gradient is"),
        (
            "mask_search",
            {"kept": 12},
            "`kept` must be at most half of the 12 weights; got 12: with more there is",
        ),
        ("guided", {"curvature": -1.0}, r"`curvature` must be between 1 and 2.5; got -1.0: with less the sampler"),
        ("random_teacher", {"distance": 0.5}, "`distance` must be between 0.003 and 0.1; got 0.5: farther away"),
        ("knowledge", {"noise": 0.9}, "`noise` must be above 0 and at most 0.3; got 0.9: with none there is no"),
    ],
)
def test_where_no_prediction_holds(name, parameters, reason):
    with pytest.raises(ValueError, match=reason):
        gallery.get(name).make(**parameters)
