"""The data card: what to know about a data set before using it, and the terms on which it may be used."""

from __future__ import annotations

import yaml
from pydantic import BaseModel, ConfigDict

from chestxai.runs import ROOT

FOLDER = ROOT / "data" / "cards"


class Card(BaseModel):
    """What a reader should know about a data set, and the terms that bind its users.

    Attributes:
        name: The source, as `sources.load` and profiles call it.
        what: One line for a list of sources.
        title, size: Full name; number of images, patients and boxes.
        reports: Their language, or what takes their place.
        findings: Where they come from, and in which form.
        split: How patients are split.
        licence, url, conditions: Its name, its text ("" for your own data), and what it says in one line.
        get: How to get the data. Messages about missing or damaged files end with it.
        cite: Keys of references.bib.
        credentialed: Whether images, reports and identifiers must not be shown to others, be it on a published page;
            pages made from such data go through `chestxai.book.guard`.
        identifiers: Regular expressions of identifiers that pages must not show, by what they identify.
        labels: Finding of the book → labels of the data set that mean it, as the lexicon of `reports` draws the line.
        others: Labels that are none of the eight findings → the words that stand for them in a report, in this order.
        text: Layout of the folder, and the rules by which it becomes studies, in Markdown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    what: str
    title: str
    size: str
    reports: str
    findings: str
    split: str
    licence: str
    url: str
    conditions: str
    get: str = "It ships with the book."
    cite: tuple[str, ...] = ()
    credentialed: bool = False
    identifiers: dict[str, str] = {}
    labels: dict[str, tuple[str, ...]] = {}
    others: dict[str, str] = {}
    text: str = ""

    @classmethod
    def read(cls, name: str) -> Card:
        """The card in ``data/cards/<name>.md``: its fields as YAML between two lines of dashes, then its text."""
        _, fields, text = (FOLDER / f"{name}.md").read_text(encoding="utf-8").split("---\n", 2)
        return cls(name=name, text=text, **yaml.safe_load(fields))

    def finding_of(self) -> dict[str, str]:
        """Label of the data set → finding of the book."""
        return {label: finding for finding, labels in self.labels.items() for label in labels}

    def rows(self) -> dict[str, str]:
        """The card as rows of a table."""
        open_data = "images, texts and places; the conditions say what of them you may pass on"
        return {
            **{key: getattr(self, key) for key in ("what", "size", "reports", "findings", "split")},
            "licence": f"{self.licence}, {self.url}" if self.url else self.licence,
            "conditions": self.conditions,
            "pages show": "aggregates only" if self.credentialed else open_data,
            "where": self.get,
        }
