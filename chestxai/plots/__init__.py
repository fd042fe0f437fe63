"""Figures of the book: plotly, small, readable on the published page without touching anything.

- `pictures`: radiographs with heatmaps and outlines, alone or in a grid.
- `charts`: tables of numbers, distributions, curves.
- `comparisons`: variants beside one another: forest charts and the trade-off plane.
- `explorers`: figures with controls that need no kernel. `chestxai.widgets` has their counterparts with one.
- `style`: colours, markers and dashes of variants, the template, and how notebooks show figures.

Figures that compare variants take any number of them, the reference one first.
"""

from chestxai.plots.charts import cooccurrence, histogram, layer_time, score_by_size, training_curves
from chestxai.plots.comparisons import METRICS, paired, scores_by_finding, tradeoff
from chestxai.plots.explorers import explored, explorer_static, highlights, report_html, study_static
from chestxai.plots.pictures import (
    OPACITY,
    Layout,
    Outline,
    Picture,
    Scale,
    contact_sheet,
    draw,
    grid,
    images,
    normalize,
    outline,
    overlay,
    overlay_grid,
    overlays,
    as_pictures,
    study_picture,
    study_sheet,
)
from chestxai.plots.style import (
    COLORS,
    FINDING_COLORS,
    REFERENCES,
    TEMPLATE,
    VARIANTS,
    WIDTH,
    Style,
    express_options,
    on_white,
    setup,
    variant_style,
    write_plotlyjs,
)

__all__ = [name for name in dir() if not name.startswith("_") and name not in ("charts", "comparisons", "explorers", "style")]
