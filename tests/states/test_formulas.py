"""Known modules: what their formulas leave out, and when a module is not taken for one of a known kind."""

import pytest
import torch
from torch import nn

import kpflow as kp
from helpers import without_annotation_checks
from kpflow.operators import to_dense
from kpflow.states.cells import LowRankRNN, RateRNN
from kpflow.states.derivatives import entrywise_slope, is_same
from models import randn, seeded, trainable

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
X = randn(2, 5, 3, seed=1)
KNOWN = {
    "GRU": lambda: nn.GRU(3, 4, batch_first=True),
    "LSTM": lambda: nn.LSTM(3, 4, batch_first=True),
    "GRUCell": lambda: nn.GRUCell(3, 4),
    "rate": lambda: RateRNN(3, 4, bias=True),
    "low-rank": lambda: LowRankRNN(3, 4, 2, bias=True),
}


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_that_the_forward_pass_does_not_use_have_zero_columns(name):
    plain, more = seeded(KNOWN[name]()), KNOWN[name]().double()
    more.load_state_dict(plain.state_dict())
    more.extra = nn.Parameter(torch.ones(2, dtype=torch.float64))
    more.head = nn.Linear(4, 1).double()
    lin = kp.linearise(more, X)
    named = lin.parameters.split(to_dense(kp.Ntk(lin).jacobian))
    assert set(named) == {*trainable(plain), "extra", "head.weight", "head.bias"}
    assert not any(named[key].any() for key in ("extra", "head.weight", "head.bias"))
    before = kp.linearise(plain, X)
    torch.testing.assert_close(lin.states, before.states)
    torch.testing.assert_close(to_dense(kp.Ntk(lin)), to_dense(kp.Ntk(before)), **CLOSE)


def test_parameter_inside_a_nonlinearity_is_refused():
    model = seeded(RateRNN(3, 4))
    model.gain = nn.Parameter(torch.ones(4, dtype=torch.float64))
    model.nonlinearity = lambda z: torch.tanh(model.gain * z)
    with pytest.raises(ValueError, match="`nonlinearity` must have no parameters of its own"):
        kp.linearise(model, X)
    model.gain.requires_grad_(False)
    kp.linearise(model, X)


def subclass(kind: type, name: str):
    """`kind` with a method of its own."""
    return type(
        "Mine", (kind,), {name: lambda self, *args, **keywords: 2 * getattr(kind, name)(self, *args, **keywords)}
    )


@pytest.mark.parametrize(
    ("kind", "arguments", "name"),
    [
        (RateRNN, (3, 4), "step"),
        (RateRNN, (3, 4), "forward"),
        (RateRNN, (3, 4), "__call__"),
        (LowRankRNN, (3, 4, 2), "step"),
        (nn.GRUCell, (3, 4), "forward"),
        (nn.LSTM, (3, 4), "permute_hidden"),
    ],
)
def test_subclass_that_acts_otherwise_is_not_taken_for_its_parent(kind, arguments, name):
    with pytest.raises(ValueError, match="No recurrence is known of a Mine"):
        kp.linearise(subclass(kind, name)(*arguments).double(), X, route="recurrent")


@pytest.mark.parametrize("name", ["forward", "step"])
def test_instance_that_acts_otherwise_is_not_taken_for_its_class(name):
    model = RateRNN(3, 4).double()
    own = getattr(model, name)
    setattr(model, name, lambda *args: 2 * own(*args))
    with pytest.raises(ValueError, match="No recurrence is known of a RateRNN"):
        kp.linearise(model, X, route="recurrent")


def test_subclass_that_acts_otherwise_goes_through_its_graph():
    model = subclass(RateRNN, "forward")(3, 4).double()
    outputs = kp.linearise(model, X).readout.outputs
    torch.testing.assert_close(outputs, model(X)[0] if isinstance(model(X), tuple) else model(X))
    torch.testing.assert_close(outputs, 2 * RateRNN.forward(model, X))


def test_subclass_with_other_initial_weights_is_known():
    class Mine(nn.GRU):
        def __init__(self) -> None:
            super().__init__(3, 4, batch_first=True, dtype=torch.float64)

        def reset_parameters(self):
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

    assert not kp.linearise(Mine(), X).states.any()


def softmax(z):
    return torch.softmax(z, dim=-1)


MIXING = {
    "softmax": softmax,
    "centred": lambda z: torch.tanh(z - z.mean(-1, keepdim=True)),
    "across-trials": lambda z: torch.tanh(z / (1 + z.square().mean(0, keepdim=True))),
    "slightly": lambda z: torch.tanh(z) + 1e-11 * z.flip(-1),
    "other-shape": lambda z: z.mean(-1, keepdim=True),
}


@pytest.mark.parametrize("name", MIXING)
def test_nonlinearity_that_mixes_units_is_refused(name):
    with pytest.raises(ValueError, match="`nonlinearity` must act entry by entry"):
        entrywise_slope(MIXING[name], randn(3, 2, 4, seed=1))


@pytest.mark.parametrize("convention", ["inside", "outside"])
def test_network_with_a_softmax_is_refused(convention):
    model = seeded(RateRNN(3, 4, nonlinearity=softmax, convention=convention))
    with pytest.raises(ValueError, match=r"`nonlinearity` must act entry by entry.*step"):
        kp.linearise(model, X)


def test_low_rank_network_with_a_softmax_is_refused():
    with pytest.raises(ValueError, match="`nonlinearity` must act entry by entry"):
        kp.linearise(seeded(LowRankRNN(3, 4, 2, nonlinearity=softmax)), X)


ENTRYWISE = {
    "tanh": (torch.tanh, lambda z: 1 - torch.tanh(z).square()),
    "relu": (torch.relu, lambda z: (z > 0).to(z.dtype)),
    "swish": (lambda z: z * torch.sigmoid(z), lambda z: torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z)))),
    "square": (torch.square, lambda z: 2 * z),
    "per-unit": (lambda z: z * torch.arange(4.0, dtype=z.dtype), lambda z: torch.arange(4.0).double().expand_as(z)),
    "identity": (lambda z: z, torch.ones_like),
    "constant": (torch.ones_like, torch.zeros_like),
    "sign": (torch.sign, torch.zeros_like),
    "detached-sign": (lambda z: torch.sign(z).detach(), torch.zeros_like),
    "round": (torch.round, torch.zeros_like),
    "step": (lambda z: (z > 0).to(z.dtype), torch.zeros_like),
}


@pytest.mark.parametrize("name", ENTRYWISE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slope_of_a_function_that_acts_entry_by_entry(name, dtype):
    function, slope = ENTRYWISE[name]
    value = (100 * randn(5, 3, 4, seed=1)).to(dtype)
    random = torch.get_rng_state()
    expected = slope(value).to(dtype)
    torch.testing.assert_close(entrywise_slope(function, value), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("phi", [torch.sign, torch.round, lambda z: (z > 0).to(z.dtype)])
@pytest.mark.parametrize("convention", ["inside", "outside"])
def test_network_of_steps_has_a_flat_recurrence(phi, convention):
    lin = kp.linearise(seeded(RateRNN(3, 4, alpha=0.5, nonlinearity=phi, convention=convention)), X)
    decay = torch.eye(4, dtype=torch.float64) / 2
    propagator = to_dense(kp.Propagator(lin)).reshape(2, 5, 4, 2, 5, 4)
    torch.testing.assert_close(propagator[0, 1, :, 0, 0], decay, **CLOSE)


def test_same_up_to_rounding():
    """Not by its bits: a sum on a GPU may run in another order each time."""
    one, whole = randn(5, seed=1), torch.arange(3)
    assert is_same(one, one * (1 + 1e-15))
    assert not is_same(one, one * (1 + 1e-12))
    assert not is_same(one, one[:4])
    assert is_same(one[:0], one[:0])
    assert is_same(one / 0, one / 0)
    assert is_same(whole, whole)
    assert not is_same(whole, whole + 1)


def test_random_nonlinearity_is_refused():
    model = seeded(RateRNN(3, 4, nonlinearity=lambda z: nn.functional.dropout(z, 0.5)))
    with pytest.raises(ValueError, match="`nonlinearity` must act entry by entry and without noise"):
        kp.linearise(model, X)


def test_nonlinearity_that_writes_into_its_argument_is_refused():
    model = seeded(RateRNN(3, 4, alpha=0.5, nonlinearity=nn.ReLU(inplace=True)))
    with pytest.raises(ValueError, match="`nonlinearity` must not write into its argument"):
        kp.linearise(model, X)


NOISY = {
    "inside": lambda width: RateRNN(width, 4, alpha=0.3, bias=True),
    "outside": lambda width: RateRNN(width, 4, alpha=0.3, convention="outside"),
    "low-rank": lambda width: LowRankRNN(width, 4, 2, alpha=0.3, bias=True),
}


@pytest.mark.parametrize("name", NOISY)
def test_recurrent_noise_is_an_input_of_each_unit(name):
    plain, more = seeded(NOISY[name](3)), seeded(NOISY[name](7))
    noise, initial = randn(2, 5, 4, seed=2), randn(2, 4, seed=3)
    joined = torch.cat([plain.weight_ih, torch.eye(4, dtype=torch.float64)], dim=1)
    more.load_state_dict({**plain.state_dict(), "weight_ih": joined})
    noisy = plain(X, initial, noise=noise)
    torch.testing.assert_close(noisy, more(torch.cat([X, noise], dim=2), initial), **CLOSE)
    torch.testing.assert_close(noisy[:, 0], plain.step(initial, X[:, 0], noise[:, 0]), **CLOSE)
    assert (noisy - plain(X, initial)).abs().min() > 0
    assert torch.equal(plain(X, noise=torch.zeros_like(noise)), plain(X))


@pytest.mark.parametrize("shape", [(2, 5, 1), (5, 4), (1, 5, 4)])
def test_recurrent_noise_is_there_for_each_trial_step_and_unit(shape):
    model, noise = seeded(RateRNN(3, 4)), torch.zeros(shape, dtype=torch.float64)
    with without_annotation_checks(), pytest.raises(ValueError, match=r"`noise` must have shape \(2, 5, 4\)"):
        model(X, noise=noise)


@pytest.mark.parametrize("by_name", [False, True])
def test_recurrent_noise_is_not_linearised(by_name):
    class Noisy(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.rnn, self.readout = RateRNN(3, 4), nn.Linear(4, 1)

        def forward(self, inputs):
            noise = torch.ones(*inputs.shape[:2], 4).double() if self.training else None
            return self.readout(self.rnn(inputs, noise=noise) if by_name else self.rnn(inputs, None, noise))

    model = seeded(Noisy())
    with pytest.raises(ValueError, match="`noise` must not be given to a RateRNN that is linearised"):
        kp.linearise(model.train(), X, core="rnn")
    lin = kp.linearise(model.eval(), X, core="rnn")
    torch.testing.assert_close(lin.states, model.rnn(X), **CLOSE)
