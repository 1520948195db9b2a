"""How Sphinx makes the site: ``make docs``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import django

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "docs_settings")
sys.path.insert(0, str(Path(__file__).parent))
django.setup()

import powercrud_dashboard  # noqa: E402

project = "powercrud_dashboard"
author = "The powercrud_dashboard developers"
project_copyright = author
version = release = powercrud_dashboard.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
# Texts of messages and code in tables stay as they are.
smartquotes = False

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
# Tables of arguments keep the words of the docstrings.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
maximum_signature_line_length = 88
add_module_names = False

# What belongs to Python, Django or django-q2 is not described here, and no other site is asked when the pages are made.
nitpick_ignore_regex = [(r"py:.*", r"(?!powercrud_dashboard).*")]

html_theme = "furo"
html_title = f"powercrud-dashboard {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
