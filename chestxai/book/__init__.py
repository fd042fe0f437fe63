"""The published pages (`pages`), and what keeps credentialed data off them (`guard`, `reading`)."""

from chestxai.book.pages import BUILD, SOURCES, assemble, build, contents, data_cards, main, published, refuse, results

__all__ = ["BUILD", "SOURCES", "assemble", "build", "contents", "data_cards", "main", "published", "refuse", "results"]
