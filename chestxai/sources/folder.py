"""Your own data: a folder with one or more csv files, and images of any kind that the book reads.

The columns of the csv and the rules for findings are in ``data/cards/folder.md``.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from html import unescape
from pathlib import Path, PurePosixPath, PureWindowsPath

from chestxai import reports
from chestxai.reports.sections import LONGEST
from chestxai.runs import InputError, MissingError
from chestxai.sources.cards import Card
from chestxai.sources.records import Collector, Record, Studies, ensure, frame_of, stated
from chestxai.sources.shapes import parse_box
from chestxai.sources.splits import FRACTIONS, NAMES, split_patients
from chestxai.sources.tables import csv_rows, decode
from chestxai.studies import FINDINGS, Box, Finding, Study

CARD = Card.read("folder")

# What people and programs write where there is nothing, no box (in each of its four cells) and no finding.
_NOTHING = r"|<?na[nt]?>?|#?n[./]?/?a\.?|none|null|nil|missing|absent|unknown|false|[-–—.?]+|\[\s*\]|\(\s*\)"
_NO_BOX = re.compile(rf"{_NOTHING}|no(?: box)?|[+-]?(?:0+\.?0*|\.0+)|-1(?:\.0*)?")
_NO_FINDING = re.compile(rf"{_NOTHING}|no(?:[ _-]?findings?)?|normal|healthy|negative")
_FINDING = re.compile(r"[^\W\d_][\w /()&'’+-]{0,79}")
# Markup and escapes of exported texts.
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>")


@dataclass(frozen=True)
class _Row:
    where: str
    text: str
    finding: str
    side: str
    box: Box | None
    patient: str
    split: str
    frame: tuple[str, str]


def load(root: Path, split: str = "test", *, seed: int = 0) -> Studies:
    """Load one split, see `chestxai.sources.load`.

    Args:
        root: Folder with the layout of the card.
        split: "train", "val" or "test": as the csv has it, otherwise 80, 10 and 10 % of the patients.
        seed: Of the split of patients for whom the csv has none.
    """
    data = Collector(CARD, root, split)
    images = _images(data)
    english = data.english({row.text for rows in images.values() for row in rows})
    # The table's text is in one form; names of files may have accents in another, or characters of full width.
    there = () if all(os.path.isfile(root / name) for name in images) else root.rglob("*")
    paths = {decode(path.relative_to(root).as_posix().encode(errors="replace"), ""): path for path in there}
    patients = {name: _patient(name, rows) for name, rows in images.items()}
    splits = _splits(images, patients, seed)
    # A row left out is known by its image, which may be all it tells.
    data.splits = {name: splits[patient] for name, patient in patients.items()}

    def study(record: Record) -> Study:
        name, rows = record.name, images[record.name]
        path = paths.get(name, root / name)
        frames = {row.frame for row in rows} - {("", "")}
        ensure(len(frames) <= 1, f"two frames of one image ({name})")
        size = frame_of(data.size(path, record.where, name), *(frames.pop() if frames else ("", "")))
        report = "\n".join(dict.fromkeys(row.text for row in rows))
        ensure(len(report) <= LONGEST, f"report of more than {LONGEST:,} characters ({name})")
        findings = _findings(data, name, rows, size, english)
        return Study(name, record.patient, "folder", split, report, size, findings, path)

    records = [
        Record(rows[0].where, name, patients[name], parts=tuple(row.where for row in rows))
        for name, rows in images.items()
        if data.splits[name] == split
    ]
    return data.studies(records, study)


def _findings(
    data: Collector, image: str, rows: Iterable[_Row], size: tuple[int, int], english: bool
) -> tuple[Finding, ...]:
    """The findings of one image in the order of its rows; texts are read if they are ``english``."""
    findings: dict[tuple[str, str], Finding] = {}
    for row in rows:
        mentions = [replace(f, where=row.where) for f in reports.find(row.text)] if english else []
        if not row.finding and row.box is None:
            for finding in mentions:
                findings.setdefault((finding.name, finding.phrase), finding)
            continue
        with data.record(row.where):
            boxes = (data.clip(row.box, size, row.where, image),) if row.box else ()
            name = row.finding or _only(mentions)
            before = findings.get((name, row.text), Finding(name, where=row.where))
            boxes = tuple(dict.fromkeys((*before.boxes, *boxes)))
            base = stated(mentions, name, boxes, size[1])
            about = {"side": row.side or before.side or base.side, "boxes": boxes, "where": before.where}
            findings[name, row.text] = replace(base, phrase=row.text, present=base.present or bool(boxes), **about)
    return tuple(findings.values())


def _only(mentions: Iterable[Finding]) -> str:
    """Name of the one present finding."""
    names = sorted({f.name for f in mentions if f.present})
    if len(names) != 1:
        read = f"several ({', '.join(names)})" if names else "none (none of the eight)"
        raise InputError(f"box without a finding, and its text names {read}")
    return names[0]


def _images(data: Collector) -> dict[str, list[_Row]]:
    """The usable rows of all csv files, by image."""
    if not data.root.is_dir():
        raise MissingError(f"{data.root} is not a folder. {CARD.get}")
    paths = sorted(data.root.glob("[!.]*.csv"))
    if not paths:
        raise MissingError(f"{data.root} has no csv file. {CARD.get}")
    images: dict[str, list[_Row]] = {}
    optional = ("finding", "side", "patient", "split", "height", "width")
    for path in paths:
        rows = csv_rows(path, ("image", "text"), CARD.get, optional, together=("x", "y", "w", "h"), fold=False)
        for where, (image, *cells) in rows:
            with data.record(where):
                name = _path(image)
                with data.record(where, name):
                    row = _row(data, where, name, *cells)
                    images.setdefault(name, []).append(row)
    data.require(images, data.root)
    return images


def _path(text: str) -> str:
    """The path of an image from the folder, one spelling for each; it cannot lead out of it."""
    path = PurePosixPath(text.replace("\\", "/"))
    ensure(path.parts, "row without an image")
    outside = path.is_absolute() or PureWindowsPath(text).drive or ".." in path.parts or "\0" in text
    ensure(not outside, f"not a path inside the folder ({text[:100]!r})")
    return str(path)


def _row(data: Collector, where: str, image: str, text: str, *cells: str) -> _Row:
    finding, side, patient, split, height, width, *box = cells
    text = unescape(_TAG.sub(" ", text.replace("\\r", "").replace("\\n", "\n"))).strip()
    patient = "" if re.fullmatch(_NOTHING, patient.lower()) else patient
    side, split = side.lower(), split.lower()
    ensure(any(map(str.isalpha, text)) and not re.fullmatch(_NOTHING, text.lower()), f"row without a text ({image})")
    ensure(side in ("", "left", "right", "bilateral"), f"unknown side ({side!r}: left, right or bilateral)")
    ensure(not split or split in NAMES, f"unknown split ({split!r}: train, val or test)")
    place = None
    if not all(_NO_BOX.fullmatch(cell.lower()) for cell in box):
        # A broken box says nothing against the text of its row.
        with data.record(where, image):
            place = parse_box(box)
    finding = _finding(finding, place)
    ensure(not side or finding or place, f"side without a finding ({image})")
    return _Row(where, text, finding, side, place, patient, NAMES.get(split, ""), (height, width))


def _finding(text: str, box: Box | None) -> str:
    """Name of the finding that a cell states: one of the eight as the book writes it, one of your own, or ""."""
    name = " ".join(text.replace("_", " ").split())
    if _NO_FINDING.fullmatch(text.lower()):
        ensure(not text or box is None, f"box of a row without a finding ({text})")
        return ""
    known = {known.lower(): known for known in FINDINGS}
    if name.lower() in known:
        return known[name.lower()]
    ensure(_FINDING.fullmatch(name), f"not the name of a finding ({text[:80]!r}: letters, one finding a row)")
    # A slip of the pen would be a finding of its own, and so would another name.
    same = [known for known, finding in known.items() if re.fullmatch(reports.SYNONYMS[finding], name.lower())]
    meant = get_close_matches(name.lower(), known, 1, 0.88) or same
    ensure(not meant, f"unknown finding ({name!r}: {known[meant[0]] if meant else ''!r}, or a name less like it)")
    return name


def _patient(image: str, rows: Sequence[_Row]) -> str:
    named = {row.patient: row.where for row in reversed(rows) if row.patient}
    if len(named) > 1:
        (one, first), (two, second) = list(named.items())[:2]
        raise InputError(f"{image} is of patient {one!r} in {first} and of {two!r} in {second}: correct one of them")
    return next(iter(named), image)


def _splits(images: dict[str, list[_Row]], patients: dict[str, str], seed: int) -> dict[str, str]:
    """The split of every patient: the one in its rows, otherwise by its name."""
    assigned: dict[str, _Row] = {}
    for patient, row in ((patients[image], row) for image, rows in images.items() for row in rows if row.split):
        first = assigned.setdefault(patient, row)
        both = f"{first.split} in {first.where} and in {row.split} in {row.where}"
        rule = "all images of a patient must be in one split"
        ensure(first.split == row.split, f"patient {patient!r} is in {both}: {rule}")
    spelled: dict[str, str] = {}
    for patient in patients.values():
        # A program that takes identifiers for numbers writes some of them otherwise.
        number = re.sub(r"\.0+$", "", patient).lstrip("0") if re.fullmatch(r"\d+(?:\.0+)?", patient) else patient
        other = spelled.setdefault(number, patient)
        ensure(other == patient, f"patients {other!r} and {patient!r} may be one person: write each in one way")
    others = (patient for patient in patients.values() if patient not in assigned)
    return split_patients(others, FRACTIONS, seed) | {patient: row.split for patient, row in assigned.items()}
