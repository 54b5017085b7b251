"""Parameters of entries: others within the validity pass too, those outside are refused with the reason."""

import pytest

from kpflow import gallery

OUTSIDE = {
    (
        "synchronisation",
        "coupling",
        -0.1,
    ): "`coupling` must be between 0 and 5; got -0.1. Negative coupling makes",
    ("workers", "correlation", -0.2): "`correlation` must be between 0 and 1; got -0.2. Directions of many agents",
    ("low_rank", "decay", 0.0): "`decay` must be between 0.02 and 1; got 0.0. With less the start is not forgotten",
}


@pytest.mark.parametrize(("name", "parameter", "value"), OUTSIDE)
def test_a_parameter_outside_of_the_validity_is_refused(name, parameter, value):
    with pytest.raises(ValueError, match=OUTSIDE[name, parameter, value]):
        gallery.run(name, short=True, **{parameter: value})


WITHIN = [
    ("synchronisation", {"coupling": 2.0}),
    ("low_rank", {"decay": 0.3}),
    ("gdes", {"pull": 0.1, "push": 3.0}),
    ("gdes", {"pull": 0.1, "push": 1.9}),
    ("gdes", {"pull": 1.0, "push": 3.0}),
    ("gdes", {"pull": 1.0, "push": 2.0}),
    ("vagram", {"largest": 2.5}),
    ("vagram", {"largest": 20.0}),
    ("consensus", {"noise": 0.5}),
    ("langevin", {"strength": 0.5}),
    ("knowledge", {"noise": 0.3}),
    ("directpred", {"decay": 0.005}),
    ("mask_search", {"kept": 2}),
    ("random_teacher", {"distance": 0.003}),
]


@pytest.mark.parametrize(("name", "value"), WITHIN)
def test_another_value_within_passes(name, value):
    checks = gallery.run(name, short=True, **value).checks
    assert [str(check) for check in checks if check.kind != "monte-carlo" and not check.passed] == []
