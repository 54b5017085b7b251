"""Effective gradient flow and truncation maps of ReLU networks (T. Chen, arXiv 2501.07400).

A ReLU layer with invertible W acts in input space by its truncation map τ(x) = W⁻¹(σ(W x + b) − b), and a deep network
by those of its cumulative parameters W^(ℓ) = W_ℓ ⋯ W_1, b^(ℓ) = W_ℓ b^(ℓ−1) + b_ℓ in turn: its output is affine in the
data that they truncate. Where W = W_* R is aligned with the activations, gradient flow moves β = W⁻¹ b towards minus
the targets of the points that are cut off, at the rate n_k / N in coordinate k.
"""

from .bias_flows import BiasFlow, Course, Equilibrium, bias_flow, equilibria
from .cumulative import AlignedFrame, CumulativeParameters, aligned_frame, cumulative_parameters, input_targets
from .effective_flows import EffectiveGradient, EffectivePath, effective_flow, effective_gradient
from .network_flows import NetworkPath, network_flow
from .truncation_maps import (
    Collapse,
    TruncatedData,
    aligned_map,
    collapse,
    truncated_data,
    truncated_fractions,
    truncation_map,
)

__all__ = [
    "AlignedFrame",
    "BiasFlow",
    "Collapse",
    "Course",
    "CumulativeParameters",
    "EffectiveGradient",
    "EffectivePath",
    "Equilibrium",
    "NetworkPath",
    "TruncatedData",
    "aligned_frame",
    "aligned_map",
    "bias_flow",
    "collapse",
    "cumulative_parameters",
    "effective_flow",
    "effective_gradient",
    "equilibria",
    "input_targets",
    "network_flow",
    "truncated_data",
    "truncated_fractions",
    "truncation_map",
]
