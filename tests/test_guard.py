"""The guard: outputs vanish unless tagged, any leak is found and withheld, and the book stops if any is left."""

from __future__ import annotations

import argparse
import base64
import functools
import html
import io
import json
import runpy
import unicodedata
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from chestxai import batch, book, plots, profiles, runs, sources
from chestxai.book import guard, pages
from chestxai.book.guard import Leak
from chestxai.book.reading import GRID
from chestxai.runs import InputError
from chestxai.studies import FINDINGS, Finding, Study
from tests.test_mimic import EFFUSION, P, box, collection, image, listed, name, stated, visit
from tests.test_tradeoff import write_run

PAPER = profiles.load("paper")
#: From the report that the tests of MIMIC write, and its phrase.
SENTENCE = "Small right pleural effusion and bibasilar atelectasis"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
PATIENTS = {P: "train", P + 1: "validate", P + 2: "test"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder of sources with seven patients in MIMIC's format."""
    root = tmp_path_factory.mktemp("guard") / "data"
    boxes = [box(p, "Pleural Effusion", EFFUSION) for p in PATIENTS]
    # Patients with a box are never trained on.
    everyone = PATIENTS | {P + 3: "train", P + 4: "validate", P + 5: "train", P + 6: "test"}
    splits = [listed(p, split) for p, split in everyone.items()]
    collection(root / "mimic", [image(p) for p in everyone], splits, boxes, [stated(p, Edema="1.0") for p in everyone])
    return root


@pytest.fixture(scope="module")
def known(data) -> guard.Private:
    return guard.of(PAPER, data)


def png() -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def shown(**data: Any) -> Any:
    """An output; the first underscore of a name stands for the slash of its MIME type."""
    return new_output("display_data", data={key.replace("_", "/", 1): value for key, value in data.items()})


def aggregate(*outputs: Any) -> Any:
    """A cell whose outputs may be published."""
    return new_code_cell("x", outputs=list(outputs), metadata={"tags": ["aggregate"]})


def found(known: guard.Private, *outputs: Any) -> list[str]:
    """What the outputs of one such cell show."""
    return [leak.what for leak in guard.leaks(new_notebook(cells=[aggregate(*outputs)]), known)]


def printed(*texts: str, stream: str = "stdout") -> list[Any]:
    return [new_output("stream", name=stream, text=text) for text in texts]


def drawn(figure: go.Figure) -> Any:
    return new_output("display_data", data={"application/vnd.plotly.v1+json": json.loads(figure.to_json())})


def embedded(figure: go.Figure) -> Any:
    """As `plots.setup` has it on the page."""
    return shown(text_html=figure.to_html(include_plotlyjs=False, full_html=False))


RNG = np.random.default_rng(0)
RADIOGRAPH = RNG.integers(0, 255, (1, 32, 32), np.uint8)
YY, XX = (axis.ravel() for axis in np.mgrid[:32, :32])
TABLE = pd.DataFrame({"finding": ["Pleural Effusion", "Edema"], "AUC-ROC": [0.71, 0.66], "n": [120, 1_200_000]})


def long_text_table() -> pd.DataFrame:
    return pd.DataFrame({"report": ["There is a small right pleural effusion. No pneumothorax, and much besides."]})


def animation() -> go.Figure:
    frames = [go.Frame(data=[go.Heatmap(z=RADIOGRAPH[0])])]
    return go.Figure(go.Heatmap(z=np.zeros((4, 4))), frames=frames)


def image_trace() -> go.Figure:
    return go.Figure(go.Image(source=plots.pictures.data_uri(Image.fromarray(RADIOGRAPH[0]))))


def layout_image() -> go.Figure:
    figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4]))
    return figure.add_layout_image(source="files/chest.jpg", x=0, y=1)


def menu() -> go.Figure:
    """A picture that a button puts in the place of a small grid."""
    button = {"method": "restyle", "args": [{"z": [RADIOGRAPH[0].tolist()]}], "label": "b"}
    return go.Figure(go.Heatmap(z=[[1]]), {"updatemenus": [{"buttons": [button]}]})


def hover(text: str) -> go.Figure:
    return go.Figure(go.Scatter(x=[1, 2], y=[3, 4], text=[text, "another"]))


def wordpieces(text: str) -> list[str]:
    """As a tokenizer of BERT's kind cuts a text whose words it does not know."""
    words = [[word[:4], *(f"##{word[i : i + 4]}" for i in range(4, len(word), 4))] for word in text.lower().split()]
    return ["[CLS]", *chain.from_iterable(words), "[SEP]"]


def clip_pieces(text: str) -> list[str]:
    words = [[word[i : i + 4] for i in range(0, len(word), 4)] for word in text.lower().split()]
    ended = chain.from_iterable([*pieces[:-1], f"{pieces[-1]}</w>"] for pieces in words)
    return ["<|startoftext|>", *ended, "<|endoftext|>"]


def begun_pieces(text: str, mark: str = "Ġ") -> list[str]:
    """As GPT-2's and RoBERTa's ("Ġ"), or SentencePiece ("▁") cut it."""
    words = [[word[i : i + 4] for i in range(0, len(word), 4)] for word in text.lower().split()]
    return ["<s>", *chain.from_iterable([f"{mark}{pieces[0]}", *pieces[1:]] for pieces in words), "</s>"]


CUT = {"WordPiece": wordpieces, "CLIP": clip_pieces, "GPT-2": begun_pieces}


def of_chapter_1(pieces: list[str]) -> pd.DataFrame:
    named = {"token": pieces, "names Pleural Effusion": ["●" if i in (3, 4) else "" for i in range(len(pieces))]}
    return pd.DataFrame(named).rename_axis("position").T


def of_chapter_3(pieces: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"token": pieces, "read": ["●" if i in (3, 4) else "" for i in range(len(pieces))]}).T


def as_text(table: pd.DataFrame) -> str:
    """The text/plain of a notebook, which breaks a wide table into several blocks."""
    with pd.option_context("display.max_columns", 20, "display.width", 80, "display.max_rows", 60):
        return repr(table)


def as_html(table: pd.DataFrame) -> str:
    with pd.option_context("display.max_columns", 20, "display.max_rows", 60, "display.notebook_repr_html", True):
        return table._repr_html_()


def by_token(words: list[str]) -> go.Figure:
    return go.Figure(go.Bar(x=words, y=list(range(len(words)))))


def token_tables() -> dict[str, tuple[Callable[[], Any], str]]:
    made: dict[str, tuple[Callable[[], Any], str]] = {}
    for kind, cut in CUT.items():
        for chapter, table in (("1", of_chapter_1(cut(SENTENCE))), ("3", of_chapter_3(cut(SENTENCE)))):
            for turned, frame in (("", table), (", not transposed", table.T)):
                name = f"tokens of {kind} as in chapter {chapter}{turned}"
                made[name] = (lambda f=frame: shown(text_html=as_html(f)), "report text")
                made[f"{name}, as text"] = (lambda f=frame: shown(text_plain=as_text(f)), "report text")
    return made


URI = f"data:image/png;base64,{png()}"
IMG = f'<p>look</p><img src="{URI}">'
#: What is planted: outputs, and the name by which it must be found.
PLANTED: dict[str, tuple[Callable[[], Any], str]] = {
    "png": (lambda: shown(image_png=png(), text_plain="<Figure size 640x480>"), "picture"),
    "jpeg": (lambda: shown(image_jpeg=png()), "picture"),
    "gif": (lambda: shown(image_gif=png()), "picture"),
    "svg": (lambda: shown(**{"image_svg+xml": "<svg><path d='M0 0'/></svg>"}), "picture"),
    "pdf": (lambda: shown(application_pdf=png()), "picture"),
    "a data URI in html": (lambda: shown(text_html=IMG), "picture"),
    "a file in html": (lambda: shown(text_html="<img src='sample.png'>"), "picture"),
    "svg in html": (lambda: shown(text_html="<div><svg viewBox='0 0 9 9'></svg></div>"), "picture"),
    "a background in html": (lambda: shown(text_html=f"<i style='background:url({URI})'>"), "picture"),
    "a style in html": (lambda: shown(text_html=f"<style>i {{background:url({URI})}}</style>"), "picture"),
    "an image in Markdown": (lambda: shown(text_markdown="![a chest](sample.png)"), "picture"),
    "a data URI in a text": (lambda: printed(IMG), "picture"),
    "image traces": (lambda: drawn(image_trace()), "picture"),
    "image traces in html": (lambda: embedded(image_trace()), "picture"),
    "a grid of radiographs": (lambda: shown(text_html=plots.images(RADIOGRAPH)._repr_html_()), "picture"),
    "an image trace of numbers": (lambda: drawn(go.Figure(go.Image(z=np.zeros((9, 9, 3), np.uint8)))), "picture"),
    "a layout image": (lambda: drawn(layout_image()), "picture"),
    "a layout image in html": (lambda: embedded(layout_image()), "picture"),
    "a heatmap that is a picture": (lambda: drawn(go.Figure(go.Heatmap(z=RADIOGRAPH[0]))), "picture"),
    "such a heatmap in lists": (lambda: drawn(go.Figure(go.Heatmap(z=RADIOGRAPH[0].tolist()))), "picture"),
    "such a heatmap in html": (lambda: embedded(go.Figure(go.Heatmap(z=RADIOGRAPH[0]))), "picture"),
    "such a surface": (lambda: drawn(go.Figure(go.Surface(z=RADIOGRAPH[0]))), "picture"),
    "such a contour, flat": (lambda: drawn(go.Figure(go.Contour(z=RADIOGRAPH[0].ravel(), x=[1], y=[1]))), "picture"),
    "such a heatmap in an animation": (lambda: embedded(animation()), "picture"),
    "such a heatmap behind a button": (lambda: embedded(menu()), "picture"),
    "a widget": (
        lambda: shown(**{"application_vnd.jupyter.widget-view+json": {"model_id": "0"}, "text_plain": "VBox()"}),
        "widget",
    ),
    "a widget's state in html": (
        lambda: shown(text_html="<script type='application/vnd.jupyter.widget-state+json'>{}</script>"), "widget",
    ),
    "another script": (lambda: shown(text_html="<script>draw([1, 2])</script>"), "script"),
    "JavaScript": (lambda: shown(application_javascript="draw([1, 2])"), "output of unknown kind"),
    "Vega": (lambda: shown(**{"application_vnd.vegalite.v5+json": {"mark": "bar"}}), "output of unknown kind"),
    "a subject": (lambda: printed(f"worst: p{P} at 0.2\n"), "MIMIC subject_id"),
    "a subject that is a number": (lambda: shown(text_plain=f"subject  {P}.0"), "MIMIC subject_id"),
    "a study": (lambda: printed(f"files/s{visit(P)}.txt"), "MIMIC study_id"),
    "a dicom_id": (lambda: printed(f"reading {name(P)}.jpg"), "MIMIC dicom_id"),
    "a dicom_id in another case": (lambda: printed(name(P).upper()), "MIMIC dicom_id"),
    "an identifier in two pieces": (lambda: printed("p1000", "0032\n"), "MIMIC subject_id"),
    "subjects on an axis": (lambda: drawn(go.Figure(go.Bar(x=np.array([P, P + 1]), y=[1, 2]))), "MIMIC subject_id"),
    "subjects on an axis in html": (lambda: embedded(go.Figure(go.Bar(x=[P, P + 1], y=[1, 2]))), "MIMIC subject_id"),
    "subjects as keys": (lambda: shown(application_json={str(P): 0.5}), "MIMIC subject_id"),
    "a sentence": (lambda: printed(f"the report says: {SENTENCE}.\n"), "report text"),
    "a sentence in two pieces": (
        lambda: printed("Small right pleural effu", "sion and bibasilar atelectasis"), "report text",
    ),
    "a sentence in other type": (
        lambda: printed("SMALL  right\n   pleural effusion, and\tbibasilar ATELECTASIS"), "report text",
    ),
    "a report that pandas cut short": (lambda: shown(text_html=long_text_table().to_html()), "report text"),
    "the same as text": (lambda: shown(text_plain=long_text_table().to_string(max_colwidth=50)), "report text"),
    "a sentence with words marked": (
        lambda: shown(text_html=SENTENCE.replace("effusion", "<b title='x'>effu</b>sion")), "report text",
    ),
    "a sentence in a title": (lambda: shown(text_html=f"<p title='{SENTENCE}'>x</p>"), "report text"),
    "a sentence in a comment": (lambda: shown(text_html=f"<p>x</p><!-- {SENTENCE} -->"), "report text"),
    "a sentence in Markdown": (lambda: shown(text_markdown=f"> {SENTENCE}"), "report text"),
    "a sentence glued": (lambda: shown(**{"application_papermill.record/text/plain": SENTENCE}), "report text"),
    "a sentence beside a figure": (
        lambda: shown(text_html=embedded(hover("x")).data["text/html"].replace("if (", f"/* {SENTENCE} */ if (")),
        "report text",
    ),
    "a phrase in a table": (lambda: shown(text_html=TABLE.assign(phrase=EFFUSION).to_html()), "report text"),
    "a phrase in a caption of lines": (lambda: drawn(hover("“Small right<br>pleural effusion”: 0.7")), "report text"),
    "the same in html": (lambda: embedded(hover("“Small right<br>pleural effusion”: 0.7")), "report text"),
    "an error": (
        lambda: new_output(
            "error", ename="ValueError", evalue="the phrase is not in the prompt",
            traceback=["\x1b[0;31mValueError\x1b[0m: no 'small right \x1b[1mpleural\x1b[0m effusion and bibasilar'"],
        ),
        "report text",
    ),
    "an error's last line": (
        lambda: new_output("error", ename="KeyError", evalue=name(P), traceback=["KeyError"]), "MIMIC dicom_id",
    ),
    **token_tables(),
    "words on an axis": (lambda: drawn(by_token(SENTENCE.split())), "report text"),
    "words on an axis in html": (lambda: embedded(by_token(SENTENCE.split())), "report text"),
    "tokens on an axis": (lambda: drawn(by_token(clip_pieces(SENTENCE))), "report text"),
    "such a two-dimensional histogram": (
        lambda: drawn(go.Figure(go.Histogram2d(x=XX, y=YY, z=RADIOGRAPH[0].ravel(), histfunc="avg"))), "picture",
    ),
    "such a histogram's contour": (
        lambda: drawn(go.Figure(go.Histogram2dContour(x=XX, y=YY, z=RADIOGRAPH[0].ravel().tolist()))), "picture",
    ),
}  # fmt: skip


@pytest.fixture(params=PLANTED)
def planted(request) -> tuple[Any, str]:
    made, what = PLANTED[request.param]
    outputs = made()
    cell = aggregate(*(outputs if isinstance(outputs, list) else [outputs]))
    scores = aggregate(shown(text_html=TABLE.to_html()), *printed("120 phrases"))
    return new_notebook(cells=[new_markdown_cell("# Title"), cell, scores]), what


class TestPlanted:
    """What must not pass even from a cell tagged ``aggregate``."""

    def test_is_found(self, planted, known):
        notebook, what = planted
        found = guard.leaks(notebook, known)
        assert Leak(2, "output", what) in found
        assert {leak.cell for leak in found} == {2}

    def test_is_replaced_by_a_line_that_says_why(self, planted, known):
        notebook, what = planted
        before = nbformat.writes(notebook)
        guarded = guard.withhold(notebook, known)
        assert guard.leaks(guarded, known) == []
        (output,) = guarded.cells[1].outputs
        assert list(output.data) == ["text/plain"]
        (line,) = output.data["text/plain"].splitlines()
        assert what in line
        assert line.endswith("not to be passed on (mimic: PhysioNet Credentialed Health Data License 1.5.0).")
        # The rest is as it was, and so is the notebook that was passed.
        assert guarded.cells[::2] == notebook.cells[::2]
        assert nbformat.writes(notebook) == before
        nbformat.validate(guarded)

    def test_the_list_names_the_thing_but_does_not_show_it(self, planted, known):
        listed = " ".join(map(str, guard.leaks(planted[0], known)))
        for secret in (str(P), name(P), "small", "right", "bibasilar", "base64"):
            assert secret not in listed.lower()


WORDS = [word.lower() for word in SENTENCE.split()]
REPORT = "Bibasilar streaky shadowing has progressed. A tiny apical pneumothorax is suspected."
DICOM = "02aa804e-bde0afdd-112c0b34-7bc16630-4e384014"
OTHER = Study(DICOM, "10984321", "mimic", "test", REPORT, (1, 1), attributes={"study": "s56781234"})
STREAKY = "bibasilar streaky shadowing has progressed".split()
PIXELS = RNG.integers(0, 255, (32, 32))


def gradient() -> str:
    """As ``background_gradient`` writes it, which needs matplotlib."""
    coloured = pd.DataFrame(PIXELS).style.map(lambda v: f"background-color: #{v:02x}{v:02x}{v:02x}")
    return coloured.format(lambda _: "").hide(axis=0).to_html()


def jpeg_lines() -> str:
    return base64.encodebytes(RNG.bytes(600)).decode()


def weighted(pairs: Any) -> go.Figure:
    return go.Figure(go.Bar(x=[f"{word} ({0.1 * i:.1f})" for i, word in enumerate(pairs)], y=list(range(len(pairs)))))


@functools.cache
def text_variants() -> dict[str, Any]:
    """A sentence of a report in many forms."""
    words, line = STREAKY, " ".join(STREAKY)
    records = [{"token": word, "kind": "word", "weight": 0.1} for word in words]
    frame = pd.DataFrame(records)
    escaped = "".join(f"\\u{ord(c):04x}" for c in line)
    return {
        "in base64": printed(base64.b64encode(line.encode()).decode()),
        "in hex": printed(line.encode().hex()),
        "choices of a list": shown(text_html="".join(f"<option>{word}</option>" for word in words)),
        "LaTeX of text": shown(text_latex="$" + r"\ ".join(rf"\text{{{word}}}" for word in words) + "$"),
        "invisible letters": printed("\u3164".join(line)),
        "a dictionary of words": printed(str({word: 0.1 for word in words})),
        "JSON of words": shown(application_json={word: 0.1 for word in words}),
        "pairs": printed(str([(word, 0.25) for word in words])),
        "pairs in JSON": shown(application_json=[[word, 0.25] for word in words]),
        "records": shown(application_json=records),
        "records as text": printed(json.dumps(records, indent=1)),
        "a table with another column of words": shown(text_html=frame.to_html(), text_plain=frame.to_string()),
        "its transpose": shown(text_html=frame.T.to_html()),
        "a table as text": printed(frame.to_string()),
        "Markdown": shown(text_markdown="\n".join(f"| {word} | noun | 0.1 |" for word in words)),
        "csv": printed(frame.to_csv()),
        "ticks with numbers": drawn(weighted(words)),
        "ticks with numbers, in HTML": embedded(weighted(words)),
        "hover text with breaks": embedded(hover("<br>".join(words))),
        "numbered lines": printed("\n".join(f"{i}. {word}: {0.1 * i:.3f}" for i, word in enumerate(words))),
        "soft hyphens": printed(line.replace("ha", "h\xada")),
        "soft hyphens, escaped": shown(text_html=line.replace("ha", "h&shy;a")),
        "soft hyphens, escaped twice": shown(text_html=line.replace("ha", "h&amp;shy;a")),
        "optional breaks": shown(text_html=line.replace("d", "<wbr>d")),
        "zero-width characters": printed("\u200b".join(line)),
        "letters one by one": printed(" ".join(line)),
        "letters in elements": shown(text_html="".join(f"<b>{c}</b>" for c in line)),
        "hyphens at line ends": printed("Bibasi-\nlar strea-\n  ky shadow-\ning has pro-\ngressed"),
        "URL-encoded": shown(text_html=f"<a href='?q={line.replace(' ', '%20').replace('a', '%61')}'>x</a>"),
        "escapes of JSON": printed(escaped),
        "escapes of HTML": shown(text_html="".join(f"&#{ord(c)};" for c in line)),
        "escapes of HTML in hexadecimal": shown(text_html="".join(f"&#x{ord(c):x};" for c in line)),
        "escapes of Python": printed("".join(f"\\x{ord(c):02x}" for c in line)),
        "coloured": printed("".join(f"\x1b[3{i % 8}m{word}\x1b[0m " for i, word in enumerate(words))),
        "accents and ligatures": printed(line.replace("a", "a\u0301")),
        "full-width letters": printed("".join(chr(ord(c) + 0xFEE0) if c != " " else c for c in line)),
        "underscores": printed("_".join(words)),
        "joined": printed("".join(words)),
        "camel case": printed("".join(map(str.title, words))),
        "a path": printed(f"runs/{'/'.join(words)}.csv"),
        "an attribute": shown(text_html=f"<span data-text='{line}'>x</span>"),
        "a custom element": shown(text_html=f"<{'-'.join(words)}>x</{'-'.join(words)}>"),
        "an attribute's names": shown(text_html=f"<span {line}>x</span>"),
        "a comment": shown(text_html=f"<!-- {line} --><p>x</p>"),
        "a style": shown(text_html=f"<style>b::after {{content: '{line}'}}</style><b>x</b>"),
        "LaTeX": shown(text_latex=r"\begin{tabular}{l} " + r" & 0.1 \\ ".join(words) + r"\end{tabular}"),
        "a template": embedded(hover("x").update_layout(title={"text": line})),
        "the name of a trace": embedded(hover("x").update_traces(name=line)),
        "metadata of an output": new_output("display_data", data={"text/plain": "x"}, metadata={"alt": line}),
        "pieces of WordPiece": printed(str(wordpieces(line))),
        "pieces of CLIP": shown(application_json=clip_pieces(line)),
        "pieces of GPT-2": drawn(by_token(begun_pieces(line))),
        "two outputs": [shown(text_html=" ".join(words[:2])), *printed(" ".join(words[2:]))],
        "an output a word": [shown(text_plain=word) for word in words],
        "an output a word, with numbers": [shown(text_html=f"<p>{word}: 0.3</p>") for word in words],
        "a stream in pieces": printed(*line),
        "an error": new_output("error", ename="KeyError", evalue=line, traceback=[]),
    }


@functools.cache
def identifier_variants() -> dict[str, Any]:
    subject, study, dicom = "10984321", "56781234", DICOM
    return {
        "digits apart": printed(" ".join(subject)),
        "digits as tokens": printed(str([*subject])),
        "two cells": shown(text_html=f"<table><tr><td>{subject[:4]}</td><td>{subject[4:]}</td></tr></table>"),
        "other digits": printed("".join(chr(0x660 + int(digit)) for digit in subject)),
        "letters before": printed(f"patient{subject}"),
        "letters after": printed(f"{subject}frontal"),
        "letters around": printed(f"x{study}y"),
        "letters around a dicom_id": printed(f"img{dicom}view"),
        "an underscore": printed(f"a_{subject}_b"),
        "underscores as separators": printed("10_984_321"),
        "thousands separators": printed("subject 10,984,321"),
        "apostrophes": printed("10'984'321"),
        "points": printed("10.984.321"),
        "narrow spaces": printed("10\u202f984\u202f321"),
        "thin spaces, escaped": shown(text_html="10&thinsp;984&thinsp;321"),
        "cut by a hyphen": printed("1098-4321"),
        "cut at a line's end": printed("1098-\n4321"),
        "cut by a tag": shown(text_html="1098<b>4321</b>"),
        "cut by an optional break": shown(text_html="1098<wbr>4321"),
        "cut by a soft hyphen": printed("1098\xad4321"),
        "cut over two outputs": [shown(text_plain="p1098"), shown(text_plain="4321 at 0.2")],
        "joined": printed(subject + study),
        "joined by letters": printed(f"p{subject}s{study}"),
        "a number": shown(application_json={"subject": int(subject)}),
        "a decimal number": shown(text_plain=f"{subject}.0"),
        "a key": shown(application_json={subject: 1}),
        "a packed array": embedded(go.Figure(go.Bar(x=np.array([int(subject), 3]), y=[1, 2]))),
        "custom data": drawn(go.Figure(go.Scatter(x=[1], y=[2], customdata=[[int(study)]]))),
        "escapes": printed("".join(f"\\u{ord(c):04x}" for c in subject)),
        "escapes of HTML": shown(text_html="".join(f"&#{ord(c)};" for c in study)),
        "URL-encoded": shown(text_html=f"<a href='?id={subject.replace('1', '%31')}'>x</a>"),
        "full-width digits": printed("".join(chr(ord(c) + 0xFEE0) for c in subject)),
        "a dicom_id without hyphens": printed(dicom.replace("-", "")),
        "a dicom_id with underscores": printed(dicom.replace("-", "_")),
        "the first half of a dicom_id": printed(f"{dicom[:22]}…"),
        "the last part of a dicom_id": printed(f"…{dicom[-14:]}"),
        "a dicom_id in a file name": printed(f"map_{dicom}.npy"),
        "a dicom_id over two lines": printed(f"{dicom[:20]}\n{dicom[20:]}"),
        "a dicom_id in capitals": shown(text_markdown=f"`{dicom.upper()}`"),
    }


@functools.cache
def picture_variants() -> dict[str, Any]:
    values = PIXELS.tolist()
    flat = PIXELS.ravel().tolist()
    table = pd.DataFrame(PIXELS)
    return {
        "custom data in two rows": embedded(go.Figure(go.Scatter(x=[1, 2], customdata=[flat, flat]))),
        "percentages": printed("\n".join(" ".join(f"{v}%" for v in row) for row in values)),
        "signs": printed("\n".join("".join(" .:-=+*#%@"[v // 26] for v in row) for row in values)),
        "squares": printed("\n".join("".join("⬛⬜🟥"[v % 3] for v in row) for row in values)),
        "parallel coordinates": drawn(go.Figure(go.Parcoords(dimensions=[{"values": row} for row in PIXELS]))),
        "a matrix of scatters": embedded(go.Figure(go.Splom(dimensions=[{"values": row} for row in PIXELS]))),
        "a link to a file, in HTML": shown(text_html='<a href="scans/one.jpeg">x</a>'),
        "custom data of a scatter": drawn(go.Figure(go.Scatter(x=[1], y=[1], customdata=values))),
        "custom data, a value a point": drawn(go.Figure(go.Scatter(x=flat, y=flat, customdata=[[v] for v in flat]))),
        "custom data of a heatmap": embedded(go.Figure(go.Heatmap(z=[[1]], customdata=PIXELS))),
        "custom data with channels": drawn(go.Figure(go.Heatmap(z=[[1]], customdata=PIXELS[..., None].tolist()))),
        "text of a heatmap": drawn(go.Figure(go.Heatmap(z=[[1]], text=[[str(v) for v in row] for row in values]))),
        "text of a heatmap, in HTML": embedded(go.Figure(go.Heatmap(z=[[1]], hovertext=PIXELS.astype(str)))),
        "colours of a scatter": drawn(go.Figure(go.Scatter(x=XX, y=YY, marker={"color": flat}))),
        "colours by name": drawn(
            go.Figure(go.Scatter(x=XX, y=YY, marker={"color": [f"rgb({v},{v},{v})" for v in flat]}))
        ),
        "sizes of a scatter": embedded(go.Figure(go.Scatter(x=XX, y=YY, marker={"size": PIXELS.ravel()}))),
        "a mesh": drawn(go.Figure(go.Mesh3d(x=XX, y=YY, z=flat))),
        "rows as curves": drawn(go.Figure(go.Scatter(x=[1], y=values))),
        "a table of plotly": drawn(go.Figure(go.Table(cells={"values": values}))),
        "a pandas gradient": shown(text_html=gradient()),
        "a table of pixels": shown(text_html=table.to_html()),
        "a table of pixels as text": printed(table.to_string()),
        "a wide table of pixels, broken": printed(table.to_string(line_width=80)),
        "a table in Markdown": shown(text_markdown="\n".join(f"| {' | '.join(map(str, row))} |" for row in values)),
        "csv": printed(table.to_csv()),
        "csv without header": printed(table.to_csv(header=False, index=False)),
        "a printed array": printed(np.array2string(PIXELS, threshold=10**6)),
        "a printed array of floats": printed(np.array2string(PIXELS / 255, threshold=10**6)),
        "an array's repr": printed(repr(PIXELS.tolist())),
        "a flat list": printed(str(flat)),
        "a dictionary": printed(str({i: v for i, v in enumerate(flat)})),
        "JSON": shown(application_json=values),
        "JSON of a table": shown(application_json=json.loads(table.to_json())),
        "coloured cells": shown(text_html="".join(f"<i style='background:#{v:02x}{v:02x}{v:02x}'> </i>" for v in flat)),
        "block elements": printed("\n".join("".join(" ░▒▓█"[v // 52] for v in row) for row in values)),
        "braille": printed("\n".join("".join(chr(0x2801 + v % 255) for v in row) for row in values)),
        "base64": printed(png()),
        "base64 in a dictionary": shown(application_json={"image": png()}),
        "base64 in lines": printed(jpeg_lines()),
        "base64 in an attribute": shown(text_html=f"<b x='{base64.b64encode(RNG.bytes(300)).decode()}'>x</b>"),
        "base64 for URLs": printed(base64.urlsafe_b64encode(RNG.bytes(300)).decode()),
        "hexadecimal": printed(RNG.bytes(300).hex()),
        "bytes": printed(str(base64.b64decode(png()))),
        "a URL-encoded image": shown(text_html="<b x='data:image/svg+xml,%3Csvg%20viewBox%3D%220%209%22%3E'>x</b>"),
        "a data URI, escaped": printed(URI.replace("data:", "data\\u003a")),
        "CSS": shown(text_html="<i style='background-image: url(scan.png)'>x</i>"),
        "an SVG image": shown(text_html="<svg><image href='x.png'/></svg>"),
        "a frame": shown(text_html="<iframe src='scan.html'></iframe>"),
        "an image of MyST": shown(text_markdown="```{image} scan.png\n```"),
        "packed, of unknown type": shown(application_json={"z": {"dtype": "f3", "bdata": "AAAA"}}),
    }


@pytest.fixture(scope="module")
def other() -> guard.Private:
    return guard.private([OTHER], ["mimic"])


class TestVariants:
    """Many forms of each kind, from a cell tagged ``aggregate``."""

    @staticmethod
    def check(known: guard.Private, outputs: Any, what: str) -> None:
        cells = [aggregate(*(outputs if isinstance(outputs, list) else [outputs]))]
        assert what in {leak.what for leak in guard.leaks(new_notebook(cells=cells), known)}
        guarded = guard.withhold(new_notebook(cells=cells), known)
        assert guard.leaks(guarded, known) == []

    @pytest.mark.parametrize("form", text_variants())
    def test_report_text(self, other, form):
        self.check(other, text_variants()[form], "report text")

    @pytest.mark.parametrize("form", identifier_variants())
    def test_identifiers(self, other, form):
        only = guard.private([OTHER])
        self.check(only, identifier_variants()[form], "identifier of a study or patient")

    @pytest.mark.parametrize("form", picture_variants())
    def test_pictures(self, other, form):
        self.check(other, picture_variants()[form], "picture")

    @pytest.mark.parametrize(
        "text",
        [
            '<meta http-equiv="refresh" content="0;url=x">',
            '<base href="x">',
            '<link rel="stylesheet" href="x">',
            '<form action="x"><button>y</button></form>',
            '<p onmouseover="fetch(1)">x</p>',
            '<a href="javascript:alert(1)">x</a>',
            '<input type="image" src="x">',
        ],
    )
    def test_html_that_acts(self, other, text):
        self.check(other, shown(text_html=text), "script")

    def test_a_sentence_over_cells(self, other):
        halves = " ".join(STREAKY[:3]), " ".join(STREAKY[3:]) + ". A tiny apical"
        notebook = new_notebook(
            cells=[aggregate(*printed(halves[0])), new_code_cell("more()"), aggregate(*printed(halves[1]))]
        )
        assert guard.leaks(notebook, other) == [Leak(1, "output", "report text"), Leak(3, "output", "report text")]
        assert guard.leaks(guard.withhold(notebook, other), other) == []
        # A person wrote one half: the output goes.
        notebook = new_notebook(cells=[new_markdown_cell(halves[0]), aggregate(*printed(halves[1]))])
        assert guard.leaks(notebook, other) == [Leak(2, "output", "report text")]
        assert guard.leaks(guard.withhold(notebook, other), other) == []
        # Or both: it stays, and is listed.
        notebook = new_notebook(cells=[new_markdown_cell(half) for half in halves])
        assert {leak.kind for leak in guard.leaks(notebook, other)} == {"source"}

    @pytest.mark.parametrize("data", [png(), "%PDF", base64.b64encode(b"x").decode()])
    @pytest.mark.parametrize("kind", ["image/png", "image/svg+xml", "image/webp", "image/x-unheard-of", "video/mp4"])
    def test_any_picture_type(self, other, kind, data):
        self.check(other, new_output("display_data", data={kind: data, "text/plain": "x"}), "picture")


class TestUntagged:
    """Deny by default."""

    @pytest.mark.parametrize(
        "outputs",
        [
            printed("120 phrases"),
            [shown(text_html=TABLE.to_html())],
            [embedded(hover("x"))],
            [new_output("error", ename="E", evalue="no", traceback=[])],
            [*printed("a"), shown(text_plain="b"), *printed("c", stream="stderr")],
        ],
    )
    @pytest.mark.parametrize("tags", [[], ["hide-input"], ["aggregates"], ["parameters"]])
    def test_outputs_vanish(self, known, outputs, tags):
        notebook = new_notebook(cells=[new_code_cell("x", outputs=outputs, metadata={"tags": tags})])
        assert Leak(1, "output", "not tagged aggregate") in guard.leaks(notebook, known)
        guarded = guard.withhold(notebook, known)
        (output,) = guarded.cells[0].outputs
        assert output.data["text/plain"].startswith("Withheld (output of a cell that is not tagged aggregate): not to")
        assert guard.leaks(guarded, known) == []
        nbformat.validate(guarded)

    def test_a_report_with_the_words_of_a_notice_ends(self, tmp_path):
        """A confidentiality line in a csv of one's own: the notice itself is then report text, and left out."""
        report = "Withheld (report text): not to be passed on. Large left effusion with shift."
        known = guard.private([report])
        cells = [new_code_cell("x", outputs=printed("a")), new_code_cell("y", outputs=printed(report))]
        cells[1].metadata["tags"] = ["aggregate"]
        guarded = guard.withhold(new_notebook(cells=cells), known)
        assert guard.leaks(guarded, known) == []

    def test_cells_without_outputs_stay_so(self, known):
        notebook = new_notebook(cells=[new_code_cell("x"), new_markdown_cell("# T")])
        assert guard.withhold(notebook, known) == notebook


class TestOtherPlaces:
    @pytest.mark.parametrize(
        "source",
        [
            "![a chest](attachment:a.png)",
            "![a chest](scans/a.png)",
            "![a chest](<scans/a b.png>)",
            "![a chest][scan]",
            "[scan]: scans/a.jpg",
            "[the image](scans/a.jpeg)",
            "[the image](../runs/paper/a.dcm)",
            "![](https://example.org/a.png)",
            "<img src='a.png'>",
            "<IMG alt=x src=attachment:a.png>",
            "<a href='scans/a.png'>x</a>",
            f"<img src='{URI}'>",
            f"![x]({URI})",
            "<svg viewBox='0 0 9 9'></svg>",
            "```{image} scans/a.png\n:width: 100%\n```",
            ":::{figure} scans/a.png\nA caption.\n:::",
            "text ![x](a.gif) text",
        ],
    )
    def test_pictures_in_markdown_go(self, known, source):
        cell = new_markdown_cell(f"Look:\n\n{source}\n\nSo.")
        cell["attachments"] = {"a.png": {"image/png": png()}}
        notebook = new_notebook(cells=[cell])
        assert Leak(1, "attachment", "picture") in guard.leaks(notebook, known)
        (guarded,) = guard.withhold(notebook, known).cells
        assert "attachments" not in guarded
        assert guarded.source.startswith("Look:\n\n*Withheld (picture): not to be passed on (mimic: ")
        assert guarded.source.endswith("*\n\nSo.")
        assert "a." not in guarded.source.replace("data", "")
        assert guard.leaks(guard.withhold(notebook, known), known) == []
        nbformat.validate(guard.withhold(notebook, known))

    @pytest.mark.parametrize(
        "source",
        ["![a diagram](../_static/flow.svg)", "```{image} data/overview.png\n:width: 9%\n```", "[more](a.md), `a.png`"],
    )
    def test_the_books_own_pictures_stay(self, known, source):
        notebook = new_notebook(cells=[new_markdown_cell(source)])
        assert guard.leaks(notebook, known) == []
        assert guard.withhold(notebook, known) == notebook

    @pytest.mark.parametrize("tag", ["parameters", "injected-parameters"])
    def test_parameters_that_name_the_folder_or_a_study(self, known, data, tag):
        source = f'seed = 0\ndata = "{data}"\nstudy = "{name(P)}"\nsteps = 60_000'
        notebook = new_notebook(cells=[new_code_cell(source, metadata={"tags": [tag]})])
        assert {leak.what for leak in guard.leaks(notebook, known)} >= {"data folder", "MIMIC dicom_id"}
        lines = guard.withhold(notebook, known).cells[0].source.split("\n")
        assert (lines[0], lines[3]) == ("seed = 0", "steps = 60_000")
        assert lines[1].startswith("# Withheld (data folder): ")
        assert lines[2].startswith("# Withheld (MIMIC dicom_id")
        assert guard.leaks(guard.withhold(notebook, known), known) == []

    def test_metadata(self, known, data):
        cell = new_code_cell("x", metadata={"tags": ["a"], "papermill": {"error": f"no {name(P)}"}})
        notebook = new_notebook(cells=[cell])
        notebook.metadata |= {
            "kernelspec": KERNEL,
            "widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}},
            "papermill": {"parameters": {"data": f"{data}/mimic"}},
        }
        assert {str(leak) for leak in guard.leaks(notebook, known)} >= {
            "metadata: widget",
            "metadata: data folder",
            "cell 1, metadata: MIMIC dicom_id",
        }
        guarded = guard.withhold(notebook, known)
        assert guarded.metadata == {"kernelspec": KERNEL}
        assert guarded.cells[0].metadata == {"tags": ["a"]}

    @pytest.mark.parametrize("make", [new_markdown_cell, new_code_cell])
    def test_what_a_person_wrote_is_listed_and_never_changed(self, known, make):
        cell = make(f"# As in {name(P)}:\n# small right pleural effusion and bibasilar\n# atelectasis")
        notebook = new_notebook(cells=[cell])
        listed = [
            Leak(1, "source", what) for what in ("MIMIC dicom_id", "identifier of a study or patient", "report text")
        ]
        assert guard.leaks(notebook, known) == listed
        assert guard.withhold(notebook, known) == notebook

    def test_pictures_in_code_are_listed(self, known):
        notebook = new_notebook(cells=[new_code_cell(f"show('{URI}')")])
        assert guard.leaks(notebook, known) == [Leak(1, "source", "picture")]

    def test_a_person_may_use_anyones_words(self, known):
        words = f"“{EFFUSION}” names the finding. There is no pneumothorax."
        notebook = new_notebook(cells=[new_markdown_cell(words)])
        assert guard.leaks(notebook, known) == []
        # The same words in an output are withheld.
        notebook.cells.append(aggregate(*printed(words)))
        assert {leak.cell for leak in guard.leaks(notebook, known)} == {2}

    @pytest.mark.parametrize(("patients", "listed"), [(guard.COMMON - 1, True), (guard.COMMON, False)])
    def test_a_passage_is_anyones_when_enough_patients_share_it(self, patients, listed):
        passage = "The cardiac silhouette is of normal size today."
        # Twenty reports of one patient are one patient's.
        others = [Study(f"d{i}", "one", "mimic", "test", f"{passage} Report {i}.", (1, 1)) for i in range(20)]
        few = guard.private([*([passage] * (patients - 1)), *others])
        notebook = new_notebook(cells=[new_markdown_cell(passage)])
        assert (guard.leaks(notebook, few) != []) is listed
        assert found(few, *printed(passage)) == ["report text"]

    @pytest.mark.parametrize(
        ("page", "what"),
        [
            (f"<p>{SENTENCE}</p>", ["report text"]),
            (f"<p>{name(P)}</p>", ["MIMIC dicom_id", "identifier of a study or patient"]),
            (IMG, ["picture"]),
            ("<img src='_images/1f2e.png'>", ["picture"]),
            ("<svg></svg>", ["picture"]),
            ("<img src='../_static/logo.png'><script src='x.js?v=12345678'></script><script>theme()</script>", []),
            (hover("x").to_html(include_plotlyjs=False), []),
            (hover(EFFUSION).to_html(include_plotlyjs=False), ["report text"]),
            (go.Figure(go.Heatmap(z=RADIOGRAPH[0])).to_html(include_plotlyjs=False), ["picture"]),
            (TABLE.to_string(), []),
        ],
    )  # fmt: skip
    def test_a_page(self, known, page, what):
        assert guard.leaks(page, known) == [Leak(0, "page", w) for w in what]

    def test_texts_themselves_may_be_private(self, known):
        texts = guard.private([f"IMPRESSION: {SENTENCE}."])
        shows = found(texts, *printed(f"{SENTENCE} {name(P)}"))
        assert shows == ["MIMIC dicom_id", "report text"]


class TestSite:
    """The built pages, as a reader gets them."""

    @pytest.fixture
    def site(self, tmp_path) -> Path:
        cell = f"<div class='cell_output docutils container'>{TABLE.to_html()}</div>"
        (tmp_path / "notebooks").mkdir()
        (tmp_path / "_images").mkdir()
        (tmp_path / "_images" / "overview.png").write_bytes(b"")
        words = f"“{EFFUSION}” names the finding. There is no pneumothorax."
        page = f"<html><link href='x?v=12345678'><img src='_images/overview.png'><p>{words}</p>{cell}</html>"
        (tmp_path / "notebooks" / "a.html").write_text(page)
        return tmp_path

    def test_is_clean(self, known, site):
        assert guard.site_leaks(site, known, ["overview.png"]) == []

    def test_other_pictures_are_listed(self, known, site):
        (site / "_images" / "1f2e.png").write_bytes(b"")
        (site / "_downloads").mkdir()
        (site / "_downloads" / "scan.dcm").write_bytes(b"")
        assert guard.site_leaks(site, known, ["overview.png"]) == [
            "_downloads/scan.dcm: picture", "_images/1f2e.png: picture",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            (f"<p>{SENTENCE}</p>", "report text"),
            (f"<a title='{name(P)}'>x</a>", "MIMIC dicom_id"),
            (f"<div class='cell_output'><pre>{EFFUSION}</pre></div>", "report text"),
            (f"<div class='cell_output'>{hover(EFFUSION).to_html(include_plotlyjs=False)}</div>", "report text"),
            (IMG, "picture"),
        ],
    )
    def test_text_is_listed(self, known, site, text, what):
        with (site / "notebooks" / "a.html").open("a") as page:
            page.write(text)
        assert f"notebooks/a.html: {what}" in guard.site_leaks(site, known, ["overview.png"])


class TestAggregates:
    def test_pass_unchanged_byte_for_byte(self, known):
        labels = RNG.integers(0, 2, (500, len(FINDINGS)))
        trace = pd.DataFrame({"step": range(0, 60_000, 500), "loss": RNG.random(120), "lr": 5e-5})
        layers = pd.DataFrame(RNG.random((16, 40)), index=[f"up.{i}" for i in range(16)], columns=range(0, 1000, 25))
        figures = [
            px.imshow(labels.T @ labels, x=FINDINGS, y=FINDINGS, text_auto=True),
            go.Figure(go.Heatmap(z=layers.to_numpy(), x=list(layers.columns), y=list(layers.index))),
            go.Figure(go.Heatmap(z=layers.to_numpy().T.tolist())),
            go.Figure(go.Scatter(x=trace["step"], y=trace["loss"], error_y={"array": RNG.random(120)})),
            go.Figure(go.Scatter(x=RNG.random(5000), y=RNG.random(5000), mode="markers")),
            go.Figure(go.Scatter(x=list(range(5000)), y=RNG.random(5000).tolist(), mode="markers")),
            go.Figure(go.Histogram2d(x=RNG.random(5000), y=RNG.random(5000), nbinsx=60, nbinsy=60)),
        ]
        texts = [
            "22,565,376 weights in the text encoder, 83% of those a learnable run trains\n",
            "There is a small difference between the right and the left: pleural effusion 0.12345678 ± 0.10000032\n",
            f"Pleural Effusion: AUC 0.71, n = 1043\nof {runs.fingerprint('x')}, commit {40 * 'a'}, {64 * '5'}\n",
            "step 60000, seed 20240101, 110000032, 100000321, chestxai 1.10000032\n",
        ]
        sides = pd.DataFrame({"side": ["left", "right"] * 4, "finding": FINDINGS, "AUC": RNG.random(8)})
        big = pd.DataFrame(RNG.random((30, 12)), index=[f"score {i}" for i in range(30)]).round(3)
        notebook = new_notebook(
            cells=[
                new_markdown_cell("# The trade-off\n\n$x^2$, `y`, and a [link](a.md)"),
                new_code_cell("seed = 0\nsteps = 60_000", metadata={"tags": ["injected-parameters"]}),
                *(aggregate(drawn(f), embedded(f)) for f in figures),
                aggregate(shown(text_html=TABLE.to_html(), text_plain=TABLE.to_string())),
                aggregate(shown(text_html=TABLE.style.format(precision=2).set_caption("scores").to_html())),
                aggregate(shown(text_html=TABLE.describe().to_html(), text_latex="$a$")),
                aggregate(shown(text_html=sides.to_html(), text_plain=sides.to_string())),
                aggregate(shown(text_html=big.to_html(), text_plain=big.to_string())),
                *(aggregate(*printed(text)) for text in texts),
                aggregate(new_output("error", ename="E", evalue="no", traceback=["\x1b[31mE\x1b[0m"])),
            ]
        )
        notebook.metadata |= {"kernelspec": KERNEL}
        before = nbformat.writes(notebook)
        assert guard.leaks(notebook, known) == []
        assert nbformat.writes(guard.withhold(notebook, known)) == before

    @pytest.mark.parametrize(("side", "denied"), [(GRID - 1, False), (GRID, True)])
    def test_a_grid_is_a_picture_from_so_many_rows_and_columns_on(self, known, side, denied):
        for z in (np.ones((side, 90)), np.ones((90, side)).tolist()):
            assert (found(known, drawn(go.Figure(go.Heatmap(z=z)))) != []) is denied

    @pytest.mark.parametrize("phrase", ["edema", "Pleural  effusion", "enlarged cardiac silhouette", "hazy"])
    def test_the_name_of_a_finding_or_a_word_alone_is_no_phrase(self, phrase):
        study = Study("d1", "p1", "mimic", "test", "", (1, 1), (Finding("Edema", phrase),))
        assert found(guard.private([study]), *printed(f"AUC of {phrase}: 0.7")) == []
        more = Study("d1", "p1", "mimic", "test", "", (1, 1), (Finding("Edema", f"mild {phrase}"),))
        assert found(guard.private([more]), *printed(f"AUC of mild {phrase}: 0.7")) == ["report text"]

    def test_cells_of_one_word_join(self):
        words = ["some", "left", "basal", "haze"]
        known = guard.private([Study("d1", "p1", "mimic", "test", "", (1, 1), (Finding("Edema", " ".join(words)),))])
        frame = pd.DataFrame({"token": words, "weight": [0.1, 0.2, 0.3, 0.4]})
        for page in (
            frame.to_html(), frame.T.to_html(), f"<pre>{frame}</pre>", f"<pre>{frame.T}</pre>", frame.token.to_string(),
            "".join(f"<li>{word}</li>" for word in words), "\n".join(f"{i} {word}" for i, word in enumerate(words)),
            frame.set_index(pd.MultiIndex.from_product([["a"], range(4)])).to_html(),
        ):  # fmt: skip
            assert guard.leaks(page, known) == [Leak(0, "page", "report text")], page


class TestIdentifiers:
    @pytest.mark.parametrize(
        ("source", "what", "texts"),
        [
            ("mimic", "MIMIC subject_id",
             ["p10000032", "10000032", "19999987.", "p10/p10000032/s1", "a_10000032", "10000032.0"]),
            ("mimic", "MIMIC study_id", ["s50414267", "50414267", "(50414267)", "s50414267.txt", "S50414267"]),
            ("mimic", "MIMIC dicom_id", ["02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg"]),
            ("vindr", "VinDr image_id", [f"{4 * '01234567'}.dicom", f"[{4 * '89ABCDEF'}]"]),
            ("padchest", "PadChest ImageID", ["216840111366964013307756408102012330110403276_00-163-058.png"]),
            ("padchest", "PadChest StudyID or PatientID", ["313572750430997347502932654319389875966"]),
            ("chexlocalize", "CheXpert patient", ["CheXpert/val/patient64541/study1/view1_frontal.jpg"]),
            ("padchest", "DICOM UID", ["1.2.826.0.1.3680043.8.498"]),
        ],
    )  # fmt: skip
    def test_are_recognised_by_their_form(self, source, what, texts):
        only = guard.private([], [source])
        for text in texts:
            assert what in found(only, *printed(f"see {text} there")), text

    @pytest.mark.parametrize("source", [name for name in sources.SOURCES if sources.terms(name).identifiers])
    @pytest.mark.parametrize(
        "text",
        [
            "0.10000032", "1.50414267", "110000032", "1000003", "20240101", "8",
            "1234567890123456789", "3ee479438cf8b5e0d341", 40 * "a", 64 * "0", "1.19.6", "127.0.0.1",
            "16884ab4-3f0e-4d1c-9a0e-9d1b6f6a2c11", "10000032-3f0e-4d1c-9a0e-9d1b6f6a2c11", "10000032.5",
        ],
    )  # fmt: skip
    def test_other_numbers_are_none(self, source, text):
        assert found(guard.private([], [source]), *printed(f"see {text} there")) == []

    @pytest.mark.parametrize("text", ["b10000032", "10000032b", "10,000,032", "10_000_032", "x_10000032_y"])
    def test_letters_and_separators_do_not_hide_a_form(self, text):
        assert found(guard.private([], ["mimic"]), *printed(text)) == ["MIMIC subject_id"]

    @pytest.mark.parametrize("numbers", [[50, 100, 150], [10, 100, 200], [1.5, 123.4, 234.5, 345.1, 456.2, 567.3]])
    def test_lists_of_numbers_are_no_grouped_number(self, numbers):
        only = guard.private([], ["mimic"])
        assert found(only, embedded(go.Figure(go.Scatter(x=numbers, y=numbers)))) == []
        assert found(only, *printed(json.dumps(numbers, separators=(",", ":")))) == []

    def test_of_another_source_do_not_count(self):
        assert found(guard.private([], ["vindr"]), *printed("12345678 parameters")) == []
        assert found(guard.private([]), *printed("12345678 parameters")) == ["MIMIC subject_id"]

    def test_of_the_very_studies_count_whatever_their_form(self):
        study = Study(
            "CXR-77-004",
            "pat0017",
            "vindr",
            "test",
            "",
            (1, 1),
            path=Path("x/scan2024b.png"),
            attributes={"study": "v123456", "age": 123456.5},
        )
        known = guard.private([study])
        for text in ("cxr-77-004/Edema/edema", "of pat0017.", "scan2024b.png", "_v123456_", "sv123456", "CXR77-004b"):
            assert found(known, *printed(text)) == ["identifier of a study or patient"], text
        for text in ("CXR-77-005", "pat00", "123456.5"):
            assert found(known, *printed(text)) == []

    def test_short_ones_would_be_everywhere(self):
        known = guard.private([Study("12", "17", "vindr", "test", "", (1, 1))])
        assert found(known, *printed("12 of 17")) == []

    def test_ones_own_uuids_are_found_and_plotlys_are_not(self):
        uuid = "0004cfab-14fd-4e49-80ba-63a80b6bddd6"
        for study in (
            Study(f"images/{uuid}.png", uuid, "folder", "test", "", (1, 1)),
            Study(f"images/{uuid}.png", "p1", "folder", "test", "", (1, 1), path=Path(f"x/{uuid}.png")),
            Study(f"images/{uuid}.png", "p1", "folder", "test", "", (1, 1)),
        ):
            known = guard.private([study], ["folder"])
            for text in (f"patient {uuid}", f"images/{uuid}.png", f"<p id='{uuid.upper()}'>x</p>"):
                assert found(known, shown(text_html=text)) == ["identifier of a study or patient"], text
            assert found(known, embedded(hover("x"))) == []

    @pytest.mark.parametrize(
        ("id", "shows", "others"),
        [
            ("images/Müller_1955_01.png",
             ["images/Müller_1955_01.png", "of MÜLLER_1955_01,", "/x/Müller_1955_01.jpg", "<b>Müller</b>_1955_01",
              "xMüller_1955_01", "Muller_1955_01"],
             ["Müller_1955", "Möller_1955_01"]),
            ("患者1234567",
             ["患者1234567", "病患者1234567的影像", "患者1234567.png"], ["患者 123", "1234567"]),
            ("PAT#0012345",
             ["PAT#0012345", "(pat#0012345)", "a_PAT#0012345_b", "XPAT#0012345"], ["PAT#001234", "001234"]),
            ("A12345+2", ["A12345+2", "A12345+2.", "A12345+2.png", "BA12345+2"], ["A12345", "A12345+3"]),
            ("2023:10:17:001", ["2023:10:17:001", "x 2023:10:17:001\n"], ["2023:10:17:0011", "12023:10:17:001"]),
            ("scans/Jane Doe 1955.png",
             ["scans/Jane Doe 1955.png", "Jane Doe 1955", "jane\n  doe&nbsp;1955", "<i>Jane</i> Doe 1955",
              "MaryJane Doe 1955"],
             ["Jane Doe", "Mary Jane Roe 1955"]),
            ("ID(4711234)", ["ID(4711234)", "see ID(4711234), too"], ["ID(471123)", "471123"]),
            ("a__b1234", ["a__b1234", "a__b1234.png", "a_b1234"], ["a__b123", "b1234"]),
        ],
    )  # fmt: skip
    def test_of_any_letters_and_signs(self, id, shows, others):
        for form in ("NFC", "NFD"):
            study = Study(unicodedata.normalize(form, id), "p1", "folder", "test", "", (1, 1))
            own = guard.private([study], ["folder"])
            for text in shows:
                for page in (text, unicodedata.normalize("NFD", text)):
                    assert found(own, shown(text_html=page)) == ["identifier of a study or patient"], text
                assert found(own, drawn(hover(text))) == ["identifier of a study or patient"], text
            for text in others:
                assert found(own, shown(text_html=text)) == [], text
        patient = guard.private([Study("1", id, "folder", "test", "", (1, 1))], ["folder"])
        assert found(patient, *printed(f"of {id} there")) != []

    def test_attributes_with_spaces_are_none(self):
        study = Study("1", "2", "nih", "test", "", (1, 1), attributes={"seen": "in 2023, twice"})
        assert found(guard.private([study]), *printed("in 2023, twice")) == []


class TestTokens:
    """Text that is shown token by token, a piece of a word a cell."""

    @pytest.mark.parametrize("kind", CUT)
    def test_on_a_finished_page(self, known, kind):
        pieces = CUT[kind](SENTENCE)
        for table in (of_chapter_1(pieces), of_chapter_3(pieces)):
            for frame in (table, table.T):
                for page in (as_html(frame), f"<pre>{html.escape(as_text(frame))}</pre>", as_text(frame)):
                    listed = guard.leaks(f"<html><h1>Tokens</h1>{page}<p>are pieces</p></html>", known)
                    assert Leak(0, "page", "report text") in listed, page
        for words in (pieces, SENTENCE.split()):
            page = by_token(words).to_html(include_plotlyjs=False)
            assert Leak(0, "page", "report text") in guard.leaks(page, known)

    @pytest.mark.parametrize("phrase", ["mild basilar atelectasis", "hazy shadowing", "left-sided haze"])
    @pytest.mark.parametrize("cut", [wordpieces, clip_pieces, begun_pieces, lambda t: begun_pieces(t, "▁")])
    def test_short_phrases_too(self, cut, phrase):
        own = guard.private([Study("d1", "p1", "mimic", "test", "", (1, 1), (Finding("Edema", phrase),))])
        pieces = cut(phrase)
        table = of_chapter_3(pieces)
        texts = [as_text(table), as_text(table.T), str(pieces), " ".join(pieces), "\n".join(pieces), f"x: {pieces}"]
        outputs = [
            *(shown(text_plain=text) for text in texts),
            *(shown(text_html=as_html(frame)) for frame in (table, table.T)),
            *(shown(text_markdown=f"| {' | '.join(cells)} |") for cells in (pieces, pieces[1:-1])),
            *(shown(text_html="".join(f"<{tag}>{html.escape(p)}</{tag}>" for p in pieces)) for tag in ("div", "li")),
            shown(text_html=" ".join(f"<span>{html.escape(piece)}</span>" for piece in pieces)),
            drawn(by_token(pieces)),
            drawn(go.Figure(go.Table(cells={"values": [[piece, 0.1] for piece in pieces]}))),
            drawn(go.Figure(go.Bar(x=[1], y=[2]), {"annotations": [{"text": piece} for piece in pieces]})),
            shown(application_json=[{"token": piece, "weight": 0.1} for piece in pieces]),
            shown(application_json=dict.fromkeys(pieces, 0.1) if len({*pieces}) == len(pieces) else pieces),
            shown(application_json={str(i): piece for i, piece in enumerate(pieces)}),
        ]
        for output in outputs:
            assert found(own, output) == ["report text"], output

    def test_of_other_words_stay(self, known):
        for cut in CUT.values():
            table = of_chapter_1(cut("a chest radiograph without anything of note"))
            outputs = [shown(text_html=as_html(f), text_plain=as_text(f)) for f in (table, table.T)]
            outputs += [drawn(by_token(cut("no one wrote that"))), *printed("## Title\n##comment, [CLS] and </w>\n")]
            assert found(known, *outputs) == []

    def test_what_a_person_wrote_keeps_its_rules(self, known):
        written = new_markdown_cell(f"`{wordpieces(EFFUSION)}`")
        assert guard.leaks(new_notebook(cells=[written]), known) == []


LEXICON = st.lists(st.sampled_from(["heart", "lungs", "ribs"]), max_size=12)


class TestText:
    @given(report=st.lists(LEXICON, max_size=4), text=LEXICON)
    def test_is_found_exactly_when_a_sentence_or_six_words_in_a_row_are_there(self, report, text):
        def inside(part: list[str]) -> bool:
            return any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))

        words = [w for sentence in report for w in sentence]
        expected = any(len(s) >= 4 and inside(s) for s in report) or any(
            inside(words[i : i + 6]) for i in range(len(words) - 5)
        )
        written = ".\n".join(" ".join(sentence) for sentence in report)
        assert bool(guard.leaks(" ".join(text), guard.private([written]))) is expected

    @given(st.data())
    def test_white_space_case_and_punctuation_do_not_hide_it(self, data):
        gaps = st.sampled_from([" ", "\n", "\t ", ", ", " - ", " <br>", "&nbsp;", "<b>", "</b> ", " 0.7 ", "|", "\xad"])
        forms = st.sampled_from([str.upper, str.lower, str.title])
        text = "".join(data.draw(forms)(word) + data.draw(gaps) + " " for word in SENTENCE.split())
        known = guard.private([f"FINDINGS: ___ {SENTENCE}. No edema."])
        assert guard.leaks(text, known) == [Leak(0, "page", "report text")]

    def test_blanks_and_numbers_of_a_list_do_not_hide_it(self):
        known = guard.private(["IMPRESSION:\n 1. Stable ___ effusion left.\n 2. No new edema."])
        assert guard.leaks("Stable effusion left. No new edema.", known) != []
        assert guard.leaks("impression: 1. stable ___ effusion left 2. no new edema", known) != []

    def test_a_sentence_a_line_without_a_stop(self):
        known = guard.private(["Blunted left costophrenic angle\nNormal heart"])
        assert guard.leaks("“Blunted left costophrenic angle”: 0.7", known) == [Leak(0, "page", "report text")]
        assert guard.leaks("LEFT COSTOPHRENIC ANGLE BLUNTED", guard.private(["LEFT COSTOPHRENIC\nANGLE BLUNTED"])) != []

    def test_a_script_without_blanks_between_words(self):
        known = guard.private(["双肺纹理增多，右下肺见斑片状高密度影，心影明显增大。"])
        assert guard.leaks("右下肺见斑片状高密度影", known) != []
        assert guard.leaks("影像学方法", known) == []

    def test_words_of_a_list_side_by_side(self):
        words = "Moderate cardiomegaly with small left pleural effusion and patchy basal opacity today".split()
        pairs = [(word, name, 0.1) for word, name in zip(words, FINDINGS * 2, strict=False)]
        known = guard.private([" ".join(words)])
        for shown in (pairs, [list(pair) for pair in pairs]):
            assert guard.leaks(repr(shown), known) != []

    def test_letters_written_in_two_ways_are_the_same(self):
        known = guard.private(["Peque\u00f1o derrame pleural derecho."])
        assert guard.leaks("pequen\u0303o derrame pleural derecho", known) != []

    @pytest.mark.parametrize(
        "text", ["Pleural effusion, pneumonia, pneumothorax, or edema.", "No left lung opacity or edema."]
    )
    def test_findings_and_sides_alone_are_no_report_text(self, text):
        assert guard.leaks(text, guard.private([text])) == []


class TestTerms:
    @pytest.mark.parametrize("source", sources.SOURCES)
    def test_every_source_carries_its_terms(self, source):
        terms = sources.terms(source)
        assert terms.credentialed is (source not in ("phantom", "openi", "nih", "coco"))
        assert terms.licence
        assert terms.conditions
        assert "\n" not in terms.conditions
        assert terms.url.startswith("https://") or source == "folder"

    def test_by_hand(self):
        assert sources.terms("mimic").licence == "PhysioNet Credentialed Health Data License 1.5.0"
        assert sources.terms("openi").licence == "CC BY-NC-ND 4.0"
        with pytest.raises(ValueError, match="unknown source 'chexphoto': choose one of phantom"):
            sources.terms("chexphoto")

    @pytest.mark.parametrize("profile", [p for p in profiles.names() if profiles.load(p).data.source != "mimic"])
    def test_books_of_open_data_are_not_touched(self, profile):
        assert guard.closed(profiles.load(profile)) == ()

    def test_ones_own_data_are_withheld_until_the_profile_says_otherwise(self):
        for source, boxes, said, closed in [
            ("folder", None, None, ("folder",)),
            ("folder", None, True, ("folder",)),
            ("folder", None, False, ()),
            ("phantom", "folder", None, ("folder",)),
            ("openi", "nih", None, ()),
            ("openi", "nih", True, ("openi", "nih")),
            ("phantom", None, True, ()),
            ("mimic", "folder", None, ("mimic", "folder")),
        ]:
            own = profiles.DataSettings(source=source, boxes=boxes, credentialed=said)
            assert guard.closed(PAPER.model_copy(update={"data": own})) == closed

    def test_of_ones_own_data(self, tmp_path):
        (tmp_path / "folder" / "scans").mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "folder" / "scans" / "7.png")
        row = "scans/7.png,Left basal haze behind a large heart.,ward-0815"
        (tmp_path / "folder" / "a.csv").write_text(f"image,text,patient\n{row}\n")
        own = PAPER.model_copy(update={"data": profiles.DataSettings(source="folder")})
        mine = guard.of(own, tmp_path)
        assert mine.names == ("folder",)
        for text, what in {
            "see scans/7.png": "identifier of a study or patient",
            "see other/folder/scans/7.png": "identifier of a study or patient",
            "of ward-0815, too": "identifier of a study or patient",
            "a haze; left basal haze behind a large heart": "report text",
            # Numbers in the form of MIMIC's are nobody's here.
            "10000032 weights": "",
            "scans/8.png": "",
        }.items():
            assert " ".join(found(mine, *printed(text))) == what, text
        picture = new_notebook(cells=[aggregate(shown(image_png=png()))])
        assert "Withheld (picture): not to be passed on (folder: your own)" in str(guard.withhold(picture, mine))

    def test_options_of_a_source_are_those_of_the_run(self, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(sources, "load", lambda *given, **options: asked.append(options) or [])
        own = profiles.DataSettings(source="padchest", options={"padchest": {"language": "es"}})
        guard.of(PAPER.model_copy(update={"data": own}), tmp_path)
        assert asked == [{"language": "es"}] * 3

    def test_of_the_paper(self, known, data):
        assert guard.closed(PAPER) == known.names == ("mimic",)
        assert {str(p) for p in PATIENTS} <= known.words
        assert str(data) in known.folders
        with pytest.raises(ValueError, match="say where they are with --data, the folder that holds mimic/"):
            guard.of(PAPER, "")
        with pytest.raises(FileNotFoundError, match="Terms: credentialed access"):
            guard.of(PAPER, data.parent)


@pytest.fixture
def executed(data, tmp_path) -> list[str]:
    """The executed notebooks of profile "paper" as a batch leaves them, full of data; the options that name them."""
    out, profile = tmp_path / "runs", tmp_path / "paper.yaml"
    # The weights of Inception and TorchXRayVision are not here.
    content = runs.read_yaml(profiles.DATA / "profiles" / "paper.yaml")
    content["sampling"]["spaces"] = ["findings"]
    profile.write_text(json.dumps(content))
    options = ["--profile", str(profile), "--variants", "frozen", "--data", str(data), "--out", str(out)]
    run = write_run(tmp_path / "written", "frozen", 0)
    every = [make() for make, _ in PLANTED.values()]
    for node in planned(options):
        outputs = [shown(image_png=png()), *printed(f"see {name(P)}: {SENTENCE}")]
        if node.notebook.stem == "01_reports_and_images":
            outputs = [part for output in every for part in (output if isinstance(output, list) else [output])]
        attached = new_markdown_cell("![a chest](attachment:a.png)")
        attached["attachments"] = {"a.png": {"image/png": png()}}
        cells = [
            new_markdown_cell(f"# {node.notebook.stem}"),
            new_code_cell(f'data = "{data}"\nseed = 0', metadata={"tags": ["injected-parameters"]}),
            attached,
            new_code_cell("x", outputs=[*outputs, *printed("only here")]),
            aggregate(*outputs),
            aggregate(shown(text_html=TABLE.to_html()), embedded(hover("bars"))),
        ]
        notebook = new_notebook(cells=cells, metadata={"kernelspec": KERNEL, "widgets": {"state": {}}})
        node.folder.mkdir(parents=True, exist_ok=True)
        node.executed.write_text(json.dumps(notebook))
        for made in node.makes:
            empty = b"step,loss,grad_norm,lr,seconds,images_per_second\n1,1,1,1,1,1\n" if made == "train.csv" else b""
            (node.folder / made).write_bytes((run / made).read_bytes() if (run / made).is_file() else empty)
        runs.write_json(node.record, {"identity": node.identity})
    return [*options, "--output", str(tmp_path / "_build")]


def planned(options: list[str]) -> list[batch.Node]:
    parser = argparse.ArgumentParser()
    batch.add_options(parser)
    return batch.planned(parser.parse_args(options[:8]))[1]


class TestBook:
    def test_builds_with_the_aggregates_and_nothing_else(self, executed, known, data, tmp_path, capsys):
        secrets = (name(P), str(P), "bibasilar", str(data).lower(), png().lower())
        complete = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*.ipynb")}
        assert book.main(executed) == 0
        printed_text = capsys.readouterr().out
        assert "Withholding images, report texts and identifiers of mimic" in printed_text
        assert "AUC-ROC" in printed_text
        html = tmp_path / "_build" / "html"
        pages = sorted(html.glob("notebooks/*.html"))
        assert [page.stem for page in pages] == [chapter.name for chapter in batch.CHAPTERS]
        for page in pages:
            text = page.read_text()
            assert "only here" not in text
            assert "Withheld (output of a cell that is not tagged aggregate): not" in text
            assert "Withheld (picture): not to be passed on (mimic: PhysioNet" in text
            assert "Plotly.newPlot" in text
            assert "Pleural Effusion" in text
        assert guard.site_leaks(html, known, ["overview.png", "overview-dark.png", "phantoms.png"]) == []
        # Nowhere in what is published: not in the pages, nor in the notebooks offered for download or the search index.
        for file in html.rglob("*"):
            if file.is_file() and "_static" not in file.parts:
                content = file.read_bytes().lower()
                assert not [secret for secret in secrets if secret.encode() in content], file
        # The researcher's own stay complete.
        assert {p: p.read_bytes() for p in complete} == complete

    def test_without_the_guard_a_book_shows_everything(self, executed, tmp_path):
        # So it is the guard that withholds; and books of open data are laid out as ever.
        source = book.assemble(planned(executed), tmp_path / "open")
        pages = [page.read_text() for page in source.glob("notebooks/*.ipynb")]
        assert len(pages) == len(batch.CHAPTERS)
        assert all(png() in page and name(P) in page and SENTENCE in page for page in pages)

    def test_stops_with_the_list_when_something_is_left(self, executed, tmp_path, monkeypatch, capsys):
        html = tmp_path / "_build" / "html"
        html.mkdir(parents=True)
        (html / "index.html").write_text("an earlier book")
        withhold = guard.withhold

        def careless(notebook: Any, known: Any) -> Any:
            guarded = withhold(notebook, known)
            if "08_tradeoff" in guarded.cells[0].source:
                guarded.cells.append(aggregate(shown(image_png=png()), *printed(f"see {name(P)}")))
            return guarded

        monkeypatch.setattr(guard, "withhold", careless)
        with pytest.raises(SystemExit) as stopped:
            runs.command(lambda: book.main(executed))
        assert stopped.value.code == 2
        told = capsys.readouterr().err
        assert told.startswith("error: nothing is built: 3 places still show credentialed data")
        assert (
            "notebooks/08_tradeoff, cell 6, output: picture; notebooks/08_tradeoff, cell 6, output: MIMIC dicom_id"
            in told
        )
        assert name(P) not in told
        assert [p.name for p in html.iterdir()] == ["index.html"]
        assert (html / "index.html").read_text() == "an earlier book"
        assert not (tmp_path / "_build" / "book").exists()

    def test_stops_when_the_table_of_results_shows_something(self, executed, tmp_path, monkeypatch, capsys):
        results = pages.results
        monkeypatch.setattr(pages, "results", lambda nodes: f"{results(nodes)}\n{name(P)}: {SENTENCE}.")
        with pytest.raises(SystemExit) as stopped:
            runs.command(lambda: book.main(executed))
        assert stopped.value.code == 2
        out, told = capsys.readouterr()
        assert told.startswith("error: nothing is built: 3 places still show credentialed data")
        for what in ("MIMIC dicom_id", "identifier of a study or patient", "report text"):
            assert f"table of results, {what}" in told
        # Neither the message nor what was printed before it shows the thing.
        assert SENTENCE not in out + told
        assert name(P) not in out + told
        assert not (tmp_path / "_build" / "html").exists()

    def test_lists_each_kind_that_is_left(self, executed, tmp_path, monkeypatch):
        withhold = guard.withhold
        made = [make() for make, _ in PLANTED.values()]
        cells = [aggregate(*(m if isinstance(m, list) else [m])) for m in made]

        def careless(notebook: Any, known: Any) -> Any:
            guarded = withhold(notebook, known)
            if "11_knowledge" in guarded.cells[0].source:
                guarded.cells += cells
                guarded.metadata["widgets"] = {"state": {}}
            return guarded

        monkeypatch.setattr(guard, "withhold", careless)
        with pytest.raises(ValueError, match="nothing is built") as stopped:
            book.main(executed)
        places = str(stopped.value).partition("passed on: ")[2].partition(". Take them out")[0].split("; ")
        assert "notebooks/11_knowledge, metadata: widget" in places
        for i, (kind, (_, what)) in enumerate(PLANTED.items(), start=6):
            assert f"notebooks/11_knowledge, cell {i}, output: {what}" in places, kind
        assert not (tmp_path / "_build").exists()

    def test_stops_when_a_person_wrote_a_report_into_a_chapter(self, executed, tmp_path):
        path = tmp_path / "runs" / "paper" / "08_tradeoff.ipynb"
        notebook = nbformat.read(path, as_version=4)
        notebook.cells.append(new_markdown_cell(f"As one report says: {SENTENCE}."))
        nbformat.write(notebook, path)
        with pytest.raises(ValueError, match=r"1 places .*: notebooks/08_tradeoff, cell 6, source: report text\. Take"):
            book.main(executed)
        assert not (tmp_path / "_build").exists()

    def test_needs_the_data_to_look_for(self, executed):
        i = executed.index("--data")
        with pytest.raises(ValueError, match="reads 'mimic' from disk: say where"):
            book.main(executed[:i] + executed[i + 2 :])

    def test_the_picture_of_the_readme_is_never_of_credentialed_data(self, executed):
        draw = runpy.run_path(str(profiles.ROOT / "tools" / "readme_picture.py"))["draw"]
        with pytest.raises(InputError, match=r"README's picture may not show mimic"):
            draw(PAPER, planned(executed), profiles.ROOT / "gone.png")
        assert not (profiles.ROOT / "gone.png").exists()

    def test_looks_over_the_built_pages(self, executed, known, tmp_path, monkeypatch):
        html = tmp_path / "_build" / "html"
        html.mkdir(parents=True)
        (html / "index.html").write_text("an earlier book")
        cards = pages.data_cards
        monkeypatch.setattr(pages, "data_cards", lambda folder: f"{cards(folder)}\n\n{SENTENCE}, {name(P)}.\n")
        with pytest.raises(InputError, match=r"data_cards.html: MIMIC dicom_id; .*data_cards.html: report text"):
            book.main(executed)
        assert (html / "index.html").read_text() == "an earlier book"

    def test_the_published_table_is_of_aggregates_only(self, executed, known, tmp_path):
        # What is printed comes from grounding.csv, which has one row a phrase and is not published.
        nodes = planned(executed)
        assert guard.leaks(book.results(nodes), known) == []
        table = pages.tradeoff.table([n.folder for n in nodes if "fidelity.json" in n.makes], n=100)
        assert not {"study", "patient", "phrase", "finding", "prompt"} & {*table.columns}


def test_decimals_are_not_read_as_hex_and_hex_still_is():
    from chestxai.book.reading import _packed_text

    assert _packed_text("[0.3133333333333333, 1]") == ""
    assert _packed_text("0.31333333333333333e5") == ""
    secret = "bibasilar streaky shadowing"
    assert secret in _packed_text(secret.encode().hex())
    assert secret in _packed_text(base64.b64encode(secret.encode()).decode())
    assert "12345678901" in _packed_text(b"12345678901".hex())
