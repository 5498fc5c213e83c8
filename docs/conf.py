"""Settings of Sphinx: pages in Markdown (MyST), the theme Furo, an API reference made from docstrings."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from docstrings import restructured
from macros import expand
from mathml import add_mathml
from reference import write_pages
from sphinx.application import Sphinx

import vmr_env

project = "vmr-env"
author = "The vmr-env developers"
release = vmr_env.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "sphinx_copybutton",
]

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 4

# Docstrings are Markdown with Google's sections; `restructured` turns the former into what Sphinx reads.
default_role = "py:obj"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_mock_imports = ["ray"]  # an extra, and large
napoleon_use_ivar = True
napoleon_custom_sections = ["Raises"]
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = f"vmr-env {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r"^(>>> |\.\.\. |\$ )"
copybutton_prompt_is_regexp = True


def convert(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Make reStructuredText of a docstring, before napoleon reads its sections."""
    restructured(lines)
    if what in ("attribute", "data", "property"):
        # Napoleon takes what stands before a colon in the first line for a type; an empty comment has none.
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> None:
    """Macros on pages, Markdown in docstrings, equations as MathML, pages of the API reference."""
    app.connect("source-read", lambda app, name, source: source.__setitem__(0, expand(source[0])))
    app.connect("autodoc-process-docstring", convert, priority=0)
    add_mathml(app)
    write_pages(Path(app.srcdir) / "api")
