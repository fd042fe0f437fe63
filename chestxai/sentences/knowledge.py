"""Chapter 11: what the model knows."""

from collections.abc import Mapping

import pandas as pd

from chestxai.localization import LABELS
from chestxai.sentences.words import Templates, bullets, direction
from chestxai.stats import Interval

_say = Templates(__file__)


def robust(losses: pd.DataFrame, reach: float = 3) -> str:
    """Whether readers lose more than ``reach`` points of macro-F1; ``losses``: a row of `knowledge.robustness` each."""
    parts = []
    for row in losses.itertuples():
        lost, over = (Interval(*(x - by for x in (row.lost, row.lost_low, row.lost_high))) for by in (0, reach))
        parts.append(_say("reader", row=row, over=over, reach=reach, lost=lost))
    return _say("robust", readers="; ".join(parts))


def images(levels: Mapping[str, Interval], gaps: Mapping[str, Interval]) -> str:
    """Whether variants tell findings apart: macro AUC (``levels``), and the lead of the classifier (``gaps``)."""
    return bullets(
        _say("images", name=name, tells=level.low > 0.5, level=level, gap=gaps[name]) for name, level in levels.items()
    )


def answer(
    knows: Mapping[str, Mapping[str, Interval]], points: Mapping[str, Mapping[str, Interval]], reference: str
) -> str:
    """Whether variants know more than the ``reference`` variant, and point worse; differences are variant − reference.

    Args:
        knows: examination ("from the report") → variant → paired difference.
        points: variant → column of the endpoint → paired difference.
        reference: variant.
    """
    lines = []
    for name, pointed in points.items():
        more = [_say("knows", where=where, d=differences[name]) for where, differences in knows.items()]
        points_to = [_say("points", label=LABELS[column], d=d) for column, d in pointed.items()]
        signs = {direction(differences[name]) for differences in knows.values()}
        why = _say("lost" if -1 in signs else "gained" if 1 in signs else "neither")
        why = why if -1 in map(direction, pointed.values()) else ""
        lines.append(_say("answer", name=name, reference=reference, knows=more, points=points_to, why=why))
    return bullets(lines)
