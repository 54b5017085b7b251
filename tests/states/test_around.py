"""Models around a core, and steps: what the replaced parameters do not reach, noise, and what is left alone."""

import collections
import copy

import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.operators import to_dense
from kpflow.states import Linearisation
from kpflow.states.twin import snapshot, twin
from models import Around, CustomStep, Plain, randn, seeded, trainable

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
X = randn(2, 5, 3, seed=1)


def gru(inputs: int = 3) -> nn.GRU:
    return nn.GRU(inputs, 4, batch_first=True)


def check_outputs(model: nn.Module, inputs, reference=None) -> Linearisation:
    """The Jacobian of the outputs is that of the model's own forward pass, and its adjoint is its adjoint."""
    lin = kp.linearise(model, inputs, core="rnn")
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)

    def outputs(parameters):
        result = torch.func.functional_call(reference or model, parameters, arguments)
        return result[0] if isinstance(result, (tuple, list)) else result

    parameters = trainable(model)
    blocks = torch.func.jacrev(outputs)(parameters)
    count = outputs(parameters).numel()
    jacobian = torch.cat([blocks[part.name].reshape(count, -1) for part in lin.parameters.parts], dim=1)
    operator = kp.Ntk(lin, readout="outputs").jacobian
    torch.testing.assert_close(to_dense(operator), jacobian, **CLOSE)
    torch.testing.assert_close(to_dense(operator.T), jacobian.mT, **CLOSE)
    torch.testing.assert_close(lin.readout.outputs, outputs(parameters), **CLOSE)
    return lin


class Encoded(Plain):
    """An encoder whose call is left to the subclass, before the core."""

    def __init__(self) -> None:
        super().__init__(gru())
        self.encoder = nn.Linear(3, 3)

    def encode(self, inputs):
        return self.encoder(inputs)

    def forward(self, inputs):
        return super().forward(self.encode(inputs))


class Closure(Encoded):
    def __init__(self) -> None:
        super().__init__()
        encoder = self.encoder
        self.encode = lambda inputs: torch.tanh(encoder(inputs))


class Partly(Encoded):
    """Uses its encoder both ways."""

    def __init__(self) -> None:
        super().__init__()
        weight = self.encoder.weight
        self.more = lambda inputs: inputs @ weight

    def encode(self, inputs):
        return self.encoder(inputs) + self.more(inputs)


class ClosureAfter(Plain):
    def __init__(self) -> None:
        super().__init__(gru())
        readout = self.readout
        self.decode = lambda states: readout(states)

    def forward(self, inputs):
        return self.decode(self.rnn(inputs)[0])


class PlainList(Encoded):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(3, 3).double()]

    def encode(self, inputs):
        return self.layers[0](self.encoder(inputs))


class PlainDictAfter(Plain):
    def __init__(self) -> None:
        super().__init__(gru())
        self.heads = {"a": nn.Linear(4, 2, bias=False).double()}

    def forward(self, inputs):
        return super().forward(inputs) + self.heads["a"](self.rnn_states(inputs))

    def rnn_states(self, inputs):
        return inputs.new_ones(*inputs.shape[:2], 4)


class LooseTensor(Plain):
    """A leaf that is no parameter, handed to the core as its initial state with no operation in between."""

    def __init__(self) -> None:
        super().__init__(gru())
        self.start = torch.zeros(1, 2, 4, dtype=torch.float64, requires_grad=True)

    def forward(self, inputs):
        return self.readout(self.rnn(inputs, self.start)[0])


class Computed(Plain):
    """A weight computed once from a parameter."""

    def __init__(self) -> None:
        super().__init__(gru())
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.double = 2 * self.scale

    def forward(self, inputs):
        return super().forward(inputs * self.double)


LEAKS = {
    "closure": (Closure, r"encoder\.bias, encoder\.weight"),
    "both-ways": (Partly, r"encoder\.weight"),
    "closure-after": (ClosureAfter, r"readout\.bias, readout\.weight"),
    "plain-list": (PlainList, r"one of shape \(3, 3\), one of shape \(3,\)"),
    "plain-dict-after": (PlainDictAfter, r"one of shape \(2, 4\)"),
    "loose-tensor": (LooseTensor, r"one of shape \(1, 2, 4\)"),
    "computed": (Computed, "scale"),
}


@pytest.mark.parametrize("name", LEAKS)
def test_parameters_that_the_twin_does_not_see_are_refused(name):
    make, listed = LEAKS[name]
    message = rf"trainable parameters past its registered submodules \({listed}\).*nn\.ModuleList.*through self"
    with pytest.raises(ValueError, match=message):
        kp.linearise(seeded(make()), X, core="rnn")


def test_plain_list_of_registered_modules_is_seen():
    class Listed(Encoded):
        def __init__(self) -> None:
            super().__init__()
            self.stages = {"first": [self.encoder, torch.tanh]}

        def encode(self, inputs):
            for stage in self.stages["first"]:
                inputs = stage(inputs)
            return inputs

    class Straight(Encoded):
        def encode(self, inputs):
            return torch.tanh(self.encoder(inputs))

    model = seeded(Listed())
    reference = Straight().double()
    reference.load_state_dict(model.state_dict())
    check_outputs(model, X, reference)


def test_bound_methods_of_the_model_are_seen():
    """As attributes, as its forward pass, and as hooks."""

    class Bound(Encoded):
        def __init__(self) -> None:
            super().__init__()
            self.encode = self.squashed
            self.forward = self.chosen
            self.readout.register_forward_hook(self.keep)
            self.kept = None

        def squashed(self, inputs):
            return torch.tanh(self.encoder(inputs))

        def chosen(self, inputs):
            return 2 * super().forward(inputs)

        def keep(self, _module, _arguments, output):
            self.kept = output

    class Straight(Encoded):
        def forward(self, inputs):
            return 2 * self.readout(self.rnn(torch.tanh(self.encoder(inputs)))[0])

    model = seeded(Bound())
    reference = Straight().double()
    reference.load_state_dict(model.state_dict())
    check_outputs(model, X, reference)
    assert model.kept is None


def test_frozen_module_in_a_plain_list_is_a_constant():
    model = seeded(PlainList())
    model.layers[0].requires_grad_(False)
    check_outputs(model, X)


def test_leaves_made_in_the_forward_pass_are_not_parameters():
    class InnerGradient(Plain):
        """Descends an energy of its own inputs."""

        def forward(self, inputs):
            with torch.enable_grad():
                point = inputs.detach().clone().requires_grad_()
                (slope,) = torch.autograd.grad(point.pow(3).sum(), point, create_graph=True)
            return super().forward(point - 0.1 * slope)

    class Straight(Plain):
        def forward(self, inputs):
            return super().forward(inputs - 0.3 * inputs.square())

    model = seeded(InnerGradient(gru()))
    reference = Straight(gru()).double()
    reference.load_state_dict(model.state_dict())
    check_outputs(model, X, reference)


def test_core_reached_by_a_closure_is_refused():
    class Captured(Plain):
        def __init__(self) -> None:
            super().__init__(gru())
            rnn = self.rnn
            self.run = lambda inputs: rnn(inputs)

        def forward(self, inputs):
            return self.readout(self.run(inputs)[0])

    with pytest.raises(ValueError, match=r"`core` is not called by the model's forward pass.*through self"):
        kp.linearise(seeded(Captured()), X, core="rnn")


def test_inputs_that_require_a_gradient_are_constants():
    model = seeded(Plain(gru()))
    lin = kp.linearise(model, nn.Parameter(X), core="rnn")
    assert not lin.readout.outputs.requires_grad
    torch.testing.assert_close(lin.readout.outputs, model(X).detach(), **CLOSE)


class ListedStep(nn.Module):
    """A step with a part in a plain list."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        self.mix = nn.Linear(7, 4)
        self.parts = [self.mix] if registered else [nn.Linear(4, 4, bias=False).double()]

    def forward(self, h, x):
        mixed = self.mix(torch.cat([h, x], dim=-1))
        return torch.tanh(mixed if self.parts[0] is self.mix else self.parts[0](mixed))


class CapturedStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        mix = self.mix = nn.Linear(7, 4)
        self.run = lambda both: torch.tanh(mix(both))

    def forward(self, h, x):
        return self.run(torch.cat([h, x], dim=-1))


def test_step_with_parameters_past_its_tree_is_refused():
    start = randn(2, 4, seed=2)
    with pytest.raises(ValueError, match=r"submodules \(one of shape \(4, 4\)\).*nn\.ModuleList"):
        kp.linearise(seeded(ListedStep(registered=False)), X, initial=start)
    with pytest.raises(ValueError, match=r"submodules \(mix\.bias, mix\.weight\).*nn\.ModuleList"):
        kp.linearise(seeded(CapturedStep()), X, initial=start)
    lin = kp.linearise(seeded(ListedStep(registered=True)), X, initial=start)
    assert [part.name for part in lin.parameters.parts] == ["mix.weight", "mix.bias"]


def test_function_step_with_parameters_of_its_own_is_refused():
    cell = nn.GRUCell(3, 4).double()
    gain = torch.ones(1, dtype=torch.float64, requires_grad=True)
    start = randn(2, 4, seed=2)
    with pytest.raises(ValueError, match=r"no trainable parameter.*give a function its `parameters`"):
        kp.linearise(lambda h, x: cell(x, h), X, initial=start)
    with pytest.raises(
        ValueError, match=r"that it is not handed \(.*one of shape \(12, 3\).*`parameters`, and use those"
    ):
        kp.linearise(lambda h, x, p: p["gain"] * cell(x, h), X, initial=start, parameters={"gain": gain})
    with pytest.raises(ValueError, match=r"that it is not handed \(gain\)"):
        kp.linearise(lambda h, x, p: p["gain"] * gain * h, X, initial=start, parameters={"gain": gain})


class NoisyInputs(Plain):
    def forward(self, inputs):
        return super().forward(inputs + 1e-3 * torch.randn_like(inputs))


class NoisyStart(Plain):
    def forward(self, inputs):
        start = 1e-3 * torch.randn(1, len(inputs), 4, dtype=inputs.dtype)
        return self.readout(self.rnn(inputs, start)[0])


class OwnNoise(Plain):
    """Noise from a generator of its own."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__(core)
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, inputs):
        return super().forward(inputs + torch.randn(inputs.shape, generator=self.generator, dtype=inputs.dtype))


@pytest.mark.parametrize("kind", [NoisyInputs, NoisyStart, OwnNoise])
def test_noise_before_the_core_is_refused(kind):
    model = seeded(kind(gru()))
    state, random = model.generator.get_state() if kind is OwnNoise else None, torch.get_rng_state()
    with pytest.raises(ValueError, match=r"other inputs each time it is called. Remove noise from its forward pass"):
        kp.linearise(model, X, core="rnn")
    assert state is None or torch.equal(state, model.generator.get_state())
    assert torch.equal(random, torch.get_rng_state())


def test_twin_draws_what_its_model_would():
    model = OwnNoise(gru())
    torch.rand(3, generator=model.generator)
    expected, again = twin(model), twin(model, generators=False)
    assert again.generator is model.generator is not expected.generator
    drawn = torch.rand(5, generator=model.generator)
    torch.testing.assert_close(torch.rand(5, generator=expected.generator), drawn, rtol=0, atol=0)


def test_snapshot_is_detached_and_owned():
    Pair = collections.namedtuple("Pair", ["left", "right"])
    tensor = torch.ones(2, requires_grad=True)
    inputs = Pair([tensor, "a"], {"x": (tensor,), "n": 3})
    copied = snapshot(inputs)
    assert isinstance(copied, Pair)
    assert copied.right["n"] == 3
    assert copied.left[1] == "a"
    assert copied.left[0] is copied.right["x"][0] is not tensor
    assert not copied.left[0].requires_grad
    assert copied.left[0].data_ptr() != tensor.data_ptr()


def test_step_with_a_memory_is_refused():
    class Tired(CustomStep):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, h, x):
            self.calls += 1
            return super().forward(h, x) / self.calls

    with pytest.raises(ValueError, match=r"another state each time it is called. Remove noise and memory"):
        kp.linearise(seeded(Tired()), X, initial=randn(2, 4, seed=2))


def test_generator_handed_to_the_model_is_noise_and_stays_as_it_is():
    class Handed(Plain):
        def forward(self, inputs, generator):
            return super().forward(inputs) + torch.randn(2, generator=generator, dtype=inputs.dtype)

    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    with pytest.raises(ValueError, match=r"another output each time it is called. Remove noise"):
        kp.linearise(seeded(Handed(gru())), (X, generator), core="rnn")
    assert torch.equal(generator.get_state(), state)


def test_noisy_step_is_refused():
    weight = {"w": randn(4, 4, seed=3).requires_grad_()}
    with pytest.raises(ValueError, match=r"another state each time it is called. Remove noise and memory"):
        kp.linearise(
            lambda h, x, p: h @ p["w"] + 1e-6 * torch.randn_like(h), X, initial=randn(2, 4, seed=2), parameters=weight
        )


class Busy(Plain):
    """Writes to all kinds of attributes, starts from the state it ended with, and changes its inputs in place."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__(core)
        self.register_buffer("calls", torch.zeros(1, dtype=torch.float64))
        self.trace = torch.zeros(2, dtype=torch.float64)
        self.log = {"lengths": [], "recent": collections.deque(maxlen=2), "pair": ([], 0)}
        self.seen = set()
        self.start = torch.zeros(1, 2, 4, dtype=torch.float64)
        self.readout.count = 0
        self.loop = [self]

    def forward(self, inputs):
        inputs.mul_(0.5)
        self.calls += 1
        self.trace[0] += 1
        for log in (self.log["lengths"], self.log["recent"], self.log["pair"][0]):
            log.append(len(inputs))
        self.seen.add(len(self.seen))
        self.loop[0].readout.count += 1
        states, last = self.rnn(inputs * (1 + self.calls), self.start)
        self.start = last.detach()
        return self.readout(states)


def state_of(model: Busy) -> tuple:
    log = copy.deepcopy(model.log)
    return model.calls.item(), model.trace.tolist(), log, set(model.seen), model.start.tolist(), model.readout.count


def test_forward_pass_that_sets_attributes_leaves_the_model_alone():
    model, inputs = seeded(Busy(gru())), X.clone()
    model(inputs)
    before, kept, start = state_of(model), inputs.clone(), model.start
    lin = kp.linearise(model, inputs, core="rnn")
    operator = kp.Ntk(lin, readout="outputs").jacobian
    matrix = to_dense(operator)
    assert state_of(model) == before
    assert model.start is start
    assert torch.equal(inputs, kept)
    torch.testing.assert_close(to_dense(operator), matrix, rtol=0, atol=0)
    expected = model(inputs).detach()
    torch.testing.assert_close(lin.readout.outputs, expected, **CLOSE)


class BusyStep(CustomStep):
    """Counts its calls and keeps its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("last", torch.zeros(4))

    def forward(self, h, x):
        self.calls += 1
        new = super().forward(h, x)
        self.last.copy_(new[0].detach())
        return new


def test_step_that_sets_attributes_is_left_alone():
    model = seeded(BusyStep())
    start = randn(2, 4, seed=2)
    lin = kp.linearise(model, X, initial=start)
    to_dense(kp.Ntk(lin).jacobian)
    assert model.calls == 0
    assert not model.last.any()
    torch.testing.assert_close(lin.states[:, 0], model(start, X[:, 0]).detach(), **CLOSE)


WARNS = pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch: no vmap of a weight norm


@WARNS
def test_parametrised_modules_around_a_core():
    model = seeded(Around(gru()))
    nn.utils.parametrizations.weight_norm(model.readout)
    nn.utils.parametrizations.weight_norm(model.encoder)
    lin = check_outputs(model, randn(2, 5, 2, seed=1))
    assert "readout.parametrizations.weight.original0" in {part.name for part in lin.parameters.parts}


@WARNS
def test_parametrised_step():
    plain, model = seeded(CustomStep()), seeded(CustomStep())
    nn.utils.parametrizations.weight_norm(model.mix)
    start = randn(2, 4, seed=2)
    lin, expected = kp.linearise(model, X, initial=start), kp.linearise(plain, X, initial=start)
    torch.testing.assert_close(lin.states, expected.states, **CLOSE)
    blocks = lin.parameters.split(to_dense(kp.Ntk(lin).jacobian))
    known = expected.parameters.split(to_dense(kp.Ntk(expected).jacobian))
    torch.testing.assert_close(blocks["gate.weight"], known["gate.weight"], **CLOSE)
    (gains, weight) = (value.detach() for value in model.mix.parametrizations.weight.parameters())
    of_gains = (known["mix.weight"] * weight / weight.norm(dim=1, keepdim=True)).sum(-1, keepdim=True)
    torch.testing.assert_close(blocks["mix.parametrizations.weight.original0"], of_gains, **CLOSE)
    assert gains.shape == (4, 1)


def test_shared_submodules_stay_shared():
    class Shared(Plain):
        """A module under two names that hands something on from its first call to its second."""

        def __init__(self) -> None:
            super().__init__(gru())
            self.first = nn.Linear(3, 3)
            self.second = self.first

        def forward(self, inputs):
            self.first.kept = inputs.mean()
            return super().forward(self.second(inputs)) * self.second.kept

    check_outputs(seeded(Shared()), X)


class Nested(Plain):
    """Takes nested containers and reads them before and after its core."""

    def forward(self, batch, scales):
        states, _ = self.rnn(batch["x"][0] * scales[0])
        return self.readout(states) * batch["more"]["gain"] * scales[1]


def test_inputs_that_are_written_over_later_change_nothing():
    model = seeded(Nested(gru()))
    tensors = [X.clone(), randn(1, seed=2), randn(1, seed=3), randn(1, seed=4)]
    inputs = ({"x": [tensors[0]], "more": {"gain": tensors[1]}}, (tensors[2], tensors[3]))
    lin = kp.linearise(model, inputs, core="rnn")
    operator = kp.Ntk(lin, readout="outputs").jacobian
    before = to_dense(operator), to_dense(operator.T)
    for tensor in tensors:
        tensor.zero_()
    inputs[0]["x"].clear()
    torch.testing.assert_close((to_dense(operator), to_dense(operator.T)), before, rtol=0, atol=0)


def test_packed_inputs_that_are_written_over_later_change_nothing():
    class Packed(Plain):
        def forward(self, packed):
            output, _ = self.rnn(packed)
            padded, _ = nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
            return self.readout(padded) * packed.data.mean()

    model = seeded(Packed(gru()))
    packed = nn.utils.rnn.pack_padded_sequence(X.clone(), torch.tensor([3, 5]), batch_first=True, enforce_sorted=False)
    lin = kp.linearise(model, packed, core="rnn")
    torch.testing.assert_close(lin.readout.outputs, model(packed).detach(), **CLOSE)
    operator = kp.Ntk(lin, readout="outputs").jacobian
    before = to_dense(operator)
    packed.data.zero_()
    torch.testing.assert_close(to_dense(operator), before, rtol=0, atol=0)


class FixedStart(Encoded):
    """An encoder that is trained and an initial state that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("start", 0.3 * torch.ones(1, 1, 4, dtype=torch.float64))

    def forward(self, inputs):
        start = self.start.expand(1, len(inputs), -1).contiguous()
        return self.readout(self.rnn(self.encoder(inputs), start)[0])


class TrainedStart(Plain):
    """An initial state that is trained, and inputs as they come."""

    def __init__(self) -> None:
        super().__init__(gru())
        self.start = nn.Parameter(torch.zeros(1, 1, 4))

    def forward(self, inputs):
        return self.readout(self.rnn(inputs, self.start.expand(1, len(inputs), -1).contiguous())[0])


@pytest.mark.parametrize("kind", [FixedStart, TrainedStart])
def test_only_inputs_or_only_the_initial_state_move(kind):
    check_outputs(seeded(kind()), X)


def test_parameter_of_the_core_that_only_the_model_around_it_uses():
    class Scaled(Plain):
        def __init__(self) -> None:
            super().__init__(gru())
            self.rnn.scale = nn.Parameter(torch.ones(3))

        def forward(self, inputs):
            return super().forward(inputs * self.rnn.scale) * self.rnn.scale.sum()

    lin = check_outputs(seeded(Scaled()), X)
    assert "rnn.scale" in {part.name for part in lin.parameters.parts}


class Shaped(Plain):
    """Outputs of 1 to 5 axes."""

    def __init__(self, core: nn.Module, axes: int) -> None:
        super().__init__(core)
        self.axes = axes

    def forward(self, inputs):
        output = super().forward(inputs)
        if self.axes < 3:
            return output.flatten(1)[:, 0] if self.axes == 1 else output[:, -1]
        return output.reshape(*output.shape, *[1] * (self.axes - 3))


@pytest.mark.parametrize(
    ("axes", "names"),
    [
        (1, ("trial",)),
        (2, ("trial", "output")),
        (3, ("trial", "time", "output")),
        (4, ("axis0", "axis1", "axis2", "axis3")),
        (5, ("axis0", "axis1", "axis2", "axis3", "axis4")),
    ],
)
def test_names_of_output_axes(axes, names):
    lin = kp.linearise(seeded(Shaped(gru(), axes)), X, core="rnn")
    assert lin.readout.space.axes == names


class GivesList(Plain):
    def __init__(self, core: nn.Module, kind: type) -> None:
        super().__init__(core)
        self.kind = kind

    def forward(self, inputs):
        states, last = self.rnn(inputs)
        return self.kind([self.readout(states), states, last])


@pytest.mark.parametrize("kind", [list, tuple])
def test_first_of_a_list_or_a_tuple_is_the_output(kind):
    lin = check_outputs(seeded(GivesList(gru(), kind)), X)
    assert lin.readout.space.shape == (2, 5, 2)


@pytest.mark.parametrize("kind", [list, tuple])
def test_empty_list_is_no_output(kind):
    class Empty(Plain):
        def forward(self, inputs):
            self.rnn(inputs)
            return kind()

    with pytest.raises(TypeError, match=f"must give a tensor.*got {kind.__name__}"):
        kp.linearise(seeded(Empty(gru())), X, core="rnn")


@pytest.mark.parametrize("kind", ["around", "step"])
def test_inference_mode_makes_no_difference(kind):
    """Gradients are recorded all the same: where a linearisation is made and where it is used."""
    model, keywords = (
        (seeded(Around(gru())), {"core": "rnn"})
        if kind == "around"
        else (seeded(CustomStep()), {"initial": randn(2, 4, seed=2)})
    )
    inputs = randn(2, 5, 2 if kind == "around" else 3, seed=1)
    readout = {"readout": "outputs"} if kind == "around" else {}
    expected = to_dense(kp.Ntk(kp.linearise(model, inputs, **keywords), **readout).jacobian)
    with torch.inference_mode():
        lin = kp.linearise(model, inputs.clone(), **keywords)
        operator = kp.Ntk(lin, **readout).jacobian
        inside = to_dense(operator), to_dense(operator.T)
    torch.testing.assert_close(inside, (expected, expected.mT), **CLOSE)
    torch.testing.assert_close((to_dense(operator), to_dense(operator.T)), (expected, expected.mT), **CLOSE)
