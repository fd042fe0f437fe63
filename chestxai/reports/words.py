"""The words of reports, as ``words.yaml`` lists them."""

import re
from pathlib import Path
from typing import Any

import yaml

_CONTENT = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def alternatives(entry: Any) -> Any:
    """One regular expression for an ``entry``, a text or a list of them; for each of a mapping's, if it is one."""
    if isinstance(entry, dict):
        return {key: alternatives(value) for key, value in entry.items()}
    text = entry if isinstance(entry, str) else "|".join(entry)
    text = re.sub(r"\{([a-z]+)\}", lambda match: f"(?:{alternatives(_CONTENT[match[1]])})", text)
    return re.sub(r"\{([A-Z]+)\}", lambda match: alternatives(_CONTENT[match[1]]), text)


WORDS: dict[str, Any] = alternatives(_CONTENT)
