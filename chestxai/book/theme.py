"""A Sphinx extension: takes back what the theme adds to each page though the book does not use it."""

from typing import Any

from sphinx.application import Sphinx

_UNUSED = ("thebe", "plotly.min.js")


def drop_scripts(app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Drop scripts from a page: thebe's, which declare a constant twice (an error in every console), and plotly.js.

    Live code is off, and a chart loads plotly.js itself (`chestxai.plots.page`), so that a page without one does not.

    Args:
        app: Of Sphinx.
        name: Of the page.
        template: Of the page.
        context: What the template is filled with; is changed.
        doctree: The page.
    """
    context["script_files"] = [
        script for script in context.get("script_files", []) if not any(unused in str(script) for unused in _UNUSED)
    ]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    # After sphinx-thebe's own.
    app.connect("html-page-context", drop_scripts, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
