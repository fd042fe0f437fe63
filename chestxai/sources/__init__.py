"""One module per data set; all of them give the same record, `chestxai.studies.Study`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path

from chestxai.studies import Study

#: Names `load` knows, and what each is.
SOURCES = {
    "phantom": "a digital chest phantom with exact truth (ships with the book)",
    "openi": "Open-i / Indiana University chest X-rays: images and reports, no credentials",
    "nih": "NIH ChestX-ray14: images, labels, and radiologists' boxes of 983 findings, no credentials",
}


class Studies(list[Study]):
    """Studies of one split, with what was left out and why.

    Attributes:
        skipped: one line for every record left out: file, row, reason.
        fingerprint: names exactly what was loaded; equal data, equal fingerprint.
    """

    def __init__(self, studies: Iterable[Study] = (), skipped: Iterable[str] = (), fingerprint: str = "") -> None:
        super().__init__(studies)
        self.skipped = list(skipped)
        self.fingerprint = fingerprint


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
    module = importlib.import_module(f"chestxai.sources.{name}")
    return module.load(None if root is None else Path(root), split=split, **options)
