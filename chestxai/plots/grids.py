"""Grids of pictures as plotly figures: radiographs, overlays, studies; variants side by side.

Images travel as base64 PNG (JPEG above 192 pixels, where a noisy radiograph would weigh ten times as much), heatmaps as
one-byte palette PNGs with transparency: a grid of twenty overlays weighs some tens of kilobytes.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from chestxai.plots import pictures
from chestxai.plots.pictures import Boxes, Images, Masks, Picture, Scale, Texts, as_pictures, listed, study_picture
from chestxai.plots.style import TEMPLATE, WIDTH, wrapped
from chestxai.runs import InputError
from chestxai.studies import Study

_GAP = 12  # pixels between pictures
_BAR = 64  # pixels for a colour bar
_LINE = 16  # pixels in the height of a line of text
_BUTTONS = "toImage zoom pan zoomIn zoomOut autoScale resetScale select lasso sendChartToCloud".split()


@dataclass(frozen=True)
class Layout:
    """How a grid is laid out, and what is written around its pictures."""

    columns: int = 4
    title: str = ""
    captions: Sequence[str | None] = ()  #: above each picture
    headers: Sequence[str] = ()  #: above each column
    row_titles: Sequence[str | None] = ()  #: above each row, as wide as the grid
    footers: Sequence[str | None] = ()  #: below each picture
    scale: Scale | None = None  #: limits and colours of the heatmaps; adds a colour bar
    largest: float = 340  #: largest width of a picture in pixels
    marker: str = "R"  #: the side marker of each picture


def grid(shown: Sequence[Picture], layout: Layout) -> go.Figure:
    """A plotly figure of equally large pictures, ``shown`` row by row, all of one shape; ``layout`` says all else."""
    columns, right = min(layout.columns, len(shown)), _BAR if layout.scale else 0
    rows, (height, width) = -(-len(shown) // columns), shown[0].image.shape
    w = max(100, min(layout.largest, (WIDTH - right + _GAP) / columns - _GAP))
    h, wide = w * height / width, columns * (w + _GAP) - _GAP
    kinds = {"captions": w, "headers": w, "row_titles": wide, "footers": w}
    texts = {kind: [wrapped(text, room) for text in getattr(layout, kind)] for kind, room in kinds.items()}
    tall = {kind: max((_LINE * n + 4 for _, n in of if n), default=0) for kind, of in texts.items()}
    title, lines = wrapped(layout.title, wide + right, 16)
    above = tall["captions"] + tall["row_titles"]
    top, below = 6 + 10 * (lines > 0) + 20 * lines + tall["headers"] + above, tall["footers"]
    high = rows * h + (rows - 1) * (_GAP + above + below)
    fig = make_subplots(rows, columns, horizontal_spacing=_GAP / wide, vertical_spacing=(_GAP + above + below) / high)
    traces, notes = [], []
    axes = [str(i + 1) if i else "" for i in range(len(shown))]
    for picture, axis in zip(shown, axes, strict=True):
        traces += _traces(picture, axis, w, layout.scale or Scale())
        notes += _notes(picture, axis, w, layout.marker)
        fig.layout[f"yaxis{axis}"].scaleanchor = f"x{axis}"
    middle = {"x": 0.5, "xanchor": "center", "align": "center"}
    places = {
        "captions": (axes, {"yshift": 2, "yanchor": "bottom"}),
        "row_titles": (axes[::columns], {"yshift": 2 + tall["captions"], "yanchor": "bottom"}),
        "headers": (axes[:columns], {"yshift": 2 + above, "yanchor": "bottom", **middle}),
        "footers": (axes, {"y": 0, "yshift": -2, **middle}),
    }
    for kind, (cells, place) in places.items():
        for axis, (text, n) in zip(cells, texts[kind], strict=False):
            notes += [note(f"<b>{text}</b>" if kind == "headers" else text, axis, **place)] if n else []
    if layout.scale:
        traces.append(_color_bar(layout.scale, min(h, 200)))
    fig.add_traces(traces)
    fig.update_xaxes(visible=False, fixedrange=True, constrain="domain", range=[0, width])
    fig.update_yaxes(visible=False, fixedrange=True, constrain="domain", range=[height, 0])
    return fig.update_layout(
        template=TEMPLATE, width=round(wide + right), height=round(top + high + below + 6), dragmode=False,
        margin={"l": 0, "r": right, "t": top, "b": below + 6, "autoexpand": False}, showlegend=False,
        modebar={"remove": _BUTTONS}, annotations=notes, meta=_about(shown, layout, columns, w),
        title={"text": f"<b>{title}</b>" if title else "", "pad": {"t": 8, "l": 0}},
    )  # fmt: skip


def _about(shown: Sequence[Picture], layout: Layout, columns: int, width: float) -> dict:
    """What a grid is made of, in plain words and places, for `page.to_html`."""
    cells = []
    for i, picture in enumerate(shown):
        (row, column), (height, across) = divmod(i, columns), picture.image.shape
        words = {"row": layout.row_titles[row : row + 1], "column": layout.headers[column : column + 1]}
        words |= {"caption": layout.captions[i : i + 1], "note": layout.footers[i : i + 1]}
        words = {name: text[0] if len(text) else None for name, text in words.items()}
        corners = [(mark.name, np.vstack(mark.loops)) for mark in picture.outlines]
        boxes = [
            "{} ({:.0f}, {:.0f}, {:.0f}, {:.0f})".format(n, *c.min(axis=0), *np.ptp(c, axis=0)) for n, c in corners
        ]
        # Places as shares of the picture's width and height.
        labels = [(layout.marker, 4, 3, "white")] if layout.marker else []
        labels += pictures.labels(picture, width, layout.marker)
        cells.append({
            **words, "about": words | {"outlined (x, y, w, h)": "; ".join(boxes)}, "axis": f"x{i + 1 if i else ''}",
            "shape": [height, across], "first": [column == 0, row == 0],
            "labels": [(text, x / width, y / width * across / height, color) for text, x, y, color in labels],
        })  # fmt: skip
    scale = layout.scale and _scale_words(layout.scale)
    return {"cells": cells, "columns": columns, "width": width, "fixed": bool(layout.headers), "scale": scale}


def _scale_words(scale: Scale) -> tuple[list[str], str, list[str]]:
    """What the ends of the colours are called, what the values are, and the colours."""
    ends = [f"{end:.3g}" for end in scale.limits] if scale.limits else ["min", "max"]
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in pictures.PALETTE[::51]]
    return ends, scale.name + ("" if scale.limits else ", min–max per map"), colors


def note(text: str, axis: str | None = None, **options: object) -> dict:
    """An annotation with ``text`` (HTML) at the top left corner of a picture, where ``options`` say nothing else.

    ``axis``: number of the picture's axes as plotly writes it ("", "2", …); None for the corner of the whole plot.
    """
    x, y = ("paper", "paper") if axis is None else (f"x{axis} domain", f"y{axis} domain")
    default = {"x": 0, "y": 1, "xanchor": "left", "yanchor": "top", "align": "left", "showarrow": False, "borderpad": 0}
    return {"text": text, "xref": x, "yref": y, "font": {"size": 12.5}, **default, **options}


def _notes(picture: Picture, axis: str, width: float, marker: str) -> list[dict]:
    """Labels and side marker of a picture that is ``width`` pixels wide."""
    notes = []
    for text, x, y, color in pictures.labels(picture, width, marker):
        look = {"font": {"size": 12, "color": color}, "bgcolor": "rgba(0,0,0,0.6)", "borderpad": 1}
        notes.append(note(html.escape(text), axis, xshift=x, yshift=-y, **look))
    font = {"size": 12, "color": "white", "shadow": "0 0 3px black, 0 0 3px black"}
    return notes + ([note(f"<b>{html.escape(marker)}</b>", axis, xshift=4, yshift=-3, font=font)] if marker else [])


def _traces(picture: Picture, axis: str, width: float, scale: Scale) -> list:
    """Image, heatmap and outlines (each on a dark halo) of a picture that is ``width`` pixels wide, in this order."""
    image, extent = Image.fromarray(picture.image), picture.image.shape[::-1]
    if image.width > 2 * width:
        size = int(2 * width), max(1, round(2 * width * image.height / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    traces: list = [_image(image, extent, axis, lossless=image.width <= 192)]
    if picture.heatmap is not None:
        values = pictures.enlarged(pictures.normalize(picture.heatmap, scale.limits), 64)
        # 64 colours look like 256, and take half the room.
        level = ((values * 63).round() * 255 / 63).round().astype(np.uint8)
        heat = np.dstack([pictures.PALETTE[level], (level * pictures.OPACITY).round().astype(np.uint8)])
        traces.append(_image(Image.fromarray(heat), extent, axis, lossless=True))
    for mark in picture.outlines:
        points = np.vstack([part for loop in mark.loops for part in (loop, [(np.nan, np.nan)])])[:-1]
        line = {"x": points[:, 0].tolist(), "y": points[:, 1].tolist(), "mode": "lines", "connectgaps": False,
                "xaxis": f"x{axis}", "yaxis": f"y{axis}", "showlegend": False}  # fmt: skip
        hover = {"hoverinfo": "text", "text": html.escape(mark.name)} if mark.name else {"hoverinfo": "skip"}
        traces.append(go.Scatter(line={"color": "rgba(0,0,0,0.65)", "width": 4}, hoverinfo="skip", **line))
        traces.append(go.Scatter(line={"color": mark.color, "width": 2}, **hover, **line))
    return traces


def _image(picture: Image.Image, extent: tuple[int, int], axis: str, lossless: bool) -> go.Image:
    """A picture that fills ``[0, width) × [0, height)`` of its axes."""
    dx, dy = extent[0] / picture.width, extent[1] / picture.height
    place = {"x0": dx / 2, "y0": dy / 2, "dx": dx, "dy": dy, "xaxis": f"x{axis}", "yaxis": f"y{axis}"}
    return go.Image(source=pictures.data_uri(picture, lossless), zsmooth="fast", hoverinfo="skip", **place)


def _color_bar(scale: Scale, length: float) -> go.Scatter:
    """An invisible trace that carries the colour bar, at the right of the first row."""
    low, high = scale.limits or (0.0, 1.0)
    ends, name, _ = _scale_words(scale)
    name = html.escape(name).replace(", min–max", ",<br>min–max")
    bar = {
        "thickness": 12, "lenmode": "pixels", "len": length, "outlinewidth": 0, "ticks": "", "tickfont": {"size": 12},
        "x": 1, "xanchor": "left", "xpad": 10, "y": 1, "yanchor": "top", "ypad": 0, "tickvals": [low, high],
        "ticktext": ends,
        "title": {"text": name, "side": "right", "font": {"size": 12}},
    }  # fmt: skip
    marker = {"colorscale": pictures.COLORSCALE, "cmin": low, "cmax": high, "color": [low], "colorbar": bar}
    marker |= {"showscale": True}
    return go.Scatter(x=[None], y=[None], mode="markers", hoverinfo="skip", showlegend=False, marker=marker)


def images(
    images: Images,
    titles: Texts = None,
    columns: int = 4,
    boxes: Boxes = None,
    masks: Masks = None,
    title: str = "",
    marker: str = "R",
) -> go.Figure:
    """A grid of radiographs.

    Args:
        images, boxes, masks: As in `as_pictures`; all images of one shape.
        titles: A caption above each image (plain text, wrapped), or None.
        columns, title: Images per row, and title of the figure.
        marker: The side marker at the image's left; "" for none.
    """
    shown = as_pictures(images, masks=masks, boxes=boxes)
    return grid(shown, Layout(columns, title, listed(titles, len(shown), "titles"), marker=marker))


def study_sheet(studies: Sequence[Study], titles: Texts = None, size: int = 256, title: str = "") -> go.Figure:
    """A grid of studies with readable images, letterboxed to ``size`` pixels, each finding outlined in its colour.

    ``titles`` (a caption each) and ``title`` are as in `images`.
    """
    if not studies:
        raise InputError("there is no study to show")
    shown = [study_picture(study, size) for study in studies]
    return grid(shown, Layout(title=title, captions=listed(titles, len(shown), "titles")))


def overlays(
    images: Images,
    heatmaps: Images,
    masks: Masks = None,
    titles: Texts = None,
    columns: int = 4,
    boxes: Boxes = None,
    title: str = "",
    scale: str | Scale = "attention",
) -> go.Figure:
    """A grid of heatmaps over their radiographs; opacity grows with the value, the targets are outlined in white.

    Args:
        images, heatmaps, masks, boxes: As in `as_pictures`; all images of one shape.
        titles, columns, title: As in `images`.
        scale: What the values are; or a `Scale`, which also gives the values at the ends of the colours.
    """
    shown, scale = as_pictures(images, heatmaps, masks, boxes), Scale(scale) if isinstance(scale, str) else scale
    return grid(shown, Layout(columns, title, listed(titles, len(shown), "titles"), scale=scale))


def overlay(image: np.ndarray, heatmap: np.ndarray, mask: np.ndarray | None = None, title: str = "") -> go.Figure:
    """One ``heatmap`` over its ``image``, with the outline of a ``mask`` and the caption ``title``; see `overlays`."""
    return overlays([image], [heatmap], [mask], [title] if title else None, 1)


def overlay_grid(
    images: Images,
    heatmaps: Mapping[str, Sequence[np.ndarray]],
    masks: Masks = None,
    titles: Texts = None,
    captions: Mapping[str, Sequence[str]] | None = None,
    title: str = "",
) -> go.Figure:
    """Studies in rows, variants or training steps in columns, the plain radiograph first.

    Args:
        images, masks: As in `as_pictures`, one for each row.
        heatmaps: Name of the column → a heatmap for each row, in the order of the columns.
        titles, title: A line above each row, such as the phrase that is grounded, or None; and title of the figure.
        captions: Name of the column → a short text below each of its overlays, such as its score.
    """
    n = len(images)
    columns = [as_pictures(images, None, masks)]
    columns += [as_pictures(images, listed(maps, n, f"heatmaps of {name}"), masks) for name, maps in heatmaps.items()]
    below = [[None] * n, *(listed((captions or {}).get(name), n, f"captions of {name}") for name in heatmaps)]
    shown, footers = ([item for row in zip(*lists, strict=True) for item in row] for lists in (columns, below))
    layout = Layout(
        len(columns), title, headers=["radiograph", *heatmaps], row_titles=listed(titles, n, "titles"),
        footers=footers, scale=Scale(), largest=220,
    )  # fmt: skip
    return grid(shown, layout)
