"""A grid: one experiment at many settings, each combination a profile of its own in the same graph of notebooks.

A grid file (``data/grids`` holds one) names a profile, variants, seeds, and by its dotted name any setting with the
values it takes. Checkpoints need no line of their own: every run is scored at each of them, as often as the setting
``finetune.checkpoint_every`` says.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chestxai import profiles, runs
from chestxai.profiles import Profile, Variant

if TYPE_CHECKING:
    import pandas as pd

#: Columns of the table that are printed; the file has all.
SHOWN = ("fid", "kid", "classifier_auc", "auc_roc", "pointing_game", "cnr", "miou")
# Settings that are dimensions of their own, or only words.
_NOT_VARIED = ("name", "description", "variants", "seeds")


class Grid(BaseModel):
    """What a grid file says; without variants or seeds those of the profile are taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: str = "demo"
    variants: tuple[Variant, ...] | None = Field(None, min_length=1)
    seeds: tuple[int, ...] | None = Field(None, min_length=1)
    settings: dict[str, tuple[Any, ...]] = {}


@dataclass(frozen=True)
class Cell:
    """One combination of settings: a profile with the variants and seeds it is run for.

    ``changes`` are the grid's settings with this cell's values, ``path`` is what the notebooks load.
    """

    profile: Profile
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    changes: dict[str, Any] = field(hash=False)
    path: str = ""
    shipped: bool = True

    def write(self) -> None:
        """Write the profile where the notebooks load it, unless it is one that was there before.

        Raises:
            OSError: the folder cannot be written.
        """
        if not self.shipped:
            text = yaml.safe_dump(self.profile.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            runs.write_atomic(Path(self.path), text)


def load(path: Path, out: Path | None = None) -> list[Cell]:
    """The cells of a grid file, the first setting varying slowest.

    A combination that differs from the profile is a profile ``<profile>.<setting>-<value>``, named after all that
    differs, with its settings in ``<out>/<name>/profile.yaml``; one that does not is the profile itself, so what it has
    left is used.

    Args:
        path: the grid file.
        out: root of the runs; default: ``runs/``.

    Raises:
        ValueError: not a grid, an unknown setting, a value out of range or given twice; names file and key.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such grid file; data/grids holds one to start from")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected profile, variants, seeds, settings; found {type(content).__name__}")
        grid = Grid.model_validate(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML ({error})") from error
    except ValidationError as error:
        raise ValueError(f"{path}: {profiles.told(error, 'grid')}") from error
    try:
        plain = profiles.load(grid.profile)
    except ValueError as error:
        raise ValueError(f"{path}: profile: {error}") from error
    known = dict(_leaves(plain.model_dump()))
    for key, values in grid.settings.items():
        if key not in known:
            raise ValueError(f"{path}: settings.{key}: no such setting; there are {', '.join(known)}")
        if not values:
            raise ValueError(f"{path}: settings.{key}: an empty list of values leaves nothing to run")
    own = plain.model_copy(
        update={"variants": grid.variants or plain.variants, "seeds": grid.seeds or plain.seeds},
    )
    cells = []
    for values in itertools.product(*grid.settings.values()):
        changes = dict(zip(grid.settings, values, strict=True))
        cells.append(_cell(path, grid, plain, own, changes, known, out))
    names = Counter(cell.profile.name for cell in cells)
    for what, items in (("settings", list(names.elements())), ("variants", own.variants), ("seeds", own.seeds)):
        twice = [str(item) for item, n in Counter(items).items() if n > 1]
        if twice:
            raise ValueError(f"{path}: {what}: {', '.join(twice)} is there twice")
    return cells


def _cell(
    path: Path,
    grid: Grid,
    plain: Profile,
    own: Profile,
    changes: dict[str, Any],
    known: dict[str, Any],
    out: Path | None,
) -> Cell:
    dump = own.model_dump()
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = dump
        for section in sections:
            place = place[section]
        place[last] = value
    try:
        # Checked once before it is named: 1e-3 and 0.001 are one value.
        checked = Profile.model_validate(dump)
    except ValidationError as error:
        raise ValueError(f"{path}: settings: {profiles.told(error)}") from error
    found = dict(_leaves(checked.model_dump()))
    differs = {key: found[key] for key in sorted(changes) if found[key] != known[key]}
    changes = {key: found[key] for key in changes}
    if not differs:
        given = str(Path(grid.profile).resolve()) if grid.profile.endswith((".yaml", ".yml")) else ""
        return Cell(plain, own.variants, own.seeds, changes, given)
    endings = Counter(key.rpartition(".")[2] for key in known)
    parts = []
    for key, value in differs.items():
        last = key.rpartition(".")[2]
        parts.append(
            f"{last if endings[last] == 1 else key}-{re.sub(r'[^A-Za-z0-9._+-]+', '-', str(value)).strip('-')}"
        )
    name = ".".join([plain.name, *parts]).replace("+", "")
    told = ", ".join(f"{key} {value}" for key, value in differs.items())
    profile = checked.model_copy(update={"name": name, "description": f"{plain.description}; {told}"})
    where = profiles.profile_folder(profile, out).resolve() / "profile.yaml"
    return Cell(profile, own.variants, own.seeds, changes, str(where), shipped=False)


def _leaves(settings: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{before}{key}.")
        elif before or key not in _NOT_VARIED:
            yield f"{before}{key}", value


def table(cells: Sequence[Cell], done: Collection[Path], path: Path, out: Path | None = None) -> str:
    """Put the ``tradeoff.csv`` of all cells into one csv: a row per setting, variant, seed and checkpoint.

    Args:
        cells: of `load`.
        done: folders of the profiles whose tables are there and up to date; the others are left out.
        path: the csv to write; its first columns are the grid's settings.
        out: root of the runs.

    Returns:
        the last checkpoints' main scores as text, and the names of what was left out.
    """
    import pandas as pd

    parts, missing = [], []
    for cell in cells:
        folder = profiles.profile_folder(cell.profile, out)
        if folder not in done:
            missing.append(cell.profile.name)
            continue
        part = pd.read_csv(folder / "tradeoff.csv")
        for i, (key, value) in enumerate(cell.changes.items()):
            part.insert(i, key, [value] * len(part))
        parts.append(part)
    lines = []
    if parts:
        whole = pd.concat(parts, ignore_index=True)
        runs.write_atomic(path, whole.to_csv(index=False))
        lines.append(_last(whole, list(cells[0].changes)).to_string(index=False))
    if missing:
        lines.append(f"Without {', '.join(missing)}: not finished.")
    return "\n".join(lines)


def _last(whole: pd.DataFrame, settings: list[str]) -> pd.DataFrame:
    keys = [*settings, "variant", "seed"]
    last = whole.groupby(keys, dropna=False, sort=False)["step"].transform("max") == whole["step"]
    scores = [name for name in SHOWN if name in whole]
    return whole[last][[*keys, "step", *scores]].round(dict.fromkeys(scores, 4))
