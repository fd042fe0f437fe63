"""PadChest-GR: small made-up files in exactly the official format, with any key absent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from chestxai import sources
from chestxai.studies import FINDINGS, Box, Frame, Study, phrases, to_images

# The header of the official table.
TABLE = (
    "StudyID,ImageID,label,boxes_count,extra_boxes_count,locations,prior_study,progression_status,prior_imageID,"
    "sentence_en,sentence_es,study_is_benchmark,study_is_validation,split,PatientID,patient_is_benchmark,PatientBirth,"
    "PatientSex_DICOM,StudyDate_DICOM,StudyDate,PatientAge,label_group,Year"
)
EFFUSION = {
    "sentence_en": "Small left pleural effusion.",
    "sentence_es": "Pequeño derrame pleural izquierdo.",
    "abnormal": True,
    "boxes": [[0.25, 0.5, 0.5, 1.0]],
    "extra_boxes": [[0.3, 0.5, 0.5, 1.0]],
    "labels": ["pleural effusion"],
    "locations": ["left", "pleural"],
    "progression": None,
}
CLEAR = {
    "sentence_en": "No pneumothorax.",
    "sentence_es": "No se observa neumotórax.",
    "abnormal": False,
    "boxes": [],
    "extra_boxes": [],
    "labels": [],
    "locations": [],
    "progression": None,
}


def image(n: int) -> str:
    return f"{n:039d}_{n:06d}.png"


def study(n: int, *findings: object, **changes: object) -> dict[str, object]:
    record = {"StudyID": f"{n:039d}", "ImageID": image(n), "PreviousStudyID": None, "PreviousImageID": None}
    return record | {"findings": list(findings)} | changes


def row(n: int, split: str = "test", patient: object = None) -> str:
    given = {"StudyID": f"{n:039d}", "ImageID": image(n), "split": split}
    given["PatientID"] = f"p{n}" if patient is None else str(patient)
    return ",".join(given.get(column, "") for column in TABLE.split(","))


def collection(root: Path, records: object, rows: list[str], nested: bool = False) -> Path:
    """The official layout; every image has 40 columns and 48 rows, 16 bits."""
    folder = root / "Padchest_GR_files" / ("PadChest_GR" if nested else "")
    folder.mkdir(parents=True, exist_ok=True)
    (root / "grounded_reports_20240819.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    (root / "master_table.csv").write_text("\n".join([TABLE, *rows]) + "\n")
    for record in records if isinstance(records, list) else ():
        name = record.get("ImageID") if isinstance(record, dict) else None
        if isinstance(name, str) and "/" not in name:
            Image.fromarray(np.arange(48 * 40, dtype=np.uint16).reshape(48, 40)).save(folder / name, "png")
    return root


def everything(root: Path, **options: object) -> tuple[list[Study], list[str]]:
    """The studies of all splits, and the lines of all (one that is in every split once)."""
    parts = [sources.load("padchest", root, split, **options) for split in ("train", "val", "test")]
    return [s for part in parts for s in part], list(dict.fromkeys(line for part in parts for line in part.skipped))


class TestRecord:
    @pytest.mark.parametrize("nested", [False, True])
    def test_by_hand(self, tmp_path, nested):
        root = collection(tmp_path, [study(1, EFFUSION, CLEAR)], [row(1), row(1)], nested)
        (one,), skipped = everything(root)
        assert skipped == []
        assert (one.id, one.patient, one.source, one.split) == (image(1)[:-4], "p1", "padchest", "test")
        assert one.size == (48, 40)
        assert one.report == "Small left pleural effusion.\nNo pneumothorax."
        effusion, clear = one.findings
        assert (effusion.name, effusion.phrase, effusion.present) == ("Pleural Effusion", EFFUSION["sentence_en"], True)
        # Fractions of 40 columns and of 48 rows.
        assert effusion.boxes == (Box(10, 24, 10, 24),)
        assert (effusion.side, effusion.severity) == ("left", "mild")
        assert (clear.name, clear.phrase, clear.present, clear.boxes) == ("Pneumothorax", "No pneumothorax.", False, ())
        assert one.attributes == {"study": f"{1:039d}"}
        assert one.pixels()[-1, -1] == 255
        assert len(phrases([one])) == 1

    def test_in_spanish(self, tmp_path):
        (one,), _ = everything(collection(tmp_path, [study(1, EFFUSION, CLEAR)], [row(1)]), language="es")
        assert one.report == "Pequeño derrame pleural izquierdo.\nNo se observa neumotórax."
        assert [(f.name, f.phrase, f.present, f.side) for f in one.findings] == [
            ("Pleural Effusion", "Pequeño derrame pleural izquierdo.", True, "left"),
            ("Pneumothorax", "No se observa neumotórax.", False, None),
        ]

    def test_both_readers(self, tmp_path):
        root = collection(tmp_path, [study(1, EFFUSION), study(2, EFFUSION | {"boxes": []})], [row(1), row(2)])
        second = Box(12, 24, 8, 24)
        assert [s.findings[0].boxes for s in everything(root)[0]] == [(Box(10, 24, 10, 24),), (second,)]
        assert everything(root, readers="both")[0][0].findings[0].boxes == (Box(10, 24, 10, 24), second)

    def test_a_box_lands_on_its_place(self, tmp_path):
        boxes = {"boxes": [[0, 4 / 48, 0.5, 24 / 48]]}
        (one,), _ = everything(collection(tmp_path, [study(1, EFFUSION | boxes)], [row(1)]))
        # The central 40 × 40 square starts at row 4: the box is its upper left quarter.
        mask = Frame(*one.size, 16).mask(one.findings[0])
        assert mask[:8, :8].all()
        assert mask.sum() == 64
        assert to_images([one], 16)[0].shape == (1, 16, 16)

    def test_a_sentence_with_two_labels_is_two_findings(self, tmp_path):
        both = EFFUSION | {"labels": ["Pleural effusion", "laminar atelectasis", "nodule"]}
        (one,), skipped = everything(collection(tmp_path, [study(1, both)], [row(1)]))
        assert [(f.name, len(f.boxes)) for f in one.findings] == [("Atelectasis", 1), ("Pleural Effusion", 1)]
        assert skipped == []

    def test_a_sentence_that_occurs_twice_keeps_the_boxes_of_both(self, tmp_path):
        again = EFFUSION | {"boxes": [[0.5, 0.5, 0.75, 1.0], *EFFUSION["boxes"]]}
        for sentences, count in (([EFFUSION, again], 2), ([EFFUSION, EFFUSION | {"boxes": [], "extra_boxes": []}], 1)):
            place = tmp_path / str(count)
            (one,), skipped = everything(collection(place, [study(1, *sentences)], [row(1)]))
            assert [len(f.boxes) for f in one.findings] == [count]
            assert skipped == []

    def test_anything_else_stays_in_the_report_and_its_box_is_listed(self, tmp_path):
        nodule = EFFUSION | {"sentence_en": "Nodule.", "labels": ["nodule"]}
        (one,), skipped = everything(collection(tmp_path, [study(1, nodule)], [row(1)]))
        assert (one.report, one.findings) == ("Nodule.", ())
        assert skipped == ["grounded_reports_20240819.json[0].findings[0]: box of none of the eight findings (nodule)"]

    @pytest.mark.parametrize("absent", ["null", "gone"])
    @given(st.sets(st.sampled_from(sorted({*EFFUSION} - {"sentence_en"}))))
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_other_key_may_be_absent(self, absent, tmp_path, keys):
        item = {k: v for k, v in EFFUSION.items() if k not in keys or absent == "null"}
        item |= dict.fromkeys(keys) if absent == "null" else {}
        (one,) = sources.load("padchest", collection(tmp_path, [study(1, item)], [row(1)]))
        (found,) = one.findings
        assert (found.name, found.present, found.side) == ("Pleural Effusion", True, "left")
        assert len(found.boxes) == (not keys >= {"boxes", "extra_boxes"})

    def test_a_negative_sentence_is_known_without_being_called_so(self, tmp_path):
        item = {"sentence_en": "No pneumothorax."}
        (one,), _ = everything(collection(tmp_path, [study(1, item)], [row(1)]))
        # Without labels and boxes the English decides.
        assert [(f.name, f.present) for f in one.findings] == [("Pneumothorax", False)]

    def test_labels_count_where_the_sentence_is_not_understood(self, tmp_path):
        item = {"sentence_en": "Blurred left angle.", "labels": ["pleural effusion"]}
        (one,), _ = everything(collection(tmp_path, [study(1, item)], [row(1)]))
        assert [(f.name, f.present) for f in one.findings] == [("Pleural Effusion", True)]

    def test_a_label_may_mean_two_findings_and_two_labels_one(self, tmp_path):
        labels = ["hydropneumothorax", "atelectasis", "lobar atelectasis"]
        item = {"sentence_en": "Right hydropneumothorax with collapse.", "labels": labels}
        (one,), _ = everything(collection(tmp_path, [study(1, item)], [row(1)]))
        assert [f.name for f in one.findings] == ["Atelectasis", "Pleural Effusion", "Pneumothorax"]

    def test_the_latest_reports_count(self, tmp_path):
        root = collection(tmp_path, [study(1, EFFUSION)], [row(1)])
        (root / "grounded_reports_20230101.json").write_text("[]")
        assert len(sources.load("padchest", root)) == 1

    def test_labels_are_of_the_book_and_it_is_known_to_be_credentialed(self):
        assert {*sources.terms("padchest").labels} == {*FINDINGS}
        assert sources.terms("padchest").credentialed


class TestSplits:
    def test_official_by_patient(self, tmp_path):
        rows = [row(1, "train"), row(2, "validation"), row(3, "test"), row(4, "train", "x"), row(5, "test", "x")]
        studies, skipped = everything(collection(tmp_path, [study(n, EFFUSION) for n in range(1, 6)], rows))
        assert {s.patient: s.split for s in studies} == {"p1": "train", "p2": "val", "p3": "test", "x": "test"}
        assert len(studies) == 5
        assert skipped == []

    def test_a_study_without_a_row_is_listed_in_each(self, tmp_path):
        rows = [row(n, split) for n, split in enumerate(("train", "test", "test"), 1)]
        root = collection(tmp_path, [study(n, EFFUSION) for n in range(5) if n], rows)
        for split in ("train", "val", "test"):
            loaded = sources.load("padchest", root, split)
            assert len(loaded) == ("train", "test", "test").count(split)
            assert loaded.skipped == [
                f"grounded_reports_20240819.json[3]: study without a patient and split in master_table.csv ({image(4)})"
            ]


class TestBadRecords:
    @pytest.mark.parametrize(
        ("record", "reason"),
        [
            ("text", ": not a study"),
            (study(2, EFFUSION, ImageID="../../secret.png"), ": not an ImageID ('../../secret.png')"),
            (study(2, EFFUSION, ImageID=None), ": not an ImageID ('')"),
            (study(2), ": study without sentences"),
            (study(2, findings=None), ": study without sentences"),
            (study(1, EFFUSION), f": image listed before ({image(1)}, by grounded_reports_20240819.json[0])"),
            (study(3, EFFUSION), f": no image file ({image(3)})"),
        ],
    )
    def test_one_is_listed_with_its_place_and_the_others_load(self, tmp_path, record, reason):
        root = collection(tmp_path, [study(1, EFFUSION), record], [row(n) for n in (1, 2, 3)])
        (root / "Padchest_GR_files" / image(3)).unlink(missing_ok=True)
        loaded = sources.load("padchest", root)
        assert [s.patient for s in loaded] == ["p1"]
        assert loaded.skipped == [f"grounded_reports_20240819.json[1]{reason}"]

    @pytest.mark.parametrize(
        ("box", "reason"),
        [
            ([0.5, 0.5, 0.25, 1.0], "not a box ([0.5, 0.5, 0.25, 1.0])"),
            ([0.1, 0.2, 0.3], "not a box ([0.1, 0.2, 0.3])"),
            ([0.1, 0.2, 0.3, "x"], "not a box ([0.1, 0.2, 0.3, 'x'])"),
            (None, "not a box (None)"),
            ([1.0, 0.2, 1.3, 0.4], "box outside the image ([1.0, 0.2, 1.3, 0.4], 48 × 40)"),
        ],
    )
    def test_a_bad_box(self, tmp_path, box, reason):
        item = EFFUSION | {"boxes": [box, [0.25, 0.5, 0.5, 1.0]]}
        (one,), skipped = everything(collection(tmp_path, [study(1, item)], [row(1)]))
        assert one.findings[0].boxes == (Box(10, 24, 10, 24),)
        assert skipped == [f"grounded_reports_20240819.json[0].findings[0]: {reason}"]

    def test_a_box_over_the_edge_is_cut_and_listed(self, tmp_path):
        item = EFFUSION | {"boxes": [[0.5, 0.5, 1.5, 1.0]]}
        (one,), skipped = everything(collection(tmp_path, [study(1, item)], [row(1)]))
        assert one.findings[0].boxes == (Box(20, 24, 20, 24),)
        assert skipped[0].endswith("box cut to the image ([0.5, 0.5, 1.5, 1.0], 50% kept)")

    def test_a_sentence_without_this_language(self, tmp_path):
        item = {k: v for k, v in EFFUSION.items() if k != "sentence_es"}
        (one,), skipped = everything(collection(tmp_path, [study(1, item, CLEAR)], [row(1)]), language="es")
        assert one.report == CLEAR["sentence_es"]
        assert skipped == ["grounded_reports_20240819.json[0].findings[0]: no sentence in this language (es)"]

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            (row(1, "held out"), "unknown split ('held out')"),
            (row(1, "test", ""), f"row without a patient ({1:039d})"),
            (row(1, "test", "other"), f"study of two patients ({1:039d})"),
        ],
    )
    def test_the_table(self, tmp_path, bad, reason):
        (one,), skipped = everything(collection(tmp_path, [study(1, EFFUSION)], [row(1), bad]))
        assert one.patient == "p1"
        assert skipped == [f"master_table.csv:3: {reason}"]


class TestFatal:
    TERMS = r"bimcv\.cipf\.es/bimcv-projects/padchest-gr/\. Terms: access on request"

    @pytest.mark.parametrize("gone", ["grounded_reports_20240819.json", "master_table.csv", "Padchest_GR_files"])
    def test_says_what_is_missing_where_to_get_it_and_on_what_terms(self, tmp_path, gone):
        root = collection(tmp_path, [study(1, EFFUSION)], [row(1)])
        shutil.rmtree(root / gone) if gone.endswith("files") else (root / gone).unlink()
        with pytest.raises(FileNotFoundError, match=rf"has no {gone[:16]}.*{self.TERMS}"):
            sources.load("padchest", root)

    def test_no_root_and_unknown_options(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=f"give root.*{self.TERMS}"):
            sources.load("padchest")
        for option in ({"language": "de"}, {"readers": "third"}):
            with pytest.raises(ValueError, match=r"of padchest: Input should be '(en' or 'es|first' or 'both)'"):
                sources.load("padchest", tmp_path, **option)

    @pytest.mark.parametrize(("text", "problem"), [('[{"StudyID":', "damaged or cut off"), ("{}", "found dict")])
    def test_reports_of_another_format(self, tmp_path, text, problem):
        root = collection(tmp_path, [], [row(1)])
        (root / "grounded_reports_20240819.json").write_text(text)
        with pytest.raises(ValueError, match=rf"grounded_reports_20240819\.json: .*{problem}.*{self.TERMS}"):
            sources.load("padchest", root)

    def test_a_table_without_its_columns(self, tmp_path):
        root = collection(tmp_path, [study(1, EFFUSION)], [])
        (root / "master_table.csv").write_text("StudyID,label\n")
        with pytest.raises(ValueError, match=r"master_table\.csv: column PatientID, split missing"):
            sources.load("padchest", root)

    def test_none_of_use(self, tmp_path):
        root = collection(tmp_path, [study(1, EFFUSION)], [row(1)])
        (root / "Padchest_GR_files" / image(1)).unlink()
        with pytest.raises(ValueError, match=r"none of the 1 images of the test split .*\[0\]: no image f"):
            sources.load("padchest", root)
        assert sources.load("padchest", root, "train") == []


def test_the_fingerprint_names_what_is_loaded(tmp_path):
    root = collection(tmp_path, [study(1, EFFUSION)], [row(1)])
    prints = [
        sources.load("padchest", root, **o).fingerprint for o in ({}, {}, {"language": "es"}, {"readers": "both"})
    ]
    assert prints[0] == prints[1]
    assert len({*prints}) == 3
