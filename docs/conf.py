"""Sphinx: built with warnings as errors by `make docs`."""

project = "Tauon"
copyright = "2026, the Tauon authors"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "Tauon"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
suppress_warnings = []
