"""One module per data set; all of them give the same record, `chestxai.studies.Study`."""

from __future__ import annotations

import csv
import importlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from chestxai import runs
from chestxai.studies import Study, is_dicom, read_dicom, split_by_patient

#: Names `load` knows, and what each is.
SOURCES = {
    "phantom": "a digital chest phantom with exact truth (ships with the book)",
    "openi": "Open-i / Indiana University chest X-rays: images and reports, no credentials",
    "nih": "NIH ChestX-ray14: images, labels, and 984 radiologists' boxes, no credentials",
    "folder": "one's own data: a csv of images, texts and boxes beside the images",
    "mimic": "MIMIC-CXR-JPG with MS-CXR: images, reports, and radiologists' boxes of phrases, credentials of PhysioNet",
    "padchest": "PadChest-GR: images, sentences in Spanish and English with boxes, on request from BIMCV",
    "vindr": "VinDr-CXR: images and boxes of three readers or their consensus, no reports, credentials of PhysioNet",
}

#: Sources whose images and reports may not be passed on, be it on a published page: their terms bind each user.
CREDENTIALED = frozenset({"mimic", "padchest", "vindr"})


class Studies(list[Study]):
    """Studies of one split, with what was left out and why.

    Attributes:
        skipped: one line for every record left out, ``record: reason (details)``; a record is a file or ``file:line``.
        fingerprint: names exactly what was loaded; equal data, equal fingerprint.
    """

    def __init__(self, studies: Iterable[Study] = (), skipped: Iterable[str] = (), fingerprint: str = "") -> None:
        super().__init__(studies)
        self.skipped = list(skipped)
        self.fingerprint = fingerprint

    def reasons(self) -> dict[str, int]:
        """How many records were left out for which reason, the commonest first."""
        return dict(Counter(line.partition(": ")[2].partition(" (")[0] for line in self.skipped).most_common())


def load(name: str, root: str | Path | None = None, split: str = "test", **options: object) -> Studies:
    """Load one split of a data set.

    Args:
        name: one of `SOURCES`.
        root: folder with the data set's official layout; phantoms need none.
        split: "train", "val" or "test"; patients never straddle two.
        options: the source's own, see its module.

    Raises:
        ValueError: unknown source or split.
        FileNotFoundError: ``root`` lacks the data; says where to get them.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown source {name!r}: choose one of {', '.join(SOURCES)}")
    if split not in ("train", "val", "test"):
        raise ValueError(f"unknown split {split!r}: choose one of train, val, test")
    module = importlib.import_module(f"chestxai.sources.{name}")
    return module.load(None if root is None else Path(root), split=split, **options)


# ---------------------------------------------------------------------------------------------------------------------
# What the sources on disk share
# ---------------------------------------------------------------------------------------------------------------------


def image_files(folders: Iterable[Path]) -> dict[str, Path]:
    """PNG and JPEG files of ``folders`` by name without ending; of two equal names the first folder's counts.

    Folders that do not exist and hidden files are passed over; nothing is opened.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        if folder.is_dir():
            for name in sorted(os.listdir(folder)):
                if name.lower().endswith((".png", ".jpg", ".jpeg")) and not name.startswith("."):
                    found.setdefault(Path(name).stem, folder / name)
    return found


def image_size(path: Path) -> tuple[int, int]:
    """``(height, width)`` from the header of a PNG, JPEG or DICOM file; no pixel is decoded.

    Raises:
        ValueError: the header cannot be read.
        ModuleNotFoundError: a DICOM file, and pydicom is not installed; says how to install it.
    """
    if is_dicom(path):
        try:
            found = read_dicom(path, header=True)
        except ValueError as error:
            raise ValueError(
                f"unreadable image header ({path.name}: {type(error.__cause__ or error).__name__})"
            ) from error
        return int(found.Rows), int(found.Columns)
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"unreadable image header ({path.name}: {type(error).__name__})") from error


def csv_rows(
    path: Path, columns: Sequence[str], advice: str, *, fold: bool = True
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells (by column, white space folded, "" where a row is short) of every row that is not blank.

    With ``fold=False`` white space inside a cell, such as the lines of a report, stays as it is.

    A header cell like ``Bbox [x`` or ``h]`` is read as ``x`` and ``h``: NIH's header has its commas inside brackets.

    Raises:
        ValueError: a column is missing or the file is no csv; names file, line and ``advice``.
    """
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.reader(file)
        try:
            # Joined first, for some programs save NIH's header with quotes: "Bbox [x,y,w,h]".
            header = [re.sub(r"^Bbox \[|\]$", "", cell.strip()) for cell in ",".join(next(rows, [])).split(",")]
            missing = [name for name in columns if name not in header]
            if missing:
                first = ",".join(header)[:200]
                raise ValueError(f"{path}: column {', '.join(missing)} missing; its first line is {first!r}. {advice}")
            for row in rows:
                values = [" ".join(cell.split()) if fold else cell.strip() for cell in row]
                if any(values):
                    cells = dict(zip(header, values, strict=False))
                    yield rows.line_num, {name: cells.get(name, "") for name in {*header, *columns}}
        except csv.Error as error:
            raise ValueError(f"{path}:{rows.line_num}: not readable as csv ({error}). {advice}") from error


def split_patients(patients: Iterable[str], fractions: dict[str, float], seed: int = 0) -> dict[str, str]:
    """The split of each patient, as `studies.split_by_patient` gives it."""
    stubs = [Study(name, name, "", "", "", (1, 1)) for name in dict.fromkeys(patients)]
    return {stub.patient: stub.split for stub in split_by_patient(stubs, fractions, seed)}


def fingerprint(source: str, studies: Sequence[Study]) -> str:
    """Names exactly what was loaded: every record, and name and length in bytes of every image file.

    The place of the folder has no say, nor have records that were left out or the order of a study's findings. Pixels
    are not read: an image edited in place without a change of its length is not noticed.
    """
    records = []
    for s in studies:
        file = (s.path.name, os.stat(s.path).st_size) if s.path else ()
        records.append((s.id, s.patient, s.split, s.report, s.size, sorted(map(repr, s.findings)), s.attributes, *file))
    return runs.fingerprint(source, records)
