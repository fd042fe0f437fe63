"""Chapter 8: the trade-off."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from chestxai.localization import LABELS, LOWER_IS_BETTER
from chestxai.profiles import SHIPPED, Profile
from chestxai.sentences.words import Templates, bullets, direction, escaped, filled
from chestxai.stats import Difference, Interval
from chestxai.tradeoff import Comparison

_say = Templates(__file__)


def seeds(n: int) -> str:
    """What the intervals cover with ``n`` seeds."""
    return _say("one seed") if n == 1 else _say("seeds", n=n, few=n < 5)


def answer(points: Sequence[Comparison], fid: Mapping[str, Difference]) -> str:
    """The book's one answer, as bullets: the `verdict` on each variant but the reference.

    ``points``: reference minus variant for every column of the endpoint and every variant; ``fid``: the same of FID.
    """
    own = {name: {c.metric: c for c in points if c.b == name} for name in dict.fromkeys(c.b for c in points)}
    return bullets(verdict(name, points[0].a, tests, fid[name]) for name, tests in own.items())


def verdict(name: str, reference: str, points: Mapping[str, Interval], fid: Interval) -> str:
    """Is the trade-off of the paper reproduced in this setting?

    The claim has two parts: variant ``name`` generates more real images than ``reference`` (lower FID), and it points
    worse. Pointing needs every column of the declared endpoint: it is worse if any of them clearly falls and none
    clearly rises, and better only if all clearly rise. Without both parts the claim is not reproduced; better pointing
    contradicts it. ``points``: column → ``reference`` minus ``name``; ``fid`` is that difference of the FIDs.
    """
    shown = "; ".join(f"{LABELS[column]} {d:+.3f}" for column, d in points.items())
    sizes = {LABELS[column]: getattr(d, "detectable", np.nan) for column, d in points.items()}
    seen = [f"{size:.3f} ({label})" for label, size in sizes.items() if size > 0]
    result, pointing, tests = (filled(part, fid=fid) for part in _say["cases"][_case(points, -1)])
    about = {"verdict": result, "pointing": pointing, "tests": tests, "shown": shown, "seen": seen, "fid": fid}
    return _say("answer", name=name, reference=reference, **about)


def _case(differences: Mapping[str, Interval], sign: int = 1) -> str:
    """How one does on all scores together; ``differences``, times ``sign``: its score minus that of the reference."""
    signs = {direction(d) * (-sign if column in LOWER_IS_BETTER else sign) for column, d in differences.items()}
    if signs == {0}:
        return "same"
    return "mixed" if signs >= {1, -1} else "worse" if -1 in signs else "better" if signs == {1} else "partly"


def kinds(differences: pd.DataFrame, endpoint: Sequence[str]) -> pd.DataFrame:
    """What each row is against frozen, columns ``images, maps, kind``: a trade-off, a collapse of both and so on.

    ``differences`` are `Interval` of a row's encoder minus frozen, in columns of scores: those in ``endpoint``, and
    scores of images. Maps are better or worse by the rule of `verdict`; images if one score is, and none the opposite.
    """
    rows = []
    for _, row in differences.iterrows():
        images, maps = _case(row.drop([*endpoint])), _case(row[[*endpoint]])
        kind = _say["kinds"].get(f"{'better' if images == 'partly' else images} images, {maps} maps", "open")
        rows.append([*(_say["axes"].get(case, case) for case in (images, maps)), kind])
    return pd.DataFrame(rows, differences.index, ["images", "maps", "kind"])


def counted_kinds(kind: Sequence[str]) -> str:
    """How many rows are of each ``kind`` of `kinds`, also of those that none is."""
    parts = [f"{name} in {[*kind].count(name) or 'none'}" for name in (*_say["kinds"].values(), "open")]
    return _say("kinds of rows", parts=parts, n=len(kind))


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

    ``covered``: number of patients → share of intervals that held the truth (`stats.coverage`); ``trials``: simulated
    data sets of each size; ``used``: number of patients of each finding.
    """
    error = max(c.high - c.low for c in covered.values()) / 2
    good = [n for n in covered if all(0.93 <= c.estimate <= 0.97 for k, c in covered.items() if k >= n)]
    early = [n for n in covered if not good or n < min(good)]
    few = [n for n in early if covered[n].high < 0.93]
    unclear = [n for n in early if n not in few and error <= 0.02 and covered[n].low <= 0.93]
    held = _say("too few" if error > 0.02 else "from" if good else "never", least=min(good, default=0))
    size = f"{min(used)} to {max(used)}" if min(used) < max(used) else min(used)
    return _say("coverage", trials=trials, error=error, held=held, few=few, unclear=unclear, size=size)


def gains(scores: pd.DataFrame, base: Mapping[str, float], reference: str, fids: Mapping[str, Difference]) -> str:
    """What fine-tuning buys: fidelity of every variant, and its FID against the reference's.

    ``scores`` are measures × variants of `tradeoff.estimates`; ``base``: measure to report → score of the base;
    ``fids``: variant → FID of the ``reference`` variant minus its own.
    """
    parts = {
        v: [_say("score", name=m.rstrip(" ↑↓"), base=base[m], value=scores.loc[m, v]) for m in base] for v in scores
    }
    lines = [f"`{v}`: {', '.join(told)}" for v, told in parts.items()]
    lines += [_say("gain", name=name, reference=reference, d=d) for name, d in fids.items()]
    return bullets(lines)


def extrapolation(table: pd.DataFrame, images: str, tests: Mapping[str, tuple[float, float]]) -> str:
    """What a study on real X-rays shows at its end, and how far more steps or images would have to go, as bullets.

    A test grows by a straight line in the logarithms of steps and images, by least squares over all rows of a variant;
    one without two numbers of each is left out. ``table`` is of a study with columns ``variant``, ``step``, ``images``
    (its name), and each test with its bounds; ``tests``: column → (chance, the value to reach).
    """
    lines = []
    for variant, rows in table[table["step"] > 0].dropna(subset=[*tests]).groupby("variant", sort=False):
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
            about |= {"near": 0 < more < 10, "reached": found.estimate >= reach}
            lines.append(_say("extrapolation", never=not (about["near"] or about["reached"]), **about))
    return bullets(lines)


def conditions(profile: Profile) -> dict[str, str]:
    """What a profile's result depends on, for the table of the paper and this run."""
    train, data, grounding = profile.finetune, profile.data, profile.grounding
    about = {"base": Path(profile.base).name, "boxes": profile.boxes, "other": profile.boxes != data.source}
    about |= {"ratio": train.text_learning_rate / train.learning_rate, "data": data, "train": train}
    about |= {"grounding": grounding, "snr": train.min_snr and f"{train.min_snr:g}"}
    own = "all-MiniLM-L6-v2" if profile.base in SHIPPED else "the base's own"
    about |= {"silent": profile.base in SHIPPED, "replaced": profile.text_encoder is not None}
    about |= {"encoder": profile.text_encoder or own, "images": f"{data.train:,}" if data.train else "all there are"}
    about |= {"read": len(range(0, grounding.last, grounding.stride)), "skips": grounding.stride > 1}
    return {name: filled(template, **about) for name, template in _say["conditions"].items()}
