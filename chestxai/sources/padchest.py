"""PadChest-GR: frontal X-rays with reports in single sentences, Spanish and English, and radiologists' boxes for the
positive ones (Castro et al. 2024, https://arxiv.org/abs/2411.05085).

The layout of the folder and the rules for findings are in ``data/cards/padchest.md``.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from chestxai import reports
from chestxai.sources.cards import Card
from chestxai.sources.records import MOST, Collector, Item, Record, Studies, ensure, image_size, stated, valid
from chestxai.sources.shapes import parse_box
from chestxai.sources.splits import NAMES, later_split
from chestxai.sources.tables import csv_rows, read_json
from chestxai.studies import Box, Finding, Study

CARD = Card.read("padchest")

Language = Literal["en", "es"]
Readers = Literal["first", "both"]


def load(root: Path, split: str = "test", *, language: Language = "en", readers: Readers = "first") -> Studies:
    """Load one official split, see `chestxai.sources.load`.

    Args:
        root: Folder with the layout of the card.
        split: "train", "val" or "test"; a patient whom the table has in two is in the later.
        language: Of the report and of the phrases.
        readers: "first" takes ``boxes``, and ``extra_boxes`` only if there are no others; "both" takes all.
    """
    data = Collector(CARD, root, split)
    path, table = data.file("grounded_reports_*.json"), data.file("master_table.csv")
    folder = data.file("Padchest_GR_files")
    patients = _patients(data, table)
    seen: dict[str, str] = {}

    def study(record: Record) -> Study:
        item, name = record.cells, record.name
        ensure(isinstance(item, dict), "not a study")
        # It becomes a path: nothing but the name of a file may pass.
        ensure(re.fullmatch(r"\w[\w-]{0,199}\.png", name, re.ASCII), f"not an ImageID ({name[:100]!r})")
        ensure(record.patient, f"study without a patient and split in master_table.csv ({name})")
        first = seen.setdefault(name, record.where)
        ensure(first == record.where, f"image listed before ({name}, by {first})")
        nested = folder / "PadChest_GR" / name
        file = nested if nested.is_file() else folder / name
        size = image_size(file, name)
        sentences = _sentences(data, record, language)
        ensure(sentences, "study without sentences")
        findings: dict[tuple[str, str, bool], Finding] = {}
        for where, text, sentence in sentences:
            for finding in _findings(data, where, text, sentence, size, readers):
                key = finding.name, text, finding.present  # a sentence may occur twice, each time with boxes
                boxes = (*findings.get(key, finding).boxes, *finding.boxes)
                findings[key] = replace(finding, boxes=tuple(dict.fromkeys(boxes)))
        report, about = "\n".join(text for _, text, _ in sentences), {"study": str(item.get("StudyID"))}
        here = (split, report, size, tuple(findings.values()), file)
        return Study(file.stem, record.patient, "padchest", *here, attributes=about)

    records = []
    for i, item in enumerate(read_json(path, list, CARD.get)):
        about = item if isinstance(item, dict) else {}
        patient = patients.get(str(about.get("StudyID")), "")
        records.append(Record(f"{path.name}[{i}]", str(about.get("ImageID") or ""), patient, item))
    in_split = [record for record in records if data.splits.get(record.patient, split) == split]
    # Records that belong to nobody are listed, but a split that has no other is empty, not damaged.
    return data.studies(in_split, study, allow_none=not any(record.patient for record in in_split))


class _Sentence(Item):
    sentence_en: str | None = None
    sentence_es: str | None = None
    abnormal: bool | None = None
    labels: list[str] | None = None
    boxes: Annotated[list[Any], Field(max_length=MOST)] | None = None
    extra_boxes: Annotated[list[Any], Field(max_length=MOST)] | None = None


_SENTENCES, _SENTENCE = TypeAdapter(list[Any] | None), TypeAdapter(_Sentence)


def _sentences(data: Collector, record: Record, language: str) -> list[tuple[str, str, _Sentence]]:
    """Place, text in this language, and item of each sentence of a study."""
    sentences = []
    for i, item in enumerate(valid(_SENTENCES, record.cells.get("findings"), "not sentences") or ()):
        where = f"{record.where}.findings[{i}]"
        with data.record(where):
            sentence = valid(_SENTENCE, item, "not a sentence")
            text = _text(sentence.sentence_en if language == "en" else sentence.sentence_es)
            ensure(text, f"no sentence in this language ({language})")
            sentences.append((where, text, sentence))
    return sentences


def _findings(
    data: Collector, where: str, text: str, sentence: _Sentence, size: tuple[int, int], readers: str
) -> list[Finding]:
    mentions = reports.find(_text(sentence.sentence_en))
    raw_boxes = sentence.boxes or []
    if readers == "both" or not raw_boxes:
        raw_boxes = [*raw_boxes, *(sentence.extra_boxes or [])]
    positive = sentence.abnormal
    if positive is None:
        positive = bool(raw_boxes) or any(f.present for f in mentions) or not mentions
    if not positive:
        return [Finding(f.name, text, present=False) for f in mentions]
    labels = [_text(label).lower() for label in sentence.labels or ()]
    names = [finding for finding, meant in CARD.labels.items() if not {*labels}.isdisjoint(meant)]
    if not labels:
        names = [f.name for f in mentions if f.present]
    boxes = _boxes(data, where, raw_boxes, size)
    if boxes and not names:
        data.skip(where, f"box of none of the eight findings ({', '.join(labels) or 'no label'})")
    findings = []
    for name in names:
        base = stated(mentions, name, boxes, size[1])
        findings.append(replace(base, phrase=text, present=True, boxes=boxes, where=where))
    return findings


def _text(value: str | None) -> str:
    return " ".join((value or "").split())


def _boxes(data: Collector, where: str, raw_boxes: Iterable[Any], size: tuple[int, int]) -> tuple[Box, ...]:
    """Boxes in pixels, each once, from fractions."""
    height, width = size
    boxes: dict[Box, None] = {}
    for value in raw_boxes:
        with data.record(where):
            box = parse_box(value, corners=True)
            box = Box(box.x * width, box.y * height, box.w * width, box.h * height)
            boxes[data.clip(box, size, where, str(value))] = None
    return tuple(boxes)


def _patients(data: Collector, path: Path) -> dict[str, str]:
    """The patient of each study; sets the split of each patient."""
    patients: dict[str, str] = {}
    for where, (study, patient, split) in csv_rows(path, ("StudyID", "PatientID", "split"), CARD.get):
        with data.record(where, patient):
            ensure(patient, f"row without a patient ({study})")
            ensure(split.lower() in NAMES, f"unknown split ({split.lower()!r})")
            ensure(patients.setdefault(study, patient) == patient, f"study of two patients ({study})")
            data.splits[patient] = later_split(data.splits.get(patient, "train"), NAMES[split.lower()])
    return patients
