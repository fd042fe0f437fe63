"""NIH ChestX-ray14: 112,120 frontal X-rays of 30,805 patients, labels mined from reports that were never released, and
984 radiologists' boxes (Wang et al. 2017, https://arxiv.org/abs/1705.02315).

The folder, as the NIH Clinical Center gives it (https://nihcc.app.box.com/v/ChestXray-NIHCC)::

    nih/
      images/ or images_001/images/ … images_012/images/     00000001_000.png … (PNG or JPEG, square, any resolution)
      Data_Entry_2017_v2020.csv or Data_Entry_2017.csv        labels, one row an image
      BBox_List_2017.csv                                      boxes in a frame of 1024 × 1024
      train_val_list.txt, test_list.txt                       optional: the official split
      *_boxes.csv                                             optional: more boxes in the same frame,
                                                              Image Index,Finding Label,x,y,w,h

Boxes live in a frame of 1024 × 1024 pixels whatever the file's resolution, so ``Study.size`` is (1024, 1024).

**Findings.** Six labels of NIH are findings of the book under the same name. Effusion is Pleural Effusion, and
Infiltration (Infiltrate in the list of boxes) is Lung Opacity, as the word is read in reports. Mass, Nodule, Emphysema,
Fibrosis, Pleural_Thickening and Hernia are none of the eight: they are named in the report and kept in
``attributes["labels"]``, but are no `Finding`, and their boxes are left out. A box is stronger evidence than a mined
label: a finding with a box is present even where the label is missing or says "No Finding". The labels' authors
estimate that more than nine in ten are right; "No Finding" says that none of the fourteen was found, not that the chest
is normal. What is not named is not known to be absent, so there are no negated findings.

**Reports.** There are none. ``Study.report`` is a sentence made from the labels, such as "Pleural effusion and
pneumothorax." or "No finding."; ``Finding.phrase`` are the words of it that name the finding, so a prompt for grounding
is the name of the finding. All boxes of one finding in one image belong to one `Finding`.

**Splits.** See `load`: patients never straddle two, and boxes are for scoring only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chestxai.sources import Card, Studies, csv_rows, fingerprint, image_files, image_size, split_patients
from chestxai.studies import FINDINGS, Box, Finding, Study

CARD = Card(
    title="NIH ChestX-ray14",
    size="112,120 frontal images of 30,805 patients; 984 boxes",
    reports="none; a sentence is made from the labels, in English",
    findings="seven labels that are one of the eight, mined from reports; boxes by a radiologist",
    split="the official list, the rest 90 : 10; without it 80 : 10 : 10 by patient, those with boxes never in train",
    cite=("wang2017chestxray8",),
)

#: Side of the square frame in which all boxes of ChestX-ray14 are given, in pixels.
FRAME = 1024

#: NIH's labels (and the two names of the book that differ) → findings of the book.
LABELS = {
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Edema": "Edema",
    "Effusion": "Pleural Effusion",
    "Infiltrate": "Lung Opacity",
    "Infiltration": "Lung Opacity",
    "Lung Opacity": "Lung Opacity",
    "Pleural Effusion": "Pleural Effusion",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
}
#: NIH's labels that are none of the eight findings, with the words that stand for them in a report.
OTHERS = {
    "Emphysema": "emphysema",
    "Fibrosis": "fibrosis",
    "Hernia": "hernia",
    "Mass": "mass",
    "Nodule": "nodule",
    "Pleural_Thickening": "pleural thickening",
}
NORMAL = "No Finding"

#: Shares of the patients without official lists; of those in the official train_val list; of those with a box.
FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
TRAIN_VAL = {"train": 0.9, "val": 0.1}
BOXED = {"val": 0.2, "test": 0.8}

GET = (
    "Download images, Data_Entry_2017_v2020.csv and BBox_List_2017.csv from the NIH Clinical Center's page, "
    "https://nihcc.app.box.com/v/ChestXray-NIHCC. No credentials are asked for. Terms: use is unrestricted, "
    "but link to that page, acknowledge the NIH Clinical Center and cite Wang et al., CVPR 2017"
)


@dataclass(frozen=True)
class _Entry:
    name: str
    where: str
    patient: str
    labels: tuple[str, ...]
    attributes: dict[str, str | float]


#: Boxes of one image: finding → the boxes and the csv line of each.
_Boxes = dict[str, list[tuple[Box, str]]]
#: A line of ``skipped`` and the patient it is about ("" where the record does not tell).
_Note = tuple[str, str]


def load(
    root: Path | None, split: str = "test", *, boxes: Literal["auto", "test", "any"] = "auto", seed: int = 0
) -> Studies:
    """The images of one split with labels, made-up reports and boxes; pixels are read later, when asked for.

    A patient's split depends on the identifier, the seed and these rules only:

    - With ``train_val_list.txt`` and ``test_list.txt``: the official test list is the test split; patients of the
      other list are divided 90 : 10 into train and val. All of NIH's own boxes are in the official test list.
    - Without them: patients are divided 80 : 10 : 10 into train, val and test.
    - ``boxes="test"`` (what "auto" means without official lists) then moves every patient with a usable box out of
      train, 20 : 80 into val and test: boxes are for scoring only, and few. ``boxes="any"`` (what "auto" means with the
      lists) leaves them where they are. "test" with the lists departs from the official split, but gives val boxes.

    Args:
        root: folder laid out as above.
        split: "train", "val" or "test".
        boxes: where patients with a box may be: "test", "any" or "auto", see above.
        seed: of the splits.

    Returns:
        Studies in the order of the image names. ``skipped`` has one line, with file and line number, for each image or
        box of this split that was left out (``reasons()`` counts them); a record whose patient is not known, or has no
        usable image, is listed in every split. A box that reaches over the frame is cut to it, and listed if that
        takes more than 0.1 % of it.

    Raises:
        FileNotFoundError: images, labels or boxes are not there; says where to get them.
        ValueError: a csv lacks a column, only one official list is there, no listed image has a file, or ``boxes`` is
            none of the three.
    """
    if boxes not in ("auto", "test", "any"):
        raise ValueError(f"boxes must be 'auto', 'test' or 'any', not {boxes!r}")
    if root is None:
        raise FileNotFoundError(f"NIH ChestX-ray14 is read from disk: give root, the folder that holds it. {GET}")
    folders = [root / "images", *sorted(root.glob("images_*/images")), *sorted(root.glob("images_*"))]
    files = image_files(folders)
    if not files:
        raise FileNotFoundError(
            f"{root} has no images: neither images/ nor images_001/ … hold a PNG or JPEG file. {GET}"
        )
    entries, notes = _entries(root)
    boxed, more = _boxes(root, entries)
    lists = _lists(root)
    held_out = (
        {entries[name].patient for name in boxed} if boxes == "test" or (boxes == "auto" and not lists) else set()
    )
    splits = _splits(entries.values(), lists, held_out, seed)

    studies: list[Study] = []
    for name in sorted(entries):
        entry = entries[name]
        if splits[entry.patient] != split:
            continue
        try:
            if lists and not any(name in listed for listed in lists):
                raise ValueError(f"image in neither official list ({name})")
            if name not in files:
                raise ValueError(f"no image file ({name})")
            height, width = image_size(files[name])
            if height != width:
                raise ValueError(
                    f"image is not square, so that boxes do not fit ({files[name].name}: {height} × {width})"
                )
        except ValueError as error:
            notes.append((f"{entry.where}: {error}", entry.patient))
            more += [
                (f"{where}: box of an image that was left out ({name})", entry.patient)
                for found in boxed.get(name, {}).values()
                for _, where in found
            ]
            continue
        studies.append(_study(entry, boxed.get(name, {}), split, files[name]))
    if not any(name in files for name in entries):
        raise ValueError(
            f"{root}: none of the {len(entries)} images listed has a file among the {len(files)} there. {GET}"
        )
    skipped = [line for line, patient in notes + more if splits.get(patient, split) == split]
    return Studies(studies, skipped, fingerprint("nih", studies))


def _study(entry: _Entry, boxes: _Boxes, split: str, path: Path) -> Study:
    named = {LABELS[label] for label in entry.labels if label in LABELS} | set(boxes)
    findings = [name for name in FINDINGS if name in named]
    report = sentence([name.lower() for name in findings] + [OTHERS[o] for o in entry.labels if o in OTHERS])
    return Study(
        id=entry.name,
        patient=entry.patient,
        source="nih",
        split=split,
        report=report,
        size=(FRAME, FRAME),
        findings=tuple(
            Finding(name, _phrase(name, report), boxes=tuple(box for box, _ in boxes.get(name, [])))
            for name in findings
        ),
        path=path,
        attributes={"labels": "|".join(entry.labels), **entry.attributes},
    )


def sentence(names: Sequence[str]) -> str:
    """The report for findings with these lower-case names: "Edema, lung opacity and mass."; "No finding." for none."""
    if not names:
        return "No finding."
    text = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"{text[0].upper()}{text[1:]}."


def _phrase(name: str, report: str) -> str:
    start = report.lower().index(name.lower())
    return report[start : start + len(name)]


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def _stem(index: str) -> str:
    return re.sub(r"\.(png|jpe?g)$", "", index, flags=re.IGNORECASE)


def _patient(name: str) -> str:
    """The patient an image's name tells, "" if it is not of NIH's form."""
    match = re.fullmatch(r"(\d{8})_\d{3}", name)
    return match[1] if match else ""


def _label(text: str) -> str:
    """NIH's spelling of a label, whatever its case and with blank or underscore; "" for an unknown one."""
    folded = text.strip().replace("_", " ").lower()
    return next((known for known in (NORMAL, *LABELS, *OTHERS) if known.replace("_", " ").lower() == folded), "")


def _csv(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(f"{root} has no {' nor '.join(names)}. {GET}")


def _entries(root: Path) -> tuple[dict[str, _Entry], list[_Note]]:
    path = _csv(root, "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
    entries: dict[str, _Entry] = {}
    notes: list[_Note] = []
    for line, row in csv_rows(path, ("Image Index", "Finding Labels", "Patient ID"), GET):
        name, where = _stem(row["Image Index"]), f"{path.name}:{line}"
        number = row["Patient ID"]
        patient = number.zfill(8) if number.isascii() and number.isdecimal() else ""
        raw = row["Finding Labels"].split("|")
        labels = tuple(map(_label, raw))
        if not name:
            problem = "row without an image"
        elif name in entries:
            problem = f"duplicate row ({name}, first in {entries[name].where})"
        elif not patient:
            problem = f"patient is not a number ({number!r})"
        elif _patient(name) not in ("", patient):
            problem = f"patient is not the one in the image's name ({name}, {number})"
        elif "" in labels:
            problem = f"unknown label ({raw[labels.index('')]!r})"
        elif NORMAL in labels and len(labels) > 1:
            problem = f"No Finding beside a finding ({row['Finding Labels']})"
        else:
            entries[name] = _Entry(name, where, patient, tuple(dict.fromkeys(labels)), _attributes(row))
            continue
        notes.append((f"{where}: {problem}", patient or _patient(name)))
    if not entries:
        raise ValueError(f"{path}: no usable row{f'; the first problem: {notes[0][0]}' if notes else ''}. {GET}")
    return entries, notes


def _attributes(row: dict[str, str]) -> dict[str, str | float]:
    out: dict[str, str | float] = {}
    for key, column in (("view", "View Position"), ("sex", "Patient Gender"), ("sex", "Patient Sex")):
        if row.get(column):
            out[key] = row[column]
    # The first edition writes "058Y", and a few ages beyond 400: those are errors known to its authors.
    age = re.fullmatch(r"0*(\d{1,3})Y?", row.get("Patient Age", ""))
    if age and int(age[1]) <= 120:
        out["age"] = float(age[1])
    return out


def _boxes(root: Path, entries: dict[str, _Entry]) -> tuple[dict[str, _Boxes], list[_Note]]:
    boxes: dict[str, _Boxes] = {}
    notes: list[_Note] = []
    for path in (_csv(root, "BBox_List_2017.csv"), *sorted(root.glob("[!.]*_boxes.csv"))):
        for line, row in csv_rows(path, ("Image Index", "Finding Label", "x", "y", "w", "h"), GET):
            name, where = _stem(row["Image Index"]), f"{path.name}:{line}"
            patient = entries[name].patient if name in entries else _patient(name)
            try:
                label, box = _box(row)
                if name not in entries:
                    raise ValueError(f"box of an image without usable labels ({name})")
                found = boxes.get(name, {}).get(label, [])
                if box in (other for other, _ in found):
                    raise ValueError(f"duplicate box ({name}, {label})")
                inside = box.clipped(FRAME, FRAME)
                if inside is None:
                    raise ValueError(f"box outside the {FRAME} × {FRAME} frame ({name}, {label})")
            except ValueError as error:
                notes.append((f"{where}: {error}", patient))
                continue
            if inside.area < 0.999 * box.area:
                share = inside.area / box.area
                notes.append(
                    (f"{where}: box cut to the {FRAME} × {FRAME} frame ({name}, {label}, {share:.0%} kept)", patient)
                )
            boxes.setdefault(name, {}).setdefault(label, []).append((inside, where))
    return boxes, notes


def _box(row: dict[str, str]) -> tuple[str, Box]:
    label = _label(row["Finding Label"])
    if label in OTHERS:
        raise ValueError(f"box of none of the eight findings ({label})")
    if label not in LABELS:
        raise ValueError(f"unknown label ({row['Finding Label']!r})")
    values = [row[key] for key in "xywh"]
    try:
        return LABELS[label], Box(*map(float, values))
    except ValueError as error:
        raise ValueError(f"not a box ({', '.join(values)})") from error


def _lists(root: Path) -> tuple[frozenset[str], frozenset[str]] | None:
    """The official (train_val, test) lists of image names, None where there are none."""
    paths = [root / "train_val_list.txt", root / "test_list.txt"]
    there = [path.is_file() for path in paths]
    if not any(there):
        return None
    if not all(there):
        lone, gone = paths if there[0] else paths[::-1]
        raise ValueError(f"{root} has {lone.name} but no {gone.name}: add it, or remove both to split at random. {GET}")
    train_val, test = (
        frozenset(map(_stem, path.read_text(encoding="utf-8-sig", errors="replace").split())) for path in paths
    )
    return train_val, test


def _splits(
    entries: Iterable[_Entry],
    lists: tuple[frozenset[str], frozenset[str]] | None,
    held_out: Iterable[str],
    seed: int,
) -> dict[str, str]:
    entries = list(entries)
    patients = sorted({entry.patient for entry in entries})
    if lists is None:
        splits = split_patients(patients, FRACTIONS, seed)
    else:
        # A patient with one image in the test list is kept out of training altogether.
        test = {entry.patient for entry in entries if entry.name in lists[1]}
        splits = split_patients((p for p in patients if p not in test), TRAIN_VAL, seed) | dict.fromkeys(test, "test")
    return splits | split_patients(sorted(held_out), BOXED, seed)
