"""Convert the pickles (.bin) of a model's folder to safetensors, without running any code that is in them.

    python tools/convert_weights.py FOLDER

Only tensors are read (``weights_only=True``); a file that holds anything else is refused. The pickles stay.
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch

from chestxai import runs
from chestxai.runs import InputError, MissingError


def new_name(name: str) -> str:
    """Name of the safetensors file, or index of shards, that takes the place of a pickle's."""
    stem = name if name.startswith("diffusion_") else name.replace("pytorch_model", "model")
    return stem.replace(".bin", ".safetensors")


def convert(path: Path) -> Path:
    """Write the tensors of a pickle beside it as safetensors.

    Raises:
        InputError: the file is damaged, or holds more than tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: damaged, or it holds more than tensors, which is not opened ({first})") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path}: not a table of tensors by name")
    target = path.with_name(new_name(path.name))
    # Copies, because tensors that share memory cannot be stored.
    runs.save_tensors(target, {name: value.clone().contiguous() for name, value in state.items()}, {"format": "pt"})
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert all pickles of a folder that have no safetensors beside them.

    Args:
        arguments: of the command line; default: ``sys.argv``.
    """
    parser = argparse.ArgumentParser(
        prog="python tools/convert_weights.py", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="of a pipeline in diffusers format, or of a text encoder")
    folder = parser.parse_args(arguments).folder
    found = sorted(folder.rglob("*model*.bin"))  # not training_args.bin
    if not found:
        raise MissingError(f"{folder}: no weights (*model*.bin) in it")
    for path in found:
        if path.with_name(new_name(path.name)).is_file():
            print(f"{path}: converted before")
        else:
            print(f"{path} → {convert(path).name}")
    for path in folder.rglob("*.bin.index.json"):
        index = runs.read_json(path, dict)
        index["weight_map"] = {key: new_name(str(name)) for key, name in index.get("weight_map", {}).items()}
        path.with_name(new_name(path.name)).write_text(json.dumps(index, indent=2))
    return 0


if __name__ == "__main__":
    runs.command(main)
