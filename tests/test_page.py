"""Figures as HTML: caption, words, data, controls; pictures without a script; a look of its own for each variant."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
import pytest
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook, new_output
from plotly.subplots import make_subplots

from chestxai import plots
from chestxai.plots import page, style
from chestxai.studies import Box

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
HEAT = np.random.default_rng(1).random((3, 8, 8), dtype=np.float32)


def shown(figure: go.Figure | plots.Grid) -> BeautifulSoup:
    text = figure._repr_html_() if isinstance(figure, plots.Grid) else page.to_html(figure.to_dict())
    return BeautifulSoup(text, "html.parser")


def cells(html: BeautifulSoup) -> list[list[str]]:
    return [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in html.details.table.find_all("tr")]


def charts() -> dict[str, go.Figure]:
    rows = [{"finding": f, "variant": v, "mean": 0.6} for f in ("Edema", "all") for v in ("frozen", "late")]
    table = pd.DataFrame({"step": [1, 2], "loss": [0.3, 0.2], "lr": [1e-3, 1e-4]})
    size = pd.DataFrame({"variant": "frozen", "target": [0.1, 0.2], "iou": [0.1, 0.3], "dice": [0.2, 0.4]})
    return {
        "forest": plots.scores_by_finding(pd.DataFrame(rows), title="Scores"),
        "curves": plots.training_curves({"late": table}),
        "matrix": px.imshow([[0.5, 0.7]], x=["0", "500"], y=["mid &lt;1&gt;"], title="AUC-ROC by layer"),
        "sizes": plots.score_by_size(size, ["iou", "dice"]),
        "px": px.bar(pd.DataFrame({"who": ["a", "b"], "share": [0.1, 0.2]}), x="who", y="share", title="Shares"),
    }


@pytest.mark.parametrize("name", charts())
def test_every_chart_has_caption_words_and_data(name):
    html = shown(charts()[name])
    assert html.figcaption.get_text(strip=True)
    assert len(html.figure["aria-label"]) > 20
    assert len(cells(html)) > 1
    (script,) = html.find_all("script")
    assert "Plotly.newPlot(" in script.string
    assert 'src="https://cdn.plot.ly/plotly-' in script.string  # where no page brings it
    assert len(str(html)) < 30_000


def test_the_data_are_those_of_the_figure():
    html = shown(charts()["matrix"])
    assert cells(html) == [["row", "0", "500"], ["mid <1>", "0.5", "0.7"]]
    table = pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0], "who": ["a", "b"], "up": [0.5, 0.25]})
    html = shown(px.scatter(table, x="x", y="y", color="who", error_y="up", labels={"x": "← FID (lower is better)"}))
    found = cells(html)
    assert found[0] == ["series", "FID", "y", "y high"]
    assert found[1:] == [["a", "1", "3", "3.5"], ["b", "2", "4", "4.25"]]
    assert "a: 1 points, y from 3 to 3" in html.figure["aria-label"]


def test_the_data_of_a_menus_choices_are_headed_by_their_panel():
    first, second = (style.dressed(px.line(x=[1, 2], y=y), "T", 300).update_yaxes(title=t) for t, y in
                     (("AUC", [0.1, 0.2]), ("FID", [3, 4])))  # fmt: skip
    html = shown(style.chooser([("AUC", first), ("FID", second)]))
    assert cells(html)[0] == ["panel", "x", "y"]
    assert "FID: 2 points, y from 3 to 4" in html.figure["aria-label"]


def test_titles_of_axes_may_be_alike_or_long():
    html = shown(px.scatter(x=[1.0], y=[2.0], labels={"x": "AUC (own image)", "y": "AUC (swapped image)"}))
    assert cells(html)[0] == ["AUC", "y axis"]
    labels = {"x": "step", "y": "share too low<br>higher is better"}
    html = shown(px.line(x=[1, 2], y=[3, 4], color=["a", "a"], labels=labels))
    assert cells(html)[0] == ["series", "step", "share too low"]
    assert "share too low from 3 to 4" in html.figure["aria-label"]


def test_panels_in_several_rows_have_their_own_names():
    table = pd.DataFrame({"x": 1, "y": [1.0, 2.0, 3.0], "kind": ["case", "order", "typos"]})
    fig = px.scatter(table, x="x", y="y", facet_col="kind", facet_col_wrap=2)
    rows = cells(shown(fig.for_each_annotation(lambda a: a.update(text=a.text.removeprefix("kind=")))))
    assert [(row[0], row[-1]) for row in rows[1:]] == [("case", "1"), ("order", "2"), ("typos", "3")]


def test_the_data_of_panels_are_headed_by_their_axes():
    panels = make_subplots(1, 2, x_title="time")
    panels.add_bar(x=["a"], y=[1.0], col=1, row=1).add_bar(x=["b"], y=[2.0], col=2, row=1)
    panels.update_yaxes(title="loss", col=1).update_yaxes(title="score ↑", col=2).update_xaxes(title="step", col=1)
    html = shown(panels)
    # Panels with a common axis have its title once.
    assert cells(html) == [["step", "loss", "score ↑"], ["a", "1", ""], ["b", "", "2"]]


def test_a_panel_is_named_in_the_data():
    rows = cells(shown(charts()["sizes"]))
    assert {row[0] for row in rows[1:]} == {"IoU ↑", "Dice ↑"}


def test_long_data_are_cut_and_say_so():
    html = shown(px.scatter(x=np.arange(500), y=np.arange(500)))
    assert len(cells(html)) == 201
    assert "The first 200 of 500 rows" in html.details.get_text()


def test_menus_become_controls_that_a_keyboard_reaches():
    first, second = (style.dressed(px.line(x=[1, 2], y=y), "Title", 300, ["a"]) for y in ([1, 2], [3, 4]))
    fig = style.chooser([("one", first), ("two & three", second)], name="Score")
    html = shown(fig)
    assert html.label.get_text().startswith("Score")
    assert [option.get_text() for option in html.find_all("option")] == ["one", "two & three"]
    assert "updatemenus" not in html.script.string
    assert {row[0] for row in cells(html)[1:]} == {"one", "two & three"}  # the data of every choice
    # The room of title and menu is given back.
    height = int(re.search(r"height:(\d+)px", html.select_one(".cx-plot")["style"])[1])
    assert height == fig.layout.height - 40 - 26


def test_pictures_need_no_script_and_say_what_they_show():
    boxes = [[("Pneumonia", Box(4, 8, 10, 6))], [], []]
    html = shown(plots.images(IMAGES, ["<a> & b", "c", None], boxes=boxes, title="Three"))
    assert not html.find_all("script")
    first, second, _ = html.find_all("img")
    assert "caption: <a> & b" in first["alt"]
    assert "Pneumonia (4, 8, 10, 6)" in first["alt"]
    assert "picture" not in second["alt"] or second["alt"]
    assert html.figcaption.get_text() == "Three"
    assert cells(html)[1][:2] == ["<a> & b", "Pneumonia (4, 8, 10, 6)"]


def test_pictures_without_a_title_are_captioned_by_their_words():
    assert shown(plots.images(IMAGES, ["one", "two", None])).figcaption.get_text() == "one; two"


def test_a_grid_of_variants_keeps_its_columns_and_its_scale():
    maps = {"frozen": HEAT, "late": HEAT[::-1]}
    html = shown(plots.overlay_grid(IMAGES, maps, titles=["“one”", "“two”", "“three”"]))
    assert [row.get_text() for row in html.select(".cx-row")] == ["“one”", "“two”", "“three”"]
    assert [b.get_text() for b in html.select(".cx-cell b")] == ["image", "frozen", "late"]
    assert len(html.find_all("img")) == 9
    assert "repeat(3," in html.select_one(".cx-grid")["style"]
    assert "attention, min–max per map: min" in html.get_text()
    assert "column: late" in html.find_all("img")[2]["alt"]


def test_the_explorer_has_three_controls():
    maps = np.random.default_rng(0).random((2, 2, 3, 8, 8)).astype(np.float32)
    words = ["a", "b"], ["edema", "effusion"], ["down", "up"], [0, 100, 200]
    fig = plots.explorer_static(plots.explored(IMAGES[:2], maps, *words))
    html = shown(fig)
    names = [label.find(string=True, recursive=False) for label in html.find_all("label")]
    assert names == ["Study and phrase", "Cross-attention layer", "Timestep t"]
    assert [len(s.find_all("option")) for s in html.find_all("select")] == [2, 3, 4]


def test_the_same_figure_has_the_same_html_and_two_have_different_ids():
    fig = charts()["forest"]
    first, second = (page.to_html(fig.to_dict()) for _ in range(2))
    ids = [re.search(r'id="([^"]+)"', text)[1] for text in (first, second)]
    assert ids[0] != ids[1]
    assert first.replace(ids[0], "") == second.replace(ids[1], "")


def test_packed_arrays_are_read():
    packed = json.loads(go.Figure(go.Scatter(y=np.arange(6.0))).to_json())["data"][0]["y"]
    assert page.values(packed).tolist() == [0, 1, 2, 3, 4, 5]
    matrix = json.loads(go.Figure(go.Heatmap(z=np.arange(6.0).reshape(2, 3))).to_json())["data"][0]["z"]
    assert page.values(matrix).shape == (2, 3)


def test_a_variant_looks_the_same_in_every_chapter(monkeypatch):
    monkeypatch.setattr(style, "_ORDER", [])
    alone = plots.variant_style(["anchored"])
    plots.setup(["frozen", "learnable", "late", "anchored"])
    together = plots.variant_style(["frozen", "late", "anchored"])
    assert plots.variant_style(["anchored"])["anchored"] == together["anchored"] != alone["anchored"]
    table = pd.DataFrame({"step": [1, 2], "loss": [0.3, 0.2], "lr": 1e-3})
    assert plots.training_curves({"anchored": table}).data[1].line.color == together["anchored"].color
    plots.setup(["frozen", "learnable"])  # another profile, whose studies show the same recipe
    assert plots.variant_style(["anchored"])["anchored"] == together["anchored"]
    assert plots.variant_style(["base"])["base"].color not in {look.color for look in together.values()}


def test_logarithmic_axes_write_whole_numbers():
    axis = plots.log_axis(5, 43)
    texts = dict(zip(axis["tickvals"], axis["ticktext"], strict=True))
    assert texts[20.0] == "20"
    assert texts[5e-1] == "0.5"
    assert plots.log_axis(5e-6, 1e-3)["ticktext"][-1] != "5"
    assert "2,000" in plots.log_axis(900, 3000)["ticktext"]


def study(bases: tuple[str, ...] = ("",)) -> pd.DataFrame:
    rows = [
        {"base": base, "variant": f"recipe-{i}", "seed": seed, "step": step, "classifier_auc": 0.5 + 0.01 * i,
         "word": 0.8 - 0.02 * i + 0.01 * seed, "rate": 10.0**-i, "fid": 10.0 * i}
        for base in bases for i in range(1, 9) for seed in (0, 1) for step in (5, 10)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_recipes_of_several_bases_share_one_figure():
    fig = plots.recipes_plane(study(("tiny", "tiny-code")), ["word"], "Study")
    buttons = fig.layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == [
        f"{base}: word test, {score}" for base in ("tiny", "tiny-code") for score in ("classifier AUC", "FID")
    ]
    front, *visible = [trace for trace in fig.data if trace.visible]
    assert [trace.name for trace in visible] == [f"recipe-{i}" for i in range(1, 9)]
    assert len({(trace.marker.color, trace.marker.symbol) for trace in visible}) == 8
    assert "0.785 [0.780, 0.790]" in visible[0].hovertemplate  # without bounds: the lowest and the highest seed
    assert list(front.x) == pytest.approx([0.51 + 0.01 * i for i in range(8)])  # each is better in one of the two
    assert front.line.shape == "vh"
    change = buttons[1].args[1]
    assert change["xaxis.autorange"] == "reversed"
    assert change["xaxis.title.text"].endswith("(lower is better →)")


def test_bars_of_a_recipe_cover_the_intervals_of_its_seeds_and_own_runs_are_stars():
    bounded = study(("tiny", "tiny-code")).query("variant in ['recipe-1', 'recipe-2']")
    bounded = bounded.assign(word_low=bounded["word"] - 0.1, word_high=bounded["word"] + 0.2)
    own = bounded.query("seed == 0 and base == 'tiny' and step == 10").assign(variant=["frozen", "mine"])
    fig = plots.recipes_plane(bounded, ["word"], "Study", own=own)
    _, first, _, *stars = [trace for trace in fig.data if trace.visible]
    assert (first.error_y.array[0], first.error_y.arrayminus[0]) == pytest.approx((0.205, 0.105))
    assert [star.name for star in stars] == ["frozen (yours)", "mine (yours)"]
    assert [star.y[0] for star in stars] == own["word"].tolist()
    other = [trace.name for trace in fig.data if trace.meta.startswith("tiny-code: ")]
    assert set(other) == {"recipe-1", "recipe-2", "Pareto front"}
    # Where one of the tables names no base, there is nothing to tell them apart by.
    for some, mine in ((bounded, own.drop(columns="base")), (bounded.drop(columns="base"), own)):
        first = [t.name for t in plots.recipes_plane(some, ["word"], own=mine).data if t.visible]
        assert first[-2:] == ["frozen (yours)", "mine (yours)"]


def test_the_front_of_fid_has_its_steps_below_what_is_reached():
    both = study().assign(word=lambda t: 0.5 + t["fid"] / 100)  # more FID, more of the score: all are optimal
    front = next(t for t in plots.recipes_plane(both, ["word"]).data if t.meta.endswith("FID") and t.mode == "lines")
    assert front.line.shape == "hv"
    assert list(front.x) == sorted(both["fid"].unique())


def test_names_of_recipes_that_lie_close_stand_on_different_sides():
    same = study().assign(word=0.8, classifier_auc=0.6).query("variant in ['recipe-1', 'recipe-2', 'recipe-3']")
    first = [trace for trace in plots.recipes_plane(same, ["word"]).data if trace.visible and trace.textposition]
    assert [trace.textposition for trace in first] == ["top center", "bottom center", "middle right"]


def test_a_setting_is_drawn_over_its_values():
    fig = plots.setting_curves(study().drop(columns="base").assign(variant="learnable"), "rate", ["word", "fid"])
    visible = [trace for trace in fig.data if trace.visible]
    assert len(visible) == 1
    assert len(visible[0].x) == 8
    assert visible[0].line.color == plots.VARIANTS["learnable"]
    assert fig.layout.xaxis.type == "log"
    assert visible[0].error_y.array.tolist() == pytest.approx([0.005] * 8)
    bounded = study().assign(variant="learnable", word_low=0.5, word_high=0.9)
    bar = plots.setting_curves(bounded, "rate", ["word"]).data[0]
    assert (bar.y - bar.error_y.arrayminus).tolist() == pytest.approx([0.5] * 8)
    assert (bar.y + bar.error_y.array).tolist() == pytest.approx([0.9] * 8)
    with pytest.raises(ValueError, match="lacks the columns rate"):
        plots.setting_curves(study().drop(columns="rate"), "rate", ["word"])


def test_the_data_of_rows_are_their_words_not_their_places():
    rows = pd.DataFrame([
        {"name": "AUC", "a": "frozen", "b": "learnable", "estimate": 0.2, "low": 0.1, "high": 0.3},
        {"name": "FID", "a": "frozen", "b": "learnable", "estimate": 5.0, "low": 2.0, "high": 10.0, "better": "lower"},
    ])  # fmt: skip
    html, said = shown(plots.paired(rows)), "FID frozen − learnable: +5.0 [+2.0, +10.0]"
    assert "x" not in cells(html)[0]
    assert any(said in row for row in cells(html)[1:])
    assert said in html.figure["aria-label"]


def test_paired_rows_of_different_scores_write_their_scales():
    table = pd.DataFrame([
        {"name": "AUC", "estimate": 0.2, "low": 0.1, "high": 0.3},
        {"name": "FID", "estimate": 5.0, "low": 2.0, "high": 10.0, "better": "lower"},
    ])  # fmt: skip
    texts = [note.text for note in plots.paired(table).layout.annotations]
    assert {"+0.30", "−0.30", "+10.0", "−10.0"} <= set(texts)
    right = next(n for n in plots.paired(table).layout.annotations if n.text == "−10.0")
    assert right.x == 1  # less of FID is better, and better is to the right


def test_a_figure_is_drawn_where_a_notebook_is_converted():
    """As nbconvert, nbviewer and Colab show it: they take the HTML, which loads plotly.js itself."""
    figure = charts()["px"]
    data = {"text/html": page.to_html(figure.to_dict()), "application/vnd.plotly.v1+json": json.loads(figure.to_json())}
    cell = new_code_cell("figure", outputs=[new_output("display_data", data)])
    text, _ = HTMLExporter().from_notebook_node(new_notebook(cells=[cell]))
    converted = BeautifulSoup(text, "html.parser").find("figure", class_="cx")
    assert converted.figcaption.get_text() == "Shares"
    assert "cdn.plot.ly/plotly-" in converted.script.string
    assert converted.details.table
