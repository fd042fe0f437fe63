"""MIMIC-CXR-JPG with MS-CXR: small made-up files in exactly the official format, and what can be wrong with them."""

from __future__ import annotations

import csv
import gc
import gzip
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from chestxai import reports, runs, sources
from chestxai.sources import mimic
from chestxai.sources.records import Collector
from chestxai.sources.splits import split_patients
from chestxai.studies import FINDINGS, Box, Frame, phrases, to_images
from tests.pictures import ramp

# The headers of the official files.
METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
SPLIT = "dicom_id,study_id,subject_id,split"
LABELS = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,"
    "No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
).split(",")
BOXES = "category_name,label_text,path,x,y,w,h,image_width,image_height,dicom_id"
TEXT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PORTABLE AP)

 INDICATION:  ___ year old woman with dyspnea  // pneumonia?

 FINDINGS:

 There is a small right pleural effusion.  No pneumothorax.

 IMPRESSION:

 Small right pleural effusion and bibasilar
 atelectasis.
"""


def name(patient: int, n: int = 0) -> str:
    """A dicom_id of the official form."""
    return f"{patient:08x}-{n:08x}-e1f7e3fa-d2a7b1f8-0c5c5a41"


def visit(patient: int) -> int:
    return patient + 40_000_000


def image(patient: int, n: int = 0, view: str = "AP", rows: object = 48, columns: object = 40) -> str:
    when = '21800506,213014.531,"CHEST (PA AND LAT)",antero-posterior,Erect'
    return f'{name(patient, n)},{patient},{visit(patient)},"CHEST, (PORTABLE AP)",{view},{rows},{columns},{when}'


def listed(patient: int, split: str = "train", n: int = 0) -> str:
    return f"{name(patient, n)},{visit(patient)},{patient},{split}"


def stated(patient: int, **labels: str) -> str:
    values = {key.replace("_", " "): value for key, value in labels.items()}
    assert {*values} <= {*LABELS}
    return f"{patient},{visit(patient)}," + ",".join(values.get(label, "") for label in LABELS)


def file(patient: int, n: int = 0) -> str:
    return f"files/p{str(patient)[:2]}/p{patient}/s{visit(patient)}/{name(patient, n)}.jpg"


def box(
    patient: int, label: str, text: str, *numbers: object, n: int = 0, frame: str = "40,48", split: str = ""
) -> str:
    x, y, w, h = numbers or (10, 20, 8, 4)
    row = f'{label},"{text}",{file(patient, n)},{x},{y},{w},{h},{frame},{name(patient, n)}'
    return f"{row},{split}" if split else row


def write(path: Path, header: str, rows: list[str]) -> None:
    content = "\n".join([header, *rows]) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())


def collection(
    root: Path,
    images: list[str],
    splits: list[str],
    boxes: list[str] = (),
    labels: list[str] | None = None,
    text: str = TEXT,
    files: bool = True,
) -> Path:
    """A folder in the official layout; every image of ``images`` that has a sensible name gets a file and a report."""
    identity = [line.split(",")[:3] for line in images]
    patients = dict.fromkeys(int(p) for _, p, _ in identity if p.isdecimal())
    write(root / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA, images)
    write(root / "mimic-cxr-2.0.0-split.csv.gz", SPLIT, splits)
    labels = [stated(p) for p in patients] if labels is None else labels
    write(root / "mimic-cxr-2.0.0-chexpert.csv.gz", ",".join(["subject_id", "study_id", *LABELS]), labels)
    # The last cell is the dicom_id in MS-CXR 1.0, the split in 1.1.
    header = BOXES + (",split" if any("-" not in row.rpartition(",")[2] for row in boxes) else "")
    write(root / "ms-cxr" / f"MS_CXR_Local_Alignment_v1.{int('split' in header)}.0.csv", header, list(boxes))
    for dicom, patient, study in identity if files else ():
        folder = Path(f"p{patient[:2]}", f"p{patient}", f"s{study}")
        if "/" not in dicom and patient.isdecimal() and study.isdecimal():
            (root / "files" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(ramp(48, 40)).save(root / "files" / folder / f"{dicom}.jpg")
            report = root / "mimic-cxr-reports" / "files" / f"{folder}.txt"
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text(text)
    (root / "files").mkdir(exist_ok=True)
    return root


def as_json(path: Path) -> Path:
    """MS-CXR's csv rewritten as its json, in COCO's format, in its place."""
    with open(path, newline="") as lines:
        rows = [*csv.DictReader(lines)]
    path.unlink()
    images = {row["dicom_id"]: row for row in rows}
    ids = {name: 17 + i for i, name in enumerate(images)}
    return runs.write_json(
        path.with_suffix(".json"),
        {
            "info": {"description": "MS-CXR"},
            "licenses": [],
            "categories": [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(FINDINGS, 1)],
            "images": [
                {"id": ids[name], "file_name": f"{name}.jpg", "path": row["path"], "num_annotations": 1}
                | {key: int(row[f"image_{key}"]) for key in ("width", "height")}
                for name, row in images.items()
            ],
            "annotations": [
                {
                    "id": i,
                    "image_id": ids[row["dicom_id"]],
                    "category_id": 1 + FINDINGS.index(row["category_name"]),
                    "bbox": [float(row[key]) for key in "xywh"],
                    "area": float(row["w"]) * float(row["h"]),
                    "iscrowd": 0,
                    "label_text": row["label_text"],
                }
                | ({"split": row["split"]} if row.get("split") else {})
                for i, row in enumerate(rows)
            ],
        },
    )


def everything(root: Path, **options: object) -> tuple[sources.Studies, list[str]]:
    """The studies of all splits, and the lines of all (one that is in every split once)."""
    parts = [sources.load("mimic", root, split, **options) for split in ("train", "val", "test")]
    return [s for part in parts for s in part], list(dict.fromkeys(line for part in parts for line in part.skipped))


P = 10_000_032
GOOD = 10_000_764
EFFUSION = "Small right pleural effusion"


class TestRecord:
    def test_by_hand(self, tmp_path):
        boxes = [
            box(P, "Pleural Effusion", EFFUSION, 10, 20, 8, 4),
            box(P, "Atelectasis", "bibasilar atelectasis", 2, 30, 5, 5),
            box(P, "Pleural Effusion", EFFUSION, 1.5, 2, 3, 4),
            box(P, "Pleural Effusion", "Trace left effusion", 30, 20, 8, 4),
        ]
        labels = [stated(P, Pleural_Effusion="0.0", Edema="1.0", Pneumonia="-1.0", Pneumothorax="0.0", Fracture="1.0")]
        (study,), skipped = everything(collection(tmp_path, [image(P)], [listed(P)], boxes, labels))
        assert skipped == []
        assert (study.id, study.patient, study.source) == (name(P), str(P), "mimic")
        # Rows are the height, columns the width.
        assert study.size == (48, 40)
        assert study.path == tmp_path / file(P)
        assert study.report == TEXT
        assert study.attributes == {"view": "AP", "study": str(visit(P)), "uncertain": "Pneumonia"}
        first, second, third, *rest = study.findings
        # Two boxes of one phrase are one finding; another phrase of the same name is another.
        assert (first.name, first.phrase) == ("Pleural Effusion", EFFUSION)
        assert first.boxes == (Box(10, 20, 8, 4), Box(1.5, 2, 3, 4))
        assert (first.side, first.severity) == ("right", "mild")
        assert (second.name, second.phrase, second.side) == ("Atelectasis", "bibasilar atelectasis", "bilateral")
        assert (third.name, third.phrase, third.boxes) == (
            "Pleural Effusion",
            "Trace left effusion",
            (Box(30, 20, 8, 4),),
        )
        # A finding with a box is present, whatever its label; the others are as labelled, in alphabetical order.
        assert [(f.name, f.present, f.phrase) for f in rest] == [
            ("Edema", True, ""),
            ("Pneumonia", True, ""),
            ("Pneumothorax", False, ""),
        ]
        assert len({g.key for g in phrases([study])}) == 3

    def test_a_box_lands_on_its_place_in_a_smaller_copy_of_the_image(self, tmp_path):
        # The original is 96 × 80; its file was made half as large. The central square is 80 × 80, eight rows cut off.
        boxes = [box(P, "Pneumonia", "pneumonia", 0, 8, 40, 40, frame="80,96")]
        (study,), _ = everything(collection(tmp_path, [image(P, rows=96, columns=80)], [listed(P)], boxes))
        mask = Frame(*study.size, 16).mask(study.findings[0])
        assert mask[:8, :8].all()
        assert mask.sum() == 64
        assert to_images([study], 16)[0].shape == (1, 16, 16)

    @given(st.permutations([*BOXES.split(","), "split"]))
    @settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_columns_of_the_boxes_may_be_in_any_order(self, tmp_path, order):
        root = collection(tmp_path, [image(P)], [listed(P)], [box(P, "Edema", "edema", split="val")])
        path = root / "ms-cxr" / "MS_CXR_Local_Alignment_v1.1.0.csv"
        header, row = (line.replace('"', "").split(",") for line in path.read_text().splitlines())
        cells = dict(zip(header, row, strict=True))
        write(path, ",".join(order), [",".join(cells[column] for column in order)])
        (study,) = sources.load("mimic", root, "val")
        assert study.findings[0].boxes == (Box(10, 20, 8, 4),)

    def test_a_phrase_is_verbatim_over_lines_commas_and_quotes_and_lines_still_count(self, tmp_path):
        odd = 'Right  ""basal"" edema,\nsmall'
        boxes = [box(P, "Edema", odd), box(P, "Cough", "cough"), box(P, "Edema", "edema \x0b in É")]
        (study,), skipped = everything(collection(tmp_path, [image(P)], [listed(P)], boxes))
        assert [f.phrase for f in study.findings] == ['Right  "basal" edema,\nsmall', "edema \x0b in É"]
        # The first row fills lines 2 and 3.
        assert skipped == ["MS_CXR_Local_Alignment_v1.0.0.csv:4: unknown category ('Cough')"]

    @pytest.mark.parametrize("view", ["LATERAL", "LL", "PA LLD", ""])
    def test_frontal_images_only_and_all_of_an_examination_share_its_report_and_labels(self, tmp_path, view):
        images = [image(P), image(P, 1, view), image(P, 2, "PA")]
        root = collection(tmp_path, images, [listed(P)], labels=[stated(P, Edema="1.0")])
        (a, b), skipped = everything(root)
        assert [a.id, b.id] == [name(P), name(P, 2)]
        assert [s.attributes["view"] for s in (a, b)] == ["AP", "PA"]
        assert a.report is b.report
        assert a.findings == b.findings
        reason = f"not a frontal view ({view or 'unknown'}, {name(P, 1)})"
        assert skipped == [f"mimic-cxr-2.0.0-metadata.csv.gz:3: {reason}"]

    @given(st.lists(st.sampled_from(["", "1.0", "0.0", "-1.0", "1", "0", "-1"]), min_size=14, max_size=14))
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_labels_agree_with_the_csv(self, tmp_path, values):
        path = tmp_path / "labels.csv"
        write(path, ",".join(["subject_id", "study_id", *LABELS]), [f"{P},{visit(P)}," + ",".join(values)])
        data = Collector(mimic.CARD, tmp_path, "test")
        findings, uncertain = mimic._labels(data, path, {str(visit(P)): str(P)})[str(visit(P))]
        assert data.studies([], None).skipped == []
        said = {f.name: f.present for f in findings}
        truth = dict(zip(LABELS, (v and float(v) for v in values), strict=True))
        assert said == {n: truth[n] != 0 for n in FINDINGS if truth[n] != ""}
        assert uncertain == "|".join(n for n in FINDINGS if truth[n] == -1)

    def test_a_report_of_another_system_reads_the_same(self, tmp_path):
        root = collection(tmp_path, [image(P)], [listed(P)])
        (path,) = root.glob("mimic-cxr-reports/files/*/*/*.txt")
        path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode() + b"caf\xe9\r")
        with pytest.warns(UserWarning, match="a report: not UTF-8, read as Windows-1252"):
            studies, _ = everything(root)
        assert studies[0].report == TEXT + "café\n"

    @pytest.mark.parametrize("was", [True, False])
    def test_the_collector_is_left_as_it_was(self, tmp_path, was):
        gc.enable() if was else gc.disable()
        try:
            with pytest.raises(FileNotFoundError):
                sources.load("mimic", tmp_path)
            sources.load("mimic", collection(tmp_path, [image(P)], [listed(P)]))
            assert gc.isenabled() == was
        finally:
            gc.enable()

    def test_no_image_is_opened(self, tmp_path, monkeypatch):
        root = collection(tmp_path, [image(P)], [listed(P)], [box(P, "Edema", "edema")])

        def refuse(*_, **__):
            raise AssertionError("an image was opened")

        monkeypatch.setattr(Image, "open", refuse)
        assert len(everything(root)[0]) == 1

    def test_only_reports_of_the_split_asked_for_are_read_and_each_once(self, tmp_path, monkeypatch):
        patients = range(P, P + 6)
        splits = [listed(p, "test" if p % 2 else "train") for p in patients]
        root = collection(tmp_path, [image(p, n) for p in patients for n in range(2)], splits)
        read = []
        real = mimic._report
        monkeypatch.setattr(mimic, "_report", lambda root, name: read.append(name) or real(root, name))
        assert len(sources.load("mimic", root, "test")) == 6
        assert [Path(n).stem for n in read] == [f"s{visit(p)}" for p in patients if p % 2]

    def test_of_two_findings_in_a_phrase_each_has_its_own_side(self, tmp_path):
        words = "left pneumothorax and small right pleural effusion"
        boxes = [box(P, "Pleural Effusion", words), box(P, "Pneumothorax", words, 1, 2, 3, 4)]
        (study,), _ = everything(collection(tmp_path, [image(P)], [listed(P)], boxes))
        assert [(f.name, f.side) for f in study.findings] == [("Pleural Effusion", "right"), ("Pneumothorax", "left")]
        assert [f.phrase for f in study.findings] == [words, words]


class TestModes:
    boxes = (
        box(P, "Pleural Effusion", EFFUSION),
        box(P, "Pleural Effusion", "blunting of the sulcus", 1, 2, 3, 4),
        box(P, "Pneumonia", "retrocardiac density", 5, 6, 7, 8),
    )

    def load(self, root: Path, **options: object) -> tuple[list[tuple[str, str, int]], list[str]]:
        (study,), skipped = everything(collection(root, [image(P)], [listed(P)], list(self.boxes)), **options)
        return [(f.name, f.phrase, len(f.boxes)) for f in study.findings], skipped

    def test_only_phrases_that_name_their_finding(self, tmp_path):
        found, skipped = self.load(tmp_path)
        assert found == [("Pleural Effusion", EFFUSION, 1), ("Pleural Effusion", "blunting of the sulcus", 1)]
        assert skipped == ["MS_CXR_Local_Alignment_v1.0.0.csv:4: phrase does not name the finding (Pneumonia)"]

    def test_all_phrases(self, tmp_path):
        found, skipped = self.load(tmp_path, named=False)
        assert [phrase for _, phrase, _ in found] == [EFFUSION, "blunting of the sulcus", "retrocardiac density"]
        assert skipped == []

    def test_the_impression_joins_the_boxes_of_a_finding(self, tmp_path):
        found, skipped = self.load(tmp_path, mode="impression")
        assert found == [("Pleural Effusion", reports.prompt(TEXT), 2)]
        assert reports.prompt(TEXT) == "Small right pleural effusion and bibasilar atelectasis."
        assert skipped == ["MS_CXR_Local_Alignment_v1.0.0.csv:4: impression does not name the finding (Pneumonia)"]

    def test_the_other_labeller(self, tmp_path):
        root = collection(tmp_path, [image(P)], [listed(P)], labels=[stated(P, Edema="1.0")])
        write(
            root / "mimic-cxr-2.0.0-negbio.csv.gz",
            ",".join(["subject_id", "study_id", *LABELS]),
            [stated(P, Edema="0.0")],
        )
        assert [everything(root, labels=x)[0][0].findings[0].present for x in ("chexpert", "negbio")] == [True, False]

    @pytest.mark.parametrize("option", [{"mode": "report"}, {"labels": "radgraph"}])
    def test_unknown_option(self, tmp_path, option):
        with pytest.raises(
            ValueError, match=r"of mimic: Input should be '(phrase' or 'impression|chexpert' or 'negbio)'"
        ):
            sources.load("mimic", tmp_path, **option)


class TestLayout:
    def test_version_and_packing(self, tmp_path):
        root = collection(tmp_path, [image(P)], [listed(P)], [box(P, "Edema", "edema")])
        for path in root.glob("*.csv.gz"):
            plain = root / path.name.replace("2.0.0", "2.1.0").removesuffix(".gz")
            plain.write_bytes(b"\xef\xbb\xbf" + gzip.decompress(path.read_bytes()).replace(b"\n", b"\r\n"))
            path.unlink()
        shutil.move(root / "ms-cxr" / "MS_CXR_Local_Alignment_v1.0.0.csv", root)
        (study,), skipped = everything(root)
        assert (study.id, skipped) == (name(P), [])
        assert study.findings[0].boxes

    def test_the_newer_boxes_count(self, tmp_path):
        root = collection(tmp_path, [image(P)], [listed(P)], [box(P, "Edema", "edema")])
        collection(tmp_path, [image(P)], [listed(P)], [box(P, "Edema", "new edema", split="val")])
        assert len([*root.glob("ms-cxr/*.csv")]) == 2
        assert everything(root)[0][0].findings[0].phrase == "new edema"

    @pytest.mark.parametrize("splits", [("", "", ""), ("test", "val", "train")])
    def test_boxes_from_csv_and_from_json_are_the_same(self, tmp_path, splits):
        people = [P, GOOD, GOOD + 1]
        boxes = [
            row + (f",{split}" if split else "")
            for patient, split in zip(people, splits, strict=True)
            for row in (
                box(patient, "Pleural Effusion", EFFUSION, 10, 20, 8, 4),
                box(patient, "Atelectasis", 'bibasilar, ""mild"" atelectasis', 2, 30, 5, 5),
                box(patient, "Pleural Effusion", EFFUSION, 1, 2, 3, 4),
                box(patient, "Pneumonia", "retrocardiac density", 5, 6, 7, 8),
                box(patient, "Edema", "edema", 36, 2, 8, 4),
            )
        ]
        root = collection(tmp_path, [image(p) for p in people], [listed(p) for p in people], boxes)
        loaded = {mode: everything(root, mode=mode) for mode in ("phrase", "impression")}
        names = [sources.load("mimic", root, split).fingerprint for split in ("train", "val", "test")]
        (path,) = root.glob("ms-cxr/*.csv")
        as_json(path)
        for mode, (studies, skipped) in loaded.items():
            again, lines = everything(root, mode=mode)
            assert again == studies
            assert [s.attributes for s in again] == [s.attributes for s in studies]
            # The same boxes are left out for the same reasons, each where it stands.
            assert [line.partition(": ")[2] for line in lines] == [line.partition(": ")[2] for line in skipped]
            assert len(lines) == (6 if mode == "phrase" else 9)
            assert all(re.match(rf"{path.stem}\.json:annotations\[\d+\]: ", line) for line in lines)
        assert [sources.load("mimic", root, split).fingerprint for split in ("train", "val", "test")] == names

    def test_of_one_version_the_csv_is_read_and_a_newer_json_before_an_older_csv(self, tmp_path):
        root = collection(tmp_path, [image(P)], [listed(P)], [box(P, "Edema", "new edema", split="val")])
        (newer,) = root.glob("ms-cxr/*.csv")
        content = newer.read_text()
        as_json(newer)
        collection(tmp_path, [image(P)], [listed(P)], [box(P, "Edema", "edema")])
        assert everything(root)[0][0].findings[0].phrase == "new edema"
        newer.write_text(content.replace("new edema", "edema of the csv"))
        assert everything(root)[0][0].findings[0].phrase == "edema of the csv"

    def test_reports_beside_the_images(self, tmp_path):
        root = collection(tmp_path, [image(P)], [listed(P)])
        shutil.copytree(root / "mimic-cxr-reports" / "files", root / "files", dirs_exist_ok=True)
        shutil.rmtree(root / "mimic-cxr-reports")
        assert everything(root)[0][0].report == TEXT

    def test_it_is_named_and_known_to_be_credentialed(self):
        assert "mimic" in sources.SOURCES
        assert sources.terms("mimic").credentialed


class TestSplits:
    def test_official(self, tmp_path):
        patients = {P: "train", P + 1: "validate", P + 2: "test"}
        root = collection(tmp_path, [image(p) for p in patients], [listed(p, s) for p, s in patients.items()])
        studies, skipped = everything(root)
        assert {int(s.patient): s.split for s in studies} == {P: "train", P + 1: "val", P + 2: "test"}
        assert skipped == []

    @given(
        st.lists(
            st.tuples(
                st.integers(10_000_000, 19_999_999),
                st.sampled_from(["train", "validate", "test"]),
                st.sampled_from(["", "none", "train", "val", "test", "odd"]),
            ),
            max_size=20,
        ),
        st.integers(0, 3),
    )
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_invariants(self, tmp_path, people, seed):
        # One line per patient and split; patients may occur twice. "" has no box, "none" one of MS-CXR 1.0.
        write(tmp_path / "split.csv", SPLIT, [listed(p, s) for p, s, _ in people])
        rows = [box(p, "Edema", "edema", split="" if own == "none" else own) for p, _, own in people if own]
        write(tmp_path / "boxes.csv", BOXES + ",split", rows)
        images = {
            name(p): mimic._Image("", name(p), str(p), study=str(visit(p)), view="AP", size=(48, 40))
            for p, _, _ in people
        }
        data = Collector(mimic.CARD, tmp_path, "test")
        held = mimic._add_boxes(data, tmp_path / "boxes.csv", images)
        splits = mimic._splits(data, tmp_path / "split.csv", images, held, seed)
        assert {*splits} == {str(p) for p, _, _ in people}
        reasons = {line.partition(": ")[2].partition(" (")[0] for line in data.studies([], None).skipped}
        assert reasons <= {"unknown split", "duplicate box"}
        order = ("train", "validate", "test").index
        for patient, split in splits.items():
            official = max((s for p, s, _ in people if str(p) == patient), key=order)
            owns = {own for p, _, own in people if str(p) == patient} - {""}
            if patient.startswith("19"):
                assert split == "test"
            elif "test" in owns or "val" in owns:
                assert split == ("test" if "test" in owns else "val")
            elif owns:
                assert split == split_patients([patient], {"val": 0.2, "test": 0.8}, seed)[patient]
            else:
                assert split == {"train": "train", "validate": "val", "test": "test"}[official]
        assert all(splits[image.patient] != "train" for image in images.values() if image.boxes)

    def test_patients_with_a_phrase_are_never_trained_on_and_the_others_stay(self, tmp_path):
        patients = range(P, P + 60)
        boxed = [p for p in patients if p % 2]
        boxes = [box(p, "Edema", "edema") for p in boxed]
        studies, _ = everything(
            collection(tmp_path, [image(p, n) for p in patients for n in (0, 1)], [listed(p) for p in patients], boxes)
        )
        splits = {int(s.patient): s.split for s in studies}
        assert len(studies) == 120
        assert {(s.patient, s.split) for s in studies} == {(str(p), s) for p, s in splits.items()}
        assert {p for p in patients if splits[p] == "train"} == {p for p in patients if not p % 2}
        shares = [splits[p] for p in boxed]
        assert {*shares} == {"val", "test"}
        assert 1 <= shares.count("val") <= 14
        assert len(phrases(studies)) == 30

    @pytest.mark.parametrize(
        "row",
        [
            box(P, "Cough", "cough"),
            box(P, "Edema", "no name"),
            box(P, "Edema", "edema", "x", 2, 3, 4),
            box(P, "Edema", "edema", 900, 2, 3, 4),
            # Of another image of the same patient, which the metadata lack.
            box(P, "Edema", "edema", n=7),
        ],
    )
    def test_also_not_where_the_box_is_of_no_use(self, tmp_path, row):
        root = collection(tmp_path, [image(P), image(GOOD)], [listed(P), listed(GOOD)], [row])
        studies, skipped = everything(root)
        assert {s.patient: s.split == "train" for s in studies} == {str(P): False, str(GOOD): True}
        assert len(skipped) == 1

    def test_p19_is_test_whatever_else_says(self, tmp_path):
        late = [19_000_001, 19_000_002, 18_999_999]
        root = collection(
            tmp_path,
            [image(p) for p in late],
            [listed(p) for p in late],
            [box(19_000_002, "Edema", "edema", split="val")],
        )
        assert {int(s.patient): s.split for s in everything(root)[0]} == {
            19_000_001: "test",
            19_000_002: "test",
            18_999_999: "train",
        }

    def test_a_patient_in_two_splits_is_in_the_later_with_all_images(self, tmp_path):
        root = collection(tmp_path, [image(P), image(P, 1)], [listed(P, "test"), listed(P, "train", 1)])
        assert [s.split for s in everything(root)[0]] == ["test", "test"]

    def test_a_patient_without_a_split_is_listed_in_each(self, tmp_path):
        root = collection(tmp_path, [image(P), image(GOOD)], [listed(GOOD)])
        for split in ("train", "val", "test"):
            loaded = sources.load("mimic", root, split)
            assert len(loaded) == (split == "train")
            assert loaded.skipped == [f"mimic-cxr-2.0.0-metadata.csv.gz:2: patient without a split (p{P})"]


class TestBadRows:
    """One bad record is listed with file and line, in its patient's split only, and the others load."""

    def check(self, root: Path, line: str, split: str = "train") -> None:
        studies, skipped = everything(root)
        assert [s.patient for s in studies] == [str(GOOD)]
        assert skipped == [line]
        by_split = {s: sources.load("mimic", root, s).skipped for s in ("train", "val", "test")}
        assert by_split == {s: [line] if s == split or split == "all" else [] for s in by_split}

    @pytest.mark.parametrize(
        ("row", "reason", "split"),
        [
            (image(P, rows="tall"), "Rows is not a number ('tall')", "train"),
            (image(P, rows=0), "Rows is not a number ('0')", "train"),
            (image(P, columns=""), "Columns is not a number ('')", "train"),
            (image(P, columns="2544.5"), "Columns is not a number ('2544.5')", "train"),
            (image(P).replace(f",{visit(P)},", ",s5,"), "study_id is not a number ('s5')", "train"),
            (image(P).replace(f",{P},", ",../..,"), "subject_id is not a number ('../..')", "all"),
            (image(P).replace(f",{P},", ",1٠٠٠٠٠٣٢,"), "subject_id is not a number ('1٠٠٠٠٠٣٢')", "all"),
            ("é," + image(P).partition(",")[2], "not a dicom_id ('é')", "train"),
            ("../../secret," + image(P).partition(",")[2], "not a dicom_id ('../../secret')", "train"),
            ("," + image(P).partition(",")[2], "not a dicom_id ('')", "train"),
            ("a" * 300 + "," + image(P).partition(",")[2], f"not a dicom_id ({'a' * 100!r})", "train"),
            (f"{name(P)},{P}", "study_id is not a number ('')", "train"),
            (image(GOOD), f"duplicate row ({name(GOOD)}, first in mimic-cxr-2.0.0-metadata.csv.gz:3)", "train"),
        ],
    )
    def test_metadata(self, tmp_path, row, reason, split):
        # A blank line is ignored, but counted.
        root = collection(tmp_path, [image(GOOD)], [listed(P), listed(GOOD)])
        write(root / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA, ["", image(GOOD), row])
        self.check(root, f"mimic-cxr-2.0.0-metadata.csv.gz:4: {reason}", split)

    @pytest.mark.parametrize(
        ("row", "reason", "split"),
        [
            (listed(GOOD, "training"), "unknown split ('training')", "train"),
            (listed(P, ""), "unknown split ('')", "all"),
            (f"{name(P)},{visit(P)},,train", "subject_id is not a number ('')", "all"),
        ],
    )
    def test_split(self, tmp_path, row, reason, split):
        root = collection(tmp_path, [image(GOOD)], [listed(GOOD), row])
        self.check(root, f"mimic-cxr-2.0.0-split.csv.gz:3: {reason}", split)

    def test_labels(self, tmp_path):
        labels = [stated(GOOD, Edema="1.0"), stated(GOOD, Edema="0.0")]
        root = collection(tmp_path, [image(GOOD)], [listed(GOOD)], labels=labels)
        self.check(root, f"mimic-cxr-2.0.0-chexpert.csv.gz:3: duplicate row (s{visit(GOOD)})")
        assert everything(root)[0][0].findings[0].present

    def test_an_image_without_usable_labels_is_left_out_for_it_is_not_known_to_be_normal(self, tmp_path):
        labels = [stated(GOOD), stated(P, Edema="2.0")]
        root = collection(tmp_path, [image(P), image(GOOD)], [listed(P), listed(GOOD)], labels=labels)
        studies, skipped = everything(root)
        assert [s.patient for s in studies] == [str(GOOD)]
        assert skipped == [
            "mimic-cxr-2.0.0-chexpert.csv.gz:3: label is not 1, 0, -1 or blank ('2.0')",
            f"mimic-cxr-2.0.0-metadata.csv.gz:2: no labels (s{visit(P)})",
        ]

    def test_but_a_phrase_is_enough(self, tmp_path):
        root = collection(tmp_path, [image(P)], [listed(P)], [box(P, "Edema", "edema")], labels=[])
        (study,), skipped = everything(root)
        assert ([f.name for f in study.findings], skipped) == (["Edema"], [])

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            (box(GOOD, "Cough", "edema"), "unknown category ('Cough')"),
            (box(GOOD, "edema", "edema"), "unknown category ('edema')"),
            (box(GOOD, "Edema", " "), f"box without a phrase ({name(GOOD)}, Edema)"),
            (box(GOOD, "Edema", "edema", 1, 2, "three", 4), "not a box (1, 2, three, 4)"),
            (box(GOOD, "Edema", "edema", 1, 2, 0, 4), "not a box (1, 2, 0, 4)"),
            (box(GOOD, "Edema", "edema", "nan", 2, 3, 4), "not a box (nan, 2, 3, 4)"),
            (box(GOOD, "Edema", "edema", 1, 2, "inf", 4), "not a box (1, 2, inf, 4)"),
            (
                box(GOOD, "Edema", "edema", 1, 2, 3, 4, frame=","),
                f"box in another frame than the image's 48 × 40 ({name(GOOD)})",
            ),
            (
                box(GOOD, "Edema", "edema", 1, 2, 3, 4, frame="48,40"),
                f"box in another frame than the image's 48 × 40 ({name(GOOD)})",
            ),
            (box(GOOD, "Edema", "edema", 40, 2, 3, 4), f"box outside the image ({name(GOOD)}, Edema, 48 × 40)"),
            (box(GOOD, "Edema", "edema", 1, -9, 3, 4), f"box outside the image ({name(GOOD)}, Edema, 48 × 40)"),
            (box(GOOD, "Edema", "edema"), f"duplicate box ({name(GOOD)}, Edema)"),
            (box(GOOD, "Edema", "edema", n=5), f"box of no frontal image of the metadata ({name(GOOD, 5)})"),
            (box(GOOD, "Edema", "new edema", split="dev"), "unknown split ('dev')"),
        ],
    )
    def test_boxes(self, tmp_path, row, reason):
        good = box(GOOD, "Edema", "edema", split="val")
        row = row if row.endswith("dev") else f"{row},"
        root = collection(tmp_path, [image(GOOD)], [listed(GOOD)], [good, row])
        self.check(root, f"MS_CXR_Local_Alignment_v1.1.0.csv:3: {reason}", split="val")
        assert [f.boxes for f in everything(root)[0][0].findings] == [(Box(10, 20, 8, 4),)]

    def test_annotations_of_the_json(self, tmp_path):
        root = collection(tmp_path, [image(GOOD)], [listed(GOOD)], [box(GOOD, "Edema", "edema", split="val")])
        path = as_json(next(root.glob("ms-cxr/*.csv")))
        content = runs.read_json(path)
        (good,) = content["annotations"]
        odd = [{"bbox": [1, 2]}, {"category_id": 99}, {"label_text": None}, {"image_id": 99}, {"bbox": "all"}]
        runs.write_json(path, content | {"annotations": [good, *({**good, **change} for change in odd), "text"]})
        (study,), skipped = everything(root)
        assert [f.boxes for f in study.findings] == [(Box(10, 20, 8, 4),)]
        assert [line.partition("annotations")[2] for line in skipped] == [
            # They belong to no image of the json, hence to no patient: these are listed in every split.
            "[1]: not of COCO's format (it.bbox.2 is [1, 2]: Field required)",
            "[4]: box of no frontal image of the metadata ()",
            "[5]: not of COCO's format (it.bbox is 'all': Input should be a valid tuple)",
            "[6]: not of COCO's format (it is 'text': Input should be a valid dictionary or instance of _Aligned)",
            "[2]: unknown category ('')",
            f"[3]: box without a phrase ({name(GOOD)}, Edema)",
        ]

    def test_a_box_of_nobody_is_listed_in_every_split(self, tmp_path):
        row = f"Edema,edema,chest.jpg,1,2,3,4,40,48,{name(P)}"
        root = collection(tmp_path, [image(GOOD)], [listed(GOOD)], [row])
        self.check(
            root, f"MS_CXR_Local_Alignment_v1.0.0.csv:2: box of no frontal image of the metadata ({name(P)})", "all"
        )

    def test_a_box_over_the_edge_is_cut_and_listed_a_hair_is_rounding(self, tmp_path):
        boxes = [box(P, "Edema", "edema", -10, 44, 20, 4), box(P, "Edema", "left edema", 30, 40, 10.000001, 8)]
        (study,), skipped = everything(collection(tmp_path, [image(P)], [listed(P)], boxes))
        assert [f.boxes for f in study.findings] == [(Box(0, 44, 10, 4),), (Box(30, 40, 10, 8),)]
        assert skipped == [f"MS_CXR_Local_Alignment_v1.0.0.csv:2: box cut to the image ({name(P)}, Edema, 50% kept)"]

    @pytest.mark.parametrize(
        ("harm", "reason"),
        [
            ("image", "no image file ({name})"),
            ("report", "no report ({report})"),
            ("blank", "empty report ({report})"),
            ("folder", "unreadable report ({report}: "),
        ],
    )
    def test_missing_files_are_listed_with_their_boxes(self, tmp_path, harm, reason):
        boxes = [box(P, "Edema", "edema", split="val"), box(GOOD, "Edema", "edema", split="val")]
        root = collection(tmp_path, [image(P), image(GOOD)], [listed(P), listed(GOOD)], boxes)
        report = f"p10/p{P}/s{visit(P)}.txt"
        path = root / "mimic-cxr-reports" / "files" / report
        {
            "image": lambda: (root / file(P)).unlink(),
            "report": path.unlink,
            "blank": lambda: path.write_text(" \n"),
            "folder": lambda: (path.unlink(), path.mkdir()),
        }[harm]()
        studies, skipped = everything(root)
        assert [s.patient for s in studies] == [str(GOOD)]
        assert skipped[0].startswith(f"mimic-cxr-2.0.0-metadata.csv.gz:2: {reason.format(name=name(P), report=report)}")
        assert skipped[1:] == [f"MS_CXR_Local_Alignment_v1.1.0.csv:2: row of an image that was left out ({name(P)})"]

    def test_a_report_in_another_encoding_still_reads(self, tmp_path):
        root = collection(tmp_path, [image(P)], [listed(P)])
        (root / "mimic-cxr-reports" / "files" / f"p10/p{P}/s{visit(P)}.txt").write_bytes(b"IMPRESSION: caf\xe9 edema")
        with pytest.warns(UserWarning, match="not UTF-8"):
            assert reports.prompt(everything(root)[0][0].report) == "café edema"

    def test_a_damaged_image_is_found_when_pixels_are_read(self, tmp_path):
        root = collection(tmp_path, [image(P), image(GOOD)], [listed(P), listed(GOOD)])
        (root / file(P)).write_bytes((root / file(P)).read_bytes()[:300])
        studies, skipped = everything(root)
        assert (len(studies), skipped) == (2, [])
        _, kept, lines = to_images(studies, 16)
        assert [s.patient for s in kept] == [str(GOOD)]
        assert len(lines) == 1


class TestFatal:
    TERMS = r"physionet\.org/content/mimic-cxr-jpg/.*physionet\.org/content/ms-cxr/.*Terms: credentialed access"

    @pytest.mark.parametrize(
        "gone",
        [
            "files",
            "mimic-cxr-2.0.0-metadata.csv.gz",
            "mimic-cxr-2.0.0-split.csv.gz",
            "mimic-cxr-2.0.0-chexpert.csv.gz",
            "ms-cxr/MS_CXR_Local_Alignment_v1.0.0.csv",
        ],
    )
    def test_says_what_is_missing_where_to_get_it_and_on_what_terms(self, tmp_path, gone):
        root = collection(tmp_path, [image(P)], [listed(P)])
        shutil.rmtree(root / gone) if gone == "files" else (root / gone).unlink()
        with pytest.raises(FileNotFoundError, match=rf"has no .*{gone}.*{self.TERMS}"):
            sources.load("mimic", root)

    @pytest.mark.parametrize(
        ("path", "header", "columns"),
        [
            ("mimic-cxr-2.0.0-metadata.csv.gz", METADATA.replace("Rows", "Height"), "Rows"),
            ("mimic-cxr-2.0.0-split.csv.gz", "dicom_id,study_id", "subject_id, split"),
            ("mimic-cxr-2.0.0-chexpert.csv.gz", "subject_id,study_id,Edema", "Atelectasis, Cardiomegaly"),
            ("ms-cxr/MS_CXR_Local_Alignment_v1.0.0.csv", BOXES.replace(",w,h", ""), "w, h"),
            ("ms-cxr/MS_CXR_Local_Alignment_v1.0.0.csv", "", "dicom_id, category_name"),
        ],
    )
    def test_a_csv_without_its_columns(self, tmp_path, path, header, columns):
        root = collection(tmp_path, [image(P)], [listed(P)])
        write(root / path, header, [])
        with pytest.raises(ValueError, match=rf"{path}: column {columns}.* missing; its first line is .*{self.TERMS}"):
            sources.load("mimic", root)

    @pytest.mark.parametrize("content", ["", "[1, 2", "[]", '{"images": [], "categories": []}'])
    def test_a_damaged_json(self, tmp_path, content):
        root = collection(tmp_path, [image(P)], [listed(P)], [box(P, "Edema", "edema")])
        as_json(next(root.glob("ms-cxr/*.csv"))).write_text(content)
        problem = r"damaged or cut off|lists of .*annotations are missing"
        with pytest.raises(ValueError, match=rf"v1\.0\.0\.json: .*(?:{problem}).*{self.TERMS}"):
            sources.load("mimic", root)

    @pytest.mark.parametrize("keep", [5, 60, -9])
    def test_a_download_cut_off(self, tmp_path, keep):
        root = collection(tmp_path, [image(P)], [listed(P)])
        path = root / "mimic-cxr-2.0.0-metadata.csv.gz"
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(ValueError, match=r"metadata\.csv\.gz: damaged or cut off .*download it again"):
            sources.load("mimic", root)

    def test_a_byte_changed_on_the_way(self, tmp_path):
        root = collection(tmp_path, [image(P)], [listed(P)])
        path = root / "mimic-cxr-2.0.0-metadata.csv.gz"
        content = bytearray(path.read_bytes())
        # The first byte after the ten of gzip's header says how the block is packed; there is no fourth way.
        content[10] |= 0b110
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"metadata\.csv\.gz: damaged or cut off \(Error -3"):
            sources.load("mimic", root)

    def test_a_page_in_place_of_the_file(self, tmp_path):
        root = collection(tmp_path, [image(P)], [listed(P)])
        (root / "mimic-cxr-2.0.0-split.csv.gz").write_text("<html>403 Forbidden</html>")
        with pytest.raises(ValueError, match=r"split\.csv\.gz: damaged or cut off \(Not a gzipped file"):
            sources.load("mimic", root)

    def test_no_usable_row_names_the_first_problem(self, tmp_path):
        root = collection(tmp_path, [image(P, view="LL")], [listed(P)])
        with pytest.raises(ValueError, match=r"no usable row; the first problem: .*gz:2: not a frontal view \(LL, "):
            sources.load("mimic", root)

    @pytest.mark.parametrize(("gone", "first"), [("files/p10", "no image file"), ("mimic-cxr-reports", "no report")])
    def test_none_of_use_names_the_first_problem(self, tmp_path, gone, first):
        root = collection(tmp_path, [image(P), image(GOOD)], [listed(P), listed(GOOD)])
        shutil.rmtree(root / gone)
        with pytest.raises(ValueError, match=rf"none of the 2 images of the train split .*gz:2: {first} \("):
            sources.load("mimic", root, "train")
        assert sources.load("mimic", root, "val") == []

    def test_no_root(self):
        with pytest.raises(FileNotFoundError, match="give root"):
            sources.load("mimic")


class TestFingerprint:
    def names(self, root: Path) -> list[str]:
        return [sources.load("mimic", root, split).fingerprint for split in ("train", "val", "test")]

    def make(self, root: Path, **changes: object) -> Path:
        patients = {P: "train", P + 1: "validate", P + 2: "test"}
        parts = {"images": [image(p) for p in patients], "splits": [listed(p, s) for p, s in patients.items()]}
        return collection(root, **parts, **{"boxes": [box(P + 2, "Edema", "edema", split="test")], **changes})

    def test_names_the_content_not_the_place(self, tmp_path):
        names = self.names(self.make(tmp_path / "a"))
        assert names == self.names(self.make(tmp_path / "elsewhere" / "b"))
        assert len({*names}) == 3

    @pytest.mark.parametrize(
        ("change", "which"),
        [
            ({"boxes": [box(P + 2, "Edema", "edema", 1, 2, 3, 5, split="test")]}, [False, False, True]),
            ({"boxes": [box(P + 2, "Edema", "edema!", split="test")]}, [False, False, True]),
            ({"labels": [stated(P, Edema="1.0"), stated(P + 1), stated(P + 2)]}, [True, False, False]),
            ({"text": TEXT + "."}, [True, True, True]),
        ],
    )
    def test_any_change_of_what_is_loaded_shows(self, tmp_path, change, which):
        before, after = self.names(self.make(tmp_path / "a")), self.names(self.make(tmp_path / "b", **change))
        assert [a != b for a, b in zip(before, after, strict=True)] == which
