"""The whole: every notebook run in small, the pages built without a warning, and what a reader finds on them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup

from chestxai import batch, book, profiles, runs, sources
from chestxai.batch import Node
from chestxai.book import chapters, guard
from chestxai.localization import SCORES
from chestxai.profiles import ROOT
from chestxai.runs import InputError

SMOKE = profiles.load("smoke")


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("book") / "runs"


@pytest.fixture(scope="module")
def nodes(out) -> list[Node]:
    planned = batch.plan([batch.Cell(SMOKE, SMOKE.variants, SMOKE.seeds)], out=out)
    outcomes = batch.run(planned, workers=2, quiet=True)
    assert {o.node.name: o.reason for o in outcomes if o.status != "finished"} == {}
    return planned


@pytest.fixture(scope="module")
def html(nodes, out) -> Path:
    # In a folder of any name, as --output takes it.
    source = book.assemble(nodes, out.parent / "pages" / "book")
    return book.build(source, out.parent / "pages").parent


def test_a_run_leaves_what_the_design_says(nodes, out):
    for variant in SMOKE.variants:
        run = out / "smoke" / variant / "seed-0"
        about = json.loads((run / "run.json").read_text())
        assert about["finished"]
        assert about["settings"] == SMOKE.finetune.model_dump()
        assert {"versions", "device", "commit", "data", "peak_memory_gb"} <= set(about)
        steps = [0, 4, 8]
        grounding = pd.read_csv(run / "grounding.csv")
        assert sorted(grounding["step"].unique()) == steps
        assert set(SCORES) <= set(grounding)
        assert list(map(int, json.loads((run / "fidelity.json").read_text())["steps"])) == steps
        assert (run / "model/model_index.json").is_file()
    table = pd.read_csv(out / "smoke/tradeoff.csv")
    assert len(table) == len(SMOKE.variants) * 3
    # Both variants start from the same base, under the same noise.
    base = table[table["step"] == 0].drop(columns=["variant"])
    pd.testing.assert_frame_equal(base.iloc[:1].reset_index(drop=True), base.iloc[1:].reset_index(drop=True))


def test_a_run_is_repeated_from_what_it_left(nodes, out, tmp_path, monkeypatch, capsys):
    """From a copy elsewhere, with today's notebook gone: the kept one is executed, and the weights are the same."""
    monkeypatch.setattr(batch, "NOTEBOOKS", tmp_path / "gone")
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in ("run.json", "train.csv", "02_finetuning.ipynb"):
        shutil.copyfile(out / "smoke/learnable/seed-0" / name, kept / name)
    about = json.loads((kept / "run.json").read_text())
    assert about["profile"] == SMOKE.model_dump(mode="json")
    about["versions"]["torch"] = "1.0"
    (kept / "run.json").write_text(json.dumps(about))
    assert batch.main(["--replay", str(kept / "run.json"), "--out", str(tmp_path / "again")]) == 0
    told = capsys.readouterr().out
    assert "torch: 1.0 then, " in told
    assert "loss curve equal at every step" in told
    assert f"weights    equal ({about['model']}" in told
    source = nbformat.read(tmp_path / "again/02_finetuning.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in source.cells)


def test_running_again_runs_nothing(nodes):
    assert {o.status for o in batch.run(nodes, workers=2, quiet=True)} == {"skipped"}


def test_the_pages_are_where_they_should_be(html, out):
    assert html == out.parent / "pages" / "html"
    assert {path.name for path in html.parent.iterdir()} == {"book", "build.log", "html"}
    assert not (out.parent / "_build").exists()


def test_the_pages_show_the_executions(html, nodes):
    pages = {p.stem: p.read_text() for p in (html / "notebooks").glob("*.html")}
    assert sorted(pages) == [chapter.name for chapter in batch.CHAPTERS]
    assert "Plotly.newPlot" in pages["08_tradeoff"]
    assert "_static/book.css" in pages["08_tradeoff"]
    for name in ("02_finetuning", "03_attention", "06_fidelity"):
        for variant in SMOKE.variants:
            assert f'<p class="rubric">{variant}</p>' in pages[name], name
    assert "eproduced in this setting" in pages["08_tradeoff"] or "ontradicted in this setting" in pages["08_tradeoff"]
    # The first page says what this run found.
    assert re.search("(eproduced|ontradicted) in this setting", (html / "intro.html").read_text())
    for name, text in pages.items():
        assert "Traceback" not in text, name
        # The head: data, question, answer, what one learns, what must be known. No plumbing.
        assert "digital phantoms, no patients" in text, name
        assert "The answer</p>" in text, name
        assert "PosixPath" not in text, name
        assert "You will be able to" in text, name
        assert "Show code cell" not in text, name
        assert "# Parameters" not in text, name
        assert text.count('<details class="quiz right"') >= 2, name
        assert "#term-" in text, name
        assert not re.search(r"class=\"[^\"]*stderr", text), name
        assert "application/vnd.jupyter.widget-view" not in text, name
        # Nothing is loaded from another machine but the theme's and MathJax's own files.
        assert str(Path.home()) not in text, name


def test_two_chapters_have_no_fault_that_a_reader_sees(html):
    """What ``make check-pages`` finds: phone and desk, light and dark, by keyboard; where there is a Chromium."""
    for name in ("playwright", "axe_playwright_python"):
        pytest.importorskip(name, reason="the extra 'pages' is not installed")
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("there is no Chromium")
    names = "intro,02_finetuning,04_pointing,08_tradeoff"
    tool = [sys.executable, ROOT / "tools" / "check_pages.py", html, "--pages", names]
    found = subprocess.run(tool, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_source_has_its_card_on_the_page(html):
    text = (html / "data_cards.html").read_text()
    shown = re.sub(r"<[^>]+>", "", text)
    for name in sources.SOURCES:
        assert f'<code class="docutils literal notranslate"><span class="pre">{name}</span></code>' in text
        assert sources.terms(name).conditions in shown.replace("’", "'")
        # The files as the module reads them.
        assert name == "phantom" or f"{name}/" in shown
    assert "{cite}" not in shown
    assert (html / "_static" / "phantoms.png").is_file()


def test_solutions_are_folded_away(html):
    text = (html / "notebooks/02_finetuning.html").read_text()
    assert text.count('<details class="solution">') >= 2


def test_results_name_both_variants_and_their_references(nodes):
    shown = book.results(nodes)
    for word in ("frozen", "learnable", "location prior", "chance", "AUC-ROC", "FID", "["):
        assert word in shown


def test_unfinished_notebooks_are_not_published(nodes, tmp_path):
    other = batch.plan([batch.Cell(SMOKE, SMOKE.variants, [7])], out=tmp_path)
    with pytest.raises(ValueError, match=r"\d+ notebooks are not run .*make book"):
        book.assemble(other, tmp_path / "book")
    assert not (tmp_path / "book").exists()


def executed(node: Node) -> None:
    """Leave what a run of the node would, with empty results."""
    output = nbformat.v4.new_output("stream", text=node.name)
    cells = [nbformat.v4.new_markdown_cell(f"# {node.notebook.stem}"), nbformat.v4.new_code_cell("x", outputs=[output])]
    node.folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), node.executed)
    for name in node.makes:
        (node.folder / name).touch()
    runs.write_json(node.record, {"identity": node.identity})


def test_a_chapter_has_one_page_for_all_variants_and_seeds(tmp_path):
    recipes = {"frozen": "frozen", "learnable": "learnable", "lora": "lora:4", "learnable-anchored": "last:1"}
    profile = profiles.Profile.model_validate(SMOKE.model_dump() | {"variants": recipes})
    planned = batch.plan([batch.Cell(profile, list(recipes), [0, 1, 2])], out=tmp_path / "runs")
    for node in planned:
        executed(node)
    source = book.assemble(planned, tmp_path / "book")
    assert {path.stem for path in source.glob("notebooks/*.ipynb")} == {chapter.name for chapter in batch.CHAPTERS}
    text = nbformat.read(source / "notebooks" / "02_finetuning.ipynb", 4)
    shown = "\n".join(cell.source for cell in text.cells)
    assert all(shown.count(f">{variant}, seed {seed}</p>") == 1 for variant in recipes for seed in range(3))
    with pytest.raises(InputError, match=r"_toc\.yml and the batch differ in notebooks/11_knowledge"):
        book.assemble([node for node in planned if node.notebook.stem != "11_knowledge"], tmp_path / "less")


def test_of_credentialed_data_only_outputs_of_tagged_cells_are_published(nodes, tmp_path):
    """The real chapters, as if their data were MIMIC's."""
    known = guard.private([], ["mimic"])
    tagged = untagged = kept = 0
    for node in nodes:
        before = book.published(nbformat.read(node.executed, 4), node)
        after = guard.withhold(before, known)
        for was, cell in zip(before.cells, after.cells, strict=True):
            if not was.get("outputs"):
                assert not cell.get("outputs")
            elif guard.AGGREGATE in was.metadata.get("tags", []):
                tagged += 1
                kept += cell.outputs == was.outputs
            else:
                untagged += 1
                (output,) = cell.outputs
                assert output.data["text/plain"].startswith("Withheld (output of a cell that is not tagged aggregate)")
        assert guard.leaks(after, known) == []
    assert tagged
    assert untagged
    # Nothing but scores, charts and counts is tagged.
    assert kept == tagged
    source = book.assemble(nodes, tmp_path / "closed", known)
    assert "aggregates only" in (source / "notebooks/03_attention.ipynb").read_text()


def test_a_page_with_a_warning_or_a_leak_is_an_error(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "_toc.yml").write_text("format: jb-book\nroot: intro\n")
    (source / "_config.yml").write_text("title: t\nexecute: {execute_notebooks: 'off'}\n")
    (source / "intro.md").write_text("# Title\n\n[nowhere](no-such-page.md)\n")
    html = tmp_path / "out" / "html"
    html.mkdir(parents=True)
    (html / "index.html").write_text("an earlier book")
    with pytest.raises(InputError, match=r"does not build cleanly[\s\S]*no-such-page"):
        book.build(source, tmp_path / "out")
    (source / "intro.md").write_text("# Title\n")

    def refuse(built: Path) -> None:
        assert (built / "intro.html").is_file()
        raise InputError("not these")

    with pytest.raises(InputError, match="not these"):
        book.build(source, tmp_path / "out", refuse)
    # The earlier pages are still there, and nothing half-made.
    assert (html / "index.html").read_text() == "an earlier book"
    assert {path.name for path in html.parent.iterdir()} == {"html", "build.log"}


def test_a_published_notebook_has_no_bars_widgets_or_paths():
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# 2 Title\n\ntext"),
            nbformat.v4.new_code_cell(
                'variant = "frozen"  # a variant\nseed = 0\nout = ""',
                metadata={"tags": ["parameters"], "papermill": {}},
            ),
            nbformat.v4.new_code_cell(
                "# Parameters\nout = '/home/me'\nseed = 3", metadata={"tags": ["injected-parameters"], "papermill": {}}
            ),
            nbformat.v4.new_code_cell(
                "x",
                outputs=[
                    nbformat.v4.new_output("stream", name="stderr", text="50%|"),
                    nbformat.v4.new_output(
                        "display_data", data={"text/html": "<p>", "application/vnd.jupyter.widget-view+json": {}}
                    ),
                ],
            ),
        ]
    )
    notebook.metadata["widgets"] = {"state": 1}
    node = Node("n", Path("n.ipynb"), Path(), {"variant": "learnable", "seed": 3, "out": "/home/me"})
    shown = book.published(notebook, node)
    assert len(shown.cells) == 3
    assert shown.cells[1].source == 'variant = "learnable"  # a variant\nseed = 3\nout = ""'
    assert [o.data for o in shown.cells[2].outputs] == [{"text/html": "<p>"}]
    assert "widgets" not in shown.metadata


def execution(name: str) -> nbformat.NotebookNode:
    """An execution whose figure is equal to that of others but for plotly's name for it."""
    cell, output = nbformat.v4.new_code_cell, nbformat.v4.new_output
    figure = f'<div id="{name[0] * 8}-aaaa-bbbb-cccc-{name[0] * 12}">equal</div>'
    text = "# 2 Title\n\n**Why?**\n\nThe gain, and the `gain`. Removed, *removed*."
    text += "\n\n![A model](../_static/model.svg)\n\n*A caption.*"
    return nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        cells=[
            nbformat.v4.new_markdown_cell(text),
            cell("show(1)", outputs=[output("display_data", data={"text/html": figure})]),
            cell("show(2)", outputs=[output("display_data", data={"text/markdown": f"only **{name}**"})]),
            cell("x", outputs=[output("stream", text=f"{name} wins")], metadata={"tags": ["answer", "remove-input"]}),
            nbformat.v4.new_markdown_cell("**1.** Why?"),
            nbformat.v4.new_markdown_cell("Because {cite}`ho2020ddpm`.", metadata={"tags": ["solution"]}),
            cell("show(3)", metadata={"tags": ["solution"]}),
        ],
    )


def test_executions_are_laid_into_one_page():
    page = chapters.page(
        {"frozen, seed 0": execution("aa"), "learnable <b>, seed 0": execution("bb")}, ["phantoms", "`x`"]
    )
    sources = [cell.source for cell in page.cells]
    assert sources[0].startswith("# 2 Title\n\n{bdg-primary}`phantoms` {bdg-light}`x`\n")
    # The first mention of a term, and none in code.
    assert sources[0].count("{term}`gain <gain>`") == 1
    assert "the `gain`. Removed, <span" in sources[0]
    assert "{term}`removed <removed>`" in sources[0]
    assert ":::{figure} ../_static/model.svg\n:name: fig-model\n:alt: A model\n\nA caption.\n:::" in sources[0]
    assert [o.text for o in page.cells[2].outputs] == ["aa wins", "bb wins"]
    # What is equal is there once, what differs side by side, prose and code once.
    shown = [cell for cell in page.cells if cell.cell_type == "code"]
    assert sum("equal" in str(cell.outputs) for cell in shown) == 1
    assert sum("only" in str(cell.outputs) for cell in shown) == 2
    assert sum("**Why?**" in source for source in sources) == sources.count("show(2)") == 1
    assert sum("learnable &lt;b&gt;, seed 0</p>" in source for source in sources) == 2
    start = sources.index('<details class="solution">\n<summary>Solution</summary>')
    assert sources[start + 1 : start + 4] == ["Because {cite}`ho2020ddpm`.", "show(3)", "</details>"]
    assert sources[-1].startswith("## References\n\n- Jonathan Ho")
    assert "https://doi.org/10.48550/arXiv.2006.11239" in sources[-1]


def test_figures_side_by_side_say_whose_they_are():
    cell, output = nbformat.v4.new_code_cell, nbformat.v4.new_output

    def ran(title: str, score: str) -> nbformat.NotebookNode:
        html = f'<figure class="cx" aria-label="{title}. {score}"><figcaption><b>{title}</b></figcaption></figure>'
        cells = [
            nbformat.v4.new_markdown_cell("# 2 Title"),
            cell("x", outputs=[output("display_data", {"text/html": html})]),
        ]
        return nbformat.v4.new_notebook(cells=cells)

    page = chapters.page({"frozen": ran("Where frozen looks", "1"), "learnable": ran("Not learnable-late", "2")}, [])
    texts = [o.data["text/html"] for c in page.cells if c.cell_type == "code" for o in c.outputs]
    assert [re.search("<figcaption>(.*?)</figcaption>", text)[1] for text in texts] == [
        "<b>Where frozen looks</b>",
        "<b>learnable:</b> <b>Not learnable-late</b>",
    ]
    assert 'aria-label="learnable: Not learnable-late. 2"' in texts[1]


def test_figures_are_numbered_by_chapter_and_prose_links_to_them():
    cell, output = nbformat.v4.new_code_cell, nbformat.v4.new_output
    html = {"text/html": "<figure><figcaption>Maps</figcaption></figure>"}
    diagram = "# 2 Title\n\n:::{figure} a/model.svg\n:name: fig-model\n:alt: M\n\nHow\n:::"
    # A cell with a figure for each of two variants has one name.
    maps = [
        cell("x", metadata={"name": "fig-maps"}, outputs=[output("display_data", data=dict(html))]) for _ in range(2)
    ]
    first = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(diagram), *maps])
    prose = "# 10 Other\n\nSee {numref}`fig-maps` and {numref}`fig-model`, not {numref}`fig-withheld`."
    other = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(prose), cell("x", outputs=[output("display_data", data=dict(html))])]
    )
    chapters.number({"notebooks/02_a": first, "notebooks/10_b": other})
    assert "\n\n**Figure 2.1.** How\n:::" in first.cells[0].source
    captions = [re.sub("</?figure>", "", c.outputs[0].data["text/html"]) for c in (*first.cells[1:], other.cells[1])]
    assert captions == [
        '<figcaption id="fig-maps"><b>Figure 2.2.</b> Maps</figcaption>',
        "<figcaption><b>Figure 2.3.</b> Maps</figcaption>",
        "<figcaption><b>Figure 10.1.</b> Maps</figcaption>",
    ]
    assert other.cells[0].source == (
        '# 10 Other\n\nSee <a href="02_a.html#fig-maps">Figure 2.2</a> and '
        '<a href="02_a.html#fig-model">Figure 2.1</a>, not (figure not shown here).'
    )


def test_every_reference_has_a_link():
    keys = re.findall(r"^@\w+\{(\w+),", (ROOT / "references.bib").read_text(), re.M)
    listed = chapters.references(f"{{cite}}`{','.join(keys)}`").splitlines()
    assert len(listed) == len(keys) > 30
    assert all("https://doi.org/" in line for line in listed)


@pytest.mark.parametrize("url", ["", "https://github.com/someone/chestxai"])
def test_launch_buttons_need_an_address(tmp_path, url):
    """A page of two executions, terms, a diagram and a solution, built strictly, with and without a repository."""
    source = tmp_path / "source"
    for name in ("pages/glossary.md", *book.SOURCES):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    text = (ROOT / "_config.yml").read_text()
    # None is invented.
    assert text.count('\n  url: ""\n') == 1
    (source / "_config.yml").write_text(book.config(text.replace('url: ""', f'url: "{url}"')))
    (source / "_static/plotly.min.js").touch()
    toc = {
        "format": "jb-book",
        "root": "pages/glossary",
        "chapters": [{"file": "notebooks/02_finetuning"}, {"file": "bib"}],
    }
    (source / "_toc.yml").write_text(yaml.safe_dump(toc))
    (source / "bib.md").write_text("# References\n\n```{bibliography}\n```\n")
    (source / "notebooks").mkdir()
    page = chapters.page({"frozen": execution("aa"), "learnable": execution("bb")}, ["phantoms"])
    nbformat.write(page, source / "notebooks/02_finetuning.ipynb")
    book.build(source, tmp_path / "out")
    text = (tmp_path / "out/html/notebooks/02_finetuning.html").read_text()
    for host, path in (
        ("colab.research.google.com", "github/someone/chestxai/blob/main"),
        ("mybinder.org", "gh/someone"),
    ):
        assert (f"{host}/" in text and f"{path}" in text) is bool(url)
    assert "glossary.html#term-gain" in text
    assert "glossary.html#term-removed" in text
    terms = chapters.glossary()
    assert all(terms.values())
    assert max(map(len, terms)) < 40
    parsed = BeautifulSoup(text, "html.parser")
    names, words = ("frozen", "learnable"), ("onlyaa", "onlybb", "aa wins", "bb wins")
    beside = parsed.select(".executions > .execution")
    assert [one.get_text(strip=True) for one in beside] == [n + w for n, w in zip(names * 2, words, strict=True)]
    assert "show(3)" in parsed.select_one("details.solution").get_text()
    assert "aa wins" in parsed.select_one(".admonition.answer").get_text()
    assert parsed.select_one("figure img[alt='A model']")
