"""Keeps images, report texts and identifiers of credentialed data off the published pages: deny by default.

The terms of some sources bind each user: nobody else may see their images, reports or identifiers. The executed
notebooks in ``runs/`` show them and are the researcher's own; what is published goes through this module. Code cells
tagged ``aggregate`` (scores, curves, counts) keep their outputs; one line replaces every other output, and attachments
and pictures in Markdown. What remains is looked over, and so are the built pages: `withhold` replaces an output that
shows something, `leaks` lists what is left, which stops the build. Text that a person wrote is never changed. Refused are

- pictures, also those made of numbers, widgets, foreign scripts and unknown MIME types (`chestxai.book.reading`);
- report text: a sentence of four or more words, six words in a row, or a phrase of two or more, whatever numbers, cells
  or outputs stand between the words; findings and sides alone are no report text. In what a person wrote only six words
  count, and only if reports of fewer than `COMMON` patients have them;
- identifiers: everything in the form of the source's own (`PATTERNS`), and those of the very studies, also with letters
  around them, grouped, joined or cut; of six characters or more, with a digit;
- the folder of the data.

One's own data (``folder``) count as credentialed unless the profile says ``data: {credentialed: false}``. The guard
cannot see paraphrases, translations, images as points of curves, and aggregates of few patients: whoever tags a cell
answers for these.
"""

from __future__ import annotations

import bisect
import copy
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import numpy as np
from bs4 import BeautifulSoup

from chestxai import reports, sources
from chestxai.book.reading import PICTURE_MARKDOWN, Reading, decode, read, read_output
from chestxai.profiles import Profile
from chestxai.runs import InputError
from chestxai.studies import FINDINGS, Study

#: Tag of the code cells whose outputs may be published.
AGGREGATE = "aggregate"
#: A passage in reports of at least this many patients may stand in what a person wrote.
COMMON = 10
#: Source → name → regular expression of its identifiers.
PATTERNS: dict[str, dict[str, str]] = {
    "mimic": {
        "MIMIC subject_id": r"1\d{7}",
        "MIMIC study_id": r"5\d{7}",
        "MIMIC dicom_id": r"[0-9a-f]{8}(?:-[0-9a-f]{8}){4}",
    },
    "vindr": {"VinDr image_id": r"[0-9a-f]{32}"},
    "padchest": {"PadChest ImageID": r"\d{20,}_[\w-]+", "PadChest StudyID or PatientID": r"\d{30,50}"},
    "chexlocalize": {"CheXpert patient": r"patient\d{5}"},
}
_UID = {"DICOM UID": r"[12]\.\d+(?:\.\d+){4,}"}
# plotly names figures, and runs are named, by hashes, some of which have eight digits in a row.
_HASH = re.compile(
    r"(?<![^\W_])(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?=\d*[a-f])[0-9a-f]{16,})(?![^\W_])", re.IGNORECASE
)
_INTEGER = re.compile(r"(?<!\d)(?<!\d\.)\d+(?!\d|\.\d*[1-9])")
_GROUPED = re.compile(r"\d{1,3}(?: \d{3})+(?!\d)|\d+(?:[^\w\s]\s*\d+|_\d+)+")
_THOUSANDS = re.compile(r"(?<=\d)[,_'’](?=\d{3}(?!\d))")
# Characters of the shortest identifier that is looked for, and of a part that gives a long one away.
_ID, _PART = 6, 12

_SENTENCE_WORDS, _WINDOW, _LETTERS, _LONGEST = 4, 6, 8, 120
_WORD = re.compile(r"[^\W\d_]+")
# PadChest writes a sentence a line.
_SENTENCES = tuple(re.compile(rf"[.!?:]+(?:\s|$)|{end}") for end in (r"\n\s*\n|\n\s*(?:\d\d?[.)]|[-*•])\s", r"\n\s*(?=[A-Z])"))
_OPEN = {word for name in FINDINGS for word in name.lower().split()} | {"no", "and", "or", "left", "right", "bilateral"}

# A whole directive of MyST; and pictures that ship with the book.
_DIRECTIVE = re.compile(r"^([`:]{3,})\{(?:image|figure)\}(?s:.*?)^\1[ \t]*$", re.MULTILINE)
_OWN = re.compile(r"(?:!\[[^\]]*\]\(|\{(?:image|figure)\} )(?:\.\./)*(?:_static/[\w-]+|data/overview)\.\w+")


class Leak(NamedTuple):
    """Something left in ``cell`` (from 1; 0: metadata or a page), in which ``kind`` of place, and ``what`` it is."""

    cell: int
    kind: str
    what: str

    def __str__(self) -> str:
        return f"{f'cell {self.cell}, ' if self.cell else ''}{self.kind}: {self.what}"


@dataclass(frozen=True, eq=False)
class Private:
    """What of a run's data may not be shown, as `private` collects it.

    Attributes:
        names: sources.
        patterns: of identifiers, by name.
        words: identifiers that must match a word or number: those of digits only, and those with few.
        parts: others, or their parts of `_PART` characters, wherever they stand; by length.
        heads: first `_LETTERS` letters of all passages.
        passages, rare: sorted hashes of the letters of passages, and of those few patients share.
        folders: paths of the data.
    """

    names: tuple[str, ...]
    patterns: dict[str, re.Pattern[str]]
    words: frozenset[str] = field(repr=False)
    parts: dict[int, set[str]] = field(repr=False)
    heads: frozenset[str] = field(repr=False)
    passages: np.ndarray = field(repr=False)
    rare: np.ndarray = field(repr=False)
    folders: tuple[str, ...] = ()


def closed(profile: Profile) -> tuple[str, ...]:
    """Sources of a profile that are credentialed, by their terms or because the profile says so."""
    used, stated = dict.fromkeys((profile.data.source, profile.boxes)), profile.data.credentialed
    if stated:
        return tuple(name for name in used if name != "phantom")
    return tuple(n for n in used if sources.terms(n).credentialed and not (n == "folder" and stated is False))


def of(profile: Profile, data: str | Path) -> Private:
    """What a run may not show: every split of the profile's credentialed sources, uncapped; no image is read.

    Args:
        profile: names the sources and their options.
        data: folder that holds one sub-folder per source.

    Raises:
        InputError: ``data`` is empty, or a source is missing or cannot be read.
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
    """Collect what may not be shown.

    Args:
        items: studies, or texts, each of a patient of its own.
        names: sources whose patterns apply; default: those of the studies, or all if there are none.
        folders: of the data; those less than two levels deep are left out, as "/data" is part of many other paths.
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
        heads.update(text[:_LETTERS] for text in letters)
        return {hash(text) for text in letters if len(text) >= _LETTERS}

    windows, sentences = [], hashed((_words(p)[:_WINDOW] for p in phrases if not _is_name(p)), 2)
    for reported in texts.values():
        # A patient's passages count once.
        own: set[int] = set()
        # Blanks of de-identification vanish where notebooks show a report.
        for text in {decode(v) for text in reported for v in ((text, reports.clean(text)) if "XX" in text else (text,))}:
            words = _WORD.findall(text.lower())
            own |= hashed((words[i : i + _WINDOW] for i in range(len(words))), _WINDOW)
            parts = (_WORD.findall(part.lower()) for cuts in _SENTENCES for part in cuts.split(text))
            sentences |= hashed((part for part in parts if len(part) <= _WINDOW), _SENTENCE_WORDS)
        windows.append(np.fromiter(own, np.int64, len(own)))
    shared, counts = np.unique(np.concatenate([*windows, np.zeros(0, np.int64)]), return_counts=True)
    exact, parts = _forms(ids)
    groups = [PATTERNS[name] for name in seen if name in PATTERNS] or ([] if names else [*PATTERNS.values()])
    paths = {form for f in folders for form in (str(f), str(Path(f).absolute()), str(Path(f).resolve()))}
    return Private(
        tuple(seen),
        {name: _bounded(pattern) for group in (*groups, _UID) for name, pattern in group.items()},
        frozenset(exact),
        {n: {part for part in parts if len(part) == n} for n in range(_ID, _PART + 1)},
        frozenset(heads),
        np.union1d(shared, np.fromiter(sentences, np.int64, len(sentences))),
        shared[counts < COMMON],
        tuple(sorted(decode(path).lower() for path in paths if len(Path(path).parts) > 2)),
    )


def _words(text: str) -> list[str]:
    return _WORD.findall(decode(text).lower())


def _is_name(phrase: str) -> bool:
    line = " ".join(phrase.split())
    return any(_words(reports.name_in(line, name)) == _words(line) for name in FINDINGS)


def _bounded(pattern: str) -> re.Pattern[str]:
    """Digits may stand between letters; "10000032.0" is a whole number, "0.10000032" is not."""
    edge = r"[^\W_]" if "a-f" in pattern else r"\d"
    return re.compile(rf"(?<!{edge})(?<!\d\.)(?:{pattern})(?!{edge}|\.\d*[1-9])", re.IGNORECASE)


def _alphanumeric(text: str) -> str:
    return re.sub(r"[\W_]+", "", decode(text).lower())


def _forms(names: Iterable[str]) -> tuple[set[str], set[str]]:
    """Identifiers as `Private` keeps them: ``words`` and ``parts``."""
    words, parts = set(), set()
    for form in map(_alphanumeric, names):
        digits = sum(map(str.isdecimal, form))
        # MIMIC writes s or p before a number, or not.
        if match := re.fullmatch(r"[a-z]{1,3}(\d{6,})", form):
            words.add(match[1])
        if len(form) >= _ID and digits:
            if len(form) < _PART and (digits == len(form) or (digits < 3 and len(form) <= _LETTERS)):
                words.add(form)
            ends = (*range(_PART, len(form), _PART), len(form))
            cut = {form[max(end - _PART, 0) : end] for end in ends} - words
            parts.update(part for part in cut if any(map(str.isdecimal, part)))
    return words, parts


# ---------------------------------------------------------------------------------------------------------------------
# Looking
# ---------------------------------------------------------------------------------------------------------------------


def _identifiers(text: str, known: Private) -> list[str]:
    """Names of the identifiers and folders in a folded text."""
    found = ["data folder"] if any(folder in text for folder in known.folders) else []
    anonymous = _HASH.sub(" ", text)
    for name, pattern in known.patterns.items():
        versions = (text,) if "a-f" in pattern.pattern else (anonymous, _THOUSANDS.sub("", anonymous))
        found += [name] if any(map(pattern.search, versions)) else []
    integers = _INTEGER.findall(text)
    joined = [n[cut] for n in integers for k in range(_ID, len(n) - _ID + 1) for cut in (slice(k), slice(-k, None))]
    grouped = (re.sub(r"\D", "", number) for number in _GROUPED.findall(text))
    together = _alphanumeric(text)
    tokens = re.findall(r"[^\W_]*[^\W\d_][^\W_]*", text)
    if not known.words.isdisjoint([*integers, *joined, *grouped, *tokens]) or any(
        together[i : i + n] in parts for n, parts in known.parts.items() if parts for i in range(len(together) - n + 1)
    ):
        found.append("identifier of a study or patient")
    return found


def _passages(words: Sequence[str], heads: frozenset[str], known: np.ndarray) -> list[tuple[int, int]]:
    """First and last word of each stretch whose letters, however they are cut into words, are a known passage."""
    text, ends = "".join(words), [*accumulate(map(len, words))]
    spans, hashes = [], []
    for first, word in enumerate(words):
        start = ends[first] - len(word)
        if text[start : start + _LETTERS] in heads:
            lasts = range(first, bisect.bisect(ends, start + _LONGEST))
            spans += [(first, last) for last in lasts]
            hashes += [hash(text[start : ends[last]]) for last in lasts]
    # Faster than np.isin, which would sort all that is known.
    near = np.searchsorted(known, np.array(hashes, np.int64)).clip(max=len(known) - 1)
    return [span for span, i, h in zip(spans, near, hashes, strict=True) if len(known) and known[i] == h]


def _look(places: Sequence[tuple[int, str, Reading]], known: Private) -> list[list[str]]:
    """For each place (cell, kind, reading) the names of what it shows."""
    found = [[*reading.found] for _, _, reading in places]
    for what, (_, kind, reading) in zip(found, places, strict=True):
        passages = known.rare if kind == "source" else known.passages
        for text in reading.texts:
            what += _identifiers(text, known)
            what += ["report text"] if _passages(_WORD.findall(text), known.heads, passages) else []
    # What runs on: from one output into the next, from one source into the next, and between the two.
    outputs = [i for i, (_, kind, _) in enumerate(places) if kind == "output"]
    written = [i for i, (_, kind, _) in enumerate(places) if kind == "source"]
    for order, passages in ((outputs, known.passages), (written, known.rare), (sorted(outputs + written), known.passages)):
        chain = [(i, word) for i in order for word in _WORD.findall(places[i][2].texts[0])]
        for first, last in _passages([word for _, word in chain], known.heads, passages):
            owners = {i for i, _ in chain[first : last + 1]}
            for i in (owners if order is written else owners & {*outputs}) if len(owners) > 1 else ():
                found[i].append("report text")
    for i, j in pairwise(outputs):
        ends = places[i][2].texts[0].rstrip()[-64:], places[j][2].texts[0].lstrip()[:64]
        cut = {*_identifiers("".join(ends), known)} - {name for end in ends for name in _identifiers(end, known)}
        found[i] += cut
        found[j] += cut
    return [list(dict.fromkeys(what)) for what in found]


def _places(notebook: Any) -> list[tuple[int, str, Reading]]:
    widget = Reading(found=("widget",) if "widgets" in notebook.metadata else ())
    places = [(0, "metadata", widget + read(json.dumps(notebook.metadata)))]
    for i, cell in enumerate(notebook.cells, start=1):
        places.append((i, "metadata", read(json.dumps(cell.metadata))))
        source = read(_OWN.sub("", cell.source), "text" if cell.cell_type == "code" else "markdown")
        # A text runs on into the next one across code.
        texts = ("", *source.texts) if cell.cell_type == "code" else source.texts
        places.append((i, "source", Reading(texts, source.found)))
        places += [(i, "output", read_output(output)) for output in cell.get("outputs", [])]
        places += [(i, "attachment", Reading(found=("picture",)))] if cell.get("attachments") else []
    return places


def leaks(shown: Any, known: Private, written: bool = False) -> list[Leak]:
    """What a notebook, or the HTML or text of a page, still shows.

    Args:
        shown: a notebook of nbformat 4, or text.
        known: of `private` or `of`.
        written: whether a person wrote the text, so that anyone's words may stand in it.

    Returns:
        in the order of the cells, each thing once a place.
    """
    if isinstance(shown, str):
        (found,) = _look([(0, "source" if written else "output", read(shown, "page"))], known)
        return [Leak(0, "page", what) for what in found]
    places = _places(shown)
    found = [Leak(i, kind, w) for (i, kind, _), what in zip(places, _look(places, known), strict=True) for w in what]
    untagged = [i for i, cell in enumerate(shown.cells, start=1) if not all(map(_is_notice, _untagged(cell)))]
    return sorted(dict.fromkeys(found + [Leak(i, "output", "not tagged aggregate") for i in untagged]), key=lambda k: k.cell)


def site_leaks(folder: Path, known: Private, pictures: Iterable[str] = ()) -> list[str]:
    """What built pages still show: outputs as strictly as in a notebook, and everything else as written by a person.

    Args:
        folder: of the HTML.
        known: of `private` or `of`.
        pictures: names of files that ship with the book.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix == ".html":
            page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
            for image in page.select("img"):
                if Path(image.get("src", "")).name in pictures:
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
    return str(output.get("data", {}).get("text/plain", "")).startswith("Withheld (") and len(output.data) == 1


def withhold(notebook: Any, known: Private) -> Any:
    """A copy of an executed notebook in which one line stands for whatever may not be shown.

    Outputs, attachments, pictures in Markdown and metadata are withheld, and of cells tagged ``parameters`` or
    ``injected-parameters`` the lines that name data. Other sources stay, see `leaks`.

    Args:
        notebook: of nbformat 4.
        known: of `private` or `of`.
    """
    held = [f"{name}: {sources.terms(name).licence}" for name in known.names if sources.terms(name).credentialed]
    terms = f" ({'; '.join(held)})" if held else ""

    def notice(*what: str) -> str:
        return f"Withheld ({', '.join(what)}): not to be passed on{terms}."

    shown = copy.deepcopy(notebook)
    shown.metadata = {k: v for k, v in shown.metadata.items() if k in ("kernelspec", "language_info")}
    for cell in shown.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
        if {"parameters", "injected-parameters"} & {*cell.metadata.get("tags", [])}:
            told = [(line, _identifiers(decode(line).lower(), known)) for line in cell.source.split("\n")]
            cell.source = "\n".join(f"# {notice(*what)}" if what else line for line, what in told)
        if cell.cell_type != "code":
            cell.pop("attachments", None)
            text = _DIRECTIVE.sub(lambda m: m[0] if _OWN.search(m[0]) else "![]()", cell.source)
            lines = (f"*{notice('picture')}*" if PICTURE_MARKDOWN.search(_OWN.sub("", line)) else line for line in text.split("\n"))
            cell.source = "\n".join(lines)
        elif _untagged(cell):
            cell.outputs = [_output(notice("output of a cell that is not tagged aggregate"))]
        else:
            cell.outputs = _merged(cell.outputs)
    while True:
        places = _places(shown)
        what = [names for (_, kind, _), names in zip(places, _look(places, known), strict=True) if kind == "output"]
        if not any(what):
            return nbformat.from_dict(shown)
        left = iter(what)
        for cell in (cell for cell in shown.cells if cell.cell_type == "code"):
            cell.outputs = [_output(notice(*names)) if (names := next(left)) else output for output in cell.outputs]


def _output(text: str) -> Any:
    return nbformat.v4.new_output("display_data", data={"text/plain": text})


def _merged(outputs: Sequence[Any]) -> list[Any]:
    """Outputs, the pieces of a stream put together."""
    merged: list[Any] = []
    for output in outputs:
        if merged and output.output_type == "stream" and merged[-1].get("name") == output.name:
            merged[-1].text = "".join([*merged[-1].text, *output.text])
        else:
            merged.append(output)
    return merged
