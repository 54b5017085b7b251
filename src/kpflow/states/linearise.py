"""linearise: from a model and its inputs to a linearised state equation."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kpflow._checks import check_finite, check_one_of, check_positive, check_tensor

from .adapters import Adapter, Call, adapter_for
from .base import Linearisation
from .branches import Branches
from .equilibrium import linearise_equilibrium
from .graph import linearise_graph
from .keeping import kept
from .prepare import (
    INITIAL,
    check_deterministic,
    make_drive,
    parameter_space,
    sequence_inputs,
    trainable,
    trainable_initial,
    with_initial,
)
from .recurrent import MEMORY, Layer, RecurrentLinearisation, Upstream
from .steps import Drive, Roles
from .surround import LEAK, CoreReadout, ModelReadout, Surround, find_upstream
from .twin import twin
from .unknown import step_layer

__all__ = ["linearise"]

FUNCTION_LEAK = (
    "`model` as a step(h, x, parameters) uses trainable parameters that it is not handed ({}), so their part of K "
    "would be missing. Give all of them in `parameters`, and use those that the step is called with."
)

ROUTES = ("auto", "recurrent", "graph")

Named = Mapping[str, Tensor]


def linearise(
    model: Any,
    inputs: Any,
    *,
    core: str | None = None,
    initial: Any = None,
    lengths: Tensor | None = None,
    parameters: Mapping[str, Tensor] | None = None,
    states: Any = None,
    route: Any = "auto",
    branches: Any = "refuse",
    equilibrium: Any = None,
    tolerance: Any = None,
    memory: Any = MEMORY,
) -> Linearisation:
    """Record the states of a model on `inputs` and linearise the equation S = F(S, x, θ) that they solve.

    With L = ∂F/∂S and J = ∂F/∂θ at the recorded states, dS = P J dθ with P = (I − L)⁻¹. There are two routes.

    The recurrent route has scans over time, and states `[B, T, H]`. It is taken for

    - `torch.nn.RNN`, `GRU`, `LSTM` and their cells, `kpflow.states.cells.RateRNN` and `LowRankRNN`: analytic;
    - a module that contains one of these (`core="name"`), with whatever is around it: the read-out and an encoder are
      differentiated automatically;
    - any step `step(h, x)` that maps states `[B, H]` and inputs `[B, I]` to states `[B, H]`, given with `initial`: a
      module, or a function, `step(h, x, parameters)` if it comes with `parameters`.

    The graph route takes any other module: multilayer perceptrons, convolutional networks, transformers, bidirectional
    networks. It captures the forward pass with `torch.export`, as elementary operations; its states are one flat axis
    with a part for every state, by default for every weight site (an operation that consumes a parameter, with the
    biases that follow), named after the module that holds the weight, `name@1` where it acts a second time. Its
    read-out is the first floating-point tensor of the outputs, in nested tuples, lists, dicts or dataclasses.
    `detach` and `torch.no_grad` in the forward pass hold. A model around a recurrent network goes this way too, an
    operation a step of time: with `core` it is faster.

    The model is not changed: weights, gradients and their flags, mode, buffers, hooks and random state stay as they
    are; what hooks keep in lists, dicts and variables of theirs is put back. Frozen parameters (`requires_grad=False`)
    do not count. Parameters that act on no output of a graph are named in a warning, and have columns of zeros in J.

    Args:
        model: The model, a `torch.nn.Module` or a callable.
        inputs: Shape `[B, T, I]` on the recurrent route, `[T, B, I]` for a module with `batch_first=False`. Otherwise
            what the model takes: a tensor, a tuple of arguments, or a mapping of named arguments (a model that takes a
            dict gets it in a tuple of one). −inf is allowed on the graph route, as in masks.
        core: Name of the recurrent submodule of `model`; None if the model itself is recurrent, or for the graph route.
        initial: Initial state, in the module's own layout or as `[B, H]` in the layout of the states (layers side by
            side, an LSTM's as h‖c); zero by default. If it requires a gradient, it is a parameter named "initial".
        lengths: Number of steps of each trial, shape `[B]`, for padded batches; states after the end are zero.
        parameters: Parameters of a step that is a function.
        states: What the states are on the graph route, which it chooses: a name, or several, of modules (their outputs;
            all calls under "name", the second alone under "name@1", a second result under "name.1"), of weight sites
            or of operations of the graph, with wildcards as in file names, "output" for the model's; None for every
            weight site.
        route: "auto", "recurrent" or "graph". A recurrent module that is known may take the graph route too, with an
            operation a step of time: the same kernels of its outputs, slower.
        branches: On the graph route, "refuse" control flow that depends on values of tensors, or take the branches that
            are "recorded" at these inputs: a neural ODE goes the steps that its solver took.
        equilibrium: z of a deep equilibrium model z = f(z, x), shape `[B, *]`, with ‖f(z, x) − z‖ ≤ √ε ‖z‖ for every
            trial. Then `model` is f(z, x), or a function f(z, x, parameters), and `inputs` is x.
        tolerance: Relative residual of the linear solves at an equilibrium, ε^(3/4) by default: 2e-12 in float64.
        memory: Bytes that the Jacobians, and what a product needs beside its block and its result, may take: blocks of
            probes are done in pieces that fit, and the Jacobians of gated cells formed only if they do. `peak_bytes`
            of the result predicts what a product takes in all.

    Returns:
        The linearisation; its `states` are `[B, T, H]` on the recurrent route and flat on the graph route, where
        `lin.space.split(lin.states)` gives them by name.

    Raises:
        TypeError: `inputs` is no tensor where one is needed, or is of another dtype than the recurrence; a parameter is
            complex or holds whole numbers; `states` are no names; or `model` cannot be called.
        ValueError: Wrong shapes, dtypes or devices, NaN or inf (named where) in inputs, parameters, states or outputs,
            an empty batch, no trainable parameter, parameters without values, dropout or batch norm in training mode or
            other noise, parameters that the forward pass reaches past its registered submodules, a wrapper of a model
            (compiled, scripted, parallel), too little `memory`, arguments that belong to the other route. On the
            recurrent route: a nonlinearity that mixes units, a bidirectional module, or a model of which no recurrence
            is known. On the graph route, with the operation and its place in the source: a model that fails on these
            inputs, control flow that depends on values of tensors, writes to inputs, buffers or parameters, a backward
            pass of its own that differs from the derivative, no floating-point output, no output with a gradient;
            `states` that are not there.

    Example:
        >>> model = torch.nn.GRU(3, 8, batch_first=True)
        >>> lin = linearise(model, torch.zeros(2, 5, 3))
        >>> lin.space
        Space(trial 2 × time 5 × unit 8, float32)
        >>> lin.parameters
        Space(parameter 312 in 4 parts, float32)

        A perceptron goes through its graph, with the pre-activations of its layers as states:

        >>> mlp = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
        >>> lin = linearise(mlp, torch.ones(4, 3))
        >>> {part.name: part.shape for part in lin.space.parts}
        {'0': (4, 5), '2': (4, 2)}

        Other states by name, here what the nonlinearity gives:

        >>> lin = linearise(mlp, torch.ones(4, 3), states=["1"])
        >>> lin.space, lin.readout.outputs.shape
        (Space(state 20 in 1 part, float32), torch.Size([4, 2]))
    """
    if not callable(model):
        raise TypeError(f"`model` must be a torch.nn.Module or a function step(h, x); got {type(model).__name__}.")
    check_positive("memory", memory, integer=True)
    if isinstance(model, nn.Module):
        check_deterministic(model)
    wanted = _wanted(states)
    beyond = {"core": core, "initial": initial, "lengths": lengths, "parameters": parameters}
    given = [name for name, value in (beyond | {"states": states}).items() if value is not None]
    if equilibrium is not None:
        _check_alone(given)
        chosen = "equilibrium"
    else:
        if tolerance is not None:
            raise ValueError("`tolerance` goes with `equilibrium`; nothing else is solved for here.")
        chosen = _route(model, route, [name for name in given if name in beyond], wanted)
    followed = Branches(branches)
    with torch.inference_mode(False), torch.no_grad(), kept(model):
        if chosen == "equilibrium":
            lin = linearise_equilibrium(model, inputs, equilibrium, parameters, tolerance, memory)
        elif chosen == "graph":
            lin = linearise_graph(model, inputs, wanted, memory, followed)
        elif core is not None:
            lin = _linearise_around(model, core, inputs, initial, lengths, memory)
        elif isinstance(model, nn.Module) and (adapter := adapter_for(model)) is not None:
            lin = _linearise_core(model, adapter, inputs, initial, lengths, memory)
        else:
            lin = _linearise_step(model, inputs, initial, lengths, parameters, memory)
    _check_states(lin)
    return lin


def _wanted(states: Any) -> tuple[str, ...] | None:
    """The names of the states that are asked for; one name may stand by itself."""
    if states is None:
        return None
    several = isinstance(states, Iterable) and not isinstance(states, str)
    names: tuple[Any, ...] = tuple(states) if several else (states,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"`states` must be a list of names of modules, weight sites or operations, with wildcards; got {states!r}."
        )
    if not names:
        raise ValueError("`states` must hold at least one name; got none. Leave it out to take every weight site.")
    return names


def _check_alone(given: Sequence[str]) -> None:
    """Refuse what has no meaning at an equilibrium."""
    others = [name for name in given if name != "parameters"]
    if others:
        raise ValueError(
            f"`{others[0]}` does not go with `equilibrium`: `model` is one function f(z, x), whose state is z."
        )


def _route(model: Any, route: Any, recurrent: Sequence[str], states: Any) -> str:
    """The route that is taken; `auto` takes the recurrent one where it knows the recurrence.

    Args:
        model: The model.
        route: What the user asks for.
        recurrent: The arguments of the recurrent route that are given.
        states: The states that are asked for.
    """
    check_one_of("route", route, ROUTES)
    if isinstance(model, nn.Module) and "parameters" in recurrent:
        raise ValueError("`parameters` goes with a step that is a function; a module has its own.")
    beyond = isinstance(model, nn.RNNBase) and (model.bidirectional or model.proj_size > 0)
    known = isinstance(model, nn.Module) and not beyond and adapter_for(model) is not None
    if states is not None and (route == "recurrent" or recurrent):
        raise ValueError("`states` goes with the graph route; on the recurrent route they are those of the recurrence.")
    steps = {"core", "initial"}.intersection(recurrent) or not isinstance(model, nn.Module)
    if route == "recurrent" or (route == "auto" and states is None and (steps or known)):
        return "recurrent"
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"The graph route takes a torch.nn.Module; got {type(model).__name__}. Make the function the forward pass "
            "of one."
        )
    if recurrent:
        raise ValueError(
            f"`{recurrent[0]}` goes with the recurrent route, which does not apply here. The graph route takes all "
            "that the model takes as `inputs`, a tuple of arguments: an initial state too, or a mask for padded trials."
        )
    return "graph"


def _check_states(lin: Linearisation) -> None:
    """Refuse states that are not finite, and name the first of them."""
    remedy = "The trajectory diverges; look at the weights and inputs."
    if lin.space.flat is None:
        check_finite("states", lin.states, lin.space.axes, remedy)
        return
    for name, value in lin.space.split(lin.states).items():
        check_finite(f"states[{name!r}]", value, remedy=remedy)
    if lin.readout is not None:
        check_finite("outputs", lin.readout.outputs, remedy=remedy)


def _linearise_core(
    model: nn.Module, adapter: Adapter, inputs: Any, initial: Any, lengths: Tensor | None, memory: int
) -> RecurrentLinearisation:
    """A bare recurrent module."""
    if not isinstance(inputs, nn.utils.rnn.PackedSequence):
        sequence_inputs(inputs)
    trained = trainable(model.named_parameters()) | trainable_initial(initial)
    call = adapter.call((inputs, initial), {})
    drive = _drive(adapter, call, lengths, next(model.parameters()))
    trials = drive.inputs.shape[1]
    upstream = _initial_upstream(initial, lambda given: adapter.initial_state(given, trials))
    layers = _stack(adapter, model, model, drive)
    lin = RecurrentLinearisation(layers, parameter_space(trained), upstream, memory=memory)
    start = lin.states.shape[-1] - layers[-1].width
    lin.readout = CoreReadout(lin.states, slice(start, start + layers[-1].size), lin.parameters)
    return lin


def _linearise_around(
    model: Any, core: str, inputs: Any, initial: Any, lengths: Tensor | None, memory: int
) -> RecurrentLinearisation:
    """A model around a recurrent core."""
    module, adapter = _find_core(model, core)
    if initial is not None:
        raise ValueError("`initial` goes with a bare recurrent module; with `core` the model gives the initial state.")
    trained = trainable(model.named_parameters())
    surround = Surround(model, core, inputs, adapter)
    call = surround.call()
    drive = _drive(adapter, call, lengths, next(module.parameters()))

    def before(values: Named) -> dict[str, Tensor]:
        reached = surround.reach(values)
        moved = {"inputs": reached.inputs.transpose(0, 1)}
        if reached.initial is not None:
            moved[INITIAL] = adapter.initial_state(reached.initial, len(reached.inputs))
        return moved

    def after(values: Named, states: Tensor) -> Tensor:
        return surround.finish(values, states, call.lengths)

    layers = _stack(adapter, module, model, drive)
    upstream = find_upstream(before, trained)
    lin = RecurrentLinearisation(layers, parameter_space(trained), upstream, memory=memory)
    surround.check_output(lin.states, call.lengths)
    lin.readout = ModelReadout(after, lin.states, trained, lin.parameters)
    return lin


def _linearise_step(
    model: Any, inputs: Any, initial: Any, lengths: Tensor | None, parameters: Named | None, memory: int
) -> RecurrentLinearisation:
    """A step by itself."""
    if initial is None:
        raise ValueError(
            f"No recurrence is known of a {type(model).__name__}, as it is or with a forward pass of its own: name its "
            "recurrent submodule with `core`, or, if it is a step(h, x) itself, give the state before the first step "
            "as `initial`, shape [B, H]."
        )
    sequence_inputs(inputs)
    trials = len(inputs)
    if check_tensor("initial", initial).ndim not in (1, 2) or (initial.ndim == 2 and len(initial) not in (1, trials)):
        raise ValueError(f"`initial` must have shape ({trials}, H), or (H,); got {tuple(initial.shape)}.")

    module = twin(model) if isinstance(model, nn.Module) else None
    given = dict(model.named_parameters()) if isinstance(model, nn.Module) else parameters or {}
    own = trainable(given.items())
    fixed = {name: value.detach().clone() for name, value in given.items()}

    def step(values: Named, state: Tensor, x: Tensor) -> Any:
        if module is not None:
            return torch.func.functional_call(module, _replaced(fixed, values), (state, x))
        return model(state, x, _replaced(fixed, values))

    start = initial.detach().expand(trials, -1)
    drive = make_drive(inputs, start, lengths, next(iter(own.values())))
    upstream = _initial_upstream(initial, lambda given: given.expand(trials, -1))
    space = parameter_space(own | trainable_initial(initial))
    names = {id(value): name for name, value in given.items()}
    layer = step_layer(step, own, drive, names, FUNCTION_LEAK if module is None else LEAK)
    return RecurrentLinearisation([layer], space, upstream, memory=memory)


def _find_core(model: Any, core: str) -> tuple[nn.Module, Adapter]:
    """The submodule `core` of the model and its adapter."""
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    if not core or core not in modules:
        known = [name for name, module in modules.items() if name and adapter_for(module)]
        listed = f"it has {', '.join(map(repr, known))}" if known else "it has none that is known"
        raise ValueError(f"`core` must name a recurrent submodule of the model ({listed}); got {core!r}.")
    module = modules[core]
    if isinstance(module, nn.RNNCellBase):
        raise ValueError(
            f"`core` must name a module that runs over a whole sequence; {core!r} is a {type(module).__name__}, called "
            "once a step. Linearise the cell by itself, on the inputs that it gets."
        )
    adapter = adapter_for(module)
    if adapter is None:
        raise ValueError(
            f"`core` must be a torch.nn.RNN, GRU, LSTM or one of kpflow.states.cells; {core!r} is a "
            f"{type(module).__name__}. Linearise its step by itself, with `initial`."
        )
    return module, adapter


def _drive(adapter: Adapter, call: Call, lengths: Tensor | None, like: Tensor) -> Drive:
    """The drive of a known module, from one call of it."""
    if call.inputs.shape[-1] != adapter.input_size:
        raise ValueError(
            f"`inputs` must have {adapter.input_size} channels on its last axis; got shape {tuple(call.inputs.shape)}."
        )
    if call.initial is None:
        initial = like.new_zeros(len(call.inputs), sum(adapter.widths))
    else:
        initial = adapter.initial_state(call.initial, len(call.inputs))
    return make_drive(call.inputs, initial, lengths if call.lengths is None else call.lengths, like)


def _stack(adapter: Adapter, module: nn.Module, model: nn.Module, drive: Drive) -> list[Layer]:
    """Run and linearise the layers of `module`, whose parameters have their names in `model`, from the bottom up."""
    trained = {id(value): name for name, value in model.named_parameters() if value.requires_grad}
    own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
    layers: list[Layer] = []
    inputs = drive.inputs
    for index, initial in enumerate(drive.initial.split(list(adapter.widths), dim=-1)):
        local = adapter.roles(index)
        computed = sorted(set(local.values()) - set(own))
        if computed:
            raise ValueError(
                f"The weights {computed} of the recurrent module are computed from other parameters. Remove the "
                "parametrisation (torch.nn.utils.parametrize.remove_parametrizations), or linearise a step."
            )
        tensors = {role: own[name].detach().clone() for role, name in local.items()}
        names = {role: trained[id(own[name])] for role, name in local.items() if id(own[name]) in trained}
        layer = adapter.layer(index, Roles(tensors, names), Drive(inputs, initial, drive.valid))
        layers.append(layer)
        inputs = layer.states[..., : layer.size]
    return layers


def _initial_upstream(initial: Any, place: Callable[[Any], Tensor]) -> Upstream | None:
    """The upstream of an initial state given as a parameter; `place` brings it to `[B, n]`."""
    values = trainable_initial(initial)
    return find_upstream(lambda v: {INITIAL: place(with_initial(initial, v))}, values) if values else None


def _replaced(parameters: Named, values: Named) -> dict[str, Tensor]:
    """`parameters` with some of them replaced by `values`."""
    return {name: values.get(name, value) for name, value in parameters.items()}
