"""One's own data: a folder with one or more csv files, and images of any kind the book reads beside them.

The folder::

    folder/
      *.csv                    one table, or several with the same columns
      anything/below/it.png    the images: PNG of 8 or 16 bits, JPEG or DICOM (which needs pydicom)

The csv has a header and is separated by commas. Columns, in any order; others are passed over:

======================  ================================================================================================
``image``               the file, by its path from the folder: ``images/0001.png``. Several rows of one image say
                        several things of it
``text``                what the row says: a phrase ("Small left pleural effusion."), or the whole report
``finding``             optional: the name of what the row is about, one of the eight of `studies.FINDINGS` or your own
``x``, ``y``, ``w``,    optional, all four together: a box in pixels of the image as it is stored, (x, y) its upper left
``h``                   corner. For a second box write a second row with the same image, text and finding
``patient``             optional: who it is; images of one person must share it. Without it each image is a patient
``split``               optional: train, val or test; without it patients are divided 80 : 10 : 10
``side``                optional: left, right or bilateral, of the patient; without it the text is asked
======================  ================================================================================================

``patient`` and ``split`` need to stand in one row of an image only. A study is one image, ``id`` its path; its report
are the texts of its rows, each once, in lines. **Findings.** A row with a finding or a box is one finding, its text the
phrase; rows that share image, finding and text are one finding with several boxes. Without a name it is the one present
finding of the eight that `reports.find` reads in the text; where that is none or several, write it down. What has a box
is present; a finding without one is present unless the text denies it. A row with neither is a report: its findings are
all that `reports.find` reads in it.

**Terms** are those of your data, and only you know them. So pages withhold its images, texts and identifiers, as they
do of credentialed data (`chestxai.guard`), until your profile says ``data: {credentialed: false}``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from chestxai import reports, runs
from chestxai.sources import Card, Studies, csv_rows, fingerprint, image_size, split_patients
from chestxai.studies import FINDINGS, Box, Finding, Study

CARD = Card(
    title="Your own data",
    size="what your table lists",
    reports="the texts of your table, in English where findings are to be read in them",
    findings="as your table names them, or read in the texts; boxes where it has them",
    split="as your table has it, else 80 : 10 : 10 by patient",
    cite=(),
)

#: Shares of the patients without a split; which one is whose follows from the name of the patient and the seed alone.
FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}

GET = (
    "It is for your own data: put a csv beside your images with the columns image (path of the file from the folder) "
    "and text, and where you have them finding, x, y, w, h (a box in pixels), patient, split and side; commas between "
    "columns, names of columns in the first line"
)

_SPLITS = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}
_SIDES = ("", "left", "right", "bilateral")
_NUMBERS = ("x", "y", "w", "h")


@dataclass(frozen=True)
class _Row:
    where: str
    image: str
    text: str
    name: str
    side: str
    box: Box | None
    patient: str
    split: str


def load(root: Path | None, split: str = "test", *, seed: int = 0) -> Studies:
    """The images of one split with texts, findings and boxes; pixels are read later, when asked for.

    Args:
        root: folder laid out as above.
        split: "train", "val" or "test": as the csv has it, else 80, 10 and 10 % of the patients (`FRACTIONS`).
        seed: of the split of patients for whom the csv has none.

    Returns:
        Studies in the order of their first rows; ``size`` is the image file's own. ``skipped`` has one line, with file
        and line number, for each row or image of this split that was left out (``reasons()`` counts them); a row whose
        patient is not known is listed in every split. A box that reaches over the image is cut to it, and listed if
        that takes more than 0.1 % of it.

    Raises:
        FileNotFoundError: there is no folder or no csv in it; says what is expected.
        ValueError: a csv lacks a column, no row is of use, no listed image of the split can be read, or a patient is in
            two splits.
        ModuleNotFoundError: an image is DICOM, and pydicom is not installed; says how to install it.
    """
    if root is None:
        raise FileNotFoundError(f"'folder' is read from disk: give root, the folder of your data. {GET}")
    rows, bad = _rows(root)
    images: dict[str, list[_Row]] = {}
    for row in rows:
        images.setdefault(row.image, []).append(row)
    patients = {name: _patient(name, members) for name, members in images.items()}
    splits = _splits(images, patients, seed)
    skipped = [line for line, image in bad if splits.get(patients.get(image, ""), split) == split]

    studies: list[Study] = []
    mine = [name for name in images if splits[patients[name]] == split]
    unusable: list[str] = []
    for name in runs.progress(mine, "reading image headers", disable=len(mine) < 20_000):
        members = images[name]
        path = root / name
        try:
            if not path.is_file():
                raise ValueError(f"no image file ({name})")
            size = image_size(path)
        except ValueError as error:
            unusable.append(f"{members[0].where}: {error}")
            unusable += [f"{row.where}: row of an image that was left out ({name})" for row in members[1:]]
            continue
        report = "\n".join(dict.fromkeys(row.text for row in members))
        findings, lines = _findings(members, size)
        skipped += lines
        studies.append(Study(name, patients[name], "folder", split, report, size, findings, path))
    if mine and not studies:
        raise ValueError(
            f"{root}: none of the {len(mine)} images of the {split} split can be read; the first: {unusable[0]}"
        )
    return Studies(studies, skipped + unusable, fingerprint("folder", studies))


def _findings(rows: Iterable[_Row], size: tuple[int, int]) -> tuple[tuple[Finding, ...], list[str]]:
    """The findings of one image in the order of its rows, and a line for each box left out or cut."""
    found: dict[tuple[str, str], Finding] = {}
    lines: list[str] = []
    for row in rows:
        said = reports.find(row.text)
        if not row.name and row.box is None:
            for finding in said:
                found.setdefault((finding.name, finding.phrase), finding)
            continue
        box = row.box and row.box.clipped(*size)
        where = f"{row.where}: box"
        if row.box is not None and box is None:
            lines.append(f"{where} outside the {size[0]} × {size[1]} image ({row.image})")
            continue
        if box is not None and box.area < 0.999 * row.box.area:
            share = box.area / row.box.area
            lines.append(f"{where} cut to the {size[0]} × {size[1]} image ({row.image}, {share:.0%} kept)")
        if not row.name:
            names = {f.name for f in said if f.present}
            if len(names) != 1:
                told = ", ".join(sorted(names)) or "none of the eight"
                lines.append(f"{where} without a finding, and its text names {'several' if names else 'none'} ({told})")
                continue
        name = row.name or names.pop()
        # A statement that the finding is there says more of a box than one that denies it elsewhere.
        mine = sorted((f for f in said if f.name == name), key=lambda f: not f.present)
        base = mine[0] if mine else Finding(name)
        old = found.get((name, row.text))
        boxes = tuple(dict.fromkeys((*(old.boxes if old else ()), *([box] if box else []))))
        found[name, row.text] = replace(
            base,
            phrase=row.text,
            present=base.present or bool(boxes),
            side=row.side or (old.side if old else None) or base.side,
            boxes=boxes,
        )
    return tuple(found.values()), lines


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def _rows(root: Path) -> tuple[list[_Row], list[tuple[str, str]]]:
    """The usable rows of every csv, and of the others a line and the image it is about ("" where it does not tell)."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder. {GET}")
    paths = sorted(root.glob("[!.]*.csv"))
    if not paths:
        raise FileNotFoundError(f"{root} has no csv file. {GET}")
    rows: list[_Row] = []
    bad: list[tuple[str, str]] = []
    for path in paths:
        for line, cells in csv_rows(path, ("image", "text"), GET, fold=False):
            where = f"{path.name}:{line}"
            given = [key for key in _NUMBERS if key in cells]
            if 0 < len(given) < len(_NUMBERS):
                missing = ", ".join(key for key in _NUMBERS if key not in given)
                raise ValueError(f"{path}: x, y, w and h go together: column {missing} missing. {GET}")
            image = ""
            try:
                image = _image(cells["image"])
                rows.append(_row(where, image, cells))
            except ValueError as error:
                bad.append((f"{where}: {error}", image))
    if not rows:
        raise ValueError(f"{root}: no usable row{f'; the first problem: {bad[0][0]}' if bad else ''}. {GET}")
    return rows, bad


def _image(text: str) -> str:
    """The path of an image from the folder, one spelling for each; it cannot lead out of it."""
    path = PurePosixPath(text.replace("\\", "/"))
    if not path.parts:
        raise ValueError("row without an image")
    if path.is_absolute() or PureWindowsPath(text).drive or ".." in path.parts or "\0" in text:
        raise ValueError(f"not a path inside the folder ({text[:100]!r})")
    return str(path)


def _row(where: str, image: str, cells: dict[str, str]) -> _Row:
    name = " ".join(cells.get("finding", "").split())
    name = next((known for known in FINDINGS if known.lower() == name.lower().replace("_", " ")), name)
    side, split = cells.get("side", "").lower(), cells.get("split", "").lower()
    if not cells["text"]:
        raise ValueError(f"row without a text ({image})")
    if side not in _SIDES:
        raise ValueError(f"unknown side ({side!r}: left, right or bilateral)")
    if split and split not in _SPLITS:
        raise ValueError(f"unknown split ({split!r}: train, val or test)")
    if side and not name and not cells.get("x"):
        raise ValueError(f"side without a finding ({image})")
    box = _box([cells.get(key, "") for key in _NUMBERS])
    return _Row(where, image, cells["text"], name, side, box, cells.get("patient", ""), _SPLITS.get(split, ""))


def _box(numbers: list[str]) -> Box | None:
    if not any(numbers):
        return None
    try:
        return Box(*map(float, numbers))
    except ValueError as error:
        raise ValueError(f"not a box ({', '.join(numbers)})") from error


def _patient(image: str, rows: list[_Row]) -> str:
    named = {row.patient: row.where for row in reversed(rows) if row.patient}
    if len(named) > 1:
        (one, first), (two, second) = list(named.items())[:2]
        raise ValueError(f"{image} is of patient {one!r} in {first} and of {two!r} in {second}: correct one of them")
    return next(iter(named), image)


def _splits(images: dict[str, list[_Row]], patients: dict[str, str], seed: int) -> dict[str, str]:
    """The split of every patient: the one its rows give, else by its name."""
    given: dict[str, tuple[str, str]] = {}
    for image, rows in images.items():
        for row in rows:
            split, where = given.setdefault(patients[image], (row.split, row.where)) if row.split else ("", "")
            if split != row.split:
                raise ValueError(
                    f"patient {patients[image]!r} is in {split} in {where} and in {row.split} in {row.where}: "
                    "all images of a patient must be in one split"
                )
    others = (patient for patient in patients.values() if patient not in given)
    return split_patients(others, FRACTIONS, seed) | {patient: split for patient, (split, _) in given.items()}
