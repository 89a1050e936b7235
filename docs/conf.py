"""The documentation: Sphinx with MyST-NB; notebooks are kept as text and executed when the site is built."""

import hashlib
import inspect
import os
import re
import tomllib
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]
# What notebooks run with: the tree that these pages describe, the helpers beside the tour, no colours in text.
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE / "tour"), os.environ.get("PYTHONPATH", "")])
os.environ["NO_COLOR"] = "1"


def runs_on() -> str:
    """A digest of the code that notebooks run, and of whether they are to be quick."""
    files = sorted([*(HERE.parent / "vitreous").rglob("*.py"), *(HERE / "tour").glob("*.py")])
    code = b"".join(file.read_bytes() for file in files)
    return hashlib.sha256(code + os.environ.get("VITREOUS_DOCS_QUICK", "").encode()).hexdigest()[:12]


# What several pages have from one training.
os.environ["VITREOUS_DOCS_MADE"] = str(HERE / "_build" / "made" / runs_on())

project = "Vitreous"
author = "the authors of Vitreous"
copyright = author
version = release = PROJECT["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_design"]
exclude_patterns = ["_build"]
root_doc = "index"
suppress_warnings = ["mystnb.unknown_mime_type"]

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"  # a page that has not changed is not run again, where nothing that it runs has changed
nb_execution_cache_path = str(HERE / "_build" / "executed" / runs_on())
nb_execution_timeout = 900  # seconds of a cell, on a busy machine; a chapter takes a minute or two on an idle one
nb_execution_raise_on_error = True
nb_merge_streams = True

default_role = "code"  # docstrings write `name` as Markdown does
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "Vitreous"
html_static_path = ["_static"]
html_css_files = ["vitreous.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0068a6",
        "color-brand-content": "#0068a6",
        "color-brand-visited": "#0068a6",
        "color-background-primary": "#fcfcfa",
        "color-background-secondary": "#f6f6f2",
        "color-foreground-primary": "#1b1e23",
    },
    "dark_css_variables": {
        "color-brand-primary": "#5fb2e6",
        "color-brand-content": "#5fb2e6",
        "color-brand-visited": "#5fb2e6",
        "color-background-primary": "#131518",
        "color-background-secondary": "#1b1e22",
        "color-foreground-primary": "#eceef0",
    },
}
copybutton_prompt_text = "$ "  # of a terminal the commands alone are copied
copybutton_copy_empty_lines = False


def setup(app: Sphinx) -> None:
    """Docstrings are plain text, formulas are MathML: that needs no script, and no network."""
    app.connect("autodoc-process-docstring", _plain, priority=100)  # before napoleon reads Raises and Args
    app.connect("autodoc-process-docstring", _whole, priority=900)
    app.add_html_math_renderer("mathml", inline_renderers=(_formula, None), block_renderers=(_formula, None))


def _plain(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """`|x|` and `*args` are what they look like."""
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"([|*])", r"\\\1", words) for words in parts[::2]]
        lines[number] = "`".join(parts)


def _whole(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """What stands before a colon is no type, which napoleon takes it for in properties."""
    if what in ("property", "attribute") and (text := inspect.getdoc(thing)):
        lines[:] = text.splitlines()
        _plain(app, what, name, thing, options, lines)


def _formula(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    translator.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode
