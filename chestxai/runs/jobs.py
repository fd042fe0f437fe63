"""One resumable job over chunks, for one process or many: how maps and images are computed and kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chestxai.runs.commands import progress
from chestxai.runs.errors import InputError
from chestxai.runs.files import load_tensors, save_tensors, tensor_metadata, tidy, write_atomic

if TYPE_CHECKING:
    import torch

    #: Tensors with one row per item on their first axis, and one line for each item that was left out.
    Chunk = tuple[Mapping[str, torch.Tensor], list[str]]


def is_current(path: Path, identity: str) -> bool:
    """Whether the safetensors file ``path`` exists and was made for this ``identity``."""
    return path.is_file() and tensor_metadata(path).get("identity") == identity


def resumable(
    path: Path,
    identity: str,
    count: int,
    compute: Callable[[range], Chunk],
    *,
    chunk: int = 64,
    metadata: Mapping[str, str] | None = None,
    description: str = "",
    bar: Any = None,
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Compute tensors for ``count`` items in chunks and keep them in ``path``.

    A finished file of the same ``identity`` is read, or copied from another run of the profile, as that of the base
    before fine-tuning; otherwise missing chunks are computed, each written in one step to ``<path>.parts/``, so that a
    killed process loses at most one. Under ``accelerate launch`` every process calls this with the same arguments and
    computes its share of the chunks; all return the same. InputError if a stored file is damaged, OSError if ``path``
    cannot be written.

    Args:
        path, metadata: the ``.safetensors`` file of the result, and further text entries of it.
        identity: names everything the result depends on, its code included.
        count, chunk: number of items, and of those that are computed and written together.
        compute: takes a range of item numbers, returns the tensors of their rows and the lines of items left out.
        description: of the progress bar; none is shown without.
        bar: an open progress bar to advance by one for each item, instead of one of its own.

    Returns:
        Tensors with all rows, and the lines. No tensors, and no file, where every item was left out.
    """
    import torch
    from accelerate import PartialState

    path, state = Path(path), PartialState()
    folder = path.with_suffix(".parts")
    if state.is_main_process and not is_current(path, identity):
        _copy_twin(path, identity)
    state.wait_for_everyone()  # all see the copy
    if is_current(path, identity):
        shutil.rmtree(folder, ignore_errors=True)  # left by a kill after the last write
        if bar is not None:
            bar.update(count)
        return load_tensors(path), _lines(path)
    chunks = [range(start, min(start + chunk, count)) for start in range(0, count, chunk)]
    parts = [folder / f"{number:05d}.safetensors" for number in range(len(chunks))]
    missing = [number for number, part in enumerate(parts) if not is_current(part, identity)]
    state.wait_for_everyone()  # all have looked before one writes
    if state.is_main_process:
        tidy(path.parent, path.name)
    mine = missing[state.process_index :: state.num_processes]
    left = sum(len(chunks[number]) for number in mine)
    if bar is not None:
        bar.update(count - left)
    shown = bar is None and state.is_main_process and description
    with progress(total=left, description=description, disable=not shown) as own:
        for number in mine:
            tensors, lines = compute(chunks[number])
            save_tensors(parts[number], dict(tensors), {"identity": identity, "skipped": json.dumps(lines)})
            (own if bar is None else bar).update(len(chunks[number]))
    state.wait_for_everyone()
    rows, lines = [load_tensors(part) for part in parts], [line for part in parts for line in _lines(part)]
    names = dict.fromkeys(name for some in rows for name in some)
    tensors = {name: torch.cat([some[name] for some in rows if name in some]) for name in names}
    if tensors and state.is_main_process:
        save_tensors(path, tensors, {"identity": identity, "skipped": json.dumps(lines), **(metadata or {})})
    state.wait_for_everyone()  # all have read the parts
    if state.is_main_process:
        # Also where nothing could be computed: once the inputs are mended, the next call must start afresh.
        shutil.rmtree(folder, ignore_errors=True)
    return tensors, lines


def _copy_twin(path: Path, identity: str) -> None:
    """Copy the file of this name and ``identity`` that another run has; runs lie in ``<variant>/seed-<n>/``."""
    run = path.absolute().parent.parent
    twins = run.parent.parent.glob(f"*/seed-*/{path.parent.name}/{path.name}")
    for twin in twins if run.name.startswith("seed-") else ():
        with suppress(InputError, OSError):  # damaged, or gone: it is computed
            if is_current(twin, identity) and load_tensors(twin):
                write_atomic(path, twin.read_bytes())
                return


def _lines(path: Path) -> list[str]:
    return list(json.loads(tensor_metadata(path).get("skipped", "[]")))
