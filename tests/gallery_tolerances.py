"""The rule that tolerances of Monte Carlo checks obey: they are set from the errors over seeds."""

import pytest

from kpflow.gallery import Result, spreads

SEEDS = 5
"""At least so many."""

WIDEST = 4
"""A tolerance is at least the largest error over seeds, and at most so many times the largest of both forms. A bound
(at least, at most) is a statement, and holds with every seed."""


def broken_rules(result: Result, *, short: bool) -> list[str]:
    """What is wrong with the tolerances of a result."""
    measure = f"run `kpflow gallery {result.name} --spread`"
    of_chance = [check for check in result.checks if check.kind == "monte-carlo"]
    gone = spreads.read(result.name, short=short).keys() - {check.what for check in of_chance}
    found = [f"{what}: no such check any more, {measure}" for what in sorted(gone)]
    for check in of_chance:
        both = [error for form in (True, False) for error in spreads.read(result.name, short=form).get(check.what, ())]
        if len(check.spread) < SEEDS:
            found.append(f"{check}: no spread, {measure}")
        elif check.spread[0] != pytest.approx(check.error, rel=1e-2, abs=1e-2 * max(map(abs, check.spread))):
            found.append(f"{check}: with seed 0 it was {check.spread[0]:g}, {measure}")
        elif not all(error <= check.tolerance for error in check.spread):
            found.append(f"{check}: a seed fails")
        elif check.sign == "=" and check.tolerance > WIDEST * max(both):
            found.append(f"{check}: the tolerance is too wide")
    return found
