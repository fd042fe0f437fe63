"""Controls for a live notebook: the figures of `chestxai.plots` with a kernel behind them.

A widget is a picture (PNG) and a few controls; nothing is computed until a choice asks for it. Widgets only work in a
live JupyterLab. Notebooks that run in batch, and the pages made of them, show the static counterpart
(`plots.explorer_static`, `plots.study_static`), so that no widget state is saved: see `show`.
"""

from __future__ import annotations

import html
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import ipywidgets
import numpy as np
from IPython import get_ipython
from IPython.display import display
from PIL import Image

from chestxai import plots
from chestxai.runs import InputError
from chestxai.studies import FINDINGS, Study

#: A heatmap when it is asked for: (entry, layer, timestep), all counted from 0 -> float ``(h, w)``.
Heatmaps = Callable[[int, int, int], np.ndarray]
_LOOK = {"layout": ipywidgets.Layout(width="360px"), "style": {"description_width": "70px"}}


def interactive() -> bool:
    """Whether widgets would work: a person sits at this kernel.

    False outside a kernel, when ``CHESTXAI_BATCH`` or ``PAPERMILL`` is set (to anything but ``0`` or nothing), and
    when the front end takes no input, as nbclient, papermill and jupyter-book declare.
    """
    if any(os.environ.get(name, "0") not in ("", "0") for name in ("CHESTXAI_BATCH", "PAPERMILL")):
        return False
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return False
    request = kernel.get_parent("shell") or {}
    return bool(request.get("content", {}).get("allow_stdin", True))


def show(widget: object | Callable[[], object], static: object | Callable[[], object]) -> None:
    """Display one of two objects.

    Args:
        widget: For a live notebook; a function is called only if its result is displayed.
        static: For every other place; likewise.
    """
    chosen = widget if interactive() else static
    display(chosen() if callable(chosen) else chosen)


class Browser(ipywidgets.VBox):
    """Controls above a picture with text beside it.

    Args:
        controls: Widgets by name, laid out in two columns.
        draw: Makes picture and text (HTML) from the present values of the controls.
        width: Width in pixels of the picture.
        on: Names of the controls whose change redraws; the others only change what these offer.

    Attributes:
        controls: The same widgets.
        picture: The image.
        text: The text beside it.
    """

    def __init__(
        self,
        controls: dict[str, ipywidgets.Widget],
        draw: Callable[[], tuple[Image.Image, str]],
        width: int,
        on: Sequence[str],
    ) -> None:
        self.controls, self._draw = controls, draw
        self.picture = ipywidgets.Image(format="png", width=width)
        self.text = ipywidgets.HTML(layout=ipywidgets.Layout(max_width="420px", margin="0 0 0 20px"))
        items, half = list(controls.values()), -(-len(controls) // 2)
        columns = [ipywidgets.VBox(items[:half]), ipywidgets.VBox(items[half:])]
        super().__init__([ipywidgets.HBox(columns), ipywidgets.HBox([self.picture, self.text])])
        for name in on:
            controls[name].observe(lambda _: self.redraw(), "value")
        self.redraw()

    def redraw(self) -> None:
        """Draw picture and text for the present values of the controls."""
        picture, self.text.value = self._draw()
        buffer = io.BytesIO()
        picture.save(buffer, "png")
        self.picture.value = buffer.getvalue()


def attention_explorer(
    images: np.ndarray | Sequence[np.ndarray],
    heatmaps: np.ndarray | Heatmaps,
    titles: Sequence[str],
    phrases: Sequence[str],
    layers: Sequence[str],
    timesteps: Sequence[int],
    masks: Sequence[np.ndarray | None] | None = None,
    size: int = 400,
) -> Browser:
    """Choose a study, a phrase of it, a layer and a timestep; see where the model looks.

    Args:
        images, heatmaps, phrases, layers, timesteps, masks: As in `plots.explored`.
        titles: Names of the studies; entries with equal titles are one study.
        size: Width in pixels of the picture.

    Returns:
        A widget with the controls study, phrase, layer and timestep.
    """
    pictures, heatmap, names, times = plots.explored(images, heatmaps, titles, phrases, layers, timesteps, masks)

    def phrases_of(title: str) -> list[tuple[str, int]]:
        return [(phrase, i) for i, phrase in enumerate(phrases) if titles[i] == title]

    study = ipywidgets.Dropdown(options=list(dict.fromkeys(titles)), description="Study", **_LOOK)
    phrase = ipywidgets.Dropdown(options=phrases_of(titles[0]), description="Phrase", **_LOOK)
    layer = ipywidgets.Dropdown(options=[(n, k) for k, n in enumerate(names)], description="Layer", **_LOOK)
    options = {"options": [(t, k) for k, t in enumerate(times)], "continuous_update": isinstance(heatmaps, np.ndarray)}
    time = ipywidgets.SelectionSlider(description="Timestep", **options, **_LOOK)

    def draw() -> tuple[Image.Image, str]:
        i = phrase.value
        picture = replace(pictures[i], heatmap=heatmap(i, layer.value, time.value))
        text = (
            f"<p style='line-height:1.5'>“{html.escape(phrases[i])}”<br>{html.escape(titles[i])}</p>"
            "<p style='line-height:1.5'>Bright: much attention, each map by its own minimum and maximum."
            + ("<br>White outline: the finding’s true place.</p>" if picture.outlines else "</p>")
        )
        return plots.draw(picture, size), text

    def change_study(change: dict) -> None:
        phrase.options = phrases_of(change["new"])  # sets its value too, which redraws

    study.observe(change_study, "value")
    controls = {"study": study, "phrase": phrase, "layer": layer, "timestep": time}
    return Browser(controls, draw, size, on=("phrase", "layer", "timestep"))


def study_browser(studies: Sequence[Study], size: int = 400) -> Browser:
    """Choose a finding and a study; see its image with the findings outlined, and its report with their words marked.

    Args:
        studies: Any number.
        size: Width in pixels of the picture.

    Returns:
        A widget with the controls finding ("any" at first), study, and marks (outlines and marked words or none).
    """
    if not studies:
        raise InputError("there is no study to show")
    findings = [{f.name for f in study.present()} for study in studies]
    entries = {"any": list(range(len(studies)))}
    entries |= {name: [i for i, present in enumerate(findings) if name in present] for name in FINDINGS}
    entries["no finding"] = [i for i, present in enumerate(findings) if not present]

    def studies_of(name: str) -> list[tuple[str, int]]:
        return [(studies[i].id, i) for i in entries[name]]

    options = [(f"{name} ({len(some)})", name) for name, some in entries.items() if some]
    finding = ipywidgets.Dropdown(options=options, description="Finding", **_LOOK)
    study = ipywidgets.Dropdown(options=studies_of("any"), description="Study", **_LOOK)
    marks = ipywidgets.Checkbox(value=True, description="outlines and marked words", indent=False)

    def draw() -> tuple[Image.Image, str]:
        chosen = studies[study.value]
        try:
            picture = plots.study_picture(chosen, size)
        except InputError as error:
            return Image.new("L", (size, size), 40), f"<p>{html.escape(str(error))}</p>"
        return plots.draw(picture if marks.value else replace(picture, outlines=()), size), plots.report_html(chosen, marks.value)

    def change_finding(change: dict) -> None:
        study.options = studies_of(change["new"])

    finding.observe(change_finding, "value")
    return Browser({"finding": finding, "study": study, "marks": marks}, draw, size, on=("study", "marks"))
