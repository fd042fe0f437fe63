"""Figures of the book: small, readable on the published page without touching anything.

`pictures` and `grids`: radiographs with heatmaps and outlines. `charts`: tables of numbers, distributions, curves.
`comparisons`: forest charts and the trade-off plane, for any number of variants, the reference one first.
`explorers`: figures with controls that need no kernel (`chestxai.widgets` has those that do). `style`: what all share.
`page`: how a page shows them, with caption, words, data and controls that a keyboard reaches.
"""

# ruff: noqa: F401, I001
from chestxai.plots.charts import histogram, score_by_size, training_curves
from chestxai.plots.comparisons import METRICS, paired, recipes_plane, scores_by_finding, setting_curves, tradeoff
from chestxai.plots.explorers import Explored, explored, explorer_static, highlights, picture_html, report_html
from chestxai.plots.explorers import study_html, study_static
from chestxai.plots.grids import Grid, images, overlay, overlay_grid, overlays, study_sheet
from chestxai.plots.pictures import OPACITY, Picture, Scale, as_pictures, contact_sheet, draw, normalize, outline
from chestxai.plots.pictures import study_picture
from chestxai.plots.style import COLORS, FINDING_COLORS, REFERENCES, TEMPLATE, VARIANTS, WIDTH, Style
from chestxai.plots.style import express_options, log_axis, setup, variant_style, write_plotlyjs
