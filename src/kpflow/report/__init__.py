"""One self-contained HTML page from a record alone: `render` gives the text, `write` puts it in a file."""

from .page import render, write
from .sections import SECTIONS, Plot, Section

__all__ = ["SECTIONS", "Plot", "Section", "render", "write"]
