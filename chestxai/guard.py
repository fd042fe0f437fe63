"""What stands between credentialed data and a page: images, report texts and identifiers are withheld, then looked for.

The terms of some sources (`sources.CREDENTIALED`) bind each user: nobody else may see their images, reports or
identifiers. The executed notebooks in ``runs/`` show them, for they are the researcher's own. What is written for
others goes through this module first: `withhold` takes out every output that shows such a thing and says so in its
place; `leaks` then lists what is still there. Scores, curves, counts and their tables stay as they are.

The rules, in doubt against showing:

- **Pictures.** Image, audio, video and PDF outputs, data URIs, ``<img>``, ``<svg>`` and the like in HTML; in a plotly
  figure image traces, layout images, and grids of numbers (the z of a heatmap or a contour) with at least `GRID` rows
  and columns: a matrix of findings or of layers by timesteps has fewer, a radiograph or a map of attention laid over it
  has more. A chart that was saved as PNG is a picture too: what it shows cannot be told, so draw it with plotly.
- **What cannot be read**: widgets, scripts other than plotly's figures, MIME types that are not known.
- **Report text.** A sentence of four or more words, or six consecutive words of a report, wherever they stand: case,
  punctuation and white space do not count, and the six words catch a text that was cut short. Numbers that a list
  gives its items and the blanks of de-identification do not count either.
- **Phrases** of a finding, of two or more words, that are more than the finding's name.
- **Both word by word**: in cells of one word each, along a row or down a column of a table, in a list of HTML or JSON,
  or in the pieces that a tokenizer makes of words ("p ##ne ##um", "large</w>", "Ġlarge"), which are put together. By
  chance neighbouring cells make a short phrase ("left", "effusion"): there, only four or more words count, unless the
  marks of a tokenizer are seen.
- **Identifiers.** Everything in the form of the source's own (`PATTERNS`), and those of the very studies.
- **The folder of the data.**

A whole output is withheld, not a part of it: the outline that is left of a picture is data as well. So is every
picture, that of a generated image too: a model may have learnt an image by heart. Text that a person wrote, in Markdown
or code, is never changed: it stays and is listed, and is for its author to take out. There, shorter sentences than six
words and phrases may stand ("the heart is enlarged"), and so may passages that reports of `COMMON` or more patients
share ("there is no pleural effusion or pneumothorax"): they are anyone's words.

One's own data (``folder``) go through it as well, unless the profile says ``data: {credentialed: false}``; with
``credentialed: true`` so do data that are open. What names a patient or a file is looked for whatever its letters and
signs, blanks too; but not where it has fewer than six characters, or no digit.

What the guard cannot see: a picture of numbers below `GRID`; one drawn as the points of a scatter, whose colours are
its pixels, or written as a table of numbers; text in other words or another language, or cut into pieces other than
words and a tokenizer's; and a table of one row a patient that names nobody. Aggregates of few patients are not looked
for either.
"""

from __future__ import annotations

import base64
import binascii
import copy
import functools
import hashlib
import html
import json
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import numpy as np

from chestxai import reports, sources
from chestxai.profiles import Profile
from chestxai.studies import FINDINGS, Study

#: A grid of numbers with at least so many rows and columns is a picture.
GRID = 24
#: A passage in reports of at least so many patients may stand in what a person wrote.
COMMON = 10


def _whole(pattern: str) -> re.Pattern[str]:
    """A pattern that is no part of a longer word or number; "10000032.0" is a whole number, "0.10000032" is not."""
    return re.compile(rf"(?<![0-9A-Za-z])(?<!\d\.)(?:{pattern})(?![0-9A-Za-z]|\.\d*[1-9])", re.IGNORECASE)


#: Source → name → what its identifiers look like.
PATTERNS: dict[str, dict[str, re.Pattern[str]]] = {
    "mimic": {
        "MIMIC subject_id": _whole(r"p?1\d{7}"),
        "MIMIC study_id": _whole(r"s?5\d{7}"),
        "MIMIC dicom_id": _whole(r"[0-9a-f]{8}(?:-[0-9a-f]{8}){4}"),
    },
    "vindr": {"VinDr image_id": _whole(r"[0-9a-f]{32}")},
    "padchest": {
        "PadChest ImageID": _whole(r"\d{20,}_[\w-]+(?:\.png)?"),
        "PadChest StudyID or PatientID": _whole(r"\d{30,50}"),
    },
    "chexlocalize": {"CheXpert patient": _whole(r"patient\d{5}")},
    # Nobody knows what those of one's own data look like: only the very ones are looked for.
    "folder": {},
}
# plotly names each figure by one; one in two hundred begins like a number of MIMIC's.
_UUID = re.compile(r"(?<![0-9a-f])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9a-f])", re.IGNORECASE)
_UID = {"DICOM UID": _whole(r"[12]\.\d+(?:\.\d+){4,}")}

_LEAST, _SENTENCE_WORDS, _WINDOW = 2, 4, 6
# Characters of the shortest identifier that is looked for.
_ID = 6
_SENTENCE = re.compile(r"[.!?:]+(?:\s|$)|\n\s*\n|\n\s*(?:\d{1,2}[.)]|[-*•])\s")
# PadChest writes a sentence a line.
_LINE = re.compile(r"[.!?:]+(?:\s|$)|\n\s*(?=[A-Z])")
# Between two of these no passage runs on: cells of a table, blocks of a page; and the edge of a row or a list.
_BREAK, _ROW = "\0", "\1"
_WORD = re.compile(rf"[^\W_]+|{_BREAK}")
_TOKEN = re.compile(r"[0-9a-z]+(?:[._-][0-9a-z]+)*")
_PATH = re.compile(r"[0-9a-z]+(?:[._/-][0-9a-z]+)*")
# An identifier that these find; any other is looked for as it is written, see `_any_literal`.
_PLAIN = re.compile(f"{_TOKEN.pattern}|{_PATH.pattern}")
_SUFFIX = re.compile(r"\.[a-z]\w{1,4}$")
_DIGITS = re.compile(r"\d+")
# What a longer word or number would go on with; where words are written without blanks, a letter may stand beside.
_MORE = r"[^\W_\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
_BEGINS = re.compile(rf"(?<!{_MORE})(?<!\d\.)")
_ENDS = re.compile(rf"(?!{_MORE}|\.\d*[1-9])")
# What tokenizers mark: a piece that goes on with a word, the end of a word, its beginning, and tokens that are none.
_SPECIAL = re.compile(r"\[(?:CLS|SEP|PAD|UNK|MASK|BOS|EOS)\]|<\|\w+\|>|</?s>|<(?:pad|unk|mask|bos|eos)>")
_MARK = re.compile(rf"##(?=\w)|</w>|[Ġ▁](?=\w)|{_SPECIAL.pattern}")
# One of these is in each mark; they are quicker to look for.
_SIGNS = ("##", "Ġ", "▁", "<|", "w>", "s>", "d>", "k>", "S]", "P]", "D]", "K]")
_NESTED = (dict, list)
_LETTER = re.compile(r"[^\W\d_]")
_GAP = re.compile(r"[\s'\",|]+(##(?=\w))?")
_EDGE = re.compile(r"</w>|[Ġ▁]")
_CHUNK = re.compile(r"[^\s,;|]+")
_TAG = re.compile(r"</?(?!w>|s>|pad>|unk>|mask>|bos>|eos>)[a-z][^<>]*>", re.IGNORECASE)
# Not at a decimal point.
_PARTS = re.compile(r"[_-]|(?<!\d)\.|\.(?!\d)")
_DATA_URI = re.compile(
    r"data:\s*(?:image|video|audio|application|font|text)/[\w.+-]+\s*[;,](?:base64,[\w+/=%-]*)?", re.IGNORECASE
)
# What `reports.clean` takes away besides: the numbers of a list, and the blanks of Open-i.
_CLEANED = re.compile(r"\d[.)]\s|XX")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_MARKDOWN_IMAGE = re.compile(r"!\[[^\]]*\]\s*[(\[]")
_ATTACHED = re.compile(r"!\[[^\]]*\]\(\s*<?attachment:[^)]*\)|<img\b[^>]*attachment:[^>]*>", re.IGNORECASE)

_PICTURES = frozenset("img svg canvas video audio picture object embed iframe frame image source".split())
_INLINE = frozenset(
    "a abbr b bdi bdo cite code data del dfn em font i ins kbd label mark q s samp small span strong sub sup time tt u "
    "var".split()
)
_ROWS = frozenset("table tr ul ol dl".split())
_CELLS = frozenset("table tr td th".split())
#: MIME types of text that can be read; anything else but plotly's figures is withheld.
_TEXTS = frozenset({"text/plain", "text/html", "text/markdown", "text/latex", "application/json"})
_GLUED = "application/papermill.record/"
_PLOTLY = "application/vnd.plotly."
_WIDGET = "application/vnd.jupyter.widget-"
_WRITTEN_BY_MACHINE = frozenset({"parameters", "injected-parameters"})


@dataclass(frozen=True)
class Leak:
    """Where something is left: ``cell`` counted from 1 (0: the notebook's metadata, or a page), the ``kind`` of place
    ("source", "attachment", "output", "metadata", "page"), and the name of ``what`` it is. Never the thing itself."""

    cell: int
    kind: str
    what: str

    def __str__(self) -> str:
        return f"{f'cell {self.cell}, ' if self.cell else ''}{self.kind}: {self.what}"


@dataclass(frozen=True, eq=False)
class Private:
    """What of a run's data may not be shown, as `private` collects it.

    Attributes:
        names: the sources.
        ids: identifiers of studies, patients and files, as `_folded` writes them.
        sentences, phrases: number of words → sorted hashes (uint64) of passages with so many.
        rare: those of the longest passages of ``sentences`` that reports of fewer than `COMMON` patients have.
        folders: absolute paths of the data.
    """

    names: tuple[str, ...] = ()
    ids: frozenset[str] = frozenset()
    sentences: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    phrases: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    rare: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    folders: tuple[str, ...] = ()

    @functools.cached_property
    def uuids(self) -> frozenset[str]:
        """Those in ``ids``."""
        return frozenset(uuid for name in self.ids for uuid in _UUID.findall(name))

    @functools.cached_property
    def literal(self) -> dict[str, set[tuple[int, int]]]:
        """Of ``ids`` that no token covers: longest number in it → where that begins, and how long the whole is."""
        found: dict[str, set[tuple[int, int]]] = defaultdict(set)
        for name in self.ids:
            numbers = [*_DIGITS.finditer(name)]
            if numbers and not _PLAIN.fullmatch(name):
                longest = max(numbers, key=lambda number: len(number[0]))
                found[longest[0]].add((longest.start(), len(name)))
        return dict(found)


# ---------------------------------------------------------------------------------------------------------------------
# What is private
# ---------------------------------------------------------------------------------------------------------------------


def closed(profile: Profile) -> tuple[str, ...]:
    """The sources of a profile that are credentialed, by their terms or because the profile says so.

    Raises:
        ValueError: the terms of a source are not known.
    """
    used, said = dict.fromkeys((profile.data.source, profile.boxes)), profile.data.credentialed
    if said:
        # Of a phantom nothing is anyone's.
        return tuple(name for name in used if name != "phantom")
    return tuple(name for name in used if sources.terms(name).credentialed and not (name == "folder" and said is False))


def of(profile: Profile, data: str | Path) -> Private:
    """What a run of ``profile`` may not show: every split of its credentialed sources, uncapped.

    Raises:
        ValueError: ``data`` is not said; a source cannot be read.
        FileNotFoundError: a source is not there; without it nothing can be looked for.
    """
    names = closed(profile)
    if names and not data:
        raise ValueError(
            f"pages of {', '.join(names)} are checked against the data before they are built: say where they are with "
            f"--data, the folder that holds {names[0]}/"
        )
    folders = [Path(data) / name for name in names]
    studies = (
        study
        for name, folder in zip(names, folders, strict=True)
        for split in ("train", "val", "test")
        for study in sources.load(name, folder, split, **profile.data.options.get(name, {}))
    )
    return private(studies, names, [data, *folders] if names else [])


def private(items: Iterable[Study | str], names: Sequence[str] = (), folders: Iterable[str | Path] = ()) -> Private:
    """Collect what may not be shown.

    Args:
        items: studies, or texts, each of a patient of its own.
        names: the sources; default: those of the studies. Of no known one, the patterns of all are looked for.
        folders: where the data are; whatever names such a path is withheld.
    """
    ids: set[str] = set()
    texts: dict[str, set[str]] = {}
    phrases: set[str] = set()
    seen: dict[str, None] = dict.fromkeys(names)
    for i, item in enumerate(items):
        if isinstance(item, str):
            texts.setdefault(f"text {i}", set()).add(item)
            continue
        if not names:
            seen.setdefault(item.source)
        texts.setdefault(item.patient, set()).add(item.report)
        phrases.update(f.phrase for f in item.findings)
        # Words with a year in them are none.
        named = [v for v in item.attributes.values() if isinstance(v, str) and not any(c.isspace() for c in v)]
        named += [item.id, item.patient, item.path.stem if item.path else ""]
        if item.source == "folder":
            # Named by the path of the image.
            named.append(_SUFFIX.sub("", item.id.rpartition("/")[2].lower()))
        ids.update(_folded(name) for name in named if _is_id(name))
    sentences, rare = _passages(texts.values())
    paths = {form for f in folders for form in (str(f), str(Path(f).absolute()), str(Path(f).resolve()))}
    return Private(
        tuple(seen),
        frozenset(ids),
        sentences,
        _phrases(phrases),
        rare,
        # "/data" alone is in too many other paths.
        tuple(sorted(p for p in paths if len(Path(p).parts) > 2)),
    )


def _is_id(text: str) -> bool:
    # Short ones ("12") are everywhere.
    return len(text) >= _ID and any(c.isdecimal() for c in text)


def _folded(text: str) -> str:
    """One spelling for all that look the same: in lower case, composed, with single blanks."""
    low = text.lower()
    return " ".join((low if low.isascii() else unicodedata.normalize("NFC", low)).split())


def _words(text: str) -> list[str]:
    return _WORD.findall((text if text.isascii() else unicodedata.normalize("NFC", text)).lower())


@functools.lru_cache(maxsize=2**20)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _hashed(words: Sequence[str]) -> np.ndarray:
    return np.fromiter(map(_hash, words), np.uint64, len(words))


def _windows(hashes: np.ndarray, n: int) -> np.ndarray:
    """A hash of every ``n`` consecutive words: uint64 ``(words - n + 1,)``, a polynomial modulo 2^64."""
    count = max(len(hashes) - n + 1, 0)
    total = np.zeros(count, np.uint64)
    for k in range(n):
        total = total * np.uint64(0x9E3779B97F4A7C15) + hashes[k : k + count]
    return total


def _passages(patients: Iterable[Iterable[str]]) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Passages of all reports, and the longest that few patients share; each patient's texts count once."""
    found: dict[int, list[np.ndarray]] = {n: [] for n in range(_SENTENCE_WORDS, _WINDOW + 1)}
    for texts in patients:
        own: dict[int, list[np.ndarray]] = {n: [] for n in found}
        for text in texts:
            # Also as the notebooks show it.
            for form in (text, reports.clean(text)) if _CLEANED.search(text) else (text,):
                own[_WINDOW].append(_windows(_hashed(_words(form)), _WINDOW))
            for sentence in {*_SENTENCE.split(text), *_LINE.split(text)}:
                words = _words(sentence)
                if len(words) in found:
                    own[len(words)].append(_windows(_hashed(words), len(words)))
        for n, parts in own.items():
            if parts:
                found[n].append(np.unique(np.concatenate(parts)))
    known: dict[int, np.ndarray] = {}
    for n, parts in found.items():
        known[n], counts = np.unique(np.concatenate(parts) if parts else np.zeros(0, np.uint64), return_counts=True)
    # The counts of the last, which are the longest.
    return known, {_WINDOW: known[_WINDOW][counts < COMMON]}


def _phrases(phrases: Iterable[str]) -> dict[int, np.ndarray]:
    found: dict[int, list[np.ndarray]] = {n: [] for n in range(_LEAST, _WINDOW + 1)}
    for phrase in phrases:
        words = _words(phrase)
        n = min(len(words), _WINDOW)
        plain = " ".join(phrase.split())
        if n >= _LEAST and not any(_words(reports.name_in(plain, name)) == words for name in FINDINGS):
            found[n].append(_windows(_hashed(words), n))
    return {n: np.unique(np.concatenate(parts)) for n, parts in found.items() if parts}


# ---------------------------------------------------------------------------------------------------------------------
# Withholding, and looking again
# ---------------------------------------------------------------------------------------------------------------------


def withhold(notebook: Any, known: Private | Iterable[Study | str]) -> Any:
    """A copy of an executed notebook in which one line stands for whatever may not be shown.

    Outputs, attachments and metadata are withheld, and of cells tagged ``parameters`` or ``injected-parameters`` the
    lines that name data. Other sources stay, see `leaks`. A notebook that shows nothing private comes back equal.

    Args:
        notebook: of nbformat 4.
        known: of `private` or `of`; or the studies or texts themselves.
    """
    known = known if isinstance(known, Private) else private(known)
    shown = copy.deepcopy(notebook)
    _trim(shown.metadata, known)
    for cell in shown.cells:
        _trim(cell.metadata, known)
        if cell.get("attachments"):
            line = f"*{_instead(['attachment'], known)}*"
            cell.source, replaced = _ATTACHED.subn(lambda _, line=line: line, cell.source)
            if not replaced:
                cell.source = f"{cell.source}\n\n{line}"
            del cell["attachments"]
        if cell.cell_type != "code":
            continue
        if _WRITTEN_BY_MACHINE & {*cell.metadata.get("tags", [])}:
            lines = cell.source.split("\n")
            told = [_in_text(line, known, written=True) for line in lines]
            cell.source = "\n".join(
                f"# {_instead(what, known)}" if what else line for line, what in zip(lines, told, strict=True)
            )
        outputs = []
        for group in _grouped(cell.outputs):
            what = _in_outputs(group, known)
            outputs += [_line(_instead(what, known))] if what else group
        cell.outputs = outputs
    return shown


def leaks(shown: Any, known: Private | Iterable[Study | str]) -> list[Leak]:
    """What a notebook, or the HTML or text of a page, still shows; in the order of its cells, each thing once a place.

    Args:
        shown: a notebook of nbformat 4, or text.
        known: as in `withhold`.
    """
    known = known if isinstance(known, Private) else private(known)
    if isinstance(shown, str):
        return [Leak(0, "page", what) for what in _in_html(shown, known, page=True)]
    found = [Leak(0, "metadata", what) for what in _in_metadata(shown.metadata, known)]
    for i, cell in enumerate(shown.cells, start=1):
        found += [Leak(i, "metadata", what) for what in _in_metadata(cell.metadata, known)]
        found += [Leak(i, "source", what) for what in _in_text(cell.source, known, written=True)]
        if cell.get("attachments"):
            found.append(Leak(i, "attachment", "picture"))
        for group in _grouped(cell.get("outputs", [])):
            found += [Leak(i, "output", what) for what in _in_outputs(group, known)]
    return list(dict.fromkeys(found))


def _instead(what: Sequence[str], known: Private) -> str:
    held = [f"{name}: {sources.terms(name).licence}" for name in known.names if name in sources.CREDENTIALED]
    terms = f" ({'; '.join(held)})" if held else ""
    return f"Withheld ({', '.join(what)}): not to be passed on{terms}."


def _line(text: str) -> Any:
    return nbformat.v4.new_output("display_data", data={"text/plain": text})


def _grouped(outputs: Sequence[Any]) -> Iterator[list[Any]]:
    """Outputs one by one, but a stream's pieces together: a sentence may be cut in two anywhere."""
    group: list[Any] = []
    for output in outputs:
        same = output.output_type == "stream" and group and group[-1].get("name") == output.name
        if group and not same:
            yield group
            group = []
        group.append(output)
    if group:
        yield group


def _trim(metadata: Any, known: Private) -> None:
    for key in [*metadata]:
        if _in_metadata({key: metadata[key]}, known):
            del metadata[key]


def _in_metadata(metadata: dict[str, Any], known: Private) -> list[str]:
    found = ["widget"] if "widgets" in metadata else []
    return found + _in_json({k: v for k, v in metadata.items() if k != "widgets"}, known)


def _in_outputs(group: Sequence[Any], known: Private) -> list[str]:
    """Names of what one output shows, or the pieces of one stream."""
    output = group[0]
    if output.output_type == "stream":
        return _in_text("".join(_joined(part.text) for part in group), known)
    if output.output_type == "error":
        text = "\n".join([output.ename, output.evalue, *output.traceback])
        return _in_text(text, known)
    found = _in_json(output.get("metadata", {}), known)
    for mime, value in output.data.items():
        kind = mime.removeprefix(_GLUED)
        if kind.startswith(("image/", "audio/", "video/", "application/pdf")):
            found.append("picture")
        elif kind.startswith(_WIDGET):
            found.append("widget")
        elif kind.startswith(_PLOTLY) or kind == "application/json":
            found += _in_json(value, known)
        elif kind not in _TEXTS:
            found.append("output of unknown kind")
        elif kind in ("text/html", "text/markdown"):
            text = _joined(value)
            found += _in_html(text, known)
            if kind == "text/markdown" and _MARKDOWN_IMAGE.search(text):
                found.append("picture")
        else:
            found += _in_text(_joined(value), known)
    return list(dict.fromkeys(found))


def _joined(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# Reading text, HTML and JSON
# ---------------------------------------------------------------------------------------------------------------------


def _in_text(text: str, known: Private, written: bool = False, runs: Iterable[Sequence[str]] = ()) -> list[str]:
    """Names of what a plain text shows.

    Args:
        text: cells and blocks apart by `_BREAK`.
        written: by a person, who may use anyone's words.
        runs: cells that are read on besides.
    """
    text = _ANSI.sub("", text)
    text = _UUID.sub(lambda uuid: uuid[0] if uuid[0].lower() in known.uuids else " ", text)
    text, pictures = _DATA_URI.subn(" ", text)
    found = ["picture"] if pictures else []
    if any(folder in text for folder in known.folders):
        found.append("data folder")
    found += _identifiers(text, known)
    if written:
        return found + _passages_in(text, {"report text": known.rare})
    passages = {"report text": known.sentences, "phrase": known.phrases}
    found += _passages_in(text, passages)
    if not {*passages} <= {*found}:
        plain, pieced = _read_on([*runs, *_lines(text)])
        long = {what: {n: v for n, v in of.items() if n >= _SENTENCE_WORDS} for what, of in passages.items()}
        found += [*_passages_in(plain, long), *_passages_in(pieced, passages)]
    return list(dict.fromkeys(found))


def _passages_in(text: str, passages: dict[str, dict[int, np.ndarray]]) -> list[str]:
    """Names of those passages, by number of words, that a text has."""
    hashes, found = _hashed(_words(text)), set()
    for n in sorted({n for by_length in passages.values() for n in by_length}):
        # In order they are found much faster.
        values = np.sort(_windows(hashes, n))
        found |= {what for what, of in passages.items() if what not in found and n in of and _any_among(values, of[n])}
    return [what for what in passages if what in found]


def _read_on(runs: Iterable[Sequence[str]]) -> tuple[str, str]:
    """Cells of one word each as running text: those without the marks of a tokenizer, and those with, put together.

    A cell of several words ends what is read on.
    """
    runs, plain, pieced = [*runs], [], []
    lines = [" ".join(run) for run in runs]
    signs = _may_be_marked(_BREAK.join(lines))
    for run, line in zip(runs, lines, strict=True):
        marked = signs and _MARK.search(line) is not None
        if not marked and (len(run) < 2 or not _LETTER.search(line)):
            continue
        line = " ".join(
            cell if len(cell.split(None, 1)) < 2 or (marked and _MARK.search(cell)) else _BREAK for cell in run
        )
        if marked:
            pieced += _put_together(line)
        else:
            plain.append(line)
    between = f" {_BREAK} "
    return between.join(plain), between.join(pieced)


def _may_be_marked(text: str) -> bool:
    return any(sign in text for sign in _SIGNS)


def _put_together(text: str) -> list[str]:
    """Readings of a text in a tokenizer's pieces: by the marks of pieces that go on, and by those of words' edges."""
    text = _GAP.sub(lambda gap: "" if gap[1] else " ", _SPECIAL.sub(_ROW, text)).replace("##", "")
    readings = [_EDGE.sub(" ", text).replace(_ROW, " ")]
    if _EDGE.search(text):
        readings.append(_EDGE.sub(" ", _GAP.sub("", text)).replace(_ROW, " "))
    return readings


def _lines(text: str) -> Iterator[Sequence[str]]:
    """Cells of plain text to read on: blocks in a tokenizer's pieces; of tables the columns, and rows that are broken.

    What stands in a column begins or ends at the same place of its line; rows that pandas breaks have the same label.
    """
    marked = _may_be_marked(text)
    for block in text.split(_BREAK):
        if marked and _MARK.search(block):
            yield [block]
        if "\n" not in block.strip():
            continue
        # Places where something begins are counted from 0, those where it ends from -1 down.
        cells: dict[int, list[str]] = defaultdict(list)
        rows: dict[str, list[str]] = defaultdict(list)
        for line in block.split("\n"):
            bare = line.strip()
            if "  " in bare or bare[:1].isdigit() or bare[:1] == "|":
                for chunk in _CHUNK.finditer(line):
                    cells[chunk.start()].append(chunk[0])
                    cells[~chunk.end()].append(chunk[0])
                label, _, rest = bare.partition("  ")
                rows[label].append(rest)
        yield from cells.values()
        yield from (_CHUNK.findall(" ".join(parts)) for parts in rows.values() if len(parts) > 1)


def _any_among(values: np.ndarray, known: np.ndarray) -> bool:
    """Whether the sorted ``known`` has any of ``values``."""
    if not len(known):
        return False
    return bool((known[np.searchsorted(known, values).clip(max=len(known) - 1)] == values).any())


def _identifiers(text: str, known: Private) -> list[str]:
    groups = [PATTERNS[name] for name in known.names if name in PATTERNS] or [*PATTERNS.values()]
    found = [name for group in (*groups, _UID) for name, pattern in group.items() if pattern.search(text)]
    if known.ids:
        low = text.lower()
        # Paths, too: a study of one's own data is named by the path of its image.
        for token in {*_TOKEN.findall(low), *(_PATH.findall(low) if "/" in low else ())}:
            if len(token) < _ID:
                continue
            forms = {token, token.rpartition(".")[0], *_PARTS.split(token)}
            # The folders above it may be written, too.
            forms.update(token[slash.end() :] for slash in re.finditer("/", token))
            # MIMIC writes p and s before the number of a patient and of a study.
            if not known.ids.isdisjoint(forms | {form[1:] for form in forms if form[:1] in "ps"}):
                return [*found, "identifier of a study or patient"]
    return [*found, "identifier of a study or patient"] if _any_literal(text, known) else found


def _any_literal(text: str, known: Private) -> bool:
    """Whether a text has one of the identifiers that no token covers; they are found by the longest number in them."""
    if not known.literal:
        return False
    text = _folded(text)
    if known.literal.keys().isdisjoint(_DIGITS.findall(text)):
        return False
    for number in _DIGITS.finditer(text):
        for place, length in known.literal.get(number[0], ()):
            start, end = number.start() - place, number.start() - place + length
            if start < 0 or (name := text[start:end]) not in known.ids:
                continue
            # A sign at its edge ends a word by itself.
            begins = not name[0].isalnum() or _BEGINS.match(text, start)
            if begins and (not name[-1].isalnum() or _ENDS.match(text, end)):
                return True
    return False


class _Reader(HTMLParser):
    """The text of HTML as a reader sees it, what its tags say besides, its scripts, and whether it shows a picture."""

    def __init__(self, page: bool) -> None:
        super().__init__(convert_charrefs=True)
        self.page, self.parts, self.apart, self.scripts, self.picture, self.inside = page, [], [], [], False, ""
        # Tables as rows of cells, each by its place in ``edges``, which has the ``parts`` where cells begin and end.
        self.tables: list[list[list[int]]] = []
        # Those in which we are, the innermost last.
        self.open: list[list[list[int]]] = []
        self.edges: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = [value for _, value in attrs if value]
        self.inside = tag if tag in ("script", "style") else ""
        # A finished page has pictures of its own.
        static = self.page and any("_static/" in value for value in values)
        self.picture |= tag in _PICTURES and not static
        self.picture |= any(_DATA_URI.search(value) for value in values)
        if not (self.page and tag in ("script", "link", "meta")):
            self.apart += values
        if tag == "script":
            self.scripts.append((dict(attrs).get("type") or "", dict(attrs).get("src") or "", []))
        if tag == "table":
            self.open.append([])
            self.tables.append(self.open[-1])
        elif tag == "tr" and self.open:
            self.open[-1].append([])
        if tag in _CELLS:
            if tag in ("td", "th") and self.open and self.open[-1]:
                self.open[-1][-1].append(len(self.edges))
            self.edges.append(len(self.parts))
        self.between(tag)

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""
        if tag == "table" and self.open:
            self.open.pop()
        if tag in _CELLS:
            self.edges.append(len(self.parts))
        self.between(tag, end=True)

    def between(self, tag: str, end: bool = False) -> None:
        if tag in _ROWS:
            self.parts.append(_BREAK + _ROW + _BREAK)
        elif tag == "w" and end:
            # No tag, but the end of a word as CLIP's tokenizer writes it.
            self.parts.append("</w> ")
        elif tag not in _INLINE:
            self.parts.append(" " if tag in ("br", "wbr") and not end else _BREAK)

    def runs(self) -> Iterator[list[str]]:
        """Blocks and cells in their order, as far as a row or a list goes; and cells down each column."""
        for row in "".join(self.parts).split(_ROW):
            yield row.split(_BREAK)
        edges = [*self.edges, len(self.parts)]
        for table in self.tables:
            # From the right: a label that stands for several rows is in the first of them only.
            for i in range(max(map(len, table), default=0)):
                cells = (row[-1 - i] for row in table if len(row) > i)
                yield ["".join(self.parts[edges[k] : edges[k + 1]]).replace(_BREAK, " ") for k in cells]

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1][2].append(data)
        elif self.inside == "style":
            self.picture |= not self.page and _DATA_URI.search(data) is not None
        else:
            self.parts.append(data)

    def handle_comment(self, data: str) -> None:
        self.apart.append(data)

    handle_pi = unknown_decl = handle_comment


def _in_html(text: str, known: Private, page: bool = False) -> list[str]:
    """Names of what HTML shows; a ``page`` is a whole document, whose own scripts and icons are passed over."""
    found, text, runs = _read(text, known, page)
    return list(dict.fromkeys([*found, *_in_text(text, known, runs=runs)]))


def _read(text: str, known: Private, page: bool = False) -> tuple[list[str], str, Iterator[list[str]]]:
    """Of HTML names of the pictures and of what its scripts show, its text, and the cells that are read on."""
    reader = _Reader(page)
    reader.feed(text)
    reader.close()
    found = ["picture"] if reader.picture else []
    for kind, address, parts in reader.scripts:
        found += _in_script(kind, address, "".join(parts), known, page)
    return found, f" {_BREAK} ".join(["".join(reader.parts), *reader.apart]), reader.runs()


_CALL = re.compile(r"Plotly\.(?:newPlot|react|plot|update|restyle|relayout|animate|addFrames|addTraces)\s*\(")
_CONFIG = re.compile(r"\s*(?:window\.PlotlyConfig\s*=\s*\{MathJaxConfig:\s*'local'\};?)?\s*")


def _in_script(kind: str, address: str, text: str, known: Private, page: bool) -> list[str]:
    if kind.startswith(_WIDGET):
        return ["widget"]
    calls, found, rest, place = [*_CALL.finditer(text)], [], [], 0
    # plotly.js itself names these functions, but never with an argument in JSON.
    read = [(call, *_arguments(text, call.end())) for call in calls]
    for call, values, end in read:
        found += _in_json(values, known)
        rest.append(text[place : call.end()])
        place = end
    plain = any(values for _, values, _ in read)
    if plain or not page:
        found += _in_text(f" {_BREAK} ".join([*rest, text[place:]]), known)
    if not page and (address or not (plain or _CONFIG.fullmatch(text)) or not all(values for _, values, _ in read)):
        found.append("script")
    return found


_SPACE = re.compile(r"(?:[\s,]|'[^'\\]*')*")


def _arguments(text: str, place: int) -> tuple[list[Any], int]:
    """The arguments in JSON of a call whose parenthesis opens before ``place``, and where they end.

    plotly writes the name of the figure's element in single quotes where it adds the frames of an animation.
    """
    values: list[Any] = []
    while True:
        start = _SPACE.match(text, place).end()
        try:
            value, place = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            return values, place
        values.append(value)


def _in_json(value: Any, known: Private) -> list[str]:
    """Names of what JSON shows: its texts, its whole numbers, and pictures in the manner of plotly."""
    found = ["picture"] if isinstance(value, _NESTED) and any(map(_is_picture, _dicts(value))) else []
    texts = []
    runs = [[*map(_bare, run)] for run in _runs(value) if len(run) > 1]
    for text in _texts(value):
        if "<" in text or "&" in text:
            shown, text, inner = _read(text, known)
            found += shown
            runs += inner
        texts.append(text)
    found += _in_text(f" {_BREAK} ".join(texts), known, runs=runs) if texts else []
    return list(dict.fromkeys(found))


def _bare(text: str) -> str:
    """A text as plotly shows it, without tags; what a tokenizer marks stays."""
    return html.unescape(_TAG.sub(" ", text)) if "<" in text or "&" in text else text


def _runs(value: Any) -> Iterator[list[str]]:
    """Texts of JSON that may be read on: those of each list and object, its keys, and those of one key or place of the
    lists and objects inside it."""
    if not isinstance(value, _NESTED):
        return
    if isinstance(value, dict):
        yield [*map(str, value)]
    items = [*value.values()] if isinstance(value, dict) else value
    yield [item for item in items if isinstance(item, str)]
    across: dict[Any, list[str]] = defaultdict(list)
    for item in items:
        if isinstance(item, _NESTED):
            for place, inner in item.items() if isinstance(item, dict) else enumerate(item):
                if isinstance(inner, str):
                    across[place].append(inner)
            yield from _runs(item)
    yield from across.values()


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, _NESTED):
            yield from _dicts(item)


def _is_picture(node: dict[str, Any]) -> bool:
    images = node.get("images")
    if isinstance(images, list) and any(isinstance(image, dict) and image.get("source") for image in images):
        return True
    if node.get("type") == "image" and ("source" in node or "z" in node):
        return True
    flat = str(node.get("type", "")).startswith(("heatmap", "contour", "histogram2d"))
    return any(_is_grid(node[key], flat) for key in ("z", "surfacecolor") if key in node)


def _is_grid(z: Any, flat: bool) -> bool:
    """Whether numbers, as lists or as plotly packs them, are a grid of at least `GRID` × `GRID`."""
    if isinstance(z, dict):
        values = _unpacked(z)
        if values is None:
            return "bdata" in z
        shape = [int(n) for n in re.findall(r"\d+", str(z.get("shape", "")))] or [values.size]
        return (len(shape) >= 2 and min(shape[:2]) >= GRID) or (flat and len(shape) == 1 and shape[0] >= GRID**2)
    if not isinstance(z, list):
        return False
    rows = [row for row in z if isinstance(row, list | dict)]
    if not rows:
        return flat and len(z) >= GRID**2
    wide = sum(isinstance(row, list) and len(row) >= GRID for row in rows) >= GRID
    return wide or any(_is_grid(row, False) for row in rows)


def _unpacked(node: dict[str, Any]) -> np.ndarray | None:
    """The numbers of plotly's ``{"dtype": "f8", "bdata": base64}``; None where it is none."""
    try:
        kind = np.dtype(f"<{node['dtype']}")
        return np.frombuffer(base64.b64decode(node["bdata"], validate=True), kind) if kind.kind in "iuf" else None
    except (KeyError, TypeError, ValueError, binascii.Error):
        return None


def _texts(value: Any) -> Iterator[str]:
    """Every text and key of JSON, and every whole number large enough for an identifier."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        values = _unpacked(value) if "bdata" in value else None
        if values is not None:
            large = values[np.isfinite(values) & (np.abs(values) >= 1e5)]
            yield from (str(int(v)) for v in np.unique(large) if v == int(v))
        for key, item in value.items():
            yield str(key)
            if not (key == "bdata" and values is not None):
                yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            # Most are texts or small numbers, in long lists.
            if isinstance(item, str):
                yield item
            elif not (isinstance(item, (int, float)) and -1e5 < item < 1e5):
                yield from _texts(item)
    elif isinstance(value, int | float) and math.isfinite(value) and abs(value) >= 1e5 and value == int(value):
        yield str(int(value))
