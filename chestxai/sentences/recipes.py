"""Chapter 10: whether a recipe keeps where a word points and gains what a learning text encoder gains."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from chestxai.localization import LABELS
from chestxai.sentences.words import Templates, bullets
from chestxai.stats import Interval, holm, p_above, seeds_ci
from chestxai.tradeoff import last_step

_say = Templates(__file__)


def over_seeds(table: pd.DataFrame, column: str, reference: str) -> pd.Series:
    """Variant → `Interval` of ``column`` minus that of ``reference`` at the last step, paired by seed and device.

    ``table`` is that of a study. Student's t over the seeds that both have; with one seed the bounds are NaN, without a
    common one the variant is left out.
    """
    return _compared(table, column, reference)["interval"].drop(reference)


def over_seeds_and_patients(phrases: pd.DataFrame, column: str, reference: str) -> pd.Series:
    """Variant → `SeedInterval` of ``column`` minus that of ``reference``, over new seeds and new patients (`seeds_ci`).

    ``phrases`` are those of a study, a row for each run and phrase, with the run's ``variant, seed, device``; they are
    paired by phrase, seed and device. A variant without a common one is left out.
    """
    return _crossed(phrases, column, reference)["interval"].drop(reference)


def _crossed(phrases: pd.DataFrame, column: str, reference: str, margin: float = 0.0) -> pd.DataFrame:
    runs = ["variant", "seed", "device"]
    wide = phrases.pivot(index=["patient", "study", "finding"], columns=runs, values=column)
    found = {reference: (Interval(0.0, 0.0, 0.0), 0.0)}
    for name in wide.columns.unique("variant").drop(reference):
        minus = (wide[name] - wide[reference]).dropna(axis=1, how="all").T.groupby("seed").mean().T.dropna()
        if minus.size:
            of = minus.to_numpy(), minus.index.get_level_values("patient")
            found[name] = seeds_ci(*of), p_above(*of, -margin)
    return pd.DataFrame(found, index=["interval", "p"]).T


def _compared(table: pd.DataFrame, column: str, reference: str, margin: float = 0.0) -> pd.DataFrame:
    pair = [name for name in ("seed", "device") if name in table]
    wide = last_step(table, ["variant", *pair]).pivot(index=pair, columns="variant", values=column)
    found = {reference: (Interval(0.0, 0.0, 0.0), 0.0)}
    for name, each in wide.sub(wide[reference], axis=0).drop(columns=reference).items():
        seeds = each.dropna().groupby("seed").mean()  # a seed on two devices is one seed
        few = len(seeds) < 2
        bounds = (np.nan, np.nan) if few else ttest_1samp(seeds, 0).confidence_interval()
        p = np.nan if few else ttest_1samp(seeds, -margin, alternative="greater").pvalue
        found |= {name: (Interval(seeds.mean(), *bounds), p)} if len(seeds) else {}
    return pd.DataFrame(found, index=["interval", "p"]).T


def verdicts(
    table: pd.DataFrame, endpoint: Sequence[str], margin: float = 0.01, phrases: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Which recipes have both: they point no worse than frozen, and generate no worse than frozen and learnable.

    Args:
        table: of a study with the variant ``frozen``, and ``learnable`` if it is to be a reference.
        endpoint: columns of the primary endpoint.
        margin: how far below zero the lower bound of a paired difference may lie, stated beforehand.
        phrases: as of `over_seeds_and_patients`. With them, the endpoint's intervals are over seeds and patients.

    Returns:
        A row for each recipe but frozen: ``<column> − frozen``, ``classifier AUC − frozen``, the same minus learnable
        where that is better in the mean, and ``both``: "yes", "no" where an interval lies below the margin, "open"
        where the seeds do not decide, "too few seeds" where an interval is missing. Column ``p`` is the largest of
        their one-sided p-values whose null is a difference of minus the margin, adjusted over the recipes that have one
        (Holm).
    """
    better = last_step(table).groupby("variant")["classifier_auc"].mean().reindex(["frozen", "learnable"]).idxmax()
    compared, of = (_compared, table) if phrases is None else (_crossed, phrases)
    parts = {f"{LABELS[c]} − frozen": compared(of, c, "frozen", margin) for c in endpoint}
    for name in dict.fromkeys(("frozen", better)):
        parts[f"classifier AUC − {name}"] = _compared(table, "classifier_auc", name, margin)
    parts = pd.concat(parts, axis=1)
    frame = parts.xs("interval", axis=1, level=1).drop(index="frozen").dropna()
    frame = frame.map(lambda i: Interval(i.estimate, i.low, i.high))  # without the number of seeds
    p = parts.xs("p", axis=1, level=1).loc[frame.index].astype(float).max(axis=1, skipna=False).dropna()
    lows, highs = (frame.map(lambda i, end=end: getattr(i, end)).astype(float) for end in ("low", "high"))
    cases = [lows.isna().any(axis=1), (lows > -margin).all(axis=1), (highs < -margin).any(axis=1)]
    both = np.select(cases, ["too few seeds", "yes", "no"], "open")
    return frame.assign(p=pd.Series(holm(p), p.index) if len(p) else np.nan, both=both)


def answer(found: pd.DataFrame) -> str:
    """The answer of chapter 10 from `verdicts`, and which recipe comes nearest where none has both."""
    learnable = found["both"].get("learnable")  # None where it is no reference
    already, found = _say("already") if learnable == "yes" else "", found.drop(index="learnable", errors="ignore")
    if found.empty:
        return already + _say("none")
    winners, few = list(found.index[found["both"] == "yes"]), sum(found["both"] == "too few seeds")
    if winners:
        firm = found["p"][winners] < 0.025
        names = [_say("winner", name=name, p=found["p"][name], firm=firm[name]) for name in winners]
        text = _say("winners", names=names, any=firm.any(), learnable=learnable is not None)
    else:
        worst = found.drop(columns=["p", "both"]).map(lambda interval: interval.estimate).astype(float).min(axis=1)
        text = _say("nearest", name=worst.idxmax(), difference=worst.max())
    return already + text + (_say("few", n=few) if few else "")


def joint(found: dict[str, pd.DataFrame]) -> str:
    """Which recipes have both in every base, from ``found``: base → `verdicts`."""
    tables = [table.drop(index="learnable", errors="ignore") for table in found.values()]
    passed = set.intersection(*(set(table.index[table["both"] == "yes"]) for table in tables))
    firm = [name for name in passed if all(table["p"][name] < 0.025 for table in tables)]
    names = {"bases": found, "passed": sorted(passed), "firm": sorted(firm)}
    return _say("joint", **{key: [f"`{name}`" for name in some] for key, some in names.items()})


def principles(found: pd.DataFrame, groups: dict[str, Sequence[str]]) -> str:
    """Design principles as bullets: what each kind of recipe does to pointing and to fidelity, with its support.

    Each names the test that comes nearest to deciding otherwise. ``found`` is that of `verdicts`; ``groups``: principle
    → recipes that test it.
    """
    lines = []
    for text, names in groups.items():
        own = found.loc[[name for name in names if name in found.index]]
        if own.empty:
            continue
        shown = "; ".join(
            f"`{name}`: " + ", ".join(f"{column} {difference:+.3f}" for column, difference in row.items())
            for name, row in own.drop(columns=["p", "both"]).iterrows()
        )
        state = "supported" if (own["both"] == "yes").all() else "refuted" if "no" in set(own["both"]) else "open"
        end, unknown = ("high", np.inf) if state == "refuted" else ("low", -np.inf)
        tests = own.drop(columns=["p", "both"]).stack()
        recipe, test = tests.map(lambda d, end=end: getattr(d, end)).fillna(unknown).idxmin()
        why = _say(state, recipe=recipe, test=test, interval=tests[recipe, test], several=len(own) > 1)
        lines.append(_say("principle", text=text, state=state, shown=shown, why=why))
    return bullets(lines) or _say("no principle")
