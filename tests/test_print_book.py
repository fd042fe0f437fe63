"""One page for printing: all chapters in order, links within it, folds open; printed where there is Chromium."""

from __future__ import annotations

import importlib.util

import pytest
from bs4 import BeautifulSoup

from chestxai.profiles import ROOT

spec = importlib.util.spec_from_file_location("print_book", ROOT / "tools" / "print_book.py")
print_book = importlib.util.module_from_spec(spec)
spec.loader.exec_module(print_book)
NAV = "<div class='bd-sidebar-primary'><a class='reference internal' href='{}notebooks/b.html'>B</a></div>"

FORMULAS = "<script>window.MathJax = {}</script><script defer src='../_static/mathjax/tex-chtml.js'></script>"


@pytest.fixture
def book(tmp_path):
    (tmp_path / "notebooks").mkdir()
    page = "<html data-content_root='{}'><head><title>x</title>{}</head><body>{}<article>{}</article></body></html>"
    intro = "<h1 id='top'>Intro</h1><a href='notebooks/b.html#end'>on</a><a href='https://example.org/'>out</a>"
    (tmp_path / "intro.html").write_text(page.format("", "", NAV.format(""), intro))
    body = (
        "<h1 id='top'>B</h1><a href='#end'>x</a><a href='../intro.html'>y</a><img src='../_images/p.png'>"
        "<details class='solution'><summary>Solution</summary><p id='end'>Solved</p></details>"
        "<details class='quiz'><summary>Four</summary>No.</details>"
        "<details class='quiz right'><summary>Five</summary>Right.</details>"
        "<figure id='cx-1'><details><summary>Data</summary></details></figure>"
    )
    (tmp_path / "notebooks" / "b.html").write_text(page.format("../", FORMULAS, NAV.format("../"), body))
    return tmp_path


def test_all_pages_become_one(book):
    page = BeautifulSoup(print_book.joined(book), "html.parser")
    assert [article["id"] for article in page.find_all("article")] == ["intro", "b", "solutions"]
    links = ["#b-end", "https://example.org/", "#b-end", "#intro", "#b-answer-1"]
    assert [a["href"] for a in page.find_all("a")] == links
    assert page.img["src"] == "_images/p.png"
    ids = [tag["id"] for tag in page.find_all(id=True)]
    assert len(ids) == len(set(ids))
    assert {"intro-top", "b-top", "b-end", "b-answer-1", "cx-1"} <= set(ids)
    (data,) = page.find_all("details")
    assert not data.has_attr("open")


def test_answers_stand_at_the_end(book):
    _, chapter, end = BeautifulSoup(print_book.joined(book), "html.parser").find_all("article")
    assert [text for text in ("Solved", "Right.", "No.") if text in chapter.get_text()] == []
    assert "☐ Four" in chapter.get_text()
    assert [section.get_text() for section in end.find_all("section")] == ["1Solved", "2. FiveRight."]


def test_formulas_are_set_though_the_first_page_has_none(book):
    page = BeautifulSoup(print_book.joined(book), "html.parser")
    assert [script.get("src", script.string) for script in page.head.find_all("script")] == [
        "window.MathJax = {}",
        "_static/mathjax/tex-chtml.js",
    ]


def test_without_chromium_or_pages_one_line_says_so(book, tmp_path, monkeypatch, capsys):
    assert print_book.main([str(tmp_path / "nothing")]) in (0, 2)
    capsys.readouterr()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert print_book.main([str(book)]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_the_pdf_is_printed(book):
    if not any(map(print_book.shutil.which, print_book.CHROMIUM)):
        pytest.skip("there is no Chromium")
    assert print_book.main([str(book), str(book / "book.pdf")]) == 0
    assert (book / "book.pdf").read_bytes().startswith(b"%PDF")
    assert not (book / "print.html").exists()
