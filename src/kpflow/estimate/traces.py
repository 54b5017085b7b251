"""The trace, by several methods. A new method is a function and a line in `_METHODS`."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from kpflow._checks import check_generator, check_one_of
from kpflow.operators import Exact, Gramian, Operator, Sampled, Structure

from .base import (
    PILOT,
    Effort,
    Estimate,
    Reading,
    Status,
    at_the_door,
    check_exact_budget,
    check_least_budget,
    check_operator,
    exact_pays,
    jackknife,
    settle,
)
from .leave_one_out import NystromSketch, RangeSketch, reading, xnystrace, xtrace
from .nonadaptive import OnePassSketch
from .products import Products, Samples, basis_blocks, inner, norm, signs
from .sketch import Sketch, orthonormal_rows, project_out
from .structured import by_structure, declared, is_worth
from .trace_arguments import check_fits, check_fraction, check_probes

__all__ = ["trace"]

ONE_SIDED_PRODUCTS = 300
"""One-sided products that "auto" is ready to take: about what 24 to 60 products and the algebra of a sketch cost."""

BLOCK_PILOT = 16
"""Products before the first look where the samples are of blocks: their spread is so small that more are a waste."""

SKETCHED_RANK = 150
"""Effective rank beyond which a sketch holds too little of the spectrum to be worth its algebra. Chosen by experience,
as the number above is, from the table of products to 1 % in "how to choose"."""


def trace(
    operator: Operator,
    *,
    method: str = "auto",
    rtol: float | None = None,
    budget: int | None = None,
    sketch_fraction: float | None = None,
    probes: str | None = None,
    generator: torch.Generator | None = None,
    raise_on_failure: bool = True,
) -> Estimate:
    """tr A = Σᵢ Aᵢᵢ, from products with A.

    Methods, with g random signs (E g gᵀ = I) unless `probes` says otherwise, m products, and Q orthonormal:

    - "hutchinson": mean of ⟨g, A g⟩; variance 2 (‖A‖²_F − Σ Aᵢᵢ²)/m for symmetric A.
    - "hutch++": tr(Qᵀ A Q) + mean ⟨g, (I−QQᵀ) A (I−QQᵀ) g⟩ with Q a basis of A S for q = f m columns of signs S
      (Meyer, Musco, Musco, Woodruff 2021). Exact to rounding if rank A ≤ q. It keeps 2 (q + s) vectors.
    - "hutch++-nonadaptive": tr Ã + mean ⟨g, (A−Ã) g⟩ with Ã = A R (Sᵀ A R)⁺ Sᵀ A for m/4 columns of signs S, twice as
      many R, and m/4 probes g (same source): no product waits for another. It keeps 1.25 m vectors.
    - "xtrace": as hutch++, but each of m/2 test vectors is both in the sketch (for all others) and a probe (of what the
      others leave): XTrace (Epperly, Tropp, Webber 2024). It keeps 1.5 m vectors.
    - "xnystrace": the same with the Nyström approximation A S (Sᵀ A S)⁻¹ (A S)ᵀ from m test vectors S, for positive
      semi-definite A. It keeps 2 m vectors.
    - "one-sided-reverse": A = F Fᵀ: mean of ‖Fᵀ g‖², products with Fᵀ only (of F M Fᵀ: ⟨Fᵀ g, M Fᵀ g⟩).
    - "one-sided-blocks": where structure tells blocks of A that are enough (of the NTK of a recurrent network, those
      within trials): as one-sided-reverse without the noise between them, which is most of it with many trials.
    - "one-sided-forward": A = F Fᵀ: mean of ‖F g‖² with g in the space F takes, products with F only.
    - "exact": Σᵢ ⟨eᵢ, A eᵢ⟩, as many products as A has rows (F has columns, if fewer), or by structure and without a
      product where the operator declares it at less cost (K and the NTK of a recurrent network); error 0.
    - "auto": exact if the space has at most 64 entries (or as many as a budget that is to be spent as a whole), or if
      structure is predicted to cost no more than as many products; for A = F Fᵀ one-sided-blocks, or one-sided-reverse
      where no blocks are known, unless 16 or 36 probes show that structure would cost less, or that more than 300
      would be needed because the spectrum is short: then xnystrace (hutch++ with a metric, which need not be positive);
      hutch++ for any other A.

    Args:
        operator: A, from a space to itself; it need not be symmetric nor positive.
        method: One of the above. The result says which one "auto" took.
        rtol: Stop when the standard error is below rtol · |value|, looked at after 36 products and then at growing
            intervals, and with the error's own uncertainty added. The claim: the value is within 2 rtol of the truth in
            95 % of runs. 1e-2 if neither `rtol` nor `budget` is given.
        budget: The most products to take (1000 if not given); without `rtol`, all of them are taken. One product is
            one with A, or for the one-sided methods one with F or Fᵀ.
        sketch_fraction: f. For hutch++ between 0 and 1/2: 1/3 (default) is the classical split q = s = m/3, 1/6 the
            split of the trace-estimation paper. For hutch++-nonadaptive between 0 and 1/3: f m products go into S, 2 f
            m into R, the rest into the probes; 1/4 (default) as in its paper. For the one-sided methods between 0
            (default) and 1: the part of the first probes that are made orthonormal and summed exactly,
            tr = ‖Fᵀ Q‖² + mean ‖Fᵀ (I−QQᵀ) g‖²; the paper has 1/6. That Q is random, so it is no sketch of the range.
        probes: "signs": the default, but for xtrace and xnystrace. "sphere": uniform directions of length √n, their
            default; variance 2n/(n+2) (‖A‖²_F − (tr A)²/n)/m for hutchinson. "orthogonal" (hutchinson, one-sided):
            uniform directions orthogonal to each other; variance that of "sphere" times (n−m)/(n−1), so exact for
            m = n, and no gain for m ≪ n; they are kept. Here n is the size of the space that g is in.
        generator: Draws the probes; a fresh one with seed 0 if None.
        raise_on_failure: Raise if a product is not finite; otherwise the result's status says so.

    Returns:
        The estimate; its standard error is that of the mean over probes (of the residual part, for hutch++). For
        xtrace and xnystrace it counts the covariance of the leave-one-out values, which their spread does not show.

    Raises:
        TypeError: `operator` is no operator, or `generator` no generator.
        ValueError: `operator` is not square, `method` is unknown or does not fit the operator, or a number is out of
            range.
        FloatingPointError: A product holds NaN or inf.

    References:
        Theory §5.2 and §13.1; "Fast NTK Alignment, Norm and Effective Rank via Trace Estimation", arXiv 2511.10796;
        Epperly, Tropp and Webber, "XTrace: Making the Most of Every Sample in Stochastic Trace Estimation", 2024.

    Example:
        >>> from kpflow.operators import Dense
        >>> print(trace(Dense(torch.diag(torch.tensor([1.0, 2.0, 3.0])))))
        6 ± 0 (3 products, exact)
        >>> a = torch.randn(200, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        >>> estimate = trace(Dense(a @ a.T), rtol=1e-2)
        >>> abs(float(estimate) / float((a @ a.T).trace()) - 1) < 2e-2
        True
    """
    check_operator("operator", operator, square=True, why="The trace of A Aᵀ is frobenius_norm(A) squared.")
    check_one_of("method", method, ("auto", *_METHODS))
    check_fits(operator, method)
    fraction, kind = check_fraction(method, sketch_fraction), check_probes(method, probes, sketch_fraction)
    job = _Job(operator, Effort.of(rtol, budget), fraction, kind, generator)
    run = _auto if method == "auto" else _METHODS[method]
    return at_the_door("trace", operator, method, raise_on_failure, lambda: run(job))


@final
class _Job:
    """A checked task: the operator, the effort, the split, the probes, and the generator on the operator's device."""

    def __init__(
        self,
        operator: Operator,
        effort: Effort,
        fraction: float | None,
        kind: str,
        generator: torch.Generator | None,
    ) -> None:
        self.operator = operator
        self.effort = effort
        self.fraction = fraction
        self.kind = kind
        self.generator = check_generator("generator", generator, operator.in_space.device)
        self.eps = torch.finfo(operator.in_space.dtype).eps

    def settle(self, method: str, read: Callable[[int], Reading]) -> Estimate:
        return settle(self.effort, method, read, eps=self.eps)


@final
class _Sampler:
    """A part that is known, `held`, plus the mean of samples; a second reading goes on from the first."""

    def __init__(self, method: str, samples: Samples, held: float = 0.0, pilot: int = PILOT) -> None:
        self.method = method
        self.samples = samples
        self.held = held
        self.pilot = pilot

    def finish(self, job: _Job, effort: Effort | None = None) -> Estimate:
        """Draw until the job's effort is met."""
        return settle(effort or job.effort, self.method, self.read, pilot=self.pilot, eps=job.eps)

    def read(self, total: int) -> Reading:
        """Draw until `total` products are spent."""
        self.samples.draw(total)
        values = self.samples.values
        value, error = jackknife(_first, values[:, None])
        shrink = self.samples.probes.shrink(len(values))
        spent, scale = self.samples.products.count, float(values.norm()) / max(len(values), 1)
        return Reading(self.held + value, shrink * error if shrink else 0.0, len(values), spent, scale)


def _first(mean: Tensor) -> Tensor:
    return mean[..., 0]


def _hutchinson(job: _Job) -> Estimate:
    samples = Samples(Products(job.operator), job.generator, inner, kind=job.kind)
    return _Sampler("hutchinson", samples).finish(job)


def _hutchpp(job: _Job) -> Estimate:
    sketch = Sketch([job.operator], job.fraction or 1 / 3, job.generator, two_sided=True)
    return job.settle("hutch++", functools.partial(_read_sketch, sketch))


def _nonadaptive(job: _Job) -> Estimate:
    sketch = OnePassSketch(job.operator, job.fraction or 1 / 4, job.generator)
    return job.settle("hutch++-nonadaptive", functools.partial(_read_sketch, sketch))


def _read_sketch(sketch: Sketch | OnePassSketch, total: int) -> Reading:
    sketch.grow(total)
    held, samples = sketch.trace()
    value, error = jackknife(_first, samples[:, None])
    return Reading(held + value, error, len(samples), sketch.spent, sketch.scale())


def _xtrace(job: _Job) -> Estimate:
    check_least_budget(2, job.effort)
    sketch = RangeSketch(job.operator, job.kind, job.generator)
    return job.settle("xtrace", functools.partial(_read_left_out, sketch, lambda: xtrace(sketch)))


def _xnystrace(job: _Job) -> Estimate:
    sketch = NystromSketch(job.operator, job.kind, job.generator)
    return job.settle("xnystrace", functools.partial(_read_left_out, sketch, lambda: xnystrace(sketch)))


def _read_left_out(sketch: RangeSketch | NystromSketch, pairs: Callable[[], Tensor], total: int) -> Reading:
    """What the leave-one-out values say; on a basis of the whole space, the exact trace."""
    sketch.grow(total)
    if sketch.complete:
        value, scale = float(inner(sketch.basis, sketch.images).sum()), norm(sketch.images)
        return Reading(value, 0.0, len(sketch.basis), sketch.spent, scale)
    return reading(pairs(), sketch.spent)


def _one_sided(job: _Job, method: str, side: Operator, metric: Operator | None) -> _Sampler:
    """Samples of ⟨B g, M B g⟩ for B = Fᵀ or F, with g made orthogonal to what is summed exactly."""
    products = Products(side)
    first = job.effort.budget if job.effort.whole else min(PILOT, job.effort.budget)
    columns = min(int((job.fraction or 0.0) * first), side.in_space.size)
    probes = signs(side.in_space, columns, job.generator)
    basis = orthonormal_rows(probes, probes[:0])
    measure = functools.partial(_energy, None if metric is None else Products(metric))
    held = float(measure(basis, products(basis)).sum())
    deflate = functools.partial(project_out, basis=basis) if len(basis) else None
    return _Sampler(method, Samples(products, job.generator, measure, deflate, kind=job.kind), held)


def _energy(metric: Products | None, _probes: Tensor, image: Tensor) -> Tensor:
    """⟨u, M u⟩."""
    return inner(image, image if metric is None else metric(image))


def _reverse(job: _Job) -> _Sampler:
    gramian = _gramian(job.operator)
    return _one_sided(job, "one-sided-reverse", gramian.factor.T, gramian.metric)


def _one_sided_blocks(job: _Job) -> Estimate:
    return _blocks(job, declared(job.operator, _samples_of)).finish(job)


def _blocks(job: _Job, sampled: Sampled | None) -> _Sampler:
    if sampled is None:
        raise ValueError(
            f"`method` 'one-sided-blocks' needs an operator whose structure knows blocks (the NTK of the states of a "
            f"recurrent network); got {job.operator!r}. Use 'one-sided-reverse' or 'auto'."
        )
    shape = sampled.operator.out_shape

    def measure(_probes: Tensor, image: Tensor) -> Tensor:
        return sampled.energy(image.reshape(len(image), *shape))

    samples = Samples(Products(sampled.operator), job.generator, measure, kind=job.kind)
    return _Sampler("one-sided-blocks", samples, pilot=BLOCK_PILOT)


def _one_sided_reverse(job: _Job) -> Estimate:
    return _reverse(job).finish(job)


def _one_sided_forward(job: _Job) -> Estimate:
    return _one_sided(job, "one-sided-forward", _gramian(job.operator).factor, None).finish(job)


def _exact(job: _Job) -> Estimate:
    """The sum over unit vectors, by the cheaper side where there are two."""
    quantity = declared(job.operator, _of_structure)
    if quantity is not None and is_worth(quantity, "exact", job.effort, _exact_size(job.operator)):
        return by_structure(quantity.compute())
    side, metric = job.operator, None
    if isinstance(job.operator, Gramian):
        side, metric = job.operator.factor.T, job.operator.metric
        if metric is None and side.out_space.size < side.in_space.size:
            side = side.T
    size = side.in_space.size
    check_exact_budget(size, job.effort)
    measure = inner
    if isinstance(job.operator, Gramian):
        measure = functools.partial(_energy, None if metric is None else Products(metric))
    products, total = Products(side), 0.0
    for unit in basis_blocks(side.in_space, products.block):
        total += float(measure(unit, products(unit)).sum())
    return Estimate(total, 0.0, products.count, Status.CONVERGED, "exact")


def _of_structure(structure: Structure) -> Exact[float] | None:
    return structure.trace()


def _samples_of(structure: Structure) -> Sampled | None:
    return structure.sampled_trace()


def _auto(job: _Job) -> Estimate:
    size, quantity = _exact_size(job.operator), declared(job.operator, _of_structure)
    if quantity is not None and is_worth(quantity, "auto", job.effort, size):
        return by_structure(quantity.compute())
    if exact_pays(size, job.effort):
        return _exact(job)
    return _one_sided_or_other(job, quantity) if isinstance(job.operator, Gramian) else _hutchpp(job)


def _one_sided_or_other(job: _Job, quantity: Exact[float] | None) -> Estimate:
    """One-sided, unless the pilot shows that structure is cheaper, or a spectrum so short that a sketch is."""
    sampled, effort = declared(job.operator, _samples_of), job.effort
    sampler = _reverse(job) if sampled is None else _blocks(job, sampled)
    if effort.whole or effort.budget <= sampler.pilot:
        return sampler.finish(job)
    pilot = sampler.finish(job, dataclasses.replace(effort, budget=sampler.pilot))
    goal = effort.rtol * abs(pilot.value)
    variance = sampler.pilot * pilot.standard_error**2  # of one probe; 2 (value)²/(effective rank) for a Gaussian one
    if quantity is not None and variance > quantity.cost * goal**2:
        return dataclasses.replace(by_structure(quantity.compute()), num_matvecs=pilot.num_matvecs)
    broad = 2 * pilot.value**2 > SKETCHED_RANK * variance
    if not math.isfinite(goal) or variance <= ONE_SIDED_PRODUCTS * goal**2 or broad:
        return sampler.finish(job)
    job.effort = dataclasses.replace(effort, budget=effort.budget - pilot.num_matvecs)
    result = _xnystrace(job) if _gramian(job.operator).metric is None else _hutchpp(job)
    return dataclasses.replace(result, num_matvecs=result.num_matvecs + pilot.num_matvecs)


_METHODS: dict[str, Callable[[_Job], Estimate]] = {
    "hutchinson": _hutchinson,
    "hutch++": _hutchpp,
    "hutch++-nonadaptive": _nonadaptive,
    "xtrace": _xtrace,
    "xnystrace": _xnystrace,
    "one-sided-blocks": _one_sided_blocks,
    "one-sided-reverse": _one_sided_reverse,
    "one-sided-forward": _one_sided_forward,
    "exact": _exact,
}


def _exact_size(operator: Operator) -> int:
    """Products of the exact method."""
    if isinstance(operator, Gramian) and operator.metric is None:
        return min(operator.in_space.size, operator.factor.in_space.size)
    return operator.in_space.size


def _gramian(operator: Operator) -> Gramian:
    if not isinstance(operator, Gramian):
        raise TypeError(f"The one-sided methods need a Gramian; got {type(operator).__name__}.")
    return operator
