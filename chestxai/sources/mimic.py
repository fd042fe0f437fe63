"""MIMIC-CXR-JPG with MS-CXR: 377,110 X-rays with the reports of their examinations (Johnson et al. 2019,
https://arxiv.org/abs/1901.07042), and for about a thousand of them the place of each phrase (Boecking et al. 2022,
https://arxiv.org/abs/2204.09817), used as by Dombrowski et al. 2024 (https://arxiv.org/abs/2303.17908).

The folder, as PhysioNet gives it (versions 2.0.0 and 2.1.0; a csv may be packed, .csv.gz, or not)::

    mimic/
      files/p1x/p1xxxxxxx/s5xxxxxxx/….jpg                   images of any resolution, named by dicom_id
      mimic-cxr-2.0.0-metadata.csv.gz, -split.csv.gz, -chexpert.csv.gz (or -negbio.csv.gz, see `load`)
      mimic-cxr-reports/files/p1x/p1xxxxxxx/s5xxxxxxx.txt   from MIMIC-CXR; or files/p1x/p1xxxxxxx/s5xxxxxxx.txt
      ms-cxr/MS_CXR_Local_Alignment_v1.1.0.csv or .json     from MS-CXR, or v1.0.0 (also of MS-CXR 0.1); or in mimic/

A study is one frontal image (AP or PA) with the report of its examination; ``id`` is its dicom_id, ``patient`` the
subject_id. ``size`` is that of the original, from the metadata: no image is opened.

MS-CXR comes twice, as csv and as json in COCO's format, and either will do. Of several the newer version is read, of
one version the csv.

**Findings.** Each phrase of MS-CXR is a present `Finding` with all the boxes drawn for it; two phrases of one image
stay two findings. The other findings are the labels of the examination, without a phrase: 1 is present, 0 denied, and
-1 present, too, as hedged ones are in `reports.find`; ``attributes["uncertain"]`` names those.

**Splits.** Decided by patient. p19 is test. No patient with a row in MS-CXR, of use or not, is trained on: those are
val or test as MS-CXR 1.1 has them, or (MS-CXR 1.0, and "train" there) 20 : 80 by `studies.split_by_patient`. All others
are where the official split has them; one that it has in two is in the later.
"""

from __future__ import annotations

import csv
import gc
import gzip
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Literal

from chestxai import reports, runs
from chestxai.sources import Card, Studies, coco_json, fingerprint, split_patients
from chestxai.studies import FINDINGS, Box, Finding, Study

CARD = Card(
    title="MIMIC-CXR-JPG with MS-CXR",
    size="377,110 images, 227,835 examinations of 65,379 patients (2.0.0); about a thousand phrases with boxes",
    reports="English; names and dates blanked (___)",
    findings="the eight of MS-CXR with phrase and boxes; the others as labelled by CheXpert or NegBio",
    split="the official one by patient; p19 is test; a patient with a phrase is never trained on",
    cite=("johnson2019mimiccxrjpg", "boecking2022mscxr"),
)

#: Shares of the patients with a phrase whom MS-CXR gives no split to score on.
BOXED = {"val": 0.2, "test": 0.8}

GET = (
    "Get images, metadata, split and labels from https://physionet.org/content/mimic-cxr-jpg/, mimic-cxr-reports.zip "
    "(unpack it) from https://physionet.org/content/mimic-cxr/, and boxes from https://physionet.org/content/ms-cxr/. "
    "Terms: credentialed access; complete the training, sign the PhysioNet Credentialed Health Data Use Agreement, and "
    "pass the data on to no one"
)

_SPLITS = {"train": "train", "validate": "val", "val": "val", "test": "test"}
_ORDER = ("train", "val", "test")
_VALUES = {"": None, "0": 0, "0.0": 0, "1": 1, "1.0": 1, "-1": -1, "-1.0": -1}
_NAME = re.compile(r"\w[\w-]{0,99}", re.ASCII)
#: Labels of an examination over `FINDINGS`: 1, 0, -1 (uncertain), or None where its report is silent.
_Values = tuple[int | None, ...]
#: A line of ``skipped`` and the patient it is about ("" where the record does not tell).
_Note = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Image:
    where: str
    name: str
    patient: str
    study: str
    view: str
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Row:
    where: str
    name: str
    phrase: str
    box: Box


@contextmanager
def _uncollected() -> Iterator[None]:
    """Put off the search for unreachable cycles: a fifth of the time here, for a million records that are all kept."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_uncollected()
def load(
    root: Path | None,
    split: str = "test",
    *,
    mode: Literal["phrase", "impression"] = "phrase",
    named: bool = True,
    labels: Literal["chexpert", "negbio"] = "chexpert",
    seed: int = 0,
) -> Studies:
    """The frontal images of one split with reports, labels and boxes; pixels are read later, when asked for.

    Args:
        root: folder laid out as above.
        split: "train", "val" or "test".
        mode: what the ``phrase`` of a finding with boxes is, and so the prompt that grounds it: "phrase" is MS-CXR's
            label_text, verbatim; "impression" is `reports.prompt` of the report, which joins all boxes of one finding.
        named: keep only boxes whose phrase names their finding (`reports.name_in`): the paper's filter.
        labels: whose csv of labels is read.
        seed: of the split of patients with a phrase.

    Returns:
        Studies in the order of the metadata. ``skipped`` has one line, with file and line number, for each image, row
        or box of this split that was left out (``reasons()`` counts them); a record whose patient is not known is
        listed in every split. A box that reaches over the frame is cut to it, and listed if that takes more than 0.1 %.

    Raises:
        FileNotFoundError: a csv or ``files/`` is not there; says where to get it and on which terms.
        ValueError: a csv is damaged or lacks a column, no image of the split is of use, or an unknown option.
    """
    if mode not in ("phrase", "impression") or labels not in ("chexpert", "negbio"):
        raise ValueError(f"mode is 'phrase' or 'impression', labels 'chexpert' or 'negbio'; got {mode!r}, {labels!r}")
    if root is None:
        raise FileNotFoundError(f"MIMIC-CXR-JPG is read from disk: give root, the folder that holds it. {GET}")
    packed = [f"mimic-cxr-{version}-{{}}.csv{end}" for version in ("2.1.0", "2.0.0") for end in (".gz", "")]
    metadata, official, labelled = (
        _find(root, [name.format(part) for name in packed]) for part in ("metadata", "split", labels)
    )
    versions = [f"MS_CXR_Local_Alignment_v{v}.{kind}" for v in ("1.1.0", "1.0.0") for kind in ("csv", "json")]
    aligned = _find(root, [f"{folder}{name}" for name in versions for folder in ("ms-cxr/", "")])
    if not (root / "files").is_dir():
        raise FileNotFoundError(f"{root} has no files/, the folder of the images. {GET}")
    images, notes = _images(metadata)
    boxes, held_out, more = _boxes(aligned, images)
    splits, others = _splits(official, images, held_out, seed)
    mine = [image for image in images.values() if splits.get(image.patient) == split]
    known, unknown = _labels(labelled, {image.study: image.patient for image in mine})
    skipped = [line for line, who in notes + more + others + unknown if splits.get(who, split) == split]

    studies: list[Study] = []
    lengths: list[int] = []
    texts: dict[str, str] = {}
    files = os.path.join(root, "files", "")
    for image in runs.progress(mine, "reading reports", disable=len(mine) < 20_000):
        rows = boxes.get(image.name, [])
        folder = f"p{image.patient[:2]}/p{image.patient}/s{image.study}"
        # Put together as text: of 240,000 images a Path for each folder would take longer than all else.
        path = f"{files}{folder}/{image.name}.jpg"
        try:
            length = _length(path)
            if length is None:
                raise ValueError(f"no image file ({image.name})")
            if image.study not in texts:
                texts[image.study] = _report(root, f"{folder}.txt")
            if image.study not in known and not rows:
                raise ValueError(f"no labels (s{image.study})")
        except ValueError as error:
            skipped.append(f"{image.where}: {error}")
            skipped += [f"{row.where}: box of an image that was left out ({image.name})" for row in rows]
            continue
        report, values = texts[image.study], known.get(image.study, ())
        found = _stated(values)
        if rows:
            boxed, lines = _located(rows, report, mode, named)
            skipped += lines
            located = {finding.name for finding in boxed}
            found = boxed + tuple(finding for finding in found if finding.name not in located)
        about: dict[str, str | float] = {"view": image.view, "study": image.study}
        if -1 in values:
            about["uncertain"] = "|".join(name for name, value in zip(FINDINGS, values, strict=True) if value == -1)
        lengths.append(length)
        studies.append(
            Study(image.name, image.patient, "mimic", split, report, image.size, found, Path(path), attributes=about)
        )
    if mine and not studies:
        first = next(line for line in skipped if line.startswith(f"{mine[0].where}: "))
        raise ValueError(
            f"{root}: none of the {len(mine)} frontal images of the {split} split is of use; the first: {first}. {GET}"
        )
    return Studies(studies, skipped, fingerprint("mimic", studies, lengths))


@cache  # There are far fewer sets of labels than images: equal ones share their findings.
def _stated(values: _Values) -> tuple[Finding, ...]:
    pairs = zip(FINDINGS, values, strict=False)
    return tuple(Finding(name, present=value != 0) for name, value in pairs if value is not None)


def _located(rows: Sequence[_Row], report: str, mode: str, named: bool) -> tuple[tuple[Finding, ...], list[str]]:
    """The findings with boxes of one image, in the order of the rows, and a line for each box left out."""
    groups: dict[tuple[str, str], list[_Row]] = {}
    lines = []
    for row in rows:
        try:
            phrase = row.phrase if mode == "phrase" else reports.prompt(report)
            if named and not reports.name_in(phrase, row.name):
                raise ValueError(f"{mode} does not name the finding ({row.name})")
            groups.setdefault((row.name, phrase), []).append(row)
        except ValueError as error:
            lines.append(f"{row.where}: {error}")
    findings = []
    for (name, phrase), members in groups.items():
        said = next((f for f in reports.find(members[0].phrase) if f.name == name), Finding(name))
        where = {"side": said.side, "zone": said.zone, "severity": said.severity}
        findings.append(Finding(name, phrase, boxes=tuple(dict.fromkeys(row.box for row in members)), **where))
    return tuple(findings), lines


# --- reading ---------------------------------------------------------------------------------------------------------


def _find(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(f"{root} has no {' nor '.join(names)}. {GET}")


def _length(path: str) -> int | None:
    """Bytes of a file, None where there is none: one question to the disk for the index and its fingerprint."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _rows(path: Path, columns: Sequence[str], optional: str = "") -> Iterator[tuple[str, list[str]]]:
    """``file:line`` and the cells of these columns, in this order, of every row that is not blank."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", newline="", encoding="utf-8-sig", errors="replace") as file:
            rows = csv.reader(file)
            header = [cell.strip() for cell in next(rows, [])]
            missing = [name for name in columns if name not in (*header, optional)]
            if missing:
                first = ",".join(header)[:200]
                raise ValueError(f"{path}: column {', '.join(missing)} missing; its first line is {first!r}. {GET}")
            name = path.name
            # Each row is given one more cell, "", for a column that is not there, and more if it is short.
            pick = itemgetter(*(header.index(name) if name in header else len(header) for name in columns))
            for row in rows:
                if any(row):
                    row += [""] * (len(header) + 1 - len(row))
                    yield f"{name}:{rows.line_num}", [*map(str.strip, pick(row))]
    except (csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged or cut off ({error}); delete it and download it again. {GET}") from error


def _number(column: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and text[0] != "0" and len(text) <= 10):
        raise ValueError(f"{column} is not a number ({text!r})")
    return int(text)


def _images(path: Path) -> tuple[dict[str, _Image], list[_Note]]:
    """The frontal images of the metadata, by dicom_id."""
    images: dict[str, _Image] = {}
    notes: list[_Note] = []
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns")
    for where, (name, patient, study, view, height, width) in _rows(path, columns):
        try:
            # These become a path: nothing but identifiers may pass.
            if not _NAME.fullmatch(name):
                raise ValueError(f"not a dicom_id ({name[:100]!r})")
            _number("subject_id", patient), _number("study_id", study)
            if view not in ("AP", "PA"):
                raise ValueError(f"not a frontal view ({view or 'unknown'}, {name})")
            if name in images:
                raise ValueError(f"duplicate row ({name}, first in {images[name].where})")
            size = (_number("Rows", height), _number("Columns", width))
            images[name] = _Image(where, name, patient, study, view, size)
        except ValueError as error:
            notes.append((f"{where}: {error}", patient))
    if not images:
        raise ValueError(f"{path}: no usable row{f'; the first problem: {notes[0][0]}' if notes else ''}. {GET}")
    return images, notes


def _boxes(path: Path, images: dict[str, _Image]) -> tuple[dict[str, list[_Row]], dict[str, str], list[_Note]]:
    """Boxes by image, and the split MS-CXR gives each patient it names ("train" where it gives none)."""
    boxes: dict[str, list[_Row]] = {}
    patients: dict[str, str] = {}
    notes: list[_Note] = []
    columns = ("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height")
    rows = _annotations(path) if path.suffix == ".json" else _rows(path, (*columns, "split"), optional="split")
    for where, (name, label, phrase, file, *numbers, split) in rows:
        spelled = re.search(r"\bp([1-9]\d{7})/", file, re.ASCII)
        patient = images[name].patient if name in images else spelled[1] if spelled else ""
        if patient:
            patients[patient] = max(patients.get(patient, "train"), _SPLITS.get(split, "train"), key=_ORDER.index)
        try:
            if label not in FINDINGS:
                raise ValueError(f"unknown category ({label!r})")
            if not phrase:
                raise ValueError(f"box without a phrase ({name}, {label})")
            if split and split not in _SPLITS:
                raise ValueError(f"unknown split ({split!r})")
            if name not in images:
                raise ValueError(f"box of no frontal image of the metadata ({name})")
            box, size = _box(numbers), images[name].size
            if (float(numbers[5]), float(numbers[4])) != size:
                raise ValueError(f"box in another frame than the image's {size[0]} × {size[1]} ({name})")
            row = _Row(where, label, phrase, box.clipped(*size))
            if row.box is None:
                raise ValueError(f"box outside the {size[0]} × {size[1]} frame ({name}, {label})")
            found = boxes.setdefault(name, [])
            if any((r.name, r.phrase, r.box) == (label, phrase, row.box) for r in found):
                raise ValueError(f"duplicate box ({name}, {label})")
            found.append(row)
            if row.box.area < 0.999 * box.area:
                raise ValueError(f"box cut to the frame ({name}, {label}, {row.box.area / box.area:.0%} kept)")
        except ValueError as error:
            notes.append((f"{where}: {error}", patient))
    return boxes, patients, notes


def _annotations(path: Path) -> Iterator[tuple[str, list[str]]]:
    """``file:annotations[place]`` and the same cells as the rows of the csv, of MS-CXR's json.

    An image is named by its file; the json has no split where the csv has none.
    """
    found = coco_json(path, ("images", "categories", "annotations"), GET)
    images, categories = (
        {item.get("id"): item for item in found[key] if isinstance(item, dict)} for key in ("images", "categories")
    )
    for i, item in enumerate(found["annotations"]):
        item = item if isinstance(item, dict) else {}
        image, category = images.get(item.get("image_id"), {}), categories.get(item.get("category_id"), {})
        numbers = item.get("bbox") if isinstance(item.get("bbox"), list) else []
        cells = (
            PurePosixPath(str(image.get("file_name") or "")).stem,
            category.get("name"),
            item.get("label_text"),
            image.get("path"),
            *(numbers + [None] * 4)[:4],
            image.get("width"),
            image.get("height"),
            item.get("split", image.get("split")),
        )
        yield f"{path.name}:annotations[{i}]", ["" if cell is None else str(cell).strip() for cell in cells]


def _box(numbers: Sequence[str]) -> Box:
    try:
        x, y, w, h, *_ = map(float, numbers)
        return Box(x, y, w, h)
    except ValueError as error:
        raise ValueError(f"not a box ({', '.join(numbers)})") from error


def _splits(
    path: Path, images: dict[str, _Image], held_out: dict[str, str], seed: int
) -> tuple[dict[str, str], list[_Note]]:
    """The split of every patient, and a line for each odd row and each image whose patient has none."""
    splits: dict[str, str] = {}
    notes: list[_Note] = []
    for where, (patient, split) in _rows(path, ("subject_id", "split")):
        # A row an image: most say again what is known.
        if patient in splits and splits[patient] == _SPLITS.get(split):
            continue
        try:
            _number("subject_id", patient)
            if split not in _SPLITS:
                raise ValueError(f"unknown split ({split!r})")
            splits[patient] = max(splits.get(patient, "train"), _SPLITS[split], key=_ORDER.index)
        except ValueError as error:
            notes.append((f"{where}: {error}", patient))
    splits |= split_patients(sorted(held_out), BOXED, seed) | {p: s for p, s in held_out.items() if s != "train"}
    splits |= {image.patient: "test" for image in images.values() if image.patient.startswith("19")}
    lost = [image for image in images.values() if image.patient not in splits]
    return splits, notes + [(f"{i.where}: patient without a split (p{i.patient})", i.patient) for i in lost]


def _labels(path: Path, wanted: dict[str, str]) -> tuple[dict[str, _Values], list[_Note]]:
    """Labels by study_id, of the examinations ``wanted`` only (study_id → patient)."""
    labels: dict[str, _Values] = {}
    # There are far fewer sets of labels than examinations.
    read: dict[tuple[str, ...], tuple[int | str | None, ...]] = {}
    notes: list[_Note] = []
    for where, (study, *cells) in _rows(path, ("study_id", *FINDINGS)):
        if study not in wanted:
            continue
        key = tuple(cells)
        if (values := read.get(key)) is None:
            values = read[key] = tuple(_VALUES.get(cell, cell) for cell in cells)
        if odd := [value for value in values if isinstance(value, str)]:
            notes.append((f"{where}: label is not 1, 0, -1 or blank ({odd[0]!r})", wanted[study]))
        elif study in labels:
            notes.append((f"{where}: duplicate row (s{study})", wanted[study]))
        else:
            labels[study] = values
    return labels, notes


def _report(root: Path, name: str) -> str:
    for folder in ("mimic-cxr-reports/files", "files"):
        try:
            # Bytes, decoded at once: twice as fast as a text file, of which there are 228,000.
            with open(f"{root}/{folder}/{name}", "rb", buffering=0) as file:
                content = file.read()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ValueError(f"unreadable report ({name}: {error.strerror})") from error
        text = content.decode("utf-8-sig", errors="replace").replace("\r\n", "\n").replace("\r", "\n")
        if not text.strip():
            raise ValueError(f"empty report ({name})")
        return text
    raise ValueError(f"no report ({name})")
