"""The published pages (`pages`, `chapters`), and what keeps credentialed data off them (`guard`, `reading`)."""

# ruff: noqa: F401
from chestxai.book.chapters import published
from chestxai.book.pages import BUILD, PAGES, SOURCES, assemble, build, config, data_cards, main, refuse, results
