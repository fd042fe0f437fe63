"""Comparisons of variants: the forest chart of scores and of paired differences, and the trade-off plane."""

import html
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from chestxai.localization import LOWER_IS_BETTER
from chestxai.plots import page, style
from chestxai.runs import InputError
from chestxai.stats import Interval, format_interval
from chestxai.tradeoff import Comparison, last_step, pareto_front

#: Localization scores of the trade-off plane.
METRICS = ("auc_roc", "pointing_game", "cnr", "miou")


def _shown(mean: float, low: float, high: float, spec: str) -> str:
    return format_interval(Interval(mean, low, high), spec).replace("-", "−")


def _forest(
    points: pd.DataFrame, rows: Mapping[float, str], series: int, title: str, options: dict, **layout: object
) -> go.Figure:
    """Estimates with their intervals in rows, the first on top.

    ``points``: columns x, low, high (in units of x), y, text (shown on hover), and those that ``options`` of plotly
    express name. ``rows``: place on the y-axis → name. ``series``: number of points in a row.
    """
    points = points.assign(up=points["high"] - points["x"], down=points["x"] - points["low"])
    fig = px.scatter(points, x="x", y="y", error_x="up", error_x_minus="down", hover_name="text", **options)
    bars = {"thickness": 2, "width": 4}
    for trace in fig.data:
        edge = 2 if str(trace.marker.symbol).endswith("open") else 0
        trace.update(marker={"size": 10, "line": {"width": edge}}, error_x=bars, hovertemplate=page.TOLD)
    axis = {"tickvals": list(rows), "ticktext": list(rows.values()), "range": [max(rows) + 0.6, -0.6], "ticks": ""}
    legend = [trace.name for trace in fig.data if trace.showlegend]
    height = 72 + max(44, 16 * series) * (max(rows) + 1.2)
    axis |= {"showline": False, "title": {"text": ""}}
    return style.dressed(fig, title, height, legend, yaxis=axis, **layout)


def _offsets(names: Sequence[str]) -> dict[str, float]:
    """Vertical places of several series within a row of height 1."""
    n = len(names)
    return dict(zip(names, (np.arange(n) - (n - 1) / 2) * min(0.36, 0.8 / n), strict=True))


def scores_by_finding(
    table: pd.DataFrame, metric: str = "AUC-ROC", title: str = "", variants: Sequence[str] | None = None
) -> go.Figure:
    """A score of each variant for each finding, with its interval, on swapped images, of chance and location prior.

    ``table`` has columns finding, variant, mean and, optionally, low, high, swap, prior, chance, n; the finding "all"
    comes last. ``metric`` is the name of the score or its column, such as ``auc_roc``, ``title`` the figure's, and
    ``variants`` are those to draw, the reference one first; see `variant_style`.
    """
    if table.empty:
        few = {"text": "no finding is in enough images to be scored", "showarrow": False}
        return go.Figure(layout={"title": {"text": title}, "annotations": [few], "template": style.TEMPLATE})
    style.require(table, ["finding", "variant", "mean"], "scores_by_finding")
    styles = style.styles_of(table["variant"], variants)
    series = len(styles)
    findings = sorted(table["finding"].unique(), key=lambda name: name == "all")
    place = {name: i + 0.35 * (name == "all") for i, name in enumerate(findings)}
    points = table[table["variant"].isin(styles)].assign(series=table["variant"], x=table["mean"])
    points["y"] = points["finding"].map(place) + points["variant"].map(_offsets(list(styles)))
    points = points.assign(**{end: points.get(end, points["x"]).astype(float) for end in ("low", "high")})
    if "swap" in table and table["swap"].notna().any():
        styles |= {f"{v}, swapped images": look._replace(symbol="circle-open") for v, look in styles.items()}
        swaps = points.dropna(subset="swap").drop(columns=["low", "high"])
        points = pd.concat([points, swaps.assign(series=swaps["variant"] + ", swapped images", x=swaps["swap"])])
    for prefix, (label, _) in style.REFERENCES.items():
        if prefix in table:
            x = table.groupby("finding", sort=False)[prefix].mean().dropna().rename("x").reset_index()
            points = pd.concat([points, x.assign(series=label, y=x["finding"].map(place))], ignore_index=True)
    points["text"] = [
        f"{html.escape(p.finding)}<br>{html.escape(p.series)} {_shown(p.x, p.low, p.high, '.2f')}"
        for p in points.itertuples()
    ]
    counts = table.groupby("finding")["n"].max() if "n" in table else {}
    names = {name: html.escape(name) if name != "all" else "<b>all</b>" for name in findings}
    rows = {place[f]: name + (f" ({counts[f]:.0f})" if f in counts else "") for f, name in names.items()}
    name, side = style.score_name(metric), style.direction(metric, "higher is better →", "← lower is better")
    options = style.express_options(dict(style.REFERENCES.values()) | styles, "series", dash=False)
    rings = " Rings: on images of other patients without the finding." if len(styles) > series else ""
    look = {"caption": f"{name}, with 95 % intervals.{rings}", "xaxis": {"title": {"text": f"{name} ({side})"}}}
    return _forest(points, rows, series, title, options, **look)


def paired(
    differences: Sequence[Comparison] | pd.DataFrame,
    shared: bool = False,
    title: str = "",
    variants: Sequence[str] | None = None,
) -> go.Figure:
    """Paired differences ``a − b`` with their intervals against zero, of two variants or of many with a reference.

    The right is always where ``a`` does better: the axis of a lower-is-better score is mirrored. A difference whose
    interval excludes zero has the colour of the better variant; the others are grey.

    Args:
        differences: Results of `tradeoff.compare`, all with the same ``a`` or all with the same ``b``; or a table with
            the columns name, estimate, low, high and, optionally, better ("higher", the default, or "lower"), n, a, b
            (frozen and learnable by default).
        shared, title: One axis for all rows (one score, many findings), or a scale for each; and title of the figure.
        variants: All variants in order, the reference one first, for their colours; see `variant_style`.
    """
    table = _differences(differences)
    sides, row = [list(table[side].unique()) for side in "ab"], pd.Series(pd.factorize(table["name"])[0])
    if min(map(len, sides)) > 1:
        raise InputError("paired: all comparisons must have the same variant a, or the same variant b")
    sign = np.where(table["better"] == "lower", -1.0, 1.0)
    if shared and len(set(sign)) > 1:
        raise InputError("paired: rows that are better when lower and when higher cannot share an axis")
    other = "a" if len(sides[0]) > 1 else "b"
    many, others = len(sides[0]) + len(sides[1]) > 2, list(table[other].unique())
    styles = style.variant_style(variants or [*sides[other == "a"], *others])
    values = table[["estimate", "low", "high"]].to_numpy(float)
    reach = pd.Series(np.nanmax(np.abs(values), axis=1)).groupby(row * (not shared)).transform("max")
    reach = reach.where(reach > 0, 1.0).to_numpy()
    drawn = values if shared else values * (sign / reach)[:, None]
    good = np.sort(values[:, 1:] * sign[:, None], axis=1)
    specs = [f"+.{1 if size >= 10 else 2 if size >= 0.1 else 3}f" for size in reach]
    numbers = [_shown(*interval, spec) for interval, spec in zip(values, specs, strict=True)]
    places = row + table[other].map(_offsets(others))
    about = zip(table["name"], table["a"], table["b"], numbers, strict=True)
    points = table.assign(
        x=drawn[:, 0], low=drawn[:, 1:].min(axis=1), high=drawn[:, 1:].max(axis=1), y=places,
        better=np.where(good[:, 0] > 0, table["a"], np.where(good[:, 1] < 0, table["b"], "")),
        text=[f"{html.escape(str(name))}<br>{html.escape(f'{a} − {b}')}: {number}" for name, a, b, number in about],
    )  # fmt: skip
    counts = table.groupby(row)["n"].max()
    counts = np.where(counts.isna(), "", counts.map(" ({:.0f})".format))
    names = [f"{name}{n}" for name, n in zip(table["name"].unique(), counts, strict=True)]
    rows = {i: style.wrapped(name, 150)[0] for i, name in enumerate(names)}
    options = {"color": "better", "color_discrete_map": {n: look.color for n, look in styles.items()} | {"": "#777777"}}
    if many:
        options |= {"symbol": other, "symbol_map": {name: look.symbol for name, look in styles.items()}}
    minus = " − ".join(side[0] if len(side) == 1 else "each variant" for side in sides)
    scale = "95 % interval" if shared else "95 % interval; each row’s own scale is below it"
    axis = {"title": {"text": f"difference, {html.escape(minus)}<br>({scale})"}, "range": [-1.12, 1.12]}
    if shared:
        axis["range"] = [end * reach[0] * sign[0] for end in axis["range"]]
    else:
        axis |= {"tickvals": [-1, 0, 1], "ticktext": ["", "0", ""], "ticks": "", "showgrid": False}
    layout = {"margin": {"r": 36 + max(style.text_width(number, 13) for number in numbers)}, "xaxis": axis, "top": 24}
    layout["caption"] = "Paired differences, with 95 % intervals."
    fig = _forest(points, rows, len(others), title, options, **layout)
    fig.update_traces(showlegend=False, legendgroup=None)
    for name in others if many else ():
        marker = {"color": styles[name].color, "symbol": styles[name].symbol, "size": 10}
        fig.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=html.escape(name), showlegend=True)
    for number, y in zip(numbers, places, strict=True):
        _note(fig, number, xref="paper", x=1, y=y, xanchor="left", xshift=10, font={"size": 11 if many else 13})
    for side, text, anchor, shift in ((sides[1], "← {} better", "right", -8), (sides[0], "{} better →", "left", 8)):
        name, color = (side[0], styles[side[0]].color) if len(side) == 1 else ("the other", style.MUTED)
        place = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 1, "xshift": shift, "yshift": 2}
        place |= {"xanchor": anchor, "yanchor": "bottom", "font": {"color": color}}
        _note(fig, f"<b>{html.escape(text.format(name))}</b>", **place)
    for y, size, spec in [] if shared else {y: (y, *of) for y, *of in zip(row, reach, specs, strict=True)}.values():
        # What the row's bars are measured with, at the ends of a line of its own.
        fig.add_shape(type="line", x0=-1, x1=1, y0=y + 0.42, y1=y + 0.42, line={"color": style.RULE, "width": 1})
        look = {"font": {"size": 10, "color": style.MUTED}, "bgcolor": style.PAPER, "borderpad": 1, "y": y + 0.42}
        for end in (-1, 1):
            text = f"{end * size * sign[row == y][0]:{spec}}".replace("-", "−")
            _note(fig, text, x=end, xanchor="center", yanchor="middle", **look)
    return fig.add_vline(0, line={"color": "#444444", "width": 1.5})


def _note(fig: go.Figure, text: str, **options: object) -> None:
    fig.add_annotation(text=text, showarrow=False, **options)


def _differences(differences: Sequence[Comparison] | pd.DataFrame) -> pd.DataFrame:
    """The differences as a table with the columns name, estimate, low, high, better, n, a and b."""
    table = differences
    if not isinstance(table, pd.DataFrame):
        table = pd.DataFrame(map(vars, differences)).rename(columns={"phrases": "n"})
        table["name"] = table["metric"].map(style.score_name)
        table["better"] = [style.direction(metric, "higher", "lower") for metric in table["metric"]]
    style.require(table, ["name", "estimate", "low", "high"], "paired")
    table = table.reset_index(drop=True)
    for column, value in {"better": "higher", "n": np.nan, "a": "frozen", "b": "learnable"}.items():
        table[column] = table[column].fillna(value) if column in table else value
    return table


def tradeoff(table: pd.DataFrame, metrics: Sequence[str] = METRICS, variants: Sequence[str] | None = None) -> go.Figure:
    """Fidelity against localization over the checkpoints of all variants, with a button per localization score.

    With several seeds, each seed is a thin line and the bold one their mean, with bars from the lowest to the highest
    seed. Ringed points are Pareto-optimal among the bold ones: no checkpoint has both a lower FID and a higher score.

    Args:
        table: A row per variant, seed and step with the columns variant, seed, step, ``fid`` and one per score;
            optionally ``<column>_low``, ``<column>_high``, ``prior_<score>`` and ``chance_<score>``.
        metrics: Columns of scores, a button for each that the table has.
        variants: The variants to draw, the reference one first; see `variant_style`.
    """
    style.require(table, ["variant", "seed", "step", "fid"], "tradeoff")
    scores, table = [column for column in metrics if column in table], table.dropna(subset=["fid"])
    if not scores or table.empty:
        what = "the column fid is empty" if scores else f"the table has none of the scores {', '.join(metrics)}"
        raise InputError(f"tradeoff: {what}")
    styles = style.styles_of(table["variant"], variants)
    table = table[table["variant"].isin(styles)].sort_values("step")
    several = table.groupby("variant")["seed"].nunique().max() > 1
    low, high = table["fid"].min(), table["fid"].max()
    log = low > 0 and high / low > 8
    axis = style.log_axis(low, high) if log else {}
    remark = f"Labels: training step. Bars: {'lowest to highest seed' if several else '95 % interval'}."
    side = f"← {style.score_name('fid')} (lower is better{', logarithmic' if log else ''})"
    about = "Fidelity against localization, over the checkpoints of each variant; ringed: Pareto-optimal."
    planes = []
    for column in scores:
        plane = _plane(_by_step(table, ["fid", column], several), "fid", column, styles)
        for (variant, seed), rows in table.groupby(["variant", "seed"]) if several else ():
            plane.add_scatter(
                x=rows["fid"], y=rows[column], mode="lines+markers", showlegend=False, legendgroup=variant,
                opacity=0.4, line={"color": styles[variant].color, "width": 1}, marker={"size": 4},
                hovertemplate=f"{html.escape(variant)}, seed {seed}<br>%{{x:.4g}}<br>%{{y:.3f}}<extra></extra>",
            )  # fmt: skip
        _add_references(plane, table, column)
        legend = [trace.name for trace in plane.data if trace.showlegend]
        style.dressed(plane, "", 500, legend, caption=about, margin={"r": 122})
        plane.update_yaxes(title_text=style.ranked(column)).update_xaxes(title_text=f"{side}<br>{remark}", **axis)
        planes.append((style.score_name(column, short=True), plane))
    return style.chooser(planes, type="buttons", direction="right", name="Score")


def _by_step(table: pd.DataFrame, columns: Sequence[str], several: bool) -> pd.DataFrame:
    """A row per variant and step, with the way from each column to the ends of its interval, and both as text.

    The interval of several seeds is their range.
    """
    groups = table.groupby(["variant", "step"])
    rows = (groups[list(columns)].mean() if several else table.set_index(["variant", "step"])).reset_index()
    for column in columns:
        mean = rows[column]
        low, high = (
            groups[column].agg(extreme).to_numpy() if several else rows.get(f"{column}_{end}", mean).fillna(mean)
            for end, extreme in (("low", "min"), ("high", "max"))
        )
        rows[f"{column}_up"], rows[f"{column}_down"] = high - mean, mean - low
        rows[f"{column}_text"] = [_shown(*three, "auto") for three in zip(mean, low, high, strict=True)]
    return rows


def _plane(rows: pd.DataFrame, x: str, y: str, styles: Mapping[str, style.Style]) -> go.Figure:
    """A line per variant over its checkpoints, the last one large, and rings around what is Pareto-optimal."""
    last = rows["step"] == rows.groupby("variant")["step"].transform("max")
    steps = [f"{step / 1000:g}k" if step >= 1000 and step % 100 == 0 else f"{step:g}" for step in rows["step"]]
    rows["label"] = pd.Series(steps).where(last | (len(styles) < 4), "")
    places, high, low = (
        rows[[x, y]].assign(**{x: np.log(rows[x].clip(lower=1e-9)), y: rows[y] + reach})  # as the axes have it
        for reach in (0, rows[f"{y}_up"], -rows[f"{y}_down"])
    )
    rows["side"] = _sides(places, low, high, rows["label"])
    bars = {f"error_{axis}{side}": f"{c}_{end}" for axis, c in (("x", x), ("y", y))
            for side, end in (("", "up"), ("_minus", "down"))}  # fmt: skip
    fig = px.line(
        rows, x=x, y=y, text="label", markers=True, custom_data=["step", f"{x}_text", f"{y}_text"], **bars,
        **style.express_options(styles),
    )  # fmt: skip
    for trace in fig.data:
        color, name = trace.line.color, html.escape(trace.name)
        sides = rows.loc[rows["variant"] == trace.name, "side"].tolist()
        bar = {"thickness": 1.2, "width": 3, "color": style.faint(color, 0.55)}
        trace.update(
            error_x=bar, error_y=bar, line_width=2.5, name=f"{name} text encoder" if name in style.VARIANTS else name,
            textposition=sides, textfont={"color": color, "size": 12}, cliponaxis=False,
            marker={"size": [9] * (len(trace.x) - 1) + [13], "opacity": 1, "line": {"color": style.PAPER, "width": 1}},
            hovertemplate=f"<b>{name}</b>, step %{{customdata[0]:,}}<br>fidelity %{{customdata[1]}}"
            "<br>score %{customdata[2]}<extra></extra>",
        )  # fmt: skip
    front = rows[pareto_front(rows, x, y)]
    ring = {"symbol": "circle-open", "size": 21, "color": style.INK, "line": {"width": 1.8}}
    look = {"mode": "markers", "name": "Pareto-optimal", "hoverinfo": "skip", "showlegend": True}
    return fig.add_scatter(x=front[x], y=front[y], marker=ring, **look)


def _add_references(plane: go.Figure, table: pd.DataFrame, y: str) -> None:
    """Lines for chance and location prior, and an arrow towards the better corner."""
    lines = {prefix: table[f"{prefix}_{y}"].mean() for prefix in style.REFERENCES if f"{prefix}_{y}" in table}
    lines = {prefix: value for prefix, value in lines.items() if np.isfinite(value)}
    if y == "auc_roc":
        lines.setdefault("chance", 0.5)
    for prefix, value in lines.items():
        name, look = style.REFERENCES[prefix]
        # Two references may be closer than a text is high: the lower one is written below its line.
        under = len(lines) > 1 and value == min(lines.values())
        text = {"text": f"{name} {value:.2f}", "font": {"size": 12, "color": style.MUTED}, "borderpad": 0}
        text |= {"xanchor": "left", "yanchor": "top" if under else "bottom"}
        line = {"color": "#777777", "width": 1.5, "dash": look.dash}
        plane.add_hline(value, layer="below", line=line, annotation=text, annotation_position="right")
    corner = style.direction(y, "top", "bottom")
    plane.add_annotation(
        text=style.direction(y, "↖ better", "↙ better"), x=0, xref="paper", xanchor="left", xshift=6,
        y=int(corner == "top"), yref="paper", yanchor=corner, showarrow=False, font={"color": style.MUTED},
    )  # fmt: skip


def recipes_plane(
    table: pd.DataFrame, metrics: Sequence[str], title: str = "", own: pd.DataFrame | None = None
) -> go.Figure:
    """Recipes in the plane of fidelity and an endpoint, with a menu of the bases, the tests and two scores of fidelity.

    One mark a recipe: its mean over seeds at the last step. A bar covers the intervals of all its seeds. Large
    marks are Pareto-optimal: no other recipe is better in both; the dotted line bounds what they reach. Where there are
    more than six, only these and the first two have name and bars in the plane, the others in the legend and on hover.
    The ``table`` of a study has variant, seed, step, classifier_auc, fid, the ``metrics``, which are the columns of the
    y-axis, and, optionally, their bounds and base. ``own`` runs, in such a table, are stars beside the recipes of their
    base; ``title`` is the figure's.
    """
    style.require(table, ["variant", "seed", "step", "classifier_auc", "fid", *metrics], "recipes_plane")
    looks, planes = style.variant_style(table["variant"].unique()), []
    bases = table["base"] if "base" in table else pd.Series("", table.index)
    for base, rows in table.groupby(bases, sort=False):
        stars = table[:0] if own is None else own[own["base"] == base] if {"base"} <= {*own} & {*table} else own
        for x, column in itertools.product(("classifier_auc", "fid"), metrics):
            plane = _recipes(last_step(rows).sort_index(), x, column, looks, stars)
            style.dressed(plane, title, 480, [trace.name for trace in plane.data if trace.showlegend])
            text = f"{style.score_name(column, short=True)}, {style.score_name(x, short=True)}"
            planes.append((f"{base}: {text}" if base else text, plane))
    return style.chooser(planes, name="Scores")


def _recipes(last: pd.DataFrame, x: str, y: str, looks: Mapping[str, style.Style], stars: pd.DataFrame) -> go.Figure:
    """The plane of two scores: a mark for each variant of ``last``, a row per variant and seed, and the ``stars``."""
    lower, plane = x in LOWER_IS_BETTER, go.Figure()
    means, low, high = (
        last[["variant"]].assign(**{c: last.get(c + end, last[c]).fillna(last[c]) for c in (x, y)})
        .groupby("variant", sort=False).agg(how) for end, how in (("", "mean"), ("_low", "min"), ("_high", "max"))
    )  # fmt: skip
    best = pareto_front(means.assign(cost=means[x] if lower else -means[x]), "cost", y)
    front = means[best].sort_values(x)
    named = [variant for i, variant in enumerate(means.index) if len(means) <= 6 or best[i] or i < 2]
    own = stars[["variant", x, y]].assign(name=stars["variant"] + " (yours)").set_index("name")[[x, y]]
    right = [-1 if lower else 1, 1]
    places, *ends = (pd.concat([some.loc[named], own]).astype(float) * right for some in (means, low, high))
    sides = dict(zip(places.index, _sides(places, *ends[:: right[0]], places.index), strict=True))
    plane.add_scatter(
        x=front[x], y=front[y], mode="lines", name="Pareto front", showlegend=False, hoverinfo="skip",
        line={"shape": "hv" if lower else "vh", "dash": "dot", "width": 1.5, "color": style.MUTED},
    )  # fmt: skip
    for i, (variant, mean) in enumerate(means.iterrows()):
        look, name, side = looks[variant], html.escape(variant), sides.get(variant)
        up, down = high.loc[variant] - mean, mean - low.loc[variant]
        bar = {"thickness": 1, "color": style.faint(look.color, 0.55), "visible": bool(side)}
        bars = {f"error_{a}": {"array": [up[c]], "arrayminus": [down[c]], **bar} for a, c in (("x", x), ("y", y))}
        bounds = low.loc[variant], high.loc[variant]
        told = [f"{style.score_name(c, True)} {_shown(mean[c], *(b[c] for b in bounds), '.3f')}" for c in (x, y)]
        plane.add_scatter(
            x=[mean[x]], y=[mean[y]], mode="markers+text" if side else "markers", text=[name], name=name,
            marker={"size": 16 if best[i] else 9, "color": look.color, "symbol": look.symbol}, showlegend=True,
            hovertemplate="<br>".join([f"<b>{name}</b>", *told]) + "<extra></extra>",
            textposition=side or "top center", cliponaxis=False, **bars,
        )  # fmt: skip
    star, edge = {"symbol": "star", "size": 14, "color": style.INK}, style.direction(x, "higher", "lower")
    for name, place in own.iterrows():
        spot = {"x": [place[x]], "y": [place[y]], "text": [text := html.escape(name)], "textposition": sides[name]}
        plane.add_scatter(**spot, mode="markers+text", name=text, marker=star, cliponaxis=False)
    plane.update_yaxes(title_text=style.ranked(y)).update_xaxes(autorange="reversed" if lower else True)
    return plane.update_xaxes(title_text=f"{style.score_name(x)} of the generated images ({edge} is better →)")


def _sides(places: pd.DataFrame, low: pd.DataFrame, high: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """On which side of its mark each name covers no earlier one on a phone.

    ``places`` of the marks, x and y; ``low`` and ``high``: the ends of all bars, which say how far the axes reach.
    """
    places = (places - low.min()) / (high.max() - low.min() + 1e-9)
    sides = {"top center": (0, 1), "bottom center": (0, -1), "middle right": (1, 0), "middle left": (-1, 0)}
    chosen: list[str] = []
    taken: list[tuple[float, float, float]] = []
    for name, (x, y) in zip(names, places.to_numpy(), strict=True):
        half = style.text_width(name) / 2
        spots = [(x * 300 + right * (half + 10), y * 250 + up * 16, half) for right, up in sides.values()]
        covered = [sum(abs(a - c) < w + v and abs(b - d) < 16 for c, d, v in taken) for a, b, w in spots]
        covered = [n + 9 * (not -40 < a - w < a + w < 320) for n, (a, _, w) in zip(covered, spots, strict=True)]
        best = covered.index(min(covered))
        chosen.append(list(sides)[best])
        taken += [spots[best]] if name else []
    return chosen


def setting_curves(
    table: pd.DataFrame, setting: str, metrics: Sequence[str], title: str = "", rate: float | None = None
) -> go.Figure:
    """Scores of the last checkpoints over the values of a setting: mean over seeds; a bar covers all seeds' intervals.

    ``table`` is of a study (a row per run and checkpoint): the setting, variant, seed, step, metrics and their bounds.
    ``setting`` is a column of positive values, such as ``finetune.text_learning_rate``; ``metrics`` are columns of
    scores, of which a menu chooses; ``title`` is the figure's, and ``rate`` a value to mark, None for none.
    """
    style.require(table, [setting, "variant", "seed", "step", *metrics], "setting_curves")
    last = last_step(table, (setting, "variant", "seed"))
    looks, charts = style.styles_of(last["variant"]), []
    ticks = sorted(last[setting].unique())
    axis = {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    reach = np.log10([ticks[0], ticks[-1]])
    axis["range"] = list(reach + np.array([-0.07, 0.07]) * max(np.ptp(reach), 1))
    mark = {"text": "the U-Net’s", "font": {"color": style.MUTED}}
    for column in metrics:
        chart, bounds = go.Figure(), {end: last.get(f"{column}_{end}", last[column]) for end in ("low", "high")}
        for variant, look in looks.items():
            groups = last[["variant", setting, column]].assign(**bounds).query("variant == @variant").groupby(setting)
            rows = groups.agg(mean=(column, "mean"), low=("low", "min"), high=("high", "max"))
            bar = {"array": rows["high"] - rows["mean"], "arrayminus": rows["mean"] - rows["low"], "thickness": 1.2}
            chart.add_scatter(
                x=rows.index, y=rows["mean"], error_y=bar, name=html.escape(variant), mode="lines+markers",
                line={"color": look.color, "dash": look.dash}, marker={"symbol": look.symbol, "size": 10},
                hovertemplate="%{x}: %{y:.3f}<extra></extra>", showlegend=True,
            )  # fmt: skip
        if rate:
            chart.add_vline(rate, line={"color": style.MUTED, "dash": "dot"}, annotation=mark)
        style.dressed(chart, title, 400, [trace.name for trace in chart.data])
        chart.update_yaxes(title_text=style.ranked(column, "<br>")).update_xaxes(title_text=setting, **axis)
        charts.append((style.score_name(column, short=True), chart))
    return style.chooser(charts, name="Score").update_layout(scattermode="group", scattergap=0.9)  # bars side by side
