"""States that are modules' outputs: P from kicks that forward hooks give, J with outputs that hooks hold fast."""

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import kpflow as kp
from graph_models import graph_case, linearised_graph
from helpers import close
from kpflow.operators import to_dense

TOLERANCE = 1e-10

NAMED = {
    "mlp-positions": ["0", "2", "4"],
    "cnn-average": ["first", "norm", "third", "second", "last"],
    "transposed2d": ["0", "2", "4"],
    "row-norms": ["0", "2", "8"],
    "parametrisations": ["0", "2", "4", "6", "8"],
    "encoder-causal": ["body.layers.0", "body.layers.1.linear1", "body.norm"],
    "decoder-layer-post": ["body.norm1", "body.norm2", "body.linear2"],
    "gpt2": ["transformer.wte", "transformer.h.1.mlp"],
    "Mamba": ["mix", "expand", "contract"],
    "S4D": ["0", "1", "3"],
}
"""Models whose states are the outputs of these modules, each called once."""


@contextlib.contextmanager
def hooks(model: nn.Module, names: list[str], given: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Give the outputs of modules another value on their way."""
    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda _, __, output, name=name: given(name, output)) for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Hooked:
    """The states of named modules, as functions of kicks (tapped) and of states and parameters (cut)."""

    def __init__(self, name: str) -> None:
        self.names = NAMED[name]
        self.case = graph_case(name)
        self.values = {n: p.detach() for n, p in self.case.model.named_parameters() if p.requires_grad}
        self.states: dict[str, Tensor] = {}
        self.run(self.values, lambda name, output: self.states.setdefault(name, output.detach().clone()))

    def run(self, values: dict[str, Tensor], given: Callable[[str, Tensor], Tensor]) -> None:
        inputs = self.case.inputs
        arguments, keywords = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
        with hooks(self.case.model, self.names, given):
            functional_call(self.case.model, values, arguments, keywords)

    def tapped(self, kicks: dict[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def kicked(name: str, output: Tensor) -> Tensor:
            found[name] = output + kicks[name]
            return found[name]

        self.run(self.values, kicked)
        return {name: found[name] for name in self.names}

    def cut(self, states: dict[str, Tensor], values: dict[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def held(name: str, output: Tensor) -> Tensor:
            found[name] = output
            return states[name]

        self.run(values, held)
        return {name: found[name] for name in self.names}


def matrix(blocks: dict[str, dict[str, Tensor]], rows: dict[str, Tensor], columns: dict[str, Tensor]) -> Tensor:
    return torch.cat(
        [
            torch.cat([blocks[r][c].reshape(row.numel(), column.numel()) for c, column in columns.items()], dim=1)
            for r, row in rows.items()
        ]
    )


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of vmap in jacrev, through fused kernels
@pytest.mark.parametrize("name", NAMED)
def test_named_states_agree_with_hooks(name):
    """S, P, ∂F/∂S and J, dense; and the NTK of the outputs does not depend on what the states are."""
    hooked = Hooked(name)
    lin = kp.linearise(hooked.case.model, hooked.case.inputs, states=NAMED[name])
    assert [part.name for part in lin.space.parts] == NAMED[name]
    order = {path: hooked.states[path] for path in NAMED[name]}
    close(lin.states, torch.cat([state.flatten() for state in order.values()]), TOLERANCE)
    kicks = {path: torch.zeros_like(state) for path, state in order.items()}
    close(to_dense(kp.Propagator(lin)), matrix(jacrev(hooked.tapped)(kicks), order, order), TOLERANCE)
    of_states, of_parameters = (jacrev(hooked.cut, argnums=i)(order, hooked.values) for i in (0, 1))
    step = matrix(of_states, order, order)
    close(to_dense(kp.Propagator(lin).inverse), torch.eye(len(step), dtype=step.dtype) - step, TOLERANCE)
    J = matrix(of_parameters, order, hooked.values)
    close(to_dense(kp.ParameterKernel(lin).jacobian.T), J.mT, TOLERANCE)
    close(to_dense(kp.ParameterKernel(lin)), J @ J.mT, TOLERANCE)
    ours, all_sites = (to_dense(kp.Ntk(of, readout="outputs")) for of in (lin, linearised_graph(name)))
    close(ours, all_sites, TOLERANCE)


def test_the_output_as_the_only_state():
    """P is the identity, K the kernel of the outputs."""
    case = graph_case("mlp")
    lin = kp.linearise(case.model, case.inputs, states="output")
    assert [part.name for part in lin.space.parts] == ["output"]
    torch.testing.assert_close(to_dense(kp.Propagator(lin)), torch.eye(lin.space.size, dtype=lin.states.dtype))
    expected = to_dense(kp.Ntk(kp.linearise(case.model, case.inputs), readout="outputs"))
    torch.testing.assert_close(to_dense(kp.ParameterKernel(lin)), expected, rtol=1e-10, atol=1e-12)
