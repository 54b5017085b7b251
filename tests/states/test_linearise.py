"""linearise: layouts, lengths, initial states, cores inside models, and what it must leave alone."""

import copy

import pytest
import torch
from torch import nn

import kpflow as kp
from kpflow.operators import to_dense
from models import MODELS, CustomStep, Plain, plain_case, randn, seeded, stepped_states, trainable

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def jacobian_of(function, parameters) -> torch.Tensor:
    blocks = torch.func.jacrev(function)(parameters)
    count = function(parameters).numel()
    return torch.cat([blocks[name].reshape(count, -1) for name in parameters], dim=1)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_padded_batch_equals_the_trials_one_by_one(kind):
    model = seeded(getattr(nn, kind)(3, 4, 2, batch_first=True))
    inputs, lengths = randn(3, 6, 3, seed=1), torch.tensor([6, 2, 4])
    lin = kp.linearise(model, inputs, lengths=lengths)
    jacobian = to_dense(kp.Ntk(lin).jacobian).unflatten(0, lin.space.shape)
    propagator = to_dense(kp.Propagator(lin))
    for b, length in enumerate(lengths.tolist()):
        alone = kp.linearise(model, inputs[b : b + 1, :length])
        torch.testing.assert_close(lin.states[b, :length], alone.states[0], **CLOSE)
        expected = to_dense(kp.Ntk(alone).jacobian).unflatten(0, alone.space.shape)[0]
        torch.testing.assert_close(jacobian[b, :length], expected, **CLOSE)
        assert not lin.states[b, length:].any()
        assert not jacobian[b, length:].any()
    identity = torch.eye(lin.space.size, dtype=torch.float64)
    torch.testing.assert_close(propagator @ to_dense(kp.Propagator(lin).inverse), identity, **CLOSE)


def test_packed_sequence_is_a_padded_batch():
    model = seeded(nn.GRU(3, 4, batch_first=True))
    inputs, lengths = randn(3, 6, 3, seed=1), torch.tensor([2, 6, 4])
    packed = nn.utils.rnn.pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    one, other = kp.linearise(model, packed), kp.linearise(model, inputs, lengths=lengths)
    torch.testing.assert_close(one.states, other.states)
    torch.testing.assert_close(to_dense(kp.Ntk(one)), to_dense(kp.Ntk(other)))


class Packing(nn.Module):
    """A model that packs its batch itself and reads out the last state of every trial."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4, batch_first=True)
        self.readout = nn.Linear(4, 2)

    def forward(self, inputs, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
        output, (hidden, _) = self.rnn(packed)
        padded, _ = nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
        return self.readout(hidden[-1]) + padded.sum((1, 2)).unsqueeze(-1)


def test_model_that_packs_its_own_batch():
    model = seeded(Packing())
    arguments = (randn(3, 6, 3, seed=1), torch.tensor([2, 6, 4]))
    lin = kp.linearise(model, arguments, core="rnn")
    torch.testing.assert_close(lin.readout.outputs, model(*arguments).detach(), **CLOSE)
    rows = [torch.autograd.grad(model(*arguments).flatten()[i], list(model.parameters())) for i in range(6)]
    jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    torch.testing.assert_close(to_dense(kp.Ntk(lin, readout="outputs").jacobian), jacobian, **CLOSE)


def test_time_first_module_is_honoured():
    first = seeded(nn.GRU(3, 4, batch_first=True))
    other = nn.GRU(3, 4).to(torch.float64)
    other.load_state_dict(first.state_dict())
    inputs = randn(2, 5, 3, seed=1)
    one, two = kp.linearise(first, inputs), kp.linearise(other, inputs.transpose(0, 1))
    assert one.space == two.space
    torch.testing.assert_close(one.states, two.states)


def test_initial_state_in_both_layouts():
    model = seeded(nn.LSTM(3, 4, 2, batch_first=True))
    inputs, hidden, cell = randn(2, 5, 3, seed=1), randn(2, 2, 4, seed=2), randn(2, 2, 4, seed=3)
    flat = torch.cat([hidden[0], cell[0], hidden[1], cell[1]], dim=-1)
    one = kp.linearise(model, inputs, initial=(hidden, cell))
    two = kp.linearise(model, inputs, initial=flat)
    torch.testing.assert_close(one.states, two.states)
    expected = stepped_states(model, trainable(model), inputs, (hidden, cell))
    torch.testing.assert_close(one.states, expected, **CLOSE)


def test_trainable_initial_given_as_a_tuple():
    model = seeded(nn.LSTM(3, 4, batch_first=True))
    inputs = randn(2, 5, 3, seed=1)
    hidden, cell = randn(1, 2, 4, seed=2).requires_grad_(), randn(1, 2, 4, seed=3)
    lin = kp.linearise(model, inputs, initial=(hidden, cell))
    names = [part.name for part in lin.parameters.parts]
    assert names[-1] == "initial.0"
    parameters = trainable(model) | {"initial.0": hidden.detach()}

    def states(p):
        own = {name: value for name, value in p.items() if name != "initial.0"}
        return stepped_states(model, own, inputs, (p["initial.0"], cell))

    torch.testing.assert_close(to_dense(kp.Ntk(lin).jacobian), jacobian_of(states, parameters), **CLOSE)


def test_frozen_parameters_drop_their_columns():
    model = seeded(nn.GRU(3, 4, batch_first=True))
    inputs = randn(2, 5, 3, seed=1)
    model.weight_hh_l0.requires_grad_(False)
    model.bias_ih_l0.requires_grad_(False)
    lin = kp.linearise(model, inputs)
    assert [part.name for part in lin.parameters.parts] == ["weight_ih_l0", "bias_hh_l0"]
    parameters = {name: value for name, value in trainable(model).items()}
    jacobian = jacobian_of(lambda p: stepped_states(model, p, inputs), parameters)
    torch.testing.assert_close(to_dense(kp.Ntk(lin).jacobian), jacobian, **CLOSE)


def test_parameters_tied_across_layers_and_to_the_readout():
    model = seeded(Plain(nn.RNN(4, 4, 2, batch_first=True), outputs=4))
    model.rnn.weight_hh_l1 = model.rnn.weight_hh_l0
    model.readout.weight = model.rnn.weight_ih_l0
    inputs = randn(2, 5, 4, seed=1)
    lin = kp.linearise(model, inputs, core="rnn")
    parameters = trainable(model)
    assert {part.name for part in lin.parameters.parts} == set(parameters)
    jacobian = jacobian_of(lambda p: torch.func.functional_call(model, p, (inputs,)), parameters)
    operator = kp.Ntk(lin, readout="outputs").jacobian
    torch.testing.assert_close(to_dense(operator), jacobian, **CLOSE)
    torch.testing.assert_close(to_dense(operator.T), jacobian.mT, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_the_models(dtype):
    lin = kp.linearise(nn.LSTM(3, 4, batch_first=True).to(dtype), torch.zeros(2, 5, 3, dtype=dtype))
    assert lin.space.dtype == lin.parameters.dtype == kp.Ntk(lin)(lin.space.zeros()).dtype == dtype


def test_one_step_and_no_recurrence():
    """T = 1, or W = 0: P = I and the NTK is K."""
    model = seeded(nn.RNN(3, 4, batch_first=True))
    once = kp.linearise(model, randn(2, 1, 3, seed=1))
    torch.testing.assert_close(to_dense(kp.Propagator(once)), torch.eye(8, dtype=torch.float64))
    torch.nn.init.zeros_(model.weight_hh_l0)
    still = kp.linearise(model, randn(2, 5, 3, seed=1))
    torch.testing.assert_close(to_dense(kp.Propagator(still)), torch.eye(40, dtype=torch.float64))
    torch.testing.assert_close(to_dense(kp.Ntk(still)), to_dense(kp.ParameterKernel(still)), **CLOSE)


def snapshot(model: nn.Module) -> dict:
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "flags": [p.requires_grad for p in model.parameters()],
        "grads": {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
        "modes": [m.training for m in model.modules()],
        "hooks": [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "ids": [id(p) for p in model.parameters()],
    }


class Remembering(Plain):
    """Keeps its last states, with their graph, as users' models do, and counts its calls in a list."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__(core)
        self.calls = []
        self.last = None

    def forward(self, inputs):
        self.calls.append(len(inputs))
        self.last = super().forward(inputs)
        return self.last


def test_model_and_globals_come_back_bit_identical():
    model = seeded(Remembering(nn.GRU(3, 4, batch_first=True)))
    model.train()
    model.readout.weight.requires_grad_(False)
    inputs = randn(2, 5, 3, seed=1)
    model(inputs).sum().backward()
    handle = model.rnn.register_forward_hook(lambda *_: None)
    before, random, calls = snapshot(model), torch.get_rng_state(), list(model.calls)
    last, grad_mode = model.last, torch.is_grad_enabled()
    flags = (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled)
    lin = kp.linearise(model, inputs, core="rnn")
    kp.Ntk(lin, readout="outputs")(lin.readout.space.zeros(3))
    kp.flow.response(lin, lambda y: y.square().sum())
    after = snapshot(model)
    tensors = ("state", "grads")
    for name, value in before.items():
        if name in tensors:
            torch.testing.assert_close(after[name], value, rtol=0, atol=0)
        else:
            assert after[name] == value
    assert torch.equal(random, torch.get_rng_state())
    assert model.last is last
    assert model.calls == calls
    assert (torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled) == flags
    assert torch.is_grad_enabled() == grad_mode
    assert handle.id in model.rnn._forward_hooks


@pytest.mark.parametrize("name", ["RNN-2", "GRU-1", "LSTM-1", "rate-inside", "low-rank", "step-module", "around-GRU"])
def test_linearisation_is_a_snapshot(name):
    """Training that goes on in place, or inputs that are written over, leave it as it was."""
    case = MODELS[name]()
    inputs = case.inputs.clone()
    lin = kp.linearise(case.model, inputs, **case.keywords)
    operators = [kp.Propagator(lin), kp.Ntk(lin).jacobian]
    operators += [kp.Ntk(lin, readout="outputs").jacobian] if "around" in name else []
    before = [to_dense(operator) for operator in operators]
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.mul_(2.0)
    inputs.zero_()
    for operator, matrix in zip(operators, before, strict=True):
        torch.testing.assert_close(to_dense(operator), matrix, rtol=0, atol=0)


class Noisy(Plain):
    def forward(self, inputs):
        return super().forward(inputs) + 0.1 * torch.randn(2, dtype=inputs.dtype)


class TwoCalls(Plain):
    def forward(self, inputs):
        return self.readout(self.rnn(self.rnn(inputs)[0])[0])


class Unused(Plain):
    def forward(self, inputs):
        return self.readout(inputs)


class GivesDict(Plain):
    def forward(self, inputs):
        return {"y": super().forward(inputs)}


def gru() -> nn.Module:
    return seeded(nn.GRU(3, 4, batch_first=True))


def with_nan(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.weight_hh_l0[1, 2] = float("nan")
    return model


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def mixed(model: nn.Module) -> nn.Module:
    model.readout.to(torch.float32)
    return model


def parametrised() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(gru(), "weight_hh_l0")


X = randn(2, 5, 3, seed=1)
BAD = X.clone()
BAD[1, 3, 0] = float("nan")

ERRORS = {
    "not-callable": (lambda: kp.linearise(3, X), TypeError, "`model` must be a torch.nn.Module or a function"),
    "numpy": (lambda: kp.linearise(gru(), X.numpy()), TypeError, "`inputs` must be a torch.Tensor; got ndarray"),
    "integer": (lambda: kp.linearise(gru(), X.long()), TypeError, "floating-point numbers; got torch.int64"),
    "two-axes": (lambda: kp.linearise(gru(), X[0]), ValueError, r"three axes.*got shape \(5, 3\)"),
    "channels": (lambda: kp.linearise(gru(), X[..., :2]), ValueError, "3 channels on its last axis"),
    "no-trials": (lambda: kp.linearise(gru(), X[:0]), ValueError, "at least one trial.*got 0 trials of 5 steps"),
    "no-steps": (lambda: kp.linearise(gru(), X[:, :0]), ValueError, "got 2 trials of 0 steps"),
    "nan": (lambda: kp.linearise(gru(), BAD), ValueError, "`inputs`.*NaN at trial 1, time 3, input 0"),
    "inf": (lambda: kp.linearise(gru(), BAD.nan_to_num(torch.inf)), ValueError, "inf at trial 1, time 3"),
    "nan-weight": (lambda: kp.linearise(with_nan(gru()), X), ValueError, "`weight_hh_l0`.*NaN at axis 0 1.*earlier"),
    "dtype": (lambda: kp.linearise(gru(), X.float()), TypeError, "parameters' dtype torch.float64; got torch.float32"),
    "device": (lambda: kp.linearise(gru(), X.to("meta")), ValueError, "parameters' device cpu; got meta"),
    "frozen": (lambda: kp.linearise(frozen(gru()), X), ValueError, "no trainable parameter.*requires_grad_"),
    "mixed": (lambda: kp.linearise(mixed(seeded(Plain(gru()))), X, core="rnn"), ValueError, "share one dtype"),
    "bidirectional": (
        lambda: kp.linearise(seeded(nn.GRU(3, 4, bidirectional=True)), X, initial=randn(2, 5, 4, seed=1)),
        ValueError,
        "one direction of time; got a bidirectional module. Leave out `core` and `initial`: the graph route",
    ),
    "bidirectional-core": (
        lambda: kp.linearise(seeded(nn.Sequential(nn.GRU(3, 4, bidirectional=True))), X, core="0"),
        ValueError,
        "one direction of time; got a bidirectional module",
    ),
    "bidirectional-lengths": (
        lambda: kp.linearise(seeded(nn.GRU(3, 4, bidirectional=True)), X, lengths=torch.tensor([5, 2])),
        ValueError,
        "`lengths` goes with the recurrent route",
    ),
    "projection": (
        lambda: kp.linearise(seeded(nn.LSTM(3, 4, proj_size=2)), X, route="recurrent"),
        ValueError,
        "`proj_size` must be 0",
    ),
    "dropout": (
        lambda: kp.linearise(nn.GRU(3, 4, 2, dropout=0.5, batch_first=True).double(), X),
        ValueError,
        "dropout in training mode.*eval",
    ),
    "dropout-inside": (
        lambda: kp.linearise(nn.Sequential(nn.Dropout(0.5), gru()).train(), X, core="1"),
        ValueError,
        "`0` applies dropout in training mode",
    ),
    "batch-norm": (
        lambda: kp.linearise(nn.Sequential(nn.BatchNorm1d(5), gru()).double().train(), X, core="1"),
        ValueError,
        "`0` is a batch norm in training mode",
    ),
    "no-recurrence": (
        lambda: kp.linearise(nn.Linear(3, 4).double(), X, route="recurrent"),
        ValueError,
        "No recurrence is known of a Linear",
    ),
    "core-name": (
        lambda: kp.linearise(seeded(Plain(gru())), X, core="gru"),
        ValueError,
        "it has 'rnn'.*got 'gru'",
    ),
    "core-kind": (
        lambda: kp.linearise(seeded(Plain(gru())), X, core="readout"),
        ValueError,
        "'readout' is a Linear",
    ),
    "core-cell": (
        lambda: kp.linearise(seeded(Plain(nn.GRUCell(3, 4))), X, core="rnn"),
        ValueError,
        "runs over a whole sequence; 'rnn' is a GRUCell",
    ),
    "core-function": (lambda: kp.linearise(lambda h, x: h, X, core="rnn"), ValueError, "none that is known"),
    "core-initial": (
        lambda: kp.linearise(seeded(Plain(gru())), X, core="rnn", initial=randn(1, 2, 4, seed=1)),
        ValueError,
        "goes with a bare recurrent module",
    ),
    "core-unused": (
        lambda: kp.linearise(seeded(Unused(nn.GRU(4, 4))), randn(2, 5, 4, seed=1), core="rnn"),
        ValueError,
        "not called",
    ),
    "core-twice": (
        lambda: kp.linearise(seeded(TwoCalls(nn.GRU(4, 4, batch_first=True))), randn(2, 5, 4, seed=1), core="rnn"),
        ValueError,
        "called once in a forward pass; it is called 2 times",
    ),
    "noise": (lambda: kp.linearise(seeded(Noisy(gru())), X, core="rnn"), ValueError, "another output each time"),
    "dict": (lambda: kp.linearise(seeded(GivesDict(gru())), X, core="rnn"), TypeError, "must give a tensor.*got dict"),
    "parametrised": (
        lambda: kp.linearise(parametrised(), X),
        ValueError,
        "weight_hh_l0.*computed from other parameters",
    ),
    "learned-nonlinearity": (
        lambda: kp.linearise(seeded(kp.states.cells.RateRNN(3, 4, nonlinearity=nn.PReLU())), X),
        ValueError,
        "`nonlinearity` must have no parameters of its own here; got PReLU",
    ),
    "initial-type": (lambda: kp.linearise(gru(), X, initial=[1.0]), TypeError, "`initial` must be a tensor or a tuple"),
    "initial-shape": (lambda: kp.linearise(gru(), X, initial=randn(1, 3, 4, seed=1)), ValueError, r"\(1, 2, 4\)"),
    "initial-width": (lambda: kp.linearise(gru(), X, initial=randn(2, 5, seed=1)), ValueError, r"\(2, 4\), or \(4,\)"),
    "initial-dtype": (lambda: kp.linearise(gru(), X, initial=randn(2, 4, seed=1).float()), TypeError, "`initial` must"),
    "initial-nan": (
        lambda: kp.linearise(gru(), X, initial=torch.full((2, 4), torch.nan).double()),
        ValueError,
        "trial 0",
    ),
    "initial-one-of-two": (
        lambda: kp.linearise(seeded(nn.LSTM(3, 4)), X, initial=randn(1, 2, 4, seed=1)),
        ValueError,
        "must be 2 tensor",
    ),
    "lengths-shape": (lambda: kp.linearise(gru(), X, lengths=torch.tensor([1])), ValueError, "each of the 2 trials"),
    "lengths-float": (lambda: kp.linearise(gru(), X, lengths=torch.ones(2)), ValueError, "whole number"),
    "lengths-range": (lambda: kp.linearise(gru(), X, lengths=torch.tensor([0, 6])), ValueError, "between 1 and 5"),
    "step-initial": (
        lambda: kp.linearise(seeded(CustomStep()), X, initial=randn(3, 4, seed=1)),
        ValueError,
        r"shape \(2, H\), or \(H,\); got \(3, 4\)",
    ),
    "step-no-parameters": (
        lambda: kp.linearise(lambda h, x: h, X, initial=randn(2, 4, seed=1)),
        ValueError,
        "give a function its `parameters`",
    ),
    "step-shape": (
        lambda: kp.linearise(lambda h, x, p: h[:, :2] * p["a"], X, initial=randn(2, 4, seed=1), parameters=A),
        ValueError,
        r"shape of h, \(2, 4\); got \(2, 2\)",
    ),
    "step-type": (
        lambda: kp.linearise(lambda h, x, p: (h, h), X, initial=randn(2, 4, seed=1), parameters=A),
        TypeError,
        "must give a tensor; got tuple",
    ),
    "step-couples-trials": (
        lambda: kp.linearise(lambda h, x, p: p["a"] * (h - h.mean(0)), X, initial=randn(2, 4, seed=1), parameters=A),
        ValueError,
        "treat the trials of a batch independently",
    ),
    "step-complex": (
        lambda: kp.linearise(
            lambda h, x, p: h, X, initial=randn(2, 4, seed=1), parameters={"a": torch.ones(1, dtype=torch.complex128)}
        ),
        TypeError,
        "`a` must be a real floating-point tensor; got torch.complex128",
    ),
    "diverges": (
        lambda: kp.linearise(lambda h, x, p: p["a"] * h * 1e200, X, initial=randn(2, 4, seed=1), parameters=A),
        ValueError,
        "`states` must be finite; got inf at trial 0, time 1.*diverges",
    ),
}
A = {"a": torch.ones(1, dtype=torch.float64, requires_grad=True)}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_gets_one_clear_error(name):
    call, kind, message = ERRORS[name]
    with pytest.raises(kind, match=message):
        call()


def test_subclass_with_its_own_forward_is_not_taken_for_its_parent():
    class Doubled(nn.GRU):
        def forward(self, *args, **kwargs):
            output, hidden = super().forward(*args, **kwargs)
            return 2 * output, hidden

    model = Doubled(3, 4, batch_first=True).double()
    with pytest.raises(ValueError, match="No recurrence is known of a Doubled"):
        kp.linearise(model, X, route="recurrent")
    torch.testing.assert_close(kp.linearise(model, X).readout.outputs, model(X)[0].detach())


def test_deep_copies_are_not_needed():
    """A model that keeps a tensor with a graph cannot be deep-copied, and is linearised all the same."""
    model = seeded(Remembering(nn.GRU(3, 4, batch_first=True)))
    model(X)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    lin = kp.linearise(model, X, core="rnn")
    torch.testing.assert_close(lin.readout.outputs, model(X).detach())


def test_outputs_of_a_bare_module_are_its_own():
    model = seeded(nn.LSTM(3, 4, 2, batch_first=True))
    lin = kp.linearise(model, X)
    torch.testing.assert_close(lin.readout.outputs, model(X)[0].detach(), **CLOSE)


def test_plain_case_outputs_agree():
    case = plain_case(nn.GRU(3, 4, batch_first=True))
    lin = kp.linearise(case.model, case.inputs, core="rnn")
    torch.testing.assert_close(lin.readout.outputs, case.outputs(case.parameters), **CLOSE)


def test_padded_leaky_network_stays_silent_after_the_end():
    model = seeded(kp.states.cells.RateRNN(3, 4, alpha=0.3))
    lin = kp.linearise(model, randn(2, 6, 3, seed=1), lengths=torch.tensor([6, 2]))
    kick = lin.space.zeros()
    kick[1, 1] = 1.0
    assert not kp.Propagator(lin)(kick)[1, 2:].any()
    alone = kp.linearise(model, randn(2, 6, 3, seed=1)[1:, :2])
    torch.testing.assert_close(kp.Propagator(lin)(kick)[1, :2], kp.Propagator(alone)(kick[1:, :2])[0], **CLOSE)


def test_large_blocks_go_in_pieces_in_order(monkeypatch):
    lin = kp.linearise(gru(), X)
    probes, directions = randn(7, *lin.space.shape, seed=2), randn(7, lin.parameters.size, seed=3)
    operators = [kp.Propagator(lin), kp.Propagator(lin).inverse, kp.ParameterKernel(lin).jacobian, kp.Ntk(lin).jacobian]
    arguments = [probes, probes, directions, directions]
    whole = [op(v) for op, v in zip(operators, arguments, strict=True)] + [op.T(probes) for op in operators]
    monkeypatch.setattr("kpflow.states.recurrent.PIECE_BYTES", 2 * lin.states.numel() * lin.states.element_size())
    pieces = [op(v) for op, v in zip(operators, arguments, strict=True)] + [op.T(probes) for op in operators]
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


class Counting(Plain):
    """Gives its states beside its output, and counts its calls in a buffer."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__(core)
        self.register_buffer("calls", torch.zeros(1, dtype=torch.float64))

    def forward(self, inputs):
        self.calls += 1
        states, _ = self.rnn(inputs)
        return self.readout(states), states


def test_first_of_several_outputs_and_buffers_of_its_own():
    model = seeded(Counting(nn.GRU(3, 4, batch_first=True)))
    lin = kp.linearise(model, X, core="rnn")
    kp.Ntk(lin, readout="outputs")(lin.readout.space.zeros(2))
    assert model.calls.item() == 0
    torch.testing.assert_close(lin.readout.outputs, model(X)[0].detach(), **CLOSE)


def test_outputs_that_are_not_finite_are_named():
    class Diverging(Plain):
        def forward(self, inputs):
            return super().forward(inputs) / 0.0

    with pytest.raises(ValueError, match="`outputs` must be finite; got inf"):
        kp.linearise(seeded(Diverging(nn.GRU(3, 4, batch_first=True))), X, core="rnn")


def test_weights_tied_within_a_layer_and_across_layers():
    """Every site counts, in the kernel, in its adjoint and among the cores."""
    model = seeded(nn.GRU(4, 4, 2, batch_first=True, bias=False))
    model.weight_hh_l0 = model.weight_ih_l0
    model.weight_hh_l1 = model.weight_ih_l0
    inputs = randn(2, 5, 4, seed=1)
    lin = kp.linearise(model, inputs)
    parameters = trainable(model)
    assert len(parameters) == len(lin.parameters.parts) == 2
    jacobian = jacobian_of(lambda p: stepped_states(model, p, inputs), parameters)
    torch.testing.assert_close(to_dense(kp.Ntk(lin).jacobian), jacobian, **CLOSE)
    torch.testing.assert_close(to_dense(kp.Ntk(lin).jacobian.T), jacobian.mT, **CLOSE)
    assert len(kp.flow.cores(lin)) == 12


def test_response_moves_the_states_as_a_real_step_does_where_parameters_are_shared():
    """The encoder moves the core's inputs and, past the core, the output: a step uses its whole gradient."""
    case = MODELS["around-RNN"]()
    lin = kp.linearise(case.model, case.inputs, **case.keywords)
    response = kp.flow.response(lin, lambda y: (y - 1).square().mean(), learning_rate=1e-6)
    gradient = lin.parameters.split(response.gradient)
    stepped = {name: value - 1e-6 * gradient[name] for name, value in case.parameters.items()}
    actual = case.states(stepped) - case.states(case.parameters)
    torch.testing.assert_close(actual / 1e-6, response.predicted_change / 1e-6, rtol=1e-4, atol=1e-6)
