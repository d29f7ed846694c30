"""Settings of the documentation site: ``make docs`` builds it, and every warning is an error."""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
warnings.filterwarnings("ignore", category=DeprecationWarning)  # of libraries that the reference imports

project = "cloudseg"
version = release = importlib.metadata.version("cloudseg")
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "carried",
    "commands",
    "docstrings",
    "modules",
    "questions",
    "stages",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_ext"]

# A link to a heading, a file or a name that is not there ends the build.
nitpicky = True
# Types in signatures that other libraries define, fields of settings, private names. All else that begins with
# cloudseg must be on the site.
nitpick_ignore_regex = [("py:.*", r"(?!cloudseg).*"), ("py:attr", ".*"), ("py:.*", r".*\._\w+")]

# A short name in a signature that several modules have (an alias of a type) stays without a link.
suppress_warnings = ["ref.python"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings.py shows them as the source has them
autodoc_default_options = {"exclude-members": "model_config, model_post_init", "ignore-module-all": True}
napoleon_google_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False
napoleon_attr_annotations = False
python_use_unqualified_type_names = True
add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "cloudseg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
