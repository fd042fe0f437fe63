"""A grid: one experiment at many settings, each combination a profile of its own in one graph of notebooks.

A grid file (``data/grids`` holds one) names a profile, variants, seeds, and any settings by their dotted names with the
values they take. Checkpoints need no entry: every run is scored as often as ``finetune.checkpoint_every`` says.
"""

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chestxai import profiles, runs
from chestxai.batch.graph import Cell
from chestxai.profiles import Profile
from chestxai.runs import InputError, MissingError

#: Columns of the printed table; the file has all.
SHOWN = ("fid", "kid", "classifier_auc", "auc_roc", "pointing_game", "cnr", "miou")
#: A grid of more combinations is refused.
MOST = 10_000
# Settings that a grid sets otherwise, or that are only words.
_NOT_VARIED = ("name", "description", "seeds")


class Grid(BaseModel):
    """The content of a grid file; variants and seeds default to those of the profile.

    ``score`` makes it a study (`chestxai.batch.study`): without notebooks, scored on this split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: str = "demo"
    variants: tuple[str, ...] | None = Field(None, min_length=1)
    seeds: tuple[Annotated[int, Field(strict=True)], ...] | None = Field(None, min_length=1)
    settings: dict[str, tuple[Any, ...]] = {}
    score: Literal["val", "test"] | None = None


def load(path: Path, out: Path | None = None) -> list[Cell]:
    """The cells of the grid file at ``path``, the first setting varying slowest.

    A combination that differs from the profile becomes a profile ``<profile>.<setting>-<value>``, named after all that
    differs, in ``<out>/<name>/profile.yaml``. One that does not differ is the profile itself, so its results are used.
    ``out`` is the root of the runs, default ``runs/``.

    Raises:
        InputError: not a grid, an unknown setting, a value out of range or repeated; names the file and the key.
    """
    grid = read(path)
    try:
        return _cells(grid, out)
    except ValidationError as error:
        raise InputError(f"{path}: {profiles.describe_errors(error, 'grid')}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read(path: Path) -> Grid:
    """The content of a grid file; raises as `load`."""
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"{path}: there is no such grid file; data/grids holds one to start from")
    try:
        return Grid.model_validate(runs.read_yaml(path))
    except ValidationError as error:
        raise InputError(f"{path}: {profiles.describe_errors(error, 'grid')}") from error


def _cells(grid: Grid, out: Path | None) -> list[Cell]:
    try:
        base = profiles.load(grid.profile)
    except InputError as error:
        raise InputError(f"profile: {error}") from error
    variants, seeds = grid.variants or tuple(base.variants), grid.seeds or base.seeds
    path = str(Path(grid.profile).resolve()) if grid.profile.endswith((".yaml", ".yml")) else ""
    plain = Cell(base, variants, seeds, path)
    teachers = [name for v in variants if (name := base.recipe(v).attention_from) in base.variants]
    used = {name: base.recipe(name) for name in (*variants, *teachers)}
    profile = base.model_copy(update={"variants": used, "seeds": seeds})
    known = _leaves(profile.model_dump())
    for key, values in grid.settings.items():
        if key not in known:
            raise InputError(f"settings.{key}: no such setting; there are {', '.join(known)}")
        if not values:
            raise InputError(f"settings.{key}: an empty list of values leaves nothing to run")
    count = math.prod(map(len, grid.settings.values()))
    if count * len(variants) * len(seeds) > MOST:
        many = f"{count} combinations of {len(variants)} variants and {len(seeds)} seeds"
        raise InputError(f"settings: {many}, of which at most {MOST} can be run; list fewer values")
    cells = []
    for values in itertools.product(*grid.settings.values()):
        changed, changes = _change(profile, dict(zip(grid.settings, values, strict=True)))
        path = str(profiles.profile_folder(changed, out).resolve() / "profile.yaml")
        other = Cell(changed, variants, seeds, path, changes, generated=True)
        cells.append(replace(plain, changes=changes) if changed.name == base.name else other)
    repeated = [name for name, n in Counter(cell.profile.name for cell in cells).items() if n > 1]
    if repeated:
        raise InputError(f"settings: {', '.join(repeated)} is there twice")
    return cells


def _change(profile: Profile, changes: dict[str, Any]) -> tuple[Profile, dict[str, Any]]:
    """The profile with other settings, named after those that differ; and all of ``changes`` as validated."""
    content, before = profile.model_dump(), _leaves(profile.model_dump())
    for key, value in changes.items():
        *sections, last = before[key][0]
        functools.reduce(dict.__getitem__, sections, content)[last] = value
    changed = Profile.model_validate(content)
    after = _leaves(changed.model_dump())
    # Compared as validated: 1e-3 and 0.001 are one value.
    differing = {key: after[key][1] for key in sorted(changes) if after[key] != before[key]}
    uses = Counter(path[-1] for path, _ in before.values() if path[0] != "variants")
    name = profile.name
    for key, value in differing.items():
        path, last = before[key][0], before[key][0][-1]
        text = re.sub(r"[^A-Za-z0-9._-]+", "-", str(value).replace("+", "")).strip("-")
        short = last if uses[last] == 1 and path[0] != "variants" else key.removeprefix("variants.")
        name += f".{short}-{text}"
    words = "; ".join([profile.description, ", ".join(f"{key} {value}" for key, value in differing.items())])
    name = name if len(name) <= 80 else f"{name[:63]}-{runs.fingerprint(differing)}"
    update = {"name": name, "description": words} if differing else {}
    return changed.model_copy(update=update), {key: after[key][1] for key in changes}


def _leaves(settings: dict[str, Any], path: tuple[str, ...] = ()) -> dict[str, tuple[tuple[str, ...], Any]]:
    """Dotted name → path and value of every single setting."""
    leaves: dict[str, tuple[tuple[str, ...], Any]] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, (*path, key))
        elif path or key not in _NOT_VARIED:
            leaves[".".join((*path, key))] = (*path, key), value
    return leaves


def table(cells: Sequence[Cell], done: Collection[Path], path: Path, out: Path | None = None) -> str:
    """Join the ``tradeoff.csv`` of all cells into one csv: a row for each setting, variant, seed and checkpoint.

    Args:
        cells: see `load`.
        done: folders of the profiles whose tables are up to date; the others are left out.
        path, out: the csv to write, whose first columns are the grid's settings, and the root of the runs.

    Returns:
        The main scores of the last checkpoints as text, and the names of the profiles left out.
    """
    import pandas as pd

    parts, missing, lines = [], [], []
    for cell in cells:
        folder = profiles.profile_folder(cell.profile, out)
        if folder in done:
            part = pd.read_csv(folder / "tradeoff.csv")
            parts.append(pd.concat([pd.DataFrame([cell.changes] * len(part), index=part.index), part], axis=1))
        else:
            missing.append(cell.profile.name)
    if parts:
        whole = pd.concat(parts, ignore_index=True)
        runs.write_atomic(path, whole.to_csv(index=False))
        keys, scores = [*cells[0].changes, "variant", "seed"], [name for name in SHOWN if name in whole]
        last = whole.groupby(keys, dropna=False, sort=False)["step"].transform("max") == whole["step"]
        lines.append(whole[last][[*keys, "step", *scores]].round(dict.fromkeys(scores, 4)).to_string(index=False))
    if missing:
        lines.append(f"Without {', '.join(missing)}: not finished.")
    return "\n".join(lines)
