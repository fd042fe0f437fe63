"""What the sources on disk share: finding files, listing what is left out, and naming what was loaded."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from chestxai import reports, runs
from chestxai.reports.sections import LONGEST
from chestxai.runs import InputError, MissingError
from chestxai.sources.cards import Card
from chestxai.studies import FINDINGS, FORMATS, UNPACK, Box, Finding, Study, is_dicom, orientation, read_dicom, windows

#: Rows, such as boxes, that an image may have: readers draw a few, and comparing each with each takes its time.
MOST = 500


class Studies(list[Study]):
    """Studies of one split, with what was left out and why.

    Attributes:
        skipped: One line for every record left out, ``record: reason (details)``; a record is a file or ``file:line``.
        fingerprint: Names exactly what was loaded: equal data have equal fingerprints.
    """

    def __init__(self, studies: Iterable[Study] = (), skipped: Iterable[str] = (), fingerprint: str = "") -> None:
        super().__init__(studies)
        self.skipped = list(skipped)
        self.fingerprint = fingerprint

    def reasons(self) -> dict[str, int]:
        """Number of records left out by reason, the commonest first."""
        return dict(Counter(line.partition(": ")[2].partition(" (")[0] for line in self.skipped).most_common())


@dataclass(slots=True)
class Record:
    """One image as a table lists it."""

    where: str  #: ``file:line`` of the row that lists it
    name: str  #: "" if unknown
    patient: str = ""  #: "" if unknown
    cells: Any = None  #: what else the source reads about it
    parts: tuple[str, ...] = ()  #: ``file:line`` of the rows that go with it, such as those of its boxes


class Collector:
    """Collects the studies of one split of a data set on disk, and a line for every record left out.

    Sources set ``splits`` (of each patient) before they call `studies`, and ``lengths`` (bytes of files) if they can.
    """

    def __init__(self, card: Card, root: Path, split: str) -> None:
        self.card, self.root, self.split = card, root, split
        self.splits: dict[str, str] = {}
        self.lengths: list[int] | None = None
        self._skipped: list[tuple[str, str]] = []
        self._boxes: list[str] = []

    def find(self, *patterns: str) -> Path | None:
        """The file or folder below the root of the first pattern that has any; of several, the last by name."""
        return next((sorted(paths)[-1] for pattern in patterns if (paths := [*self.root.glob(pattern)])), None)

    def file(self, *patterns: str) -> Path:
        """As `find`, but raises MissingError if there is none."""
        if (path := self.find(*patterns)) is None:
            raise MissingError(f"{self.root} has no {' nor '.join(patterns)}. {self.card.get}")
        return path

    def images(self, *patterns: str) -> dict[str, Path]:
        """PNG and JPEG files in folders below the root, by name without ending; raises MissingError if there are none.

        Hidden files are ignored; of two equal names the one in the first folder counts. Nothing is opened.
        """
        files: dict[str, Path] = {}
        for folder in (path for pattern in patterns for path in sorted(self.root.glob(pattern)) if path.is_dir()):
            for name in sorted(os.listdir(folder)):
                if name.lower().endswith((".png", ".jpg", ".jpeg")) and not name.startswith("."):
                    files.setdefault(Path(name).stem, folder / name)
        if not files:
            raise MissingError(f"{self.root} has no images (PNG or JPEG) in {', '.join(patterns)}. {self.card.get}")
        return files

    def skip(self, where: str, reason: object, patient: str = "") -> None:
        """List the record at ``where`` with its ``reason``, in the split of its ``patient``, or in all if unknown."""
        self._skipped.append((f"{where}: {reason}", patient))

    def english(self, texts: Collection[str]) -> bool:
        """Whether findings may be read in ``texts``, most of which are English; warns once of those that are not."""
        foreign = [text for text in texts if not reports.is_english(text)]
        if len(foreign) > len(texts) / 100:
            count = f"{len(foreign)} of {len(texts)} texts are not in English"
            remedy = "no findings are read in them; name findings in a column of the table, or translate"
            warnings.warn(f"{self.root}: {count}: {remedy}", stacklevel=3)
        return len(foreign) <= len(texts) / 2

    def size(self, path: Path, where: str, name: str = "") -> tuple[int, int]:
        """`image_size` of ``path``, called ``name``; lists ``where`` a DICOM file whose windows show nothing."""
        return image_size(path, name, lambda reason: self.skip(where, reason))

    @contextmanager
    def record(self, where: str, patient: str = "") -> Iterator[None]:
        """`skip` the record at ``where``, of ``patient``, if the block raises InputError."""
        try:
            yield
        except InputError as error:
            self.skip(where, error, patient)

    def clip(self, box: Box, size: tuple[int, int], where: str, what: str, patient: str = "") -> Box:
        """The part of a ``box`` inside its image of ``size`` (height, width).

        A cut of more than 0.1 % and a square pixel is listed ``where`` it is, of ``patient``, with the detail ``what``.
        InputError if less than half of it is inside, or it is in fractions of the image.
        """
        inside, frame = box.clipped(*size), f"{what}, {size[0]} × {size[1]}"
        # One on the first pixel, of an image of many, is no finding.
        fraction = max(abs(box.x), abs(box.y), box.x + box.w, box.y + box.h) <= 1 < min(size)
        whole = inside and (box.area - inside.area <= 1 or inside.area >= 0.999 * box.area)
        self._boxes.append("" if whole and not fraction else f"{where}: {box} ({frame})")
        ensure(not fraction, f"box in fractions of the image instead of pixels ({frame})")
        ensure(inside, f"box outside the image ({frame})")
        kept = f"{inside.area / box.area:.0%}"
        ensure(inside.area >= box.area / 2, f"box mostly outside the image ({frame}, {kept} inside)")
        if not whole:
            self.skip(where, f"box cut to the image ({what}, {kept} kept)", patient)
        return inside

    def require(self, records: Sized, path: Path, what: str = "row") -> None:
        """Raise InputError with the first problem if there are no ``records``, called ``what``, in ``path``."""
        first = f"; the first problem: {self._skipped[0][0]}" if self._skipped else ""
        ensure(records, f"{path}: no usable {what}{first}. {self.card.get}")

    def studies(self, records: Sequence[Record], study: Callable[[Any], Study], *, allow_none: bool = False) -> Studies:
        """Make a ``study`` of each of the ``records`` of this split; those that raise InputError are listed.

        That no record at all is of use is an InputError, too, unless ``allow_none``.
        """
        made: list[Study] = []
        first = ""
        for record in runs.progress(records, f"reading {self.card.title}", delay=5.0):
            try:
                ensure(len(record.parts) <= MOST, f"image of more than {MOST} rows ({record.name})")
                made.append(study(record))
            except InputError as error:
                first = first or f"{record.where}: {error}"
                self.skip(record.where, error)
                for where in record.parts:
                    if where != record.where:
                        self.skip(where, f"row of an image that was left out ({record.name})")
        if first and not made and not allow_none:
            none = f"none of the {len(records)} images of the {self.split} split can be used"
            raise InputError(f"{self.root}: {none}; the first: {first}. {self.card.get}")
        if (lost := len(records) - len(made)) > len(records) / 10:
            some = f"{lost} of the {len(records)} images of the {self.split} split are left out"
            # Without details: identifiers have no place in a warning, which a page may show.
            reason = first.partition(": ")[2].partition(" (")[0]
            warnings.warn(f"{self.root}: {some}, the first for this reason: {reason}", stacklevel=4)
        odd = [box for box in self._boxes if box]
        if len(odd) > max(2, len(self._boxes) / 2):
            other = "which are probably in fractions or in the frame of a resized copy: give pixels of the image itself"
            count = f"{len(odd)} of {len(self._boxes)} boxes do not lie inside their images"
            raise InputError(f"{self.root}: {count}, {other}. The first: {odd[0]}. {self.card.get}")
        skipped = [line for line, patient in self._skipped if self.splits.get(patient, self.split) == self.split]
        return Studies(made, skipped, fingerprint(self.card.name, made, self.lengths))


def ensure(condition: object, reason: str) -> None:
    """Raise InputError with ``reason`` unless ``condition`` holds."""
    if not condition:
        raise InputError(reason)


class Item(BaseModel):
    """An object of json whose fields have their very types: text is no number, of Unicode and not endless."""

    model_config = ConfigDict(strict=True, str_max_length=LONGEST)


class Category(Item):
    """What annotations of COCO's format refer to by its ``id``."""

    id: int
    name: str = Field(min_length=1)


def valid(schema: TypeAdapter, value: Any, problem: str) -> Any:
    """``value`` of json as ``schema`` has it; InputError with ``problem``, where it is and what it is, if it is not."""
    try:
        return schema.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["it", *map(str, first["loc"])])
        raise InputError(f"{problem} ({place} is {first['input']!r:.40}: {first['msg']})") from error


def read_items(
    data: Collector, path: Path, content: dict[str, list[Any]], key: str, model: type[BaseModel], form: str = "COCO's"
) -> Iterator[tuple[str, Any]]:
    """``file:key[place]`` and item of each of ``content[key]`` that fits the ``model``; ``data`` lists the others.

    ``content`` is that of the json ``path``, whose format is called ``form``.
    """
    schema = TypeAdapter(model)
    for i, item in enumerate(content[key]):
        where = f"{path.name}:{key}[{i}]"
        with data.record(where):
            yield where, valid(schema, item, f"not of {form} format")


def image_size(path: Path, name: str = "", tell: Callable[[str], None] | None = None) -> tuple[int, int]:
    """``(height, width)`` of a PNG, JPEG or DICOM file at ``path`` as `read_image` gives it, from its header.

    InputError, which calls the file ``name``, where there is none or its header cannot be read. ``tell`` is called with
    a reason if the windows of a DICOM file have no width and are left out.
    """
    try:
        if is_dicom(path):
            header = read_dicom(path, header=True)
            if tell and "WindowWidth" in header and not windows(header):
                tell(f"window without width or centre, the full range is shown ({name or path.name})")
            return int(header.Rows), int(header.Columns)
        with Image.open(path, formats=FORMATS) as image:
            return (image.height, image.width) if orientation(image) < 5 else (image.width, image.height)
    except FileNotFoundError as error:
        raise InputError(f"no image file ({name or path.name})") from error
    except InputError as error:
        kind = f"unreadable image, {UNPACK}" if UNPACK in str(error) else "unreadable image"
        raise InputError(f"{kind} ({path.name}: {error})") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        kind = type(error.__cause__ or error).__name__
        raise InputError(f"unreadable image header ({path.name}: {kind})") from error


def frame_of(size: tuple[int, int], height: str, width: str) -> tuple[int, int]:
    """The frame of the boxes of an image: ``height`` and ``width`` as its table has them, "" for those of the file.

    ``size`` is the file's, (height, width), which may be that of a resized copy. InputError if height and width are no
    positive numbers, or of another shape than the image.
    """
    if not height and not width:
        return size
    digits = [text.removesuffix(".0") for text in (height, width)]
    ensure(
        all(re.fullmatch(r"[1-9][0-9]{0,3}|1[0-9]{4}", text) for text in digits), f"no frame ({width!r} × {height!r})"
    )
    frame = int(digits[0]), int(digits[1])
    # Rounded to whole pixels, the shape of a small copy differs a little; as `Frame.image` has it.
    same = abs(frame[0] * size[1] - frame[1] * size[0]) <= max(*frame, *size)
    ensure(same, f"frame of another shape than the image ({frame[0]} × {frame[1]}, not {size[0]} × {size[1]})")
    return frame


def stated(mentions: Iterable[Finding], name: str, boxes: Sequence[Box], width: int) -> Finding:
    """The one of ``mentions`` that states the finding ``name``: present, and on the side of its ``boxes``.

    A text may deny the finding, or place it elsewhere, first. ``width`` is that of the boxes' frame. If none names it,
    the finding has the side of its boxes where that is one and the name none of the eight.
    """
    # The patient's right is on the image's left.
    sides = {"right" if box.x + box.w / 2 < width / 2 else "left" for box in boxes}
    side = sides.pop() if len(sides) == 1 else None
    own = [finding for finding in mentions if finding.name == name]
    nothing = Finding(name, side=None if name in FINDINGS else side)
    elsewhere = {"left", "right"} - {side} if side else ()
    return min(own, key=lambda finding: (not finding.present, finding.side in elsewhere), default=nothing)


def labelled_report(findings: Sequence[str], others: Sequence[str] = ()) -> tuple[str, dict[str, str]]:
    """A sentence for an image that has labels but no report, and the words in it that name each of the ``findings``.

    ``others`` are anything else that it names, in lower case.

    >>> labelled_report(["Pleural Effusion", "Edema"], ["mass"])
    ('Pleural effusion, edema and mass.', {'Pleural Effusion': 'Pleural effusion', 'Edema': 'edema'})
    """
    names = [*map(str.lower, findings), *others] or ["no finding"]
    names[0] = names[0].capitalize()
    *start, last = names
    report = f"{', '.join(start)} and {last}." if start else f"{last}."
    return report, dict(zip(findings, names, strict=False))


def fingerprint(source: str, studies: Sequence[Study], lengths: Iterable[int] | None = None) -> str:
    """A name for exactly what was loaded from ``source``: all ``studies``, and name and length of each image file.

    It does not depend on where the folder is, on records left out, or on the order of a study's findings. Pixels are
    not read. ``lengths`` are the bytes of each study's file; they are looked up if they are not given.
    """
    lengths = (os.stat(s.path).st_size if s.path else 0 for s in studies) if lengths is None else lengths
    # Studies may share their findings, as most of MIMIC's do: each tuple of them is written out once.
    written = {key: sorted(map(repr, some)) for key, some in {id(s.findings): s.findings for s in studies}.items()}
    identities = (
        (s.id, s.patient, s.split, s.report, s.size, written[id(s.findings)], s.attributes)
        + ((s.path.name, length) if s.path else ())
        for s, length in zip(studies, lengths, strict=True)
    )
    return runs.fingerprint(source, identities)
