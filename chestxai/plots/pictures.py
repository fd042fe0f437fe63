"""Pictures: radiographs with heatmaps and outlines over them, alone or in a grid.

A `Picture` is the one description of what is drawn. `grid` draws pictures with plotly; `draw` and `contact_sheet` turn
them into pixels, for widgets, the README and other places where no script runs.

Row 0 is on top; a pixel ``(row, column)`` covers ``[column, column + 1) × [row, row + 1)``; the patient's right ("R") is
on the image's left. In plotly figures images travel as base64 PNG (JPEG above 192 pixels, where a noisy radiograph
would weigh ten times as much) and heatmaps as one-byte palette PNGs with transparency: a grid of twenty overlays weighs
some tens of kilobytes.
"""

from __future__ import annotations

import base64
import html
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from PIL import Image, ImageDraw, ImageFont
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots
from skimage.measure import find_contours

from chestxai.plots.style import COLORS, FINDING_COLORS, INK, TEMPLATE, WIDTH, text_width, wrapped
from chestxai.runs import InputError
from chestxai.studies import Box, Frame, Study

Images = np.ndarray | Sequence[np.ndarray]
Masks = Sequence[np.ndarray | None] | None
Boxes = Sequence[Sequence[tuple[str, Box]] | None] | None
Texts = Sequence[str | None] | None

#: Opacity of the hottest pixel of an overlay; the coldest is clear.
OPACITY = 0.75
_GAP = 12  # pixels between pictures
_BAR = 64  # pixels for a colour bar
_LINE = 16  # pixels in the height of a line of text
_COLORSCALE = "Viridis"
#: The colour scale as uint8 ``(256, 3)``.
_COLORS = (np.array(sample_colorscale(_COLORSCALE, np.linspace(0, 1, 256), colortype="tuple")) * 255).round().astype("u1")
_BUTTONS = ["toImage", "zoom", "pan", "zoomIn", "zoomOut", "autoScale", "resetScale", "select", "lasso", "sendChartToCloud"]


class Scale(NamedTuple):
    """What the colours of heatmaps mean.

    Attributes:
        name: What the values are, written beside the colour bar.
        limits: Values at the two ends of the colours; None scales each map by its own minimum and maximum.
    """

    name: str = "attention"
    limits: tuple[float, float] | None = None


class Outline(NamedTuple):
    """Closed lines around a target.

    Attributes:
        loops: Float ``(k, 2)`` arrays of ``(x, y)`` in pixels of the image, first point equal to last.
        color: Hex colour or colour name.
        name: Appears when the pointer is on the line.
        labelled: Write the name beside the line.
    """

    loops: Sequence[np.ndarray]
    color: str = "white"
    name: str = "target"
    labelled: bool = False


@dataclass(frozen=True)
class Picture:
    """A radiograph and what is drawn over it.

    Attributes:
        image: uint8 ``(H, W)``.
        heatmap: Float ``(h, w)`` of any resolution, or None.
        outlines: In the order in which they are drawn.
    """

    image: np.ndarray
    heatmap: np.ndarray | None = None
    outlines: Sequence[Outline] = ()

    def __post_init__(self) -> None:
        image = np.asarray(self.image)
        if image.dtype != np.uint8 or image.ndim != 2:
            raise InputError(f"an image must be uint8 (height, width), got {image.dtype} {image.shape}")


def as_pictures(images: Images, heatmaps: Sequence | None = None, masks: Masks = None, boxes: Boxes = None) -> list[Picture]:
    """Combine images with heatmaps, masks (outlined in white) and labelled boxes.

    Args:
        images: uint8 ``(n, H, W)``.
        heatmaps: Per image a float ``(h, w)`` of any resolution, or None.
        masks: Per image a mask ``(h, w)`` of any resolution, or None.
        boxes: Per image a list of ``(label, Box)`` in pixels of that image, or None.

    Raises:
        InputError: No image, one image instead of several, lists of another length, or another dtype or shape.
    """
    if isinstance(images, np.ndarray) and images.ndim == 2:
        raise InputError("expected several images (n, height, width), got one: pass image[None]")
    n = len(images)
    if not n:
        raise InputError("there is no image to show")
    lists = _listed(heatmaps, n, "heatmaps"), _listed(masks, n, "masks"), _listed(boxes, n, "lists of boxes")
    return [
        Picture(image, heatmap, [*_mask_outlines(mask, np.shape(image)), *_box_outlines(of or ())])
        for image, heatmap, mask, of in zip(images, *lists, strict=True)
    ]


def study_picture(study: Study, size: int) -> Picture:
    """A study letterboxed to ``size × size`` pixels, each of its findings outlined and labelled in its colour."""
    frame, outlines = Frame(*study.size, size, "letterbox"), []
    for finding in study.present():
        if finding.mask is None:
            outlines += _box_outlines([(finding.name, box) for box in map(frame.box, finding.boxes) if box])
        else:
            color = FINDING_COLORS.get(finding.name, "white")
            outlines += _mask_outlines(frame.mask(finding), (size, size), color, finding.name, True)
    return Picture(frame.image(study.pixels()), outlines=outlines)


def _listed(values: Sequence | None, n: int, what: str) -> list:
    """``values`` as a list of ``n``; None becomes ``n`` times None."""
    if values is not None and len(values) != n:
        raise InputError(f"{n} images but {len(values)} {what}")
    return [None] * n if values is None else list(values)


# --- geometry ---


def outline(mask: np.ndarray) -> list[np.ndarray]:
    """Closed outlines of a bool ``(h, w)`` mask along the edges of its pixels.

    Returns:
        One float ``(k, 2)`` array of ``(x, y)`` corners per outline, first equal to last; holes are outlined too. The
        outline of a box's mask is the box. Empty mask: empty list.
    """
    loops = []
    for contour in find_contours(np.pad(np.asarray(mask, dtype=float), 1), 0.5, positive_orientation="low"):
        # A contour visits the middle of each pixel edge between inside and outside. A vertical edge has a whole x, a
        # horizontal one a whole y; where one follows the other, the corner between them has both.
        here = contour[:-1, ::-1] - 0.5
        after, vertical = np.roll(here, -1, axis=0), here[:, 0] % 1 == 0
        turns = vertical != np.roll(vertical, -1)
        corners = np.where(vertical, (here[:, 0], after[:, 1]), (after[:, 0], here[:, 1])).T[turns]
        loops.append(np.vstack([corners, corners[:1]]))
    return loops


def _mask_outlines(mask: np.ndarray | None, shape: tuple[int, int], *look: object) -> list[Outline]:
    """The outline of a mask of any resolution in an image of ``shape``; nothing for None or an empty mask."""
    if mask is None:
        return []
    if np.ndim(mask) != 2:
        raise InputError(f"a mask must be (height, width), got shape {np.shape(mask)}")
    loops = [loop * shape[::-1] / np.shape(mask)[::-1] for loop in outline(np.asarray(mask) > 0)]
    return [Outline(loops, *look)] if loops else []


def _box_outlines(boxes: Sequence[tuple[str, Box]]) -> list[Outline]:
    outlines = []
    for i, (label, box) in enumerate(boxes):
        corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]) * (box.w, box.h) + (box.x, box.y)
        color = FINDING_COLORS.get(label, COLORS[(i + 4) % len(COLORS)])
        outlines.append(Outline([corners], color, label, bool(label)))
    return outlines


def _labels(picture: Picture, width: float, marker: str, line: float = 18) -> list[tuple[str, float, float, str]]:
    """Text, x and y of the top left corner, and colour of each label in a picture that is ``width`` pixels wide.

    A label of ``line`` pixels in height is above its outline where there is room, inside the picture, beside the side
    marker, and not on another label.
    """
    placed: list[tuple[str, float, float, str]] = []
    for mark in picture.outlines:
        if not mark.labelled:
            continue
        text = textwrap.shorten(mark.name, int(2.5 * width / line), placeholder="…")
        left, top = np.vstack(mark.loops).min(axis=0) * width / picture.image.shape[1]
        x, y = max(0, min(left, width - text_width(text, line / 1.5))), top - line
        if y < line:
            y = max(top, 0) + 2
        if marker and x < line + 2 and y < line:
            x = line + 2
        while any(abs(y - v) < line and abs(x - u) < 100 for _, u, v, _ in placed):
            y += line
        placed.append((text, x, y, mark.color))
    return placed


# --- pixels ---


def normalize(heatmap: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Scale a heatmap to [0, 1]: float32 ``(h, w)``; a constant map becomes zeros.

    Args:
        heatmap: Float ``(h, w)``, finite.
        limits: Values that become 0 and 1, clipped beyond them; None takes the map's own minimum and maximum.
    """
    values = np.asarray(heatmap, dtype=np.float32)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise InputError(f"a heatmap must be finite and (height, width), got shape {values.shape}")
    low, high = limits if limits else (float(values.min()), float(values.max()))
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def enlarged(values: np.ndarray, least: int) -> np.ndarray:
    """Enlarge a small map to ``least`` pixels bilinearly: a browser would blend its colours instead of its values."""
    factor = max(1, -(-least // max(values.shape)))
    size = values.shape[1] * factor, values.shape[0] * factor
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def draw(picture: Picture, size: int = 400, marker: str = "R") -> Image.Image:
    """A picture as pixels (RGB): image, overlay, outlines, labels and side marker.

    A heatmap is normalised to ``v`` in [0, 1] and laid over the image with opacity ``OPACITY · v``: where the model
    does not look, the radiograph stays as it is.

    Args:
        picture: What to draw.
        size: Width in pixels; the height follows.
        marker: The side marker at the image's left; "" for none.
    """
    scale, thick = size / picture.image.shape[1], max(2, round(size / 140))
    extent = size, round(scale * len(picture.image))
    pixels = np.asarray(Image.fromarray(picture.image).resize(extent, Image.Resampling.BICUBIC))[..., None]
    if picture.heatmap is not None:
        v = np.asarray(Image.fromarray(normalize(picture.heatmap)).resize(extent, Image.Resampling.BILINEAR))
        alpha = OPACITY * v[..., None]
        pixels = pixels * (1 - alpha) + _COLORS[(v * 255).round().astype(np.uint8)] * alpha
    canvas = Image.fromarray(np.broadcast_to(pixels.round().astype(np.uint8), (*extent[::-1], 3)))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(max(12, round(size / 22)))
    for mark in picture.outlines:
        for loop in mark.loops:
            for color, width in (("#111111", thick + 2), (mark.color, thick)):
                pen.line([tuple(point) for point in loop * scale], color, width, joint="curve")
    line = font.size * 1.25
    for text, x, y, color in _labels(picture, size, marker, line + 2):
        pen.rectangle((x, y, x + font.getlength(text) + 4, y + line), INK)
        pen.text((x + 2, y + line / 2), text, color, font, anchor="lm")
    if marker:
        pen.text((5, 3), marker, "white", font, stroke_width=1, stroke_fill="black")
    return canvas


def contact_sheet(
    images: Images,
    columns: int = 4,
    titles: Texts = None,
    heatmaps: Sequence[np.ndarray | None] | None = None,
    masks: Masks = None,
    boxes: Boxes = None,
    size: int = 240,
) -> Image.Image:
    """A still picture (RGB) of radiographs, overlays and outlines: for a README, where no script runs.

    Args:
        images, heatmaps, masks, boxes: As in `as_pictures`.
        columns: Images per row.
        titles: A caption above each image (shortened to one line), or None.
        size: Width in pixels at which each image is drawn.
    """
    drawn = [draw(picture, size) for picture in as_pictures(images, heatmaps, masks, boxes)]
    columns, gap = min(columns, len(drawn)), 10
    font = ImageFont.load_default(max(12, round(size / 16)))
    caption = round(font.size * 1.5) if any(titles or ()) else 0
    step = caption + drawn[0].height + gap
    canvas = Image.new("RGB", (gap + columns * (size + gap), gap + -(-len(drawn) // columns) * step), "white")
    for i, (picture, title) in enumerate(zip(drawn, _listed(titles, len(drawn), "titles"), strict=True)):
        x, y = gap + (i % columns) * (size + gap), gap + (i // columns) * step + caption
        canvas.paste(picture, (x, y))
        text = title or ""
        while len(text) > 1 and font.getlength(text) > size:
            text = text[:-2] + "…"
        ImageDraw.Draw(canvas).text((x, y - 5), text, INK, font, anchor="ls")
    return canvas


# --- plotly ---


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
    """A plotly figure of equally large pictures.

    Args:
        shown: Row by row; all images of one shape.
        layout: Columns, texts, colour bar.
    """
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
    fig = make_subplots(
        rows, columns, horizontal_spacing=_GAP / wide, vertical_spacing=(_GAP + above + below) / high
    )
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
        modebar={"remove": _BUTTONS}, annotations=notes,
        title={"text": f"<b>{title}</b>" if title else "", "pad": {"t": 8, "l": 0}},
    )  # fmt: skip


def note(text: str, axis: str | None = None, **options: object) -> dict:
    """An annotation at the top left corner of a picture.

    Args:
        text: Plotly's HTML.
        axis: Number of the picture's axes as plotly writes it ("", "2", …); None for the corner of the whole plot.
        **options: Options of the annotation that differ from the default.
    """
    x, y = ("paper", "paper") if axis is None else (f"x{axis} domain", f"y{axis} domain")
    default = {"x": 0, "y": 1, "xanchor": "left", "yanchor": "top", "align": "left", "showarrow": False, "borderpad": 0}
    return {"text": text, "xref": x, "yref": y, "font": {"size": 12.5}, **default, **options}


def _notes(picture: Picture, axis: str, width: float, marker: str) -> list[dict]:
    """Labels and side marker of a picture that is ``width`` pixels wide."""
    notes = []
    for text, x, y, color in _labels(picture, width, marker):
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
    options = {"format": "png", "optimize": True} if image.width <= 192 else {"format": "jpeg", "quality": 88}
    traces: list = [_image(image, extent, axis, **options)]
    if picture.heatmap is not None:
        values = enlarged(normalize(picture.heatmap, scale.limits), 64)
        heat = Image.fromarray((values * 255).round().astype(np.uint8)).convert("P")
        heat.putpalette(_COLORS.tobytes())
        alpha = (np.arange(256) * OPACITY).round().astype(np.uint8).tobytes()
        traces.append(_image(heat, extent, axis, format="png", transparency=alpha, optimize=True))
    for mark in picture.outlines:
        points = np.vstack([part for loop in mark.loops for part in (loop, [(np.nan, np.nan)])])[:-1]
        line = {"x": points[:, 0].tolist(), "y": points[:, 1].tolist(), "mode": "lines", "connectgaps": False,
                "xaxis": f"x{axis}", "yaxis": f"y{axis}", "showlegend": False}  # fmt: skip
        hover = {"hoverinfo": "text", "text": html.escape(mark.name)} if mark.name else {"hoverinfo": "skip"}
        traces.append(go.Scatter(line={"color": "rgba(0,0,0,0.65)", "width": 4}, hoverinfo="skip", **line))
        traces.append(go.Scatter(line={"color": mark.color, "width": 2}, **hover, **line))
    return traces


def _image(picture: Image.Image, extent: tuple[int, int], axis: str, **options: object) -> go.Image:
    """A picture that fills ``[0, width) × [0, height)`` of its axes; ``options`` say how it is stored."""
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    uri = f"data:image/{options['format']};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    dx, dy = extent[0] / picture.width, extent[1] / picture.height
    place = {"x0": dx / 2, "y0": dy / 2, "dx": dx, "dy": dy, "xaxis": f"x{axis}", "yaxis": f"y{axis}"}
    return go.Image(source=uri, zsmooth="fast", hoverinfo="skip", **place)


def _color_bar(scale: Scale, length: float) -> go.Scatter:
    """An invisible trace that carries the colour bar, at the right of the first row."""
    low, high = scale.limits or (0.0, 1.0)
    name = html.escape(scale.name) + ("" if scale.limits else ",<br>min–max per map")
    bar = {
        "thickness": 12, "lenmode": "pixels", "len": length, "outlinewidth": 0, "ticks": "", "tickfont": {"size": 12},
        "x": 1, "xanchor": "left", "xpad": 10, "y": 1, "yanchor": "top", "ypad": 0, "tickvals": [low, high],
        "ticktext": [f"{low:.3g}", f"{high:.3g}"] if scale.limits else ["min", "max"],
        "title": {"text": name, "side": "right", "font": {"size": 12}},
    }  # fmt: skip
    marker = {"colorscale": _COLORSCALE, "cmin": low, "cmax": high, "color": [low], "showscale": True, "colorbar": bar}
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
        columns: Images per row.
        title: Title of the figure.
        marker: The side marker at the image's left; "" for none.
    """
    shown = as_pictures(images, masks=masks, boxes=boxes)
    return grid(shown, Layout(columns, title, _listed(titles, len(shown), "titles"), marker=marker))


def study_sheet(
    studies: Sequence[Study], titles: Texts = None, columns: int = 4, size: int = 256, title: str = ""
) -> go.Figure:
    """A grid of studies, each finding outlined and named in its colour.

    Args:
        studies: Studies whose images can be read.
        titles, columns, title: As in `images`.
        size: Side in pixels of the letterboxed images.
    """
    if not studies:
        raise InputError("there is no study to show")
    shown = [study_picture(study, size) for study in studies]
    return grid(shown, Layout(columns, title, _listed(titles, len(shown), "titles")))


def overlays(
    images: Images,
    heatmaps: Images,
    masks: Masks = None,
    titles: Texts = None,
    columns: int = 4,
    boxes: Boxes = None,
    title: str = "",
    scale: str | Scale = Scale(),
) -> go.Figure:
    """A grid of heatmaps over their radiographs; opacity grows with the value, the targets are outlined in white.

    Args:
        images, heatmaps, masks, boxes: As in `as_pictures`; all images of one shape.
        titles, columns, title: As in `images`.
        scale: What the values are; or a `Scale`, which also gives the values at the ends of the colours.
    """
    shown, scale = as_pictures(images, heatmaps, masks, boxes), Scale(scale) if isinstance(scale, str) else scale
    return grid(shown, Layout(columns, title, _listed(titles, len(shown), "titles"), scale=scale))


def overlay(
    image: np.ndarray,
    heatmap: np.ndarray,
    mask: np.ndarray | None = None,
    boxes: Sequence[tuple[str, Box]] = (),
    title: str = "",
    scale: str | Scale = Scale(),
) -> go.Figure:
    """One heatmap over its radiograph, with the target's outline.

    Args:
        image, heatmap, mask, boxes: One of what `as_pictures` takes several of.
        title: A caption above the image.
        scale: As in `overlays`.
    """
    return overlays([image], [heatmap], [mask], [title] if title else None, 1, [boxes], scale=scale)


def overlay_grid(
    images: Images,
    heatmaps: Mapping[str, Sequence[np.ndarray]],
    masks: Masks = None,
    titles: Texts = None,
    captions: Mapping[str, Sequence[str]] | None = None,
    title: str = "",
    scale: str | Scale = Scale(),
) -> go.Figure:
    """Studies in rows, variants or training steps in columns, the plain radiograph first.

    Args:
        images, masks: As in `as_pictures`, one for each row.
        heatmaps: Name of the column -> a heatmap for each row, in the order of the columns.
        titles: A line above each row, such as the phrase that is grounded, or None.
        captions: Name of the column -> a short text below each of its overlays, such as its score.
        title: Title of the figure.
        scale: As in `overlays`.
    """
    n = len(images)
    columns = [as_pictures(images, None, masks)]
    columns += [as_pictures(images, _listed(maps, n, f"heatmaps of {name}"), masks) for name, maps in heatmaps.items()]
    below = [[None] * n, *(_listed((captions or {}).get(name), n, f"captions of {name}") for name in heatmaps)]
    shown, footers = ([item for row in zip(*lists, strict=True) for item in row] for lists in (columns, below))
    layout = Layout(
        len(columns), title, headers=["radiograph", *heatmaps], row_titles=_listed(titles, n, "titles"),
        footers=footers, scale=Scale(scale) if isinstance(scale, str) else scale, largest=220,
    )  # fmt: skip
    return grid(shown, layout)
