"""Data sets in the forms in which people have them: Kaggle's, R2Gen's, resized copies, other bytes and other words."""

from __future__ import annotations

import json
import unicodedata
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import ImplicitVRLittleEndian, JPEGExtended12Bit, JPEGLosslessSV1

from chestxai import grounding, models, reports, sources, studies
from chestxai.runs import InputError
from chestxai.sources import tables
from chestxai.sources.records import frame_of, stated
from chestxai.studies import Box, Finding, Frame, phrases, read_image, value_range
from tests.pictures import ramp
from tests.test_studies import dicom

HEADER = "image,text,finding,x,y,w,h,split"


def picture(path: Path, height: int = 64, width: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ramp(height, width)).save(path)


def folder(root: Path, *rows: str, header: str = HEADER) -> sources.Studies:
    for name in {row.split(",")[0] for row in rows}:
        picture(root / name)
    (root / "t.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return sources.load("folder", root, "test")


def everything(name: str, root: Path) -> tuple[dict[str, sources.Studies], list[str]]:
    loaded = {split: sources.load(name, root, split) for split in ("train", "val", "test")}
    return loaded, [s.id for studies in loaded.values() for s in studies]


class TestOpenI:
    REPORTS = (
        "uid,MeSH,Problems,image,indication,comparison,findings,impression\n"
        "1,normal,normal,PA and lateral,Positive TB test,None.,Lungs are clear.,Normal chest x-XXXX.\n"
        '2,"Cardiomegaly/borderline;Opacity/lung/base/left","Cardiomegaly",PA,,,"Heart is enlarged, no effusion.",\n'
        "3,No Indexing,,PA,,,,\nx,normal,,PA,,,a,b\n"
    )

    def test_in_the_form_of_kaggle(self, tmp_path):
        (tmp_path / "indiana_reports.csv").write_text(self.REPORTS)
        names = ("1_IM-0001-4001.dcm.png", "1_IM-0001-3001.dcm.png", "2_IM-0652-1001.dcm.png", "3_IM-1384-1001.dcm.png")
        views = ("Frontal", "Lateral", "Frontal", "Frontal")
        rows = [f"{name[0]},{name},{view}" for name, view in zip(names, views, strict=True)]
        (tmp_path / "indiana_projections.csv").write_text("\n".join(["uid,filename,projection", *rows]))
        for name in names:
            picture(tmp_path / "images" / "images_normalized" / name)
        loaded, ids = everything("openi", tmp_path)
        assert sorted(ids) == ["CXR1_IM-0001-4001", "CXR2_IM-0652-1001"]
        second = next(s for studies in loaded.values() for s in studies if s.patient == "CXR2")
        assert second.report == "FINDINGS: Heart is enlarged, no effusion."
        terms = "Cardiomegaly/borderline;Opacity/lung/base/left"
        assert second.attributes == {"view": "frontal", "mesh_major": terms, "side": "left"}
        assert [(f.name, f.present) for f in second.findings] == [("Cardiomegaly", True), ("Pleural Effusion", False)]
        reasons = {reason for studies in loaded.values() for reason in studies.reasons()}
        assert reasons >= {"lateral projection", "empty report"}
        assert any("uid 'x' is no number" in line for line in loaded["train"].skipped)

    def test_in_the_form_of_r2gen(self, tmp_path):
        def pair(number: int, text: str, images: int = 2) -> dict[str, object]:
            name = f"CXR{number}_IM-{number:04d}"
            for i in range(images):
                picture(tmp_path / "images" / name / f"{i}.png")
            return {"id": name, "report": text, "image_path": [f"{name}/{i}.png" for i in range(images)]}

        bad = {"id": "CXR9_IM-1", "report": "a", "image_path": ["../../secret.png"]}
        content = {
            "train": [pair(1, "The lungs are clear ."), bad],
            "val": [pair(2, "Mild cardiomegaly .")],
            "test": [pair(3, "Small left effusion .", images=1)],
        }
        (tmp_path / "annotation.json").write_text(json.dumps(content))
        with pytest.warns(UserWarning, match="5 images of 3 reports: lateral ones are among them"):
            loaded, _ = everything("openi", tmp_path)
        assert {split: [s.id for s in studies] for split, studies in loaded.items()} == {
            "train": ["CXR1_IM-0001-0", "CXR1_IM-0001-1"],
            "val": ["CXR2_IM-0002-0", "CXR2_IM-0002-1"],
            "test": ["CXR3_IM-0003-0"],
        }
        assert [(f.name, f.side) for f in loaded["test"][0].findings] == [("Pleural Effusion", "left")]
        assert any("annotation.json:train[1]: not of R2Gen's format" in line for line in loaded["train"].skipped)


class TestVinDrOfKaggle:
    TABLE = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"

    @pytest.mark.parametrize("kind", ["dicom", "png"])
    def test_is_read_and_split(self, tmp_path, kind):
        rows = []
        for i in range(40):
            name = f"{i:032x}"
            place = "10,20,40,60" if kind == "dicom" else "100,200,400,600"
            rows += [f"{name},{'Cardiomegaly' if i % 2 else ''},3,R{reader},{place}" for reader in (1, 2, 3)]
            picture(tmp_path / "train" / f"{name}.png", 64, 64)
            if kind == "dicom":
                (tmp_path / "train" / f"{name}.png").unlink()
                elements = {"Rows": 64, "Columns": 64, "PixelData": ramp(64, 64).astype("<u2").tobytes()}
                dicom(tmp_path / "train" / f"{name}.dicom", np.zeros((64, 64), np.uint16), **elements)
        (tmp_path / "train.csv").write_text(self.TABLE + "\n".join(rows) + f"\n{'f' * 32},No finding,14,R1,,,,\n")
        picture(tmp_path / "train" / f"{'f' * 32}.png")
        if kind == "png":
            sizes = "".join(f"{i:032x},640,640\n" for i in range(40))
            (tmp_path / "train_meta.csv").write_text(f"image_id,dim0,dim1\n{sizes}")
        loaded, ids = everything("vindr", tmp_path)
        assert len(ids) == len({*ids}) == 41
        assert all(loaded.values())
        findings = [f for studies in loaded.values() for s in studies for f in s.findings]
        assert {(f.name, len(f.boxes)) for f in findings} == {("Cardiomegaly", 1)}
        side = 64 if kind == "dicom" else 640
        assert {s.size for studies in loaded.values() for s in studies if s.findings} == {(side, side)}


class TestFrames:
    @settings(max_examples=200)
    @given(st.integers(40, 1100), st.integers(40, 1100), st.integers(40, 2200), st.integers(-60, 60))
    def test_a_frame_that_is_accepted_can_be_read(self, height, width, longer, off):
        frame = longer, max(1, round(longer * width / height) + off)
        assume(max(frame) < 20_000)  # more is no frame
        refused = []
        for read in (
            lambda: frame_of((height, width), *map(str, frame)),
            lambda: Frame(*frame, 8).image(np.zeros((height, width), np.uint8)),
        ):
            try:
                read()
                refused.append("")
            except InputError as error:
                refused.append("shape" if "another shape" in str(error) else str(error))
        assert refused in (["", ""], ["shape", "shape"])

    HEADER = "image,text,finding,x,y,w,h,height,width,split"

    def test_boxes_of_the_original_fit_a_resized_copy(self, tmp_path):
        row = "a.png,Left effusion.,Pleural Effusion,640,320,320,320,1280,1280,test"
        (study,) = loaded = folder(tmp_path, row, header=self.HEADER)
        assert (study.size, study.findings[0].boxes, loaded.skipped) == ((1280, 1280), (Box(640, 320, 320, 320),), [])

    @pytest.mark.parametrize("frame", ["1280,640", "0,0", "-5,5", "1e3,1e3", "a,b", "1280,", "1280,12800000"])
    def test_a_frame_of_another_shape_is_refused_by_name(self, tmp_path, frame):
        rows = [f"a.png,Left effusion.,Pleural Effusion,6,3,3,3,{frame},test", "b.png,Edema.,,,,,,,,test"]
        loaded = folder(tmp_path, *rows, header=self.HEADER)
        assert [s.id for s in loaded] == ["b.png"]
        assert "t.csv:2: " in loaded.skipped[0]
        assert "frame" in loaded.skipped[0]


class TestNoBox:
    @pytest.mark.parametrize(
        "cells",
        [",,,", "nan,,,", "0,0,,", "NaN,NaN,0,0", "<NA>,<NA>,<NA>,<NA>", "#N/A,#N/A,#N/A,#N/A", "n.a.,n.a.,n.a.,n.a.",
         "--,--,--,--", "–,–,–,–", "?,?,?,?", "[],[],[],[]", "0.00,0.00,0.00,0.00", "-1,-1,-1,-1", "-1.0,-1.0,0,0",
         "None,None,None,None", "no box,no box,no box,no box", "missing,,,", "NaT,NaT,NaT,NaT"],
    )  # fmt: skip
    def test_has_many_spellings(self, tmp_path, cells):
        (study,) = loaded = folder(tmp_path, f"a.png,Small effusion.,,{cells},test")
        assert ([f.name for f in study.findings], loaded.skipped) == (["Pleural Effusion"], [])

    @pytest.mark.parametrize("cells", ["12,15,0,0", "1,2,3", "left,1,2,3", "5,5,-3,4", "1_0,2,3,4"])
    def test_a_broken_box_leaves_the_text_of_its_row(self, tmp_path, cells):
        cells += "," * (3 - cells.count(","))
        (study,) = loaded = folder(tmp_path, f"a.png,Small effusion.,Pleural Effusion,{cells},test")
        assert (study.report, [(f.name, f.boxes) for f in study.findings]) == (
            "Small effusion.", [("Pleural Effusion", ())],
        )  # fmt: skip
        assert loaded.skipped[0].startswith("t.csv:2: not a box")


class TestLanguages:
    @pytest.mark.parametrize(
        "text",
        ["Kein Pneumothorax.", "Ausschluss Pneumothorax.", "Pas de pneumothorax.", "Geen pneumothorax.",
         "Derrame pleural izquierdo.", "Pneumonie im rechten Unterlappen.", "Ingen pneumothorax.", "Pneumothorax droit",
         "Cardiomegalia moderada. Edema pulmonar.", "Consolidation du lobe inférieur droit", "Brak odmy",
         "Infiltrat im linken Unterlappen", "Pneumothorax yok", "胸水なし pneumothorax なし", "Edema agudo de pulmón",
         "No hay derrame. Edema leve.", "Nessun versamento pleurico, non consolidation"],
    )  # fmt: skip
    def test_nothing_is_read_in_another(self, text):
        assert not reports.is_english(text)
        assert reports.find(text) == []

    @pytest.mark.parametrize(
        "text",
        ["Pneumothorax.", "Cardiomegaly", "No pneumothorax.", "Edema, CHF", "Sjögren's lung disease with effusion.", "",
         "Dr. de la Cruz was told of the pneumothorax.", "PA and LAT", "3.5 cm", "Café-au-lait spots, no effusion."],
    )  # fmt: skip
    def test_english_is_recognised(self, text):
        assert reports.is_english(text)

    def test_a_table_is_warned_of_once_and_keeps_what_it_names_itself(self, tmp_path):
        rows = [f"{i}.png,{text}.,,,,,,test" for i, text in enumerate(["Kein Erguss", "Pneumothorax rechts", "Edema"])]
        named = "9.png,Pneumothorax rechts.,Pneumothorax,5,5,20,20,test"
        with pytest.warns(UserWarning, match=r"2 of 3 texts are not in English.*name findings in a column") as told:
            loaded = folder(tmp_path, *rows, named)
        assert len(told) == 1
        assert [[f.name for f in s.findings] for s in loaded] == [[], [], [], ["Pneumothorax"]]

    def test_english_tables_are_not_warned_of(self, tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(folder(tmp_path, "a.png,Small left effusion.,,,,,,test")) == 1


class TestNames:
    def test_parts_of_a_path_may_be_in_different_forms(self, tmp_path):
        nfd, nfc = (unicodedata.normalize(form, "é") for form in ("NFD", "NFC"))
        picture(tmp_path / f"clich{nfd}s" / f"{nfc}t{nfd}.png")
        (tmp_path / "t.csv").write_text(f"image,text,split\nclich{nfc}s/{nfd}t{nfc}.png,Effusion.,test\n")
        assert len(sources.load("folder", tmp_path, "test")) == 1


class TestStated:
    def test_the_mention_on_the_side_of_the_box_counts(self):
        text = "No left effusion, small right effusion. Old left effusion has resolved."
        right, left = Box(5, 5, 10, 10), Box(80, 5, 10, 10)
        assert stated(reports.find(text), "Pleural Effusion", [right], 100).side == "right"
        both = reports.find("Small right effusion, large left effusion.")
        assert [stated(both, "Pleural Effusion", [box], 100).severity for box in (right, left)] == ["mild", "severe"]
        assert stated([], "Nodule", [left], 100) == Finding("Nodule", side="left")
        assert stated([], "Edema", [left], 100) == Finding("Edema")

    def test_a_finding_knows_its_row(self, tmp_path):
        (study,) = folder(tmp_path, "a.png,Small effusion.,Pleural Effusion,5,5,20,20,test")
        assert study.findings[0].where == "t.csv:2"


class TestDeepImages:
    GREY = np.tile(np.linspace(500, 3500, 128), (128, 1)).astype(np.uint16)

    @pytest.mark.parametrize(
        ("kind", "change"),
        [
            ("a hot pixel", lambda a: a.__setitem__((0, 0), 65535)),
            ("a hot row", lambda a: a.__setitem__((0, slice(None)), 65535)),
            ("a burnt-in mark", lambda a: a.__setitem__((slice(5, 15), slice(5, 25)), 60000)),
            (
                "hot pixels of many values",
                lambda a: a.__setitem__((0, slice(0, 4)), [9000, 20000, 50000, 65535]),
            ),
            ("padding", lambda a: a.__setitem__((slice(None), slice(100, None)), 65535)),
        ],
    )
    def test_anatomy_keeps_its_grey_levels(self, tmp_path, kind, change):
        values = self.GREY.copy()
        change(values)
        Image.fromarray(values).save(tmp_path / "a.png")
        assert np.unique(read_image(tmp_path / "a.png")[40:90, 10:90]).size >= 75

    def test_the_range_is_the_whole_one_without_outliers(self):
        rng = np.random.default_rng(0)
        for values in (self.GREY, rng.normal(0, 5, (64, 64)), np.array([[0, 4095]]), np.full((4, 4), 7)):
            assert value_range(values) == (values.min(), values.max())
        assert value_range(np.append(rng.random(10**4), 1e30))[1] < 1

    @pytest.mark.parametrize("mode", ["L", "I;16", "LA", "RGBA"])
    def test_blank_ones_are_named(self, tmp_path, mode):
        if mode == "I;16":
            image = Image.fromarray(np.full((8, 8), 700, np.uint16))
        else:
            image = Image.new(mode, (8, 8))
        if "A" in mode:
            image.putalpha(Image.fromarray(ramp(8, 8)))
        image.save(tmp_path / "a.png")
        with pytest.raises(ValueError, match=r"a\.png: .*blank" + (".*alpha" if "A" in mode else "")):
            read_image(tmp_path / "a.png")


class TestDicom:
    def test_packed_ones_and_windows_are_told_at_load(self, tmp_path):
        values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
        for name, syntax, bits in (("a", JPEGLosslessSV1, 16), ("b", JPEGExtended12Bit, 12)):
            path = dicom(tmp_path / f"{name}.dcm", values)
            elements = dcmread(path)
            elements.file_meta.TransferSyntaxUID, elements.BitsStored, elements.HighBit = syntax, bits, bits - 1
            elements.PixelData = encapsulate([b"\xff\xd8" + bytes(100)])
            elements["PixelData"].is_undefined_length = True
            elements.save_as(path)
        dicom(tmp_path / "c.dcm", values, WindowCenter=0, WindowWidth=0)
        rows = "".join(f"{name}.dcm,Edema.,test\n" for name in "abc")
        (tmp_path / "t.csv").write_text(f"image,text,split\n{rows}")
        with pytest.warns(UserWarning, match="2 of the 3 images .* left out.* reason: unreadable image, .*pylibjpeg"):
            loaded = sources.load("folder", tmp_path, "test")
        assert [s.id for s in loaded] == ["c.dcm"]
        told = "\n".join(loaded.skipped)
        assert sum("pip install pylibjpeg" in line for line in loaded.skipped) == 2
        assert "t.csv:4: window without width or centre, the full range is shown (c.dcm)" in told

    @pytest.mark.parametrize("start", [0, 132])
    def test_without_a_preamble(self, tmp_path, start):
        values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
        path = dicom(tmp_path / "a.dcm", values)
        if start:
            path.write_bytes(path.read_bytes()[start:])
        else:
            elements = dcmread(path)
            del elements.file_meta
            elements.save_as(path, implicit_vr=ImplicitVRLittleEndian.is_implicit_VR, little_endian=True)
        assert np.unique(read_image(path)).size == 256


class TestLongPhrases:
    def test_one_is_listed_with_its_file_and_row_and_none_is_refused(self, tmp_path):
        long = "Small left pleural effusion" + " seen again on this view" * 20
        rows = [f"a.png,{long}.,Edema,5,5,20,20,test", "b.png,Small effusion.,Pleural Effusion,5,5,20,20,test"]
        truths = phrases(folder(tmp_path, *rows))
        pipeline = SimpleNamespace(tokenizer=models.load_pipeline("tiny", device="cpu").tokenizer)
        kept, lines = grounding.groundable(pipeline, truths)
        assert [truth.study.id for truth in kept] == ["b.png"]
        assert "(t.csv:2): the phrase" in lines[0]
        assert "is cut off" in lines[0]
        with pytest.raises(ValueError, match=r"none of 1 phrases can be read; the first: a\.png.*\(t\.csv:2\)"):
            grounding.groundable(pipeline, truths[:1])


def test_the_sections_of_prompts_are_counted():
    texts = [
        "IMPRESSION: Edema.",
        "IMPRESSION: As above.\nFINDINGS: Edema.",
        "IMPRESSION: Clear.\nADDENDUM: Edema.",
        "__",
    ]
    expected = {"impression": 1, "findings": 1, "impression + addendum": 1, "none": 1}
    assert reports.prompt_counts(texts) == expected


class TestBounds:
    def test_lines_of_a_table_and_bytes_of_an_image(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tables, "LINES", 3)
        with pytest.raises(ValueError, match=r"t\.csv: more than 3 lines; divide it"):
            folder(tmp_path, *(f"{i}.png,Edema.,,,,,,test" for i in range(9)))
        with open(tmp_path / "0.png", "ab") as file:
            file.truncate(studies.LARGEST + 1)
        with pytest.raises(ValueError, match=r"0\.png: not a readable image \(536,870,913 bytes, more than"):
            read_image(tmp_path / "0.png")
