"""The door of the graph route: what it takes, what it refuses and in which words, and what it must leave alone."""

import dataclasses
import functools
import subprocess
import sys
import types
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import kpflow as kp
from kpflow.operators import to_dense
from models import randn, seeded

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
X = randn(3, 4, seed=1)


class Model(nn.Module):
    """Two layers, `first` and `last`, and a forward pass that is a function of it and its inputs."""

    def __init__(self, function=lambda m, x: m.last(m.first(x).tanh()), **attributes) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        code = function.__code__.replace(co_name="forward")  # torch notes the places of forward passes only
        self.function = types.FunctionType(
            code, function.__globals__, "forward", function.__defaults__, function.__closure__
        )
        self.function.__kwdefaults__ = function.__kwdefaults__
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, *inputs, **named):
        return self.function(self, *inputs, **named)


def made(function=None, **attributes) -> Model:
    return seeded(Model(**({} if function is None else {"function": function}), **attributes))


def with_buffer(function, name="count") -> Model:
    model = made(function)
    model.register_buffer(name, torch.zeros(2, dtype=torch.float64))
    return model


def first_output(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    outputs = outputs.values() if isinstance(outputs, dict) else outputs
    return next(o for o in outputs if isinstance(o, Tensor) and o.is_floating_point())


def dense_jacobian(model: nn.Module, *inputs, output=first_output) -> Tensor:
    """Of the output with respect to the trainable parameters, by autograd row by row."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    with torch.enable_grad():
        y = output(model(*inputs))
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True) for entry in y.flatten()]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def jacobian(lin) -> Tensor:
    return to_dense(kp.Ntk(lin, readout="outputs").jacobian)


def agrees(model: nn.Module, *inputs, lin=None, output=first_output) -> bool:
    lin = kp.linearise(model, inputs) if lin is None else lin
    torch.testing.assert_close(jacobian(lin), dense_jacobian(model, *inputs, output=output), **CLOSE)
    return True


# What the forward passes of users do that cannot be linearised


def branches(m, x):
    if m.first(x).sum() > 0:
        return m.last(x)
    return m.last(-x)


def loops(m, x):
    for _ in range(int(x[0, 0].abs()) + 1):
        x = m.first(x)
    return m.last(x)


def asserts(m, x):
    assert x.max() < 100
    return m.last(x)


def goes_to_numpy(m, x):
    return m.last(x) * float(np.sum(x.detach().numpy()))


def writes_to_inputs(m, x):
    h = x[:, :4]
    h += 1
    return m.last(h)


def writes_to_buffers(m, x):
    m.count += 1
    return m.last(x) * m.count


def normalises_in_training(m, x):
    return functional.batch_norm(m.last(x), m.count, m.count, training=True)


def writes_to_parameters(m, x):
    with torch.no_grad():
        m.first.weight.clamp_(-0.1, 0.1)
    return m.last(m.first(x))


def writes_to_data(m, x):
    m.first.weight.data.clamp_(-0.1, 0.1)
    return m.last(m.first(x))


def drops(m, x):
    return functional.dropout(m.last(x), 0.5)


def draws(m, x):
    return m.last(x) + torch.randn_like(x)[:, :2]


def draws_from_numpy(m, x):
    return m.last(x) * np.random.rand()


def differentiates(m, x):
    h = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(m.first(h).tanh().sum(), h, create_graph=True)
    return m.last(slope)


def gives_a_number(m, x):
    return float(m.last(x).sum().detach())


def gives_classes(m, x):
    return m.last(x).argmax(-1)


def runs_without_gradients(m, x):
    with torch.no_grad():
        return m.last(m.first(x))


def hooks_a_tensor(m, x):
    h = m.first(x)
    h.register_hook(lambda gradient: 2 * gradient)
    return m.last(h)


def checkpoints(m, x):
    return torch.utils.checkpoint.checkpoint(lambda h: m.last(h.tanh()), m.first(x), use_reentrant=True)


def raises(_model, _x):
    raise KeyError("no such thing")


def overflows(m, x):
    return m.last(m.first(x) * 1e200 * 1e200)


def gives_infinity(m, x):
    return m.last(m.first(x)) / 0.0


class Sign(torch.autograd.Function):
    """A surrogate gradient."""

    @staticmethod
    def forward(_ctx, x):
        return x.sign()

    @staticmethod
    def backward(_ctx, gradient):
        return gradient


class Square(torch.autograd.Function):
    """With the backward that torch finds as well."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


OUTSIDE = nn.Parameter(randn(4, 4, seed=3))
HIDDEN = nn.Linear(4, 4).double()

REFUSED = {
    "branch": (
        branches,
        ValueError,
        r"captured.* at .*test_capture.py:\d+ \(if m.first\(x\).*values of tensors.*where",
    ),
    "loop": (loops, ValueError, r"test_capture.py:\d+ \(for _ in range.*depends on the values"),
    "assert": (asserts, ValueError, r"\(assert x.max\(\) < 100\).*depends on the values"),
    "numpy": (goes_to_numpy, ValueError, r"\(return .*numpy\(\).*\): torch.export says .*Rewrite this operation"),
    "inputs": (writes_to_inputs, ValueError, r"into its inputs in place: `inputs_0` at .*\(h \+= 1\).*new tensors"),
    "parameters": (writes_to_parameters, ValueError, "into its parameters as it runs: `first.weight`.*as a new tensor"),
    "data": (writes_to_data, ValueError, r"writes to the .data of a tensor, or differentiates.*Compute changed"),
    "dropout": (drops, ValueError, r"random numbers \(dropout\) at .*test_capture.py:\d+ \(return functional.*eval"),
    "randn": (draws, ValueError, r"random numbers \(randn_like\) at .*\(return m.last\(x\) \+ torch.randn_like"),
    "numpy-random": (draws_from_numpy, ValueError, "other outputs each time: it is random"),
    "autograd": (differentiates, ValueError, "writes to the .data of a tensor, or differentiates"),
    "number": (gives_a_number, ValueError, "must give a floating-point tensor.*got no tensor. Wrap it"),
    "classes": (gives_classes, ValueError, "must give a floating-point tensor.*got torch.int64"),
    "no-grad": (runs_without_gradients, ValueError, "outputs that no gradient flows from.*Remove torch.no_grad"),
    "tensor-hook": (hooks_a_tensor, ValueError, "respect to first.weight, first.bias is not that.*hooks on tensors"),
    "surrogate": (
        lambda m, x: m.last(Sign.apply(m.first(x))),
        ValueError,
        r"applies `Sign` at .*test_capture.py:\d+, an autograd Function with a backward of its own.*detach",
    ),
    "checkpoint": (checkpoints, ValueError, "cannot be differentiated: RuntimeError: .*use_reentrant=False"),
    "raises": (raises, ValueError, r"fails on these inputs \(torch.float64 of shape \(3, 4\).*raise KeyError.*no such"),
    "closure": (
        lambda m, x: m.last(x @ OUTSIDE),
        ValueError,
        r"past its registered submodules \(one of shape \(4, 4\)",
    ),
    "outside": (lambda m, x: m.last(HIDDEN(x)), ValueError, r"past its registered.*one of shape \(4,\)"),
    "overflow": (overflows, ValueError, r"`states\['last'\]` must be finite; got inf at axis 0 0.*diverges"),
    "infinity": (gives_infinity, ValueError, "`outputs` must be finite; got -?inf at axis 0 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_forward_pass_is_refused_with_the_operation_and_its_place(name):
    function, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        kp.linearise(made(function), X)


@pytest.mark.parametrize("option", ["scale_grad_by_freq", "sparse"])
def test_embeddings_with_other_gradients_are_refused(option):
    model = seeded(nn.Embedding(5, 3, **{option: True}))
    with pytest.raises(ValueError, match=r"an embedding .*`scale_grad_by_freq` or `sparse`.*Set both to False"):
        kp.linearise(model, torch.tensor([[1, 2, 2]]))


def training(module: nn.Module) -> nn.Module:
    return module.double().train()


def tampered(model: nn.Module, name: str, value: float) -> nn.Module:
    with torch.no_grad():
        model.get_parameter(name).flatten()[1] = value
    return model


def complex_parameter() -> nn.Module:
    model = made()
    model.extra = nn.Parameter(torch.ones(2, dtype=torch.complex128))
    return model


def mixed() -> nn.Module:
    model = made()
    model.last.float()
    return model


def attention_with_dropout() -> nn.Module:
    model = training(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True))
    for name in ("dropout", "dropout1", "dropout2"):
        getattr(model, name).p = 0.0  # those that are modules; attention has one of its own
    return model


def packed() -> Any:
    return nn.utils.rnn.pack_padded_sequence(randn(2, 3, 4, seed=1), torch.tensor([3, 2]), batch_first=True)


def bidirectional() -> nn.Module:
    return seeded(nn.GRU(4, 3, batch_first=True, bidirectional=True))


NAN, INF = X.clone(), X.clone()
NAN[1, 2], INF[2, 3] = torch.nan, torch.inf

ERRORS = {
    "dropout": (
        lambda: kp.linearise(training(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.1))), X),
        "`1` applies dropo",
    ),
    "attention": (lambda: kp.linearise(attention_with_dropout(), X[None]), r"\(dropout\) in module `self_attn`.*eval"),
    "batch-norm": (
        lambda: kp.linearise(training(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))), X),
        "`1` is a batch norm in training mode",
    ),
    "functional-batch-norm": (
        lambda: kp.linearise(with_buffer(normalises_in_training), X),
        r"into its buffers as it runs: `count` at .*\(return functional.batch_norm",
    ),
    "buffer": (lambda: kp.linearise(with_buffer(writes_to_buffers), X), r"into its buffers.*`count` at .*\+= 1.*eval"),
    "plain-list": (
        lambda: kp.linearise(made(lambda m, x: m.last(m.parts[0](x)), parts=[nn.Linear(4, 4).double()]), X),
        "past its registered submodules.*nn.ModuleList",
    ),
    "plain-tensor": (
        lambda: kp.linearise(made(lambda m, x: m.last(x @ m.w), w=randn(4, 4, seed=1).requires_grad_()), X),
        "past its registered submodules",
    ),
    "frozen": (lambda: kp.linearise(made().requires_grad_(False), X), "no trainable parameter.*requires_grad_"),
    "mixed": (lambda: kp.linearise(mixed(), X), "share one dtype.*got torch.float32 on cpu, torch.float64 on cpu"),
    "nan-weight": (
        lambda: kp.linearise(tampered(made(), "last.weight", torch.nan), X),
        "`last.weight`.*NaN at axis 0 0",
    ),
    "lazy": (lambda: kp.linearise(nn.Sequential(nn.LazyLinear(2)), X), "`0.weight` has no values yet.*lazy"),
    "meta-model": (lambda: kp.linearise(made().to("meta"), X), "`first.weight` has no values yet"),
    "nan": (lambda: kp.linearise(made(), NAN), "`inputs` must be finite; got NaN at axis 0 1, axis 1 2"),
    "inf": (
        lambda: kp.linearise(made(lambda m, a, x: m.last(x)), (X, INF)),
        r"`inputs\[1\]`.*inf at axis 0 2, axis 1 3",
    ),
    "nan-named": (lambda: kp.linearise(made(), {"x": NAN}), r"`inputs\['x'\]` must be finite"),
    "minus-inf": (
        lambda: kp.linearise(made(), torch.where(X > 0, -torch.inf, X)),
        r"`states\['first'\]` must be finite",
    ),
    "empty": (lambda: kp.linearise(made(), X[:0]), r"at least one trial; got an empty tensor of shape \(0, 4\)"),
    "meta": (lambda: kp.linearise(made(), X.to("meta")), "`inputs` must hold values; got a tensor on the meta device"),
    "packed": (lambda: kp.linearise(bidirectional(), packed()), "packed on the recurrent route only.*padded batch"),
    "integer": (lambda: kp.linearise(made(), X.long()), "fails on these inputs.*whole numbers.*without an embedding"),
    "dtype": (lambda: kp.linearise(made(), X.float()), "fails on these.*parameters are torch.float64: convert the inp"),
    "shape": (
        lambda: kp.linearise(made(), X[:, :3]),
        r"fails on these inputs \(torch.float64 of shape \(3, 3\) on cpu",
    ),
    "two": (lambda: kp.linearise(seeded(nn.Linear(4, 2)), (X, X)), "fails on.*A tuple is taken as several arguments"),
    "nothing": (lambda: kp.linearise(made(), None), r"fails on these inputs \(no tensor\)"),
    "autocast": (
        lambda: kp.linearise(made(lambda m, x: autocast(m, x)).float(), X.float()),
        "weight site whose result is torch.float32.*Turn torch.autocast off",
    ),
    "parallel": (lambda: kp.linearise(nn.DataParallel(made()), X), "got DataParallel, a wrapper.*Give `model.module`"),
    "unknown-state": (
        lambda: kp.linearise(made(), X, states=["first", "third"]),
        "nothing is called 'third'. Modules: 'first', 'last'; sites: 'first', 'last'",
    ),
    "no-state": (lambda: kp.linearise(made(), X, states=[]), "`states` must hold at least one name; got none"),
    "memory": (lambda: kp.linearise(made(), X, memory=100), r"`memory` must be at least \d+ bytes.*got 100"),
    "no-memory": (lambda: kp.linearise(made(), X, memory=0), "`memory` must be a positive whole number; got 0"),
    "route": (lambda: kp.linearise(made(), X, route="jax"), "`route` must be one of 'auto', 'recurrent', 'graph'"),
    "recurrent": (lambda: kp.linearise(made(), X, route="recurrent"), "No recurrence is known of a Model"),
    "states-core": (
        lambda: kp.linearise(made(), X, core="first", states=["last"]),
        "`states` goes with the graph route",
    ),
    "graph-core": (
        lambda: kp.linearise(made(), X, core="first", route="graph"),
        "`core` goes with the recurrent route",
    ),
    "lengths": (lambda: kp.linearise(made(), X, lengths=torch.ones(3).long()), "`lengths` goes with the recurrent rou"),
    "parameters": (lambda: kp.linearise(made(), X, parameters={"a": X}), "`parameters` goes with a step that is a fun"),
    "function": (lambda: kp.linearise(torch.tanh, X, route="graph"), "takes a torch.nn.Module; got builtin_function"),
}


def autocast(m, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.last(m.first(x))


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_gets_one_clear_error(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kp.linearise(made(), X.numpy()), "`inputs` must be a torch.Tensor; got ndarray"),
        (lambda: kp.linearise(made(), {"x": X.numpy()}), r"`inputs\['x'\]` must be a torch.Tensor; got ndarray"),
        (
            lambda: kp.linearise(complex_parameter(), X),
            "`extra` must be a real floating-point tensor; got torch.complex",
        ),
        (lambda: kp.linearise(made(), X, states=[3]), r"`states` must be a list of names.*got \[3\]"),
        (lambda: kp.linearise(made(), X, states=3), "`states` must be a list of names.*got 3"),
    ],
)
def test_wrong_types_are_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (torch.jit.script, "got one in TorchScript. Give it before torch.jit.script"),
        (torch.compile, "got OptimizedModule, a wrapper of one. Give `model._orig_mod`"),
    ],
)
def test_compiled_models_are_refused(wrap, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its own parts deprecated
        model = wrap(seeded(nn.Linear(4, 2)))
    with pytest.raises(ValueError, match=message):
        kp.linearise(model, X)


# What goes through, against autograd of the whole model


class Straight(nn.Module):
    def forward(self, x):
        return x + (x.round() - x).detach()


@torch.no_grad()
def constant_parts(m, x):
    return m.first(x), {"twice": 2 * m.first(x)}


def mixes_constants(m, x):
    one, others = constant_parts(m, x)
    return m.last(one * others["twice"] * m.first(x))


def reads_a_number(m, x):
    h = m.first(x)
    return m.last(h * h.max().item())


def selects(m, x):
    h = m.first(x)
    return m.last(h[h[:, 0] > 0])


def starts_anew(m, x):
    return m.last(m.first(x).detach().requires_grad_())


@dataclasses.dataclass
class Answer:
    label: Tensor
    scores: Tensor
    more: Any = None


def checkpointed(m, x):
    return torch.utils.checkpoint.checkpoint(lambda h: m.last(m.first(h).tanh()), x, use_reentrant=False)


def attends(m, x):
    """As GPT-2 of transformers does: its view fails where layouts differ between a fused kernel and its operations."""
    heads = m.first(x).reshape(3, 2, 2, 1).transpose(1, 2)
    h = functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True).transpose(1, 2).contiguous()
    h = h.reshape(3, 2, 2).contiguous().view(-1, 2)
    return m.last(h.reshape(3, 4))


TAKEN = {
    "attention": attends,
    "straight-through": lambda m, x: m.last(Straight()(m.first(x))),
    "no-grad": mixes_constants,
    "item": reads_a_number,
    "selection": selects,
    "detached": starts_anew,
    "checkpoint": checkpointed,
    "own-backward-that-is-right": lambda m, x: m.last(Square.apply(m.first(x))),
    "parameter-first": lambda m, x: (m.last.weight, m.last(m.first(x))),
    "others-first": lambda m, x: (3, None, "a", m.last(x).argmax(), m.last(m.first(x)), x),
    "dict": lambda m, x: {"scores": m.last(m.first(x)), "inputs": x},
    "fourier": lambda m, x: torch.fft.fft(m.last(m.first(x))).abs(),
}


@pytest.mark.parametrize("name", TAKEN)
def test_jacobian_of_the_output_is_autograds(name):
    model = made(TAKEN[name])
    assert agrees(model, X)


def test_layouts_in_memory_do_not_matter():
    """Where the weights are channels last, patches are a view of what a convolution gives."""
    model = made(lambda m, x: m.last(m.first(m.patches(x).permute(0, 2, 3, 1).reshape(-1, 4))))
    model.patches = nn.Conv2d(3, 4, 2, stride=2).double().to(memory_format=torch.channels_last)
    assert agrees(model, randn(2, 3, 4, 4, seed=1))


def test_inputs_first_and_dataclasses():
    model = made(lambda m, x: (x, m.last(m.first(x))))
    lin = kp.linearise(model, X)
    torch.testing.assert_close(lin.readout.outputs, X)
    assert not jacobian(lin).any()
    model = made(lambda m, x: Answer(m.last(x).argmax(), m.last(m.first(x)), {"more": [x]}))
    assert agrees(model, X, output=lambda answer: answer.scores)


def test_arguments_by_place_and_by_name():
    model = made(lambda m, a, b=1.0, *, c=0.0: m.last(m.first(a)) * b + c)
    c = randn(3, 2, seed=2)
    one = kp.linearise(model, {"c": c, "b": 3.0, "a": X})
    other = kp.linearise(model, (X, 3.0))
    torch.testing.assert_close(one.readout.outputs, model(X, 3.0, c=c).detach())
    torch.testing.assert_close(jacobian(one), jacobian(other))
    batch = made(lambda m, batch: m.last(m.first(batch["x"])))
    torch.testing.assert_close(kp.linearise(batch, ({"x": X},)).readout.outputs, batch({"x": X}).detach())


def test_masks_with_minus_infinity_are_fine():
    model = seeded(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    mask = nn.Transformer.generate_square_subsequent_mask(3, dtype=torch.float64)
    assert agrees(model, randn(2, 3, 4, seed=1), mask)


def test_a_layer_used_twice_is_right():
    model = made(lambda m, x: m.last(m.first(m.first(x).tanh()).tanh()))
    lin = kp.linearise(model, X)
    assert [part.name for part in lin.space.parts] == ["first", "first@1", "last"]
    assert agrees(model, X, lin=lin)
    dense = dense_jacobian(model, X)
    torch.testing.assert_close(to_dense(kp.Ntk(lin, readout="outputs")), dense @ dense.mT, **CLOSE)


STATES = {
    "one-name": ("last", ["last"]),
    "all-calls": (["first"], ["first", "first@1"]),
    "one-call": (["first@1"], ["first@1"]),
    "wildcard": (["*"], ["block", "block.0", "first", "first@1", "last"]),
    "wildcard-below": (["block.*"], ["block.0", "block.1"]),
    "in-order-of-names": (("last", "block"), ["last", "block"]),
    "twice": (["last", "l*"], ["last"]),
    "generator": ((name for name in ("last",)), ["last"]),
    "node": (["tanh*"], ["tanh", "tanh_1"]),
}


@pytest.mark.parametrize("name", STATES)
def test_states_by_name(name):
    wanted, expected = STATES[name]
    model = made(
        lambda m, x: m.last(m.first(m.first(m.block(x)).tanh())), block=nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    )
    lin = kp.linearise(model, X, states=wanted)
    assert [part.name for part in lin.space.parts] == expected
    assert agrees(model, X, lin=lin)


def test_states_of_modules_are_their_outputs():
    model = made(lambda m, x: m.last(m.first(m.block(x))), block=nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    lin = kp.linearise(model, X, states="block")
    torch.testing.assert_close(lin.space.split(lin.states)["block"], model.block(X).detach())


def test_unused_parameters_are_named_and_have_columns_of_zeros():
    model = made(lambda m, x: m.first(x))
    with pytest.warns(UserWarning, match="last.weight, last.bias of `model` act on none of its outputs") as caught:
        lin = kp.linearise(model, X)
    if not hasattr(kp.linearise, "__wrapped__"):  # the checks of types in tests add frames
        assert caught[0].filename == __file__
    unused = lin.parameters.split(to_dense(kp.ParameterKernel(lin).jacobian))["last.weight"]
    assert not unused.any()
    assert agrees(model, X, lin=lin)


def test_frozen_parameters_do_not_count():
    model = made()
    model.first.requires_grad_(False)
    lin = kp.linearise(model, X)
    assert [part.name for part in lin.parameters.parts] == ["last.weight", "last.bias"]
    assert agrees(model, X, lin=lin)


def weighs(m, x):
    queries, keys, values = (h.reshape(1, 1, 3, 4) for h in (m.first(x), m.key(x), x))
    return m.last(functional.scaled_dot_product_attention(queries, keys, values)[0, 0])


def test_gradients_that_cancel_are_no_reason_to_refuse():
    """The bias of a key shifts all scores alike, so its gradient is rounding and nothing else."""
    model = made(weighs, key=nn.Linear(4, 4)).float()
    assert kp.linearise(model, randn(3, 4, seed=1).float()).space.dtype == torch.float32
    assert agrees(made(weighs, key=nn.Linear(4, 4)), X)


BEYOND = {
    "bidirectional": lambda: (nn.LSTM(4, 3, batch_first=True, bidirectional=True), {}),
    "projection": lambda: (nn.LSTM(4, 3, batch_first=True, proj_size=2), {}),
    "by-name": lambda: (nn.GRU(4, 3, batch_first=True), {"route": "graph"}),
}


@pytest.mark.parametrize("name", BEYOND)
def test_recurrent_networks_through_their_graph(name):
    model, keywords = BEYOND[name]()
    seeded(model)
    inputs = randn(2, 3, 4, seed=1)
    assert agrees(model, inputs, lin=kp.linearise(model, inputs, **keywords))


# What is left alone


class Recorder:
    """Keeps what it sees, as users' hooks do."""

    def __init__(self) -> None:
        self.last, self.seen, self.count = None, [], 0

    def hook(self, _module, _inputs, output):
        self.last = output
        self.seen.append(output)
        self.count += 1


class Called(Recorder):
    def __call__(self, module, inputs, output):
        self.hook(module, inputs, output)


COLLECTED: list[Tensor] = []


def collect(_module, _inputs, output):
    COLLECTED.append(output)


def collect_in(seen, _module, _inputs, output):
    seen.append(output)


def test_hooks_act():
    model = made()
    model.first.register_forward_hook(lambda module, inputs, output: 2 * output)
    model.last.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    model.register_forward_hook(lambda module, inputs, output: {"scores": output, "inputs": inputs})
    assert agrees(model, X)


def test_what_hooks_keep_is_as_before():
    """A hook that records would else find tensors without values in the user's own list."""
    model, kept, recorder, called, total = made(), {}, Recorder(), Called(), 0

    def count(_module, _inputs, output):
        nonlocal total
        total += 1
        kept["first"] = output

    for hook in (count, collect, recorder.hook, called, functools.partial(collect_in, recorder.seen)):
        model.first.register_forward_hook(hook)
    model.last.register_full_backward_hook(lambda module, inputs, outputs: kept.update(gradient=outputs))
    COLLECTED.clear()
    model(X)

    def memory() -> list[Any]:
        return [total, recorder.count, called.count, *kept.items(), *COLLECTED, *recorder.seen, *called.seen]

    before = memory()
    assert len(before) == 8
    kp.linearise(model, X)
    after = memory()
    assert len(after) == len(before)
    assert after[:3] == before[:3]
    assert after[3][1] is before[3][1]
    assert all(a is b for a, b in zip(after[4:], before[4:], strict=True))
    assert recorder.last is recorder.seen[-1]


def flags() -> dict[str, Any]:
    """Torch's global settings that a capture could touch."""
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": torch.get_default_dtype(),
        "filters": list(warnings.filters),
        "precision": torch.get_float32_matmul_precision(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "sdp": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.cuda.cudnn_sdp_enabled(),
        ),
        "fastpath": torch.backends.mha.get_fastpath_enabled(),
        "threads": torch.get_num_threads(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly": torch.is_anomaly_enabled(),
        "dynamo": dict(torch._dynamo.config.get_config_copy()),
        "streams": (sys.stdout, sys.stderr),
    }


def snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "flags": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "ids": [id(t) for t in (*model.parameters(), *model.buffers())],
        "versions": [t._version for t in (*model.parameters(), *model.buffers())],
    }


def contrary() -> nn.Module:
    """A model with gradients, modes and memories of its own."""
    model = made(
        lambda m, x: m.remember(m.norm(m.last(m.first(x)))),
        norm=nn.BatchNorm1d(2),
        memory=[],
    )
    model.remember = lambda y: (model.memory.append(len(y)), y)[1]
    model.norm(X[:, :2])
    model.last.weight.requires_grad_(False)
    model(X).sum().backward()
    model.first.train()
    return model


def test_model_and_globals_come_back_bit_identical():
    model = contrary()
    kp.linearise(model, X)  # imports what torch.export needs
    model.memory.clear()
    gradient, values = model.first.weight.grad.clone(), {n: v.clone() for n, v in model.state_dict().items()}
    before, settings = snapshot(model), flags()
    state, numpy_state = torch.get_rng_state(), repr(np.random.get_state())
    inputs = X.clone()
    lin = kp.linearise(model, inputs)
    to_dense(kp.Ntk(lin, readout="outputs"))
    assert snapshot(model) == before
    assert flags() == settings
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(np.random.get_state()) == numpy_state
    assert torch.equal(model.first.weight.grad, gradient)
    assert model.last.weight.grad is None
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert torch.equal(inputs, X)


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_stay_where_a_forward_pass_writes_to_them(frozen):
    model = made(writes_to_parameters)
    model.first.requires_grad_(not frozen)
    before = model.first.weight.detach().clone()
    with pytest.raises(ValueError, match="into its parameters"):
        kp.linearise(model, X)
    assert torch.equal(model.first.weight, before)


def test_random_states_stay_where_a_forward_pass_draws():
    models = [made(function) for function in (draws, draws_from_numpy)]
    before = (torch.get_rng_state(), repr(np.random.get_state()))
    for model in models:
        with pytest.raises(ValueError, match="random"):
            kp.linearise(model, X)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert repr(np.random.get_state()) == before[1]


def test_linearisation_is_a_snapshot():
    """Training that goes on in place, or inputs that are written over, leave it as it was."""
    model, inputs = made(), X.clone()
    lin = kp.linearise(model, {"x": inputs})
    operators = [kp.Propagator(lin), kp.ParameterKernel(lin).jacobian, kp.Ntk(lin, readout="outputs").jacobian]
    before = [to_dense(operator) for operator in operators]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    inputs.zero_()
    for operator, matrix in zip(operators, before, strict=True):
        torch.testing.assert_close(to_dense(operator), matrix, rtol=0, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_under_any_gradient_mode(mode):
    model = made()
    expected = dense_jacobian(model, X)
    with mode():
        lin = kp.linearise(model, X.clone())
        found = jacobian(lin)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_default_dtype_does_not_matter():
    model, other = made(), made().float()
    expected = jacobian(kp.linearise(model, X))
    torch.set_default_dtype(torch.float64)
    try:
        torch.testing.assert_close(jacobian(kp.linearise(model, X)), expected)
        assert kp.linearise(other, X.float()).space.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


QUIET = """
import random, warnings
warnings.simplefilter("error")
import torch
import kpflow as kp

class Branch(torch.nn.Linear):
    def forward(self, x):
        random.random()
        return super().forward(x) if x.sum() > 0 else x

settings = torch.get_default_dtype(), torch.is_grad_enabled(), list(warnings.filters), random.getstate()
kp.linearise(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)), torch.ones(2, 3))
try:
    kp.linearise(Branch(3, 3), torch.ones(2, 3))
except ValueError as error:
    assert "depends on the values" in str(error)
assert settings == (torch.get_default_dtype(), torch.is_grad_enabled(), list(warnings.filters), random.getstate())
"""


def test_nothing_is_printed_logged_or_warned_of_in_a_fresh_process():
    done = subprocess.run(
        [sys.executable, "-c", QUIET], capture_output=True, encoding="utf-8", timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_torch_export_is_called_once(monkeypatch):
    calls = []
    export = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *a, **k: (calls.append(1), export(*a, **k))[1])
    kp.linearise(made(), X)
    assert len(calls) == 1
