"""One module per data set; all of them give the same record, `chestxai.studies.Study`."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import getdoc, signature
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any, get_type_hints

import numpy as np
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from scipy import ndimage

from chestxai import runs
from chestxai.studies import Box, Study, is_dicom, read_dicom, split_by_patient

#: Names `load` knows, and what each is.
SOURCES = {
    "phantom": "a digital chest phantom with exact truth (ships with the book)",
    "openi": "Open-i / Indiana University chest X-rays: images and reports, no credentials",
    "nih": "NIH ChestX-ray14: images, labels, and 984 radiologists' boxes, no credentials",
    "folder": "one's own data: a csv of images, texts and boxes beside the images",
    "mimic": "MIMIC-CXR-JPG with MS-CXR: images, reports, and radiologists' boxes of phrases, credentials of PhysioNet",
    "padchest": "PadChest-GR: images, sentences in Spanish and English with boxes, on request from BIMCV",
    "chexlocalize": "CheXlocalize: images of CheXpert with radiologists' masks, no reports, agreement of Stanford",
    "coco": "MS-COCO: photographs, captions and objects, the paper's control outside medicine, no credentials",
    "vindr": "VinDr-CXR: images and boxes of three readers or their consensus, no reports, credentials of PhysioNet",
}

#: Sources whose images and reports may not be passed on, be it on a published page: their terms bind each user. One's
#: own data are taken for such, until a profile says otherwise: what has been published cannot be taken back.
CREDENTIALED = frozenset({"chexlocalize", "folder", "mimic", "padchest", "vindr"})


class Studies(list[Study]):
    """Studies of one split, with what was left out and why.

    Attributes:
        skipped: one line for every record left out, ``record: reason (details)``; a record is a file or ``file:line``.
        fingerprint: names exactly what was loaded; equal data, equal fingerprint.
    """

    def __init__(self, studies: Iterable[Study] = (), skipped: Iterable[str] = (), fingerprint: str = "") -> None:
        super().__init__(studies)
        self.skipped = list(skipped)
        self.fingerprint = fingerprint

    def reasons(self) -> dict[str, int]:
        """How many records were left out for which reason, the commonest first."""
        return dict(Counter(line.partition(": ")[2].partition(" (")[0] for line in self.skipped).most_common())


@dataclass(frozen=True)
class Card:
    """What a reader should know of a data set before using it; `card` adds what the code says of it elsewhere.

    Attributes:
        title: its name in full.
        size: images, patients, boxes.
        reports: their language, or what stands in their place.
        findings: where they come from, and in what form.
        split: the rule.
        cite: keys of references.bib.
    """

    title: str
    size: str
    reports: str
    findings: str
    split: str
    cite: tuple[str, ...]


@dataclass(frozen=True)
class Terms:
    """On which terms a data set is given: its licence, where it stands, and its conditions in one line.

    ``credentialed`` says that images, reports and identifiers bind each user and may not be shown to others: pages of
    such data go through `chestxai.guard`.
    """

    licence: str
    url: str
    conditions: str
    credentialed: bool


_CLOSED = "each user signs; images, reports and identifiers are passed on to no one"
#: Source → licence, address, conditions.
_TERMS = {
    "phantom": ("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", "made from no patient's data; free"),
    "openi": (
        "CC BY-NC-ND 4.0",
        "https://openi.nlm.nih.gov/faq#collection",
        "name the collection; not for commerce; pass on unchanged only",
    ),
    "nih": (
        "NIH Clinical Center's terms",
        "https://nihcc.app.box.com/v/ChestXray-NIHCC",
        "free to use; name the NIH Clinical Center and cite Wang et al. 2017",
    ),
    "folder": ("your own", "", "withheld, until the profile says data: {credentialed: false}"),
    "coco": (
        "CC BY 4.0 (annotations), Flickr's terms (images)",
        "https://cocodataset.org/#termsofuse",
        "name the COCO Consortium; each image keeps its own licence",
    ),
    "mimic": (
        "PhysioNet Credentialed Health Data License 1.5.0",
        "https://physionet.org/content/mimic-cxr-jpg/",
        _CLOSED,
    ),
    "vindr": (
        "PhysioNet Credentialed Health Data License 1.5.0",
        "https://physionet.org/content/vindr-cxr/",
        _CLOSED,
    ),
    "padchest": (
        "PadChest Dataset Research Use Agreement of BIMCV",
        "https://bimcv.cipf.es/bimcv-projects/padchest-gr/",
        _CLOSED,
    ),
    "chexlocalize": (
        "Stanford University Dataset Research Use Agreement",
        "https://aimi.stanford.edu/datasets/chexlocalize",
        _CLOSED,
    ),
}


def terms(name: str) -> Terms:
    """The terms of a source.

    Raises:
        ValueError: none are known for it, so nothing of it may be shown.
    """
    if name not in _TERMS:
        raise ValueError(f"no terms are known for source {name!r}: known are those of {', '.join(_TERMS)}")
    return Terms(*_TERMS[name], credentialed=name in CREDENTIALED)


def card(name: str) -> dict[str, str]:
    """The data card of a source as rows of a table: what each module's ``CARD`` says, its terms, options, and where
    to get it."""
    module, given = _module(name), terms(name)
    own = module.CARD
    return {
        "what": SOURCES[name],
        "size": own.size,
        "reports": own.reports,
        "findings": own.findings,
        "split": own.split,
        "licence": f"{given.licence}, {given.url}" if given.url else given.licence,
        "conditions": given.conditions,
        "pages show": "aggregates only"
        if given.credentialed
        else "images, texts and places; the conditions say what of them you may pass on",
        "options": ", ".join(f"`{key}` ({default})" for key, default in options_of(name).items()),
        "where": getattr(module, "GET", "It ships with the book."),
    }


def cards() -> str:
    """The page of all data cards, in MyST Markdown; each with its files as the module reads them."""
    parts = []
    for name in SOURCES:
        module = _module(name)
        linked = {key: re.sub(r"https?://\S*[\w/]", r"<\g<0>>", value) for key, value in card(name).items()}
        rows = [f"| **{key}** | {value} |" for key, value in linked.items()]
        rows += [f"| **cite** | {{cite}}`{','.join(module.CARD.cite)}` |"] if module.CARD.cite else []
        # The folder is the block that stands indented in the module's description.
        files = re.search(r"::\n\n((?: {4}.*\n)+)", getdoc(module) or "")
        layout = f"\n```text\n{dedent(files[1])}```\n" if files else ""
        parts.append(f"## {module.CARD.title}\n\n| | `{name}` |\n|---|---|\n" + "\n".join(rows) + f"\n{layout}")
    return "\n".join(parts)


def load(name: str, root: str | Path | None = None, split: str = "test", **options: object) -> Studies:
    """Load one split of a data set.

    Args:
        name: one of `SOURCES`.
        root: folder with the data set's official layout; phantoms need none.
        split: "train", "val" or "test"; patients never straddle two.
        options: the source's own, see its module.

    Raises:
        ValueError: unknown source or split.
        FileNotFoundError: ``root`` lacks the data; says where to get them.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown source {name!r}: choose one of {', '.join(SOURCES)}")
    if split not in ("train", "val", "test"):
        raise ValueError(f"unknown split {split!r}: choose one of train, val, test")
    return _module(name).load(None if root is None else Path(root), split=split, **options)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"chestxai.sources.{name}")


def options_of(name: str) -> dict[str, Any]:
    """The options of a source that a profile may give, with their defaults."""
    own = {key: p.default for key, p in signature(_module(name).load).parameters.items() if p.kind is p.KEYWORD_ONLY}
    # Number and size of phantoms are settings of the profile itself.
    return {key: default for key, default in own.items() if (name, key) not in (("phantom", "n"), ("phantom", "size"))}


def check_options(name: str, options: Mapping[str, object]) -> None:
    """Whether a source takes these options: those of its ``load``, but for the number and size of phantoms.

    Raises:
        ValueError: it does not know one, or not that value; names the option and what may be said.
    """
    known, hints = options_of(name), get_type_hints(_module(name).load)
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"{name} has no option {key!r}: it has {', '.join(known)}")
        try:
            TypeAdapter(hints[key]).validate_python(value, strict=True)
        except ValidationError as error:
            raise ValueError(f"option {key!r} of {name}: {error.errors()[0]['msg']} (got {value!r})") from error


# ---------------------------------------------------------------------------------------------------------------------
# What the sources on disk share
# ---------------------------------------------------------------------------------------------------------------------


def image_files(folders: Iterable[Path]) -> dict[str, Path]:
    """PNG and JPEG files of ``folders`` by name without ending; of two equal names the first folder's counts.

    Folders that do not exist and hidden files are passed over; nothing is opened.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        if folder.is_dir():
            for name in sorted(os.listdir(folder)):
                if name.lower().endswith((".png", ".jpg", ".jpeg")) and not name.startswith("."):
                    found.setdefault(Path(name).stem, folder / name)
    return found


def image_size(path: Path) -> tuple[int, int]:
    """``(height, width)`` from the header of a PNG, JPEG or DICOM file; no pixel is decoded.

    Raises:
        ValueError: the header cannot be read.
        ModuleNotFoundError: a DICOM file, and pydicom is not installed; says how to install it.
    """
    if is_dicom(path):
        try:
            found = read_dicom(path, header=True)
        except ValueError as error:
            raise ValueError(
                f"unreadable image header ({path.name}: {type(error.__cause__ or error).__name__})"
            ) from error
        return int(found.Rows), int(found.Columns)
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"unreadable image header ({path.name}: {type(error).__name__})") from error


def coco_json(path: Path, keys: Iterable[str], advice: str) -> dict[str, list[Any]]:
    """A json in COCO's format, of which the lists ``keys`` are needed.

    Raises:
        FileNotFoundError, ValueError: it is not there, damaged, or lacks a list; names the file and ``advice``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}. {advice}")
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged or cut off ({error}); download it again. {advice}") from error
    missing = [key for key in keys if not isinstance(found, dict) or not isinstance(found.get(key), list)]
    if missing:
        raise ValueError(f"{path}: lists of {', '.join(missing)} are missing: not a file of COCO. {advice}")
    return found


def coco_masks() -> ModuleType:
    """``pycocotools.mask``.

    Raises:
        ModuleNotFoundError: it is not installed; says how to install it.
    """
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "masks in COCO's formats need pycocotools; install it with 'python -m pip install pycocotools'"
        ) from error
    return mask


def decode_mask(rle: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Bool ``(height, width)`` of a COCO run-length mask, ``{"size": [h, w], "counts": …}``, packed or plain.

    Raises:
        ValueError: it is none, or of another size than ``size``.
        ModuleNotFoundError: pycocotools is not installed; says how to install it.
    """
    coco = coco_masks()
    counts = rle.get("counts")
    if tuple(rle.get("size") or ()) != size:
        raise ValueError(f"mask in another frame than the image's {size[0]} × {size[1]}")
    if isinstance(counts, list):
        if not all(isinstance(n, int) and n >= 0 for n in counts) or sum(counts) != size[0] * size[1]:
            raise ValueError("mask whose runs do not fill its frame")
        rle = coco.frPyObjects({"size": list(size), "counts": counts}, *size)
    elif not isinstance(counts, str) or not _fills(counts, size):
        raise ValueError("mask whose runs do not fill its frame")
    return coco.decode(rle).astype(bool)


def _fills(counts: str, size: tuple[int, int]) -> bool:
    """Whether packed runs fill the frame exactly: of six bits a character five are a number's, the sixth "goes on".

    The library does not ask: runs that are too few leave memory as it was, and some damaged ones end the process.
    """
    lengths: list[int] = []
    number = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            return False
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= (1 << shift) * bool(bits & 16)
            # From the fourth on, a run is told by its difference to the one before the last.
            lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
            if lengths[-1] < 0:
                return False
            number = shift = 0
    return shift == 0 and sum(lengths) == size[0] * size[1]


def boxes_of(mask: np.ndarray) -> tuple[Box, ...]:
    """The tight box of each connected part (also over corners) of a bool ``(h, w)`` mask, from top to bottom."""
    parts = ndimage.find_objects(ndimage.label(mask, np.ones((3, 3)))[0])
    return tuple(
        Box(float(x.start), float(y.start), float(x.stop - x.start), float(y.stop - y.start)) for y, x in parts
    )


def smaller_mask(mask: np.ndarray, longest: int) -> np.ndarray:
    """A bool mask at most ``longest`` pixels long, as it is where it is no longer, or for 0.

    A pixel is set when half of it is covered; a mask too small for that keeps the pixels it falls in.
    """
    height, width = mask.shape
    if not longest or max(height, width) <= longest:
        return mask
    share = longest / max(height, width)
    size = max(1, round(width * share)), max(1, round(height * share))
    covered = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX))
    return covered >= 0.5 if (covered >= 0.5).any() else covered > 0


def csv_rows(
    path: Path, columns: Sequence[str], advice: str, *, fold: bool = True
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells (by column, white space folded, "" where a row is short) of every row that is not blank.

    With ``fold=False`` white space inside a cell, such as the lines of a report, stays as it is.

    A header cell like ``Bbox [x`` or ``h]`` is read as ``x`` and ``h``: NIH's header has its commas inside brackets.

    Raises:
        ValueError: a column is missing, a row has more cells than the header (a text with a comma and no quotes, from
            which on each cell would be taken for another's), or the file is no csv; names file, line and ``advice``.
    """
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.reader(file)
        try:
            # Some programs save NIH's header with quotes, as one cell: "Bbox [x,y,w,h]".
            cells = [part for cell in next(rows, []) for part in (cell.split(",") if "Bbox [" in cell else [cell])]
            header = [re.sub(r"^Bbox \[|\]$", "", cell.strip()) for cell in cells]
            missing = [name for name in columns if name not in header]
            if missing:
                first = ",".join(header)[:200]
                raise ValueError(f"{path}: column {', '.join(missing)} missing; its first line is {first!r}. {advice}")
            for row in rows:
                values = [" ".join(cell.split()) if fold else cell.strip() for cell in row]
                if any(values):
                    if any(values[len(header) :]):
                        raise ValueError(
                            f"{path}:{rows.line_num}: {len(values)} cells for {len(header)} columns: put texts that "
                            f"have commas in quotes. {advice}"
                        )
                    cells = dict(zip(header, values, strict=False))
                    yield rows.line_num, {name: cells.get(name, "") for name in {*header, *columns}}
        except csv.Error as error:
            raise ValueError(f"{path}:{rows.line_num}: not readable as csv ({error}). {advice}") from error


def split_patients(patients: Iterable[str], fractions: dict[str, float], seed: int = 0) -> dict[str, str]:
    """The split of each patient, as `studies.split_by_patient` gives it."""
    stubs = [Study(name, name, "", "", "", (1, 1)) for name in dict.fromkeys(patients)]
    return {stub.patient: stub.split for stub in split_by_patient(stubs, fractions, seed)}


def fingerprint(source: str, studies: Sequence[Study], lengths: Iterable[int] | None = None) -> str:
    """Names exactly what was loaded: every record, and name and length in bytes of every image file.

    ``lengths`` are those of the files, from whoever has asked for them already; by default they are looked up.

    The place of the folder has no say, nor have records that were left out or the order of a study's findings. Pixels
    are not read: an image edited in place without a change of its length is not noticed.
    """
    known = (os.stat(s.path).st_size if s.path else 0 for s in studies) if lengths is None else lengths
    return runs.fingerprint(source, _records(studies, known))


def _records(studies: Iterable[Study], lengths: Iterable[int]) -> Iterator[tuple]:
    # Studies may share their findings, as most of MIMIC's do: equal ones are written out once.
    shown: dict[int, list[str]] = {}
    for s, length in zip(studies, lengths, strict=True):
        if id(s.findings) not in shown:
            shown[id(s.findings)] = sorted(map(repr, s.findings))
        file = (s.path.name, length) if s.path else ()
        yield s.id, s.patient, s.split, s.report, s.size, shown[id(s.findings)], s.attributes, *file
