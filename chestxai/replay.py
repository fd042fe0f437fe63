"""Repeating one run from what it left: ``run.json`` and the executed notebook of chapter 2 beside it.

The kept notebook's source is executed again, not today's, with the settings, seed, data and number of threads of the
record, in a folder of its own. Then the two are compared: the loss of every step and the fingerprint of the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import yaml
from pydantic import ValidationError

from chestxai import batch, profiles, runs
from chestxai.batch import Node
from chestxai.profiles import Profile

NOTEBOOK = "02_finetuning.ipynb"
# What besides versions may make a repeated run another one, as `runs.record` says it; threads are given as they were.
_PLACE = ("python", "device", "commit")


def replay(record: Path, out: Path | None = None, data: str = "") -> int:
    """Run again what left ``record``, tell what differs, and whether the result is the same.

    Args:
        record: ``run.json`` of a finished run; the executed notebook lies beside it.
        out: folder to run in, new or empty; default: ``runs/replay/<profile>-<variant>-seed-<n>``, made anew.
        data: folder of the data, where it is no longer that of the record.

    Returns:
        0 if the losses of all steps and the weights are equal to the last bit, else 1.

    Raises:
        ValueError: the record is unfinished, or does not say enough; ``out`` is not empty.
        FileNotFoundError: a file is missing; says which.
    """
    record = Path(record)
    kept = record.parent / NOTEBOOK
    for path in (record, kept, record.parent / "train.csv"):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: a replay needs a run's run.json, train.csv and {NOTEBOOK}")
    before = runs.read_json(record)
    lacks = [key for key in ("profile", "data_root", "variant", "seed", "model") if key not in before]
    if lacks or not before.get("finished"):
        raise ValueError(
            f"{record}: {'it lacks ' + ', '.join(lacks) if lacks else 'the run is not finished'}, so it cannot be "
            "repeated from its record; run 'python -m chestxai.batch' with its settings instead"
        )
    try:
        profile = Profile.model_validate(before["profile"])
    except ValidationError as error:
        raise ValueError(f"{record}: its profile is none that this version knows ({profiles.told(error)})") from error
    variant, seed = before["variant"], before["seed"]
    if out is None:
        out = profiles.RUNS / "replay" / f"{profile.name}-{variant}-seed-{seed}"
        runs.remove(out)
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: a replay needs a folder that is new or empty")
    out = out.resolve()

    for line in _differences(before, runs.record()):
        print(f"  differs    {line}")
    root = str(Path(data).resolve()) if data else before["data_root"]
    settings = runs.write_atomic(
        out / "profile.yaml", yaml.safe_dump(profile.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    )
    source = out / NOTEBOOK
    runs.write_atomic(source, nbformat.writes(stripped(nbformat.read(kept, as_version=4))))
    parameters = {"profile": str(settings), "variant": variant, "seed": seed, "data": root, "out": str(out)}
    folder = profiles.run_folder(profile, variant, seed, out)
    node = Node(f"replay of {record}", source, folder, parameters, makes=("run.json", "train.csv"))
    print(f"  replaying  {profile.name} · {variant} · seed {seed} in {out}", flush=True)
    outcome = batch.execute(node, before.get("threads"))
    if outcome.status != "finished":
        raise ValueError(f"the replay failed: {outcome.reason}; see {node.failed}")

    return 0 if equal(record.parent, folder) else 1


def equal(before: Path, after: Path) -> bool:
    """Whether two finished runs have the same losses and weights, to the last bit; what is told of it is printed."""
    then, now = (runs.read_json(folder / "run.json") for folder in (before, after))
    if then["data"]["fingerprint"] != now["data"]["fingerprint"]:
        print("  differs    the data: their fingerprint is not that of the record")
    told = _losses(*(pd.read_csv(folder / "train.csv") for folder in (before, after)))
    same = then["model"] == now["model"]
    print(f"  loss curve {told or 'equal at every step'}")
    print(f"  weights    {'equal' if same else 'differ'} ({then['model']}, now {now['model']})")
    return same and not told


def stripped(notebook: Any) -> Any:
    """An executed notebook as it was before: without outputs, injected parameters and what papermill noted."""
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags"})
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = nbformat.from_dict({"kernelspec": notebook.metadata.get("kernelspec", {})})
    return notebook


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for every version, and for what else of the place may change a result, that is not as it was."""
    old, new = before.get("versions", {}), now["versions"]
    pairs = [(name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())]
    pairs += [(name, before.get(name), now[name]) for name in _PLACE]
    return [f"{name}: {a or 'unknown'} then, {b or 'unknown'} now" for name, a, b in pairs if a != b]


def _losses(before: pd.DataFrame, after: pd.DataFrame) -> str:
    """Where two logs of a training part, or "" if they do not. How long the steps took is no part of them."""
    columns = ["step", "loss", "grad_norm", "lr"]
    if len(before) != len(after):
        return f"{len(before)} steps then, {len(after)} now"
    for a, b in zip(before[columns].itertuples(), after[columns].itertuples(), strict=True):
        if a != b:
            return f"differs from step {a.step} on: loss {a.loss} then, {b.loss} now"
    return ""
