"""What every command shares: the record of where it ran, progress bars, processes, exit codes."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.std import tqdm

from chestxai.runs.errors import InputError, explain

if TYPE_CHECKING:
    from accelerate import PartialState

# Variables that change what libraries compute.
_NUMBERS = (
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "ATEN_CPU_CAPABILITY",
    "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE",
)  # fmt: skip
_PACKAGES = ("chestxai", "torch", "diffusers", "transformers", "accelerate", "torchmetrics", "scikit-learn", "numpy")


def peak_memory() -> float:
    """Peak resident memory of this process in GB (10⁹ bytes); on Windows too, which has no ``resource``."""
    try:
        import resource
    except ImportError:
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def record() -> dict[str, Any]:
    """Versions, device, threads, commit and peak memory of this process, for ``run.json``.

    The commit is None outside a git checkout, and where git is not installed.
    """
    import torch

    git = ["git", "-C", str(Path(__file__).parent)]
    try:  # results that are being written are no change of the code
        commit, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True).stdout.strip()
            for words in (["describe", "--always"], ["status", "-s", "-uno", "--", ":/", ":!/data/results"])
        )
    except OSError:
        commit, changed = "", ""
    cuda = device() == "cuda"
    return {
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "commit": commit + "-dirty" * bool(changed) or None,
        "environment": {name: os.environ[name] for name in _NUMBERS if name in os.environ},
        "peak_memory_gb": round(peak_memory(), 3),
    }


class _Progress(tqdm):
    """A tqdm whose outermost bar also reports to the batch, in the file named by ``CHESTXAI_STATUS``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # tqdm uses the wall clock, which may be set while the bar runs.
        self._time = time.monotonic
        self.start_t = self.last_print_t = self._time()

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        path = os.environ.get("CHESTXAI_STATUS")
        if path and self.total and not self.pos:
            done = self.format_dict
            rate = done["rate"] or (done["n"] - done["initial"]) / max(done["elapsed"], 1e-9)
            left = (
                f", {self.format_interval((self.total - self.n) / rate)} left" if rate and self.n < self.total else ""
            )
            with suppress(OSError):
                Path(path).write_text(f"{self.n / self.total}\n{self.desc.rstrip(': ')} {self.n}/{self.total}{left}")
        return super().display(msg, pos)


def progress(iterable: Iterable | None = None, description: str = "", total: int | None = None, **options: Any) -> tqdm:
    """A plain-text progress bar with time left, for terminals, logs and notebooks.

    In a file or a pipe it is refreshed every ten seconds only, so that logs stay readable. It counts the items of
    ``iterable``, or what is given to ``update``, up to ``total``, behind a ``description``; ``options`` are those of
    `tqdm.tqdm`.
    """
    interval = 0.2 if sys.stderr.isatty() else 2.0 if "CHESTXAI_STATUS" in os.environ else 10.0
    options = {"mininterval": interval, "dynamic_ncols": True, **options}
    return _Progress(iterable, desc=description, total=total, **options)


def whole(least: int, most: int = 10**6) -> Callable[[str], int]:
    """The ``type`` of an option of argparse: a whole number; ``least`` and ``most`` are included."""

    def parse(text: str) -> int:
        number = int(text) if re.fullmatch(r"[+-]?[0-9]{1,12}", text) else least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number from {least:,} to {most:,}")
        return number

    return parse


def leave_out_rest() -> None:
    """End a notebook here without an error: the cells that follow are read as empty until the kernel is restarted."""
    from IPython import get_ipython

    get_ipython().input_transformers_cleanup.append(lambda _: [])


def processes() -> PartialState:
    """Join the other processes started by ``accelerate launch``, if any.

    Processes wait up to a day for each other; if one fails, all end.
    """
    from accelerate import PartialState

    return PartialState(cpu=device() == "cpu", timeout=timedelta(days=1))


def device() -> str:
    """Where models run: "cuda" where there is one and ``ACCELERATE_USE_CPU`` is not "true", else "cpu".

    Never "mps": Apple's GPUs lack operations that the book needs, and round otherwise.
    """
    import torch

    return "cuda" if torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU") != "true" else "cpu"


def command(main: Callable[[], int | None]) -> None:
    """Run ``main`` and exit with its code (None is 0).

    What the user can mend (`InputError`, an OSError, an optional library that is missing) ends in one line on stderr
    and exit code 2, Ctrl-C in exit code 130, SIGTERM in 143. Anything else is a bug and keeps its traceback.
    """
    with suppress(ValueError, AttributeError):  # not in the main thread, as in tests
        sys.stdout.reconfigure(errors="replace")  # an arrow, where text is written as cp1252
        signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(main() or 0)
    except Exception as error:
        # Our own messages say how to install a library. Python's have a name and mean a broken installation.
        full = type(error).__name__ == "OutOfMemoryError"  # torch's, which is not imported for this
        ours = isinstance(error, (InputError, OSError, ModuleNotFoundError)) and not getattr(error, "name", "")
        if not full and not ours:
            raise
        text = " ".join(str(error).split())
        if full or getattr(error, "errno", None):
            text = explain(type(error).__name__, text).partition(": ")[2]
        print("error:", text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(_STOPPED, file=sys.stderr)
        sys.exit(130)


# Characters of an error that are printed: a message may quote what a user gave.
_LONGEST = 2000
_STOPPED = "stopped; finished work is kept, run the same command to resume"


def _terminated(number: int, _: object) -> None:
    print(_STOPPED, file=sys.stderr)
    sys.exit(128 + number)
