"""Keeps images, report texts and identifiers of credentialed data off the published pages: deny by default.

The terms of some sources bind each user; what is published goes through this module. Code cells tagged ``aggregate``
(scores, curves, counts) keep their outputs; a notice replaces all others, and attachments and pictures in Markdown.
What remains is checked, and so are the built pages: `withhold` replaces the outputs of a cell that shows something,
`leaks` lists what is left, which stops the build. What a person wrote never changes. Refused are

- pictures, also those made of numbers, widgets, foreign scripts and unknown MIME types (`chestxai.book.reading`);
- report text: a sentence of four or more words, six words in a row, or a phrase of two or more, across numbers, cells
  and outputs. In what a person wrote only six words count, and only if fewer than `COMMON` patients have them;
- identifiers: whatever has the form of the source's own (`sources.Card.identifiers`), and those of the studies loaded,
  also with letters around them, grouped, joined or cut; of six characters or more, with a digit;
- the folder of the data.

Your own data (``folder``) count as credentialed unless the profile says ``data: {credentialed: false}``. The guard
cannot see paraphrases, translations, letters that look alike, rare encodings, images drawn as curves, and aggregates of
few patients; whoever tags a cell can.
"""

import bisect
import copy
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import numpy as np
from bs4 import BeautifulSoup

from chestxai import reports, sources
from chestxai.book.reading import PICTURE_MARKDOWN, Reading, decode, read, read_outputs
from chestxai.profiles import Profile
from chestxai.runs import InputError
from chestxai.studies import FINDINGS, Study

#: Tag of the code cells whose outputs may be published.
AGGREGATE = "aggregate"
#: A passage in reports of at least this many patients may stand in what a person wrote.
COMMON = 10

_UID = {"DICOM UID": r"[12]\.\d+(?:\.\d+){4,}"}
# Names of plotly's figures and of runs; some have eight digits in a row.
_HASH = re.compile(
    r"(?<![^\W_])(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?=\d*[a-f])[0-9a-f]{16,})(?![^\W_])", re.IGNORECASE
)
_INTEGER = re.compile(r"(?<!\d)(?<!\d\.)\d+(?!\d|\.\d*[1-9])")
_GROUPED = re.compile(r"\d{1,3}(?: \d{3})+(?!\d)|\d+(?:[^\w\s]\s*\d+|_\d+)+|(?<!\d)\d(?:\s\d)+(?!\d)")
_CUT = re.compile(r"(?<!\d)(?=(\d{2,}\s\d{2,}))")
# Not the commas of a list: [50,100,150] and [1.5,123.4] are several numbers.
_THOUSANDS = re.compile(r"(?<![\[\d,.])\d{1,3}(?:[,_'’]\d{3})+(?!\d|,\d|\])")
_TOKEN = re.compile(r"[^\W_]*[^\W\d_][^\W_]*")
# Characters of the shortest identifier, and of a part that gives a long one away.
_ID, _PART = 6, 12

# Words of a sentence and of a window; letters of the shortest and of the longest passage.
_SENTENCE, _WINDOW, _SHORT, _LONG = 4, 6, 8, 120
# A script without blanks between words (Thai, Chinese, Japanese) counts by its letters.
_WORD = re.compile(r"[^\W\d_\u0e00-\u1dff\u2e80-\ud7ff]+|[^\W\d_]")
# PadChest writes a sentence a line.
_STOPS = [re.compile(rf"[.!?:]+(?:\s|$)|{end}") for end in (r"\n\s*\n|\n\s*(?:\d\d?[.)]|[-*•])\s", r"\n\s*(?=[A-Z])")]
_OPEN = {word for name in FINDINGS for word in name.lower().split()} | {"no", "and", "or", "left", "right", "bilateral"}

# A whole directive of MyST, and the pictures that ship with the book.
_DIRECTIVE = re.compile(r"^([`:]{3,})\{(?:image|figure)\}(?s:.*?)^\1[ \t]*$", re.MULTILINE)
_OWN = re.compile(r"(?:!\[[^\]]*\]\(|\{(?:image|figure)\} )(?:\.\./)*(?:_static/[\w-]+|data/overview(?:-dark)?)\.\w+")


class Leak(NamedTuple):
    """``what`` is left in ``cell`` (from 1; 0: metadata or a page), in which ``kind`` of place."""

    cell: int
    kind: str
    what: str

    def __str__(self) -> str:
        return f"{f'cell {self.cell}, ' if self.cell else ''}{self.kind}: {self.what}"


@dataclass(frozen=True, eq=False)
class Private:
    """What of a run's data may not be shown, as `private` collects it."""

    names: tuple[str, ...]  #: sources
    folders: tuple[str, ...]  #: paths of the data
    patterns: dict[str, re.Pattern[str]]  #: of identifiers, by name
    words: set[str] = field(repr=False)  #: identifiers that count as whole words or numbers only: all digits, or few
    #: All others, or their parts of `_PART` characters, which count anywhere; by length.
    parts: dict[int, set[str]] = field(repr=False)
    heads: set[str] = field(repr=False)  #: first `_SHORT` letters of all passages
    passages: np.ndarray = field(repr=False)  #: sorted hashes of the letters of passages
    rare: np.ndarray = field(repr=False)  #: and of those that few patients share


def closed(profile: Profile) -> tuple[str, ...]:
    """Sources of a profile that are credentialed, by their terms or because the profile says so."""
    used, stated = dict.fromkeys((profile.data.source, profile.boxes)), profile.data.credentialed
    if stated:
        return tuple(name for name in used if name != "phantom")
    return tuple(n for n in used if sources.terms(n).credentialed and not (n == "folder" and stated is False))


def of(profile: Profile, data: str | Path) -> Private:
    """What a run may not show: every split of the ``profile``'s credentialed sources, uncapped; no image is read.

    ``data`` is the folder that holds one sub-folder per source.
    """
    names = closed(profile)
    if names and not data:
        raise InputError(
            f"pages of {', '.join(names)} are checked against the data before they are built: say where they are with "
            f"--data, the folder that holds {names[0]}/"
        )
    studies = (
        study
        for name in names
        for split in ("train", "val", "test")
        for study in sources.load(name, Path(data) / name, split, **profile.data.options.get(name, {}))
    )
    return private(studies, names, [data, *(Path(data) / name for name in names)] if names else [])


def private(items: Iterable[Study | str], names: Sequence[str] = (), folders: Iterable[str | Path] = ()) -> Private:
    """Collect what may not be shown of ``items``, which are studies, or texts, each of a patient of its own.

    ``names`` are sources whose identifiers are looked for by their form; default: those of the studies, or all. Of the
    ``folders`` of the data "/data" and the like are left out, as they begin many other paths.
    """
    ids, phrases, texts, seen = set(), set(), defaultdict(set), dict.fromkeys(names)
    for i, item in enumerate(items):
        if isinstance(item, str):
            texts[f"text {i}"].add(item)
            continue
        if not names:
            seen.setdefault(item.source)
        texts[item.patient].add(item.report)
        phrases.update(finding.phrase for finding in item.findings)
        # Attributes with spaces are words, not names.
        ids.update(v for v in item.attributes.values() if isinstance(v, str) and not any(c.isspace() for c in v))
        ids.update((item.id, Path(item.id).stem, item.patient, item.path.stem if item.path else ""))
    heads: set[str] = set()

    def hashed(passages: Iterable[Sequence[str]], least: int) -> set[int]:
        letters = {"".join(words) for words in passages if len(words) >= least and not _OPEN.issuperset(words)}
        heads.update(text[:_SHORT] for text in letters)
        return {hash(text) for text in letters if len(text) >= _SHORT}

    # The name of a finding alone is no report text.
    named = {p for p in phrases for n in FINDINGS if _words(reports.name_in(" ".join(p.split()), n)) == _words(p)}
    windows, sentences = [], hashed((_words(p)[:_WINDOW] for p in phrases - named), 2)
    for reported in texts.values():
        # A patient's passages count once.
        own: set[int] = set()
        # Notebooks show reports without the blanks of de-identification.
        for text in map(decode, reported | {reports.clean(report) for report in reported if "XX" in report}):
            words = _WORD.findall(text.lower())
            lengths = (_SHORT if len(word) == 1 and word >= "\u0e00" else _WINDOW for word in words)
            own |= hashed((words[i : i + n] for i, n in enumerate(lengths)), _WINDOW)
            parts = (_WORD.findall(part.lower()) for stops in _STOPS for part in stops.split(text))
            sentences |= hashed((part for part in parts if len(part) <= _WINDOW), _SENTENCE)
        windows.append(np.fromiter(own, np.int64, len(own)))
    shared, counts = np.unique(np.concatenate([*windows, np.zeros(0, np.int64)]), return_counts=True)
    groups = [sources.terms(name).identifiers for name in seen or sources.SOURCES]
    paths = {form for f in folders for form in (str(f), str(Path(f).absolute()), str(Path(f).resolve()))}
    return Private(
        tuple(seen),
        tuple(sorted(decode(path).lower() for path in paths if len(Path(path).parts) > 2)),
        {name: _bounded(pattern) for group in (*groups, _UID) for name, pattern in group.items()},
        *_forms(ids),
        heads,
        np.union1d(shared, np.fromiter(sentences, np.int64, len(sentences))),
        shared[counts < COMMON],
    )


def _words(text: str) -> list[str]:
    return _WORD.findall(decode(text).lower())


def _bounded(pattern: str) -> re.Pattern[str]:
    """Digits may stand between letters; "10000032.0" is a whole number, "0.10000032" is not."""
    edge = r"[^\W_]" if "a-f" in pattern else r"\d"
    return re.compile(rf"(?<!{edge})(?<!\d\.)(?:{pattern})(?!{edge}|\.\d*[1-9])", re.IGNORECASE)


def _alphanumeric(text: str) -> str:
    return re.sub(r"[\W_]+", "", decode(text).lower())


def _forms(names: Iterable[str]) -> tuple[set[str], dict[int, set[str]]]:
    """``words`` and ``parts`` of `Private`."""
    words, parts = set(), defaultdict(set)
    for form in map(_alphanumeric, names):
        digits = sum(map(str.isdecimal, form))
        if len(form) < _ID or not digits:
            continue
        # MIMIC writes s or p before a number, or not.
        if match := re.fullmatch(r"[a-z]{1,3}(\d{6,})", form):
            words.add(match[1])
        if len(form) < _PART and (digits == len(form) or (digits < 3 and len(form) <= _SHORT)):
            words.add(form)
            continue
        for end in (*range(_PART, len(form), _PART), len(form)):
            part = form[max(end - _PART, 0) : end]
            if any(map(str.isdecimal, part)):
                parts[len(part)].add(part)
    return words, parts


def _digits(number: re.Match[str]) -> str:
    return re.sub(r"\D", "", number[0])


def _identifiers(text: str, known: Private) -> list[str]:
    """Names of the identifiers and folders in a folded text."""
    found = ["data folder"] if any(folder in text for folder in known.folders) else []
    plain = _HASH.sub(" ", text)
    for name, pattern in known.patterns.items():
        versions = (text,) if "a-f" in pattern.pattern else (plain, _THOUSANDS.sub(_digits, plain))
        found += [name] if any(map(pattern.search, versions)) else []
    integers = [n for n in _INTEGER.findall(text) if len(n) < _LONG]
    joined = [n[cut] for n in integers for k in range(_ID, len(n) - _ID + 1) for cut in (slice(k), slice(-k, None))]
    grouped = [*map(_digits, _GROUPED.finditer(text)), *("".join(cut[1].split()) for cut in _CUT.finditer(text))]
    signs = _alphanumeric(text)
    if not known.words.isdisjoint((*integers, *joined, *grouped, *_TOKEN.findall(text))) or any(
        signs[i : i + n] in parts for n, parts in known.parts.items() for i in range(len(signs) - n + 1)
    ):
        found.append("identifier of a study or patient")
    return found


def _passages(words: Sequence[str], known: np.ndarray, heads: set[str]) -> list[tuple[int, int]]:
    """First and last word of each stretch whose letters, however they are cut into words, are a known passage."""
    text, ends = "".join(words), [*accumulate(map(len, words))]
    spans, hashes = [], []
    for first, word in enumerate(words):
        start = ends[first] - len(word)
        if text[start : start + _SHORT] in heads:
            lasts = range(first, bisect.bisect(ends, start + _LONG))
            spans += [(first, last) for last in lasts]
            hashes += [hash(text[start : ends[last]]) for last in lasts]
    # np.isin would sort all that is known.
    near = np.searchsorted(known, np.array(hashes, np.int64)).clip(max=len(known) - 1)
    return [span for span, i, h in zip(spans, near, hashes, strict=True) if len(known) and known[i] == h]


def _check(places: Sequence[tuple[int, str, Reading]], known: Private) -> list[list[str]]:
    """What each place (cell, kind, reading) shows."""
    found = [[*reading.found] for _, _, reading in places]
    for what, (_, kind, reading) in zip(found, places, strict=True):
        for text in reading.texts:
            what += _identifiers(text, known)
            passages = known.rare if kind == "source" else known.passages
            what += ["report text"] if _passages(_WORD.findall(text), passages, known.heads) else []
    # Text that runs on from one output into the next, from one source into the next, or between the two.
    outputs = [i for i, (_, kind, _) in enumerate(places) if kind == "output"]
    written = [i for i, (_, kind, _) in enumerate(places) if kind == "source"]
    orders = (outputs, known.passages), (written, known.rare), (sorted(outputs + written), known.passages)
    for order, passages in orders:
        chain = [(i, word) for i in order for word in _WORD.findall(places[i][2].texts[0])]
        for first, last in _passages([word for _, word in chain], passages, known.heads):
            owners = {i for i, _ in chain[first : last + 1]}
            for i in (owners if order is written else owners & {*outputs}) if len(owners) > 1 else ():
                found[i].append("report text")
    return [list(dict.fromkeys(what)) for what in found]


def _places(notebook: Any) -> list[tuple[int, str, Reading]]:
    places = [(0, "metadata", read(json.dumps(notebook.metadata)))]
    places += [(0, "metadata", Reading(found=("widget",)))] if "widgets" in notebook.metadata else []
    for i, cell in enumerate(notebook.cells, start=1):
        places.append((i, "metadata", read(json.dumps(cell.metadata))))
        source = read(_OWN.sub("", cell.source), "text" if cell.cell_type == "code" else "markdown")
        # Text runs on across code.
        texts = ("", *source.texts) if cell.cell_type == "code" else source.texts
        places.append((i, "source", Reading(texts, source.found)))
        places += [(i, "output", read_outputs(cell.outputs))] if cell.get("outputs") else []
        places += [(i, "attachment", Reading(found=("picture",)))] if cell.get("attachments") else []
    return places


def leaks(shown: Any, known: Private, written: bool = False) -> list[Leak]:
    """What ``shown``, a notebook of nbformat 4 or the HTML or text of a page, still shows.

    ``known`` is of `private` or `of`; ``written``: whether a person wrote the text, who may use anyone's words.
    """
    if isinstance(shown, str):
        (found,) = _check([(0, "source" if written else "output", read(shown, "page"))], known)
        return [Leak(0, "page", what) for what in found]
    places = _places(shown)
    found = [Leak(i, kind, w) for (i, kind, _), what in zip(places, _check(places, known), strict=True) for w in what]
    open_cells = [i for i, cell in enumerate(shown.cells, start=1) if not all(map(_is_notice, _untagged(cell)))]
    found += [Leak(i, "output", "not tagged aggregate") for i in open_cells]
    return sorted(dict.fromkeys(found), key=lambda leak: leak.cell)


def site_leaks(folder: Path, known: Private, pictures: Iterable[str] = ()) -> list[str]:
    """What the HTML in ``folder`` still shows: outputs are checked as in a notebook, all else as written by a person.

    ``known`` is of `private` or `of`; ``pictures`` are names of the files that ship with the book.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix == ".html":
            page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
            for image in [image for image in page.select("img") if Path(image.get("src", "")).name in pictures]:
                image.decompose()
            outputs = [str(output.extract()) for output in page.select("div.cell_output")]
            left = [leak for output in outputs for leak in leaks(output, known)] + leaks(str(page), known, written=True)
            found += [f"{name}: {leak.what}" for leak in dict.fromkeys(left)]
        elif name.parts[0] in ("_images", "_downloads") and path.is_file() and path.name not in pictures:
            found.append(f"{name}: picture")
    return found


def _untagged(cell: Any) -> list[Any]:
    return [] if AGGREGATE in cell.metadata.get("tags", []) else cell.get("outputs", [])


def _is_notice(output: Any) -> bool:
    data = output.get("data", {})
    return len(data) == 1 and str(data.get("text/plain", "")).startswith("Withheld (")


def withhold(notebook: Any, known: Private) -> Any:
    """A copy of an executed notebook in which notices stand for what may not be shown.

    Outputs, attachments, pictures in Markdown and metadata are withheld, and of cells tagged ``parameters`` or
    ``injected-parameters`` the lines that name data. Other sources stay, see `leaks`. ``notebook`` is of
    nbformat 4, ``known`` of `private` or `of`.
    """
    held = [f"{name}: {sources.terms(name).licence}" for name in known.names if sources.terms(name).credentialed]
    terms = f" ({'; '.join(held)})" if held else ""

    def notice(*what: str) -> str:
        return f"Withheld ({', '.join(what)}): not to be passed on{terms}."

    def output(*what: str) -> Any:
        return nbformat.v4.new_output("display_data", data={"text/plain": notice(*what)})

    shown = copy.deepcopy(notebook)
    shown.metadata = {key: value for key, value in shown.metadata.items() if key in ("kernelspec", "language_info")}
    for cell in shown.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = {key: value for key, value in cell.metadata.items() if key in ("tags", "name")}
        if {"parameters", "injected-parameters"} & {*tags}:
            lines = [(line, _identifiers(decode(line).lower(), known)) for line in cell.source.split("\n")]
            cell.source = "\n".join(f"# {notice(*what)}" if what else line for line, what in lines)
        if cell.cell_type != "code":
            cell.pop("attachments", None)
            text = _DIRECTIVE.sub(lambda block: block[0] if _OWN.search(block[0]) else "![]()", cell.source)
            shows = (PICTURE_MARKDOWN.search(_OWN.sub("", line)) for line in text.split("\n"))
            lines = zip(text.split("\n"), shows, strict=True)
            cell.source = "\n".join(f"*{notice('picture')}*" if picture else line for line, picture in lines)
        elif _untagged(cell):
            cell.outputs = [output("output of a cell that is not tagged aggregate")]
    while True:
        places = _places(shown)
        found = {i: what for (i, kind, _), what in zip(places, _check(places, known), strict=True) if kind == "output"}
        if not any(found.values()):
            return nbformat.from_dict(shown)
        for cell, what in ((shown.cells[i - 1], what) for i, what in found.items() if what):
            # A report may have the words of a notice.
            cell.outputs = [] if all(map(_is_notice, cell.outputs)) else [output(*what)]
