"""The look that all figures share: colours, the plotly template, titles, menus, and how notebooks show figures.

Colours are those of Okabe & Ito (2008), which can be told apart with any colour vision. No figure relies on colour
alone: variants also differ in marker and dash.
"""

import html
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from PIL import ImageFont
from plotly.colors import hex_to_rgb
from plotly.offline import get_plotlyjs

from chestxai import profiles
from chestxai.localization import LABELS, LOWER_IS_BETTER
from chestxai.plots import page
from chestxai.runs import InputError, read_yaml
from chestxai.studies import FINDINGS

_LOOK = read_yaml(Path(__file__).with_suffix(".yaml"))
COLORS = tuple(_LOOK["colors"])
#: One colour per finding; always printed beside the name of the finding.
FINDING_COLORS = dict(zip(FINDINGS, _LOOK["findings"], strict=True))
#: Width in pixels of a figure made of images: the text column of the page.
WIDTH = 688
INK, MUTED, RULE = "#222222", "#666666", "#bbbbbb"
MENU, PAPER = _LOOK["menu"], _LOOK["layout"]["paper_bgcolor"]
#: The look of all figures (a plotly template); ``page.js`` says what its colours become on a dark page.
TEMPLATE = go.layout.Template(
    layout=_LOOK["layout"] | {"colorway": COLORS, "xaxis": _LOOK["axis"], "yaxis": _LOOK["axis"]}
)


class Style(NamedTuple):
    """How a series is drawn: colour (hex), marker and dash, as plotly names them."""

    color: str
    symbol: str
    dash: str


#: How the references of a score are drawn: prefix of the column -> name in the legend, and style.
REFERENCES = {
    "chance": ("chance", Style("#555555", "line-ns-open", "dot")),
    "prior": ("location prior", Style(INK, "diamond-open", "dash")),
}
_FIXED = {name: Style(*look) for name, look in _LOOK["fixed"].items()}
#: Colours reserved for the two variants of the paper; `variant_style` gives every other variant its own.
VARIANTS = {name: _FIXED[name].color for name in ("frozen", "learnable")}
_ORDER: list[str] = []  # the variants of the book and of the notebook's profile, see `setup`


def variant_style(names: Iterable[str]) -> dict[str, Style]:
    """One colour, marker and dash for each of the variants ``names``.

    ``frozen``, ``learnable``, the base and held-out images always look the same; the others are styled in the order of
    `setup`, then of ``names``, by their whole names (``learnable-anchored`` does not look like ``learnable``).
    """
    unique, styles = list(dict.fromkeys(names)), dict(_FIXED)
    symbols, dashes = _LOOK["symbols"], _LOOK["dashes"]
    for i, name in enumerate(name for name in dict.fromkeys([*_ORDER, *unique]) if name not in _FIXED):
        styles[name] = Style(COLORS[2 + i % 4], symbols[i % len(symbols)], dashes[i % len(dashes)])
    return {name: styles[name] for name in unique}


def express_options(styles: Mapping[str, Style], column: str = "variant", dash: bool = True) -> dict:
    """The ``styles``, in the order of the legend, as arguments of plotly express.

    ``column`` of the table holds their names; ``dash``: include the dashes, which only lines have.
    """
    maps = {kind: {name: getattr(style, kind) for name, style in styles.items()} for kind in Style._fields}
    options = {"color": column, "color_discrete_map": maps["color"], "symbol": column, "symbol_map": maps["symbol"]}
    options |= {"category_orders": {column: list(styles)}, "template": TEMPLATE, "render_mode": "svg"}
    return options | ({"line_dash": column, "line_dash_map": maps["dash"]} if dash else {})


def styles_of(present: pd.Series, variants: Sequence[str] | None = None) -> dict[str, Style]:
    """Styles of the variants that have data, whose names are ``present``.

    ``variants``: all in order; None for ``frozen``, ``learnable``, then the others as they come.
    """
    unique = list(present.unique())
    order = variants or [*(name for name in _FIXED if name in unique), *unique]
    drawn = {name: style for name, style in variant_style(order).items() if name in unique}
    if not drawn:
        raise InputError(f"none of the variants {', '.join(order)} has data; there is {', '.join(unique)}")
    return drawn


def require(table: pd.DataFrame, columns: Sequence[str], where: str) -> None:
    """Raise an `InputError` if a table lacks rows or ``columns``; ``where`` names the figure."""
    missing = [column for column in columns if column not in table]
    if missing:
        raise InputError(f"{where}: the table lacks the columns {', '.join(missing)}; it has {', '.join(table)}")
    if table.empty:
        raise InputError(f"{where}: the table has no rows")


def score_name(column: str, short: bool = False) -> str:
    """The printed name of a score's ``column``, or the column itself; ``short``: without what is in brackets."""
    name = LABELS.get(column, column)
    return name.split(" (")[0] if short else name


def log_axis(low: float, high: float) -> dict:
    """A logarithmic axis from ``low`` > 0 to ``high`` that writes whole numbers at its ticks: 20, not 2 of 2 · 10."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    steps = (1,) if high / low > 1e4 else (1, 2, 5) if high / low > 6 else range(1, 10)
    ticks = [float(f"{n}e{k}") for k in decades for n in steps]
    return {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": [f"{tick:,g}" for tick in ticks]}


def direction(column: str, up: str, down: str) -> str:
    """``down`` where less of the score in ``column`` is better, else ``up``."""
    return down if column in LOWER_IS_BETTER else up


def ranked(column: str, between: str = " · ") -> str:
    """The name of the score in ``column`` and which end of it is better, for an axis; ``between`` the two."""
    return f"{score_name(column)}{between}{direction(column, 'higher is better ↑', 'lower is better ↓')}"


def faint(color: str, alpha: float) -> str:
    """``color`` (hex) with the opacity ``alpha`` in [0, 1]."""
    return f"rgba{(*hex_to_rgb(color), alpha)}"


def text_width(text: str, size: float = 12) -> float:
    """Roughly the width in pixels of ``text`` in a sans-serif font of ``size`` pixels."""
    return 1.15 * ImageFont.load_default(size).getlength(text) + 4


def wrapped(text: str | None, width: float, size: float = 12.5) -> tuple[str, int]:
    """Plain ``text`` as plotly's HTML, escaped and wrapped, and its number of lines (0 for no text).

    ``width`` of a line and ``size`` of the font are in pixels; a line break stays one.
    """
    lines = []
    for part in str(text).split("\n") if text else ():
        # Capitals are wider: the letters of a line are counted by the width of this very text.
        lines += textwrap.wrap(part, max(8, int(width * max(len(part), 1) / text_width(part, size)))) or [""]
    return "<br>".join(html.escape(line) for line in lines), len(lines)


def dressed(
    fig: go.Figure,
    title: str,
    height: float,
    legend: Sequence[str] = (),
    top: float = 0,
    caption: str = "",
    **layout: object,
) -> go.Figure:
    """Give ``fig``, which is returned, a wrapped title, and a legend below the axes that may take any number of rows.

    ``title`` is plain text, "" for none; ``height`` and ``top`` are pixels of the axes with their labels, and of extra
    room between title and axes; ``legend`` are the names in the legend, () for none; ``caption`` is what a page writes
    after the title; ``**layout`` are further keys of plotly's layout, where ``margin`` overrides single sides.
    """
    text, lines = wrapped(title, WIDTH - 100, 17)
    rows = math.ceil(sum(text_width(name, 13) + 48 for name in legend) / (WIDTH - 90))
    margin = {"l": 64, "r": 24, "t": (22 + 20 * lines if lines else 16) + top, "b": 56 + (22 * rows + 14) * (rows > 0)}
    fig.update_layout(
        template=TEMPLATE, height=round(height - 56 + margin["t"] + margin["b"]), showlegend=bool(legend),
        margin=margin | layout.pop("margin", {}), legend={"y": -72 / (height - 56), "yanchor": "top", "yref": "paper"},
        legend_title_text="", title={"text": f"<b>{text}</b>" if title else ""},
        meta={"room": 6 + 20 * lines if lines else 0, "caption": caption},
    )  # fmt: skip
    return fig.update_layout(**layout)


def chooser(figures: Sequence[tuple[str, go.Figure]], room: int = 40, **menu: object) -> go.Figure:
    """One figure with a menu that shows one of several at a time; needs no kernel.

    ``figures``: pairs of a label and a figure, all of the same size, and of the same x-axis unless its ``autorange`` is
    set. ``room``: pixels that are added above the axes. ``menu``: options of plotly's ``updatemenus``.
    """
    owner = [i for i, (_, figure) in enumerate(figures) for _ in figure.data]
    fig = go.Figure([trace for _, figure in figures for trace in figure.data], figures[0][1].layout)
    buttons = []
    for i, (label, figure) in enumerate(figures):
        shown, look = {"visible": [o == i for o in owner]}, figure.layout
        change = {"annotations": look.annotations, "shapes": look.shapes, "yaxis.title.text": look.yaxis.title.text}
        if look.xaxis.autorange:
            change |= {"xaxis.title.text": look.xaxis.title.text, "xaxis.autorange": look.xaxis.autorange}
        buttons.append({"label": html.escape(label), "method": "update", "args": [shown, change]})
    for trace, i in zip(fig.data, owner, strict=True):
        trace.visible = i == 0
    if len(figures) > 1:
        place = {"x": 0, "y": 1, "yanchor": "bottom", "pad": {"b": 8}}
        fig.update_layout(updatemenus=[{"buttons": buttons, **MENU, **place, **menu}])
        look = fig.layout
        look.meta = look.meta | {"room": look.meta["room"] + room}
        fig.update_layout(height=look.height + room, margin_t=look.margin.t + room)
        for trace, i in zip(fig.data, owner, strict=True):
            trace.meta = figures[i][0]
    return fig


def setup(variants: Iterable[str] = ()) -> None:
    """Choose how notebooks show figures, and the look of the variants; call it once at the top of a notebook.

    JupyterLab draws the plotly mime type. Pages, and executed notebooks shown elsewhere, get HTML (`page.to_html`) that
    loads plotly.js where a chart needs it, instead of 5 MB in each notebook. ``variants``: all of the profile. By them,
    after those of the profile ``recipes``, `variant_style` counts: a variant looks the same in every chapter.
    """
    _ORDER[:] = [*profiles.load("recipes").variants, *variants]

    class PageRenderer(pio.base_renderers.MimetypeRenderer):
        def to_mimebundle(self, fig_dict: dict) -> dict[str, str]:
            return {"text/html": page.to_html(fig_dict)}

    plain = {"responsive": True, "displaylogo": False}
    pio.renderers["chestxai"] = PageRenderer()
    pio.renderers["plotly_mimetype"] = pio.base_renderers.PlotlyRenderer(config=plain)
    pio.renderers.default = "plotly_mimetype+chestxai"


def write_plotlyjs(folder: str | Path) -> Path:
    """Write the installed plotly's ``plotly.min.js`` (5 MB) into ``folder`` (the book's ``_static``), once."""
    path = Path(folder) / "plotly.min.js"
    script = get_plotlyjs()
    if not path.exists() or path.stat().st_size != len(script.encode()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script, encoding="utf-8")
    return path
