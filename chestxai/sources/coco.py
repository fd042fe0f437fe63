"""MS-COCO: photographs with captions and the objects in them (Lin et al. 2014, https://arxiv.org/abs/1405.0312): the
control outside medicine, where a text-to-image model is at home.

The layout of the folder and the rules for captions and findings are in ``data/cards/coco.md``.
"""

import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from chestxai.runs import InputError
from chestxai.sources.cards import Card
from chestxai.sources.records import Collector, Record, Studies, ensure
from chestxai.sources.shapes import decode_mask, parse_box, smaller_mask
from chestxai.sources.splits import TRAIN_VAL, split_patients
from chestxai.sources.tables import read_json
from chestxai.studies import Box, Finding, Study

CARD = Card.read("coco")

#: Plurals that do not end in s or es.
PLURALS = {"knife": "knives", "mouse": "mice", "person": "people", "scissors": "scissors", "sheep": "sheep"}


def load(root: Path, split: str = "test", *, masks: bool = False, longest: int = 256, seed: int = 0) -> Studies:
    """Load one split, see `chestxai.sources.load`.

    Args:
        root: Folder with the layout of the card; only what belongs to the split is needed.
        split: "train", "val" (both from the official train split) or "test" (the official val).
        masks: Decode the masks, too, which needs pycocotools.
        longest: Pixels of a mask's longer side, 1 or more, so that they fit into memory; 0 keeps the image's.
        seed: Of train and val.
    """
    ensure(longest >= 0, f"longest is at least 0, not {longest}")
    if masks:
        _pycocotools()
    data = Collector(CARD, root, split)
    part = "val" if split == "test" else "train"
    folder = data.file(f"{part}2017", f"{part}2014")
    path = data.file(f"annotations/instances_{folder.name}.json")
    instances = read_json(path, dict, CARD.get, ("images", "annotations", "categories"))
    texts = read_json(data.file(f"annotations/captions_{folder.name}.json"), dict, CARD.get, ("annotations",))
    captions, objects = _by_image(texts["annotations"]), _by_image(instances["annotations"])
    names = {category.get("id"): str(category.get("name")) for category in _dicts(instances["categories"])}
    images = [(str(item.get("id")), item) for item in _dicts(instances["images"])]
    records = [Record(f"{path.name}[{number}]", number, cells=item) for number, item in images]
    if split != "test":
        data.splits = split_patients((record.name for record in records), TRAIN_VAL, seed)
    seen: set[str] = set()

    def study(record: Record) -> Study:
        number, item = record.name, record.cells
        ensure(number not in seen, "image listed before")
        file, size = _image(item, folder)
        written = [
            entry["caption"] for entry in captions.get(item.get("id"), ()) if isinstance(entry.get("caption"), str)
        ]
        written = [" ".join(text.split()) for text in written if text.strip()]
        ensure(written, "no caption")
        seen.add(number)
        here = objects.get(item.get("id"), [])
        categories = {names.get(entry.get("category_id"), "") for entry in here} - {""}
        caption = max(written, key=lambda text: sum(bool(_named(text, name)) for name in categories))
        places: dict[str, list[tuple[Box, np.ndarray | None]]] = {}
        unnamed: set[str] = set()
        for entry in here:
            name = names.get(entry.get("category_id"), "")
            if name and not entry.get("iscrowd") and not _named(caption, name):
                if name not in unnamed:
                    data.skip(record.where, f"caption does not name the category ({name})")
                    unnamed.add(name)
                continue
            with data.record(record.where):
                ensure(name, f"unknown category ({entry.get('category_id')!r})")
                ensure(not entry.get("iscrowd"), f"region of a crowd ({name})")
                box = data.clip(parse_box(entry.get("bbox")), size, record.where, name)
                mask = _mask(entry.get("segmentation"), size) if masks else None
                places.setdefault(name, []).append((box, mask))
        findings = []
        for name, pairs in places.items():
            boxes, object_masks = zip(*pairs, strict=True)
            mask = smaller_mask(np.any(object_masks, axis=0), longest) if masks else None
            findings.append(Finding(name, _named(caption, name), boxes=tuple(dict.fromkeys(boxes)), mask=mask))
        return Study(number, number, "coco", split, caption, size, tuple(findings), file)

    return data.studies([r for r in records if data.splits.get(r.name, split) == split], study)


def _dicts(items: list[Any]) -> list[dict[str, Any]]:
    return [item for item in items if isinstance(item, dict)]


def _by_image(annotations: list[Any]) -> dict[object, list[dict[str, Any]]]:
    groups: dict[object, list[dict[str, Any]]] = {}
    for item in _dicts(annotations):
        groups.setdefault(item.get("image_id"), []).append(item)
    return groups


@cache
def _pattern(name: str) -> re.Pattern[str]:
    words = [rf"{re.escape(name)}(?:s|es)?", *([PLURALS[name]] if name in PLURALS else [])]
    return re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)


def _named(caption: str, name: str) -> str:
    """The words of the caption that name the category, verbatim; "" if there are none."""
    match = _pattern(name).search(caption)
    return match[0] if match else ""


def _image(item: dict[str, Any], folder: Path) -> tuple[Path, tuple[int, int]]:
    name, size = str(item.get("file_name")), (item.get("height"), item.get("width"))
    # It becomes a path: nothing but the name of a file may pass.
    ensure(re.fullmatch(r"\w[\w-]{0,99}\.jpg", name, re.ASCII), f"not the name of an image ({name[:100]!r})")
    ensure(all(isinstance(n, int) and n > 0 for n in size), f"height and width are not numbers {size}")
    ensure((folder / name).is_file(), f"no image file ({name})")
    return folder / name, size


def _mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Bool ``(height, width)`` of polygons [[x, y, x, y, …], …] or of a run-length mask."""
    if isinstance(segmentation, dict):
        return decode_mask(segmentation, size)
    try:
        polygons = [np.asarray(polygon, dtype=float) for polygon in segmentation]
    except (TypeError, ValueError) as error:
        raise InputError("not a mask") from error
    if not polygons or any(p.ndim != 1 or p.size < 6 or p.size % 2 or not np.isfinite(p).all() for p in polygons):
        raise InputError("not a mask")
    # pycocotools writes outside of its memory what is far outside of the image.
    inside = [np.clip(p.reshape(-1, 2), 0, size[::-1]).ravel().tolist() for p in polygons]
    coco = _pycocotools()
    return coco.decode(coco.merge(coco.frPyObjects(inside, *size))).astype(bool)


def _pycocotools() -> ModuleType:
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        advice = "install it with 'python -m pip install pycocotools'"
        raise ModuleNotFoundError(f"masks of MS-COCO need pycocotools; {advice}") from error
    return mask
