"""The command `kpflow`: wires tasks, models, analyses and reports together; holds no mathematics.

Exit codes: 0 done, 1 a mistake in what was given (one line on stderr says which), 2 wrong usage, 130 interrupted.
"""

import ast
import difflib
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from kpflow import __version__, gallery, optim, plots, report, study, tasks
from kpflow.report.headline import headline

__all__ = ["app", "main", "run"]

OUT = Console(highlight=False)

STEP_FROM = {
    "key": "key in each file",
    "name": "number in each file's name",
    "time": "order of the files' modification times",
}

INTERRUPTED = 130

MISTAKES = (ValueError, TypeError, OSError, ImportError, FloatingPointError)
"""What the package raises for wrong input; anything else is a fault, and its line says how to see where."""

app = typer.Typer(
    name="kpflow",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line, and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; whatever goes wrong is one line on stderr."""
    try:
        result = app(list(arguments) or ["--help"], standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except Exception as error:
        if os.environ.get("KPFLOW_DEBUG"):
            raise
        return _explain(error)
    return _say("Interrupted. The same command goes on from here.", code) if code == INTERRUPTED else code


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"kpflow {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """How gradient descent shapes a recurrent network, from its checkpoints.

    Every checkpoint is linearised: P is the propagator of its states, K = J Jᵀ what its weights can change at once, and
    NTK = P K Pᵀ what a step of gradient descent does to the states.

    First try **kpflow demo**, which takes a few minutes; then your own run: **kpflow analyze --help**.

    Everything can be interrupted; the same command goes on where it stopped.
    """


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where checkpoints, results and the report go.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(help="Training steps.")] = study.Demo.steps,
    hidden: Annotated[int, typer.Option(help="Units of the GRU.")] = study.Demo.hidden,
    seed: Annotated[int, typer.Option(help="Of weights, trials and probes: the same seed, the same numbers.")] = 0,
) -> None:
    """Train a GRU on MemoryPro, analyse every checkpoint, and write a report.

    **Examples**

        kpflow demo

        kpflow demo --folder runs/small --hidden 32 --steps 300
    """
    chosen = study.Demo(steps=steps, hidden=hidden, seed=seed)
    with _progress() as bars:
        training = bars.add_task("training", total=steps, note="")

        def trained(step: int, loss: float) -> None:
            bars.update(training, completed=step, note=f"loss {loss:.4f}")

        study.train_demo(chosen, folder, progress=trained)
        bars.update(training, completed=steps)
        record = study.analyse_demo(chosen, folder, forecast=optim.forecast_optimizer, progress=_follow(bars))
    _finish(record, folder / "report.html", None)


@app.command()
def analyze(
    folder: Annotated[Path, typer.Argument(help="Holds the checkpoints: *.safetensors, *.pt, *.pth or *.ckpt.")],
    model: Annotated[str, typer.Option(help="module:factory, a function of no arguments that makes the model.")],
    task: Annotated[str, typer.Option(help=f"What it was trained on: {', '.join(tasks.names())}.")],
    option: Annotated[
        list[str] | None, typer.Option("--set", help="A parameter of the task, as name=value; may be repeated.")
    ] = None,
    core: Annotated[str | None, typer.Option(help="Name of the recurrent submodule, if the model has one.")] = None,
    trials: Annotated[int, typer.Option(help="Trials to analyse on: the grid of the task's conditions.")] = 30,
    rtol: Annotated[float, typer.Option(help="Relative standard error at which estimates stop.")] = study.Settings.rtol,
    budget: Annotated[int, typer.Option(help="The most products for one estimate.")] = study.Settings.budget,
    seed: Annotated[int, typer.Option(help="Of the random probes.")] = study.Settings.seed,
    labels: Annotated[str | None, typer.Option(help="Condition whose values are classes, for neural collapse.")] = None,
    objectives: Annotated[
        str | None,
        typer.Option(
            help="What to compare: tasks, epochs, channels, or condition:NAME; by default the first that it has."
        ),
    ] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Read checkpoints that can run code. Only if you trust their source.")
    ] = False,
) -> None:
    """Analyse a folder of your own checkpoints, and write a report into it.

    The factory is imported from the current directory or from what is installed; its weights are replaced by those of
    each checkpoint. Steps come from a key in the file, else from a number in its name, else from the time.

    **Examples**

        kpflow analyze runs/a --model train:make_model --task memory_pro --core rnn

        kpflow analyze runs/b --model nets:build --task flipflop --set K=2 --set p=0.02
    """
    if trust_pickle:
        _say("--trust-pickle: code inside the checkpoints will be run.", 0)
    make = load_factory(model)
    chosen = tasks.get(task, **_parameters(option or []))
    settings = study.Settings(rtol=rtol, budget=budget, seed=seed, labels=labels)
    with _progress() as bars:
        record = study.analyse_folder(
            folder,
            make,
            chosen,
            core=core,
            trials=trials,
            settings=settings,
            trust_pickle=trust_pickle,
            objectives=objectives,
            forecast=optim.forecast_optimizer,
            progress=_follow(bars),
        )
    OUT.print(f"Steps are from the {STEP_FROM[record.attrs['step_from']]}.")
    _finish(record, folder / "report.html", None)


@app.command("report")
def write_report(
    folder: Annotated[Path, typer.Argument(help="A folder that was analysed.")],
    out: Annotated[Path | None, typer.Option(help="Where the page goes; report.html in the folder by default.")] = None,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
) -> None:
    """Write the report again from results that are there, also of an analysis that is not finished.

    **Examples**

        kpflow report runs/demo

        kpflow report runs/a --out a.html --title "Run a"
    """
    _finish(study.read_record(folder / "analysis"), out or folder / "report.html", title)


@app.command("gallery")
def run_gallery(
    name: Annotated[str | None, typer.Argument(help="Of an entry; without one they are listed.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Run all entries.")] = False,
    seed: Annotated[int, typer.Option(help="Of all that is random.")] = 0,
    short: Annotated[bool, typer.Option("--short", help="Smaller forms, which take a second or two each.")] = False,
    spread: Annotated[
        bool,
        typer.Option(
            "--spread", help="Measure the errors of Monte Carlo checks over seeds, for those who write entries."
        ),
    ] = False,
    folder: Annotated[Path, typer.Option(help="Where tables and figures go.")] = Path("runs/gallery"),
) -> int:
    """Learning systems with known answers: run, compared with their prediction, and seen through K and P.

    Each writes a table (`NAME.json`) and a figure (`NAME.svg`). The exit code is 1 if a check failed. Monte Carlo
    checks state their errors over six seeds; `--spread` measures these anew, and keeps them with the package.

    **Examples**

        kpflow gallery

        kpflow gallery saxe

        kpflow gallery --all --short
    """
    if name is None and not every:
        return _list_gallery()
    if name is not None and every:
        raise ValueError(f"Give either an entry or --all; got {name!r} and --all.")
    chosen = gallery.names() if every else (gallery.get(str(name)).name,)
    if spread:
        return _measure_spreads(chosen)
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    with _progress() as bars:
        bar = bars.add_task("gallery", total=len(chosen), note="")
        for done, each in enumerate(chosen):
            bars.update(bar, completed=done, note=each)
            result = gallery.run(each, seed, short=short)
            record = result.record()
            (folder / f"{each}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False), "utf-8")
            plots.entry_figure(record).savefig(folder / f"{each}.svg")
            print(f"{result}\n  {result.seconds:.1f} s, {folder / each}.svg")
            failed += sum(not check.passed for check in result.checks)
        bars.update(bar, completed=len(chosen))
    return _say(f"{failed} checks failed.", 1) if failed else 0


def _measure_spreads(chosen: Sequence[str]) -> int:
    """Six seeds of each entry in both forms."""
    with _progress() as bars:
        bar = bars.add_task("spreads", total=len(chosen), note="")
        for done, each in enumerate(chosen):
            bars.update(bar, completed=done, note=each)
            for run_ in gallery.measure_spread(each):
                bars.update(bar, note=f"{each}, seed {run_.seed}")
        bars.update(bar, completed=len(chosen))
    return 0


def _list_gallery() -> int:
    table = Table(box=None, title="kpflow gallery NAME", title_justify="left")
    for column in ("name", "system", "paper"):
        table.add_column(column)
    for entry in gallery.ENTRIES.values():
        table.add_row(entry.name, entry.title, entry.paper)
    OUT.print(table)
    return 0


def load_factory(text: str) -> Callable[[], Any]:
    """Import `module:factory`, from the current directory too; its failures become one message each."""
    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise ValueError(f"`--model` must be module:factory, such as train:make_model; got {text!r}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        why = f"there is no module {error.name!r} here or among what is installed"
        raise ValueError(f"`--model {text}` could not be imported: {why}. Run it where the module is.") from error
    except SystemExit as error:
        why = f"{module_name} ends the program, as parse_args does"
        remedy = 'Put that under `if __name__ == "__main__":`'
        raise ValueError(f"`--model {text}` could not be imported: {why}. {remedy}.") from error
    except Exception as error:
        raise ValueError(f"`--model {text}` could not be imported: {_described(error)}.") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        nearest = difflib.get_close_matches(name, known, n=4) or known[:4]
        hint = f"; the nearest are {', '.join(nearest)}" if nearest else ", nor any other"
        raise ValueError(f"`--model {text}`: {module_name} has no function {name!r}{hint}.")

    def make() -> Any:
        try:
            return factory()
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"`--model {text}` failed: {_described(error)}. It must work without arguments and return the model."
            ) from error

    return make


def _parameters(options: Sequence[str]) -> dict[str, Any]:
    """The task's parameters from `name=value`."""
    parameters = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not name or not equals:
            raise ValueError(f"`--set` must be name=value, such as K=2; got {option!r}.")
        try:
            parameters[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parameters[name] = text
    return parameters


def _progress() -> Progress:
    """Bars on stderr, so that stdout holds results alone; none where stderr is no terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )


def _follow(bars: Progress) -> Callable[[study.Progress], None]:
    """A bar for the analysis; a line for each checkpoint where there is no bar, or where it is skipped."""
    rows = {"checkpoints": bars.add_task("analysis", total=None, note="")}

    def follow(progress: study.Progress) -> None:
        if progress.part not in rows:
            rows[progress.part] = bars.add_task(progress.part, total=progress.total, note="")
        bar = rows[progress.part]
        bars.update(bar, completed=progress.done, total=progress.total, note=f"step {progress.step}")
        if bars.disable or progress.outcome == "skipped":
            what = "" if progress.part == "checkpoints" else f" {progress.part}"
            done = f"{progress.done} of {progress.total}{what}: step {progress.step} {progress.outcome}"
            _say(f"{done}. {progress.reason}".removesuffix(". "), 0)

    return follow


def _finish(record: xr.Dataset, path: Path, title: str | None) -> None:
    """Write the page, and print the headline numbers and where it is."""
    page = report.write(record, path, title=title)
    steps = record["step"].values
    words = Text(str(title or record.attrs.get("title", "")), style="table.title")  # no markup
    table = Table(title=words, title_justify="left")
    for column in ("", f"step {steps[0]}", f"step {steps[-1]}"):
        table.add_column(column)
    for row in headline(record):
        where = f" ({row.steps})" if row.steps else ""
        table.add_row(f"{row.quantity}{where}", row.first, row.last)
    OUT.print(table)
    print(f"Report: {page}")  # on one line, whatever the width of the terminal


def _explain(error: Exception) -> int:
    """One line on stderr and the exit code."""
    if hasattr(error, "format_message"):  # of the library that parses the command line
        return _say(f"{error.format_message().rstrip('.')}. Try --help.", getattr(error, "exit_code", 2))  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(error, OSError) and error.strerror:  # of the system
        return _say(f"{error.strerror}: {error.filename}" if error.filename else error.strerror, 1)
    if isinstance(error, MISTAKES):
        return _say(str(error), 1)
    return _say(f"unexpected {_described(error)}. Set KPFLOW_DEBUG=1 to see where.", 1)


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _say(text: str, code: int) -> int:
    print("kpflow:", " ".join(text.split()), file=sys.stderr)
    return code
