"""The rules of a chapter, checked on all of them: pairs in step, literals only, a question, solutions, takeaways."""

from __future__ import annotations

import ast
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import jupytext
import nbformat
import pandas as pd
import pytest
import yaml

from chestxai import batch
from chestxai.profiles import ROOT

PAGES = sorted((ROOT / "notebooks").glob("*.py"))


@pytest.fixture(params=PAGES, ids=[p.stem for p in PAGES])
def chapter(request) -> Path:
    return request.param


def cells(path: Path) -> list:
    return jupytext.read(path).cells


def test_every_chapter_is_in_the_graph_and_in_the_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [entry["file"] for entry in toc["chapters"]]
    listed = [file for file in files if file.startswith("notebooks/")]
    appendix = ["data_cards", "pages/glossary", "pages/run", "pages/teach", "pages/api"]
    assert files == listed + appendix
    assert sorted(f"pages/{p.stem}" for p in (ROOT / "pages").glob("*.md")) == sorted(appendix[1:])
    assert listed == [f"notebooks/{p.stem}" for p in PAGES] == [f"notebooks/{c.name}" for c in batch.CHAPTERS]
    assert sorted(p.stem for p in (ROOT / "notebooks").glob("*.ipynb")) == [p.stem for p in PAGES]


def test_pairs_say_the_same(chapter):
    pair = nbformat.read(chapter.with_suffix(".ipynb"), as_version=4)
    text = [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in cells(chapter)]
    assert [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in pair.cells] == text, "run 'make notebooks'"


def test_no_output_is_committed(chapter):
    pair = nbformat.read(chapter.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(pair)
    for cell in pair.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
    assert set(pair.metadata) <= {"kernelspec", "jupytext"}


def test_parameters_are_literals_and_come_before_anything_else(chapter):
    code = [c for c in cells(chapter) if c.cell_type == "code"]
    tagged = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert tagged == code[:1]
    values = {}
    for statement in ast.parse(tagged[0].source).body:
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        values[statement.targets[0].id] = ast.literal_eval(statement.value)
    own = {c.name: c for c in batch.CHAPTERS}[chapter.stem]
    grid = {"variant", "seed"} if own.each_run else {"variants", "seeds"}
    assert set(values) == {"profile", "data", "out"} | grid
    assert values["profile"] == "demo"
    assert values["data"] == values["out"] == ""


def test_a_chapter_asks_and_answers(chapter):
    text = [c.source for c in cells(chapter) if c.cell_type == "markdown"]
    number = int(chapter.stem[:2])
    assert re.match(rf"# {number} [A-Z]", text[0])
    assert re.search(r"\*\*[^*]+\?\*\*", text[0]), "the first cell asks the chapter's question in bold"
    assert text[-1].startswith("## Takeaways")
    assert re.search(r"\*\*Further reading\.\*\* .*\{cite:t\}", text[-1], re.DOTALL)
    headings = [line for t in text for line in t.splitlines() if line.startswith("## ")]
    assert "## Exercises" in headings
    assert "*You will be able to*" in text[0]
    assert "*Before:*" in text[0]
    answers = [c for c in cells(chapter) if "answer" in c.metadata.get("tags", [])]
    # The answer stands in the head of the page, also where only aggregates may be shown.
    assert [{"remove-input", "aggregate"} <= set(c.metadata["tags"]) for c in answers] == [True]


def test_every_exercise_has_a_folded_solution(chapter):
    every = cells(chapter)
    first = next(i for i, c in enumerate(every) if "## Exercises" in c.source)
    asked = sum(len(re.findall(r"^\*\*\d\.\*\*", c.source, re.M)) for c in every[first:] if c.cell_type == "markdown")
    folded = ["solution" in c.metadata.get("tags", []) for c in every]
    assert not any(folded[:first])
    # Cells of one solution follow one another.
    starts = [cell for cell, (before, here) in zip(every[1:], pairwise(folded), strict=True) if here and not before]
    assert asked == len(starts) >= 2
    assert {cell.cell_type for cell in starts} == {"markdown"}  # words before code


def test_a_quiz_has_one_right_answer_a_question(chapter):
    (quiz,) = [c.source for c in cells(chapter) if c.source.startswith("## Quiz")]
    questions = re.split(r"^\*\*.+\*\*$", quiz, flags=re.M)[1:]
    assert len(questions) >= 3
    for number, choices in enumerate(questions, start=1):
        right = re.findall(
            r'<details class="quiz( right)?" name="question-(\d)"><summary>.+</summary>(Right|No)\. ', choices
        )
        assert len(right) == choices.count("<details") == choices.count("</details>") >= 2
        assert {name for _, name, _ in right} == {str(number)}
        assert [mark for mark, _, word in right if (word == "Right") == bool(mark)] == [mark for mark, _, _ in right]
        assert sum(bool(mark) for mark, _, _ in right) == 1


def test_what_is_folded_or_hidden_is_tagged_with_known_tags(chapter):
    tags = {tag for c in cells(chapter) for tag in c.metadata.get("tags", [])}
    assert tags <= {"parameters", "aggregate", "answer", "remove-input", "solution"}


def test_prose_types_no_result(chapter):
    """A measured value would have two decimals or more; definitions (a threshold of 0.5) have one."""
    for cell in cells(chapter):
        if cell.cell_type == "markdown":
            prose = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`|^\$\$.*", "", cell.source, flags=re.S)
            assert not re.search(r"\d\.\d\d", prose), prose


def test_figures_that_prose_names_exist_once():
    """A name of a cell is the name of a figure that some chapter refers to; a diagram is called like its file."""
    every = [cell for path in PAGES for cell in cells(path)]
    prose = "\n".join(cell.source for cell in every if cell.cell_type == "markdown")
    named = [cell.metadata["name"] for cell in every if "name" in cell.metadata]
    assert len(named) == len({*named})
    told = {*re.findall(r"\{numref\}`([\w-]+)`", prose)}
    assert {*named} <= told <= {*named} | {f"fig-{name}" for name in re.findall(r"/(\w+)\.svg\)", prose)}


def test_no_paragraph_stands_twice(chapter):
    prose = [cell.source for cell in cells(chapter) if cell.cell_type == "markdown"]
    paragraphs = Counter(part for text in prose for part in text.split("\n\n") if len(part) > 40)
    assert [part for part, times in paragraphs.items() if times > 1] == []


def test_cells_are_small_enough_to_read(chapter):
    for cell in cells(chapter):
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 25, cell.source
            assert max(map(len, cell.source.splitlines() or [""])) <= 140, cell.source


def test_the_set_up_is_short(chapter):
    """Imports in one cell, then at most ten lines that load the profile and what the chapter needs."""
    code = [c for c in cells(chapter) if c.cell_type == "code"]
    imports, set_up = code[1:3]
    if "profiles.load(profile)" not in imports.source:  # a short chapter may have both in one cell
        assert {type(node) for node in ast.parse(imports.source).body} <= {ast.Import, ast.ImportFrom}
        assert len(set_up.source.splitlines()) <= 10, set_up.source
        assert "profiles.load(profile)" in set_up.source
    else:
        assert len(imports.source.splitlines()) <= 15, imports.source


def test_no_file_name_of_a_run_is_typed(chapter):
    """`Run` owns every file name of a run."""
    for cell in cells(chapter):
        if cell.cell_type == "code":
            names = re.findall(r"\"([\w-]+)\.(?:csv|json|safetensors)\"", cell.source)
            assert not {"grounding", "fidelity", "run", "train", "masks"} & set(names), cell.source


def names_in(source: str) -> tuple[set[str], set[str]]:
    """Names that the code of a cell sets, and all that it uses."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    return {node.id for node in nodes if isinstance(node.ctx, ast.Store)}, {node.id for node in nodes}


@pytest.mark.parametrize("left", [1.0, 0.95, 0.5])
def test_chapter_10_can_be_read_while_its_studies_run(left, monkeypatch):
    """Its cells that need no run of one's own, on the shipped tables and on what they were with fewer rows."""
    read = pd.read_csv

    def some(path, **options):
        table = read(path, **options)
        return table[: round(left * len(table))]

    monkeypatch.setattr(pd, "read_csv", some)
    (chapter,) = (page for page in PAGES if page.stem == "10_both")
    space: dict[str, object] = {}
    without: set[str] = set()  # names of cells that are left out
    done = 0
    for cell in cells(chapter):
        if cell.cell_type == "code":
            made, used = names_in(cell.source)
            if re.search(r"profiles\.run\(|load_base|profiles\.studies", cell.source) or (used - made) & without:
                without |= made - space.keys()
                continue
            exec(cell.source, space)
            without -= made
            done += 1
    assert done > 20
