"""CheXlocalize: 234 and 668 X-rays of CheXpert's validation and test sets with radiologists' outlines of ten
pathologies (Saporta et al. 2022, https://doi.org/10.1038/s42256-022-00536-x).

The folder, as Stanford AIMI gives it (https://aimi.stanford.edu/datasets/chexlocalize)::

    chexlocalize/
      CheXpert/val/patientNNNNN/study1/view1_frontal.jpg, …, CheXpert/test/…       JPEG of the original size
      CheXpert/val_labels.csv, test_labels.csv                     Path and 14 observations, 1 or 0, by consensus
      CheXlocalize/gt_annotations_val.json, gt_annotations_test.json        outlines: image → pathology → polygons
      CheXlocalize/gt_segmentations_val.json, gt_segmentations_test.json    the same as run-length masks of COCO

The earlier names of the images' folder and table, ``CheXpert-v1.0/valid`` and ``valid.csv``, are understood as well.

A `Study` is one frontal image; ``id`` is its key in the json, such as patient64541_study1_view1_frontal, ``patient``
what that begins with. ``size`` is the image file's own, which the outlines must share.

**Findings.** The observations that are one of the eight, present or denied as labelled; Airspace Opacity, as early
files have it, is Lung Opacity. A present one has the radiologists' mask, and a box around each connected part of it.
Enlarged Cardiomediastinum, Lung Lesion and the other observations are named in the report, but are no `Finding`. Masks
are bool, by default at most 1,024 pixels long (a pixel is set when half of it is covered, so that a thousand fit into
memory; one too small for that keeps the pixels it falls in); boxes are exact.

**Reports.** There are none: ``report`` is a sentence made from the labels and ``phrase`` the words of it that name the
finding, as in `nih`.

**Splits.** CheXpert's validation set is val, its test set test; their patients differ. There is nothing to train on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from chestxai import runs
from chestxai.sources import Card, Studies, boxes_of, csv_rows, decode_mask, fingerprint, image_size, smaller_mask
from chestxai.sources.nih import sentence
from chestxai.studies import FINDINGS, Finding, Study

CARD = Card(
    title="CheXlocalize",
    size="234 and 668 images of CheXpert's validation and test sets",
    reports="none; a sentence is made from the labels, in English",
    findings="labels by radiologists; outlines as masks, with the boxes of their parts",
    split="CheXpert's validation set is val, its test set test; nothing to train on",
    cite=("saporta2022chexlocalize", "irvin2019chexpert"),
)

#: Observations of CheXpert that are none of the eight findings, with the words that stand for them in a report.
OTHERS = {
    "Enlarged Cardiomediastinum": "enlarged cardiomediastinum",
    "Lung Lesion": "lung lesion",
    "Pleural Other": "other pleural abnormality",
    "Fracture": "fracture",
    "Support Devices": "support devices",
}
#: The pathologies that have an outline, as the json name them → finding of the book, None for none of the eight.
PATHOLOGIES: dict[str, str | None] = {
    "Airspace Opacity": "Lung Opacity",
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Edema": "Edema",
    "Enlarged Cardiomediastinum": None,
    "Lung Lesion": None,
    "Lung Opacity": "Lung Opacity",
    "Pleural Effusion": "Pleural Effusion",
    "Pneumothorax": "Pneumothorax",
    "Support Devices": None,
}

GET = (
    "Get the folders CheXpert and CheXlocalize from https://aimi.stanford.edu/datasets/chexlocalize (sign in there). "
    "Terms: the agreement of Stanford AIMI that you accept with the download; pass the images on to no one"
)

_VALUES = {"1": True, "1.0": True, "0": False, "0.0": False}


def load(
    root: Path | None, split: str = "test", *, truth: Literal["polygons", "rle"] = "polygons", longest: int = 1024
) -> Studies:
    """The frontal images of one split with labels, made-up reports, masks and boxes; pixels are read when asked for.

    Args:
        root: folder laid out as above.
        split: "val" or "test"; "train" is empty.
        truth: which json masks are read from: "polygons" (drawn filled, outline included, as the authors do) or "rle",
            which needs pycocotools. They are the same masks.
        longest: pixels of a mask's longer side, 1 or more; 0 keeps the resolution of the image.

    Returns:
        Studies in the order of the table. ``skipped`` has one line, with file and line or key, for each image or mask
        that was left out (``reasons()`` counts them).

    Raises:
        FileNotFoundError: images, table or json are not there; says where to get them and on which terms.
        ValueError: a file is damaged or lacks a column, no image is of use, or an unknown option.
        ModuleNotFoundError: "rle" without pycocotools; says how to install it.
    """
    if truth not in ("polygons", "rle") or longest < 0:
        raise ValueError(f"truth is 'polygons' or 'rle' and longest at least 0; got {truth!r}, {longest}")
    if root is None:
        raise FileNotFoundError(f"CheXlocalize is read from disk: give root, the folder that holds it. {GET}")
    if split == "train":
        return Studies([], [], fingerprint("chexlocalize", []))
    images, table = _layout(root, split)
    path = root / "CheXlocalize" / f"gt_{'annotations' if truth == 'polygons' else 'segmentations'}_{split}.json"
    outlines = _json(path)

    studies: list[Study] = []
    skipped: list[str] = []
    seen: dict[str, str] = {}
    rows = list(csv_rows(table, ("Path", *FINDINGS, *OTHERS), GET))
    for line, row in runs.progress(rows, "reading masks", disable=len(rows) < 100):
        where = f"{table.name}:{line}"
        try:
            key, file = _key(row["Path"])
            if seen.setdefault(key, where) != where:
                raise ValueError(f"duplicate row ({key}, first in {seen[key]})")
            if not key.endswith("_frontal"):
                raise ValueError(f"not a frontal view ({key})")
            labels = _labels(row)
            if not (images / file).is_file():
                raise ValueError(f"no image file ({key})")
            size = image_size(images / file)
        except ValueError as error:
            skipped.append(f"{where}: {error}")
            continue
        masks: dict[str, np.ndarray] = {}
        for name, mask in _masks(outlines.get(key), size, f"{path.name}[{key}]", skipped):
            if labels[name]:
                masks[name] = masks[name] | mask if name in masks else mask
            elif mask.any():
                skipped.append(f"{path.name}[{key}]: outline of a finding that the labels deny ({name})")
        present = [name for name in FINDINGS if labels[name]]
        report = sentence([name.lower() for name in present] + [OTHERS[name] for name in OTHERS if labels[name]])
        findings = tuple(_finding(name, labels[name], masks.get(name), report, longest) for name in FINDINGS)
        patient = key.partition("_")[0]
        about: dict[str, str | float] = {"view": row["AP/PA"]} if row.get("AP/PA") else {}
        studies.append(
            Study(key, patient, "chexlocalize", split, report, size, findings, images / file, attributes=about)
        )
    if not studies:
        first = f"; the first problem: {skipped[0]}" if skipped else ""
        raise ValueError(f"{root}: no image of the {split} split is of use{first}. {GET}")
    skipped += [f"{path.name}[{key}]: image that the table does not list" for key in outlines if key not in seen]
    return Studies(studies, skipped, fingerprint("chexlocalize", studies))


def _finding(name: str, present: bool, mask: np.ndarray | None, report: str, longest: int) -> Finding:
    if not present:
        return Finding(name, present=False)
    start = report.lower().index(name.lower())
    phrase = report[start : start + len(name)]
    if mask is None or not mask.any():
        return Finding(name, phrase)
    return Finding(name, phrase, boxes=boxes_of(mask), mask=smaller_mask(mask, longest))


def _masks(outlines: object, size: tuple[int, int], where: str, skipped: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """The mask of each pathology of one image that is one of the eight, bool ``(height, width)``."""
    if outlines is None:
        return
    if not isinstance(outlines, dict):
        skipped.append(f"{where}: not the outlines of an image")
        return
    for name, value in outlines.items():
        if name == "img_size":
            continue
        try:
            if name not in PATHOLOGIES:
                raise ValueError(f"unknown pathology ({name!r})")
            finding = PATHOLOGIES[name]
            if finding is None:
                continue
            if isinstance(value, dict):
                yield finding, decode_mask(value, size)
            else:
                yield finding, _drawn(value, outlines.get("img_size"), size)
        except ValueError as error:
            skipped.append(f"{where}: {error} ({name})" if name in PATHOLOGIES else f"{where}: {error}")


def _drawn(polygons: object, frame: object, size: tuple[int, int]) -> np.ndarray:
    """Bool mask of filled polygons [[[x, y], …], …] in a frame of (height, width)."""
    if frame is not None and (not isinstance(frame, list) or tuple(frame) != size):
        raise ValueError(f"outline in another frame than the image's {size[0]} × {size[1]}")
    canvas = Image.new("1", (size[1], size[0]))
    try:
        for polygon in polygons:
            points = [(float(x), float(y)) for x, y in polygon]
            ImageDraw.Draw(canvas).polygon(points, fill=1, outline=1)
    except (TypeError, ValueError) as error:
        raise ValueError("not a polygon") from error
    return np.array(canvas)


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def _layout(root: Path, split: str) -> tuple[Path, Path]:
    """The folder of the images and the table of their labels."""
    old = {"val": "valid"}.get(split, split)
    for images, table in (
        (root / "CheXpert" / split, root / "CheXpert" / f"{split}_labels.csv"),
        (root / "CheXpert-v1.0" / old, root / "CheXpert-v1.0" / f"{old}.csv"),
    ):
        if images.is_dir():
            if not table.is_file():
                raise FileNotFoundError(f"{images.parent} has no {table.name}. {GET}")
            return images, table
    raise FileNotFoundError(f"{root} has no CheXpert/{split}/, the folder of the images. {GET}")


def _key(path: str) -> tuple[str, str]:
    """The key of an image in the json, and its file below the folder of the images."""
    # The path is made anew from its parts: whatever stands before them, it stays in the folder.
    match = re.search(r"(?:^|/)(patient\d+)/(study\d+)/(view\d+_(?:frontal|lateral))\.jpg$", path, re.ASCII)
    if match is None:
        raise ValueError(f"not the path of an image of CheXpert ({path[:100]!r})")
    return "_".join(match.groups()), "/".join(match.groups()) + ".jpg"


def _labels(row: dict[str, str]) -> dict[str, bool]:
    for name in (*FINDINGS, *OTHERS):
        if row[name] not in _VALUES:
            raise ValueError(f"label is not 0 or 1 ({name}: {row[name]!r})")
    return {name: _VALUES[row[name]] for name in (*FINDINGS, *OTHERS)}


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}. {GET}")
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged or cut off ({error}); download it again. {GET}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: outlines by image are needed, this is a {type(found).__name__}. {GET}")
    return found
