"""How Sphinx builds the documentation: ``make docs``. Every warning is an error, so a broken link fails the build."""

import xlnet

project = "xlnet-pipeline"
author = "the xlnet-pipeline authors"
version = release = xlnet.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nb_execution_mode = "off"  # tests/test_notebook.py executes it

autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True

html_theme = "furo"
html_title = f"xlnet-pipeline {version}"
html_show_copyright = False
