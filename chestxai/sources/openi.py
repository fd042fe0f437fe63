"""Open-i: the chest X-rays of Indiana University, 7,470 images with 3,955 reports (Demner-Fushman et al. 2016,
https://doi.org/10.1093/jamia/ocv080).

The folder, as the collection's page gives it (https://openi.nlm.nih.gov/faq#collection)::

    openi/
      NLMCXR_png/ or images/           CXR1000_IM-0003-1001.png … (PNG or JPEG of any resolution)
      NLMCXR_reports.tgz               read as it is, never unpacked; or the folder ecgen-radiology/ it holds
      indiana_projections.csv          optional: uid,filename,projection (the export on Kaggle)

A study is one image with the report of its examination: several images of one report are several studies with the
same text. **The patient is the report's uid** (``CXR1000``): the de-identified data say nothing else of the person, so
two examinations of one person count as two patients.

Nothing in the official files tells a frontal image from a lateral one: captions name the examination ("PA and
lateral"), and neither the number in the file's name nor the order in the report is a reliable sign (of the two-image
reports the frontal one comes first in nine of ten). With ``indiana_projections.csv`` only the frontal images are kept;
without it every image is, which is right for a folder that holds frontal images only. The names of that file
(``1000_IM-0003-1001.dcm.png``, in ``images/images_normalized/``) are understood for images, too.

A report is text with the headers COMPARISON, INDICATION, FINDINGS and IMPRESSION as far as they are filled in, blanks
(``XXXX``) left in place. Findings are those `reports.find` reads in it, with side and zone; there are no boxes.
``attributes`` hold the indexers' terms: ``mesh_major`` ("Opacity/lung/upper lobe/right; …"), ``mesh_automatic``, and
``view`` where it is known.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from chestxai import reports
from chestxai.sources import Card, Studies, csv_rows, fingerprint, image_files, image_size, split_patients
from chestxai.studies import Study

CARD = Card(
    title="Open-i (Indiana University)",
    size="7,470 images with 3,955 reports",
    reports="English; names and dates blanked (XXXX)",
    findings="read in the reports (`reports.find`), with side and zone; no boxes; indexers' MeSH terms beside them",
    split="80 : 10 : 10 by report, for a report is all that is known of the patient",
    cite=("demner2016openi",),
)

#: Shares of the patients; which one is whose follows from the uid and the seed alone.
FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}

GET = (
    "Download NLMCXR_png.tgz (images; unpack it) and NLMCXR_reports.tgz (reports; leave it packed) from "
    "https://openi.nlm.nih.gov/faq#collection. No credentials are asked for; the licence is CC BY-NC-ND 4.0"
)

# The official reports have at most 9 kB each and 24 MB together: far more is an accident or a bomb.
_LARGEST_REPORT = 1_000_000
_LARGEST_ARCHIVE = 256_000_000


@dataclass(frozen=True)
class _Report:
    uid: str
    text: str
    images: tuple[str, ...]
    major: str
    automatic: str


def load(root: Path | None, split: str = "test", *, seed: int = 0) -> Studies:
    """The images of one split with their reports; pixels are read later, when asked for.

    Args:
        root: folder laid out as above.
        split: "train", "val" or "test": 80, 10 and 10 % of the patients (`FRACTIONS`), by `studies.split_by_patient`.
        seed: of the split.

    Returns:
        Studies in the order of the reports' numbers; ``size`` is the image file's own. ``skipped`` has one line for
        each image or report of this split that was left out (``reasons()`` counts them); a file that does not tell
        which report it belongs to is listed in every split. The reasons: no image file, lateral projection, empty
        report (neither findings nor an impression: nothing to draw from), unreadable image header, no report for this
        image, …

    Raises:
        FileNotFoundError: images or reports are not there; says where to get them.
        ValueError: the archive is damaged, ``indiana_projections.csv`` lacks a column, or no image belongs to a report.
    """
    if root is None:
        raise FileNotFoundError(
            f"Open-i is read from disk: give root, the folder that holds its images and reports. {GET}"
        )
    images, skipped = _images(root)
    everyone, lines = _reports(root)
    views, more = _views(root)
    splits = split_patients([r.uid for r in everyone], FRACTIONS, seed)
    skipped += lines + more

    studies: list[Study] = []
    claimed: dict[tuple[str, str], str] = {}
    illustrated = 0
    for report in everyone:
        mine = splits[report.uid] == split
        if mine and not report.images:
            skipped.append(f"{report.uid}: report without images")
        files: list[tuple[str, Path]] = []
        for name in report.images:
            key = _key(name)
            if key is None:
                problem = "not the name of an Open-i image"
            elif key in claimed:
                problem = f"image listed before (by {claimed[key]})"
            else:
                claimed[key] = report.uid
                problem = ""
                if key not in images:
                    problem = "no image file"
                elif views is not None and views.get(key) != "frontal":
                    problem = f"{views.get(key, 'unknown')} projection"
                else:
                    files.append((name, images[key]))
            if mine and problem:
                skipped.append(f"{name or report.uid}: {problem}")
        illustrated += bool(files)
        if mine and files:
            studies += _studies(report, files, split, "" if views is None else "frontal", skipped)

    found = sum(key in images for key in claimed)
    if not found:
        raise ValueError(
            f"none of the {len(images)} images in {root} belongs to one of the {len(everyone)} reports. {GET}"
        )
    orphans = {key: path for key, path in images.items() if key not in claimed}
    theirs = split_patients([f"CXR{number}" for number, _ in orphans], FRACTIONS, seed)
    skipped += [
        f"{path.name}: no report for this image" for key, path in orphans.items() if theirs[f"CXR{key[0]}"] == split
    ]
    if views is None and found > 1.25 * illustrated:
        warnings.warn(
            f"{root}: {found} images of {illustrated} reports: lateral images are among them, and nothing tells which. "
            "Put indiana_projections.csv (columns uid,filename,projection) beside the images to keep the frontal ones",
            stacklevel=3,
        )
    return Studies(studies, skipped, fingerprint("openi", studies))


def _studies(
    report: _Report, files: list[tuple[str, Path]], split: str, view: str, skipped: list[str]
) -> Iterator[Study]:
    try:
        reports.prompt(report.text)
    except ValueError:
        skipped += [f"{name}: empty report" for name, _ in files]
        return
    findings = tuple(reports.find(report.text))
    terms = {"mesh_major": report.major, "mesh_automatic": report.automatic, "view": view}
    for name, path in files:
        try:
            size = image_size(path)
        except ValueError as error:
            skipped.append(f"{name}: {error}")
            continue
        yield Study(
            id=name,
            patient=report.uid,
            source="openi",
            split=split,
            report=report.text,
            size=size,
            findings=findings,
            path=path,
            attributes={key: value for key, value in terms.items() if value},
        )


_NAME = re.compile(r"(?:CXR)?(\d+)(?:_\d+)?_(IM-\d+(?:-\d+)+)(?:\.\w+)*")


def _key(name: str) -> tuple[str, str] | None:
    """(report number, image number), the same for every spelling: CXR1_1_IM-0001-4001, 1_IM-0001-4001.dcm.png."""
    match = _NAME.fullmatch(name.strip())
    return (match[1].lstrip("0"), match[2]) if match else None


def _images(root: Path) -> tuple[dict[tuple[str, str], Path], list[str]]:
    files = image_files([root / "NLMCXR_png", root / "images", root / "images" / "images_normalized"])
    if not files:
        raise FileNotFoundError(
            f"{root} has no images: neither NLMCXR_png/ nor images/ holds a PNG or JPEG file. {GET}"
        )
    images: dict[tuple[str, str], Path] = {}
    skipped = []
    for stem, path in files.items():
        key = _key(stem)
        if key is None:
            skipped.append(f"{path.name}: not the name of an Open-i image")
        elif images.setdefault(key, path) is not path:
            skipped.append(f"{path.name}: same image again (as {images[key].name})")
    return images, skipped


def _reports(root: Path) -> tuple[list[_Report], list[str]]:
    """All reports in the order of their numbers, and a line for each file that is none."""
    found: dict[str, _Report] = {}
    skipped = []
    for name, content in sorted(_documents(root), key=lambda item: (len(item[0]), item[0])):
        try:
            report = _parse(content)
        except ValueError as error:
            skipped.append(f"{name}: {error}")
            continue
        if report.uid in found:
            skipped.append(f"{name}: duplicate report (of {report.uid})")
        else:
            found[report.uid] = report
    if not found:
        first = f"; the first problem: {skipped[0]}" if skipped else ""
        raise ValueError(f"{root}: no report could be read from its XML files{first}. {GET}")
    return list(found.values()), skipped


def _documents(root: Path) -> Iterator[tuple[str, bytes | OSError]]:
    """Name and content of every XML file, from the folder or straight from the archive: nothing is written to disk."""
    folder, archive = root / "ecgen-radiology", root / "NLMCXR_reports.tgz"
    if folder.is_dir():
        for path in folder.glob("[!.]*.xml"):
            try:
                with open(path, "rb") as file:
                    yield path.name, file.read(_LARGEST_REPORT + 1)
            except OSError as error:
                yield path.name, error
        return
    if not archive.is_file():
        raise FileNotFoundError(
            f"{root} has no reports: neither NLMCXR_reports.tgz nor ecgen-radiology/ is there. {GET}"
        )
    try:
        with gzip.open(archive) as file:
            content = file.read(_LARGEST_ARCHIVE + 1)
        if len(content) > _LARGEST_ARCHIVE:
            raise ValueError(
                f"{archive}: more than {_LARGEST_ARCHIVE / 1e6:.0f} MB unpacked, not the official file. {GET}"
            )
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for member in tar:
                # Links and devices are passed over; a name is a name only, whatever path it spells.
                name = PurePosixPath(member.name).name
                if member.isreg() and name.endswith(".xml") and not name.startswith("."):
                    yield name, tar.extractfile(member).read(_LARGEST_REPORT + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise ValueError(f"{archive}: damaged or cut off ({error}); delete it and download it again. {GET}") from error


def _parse(content: bytes | OSError) -> _Report:
    if isinstance(content, OSError):
        raise ValueError(f"unreadable file ({content.strerror})")
    if len(content) > _LARGEST_REPORT:
        raise ValueError(f"larger than {_LARGEST_REPORT / 1e6:.0f} MB, not an Open-i report")
    try:
        # Document types are refused altogether: they bring in entities that grow without bound or read other files.
        tree = fromstring(content, forbid_dtd=True)
    except DefusedXmlException as error:
        raise ValueError(f"XML with a document type or entities is refused ({type(error).__name__})") from error
    except (SyntaxError, LookupError, ValueError) as error:
        raise ValueError(f"not well-formed XML ({error})") from error
    uid = tree.find("uId")
    name = (uid.get("id") or "").strip() if uid is not None else ""
    if not re.fullmatch(r"CXR\d+", name):
        raise ValueError("XML without an Open-i uId")
    parts = [((e.get("Label") or "FINDINGS").strip().upper(), _text(e)) for e in tree.iter("AbstractText")]
    return _Report(
        uid=name,
        text="\n".join(f"{label}: {text}" for label, text in parts if text),
        images=tuple(" ".join(e.get("id", "").split()) for e in tree.iter("parentImage")),
        major="; ".join(filter(None, map(_text, tree.iter("major")))),
        automatic="; ".join(filter(None, map(_text, tree.iter("automatic")))),
    )


def _text(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def _views(root: Path) -> tuple[dict[tuple[str, str], str] | None, list[str]]:
    """Projection of each image, "frontal" or "lateral"; None without the csv."""
    path = root / "indiana_projections.csv"
    if not path.is_file():
        return None, []
    views: dict[tuple[str, str], str] = {}
    skipped = []
    for line, row in csv_rows(path, ("filename", "projection"), "Remove the file to load every image"):
        key, view = _key(row["filename"]), row["projection"].lower()
        if key is None:
            problem = f"not the name of an Open-i image ({row['filename']})"
        elif view not in ("frontal", "lateral"):
            problem = f"unknown projection ({row['projection']})"
        elif views.setdefault(key, view) != view:
            problem = f"projection contradicts an earlier row ({row['filename']})"
        else:
            continue
        skipped.append(f"{path.name}:{line}: {problem}")
    return views, skipped
