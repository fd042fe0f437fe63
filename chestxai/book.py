"""The published pages: the executed notebooks of a batch, laid out for Jupyter Book 1.x and built without a warning.

Nothing is run for the page. ``_toc.yml`` names the chapters; a chapter that is executed for every variant and seed
shows its first execution, with the others as pages below it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import yaml

from chestxai import batch, guard, plots, profiles, runs, sources, tradeoff
from chestxai.batch import Node
from chestxai.profiles import ROOT, Profile
from chestxai.stats import FewGroupsWarning
from chestxai.studies import FINDINGS, Frame, phrases

BUILD = ROOT / "_build"
#: What the book is made of besides the notebooks.
SOURCES = ("_config.yml", "intro.md", "references.bib", "data/overview.png", "_static/tables.css")


def assemble(nodes: Sequence[Node], folder: Path, private: guard.Private | None = None) -> Path:
    """Lay out the book's source in ``folder``: pages, executed notebooks, table of contents, plotly.js.

    Args:
        nodes: of `batch.plan`; all must be finished.
        folder: is made anew.
        private: of `guard.of`, what is withheld from the pages; None where all may be shown.

    Raises:
        ValueError: a notebook has not been executed, or has changed since; says how to run it. Or something private is
            left; lists the places, and ``folder`` is not touched.
    """
    missing = [node.name for node in nodes if not node.finished()]
    if missing:
        raise ValueError(
            f"{len(missing)} notebooks are not run or have changed since ({missing[0]}, …): run 'make book', or "
            "'python -m chestxai.batch' with the same options first"
        )
    pages: dict[str, list[tuple[str, str]]] = {}
    notebooks: dict[str, Any] = {}
    for node in nodes:
        chapter = node.notebook.stem
        first = chapter not in pages
        slug = "" if first else "-" + "-".join(str(node.parameters[k]) for k in ("variant", "seed"))
        page = f"notebooks/{chapter}{slug}"
        title = node.name.split(" · ", 1)[-1]
        pages.setdefault(chapter, []).append((page, title))
        notebooks[page] = published(nbformat.read(node.executed, as_version=4), node)
    if private is not None:
        notebooks = {page: guard.withhold(notebook, private) for page, notebook in notebooks.items()}
        intro = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell((ROOT / "intro.md").read_text())])
        refuse(
            [
                f"{page}, {leak}"
                for page, shown in {"intro": intro, **notebooks}.items()
                for leak in guard.leaks(shown, private)
            ]
        )
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    for name in SOURCES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    for page, notebook in notebooks.items():
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, folder / f"{page}.ipynb")
    (folder / "data_cards.md").write_text(data_cards(folder))
    toc = contents(yaml.safe_load((ROOT / "_toc.yml").read_text()), pages)
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False, allow_unicode=True))
    plots.write_plotlyjs(folder / "_static")
    return folder


def data_cards(folder: Path) -> str:
    """The page of data cards, with a sample where no terms forbid one: phantoms, drawn into ``folder`` here and now."""
    found = phrases(sources.load("phantom", split="test", n=100, size=128))
    shown = [next(t for t in found if t.finding.name == name) for name in FINDINGS]
    images, masks = [t.study.pixels() for t in shown], [t.finding.mask for t in shown]
    (folder / "_static").mkdir(parents=True, exist_ok=True)
    titles = [t.finding.name for t in shown]
    plots.contact_sheet(images, 4, titles, masks=masks).save(folder / "_static" / "phantoms.png")
    start = (
        "# Data cards\n\nWhat each data set is that the book can read, on which terms it is given, and what a profile "
        "may ask of it (`options`, in brackets what holds otherwise). Chapter 1 counts what a run has read. Samples "
        "are shown of phantoms only, which are no person's:\n\n```{image} _static/phantoms.png\n"
        ":alt: A phantom radiograph for each of the eight findings, its place outlined\n:width: 100%\n```\n\n"
    )
    return start + sources.cards()


def refuse(places: Sequence[str]) -> None:
    """Stop if anything private is left to be seen.

    Raises:
        ValueError: lists the ``places``.
    """
    if places:
        raise ValueError(
            f"nothing is built: {len(places)} places still show credentialed data, which may not be passed on: "
            + "; ".join(places)
            + ". Take them out of the notebook and run it again"
        )


def published(notebook: Any, node: Node) -> Any:
    """An executed notebook as it goes on the page: without progress bars, widget state and paths of this machine."""
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            # What ran, in the reader's terms: folders are this machine's own.
            lines = [line for line in cell.source.splitlines() if not line.startswith(("out =", "data ="))]
            cell.source = "\n".join(lines)
        cell.metadata = nbformat.from_dict({"tags": [t for t in tags if t != "papermill"]} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.output_type != "stream" or o.name != "stderr"]
            for output in cell.outputs:
                data = output.get("data", {})
                # The page draws the HTML; the same figure as JSON would double its size.
                for kind in ("application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"):
                    if "text/html" in data or kind.endswith("view+json"):
                        data.pop(kind, None)
    notebook.metadata = nbformat.from_dict({"kernelspec": notebook.metadata.get("kernelspec", {})})
    if len(node.parameters) and "variant" in node.parameters:
        heading = notebook.cells[0]
        first, *rest = heading.source.split("\n")
        heading.source = "\n".join([f"{first}: {node.parameters['variant']}, seed {node.parameters['seed']}", *rest])
    return notebook


def contents(toc: dict[str, Any], pages: dict[str, list[tuple[str, str]]]) -> dict[str, Any]:
    """``_toc.yml`` with the further executions of a chapter as sections below it.

    Args:
        toc: the parsed ``_toc.yml``.
        pages: chapter → (page, title) of its executions, the first one being the chapter itself.

    Raises:
        ValueError: the table of contents names a notebook that was not executed, or lacks one that was.
    """
    used = set()

    def filled(entry: Any) -> Any:
        if isinstance(entry, list):
            return [filled(item) for item in entry]
        if not isinstance(entry, dict):
            return entry
        out = {key: filled(value) for key, value in entry.items()}
        name = str(entry.get("file", ""))
        if name.startswith("notebooks/"):
            chapter = Path(name).stem
            if chapter not in pages:
                raise ValueError(f"_toc.yml: {name} is not a notebook of the batch ({', '.join(pages)})")
            used.add(chapter)
            others = [{"file": page, "title": title} for page, title in pages[chapter][1:]]
            if others:
                out["sections"] = [*out.get("sections", []), *others]
        return out

    result = filled(toc)
    if set(pages) - used:
        raise ValueError(f"_toc.yml lacks {', '.join(sorted(set(pages) - used))}")
    return result


def build(source: Path, output: Path = BUILD) -> Path:
    """Build the pages strictly: any warning is an error.

    Args:
        source: of `assemble`.
        output: ``html/`` and the log go below it.

    Returns:
        the first page.

    Raises:
        ValueError: the build has warnings; they are in the message, the whole log in ``output/build.log``.
    """
    start = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command = [*start, "build", str(source), "--path-output", str(output.parent)]
    command += ["-W", "-n", "--keep-going", "--all", "-q"]
    # Colours would garble the log; nothing is executed, so nothing needs a thread pool.
    env = os.environ | {"NO_COLOR": "1", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    log = runs.write_atomic(output / "build.log", done.stdout + done.stderr)
    index = output / "html" / "index.html"
    if done.returncode or not index.is_file():
        told = [line for line in (done.stdout + done.stderr).splitlines() if "WARNING" in line or "ERROR" in line]
        raise ValueError(f"the book does not build cleanly ({log}):\n" + "\n".join(told[:20] or ["see the log"]))
    return index


def results(nodes: Sequence[Node]) -> str:
    """The result table (measure × variant, with intervals and references) of the batch's runs, as text."""
    folders = [n.folder for n in nodes if "fidelity.json" in n.makes]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", FewGroupsWarning)
        table = tradeoff.summary(tradeoff.table(folders, n=1000), folders).to_string()
    # Once, not for each of a hundred cells.
    return table + (f"\n\nBeware: {told[0].message}." if told else "")


def overview(profile: Profile, nodes: Sequence[Node], path: Path, data: str = "") -> Path:
    """The picture of the README: a test radiograph with a finding outlined, then where each variant looks.

    Nothing is picked by hand: of each finding the first test phrase, in the order of the test split.
    """
    folders = list(dict.fromkeys(n.folder for n in nodes if "grounding.csv" in n.makes))
    first = {folder.parent.name: folder for folder in reversed(folders)}
    truths = phrases(profiles.studies(profile, "test", data, boxes=True))
    stored = {}
    for variant in profile.variants:
        step = max(int(p.stem.removeprefix("step-")) for p in (first[variant] / "maps").glob("step-*.safetensors"))
        tensors = runs.load_tensors(first[variant] / "maps" / f"step-{step}.safetensors")
        stored[variant] = dict(zip(tensors["rows"].tolist(), tensors["maps"].numpy(), strict=True))
    shown = [next((i for i, t in enumerate(truths) if t.finding.name == name), None) for name in FINDINGS]
    shown = [i for i in shown if i is not None and all(i in maps for maps in stored.values())]
    images, masks, maps, titles = [], [], [], []
    for i in shown:
        frame = Frame(*truths[i].study.size, profile.data.size, profile.data.fit)
        image, mask = frame.image(truths[i].study.pixels()), frame.mask(truths[i].finding)
        images += [image] * (1 + len(stored))
        masks += [mask] * (1 + len(stored))
        maps += [None, *(found[i] for found in stored.values())]
        titles += [truths[i].finding.name, *stored]
    per_row = 2 * (1 + len(stored))
    picture = plots.contact_sheet(images, per_row, titles, maps, masks, size=170)
    with runs.replacing(path) as part:
        picture.save(part, "png", optimize=True)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m chestxai.book``: the options are those of the batch whose notebooks are published."""
    parser = argparse.ArgumentParser(
        prog="python -m chestxai.book",
        description="Build the pages from executed notebooks and print the result table.",
    )
    batch.add_options(parser)
    parser.add_argument("--output", type=Path, default=BUILD, help="folder of the pages (default: _build)")
    parser.add_argument("--overview", action="store_true", help="only draw the README's picture, data/overview.png")
    given = parser.parse_args(arguments)
    profile, nodes = batch.planned(given)
    closed = guard.closed(profile)
    if given.overview:
        if closed:
            raise ValueError(
                f"the README's picture may not show {', '.join(closed)}: its images are passed on to no one"
            )
        print(overview(profile, nodes, ROOT / "data" / "overview.png", given.data))
        return 0
    private = None
    if closed:
        own = "; where your own data may be shown, say data: {credentialed: false} in the profile"
        hint = own if "folder" in closed else ""
        print(f"Withholding images, report texts and identifiers of {', '.join(closed)} …{hint}", flush=True)
        private = guard.of(profile, given.data)
    source = assemble(nodes, given.output / "book", private)
    table = results(nodes)
    if private is not None:
        refuse([f"table of results, {leak.what}" for leak in guard.leaks(table, private)])
    print(f"Building {len(nodes)} executed notebooks into pages …", flush=True)
    index = build(source, given.output)
    print(f"\nResults of profile {profile.name} (mean [95 % interval]):\n\n{table}\n")
    print(f"Open {index}")
    return 0


if __name__ == "__main__":
    runs.command(main)
