"""The command line: what it writes, what it says, and its exit codes."""

import functools
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from kpflow import gallery
from kpflow.cli import app, load_factory, run

MODELS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 3, batch_first=True)
        self.readout = nn.Linear(3, 3)

    def forward(self, x):
        return self.readout(self.rnn(x)[0])

def make():
    return Net()

def broken():
    raise RuntimeError("no data here")

def needs(size):
    return Net()

number = 3
"""

QUICK = ["--trials", "3", "--budget", "12", "--set", "stimulus=2", "--set", "memory=2", "--set", "response=2"]
QUICK += ["--set", "grace=0.0"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current directory with a module of models and a folder of checkpoints."""
    name = f"models_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    make = load_factory(f"{name}:make")
    (tmp_path / "run").mkdir()
    torch.manual_seed(0)
    for step in (0, 20):
        torch.save(make().state_dict(), tmp_path / "run" / f"step_{step}.pt")
    return name


def test_analyze_and_report(folder, tmp_path, capsys):
    arguments = ["analyze", "run", "--model", f"{folder}:make", "--task", "memory_pro", "--core", "rnn", *QUICK]
    assert run(arguments) == 0
    said = capsys.readouterr()
    assert "number in each file's name" in said.out
    assert "effective rank of the NTK" in said.out
    assert "step 20" in said.out
    assert said.out.splitlines()[-1] == "Report: run/report.html"
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.startswith("<!") and "memory" in page.lower()  # noqa: PT018
    assert run(["report", "run", "--out", "again.html", "--title", "Once more [/b]"]) == 0
    assert "<title>Once more [/b]</title>" in (tmp_path / "again.html").read_text()
    assert "Once more [/b]" in capsys.readouterr().out


def test_demo(tmp_path, capsys):
    arguments = ["demo", "--folder", str(tmp_path / "d"), "--steps", "1", "--hidden", "4"]
    assert run(arguments) == 0
    assert "A GRU with 4 units learns MemoryPro" in capsys.readouterr().out
    assert (tmp_path / "d" / "report.html").is_file()
    assert run([*arguments, "--seed", "1"]) == 1
    assert "got one with seed 0, not 1" in capsys.readouterr().err


def wrong(arguments, capsys, code=1):
    """The one line on stderr of a command that fails."""
    assert run(arguments) == code
    said = capsys.readouterr().err
    assert said.startswith("kpflow: ")
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("make", "`--model` must be module:factory, such as train:make_model; got 'make'"),
        ("nowhere_at_all:make", "could not be imported: there is no module 'nowhere_at_all'"),
        ("{}:mak", "has no function 'mak'; the nearest are make"),
        ("{}:number", "has no function 'number'"),
        ("{}:broken", "failed: RuntimeError: no data here. It must work without arguments"),
        ("{}:needs", "failed: TypeError: needs() missing 1 required positional argument: 'size'"),
        ("json:loads", "failed: TypeError"),
        ("collections:OrderedDict", "`make_model` must give a torch.nn.Module; got OrderedDict"),
    ],
)
def test_a_wrong_model(model, says, folder, capsys):
    arguments = ["analyze", "run", "--task", "memory_pro", "--model", model.format(folder)]
    assert says in wrong(arguments, capsys)


def test_a_module_that_fails(folder, tmp_path, capsys):
    (tmp_path / f"{folder}_bad.py").write_text("1 / 0")
    said = wrong(["analyze", "run", "--task", "memory_pro", "--model", f"{folder}_bad:make"], capsys)
    assert "could not be imported: ZeroDivisionError: division by zero" in said
    (tmp_path / f"{folder}_needy.py").write_text("import not_installed_at_all")
    said = wrong(["analyze", "run", "--task", "memory_pro", "--model", f"{folder}_needy:make"], capsys)
    assert "there is no module 'not_installed_at_all'" in said


def test_a_module_that_ends_the_program(folder, tmp_path, capsys):
    (tmp_path / f"{folder}_parses.py").write_text("import sys\nsys.exit(2)")
    said = wrong(["analyze", "run", "--task", "memory_pro", "--model", f"{folder}_parses:make"], capsys)
    assert f"could not be imported: {folder}_parses ends the program, as parse_args does. Put that under" in said
    (tmp_path / f"{folder}_late.py").write_text("import sys\ndef make():\n    sys.exit('no data')")
    said = wrong(["analyze", "run", "--task", "memory_pro", "--model", f"{folder}_late:make"], capsys)
    assert "failed: SystemExit: no data. It must work without arguments" in said


def test_other_mistakes(folder, tmp_path, capsys):
    base = ["analyze", "run", "--model", f"{folder}:make", *QUICK]
    assert "Did you mean 'memory_pro'?" in wrong([*base, "--task", "memory_por"], capsys)
    assert "`stimulu` is no parameter of memory_pro" in wrong(
        [*base, "--task", "memory_pro", "--set", "stimulu=3"], capsys
    )
    assert "`--set` must be name=value" in wrong([*base, "--task", "memory_pro", "--set", "stimulus"], capsys)
    assert "name its recurrent submodule with `core`" in wrong([*base, "--task", "memory_pro"], capsys)
    assert "it has 'rnn'" in wrong([*base, "--task", "memory_pro", "--core", "gru"], capsys)
    nothing = ["analyze", "nothing", "--model", f"{folder}:make", "--task", "memory_pro"]
    assert "no folder `nothing`" in wrong(nothing, capsys)
    (tmp_path / "empty").mkdir()
    nothing[1] = "empty"
    assert "must hold checkpoints" in wrong(nothing, capsys)
    assert "holds no analysed step" in wrong(["report", "empty"], capsys)
    assert "`hidden` must be a positive whole number; got 0" in wrong(["demo", "--hidden", "0"], capsys)
    torch.save(nn.GRU(3, 7).state_dict(), tmp_path / "empty" / "step_1.pt")
    assert "missing: readout.bias" in wrong(nothing, capsys)


def test_an_error_of_the_system_names_the_file(tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.write_text("")
    said = wrong(["gallery", "saxe", "--short", "--folder", str(taken)], capsys)
    assert said == f"kpflow: File exists: {taken}\n"


def test_wrong_usage_has_its_own_code(capsys):
    assert "No such command 'demi'" in wrong(["demi"], capsys, code=2)
    assert "Missing option '--model'" in wrong(["analyze", "run"], capsys, code=2)
    assert "--steps" in wrong(["demo", "--steps", "many"], capsys, code=2)


def test_an_unexpected_fault_is_one_line_too(monkeypatch, capsys, tmp_path):
    def fail(*_args, **_options):
        raise RuntimeError("something\nstrange")

    monkeypatch.setattr("kpflow.cli.study.train_demo", fail)
    arguments = ["demo", "--folder", str(tmp_path)]
    assert "unexpected RuntimeError: something strange. Set KPFLOW_DEBUG=1" in wrong(arguments, capsys)
    monkeypatch.setenv("KPFLOW_DEBUG", "1")
    with pytest.raises(RuntimeError, match="something"):
        run(arguments)


def test_help_teaches(capsys):
    runner = CliRunner()
    for command, words in {
        (): ("demo", "analyze", "report", "NTK = P K Pᵀ"),
        ("demo",): ("--folder", "--seed", "kpflow demo --folder runs/small"),
        ("analyze",): ("--trust-pickle", "module:factory", "kpflow analyze runs/a --model train:make_model"),
        ("report",): ("--out", "kpflow report runs/demo"),
    }.items():
        result = runner.invoke(app, [*command, "--help"], env={"COLUMNS": "120"})
        assert result.exit_code == 0
        assert all(word in result.output for word in words), result.output
    assert run([]) == 0
    assert "analyze" in capsys.readouterr().out
    assert runner.invoke(app, ["--version"]).output.startswith("kpflow ")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def command(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = "from kpflow.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, text=True, **options)


def test_a_malicious_checkpoint_does_not_run(folder, tmp_path):
    target = tmp_path / "ran"
    (tmp_path / "run" / "step_5.pt").write_bytes(pickle.dumps(Malicious(target)))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path}
    process = command("analyze", "run", "--model", f"{folder}:make", "--task", "memory_pro", **pipes)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    line = said.strip().splitlines()[-1]
    assert "step_5.pt` must hold tensors alone" in line
    assert "--trust-pickle" in line
    assert "Traceback" not in said
    assert not target.exists()


def _heed_interrupts():
    """A shell has the jobs in its background ignore interrupts, and their children with them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
def test_interrupted_it_says_so_and_goes_on(tmp_path):
    arguments = ("demo", "--folder", str(tmp_path / "d"), "--steps", "100000", "--hidden", "4")
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "preexec_fn": _heed_interrupts}
    process = command(*arguments, **pipes)
    try:
        while not (tmp_path / "d" / "checkpoints" / "step-00000003.safetensors").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == "kpflow: Interrupted. The same command goes on from here."
    assert "Traceback" not in said


def test_the_gallery_is_listed_run_and_its_mistakes_are_one_line(tmp_path, capsys):
    assert run(["gallery"]) == 0
    assert "saxe" in capsys.readouterr().out
    assert run(["gallery", "saxe", "--short", "--folder", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "checks passed" in shown
    assert "FAILED" not in shown
    assert json.loads((tmp_path / "saxe.json").read_text("utf-8"))["passed"]
    assert (tmp_path / "saxe.svg").read_text("utf-8").startswith("<?xml")
    assert run(["gallery", "sax"]) == 1
    assert "Did you mean 'saxe'?" in capsys.readouterr().err
    assert run(["gallery", "saxe", "--all"]) == 1
    assert "either an entry or --all" in capsys.readouterr().err


def test_a_failed_check_of_the_gallery_is_an_exit_code(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gallery, "run", functools.partial(gallery.run, broken=True))
    assert run(["gallery", "saxe", "--short", "--folder", str(tmp_path)]) == 1
    assert "checks failed" in capsys.readouterr().err
