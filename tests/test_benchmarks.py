"""The benchmarks compare what is equal: their baselines agree with kpflow, and their rows say what was measured."""

import re
from pathlib import Path

import pytest
import torch
from benchmarks import exponents, kernels, objectives
from benchmarks.graphs import matrix_row, products, trace_row
from benchmarks.measures import peak_gib, relative_difference
from benchmarks.problems import cnn, mlp, transformer
from benchmarks.timing import Cost, measured

import kpflow as kp

JVP = "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
pytestmark = pytest.mark.filterwarnings(JVP)  # of the import that torch.func.jvp makes on its first call

CPU = torch.device("cpu")
OUTSIDE = Path(__file__).parents[1] / "benchmarks/outside"


def ntk(problem):
    return kp.Ntk(kp.linearise(problem.model, problem.inputs), readout="outputs")


def test_the_baselines_of_output_kernels_are_one_kernel():
    problem = mlp(3, torch.float64)
    kernel = kp.operators.to_dense(ntk(problem))
    for other in (kernels.by_contraction, kernels.by_cores):
        assert relative_difference(other(problem), kernel) < 1e-12
    for trace in (kernels.trace_by_cores, kernels.trace_by_jacobians):
        assert trace(problem) == pytest.approx(float(kernel.trace()), rel=1e-12)


def test_the_trace_by_jacobians_takes_all_blocks_of_trials(monkeypatch):
    monkeypatch.setattr(kernels, "TRIALS_AT_ONCE", 2)
    problem = cnn(5, torch.float64)
    assert kernels.trace_by_jacobians(problem) == pytest.approx(
        float(kernels.by_contraction(problem).trace()), rel=1e-12
    )


def test_rows_of_products_differ_by_rounding():
    rows = products(transformer(layers=1, width=8, trials=2, tokens=3), 5, 2, CPU)
    assert [row["quantity"].split()[-1] for row in rows] == ["NTK", "P", "Pᵀ", "K"]
    for row in rows:
        assert row["relative_difference"] < 1e-5
        assert row["ratio"] == pytest.approx(sum(row["ratios"]) / 2)
        assert row["baseline_ms_per_probe"] > 0


def test_rows_of_exponents_differ_by_rounding():
    row = exponents.row(8, 2, 12, 3, 4, 2, CPU)
    assert row["relative_difference"] < 1e-12
    assert row["quantity"] == "3 Lyapunov exponents of a GRU of 8, 2 trials of 12 steps"
    assert row["ratio"] == pytest.approx(sum(row["ratios"]) / 2)


@pytest.mark.parametrize("kind", objectives.CORES)
def test_rows_of_objectives_differ_by_rounding(kind):
    row = objectives.row(kind, 3, 2, 5, 4, CPU)
    assert row["relative_difference"] < 1e-5
    assert row["relative_difference_of_alignments"] < 1e-5
    assert row["quantity"] == f"3 objectives, 5 stages, {kind} of 4, 6 trials of 5 steps"
    assert row["ratio"] == pytest.approx(row["baseline_cpu_seconds"] / row["kpflow_cpu_seconds"])
    assert 0 < row["alone_cpu_seconds"] < row["kpflow_cpu_seconds"]


def test_rows_of_output_kernels_count_their_stages():
    row = matrix_row(cnn(2, torch.float64), "contraction", kernels.by_contraction, 1, 2, CPU)
    assert row["relative_difference"] < 1e-12
    assert row["quantity"] == "output NTK, 20 × 20"
    assert row["baseline_runs"] == 1
    assert row["ratio"] == pytest.approx(row["baseline_cpu_seconds"] / row["kpflow_cpu_seconds"])
    assert 0 < row["alone_cpu_seconds"] < row["kpflow_cpu_seconds"]
    row = trace_row(mlp(3, torch.float64), "cores", kernels.trace_by_cores, 1, 1, CPU)
    assert row["relative_difference"] < 1e-12


def test_a_cost_counts_all_cores_and_adds_up():
    _, cost = measured(lambda: sum(range(200_000)), CPU)
    assert 0 < cost.cpu < 2 * cost.wall + 0.1
    assert Cost(1.0, 2.0) + Cost(3.0, 4.0) == Cost(4.0, 6.0)
    assert Cost.median([Cost(1.0, 9.0), Cost(2.0, 7.0), Cost(5.0, 8.0)]) == Cost(2.0, 8.0)


def test_the_peak_is_of_this_process():
    size = 2**27
    before = peak_gib()
    held = torch.ones(int(before * 2**30) // 4 + size // 4)
    assert peak_gib() > before
    assert held[-1] == 1


def test_a_relative_difference_is_one_of_norms():
    assert relative_difference(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)


def test_outside_pins_all_and_asks_for_no_torch():
    lines = [line for line in (OUTSIDE / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in lines)
    assert not any(line.startswith(("torch==", "torchvision")) for line in lines)
    assert "--no-deps -r benchmarks/outside/requirements.txt" in (OUTSIDE / "README.md").read_text()
