"""Leave-one-out estimators: XTrace, XNysTrace and XDiag, and the variance of their mean.

Every test vector ωᵢ serves twice: all others deflate the operator, and ωᵢ samples what they leave. The estimate is the
mean of the S values tᵢ so made (Epperly, Tropp and Webber 2024, SIAM J. Matrix Anal. Appl. 45, 1–23). Small
matrices, made once, give all of them; nothing here goes over the test vectors one by one.
"""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kpflow.operators import Operator

from .base import MIN_PROBES, Reading
from .products import Probes, Products, gram, norm, triangle
from .sketch import orthonormal_rows

__all__ = ["NystromSketch", "RangeSketch", "reading", "variance", "xdiag", "xnystrace", "xtrace"]

ALONE = 1 - 1e-6
"""Leverage from which a test vector alone has a direction of the range: 1 but for rounding if it has, else smaller."""

NARROW = 1e-12
"""Least squared sine between two directions: below, their pair is taken for one direction."""

ROOM = 4
"""Directions that a Nyström sketch leaves out, unless it can hold all: with fewer its error bar is no more honest (the
error over it is 1.06 to 1.12 in root mean square at 4, 1.1 to 1.6 at 3, 5 at 1, for 80 entries)."""

OFFSETS = 4
"""XDiag takes the covariance over pairs of test vectors up to so many places apart: pairs enough, at linear cost."""

PIECE = 2**16
"""Entries of a block of vectors that XDiag works on at a time, to stay in the cache. Chosen by experience."""


def reading(pairs: Float[Tensor, "S S"], spent: int) -> Reading:
    """The mean of the leave-one-out values and its standard error, from all leave-two-out values.

    The error is infinite for fewer than `MIN_PROBES` test vectors, and widened as that of `spread`. A negative
    covariance is left out: it is noise nearly always.

    Args:
        pairs: tᵢ on the diagonal; at [j, i] what tᵢ is without the j-th test vector.
        spent: Products.
    """
    count = len(pairs)
    value = float(pairs.diagonal().mean()) if count else math.nan
    if count < MIN_PROBES:
        return Reading(value, math.inf, count, spent)
    spread, covariance = variance(pairs)
    total = float(spread + covariance.clamp(min=0)) * (count - 1) / (count - 3)
    return Reading(value, math.sqrt(total), count, spent)


def variance(pairs: Float[Tensor, "S S"]) -> tuple[Tensor, Tensor]:
    """Two parts whose sum is an unbiased estimate of the variance of the mean of the leave-one-out values tᵢ.

    The first, s²/S with the sample variance s² of the tᵢ, is all that the paper takes. It is too small, as every tᵢ
    depends on every ωⱼ: the error is up to 5 times too small on the spectra of our tests. But tᵢ is unbiased when all
    test vectors but the i-th are given, E[tᵢ | ωⱼ, j ≠ i] = tr A, and so is tᵢ₍ⱼ₎, made without ωⱼ. Hence, with
    dᵢⱼ = tᵢ − tᵢ₍ⱼ₎,

        Cov(tᵢ, tⱼ) = E[(tᵢ₍ⱼ₎ − tr A + dᵢⱼ)(tⱼ₍ᵢ₎ − tr A + dⱼᵢ)] = E[dᵢⱼ dⱼᵢ],

    since in each of the other three products one factor has mean zero over ωᵢ or ωⱼ, of which the other factor does
    not depend. The variance of the mean is E[s²]/S + Cov(tᵢ, tⱼ): the second part is the mean of dᵢⱼ dⱼᵢ over pairs.
    """
    values, count = pairs.diagonal(), len(pairs)
    change = values - pairs
    return values.var() / count, (change * change.mT).sum() / (count * (count - 1))


@final
class RangeSketch:
    """Test vectors Ω, an orthonormal basis Q of A Ω, and the images A Q (or Aᵀ Q), all of which can grow.

    It keeps 3 S vectors for S test vectors, which take S + rank products. A basis of the whole space is completed, and
    all is then exact, as soon as the products left suffice for that.

    Args:
        operator: A.
        kind: "sphere" or "signs".
        generator: Draws the test vectors.
        adjoint: Whether the images are Aᵀ Q.
    """

    def __init__(self, operator: Operator, kind: str, generator: torch.Generator, *, adjoint: bool = False) -> None:
        self.products = Products(operator)
        self.others = Products(operator.T) if adjoint else self.products
        self.draw = Probes(kind, operator.in_space, generator)
        self.size = operator.in_space.size
        self.vectors: Float[Tensor, "S N"] = self.draw.draw(0)
        self.basis: Float[Tensor, "R N"] = self.vectors
        self.images: Float[Tensor, "R N"] = self.vectors
        self.coefficients: Float[Tensor, "R S"] = gram(self.basis, self.vectors)

    @property
    def spent(self) -> int:
        """Products so far."""
        return self.products.count + (self.others.count if self.others is not self.products else 0)

    @property
    def complete(self) -> bool:
        """Whether Q is a basis of the whole space."""
        return len(self.basis) == self.size

    def grow(self, total: int) -> None:
        """Add test vectors until `total` products are spent, or the rest of a basis of the whole space."""
        if self.complete:
            return
        missing = self.size - len(self.basis)
        if total - self.spent >= missing:
            self._extend(torch.linalg.qr(self.basis.mT, mode="complete")[0].mT[-missing:].contiguous())
            return
        vectors = self.draw.draw(max(min(total // 2, self.size) - len(self.vectors), 0))
        image = self.products(vectors)
        fresh = orthonormal_rows(image, self.basis)
        self.coefficients = _bordered(self.coefficients, self.basis, fresh, image)
        self.vectors = torch.cat([self.vectors, vectors])
        self._extend(fresh)

    def _extend(self, fresh: Tensor) -> None:
        self.basis = torch.cat([self.basis, fresh])
        self.images = torch.cat([self.images, self.others(fresh)])


@final
class NystromSketch:
    """Test vectors Ω = U T with orthonormal U, and the images A U of a positive semi-definite A; they can grow.

    The Nyström approximation A Ω (Ωᵀ A Ω)⁺ (A Ω)ᵀ depends on the range of Ω alone, so that products with U do, and
    Uᵀ A U is no worse conditioned than A. It keeps 2 S vectors.

    Args:
        operator: A.
        kind: "sphere" or "signs".
        generator: Draws the test vectors.
    """

    def __init__(self, operator: Operator, kind: str, generator: torch.Generator) -> None:
        self.products = Products(operator)
        self.draw = Probes(kind, operator.in_space, generator)
        self.size = operator.in_space.size
        self.basis: Float[Tensor, "R N"] = self.draw.draw(0)
        self.images: Float[Tensor, "R N"] = self.basis
        self.coefficients: Float[Tensor, "R S"] = gram(self.basis, self.basis)

    @property
    def spent(self) -> int:
        """Products so far."""
        return self.products.count

    @property
    def complete(self) -> bool:
        """Whether U is a basis of the whole space."""
        return len(self.basis) == self.size

    def grow(self, total: int) -> None:
        """Add test vectors until `total` products are spent, or U is a basis of the whole space."""
        most = self.size if total >= self.size else min(total, max(self.size - ROOM, 1))
        vectors = self.draw.draw(max(most - len(self.basis), 0))
        fresh = orthonormal_rows(vectors, self.basis)
        self.coefficients = _bordered(self.coefficients, self.basis, fresh, vectors)
        self.basis = torch.cat([self.basis, fresh])
        self.images = torch.cat([self.images, self.products(fresh)])


def xtrace(sketch: RangeSketch) -> Float[Tensor, "S S"]:
    """XTrace: tᵢ = tr(Qᵢᵀ A Qᵢ) + ⟨vᵢ, A vᵢ⟩ with Qᵢ a basis of A Ω without ωᵢ and vᵢ = (I − Qᵢ Qᵢᵀ) ωᵢ.

    Qᵢ Qᵢᵀ = Q (I − pᵢ pᵢᵀ) Qᵀ with pᵢ the unit vector orthogonal to all columns but the i-th of the coefficients
    B = Qᵀ A Ω; zero if the others span the same. Without two: I − Π with Π = the projector on span(pᵢ, pⱼ). So, with
    w = Qᵀ ωᵢ, x = (I − Π) w: tr(H) − tr(Π H) + ⟨ωᵢ, A ωᵢ⟩ − ⟨ωᵢ, A Q x⟩ − ⟨x, Qᵀ A ωᵢ⟩ + ⟨x, H x⟩, H = Qᵀ A Q.

    With directions that are uniform on the sphere, vᵢ is uniform on one in the complement of Qᵢ, and is given the
    length √(n − rank Qᵢ) that makes E v vᵀ the projector: its own would add noise (§2.3 of the paper).

    Returns:
        tᵢ on the diagonal; at [j, i] what tᵢ is without the j-th test vector.
    """
    h, w = gram(sketch.basis, sketch.images), gram(sketch.basis, sketch.vectors)
    p = _directions(sketch.coefficients)
    near = _Pairs(p, w)
    alpha, beta = near.alpha, near.beta
    form = (h + h.mT) / 2
    pp, pw, pt = p.mT @ form @ p, 2 * p.mT @ form @ w, p.mT @ (t := gram(sketch.images, sketch.vectors))
    value = (w * (form @ w)).sum(0) - (t * w).sum(0) + alpha * (p * sketch.coefficients).sum(0)
    value = value + alpha * (pt - pw).diagonal() + beta * near.off(pt - pw)
    value = value + alpha.square() * pp.diagonal() + beta.square() * near.others(pp) + 2 * alpha * beta * near.off(pp)
    if sketch.draw.kind == "sphere":
        length = sketch.size - w.square().sum(0) + near.energy  # ‖v‖²
        value = value * (sketch.size - len(p) + near.rank) / length
    held = (pp.diagonal() + near.others(pp) - 2 * near.cosine * near.off(pp)) / near.sine
    return h.trace() - held + value


def xnystrace(sketch: NystromSketch) -> Float[Tensor, "S S"]:
    """XNysTrace: tᵢ = tr Âᵢ + ⟨ωᵢ, (A − Âᵢ) ωᵢ⟩ with Âᵢ the Nyström approximation from Ω without ωᵢ.

    In the basis U, with H = Uᵀ A U and pᵢ as in `xtrace` (for the coefficients T): dropping the set J of test vectors
    drops the directions P_J, tr Â_J = tr Â − tr(N_JJ M_JJ⁻¹) with M = Pᵀ H⁻¹ P and N = Pᵀ H⁻¹ (A U)ᵀ (A U) H⁻¹ P; and
    the residual A − Â_J, which is zero on the other test vectors, is 1/(H⁻¹)ᵢᵢ on the direction of vᵢ.
    Lengths are those of `xtrace`. A + ν I is estimated and ν n taken off again: the shift ν, of the size of rounding,
    keeps H⁻¹ in bounds (Tropp, Yurtsever, Udell and Cevher 2017).

    Returns:
        tᵢ on the diagonal; at [j, i] what tᵢ is without the j-th test vector.

    Raises:
        ValueError: A is seen not to be positive semi-definite.
    """
    p = _directions(sketch.coefficients)
    eps = torch.finfo(sketch.basis.dtype).eps
    size = norm(sketch.images)
    if size == 0:
        return p.new_zeros(p.shape[1], p.shape[1])
    shift = 8 * eps * size
    root = _inverse_root(gram(sketch.basis, sketch.images), shift, eps)  # H⁻¹ = root rootᵀ
    spread = triangle(sketch.images + shift * sketch.basis) @ root
    half = root.mT @ p
    m, n = half.mT @ half, (spread @ half).mT @ (spread @ half)
    m = m + torch.diag((m.diagonal() == 0).double())  # where p = 0
    near = _Pairs(p, sketch.coefficients)
    ratio = near.off(m) / m.diagonal()[:, None]  # Mᵢⱼ/Mⱼⱼ at [j, i]
    alone = m.diagonal() * (1 - ratio * near.off(m) / m.diagonal()).clamp(min=NARROW)  # Mᵢᵢ − Mᵢⱼ²/Mⱼⱼ
    dropped = (n.diagonal() + ratio.square() * n.diagonal()[:, None] - 2 * ratio * n) / alone
    dropped = dropped + near.others(n / m.diagonal())
    length = sketch.size - len(p) + near.rank if sketch.draw.kind == "sphere" else near.energy
    residual = near.exists * length * near.sine / alone
    return spread.square().sum() - dropped + residual - shift * sketch.size


def xdiag(sketch: RangeSketch) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """XDiag: the mean of tᵢ = diag(Qᵢ Qᵢᵀ A) + ωᵢ ∘ (I − Qᵢ Qᵢᵀ) A ωᵢ, and its variance, entry by entry.

    The sketch is of random signs, with the images Z = Aᵀ Q. In the notation of `xtrace`, with qᵢ = Q pᵢ, zᵢ = Z pᵢ,
    cᵢ = ⟨pᵢ, Bᵢ⟩ and yᵢ = zᵢ − cᵢ ωᵢ: tᵢ = Σₖ Qₖ ∘ Zₖ − qᵢ ∘ yᵢ. The variance is that of `variance`, with
    dᵢⱼ = (qⱼ − g qᵢ) ∘ (zⱼ − g yᵢ)/(1 − g²), g = ⟨pᵢ, pⱼ⟩; for symmetric A the spread alone would show half of it.
    """
    p = _directions(sketch.coefficients)
    length = max(1, PIECE // max(p.shape[1], 1))
    pieces = zip(*(rows.split(length, dim=1) for rows in (sketch.basis, sketch.images, sketch.vectors)), strict=True)
    own = (p * sketch.coefficients).sum(0)[:, None]
    values, variances = zip(*(_xdiag(p, own, *piece) for piece in pieces), strict=True)
    return torch.cat(values), torch.cat(variances)


def _xdiag(p: Tensor, own: Tensor, basis: Tensor, images: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """A piece of the diagonal and of its variance."""
    count, dtype = p.shape[1], basis.dtype
    known = (basis * images).sum(0, dtype=torch.float64)
    q, z = p.mT.to(dtype) @ basis, p.mT.to(dtype) @ images
    y = z - own.to(dtype) * vectors
    values = known - (q * y).sum(0, dtype=torch.float64) / max(count, 1)
    if count < MIN_PROBES:
        return values, torch.full_like(values, math.inf)
    spread = (known - values - q * y).square().sum(0) / (count * (count - 1))
    covariance = torch.stack([_covariance(p, q, y, z, offset) for offset in range(1, OFFSETS + 1)]).mean(0)
    return values, (spread + covariance.clamp(min=0)) * (count - 1) / (count - 3)


def _covariance(p: Tensor, q: Tensor, y: Tensor, z: Tensor, offset: int) -> Float[Tensor, " N"]:
    """Mean of dᵢⱼ ∘ dⱼᵢ over the pairs j = i + offset, going round."""
    cosine = (p * p.roll(-offset, 1)).sum(0)
    sine = 1 - cosine.square()
    weight = torch.where(sine >= NARROW, 1 / sine.square(), 0.0)[:, None]
    g, qj, yj, zj = cosine[:, None].to(q.dtype), *(x.roll(-offset, 0) for x in (q, y, z))
    left, right = (qj - g * q) * (zj - g * y), (q - g * qj) * (z - g * yj)
    return (left.double() * right * weight).sum(0) / len(q)


@final
class _Pairs:
    """What the directions pᵢ, pⱼ that two test vectors alone have are to each other, and to wᵢ; `[j, i]` throughout.

    Π wᵢ = α pᵢ + β pⱼ with Π the projector on span(pᵢ, pⱼ), α = (aᵢ − g e)/(1 − g²), β = (e − g aᵢ)/(1 − g²), where
    g = ⟨pᵢ, pⱼ⟩, aᵢ = ⟨pᵢ, wᵢ⟩, e = ⟨pⱼ, wᵢ⟩. On the diagonal, and where the two are parallel, pⱼ is left out.
    """

    def __init__(self, p: Float[Tensor, "R S"], w: Float[Tensor, "R S"]) -> None:
        overlap, cosine = p.mT @ w, p.mT @ p
        eye = torch.eye(len(cosine), dtype=torch.bool, device=p.device)
        self.two = ~eye & (1 - cosine.square() >= NARROW)
        self.exists = cosine.diagonal().round()  # 1, or 0 where p = 0
        self.cosine = self.off(cosine)
        self.sine = 1 - self.cosine.square()
        own, other = overlap.diagonal(), self.off(overlap)
        self.alpha = (own - self.cosine * other) / self.sine
        self.beta = self.off(other - self.cosine * own) / self.sine
        self.energy = self.alpha * own + self.beta * other  # ‖Π w‖²
        self.rank = self.exists + self.others(torch.diag(self.exists))

    def off(self, matrix: Float[Tensor, "S S"]) -> Float[Tensor, "S S"]:
        """The entries of pairs; 0 elsewhere."""
        return matrix * self.two

    def others(self, matrix: Float[Tensor, "S S"]) -> Float[Tensor, "S S"]:
        """matrix[j, j] at the entries [j, i] of pairs; 0 elsewhere."""
        return matrix.diagonal()[:, None] * self.two


def _directions(coefficients: Float[Tensor, "R S"]) -> Float[Tensor, "R S"]:
    """For each column the unit vector that is orthogonal to all other columns; zero if they span it.

    The rows of the inverse, normalised; where there is none, of the pseudo-inverse V Σ⁻¹ Uᵀ, for the columns of
    leverage ‖Vᵢ‖² = 1.
    """
    left, values, right = torch.linalg.svd(coefficients, full_matrices=False)
    inverse = left @ (right / values[:, None])
    length = inverse.square().sum(0).sqrt()
    return torch.where(right.square().sum(0) > ALONE, inverse / length, 0.0)


def _bordered(old: Tensor, basis: Tensor, fresh: Tensor, rows: Tensor) -> Tensor:
    """Coefficients [[old, Q rowsᵀ], [0, fresh rowsᵀ]] of more rows in a basis with more vectors."""
    corner = old.new_zeros(len(fresh), old.shape[1])
    return torch.cat([torch.cat([old, gram(basis, rows)], dim=1), torch.cat([corner, gram(fresh, rows)], dim=1)])


def _inverse_root(core: Float[Tensor, "R R"], shift: float, eps: float) -> Float[Tensor, "R R"]:
    """X with X Xᵀ = (core + shift)⁻¹; raise if the core is negative beyond rounding."""
    values, vectors = torch.linalg.eigh((core + core.mT) / 2)
    if float(values[0]) < -math.sqrt(eps) * float(values[-1].abs()):
        raise ValueError(
            f"`method` 'xnystrace' needs a positive semi-definite operator; got one with an eigenvalue of at most "
            f"{float(values[0]):.3g}. Use 'xtrace', which takes any."
        )
    return vectors / (values.clamp(min=0) + shift).sqrt()
