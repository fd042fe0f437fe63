"""PadChest-GR: 4,555 frontal X-rays of one hospital in Alicante with reports in single sentences, Spanish and English,
and radiologists' boxes for the positive ones (Castro et al. 2024, https://arxiv.org/abs/2411.05085).

The folder, as BIMCV gives it (https://bimcv.cipf.es/bimcv-projects/padchest-gr/)::

    padchest/
      grounded_reports_20240819.json            a list of studies; of several such files the latest counts
      master_table.csv                          patient and official split of each study (unpack it if it is packed)
      Padchest_GR_files/ or Padchest_GR_files/PadChest_GR/      PNG of 16 bits, any resolution

A study of the json has ``StudyID``, ``ImageID`` and ``findings``, a list of sentences with ``sentence_en``,
``sentence_es``, ``abnormal``, ``boxes`` and ``extra_boxes`` (a second reader's), ``labels``, ``locations`` and
``progression``. A box is [x1, y1, x2, y2] in fractions of width and height. Any key may be absent or null, except for
the image.

A `Study` is one image; ``id`` is its ImageID without ending, and the report its sentences in one language, a line each.

**Findings.** A positive sentence (``abnormal``; where that is absent, one that has boxes or denies nothing) is a
present finding with its boxes for each of its ``labels`` that is one of the eight (`LABELS`); one without any labels
for each finding of the eight that `reports.find` reads in its English. A negative sentence denies what it names in
English. The phrase is the sentence. Positive sentences about anything else stay in the report only, and their boxes are
listed. Side, zone and severity are read from the English sentence, whatever the report's language.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from chestxai import reports, runs
from chestxai.sources import Card, Studies, csv_rows, fingerprint, image_size
from chestxai.studies import Box, Finding, Study

CARD = Card(
    title="PadChest-GR",
    size="4,555 frontal images of one hospital",
    reports="sentences in Spanish, and in English by translation",
    findings="positive sentences that name one of the eight, with boxes; negative ones as denials",
    split="the official one by patient",
    cite=("castro2024padchestgr",),
)

#: Labels of PadChest → findings of the book, drawn as the lexicon of `reports` draws them: volume loss is Atelectasis,
#: a blunted angle Pleural Effusion, infiltrates and alveolar patterns are Lung Opacity, heart insufficiency is Edema.
LABELS = {
    "alveolar pattern": "Lung Opacity",
    "atelectasis": "Atelectasis",
    "atelectasis basal": "Atelectasis",
    "atypical pneumonia": "Pneumonia",
    "cardiomegaly": "Cardiomegaly",
    "consolidation": "Consolidation",
    "costophrenic angle blunting": "Pleural Effusion",
    "ground glass pattern": "Lung Opacity",
    "heart insufficiency": "Edema",
    "increased density": "Lung Opacity",
    "infiltrates": "Lung Opacity",
    "laminar atelectasis": "Atelectasis",
    "lobar atelectasis": "Atelectasis",
    "loculated fissural effusion": "Pleural Effusion",
    "loculated pleural effusion": "Pleural Effusion",
    "pleural effusion": "Pleural Effusion",
    "pneumonia": "Pneumonia",
    "pneumothorax": "Pneumothorax",
    "pulmonary edema": "Edema",
    "round atelectasis": "Atelectasis",
    "segmental atelectasis": "Atelectasis",
    "total atelectasis": "Atelectasis",
    "volume loss": "Atelectasis",
}

GET = (
    "Get grounded_reports_20240819.json, master_table.csv and Padchest_GR_files from "
    "https://bimcv.cipf.es/bimcv-projects/padchest-gr/. Terms: access on request, for research, under the data use "
    "agreement of BIMCV; pass the data on to no one"
)

_SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
_ORDER = ("train", "val", "test")


def load(
    root: Path | None,
    split: str = "test",
    *,
    language: Literal["en", "es"] = "en",
    readers: Literal["first", "both"] = "first",
) -> Studies:
    """The images of one official split with sentences and boxes; pixels are read later, when asked for.

    Args:
        root: folder laid out as above.
        split: "train", "val" or "test", by patient; one whom the table has in two is in the later.
        language: of the report and of the phrases.
        readers: "first" takes ``boxes``, and ``extra_boxes`` only where there are no others; "both" takes all.

    Returns:
        Studies in the order of the json. ``skipped`` has one line, with the place in the json or csv, for each study,
        sentence or box of this split that was left out (``reasons()`` counts them); one whose patient is not known is
        listed in every split. A box that reaches over the image is cut to it, and listed if that takes more than 0.1 %.

    Raises:
        FileNotFoundError: images, reports or table are not there; says where to get them and on which terms.
        ValueError: a file is damaged or of another format, no image of the split is of use, or an unknown option.
    """
    if language not in ("en", "es") or readers not in ("first", "both"):
        raise ValueError(f"language is 'en' or 'es', readers 'first' or 'both'; got {language!r}, {readers!r}")
    if root is None:
        raise FileNotFoundError(f"PadChest-GR is read from disk: give root, the folder that holds it. {GET}")
    paths = sorted(root.glob("grounded_reports_*.json"))
    folders = [root / "Padchest_GR_files" / "PadChest_GR", root / "Padchest_GR_files"]
    for there, what in (
        (paths, "grounded_reports_*.json"),
        ((root / "master_table.csv").is_file(), "master_table.csv"),
        (folders[1].is_dir(), "Padchest_GR_files/"),
    ):
        if not there:
            raise FileNotFoundError(f"{root} has no {what}. {GET}")
    records = _json(paths[-1])
    patients, splits, notes = _table(root / "master_table.csv")
    skipped = [line for line, patient in notes if splits.get(patient, split) == split]

    studies: list[Study] = []
    unusable: list[str] = []
    seen: dict[str, str] = {}
    mine = 0
    for i, record in enumerate(runs.progress(records, "reading image headers", disable=len(records) < 20_000)):
        where = f"{paths[-1].name}[{i}]"
        patient = ""
        try:
            if not isinstance(record, dict):
                raise ValueError("not a study")
            patient = patients.get(str(record.get("StudyID")), "")
            if splits.get(patient, split) != split:
                continue
            mine += bool(patient)
            name = str(record.get("ImageID") or "")
            # It becomes a path: nothing but the name of a file may pass.
            if not re.fullmatch(r"\w[\w-]{0,199}\.png", name, re.ASCII):
                raise ValueError(f"not an ImageID ({name[:100]!r})")
            if not patient:
                raise ValueError(f"study without a patient and split in master_table.csv ({name})")
            if seen.setdefault(name, where) != where:
                raise ValueError(f"image listed before ({name}, by {seen[name]})")
            path = next((folder / name for folder in folders if (folder / name).is_file()), None)
            if path is None:
                raise ValueError(f"no image file ({name})")
            size = image_size(path)
            report, findings, lines = _read(record, where, size, language, readers)
        except ValueError as error:
            unusable.append(f"{where}: {error}")
            continue
        skipped += lines
        about: dict[str, str | float] = {"study": str(record.get("StudyID"))}
        studies.append(Study(path.stem, patient, "padchest", split, report, size, findings, path, attributes=about))
    if mine and not studies:
        raise ValueError(
            f"{root}: none of the {mine} studies of the {split} split is of use; the first: {unusable[0]}. {GET}"
        )
    return Studies(studies, skipped + unusable, fingerprint("padchest", studies))


def _read(
    record: dict[str, Any], where: str, size: tuple[int, int], language: str, readers: str
) -> tuple[str, tuple[Finding, ...], list[str]]:
    """Report and findings of one study, and a line for each sentence or box left out."""
    texts: list[str] = []
    found: dict[tuple[str, str, bool], Finding] = {}
    lines: list[str] = []
    for j, item in enumerate(record.get("findings") or ()):
        place = f"{where}.findings[{j}]"
        if not isinstance(item, dict) or not _text(item.get(f"sentence_{language}")):
            lines.append(f"{place}: no sentence in this language ({language})")
            continue
        sentence, english = _text(item[f"sentence_{language}"]), _text(item.get("sentence_en"))
        texts.append(sentence)
        said = reports.find(english)
        drawn = item.get("boxes") or []
        if readers == "both" or not drawn:
            drawn = [*drawn, *(item.get("extra_boxes") or [])]
        positive = item.get("abnormal")
        if positive is None:
            positive = bool(drawn) or any(f.present for f in said) or not said
        if not positive:
            for finding in said:
                found[finding.name, sentence, False] = Finding(finding.name, sentence, present=False)
            continue
        labels = [_text(label).lower() for label in item.get("labels") or ()]
        names = [LABELS[label] for label in labels if label in LABELS]
        if not labels:
            names = [f.name for f in said if f.present]
        boxes, more = _boxes(drawn, place, size)
        lines += more
        if boxes and not names:
            lines.append(f"{place}: box of none of the eight findings ({', '.join(labels) or 'no label'})")
        for name in names:
            base = next((f for f in said if f.name == name and f.present), Finding(name))
            about = {"side": base.side, "zone": base.zone, "severity": base.severity}
            found[name, sentence, True] = Finding(name, sentence, boxes=boxes, **about)
    if not texts:
        raise ValueError("study without sentences")
    return "\n".join(texts), tuple(found.values()), lines


def _text(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


def _boxes(drawn: Iterable[object], place: str, size: tuple[int, int]) -> tuple[tuple[Box, ...], list[str]]:
    """Boxes in pixels, each once, from fractions."""
    height, width = size
    boxes: list[Box] = []
    lines: list[str] = []
    for value in drawn:
        try:
            x0, y0, x1, y1 = map(float, value)
            box = Box(x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height)
        except (TypeError, ValueError):
            lines.append(f"{place}: not a box ({str(value)[:80]})")
            continue
        inside = box.clipped(height, width)
        if inside is None:
            lines.append(f"{place}: box outside the image ({value})")
            continue
        if inside.area < 0.999 * box.area:
            lines.append(f"{place}: box cut to the image ({value}, {inside.area / box.area:.0%} kept)")
        boxes.append(inside)
    return tuple(dict.fromkeys(boxes)), lines


def _json(path: Path) -> list[Any]:
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged or cut off ({error}); download it again. {GET}") from error
    if not isinstance(records, list):
        raise ValueError(f"{path}: a list of studies is needed, this is a {type(records).__name__}. {GET}")
    return records


def _table(path: Path) -> tuple[dict[str, str], dict[str, str], list[tuple[str, str]]]:
    """The patient of each study, the split of each patient, and a line, with its patient, for each odd row."""
    patients: dict[str, str] = {}
    splits: dict[str, str] = {}
    notes: list[tuple[str, str]] = []
    for line, row in csv_rows(path, ("StudyID", "PatientID", "split"), GET):
        study, patient, split = row["StudyID"], row["PatientID"], row["split"].lower()
        problem = ""
        if not patient:
            problem = f"row without a patient ({study})"
        elif split not in _SPLITS:
            problem = f"unknown split ({split!r})"
        elif patients.setdefault(study, patient) != patient:
            problem = f"study of two patients ({study})"
        if problem:
            notes.append((f"{path.name}:{line}: {problem}", patient))
        else:
            splits[patient] = max(splits.get(patient, "train"), _SPLITS[split], key=_ORDER.index)
    return patients, splits, notes
