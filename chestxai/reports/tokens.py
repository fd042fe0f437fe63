"""Which tokens of a prompt stand for a phrase."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from chestxai.reports.sections import clean
from chestxai.runs import InputError


def locate(prompt: str, phrase: str) -> tuple[int, int]:
    """Character span ``(start, end)`` of ``phrase`` in ``prompt``.

    Args:
        prompt: the whole text.
        phrase: a passage of it. Case and white space may differ, and the prompt may lack its placeholders (see
            `clean`). Of several occurrences the first that consists of whole words counts.

    Raises:
        InputError: the phrase is empty or not in the prompt.
    """
    if not phrase.strip():
        raise InputError("the phrase is empty: give words of the prompt")
    for words in filter(None, (phrase.split(), clean(phrase).split())):
        pattern = r"\s+".join(map(re.escape, words))
        for edged in (rf"(?<!\w){pattern}(?!\w)", pattern):
            if match := re.search(edged, prompt, re.IGNORECASE):
                return match.span()
    shown = prompt if len(prompt) <= 200 else prompt[:200] + "…"
    raise InputError(f"the phrase {phrase!r} is not in the prompt {shown!r}")


def token_positions(tokenizer: Any, prompt: str, phrase: str | tuple[int, int]) -> list[int]:
    """Positions of ``phrase`` in the tokenized ``prompt`` as the text encoder sees it (padded, truncated).

    Args:
        tokenizer: a fast Hugging Face tokenizer (CLIP, BERT, …), which reports character offsets.
        prompt: the whole text.
        phrase: words of it, as in `locate`, or their place in it: characters ``(start, end)`` (see `name_span`).

    Returns:
        Increasing indices into ``tokenizer(prompt, padding="max_length", truncation=True,
        max_length=tokenizer.model_max_length).input_ids`` of the tokens that share a character with the phrase.

    Raises:
        InputError: the phrase is empty, not in the prompt or (partly) truncated, or the tokenizer is slow.
    """
    first, last = locate(prompt, phrase) if isinstance(phrase, str) else phrase
    if not 0 <= first < last <= len(prompt):
        raise InputError(f"characters {first}:{last} are not a passage of the prompt, which has {len(prompt)}")
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{type(tokenizer).__name__} reports no character offsets: load the fast tokenizer")
    encoded = _encode(tokenizer, prompt, return_offsets_mapping=True)
    offsets = [tuple(map(int, o)) for o in encoded["offset_mapping"]]
    positions = [i for i, (a, b) in enumerate(offsets) if b > a and a < last and b > first]
    seen = max((b for _, b in offsets), default=0)
    if not positions or (seen < last and any(map(str.isalnum, prompt[seen:last]))):
        shown = phrase if isinstance(phrase, str) else prompt[first:last]
        raise InputError(
            f"the phrase {shown!r} is cut off: the prompt has {len(tokenizer(prompt)['input_ids'])} tokens and the "
            f"tokenizer takes {tokenizer.model_max_length}; shorten the prompt (reports.prompt takes the impression "
            "alone) or choose an earlier phrase"
        )
    return positions


def token_groups(tokenizer: Any, prompt: str, phrases: Sequence[str] | Mapping[str, Any] = ()) -> dict[str, list[int]]:
    """Token positions of each phrase, and of the special tokens, where they exist: ``begin``, ``end``, ``padding``.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        prompt: the whole text.
        phrases: words of it, each a group under its own name, or group → words or place.

    Returns:
        group → increasing positions as in `token_positions`, for `attention.capture`.

    Raises:
        InputError: as `token_positions`.
    """
    named = phrases if isinstance(phrases, Mapping) else dict(zip(phrases, phrases, strict=True))
    groups = {name: token_positions(tokenizer, prompt, phrase) for name, phrase in named.items()}
    encoded = _encode(tokenizer, prompt, return_special_tokens_mask=True)
    special, used = encoded["special_tokens_mask"], sum(encoded["attention_mask"])
    others = {
        "begin": [0] if special[0] else [],
        "end": [used - 1] if used > 1 and special[used - 1] else [],
        "padding": list(range(used, len(special))),
    }
    return groups | {name: positions for name, positions in others.items() if positions}


def _encode(tokenizer: Any, prompt: str, **options: bool) -> Any:
    return tokenizer(prompt, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, **options)
