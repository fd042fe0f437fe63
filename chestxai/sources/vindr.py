"""VinDr-CXR 1.0.0: 18,000 frontal (PA) X-rays of two hospitals in Hanoi with radiologists' boxes (Nguyen et al. 2022,
https://doi.org/10.1038/s41597-022-01498-w).

The folder, as PhysioNet gives it (https://physionet.org/content/vindr-cxr/1.0.0/)::

    vindr/
      train/, test/                    15,000 and 3,000 DICOM files: 0123456789abcdef0123456789abcdef.dicom
      annotations/annotations_train.csv, annotations_test.csv       one row a box, or "No finding" without one (the csv
                                                                    may also lie in vindr/ itself):
                                       image_id,rad_id,class_name,x_min,y_min,x_max,y_max; test has no rad_id
      annotations/image_labels_train.csv, image_labels_test.csv     optional: 0 or 1 a class, which adds Pneumonia

Images need pydicom and are read as `studies.read_image` says: VOI LUT applied, MONOCHROME1
inverted. ``size`` is rows and columns of the DICOM header, the frame of the boxes.

**Three readers.** Each image of train was read by three radiologists (rad_id) on their own, each of test by five in
consensus. They are joined by this rule, applied to each finding of an image: it is present if at least ``agree`` (2)
readers name it. Their boxes are grouped by average linkage of 1 - IoU, cut where the mean overlap of two groups falls
below ``overlap`` (0.5); a group with boxes of at least ``agree`` readers becomes one box, the mean of its corners;
others are left out and listed. A finding too few readers name is neither present nor denied, but stands in
``attributes["uncertain"]``. The consensus of test is taken as it is.

**Findings.** Seven classes are findings of the book under the same name; Infiltration is Lung Opacity, as in `nih`;
Pneumonia is a label of the image without a box. The other classes are named in the report and kept in
``attributes["labels"]``, but are no `Finding`, and their boxes are left out. What is not named is not known to be
absent.

**Reports.** There are none: ``report`` is a sentence made from the labels and ``phrase`` the words of it that name the
finding, as in `nih`.

**Splits.** Test is the official one; train is divided 90 : 10 into train and val. Which images are of one person is not
told (de-identification took the identifiers out), so each image counts as a patient: intervals may be too narrow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from chestxai import runs
from chestxai.sources import Card, Studies, csv_rows, fingerprint, image_size, split_patients
from chestxai.sources.nih import sentence
from chestxai.studies import FINDINGS, Box, Finding, Study

CARD = Card(
    title="VinDr-CXR",
    size="18,000 frontal images of two hospitals; three radiologists a training image, five a test image",
    reports="none; a sentence is made from the labels, in English",
    findings="eight classes of image labels, seven of them with boxes, joined over readers",
    split="the official test; the official train 90 : 10; each image counts as a patient",
    cite=("nguyen2022vindr",),
)

#: Shares of the images of the official train split.
TRAIN_VAL = {"train": 0.9, "val": 0.1}

#: Classes of VinDr-CXR → findings of the book.
LABELS = {
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Edema": "Edema",
    "Infiltration": "Lung Opacity",
    "Lung Opacity": "Lung Opacity",
    "Pleural effusion": "Pleural Effusion",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
}
#: Classes that are none of the eight findings, with the words that stand for them in a report.
OTHERS = {
    "Aortic enlargement": "aortic enlargement",
    "COPD": "chronic obstructive pulmonary disease",
    "Calcification": "calcification",
    "Clavicle fracture": "clavicle fracture",
    "Emphysema": "emphysema",
    "Enlarged PA": "enlarged pulmonary artery",
    "ILD": "interstitial lung disease",
    "Lung cavity": "lung cavity",
    "Lung cyst": "lung cyst",
    "Lung tumor": "lung tumor",
    "Mediastinal shift": "mediastinal shift",
    "Nodule/Mass": "nodule or mass",
    "Other disease": "other disease",
    "Other diseases": "other disease",
    "Other lesion": "other lesion",
    "Pleural thickening": "pleural thickening",
    "Pulmonary fibrosis": "pulmonary fibrosis",
    "Rib fracture": "rib fracture",
    "Tuberculosis": "tuberculosis",
}
NORMAL = "No finding"

GET = (
    "Get train/, test/ and annotations/ of VinDr-CXR 1.0.0 from https://physionet.org/content/vindr-cxr/1.0.0/. Terms: "
    "credentialed access; complete the training, sign the PhysioNet Credentialed Health Data Use Agreement, and pass "
    "the data on to no one"
)

_CONSENSUS = "consensus"
_CORNERS = ("x_min", "y_min", "x_max", "y_max")


@dataclass
class _Image:
    where: str
    #: The classes each reader names.
    votes: dict[str, set[str]] = field(default_factory=dict)
    #: Finding → reader, box and csv line of each box.
    boxes: dict[str, list[tuple[str, Box, str]]] = field(default_factory=dict)


#: A line of ``skipped`` and the image it is about ("" where the record does not tell).
_Note = tuple[str, str]


def load(root: Path | None, split: str = "test", *, agree: int = 2, overlap: float = 0.5, seed: int = 0) -> Studies:
    """The images of one split with labels, made-up reports and boxes; pixels are read later, when asked for.

    Args:
        root: folder laid out as above; only what belongs to the split need be there.
        split: "train", "val" (both of the official train split) or "test".
        agree: readers of train, 1 to 3, who must name a finding, and draw a box, for it to count.
        overlap: mean IoU in (0, 1] of the boxes that are taken for one.
        seed: of train and val.

    Returns:
        Studies in the order of the csv. ``skipped`` has one line, with file and line number, for each image or box of
        this split that was left out (``reasons()`` counts them). A box that reaches over the image is cut to it, and
        listed if that takes more than 0.1 % of it.

    Raises:
        FileNotFoundError: images or annotations are not there; says where to get them and on which terms.
        ValueError: a csv lacks a column, no image of the split is of use, or an option is out of range.
        ModuleNotFoundError: pydicom is not installed; says how to install it.
    """
    if agree not in (1, 2, 3) or not 0 < overlap <= 1:
        raise ValueError(f"agree is 1, 2 or 3 and overlap above 0, at most 1; got {agree}, {overlap}")
    if root is None:
        raise FileNotFoundError(f"VinDr-CXR is read from disk: give root, the folder that holds it. {GET}")
    part = "test" if split == "test" else "train"
    if not (root / part).is_dir():
        raise FileNotFoundError(f"{root} has no {part}/, the folder of the images. {GET}")
    images, notes = _annotations(_csv(root, f"annotations_{part}.csv"))
    notes += _labels(_csv(root, f"image_labels_{part}.csv", optional=True), images)
    splits = dict.fromkeys(images, "test") if part == "test" else split_patients(images, TRAIN_VAL, seed)
    skipped = [line for line, name in notes if splits.get(name, split) == split]

    studies: list[Study] = []
    mine = [name for name in images if splits[name] == split]
    unusable: list[str] = []
    for name in runs.progress(mine, "reading image headers", disable=len(mine) < 2_000):
        image = images[name]
        path = root / part / f"{name}.dicom"
        try:
            if not path.is_file():
                raise ValueError(f"no image file ({name})")
            size = image_size(path)
        except ValueError as error:
            unusable.append(f"{image.where}: {error}")
            unusable += [
                f"{where}: box of an image that was left out ({name})"
                for found in image.boxes.values()
                for _, _, where in found
                if where != image.where
            ]
            continue
        study, lines = _study(name, image, split, size, path, agree, overlap)
        studies.append(study)
        skipped += lines
    if mine and not studies:
        raise ValueError(
            f"{root}: none of the {len(mine)} images of the {split} split is of use; the first: {unusable[0]}. {GET}"
        )
    return Studies(studies, skipped + unusable, fingerprint("vindr", studies))


def _study(
    name: str, image: _Image, split: str, size: tuple[int, int], path: Path, agree: int, overlap: float
) -> tuple[Study, list[str]]:
    # A consensus is one vote that stands for all.
    needed = 1 if _CONSENSUS in image.votes else agree
    findings: dict[str, int] = {}
    others: dict[str, int] = {}
    for named in image.votes.values():
        for finding in {LABELS[label] for label in named if label in LABELS}:
            findings[finding] = findings.get(finding, 0) + 1
        for words in {OTHERS[label] for label in named if label in OTHERS}:
            others[words] = others.get(words, 0) + 1
    present = [finding for finding in FINDINGS if findings.get(finding, 0) >= needed]
    labels = [words for words in dict.fromkeys(OTHERS.values()) if others.get(words, 0) >= needed]
    boxes: dict[str, tuple[Box, ...]] = {}
    lines: list[str] = []
    for finding, drawn in image.boxes.items():
        inside: list[tuple[str, Box, str]] = []
        for reader, box, where in drawn:
            part = box.clipped(*size)
            if part is None:
                lines.append(f"{where}: box outside the {size[0]} × {size[1]} image ({name}, {finding})")
                continue
            if part.area < 0.999 * box.area:
                share = part.area / box.area
                lines.append(
                    f"{where}: box cut to the {size[0]} × {size[1]} image ({name}, {finding}, {share:.0%} kept)"
                )
            inside.append((reader, part, where))
        if needed == 1 and _CONSENSUS in image.votes:
            boxes[finding] = tuple(dict.fromkeys(box for _, box, _ in inside))
            continue
        joined, alone = join([(reader, box) for reader, box, _ in inside], needed, overlap)
        boxes[finding] = tuple(joined)
        lines += [f"{inside[i][2]}: box too few readers draw ({name}, {finding}, {inside[i][0]})" for i in alone]
    report = sentence([finding.lower() for finding in present] + labels)
    about: dict[str, str | float] = {"labels": "|".join(present + labels)}
    if doubted := [finding for finding in FINDINGS if 0 < findings.get(finding, 0) < needed]:
        about["uncertain"] = "|".join(doubted)
    found = tuple(Finding(f, _phrase(f, report), boxes=boxes.get(f, ())) for f in present)
    return Study(name, name, "vindr", split, report, size, found, path, attributes=about), lines


def _phrase(name: str, report: str) -> str:
    start = report.lower().index(name.lower())
    return report[start : start + len(name)]


def join(boxes: Sequence[tuple[str, Box]], agree: int, overlap: float) -> tuple[list[Box], list[int]]:
    """What readers agree on: the rule of this module for the boxes of one finding, given as (reader, box).

    Returns:
        One box a group that holds at least ``agree`` readers, the mean of the group's corners, in the order of their
        first boxes; and the indices of the boxes in no such group. Save for a tie, the order of the boxes has
        no say.
    """
    if not boxes:
        return [], []
    corners = np.array([(b.x, b.y, b.x + b.w, b.y + b.h) for _, b in boxes])
    groups = np.zeros(len(boxes), int)
    if len(boxes) > 1:
        distances = pdist(corners, lambda a, b: 1 - _iou(a, b))
        groups = fcluster(linkage(distances, "average"), 1 - overlap + 1e-9, "distance")
    joined: list[Box] = []
    alone: list[int] = []
    for group in dict.fromkeys(groups.tolist()):
        members = np.flatnonzero(groups == group)
        if len({boxes[i][0] for i in members}) >= agree:
            x0, y0, x1, y1 = corners[members].mean(axis=0).tolist()
            joined.append(Box(x0, y0, x1 - x0, y1 - y0))
        else:
            alone += members.tolist()
    return joined, sorted(alone)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes, each (x0, y0, x1, y1)."""
    common = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    return float(common / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common))


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def _csv(root: Path, name: str, optional: bool = False) -> Path | None:
    for path in (root / "annotations" / name, root / name):
        if path.is_file():
            return path
    if optional:
        return None
    raise FileNotFoundError(f"{root} has neither annotations/{name} nor {name}. {GET}")


def _class(text: str) -> str:
    """VinDr's spelling of a class, whatever its case; it is not the same in all four files.

    Raises:
        ValueError: there is no such class.
    """
    for known in (*LABELS, *OTHERS, NORMAL):
        if known.lower() == text.lower():
            return known
    raise ValueError(f"unknown class ({text!r})")


def _identifier(text: str) -> str:
    # It becomes a path: nothing but an identifier may pass.
    if not re.fullmatch(r"\w[\w-]{0,99}", text, re.ASCII):
        raise ValueError(f"not an image_id ({text[:100]!r})")
    return text


def _annotations(path: Path) -> tuple[dict[str, _Image], list[_Note]]:
    images: dict[str, _Image] = {}
    notes: list[_Note] = []
    for line, row in csv_rows(path, ("image_id", "class_name", *_CORNERS), GET):
        where, name = f"{path.name}:{line}", ""
        try:
            name = _identifier(row["image_id"])
            label = _class(row["class_name"])
            reader = row.get("rad_id", "") or _CONSENSUS
            image = images.setdefault(name, _Image(where))
            image.votes.setdefault(reader, set()).add(label)
            corners = [row[key] for key in _CORNERS]
            if label == NORMAL or not any(corners):
                continue
            box = _box(corners)
            if label in OTHERS:
                raise ValueError(f"box of none of the eight findings ({label})")
            drawn = image.boxes.setdefault(LABELS[label], [])
            # One place may be called Infiltration and Lung Opacity by the same reader: that is one box of one finding.
            if (reader, box) not in [(other, known) for other, known, _ in drawn]:
                drawn.append((reader, box, where))
        except ValueError as error:
            notes.append((f"{where}: {error}", name))
    if not images:
        raise ValueError(f"{path}: no usable row{f'; the first problem: {notes[0][0]}' if notes else ''}. {GET}")
    return images, notes


def _box(corners: Iterable[str]) -> Box:
    try:
        x0, y0, x1, y1 = map(float, corners)
        return Box(x0, y0, x1 - x0, y1 - y0)
    except ValueError as error:
        raise ValueError(f"not a box ({', '.join(corners)})") from error


def _labels(path: Path | None, images: dict[str, _Image]) -> list[_Note]:
    """Add the classes of whole images to the votes; a line for each row that is of no use."""
    notes: list[_Note] = []
    if path is None:
        return notes
    for line, row in csv_rows(path, ("image_id", "Pneumonia"), GET):
        image = images.get(row["image_id"])
        try:
            if image is None:
                raise ValueError(f"labels of an image without annotations ({row['image_id'][:100]!r})")
            reader = row.get("rad_id") or row.get("rad_ID") or _CONSENSUS
            if row["Pneumonia"] not in ("0", "1", "0.0", "1.0"):
                raise ValueError(f"label is not 0 or 1 ({row['Pneumonia']!r})")
            if float(row["Pneumonia"]):
                image.votes.setdefault(reader, set()).add("Pneumonia")
        except ValueError as error:
            notes.append((f"{path.name}:{line}: {error}", row["image_id"]))
    return notes
