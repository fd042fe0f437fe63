"""The same report in another form: how much of a reading depends on how a report is written."""

import re
import textwrap
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd

from chestxai import reports
from chestxai.knowledge.descriptions import DESCRIPTIVE, WORDS, closed, sentences
from chestxai.knowledge.scores import difference, scored
from chestxai.runs import InputError

_BLANK = r"\b[Xx]-?X{3,}\b|\bX{2,}\b|_{2,}"
_SENTENCE = re.compile(r"((?<=[.!?])\s+|\n+)")
_CASED = re.compile(rf"(?P<blank>{_BLANK})|[^\W\d_]+(?:'[^\W\d_]+)?")
_NAMELIKE = re.compile(rf"\b(?:{'|'.join(WORDS['namelike'])})\b", re.IGNORECASE)
_WORD = re.compile(rf"(?P<blank>{_BLANK})|[^\W\d_]{{5,}}")
_NEVER_MISTYPED = frozenset(WORDS["never_mistyped"])
#: How radiologists shorten words, the longer phrases first.
ABBREVIATIONS: dict[str, str] = WORDS["abbreviations"]
_SHORTENED = re.compile(rf"\b(?:{'|'.join(ABBREVIATIONS)})\b", re.IGNORECASE)


def _case(text: str, strength: float, rng: np.random.Generator) -> str:
    """Sentences in upper case, lower case, or With A Capital For Each Word; blanks stay as they are."""
    kinds = (str.upper, str.lower, str.capitalize)
    parts = _SENTENCE.split(text)
    for i in range(0, len(parts), 2):
        if rng.random() < strength:
            kind = kinds[rng.integers(3)]
            parts[i] = _CASED.sub(lambda m, kind=kind: m[0] if m["blank"] else kind(m[0]), parts[i])
    return "".join(parts)


def _headers(text: str, strength: float, rng: np.random.Generator) -> str:
    """No headers, and only the descriptive sections: an indication without its header would read as a statement."""
    if rng.random() >= strength:
        return text
    # Paragraphs keep sections without a final full stop apart.
    return "\n\n".join(part for key, part in reports.sections(text).items() if key in DESCRIPTIVE) or text


def _lines(text: str, strength: float, rng: np.random.Generator) -> str:
    """Lines wrapped at a margin and indented by a blank, as in MIMIC-CXR."""
    if rng.random() >= strength:
        return text
    wrapper = textwrap.TextWrapper(int(rng.integers(30, 80)), break_on_hyphens=False, break_long_words=False)
    # An empty line ends a paragraph, so it must stay.
    return _within(text, lambda part: "\n ".join(x for line in part.split("\n") for x in wrapper.wrap(line) or [""]))


def _order(part: str, strength: float, rng: np.random.Generator) -> str:
    """Sentences of a section in another order."""
    found = sentences(part)
    moved = np.flatnonzero(rng.random(len(found)) < strength)
    if len(moved) < 2:
        return part
    order = np.arange(len(found))
    order[moved] = rng.permutation(moved)
    return " ".join(closed(found[i]) for i in order)


def _template(part: str, strength: float, rng: np.random.Generator) -> str:
    """A section as a numbered list, as bullet points without full stops, or as labels with a colon."""
    if rng.random() >= strength:
        return part
    items, style = sentences(part), rng.integers(3)
    if style == 0:
        return " ".join(f"{i}. {closed(s)}" for i, s in enumerate(items, 1))
    if style == 1:
        return "\n" + "\n".join(f"- {s.rstrip('.')}" for s in items)
    return "\n" + "\n".join(f"Observation {i}: {s}" for i, s in enumerate(items, 1))


def _typos(part: str, strength: float, rng: np.random.Generator) -> str:
    """One typing error in words of five letters or more, never in the first letter or in a word that denies."""

    def mistyped(m: re.Match[str]) -> str:
        word = m[0]
        if m["blank"] or word.lower() in _NEVER_MISTYPED or rng.random() >= strength:
            return word
        i, kind = int(rng.integers(1, len(word) - 1)), rng.integers(3)
        dropped, doubled, swapped = word[i + 1 :], word[i] + word[i:], word[i + 1] + word[i] + word[i + 2 :]
        return word[:i] + (dropped, doubled, swapped)[kind]

    return _WORD.sub(mistyped, part)


def _words(part: str, strength: float, rng: np.random.Generator, pattern: re.Pattern[str], new: Callable) -> str:
    return pattern.sub(lambda match: new(match[0]) if rng.random() < strength else match[0], part)


#: Every kind of `change`, in the order in which they are applied.
CHANGES: dict[str, Callable[[str, float, np.random.Generator], str]] = {
    "abbreviations": partial(_words, pattern=_SHORTENED, new=lambda words: ABBREVIATIONS[words.lower()]),
    "typos": _typos, "blanks": partial(_words, pattern=_NAMELIKE, new=lambda _: "XXXX"), "order": _order,
    "template": _template, "headers": _headers, "case": _case, "lines": _lines,
}  # fmt: skip
# These rewrite a whole report, the others each descriptive section.
_WHOLE = ("headers", "case", "lines")
#: The kinds that keep every word on which a statement depends.
FORMATTING = ("blanks", "order", "template", "headers", "case", "lines")


def change(report: str, kinds: str | Sequence[str], strength: float, seed: int | Sequence[int] = 0) -> str:
    """The same ``report`` in another form; its statements about the image stay true.

    `FORMATTING` keeps the words; ``typos`` and ``abbreviations`` change them, but none that denies. One or several
    ``kinds`` of `CHANGES` alter a share ``strength``, in [0, 1], of the words, sentences or sections (of reports:
    headers and lines) drawn by ``seed``. InputError for other kinds and strengths.
    """
    wanted = [kinds] if isinstance(kinds, str) else list(kinds)
    unknown = [kind for kind in wanted if kind not in CHANGES]
    if unknown:
        raise InputError(f"unknown change {unknown[0]!r}: choose from {', '.join(CHANGES)}")
    if not 0 <= strength <= 1:
        raise InputError(f"strength must be in [0, 1], got {strength}")
    rng = np.random.default_rng(seed)
    for kind, make in CHANGES.items():
        if kind in wanted and strength:
            within = _within if kind not in _WHOLE else lambda text, rewrite: rewrite(text)
            report = within(report, partial(make, strength=strength, rng=rng))
    return report


def _within(text: str, rewrite: Callable[[str], str]) -> str:
    """Rewrite the descriptive sections in place; the rest of the report stays as it is."""
    start = 0
    for key, part in reports.sections(text).items():
        at = text.find(part, start)
        # A section that occurs twice was joined, so it is nowhere in one piece.
        if key in DESCRIPTIVE and at >= 0:
            new = rewrite(part)
            text = text[:at] + new + text[at + len(part) :]
            start = at + len(new)
    return text


def robustness(
    readers: Mapping[str, Callable[[Sequence[str]], np.ndarray]],
    texts: Sequence[str],
    labels: np.ndarray,
    groups: Sequence[Hashable],
    changes: Mapping[str, Sequence[str]],
    strengths: Sequence[float] = (0.0, 0.5, 1.0),
    *,
    n: int = 500,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
) -> pd.DataFrame:
    """Macro-F1 of every reader on the same reports, changed more and more.

    Columns ``reader, change, strength, mean, low, high`` and ``lost, lost_low, lost_high``: hundredths of macro-F1 lost
    against the unchanged reports, paired.

    Args:
        readers: name → function from reports to bool ``(n, k)``, thresholds applied.
        texts, labels, groups: reports, their labels ``(n, k)``, 0 or 1, and patients.
        changes, strengths: name of a curve → the kinds of `change` to combine; and strengths in [0, 1].
        n, progress: bootstrap resamples, and a wrapper of the list of (curve, strength).
    """
    plain = {name: np.asarray(reader(texts)) for name, reader in readers.items()}
    rows = []
    for curve, strength in progress([(c, s) for c in changes for s in strengths]):
        altered = [change(text, changes[curve], strength, [0, i]) for i, text in enumerate(texts)]
        for name, reader in readers.items():
            now = plain[name] if altered == list(texts) else np.asarray(reader(altered))
            f, lost = scored(now, labels, groups, n), difference(plain[name], now, labels, groups, n=n)
            row = {"reader": name, "change": curve, "strength": strength}
            row |= {"mean": f.estimate, "low": f.low, "high": f.high}
            rows.append(row | {"lost": 100 * lost.estimate, "lost_low": 100 * lost.low, "lost_high": 100 * lost.high})
    return pd.DataFrame(rows)
