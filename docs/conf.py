"""Settings of Sphinx: ``sphinx-build -W -n --keep-going docs docs/_build/html``."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import pages  # noqa: E402 - needs the path

import bbvi  # noqa: E402

project = "bbvi"
release = bbvi.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "myst_nb",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "bbvi"
html_copy_source = False

# Signatures show names and defaults: docstrings say in words what each argument is.
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_attr_annotations = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # outputs are stored, and the tests run the cells

# Errors that docstrings say are raised, of Python and of libraries, have no page here.
nitpick_ignore_regex = [("py:exc", ".*")]


def setup(app):
    """Write the pages that are made from the library, before Sphinx looks for pages."""
    app.connect("config-inited", lambda app, config: pages.write(Path(app.srcdir)))
    app.connect("autodoc-skip-member", pages.skip_member)
