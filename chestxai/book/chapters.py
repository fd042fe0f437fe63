"""One page a chapter: its executions for all variants and seeds laid into one another, under a head.

Prose and equal outputs appear once, outputs that differ side by side, each under its name. The head says which data a
page shows and how long it ran, and repeats the output of the cell tagged ``answer``. What only serves the execution is
not shown. Names, answers and folded solutions are HTML around cells, as a directive cannot hold the output of a cell.
"""

import html
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import pybtex.backends.markdown
import pybtex.database
import pybtex.plugin
from nbformat.v4 import new_code_cell, new_markdown_cell

from chestxai.batch import Node
from chestxai.profiles import ROOT

#: Tags of cells: whose output is the chapter's answer; which belong to the solution of an exercise.
ANSWER, SOLUTION = "answer", "solution"
_PICTURE = re.compile(r"^!\[([^\]]+)\]\(([^)\s]*?([\w-]+)\.svg)\)\n+\*([^*]+)\*$", re.MULTILINE)
# Where a caption begins: of a diagram in Markdown, of a figure in HTML.
_DIAGRAM, _CAPTION = re.compile(r":::\{figure\} \S+\n:name: ([\w-]+)\n:alt: .*\n\n"), re.compile("<figcaption>()")
_TITLED = re.compile(r'(<figure\b[^>]*\baria-label=")([^"]*"><figcaption>)(.*?)(?=</figcaption>)', re.DOTALL)
_NUMBERED = re.compile(r"\{numref\}`([\w-]+)`")
_CITED = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")
# Where no term is linked: code, formulas, links, roles, HTML, headings, tables, bold text.
_FIXED = re.compile(
    r"(```.*?```|:::.*?:::|\$\$.*?\$\$|(?:\{[\w:]+\})?`[^`]*`|\$[^$]*\$|!?\[[^\]]*\]\([^)]*\)|<[^>]*>|^[#|].*?$|\*\*.+?\*\*)",
    re.DOTALL | re.MULTILINE,
)
_DIV = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def published(notebook: Any, node: Node) -> Any:
    """Prepare an executed notebook for its page: no progress bars, widget state, or folders of this machine.

    The cell tagged ``parameters`` shows what was run, and papermill's second one is left out. ``notebook``, of nbformat
    4, is the execution of ``node``, and is changed.
    """
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        tags = [tag for tag in cell.metadata.get("tags", []) if tag != "papermill"]
        for name, value in node.parameters.items() if "parameters" in tags else ():
            shown = json.dumps(Path(value).name if name == "profile" else value, ensure_ascii=False)
            if name not in ("out", "data"):
                cell.source = re.sub(rf"^({name} = ).*?(?=  #|$)", lambda m, v=shown: m[1] + v, cell.source, flags=re.M)
        named = {"name": cell.metadata["name"]} if "name" in cell.metadata else {}
        cell.metadata = nbformat.from_dict(({"tags": tags} if tags else {}) | named)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.output_type != "stream" or o.name != "stderr"]
            for data in (output.get("data", {}) for output in cell.outputs):
                data.pop("application/vnd.jupyter.widget-view+json", None)
                # The page draws the HTML; the same figure as JSON would double its size.
                if "text/html" in data:
                    data.pop("application/vnd.plotly.v1+json", None)
    notebook.metadata = nbformat.from_dict({"kernelspec": notebook.metadata.get("kernelspec", {})})
    return notebook


def page(executions: Mapping[str, Any], badges: Sequence[str]) -> Any:
    """The notebook of a chapter's page, with ``badges``, short texts, under the title.

    ``executions``: what to call it ("frozen, seed 0") → notebook of nbformat 4, all of one chapter.
    """
    parts = [list(twins) for twins in zip(*(one.cells for one in executions.values()), strict=True)]
    prose = [first for first, *_ in parts if first.cell_type == "markdown"]
    cited, terms = references("\n".join(cell.source for cell in prose)), glossary()
    for cell in prose:
        # Markdown does not reach into the HTML of a quiz.
        text = cell.source if "<details" in cell.source else linked(cell.source, terms)
        cell.source = _PICTURE.sub(r":::{figure} \2\n:name: fig-\3\n:alt: \1\n\n\4\n:::", text)
    cells: list[Any] = []
    for folded, group in itertools.groupby(parts, lambda twins: SOLUTION in twins[0].metadata.get("tags", [])):
        inner = [cell for twins in group for cell in _joined(twins, list(executions))]
        start, end = '<details class="solution">\n<summary>Solution</summary>', "</details>"
        cells += [new_markdown_cell(start), *inner, new_markdown_cell(end)] if folded else inner
    title, _, rest = cells[0].source.partition("\n")
    shown = " ".join(f"{{bdg-{'light' if i else 'primary'}}}`{text.replace('`', '')}`" for i, text in enumerate(badges))
    cells[0] = new_markdown_cell(f"{title}\n\n{shown}\n\n{rest}")
    answers = [twins for twins in parts if ANSWER in twins[0].metadata.get("tags", [])]
    cells[1:1] = [cell for twins in answers for cell in _answer(twins)]
    cells += [new_markdown_cell(f"## References\n\n{cited}")] if cited else []
    return nbformat.from_dict({**next(iter(executions.values())), "cells": cells})


def number(notebooks: Mapping[str, Any]) -> None:
    """Number the figures of each chapter in their captions, and link to them where prose says ``{numref}`fig-…` ``.

    ``notebooks``: page → notebook of `page`; changed in place. Sphinx itself does not number the outputs of cells. A
    figure is called what the metadata of its cell say (``name``), a diagram like its file.
    """
    links: dict[str, str] = {}
    for path, notebook in notebooks.items():
        _caption(notebook, Path(path).name, links)
    for notebook in notebooks.values():
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = _NUMBERED.sub(lambda m: links.get(m[1], "(figure not shown here)"), cell.source)


def _caption(notebook: Any, page: str, links: dict[str, str]) -> None:
    """Put numbers into the captions of one page; ``links`` gets what prose shows for each name."""
    chapter, count, name = notebook.cells[0].source.split()[1], itertools.count(1), ""

    def caption(start: re.Match[str]) -> str:
        label, own, anchor = f"Figure {chapter}.{next(count)}", start[1] or name, ""
        if own and own not in links:
            links[own], anchor = f'<a href="{page}.html#{own}">{label}</a>', f' id="{own}"'
        return f"{start[0]}**{label}.** " if start[1] else f"<figcaption{anchor}><b>{label}.</b> "

    for cell in notebook.cells:
        name = cell.metadata.get("name", "")
        if cell.cell_type == "markdown":
            cell.source = _DIAGRAM.sub(caption, cell.source)
        _change(cell, _CAPTION, caption)


def _change(cell: Any, pattern: re.Pattern[str], new: Callable[[re.Match[str]], str]) -> None:
    """Put ``new`` in the place of ``pattern`` in the HTML that ``cell`` shows."""
    for data in (output.get("data", {}) for output in cell.get("outputs", ())):
        if "text/html" in data:
            data["text/html"] = pattern.sub(new, data["text/html"])


def _output(cell: Any, outputs: Sequence[Any]) -> Any:
    """A cell with the metadata of ``cell``, that only shows ``outputs``; MyST-NB drops cells without a source."""
    tags = [*dict.fromkeys([*cell.metadata.get("tags", []), "remove-input"])]
    return new_code_cell("# See above.", outputs=list(outputs), metadata=cell.metadata | {"tags": tags})


def _joined(twins: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """The same cell of several executions: once if its outputs are equal, else each output under its name."""
    cell = twins[0]
    # Each figure has a name of its own.
    if cell.cell_type != "code" or len({_DIV.sub("", json.dumps(twin.outputs)) for twin in twins}) == 1:
        return [cell]
    out = [nbformat.from_dict({**cell, "outputs": []})]
    start = '<div class="executions">'
    for twin, name in zip(twins, map(html.escape, names), strict=True):
        head = new_markdown_cell(f'{start}\n<div class="execution">\n<p class="rubric">{name}</p>')
        _change(twin, _TITLED, partial(_owned, name))
        out += [head, _output(twin, twin.outputs)]
        start = "</div>"
    return [*out, new_markdown_cell("</div>\n</div>")]


def _owned(name: str, figure: re.Match[str]) -> str:
    """The beginning of a figure, whose label and caption say of which execution it is."""
    start, label, caption = figure.groups()
    told = re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", caption)
    return figure[0] if told else f"{start}{name}: {label}<b>{name}:</b> {caption}"


def _answer(twins: Sequence[Any]) -> list[Any]:
    """The answer as it stands in the head: every execution's, equal ones once."""
    outputs = {json.dumps(o.get("data", o.get("text"))): o for twin in twins for o in twin.outputs}
    title = '<p class="admonition-title">The answer</p>'
    start, end = new_markdown_cell(f'<div class="admonition tip answer">\n{title}'), new_markdown_cell("</div>")
    return [start, _output(twins[0], outputs.values()), end] if outputs else []


def answer(notebook: Any) -> str:
    """What the cells tagged ``answer`` of a notebook (nbformat 4) say, in Markdown, equal answers once."""
    outputs = [o for cell in notebook.cells if ANSWER in cell.metadata.get("tags", []) for o in cell.outputs]
    return "\n".join(dict.fromkeys(o.data["text/markdown"] for o in outputs if "text/markdown" in o.get("data", {})))


def glossary() -> dict[str, str]:
    """Term → definition as plain text, of the page ``pages/glossary.md``."""
    text = (ROOT / "pages/glossary.md").read_text("utf-8")
    blocks = re.findall(r"^```\{glossary\}\n(.*?)\n```", text, re.DOTALL | re.MULTILINE)
    found = {}
    for entry in "\n\n".join(blocks).split("\n\n"):
        names, _, definition = entry.partition("\n  ")
        found |= dict.fromkeys(names.split("\n"), " ".join(re.sub(r"[*`]", "", definition).split()))
    return found


def linked(text: str, terms: dict[str, str]) -> str:
    """``text`` in Markdown whose first mention of each of ``terms`` leads to the glossary and shows its definition.

    The terms are of `glossary`; those found are removed. One in asterisks is looked for as it stands.
    """
    spellings = {spelling: term for term in terms for spelling in (term, term[0].upper() + term[1:])}
    words = re.compile(
        rf"(?<![\w-])({'|'.join(map(re.escape, sorted(spellings, key=len, reverse=True)))})(e?s)?(?![\w-])"
    )

    def link(word: re.Match[str]) -> str:
        definition = terms.pop(spellings[word[1]], None)
        if definition is None:
            return word[0]
        start = f'<span class="term" data-definition="{html.escape(definition)}">'
        return f"{start}{{term}}`{word[0]} <{spellings[word[1]]}>`</span>".replace("*", "")

    parts = _FIXED.split(text)
    return "".join(part if i % 2 else words.sub(link, part) for i, part in enumerate(parts)) if terms else text


def references(text: str) -> str:
    """What ``text`` cites with ``{cite}``, as a Markdown list with links, in the order of its first mention."""
    keys = [*dict.fromkeys(key.strip() for cited in _CITED.findall(text) for key in cited.split(","))]
    library = pybtex.database.parse_file(ROOT / "references.bib", "bibtex")
    style = pybtex.plugin.find_plugin("pybtex.style.formatting", "unsrt")()
    backend = pybtex.backends.markdown.Backend("utf-8")
    entries = style.format_entries([library.entries[key] for key in keys if key in library.entries])
    return "\n".join("- " + " ".join(entry.text.render(backend).split()) for entry in entries)
