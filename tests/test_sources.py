"""What all sources share: each has a complete card, terms and options, and says where to get it."""

from __future__ import annotations

import importlib
import re
from dataclasses import astuple

import pytest

from chestxai import sources
from chestxai.profiles import ROOT


@pytest.mark.parametrize("name", sources.SOURCES)
def test_every_source_has_a_complete_card(name):
    module = importlib.import_module(f"chestxai.sources.{name}")
    assert isinstance(module.CARD, sources.Card)
    *texts, cite = astuple(module.CARD)
    assert all(isinstance(text, str) and len(text) > 3 for text in texts)
    # Who made it is cited, but for what is the book's or the reader's own.
    assert bool(cite) is (name not in ("phantom", "folder"))
    known = re.findall(r"^@\w+\{(\w+),", (ROOT / "references.bib").read_text(), re.MULTILINE)
    assert len(known) == len({*known})
    assert {*cite} <= {*known}
    rows = sources.card(name)
    assert all(rows.values())
    # Each is one cell of a table.
    assert not [value for value in rows.values() if "|" in value or "\n" in value]
    assert sources.terms(name).licence in rows["licence"]
    assert ("aggregates only" in rows["pages show"]) is (name in sources.CREDENTIALED)
    assert all(f"`{option}`" in rows["options"] for option in sources.options_of(name))


def test_the_page_has_every_card_with_its_files_and_citation():
    page = sources.cards()
    parts = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    assert len(parts) == len(sources.SOURCES)
    for name, part in zip(sources.SOURCES, parts, strict=True):
        assert f"| | `{name}` |" in part
        assert (f"```text\n{name}/\n" in part) is (name != "phantom")
        assert ("{cite}`" in part) is (name not in ("phantom", "folder"))


def test_an_option_is_checked_by_name_and_value():
    sources.check_options("vindr", {"agree": 3, "overlap": 0.4, "seed": 2})
    for options, message in [
        ({"agre": 3}, "vindr has no option 'agre': it has agree, overlap, seed"),
        ({"agree": "3"}, "option 'agree' of vindr: Input should be a valid integer .*'3'"),
        ({"root": "/"}, "vindr has no option 'root'"),
    ]:
        with pytest.raises(ValueError, match=message):
            sources.check_options("vindr", options)
