"""A grid: one experiment at many settings, each combination a profile of its own in one graph of notebooks.

A grid file (``data/grids`` holds one) names a profile, variants, seeds, and any settings by their dotted names with the
values they take. Checkpoints need no entry: every run is scored as often as ``finetune.checkpoint_every`` says.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chestxai import profiles, runs
from chestxai.batch.graph import CHAPTERS, NOTEBOOKS, Chapter, Node, Planner, check
from chestxai.profiles import Profile
from chestxai.runs import InputError, MissingError

#: Columns of the printed table; the file has all.
SHOWN = ("fid", "kid", "classifier_auc", "auc_roc", "pointing_game", "cnr", "miou")
#: A grid of more combinations is refused.
MOST = 10_000
# Settings that a grid sets otherwise, or that are only words.
_NOT_VARIED = ("name", "description", "variants", "seeds")


class Grid(BaseModel):
    """The content of a grid file; variants and seeds default to those of the profile."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: str = "demo"
    variants: tuple[str, ...] | None = Field(None, min_length=1)
    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    settings: dict[str, tuple[Any, ...]] = {}


@dataclass(frozen=True)
class Cell:
    """One combination of settings: a profile with the variants and seeds it is run for."""

    profile: Profile
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    changes: dict[str, Any] = field(hash=False)  #: the grid's settings with this cell's values
    path: str = ""  #: what the notebooks load; "" for a profile that ships
    generated: bool = False  #: whether ``path`` is to be written

    def write(self) -> None:
        """Write the profile to where the notebooks load it, unless it existed before."""
        if self.generated:
            runs.write_atomic(Path(self.path), dump(self.profile))


def dump(profile: Profile) -> str:
    """A profile as YAML, which `profiles.load` reads back."""
    return yaml.safe_dump(profile.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load(path: Path, out: Path | None = None) -> list[Cell]:
    """The cells of a grid file, the first setting varying slowest.

    A combination that differs from the profile becomes a profile ``<profile>.<setting>-<value>``, named after all that
    differs, in ``<out>/<name>/profile.yaml``. One that does not differ is the profile itself, so its results are used.

    Args:
        path: the grid file.
        out: root of the runs; default: ``runs/``.

    Raises:
        InputError: not a grid, an unknown setting, a value out of range or repeated; names the file and the key.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"{path}: there is no such grid file; data/grids holds one to start from")
    try:
        grid = Grid.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        base = profiles.load(grid.profile)
        cells = _cells(grid, base, out)
        check(base, cells[0].variants, cells[0].seeds)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({error})") from error
    except ValidationError as error:
        raise InputError(f"{path}: {profiles.told(error, 'grid')}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return cells


def _cells(grid: Grid, base: Profile, out: Path | None) -> list[Cell]:
    known = dict(_leaves(base.model_dump()))
    for key, values in grid.settings.items():
        if key not in known:
            raise InputError(f"settings.{key}: no such setting; there are {', '.join(known)}")
        if not values:
            raise InputError(f"settings.{key}: an empty list of values leaves nothing to run")
    count = math.prod(map(len, grid.settings.values()))
    if count > MOST:
        raise InputError(f"settings: {count} combinations, at most {MOST} are run; leave out some values")
    cells = [
        _cell(grid, base, dict(zip(grid.settings, values, strict=True)), out)
        for values in itertools.product(*grid.settings.values())
    ]
    repeated = [name for name, n in Counter(cell.profile.name for cell in cells).items() if n > 1]
    if repeated:
        raise InputError(f"settings: {', '.join(repeated)} is there twice")
    return cells


def _cell(grid: Grid, base: Profile, changes: dict[str, Any], out: Path | None) -> Cell:
    variants, seeds = grid.variants or tuple(base.variants), grid.seeds or base.seeds
    content, known = base.model_dump(), dict(_leaves(base.model_dump()))
    for key, value in changes.items():
        *sections, last = key.split(".")
        functools.reduce(dict.__getitem__, sections, content)[last] = value
    profile = Profile.model_validate({**content, "seeds": seeds})
    # Compared as validated: 1e-3 and 0.001 are one value.
    values = dict(_leaves(profile.model_dump()))
    changes = {key: values[key] for key in changes}
    differing = {key: value for key, value in sorted(changes.items()) if value != known[key]}
    if not differing:
        path = str(Path(grid.profile).resolve()) if grid.profile.endswith((".yaml", ".yml")) else ""
        return Cell(base, variants, seeds, changes, path)
    uses = Counter(key.rpartition(".")[2] for key in known)
    parts = [base.name]
    for key, value in differing.items():
        last = key.rpartition(".")[2]
        text = re.sub(r"[^A-Za-z0-9._+-]+", "-", str(value)).strip("-")
        parts.append(f"{last if uses[last] == 1 else key}-{text}")
    words = ", ".join(f"{key} {value}" for key, value in differing.items())
    profile = profile.model_copy(
        update={"name": ".".join(parts).replace("+", ""), "description": f"{base.description}; {words}"}
    )
    path = profiles.profile_folder(profile, out).resolve() / "profile.yaml"
    return Cell(profile, variants, seeds, changes, str(path), generated=True)


def _leaves(settings: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{before}{key}.")
        elif before or key not in _NOT_VARIED:
            yield f"{before}{key}", value


def plan_grid(
    cells: Sequence[Cell],
    *,
    data: str = "",
    out: Path | None = None,
    chapters: Sequence[Chapter] = CHAPTERS,
    notebooks: Path = NOTEBOOKS,
) -> list[Node]:
    """One graph of all cells; long computations that two of them have in common are done once.

    Args:
        cells: see `load`.
        data, out, chapters, notebooks: see `chestxai.batch.plan`.

    Raises:
        InputError: see `chestxai.batch.plan`.
    """
    planner = Planner(data, out, chapters, notebooks)
    return [
        node
        for cell in cells
        for node in planner.plan(
            cell.profile, cell.variants, cell.seeds, cell.path, f"{cell.profile.name} · " if len(cells) > 1 else ""
        )
    ]


def table(cells: Sequence[Cell], done: Collection[Path], path: Path, out: Path | None = None) -> str:
    """Join the ``tradeoff.csv`` of all cells into one csv: a row for each setting, variant, seed and checkpoint.

    Args:
        cells: see `load`.
        done: folders of the profiles whose tables are up to date; the others are left out.
        path: the csv to write; its first columns are the grid's settings.
        out: root of the runs; default: ``runs/``.

    Returns:
        The main scores of the last checkpoints as text, and the names of the profiles left out.
    """
    import pandas as pd

    folders = [profiles.profile_folder(cell.profile, out) for cell in cells]
    missing = [cell.profile.name for cell, folder in zip(cells, folders, strict=True) if folder not in done]
    parts = []
    for cell, folder in zip(cells, folders, strict=True):
        if folder in done:
            part = pd.read_csv(folder / "tradeoff.csv")
            parts.append(pd.concat([pd.DataFrame([cell.changes] * len(part), index=part.index), part], axis=1))
    lines = []
    if parts:
        whole = pd.concat(parts, ignore_index=True)
        runs.write_atomic(path, whole.to_csv(index=False))
        keys, scores = [*cells[0].changes, "variant", "seed"], [name for name in SHOWN if name in whole]
        last = whole.groupby(keys, dropna=False, sort=False)["step"].transform("max") == whole["step"]
        lines.append(whole[last][[*keys, "step", *scores]].round(dict.fromkeys(scores, 4)).to_string(index=False))
    if missing:
        lines.append(f"Without {', '.join(missing)}: not finished.")
    return "\n".join(lines)
