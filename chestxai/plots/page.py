"""Figures as HTML for pages: with caption, text alternative, and their data as a folded table.

Pictures need no script at all. A chart draws itself with plotly.js, the book's copy on the book's pages and the public
one elsewhere (nbconvert, nbviewer, Colab); its menus are HTML controls, which a keyboard reaches (``figure.js``).
"""

import base64
import html
import json
import re
import textwrap
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.io as pio
from plotly.offline import get_plotlyjs_version

_STYLE, _SCRIPT = (Path(__file__).with_name(f"figure.{kind}").read_text("utf-8") for kind in ("css", "js"))
_SCRIPT = _SCRIPT[_SCRIPT.index("(() =>") :]  # without its comment
_ROWS = 200  # rows of a data table
TOLD = "%{hovertext}<extra></extra>"  #: hover of a trace whose words say all: its places in rows are no data


def to_html(figure: dict[str, Any]) -> str:
    """A figure as HTML that needs nothing around it.

    Args:
        figure: Of ``go.Figure.to_dict``. In ``layout.meta`` `chestxai.plots` keeps ``caption`` (plain text, after the
            title), ``room`` (pixels that title and menus take above the axes), and what `grid` is made of.
    """
    data, layout = list(figure["data"]), dict(figure["layout"])
    meta = layout.pop("meta", None) or {}
    title = plain((layout.pop("title", None) or {}).get("text"))
    table = table_of(data, layout, meta)
    more = meta.get("caption") or ""
    words = dict.fromkeys(cell["caption"] or cell["row"] for cell in meta.get("cells", ()))
    above = "; ".join(" ".join(text.split()) for text in words if text)
    caption = title or more or textwrap.shorten(above, 160, placeholder=" …") or _axes_caption(layout)
    alt = meta.get("alt") or f"{caption.rstrip('.')}. {_summary(table)}"
    words = f"<b>{html.escape(title)}</b> {html.escape(more)}".strip() if title else html.escape(caption)
    head = f"<figcaption>{words}</figcaption>"
    name = f"cx-{uuid.uuid4()}"  # figures of several executions may come to stand on one page
    body = _pictures(data, meta) if "cells" in meta else _chart(name, data, layout, meta, bool(title))
    rest = f"<p>The first {_ROWS:,} of {len(table):,} rows.</p>" if len(table) > _ROWS else ""
    numbers = table[:_ROWS].to_html(index=False, border=0, na_rep="", float_format="{:.4g}".format)
    folded = f"<details><summary>Data of this figure</summary><div tabindex='0'>{numbers}</div>{rest}</details>"
    label = html.escape(alt[:900], quote=True)
    return f'<style>{_STYLE}</style><figure class="cx" id="{name}" aria-label="{label}">{head}{body}{folded}</figure>'


def plain(text: str | None) -> str:
    """Plotly's HTML as plain text on one line."""
    return html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"<br\s*/?>", " ", text or ""))).strip()


def _axes_caption(layout: dict[str, Any]) -> str:
    titles = (plain(((layout.get(axis) or {}).get("title") or {}).get("text")) for axis in ("xaxis", "yaxis"))
    x, y = (re.sub(r"^← |\s*[·(…].*", "", title) for title in titles)
    return f"{y or 'Values'} against {x}" if x else y or "A figure"


def values(array: Any) -> np.ndarray:
    """An array of a figure, which plotly may have packed as base64."""
    if isinstance(array, dict):
        flat = np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"])
        shape = array.get("shape")
        return flat.reshape([int(n) for n in re.findall(r"\d+", str(shape))]) if shape else flat
    return np.array([], float) if array is None else np.asarray(array, dtype=None if len(array) else float)


def table_of(data: Sequence[dict], layout: dict[str, Any], meta: dict[str, Any]) -> pd.DataFrame:
    """The ``data`` of a figure as a table: a row per picture, or per point; ``layout`` and ``meta`` as in `to_html`."""
    if "cells" in meta:
        return pd.DataFrame([{k: v for k, v in cell["about"].items() if v} for cell in meta["cells"]]).fillna("")
    for trace in data:
        if trace["type"] == "heatmap":
            z = values(trace["z"])
            names = [
                [plain(str(v)) for v in values(trace.get(k, range(n)))] for k, n in zip("yx", z.shape, strict=True)
            ]
            return pd.DataFrame(z, pd.Index(names[0], name="row"), names[1]).reset_index()
    parts = [part for trace in data if (part := _points(trace, layout)) is not None]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"figure": ["no data"]})
    return table.dropna(axis="columns", how="all")


def _points(trace: dict[str, Any], layout: dict[str, Any]) -> pd.DataFrame | None:
    """The points of a trace; None for one that only decorates."""
    if trace.get("hoverinfo") == "skip" or ("x" not in trace and "y" not in trace):
        return None
    x, y = values(trace.get("x")), values(trace.get("y"))
    n = max(len(x), len(y))
    if not n or (len(x) == 1 and x[0] is None):
        return None
    number = (trace.get("xaxis") or "x")[1:]
    domain = (layout.get(f"xaxis{number}") or {}).get("domain") or [0, 1]
    panels = [
        plain(note["text"])
        for note in (layout.get("annotations") or () if "xaxis2" in layout else ())
        if note.get("xref") == "paper" and domain[0] <= note.get("x", -1) <= domain[1]
    ]
    columns = {"panel": trace.get("meta") or (panels or [None])[0]}
    columns["series"] = plain(trace.get("name")) or None
    columns |= {"x": x if len(x) else range(n), "y": y if len(y) else range(n)}
    for axis in "xy":
        for side, sign in (("array", 1), ("arrayminus", -1)):
            reach = values((trace.get(f"error_{axis}") or {}).get(side))
            if len(reach) == n:
                columns[f"{axis} {'high' if sign > 0 else 'low'}"] = columns[axis] + sign * reach.astype(float)
    hover = trace.get("hovertext")
    if np.ndim(hover) == 1 and len(hover) == n:
        columns["about"] = [plain(str(text)) for text in hover]
    if trace.get("hovertemplate") == TOLD:
        columns = {key: columns[key] for key in ("panel", "series", "about")}
    return pd.DataFrame(columns, index=range(n))


def _summary(table: pd.DataFrame) -> str:
    """What a table holds, in words: for each series the number of rows and the range of its values."""
    numbers = table.select_dtypes("number")
    if numbers.empty:
        return f"{len(table)} in all: " + "; ".join(" ".join(map(str, row)) for row in table.to_numpy())[:700]
    if "series" not in table:
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        return f"{len(table)} rows with values from {low:.3g} to {high:.3g}."
    keys = [key for key in ("panel", "series") if key in table]
    axis = "y" if "y" in numbers else numbers.columns[0]
    parts = [
        f"{', '.join(map(str, key))}: {len(rows)} points, from {rows[axis].min():.3g} to {rows[axis].max():.3g}"
        for key, rows in table.groupby(keys, sort=False, dropna=False)
    ]
    return "; ".join(parts) + "."


def _chart(name: str, data: list[dict], layout: dict[str, Any], meta: dict[str, Any], titled: bool) -> str:
    menus = [
        {
            "name": menu.get("name") or "Show",
            "options": list(menu.get(options) or ()),
            "active": menu.get("active") or 0,
        }
        for kind, options in (("updatemenus", "buttons"), ("sliders", "steps"))
        for menu in layout.pop(kind, None) or ()
    ]
    # The title is the caption, and the menus stand above the plot: their room is left out.
    room = {"t": meta.get("room", 40 * titled), "b": meta.get("below", 0)}
    margin = {"t": 72, "b": 56} | (layout.get("margin") or {})
    layout["margin"] = margin | {side: margin[side] - room[side] for side in room}
    layout["height"] = layout.get("height", 450) - sum(room.values())
    # A figure is drawn no narrower than its words need: a narrow screen shows it smaller.
    cells = max([0, *(np.shape(values(trace["z"]))[-1] for trace in data if trace["type"] == "heatmap")])
    spec = {"data": data, "layout": layout, "menus": menus, "least": layout.get("width") or max(480, 240 + 44 * cells)}
    words = {"ID": json.dumps(name), "SPEC": pio.json.to_json_plotly(spec), "VERSION": get_plotlyjs_version()}
    script = re.sub(r"\b(ID|SPEC|VERSION)\b", lambda word: words[word[0]].replace("<", "\\u003c"), _SCRIPT)
    controls = "".join(
        f"<label>{html.escape(menu['name'])}<select data-menu='{i}' autocomplete='off'>"
        + "".join(
            f"<option{' selected' if k == menu['active'] else ''}>{html.escape(plain(o.get('label')))}</option>"
            for k, o in enumerate(menu["options"])
        )
        + "</select></label>"
        for i, menu in enumerate(menus)
    )
    return (
        (f"<div class='cx-controls'>{controls}</div>" if controls else "")
        + f"<div class='cx-box'><div class='cx-plot plotly-graph-div' style='height:{layout['height']}px'></div></div>"
        + f"<script>{script}</script>"
    )


def _pictures(data: list[dict], meta: dict[str, Any]) -> str:
    """The pictures of a grid as HTML: images, outlines as lines over them, words around them."""
    cells, columns = meta["cells"], meta["columns"]
    wide = columns * (meta["width"] + 12) - 12
    share = f"calc((100% - {12 * (columns - 1)}px)/{columns})"
    fixed = f"repeat({columns},minmax(0,1fr))" if meta["fixed"] else f"repeat(auto-fill,minmax(max(150px,{share}),1fr))"
    parts = []
    for cell in cells:
        if cell["row"] and cell["first"][0]:
            parts.append(f"<div class='cx-row'>{html.escape(cell['row'])}</div>")
        parts.append(f"<div class='cx-cell'>{''.join(_cell(data, cell))}</div>")
    bar = ""
    if meta["scale"]:
        ends, name, colors = meta["scale"]
        ramp = f"background:linear-gradient(90deg,{','.join(colors)})"
        low, high = map(html.escape, ends)
        bar = f"<p>{html.escape(name)}: <nobr>{low}<span class='cx-bar' style='{ramp}'></span>{high}</nobr></p>"
    level = "start" if any(cell["note"] for cell in cells) else "end"  # pictures of a row stand on one line
    style = f"max-width:{wide:.0f}px;grid-template-columns:{fixed};align-items:{level}"
    return f"<div class='cx-grid' style='{style}'>{''.join(parts)}</div>{bar}"


def _cell(data: list[dict], cell: dict[str, Any]) -> Iterator[str]:
    """The parts of one picture."""
    height, width = cell["shape"]
    own = [trace for trace in data if (trace.get("xaxis") or "x") == cell["axis"]]
    pictures = [trace["source"] for trace in own if trace["type"] == "image"]
    lines = "".join(
        f"<path d='{_path(trace)}' fill='none' stroke='{trace['line']['color']}' stroke-width="
        f"'{trace['line']['width']}' vector-effect='non-scaling-stroke'/>"
        for trace in own
        if trace["type"] == "scatter" and trace.get("mode") == "lines"
    )
    if cell["column"] and cell["first"][1]:
        yield f"<p><b>{html.escape(cell['column'])}</b></p>"
    if cell["caption"]:
        yield f"<p>{html.escape(cell['caption']).replace(chr(10), '<br>')}</p>"
    alt = html.escape("; ".join(f"{k}: {v}" for k, v in cell["about"].items() if v), quote=True)
    yield "<div class='cx-picture'>"
    for i, source in enumerate(pictures):
        yield f"<img alt='{alt if not i else ''}' src='{source}' style='width:100%;aspect-ratio:{width}/{height}'>"
    if lines:
        yield f"<svg viewBox='0 0 {width} {height}' preserveAspectRatio='none' aria-hidden='true'>{lines}</svg>"
    for text, x, y, color in cell["labels"]:
        yield f"<span style='left:{x:.1%};top:{y:.1%};color:{color}'>{html.escape(text)}</span>"
    yield "</div>"
    if cell["note"]:
        yield f"<p>{html.escape(cell['note'])}</p>"


def _path(trace: dict[str, Any]) -> str:
    """The line of a trace as SVG; a gap in it begins a new one."""
    points, pen = [], "M"
    for x, y in zip(values(trace["x"]).astype(float), values(trace["y"]).astype(float), strict=True):
        if np.isnan(x):
            pen = "M"
            continue
        points.append(f"{pen}{x:g} {y:g}")
        pen = "L"
    return "".join(points)
