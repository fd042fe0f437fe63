"""`chestxai.book.guard`, importable under this name, too."""

from chestxai.book.guard import AGGREGATE, COMMON, PATTERNS, Leak, Private, closed, leaks, of, private, site_leaks, withhold
from chestxai.book.reading import GRID

__all__ = [
    "AGGREGATE", "COMMON", "GRID", "PATTERNS", "Leak", "Private", "closed", "leaks", "of", "private", "site_leaks",
    "withhold",
]  # fmt: skip
