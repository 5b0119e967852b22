"""How Sphinx builds these pages: MyST Markdown, the furo theme, nothing fetched from a network."""

from p2pkv import __version__

project = "p2pkv"
author = "the p2pkv authors"
copyright = "the p2pkv authors, Apache-2.0"
version = release = __version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
root_doc = "index"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # so that a page can link to a heading of another, and a broken link is a warning

html_theme = "furo"
html_title = f"p2pkv {__version__}"
html_show_sourcelink = False
html_show_sphinx = False
