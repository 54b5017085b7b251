"""The page's two colour schemes: the figures' palette on light, and its counterpart on dark."""

from markupsafe import Markup

from kpflow.plots.style import PALETTE

__all__ = ["DARK", "LIGHT", "scheme"]

LIGHT = PALETTE | {"paper": "#ffffff", "page": "#f6f7f9", "accent": "#0b6bb5"}
"""Every colour of the page by its role, on light."""

DARK = {
    "ink": "#e6eaf0",
    "muted": "#9aa6b5",
    "rule": "#465161",
    "grid": "#2b3440",
    "ntk": "#5db2f2",
    "propagator": "#ff9a57",
    "kernel": "#3ccfa0",
    "score": "#cf93de",
    "inputs": "#a3adba",
    "states": "#a79bf2",
    "error": "#e2b93b",
    "targets": "#f27ba4",
    "stable": "#74cf7a",
    "saddle": "#ff8585",
    "event": "#dba866",
    "exponent": "#4cc4d8",
    "early": "#5f8bf2",
    "early-mid": "#a873e0",
    "middle": "#e5678c",
    "late-mid": "#f79a5f",
    "late": "#ffd66b",
    "paper": "#1a2029",
    "page": "#12161c",
    "accent": "#5db2f2",
}
"""The same roles on dark."""


def scheme(colours: dict[str, str]) -> Markup:
    """CSS declarations of the colours.

    Example:
        >>> print(scheme({"ink": "#000000"}))
        --ink: #000000;
    """
    return Markup(" ").join(Markup("--{}: {};").format(role, colour) for role, colour in colours.items())
