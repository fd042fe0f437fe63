"""Controls for a live notebook: the figures of `plots`, with a kernel behind them.

A widget is a picture (PNG drawn by Pillow) and a few controls; nothing is computed until a choice asks for it. Widgets
show in a live JupyterLab only. Notebooks that run in batch, and the pages made of them, get the static counterpart
(`plots.explorer_static`, `plots.study_static`), so that no widget state is saved: see `show`.
"""

from __future__ import annotations

import html
import io
import os
from collections.abc import Callable, Sequence

import ipywidgets
import numpy as np
from IPython import get_ipython
from IPython.display import display
from PIL import Image

from chestxai import plots
from chestxai.studies import Study

#: A heatmap when it is asked for: (entry, layer, timestep), all counted from 0 -> float ``(h, w)``.
Heatmaps = Callable[[int, int, int], np.ndarray]


def interactive() -> bool:
    """Whether a person sits at this kernel: widgets would work.

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
    """Display ``widget`` in a live notebook, else ``static``; a function is called only if its result is displayed."""
    chosen = widget if interactive() else static
    display(chosen() if callable(chosen) else chosen)


class Browser(ipywidgets.VBox):
    """Controls above a picture; ``controls`` by name, ``picture`` the image, ``text`` what is written beside it.

    ``on`` names the controls whose change draws anew; the others only change what these offer.
    """

    def __init__(
        self,
        controls: dict[str, ipywidgets.Widget],
        draw: Callable[[], tuple[Image.Image, str]],
        width: int,
        on: Sequence[str],
    ) -> None:
        self.controls = controls
        self.picture = ipywidgets.Image(format="png", width=width)
        self.text = ipywidgets.HTML(layout=ipywidgets.Layout(max_width="420px", margin="0 0 0 20px"))
        self._draw = draw
        super().__init__([ipywidgets.HBox(_rows(controls)), ipywidgets.HBox([self.picture, self.text])])
        for name in on:
            controls[name].observe(lambda _: self.redraw(), "value")
        self.redraw()

    def redraw(self) -> None:
        """Draw the picture and the text of the controls' present values."""
        picture, text = self._draw()
        buffer = io.BytesIO()
        picture.save(buffer, "png")
        self.picture.value = buffer.getvalue()
        self.text.value = text


def _rows(controls: dict[str, ipywidgets.Widget]) -> list[ipywidgets.Widget]:
    """Two columns of controls."""
    items = list(controls.values())
    half = -(-len(items) // 2)
    return [ipywidgets.VBox(items[:half]), ipywidgets.VBox(items[half:])]


_WIDE = ipywidgets.Layout(width="360px")
_STYLE = {"description_width": "70px"}


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
        images: uint8 ``(n, H, W)``; one entry per phrase, so a study with two phrases comes twice.
        heatmaps: float ``(n, layers, timesteps, h, w)``, or a function that makes one map when it is asked for. Of an
            array, the means over layers and over timesteps can be chosen too.
        titles, phrases: n names of the studies (equal ones are one study) and the phrases that are grounded.
        masks: the targets to outline, or None.

    Returns:
        a widget; its ``controls`` are study, phrase, layer and timestep.
    """
    if callable(heatmaps):
        pictures = [np.asarray(image) for image in images]
        names, times = [str(layer) for layer in layers], [str(t) for t in timesteps]
        of, masks = heatmaps, list(masks) if masks is not None else [None] * len(pictures)
    else:
        pictures, maps, names, times, masks = plots.explored(
            images, heatmaps, titles, phrases, layers, timesteps, masks, means=True
        )

        def of(i: int, layer: int, t: int) -> np.ndarray:
            return maps[i, layer, t]

    for what, values in (("titles", titles), ("phrases", phrases), ("masks", masks)):
        if len(values) != len(pictures):
            raise ValueError(f"{len(pictures)} images but {len(values)} {what}")
    entries: dict[str, list[int]] = {}
    for i, title in enumerate(titles):
        entries.setdefault(title, []).append(i)

    def phrases_of(title: str) -> list[tuple[str, int]]:
        return [(phrases[i], i) for i in entries[title]]

    study = ipywidgets.Dropdown(options=list(entries), description="Study", layout=_WIDE, style=_STYLE)
    phrase = ipywidgets.Dropdown(options=phrases_of(titles[0]), description="Phrase", layout=_WIDE, style=_STYLE)
    layer = ipywidgets.Dropdown(
        options=[(name, k) for k, name in enumerate(names)], description="Layer", layout=_WIDE, style=_STYLE
    )
    time = ipywidgets.SelectionSlider(
        options=[(t, k) for k, t in enumerate(times)], description="Timestep", layout=_WIDE, style=_STYLE,
        continuous_update=not callable(heatmaps),
    )  # fmt: skip

    def draw() -> tuple[Image.Image, str]:
        i = phrase.value
        heatmap = of(i, layer.value, time.value)
        picture = plots.compose(pictures[i], heatmap, masks[i], size=size)
        text = (
            f"<p style='line-height:1.5'>“{html.escape(phrases[i])}”<br>{html.escape(titles[i])}</p>"
            "<p style='line-height:1.5'>Bright: much attention, each map by its own minimum and maximum."
            + ("<br>White outline: the finding’s true place.</p>" if masks[i] is not None else "</p>")
        )
        return picture, text

    def change_study(change: dict) -> None:
        phrase.options = phrases_of(change["new"])  # sets its value too, which draws

    study.observe(change_study, "value")
    return Browser(
        {"study": study, "phrase": phrase, "layer": layer, "timestep": time},
        draw,
        size,
        on=("phrase", "layer", "timestep"),
    )


def study_browser(studies: Sequence[Study], size: int = 400) -> Browser:
    """Choose a finding and a study; see its image with the findings' places, and its report with their words marked.

    Returns:
        a widget; its ``controls`` are finding ("any" at first), study and marks (places and words marked or not).
    """
    if not studies:
        raise ValueError("there is no study to show")
    of: dict[str, list[int]] = {"any": list(range(len(studies)))}
    for name in plots.FINDINGS:
        of[name] = [i for i, s in enumerate(studies) if any(f.name == name for f in s.present())]
    of["no finding"] = [i for i, s in enumerate(studies) if not s.present()]

    def studies_of(name: str) -> list[tuple[str, int]]:
        return [(studies[i].id, i) for i in of[name]]

    finding = ipywidgets.Dropdown(
        options=[(f"{name} ({len(found)})", name) for name, found in of.items() if found],
        description="Finding", layout=_WIDE, style=_STYLE,
    )  # fmt: skip
    study = ipywidgets.Dropdown(options=studies_of("any"), description="Study", layout=_WIDE, style=_STYLE)
    marks = ipywidgets.Checkbox(value=True, description="show places and words", indent=False)

    def draw() -> tuple[Image.Image, str]:
        chosen = studies[study.value]
        try:
            image, boxes, masks = plots.targets(chosen, size)
        except ValueError as error:
            return Image.new("L", (size, size), 40), f"<p>{html.escape(str(error))}</p>"
        if not marks.value:
            return plots.compose(image, size=size), report_html(chosen, marks=False)
        exact = {name for name, _ in masks}
        picture = plots.compose(image, boxes=boxes, size=size, outlines=masks, hidden=exact)
        return picture, report_html(chosen)

    def change_finding(change: dict) -> None:
        study.options = studies_of(change["new"])

    finding.observe(change_finding, "value")
    return Browser({"finding": finding, "study": study, "marks": marks}, draw, size, on=("study", "marks"))


def report_html(study: Study, marks: bool = True) -> str:
    """The report as HTML: what is found underlined in its finding's colour, what is ruled out in italics."""
    parts = []
    for text, findings in plots.highlights(study.report.strip(), study.findings if marks else ()):
        escaped = html.escape(text).replace("\n", "<br>")
        present = list(dict.fromkeys(f.name for f in findings if f.present))
        if present:
            color = plots.on_white(plots.FINDING_COLORS.get(present[0], "#222222"))
            style = f"background:{color}33;border-bottom:3px solid {color};padding:0 2px"
            escaped = f'<span style="{style}" title="{html.escape(", ".join(present))}">{escaped}</span>'
        elif findings:
            escaped = f"<i>{escaped}</i>"
        parts.append(escaped)
    return f"<p style='line-height:1.6'>{''.join(parts)}</p>"
