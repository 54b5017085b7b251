"""Uses of weights: what each pattern knows of an operation is the operation's Jacobian, and its Kronecker structure."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import kpflow as kp
from graph_models import linearised_graph
from helpers import close
from kpflow.operators import to_dense
from kpflow.states.patterns import PATTERNS, linear_use
from kpflow.states.uses import Derived, Factor, Gathered, Linear, Operand, Use, View
from models import randn

aten = torch.ops.aten
TOKENS = torch.tensor([[0, 3, 3], [1, 0, 4]])
CONV = {"stride": [2], "padding": [1], "dilation": [1], "transposed": False, "extra": [0], "groups": 1}


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation with the weight among its arguments.

    Args:
        target: The operation.
        shape: Of the weight.
        arguments: From the weight to all arguments.
        position: Which of them the weight is.
        spread: What the weight is before, which the operation sees spread over more axes.
    """

    target: Any
    shape: tuple[int, ...]
    arguments: Callable[[Tensor], tuple]
    position: int
    spread: Callable[[Tensor], Tensor] = lambda weight: weight

    def result(self, weight: Tensor) -> Tensor:
        found = self.target(*self.arguments(self.spread(weight)))
        return found if isinstance(found, Tensor) else found[0]


def convolution(axes: int, channels: int, shape: tuple[int, ...], bias: bool = False, **options) -> Operation:
    settings = {**{name: v * axes if isinstance(v, list) else v for name, v in CONV.items()}, **options}
    x = randn(2, channels, *(4, 5, 3)[:axes], seed=1)
    if bias:
        outputs = shape[0]
        kernel = randn(outputs, channels, *[2] * axes, seed=2)
        return Operation(aten.convolution.default, (outputs,), lambda b: (x, kernel, b, *settings.values()), 2)
    return Operation(aten.convolution.default, shape, lambda w: (x, w, None, *settings.values()), 1)


def norm(target: Any, shape: tuple[int, ...], position: int, x: Tensor, before: tuple, after: tuple) -> Operation:
    """A norm whose weight and bias are two arguments side by side."""
    other = randn(*shape, seed=4)

    def arguments(weight: Tensor) -> tuple:
        pair = (weight, other) if position == 0 else (other, weight)
        return (x, *before, *pair, *after)

    return Operation(target, shape, arguments, 1 + len(before) + position)


X, Y, Z = randn(3, 4, seed=1), randn(2, 3, 4, seed=2), randn(2, 4, 3, seed=3)
MEAN, VARIANCE = randn(3, seed=5), randn(3, seed=6).square() + 0.5
LAYER, GROUP, BATCH = (
    aten.native_layer_norm.default,
    aten.native_group_norm.default,
    aten._native_batch_norm_legit_no_training.default,
)

BAGS = {aten._embedding_bag.default, aten._embedding_bag_forward_only.default}
"""Tried through their modules in test_graph: the bare operation cannot be differentiated."""

OPERATIONS: dict[str, Operation] = {
    "mm-right": Operation(aten.mm.default, (4, 2), lambda w: (X, w), 1),
    "mm-right-transposed": Operation(aten.mm.default, (2, 4), lambda w: (X, w), 1, lambda w: w.mT),
    "mm-left": Operation(aten.mm.default, (2, 3), lambda w: (w, X), 0),
    "bmm-right": Operation(aten.bmm.default, (2, 4, 2), lambda w: (Y, w), 1),
    "bmm-right-shared": Operation(aten.bmm.default, (4, 2), lambda w: (Y, w), 1, lambda w: w.expand(2, 4, 2)),
    "bmm-left": Operation(aten.bmm.default, (2, 2, 3), lambda w: (w, Y), 0),
    "bmm-left-shared": Operation(aten.bmm.default, (2, 3), lambda w: (w, Y), 0, lambda w: w.expand(2, 2, 3)),
    "bmm-of-one": Operation(aten.bmm.default, (1, 4, 2), lambda w: (Y[:1], w), 1),
    "addmm-bias": Operation(aten.addmm.default, (2,), lambda w: (w, X, randn(4, 2, seed=7)), 0),
    "addmm-bias-column": Operation(aten.addmm.default, (3, 1), lambda w: (w, X, randn(4, 2, seed=7)), 0),
    "addmm-right": Operation(aten.addmm.default, (4, 2), lambda w: (X[:, :2], X, w), 2),
    "addmm-left": Operation(aten.addmm.default, (5, 3), lambda w: (randn(4, seed=7), w, X), 1),
    "add": Operation(aten.add.Tensor, (3, 4), lambda w: (Y, w), 1),
    "add-scalar": Operation(aten.add.Tensor, (), lambda w: (w, Y), 0),
    "add-spread": Operation(aten.add.Tensor, (3, 1), lambda w: (w, Y), 0, lambda w: w.expand(2, 3, 4)),
    "sub": Operation(aten.sub.Tensor, (3, 1), lambda w: (w, X), 0),
    "sub-from": Operation(aten.sub.Tensor, (2, 1, 4), lambda w: (Y, w), 1),
    "mul": Operation(aten.mul.Tensor, (4,), lambda w: (Y, w), 1),
    "mul-scalar": Operation(aten.mul.Tensor, (), lambda w: (w, X), 0),
    "mul-outer": Operation(aten.mul.Tensor, (2, 1, 1), lambda w: (w, X), 0),
    "mul-inner": Operation(aten.mul.Tensor, (3, 4), lambda w: (w, Y[:, :, :1]), 0),
    "mul-spread": Operation(
        aten.mul.Tensor, (4,), lambda w: (w, X[:, :1].expand(2, 3, 4)), 0, lambda w: w.expand(2, 3, 4)
    ),
    "div": Operation(aten.div.Tensor, (2, 3, 1), lambda w: (w, 2 + Y.square()), 0),
    "convolution-1d": convolution(1, 2, (3, 2, 3)),
    "convolution-2d-groups": convolution(2, 4, (2, 2, 2, 3), groups=2, padding=[0, 2], dilation=[2, 1]),
    "convolution-3d": convolution(3, 1, (2, 1, 2, 2, 1), padding=[1, 0, 0]),
    "convolution-transposed": convolution(1, 4, (4, 1, 3), transposed=True, groups=2, extra=[1]),
    "convolution-transposed-2d": convolution(2, 2, (2, 3, 2, 3), transposed=True, padding=[0, 1], dilation=[2, 1]),
    "convolution-bias": convolution(2, 2, (3,), bias=True),
    "layer-norm-weight": norm(LAYER, (4,), 0, Y, ([4],), (1e-5,)),
    "layer-norm-weight-axes": norm(LAYER, (3, 4), 0, Y, ([3, 4],), (1e-5,)),
    "layer-norm-bias": norm(LAYER, (4,), 1, Y, ([4],), (1e-5,)),
    "group-norm-weight": norm(GROUP, (4,), 0, Z, (), (2, 4, 3, 2, 1e-5)),
    "group-norm-bias": norm(GROUP, (4,), 1, Z, (), (2, 4, 3, 2, 1e-5)),
    "batch-norm-weight": norm(BATCH, (3,), 0, Y, (), (MEAN, VARIANCE, 0.1, 1e-5)),
    "batch-norm-bias": norm(BATCH, (3,), 1, Y, (), (MEAN, VARIANCE, 0.1, 1e-5)),
    "embedding": Operation(aten.embedding.default, (5, 2), lambda w: (w, TOKENS), 0),
    "index": Operation(aten.index.Tensor, (5, 2), lambda w: (w, [TOKENS - 2]), 0),
    "index-select": Operation(aten.index_select.default, (5, 2), lambda w: (w, 0, TOKENS[0]), 0),
}


def weight_of(operation: Operation) -> Tensor:
    return randn(1, *operation.shape, seed=8)[0]


def jacobian_of(operation: Operation) -> Tensor:
    """Dense, `[state, weight]`."""
    weight = weight_of(operation)
    found = torch.func.jacrev(operation.result)(weight)
    return found.reshape(operation.result(weight).numel(), weight.numel())


def found_of(operation: Operation) -> tuple[Callable[[Tensor], Tensor], Linear]:
    weight = weight_of(operation)
    arguments = operation.arguments(operation.spread(weight))
    found = linear_use(operation.target, arguments, operation.position, operation.result(weight))
    assert found is not None
    return found


def assembled(factor: Factor, rows: int, columns: int) -> Tensor:
    """⊕_g M_g ⊗ I, with its rows at `places` and its columns at `entries`."""
    result = factor.features.new_zeros(rows, columns)
    G, N, F = factor.features.shape
    for g in range(G):
        for u in range(factor.places.shape[2]):
            result[factor.places[:, g, u].reshape(N, 1), factor.entries[g, u].reshape(1, F)] += factor.features[g]
    return result


def units(*shape: int) -> Tensor:
    size = torch.Size(shape).numel()
    return torch.eye(size, dtype=torch.float64).reshape(size, *shape)


@pytest.mark.parametrize("name", OPERATIONS)
def test_pattern_is_the_jacobian_of_its_operation(name):
    operation = OPERATIONS[name]
    seen, linear = found_of(operation)
    block = torch.stack([seen(operation.spread(unit)) for unit in units(*operation.shape)])
    jacobian = jacobian_of(operation)
    close(linear.jvp(block).flatten(1).mT, jacobian)
    state = operation.result(weight_of(operation)).shape
    assert linear.jvp(block).shape[1:] == state
    q, w = randn(3, *state, seed=9), randn(2, *block.shape[1:], seed=10)
    pulled = linear.vjp(q)
    assert pulled.shape[1:] == block.shape[1:]
    close(pulled.reshape(3, -1) @ w.reshape(2, -1).mT, q.flatten(1) @ linear.jvp(w).flatten(1).mT)


@pytest.mark.parametrize("name", OPERATIONS)
def test_factor_is_the_kronecker_structure_of_its_pattern(name):
    """J is ⊕ M_g ⊗ I at `places` and `entries`, so J Jᵀ is ⊕ M_g M_gᵀ ⊗ I at `places`."""
    operation = OPERATIONS[name]
    seen, linear = found_of(operation)
    taken = seen(operation.spread(weight_of(operation))).shape
    jacobian = linear.jvp(units(*taken)).flatten(1).mT
    factor = linear.factor()
    G, N, _ = factor.features.shape
    assert factor.places.shape[:2] == (N, G)
    close(assembled(factor, *jacobian.shape), jacobian)
    assert len(factor.places.unique()) == factor.places.numel(), "two places are the same"
    gram = torch.zeros(len(jacobian), len(jacobian), dtype=torch.float64)
    for g in range(G):
        for u in range(factor.places.shape[2]):
            places = factor.places[:, g, u]
            gram[places[:, None], places] = factor.features[g] @ factor.features[g].mT
    close(gram, jacobian @ jacobian.mT)
    assert linear.nbytes > 0


def test_embedding_skips_its_row_of_padding():
    """Its gradient is zero there, though the state moves with it."""
    weight = randn(5, 2, seed=1)
    arguments = (weight, TOKENS, 3)
    found = linear_use(aten.embedding.default, arguments, 0, aten.embedding.default(*arguments))
    assert found is not None
    pulled = found[1].vjp(units(*TOKENS.shape, 2)).sum(0)
    assert torch.equal(pulled[:, 0], torch.tensor([2.0, 1, 0, 0, 1], dtype=torch.float64))
    assert not found[1].jvp(torch.ones(1, 5, 2, dtype=torch.float64))[0, TOKENS == 3].any()


def test_every_pattern_is_in_the_table():
    assert {operation.target for operation in OPERATIONS.values()} | BAGS == set(PATTERNS)


@pytest.mark.parametrize(
    ("target", "arguments", "position"),
    [
        (aten.sin.default, (X,), 0),
        (aten.div.Tensor, (X, X), 1),
        (aten.mul.Tensor, (X, 2.0), 0),
        (aten.div.Tensor, (X, 2.0), 0),
        (aten.convolution.default, (Z, randn(2, 4, 2, seed=1), None, [1], [0], [1], False, [0], 1), 0),
        (BATCH, (Y, MEAN, MEAN, MEAN, VARIANCE, 0.1, 1e-5), 3),
        (aten.index.Tensor, (Y, [TOKENS[0] % 2]), 0),
        (aten.index.Tensor, (X, [TOKENS[0] % 3, TOKENS[1] % 3]), 0),
        (aten.index.Tensor, (X, [torch.tensor([True, False, True])]), 0),
        (aten.index_select.default, (X, 1, TOKENS[0]), 0),
    ],
)
def test_what_is_not_known_to_be_linear_is_left_to_automatic_differentiation(target, arguments, position):
    result = target(*arguments)
    assert linear_use(target, arguments, position, result if isinstance(result, Tensor) else result[0]) is None


P = {"a": randn(3, 4, seed=1), "b": randn(2, seed=2)}

OPERANDS: dict[str, tuple[Operand, Callable[[dict[str, Tensor]], Tensor]]] = {
    "transposed": (View("a", (4, 3), (1, 4), 0), lambda p: p["a"].mT),
    "sliced": (View("a", (2, 2), (4, 2), 5), lambda p: p["a"][1:, 1::2]),
    "picked": (
        Gathered("a", torch.tensor([[5, 0], [5, 11]])),
        lambda p: p["a"].flatten()[torch.tensor([[5, 0], [5, 11]])],
    ),
    "computed": (Derived(lambda p: p["a"][:, :2] * p["b"].exp(), P), lambda p: p["a"][:, :2] * p["b"].exp()),
}


@pytest.mark.parametrize("name", OPERANDS)
def test_operand_is_a_function_of_parameters_with_its_derivative(name):
    operand, function = OPERANDS[name]
    values = {key: P[key] for key in operand.names}
    jacobian = torch.func.jacrev(function)(values)
    size = function(P).numel()
    for key in operand.names:
        directions = {k: torch.zeros(P[key].numel(), *P[k].shape, dtype=torch.float64) for k in P}
        directions[key] = units(*P[key].shape)
        close(operand.jvp(directions).flatten(1).mT, jacobian[key].reshape(size, -1))
    blocks = {k: torch.ones(size, *P[k].shape, dtype=torch.float64) for k in P}
    operand.add_vjp(units(*function(P).shape), blocks)
    for key, block in blocks.items():
        pulled = jacobian[key].reshape(size, *P[key].shape) if key in jacobian else torch.zeros_like(block)
        close(block - 1, pulled)  # it adds
    if operand.entries is not None:
        close(P["a"].flatten()[operand.entries], function(P))


def test_use_is_the_operation_after_the_operand():
    _, linear = found_of(OPERATIONS["mm-right-transposed"])
    use = Use(View("a", (4, 2), (1, 4), 0), linear)
    directions = {"a": randn(3, 2, 4, seed=3)}
    close(use.jvp(directions), X @ directions["a"].mT)
    blocks = {"a": torch.zeros(3, 2, 4, dtype=torch.float64)}
    q = randn(3, 3, 2, seed=4)
    use.add_vjp(q, blocks)
    close(blocks["a"], q.mT @ X)


@pytest.mark.parametrize(
    "name",
    ["mlp-positions", "cnn-average", "transposed2d", "tied-embedding", "einsum", "decoder-layer-pre", "LSTM-two"],
)
def test_sites_add_up_to_the_parameter_kernel(name):
    """K = J Jᵀ with J the sum over sites of ⊕ M_g ⊗ I, where each weight is entries of one parameter."""
    lin = linearised_graph(name)
    assert not lin.loose
    starts = dict(zip((part.name for part in lin.parameters.parts), _starts(lin.parameters), strict=True))
    jacobian = torch.zeros(lin.space.size, lin.parameters.size, dtype=torch.float64)
    for sites in lin.linear_sites().values():
        for site in sites:
            (parameter,) = site.parameters
            N, G, U = site.places.shape
            rows = site.places.permute(1, 2, 0)[..., None]  # [G, U, N, 1]
            columns = (starts[parameter] + site.entries)[:, :, None]  # [G, U, 1, F]
            values = site.features[:, None].expand(G, U, N, -1)
            flat = (rows * lin.parameters.size + columns).flatten()
            jacobian.view(-1).index_add_(0, flat, values.reshape(-1))
    close(to_dense(kp.ParameterKernel(lin).jacobian.T), jacobian.mT)
    close(to_dense(kp.ParameterKernel(lin)), jacobian @ jacobian.mT)


def _starts(space: kp.Space) -> list[int]:
    sizes = [part.size for part in space.parts]
    return [sum(sizes[:i]) for i in range(len(sizes))]
