"""Sections of a report, and their text as a model reads it.

Quantifiers are possessive (``*+``) where a run of white space could otherwise be divided in many ways.
"""

import re

from chestxai.reports.words import WORDS
from chestxai.runs import InputError

#: The longest text that is read, in characters: more than 100 times the longest report of Open-i.
LONGEST = 200_000

#: Sections that do not describe the image.
SILENT = frozenset({"indication", "comparison", "technique", "notification"})
# A header is found with its number or mark, which belongs to it and not to the section before.
_HEADER = re.compile(
    r"(?i)(?:^|\n|(?<=[.!?:;\]])[ \t]|(?<=[ \t]{3})(?![ \t]))[ \t]*+(?:#{1,6} |\*{1,2}|\d{1,2}[.)] )?"
    rf"(?:{'|'.join(f'(?P<{key}>{names})' for key, names in WORDS['headers'].items())})"
    r"(?:\*{1,2})?[ \t]*+(?::(?:\*{1,2})?|[-–—]?[ \t]*+(?=\r?\n|$))"
)
# Upper-case headers without a colon.
_SHOUTED = re.compile(
    r"(?:^|\n|[.!?] )[ \t]*+(?:(?P<findings>FINDINGS?)|(?P<impression>(?:IMPRESSION|CONCLUSION)S?)"
    r"|(?P<indication>INDICATIONS?)|(?P<comparison>COMPARISONS?)|(?P<technique>TECHNIQUE))[ \t]++(?=[\w-])"
)
# MIMIC-CXR's addenda have no colon, and its final report follows the preliminary one.
_ADDENDUM = re.compile(r"(?:^|\n)[ \t]*+ADDENDUM[ \t]{2,}+(?=\S)")
_FINAL = re.compile(r"\n[ \t_]*+FINAL REPORT[ \t:]*+(?=\r?\n|$)")
_BOILERPLATE = re.compile(r"(?i)\s*+(?:\*+\s*+)?(?:FINAL|PRELIMINARY|WET READ)?\s*+(?:RADIOLOGY )?REPORT\s*+:?\s*+")
# The examination in capitals: before a colon, or without one ("PORTABLE CHEST OF ___") before a blank line.
_EXAM_LINE = re.compile(
    r"\s*+(?:(?=[^\n:]*\b(?:CHEST|RADIOGRAPHS?|VIEWS?|PORTABLE|CXR)\b)[A-Z0-9 ,./()&-]{4,90}:"
    r"|(?:PORTABLE|AP|PA|FRONTAL|SINGLE|UPRIGHT|SUPINE|CHEST (?:RADIOGRAPH|X-RAY|PA|AP))\b[A-Z0-9 ,/()&_-]{0,90}\r?\n"
    r"[ \t]*\r?\n)"
)
_BLANK_LINE = re.compile(r"\n[ \t]*\r?\n")
_AFTER_SENTENCE = re.compile(r"(?<=[.!?])[ \t]*+\r?\n")
_WORD = re.compile(r"\S")


def spans(text: str) -> list[tuple[str, int, int]]:
    """``(key, start, end)`` of every section, in the order of the text; a text without headers is "findings"."""
    if len(text) > LONGEST:
        raise InputError(
            f"a report of {len(text):,} characters, but at most {LONGEST:,} are read: {text[:40]!r} … is not one; "
            "look for a missing quote or line break in its file"
        )
    one_line = not re.search(r"[\n:]|FINDINGS|IMPRESSION", text) and not text.isupper()
    marks = [] if one_line else _marks(text)
    if not marks:
        return [("findings", 0 if one_line else _body(text, 0, len(text)), len(text))]
    keys, titled = {key for _, _, key in marks}, not text[_body(text, 0, len(text)) : marks[0][0]].strip()
    ends = [start for start, _, _ in marks[1:]] + [len(text)]
    found: list[tuple[str, int, int]] = []
    for (_, start, key), end in zip(marks, ends, strict=True):
        gap = None
        if key == "final":
            if text[start:end].strip(" \t\r\n*#_"):
                found.append(("preamble" if "findings" in keys else "findings", _body(text, start, end), end))
            continue
        if key in SILENT - {"notification"} and "findings" not in keys:
            # The unnamed body follows a blank line ("COMPARISON: none.\n\n The lungs are clear …"). Without one, and
            # where nothing else describes the image, it follows the first line of the last section, save an indication.
            word = _WORD.search(text, start, end)
            gap = word and _BLANK_LINE.search(text, word.start(), end)
            last = end == len(text) and key != "indication" and "impression" not in keys
            if word and not gap and last and titled:
                gap = _AFTER_SENTENCE.search(text, word.start(), end)
        if gap and _WORD.search(text, gap.end(), end):
            found += [(key, start, gap.start()), ("findings", _body(text, gap.end(), end), end)]
        else:
            found.append((key, start, end))
    if text[: marks[0][0]].strip(" \t\r\n*#"):
        # Text before the first header describes the image only where nothing else does.
        key = "preamble" if any(key == "findings" for key, _, _ in found) else "findings"
        found.insert(0, (key, _body(text, 0, marks[0][0]), marks[0][0]))
    return found


def _marks(text: str) -> list[tuple[int, int, str]]:
    """``(start, end, key)`` of every header, sorted."""
    marks = [(m.start(), m.end(), str(m.lastgroup)) for m in _HEADER.finditer(text)]
    marks += [(m.start(), m.end(), "addendum") for m in _ADDENDUM.finditer(text)]
    if marks:
        marks += [(m.start(), m.end(), "final") for m in _FINAL.finditer(text, min(marks)[0])]
    elif not text.isupper():
        marks = [(m.start(m.lastgroup), m.end(m.lastgroup), m.lastgroup) for m in _SHOUTED.finditer(text)]
    return sorted(marks)


def _body(text: str, start: int, end: int) -> int:
    """Where a text without a header begins, past "FINAL REPORT" and a line naming the examination."""
    for pattern in (_BOILERPLATE, _EXAM_LINE):
        match = pattern.match(text, start, end)
        start = match.end() if match else start
    return start


def sections(text: str) -> dict[str, str]:
    """Split a report at its headers: lower-case key → stripped text, without empty sections.

    Keys are findings, impression, indication, comparison and technique, and where they occur addendum, notification
    and preamble. Headers may be upper or lower case, with a colon, alone on their line, numbered or in Markdown.
    Sections that occur twice are joined. A text without headers is ``{"findings": text}``, an empty one ``{}``.

    Raises:
        InputError: ``text`` is longer than `LONGEST` characters.
    """
    parts: dict[str, list[str]] = {}
    for key, start, end in spans(text):
        if part := text[start:end].strip(" \t\r\n*#_-"):
            parts.setdefault(key, []).append(part)
    return {key: "\n".join(some) for key, some in parts.items()}


# Placeholders of Open-i, MIMIC-CXR (new and old) and others.
_BLANKS = re.compile(r"\[\*\*[^\]]{0,99}\*\*\]|\b[Xx]-?X{3,}\b|\bX{2,}\b|_{2,}|\[(?:removed|redacted|name|date)\]")
# Requires white space before the number: "a ratio of 13.1/27.4. Next" is no list.
_NUMBERING = re.compile(r"(^\s*+|[.!?:]\s|\n)[^\S\n]*+(?:\(?\d{1,2}[.)]|[-*•])\s+(?=\S)")
# Removed placeholders leave commas before a full stop, marks after white space, and repeated marks.
_COMMAS = re.compile(r"(?<![,;:])(?<![,;:] )(?: ?[,;:])++ ?(?=[.!?])")
_MARKS = re.compile(r" ?([,;:.!?])(?: ?\1)*")


def clean(text: str) -> str:
    """``text`` on one line as a model reads it, without placeholders (XXXX, ___), list numbers and extra white space.

    "x-XXXX" becomes "x-ray": Open-i's de-identification took the word for a name.
    """
    text = _BLANKS.sub(lambda m: "x-ray" if "-" in m[0] else " ", text)
    text = _NUMBERING.sub(r"\1 ", text)
    return _MARKS.sub(r"\1", _COMMAS.sub("", " ".join(text.split()))).strip(" ,;:-*")
