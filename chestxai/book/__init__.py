"""The published pages (`pages`, `chapters`), and what keeps credentialed data off them (`guard`, `reading`)."""

from chestxai.book.chapters import published
from chestxai.book.pages import BUILD, PAGES, SOURCES, assemble, build, config, data_cards, main, refuse, results

__all__ = [
    "BUILD",
    "PAGES",
    "SOURCES",
    "assemble",
    "build",
    "config",
    "data_cards",
    "main",
    "published",
    "refuse",
    "results",
]
