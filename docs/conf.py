"""The site of the documentation: `make docs`."""

import os
from importlib import import_module
from pkgutil import walk_packages
from typing import Any

from sphinx.application import Sphinx
from typer.cli import app as typer_program
from typer.testing import CliRunner

import session_lifecycle
from session_lifecycle import __version__

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # importing LiteLLM asks the network for prices otherwise
# Imported here, as Sphinx imports with `TYPE_CHECKING` set, which neither FastAPI nor every agent runtime survives.
for module in walk_packages(session_lifecycle.__path__, "session_lifecycle."):
    import_module(module.name)

project = "session-lifecycle"
author = "the authors of session-lifecycle"
project_copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinxcontrib.mermaid",
]
exclude_patterns = ["conf.py"]
man_pages = [("reference/options", "session-lifecycle", "keep the sessions of AI agents in Postgres", author, 1)]
html_theme = "furo"
html_title = f"session-lifecycle {release}"
html_copy_source = False

# Links into a page name its headings, as they do where a repository is read.
myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def _show_examples_as_code(_app: Sphinx, _what: str, _name: str, _of: Any, _options: Any, lines: list[str]) -> None:
    for number in reversed(range(len(lines))):
        if lines[number].strip() == "Example:":
            lines[number : number + 1] = [f"{lines[number]}:", ""]


def _add_options(_app: Sphinx, page: str, source: list[str]) -> None:
    """Adds what the program says of its commands to the page of options."""
    if page == "reference/options":
        ask = ["session_lifecycle.cli.app", "utils", "docs", "--name", "session-lifecycle"]
        said = CliRunner().invoke(typer_program, ask, catch_exceptions=False).stdout
        _, commands = said.split("\n", 1)  # the page has its own heading
        source[0] += commands


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    # Before Napoleon, which would read the code of an example as text.
    app.connect("autodoc-process-docstring", _show_examples_as_code, priority=400)
    app.connect("source-read", _add_options)
