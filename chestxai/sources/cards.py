"""The data card: what to know about a data set before using it, and the terms on which it may be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Conditions of the data sets that each user signs for.
SIGNED = "each user signs; images, reports and identifiers are passed on to no one"


@dataclass(frozen=True)
class Card:
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
            pages made from such data go through `chestxai.guard`.
        identifiers: Regular expressions of identifiers that pages must not show, by what they identify.
    """

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
    identifiers: Mapping[str, str] = field(default_factory=dict, compare=False)

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
