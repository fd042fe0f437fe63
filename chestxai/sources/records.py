"""What the sources on disk share: finding files, listing what is left out, splitting patients, and fingerprints."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from chestxai import runs
from chestxai.runs import InputError, MissingError
from chestxai.sources.cards import Card
from chestxai.studies import Box, Study, is_dicom, read_dicom

#: Shares of the patients where there is no official split; where only the test set is official; and of those with a
#: box, who are few and for scoring only.
FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
TRAIN_VAL = {"train": 0.9, "val": 0.1}
BOXED = {"val": 0.2, "test": 0.8}

_ORDER = ("train", "val", "test")
#: Seconds of reading after which a progress bar is shown.
_DELAY = 5.0


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
        name: Of the image.
        patient: "" if unknown.
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

    Attributes:
        splits: Split of each patient, set by the source before `studies`.
    """

    def __init__(self, card: Card, root: Path, split: str) -> None:
        self.card, self.root, self.split = card, root, split
        self.splits: dict[str, str] = {}
        self._skipped: list[tuple[str, str]] = []

    def find(self, *patterns: str) -> Path | None:
        """The file or folder below the root of the first pattern that has any; of several, the last by name."""
        return next((sorted(paths)[-1] for pattern in patterns if (paths := [*self.root.glob(pattern)])), None)

    def file(self, *patterns: str) -> Path:
        """As `find`.

        Raises:
            MissingError: There is none.
        """
        if (path := self.find(*patterns)) is None:
            raise MissingError(f"{self.root} has no {' nor '.join(patterns)}. {self.card.get}")
        return path

    def images(self, *patterns: str) -> dict[str, Path]:
        """PNG and JPEG files in folders below the root, by name without ending; nothing is opened.

        Hidden files are ignored; of two equal names the one in the first folder counts.

        Raises:
            MissingError: There are none.
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
        """List a record as left out: in its patient's split, or in every split if the patient is unknown."""
        self._skipped.append((f"{where}: {reason}", patient))

    @contextmanager
    def record(self, where: str, patient: str = "") -> Iterator[None]:
        """Leave out the record at ``where`` if the block raises InputError."""
        try:
            yield
        except InputError as error:
            self.skip(where, error, patient)

    def clip(self, box: Box, size: tuple[int, int], where: str, what: str, patient: str = "") -> Box:
        """The part of a box inside an image of ``size``; a cut that is more than rounding is listed.

        Raises:
            InputError: The box lies outside the image.
        """
        inside = box.clipped(*size)
        if inside is None:
            raise InputError(f"box outside the image ({what}, {size[0]} × {size[1]})")
        if inside.area < 0.999 * box.area and box.area - inside.area > 1:
            self.skip(where, f"box cut to the image ({what}, {inside.area / box.area:.0%} kept)", patient)
        return inside

    def require(self, records: Sized, path: Path, what: str = "row") -> None:
        """Raise InputError with the first problem if no record, called ``what``, could be read from ``path``."""
        if not records:
            first = f"; the first problem: {self._skipped[0][0]}" if self._skipped else ""
            raise InputError(f"{path}: no usable {what}{first}. {self.card.get}")

    def studies(
        self,
        records: Sequence[Record],
        study: Callable[[Any], Study],
        *,
        part: str = "box",
        allow_none: bool = False,
        lengths: Sequence[int] | None = None,
    ) -> Studies:
        """Make a study of each record; those that raise InputError are listed together with their parts.

        Args:
            records: Of this split.
            study: Makes the study, or raises InputError.
            part: What the parts of a record are.
            allow_none: Accept that no record is of use.
            lengths: Bytes of each study's file, if they are known.

        Raises:
            InputError: There are records, but none is of use.
        """
        made: list[Study] = []
        first = ""
        for record in runs.progress(records, f"reading {self.card.title}", delay=_DELAY):
            try:
                made.append(study(record))
            except InputError as error:
                first = first or f"{record.where}: {error}"
                self.skip(record.where, error)
                for where in record.parts:
                    if where != record.where:
                        self.skip(where, f"{part} of an image that was left out ({record.name})")
        if first and not made and not allow_none:
            raise InputError(
                f"{self.root}: none of the {len(records)} images of the {self.split} split can be used; the first: "
                f"{first}. {self.card.get}"
            )
        skipped = [line for line, patient in self._skipped if self.splits.get(patient, self.split) == self.split]
        return Studies(made, skipped, fingerprint(self.card.name, made, lengths))


def image_size(path: Path, name: str = "") -> tuple[int, int]:
    """``(height, width)`` from the header of a PNG, JPEG or DICOM file; no pixel is decoded.

    Args:
        path: The file.
        name: What a message calls the image.

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
    """A sentence for an image with labels but no report, and the words in it that name each finding.

    Args:
        findings: Names of findings.
        others: Names of anything else, in lower case.

    >>> labelled_report(["Pleural Effusion", "Edema"], ["mass"])
    ('Pleural effusion, edema and mass.', {'Pleural Effusion': 'Pleural effusion', 'Edema': 'edema'})
    """
    names = [*map(str.lower, findings), *others] or ["no finding"]
    names[0] = names[0].capitalize()
    *start, last = names
    report = f"{', '.join(start)} and {last}." if start else f"{last}."
    return report, dict(zip(findings, names, strict=False))


def later_split(a: str, b: str) -> str:
    """The later of two splits in the order train, val, test, for a patient who is listed in both."""
    return max(a, b, key=_ORDER.index)


def split_patients(patients: Iterable[str], fractions: Mapping[str, float], seed: int = 0) -> dict[str, str]:
    """The split of each patient, which depends only on its identifier and the seed, not on the other patients.

    Args:
        patients: Identifiers.
        fractions: Expected share of the patients by split; they sum to 1.
        seed: Another seed is another split.

    Raises:
        InputError: A fraction is negative, or they do not sum to 1.
    """
    if abs(sum(fractions.values()) - 1) > 1e-9 or min(fractions.values()) < 0:
        raise InputError(f"split fractions must be at least 0 and sum to 1, got {fractions}")
    names, edges = list(fractions), np.cumsum(list(fractions.values()))
    splits: dict[str, str] = {}
    for patient in patients:
        digest = hashlib.sha256(f"{seed}/{patient}".encode()).digest()
        place = int(np.searchsorted(edges, int.from_bytes(digest[:8]) / 2**64, "right"))
        splits[patient] = names[min(place, len(names) - 1)]
    return splits


def fingerprint(source: str, studies: Sequence[Study], lengths: Iterable[int] | None = None) -> str:
    """A name for exactly what was loaded: every record, and name and length of every image file.

    It does not depend on where the folder is, on records left out, or on the order of a study's findings. Pixels are
    not read: an image edited in place without a change of its length goes unnoticed.

    Args:
        source: Name of the source.
        studies: The studies.
        lengths: Bytes of each study's file, if they are known; otherwise they are looked up.
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
