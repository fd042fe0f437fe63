"""What the words around a mention make of it: negated, hedged, or not a statement about this image.

Pseudo-negations ("cannot exclude", "no change in") are masked first. A trigger ("no", "history of") reaches forward to
the next boundary of its scope. A negated predicate ("is not seen") reaches back to its subject or list of subjects.
"""

import re
from collections.abc import Sequence

from chestxai.reports.words import WORDS

#: Letters that no report uses: in place of what is masked, and "no" in a form that writes N or 0.
_HEDGE, _NEUTRAL, NIL = "\u01c0", "\u01c1", "\u01c2"
_VERB, _ADVERB, _STATE, _GONE, _EXCLUDED, _MISTAKEN = (
    f"(?:{WORDS[key]})" for key in ("verb", "adverb", "state", "gone", "excluded", "mistaken")
)
_EXISTS, _BEFORE = f"(?:{WORDS['exists']})", f" (?:{WORDS['before']})"
_NOT = f"(?:{WORDS['negator']})"
# Negations of something else than the finding, and of other negations.
_MASKED = re.compile(rf"\b(?P<hedge>{WORDS['hedged']})|\b(?:{WORDS['affirmed']})(?!\w)")
# Triggers in front of a mention. What is "unstated" reaches 40 characters, a negation to the end of the scope.
_TRIGGER = re.compile(rf"\b(?:(?P<unstated>{WORDS['unstated']})|{WORDS['denied']})(?:(?<=\s)|(?!\w))")
# What ends the scope of a trigger: a contrast, or a new affirmative statement.
_NOUNS = rf"(?:(?!(?:and|or|nor|no|not|without|but|which|that|who|{_VERB}|{_STATE})\b)[\w'/()-]+ )"
_END = re.compile(
    rf":|{_HEDGE}+|\b(?:{WORDS['restart']})\b|,\s(?:this|these|it|now|today|currently)\b|,\s(?:and )?with (?!no\b)"
    rf"|\band with (?!no\b)|(?P<item>,\s(?:and )?(?={_NOUNS}{{1,5}}+{_STATE}\b)|(?:,\s(?:and )?(?:with )?|\bwith "
    r"|\band (?=an?\b|the\b|mild|moderate|minimal|small|tiny|trace|persist|improv|worsen))(?:(?:the|an?) )?(?:again )?"
    rf"(?:{WORDS['graded']})\b|\b{_VERB}(?: {_ADVERB})? {_EXISTS},(?= ))"
)
# "No pneumonia, small effusion, or pneumothorax": an apparent new statement belongs to the list.
_LIST = re.compile(rf"(?:[^;:{_HEDGE}]*,|(?: (?!(?:and|with|{_VERB})\b)[\w/-]+){{1,5}}) (?:or|nor)\b")
# From a mention to its predicate: up to nine words and one parenthesis between commas.
_STOP = rf"(?!(?:and|or|nor|but|otherwise|with|without|no|not|never|none|absent|{_VERB})\b)"
_PREDICATE = re.compile(
    rf"(?: {_STOP}[\w'/()-]+){{0,9}}?(?:, (?:previously|seen|noted|described|which|that|as|present|visible"
    rf"|identified)\b[^,;:.]{{0,60}},)?(?:(?: -|:|\?)?(?: (?:{_VERB}|{_ADVERB}|which|that|considered|thought|felt"
    rf"|deemed))*,?[ (]+(?:{_NOT}(?: {_ADVERB}| appear)* {_EXISTS}(?!{_BEFORE})"
    rf"|no longer (?:{_ADVERB} )*(?:{_EXISTS}|any|an?)|(?<! to )(?<! until )(?!clearing){_GONE}|{_EXCLUDED}|{_MISTAKEN}"
    r"|denied|neg(?:ative)?(?! for)"
    r"|none(?! (?:on|in) the (?:left|right)\b(?! or\b))|nil|lacking|doubtful|improbable|no(?=\W*(?:$|[,;]))|not(?=\W*$)"
    r"|(?:unlikely|less likely)(?=\W*$|[.,;)]| (?:given|in|based|as|because|considering|here))"
    r"|within (?:the )?(?:normal (?:limits|range)|limits of normal))\b"
    rf"|\s?: (?:there (?:is|are) |is |are )?(?:no|not|none|without|absent|negative|never|{NIL})\b)"
)
# Between two items of a list, up to the words that name the second.
_ITEM = re.compile(
    r"(?P<last>,? (?:and|or|and/or|nor) |/)?(?(last)|, )(?:(?!(?:there|is|are|has|have|with|no|not)\b)[\w-]+ ){0,3}"
)
UNCERTAIN = re.compile(rf"{_HEDGE}+|(?:^|\s)\?|\b(?:{WORDS['uncertain']})\b")
_OWN = re.compile(r"\bnot\b(?! as\b)|n't\b|\bno longer\b(?! as\b)")
# A clause ends at a semicolon, at a form's label, at a contrast, and where a conjunction joins a new subject and verb.
_CLAUSE = re.compile(
    r";|(?P<label>,\s(?=[a-z][a-z -]{2,40}:\s))|(?:,\s|(?<![\s,])\s)(?:but|however|although|though|whereas|while"
    r"|except|yet|otherwise|despite|besides|other than|aside from|apart from)\b|,\s(?:and )?(?=there (?:is|are)\b)"
    r"|(?<!heart)(?<!heart size)(?<!silhouette):\s(?!\s*(?:no|none|nil|absent|neg|negative|not|never"
    rf"|{NIL})\W*(?:$|[.,;\n]))"
    rf"|(?P<joined>,\s(?:and )?|\sand )(?={_NOUNS}{{1,7}}+(?:{_VERB}"
    rf"|{_STATE})\b(?P<seen>(?: (?:{_VERB}|{_ADVERB}))* {_EXISTS}\b)?)"
)
_DETERMINED = re.compile(r"\W*(?:and )?(?:the|an?|this|these|its?|there)\b")
_FINITE = re.compile(rf"\b{_VERB}\b|{_NEUTRAL}")


def mask(low: str) -> str:
    """Replace the pseudo-negations in ``low``, character by character."""
    return _MASKED.sub(lambda m: (_HEDGE if m["hedge"] else _NEUTRAL) * len(m[0]), low)


def clauses(low: str, start: int, end: int) -> list[tuple[int, int]]:
    """Spans of the clauses of the masked sentence ``low[start:end]``."""
    found, first = [], start
    for m in _CLAUSE.finditer(low, start, end):
        if m["label"] and ":" not in low[start : m.start()]:  # "Effusion, edema and consolidation: none"
            continue
        # "No effusion, pneumothorax is seen" is one clause, "No effusion, the heart is large" is two.
        if m["joined"] and not _FINITE.search(low, first, m.start()):
            negated = not all(trigger["unstated"] for trigger in _TRIGGER.finditer(low, first, m.start()))
            if not (_DETERMINED.match(low, m.start()) if m["seen"] else negated):
                continue
        found.append((first, m.start()))
        first = m.start()
    return [*found, (first, end)]


def judge(low: str, text: str, first: int, last: int, hits: Sequence[re.Match[str]]) -> list[bool | None]:
    """Whether each mention of a clause is stated (True), negated (False) or no statement about this image (None).

    ``low`` is the masked text, ``text`` the same before masking. The clause is from ``first`` to ``last``, and ``hits``
    are the mentions in it.
    """
    ends = [m.start() for m in _END.finditer(low, first, last) if not (m["item"] and _LIST.match(low, m.end(), last))]
    scopes = []
    for trigger in _TRIGGER.finditer(low, first, last):
        begin, scope = trigger.end(), next((end for end in ends if end >= trigger.end()), last)
        scopes.append((trigger["unstated"], begin, min(scope, begin + 40) if trigger["unstated"] else scope))
    after = []
    for hit, edge in zip(hits, [*(hit.start() for hit in hits[1:]), last], strict=True):
        predicate = _PREDICATE.match(low, hit.end(), last)
        after.append(predicate is not None and predicate.end() <= edge)
    # "Consolidation, atelectasis and effusion have resolved": what follows a list holds for all of it.
    listed = False
    for i in range(len(hits) - 2, -1, -1):
        link = _ITEM.fullmatch(low, hits[i].end(), hits[i + 1].start())
        listed = link is not None and (listed or link["last"] is not None)
        after[i] |= after[i + 1] and listed
    verdicts: list[bool | None] = []
    for hit, denied in zip(hits, after, strict=True):
        before = [unstated for unstated, begin, scope in scopes if begin <= hit.start() <= scope]
        negated = denied or _OWN.search(text, *hit.span())
        verdicts.append(False if negated else None if any(before) else not before)
    return verdicts
