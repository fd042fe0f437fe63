"""CheXlocalize: X-rays of CheXpert's validation and test sets with radiologists' outlines (Saporta et al. 2022,
https://doi.org/10.1038/s42256-022-00536-x).

The layout of the folder and the rules for findings and masks are in ``data/cards/chexlocalize.md``.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field, TypeAdapter

from chestxai.runs import InputError
from chestxai.sources.cards import Card
from chestxai.sources.records import Collector, Record, Studies, ensure, frame_of, image_size, labelled_report, valid
from chestxai.sources.shapes import Number, boxes_of, decode_mask, smaller_mask
from chestxai.sources.tables import csv_rows, read_json
from chestxai.studies import FINDINGS, Box, Finding, Study

CARD = Card.read("chexlocalize")

OTHERS = CARD.others
#: Pathologies that have an outline, as the json names them → finding of the book, None for none of the eight.
PATHOLOGIES: dict[str, str | None] = {name: name for name in FINDINGS if name != "Pneumonia"}
PATHOLOGIES |= {"Airspace Opacity": "Lung Opacity"}
PATHOLOGIES |= dict.fromkeys(("Enlarged Cardiomediastinum", "Lung Lesion", "Support Devices"))

_POLYGONS = TypeAdapter(list[Annotated[list[tuple[Number, Number]], Field(min_length=2)]])
_VALUES = {"1": True, "1.0": True, "0": False, "0.0": False}


def load(
    root: Path, split: str = "test", *, truth: Literal["polygons", "rle"] = "polygons", longest: int = 1024
) -> Studies:
    """Load one split, see `chestxai.sources.load`.

    Args:
        root: Folder with the layout of the card.
        split: "val" or "test"; "train" is empty.
        truth: The json that masks are read from: "polygons" (filled, with outline, as by the authors) or "rle".
        longest: Pixels of a mask's longer side, 1 or more; 0 keeps the resolution of the image.
    """
    ensure(longest >= 0, f"longest must be at least 0, got {longest}")
    data = Collector(CARD, root, split)
    if split == "train":
        return data.studies([], Study)
    earlier = {"val": "valid"}.get(split, split)
    folder = data.file(f"CheXpert/{split}", f"CheXpert-v1.0/{earlier}")
    table = data.file(
        f"CheXpert/{split}_labels.csv" if folder.parent.name == "CheXpert" else f"CheXpert-v1.0/{earlier}.csv"
    )
    path = data.file(f"CheXlocalize/gt_{'annotations' if truth == 'polygons' else 'segmentations'}_{split}.json")
    outlines = read_json(path, dict, CARD.get)

    records: dict[str, Record] = {}
    for where, (image, *values, view) in csv_rows(table, ("Path", *FINDINGS, *OTHERS), CARD.get, ("AP/PA",)):
        with data.record(where):
            key, file = _key(image)
            ensure(key not in records, f"duplicate row ({key}, first in {getattr(records.get(key), 'where', '')})")
            cells = dict(zip((*FINDINGS, *OTHERS), values, strict=True))
            records[key] = Record(where, key, cells=(folder / file, view, cells))
    data.require(records, table)
    for key in outlines:
        if key not in records:
            data.skip(f"{path.name}[{key}]", "image that the table does not list")

    def study(record: Record) -> Study:
        key, (file, view, cells) = record.name, record.cells
        ensure(key.endswith("_frontal"), f"not a frontal view ({key})")
        odd = next((item for item in cells.items() if item[1] not in _VALUES), ("", ""))
        ensure(not odd[0], f"label is not 0 or 1 ({odd[0]}: {odd[1]!r})")
        labels = {name: _VALUES[value] for name, value in cells.items()}
        size, drawn = image_size(file, key), outlines.get(key)
        where = f"{path.name}[{key}]"
        masks: dict[str, np.ndarray] = {}
        with data.record(where):
            ensure(isinstance(drawn, dict | None), "not the outlines of an image")
            size = _frame(drawn or {}, size)
            for name, mask in _masks(data, drawn or {}, size, where):
                if labels[name]:
                    masks[name] = masks[name] | mask if name in masks else mask
                elif mask.any():
                    data.skip(where, f"outline of a finding that the labels deny ({name})")
        report, phrases = labelled_report(
            [name for name in FINDINGS if labels[name]], [words for name, words in OTHERS.items() if labels[name]]
        )
        drawn = {name: mask for name, mask in masks.items() if mask.any()}
        places = {n: {"boxes": boxes_of(m), "mask": smaller_mask(m, longest)} for n, m in drawn.items()}
        findings = tuple(Finding(n, phrases.get(n, ""), labels[n], **places.get(n, {})) for n in FINDINGS)
        about = {"view": view} if view else {}
        patient = key.partition("_")[0]
        return Study(key, patient, "chexlocalize", split, report, size, findings, file, attributes=about)

    return data.studies([*records.values()], study)


def _key(path: str) -> tuple[str, str]:
    """The key of an image in the json, and its file in the folder of the images."""
    # The path is built anew from its parts: whatever stands before them, it stays in the folder.
    match = re.search(r"(?:^|/)(patient\d+)/(study\d+)/(view\d+_(?:frontal|lateral))\.jpg$", path, re.ASCII)
    if match is None:
        raise InputError(f"not the path of an image of CheXpert ({path[:100]!r})")
    return "_".join(match.groups()), "/".join(match.groups()) + ".jpg"


def _frame(outlines: dict[str, Any], size: tuple[int, int]) -> tuple[int, int]:
    """The frame (height, width) of an image's outlines: the image may be a resized copy. Without any, ``size``."""
    sizes = (value.get("size") for value in outlines.values() if isinstance(value, dict))
    frame = next(filter(None, (outlines.get("img_size"), *sizes)), size)
    ensure(isinstance(frame, list | tuple) and len(frame) == 2, f"not the frame of an outline ({str(frame)[:40]})")
    return frame_of(size, *map(str, frame))


def _masks(
    data: Collector, outlines: dict[str, Any], size: tuple[int, int], where: str
) -> Iterator[tuple[str, np.ndarray]]:
    """The mask of each pathology of one image that is one of the eight, bool ``(height, width)``."""
    for name, value in outlines.items():
        if name not in PATHOLOGIES and name != "img_size":
            data.skip(where, f"unknown pathology ({name!r})")
        elif finding := PATHOLOGIES.get(name):
            try:
                rle = isinstance(value, dict)
                yield finding, decode_mask(value, size) if rle else _drawn(data, value, size, where)
            except InputError as error:
                data.skip(where, f"{error} ({name})")


def _drawn(data: Collector, polygons: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """Bool mask of filled polygons [[[x, y], …], …] in a frame of (height, width)."""
    canvas = Image.new("1", (size[1], size[0]))
    for polygon in valid(_POLYGONS, polygons, "not a polygon"):
        (x0, y0), (x1, y1) = np.min(polygon, axis=0), np.max(polygon, axis=0)
        data.clip(Box(x0, y0, max(x1 - x0, 1.0), max(y1 - y0, 1.0)), size, where, "outline")
        ImageDraw.Draw(canvas).polygon(polygon, fill=1, outline=1)
    return np.array(canvas)
