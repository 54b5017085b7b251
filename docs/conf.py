"""Settings of the documentation. It needs no network to build, and none to read."""

import contextlib
import io
import os
import re
from pathlib import Path

import torch
from sphinx.application import Sphinx
from sphinx_gallery.sorting import ExplicitOrder
from typer.main import get_command

import kpflow
from kpflow import cli, plots

torch.set_num_threads(1)  # the examples' tensors are small: more threads make them slower

project = "kpflow"
author = "The kpflow developers"
copyright = "The kpflow developers"
release = version = kpflow.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery"]
exclude_patterns = ["_build", "examples/*.ipynb", "examples/*.zip"]
default_role = "code"
suppress_warnings = ["config.cache"]  # the gallery's settings hold an object that cannot be pickled

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "examples",
    "filename_pattern": "/plot_",
    "within_subsection_order": ExplicitOrder(
        [
            "plot_first_steps.py",
            "plot_tasks.py",
            "plot_self_referential_bias.py",
            "plot_one_gradient_step.py",
            "plot_collapse.py",
            "plot_trace_estimators.py",
            "plot_alignment_of_a_trained_network.py",
            "plot_transformer_kernels.py",
            "plot_infinite_width.py",
            "plot_scalar_forms.py",
            "plot_bifurcation_collapse.py",
            "plot_truncation.py",
            "plot_predicting_learning.py",
        ]
    ),
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "show_signature": False,
    "download_all_examples": False,
    "min_reported_time": 0,
    "write_computation_times": False,  # its page would load scripts from the network
    "capture_repr": (),
}

html_theme = "furo"
html_title = f"kpflow {version}"
html_static_path = ["_static"]
html_css_files = ["kpflow.css"]
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5cad", "color-brand-content": "#0b5cad"},
    "dark_css_variables": {"color-brand-primary": "#7db7f0", "color-brand-content": "#7db7f0"},
}


def write_generated(app: Sphinx) -> None:
    """Write what pages quote from the program itself: the help of each command, and the schema of records."""
    folder = Path(app.srcdir) / "generated"
    folder.mkdir(exist_ok=True)
    os.environ["COLUMNS"] = "84"  # of the boxes that rich draws
    for command in ("", "demo", "analyze", "report", "gallery"):
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            get_command(cli.app).main([*command.split(), "--help"], prog_name="kpflow", standalone_mode=False)
        lines = [line.rstrip() for line in text.getvalue().splitlines()]
        (folder / f"kpflow{command and '-'}{command}.txt").write_text("\n".join(lines).strip("\n") + "\n", "utf-8")
    width = max(map(len, plots.SCHEMA))
    schema = "".join(f"{name:{width}}  {', '.join(axes)}\n" for name, axes in plots.SCHEMA.items())
    (folder / "schema.txt").write_text(schema, "utf-8")


def escape_bars(_app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """|x| in a docstring is an absolute value; in reStructuredText it would be a substitution."""
    for index, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            lines[index] = re.sub(r"`[^`]*`|\|", lambda found: "\\|" if found[0] == "|" else found[0], line)


def setup(app: Sphinx) -> None:
    """Connect."""
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("builder-inited", write_generated)
