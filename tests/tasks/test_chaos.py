"""Chaotic systems: their flows, attractors and exponents."""

import math

import pytest
import torch

from kpflow.tasks import ChaosForecast
from kpflow.tasks.chaos import SYSTEMS

F64 = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_chaotic_trajectory_solves_its_equation_and_is_on_its_attractor(system):
    task = ChaosForecast(system, steps=200, horizon=3, dt=5.0)
    trials = task.sample(150, generator=seeded(8), dtype=F64)
    found = SYSTEMS[system]
    signal = trials.inputs_clean * torch.tensor(found.std).double() + torch.tensor(found.mean).double()
    velocity = (signal[:, 2:] - signal[:, :-2]) / 0.01
    exact = found.flow(signal[:, 1:-1])
    error = (velocity - exact).norm() / exact.norm()
    assert float(error) < 0.005, error  # of second order in the step
    assert torch.equal(trials.targets[:, :-3], trials.inputs_clean[:, 3:])
    mean, std = trials.inputs_clean.mean((0, 1)), trials.inputs_clean.std((0, 1))
    assert float(mean.abs().max()) < 0.25
    assert float((std - 1).abs().max()) < 0.25
    first = trials.inputs_clean[:, 0].std(dim=0)
    assert float((first - 1).abs().max()) < 0.35  # no common phase


FLOWS = {  # at (1, 2, 3), by hand
    "lorenz": (10.0, 23.0, -6.0),
    "rossler": (-5.0, 1.4, -13.9),
    "halvorsen": (-25.27, -27.54, -16.81),
    "thomas": (math.sin(2) - 0.18, math.sin(3) - 0.36, math.sin(1) - 0.54),
    "chen": (35.0, 46.0, -7.0),
    "diffusionless_lorenz": (-3.0, -3.0, 3.0),
    "burke_shaw": (-30.0, -32.0, 33.0),
    "chua": (9 * 15 / 7, 2.0, -200 / 7),
    "windmi": (2.0, 3.0, -1.6 - math.e),
    "sprott_f": (5.0, 0.0, -2.0),
}


def test_the_flows_are_those_of_the_literature():
    assert FLOWS.keys() == SYSTEMS.keys()
    for name, expected in FLOWS.items():
        found = SYSTEMS[name].flow(torch.tensor([1.0, 2.0, 3.0], dtype=F64))
        torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("system", [system for system in SYSTEMS if system != "chua"])
def test_exponents_add_up_to_the_mean_divergence(system):
    """The divergence of these flows is linear in the state, so that its mean is that of the mean state."""
    found = SYSTEMS[system]
    divergence = torch.trace(torch.func.jacrev(found.flow)(torch.tensor(found.mean).double()))
    assert sum(found.exponents) == pytest.approx(float(divergence), abs=0.05)


def test_exponents_of_chua_add_up_to_the_mean_divergence():
    """It has two values, inside |x| < 1 and outside."""
    found = SYSTEMS["chua"]
    x = found.std[0] * ChaosForecast("chua", steps=1).sample(2000, generator=seeded(9), dtype=F64).inputs_clean[:, 0, 0]
    inside = float((x.abs() < 1).double().mean())
    jacobian = torch.func.jacrev(found.flow)
    inner, outer = (float(torch.trace(jacobian(torch.tensor([at, 0.0, 0.0], dtype=F64)))) for at in (0.1, 2.0))
    assert (inner, outer) == (pytest.approx(2 / 7), pytest.approx(-25 / 7))
    spread = (inner - outer) * math.sqrt(inside * (1 - inside) / 2000)
    assert abs(sum(found.exponents) - (inside * inner + (1 - inside) * outer)) < 4 * spread


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_leading_exponent_is_seen_in_trials(system):
    """Two trajectories part by the factor exp(λ t) on average."""
    found, n = SYSTEMS[system], 300
    exponent, h = found.exponents[0], found.step
    signal = ChaosForecast(system, steps=1).sample(n, generator=seeded(9), dtype=F64).inputs_clean[:, 0]
    state = signal * torch.tensor(found.std).double() + torch.tensor(found.mean).double()
    nearby = state + 1e-8 * torch.randn(n, 3, generator=seeded(0), dtype=F64)

    def run(both, steps):
        for _ in range(steps):
            k1 = found.flow(both)
            k2 = found.flow(both + h / 2 * k1)
            k3 = found.flow(both + h / 2 * k2)
            k4 = found.flow(both + h * k3)
            both = both + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return both

    def apart(both):
        return (both[1] - both[0]).norm(dim=1)

    steps = round(4.5 / exponent / h)
    start = run(torch.stack((state, nearby)), steps // 2)
    rate = (apart(run(start, steps)) / apart(start)).log() / (steps * h)
    error = float(rate.std()) / n**0.5
    assert abs(float(rate.mean()) - exponent) < 4 * error + 0.02 * exponent
    assert error < 0.05 * exponent  # so that the bound says something


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChaosForecast("henon"), "`system` must be one of 'lorenz', 'rossler', .*; got 'henon'"),
        (lambda: ChaosForecast(horizon=0), "`horizon` must be a positive whole number; got 0"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_parameters_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("dt", [3e4, float("inf"), float("nan")])
def test_steps_of_chaotic_systems_are_bounded(dt):
    with pytest.raises(ValueError, match="`dt` must be a"):
        ChaosForecast("lorenz", dt=dt)
