"""Whether a text is in English, the one language that the rules read."""

import re

from chestxai.reports.words import WORDS

_WORD = re.compile(r"[^\W\d_]+")
_FOREIGN, _ENGLISH = re.compile(WORDS["foreign"]), re.compile(WORDS["english"])


def is_english(text: str) -> bool:
    """Whether ``text`` shows no more words of other languages than of English; a name or a number shows neither."""
    words = _WORD.findall(text.lower())
    foreign = sum(bool(_FOREIGN.fullmatch(word)) or any(c > "\u00bf" for c in word) for word in words)
    return foreign <= sum(bool(_ENGLISH.fullmatch(word)) for word in words)
