"""One module per data set; all of them give the same record, `chestxai.studies.Study`."""

from __future__ import annotations

import csv
import importlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from chestxai import runs
from chestxai.studies import Study, split_by_patient

#: Names `load` knows, and what each is.
SOURCES = {
    "phantom": "a digital chest phantom with exact truth (ships with the book)",
    "openi": "Open-i / Indiana University chest X-rays: images and reports, no credentials",
    "nih": "NIH ChestX-ray14: images, labels, and 984 radiologists' boxes, no credentials",
    "mimic": "MIMIC-CXR-JPG with MS-CXR: images, reports, and radiologists' boxes of phrases, credentials of PhysioNet",
}

#: Sources whose images and reports may not be passed on, be it on a published page: their terms bind each user.
CREDENTIALED = frozenset({"mimic"})


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


@dataclass(frozen=True)
class Terms:
    """On which terms a data set is given: its licence, where it stands, and its conditions in one line.

    ``credentialed`` says that images, reports and identifiers bind each user and may not be shown to others: pages of
    such data go through `chestxai.guard`.
    """

    licence: str
    url: str
    conditions: str
    credentialed: bool


_CLOSED = "each user signs; images, reports and identifiers are passed on to no one"
#: Source → licence, address, conditions.
_TERMS = {
    "phantom": ("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", "made from no patient's data; free"),
    "openi": (
        "CC BY-NC-ND 4.0",
        "https://openi.nlm.nih.gov/faq#collection",
        "name the collection; not for commerce; pass on unchanged only",
    ),
    "nih": (
        "NIH Clinical Center's terms",
        "https://nihcc.app.box.com/v/ChestXray-NIHCC",
        "free to use; name the NIH Clinical Center and cite Wang et al. 2017",
    ),
    "folder": ("your own", "", "what may be shown of your own data is yours to know"),
    "coco": (
        "CC BY 4.0 (annotations), Flickr's terms (images)",
        "https://cocodataset.org/#termsofuse",
        "name the COCO Consortium; each image keeps its own licence",
    ),
    "mimic": (
        "PhysioNet Credentialed Health Data License 1.5.0",
        "https://physionet.org/content/mimic-cxr-jpg/",
        _CLOSED,
    ),
    "vindr": (
        "PhysioNet Credentialed Health Data License 1.5.0",
        "https://physionet.org/content/vindr-cxr/",
        _CLOSED,
    ),
    "padchest": (
        "PadChest Dataset Research Use Agreement of BIMCV",
        "https://bimcv.cipf.es/bimcv-projects/padchest-gr/",
        _CLOSED,
    ),
    "chexlocalize": (
        "Stanford University Dataset Research Use Agreement",
        "https://aimi.stanford.edu/datasets/chexlocalize",
        _CLOSED,
    ),
}


def terms(name: str) -> Terms:
    """The terms of a source.

    Raises:
        ValueError: none are known for it, so nothing of it may be shown.
    """
    if name not in _TERMS:
        raise ValueError(f"no terms are known for source {name!r}: known are those of {', '.join(_TERMS)}")
    return Terms(*_TERMS[name], credentialed=name in CREDENTIALED)


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
    """``(height, width)`` from the header of a PNG or JPEG; no pixel is decoded.

    Raises:
        ValueError: the header cannot be read.
    """
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"unreadable image header ({path.name}: {type(error).__name__})") from error


def csv_rows(path: Path, columns: Sequence[str], advice: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells (by column, white space folded, "" where a row is short) of every row that is not blank.

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
                values = [" ".join(cell.split()) for cell in row]
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
