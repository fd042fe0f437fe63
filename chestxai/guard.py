"""`chestxai.book.guard` under its short name."""

from chestxai.book.guard import AGGREGATE, COMMON, Leak, Private, closed, leaks, of, private, site_leaks, withhold
from chestxai.book.reading import GRID

__all__ = [
    "AGGREGATE", "COMMON", "GRID", "Leak", "Private", "closed", "leaks", "of", "private", "site_leaks", "withhold",
]  # fmt: skip
