"""Your own data: what a csv may hold, and the messages when it cannot be read."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from chestxai import reports, sources
from chestxai.sources import folder
from chestxai.studies import Box, Frame, Study, phrases, to_images
from tests.pictures import ramp
from tests.test_studies import dicom

ALL = ("image", "text", "finding", "x", "y", "w", "h", "patient", "split", "side")


def row(image: str = "a.png", text: str = "Small left pleural effusion.", **cells: object) -> dict[str, object]:
    return {"image": image, "text": text, **cells}


def boxed(x: object, y: object, w: object, h: object, **cells: object) -> dict[str, object]:
    return row(**{"x": x, "y": y, "w": w, "h": h, **cells})


def table(path: Path, rows: list[dict], columns: tuple[str, ...] = ALL) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def collection(root: Path, rows: list[dict], columns: tuple[str, ...] = ALL, name: str = "mine.csv") -> Path:
    """A csv and, for every sensible name in it, an image of 40 columns and 30 rows."""
    table(root / name, rows, columns)
    for image in {str(r["image"]) for r in rows}:
        if image and ".." not in image and not image.startswith(("/", "xxx")):
            (root / image).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ramp(30, 40)).save(root / image)
    return root


def everything(root: Path, **options: object) -> tuple[list[Study], list[str]]:
    """The studies of all splits, and the lines of all (one that is in every split once)."""
    parts = [sources.load("folder", root, split, **options) for split in ("train", "val", "test")]
    return [s for part in parts for s in part], list(dict.fromkeys(line for part in parts for line in part.skipped))


def one(root: Path) -> Study:
    (study,), skipped = everything(root)
    assert skipped == []
    return study


class TestRecord:
    def test_by_hand(self, tmp_path):
        text = "Small left pleural effusion."
        rows = [
            boxed(1, 2, 3, 4, finding="Pleural Effusion", patient="p7", split="val"),
            boxed(10.5, 2, 3, 4, finding="pleural_effusion"),
            row(text="No pneumothorax."),
            boxed(20, 20, 5, 5, text="Mass in the left lung", finding="Mass"),
        ]
        study = one(collection(tmp_path, rows))
        assert (study.id, study.patient, study.source, study.split) == ("a.png", "p7", "folder", "val")
        assert (study.size, study.path) == ((30, 40), tmp_path / "a.png")
        assert study.report == f"{text}\nNo pneumothorax.\nMass in the left lung"
        effusion, pneumothorax, mass = study.findings
        # Rows of one image, finding and text are one finding; its name is the book's, however it was written.
        assert (effusion.name, effusion.phrase, effusion.present) == ("Pleural Effusion", text, True)
        assert effusion.boxes == (Box(1, 2, 3, 4), Box(10.5, 2, 3, 4))
        assert (effusion.side, effusion.severity) == ("left", "mild")
        assert (pneumothorax.name, pneumothorax.present, pneumothorax.boxes) == ("Pneumothorax", False, ())
        # A name of your own stays.
        assert (mass.name, mass.boxes) == ("Mass", (Box(20, 20, 5, 5),))
        assert [g.finding.name for g in phrases([study])] == ["Pleural Effusion", "Mass"]

    @pytest.mark.parametrize("name", ["a（1）.png", "ｂ2.png", "m\u200b6.png", "é.png"])
    def test_names_of_files_may_have_characters_of_any_width(self, tmp_path, name):
        root = collection(tmp_path, [{"image": name, "text": "No pneumothorax."}], ("image", "text"))
        found, skipped = everything(root)
        assert ([study.path for study in found], skipped) == ([root / name], [])

    def test_two_columns_are_enough(self, tmp_path):
        root = collection(tmp_path, [row("deep/down/b.jpg", "Mild cardiomegaly. No edema.")], ("image", "text"))
        study = one(root)
        assert (study.id, study.patient) == ("deep/down/b.jpg", "deep/down/b.jpg")
        assert study.findings == tuple(reports.find("Mild cardiomegaly. No edema."))
        assert [(f.name, f.present) for f in study.findings] == [("Cardiomegaly", True), ("Edema", False)]

    @given(st.permutations(ALL))
    @settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_columns_in_any_order_beside_others(self, tmp_path, order):
        rows = [boxed(1, 2, 3, 4, finding="Edema", text="edema, mild", patient="x", split="test", side="left")]
        table(tmp_path / "mine.csv", rows, ("note", *order))
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / "a.png")
        (study,) = sources.load("folder", tmp_path, "test")
        assert (study.patient, study.findings[0].side, study.findings[0].boxes) == ("x", "left", (Box(1, 2, 3, 4),))

    def test_several_csv_are_one_table(self, tmp_path):
        collection(tmp_path, [boxed(1, 2, 3, 4)], name="b.csv")
        study = one(collection(tmp_path, [boxed(5, 6, 7, 8)], name="a.csv"))
        assert study.findings[0].boxes == (Box(5, 6, 7, 8), Box(1, 2, 3, 4))

    def test_a_box_without_a_finding_is_named_by_its_text(self, tmp_path):
        assert one(collection(tmp_path, [boxed(1, 2, 3, 4)])).findings[0].name == "Pleural Effusion"

    def test_a_report_of_many_lines_stays_as_it_is_and_lines_still_count(self, tmp_path):
        text = 'FINDINGS:\n  Heart size "normal", no effusion.\n\nIMPRESSION:\nPneumonia.'
        root = collection(tmp_path, [row(text=text), row("", "lost")])
        (study,), skipped = everything(root)
        assert study.report == text
        assert reports.prompt(study.report) == "Pneumonia."
        # The first row fills lines 2 to 6.
        assert skipped == ["mine.csv:7: row without an image"]

    @pytest.mark.parametrize(
        ("text", "box", "present"), [("No edema.", None, False), ("No edema.", 1, True), ("Edema.", None, True)]
    )
    def test_what_has_a_box_is_present_else_the_text_decides(self, tmp_path, text, box, present):
        rows = [boxed(1, 2, 3, 4, text=text, finding="Edema") if box else row(text=text, finding="Edema")]
        (found,) = one(collection(tmp_path, rows)).findings
        assert (found.present, found.phrase) == (present, text)

    def test_the_column_side_counts_more_than_the_text(self, tmp_path):
        assert one(collection(tmp_path, [boxed(1, 2, 3, 4, side="Right")])).findings[0].side == "right"

    @pytest.mark.parametrize("kind", ["png", "png of 16 bits", "jpeg", "dicom"])
    def test_every_kind_of_image(self, tmp_path, kind):
        values = np.arange(30 * 40).reshape(30, 40)
        table(tmp_path / "mine.csv", [boxed(0, 0, 20, 15, image="a.img")])
        if kind == "dicom":
            dicom(tmp_path / "a.img", values.astype(np.uint16))
        else:
            bits = values.astype(np.uint16) if "16" in kind else (values // 5).astype(np.uint8)
            Image.fromarray(bits).save(tmp_path / "a.img", kind.split()[0])
        study = one(tmp_path)
        assert study.size == (30, 40)
        pixels = study.pixels()
        assert (pixels.shape, pixels.dtype) == ((30, 40), np.uint8)
        assert pixels[-1, -1] > pixels[0, 0]
        # The upper left quarter of the image is that of the model's frame, less what the crop takes on the left.
        assert np.argwhere(Frame(*study.size, 6).mask(study.findings[0])).max(axis=0).tolist() == [2, 2]
        assert to_images([study], 6)[0].shape == (1, 6, 6)


class TestSplits:
    def test_without_a_split_patients_are_divided_by_their_name(self, tmp_path):
        rows = [row(f"{p}-{n}.png", "Edema.", patient=f"p{p}") for p in range(60) for n in range(2)]
        studies, skipped = everything(collection(tmp_path, rows))
        assert skipped == []
        splits = {s.patient: s.split for s in studies}
        assert len(studies) == 120
        assert {(s.patient, s.split) for s in studies} == set(splits.items())
        assert {*splits.values()} == {"train", "val", "test"}
        assert 36 <= list(splits.values()).count("train") <= 56
        # The other patients do not matter; the seed does.
        few, _ = everything(collection(tmp_path / "few", rows[::7]))
        assert all(splits[s.patient] == s.split for s in few)
        assert {s.patient: s.split for s in everything(tmp_path, seed=1)[0]} != splits

    @pytest.mark.parametrize(("word", "split"), [("train", "train"), ("Validation", "val"), ("validate", "val")])
    def test_given(self, tmp_path, word, split):
        rows = [row(f"{n}.png", patient="x", split=word if n == 3 else "") for n in range(5)]
        assert [s.split for s in everything(collection(tmp_path, rows))[0]] == [split] * 5

    def test_a_patient_in_two_splits_is_refused(self, tmp_path):
        rows = [row("a.png", patient="x", split="train"), row("b.png", patient="x", split="test")]
        with pytest.raises(
            ValueError, match=r"patient 'x' is in train in mine\.csv:2 and in test in mine\.csv:3: all images of a p"
        ):
            sources.load("folder", collection(tmp_path, rows))

    def test_an_image_of_two_patients_is_refused(self, tmp_path):
        rows = [row(patient="x"), row(patient="y")]
        with pytest.raises(ValueError, match=r"a\.png is of patient 'y' in mine\.csv:3 and of 'x' in mine\.csv:2"):
            sources.load("folder", collection(tmp_path, rows))


class TestBadRows:
    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            (row("", "x"), "row without an image"),
            (row("../secret.png"), "not a path inside the folder ('../secret.png')"),
            (row("b/../../secret.png"), "not a path inside the folder ('b/../../secret.png')"),
            (row("/etc/secret.png"), "not a path inside the folder ('/etc/secret.png')"),
            (row(r"..\secret.png"), r"not a path inside the folder ('..\\secret.png')"),
            (row("C:secret.png"), "not a path inside the folder ('C:secret.png')"),
            (row(text=" "), "row without a text (a.png)"),
            (row(side="up"), "unknown side ('up': left, right or bilateral)"),
            (row(side="left"), "side without a finding (a.png)"),
            (
                row(finding="Pleural Efusion"),
                "unknown finding ('Pleural Efusion': 'Pleural Effusion', or a name less like it)",
            ),
            (row(finding="effusions"), "unknown finding ('effusions': 'Pleural Effusion', or a name less like it)"),
            (
                row(finding="Enlarged heart"),
                "unknown finding ('Enlarged heart': 'Cardiomegaly', or a name less like it)",
            ),
            (row(split="held out"), "unknown split ('held out': train, val or test)"),
            (boxed(1, 2, 3, ""), "not a box (1, 2, 3, )"),
            (boxed(1, 2, "wide", 4), "not a box (1, 2, wide, 4)"),
            (boxed(1, 2, 0, 4), "not a box (1, 2, 0, 4)"),
            (boxed("nan", 2, 3, 4), "not a box (nan, 2, 3, 4)"),
            (boxed(40, 2, 3, 4), "box outside the image (a.png, 30 × 40)"),
            (boxed(1, 2, 3, 4, text="shadow"), "box without a finding, and its text names none (none of the eight)"),
            (boxed(1, 2, 3, 4, text="No edema"), "box without a finding, and its text names none (none of the eight)"),
            (
                boxed(1, 2, 3, 4, text="Edema and effusion"),
                "box without a finding, and its text names several (Edema, Pleural Effusion)",
            ),
            (row("gone.png", split="test"), "no image file (gone.png)"),
            (row("x" * 300, split="test"), f"unreadable image header ({'x' * 300}: OSError)"),
        ],
    )
    def test_one_is_listed_with_file_and_line_and_the_others_load(self, tmp_path, bad, reason):
        root = collection(tmp_path, [boxed(4, 5, 6, 7, split="test"), bad])
        if "gone" in reason:
            (root / "gone.png").unlink()
        studies, skipped = everything(root)
        assert skipped == [f"mine.csv:3: {reason}"]
        (study,) = studies
        assert study.findings[0].boxes == (Box(4, 5, 6, 7),)

    def test_a_box_over_the_edge_is_cut_and_listed(self, tmp_path):
        (study,), skipped = everything(collection(tmp_path, [boxed(30, 20, 20, 10), boxed(0, 0, 40.00001, 30)]))
        assert study.findings[0].boxes == (Box(30, 20, 10, 10), Box(0, 0, 40, 30))
        assert skipped == ["mine.csv:2: box cut to the image (a.png, 50% kept)"]

    def test_an_image_that_cannot_be_read_is_listed_once_and_its_other_rows_too(self, tmp_path):
        root = collection(tmp_path, [row(), row(text="Edema."), row("b.png")])
        (root / "a.png").write_bytes(b"\x89PNG")
        (study,), skipped = everything(root)
        assert study.id == "b.png"
        assert skipped == [
            "mine.csv:2: unreadable image header (a.png: UnidentifiedImageError)",
            "mine.csv:3: row of an image that was left out (a.png)",
        ]

    def test_a_line_belongs_to_one_split_where_the_image_is_known(self, tmp_path):
        rows = [r for p in range(40) for r in (row(f"{p}.png"), boxed(1, 2, 3, "", image=f"{p}.png"))]
        parts = [sources.load("folder", collection(tmp_path, rows), split) for split in ("train", "val", "test")]
        assert sum((Counter(part.reasons()) for part in parts), Counter()) == {"not a box": 40}
        assert [len(part.skipped) for part in parts] == [len(part) for part in parts]


class TestFatal:
    def test_no_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"give root, the folder of your data\. .*columns image \(path"):
            sources.load("folder")
        with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder\. .*x, y, w, h \(a box in pixels\)"):
            sources.load("folder", tmp_path / "nowhere")
        with pytest.raises(FileNotFoundError, match=r"has no csv file\. .*names of columns in the first line"):
            sources.load("folder", tmp_path)

    def test_a_csv_without_its_columns_or_with_other_separators(self, tmp_path):
        (tmp_path / "mine.csv").write_text("image;text\na.png;edema\n")
        with pytest.raises(
            ValueError, match=r"mine\.csv: column image, text missing; its first line is 'image;text'.*commas between"
        ):
            sources.load("folder", tmp_path)

    def test_a_text_with_commas_and_no_quotes_is_told_before_its_words_become_patients(self, tmp_path):
        collection(tmp_path, [row("0.png")])
        lines = ["image,text,patient", '0.png,"No effusion, or edema.",P1', "0.png,No effusion, or edema.,P1"]
        (tmp_path / "mine.csv").write_text("\n".join(lines))
        with pytest.raises(
            ValueError, match=r"mine.csv:3: 4 cells for 3 columns: put texts that have commas in quotes"
        ):
            everything(tmp_path)
        # Empty cells at the end of a line, as spreadsheets leave them, shift nothing.
        (tmp_path / "mine.csv").write_text("\n".join([*lines[:2], "0.png,Edema.,P1,,"]))
        assert one(tmp_path).patient == "P1"

    def test_a_comma_in_a_quoted_header_moves_no_column(self, tmp_path):
        columns = ("image", "text", "notes, internal", "patient", "split")
        collection(tmp_path, [row(patient="P1", split="val", **{"notes, internal": "seen"})], columns)
        study = one(tmp_path)
        assert (study.patient, study.split) == ("P1", "val")

    def test_half_a_box(self, tmp_path):
        root = collection(tmp_path, [row(x=1, y=2)], ("image", "text", "x", "y"))
        with pytest.raises(ValueError, match=r"mine\.csv: column w, h missing"):
            sources.load("folder", root)

    def test_no_usable_row_names_the_first_problem(self, tmp_path):
        with pytest.raises(ValueError, match=r"no usable row; the first problem: mine\.csv:2: row without an image"):
            sources.load("folder", collection(tmp_path, [row("")]))

    def test_no_image_can_be_read(self, tmp_path):
        root = collection(tmp_path, [row(f"images/{n}.png", split="test") for n in range(3)])
        shutil.rmtree(root / "images")
        with pytest.raises(ValueError, match=r"none of the 3 images of the test split .*: no image file \(images/0"):
            sources.load("folder", root)
        assert sources.load("folder", root, "train") == []


class TestFingerprint:
    def test_names_the_content_not_the_place(self, tmp_path):
        rows = [boxed(1, 2, 3, 4, split="test")]
        first = sources.load("folder", collection(tmp_path / "a", rows)).fingerprint
        assert sources.load("folder", collection(tmp_path / "b", rows)).fingerprint == first
        for change in ({"x": 2}, {"text": "Left pleural effusion"}, {"side": "right"}, {"finding": "Edema"}):
            changed = collection(tmp_path / "c", [rows[0] | change])
            assert sources.load("folder", changed).fingerprint != first


def test_it_is_registered():
    assert "folder" in sources.SOURCES
    assert sum(folder.FRACTIONS.values()) == pytest.approx(1)
