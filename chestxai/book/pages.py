"""The published pages: the executed notebooks of a batch, laid out for Jupyter Book 1.x and built without a warning.

Nothing is run for the pages. ``_toc.yml`` names the chapters; `chestxai.book.chapters` makes one page of all executions
of a chapter.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nbformat
import yaml
from filelock import FileLock

from chestxai import batch, plots, profiles, runs, sources, tradeoff
from chestxai.batch import Node
from chestxai.book import chapters, guard
from chestxai.profiles import ROOT
from chestxai.runs import InputError, MissingError
from chestxai.stats import FewGroupsWarning
from chestxai.studies import FINDINGS, phrases

BUILD = profiles.RUNS.parent / "_build"
#: What the book is made of besides the notebooks.
_STATIC = sorted(f"_static/{path.name}" for path in (ROOT / "_static").iterdir())
SOURCES = ("_toc.yml", "references.bib", "pages/peers.inv", "data/overview.png", "data/overview-dark.png", *_STATIC)
#: Pages that a person wrote.
PAGES = ("intro.md", *sorted(f"pages/{path.name}" for path in (ROOT / "pages").glob("*.md")))
_SAMPLES = "_static/phantoms.png"


def assemble(nodes: Sequence[Node], folder: Path, private: guard.Private | None = None) -> Path:
    """Lay out the book's source in ``folder``, whose old content is removed.

    That is pages, executed notebooks, table of contents and plotly.js. ``nodes`` are of `batch.plan`; a MissingError if
    one has not been run, or has changed since. ``private`` is of `guard.of`, what to withhold, or None if everything
    may be shown; if something of it is left, an InputError lists the places, and ``folder`` is not touched.
    """
    missing = [node.name for node in nodes if not node.finished()]
    if missing:
        raise MissingError(
            f"{len(missing)} notebooks are not run or have changed since ({missing[0]}, …): run 'make book', or "
            "'python -m chestxai.batch' with the same options first"
        )
    runs_of: dict[str, list[Node]] = {}
    for node in nodes:
        runs_of.setdefault(node.notebook.stem, []).append(node)
    left: list[str] = []
    notebooks = {f"notebooks/{chapter}": _chapter(own, private, left) for chapter, own in runs_of.items()}
    toc = (ROOT / "_toc.yml").read_text("utf-8")
    listed = {entry["file"] for entry in yaml.safe_load(toc)["chapters"] if entry["file"].startswith("notebooks/")}
    if listed != set(notebooks):
        raise InputError(f"_toc.yml and the batch differ in {', '.join(sorted(listed ^ set(notebooks)))}")
    if private is not None:
        written = {name: nbformat.v4.new_markdown_cell((ROOT / name).read_text("utf-8")) for name in PAGES}
        shown = {name: nbformat.v4.new_notebook(cells=[cell]) for name, cell in written.items()}
        refuse(left + [f"{page}, {leak}" for page, one in shown.items() for leak in guard.leaks(one, private)])
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    for name in (*SOURCES, *PAGES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    chapters.number(notebooks)
    terms = chapters.glossary()  # each is linked once; an answer may be withheld
    said = chapters.linked(chapters.answer(notebooks["notebooks/08_tradeoff"]), terms)
    box = f":::{{admonition}} The answer of the run that made these pages\n:class: tip\n{said}\n:::" if said else ""
    text = chapters.linked((ROOT / PAGES[0]).read_text("utf-8"), terms)
    (folder / PAGES[0]).write_text(text.replace("<!-- answer -->", box), "utf-8")
    (folder / "_config.yml").write_text(config((ROOT / "_config.yml").read_text("utf-8")), "utf-8")
    (folder / "notebooks").mkdir()
    for page, notebook in notebooks.items():
        nbformat.write(notebook, folder / f"{page}.ipynb")
    (folder / "data_cards.md").write_text(data_cards(folder), "utf-8")
    plots.write_plotlyjs(folder / "_static")
    return folder


def config(text: str) -> str:
    """``_config.yml`` for Jupyter Book: buttons that open a chapter elsewhere need the address of a repository."""
    options = yaml.safe_load(text)
    if not options["repository"]["url"]:
        options["launch_buttons"] |= {"binderhub_url": "", "colab_url": ""}
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True)


def data_cards(folder: Path) -> str:
    """The page of data cards, in MyST Markdown; draws phantoms, which are no patient's, as samples in ``folder``."""
    truths = phrases(sources.load("phantom", split="test", n=100, size=128))
    samples = [next(t for t in truths if t.finding.name == name) for name in FINDINGS]
    images, masks = [t.study.pixels() for t in samples], [t.finding.mask for t in samples]
    path = Path(folder) / _SAMPLES
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.contact_sheet(images, 4, list(FINDINGS), masks=masks).save(path)
    start = (
        "# Data cards\n\nThe data sets that the book can read, their terms, and what a profile may ask of them "
        "(`options`, with defaults in brackets). Chapter 1 counts what a run has read. Only phantoms are shown, which "
        f"are no patient's:\n\n```{{image}} {_SAMPLES}\n"
        ":alt: A phantom radiograph for each of the eight findings, with the finding outlined\n:width: 100%\n```\n\n"
    )
    return start + sources.cards()


def refuse(places: Sequence[str]) -> None:
    """Stop if ``places`` that show something private are left: InputError lists them."""
    if places:
        raise InputError(
            f"nothing is built: {len(places)} places still show credentialed data, which may not be passed on: "
            + "; ".join(places)
            + ". Take them out of the notebook and run it again"
        )


def _chapter(nodes: Sequence[Node], private: guard.Private | None, left: list[str]) -> Any:
    """The notebook of a chapter's page from its executions; the places where these show something go to ``left``."""
    executions = {}
    # With one seed there is no need to say which.
    keys = ("variant", "seed") if len({node.parameters.get("seed") for node in nodes}) > 1 else ("variant",)
    for node in nodes:
        notebook = chapters.published(nbformat.read(node.executed, as_version=4), node)
        name = ", seed ".join(str(node.parameters[key]) for key in keys if key in node.parameters)
        if private is not None:
            notebook = guard.withhold(notebook, private)
            left += [f"notebooks/{node.notebook.stem}, {leak}" for leak in guard.leaks(notebook, private)]
        executions[name] = notebook
    profile = profiles.load(nodes[0].parameters["profile"])
    source, boxes = profile.data.source, profile.boxes
    badges = ["digital phantoms, no patients" if source == "phantom" else f"images and reports of {source}"]
    badges += [f"places of findings of {boxes}"] if boxes != source else []
    badges += ["aggregates only"] if private is not None else []
    minutes = round(sum(runs.read_json(node.record, dict).get("seconds", 0) for node in nodes) / 60)
    badges += [f"profile {profile.name}", f"computed in {max(1, minutes)} min"]
    return chapters.page(executions, badges)


def build(source: Path, output: Path = BUILD, check: Callable[[Path], None] = lambda html: None) -> Path:
    """Build the pages and return the first; earlier pages stay until the new ones are complete.

    Any warning is an InputError, whose message shows it; ``build.log`` has everything. ``source`` is of `assemble`,
    ``output`` the folder of ``html/`` and ``build.log``, whatever its name. ``check`` is called with the folder of the
    new pages before they replace the old ones, and may raise.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    # Jupyter Book always builds in a folder _build of the one it is given.
    with tempfile.TemporaryDirectory(prefix=".pages-", dir=output) as part:
        start = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
        command = [*start, "build", str(source), "--path-output", part, "-W", "-n", "--keep-going", "--all", "-q"]
        # Colours would garble the log; nothing is executed, so nothing needs a thread pool.
        env = os.environ | {"NO_COLOR": "1", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        text = done.stdout + done.stderr
        log = runs.write_atomic(output / "build.log", text)
        html = Path(part) / "_build" / "html"
        if done.returncode or not (html / "index.html").is_file():
            faults = [line for line in text.splitlines() if "WARNING" in line or "ERROR" in line]
            raise InputError(f"the book does not build cleanly ({log}):\n" + "\n".join(faults[:20] or ["see the log"]))
        check(html)
        shutil.rmtree(output / "html", ignore_errors=True)
        html.rename(output / "html")
    return output / "html" / "index.html"


def results(nodes: Sequence[Node]) -> str:
    """The table of results of the batch's runs as text: a row per measure, a column per variant, with intervals."""
    folders = [node.folder for node in nodes if "fidelity.json" in node.makes]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FewGroupsWarning)
        table = tradeoff.summary(tradeoff.table(folders, n=1000), folders).to_string()
    # Once, not for each of a hundred cells.
    return table + (f"\n\nBeware: {caught[0].message}." if caught else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m chestxai.book``: takes the options of the batch whose notebooks are published."""
    parser = argparse.ArgumentParser(
        prog="python -m chestxai.book",
        description="Build the pages from executed notebooks and print the table of results.",
    )
    batch.add_options(parser)
    where = "folder whose book/ and html/ are replaced"
    parser.add_argument("--output", type=lambda text: Path(text).resolve(), default=BUILD, help=where)
    options = parser.parse_args(arguments)
    profile, nodes = batch.planned(options)
    closed = guard.closed(profile)
    private = None
    if closed:
        own = "; if your own data may be shown, set data: {credentialed: false} in the profile"
        hint = own if "folder" in closed else ""
        print(f"Withholding images, report texts and identifiers of {', '.join(closed)} …{hint}", flush=True)
        private = guard.of(profile, options.data)

    def check(html: Path) -> None:
        if private is not None:
            refuse(guard.site_leaks(html, private, [Path(name).name for name in (*SOURCES, _SAMPLES)]))

    options.output.parent.mkdir(parents=True, exist_ok=True)
    # A second build waits, so that the pages of two never mix.
    with FileLock(options.output.with_name(f".{options.output.name}.lock")):
        source = assemble(nodes, options.output / "book", private)
        table = results(nodes)
        if private is not None:
            refuse([f"table of results, {leak.what}" for leak in guard.leaks(table, private)])
        print(f"Building {len(nodes)} executed notebooks into pages …", flush=True)
        index = build(source, options.output, check)
    print(f"\nResults of profile {profile.name} (mean [95 % interval]):\n\n{table}\n")
    print(f"Open {index}")
    return 0
