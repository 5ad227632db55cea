"""The documentation site: `sphinx-build -W --keep-going -b html docs docs/_build/html`, no network needed."""

from __future__ import annotations

import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import rsattn

sys.path.insert(0, str(Path(__file__).parent))
from reports import copy_reports, link_to_reports

project = "rsattn"
author = "The rsattn developers"
project_copyright = author
version = release = rsattn.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
html_theme = "furo"
html_title = "rsattn"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False

# Docstrings: `name` is a link where it is the name of something here, else code.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_use_ivar = True
napoleon_use_rtype = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Notebooks and pages with code run anew in every build, and an error in one ends the build.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True


def inline_math(translator: HTML5Translator, node: nodes.math) -> None:
    """MathML, which browsers draw by themselves: no JavaScript from elsewhere."""
    translator.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def block_math(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("builder-inited", copy_reports)
    app.connect("source-read", link_to_reports)


html_math_renderer = "mathml"
