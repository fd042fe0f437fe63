"""Controls for a live notebook: what `chestxai.plots` shows on a page, with a kernel behind it.

Nothing is computed until a choice asks for it. Notebooks that run in batch, and the pages made of them, show the static
counterpart (`plots.explorer_static`, `plots.study_static`), so that no widget state is saved: see `show`.
"""

import html
from collections.abc import Callable, Sequence
from dataclasses import replace

import ipywidgets
from IPython import get_ipython
from IPython.display import HTML, display

from chestxai import plots
from chestxai.runs import InputError
from chestxai.studies import FINDINGS, Study

_LOOK = {"layout": ipywidgets.Layout(width="360px"), "style": {"description_width": "70px"}}


def interactive() -> bool:
    """Whether widgets would work: a person sits at this kernel.

    Not so outside a kernel, or when the front end takes no input, as nbclient, papermill and jupyter-book declare.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    request = kernel and (kernel.get_parent("shell") or {})
    return kernel is not None and bool(request.get("content", {}).get("allow_stdin", True))


def show(widget: object | Callable[[], object], static: object | Callable[[], object]) -> None:
    """Display ``widget`` in a live notebook, else ``static``; a function is called only if its result is displayed."""
    chosen = widget if interactive() else static
    display(chosen() if callable(chosen) else chosen)


def attention_explorer(content: plots.Explored, size: int = 400) -> ipywidgets.interactive:
    """Choose a study, a phrase of it, a layer and a timestep; see where the model looks.

    The ``content`` is of `plots.explored`; entries with equal titles are one study. The picture below the controls is
    ``size`` pixels wide.
    """
    pictures, heatmap, titles, phrases, names, times = content

    def phrases_of(title: str) -> list[tuple[str, int]]:
        return [(phrase, i) for i, phrase in enumerate(phrases) if titles[i] == title]

    def draw(phrase: int, layer: int, timestep: int) -> HTML:
        picture = replace(pictures[phrase], heatmap=heatmap(phrase, layer, timestep))
        text = f"<p>“{html.escape(phrases[phrase])}”<br>{html.escape(titles[phrase])}</p>"
        text += "<p>Bright: much attention, each map by its own minimum and maximum."
        text += "<br>White outline: the finding’s true place.</p>" if picture.outlines else "</p>"
        return HTML(plots.picture_html(picture, text, f"Attention for {phrases[phrase]}", size))

    study = ipywidgets.Dropdown(options=list(dict.fromkeys(titles)), description="Study", **_LOOK)
    phrase = ipywidgets.Dropdown(options=phrases_of(titles[0]), description="Phrase", **_LOOK)
    layer = ipywidgets.Dropdown(options=[(n, k) for k, n in enumerate(names)], description="Layer", **_LOOK)
    options = {"options": [(t, k) for k, t in enumerate(times)], "continuous_update": times[0] == "all"}
    time = ipywidgets.SelectionSlider(description="Timestep", **options, **_LOOK)
    # New options set the value of phrase too, which redraws.
    study.observe(lambda change: setattr(phrase, "options", phrases_of(change["new"])), "value")
    return _browser(draw, study, phrase=phrase, layer=layer, timestep=time)


def study_browser(studies: Sequence[Study], size: int = 400) -> ipywidgets.interactive:
    """Choose one of ``studies`` by a finding; see its image, ``size`` pixels wide, and its report.

    A check box shows or hides the outlines of the findings and the marks of their words.
    """
    if not studies:
        raise InputError("there is no study to show")
    findings = [{finding.name for finding in study.present()} or {"no finding"} for study in studies]
    entries = {"any": list(range(len(studies)))}
    entries |= {n: [i for i, present in enumerate(findings) if n in present] for n in (*FINDINGS, "no finding")}

    def studies_of(name: str) -> list[tuple[str, int]]:
        return [(studies[i].id, i) for i in entries[name]]

    def draw(study: int, marks: bool) -> HTML:
        try:
            return HTML(plots.study_html(studies[study], size, marks))
        except InputError as error:
            return HTML(f"<p>{html.escape(str(error))}</p>")

    options = [(f"{name} ({len(some)})", name) for name, some in entries.items() if some]
    finding = ipywidgets.Dropdown(options=options, description="Finding", **_LOOK)
    study = ipywidgets.Dropdown(options=studies_of("any"), description="Study", **_LOOK)
    marks = ipywidgets.Checkbox(value=True, description="outlines and marked words", indent=False)
    finding.observe(lambda change: setattr(study, "options", studies_of(change["new"])), "value")
    return _browser(draw, finding, study=study, marks=marks)


def _browser(
    draw: Callable[..., HTML], first: ipywidgets.Widget, **controls: ipywidgets.Widget
) -> ipywidgets.interactive:
    """Draw anew when one of ``controls`` changes; ``first`` stands above them and only changes what they offer."""
    widget = ipywidgets.interactive(draw, **controls)
    widget.children = (first, *widget.children)
    return widget
