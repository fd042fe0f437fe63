"""Reads outputs, cells and pages for `chestxai.book.guard`: their text in every order, and whether they show a picture.

Text is folded first, so that spelling does not hide it: escapes of HTML, URLs, JSON and terminals are decoded,
invisible characters and tokenizers' marks removed, letters decomposed and in lower case. Numbers can be a picture, too:
a grid of at least `GRID` rows and columns, or `GRID`² in one list, whether plotly, a table or ``print`` shows it.
"""

import base64
import binascii
import html
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np

GRID = 24

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_ESCAPE = re.compile(r"\\(?:u([0-9a-f]{4})|u\{([0-9a-f]{1,5})\}|x([0-9a-f]{2}))", re.IGNORECASE)
# Soft hyphens, zero-width characters, directions, variation selectors.
_INVISIBLE = re.compile(
    "[\xad\u034f\u061c\u115f\u1160\u3164\uffa0\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
# Special tokens of tokenizers. Their marks (##, </w>, Ġ, ▁) go as signs, tags and spaces do.
_SPECIAL = re.compile(r"\[(?:cls|sep|pad|unk|mask|bos|eos)\]|<\|\w+\|>|<(?:/?s|pad|unk|mask|bos|eos)>", re.IGNORECASE)
_TAG = re.compile(r"<!--.*?-->|<style\b.*?</style>|</?([a-z][\w-]*)[^<>]*>", re.DOTALL)
_BREAKS = dict.fromkeys("br p div pre dt dd h1 h2 h3 h4 h5 h6".split(), "\n")
_BREAKS |= dict.fromkeys("td th li option".split(), "\t") | dict.fromkeys("tr ul ol table section".split(), "\n\t")
_STRING = re.compile(r"""(["'])((?:(?!\1)[^\\]|\\.)*)\1(\s*:)?""", re.DOTALL)
_CELLS = re.compile(r"[\t|,;]|\s{2,}")

_SCRIPT = re.compile(r"<script\b([^>]*)>(.*?)</script\s*>", re.IGNORECASE | re.DOTALL)
_FIGURE = re.compile(r"Plotly\.newPlot\s*\(|^\s*window\.PlotlyConfig\s*=\s*\{MathJaxConfig:\s*'local'\};?\s*$")
# HTML that acts: it loads, sends or runs something.
_ACTIVE = re.compile(
    r"<\s*(?:base|meta|link|form|input|button|textarea)\b|<[^<>]*\son\w+\s*=|=\W*javascript:", re.IGNORECASE
)
# What the theme brings: style sheets, icons, and pictures in _static.
_THEME = re.compile(r"<(?:link|meta)\b[^>]*>|<img\b[^>]*src=.(?:\.\./)*_static/[^>]*>|<style\b.*?</style>", re.DOTALL)
_PACKED = re.compile(r'\{[^{}]*"bdata"[^{}]*\}')
_WIDGET = "application/vnd.jupyter.widget-"

_FILE = r"[^\s()<>\"':]+\.(?:png|jpe?g|gif|svg|webp|bmp|tiff?|dcm|dicom|npy|pdf)\b"
_PICTURE_HTML = re.compile(
    r"<\s*(?:img|svg|canvas|video|audio|picture|object|embed|i?frame|image|source)\b|url\(\s*[^#\s)]", re.IGNORECASE
)
_PICTURE_OUTPUT = re.compile(rf"{_PICTURE_HTML.pattern}|(?:href|src)\s*=\s*[\"']?(?:\w+:)?{_FILE}", re.IGNORECASE)
#: Pictures in Markdown, and links to their files.
PICTURE_MARKDOWN = re.compile(
    rf"{_PICTURE_HTML.pattern}|!\[|\{{(?:image|figure)\}}|\\includegraphics|data:image|[(:=]\s*[<\"']?{_FILE}",
    re.IGNORECASE,
)
# plotly's images; data URIs; the first bytes of a file in base64, hex or Python's notation.
_PICTURE_DATA = re.compile(
    r'"type"\s*:\s*"image"|"source"\s*:\s*"|data:\s*(?:image|video|audio|application|font|text)/[\w.+-]+\s*[;,][^\s"\']{16}'
    r'|(?:"values":\s*\[[^\]a-z]{48,}\][^\[\]]{0,80}){24}'  # many axes of one figure
    r"|ivborw0kggo|/9j/4aa|r0lgodlh|89504e470d0a1a0a|\\x89png|(?:\\x[0-9a-f]{2}[^\\]{0,8}){64}"
)
_ENCODED = re.compile(r"[a-z0-9+/=%_-]{200,}+|(?:[a-z0-9+/=_-]{56,}+\s++){3,}")
_BLOCK_ART = re.compile("[\u2580\u2582-\u25a3\u25fb-\u25fe\u2801-\u28ff\u2b1b\u2b1c\U0001f7e5-\U0001f7eb]")
# Lines of signs: a picture in characters.
_SIGN_ART = re.compile(rf"(?:^[^\w\n]{{{GRID},}}\n){{{GRID},}}", re.MULTILINE)
_COLOUR = re.compile(r"#[0-9a-f]{6}\b|\brgba?\(|row\d+_col\d+")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|\b(?:nan|inf|infinity|null|none)\b")
_NUMBERS = re.compile(r"""(\b(?:x|y|array|arrayminus)(?=["']\s*:))?([0\s,;:|.%\[\](){}"']+)""")


@dataclass(frozen=True)
class Reading:
    """What something shows."""

    #: Folded; first the running text, which may go on elsewhere, then other orders of the same.
    texts: tuple[str, ...] = ("",)
    #: What is refused whatever it says: "picture", "widget", "script", "output of unknown kind".
    found: tuple[str, ...] = ()


def decode(text: str) -> str:
    """``text`` without escapes and invisible characters, decomposed (NFKD), in its own case."""
    if text.isascii() and not any(sign in text for sign in "&\\\x1b"):
        return text
    text = html.unescape(html.unescape(_ANSI.sub("", text)))
    text = _ESCAPE.sub(lambda code: chr(int(code[code.lastindex], 16)), text) if "\\" in text else text
    text = unicodedata.normalize("NFKD", _INVISIBLE.sub("", text).replace("Ġ", " ").replace("▁", " "))
    # Digits of any script.
    return re.sub(r"[^\D0-9]", lambda digit: str(int(digit[0])), text)


def read(text: str, kind: Literal["text", "markdown", "html", "page"] = "text") -> Reading:
    """Read a text.

    Args:
        text: as it is stored.
        kind: "text" (JSON included), "markdown", "html", or "page": a built page with the theme's scripts.
    """
    found = []
    if kind in ("html", "page"):
        scripts = _SCRIPT.findall(text)
        found += ["widget"] if any(_WIDGET in attributes for attributes, _ in scripts) else []
        ours = all(_FIGURE.search(script) and "src" not in attributes for attributes, script in scripts)
        acts = kind == "html" and _ACTIVE.search(_SCRIPT.sub(" ", text))
        found += [] if (ours or kind == "page") and not acts else ["script"]
    if kind == "page":
        text = _THEME.sub(" ", _SCRIPT.sub(lambda script: script[0] if _FIGURE.search(script[2]) else " ", text))
    text = _PACKED.sub(_unpacked, text)
    texts: dict[str, None] = {}
    plain = unquote(text)
    commands = re.sub(r"\\[a-z]+(?=\{)|\\[;,: ]|[{}~$]", " ", plain) if "\\" in plain else plain
    for version in dict.fromkeys((text, plain, re.sub(r"\\[nrtbf]", " ", plain), commands, _packed_text(plain))):
        raw = decode(version).lower()
        # Line breaks count in plain text, not in HTML, but in its <pre>.
        for lines in (re.sub(r"\s+", " ", raw), raw) if kind in ("html", "page") else (raw,):
            seen = _TAG.sub(lambda tag: _BREAKS.get(tag[1], ""), _SPECIAL.sub(" ", lines))
            texts |= dict.fromkeys([seen, raw, *_orders(seen)])
            found += ["picture"] if _is_picture(version.lower(), raw, seen, kind) else []
    return Reading(tuple(texts), tuple(found))


def _packed_text(text: str) -> str:
    """What words of base64 or hex say, where that is text."""
    said = []
    # The decimals of a number are neither, though hex may read a patient's number in them.
    decimals = r"(?!(?<=\d\.)\d+(?:e\d*)?(?![A-Za-z0-9+/]))"
    for word in re.findall(rf"(?<![A-Za-z0-9+/]){decimals}[A-Za-z0-9+/]{{16,}}={{0,2}}", text):
        for unpack in (base64.b64decode, bytes.fromhex):
            with suppress(ValueError):
                said.append(unpack(word).decode())
    return "\n".join(filter(str.isprintable, said))


def _unpacked(packed: re.Match[str]) -> str:
    """plotly's ``{"dtype": "f8", "bdata": base64, "shape": "2, 3"}`` as JSON; unreadable data count as a picture."""
    try:
        values = json.loads(packed[0])
        array = np.frombuffer(base64.b64decode(values["bdata"], validate=True), f"<{values['dtype']}")
        shape = [int(n) for n in re.findall(r"\d+", str(values.get("shape", "")))] or -1
        return json.dumps(array.reshape(shape).tolist())
    except (KeyError, TypeError, ValueError, binascii.Error):
        return '"source": "packed"'


def _orders(text: str) -> Iterator[str]:
    """Other orders of a text: strings of JSON or Python, by key, and keys; tables by row label, and by column."""
    values, keys, by_key, key = [], [], defaultdict(list), ""
    for string in _STRING.finditer(text):
        if string[3]:
            keys.append(key := string[2])
        else:
            values.append(string[2])
            by_key[key].append(string[2])
    yield from ("\n".join(values), "\n".join(map("\n".join, by_key.values())), "\n".join(keys))
    rows, left, right = defaultdict(list), defaultdict(list), defaultdict(list)
    for line in re.split(r"\n|[)\]}]\s*,", text):
        # pandas breaks wide tables into blocks, whose rows have the same labels.
        cells = [cell for cell in _CELLS.split(line) if cell.strip()]
        for i, cell in enumerate(cells if len(cells) > 1 else ()):
            rows[cells[0]].append(cell if i else "")
            left[i].append(cell)
            right[len(cells) - i].append(cell)
    yield from ("\n".join(map(" ".join, parts.values())) for parts in (rows, left, right))


def _is_picture(text: str, raw: str, seen: str, kind: str) -> bool:
    sign = {"markdown": PICTURE_MARKDOWN, "html": _PICTURE_OUTPUT, "page": _PICTURE_HTML}.get(kind)
    return (
        (sign is not None and sign.search(text) is not None)
        or any(_PICTURE_DATA.search(version) for version in (text, raw))
        or any(len(set(run[0])) > 12 for run in _ENCODED.finditer(raw))
        or len(_BLOCK_ART.findall(text)) >= GRID
        or (kind == "text" and _SIGN_ART.search(text) is not None)
        or (kind != "page" and len(_COLOUR.findall(raw)) >= GRID**2)
        or any(map(_is_grid, _NUMBERS.finditer(_NUMBER.sub("0", seen))))
    )


def _is_grid(numbers: re.Match[str]) -> bool:
    """Whether numbers (each "0") with no word between them are a picture; the values of a curve may be many."""
    curve, text = numbers.groups()
    total, rows = text.count("0"), len(re.findall(r"""0["'\s]*[\])}]""", text))
    if total < GRID**2 or (rows <= 1 and curve):
        return False
    wide = total / max(rows, 1)
    return rows <= 1 or wide >= GRID**2 or (rows >= GRID and wide >= GRID) or (rows >= GRID**2 and wide <= 4)


def read_outputs(outputs: Iterable[Any]) -> Reading:
    """Read the outputs of a code cell (nbformat 4) together: text, or an identifier, may go on from one to the next."""
    return _joined(map(_read_output, outputs))


def _read_output(output: Any) -> Reading:
    if output.output_type == "stream":
        return read(output.text)
    if output.output_type == "error":
        return read("\n".join([output.ename, output.evalue, *output.traceback]))
    metadata = output.get("metadata")
    readings = [read(json.dumps(metadata, ensure_ascii=False))] if metadata else []
    for mime, value in output.data.items():
        kind = mime.removeprefix("application/papermill.record/")
        if kind.startswith("application/vnd.plotly.") or kind == "application/json":
            readings.append(read(json.dumps(value, ensure_ascii=False)))
        elif kind in ("text/plain", "text/html", "text/markdown", "text/latex"):
            markup = {"text/plain": "text", "text/html": "html"}.get(kind, "markdown")
            readings.append(read(value, markup))
        else:
            picture = kind.startswith(("image/", "audio/", "video/", "application/pdf"))
            refused = "picture" if picture else "widget" if kind.startswith(_WIDGET) else "output of unknown kind"
            readings.append(Reading(found=(refused,)))
    return _joined(readings)


def _joined(readings: Iterable[Reading]) -> Reading:
    readings = [*readings]
    running = [reading.texts[0].strip() for reading in readings]
    others = (text for reading in readings for text in reading.texts[1:])
    found = tuple(what for reading in readings for what in reading.found)
    return Reading(("\n".join(running), "".join(running), *others), found)
