"""Patterns of the words that name findings, places and grades."""

import re
from functools import cache

from chestxai.reports.words import WORDS
from chestxai.studies import FINDINGS

_WORD = re.compile(r"[^\W\d_]+")
_FOREIGN, _ENGLISH = re.compile(WORDS["foreign"]), re.compile(WORDS["english"])

#: The words that name each finding, as regular expressions over lower-case text.
SYNONYMS: dict[str, str] = WORDS["synonyms"]
#: Zones `find` distinguishes, with the words that name them.
ZONES: dict[str, str] = WORDS["zones"]
#: Grades of `find` in rising order, with the words that name them; of several the highest is taken.
SEVERITIES: dict[str, str] = WORDS["severities"]
GRADES = list(SEVERITIES)


def _named(words: dict[str, str], end: str = r"\b") -> re.Pattern[str]:
    """One pattern for all words, with a group for each name."""
    return re.compile(rf"\b(?:{'|'.join(f'(?P<{name}>{pattern})' for name, pattern in words.items())}){end}")


_KEYS = {"".join(filter(str.isalpha, name)): name for name in FINDINGS}
#: Any finding or other abnormality; `names` says which.
ANY = _named({key: SYNONYMS[name] for key, name in _KEYS.items()} | {"other": WORDS["other"]}, end=r"(?!\w)")
OWN = "own"  # name of a finding that is none of the eight
SIDE, ZONE, SEVERITY = _named(WORDS["sides"]), _named(ZONES), _named(SEVERITIES)


def names(hit: re.Match[str]) -> tuple[str, ...]:
    """The findings that a match of `ANY` names; "" stands for any other abnormality."""
    if re.match(WORDS["air_and_fluid"], hit[0]):
        return "Pneumothorax", "Pleural Effusion"
    return ("" if hit.lastgroup == "other" else _KEYS.get(str(hit.lastgroup), OWN),)


@cache
def patterns(finding_name: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Patterns of the words of one finding, and of anything `ANY` matches or that finding.

    The words of a finding that is none of the eight are its name and plural.
    """
    if finding_name in SYNONYMS:
        also = f"|{WORDS['air_and_fluid']}" if finding_name == "Pleural Effusion" else ""
        return re.compile(rf"\b(?:{SYNONYMS[finding_name]}{also})(?!\w)"), ANY
    own = rf"\b(?P<{OWN}>{re.escape(' '.join(finding_name.lower().split()))}(?:e?s)?)(?!\w)"
    return re.compile(own), re.compile(f"{own}|{ANY.pattern}")


def is_english(text: str) -> bool:
    """Whether ``text`` shows no more words of other languages than of English; a name or a number shows neither."""
    words = _WORD.findall(text.lower())
    foreign = sum(bool(_FOREIGN.fullmatch(word)) or any(c > "\u00bf" for c in word) for word in words)
    return foreign <= sum(bool(_ENGLISH.fullmatch(word)) for word in words)
