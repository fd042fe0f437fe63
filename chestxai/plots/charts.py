"""Charts: tables of numbers, distributions, and curves over size and training."""

import html
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from chestxai.plots import style
from chestxai.runs import InputError


def histogram(
    heatmap: np.ndarray, mask: np.ndarray, threshold: float | None = None, title: str = "", label: str = "threshold"
) -> go.Figure:
    """The values of a heatmap inside and outside its target: what every score is made of.

    Each of the two histograms sums to 100 %, so a small target shows, too. Solid lines mark the two means, a dashed one
    the ``threshold``, in the heatmap's units, with its ``label`` (None for no line). ``heatmap`` is float ``(H, W)``,
    already of the size of the bool ``mask`` (`localization.resize`), which is neither empty nor full; ``title`` is the
    figure's.
    """
    heatmap, mask = np.asarray(heatmap, dtype=float), np.asarray(mask)
    if heatmap.shape != mask.shape:
        raise InputError(f"the heatmap is {heatmap.shape} and the mask {mask.shape}: resize the heatmap first")
    if mask.dtype != bool or not mask.any() or mask.all():
        raise InputError("the mask must be bool, neither empty nor full")
    edges = np.histogram_bin_edges(heatmap, 40)
    fig = go.Figure()
    for color, name, part, hatch in (("#888888", "outside", ~mask, ""), (style.INK, "inside", mask, "/")):
        values = heatmap[part]
        pattern = {"shape": hatch, "fgcolor": color, "bgcolor": style.faint(color, 0.25), "size": 5}
        fig.add_bar(
            x=(edges[:-1] + edges[1:]) / 2, y=np.histogram(values, edges)[0] / values.size, width=np.diff(edges),
            marker={"color": style.faint(color, 0.5), "line": {"width": 0}, "pattern": pattern},
            name=f"{name} the target", hovertemplate="%{y:.1%} of the pixels " + name + "<extra></extra>",
        )  # fmt: skip
        fig.add_vline(values.mean(), line={"color": color, "width": 2})
    if threshold is not None:
        text = {"text": f"{html.escape(label)} {threshold:.3g}", "bgcolor": "rgba(255,255,255,0.8)"}
        line = {"color": style.INK, "width": 2, "dash": "dash"}
        fig.add_vline(threshold, line=line, annotation=text, annotation_position="top right")
    return style.dressed(
        fig, title, 290, [trace.name for trace in fig.data], barmode="overlay", bargap=0,
        xaxis={"title": {"text": "value of the heatmap (solid lines: means)"}},
        yaxis={"title": {"text": "share of pixels"}, "tickformat": ".0%", "rangemode": "tozero"},
    )  # fmt: skip


def score_by_size(
    table: pd.DataFrame, metrics: Sequence[str] = ("auc_roc", "pointing_game", "iou"), groups: int = 4, title: str = ""
) -> go.Figure:
    """How scores depend on the size of the target: a point per phrase, and the means of equally large groups.

    Args:
        table: A row per phrase and variant with the columns variant, target (area of the mask as a fraction of the
            image), the scores and, optionally, ``prior_<score>`` and ``chance_<score>``.
        metrics, title: Columns of scores, a panel each, and title of the figure.
        groups: Number of groups by size (quantiles of the target's area); fewer where sizes repeat.
    """
    style.require(table, ["variant", "target", *metrics], "score_by_size")
    styles = style.styles_of(table["variant"])
    table = table.reset_index(drop=True)  # the tables of several variants repeat their index
    table["group"] = pd.qcut(table["target"], groups, labels=False, duplicates="drop").fillna(0)
    series = {label: (f"{prefix}_", table) for prefix, (label, _) in style.REFERENCES.items()}
    series |= {variant: ("", table[table["variant"] == variant]) for variant in styles}
    points = pd.concat(
        rows[["target", "group"]].assign(value=rows[prefix + column], series=name, score=column)
        for name, (prefix, rows) in series.items()
        for column in metrics
        if prefix + column in rows
    )
    means = points.groupby(["series", "score", "group"], as_index=False).agg(
        target=("target", "mean"), value=("value", "mean"), phrases=("value", "size")
    )
    look = dict(style.REFERENCES.values()) | styles
    axes = {"x": "target", "y": "value", "facet_col": "score", "facet_col_spacing": 0.07}
    orders = {"category_orders": {"series": list(look), "score": list(metrics)}}
    options = style.express_options(look, "series") | orders
    fig = px.line(means, markers=True, custom_data=["phrases"], **axes, **options)
    fig.update_traces(marker_size=9, hovertemplate="%{fullData.name}: %{y:.3f}<br>%{customdata[0]} phrases, target "
                      "%{x:.1%} of the image<extra></extra>")  # fmt: skip
    cloud = px.scatter(
        points[points["series"].isin(styles)], **axes, **style.express_options(look, "series", dash=False) | orders
    )
    cloud.update_traces(marker={"size": 5, "opacity": 0.3}, hoverinfo="skip", hovertemplate=None, showlegend=False)
    fig.add_traces(cloud.data)
    for panel in fig.layout.annotations:
        column = panel.text.removeprefix("score=")
        panel.text = f"<b>{html.escape(style.score_name(column))}</b> {style.direction(column, '↑', '↓')}"
    fig.update_xaxes(tickformat=".0%", rangemode="tozero", nticks=5, title_text="")
    middle = (len(metrics) + 1) // 2
    fig.update_xaxes(title_text="area of the target, share of the image", col=middle)
    fig.update_yaxes(matches=None, showticklabels=True, nticks=6, title_text="")
    return style.dressed(fig, title, 370, [trace.name for trace in fig.data if trace.showlegend], 24, margin={"l": 44})


def training_curves(runs: Mapping[str, pd.DataFrame], title: str = "") -> go.Figure:
    """Training loss and learning rate over steps: raw values faint, exponentially smoothed ones (span 5 %) bold.

    ``runs``: variant → the run's ``train.csv`` (columns step, loss, lr and, optionally, seconds). ``title`` is the
    figure's.
    """
    if not runs:
        raise InputError("training_curves: there is no run to show")
    fig = go.Figure()
    for (name, table), look in zip(runs.items(), style.variant_style(runs).values(), strict=True):
        style.require(table, ["step", "loss", "lr"], f"training_curves, run {name}")
        table = table.sort_values("step")
        table["bold"] = table["loss"].ewm(span=max(1.0, 0.05 * len(table))).mean()
        # At most 800 points: a longer run is averaged in blocks.
        kept = table.groupby(np.arange(len(table)) // -(-len(table) // 800)).mean(numeric_only=True)
        common = {"x": kept["step"], "mode": "lines", "legendgroup": name, "name": html.escape(name)}
        line, quiet = {"color": look.color, "width": 2.5}, {"showlegend": False, "hoverinfo": "skip"}
        fig.add_scatter(y=kept["loss"], line=line | {"width": 1}, opacity=0.25, **quiet, **common)
        elapsed = "<br>%{customdata:.0f} s elapsed" if "seconds" in kept else ""
        hover = "step %{x:.0f}<br>smoothed loss %{y:.4f}" + elapsed
        fig.add_scatter(y=kept["bold"], line=line, customdata=kept.get("seconds"), hovertemplate=hover, **common)
        fig.add_scatter(
            y=kept["lr"], line=line | {"dash": look.dash}, yaxis="y2", showlegend=False,
            hovertemplate="step %{x:.0f}<br>learning rate %{y:.1e}", **common,
        )  # fmt: skip
    # Single noisy batches would set the scale: the axis holds the middle 98 % of the raw values.
    low, high = np.nanquantile(np.concatenate([table["loss"] for table in runs.values()]), [0.01, 0.99])
    pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return style.dressed(
        fig, title, 400, list(runs), caption="Faint: each step; bold: a running mean.",
        xaxis={"title": {"text": "training step"}, "anchor": "y2"},
        yaxis={"title": {"text": "loss (mean squared error)"}, "domain": [0.34, 1], "range": [low - pad, high + pad]},
        yaxis2={"title": {"text": "learning rate"}, "domain": [0, 0.22], "rangemode": "tozero", "exponentformat": "e",
                "nticks": 3},
    )  # fmt: skip
