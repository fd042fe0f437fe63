"""MS-COCO: small made-up files in exactly the official format: captions, boxes, polygons and run-length masks."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from chestxai import sources
from chestxai.sources import coco
from chestxai.studies import Box, Frame, phrases, to_images
from tests.pictures import ramp

CATEGORIES = [
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "animal", "id": 18, "name": "dog"},
    {"supercategory": "kitchen", "id": 49, "name": "knife"},
    {"supercategory": "outdoor", "id": 10, "name": "traffic light"},
]
HEIGHT, WIDTH = 48, 40


def image(n: int, **changes: object) -> dict[str, object]:
    flickr = {"license": 4, "date_captured": "2013-11-14 17:02:52", "coco_url": "", "flickr_url": ""}
    return {"id": n, "file_name": f"{n:012d}.jpg", "height": HEIGHT, "width": WIDTH} | flickr | changes


def thing(n: int, category: object, *bbox: float, **changes: object) -> dict[str, object]:
    x, y, w, h = bbox
    outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    given = {"segmentation": outline, "area": w * h, "iscrowd": 0, "image_id": n, "bbox": [*bbox], "id": 9}
    return given | {"category_id": category} | changes


def collection(
    root: Path, images: list, things: list = (), captions: dict[int, list[str]] | None = None, part: str = "val2017"
) -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / part).mkdir(exist_ok=True)
    captions = {i["id"]: ["A dog."] for i in images} if captions is None else captions
    texts = [{"image_id": n, "id": 7, "caption": text} for n, several in captions.items() for text in several]
    instances = {"info": {}, "licenses": [], "images": images, "annotations": list(things), "categories": CATEGORIES}
    (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(instances))
    told = {"info": {}, "licenses": [], "images": images, "annotations": texts}
    (root / "annotations" / f"captions_{part}.json").write_text(json.dumps(told))
    for item in images:
        if "/" not in str(item["file_name"]):
            Image.fromarray(ramp(HEIGHT, WIDTH)).convert("RGB").save(root / part / str(item["file_name"]))
    return root


# pycocotools uses an array protocol that numpy 2 deprecates, which does not matter here.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class TestRecord:
    def test_by_hand(self, tmp_path):
        things = [
            thing(139, 18, 10, 20, 8, 4.5),
            thing(139, 1, 0, 0, 5, 6),
            thing(139, 18, 1, 2, 3, 4),
            thing(139, 49, 1, 2, 3, 4),
            thing(139, 49, 1, 2, 3, 4),
            thing(139, 18, 0, 0, 40, 48, iscrowd=1),
        ]
        captions = {139: ["Something.", "Two  dogs and People\nat play", "A dog and a person"]}
        (study,) = loaded = sources.load("coco", collection(tmp_path, [image(139)], things, captions))
        assert (study.id, study.patient, study.source, study.split) == ("139", "139", "coco", "test")
        assert (study.size, study.path) == ((HEIGHT, WIDTH), tmp_path / "val2017" / "000000000139.jpg")
        # The second and third caption name two categories each: the first of them counts.
        assert study.report == "Two dogs and People at play"
        dog, person = study.findings
        assert (dog.name, dog.phrase, dog.boxes) == ("dog", "dogs", (Box(10, 20, 8, 4.5), Box(1, 2, 3, 4)))
        assert (person.name, person.phrase, person.boxes) == ("person", "People", (Box(0, 0, 5, 6),))
        assert dog.mask is None
        assert loaded.skipped == [
            "instances_val2017.json[139]: caption does not name the category (knife)",
            "instances_val2017.json[139]: region of a crowd (dog)",
        ]
        assert len(phrases([study])) == 2
        assert study.pixels().shape == (HEIGHT, WIDTH)
        assert study.labels().sum() == 0

    def test_a_mask_lands_on_its_place(self, tmp_path):
        packed = coco_mask.encode(np.asfortranarray(np.ones((HEIGHT, WIDTH), np.uint8)))
        crowd = {"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode()}
        things = [
            thing(1, 18, 0, 4, 10, 20),
            thing(1, 18, 10, 4, 10, 20),
            thing(2, 18, 0, 0, 40, 48, segmentation=crowd),
        ]
        root = collection(tmp_path, [image(1), image(2)], things)
        first, second = sources.load("coco", root, masks=True)
        (dog,) = first.findings
        # The union of both objects; the central 40 × 40 square starts at row 4: it is its upper left quarter.
        assert dog.mask[4:24, :20].all()
        assert dog.mask.sum() == 400
        mask = Frame(*first.size, 8).mask(dog)
        assert mask[:4, :4].all()
        assert mask.sum() == 16
        assert second.findings[0].mask.all()
        assert sources.load("coco", root, masks=True, longest=24)[0].findings[0].mask.shape == (24, 20)
        assert to_images([first], 8)[0].shape == (1, 8, 8)

    @pytest.mark.parametrize(
        ("caption", "name", "words"),
        [
            ("Three DOGS run", "dog", "DOGS"),
            ("a hotdog", "dog", ""),
            ("doggy", "dog", ""),
            ("Sharp knives", "knife", "knives"),
            ("Traffic lights at night", "traffic light", "Traffic lights"),
            ("two buses", "bus", "buses"),
            ("a man", "person", ""),
            ("many people", "person", "people"),
        ],
    )
    def test_what_names_a_category(self, caption, name, words):
        assert coco._named(caption, name) == words

    def test_no_image_is_opened(self, tmp_path, monkeypatch):
        root = collection(tmp_path, [image(1)], [thing(1, 18, 1, 2, 3, 4)])
        monkeypatch.setattr(Image, "open", None)
        assert len(sources.load("coco", root)) == 1

    def test_splits(self, tmp_path):
        root = collection(tmp_path, [image(n) for n in range(1, 101)], part="train2017")
        parts = [sources.load("coco", root, split) for split in ("train", "val")]
        assert sum(map(len, parts)) == 100
        assert 3 <= len(parts[1]) <= 20
        assert {s.id for s in parts[0]}.isdisjoint(s.id for s in parts[1])
        with pytest.raises(FileNotFoundError, match="has no val2017 nor val2014"):
            sources.load("coco", root, "test")

    def test_of_2014(self, tmp_path):
        root = collection(tmp_path, [image(42, file_name="COCO_val2014_000000000042.jpg")], part="val2014")
        assert [s.id for s in sources.load("coco", root)] == ["42"]


class TestBadRecords:
    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            (image(2, file_name="../secret.jpg"), ":images[1]: not of COCO's format (it.file_name is '../secret.jpg'"),
            (image(2, height="tall"), ":images[1]: not of COCO's format (it.height is 'tall': "),
            (image(2, width=0), ":images[1]: not of COCO's format (it.width is 0: Input should be greater than 0"),
            (image(3), "[3]: no image file (000000000003.jpg)"),
            (image(4), "[4]: no caption"),
            (image(1), "[1]: image listed before"),
        ],
    )
    def test_an_image(self, tmp_path, bad, reason):
        captions = {1: ["A dog.", "  "], bad["id"]: [" "] if bad["id"] == 4 else ["A dog."]}
        root = collection(tmp_path, [image(1), bad], [thing(1, 18, 1, 2, 3, 4)], captions)
        (root / "val2017" / "000000000003.jpg").unlink(missing_ok=True)
        loaded = sources.load("coco", root)
        assert [(s.id, s.findings[0].boxes) for s in loaded] == [("1", (Box(1, 2, 3, 4),))]
        (line,) = loaded.skipped
        assert line.startswith(f"instances_val2017.json{reason}")

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            (thing(1, 999, 1, 2, 3, 4), "unknown category (999)"),
            (thing(1, 18, 1, 2, 0, 4), "not a box ([1.0, 2.0, 0.0, 4.0])"),
            (thing(1, 18, 1, 2, 3, 4, bbox=[1, 2]), "not a box ([1.0, 2.0])"),
            (thing(1, 18, 1, 2, 3, 4, bbox=None), "not a box (None)"),
            (thing(1, 18, 40, 2, 3, 4), "box outside the image (dog, 48 × 40)"),
            (thing(1, 18, 1, 2, 3, 4, segmentation=None), "not a mask (it is None: "),
            (thing(1, 18, 1, 2, 3, 4, segmentation=[[1, 2, 3]]), "not a mask (it.0 is [1, 2, 3]: "),
            (thing(1, 18, 1, 2, 3, 4, segmentation=[["x"] * 6]), "not a mask (it.0.0 is 'x': "),
            (
                thing(1, 18, 1, 2, 3, 4, segmentation={"size": [48, 40], "counts": [7]}),
                "mask whose runs do not fill its frame",
            ),
        ],
    )
    def test_an_object(self, tmp_path, bad, reason):
        loaded = sources.load("coco", collection(tmp_path, [image(1)], [thing(1, 18, 5, 6, 7, 8), bad]), masks=True)
        assert loaded[0].findings[0].boxes == (Box(5, 6, 7, 8),)
        (line,) = loaded.skipped
        assert line.startswith(f"instances_val2017.json[1]: {reason}")

    def test_a_box_and_outline_over_the_edge(self, tmp_path):
        root = collection(tmp_path, [image(1)], [thing(1, 18, 30, 40, 20, 8)])
        (study,) = loaded = sources.load("coco", root, masks=True)
        assert study.findings[0].boxes == (Box(30, 40, 10, 8),)
        assert loaded.skipped == ["instances_val2017.json[1]: box cut to the image (dog, 50% kept)"]
        assert study.findings[0].mask[40:, 30:].all()
        assert study.findings[0].mask.sum() == 80


class TestFatal:
    @pytest.mark.parametrize(
        ("gone", "named"),
        [
            ("val2017", "has no val2017 nor val2014"),
            ("annotations/instances_val2017.json", r"has no annotations/instances_val2017\.json"),
            ("annotations/captions_val2017.json", r"has no annotations/captions_val2017\.json"),
        ],
    )
    def test_says_what_is_missing_where_to_get_it_and_on_what_terms(self, tmp_path, gone, named):
        root = collection(tmp_path, [image(1)])
        (root / gone).unlink() if gone.endswith("json") else shutil.rmtree(root / gone)
        with pytest.raises(FileNotFoundError, match=rf"{named}.*cocodataset\.org/#download.*Terms: "):
            sources.load("coco", root)

    def test_no_root_and_wrong_option(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="give root"):
            sources.load("coco")
        with pytest.raises(ValueError, match="longest is at least 0"):
            sources.load("coco", tmp_path, longest=-1)

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ('{"images": [', "damaged or cut off"),
            ("[]", "found list"),
            ("{}", "lists of images, annotations, categories are missing"),
        ],
    )
    def test_json_of_another_format(self, tmp_path, text, problem):
        root = collection(tmp_path, [image(1)])
        (root / "annotations" / "instances_val2017.json").write_text(text)
        with pytest.raises(ValueError, match=rf"instances_val2017\.json: .*{problem}"):
            sources.load("coco", root)

    def test_none_of_use(self, tmp_path):
        with pytest.raises(ValueError, match=r"none of the 1 images of the test split .*\[1\]: no caption"):
            sources.load("coco", collection(tmp_path, [image(1)], captions={}))

    def test_masks_without_pycocotools(self, tmp_path, monkeypatch):
        root = collection(tmp_path, [image(1)], [thing(1, 18, 1, 2, 3, 4)])
        monkeypatch.setitem(sys.modules, "pycocotools", None)
        with pytest.raises(ModuleNotFoundError, match=r"python -m pip install pycocotools"):
            sources.load("coco", root, masks=True)
        assert len(sources.load("coco", root)) == 1


def test_it_needs_no_credentials():
    assert "coco" in sources.SOURCES
    assert not sources.terms("coco").credentialed
