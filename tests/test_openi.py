"""Open-i: small files in exactly the official format, and everything that can be wrong with them."""

from __future__ import annotations

import gzip
import io
import re
import shutil
import tarfile
import warnings
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from chestxai import reports, sources
from chestxai.sources import openi
from chestxai.sources.records import fingerprint
from chestxai.sources.splits import split_patients
from chestxai.studies import FINDINGS, Study, to_images

# The official file with its odd blank lines, without the fields that are not read.
DOCUMENT = """<?xml version="1.0" encoding="utf-8"?>
<eCitation>
   <meta type="rr"/>
   <uId id="CXR{number}"/>
   <pmcId id="{number}"/>
   <licenseURL>http://creativecommons.org/licenses/by-nc-nd/4.0/</licenseURL>
   <MedlineCitation Owner="Indiana University" Status="supplied by publisher">

      <Article PubModel="Electronic">

         <ArticleTitle>Indiana University Chest X-ray Collection</ArticleTitle>

         <Abstract>

{sections}

         </Abstract>

      </Article>

   </MedlineCitation>
   <MeSH>

{terms}

   </MeSH>
{images}
</eCitation>
"""
IMAGE = """   <parentImage id="{name}">


      <figureId>F1</figureId>


      <caption>PA and lateral chest x-XXXX XXXX. </caption>


   </parentImage>
"""
SECTIONS = {
    "COMPARISON": "XXXX PA and lateral chest radiographs",
    "INDICATION": "XXXX-year-old male, rule out pneumothorax.",
    "FINDINGS": "There is a small left pleural effusion. The heart is enlarged. No pneumothorax.",
    "IMPRESSION": "1. Small left pleural effusion. 2. XXXX cardiomegaly.",
}


def document(
    number: int, images: tuple[str, ...] = (), sections: dict[str, str] = SECTIONS, terms: str = "<major>normal</major>"
) -> str:
    return DOCUMENT.format(
        number=number,
        sections="\n".join(f'<AbstractText Label="{k}">{v}</AbstractText>' for k, v in sections.items()),
        terms=terms,
        images="".join(IMAGE.format(name=name) for name in images),
    )


def picture(path: Path, size: tuple[int, int] = (24, 20), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, size[::-1], dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def folder(root: Path, documents: dict[str, str | bytes]) -> Path:
    (root / "ecgen-radiology").mkdir(parents=True, exist_ok=True)
    for name, text in documents.items():
        (root / "ecgen-radiology" / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return root


def archive(root: Path, documents: dict[str, str | bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "NLMCXR_reports.tgz", "w:gz") as tar:
        for name, text in documents.items():
            content = text.encode() if isinstance(text, str) else text
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra:
            tar.addfile(member)
    return root


def name(number: int, image: str = "1001") -> str:
    return f"CXR{number}_IM-{number:04d}-{image}"


def collection(root: Path, numbers: range = range(1, 6), **kind: str) -> Path:
    """A folder with one PNG for each report."""
    for n in numbers:
        picture(root / "images" / f"{name(n)}.png", seed=n)
    return folder(root, {f"{n}.xml": document(n, (name(n),), **kind) for n in numbers})


def everything(root: Path, **options) -> tuple[list[Study], list[str]]:
    loaded = [sources.load("openi", root, split, **options) for split in ("train", "val", "test")]
    return [s for part in loaded for s in part], [line for part in loaded for line in part.skipped]


def split_of(number: int) -> str:
    return split_patients([f"CXR{number}"], openi.FRACTIONS)[f"CXR{number}"]


@pytest.mark.parametrize(
    ("terms", "side"),
    [
        ("Pleural Effusion/right/small; Cardiomegaly", "right"),
        ("Pleural Effusion/left; Pneumonia/upper lobe/left", "left"),
        ("Pleural Effusion/left; Pneumonia/upper lobe/right", "bilateral"),
        ("Pleural Effusion/left; Pulmonary Atelectasis/base/bilateral", "bilateral"),
        ("Catheters, Indwelling/right; Fractures, Bone/ribs/left; Cardiomegaly", ""),
        ("", ""),
    ],
)
def test_the_indexers_side_is_that_of_all_findings(terms, side):
    assert openi._side(terms) == side


class TestRecord:
    def test_by_hand(self, tmp_path):
        picture(tmp_path / "NLMCXR_png" / f"{name(7)}.png", size=(24, 20))
        terms = (
            "<major>Pleural Effusion/left/small</major>\n<major>Cardiomegaly</major>\n<automatic>effusion</automatic>"
        )
        folder(tmp_path, {"7.xml": document(7, (name(7),), terms=terms)})
        (study,), skipped = everything(tmp_path)
        assert skipped == []
        assert (study.id, study.patient, study.source, study.size) == ("CXR7_IM-0007-1001", "CXR7", "openi", (20, 24))
        assert study.split == split_of(7)
        assert study.report == "\n".join(f"{key}: {text}" for key, text in SECTIONS.items())
        assert study.attributes == {
            "mesh_major": "Pleural Effusion/left/small; Cardiomegaly",
            "mesh_automatic": "effusion",
            "side": "left",
        }
        assert study.pixels().shape == (20, 24)

    def test_reports_module_reads_the_text(self, tmp_path):
        (study, *_), _ = everything(collection(tmp_path))
        assert reports.sections(study.report) == {key.lower(): text for key, text in SECTIONS.items()}
        assert reports.prompt(study.report) == "Small left pleural effusion. cardiomegaly."
        assert not reports.normal(study.report)

    def test_findings_with_side_and_severity_and_no_box(self, tmp_path):
        (study, *_), _ = everything(collection(tmp_path))
        effusion = next(f for f in study.findings if f.name == "Pleural Effusion")
        assert (effusion.side, effusion.severity, effusion.present) == ("left", "mild", True)
        assert {f.name: f.present for f in study.findings} == {
            "Pleural Effusion": True,
            "Cardiomegaly": True,
            "Pneumothorax": False,
        }
        assert all(f.phrase in study.report and not f.boxes for f in study.findings)
        assert study.labels()[FINDINGS.index("Pneumothorax")] == 0

    def test_indication_is_no_finding(self, tmp_path):
        sections = {"INDICATION": "Pneumonia, pleural effusion.", "FINDINGS": "The lungs are clear."}
        (study, *_), _ = everything(collection(tmp_path, sections=sections))
        assert study.findings == ()
        assert reports.normal(study.report)

    def test_missing_sections_leave_no_header(self, tmp_path):
        root = collection(tmp_path, range(3, 4), sections={"COMPARISON": "", "INDICATION": " ", "IMPRESSION": "Clear."})
        (study,), _ = everything(root)
        assert study.report == "IMPRESSION: Clear."

    def test_white_space_in_a_section_is_folded_and_entities_of_xml_are_read(self, tmp_path):
        root = collection(tmp_path, range(3, 4), sections={"FINDINGS": "Heart &lt; normal\n\n   &amp; clear."})
        (study,), _ = everything(root)
        assert study.report == "FINDINGS: Heart < normal & clear."

    def test_jpeg_and_several_images_of_one_report_share_text_and_split(self, tmp_path):
        names = (name(9), name(9, "2001"), name(9, "1001-0002"))
        for i, one in enumerate(names):
            picture(tmp_path / "images" / f"{one}.{('jpg', 'JPG', 'jpeg')[i]}")
        folder(tmp_path, {"9.xml": document(9, names)})
        with pytest.warns(UserWarning, match="lateral"):
            studies = sources.load("openi", tmp_path, split_of(9))
        assert [s.id for s in studies] == list(names)
        assert len({s.report for s in studies}) == len({s.patient for s in studies}) == 1

    def test_order_is_that_of_the_report_numbers(self, tmp_path):
        root = collection(tmp_path, range(1, 40))
        numbers = [int(s.patient[3:]) for s in sources.load("openi", root, "train")]
        assert numbers == sorted(numbers)

    @given(
        number=st.integers(1, 9999), middle=st.integers(1, 9999), image=st.from_regex(r"\d{4}(-\d{4})?", fullmatch=True)
    )
    def test_every_spelling_of_a_name_is_one_image(self, number, middle, image):
        rest = f"IM-{middle:04d}-{image}"
        spellings = [f"CXR{number}_{rest}", f"CXR{number}_1_{rest}", f"{number}_{rest}.dcm.png", f"{number}_{rest}.dcm"]
        assert {openi._key(s) for s in spellings} == {(str(number), rest)}
        assert openi._key(f"CXR{number + 1}_{rest}") != openi._key(spellings[0])

    def test_official_name_with_two_numbers_finds_the_file_named_with_one(self, tmp_path):
        picture(tmp_path / "images" / "CXR1_IM-0001-4001.jpg")
        folder(tmp_path, {"1.xml": document(1, ("CXR1_1_IM-0001-4001",))})
        (study,), skipped = everything(tmp_path)
        assert (study.id, skipped) == ("CXR1_1_IM-0001-4001", [])


class TestSplits:
    def test_a_report_belongs_to_the_split_of_its_uid_whoever_else_is_there(self, tmp_path):
        studies, _ = everything(collection(tmp_path / "many", range(1, 61)))
        assert len(studies) == 60
        assert {s.patient: s.split for s in studies} == {f"CXR{n}": split_of(n) for n in range(1, 61)}
        few, _ = everything(collection(tmp_path / "few", range(50, 61)))
        assert {s.id: s.split for s in few}.items() <= {s.id: s.split for s in studies}.items()

    def test_eight_in_ten_are_trained_on(self):
        counts = Counter(split_patients([f"CXR{n}" for n in range(1, 4000)], openi.FRACTIONS).values())
        shares = {split: counts[split] / 3999 for split in counts}
        assert shares == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.02)

    def test_a_larger_val_split_takes_from_train(self, tmp_path):
        root = collection(tmp_path, range(1, 61))
        usual, larger = (
            {split: {s.id for s in sources.load("openi", root, split, **options)} for split in ("train", "val", "test")}
            for options in ({}, {"val": 0.4})
        )
        assert larger["test"] == usual["test"]
        assert larger["val"] > usual["val"]
        assert larger["train"] < usual["train"]
        with pytest.raises(ValueError, match=r"option 'val' of openi: .*less than or equal to 0\.8"):
            sources.check_options("openi", {"val": 0.95})

    def test_another_seed_is_another_split(self, tmp_path):
        root = collection(tmp_path, range(1, 31))
        ids = [{s.id for s in sources.load("openi", root, "train", seed=seed)} for seed in (0, 1)]
        assert ids[0] != ids[1]


class TestArchive:
    def test_same_studies_and_fingerprint_as_the_folder(self, tmp_path):
        root = collection(tmp_path / "folder", range(1, 13))
        texts = {f"ecgen-radiology/{p.name}": p.read_text() for p in (root / "ecgen-radiology").iterdir()}
        shutil.copytree(root / "images", tmp_path / "tgz" / "images")
        archive(tmp_path / "tgz", texts)
        for split in ("train", "val", "test"):
            a, b = (sources.load("openi", tmp_path / kind, split) for kind in ("folder", "tgz"))
            assert [s.id for s in a] == [s.id for s in b]
            assert [(s.report, s.findings, s.attributes) for s in a] == [
                (s.report, s.findings, s.attributes) for s in b
            ]
            assert a.fingerprint == b.fingerprint

    def test_nothing_is_unpacked_and_links_are_not_followed(self, tmp_path):
        root = tmp_path / "data" / "openi"
        secret = tmp_path / "secret.xml"
        secret.write_text(document(3, (name(3),)))
        link = tarfile.TarInfo("ecgen-radiology/3.xml")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        for n in range(1, 4):
            picture(root / "images" / f"{name(n)}.png")
        documents = {"../../../1.xml": document(1, (name(1),)), "/2.xml": document(2, (name(2),))}
        archive(root, documents, (link,))
        before = sorted(tmp_path.rglob("*"))
        studies, skipped = everything(root)
        assert sorted(tmp_path.rglob("*")) == before
        assert {s.patient for s in studies} == {"CXR1", "CXR2"}
        assert skipped == [f"{name(3)}.png: no report for this image"]

    def test_a_cut_off_download_says_so(self, tmp_path):
        picture(tmp_path / "images" / f"{name(1)}.png")
        noise = np.random.default_rng(0).bytes(3000).hex()
        archive(tmp_path, {"1.xml": document(1, (name(1),), {"FINDINGS": noise})})
        path = tmp_path / "NLMCXR_reports.tgz"
        path.write_bytes(path.read_bytes()[:1500])
        with pytest.raises(ValueError, match=r"NLMCXR_reports\.tgz: damaged or cut off .*download it again"):
            sources.load("openi", tmp_path, "train")

    @pytest.mark.parametrize(
        "content",
        [b"", b"<html>404</html>", gzip.compress(b"no tar" * 200, mtime=0)],
        ids=["empty", "a web page", "gzip of something else"],
    )
    def test_no_archive_at_all(self, tmp_path, content):
        picture(tmp_path / "images" / f"{name(1)}.png")
        (tmp_path / "NLMCXR_reports.tgz").write_bytes(content)
        with pytest.raises(ValueError, match=r"openi\.nlm\.nih\.gov"):
            sources.load("openi", tmp_path, "train")

    def test_a_bomb_is_not_unpacked(self, tmp_path, monkeypatch):
        monkeypatch.setattr(openi, "_LARGEST_ARCHIVE", 100_000)
        picture(tmp_path / "images" / f"{name(1)}.png")
        archive(tmp_path, {"1.xml": document(1, (name(1),)), "bomb": bytes(1_000_000)})
        with pytest.raises(ValueError, match="not the official file"):
            sources.load("openi", tmp_path, "train")


LAUGHS = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><eCitation>&b;</eCitation>'
OUTSIDE = '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a SYSTEM "secret.xml">]><eCitation>&a;</eCitation>'


class TestBadReports:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (LAUGHS, "XML with a document type or entities is refused"),
            (OUTSIDE, "XML with a document type or entities is refused"),
            (LAUGHS.encode("utf-16"), "XML with a document type or entities is refused"),
            (
                "<!DOCTYPE eCitation>" + document(2).partition("?>")[2],
                "XML with a document type or entities is refused",
            ),
            (document(2)[:-30], "not well-formed XML"),
            ("", "not well-formed XML"),
            (b"\xff\xfe\x00garbage", "not well-formed XML"),
            ('<?xml version="1.0" encoding="martian"?><a/>', "not well-formed XML"),
            ("<a>" * 30_000, "not well-formed XML"),
            ("<eCitation/>", "XML without an Open-i uId"),
            ('<eCitation><uId id="CXR2&#10;x"/></eCitation>', "XML without an Open-i uId"),
            ("<eCitation>" + " " * 1_000_001 + "</eCitation>", "unreadable file"),
        ],
    )
    def test_one_is_listed_and_the_others_load(self, tmp_path, content, reason):
        root = collection(tmp_path, range(3, 5))
        folder(root, {"2.xml": content})
        studies, _ = everything(root)
        assert {s.patient for s in studies} == {"CXR3", "CXR4"}
        found = sources.load("openi", root, "train")
        assert found.reasons() == {reason: 1}
        assert found.skipped[0].startswith("2.xml: ")
        assert "\n" not in found.skipped[0]

    def test_the_same_report_twice_counts_once(self, tmp_path):
        root = collection(tmp_path, range(1, 2))
        folder(root, {"77.xml": document(1, (name(1),), {"FINDINGS": "Another text."})})
        studies, skipped = everything(root)
        assert [s.report.startswith("COMPARISON") for s in studies] == [True]
        assert set(skipped) == {"77.xml: duplicate report (of CXR1)"}

    @pytest.mark.parametrize(
        "sections",
        [
            {},
            {"COMPARISON": "None.", "INDICATION": "Chest pain."},
            {"FINDINGS": "XXXX XXXX.", "IMPRESSION": "XXXX"},
            {"FINDINGS": "", "IMPRESSION": "  "},
        ],
    )
    def test_a_report_that_says_nothing_is_left_out(self, tmp_path, sections):
        studies, skipped = everything(collection(tmp_path, range(1, 2), sections=sections))
        assert studies == []
        assert skipped == [f"{name(1)}: empty report"]

    def test_none_readable_is_fatal(self, tmp_path):
        picture(tmp_path / "images" / f"{name(1)}.png")
        with pytest.raises(ValueError, match=r"no usable report; the first problem: 1\.xml: not well-formed"):
            sources.load("openi", folder(tmp_path, {"1.xml": "<a>"}), "train")


class TestBadImages:
    def test_every_image_is_a_study_or_a_line_in_exactly_one_split(self, tmp_path):
        root = collection(tmp_path, range(1, 31))
        folder(root, {f"{n}.xml": document(n, (name(n),)) for n in range(31, 41)})
        folder(root, {f"{n}.xml": document(n) for n in range(41, 46)})
        picture(root / "images" / f"{name(900)}.png")
        studies, skipped = everything(root)
        assert len(studies) == 30
        assert sources.Studies(skipped=skipped).reasons() == {
            "no image file": 10,
            "report without images": 5,
            "no report for this image": 1,
        }
        for n in range(31, 41):
            assert f"{name(n)}: no image file" in sources.load("openi", root, split_of(n)).skipped

    @pytest.mark.parametrize(
        "content", [b"", b"\x89PNG\r\n\x1a\n\x00\x00", b"not an image at all", b"GIF89a" + bytes(40)]
    )
    def test_unreadable_header_is_listed(self, tmp_path, content):
        root = collection(tmp_path, range(1, 4))
        (root / "images" / f"{name(2)}.png").write_bytes(content)
        studies, skipped = everything(root)
        assert [s.patient for s in sorted(studies, key=lambda s: s.id)] == ["CXR1", "CXR3"]
        (line,) = skipped
        assert re.match(rf"{name(2)}: unreadable image header \({name(2)}\.png: \w+\)$", line)

    def test_an_absurdly_large_header_is_listed_without_decoding(self, tmp_path):
        root = collection(tmp_path, range(1, 3))
        bomb = bytearray(picture(tmp_path / "bomb.png").read_bytes())
        bomb[16:24] = (60_000).to_bytes(4, "big") * 2
        bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
        (root / "images" / f"{name(1)}.png").write_bytes(bytes(bomb))
        studies, skipped = everything(root)
        assert [s.patient for s in studies] == ["CXR2"]
        assert sources.Studies(skipped=skipped).reasons() == {"unreadable image header": 1}

    def test_a_body_cut_off_is_found_when_pixels_are_read(self, tmp_path):
        root = collection(tmp_path, range(1, 3))
        path = root / "images" / f"{name(1)}.png"
        path.write_bytes(path.read_bytes()[:200])
        studies, skipped = everything(root)
        assert (len(studies), skipped) == (2, [])
        images, kept, lines = to_images(studies, 16)
        assert (len(images), [s.patient for s in kept]) == (1, ["CXR2"])
        assert name(1) in lines[0]

    def test_loading_decodes_no_pixel(self, tmp_path, monkeypatch):
        root = collection(tmp_path)

        def refuse(self):
            raise AssertionError("pixels were decoded")

        monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
        assert len(everything(root)[0]) == 5

    def test_strange_and_doubled_files(self, tmp_path):
        root = collection(tmp_path, range(1, 3))
        picture(root / "images" / "holiday.png")
        picture(root / "images" / f"._{name(1)}.png")
        (root / "images" / "readme.txt").write_text("text")
        picture(root / "images" / "1_IM-0001-1001.dcm.png")
        picture(root / "NLMCXR_png" / f"{name(2)}.png", size=(8, 8))
        found = sources.load("openi", root, "train")
        assert found.reasons() == {"not the name of an Open-i image": 1, "same image again": 1}
        studies, _ = everything(root)
        assert {s.patient: s.size for s in studies} == {"CXR1": (20, 24), "CXR2": (8, 8)}

    def test_an_image_belongs_to_the_first_report_that_names_it(self, tmp_path):
        root = collection(tmp_path, range(1, 3))
        folder(root, {"2.xml": document(2, (name(1), name(2), "CXR2 IM", ""))})
        studies, skipped = everything(root)
        assert {s.id: s.patient for s in studies} == {name(1): "CXR1", name(2): "CXR2"}
        assert skipped == [
            f"{name(1)}: image listed before (by CXR1)",
            "CXR2 IM: not the name of an Open-i image",
            "CXR2: not the name of an Open-i image",
        ]


class TestProjections:
    def both(self, root: Path, numbers: range = range(1, 5)) -> Path:
        for n in numbers:
            picture(root / "images" / f"{name(n)}.png", seed=n)
            picture(root / "images" / f"{name(n, '2001')}.png", seed=-n % 99)
        return folder(root, {f"{n}.xml": document(n, (name(n), name(n, "2001"))) for n in numbers})

    def test_only_frontal_images_are_kept(self, tmp_path):
        rows = [
            f"{n},{n}_IM-{n:04d}-1001.dcm.png,Lateral\n{n},{n}_IM-{n:04d}-2001.dcm.png,Frontal" for n in range(1, 5)
        ]
        root = self.both(tmp_path)
        (root / "indiana_projections.csv").write_text("uid,filename,projection\n" + "\n".join(rows) + "\n")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            studies, skipped = everything(root)
        assert {s.id for s in studies} == {name(n, "2001") for n in range(1, 5)}
        assert {s.attributes["view"] for s in studies} == {"frontal"}
        assert sources.Studies(skipped=skipped).reasons() == {"lateral projection": 4}

    def test_without_the_file_all_are_kept_and_it_is_said(self, tmp_path):
        root = self.both(tmp_path)
        with pytest.warns(UserWarning, match=r"8 images of 4 reports.*indiana_projections\.csv"):
            studies, _ = everything(root)
        assert len(studies) == 8
        assert all("view" not in s.attributes for s in studies)

    def test_bad_rows_are_listed_with_their_line(self, tmp_path):
        root = self.both(tmp_path, range(1, 2))
        (root / "indiana_projections.csv").write_bytes(
            b"\xef\xbb\xbfuid,filename,projection\r\n"
            b"1,1_IM-0001-1001.dcm.png,Frontal\r\n"
            b"\r\n"
            b"1,cat.png,Frontal\r\n"
            b"1,1_IM-0001-2001.dcm.png,Oblique\r\n"
            b"1\r\n"
            b"1,1_IM-0001-1001.dcm.png,Lateral\r\n"
        )
        found = sources.load("openi", root, split_of(1))
        assert [s.id for s in found] == [name(1)]
        assert found.skipped == [
            "indiana_projections.csv:4: not the name of an Open-i image (cat.png)",
            "indiana_projections.csv:5: unknown projection (Oblique)",
            "indiana_projections.csv:6: not the name of an Open-i image ()",
            "indiana_projections.csv:7: projection contradicts an earlier row (1_IM-0001-1001.dcm.png)",
            f"{name(1, '2001')}: unknown projection",
        ]

    @pytest.mark.parametrize("text", ["", "uid,file,view\n1,a,b\n"])
    def test_a_missing_column_is_fatal(self, tmp_path, text):
        root = self.both(tmp_path, range(1, 2))
        (root / "indiana_projections.csv").write_text(text)
        with pytest.raises(ValueError, match=r"indiana_projections\.csv: column filename, projection missing"):
            sources.load("openi", root, "train")


class TestFatal:
    @pytest.mark.parametrize(
        ("there", "missing"), [((), "no images"), (("images",), "no reports"), (("ecgen-radiology",), "no images")]
    )
    def test_says_what_is_missing_where_to_get_it_and_on_what_terms(self, tmp_path, there, missing):
        collection(tmp_path / "whole")
        for part in there:
            shutil.copytree(tmp_path / "whole" / part, tmp_path / "part" / part)
        with pytest.raises(
            FileNotFoundError, match=rf"part has {missing}.*openi\.nlm\.nih\.gov/faq#collection.*CC BY-NC-ND"
        ):
            sources.load("openi", tmp_path / "part", "train")

    def test_no_root(self):
        with pytest.raises(FileNotFoundError, match="give root"):
            sources.load("openi")

    def test_images_of_another_collection(self, tmp_path):
        root = collection(tmp_path)
        shutil.rmtree(root / "images")
        picture(root / "images" / f"{name(999)}.png")
        with pytest.raises(ValueError, match="none of the 1 images"):
            sources.load("openi", root, "train")


class TestFingerprint:
    def test_names_the_content_not_the_place(self, tmp_path):
        root = collection(tmp_path / "a", range(1, 9))
        shutil.copytree(root, tmp_path / "elsewhere" / "b")
        a, b = (sources.load("openi", r, "train") for r in (root, tmp_path / "elsewhere" / "b"))
        assert a.fingerprint == b.fingerprint
        assert a.fingerprint != sources.load("openi", root, "test").fingerprint

    def test_the_order_of_findings_is_no_content(self, tmp_path):
        studies = sources.load("openi", collection(tmp_path), "train")
        turned = [replace(s, findings=s.findings[::-1]) for s in studies]
        assert fingerprint("openi", turned) == studies.fingerprint
        fewer = [replace(s, findings=s.findings[1:]) for s in studies]
        assert fingerprint("openi", fewer) != studies.fingerprint

    @pytest.mark.parametrize("change", ["image", "report", "gone"])
    def test_any_change_of_what_is_loaded_shows(self, tmp_path, change):
        root = collection(tmp_path, range(1, 9))
        first = sources.load("openi", root, "train")
        path = first[0].path
        if change == "image":
            picture(path, size=(25, 20))
        elif change == "gone":
            path.unlink()
        else:
            file = root / "ecgen-radiology" / f"{first[0].patient[3:]}.xml"
            file.write_text(file.read_text().replace("The heart is enlarged", "The heart is normal"))
        assert sources.load("openi", root, "train").fingerprint != first.fingerprint


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(list(SECTIONS)),
        st.lists(
            st.sampled_from("the heart is normal. XXXX & <b> no effusion; 1. left, clear lungs".split()), max_size=9
        ),
    )
)
def test_any_sections_survive_the_way_through_xml_and_back(words):
    texts = {label: " ".join(words[label]) for label in SECTIONS if label in words}
    report = openi._parse(document(5, sections={k: escape(v) for k, v in texts.items()}).encode())
    assert report.text == "\n".join(f"{k}: {v}" for k, v in texts.items() if v)
    assert all(f.phrase in report.text for f in reports.find(report.text))
