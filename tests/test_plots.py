"""Figures: what is drawn, and that it is drawn at the right place, the right way up."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pandas as pd
import plotly.express as px
import pytest
from bs4 import BeautifulSoup
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from PIL import Image

from chestxai import plots
from chestxai.plots import style
from chestxai.studies import FINDINGS, Box, Finding, Study, box_of


@pytest.fixture
def radiographs() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32), dtype=np.uint8)


@pytest.fixture
def heatmaps() -> np.ndarray:
    return np.random.default_rng(1).random((5, 8, 8), dtype=np.float32)


def decoded(source: str) -> np.ndarray:
    """The pixels of a data URI: RGB, or RGBA of a heatmap."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))


def shown(grid: plots.Grid) -> BeautifulSoup:
    return BeautifulSoup(grid._repr_html_(), "html.parser")


def outlines(grid: plots.Grid) -> dict[str, tuple[float, ...]]:
    """Colour -> the corners of each outline: left, top, right, bottom."""
    marks = [mark for picture in grid.pictures for mark in picture.outlines]
    return {mark.color: (*mark.loops[0].min(axis=0), *mark.loops[0].max(axis=0)) for mark in marks}


def scale_of(html: BeautifulSoup) -> str:
    """What the bar of colours says."""
    return html.select_one(".cx-grid + p").get_text()


def rectangle(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    x, y, w, h = box
    mask[y : y + h, x : x + w] = True
    return mask


# --- outlines ---


def test_outline_of_a_box_is_the_box():
    (loop,) = plots.outline(rectangle(10, 12, (3, 2, 5, 4)))
    assert len(loop) == 5
    assert (loop[0] == loop[-1]).all()
    assert {tuple(p) for p in loop} == {(3, 2), (8, 2), (8, 6), (3, 6)}


def test_outline_of_a_ring_has_its_hole_and_touching_pixels_stay_apart():
    ring = rectangle(5, 5, (0, 0, 5, 5))
    ring[2, 2] = False
    assert sorted(len(loop) for loop in plots.outline(ring)) == [5, 5]
    assert len(plots.outline(np.eye(3, dtype=bool))) == 3
    assert plots.outline(np.zeros((4, 4), bool)) == []


@settings(max_examples=60, deadline=None)
@given(arrays(bool, (6, 7)))
def test_outlines_enclose_exactly_the_mask(mask: np.ndarray):
    """Shoelace: holes count against, so the signed areas sum to the number of pixels; corners stay on the grid."""
    loops = plots.outline(mask)
    area = sum(((x := loop[:, 0])[:-1] * (y := loop[:, 1])[1:] - x[1:] * y[:-1]).sum() / 2 for loop in loops)
    assert area == mask.sum()
    for loop in loops:
        assert (loop[0] == loop[-1]).all()
        assert loop.min() >= 0
        assert loop[:, 0].max() <= 7
        assert loop[:, 1].max() <= 6
    if mask.any():
        every = np.vstack(loops)
        box = box_of(mask)
        assert (every.min(axis=0) == (box.x, box.y)).all()
        assert (every.max(axis=0) == (box.x + box.w, box.y + box.h)).all()


# --- overlays ---


def test_an_overlay_in_pixels_is_a_known_mixture():
    image = np.full((2, 2), 100, np.uint8)
    heatmap = np.array([[0.0, 1.0], [0.5, 0.0]])
    out = np.asarray(plots.draw(plots.Picture(image, heatmap), 2, marker=""))
    assert out[0, 0].tolist() == [100, 100, 100]  # coldest: clear
    # Viridis ends in #fde725 = (253, 231, 37): three quarters of it, one quarter of the grey.
    assert out[0, 1].tolist() == [215, 198, 53]
    # Its middle is #21918c = (33, 145, 140).
    assert np.allclose(out[1, 0], 0.625 * 100 + 0.375 * np.array([33, 145, 140]), atol=1)


def test_normalize():
    assert plots.normalize(np.array([[2.0, 4.0], [3.0, 2.0]])).tolist() == [[0, 1], [0.5, 0]]
    assert plots.normalize(np.full((2, 2), 3.0)).max() == 0  # points nowhere
    assert plots.normalize(np.array([[2.0, 4.0]]), (0, 4)).tolist() == [[0.5, 1]]
    with pytest.raises(ValueError, match="finite"):
        plots.normalize(np.array([[np.nan, 1.0]]))
    with pytest.raises(ValueError, match=r"\(h, w\)"):
        plots.normalize(np.zeros(3))


def test_overlay_picture_carries_value_as_colour_and_opacity():
    heatmap = np.zeros((8, 8))
    heatmap[1, 6] = 1.0
    html = shown(plots.overlay(np.zeros((64, 64), np.uint8), heatmap, title="One map"))
    pixels = decoded(html.img["src"]).astype(int)
    assert pixels.shape == (680, 680, 3)  # for fine screens: shown 340 pixels wide
    hot = plots.OPACITY * np.array([253, 231, 37])
    assert np.abs(pixels[127, 552] - hot).max() < 20  # the middle of its cell; WebP is not exact
    assert pixels[552, 127].max() < 12  # not flipped, not transposed
    assert html.figcaption.get_text() == "One map"


def test_dense_pictures_are_the_same_with_more_pixels():
    (picture,) = plots.as_pictures(np.full((1, 32, 32), 90, np.uint8), boxes=[[("Edema", Box(8, 12, 10, 8))]])
    once, twice = (np.asarray(plots.draw(picture, 200, density=n).convert("L"), float) for n in (1, 2))
    assert twice.shape == (400, 400)
    smaller = twice.reshape(200, 2, 200, 2).mean(axis=(1, 3))
    assert np.abs(smaller - once).mean() < 4


# --- grids of images ---


def test_images_keep_rows_on_top_and_pixels_where_they_are(radiographs: np.ndarray):
    html = shown(plots.images(radiographs, [f"study {i}" for i in range(5)], columns=3))
    pictures = html.find_all("img")
    assert len(pictures) == 5
    for tag, image in zip(pictures, radiographs, strict=True):
        large = np.asarray(Image.fromarray(image).resize((442, 442), Image.Resampling.BICUBIC), float)
        assert tag["width"] == "221"
        assert np.abs(decoded(tag["src"])[60:, :, 0] - large[60:]).mean() < 8  # below the marker
    assert [cell.p.get_text() for cell in html.select(".cx-cell")] == [f"study {i}" for i in range(5)]


def test_boxes_are_drawn_at_their_pixels(radiographs: np.ndarray):
    boxes = [[("Pneumonia", Box(4, 8.5, 10, 6))], None, [("Edema", Box(0, 0, 32, 32)), ("", Box(1, 1, 2, 2))], [], None]
    grid = plots.images(radiographs, boxes=boxes)
    assert [len(picture.outlines) for picture in grid.pictures] == [1, 0, 2, 0, 0]
    assert outlines(grid)[plots.FINDING_COLORS["Pneumonia"]] == (4, 8.5, 14, 14.5)
    alts = [tag["alt"] for tag in shown(grid).find_all("img")]
    assert alts[0] == "outlined (x, y, w, h) in 32 × 32 pixels: Pneumonia (4, 8, 10, 6)"
    assert "Edema (0, 0, 32, 32)" in alts[2]


def test_a_mask_of_another_resolution_is_scaled_to_the_image(radiographs: np.ndarray):
    assert outlines(plots.images(radiographs[:1], masks=[rectangle(16, 16, (2, 3, 4, 5))])) == {"white": (4, 6, 12, 16)}


def test_large_images_are_embedded_small():
    noise = np.random.default_rng(0).integers(0, 256, (4, 1024, 1024), dtype=np.uint8)
    html = shown(plots.images(noise))
    assert decoded(html.img["src"]).shape[1] <= 400
    assert len(str(html)) < 500_000


def test_overlays(radiographs: np.ndarray, heatmaps: np.ndarray):
    masks = [rectangle(32, 32, (1, 2, 3, 4))] * 4 + [None]
    html = shown(plots.overlays(radiographs, heatmaps, masks, [f"<{i}> & co" for i in range(5)], columns=2))
    assert len(html.find_all("img")) == 5
    assert html.select_one(".cx-cell p").get_text() == "<0> & co"  # captions are text, not HTML
    assert scale_of(html) == "attention, min–max per map: minmax"
    assert scale_of(shown(plots.overlays(radiographs, heatmaps, scale=plots.Scale(limits=(0, 2))))) == "attention: 02"
    assert scale_of(shown(plots.overlays(radiographs, heatmaps, scale="share < 1"))).startswith("share < 1, min")


def test_overlay_grid_has_studies_in_rows_and_variants_in_columns(radiographs: np.ndarray, heatmaps: np.ndarray):
    grid = plots.overlay_grid(
        radiographs[:3],
        {"frozen": heatmaps[:3], "learnable": heatmaps[2:]},
        titles=["“one”", "“two”", "“three”"],
        captions={"frozen": ["AUC 0.9"] * 3},
    )
    html = shown(grid)
    assert len(html.find_all("img")) == 9
    assert [b.get_text() for b in html.select(".cx-cell b")] == ["image", "frozen", "learnable"]
    assert [row.get_text() for row in html.select(".cx-row")] == ["“one”", "“two”", "“three”"]
    assert html.get_text().count("AUC 0.9") == 3 + 3  # and in the data
    assert repr(grid) == "<9 pictures>"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": np.zeros((4, 4), np.uint8)}, r"pass image\[None\]"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "no image"),
        ({"images": np.zeros((2, 4, 4))}, "uint8"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "titles": ["one"]}, "2 images but 1 titles"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "masks": [None]}, "2 images but 1 masks"),
    ],
)
def test_images_say_what_is_wrong(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        plots.images(**arguments)


def test_captions_in_capitals_are_wrapped_to_their_cell():
    """Capitals are a third wider: a report that shouts ran out of the figure at the right."""
    text = "MODERATE BILATERAL EDEMA. MINIMAL LEFT UPPER ZONE CONSOLIDATION."
    shouted, n = style.wrapped(text, 170)
    assert max(map(style.text_width, shouted.split("<br>"))) <= 170
    assert n == len(shouted.split("<br>")) > style.wrapped(text.lower(), 170)[1]
    assert " ".join(shouted.split("<br>")) == text
    assert style.wrapped("one\n\ntwo", 170) == ("one<br><br>two", 3)


def test_a_grid_may_have_fewer_words_than_pictures(radiographs: np.ndarray):
    grid = plots.Grid(plots.as_pictures(radiographs), 3, headers=["a", "b"], row_titles=["one"], captions=["first"])
    alts = [tag["alt"] for tag in shown(grid).find_all("img")]
    assert alts == ["row: one; column: a; caption: first", "row: one; column: b", "row: one", "column: a", "column: b"]
    alone = [tag["alt"] for tag in shown(plots.images(radiographs[:2])).find_all("img")]
    assert alone == ["picture: 1", "picture: 2"]
    with pytest.raises(ValueError, match="finite"):
        plots.overlays(radiographs[:1], [np.full((2, 2), np.nan)])


def test_a_label_in_the_corner_leaves_the_side_marker_free(radiographs: np.ndarray):
    (picture,) = plots.as_pictures(radiographs[:1], boxes=[[("map", Box(0, 0, 32, 32))]])
    x, right = (plots.pictures.labels(picture, 340, marker)[0][1] for marker in ("", "R"))
    assert x == 0
    assert right >= 18


# --- charts ---


def test_histogram_shows_both_sides_of_the_mask_at_one_scale():
    heatmap, mask = np.zeros((10, 10)), np.zeros((10, 10), bool)
    mask[:2, :5] = True
    heatmap[mask] = 1
    heatmap[9, 9] = 1  # one of the 90 outside is as hot
    fig = plots.histogram(heatmap, mask, threshold=0.25)
    outside, inside = fig.data
    assert (outside.name, inside.name) == ("outside the target", "inside the target")
    np.testing.assert_allclose(outside.y, [89 / 90, *[0] * 38, 1 / 90])
    np.testing.assert_allclose(inside.y, [*[0] * 39, 1])
    assert sorted(shape.x0 for shape in fig.layout.shapes) == pytest.approx([1 / 90, 0.25, 1])
    assert fig.layout.annotations[0].text == "threshold 0.25"
    assert sum(plots.histogram(np.full((10, 10), 3.0), mask).data[0].y) == pytest.approx(1)


def test_histogram_says_what_is_wrong():
    with pytest.raises(ValueError, match="resize the heatmap"):
        plots.histogram(np.zeros((4, 4)), np.ones((8, 8), bool))
    for mask in (np.zeros((4, 4), bool), np.ones((4, 4), bool), np.eye(4)):
        with pytest.raises(ValueError, match="neither empty nor full"):
            plots.histogram(np.zeros((4, 4)), mask)


def test_score_by_size_averages_equally_full_groups():
    target = np.array([0.01, 0.02, 0.10, 0.20])
    one = pd.DataFrame({"target": target, "iou": [0.0, 0.2, 0.4, 0.8], "chance_iou": target})
    # The same index twice, as two tables put together have it.
    table = pd.concat([one.assign(variant="frozen"), one.assign(variant="learnable", iou=0.1)])
    fig = plots.score_by_size(table, ["iou"], groups=2)
    means = {t.name: t for t in fig.data if t.mode == "lines+markers"}
    np.testing.assert_allclose(means["frozen"].x, [0.015, 0.15])
    np.testing.assert_allclose(means["frozen"].y, [0.1, 0.6])
    np.testing.assert_allclose(means["learnable"].y, [0.1, 0.1])
    assert list(means["frozen"].customdata) == [2, 2]
    chance = next(t for t in fig.data if t.name == "chance")
    np.testing.assert_allclose(chance.y, [0.015, 0.15])
    assert not [t for t in fig.data if t.name == "location prior"]
    assert any(a.text == "<b>IoU</b> ↑" for a in fig.layout.annotations)


def test_score_by_size_has_a_panel_for_each_score_and_one_legend():
    table = pd.DataFrame({"variant": "frozen", "target": 0.1, "iou": [0.1, 0.3], "centre_distance": [0.2, 0.4]})
    fig = plots.score_by_size(table, ["iou", "centre_distance"])
    bold = [t for t in fig.data if t.mode == "lines+markers"]
    assert [(t.xaxis, t.showlegend) for t in bold] == [("x", True), ("x2", False)]
    np.testing.assert_allclose([t.y[0] for t in bold], [0.2, 0.3])  # one size, so one group
    assert fig.layout.xaxis.domain[1] < fig.layout.xaxis2.domain[0]
    assert any(a.text == "<b>centre distance</b> ↓" for a in fig.layout.annotations)
    with pytest.raises(ValueError, match="lacks the columns auc_roc"):
        plots.score_by_size(table)


def training_log(steps: int, level: float = 0.2) -> pd.DataFrame:
    step = np.arange(1, steps + 1)
    loss = level + np.random.default_rng(0).normal(0, 0.05, steps)
    return pd.DataFrame({"step": step, "loss": loss, "lr": 1e-4, "seconds": step * 0.5})


def test_training_curves():
    fig = plots.training_curves({"frozen": training_log(300), "learnable": training_log(5000, 0.3)})
    assert len(fig.data) == 6  # raw, smoothed, learning rate
    named = [t for t in fig.data if t.showlegend is not False]
    assert [t.name for t in named] == ["frozen", "learnable"]
    assert [t.line.color for t in named] == [plots.VARIANTS["frozen"], plots.VARIANTS["learnable"]]
    assert np.std(fig.data[1].y) < np.std(fig.data[0].y)
    assert len(fig.data[3].x) <= 800
    assert fig.data[4].y[-1] == pytest.approx(0.3, abs=0.03)
    assert fig.layout.xaxis.title.text == "training step"
    assert "loss" in fig.layout.yaxis.title.text
    with pytest.raises(ValueError, match=r"run frozen.*lr"):
        plots.training_curves({"frozen": training_log(3).drop(columns="lr")})


def test_scores_by_finding():
    rows = [
        {"finding": f, "variant": v, "mean": m, "low": m - 0.1, "high": m + 0.05, "prior": 0.7, "chance": 0.5, "n": 12}
        for f in ("all", "Edema", "Pneumonia")
        for v, m in (("learnable", 0.6), ("frozen", 0.9))
    ]
    fig = plots.scores_by_finding(pd.DataFrame(rows))
    assert [t.name for t in fig.data] == ["chance", "location prior", "frozen", "learnable"]
    frozen = fig.data[2]
    assert list(frozen.x) == [0.9] * 3
    assert list(frozen.error_x.array) == pytest.approx([0.05] * 3)
    assert list(frozen.error_x.arrayminus) == pytest.approx([0.1] * 3)
    assert list(fig.layout.yaxis.ticktext) == ["Edema (12)", "Pneumonia (12)", "<b>all</b> (12)"]
    assert fig.layout.yaxis.range[0] > fig.layout.yaxis.range[1]
    own = pd.DataFrame(rows)
    swapped = plots.scores_by_finding(own.assign(swap=own["mean"] - 0.2), variants=["learnable", "frozen"])
    marks = {t.name: t for t in swapped.data}
    assert list(marks["frozen, swapped images"].x) == pytest.approx([0.7] * 3)
    assert list(marks["frozen, swapped images"].y) == list(marks["frozen"].y)
    assert marks["frozen, swapped images"].marker.color == marks["frozen"].marker.color
    assert not np.isfinite(np.array(marks["frozen, swapped images"].error_x.array, dtype=float)).any()
    assert swapped.layout.yaxis.range == fig.layout.yaxis.range
    none = plots.scores_by_finding(own.assign(swap=np.nan))
    assert [t.name for t in none.data] == [t.name for t in fig.data]
    one = plots.scores_by_finding(own[["finding", "variant", "mean"]])
    assert len(one.data) == 2
    with pytest.raises(ValueError, match="variant"):
        plots.scores_by_finding(pd.DataFrame({"finding": ["Edema"], "mean": [0.5]}))


def test_paired_differences_point_to_the_better_variant():
    table = pd.DataFrame(
        [
            {"name": "AUC-ROC", "estimate": 0.2, "low": 0.1, "high": 0.3},
            {"name": "FID", "estimate": 5.0, "low": 2.0, "high": 10.0, "better": "lower"},
            {"name": "CNR", "estimate": 0.1, "low": -0.1, "high": 0.3},
        ]
    )
    fig = plots.paired(table)
    auc, fid, cnr = fig.data
    assert auc.x[0] > 0
    assert auc.marker.color == plots.VARIANTS["frozen"]
    assert fid.x[0] < 0  # the frozen model's FID is higher: the learnable one is better
    assert fid.marker.color == plots.VARIANTS["learnable"]
    assert fid.x[0] - fid.error_x.arrayminus[0] == pytest.approx(-1)
    assert cnr.marker.color not in plots.VARIANTS.values()  # undecided
    texts = " ".join(a.text for a in fig.layout.annotations)
    assert "+0.20 [+0.10, +0.30]" in texts
    assert "frozen better →" in texts
    longer = plots.paired(table.assign(estimate=-0.019, low=-0.030, high=-0.006))  # three digits and minus signs
    assert longer.layout.margin.r > fig.layout.margin.r > 24
    with pytest.raises(ValueError, match="cannot share"):
        plots.paired(table, shared=True)
    shared = plots.paired(table.iloc[[0, 2]], shared=True)
    assert [trace.x[0] for trace in shared.data] == [0.2, 0.1]  # in the unit of the score
    assert shared.layout.xaxis.range == pytest.approx((-0.336, 0.336))
    mirrored = plots.paired(table.iloc[[1]], shared=True)
    assert mirrored.layout.xaxis.range[0] > 0  # the left is where less is worse


def test_paired_reads_comparisons():
    from chestxai.tradeoff import Comparison

    found = Comparison(
        0.2, 0.1, 0.3, 0.01, metric="auc_roc", a="learnable", b="frozen", step=5, phrases=9, patients=8, seeds=1
    )
    fig = plots.paired([found])
    assert fig.data[0].marker.color == plots.VARIANTS["learnable"]
    assert fig.layout.yaxis.ticktext[0] == "AUC-ROC (9)"
    assert "learnable − frozen" in fig.layout.xaxis.title.text


def checkpoints(seeds: int = 1) -> pd.DataFrame:
    """frozen: (FID, AUC) = (30, .8), (20, .9), (10, .85); learnable: (28, .7), (15, .6), (8, .55)."""
    numbers = {"frozen": ([30, 20, 10], [0.8, 0.9, 0.85]), "learnable": ([28, 15, 8], [0.7, 0.6, 0.55])}
    rows = [
        {
            "variant": variant, "seed": seed, "step": 100 * (i + 1), "fid": fid + seed, "auc_roc": auc,
            "auc_roc_low": auc - 0.02, "auc_roc_high": auc + 0.03, "cnr": auc * 2, "prior_auc_roc": 0.75,
        }
        for variant, (fids, aucs) in numbers.items()
        for seed in range(seeds)
        for i, (fid, auc) in enumerate(zip(fids, aucs, strict=True))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_tradeoff_shows_both_variants_and_the_pareto_front():
    fig = plots.tradeoff(checkpoints().sample(frac=1, random_state=0))
    frozen, learnable, pareto = (trace for trace in fig.data if trace.visible)
    assert [frozen.name, learnable.name] == ["frozen text encoder", "learnable text encoder"]
    assert list(frozen.x) == [30, 20, 10]  # in order of the steps
    assert list(frozen.text) == ["100", "200", "300"]
    assert list(frozen.error_y.array) == pytest.approx([0.03] * 3)
    assert list(frozen.error_y.arrayminus) == pytest.approx([0.02] * 3)
    assert sorted(zip(pareto.x, pareto.y, strict=True)) == [(8, 0.55), (10, 0.85), (20, 0.9)]
    assert "lower is better" in fig.layout.xaxis.title.text
    assert fig.layout.yaxis.title.text.startswith("AUC-ROC")
    assert sorted(s.y0 for s in fig.layout.shapes) == [0.5, 0.75]  # chance, location prior
    texts = [a.text for a in fig.layout.annotations]
    assert "chance 0.50" in texts
    assert "location prior 0.75" in texts
    assert "95 % interval" in fig.layout.xaxis.title.text


def test_tradeoff_buttons_replace_everything_that_depends_on_the_score():
    fig = plots.tradeoff(checkpoints())
    menu = fig.layout.updatemenus[0]
    assert [b.label for b in menu.buttons] == ["AUC-ROC", "CNR"]
    data, layout = menu.buttons[1].args
    shown = [trace for trace, visible in zip(fig.data, data["visible"], strict=True) if visible]
    assert list(shown[0].y) == pytest.approx([1.6, 1.8, 1.7])
    assert layout["yaxis.title.text"].startswith("CNR")
    assert list(layout["shapes"]) == []  # no reference known
    assert menu.buttons[0].args[0]["visible"] == [trace.visible for trace in fig.data]
    json.loads(fig.to_json())


def test_tradeoff_over_seeds_is_a_mean_with_its_range():
    fig = plots.tradeoff(checkpoints(seeds=3))
    shown = [trace for trace in fig.data if trace.visible]
    assert len(shown) == 3 * 2 + 2 + 1
    bold = next(trace for trace in shown if trace.name == "frozen text encoder")
    assert list(bold.x) == [31, 21, 11]
    assert list(bold.error_x.array) == [1, 1, 1]
    assert "lowest to highest seed" in fig.layout.xaxis.title.text


def test_tradeoff_says_what_is_missing():
    with pytest.raises(ValueError, match="lacks the columns fid"):
        plots.tradeoff(checkpoints().drop(columns="fid"))
    with pytest.raises(ValueError, match="none of the scores"):
        plots.tradeoff(checkpoints()[["variant", "seed", "step", "fid"]])


# --- figures with controls ---


def test_explorer_static_has_every_map_once():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 64, 64), dtype=np.uint8)
    maps = rng.random((2, 3, 4, 32, 32)).astype(np.float32)
    masks = [rectangle(64, 64, (5, 6, 7, 8)), None]
    words = ["a", "b"], ["small effusion", "edema"], ["down", "mid", "up"], [0, 250, 500, 750]
    fig = plots.explorer_static(plots.explored(images, maps, *words, masks))
    studies, layers = fig.layout.updatemenus
    steps = fig.layout.sliders[0].steps
    assert [b.label for b in studies.buttons] == ["a: small effusion", "b: edema"]
    assert [b.label for b in layers.buttons] == ["all layers", "down", "mid", "up"]
    assert [s.label for s in steps] == ["all", "0", "250", "500", "750"]
    # Study b, layer "mid", t = 500: the window that the controls open shows exactly that map.
    visible = studies.buttons[1].args[0]["visible"]
    shown = [t for t, v in zip(fig.data, visible, strict=True) if v and t.type == "image"]
    assert len(shown) == 2
    atlas = decoded(shown[1].source)[..., 3] / plots.OPACITY  # grows with the value
    assert atlas.shape == (4 * 34, 5 * 34)
    bottom, top = layers.buttons[2].args[0]["yaxis2.range"]
    left, right = steps[3].args[0]["xaxis2.range"]
    window = atlas[int(top) : int(bottom), int(left) : int(right)]
    assert np.allclose(window, plots.normalize(maps[1, 1, 2]) * 255, atol=4)  # one of 64 colours
    everything = atlas[1:33, 1:33]
    assert np.allclose(everything, plots.normalize(maps[1].mean(axis=(0, 1))) * 255, atol=4)
    assert tuple(fig.layout.xaxis2.range) == (1, 33)
    assert fig.layout.xaxis2.domain == fig.layout.xaxis.domain
    assert any("edema" in note.text for note in studies.buttons[1].args[1]["annotations"])
    with pytest.raises(ValueError, match="2 layers"):
        plots.explored(images, maps, ["a", "b"], ["x", "y"], ["down", "up"], [0, 250, 500, 750])


REPORT = "FINDINGS: There is a small left pleural effusion. No pneumothorax.\nIMPRESSION: Effusion <small>."


@pytest.fixture
def studies() -> list[Study]:
    image = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    effusion = Finding("Pleural Effusion", "small left pleural effusion", mask=rectangle(40, 30, (16, 20, 10, 15)))
    edema = Finding("Edema", boxes=(Box(3, 4, 8, 12),))
    ruled_out = Finding("Pneumothorax", "no pneumothorax", present=False)
    common = {"patient": "p", "source": "s", "split": "test", "size": (40, 30), "array": image}
    return [
        Study("one", report=REPORT, findings=(effusion, ruled_out, edema), **common),
        Study("two", report="Normal chest.", **common),
    ]


def test_highlights_cut_the_report_where_phrases_begin_and_end(studies: list[Study]):
    pieces = plots.highlights(REPORT, studies[0].findings)
    assert "".join(text for text, _ in pieces) == REPORT
    marked = {text: [f.name for f in found] for text, found in pieces if found}
    assert marked == {"small left pleural effusion": ["Pleural Effusion"], "No pneumothorax": ["Pneumothorax"]}


def test_highlights_hit_their_words_where_a_letter_in_small_is_two():
    pieces = plots.highlights("İİ Small effusion.", [finding := Finding("Pleural Effusion", "small effusion")])
    assert pieces == [("İİ ", ()), ("Small effusion", (finding,)), (".", ())]


def test_highlights_of_overlapping_phrases_share_a_piece():
    a, b = Finding("Edema", "one two"), Finding("Pneumonia", "two three")
    pieces = plots.highlights("one two three", [a, b])
    assert pieces == [("one ", (a,)), ("two", (a, b)), (" three", (b,))]


def test_outlines_of_a_study_live_in_the_letterboxed_frame(studies: list[Study]):
    picture = plots.study_picture(studies[0], 80)
    assert picture.image.shape == (80, 80)
    assert picture.image[:, :9].max() == 0  # padded at the sides: 30 × 40 doubled is 60 × 80
    corners = {mark.name: (*mark.loops[0].min(axis=0), *mark.loops[0].max(axis=0)) for mark in picture.outlines}
    assert corners == {"Pleural Effusion": (42, 40, 62, 70), "Edema": (16, 8, 32, 32)}


def test_study_sheet_outlines_masks_and_boxes_in_their_colours(studies: list[Study]):
    grid = plots.study_sheet(studies, titles=["a", "b"], size=80)
    # The mask of (x 16, y 20, w 10, h 15), doubled and letterboxed by 10 at the left; a mask has no box of its own.
    assert outlines(grid) == {
        plots.FINDING_COLORS["Pleural Effusion"]: (42, 40, 62, 70),
        plots.FINDING_COLORS["Edema"]: (16, 8, 32, 32),
    }
    assert [cell.p.get_text() for cell in shown(grid).select(".cx-cell")] == ["a", "b"]
    with pytest.raises(ValueError, match="no study"):
        plots.study_sheet([])


def test_study_static(studies: list[Study]):
    text = plots.study_static(studies, size=64).data
    assert text.count("<details") == text.count("<img alt='Radiograph of ") == 2
    assert text.count(" open>") == 1  # the first
    assert ">one: Pleural Effusion, Edema</summary>" in text
    assert ">two: no finding</summary>" in text
    assert 'title="Pleural Effusion">small left pleural effusion</span>' in text
    assert "<i>No pneumothorax</i>" in text
    assert "&lt;small&gt;" in text
    picture = decoded(text.split("src='")[1].split("'")[0])
    assert picture.shape == (64, 64, 3)


# --- still pictures, setup ---


def test_drawn_boxes_and_masks_are_at_scale():
    (picture,) = plots.as_pictures(
        np.zeros((1, 50, 50), np.uint8), masks=[rectangle(50, 50, (30, 30, 10, 10))], boxes=[[("", Box(5, 10, 20, 10))]]
    )
    pixels = np.asarray(plots.draw(picture, 200, marker=""))
    assert pixels.shape == (200, 200, 3)
    assert pixels[60, 20].max() > 100  # on the box's left edge: x 5 · 4, y 10 · 4 … 20 · 4
    assert pixels[60, 60].max() == 0  # inside it
    assert pixels[140, 120].min() == 255  # on the mask's left edge
    rows, columns = np.nonzero(pixels.max(axis=2) > 100)
    assert rows.min() == pytest.approx(40, abs=3)
    assert columns.max() == pytest.approx(160, abs=3)


def test_contact_sheet(radiographs: np.ndarray, heatmaps: np.ndarray):
    sheet = plots.contact_sheet(
        radiographs[:4], 2, ["a long caption " * 10, None, "b", "c"], [None, heatmaps[0], None, heatmaps[1]], size=100
    )
    assert sheet.mode == "RGB"
    assert sheet.width == 2 * 100 + 3 * 10
    pixels = np.asarray(sheet).astype(int)
    grey = np.ptp(pixels, axis=2) == 0
    left, right = grey[60:-10, 10:110].mean(), grey[60:-10, 120:220].mean()
    assert left > 0.95 > 0.6 > right  # plain radiographs left, overlays right
    assert plots.contact_sheet(radiographs).width <= 4 * 250 + 10


def test_plotlyjs_is_written_once(tmp_path):
    path = plots.write_plotlyjs(tmp_path / "_static")
    before = path.stat()
    assert before.st_size > 1_000_000
    assert plots.write_plotlyjs(tmp_path / "_static").stat().st_mtime_ns == before.st_mtime_ns


def test_setup_shows_html_without_a_copy_of_plotlyjs(monkeypatch: pytest.MonkeyPatch):
    import plotly.io as pio

    before = pio.renderers.default
    try:
        plots.setup()
        figure = px.imshow([[0.5]], x=["0"], y=["mid"])
        bundle = pio.renderers._build_mime_bundle(figure.to_dict())
        assert set(bundle) == {"application/vnd.plotly.v1+json", "text/html"}
        assert "Plotly.newPlot" in bundle["text/html"]
        assert len(bundle["text/html"]) < 20_000
    finally:
        pio.renderers.default = before


def test_colours_are_distinct():
    assert len(set(plots.FINDING_COLORS.values())) == len(FINDINGS)


def test_every_variant_has_a_look_of_its_own():
    names = ["learnable", "learnable-anchored", *(f"lora:{rank}" for rank in range(20)), "frozen"]
    styles = plots.variant_style(names)
    assert list(styles) == names
    assert len(set(styles.values())) == len({style[:2] for style in styles.values()}) == len(names)
    assert {name: styles[name].color for name in plots.VARIANTS} == plots.VARIANTS
    assert not {style.color for name, style in styles.items() if name not in plots.VARIANTS} & {
        *plots.VARIANTS.values()
    }
    assert plots.variant_style(["lora:4"])["lora:4"] == plots.variant_style(["frozen", "lora:4"])["lora:4"]


MANY = ["frozen", "learnable", "learnable-anchored", "lora:4", "embeddings"]


def test_charts_take_any_number_of_variants_in_order():
    rows = [{"finding": f, "variant": v, "mean": 0.5 + 0.05 * i} for f in ("Edema", "all") for i, v in enumerate(MANY)]
    fig = plots.scores_by_finding(pd.DataFrame(rows), "centre_distance", variants=["lora:4", *MANY[:3]])
    assert [trace.name for trace in fig.data] == ["lora:4", *MANY[:3]]  # one without a place is left out
    assert "lower is better" in fig.layout.xaxis.title.text
    assert fig.data[3].marker.color == plots.variant_style(MANY)["lora:4"].color != fig.data[2].marker.color
    places = [trace.y[0] for trace in fig.data]
    assert places == sorted(places)
    assert max(places) - min(places) < 1
    table = pd.concat([checkpoints().assign(variant=v) for v in MANY])
    plane = plots.tradeoff(table, variants=MANY[::-1])
    assert [t.name for t in plane.data if t.visible][:2] == ["embeddings", "lora:4"]
    with pytest.raises(ValueError, match=r"none of the variants.*random"):
        plots.tradeoff(table, variants=["random"])


def test_paired_differences_of_many_variants_with_a_reference():
    from chestxai.tradeoff import Comparison

    def compared(a: str, b: str, estimate: float) -> Comparison:
        about = {"metric": "auc_roc", "step": 5, "phrases": 9, "patients": 8, "seeds": 1}
        return Comparison(estimate, estimate - 0.1, estimate + 0.1, 0.01, a=a, b=b, **about)

    fig = plots.paired([compared(name, "frozen", 0.2 * i - 0.3) for i, name in enumerate(MANY[1:])])
    named = [trace for trace in fig.data if trace.showlegend]
    assert [trace.name for trace in named] == MANY[1:]
    drawn = {trace.marker.symbol: trace.marker.color for trace in fig.data if not trace.showlegend}
    styles = plots.variant_style(MANY)
    assert drawn[styles["learnable"].symbol] == plots.VARIANTS["frozen"]  # worse than the reference
    assert drawn[styles["embeddings"].symbol] == styles["embeddings"].color  # better
    assert drawn[styles["learnable-anchored"].symbol] not in {style.color for style in styles.values()}  # undecided
    assert {"<b>← frozen better</b>", "<b>the other better →</b>"} <= {note.text for note in fig.layout.annotations}
    with pytest.raises(ValueError, match="the same variant"):
        plots.paired([compared("a", "b", 0.1), compared("c", "d", 0.1)])


def test_px_charts_take_the_styles_of_the_book():
    import plotly.express as px

    table = pd.DataFrame({"x": [0, 1] * 2, "y": [0, 1] * 2, "who": ["lora:4", "lora:4", "frozen", "frozen"]})
    styles = plots.variant_style(["frozen", "lora:4"])
    first, second = px.line(table, x="x", y="y", markers=True, **plots.express_options(styles, "who")).data
    assert (first.name, first.line.color, first.line.dash, first.marker.symbol) == (
        "frozen",
        "#0072B2",
        "solid",
        "circle",
    )
    assert (second.line.color, second.marker.symbol, second.line.dash) == styles["lora:4"]
