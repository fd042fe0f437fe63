"""Building blocks: templates whose words data choose, plurals and lists.

The words of a module are in the YAML file beside it. A template is one of `str.format`, and its fields may also choose:
an interval one of ``{d:higher|lower|unclear}``, by whether it excludes zero; anything else of ``{found:yes|no}``.
``{n:# map}`` is `counted`, ``{names:&}`` is `listed`.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from string import Formatter

from chestxai.runs import read_yaml
from chestxai.stats import Interval

_VERBS = ("is clearly higher than", "is clearly lower than", "does not clearly differ from")


class _Writer(Formatter):
    def format_field(self, value: object, spec: str) -> str:
        if "|" in spec:
            choices = spec.split("|")
            return verb(value, *choices) if isinstance(value, Interval) else choices[not value]
        if spec.startswith("# "):
            return counted(value, spec[2:])
        return listed(value) if spec == "&" else super().format_field(value, spec)


def filled(template: str, **values: object) -> str:
    """A ``template`` with ``values`` in its fields."""
    return _Writer().format(template, **values)


class Templates(dict):
    """The YAML file beside a module (its ``__file__``); called with the name of a template, it is `filled`."""

    def __init__(self, module: str) -> None:
        super().__init__(read_yaml(Path(module).with_suffix(".yaml")))

    def __call__(self, template: str, **values: object) -> str:
        return filled(self[template], **values)


def direction(difference: Interval) -> int:
    """1 if the interval lies above zero, −1 if it lies below, else 0 (also for NaN bounds)."""
    return int(difference.low > 0) - int(difference.high < 0)


def verb(difference: Interval, higher: str = _VERBS[0], lower: str = _VERBS[1], unclear: str = _VERBS[2]) -> str:
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
    """``items`` as "a", "a and b" or "a, b and c"; "" for none."""
    *first, last = [*map(str, items)] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def bullets(lines: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)
