"""What all sources share: each has a complete card, terms and options, and says where to get it."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from chestxai import sources
from chestxai.profiles import ROOT
from chestxai.runs import InputError
from chestxai.sources.records import labelled_report
from chestxai.sources.shapes import parse_box
from chestxai.sources.tables import csv_rows, read_json
from chestxai.studies import Box


@pytest.mark.parametrize("name", sources.SOURCES)
def test_every_source_has_a_complete_card(name):
    module = importlib.import_module(f"chestxai.sources.{name}")
    assert isinstance(module.CARD, sources.Card)
    assert module.CARD.name == name
    assert module.CARD == sources.terms(name)
    texts = dict(module.CARD)
    assert all(len(text) > 2 for key, text in texts.items() if isinstance(text, str) and key not in ("url", "text"))
    assert {key for key, text in texts.items() if isinstance(text, str)} >= {"what", "licence", "conditions", "get"}
    # Who made it is cited, except for what is the book's or the reader's own.
    cite = module.CARD.cite
    assert bool(cite) is (name not in ("phantom", "folder"))
    known = re.findall(r"^@\w+\{(\w+),", (ROOT / "references.bib").read_text(), re.MULTILINE)
    assert len(known) == len({*known})
    assert {*cite} <= {*known}
    rows = sources.card(name)
    assert all(rows.values())
    # Each is one cell of a table.
    assert not [value for value in rows.values() if "|" in value or "\n" in value]
    assert sources.terms(name).licence in rows["licence"]
    assert ("aggregates only" in rows["pages show"]) is sources.terms(name).credentialed
    assert all(f"`{option}`" in rows["options"] for option in sources.options_of(name))


def test_the_page_has_every_card_with_its_files_and_citation():
    page = sources.cards()
    parts = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    assert len(parts) == len(sources.SOURCES)
    for name, part in zip(sources.SOURCES, parts, strict=True):
        assert f"| | `{name}` |" in part
        assert (f"```text\n{name}/\n" in part) is (name != "phantom")
        assert ("{cite}`" in part) is (name not in ("phantom", "folder"))


def test_credentialed_sources_say_what_their_identifiers_look_like():
    for name in sources.SOURCES:
        identifiers = sources.terms(name).identifiers
        # Nobody knows what those of your own data look like.
        assert bool(identifiers) is (sources.terms(name).credentialed and name != "folder")
        for pattern in identifiers.values():
            assert not re.fullmatch(pattern, "")
            # The page of data cards would be refused.
            assert not re.search(pattern, sources.terms(name).text)


def test_a_made_up_report_names_its_findings_verbatim():
    assert labelled_report([]) == ("No finding.", {})
    assert labelled_report([], ["mass"]) == ("Mass.", {})
    report, phrases = labelled_report(["Pleural Effusion", "Edema"], ["nodule or mass"])
    assert report == "Pleural effusion, edema and nodule or mass."
    assert phrases == {"Pleural Effusion": "Pleural effusion", "Edema": "edema"}
    assert all(phrase in report for phrase in phrases.values())


class TestTables:
    def rows(self, path: Path, text: str, *columns: str, **options: object) -> list[tuple[str, list[str]]]:
        path.write_text(text)
        return list(csv_rows(path, columns, "Do this.", **options))

    def test_cells_come_in_the_order_asked_for_with_their_line(self, tmp_path):
        text = 'b,"other, one",a\n\n1,x,"2\n3"\n  ,,\n4\n'
        found = self.rows(tmp_path / "t.csv", text, "a", "b", optional=("c",))
        assert found == [("t.csv:4", ["2 3", "1", ""]), ("t.csv:6", ["", "4", ""])]
        assert self.rows(tmp_path / "t.csv", text, "a", "b", fold=False)[0] == ("t.csv:4", ["2\n3", "1"])

    def test_columns_that_go_together(self, tmp_path):
        together = {"together": ("x", "y")}
        assert self.rows(tmp_path / "t.csv", "a,b\n1,2\n", "a", "b", **together) == [("t.csv:2", ["1", "2", "", ""])]
        assert self.rows(tmp_path / "t.csv", "y,a,x\n1,2,3\n", "a", **together) == [("t.csv:2", ["2", "3", "1"])]
        with pytest.raises(InputError, match=r"t\.csv: column y missing; its first line is 'a,x'\. Do this\."):
            self.rows(tmp_path / "t.csv", "a,x\n", "a", **together)

    def test_a_row_with_too_many_cells_is_refused_in_every_source(self, tmp_path):
        with pytest.raises(InputError, match=r"t\.csv:3: 3 cells for 2 columns: put texts that have commas in quotes"):
            self.rows(tmp_path / "t.csv", "a,b\n1,2,\n1,small, left\n", "a", "b")

    @pytest.mark.parametrize(
        ("text", "kind", "message"),
        [
            ("[1", list, "damaged or cut off"),
            ("[" * 100_000, list, "damaged or cut off"),
            (f"[1{'0' * 5000}]", list, "damaged or cut off"),
            ("[]", dict, "expected a JSON object, found list"),
        ],
    )
    def test_a_damaged_json(self, tmp_path, text, kind, message):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(InputError, match=rf"t\.json: .*{message}.*Do this\."):
            read_json(tmp_path / "t.json", kind, "Do this.")

    @pytest.mark.parametrize("values", [(1, 2, 3), (1, 2, 0, 4), (1, 2, "wide", 4), None, "box", [], ("nan", 1, 2, 3)])
    def test_what_is_not_a_box(self, values):
        with pytest.raises(InputError, match="not a box"):
            parse_box(values)
        assert parse_box(["1", "2", "4", "6"], corners=True) == parse_box((1, 2, 3, 4)) == Box(1, 2, 3, 4)


def test_an_option_is_checked_by_name_and_value():
    sources.check_options("vindr", {"agree": 3, "overlap": 0.4, "seed": 2})
    with pytest.raises(InputError, match="vindr has no option 'agre'"):
        sources.load("vindr", "nowhere", agre=3)
    for options, message in [
        ({"agre": 3}, "vindr has no option 'agre': it has agree, overlap, seed"),
        ({"agree": "3"}, "option 'agree' of vindr: Input should be a valid integer .*'3'"),
        ({"root": "/"}, "vindr has no option 'root'"),
    ]:
        with pytest.raises(ValueError, match=message):
            sources.check_options("vindr", options)
