"""Store: whole steps only, whatever happens; results of different kinds are never mixed."""

import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import xarray as xr

from kpflow.study.store import Store, key_of


def one_step(step, size=6, offset=0.0):
    """A record of one step whose every entry tells the step."""
    values = np.full((1, 5, size), step + offset)
    return xr.Dataset(
        {
            **{f"big{i}": (("step", "trial", "time"), values + i) for i in range(4)},
            "loss": ("step", [step + offset]),
        },
        {"step": [step], "trial": np.arange(5), "time": np.arange(size), "name": ("trial", list("abcde"))},
        {"title": "a test", "seed": 0},
    )


def check_whole(record):
    for i in range(4):
        assert bool((record[f"big{i}"] == record["step"] + i).all())


def test_steps_come_back_sorted_with_coordinates_and_attributes(tmp_path):
    store = Store(tmp_path / "store")
    for step in (100, 0, 7):
        store.append(one_step(step), "k")
    record = store.read()
    xr.testing.assert_identical(
        record,
        xr.concat(
            [one_step(s) for s in (0, 7, 100)],
            "step",
            data_vars="minimal",
            coords="minimal",
            compat="equals",
            join="exact",
        ),
    )
    assert record["step"].values.tolist() == store.steps() == [0, 7, 100]
    assert record["name"].dtype.kind == "U"


APPENDING = """
    import sys
    sys.path.insert(0, {folder!r})
    from test_store import one_step
    from kpflow.study.store import Store

    store = Store({path!r})
    for step in range(10_000):
        store.append(one_step(step), "k")
"""


def kill_while_appending(path, pause):
    """Start a process that appends to the store, and kill it, as kill -9 does, `pause` seconds after a new step."""
    store = Store(path)
    before = len(store.steps())
    code = textwrap.dedent(APPENDING.format(folder=os.path.dirname(__file__), path=str(path)))
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stderr=subprocess.DEVNULL) as writer:
        deadline = time.monotonic() + 60
        while len(store.steps()) == before and writer.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(pause)
        writer.kill()
        assert writer.wait(60) == -signal.SIGKILL
    return len(store.steps())


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_at_random_moments_it_is_readable_and_goes_on(tmp_path):
    path = tmp_path / "store"
    pauses = random.Random(0)
    counts = [kill_while_appending(path, pauses.uniform(0, 0.2)) for _ in range(4)]
    assert counts == sorted(set(counts)), "each process goes on from the last"
    store = Store(path)
    steps = store.steps()
    assert len(steps) == counts[-1] > 0
    record = store.read()
    assert record["step"].values.tolist() == steps == list(range(len(steps)))
    check_whole(record)
    left = list((path / "steps").glob(".writing-*"))
    assert left, "no kill fell into a write: the test saw nothing"
    store.clean()
    assert not list((path / "steps").glob(".*"))
    store.append(one_step(len(steps)), "k")
    check_whole(store.read())


@pytest.mark.parametrize("stop", range(1, 40, 3))
def test_stopped_at_each_file_of_a_write_the_step_is_absent(stop, tmp_path, monkeypatch):
    """A step is written as many files; whichever was the last, the step is not there."""
    store = Store(tmp_path)
    store.append(one_step(0), "k")
    count = 0
    fsync = os.fsync

    def stopping(descriptor):
        nonlocal count
        count += 1
        if count == stop:
            raise KeyboardInterrupt
        fsync(descriptor)

    monkeypatch.setattr("kpflow.study.store.os.fsync", stopping)
    try:
        store.append(one_step(1), "k")
        stopped = False
    except KeyboardInterrupt:
        stopped = True
    monkeypatch.undo()
    assert store.steps() == ([0] if stopped else [0, 1])
    check_whole(store.read())
    store.append(one_step(1), "k")
    assert store.steps() == [0, 1]
    check_whole(store.read())


def test_a_step_appears_by_one_rename_and_nothing_else(tmp_path, monkeypatch):
    replace = os.replace

    def stopping(source, target):
        if os.path.basename(source).startswith(".writing-"):  # zarr renames files inside, in a thread of its own
            raise KeyboardInterrupt
        replace(source, target)

    store = Store(tmp_path)
    store.append(one_step(0), "k")
    monkeypatch.setattr("kpflow.study.store.os.replace", stopping)
    with pytest.raises(KeyboardInterrupt):
        store.append(one_step(1), "k")
    assert store.steps() == [0]


def test_results_of_other_settings_are_never_mixed(tmp_path):
    store = Store(tmp_path)
    old, new = key_of({"probes": 8}, "w"), key_of({"probes": 16}, "w")
    for step in (0, 1, 2):
        store.append(one_step(step), old)
    store.append(one_step(0, offset=0.5), new)
    with pytest.raises(ValueError, match=r"which analysis of step 0 to read; got several\. Call select\(\)"):
        store.read()
    store.select({0: new, 1: new, 2: new})
    assert store.steps() == [0]
    assert store.read()["loss"].values.tolist() == [0.5]
    assert [store.has(step, new) for step in (0, 1)] == [True, False]
    store.select({0: old, 1: old, 2: old})
    assert store.read()["loss"].values.tolist() == [0, 1, 2]


def test_keys_depend_on_settings_and_weights():
    keys = {key_of({"probes": 8, "seed": 0}, "a"), key_of({"probes": 8, "seed": 1}, "a"), key_of({"probes": 8}, "b")}
    assert len(keys) == 3
    assert key_of({"a": 1, "b": 2}, "w") == key_of({"b": 2, "a": 1}, "w")


def test_a_written_step_is_never_changed(tmp_path):
    store = Store(tmp_path)
    store.append(one_step(3), "k")
    store.append(one_step(3, offset=1.0), "k")
    assert store.read()["loss"].item() == 3


def test_one_group_for_other_tools(tmp_path):
    store = Store(tmp_path)
    for step in (0, 1):
        store.append(one_step(step), "k")
    store.consolidate()
    store.append(one_step(2), "k")
    with xr.open_zarr(store.consolidate(), consolidated=False, chunks=None) as record:
        assert record["step"].values.tolist() == [0, 1, 2]
        check_whole(record.load())
    assert not list(tmp_path.glob(".writing*"))


def test_steps_that_do_not_fit_together(tmp_path):
    store = Store(tmp_path)
    store.append(one_step(0), "k")
    store.append(one_step(1, size=7), "k")
    with pytest.raises(ValueError, match=r"cannot be joined.*time.*Analyse them again"):
        store.read()


def test_a_full_disk(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.append(one_step(0), "k")

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("kpflow.study.store.os.fsync", full)
    with pytest.raises(OSError, match=r"could not be written: No space left on device\. The steps before are intact"):
        store.append(one_step(1), "k")
    monkeypatch.undo()
    assert store.steps() == [0]
    assert not list((tmp_path / "steps").glob(".*"))


def test_a_damaged_step_is_named(tmp_path):
    store = Store(tmp_path)
    store.append(one_step(0), "k")
    (tmp_path / "steps" / "00000000-k" / "loss" / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match=r"00000000-k` must be a whole zarr group; .*Delete it and run the analysis"):
        store.read()


def test_bad_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no analysed step\. Analyse its checkpoints first: `kpflow"):
        Store(tmp_path / "nothing").read()
    two = xr.Dataset({"loss": ("step", [1.0, 2.0])}, {"step": [0, 1]})
    with pytest.raises(ValueError, match=r"`dataset` must have a coordinate `step` of length 1; .*one step at a time"):
        Store(tmp_path).append(two, "k")
