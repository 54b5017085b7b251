"""Settings of the documentation. It needs no network to build, and none to read."""

import contextlib
import inspect
import io
import os
import re
from pathlib import Path

import torch
from sphinx.application import Sphinx
from sphinx_gallery.sorting import ExplicitOrder
from typer.main import get_command

import kpflow
from kpflow import cli, gallery, plots

torch.set_num_threads(1)  # the examples' tensors are small: more threads make them slower

project = "kpflow"
author = "The kpflow developers"
copyright = "The kpflow developers"
release = version = kpflow.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery"]
exclude_patterns = [
    "_build",
    "generated/gallery",
    *(f"{folder}/*.{kind}" for folder in ("examples", "gallery") for kind in ("ipynb", "zip")),
]
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
    "examples_dirs": ["../examples", "generated/gallery"],
    "gallery_dirs": ["examples", "gallery"],
    "filename_pattern": "/plot_",
    "within_subsection_order": ExplicitOrder(
        [
            "plot_first_steps.py",
            "plot_tasks.py",
            "plot_self_referential_bias.py",
            "plot_one_gradient_step.py",
            "plot_objectives.py",
            "plot_learning_rules.py",
            "plot_collapse.py",
            "plot_trace_estimators.py",
            "plot_alignment_of_a_trained_network.py",
            "plot_transformer_kernels.py",
            "plot_infinite_width.py",
            "plot_attractors.py",
            "plot_scalar_forms.py",
            "plot_bifurcation_collapse.py",
            "plot_truncation.py",
            "plot_predicting_learning.py",
            *(f"plot_entry_{name}.py" for name in gallery.names()),
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


GALLERY = """Gallery
=======

Small learning systems with known answers from the papers around kpflow. Each is run when this documentation is built;
each check that failed would stop the build. Monte Carlo checks state their errors over six seeds, from which their
tolerances are set. The first panel has observed points on predicted curves, the second is the
view through K and P. New ones are welcome: see :doc:`/how-to-extend`.
"""

PAGE = '''r"""
{title}
{line}

{text}

**Paper.** {paper}.

**What K and P add.** {kernels}

**Not covered.** {omits}

The system, its prediction and its checks are in ``{source}``.
"""

import matplotlib.pyplot as plt

import kpflow as kp
from kpflow import gallery

result = gallery.run("{name}")
print(result)

# %%
# Points were observed, curves are predicted.

figure = kp.plots.entry_figure(result.record())
# sphinx_gallery_start_ignore
assert result.passed
manager = plt.figure().canvas.manager
manager.canvas.figure = figure
figure.set_canvas(manager.canvas)
# sphinx_gallery_end_ignore
'''


def write_gallery(folder: Path) -> None:
    """Write a script for each entry of the gallery, before sphinx-gallery reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("plot_*.py"):
        if old.stem.removeprefix("plot_entry_") not in gallery.names():
            old.unlink()
    (folder / "README.rst").write_text(GALLERY, "utf-8")
    for name in gallery.names():
        entry = gallery.get(name)
        words = {key: escaped(getattr(entry, key)) for key in ("title", "paper", "kernels", "omits")}
        source = type(entry).__module__.replace(".", "/") + ".py"
        text = escaped(inspect.getdoc(type(entry)) or "")
        page = PAGE.format(name=name, line="=" * len(words["title"]), text=text, source=source, **words)
        (folder / f"plot_entry_{name}.py").write_text(page, "utf-8")


def escaped(text: str) -> str:
    """Plain words with `code` as reStructuredText."""
    return re.sub(r"`[^`]*`|[|*_]", lambda found: found[0] if found[0][0] == "`" else "\\" + found[0], text)


write_gallery(Path(__file__).parent / "generated" / "gallery")


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
