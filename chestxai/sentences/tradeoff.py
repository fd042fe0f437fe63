"""Chapter 8: the trade-off."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from chestxai.localization import LABELS, LOWER_IS_BETTER
from chestxai.profiles import Profile
from chestxai.sentences.words import Templates, bullets, direction, escaped, filled
from chestxai.stats import Difference, Interval
from chestxai.tradeoff import Comparison

_say = Templates(__file__)


def seeds(n: int) -> str:
    """What the intervals cover with ``n`` seeds."""
    return _say("one seed") if n == 1 else _say("seeds", n=n, few=n < 5)


def answer(points: Sequence[Comparison], fid: Mapping[str, Difference]) -> str:
    """The book's one answer: is the trade-off of the paper reproduced in this setting?

    The claim has two parts, reference against other variant: the other one generates more real images (lower FID), and
    it points worse. Pointing needs every column of the declared endpoint: it is worse if any of them clearly falls and
    none clearly rises, and better only if all clearly rise.

    Args:
        points: reference minus variant for every column of the endpoint and every other variant.
        fid: variant → FID of the reference minus that of the variant.
    """
    lines = []
    for name in dict.fromkeys(c.b for c in points):
        own = [c for c in points if c.b == name]
        signs = {direction(c) for c in own}
        shown = "; ".join(f"{LABELS.get(c.metric, c.metric)} {c:+.3f}" for c in own)
        case = "mixed" if signs >= {1, -1} else "worse" if 1 in signs else "better" if signs == {-1} else "partly"
        verdict, pointing, tests = _say["cases"]["same" if signs == {0} else case]
        about = {"verdict": filled(verdict, fid=fid[name]), "pointing": pointing, "tests": tests, "reference": own[0].a}
        lines.append(_say("answer", name=name, shown=shown, fid=fid[name], **about))
    return bullets(lines)


def findings(each: pd.DataFrame) -> str:
    """On which findings variants differ; ``each`` is the table of `tradeoff.compare_findings`."""
    lines = []
    for row in each[each["holm"] <= 0.05].itertuples():
        c = row.difference
        best, other = (c.a, c.b) if (c.estimate > 0) != (c.metric in LOWER_IS_BETTER) else (c.b, c.a)
        shown = f"{Difference(c.estimate, c.low, c.high, row.holm):+.3f}".replace(", p", ", adjusted p")
        lines.append(_say("finding", finding=escaped(row.Index), best=best, other=other, c=c, shown=shown))
    text = _say("rest", rest=sum(each["holm"] > 0.05), n=len(each))
    return "\n\n".join([_say("adjusted"), bullets(lines), text] if lines else [text])


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
    few, unclear = [n for n in early if covered[n].high < 0.93], [n for n in early if covered[n].high >= 0.93]
    held = _say("too few" if error > 0.02 else "from" if good else "never", least=min(good, default=0))
    size = f"{min(used)} to {max(used)}" if min(used) < max(used) else min(used)
    unclear = unclear if error <= 0.02 else []
    return _say("coverage", trials=trials, error=error, held=held, few=few, unclear=unclear, size=size)


def gains(scores: pd.DataFrame, base: Mapping[str, float], reference: str, fids: Mapping[str, Difference]) -> str:
    """What fine-tuning buys: fidelity of every variant, and its FID against the reference's.

    Args:
        scores: measures × variants of `tradeoff.estimates`.
        base: measure → score of the base, for the measures to report.
        reference, fids: the reference variant, and other variant → FID of the reference minus its own.
    """
    lines = []
    for v in scores:
        parts = [_say("score", name=m.rstrip(" ↑↓"), base=base[m], value=scores.loc[m, v]) for m in base]
        lines.append(f"`{v}`: {', '.join(parts)}")
    lines += [_say("gain", name=name, reference=reference, d=d) for name, d in fids.items()]
    return bullets(lines)


def extrapolation(table: pd.DataFrame, images: str, tests: Mapping[str, tuple[float, float]]) -> str:
    """What a study on real X-rays shows at its end, and how far more steps or images would have to go, as bullets.

    A test grows by a straight line in the logarithms of steps and images, by least squares over all rows of a variant;
    one without two numbers of each is left out.

    Args:
        table: a study with columns ``variant``, ``step``, ``images`` (its name), and each test with its bounds.
        tests: column → (chance, the value to reach).
    """
    lines = []
    for variant, rows in table.groupby("variant", sort=False):
        if rows[["step", images]].nunique().min() < 2:
            continue
        logs = np.log2(rows[["step", images]].astype(float))
        last = rows.sort_values([images, "step"]).iloc[-1]
        for test, (chance, reach) in tests.items():
            found = Interval(*(last[test + end] for end in ("", "_low", "_high")))
            design = np.column_stack([logs - logs.mean(), np.ones(len(logs))])
            steps, more_images, _ = np.linalg.lstsq(design, rows[test], rcond=None)[0]
            more = (reach - found.estimate) / more_images if more_images > 0 else np.inf
            about = {"name": variant, "label": LABELS.get(test, test), "found": found, "steps": steps, "reach": reach}
            about |= {"above": found.low > chance, "chance": chance, "images": more_images, "more": more}
            lines.append(_say("extrapolation", near=more < 10, **about))
    return bullets(lines)


def conditions(profile: Profile) -> dict[str, str]:
    """What a profile's result depends on, for the table of the paper and this run."""
    train, data, grounding = profile.finetune, profile.data, profile.grounding
    about = {"base": Path(profile.base).name, "boxes": profile.boxes, "other": profile.boxes != data.source}
    about |= {"ratio": train.text_learning_rate / train.learning_rate, "data": data, "train": train}
    about["snr"] = train.min_snr and f"{train.min_snr:g}"
    own = "all-MiniLM-L6-v2, padding is zero" if profile.base in ("tiny", "tiny-code") else "the base's own"
    about |= {"encoder": profile.text_encoder or own, "images": f"{data.train:,}" if data.train else "all there are"}
    about |= {"read": len(range(0, grounding.last, grounding.stride)), "grounding": grounding}
    return {name: filled(template, **about) for name, template in _say["conditions"].items()}
