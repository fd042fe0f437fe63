"""The sentences in which a report describes the image."""

import re

from chestxai import reports, runs
from chestxai.profiles import DATA

#: Abbreviations, MeSH headings, and words that stay as they are.
WORDS = runs.read_yaml(DATA / "words" / "knowledge.yaml")
#: The sections of `reports.sections` that describe the image.
DESCRIPTIVE = ("preamble", "findings", "impression", "addendum")

# Full stop and white space, a blank line, or a new list item; "Dr. Smith" stays whole.
_STOP = re.compile(r"(?<!\b[Dd]r\.)(?<!\bvs\.)(?<=[.!?])\s+|\n[ \t\r]*\n\s*|\n(?=[ \t]*(?:\d{1,2}[.)]|[-*•])\s)")
# Item numbers of a template, with or without a word ("2.", "Finding 2:"). They carry no meaning, and left in they cost
# readers of encoder states one to two points of macro-F1 on reformatted Open-i reports.
_NUMBER = re.compile(r"\A\s*(?:\(?\d{1,2}[.)]|[-*•]|[^\W\d_]+ \d{1,2}:)(?:\s+|$)")


def sentences(text: str) -> list[str]:
    """Sentences and list items of ``text``, verbatim except for a list's numbers, marks and labels ("Item 2:")."""
    parts = (_NUMBER.sub("", part, count=1).strip() for part in _STOP.split(text))
    return [part for part in parts if any(map(str.isalnum, part))]


def passages(report: str) -> list[str]:
    """The sentences in which a report describes the image, cleaned as a model reads them (`reports.clean`).

    Each ends with a punctuation mark, so that a list item reads like a sentence. A report without any descriptive
    section is read as a whole: its headers must have been misread.
    """
    sections = reports.sections(report)
    parts = [part for key, part in sections.items() if key in DESCRIPTIVE] or list(sections.values())
    cleaned = (reports.clean(sentence) for part in parts for sentence in sentences(part))
    return [closed(sentence) for sentence in cleaned if any(map(str.isalnum, sentence))]


def closed(sentence: str) -> str:
    """The sentence with a full stop, unless it ends with a punctuation mark."""
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."
