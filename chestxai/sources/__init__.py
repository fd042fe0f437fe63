"""One module per data set; all of them give the same record, `chestxai.studies.Study`.

A module has a ``CARD`` (what the data set is, its terms, its layout, how to get it; of ``data/cards``) and
``load(root, split, **options)``, whose keyword-only parameters are the options that a profile may set.
"""

import re
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from chestxai.runs import InputError, MissingError
from chestxai.sources import chexlocalize, coco, folder, mimic, nih, openi, padchest, phantom, vindr
from chestxai.sources.cards import Card
from chestxai.sources.records import Studies, ensure

_MODULES = {m.CARD.name: m for m in (phantom, openi, nih, folder, mimic, padchest, chexlocalize, coco, vindr)}

#: Names that `load` accepts, and what each is.
SOURCES = {name: module.CARD.what for name, module in _MODULES.items()}


def load(name: str, root: str | Path | None = None, split: str = "test", **options: object) -> Studies:
    """Load one split of a data set; pixels are read later, on demand.

    Args:
        name: One of `SOURCES`.
        root: Folder with the data set in its official layout; phantoms need none.
        split: "train", "val" or "test"; patients never straddle two.
        options: The source's own, see its card in ``data/cards``.

    Returns:
        The studies in the order of the data set's table. ``skipped`` has one line, with file and line number, for every
        record of this split that was left out; that of an unknown patient is listed in every split.

    Raises:
        InputError: Unknown source, split or option; a table is damaged or lacks a column; no record is of use.
        MissingError: ``root`` lacks a file; the message says how to get it, and on which terms.
        ModuleNotFoundError: The files need a package that is not installed (pydicom, pycocotools).
    """
    known = terms(name)
    ensure(split in ("train", "val", "test"), f"unknown split {split!r}: choose one of train, val, test")
    if root is None and name != "phantom":
        raise MissingError(f"{known.title} is read from disk: give root, the folder of your data. {known.get}")
    check_options(name, {key: v for key, v in options.items() if name != "phantom" or key not in ("n", "size")})
    return _MODULES[name].load(None if root is None else Path(root), split, **options)


def options_of(name: str) -> dict[str, Any]:
    """The options of a source that a profile may set, with their defaults."""
    parameters = signature(_MODULES[name].load).parameters.values()
    # Number and size of phantoms are settings of the profile itself.
    own = {"n", "size"} if name == "phantom" else set()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in own}


def check_options(name: str, options: Mapping[str, object]) -> None:
    """Raise InputError unless source ``name`` has all ``options`` (name → value), and values of their types."""
    defaults, types = options_of(name), get_type_hints(_MODULES[name].load, include_extras=True)
    for key, value in options.items():
        ensure(key in defaults, f"{name} has no option {key!r}: it has {', '.join(defaults)}")
        try:
            TypeAdapter(types[key]).validate_python(value, strict=True)
        except ValidationError as error:
            raise InputError(f"option {key!r} of {name}: {error.errors()[0]['msg']} (got {value!r})") from error


def terms(name: str) -> Card:
    """The card of a source, which holds its terms: ``licence``, ``url``, ``conditions`` and ``credentialed``."""
    ensure(name in SOURCES, f"unknown source {name[:80]!r}: choose one of {', '.join(SOURCES)}")
    return _MODULES[name].CARD


def card(name: str) -> dict[str, str]:
    """The data card of a source as rows of a table."""
    options = ", ".join(f"`{key}` ({default})" for key, default in options_of(name).items())
    return {**terms(name).rows(), "options": options}


# It takes the place of the module of the same name, which is imported as chestxai.sources.cards.
def cards() -> str:
    """The page of all data cards, in MyST Markdown, each with the layout and the rules of its source."""
    parts = []
    for name, module in _MODULES.items():
        linked = {key: re.sub(r"https?://\S*[\w/]", r"<\g<0>>", value) for key, value in card(name).items()}
        rows = [f"| **{key}** | {value} |" for key, value in linked.items()]
        rows += [f"| **cite** | {{cite}}`{','.join(module.CARD.cite)}` |"] if module.CARD.cite else []
        parts += [f"## {module.CARD.title}\n\n| | `{name}` |\n|---|---|", *rows, module.CARD.text]
    return "\n".join(parts)
