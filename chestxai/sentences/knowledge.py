"""Chapter 11: what the model knows."""

from collections.abc import Mapping

import pandas as pd

from chestxai.sentences.words import bullets, direction, verb
from chestxai.stats import Interval


def robust(losses: pd.DataFrame, reach: float = 3) -> str:
    """Whether readers lose more than ``reach`` points of macro-F1; ``losses``: a row of `knowledge.robustness` each."""
    parts = []
    for row in losses.itertuples():
        d = Interval(row.lost - reach, row.lost_low - reach, row.lost_high - reach)
        did = verb(d, "loses more than", "stays within", "does not clearly stay within")
        parts.append(f"`{row.reader}` {did} {reach:g} points ({Interval(row.lost, row.lost_low, row.lost_high):.1f})")
    return f"Under all formatting changes at once, {'; '.join(parts)}."


def images(levels: Mapping[str, Interval], gaps: Mapping[str, Interval]) -> str:
    """Whether variants tell findings apart: macro AUC (``levels``), and the lead of the classifier (``gaps``)."""
    lines = []
    for name, level in levels.items():
        tells = "tells findings apart" if level.low > 0.5 else "is not clearly better than chance"
        rival = verb(gaps[name], "does better", "does worse", "does not clearly differ from it")
        lines.append(f"`{name}` {tells}: macro AUC {level}. The classifier {rival}: {gaps[name]:+.3f}.")
    return bullets(lines)


def answer(knows: Mapping[str, Mapping[str, Interval]], points: Mapping[str, Interval], reference: str) -> str:
    """Whether variants know more than the ``reference`` variant, and point worse; differences are variant − reference.

    Args:
        knows: examination ("from the report") → variant → paired difference.
        points: variant → paired difference of a score of the maps, of which more is better.
        reference: variant.
    """
    lines = []
    for name, pointed in points.items():
        gained = {where: differences[name] for where, differences in knows.items()}
        for where, d in gained.items():
            knowing = verb(d, "knows more than", "knows less than", "does not clearly know more than")
            lines.append(f"**{where}**, `{name}` {knowing} `{reference}`: {d:+.3f}")
        signs, why = {direction(d) for d in gained.values()}, "a loss of knowledge does not explain that: none is seen"
        why = "it has lost knowledge, too" if -1 in signs else "it knows more all the same" if 1 in signs else why
        pointing = verb(pointed, "points better than", "points worse than", "does not clearly point worse than")
        ending = f"; {why}" if direction(pointed) < 0 else ""
        lines.append(f"**on the map**, `{name}` {pointing} `{reference}`: {pointed:+.3f}{ending}")
    return bullets(lines)
