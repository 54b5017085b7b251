"""Gram: F M Fᵀ of any F, what it refuses, and its estimates from one side."""

import re

import pytest
import torch

from helpers import check_operator, close, randn, without_annotation_checks
from kpflow import Space, estimate
from kpflow.operators import Dense, Diagonal, Function, Gram, Operator, to_dense

F = Dense(randn(5, 3, seed=1), (Space.of((3,), ("weight",)), Space.of((5,), ("trial",))))
M = randn(3, 3, seed=2)


class TestParts:
    def test_without_a_metric(self):
        gram = Gram(F)
        assert gram.jacobian is gram.factor is F
        assert gram.metric is gram.structure is None
        assert gram.in_space == gram.out_space == F.out_space
        assert gram.symmetric
        assert repr(gram) == "Gram: Space(trial 5, float64) → Space(trial 5, float64)"

    def test_with_a_metric(self):
        metric = Dense(M + M.mT, (F.in_space, F.in_space))
        gram = Gram(F, metric)
        assert gram.metric is metric
        assert gram.factor is F

    def test_a_tensor_is_a_diagonal(self):
        weights = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
        gram = Gram(F, weights)
        assert isinstance(gram.metric, Diagonal)
        assert gram.metric.in_space == F.in_space
        close(to_dense(gram), F.matrix @ weights.diag() @ F.matrix.mT)

    def test_the_names_of_the_metrics_axes_do_not_matter(self):
        check_operator(Gram(F, Dense(M + M.mT)), F.matrix @ (M + M.mT) @ F.matrix.mT)


def network() -> tuple[Operator, torch.Tensor]:
    """The Jacobian of a small network's outputs, by vjp and jvp, and as a matrix by jacrev."""
    x, w = randn(7, 4, seed=3), randn(4, 4, seed=4)

    def outputs(w: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ w) @ w[:, :3]

    _, vjp = torch.func.vjp(outputs, w)
    _, jvp = torch.func.vjp(lambda u: vjp(u)[0], torch.zeros(7, 3, dtype=torch.float64))
    jacobian = Function(
        lambda v: torch.func.vmap(jvp)(v)[0],
        lambda u: torch.func.vmap(vjp)(u)[0],
        Space.of((4, 4), ("unit", "weight")),
        Space.of((7, 3), ("trial", "output")),
    )
    return jacobian, torch.func.jacrev(outputs)(w).reshape(21, 16)


class TestEstimates:
    def test_the_kernel_of_a_jacobian_of_ones_own(self):
        jacobian, matrix = network()
        check_operator(Gram(jacobian), matrix @ matrix.mT)
        assert to_dense(Gram(jacobian)).allclose(to_dense(jacobian @ jacobian.T))

    @pytest.mark.parametrize("method", ["one-sided-reverse", "one-sided-forward"])
    def test_one_sided_takes_products_of_one_side(self, method):
        jacobian, matrix = network()
        forward = method == "one-sided-forward"

        def broken(_: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the other side was asked")

        one_side = Function(
            jacobian.forward if forward else broken,
            broken if forward else jacobian.backward,
            jacobian.in_space,
            jacobian.out_space,
        )
        found = estimate.trace(Gram(one_side), method=method, budget=400)
        exact = float(matrix.square().sum())
        assert abs(found.value - exact) < 4 * found.standard_error < 0.5 * exact
        with pytest.raises(ValueError, match=re.escape("a Gramian); got Function @ Function.T")):
            estimate.trace(jacobian @ jacobian.T, method=method)

    @pytest.mark.parametrize("metric", [None, "diagonal", "dense"])
    def test_exact_quantities(self, metric):
        jacobian, matrix = network()
        middle = {None: torch.eye(16), "diagonal": randn(16, seed=5).square().diag(), "dense": M.new_ones(16, 16)}[
            metric
        ].double()
        given = {None: None, "diagonal": middle.diagonal().reshape(4, 4)}.get(
            metric, Dense(middle, (jacobian.in_space, jacobian.in_space))
        )
        gram, kernel = Gram(jacobian, given), matrix @ middle @ matrix.mT
        assert estimate.trace(gram).value == pytest.approx(float(kernel.trace()), rel=1e-12)
        assert estimate.frobenius_norm(gram).value == pytest.approx(float(kernel.norm()), rel=1e-12)


ASYMMETRIC = Dense(M, (F.in_space, F.in_space))
REFUSED = {
    "matrix for F": (lambda: Gram(F.matrix), TypeError, "`jacobian` must be an operator; got Tensor. Wrap a matrix"),
    "function for F": (lambda: Gram(torch.tanh), TypeError, "a pair of functions in Function(jvp, vjp, in_space, "),
    "number for M": (
        lambda: Gram(F, 2.0),
        TypeError,
        "`metric` must be an operator or a tensor (a diagonal); got ",
    ),
    "whole numbers": (
        lambda: Gram(F, torch.ones(3).long()),
        TypeError,
        "must hold floating-point numbers; got ",
    ),
    "shape": (lambda: Gram(F, torch.ones(4).double()), ValueError, "`diagonal` must have shape (3,); got (4,)."),
    "dtype": (lambda: Gram(F, torch.ones(3)), ValueError, "must be torch.float64 on cpu"),
    "other space": (
        lambda: Gram(F, Dense(torch.eye(5).double())),
        ValueError,
        "`metric` must act on Space(weight 3, float64), the space that `jacobian` takes; got Dense: Space(axis0 5, ",
    ),
    "not square": (
        lambda: Gram(F, F),
        ValueError,
        "takes; got Dense: Space(weight 3, float64) → Space(trial 5, float64).",
    ),
    "not from the space": (
        lambda: Gram(F, F.T),
        ValueError,
        "takes; got Dense.T: Space(trial 5, float64) → Space(weight 3, float64).",
    ),
    "not symmetric": (lambda: Gram(F, ASYMMETRIC), ValueError, "`metric` must be symmetric; got Dense: Space(weight 3"),
    "remedy": (
        lambda: Gram(F, ASYMMETRIC),
        ValueError,
        "Take (M + M.T) / 2, or for F G (F G)ᵀ the Gram of ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_misuse_is_a_clear_error(name):
    call, kind, message = REFUSED[name]
    with without_annotation_checks(), pytest.raises(kind, match=re.escape(message)):
        call()


def test_the_remedies_work():
    half = ASYMMETRIC + ASYMMETRIC.T
    assert half.symmetric
    check_operator(Gram(F, half / 2), F.matrix @ (M + M.mT) @ F.matrix.mT / 2)
    check_operator(Gram(F @ ASYMMETRIC), F.matrix @ M @ M.mT @ F.matrix.mT)
