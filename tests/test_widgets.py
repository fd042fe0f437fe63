"""Widgets: a choice changes the picture; outside a live notebook the static counterpart is shown."""

from __future__ import annotations

import base64
import io
from types import SimpleNamespace

import ipywidgets
import numpy as np
import pytest
from PIL import Image

from chestxai import plots, widgets
from chestxai.studies import Box, Finding, Study


def pixels(browser: ipywidgets.interactive) -> np.ndarray:
    source = browser.result.data.split("base64,")[1].split("'")[0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))).astype(int)


def controls_of(browser: ipywidgets.interactive) -> dict[str, ipywidgets.Widget]:
    return {widget.description.lower(): widget for widget in browser.children if hasattr(widget, "description")}


def differ(
    browser: ipywidgets.interactive, image: np.ndarray, heatmap: np.ndarray | None = None, size: int = 64
) -> bool:
    """Whether another picture is shown, beyond what JPEG loses."""
    drawn = np.asarray(plots.draw(plots.Picture(image, heatmap), size))
    return np.abs(pixels(browser) - drawn).mean() > 8


@pytest.fixture
def explored() -> dict:
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (3, 32, 32), dtype=np.uint8),
        "heatmaps": rng.random((3, 2, 3, 8, 8)).astype(np.float32),
        "titles": ["study a", "study a", "study b"],
        "phrases": ["effusion", "edema <mild>", "pneumonia"],
        "layers": ["down", "up"],
        "timesteps": [0, 400, 800],
    }


def test_attention_explorer_draws_what_is_chosen(explored: dict):
    browser = widgets.attention_explorer(plots.explored(**explored), 64)
    controls = controls_of(browser)
    assert [name for name, _ in controls["phrase"].options] == ["effusion", "edema <mild>"]
    assert [name for name, _ in controls["layer"].options] == ["all layers", "down", "up"]
    image, maps = explored["images"], explored["heatmaps"]
    assert not differ(browser, image[0], maps[0].mean(axis=(0, 1)))
    assert differ(browser, image[0], maps[1, 1, 2])
    controls["phrase"].value = 1
    controls["layer"].value = 2
    controls["timestep"].value = 3
    assert not differ(browser, image[1], maps[1, 1, 2])
    assert "edema &lt;mild&gt;" in browser.result.data
    controls["study"].value = "study b"
    assert not differ(browser, image[2], maps[2, 1, 2])  # layer and timestep stay
    assert "alt='Attention for pneumonia'" in browser.result.data


def test_attention_explorer_asks_only_for_the_map_it_shows(explored: dict):
    maps, asked = explored.pop("heatmaps"), []

    def heatmap(i: int, layer: int, t: int) -> np.ndarray:
        asked.append((i, layer, t))
        return maps[i, layer, t]

    controls = controls_of(widgets.attention_explorer(plots.explored(**explored, heatmaps=heatmap), 64))
    assert [name for name, _ in controls["layer"].options] == ["down", "up"]
    controls["timestep"].value = 2
    controls["study"].value = "study b"
    assert asked == [(0, 0, 0), (0, 0, 2), (2, 0, 2)]


def test_attention_explorer_says_what_does_not_fit(explored: dict):
    with pytest.raises(ValueError, match="3 images but 2 phrases"):
        plots.explored(**(explored | {"phrases": ["one", "two"]}))
    with pytest.raises(ValueError, match="1 layers"):
        plots.explored(**(explored | {"layers": ["one"]}))


@pytest.fixture
def studies() -> list[Study]:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    found = Finding("Edema", "mild edema", boxes=(Box(4, 4, 8, 8),))
    ruled_out = Finding("Pneumothorax", "no pneumothorax", present=False)
    common = {"source": "s", "split": "test", "size": (32, 32)}
    return [
        Study("a", "p", report="Normal & clear, no pneumothorax.", findings=(ruled_out,), array=images[0], **common),
        Study("b", "p", report="Mild edema.\nNo pneumothorax.", findings=(found, ruled_out), array=images[1], **common),
        Study("c", "q", report="", array=None, **common),
    ]


def test_study_browser_shows_image_places_and_words(studies: list[Study]):
    browser = widgets.study_browser(studies, size=96)
    controls = controls_of(browser)
    assert [value for _, value in controls["finding"].options] == ["any", "Edema", "no finding"]
    assert not differ(browser, plots.study_picture(studies[0], 96).image, size=96)
    assert "Normal &amp; clear, <i>no pneumothorax</i>." in browser.result.data
    controls["finding"].value = "Edema"
    assert controls["study"].value == 1
    marked = pixels(browser)
    assert 'title="Edema">Mild edema</span>' in browser.result.data
    controls["outlines and marked words"].value = False
    assert np.abs(pixels(browser) - marked).mean() > 1
    assert "<span" not in browser.result.data


def test_study_browser_survives_an_unreadable_image(studies: list[Study]):
    browser = widgets.study_browser(studies, size=96)
    controls_of(browser)["study"].value = 2
    assert "study c has neither pixels nor a file" in browser.result.data
    with pytest.raises(ValueError, match="no study"):
        widgets.study_browser([])


def kernel(allow_stdin: bool) -> SimpleNamespace:
    request = {"content": {"allow_stdin": allow_stdin}}
    return SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda channel: request))


@pytest.mark.parametrize(
    ("shell", "expected"),
    [
        (None, False),  # plain Python
        (SimpleNamespace(), False),  # a terminal IPython: no kernel
        (kernel(allow_stdin=True), True),  # JupyterLab
        (kernel(allow_stdin=False), False),  # papermill, nbclient, jupyter-book
    ],
)
def test_interactive_only_where_somebody_sits(shell, expected, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(widgets, "get_ipython", lambda: shell)
    assert widgets.interactive() is expected


def test_show_builds_only_what_it_displays(monkeypatch: pytest.MonkeyPatch):
    shown, built = [], []

    def build(what: str) -> str:
        built.append(what)
        return what

    monkeypatch.setattr(widgets, "display", shown.append)
    monkeypatch.setattr(widgets, "interactive", lambda: False)
    widgets.show(lambda: build("widget"), lambda: build("figure"))
    monkeypatch.setattr(widgets, "interactive", lambda: True)
    widgets.show(lambda: build("widget"), "figure")
    assert shown == built == ["figure", "widget"]
