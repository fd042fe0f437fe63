"""CheXlocalize: small made-up files in exactly the official format, outlines as polygons and as run-length masks."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco

from chestxai import sources
from chestxai.sources import chexlocalize
from chestxai.sources.shapes import boxes_of, decode_mask, smaller_mask
from chestxai.studies import FINDINGS, Box, Frame, phrases, to_images
from tests.pictures import ramp

# The header of the official table.
TABLE = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
).split(",")
TASKS = (
    "Enlarged Cardiomediastinum,Cardiomegaly,Lung Lesion,Lung Opacity,Edema,Consolidation,Atelectasis,Pneumothorax,"
    "Pleural Effusion,Support Devices"
).split(",")
HEIGHT, WIDTH = 48, 40


def key(n: int, view: str = "view1_frontal") -> str:
    return f"patient{64540 + n}_study1_{view}"


def row(n: int, *labels: str, view: str = "view1_frontal", folder: str = "test") -> str:
    assert {*labels} <= {*TABLE}
    path = f"{folder}/patient{64540 + n}/study1/{view}.jpg"
    return ",".join([path, "Male", "73", "Frontal", "AP", *("1.0" if c in labels else "0.0" for c in TABLE[5:])])


def square(x: float, y: float, side: float) -> list[list[float]]:
    """A polygon around whole pixels: its corners are drawn, too."""
    return [[x, y], [x + side - 1, y], [x + side - 1, y + side - 1], [x, y + side - 1]]


def outlines(**pathologies: object) -> dict[str, object]:
    return {"img_size": [HEIGHT, WIDTH]} | {name.replace("_", " "): value for name, value in pathologies.items()}


def packed(mask: np.ndarray) -> dict[str, object]:
    found = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(n) for n in found["size"]], "counts": found["counts"].decode()}


def collection(
    root: Path, rows: list[str], truth: object = None, split: str = "test", kind: str = "annotations"
) -> Path:
    folder = root / "CheXpert"
    (root / "CheXlocalize").mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir(parents=True, exist_ok=True)
    (folder / f"{split}_labels.csv").write_text("\n".join([",".join(TABLE), *rows]) + "\n")
    (root / "CheXlocalize" / f"gt_{kind}_{split}.json").write_text(json.dumps({} if truth is None else truth))
    for line in rows:
        parts = line.partition(",")[0].split("/")[-3:]
        if parts[0].startswith("patient"):
            path = folder / split / Path(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ramp(HEIGHT, WIDTH)).save(path)
    return root


class TestRecord:
    def test_by_hand(self, tmp_path):
        truth = {
            key(1): outlines(Pleural_Effusion=[square(10, 20, 4), square(30, 40, 6)], Support_Devices=[square(0, 0, 9)])
        }
        rows = [row(1, "Pleural Effusion", "Pneumonia", "Support Devices")]
        (study,) = loaded = sources.load("chexlocalize", collection(tmp_path, rows, truth))
        assert loaded.skipped == []
        assert (study.id, study.patient, study.source, study.split) == (key(1), "patient64541", "chexlocalize", "test")
        assert study.size == (HEIGHT, WIDTH)
        assert study.path == tmp_path / "CheXpert" / "test" / "patient64541" / "study1" / "view1_frontal.jpg"
        assert study.report == "Pleural effusion, pneumonia and support devices."
        assert study.attributes == {"view": "AP"}
        assert [f.name for f in study.findings] == list(FINDINGS)
        effusion, pneumonia = study.present()
        assert (effusion.name, effusion.phrase) == ("Pleural Effusion", "Pleural effusion")
        # x is the column, y the row; each connected part has a box.
        assert effusion.boxes == (Box(10, 20, 4, 4), Box(30, 40, 6, 6))
        assert (effusion.mask.shape, effusion.mask.dtype) == ((HEIGHT, WIDTH), bool)
        assert effusion.mask[20:24, 10:14].all()
        assert effusion.mask.sum() == 16 + 36
        # It is labelled, but the data set has no outlines of it.
        assert (pneumonia.name, pneumonia.boxes, pneumonia.mask) == ("Pneumonia", (), None)
        assert [g.finding.name for g in phrases([study])] == ["Pleural Effusion"]

    def test_both_files_of_outlines_give_the_same(self, tmp_path):
        triangle = [[5.2, 5.9], [30.7, 11.3], [12.4, 40.8]]
        truth = {key(1): outlines(Edema=[triangle, square(35, 40, 3)])}
        root = collection(tmp_path, [row(1, "Edema")], truth)
        (drawn,) = sources.load("chexlocalize", root)
        # The file with masks has all ten of them for every image, empty ones as well.
        empty = packed(np.zeros((HEIGHT, WIDTH), bool))
        masks = {key(1): dict.fromkeys(TASKS, empty) | {"Edema": packed(drawn.present()[0].mask)}}
        (decoded,) = loaded = sources.load(
            "chexlocalize", collection(root, [row(1, "Edema")], masks, kind="segmentations"), truth="rle"
        )
        assert loaded.skipped == []
        assert decoded == drawn
        np.testing.assert_array_equal(decoded.present()[0].mask, drawn.present()[0].mask)

    def test_a_mask_lands_on_its_place(self, tmp_path):
        truth = {key(1): outlines(Edema=[square(0, 4, 20)])}
        (study,) = sources.load("chexlocalize", collection(tmp_path, [row(1, "Edema")], truth), longest=24)
        (found,) = study.present()
        assert found.mask.shape == (24, 20)
        # The central 40 × 40 square starts at row 4: the mask is its upper left quarter.
        mask = Frame(*study.size, 8).mask(found)
        assert mask[:4, :4].all()
        assert mask.sum() == 16
        assert found.boxes == (Box(0, 4, 20, 20),)
        assert to_images([study], 8)[0].shape == (1, 8, 8)

    @pytest.mark.parametrize("kind", ["annotations", "segmentations"])
    def test_outlines_of_the_original_fit_a_resized_copy(self, tmp_path, kind):
        mask = np.zeros((4 * HEIGHT, 4 * WIDTH), bool)
        mask[40:80, 20:60] = True
        drawn = {"img_size": [*mask.shape], "Edema": [square(20, 40, 40)]}
        root = collection(
            tmp_path, [row(1, "Edema")], {key(1): drawn if kind[0] == "a" else {"Edema": packed(mask)}}, kind=kind
        )
        (study,) = loaded = sources.load("chexlocalize", root, truth="polygons" if kind[0] == "a" else "rle")
        (found,) = study.present()
        assert (study.size, loaded.skipped, found.boxes) == (mask.shape, [], (Box(20, 40, 40, 40),))
        np.testing.assert_array_equal(found.mask, mask)
        # The central 160 × 160 square starts at row 16.
        assert Frame(*study.size, 8).mask(found)[1:3, 1:3].all()
        assert to_images([study], 8)[0].shape == (1, 8, 8)

    def test_outlines_of_another_frame_that_say_nothing_of_it_are_no_truth(self, tmp_path):
        truth = {key(1): {"Edema": [square(30, 40, 90)], "Consolidation": [square(5, 5, 9)]}}
        (study,) = loaded = sources.load(
            "chexlocalize", collection(tmp_path, [row(1, "Edema", "Consolidation")], truth)
        )
        assert [len(f.boxes) for f in study.present()] == [1, 0]
        assert "box mostly outside the image (outline, 48 × 40, " in loaded.skipped[0]

    def test_airspace_opacity_is_lung_opacity(self, tmp_path):
        truth = {key(1): outlines(Airspace_Opacity=[square(1, 2, 3)], Lung_Opacity=[square(9, 9, 5)])}
        (study,) = sources.load("chexlocalize", collection(tmp_path, [row(1, "Lung Opacity")], truth))
        assert study.present()[0].boxes == (Box(1, 2, 3, 3), Box(9, 9, 5, 5))

    def test_normal_and_denied(self, tmp_path):
        (study,) = sources.load("chexlocalize", collection(tmp_path, [row(1, "No Finding")]))
        assert (study.report, study.present()) == ("No finding.", ())
        assert [f.present for f in study.findings] == [False] * 8

    def test_splits(self, tmp_path):
        root = collection(tmp_path, [row(1)])
        collection(root, [row(2, folder="CheXpert-v1.0/valid")], split="val")
        assert [s.patient for s in sources.load("chexlocalize", root, "val")] == ["patient64542"]
        assert sources.load("chexlocalize", root, "train") == []

    def test_the_earlier_layout(self, tmp_path):
        root = collection(tmp_path, [row(1, "Edema", folder="CheXpert-v1.0/valid")], split="val")
        shutil.move(root / "CheXpert", root / "CheXpert-v1.0")
        shutil.move(root / "CheXpert-v1.0" / "val", root / "CheXpert-v1.0" / "valid")
        shutil.move(root / "CheXpert-v1.0" / "val_labels.csv", root / "CheXpert-v1.0" / "valid.csv")
        assert len(sources.load("chexlocalize", root, "val")) == 1

    def test_all_pathologies_are_known(self):
        assert {*TASKS} <= {*chexlocalize.PATHOLOGIES}
        assert sources.terms("chexlocalize").credentialed


class TestBadRecords:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (row(2, view="view2_lateral"), f"not a frontal view ({key(2, 'view2_lateral')})"),
            (row(1), f"duplicate row ({key(1)}, first in test_labels.csv:2)"),
            ("../secret.jpg" + ",1" * 18, "not the path of an image of CheXpert ('../secret.jpg')"),
            (row(2).replace(",0.0", ",-1.0", 3), "label is not 0 or 1 (Cardiomegaly: '-1.0')"),
            (row(3), f"no image file ({key(3)})"),
            (row(4), "unreadable image header (view1_frontal.jpg: UnidentifiedImageError)"),
        ],
    )
    def test_a_row(self, tmp_path, line, reason):
        root = collection(tmp_path, [row(1, "Edema"), line], {key(1): outlines(Edema=[square(1, 2, 3)])})
        (root / "CheXpert/test/patient64543/study1/view1_frontal.jpg").unlink(missing_ok=True)
        if "header" in reason:
            (root / "CheXpert/test/patient64544/study1/view1_frontal.jpg").write_bytes(b"no")
        loaded = sources.load("chexlocalize", root)
        assert [s.id for s in loaded] == [key(1)]
        assert loaded.skipped == [f"test_labels.csv:3: {reason}"]

    @pytest.mark.parametrize(
        ("truth", "reason"),
        [
            (outlines(Cough=[square(1, 2, 3)]), "unknown pathology ('Cough')"),
            (outlines(Edema=[[1, 2, 3]]), "not a polygon (it"),
            (outlines(Edema=[[["a", 2], [3, 4]]]), "not a polygon (it"),
            (outlines(Edema=7), "not a polygon (it"),
            (outlines(Edema=[[[5, 5]]]), "not a polygon (it"),
            (
                outlines(Edema=[square(1, 2, 3)]) | {"img_size": [9, 9]},
                "frame of another shape than the image (9 × 9, not 48 × 40)",
            ),
            ({"Edema": {"size": [9, 9], "counts": "1"}}, "frame of another shape than the image (9 × 9, not 48 × 40)"),
            (outlines(Edema={"size": [9, 9], "counts": "1"}), "mask in another frame than the image's 48 × 40 (Edema)"),
            (outlines(Edema={"size": [48, 40], "counts": "ifdl3"}), "mask whose runs do not fill its frame (Edema)"),
            (outlines(Pneumothorax=[square(1, 2, 3)]), "outline of a finding that the labels deny (Pneumothorax)"),
            ([], "not the outlines of an image"),
        ],
    )
    def test_outlines(self, tmp_path, truth, reason):
        root = collection(tmp_path, [row(1, "Edema")], {key(1): truth})
        (study,) = loaded = sources.load("chexlocalize", root)
        assert [(f.name, f.boxes) for f in study.present()] == [("Edema", ())]
        (line,) = loaded.skipped
        assert line.startswith(f"gt_annotations_test.json[{key(1)}]: {reason}")

    def test_outlines_of_no_image(self, tmp_path):
        loaded = sources.load("chexlocalize", collection(tmp_path, [row(1)], {key(7): outlines()}))
        assert loaded.skipped == [f"gt_annotations_test.json[{key(7)}]: image that the table does not list"]


class TestFatal:
    TERMS = r"aimi\.stanford\.edu/datasets/chexlocalize.*Terms: "

    @pytest.mark.parametrize(
        ("gone", "named"),
        [
            ("CheXpert", "CheXpert/test"),
            ("CheXpert/test_labels.csv", r"CheXpert/test_labels\.csv"),
            ("CheXlocalize", r"CheXlocalize/gt_annotations_test\.json"),
        ],
    )
    def test_says_what_is_missing_where_to_get_it_and_on_what_terms(self, tmp_path, gone, named):
        root = collection(tmp_path, [row(1)])
        (root / gone).unlink() if gone.endswith("csv") else shutil.rmtree(root / gone)
        with pytest.raises(FileNotFoundError, match=rf"has no {named}.*{self.TERMS}"):
            sources.load("chexlocalize", root)

    def test_no_root_and_unknown_options(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=f"give root.*{self.TERMS}"):
            sources.load("chexlocalize")
        for option in ({"truth": "points"}, {"longest": -1}):
            with pytest.raises(ValueError, match=r"'polygons' or 'rle'|longest must be at least 0"):
                sources.load("chexlocalize", tmp_path, **option)

    @pytest.mark.parametrize(("text", "problem"), [('{"pat', "damaged or cut off"), ("[]", "found list")])
    def test_json_of_another_format(self, tmp_path, text, problem):
        root = collection(tmp_path, [row(1)])
        (root / "CheXlocalize" / "gt_annotations_test.json").write_text(text)
        with pytest.raises(ValueError, match=rf"gt_annotations_test\.json: .*{problem}"):
            sources.load("chexlocalize", root)

    def test_none_of_use(self, tmp_path):
        with pytest.raises(ValueError, match=r"none of the 1 images of the test split can be used; .*:2: not a f"):
            sources.load("chexlocalize", collection(tmp_path, [row(1, view="view2_lateral")]))

    def test_run_length_masks_need_no_pycocotools(self, tmp_path, monkeypatch):
        truth = {key(1): {"Edema": packed(np.ones((HEIGHT, WIDTH)))}}
        root = collection(tmp_path, [row(1, "Edema")], truth, kind="segmentations")
        monkeypatch.setitem(sys.modules, "pycocotools", None)
        (study,) = sources.load("chexlocalize", root, truth="rle")
        assert study.present()[0].mask.all()


masks = arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20)))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
class TestMasks:
    @given(masks)
    def test_packed_and_plain_runs_are_the_mask(self, mask):
        np.testing.assert_array_equal(decode_mask(packed(mask), mask.shape), mask)
        # Runs go down the columns and begin with zeros.
        flat = np.concatenate([[False], mask.ravel(order="F"), [not mask[-1, -1]]])
        counts = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat.astype(int)))])).tolist()
        plain = {"size": [*mask.shape], "counts": counts}
        np.testing.assert_array_equal(decode_mask(plain, mask.shape), mask)

    @given(masks, st.data())
    def test_runs_that_do_not_fill_the_frame_are_refused(self, mask, data):
        counts = packed(mask)["counts"]
        cut = data.draw(st.integers(0, len(counts) - 1))
        for text in (counts[:cut], counts + "1", counts[:cut] + "\0"):
            with pytest.raises(ValueError, match="runs do not fill its frame"):
                decode_mask({"size": [*mask.shape], "counts": text}, mask.shape)

    @given(st.text(st.characters(codec="ascii"), max_size=12), st.lists(st.integers(-2, 20), max_size=4))
    def test_damaged_runs_never_raise_anything_else(self, text, counts):
        for runs in (text, counts, None, {}):
            with contextlib.suppress(ValueError):
                assert decode_mask({"size": [4, 5], "counts": runs}, (4, 5)).shape == (4, 5)

    @given(masks)
    def test_boxes_cover_the_mask_and_touch_it_on_every_side(self, mask):
        covered = np.zeros_like(mask)
        for box in boxes_of(mask):
            rows, columns = slice(int(box.y), int(box.y + box.h)), slice(int(box.x), int(box.x + box.w))
            part = mask[rows, columns]
            assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()  # noqa: PT018
            covered[rows, columns] = True
        assert (covered | ~mask).all()

    @given(masks, st.integers(1, 40))
    def test_a_smaller_mask_is_no_longer_and_never_vanishes(self, mask, longest):
        small = smaller_mask(mask, longest)
        assert max(small.shape) <= longest or small is mask
        assert max(small.shape) == min(longest, max(mask.shape))
        assert small.any() == mask.any()
        assert small.all() or not mask.all()
        assert smaller_mask(mask, 0) is mask

    def test_half_covered_by_hand(self):
        mask = np.zeros((4, 4), bool)
        mask[:2, 0] = mask[2, 2] = True
        assert smaller_mask(mask, 2).tolist() == [[True, False], [False, False]]
        speck = np.zeros((4, 4), bool)
        speck[2, 2] = True
        assert smaller_mask(speck, 2).tolist() == [[False, False], [False, True]]
