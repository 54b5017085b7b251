"""NeurogymTask: trials of the environments of neurogym. Imported on demand alone; tried with neurogym 2.3.1."""

import dataclasses
import functools
import numbers
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from kpflow._checks import check_positive

from .base import Task, trials_of
from .trials import Trials

try:
    import neurogym  # pyright: ignore[reportMissingImports]
except ImportError:  # said when a task is made: tools that import every module need not have it
    neurogym = None

__all__ = ["NeurogymTask"]

MISLABELLED = ("dmc", "dnmc")


@final
@dataclasses.dataclass(frozen=True)
class NeurogymTask(Task):
    """Trials of an environment of neurogym, from its `new_trial`, with its actions as classes.

    Inputs are the observations, with the environment's own noise, which `inputs_clean` has too: pass
    `options={"sigma": 0}` where the environment knows it. Targets are the right actions, one-hot; all steps have
    weight. The epochs are those of the first trial, by their time; a trial without one of them has it empty, at its
    end. Conditions are the entries of the environment's `trial` that are numbers in every trial; others are left out.
    On the grid the environment's seed is 0.

    For each batch the environment is made anew, and seeded from the generator before its first trial. There are no
    static inputs, since environments do not tell them.

    `score` returns `accuracy`, the fraction of trials whose largest output is right at the last step, and `steps`, the
    fraction of steps.

    Args:
        env: Name of the environment, for example "PerceptualDecisionMaking-v0".
        options: Arguments of the environment; `dt` is one of them.
        tau: Time constant of the units, ms.

    Raises:
        ImportError: neurogym is not installed.
        TypeError: The environment has no trials, or does not know them in advance, or its actions are no classes.
        ValueError: Its right actions are none of its actions.

    Warns:
        UserWarning: The environment is dmc or dnmc, whose labels are wrong in one trial of sixteen: the border between
            the categories is on different sides in inputs and labels. kpflow has its own, react_category_pro and anti.

    Source: the interface `TrialEnv` of neurogym, versions 2.2 and 2.3: `make`, `seed`, `new_trial`, `ob`, `gt`,
    `start_ind`, `end_ind`.
    """

    env: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tau: int | float = 100.0

    def __post_init__(self) -> None:
        if neurogym is None:
            raise ImportError(
                "NeurogymTask needs neurogym, which is not installed. Install it with pip install 'kpflow[neurogym]'."
            )
        check_positive("tau", self.tau, finite=True)
        if self.env.split("-")[0].rpartition(".")[2] in MISLABELLED:
            warnings.warn(
                f"{self.env} has wrong labels in one trial of sixteen. Use RuleTask('react_category_pro') of kpflow.",
                stacklevel=3,
            )
        if not hasattr(self._first, "new_trial"):
            raise TypeError(f"`env` must be an environment with trials; {self.env} has no new_trial.")
        if not hasattr(self._first.action_space, "n"):
            raise TypeError(f"`env` must have actions that are classes; those of {self.env} are not.")
        missing = [name for name in ("ob", "gt") if getattr(self._first, name, None) is None]
        if missing:
            raise TypeError(
                f"`env` must know the observations and right actions of a trial in advance; {self.env} has no "
                f"{' and no '.join(missing)}: they depend on what is done in it, or there are none."
            )
        if int(np.max(self._first.gt)) >= self.num_outputs:
            raise ValueError(
                f"`env` must have right actions among its own, 0 … {self.num_outputs - 1}; got "
                f"{int(np.max(self._first.gt))} in a trial of {self.env}."
            )

    @property
    def name(self) -> str:
        return self.env

    @property
    def dt(self) -> int | float:
        """Duration of a step, ms."""
        return self._first.dt

    @property
    def input_labels(self) -> tuple[str, ...]:
        return _labels(self._first.observation_space, int(self._first.observation_space.shape[0]), "input")

    @property
    def output_labels(self) -> tuple[str, ...]:
        return _labels(self._first.action_space, int(self._first.action_space.n), "action")

    @property
    def epoch_names(self) -> tuple[str, ...]:
        start, stop = self._first.start_ind, self._first.end_ind
        return tuple(sorted(start, key=lambda name: (start[name], stop[name])))

    @property
    def condition_names(self) -> tuple[str, ...]:
        return tuple(name for name, value in self._first.trial.items() if _is_number(value))

    @property
    def noise_std(self) -> float:
        return 0.0

    @functools.cached_property
    def _first(self) -> Any:
        """An environment with one trial drawn."""
        env = self._make(0)
        if hasattr(env, "new_trial"):
            _next_trial(env)
        return env

    def _make(self, seed: int) -> Any:
        assert neurogym is not None  # __post_init__ has seen to it
        env = neurogym.make(self.env, **self.options).unwrapped
        env.seed(seed)
        return env

    def _draw(self, B: int, generator: torch.Generator | None, shared_timing: bool) -> Trials:  # noqa: ARG002
        seed = 0 if generator is None else int(torch.randint(2**31 - 1, (1,), generator=generator))
        env = self._make(seed)
        rows = []
        for _ in range(B):
            _next_trial(env)
            times = _times(env, self.epoch_names)
            rows.append((torch.as_tensor(env.ob).double(), torch.as_tensor(env.gt).long(), *times, env.trial))
        observed, labels, starts, stops, conditions = zip(*rows, strict=True)
        pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
        one_hot = [torch.nn.functional.one_hot(label, self.num_outputs).double() for label in labels]
        epochs = {
            name: (torch.tensor([s[name] for s in starts]), torch.tensor([s[name] for s in stops]))
            for name in self.epoch_names
        }
        return trials_of(
            self,
            inputs=pad(list(observed)),
            targets=pad(one_hot),
            mask=pad([torch.ones_like(target) for target in one_hot]),
            epochs=epochs,
            conditions={name: _stack([c[name] for c in conditions]) for name in self.condition_names},
            length=torch.tensor([len(label) for label in labels]),
        )

    def _static_inputs(self, epoch: str, conditions: Mapping[str, Tensor], zeros: Tensor) -> Tensor:  # noqa: ARG002
        raise ValueError(
            f"{self.env} tells no static inputs. Take those of its trials: trials.inputs[trials.inside({epoch!r})]."
        )

    def _score(self, outputs: Tensor, trials: Trials) -> dict[str, float]:
        right = outputs.argmax(dim=2) == trials.targets.argmax(dim=2)
        last = right[torch.arange(trials.num_trials, device=right.device), trials.length - 1]
        return {"accuracy": float(last.double().mean()), "steps": float(right[trials.valid].double().mean())}


def _next_trial(env: Any) -> None:
    """Draw a trial, without the epochs of earlier ones, which environments keep."""
    env.start_ind.clear()
    env.end_ind.clear()
    env.new_trial()


def _times(env: Any, epochs: Iterable[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Starts and stops of the epochs in the environment's trial, in steps, inside the trial."""
    T = len(env.gt)
    starts, stops = (
        {name: min(int(times.get(name, T)), T) for name in epochs} for times in (env.start_ind, env.end_ind)
    )
    return starts, stops


def _labels(space: Any, count: int, word: str) -> tuple[str, ...]:
    """Names of channels from the `name` of a space, {name: index or indices}."""
    labels = [f"{word} {i}" for i in range(count)]
    for name, where in (getattr(space, "name", None) or {}).items():
        indices = [int(i) for i in where] if isinstance(where, Iterable) else [int(where)]
        for k, i in enumerate(indices):
            labels[i] = str(name) if len(indices) == 1 else f"{name} {k}"
    return tuple(labels)


def _is_number(value: Any) -> bool:
    return isinstance(value, (numbers.Real, np.bool_))


def _stack(values: list[Any]) -> Tensor:
    """Numbers as float64 or int64."""
    tensor = torch.as_tensor(np.asarray(values))
    return tensor.double() if tensor.dtype.is_floating_point else tensor.long()
