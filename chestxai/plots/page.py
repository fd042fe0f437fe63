"""Figures as HTML for pages: with caption, text alternative, and their data as a folded table.

A chart draws itself with plotly.js, the book's copy on the book's pages and the public one elsewhere (nbconvert,
nbviewer, Colab); its menus are HTML controls, which a keyboard reaches (``page.js``).
"""

import base64
import html
import json
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.io as pio
from plotly.offline import get_plotlyjs_version

_STYLE, _SCRIPT = (Path(__file__).with_suffix(kind).read_text("utf-8") for kind in (".css", ".js"))
_SCRIPT = _SCRIPT[_SCRIPT.index("(() =>") :]  # without its comment
_ROWS = 200  # rows of a data table
TOLD = "%{hovertext}<extra></extra>"  #: hover of a trace whose words say all: its places in rows are no data


def to_html(figure: dict[str, Any]) -> str:
    """A chart, ``figure`` of ``go.Figure.to_dict``, as HTML that needs nothing around it.

    In ``layout.meta`` `chestxai.plots` keeps ``caption`` (plain text, after the title), and ``room`` and ``below``,
    pixels that title and menus take above and below the axes.
    """
    data, layout = list(figure["data"]), dict(figure["layout"])
    meta = layout.pop("meta", None) or {}
    title = plain((layout.pop("title", None) or {}).get("text"))
    table, caption = table_of(data, layout), meta.get("caption") or ("" if title else _axes_caption(layout))
    name = f"cx-{uuid.uuid4()}"  # figures of several executions may come to stand on one page
    return framed(title, caption, _chart(name, data, layout, meta, bool(title)), table, name)


def framed(title: str, caption: str, body: str, table: pd.DataFrame, name: str = "") -> str:
    """A figure as HTML: ``title`` and ``caption`` (plain text), ``body`` (HTML), and its data, a ``table``, folded.

    ``name``: its id; figures that need none have none.
    """
    title = " ".join(title.split())
    words = f"<b>{html.escape(title)}</b> {html.escape(caption)}".strip() if title else html.escape(caption)
    rest = f"<p>The first {_ROWS:,} of {len(table):,} rows.</p>" if len(table) > _ROWS else ""
    numbers = table[:_ROWS].to_html(index=False, border=0, na_rep="", float_format="{:.4g}".format)
    folded = f"<details><summary>Data of this figure</summary><div tabindex='0'>{numbers}</div>{rest}</details>"
    label = html.escape(f"{(title or caption).rstrip('.')}. {_summary(table)}"[:900], quote=True)
    own = f' id="{name}"' if name else ""
    start = f'<style>{_STYLE}</style><figure class="cx"{own} aria-label="{label}">'
    return f"{start}<figcaption>{words}</figcaption>{body}{folded}</figure>"


def plain(text: str | None) -> str:
    """Plotly's HTML as plain text on one line."""
    return html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"<br\s*/?>", " ", text or ""))).strip()


def _axes_caption(layout: dict[str, Any]) -> str:
    x, y = _axis_title(layout, "xaxis"), _axis_title(layout, "yaxis")
    return f"{y or 'Values'} against {x}" if x else y or "A figure"


def _axis_title(layout: dict[str, Any], axis: str) -> str:
    title = ((layout.get(axis) or {}).get("title") or {}).get("text") or ""
    return re.sub(r"^← |\s*[·(…].*", "", plain(title.partition("<br")[0]))


def values(array: Any) -> np.ndarray:
    """An array of a figure, which plotly may have packed as base64."""
    if isinstance(array, dict):
        flat = np.frombuffer(base64.b64decode(array["bdata"]), array["dtype"])
        shape = array.get("shape")
        return flat.reshape([int(n) for n in re.findall(r"\d+", str(shape))]) if shape else flat
    return np.array([], float) if array is None else np.asarray(array, dtype=None if len(array) else float)


def table_of(data: Sequence[dict], layout: dict[str, Any]) -> pd.DataFrame:
    """The ``data`` of a chart as a table, a row per point; ``data`` and ``layout`` as plotly has them."""
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
    (left, right), (_, top) = (
        (layout.get(f"{a}axis{(trace.get(f'{a}axis') or a)[1:]}") or {}).get("domain") or [0, 1] for a in "xy"
    )
    # The name of a panel stands above it.
    panels = [
        (abs(note.get("y", 1) - top), plain(note["text"]))
        for note in (layout.get("annotations") or () if "xaxis2" in layout else ())
        if note.get("xref") == "paper" and left <= note.get("x", -1) <= right
    ]
    columns = {"panel": trace.get("meta") or min(panels, default=(0, None))[1]}
    columns["series"] = plain(trace.get("name")) or None
    told = trace.get("hovertemplate") == TOLD
    for axis, place in {"x": x, "y": y}.items() if not told else ():
        # Panels with a common axis have its title once.
        titles = {key: text for key in layout if key.startswith(f"{axis}axis") and (text := _axis_title(layout, key))}
        (alone,) = {*titles.values()} if len({*titles.values()}) == 1 else {axis}
        name = titles.get(f"{axis}axis{(trace.get(f'{axis}axis') or axis)[1:]}", alone)
        # A menu changes the title of y, which the layout has for its first choice only: the panel says what it is.
        name = axis if axis == "y" and trace.get("meta") else name
        name = f"{axis} axis" if name in (*columns, "about") else name
        if not len(place) and trace["type"] not in ("scatter", "bar"):
            continue
        columns[name] = place if len(place) else range(n)
        for side, sign in (("array", 1), ("arrayminus", -1)):
            reach = values((trace.get(f"error_{axis}") or {}).get(side))
            if len(reach) == n:
                columns[f"{name} {'high' if sign > 0 else 'low'}"] = columns[name] + sign * reach.astype(float)
    hover = trace.get("hovertext")
    if np.ndim(hover) == 1 and len(hover) == n:
        columns["about"] = [plain(str(text)) for text in hover]
    return pd.DataFrame(columns, index=range(n))


def _summary(table: pd.DataFrame) -> str:
    """What a table holds, in words: for each series the number of rows and the range of its values."""
    numbers = table.select_dtypes("number")
    if numbers.empty:
        return f"{len(table)} in all: " + "; ".join(" ".join(map(str, row)) for row in table.to_numpy())[:700]
    keys = [key for key in ("panel", "series") if key in table]
    if not keys:
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        return f"{len(table)} rows with values from {low:.3g} to {high:.3g}."
    parts = []
    for key, rows in table.groupby(keys, sort=False, dropna=False):
        own = rows.dropna(axis="columns", how="all").select_dtypes("number")
        axes = [c for c in own if re.sub(" (low|high)$", "", c) not in {*own} - {c}][:2]  # x and y, if numbers
        span = "".join(f", {c} from {own[c].min():.3g} to {own[c].max():.3g}" for c in axes[-1:])
        parts.append(f"{', '.join(map(str, key))}: {len(rows)} points{span}")
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
