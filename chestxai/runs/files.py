"""Atomic files, hashes and fingerprints: what every stage uses to leave its results.

A file is either complete or absent: everything is written beside its destination and renamed into place.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from safetensors import SafetensorError, safe_open

from chestxai.runs.errors import InputError, MissingError, remedy

if TYPE_CHECKING:
    import torch

_CHECKSUM = "sha256"
_JSON = {dict: "object", list: "array"}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file near ``path`` to write to; it replaces ``path`` on success and vanishes on failure.

    Folders on the way are made. The file gets the permissions of any other the user makes. An OSError names ``path``
    and what to do when the disk is full or not writable.
    """
    path = Path(path)
    # In a folder of its own: safetensors writes a temporary file beside its target, which `tidy` must recognise.
    private = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    part = private / path.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        private.mkdir()
        part.touch(exist_ok=False)
        mode = part.stat().st_mode
        yield part
        with open(part, "r+b") as written:  # Windows syncs what may be written only
            os.fsync(written.fileno())
        # safetensors replaces its target by a file of other permissions.
        part.chmod(mode)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {path}: {error}{remedy(str(error))}") from error
    finally:
        shutil.rmtree(private, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, or nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def tidy(folder: Path, name: str = "*", seconds: float = 0.0) -> None:
    """Remove the temporary files that killed writers left in ``folder``.

    Call only while holding the folder's lock, or for files that nobody has written to for some ``seconds``. ``name`` is
    a pattern of the files' final names; ``**/*`` includes subfolders.
    """
    where, _, last = name.rpartition("/")
    for stray in list(Path(folder).glob(f"{where or '.'}/.{last}.*.part")):
        with suppress(FileNotFoundError):  # its writer has ended meanwhile
            if not seconds or max(p.stat().st_mtime for p in (stray, *stray.rglob("*"))) < time.time() - seconds:
                remove(stray)


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write ``content`` (text as UTF-8, or bytes) to ``path`` in one step; missing folders are made."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def write_json(path: Path, value: Any) -> Path:
    """Write ``value`` to ``path`` as indented JSON in one step.

    ValueError if ``value`` holds NaN or infinity, which readers of JSON treat differently.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: cannot be written as JSON ({error}); use None where there is no number") from error
    return write_atomic(path, text + "\n")


def read_bytes(path: Path, most: int = 2**30) -> bytes:
    """Content of the file at ``path``, of at most ``most`` bytes; FileNotFoundError if there is none.

    InputError if it is longer, or a folder, a pipe or a device, which may never end.
    """
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise InputError(f"{path}: a folder, a pipe or a device, no file")
    if about.st_size > most:
        raise InputError(f"{path}: has {about.st_size:,} bytes, more than the {most:,} that are read")
    return Path(path).read_bytes()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of json; of equal keys the last would win without a word."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key[:80]!r} occurs twice in an object")
        content[key] = value
    return content


def read_json(path: Path, kind: type | None = None) -> Any:
    """Content of the JSON file at ``path``, whose top level must be of ``kind`` (dict or list; None accepts any).

    InputError, with file and place, if it is not valid JSON or holds another type.
    """
    raw = read_bytes(path)
    try:
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique)
    # Not only JSONDecodeError: also bytes that are not text, and numbers of too many digits.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if kind is not None and not isinstance(value, kind):
        raise InputError(f"{path}: expected a JSON {_JSON[kind]}, found {type(value).__name__}")
    return value


class _StrictLoader(yaml.SafeLoader):
    """YAML without aliases, which can expand to any size, and without repeated keys, of which the last would win."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: aliases are not allowed")
        # The time that PyYAML takes grows with the square of the depth.
        self.depth += 1
        if self.depth > 20:
            raise yaml.YAMLError(f"line {self.peek_event().start_mark.line + 1}: nested more than 20 deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key {key.value!r} occurs twice")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping, without aliases and repeated keys.

    InputError, with file and line, if it is missing, too long, not YAML, or not a mapping.
    """
    if not Path(path).exists():
        raise MissingError(f"{path}: there is no such file")
    raw = read_bytes(path, 100_000)
    try:
        content = _StrictLoader(raw.decode()).get_single_data()
    # ValueError: bytes that are no text, numbers of too many digits, dates that do not exist.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML ({str(error)[:400]})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected settings, found {type(content).__name__}")
    return content


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write named ``tensors`` (any device, any layout) to the safetensors file ``path`` in one step.

    A checksum of their content goes into the file's ``metadata``, beside further text entries.
    """
    # Imported here because torch takes a second to import and the workers of a batch do not need it.
    from safetensors.torch import save_file

    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with replacing(path) as part:
        save_file(tensors, part, {**(metadata or {}), _CHECKSUM: hash_tensors(tensors)})
    return Path(path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({error}); delete it and run again") from error


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file and verify the checksum of `save_tensors`; InputError if damaged or of another kind."""
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        expected = (file.metadata() or {}).get(_CHECKSUM)
    if expected not in (None, hash_tensors(tensors)):
        raise InputError(f"{path}: damaged (its content is not what was written); delete it and run again")
    return tensors


def tensor_metadata(path: Path) -> dict[str, str]:
    """The metadata given to `save_tensors`, without reading the tensors; raises as `load_tensors`."""
    with _opened(path) as file:
        return {k: v for k, v in (file.metadata() or {}).items() if k != _CHECKSUM}


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hex SHA-256 of named tensors: names, dtypes, shapes and bytes; equal on every device and in any order."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*values: Any) -> str:
    """A stable name of 16 hex digits: equal values give equal names in every process and on every machine.

    Accepts what JSON accepts, and paths, sets and numpy scalars. Neither the order of a dictionary's keys nor the
    difference between lists, tuples and iterators matters; iterators are consumed in small batches. Any other value is
    a TypeError: its text might contain a memory address or omit the middle of an array.
    """
    encode = json.JSONEncoder(sort_keys=True, default=_jsonable, separators=(",", ":")).encode
    digest = hashlib.sha256()
    for i, value in enumerate(values):
        digest.update(b"," if i else b"[")
        if not isinstance(value, Iterator):
            digest.update(encode(value).encode())
            continue
        # In batches, without the brackets of their list: starting the encoder costs as much as an item.
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
    raise TypeError(f"a fingerprint is made of plain values, not of {type(value).__name__}: pass its content instead")
