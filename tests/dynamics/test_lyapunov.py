"""Lyapunov spectra: against closed forms, against QR of autograd Jacobians, and with errors that are honest."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import close, randn, without_annotation_checks
from kpflow.dynamics import LyapunovSpectrum, averages, lyapunov_spectrum, trajectories
from kpflow.states.cells import LowRankRNN, RateRNN

NOTHING = torch.zeros(1)


def uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logistic(h: Tensor, _: Tensor) -> Tensor:
    return 4 * h * (1 - h)


def henon(h: Tensor, _: Tensor) -> Tensor:
    return torch.stack([1 - 1.4 * h[:, 0] ** 2 + h[:, 1], 0.3 * h[:, 0]], dim=1)


def lorenz(h: Tensor, _: Tensor) -> Tensor:
    a, b, c = h.unbind(1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], dim=1)


def skew_tent(h: Tensor, _: Tensor) -> Tensor:
    """Slopes 1/0.3 and 1/0.7, met with probabilities 0.3 and 0.7, independently."""
    return torch.where(h < 0.3, h / 0.3, (1 - h) / 0.7)


SKEW = -0.3 * math.log(0.3) - 0.7 * math.log(0.7)


def forced(h: Tensor, x: Tensor) -> Tensor:
    """J = eˣ: the exponent is the mean of x."""
    return h * x.exp()


def product(h: Tensor, x: Tensor) -> Tensor:
    """h' = X h with a matrix for an input."""
    return torch.einsum("bij,bj->bi", x.unflatten(1, (h.shape[1], -1)), h)


def active_relu() -> nn.Module:
    """All units are on, or its Jacobians would be singular."""
    cell = nn.RNNCell(2, 5, nonlinearity="relu")
    with torch.no_grad():
        cell.bias_hh.fill_(9.0)
        cell.weight_hh.mul_(0.5)
    return cell


STEPS = {
    "RNNCell": (lambda: nn.RNNCell(2, 5), 5),
    "relu RNNCell": (active_relu, 5),
    "GRUCell": (lambda: nn.GRUCell(2, 5), 5),
    "LSTMCell": (lambda: nn.LSTMCell(2, 4), 8),
    "RNN": (lambda: nn.RNN(2, 5, batch_first=True), 5),
    "GRU": (lambda: nn.GRU(2, 5), 5),
    "LSTM": (lambda: nn.LSTM(2, 4), 8),
    "rate": (lambda: RateRNN(2, 5, alpha=0.3), 5),
    "low rank": (lambda: LowRankRNN(2, 5, 2, alpha=0.3), 5),
}


def as_function(module: nn.Module) -> Any:
    """One step of a float64 module, written anew."""
    if isinstance(module, (RateRNN, LowRankRNN)):
        return module.step
    if isinstance(module, nn.RNNBase):
        cell = {"RNN": nn.RNNCell, "GRU": nn.GRUCell, "LSTM": nn.LSTMCell}[type(module).__name__](2, module.hidden_size)
        cell.double().load_state_dict({name[:-3]: value for name, value in module.state_dict().items()})
        return as_function(cell)
    if isinstance(module, nn.LSTMCell):
        return lambda h, x: torch.cat(module(x, h.chunk(2, dim=-1)), dim=-1)
    return lambda h, x: module(x, h)


def benettin(step: Any, inputs: Tensor, initial: Tensor, k: int, warmup: int) -> Tensor:
    """The naive way, trial by trial: QR of autograd's Jacobian times the frame at every step."""
    noise = torch.randn(*initial.shape, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = []
    for sequence, state, q in zip(inputs, initial, torch.linalg.qr(noise)[0], strict=True):
        logs = torch.zeros(k, dtype=torch.float64)
        for t, x in enumerate(sequence):
            jacobian = torch.autograd.functional.jacobian(lambda h, x=x: step(h[None], x[None])[0], state)
            q, r = torch.linalg.qr(jacobian @ q)
            state = step(state[None], x[None])[0].detach()
            logs += r.diagonal().abs().log() * (t >= warmup)
        result.append(logs / (len(sequence) - warmup))
    return torch.stack(result)


@pytest.mark.parametrize("k", [5, 2])
@pytest.mark.parametrize("name", STEPS)
def test_spectra_agree_with_qr_of_autograd_jacobians(name: str, k: int) -> None:
    make, width = STEPS[name]
    torch.manual_seed(1)
    module = make()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    inputs, initial = randn(3, 12, 2, seed=2), 0.5 * randn(3, width, seed=3)
    found = lyapunov_spectrum(module, inputs.float(), initial, k=k, warmup=4)
    after = module.state_dict()
    assert all(torch.equal(after[key], value) and after[key].dtype == torch.float32 for key, value in before.items())
    close(found.trials, benettin(as_function(module.double()), inputs.float().double(), initial, k, 4), 1e-9)
    close(found.exponents, found.trials.mean(0))


def test_a_function_goes_by_its_columns_or_by_all_rows() -> None:
    cell = nn.GRUCell(2, 40).double()
    inputs, initial = randn(2, 15, 2, seed=0), randn(2, 40, seed=1)
    for k in (3, 40):
        known, unknown = (lyapunov_spectrum(step, inputs, initial, k=k) for step in (cell, as_function(cell)))
        close(unknown.trials, known.trials, 1e-9)


def test_pieces_of_time_join(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, inputs, initial = nn.GRUCell(2, 5), randn(2, 41, 2, seed=0), randn(2, 5, seed=1)
    whole = lyapunov_spectrum(cell, inputs, initial)
    monkeypatch.setattr(trajectories, "SEGMENT_ENTRIES", 350)
    pieces = lyapunov_spectrum(cell, inputs, initial)
    close(pieces.trials, whole.trials)
    close(pieces.final, whole.final)


def test_exponents_sum_to_the_mean_log_determinant() -> None:
    cell = nn.GRUCell(2, 6).double()
    inputs, state = randn(1, 50, 2, seed=0), randn(1, 6, seed=1)
    found = lyapunov_spectrum(cell, inputs, state, warmup=0)
    total = 0.0
    for x in inputs[0]:
        jacobian = torch.autograd.functional.jacobian(lambda h, x=x: cell(x, h), state[0])
        total += float(torch.linalg.slogdet(jacobian)[1])
        state = cell(x, state[0])[None].detach()
    assert found.sum.value == pytest.approx(total / 50, abs=1e-12)


@pytest.mark.filterwarnings("ignore:Trial 0 stands still:UserWarning")
@pytest.mark.parametrize("every", [1, 3, None])
def test_exponents_of_a_diagonal_matrix(every: int | None) -> None:
    factors = torch.tensor([0.1, -2.0, 0.5, 1.5], dtype=torch.float64)
    found = lyapunov_spectrum(lambda h, x: factors * h, NOTHING, torch.zeros(2, 4), steps=300, warmup=250, every=every)
    close(found.exponents, factors.abs().log().sort(descending=True).values)
    assert found.factorisations == {1: 50, 3: 17, None: 17}[every]


def test_any_spacing_of_factorisations_gives_the_same_exponents() -> None:
    found = [lyapunov_spectrum(henon, NOTHING, 0.1 * uniform(2, 2, seed=0), steps=60, every=s) for s in (1, 2, 10)]
    assert found[0].factorisations > found[1].factorisations > found[2].factorisations
    for other in found[1:]:
        close(other.trials, found[0].trials, 1e-10)


def test_a_condition_that_jumps_is_factorised_step_by_step() -> None:
    """A gentle start lengthens the spacing; then directions differ by 1e5 each step."""
    gentle, steep = torch.eye(2, dtype=torch.float64), torch.tensor([1.0, 1e-5], dtype=torch.float64)[:, None]
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    inputs = torch.stack([gentle] * 40 + [steep * turn] * 40).reshape(1, 80, 4)
    found = lyapunov_spectrum(product, inputs, torch.zeros(1, 2), warmup=0)
    assert found.sum.value == pytest.approx(0.5 * math.log(1e-5), abs=1e-9)
    close(found.trials, lyapunov_spectrum(product, inputs, torch.zeros(1, 2), warmup=0, every=1).trials, 1e-9)


def test_the_torus_map() -> None:
    matrix = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    found = lyapunov_spectrum(lambda h, x: (h @ matrix.mT) % 1, NOTHING, uniform(9, 2, seed=0), steps=60, warmup=40)
    rate = math.log((3 + 5**0.5) / 2)  # 0.9624
    close(found.exponents, torch.tensor([rate, -rate], dtype=torch.float64))
    assert found.kaplan_yorke == pytest.approx((2, 0), abs=1e-12)
    assert found.entropy_bound == pytest.approx((rate, 0), abs=1e-12)


def test_the_henon_map() -> None:
    found = lyapunov_spectrum(henon, NOTHING, 0.1 * uniform(50, 2, seed=0), steps=1200)
    assert abs(float(found.exponents[0]) - 0.4192) < 4 * float(found.standard_error[0]) < 0.03
    assert found.sum == pytest.approx((math.log(0.3), 0), abs=1e-12)
    dimension, error = found.kaplan_yorke
    assert abs(dimension - 1.2582) < 4 * error + 1e-4
    assert error < 0.003
    assert found.entropy_bound.value == pytest.approx(float(found.exponents[0]))


@pytest.mark.slow
def test_the_lorenz_flow() -> None:
    start = randn(60, 3, seed=0) + torch.tensor([0.0, 0.0, 25.0])
    found = lyapunov_spectrum(lorenz, NOTHING, start, steps=4000, dt=0.01, flow=True)
    expected = torch.tensor([0.9056, 0.0, -14.5723], dtype=torch.float64)
    assert bool(((found.exponents - expected).abs() < 4 * found.standard_error).all())
    assert bool((found.standard_error < 0.01).all())
    assert found.sum.value == pytest.approx(-41 / 3, abs=2e-4)  # O(dt⁴)
    assert found.kaplan_yorke.value == pytest.approx(2.062, abs=0.002)


def test_the_limit_cycle_of_a_hopf_bifurcation() -> None:
    def field(h: Tensor, _: Tensor) -> Tensor:
        a, b = h.unbind(1)
        pull = 0.3 - a.square() - b.square()
        return torch.stack([pull * a - 2 * b, pull * b + 2 * a], dim=1)

    found = lyapunov_spectrum(field, NOTHING, torch.ones(1, 2), steps=4000, warmup=3500, dt=0.02, flow=True)
    close(found.exponents, torch.tensor([0.0, -0.6], dtype=torch.float64), 1e-7)  # O(dt⁴)
    assert abs(float(found.exponents[0])) < 1e-11
    assert float(found.times[-1]) == pytest.approx(10)


def test_a_linear_flow_is_that_of_the_method() -> None:
    """h' = λ h: a step is the exponential series to fourth order, and rates are per time."""
    found = lyapunov_spectrum(lambda h, x: -h + x, torch.ones(1), torch.zeros(1, 1), steps=50, dt=0.5, flow=True)
    series = sum((-0.5) ** n / math.factorial(n) for n in range(5))
    assert float(found.exponents[0]) == pytest.approx(math.log(series) / 0.5, abs=1e-12)
    assert float(found.final[0, 0]) == pytest.approx(1, abs=1e-9)


def test_units_of_time() -> None:
    one, two = (lyapunov_spectrum(henon, NOTHING, torch.zeros(1, 2), steps=50, dt=dt) for dt in (1.0, 0.5))
    close(two.exponents, 2 * one.exponents)
    close(two.times, one.times / 2)


def test_a_static_input_is_one_repeated() -> None:
    cell, x, initial = nn.GRUCell(2, 4), randn(2, seed=0), randn(3, 4, seed=1)
    one = lyapunov_spectrum(cell, x, initial, steps=30)
    other = lyapunov_spectrum(cell, x.expand(3, 30, 2), initial)
    close(one.trials, other.trials)


def test_the_running_mean_ends_at_the_exponents() -> None:
    found = lyapunov_spectrum(henon, NOTHING, 0.1 * uniform(2, 2, seed=0), steps=1000, every=1, warmup=100)
    assert found.times[-1] == 900
    assert found.running.shape == (len(found.times), 2)
    close(found.running[-1], found.exponents)
    assert 300 <= len(found.times) <= 450
    close(found.samples.mean(0), found.exponents)


def test_a_random_network_becomes_chaotic_near_unit_gain() -> None:
    def largest(gain: float) -> float:
        network = RateRNN(1, 200, gain=gain, dtype=torch.float64)
        start = 2 * randn(4, 200, seed=0)
        return float(lyapunov_spectrum(network, NOTHING, start, k=1, steps=400, warmup=200).exponents[0])

    assert largest(0.9) == pytest.approx(math.log(0.9), abs=0.06)  # at rest: the spectral radius
    assert largest(0.9) < 0 < largest(1.4)


def z_scores(step: Any, exponent: float, trials: int, steps: int, seeds: int) -> Tensor:
    found = []
    for seed in range(seeds):
        result = lyapunov_spectrum(step, NOTHING, uniform(trials, 1, seed=seed), steps=steps)
        found.append(float(result.exponents[0] - exponent) / float(result.standard_error[0]))
    return torch.tensor(found)


@pytest.mark.parametrize(
    ("step", "exponent", "trials", "steps"),
    [(logistic, math.log(2), 16, 60), (skew_tent, SKEW, 16, 60), (skew_tent, SKEW, 1, 600), (skew_tent, SKEW, 3, 400)],
)
def test_errors_are_honest(step: Any, exponent: float, trials: int, steps: int) -> None:
    """Root mean square of 40 scores: 1.06 ± 0.12 for Student's t with 15 to 19 degrees of freedom."""
    scores = z_scores(step, exponent, trials, steps, 40)
    assert 0.75 < float(scores.square().mean().sqrt()) < 1.45
    assert abs(float(scores.mean())) < 4 / 40**0.5


def test_errors_are_honest_under_correlated_inputs() -> None:
    """J = exp of an autoregressive input, memory 5 steps, stretches of 40: errors a fifth too small are allowed."""
    generator, scores = torch.Generator().manual_seed(0), []
    for _ in range(30):
        noise = torch.randn(2, 1000, 1, generator=generator, dtype=torch.float64)
        for t in range(1, 1000):
            noise[:, t] += 0.8 * noise[:, t - 1]
        found = lyapunov_spectrum(forced, noise - 1, torch.zeros(2, 1))
        scores.append(float(found.exponents[0] + 1) / float(found.standard_error[0]))
    assert 0.7 < float(torch.tensor(scores).square().mean().sqrt()) < 1.6


def test_the_logistic_map() -> None:
    found = lyapunov_spectrum(logistic, NOTHING, uniform(64, 1, seed=0), steps=2000)
    assert abs(float(found.exponents[0]) - math.log(2)) < 4 * float(found.standard_error[0]) < 1e-3


def test_the_tent_map_ends_at_zero_in_floating_point_and_that_is_said() -> None:
    def tent(h: Tensor, _: Tensor) -> Tensor:
        return torch.where(h < 0.5, 2 * h, 2 - 2 * h)

    with pytest.warns(UserWarning, match="stands still at an unstable state, to which rounding"):
        found = lyapunov_spectrum(tent, NOTHING, uniform(20, 1, seed=0), steps=100)
    close(found.exponents, torch.tensor([math.log(2)], dtype=torch.float64))
    assert not found.final.any()


def test_few_samples_tell_no_error() -> None:
    found = lyapunov_spectrum(henon, NOTHING, torch.zeros(1, 2), steps=6, warmup=0)
    assert bool(torch.isinf(found.standard_error).all())
    one = lyapunov_spectrum(henon, NOTHING, torch.zeros(1, 2), steps=1)
    assert bool(torch.isfinite(one.exponents).all())
    assert math.isinf(one.sum.standard_error)


def test_a_singular_jacobian_has_an_exponent_of_minus_infinity() -> None:
    matrix = torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.0, 0.0], [0.3, 0.2, 0.9]], dtype=torch.float64)
    found = lyapunov_spectrum(lambda h, x: h @ matrix.mT, NOTHING, torch.zeros(8, 3), steps=40)
    assert torch.isinf(found.exponents).tolist() == [False, False, True]
    assert found.standard_error[2] == 0
    assert found.kaplan_yorke == (0, 0)
    assert found.sum.value == -math.inf
    assert "-inf ± 0" in repr(found)


@pytest.mark.parametrize(
    ("exponents", "dimension"),
    [
        ([0.5, -1.0], 1.5),
        ([0.9, 0.0, -14.0], 2 + 0.9 / 14),
        ([-0.1, -2.0], 0.0),
        ([1.0, 0.5], 2.0),
        ([0.4, -torch.inf], 1.0),
        ([-1.0, 0.5], 1.5),
        ([0.0, -1.0], 1.0),
    ],
)
def test_kaplan_yorke_dimension(exponents: list[float], dimension: float) -> None:
    found = averages.kaplan_yorke(torch.tensor([exponents], dtype=torch.float64))
    assert found.tolist() == pytest.approx([dimension])


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = randn(12, 3, seed=0)
    value, error = averages.jackknife(lambda v: v, values)
    close(value, values.mean(0))
    close(error, values.std(0) / 12**0.5)


def test_it_prints() -> None:
    found = lyapunov_spectrum(nn.GRUCell(1, 6), NOTHING, torch.zeros(8, 6), steps=30)
    assert isinstance(found, LyapunovSpectrum)
    assert "… 2 more; 8 trials, time 24)" in repr(found)


def call(step: Any = henon, inputs: Any = NOTHING, initial: Any = None, k: Any = None, **more: Any) -> LyapunovSpectrum:
    if isinstance(inputs, Tensor) and inputs.ndim == 1:
        more.setdefault("steps", 20)
    return lyapunov_spectrum(step, inputs, torch.zeros(2, 2) if initial is None else initial, k, **more)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "`k` must be a whole number between 1 and 2; got 0"),
        ({"k": 3}, "`k` must be a whole number between 1 and 2; got 3"),
        ({"warmup": -1}, "`warmup` must be a whole number at least 0; got -1"),
        ({"warmup": 20}, "`warmup` must leave at least one step of the 20 to measure; got 20"),
        ({"every": 0}, "`every` must be a positive whole number; got 0"),
        ({"dt": 0.0}, "`dt` must be a positive number; got 0.0"),
        ({"steps": 0}, "`steps` must be a positive whole number; got 0"),
        ({"steps": None}, "`steps` goes with one static input"),
        ({"inputs": torch.zeros(2, 5, 1), "steps": 5}, "`steps` goes with one static input"),
        ({"inputs": torch.zeros(2, 5)}, r"`inputs` must have shape \(B, T, I\).*got \(2, 5\)"),
        ({"inputs": torch.zeros(2, 0, 1)}, r"with at least one step.*got \(2, 0, 1\)"),
        ({"inputs": torch.zeros(3, 5, 1)}, "a state for each of the 3 trials of `inputs`"),
        ({"initial": torch.zeros(2)}, r"`initial` must be states to start from, shape \(B, H\); got \(2,\)"),
        ({"initial": torch.zeros(0, 2)}, r"`initial` must be states to start from"),
        ({"initial": torch.tensor([[0.0, torch.nan]])}, "`initial` must be finite; got NaN at trial 0, unit 1"),
        ({"inputs": torch.full((2, 5, 1), torch.inf)}, "`inputs` must be finite; got inf at trial 0, time 0, input 0"),
        ({"inputs": torch.tensor([torch.nan])}, "`inputs` must be finite; got NaN at input 0"),
        ({"inputs": torch.zeros(1, device="meta")}, "`inputs` must be on the device of `initial`, cpu; got meta"),
        (
            {"initial": torch.full((2, 2), 9.0)},
            "`step` leaves the floating range at step 8 of trial 0. Start elsewhere",
        ),
        ({"step": nn.GRUCell(1, 3)}, r"`initial` must have shape \(B, 3\), the states of GRUCell; got \(2, 2\)"),
        ({"step": nn.LSTMCell(1, 2)}, r"`initial` must have shape \(B, 4\), h and c side by side of LSTMCell"),
        ({"step": nn.GRUCell(3, 2)}, r"`inputs` must have 3 channels on its last axis, for GRUCell; got \(1,\)"),
        ({"step": nn.GRU(1, 2, num_layers=2)}, "`step` must have one layer"),
        ({"step": nn.GRU(1, 2, bidirectional=True)}, "`step` must have one layer, one direction"),
        ({"step": lambda h, x: h.sqrt()}, "`step` has no finite derivative at step 0 of trial 0. It must be smooth"),
        ({"step": lambda h, x: h.mean(0, keepdim=True) + h}, "`step` must treat the samples of a batch apart"),
        ({"step": lambda h, x: h.detach()}, "`step` must be differentiable in h"),
        ({"step": lambda h, x: h[:, :1]}, "`step` must give states of the shape that it takes"),
    ],
)
def test_messages(arguments: dict[str, Any], message: str) -> None:
    if "initial" not in arguments and "samples" in message:
        arguments = {**arguments, "initial": randn(2, 2, seed=0)}
    with pytest.raises(ValueError, match=message):
        call(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generator": 3}, "`generator` must be a torch.Generator or None; got int"),
        ({"inputs": torch.zeros(1, dtype=torch.int64)}, "`inputs` must hold floating-point numbers"),
        ({"initial": torch.zeros(2, 2, dtype=torch.int64)}, "`initial` must hold floating-point numbers"),
        ({"step": lambda h, x: h.float()}, "`step` must give a float64 tensor"),
    ],
)
def test_messages_of_types(arguments: dict[str, Any], message: str) -> None:
    with without_annotation_checks(), pytest.raises(TypeError, match=message):
        call(**arguments)


def test_what_more_exponents_would_tell() -> None:
    found = call(initial=0.1 * uniform(2, 2, seed=0), k=1, steps=300)
    with pytest.raises(ValueError, match="`k` must be larger for the Kaplan–Yorke dimension: the first 1 of 2"):
        _ = found.kaplan_yorke
    with pytest.raises(
        ValueError, match="`k` must be larger for the entropy bound: all 1 exponents are positive, of 2"
    ):
        _ = found.entropy_bound


def test_it_works_where_gradients_are_off() -> None:
    with torch.no_grad():
        plain = call(steps=30)
    with torch.inference_mode():
        close(call(steps=30).trials, plain.trials)
