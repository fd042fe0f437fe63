"""Strict reading of the csv and json tables that data sets come with."""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from chestxai import runs
from chestxai.runs import InputError

Names = Sequence[str]


def csv_rows(
    path: Path, columns: Names, advice: str, optional: Names = (), *, together: Names = (), fold: bool = True
) -> Iterator[tuple[str, list[str]]]:
    """Read the rows of a csv that are not blank.

    Args:
        path: The csv, packed if its name ends in ``.gz``.
        columns: Columns that the file must have, in any order and beside others.
        advice: What to do about an error.
        optional: Columns that it may have.
        together: Columns that it may have, all or none of them.
        fold: Fold white space inside cells. Otherwise it stays, such as the lines of a report.

    Yields:
        ``file:line``, and the cells of ``columns``, ``optional`` and ``together`` in this order, "" for none.

    Raises:
        InputError: A column is missing, the file is damaged or not a csv, or a row has more cells than the header:
            after a comma in a text without quotes, each cell would be read as another column.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    clean = (lambda cell: " ".join(cell.split())) if fold else str.strip
    try:
        with opened(path, "rt", newline="", encoding="utf-8-sig", errors="replace") as file:
            rows = csv.reader(file)
            # NIH's header has commas inside brackets: "Bbox [x,y,w,h]", which some programs save in quotes.
            cells = [part for cell in next(rows, []) for part in (cell.split(",") if "Bbox [" in cell else [cell])]
            header = [re.sub(r"^Bbox \[|\]$", "", cell.strip()) for cell in cells]
            needed = [*columns, *(together if {*together} & {*header} else ())]
            if missing := [name for name in needed if name not in header]:
                first = ",".join(header)[:200]
                raise InputError(f"{path}: column {', '.join(missing)} missing; its first line is {first!r}. {advice}")
            # The cell after the last one is "", for columns that are not there.
            wanted = (*columns, *optional, *together)
            pick = itemgetter(*(header.index(name) if name in header else len(header) for name in wanted))
            for row in rows:
                if any(map(str.strip, row)):
                    if any(map(str.strip, row[len(header) :])):
                        width = f"{len(row)} cells for {len(header)} columns"
                        quotes = "put texts that have commas in quotes"
                        raise InputError(f"{path}:{rows.line_num}: {width}: {quotes}. {advice}")
                    row += [""] * (len(header) + 1 - len(row))
                    yield f"{path.name}:{rows.line_num}", [*map(clean, pick(row))]
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: not readable as csv ({error}). {advice}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: damaged or cut off ({error}); delete it and download it again. {advice}") from error


def read_json(path: Path, kind: type, advice: str, lists: Names = ()) -> Any:
    """Read a json file that holds a ``kind`` of object, a dict or list.

    Args:
        path: The file.
        kind: dict or list.
        advice: What to do about an error, which is an InputError.
        lists: Keys under which there must be lists, as in COCO's format.
    """
    try:
        content = runs.read_json(path, kind)
    except InputError as error:
        raise InputError(f"{error}; if it is damaged or cut off, delete it and download it again. {advice}") from error
    missing = [key for key in lists if not isinstance(content.get(key), list)]
    if missing:
        raise InputError(f"{path}: lists of {', '.join(missing)} are missing: not in COCO's format. {advice}")
    return content
