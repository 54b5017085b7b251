"""The adapter to neurogym, against a small module with its interface, and against neurogym where it is installed."""

import math
import types

import numpy as np
import pytest
import torch

from kpflow.tasks import neurogym_task
from kpflow.tasks.neurogym_task import NeurogymTask


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Decision:
    """An environment as those of neurogym: a stimulus of two channels, a delay of random duration, a choice."""

    def __init__(self, dt=100, sigma=0.0):
        self.dt, self.sigma = dt, sigma
        self.observation_space = types.SimpleNamespace(shape=(3,), name={"fixation": 0, "stimulus": range(1, 3)})
        self.action_space = types.SimpleNamespace(n=3, name={"fixation": 0, "choice": [1, 2]})
        self.unwrapped = self
        self.seeds = []
        self.rng = None
        self.start_ind, self.end_ind = {}, {}

    def seed(self, seed=None):
        self.seeds.append(seed)
        self.rng = np.random.RandomState(seed)

    def new_trial(self):
        side, delay = int(self.rng.randint(2)), int(self.rng.randint(1, 4))
        self.trial = {"ground_truth": side, "coh": np.float64(6.4), "left": np.bool_(not side), "text": "a"}
        self.start_ind |= {"fixation": 0, "stimulus": 2, "delay": 5, "decision": 5 + delay}  # epochs of before stay
        self.end_ind |= {"fixation": 2, "stimulus": 5, "delay": 5 + delay, "decision": 6 + delay}
        T = 6 + delay
        self.ob = np.zeros((T, 3))
        self.ob[: T - 1, 0] = 1
        self.ob[2:5, 1 + side] = 1
        self.ob += self.sigma * self.rng.randn(T, 3)
        self.gt = np.zeros(T, dtype=int)
        self.gt[-1] = 1 + side
        return self.trial


class Continuous(Decision):
    def __init__(self):
        Decision.__init__(self)
        self.action_space = types.SimpleNamespace(shape=(2,))


class Trialless:
    def __init__(self):
        self.unwrapped = self

    def seed(self, seed=None):
        pass


class Wager(Decision):
    """Has a further epoch in its first trial alone."""

    def new_trial(self):
        first = not hasattr(self, "trial")
        Decision.new_trial(self)
        if first:
            self.start_ind["sure"], self.end_ind["sure"] = 4, 5
        return self.trial


class Interactive(Decision):
    def new_trial(self):
        self.trial = {}
        return self.trial


class Beyond(Decision):
    def new_trial(self):
        Decision.new_trial(self)
        self.gt[-1] = 3
        return self.trial


KNOWN = {
    "Decision-v0": Decision,
    "Continuous-v0": Continuous,
    "Trialless-v0": Trialless,
    "yang19.dmc-v0": Decision,
    "Wager-v0": Wager,
    "Interactive-v0": Interactive,
    "Beyond-v0": Beyond,
}


@pytest.fixture
def made(monkeypatch):
    """The environments that the small module has made."""
    environments = []

    def make(name, **options):
        environments.append(KNOWN[name](**options))
        return environments[-1]

    monkeypatch.setattr(neurogym_task, "neurogym", types.SimpleNamespace(make=make))
    return environments


def test_trials_are_those_of_the_environment(made):
    task = NeurogymTask("Decision-v0")
    assert task.input_labels == ("fixation", "stimulus 0", "stimulus 1")
    assert task.output_labels == ("fixation", "choice 0", "choice 1")
    assert task.epoch_names == ("fixation", "stimulus", "delay", "decision")
    assert task.condition_names == ("ground_truth", "coh", "left")
    assert (task.dt, task.name) == (100, "Decision-v0")
    trials = task.sample(20, generator=seeded(0), dtype=torch.float64)
    env = Decision()
    env.seed(made[-1].seeds[0])
    for b in range(20):
        env.new_trial()
        T = len(env.gt)
        assert int(trials.length[b]) == T
        assert torch.equal(trials.inputs[b, :T], torch.as_tensor(env.ob))
        assert trials.targets[b, :T].argmax(1).tolist() == env.gt.tolist()
        assert torch.equal(trials.mask[b].sum(1) > 0, torch.arange(trials.num_steps) < T)
        assert int(trials.conditions["ground_truth"][b]) == env.trial["ground_truth"]
        for name in env.start_ind:
            times = tuple(int(t[b]) for t in trials.epochs[name])
            assert times == (env.start_ind[name], env.end_ind[name])
    assert trials.conditions["coh"].unique().tolist() == [6.4]
    assert trials.conditions["left"].dtype == torch.int64


def test_one_seed_one_batch_and_options(made):
    task = NeurogymTask("Decision-v0", {"sigma": 0.5, "dt": 50})
    first, again = (task.sample(6, generator=seeded(1)) for _ in range(2))
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, task.sample(6, generator=seeded(2)).inputs)
    assert torch.equal(first.inputs, first.inputs_clean)
    assert task.dt == 50
    grid, same = (task.sample(6, generator=seeded(s), mode="grid") for s in (3, 4))
    assert torch.equal(grid.inputs, same.inputs)
    assert all(len(env.seeds) == 1 for env in made)  # seeded once, before the first trial


@pytest.mark.usefixtures("made")
def test_an_epoch_that_a_trial_lacks_is_empty():
    trials = NeurogymTask("Wager-v0").sample(3, generator=seeded(0))
    start, stop = trials.epochs["sure"]
    assert (int(start[0]), int(stop[0])) == (4, 5)
    assert start[1:].tolist() == stop[1:].tolist() == trials.length[1:].tolist()


@pytest.mark.usefixtures("made")
def test_score_is_of_the_last_step_and_of_all():
    task = NeurogymTask("Decision-v0")
    trials = task.sample(10, generator=seeded(5))
    assert task.score(trials.targets, trials) == {"accuracy": 1.0, "steps": 1.0}
    fixates = torch.zeros_like(trials.targets)
    fixates[:, :, 0] = 1
    steps = int(trials.length.sum())
    assert task.score(fixates, trials) == {"accuracy": 0.0, "steps": pytest.approx((steps - 10) / steps)}


def test_without_neurogym_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(neurogym_task, "neurogym", None)
    with pytest.raises(ImportError, match=r"NeurogymTask needs neurogym.*pip install 'kpflow\[neurogym\]'"):
        NeurogymTask("Decision-v0")


@pytest.mark.usefixtures("made")
def test_environments_that_are_refused():
    with pytest.raises(TypeError, match="`env` must be an environment with trials; Trialless-v0 has no new_trial"):
        NeurogymTask("Trialless-v0")
    with pytest.raises(TypeError, match="`env` must have actions that are classes; those of Continuous-v0 are not"):
        NeurogymTask("Continuous-v0")
    with pytest.raises(
        TypeError, match=r"right actions of a trial in advance; Interactive-v0 has no ob and no gt: they"
    ):
        NeurogymTask("Interactive-v0")
    with pytest.raises(ValueError, match=r"right actions among its own, 0 … 2; got 3 in a trial of Beyond-v0"):
        NeurogymTask("Beyond-v0")
    for tau in (0, math.inf):
        with pytest.raises(ValueError, match=f"`tau` must be a positive finite number; got {tau}"):
            NeurogymTask("Decision-v0", tau=tau)
    with pytest.warns(UserWarning, match=r"yang19.dmc-v0 has wrong labels in one trial of sixteen. Use RuleTask"):
        NeurogymTask("yang19.dmc-v0")
    with pytest.raises(ValueError, match=r"Decision-v0 tells no static inputs. Take those of its trials"):
        NeurogymTask("Decision-v0").static_inputs("delay", {})


# neurogym itself ------------------------------------------------------------------------------------------------------

ENVIRONMENTS = {
    "PerceptualDecisionMaking-v0": ("ground_truth", "coh"),
    "DelayMatchSample-v0": ("ground_truth", "sample_theta", "test_theta"),
    "ContextDecisionMaking-v0": ("ground_truth", "other_choice", "context", "coh_1", "coh_2"),
    "GoNogo-v0": ("ground_truth",),
    "DelayComparison-v0": ("ground_truth", "v1", "v2"),
    "yang19.go-v0": ("ground_truth", "anti"),
}


@pytest.mark.filterwarnings("ignore")  # those of gymnasium are its own
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environments_of_neurogym(name):
    neurogym = pytest.importorskip("neurogym")
    task = NeurogymTask(name)
    assert task.condition_names == ENVIRONMENTS[name]
    trials = task.sample(12, generator=seeded(1), dtype=torch.float64)
    env = neurogym.make(name).unwrapped
    env.seed(int(torch.randint(2**31 - 1, (1,), generator=seeded(1))))
    for b in range(12):
        env.new_trial()
        T = int(trials.length[b])
        assert torch.equal(trials.inputs[b, :T], torch.as_tensor(env.ob).double())
        assert trials.targets[b, :T].argmax(1).tolist() == env.gt.tolist()
        assert float(trials.conditions["ground_truth"][b]) == float(env.trial["ground_truth"])
    assert task.score(trials.targets, trials) == {"accuracy": 1.0, "steps": 1.0}
    assert float(task.loss(trials.targets, trials)) == 0.0
    assert torch.equal(trials.inputs, task.sample(12, generator=seeded(1), dtype=torch.float64).inputs)
    other = task.sample(12, generator=seeded(2), dtype=torch.float64)
    assert other.inputs.shape != trials.inputs.shape or not torch.equal(other.inputs, trials.inputs)


@pytest.mark.filterwarnings("ignore")
def test_environments_of_neurogym_that_are_refused():
    pytest.importorskip("neurogym")
    with pytest.raises(TypeError, match=r"Bandit-v0 has no gt: they depend"):
        NeurogymTask("Bandit-v0")
    with pytest.raises(TypeError, match=r"those of ReachingDelayResponse-v0 are not"):
        NeurogymTask("ReachingDelayResponse-v0")
    start, stop = NeurogymTask("PostDecisionWager-v0").sample(12, generator=seeded(0)).epochs["pre_sure"]
    assert 0 < int((stop > start).sum()) < 12  # in some trials alone
