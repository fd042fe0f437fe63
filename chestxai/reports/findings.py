"""What a report states: every mention of a finding, whether it is present, and on which side."""

import bisect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from chestxai.reports import lexicon
from chestxai.reports.sections import SILENT, spans
from chestxai.studies import Finding, Side

# After "not" these deny no finding: it has not changed, or was absent on another day.
_AS_BEFORE = (
    r"(?:significantly|appreciably|substantially|(?:much )?(?:changed|increased|decreased|improved|worse|worsened"
    r"|enlarged|larger|smaller|progressed|resolved|cleared)|well|excluded|entirely|completely|as|previously"
    r"|(?:clearly |definitely )?(?:seen|present|visible|visuali[sz]ed|identified|evident|noted|apparent|there) (?:on"
    r"|in|at) (?:(?:the|a|any|his|her|that|most) ){0,2}(?:prior|previous|earlier|last|old|recent|comparison|preceding))"
)
# A negated change is not a negated finding: "no change in the effusion".
_NOT_NEGATION = (
    r"no (?:(?:significant|interval|appreciable|substantial|definite|large|relevant|short|major|obvious|notable|marked"
    r"|considerable|further|new|other|clear|visible|evident)[ -](?:term )?)*(?:changes?|increase|decrease|improvement"
    r"|progression|difference|worsening|growth|resolution|enlargement(?! of (?:the )?(?:cardiac|heart"
    r"|cardiomediastinal)))|no more than|without (?:significant |interval |appreciable )*(?:change|increase|decrease"
    r"|improvement)|not only"
    rf"|(?:can|could)(?: ?not|'t) (?:be )?(?:exclude|entirely|completely|rule)|not {_AS_BEFORE}|no longer as"
)
_NEGATION = (
    r"no|not|non(?!-)|nor|neither|never|none|without|w/o|absent|absence of|free (?:of|from)|clear of|negative for"
    r"|denies|devoid of|lack of|ruled? out|rules out|(?<!partial )(?<!incomplete )resolution of|clearing of"
    r"|rather than|(?<!has )(?<!have )(?:resolved|cleared)|(?:isn|aren|wasn|weren|doesn|don)'t|unlikely|excludes?"
)
_PRE = re.compile(rf"\b(?:(?P<keep>{_NOT_NEGATION})|(?P<no>{_NEGATION}))(?!\w)")
_POST = re.compile(
    r"(?: (?:in|of|at|within) (?:the )?(?:[a-z]+ ){0,3}(?:lobes?|lungs?|bases?|zones?|apex|apices|hemithorax"
    r"|chest))?\W{0,2}(?:(?:which|that|this|have|has|had|is|are|was|were|be|been|now|also|since|again|completely"
    r"|nearly|seen|noted|described|previously|appears?|remains?|process|disease|change|changes|\(\w+\)) )*(?:(?:is|are"
    r"|was|were) )?"
    rf"(?:not(?! {_AS_BEFORE}\b)|no longer(?! as\b)|absent|ruled out|excluded|resolved|cleared|resolution|denied"
    rf"|negative"
    r"|none|nil|no(?=\W*$)|(?:unlikely|less likely)(?=\W*$|[.,;)]| (?:given|in|based|as|because|considering))"
    r"|within (?:the )?(?:normal (?:limits|range)|limits of normal))\b"
)
# The scope of a preceding negation ends at a contrast or a new affirmative statement.
_ENDS = re.compile(
    r";|:|\b(?:but|however|although|though|except|other than|aside from|apart from|besides|otherwise|yet|whereas|while"
    r"|there (?:is|are|has|have)|which|causing|due to|secondary to|demonstrat(?:es|ing)|shows?|status post|stable"
    r"|unchanged|(?<!not )(?:consistent with|compatible with|suggest(?:ing|ive)|represent(?:ing|s)))\b|,\s+(?:this"
    r"|these|it)\b|(?:,\s+(?:and )?(?:with )?|\bwith |\band (?=(?:the|an?)\b))(?:(?:the|an?) )?(?:again )?(?:mild"
    r"|mildly|moderate|moderately|minimal|small|tiny|trace|persistent|bibasilar|improv\w+|worsen\w+|increas\w+|left"
    r"|right|bilateral|low|calcified|borderline)\b(?P<listed>)"
)
# "No pneumonia, small effusion, or pneumothorax": an apparent new statement belongs to the list.
_GOES_ON = re.compile(r"[^;:]*,\s(?:or|nor)\b")
# Between two items of a list, up to the words that name the second.
_LISTED = re.compile(r"(?:,? (?:and|or|and/or) |, |/)(?:(?!(?:there|is|are|has|have|with|no|not)\b)[\w-]+ ){0,3}")
# Indication, history and advice do not describe this image.
_HYPOTHETICAL = re.compile(
    r"\b(?:history of|h/o|hx of|evaluat(?:e|ion) for|assess(?:ment)? for|rule out|r/o|indication|looking for|query"
    r"|risk of|concern(?:ed)? (?:is )?(?:for|of) (?:prior|history)|if (?:there|clinical\w*|concern\w*|symptom\w*)"
    r"|to exclude|to ensure|to document|correlat\w+ (?:clinically )?for|treatment (?:of|for)|treated for|(?:prior"
    r"|previous|old|remote|recent) (?:episode of )?(?=pneumonia|infection|granulom))"
)
_UNCERTAIN = re.compile(
    r"\b(?:may|might|could|can|possibl[ey]|probabl[ey]|likely|suspect\w*|suspicious|concerning|concern|questionable"
    r"|question|suggest\w*|equivocal|versus|vs|cannot|favor\w*|potentially|perhaps|differential|presumed|appears? to"
    r"|not excluded)\b"
)
_COLON = re.compile(r"\s?:\s(?:there (?:is|are) |is |are )?")
_CLAUSE = re.compile(
    r";|,\s++(?=[a-z][a-z -]{2,40}:\s)|(?:,\s++|(?<![\s,])\s++)(?:but|however|although|though|whereas|while|except)\b"
    r"|,\s++(?:and )?(?=there (?:is|are)\b)|(?<!heart)(?<!heart size)(?<!silhouette):\s(?!\s*(?:no|none|nil|absent"
    r"|negative)\W*(?:$|[.;\n]))"
)
# A sentence ends at . ! ? before white space (but not in "Dr."), at a blank line, or before a list item.
_SENTENCE = re.compile(
    r"(?<!\bdr)(?<!\bvs)(?<!\bno)[.!?]+(?=\s|$)|\n[ \t\r]*+\n|\n(?=[ \t\r]*+(?:\d{1,2}[.)]|[-*•])\s)"
)
# White space other than a single blank.
_RUN = re.compile(
    r"[^\S\n]*\n(?P<blank>[^\S\n]*\n\s*)?(?:[^\S\n]*(?P<item>(?=(?:\d{1,2}[.)]|[-*•])\s)))?[^\S\n]*|[^\S\n]{2,}"
    r"|[\t\xa0]"
)
_LEAD = re.compile(
    r"[\s.,;:*•()/-]*(?:\(?\d{1,2}[.)](?=\s|\D)\s*)?[\s.,;:*•/-]*(?:(?:but|however|although|though|whereas|while"
    r"|except|and/or|and|with|or|versus|vs)\b[.,]?\s*)*"
)
_COUNT = re.compile(r"\s(\d{1,2})$")
_CONNECTOR = re.compile(
    r",? and/or\s|,(?: (?:and|or|with|as well as))?\s|\s(?:and|with(?! visible pleural)|or|as well as|versus|vs\.?"
    r"|plus)(?: (?:an? )?(?:associated|adjacent|underlying|probable|possible))?\s|/|\s(?=(?:representing|represents"
    r"|compatible|consistent|suggesting|suggestive|may|likely|due|secondary|causing|concerning|which)\b)"
)
_Span = tuple[int, int]


@dataclass(frozen=True)
class Mention:
    """Where a text names a finding.

    ``start:end`` are the naming words, ``phrase_start:phrase_end`` the passage that states it, both in the text given
    to `mentions`. ``name`` is one of the eight findings, or "" for any other abnormality. ``uncertain`` means hedged
    ("may represent"): such a mention counts as present unless it is negated.
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
    """Every mention of a finding in ``text``, in the order of the text.

    Sections that describe no image, such as the indication, are not read. Mentions that do not describe this image
    ("history of pneumonia", "evaluate for effusion") are left out. Abnormalities other than the eight have the name "".
    """
    found: list[Mention] = []
    for key, start, end in spans(text):
        if key in SILENT:
            continue
        low, back = fold(text[start:end])
        for sentence in _split(low, 0, len(low), _SENTENCE):
            for clause in _clauses(low, *sentence):
                for name, hit, phrase, *details in _read(low, *clause):
                    places = [start + place for a, b in (hit, phrase) for place in (back(a), back(b - 1) + 1)]
                    found.append(Mention(name, *places, *details))
    return found


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
        if m.name:
            phrase = text[m.phrase_start : m.phrase_end]
            finding = Finding(m.name, phrase, m.present, m.side, m.zone, m.severity)
            found.setdefault((m.name, phrase.lower(), m.present), finding)
    return list(found.values())


def normal(text: str) -> bool:
    """Whether the text describes no abnormality: none of the eight, nor any other (scoliosis, granuloma, line…)."""
    return not any(m.present for m in mentions(text))


def name_in(phrase: str, finding_name: str) -> str:
    """The words of ``phrase`` that name the finding, verbatim ("Enlarged cardiac silhouette"); "" if there are none.

    Args:
        phrase: any text.
        finding_name: one of the eight, recognised by its synonyms, or any other (of custom data or MS-COCO), recognised
            by its name or its plural.
    """
    low, back = fold(phrase)
    match = (
        lexicon.PATTERNS[finding_name].search(low)
        if finding_name in lexicon.PATTERNS
        else re.search(rf"\b{re.escape(fold(finding_name.strip())[0])}(?:e?s)?(?!\w)", low)
    )
    if match is None and finding_name == "Pleural Effusion":
        match = lexicon.AIR_AND_FLUID.search(low)
    return phrase[back(match.start()) : back(match.end() - 1) + 1] if match else ""


def fold(text: str) -> tuple[str, Callable[[int], int]]:
    """``text`` in lower case with single blanks, and a function from a position in it to one in ``text``.

    Line breaks mean nothing: MIMIC-CXR wraps every report at a margin. Only what ends a sentence is kept: a blank
    line, and a line that begins a list item.
    """
    low = text.lower()
    if len(low) != len(text):  # a few characters grow in lower case (İ), which would shift positions
        low = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    ends, shifts = [0], [0]

    def shorten(run: re.Match[str]) -> str:
        blank = "\n\n" if run["blank"] else "\n" if run["item"] is not None else " "
        shifts.append(shifts[-1] + len(run[0]) - len(blank))
        ends.append(run.end() - shifts[-1])
        return blank

    return _RUN.sub(shorten, low), lambda i: i + shifts[bisect.bisect_right(ends, i) - 1]


def _split(text: str, start: int, end: int, pattern: re.Pattern[str]) -> Iterator[_Span]:
    for match in pattern.finditer(text, start, end):
        yield start, match.start()
        start = match.end() if pattern is _SENTENCE else match.start()
    yield start, end


def _clauses(low: str, start: int, end: int) -> list[_Span]:
    clauses: list[_Span] = []
    for first, last in _split(low, start, end, _CLAUSE) if lexicon.ANY.search(low, start, end) else ():
        # "Effusion: small, left": in a form, the text after a label that names a finding describes it.
        if clauses and low.startswith(":", first) and lexicon.ANY.fullmatch(low, *_trim(low, *clauses[-1])):
            first = clauses.pop()[0]
        clauses.append((first, last))
    return clauses


def _read(low: str, first: int, last: int) -> Iterator[tuple]:
    """Name, span of the name, span of the phrase and the other fields of every `Mention` in a clause."""
    hits = list(lexicon.ANY.finditer(low, first, last))
    hypothetical = _HYPOTHETICAL.search(low, first, last) if hits else None
    uncertain = _UNCERTAIN.search(low, first, last) is not None
    clause = _trim(low, first, last)
    for i, (hit, negated) in enumerate(zip(hits, _negated(low, first, last, hits), strict=True)):
        if hypothetical and hypothetical.start() < hit.start() and hit.start() - hypothetical.end() < 40:
            continue
        name = lexicon.NAMES.get(hit.lastgroup or "", "")
        if not name:
            yield "", hit.span(), clause, not negated, uncertain
            continue
        segment = _segment(low, first, last, hits, i)
        phrase = clause if negated else _trim(low, *segment)
        for also in (name, "Pleural Effusion") if lexicon.AIR_AND_FLUID.match(hit[0]) else (name,):
            yield also, hit.span(), phrase, not negated, uncertain, *_place(low, segment, clause, name)


def _negated(low: str, first: int, last: int, hits: Sequence[re.Match[str]]) -> list[bool]:
    """Which mentions of a clause are negated: by their own words, by what stands before, or by what follows."""
    negations = [m for m in _PRE.finditer(low, first, last) if m["no"]]
    before, after = [], []
    for hit in hits:
        own = re.search(r"\bnot\b|n't\b|\bno longer\b", hit[0]) is not None
        before.append(own or any(n.end() <= hit.start() and _reaches(low, n, hit.start(), last) for n in negations))
        colon = _COLON.match(low, hit.end(), last)
        answer = _PRE.match(low, colon.end(), last) if colon else None  # "Effusion: there is no effusion"
        after.append(_POST.match(low, hit.end(), last) is not None or (answer is not None and answer["no"] is not None))
    # "Consolidation, atelectasis and effusion have resolved": what follows a list holds for all of it.
    for i in range(len(hits) - 2, -1, -1):
        after[i] |= after[i + 1] and _LISTED.fullmatch(low, hits[i].end(), hits[i + 1].start()) is not None
    return [b or a for b, a in zip(before, after, strict=True)]


def _reaches(low: str, negation: re.Match[str], end: int, last: int) -> bool:
    """Whether a negation holds for a mention at ``end`` behind it, in a clause up to ``last``."""
    start = negation.end()
    if negation["no"] in ("resolved", "cleared") and "," in low[start:end]:  # "Effusions resolved, edema persists."
        return False
    return all(
        stop["listed"] is not None and _GOES_ON.match(low, stop.end(), last) for stop in _ENDS.finditer(low, start, end)
    )


def _segment(low: str, first: int, last: int, hits: Sequence[re.Match[str]], i: int) -> _Span:
    """The part of the clause ``first:last`` that belongs to the ``i``-th mention: from connector to connector."""
    if i:
        before = _CONNECTOR.search(low, hits[i - 1].end(), hits[i].start())
        first = before.end() if before else hits[i - 1].end()
    if i + 1 < len(hits):
        after = _CONNECTOR.search(low, hits[i].end(), hits[i + 1].start())
        last = after.start() if after else hits[i].end()
    return first, last


def _trim(low: str, begin: int, finish: int) -> _Span:
    """``begin:finish`` without conjunctions, numbers and punctuation at its ends."""
    lead = _LEAD.match(low, begin, finish)
    begin = lead.end() if lead else begin
    # "1. Small effusion 2. No edema": a number that continues a count begins the next item.
    number = _COUNT.search(low, begin, finish)
    if number and low.startswith(".", finish) and f"{int(number[1]) - 1}." in low[:begin]:
        finish = number.start()
    while finish > begin and low[finish - 1] in " \t\r\n.,;:/":
        finish -= 1
    return begin, finish


def _place(low: str, segment: _Span, clause: _Span, name: str) -> tuple[Side | None, str | None, str | None]:
    """Side, zone and severity of a finding that ``segment`` states, a part of ``clause``."""
    order = list(lexicon.SEVERITIES)
    grades = [order.index(str(m.lastgroup)) for m in lexicon.SEVERITY.finditer(low, *segment)]
    severity = order[max(grades)] if grades else None
    if name == "Cardiomegaly":
        return None, None, severity
    sides = {m.lastgroup for m in lexicon.SIDE.finditer(low, *segment)}
    zones = [m.lastgroup for m in lexicon.ZONE.finditer(low, *segment)]
    # "left lower lobe opacity, atelectasis versus pneumonia": the one place the clause names holds for all, except for
    # edema, which is of both lungs unless its own words say otherwise.
    if not sides and not zones and name != "Edema":
        sides = {m.lastgroup for m in lexicon.SIDE.finditer(low, *clause)}
        zones = [m.lastgroup for m in lexicon.ZONE.finditer(low, *clause)]
        if len(sides) != 1:
            sides, zones = set(), []
    side = "bilateral" if "bilateral" in sides or len(sides) == 2 else next(iter(sides), None)
    return side, zones[0] if zones else None, severity
