"""Chapter 8: the trade-off."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from chestxai.localization import LABELS, LOWER_IS_BETTER
from chestxai.profiles import Profile
from chestxai.sentences.words import bullets, counted, direction, escaped, independent, listed, verb
from chestxai.stats import Difference, Interval
from chestxai.tradeoff import Comparison


def seeds(n: int) -> str:
    """What the intervals cover with ``n`` seeds."""
    if n == 1:
        return "One seed: the intervals cover *new patients* (and new images of the same model), not new seeds."
    few = " So few seeds make wide intervals and large detectable differences." if n < 5 else ""
    return (
        f"Mean over {n} seeds. The intervals cover *new seeds and new patients*, crossed, as all seeds are scored on "
        f"the same patients. Averaging the intervals of single seeds would ignore that seeds differ.{few}"
    )


def answer(points: Sequence[Comparison], fid: Mapping[str, Difference]) -> str:
    """The book's one answer: is the trade-off of the paper reproduced in this setting?

    The claim has two parts, reference against other variant: the other one generates more real images (lower FID), and
    it points worse. Pointing is judged by the declared endpoint alone: worse if any of its columns clearly falls and
    none clearly rises.

    Args:
        points: reference minus variant for every column of the endpoint and every other variant.
        fid: variant → FID of the reference minus that of the variant.
    """
    lines = []
    for name in dict.fromkeys(c.b for c in points):
        own = [c for c in points if c.b == name]
        signs = {direction(c) for c in own}
        gains = direction(fid[name]) if name in fid else 0
        shown = "; ".join(f"{LABELS.get(c.metric, c.metric)} {c.a} minus {c.b}: {c:+.3f}" for c in own)
        if signs == {0}:
            pointing, verdict = "does not clearly point better or worse than", "not reproduced"
        elif signs <= {0, 1}:
            pointing, verdict = "points worse than", "reproduced" if gains > 0 else "half reproduced"
        elif signs <= {0, -1}:
            pointing, verdict = "points better than", "contradicted"
        else:
            pointing, verdict = (
                "points better by one test and worse by the other than",
                "neither reproduced nor contradicted",
            )
        fidelity = verb(fid[name], "its images are more real", "its images are less real", "its images are as real")
        text = f"**{verdict.capitalize()} in this setting**: `{name}` {pointing} `{own[0].a}` ({shown}), and {fidelity}"
        lines.append(f"{text} (FID {own[0].a} minus {name}: {fid[name]:+.2f}).")
    return bullets(lines)


def findings(each: pd.DataFrame) -> str:
    """On which findings variants differ; ``each`` is the table of `tradeoff.compare_findings`."""
    lines = []
    for row in each[each["holm"] <= 0.05].itertuples():
        c = row.difference
        best, other = (c.a, c.b) if (c.estimate > 0) != (c.metric in LOWER_IS_BETTER) else (c.b, c.a)
        shown = f"{Difference(c.estimate, c.low, c.high, row.holm):+.3f}".replace(", p", ", adjusted p")
        lines.append(f"{escaped(row.Index)}: `{best}` is better than `{other}`; {c.a} minus {c.b} is {shown}")
    rest = each[each["holm"] > 0.05]
    small = sum(not row.detectable <= abs(row.difference.estimate) for row in rest.itertuples())
    text = f"After Holm's adjustment:\n\n{bullets(lines)}\n\n" if lines else ""
    text += f"No difference after Holm's adjustment in {len(rest)} of {counted(len(each), 'comparison')}"
    return text + (f"; in {small} of them it is smaller than is detectable, which proves no absence." if small else ".")


def coverage(covered: Mapping[int, Interval], trials: int, used: Sequence[int]) -> str:
    """Whether the book's 95 % intervals hold the truth as often as they promise.

    Args:
        covered: number of patients → share of intervals that held the truth (`stats.coverage`).
        trials: simulated data sets of each size.
        used: number of patients of each finding.
    """
    error = max(c.high - c.low for c in covered.values()) / 2
    good = [n for n in covered if all(0.93 <= c.estimate <= 0.97 for k, c in covered.items() if k >= n)]
    early = [n for n in covered if not good or n < min(good)]
    few, open_ = [n for n in early if covered[n].high < 0.93], [n for n in early if covered[n].high >= 0.93]
    size = f"{min(used)} to {max(used)}" if min(used) < max(used) else min(used)
    text = "Not even with the most patients did 93 to 97 % of the intervals hold the truth."
    if error > 0.02:
        text = "That is too little to tell 93 % from 97 %."
    elif good:
        text = f"From {min(good)} patients on, 93 to 97 % of the intervals held the truth."
    text += f" With {listed(few)} patients, fewer did." if few else ""
    text += f" With {listed(open_)} patients the simulation cannot tell." if open_ and error <= 0.02 else ""
    return (
        f"With {trials} simulated data sets of each size, a share is known to about ±{error:.3f}. {text} "
        f"The findings above have {size} patients."
    )


def gains(scores: pd.DataFrame, base: Mapping[str, float], reference: str, fid: str = "FID ↓") -> str:
    """What fine-tuning buys: fidelity of every variant, and its FID against the reference's.

    Args:
        scores: measures × variants of `tradeoff.estimates`.
        base: measure → score of the base, for the measures to report.
        reference, fid: the reference variant, and the row of the FID.
    """
    lines = [
        f"`{v}`: " + ", ".join(f"{m.rstrip(' ↑↓')} from {base[m]:.3f} (base) to {scores.loc[m, v]:.3f}" for m in base)
        for v in scores
    ]
    for name in scores.columns.drop(reference):
        d = independent(scores.loc[fid, name], scores.loc[fid, reference])
        lines.append(f"The FID of `{name}` {verb(d)} that of `{reference}`: difference {d:+.2f}.")
    return bullets(lines)


def conditions(profile: Profile) -> dict[str, str]:
    """What a profile's result depends on, for the table of the paper and this run."""
    train, where, reading = profile.finetune, profile.data, profile.grounding
    boxes = f", boxes of {profile.boxes}" if profile.boxes != where.source else ""
    return {
        "images and reports": f"{where.source}{boxes}, {where.size} × {where.size} pixels",
        "base": Path(profile.base).name,
        "steps × batch": f"{train.steps:,} × {train.batch_size}",
        "learning rate of the U-Net": f"{train.learning_rate:g}",
        "learning rate of the text encoder": f"{train.text_learning_rate:g}"
        f" ({train.text_learning_rate / train.learning_rate:g} of the U-Net's)",
        "prompts dropped": f"{train.ucg:g}",
        "weighting of timesteps": "equal" if train.min_snr is None else f"min-SNR, γ = {train.min_snr:g}",
        "timesteps read": f"{len(range(0, reading.last, reading.stride))} of {reading.steps}",
    }
