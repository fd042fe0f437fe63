"""What every run leaves behind and how: atomic files, fingerprints, the record of a run, progress, clear errors.

A file is either there in full or not at all: everything is written beside its destination and renamed into place.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

_PACKAGES = ("chestxai", "torch", "diffusers", "transformers", "accelerate", "torchmetrics", "scikit-learn", "numpy")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` to write to; it replaces ``path`` on success and vanishes on failure.

    Raises:
        OSError: naming ``path`` when the disk is full or not writable.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        # mkstemp makes private files; a run folder is shared like any other file the user makes.
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except (OSError, SafetensorError) as error:
        full = "No space left" in str(error)
        remedy = "free some disk space and run again; finished work is kept" if full else "check the folder's permissions"
        raise OSError(f"cannot write {path}: {error}. Remedy: {remedy}") from error
    finally:
        part.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write text (UTF-8) or bytes to ``path`` in one step."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as part:
        part.write_bytes(data)
    return Path(path)


def write_json(path: Path, value: Any) -> Path:
    """Write ``value`` as indented JSON in one step; NaN is refused, for no reader would agree on it."""
    return write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: naming the file and the place when it is not valid JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write named tensors as safetensors in one step."""
    with replacing(path) as part:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part, metadata)
    return Path(path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        ValueError: naming the file when it is damaged.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({error}); delete it and run again") from error


def tensor_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, {} when it has none.

    Raises:
        ValueError: naming the file when it is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({error}); delete it and run again") from error


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*values: Any) -> str:
    """A short stable name (16 hex digits) for JSON-like values: equal values, equal name, on every machine."""
    text = json.dumps(values, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def peak_memory() -> float:
    """Peak resident memory of this process in GB (10⁹ bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def record() -> dict[str, Any]:
    """Versions, device and commit: what a run must say of the place it ran in."""
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    cuda = torch.cuda.is_available()
    return {
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "commit": commit.stdout.strip() or None,
        "peak_memory_gb": round(peak_memory(), 3),
    }


def progress(iterable: Iterable | None = None, description: str = "", total: int | None = None, **options: Any) -> tqdm:
    """A progress bar with time left: a plain line on a terminal or in a log, the same in a notebook's output.

    In a file or a pipe it is refreshed every ten seconds only, so that logs stay readable.
    """
    interval = 0.2 if sys.stderr.isatty() else 10.0
    from tqdm.std import tqdm as plain

    return plain(iterable, desc=description, total=total, mininterval=interval, dynamic_ncols=True, **options)


def command(main: Callable[[], int | None]) -> None:
    """Run a command line's ``main``: an error a person can act on is one line on stderr and exit code 2."""
    try:
        sys.exit(main() or 0)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; finished work is kept, run the same command to go on", file=sys.stderr)
        sys.exit(130)
