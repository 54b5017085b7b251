"""The benchmark of fixed points counts what it says."""

import pytest
import torch
from benchmarks import fixed_points

from kpflow.dynamics import find_fixed_points


@pytest.fixture(scope="module")
def model():
    return fixed_points.trained(0, steps=2, width=4)


def test_rows_count_points(model):
    rows = fixed_points.compared(model, 8, 16, 1, iterations=300)
    assert [row["method"].split()[0] for row in rows] == ["find_fixed_points", "threshold", "threshold"] * 2
    for row in rows:
        assert row["reference"] - row["missed"] == row["reported"] - row["not_a_point_or_twice"]
        assert row["reference_index_sum"] == 1
    assert rows[0]["missed"] == rows[3]["missed"] == 0
    assert rows[0]["index_sum"] == 1
    assert rows[1]["missed"] == 0  # one stable point: a threshold finds that


def test_the_baseline_comes_to_the_point(model):
    found = fixed_points.by_threshold(model, 0.1 * torch.ones(3, 4), 1e-2, 600)
    points = find_fixed_points(model, torch.zeros(3), torch.zeros(2, 4))
    assert float(torch.cdist(found.double(), points.states).max()) < 1e-2
