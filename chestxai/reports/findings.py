"""What a report states: every mention of a finding, whether it is present, and where."""

import bisect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from chestxai.reports import context, lexicon
from chestxai.reports.lexicon import is_english
from chestxai.reports.sections import SILENT, spans
from chestxai.reports.words import WORDS
from chestxai.studies import Finding, Side

# A sentence ends at . ! ? before white space (but not in "Dr." or "No. 2"), at a blank line, or before a list item.
_SENTENCE = re.compile(
    r"(?<!\bdr)(?<!\bvs)(?!(?<=\bno)\.\s\d)(?!\?\s(?:no|none|yes)\b|(?<!\S)\?)[.!?]+(?=\s|$)|\n[ \t\r]*+\n"
    r"|\n(?=[ \t\r]*+(?:(?:\d{1,2}[.)]|[-*•])\s|[a-z][a-z /-]{2,40}:\s))"
)
# Longer sentences are read in parts, so that time grows with the length of the report and not with its square.
_LONGEST = 1000
# White space other than a single blank. A line of its own is an item of a list or a label of a form ("Edema: none").
_RUN = re.compile(
    r"[^\S\n]*\n(?P<blank>[^\S\n]*\n\s*)?(?:[^\S\n]*(?P<item>(?=(?:\d{1,2}[.)]|[-*•])\s|[A-Z][A-Za-z /-]{2,40}:\s)))?"
    r"[^\S\n]*|[^\S\n]{2,}|[\t\xa0]"
)
# Other ways of writing a form, and the same in as many characters: "= ", "?:", "(-)", ": N", ": 0", rows of a table.
_FORMS = ((r" =(?= )", " :"), (r"\?:", " :"), (r" \(-\)", ": no"), (r"(?i)(?<=: )false\b", "never"))
_FORMS = (*_FORMS, (r"(?i)(?<=: )[n0](?=[ \t]*(?:[.,;\n|]|$))", context.NIL))
_FORMS = (*_FORMS, (r"(?m)^([ \t]*)\|([^|\n]+)\|([^|\n]+)\|(?=[ \t]*$)", r"\1 \2:\3."))
_LEAD = re.compile(
    r"[\s.,;:*•()/-]*(?:\(?\d{1,2}[.)](?=\s|\D)\s*)?[\s.,;:*•/-]*(?:(?:but|however|although|though|whereas|while"
    r"|except|and/or|and|with|or|versus|vs)\b[.,]?\s*)*"
)
_COUNT = re.compile(r"\s(\d{1,2})$")
_CONNECTOR = re.compile(
    r",? and/or\s|,(?: (?:and|or|with|as well as))?\s|\s(?:and|with(?! visible pleural)|or|as well as|versus|vs\.?"
    r"|plus)(?: (?:an? )?(?:associated|adjacent|underlying|probable|possible))?\s|/"
    r"|\s(?=(?:representing|represents|compatible|consistent|suggesting|suggestive|may|likely|due|secondary|causing"
    r"|concerning|which)\b)"
)
# A comma, unless only the other side follows: "Moderate right effusion, small on the left".
_APART = re.compile(
    r",\s(?!(?:and )?(?:(?:small|moderate|large|tiny|trace|\w+er|less|more|on|the) )*(?:left"
    r"|right)(?:[ -]sided?)?(?: than (?:the )?(?:left|right))?\W*$)"
)
# In an addendum, between what was thought first and what is thought now.
_INSTEAD = re.compile(
    rf"(?i)[^.;,]{{0,60}}?\b(?:{WORDS['instead']})\b(?: (?:{WORDS['thought']})\b)*"
    r"(?: (?!with\b|and\b|or\b|in\b)[\w-]+){0,3}\s*"
)
# Quotes and hyphens of print, as the rules write them.
_PLAIN = str.maketrans(dict.fromkeys("‘’ʼ", "'") | dict.fromkeys("‐‑", "-"))
_Span = tuple[int, int]


@dataclass(frozen=True)
class Mention:
    """Where a text names a finding.

    ``start:end`` are the naming words, ``phrase_start:phrase_end`` the passage that states it. ``name`` is one of the
    eight findings, or "" for any other abnormality. ``uncertain`` means hedged ("may represent"), which is independent
    of ``present``.
    """

    name: str
    start: int
    end: int
    phrase_start: int
    phrase_end: int
    present: bool
    uncertain: bool
    side: Side | None = None
    zone: str | None = None
    severity: str | None = None


def mentions(text: str) -> list[Mention]:
    """Every mention of a finding in ``text``, in the order of the text; none in another language than English.

    Sections that describe no image, such as the indication, are not read. Mentions that do not describe this image
    ("history of pneumonia", "evaluate for effusion") are left out, and so are those that an addendum takes back.
    InputError if ``text`` is longer than `sections.LONGEST` characters.
    """
    return _mentions(text, lexicon.ANY)


def _mentions(text: str, pattern: re.Pattern[str]) -> list[Mention]:
    described = [span for span in spans(text) if span[0] not in SILENT] if is_english(text) else ()
    earlier, final = [], []
    for key, start, end in described:
        some = list(_stated(text, start, end, pattern)) if start < end else []
        if key == "addendum":
            # "Pneumonia is now felt to be atelectasis" denies the first for the second.
            for i, (m, later) in enumerate(pairwise(some)):
                some[i] = replace(m, present=m.present and not _INSTEAD.fullmatch(text, m.end, later.start))
        (final if key == "addendum" else earlier).extend(some)
    kept = [m for m in earlier if not any(_contradicts(text, later, m) for later in final)] + final
    return sorted(kept, key=lambda m: (m.start, m.phrase_start)) if final else earlier


def _contradicts(text: str, later: Mention, earlier: Mention) -> bool:
    """Whether one denies what the other states, of the same finding and no other side."""
    names = {m.name or text[m.start : m.end].lower() for m in (later, earlier)}
    sides = {later.side, earlier.side} - {None, "bilateral"}
    return len(names) == 1 and later.present != earlier.present and len(sides) < 2


def _stated(text: str, start: int, end: int, pattern: re.Pattern[str]) -> Iterator[Mention]:
    low, back = fold(text[start:end])
    masked = context.mask(low)
    for sentence in (span for span in _sentences(low) if pattern.search(low, *span)):
        for name, hit, phrase, *details in _read(low, masked, *sentence, pattern):
            places = [start + place for a, b in (hit, phrase) for place in (back(a), back(b - 1) + 1)]
            yield Mention(name, *places, *details)


def find(text: str) -> list[Finding]:
    """Findings of the eight that ``text`` names, present or negated, in the order of the text.

    Hedged findings ("may represent pneumonia", "cannot exclude") are present, negated ones ("no effusion", "has
    resolved") have ``present=False``, historical and hypothetical ones are left out. ``phrase`` is a verbatim passage
    of ``text``: the part of the sentence that states the finding, for a negated one the whole clause with its
    negation. ``side`` is left, right or bilateral, ``zone`` a key of `ZONES`, ``severity`` one of `SEVERITIES`, each
    None where the text does not say. Of identical statements the first is returned.
    """
    found: dict[tuple[str, str, bool], Finding] = {}
    for m in mentions(text):
        phrase = text[m.phrase_start : m.phrase_end]
        finding = Finding(m.name, phrase, m.present, m.side, m.zone, m.severity)
        found.setdefault((m.name, phrase.lower(), m.present), finding)
    return [finding for finding in found.values() if finding.name]


def normal(text: str) -> bool:
    """Whether the text describes no abnormality: none of the eight, nor any other (scoliosis, granuloma, line…)."""
    return not any(m.present for m in mentions(text))


def name_span(phrase: str, finding_name: str, side: Side | None = None) -> tuple[int, int] | None:
    """Characters ``(start, end)`` of ``phrase`` that name the finding where it is stated; None if nothing names it.

    A phrase may deny the finding, recall it or place it elsewhere first: "No left effusion, small right effusion". Of
    several mentions the first that is present on ``side`` (of the finding's box, if known) counts, else the first
    that is present, else the first. ``finding_name`` is one of the eight, recognised by its synonyms, or any other,
    recognised by its name or its plural.
    """
    pattern, everything = lexicon.patterns(finding_name)
    low, back = fold(phrase)
    spans = [(back(match.start()), back(match.end() - 1) + 1) for match in pattern.finditer(low)]
    if len(spans) > 1:
        name = finding_name if finding_name in lexicon.SYNONYMS else lexicon.OWN
        rank = {None: 1, "bilateral": 1, side: 0}
        own = (m for m in _mentions(phrase, everything) if m.name == name)
        ranked = [(not m.present, rank.get(m.side, 2) if side else 0, m.start, m.end) for m in own]
        spans = [min(ranked)[2:]] if ranked else spans
    return spans[0] if spans else None


def name_in(phrase: str, finding_name: str, side: Side | None = None) -> str:
    """The words at `name_span` of ``phrase, finding_name, side``, verbatim ("Enlarged cardiac silhouette"), or ""."""
    start, end = name_span(phrase, finding_name, side) or (0, 0)
    return phrase[start:end]


def fold(text: str) -> tuple[str, Callable[[int], int]]:
    """``text`` in lower case with single blanks, and a function from a position in it to one in ``text``.

    Line breaks mean nothing: MIMIC-CXR wraps every report at a margin. Only what ends a sentence is kept: a blank
    line, and a line that begins a list item.
    """
    text = text.translate(_PLAIN)
    for pattern, plain in _FORMS:
        text = re.sub(pattern, plain, text)
    ends, shifts = [0], [0]

    def shorten(run: re.Match[str]) -> str:
        blank = "\n\n" if run["blank"] else "\n" if run["item"] is not None else " "
        shifts.append(shifts[-1] + len(run[0]) - len(blank))
        ends.append(run.end() - shifts[-1])
        return blank

    text = _RUN.sub(shorten, text)
    # A few characters grow in lower case (İ), which would shift positions.
    low = text.lower() if text.isascii() else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    return low, lambda i: i + shifts[bisect.bisect_right(ends, i) - 1]


def _sentences(low: str) -> Iterator[_Span]:
    start = 0
    for end, after in [*(m.span() for m in _SENTENCE.finditer(low)), (len(low), len(low))]:
        while end - start > _LONGEST:
            cut = max(low.rfind(" ", start, start + _LONGEST), start + 1)
            yield start, cut
            start = cut
        yield start, end
        start = after


def _read(low: str, masked: str, start: int, end: int, pattern: re.Pattern[str]) -> Iterator[tuple]:
    """Name, span of the name, span of the phrase and other fields of every `Mention` in a sentence."""
    clauses: list[tuple[int, int, list[re.Match[str]]]] = []
    for first, last in context.clauses(masked, start, end):
        # "Effusion: small, left", "Left: small effusion": in a form, a label belongs to what follows it.
        if clauses and low.startswith(":", first):
            label = _trim(low, *clauses[-1][:2])
            if pattern.fullmatch(low, *label) or (not clauses[-1][2] and lexicon.SIDE.search(low, *label)):
                first = clauses.pop()[0]
        clauses.append((first, last, list(pattern.finditer(low, first, last))))
    for first, last, hits in (clause for clause in clauses if clause[2]):
        uncertain = context.UNCERTAIN.search(masked, first, last) is not None
        whole = _trim(low, first, last)
        for i, (hit, present) in enumerate(zip(hits, context.judge(masked, low, first, last, hits), strict=True)):
            segment = _segment(low, first, last, hits, i)
            phrase = _trim(low, *segment) if present and hit.lastgroup != "other" else whole
            for name in lexicon.names(hit) if present is not None else ():
                place = _place(low, hit.span(), segment, whole, name) if name else ()
                yield name, hit.span(), phrase, present, uncertain, *place


def _segment(low: str, first: int, last: int, hits: Sequence[re.Match[str]], i: int) -> _Span:
    """The part of the clause ``first:last`` that belongs to the ``i``-th mention: from connector to connector."""
    before = _CONNECTOR.search(low, hits[i - 1].end(), hits[i].start()) if i else None
    after = _CONNECTOR.search(low, hits[i].end(), hits[i + 1].start()) if i + 1 < len(hits) else None
    begin = before.end() if before else hits[i - 1].end() if i else first
    return begin, after.start() if after else hits[i].end() if i + 1 < len(hits) else last


def _trim(low: str, begin: int, finish: int) -> _Span:
    """``begin:finish`` without conjunctions, numbers and punctuation at its ends."""
    begin = _LEAD.match(low, begin, finish).end()  # which may be empty, but always matches
    # "1. Small effusion 2. No edema": a number that continues a count begins the next item.
    number = _COUNT.search(low, begin, finish)
    if number and low.startswith(".", finish) and f"{int(number[1]) - 1}." in low[max(0, begin - _LONGEST) : begin]:
        finish = number.start()
    while finish > begin and low[finish - 1] in " \t\r\n.,;:/":
        finish -= 1
    return begin, finish


def _place(
    low: str, hit: _Span, segment: _Span, clause: _Span, name: str
) -> tuple[Side | None, str | None, str | None]:
    """Side, zone and severity of the mention at ``hit``, which ``segment`` states, a part of ``clause``."""
    grades = [lexicon.GRADES.index(str(m.lastgroup)) for m in lexicon.SEVERITY.finditer(low, *segment)]
    severity = lexicon.GRADES[max(grades)] if grades else None
    if name == "Cardiomegaly":
        return None, None, severity
    left, right = low.rfind(", ", segment[0], hit[0]), _APART.search(low, hit[1], segment[1])
    near = (left if left >= 0 else segment[0], right.start() if right else segment[1])
    sides = _groups(lexicon.SIDE, low, near) or _groups(lexicon.SIDE, low, segment)
    zones = _groups(lexicon.ZONE, low, segment)
    # "left lower lobe opacity, atelectasis versus pneumonia": the one place the clause names holds for all, except for
    # edema, which is of both lungs unless its own words say otherwise.
    if not sides and not zones and name != "Edema":
        sides = _groups(lexicon.SIDE, low, clause)
        sides, zones = (sides, _groups(lexicon.ZONE, low, clause)) if len(set(sides)) == 1 else ([], [])
    side = "bilateral" if "bilateral" in sides or len(set(sides)) == 2 else next(iter(sides), None)
    return side, next(iter(zones), None), severity


def _groups(pattern: re.Pattern[str], low: str, span: _Span) -> list:
    return [m.lastgroup for m in pattern.finditer(low, *span)]
