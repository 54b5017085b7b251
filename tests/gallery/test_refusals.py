"""Parameters outside of where a prediction holds are refused, with the reason."""

import math

import pytest

from kpflow import gallery


@pytest.mark.parametrize(
    ("name", "parameters", "reason"),
    [
        ("consensus", {"noise": 0.8}, r"`noise` must be at least 0 and below √\(2λ/d\) = 0.707; got 0.8: σ is"),
        ("consensus", {"noise": -0.3}, r"`noise` must be at least 0 and below √\(2λ/d\) = 0.707; got -0.3: σ is"),
        ("acceleration", {"condition": math.nan}, r"`condition` must be above 1 and finite; got nan: nothing is left"),
        ("acceleration", {"condition": math.inf}, r"`condition` must be above 1 and finite; got inf: nothing is left"),
        ("langevin", {"strength": 0.8}, r"`strength` must be at most 0.5; got 0.8: the mean is predicted to first"),
        ("gdes", {"push": 1.0}, r"`push` must be above 1.5 · `pull` = 1.05 and finite; got 1.0: what the"),
        ("gdes", {"push": math.inf}, r"`push` must be above 1.5 · `pull` = 1.05 and finite; got inf: what the"),
        ("ska", {"time": 50.0}, r"`time` must be between 10 and 30; got 50.0: before, knowledge is too small"),
        ("vagram", {"largest": 1.0}, r"`largest` must be at least 1.5 and finite; got 1.0: maximum likelihood"),
        ("vagram", {"largest": math.inf}, r"`largest` must be at least 1.5 and finite; got inf: maximum likelihood"),
        ("bayesian_gradient", {"ridge": 0.1}, r"`ridge` must be between 1e-11 and 1e-9; got 0.1: the gradient is"),
        ("mask_search", {"kept": 12}, r"`kept` must be below the number of weights, 12; got 12: there is nothing"),
        ("guided", {"curvature": -1.0}, r"`curvature` must be between 1 and 2.5; got -1.0: with less the sampler"),
        ("random_teacher", {"distance": 0.5}, r"`distance` must be above 0 and at most 0.1; got 0.5: farther away"),
        ("knowledge", {"noise": 0.9}, r"`noise` must be between 0 and 0.875, exclusive; got 0.9: beyond it a wrong"),
    ],
)
def test_where_no_prediction_holds(name, parameters, reason):
    with pytest.raises(ValueError, match=reason):
        gallery.get(name).make(**parameters)
