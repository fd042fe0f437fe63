"""The prompt made of a report."""

import re

from chestxai.reports.findings import mentions
from chestxai.reports.sections import clean, sections
from chestxai.runs import InputError

_ORDERS = {"impression": ("impression", "findings")} | dict.fromkeys(("findings", "report"), ("findings", "impression"))
# A text of these words alone says nothing by itself: it refers to another section ("as above") or to an earlier image
# ("no interval change"), or a removed placeholder took its noun ("No acute thoracic.").
_IDLE = re.compile(
    r"(?:\W|\d+|\b(?:the|an?|of|in|on|at|to|for|from|and|or|by|with|is|are|was|were|has|have|had|been|be|there|this"
    r"|that|these|it|as|per|see|please|refer|above|below|described|discussed|noted|mentioned|stated|detailed|outlined"
    r"|reported|same|findings?|impressions?|sections?|reports?|body|text|full|details?|description|no|not|any|evidence"
    r"|interval|(?:significant|substantial|appreciable|relative|essential|gross|definite|previous)(?:ly)?|relevant"
    r"|major|changes?|changed|unchanged|stable|stability|similar|since|compar(?:ed|isons?)|prior|earlier|last|old"
    r"|recent|most|today|again|exam(?:ination)?s?|stud(?:y|ies)|films?|radiograph(?:s|ic|ically)?|images?|imaging"
    r"|x-?rays?|views?|appearances?|overall|otherwise|remains?|available|none|acute|active|new|chest"
    r"|(?:intra)?thoracic|cardio(?:pulmonary|thoracic)|pulmonary|cardiac|pleural|lungs?|heart|left|right|bilateral"
    r"|upper|lower|middle|lobes?|bases?|mild|small|moderate|large|size)\b)*+"
)
_NO_FINDING = re.compile(r"\bno (?:(?!changes?\b)[\w-]+ )*findings?\b")


def says_something(text: str) -> bool:
    """Whether a text describes an image by itself, without another section or an earlier image."""
    low = text.lower()
    return _IDLE.fullmatch(low) is None or _NO_FINDING.search(low) is not None


def prompt_sections(report: str, mode: str = "impression") -> dict[str, str]:
    """The sections that make the prompt, in its order: section → text. Their names tell what was replaced or added.

    Args:
        report: as in `prompt`.
        mode: as in `prompt`.

    Raises:
        InputError: as `prompt`.
    """
    if mode not in _ORDERS:
        raise InputError(f"unknown prompt mode {mode!r}: expected impression, findings or report")
    texts = {
        key: clean(part) for key, part in sections(report).items() if key in ("addendum", "impression", "findings")
    }
    texts = {key: text for key, text in texts.items() if says_something(text)}
    keys = [key for key in _ORDERS[mode] if key in texts]
    chosen = {key: texts[key] for key in (keys if mode == "report" else keys[:1])}
    addendum = texts.get("addendum", "")
    if addendum and (not chosen or _statements(addendum) - _statements(" ".join(chosen.values()))):
        chosen["addendum"] = addendum
    if not chosen:
        raise InputError(
            "empty report: neither an impression nor findings are left without headers, placeholders and references "
            "to other sections or images"
        )
    return chosen


def _statements(text: str) -> set[tuple[str, bool, str | None]]:
    return {(m.name or text[m.start : m.end].lower(), m.present, m.side) for m in mentions(text)}


def prompt(report: str, mode: str = "impression") -> str:
    """The text given to the model.

    Sections that say nothing by themselves are left out (see `says_something`). An addendum is part of the prompt if it
    states or denies something that the other sections do not.

    Args:
        report: a report in any format `sections` reads.
        mode: "impression" (if missing, the findings, as in the paper), "findings" (if missing, the impression) or
            "report" (findings, then impression).

    Raises:
        InputError: unknown mode, a report that is too long, or one without a section that says something.
    """
    return " ".join(prompt_sections(report, mode).values())
