"""`Run`: every path and every reader of one run, so that no other file needs to know a file name."""

from __future__ import annotations

import io
import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from chestxai.runs.errors import InputError, MissingError
from chestxai.runs.files import load_tensors, read_bytes, read_json

if TYPE_CHECKING:
    import pandas as pd
    import torch

#: Columns of ``grounding.csv`` that hold text; all others are numbers.
TEXT_COLUMNS = ("study", "patient", "finding", "phrase")


class _Data(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    fingerprint: str | None = None
    studies: int = 0
    skipped: list[str] = []


class _Record(BaseModel):
    """What others read of ``run.json``, and its types; any of it may be missing."""

    model_config = ConfigDict(extra="allow", strict=True)
    finished: bool = False
    identity: str = ""
    model: str = ""
    variant: str = ""
    recipe: dict[str, Any] = {}
    seed: int = 0
    settings: dict[str, Any] = {}
    profile: dict[str, Any] = {}
    data: _Data = _Data()
    data_root: str = ""
    versions: dict[str, str] = {}
    seconds: float = 0
    final_loss: float | None = None
    peak_memory_gb: float = 0


def _path(name: str) -> property:
    return property(lambda run: run.folder / name)


@dataclass(frozen=True)
class Run:
    """One fine-tuned model and what was computed from it, in ``runs/<profile>/<variant>/seed-<n>``.

    The ``folder`` need not exist yet.
    """

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))

    record_file = _path("run.json")  #: settings, versions, device, data, time; written last
    log_file = _path("train.csv")  #: a row per step
    model = _path("model")  #: folder of the finished pipeline
    grounding_file = _path("grounding.csv")  #: a row per checkpoint and phrase, every score
    fidelity_file = _path("fidelity.json")  #: scores of the generated images by step
    masks_file = _path("maps/masks.safetensors")  #: truth masks of the grounded phrases

    def checkpoint(self, step: int) -> Path:
        """Folder of a checkpoint."""
        return self.folder / "checkpoints" / f"step-{step}"

    def maps_file(self, step: int) -> Path:
        """Heatmaps of a checkpoint; step 0 is the base."""
        return self.folder / "maps" / f"step-{step}.safetensors"

    def probes_file(self, step: int, name: str = "probes") -> Path:
        """Heatmaps of ``step`` on other images and for changed prompts; ``name`` "sides": of `chestxai.sides`."""
        return self.folder / "maps" / f"{name}-{step}.safetensors"

    def samples_file(self, name: int | str) -> Path:
        """Generated images of a checkpoint (by its step) or of an experiment (by its name)."""
        return self.folder / "samples" / f"{f'step-{name}' if isinstance(name, int) else name}.safetensors"

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, rising."""
        names = [path.name[5:] for path in (self.folder / "checkpoints").glob("step-*")]
        return sorted(int(name) for name in names if name.isascii() and name.isdecimal())

    def record(self) -> dict[str, Any]:
        """``run.json``; MissingError, with the command that makes it, if there is none.

        InputError if it is not a JSON object, or an entry is of the wrong type.
        """
        content = read_json(self._existing(self.record_file), dict)
        try:
            _Record.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{self.record_file}: {where}: {first['msg']}; delete it and {self.remedy()}") from error
        return content

    def is_finished(self) -> bool:
        """Whether the fine-tuning is complete."""
        return self.record_file.is_file() and bool(self.record().get("finished"))

    def check_finished(self) -> Run:
        """This run, if its fine-tuning is complete; else MissingError names the command that makes it."""
        if not self.is_finished():
            raise MissingError(f"{self.folder}: not a finished run; {self.remedy()}")
        return self

    def train_log(self) -> pd.DataFrame:
        """``train.csv``: columns step, loss, grad_norm, lr, seconds, images_per_second; raises as `grounding`."""
        return self._table(self.log_file, numbers=("step", "loss", "grad_norm", "lr", "seconds"))

    def grounding(self) -> pd.DataFrame:
        """``grounding.csv`` with text in `TEXT_COLUMNS` ("007" stays "007", "NA" is a phrase) and numbers elsewhere.

        MissingError or InputError if it is missing or damaged, lacks a column, or a number is not one (with the line).
        """
        table = self._table(self.grounding_file, TEXT_COLUMNS)
        # A prior of a single box is flat inside it, and its contrast infinite; nothing drawn from an image is.
        flat = [name for name in table if name.startswith(("prior_", "text_prior_"))]
        table[flat] = table[flat].replace([np.inf, -np.inf], np.nan)
        wrong = np.isinf(table.select_dtypes("number")).any()
        if wrong.any():
            what = f"{self.grounding_file}: {wrong.idxmax()} is infinite"
            raise InputError(f"{what}; delete the file and {self.remedy()}")
        return table.astype({"step": int})

    def fidelity(self) -> dict[int, dict[str, float]]:
        """Numbers of ``fidelity.json`` by step; null becomes NaN. Raises as `grounding`."""
        path = self._existing(self.fidelity_file)
        steps = read_json(path, dict).get("steps")
        if not isinstance(steps, dict) or not all(
            re.fullmatch("0|[1-9][0-9]*", s) and isinstance(v, dict) for s, v in steps.items()
        ):
            raise InputError(f"{path}: has no scores by step; delete it and {self.remedy()}")
        for step, scores in steps.items():
            for name, value in scores.items():
                number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isinf(value)
                if not (number or value is None or isinstance(value, dict)):
                    what = f"{path}, step {step}: {name} is {str(value)[:40]!r}, not a number"
                    raise InputError(f"{what}; delete the file and {self.remedy()}")
        return {
            int(step): {name: math.nan if value is None else value for name, value in scores.items()}
            for step, scores in steps.items()
        }

    def maps(self, step: int) -> dict[str, torch.Tensor]:
        """Stored heatmaps: ``maps`` float32 ``(n, h, w)`` and ``rows`` int64 ``(n,)``, the phrases they belong to."""
        path = self._existing(self.maps_file(step))
        stored = load_tensors(path)
        maps, rows = (stored.get(name, np.zeros(0)) for name in ("maps", "rows"))
        numbers = set(rows.tolist()) if rows.ndim == 1 else set()
        whole = all(isinstance(row, int) and row >= 0 for row in numbers)
        if maps.ndim != 3 or not len(maps) == len(numbers) == len(rows) or not whole:
            raise InputError(f"{path}: does not hold a map for each of its rows; delete it and {self.remedy()}")
        return stored

    def probes(self, step: int) -> dict[str, np.ndarray]:
        """Stored heatmaps of `chestxai.faithfulness.probe_truths`, in the order of the rows of `maps`."""
        return {name: tensor.numpy() for name, tensor in load_tensors(self._existing(self.probes_file(step))).items()}

    def last_maps(self) -> tuple[pd.DataFrame, dict[int, np.ndarray]]:
        """Rows of ``grounding.csv`` and heatmaps of the last checkpoint, by the number of the phrase among all of them.

        MissingError or InputError if they are missing, damaged, or of different data.
        """
        table = self.grounding()
        last = table[table["step"] == table["step"].max()]
        stored = self.maps(int(last["step"].iloc[0]))
        rows = stored["rows"].tolist()
        if len(rows) != len(last):
            raise InputError(f"{self.grounding_file}: has {len(last)} rows for {len(rows)} maps; run chapter 3 again")
        last.index = rows
        return last, dict(zip(rows, stored["maps"].numpy(), strict=True))

    def remedy(self) -> str:
        """The command that makes the run, in words."""
        match = re.fullmatch(r"seed-(\d+)", self.folder.name)
        if not match:
            return "make it with 'python -m chestxai.batch'"
        own, variant = self.folder.parent.parent / "profile.yaml", self.folder.parent.name
        profile = shlex.quote(str(own)) if own.is_file() else own.parent.name  # a cell of a grid has one of its own
        out = own.parent.parent
        where = f" --out {shlex.quote(str(out))}" if out.resolve() != Path("runs").resolve() else ""
        command = f"python -m chestxai.batch --profile {profile} --variants {variant} --seeds {match[1]}{where}"
        return f"make it with '{command}'"

    def _existing(self, path: Path) -> Path:
        if not path.is_file():
            raise MissingError(f"{path} is missing: {self.remedy()}")
        return path

    def _table(self, path: Path, text: tuple[str, ...] = (), numbers: tuple[str, ...] = ("step",)) -> pd.DataFrame:
        import pandas as pd

        raw = read_bytes(self._existing(path))
        names = raw.partition(b"\n")[0].decode(errors="replace").strip().split(",")
        for problem, found in (
            ("cut off in its last line", raw and not raw.endswith(b"\n")),
            ("bytes of no text", b"\0" in raw),
            ("a column is there twice", len({*names}) < len(names)),
        ):
            if found:
                raise InputError(f"{path}: {problem}; delete it and {self.remedy()}")
        try:
            # Everything as text first: "NA" and "None" may be phrases; only in numbers do they mean a gap.
            table = pd.read_csv(io.BytesIO(raw), dtype=str, keep_default_na=False)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a readable table ({error}); delete it and {self.remedy()}") from error
        missing = [name for name in (*numbers, *text) if name not in table]
        if missing or not len(table):
            what = f"lacks the columns {', '.join(missing)}" if missing else "has no rows"
            raise InputError(f"{path} {what}: delete it and {self.remedy()}")
        for name in table.columns.difference(text, sort=False):
            values = pd.to_numeric(table[name], errors="coerce")
            gap = table[name].isin(["", "nan"]) & (name != "step")
            step = (name == "step") & ~(values.between(0, 2**53) & (values % 1 == 0))
            bad = np.flatnonzero((values.isna() & ~gap) | step)
            if bad.size:
                kind = f"not a number{' of steps' * (name == 'step')}"
                what = f"{path}, line {bad[0] + 2}: {name} is {table[name].iloc[bad[0]]!r}, {kind}"
                raise InputError(f"{what}; delete the file and {self.remedy()}")
            table[name] = values
        return table
