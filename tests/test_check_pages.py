"""The checker of pages finds each kind of fault, each on a page of its own, and none on a good page."""

from __future__ import annotations

import importlib.util
import shutil
import sys

import plotly.graph_objects as go
import pytest

from chestxai import plots
from chestxai.profiles import ROOT

pytest.importorskip("playwright", reason="the extra 'pages' is not installed")
pytest.importorskip("axe_playwright_python", reason="the extra 'pages' is not installed")
spec = importlib.util.spec_from_file_location("check_pages", ROOT / "tools" / "check_pages.py")
check_pages = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = check_pages  # dataclasses look their module up
spec.loader.exec_module(check_pages)
pytestmark = pytest.mark.skipif(check_pages.chromium() is None, reason="there is no Chromium")

TABLE = "<details><summary>Data</summary><table><tr><td>1</td></tr></table></details>"
NATIVE = (
    "<div class='cell_output'><figure><label>Score <select onchange=\"this.closest('figure').querySelector('p')"
    ".style.width = this.value\"><option>10px<option>20px</select></label><p style='width:10px'></p></figure></div>"
)


def drawn(figure: go.Figure, wrapped: str = "<figure aria-label='A line'>{}<figcaption>A line</figcaption>{}</figure>"):
    figure.update_layout(width=340, height=300, template="plotly_white")
    html = figure.to_html(include_plotlyjs="_static/plotly.min.js", full_html=False, config={"displayModeBar": False})
    return f"<div class='cell_output'>{wrapped.format(html, TABLE)}</div>"


def ours(figure: go.Figure) -> str:
    html = plots.page.to_html(figure.update_layout(width=340, title="A line").to_dict())
    return f"<div class='cell_output'>{html}</div>"


def line(**layout) -> go.Figure:
    return go.Figure(go.Scatter(x=[1, 2], y=[1, 2], name="a"), go.Layout(showlegend=True, **layout))


BUTTON = {"label": "the other", "method": "relayout", "args": [{"title.text": "x"}]}
MENU = {"buttons": [BUTTON, BUTTON]}
LABEL = {"text": "A long label", "x": 2, "xref": "paper", "xanchor": "left", "showarrow": False}
ABOVE = {"text": "A label", "x": 1.5, "y": 1.5, "showarrow": False}
OVER = {"updatemenus": [MENU | {"x": 0.9, "y": 1, "type": "buttons"}], "legend": {"x": 0.6, "y": 1}}
DARK = "<style>@media(prefers-color-scheme:dark){body{background:#111;color:#eee}}</style>"
#: Name of a page -> its body, and what the checker must say of it ("" for nothing).
PAGES = {
    "good": (ours(line()) + NATIVE + "<a href='wide.html'>on</a> <a href='#place'>here</a> <i id='place'></i>", ""),
    "console": ("<script>console.error('a fault of ours')</script>", "console: a fault of ours"),
    "thrown": ("<script>throw new Error('not caught')</script>", "console: not caught"),
    "missing": ("<img alt='x' src='nothing.png'>", "/nothing.png, which is not there"),
    "network": ("<img alt='x' src='https://example.org/x.png'>", "does not come with the book"),
    "wide": ("<div class='broad' style='width:2000px'>x</div>", "scrolls sideways: 20"),
    "cut": (drawn(line(annotations=[LABEL])), "“A long label” is cut off"),
    "overlap": (
        drawn(line(annotations=[ABOVE, ABOVE | {"text": "Another"}])),
        "“A label” and “Another” cover each other",
    ),
    "legend": (drawn(line()), "item 1 does nothing when a key is pressed"),
    "covered": (drawn(line(**OVER)), "a control covers the legend"),
    "tab": (drawn(line(updatemenus=[MENU])), "is not reached by Tab"),
    "dead": (NATIVE.replace("onchange", "data-on"), "does nothing when a key is pressed"),
    "bare": (drawn(line(), "{}"), "plot 1 has no caption"),
    "wordless": (drawn(line(), "<figure>{}<figcaption>A line</figcaption>{}</figure>"), "1 has no text alternative"),
    "tableless": (drawn(line(), "<figure aria-label='x'>{}</figure>"), "has no table of its data"),
    "blank": ("<div class='js-plotly-plot' style='height:9px'></div>", "plot 1 is not drawn"),
    "bright": (drawn(line()) + DARK, "light on a dark page"),
    "term": (
        "<style>.term:focus-within::after{content:'x';position:absolute;width:3000px}</style>"
        "<span class='term'><a href='#term'>word</a></span><i id='term'></i>",
        "the definition of “word” runs off the page",
    ),
    "quiz": ("<details class='quiz'><summary>yes</summary></details>", "the quiz does not answer “yes”"),
    "axe": ("<input type='text'>", "axe, label"),
    "link": ("<a href='nowhere.html'>x</a>", "a link leads nowhere: nowhere.html"),
    "place": ("<a href='good.html#gone'>x</a>", "a link leads to no place on its page: good.html#gone"),
    "plotly": ("<script src='_static/plotly.min.js'></script>", "loads plotly.js and has no plot"),
    "heavy": ("<img alt='x' src='heavy.svg'>", "beside plotly.js, more than 1.5"),
    "intro": ("<img alt='x' src='_static/heavy.svg'>", "beside plotly.js, more than 1.5"),
}


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    plots.write_plotlyjs(folder / "_static")
    heavy = f"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><!--{'x' * 1_600_000}--></svg>"
    for place in (folder, folder / "_static"):
        (place / "heavy.svg").write_text(heavy)
    head = "<!doctype html><html lang='en' data-content_root=''><head><meta charset='utf-8'><title>{}</title>"
    head += "<link rel='icon' href='data:,'>"
    for name, (body, _) in PAGES.items():
        text = f"{head.format(name)}</head><body><main><h1>{name}</h1>{body}</main></body></html>"
        (folder / f"{name}.html").write_text(text, "utf-8")
    (folder / "search.html").write_text(f"{head.format('search')}</head><body><div id='search-results'></div></body>")
    return folder


@pytest.fixture(scope="module")
def found(book, tmp_path_factory):
    module = pytest.MonkeyPatch()
    module.setattr(check_pages, "SECONDS", 0.0)
    module.setattr(check_pages, "PATIENCE", 5_000)  # one page never draws, and the search never finds
    module.setattr(check_pages, "WIDTHS", (390,))
    pictures = tmp_path_factory.mktemp("pictures")
    lines = check_pages.check(book, screenshots=pictures, say=lambda line: None)
    module.undo()
    assert len(list(pictures.glob("*.jpg"))) == 2 * len(PAGES)
    return lines


@pytest.mark.parametrize("name", PAGES)
def test_each_fault_is_found_and_a_good_page_has_none(found, name):
    own = [line for line in found if line.startswith(f"{name}.html · ") and "first paint" not in line]
    expected = PAGES[name][1]
    assert any(expected in line for line in own) if expected else not own, own


def test_a_search_that_finds_nothing_and_a_slow_page_are_faults(found):
    assert any("does not find “pneumothorax”" in line for line in found)
    assert any("first paint takes" in line for line in found)


def test_without_chromium_one_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("chromium") is None
    assert check_pages.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("\n") == 1
