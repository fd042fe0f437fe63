"""The whole: every notebook run in small, the pages built without a warning, and what a reader finds on them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from chestxai import batch, book, profiles, sources
from chestxai.batch import Node
from chestxai.localization import SCORES

SMOKE = profiles.load("smoke")


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("book") / "runs"


@pytest.fixture(scope="module")
def nodes(out) -> list[Node]:
    planned = batch.plan(SMOKE, SMOKE.variants, SMOKE.seeds, out=out)
    outcomes = batch.run(planned, workers=2, quiet=True)
    assert {o.node.name: o.reason for o in outcomes if o.status != "finished"} == {}
    return planned


@pytest.fixture(scope="module")
def html(nodes, out) -> Path:
    source = book.assemble(nodes, out.parent / "_build" / "book")
    return book.build(source, out.parent / "_build").parent


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


def test_the_pages_show_the_executions(html, nodes):
    pages = {p.stem: p.read_text() for p in (html / "notebooks").glob("*.html")}
    assert len(pages) == len(nodes)
    assert "02_finetuning-learnable-0" in pages
    assert "Plotly.newPlot" in pages["08_tradeoff"]
    assert "_static/tables.css" in pages["08_tradeoff"]
    assert (
        "Undecided" in pages["08_tradeoff"]
        or "Supported" in pages["08_tradeoff"]
        or "Contradicted" in pages["08_tradeoff"]
    )
    for name, text in pages.items():
        assert "Traceback" not in text, name
        assert not re.search(r"class=\"[^\"]*stderr", text), name
        assert "application/vnd.jupyter.widget-view" not in text, name
        # Nothing is loaded from another machine but the theme's and MathJax's own files.
        assert str(Path.home()) not in text, name


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
    assert text.count("tag_hide-cell") >= 2


def test_results_name_both_variants_and_their_references(nodes):
    shown = book.results(nodes)
    for word in ("frozen", "learnable", "location prior", "chance", "AUC-ROC", "FID", "["):
        assert word in shown


def test_unfinished_notebooks_are_not_published(nodes, tmp_path):
    other = batch.plan(SMOKE, SMOKE.variants, [7], out=tmp_path)
    with pytest.raises(ValueError, match=r"10 notebooks are not run .*make book"):
        book.assemble(other, tmp_path / "book")
    assert not (tmp_path / "book").exists()


def test_further_executions_become_sections():
    toc = {"root": "intro", "chapters": [{"file": "notebooks/a"}, {"file": "notebooks/b"}]}
    pages = {"a": [("notebooks/a", "a")], "b": [("notebooks/b", "b"), ("notebooks/b-x-0", "x · seed 0")]}
    assert book.contents(toc, pages)["chapters"][1] == {
        "file": "notebooks/b", "sections": [{"file": "notebooks/b-x-0", "title": "x · seed 0"}],
    }  # fmt: skip
    with pytest.raises(ValueError, match="lacks c"):
        book.contents(toc, pages | {"c": [("notebooks/c", "c")]})
    with pytest.raises(ValueError, match="notebooks/b is not a notebook of the batch"):
        book.contents(toc, {"a": pages["a"]})


def test_a_page_with_a_warning_is_an_error(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "_toc.yml").write_text("format: jb-book\nroot: intro\n")
    (source / "_config.yml").write_text("title: t\nexecute: {execute_notebooks: 'off'}\n")
    (source / "intro.md").write_text("# Title\n\n[nowhere](no-such-page.md)\n")
    with pytest.raises(ValueError, match=r"does not build cleanly[\s\S]*no-such-page"):
        book.build(source, tmp_path / "out" / "_build")


def test_a_published_notebook_has_no_bars_widgets_or_paths():
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# 2 Title\n\ntext"),
            nbformat.v4.new_code_cell(
                "out = '/home/me'\nseed = 0", metadata={"tags": ["injected-parameters"], "papermill": {}}
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
    node = Node("n", Path("n.ipynb"), Path(), {"variant": "frozen", "seed": 3})
    shown = book.published(notebook, node)
    assert shown.cells[0].source == "# 2 Title: frozen, seed 3\n\ntext"
    assert shown.cells[1].source == "seed = 0"
    assert [o.data for o in shown.cells[2].outputs] == [{"text/html": "<p>"}]
    assert "widgets" not in shown.metadata
