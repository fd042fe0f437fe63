"""What the theme adds to a page and the book does not use is taken back."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from chestxai.book import theme

SCRIPTS = ["plotly.min.js", "sphinx-thebe.js", "const THEBE_JS_URL = 1", "mathjax/tex-chtml.js", "tables.js"]


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("<p>no formula</p>", ["tables.js"]),
        ('<div class="math notranslate">x</div>', ["mathjax/tex-chtml.js", "tables.js"]),
    ],
)
def test_a_page_loads_what_it_uses(body, kept):
    context = {"script_files": list(SCRIPTS), "body": body}
    theme.drop_scripts(None, "page", "page.html", context, None)
    assert context["script_files"] == kept


def test_the_bibliography_is_no_list_without_items():
    context = {"body": '<div role="list" class="citation-list">'}
    theme.drop_scripts(None, "intro", "page.html", context, None)
    assert context["body"] == '<div class="citation-list">'


def test_icons_that_no_page_names_are_dropped(tmp_path):
    icons = tmp_path / "_static" / "scripts" / "fontawesome.js"
    icons.parent.mkdir(parents=True)
    icons.write_text(
        'var i={monero:[384,512,[],"f3d0","M1 2"],"angle-right":[320,512,[8250],"f105","M3 4"],'
        'gear:[512,512,["cog"],"f013",["M5","M6"]]};use(i)'
    )
    (tmp_path / "index.html").write_text("<i class='fa-solid fa-angle-right'></i><i class='fa-cog'></i>")
    theme.drop_icons(SimpleNamespace(outdir=tmp_path), ValueError())
    assert "monero" in icons.read_text()
    theme.drop_icons(SimpleNamespace(outdir=tmp_path), None)
    assert icons.read_text() == (
        'var i={"angle-right":[320,512,[8250],"f105","M3 4"],gear:[512,512,["cog"],"f013",["M5","M6"]]};use(i)'
    )
