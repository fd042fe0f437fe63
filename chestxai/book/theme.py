"""A Sphinx extension: takes back what the theme adds to each page though the book does not use it."""

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

_UNUSED = ("thebe", "plotly.min.js")
# An icon in the theme's script: name, width, height, other names, code, path.
_ICON = re.compile(r'"?([\w-]+)"?:\[\d+,\d+,\[([^\]]*)\],"[0-9a-f]+",(?:"[^"]*"|\[[^\]]*\])\],?')


def drop_scripts(app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Drop scripts from a page: thebe's, which declare a constant twice (an error in every console), and plotly.js.

    Live code is off, and a chart loads plotly.js itself (`chestxai.plots.page`). A page without formulas needs no
    MathJax. Of what Sphinx gives (``app``, ``name``, ``template``, ``context``, ``doctree``) the context is changed.
    """
    unused = _UNUSED if 'class="math' in str(context.get("body")) else (*_UNUSED, "mathjax")
    # docutils calls the bibliography a list of no items, which a screen reader announces as empty.
    if "body" in context:
        context["body"] = context["body"].replace('role="list" class="citation-list"', 'class="citation-list"')
    scripts = context.get("script_files", [])
    context["script_files"] = [s for s in scripts if not any(word in str(s).lower() for word in unused)]


def drop_icons(app: Sphinx, exception: Exception | None) -> None:
    """Keep, of the theme's 2,000 icons (1.5 MB on each page), those that a page or a script of ``app`` names.

    After an ``exception`` in the build nothing is done.
    """
    icons = Path(app.outdir) / "_static" / "scripts" / "fontawesome.js"
    if exception or not icons.is_file():
        return
    files = [*Path(app.outdir).rglob("*.html"), *(Path(app.outdir) / "_static").rglob("*.js")]
    text = "".join(
        p.read_text("utf-8") for p in files if p != icons and "mathjax" not in p.parts and "plotly" not in p.name
    )
    used = set(re.findall(r"\bfa-([a-z0-9-]+)", text))

    def kept(icon: re.Match[str]) -> str:
        return icon[0] if used & {icon[1], *re.findall(r"[\w-]+", icon[2])} else ""

    icons.write_text(_ICON.sub(kept, icons.read_text("utf-8")), "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    # After sphinx-thebe's own.
    app.connect("html-page-context", drop_scripts, priority=900)
    app.connect("build-finished", drop_icons)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
