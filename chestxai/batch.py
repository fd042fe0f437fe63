"""Running the book: papermill over the graph of notebooks, for a grid of variants and seeds, on dask.distributed.

A node is one execution of one notebook. It is named by everything it depends on (notebook, parameters, settings, the
package modules it imports, the data and weights it reads, the nodes before it), so that what is finished and unchanged
is skipped, what has changed is run again with all that follows from it, and a failure stops only what needs its result.
Every executed notebook is kept; the book (`chestxai.book`) publishes those very executions.

`chestxai.grid` makes one graph of many settings; `chestxai.replay` repeats a single run from what it left.
"""

from __future__ import annotations

import argparse
import ast
import csv
import functools
import io
import os
import queue
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from chestxai import grid, profiles, runs
from chestxai.profiles import ROOT, Profile

NOTEBOOKS = ROOT / "notebooks"
PACKAGE = Path(__file__).resolve().parent
#: What of a data set a chapter reads: splits of the training source, and of the source whose boxes are grounded.
IMAGES = ("train", "val", "test")
BOXES = ("boxes train", "boxes val", "boxes test")
# Shipped files that no setting names: module that reads them → where they lie.
_SHIPPED = {"fidelity": profiles.DATA / "classifier"}


@dataclass(frozen=True)
class Chapter:
    """A notebook's place in the graph.

    Attributes:
        name: of the notebook, without ending.
        needs: the chapters whose results it reads.
        makes: files it leaves, in its run's folder (or the profile's); if one is gone, the node is run again.
        each_run: executed once for each variant and seed, rather than once.
        gpu: runs a model, so it wants a GPU where there is one.
        reads: of `IMAGES` and `BOXES`.
        work: settings that decide its long work; where they are equal, the folders and files it ``keeps`` are too, and
            a grid does the work once. The last one kept says that all are there.
        weight: share of the whole, about its seconds in the demo: only the time left is estimated by it.
    """

    name: str
    needs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    each_run: bool = False
    gpu: bool = False
    reads: tuple[str, ...] = IMAGES + BOXES
    work: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    weight: float = 20.0


#: The book's notebooks in the order in which they can run.
CHAPTERS = (
    Chapter("01_reports_and_images", weight=40),
    Chapter(
        "02_finetuning",
        makes=("run.json", "train.csv"),
        each_run=True,
        gpu=True,
        reads=("train",),
        work=("base", "data", "finetune"),
        keeps=("checkpoints", "model", "train.csv", "identity.txt", "run.json"),
        weight=260,
    ),
    Chapter(
        "03_attention",
        needs=("02_finetuning",),
        makes=("grounding.csv",),
        each_run=True,
        gpu=True,
        reads=BOXES,
        work=("base", "data", "finetune", "grounding"),
        keeps=("maps",),
        weight=90,
    ),
    Chapter("04_localization", needs=("03_attention",), reads=BOXES, weight=25),
    Chapter(
        "05_fidelity",
        needs=("02_finetuning",),
        makes=("fidelity.json",),
        each_run=True,
        gpu=True,
        reads=IMAGES,
        work=("base", "data", "finetune", "sampling"),
        keeps=("samples",),
        weight=150,
    ),
    Chapter("06_tradeoff", needs=("03_attention", "05_fidelity"), makes=("tradeoff.csv",), reads=()),
    Chapter(
        "07_knowledge",
        needs=("03_attention", "05_fidelity"),
        makes=("knowledge.csv",),
        gpu=True,
        reads=IMAGES,
        weight=60,
    ),
)


@dataclass(frozen=True)
class Node:
    """One execution of one notebook.

    Attributes:
        name: what it is called in tables; no two of a graph are equal.
        notebook: what is executed.
        folder: where the executed notebook and its results go.
        parameters: what papermill injects.
        root: the profile's folder, which one batch at a time has to itself.
        needs: names of the nodes whose results it reads.
        makes: files it leaves in ``folder``.
        gpu: it wants a GPU where there is one.
        twin: a node before it, of other settings, that does the same long work.
        keeps: what it takes over from its twin.
        weight: share of the whole.
        identity: names everything its result depends on.
    """

    name: str
    notebook: Path
    folder: Path
    parameters: dict[str, Any] = field(hash=False)
    root: Path = Path()
    needs: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    gpu: bool = False
    twin: Node | None = None
    keeps: tuple[str, ...] = ()
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
    """What became of a node: "finished", "skipped" (nothing changed), "failed", or "blocked" (needs a failed one).

    ``seconds`` it took, and the ``reason`` why it failed or could not run.
    """

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
    prefix: str = "",
    known: dict[Any, Any] | None = None,
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
        prefix: of the nodes' names, where several profiles are planned into one graph.
        known: what has been read before of notebooks, data and weights, so that it is read once; one for all plans of a
            graph.

    Raises:
        ValueError: unknown variant; a notebook that is not there; a need that is not among the chapters before; data
            that cannot be used, as `profiles.check_data`.
        FileNotFoundError: data that are not there.
    """
    for variant in variants:
        profiles.check_variant(variant)
    known = {} if known is None else known
    common = {"profile": profile_path or profile.name, "data": data, "out": str(out or "")}
    # Variants and seeds are parameters: one more of them changes nothing of those there are.
    settings = profile.model_dump(exclude={"description", "variants", "seeds"})
    read = profiles.check_data(profile, data, known)
    root = profiles.profile_folder(profile, out)
    cells = [(variant, seed) for seed in seeds for variant in variants]
    nodes: dict[str, Node] = {}
    names_of: dict[str, list[str]] = {}
    for chapter in chapters:
        notebook = notebooks / f"{chapter.name}.ipynb"
        if not notebook.is_file():
            raise ValueError(f"{notebook} is missing: make it with 'make notebooks' (jupytext --sync)")
        source, modules = _once(known, notebook, _source)
        files = [_once(known, folder, _content) for name, folder in _SHIPPED.items() if name in modules]
        if "models" in modules:
            files.append(_once(known, f"base {profile.base}", lambda _: _base(profile.base)))
        inputs = {split: read[split] for split in chapter.reads if split in read}
        shared = runs.fingerprint(source, settings, inputs, files)
        names_of[chapter.name] = []
        for variant, seed in cells if chapter.each_run else [(None, None)]:
            if chapter.each_run:
                name = f"{prefix}{chapter.name} · {variant} · seed {seed}"
                folder = profiles.run_folder(profile, variant, seed, out)
                own: dict[str, Any] = {"variant": variant, "seed": seed}
            else:
                name, folder = f"{prefix}{chapter.name}", root
                own = {"variants": list(variants), "seeds": list(seeds)}
            needs: list[str] = []
            for need in chapter.needs:
                if need not in names_of:
                    raise ValueError(f"chapter {chapter.name} needs {need}, which is not among the chapters before it")
                same = f"{prefix}{need} · {variant} · seed {seed}"
                needs += [same] if chapter.each_run and same in nodes else names_of[need]
            twin = None
            if chapter.work:
                work = runs.fingerprint(chapter.name, own, [settings[name] for name in chapter.work])
                twin = known.get(work)
            # Where things lie is no part of what they are.
            identity = runs.fingerprint(shared, own, [nodes[n].identity for n in needs])
            nodes[name] = Node(
                name, notebook, folder, {**common, **own}, root, tuple(needs), chapter.makes, chapter.gpu, twin,
                chapter.keeps, chapter.weight, identity,
            )  # fmt: skip
            if chapter.work:
                known.setdefault(work, nodes[name])
            names_of[chapter.name].append(name)
    return list(nodes.values())


def _once(known: dict[Any, Any], key: Any, make: Any) -> Any:
    if key not in known:
        known[key] = make(key)
    return known[key]


def _content(folder: Path, endings: tuple[str, ...] = ("",)) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name.endswith(endings))
    return runs.fingerprint([(path.relative_to(folder).as_posix(), runs.sha256(path)) for path in files])


def _base(base: str) -> str:
    """Names the base model: by the files that are loaded of a folder, by its name on the hub."""
    folder = profiles.DATA / "tiny" if base == "tiny" else Path(base)
    return _content(folder, (".safetensors", ".json", ".txt")) if folder.is_dir() else base


def _source(notebook: Path) -> tuple[str, set[str]]:
    """Fingerprint of a notebook's cells and of every package module it imports, directly or not; those modules."""
    # As JSON: to import nbformat takes a second.
    cells = [(c["cell_type"], "".join(c["source"])) for c in runs.read_json(notebook)["cells"]]
    # Lines that are not Python (magics) import nothing of ours.
    code = "\n".join(
        line for kind, text in cells if kind == "code" for line in text.splitlines() if not line.startswith(("%", "!"))
    )
    seen = _modules(code)
    content = runs.fingerprint(cells, sorted((p.relative_to(PACKAGE).as_posix(), runs.sha256(p)) for p in seen))
    return content, {path.stem for path in seen}


def _modules(code: str) -> set[Path]:
    waiting, seen = _imports(code), set()
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting |= _module_imports(path)
    return seen


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


# Run by the kernel before all else. Who kills a batch leaves its kernels a second to live (they look for their parent
# once a second), and a lost machine even more: two kernels must never write the same files. It is FileLock's own lock.
_HOLD = "import fcntl; get_ipython().held = open({path!r}, 'a'); fcntl.flock(get_ipython().held, fcntl.LOCK_EX)"


def execute(node: Node, threads: int | None = None) -> Outcome:
    """Run one node, its kernel in a process of its own; what goes wrong is an outcome, not an exception."""
    import papermill.exceptions

    started = time.perf_counter()
    part = node.executed.with_suffix(".part.ipynb")

    def failed(reason: str) -> Outcome:
        with suppress(OSError):
            part.replace(node.failed)
        return Outcome(node, "failed", time.perf_counter() - started, reason)

    # Kernels inherit these: as many workers as share a machine must not each take all of its cores.
    if threads:
        os.environ |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    # glibc gives large blocks back to the system as soon as they are free, and a training step would then fault all of
    # its memory in anew: 28,000 page faults, against 2,000 with these limits.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
    os.environ |= {"CHESTXAI_BATCH": "1", "CHESTXAI_STATUS": str(_status(node)), "TOKENIZERS_PARALLELISM": "false"}
    try:
        node.folder.mkdir(parents=True, exist_ok=True)
        lock = node.folder / f".{node.notebook.stem}.lock"
        with FileLock(lock):
            if node.finished():
                return Outcome(node, "skipped")
            node.record.unlink(missing_ok=True)
            if node.twin is not None and node.twin.finished():
                _take_over(node, node.twin)
        papermill.execute_notebook(
            node.notebook,
            part,
            parameters=node.parameters,
            kernel_name="python3",
            cwd=node.notebook.parent,
            progress_bar=False,
            # A notebook is saved when it is done: the results it makes on its way are files of their own.
            request_save_on_cell_execute=False,
            extra_arguments=["--IPKernelApp.log_level=50", f"--IPKernelApp.exec_lines={_HOLD.format(path=str(lock))}"],
        )
        lost = [name for name in node.makes if not (node.folder / name).is_file()]
        if lost:
            return failed(f"the notebook ended without making {', '.join(lost)}")
        part.replace(node.executed)
        node.failed.unlink(missing_ok=True)
        seconds = time.perf_counter() - started
        runs.write_json(node.record, {"identity": node.identity, "name": node.name, "seconds": round(seconds, 1)})
        return Outcome(node, "finished", seconds)
    except papermill.exceptions.PapermillExecutionError as error:
        return failed(_reason(error.ename, error.evalue))
    except Exception as error:  # a dead kernel, a full disk: told in the table like any failure
        if isinstance(error, OSError):
            part.unlink(missing_ok=True)  # it may be cut off
        return failed(_reason(type(error).__name__, str(error)))
    finally:
        _status(node).unlink(missing_ok=True)


def _reason(name: str, text: str) -> str:
    """An error in one line, with what to do about it where that is not said."""
    told = " ".join(f"{name}: {text}".split())
    if "Remedy" not in told and any(sign in told for sign in ("No space left", "quota exceeded", "os error 28")):
        told += ". Remedy: free some disk space and run again; finished work is kept"
    if name == "DeadKernelError":
        told += ". Remedy: if it ran out of memory, use fewer --workers or smaller batches"
    return told


def _take_over(node: Node, twin: Node) -> None:
    """Put what the twin has made into the node's folder; files are only ever replaced, so the two may share them."""
    for name in reversed(node.keeps):
        runs.remove(node.folder / name)
    for name in node.keeps:
        made, mine = twin.folder / name, node.folder / name
        if made.is_dir():
            shutil.copytree(made, mine, copy_function=_link)
        elif made.is_file():
            _link(made, mine)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system has hard links
        shutil.copy2(source, target)


@contextmanager
def _alone(nodes: Sequence[Node]) -> Iterator[None]:
    """Keep other batches out of the profiles' folders, and tidy what killed ones have left there.

    Raises:
        ValueError: another batch is at work in one of them.
        OSError: a folder that cannot be written.
    """
    with ExitStack() as held:
        for root in sorted({node.root for node in nodes}):
            try:
                root.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(root / ".lock", timeout=0))
            except Timeout as error:
                raise ValueError(
                    f"another batch is at work in {_short(root)}: wait for it, or choose another --out"
                ) from error
            except OSError as error:
                raise OSError(
                    f"cannot write in {_short(root)}: {error.strerror or error}. Remedy: check the folder's "
                    "permissions and the space on its disk, or choose another --out"
                ) from error
            runs.tidy(root, "**/*")
            for pattern in ("**/*.part.ipynb", "**/.*.status"):
                for stray in list(root.glob(pattern)):
                    runs.remove(stray)
        yield


def run(
    nodes: Sequence[Node], *, workers: int | None = None, scheduler: str | None = None, quiet: bool = False
) -> list[Outcome]:
    """Run a planned graph; nodes that do not need each other run at the same time.

    At the end ``batch.csv`` in each profile's folder says what became of its nodes.

    Args:
        nodes: of `plan`.
        workers: processes on this machine; default: a worker for each GPU, else one for two cores, at least two where
            there are two cores. Each gets an equal share of the cores.
        scheduler: address of a running dask scheduler (``tcp://…``) to use instead; its workers must see the same
            files under the same paths. If any of them declares the resource ``GPU``, notebooks that run a model are
            given to those only, one to each ``GPU`` at a time.
        quiet: print nothing.

    Returns:
        outcomes in the order of ``nodes``.

    Raises:
        ValueError: another batch is at work in the same folder.
        OSError: a folder that cannot be written; the scheduler does not answer.
    """
    with _alone(nodes):
        outcomes = _run(nodes, workers, scheduler, quiet)
        for root in dict.fromkeys(node.root for node in nodes):
            table([o for o in outcomes if o.node.root == root], root / "batch.csv")
    return outcomes


def _run(nodes: Sequence[Node], workers: int | None, scheduler: str | None, quiet: bool) -> list[Outcome]:
    from distributed import Client

    def say(text: str) -> None:
        if not quiet:
            bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def ended(outcome: Outcome) -> None:
        outcomes[outcome.node.name] = outcome
        bar.advance([outcome])
        say(_line(outcome))

    outcomes: dict[str, Outcome] = {}
    bar = _Bar(nodes, disable=quiet)
    waiting = []
    for node in nodes:
        if all(outcomes.get(n) and outcomes[n].status == "skipped" for n in node.needs) and node.finished():
            ended(Outcome(node, "skipped"))
        else:
            waiting.append(node)
    if not waiting:
        bar.close()
        return list(outcomes.values())
    threads = places = count = 0
    with ExitStack() as opened:
        opened.callback(bar.close)
        if scheduler is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            gpus = _gpus()
            count = workers or len(gpus) or max(1, min(2, cores), cores // 2)
            threads, places = max(1, cores // count), min(count, len(gpus))
            client = opened.enter_context(Client(opened.enter_context(_cluster(min(count, len(waiting)), gpus))))
        else:
            try:
                client = opened.enter_context(Client(scheduler, timeout="30s"))
            except OSError as error:
                raise OSError(f"cannot reach the dask scheduler {scheduler}: {error}") from error
            if not client.scheduler_info()["workers"]:
                say("  waiting for a worker to join the scheduler …")
            client.wait_for_workers(1)
            found = client.scheduler_info()["workers"].values()
            places = sum(int(worker.get("resources", {}).get("GPU", 0)) for worker in found)
            if not places and any(node.gpu for node in waiting):
                say("  no worker declares a GPU: notebooks that run a model run on any")
        # The longest way to the end first: its nodes must not wait behind short ones.
        rank = _remaining(nodes)
        waiting.sort(key=lambda node: -rank[node.name])
        running: dict[str, Node] = {}
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        while len(outcomes) < len(nodes):
            busy = sum(node.gpu for node in running.values())
            for node in [n for n in waiting if all(before in outcomes for before in _before(n))]:
                broken = [need for need in node.needs if outcomes[need].status in ("failed", "blocked")]
                if broken:
                    waiting.remove(node)
                    ended(Outcome(node, "blocked", reason=f"needs {_some(broken)}"))
                    continue
                wants = {"GPU": 1} if node.gpu and places else {}
                # Here, a node is handed over when a worker is free: dask would tie it to the one that made what it
                # needs, busy or not. A running cluster gets all that can run, for it may grow by what waits.
                if count and (len(running) >= count or (wants and busy >= places)):
                    continue
                future = client.submit(
                    execute, node, threads or None, key=f"{node.name}-{node.identity}", pure=False,
                    priority=rank[node.name], resources=wants,
                )  # fmt: skip
                running[future.key] = node
                busy += node.gpu
                waiting.remove(node)
                future.add_done_callback(done.put)
            if not running:
                continue  # what could run was blocked: see what that lets through
            try:
                # Waiting for longer would freeze the line that says what is running.
                future = done.get(timeout=0.2)
            except queue.Empty:
                bar.show(list(running.values()))
            else:
                ended(_outcome(future, running.pop(future.key)))
    return [outcomes[n.name] for n in nodes]


def _before(node: Node) -> tuple[str, ...]:
    return node.needs if node.twin is None else (*node.needs, node.twin.name)


def _outcome(future: Any, node: Node) -> Outcome:
    try:
        return future.result()
    except Exception as error:  # the worker itself was lost
        return Outcome(node, "failed", reason=_reason(type(error).__name__, str(error)))


def _gpus() -> list[str]:
    """What CUDA calls the GPUs that this process may use."""
    # Drivers of NVIDIA, AMD and WSL; where there is none, the second that torch takes to import is saved.
    if sys.platform == "linux" and not any(Path("/dev", name).exists() for name in ("nvidiactl", "kfd", "dxg")):
        return []
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return (visible.split(",") if visible else [str(i) for i in range(count)])[:count]


def _cluster(count: int, gpus: Sequence[str]) -> Any:
    """A dask cluster of ``count`` workers on this machine, each with a GPU that it alone sees, as far as there are."""
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    # A nanny sees at once when its worker ends. Looking at the clock for it as well would restart busy workers when the
    # clock is set.
    dask.config.set({"distributed.scheduler.worker-ttl": None})
    workers = {}
    for i in range(count):
        options: dict[str, Any] = {"nthreads": 1, "memory_limit": 0, "silence_logs": "ERROR", "dashboard": False}
        if gpus:
            mine = gpus[i : i + 1]
            options["env"] = {"CUDA_VISIBLE_DEVICES": ",".join(mine)}
            options["resources"] = {"GPU": len(mine)} if mine else None
        workers[i] = {"cls": Nanny, "options": options}
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard": False}}
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs="ERROR")


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
    name = outcome.node.name
    if outcome.status == "failed":
        return f"  FAILED     {name}: {outcome.reason}\n             see {_short(outcome.node.failed)}"
    return {
        "skipped": f"  unchanged  {name}",
        "blocked": f"  not run    {name}: {outcome.reason}",
    }.get(outcome.status, f"  {outcome.status:10s} {name} ({outcome.seconds:.0f} s)")


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def table(outcomes: Sequence[Outcome], path: Path | None = None) -> list[dict[str, Any]]:
    """What ran, was skipped, failed or could not run, and why; written to ``path`` as csv if one is given.

    Returns:
        one row per node with notebook, status ("finished", "skipped", "failed" or "blocked"), seconds, reason, and
        executed: the executed notebook (of a failed node the one with the traceback), relative to the folder of
        ``path`` or where that is None to the current one; "" where there is none.
    """
    rows = []
    for o in outcomes:
        shown = o.node.failed if o.status == "failed" else o.node.executed
        where = _short(shown) if path is None else os.path.relpath(shown, path.parent)
        row = {"notebook": o.node.name, "status": o.status, "seconds": round(o.seconds, 1), "reason": o.reason}
        rows.append(row | {"executed": where if shown.is_file() else ""})
    if path is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        runs.write_atomic(path, text.getvalue())
    return rows


def summary(outcomes: Sequence[Outcome]) -> str:
    """`table` to be read, and how many nodes are in which state."""
    words = {"finished": "run", "skipped": "unchanged and skipped", "failed": "failed", "blocked": "not run"}
    counts = {status: sum(o.status == status for o in outcomes) for status in words}
    text = ", ".join(f"{n} {words[status]}" for status, n in counts.items() if n)
    lines = [
        f"  {row['status']:8s} {row['seconds']:7.1f} s  {row['notebook']}"
        + (f": {row['reason']}" if row["reason"] else "")
        + (f"  → {row['executed']}" if row["executed"] else "")
        for row in table(outcomes)
    ]
    return "\n".join([*lines, f"{len(outcomes)} notebooks: {text}."])


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which batch: profile, variants, seeds, data and root of the runs."""
    parser.add_argument("--profile", help="a name in data/profiles or a .yaml file (default: demo)")
    parser.add_argument("--variants", help="comma-separated text-encoder treatments (default: the profile's)")
    parser.add_argument("--seeds", help="comma-separated seeds (default: the profile's)")
    parser.add_argument("--data", default="", help="folder that holds one sub-folder per source (openi/, nih/)")
    parser.add_argument("--out", type=Path, help="root of the runs (default: runs/)")


def planned(given: argparse.Namespace) -> tuple[Profile, list[Node]]:
    """Profile and graph of the options of `add_options`.

    Raises:
        ValueError, FileNotFoundError: an unknown profile or variant, a seed that is not a number; as `plan`.
    """
    name = given.profile or "demo"
    profile = profiles.load(name)
    variants = given.variants.split(",") if given.variants else list(profile.variants)
    try:
        seeds = [int(s) for s in given.seeds.split(",")] if given.seeds else list(profile.seeds)
    except ValueError as error:
        raise ValueError(f"--seeds takes comma-separated whole numbers, as in 0,1,2: got {given.seeds!r}") from error
    path = str(Path(name).resolve()) if name.endswith((".yaml", ".yml")) else ""
    data, out = _places(given)
    return profile, plan(profile, variants, seeds, profile_path=path, data=data, out=out)


def _places(given: argparse.Namespace) -> tuple[str, Path | None]:
    return str(Path(given.data).resolve()) if given.data else "", given.out.resolve() if given.out else None


def plan_grid(cells: Sequence[grid.Cell], *, data: str = "", out: Path | None = None, **options: Any) -> list[Node]:
    """One graph of all cells; what two of them have in common is done once.

    Args:
        cells: of `grid.load`.
        data: as `plan`.
        out: as `plan`.
        options: further ones of `plan`.

    Raises:
        ValueError, FileNotFoundError: as `plan`.
    """
    known: dict[Any, Any] = {}
    nodes: list[Node] = []
    for cell in cells:
        prefix = f"{cell.profile.name} · " if len(cells) > 1 else ""
        nodes += plan(
            cell.profile, cell.variants, cell.seeds, profile_path=cell.path, data=data, out=out, prefix=prefix,
            known=known, **options,
        )  # fmt: skip
    return nodes


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m chestxai.batch``."""
    parser = argparse.ArgumentParser(
        prog="python -m chestxai.batch",
        description="Run the notebooks of the book with papermill; what is finished and unchanged is skipped.",
    )
    add_options(parser)
    parser.add_argument("--grid", type=Path, help="a YAML file of settings to go through, see data/grids")
    parser.add_argument("--replay", type=Path, metavar="RUN_JSON", help="repeat one run and compare it: its run.json")
    parser.add_argument("--workers", type=int, help="processes on this machine")
    parser.add_argument("--scheduler", help="address of a running dask scheduler, tcp://…")
    parser.add_argument("--dry-run", action="store_true", help="print the graph and what would run, and stop")
    given = parser.parse_args(arguments)
    if given.workers is not None and given.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {given.workers}")
    if given.replay:
        from chestxai import replay

        return replay.replay(given.replay, given.out, given.data)
    data, out = _places(given)
    cells: list[grid.Cell] = []
    if given.grid:
        if given.profile or given.variants or given.seeds:
            raise ValueError(
                f"{given.grid} names profile, variants and seeds: leave out --profile, --variants, --seeds"
            )
        cells = grid.load(given.grid, out)
        nodes = plan_grid(cells, data=data, out=out)
        what = f"Grid {given.grid.stem}: {len(cells)} settings."
    else:
        profile, nodes = planned(given)
        what = f"Profile {profile.name}: {profile.description}."
    if given.dry_run:
        for node in nodes:
            after = f"  after {_some(node.needs)}" if node.needs else ""
            print(f"{'unchanged' if node.finished() else 'to run':10s} {node.name}{after}")
        return 0
    print(what)
    for cell in cells:
        cell.write()
    outcomes = run(nodes, workers=given.workers, scheduler=given.scheduler)
    print(summary(outcomes))
    if cells:
        done = {o.node.root for o in outcomes if "tradeoff.csv" in o.node.makes and o.status in ("finished", "skipped")}
        path = Path(out or profiles.RUNS) / f"{given.grid.stem}.csv"
        print(f"\n{grid.table(cells, done, path, out)}\n\nAll scores of all checkpoints: {_short(path)}")
    for outcome in outcomes:
        if outcome.status == "failed":
            print(_line(outcome).strip(), file=sys.stderr)
    return 0 if all(o.status in ("finished", "skipped") for o in outcomes) else 1


if __name__ == "__main__":
    runs.command(main)
