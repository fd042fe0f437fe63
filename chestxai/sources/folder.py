"""Your own data: a folder with one or more csv files, and images of any kind that the book reads.

The columns of the csv and the rules for findings are in ``data/cards/folder.md``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from unicodedata import normalize

from chestxai import reports
from chestxai.runs import InputError, MissingError
from chestxai.sources.cards import Card
from chestxai.sources.records import Collector, Record, Studies, ensure, image_size
from chestxai.sources.shapes import parse_box
from chestxai.sources.splits import FRACTIONS, NAMES, split_patients
from chestxai.sources.tables import csv_rows
from chestxai.studies import FINDINGS, Box, Finding, Study

CARD = Card.read("folder")

# What programs write where there is no box.
_NO_BOX = [{cell} for cell in ("", "nan", "none", "null", "na", "n/a", "-", "0", "0.0", "-1", "-1.0")]


@dataclass(frozen=True)
class _Row:
    where: str
    text: str
    finding: str
    side: str
    box: Box | None
    patient: str
    split: str


def load(root: Path, split: str = "test", *, seed: int = 0) -> Studies:
    """Load one split, see `chestxai.sources.load`.

    Args:
        root: Folder with the layout of the card.
        split: "train", "val" or "test": as the csv has it, otherwise 80, 10 and 10 % of the patients.
        seed: Of the split of patients for whom the csv has none.
    """
    data = Collector(CARD, root, split)
    images = _images(data)
    patients = {name: _patient(name, rows) for name, rows in images.items()}
    splits = _splits(images, patients, seed)
    # A row left out is known by its image, which may be all it tells.
    data.splits = {name: splits[patient] for name, patient in patients.items()}

    def study(record: Record) -> Study:
        name, rows = record.name, images[record.name]
        # Of a name with accents, some systems store the decomposed form.
        path = next((p for form in ("NFC", "NFD") if (p := root / normalize(form, name)).is_file()), root / name)
        size = image_size(path, name)
        report = "\n".join(dict.fromkeys(row.text for row in rows))
        findings = _findings(data, name, rows, size)
        return Study(name, record.patient, "folder", split, report, size, findings, path)

    records = [
        Record(rows[0].where, name, patients[name], parts=tuple(row.where for row in rows))
        for name, rows in images.items()
        if data.splits[name] == split
    ]
    return data.studies(records, study)


def _findings(data: Collector, image: str, rows: Iterable[_Row], size: tuple[int, int]) -> tuple[Finding, ...]:
    """The findings of one image in the order of its rows."""
    findings: dict[tuple[str, str], Finding] = {}
    for row in rows:
        mentions = reports.find(row.text)
        if not row.finding and row.box is None:
            for finding in mentions:
                findings.setdefault((finding.name, finding.phrase), finding)
            continue
        with data.record(row.where):
            boxes = (data.clip(row.box, size, row.where, image),) if row.box else ()
            name = row.finding or _only(mentions)
            # A mention as present says more about a box than a negation elsewhere in the text.
            same = sorted((f for f in mentions if f.name == name), key=lambda f: not f.present)
            base = same[0] if same else Finding(name)
            before = findings.get((name, row.text), Finding(name))
            boxes = tuple(dict.fromkeys((*before.boxes, *boxes)))
            side, present = row.side or before.side or base.side, base.present or bool(boxes)
            findings[name, row.text] = replace(base, phrase=row.text, present=present, side=side, boxes=boxes)
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
    optional = ("finding", "side", "patient", "split")
    for path in paths:
        rows = csv_rows(path, ("image", "text"), CARD.get, optional, together=("x", "y", "w", "h"), fold=False)
        for where, (image, *cells) in rows:
            with data.record(where):
                name = _path(image)
                with data.record(where, name):
                    row = _row(where, name, *cells)
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


def _row(where: str, image: str, text: str, finding: str, side: str, patient: str, split: str, *box: str) -> _Row:
    finding = " ".join(finding.split())
    finding = next((name for name in FINDINGS if name.lower() == finding.lower().replace("_", " ")), finding)
    side, split = side.lower(), split.lower()
    ensure(text, f"row without a text ({image})")
    ensure(side in ("", "left", "right", "bilateral"), f"unknown side ({side!r}: left, right or bilateral)")
    ensure(not split or split in NAMES, f"unknown split ({split!r}: train, val or test)")
    place = None if {*map(str.lower, box)} in _NO_BOX else parse_box(box)
    ensure(not side or finding or place, f"side without a finding ({image})")
    return _Row(where, text, finding, side, place, patient, NAMES.get(split, ""))


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
    others = (patient for patient in patients.values() if patient not in assigned)
    return split_patients(others, FRACTIONS, seed) | {patient: row.split for patient, row in assigned.items()}
