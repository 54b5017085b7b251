"""The figure of the benchmarks, drawn from their JSON."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kpflow.plots.style import PALETTE

__all__ = ["draw"]


def draw(record: dict[str, Any], path: Path) -> None:
    """Milliseconds a probe, ratios of time to a number, and growth with the size of the problem."""
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.1, 1))
    _products(top.subplots(), record["products"])
    ratios, growth = bottom.subplots(1, 2, width_ratios=(1.5, 1))
    _ratios(ratios, [row for row in record["estimates"] if "share_of_training" not in row])
    _growth(growth, record["growth"])
    machine = record["machine"]
    figure.suptitle(
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, {machine['device']}",
        fontsize=9,
    )
    figure.savefig(path)


def _products(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for place, row in enumerate(rows):
        axes.barh(place - 0.2, row["baseline_ms_per_probe"], 0.36, color=PALETTE["inputs"])
        axes.barh(place + 0.2, row["kpflow_ms_per_probe"], 0.36, color=PALETTE["ntk"])
        axes.annotate(f" {row['ratio']:.1f} ×", (row["kpflow_ms_per_probe"], place + 0.2), va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row["problem"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("ms for one NTK product a probe, blocks of 64; grey: vmap(jvp ∘ vjp), blue: kpflow", fontsize=8)


def _ratios(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for place, row in enumerate(rows):
        axes.barh(place, row["ratio"], 0.6, color=PALETTE["ntk"])
        axes.annotate(f" {row['ratio']:.3g} ×", (row["ratio"], place), va="center", fontsize=8)
    names = [f"{row['quantity']}\nvs {row['baseline'].split('(')[0]}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("time of the baseline over kpflow's", fontsize=8)


def _growth(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for row, colour in zip(rows, ("ntk", "propagator", "kernel"), strict=True):
        factors = [size / row["sizes"][0] for size in row["sizes"]]
        label = f"{row['grows']}: exponent {row['exponent']:.2f}"
        axes.plot(factors, row["seconds"], "o-", color=PALETTE[colour], label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("times more", fontsize=8)
    axes.set_ylabel("seconds a block", fontsize=8)
    axes.legend(fontsize=7, frameon=False)
