"""Figures of the book: plotly, small, readable on the published page without touching anything.

Every function returns a `plotly.graph_objects.Figure`. Pictures travel as base64 PNG (JPEG above 192 pixels, where a
noisy radiograph would weigh ten times as much), heatmaps as one-byte palette PNGs with transparency, so a grid of
twenty overlays is some tens of kilobytes. Images keep the package's convention: row 0 on top, a pixel ``(row, column)``
covers ``[column, column + 1) × [row, row + 1)`` in the axes, the patient's right ("R") on the image's left.

Colours are Okabe & Ito's (2008), told apart with any colour vision; no figure says anything by colour alone.
"""

from __future__ import annotations

import base64
import html
import io
import textwrap
from collections.abc import Container, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.colors
import plotly.graph_objects as go
import plotly.io as pio
from PIL import Image, ImageDraw, ImageFont

from chestxai.localization import LOWER_IS_BETTER
from chestxai.studies import FINDINGS, Box, Finding, Frame, Study, box_of
from chestxai.tradeoff import NAMES, Comparison, pareto_front

#: Colours of the two text-encoder treatments.
VARIANTS = {"frozen": "#0072B2", "learnable": "#D55E00"}
#: Okabe–Ito without black, for anything else that needs its own colour.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
#: One colour per finding, readable on a grey radiograph; always printed beside the finding's name.
FINDING_COLORS = dict(
    zip(
        FINDINGS,
        ("#E69F00", "#56B4E9", "#00C492", "#F0E442", "#3FA2E8", "#FF7A1A", "#E58FC2", "#FFFFFF"),
        strict=True,
    )
)
#: Localization scores a figure can show: column of the table -> name on the axis.
METRICS = {"auc_roc": "AUC-ROC", "pointing_game": "Top-1", "cnr": "CNR", "miou": "mIoU"}

#: Width in pixels of a figure made of images: the text column of the page.
WIDTH = 688
#: Opacity of the hottest pixel of an overlay; the coldest is clear.
OPACITY = 0.75

_INK, _MUTED, _RULE = "#222222", "#666666", "#dddddd"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
_GAP = 12
_LINE = 16  # height in pixels of a caption's line
_AXIS = {
    "showline": True,
    "linecolor": "#888888",
    "ticks": "outside",
    "tickcolor": "#888888",
    "gridcolor": "#ececec",
    "zeroline": False,
    "automargin": True,
    "title": {"standoff": 10, "font": {"size": 13.5}},
}
_NO_BUTTONS = [
    "toImage", "zoom2d", "pan2d", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "resetScale2d",
    "sendChartToCloud",
]  # fmt: skip
#: The look shared by all figures (a plotly template); white paper, so that a dark page shows a light card.
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": _FONT, "size": 13, "color": _INK},
        "colorway": COLORS,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "title": {"font": {"size": 15}, "x": 0, "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"l": 8, "t": 14}},
        "legend": {
            "orientation": "h", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom",
            "title": {"text": ""}, "itemsizing": "constant",
        },
        "hoverlabel": {"font": {"family": _FONT, "size": 13}, "bgcolor": "white", "bordercolor": "#bbbbbb"},
        "hovermode": "closest",
        "margin": {"l": 64, "r": 24, "t": 72, "b": 56},
        "modebar": {"remove": ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "sendChartToCloud"]},
    }
)  # fmt: skip


def setup(renderer: str = "plotly_mimetype+chestxai") -> None:
    """Choose how notebooks show figures; call it once at the top of a notebook.

    JupyterLab draws the plotly mime type. The page gets HTML that expects plotly.js to be loaded once by the page
    (`write_plotlyjs`, and ``html_js_files: [plotly.min.js]`` in ``_config.yml``), instead of 5 MB in each notebook or
    a script from elsewhere.
    """
    config = {"responsive": True, "displaylogo": False}

    class PageRenderer(pio.base_renderers.MimetypeRenderer):
        def to_mimebundle(self, fig_dict: dict) -> dict[str, str]:
            options = {"include_plotlyjs": False, "include_mathjax": False, "full_html": False, "validate": False}
            return {"text/html": pio.to_html(fig_dict, config=config, **options)}

    pio.renderers["chestxai"] = PageRenderer()
    pio.renderers["plotly_mimetype"] = pio.base_renderers.PlotlyRenderer(config=config)
    pio.renderers.default = renderer


def write_plotlyjs(folder: str | Path) -> Path:
    """Write the installed plotly's ``plotly.min.js`` (5 MB) into ``folder`` (the book's ``_static``), once."""
    from plotly.offline import get_plotlyjs

    path = Path(folder) / "plotly.min.js"
    script = get_plotlyjs()
    if not path.exists() or path.stat().st_size != len(script.encode()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script, encoding="utf-8")
    return path


# --- pictures ---


@lru_cache
def _palette(colorscale: str) -> np.ndarray:
    """uint8 ``(256, 3)`` of a named plotly colour scale."""
    colors = plotly.colors.sample_colorscale(colorscale, list(np.linspace(0, 1, 256)))
    return np.array([plotly.colors.unlabel_rgb(c) for c in colors]).round().astype(np.uint8)


def _grey(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 2:
        raise ValueError(f"an image must be uint8 (height, width), got {image.dtype} {image.shape}")
    return image


def _many(images: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    if isinstance(images, np.ndarray) and images.ndim == 2:
        raise ValueError("expected several images (n, height, width), got one: pass image[None]")
    found = [_grey(image) for image in images]
    if not found:
        raise ValueError("there is no image to show")
    return found


def _listed(values: Sequence | None, n: int, what: str) -> list:
    """``values`` as a list of ``n``, None for none at all."""
    if values is None:
        return [None] * n
    if len(values) != n:
        raise ValueError(f"{n} images but {len(values)} {what}")
    return list(values)


def normalize(heatmap: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """A heatmap ``(h, w)`` as float32 in [0, 1].

    By its own minimum and maximum, or by ``limits``. A constant map becomes zeros: it points nowhere.

    Raises:
        ValueError: not two-dimensional, or not finite.
    """
    values = np.asarray(heatmap, dtype=np.float32)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"a heatmap must be finite and (height, width), got shape {values.shape}")
    low, high = limits if limits else (float(values.min()), float(values.max()))
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def blend(
    image: np.ndarray,
    heatmap: np.ndarray,
    limits: tuple[float, float] | None = None,
    colorscale: str = "Viridis",
    opacity: float = OPACITY,
) -> np.ndarray:
    """The overlay as pixels: uint8 ``(H, W, 3)``.

    The heatmap ``(h, w)`` is normalised to ``v`` in [0, 1] (`normalize`), enlarged bilinearly, and laid over the image
    with opacity ``opacity · v``: where the model does not look, the radiograph stays as it is.
    """
    image = _grey(image)
    height, width = image.shape
    v = Image.fromarray(normalize(heatmap, limits)).resize((width, height), Image.Resampling.BILINEAR)
    v = np.asarray(v)[..., None]
    color = _palette(colorscale)[(v[..., 0] * 255).round().astype(np.uint8)]
    alpha = opacity * v
    return (image[..., None] * (1 - alpha) + color * alpha).round().astype(np.uint8)


def outline(mask: np.ndarray) -> list[np.ndarray]:
    """Closed outlines of a bool ``(h, w)`` mask along the edges of its pixels.

    Returns:
        One float ``(k, 2)`` array of ``(x, y)`` corners per outline, first equal to last; holes are outlined too. The
        outline of a box's mask is the box. Empty mask: empty list.
    """
    m = np.pad(np.asarray(mask, dtype=bool), 1)
    # Each edge between a pixel inside and one outside, directed so that the inside is on the right (y points down).
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for r, c in np.argwhere(m[1:, 1:-1] != m[:-1, 1:-1]):
        ends = ((c, r), (c + 1, r)) if m[r + 1, c + 1] else ((c + 1, r), (c, r))
        steps.setdefault(ends[0], []).append(ends[1])
    for r, c in np.argwhere(m[1:-1, 1:] != m[1:-1, :-1]):
        ends = ((c, r), (c, r + 1)) if not m[r + 1, c + 1] else ((c, r + 1), (c, r))
        steps.setdefault(ends[0], []).append(ends[1])
    loops = []
    while steps:
        start = min(steps)
        path = [start]
        while True:
            here = path[-1]
            nexts = steps[here]
            # Where two pixels touch at a corner only, turn right: each keeps its own outline.
            if len(nexts) > 1 and len(path) > 1:
                dx, dy = here[0] - path[-2][0], here[1] - path[-2][1]
                nexts.sort(key=lambda p: (p[0] - here[0], p[1] - here[1]) != (-dy, dx))
            step = nexts.pop(0)
            if not nexts:
                del steps[here]
            path.append(step)
            if step == start:
                break
        corners = np.array(path, dtype=float)
        ahead = np.diff(corners, axis=0)
        kept = corners[:-1][(ahead != np.roll(ahead, 1, axis=0)).any(axis=1)]
        loops.append(np.vstack([kept, kept[:1]]))
    return loops


def _uri(picture: Image.Image, pixels: int | None = None) -> tuple[str, tuple[int, int]]:
    """Data URI of a grey picture and its (width, height), no wider than ``pixels``."""
    if pixels and picture.width > pixels:
        height = max(1, round(picture.height * pixels / picture.width))
        picture = picture.resize((pixels, height), Image.Resampling.LANCZOS)
    kind = "png" if picture.width <= 192 else "jpeg"
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"optimize": True} if kind == "png" else {"quality": 88}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", picture.size


def _heat_uri(values: np.ndarray, colorscale: str) -> str:
    """``values`` in [0, 1] as a palette PNG whose colours follow ``colorscale`` and whose opacity follows the value."""
    picture = Image.fromarray((np.asarray(values) * 255).round().astype(np.uint8)).convert("P")
    picture.putpalette(_palette(colorscale).tobytes())
    alpha = (np.arange(256) * OPACITY).round().astype(np.uint8).tobytes()
    buffer = io.BytesIO()
    picture.save(buffer, "png", transparency=alpha, optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _enlarged(values: np.ndarray, least: int = 64) -> np.ndarray:
    """A small map enlarged bilinearly: a browser would blend its colours instead of its values."""
    height, width = values.shape
    factor = -(-least // max(height, width))
    if factor <= 1:
        return values
    size = (width * factor, height * factor)
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def _base_trace(image: np.ndarray, axis: str, pixels: int, **options: object) -> go.Image:
    height, width = image.shape
    uri, (w, h) = _uri(Image.fromarray(image), pixels)
    return _picture(uri, (width, height), (w, h), axis, **options)


def _heat_trace(
    heatmap: np.ndarray,
    shape: tuple[int, int],
    axis: str,
    limits: tuple[float, float] | None,
    colorscale: str,
) -> go.Image:
    values = _enlarged(normalize(heatmap, limits))
    return _picture(_heat_uri(values, colorscale), (shape[1], shape[0]), values.shape[::-1], axis)


def _picture(uri: str, extent: tuple[float, float], stored: tuple[int, int], axis: str, **options: object) -> go.Image:
    """A picture of ``stored`` (width, height) pixels that fills ``[0, extent)`` of the axes."""
    dx, dy = extent[0] / stored[0], extent[1] / stored[1]
    return go.Image(
        source=uri, x0=dx / 2, y0=dy / 2, dx=dx, dy=dy, zsmooth="fast", hoverinfo="skip",
        xaxis=f"x{axis}", yaxis=f"y{axis}", **options,
    )  # fmt: skip


def _line_traces(
    points: np.ndarray, axis: str, color: str, label: str, width: float = 2, **options: object
) -> list[go.Scatter]:
    """A line with a dark halo, so that it shows on any background."""
    common = {
        "x": points[:, 0].tolist(), "y": points[:, 1].tolist(), "mode": "lines", "connectgaps": False,
        "xaxis": f"x{axis}", "yaxis": f"y{axis}", "showlegend": False, **options,
    }  # fmt: skip
    halo = go.Scatter(line={"color": "rgba(0,0,0,0.65)", "width": width + 2}, hoverinfo="skip", **common)
    line = go.Scatter(line={"color": color, "width": width}, hoverinfo="text", text=html.escape(label), **common)
    if not label:
        line.update(hoverinfo="skip", text=None)
    return [halo, line]


def _mask_points(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """All outlines of a mask of any resolution in the pixels of an image of ``shape``; NaN between two outlines."""
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask must be (height, width), got shape {mask.shape}")
    scale = np.array([shape[1] / mask.shape[1], shape[0] / mask.shape[0]])
    parts = [part for loop in outline(mask > 0) for part in (loop * scale, np.full((1, 2), np.nan))]
    return np.vstack(parts[:-1]) if parts else np.zeros((0, 2))


def _box_points(box: Box) -> np.ndarray:
    x0, y0, x1, y1 = box.x, box.y, box.x + box.w, box.y + box.h
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], dtype=float)


def _text(text: str, width: float, size: float = 12.5) -> tuple[str, int]:
    """Plain text escaped and wrapped to ``width`` pixels; and its number of lines."""
    lines = []
    for part in str(text).split("\n"):
        # Capitals are wider: a line's letters are counted by what this text measures.
        letters = max(8, int(width / (_text_width(part, size) / max(len(part), 1))))
        lines += textwrap.wrap(part, letters) or [""]
    return "<br>".join(html.escape(line) for line in lines), len(lines)


def _text_width(text: str, size: float = 12) -> float:
    """Roughly the width in pixels of a text in whatever sans-serif font the reader has."""
    return 1.15 * ImageFont.load_default(size).getlength(text) + 4


class _Sheet:
    """A figure of equally large picture cells, laid out in pixels from the top left.

    From top to bottom: title, column headers, then for each row its title, its cells' captions, the pictures, and
    their footers.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        shape: tuple[int, int],
        captions: Sequence[str | None] = (),
        *,
        title: str = "",
        headers: Sequence[str] = (),
        row_titles: Sequence[str | None] = (),
        footers: Sequence[str | None] = (),
        right: float = 0,
        largest: float = 340,
        marker: str = "R",
    ) -> None:
        self.shape, self.marker = shape, marker
        self.cell_w = min(largest, (WIDTH - right - _GAP * (columns - 1)) / columns)
        self.cell_h = self.cell_w * shape[0] / shape[1]
        self.lefts = [c * (self.cell_w + _GAP) for c in range(columns)]
        self.width = self.lefts[-1] + self.cell_w + right
        self.tops: list[float] = []
        self.traces: list = []
        self.annotations: list[dict] = []
        self.axes: dict = {}
        self.title = title
        texts: list[tuple[str, float, float, str, str]] = []

        def block(items: Sequence[str | None], y: float, anchor: str, bold: bool = False) -> float:
            """Wrap one text per column below ``y``; the y below the longest."""
            wrapped = [_text(item, self.cell_w) if item else ("", 0) for item in items]
            lines = max((n for _, n in wrapped), default=0)
            if not lines:
                return y
            bottom = y + lines * _LINE
            for column, (text, n) in enumerate(wrapped):
                if n:
                    x = self.lefts[column] + (self.cell_w / 2 if anchor == "center" else 0)
                    texts.append((f"<b>{text}</b>" if bold else text, x, bottom, anchor, "bottom"))
            return bottom + 4

        y = block(headers, 6.0 + (30 if title else 0), "center", bold=True)
        for row in range(rows):
            of_row = slice(row * columns, (row + 1) * columns)
            if row < len(row_titles) and row_titles[row]:
                text, lines = _text(row_titles[row], self.width)
                texts.append((text, 0, y + lines * _LINE, "left", "bottom"))
                y += lines * _LINE + 4
            y = block(captions[of_row], y, "left")
            self.tops.append(y)
            y = block(footers[of_row], y + self.cell_h + 2, "center") - 2 + _GAP
        self.height = y - _GAP + 6
        for text in texts:
            self.write(*text)

    def write(
        self, text: str, x: float, y: float, xanchor: str, yanchor: str, size: float = 12.5, **options: object
    ) -> None:
        """Put text (plotly's HTML) at (x, y) pixels from the top left."""
        self.annotations.append(
            {
                "text": text, "x": x / self.width, "y": 1 - y / self.height, "xref": "paper", "yref": "paper",
                "xanchor": xanchor, "yanchor": yanchor, "align": xanchor, "showarrow": False, "font": {"size": size},
                "borderpad": 0, **options,
            }
        )  # fmt: skip

    def add(self, row: int, column: int) -> str:
        """Open the axes of a cell; their number as plotly writes it ("", "2", …)."""
        number = len(self.axes) // 2 + 1
        axis = "" if number == 1 else str(number)
        x, y = self.lefts[column], self.tops[row]
        common = {"visible": False, "fixedrange": True, "constrain": "domain"}
        self.axes[f"xaxis{axis}"] = {
            "domain": [x / self.width, (x + self.cell_w) / self.width], "range": [0, self.shape[1]],
            "anchor": f"y{axis}", **common,
        }  # fmt: skip
        self.axes[f"yaxis{axis}"] = {
            "domain": [max(0, 1 - (y + self.cell_h) / self.height), 1 - y / self.height], "range": [self.shape[0], 0],
            "anchor": f"x{axis}", "scaleanchor": f"x{axis}", **common,
        }  # fmt: skip
        if self.marker:
            self.annotations.append(
                {
                    "text": f"<b>{html.escape(self.marker)}</b>", "xref": f"x{axis} domain", "yref": f"y{axis} domain",
                    "x": 0, "y": 1, "xshift": 4, "yshift": -3, "xanchor": "left", "yanchor": "top",
                    "showarrow": False, "borderpad": 0,
                    "font": {"size": 12, "color": "white", "shadow": "0 0 3px black, 0 0 3px black"},
                }
            )  # fmt: skip
        return axis

    def image(self, image: np.ndarray, axis: str) -> None:
        self.traces.append(_base_trace(image, axis, int(2 * self.cell_w)))

    def mask(self, mask: np.ndarray | None, axis: str, label: str = "target", color: str = "white") -> None:
        if mask is None:
            return
        points = _mask_points(mask, self.shape)
        if len(points):
            self.traces += _line_traces(points, axis, color, label)

    def boxes(self, boxes: Sequence[tuple[str, Box]] | None, axis: str, hidden: Container[str] = ()) -> None:
        """Boxes with their labels, above the box where there is room; of the ``hidden`` ones only the label."""
        used: list[tuple[float, float]] = []
        for i, (label, box) in enumerate(boxes or ()):
            color = FINDING_COLORS.get(label, COLORS[(i + 4) % len(COLORS)])
            if label not in hidden:
                self.traces += _line_traces(_box_points(box), axis, color, label)
            if not label:
                continue
            scale = self.cell_w / self.shape[1]
            text = textwrap.shorten(label, int(self.cell_w / 7), placeholder="…")
            x, y = max(box.x * scale, 0), box.y * scale - 18
            if y < 18:
                y = max(box.y, 0) * scale + 2
            if self.marker and x < 20 and y < 18:
                x = 20  # beside the side marker, not over it
            # A label that would leave the image ends at its right edge instead of starting at the box.
            right = x + _text_width(text) > self.cell_w
            while any(abs(y - v) < 18 and abs(x - u) < 100 for u, v in used):
                y += 18
            used.append((x, y))
            self.annotations.append(
                {
                    "text": html.escape(text), "xref": f"x{axis} domain", "yref": f"y{axis} domain",
                    "x": 1 if right else 0, "xanchor": "right" if right else "left", "xshift": 0 if right else x,
                    "y": 1, "yanchor": "top", "yshift": -y, "showarrow": False,
                    "font": {"size": 12, "color": color}, "bgcolor": "rgba(0,0,0,0.6)", "borderpad": 1,
                }
            )  # fmt: skip

    def colorbar(
        self, colorscale: str, limits: tuple[float, float] | None, axis: str = "", name: str = "attention"
    ) -> None:
        """The scale of the overlays in the right margin, as high as the first row of pictures (200 pixels at most)."""
        low, high = limits or (0.0, 1.0)
        length = min(self.cell_h, 200)
        title = html.escape(name) if limits else f"{html.escape(name)},<br>min–max per map"
        self.traces.append(
            go.Scatter(
                x=[None], y=[None], mode="markers", hoverinfo="skip", showlegend=False,
                xaxis=f"x{axis}", yaxis=f"y{axis}",
                marker={
                    "colorscale": colorscale, "cmin": low, "cmax": high, "color": [low], "showscale": True,
                    "colorbar": {
                        "thickness": 12, "lenmode": "pixels", "len": length, "outlinewidth": 0,
                        "xref": "container", "yref": "container", "xpad": 0, "ypad": 0, "xanchor": "left",
                        "x": (self.lefts[-1] + self.cell_w + 10) / self.width,
                        "y": 1 - self.tops[0] / self.height, "yanchor": "top",
                        "tickvals": [low, high], "ticks": "",
                        "ticktext": ["min", "max"] if limits is None else [f"{low:.3g}", f"{high:.3g}"],
                        "tickfont": {"size": 12},
                        "title": {"text": title, "side": "right", "font": {"size": 12}},
                    },
                },
            )
        )  # fmt: skip

    def figure(self) -> go.Figure:
        layout = {
            "template": TEMPLATE,
            "width": round(self.width),
            "height": round(self.height),
            "margin": {"l": 0, "r": 0, "t": 0, "b": 0, "autoexpand": False},
            "dragmode": False,
            "showlegend": False,
            "modebar": {"remove": _NO_BUTTONS},
            "annotations": self.annotations,
            **self.axes,
        }
        if self.title:
            text = f"<b>{html.escape(self.title)}</b>"
            layout["title"] = {"text": text, "y": 1, "yanchor": "top", "pad": {"t": 8, "l": 0}}
        return go.Figure(self.traces, layout)


_BAR = 64  # room in pixels for a colour bar


def images(
    images: np.ndarray | Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    columns: int = 4,
    boxes: Sequence[Sequence[tuple[str, Box]] | None] | None = None,
    masks: Sequence[np.ndarray | None] | None = None,
    title: str = "",
    marker: str = "R",
) -> go.Figure:
    """A grid of radiographs.

    Args:
        images: uint8 ``(n, height, width)``, all of one shape.
        titles: a caption above each image (plain text, wrapped).
        columns: images per row.
        boxes: per image a list of ``(label, Box)``, in pixels of that image.
        masks: per image a mask ``(h, w)`` of any resolution to outline, or None.
        marker: the side marker at the image's left; "" for none.
    """
    pictures = _many(images)
    n = len(pictures)
    columns = min(columns, n)
    sheet = _Sheet(
        -(-n // columns), columns, pictures[0].shape, _listed(titles, n, "titles"), title=title, marker=marker
    )
    boxes, masks = _listed(boxes, n, "lists of boxes"), _listed(masks, n, "masks")
    for i, picture in enumerate(pictures):
        axis = sheet.add(i // columns, i % columns)
        sheet.image(picture, axis)
        sheet.mask(masks[i], axis)
        sheet.boxes(boxes[i], axis)
    return sheet.figure()


def study_sheet(
    studies: Sequence[Study],
    titles: Sequence[str] | None = None,
    columns: int = 4,
    size: int = 256,
    title: str = "",
) -> go.Figure:
    """A grid of studies, the place of each finding outlined and named in the finding's colour.

    Args:
        studies: each is drawn letterboxed at ``size`` pixels.
        titles: a caption above each; default: none.

    Raises:
        ValueError: no studies, or an image cannot be read; names it.
    """
    if not studies:
        raise ValueError("there is no study to show")
    n = len(studies)
    columns = min(columns, n)
    sheet = _Sheet(-(-n // columns), columns, (size, size), _listed(titles, n, "titles"), title=title)
    for i, study in enumerate(studies):
        image, boxes, masks = targets(study, size)
        axis = sheet.add(i // columns, i % columns)
        sheet.image(image, axis)
        for name, mask in masks:
            sheet.mask(mask, axis, name, FINDING_COLORS.get(name, "white"))
        sheet.boxes(boxes, axis, hidden={name for name, _ in masks})
    return sheet.figure()


def overlay(
    image: np.ndarray,
    heatmap: np.ndarray,
    mask: np.ndarray | None = None,
    boxes: Sequence[tuple[str, Box]] = (),
    title: str = "",
    limits: tuple[float, float] | None = None,
    colorscale: str = "Viridis",
) -> go.Figure:
    """One heatmap over its radiograph, with the target's outline: see `overlays`."""
    return overlays([image], [heatmap], [mask], [title] if title else None, 1, [boxes], limits, colorscale)


def overlays(
    images: np.ndarray | Sequence[np.ndarray],
    heatmaps: np.ndarray | Sequence[np.ndarray],
    masks: Sequence[np.ndarray | None] | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 4,
    boxes: Sequence[Sequence[tuple[str, Box]] | None] | None = None,
    limits: tuple[float, float] | None = None,
    colorscale: str = "Viridis",
    title: str = "",
    scale: str = "attention",
) -> go.Figure:
    """A grid of heatmaps over their radiographs; the targets are outlined in white.

    Args:
        images: uint8 ``(n, H, W)``.
        heatmaps: float ``(n, h, w)`` of any resolution; opacity grows with the value, so the radiograph stays visible.
        limits: values of the two ends of the colours; None scales each map by its own minimum and maximum.
        scale: what the values are, written beside the colours.
    """
    pictures = _many(images)
    n = len(pictures)
    heatmaps, masks = _listed(heatmaps, n, "heatmaps"), _listed(masks, n, "masks")
    boxes = _listed(boxes, n, "lists of boxes")
    columns = min(columns, n)
    sheet = _Sheet(
        -(-n // columns), columns, pictures[0].shape, _listed(titles, n, "titles"),
        title=title, right=_BAR, largest=360,
    )  # fmt: skip
    for i, picture in enumerate(pictures):
        axis = sheet.add(i // columns, i % columns)
        sheet.image(picture, axis)
        sheet.traces.append(_heat_trace(heatmaps[i], picture.shape, axis, limits, colorscale))
        sheet.mask(masks[i], axis)
        sheet.boxes(boxes[i], axis)
    sheet.colorbar(colorscale, limits, name=scale)
    return sheet.figure()


def overlay_grid(
    images: np.ndarray | Sequence[np.ndarray],
    heatmaps: Mapping[str, Sequence[np.ndarray]],
    masks: Sequence[np.ndarray | None] | None = None,
    titles: Sequence[str] | None = None,
    captions: Mapping[str, Sequence[str]] | None = None,
    limits: tuple[float, float] | None = None,
    colorscale: str = "Viridis",
    title: str = "",
) -> go.Figure:
    """Studies in rows, variants or training steps in columns, the plain radiograph first.

    Args:
        images: uint8 ``(rows, H, W)``.
        heatmaps: column's name -> ``(rows, h, w)``.
        titles: a line above each row, such as the phrase that is grounded.
        captions: column's name -> a short text below each of its overlays, such as its score.
    """
    pictures = _many(images)
    n, names = len(pictures), list(heatmaps)
    maps = {name: _listed(heatmaps[name], n, f"heatmaps of {name}") for name in names}
    texts = {name: _listed(captions[name], n, f"captions of {name}") for name in (captions or {})}
    masks, titles = _listed(masks, n, "masks"), _listed(titles, n, "titles")
    columns = len(names) + 1
    footers = [
        text for r in range(n) for text in (None, *(texts[name][r] if name in texts else None for name in names))
    ]
    sheet = _Sheet(
        n, columns, pictures[0].shape, title=title, headers=["radiograph", *names], row_titles=titles,
        footers=footers if texts else (), right=_BAR, largest=220,
    )  # fmt: skip
    for r, picture in enumerate(pictures):
        axis = sheet.add(r, 0)
        sheet.image(picture, axis)
        sheet.mask(masks[r], axis)
        for c, name in enumerate(names, start=1):
            axis = sheet.add(r, c)
            sheet.image(picture, axis)
            sheet.traces.append(_heat_trace(maps[name][r], picture.shape, axis, limits, colorscale))
            sheet.mask(masks[r], axis)
    sheet.colorbar(colorscale, limits)
    return sheet.figure()


# --- charts ---


def _require(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise ValueError(f"{what}: the table lacks the columns {', '.join(missing)}; it has {', '.join(table.columns)}")
    if table.empty:
        raise ValueError(f"{what}: the table has no rows")


def _color(name: str, i: int = 0) -> str:
    """The colour of a variant, also of a longer name that starts with it ("frozen, seed 1")."""
    found = [color for variant, color in VARIANTS.items() if str(name).startswith(variant)]
    return found[0] if found else COLORS[(i + 2) % len(COLORS)]


def _faint(color: str, alpha: float) -> str:
    r, g, b = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{alpha})"


def _ordered(names: Sequence[str]) -> list[str]:
    """Unique names: the known variants in their order, then the others as they come."""
    unique = list(dict.fromkeys(names))
    return [v for v in VARIANTS if v in unique] + [n for n in unique if n not in VARIANTS]


def _heading(title: str) -> dict:
    return {"title": {"text": f"<b>{html.escape(title)}</b>"}} if title else {}


def _interval(mean: float, low: float, high: float, digits: int = 2) -> str:
    if not (np.isfinite(low) and np.isfinite(high)):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]".replace("-", "−")


def cooccurrence(labels: np.ndarray, names: Sequence[str] = FINDINGS, title: str = "") -> go.Figure:
    """How often findings come together: of the studies with the row's finding, the share that has the column's too.

    Args:
        labels: multi-hot ``(studies, findings)``, as `Study.labels` stacked.
        names: of the columns of ``labels``. The number of studies that have a finding stands behind its name; a row
            without any stays empty, and so does the diagonal.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] != len(names):
        raise ValueError(f"labels are {labels.shape}, expected (studies, {len(names)} findings)")
    has = labels > 0
    counts = has.sum(axis=0)
    both = has.T.astype(int) @ has.astype(int)
    share = np.where(counts[:, None] > 0, both / np.maximum(counts[:, None], 1), np.nan)
    np.fill_diagonal(share, np.nan)
    top = float(np.nanmax(share)) if np.isfinite(share).any() else 1.0
    text = [["" if np.isnan(v) else f"{v:.0%}" for v in row] for row in share]
    rows = [f"{html.escape(name)} ({n:,})" for name, n in zip(names, counts, strict=True)]
    fig = go.Figure(
        go.Heatmap(
            z=share.round(4), x=list(map(html.escape, names)), y=rows, text=text, texttemplate="%{text}",
            customdata=both, textfont={"size": 12}, colorscale="Blues", zmin=0, zmax=top or 1.0, xgap=2, ygap=2,
            hoverongaps=False,
            hovertemplate="of %{y}: %{customdata:,} (%{z:.1%}) have %{x} too<extra></extra>",
            colorbar={
                "title": {"text": "share of the row’s studies", "side": "right", "font": {"size": 12.5}},
                "thickness": 12, "outlinewidth": 0, "tickformat": ".0%", "nticks": 5,
            },
        )
    )  # fmt: skip
    fig.update_layout(
        template=TEMPLATE, height=170 + 36 * len(names), margin={"t": 48 if title else 16, "r": 8},
        xaxis={"title": {"text": "… that have this finding too"}, "type": "category", "showgrid": False, "ticks": ""},
        yaxis={"title": {"text": "of the studies with …"}, "autorange": "reversed", "type": "category",
               "showgrid": False, "ticks": ""},
        **_heading(title),
    )  # fmt: skip
    return fig


def histogram(
    heatmap: np.ndarray,
    mask: np.ndarray,
    threshold: float | None = None,
    bins: int = 40,
    title: str = "",
    label: str = "threshold",
) -> go.Figure:
    """A heatmap's values inside and outside its target: what every score is made of.

    Each of the two histograms sums to 100 %, so a small target is seen as well as a large background. Lines mark the
    two means.

    Args:
        heatmap: float ``(H, W)``, already of the mask's size (`localization.resize`).
        mask: bool ``(H, W)``, neither empty nor full.
        threshold: in the heatmap's units; a dashed line, foreground to its right.
        label: what to call the threshold.
    """
    heatmap, mask = np.asarray(heatmap, dtype=float), np.asarray(mask)
    if heatmap.shape != mask.shape:
        raise ValueError(f"the heatmap is {heatmap.shape} and the mask {mask.shape}: resize the heatmap first")
    if mask.dtype != bool or not mask.any() or mask.all():
        raise ValueError("the mask must be bool, neither empty nor full")
    edges = np.linspace(heatmap.min(), heatmap.max(), bins + 1)
    if edges[0] == edges[-1]:
        edges = edges[0] + np.linspace(-0.5, 0.5, bins + 1)
    fig = go.Figure()
    for i, (name, values, hatch) in enumerate((("outside", heatmap[~mask], ""), ("inside", heatmap[mask], "/"))):
        share = np.histogram(values, edges)[0] / values.size
        fig.add_bar(
            x=(edges[:-1] + edges[1:]) / 2, y=share, width=np.diff(edges), name=f"{name} the target",
            marker={
                "color": _faint(COLORS[i], 0.5), "line": {"width": 0},
                "pattern": {"shape": hatch, "fgcolor": COLORS[i], "bgcolor": _faint(COLORS[i], 0.25), "size": 5},
            },
            hovertemplate="%{y:.1%} of the pixels " + name + "<extra></extra>",
        )  # fmt: skip
        fig.add_vline(x=values.mean(), line={"color": COLORS[i], "width": 2})
    fig.update_layout(
        template=TEMPLATE, height=320, barmode="overlay", bargap=0, margin={"t": 92 if title else 60},
        xaxis={"title": {"text": "value of the heatmap (solid lines: means)"}},
        yaxis={"title": {"text": "share of pixels"}, "tickformat": ".0%", "rangemode": "tozero"},
        **_heading(title),
    )  # fmt: skip
    if threshold is not None:
        fig.add_vline(x=threshold, line={"color": _INK, "width": 2, "dash": "dash"})
        fig.add_annotation(
            text=f"{html.escape(label)} {threshold:.3g}", x=threshold, xanchor="left", y=1, yref="paper",
            yanchor="top", xshift=5, showarrow=False, bgcolor="rgba(255,255,255,0.8)",
        )  # fmt: skip
    return fig


def score_by_size(
    table: pd.DataFrame,
    metrics: Mapping[str, str] | None = None,
    groups: int = 4,
    title: str = "",
) -> go.Figure:
    """How scores depend on the size of the target: a point for each phrase, and the means of equally full groups.

    Args:
        table: a row per phrase and variant with the columns variant, target (area of the mask as a fraction of the
            image), the scores and, where known, ``prior_`` and ``chance_`` of them.
        metrics: score's column -> name on the axis; by default AUC-ROC, Top-1 and IoU. A panel each.
        groups: how many groups by size (quantiles of the target's area); fewer where sizes repeat.
    """
    metrics = metrics or {"auc_roc": "AUC-ROC", "pointing_game": "Top-1", "iou": "IoU"}
    _require(table, ["variant", "target", *metrics], "score_by_size")
    # Tables of two variants put together repeat their index.
    table = table.reset_index(drop=True)
    variants = _ordered(table["variant"])
    bins = pd.qcut(table["target"], groups, labels=False, duplicates="drop").fillna(0)
    fig, n = go.Figure(), len(metrics)
    edges = np.linspace(0, 1, n + 1)
    for k, (column, label) in enumerate(metrics.items()):
        axis = "" if k == 0 else str(k + 1)
        common = {"xaxis": f"x{axis}", "yaxis": f"y{axis}", "showlegend": k == 0}
        for prefix, name, dash in (("chance", "chance", "dot"), ("prior", "centre prior", "dash")):
            if f"{prefix}_{column}" in table:
                means = table.groupby(bins)[["target", f"{prefix}_{column}"]].mean()
                fig.add_scatter(
                    x=means["target"], y=means[f"{prefix}_{column}"], mode="lines", name=name, legendgroup=name,
                    line={"color": "#555555", "width": 2, "dash": dash},
                    hovertemplate=name + " %{y:.3f}<extra></extra>", **common,
                )  # fmt: skip
        for i, variant in enumerate(variants):
            rows = table[table["variant"] == variant]
            color, symbol = _color(variant, i), ("circle", "square", "triangle-up", "cross")[i % 4]
            fig.add_scatter(
                x=rows["target"], y=rows[column], mode="markers", legendgroup=variant, hoverinfo="skip",
                marker={"color": _faint(color, 0.3), "size": 5, "symbol": symbol}, **{**common, "showlegend": False},
            )  # fmt: skip
            grouped = rows.groupby(bins.loc[rows.index])
            fig.add_scatter(
                x=grouped["target"].mean(), y=grouped[column].mean(), mode="lines+markers",
                name=html.escape(str(variant)), legendgroup=variant, line={"color": color, "width": 2.5},
                marker={"color": color, "size": 10, "symbol": symbol, "line": {"color": "white", "width": 1}},
                customdata=grouped.size(),
                hovertemplate=f"{variant}: {label} %{{y:.3f}}<br>%{{customdata}} phrases, "
                "target %{x:.1%} of the image<extra></extra>", **common,
            )  # fmt: skip
        left, right = edges[k] + (0.035 if k else 0), edges[k + 1] - (0.035 if k < n - 1 else 0)
        fig.update_layout(
            {
                f"xaxis{axis}": {
                    "domain": [left, right], "anchor": f"y{axis}", "tickformat": ".0%", "rangemode": "tozero",
                    "nticks": 5,
                },
                f"yaxis{axis}": {"anchor": f"x{axis}", "nticks": 6},
            }
        )  # fmt: skip
        better = "↓" if column in LOWER_IS_BETTER else "↑"
        fig.add_annotation(
            text=f"<b>{html.escape(label)}</b> {better}", x=left, xref="paper", xanchor="left", y=1, yref="paper",
            yanchor="bottom", yshift=4, showarrow=False,
        )  # fmt: skip
    fig.add_annotation(
        text="area of the target, share of the image", x=0.5, xref="paper", y=0, yref="paper", yanchor="top",
        yshift=-30, showarrow=False, font={"size": 13.5},
    )  # fmt: skip
    fig.update_layout(
        template=TEMPLATE, height=410, margin={"l": 44, "t": 104 if title else 72, "b": 64},
        legend={"y": 1.1, "itemwidth": 44}, **_heading(title),
    )  # fmt: skip
    return fig


def training_curves(
    runs: Mapping[str, pd.DataFrame], smooth: float = 0.05, points: int = 800, title: str = ""
) -> go.Figure:
    """Training loss and learning rate over steps: raw values faint, smoothed ones bold.

    Args:
        runs: name -> the run's ``train.csv`` (columns step, loss, lr and, if there, seconds).
        smooth: span of the exponential smoothing as a fraction of the run.
        points: raw values kept per run; a longer run is averaged in blocks.
    """
    if not runs:
        raise ValueError("training_curves: there is no run to show")
    fig = go.Figure()
    for i, (name, table) in enumerate(runs.items()):
        _require(table, ["step", "loss", "lr"], f"training_curves, run {name}")
        table = table.sort_values("step")
        bold = table["loss"].ewm(span=max(1.0, smooth * len(table))).mean()
        block = np.arange(len(table)) // -(-len(table) // points)
        columns = {"step": table["step"], "raw": table["loss"], "loss": bold, "lr": table["lr"]}
        if "seconds" in table:
            columns["seconds"] = table["seconds"]
        kept = pd.DataFrame(columns).groupby(block).mean()
        color = _color(name, i)
        common = {"x": kept["step"], "mode": "lines", "legendgroup": name, "name": html.escape(name)}
        fig.add_scatter(
            y=kept["raw"], line={"color": _faint(color, 0.25), "width": 1}, showlegend=False, hoverinfo="skip", **common
        )
        elapsed = "<br>%{customdata:.0f} s elapsed" if "seconds" in kept else ""
        fig.add_scatter(
            y=kept["loss"], line={"color": color, "width": 2.5}, customdata=kept.get("seconds"),
            hovertemplate="step %{x:.0f}<br>smoothed loss %{y:.4f}" + elapsed, **common,
        )  # fmt: skip
        fig.add_scatter(
            y=kept["lr"], line={"color": color, "width": 2, "dash": ("solid", "dash", "dot")[i % 3]}, yaxis="y2",
            showlegend=False, hovertemplate="step %{x:.0f}<br>learning rate %{y:.1e}", **common,
        )  # fmt: skip
    # Single noisy batches would set the scale: the axis holds the middle 98 % of the raw values.
    losses = np.concatenate([t["loss"].to_numpy(float) for t in runs.values()])
    low, high = np.nanquantile(losses, [0.01, 0.99])
    pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    fig.update_layout(
        template=TEMPLATE, height=430, xaxis={"title": {"text": "training step"}, "anchor": "y2"},
        yaxis={"title": {"text": "loss (mean squared error)"}, "domain": [0.34, 1], "range": [low - pad, high + pad]},
        yaxis2={
            "title": {"text": "learning rate"}, "domain": [0, 0.22], "rangemode": "tozero", "exponentformat": "e",
            "nticks": 3,
        },
        **_heading(title),
    )  # fmt: skip
    return fig


def layer_time(
    matrix: np.ndarray,
    layers: Sequence[str],
    timesteps: Sequence[int],
    metric: str = "AUC-ROC",
    chance: float = 0.5,
    title: str = "",
) -> go.Figure:
    """Which layers see it, and when: a score per cross-attention layer and diffusion timestep.

    Args:
        matrix: float ``(layers, timesteps)``; NaN cells stay empty.
        chance: the value of a blind map, white; above is blue, below is red.
    """
    matrix = np.asarray(matrix, dtype=float)
    if matrix.shape != (len(layers), len(timesteps)):
        raise ValueError(f"the matrix is {matrix.shape}, expected ({len(layers)} layers, {len(timesteps)} timesteps)")
    finite = matrix[np.isfinite(matrix)]
    reach = max(float(np.abs(finite - chance).max()) if finite.size else 0.0, 0.05)
    fig = go.Figure(
        go.Heatmap(
            z=matrix.round(4), x=[str(t) for t in timesteps], y=[html.escape(str(layer)) for layer in layers],
            colorscale="RdBu", zmin=chance - reach, zmax=chance + reach, zmid=chance, xgap=2, ygap=2, hoverongaps=False,
            texttemplate="%{z:.2f}" if len(timesteps) <= 16 else None, textfont={"size": 12},
            hovertemplate="%{y}<br>t = %{x}<br>" + metric + " %{z:.3f}<extra></extra>",
            colorbar={
                "title": {"text": metric, "side": "right", "font": {"size": 12.5}}, "thickness": 12, "outlinewidth": 0,
                "tickvals": [chance - reach, chance, chance + reach],
                "ticktext": [f"{chance - reach:.2f}", f"chance {chance:.2g}", f"{chance + reach:.2f}"],
            },
        )
    )  # fmt: skip
    fig.update_layout(
        template=TEMPLATE, height=130 + 34 * max(3, len(layers)),
        margin={"t": 48 if title else 16, "r": 8},
        xaxis={"title": {"text": "timestep t (larger = noisier)"}, "type": "category", "showgrid": False},
        yaxis={"autorange": "reversed", "type": "category", "showgrid": False, "ticks": ""},
        **_heading(title),
    )  # fmt: skip
    return fig


def scores_by_finding(table: pd.DataFrame, metric: str = "AUC-ROC", title: str = "") -> go.Figure:
    """A score of each variant for each finding, with its interval, chance and the centre prior.

    Args:
        table: columns finding, variant, mean; and, where known, low, high (the interval), prior, chance, n. A finding
            called "all" is set apart at the bottom.
    """
    _require(table, ["finding", "variant", "mean"], "scores_by_finding")
    rest = [f for f in dict.fromkeys(table["finding"]) if f != "all"]
    findings = rest + (["all"] if "all" in set(table["finding"]) else [])
    place = {f: i + (0.35 if f == "all" else 0.0) for i, f in enumerate(findings)}
    variants = _ordered(table["variant"])
    spread = 0.36 if len(variants) > 1 else 0.0
    fig = go.Figure()
    for name, symbol, color, size in (("chance", "line-ns", "#555555", 14), ("prior", "diamond-open", "#222222", 10)):
        if name not in table:
            continue
        rows = table.dropna(subset=[name]).groupby("finding", sort=False)[name].mean()
        label = "centre prior" if name == "prior" else "chance"
        fig.add_scatter(
            x=rows.to_numpy(), y=[place[f] for f in rows.index], mode="markers", name=label,
            marker={"symbol": symbol, "size": size, "color": color, "line": {"width": 2, "color": color}},
            customdata=list(rows.index), hovertemplate="%{customdata}<br>" + label + " %{x:.3f}<extra></extra>",
        )  # fmt: skip
    for i, variant in enumerate(variants):
        rows = table[table["variant"] == variant]
        shift = spread * (i / (len(variants) - 1) - 0.5) if spread else 0.0
        low = rows["low"] if "low" in rows else rows["mean"]
        high = rows["high"] if "high" in rows else rows["mean"]
        color = _color(variant, i)
        fig.add_scatter(
            x=rows["mean"].to_numpy(), y=[place[f] + shift for f in rows["finding"]], mode="markers", name=variant,
            marker={"color": color, "size": 10, "symbol": ("circle", "square", "triangle-up", "cross")[i % 4]},
            error_x={
                "type": "data", "symmetric": False, "array": (high - rows["mean"]).to_numpy(),
                "arrayminus": (rows["mean"] - low).to_numpy(), "thickness": 2, "width": 0, "color": color,
            },
            customdata=[
                [f, _interval(*v)] for f, *v in zip(rows["finding"], rows["mean"], low, high, strict=True)
            ],
            hovertemplate="%{customdata[0]}<br>" + variant + " %{customdata[1]}<extra></extra>",
        )  # fmt: skip
    counts = table.groupby("finding")["n"].max() if "n" in table else {}
    names = [
        (f"<b>{html.escape(f)}</b>" if f == "all" else html.escape(f)) + (f" ({counts[f]:.0f})" if f in counts else "")
        for f in findings
    ]
    fig.update_layout(
        template=TEMPLATE, height=120 + 44 * len(findings), margin={"t": 72 if title else 40},
        xaxis={"title": {"text": f"{metric} (higher is better →)"}},
        yaxis={
            "tickvals": list(place.values()), "ticktext": names, "range": [max(place.values()) + 0.6, -0.6],
            "ticks": "", "showgrid": True, "showline": False,
        },
        **_heading(title),
    )  # fmt: skip
    return fig


def paired(
    differences: Sequence[Comparison] | pd.DataFrame,
    names: tuple[str, str] = ("frozen", "learnable"),
    shared: bool = False,
    title: str = "",
) -> go.Figure:
    """Paired differences ``names[0] − names[1]`` with their intervals against zero.

    The right is always where ``names[0]`` does better: the axis of a lower-is-better score is mirrored. A difference
    whose interval excludes zero has the colour of the better variant, the others are grey.

    Args:
        differences: what `tradeoff.compare` returned, one per row (``names`` are then theirs); or a table with the
            columns name, estimate, low, high and, where a row needs it, better ("higher", the default, or "lower") and
            n.
        shared: one axis for all rows (one score, many findings); otherwise each row has its own scale, and the numbers
            beside it say how large it is.
    """
    if isinstance(differences, pd.DataFrame):
        table = differences
    else:
        if len({(d.a, d.b) for d in differences}) != 1:
            raise ValueError("paired: the comparisons must be of the same two variants, in the same order")
        names = differences[0].a, differences[0].b
        table = pd.DataFrame(
            {
                "name": NAMES.get(d.metric, d.metric).rstrip(" ↑↓"), "estimate": d.estimate, "low": d.low,
                "high": d.high, "better": "lower" if d.metric in LOWER_IS_BETTER else "higher", "n": d.phrases,
            }
            for d in differences
        )  # fmt: skip
    _require(table, ["name", "estimate", "low", "high"], "paired")
    rows = table.to_dict("records")
    sign = np.array([-1.0 if row.get("better") == "lower" else 1.0 for row in rows])
    if shared and len(set(sign)) > 1:
        raise ValueError("paired: rows that are better when lower and when higher cannot share an axis")
    values = table[["estimate", "low", "high"]].to_numpy(float)
    reach = np.nanmax(np.abs(values), axis=1)
    reach = np.full(len(rows), np.nanmax(reach)) if shared else reach
    reach[~(reach > 0)] = 1.0
    drawn = values * sign[:, None] / reach[:, None]
    colors = []
    for low, high in np.sort(drawn[:, 1:], axis=1):
        side = 0 if low > 0 else 1 if high < 0 else None
        colors.append("#777777" if side is None else _color(names[side], side))
    digits = [1 if size >= 10 else 2 if size >= 0.1 else 3 for size in reach]
    texts = [_interval(*row, digits=n) for row, n in zip(values, digits, strict=True)]
    texts = ["+" + text if row[0] > 0 else text for row, text in zip(values, texts, strict=True)]
    fig = go.Figure()
    for i, (row, text) in enumerate(zip(rows, texts, strict=True)):
        mean, low, high = drawn[i, 0], *sorted(drawn[i, 1:])
        fig.add_scatter(
            x=[mean], y=[i], mode="markers", showlegend=False, marker={"color": colors[i], "size": 11},
            error_x={
                "type": "data", "symmetric": False, "array": [high - mean], "arrayminus": [mean - low],
                "thickness": 2.5, "width": 5, "color": colors[i],
            },
            hovertemplate=f"{html.escape(str(row['name']))}<br>{names[0]} − {names[1]}: {text}<extra></extra>",
        )  # fmt: skip
        fig.add_annotation(text=text, x=1, xref="paper", xanchor="left", xshift=10, y=i, showarrow=False, align="left")
    fig.add_vline(x=0, line={"color": "#444444", "width": 1.5})
    for x, anchor, i, text in (
        (-0.02, "right", 1, f"← {names[1]} better"),
        (0.02, "left", 0, f"{names[0]} better →"),
    ):
        fig.add_annotation(
            text=f"<b>{text}</b>", x=x, xanchor=anchor, y=1, yref="paper", yanchor="bottom", yshift=4,
            showarrow=False, font={"color": _color(names[i], i)},
        )  # fmt: skip
    ticks = {"showticklabels": False, "ticks": "", "showgrid": False, "showline": False}
    label = f"difference, {names[0]} − {names[1]}"
    if shared:
        marks = [t for t in _round_ticks(float(reach[0])) if abs(t) <= reach[0] * 1.1]
        ticks = {"tickvals": [t * sign[0] / reach[0] for t in marks], "ticktext": [f"{t:g}" for t in marks]}
    else:
        label += " (each row on its own scale; 95 % interval)"
    marks = ["" if pd.isna(row.get("n", np.nan)) else f" ({row['n']:.0f})" for row in rows]
    fig.update_layout(
        template=TEMPLATE, height=110 + 42 * len(rows),
        margin={
            "t": 74 if title else 40, "r": 24 + max(_text_width(text, 13) for text in texts), "b": 52,
            "l": 24 + max(_text_width(f"{row['name']}{mark}", 13) for row, mark in zip(rows, marks, strict=True)),
        },
        xaxis={"title": {"text": label}, "range": [-1.12, 1.12], **ticks},
        yaxis={
            "tickvals": list(range(len(rows))), "range": [len(rows) - 0.4, -0.6], "ticks": "", "showline": False,
            "ticktext": [html.escape(str(row["name"])) + mark for row, mark in zip(rows, marks, strict=True)],
        },
        **_heading(title),
    )  # fmt: skip
    return fig


def _round_ticks(reach: float) -> list[float]:
    """Ticks about zero at a round step, three on either side at most."""
    step = 10 ** np.floor(np.log10(reach / 2))
    step = next(step * k for k in (1, 2, 5, 10) if step * k * 3 >= reach)
    return [float(f"{k * step:.6g}") for k in range(-3, 4)]


def _better(column: str, label: str = "") -> str:
    """Title of a score's axis: its convention, and where better is."""
    name = NAMES.get(column, label or column).rstrip(" ↑↓")
    return f"{name} · lower is better ↓" if column in LOWER_IS_BETTER else f"{name} · higher is better ↑"


def _short(step: float) -> str:
    return f"{step / 1000:g}k" if step >= 1000 and step % 100 == 0 else f"{step:g}"


def tradeoff(
    table: pd.DataFrame,
    metrics: Mapping[str, str] | None = None,
    fidelity: str = "fid",
    name: str = "FID",
    title: str = "",
) -> go.Figure:
    """Fidelity against localization over the checkpoints of both variants, one button per localization score.

    Args:
        table: one row per variant, seed and step with the columns variant, seed, step, ``fid`` and a column per score;
            ``<column>_low`` and ``<column>_high`` are its interval, ``prior_<score>`` and ``chance_<score>`` its
            references, where known.
        metrics: score's column -> name; those of `METRICS` that the table has by default.

    With several seeds, each seed is a thin line, and the bold one their mean, with bars from the lowest to the highest
    seed. Ringed points are Pareto-optimal among the bold ones: no checkpoint has both a lower FID and a higher score.
    """
    _require(table, ["variant", "seed", "step", fidelity], "tradeoff")
    metrics = {c: label for c, label in (metrics or METRICS).items() if c in table}
    if not metrics:
        raise ValueError(f"tradeoff: the table has none of the scores {', '.join(METRICS)}")
    table = table.dropna(subset=[fidelity])
    if table.empty:
        raise ValueError(f"tradeoff: the column {fidelity} is empty")
    variants = _ordered(table["variant"])
    several = table.groupby("variant")["seed"].nunique().max() > 1
    bars = "lowest to highest seed" if several else "95 % interval"

    def bold(rows: pd.DataFrame) -> pd.DataFrame:
        """A row per step: the only seed's, or the mean over seeds with the range as interval."""
        if not several:
            return rows.sort_values("step").reset_index(drop=True)
        groups = rows.groupby("step")
        out = groups[[fidelity, *metrics]].mean()
        for c in (fidelity, *metrics):
            out[f"{c}_low"], out[f"{c}_high"] = groups[c].min(), groups[c].max()
        return out.reset_index()

    def ends(rows: pd.DataFrame, c: str) -> tuple[np.ndarray, np.ndarray]:
        low = rows.get(f"{c}_low", rows[c]).fillna(rows[c]).to_numpy(float)
        high = rows.get(f"{c}_high", rows[c]).fillna(rows[c]).to_numpy(float)
        return low, high

    main = {variant: bold(table[table["variant"] == variant]) for variant in variants}
    thin = [
        (variant, seed, rows.sort_values("step"))
        for variant in (variants if several else ())
        for seed, rows in table[table["variant"] == variant].groupby("seed")
    ]
    every = pd.concat(main.values(), ignore_index=True)

    def state(c: str) -> tuple[dict, dict]:
        """What a button changes: trace data and layout."""
        data: dict[str, list] = {"x": [], "y": [], "error_y.array": [], "error_y.arrayminus": [], "customdata": []}

        def push(x: pd.Series, y: pd.Series, up: list | None, down: list | None, notes: list | None) -> None:
            for key, value in zip(data, (x.tolist(), y.tolist(), up, down, notes), strict=True):
                data[key].append(value)

        for _, _, rows in thin:
            push(rows[fidelity], rows[c], None, None, None)
        for rows in main.values():
            low, high = ends(rows, c)
            digits = 1 if rows[fidelity].max() >= 10 else 3
            notes = [
                [f"{step:,.0f}", _interval(f, fl, fh, digits), _interval(v, vl, vh, 3)]
                for step, f, fl, fh, v, vl, vh in zip(
                    rows["step"], rows[fidelity], *ends(rows, fidelity), rows[c], low, high, strict=True
                )
            ]
            push(rows[fidelity], rows[c], (high - rows[c]).tolist(), (rows[c] - low).tolist(), notes)
        front = every[pareto_front(every, fidelity, c)]
        push(front[fidelity], front[c], None, None, None)

        lines = {}
        for kind, label in (("chance", "chance"), ("prior", "centre prior")):
            if f"{kind}_{c}" in table and table[f"{kind}_{c}"].notna().any():
                lines[label] = float(table[f"{kind}_{c}"].mean())
        if c == "auc_roc":
            lines.setdefault("chance", 0.5)
        seen = np.concatenate([*(ends(every, c)), *(r[c].to_numpy(float) for *_, r in thin), list(lines.values())])
        low, high = np.nanmin(seen), np.nanmax(seen)
        pad = 0.07 * (high - low) or 0.05
        shapes = [
            {
                "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "layer": "below",
                "line": {"color": "#777777", "width": 1.5, "dash": "dot" if label == "chance" else "dash"},
            }
            for label, y in lines.items()
        ]  # fmt: skip
        # Two references may be closer than a text is high: the lower one is written below its line.
        under = min(lines, key=lines.get) if len(lines) == 2 else ""
        notes = [
            {
                "text": f"{label} {y:.2f}", "xref": "paper", "x": 1, "xanchor": "left", "xshift": 3, "y": y,
                "yanchor": "top" if label == under else "bottom" if under else "middle", "showarrow": False,
                "yshift": 6 if label == under else -6 if under else 0, "font": {"size": 12, "color": _MUTED},
                "borderpad": 0,
            }
            for label, y in lines.items()
        ]  # fmt: skip
        low_is_better = c in LOWER_IS_BETTER
        notes.append(
            {
                "text": "↙ better" if low_is_better else "↖ better", "showarrow": False,
                "xref": "paper", "yref": "paper", "x": 0, "y": 0 if low_is_better else 1, "xanchor": "left",
                "yanchor": "bottom" if low_is_better else "top", "xshift": 6, "yshift": 4 if low_is_better else -4,
                "font": {"color": _MUTED, "size": 13},
            }
        )  # fmt: skip
        layout = {
            "yaxis.title.text": _better(c, metrics[c]),
            "yaxis.range": [low - pad, high + pad],
            "shapes": shapes,
            "annotations": notes,
        }
        return data, layout

    first = next(iter(metrics))
    data, layout = state(first)
    fig = go.Figure()
    k = 0
    for variant, seed, _ in thin:
        fig.add_scatter(
            x=data["x"][k], y=data["y"][k], mode="lines+markers", showlegend=False, legendgroup=variant,
            line={"color": _faint(_color(variant), 0.35), "width": 1}, marker={"size": 4},
            hovertemplate=f"{variant}, seed {seed}<br>{name} %{{x:.4g}}<br>%{{y:.3f}}<extra></extra>",
        )  # fmt: skip
        k += 1
    for i, (variant, rows) in enumerate(main.items()):
        low, high = ends(rows, fidelity)
        color, last = _color(variant, i), len(rows) - 1
        error = {"type": "data", "symmetric": False, "thickness": 1.2, "width": 3, "color": _faint(color, 0.55)}
        fig.add_scatter(
            x=data["x"][k], y=data["y"][k], mode="lines+markers+text", legendgroup=variant,
            name=f"{html.escape(str(variant))} text encoder" if variant in VARIANTS else html.escape(str(variant)),
            line={"color": color, "width": 2.5, "dash": ("solid", "dash", "dot")[i % 3]},
            marker={
                "color": color, "size": [9] * last + [13], "symbol": ("circle", "square", "diamond")[i % 3],
                "line": {"color": "white", "width": 1}, "opacity": 1,
            },
            text=[_short(s) for s in rows["step"]], textposition="top right" if i == 0 else "bottom right",
            textfont={"color": color, "size": 12}, cliponaxis=False,
            error_x={"array": (high - rows[fidelity]).tolist(), "arrayminus": (rows[fidelity] - low).tolist(), **error},
            error_y={"array": data["error_y.array"][k], "arrayminus": data["error_y.arrayminus"][k], **error},
            customdata=data["customdata"][k],
            hovertemplate=f"<b>{html.escape(str(variant))}</b>, step %{{customdata[0]}}<br>{name} %{{customdata[1]}}"
            "<br>score %{customdata[2]}<extra></extra>",
        )  # fmt: skip
        k += 1
    fig.add_scatter(
        x=data["x"][k], y=data["y"][k], mode="markers", name="Pareto-optimal", hoverinfo="skip",
        marker={"symbol": "circle-open", "size": 21, "color": _INK, "line": {"width": 1.8}},
    )  # fmt: skip
    low, high = ends(every, fidelity)
    seen = np.concatenate([low, high, *(r[fidelity].to_numpy(float) for *_, r in thin)])
    low, high = float(np.nanmin(seen)), float(np.nanmax(seen))
    log = low > 0 and high / low > 8
    low, high = (np.log10(low), np.log10(high)) if log else (low, high)
    pad = 0.07 * (high - low) or 0.05 * abs(high) or 1.0
    fig.update_layout(
        template=TEMPLATE, height=540, margin={"t": 116 if title else 82, "b": 84, "r": 122},
        xaxis={
            "title": {"text": f"← {name} (lower is better{', logarithmic' if log else ''})"},
            "range": [low - pad, high + 1.4 * pad], "type": "log" if log else "linear",
        },
        **_heading(title),
    )  # fmt: skip
    for key, value in layout.items():
        fig.update_layout({key.replace(".", "_"): value})
    fig.add_annotation(
        text=f"Labels: training step. Bars: {bars}.", xref="paper", yref="paper", x=0, y=0, yshift=-62, xanchor="left",
        yanchor="top", showarrow=False, font={"size": 12, "color": _MUTED},
    )  # fmt: skip
    if len(metrics) > 1:
        footer = fig.layout.annotations[-1].to_plotly_json()
        buttons = []
        for c, label in metrics.items():
            data, layout = state(c)
            layout["annotations"] = [*layout["annotations"], footer]
            buttons.append({"label": label, "method": "update", "args": [data, layout]})
        fig.update_layout(
            updatemenus=[
                {
                    "type": "buttons", "direction": "right", "buttons": buttons, "active": 0, "showactive": True,
                    "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 34},
                    "bgcolor": "white", "bordercolor": "#bbbbbb", "font": {"size": 13},
                }
            ]
        )  # fmt: skip
    return fig


# --- figures with controls, for pages without a kernel ---


def _menu(buttons: list[dict], x: float, y: float, width: float, height: float) -> dict:
    """A drop-down menu at (x, y) pixels from the top left."""
    return {
        "type": "dropdown", "buttons": buttons, "active": 0, "showactive": True, "direction": "down",
        "x": x / width, "xanchor": "left", "y": 1 - y / height, "yanchor": "top", "pad": {"t": 0, "l": 0},
        "bgcolor": "white", "bordercolor": "#bbbbbb", "font": {"size": 13},
    }  # fmt: skip


def explorer_static(
    images: np.ndarray | Sequence[np.ndarray],
    heatmaps: np.ndarray,
    titles: Sequence[str],
    phrases: Sequence[str],
    layers: Sequence[str],
    timesteps: Sequence[int],
    masks: Sequence[np.ndarray | None] | None = None,
    means: bool = True,
    colorscale: str = "Viridis",
) -> go.Figure:
    """Choose study and phrase, layer and timestep, and see where the model looks: works on a page without a kernel.

    The maps of a study travel as one palette picture, tiles of layers × timesteps; the controls move the axes' ranges
    over it, so every combination is there and each map is stored once. Each is scaled by its own minimum and maximum.

    Args:
        images: uint8 ``(n, H, W)``; one entry per phrase, so a study with two phrases comes twice.
        heatmaps: float ``(n, layers, timesteps, h, w)``.
        titles, phrases: n names of the studies and the phrases that are grounded.
        means: offer the mean over layers and over timesteps too, first (of the values, before scaling).
    """
    pictures, maps, layer_names, times, masks = explored(
        images, heatmaps, titles, phrases, layers, timesteps, masks, means
    )
    n, height, width = len(pictures), *pictures[0].shape
    side = 400.0
    sheet = _Sheet(1, 1, (height, width), right=WIDTH - side, largest=side)
    sheet.tops = [8.0]
    sheet.height = 8 + sheet.cell_h + 112
    base, heat, lines = sheet.add(0, 0), sheet.add(0, 0), sheet.add(0, 0)
    sheet.annotations = sheet.annotations[-1:]  # one side marker, on top
    tiles = [[[_enlarged(normalize(m), 32) for m in row] for row in per_layer] for per_layer in maps]
    h, w = tiles[0][0][0].shape
    owner: list[int] = []
    for i, picture in enumerate(pictures):
        # A border of repeated pixels: the browser's smoothing never reaches the neighbouring tile.
        atlas = np.vstack([np.hstack([np.pad(tile, 1, mode="edge") for tile in row]) for row in tiles[i]])
        extent = atlas.shape[::-1]
        found = [
            _base_trace(picture, base, int(2 * side)),
            _picture(_heat_uri(atlas, colorscale), extent, extent, heat),
        ]
        points = _mask_points(masks[i], picture.shape) if masks[i] is not None else np.zeros((0, 2))
        if len(points):
            found += _line_traces(points, lines, "white", phrases[i])
        for trace in found:
            trace.visible = i == 0
        sheet.traces += found
        owner += [i] * len(found)
    sheet.axes[f"yaxis{heat}"].pop("scaleanchor")
    for name in (f"yaxis{base}", f"yaxis{lines}"):
        sheet.axes[name].pop("scaleanchor")

    def columns_of(t: int) -> list[float]:
        return [t * (w + 2) + 1, t * (w + 2) + 1 + w]

    def rows_of(k: int) -> list[float]:
        return [k * (h + 2) + 1 + h, k * (h + 2) + 1]

    sheet.axes[f"xaxis{heat}"]["range"], sheet.axes[f"yaxis{heat}"]["range"] = columns_of(0), rows_of(0)
    left, room = side + 28, WIDTH - side - 28
    for text, y in (("Study and phrase", 8), ("Cross-attention layer", 72), ("Grounded phrase", 140)):
        sheet.write(f"<b>{text}</b>", left, y, "left", "top", size=13)
    said = [f"“{_text(phrase, room, 14)[0]}”<br><span style='color:{_MUTED}'>{_text(title, room, 14)[0]}</span>"
            for title, phrase in zip(titles, phrases, strict=True)]  # fmt: skip
    sheet.write(said[0], left, 160, "left", "top", size=14)
    note = len(sheet.annotations) - 1
    sheet.write("white outline: the finding’s true place", left, 8 + sheet.cell_h, "left", "bottom", size=12)
    scale = go.Scatter(
        x=[None], y=[None], mode="markers", hoverinfo="skip",
        marker={
            "colorscale": colorscale, "cmin": 0, "cmax": 1, "color": [0], "showscale": True,
            "colorbar": {
                "orientation": "h", "thickness": 12, "lenmode": "pixels", "len": 220, "outlinewidth": 0, "ypad": 0,
                "xpad": 0, "x": (left + 10) / sheet.width, "xanchor": "left",
                "y": 1 - (sheet.cell_h - 30) / sheet.height, "yanchor": "bottom",
                "tickvals": [0, 1], "ticktext": ["min", "max"], "ticks": "", "tickfont": {"size": 12},
                "title": {"text": "attention, min–max per map", "side": "top", "font": {"size": 12}},
            },
        },
    )  # fmt: skip
    sheet.traces.append(scale)
    owner.append(-1)
    fig = sheet.figure()
    labels = [textwrap.shorten(f"{t}: {p}", 33, placeholder="…") for t, p in zip(titles, phrases, strict=True)]
    studies = [
        {
            "label": html.escape(label), "method": "update",
            "args": [{"visible": [o in (i, -1) for o in owner]}, {f"annotations[{note}].text": said[i]}],
        }
        for i, label in enumerate(labels)
    ]  # fmt: skip
    depth = [
        {"label": html.escape(name), "method": "relayout", "args": [{f"yaxis{heat}.range": rows_of(k)}]}
        for k, name in enumerate(layer_names)
    ]
    steps = [
        {"label": name, "method": "relayout", "args": [{f"xaxis{heat}.range": columns_of(t)}]}
        for t, name in enumerate(times)
    ]
    menus = [_menu(studies, left, 28, sheet.width, sheet.height)] if n > 1 else []
    if len(depth) > 1:
        menus.append(_menu(depth, left, 92, sheet.width, sheet.height))
    fig.update_layout(updatemenus=menus, plot_bgcolor="rgba(0,0,0,0)")  # three subplots lie on one another
    if len(steps) > 1:
        fig.update_layout(
            sliders=[
                {
                    "active": 0, "steps": steps, "x": 0, "xanchor": "left", "lenmode": "pixels", "len": side,
                    "y": 1 - (sheet.cell_h + 14) / sheet.height, "yanchor": "top", "pad": {"t": 22, "l": 8, "r": 8},
                    "currentvalue": {"prefix": "timestep t = ", "font": {"size": 13}, "offset": 8},
                    "font": {"size": 12}, "ticklen": 4, "minorticklen": 0,
                }
            ]
        )  # fmt: skip
    return fig


def explored(
    images: np.ndarray | Sequence[np.ndarray],
    heatmaps: np.ndarray,
    titles: Sequence[str],
    phrases: Sequence[str],
    layers: Sequence[str],
    timesteps: Sequence[int],
    masks: Sequence[np.ndarray | None] | None,
    means: bool,
) -> tuple[list[np.ndarray], np.ndarray, list[str], list[str], list]:
    """Check what an explorer is given; add the means over layers and timesteps, first."""
    pictures = _many(images)
    n = len(pictures)
    maps = np.asarray(heatmaps, dtype=np.float32)
    if maps.ndim != 5 or maps.shape[:3] != (n, len(layers), len(timesteps)):
        raise ValueError(
            f"heatmaps are {maps.shape}, expected ({n} images, {len(layers)} layers, {len(timesteps)} timesteps, h, w)"
        )
    _listed(titles, n, "titles")
    _listed(phrases, n, "phrases")
    names, times = [str(layer) for layer in layers], [str(t) for t in timesteps]
    if means and len(names) > 1:
        maps, names = np.concatenate([maps.mean(axis=1, keepdims=True), maps], axis=1), ["all layers", *names]
    if means and len(times) > 1:
        maps, times = np.concatenate([maps.mean(axis=2, keepdims=True), maps], axis=2), ["all", *times]
    return pictures, maps, names, times, _listed(masks, n, "masks")


def highlights(report: str, findings: Sequence[Finding]) -> list[tuple[str, tuple[Finding, ...]]]:
    """The report cut where a finding's phrase begins or ends: pieces of text, each with the findings that say it.

    The pieces together are the report. A phrase that is not in the report marks nothing.
    """
    spans = []
    for finding in findings:
        start = report.lower().find(finding.phrase.lower()) if finding.phrase else -1
        if start >= 0:
            spans.append((start, start + len(finding.phrase), finding))
    cuts = sorted({0, len(report), *(c for start, end, _ in spans for c in (start, end))})
    return [(report[a:b], tuple(f for start, end, f in spans if start <= a and b <= end)) for a, b in pairwise(cuts)]


def targets(study: Study, size: int) -> tuple[np.ndarray, list[tuple[str, Box]], list[tuple[str, np.ndarray]]]:
    """What a browser draws of a study, in a letterboxed ``size × size`` frame.

    Returns:
        the image uint8 ``(size, size)``; a ``(name, Box)`` per box, tight around the mask where there is one; and a
        ``(name, mask)`` per finding with an exact mask.
    """
    frame = Frame(*study.size, size, "letterbox")
    boxes, masks = [], []
    for finding in study.present():
        if finding.mask is not None:
            mask = frame.mask(finding)
            masks.append((finding.name, mask))
            tight = box_of(mask)
            boxes += [(finding.name, tight)] if tight else []
        else:
            boxes += [(finding.name, b) for b in map(frame.box, finding.boxes) if b]
    return frame.image(study.pixels()), boxes, masks


def study_static(studies: Sequence[Study], size: int = 256, title: str = "") -> go.Figure:
    """Choose a study, see its image with the findings' places and its report with their words marked; needs no kernel.

    Args:
        studies: up to some twenty; the image of each is embedded at ``size`` pixels.
    """
    if not studies:
        raise ValueError("there is no study to show")
    side, letters, most = 360.0, 42, 26
    sheets = []
    for study in studies:
        sheet = _Sheet(1, 1, (size, size), title=title, right=WIDTH - side, largest=side)
        sheet.tops[0] += 44
        top = sheet.tops[0]
        report = _marked_lines(study, letters, most)
        sheet.height = max(top + side + 8, top + 18 * len(report) + 16)
        sheets.append((study, sheet, report))
    height = max(sheet.height for _, sheet, _ in sheets)
    traces, owner, notes = [], [], []
    for i, (study, sheet, report) in enumerate(sheets):
        sheet.height = height
        axis = sheet.add(0, 0)
        image, boxes, masks = targets(study, size)
        sheet.image(image, axis)
        exact = {name for name, _ in masks}
        for name, mask in masks:
            sheet.mask(mask, axis, name, FINDING_COLORS.get(name, "white"))
        sheet.boxes(boxes, axis, hidden=exact)
        sheet.write("<br>".join(report), side + 24, sheet.tops[0] - 4, "left", "top", size=13.5)
        for trace in sheet.traces:
            trace.visible = i == 0
        traces += sheet.traces
        owner += [i] * len(sheet.traces)
        notes.append(sheet.annotations)
    first = sheets[0][1]
    first.traces = traces
    fig = first.figure()
    buttons = [
        {
            "label": html.escape(textwrap.shorten(_study_label(study), 70, placeholder="…")), "method": "update",
            "args": [{"visible": [o == i for o in owner]}, {"annotations": notes[i]}],
        }
        for i, (study, _, _) in enumerate(sheets)
    ]  # fmt: skip
    if len(buttons) > 1:
        fig.update_layout(updatemenus=[_menu(buttons, 1, first.tops[0] - 40, first.width, height)])
    return fig


def _study_label(study: Study) -> str:
    names = list(dict.fromkeys(f.name for f in study.present()))
    return f"{study.id}: {', '.join(names) or 'no finding'}"


def _marked_lines(study: Study, letters: int, most: int) -> list[str]:
    """The report as plotly HTML lines: what is found bold behind a square of its colour, what is ruled out grey."""
    lines: list[str] = [""]
    used = 0
    for text, findings in highlights(study.report.strip(), study.findings):
        present = [f for f in findings if f.present]
        squares = "".join(
            f"<span style='color:{on_white(FINDING_COLORS.get(name, _INK))}'>■</span>"
            for name in dict.fromkeys(f.name for f in present)
        )
        opening, closing = ("<b>", "</b>") if present else ("<i>", "</i>") if findings else ("", "")
        for k, part in enumerate(text.split("\n")):
            if k:
                lines.append("")
                used = 0
            for word in part.split():
                if used and used + 1 + len(word) > letters:
                    lines.append("")
                    used = 0
                glue = " " if used and word[0] not in ".,;:" else ""
                styled = f"{opening}{html.escape(word)}{closing}"
                lines[-1] += glue + (squares and squares + "\u2009") + styled
                used += len(glue) + len(word) + (2 if squares else 0)
                squares = ""
    if len(lines) > most:
        lines = [*lines[: most - 1], "…"]
    return lines


def on_white(color: str) -> str:
    """A finding's colour where the background is white."""
    return "#999999" if color == "#FFFFFF" else color


# --- pictures for other places than a page ---


def contact_sheet(
    images: np.ndarray | Sequence[np.ndarray],
    columns: int = 4,
    titles: Sequence[str | None] | None = None,
    heatmaps: Sequence[np.ndarray | None] | None = None,
    masks: Sequence[np.ndarray | None] | None = None,
    boxes: Sequence[Sequence[tuple[str, Box]] | None] | None = None,
    header: Sequence[str] = (),
    size: int = 240,
    colorscale: str = "Viridis",
    marker: str = "R",
) -> Image.Image:
    """A still picture (RGB) of radiographs, overlays and outlines: for a README, where no script runs.

    Args:
        images: uint8 ``(n, H, W)``.
        titles: a caption above each image (shortened to one line), None for none.
        heatmaps: per image a map ``(h, w)`` to lay over it, or None.
        masks, boxes: what to outline, in white and in the finding's colour; boxes in pixels of their image.
        header: names of the columns.
        size: width in pixels at which each image is drawn.
    """
    pictures = _many(images)
    n = len(pictures)
    columns = min(columns, n)
    titles, heatmaps = _listed(titles, n, "titles"), _listed(heatmaps, n, "heatmaps")
    masks, boxes = _listed(masks, n, "masks"), _listed(boxes, n, "lists of boxes")
    gap, points = 10, max(12, round(size / 16))
    line = round(points * 1.5)
    caption = line if any(titles) else 0
    top = line + 2 if header else gap
    rows, high = -(-n // columns), round(size * pictures[0].shape[0] / pictures[0].shape[1])
    canvas = Image.new("RGB", (gap + columns * (size + gap), top + rows * (caption + high + gap)), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(points)

    def fitted(text: str) -> str:
        while len(text) > 1 and font.getlength(text) > size:
            text = text[:-2] + "…"
        return text

    for c, text in enumerate(header[:columns]):
        draw.text((gap + c * (size + gap) + size / 2, top - 4), fitted(text), _INK, font, anchor="ms")
    for i, picture in enumerate(pictures):
        x, y = gap + (i % columns) * (size + gap), top + (i // columns) * (caption + high + gap) + caption
        canvas.paste(compose(picture, heatmaps[i], masks[i], boxes[i], size, colorscale, marker), (x, y))
        if titles[i]:
            draw.text((x, y - 5), fitted(titles[i]), _INK, font, anchor="ls")
    return canvas


def compose(
    image: np.ndarray,
    heatmap: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    boxes: Sequence[tuple[str, Box]] | None = None,
    size: int = 400,
    colorscale: str = "Viridis",
    marker: str = "R",
    outlines: Sequence[tuple[str, np.ndarray]] = (),
    hidden: Container[str] = (),
) -> Image.Image:
    """One radiograph, ``size`` pixels wide (RGB), with overlay, outlines, labelled boxes and side marker drawn in.

    ``outlines`` are further masks, ``(finding, mask)``, in the colour of their finding; of the boxes of ``hidden``
    findings only the label is drawn.
    """
    image = _grey(image)
    high = round(size * image.shape[0] / image.shape[1])
    scale = size / image.shape[1]
    large = np.asarray(Image.fromarray(image).resize((size, high), Image.Resampling.BICUBIC))
    pixels = large if heatmap is None else blend(large, heatmap, colorscale=colorscale)
    canvas = Image.fromarray(pixels).convert("RGB")
    draw = ImageDraw.Draw(canvas)
    thick = max(2, round(size / 140))

    def stroke(points: np.ndarray, color: str) -> None:
        for shade, width in (("#111111", thick + 2), (color, thick)):
            draw.line([tuple(p) for p in points], shade, width, joint="curve")

    for color, target in [
        *((FINDING_COLORS.get(label, "white"), m) for label, m in outlines),
        *([("white", mask)] if mask is not None else []),
    ]:
        resize = np.array([size / target.shape[1], high / target.shape[0]])
        for loop in outline(np.asarray(target) > 0):
            stroke(loop * resize, color)
    font = ImageFont.load_default(max(12, round(size / 22)))
    for i, (label, box) in enumerate(boxes or ()):
        color = FINDING_COLORS.get(label, COLORS[(i + 4) % len(COLORS)])
        if label not in hidden:
            stroke(_box_points(box) * scale, color)
        if label:
            width, height = font.getlength(label) + 4, font.size * 1.25
            x = min(max(0.0, box.x * scale), size - width)
            y = box.y * scale - height - 2 if box.y * scale > 2 * height else box.y * scale + 3
            draw.rectangle((x, y, x + width, y + height), "#222222")
            draw.text((x + 2, y + height / 2), label, color, font, anchor="lm")
    if marker:
        draw.text((5, 3), marker, "white", ImageFont.load_default(max(12, round(size / 20))), stroke_width=1,
                  stroke_fill="black")  # fmt: skip
    return canvas
