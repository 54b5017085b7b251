"""Tasks by name."""

import pytest

from kpflow.tasks import MemoryPro, get, names


def test_names_make_tasks_of_that_name():
    assert set(names()) >= {"memory_pro", "memory_anti", "delay_pro", "delay_anti", "flipflop"}
    for name in names():
        assert get(name).name == name
    assert get("driscoll_memory_pro", rule="react_pro").name == "driscoll_react_pro"


def test_parameters_are_passed_on():
    assert get("memory_pro", stimulus=7, sigma=0.0) == MemoryPro(stimulus=7, sigma=0.0)


@pytest.mark.parametrize(
    ("wrong", "right"), [("memory-pro", "memory_pro"), ("flip_flop", "flipflop"), ("yang_dms1", "yang_dm1")]
)
def test_an_unknown_name_brings_the_nearest(wrong, right):
    message = rf"`name` must be a task; got '{wrong}'. Did you mean '{right}'\? There are: memory_pro, memory_anti"
    with pytest.raises(ValueError, match=message):
        get(wrong)


def test_a_name_like_none_brings_the_list():
    with pytest.raises(ValueError, match=r"`name` must be a task; got 'zzz'. There are: memory_pro, "):
        get("zzz")


def test_an_unknown_parameter_brings_the_nearest():
    with pytest.raises(TypeError, match=r"`stimulu` is no parameter of memory_pro. Did you mean 'stimulus'\?"):
        get("memory_pro", stimulu=3)
    with pytest.raises(TypeError, match=r"`name` is no parameter of memory_pro\. "):
        get("memory_pro", name="x")
    with pytest.raises(TypeError, match=r"`qq` is no parameter of flipflop. There are: K, steps, p, "):
        get("flipflop", qq=3)
