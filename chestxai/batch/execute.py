"""Executing notebooks: papermill for one node, dask.distributed for a graph of them, one progress line for all."""

from __future__ import annotations

import math
import os
import queue
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from chestxai import runs
from chestxai.batch.graph import Node
from chestxai.runs import InputError

# glibc returns large freed blocks to the system at once, and a training step then faults all of its memory in again:
# 28,000 page faults, against 2,000 with these limits. Read when a process starts.
MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
# The kernel runs this first: it may outlive a killed batch by a second, and two must never write the same files.
_HOLD = "from filelock import FileLock; get_ipython().held = FileLock({path!r}).acquire()"


@dataclass(frozen=True)
class Outcome:
    """What became of a node."""

    node: Node
    status: str  #: "finished", "skipped" (nothing has changed), "failed", or "blocked" (a node it needs has failed)
    seconds: float = 0.0  #: duration
    reason: str = ""  #: why it failed or was blocked

    @property
    def ok(self) -> bool:
        """Whether the node's results are there."""
        return self.status in ("finished", "skipped")

    @property
    def notebook(self) -> Path | None:
        """The executed notebook (of a failed node the one with the traceback), or None where there is none."""
        path = self.node.failed if self.status == "failed" else self.node.executed
        return path if path.is_file() else None

    def __str__(self) -> str:
        """One line for the terminal."""
        word = {"skipped": "unchanged", "failed": "FAILED", "blocked": "not run"}.get(self.status, self.status)
        line = f"{word:10s} {self.node.name}" + (f" ({self.seconds:.0f} s)" if self.status == "finished" else "")
        line += f": {self.reason}" if self.reason else ""
        return line + (f"  → {_short(self.notebook)}" if self.notebook else "")


def execute(node: Node, threads: int | None = None, gpu: str | None = None) -> Outcome:
    """Run one ``node`` unless it is finished, its kernel in a process of its own; an error is an outcome.

    The kernel's numerical libraries have so many ``threads``, default: one for each core. ``gpu`` is what CUDA calls
    the GPU that the kernel may use, "" for none; default: all that this process may use.
    """
    import papermill.exceptions
    from ipykernel.kernelspec import write_kernel_spec

    started, partial = time.perf_counter(), node.beside(".part.ipynb")
    # What the kernel inherits.
    os.environ |= {"CHESTXAI_STATUS": str(node.status), "TOKENIZERS_PARALLELISM": "false"}
    os.environ |= MEMORY | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
    if threads:  # workers that share a machine must not each take all of its cores
        os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    try:
        node.folder.mkdir(parents=True, exist_ok=True)
        lock = node.folder / f".{node.notebook.stem}.lock"
        with FileLock(lock):
            if node.finished():
                return Outcome(node, "skipped")
            node.record.unlink(missing_ok=True)
            node.failed.unlink(missing_ok=True)
            if node.twin is not None and node.twin.finished():
                _take_over(node, node.twin)
        # A notebook is saved when it is done: the results it computes on its way are files of their own.
        options = {"kernel_name": "python3", "progress_bar": False, "request_save_on_cell_execute": False}
        first = ["--IPKernelApp.log_level=50", f"--IPKernelApp.exec_lines={_HOLD.format(path=str(lock))}"]
        options |= {"parameters": node.parameters, "cwd": Path.cwd(), "extra_arguments": first}
        # The kernel is that of this interpreter, whatever is registered as "python3".
        with tempfile.TemporaryDirectory(prefix="chestxai-kernel-") as kernels:
            write_kernel_spec(Path(kernels, "kernels", "python3"))
            os.environ["JUPYTER_PATH"] = kernels
            for left in (2, 1, 0):
                try:
                    papermill.execute_notebook(node.notebook, partial, **options)
                    break
                except RuntimeError as error:  # another process may take a port that jupyter has just found free
                    if not left or "before replying" not in str(error):
                        raise
        missing = [name for name in node.makes if not (node.folder / name).is_file()]
        if missing:
            return _failed(node, f"the notebook ended without making {', '.join(missing)}", started)
        partial.replace(node.executed)
        seconds = time.perf_counter() - started
        runs.write_json(node.record, {"identity": node.identity, "name": node.name, "seconds": round(seconds, 1)})
        return Outcome(node, "finished", seconds)
    except papermill.exceptions.PapermillExecutionError as error:
        return _failed(node, runs.explain(error.ename, error.evalue), started)
    except Exception as error:  # a dead kernel, a full disk: a row of the table like any failure
        if isinstance(error, OSError):
            partial.unlink(missing_ok=True)  # it may be truncated
        return _failed(node, runs.explain(type(error).__name__, str(error)), started)
    finally:
        node.status.unlink(missing_ok=True)


def _failed(node: Node, reason: str, started: float) -> Outcome:
    with suppress(OSError):  # there may be no notebook, or no way to write
        node.beside(".part.ipynb").replace(node.failed)
    return Outcome(node, "failed", time.perf_counter() - started, reason)


def _take_over(node: Node, twin: Node) -> None:
    """Put the twin's files into the node's folder, where those of another run make way and those of this one stay.

    They may share files, for these are replaced and never changed.
    """
    from chestxai.finetune import checkpoints

    if (identity := checkpoints.identity_of(twin.folder)) not in ("", checkpoints.identity_of(node.folder)):
        checkpoints.tidy_run(node.folder, identity)
    for name in () if any((node.folder / name).exists() for name in node.keeps) else node.keeps:
        source, target = twin.folder / name, node.folder / name
        if source.is_dir():
            shutil.copytree(source, target, copy_function=_link)
        elif source.is_file():
            _link(source, target)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system has hard links
        shutil.copy2(source, target)


def run(
    nodes: Sequence[Node], *, workers: int | None = None, scheduler: str | None = None, quiet: bool = False
) -> list[Outcome]:
    """Run a planned graph; nodes that do not need each other run at the same time.

    ``batch.csv`` in each profile's folder gets a row for each of its nodes: notebook, status, seconds, reason, and the
    path of the executed notebook relative to that folder.

    Args:
        nodes: see `plan`; each comes after those it needs.
        workers: number of processes on this machine; default: one for each GPU, else one for two cores, at least two
            where there are two cores. They share the cores equally.
        scheduler: address of a running dask scheduler (``tcp://…``) to use instead; its workers must see the same
            paths. If any declares the resource ``GPU``, notebooks that run a model go to those only, one to each.
        quiet: print nothing.

    Returns:
        Outcomes in the order of ``nodes``.

    Raises:
        InputError: a node needs one that is not before it in ``nodes``; another batch is running in the same folder.
        OSError: a folder that cannot be written; the scheduler does not answer.
    """
    import pandas as pd  # here, as workers have no need of it

    before = _before(nodes)
    with exclusive({node.root for node in nodes}), closing(_Progress(nodes, quiet)) as progress:
        waiting = []
        for node in nodes:
            if all(need in progress.outcomes for need in node.needs) and node.finished():
                progress.end(Outcome(node, "skipped"))
            else:
                waiting.append(node)
        if waiting:
            # The longest way to the end first: its nodes must not wait behind short ones.
            rank = _remaining(nodes)
            waiting.sort(key=lambda node: -rank[node.name])
            with _remote(scheduler, waiting, progress) if scheduler else _local(workers, len(waiting)) as place:
                _run(waiting, before, place, progress)
        outcomes = [progress.outcomes[node.name] for node in nodes]
        for root in dict.fromkeys(node.root for node in nodes):
            rows = [
                {"notebook": o.node.name, "status": o.status, "seconds": round(o.seconds, 1), "reason": o.reason,
                 "executed": os.path.relpath(o.notebook, root) if o.notebook else ""}
                for o in outcomes if o.node.root == root
            ]  # fmt: skip
            runs.write_atomic(root / "batch.csv", pd.DataFrame(rows).to_csv(index=False))
    return outcomes


def _before(nodes: Sequence[Node]) -> dict[str, set[str]]:
    """Names of the nodes that must have ended before each one starts."""
    before: dict[str, set[str]] = {}
    for node in nodes:
        missing = [need for need in node.needs if need not in before]
        if missing or node.name in before:
            what = f"needs {some(missing)}, which does not come before it" if missing else "is there twice"
            raise InputError(f"{node.name} {what}: run all nodes of a plan, in their order")
        # A node takes over its twin's files once the twin has ended, but does not need it.
        before[node.name] = {*node.needs, *({node.twin.name} & before.keys() if node.twin else ())}
    return before


def _remaining(nodes: Sequence[Node]) -> dict[str, float]:
    """Weight of the heaviest path from each node to an end of the graph."""
    remaining: dict[str, float] = {}
    for node in reversed(nodes):
        remaining[node.name] = node.weight + remaining.get(node.name, 0.0)
        for need in node.needs:
            remaining[need] = max(remaining.get(need, 0.0), remaining[node.name])
    return remaining


@contextmanager
def exclusive(roots: Iterable[Path]) -> Iterator[None]:
    """Keep other batches out of the folders ``roots``, and remove what killed ones have left there."""
    with ExitStack() as stack:
        for root in sorted(roots):
            try:
                root.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(root / ".lock", timeout=0))
            except Timeout as error:
                what = f"another batch is at work in {_short(root)}"
                raise InputError(f"{what}: wait for it, or choose another --out") from error
            except OSError as error:
                raise OSError(
                    f"cannot write in {_short(root)}: {error.strerror or error}. Remedy: check the folder's "
                    "permissions and the space on its disk, or choose another --out"
                ) from error
            runs.tidy(root, "**/*", seconds=600)  # a training may be at work there, and its writing is short
            for stray in [*root.glob("**/*.part.ipynb"), *root.glob("**/.*.status")]:
                runs.remove(stray)
        yield


class _Place(NamedTuple):
    """Where nodes run.

    A node is handed over when a worker is free: dask would bind it early to the worker that ran what it needs, busy or
    not. A running cluster gets all that can run, for it may grow by what waits.
    """

    client: Any  #: of dask
    most: float = math.inf  #: nodes at once
    threads: int | None = None  #: for each node
    gpus: Sequence[str] = ()  #: GPUs to hand out, one to each node that runs a model
    resources: Mapping[str, float] = {}  #: what such a node asks of dask instead


def _run(nodes: Sequence[Node], before: dict[str, set[str]], place: _Place, progress: _Progress) -> None:
    """Run ``nodes``, the most urgent ones first, each once those ``before`` it have ended."""
    waiting, free = list(nodes), list(place.gpus)
    priority = {node.name: -i for i, node in enumerate(nodes)}
    running: dict[str, tuple[Node, str | None]] = {}
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    while waiting or running:
        for node in [node for node in waiting if before[node.name] <= progress.outcomes.keys()]:
            broken = [need for need in node.needs if not progress.outcomes[need].ok]
            if broken:
                progress.end(Outcome(node, "blocked", reason=f"needs {some(broken)}"))
            elif len(running) < place.most and (free or not node.gpu or not place.gpus):
                gpu = None if not place.gpus else free.pop(0) if node.gpu else ""
                future = place.client.submit(
                    execute, node, place.threads, gpu, key=f"{node.folder}-{node.name}-{node.identity}", pure=False,
                    priority=priority[node.name], resources=place.resources if node.gpu else {},
                )  # fmt: skip
                running[future.key] = node, gpu
                future.add_done_callback(done.put)
            else:
                continue
            waiting.remove(node)
        try:
            future = done.get(timeout=0.2 if running else 0)  # a longer wait would freeze the progress line
        except queue.Empty:
            progress.show([node for node, _ in running.values()])
        else:
            node, gpu = running.pop(future.key)
            free += [gpu] if gpu else []
            try:
                progress.end(future.result())
            except Exception as error:  # the worker itself was lost
                progress.end(_failed(node, runs.explain(type(error).__name__, str(error)), time.perf_counter()))


@contextmanager
def _local(workers: int | None, most: int) -> Iterator[_Place]:
    import dask
    from distributed import Client, LocalCluster

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = _gpus()
    count = workers or len(gpus) or max(1, min(2, cores), cores // 2)
    # A nanny notices at once when its worker ends; watching the clock would restart busy workers when it is set. Dask's
    # own observation of itself would take a fifth of a core. Its errors are those of heartbeats that Ctrl-C cuts off.
    dask.config.set(distributed__scheduler__worker_ttl=None, distributed__worker__profile__enabled=False)
    dask.config.set(distributed__admin__tick__interval="1s", distributed__admin__system_monitor__interval="5s")
    options = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": ":0", "silence_logs": "CRITICAL"}
    with ExitStack() as stack:
        with _uninterrupted():
            cluster = stack.enter_context(LocalCluster(min(count, most), **options))
            client = stack.enter_context(Client(cluster))
        yield _Place(client, count, max(1, cores // count), gpus)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back: interrupted while it starts, dask ends in tracebacks. Processes started here never see it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # started later, it would let Ctrl-C through
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _remote(address: str, nodes: Sequence[Node], progress: _Progress) -> Iterator[_Place]:
    from distributed import Client

    try:
        client = Client(address, timeout="30s")
    except (OSError, ValueError) as error:  # ValueError: not an address
        raise OSError(f"cannot reach the dask scheduler {address}: {error}") from error
    with client:
        if not client.scheduler_info()["workers"]:
            progress.say("waiting for a worker to join the scheduler …")
        client.wait_for_workers(1)
        workers = client.scheduler_info()["workers"].values()
        gpus = any(worker.get("resources", {}).get("GPU") for worker in workers)
        if not gpus and any(node.gpu for node in nodes):
            progress.say("no worker declares a GPU: notebooks that run a model run on any")
        yield _Place(client, resources={"GPU": 1} if gpus else {})


def _gpus() -> list[str]:
    """What CUDA calls the GPUs that this process may use."""
    # Drivers of NVIDIA, AMD and WSL; without one, the second that torch takes to import is saved.
    if sys.platform == "linux" and not any(Path("/dev", name).exists() for name in ("nvidiactl", "kfd", "dxg")):
        return []
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return (visible.split(",") if visible else [str(i) for i in range(count)])[:count]


class _Progress:
    """The outcomes so far, and one line for the whole batch: share of the work done, time left, what is running."""

    def __init__(self, nodes: Sequence[Node], quiet: bool) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.count, self.done, self.quiet = len(nodes), 0.0, quiet
        layout = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}"
        total = sum(node.weight for node in nodes)
        # Without smoothing, tqdm takes the mean speed, from which skipped notebooks (``initial``) are left out.
        self.bar = runs.progress(total=total, bar_format=layout, smoothing=0, miniters=0, disable=quiet)
        self.close = self.bar.close

    def end(self, outcome: Outcome) -> None:
        self.outcomes[outcome.node.name] = outcome
        self.done += outcome.node.weight
        if outcome.status == "skipped" and not self.quiet:
            self.bar.initial += outcome.node.weight
        self.say(str(outcome))
        self.show([])

    def say(self, text: str) -> None:
        if not self.quiet:
            self.bar.write(f"  {text}", file=sys.stdout)
            sys.stdout.flush()

    def show(self, running: Sequence[Node]) -> None:
        value, texts = self.done, []
        for node in running:
            with suppress(OSError, ValueError):  # it has not started, or the file is just being written
                share, text = node.status.read_text().split("\n", 1)
                value += node.weight * min(float(share), 1.0)
                texts.append(f"{node.name}: {text}")
        self.bar.set_description_str(f"{len(self.outcomes)}/{self.count} notebooks", refresh=False)
        self.bar.set_postfix_str(" · ".join(texts), refresh=False)
        self.bar.update(min(value, self.bar.total) - self.bar.n)


def summary(outcomes: Sequence[Outcome]) -> str:
    """A line for each node, and how many are in which state."""
    words = {"finished": "run", "skipped": "unchanged and skipped", "failed": "failed", "blocked": "not run"}
    counts = Counter(outcome.status for outcome in outcomes)
    text = ", ".join(f"{counts[status]} {word}" for status, word in words.items() if counts[status])
    return "\n".join([*(f"  {outcome}" for outcome in outcomes), f"{len(outcomes)} notebooks: {text}."])


def some(names: Sequence[str], most: int = 3) -> str:
    """The first ``most`` of ``names``, and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _short(path: Path) -> str:
    """Relative to the current folder where the path lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
