"""Integration of evidence and comparison over a delay, against their definitions."""

import itertools
import math

import pytest
import torch

from kpflow.tasks import ContextIntegration, DelayedMatch, ParametricWorkingMemory, PerceptualIntegration


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steps(trials, epoch, b=0):
    return tuple(int(times[b]) for times in trials.epochs[epoch])


def test_durations_of_the_integration_of_evidence():
    trials = PerceptualIntegration().sample(1)
    assert [20 * steps(trials, name)[1] for name in trials.epochs] == [100, 900, 1000, 1020]
    trials = ContextIntegration().sample(1)
    assert [20 * steps(trials, name)[1] for name in trials.epochs] == [100, 440, 1240, 1340, 1360]  # ⌊350/20⌋ = 17


@pytest.mark.parametrize("mode", ["random", "grid"])
@pytest.mark.parametrize("kind", [PerceptualIntegration, ContextIntegration])
def test_every_step_of_evidence_is_as_defined(kind, mode):
    trials = kind().sample(72, generator=seeded(0), mode=mode, dtype=torch.float64)
    two = kind is ContextIntegration
    T = trials.num_steps
    for b in range(72):
        c = {name: values[b].item() for name, values in trials.conditions.items()}
        streams = [c["evidence1"], c["evidence2"]] if two else [c["evidence"]]
        seen = range(*steps(trials, "stimulus", b))
        attended = streams[int(c["context"]) - 1] if two else streams[0]
        cued = range(steps(trials, "context", b)[0], steps(trials, "delay", b)[1]) if two else ()
        inputs = [[0.1 * x * (t in seen) for x in streams] for t in range(T)]
        if two:
            inputs = [row + [float(t in cued and c["context"] == k) for k in (1, 2)] for t, row in enumerate(inputs)]
        torch.testing.assert_close(trials.inputs_clean[b], torch.tensor(inputs).double(), rtol=0, atol=1e-7)
        assert trials.targets[b, :, 0].tolist() == [0.0] * (T - 1) + [math.copysign(1, attended)]
        assert trials.mask[b, :, 0].tolist() == [0.0] * (T - 1) + [1.0]


@pytest.mark.parametrize("mode", ["random", "grid"])
def test_paired_inputs_show_the_same_evidence_without_sign(mode):
    single, paired = (
        ContextIntegration(paired=paired).sample(72, generator=seeded(0), mode=mode, noise=False, dtype=torch.float64)
        for paired in (False, True)
    )
    assert paired.input_labels == (
        "evidence 1 +",
        "evidence 1 −",
        "evidence 2 +",
        "evidence 2 −",
        "context 1",
        "context 2",
    )
    seen = paired.inside("stimulus")
    for stream in (0, 1):
        plus, minus = paired.inputs[:, :, 2 * stream], paired.inputs[:, :, 2 * stream + 1]
        torch.testing.assert_close(plus - minus, single.inputs[:, :, stream], rtol=0, atol=1e-15)
        torch.testing.assert_close(plus + minus, seen.double(), rtol=0, atol=1e-15)
        assert 0.3 - 1e-15 <= float(plus[seen].min()) < float(plus[seen].max()) <= 0.7 + 1e-15
    assert torch.equal(paired.inputs[:, :, 4:], single.inputs[:, :, 2:])
    assert torch.equal(paired.targets, single.targets)


def test_the_grid_of_evidence_has_every_combination_once():
    trials = ContextIntegration().sample(72, mode="grid")
    rows = torch.stack([trials.conditions[name].double() for name in ("context", "evidence1", "evidence2")], dim=1)
    values = [-4.0, -2.0, -1.0, 1.0, 2.0, 4.0]
    assert {tuple(row) for row in rows.tolist()} == set(itertools.product([1.0, 2.0], values, values))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_drawn_evidence_is_uniform_and_independent(seed):
    n = 3000
    trials = ContextIntegration(stimulus=20.0).sample(n, generator=seeded(seed), noise=False)
    for name in ("evidence1", "evidence2"):
        values, counts = trials.conditions[name].unique(return_counts=True)
        assert values.tolist() == [-4, -2, -1, 1, 2, 4]
        assert (counts - n / 6).abs().max() < 4 * math.sqrt(n / 6)
    drawn = torch.stack([trials.conditions[name].double() for name in ("context", "evidence1", "evidence2")])
    assert (torch.corrcoef(drawn) - torch.eye(3)).abs().max() < 4 / n**0.5


def test_noise_of_the_evidence_is_per_step():
    assert ContextIntegration().noise_std == 0.1
    assert PerceptualIntegration(sigma=0.3, dt=10.0).noise_std == 0.3


def test_a_choice_is_the_sign_of_the_mean_over_the_decision():
    task = PerceptualIntegration(decision=100.0)
    trials = task.sample(12, mode="grid", dtype=torch.float64)
    outputs = 9 * torch.ones_like(trials.targets)
    start, stop = steps(trials, "decision")
    assert stop - start == 5
    sign = trials.conditions["evidence"].sign()[:, None]
    outputs[:, start:stop, 0] = sign * torch.tensor([1.0, -1.0, 1.0, -1.0, 0.1]).double()
    assert task.score(outputs, trials) == {"accuracy": 1.0}
    outputs[:, start:stop, 0] *= -1
    assert task.score(outputs, trials) == {"accuracy": 0.0}
    assert task.score(torch.ones_like(outputs), trials) == {"accuracy": 0.5}


@pytest.mark.usefixtures("no_type_checks")
def test_paired_inputs_that_are_refused():
    with pytest.raises(ValueError, match=r"`scale` must be at most 1/4, so that paired inputs .*negative; got 0.3"):
        ContextIntegration(paired=True, scale=0.3)
    assert ContextIntegration(scale=0.3).num_inputs == 4
    with pytest.raises(TypeError, match="`paired` must be True or False; got 'yes'"):
        ContextIntegration(paired="yes")


def test_the_evidence_alone_is_no_answer_in_context():
    """Chance level of the best strategy that ignores the context: right in three of four trials."""
    task = ContextIntegration(coherences=(1,))
    trials = task.sample(8, mode="grid")
    total = trials.conditions["evidence1"] + 0.5 * trials.conditions["evidence2"]
    assert task.score(total[:, None, None].expand_as(trials.targets), trials)["accuracy"] == 0.75


@pytest.mark.parametrize("mode", ["random", "grid"])
def test_every_step_of_parametric_working_memory(mode):
    trials = ParametricWorkingMemory().sample(60, generator=seeded(1), mode=mode, dtype=torch.float64)
    for b in range(60):
        f1, f2 = (float(trials.conditions[name][b]) for name in ("f1", "f2"))
        assert 10 <= min(f1, f2) <= max(f1, f2) <= 34
        assert min(abs(abs(f1 - f2) - d) for d in (8, 16, 24)) < 1e-12
        u, y, m = (getattr(trials, name)[b, :, 0] for name in ("inputs_clean", "targets", "mask"))
        expected = torch.zeros_like(u)
        for name, f in (("stimulus", f1), ("test", f2)):
            expected[slice(*steps(trials, name, b))] = (f - 22) / 24
        torch.testing.assert_close(u, expected, rtol=0, atol=1e-15)
        at = slice(*steps(trials, "decision", b))
        expected, weight = torch.zeros_like(u), torch.zeros_like(u)
        expected[at], weight[at] = (f1 - f2) / 24, 1.0
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-15)
        assert torch.equal(m, weight)
        durations = [20 * (b1 - a1) for a1, b1 in (steps(trials, name, b) for name in trials.epochs)]
        assert durations[:2] == [100, 100]
        assert durations[3:] == [100, 100]
        assert 500 <= durations[2] < 2000


def test_differences_are_equally_frequent():
    n = 3000
    c = ParametricWorkingMemory(delay=(20.0, 20.0)).sample(n, generator=seeded(2)).conditions
    values, counts = (c["f1"] - c["f2"]).round().unique(return_counts=True)
    assert values.tolist() == [-24, -16, -8, 8, 16, 24]
    assert (counts - n / 6).abs().max() < 4 * math.sqrt(n / 6)


def test_a_difference_is_right_within_half_a_level():
    task = ParametricWorkingMemory()
    trials = task.sample(20, generator=seeded(3), dtype=torch.float64)
    assert task.score(trials.targets + 3.99 / 24, trials) == {"accuracy": 1.0, "sign": 1.0}
    assert task.score(trials.targets - 4.01 / 24, trials) == {"accuracy": 0.0, "sign": 1.0}
    assert task.score(-trials.targets, trials) == {"accuracy": 0.0, "sign": 0.0}


@pytest.mark.parametrize(("kind", "K"), [("sample", 2), ("sample", 5), ("category", 2), ("category", 8)])
def test_matches_on_all_pairs(kind, K):
    trials = DelayedMatch(kind, K=K).sample(K * K, mode="grid", dtype=torch.float64)
    pairs = list(zip(*(trials.conditions[name].tolist() for name in ("first", "second")), strict=True))
    assert pairs == list(itertools.product(range(K), repeat=2))
    for b, (i, j) in enumerate(pairs):
        match = i == j if kind == "sample" else (i < K / 2) == (j < K / 2)
        assert int(trials.conditions["match"][b]) == match
        start, stop = steps(trials, "decision", b)
        expected = torch.zeros(trials.num_steps, dtype=torch.float64)
        expected[start:stop] = 1.0 if match else -1.0
        assert torch.equal(trials.targets[b, :, 0], expected)
        assert torch.equal(trials.mask[b, :, 0], expected.abs())
        shown = torch.zeros(trials.num_steps, K, dtype=torch.float64)
        shown[slice(*steps(trials, "stimulus", b)), i] = 1
        shown[slice(*steps(trials, "test", b)), j] = 1
        assert torch.equal(trials.inputs_clean[b], shown)


@pytest.mark.parametrize(("kind", "K"), [("sample", 2), ("sample", 6), ("category", 8)])
def test_matches_are_drawn_half_of_the_time(kind, K):
    n = 4000
    task = DelayedMatch(kind, K=K, stimulus=20.0, delay=(0, 20.0), decision=20.0)
    c = task.sample(n, generator=seeded(4), noise=False).conditions
    match = c["match"] == 1
    assert abs(float(match.double().mean()) - 0.5) < 4 * 0.5 / n**0.5
    size = K if kind == "sample" else K // 2  # stimuli that do not match one: K − 1 or K/2
    for chosen, count in ((match, 1 if kind == "sample" else size), (~match, K - 1 if kind == "sample" else size)):
        pairs = (c["first"] * K + c["second"])[chosen]
        counts = pairs.unique(return_counts=True)[1].double()
        assert len(counts) == K * count
        expected = int(chosen.sum()) / (K * count)
        assert (counts - expected).abs().max() < 4.5 * math.sqrt(expected)


def test_hits_and_rejections_are_told_apart():
    task = DelayedMatch("sample", K=3)
    trials = task.sample(9, mode="grid", dtype=torch.float64)
    scores = task.score(torch.ones_like(trials.targets), trials)
    assert scores == {"accuracy": pytest.approx(1 / 3), "hits": 1.0, "correct_rejections": 0.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PerceptualIntegration(coherences=3), "`coherences` must be a tuple of at least one number; got 3"),
        (lambda: PerceptualIntegration(coherences=()), r"`coherences` must be .* at least one number; got \(\)"),
        (lambda: PerceptualIntegration(coherences=(1, 0)), "`coherences` must be a positive number; got 0"),
        (lambda: PerceptualIntegration(scale=0), "`scale` must be a positive number; got 0"),
        (lambda: PerceptualIntegration(stimulus=10.0), "`stimulus` must be a number at least 20; got 10.0"),
        (lambda: ContextIntegration(context=-1), "`context` must be a number at least 0; got -1"),
        (lambda: ContextIntegration(delay=-1), "`delay` must be a number at least 0; got -1"),
        (lambda: ContextIntegration(sigma=-1), "`sigma` must be a number at least 0; got -1"),
        (lambda: ContextIntegration(dt=0), "`dt` must be a positive finite number; got 0"),
        (lambda: ParametricWorkingMemory(differences=8), "`differences` must be a tuple of at least one number; got 8"),
        (lambda: ParametricWorkingMemory(differences=()), r"`differences` must be .* at least one number; got \(\)"),
        (lambda: ParametricWorkingMemory(differences=(0,)), "`differences` must be a positive number; got 0"),
        (lambda: ParametricWorkingMemory(differences=(25,)), "`differences` must be a number between 0 and 24; got 25"),
        (lambda: ParametricWorkingMemory(low=0), "`low` must be a positive number; got 0"),
        (lambda: ParametricWorkingMemory(high=5), "`high` must be a number at least 10; got 5"),
        (lambda: ParametricWorkingMemory(delay=(5, 1)), "`delay` must be a number at least 5; got 1"),
        (lambda: ParametricWorkingMemory(delay=(5,)), r"`delay` must be a tuple of 2 numbers; got \(5,\)"),
        (lambda: ParametricWorkingMemory(delay=500), "`delay` must be a tuple of 2 numbers; got 500"),
        (lambda: DelayedMatch(delay="ab"), "`delay` must be a tuple of 2 numbers; got 'ab'"),
        (lambda: ParametricWorkingMemory(decision=10), "`decision` must last at least one step of 20 ms; got 10 ms"),
        (lambda: DelayedMatch("xor"), "`kind` must be one of 'sample', 'category'; got 'xor'"),
        (lambda: DelayedMatch(K=1), "`K` must be a whole number at least 2; got 1"),
        (lambda: DelayedMatch("category", K=3), "`K` must be even, for two categories of one size; got 3"),
        (lambda: DelayedMatch(stimulus=0), "`stimulus` must be a positive number; got 0"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_parameters_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
