"""Running the book: papermill over the graph of notebooks, for a grid of variants and seeds, on dask.distributed.

What is finished and unchanged is skipped, what has changed runs again with all that depends on it, and a failure stops
only what needs its result. Every executed notebook is kept; `chestxai.book` publishes those very executions.
"""
# ruff: noqa: F401

from chestxai.batch.commands import add_options, main, planned
from chestxai.batch.execute import Outcome, execute, run, summary
from chestxai.batch.graph import BOXES, CHAPTERS, IMAGES, NOTEBOOKS, Cell, Chapter, Node, plan
