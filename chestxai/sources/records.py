"""What the sources on disk share: finding files, listing what is left out, and naming what was loaded."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from chestxai import runs
from chestxai.runs import InputError, MissingError
from chestxai.sources.cards import Card
from chestxai.studies import Box, Study, is_dicom, read_dicom


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
    """One image as a table lists it.

    Attributes:
        where: ``file:line`` of the row that lists it.
        name, patient: Of the image and of the patient, "" if unknown.
        cells: What else the source reads about it.
        parts: ``file:line`` of the rows that go with it, such as those of its boxes.
    """

    where: str
    name: str
    patient: str = ""
    cells: Any = None
    parts: tuple[str, ...] = ()


class Collector:
    """Collects the studies of one split of a data set on disk, and a line for every record left out.

    Sources set ``splits`` (of each patient) before they call `studies`, and ``lengths`` (bytes of files) if they can.
    """

    def __init__(self, card: Card, root: Path, split: str) -> None:
        self.card, self.root, self.split = card, root, split
        self.splits: dict[str, str] = {}
        self.lengths: list[int] | None = None
        self._skipped: list[tuple[str, str]] = []

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

    @contextmanager
    def record(self, where: str, patient: str = "") -> Iterator[None]:
        """`skip` the record at ``where``, of ``patient``, if the block raises InputError."""
        try:
            yield
        except InputError as error:
            self.skip(where, error, patient)

    def clip(self, box: Box, size: tuple[int, int], where: str, what: str, patient: str = "") -> Box:
        """The part of a ``box`` inside its image of ``size`` (height, width); InputError if there is none.

        A cut of more than 0.1 % and a square pixel is listed ``where`` it is, of ``patient``, with the detail ``what``.
        """
        inside = box.clipped(*size)
        ensure(inside, f"box outside the image ({what}, {size[0]} × {size[1]})")
        if inside.area < 0.999 * box.area and box.area - inside.area > 1:
            self.skip(where, f"box cut to the image ({what}, {inside.area / box.area:.0%} kept)", patient)
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
        skipped = [line for line, patient in self._skipped if self.splits.get(patient, self.split) == self.split]
        return Studies(made, skipped, fingerprint(self.card.name, made, self.lengths))


def ensure(condition: object, reason: str) -> None:
    """Raise InputError with ``reason`` unless ``condition`` holds."""
    if not condition:
        raise InputError(reason)


def image_size(path: Path, name: str = "") -> tuple[int, int]:
    """``(height, width)`` from the header of a PNG, JPEG or DICOM file at ``path``, called ``name`` in messages.

    Raises:
        InputError: There is no file, or its header cannot be read.
        ModuleNotFoundError: The file is DICOM and pydicom is not installed.
    """
    try:
        if is_dicom(path):
            header = read_dicom(path, header=True)
            return int(header.Rows), int(header.Columns)
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise InputError(f"no image file ({name or path.name})") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        kind = type(error.__cause__ or error).__name__
        raise InputError(f"unreadable image header ({path.name}: {kind})") from error


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
    not read: an image edited in place without a change of its length goes unnoticed.

    ``lengths`` are the bytes of each study's file; they are looked up if they are not given.
    """
    lengths = (os.stat(s.path).st_size if s.path else 0 for s in studies) if lengths is None else lengths
    return runs.fingerprint(source, _identities(studies, lengths))


def _identities(studies: Iterable[Study], lengths: Iterable[int]) -> Iterator[tuple]:
    # Studies may share their findings, as most of MIMIC's do: each tuple of them is written out once.
    written: dict[int, list[str]] = {}
    for s, length in zip(studies, lengths, strict=True):
        if id(s.findings) not in written:
            written[id(s.findings)] = sorted(map(repr, s.findings))
        file = (s.path.name, length) if s.path else ()
        yield s.id, s.patient, s.split, s.report, s.size, written[id(s.findings)], s.attributes, *file
