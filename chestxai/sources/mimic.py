"""MIMIC-CXR-JPG (Johnson et al. 2019, https://arxiv.org/abs/1901.07042) with the boxes of MS-CXR (Boecking et al. 2022,
https://arxiv.org/abs/2204.09817), used as in Dombrowski et al. 2024 (https://arxiv.org/abs/2303.17908).

The layout of the folder and the rules for findings and splits are in ``data/cards/mimic.md``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field

from chestxai import reports, runs
from chestxai.runs import InputError
from chestxai.sources.cards import Card
from chestxai.sources.records import MOST, Category, Collector, Item, Record, Studies, ensure, read_items, stated
from chestxai.sources.shapes import Number, parse_box
from chestxai.sources.splits import BOXED, NAMES, later_split, split_patients
from chestxai.sources.tables import csv_rows, decode, read_json
from chestxai.studies import FINDINGS, Finding, Study

CARD = Card.read("mimic")

#: Label of an examination: present, absent, uncertain (-1), or None if its report does not say.
_VALUES = {"": None, "0": 0, "0.0": 0, "1": 1, "1.0": 1, "-1": -1, "-1.0": -1}
# The longest report has 9 kB.
_LARGEST = 1_000_000
_NAME = re.compile(r"\w[\w-]{0,99}", re.ASCII)


@dataclass(slots=True)
class _Image(Record):
    study: str = ""
    view: str = ""
    size: tuple[int, int] = (0, 0)
    boxes: tuple[Finding, ...] = ()  #: one for each box, with its phrase and the row that lists it


def load(
    root: Path,
    split: str = "test",
    *,
    mode: Literal["phrase", "impression"] = "phrase",
    named: bool = True,
    labels: Literal["chexpert", "negbio"] = "chexpert",
    seed: int = 0,
) -> Studies:
    """Load the frontal images of one split, see `chestxai.sources.load`.

    Args:
        root: Folder with the layout of the card.
        split: "train", "val" or "test".
        mode: What the ``phrase`` of a finding with boxes is, and so the prompt that grounds it: "phrase" is MS-CXR's
            label_text, verbatim; "impression" is `reports.prompt` of the report, which joins all boxes of one finding.
        named: Keep only boxes whose phrase names their finding (`reports.name_in`): the paper's filter.
        labels: The labeller whose csv is read.
        seed: Of the split of patients with a phrase.
    """
    data = Collector(CARD, root, split)
    metadata, official, labelled = (
        data.file(*(f"mimic-cxr-{v}-{part}.csv{end}" for v in ("2.1.0", "2.0.0") for end in (".gz", "")))
        for part in ("metadata", "split", labels)
    )
    versions = [f"MS_CXR_Local_Alignment_v{v}.{kind}" for v in ("1.1.0", "1.0.0") for kind in ("csv", "json")]
    aligned = data.file(*(f"{folder}{name}" for name in versions for folder in ("ms-cxr/", "")))
    files = os.path.join(data.file("files"), "")
    images = _images(data, metadata)
    held_out = _add_boxes(data, aligned, images)
    data.splits = _splits(data, official, images, held_out, seed)
    in_split = [image for image in images.values() if data.splits.get(image.patient) == split]
    stated = _labels(data, labelled, {image.study: image.patient for image in in_split})
    data.lengths = []
    texts: dict[str, str] = {}

    def study(image: _Image) -> Study:
        folder = f"p{image.patient[:2]}/p{image.patient}/s{image.study}"
        # Joined as text: for 240,000 images, a Path for each folder would take longer than all else.
        path = f"{files}{folder}/{image.name}.jpg"
        try:
            # One call to the disk for the existence check and the fingerprint.
            file = os.stat(path)
        except OSError as error:
            raise InputError(f"no image file ({image.name})") from error
        ensure(stat.S_ISREG(file.st_mode), f"no image file ({image.name})")
        if image.study not in texts:
            texts[image.study] = _report(root, f"{folder}.txt")
        ensure(image.study in stated or image.boxes, f"no labels (s{image.study})")
        report, (findings, uncertain) = texts[image.study], stated.get(image.study, ((), ""))
        if image.boxes:
            located = _located(data, image, report, mode, named)
            names = {finding.name for finding in located}
            findings = located + tuple(finding for finding in findings if finding.name not in names)
        about = {"view": image.view, "study": image.study} | ({"uncertain": uncertain} if uncertain else {})
        data.lengths.append(file.st_size)
        here = (split, report, image.size, findings, Path(path))
        return Study(image.name, image.patient, "mimic", *here, attributes=about)

    return data.studies(in_split, study)


@cache  # There are far fewer sets of labels than examinations: equal ones share their findings.
def _stated(*labels: str) -> tuple[tuple[Finding, ...], str]:
    """The findings of an examination with these labels over `FINDINGS`, and the names of the uncertain ones."""
    odd = next((label for label in labels if label not in _VALUES), None)
    ensure(odd is None, f"label is not 1, 0, -1 or blank ({odd!r})")
    values = {name: _VALUES[label] for name, label in zip(FINDINGS, labels, strict=True)}
    findings = tuple(Finding(name, present=value != 0) for name, value in values.items() if value is not None)
    return findings, "|".join(name for name, value in values.items() if value == -1)


def _located(data: Collector, image: _Image, report: str, mode: str, named: bool) -> tuple[Finding, ...]:
    """The findings with boxes of one image, in the order of the boxes."""
    width = image.size[1]
    groups: dict[tuple[str, str], list[Finding]] = {}
    for box in image.boxes:
        with data.record(box.where):
            phrase = box.phrase if mode == "phrase" else reports.prompt(report)
            naming = not named or reports.name_in(phrase, box.name)
            ensure(naming, f"{mode} does not name the finding ({box.name})")
            groups.setdefault((box.name, phrase), []).append(box)
    findings = []
    for (name, phrase), members in groups.items():
        places = tuple(dict.fromkeys(box for one in members for box in one.boxes))
        base = stated(reports.find(members[0].phrase), name, places, width)
        findings.append(replace(base, phrase=phrase, present=True, boxes=places, where=members[0].where))
    return tuple(findings)


def _number(column: str, text: str) -> int:
    ensure(re.fullmatch("[1-9][0-9]{0,9}", text), f"{column} is not a number ({text!r})")
    return int(text)


def _images(data: Collector, path: Path) -> dict[str, _Image]:
    """The frontal images of the metadata, by dicom_id."""
    images: dict[str, _Image] = {}
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns")
    for where, (name, patient, study, view, rows, width) in csv_rows(path, columns, CARD.get, fold=False):
        with data.record(where, patient):
            # These become a path: nothing but identifiers may pass.
            ensure(_NAME.fullmatch(name), f"not a dicom_id ({name[:100]!r})")
            _number("subject_id", patient), _number("study_id", study)
            ensure(view in ("AP", "PA"), f"not a frontal view ({view or 'unknown'}, {name})")
            ensure(name not in images, f"duplicate row ({name}, first in {getattr(images.get(name), 'where', '')})")
            size = (_number("Rows", rows), _number("Columns", width))
            images[name] = _Image(where, name, patient, study=study, view=view, size=size)
    data.require(images, path)
    return images


def _add_boxes(data: Collector, path: Path, images: dict[str, _Image]) -> dict[str, str]:
    """Add the boxes to their images; the split MS-CXR gives each patient it names ("train" if it gives none)."""
    patients: dict[str, str] = {}
    columns = ("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height")
    as_json = path.suffix == ".json"
    rows = _annotations(data, path) if as_json else csv_rows(path, columns, CARD.get, ("split",), fold=False)
    for where, (name, label, phrase, file, *numbers, width, height, split) in rows:
        image = images.get(name)
        spelled = re.search(r"\bp([1-9]\d{7})/", file, re.ASCII)
        patient = image.patient if image else spelled[1] if spelled else ""
        if patient:
            patients[patient] = later_split(patients.get(patient, "train"), NAMES.get(split, "train"))
        with data.record(where, patient):
            ensure(label in FINDINGS, f"unknown category ({label!r})")
            ensure(phrase, f"box without a phrase ({name}, {label})")
            ensure(not split or split in NAMES, f"unknown split ({split!r})")
            ensure(image, f"box of no frontal image of the metadata ({name})")
            box, shape = parse_box(numbers), (height.removesuffix(".0"), width.removesuffix(".0"))
            frame = f"{image.size[0]} × {image.size[1]}"
            ensure(shape == tuple(map(str, image.size)), f"box in another frame than the image's {frame} ({name})")
            ensure(len(image.parts) < MOST, f"more than {MOST} boxes of one image ({name})")
            boxed = Finding(label, phrase, boxes=(box.clipped(*image.size),), where=where)
            ensure(boxed not in image.boxes, f"duplicate box ({name}, {label})")
            data.clip(box, image.size, where, f"{name}, {label}", patient)
            image.boxes += (boxed,)
            image.parts += (where,)
    return patients


class _Shown(Item):
    id: int
    file_name: str = ""
    path: str | None = None
    width: int | None = None
    height: int | None = None
    split: str | None = None


class _Aligned(Item):
    image_id: int
    category_id: int
    label_text: str | None = None
    bbox: Annotated[tuple[Number, Number, Number, Number], Field(strict=False)]
    split: str | None = None


def _annotations(data: Collector, path: Path) -> Iterator[tuple[str, list[str]]]:
    """``file:annotations[place]`` and the cells of the csv, from MS-CXR's json.

    An image is named by its file; the json has no split if the csv has none.
    """
    content = read_json(path, dict, CARD.get, ("images", "categories", "annotations"))
    images = {item.id: item for _, item in read_items(data, path, content, "images", _Shown)}
    categories = {item.id: item.name for _, item in read_items(data, path, content, "categories", Category)}
    for where, item in read_items(data, path, content, "annotations", _Aligned):
        image = images.get(item.image_id, _Shown(id=0))
        shown = (image.path, *item.bbox, image.width, image.height, item.split or image.split)
        cells = (PurePosixPath(image.file_name).stem, categories.get(item.category_id), item.label_text, *shown)
        yield where, ["" if cell is None else str(cell).strip() for cell in cells]


def _splits(
    data: Collector, path: Path, images: dict[str, _Image], held_out: dict[str, str], seed: int
) -> dict[str, str]:
    """The split of every patient; images whose patient has none are listed."""
    splits: dict[str, str] = {}
    for where, (patient, split) in csv_rows(path, ("subject_id", "split"), CARD.get, fold=False):
        # There is a row for each image, most of which repeat the split of their patient.
        if patient in splits and splits[patient] == NAMES.get(split):
            continue
        with data.record(where, patient):
            _number("subject_id", patient)
            ensure(split in NAMES, f"unknown split ({split!r})")
            splits[patient] = later_split(splits.get(patient, "train"), NAMES[split])
    splits |= split_patients(held_out, BOXED, seed) | {p: s for p, s in held_out.items() if s != "train"}
    splits |= {image.patient: "test" for image in images.values() if image.patient.startswith("19")}
    for image in images.values():
        if image.patient not in splits:
            data.skip(image.where, f"patient without a split (p{image.patient})", image.patient)
    return splits


def _labels(data: Collector, path: Path, wanted: dict[str, str]) -> dict[str, tuple[tuple[Finding, ...], str]]:
    """What `_stated` gives by study_id, for the examinations ``wanted`` only (study_id → patient)."""
    labels: dict[str, tuple[tuple[Finding, ...], str]] = {}
    for where, (study, *cells) in csv_rows(path, ("study_id", *FINDINGS), CARD.get, fold=False):
        if study in wanted:
            with data.record(where, wanted[study]):
                stated = _stated(*cells)
                ensure(study not in labels, f"duplicate row (s{study})")
                labels[study] = stated
    return labels


def _report(root: Path, name: str) -> str:
    for folder in ("mimic-cxr-reports/files", "files"):
        try:
            content = runs.read_bytes(f"{root}/{folder}/{name}", _LARGEST)
        except FileNotFoundError:
            continue
        except (OSError, InputError) as error:
            raise InputError(f"unreadable report ({name}: {getattr(error, 'strerror', error)})") from error
        text = decode(content, "a report").replace("\r\n", "\n").replace("\r", "\n")
        ensure(text.strip(), f"empty report ({name})")
        return text
    raise InputError(f"no report ({name})")
