"""How Sphinx makes the site (`make docs`) of the pages as they are in the repository."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bulkfetch import __version__  # noqa: E402  it is found by the line before
from docs import from_code  # noqa: E402  the same

project = "bulkfetch"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

root_doc = "docs/index"
include_patterns = ["docs/**.md", "*.md"]
# Not to be walked through.
exclude_patterns = ["[!A-Zd]*", "bulkfetch*"]

myst_heading_anchors = 4
# Two dashes are an option, and no dash.
smartquotes = False

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {
    "members": True,
    "undoc-members": True,
    "show-inheritance": True,
    "exclude-members": "model_config",
}
# An attribute that its class describes is not described twice.
napoleon_use_ivar = True
# `bytes`, the type, is looked for among attributes of that name, of which there are several.
suppress_warnings = ["ref.python"]
toc_object_entries = False
# A name between single backticks, as docstrings have them.
default_role = "code"
# Blocks of no language, and those that are indented, are what a terminal shows.
highlight_language = "text"

html_theme = "furo"
html_title = f"bulkfetch {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_additional_pages = {"index": "to-the-front.html"}
templates_path = ["_templates"]


def setup(app: Sphinx) -> None:
    """Read the pages with what is made for them."""
    app.add_lexer("cron", TextLexer)  # Pygments has none
    app.connect("source-read", _made)


def _made(_app: Sphinx, name: str, text: list[str]) -> None:
    text[0] = from_code.fill(text[0])
    if name == root_doc:
        text[0] = _with_contents(text[0])


def _with_contents(front: str) -> str:
    """Return the front page with a table of contents: its own lists of links, by heading."""
    for heading, links in re.findall(r"^## (.+)\n([^#]*)", front, re.MULTILINE):
        pages = re.findall(r"^- \[([^\]]+)\]\((\S+)\.md\)", links, re.MULTILINE)
        entries = "\n".join(f"{title} <{page}>" for title, page in pages)
        front += f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{entries}\n```\n"
    return front
