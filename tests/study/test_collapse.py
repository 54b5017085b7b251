"""Neural collapse and CKA: exact on constructed features, and unchanged by what they must not depend on."""

import inspect
import math
from dataclasses import astuple

import pytest
import torch

import kpflow as kp
from kpflow.operators import Dense
from kpflow.study import linear_cka, neural_collapse

F64 = torch.float64


def randn(*shape, seed):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def rotation(n, seed=0):
    return torch.linalg.qr(randn(n, n, seed=seed))[0]


def etf(classes, features, seed=0):
    """A simplex equiangular tight frame: C rows of length 1, with cosines −1/(C − 1)."""
    centred = torch.eye(classes, dtype=F64) - 1 / classes
    frame = centred * (classes / (classes - 1)) ** 0.5
    return frame @ rotation(features, seed)[:classes]


def collapsed(classes=4, features=6, each=5):
    return etf(classes, features).repeat_interleave(each, 0), torch.arange(classes).repeat_interleave(each)


def noisy(seed=1, classes=4, features=6, each=5):
    h, labels = collapsed(classes, features, each)
    return h + 0.3 * randn(*h.shape, seed=seed), labels


@pytest.mark.parametrize("classes", [2, 3, 4, 6])
def test_a_simplex_frame_is_collapsed(classes):
    h, labels = collapsed(classes, 6)
    outside = torch.linalg.svd(etf(classes, 6))[2][-1:]  # orthogonal to all means
    weight = 3.0 * etf(classes, 6)
    found = neural_collapse(h, labels, weight=weight, bias=torch.zeros(classes, dtype=F64), outside=outside)
    assert max(map(abs, astuple(found))) < 1e-14
    shifted = neural_collapse(h + 2.0, labels, weight=weight, bias=-weight @ torch.full((6,), 2.0, dtype=F64))
    assert max(map(abs, astuple(shifted)[:5])) < 1e-14


def test_within_class_variability_by_hand():
    """Two classes at ±1 on one axis, with deviations ±d on it and ±e on another that Σ_B does not see."""
    for d, e in ((0.5, 0.0), (0.5, 3.0), (0.0, 3.0)):
        h = torch.tensor([[1 + d, e], [1 - d, -e], [-1 + d, e], [-1 - d, -e]], dtype=F64)
        found = neural_collapse(h, torch.tensor([0, 0, 1, 1]))
        assert found.nc1 == pytest.approx(d**2 / 2, abs=1e-15)
        assert found.nc2_norms == pytest.approx(0, abs=1e-15)
        assert found.nc2_angles == pytest.approx(0, abs=1e-15)


def test_variability_is_that_of_the_matrices():
    h, labels = noisy()
    means = torch.stack([h[labels == c].mean(0) for c in range(4)])
    between = (means - means.mean(0)).mT @ (means - means.mean(0)) / 4
    within = (h - means[labels]).mT @ (h - means[labels]) / len(h)
    assert neural_collapse(h, labels).nc1 == pytest.approx(float((within @ torch.linalg.pinv(between)).trace()) / 4)


def test_lengths_and_angles_by_hand():
    """Three means at lengths 1, 1, 2 that add up to zero cannot be; with a mean of zero they are made to."""
    means = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], dtype=F64)
    found = neural_collapse(means, torch.arange(3))
    norms = torch.tensor([1.0, 1.0, 2**0.5], dtype=F64)
    assert found.nc2_norms == pytest.approx(float(norms.std(correction=0) / norms.mean()))
    cosines = [0.0, -(0.5**0.5), -(0.5**0.5)]
    assert found.nc2_angles == pytest.approx(sum(abs(c + 0.5) for c in cosines) / 3)


def test_the_classifier():
    h, labels = collapsed()
    opposite = neural_collapse(h, labels, weight=-etf(4, 6))
    assert opposite.nc3 == pytest.approx(4.0)
    assert opposite.nc4 == 1.0
    orthogonal = torch.linalg.svd(etf(4, 6))[2][3:]  # [3, 6]
    weight = torch.cat([orthogonal, orthogonal[:1]])
    assert neural_collapse(h, labels, weight=weight).nc3 == pytest.approx(2.0)
    biased = neural_collapse(h, labels, weight=etf(4, 6), bias=torch.tensor([9.0, 0, 0, 0], dtype=F64))
    assert biased.nc4 == 0.75  # all are decided for class 0
    assert math.isnan(neural_collapse(h, labels).nc3)
    assert math.isnan(neural_collapse(h, labels).nc4)


def test_features_outside():
    h, labels = collapsed(2, 3)
    mean = etf(2, 3)[0]
    other = torch.linalg.svd(etf(2, 3))[2][-1]
    for angle in (0.0, 0.3, math.pi / 2):
        outside = (math.cos(angle) * mean + math.sin(angle) * other).repeat(7, 1)
        assert neural_collapse(h, labels, outside=outside).nc5 == pytest.approx(math.cos(angle), abs=1e-14)
    assert math.isnan(neural_collapse(h, labels).nc5)


def test_what_the_measures_do_not_depend_on():
    h, labels = noisy()
    weight, outside = randn(4, 6, seed=3), randn(9, 6, seed=4)

    def all_of(h, labels=labels, weight=weight, outside=outside):
        return list(astuple(neural_collapse(h, labels, weight=weight, outside=outside)))

    before, R = all_of(h), rotation(6, seed=5)
    assert all_of(h @ R, weight=weight @ R, outside=outside @ R) == pytest.approx(before)
    assert all_of(7 * h, weight=0.1 * weight, outside=7 * outside) == pytest.approx(before)
    assert all_of(h + 3.0)[:4] == pytest.approx(before[:4])
    order = torch.randperm(len(h), generator=torch.Generator().manual_seed(0))
    assert all_of(h[order], labels[order]) == pytest.approx(before)
    renamed = torch.tensor([2, 0, 3, 1])
    assert all_of(h, renamed[labels], weight[renamed.argsort()]) == pytest.approx(before)
    twice = torch.cat([h, h[labels == 1]]), torch.cat([labels, labels[labels == 1]])
    assert all_of(*twice)[:4] == pytest.approx(before[:4])  # each class counts once


@pytest.mark.parametrize("separation", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("shift", [1.0, 1000.0])
def test_means_that_lie_close_together_far_from_the_origin(separation, shift):
    """The rounding of the means is no direction in which classes differ, however small their spread is beside it."""
    h, labels = noisy(classes=5, features=64, each=20)
    offset = shift * (2 * torch.rand(64, dtype=F64, generator=torch.Generator().manual_seed(0)) - 1)
    found = neural_collapse(offset + separation * h, labels)
    assert list(astuple(found)[:3]) == pytest.approx(list(astuple(neural_collapse(h, labels))[:3]), rel=1e-5)


def test_equal_means_far_from_the_origin_are_no_collapse():
    h = 1000.1 + torch.tensor([[1.0], [-1.0], [1.0], [-1.0], [0.1], [-0.1]], dtype=F64) @ randn(1, 7, seed=0)
    assert neural_collapse(h, torch.tensor([0, 0, 1, 1, 2, 2])).nc1 == math.inf


def test_more_noise_is_less_collapse():
    h, labels = collapsed()
    noise = randn(*h.shape, seed=2)
    values = [neural_collapse(h + scale * noise, labels).nc1 for scale in (0.0, 0.01, 0.1, 1.0)]
    assert values == sorted(values)
    assert values[1] == pytest.approx(values[2] / 100, rel=0.2)


def test_equal_means_are_no_collapse():
    h = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=F64)
    found = neural_collapse(h, torch.tensor([0, 0, 1, 1]))
    assert found.nc1 == math.inf
    assert math.isnan(found.nc2_angles)


def test_a_trained_classifier_collapses():
    """Features that are free, with weight decay on both (Zhu et al. 2021): every measure falls to collapse."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(12, 5, generator=generator, dtype=F64, requires_grad=True)
    weight = torch.randn(3, 5, generator=generator, dtype=F64, requires_grad=True)
    labels = torch.arange(3).repeat_interleave(4)
    optimizer = torch.optim.LBFGS([h, weight], max_iter=400, tolerance_grad=1e-10, tolerance_change=0.0)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(h @ weight.T, labels)
        loss = loss + 5e-3 * (weight.square().sum() + h.square().sum() / 4)
        loss.backward()
        return loss

    before = neural_collapse(h.detach(), labels, weight=weight.detach())
    optimizer.step(closure)
    after = neural_collapse(h.detach(), labels, weight=weight.detach())
    assert min(astuple(before)[:4]) > 0.05
    assert max(astuple(after)[:5]) < 1e-5


# CKA -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("debiased", [False, True])
def test_rotations_scales_and_shifts_change_nothing(debiased):
    X, Y = randn(15, 6, seed=0), randn(15, 4, seed=1)
    assert linear_cka(X, -3 * X @ rotation(6) + 2.0, debiased=debiased) == pytest.approx(1.0, abs=1e-13)
    value = linear_cka(X, Y, debiased=debiased)
    assert linear_cka(0.1 * X @ rotation(6), Y @ rotation(4) - 5, debiased=debiased) == pytest.approx(value, abs=1e-13)
    assert linear_cka(Y, X, debiased=debiased) == pytest.approx(value, abs=1e-14)
    assert linear_cka(X, X @ randn(6, 6, seed=2), debiased=debiased) < 0.95  # other linear maps do


def test_it_is_the_alignment_of_gram_operators():
    X, Y = (value - value.mean(0) for value in (randn(12, 5, seed=0), randn(12, 3, seed=1)))
    estimate = kp.estimate.alignment(Dense(X @ X.mT), Dense(Y @ Y.mT), method="exact")
    assert linear_cka(X, Y) == pytest.approx(estimate.value, rel=1e-12)


@pytest.mark.parametrize("debiased", [False, True])
def test_a_constant_representation_has_no_geometry(debiased):
    assert math.isnan(linear_cka(torch.ones(6, 2, dtype=F64), randn(6, 3, seed=0), debiased=debiased))


def test_orthogonal_representations_have_none():
    basis = rotation(9, seed=1) - rotation(9, seed=1).mean(0)
    left = torch.linalg.qr(basis)[0]
    assert linear_cka(left[:, :3], left[:, 3:6]) == pytest.approx(0.0, abs=1e-14)


def test_debiased_inner_products_are_those_of_u_centred_matrices():
    """Song et al.'s unbiased estimate, written out with the diagonals set to zero."""
    X, Y = randn(8, 5, seed=0), randn(8, 3, seed=1)

    def hsic(K, L):
        N, K, L = len(K), K - K.diag().diag(), L - L.diag().diag()
        one = torch.ones(N, dtype=F64)
        whole = (one @ K @ one) * (one @ L @ one) / ((N - 1) * (N - 2))
        return ((K @ L).trace() + whole - 2 / (N - 2) * (one @ K @ L @ one)) / (N * (N - 3))

    K, L = X @ X.mT, Y @ Y.mT
    expected = hsic(K, L) / (hsic(K, K) * hsic(L, L)).sqrt()
    assert linear_cka(X, Y, debiased=True) == pytest.approx(float(expected), rel=1e-11)


def test_unrelated_representations_with_many_features():
    values = [
        [linear_cka(randn(10, 200, seed=2 * i), randn(10, 200, seed=2 * i + 1), debiased=d) for i in range(40)]
        for d in (False, True)
    ]
    biased, debiased = torch.tensor(values, dtype=F64)
    assert float(biased.min()) > 0.8
    assert abs(float(debiased.mean())) < 4 * float(debiased.std()) / 40**0.5


def test_states_of_two_checkpoints():
    torch.manual_seed(0)
    model = torch.nn.GRU(3, 8, batch_first=True).double()
    inputs = randn(4, 6, 3, seed=0)
    first = kp.linearise(model, inputs).states.flatten(0, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    second = kp.linearise(model, inputs).states.flatten(0, 1)
    assert 0.97 < linear_cka(first, second) < 1


def test_bad_arguments():
    h, labels = collapsed()
    call, cka = inspect.unwrap(neural_collapse), inspect.unwrap(linear_cka)
    with pytest.raises(ValueError, match=r"`features` must have two axes, example and feature; got shape \(2, 3, 4\)"):
        call(randn(2, 3, 4, seed=0), labels)
    with pytest.raises(ValueError, match=r"`features` must be finite; got NaN at example 0, feature 0"):
        call(h * math.nan, labels)
    with pytest.raises(TypeError, match=r"`labels` must be a torch\.Tensor; got list\. Convert it with torch\.as"):
        call(h, labels.tolist())
    with pytest.raises(ValueError, match=r"`labels` must be whole numbers, one for each of 20 features; got torch.flo"):
        call(h, labels.double())
    with pytest.raises(ValueError, match=r"`labels` must be whole numbers, .* of shape \(3,\)"):
        call(h, labels[:3])
    for wrong in (labels + 1, labels * 0, labels - 1):
        with pytest.raises(ValueError, match=r"`labels` must be 0 … C − 1, each there, with C ≥ 2; got \["):
            call(h, wrong)
    with pytest.raises(ValueError, match=r"`weight` must have shape \(4, 6\); got \(3, 6\)"):
        call(h, labels, weight=randn(3, 6, seed=0))
    with pytest.raises(ValueError, match=r"`bias` must have shape \(4,\); got \(2,\)"):
        call(h, labels, weight=randn(4, 6, seed=0), bias=randn(2, seed=0))
    with pytest.raises(ValueError, match=r"`weight` must be given with `bias`; got None"):
        call(h, labels, bias=randn(4, seed=0))
    with pytest.raises(ValueError, match=r"`outside` must have shape \('any', 6\); got \(2, 5\)"):
        call(h, labels, outside=randn(2, 5, seed=0))
    with pytest.raises(ValueError, match=r"must have the same examples, at least 2; got 20 and 5"):
        cka(h, h[:5])
    with pytest.raises(ValueError, match=r"must have the same examples, at least 4; got 3 and 3"):
        cka(h[:3], h[:3], debiased=True)
