"""The prompt made of a report."""

import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from chestxai.reports.findings import mentions
from chestxai.reports.lexicon import ANY
from chestxai.reports.sections import clean, sections
from chestxai.reports.words import WORDS
from chestxai.runs import InputError

_ORDERS = {"impression": ("impression", "findings")} | dict.fromkeys(("findings", "report"), ("findings", "impression"))
_IDLE = re.compile(rf"(?:\W|\d+|\b(?:{WORDS['idle']})\b)*+")
_NO_FINDING = re.compile(r"\b(?:no|without) (?:(?!changes?\b|new\b|interval\b)[\w-]+ ){0,12}findings?\b")
_ABOUT = re.compile(rf"\b(?:{WORDS['about']})\b")
_SENTENCE = re.compile(r"(?<=[.!?;])(?<!\bdr\.)(?<!\bcf\.)\s+|\n")


def says_something(text: str) -> bool:
    """Whether a text describes an image by itself, without another section or an earlier image."""
    return any(map(_describes, _SENTENCE.split(text.lower())))


def _describes(sentence: str) -> bool:
    if _ABOUT.search(sentence) and not ANY.search(sentence):
        return False
    return _IDLE.fullmatch(sentence) is None or _NO_FINDING.search(sentence) is not None


def prompt_sections(report: str, mode: str = "impression") -> dict[str, str]:
    """The sections that make the prompt, in its order: section → text. Their names tell what was replaced or added.

    ``report`` and ``mode`` are as in `prompt`, which also says what is raised.
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
    states or denies something that the other sections do not; its header stays, for its word is the last.

    Args:
        report: a report in any format `sections` reads.
        mode: "impression" (if missing, the findings, as in the paper), "findings" (if missing, the impression) or
            "report" (findings, then impression).

    Raises:
        InputError: unknown mode, a report that is too long, or one without a section that says something.
    """
    chosen = prompt_sections(report, mode)
    addendum = chosen.pop("addendum", "") if len(chosen) > 1 else ""
    text = " ".join(chosen.values())
    return f"{text if text[-1] in '.!?' else text + '.'} Addendum: {addendum}" if addendum else text


def prompt_counts(reports: Iterable[str]) -> dict[str, int]:
    """How many of the prompts of ``reports`` are of which sections, such as "findings"; "none" of those without."""
    counts: Counter[str] = Counter()
    for report in reports:
        names = "none"
        with suppress(InputError):
            names = " + ".join(prompt_sections(report, "impression"))
        counts[names] += 1
    return dict(counts.most_common())
