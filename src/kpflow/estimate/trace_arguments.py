"""Which arguments of `trace` go together."""

from kpflow._checks import check_one_of
from kpflow.operators import Gramian, Operator

from .products import PROBES

__all__ = ["check_fits", "check_fraction", "check_probes"]


def check_fits(operator: Operator, method: str) -> None:
    """Raise if a one-sided method is asked for where F is not known, or is not enough, or A not symmetric."""
    if method == "xnystrace" and not operator.symmetric:
        raise ValueError(
            f"`method` 'xnystrace' needs a symmetric, positive semi-definite operator; got {operator!r}, which is not "
            f"known to be symmetric. Use 'xtrace', which takes any."
        )
    if not method.startswith("one-sided"):
        return
    if not isinstance(operator, Gramian):
        raise ValueError(
            f"`method` {method!r} needs an operator A = F Fᵀ whose factor F is known (a Gramian); got {operator!r}. "
            f"Use 'hutch++' or 'auto'."
        )
    if method == "one-sided-forward" and operator.metric is not None:
        raise ValueError(
            f"`method` 'one-sided-forward' needs a Gramian without a metric; got {operator!r}, which has one. "
            f"Use 'one-sided-reverse', which takes any metric."
        )


def check_fraction(method: str, fraction: float | None) -> float | None:
    """Raise unless `sketch_fraction` suits the method; None is the method's default."""
    if fraction is None:
        return None
    high = {"hutch++": 1 / 2, "hutch++-nonadaptive": 1 / 3, "one-sided-reverse": 1, "one-sided-forward": 1}.get(method)
    if high is None:
        raise ValueError(
            f"`sketch_fraction` is for the 'hutch++' and the one-sided methods; got it with {method!r}. Leave it out."
        )
    if not 0 < fraction < high:
        raise ValueError(f"`sketch_fraction` must be between 0 and {high:.3g} for method {method!r}; got {fraction!r}.")
    return fraction


def check_probes(method: str, probes: str | None, fraction: float | None) -> str:
    """Return the kind of probes, the method's own if None; raise unless it suits the method."""
    left_out = method in ("xtrace", "xnystrace")
    if probes is None:
        return "sphere" if left_out else "signs"
    check_one_of("probes", probes, PROBES)
    if not left_out and method != "hutchinson" and not method.startswith("one-sided"):
        raise ValueError(
            f"`probes` is for 'hutchinson', 'xtrace', 'xnystrace' and the one-sided methods; got it with {method!r}. "
            f"Leave it out."
        )
    if probes == "orthogonal" and (left_out or fraction is not None):
        other = f"method {method!r}" if left_out else "`sketch_fraction`"
        raise ValueError(f"`probes` 'orthogonal' cannot go with {other}, which makes its own; use 'signs' or 'sphere'.")
    return probes
