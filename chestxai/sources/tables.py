"""Strict reading of the csv and json tables that data sets come with."""

import codecs
import csv
import gzip
import io
import re
import unicodedata
import warnings
import zlib
from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from chestxai import runs
from chestxai.runs import InputError

#: Bytes of the largest table that is read; COCO's largest has half of that.
LARGEST = 2**30
#: Lines of the longest table that is read: ten times those of the longest of these data sets, MIMIC-CXR's.
LINES = 4_000_000

Names = Sequence[str]

# Characters without a width hide words from whoever looks for them; letters of print and of other widths do, too.
_HIDDEN, _PRINT = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]"), re.compile("[\ufb00-\ufb06\uff01-\uff5e]")


def csv_rows(
    path: Path, columns: Names, advice: str, optional: Names = (), *, together: Names = (), fold: bool = True
) -> Iterator[tuple[str, list[str]]]:
    """Read the rows of a csv that are not blank.

    The csv at ``path`` is packed if its name ends in ``.gz``. It must have ``columns``, in any order and beside others,
    and may have ``optional`` ones, and those ``together`` all or none. ``advice`` says what to do about an error. With
    ``fold`` white space inside cells is folded; otherwise it stays, such as the lines of a report.

    Yields:
        ``file:line``, and the cells of ``columns``, ``optional`` and ``together`` in this order, "" for none.

    Raises:
        InputError: A column is missing or there twice, the file is damaged or not a csv, or a row has more cells than
            the header: after a comma in a text without quotes, each cell would be read as another column.
    """
    clean = (lambda cell: " ".join(cell.split())) if fold else str.strip
    # Strict: without it, a quote that is never closed swallows the rest of the file.
    rows = csv.reader(io.StringIO(decode(_unpacked(path, advice), str(path)), newline=""), strict=True)
    try:
        # NIH's header has commas inside brackets: "Bbox [x,y,w,h]", which some programs save in quotes.
        cells = [part for cell in next(rows, []) for part in (cell.split(",") if "Bbox [" in cell else [cell])]
        header = [re.sub(r"^Bbox \[|\]$", "", cell.strip()) for cell in cells]
        while header and not header[-1]:
            header.pop()
        needed = [*columns, *(together if {*together} & {*header} else ())]
        wanted = (*columns, *optional, *together)
        for problem, names in (
            ("missing", [name for name in needed if name not in header]),
            ("there twice", [name for name in wanted if header.count(name) > 1]),
        ):
            if names:
                first = ",".join(header)[:200]
                raise InputError(f"{path}: column {', '.join(names)} {problem}; its first line is {first!r}. {advice}")
        # The cell after the last one is "", for columns that are not there.
        pick = itemgetter(*(header.index(name) if name in header else len(header) for name in wanted))
        for row in rows:
            if rows.line_num > LINES:
                raise InputError(f"{path}: more than {LINES:,} lines; divide it into several tables. {advice}")
            if any(map(str.strip, row)):
                if any(map(str.strip, row[len(header) :])):
                    width = f"{len(row)} cells for {len(header)} columns"
                    quotes = "put texts that have commas in quotes"
                    raise InputError(f"{path}:{rows.line_num}: {width}: {quotes}. {advice}")
                row += [""] * (len(header) + 1 - len(row))
                yield f"{path.name}:{rows.line_num}", [*map(clean, pick(row))]
    except csv.Error as error:
        quotes = "a quote that opens a cell must close it, and quotes inside are doubled"
        raise InputError(f"{path}:{rows.line_num}: not readable as csv ({error}): {quotes}. {advice}") from error


def _unpacked(path: Path, advice: str) -> bytes:
    content = runs.read_bytes(path, LARGEST)
    if path.suffix != ".gz":
        return content
    try:
        with gzip.open(io.BytesIO(content)) as file:
            content = file.read(LARGEST + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: damaged or cut off ({error}); delete it and download it again. {advice}") from error
    if len(content) > LARGEST:
        raise InputError(f"{path}: more than {LARGEST:,} bytes unpacked. {advice}")
    return content


def decode(content: bytes, name: str) -> str:
    """Text of a table or report: UTF-8, or else Windows-1252, with a warning; in one form, so that words compare.

    InputError, with the line and the ``name`` of the file or its kind, if ``content`` is neither or holds zero bytes.
    """
    content = content.removeprefix(codecs.BOM_UTF8)
    for encoding in ("utf-8", "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as error:
            place = error.start
            continue
        if (place := content.find(b"\0")) < 0:
            if encoding == "cp1252":
                warnings.warn(f"{name}: not UTF-8, read as Windows-1252; save it as UTF-8 to be sure", stacklevel=2)
            plain = _PRINT.sub(lambda match: unicodedata.normalize("NFKC", match[0]), _HIDDEN.sub("", text))
            return unicodedata.normalize("NFC", plain)
    line = content.count(b"\n", 0, place) + 1
    raise InputError(f"{name}, line {line}: neither UTF-8 nor Windows-1252 text; save it as UTF-8")


def read_json(path: Path, kind: type, advice: str, lists: Names = ()) -> Any:
    """Read the json file ``path`` that holds a ``kind`` of object, a dict or list, or raise InputError with ``advice``.

    ``lists`` are keys under which there must be lists, as in COCO's format.
    """
    try:
        content = runs.read_json(path, kind)
    except InputError as error:
        raise InputError(f"{error}; if it is damaged or cut off, delete it and download it again. {advice}") from error
    missing = [key for key in lists if not isinstance(content.get(key), list)]
    if missing:
        raise InputError(f"{path}: lists of {', '.join(missing)} are missing: not in the expected format. {advice}")
    return content
