"""NIH ChestX-ray14: small files in exactly the official format, and everything that can be wrong with them."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from chestxai import reports, sources
from chestxai.sources import nih
from chestxai.sources.splits import split_patients
from chestxai.studies import FINDINGS, Box, Frame, Study, phrases, to_images
from tests.pictures import ramp

# The headers of the official files, odd brackets and all.
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
BOXES = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
MORE = "Image Index,Finding Label,x,y,w,h"


def row(patient: int, labels: str, visit: int = 0) -> str:
    return f"{patient:08d}_{visit:03d}.png,{labels},{visit},{patient},61,F,PA,2482,2991,0.143,0.143"


def box(patient: int, label: str, *numbers: float | str, visit: int = 0) -> str:
    return f"{patient:08d}_{visit:03d}.png,{label},{','.join(map(str, numbers))}"


def picture(path: Path, size: tuple[int, int] = (16, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ramp(*size[::-1])).save(path)
    return path


def collection(
    root: Path, rows: list[str], boxes: list[str] = (), more: list[str] | None = None, images: bool = True
) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    (root / "BBox_List_2017.csv").write_text("\n".join([BOXES, *boxes]) + "\n")
    if more is not None:
        (root / "rsna_boxes.csv").write_text("\n".join([MORE, *more]) + "\n")
    for line in rows if images else ():
        name = line.partition(",")[0]
        if name.endswith(".png"):
            picture(root / "images" / name)
    return root


def everything(root: Path, **options) -> tuple[list[Study], list[str]]:
    """All studies, and the lines of all splits (a line that is in every split once)."""
    loaded = [sources.load("nih", root, split, **options) for split in ("train", "val", "test")]
    return [s for part in loaded for s in part], list(dict.fromkeys(line for part in loaded for line in part.skipped))


def one(root: Path) -> Study:
    studies, skipped = everything(root)
    assert skipped == []
    (study,) = studies
    return study


class TestRecord:
    def test_by_hand(self, tmp_path):
        root = collection(
            tmp_path, [row(75, "Effusion|Pneumothorax")], [box(75, "Effusion", 100.5, 200, 50, 25) + ",,,"]
        )
        study = one(root)
        assert (study.id, study.patient, study.source) == ("00000075_000", "00000075", "nih")
        assert study.size == (1024, 1024)
        assert study.report == "Pleural effusion and pneumothorax."
        effusion, pneumothorax = study.findings
        assert (effusion.name, effusion.phrase) == ("Pleural Effusion", "Pleural effusion")
        assert effusion.boxes == (Box(100.5, 200, 50, 25),)
        assert (pneumothorax.name, pneumothorax.phrase, pneumothorax.boxes) == ("Pneumothorax", "pneumothorax", ())
        assert study.attributes == {"labels": "Effusion|Pneumothorax", "view": "PA", "sex": "F", "age": 61.0}
        assert study.pixels().shape == (16, 16)

    def test_a_box_lands_on_the_same_place_whatever_the_resolution_of_the_file(self, tmp_path):
        # The upper left quarter of the frame is the upper left quarter of a 64-pixel model.
        study = one(collection(tmp_path, [row(1, "Pneumonia")], [box(1, "Pneumonia", 0, 0, 512, 512)]))
        mask = Frame(*study.size, 64).mask(study.findings[0])
        assert mask[:32, :32].all()
        assert mask.sum() == 32 * 32
        assert to_images([study], 64)[0].shape == (1, 64, 64)

    def test_boxes_of_one_finding_are_joined_also_over_files(self, tmp_path):
        root = collection(
            tmp_path,
            [row(1, "Infiltration")],
            [box(1, "Infiltrate", 1, 2, 3, 4)],
            [box(1, "Lung Opacity", 5, 6, 7, 8), box(1, "Lung Opacity", 50, 60, 7, 8)],
        )
        (found,) = one(root).findings
        assert found.name == "Lung Opacity"
        assert found.boxes == (Box(1, 2, 3, 4), Box(5, 6, 7, 8), Box(50, 60, 7, 8))
        assert len(phrases([one(root)])) == 1

    def test_a_box_makes_its_finding_present(self, tmp_path):
        root = collection(tmp_path, [row(1, "No Finding")], [], [box(1, "Lung Opacity", 5, 6, 7, 8)])
        assert one(root).report == "Lung opacity."
        assert [f.name for f in one(root).present()] == ["Lung Opacity"]

    def test_other_labels_are_named_but_are_no_findings_and_their_boxes_are_counted(self, tmp_path):
        root = collection(
            tmp_path,
            [row(1, "Effusion|Mass|Pleural_Thickening")],
            [box(1, "Mass", 1, 2, 3, 4), box(1, "Effusion", 1, 2, 3, 4)],
        )
        (study,), skipped = everything(root)
        assert study.report == "Pleural effusion, mass and pleural thickening."
        assert [f.name for f in study.findings] == ["Pleural Effusion"]
        assert skipped == ["BBox_List_2017.csv:2: box of none of the eight findings (Mass)"]

    def test_only_other_labels_is_not_normal(self, tmp_path):
        study = one(collection(tmp_path, [row(1, "Nodule")]))
        assert (study.report, study.findings) == ("Nodule.", ())
        assert not reports.normal(study.report)

    def test_nothing_found(self, tmp_path):
        study = one(collection(tmp_path, [row(1, "No Finding")]))
        assert (study.report, study.findings, study.labels().sum()) == ("No finding.", (), 0)
        assert reports.normal(study.report)
        assert reports.prompt(study.report) == "No finding."

    def test_the_made_up_report_says_exactly_its_findings(self, tmp_path):
        known, rng = sorted({*nih.LABELS, *nih.OTHERS}), random.Random(0)
        sets = [set(rng.sample(known, n % 7)) for n in range(1, 101)]
        root = collection(tmp_path, [row(n, "|".join(some) or nih.NORMAL) for n, some in enumerate(sets, 1)])
        studies, _ = everything(root)
        assert len(studies) == len(sets)
        for study in studies:
            labels, said = sets[int(study.patient) - 1], reports.find(study.report)
            found = {nih.LABELS[x] for x in labels & {*nih.LABELS}}
            assert {f.name for f in said} == {f.name for f in study.findings} == found
            assert all(f.present for f in said)
            for finding in study.findings:
                assert finding.phrase in study.report
                assert reports.name_in(finding.phrase, finding.name) == finding.phrase
            assert reports.normal(study.report) == (not labels)
            assert reports.prompt(study.report) == study.report

    def test_all_labels_of_the_data_set_are_known(self):
        # The fourteen of the paper's table; Infiltrate is how the list of boxes spells the fourth.
        fourteen = (
            "Atelectasis Cardiomegaly Effusion Infiltration Mass Nodule Pneumonia Pneumothorax Consolidation Edema "
            "Emphysema Fibrosis Pleural_Thickening Hernia"
        ).split()
        assert {*fourteen, "Infiltrate"} == ({*nih.LABELS} | {*nih.OTHERS}) - {"Lung Opacity", "Pleural Effusion"}
        assert {*nih.LABELS.values()} == {*FINDINGS}

    @pytest.mark.parametrize(
        ("written", "age"), [("058Y", 58.0), ("61", 61.0), ("414", None), ("", None), ("old", None)]
    )
    def test_ages_of_both_editions(self, tmp_path, written, age):
        root = collection(tmp_path, [row(1, "No Finding").replace(",61,", f",{written},")])
        assert one(root).attributes.get("age") == age


class TestFolders:
    def test_official_archives_and_the_first_edition(self, tmp_path):
        root = collection(tmp_path, [row(1, "Edema"), row(2, "Edema"), row(3, "Edema")], images=False)
        (root / "Data_Entry_2017_v2020.csv").rename(root / "Data_Entry_2017.csv")
        picture(root / "images_001" / "images" / "00000001_000.png")
        picture(root / "images_012" / "images" / "00000002_000.png")
        picture(root / "images_002" / "00000003_000.jpg")
        studies, skipped = everything(root)
        assert {s.id for s in studies} == {"00000001_000", "00000002_000", "00000003_000"}
        assert skipped == []

    @pytest.mark.parametrize(
        "header", ['Image Index,Finding Label,"Bbox [x,y,w,h]",,,', "Image Index,Finding Label,x,y,w,h"]
    )
    def test_headers_as_other_programs_save_them(self, tmp_path, header):
        root = collection(tmp_path, [row(1, "Edema")])
        (root / "BBox_List_2017.csv").write_text(
            f"\ufeff{header}\r\n{box(1, 'Edema', 1, 2, 3, 4)}\r\n", encoding="utf-8"
        )
        assert one(root).findings[0].boxes == (Box(1, 2, 3, 4),)

    def test_loading_decodes_no_pixel(self, tmp_path, monkeypatch):
        root = collection(tmp_path, [row(1, "Edema")])

        def refuse(self):
            raise AssertionError("pixels were decoded")

        monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
        assert len(everything(root)[0]) == 1


def lists(root: Path, train_val: list[str], test: list[str]) -> Path:
    (root / "train_val_list.txt").write_text("\n".join(train_val) + "\n")
    (root / "test_list.txt").write_text("\n".join(test))
    return root


class TestSplits:
    rows = tuple(row(p, "Edema", visit) for p in range(1, 201) for visit in range(1 + p % 2))
    boxes = tuple(box(p, "Edema", 1, 2, 3, 4) for p in range(1, 201, 5))

    def test_patients_never_straddle_and_none_is_lost(self, tmp_path):
        studies, _ = everything(collection(tmp_path, list(self.rows), list(self.boxes)))
        assert len({s.id for s in studies}) == len(studies) == len(self.rows)
        assert len({(s.patient, s.split) for s in studies}) == 200

    def test_without_lists_no_patient_with_a_box_is_trained_on(self, tmp_path):
        root = collection(tmp_path, list(self.rows), list(self.boxes))
        studies, _ = everything(root)
        boxed = {g.study.patient: g.study.split for g in phrases(studies)}
        assert boxed == split_patients(boxed, {"val": 0.2, "test": 0.8})
        assert set(boxed.values()) == {"val", "test"}
        rest = [s for s in studies if s.patient not in boxed]
        plain = split_patients((s.patient for s in rest), {"train": 0.8, "val": 0.1, "test": 0.1})
        assert {s.patient: s.split for s in rest} == plain

    def test_any_leaves_them_where_they_are(self, tmp_path):
        root = collection(tmp_path, list(self.rows), list(self.boxes))
        studies, _ = everything(root, boxes="any")
        assert Counter(g.study.split for g in phrases(studies))["train"] > 20

    def test_a_box_that_is_of_no_use_holds_no_patient_back(self, tmp_path):
        bad = [box(p, "Mass", 1, 2, 3, 4) for p in range(1, 201)] + [
            box(p, "Edema", 2000, 2, 3, 0) for p in range(1, 201)
        ]
        kinds = [everything(collection(tmp_path / str(i), list(self.rows), b))[0] for i, b in enumerate(([], bad))]
        assert {s.id: s.split for s in kinds[0]} == {s.id: s.split for s in kinds[1]}

    def test_official_lists(self, tmp_path):
        names = [line.partition(",")[0] for line in self.rows]
        test = [n for n in names if int(n[:8]) > 150]
        root = lists(collection(tmp_path, list(self.rows), list(self.boxes)), [n for n in names if n not in test], test)
        studies, skipped = everything(root)
        assert skipped == []
        assert {f"{s.id}.png" for s in studies if s.split == "test"} == set(test)
        trained = {s.patient for s in studies if s.split == "train"}
        tuned = {s.patient for s in studies if s.split == "val"}
        assert len(trained) + len(tuned) == 150
        assert 5 <= len(tuned) <= 30
        held, _ = everything(root, boxes="test")
        assert {g.study.split for g in phrases(held)} == {"val", "test"}

    def test_a_patient_in_both_lists_is_tested_on(self, tmp_path):
        rows = [row(1, "Edema", 0), row(1, "Edema", 1), row(2, "Edema")]
        root = lists(collection(tmp_path, rows), ["00000001_000.png", "00000001_001.png"], ["00000001_001.png"])
        studies, skipped = everything(root)
        assert [(s.id, s.split) for s in studies] == [("00000001_000", "test"), ("00000001_001", "test")]
        assert skipped == ["Data_Entry_2017_v2020.csv:4: image in neither official list (00000002_000)"]

    def test_one_list_alone_is_fatal(self, tmp_path):
        root = lists(collection(tmp_path, [row(1, "Edema")]), [], [])
        (root / "train_val_list.txt").unlink()
        with pytest.raises(ValueError, match=r"has test_list\.txt but no train_val_list\.txt"):
            sources.load("nih", root)

    def test_unknown_choice(self, tmp_path):
        with pytest.raises(ValueError, match=r"'auto', 'test' or 'any' \(got 'train'\)"):
            sources.load("nih", collection(tmp_path, [row(1, "Edema")]), boxes="train")


class TestBadRows:
    good = row(9, "Edema")

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (row(1, "Edema|Cough"), "unknown label ('Cough')"),
            (row(1, ""), "unknown label ('')"),
            (row(1, "No Finding|Edema"), "No Finding beside a finding (No Finding|Edema)"),
            (row(1, "Edema").replace(",0,1,", ",0,one,"), "patient is not a number ('one')"),
            (row(1, "Edema").replace(",0,1,", ",0,,"), "patient is not a number ('')"),
            (row(1, "Edema").replace(",0,1,", ",0,2,"), "patient is not the one in the image's name (00000001_000, 2)"),
            ("00000001_000.png", "patient is not a number ('')"),
            (",Edema,0,1,61,F,PA,1,1,1,1", "row without an image"),
            (row(9, "Mass"), "duplicate row (00000009_000, first in Data_Entry_2017_v2020.csv:3)"),
        ],
    )
    def test_one_is_listed_with_its_line_and_the_others_load(self, tmp_path, line, reason):
        order = [self.good, line] if "duplicate" in reason else [line, self.good]
        root = collection(tmp_path, ["", *order])
        studies, skipped = everything(root)
        assert [(s.id, s.report) for s in studies] == [("00000009_000", "Edema.")]
        assert skipped == [f"Data_Entry_2017_v2020.csv:{4 if 'duplicate' in reason else 3}: {reason}"]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (box(9, "Edema", 1, 2, "three", 4), "not a box (1, 2, three, 4)"),
            (box(9, "Edema", 1, 2, 3), "not a box (1, 2, 3, )"),
            (box(9, "Edema", 1, 2, 0, 4), "not a box (1, 2, 0, 4)"),
            (box(9, "Edema", 1, 2, -3, 4), "not a box (1, 2, -3, 4)"),
            (box(9, "Edema", 1, "nan", 3, 4), "not a box (1, nan, 3, 4)"),
            (box(9, "Edema", 1, 2, "inf", 4), "not a box (1, 2, inf, 4)"),
            (box(9, "Edema", 1024, 2, 3, 4), "box outside the image (00000009_000, Edema, 1024 × 1024)"),
            (box(9, "Edema", 1, -9, 3, 4), "box outside the image (00000009_000, Edema, 1024 × 1024)"),
            (box(9, "Edema", 10, 20, 30, 40), "duplicate box (00000009_000, Edema)"),
            (box(9, "Cough", 1, 2, 3, 4), "unknown label ('Cough')"),
            (box(9, "No Finding", 1, 2, 3, 4), "unknown label ('No Finding')"),
            (box(8, "Edema", 1, 2, 3, 4), "box of an image without usable labels (00000008_000)"),
            ("../../secret.png,Edema,1,2,3,4", "box of an image without usable labels (../../secret)"),
        ],
    )
    @pytest.mark.parametrize("file", ["BBox_List_2017.csv", "rsna_boxes.csv"])
    def test_a_bad_box_is_listed_with_its_line_and_the_others_stay(self, tmp_path, line, reason, file):
        good = box(9, "Edema", 10, 20, 30, 40)
        official = file.startswith("BBox")
        root = collection(tmp_path, [self.good], [good, line] if official else [], None if official else [good, line])
        (study,), skipped = everything(root)
        assert study.findings[0].boxes == (Box(10, 20, 30, 40),)
        assert skipped == [f"{file}:3: {reason}"]

    def test_a_box_over_the_edge_is_cut_and_listed(self, tmp_path):
        root = collection(tmp_path, [self.good], [box(9, "Edema", -10, 1004, 20, 20)])
        (study,), skipped = everything(root)
        assert study.findings[0].boxes == (Box(0, 1004, 10, 20),)
        assert skipped == ["BBox_List_2017.csv:2: box cut to the image (00000009_000, Edema, 50% kept)"]

    def test_a_hair_over_the_edge_is_rounding(self, tmp_path):
        study = one(collection(tmp_path, [self.good], [box(9, "Edema", 24, 24, 1000.0000001, 1000)]))
        assert study.findings[0].boxes == (Box(24, 24, 1000, 1000),)

    def test_missing_and_unreadable_images_are_listed_with_their_boxes(self, tmp_path):
        rows = [row(1, "Edema"), row(2, "Edema"), row(3, "Edema"), self.good]
        root = collection(tmp_path, rows, [box(1, "Edema", 1, 2, 3, 4), box(9, "Edema", 1, 2, 3, 4)])
        (root / "images" / "00000001_000.png").unlink()
        (root / "images" / "00000002_000.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        picture(root / "images" / "00000003_000.png", size=(16, 12))
        studies, skipped = everything(root)
        assert [s.id for s in studies] == ["00000009_000"]
        assert sorted(skipped) == [
            "BBox_List_2017.csv:2: row of an image that was left out (00000001_000)",
            "Data_Entry_2017_v2020.csv:2: no image file (00000001_000)",
            "Data_Entry_2017_v2020.csv:3: unreadable image header (00000002_000.png: UnidentifiedImageError)",
            "Data_Entry_2017_v2020.csv:4: image is not square, so that boxes do not fit (00000003_000.png: 12 × 16)",
        ]
        assert sources.Studies(skipped=skipped).reasons()["no image file"] == 1

    def test_a_body_cut_off_is_found_when_pixels_are_read(self, tmp_path):
        root = collection(tmp_path, [row(1, "Edema"), self.good])
        path = root / "images" / "00000001_000.png"
        path.write_bytes(path.read_bytes()[:45])
        studies, skipped = everything(root)
        assert (len(studies), skipped) == (2, [])
        images, kept, lines = to_images(studies, 16)
        assert (len(images), [s.id for s in kept], len(lines)) == (1, ["00000009_000"], 1)

    def test_every_line_belongs_to_one_split_where_the_patient_is_known(self, tmp_path):
        twice = [row(p, "Mass") for p in range(21, 41)]
        boxes = [box(p, "Mass", 1, 2, 3, 4) for p in range(1, 31)]
        root = collection(tmp_path, [row(p, "Edema") for p in range(1, 41)] + twice, boxes)
        for p in range(1, 21):
            (root / "images" / f"{p:08d}_000.png").unlink()
        loaded = [sources.load("nih", root, split) for split in ("train", "val", "test")]
        total = sum((Counter(part.reasons()) for part in loaded), Counter())
        assert total == {"no image file": 20, "duplicate row": 20, "box of none of the eight findings": 30}
        assert sum(map(len, loaded)) == 20


class TestFatal:
    @pytest.mark.parametrize("gone", ["images", "Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"])
    def test_says_what_is_missing_where_to_get_it_and_on_what_terms(self, tmp_path, gone):
        root = collection(tmp_path, [row(1, "Edema")])
        shutil.rmtree(root / gone) if gone == "images" else (root / gone).unlink()
        with pytest.raises(FileNotFoundError, match=rf"{gone}.*nihcc\.app\.box\.com/v/ChestXray-NIHCC.*Terms: "):
            sources.load("nih", root)

    @pytest.mark.parametrize(
        ("file", "text", "column"),
        [
            ("Data_Entry_2017_v2020.csv", "", "Image Index, Finding Labels, Patient ID"),
            ("Data_Entry_2017_v2020.csv", "Image Index,Finding Labels\n", "Patient ID"),
            ("BBox_List_2017.csv", "Image Index,Finding Label,Bbox [x,y]\n", "w, h"),
            ("rsna_boxes.csv", "patientId,x,y,width,height\n", "Image Index, Finding Label, w, h"),
        ],
    )
    def test_a_csv_without_its_columns(self, tmp_path, file, text, column):
        root = collection(tmp_path, [row(1, "Edema")])
        (root / file).write_text(text)
        with pytest.raises(ValueError, match=rf"{file}: column {column} missing; its first line is .*nihcc\.app\.box"):
            sources.load("nih", root)

    def test_a_csv_that_is_none(self, tmp_path):
        root = collection(tmp_path, [row(1, "Edema")])
        with open(root / "Data_Entry_2017_v2020.csv", "a") as file:
            file.write('"' + "x" * 200_000)
        with pytest.raises(ValueError, match=r"Data_Entry_2017_v2020\.csv:\d+: not readable as csv"):
            sources.load("nih", root)

    def test_no_usable_row_names_the_first_problem(self, tmp_path):
        root = collection(tmp_path, [row(1, "Cough")])
        with pytest.raises(
            ValueError, match=r"no usable row; the first problem: Data_Entry_2017_v2020\.csv:2: unknown label"
        ):
            sources.load("nih", root)

    def test_images_of_another_collection(self, tmp_path):
        root = collection(tmp_path, [row(1, "Edema"), row(2, "Edema")], images=False)
        picture(root / "images" / "chest.png")
        with pytest.raises(ValueError, match="none of the 2 images listed has a file among the 1 there"):
            sources.load("nih", root)

    def test_no_root(self):
        with pytest.raises(FileNotFoundError, match="give root"):
            sources.load("nih")


class TestFingerprint:
    rows = tuple(row(p, "Edema") for p in range(1, 21))
    boxes = (box(3, "Edema", 1, 2, 3, 4), box(4, "Edema", 1, 2, 3, 4), box(5, "Edema", 1, 2, 3, 4))

    def names(self, root: Path) -> list[str]:
        return [sources.load("nih", root, split).fingerprint for split in ("train", "val", "test")]

    def test_names_the_content_not_the_place(self, tmp_path):
        a = collection(tmp_path / "a", list(self.rows), list(self.boxes))
        shutil.copytree(a, tmp_path / "elsewhere" / "b")
        assert self.names(a) == self.names(tmp_path / "elsewhere" / "b")
        assert len(set(self.names(a))) == 3

    @pytest.mark.parametrize("change", ["label", "box", "image"])
    def test_any_change_of_what_is_loaded_shows(self, tmp_path, change):
        rows, boxes = list(self.rows), list(self.boxes)
        before = self.names(collection(tmp_path, rows, boxes))
        if change == "label":
            rows[7] = row(8, "Edema|Mass")
        elif change == "box":
            boxes[1] = box(4, "Edema", 1, 2, 3, 5)
        collection(tmp_path, rows, boxes)
        if change == "image":
            picture(tmp_path / "images" / "00000008_000.png", size=(32, 32))
        changed = [a != b for a, b in zip(before, self.names(tmp_path), strict=True)]
        assert sum(changed) == 1
