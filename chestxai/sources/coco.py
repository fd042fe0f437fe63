"""MS-COCO: photographs with captions and the objects in them (Lin et al. 2014, https://arxiv.org/abs/1405.0312): the
control outside medicine, where a text-to-image model is at home.

The folder, as https://cocodataset.org/#download gives it (2017, or the same of 2014)::

    coco/
      train2017/, val2017/                  000000000139.jpg …
      annotations/instances_train2017.json, instances_val2017.json      80 categories, boxes, masks
      annotations/captions_train2017.json, captions_val2017.json        five captions an image

A `Study` is one photograph, read in grey as every image of the book; ``id`` is its number and ``size`` that of the
json: no image is opened. The report is one of its captions: the one that names most of the categories in the image, of
equals the first, so that there is something to point at.

**Findings** are the categories of the image that the caption names, by the word ("dog", "dogs", "people" for person,
but no "man"), which is the phrase; all boxes of one category belong to one `Finding`, and so does the union of its
masks. Categories that it does not name are left out and listed, as MS-CXR's unnamed phrases are in `mimic`; so are
crowds (``iscrowd``), whose one region stands for many objects. None of the eight findings occurs.

**Splits.** The official val is test, for the official test has no annotations; the official train is divided 90 : 10
into train and val. Each photograph counts as a patient.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from chestxai import runs
from chestxai.sources import (
    Card,
    Studies,
    coco_json,
    coco_masks,
    decode_mask,
    fingerprint,
    smaller_mask,
    split_patients,
)
from chestxai.studies import Box, Finding, Study

CARD = Card(
    title="MS-COCO",
    size="118,287 photographs to train on and 5,000 to test on (2017)",
    reports="English captions, one for each photograph",
    findings="the named ones of 80 categories, with boxes and masks; none of the eight",
    split="the official val is test; the official train 90 : 10",
    cite=("lin2014coco",),
)

#: Shares of the official train split.
TRAIN_VAL = {"train": 0.9, "val": 0.1}
#: Plurals that do not end in s or es.
PLURALS = {"knife": "knives", "mouse": "mice", "person": "people", "scissors": "scissors", "sheep": "sheep"}

GET = (
    "Get 2017 Train or Val images and 2017 Train/Val annotations from https://cocodataset.org/#download, and unpack "
    "them. No credentials are asked for. Terms: annotations CC BY 4.0; each image under its own licence on Flickr"
)


def load(root: Path | None, split: str = "test", *, masks: bool = False, longest: int = 256, seed: int = 0) -> Studies:
    """The photographs of one split with a caption, and boxes of what it names; pixels are read later, when asked for.

    Args:
        root: folder laid out as above; only what belongs to the split need be there.
        split: "train", "val" (both of the official train split) or "test" (the official val).
        masks: decode the masks, too, which needs pycocotools.
        longest: pixels of a mask's longer side, 1 or more, so that they fit into memory; 0 keeps the image's.
        seed: of train and val.

    Returns:
        Studies in the order of the json. ``skipped`` has one line, with the place in the json, for each image, category
        or object of this split that was left out (``reasons()`` counts them). A box that reaches over the image is cut
        to it, and listed if that takes more than 0.1 % of it and a square pixel.

    Raises:
        FileNotFoundError: images or annotations are not there; says where to get them.
        ValueError: a json is damaged or of another format, or no image of the split is of use.
        ModuleNotFoundError: masks without pycocotools; says how to install it.
    """
    if longest < 0:
        raise ValueError(f"longest is at least 0, not {longest}")
    if root is None:
        raise FileNotFoundError(f"MS-COCO is read from disk: give root, the folder that holds it. {GET}")
    if masks:
        coco_masks()
    part = _part(root, "val" if split == "test" else "train")
    path = root / "annotations" / f"instances_{part}.json"
    instances = coco_json(path, ("images", "annotations", "categories"), GET)
    captions: dict[object, list[str]] = {}
    for item in coco_json(root / "annotations" / f"captions_{part}.json", ("annotations",), GET)["annotations"]:
        if isinstance(item, dict) and isinstance(item.get("caption"), str) and item["caption"].strip():
            captions.setdefault(item.get("image_id"), []).append(" ".join(item["caption"].split()))
    names = {c.get("id"): str(c.get("name")) for c in instances["categories"] if isinstance(c, dict)}
    objects: dict[object, list[dict[str, Any]]] = {}
    for item in instances["annotations"]:
        if isinstance(item, dict):
            objects.setdefault(item.get("image_id"), []).append(item)
    images = [item for item in instances["images"] if isinstance(item, dict)]
    numbers = [str(item.get("id")) for item in images]
    splits = dict.fromkeys(numbers, "test") if split == "test" else split_patients(numbers, TRAIN_VAL, seed)

    studies: list[Study] = []
    skipped: list[str] = []
    seen: set[str] = set()
    mine = [item for item in images if splits[str(item.get("id"))] == split]
    for item in runs.progress(mine, "reading objects", disable=len(mine) < 20_000):
        number = str(item.get("id"))
        where = f"{path.name}[{number}]"
        try:
            if number in seen:
                raise ValueError("image listed before")
            file, size = _image(item, root / part)
            if item.get("id") not in captions:
                raise ValueError("no caption")
        except ValueError as error:
            skipped.append(f"{where}: {error}")
            continue
        seen.add(number)
        found = objects.get(item.get("id"), [])
        here = list(dict.fromkeys(names.get(entry.get("category_id"), "") for entry in found))
        caption = max(captions[item["id"]], key=lambda text: sum(bool(_named(text, name)) for name in here if name))
        findings, lines = _findings(found, names, caption, size, longest if masks else None)
        skipped += [f"{where}: {line}" for line in lines]
        studies.append(Study(number, number, "coco", split, caption, size, findings, file))
    if mine and not studies:
        raise ValueError(
            f"{root}: none of the {len(mine)} images of the {split} split is of use; the first: {skipped[0]}. {GET}"
        )
    return Studies(studies, skipped, fingerprint("coco", studies))


def _findings(
    objects: Iterable[dict[str, Any]],
    names: dict[object, str],
    caption: str,
    size: tuple[int, int],
    longest: int | None,
) -> tuple[tuple[Finding, ...], list[str]]:
    """The named categories of one image, and a line for each category or object left out."""
    groups: dict[str, tuple[list[Box], list[np.ndarray]]] = {}
    lines: list[str] = []
    for entry in objects:
        name = names.get(entry.get("category_id"), "")
        try:
            if not name:
                raise ValueError(f"unknown category ({entry.get('category_id')!r})")
            if entry.get("iscrowd"):
                raise ValueError(f"region of a crowd ({name})")
            if not _named(caption, name):
                line = f"caption does not name the category ({name})"
                lines += [line] * (line not in lines)
                continue
            box = _box(entry.get("bbox"))
            inside = box.clipped(*size)
            if inside is None:
                raise ValueError(f"box outside the {size[0]} × {size[1]} image ({name})")
            mask = None if longest is None else _mask(entry.get("segmentation"), size)
            boxes, masks = groups.setdefault(name, ([], []))
            boxes.append(inside)
            masks += [] if mask is None else [mask]
            # Boxes of COCO are rounded to a hundredth: a sliver over the edge is no news.
            if inside.area < 0.999 * box.area and box.area - inside.area > 1:
                raise ValueError(f"box cut to the {size[0]} × {size[1]} image ({name})")
        except ValueError as error:
            lines.append(str(error))
    found = []
    for name, (boxes, masks) in groups.items():
        mask = smaller_mask(np.any(masks, axis=0), longest or 0) if masks else None
        found.append(Finding(name, _named(caption, name), boxes=tuple(dict.fromkeys(boxes)), mask=mask))
    return tuple(found), lines


@cache
def _pattern(name: str) -> re.Pattern[str]:
    words = [rf"{re.escape(name)}(?:s|es)?", *([PLURALS[name]] if name in PLURALS else [])]
    return re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)


def _named(caption: str, name: str) -> str:
    """The words of the caption that name the category, verbatim; "" if there are none."""
    match = _pattern(name).search(caption)
    return match[0] if match else ""


def _box(value: object) -> Box:
    try:
        x, y, w, h = map(float, value)
        return Box(x, y, w, h)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not a box ({str(value)[:80]})") from error


def _mask(segmentation: object, size: tuple[int, int]) -> np.ndarray:
    """Bool ``(height, width)`` of polygons [[x, y, x, y, …], …] or of a run-length mask."""
    if isinstance(segmentation, dict):
        return decode_mask(segmentation, size)
    try:
        polygons = [np.asarray(polygon, dtype=float) for polygon in segmentation]
    except (TypeError, ValueError) as error:
        raise ValueError("not a mask") from error
    if not polygons or any(p.ndim != 1 or p.size < 6 or p.size % 2 or not np.isfinite(p).all() for p in polygons):
        raise ValueError("not a mask")
    # The library draws outside of its memory what is far outside of the image.
    width_height = np.array([size[1], size[0]])
    inside = [np.clip(p.reshape(-1, 2), 0, width_height).ravel().tolist() for p in polygons]
    coco = coco_masks()
    return coco.decode(coco.merge(coco.frPyObjects(inside, *size))).astype(bool)


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def _part(root: Path, name: str) -> str:
    for year in ("2017", "2014"):
        if (root / f"{name}{year}").is_dir():
            return f"{name}{year}"
    raise FileNotFoundError(f"{root} has neither {name}2017/ nor {name}2014/, the folder of the images. {GET}")


def _image(item: dict[str, Any], folder: Path) -> tuple[Path, tuple[int, int]]:
    name, size = str(item.get("file_name")), (item.get("height"), item.get("width"))
    # It becomes a path: nothing but the name of a file may pass.
    if not re.fullmatch(r"\w[\w-]{0,99}\.jpg", name, re.ASCII):
        raise ValueError(f"not the name of an image ({name[:100]!r})")
    if not all(isinstance(n, int) and n > 0 for n in size):
        raise ValueError(f"height and width are not numbers ({size[0]!r}, {size[1]!r})")
    if not (folder / name).is_file():
        raise ValueError(f"no image file ({name})")
    return folder / name, size
