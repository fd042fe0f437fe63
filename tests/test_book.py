"""The whole: every notebook run in small, the pages built without a warning, and what a reader finds on them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from chestxai import batch, book, guard, profiles, runs, sources
from chestxai.batch import Node
from chestxai.localization import SCORES
from chestxai.runs import InputError

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
    assert len(pages) == len(nodes)
    assert "02_finetuning-learnable-0" in pages
    assert "Plotly.newPlot" in pages["08_tradeoff"]
    assert "_static/tables.css" in pages["08_tradeoff"]
    assert "eproduced in this setting" in pages["08_tradeoff"] or "ontradicted in this setting" in pages["08_tradeoff"]
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
    with pytest.raises(ValueError, match=r"\d+ notebooks are not run .*make book"):
        book.assemble(other, tmp_path / "book")
    assert not (tmp_path / "book").exists()


def executed(node: Node) -> None:
    """Leave what a run of the node would, with empty results."""
    cells = [nbformat.v4.new_markdown_cell(f"# {node.notebook.stem}"), nbformat.v4.new_code_cell("x")]
    node.folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), node.executed)
    for name in node.makes:
        (node.folder / name).touch()
    runs.write_json(node.record, {"identity": node.identity})


def test_every_variant_and_seed_has_its_page(tmp_path):
    variants = ["frozen", "learnable", "lora", "learnable-anchored"]
    recipes = {"frozen": "frozen", "learnable": "learnable", "lora": "lora:4", "learnable-anchored": "last:1"}
    profile = profiles.Profile.model_validate(SMOKE.model_dump() | {"variants": recipes})
    planned = batch.plan(profile, variants, [0, 1, 2], out=tmp_path / "runs")
    for node in planned:
        executed(node)
    source = book.assemble(planned, tmp_path / "book")
    names = sorted(path.stem for path in source.glob("notebooks/02_finetuning*.ipynb"))
    runs_of = [f"{variant}-{seed}" for variant in variants for seed in range(3)]
    assert names == sorted(["02_finetuning", *(f"02_finetuning-{run}" for run in runs_of if run != "frozen-0")])
    toc = (source / "_toc.yml").read_text()
    assert all(f"notebooks/{path.stem}\n" in toc for path in source.glob("notebooks/*.ipynb"))
    title = nbformat.read(source / "notebooks" / "02_finetuning-lora-2.ipynb", 4).cells[0].source
    assert title == "# 02_finetuning: lora, seed 2"


def test_of_credentialed_data_only_outputs_of_tagged_cells_are_published(nodes, tmp_path):
    """The real chapters, as if their data were MIMIC's."""
    known = guard.private([], ["mimic"])
    everything = book.assemble(nodes, tmp_path / "open")
    guarded = book.assemble(nodes, tmp_path / "closed", known)
    tagged = untagged = kept = 0
    for path in everything.glob("notebooks/*.ipynb"):
        before, after = nbformat.read(path, 4), nbformat.read(guarded / "notebooks" / path.name, 4)
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
