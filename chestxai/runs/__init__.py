"""What every run leaves behind and how: `Run`, atomic files, identities, resumable jobs, commands."""
# ruff: noqa: F401, I001 - this file only re-exports

from chestxai.runs.code import CHECKOUT, ROOT, code_fingerprint, files_fingerprint, reached
from chestxai.runs.commands import command, device, leave_out_rest, peak_memory, processes, progress, record, whole
from chestxai.runs.errors import DivergedError, InputError, MissingError, explain
from chestxai.runs.files import fingerprint, hash_tensors, load_tensors, read_bytes, read_json, read_yaml, remove
from chestxai.runs.files import replacing, save_tensors, sha256, tensor_metadata, tidy, write_atomic, write_json
from chestxai.runs.jobs import is_current, resumable
from chestxai.runs.run import TEXT_COLUMNS, Run
