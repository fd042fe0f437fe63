"""The overhead of a batch over papermill, for 40 trivial notebooks on two workers, and the planning of 10,000 nodes.

    python tests/benchmarks/bench_batch.py

The reference is papermill alone, one notebook after another in one process; two workers can at best halve its time.
Targets: 85 % of that speed-up and at most 1.5 s more than papermill for each notebook; 10 s and 500 MB for the plan.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat

NOTEBOOKS, WORKERS = 40, 2
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}

SEQUENTIAL = """
import sys
from pathlib import Path
import papermill
for path in sorted(Path(sys.argv[1]).glob("*.ipynb")):
    papermill.execute_notebook(
        path, Path(sys.argv[2]) / path.name, kernel_name="python3", cwd=path.parent, progress_bar=False,
        parameters={"profile": "smoke"}, request_save_on_cell_execute=False,
    )
"""
BATCH = """
import sys
from pathlib import Path
from chestxai import batch, profiles
if __name__ == "__main__":
    chapters = [batch.Chapter(path.stem) for path in sorted(Path(sys.argv[1]).glob("*.ipynb"))]
    profile = profiles.load("smoke")
    cells = [batch.Cell(profile, ["frozen"], [0])]
    nodes = batch.plan(cells, out=Path(sys.argv[2]), chapters=chapters, notebooks=Path(sys.argv[1]))
    outcomes = batch.run(nodes, workers=int(sys.argv[3]), quiet=True)
    assert {o.status for o in outcomes} <= {"finished", "skipped"}, batch.summary(outcomes)
"""
PLAN = """
import resource, time
from chestxai import batch, profiles
started = time.perf_counter()
nodes = batch.plan([batch.Cell(profiles.load("demo"), ["frozen", "learnable"], range(1667))])
print(len(nodes), time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


def timed(folder: Path, code: str, *arguments: object) -> float:
    """Seconds of ``code`` in a process of its own, its imports included."""
    script = folder / "script.py"
    script.write_text(code)
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, script, *map(str, arguments)], check=True, stderr=subprocess.DEVNULL, env=ENVIRONMENT
    )
    return time.perf_counter() - started


def main() -> int:
    """Print the figures; 1 if a target is missed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "notebooks").mkdir()
        for i in range(NOTEBOOKS):
            cells = [
                nbformat.v4.new_code_cell("profile = ''", metadata={"tags": ["parameters"]}),
                nbformat.v4.new_code_cell("print(profile)"),
            ]
            notebook = nbformat.v4.new_notebook(cells=cells)
            notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
            nbformat.write(notebook, folder / "notebooks" / f"n{i:02d}.ipynb")
        (folder / "alone").mkdir()
        alone = timed(folder, SEQUENTIAL, folder / "notebooks", folder / "alone")
        ours = timed(folder, BATCH, folder / "notebooks", folder / "runs", WORKERS)
        again = timed(folder, BATCH, folder / "notebooks", folder / "runs", WORKERS)
        planned = subprocess.run(
            [sys.executable, "-c", PLAN], check=True, capture_output=True, text=True, env=ENVIRONMENT
        ).stdout.split()
    share, more = alone / WORKERS / ours, (ours * WORKERS - alone) / NOTEBOOKS
    print(f"papermill alone, {NOTEBOOKS} notebooks:   {alone:6.1f} s")
    print(f"batch, {WORKERS} workers:                 {ours:6.1f} s")
    print(f"batch again, nothing to run:      {again:6.1f} s")
    print(f"share of the ideal speed-up:      {share:6.0%}  (at least 85 %)")
    print(f"overhead per notebook:            {more:6.2f} s (at most 1.5 s)")
    count, seconds, gigabytes = int(planned[0]), float(planned[1]), float(planned[2])
    print(f"planning {count} nodes:             {seconds:6.1f} s (at most 10 s)")
    print(f"its peak memory:                  {gigabytes * 1000:6.0f} MB (at most 500 MB)")
    met = share >= 0.85 and more <= 1.5 and seconds <= 10 and gigabytes <= 0.5
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
