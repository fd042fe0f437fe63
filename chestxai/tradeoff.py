"""The trade-off as a table: what each checkpoint of each run gains in fidelity and loses in localization.

A run is a folder ``runs/<profile>/<variant>/seed-<n>`` with ``run.json``, ``grounding.csv`` (one row per step and
phrase) and ``fidelity.json``. Variants are compared on the same phrases, so what makes a phrase hard cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import t as student

from chestxai import runs as storage
from chestxai.localization import LOWER_IS_BETTER, SCORES
from chestxai.stats import (
    Difference,
    Interval,
    bootstrap_ci,
    holm,
    minimal_detectable_difference,
    paired_difference,
    seeds_ci,
)

#: Column of the table -> its name in print; the arrow points to the better side.
NAMES = {
    "fid": "FID ↓",
    "kid": "KID ↓",
    "precision": "precision ↑",
    "recall": "recall ↑",
    "density": "density ↑",
    "coverage": "coverage ↑",
    "ms_ssim": "MS-SSIM within a prompt",
    "classifier_auc": "classifier AUC ↑",
    "auc_roc": "AUC-ROC ↑",
    "pointing_game": "Top-1 ↑",
    "cnr": "CNR ↑",
    "iou": "IoU ↑",
    "dice": "Dice ↑",
    "miou": "mIoU (fg+bg)/2 ↑",
    "bbox_iou": "box IoU ↑",
    "centre_distance": "centre distance ↓",
}

_KEY = ["study", "finding", "phrase"]
_NEEDED = ["step", "patient", *_KEY]


@dataclass(frozen=True)
class Comparison(Difference):
    """``a − b`` of one score on the same phrases: a `Difference` that knows what it is of.

    Attributes:
        seeds: the number of seeds that its interval is over; 1 if it is over patients only.
        detectable: the true difference that a test on so many patients and seeds finds four times in five, see
            `minimal_detectable_difference`; NaN of one patient.
    """

    metric: str
    a: str
    b: str
    step: int
    phrases: int
    patients: int
    seeds: int
    detectable: float = math.nan


def table(runs: Sequence[Path], n: int = 2000, level: float = 0.95) -> pd.DataFrame:
    """One row per variant, seed and step.

    Args:
        runs: run folders ``…/<variant>/seed-<n>``.
        n: bootstrap resamples of patients.
        level: confidence level.

    Returns:
        columns ``variant, seed, step, phrases, patients``; every localization score that ``grounding.csv`` has, as
        mean with ``<score>_low`` and ``<score>_high`` (patient-clustered percentile bootstrap), and the means of its
        ``prior_<score>`` and ``chance_<score>``; every number of ``fidelity.json`` under its own name. A step that only
        one of the two files has is NaN in the columns of the other. Rows in order of variant, seed and step.

    Raises:
        FileNotFoundError: a run lacks a file; the message says which, and how to make it.
        ValueError: a file is unfinished, damaged or lacks a column.
    """
    if not runs:
        raise ValueError("no runs to compare; make some with 'make book'")
    rows = []
    for run in map(Path, runs):
        variant, seed = _identity(run)
        grounding, fidelity = _grounding(run), _fidelity(run)
        steps = {int(step): group for step, group in grounding.groupby("step")}
        for step in sorted(steps.keys() | fidelity.keys()):
            row: dict[str, Any] = {"variant": variant, "seed": seed, "step": step}
            if step in steps:
                row |= _localization(steps[step], n, level)
            rows.append(row | fidelity.get(step, {}))
    return pd.DataFrame(rows).sort_values(["variant", "seed", "step"], ignore_index=True)


def pareto_front(table: pd.DataFrame, x: str = "fid", y: str = "auc_roc") -> np.ndarray:
    """Which rows no other row beats: bool ``(rows,)``.

    A row is beaten by one that is at least as good in both columns and better in one. ``x`` is minimised; ``y`` is
    maximised, unless it is a score of which less is better (`LOWER_IS_BETTER`). A row with NaN is never on the front.

    Raises:
        ValueError: the table lacks a column.
    """
    for column in (x, y):
        if column not in table:
            raise ValueError(f"the table has no column {column!r}; it has {', '.join(map(str, table.columns))}")
    cost = table[x].to_numpy(dtype=float)
    gain = table[y].to_numpy(dtype=float) * (-1 if y in LOWER_IS_BETTER else 1)
    as_good = (cost[None] <= cost[:, None]) & (gain[None] >= gain[:, None])
    better = (cost[None] < cost[:, None]) | (gain[None] > gain[:, None])
    return ~(as_good & better).any(axis=1) & np.isfinite(cost) & np.isfinite(gain)


def compare(
    runs_a: Sequence[Path],
    runs_b: Sequence[Path],
    metric: str = "auc_roc",
    *,
    step: int | None = None,
    finding: str | None = None,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    alpha: float = 0.05,
) -> Comparison:
    """Paired difference ``a − b`` of a localization score on the phrases that all runs have.

    With one seed each, interval and p-value are over patients (`paired_difference`) and say nothing about what another
    seed would give. With as many seeds of both, two at least, they are over seeds and patients (`seeds_ci`; the p-value
    is one less the level at which the interval ends at zero). With unequal numbers a phrase's score is first averaged
    over seeds, and only patients vary.

    Args:
        runs_a: run folders of one variant.
        runs_b: run folders of the other.
        metric: a column of ``grounding.csv``.
        step: which checkpoint; None takes the last, which must be the same in all runs.
        finding: only phrases of this finding.
        n: bootstrap resamples.
        level: confidence level.
        seed: of bootstrap and permutations.
        alpha: of the test that ``detectable`` is of; less than 0.05 where it is one of several (`compare_findings`).

    Raises:
        FileNotFoundError, ValueError: as `table`; also no common phrase, or different last steps.
    """
    a, step_a = _phrases(runs_a, metric, step)
    b, step_b = _phrases(runs_b, metric, step)
    if step_a != step_b:
        raise ValueError(f"the runs end at different steps ({step_a} and {step_b}): say which step to compare")
    both = a.join(b[["score", "seeds"]].add_suffix("_b"), how="inner")
    if finding is not None:
        both = both[both.index.get_level_values("finding") == finding]
    both = both[np.isfinite(both["score"]) & np.isfinite(both["score_b"])]
    if both.empty:
        of = f" of {finding}" if finding else ""
        raise ValueError(f"no phrase{of} has {metric} in all of {', '.join(map(str, [*runs_a, *runs_b]))}")
    crossed = len(runs_a) == len(runs_b) > 1
    if crossed:
        each = np.stack(both["seeds"]) - np.stack(both["seeds_b"])
        interval = seeds_ci(each, both["patient"], level)
        difference = Difference(interval.estimate, interval.low, interval.high, _p(each, both["patient"]))
        differences = each
    else:
        difference = paired_difference(both["score"], both["score_b"], both["patient"], n=n, level=level, seed=seed)
        differences = both["score"] - both["score_b"]
    patients, detectable = both["patient"].nunique(), math.nan
    if patients > 1:
        detectable = minimal_detectable_difference(differences, both["patient"], alpha=alpha)
    return Comparison(
        **vars(difference),
        metric=metric,
        a=_variant(runs_a),
        b=_variant(runs_b),
        step=step_a,
        phrases=len(both),
        patients=patients,
        seeds=len(runs_a) if crossed else 1,
        detectable=detectable,
    )


def compare_findings(
    runs_a: Sequence[Path],
    runs_b: Sequence[Path],
    metric: str = "auc_roc",
    *,
    step: int | None = None,
    n: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """`compare` of each finding by itself, with p-values for that many questions asked at once.

    Returns:
        index ``finding``, of all that have a phrase; columns ``difference`` (`Comparison`, whose interval and ``p`` are
        those of one question alone); ``holm``, p adjusted by Holm (1979): what is ≤ 0.05 holds for all of them together
        with an error of 5 %; ``detectable``, the true difference that each would find four times in five at 0.05 over
        the number of findings (Holm at its strictest); ``phrases`` and ``patients``.

    Raises:
        FileNotFoundError, ValueError: as `compare`.
    """
    found = [_phrases(runs, metric, step)[0] for runs in (runs_a, runs_b)]
    both = found[0].join(found[1][["score"]].add_suffix("_b"), how="inner")
    both = both[np.isfinite(both["score"]) & np.isfinite(both["score_b"])]
    findings = sorted(both.index.unique("finding"))
    options: dict[str, Any] = {
        "step": step,
        "n": n,
        "level": level,
        "seed": seed,
        "alpha": 0.05 / max(1, len(findings)),
    }
    if not findings:
        compare(runs_a, runs_b, metric, **options)  # says what is missing
    each = [compare(runs_a, runs_b, metric, finding=name, **options) for name in findings]
    return pd.DataFrame(
        {
            "difference": each,
            "holm": holm([c.p for c in each]),
            "detectable": [c.detectable for c in each],
            "phrases": [c.phrases for c in each],
            "patients": [c.patients for c in each],
        },
        index=pd.Index(findings, name="finding"),
    )


def _p(values: np.ndarray, patients: pd.Series) -> float:
    """One less the level at which the interval over seeds and patients just reaches zero."""

    def reach(p: float) -> float:
        interval = seeds_ci(values, patients, 1 - p)
        return (interval.high - interval.low) / 2 - abs(interval.estimate)

    least = 1e-12
    return float(brentq(reach, least, 1 - least)) if reach(least) > 0 > reach(1 - least) else float(values.mean() == 0)


def by_finding(
    runs: Sequence[Path], metric: str = "auc_roc", step: int | None = None, n: int = 2000, level: float = 0.95
) -> pd.DataFrame:
    """A score per variant and finding, and over all of them, averaged over the seeds of a variant.

    Its interval is over patients, and with several seeds over seeds and patients (`seeds_ci`).

    Returns:
        columns ``finding`` (last: ``"all"``), ``variant, mean, low, high, prior, chance, n`` (phrases); ``prior`` and
        ``chance`` NaN where ``grounding.csv`` does not have them.
    """
    variants: dict[str, list[Path]] = {}
    for run in map(Path, runs):
        variants.setdefault(_identity(run)[0], []).append(run)
    rows = []
    for variant, members in variants.items():
        scores, _ = _phrases(members, metric, step)
        scores = scores[np.isfinite(scores["score"])]
        for finding in [*sorted(scores.index.unique("finding")), "all"]:
            part = scores if finding == "all" else scores.xs(finding, level="finding")
            if part.empty:
                continue
            interval = _interval(part, n, level)
            row = {"finding": finding, "variant": variant, "mean": interval.estimate}
            row |= {"low": interval.low, "high": interval.high}
            rows.append(row | {"prior": part["prior"].mean(), "chance": part["chance"].mean(), "n": len(part)})
    found = pd.DataFrame(rows)
    found = found.iloc[np.lexsort((found["finding"], found["finding"] == "all"))]
    return found.reset_index(drop=True)


def estimates(table: pd.DataFrame, runs: Sequence[Path] = (), n: int = 2000, level: float = 0.95) -> pd.DataFrame:
    """Every measure of every variant at the last step, beside its references, as numbers: `summary` prints it.

    Args:
        table: of `table`.
        runs: the folders that it is of; needed where a variant has several seeds, whose interval is of the phrases.
        n: bootstrap resamples of patients, where there is one seed.
        level: confidence level.

    Returns:
        rows: the measures of `NAMES` that the table has, by their printed name. Columns: the variants; ``centre prior``
        and ``chance`` for localization; ``real images``, where a fidelity score is defined on them. Cells: `Interval`,
        a number where there is none (KID), NaN where there is neither. `stats.format_table` exports it.

        One seed: intervals over patients (localization) or as `fidelity` gives them. Several: the mean over seeds, with
        an interval over new seeds and new patients, `seeds_ci`. Fidelity has no such table of seeds by patients; its
        half-width is the root of the squares of one seed's own (their mean) and of Student's of the seeds' estimates,
        which have the former's chance in them once more: a cautious one.

    Raises:
        ValueError: several seeds, and ``runs`` are not theirs.
    """
    last = table.loc[table.groupby(["variant", "seed"])["step"].idxmax()]
    folders: dict[str, list[Path]] = {}
    for run in map(Path, runs):
        folders.setdefault(_identity(run)[0], []).append(run)
    overall, out = last.mean(numeric_only=True), {}
    for column, name in NAMES.items():
        if column not in last or last[column].isna().all():
            continue
        row: dict[str, Interval | float] = {}
        for variant, rows in last.groupby("variant", sort=True):
            rows = rows[rows[column].notna()]
            if column in SCORES and len(rows) > 1:
                of = folders.get(variant, [])
                if sorted(_identity(run)[1] for run in of) != sorted(rows["seed"]):
                    raise ValueError(f"{variant} has {len(rows)} seeds: give the folders of these runs as runs=")
                scores = _phrases(of, column, None)[0]
                row[variant] = _interval(scores[np.isfinite(scores["score"])], n, level)
            else:
                row[variant] = _over_seeds(rows, column, level)
        row["centre prior"] = overall.get(f"prior_{column}", math.nan)
        row["chance"] = overall.get(f"chance_{column}", math.nan)
        row["real images"] = _whole(overall, f"{column}_real")
        out[name] = row
    frame = pd.DataFrame.from_dict(out, orient="index", dtype=object)
    return frame.loc[:, frame.notna().any()]


def summary(table: pd.DataFrame, runs: Sequence[Path] = (), n: int = 2000, level: float = 0.95) -> pd.DataFrame:
    """The table to print: `estimates` as strings, ``0.842 [0.811, 0.869]``.

    KID is followed by its standard deviation over subsets.

    Args:
        table, runs, n, level: as of `estimates`.
    """
    found = estimates(table, runs, n, level)
    last = table.loc[table.groupby(["variant", "seed"])["step"].idxmax()]
    spreads = {variant: rows.mean(numeric_only=True) for variant, rows in last.groupby("variant")}
    spreads["real images"] = last.mean(numeric_only=True)
    columns = {name: column for column, name in NAMES.items()}
    return pd.DataFrame(
        {
            who: [
                _cell(value, spreads[who].get(columns[name] + _STD[who == "real images"]) if who in spreads else None)
                for name, value in cells.items()
            ]
            for who, cells in found.items()
        },
        index=found.index,
    )


_STD = ("_std", "_real_std")


def _interval(scores: pd.DataFrame, n: int, level: float) -> Interval:
    """Of the mean of `_phrases`: over seeds and patients where there are several seeds, else over patients."""
    each = np.stack(scores["seeds"]) if len(scores) else np.empty((0, 1))
    if not len(scores):
        return Interval(math.nan, math.nan, math.nan)
    if each.shape[1] == 1:
        return bootstrap_ci(scores["score"], scores["patient"], n=n, level=level)
    found = seeds_ci(each, scores["patient"], level)
    return Interval(found.estimate, found.low, found.high)


def _whole(numbers: pd.Series, column: str) -> Interval | float:
    value, low, high = (float(numbers.get(column + end, math.nan)) for end in ("", "_low", "_high"))
    return Interval(value, low, high) if math.isfinite(low) and math.isfinite(high) else value


def _over_seeds(rows: pd.DataFrame, column: str, level: float) -> Interval | float:
    """Of the seeds' own estimates and intervals, see `estimates`."""
    found = _whole(rows.mean(numeric_only=True), column)
    if len(rows) < 2 or not isinstance(found, Interval):
        return found
    seeds = student.ppf((1 + level) / 2, len(rows) - 1) * rows[column].sem()
    own = [np.sqrt(np.mean(np.square(rows[column] - rows[f"{column}_{end}"]))) for end in ("low", "high")]
    return Interval(
        found.estimate, found.estimate - float(np.hypot(own[0], seeds)), found.estimate + float(np.hypot(own[1], seeds))
    )


def verdict(difference: Comparison, better: str = "frozen") -> str:
    """One sentence on the claim that ``better`` localizes better than the other variant, chosen by the interval.

    Supported when the whole interval is on its side of zero, contradicted when it is on the other, else undecided.

    Raises:
        ValueError: ``better`` is neither of the two.
    """
    d = difference
    if better not in (d.a, d.b):
        raise ValueError(f"the comparison is of {d.a!r} and {d.b!r}, not of {better!r}")
    other = d.b if better == d.a else d.a
    shown = Difference(d.estimate, d.low, d.high, d.p)
    if better == d.b:
        shown = Difference(-d.estimate, -d.high, -d.low, d.p)
    low, high = (-shown.high, -shown.low) if d.metric in LOWER_IS_BETTER else (shown.low, shown.high)
    if low > 0:
        said = f"Supported: {better} localizes better than {other}"
    elif high < 0:
        said = f"Contradicted: {other} localizes better than {better}"
    else:
        said = f"Undecided: {better} and {other} cannot be told apart"
    name = NAMES.get(d.metric, d.metric).rstrip(" ↑↓")
    seeds = "the interval covers other patients, not other seeds"
    if d.seeds > 1:
        seeds = f"{d.seeds} seeds: the interval covers other seeds and other patients"
    return (
        f"{said}: the {name} of {better} minus that of {other} is {shown} "
        f"({d.phrases} phrases of {d.patients} patients, step {d.step}; {seeds})."
    )


def _identity(run: Path) -> tuple[str, int]:
    seed = run.name.removeprefix("seed-")
    if not run.name.startswith("seed-") or not seed.isdecimal():
        raise ValueError(f"{run}: a run folder is named <variant>/seed-<number>")
    return run.parent.name, int(seed)


def _variant(runs: Sequence[Path]) -> str:
    names = {_identity(Path(run))[0] for run in runs}
    if len(names) != 1:
        raise ValueError(f"expected the seeds of one variant, got {', '.join(sorted(names)) or 'no runs'}")
    return names.pop()


def _remedy(run: Path) -> str:
    variant, seed = _identity(run)
    profile = run.parent.parent.name
    return f"make it with 'python -m chestxai.batch --profile {profile} --variants {variant} --seeds {seed}'"


def _file(run: Path, name: str) -> Path:
    path = run / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {_remedy(run)}")
    return path


def _grounding(run: Path) -> pd.DataFrame:
    path = _file(run, "grounding.csv")
    about = storage.read_json(_file(run, "run.json"))
    if not isinstance(about, dict) or not about.get("finished", True):
        raise ValueError(f"{run / 'run.json'} says that the run is not finished: {_remedy(run)}")
    text = dict.fromkeys(("study", "patient", "finding", "phrase"), str)
    numeric = ["step", *(prefix + name for prefix in ("", "prior_", "chance_") for name in SCORES)]
    try:
        # "NA" and "None" may be phrases: only in numbers do they mean a gap.
        frame = pd.read_csv(path, dtype=text, keep_default_na=False, na_values={c: ["", "nan"] for c in numeric})
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable table ({error}); delete it and {_remedy(run)}") from error
    missing = [c for c in _NEEDED if c not in frame]
    if missing or not len(frame):
        what = f"lacks the columns {', '.join(missing)}" if missing else "has no rows"
        raise ValueError(f"{path} {what}: delete it and {_remedy(run)}")
    for column in frame.columns.intersection(numeric):
        numbers = pd.to_numeric(frame[column], errors="coerce")
        bad = np.flatnonzero(numbers.isna() & (frame[column].notna() | (column == "step")))
        if bad.size:
            value = frame[column].iloc[bad[0]]
            raise ValueError(f"{path}, line {bad[0] + 2}: {column} is '{value}': delete the file and {_remedy(run)}")
        frame[column] = numbers
    return frame.astype({"step": int})


def _fidelity(run: Path) -> dict[int, dict[str, float]]:
    path = _file(run, "fidelity.json")
    content = storage.read_json(path)
    try:
        steps = {int(step): dict(numbers) for step, numbers in content["steps"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} has no numbers by step ({error!r}): delete it and {_remedy(run)}") from error
    return {
        step: {k: float("nan" if v is None else v) for k, v in numbers.items() if isinstance(v, int | float | None)}
        for step, numbers in steps.items()
    }


def _localization(rows: pd.DataFrame, n: int, level: float) -> dict[str, float]:
    out: dict[str, float] = {"phrases": len(rows), "patients": rows["patient"].nunique()}
    for name in [s for s in SCORES if s in rows]:
        finite = rows[np.isfinite(rows[name])]
        interval = Interval(math.nan, math.nan, math.nan)
        if len(finite):
            interval = bootstrap_ci(finite[name], finite["patient"], n=n, level=level)
        out |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
        out |= {c: float(rows[c].mean()) for c in (f"prior_{name}", f"chance_{name}") if c in rows}
    return out


def _phrases(runs: Sequence[Path], metric: str, step: int | None) -> tuple[pd.DataFrame, int]:
    """Per phrase (index study, finding, phrase): patient, scores by seed, and the means of score, prior and chance."""
    if not runs:
        raise ValueError("no runs to compare; make some with 'make book'")
    frames, steps = [], set()
    for run in map(Path, runs):
        frame = _grounding(run)
        if metric not in frame:
            raise ValueError(f"{run / 'grounding.csv'} has no column {metric!r}; the scores are {', '.join(SCORES)}")
        wanted = int(frame["step"].max()) if step is None else step
        steps.add(wanted)
        frame = frame[frame["step"] == wanted]
        if frame.empty:
            raise ValueError(f"{run / 'grounding.csv'} has no rows of step {wanted}")
        columns = {"score": metric, "prior": f"prior_{metric}", "chance": f"chance_{metric}"}
        # The same sentence may be boxed twice in one study: one phrase, its mean score.
        means = pd.DataFrame({k: frame[c] if c in frame else math.nan for k, c in columns.items()})
        grouped = pd.concat([frame[[*_KEY, "patient"]], means], axis=1).groupby(_KEY)
        frames.append(grouped.agg({"patient": "first", "score": "mean", "prior": "mean", "chance": "mean"}))
    if len(steps) > 1:
        ends = ", ".join(map(str, sorted(steps)))
        raise ValueError(f"the runs end at different steps ({ends}): say which step to compare")
    index = frames[0].index
    for frame in frames[1:]:
        index = index.intersection(frame.index)
    if index.empty:
        raise ValueError(f"the runs have no phrase in common: {', '.join(map(str, runs))}")
    out = frames[0].loc[index].copy()
    out["seeds"] = list(np.stack([frame.loc[index, "score"].to_numpy() for frame in frames], axis=1))
    for column in ("score", "prior", "chance"):
        out[column] = np.mean([frame.loc[index, column].to_numpy() for frame in frames], axis=0)
    return out, steps.pop()


def _cell(value: Interval | float, std: float | None) -> str:
    if isinstance(value, Interval):
        return format(value, _spec(value.estimate))
    return _number(value) + (f" ± {std:{_spec(value)}}" if std is not None and math.isfinite(std) else "")


def _number(value: float) -> str:
    return f"{value:{_spec(value)}}" if math.isfinite(value) else "–"


def _spec(value: float) -> str:
    return ".1f" if abs(value) >= 10 else ".3f"
