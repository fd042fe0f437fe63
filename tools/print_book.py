"""Print the built book as one PDF with the Chromium of the system: figures as they stand, solutions at the end.

python tools/print_book.py [_build/html] [_build/book.pdf]
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from bs4 import BeautifulSoup, Tag

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
#: Milliseconds of the page's own clock, which stands still while a script computes, for all figures to be drawn.
PATIENCE = 120_000
_FORMULAS = re.compile("mathjax/tex-")
_STYLE = """
.bd-sidebar, .bd-header, .bd-header-article, .prev-next-footer, .headerlink, .copybtn { display: none !important; }
h1, h2, h3, p.rubric { break-after: avoid; break-inside: avoid; }
.cell_output table { max-width: 100%; }
.cell_output table :is(td, th) { font-size: 12px; padding: 2px 4px; white-space: normal; }
.cell_output table th { overflow-wrap: anywhere; }
article { break-before: page; max-width: 720px; margin: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.cell_output .output, figure.cx, figure.cx details > div { overflow: visible !important; max-height: none !important; }
"""


def pages(folder: Path) -> list[Path]:
    """The pages in the order of the table of contents, the first page first."""
    first = folder / "intro.html"
    links = BeautifulSoup(first.read_text("utf-8"), "html.parser").select(".bd-sidebar-primary a.reference.internal")
    listed = [folder / urlsplit(str(link["href"])).path for link in links if urlsplit(str(link["href"])).path]
    return list(dict.fromkeys([first, *(path.resolve() for path in listed if path.is_file())]))


def joined(folder: Path) -> str:
    """All pages as one, whose links stay within it.

    Args:
        folder: of the built pages.
    """
    folder = folder.resolve()
    every = pages(folder)
    whole = BeautifulSoup(every[0].read_text("utf-8"), "html.parser")
    articles: list[Tag] = []
    solved: list[Tag] = []
    for path in every:
        name, read = path.stem, BeautifulSoup(path.read_text("utf-8"), "html.parser")
        article = read.find("article")
        if not whole.find("script", src=_FORMULAS):  # only pages with formulas bring what sets them
            whole.head.extend(read.find_all("script", string=re.compile("^window.MathJax")))
            for script in read.find_all("script", src=_FORMULAS):
                script["src"] = script["src"].replace("../", "")
                whole.head.append(script)
        for tag in article.find_all(id=True):
            if not tag["id"].startswith("cx-"):  # a figure draws itself by its name, which no other has
                tag["id"] = f"{name}-{tag['id']}"
        for tag in article.find_all(["a", "img"]):
            key = "href" if tag.name == "a" else "src"
            url = urlsplit(str(tag.get(key, "")))
            target = (path.parent / url.path).resolve() if url.path else path
            if url.scheme or url.netloc or not tag.get(key):
                continue
            if target in every:
                tag[key] = f"#{target.stem}-{url.fragment}" if url.fragment else f"#{target.stem}"
            elif target.is_relative_to(folder):
                tag[key] = target.relative_to(folder).as_posix()
        solved += solutions(whole, article, name)
        for fold in article.find_all("details"):
            if not fold.find_parent("figure"):
                fold["open"] = ""
        article["id"] = name
        articles.append(article)
    if solved:
        end = whole.new_tag("article", id="solutions")
        end.extend([whole.new_tag("h1", string="Solutions"), *solved])
        articles.append(end)
    whole.body.clear()
    whole.html["data-theme"], whole.html["data-mode"] = "light", "light"
    whole.head.append(whole.new_tag("style", string=_STYLE))
    for article in articles:
        whole.body.append(article)
    return str(whole)


def solutions(page: BeautifulSoup, article: Tag, name: str) -> list[Tag]:
    """Take the solutions of exercises and quizzes out of an article, and give them for the end of the book.

    Args:
        page: makes new elements.
        article: of one page; a link stands where a solution stood, and every choice where a quiz was.
        name: of the page.
    """
    moved = []
    for fold in article.select("details.solution, details.quiz"):
        number, choice = len(moved) + 1, fold.summary.extract().get_text()
        left = page.new_tag("p")
        if "quiz" in fold["class"]:
            left.string = f"☐ {choice}"
        else:
            link = page.new_tag("a", href=f"#{name}-answer-{number}", string=f"Answer {number}, at the end of the book")
            left.append(link)
        fold.replace_with(left)
        if fold["class"] != ["quiz"]:  # a wrong choice
            fold.name, fold["id"] = "section", f"{name}-answer-{number}"
            fold.insert(0, page.new_tag("h3", string=f"{number}" + f". {choice}" * ("quiz" in fold["class"])))
            moved.append(fold)
    title = article.h1.get_text().rstrip("#") if article.h1 else name
    return [page.new_tag("h2", string=title), *moved] if moved else []


def main(arguments: Sequence[str]) -> int:
    """``python tools/print_book.py``."""
    folder, path = (Path(a) for a in [*arguments, ROOT / "_build" / "html", ROOT / "_build" / "book.pdf"][:2])
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        print("No PDF is made: there is no Chromium on this machine (apt-get install chromium).")
        return 0
    if not (folder / "intro.html").is_file():
        print(f"There are no pages in {folder}: run 'make book' first.", file=sys.stderr)
        return 2
    page = folder / "print.html"
    page.write_text(joined(folder), "utf-8")
    try:
        with tempfile.TemporaryDirectory() as home:
            options = [f"--user-data-dir={home}", f"--virtual-time-budget={PATIENCE}", "--no-pdf-header-footer"]
            command = [program, *FLAGS, *options, f"--print-to-pdf={path.resolve()}", page.resolve().as_uri()]
            done = subprocess.run(command, capture_output=True, text=True)
    finally:
        page.unlink()
    if done.returncode or not path.is_file():
        print(done.stderr, file=sys.stderr)
        return 1
    print(f"Open {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
