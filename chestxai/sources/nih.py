"""NIH ChestX-ray14: frontal X-rays with labels mined from reports that were never released, and radiologists' boxes
(Wang et al. 2017, https://arxiv.org/abs/1705.02315).

The layout of the folder and the rules for findings, reports and boxes are in ``data/cards/nih.md``.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chestxai import runs
from chestxai.runs import InputError
from chestxai.sources.cards import Card
from chestxai.sources.records import MOST, Collector, Record, Studies, ensure, image_size, labelled_report
from chestxai.sources.shapes import parse_box
from chestxai.sources.splits import BOXED, FRACTIONS, TRAIN_VAL, split_patients
from chestxai.sources.tables import csv_rows, decode
from chestxai.studies import FINDINGS, Box, Finding, Study

CARD = Card.read("nih")

#: Side of the square frame of all boxes of ChestX-ray14, in pixels.
FRAME = 1024

LABELS, OTHERS = CARD.finding_of(), CARD.others
NORMAL = "No Finding"


def _folded(label: str) -> str:
    return label.strip().replace("_", " ").lower()


_SPELLINGS = {_folded(label): label for label in (NORMAL, *LABELS, *OTHERS)}


@dataclass(slots=True)
class _Entry(Record):
    labels: tuple[str, ...] = ()
    attributes: dict[str, str | float] = field(default_factory=dict)
    boxes: dict[str, list[Box]] = field(default_factory=dict)


def load(root: Path, split: str = "test", *, boxes: Literal["auto", "test", "any"] = "auto", seed: int = 0) -> Studies:
    """Load one split, see `chestxai.sources.load`. The split of a patient depends only on its identifier and the seed.

    Args:
        root: Folder with the layout of the card.
        split: "train", "val" or "test".
        boxes: Where patients with a box may be: "test", "any" or "auto", see the card.
        seed: Of the splits.
    """
    data = Collector(CARD, root, split)
    files = data.images("images", "images_*/images", "images_*")
    entries = _entries(data)
    _add_boxes(data, entries)
    none = f"none of the {len(entries)} images listed has a file among the {len(files)} there"
    ensure(entries.keys() & files.keys(), f"{root}: {none}. {CARD.get}")
    lists = _lists(root)
    data.splits = _splits(entries, lists, seed)
    if boxes == "test" or (boxes == "auto" and not lists):
        data.splits |= split_patients({entry.patient for entry in entries.values() if entry.boxes}, BOXED, seed)

    def study(entry: _Entry) -> Study:
        name = entry.name
        ensure(not lists or any(name in listed for listed in lists), f"image in neither official list ({name})")
        ensure(name in files, f"no image file ({name})")
        path = files[name]
        height, width = image_size(path)
        shape = f"{path.name}: {height} × {width}"
        ensure(height == width, f"image is not square, so that boxes do not fit ({shape})")
        named = {LABELS[label] for label in entry.labels if label in LABELS} | entry.boxes.keys()
        others = [OTHERS[label] for label in entry.labels if label in OTHERS]
        report, phrases = labelled_report([name for name in FINDINGS if name in named], others)
        findings = tuple(Finding(f, phrase, boxes=tuple(entry.boxes.get(f, ()))) for f, phrase in phrases.items())
        about = {"labels": "|".join(entry.labels), **entry.attributes}
        return Study(name, entry.patient, "nih", split, report, (FRAME, FRAME), findings, path, attributes=about)

    in_split = [entries[name] for name in sorted(entries) if data.splits[entries[name].patient] == split]
    return data.studies(in_split, study, allow_none=True)


def _stem(image: str) -> str:
    return re.sub(r"\.(png|jpe?g)$", "", image, flags=re.IGNORECASE)


def _patient(name: str) -> str:
    """The patient in an image's name, "" if it does not have NIH's form."""
    match = re.fullmatch(r"(\d{8})_\d{3}", name)
    return match[1] if match else ""


def _entries(data: Collector) -> dict[str, _Entry]:
    path = data.file("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
    columns = ("Image Index", "Finding Labels", "Patient ID")
    optional = ("View Position", "Patient Gender", "Patient Sex", "Patient Age")
    entries: dict[str, _Entry] = {}
    for where, (image, raw, number, *about) in csv_rows(path, columns, CARD.get, optional):
        name = _stem(image)
        patient = number.zfill(8) if number.isascii() and number.isdecimal() else ""
        labels = [_SPELLINGS.get(_folded(label)) for label in raw.split("|")]
        with data.record(where, patient or _patient(name)):
            ensure(name, "row without an image")
            ensure(name not in entries, f"duplicate row ({name}, first in {getattr(entries.get(name), 'where', '')})")
            ensure(patient, f"patient is not a number ({number!r})")
            ensure(_patient(name) in ("", patient), f"patient is not the one in the image's name ({name}, {number})")
            unknown = [text for text, label in zip(raw.split("|"), labels, strict=True) if label is None]
            ensure(not unknown, f"unknown label ({', '.join(unknown[:1])!r})")
            ensure(NORMAL not in labels or len(labels) == 1, f"No Finding beside a finding ({raw})")
            distinct = tuple(dict.fromkeys(labels))
            entries[name] = _Entry(where, name, patient, labels=distinct, attributes=_attributes(*about))
    data.require(entries, path)
    return entries


def _attributes(view: str, gender: str, sex: str, age: str) -> dict[str, str | float]:
    named = {"view": view, "sex": sex or gender}
    out: dict[str, str | float] = {key: value for key, value in named.items() if value}
    # The first edition writes "058Y", and a few ages beyond 400, which its authors know to be errors.
    years = re.fullmatch(r"0*(\d{1,3})Y?", age)
    return out | ({"age": float(years[1])} if years and int(years[1]) <= 120 else {})


def _add_boxes(data: Collector, entries: dict[str, _Entry]) -> None:
    columns = ("Image Index", "Finding Label", "x", "y", "w", "h")
    paths = (data.file("BBox_List_2017.csv"), *sorted(data.root.glob("[!.]*_boxes.csv")))
    for where, (image, text, *numbers) in (row for path in paths for row in csv_rows(path, columns, CARD.get)):
        name, label = _stem(image), _SPELLINGS.get(_folded(text))
        entry = entries.get(name)
        patient = entry.patient if entry else _patient(name)
        with data.record(where, patient):
            ensure(label not in OTHERS, f"box of none of the eight findings ({label})")
            ensure(label in LABELS, f"unknown label ({text!r})")
            finding, box = LABELS[label], parse_box(numbers)
            ensure(entry, f"box of an image without usable labels ({name})")
            ensure(len(entry.parts) < MOST, f"more than {MOST} boxes of one image ({name})")
            ensure(box not in entry.boxes.get(finding, ()), f"duplicate box ({name}, {finding})")
            inside = data.clip(box, (FRAME, FRAME), where, f"{name}, {finding}", patient)
            entry.boxes.setdefault(finding, []).append(inside)
            entry.parts += (where,)


def _lists(root: Path) -> tuple[frozenset[str], ...]:
    """The official (train_val, test) lists of image names, () if there are none."""
    names = ("train_val_list.txt", "test_list.txt")
    there = [name for name in names if (root / name).is_file()]
    if len(there) == 1:
        (gone,) = {*names} - {*there}
        raise InputError(f"{root} has {there[0]} but no {gone}: add it, or remove both to split at random. {CARD.get}")
    texts = (decode(runs.read_bytes(root / name), str(root / name)) for name in there)
    return tuple(frozenset(map(_stem, text.split())) for text in texts)


def _splits(entries: dict[str, _Entry], lists: tuple[frozenset[str], ...], seed: int) -> dict[str, str]:
    patients = {entry.patient for entry in entries.values()}
    if not lists:
        return split_patients(patients, FRACTIONS, seed)
    # A patient with one image in the test list is kept out of training altogether.
    test = {entry.patient for entry in entries.values() if entry.name in lists[1]}
    return split_patients(patients - test, TRAIN_VAL, seed) | dict.fromkeys(test, "test")
