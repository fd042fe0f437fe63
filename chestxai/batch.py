"""Running the book: papermill over the graph of notebooks, for a grid of variants and seeds, on dask.distributed.

A node is one execution of one notebook. It is named by everything it depends on (notebook, parameters, the package
modules it imports, the nodes before it), so that what is finished and unchanged is skipped, what has changed is run
again with all that follows from it, and a failure stops only what needs its result. Every executed notebook is kept;
the book (`chestxai.book`) publishes those very executions.
"""

from __future__ import annotations

import argparse
import ast
import functools
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from chestxai import profiles, runs
from chestxai.profiles import ROOT, Profile

NOTEBOOKS = ROOT / "notebooks"
PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Chapter:
    """A notebook's place in the graph.

    Attributes:
        name: of the notebook, without ending.
        needs: the chapters whose results it reads.
        makes: files it leaves, in its run's folder (or the profile's); if one is gone, the node is run again.
        each_run: executed once for each variant and seed, rather than once.
        weight: share of the whole, about its seconds in the demo: only the time left is estimated by it.
    """

    name: str
    needs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    each_run: bool = False
    weight: float = 20.0


#: The book's notebooks in the order in which they can run.
CHAPTERS = (
    Chapter("01_reports_and_images", weight=40),
    Chapter("02_finetuning", makes=("run.json", "train.csv"), each_run=True, weight=260),
    Chapter("03_attention", needs=("02_finetuning",), makes=("grounding.csv",), each_run=True, weight=90),
    Chapter("04_localization", needs=("03_attention",), weight=25),
    Chapter("05_fidelity", needs=("02_finetuning",), makes=("fidelity.json",), each_run=True, weight=150),
    Chapter("06_tradeoff", needs=("03_attention", "05_fidelity"), makes=("tradeoff.csv",)),
    Chapter("07_knowledge", needs=("03_attention", "05_fidelity"), makes=("knowledge.csv",), weight=60),
)


@dataclass(frozen=True)
class Node:
    """One execution of one notebook; ``identity`` names everything its result depends on."""

    name: str
    notebook: Path
    folder: Path
    parameters: dict[str, Any] = field(hash=False)
    needs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    weight: float = 20.0
    identity: str = ""

    @property
    def executed(self) -> Path:
        """Where the executed notebook is kept."""
        return self.folder / self.notebook.name

    @property
    def record(self) -> Path:
        """The JSON file that says the node is finished; written last."""
        return self.executed.with_suffix(".json")

    @property
    def failed(self) -> Path:
        """Where a failed execution is kept, with its traceback."""
        return self.executed.with_suffix(".failed.ipynb")

    def finished(self) -> bool:
        """Whether this very node has been run and its results are still there."""
        files = [self.executed, *(self.folder / name for name in self.makes)]
        if not self.record.is_file() or not all(path.is_file() for path in files):
            return False
        return runs.read_json(self.record).get("identity") == self.identity


@dataclass(frozen=True)
class Outcome:
    """What became of a node: "finished", "skipped" (nothing changed), "failed", or "blocked" (needs a failed one)."""

    node: Node
    status: str
    seconds: float = 0.0
    reason: str = ""


def plan(
    profile: Profile,
    variants: Sequence[str],
    seeds: Sequence[int],
    *,
    profile_path: str = "",
    data: str = "",
    out: Path | None = None,
    chapters: Sequence[Chapter] = CHAPTERS,
    notebooks: Path = NOTEBOOKS,
) -> list[Node]:
    """The graph of a profile, in an order in which it can run.

    Args:
        profile: the settings.
        variants: treatments of the text encoder.
        seeds: of the fine-tunings.
        profile_path: what the notebooks are told to load; default: the profile's name.
        data: folder that holds one sub-folder per source.
        out: root of the runs; default: ``runs/``.
        chapters: the notebooks and what they need.
        notebooks: folder of the notebooks.

    Raises:
        ValueError: unknown variant; a notebook that is not there; a need that is not among the chapters before.
    """
    for variant in variants:
        profiles.check_variant(variant)
    common = {"profile": profile_path or profile.name, "data": data, "out": str(out or "")}
    grid = [(variant, seed) for seed in seeds for variant in variants]
    nodes: dict[str, Node] = {}
    names_of: dict[str, list[str]] = {}
    for chapter in chapters:
        notebook = notebooks / f"{chapter.name}.ipynb"
        if not notebook.is_file():
            raise ValueError(f"{notebook} is missing: make it with 'make notebooks' (jupytext --sync)")
        source = _source(notebook)
        names_of[chapter.name] = []
        for variant, seed in grid if chapter.each_run else [(None, None)]:
            if chapter.each_run:
                name = f"{chapter.name} · {variant} · seed {seed}"
                folder = profiles.run_folder(profile, variant, seed, out)
                parameters = {**common, "variant": variant, "seed": seed}
            else:
                name, folder = chapter.name, profiles.profile_folder(profile, out)
                parameters = {**common, "variants": list(variants), "seeds": list(seeds)}
            needs: list[str] = []
            for need in chapter.needs:
                if need not in names_of:
                    raise ValueError(f"chapter {chapter.name} needs {need}, which is not among the chapters before it")
                same = f"{need} · {variant} · seed {seed}"
                needs += [same] if chapter.each_run and same in names_of[need] else names_of[need]
            identity = runs.fingerprint(source, parameters, profile.model_dump(), [nodes[n].identity for n in needs])
            nodes[name] = Node(
                name, notebook, folder, parameters, tuple(needs), chapter.makes, chapter.weight, identity
            )
            names_of[chapter.name].append(name)
    return list(nodes.values())


def _source(notebook: Path) -> str:
    """Fingerprint of a notebook's cells and of every package module it imports, directly or not."""
    import nbformat

    cells = [(c.cell_type, c.source) for c in nbformat.read(notebook, as_version=4).cells]
    # Lines that are not Python (magics) import nothing of ours.
    code = "\n".join(
        line for kind, text in cells if kind == "code" for line in text.splitlines() if not line.startswith(("%", "!"))
    )
    waiting, seen = _imports(code), set()
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting |= _module_imports(path)
    return runs.fingerprint(cells, sorted((p.relative_to(PACKAGE).as_posix(), runs.sha256(p)) for p in seen))


@functools.cache
def _module_imports(path: Path) -> frozenset[Path]:
    return frozenset(_imports(path.read_text(encoding="utf-8")))


def _imports(code: str) -> set[Path]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found: set[Path] = set()
    for name in names:
        first, *rest = name.split(".")
        if first == PACKAGE.name:
            path = PACKAGE.joinpath(*rest)
            found |= {p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()}
            # Data sets are loaded by name.
            if rest == ["sources"]:
                found |= set(path.glob("*.py"))
    return found


def execute(node: Node, *needs: Outcome, threads: int | None = None) -> Outcome:
    """Run one node, its kernel in a process of its own; what a notebook does wrong is an outcome, not an exception."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    broken = [o.node.name for o in needs if o.status in ("failed", "blocked")]
    if broken:
        return Outcome(node, "blocked", reason=f"needs {', '.join(broken)}")
    if node.finished():
        return Outcome(node, "skipped")
    # Kernels inherit these: as many workers as share a machine must not each take all of its cores.
    if threads:
        os.environ |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    # glibc gives large blocks back to the system as soon as they are free, and a training step would then fault all of
    # its memory in anew: 28,000 page faults, against 2,000 with these limits.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
    os.environ |= {"CHESTXAI_BATCH": "1", "CHESTXAI_STATUS": str(_status(node)), "TOKENIZERS_PARALLELISM": "false"}
    node.folder.mkdir(parents=True, exist_ok=True)
    node.record.unlink(missing_ok=True)
    part = node.executed.with_suffix(".part.ipynb")
    started = time.perf_counter()
    try:
        papermill.execute_notebook(
            node.notebook,
            part,
            parameters=node.parameters,
            kernel_name="python3",
            cwd=node.notebook.parent,
            progress_bar=False,
            # A notebook is saved when it is done: the results it makes on its way are files of their own.
            request_save_on_cell_execute=False,
            extra_arguments=["--IPKernelApp.log_level=50"],
        )
    except PapermillExecutionError as error:
        part.replace(node.failed)
        return Outcome(node, "failed", time.perf_counter() - started, f"{error.ename}: {error.evalue}".strip())
    except Exception as error:  # a dead kernel, a full disk: told in the table like any failure
        if part.is_file():
            part.replace(node.failed)
        return Outcome(node, "failed", time.perf_counter() - started, f"{type(error).__name__}: {error}")
    finally:
        _status(node).unlink(missing_ok=True)
    lost = [name for name in node.makes if not (node.folder / name).is_file()]
    seconds = time.perf_counter() - started
    if lost:
        part.replace(node.failed)
        return Outcome(node, "failed", seconds, f"the notebook ended without making {', '.join(lost)}")
    part.replace(node.executed)
    node.failed.unlink(missing_ok=True)
    runs.write_json(node.record, {"identity": node.identity, "name": node.name, "seconds": round(seconds, 1)})
    return Outcome(node, "finished", seconds)


def run(
    nodes: Sequence[Node], *, workers: int | None = None, scheduler: str | None = None, quiet: bool = False
) -> list[Outcome]:
    """Run a planned graph; nodes that do not need each other run at the same time.

    Args:
        nodes: of `plan`.
        workers: processes on this machine; default: a worker for each GPU, else one for two cores, at least two where
            there are two cores. Each gets an equal share of the cores.
        scheduler: address of a running dask scheduler (``tcp://…``) to use instead; its workers must see the same
            files under the same paths.
        quiet: print nothing.

    Returns:
        outcomes in the order of ``nodes``.
    """
    from distributed import Client, LocalCluster, as_completed

    def say(text: str) -> None:
        if not quiet:
            bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    outcomes: dict[str, Outcome] = {}
    bar = _Bar(nodes, disable=quiet)
    waiting = []
    for node in nodes:
        if all(outcomes.get(n) and outcomes[n].status == "skipped" for n in node.needs) and node.finished():
            outcomes[node.name] = Outcome(node, "skipped")
            say(f"  unchanged  {node.name}")
        else:
            waiting.append(node)
    bar.advance(outcomes.values())
    if not waiting:
        bar.close()
        return [outcomes[n.name] for n in nodes]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = workers or _workers(cores)
    threads = None if scheduler else max(1, cores // count)
    cluster = None
    if scheduler is None:
        cluster = LocalCluster(
            n_workers=min(count, len(waiting)), threads_per_worker=1, dashboard_address=None, memory_limit=0,
            silence_logs="ERROR",
        )  # fmt: skip
    try:
        with Client(scheduler or cluster, timeout="30s") as client:
            # The longest way to the end first: its nodes must not wait behind short ones.
            rank = _remaining(nodes)
            waiting.sort(key=lambda node: -rank[node.name])
            slots = len(waiting) if scheduler else count
            running: dict[str, Node] = {}
            pending = as_completed()
            while len(outcomes) < len(nodes):
                for node in [n for n in waiting if all(need in outcomes for need in n.needs)]:
                    # Here, a node is handed over when a worker is free: dask would tie it to the one that made what it
                    # needs, busy or not. A running cluster gets all that can run, for it may grow by what waits.
                    if len(running) < slots:
                        future = client.submit(
                            execute, node, *(outcomes[n] for n in node.needs), threads=threads,
                            key=f"{node.name}-{node.identity}", pure=False, priority=rank[node.name], retries=2,
                        )  # fmt: skip
                        running[future.key] = node
                        waiting.remove(node)
                        pending.add(future)
                # Blocking here would freeze the line that says what is running.
                if pending.has_ready():
                    future = next(pending)
                    outcome = _outcome(future, running.pop(future.key))
                    outcomes[outcome.node.name] = outcome
                    bar.advance([outcome])
                    say(_line(outcome))
                else:
                    bar.show(list(running.values()))
                    time.sleep(0.2)
    except OSError as error:
        raise OSError(f"cannot reach the dask scheduler {scheduler}: {error}") from error
    finally:
        bar.close()
        if cluster is not None:
            cluster.close()
    return [outcomes[n.name] for n in nodes]


def _outcome(future: Any, node: Node) -> Outcome:
    try:
        return future.result()
    except Exception as error:  # the worker itself was lost
        return Outcome(node, "failed", reason=f"{type(error).__name__}: {error}")


def _workers(cores: int) -> int:
    import torch

    return torch.cuda.device_count() or max(1, min(2, cores), cores // 2)


def _remaining(nodes: Sequence[Node]) -> dict[str, float]:
    """Weight of the heaviest path from each node to an end."""
    rank: dict[str, float] = {}
    after: dict[str, float] = {}
    for node in reversed(nodes):
        rank[node.name] = node.weight + after.get(node.name, 0.0)
        for need in node.needs:
            after[need] = max(after.get(need, 0.0), rank[node.name])
    return rank


def _status(node: Node) -> Path:
    return node.folder / f".{node.notebook.stem}.status"


class _Bar:
    """One line for the whole batch: share of the work done, time left, and what is running."""

    def __init__(self, nodes: Sequence[Node], disable: bool) -> None:
        self.nodes, self.done, self.started = nodes, set(), time.monotonic()
        self.total, self.skipped = sum(n.weight for n in nodes), 0.0
        layout = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}{postfix}"
        self.bar = runs.progress(total=round(self.total), description="book", bar_format=layout, disable=disable)
        self.write = self.bar.write

    def advance(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self.done.add(outcome.node.name)
            if outcome.status == "skipped":
                self.skipped += outcome.node.weight
        self.show([])

    def show(self, unfinished: Sequence[Node]) -> None:
        running, share = [], 0.0
        for node in unfinished:
            try:
                fraction, text = _status(node).read_text().split("\n", 1)
            except (OSError, ValueError):
                continue
            share += node.weight * min(float(fraction), 1.0)
            running.append(f"{node.name}: {text}")
        value = sum(n.weight for n in self.nodes if n.name in self.done) + share
        self.bar.n = min(round(value), round(self.total))
        self.bar.set_description_str(f"{len(self.done)}/{len(self.nodes)} notebooks", refresh=False)
        worked, elapsed = value - self.skipped, time.monotonic() - self.started
        if worked > 0 and elapsed > 5 and len(self.done) < len(self.nodes):
            minutes, seconds = divmod(round(elapsed * (self.total - value) / worked), 60)
            running.insert(0, f"about {minutes}:{seconds:02d} left")
        self.bar.set_postfix_str(" · ".join(running), refresh=False)
        if not self.bar.disable and time.monotonic() - getattr(self, "shown", 0) > self.bar.mininterval:
            self.shown = time.monotonic()
            self.bar.refresh()

    def close(self) -> None:
        self.bar.close()


def _line(outcome: Outcome) -> str:
    if outcome.status == "failed":
        return f"  FAILED     {outcome.node.name}: {outcome.reason}\n             see {_short(outcome.node.failed)}"
    if outcome.status == "blocked":
        return f"  not run    {outcome.node.name}: {outcome.reason}"
    return f"  {outcome.status:10s} {outcome.node.name} ({outcome.seconds:.0f} s)"


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def summary(outcomes: Sequence[Outcome]) -> str:
    """A line for each state with its count, and one for each failure with its reason and file."""
    counts = {s: sum(o.status == s for o in outcomes) for s in ("finished", "skipped", "failed", "blocked")}
    words = {"finished": "run", "skipped": "unchanged and skipped", "failed": "failed", "blocked": "not run"}
    text = ", ".join(f"{n} {words[s]}" for s, n in counts.items() if n)
    return f"{len(outcomes)} notebooks: {text}."


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which batch: profile, variants, seeds, data and root of the runs."""
    parser.add_argument("--profile", default="demo", help="a name in data/profiles or a .yaml file (default: demo)")
    parser.add_argument("--variants", help="comma-separated text-encoder treatments (default: the profile's)")
    parser.add_argument("--seeds", help="comma-separated seeds (default: the profile's)")
    parser.add_argument("--data", default="", help="folder that holds one sub-folder per source (openi/, nih/)")
    parser.add_argument("--out", type=Path, help="root of the runs (default: runs/)")


def planned(given: argparse.Namespace) -> tuple[Profile, list[Node]]:
    """Profile and graph of the options of `add_options`.

    Raises:
        ValueError: an unknown profile or variant, a seed that is not a number.
    """
    profile = profiles.load(given.profile)
    variants = given.variants.split(",") if given.variants else list(profile.variants)
    try:
        seeds = [int(s) for s in given.seeds.split(",")] if given.seeds else list(profile.seeds)
    except ValueError as error:
        raise ValueError(f"--seeds takes comma-separated whole numbers, as in 0,1,2: got {given.seeds!r}") from error
    data = str(Path(given.data).resolve()) if given.data else ""
    path = str(Path(given.profile).resolve()) if given.profile.endswith((".yaml", ".yml")) else ""
    out = given.out.resolve() if given.out else None
    return profile, plan(profile, variants, seeds, profile_path=path, data=data, out=out)


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m chestxai.batch``."""
    parser = argparse.ArgumentParser(
        prog="python -m chestxai.batch",
        description="Run the notebooks of the book with papermill; what is finished and unchanged is skipped.",
    )
    add_options(parser)
    parser.add_argument("--workers", type=int, help="processes on this machine")
    parser.add_argument("--scheduler", help="address of a running dask scheduler, tcp://…")
    parser.add_argument("--dry-run", action="store_true", help="print the graph and what would run, and stop")
    given = parser.parse_args(arguments)
    if given.workers is not None and given.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {given.workers}")
    profile, nodes = planned(given)
    if given.dry_run:
        for node in nodes:
            after = f"  after {', '.join(node.needs)}" if node.needs else ""
            print(f"{'unchanged' if node.finished() else 'to run':10s} {node.name}{after}")
        return 0
    # A missing folder or an unreadable table is told now, not after an hour.
    profiles.check_data(profile, given.data)
    folder = profiles.profile_folder(profile, given.out)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            print(f"Profile {profile.name}: {profile.description}.")
            outcomes = run(nodes, workers=given.workers, scheduler=given.scheduler)
    except Timeout as error:
        raise ValueError(
            f"another batch is at work in {_short(folder)}: wait for it, or choose another --out"
        ) from error
    print(summary(outcomes))
    for outcome in outcomes:
        if outcome.status == "failed":
            print(_line(outcome).strip(), file=sys.stderr)
    return 0 if all(o.status in ("finished", "skipped") for o in outcomes) else 1


if __name__ == "__main__":
    runs.command(main)
