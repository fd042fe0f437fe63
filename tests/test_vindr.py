"""VinDr-CXR: small made-up files in exactly the official format, and how three readers are joined by hand."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chestxai import reports, sources
from chestxai.sources import vindr
from chestxai.studies import FINDINGS, Box, Frame, Study, phrases, to_images
from tests.test_studies import dicom

# The headers of the official files.
TRAIN = "image_id,rad_id,class_name,x_min,y_min,x_max,y_max"
TEST = "image_id,class_name,x_min,y_min,x_max,y_max"
CLASSES = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,"
    "Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,"
    "Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,Pneumonia,"
    "Tuberculosis,Other diseases,No finding"
).split(",")


def name(n: int) -> str:
    """An image_id of the official form."""
    return f"{n:032x}"


def box(n: int, label: str, *corners: object, reader: int = 0) -> str:
    """A row of train if there is a reader, of test otherwise."""
    x = ",".join(map(str, corners)) if corners else ",,,"
    return f"{name(n)},{f'R{reader},' if reader else ''}{label},{x}"


def normal(n: int) -> list[str]:
    return [box(n, "No finding", reader=reader) for reader in (1, 2, 3)]


def labelled(n: int, *labels: str, reader: int = 0) -> str:
    assert {*labels} <= {*CLASSES}
    return ",".join([name(n), *([f"R{reader}"] if reader else []), *(str(int(c in labels)) for c in CLASSES)])


def collection(
    root: Path, train: list[str] = (), test: list[str] = (), labels: list[str] | None = None, files: bool = True
) -> Path:
    """The official layout; every image has 48 rows and 40 columns."""
    for part, header, rows in (("train", TRAIN, train), ("test", TEST, test)):
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / part).mkdir(exist_ok=True)
        (root / "annotations" / f"annotations_{part}.csv").write_text("\n".join([header, *rows]) + "\n")
        for image in {row.partition(",")[0] for row in rows if files}:
            if image and "/" not in image:
                dicom(root / part / f"{image}.dicom", np.arange(48 * 40, dtype=np.uint16).reshape(48, 40))
    if labels is not None:
        header = ",".join(["image_id", *(["rad_ID"] if train else []), *CLASSES])
        path = root / "annotations" / f"image_labels_{'train' if train else 'test'}.csv"
        path.write_text("\n".join([header, *labels]) + "\n")
    return root


def everything(root: Path, splits: tuple[str, ...] = ("train", "val"), **options: object):
    """The studies of these splits, and the lines of all (one that is in every split once)."""
    parts = [sources.load("vindr", root, split, **options) for split in splits]
    return [s for part in parts for s in part], list(dict.fromkeys(line for part in parts for line in part.skipped))


class TestRecord:
    def test_consensus_by_hand(self, tmp_path):
        rows = [
            box(1, "Pleural effusion", 10, 20.5, 18, 40.5),
            box(1, "Infiltration", 1, 2, 5, 6),
            box(1, "Lung Opacity", 1, 2, 5, 6),
            box(1, "Aortic enlargement", 1, 2, 5, 6),
            box(1, "Pleural effusion", 0, 0, 4, 4),
        ]
        (study,) = loaded = sources.load("vindr", collection(tmp_path, test=rows))
        assert (study.id, study.patient, study.source, study.split) == (name(1), name(1), "vindr", "test")
        # Rows are the height, columns the width.
        assert (study.size, study.path) == ((48, 40), tmp_path / "test" / f"{name(1)}.dicom")
        assert study.report == "Lung opacity, pleural effusion and aortic enlargement."
        opacity, effusion = study.findings
        assert (opacity.name, opacity.phrase, opacity.boxes) == ("Lung Opacity", "Lung opacity", (Box(1, 2, 4, 4),))
        assert (effusion.name, effusion.phrase) == ("Pleural Effusion", "pleural effusion")
        assert effusion.boxes == (Box(10, 20.5, 8, 20), Box(0, 0, 4, 4))
        assert study.attributes == {"labels": "Lung Opacity|Pleural Effusion|aortic enlargement"}
        assert loaded.skipped == [
            "annotations_test.csv:5: box of none of the eight findings (Aortic enlargement)",
        ]
        assert len(phrases([study])) == 2

    def test_a_box_lands_on_its_place_and_monochrome1_is_inverted(self, tmp_path):
        root = collection(tmp_path, test=[box(1, "Edema", 0, 4, 20, 24)])
        (study,) = sources.load("vindr", root)
        # The central 40 × 40 square starts at row 4: the box is its upper left quarter.
        mask = Frame(*study.size, 16).mask(study.findings[0])
        assert mask[:8, :8].all()
        assert mask.sum() == 64
        upright = study.pixels()
        assert upright[-1, -1] > upright[0, 0]
        dicom(study.path, np.arange(48 * 40, dtype=np.uint16).reshape(48, 40), "MONOCHROME1")
        np.testing.assert_array_equal(study.pixels(), 255 - upright)
        assert to_images([study], 16)[0].shape == (1, 16, 16)

    def test_no_finding(self, tmp_path):
        studies, skipped = everything(collection(tmp_path, normal(1)))
        assert [(s.report, s.findings) for s in studies] == [("No finding.", ())]
        assert reports.normal(studies[0].report)
        assert skipped == []

    def test_every_class_is_known_and_every_finding_reached(self):
        assert {*CLASSES} <= {*vindr.LABELS, *vindr.OTHERS, vindr.NORMAL}
        assert {*vindr.LABELS.values()} == {*FINDINGS}
        assert sources.terms("vindr").credentialed

    def test_pneumonia_comes_from_the_labels_of_whole_images(self, tmp_path):
        rows = [box(1, "Edema", 1, 2, 9, 9), box(2, "No finding")]
        labels = [labelled(1, "Edema", "Pneumonia"), labelled(2, "No finding")]
        a, b = sources.load("vindr", collection(tmp_path, test=rows, labels=labels))
        assert [(f.name, len(f.boxes)) for f in a.findings] == [("Edema", 1), ("Pneumonia", 0)]
        assert b.findings == ()

    def test_every_class_of_whole_images_is_read(self, tmp_path):
        labels = [labelled(1, "Tuberculosis", "Other diseases")]
        (study,) = sources.load("vindr", collection(tmp_path, test=[box(1, "No finding")], labels=labels))
        assert study.report == "Other disease and tuberculosis."

    def test_the_csv_may_lie_beside_the_images(self, tmp_path):
        root = collection(tmp_path, test=[box(1, "Edema", 1, 2, 9, 9)])
        shutil.move(root / "annotations" / "annotations_test.csv", root)
        assert len(sources.load("vindr", root)) == 1


class TestReaders:
    # Of a box 10 wide, moved by 2: 8 of 12 columns are common, an IoU of 2/3; moved by 4: 6 of 14, 0.43.
    two_of_three = (
        box(1, "Edema", 0, 0, 10, 10, reader=1),
        box(1, "Edema", 2, 0, 12, 10, reader=2),
        box(1, "Edema", 30, 30, 38, 38, reader=3),
    )

    def test_two_agree_by_hand(self, tmp_path):
        (study,), skipped = everything(collection(tmp_path, list(self.two_of_three)))
        (found,) = study.findings
        assert found.boxes == (Box(1, 0, 10, 10),)
        assert skipped == [f"annotations_train.csv:4: box too few readers draw ({name(1)}, Edema, R3)"]

    def test_less_overlap_is_no_agreement_and_leaves_the_finding_without_a_box(self, tmp_path):
        rows = [box(1, "Edema", 0, 0, 10, 10, reader=1), box(1, "Edema", 4, 0, 14, 10, reader=2)]
        root = collection(tmp_path, rows)
        (study,), skipped = everything(root)
        assert [(f.name, f.boxes) for f in study.findings] == [("Edema", ())]
        assert len(skipped) == 2
        (study,), skipped = everything(root, overlap=0.4)
        assert study.findings[0].boxes == (Box(2, 0, 10, 10),)
        assert skipped == []

    def test_one_reader_alone_makes_a_finding_uncertain(self, tmp_path):
        rows = [box(1, "Edema", 0, 0, 10, 10, reader=1), *normal(1)[1:]]
        root = collection(tmp_path, rows)
        (study,), _ = everything(root)
        assert (study.findings, study.report, study.attributes["uncertain"]) == ((), "No finding.", "Edema")
        (study,), skipped = everything(root, agree=1)
        assert study.findings[0].boxes == (Box(0, 0, 10, 10),)
        assert skipped == []

    def test_two_names_of_one_finding_by_one_reader_are_one_vote(self, tmp_path):
        rows = [box(1, label, 0, 0, 9, 9, reader=1) for label in ("Infiltration", "Lung Opacity")] + normal(1)[1:]
        (study,), _ = everything(collection(tmp_path, rows))
        assert study.findings == ()

    def test_one_place_under_two_names_weighs_once(self, tmp_path):
        rows = [box(1, label, 0, 0, 10, 10, reader=1) for label in ("Infiltration", "Lung Opacity")]
        (study,), _ = everything(collection(tmp_path, [*rows, box(1, "Infiltration", 2, 0, 12, 10, reader=2)]))
        assert [(f.name, f.boxes) for f in study.findings] == [("Lung Opacity", (Box(1, 0, 10, 10),))]

    def test_neighbours_of_neighbours_are_not_one_place(self):
        # Overlaps of 0.67 and 0.6 with the one in the middle; the third and the pair of the others only 0.49.
        boxes = [(f"R{x}", Box(x, 0, 10, 10)) for x in (0, 2, 4.5)]
        assert vindr.join(boxes, 2, 0.5) == ([Box(1, 0, 10, 10)], [2])
        assert len(vindr.join(boxes, 3, 0.48)[0]) == 1

    def test_two_boxes_of_one_reader_agree_with_nobody(self):
        boxes = [("R1", Box(0, 0, 10, 10)), ("R1", Box(1, 0, 10, 10))]
        assert vindr.join(boxes, 2, 0.5) == ([], [0, 1])
        assert vindr.join([], 2, 0.5) == ([], [])

    def test_all_three_must_agree_if_that_is_asked_for(self, tmp_path):
        (study,), skipped = everything(collection(tmp_path, list(self.two_of_three)), agree=3)
        assert study.findings[0].boxes == ()
        assert len(skipped) == 3

    @given(
        st.lists(
            st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.integers(0, 20), st.integers(4, 20)), max_size=7
        ),
        st.randoms(),
    )
    def test_invariants(self, drawn, random):
        boxes = [(reader, Box(x, y, side, side)) for reader, x, y, side in drawn]
        joined, alone = vindr.join(boxes, 2, 0.5)
        # Every joined box comes from at least two boxes, and lies within their range.
        assert len(alone) + 2 * len(joined) <= len(boxes)
        for found in joined:
            assert min(b.x for _, b in boxes) - 1e-9 <= found.x
            assert found.x + found.w <= max(b.x + b.w for _, b in boxes) + 1e-9
            assert min(b.h for _, b in boxes) - 1e-9 <= found.h <= max(b.h for _, b in boxes) + 1e-9
        everyone, none = vindr.join(boxes, 1, 0.5)
        assert none == []
        assert all(any(np.allclose(vars_of(b), vars_of(e)) for e in everyone) for b in joined)
        # Equal boxes always become one.
        assert len(vindr.join(boxes[:1] * 3, 1, 1.0)[0]) == min(1, len(boxes))

    def test_the_order_of_the_readers_has_no_say(self):
        boxes = [
            ("R1", Box(0, 0, 10, 10)),
            ("R2", Box(2, 0, 10, 10)),
            ("R3", Box(1, 1, 10, 10)),
            ("R3", Box(30, 3, 4, 4)),
        ]
        found = {tuple(sorted(map(vars_of, vindr.join(order, 2, 0.5)[0]))) for order in itertools.permutations(boxes)}
        assert len({tuple(np.round(f, 9).ravel()) for f in found}) == 1

    @pytest.mark.parametrize("option", [{"agree": 0}, {"agree": 4}, {"overlap": 0}, {"overlap": 1.1}])
    def test_options_out_of_range(self, tmp_path, option):
        with pytest.raises(ValueError, match="agree is 1, 2 or 3 and overlap above 0, at most 1"):
            sources.load("vindr", tmp_path, **option)


def vars_of(box: Box) -> tuple[float, float, float, float]:
    return box.x, box.y, box.w, box.h


class TestSplits:
    def test_test_is_official_and_train_is_divided(self, tmp_path):
        root = collection(
            tmp_path, [r for n in range(100) for r in normal(n)], [box(n, "No finding") for n in range(200, 203)]
        )
        studies, _ = everything(root, ("train", "val", "test"))
        counts = Counter(s.split for s in studies)
        assert counts["test"] == 3
        assert counts["train"] + counts["val"] == 100
        assert 3 <= counts["val"] <= 20
        assert {s.id: s.split for s in everything(root, seed=1)[0]} != {s.id: s.split for s in studies}

    def test_only_what_belongs_to_the_split_need_be_there(self, tmp_path):
        root = collection(tmp_path, test=[box(1, "No finding")])
        shutil.rmtree(root / "train")
        (root / "annotations" / "annotations_train.csv").unlink()
        assert len(sources.load("vindr", root, "test")) == 1


class TestBadRows:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (box(1, "Cough", 1, 2, 3, 4), "unknown class ('Cough')"),
            (box(1, "", 1, 2, 3, 4), "unknown class ('')"),
            (box(1, "Edema", 1, 2, "three", 4), "not a box (1, 2, three, 4)"),
            (box(1, "Edema", 3, 2, 1, 4), "not a box (3, 2, 1, 4)"),
            (box(1, "Edema", 1, 2, 3, ""), "not a box (1, 2, 3, )"),
            (box(1, "Edema", 40, 2, 50, 4), f"box outside the image ({name(1)}, Edema, 48 × 40)"),
            ("../../secret,Edema,1,2,3,4", "not an image_id ('../../secret')"),
            (",Edema,1,2,3,4", "not an image_id ('')"),
            (box(2, "Edema", 1, 2, 3, 4), f"no image file ({name(2)})"),
        ],
    )
    def test_one_is_listed_with_its_line_and_the_others_load(self, tmp_path, line, reason):
        root = collection(tmp_path, test=[box(1, "Edema", 10, 20, 18, 40), line])
        (root / "test" / f"{name(2)}.dicom").unlink(missing_ok=True)
        loaded = sources.load("vindr", root)
        assert [s.findings[0].boxes for s in loaded] == [(Box(10, 20, 8, 20),)]
        assert loaded.skipped == [f"annotations_test.csv:3: {reason}"]

    def test_a_reader_without_a_name_is_no_consensus(self, tmp_path):
        rows = [box(1, "Edema", 10, 20, 18, 40, reader=reader) for reader in (1, 2)]
        rows += [f"{name(1)},,Edema,10,20,18,40"]
        assert everything(collection(tmp_path, train=rows))[1][-1] == f"annotations_train.csv:4: no rad_id ({name(1)})"

    def test_labels_of_no_use(self, tmp_path):
        labels = [labelled(7, "Pneumonia"), labelled(1).replace(",0", ",x")]
        bad = labelled(1, "Pneumonia").removesuffix(",0,0,0") + ",x,0,0"
        (study,) = sources.load(
            "vindr", collection(tmp_path / "half", test=[box(1, "Edema", 1, 2, 3, 4)], labels=[bad])
        )
        assert [f.name for f in study.findings] == ["Edema"]
        loaded = sources.load("vindr", collection(tmp_path, test=[box(1, "Edema", 1, 2, 3, 4)], labels=labels))
        assert loaded.skipped == [
            f"image_labels_test.csv:2: labels of an image without annotations ({name(7)!r})",
            "image_labels_test.csv:3: label is not 0 or 1 ('x')",
        ]

    def test_a_box_over_the_edge_is_cut_and_listed(self, tmp_path):
        loaded = sources.load("vindr", collection(tmp_path, test=[box(1, "Edema", 30, 0, 50, 10)]))
        assert loaded[0].findings[0].boxes == (Box(30, 0, 10, 10),)
        assert loaded.skipped == [f"annotations_test.csv:2: box cut to the image ({name(1)}, Edema, 50% kept)"]

    def test_a_damaged_image_is_listed_with_its_boxes(self, tmp_path):
        rows = [box(1, "Edema", 1, 2, 3, 4), box(1, "Edema", 5, 2, 9, 4), box(2, "No finding")]
        root = collection(tmp_path, test=rows)
        (root / "test" / f"{name(1)}.dicom").write_bytes(b"not DICOM")
        loaded = sources.load("vindr", root)
        assert [s.id for s in loaded] == [name(2)]
        assert loaded.skipped == [
            f"annotations_test.csv:2: unreadable image header ({name(1)}.dicom: UnidentifiedImageError)",
            f"annotations_test.csv:3: row of an image that was left out ({name(1)})",
        ]


class TestFatal:
    TERMS = r"physionet\.org/content/vindr-cxr/1\.0\.0/\. Terms: credentialed access"

    @pytest.mark.parametrize("gone", ["test", "annotations"])
    def test_says_what_is_missing_where_to_get_it_and_on_what_terms(self, tmp_path, gone):
        root = collection(tmp_path, test=[box(1, "No finding")])
        shutil.rmtree(root / gone)
        with pytest.raises(FileNotFoundError, match=rf"{gone}.*{self.TERMS}"):
            sources.load("vindr", root)

    def test_no_root(self):
        with pytest.raises(FileNotFoundError, match=f"give root.*{self.TERMS}"):
            sources.load("vindr")

    def test_a_csv_without_its_columns(self, tmp_path):
        root = collection(tmp_path, test=[])
        (root / "annotations" / "annotations_test.csv").write_text("image_id,class_name,x,y\n")
        with pytest.raises(ValueError, match=r"annotations_test\.csv: column x_min, y_min, x_max, y_max missing"):
            sources.load("vindr", root)

    def test_no_usable_row_and_no_usable_image(self, tmp_path):
        with pytest.raises(ValueError, match=r"no usable row; the first problem: annotations_test\.csv:2: unknown cl"):
            sources.load("vindr", collection(tmp_path, test=[box(1, "Cough")]))
        root = collection(tmp_path, test=[box(1, "Edema")], files=False)
        shutil.rmtree(root / "test")
        (root / "test").mkdir()
        with pytest.raises(ValueError, match=r"none of the 1 images of the test split .*:2: no image file"):
            sources.load("vindr", root)


def test_the_fingerprint_names_what_the_readers_agree_on(tmp_path):
    def loaded(root: Path, **options: object) -> list[Study]:
        return [sources.load("vindr", root, split, **options).fingerprint for split in ("train", "val")]

    root = collection(tmp_path, list(TestReaders.two_of_three))
    assert loaded(root) == loaded(root)
    assert loaded(root) != loaded(root, agree=1)
