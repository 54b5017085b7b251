"""Centre manifolds of one multiplier: the coefficients of the map on it, at criticality and off it.

Notation as of `normal_forms`. The expansion of the manifold, h = h̄ + α v + ½ w₂ α² + …, is invariant for any λ, so that
the equations hold wherever λ² (flows: 2λ) is no other eigenvalue of A.
"""

import torch
from torch import Tensor

from .expansions import Critical, Expansion, check_resonance, solve

__all__ = ["complex_coefficients", "real_coefficients"]


def real_coefficients(
    expansion: Expansion, pair: Critical, flow: bool, persists: bool, zero: float
) -> tuple[str, dict[str, float | complex]]:
    """Kind, and a, c of α' = λ α + a α² + c α³; of a flip also b.

    (λ² I − A) w₂ = B(v, v) − ⟨u, B(v, v)⟩ v with ⟨u, w₂⟩ = 0, bordered as it is singular at λ = 1 (flows: 2λ);
    a = ½⟨u, B(v, v)⟩, c = ⅙⟨u, C(v, v, v)⟩ + ½⟨u, B(v, w₂)⟩. Of a flip b = c + 2a² / (λ² − λ), which is c + a² at −1.
    """
    value = pair.multiplier.real
    v, derivative = pair.right, expansion.derivative
    bend = derivative(v, v)
    second = float(torch.dot(pair.left, bend))
    curved = _bordered(expansion, 2 * value if flow else value**2, bend - second * v, pair)
    cubic = derivative(v, v, v) / 6 + derivative(v, curved) / 2
    a, c = second / 2 + 0.0, float(torch.dot(pair.left, cubic)) + 0.0
    if not flow and value < 0:
        return "flip", {"a": a, "c": c, "b": c + 2 * a**2 / (value**2 - value)}
    if abs(a) > zero:
        return ("transcritical" if persists else "fold"), {"a": a, "c": c}
    return ("pitchfork" if abs(c) > zero else "degenerate"), {"a": a, "c": c}


def complex_coefficients(expansion: Expansion, pair: Critical, flow: bool) -> tuple[str, dict[str, float | complex]]:
    """Kind, and c₁ of z' = λ z + c₁ |z|² z with d = Re(λ̄ c₁) / |λ| of a map, l₁ = Re c₁ / ω of a flow.

    c₁ = ½⟨u, C(v, v, v̄) + 2 B(v, w₁₁) + B(v̄, w₂₀)⟩, (|λ|² I − A) w₁₁ = B(v, v̄), (λ² I − A) w₂₀ = B(v, v); flows have
    2 Re λ for |λ|² and 2λ for λ². Of tanh(W h) at 0, c₁ = −λ|λ|² Σ u v|v|².
    """
    value = pair.multiplier
    if not flow:
        check_resonance(value, "λ", "c₁", stacklevel=5)
    v, derivative = pair.right, expansion.derivative
    conjugate = v.conj().resolve_conj()
    constant = expansion.shifted(2 * value.real if flow else abs(value) ** 2)
    doubled = expansion.shifted(2 * value if flow else value**2)
    mean = solve(constant, derivative(v, conjugate).real, "|λ|² I − A (flows: 2 Re λ I − A)")
    double = solve(doubled, derivative(v, v), "λ² I − A (flows: 2λ I − A)")
    cubic = derivative(v, v, conjugate) + 2 * derivative(v, mean) + derivative(conjugate, double)
    c1 = 0.5 * complex(torch.vdot(pair.left, cubic).item())
    if flow:
        return "hopf", {"c1": c1, "l1": c1.real / value.imag}
    return "neimark-sacker", {"c1": c1, "d": (value.conjugate() * c1).real / abs(value)}


def _bordered(expansion: Expansion, value: float, vector: Tensor, pair: Critical) -> Tensor:
    """x with (value − A) x = vector and ⟨u, x⟩ = 0, for ⟨u, vector⟩ = 0."""
    above = torch.cat([expansion.shifted(value), pair.right[:, None]], dim=1)
    below = torch.cat([pair.left, pair.left.new_zeros(1)])[None]
    matrix = torch.cat([above, below])
    return solve(matrix, torch.cat([vector, vector.new_zeros(1)]), f"{value:.6g} I − A, bordered,")[:-1]
