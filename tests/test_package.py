"""What `import kpflow as kp` gives."""

import subprocess
import sys

import pytest

import kpflow as kp


def test_parts_that_need_extras_are_imported_when_they_are_used():
    code = (
        "import sys, kpflow as kp\n"
        "assert not {'kpflow.study', 'kpflow.plots', 'matplotlib', 'xarray'} & set(sys.modules)\n"
        "print(kp.study.Recorder.__name__, kp.optim.NaturalGradient.__name__, kp.gallery.get.__name__)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["Recorder", "NaturalGradient", "get"]


def test_names_of_the_package():
    assert {"study", "optim", "plots", "report", "gallery", "flow", "linearise"} <= set(dir(kp))
    with pytest.raises(AttributeError, match="module 'kpflow' has no attribute 'fluss'"):
        _ = kp.fluss
