"""The batch: a graph of small real notebooks, run by papermill on dask, skipped, rerun, failed and killed."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import itertools
import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, nullcontext
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from filelock import FileLock
from PIL import Image

from chestxai import batch, profiles, runs
from chestxai.batch import BOXES, IMAGES, NOTEBOOKS, Chapter, graph, grid, replay, study
from chestxai.runs import InputError
from tests.pictures import ramp

SMOKE = profiles.load("smoke")
CHAPTERS = (
    Chapter("a", makes=("a.txt",), each_run=True),
    Chapter("b", needs=("a",), makes=("b.txt",), each_run=True),
    Chapter("c", needs=("b",)),
    Chapter("d"),
)
RUN = """from pathlib import Path
folder = Path(out) / 'smoke' / variant / f'seed-{seed}'
folder.mkdir(parents=True, exist_ok=True)
"""
ROOT = profiles.ROOT
# The package has a function of the same name.
execution = importlib.import_module("chestxai.batch.execute")
SOURCES = {
    "a": RUN + "(folder / 'a.txt').write_text(f'{variant} {seed}')",
    "b": RUN + "(folder / 'b.txt').write_text((folder / 'a.txt').read_text().upper())",
    "c": "from pathlib import Path\nprint(sorted(p.read_text() for p in Path(out).rglob('b.txt')))",
    "d": "from chestxai import studies\nprint(len(studies.FINDINGS))",
}


def write(folder: Path, name: str, code: str) -> Path:
    each = "variant = ''\nseed = 0" if name in "abg" else "variants = []\nseeds = []"
    cells = [
        nbformat.v4.new_code_cell(f"profile = ''\n{each}\ndata = ''\nout = ''", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(code),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    for name, code in SOURCES.items():
        write(tmp_path / "notebooks", name, code)
    return tmp_path / "notebooks"


def planned(notebooks: Path, variants=("frozen", "learnable"), seeds=(0,), chapters=CHAPTERS, profile=SMOKE):
    cell = batch.Cell(profile, variants, seeds)
    return batch.plan([cell], out=notebooks.parent / "runs", chapters=chapters, notebooks=notebooks)


def states(outcomes) -> dict[str, str]:
    return {o.node.name: o.status for o in outcomes}


def cluster(gpus: list[str]):
    """Two workers as an administrator starts them; as far as there are GPUs, each sees and declares one."""
    from distributed import Nanny, Scheduler, SpecCluster

    workers = {}
    for i in range(2):
        options = {"nthreads": 1, "memory_limit": 0, "dashboard": False}
        if gpus:
            options["env"] = {"CUDA_VISIBLE_DEVICES": ",".join(gpus[i : i + 1])}
            options["resources"] = {"GPU": 1} if i < len(gpus) else None
        workers[i] = {"cls": Nanny, "options": options}
    return SpecCluster(
        workers=workers, scheduler={"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": ":0"}}
    )


def test_what_hands_notebooks_out_loads_no_model_library():
    """The batch and each of its workers start in two seconds; with torch and diffusers it would be twelve."""
    heavy = "{'torch', 'diffusers', 'transformers', 'sklearn', 'plotly'}"
    code = f"import sys, chestxai.batch; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


class TestPlan:
    def test_chapters_are_run_once_or_for_each_run_and_need_what_is_theirs(self, notebooks):
        nodes = {n.name: n for n in planned(notebooks, seeds=(0, 3))}
        assert list(nodes)[:4] == [
            "a · frozen · seed 0", "a · learnable · seed 0", "a · frozen · seed 3", "a · learnable · seed 3",
        ]  # fmt: skip
        assert nodes["b · frozen · seed 3"].needs == ("a · frozen · seed 3",)
        assert nodes["c"].needs == tuple(f"b · {v} · seed {s}" for s in (0, 3) for v in ("frozen", "learnable"))
        assert nodes["d"].needs == ()
        assert nodes["b · frozen · seed 3"].folder == notebooks.parent / "runs/smoke/frozen/seed-3"

    def test_what_changes_a_result_changes_the_identity_of_it_and_all_that_follows(self, notebooks):
        before = {n.name: n.identity for n in planned(notebooks)}
        assert before == {n.name: n.identity for n in planned(notebooks)}
        write(notebooks, "b", SOURCES["b"] + "  # changed")
        after = {n.name: n.identity for n in planned(notebooks)}
        assert {name[0] for name in before if before[name] != after[name]} == {"b", "c"}
        other = SMOKE.model_copy(update={"sampling": SMOKE.sampling.model_copy(update={"images": 99})})
        assert all(n.identity != after[n.name] for n in planned(notebooks, profile=other))
        # One more seed changes nothing of those there are, but for what is made of all of them.
        more = {n.name: n.identity for n in planned(notebooks, seeds=(0, 1))}
        assert {name for name in after if more[name] != after[name]} == {"c", "d"}

    def test_weights_that_are_missing_are_named_before_the_training(self, notebooks):
        spaces = {"spaces": ("findings", "inception-cd"), "weights": {"inception": str(notebooks / "none.pth")}}
        other = SMOKE.model_copy(update={"sampling": SMOKE.sampling.model_copy(update=spaces)})
        with pytest.raises(FileNotFoundError, match=r"none\.pth is missing.*pip install torch-fidelity"):
            planned(notebooks, profile=other)

    def test_a_module_counts_if_it_is_imported_even_indirectly(self, tmp_path):
        def parts(code: str) -> set[str]:
            return graph.read_source(write(tmp_path, "d", code)).parts

        assert parts("from chestxai import studies") == {"runs", "studies"}
        assert {"grounding", "attention", "models", "runs", "studies"} <= parts("import chestxai.grounding")
        assert "plots" not in parts("from chestxai.finetune import finetune")

    def test_a_table_that_ships_counts_where_a_notebook_names_it(self, tmp_path, monkeypatch):
        """With a new row of a study, the chapter that shows it is executed again."""
        monkeypatch.setattr(graph.profiles, "DATA", tmp_path)
        (tmp_path / "results").mkdir()
        # It may put a name together: of a folder that it names, all count.
        reads = 'from chestxai import profiles\ntables = [profiles.DATA / "results" / f"m{n}.csv" for n in ("ine",)]'
        sources = [write(tmp_path, "d", reads), write(tmp_path, "e", "mine = 1")]

        def identities() -> list[str]:
            return [graph.read_source(path).code for path in sources]

        seen = []
        for name, rows in (("mine", "1"), ("mine", "2"), ("other", "1")):
            (tmp_path / "results" / f"{name}.csv").write_text(rows)
            seen.append(identities())
        assert len({own for own, _ in seen}) == 3
        assert len({own for _, own in seen}) == 1

    def test_data_and_weights_count_by_their_content(self, notebooks, tmp_path):
        write(notebooks, "a", "from chestxai import models\n" + SOURCES["a"])
        chapters = (
            Chapter("a", each_run=True, reads=("train",)),
            Chapter("b", needs=("a",), each_run=True, reads=()),
            Chapter("d", reads=("test", "boxes test")),
        )
        base, data = tmp_path / "base", tmp_path / "data"
        shutil.copytree(profiles.DATA / "tiny", base)
        rows = ["image,text,finding,x,y,w,h,patient,split"]
        (data / "folder").mkdir(parents=True)
        for split, name in ((split, f"{split}{i}") for split in ("train", "val", "test") for i in ("", 2)):
            rows.append(f"{name}.png,Marked cardiomegaly.,Cardiomegaly,4,4,9,9,{name},{split}")
            Image.fromarray(ramp(64, 64)).save(data / "folder" / f"{name}.png")
        (data / "folder" / "mine.csv").write_text("\n".join(rows) + "\n")
        settings = SMOKE.data.model_copy(update={"source": "folder"})
        profile = SMOKE.model_copy(update={"base": str(base), "data": settings})

        def identities(where: Path = data) -> dict[str, str]:
            more = {"data": str(where), "out": tmp_path / "runs", "chapters": chapters, "notebooks": notebooks}
            return {n.name[0]: n.identity for n in batch.plan([batch.Cell(profile, ["frozen"], [0])], **more)}

        def changed(before: dict[str, str]) -> set[str]:
            return {name for name, identity in identities().items() if identity != before[name]}

        first = identities()
        assert not changed(first)
        # Where they lie is no difference, nor is when they were written.
        shutil.copytree(data, tmp_path / "elsewhere")
        os.utime(data / "folder" / "train.png", (0, 0))
        assert identities(tmp_path / "elsewhere") == identities() == first
        (data / "folder" / "mine.csv").write_text("\n".join(rows).replace("Marked", "Mild", 2) + "\n")
        assert changed(first) == {"a", "b"}
        second = identities()
        (data / "folder" / "mine.csv").write_text("\n".join(rows).replace("Marked", "Mild") + "\n")
        assert changed(second) == {"d"}
        third = identities()
        weights = runs.load_tensors(base / "vae" / "diffusion_pytorch_model.safetensors")
        weights[min(weights)] += 1
        runs.save_tensors(base / "vae" / "diffusion_pytorch_model.safetensors", weights)
        assert changed(third) == {"a", "b"}

    def test_shipped_files_count_where_their_module_is_imported(self, notebooks, tmp_path, monkeypatch):
        shutil.copytree(profiles.DATA / "classifier", tmp_path / "classifier")
        monkeypatch.setattr(graph, "SHIPPED", {"fidelity": tmp_path / "classifier"})
        write(notebooks, "c", "from chestxai import fidelity\n" + SOURCES["c"])
        before = {n.name: n.identity for n in planned(notebooks)}
        (tmp_path / "classifier" / "classifier.json").write_text("{}")
        assert {n.name for n in planned(notebooks) if n.identity != before[n.name]} == {"c"}

    def test_every_split_that_a_chapter_reads_is_declared(self):
        import re

        for chapter in batch.CHAPTERS:
            code = (NOTEBOOKS / f"{chapter.name}.py").read_text()
            for split, boxes in re.findall(r'profiles\.studies\(\w+, (\w+|"\w+"), data(, boxes=True)?\)', code):
                every = BOXES if boxes else IMAGES
                named = [f"boxes {split[1:-1]}" if boxes else split[1:-1]] if split.startswith('"') else every
                assert set(named) <= set(chapter.reads), f"{chapter.name} reads {named}"

    def test_magics_and_shell_commands_are_read_as_ipython_reads_them(self, tmp_path):
        def parts(*cells: str) -> set[str]:
            path = write(tmp_path, "d", cells[0])
            notebook = nbformat.read(path, as_version=4)
            notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells[1:]]
            nbformat.write(notebook, path)
            return graph.read_source(path).parts

        assert parts("%%bash\nfor i in 1 2; do echo $i; done", "!ls -l", "print?", "files = !ls") == set()
        assert (
            parts("?print", "!!ls", "%%html\n<b>a</b>", "%%javascript\nlet a = 1;", "# nothing", "", "%lsmagic")
            == set()
        )
        assert parts("%time x = 1\n%matplotlib inline\nfrom chestxai import studies") == {"runs", "studies"}
        assert parts("%%time\nfrom chestxai import studies") == {"runs", "studies"}
        assert parts("import asyncio\nawait asyncio.sleep(0)", "from chestxai import studies") == {"runs", "studies"}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, r"d\.ipynb, cell 2, line 2: .*'y = = 3'"),
            ("[]", r"d\.ipynb: expected a JSON object, found list"),
            ('{"cells": 3}', r"d\.ipynb is damaged or not a notebook"),
            ('{"cells": [{"source": []}]}', r"d\.ipynb is damaged or not a notebook"),
            ("{", r"d\.ipynb: not valid JSON"),
            ('{"cells": [3]}', r"d\.ipynb is damaged or not a notebook"),
            ('{"cells": {"a": 1}}', r"d\.ipynb is damaged or not a notebook"),
            ('{"cells": [{"cell_type": "code", "source": 5}]}', r"d\.ipynb is damaged or not a notebook"),
            ('{"cells": [{"cell_type": "code", "source": "x = 1\\u0000"}]}', r"d\.ipynb, cell 1.* null bytes"),
            ('{"cells": [{"cell_type": "code", "source": "' + "(" * 5000 + '"}]}', r"d\.ipynb, cell 1"),
        ],
    )
    def test_a_notebook_that_cannot_be_read_is_named(self, notebooks, content, message):
        write(notebooks, "d", "x = 1\ny = = 3")
        if content:
            (notebooks / "d.ipynb").write_text(content)
        with pytest.raises(InputError, match=message):
            planned(notebooks)

    def test_code_counts_where_it_is_reached_and_docstrings_do_not(self, notebooks, tmp_path, monkeypatch):
        package = tmp_path / "chestxai"
        for name, code in {
            "__init__": "",
            "alone": "def one():\n    'One.'\n    return 1\n",
            "pair/__init__": "from chestxai.pair.left import left\nfrom chestxai.pair.right import right\n",
            "pair/left": "def left():\n    return 1\n",
            "pair/right": "from chestxai import alone\ndef right():\n    return alone.one()\n",
        }.items():
            (package / name).parent.mkdir(exist_ok=True)
            (package / f"{name}.py").write_text(code)
        monkeypatch.setattr(runs.code, "PACKAGE", package)
        write(notebooks, "a", "from chestxai import pair\npair.left()\n" + SOURCES["a"])
        write(notebooks, "d", "from chestxai.pair import right")

        def changed(name: str, old: str, new: str) -> set[str]:
            before = {n.name: n.identity for n in planned(notebooks)}
            text = (package / f"{name}.py").read_text()
            assert old in text
            (package / f"{name}.py").write_text(text.replace(old, new))
            return {n.name[0] for n in planned(notebooks) if before[n.name] != n.identity}

        assert changed("alone", "One.", "The number one.") == set()
        assert changed("alone", "    return", "\n    # The result.\n    return") == set()
        assert changed("alone", "return 1", "return 2") == {"d"}
        assert changed("pair/left", "return 1", "return 2") == {"a", "b", "c"}

    def test_text_around_the_code_reruns_its_notebook_and_no_other(self, notebooks):
        before = {n.name: n.identity for n in planned(notebooks)}
        path = notebooks / "b.ipynb"
        notebook = nbformat.read(path, as_version=4)
        notebook.cells.append(nbformat.v4.new_markdown_cell("What does it mean?"))
        nbformat.write(notebook, path)
        assert {n.name[0] for n in planned(notebooks) if before[n.name] != n.identity} == {"b"}

    def test_a_variant_is_any_name_for_a_recipe(self, notebooks):
        recipes = {"no-text": "frozen", "last.2": "last:2", "LoRA_4": "lora:4"}
        profile = profiles.Profile.model_validate(SMOKE.model_dump() | {"variants": recipes})
        before = {n.name: n for n in planned(notebooks, profile.variants, profile=profile)}
        assert [n.parameters["variant"] for n in before.values() if n.name.startswith("a")] == list(recipes)
        recipes["LoRA_4"] = "lora:8"
        profile = profiles.Profile.model_validate(SMOKE.model_dump() | {"variants": recipes})
        after = {n.name: n for n in planned(notebooks, profile.variants, profile=profile)}
        changed = {name for name in after if before[name].identity != after[name].identity}
        assert changed == {"a · LoRA_4 · seed 0", "b · LoRA_4 · seed 0", "c"}

    @pytest.mark.parametrize("content", ["[]", "null", "3", '"x"', "{", "[" * 100_000])
    def test_a_damaged_record_is_no_record(self, notebooks, content):
        node = planned(notebooks)[-1]
        node.folder.mkdir(parents=True)
        node.executed.touch()
        runs.write_json(node.record, {"identity": node.identity})
        assert node.finished()
        node.record.write_text(content)
        assert not node.finished()

    def test_errors_say_what_is_wrong(self, notebooks):
        with pytest.raises(InputError, match="seeds: 3 is there twice"):
            planned(notebooks, seeds=(3, 0, 3))
        with pytest.raises(InputError, match="variants: there must be at least one"):
            planned(notebooks, variants=())
        with pytest.raises(InputError, match="-1 is negative"):
            planned(notebooks, seeds=(-1,))
        with pytest.raises(ValueError, match="has no variant 'thawed'"):
            planned(notebooks, variants=("thawed",))
        with pytest.raises(ValueError, match=r"e\.ipynb is missing"):
            planned(notebooks, chapters=(Chapter("e"),))
        with pytest.raises(ValueError, match="needs a, which is not among the chapters before"):
            planned(notebooks, chapters=(Chapter("b", needs=("a",)),))

    def test_the_book_itself_can_be_planned(self):
        nodes = batch.plan([batch.Cell(SMOKE, SMOKE.variants, SMOKE.seeds)])
        assert [n.notebook.stem for n in nodes] == sorted(n.notebook.stem for n in nodes)
        assert len(nodes) == sum(len(SMOKE.variants) if chapter.each_run else 1 for chapter in batch.CHAPTERS)


class TestRun:
    def test_run_skip_and_rerun_what_changed(self, notebooks):
        root = notebooks.parent / "runs/smoke"
        outcomes = batch.run(planned(notebooks), workers=2, quiet=True)
        assert set(states(outcomes).values()) == {"finished"}
        assert (root / "learnable/seed-0/b.txt").read_text() == "LEARNABLE 0"
        shown = nbformat.read(root / "c.ipynb", as_version=4).cells[-1].outputs[0].text
        assert shown == "['FROZEN 0', 'LEARNABLE 0']\n"
        again = batch.run(planned(notebooks), workers=2, quiet=True)
        assert set(states(again).values()) == {"skipped"}

        # A result that is gone is made again, with what follows only if that is gone or changed too.
        (root / "frozen/seed-0/b.txt").unlink()
        write(notebooks, "d", "print('new')")
        third = states(batch.run(planned(notebooks), workers=2, quiet=True))
        assert {name for name, state in third.items() if state == "finished"} == {"b · frozen · seed 0", "d"}

    def test_no_notebook_waits_behind_a_long_one_while_a_worker_is_free(self, notebooks):
        made = [f"short{i}" for i in range(4)]
        for name in made:
            write(notebooks, name, f"from pathlib import Path\n(Path(out) / '{name}').touch()")
        write(notebooks, "long", f"""
import time
from pathlib import Path
until = time.monotonic() + 240
while missing := [name for name in {made} if not (Path(out) / name).exists()]:
    assert time.monotonic() < until, f'{{missing}} wait for this one'
    time.sleep(0.05)
""")  # fmt: skip
        chapters = (Chapter("long", weight=100), Chapter("d"), *(Chapter(name, needs=("d",)) for name in made))
        outcomes = batch.run(planned(notebooks, chapters=chapters), workers=2, quiet=True)
        assert set(states(outcomes).values()) == {"finished"}, outcomes[0].reason

    def test_a_failure_stops_only_what_needs_it_and_keeps_its_notebook(self, notebooks):
        write(notebooks, "a", "if variant == 'frozen':\n    raise RuntimeError('no light')\n" + SOURCES["a"])
        outcomes = batch.run(planned(notebooks), workers=2, quiet=True)
        assert states(outcomes) == {
            "a · frozen · seed 0": "failed", "a · learnable · seed 0": "finished",
            "b · frozen · seed 0": "blocked", "b · learnable · seed 0": "finished",
            "c": "blocked", "d": "finished",
        }  # fmt: skip
        failed = outcomes[0]
        assert failed.reason == "RuntimeError: no light"
        assert "no light" in failed.node.failed.read_text()
        assert not failed.node.executed.exists()
        assert "1 failed" in batch.summary(outcomes)
        root = notebooks.parent / "runs/smoke"
        with open(root / "batch.csv") as file:
            rows = {row["notebook"]: row for row in csv.DictReader(file)}
        assert {name: row["status"] for name, row in rows.items()} == states(outcomes)
        assert rows["a · frozen · seed 0"]["executed"] == "frozen/seed-0/a.failed.ipynb"
        assert rows["b · frozen · seed 0"]["reason"] == "needs a · frozen · seed 0"
        assert rows["b · frozen · seed 0"]["executed"] == ""
        assert (root / rows["d"]["executed"]).is_file()
        write(notebooks, "a", SOURCES["a"])
        assert "failed" not in states(batch.run(planned(notebooks), workers=2, quiet=True)).values()
        assert not failed.node.failed.exists()

    def test_a_notebook_that_makes_nothing_has_failed(self, notebooks):
        write(notebooks, "a", "pass")
        outcome = batch.execute(planned(notebooks)[0])
        assert (outcome.status, outcome.reason) == ("failed", "the notebook ended without making a.txt")

    def test_a_kernel_that_dies_is_a_failure_like_any_other(self, notebooks):
        write(notebooks, "d", "import os\nos._exit(1)")
        node = planned(notebooks)[-1]
        node.folder.mkdir(parents=True)
        node.failed.write_text("of an earlier try")
        outcome = batch.execute(node)
        assert outcome.status == "failed"
        assert "DeadKernel" in outcome.reason
        assert "fewer --workers" in outcome.reason
        # papermill has saved nothing, so there is nothing to point at.
        assert outcome.notebook is None
        assert "ipynb" not in str(outcome)

    @pytest.mark.parametrize(("taken", "status"), [(1, "finished"), (2, "finished"), (3, "failed")])
    def test_a_port_that_another_process_takes_first_costs_a_new_start(self, notebooks, monkeypatch, taken, status):
        from jupyter_client.connect import LocalPortCache

        find, left = LocalPortCache.find_available_port, [5 * i for i in range(taken)]  # a kernel asks for five ports
        with closing(socket.create_server(("127.0.0.1", 0))) as other:
            asked = itertools.count()
            port = other.getsockname()[1]
            monkeypatch.setattr(
                LocalPortCache, "find_available_port", lambda *a: port if next(asked) in left else find(*a)
            )
            outcome = batch.execute(planned(notebooks)[-1])
        assert outcome.status == status
        assert ("Kernel died before replying" in outcome.reason) == (status == "failed")
        assert next(asked) == 5 * min(taken + 1, 3)

    def test_a_failed_notebook_that_is_pointed_at_is_there(self, notebooks):
        write(notebooks, "d", "raise RuntimeError('no light')")
        outcome = batch.execute(planned(notebooks)[-1])
        assert str(outcome).endswith(f"d: RuntimeError: no light  → {outcome.node.failed}")
        assert outcome.node.failed.is_file()

    def test_the_kernel_is_of_this_interpreter(self, notebooks, tmp_path, monkeypatch):
        argv = ["/no/such/python", "-f", "{connection_file}"]
        (tmp_path / "jupyter/kernels/python3").mkdir(parents=True)
        spec = json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"})
        (tmp_path / "jupyter/kernels/python3/kernel.json").write_text(spec)
        monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        write(notebooks, "d", f"import sys\nassert sys.prefix == {sys.prefix!r}")
        outcome = batch.execute(planned(notebooks)[-1])
        assert outcome.status == "finished", outcome.reason
        assert not [*tmp_path.glob("chestxai-kernel-*")]

    def test_out_of_memory_has_a_remedy(self):
        reason = runs.explain("OutOfMemoryError", "CUDA out of memory.\nTried to allocate 2.00 GiB.")
        assert "\n" not in reason
        assert "finetune.accumulate" in reason

    def test_a_need_that_is_not_among_the_nodes_is_refused(self, notebooks):
        a, b, *_ = planned(notebooks, variants=("frozen",))
        with pytest.raises(InputError, match="needs a · frozen · seed 0, which does not come before it"):
            batch.run([b], workers=1, quiet=True)
        with pytest.raises(InputError, match="b · frozen · seed 0 needs a · frozen · seed 0"):
            batch.run([b, a], workers=1, quiet=True)
        with pytest.raises(InputError, match="a · frozen · seed 0 is there twice"):
            batch.run([a, a], workers=1, quiet=True)

    def test_who_wants_a_gpu_gets_one_of_its_own(self, notebooks, monkeypatch):
        write(notebooks, "g", RUN + "import os\n(folder / 'g.txt').write_text(os.environ['CUDA_VISIBLE_DEVICES'])")
        monkeypatch.setattr(execution, "_gpus", lambda: ["5"])
        nodes = planned(notebooks, chapters=(Chapter("g", each_run=True, gpu=True), Chapter("d")))
        assert set(states(batch.run(nodes, workers=2, quiet=True)).values()) == {"finished"}
        # The second worker, which has no GPU, was free all the time.
        assert [path.read_text() for path in notebooks.parent.rglob("g.txt")] == ["5", "5"]

    @pytest.mark.parametrize("gpus", [[], ["7"]])
    def test_a_running_scheduler_is_used_and_its_gpus_asked_for(self, notebooks, capsys, gpus):
        write(notebooks, "g", RUN + "import os\n(folder / 'g.txt').write_text(os.environ['CUDA_VISIBLE_DEVICES'])")
        nodes = planned(notebooks, chapters=(Chapter("g", each_run=True, gpu=True),))
        environment = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = "any"
        try:
            with cluster(gpus) as running:
                outcomes = batch.run(nodes, scheduler=running.scheduler_address)
        finally:
            os.environ.pop("CUDA_VISIBLE_DEVICES")
            os.environ |= {} if environment is None else {"CUDA_VISIBLE_DEVICES": environment}
        assert set(states(outcomes).values()) == {"finished"}
        assert {path.read_text() for path in notebooks.parent.rglob("g.txt")} == set(gpus or ["any"])
        assert ("no worker declares a GPU" in capsys.readouterr().out) == (not gpus)

    def test_two_kernels_never_work_on_one_node(self, notebooks, tmp_path):
        """A kernel of a killed worker may live for a second: who comes after waits for its end."""
        (node,) = planned(notebooks, chapters=(Chapter("d"),))
        node.folder.mkdir(parents=True)
        code = execution._HOLD.format(path=str(node.folder / ".d.lock")).replace("get_ipython()", "type")
        code = f"class type: pass\n{code}\nprint('held', flush=True)\nimport time\ntime.sleep(1.5)"
        stray = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        stray.stdout.readline()
        outcome = batch.execute(node)
        assert stray.poll() == 0
        assert outcome.status == "finished"


SETTINGS = {"sampling.images": [16, 8], "finetune.text_learning_rate": [5e-5]}


class TestGrid:
    def file(self, folder: Path, **content) -> Path:
        path = folder / "mine.yaml"
        path.write_text(yaml.safe_dump({"profile": "smoke", **content}, sort_keys=False))
        return path

    def test_a_combination_is_a_profile_named_after_what_differs(self, tmp_path):
        settings = {"data.train": [48, 24], "finetune.steps": [8, 4], "finetune.text_learning_rate": [2e-4]}
        path = self.file(tmp_path, seeds=[3, 4], settings=settings)
        cells = grid.load(path, tmp_path)
        assert [cell.profile.name for cell in cells] == [
            "smoke.text_learning_rate-0.0002", "smoke.finetune.steps-4.text_learning_rate-0.0002",
            "smoke.train-24.text_learning_rate-0.0002", "smoke.train-24.finetune.steps-4.text_learning_rate-0.0002",
        ]  # fmt: skip
        last = cells[-1]
        assert last.changes == {"data.train": 24, "finetune.steps": 4, "finetune.text_learning_rate": 2e-4}
        last.write()
        # The file is a profile like any other: the book is made with it.
        assert profiles.load(last.path) == last.profile
        assert (last.profile.finetune.steps, last.profile.data.train, last.profile.seeds) == (4, 24, (3, 4))
        assert last.profile.variants == SMOKE.variants
        same = grid.load(self.file(tmp_path, settings={"finetune.learning_rate": [0.001]}), tmp_path)
        assert [(cell.profile, cell.path) for cell in same] == [(SMOKE, "")]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"settings": {"finetune.rate": [1]}}, "settings.finetune.rate: no such setting; there are"),
            ({"settings": {"name": ["x"]}}, "settings.name: no such setting"),
            ({"settings": {"finetune.steps": [4, 0]}}, "finetune.steps: Input should be greater than 0 (got 0)"),
            ({"settings": {"finetune.steps": []}}, "settings.finetune.steps: an empty list"),
            ({"settings": {"finetune.learning_rate": [1e-2, 0.01]}}, "smoke.learning_rate-0.01 is there twice"),
            ({"settings": {"finetune.steps": 4}}, "settings.finetune.steps"),
            ({"seeds": [0, 0]}, "seeds: 0 is there twice"),
            ({"variants": ["thawed"]}, "has no variant 'thawed'"),
            ({"profile": "nothing"}, "profile: unknown profile 'nothing'"),
            ({"speed": 1}, "speed: Extra inputs are not permitted"),
            ({"settings": {"variants.learnable.text": ["last:x"]}}, "variants.learnable.text: "),
            (
                {"settings": {"sampling.images": list(range(2, 202)), "sampling.steps": list(range(1, 102))}},
                "20200 combinations of ",
            ),
        ],
    )
    def test_a_wrong_grid_is_told_by_file_and_key(self, tmp_path, content, message):
        with pytest.raises(ValueError, match=r"mine\.yaml") as caught:
            grid.load(self.file(tmp_path, **content))
        assert message in str(caught.value)

    @pytest.mark.parametrize("text", ["[1, 2", "words", "!!python/object/apply:os.getcwd []"])
    def test_what_is_no_yaml_of_a_grid_is_refused(self, tmp_path, text):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"mine\.yaml"):
            grid.load(tmp_path / "mine.yaml")

    @pytest.mark.parametrize("path", sorted((profiles.DATA / "grids").glob("*.yaml")), ids=lambda path: path.stem)
    def test_those_that_ship_can_be_planned(self, tmp_path, path):
        cells = grid.load(path, tmp_path)
        todo = study.jobs(cells, grid.read(path).score, "", tmp_path)
        assert len({job.identity for job in todo}) == len(todo)
        assert [job.seed for job in todo] == sorted(job.seed for job in todo)
        learning = [job for job in todo if job.profile.recipe(job.variant).text_learns]
        each = [cell.profile.recipe(v).text_learns for cell in cells for v in cell.variants for _ in cell.seeds]
        assert len(learning) == sum(each)
        assert {(job.variant, job.seed) for job in todo} == {(v, s) for c in cells for v in c.variants for s in c.seeds}
        if cells[0].profile.data.source == "phantom":  # others are planned where their files are
            assert len(batch.plan(cells[:1], out=tmp_path)) >= len(batch.CHAPTERS)
        assert not list(tmp_path.iterdir())

    def test_a_recipe_is_a_setting_like_any_other(self, tmp_path):
        settings = {"variants.learnable.text": ["learnable", "last:2"]}
        plain, other = grid.load(self.file(tmp_path, variants=["learnable"], settings=settings), tmp_path)
        assert (plain.profile, plain.path) == (SMOKE, "")
        assert other.profile.name == "smoke.learnable.text-last-2"
        assert other.profile.variants == {"learnable": SMOKE.recipe("learnable").model_copy(update={"text": "last:2"})}
        nodes = batch.plan([plain, other], out=tmp_path)
        tuned = [n for n in nodes if n.notebook.stem == "02_finetuning"]
        assert len(tuned) == 2
        assert tuned[1].twin is None

    @pytest.mark.parametrize("key", ["long_prompts", "text_encoder"])
    def test_cells_that_train_other_models_share_no_training(self, tmp_path, key, monkeypatch):
        values = {"long_prompts": ["cut", "chunked"], "text_encoder": [None, str(tmp_path)]}[key]
        cells = grid.load(self.file(tmp_path, variants=["frozen"], settings={key: values}), tmp_path)
        nodes = batch.plan(cells, out=tmp_path)
        assert {node.notebook.stem for node in nodes if node.keeps} == {"02_finetuning", "03_attention", "06_fidelity"}
        assert not [node.name for node in nodes if node.twin]

    def test_cells_whose_teachers_differ_share_no_student(self, tmp_path):
        taught = {"attention": "distilled", "attention_weight": 0.1, "attention_from": "learnable"}
        own = SMOKE.model_dump(mode="json", exclude={"name"}) | {
            "variants": {"learnable": {"text": "learnable"}, "student": taught}
        }
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
        rates = {"variants.learnable.text_learning_rate": [1e-4, 1e-5]}
        file = self.file(
            tmp_path, profile=str(tmp_path / "own.yaml"), variants=["learnable", "student"], settings=rates
        )
        nodes = batch.plan(grid.load(file, tmp_path), out=tmp_path)
        assert not [node.name for node in nodes if node.twin and node.parameters.get("variant") == "student"]

    def test_a_long_name_is_cut_to_what_a_profile_may_have(self, tmp_path):
        settings = {f"finetune.{key}": [value] for key, value in dict(
            learning_rate=0.00123, text_learning_rate=0.00123, weight_decay=0.0123, ema_decay=0.9123, warmup=7,
            max_grad_norm=0.123, min_snr=4.25,
        ).items()}  # fmt: skip
        settings["sampling.guidance"] = [2.5, 3.5]
        cells = grid.load(self.file(tmp_path, settings=settings), tmp_path)
        for cell in cells:
            cell.write()
            assert profiles.load(cell.path).name == cell.profile.name
        assert len({cell.profile.name for cell in cells}) == 2

    def test_one_graph_whose_common_work_is_done_once(self, notebooks):
        out = notebooks.parent / "runs"
        cells = grid.load(self.file(notebooks.parent, variants=["frozen"], settings=SETTINGS), out)
        long = """from chestxai import profiles
settings = profiles.load(profile)
run = profiles.run(settings, variant, seed, out).folder
run.mkdir(parents=True, exist_ok=True)
if not (run / 'big').is_dir():
    (run / 'big').mkdir()
    (run / 'big' / 'work.txt').write_text('done')
    with open(Path(out) / 'log.txt', 'a') as log:
        log.write(settings.name + '\\n')
(run / 'a.txt').write_text(settings.name)
""".replace("settings =", "from pathlib import Path\nsettings =", 1)
        write(notebooks, "a", long)
        scores = "variant,seed,step,fid\\nfrozen,0,4,9\\nfrozen,0,8,"
        write(notebooks, "c", f"""from chestxai import profiles
settings = profiles.load(profile)
table = profiles.profile_folder(settings, out) / 'tradeoff.csv'
table.write_text('{scores}' + str(settings.sampling.images) + '\\n')
""")  # fmt: skip
        chapters = (
            Chapter("a", makes=("a.txt",), each_run=True, work=("finetune",), keeps=("big",)),
            Chapter("c", needs=("a",), makes=("tradeoff.csv",)),
        )
        more = {"chapters": chapters, "notebooks": notebooks}
        for cell in cells:
            cell.write()
        nodes = batch.plan(cells, out=out, **more)
        outcomes = batch.run(nodes, workers=2, quiet=True)
        assert set(states(outcomes).values()) == {"finished"}, batch.summary(outcomes)
        assert (out / "log.txt").read_text() == "smoke\n"
        names = ["smoke", "smoke.images-8"]
        assert [(out / n / "frozen/seed-0/a.txt").read_text() for n in names] == names
        assert (out / "smoke.images-8/frozen/seed-0/big/work.txt").read_text() == "done"
        shown = grid.table(cells, [n.root for n in nodes], out / "mine.csv", out)
        assert [line.split() for line in shown.splitlines()] == [
            ["sampling.images", "finetune.text_learning_rate", "variant", "seed", "step", "fid"],
            ["16", "0.00005", "frozen", "0", "8", "16"],
            ["8", "0.00005", "frozen", "0", "8", "8"],
        ]
        assert len((out / "mine.csv").read_text().splitlines()) == 1 + 4
        assert grid.table(cells, [nodes[0].root], out / "mine.csv", out).endswith(
            "Without smoke.images-8: not finished."
        )
        # A plan of the profile alone, as the book makes it, finds all of it finished.
        alone = batch.plan([batch.Cell(profiles.load(cells[1].path), ["frozen"], [0], cells[1].path)], out=out, **more)
        assert all(node.finished() for node in alone)


class TestPlaces:
    def test_a_relative_path_means_the_same_to_plan_and_kernel(self, notebooks, tmp_path, monkeypatch):
        """As a base that lies in the project, and the runs of a package that was installed."""
        write(notebooks, "d", "from pathlib import Path\nPath('here.txt').write_text('here')")
        monkeypatch.chdir(tmp_path)
        (node,) = planned(notebooks, chapters=CHAPTERS[3:])
        assert batch.execute(node).ok
        assert (tmp_path / "here.txt").is_file()

    @pytest.mark.parametrize(("mine", "kept"), [("", "old"), ("a-b-c", "old"), ("x-b-c", "twin"), ("a-b-old", "twin")])
    def test_a_run_that_is_there_stays_and_another_makes_way_for_the_twin(self, notebooks, mine, kept):
        first, second = planned(notebooks, chapters=CHAPTERS[:1])
        for node, text in ((first, "twin"), (second, "old")):
            node.folder.mkdir(parents=True)
            (node.folder / "train.csv").write_text(text)
        if mine:
            (first.folder / "identity.txt").write_text("a-b-c\n")
            (second.folder / "identity.txt").write_text(mine + "\n")
        assert batch.execute(first).ok
        with pytest.warns(UserWarning, match="is kept in") if mine == "a-b-old" else nullcontext():
            assert batch.execute(dataclasses.replace(second, keeps=("train.csv",), twin=first)).ok
        assert (second.folder / "train.csv").read_text() == kept
        # Code that has changed deletes nothing.
        aside = [path / "train.csv" for path in second.folder.parent.glob(f"{second.folder.name}.before-*")]
        assert [path.read_text() for path in aside] == ["old"] * (mine == "a-b-old")


class TestReplay:
    def test_a_distilled_run_finds_its_teacher(self, tmp_path):
        profile = profiles.load("recipes")
        about = profiles.about(profile, "distilled") | {"finished": True, "seed": 0, "model": "m"}
        run = tmp_path / "recipes/distilled/seed-0"
        run.mkdir(parents=True)
        write(run, "02_finetuning", "raise RuntimeError(profile)")
        (run / "train.csv").write_text("step,loss,grad_norm,lr,seconds\n1,0.5,1,0.1,3\n")
        with pytest.raises(InputError, match="the replay failed"):
            replay.replay(runs.write_json(run / "run.json", about), tmp_path / "again")
        again = profiles.load(str(tmp_path / "again/profile.yaml")).recipe("distilled")
        assert again.attention_from == str(tmp_path / "recipes/frozen/seed-0")
        assert again.files(tmp_path / "again/recipes/distilled/seed-0")["attention_from"].parent == Path(
            again.attention_from
        )

    def record(self, folder: Path, **more) -> Path:
        about = profiles.about(SMOKE, "frozen") | {"finished": True, "seed": 0, "model": "m"}
        write(folder, "02_finetuning", "pass")
        (folder / "train.csv").write_text("step,loss,grad_norm,lr,seconds\n1,0.5,1,0.1,3\n2,0.25,1,0.1,4\n")
        return runs.write_json(folder / "run.json", about | {"data": {"fingerprint": "f"}} | more)

    def test_what_cannot_be_repeated_is_told(self, tmp_path):
        record = self.record(tmp_path / "run", finished=False)
        with pytest.raises(ValueError, match="finished: Input should be True"):
            replay.replay(record)
        record = runs.write_json(record, {"finished": True, "variant": "frozen"})
        with pytest.raises(ValueError, match=r"profile: .*data_root: .*seed: .*model: "):
            replay.replay(record)
        record = self.record(tmp_path / "run")
        with pytest.raises(ValueError, match="a folder that is new or empty"):
            replay.replay(record, tmp_path)
        for wrong, message in (
            ({"seed": "one"}, "seed: Input should be a valid integer"),
            ({"profile": []}, "profile: Input should be"),
        ):
            with pytest.raises(InputError, match=message):
                replay.replay(self.record(tmp_path / "run", **wrong))
        record.write_text("[]")
        with pytest.raises(InputError, match="expected a JSON object"):
            replay.replay(record)
        (tmp_path / "run" / "train.csv").unlink()
        with pytest.raises(FileNotFoundError, match=r"train\.csv is missing"):
            replay.replay(record)

    def test_it_says_whose_code_it_executes_and_where_to_look_when_that_fails(self, tmp_path, capsys):
        record = self.record(tmp_path / "run")
        write(tmp_path / "run", "02_finetuning", "raise RuntimeError('no light')")
        with pytest.raises(InputError, match="the replay failed: RuntimeError: no light; see ") as caught:
            replay.replay(record, tmp_path / "again")
        assert Path(str(caught.value).partition("; see ")[2]).is_file()
        assert f"executing  the code of {tmp_path}/run/02_finetuning.ipynb" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("loss", "model", "told"),
        [
            ("0.25", "m", "equal at every step"),
            ("0.26", "m", "differs from step 2 on: loss 0.25 then, 0.26 now"),
            ("0.25", "n", "weights    differ"),
        ],
    )
    def test_losses_and_weights_are_compared_and_time_is_not(self, tmp_path, capsys, loss, model, told):
        self.record(tmp_path / "then")
        self.record(tmp_path / "now", model=model)
        (tmp_path / "now/train.csv").write_text(f"step,loss,grad_norm,lr,seconds\n1,0.5,1,0.1,7\n2,{loss},1,0.1,9\n")
        assert replay.equal(tmp_path / "then", tmp_path / "now") == (loss == "0.25" and model == "m")
        assert told in capsys.readouterr().out


class TestCommand:
    def command(self, *options: str, **more) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "chestxai.batch", *options], capture_output=True, text=True, **more
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--profile", "nothing"], "unknown profile 'nothing': choose one of causes, cxrbert, demo"),
            (["--variants", "thawed"], "has no variant 'thawed'"),
            (["--seeds", "one"], "--seeds takes comma-separated whole numbers"),
            (["--workers", "0"], "--workers must be at least 1"),
            (["--profile", "open"], "DATA="),
            (["--profile", "open", "--data", "no-such-folder"], "no-such-folder"),
        ],
    )
    def test_wrong_options_are_one_line_and_exit_code_2(self, options, message, tmp_path):
        done = self.command(*options, "--out", str(tmp_path))
        assert done.returncode == 2, done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert message in last
        assert not list(tmp_path.iterdir())

    def test_dry_run_prints_the_graph_and_leaves_nothing(self, tmp_path):
        done = self.command("--profile", "smoke", "--dry-run", "--out", str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert "to run     03_attention · frozen · seed 0  after 02_finetuning · frozen · seed 0" in done.stdout
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("variants", ["frozen,learnable", "frozen"])
    def test_a_second_batch_on_the_same_folder_refuses(self, tmp_path, variants):
        (tmp_path / "smoke").mkdir()
        with FileLock(tmp_path / "smoke" / ".lock"):
            done = self.command("--profile", "smoke", "--variants", variants, "--out", str(tmp_path))
        assert done.returncode == 2
        assert "another batch is at work" in done.stderr


# Workers import the script as well: only the batch itself needs this module.
START = """
if __name__ == "__main__":
    import json, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import test_batch
    from chestxai import batch
    notebooks = Path({notebooks!r})
    def start(**options):
        outcomes = batch.run(test_batch.planned(notebooks, **options), workers=2, quiet=True)
        return {{o.node.name: (o.status, o.reason) for o in outcomes}}
"""
LOG = "with open(Path(out) / 'log.txt', 'a') as log:\n    log.write('{}\\n')\n"


def script(folder: Path, notebooks: Path, code: str) -> Path:
    path = folder / "script.py"
    start = START.format(tests=str(Path(__file__).parent), notebooks=str(notebooks))
    path.write_text(start + "".join(f"    {line}\n" for line in code.splitlines()))
    return path


def words(process: psutil.Process) -> str:
    """The command line of a process; "" when it has ended, and nobody has asked yet with what result."""
    try:
        return " ".join(process.cmdline()) if process.status() != psutil.STATUS_ZOMBIE else ""
    except psutil.Error:
        return ""


def test_killed_at_any_moment_nothing_is_lost_repeated_or_left_running(notebooks, tmp_path, kill):
    """SIGKILL of the batch, of a worker, of a kernel, in turn; what is found at the end is known by hand."""
    whom, chance = ("batch", "worker", "kernel")[kill % 3], random.Random(kill)
    for name in "abcd":
        each = f"{name} {{variant}}" if name in "ab" else name
        slow = "import time\ntime.sleep(0.3)\n"
        log = "from pathlib import Path\n" + LOG.format(each).replace("write('", "write(f'")
        write(notebooks, name, log + slow + SOURCES[name])
    out = notebooks.parent / "runs"
    out.mkdir()
    path = script(tmp_path, notebooks, "start()")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, path], env=environment, start_new_session=True)
    moment, delay, deadline = chance.randint(1, 5), chance.uniform(0, 0.5), time.monotonic() + 60

    def log() -> Counter[str]:
        return Counter((out / "log.txt").read_text().splitlines() if (out / "log.txt").exists() else [])

    while log().total() < moment and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(delay)
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    signs = {"worker": "spawn_main", "kernel": "ipykernel_launcher"}
    ended = {n.name for n in planned(notebooks) if n.finished()}
    before = log()
    chosen = [p for p in family if whom in signs and signs[whom] in words(p)]
    if whom == "batch":
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 5
        while any(map(words, family)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not [words(p) for p in family if words(p)], "what the batch has started goes on without it"
        after = log()
    elif chosen:
        chance.choice(chosen).kill()
    process.wait(timeout=60)
    for stray in [*out.rglob(".*.part"), *out.rglob(".*.part/**/*")]:
        os.utime(stray, (0, 0))  # a young one may be of a living writer
    outcomes = batch.run(planned(notebooks), workers=2, quiet=True)
    assert set(states(outcomes).values()) <= {"finished", "skipped"}
    assert ended <= {name for name, state in states(outcomes).items() if state == "skipped"}
    if whom == "batch":
        assert before.total() <= after.total() <= 6
    for name in ended:
        letter, _, rest = name.partition(" · ")
        line = f"{letter} {rest.split(' · ')[0]}" if rest else letter
        assert log()[line] == 1, f"{name} was finished and ran again"
    for variant in ("frozen", "learnable"):
        assert (out / f"smoke/{variant}/seed-0/b.txt").read_text() == f"{variant} 0".upper()
    shown = nbformat.read(out / "smoke/c.ipynb", as_version=4).cells[-1].outputs[0].text
    assert shown == "['FROZEN 0', 'LEARNABLE 0']\n"
    strays = [p for pattern in ("*.part.ipynb", ".*.part", ".*.status") for p in out.rglob(pattern)]
    assert not strays
    assert (out / "smoke/.lock").exists()  # the killed batch's, and no obstacle


@pytest.mark.parametrize(("starting", "number"), [(True, 2), (False, 2), (False, 15)])
def test_a_signal_is_one_line(notebooks, tmp_path, starting, number):
    """Ctrl-C goes to all processes, while workers start and while notebooks run; SIGTERM to the batch alone."""
    (notebooks.parent / "runs").mkdir()
    write(notebooks, "d", "from pathlib import Path\n(Path(out) / 'here').touch()\nimport time\ntime.sleep(60)")
    call = "from chestxai import runs\nruns.command(lambda: start(chapters=(test_batch.Chapter('d'),)))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, script(tmp_path, notebooks, call)], env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # What a shell starts in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 300

    def ready() -> bool:
        family = psutil.Process(process.pid).children(recursive=True)
        return any("spawn_main" in words(p) for p in family) if starting else (notebooks.parent / "runs/here").exists()

    while not ready() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.terminate()
    output, _ = process.communicate(timeout=120)
    assert output == "stopped; finished work is kept, run the same command to resume\n"
    assert process.returncode == 128 + number


def handler_levels() -> list[int]:
    return [handler.level for handler in logging.getLogger("distributed").handlers]


def test_workers_that_ctrl_c_cuts_off_do_not_tell():
    """Where the scheduler is stopped first, a worker would log the heartbeat that failed, if the machine is busy."""
    with importlib.import_module("chestxai.batch.execute")._local(1, 1) as place:
        levels = place.client.run(handler_levels)
    assert levels
    assert all(each == [logging.CRITICAL] for each in levels.values())


def namespace(command: str) -> list[str]:
    """A shell command with mounts of its own: root has them, and so has any user where the system lets them."""
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command]


mounts = pytest.mark.skipif(
    not shutil.which("unshare")
    or subprocess.run(namespace("mount -t tmpfs none /mnt"), capture_output=True).returncode != 0,
    reason="this system lets nobody mount",
)


@mounts
def test_a_full_disk_fails_what_needs_it_and_keeps_the_rest(notebooks, tmp_path):
    big = "from chestxai import runs\nruns.write_atomic(folder / 'a.txt', b'x' * 600_000)"
    write(notebooks, "a", RUN + big)
    (notebooks.parent / "runs").mkdir()
    chapters = "chapters=(test_batch.Chapter('d'), test_batch.Chapter('a', makes=('a.txt',), each_run=True))"
    code = f"""ballast = notebooks.parent / 'runs' / 'ballast'
ballast.write_bytes(b'x' * 700_000)
first = start(variants=('frozen',), {chapters})
ballast.unlink()
print(json.dumps([first, start(variants=('frozen',), {chapters})]))"""
    path = script(tmp_path, notebooks, code)
    mount = f"mount -t tmpfs -o size=1m none {notebooks.parent / 'runs'} && exec {sys.executable} {path}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(namespace(mount), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    status, reason = first["a · frozen · seed 0"]
    assert status == "failed"
    assert "No space left on device" in reason
    assert "free some disk space" in reason
    assert first["d"][0] == "finished"
    assert {name: status for name, (status, _) in second.items()} == {"a · frozen · seed 0": "finished", "d": "skipped"}


@mounts
def test_read_only_input_is_no_obstacle_and_read_only_output_is_told(notebooks, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    code = "print(json.dumps(start(chapters=(test_batch.Chapter('d'),))))"
    path = script(tmp_path, notebooks, code)
    binds = " && ".join(f"mount --bind {p} {p} && mount -o remount,bind,ro {p}" for p in (ROOT, notebooks, closed))
    command = f"{sys.executable} -m chestxai.batch --profile smoke --out {closed}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        namespace(f"{binds} && {sys.executable} {path}; {command}"), capture_output=True, text=True, env=environment
    )
    assert json.loads(done.stdout.splitlines()[0])["d"][0] == "finished", done.stderr
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2
    assert last.startswith(f"error: cannot write in {closed / 'smoke'}: Read-only file system. Remedy:"), done.stderr


CLOCK = """
import time
real = time.time
time.time = lambda: real() + (3600 if int(2 * time.monotonic()) % 2 else -3600)
"""


def test_the_clock_on_the_wall_decides_nothing(notebooks, tmp_path):
    """In every process it jumps by two hours, twice a second, and files come from the past and the future."""
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    chapters = "chapters=(test_batch.Chapter('d'), test_batch.Chapter('c', needs=('d',)))"
    code = f"""import os, time
assert abs(time.time() - os.stat(__file__).st_mtime) > 1800, 'the clock is as it was'
first = start({chapters})
for path, when in zip(sorted(notebooks.parent.rglob('*.*')), (0, 4e9) * 1000):
    os.utime(path, (when, when))
print(json.dumps([first, start({chapters})]))"""
    path = script(tmp_path, notebooks, code)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'clock'}:{ROOT}"}
    began = time.monotonic()
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, env=environment, timeout=90)
    spent = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert {status for status, _ in first.values()} == {"finished"}
    assert {status for status, _ in second.values()} == {"skipped"}
    for record in notebooks.parent.glob("runs/smoke/*.json"):
        assert 0 <= runs.read_json(record)["seconds"] < spent
