"""Settings of the documentation. It needs no network to build, and none to read."""

import torch
from sphinx_gallery.sorting import ExplicitOrder

import kpflow

torch.set_num_threads(1)  # the examples' tensors are small: more threads make them slower

project = "kpflow"
author = "The kpflow developers"
copyright = "The kpflow developers"
release = version = kpflow.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_gallery.gen_gallery"]
exclude_patterns = ["_build", "examples/*.ipynb", "examples/*.zip"]
nitpicky = False
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
        ["plot_first_steps.py", "plot_self_referential_bias.py", "plot_one_gradient_step.py"]
    ),
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "show_signature": False,
    "download_all_examples": False,
    "min_reported_time": 0,
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
