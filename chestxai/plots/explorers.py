"""Figures with controls for pages without a kernel: choose a study, a layer, a timestep."""

import html
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from IPython.display import HTML
from PIL import Image

from chestxai.plots import pictures
from chestxai.plots.pictures import COLORSCALE, Images, Masks, Picture, as_pictures, enlarged, normalize, study_picture
from chestxai.plots.style import FINDING_COLORS, INK, MENU, MUTED, TEMPLATE, chooser, wrapped
from chestxai.runs import InputError
from chestxai.studies import Finding, Study

_SIDE = 400  # pixels in the width of the explorer's picture
Maps = Callable[[int, int, int], np.ndarray]


class Explored(NamedTuple):
    """What an explorer shows."""

    pictures: list[Picture]  #: without heatmaps
    heatmap: Maps  #: function of entry, layer and timestep
    titles: Sequence[str]
    phrases: Sequence[str]
    layers: list[str]
    timesteps: list[str]


def explored(
    images: Images,
    heatmaps: np.ndarray | Maps,
    titles: Sequence[str],
    phrases: Sequence[str],
    layers: Sequence[str],
    timesteps: Sequence[int],
    masks: Masks = None,
) -> Explored:
    """Check what an explorer is to show, and put the means over layers and over timesteps first.

    Args:
        images: uint8 ``(n, H, W)``; one entry per phrase, so a study with two phrases comes twice.
        heatmaps: Float ``(n, layers, timesteps, h, w)``; or a function of entry, layer and timestep (counted from 0)
            that makes one map ``(h, w)``; then there are no means.
        titles, phrases: Names of the studies, and the phrases that are grounded.
        layers, timesteps: Names of the layers, and the timesteps.
        masks: Per entry the target to outline, or None.
    """
    shown, maps = as_pictures(images, None, masks), heatmaps
    n, names, times = len(shown), list(map(str, layers)), list(map(str, timesteps))
    for what, values in (("titles", titles), ("phrases", phrases)):
        if len(values) != n:
            raise InputError(f"{n} images but {len(values)} {what}")
    if callable(maps):
        return Explored(shown, maps, titles, phrases, names, times)
    maps = np.asarray(maps, dtype=np.float32)
    if maps.ndim != 5 or maps.shape[:3] != (n, len(names), len(times)):
        expected = f"({n} images, {len(names)} layers, {len(times)} timesteps, h, w)"
        raise InputError(f"heatmaps are {maps.shape}, expected {expected}")
    if len(names) > 1:
        maps, names = np.concatenate([maps.mean(axis=1, keepdims=True), maps], axis=1), ["all layers", *names]
    if len(times) > 1:
        maps, times = np.concatenate([maps.mean(axis=2, keepdims=True), maps], axis=2), ["all", *times]
    return Explored(shown, lambda i, layer, t: maps[i, layer, t], titles, phrases, names, times)


def explorer_static(content: Explored) -> go.Figure:
    """Choose study and phrase, layer and timestep, and see where the model looks: works on a page without a kernel.

    The maps of a study travel as one palette picture, tiles of layers × timesteps; the controls move the axes over it,
    so every combination is there and each map is stored once, scaled by its own minimum and maximum. The ``content`` is
    of `explored`.
    """
    shown, map_of, titles, phrases, names, times = content
    figures = []
    for i, (picture, title, phrase) in enumerate(zip(shown, titles, phrases, strict=True)):
        tiles = [[enlarged(normalize(map_of(i, k, t)), 32) for t in range(len(times))] for k in range(len(names))]
        label = textwrap.shorten(f"{title}: {phrase}", 33, placeholder="…")
        figures.append((label, _explorer(picture, tiles, title, phrase)))
    h, w = tiles[0][0].shape
    fig = chooser(figures, 0, name="Study and phrase", pad={"b": 34})
    depth = [_choice(name, "yaxis2", [(k + 1) * (h + 2) - 1, k * (h + 2) + 1]) for k, name in enumerate(names)]
    steps = [_choice(time, "xaxis2", [t * (w + 2) + 1, (t + 1) * (w + 2) - 1]) for t, time in enumerate(times)]
    fig.update_layout(
        xaxis2_range=steps[0]["args"][0]["xaxis2.range"], yaxis2_range=depth[0]["args"][0]["yaxis2.range"]
    )
    if len(depth) > 1:
        look = MENU | {"name": "Cross-attention layer", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"}
        fig.update_layout(updatemenus=[*fig.layout.updatemenus, look | {"pad": {"b": 34}, "buttons": depth}])
    if len(steps) > 1:
        fig.update_layout(sliders=[{
            "name": "Timestep t", "steps": steps, "x": 0, "len": 1, "y": 0, "yanchor": "top", "pad": {"t": 44},
            "currentvalue": {"prefix": "timestep t = "}, "font": {"size": 12},
        }])  # fmt: skip
    return fig


def _choice(label: str, axis: str, window: list[float]) -> dict:
    """A menu entry or slider step that moves an axis."""
    return {"label": html.escape(label), "method": "relayout", "args": [{f"{axis}.range": window}]}


def _explorer(picture: Picture, tiles: list[list[np.ndarray]], title: str, phrase: str) -> go.Figure:
    """One entry of the explorer: image on the first axes, all maps on the second, outlines on the third."""
    # A border of repeated pixels: the browser's smoothing never reaches the neighbouring tile.
    atlas = np.block([[np.pad(tile, 1, mode="edge") for tile in row] for row in tiles])
    tall, wide = picture.image.shape
    # 64 colours look like 256, and take half the room.
    level = ((normalize(atlas, (0, 1)) * 63).round() * 255 / 63).round().astype(np.uint8)
    heat = np.dstack([pictures.PALETTE[level], (level * pictures.OPACITY).round().astype(np.uint8)])
    image = pictures.draw(replace(picture, outlines=()), _SIDE, marker="R", density=2)
    traces: list = [_layer(image, picture.image.shape, ""), _layer(Image.fromarray(heat), atlas.shape, "2")]
    for mark in picture.outlines:
        points = np.vstack([part for loop in mark.loops for part in (loop, [(np.nan, np.nan)])])[:-1]
        line = {"x": points[:, 0].tolist(), "y": points[:, 1].tolist(), "mode": "lines", "connectgaps": False}
        line |= {"xaxis": "x3", "yaxis": "y3"}
        traces.append(go.Scatter(line={"color": "rgba(0,0,0,0.65)", "width": 4}, hoverinfo="skip", **line))
        traces.append(go.Scatter(line={"color": mark.color, "width": 2}, hovertext=html.escape(mark.name), **line))
    bar = {"orientation": "h", "lenmode": "pixels", "len": _SIDE, "x": 0, "xanchor": "left", "xpad": 0, "y": 0}
    bar |= {"yanchor": "top", "ypad": 6, "thickness": 12, "outlinewidth": 0, "tickvals": [0, 1], "ticks": ""}
    bar |= {"ticktext": ["min", "max"], "title": {"text": pictures.Scale().title, "side": "top", "font": {"size": 12}}}
    marker = {"colorscale": COLORSCALE, "cmin": 0, "cmax": 1, "color": [0], "colorbar": bar, "showscale": True}
    traces.append(go.Scatter(x=[None], y=[None], mode="markers", hoverinfo="skip", marker=marker))
    fixed = {"visible": False, "fixedrange": True, "constrain": "domain"}
    axes = {f"xaxis{k}": fixed | {"range": [0, wide], "anchor": f"y{k}"} for k in ("", "2", "3")}
    axes |= {f"yaxis{k}": fixed | {"range": [tall, 0], "anchor": f"x{k}"} for k in ("", "2", "3")}
    axes["yaxis"]["scaleanchor"] = "x"
    words = f"“{wrapped(phrase, _SIDE, 14)[0]}”<br><span style='color:{MUTED}'>{wrapped(title, _SIDE, 14)[0]}</span>"
    note = {"text": words, "x": 0, "y": 1, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    note |= {"yshift": 4, "font": {"size": 13}, "align": "left", "showarrow": False, "borderpad": 0}
    about = "White outline: the finding’s true place. Each map is coloured by its own minimum and maximum."
    # Three subplots lie on one another. Above them are the words and, where no page has its own controls, the menus.
    return go.Figure(traces, axes).update_layout(
        template=TEMPLATE, annotations=[note], width=_SIDE + 16, height=round(_SIDE * tall / wide) + 232,
        margin={"l": 8, "t": 92, "r": 8, "b": 140}, plot_bgcolor="rgba(0,0,0,0)", showlegend=False, dragmode=False,
        title_text="Where the model looks, by layer and timestep", meta={"caption": about, "room": 40, "below": 90},
    )  # fmt: skip


def _layer(image: Image.Image, shape: tuple[int, ...], axis: str) -> go.Image:
    """An ``image`` of any resolution that fills ``shape``, rows and columns, of its axes."""
    dx, dy = shape[1] / image.width, shape[0] / image.height
    place = {"x0": dx / 2, "y0": dy / 2, "dx": dx, "dy": dy, "xaxis": f"x{axis}", "yaxis": f"y{axis}"}
    return go.Image(source=pictures.data_uri(image), zsmooth="fast", hoverinfo="skip", **place)


def highlights(report: str, findings: Sequence[Finding]) -> list[tuple[str, tuple[Finding, ...]]]:
    """Cut a ``report`` where the phrase of one of its ``findings`` begins or ends.

    Returns pieces of text, which together are the report, each with the findings whose phrase it belongs to.
    """
    spans = []
    for finding in findings:
        if found := finding.phrase and re.search(re.escape(finding.phrase), report, re.IGNORECASE):
            spans.append((*found.span(), finding))
    cuts = sorted({0, len(report), *(c for start, end, _ in spans for c in (start, end))})
    return [(report[a:b], tuple(f for start, end, f in spans if start <= a and b <= end)) for a, b in pairwise(cuts)]


def report_html(study: Study, marks: bool = True) -> str:
    """The report of a ``study`` as HTML: words of what is present are underlined in its colour, those of what is ruled
    out are in italics; all plain without ``marks``.
    """
    parts = []
    for text, findings in highlights(study.report.strip(), study.findings if marks else ()):
        text, present = html.escape(text).replace("\n", "<br>"), [f.name for f in findings if f.present]
        color = FINDING_COLORS.get(present[0], INK).replace("#FFFFFF", "#999999") if present else ""
        style = f"background:{color}33;border-bottom:3px solid {color};padding:0 2px"
        names = html.escape(", ".join(dict.fromkeys(present)))
        marked = f'<span style="{style}" title="{names}">{text}</span>' if present else f"<i>{text}</i>"
        parts.append(marked if findings else text)
    return f"<p>{''.join(parts)}</p>"


def picture_html(picture: Picture, text: str, alt: str, size: int) -> str:
    """A ``picture``, ``size`` pixels wide, with ``text`` (HTML) beside it, or below it on a narrow screen.

    Needs no script. ``alt`` is what it shows, in plain words.
    """
    uri = pictures.data_uri(pictures.draw(picture, size))
    image = f"<img alt='{html.escape(alt)}' width={size} style='max-width:100%;height:auto' src='{uri}'>"
    row = "display:flex;flex-wrap:wrap;gap:20px;margin:8px 0;line-height:1.5"
    return f"<div style='{row}'>{image}<div style='flex:1 1 240px;max-width:420px'>{text}</div></div>"


def study_html(study: Study, size: int = 360, marks: bool = True) -> str:
    """A ``study``'s image, ``size`` pixels wide, beside its report; with ``marks``, outlines and marked words."""
    picture = study_picture(study, size)
    shown = picture if marks else replace(picture, outlines=())
    return picture_html(shown, report_html(study, marks), f"Radiograph of {_summary(study)}", size)


def study_static(studies: Sequence[Study], size: int = 360) -> HTML:
    """A list of up to some twenty ``studies`` to open, the first one open, each as in `study_html` of this ``size``.

    Needs neither kernel nor script.
    """
    if not studies:
        raise InputError("there is no study to show")
    return HTML("".join(
        f"<details name='studies' style='margin:4px 0'{'' if i else ' open'}><summary style='cursor:pointer'>"
        f"{html.escape(_summary(study))}</summary>{study_html(study, size)}</details>"
        for i, study in enumerate(studies)
    ))  # fmt: skip


def _summary(study: Study) -> str:
    return f"{study.id}: {', '.join(dict.fromkeys(finding.name for finding in study.present())) or 'no finding'}"
