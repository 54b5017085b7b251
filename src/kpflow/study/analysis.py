"""Analysis: a model at one training step → a record of everything that is measured there."""

import copy
import dataclasses
import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from kpflow import __version__, _checks, flow
from kpflow.states import Linearisation, linearise
from kpflow.tasks import Task, Trials

from . import compared, dynamics, measures, representations
from .objectives import with_objectives

__all__ = ["Settings", "analyse"]


@final
@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the numbers of an analysis, besides the model and the trials.

    Args:
        modes: Leading eigenvalues of NTK and K, and singular values of P.
        width: Length of the axis `mode`; the spectra of cores and states fill it, shorter ones end in NaN.
        leading: Leading eigenvectors of the NTK that are kept.
        tol: Residual of eigenvectors at which a spectrum is done, as a part of the largest value.
        rtol: Relative standard error at which an estimate stops.
        budget: The most products for one estimate; a spectrum takes up to four times as many.
        learning_rate: η of the gradient step whose effect is predicted and then tried on a copy.
        seed: Of all random probes.
        starts: States of an epoch that searches for fixed points start from; 0 for nothing on dynamics.
        exponents: Leading Lyapunov exponents.
        search_seconds: The most that the search for fixed points takes at each step.
        path_seconds: The most that following them takes from each step to the next.
        labels: The condition of the trials whose values are the classes of neural collapse; if None, the first one of
            whole numbers that has classes enough. For labels of your own, make them a condition of the trials.
    """

    modes: int = 10
    width: int = 20
    leading: int = 4
    tol: float = 0.03
    rtol: float = 0.05
    budget: int = 24
    learning_rate: float = 1e-3
    seed: int = 0
    starts: int = 32
    exponents: int = 8
    search_seconds: float = 5.0
    path_seconds: float = 4.0
    labels: str | None = None

    def __post_init__(self) -> None:
        for name in ("modes", "width", "leading", "budget", "exponents"):
            _checks.check_positive(name, getattr(self, name), integer=True)
        for name in ("tol", "rtol", "learning_rate", "search_seconds", "path_seconds"):
            _checks.check_positive(name, getattr(self, name))
        _checks.check_range("starts", self.starts, 0, integer=True)
        if not self.leading <= self.modes <= self.width:
            raise ValueError(
                f"`leading` ≤ `modes` ≤ `width` must hold; got {self.leading}, {self.modes}, {self.width}."
            )


def analyse(
    model: nn.Module,
    trials: Trials,
    *,
    loss: Callable[[Tensor], Tensor],
    score: Callable[[Tensor], float] | None = None,
    core: str | None = None,
    task: Task | None = None,
    step: int = 0,
    settings: Settings | None = None,
    outside: Float[Tensor, "M T I"] | None = None,
    objectives: Any = None,
) -> xr.Dataset:
    """Analyse `model` on `trials`: P, K and NTK, collapse, cores, trajectories, fixed points, objectives.

    The model and the global random state are left as they are. Axes: step (length 1), trial, time, unit, mode, stage,
    leading, component, point, exponent, measure, axis; see `kpflow.study.measures`, `kpflow.study.representations` and
    `kpflow.study.dynamics` for what each variable is.

    Args:
        model: A recurrent module, or one that contains a recurrent core.
        trials: The trials to analyse on, the same at every step.
        loss: From the model's outputs `[B, T, O]` to a scalar.
        score: From the outputs to a number, if there is one.
        core: Name of the recurrent submodule.
        task: That of the trials, for the static input at which fixed points are searched; without it there are none.
        step: The training step, a label.
        settings: What decides the numbers.
        outside: Inputs of no class, for NC5: neural collapse compares the states at their last step with the classes.
        objectives: What is compared as objectives: "tasks", "epochs", "channels" or "condition:NAME", as of
            `task_objectives`; or, by name, functions of the outputs, boolean tensors `[B]` for groups of trials, or
            weights that broadcast to `[B, T, O]`; or `OwnLosses`. None for the tasks of a MultiTask, else the epochs.
            For groups of trials that do not overlap there are blocks of the NTK too, at some 40 products for each.

    Raises:
        TypeError: `objectives` is none of these.
        ValueError: The model cannot be linearised on these trials, the loss does not fit, `settings.labels` names no
            classes, or `objectives` are unknown, fewer than two, without weight, or fail; the message says why.

    Example:
        >>> import kpflow as kp
        >>> task = kp.tasks.MemoryPro(stimulus=2, memory=2, response=2, grace=0.0)
        >>> trials = task.sample(3, mode="grid", noise=False)
        >>> record = analyse(nn.GRU(3, 3, batch_first=True), trials, loss=lambda y: task.loss(y, trials))
        >>> dict(record.sizes)["time"], bool(record.propagator_trace >= 3 * 6 * 3)
        (6, True)
    """
    settings = settings or Settings()
    classes = representations.classes_of(trials, settings.labels)
    several = compared.compare(objectives, task, trials)
    with torch.no_grad():
        lin = linearised(model, trials, core)
        response = flow.response(lin, loss, learning_rate=settings.learning_rate)
        if several is not None:
            several.check(_outputs(lin))
        found = _losses(model, trials, core, lin, response, loss, score)
        effort = {"rtol": settings.rtol, "budget": settings.budget, "seed": settings.seed}
        found |= measures.operator_measures(
            lin,
            width=settings.width,
            modes=settings.modes,
            leading=settings.leading,
            tol=settings.tol,
            **effort,
        )
        found |= measures.axis_measures(lin, **effort)
        found |= measures.bound_measures(lin, float(found["propagator_spectrum"][1][0]), **effort)
        found |= measures.stage_measures(response, trials.inputs, lin, trials.targets)
        found |= measures.core_measures(lin, trials.valid, settings.width)
        components = measures.principal_components(lin.states[trials.valid])
        found |= measures.trajectory_measures(lin.states, trials.valid, components)
        found |= representations.component_measures(lin.states, trials.valid, settings.width)
        collapse, why = _collapse(model, trials, core, lin, classes, outside)
        points, said = dynamics.dynamics_measures(
            model,
            core,
            task,
            trials,
            lin.states,
            components,
            starts=settings.starts,
            exponents=settings.exponents,
            time_limit=settings.search_seconds,
            seed=settings.seed,
        )
        attributes = _attributes(model, trials, core, settings) | said | why
        record = _dataset(found | collapse | points, trials, lin, step, attributes)
        return with_objectives(record, lin, several, probes=settings.budget, seed=settings.seed)


def linearised(model: nn.Module, trials: Trials, core: str | None) -> Linearisation:
    """The state equation of a model on trials, each of its own length."""
    whole = bool((trials.length == trials.num_steps).all())
    lengths = None if whole else trials.length
    return linearise(model, trials.inputs, core=core, lengths=lengths, route="recurrent")


def _collapse(
    model: nn.Module,
    trials: Trials,
    core: str | None,
    lin: Linearisation,
    classes: representations.Classes | None,
    outside: Tensor | None,
) -> tuple[measures.Variables, dict[str, str]]:
    """Neural collapse, and the attribute that names its classes, or that says why there are none."""
    if classes is None:
        reason = "No condition of the trials is made of classes, whole numbers that two trials or more share."
        return {}, {representations.LEFT_OUT: reason}
    states = None if outside is None else linearise(model, outside, core=core, route="recurrent").states[:, -1]
    return representations.class_measures(lin, trials, classes, states), {"classes": str(classes)}


def _losses(
    model: nn.Module,
    trials: Trials,
    core: str | None,
    lin: Linearisation,
    response: flow.Response,
    loss: Callable[[Tensor], Tensor],
    score: Callable[[Tensor], float] | None,
) -> measures.Variables:
    """Loss and score, and what one gradient step does to the loss: as predicted, and as tried on a copy."""
    outputs = _outputs(lin)
    stepped = copy.deepcopy(model)
    change = lin.parameters.split(-response.learning_rate * response.gradient)
    for name, parameter in stepped.named_parameters():
        if name in change:
            parameter.add_(change[name])
    # in float64, for the difference of two nearly equal losses
    before, after = (float(loss(y.double())) for y in (outputs, _outputs(linearised(stepped, trials, core))))
    values = {
        "loss": response.loss,
        "score": np.nan if score is None else float(score(outputs)),
        "predicted_loss_change": response.predicted_loss_change,
        "actual_loss_change": after - before,
    }
    return {name: ((), np.array(value)) for name, value in values.items()}


def _outputs(lin: Linearisation) -> Tensor:
    if lin.readout is None:
        raise ValueError("`model` must have outputs for a loss; got a step alone. Give a module with a read-out.")
    return lin.readout.outputs


def _dataset(
    found: measures.Variables, trials: Trials, lin: Linearisation, step: int, attributes: Mapping[str, Any]
) -> xr.Dataset:
    variables = {name: (("step", *axes), np.asarray(values)[None]) for name, (axes, values) in found.items()}
    conditions = {name: ("trial", values.cpu().numpy()) for name, values in trials.conditions.items()}
    sizes = {
        axis: size
        for name in variables
        for axis, size in zip(variables[name][0], variables[name][1].shape, strict=True)
    }
    coordinates = {
        "step": [step],
        "trial": np.arange(trials.num_trials),
        "time": ("time", np.arange(trials.num_steps) * (trials.dt / 1000), {"units": "s"}),
        "unit": np.arange(lin.states.shape[-1]),
        "mode": np.arange(sizes["mode"]),
        "stage": list(measures.STAGES),
        "axis": list(measures.AXES),
    }
    if "measure" in sizes:
        coordinates["measure"] = list(representations.MEASURES)
    dataset = xr.Dataset(variables, {**coordinates, **conditions}, attributes)
    for name in dynamics.CODES.keys() & variables.keys():
        dataset[name].attrs["names"] = list(dynamics.CODES[name])
    return dataset


def _attributes(model: nn.Module, trials: Trials, core: str | None, settings: Settings) -> dict[str, Any]:
    inner = model.get_submodule(core) if core else model
    around = f" inside {type(model).__name__}" if core else ""
    described = {
        **dataclasses.asdict(settings),
        "probes": f"at most {settings.budget}",
        "core": core or "the model itself",
        "labels": settings.labels or "the first condition that is made of classes",
        "trials": trials.num_trials,
        "steps_per_trial": trials.num_steps,
        "dtype": str(trials.inputs.dtype).removeprefix("torch."),
    }
    return {
        "title": f"How gradient descent shapes {type(inner).__name__}",
        "model": f"{str(inner).splitlines()[0]}{around}",
        "kpflow_version": __version__,
        "torch_version": str(torch.__version__),
        "seed": settings.seed,
        "settings": json.dumps(described),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **({"condition": next(iter(trials.conditions))} if trials.conditions else {}),
    }
