"""The graph route on its table of models: the identities of P and J, the states, the outputs and their NTK."""

import copy
import dataclasses
from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import kpflow as kp
from graph_cases import GraphCase
from graph_models import GRAPH_MODELS, graph_case, linearised_case, linearised_graph
from helpers import close
from kpflow.operators import to_dense
from kpflow.states.graph import GraphLinearisation
from models import randn

PLAIN = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.Conv1d, nn.Conv2d, nn.Conv3d)
PLAIN = (*PLAIN, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.BatchNorm1d, nn.BatchNorm2d)
"""Modules whose output is the state of their weight."""

BESIDE = {"table@1"}
"""States of a weight of such a module outside of it."""

ADDED = {
    "transformer.wpe",
    "bert.embeddings.position_embeddings",
    "bert.embeddings.token_type_embeddings",
}
"""Tables whose indices are constants: their state is the sum that they are added to, as for any learned positions."""


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def gradient(results: Sequence[Tensor], values: dict[str, Tensor], seeds: Sequence[Tensor]) -> Tensor:
    """Of Σ ⟨seed, result⟩ with respect to the values, flat."""
    found = torch.autograd.grad(
        [result for result in results if result.requires_grad],
        list(values.values()),
        [seed for result, seed in zip(results, seeds, strict=True) if result.requires_grad],
        retain_graph=True,
        materialize_grads=True,
    )
    return torch.cat([value.flatten() for value in found])


def check_identities(case: GraphCase, lin: GraphLinearisation) -> None:
    """P and P⁻¹, one from taps and one from cuts, undo each other; every adjoint is the adjoint."""
    P, q = kp.Propagator(lin), probes(lin.space.size, lin, 1)
    close(P(P.inverse(q)), q, case.tolerance)
    close(P.inverse(P(q)), q, case.tolerance)
    for op in (P, P.inverse, kp.ParameterKernel(lin).jacobian, kp.Ntk(lin).jacobian):
        u, v = probes(op.in_space.size, lin, 2), probes(op.out_space.size, lin, 3)
        close(op(u) @ v.mT, u @ op.T(v).mT, case.tolerance)


def probes(size: int, lin: GraphLinearisation, seed: int) -> Tensor:
    return randn(3, size, seed=seed).to(lin.states.dtype)


def check_outputs(case: GraphCase, lin: GraphLinearisation) -> None:
    """The outputs, their Jacobian and NTK, and the gradient of a loss, are those of the model itself."""
    y, values = case.outputs(), parameters_of(case.model)
    close(lin.readout.outputs, y, case.tolerance)
    ntk = kp.Ntk(lin, readout="outputs")
    units = torch.eye(y.numel(), dtype=y.dtype).reshape(y.numel(), *y.shape)
    jacobian = torch.stack([gradient([y], values, [unit]) for unit in units])
    close(ntk.jacobian.T(units), jacobian, case.tolerance)
    close(to_dense(ntk), jacobian @ jacobian.mT, case.tolerance)
    check_gradient(case, lin)


def check_gradient(case: GraphCase, lin: GraphLinearisation) -> None:
    """Jᵀ Pᵀ ∂L/∂S, and what the read-out's own parameters add, is what loss.backward() leaves in .grad."""
    y = case.outputs()
    target = randn(*y.shape, seed=4).to(y.dtype)
    (y - target).square().sum().backward()
    left = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters_of(case.model).values()]
    case.model.zero_grad(set_to_none=True)
    of_outputs = (2 * (y - target)).detach().unsqueeze(0)
    of_states = lin.readout.state_vjp(of_outputs)
    found = kp.ParameterKernel(lin).jacobian.T(kp.Propagator(lin).T(of_states)) + lin.readout.parameter_vjp(of_outputs)
    close(found[0], torch.cat([part.flatten() for part in left]), case.tolerance)


def check_states(case: GraphCase, lin: GraphLinearisation) -> None:
    """The states and (P J)ᵀ are those of the captured graph without taps or cuts, and J = P⁻¹ dS/dθ.

    P⁻¹ comes from cuts, dS/dθ from plain automatic differentiation, and J from what is known of each weight.
    """
    values = {name: value.detach().clone().requires_grad_() for name, value in parameters_of(case.model).items()}
    found = lin._graph.run(values, list(lin._nodes.values()))
    states = [found[node] for node in lin._nodes.values()]
    close(torch.cat([state.flatten() for state in states]), lin.states, case.tolerance)

    def pulled(block: Tensor) -> Tensor:
        rows = (list(lin.space.split(row).values()) for row in block)
        return torch.stack([gradient(states, values, seeds) for seeds in rows])

    q = probes(lin.space.size, lin, 5)
    close(kp.Ntk(lin).jacobian.T(q), pulled(q), case.tolerance)
    close(kp.ParameterKernel(lin).jacobian.T(q), pulled(kp.Propagator(lin).inverse.T(q)), case.tolerance)


def check_sites(case: GraphCase, lin: GraphLinearisation) -> None:
    """The states of plain layers are what forward hooks see, one for every call; which parameters are loose."""
    assert set(lin.loose) == set(case.loose)
    seen = hooked(case)
    parts = {name: value[0] for name, value in lin.space.split(lin.states[None]).items()}
    calls = Counter(name.partition("@")[0] for name in parts if name not in BESIDE)
    for name, outputs in seen.items():
        assert calls[name] == len(outputs), f"{name} has {calls[name]} states in {len(outputs)} calls"
        for call, output in enumerate(outputs):
            close(parts[f"{name}@{call}" if call else name].flatten(), output.flatten(), case.tolerance)


def hooked(case: GraphCase) -> dict[str, list[Tensor]]:
    """What the plain layers give, in order, by the name of their weight, which several of them may share."""
    names = {id(value): name.removesuffix(".weight") for name, value in parameters_of(case.model).items()}
    outputs: dict[str, list[Tensor]] = defaultdict(list)
    handles = []
    for path, module in case.model.named_modules():
        if type(module) in PLAIN or hasattr(module, "parametrizations"):
            name = names.get(id(module.weight), path if hasattr(module, "parametrizations") else None)
            if name and name not in ADDED:
                handles.append(module.register_forward_hook(lambda *a, name=name: outputs[name].append(a[2].detach())))
    case.outputs()
    for handle in handles:
        handle.remove()
    return outputs


CHECKS = (check_identities, check_outputs, check_states, check_sites)


@pytest.mark.parametrize("name", GRAPH_MODELS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_model(name, check):
    check(graph_case(name), linearised_graph(name))


@pytest.mark.parametrize("name", ["mlp", "cnn-max", "conv3d", "encoder-causal", "GRU-two", "gpt2"])
def test_float32(name):
    case = graph_case(name)
    inputs = pytree.tree_map(lambda x: x.float() if x.is_floating_point() else x, case.inputs)
    case = dataclasses.replace(case, model=copy.deepcopy(case.model).float(), inputs=inputs, tolerance=1e-4)
    lin = linearised_case(case)
    assert lin.states.dtype is torch.float32
    for check in CHECKS:
        check(case, lin)
