"""One self-contained HTML page from a record alone: `render` gives the text, `write` puts it in a file."""

from .page import render, write
from .parts import Plot, Section
from .sections import SECTIONS

__all__ = ["SECTIONS", "Plot", "Section", "render", "write"]
