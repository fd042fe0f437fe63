"""Chapters 3 to 5: whether maps point at findings, and what a score can see."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from chestxai.localization import LABELS
from chestxai.profiles import StatisticsSettings
from chestxai.sentences.words import Templates, bullets, verb
from chestxai.sides import side_score
from chestxai.stats import Interval, bootstrap_ci

_say = Templates(__file__)


def against(name: str, differences: Mapping[str, Interval], score: str = "AUC-ROC") -> str:
    """The ``score`` of variant ``name`` minus that of chance, the location prior …: ``differences`` by reference."""
    return bullets(f"The {score} of `{name}` {verb(d)} that of {ref}: {d:+.3f}." for ref, d in differences.items())


def _above(interval: Interval, chance: float) -> str:
    return "above" if interval.low > chance else "below" if interval.high < chance else "not clearly above"


def tested(rows: pd.DataFrame, settings: StatisticsSettings) -> dict[str, bool]:
    """The tests of the endpoint in words, and whether each is passed; ``rows`` and ``settings`` as in `looks`."""
    found = {}
    for column in settings.endpoint:
        label, part = LABELS[column], rows[rows[column].notna()]
        if part.empty:
            found[_say("untested", label=label)] = False
            continue
        interval = bootstrap_ci(part[column], part["patient"], n=settings.resamples)
        chance = float(part[f"chance_{column}"].mean())
        about = {"label": label, "interval": interval, "chance": chance}
        about |= {"phrases": len(part), "images": part["study"].nunique()}
        found[_say("tested", above=_above(interval, chance), **about)] = interval.low > chance
    return found


def looks(name: str, rows: pd.DataFrame, settings: StatisticsSettings) -> str:
    """Whether variant ``name`` passes each test of the endpoint, and so points: bullets, and one sentence.

    ``rows`` are of ``grounding.csv`` at one step, with ``chance_`` columns; ``settings``: endpoint and resamples.
    """
    found = tested(rows, settings)
    return bullets([*found, _say("looks", name=name, passed=all(found.values()))])


def sides(tables: Mapping[str, pd.DataFrame], resamples: int) -> str:
    """Whether maps lie on the side that the report names: ``tables`` of `chestxai.sides` by variant, ``resamples``."""
    lines = []
    for name, table in tables.items():
        own, swapped = (side_score(table, column, resamples) for column in ("mirror", "swap_mirror"))
        if math.isfinite(own.estimate):
            tested = swapped if math.isfinite(swapped.estimate) else "it cannot be tested"
            lines.append(_say("side", name=name, own=own, above=_above(own, 0.5), swapped=tested))
    if not lines:
        return _say("no sides")
    return f"{_say('sides', findings=len(table), patients=table['patient'].nunique())}\n\n{bullets(lines)}"


def follows(tables: Mapping[str, pd.DataFrame], resamples: int) -> str:
    """Whether maps go with a moved finding: ``tables`` by variant, of phrases that have ``moved``; ``resamples``."""
    lines, moving = [], []
    for name, table in tables.items():
        gone, came = (bootstrap_ci(table[c], table["patient"], n=resamples) for c in ("removed", "moved"))
        moving += [f"`{name}`"] if min(gone.low, came.low) > 0 else []
        lines.append(_say("moved", name=name, gone=gone, came=came))
    return f"{bullets(lines)}\n\n{_say('follows', moving=moving)}"


def parts(targets: int, box_ious: Sequence[float], outside: int) -> str:
    """What box scores miss on ``targets`` of several parts.

    ``box_ious``: box IoU of each of those, taken as its own map; ``outside``: in how many the box's centre is outside.
    """
    several = len(box_ious)
    iou = sum(box_ious) / max(1, several)
    return _say("parts" if several else "no parts", several=several, targets=targets, iou=iou, outside=outside)


def fooled(skill: pd.DataFrame, constant: Mapping[str, float], share: float = 0.9, free: float = 0.25) -> str:
    """Which measures accept which wrong maps: those with a skill of at least ``share``.

    ``skill``: measures × wrong maps, 0 for a constant map and 1 for the perfect one. ``constant``: score of a constant
    map by measure, for measures of which more is better; named from ``free`` on.
    """
    accepted = {name: ", ".join(skill.index[skill[name] >= share]) for name in skill}
    named = bullets(f"*{name}* by {measures}" for name, measures in accepted.items() if measures)
    rejected = ", ".join(f"*{name}*" for name, measures in accepted.items() if not measures)
    generous = ", ".join(name for name, score in constant.items() if score >= free)
    texts = [_say("accepted", share=share), named] if named else []
    texts.append(_say("rejected", names=rejected))
    return "\n\n".join(texts + ([_say("generous", free=free, names=generous)] if generous else []))
