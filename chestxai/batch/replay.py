"""Repeating one run from what it left: ``run.json`` and the executed notebook of chapter 2 beside it.

The source of the kept notebook is executed again, not today's, with the settings, seed, data and number of threads of
the record, in a folder of its own. Then losses and weights of the two are compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ValidationError

from chestxai import profiles, runs
from chestxai.batch.execute import execute
from chestxai.batch.graph import Cell, Node, read_notebook
from chestxai.profiles import Profile
from chestxai.runs import InputError, MissingError, Run

if TYPE_CHECKING:
    import pandas as pd

NOTEBOOK = "02_finetuning.ipynb"
# What besides versions may change the result of a repeated run; the number of threads is taken from the record.
_PLACE = ("python", "device", "commit")


class _Record(BaseModel):
    """What a replay uses of ``run.json``."""

    finished: Literal[True]
    profile: Profile
    data_root: str
    variant: str
    seed: int
    model: str
    threads: int | None = None


def replay(record: Path, out: Path | None = None, data: str = "") -> int:
    """Run again what left ``record``, and report what differs.

    The notebook beside the record is executed: replay only what you trust. Returns 0 if the losses of all steps and the
    weights are equal to the last bit, else 1. MissingError or InputError if a file is missing, the record is
    incomplete, ``out`` is not empty, or the replay fails.

    Args:
        record: ``run.json`` of a finished run; ``train.csv`` and the executed notebook lie beside it.
        out: folder to run in, new or empty; default: ``runs/replay/<profile>-<variant>-seed-<n>``, emptied first.
        data: folder of the data, if it is no longer that of the record.
    """
    run = Run(Path(record).parent)
    kept = run.folder / NOTEBOOK
    for path in (run.record_file, kept, run.log_file):
        if not path.is_file():
            raise MissingError(f"{path} is missing: a replay needs a run's run.json, train.csv and {NOTEBOOK}")
    content, notebook = run.record(), read_notebook(kept)
    try:
        before = _Record.model_validate(content)
    except ValidationError as error:
        what = f"{record}: cannot be repeated from its record ({profiles.describe_errors(error)})"
        raise InputError(f"{what}; run 'python -m chestxai.batch' with its settings instead") from error
    profile, variant, seed = before.profile, before.variant, before.seed
    if out is None:
        out = profiles.RUNS / "replay" / f"{profile.name}-{variant}-seed-{seed}"
        runs.remove(out)
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: a replay needs a folder that is new or empty")
    out = out.resolve()
    for line in _differences(content, runs.record()):
        print(f"  differs    {line}")
    recipe = profile.recipe(variant)
    if recipe.attention_from in profile.variants:  # its teacher is where the run itself found it
        teacher = str(run.folder.resolve().parents[1] / recipe.attention_from / run.folder.name)
        variants = profile.variants | {variant: recipe.model_copy(update={"attention_from": teacher})}
        profile = profile.model_copy(update={"variants": variants})
    settings, root = str(out / "profile.yaml"), str(Path(data).resolve()) if data else before.data_root
    Cell(profile, [variant], [seed], settings, generated=True).write()
    for cell in notebook["cells"]:
        cell |= {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {}
    source, folder = runs.write_json(out / NOTEBOOK, notebook), profiles.run(profile, variant, seed, out).folder
    parameters = {"profile": settings, "variant": variant, "seed": seed, "data": root, "out": str(out)}
    node = Node(f"replay of {record}", source, folder, parameters, makes=("run.json", "train.csv"))
    print(f"  replaying  {profile.name} · {variant} · seed {seed} in {out}")
    print(f"  executing  the code of {kept.resolve()}", flush=True)
    outcome = execute(node, before.threads)
    if not outcome.ok:
        where = f"; see {outcome.notebook}" if outcome.notebook else ""
        raise InputError(f"the replay failed: {outcome.reason}{where}")
    return 0 if equal(run.folder, folder) else 1


def equal(before: Path, after: Path) -> bool:
    """Whether runs in the folders ``before`` and ``after`` have the same losses and weights; prints what differs."""
    records = [Run(folder).record() for folder in (before, after)]
    fingerprints = [record.get("data", {}).get("fingerprint") for record in records]
    if fingerprints[0] != fingerprints[1]:
        print("  differs    the data: their fingerprint is not that of the record")
    difference = _losses(*(Run(folder).train_log() for folder in (before, after)))
    then, now = (record["model"] for record in records)
    print(f"  loss curve {difference or 'equal at every step'}")
    print(f"  weights    {'equal' if then == now else 'differ'} ({then}, now {now})")
    return then == now and not difference


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for each version, and for whatever else of the place may change a result, that differs."""
    old, new = before.get("versions", {}), now["versions"]
    pairs = [(name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())]
    pairs += [(name, before.get(name), now[name]) for name in _PLACE]
    return [f"{name}: {a or 'unknown'} then, {b or 'unknown'} now" for name, a, b in pairs if a != b]


def _losses(before: pd.DataFrame, after: pd.DataFrame) -> str:
    """Where two training logs start to differ, or "" if they do not. The duration of the steps does not count."""
    if len(before) != len(after):
        return f"{len(before)} steps then, {len(after)} now"
    a, b = (log.reindex(columns=["step", "loss", "grad_norm", "lr"]) for log in (before, after))
    for i in a.index[(a != b).any(axis=1)]:
        return f"differs from step {a.step[i]} on: loss {a.loss[i]} then, {b.loss[i]} now"
    return ""
