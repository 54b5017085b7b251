"""Neural collapse of features onto a simplex, NC1–NC5, and the similarity of states between checkpoints, CKA."""

import dataclasses
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kpflow._checks import check_finite, check_tensor

__all__ = ["NeuralCollapse", "linear_cka", "neural_collapse"]


@final
@dataclasses.dataclass(frozen=True)
class NeuralCollapse:
    """How far features, and a classifier on them, are from neural collapse: 0 for all is collapse.

    With class means μ_c of the features h, their mean μ_G (each class counts once), m_c = μ_c − μ_G, C classes:

    Args:
        nc1: tr(Σ_W Σ_B⁺) / C, within-class variability: Σ_W the mean over classes of the covariance within, Σ_B the
            mean of m_c m_cᵀ, Σ_B⁺ its pseudo-inverse; inf if all class means are the same, to the rounding of μ_c, and
            then the angles mean nothing (NaN if they are the same to the last bit).
        nc2_norms: std_c ‖m_c‖ / mean_c ‖m_c‖, how unequal the lengths are.
        nc2_angles: mean over pairs c ≠ c' of |cos(m_c, m_c') + 1 / (C − 1)|, how far from the widest equal angles.
        nc3: ‖W / ‖W‖_F − M / ‖M‖_F‖²_F with M = (m_c) `[C, F]`, how far the classifier is from the class means, between
            0 and 4; NaN without a classifier.
        nc4: The share of features that the classifier and the nearest class mean decide differently; NaN without a
            classifier.
        nc5: mean_c |cos(μ_c, μ_out)| with μ_out the mean of features of other data, how far these are from orthogonal
            to the classes; NaN without such.
    """

    nc1: float
    nc2_norms: float
    nc2_angles: float
    nc3: float
    nc4: float
    nc5: float


def neural_collapse(
    features: Float[Tensor, "N F"],
    labels: Int[Tensor, " N"],
    *,
    weight: Float[Tensor, "C F"] | None = None,
    bias: Float[Tensor, " C"] | None = None,
    outside: Float[Tensor, "M F"] | None = None,
) -> NeuralCollapse:
    """Measure NC1–NC5 of `features`, e.g. the states at the end of a trial, in float64.

    NC1–NC4 are those of Papyan, Han and Donoho (2020, PNAS 117:24652, arXiv 2008.08186), NC5 that of Ben Ammar et al.
    (2024, arXiv 2310.06823). Classes count once however many features they have; with equal numbers Σ_W and Σ_B are
    the paper's. All are unchanged by a rotation of the features (and of the classifier) and by a scale, and NC1–NC3 by
    a shift.

    Args:
        features: h, a row for each example.
        labels: The class of each, 0 … C − 1, every class at least once.
        weight: W of the linear classifier, a row for each class.
        bias: Its bias; zero if None.
        outside: Features of data of no class.

    Raises:
        TypeError: An argument is no tensor.
        ValueError: Shapes do not fit, a class has no example, there is one class only, or values are not finite.

    Example:
        >>> means = torch.eye(3).repeat_interleave(4, 0)  # three classes, four equal features each
        >>> neural_collapse(means, torch.arange(3).repeat_interleave(4), weight=torch.eye(3) - 1 / 3).nc3 < 1e-12
        True
    """
    h, count = _checked(features, labels, weight, bias, outside)
    means = torch.stack([h[labels == c].mean(0) for c in range(count)])  # [C, F]
    centred = means - means.mean(0)
    norms = centred.norm(dim=1)
    cosines = (centred @ centred.mT) / norms.outer(norms)
    apart = ~torch.eye(count, dtype=torch.bool, device=h.device)
    return NeuralCollapse(
        nc1=_variability(h - means[labels], labels, means),
        nc2_norms=float(norms.std(correction=0) / norms.mean()),
        nc2_angles=float((cosines[apart] + 1 / (count - 1)).abs().mean()),
        nc3=_distance(weight, centred),
        nc4=_disagreement(h, means, weight, bias),
        nc5=_overlap(means, outside),
    )


def linear_cka(left: Float[Tensor, "N F"], right: Float[Tensor, "N G"], *, debiased: bool = False) -> float:
    """The centred kernel alignment of two representations of the same N examples, in float64; 1 for equal geometry.

    CKA = ⟨X Xᵀ, Y Yᵀ⟩_F / (‖X Xᵀ‖_F ‖Y Yᵀ‖_F) with the columns of X `[N, F]` and Y `[N, G]` centred: the alignment
    (`estimate.alignment`) of centred Gram matrices. It is unchanged by rotations and scales of either side, and by
    shifts, and NaN where X or Y is constant. For states of a recurrent network, flatten trials and times.

    With few examples for so many features it is near 1 for unrelated X and Y. `debiased` replaces each inner product by
    its unbiased estimate, with the diagonals set to zero (Song et al. 2012, U-centring); then unrelated ones have about
    0, and it may be negative or, where an estimate of a norm is not positive, NaN.

    Source: Kornblith et al. (2019, arXiv 1905.00414); Song et al. (2012, JMLR 13:1393).

    Args:
        left: X.
        right: Y, with the same examples in the same order.
        debiased: Take unbiased estimates; needs N ≥ 4.

    Raises:
        ValueError: The numbers of examples differ or are too small, or values are not finite.

    Example:
        >>> X = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
        >>> round(linear_cka(X, 3 * X.flip(1) + 1), 12)
        1.0
    """
    least = 4 if debiased else 2
    for name, value in (("left", left), ("right", right)):
        _check_rows(name, value)
        if len(value) != len(left) or len(value) < least:
            raise ValueError(
                f"`left` and `right` must have the same examples, at least {least}; got {len(left)} and {len(right)}. "
                "Take the states of both on the same trials."
            )
    X, Y = (value.double() - value.double().mean(0) for value in (left, right))
    inner = _unbiased if debiased else _inner
    cross, own, other = inner(X, Y), inner(X, X), inner(Y, Y)
    return cross / (own * other) ** 0.5 if min(own, other) > 0 else float("nan")


def _inner(X: Tensor, Y: Tensor) -> float:
    """⟨X Xᵀ, Y Yᵀ⟩_F = ‖Xᵀ Y‖²_F."""
    return float((X.mT @ Y).square().sum())


def _unbiased(X: Tensor, Y: Tensor) -> float:
    """The same without the diagonals of the Gram matrices, U-centred, for centred X and Y."""
    N = len(X)
    x, y = X.square().sum(1), Y.square().sum(1)  # diagonals
    return _inner(X, Y) - N / (N - 2) * float(x @ y) + float(x.sum() * y.sum()) / ((N - 1) * (N - 2))


def _variability(deviations: Tensor, labels: Tensor, means: Tensor) -> float:
    """tr(Σ_W Σ_B⁺) / C."""
    C = len(means)
    sizes = torch.bincount(labels, minlength=C).to(deviations)
    rows = deviations / (C * sizes[labels]).sqrt().unsqueeze(1)  # Σ_W = rowsᵀ rows
    between = (means - means.mean(0)) / C**0.5
    _, values, axes = torch.linalg.svd(between, full_matrices=False)  # Σ_B = axesᵀ values² axes
    rounding = torch.finfo(means.dtype).eps * float(torch.linalg.matrix_norm(means)) / C**0.5  # grows with a shift
    kept = values > max(means.shape) * rounding
    if not bool(kept.any()):
        return float("inf")
    return float((rows @ axes[kept].mT / values[kept]).square().sum()) / C


def _distance(weight: Tensor | None, centred: Tensor) -> float:
    if weight is None:
        return float("nan")
    W = weight.double()
    return float((W / W.norm() - centred / centred.norm()).square().sum())


def _disagreement(h: Tensor, means: Tensor, weight: Tensor | None, bias: Tensor | None) -> float:
    if weight is None:
        return float("nan")
    decided = (h @ weight.double().mT + (0.0 if bias is None else bias.double())).argmax(1)
    return float((decided != torch.cdist(h, means).argmin(1)).double().mean())


def _overlap(means: Tensor, outside: Tensor | None) -> float:
    if outside is None:
        return float("nan")
    return float(torch.nn.functional.cosine_similarity(means, outside.double().mean(0), dim=1).abs().mean())


def _checked(
    features: Tensor, labels: Any, weight: Tensor | None, bias: Tensor | None, outside: Tensor | None
) -> tuple[Tensor, int]:
    """The features in float64, and the number of classes."""
    _check_rows("features", features)
    if not isinstance(labels, Tensor):
        raise TypeError(
            f"`labels` must be a torch.Tensor; got {type(labels).__name__}. Convert it with torch.as_tensor(labels)."
        )
    if labels.dtype.is_floating_point or labels.shape != (len(features),):
        raise ValueError(
            f"`labels` must be whole numbers, one for each of {len(features)} features; got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    counts = torch.bincount(labels) if int(labels.min()) >= 0 else labels.new_zeros(1)
    if len(counts) < 2 or int(counts.min()) == 0:
        raise ValueError(
            f"`labels` must be 0 … C − 1, each there, with C ≥ 2; got {labels.unique().tolist()}. Number the classes "
            "anew with torch.unique(labels, return_inverse=True)[1]."
        )
    C, F = len(counts), features.shape[1]
    for name, value, shape in (("weight", weight, (C, F)), ("bias", bias, (C,)), ("outside", outside, (None, F))):
        if value is None:
            continue
        wrong = value.ndim != len(shape) or any(
            size not in (None, got) for size, got in zip(shape, value.shape, strict=True)
        )
        if wrong:
            wanted = tuple("any" if size is None else size for size in shape)
            raise ValueError(f"`{name}` must have shape {wanted}; got {tuple(value.shape)}.")
        check_finite(name, value)
    if bias is not None and weight is None:
        raise ValueError("`weight` must be given with `bias`; got None.")
    return features.double(), C


def _check_rows(name: str, value: Tensor) -> None:
    check_tensor(name, value)
    if value.ndim != 2 or value.numel() == 0:
        raise ValueError(
            f"`{name}` must have two axes, example and feature; got shape {tuple(value.shape)}. For states "
            "[trial, time, unit], take one time or flatten(0, 1)."
        )
    check_finite(name, value, ("example", "feature"))
