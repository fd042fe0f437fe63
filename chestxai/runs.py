"""What every run leaves behind and how: atomic files, fingerprints, the record of a run, progress, clear errors.

A file is either there in full or not at all: everything is written beside its destination and renamed into place.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm.std import tqdm

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

_PACKAGES = ("chestxai", "torch", "diffusers", "transformers", "accelerate", "torchmetrics", "scikit-learn", "numpy")
_CHECKSUM = "sha256"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file near ``path`` to write to; it replaces ``path`` on success and vanishes on failure.

    Folders on the way are made. The file gets the permissions of any other the user makes.

    Raises:
        OSError: naming ``path`` and what to do when the disk is full or not writable.
    """
    path = Path(path)
    # In a folder of its own: safetensors writes beside the file it is given, and what a kill leaves of that must be
    # known for ours.
    private = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    part = private / path.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        private.mkdir()
        part.touch(exist_ok=False)
        mode = part.stat().st_mode
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        # safetensors puts a private file of its own in the place of the one it is given.
        part.chmod(mode)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {path}: {error}{_remedy(error)}") from error
    finally:
        # Where the folder itself is the problem, there is nothing to tidy either.
        shutil.rmtree(private, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, or nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def tidy(folder: Path, name: str = "*") -> None:
    """Remove what killed writers have left in ``folder`` of files called ``name`` (a pattern; ``**/*``: in all below).

    Only for the one who knows that nobody is writing there.
    """
    where, _, last = name.rpartition("/")
    for stray in list(Path(folder).glob(f"{where or '.'}/.{last}.*.part")):
        remove(stray)


def _remedy(error: OSError | SafetensorError) -> str:
    # safetensors tells the operating system's error in words only: "… (os error 28)".
    def is_any(*numbers: int) -> bool:
        return getattr(error, "errno", None) in numbers or any(f"(os error {n})" in str(error) for n in numbers)

    if is_any(errno.ENOSPC, errno.EDQUOT):
        return ". Remedy: free some disk space and run again; finished work is kept"
    if is_any(errno.EACCES, errno.EPERM, errno.EROFS):
        return ". Remedy: check the folder's permissions, or choose another folder"
    return ""


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write text (UTF-8) or bytes to ``path`` in one step."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as part:
        part.write_bytes(data)
    return Path(path)


def write_json(path: Path, value: Any) -> Path:
    """Write ``value`` as indented JSON in one step.

    Raises:
        ValueError: naming the file when ``value`` holds NaN or infinity, on which no two readers agree.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be written as JSON ({error}); say None where there is no number") from error
    return write_atomic(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: naming the file and the place when it is not valid JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write named tensors as safetensors in one step, with a checksum of their content in the file's metadata."""
    # Only here and below: torch takes a second to import, which a batch's workers have no need of.
    from safetensors.torch import save_file

    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with replacing(path) as part:
        save_file(tensors, part, {**(metadata or {}), _CHECKSUM: _checksum(tensors)})
    return Path(path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; the format itself would not notice a tensor's changed bytes, the checksum does.

    Raises:
        ValueError: naming the file when it is damaged.
    """
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            expected = (file.metadata() or {}).get(_CHECKSUM)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({error}); delete it and run again") from error
    if expected not in (None, _checksum(tensors)):
        raise ValueError(f"{path}: damaged (its content is not what was written); delete it and run again")
    return tensors


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def tensor_metadata(path: Path) -> dict[str, str]:
    """The metadata given to `save_tensors`, {} when there are none; the tensors are not read.

    Raises:
        ValueError: naming the file when it is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return {k: v for k, v in (file.metadata() or {}).items() if k != _CHECKSUM}
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({error}); delete it and run again") from error


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*values: Any) -> str:
    """A short stable name (16 hex digits) for values: equal values, equal name, in every process and on every machine.

    Values are what JSON knows, and paths, sets and numpy scalars. The order of a dictionary's keys is no difference,
    nor is that between a list, a tuple and an iterator, whose items are read some at a time and never kept.

    Raises:
        TypeError: any other value, whose text may hold an address in memory or leave out the middle of an array.
    """
    encode = json.JSONEncoder(sort_keys=True, default=_jsonable, separators=(",", ":")).encode
    digest = hashlib.sha256()
    for i, value in enumerate(values):
        digest.update(b"," if i else b"[")
        if not isinstance(value, Iterator):
            digest.update(encode(value).encode())
            continue
        # Some at a time, without the brackets of their list: to set up the encoder costs as much as an item.
        start = b"["
        while some := list(islice(value, 100)):
            digest.update(start + encode(some)[1:-1].encode())
            start = b","
        digest.update(b"]" if start == b"," else b"[]")
    digest.update(b"]" if values else b"[]")
    return digest.hexdigest()[:16]


def _jsonable(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a fingerprint is made of plain values, not of {type(value).__name__}: give its content instead")


def peak_memory() -> float:
    """Peak resident memory of this process in GB (10⁹ bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def record() -> dict[str, Any]:
    """Versions, device and commit: what a run must say of the place it ran in.

    The commit is None outside of a git checkout, and where git is not installed.
    """
    import torch

    try:
        commit = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"], capture_output=True, text=True
        ).stdout.strip()
    except OSError:
        commit = ""
    cuda = torch.cuda.is_available()
    return {
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "commit": commit or None,
        "peak_memory_gb": round(peak_memory(), 3),
    }


class _Progress(tqdm):
    """A tqdm that also tells a batch how far it is: the outermost bar writes to the file ``CHESTXAI_STATUS`` names."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        # tqdm looks at the clock on the wall, which may be set while it runs.
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
    """A progress bar with time left: a plain line on a terminal or in a log, the same in a notebook's output.

    In a file or a pipe it is refreshed every ten seconds only, so that logs stay readable. In a batch it also says in
    the file that ``CHESTXAI_STATUS`` names how far it is.
    """
    interval = 0.2 if sys.stderr.isatty() else 2.0 if "CHESTXAI_STATUS" in os.environ else 10.0
    options = {"mininterval": interval, "dynamic_ncols": True, **options}
    return _Progress(iterable, desc=description, total=total, **options)


def processes() -> PartialState:
    """For a command that shares its work: meet the other processes that ``accelerate launch`` has started, if any.

    They may wait a day for each other; one that fails takes the others with it.
    """
    import torch
    from accelerate import PartialState

    cpu = os.environ.get("ACCELERATE_USE_CPU") == "true" or not torch.cuda.is_available()
    return PartialState(cpu=cpu, timeout=timedelta(days=1))


def command(main: Callable[[], int | None]) -> None:
    """Run a command line's ``main`` and exit with its code, None being 0.

    An error a person can act on (ValueError, OSError, an optional library that is missing) is one line on stderr and
    exit code 2; Ctrl-C is exit code 130. Anything else is a bug and keeps its traceback.
    """
    try:
        sys.exit(main() or 0)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        # Ours say how to install the library; Python's own, which names a module, is of a broken installation.
        if isinstance(error, ModuleNotFoundError) and error.name:
            raise
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; finished work is kept, run the same command to go on", file=sys.stderr)
        sys.exit(130)
