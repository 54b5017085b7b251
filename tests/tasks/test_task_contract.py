"""What every task promises."""

import dataclasses
import inspect
import itertools
import math
import sys

import pytest
import torch

import kpflow.tasks
from kpflow.tasks import (
    AngularIntegration,
    ChaosForecast,
    Copy,
    DelayedAddition,
    FlipFlop,
    Integration,
    LowRankForecast,
    MemoryPro,
    MultiTask,
    SequentialDigits,
    StudentTeacher,
    Task,
    get,
    names,
)

MOVING = (Integration, LowRankForecast, StudentTeacher, ChaosForecast, DelayedAddition)
"""Tasks whose static input is the mean of an input that never stands still."""


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensors(trials) -> dict[str, torch.Tensor]:
    """Every tensor of some trials, by name."""
    signals = {name: getattr(trials, name) for name in ("inputs", "inputs_clean", "targets", "mask", "length")}
    epochs = {f"{name} {i}": times[i] for name, times in trials.epochs.items() for i in (0, 1)}
    return signals | epochs | dict(trials.conditions)


def same(a, b) -> bool:
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal in every entry, where NaN, a condition that a trial lacks, is equal to NaN."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())


def descendants(kind: type) -> set[type]:
    return {kind}.union(*(descendants(child) for child in kind.__subclasses__()))


def test_every_concrete_task_is_final_frozen_and_registered():
    concrete = {kind for kind in descendants(Task) if not inspect.isabstract(kind)}
    concrete = {kind for kind in concrete if kind.__name__ != "NeurogymTask"}  # imported on demand alone
    assert concrete == {type(get(name)) for name in names()}
    for kind in concrete:
        assert sys.version_info < (3, 11) or "__final__" in vars(kind)  # typing.final leaves a mark from 3.11 on
        assert not kind.__subclasses__()
        assert getattr(kpflow.tasks, kind.__name__) is kind
        with pytest.raises(dataclasses.FrozenInstanceError):
            kind().dt = 1.0


def test_shapes_labels_and_dtype(task):
    trials = task.sample(7, generator=seeded(0), dtype=torch.float64)
    B, T, I = trials.inputs.shape
    assert (B, I) == (7, task.num_inputs) == (7, len(task.input_labels))
    assert trials.targets.shape == trials.mask.shape == (7, T, task.num_outputs)
    assert int(trials.length.max()) == T
    assert (trials.dt, trials.tau) == (task.dt, task.tau)
    assert (trials.input_labels, trials.output_labels) == (task.input_labels, task.output_labels)
    assert tuple(trials.conditions) == task.condition_names
    assert {value.dtype for value in tensors(trials).values()} == {torch.float64, torch.int64}


def test_epochs_follow_each_other_and_fill_the_trial(task):
    trials = task.sample(7, generator=seeded(1))
    assert tuple(trials.epochs) == task.epoch_names
    times = list(trials.epochs.values())
    assert not times[0][0].any()
    assert torch.equal(times[-1][1], trials.length)
    for (_, stop), (start, _) in itertools.pairwise(times):
        assert torch.equal(stop, start)
    covered = sum(trials.inside(name).int() for name in task.epoch_names)
    assert torch.equal(covered, trials.valid.int())


def test_one_seed_gives_one_batch_and_the_global_generator_stands_still(task):
    before = torch.get_rng_state()
    first = task.sample(5, generator=seeded(3))
    assert same(first, task.sample(5, generator=seeded(3)))
    assert not same(first, task.sample(5, generator=seeded(4)))
    assert same(task.sample(5), task.sample(5, generator=seeded(0)))
    assert torch.equal(before, torch.get_rng_state())


def test_a_generator_goes_on_from_batch_to_batch(task):
    generator = seeded(0)
    assert not same(task.sample(5, generator=generator), task.sample(5, generator=generator))


def test_conditions_do_not_depend_on_noise_and_dtype(task):
    full = task.sample(6, generator=seeded(5), dtype=torch.float64)
    quiet = task.sample(6, generator=seeded(5), dtype=torch.float64, noise=False)
    assert same(dataclasses.replace(full, inputs=full.inputs_clean), quiet)
    assert same(full.to(dtype=torch.float32), task.sample(6, generator=seeded(5), dtype=torch.float32))


def test_the_grid_is_the_same_for_every_seed_and_draws_nothing(task):
    generator = seeded(6)
    before = generator.get_state()
    trials = task.sample(8, generator=generator, mode="grid", noise=False)
    assert torch.equal(before, generator.get_state())
    assert same(trials, task.sample(8, mode="grid", noise=False))
    noisy = task.sample(8, generator=seeded(7), mode="grid")
    assert same(dataclasses.replace(noisy, inputs=noisy.inputs_clean), trials)


def test_noise_is_white_gaussian_of_the_stated_level(task):
    trials = task.sample(60, generator=seeded(2), dtype=torch.float64)
    if task.noise_std == 0:
        assert torch.equal(trials.inputs, trials.inputs_clean)
        return
    noise = (trials.inputs - trials.inputs_clean) / task.noise_std
    values = noise[trials.valid].flatten()
    n = len(values)
    assert abs(values.mean()) < 4 / n**0.5
    assert abs(values.square().mean() - 1) < 4 * (2 / n) ** 0.5
    assert abs(values.pow(4).mean() - 3) < 4 * (96 / n) ** 0.5
    both = trials.valid[:, 1:]
    assert abs((noise[:, 1:] * noise[:, :-1])[both].mean()) < 4 / n**0.5 * 1.1  # a few fewer pairs than values


def test_noise_level_is_sigma_root_two_over_alpha():
    assert MemoryPro().noise_std == pytest.approx(0.1 * 2**0.5, rel=1e-12)
    assert MemoryPro.driscoll().noise_std == pytest.approx(0.1 * 10**0.5, rel=1e-12)
    assert FlipFlop().noise_std == pytest.approx(0.03 * 2**0.5, rel=1e-12)


def test_the_padding_is_zero(task):
    trials = task.sample(30, generator=seeded(8))
    padding = ~trials.valid
    for name in ("inputs", "inputs_clean", "targets", "mask"):
        assert not getattr(trials, name)[padding].any()


def test_padding_exists_where_timings_are_drawn():
    assert (~MemoryPro.driscoll().sample(30).valid).any()
    assert MemoryPro.driscoll().sample(30, shared_timing=True).valid.all()


def stands_still(task, trials):
    """Where the input is the static one, `[B, T]`."""
    if isinstance(task, MOVING):
        return torch.zeros_like(trials.valid)
    if isinstance(task, FlipFlop):
        return (trials.inputs_clean[:, :, : task.K] == 0).all(dim=2)  # between pulses
    if isinstance(task, (Copy, SequentialDigits)):
        return (trials.inputs_clean == 0).all(dim=2)  # between symbols, and on blank pixels
    if isinstance(task, AngularIntegration):
        return (trials.inputs_clean[:, :, :2] == 0).all(dim=2)  # at rest
    return trials.valid


@pytest.mark.parametrize("mode", ["random", "grid"])
def test_static_inputs_are_the_clean_inputs_inside_each_epoch(task, mode):
    trials = task.sample(20, generator=seeded(9), mode=mode, dtype=torch.float64)
    assert isinstance(task, (*MOVING, FlipFlop, SequentialDigits)) or stands_still(task, trials).any()
    for epoch in task.epoch_names:
        start, stop = trials.epochs[epoch]
        if not bool((stop > start).any()):
            continue
        chosen = trials.select(stop > start)
        static = task.static_inputs(epoch, chosen.conditions, dtype=torch.float64)
        expected = static.expand(chosen.num_trials, -1)[:, None, :].expand_as(chosen.inputs_clean)
        where = chosen.inside(epoch) & stands_still(task, chosen)
        assert torch.equal(chosen.inputs_clean[where], expected[where])


@pytest.mark.parametrize("kind", MOVING)
def test_static_inputs_of_moving_inputs_are_their_mean(kind):
    task = kind()
    trials = task.sample(200, generator=seeded(9), dtype=torch.float64)
    (epoch,) = task.epoch_names
    apart = trials.inputs_clean.mean(dim=1) - task.static_inputs(epoch, trials.conditions, dtype=torch.float64)
    level = apart.std(dim=0).max() / 200**0.5
    if kind is LowRankForecast:  # sin of a Gaussian around b: damped towards 0, not around sin b
        at_zero = task.static_inputs(epoch, {}, dtype=torch.float64)[0]
        assert torch.equal(at_zero, task.system()["b_i"].sin())
    elif kind is DelayedAddition:
        assert abs(apart[:, 0].mean()) < 4 * level
    else:
        assert (apart.mean(dim=0).abs() < 4.5 * level + 0.02 * (kind is ChaosForecast)).all()


def naive_loss(outputs, trials) -> float:
    total = weights = 0.0
    B, T, O = outputs.shape
    for b, t, o in itertools.product(range(B), range(T), range(O)):
        weight = float(trials.mask[b, t, o])
        total += weight * (float(outputs[b, t, o]) - float(trials.targets[b, t, o])) ** 2
        weights += weight
    return total / weights


def test_loss_is_the_naive_loop(task):
    trials = task.sample(1, generator=seeded(10), dtype=torch.float64)
    outputs = torch.randn(trials.targets.shape, generator=seeded(11), dtype=torch.float64)
    assert float(task.loss(outputs, trials)) == pytest.approx(naive_loss(outputs, trials), rel=1e-12)


def test_gradient_of_the_loss(task):
    trials = task.sample(3, generator=seeded(12), dtype=torch.float64)
    outputs = torch.randn(trials.targets.shape, generator=seeded(13), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(task.loss(outputs, trials), outputs)
    expected = 2 * trials.mask * (outputs - trials.targets) / trials.mask.sum()
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-12, atol=1e-14)


def test_loss_ignores_the_scale_of_the_mask_and_more_padding():
    task = MemoryPro()
    trials = task.sample(3, dtype=torch.float64)
    outputs = torch.randn(trials.targets.shape, generator=seeded(0), dtype=torch.float64)
    scaled = dataclasses.replace(trials, mask=3 * trials.mask)
    torch.testing.assert_close(task.loss(outputs, scaled), task.loss(outputs, trials))
    pad = {name: pad_time(getattr(trials, name)) for name in ("inputs", "inputs_clean", "targets", "mask")}
    torch.testing.assert_close(
        task.loss(pad_time(outputs), dataclasses.replace(trials, **pad)), task.loss(outputs, trials)
    )


def pad_time(signal):
    return torch.cat([signal, torch.zeros_like(signal[:, :5])], dim=1)


def test_perfect_outputs_score_one_and_wrong_ones_no_better_than_chance(task):
    B = 64
    trials = task.sample(B, generator=seeded(14))
    assert task.score(trials.targets, trials)["accuracy"] == 1.0
    assert float(task.loss(trials.targets, trials)) == 0.0
    noise = 3 * torch.randn(trials.targets.shape, generator=seeded(15))
    for wrong in (-trials.targets, torch.zeros_like(trials.targets), noise):
        assert task.score(wrong, trials)["accuracy"] < 0.5 + 4 * math.sqrt(0.25 / B)
        assert float(task.loss(wrong, trials)) > 0


def test_no_trial_is_without_weight(task):
    for mode in ("random", "grid"):
        mask = task.sample(30, generator=seeded(16), mode=mode).mask
        assert bool((mask >= 0).all())
        blind = isinstance(task, FlipFlop) and task.blind > 0  # where pulses follow each other, no step may count
        assert blind or bool((mask > 0).flatten(1).any(dim=1).all())


def test_score_is_plain_numbers_without_gradient(task):
    trials = task.sample(3)
    scores = task.score(trials.targets.clone().requires_grad_(), trials)
    assert all(type(value) is float for value in scores.values())
    assert 0 <= scores["accuracy"] <= 1


def test_interpolation_is_a_straight_line_with_its_ends():
    task = MemoryPro()
    a, b = torch.randn(2, 4, 3, generator=seeded(0), dtype=torch.float64)
    line = task.interpolate(a, b, 5)
    assert line.shape == (5, 4, 3)
    assert torch.equal(line[0], a)
    assert torch.equal(line[-1], b)
    torch.testing.assert_close(line[1], 0.75 * a + 0.25 * b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("B", [0, -3])
def test_batch_size_must_be_positive(task, B):
    with pytest.raises(ValueError, match=f"`B` must be a positive whole number; got {B}"):
        task.sample(B)


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        ("sigma", -1, "a number at least 0"),
        ("sigma", math.inf, "a number at least 0"),
        ("dt", 0, "a positive finite number"),
        ("dt", math.inf, "a positive finite number"),
        ("tau", -2.0, "a positive finite number"),
        ("tau", math.inf, "a positive finite number"),
        ("tau", math.nan, "a positive finite number"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_parameters_of_the_noise_are_checked_in_every_task(task, parameter, value, expected):
    if isinstance(task, MultiTask):
        pytest.skip("it has those of its tasks")
    with pytest.raises(ValueError, match=f"`{parameter}` must be {expected}; got {value}"):
        dataclasses.replace(task, **{parameter: value})


@pytest.mark.usefixtures("no_type_checks")
def test_sample_rejects_what_it_does_not_know():
    task = MemoryPro()
    with pytest.raises(ValueError, match="`mode` must be one of 'random', 'grid'; got 'test'"):
        task.sample(2, mode="test")
    with pytest.raises(TypeError, match=r"`noise` must be True or False; got 0.1. The level of the noise"):
        task.sample(2, noise=0.1)
    with pytest.raises(TypeError, match="`shared_timing` must be True or False; got 'yes'"):
        task.sample(2, shared_timing="yes")
    with pytest.raises(TypeError, match=r"`dtype` must be a floating-point type.*got torch.int64"):
        task.sample(2, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"`dtype` must be a floating-point type.*got float32"):
        task.sample(2, dtype="float32")
    with pytest.raises(TypeError, match=r"`generator` must be a torch.Generator or None; got int"):
        task.sample(2, generator=0)


@pytest.mark.usefixtures("no_type_checks")
def test_static_inputs_reject_what_they_do_not_know():
    task, angle = MemoryPro(), torch.zeros(3)
    with pytest.raises(ValueError, match="`epoch` must be one of 'context', 'stimulus', 'memory', 'response'; got 'x'"):
        task.static_inputs("x", {"angle": angle})
    with pytest.raises(ValueError, match="`conditions` has 'theta', which memory_pro does not know; it has: angle"):
        task.static_inputs("stimulus", {"theta": angle})
    with pytest.raises(ValueError, match="`conditions` must have 'angle': the input in epoch 'stimulus' depends"):
        task.static_inputs("stimulus", {})
    with pytest.raises(ValueError, match=r"`conditions` must be tensors \[n\] of one length; got shapes \[\(3, 1\)\]"):
        task.static_inputs("stimulus", {"angle": angle[:, None]})
    with pytest.raises(TypeError, match=r"`conditions\['angle'\]` must be a torch.Tensor; got float"):
        task.static_inputs("stimulus", {"angle": 0.5})


@pytest.mark.usefixtures("no_type_checks")
def test_interpolation_rejects_other_shapes():
    task = MemoryPro()
    with pytest.raises(ValueError, match="`n` must be a whole number at least 2; got 1"):
        task.interpolate(torch.zeros(3), torch.ones(3), 1)
    with pytest.raises(ValueError, match=r"one shape \[\*, 3\]; got \(3,\) and \(2, 3\)"):
        task.interpolate(torch.zeros(3), torch.ones(2, 3), 4)
    with pytest.raises(ValueError, match=r"one shape \[\*, 3\]; got \(2,\) and \(2,\)"):
        task.interpolate(torch.zeros(2), torch.ones(2), 4)
    with pytest.raises(TypeError, match=r"`b` must be a torch.Tensor; got list"):
        task.interpolate(torch.zeros(3), [1.0, 2.0, 3.0], 4)


@pytest.mark.parametrize("judge", ["loss", "score"])
@pytest.mark.usefixtures("no_type_checks")
def test_outputs_must_fit_the_trials(judge):
    task = MemoryPro()
    trials = task.sample(4)
    judge = getattr(task, judge)
    with pytest.raises(ValueError, match=r"`outputs` must have the shape.*\(4, 90, 3\); got \(90, 4, 3\)"):
        judge(trials.targets.transpose(0, 1), trials)
    with pytest.raises(TypeError, match=r"`outputs` must be a torch.Tensor; got tuple"):
        judge((trials.targets, None), trials)
    with pytest.raises(
        ValueError, match=r"`trials` must be trials of memory_pro.*got inputs pulse 0, pulse 1, pulse 2"
    ):
        judge(trials.targets, FlipFlop().sample(4))
    with pytest.raises(ValueError, match=r"`trials.mask` is zero everywhere"):
        judge(trials.targets, dataclasses.replace(trials, mask=torch.zeros_like(trials.mask)))
    with pytest.raises(ValueError, match=r"`outputs` are on meta, the trials on cpu. Move the trials with"):
        judge(trials.targets.to("meta"), trials)


def test_score_of_nan_says_where():
    task = MemoryPro()
    trials = task.sample(4)
    outputs = trials.targets.clone()
    outputs[2, 5, 1] = torch.nan
    with pytest.raises(ValueError, match="`outputs` must be finite; got NaN at trial 2, step 5, output 1"):
        task.score(outputs, trials)
