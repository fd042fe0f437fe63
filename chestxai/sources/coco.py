"""MS-COCO: photographs with captions and the objects in them (Lin et al. 2014, https://arxiv.org/abs/1405.0312): the
control outside medicine, where a text-to-image model is at home.

The layout of the folder and the rules for captions and findings are in ``data/cards/coco.md``.
"""

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter

from chestxai.sources.cards import Card
from chestxai.sources.records import MOST, Category, Collector, Item, Record, Studies, ensure, read_items, valid
from chestxai.sources.shapes import Number, decode_mask, parse_box, smaller_mask
from chestxai.sources.splits import TRAIN_VAL, split_patients
from chestxai.sources.tables import read_json
from chestxai.studies import Box, Finding, Study

CARD = Card.read("coco")

_POLYGONS = TypeAdapter(Annotated[list[Annotated[list[Number], Field(min_length=6)]], Field(min_length=1)])
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
    words = data.file(f"annotations/captions_{folder.name}.json")
    texts = read_json(words, dict, CARD.get, ("annotations",))
    names = {category.id: category.name for _, category in read_items(data, path, instances, "categories", Category)}
    listed = [image for _, image in read_items(data, path, instances, "images", _Image)]
    known = {item.get("id") for item in instances["images"] if isinstance(item, dict) and type(item.get("id")) is int}
    captions, objects = (
        _by_image(data, read_items(data, file, content, "annotations", model), known)
        for file, content, model in ((words, texts, _Caption), (path, instances, _Object))
    )
    records = [Record(f"{path.name}[{image.id}]", str(image.id), cells=image) for image in listed]
    if split != "test":
        data.splits = split_patients((record.name for record in records), TRAIN_VAL, seed)
    seen: set[str] = set()

    def study(record: Record) -> Study:
        number, item = record.name, record.cells
        ensure(number not in seen, "image listed before")
        file, size = folder / item.file_name, (item.height, item.width)
        ensure(os.path.isfile(file), f"no image file ({item.file_name})")
        written = [text for entry in captions[item.id] if (text := " ".join(entry.caption.split()))]
        ensure(written, "no caption")
        seen.add(number)
        here = objects[item.id]
        ensure(len(here) <= MOST, f"image of more than {MOST} objects")
        categories = {names.get(entry.category_id, "") for entry in here} - {""}
        caption = max(written, key=lambda text: sum(bool(_named(text, name)) for name in categories))
        places: dict[str, list[tuple[Box, np.ndarray | None]]] = {}
        unnamed: set[str] = set()
        for entry in here:
            name = names.get(entry.category_id, "")
            if name and not entry.iscrowd and not _named(caption, name):
                if name not in unnamed:
                    data.skip(record.where, f"caption does not name the category ({name})")
                    unnamed.add(name)
                continue
            with data.record(record.where):
                ensure(name, f"unknown category ({entry.category_id!r})")
                ensure(not entry.iscrowd, f"region of a crowd ({name})")
                box = data.clip(parse_box(entry.bbox), size, record.where, name)
                mask = _mask(entry.segmentation, box, size) if masks else None
                places.setdefault(name, []).append((box, mask))
        findings = []
        for name, pairs in places.items():
            boxes, object_masks = zip(*pairs, strict=True)
            mask = smaller_mask(np.any(object_masks, axis=0), longest) if masks else None
            findings.append(Finding(name, _named(caption, name), boxes=tuple(dict.fromkeys(boxes)), mask=mask))
        return Study(number, number, "coco", split, caption, size, tuple(findings), file)

    return data.studies([r for r in records if data.splits.get(r.name, split) == split], study)


class _Image(Item):
    id: int
    # It becomes a path: nothing but the name of a file may pass.
    file_name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,99}\.jpg$")
    height: int = Field(gt=0, le=20_000)
    width: int = Field(gt=0, le=20_000)


class _Caption(Item):
    image_id: int
    caption: str


class _Object(Item):
    image_id: int
    category_id: int
    iscrowd: int = 0
    bbox: Annotated[list[Number], Field(strict=False)] | None = None
    segmentation: Any = None  #: of `_mask`


def _by_image(data: Collector, items: Iterable[tuple[str, Any]], known: set[int]) -> dict[int, list[Any]]:
    groups: dict[int, list[Any]] = defaultdict(list)
    for where, item in items:
        if item.image_id in known:
            groups[item.image_id].append(item)
        else:
            data.skip(where, f"of an image that is not listed ({item.image_id})")
    return groups


def _named(caption: str, name: str) -> str:
    """The words of the caption that name the category, verbatim; "" if there are none."""
    words = [rf"{re.escape(name)}(?:s|es)?", *([PLURALS[name]] if name in PLURALS else [])]
    match = re.search(rf"\b(?:{'|'.join(words)})\b", caption, re.IGNORECASE)
    return match[0] if match else ""


def _mask(segmentation: Any, box: Box, size: tuple[int, int]) -> np.ndarray:
    """Bool ``(height, width)`` of polygons [[x, y, x, y, …], …] or of a run-length mask, most of it in its ``box``."""
    if isinstance(segmentation, dict):
        mask = decode_mask(segmentation, size)
    else:
        polygons = [np.array(polygon) for polygon in valid(_POLYGONS, segmentation, "not a mask")]
        ensure(all(p.size % 2 == 0 for p in polygons), "not a mask (a coordinate without its pair)")
        # pycocotools writes outside of its memory what is far outside of the image.
        inside = [np.clip(p.reshape(-1, 2), 0, size[::-1]).ravel().tolist() for p in polygons]
        coco = _pycocotools()
        mask = coco.decode(coco.merge(coco.frPyObjects(inside, *size))).astype(bool)
    ends = slice(int(box.y), math.ceil(box.y + box.h)), slice(int(box.x), math.ceil(box.x + box.w))
    ensure(mask[ends].sum() > mask.sum() / 2, "mask elsewhere than its box, as of an image of another size")
    return mask


def _pycocotools() -> ModuleType:
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        advice = "install it with 'python -m pip install pycocotools'"
        raise ModuleNotFoundError(f"masks of MS-COCO need pycocotools; {advice}") from error
    return mask
