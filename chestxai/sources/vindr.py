"""VinDr-CXR 1.0.0: frontal X-rays of two hospitals in Hanoi with radiologists' boxes (Nguyen et al. 2022,
https://doi.org/10.1038/s41597-022-01498-w).

The layout of the folder and the rule that joins the readers are in ``data/cards/vindr.md``.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from chestxai.sources.cards import Card
from chestxai.sources.records import MOST, Collector, Record, Studies, ensure, frame_of, labelled_report
from chestxai.sources.shapes import parse_box
from chestxai.sources.splits import FRACTIONS, TRAIN_VAL, split_patients
from chestxai.sources.tables import csv_rows
from chestxai.studies import FINDINGS, Box, Finding, Study

CARD = Card.read("vindr")

LABELS, OTHERS = CARD.finding_of(), CARD.others
NORMAL = "No finding"

#: The files do not agree on the case of the classes.
_SPELLINGS = {label.lower(): label for label in (*LABELS, *OTHERS, NORMAL)}
_CONSENSUS = "consensus"
# Classes of whole images have no boxes and a table of their own; train and test spell the last one differently.
_WHOLE = ("Pneumonia", "COPD", "Lung tumor", "Tuberculosis", "Other disease", "Other diseases")
# Kaggle numbers the classes in the order of their names, the normal ones last.
_CLASSES = (
    "Aortic enlargement|Atelectasis|Calcification|Cardiomegaly|Consolidation|ILD|Infiltration|Lung Opacity|Nodule/Mass"
    "|Other lesion|Pleural effusion|Pleural thickening|Pneumothorax|Pulmonary fibrosis|No finding"
).split("|")


@dataclass(slots=True)
class _Image(Record):
    #: Reader → the classes that they name.
    votes: dict[str, set[str]] = field(default_factory=dict)
    #: Finding → reader, box and csv line of each box.
    boxes: dict[str, list[tuple[str, Box, str]]] = field(default_factory=dict)
    #: Height and width of the frame of the boxes as the table has them.
    frame: tuple[str, ...] = ("", "")


def load(root: Path, split: str = "test", *, agree: int = 2, overlap: float = 0.5, seed: int = 0) -> Studies:
    """Load one split, see `chestxai.sources.load`.

    Args:
        root: Folder with the layout of the card; only what belongs to the split is needed.
        split: "train", "val" (both from the official train split) or "test"; of Kaggle's table, 80, 10 and 10 %.
        agree: Number of training readers, 1 to 3, who must name a finding, and draw a box, for it to count.
        overlap: Mean IoU in (0, 1] from which boxes are taken for one.
        seed: Of train and val.
    """
    valid = agree in (1, 2, 3) and 0 < overlap <= 1
    ensure(valid, f"agree is 1, 2 or 3 and overlap above 0, at most 1; got {agree}, {overlap}")
    data = Collector(CARD, root, split)
    part = "test" if split == "test" else "train"
    tables = (f"annotations/annotations_{part}.csv", f"annotations_{part}.csv")
    # Kaggle gives the official train split only.
    kaggle = data.find("train.csv") if data.find(*tables) is None else None
    part = "train" if kaggle else part
    folder = data.file(part)
    images = _annotations(data, kaggle or data.file(*tables))
    if kaggle and (sizes := data.find("train_meta.csv")):
        for _, (name, *frame) in csv_rows(sizes, ("image_id", "dim0", "dim1"), CARD.get):
            if name in images:
                images[name].frame = tuple(frame)
    _add_labels(data, data.find(f"annotations/image_labels_{part}.csv", f"image_labels_{part}.csv"), images)
    shares = FRACTIONS if kaggle else TRAIN_VAL
    data.splits = dict.fromkeys(images, "test") if part == "test" else split_patients(images, shares, seed)

    def study(image: _Image) -> Study:
        files = (folder / f"{image.name}.{ending}" for ending in ("dicom", "dcm", "png", "jpg"))
        path = next((file for file in files if file.is_file()), folder / f"{image.name}.dicom")
        size = frame_of(data.size(path, image.where, image.name), *image.frame)
        # A consensus is one vote that stands for all.
        needed = 1 if _CONSENSUS in image.votes else agree
        findings, others = (
            Counter(name for vote in image.votes.values() for name in {names[label] for label in vote & names.keys()})
            for names in (LABELS, OTHERS)
        )
        boxes = {finding: _joined(data, image, finding, size, needed, overlap) for finding in image.boxes}
        labels = [words for words in dict.fromkeys(OTHERS.values()) if others[words] >= needed]
        present = [finding for finding in FINDINGS if findings[finding] >= needed]
        report, phrases = labelled_report(present, labels)
        about = {"labels": "|".join(present + labels)}
        if doubted := [finding for finding in FINDINGS if 0 < findings[finding] < needed]:
            about["uncertain"] = "|".join(doubted)
        present = tuple(Finding(name, phrase, boxes=boxes.get(name, ())) for name, phrase in phrases.items())
        return Study(image.name, image.name, "vindr", split, report, size, present, path, attributes=about)

    return data.studies([image for name, image in images.items() if data.splits[name] == split], study)


def _joined(
    data: Collector, image: _Image, finding: str, size: tuple[int, int], needed: int, overlap: float
) -> tuple[Box, ...]:
    """The boxes of one finding on which the readers agree."""
    inside: list[tuple[str, Box, str]] = []
    for reader, box, where in image.boxes[finding]:
        with data.record(where):
            inside.append((reader, data.clip(box, size, where, f"{image.name}, {finding}"), where))
    if _CONSENSUS in image.votes:
        return tuple(dict.fromkeys(box for _, box, _ in inside))
    joined, alone = join([(reader, box) for reader, box, _ in inside], needed, overlap)
    for reader, _, where in (inside[i] for i in alone):
        data.skip(where, f"box too few readers draw ({image.name}, {finding}, {reader})")
    return tuple(joined)


def join(boxes: Sequence[tuple[str, Box]], agree: int, overlap: float) -> tuple[list[Box], list[int]]:
    """Join ``boxes`` of one finding, each with its reader, by the rule of the card; ``agree, overlap`` as in `load`.

    One box for each group with enough readers; and the indices of the boxes in no such group.
    """
    # Takes a quarter of a second to import, which no other source needs.
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

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


def _annotations(data: Collector, path: Path) -> dict[str, _Image]:
    images: dict[str, _Image] = {}
    columns, optional = ("image_id", "x_min", "y_min", "x_max", "y_max"), ("rad_id", "height", "width")
    rows = [*csv_rows(path, columns, CARD.get, (*optional, "class_name", "class_id"))]
    consensus = not any(reader for _, (*_, reader, _, _, _, _) in rows)
    for where, (name, *corners, reader, height, width, text, number) in rows:
        # It becomes a path: nothing but an identifier may pass.
        safe = re.fullmatch(r"\w[\w-]{0,99}", name, re.ASCII)
        with data.record(where, name if safe else ""):
            ensure(safe, f"not an image_id ({name[:100]!r})")
            ensure(reader or consensus, f"no rad_id ({name})")
            reader = reader or _CONSENSUS
            text = _CLASSES[int(number)] if not text and re.fullmatch("[0-9]|1[0-4]", number) else text
            ensure(label := _SPELLINGS.get(text.lower()), f"unknown class ({text or number!r})")
            image = images.setdefault(name, _Image(where, name, name, frame=(height, width)))
            image.votes.setdefault(reader, set()).add(label)
            if label == NORMAL or not any(corners):
                continue
            box = parse_box(corners, corners=True)
            ensure(label not in OTHERS, f"box of none of the eight findings ({label})")
            ensure(len(image.parts) < MOST, f"more than {MOST} boxes of one image ({name})")
            entries = image.boxes.setdefault(LABELS[label], [])
            # One place may be called Infiltration and Lung Opacity by the same reader: that is one box of one finding.
            if (reader, box) not in [(other, place) for other, place, _ in entries]:
                entries.append((reader, box, where))
                image.parts += (where,)
    data.require(images, path)
    return images


def _add_labels(data: Collector, path: Path | None, images: dict[str, _Image]) -> None:
    """Add the classes of whole images to the votes."""
    rows = csv_rows(path, ("image_id", *_WHOLE[:1]), CARD.get, (*_WHOLE[1:], "rad_id", "rad_ID")) if path else ()
    for where, (name, *cells) in rows:
        with data.record(where, name):
            ensure(name in images, f"labels of an image without annotations ({name[:100]!r})")
            votes = dict(zip(_WHOLE, cells, strict=False))
            for label, value in votes.items():
                absent = not value and label != _WHOLE[0]  # a class without a column
                ensure(absent or value in ("0", "1", "0.0", "1.0"), f"label is not 0 or 1 ({value!r})")
            if found := {label for label, value in votes.items() if value and float(value)}:
                images[name].votes.setdefault("".join(cells[len(_WHOLE) :]) or _CONSENSUS, set()).update(found)
