"""The full form of every entry, which its page of the documentation shows."""

import pytest

from gallery_tolerances import broken_rules
from kpflow import gallery


@pytest.mark.slow
@pytest.mark.parametrize("name", gallery.names())
def test_every_check_of_the_full_form_passes(name):
    result = gallery.run(name)
    assert [str(check) for check in result.checks if not check.passed] == []
    assert broken_rules(result, short=False) == []
