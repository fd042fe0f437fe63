"""The tokens of a prompt as the text encoder reads them, and which of them stand for a phrase."""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from chestxai.reports.sections import clean
from chestxai.runs import InputError


def locate(prompt: str, phrase: str) -> tuple[int, int]:
    """Character span ``(start, end)`` of ``phrase`` in ``prompt``; InputError if it is empty or not there.

    Case and white space may differ, and the prompt may lack the phrase's placeholders (see `clean`). Of several
    occurrences the first that consists of whole words counts.
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


def encode(tokenizer: Any, texts: Sequence[str], **options: Any) -> Mapping[str, list[list[Any]]]:
    """What a fast ``tokenizer`` says of ``texts``, padded and cut as the text encoder reads them: a row for each text.

    With ``tokenizer.windows`` (`models.read_in_windows`) a row holds so many windows side by side, each with begin, end
    and padding of its own. Windows that a text does not need hold the empty prompt. ``options`` are the tokenizer's.
    """
    windows, length = getattr(tokenizer, "windows", 1), tokenizer.model_max_length
    options |= {"padding": "max_length", "truncation": True, "max_length": length, "return_attention_mask": True}
    if windows == 1:
        return tokenizer(list(texts), **options)
    read = tokenizer([*texts, ""], return_overflowing_tokens=True, **options)
    parts: list[list[int]] = [[] for _ in range(len(texts) + 1)]
    for number, owner in enumerate(read.pop("overflow_to_sample_mapping")):
        parts[owner].append(number)
    *rows, blank = parts
    rows = [(row + blank * windows)[:windows] for row in rows]
    return {name: [[*chain(*(values[i] for i in row))] for row in rows] for name, values in read.items()}


def text_length(tokenizer: Any) -> int:
    """Tokens of a prompt as the text encoder reads it, padding included."""
    return tokenizer.model_max_length * getattr(tokenizer, "windows", 1)


def token_positions(tokenizer: Any, prompt: str, phrase: str | tuple[int, int]) -> list[int]:
    """Positions of ``phrase`` in the tokenized ``prompt`` as the text encoder sees it (padded, truncated).

    They are increasing indices into ``input_ids`` of `encode`, of the tokens that share a character with the phrase.
    InputError if the phrase is empty, not in the prompt or (partly) truncated, or the tokenizer is slow.

    Args:
        tokenizer: a fast Hugging Face tokenizer (CLIP, BERT, …), which reports character offsets.
        prompt: the whole text.
        phrase: words of it, as in `locate`, or their place in it: characters ``(start, end)`` (see `name_span`).
    """
    first, last = locate(prompt, phrase) if isinstance(phrase, str) else phrase
    if not 0 <= first < last <= len(prompt):
        raise InputError(f"characters {first}:{last} are not a passage of the prompt, which has {len(prompt)}")
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{type(tokenizer).__name__} reports no character offsets: load the fast tokenizer")
    (offsets,) = encode(tokenizer, [prompt], return_offsets_mapping=True)["offset_mapping"]
    positions = [i for i, (a, b) in enumerate(offsets) if b > a and a < last and b > first]
    seen = max((b for _, b in offsets), default=0)
    if not positions or (seen < last and any(map(str.isalnum, prompt[seen:last]))):
        shown = phrase if isinstance(phrase, str) else prompt[first:last]
        raise InputError(
            f"the phrase {shown!r} is cut off: the prompt has {len(tokenizer(prompt)['input_ids'])} tokens and the "
            f"tokenizer takes {text_length(tokenizer)}; shorten the prompt (reports.prompt takes the impression "
            "alone) or choose an earlier phrase"
        )
    return positions


def token_groups(tokenizer: Any, prompt: str, phrases: Sequence[str] | Mapping[str, Any] = ()) -> dict[str, list[int]]:
    """Token positions of each phrase, and of the special tokens, where they exist: ``begin``, ``end``, ``padding``.

    Group → increasing positions, for `attention.capture`. ``tokenizer``, ``prompt`` and errors are as in
    `token_positions`; ``phrases`` are words of the prompt, each a group under its own name, or group → words or place.
    """
    named = phrases if isinstance(phrases, Mapping) else dict(zip(phrases, phrases, strict=True))
    groups = {name: token_positions(tokenizer, prompt, phrase) for name, phrase in named.items()}
    encoded = encode(tokenizer, [prompt], return_special_tokens_mask=True)
    special, real = encoded["special_tokens_mask"][0], encoded["attention_mask"][0]
    length = tokenizer.model_max_length
    others: dict[str, list[int]] = {"begin": [], "end": [], "padding": []}
    for position, (mark, token) in enumerate(zip(special, real, strict=True)):
        start = position // length * length
        # A window without a word of the prompt is padding.
        if not token or (start and all(special[start : start + length])):
            others["padding"].append(position)
        elif mark:
            others["begin" if position == start else "end"].append(position)
    return groups | {name: positions for name, positions in others.items() if positions}
