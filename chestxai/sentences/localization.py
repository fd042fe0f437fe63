"""Chapters 3 to 5: whether maps point at findings, and what a score can see."""

from collections.abc import Mapping, Sequence

import pandas as pd

from chestxai.localization import LABELS
from chestxai.profiles import StatisticsSettings
from chestxai.sentences.words import bullets, counted, verb
from chestxai.sides import side_score
from chestxai.stats import Interval, bootstrap_ci


def against(name: str, differences: Mapping[str, Interval], score: str = "AUC-ROC") -> str:
    """The ``score`` of variant ``name`` minus that of chance, the location prior …: ``differences`` by reference."""
    return bullets(f"The {score} of `{name}` {verb(d)} that of {ref}: {d:+.3f}." for ref, d in differences.items())


def looks(name: str, rows: pd.DataFrame, settings: StatisticsSettings) -> str:
    """Whether a variant passes each test of the endpoint, and so points: bullets, and one sentence.

    Args:
        name: of the variant.
        rows: of ``grounding.csv`` at one step, with ``chance_`` columns.
        settings: endpoint and resamples.
    """
    lines, passed = [], []
    for column in settings.endpoint:
        part = rows[rows[column].notna()]
        if part.empty:
            lines.append(f"{LABELS[column]}: no phrase can be tested")
            passed.append(False)
            continue
        interval = bootstrap_ci(part[column], part["patient"], n=settings.resamples)
        chance = float(part[f"chance_{column}"].mean())
        passed.append(interval.low > chance)
        did = "above" if passed[-1] else "below" if interval.high < chance else "not clearly above"
        lines.append(
            f"{LABELS[column]}: {interval} ({counted(len(part), 'phrase')}), {did} chance, which is {chance:g}"
        )
    verdict = "points: image and word both matter" if all(passed) else "does not pass every test of the endpoint"
    return bullets([*lines, f"So `{name}` {verdict}."])


def sides(tables: Mapping[str, pd.DataFrame], resamples: int) -> str:
    """Whether maps lie on the side that the report names: ``tables`` of `chestxai.sides` by variant, ``resamples``."""
    lines = []
    for name, table in tables.items():
        own, swapped = (side_score(table, column, resamples) for column in ("mirror", "swap_mirror"))
        did = "above" if own.low > 0.5 else "below" if own.high < 0.5 else "not clearly above"
        lines.append(f"`{name}`: {own}, {did} chance, which is 0.5; on images of other patients {swapped}")
    if not lines:
        return "No report of these studies places a finding on one side."
    count = f"{counted(len(table), 'finding')} of {counted(table['patient'].nunique(), 'patient')}"
    return f"On {count} that a report places on one side, the map prefers that side in\n\n{bullets(lines)}"


def parts(targets: int, box_ious: Sequence[float], outside: int) -> str:
    """What box scores miss on ``targets`` of several parts.

    ``box_ious``: box IoU of each of those, taken as its own map; ``outside``: in how many the box's centre is outside.
    """
    if not len(box_ious):
        return "**What they miss.** The shape of a finding, and findings of several parts; here there are none."
    return (
        f"**What they miss.** {len(box_ious)} of {counted(targets, 'target')} have several parts. Taken as maps, even "
        f"they have a mean box IoU of {sum(box_ious) / len(box_ious):.2f}, because the box of the largest part is not "
        f"the box of all. In {outside} of them the box's centre is outside the target."
    )


def fooled(skill: pd.DataFrame, constant: Mapping[str, float], share: float = 0.9, free: float = 0.25) -> str:
    """Which measures accept which wrong maps.

    Args:
        skill: measures × wrong maps, 0 for a constant map and 1 for the perfect one.
        constant: score of a constant map by measure, for measures of which more is better.
        share, free: skill from which on a map is accepted, and constant score from which on a measure is named.
    """
    accepted = {name: ", ".join(skill.index[skill[name] >= share]) for name in skill}
    named = bullets(f"*{name}* by {measures}" for name, measures in accepted.items() if measures)
    rejected = ", ".join(f"*{name}*" for name, measures in accepted.items() if not measures)
    generous = ", ".join(name for name, score in constant.items() if score >= free)
    text = [named and f"These maps have {share:.0%} or more of the perfect map's skill:\n\n{named}"]
    text += [rejected and f"No measure accepts {rejected}."]
    return "\n\n".join(filter(None, [*text, generous and f"A constant map scores {free:g} or more by {generous}."]))
