"""Open-i: the chest X-rays of Indiana University with their reports (Demner-Fushman et al. 2016,
https://doi.org/10.1093/jamia/ocv080).

The layout of the folder and the rules for views, findings and patients are in ``data/cards/openi.md``.
"""

import gzip
import io
import re
import tarfile
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated
from xml.etree.ElementTree import Element

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring
from pydantic import Field

from chestxai import reports, runs
from chestxai.runs import InputError, MissingError
from chestxai.sources.cards import Card
from chestxai.sources.records import MOST, Collector, Item, Record, Studies, ensure, image_size, read_items
from chestxai.sources.splits import FRACTIONS, later_split, split_patients
from chestxai.sources.tables import csv_rows, read_json
from chestxai.studies import Finding, Study

CARD = Card.read("openi")

# The official reports have at most 9 kB each and 24 MB together: far more is an accident or a bomb.
_LARGEST_REPORT = 1_000_000
_LARGEST_ARCHIVE = 256_000_000
_SPLITS = ("train", "val", "test")
_NAME = re.compile(r"(?:CXR)?(\d+)(?:_\d+)?_(IM-\d+(?:-\d+)+)(?:\.\w+)*")
_Share = Annotated[float, Field(ge=0, le=0.8)]
#: Report number and image number.
_Key = tuple[str, str]


@dataclass(frozen=True)
class _Report:
    uid: str
    text: str
    images: tuple[str, ...]
    terms: dict[str, str | float]


def load(root: Path, split: str = "test", *, seed: int = 0, val: _Share = FRACTIONS["val"]) -> Studies:
    """Load one split, see `chestxai.sources.load`; the studies are in the order of the reports' numbers.

    Args:
        root: Folder with the layout of the card.
        split: "train", "val" or "test": 80, 10 and 10 % of the patients, unless ``val`` says otherwise.
        seed: Of the split.
        val: Share of the patients in val, which takes from train; the test split stays as it is.
    """
    data = Collector(CARD, root, split)
    if (root / "annotation.json").is_file():
        ensure(val == FRACTIONS["val"], f"option val of openi: {root} has R2Gen's own splits, which are kept")
        return _r2gen(data, root / "annotation.json")
    images: dict[_Key, Path] = {}
    for stem, path in data.images("NLMCXR_png", "images", "images/images_normalized").items():
        with data.record(path.name):
            first = images.setdefault(_key(stem), path)
            ensure(first is path, f"same image again (as {first.name})")
    views = _views(data)
    documents = _reports(data, {*images, *(views or ())})
    fractions = FRACTIONS | {"val": val, "train": 1 - val - FRACTIONS["test"]}
    data.splits = split_patients((*(r.uid for r in documents), *(f"CXR{key[0]}" for key in images)), fractions, seed)

    claimed: dict[_Key, str] = {}
    records: list[Record] = []
    for report in documents:
        if not report.images:
            data.skip(report.uid, "report without images", report.uid)
        for name in report.images:
            with data.record(name or report.uid, report.uid):
                key = _key(name)
                ensure(key not in claimed, f"image listed before (by {claimed.get(key)})")
                claimed[key] = report.uid
                ensure(key in images, "no image file")
                view = "frontal" if views is None else views.get(key, "unknown")
                ensure(view == "frontal", f"{view} projection")
                records.append(Record(name, name, report.uid, (report, images[key])))
    orphans = [key for key in images if key not in claimed]
    none = f"none of the {len(images)} images in {root} belongs to one of the {len(documents)} reports"
    ensure(len(orphans) < len(images), f"{none}. {CARD.get}")
    for key in orphans:
        data.skip(images[key].name, "no report for this image", f"CXR{key[0]}")
    return _studies(data, records, views)


def _studies(data: Collector, records: list[Record], views: dict[_Key, str] | None) -> Studies:
    """The studies of the split, of ``records`` whose cells are report and file."""
    illustrated = len({record.patient for record in records})
    if views is None and len(records) > 1.25 * illustrated:
        count = f"{len(records)} images of {illustrated} reports"
        lateral = f"{count}: lateral ones are among them, and nothing tells which"
        remedy = "To keep the frontal ones, put indiana_projections.csv (columns filename,projection) beside the images"
        warnings.warn(f"{data.root}: {lateral}. {remedy}", stacklevel=4)
    data.english({record.cells[0].text for record in records})

    def study(record: Record) -> Study:
        report, path = record.cells
        findings, about = _findings(report.text), {"view": "frontal"} if views else {}
        about |= report.terms
        size = image_size(path)
        here = (data.split, report.text, size, findings, path)
        return Study(record.name, report.uid, "openi", *here, attributes=about)

    return data.studies([r for r in records if data.splits[r.patient] == data.split], study, allow_none=True)


class _Pair(Item):
    id: str = Field(pattern=r"^CXR\d+_IM-[\d-]+$")
    report: str = Field(max_length=_LARGEST_REPORT)
    # They become paths: nothing but a folder and the name of a file may pass.
    image_path: list[Annotated[str, Field(pattern=r"^[\w-]+/[\w-]+\.(?:png|jpe?g)$")]] = Field(max_length=MOST)


def _r2gen(data: Collector, path: Path) -> Studies:
    """The studies of the json that R2Gen (Chen et al. 2020) made of Open-i, with its splits; without projections."""
    content, records = read_json(path, dict, CARD.get, _SPLITS), []
    for split in _SPLITS:
        for where, pair in read_items(data, path, content, split, _Pair, "R2Gen's"):
            uid = pair.id.partition("_")[0]
            data.splits[uid] = later_split(data.splits.get(uid, "train"), split)
            report = _Report(uid, " ".join(pair.report.split()), tuple(pair.image_path), {})
            files = [(f"{pair.id}-{PurePosixPath(name).stem}", data.root / "images" / name) for name in pair.image_path]
            records += [Record(where, name, uid, (report, file)) for name, file in files]
    data.require(records, path, "image")
    return _studies(data, records, None)


@cache  # The images of an examination share its report.
def _findings(text: str) -> tuple[Finding, ...]:
    try:
        reports.prompt(text)
    except ValueError as error:
        raise InputError("empty report") from error
    return tuple(reports.find(text))


def _key(name: str, details: str = "") -> _Key:
    """The same for every spelling of a name: CXR1_1_IM-0001-4001, 1_IM-0001-4001.dcm.png."""
    match = _NAME.fullmatch(name.strip())
    ensure(match, f"not the name of an Open-i image{details}")
    return match[1].lstrip("0"), match[2]


def _reports(data: Collector, images: Iterable[_Key]) -> list[_Report]:
    """All reports in the order of their numbers; those of Kaggle's table have the ``images`` of their number."""
    documents: dict[str, _Report] = {}
    table = data.root / "indiana_reports.csv"
    official = (data.root / "ecgen-radiology").is_dir() or (data.root / "NLMCXR_reports.tgz").is_file()
    rows = _table(data, table, images) if table.is_file() and not official else _documents(data)
    for name, content in sorted(rows, key=lambda item: (len(item[0]), item[0])):
        with data.record(name):
            report = content if isinstance(content, _Report) else _parse(content)
            ensure(documents.setdefault(report.uid, report) is report, f"duplicate report (of {report.uid})")
    data.require(documents, data.root, "report")
    return list(documents.values())


def _table(data: Collector, path: Path, images: Iterable[_Key]) -> Iterator[tuple[str, _Report]]:
    """Line and report of every row of Kaggle's table."""
    names: dict[str, list[str]] = {}
    for number, image in sorted(images):
        names.setdefault(number, []).append(f"CXR{number}_{image}")
    labels = ("indication", "comparison", "findings", "impression")
    for where, (uid, *parts, mesh) in csv_rows(path, ("uid", *labels), CARD.get, ("MeSH",)):
        number = uid.removeprefix("CXR").removesuffix(".0").lstrip("0")
        if not re.fullmatch(r"[0-9]{1,9}", number):
            data.skip(where, f"unreadable file (uid {uid[:40]!r} is no number)")
            continue
        text = "\n".join(f"{label.upper()}: {part}" for label, part in zip(labels, parts, strict=True) if part)
        yield where, _Report(f"CXR{number}", text, tuple(names.get(number, ())), _terms(mesh))


def _documents(data: Collector) -> Iterator[tuple[str, bytes]]:
    """Name and content of every XML file, from the folder or straight from the archive: nothing is written to disk."""
    folder, archive = data.root / "ecgen-radiology", data.root / "NLMCXR_reports.tgz"
    if folder.is_dir():
        for path in sorted(folder.glob("[!.]*.xml")):
            try:
                yield path.name, runs.read_bytes(path, _LARGEST_REPORT)
            except (OSError, InputError) as error:
                data.skip(path.name, f"unreadable file ({getattr(error, 'strerror', error)})")
        return
    if not archive.is_file():
        raise MissingError(f"{data.root} has no reports: neither NLMCXR_reports.tgz nor ecgen-radiology. {CARD.get}")
    try:
        with gzip.open(archive) as file:
            content = file.read(_LARGEST_ARCHIVE + 1)
        too_large = f"{archive}: more than {_LARGEST_ARCHIVE / 1e6:.0f} MB unpacked, not the official file. {CARD.get}"
        ensure(len(content) <= _LARGEST_ARCHIVE, too_large)
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for member in tar:
                # Links and devices are ignored; a name is only a name, whatever path it spells.
                name = PurePosixPath(member.name).name
                if member.isreg() and name.endswith(".xml") and not name.startswith("."):
                    yield name, tar.extractfile(member).read(_LARGEST_REPORT + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        message = f"{archive}: damaged or cut off ({error}); delete it and download it again. {CARD.get}"
        raise InputError(message) from error


def _parse(content: bytes) -> _Report:
    ensure(len(content) <= _LARGEST_REPORT, f"larger than {_LARGEST_REPORT / 1e6:.0f} MB, not an Open-i report")
    try:
        # Document types are refused altogether: they bring in entities that grow without bound or read other files.
        tree = fromstring(content, forbid_dtd=True)
    except DefusedXmlException as error:
        raise InputError(f"XML with a document type or entities is refused ({type(error).__name__})") from error
    except (SyntaxError, LookupError, ValueError) as error:
        raise InputError(f"not well-formed XML ({error})") from error
    uid = tree.find("uId")
    name = (uid.get("id") or "").strip() if uid is not None else ""
    ensure(re.fullmatch(r"CXR\d+", name), "XML without an Open-i uId")
    parts = [((e.get("Label") or "FINDINGS").strip().upper(), _text(e)) for e in tree.iter("AbstractText")]
    major, automatic = ("; ".join(filter(None, map(_text, tree.iter(tag)))) for tag in ("major", "automatic"))
    return _Report(
        uid=name,
        text="\n".join(f"{label}: {text}" for label, text in parts if text),
        images=tuple(" ".join(e.get("id", "").split()) for e in tree.iter("parentImage")),
        terms=_terms(major, automatic),
    )


def _terms(major: str, automatic: str = "") -> dict[str, str]:
    terms = {"mesh_major": major, "mesh_automatic": automatic, "side": _side(major)}
    return {key: value for key, value in terms.items() if value}


def _side(terms: str) -> str:
    """The side of all findings that the indexers place on one: "Pleural Effusion/left/small" → "left"."""
    found = set()
    for heading, *qualifiers in (term.split("/") for term in re.split("; ?", terms.lower())):
        if reports.find(heading):
            found |= {"left", "right"} & set(qualifiers) or ({"bilateral"} & set(qualifiers))
    return found.pop() if len(found) == 1 else "bilateral" if found else ""


def _text(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def _views(data: Collector) -> dict[_Key, str] | None:
    """Projection of each image, "frontal" or "lateral"; None without the csv."""
    path = data.root / "indiana_projections.csv"
    if not path.is_file():
        return None
    views: dict[_Key, str] = {}
    for where, (file, view) in csv_rows(path, ("filename", "projection"), "Remove the file to load every image"):
        with data.record(where):
            key = _key(file, f" ({file})")
            ensure(view.lower() in ("frontal", "lateral"), f"unknown projection ({view})")
            same = views.setdefault(key, view.lower()) == view.lower()
            ensure(same, f"projection contradicts an earlier row ({file})")
    return views
