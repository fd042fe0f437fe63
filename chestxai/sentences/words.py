"""Building blocks: verbs chosen by intervals, plurals and lists."""

import math
from collections.abc import Iterable

from chestxai.stats import Interval

_VERBS = ("does not clearly differ from", "is clearly higher than", "is clearly lower than")


def direction(difference: Interval) -> int:
    """1 if the interval lies above zero, −1 if it lies below, else 0 (also for NaN bounds)."""
    return int(difference.low > 0) - int(difference.high < 0)


def verb(difference: Interval, higher: str = _VERBS[1], lower: str = _VERBS[2], unclear: str = _VERBS[0]) -> str:
    """``higher``, ``lower`` or ``unclear``, by the interval of ``difference``."""
    return (unclear, higher, lower)[direction(difference)]


def independent(a: Interval | float, b: Interval | float) -> Interval:
    """Difference ``a − b`` of independent estimates, its interval from both (Zou & Donner 2008); or NaN.

    Cautious where the two are positively correlated.
    """
    a, b = (x if isinstance(x, Interval) else Interval(x, math.nan, math.nan) for x in (a, b))
    d = a.estimate - b.estimate
    below, above = (a.estimate - a.low, b.high - b.estimate), (a.high - a.estimate, b.estimate - b.low)
    return Interval(d, d - math.hypot(*below), d + math.hypot(*above))


def escaped(text: object) -> str:
    """Text from data, on one line, that shows as it is in Markdown and HTML: no markup, no hidden characters."""
    line = filter(str.isprintable, " ".join(str(text).split()))
    return "".join(c if c.isalnum() or c in " .,;%" else f"&#{ord(c)};" for c in line)


def counted(n: int, noun: str) -> str:
    """``n`` with its ``noun``: "1 finding", "2,000 findings"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listed(items: Iterable[object]) -> str:
    """``items`` as "a", "a and b" or "a, b and c"."""
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last


def bullets(lines: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)
