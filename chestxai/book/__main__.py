"""``python -m chestxai.book``."""

from chestxai import runs
from chestxai.book.pages import main

runs.command(main)
