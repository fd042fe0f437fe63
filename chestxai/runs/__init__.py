"""What every run leaves behind and how: `Run`, atomic files, identities, resumable jobs, commands."""

from chestxai.runs.code import code_fingerprint, files_fingerprint, reached
from chestxai.runs.commands import command, peak_memory, processes, progress, record
from chestxai.runs.errors import DivergedError, InputError, MissingError
from chestxai.runs.files import (
    fingerprint,
    hash_tensors,
    load_tensors,
    read_json,
    read_yaml,
    remove,
    replacing,
    save_tensors,
    sha256,
    tensor_metadata,
    tidy,
    write_atomic,
    write_json,
)
from chestxai.runs.jobs import is_current, resumable
from chestxai.runs.run import TEXT_COLUMNS, Run

__all__ = [
    "TEXT_COLUMNS",
    "DivergedError",
    "InputError",
    "MissingError",
    "Run",
    "code_fingerprint",
    "command",
    "files_fingerprint",
    "fingerprint",
    "hash_tensors",
    "is_current",
    "load_tensors",
    "peak_memory",
    "processes",
    "progress",
    "reached",
    "read_json",
    "read_yaml",
    "record",
    "remove",
    "replacing",
    "resumable",
    "save_tensors",
    "sha256",
    "tensor_metadata",
    "tidy",
    "write_atomic",
    "write_json",
]
