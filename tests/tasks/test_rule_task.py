"""The tasks of Driscoll et al. and Yang et al. against their definitions, step by step and over many trials."""

import math

import pytest
import torch

from kpflow.tasks import RuleTask
from kpflow.tasks.rule_conditions import _same_half, answer
from kpflow.tasks.rules import DRISCOLL_RULES, RULES, YANG_RULES

TAU = 2 * math.pi
ALL = [("driscoll", rule) for rule in DRISCOLL_RULES] + [("yang", rule) for rule in YANG_RULES]

# What Driscoll et al. (2024) ask for, rule by rule: epochs in which stimulus 1 and 2 are shown, whether the fixation
# stays on, and the answer from the conditions (None: keep fixating). Written anew, not from the tables of the package.
ANTI = math.pi
DEFINITIONS = {
    "delay_pro": ("stimulus response", "", False, lambda c: c["angle"]),
    "delay_anti": ("stimulus response", "", False, lambda c: c["angle"] + ANTI),
    "memory_pro": ("stimulus", "", False, lambda c: c["angle"]),
    "memory_anti": ("stimulus", "", False, lambda c: c["angle"] + ANTI),
    "react_pro": ("response", "", True, lambda c: c["angle"]),
    "react_anti": ("response", "", True, lambda c: c["angle"] + ANTI),
    "integration_modality1": ("stimulus", "stimulus2", False, lambda c: stronger(c, "strength{}")),
    "integration_modality2": ("stimulus", "stimulus2", False, lambda c: stronger(c, "strength{}")),
    "ctxt_int_modality1": ("stimulus", "stimulus2", False, lambda c: stronger(c, "strength{}_modality1")),
    "ctxt_int_modality2": ("stimulus", "stimulus2", False, lambda c: stronger(c, "strength{}_modality2")),
    "integration_multimodal": (
        "stimulus",
        "stimulus2",
        False,
        lambda c: stronger(c, "strength{}_modality1", "strength{}_modality2"),
    ),
    "react_match2sample": ("stimulus", "response", True, lambda c: c["angle2"] if c["match"] else None),
    "react_nonmatch2sample": ("stimulus", "response", True, lambda c: None if c["match"] else c["angle2"]),
    "react_category_pro": ("stimulus", "response", True, lambda c: c["angle2"] if halves(c) else None),
    "react_category_anti": ("stimulus", "response", True, lambda c: None if halves(c) else c["angle2"]),
}
COARSE = {"dt": 100.0, "grace": 0.0}
"""Few and long steps, for tests in which only conditions and answers matter."""

AT_ONCE = {
    "dm1": "integration_modality1",
    "dm2": "integration_modality2",
    "contextdm1": "ctxt_int_modality1",
    "contextdm2": "ctxt_int_modality2",
    "multidm": "integration_multimodal",
}
DEFINITIONS |= {new: ("stimulus", "stimulus", *DEFINITIONS[old][2:]) for new, old in AT_ONCE.items()}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stronger(c, *names):
    one, two = (sum(c[name.format(i)] for name in names) for i in (1, 2))
    return c["angle1"] if one > two else c["angle2"]


def halves(c):
    return (c["angle1"] < math.pi) == (c["angle2"] < math.pi)


def strengths(rule, c, i):
    """How strongly stimulus i is shown in modality 1 and in modality 2."""
    if "angle" in c:
        return [float(c["modality"] == m) for m in (1, 2)]
    if "match" in c:
        return [float(c[f"modality{i}"] == m) for m in (1, 2)]
    if "strength1" in c:
        return [c[f"strength{i}"] * rule.endswith(str(m)) for m in (1, 2)]
    return [c[f"strength{i}_modality{m}"] for m in (1, 2)]


def code(task, angle):
    """The channels of a direction, by the formulas of the papers."""
    if task.encoding == "circular":
        return [math.cos(angle), math.sin(angle)]
    bumps = []
    for k in range(task.units):
        apart = abs(angle - TAU * k / task.units) % TAU
        bumps.append(0.8 * math.exp(-0.5 * (min(apart, TAU - apart) / (math.pi / 8)) ** 2))
    return bumps


def weights(t, go, end, outputs):
    if t < 5 or t >= end or go <= t < go + 5:
        return [0.0] * outputs
    w = 1.0 if t < go else 5.0
    return [(2 * w) ** 2] + [w**2] * (outputs - 1)


@pytest.mark.parametrize("mode", ["random", "grid"])
@pytest.mark.parametrize(("timing", "rule"), ALL)
def test_every_step_is_as_defined(timing, rule, mode):
    task = RuleTask(rule) if timing == "driscoll" else RuleTask.yang(rule, units=5)
    first, second, stays, right = DEFINITIONS[rule]
    trials = task.sample(2, generator=seeded(0), mode=mode, dtype=torch.float64)
    for b in range(2):
        c = {name: values[b].item() for name, values in trials.conditions.items()}
        epoch = {t: name for name, (a, z) in trials.epochs.items() for t in range(int(a[b]), int(z[b]))}
        go, end = (int(times[b]) for times in trials.epochs["response"])
        assert end == int(trials.length[b])
        goal = right(c)
        blank = [0.0] * task.num_outputs
        patterns = {}
        for name in set(epoch.values()):
            modalities = [[0.0] * (task.num_outputs - 1) for _ in (1, 2)]
            for i, shown in ((1, first), (2, second)):
                if name in shown.split():
                    channels = code(task, c["angle"] if "angle" in c else c[f"angle{i}"])
                    for m, s in enumerate(strengths(rule, c, i)):
                        modalities[m] = [x + s * y for x, y in zip(modalities[m], channels, strict=True)]
            fixation = float(stays or name != "response")
            answered = name == "response" and goal is not None
            said = [task.baseline + x for x in code(task, goal)] if answered else [task.baseline] * len(blank[1:])
            patterns[name] = ([fixation, *modalities[0], *modalities[1]], [task.baseline if answered else 0.8, *said])
        T = trials.num_steps
        inputs = [patterns[epoch[t]][0] if t < end else [0.0] * task.num_inputs for t in range(T)]
        targets = [patterns[epoch[t]][1] if t < end else blank for t in range(T)]
        mask = [weights(t, go, end, task.num_outputs) for t in range(T)]
        for name, expected in {"inputs_clean": inputs, "targets": targets, "mask": mask}.items():
            expected = torch.tensor(expected, dtype=torch.float64)
            torch.testing.assert_close(getattr(trials, name)[b], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("timing", "rule"), ALL)
def test_labels_are_right_in_all_trials(timing, rule):
    task = RuleTask(rule, timing=timing, **COARSE)
    for mode, n in (("random", 600), ("grid", 64)):
        trials = task.sample(n, generator=seeded(0), mode=mode, dtype=torch.float64)
        rows = [{k: v[b].item() for k, v in trials.conditions.items()} for b in range(n)]
        goals = [DEFINITIONS[rule][3](c) for c in rows]
        last = trials.targets[torch.arange(n), trials.length - 1]
        fixates = torch.tensor([goal is None for goal in goals])
        assert torch.equal(last[:, 0] > 0.5, fixates)
        assert not last[fixates, 1:].any()
        expected = torch.tensor([[math.cos(g), math.sin(g)] for g in goals if g is not None], dtype=torch.float64)
        torch.testing.assert_close(last[~fixates, 1:], expected, rtol=0, atol=1e-12)
        if "match" in task.condition_names:
            assert 0.5 - 4 * 0.5 / n**0.5 <= float(fixates.double().mean()) <= 0.5 + 4 * 0.5 / n**0.5
            same = "category" in rule
            matches = [halves(c) if same else c["angle1"] == c["angle2"] for c in rows]
            assert matches == [bool(c["match"]) for c in rows]


def test_the_border_of_the_categories_is_the_same_in_conditions_and_labels():
    """On all pairs of directions, the borders 0 and π included: the place where public versions disagree."""
    angles = torch.tensor([0.0, 1e-9, 0.5, 1.0 - 1e-9, 1.0, 1.0 + 1e-9, 1.5, 2.0 - 1e-9], dtype=torch.float64) * math.pi
    a, b = angles.repeat_interleave(8), angles.repeat(8)
    first_half = torch.tensor([True] * 4 + [False] * 4)
    same = first_half.repeat_interleave(8) == first_half.repeat(8)
    assert torch.equal(_same_half(a, b), same.long())
    for rule, opposite in (("react_category_pro", False), ("react_category_anti", True)):
        conditions = {"angle1": a, "angle2": b, "match": same.long()}
        goal, responds = answer(RULES[rule], conditions)
        assert torch.equal(responds, same != opposite)
        assert torch.equal(goal, b)


RANGES = {
    ("driscoll", "memory_pro"): ((300, 700), (200, 1600), (200, 1600), (300, 700)),
    ("driscoll", "delay_anti"): ((300, 700), (200, 1500), (300, 700)),
    ("driscoll", "react_pro"): ((500, 2500), (300, 1700)),
    ("driscoll", "integration_modality1"): (
        (200, 600),
        (200, 1600),
        (200, 1600),
        (200, 1600),
        (100, 300),
        (300, 700),
    ),
    ("driscoll", "react_match2sample"): ((200, 600), (200, 1600), (200, 1600), (300, 700)),
    ("yang", "delay_pro"): ((300, 700), (500, 1500), [500]),
    ("yang", "memory_anti"): ([300, 500, 700], [200, 400, 600], [200, 400, 800, 1600], [500]),
    ("yang", "react_anti"): ((500, 2500), [500]),
    ("yang", "dm1"): ((100, 400), [400, 800, 1600], [500]),
    ("yang", "ctxt_int_modality2"): (
        [200, 400, 600],
        [200, 400, 600],
        [200, 400, 800, 1600],
        [200, 400, 600],
        (100, 300),
        [500],
    ),
    ("yang", "react_nonmatch2sample"): ([200, 400, 600], [200, 400, 600], [200, 400, 800, 1600], [500]),
    ("yang", "react_category_pro"): ([200, 400, 600], [200, 400, 600], [200, 400, 800, 1600], [200, 400, 600]),
}


@pytest.mark.parametrize(("timing", "rule"), RANGES)
def test_durations_are_drawn_as_said(timing, rule):
    n = 800
    task = RuleTask(rule, timing=timing)
    trials = task.sample(n, generator=seeded(0), noise=False)
    for (start, stop), span in zip(trials.epochs.values(), RANGES[timing, rule], strict=True):
        steps = stop - start
        if isinstance(span, list):
            assert steps.unique().tolist() == [ms // 20 for ms in span]
            counts = steps.unique(return_counts=True)[1].double()
            expected = n / len(span)
            assert (counts - expected).abs().max() < 4 * expected**0.5 + 1e-9
            continue
        low, high = span[0] // 20, span[1] // 20 - 1  # ⌊U(a, b)/20⌋ is uniform on a/20 … b/20 − 1
        assert (int(steps.min()), int(steps.max())) == (low, high)
        std = math.sqrt(((high - low + 1) ** 2 - 1) / 12)
        assert abs(float(steps.double().mean()) - (low + high) / 2) < 4 * std / n**0.5


GRIDS = {
    "delay_pro": [500, 1500, 2000],
    "memory_pro": [500, 1000, 2000, 2500],
    "react_anti": [2000, 2500],
    "integration_modality2": [500, 1000, 2000, 2500, 2700, 3200],
    "integration_multimodal": [500, 1000, 2000, 2500, 3000, 3500],
    "react_category_anti": [500, 1000, 2200, 2700],
}


@pytest.mark.parametrize("rule", GRIDS)
def test_the_grid_has_the_durations_of_the_public_test_sets(rule):
    trials = RuleTask(rule).sample(2, mode="grid")
    assert [20 * int(stop[1]) for _, stop in trials.epochs.values()] == GRIDS[rule]


def uniform(values, low, high):
    """Mean and range of U(low, high), with |z| < 4."""
    n = len(values)
    assert low <= float(values.min())
    assert float(values.max()) <= high
    assert float(values.max()) - float(values.min()) > (1 - 20 / n) * (high - low)
    assert abs(float(values.mean()) - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * n)


@pytest.mark.parametrize("rule", ["integration_modality1", "ctxt_int_modality2"])
def test_strengths_are_a_mean_and_a_coherence(rule):
    n = 3000
    c = RuleTask(rule, **COARSE).sample(n, generator=seeded(3), dtype=torch.float64).conditions
    tails = [""] if rule.startswith("int") else ["_modality1", "_modality2"]
    differences = []
    for tail in tails:
        one, two = c[f"strength1{tail}"], c[f"strength2{tail}"]
        uniform((one + two) / 2, 0.8, 1.2)
        uniform((one - two).abs() / 2, 0.005, 0.8)
        differences.append(one - two)
        assert abs(float((one > two).double().mean()) - 0.5) < 4 * 0.5 / n**0.5
    if len(tails) == 2:
        assert abs(float(torch.corrcoef(torch.stack(differences))[0, 1])) < 4 / n**0.5
    apart = (c["angle2"] - c["angle1"]) % TAU
    uniform(apart, 0.5 * math.pi, 1.5 * math.pi)  # ±U(π/2, 3π/2) mod 2π
    uniform(c["angle1"], 0, TAU)


@pytest.mark.parametrize(("timing", "share"), [("driscoll", (0.005, 0.8)), ("yang", (0.2, 0.8))])
def test_strengths_of_the_multimodal_rule(timing, share):
    task = RuleTask("integration_multimodal", timing=timing, **COARSE)
    c = task.sample(3000, generator=seeded(4), dtype=torch.float64).conditions
    means = []
    for i in (1, 2):
        one, two = c[f"strength{i}_modality1"], c[f"strength{i}_modality2"]
        mean = (one + two) / 2
        means.append(mean)
        visible = mean > 0.05
        uniform(((one - two) / mean).abs()[visible], *share)
    uniform((means[0] + means[1]) / 2, 0.8, 1.2)
    coherence = (means[0] - means[1]).abs() / 2
    if timing == "driscoll":
        uniform(coherence, 0.005, 0.8)
    else:
        assert sorted({round(x, 9) for x in coherence.tolist()}) == [0.08, 0.16, 0.32]


@pytest.mark.parametrize("rule", ["dm2", "contextdm1", "multidm"])
def test_coherences_of_yang_at_once(rule):
    c = (
        RuleTask.yang(rule, units=3, **COARSE)
        .sample(300, generator=seeded(5), dtype=torch.float64, noise=False)
        .conditions
    )
    if rule == "multidm":
        one, two = (c[f"strength{i}_modality1"] + c[f"strength{i}_modality2"] for i in (1, 2))
        coherence = (one - two).abs() / 4
    else:
        tail = "" if rule == "dm2" else "_modality1"
        coherence = (c[f"strength1{tail}"] - c[f"strength2{tail}"]).abs() / 2
    assert sorted({round(x, 9) for x in coherence.tolist()}) == [0.01, 0.02, 0.04, 0.08]


def test_matches_are_half_of_the_trials_and_other_pairs_are_anywhere():
    n = 4000
    c = (
        RuleTask("react_match2sample", **COARSE)
        .sample(n, generator=seeded(6), dtype=torch.float64, noise=False)
        .conditions
    )
    match = c["match"] == 1
    assert abs(float(match.double().mean()) - 0.5) < 4 * 0.5 / n**0.5
    apart = ((c["angle2"] - c["angle1"]) % TAU)[~match]
    uniform(apart, math.pi / 9, 17 * math.pi / 9)
    for name in ("modality1", "modality2"):
        assert c[name].unique().tolist() == [1, 2]
    same = (c["modality1"] == c["modality2"]).double().mean()
    assert abs(float(same) - 0.5) < 4 * 0.5 / n**0.5


def test_categories_of_yang_are_ten_directions():
    c = (
        RuleTask("dmcgo", timing="yang", **COARSE)
        .sample(2000, generator=seeded(7), dtype=torch.float64, noise=False)
        .conditions
    )
    expected = torch.arange(1, 20, 2, dtype=torch.float64) * math.pi / 10
    for name in ("angle1", "angle2"):
        values, counts = c[name].unique(return_counts=True)
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=0)
        assert (counts - 200).abs().max() < 4 * 200**0.5


def test_the_grid_has_both_answers_no_ties_and_no_border():
    for rule in DRISCOLL_RULES:
        for B in (7, 64):
            c = RuleTask(rule, **COARSE).sample(B, mode="grid", dtype=torch.float64).conditions
            if "match" in c:
                assert abs(float(c["match"].double().mean()) - 0.5) < 0.1
            if "category" in rule:
                for name in ("angle1", "angle2"):
                    inside = c[name] % math.pi
                    assert 0.09 * math.pi < float(inside.min())
                    assert float(inside.max()) < 0.91 * math.pi
            pairs = [("strength1", "strength2")] if "strength1" in c else []
            if "strength1_modality1" in c:
                pairs = [(f"strength1_modality{m}", f"strength2_modality{m}") for m in (1, 2)]
            for one, two in pairs:
                assert float((c[one] - c[two]).abs().min()) > 0.1
            if len(pairs) == 2:
                total = [c[f"strength{i}_modality1"] + c[f"strength{i}_modality2"] for i in (1, 2)]
                assert float((total[0] - total[1]).abs().min()) > 0.1


@pytest.mark.parametrize("encoding", ["circular", "ring"])
def test_score_is_by_fixation_and_angle_at_the_last_step(encoding):
    task = RuleTask("react_match2sample", encoding=encoding, units=16)
    trials = task.sample(60, generator=seeded(8), dtype=torch.float64)
    goes = trials.conditions["match"] == 1
    k = float(goes.double().mean())
    rows = (torch.arange(60), trials.length - 1)

    def outputs(turn, fixation):
        y = torch.full_like(trials.targets, 9.0)
        y[rows] = torch.cat((fixation[:, None], task._encode(trials.conditions["angle2"] + turn)), dim=1)
        return y

    holds, releases = torch.full((60,), 0.51).double(), torch.full((60,), 0.5).double()
    right = torch.where(goes, releases, holds)
    near, far = math.pi / 10 - 1e-3, math.pi / 10 + 1e-3
    assert task.score(outputs(near, right), trials)["accuracy"] == 1.0
    assert task.score(outputs(-near, right), trials)["fixation"] == 1.0
    assert task.score(outputs(far, right), trials)["accuracy"] == pytest.approx(1 - k)
    assert task.score(outputs(0.0, holds), trials)["accuracy"] == pytest.approx(1 - k)
    assert task.score(outputs(0.0, releases), trials)["accuracy"] == pytest.approx(k)
    assert task.score(outputs(0.2, right), trials)["angular_error"] == pytest.approx(0.2, abs=1e-3)


def test_names_of_both_papers_make_the_same_task():
    assert len(DRISCOLL_RULES) == 15
    assert len(YANG_RULES) == 20
    for rule in RULES.values():
        assert RuleTask.yang(rule.code) == RuleTask.yang(rule.label) == RuleTask.yang(rule.name)
    assert RuleTask("dmcnogo").rule == "react_category_anti"
    codes = [RULES[rule].code for rule in DRISCOLL_RULES]  # the order of the rule inputs in their files
    assert codes[:6] == ["fdgo", "reactgo", "delaygo", "fdanti", "reactanti", "delayanti"]
    assert codes[6:11] == ["delaydm1", "delaydm2", "contextdelaydm1", "contextdelaydm2", "multidelaydm"]
    assert codes[11:] == ["dmsgo", "dmsnogo", "dmcgo", "dmcnogo"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rule": "memory"}, "`rule` must be one of 'delay_pro', 'react_pro', .*; got 'memory'"),
        ({"rule": "dm1"}, "`rule` must be one of .*; got 'dm1'"),
        ({"timing": "fixed"}, "`timing` must be one of 'driscoll', 'yang'; got 'fixed'"),
        ({"encoding": "onehot"}, "`encoding` must be one of 'circular', 'ring'; got 'onehot'"),
        ({"order": "x"}, "`order` must be one of 'cos_sin', 'sin_cos'; got 'x'"),
        ({"weighting": "x"}, "`weighting` must be one of 'uniform', 'driscoll'; got 'x'"),
        ({"units": 2}, "`units` must be a whole number at least 3; got 2"),
        ({"sigma": -1}, "`sigma` must be a number at least 0; got -1"),
        ({"fixation_target": 0.4}, "`fixation_target` must be a number between 0.5 and 1; got 0.4"),
        ({"baseline": 0.6}, "`baseline` must be a number between 0 and 0.5; got 0.6"),
        ({"tolerance": 4}, "`tolerance` must be a number between 0 and 3.14159; got 4"),
        ({"dt": 0}, "`dt` must be a positive finite number; got 0"),
        ({"dt": 250.0}, "`dt` must be at most 200 ms for memory_pro; got 250"),
        ({"tau": -1}, "`tau` must be a positive finite number; got -1"),
        ({"grace": 300.0}, "`grace` must be shorter than the response of memory_pro.*15 steps; got 300 ms = 15 steps"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_parameters_out_of_range(parameters, message):
    with pytest.raises(ValueError, match=message):
        RuleTask(**parameters)
