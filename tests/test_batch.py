"""The batch: a graph of small real notebooks, run by papermill on dask, skipped, rerun, failed and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from filelock import FileLock

from chestxai import batch, profiles, runs
from chestxai.batch import Chapter

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
SOURCES = {
    "a": RUN + "(folder / 'a.txt').write_text(f'{variant} {seed}')",
    "b": RUN + "(folder / 'b.txt').write_text((folder / 'a.txt').read_text().upper())",
    "c": "from pathlib import Path\nprint(sorted(p.read_text() for p in Path(out).rglob('b.txt')))",
    "d": "from chestxai import studies\nprint(len(studies.FINDINGS))",
}


def write(folder: Path, name: str, code: str) -> Path:
    each = "variant = ''\nseed = 0" if name in "ab" else "variants = []\nseeds = []"
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
    return batch.plan(profile, variants, seeds, out=notebooks.parent / "runs", chapters=chapters, notebooks=notebooks)


def states(outcomes) -> dict[str, str]:
    return {o.node.name: o.status for o in outcomes}


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

    def test_a_module_counts_if_it_is_imported_even_indirectly(self, notebooks):
        def modules(code: str) -> set[str]:
            return {p.stem for p in batch._modules(code)}

        assert modules("from chestxai import studies") == {"studies", "__init__"}
        assert {"grounding", "attention", "models", "runs", "studies"} <= modules("import chestxai.grounding")
        assert "plots" not in modules("from chestxai.finetune import finetune")
        assert {"phantom", "openi", "nih"} <= modules("from chestxai import sources")

    def test_errors_say_what_is_wrong(self, notebooks):
        with pytest.raises(ValueError, match="unknown variant 'thawed'"):
            planned(notebooks, variants=("thawed",))
        with pytest.raises(ValueError, match=r"e\.ipynb is missing"):
            planned(notebooks, chapters=(Chapter("e"),))
        with pytest.raises(ValueError, match="needs a, which is not among the chapters before"):
            planned(notebooks, chapters=(Chapter("b", needs=("a",)),))

    def test_the_book_itself_can_be_planned(self):
        nodes = batch.plan(SMOKE, SMOKE.variants, SMOKE.seeds)
        assert [n.notebook.stem for n in nodes] == sorted(n.notebook.stem for n in nodes)
        assert len(nodes) == 10


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
until = time.monotonic() + 60
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
        write(notebooks, "a", SOURCES["a"])
        assert "failed" not in states(batch.run(planned(notebooks), workers=2, quiet=True)).values()
        assert not failed.node.failed.exists()

    def test_a_notebook_that_makes_nothing_has_failed(self, notebooks):
        write(notebooks, "a", "pass")
        outcome = batch.execute(planned(notebooks)[0])
        assert (outcome.status, outcome.reason) == ("failed", "the notebook ended without making a.txt")

    def test_a_kernel_that_dies_is_a_failure_like_any_other(self, notebooks):
        write(notebooks, "d", "import os\nos._exit(1)")
        outcome = batch.execute(planned(notebooks)[-1])
        assert outcome.status == "failed"
        assert "DeadKernel" in outcome.reason

    def test_a_running_scheduler_is_used(self, notebooks):
        from distributed import LocalCluster

        with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
            outcomes = batch.run(
                planned(notebooks, variants=("frozen",)), scheduler=cluster.scheduler_address, quiet=True
            )
        assert set(states(outcomes).values()) == {"finished"}


class TestCommand:
    def command(self, *options: str, **more) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "chestxai.batch", *options], capture_output=True, text=True, **more
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--profile", "nothing"], "unknown profile 'nothing': choose one of demo"),
            (["--variants", "thawed"], "unknown variant 'thawed'"),
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

    def test_a_second_batch_on_the_same_folder_refuses(self, tmp_path):
        (tmp_path / "smoke").mkdir()
        with FileLock(tmp_path / "smoke" / ".lock"):
            done = self.command("--profile", "smoke", "--out", str(tmp_path))
        assert done.returncode == 2
        assert "another batch is at work" in done.stderr


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_batch
from chestxai import batch
if __name__ == "__main__":
    batch.run(test_batch.planned(Path({notebooks!r})), workers=2, quiet=True)
"""


def test_a_killed_batch_goes_on_where_it_was(notebooks, tmp_path):
    slow = SOURCES["b"] + "\nimport time\ntime.sleep(60 if not (folder / 'again').exists() else 0)"
    write(notebooks, "b", slow)
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(tests=str(Path(__file__).parent), notebooks=str(notebooks)))
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    root = notebooks.parent / "runs/smoke"
    deadline = time.monotonic() + 60
    while not (root / "frozen/seed-0/b.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    made = (root / "frozen/seed-0/a.ipynb").stat().st_mtime_ns
    assert not (root / "frozen/seed-0/b.json").exists()
    for variant in ("frozen", "learnable"):
        (root / variant / "seed-0/again").touch()
    second = states(batch.run(planned(notebooks), workers=2, quiet=True))
    assert second["a · frozen · seed 0"] == "skipped"
    assert second["b · frozen · seed 0"] == "finished"
    assert (root / "frozen/seed-0/a.ipynb").stat().st_mtime_ns == made
    assert runs.read_json(root / "frozen/seed-0/b.json")["name"] == "b · frozen · seed 0"
