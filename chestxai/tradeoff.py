"""The trade-off as a table: what each checkpoint of each run gains in fidelity and loses in localization.

Runs are folders ``runs/<profile>/<variant>/seed-<n>``, see `runs.Run`. Any number of variants is compared, each with a
reference variant and on the same phrases, so that the difficulty of a phrase cancels out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from chestxai import stats
from chestxai.localization import COLUMNS, LABELS, LOWER_IS_BETTER, NAMES, SCORES
from chestxai.runs import InputError, Run
from chestxai.stats import Difference, Interval

#: What a localization score stands beside, the same for all variants → the prefix of its column.
REFERENCES = {"location prior": "prior_", "prior of the text": "text_prior_", "chance": "chance_"}
_KEY = ["study", "finding", "phrase"]
_BESIDE = ["swap", "prior", "chance"]


@dataclass(frozen=True)
class Comparison(Difference):
    """Paired difference ``a − b`` of one score on the same phrases."""

    metric: str  #: column of ``grounding.csv``
    a: str  #: a variant
    b: str  #: the variant that is subtracted
    step: int
    phrases: int
    patients: int
    seeds: int  #: how many the interval covers; 1 if it covers patients only
    detectable: float = math.nan  #: `minimal_detectable_difference` of this design; NaN for one patient


def table(runs: Sequence[Path], n: int = 2000) -> pd.DataFrame:
    """One row per variant, seed and step of ``runs``, folders ``…/<variant>/seed-<n>``, in that order.

    Columns ``variant, seed, step, seconds`` (of training), ``phrases, patients``; the mean of every localization score
    with ``<score>_low`` and ``<score>_high`` (patient-clustered bootstrap with ``n`` resamples), of its `REFERENCES`,
    and, with ``swap_``, on swapped images; every number of ``fidelity.json``. NaN where a step lacks one. MissingError
    or InputError where a file is missing, unfinished or damaged, or a run is listed twice.
    """
    rows = []
    for variant, members in _by_variant(runs).items():
        for run in members:
            steps = {int(step): group for step, group in _grounding(run).groupby("step")}
            fidelity, log = Run(run).fidelity(), Run(run).log_file.is_file()
            seconds = Run(run).train_log().set_index("step")["seconds"] if log else {}
            for step in sorted(steps.keys() | fidelity.keys()):
                row = {"variant": variant, "seed": _seed(run), "step": step, "seconds": seconds.get(step, math.nan)}
                row |= _localization(steps[step], n) if step in steps else {}
                # Scores by finding are left out.
                rows.append(row | {k: v for k, v in fidelity.get(step, {}).items() if not isinstance(v, dict)})
    return pd.DataFrame(rows).sort_values(["variant", "seed", "step"], ignore_index=True)


def at_equal_seconds(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``table``: each run's checkpoint nearest in time to the end of its seed's fastest run; needs times."""
    timed = table[(table["step"] > 0) & table["seconds"].notna()]
    ends = timed.groupby(["variant", "seed"])["seconds"].max().groupby("seed").min()
    away = (timed["seconds"] - timed["seed"].map(ends)).abs()
    return timed.loc[away.groupby([timed["variant"], timed["seed"]]).idxmin()]


def last_step(table: pd.DataFrame, keys: Sequence[str] = ("variant", "seed")) -> pd.DataFrame:
    """The row in ``table`` of each run's last step; a run is what has equal ``keys``."""
    return table.iloc[table.reset_index(drop=True).groupby(list(keys))["step"].idxmax()]


def pareto_front(table: pd.DataFrame, x: str = "fid", y: str = "auc_roc") -> np.ndarray:
    """Rows that no other row dominates, i.e. is at least as good in both columns and better in one: bool ``(rows,)``.

    In ``table``, of `table`, ``x`` is minimised and ``y`` maximised (or minimised, if it is in `LOWER_IS_BETTER`); rows
    with NaN are False. InputError where it lacks a column.
    """
    if missing := [column for column in (x, y) if column not in table]:
        raise InputError(f"the table has no column {missing[0]!r}; it has {', '.join(map(str, table.columns))}")
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
    alpha: float = 0.05,
) -> Comparison:
    """Paired difference ``a − b`` of a localization score on the phrases that all runs share.

    With equally many seeds of both, two at least, interval and p-value cover seeds and patients (`seeds_ci`; the
    p-value is one minus the level at which the interval reaches zero). Otherwise they cover patients only
    (`paired_difference`), and a phrase's score is averaged over seeds. Raises as `table`.

    ``runs_a`` are the folders of one variant, ``runs_b`` those of the variant to subtract; ``metric`` is a column of
    ``grounding.csv``. ``step`` None takes the last checkpoint, which must be the same in all runs; with ``finding``
    only its phrases count. ``n`` resamples make the interval; ``alpha`` is the level behind ``detectable``.
    """
    names = {}
    for name, members in (("a", runs_a), ("b", runs_b)):
        names[name], *others = variants = sorted(_by_variant(members))
        if others:
            raise InputError(f"expected the seeds of one variant, got {', '.join(variants)}")
    runs_a, runs_b = (sorted(members, key=_seed) for members in (runs_a, runs_b))
    both, step = _phrases([*runs_a, *runs_b], metric, step)
    both = both if finding is None else both[both.index.get_level_values("finding") == finding]
    if both.empty:
        of = f" of {finding}" if finding else ""
        raise InputError(f"no phrase{of} has {metric} in all of {', '.join(map(str, [*runs_a, *runs_b]))}")
    patients, count = both["patient"], both["patient"].nunique()
    a, b = np.split(np.stack(both["seeds"]), [len(runs_a)], axis=1)
    seeds = a.shape[1] if a.shape == b.shape else 1
    if seeds > 1:
        differences = a - b
        interval = stats.seeds_ci(differences, patients)
        difference = Difference(interval.estimate, interval.low, interval.high, _p(differences, patients))
    else:
        a, b = a.mean(axis=1), b.mean(axis=1)
        differences, difference = a - b, stats.paired_difference(a, b, patients, n=n)
    detectable = stats.minimal_detectable_difference(differences, patients, alpha=alpha) if count > 1 else math.nan
    about = {"metric": metric, "step": step, "phrases": len(both), "patients": count, "seeds": seeds}
    return Comparison(**vars(difference), **names, **about, detectable=detectable)


def compare_all(runs: Sequence[Path], metric: str = "auc_roc", **options: Any) -> list[Comparison]:
    """`compare` the variant of the first of ``runs`` with each other one by ``metric, options``: first minus other."""
    first, *others = _by_variant(runs).values()
    return [compare(first, members, metric, **options) for members in others]


def compare_findings(
    runs_a: Sequence[Path], runs_b: Sequence[Path], metric: str = "auc_roc", *, n: int = 2000
) -> pd.DataFrame:
    """`compare` by ``metric`` and ``n`` for each finding at the last step, adjusted for the number of comparisons.

    A row for each finding (the index) in ``runs_a`` of the reference variant, and variant of ``runs_b``: ``variant``,
    ``difference`` (`Comparison`, with unadjusted interval and ``p``), ``holm`` (p adjusted over all rows: family-wise
    error of 5 % for those ≤ 0.05), ``detectable`` (at 0.05 over the number of rows), ``phrases`` and ``patients``.
    """
    variants = _by_variant(runs_b)
    names = [
        (finding, variant)
        for variant, members in variants.items()
        for finding in sorted(_phrases([*runs_a, *members], metric, None)[0].index.unique("finding"))
    ]
    options: dict[str, Any] = {"n": n, "alpha": 0.05 / max(1, len(names))}
    if not names:
        compare(runs_a, runs_b, metric, **options)  # raises, and says what is missing
    each = [compare(runs_a, variants[v], metric, finding=finding, **options) for finding, v in names]
    columns = {name: [getattr(c, name) for c in each] for name in ("detectable", "phrases", "patients")}
    columns = {"variant": [c.b for c in each], "difference": each, "holm": stats.holm([c.p for c in each])} | columns
    return pd.DataFrame(columns, index=pd.Index([finding for finding, _ in names], name="finding"))


def _p(values: np.ndarray, patients: pd.Series) -> float:
    """Two-sided, of the interval over seeds and patients; 1 for one patient."""
    above = stats.p_above(values, patients)
    return 1.0 if np.isnan(above) else 2 * min(above, 1 - above)


def by_finding(runs: Sequence[Path], metric: str = "auc_roc", n: int = 2000) -> pd.DataFrame:
    """A score per variant and finding, and over all findings, at the last step, averaged over the seeds of a variant.

    Columns ``finding`` (last: "all"), ``variant, mean, low, high, swap`` (on swapped images, where there are any),
    ``prior, chance, n`` (phrases). ``runs, metric, n`` as of `table` and `compare`; intervals cover patients, with
    several seeds both.
    """
    rows = []
    for variant, members in _by_variant(runs).items():
        scores = _phrases(members, metric, None)[0]
        for finding, part in [*scores.groupby("finding"), ("all", scores)]:
            if len(part):
                i, means = _interval(part, n), part[_BESIDE].mean()
                rows.append((finding, variant, i.estimate, i.low, i.high, *means, len(part)))
    out = pd.DataFrame(rows, columns=["finding", "variant", "mean", "low", "high", *_BESIDE, "n"])
    return out.iloc[np.lexsort((out["finding"], out["finding"] == "all"))].reset_index(drop=True)


def estimates(table: pd.DataFrame, runs: Sequence[Path] = (), n: int = 2000) -> pd.DataFrame:
    """Every measure of every variant at the last step beside its references; `summary` prints it.

    With one seed, intervals cover patients (localization) or are those of `fidelity`. With several they cover new seeds
    and new patients: `seeds_ci` for localization. Fidelity has no scores per patient, so there the half-widths of one
    seed (root mean square) and of Student's t over the seeds' estimates add as squares, which is cautious.

    Rows are the measures in ``table`` by their printed name, some followed by their mean on swapped images; columns are
    the variants, the `REFERENCES` and ``held-out images``; cells are `Interval`, a number where there is none, or NaN.
    ``n`` is as of `table`; ``runs`` are its folders, needed where a variant has several seeds (else InputError).
    """
    last, folders, out = last_step(table), _by_variant(runs) if len(runs) else {}, {}
    overall = last.mean(numeric_only=True)
    for column, name in NAMES.items():
        if column not in last or last[column].isna().all():
            continue
        row: dict[str, Interval | float] = {}
        for variant, rows in last.groupby("variant", sort=True):
            rows = rows[rows[column].notna()]
            if column in COLUMNS and len(rows) > 1:
                members = folders.get(variant, [])
                if sorted(map(_seed, members)) != sorted(rows["seed"]):
                    raise InputError(f"{variant} has {len(rows)} seeds: give the folders of these runs as runs=")
                scores = _phrases(members, column, None)[0]
                row[variant] = _interval(scores, n) if len(scores) else math.nan
            else:
                row[variant] = _over_seeds(rows, column)
        sources = {name: f"{prefix}{column}" for name, prefix in REFERENCES.items()}
        sources["held-out images"] = f"{column}_real"
        out[name] = row | {reference: _whole(overall, source) for reference, source in sources.items()}
        if f"swap_{column}" in last and last[f"swap_{column}"].notna().any():
            means = last.groupby("variant")[f"swap_{column}"].mean()
            out[f"{LABELS[column]}, swapped images"] = means.to_dict()
    frame = pd.DataFrame.from_dict(out, orient="index", dtype=object)
    return frame.loc[:, frame.notna().any()]


def summary(table: pd.DataFrame, runs: Sequence[Path] = (), n: int = 2000) -> pd.DataFrame:
    """`estimates` of ``table, runs, n`` as text, ``0.842 [0.811, 0.869]``; KID ± its deviation over subsets."""
    frame, last = estimates(table, runs, n), last_step(table)
    numbers = {variant: rows.mean(numeric_only=True) for variant, rows in last.groupby("variant")}
    numbers["held-out images"] = last.mean(numeric_only=True)
    columns = {name: column for column, name in NAMES.items()}

    def cell(measure: str, who: str) -> str:
        value, suffix = frame.loc[measure, who], "_real_std" if who == "held-out images" else "_std"
        text = stats.format_interval(value, "auto")
        std = numbers.get(who, {}).get(columns.get(measure, "") + suffix, math.nan)
        if isinstance(value, Interval) or math.isnan(std):
            return text
        return f"{text} ± {std:{'.1f' if abs(value) >= 10 else '.3f'}}"

    return pd.DataFrame({who: [cell(measure, who) for measure in frame.index] for who in frame}, index=frame.index)


def _interval(scores: pd.DataFrame, n: int) -> Interval:
    """Interval of the mean of `_phrases`: over seeds and patients with several seeds, else over patients."""
    by_seed = np.stack(scores["seeds"])
    if by_seed.shape[1] == 1:
        return stats.bootstrap_ci(scores["score"], scores["patient"], n=n)
    interval = stats.seeds_ci(by_seed, scores["patient"])
    return Interval(interval.estimate, interval.low, interval.high)


def _whole(numbers: pd.Series, column: str) -> Interval | float:
    value, low, high = (float(numbers.get(column + end, math.nan)) for end in ("", "_low", "_high"))
    return Interval(value, low, high) if math.isfinite(low) and math.isfinite(high) else value


def _over_seeds(rows: pd.DataFrame, column: str) -> Interval | float:
    """From the seeds' own estimates and intervals, see `estimates`."""
    mean = _whole(rows.mean(numeric_only=True), column)
    if len(rows) < 2 or not isinstance(mean, Interval):
        return mean
    seeds = student.ppf(0.975, len(rows) - 1) * rows[column].sem()
    below, above = (np.sqrt(np.mean(np.square(rows[column] - rows[f"{column}_{end}"]))) for end in ("low", "high"))
    halves = float(np.hypot(below, seeds)), float(np.hypot(above, seeds))
    return Interval(mean.estimate, mean.estimate - halves[0], mean.estimate + halves[1])


def _seed(run: Path) -> int:
    seed = Path(run).name.removeprefix("seed-")
    if not Path(run).name.startswith("seed-") or not seed.isdecimal():
        raise InputError(f"{run}: a run folder is named <variant>/seed-<number>")
    return int(seed)


def _by_variant(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """Run folders by variant, in the order of their first run."""
    out: dict[str, dict[int, Path]] = {}
    for run in map(Path, runs):
        members = out.setdefault(run.parent.name, {})
        if _seed(run) in members:
            raise InputError(f"two runs of {run.parent.name} have seed {_seed(run)}: {members[_seed(run)]} and {run}")
        members[_seed(run)] = run
    if not out:
        raise InputError("no runs to compare; make some with 'make book'")
    return {variant: list(members.values()) for variant, members in out.items()}


def _grounding(folder: Path) -> pd.DataFrame:
    """``grounding.csv`` of a finished run, without what would silently distort a mean."""
    run = Run(folder)
    run.record()
    table = run.check_finished().grounding()
    names = table[["study", "patient", "finding"]]
    for problem, bad in {
        "an empty study, patient or finding": (names.apply(lambda column: column.str.strip()) == "").any(axis=1),
        "another patient than the study's other lines": table.groupby("study")["patient"].transform("nunique") > 1,
        # A number may have been written with fewer digits.
        "the same content as another line": table.round(6).duplicated(),
    }.items():
        if bad.any():
            line = int(np.flatnonzero(bad)[0]) + 2
            raise InputError(f"{run.grounding_file}, line {line} has {problem}: delete the file and {run.remedy()}")
    return table


def _localization(rows: pd.DataFrame, n: int) -> dict[str, float]:
    out: dict[str, float] = {"phrases": len(rows), "patients": rows["patient"].nunique()}
    for name in [c for c in COLUMNS if c in rows]:
        finite = rows[rows[name].notna()]
        interval = (
            stats.bootstrap_ci(finite[name], finite["patient"], n=n) if len(finite) else Interval(*3 * [math.nan])
        )
        out |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
        beside = [f"{prefix}{name}" for prefix in ("swap_", *REFERENCES.values())]
        out |= {column: float(rows[column].mean()) for column in beside if column in rows}
    return out


def _phrases(runs: Sequence[Path], metric: str, step: int | None) -> tuple[pd.DataFrame, int]:
    """Of each phrase with a score in all ``runs``: patient, means of score and of `_BESIDE`, and scores by run.

    The index is study, finding and phrase; second, the step.
    """
    frames, steps = [], set()
    for run in map(Path, runs):
        frame, path = _grounding(run), Run(run).grounding_file
        if metric not in frame:
            raise InputError(f"{path} has no column {metric!r}; the scores are {', '.join(SCORES)}")
        wanted = int(frame["step"].max()) if step is None else step
        steps.add(wanted)
        frame = frame[frame["step"] == wanted]
        if frame.empty:
            raise InputError(f"{path} has no rows of step {wanted}")
        columns = {metric: "score"} | {f"{name}_{metric}": name for name in _BESIDE}
        frame = frame.reindex(columns=[*_KEY, "patient", *columns]).rename(columns=columns)
        # The same sentence may be boxed twice in one study: one phrase, its mean score.
        frames.append(frame.groupby(_KEY).agg({"patient": "first"} | dict.fromkeys(columns.values(), "mean")))
    if len(steps) > 1:
        ends = ", ".join(map(str, sorted(steps)))
        raise InputError(f"the runs end at different steps ({ends}): say which step to compare")
    both = pd.concat(frames, axis=1, keys=range(len(frames)), join="inner")
    if both.empty:
        raise InputError(f"the runs have no phrase in common: {', '.join(map(str, runs))}")
    out = {name: both.xs(name, axis=1, level=1).mean(axis=1, skipna=False) for name in ("score", *_BESIDE)}
    by_seed = list(both.xs("score", axis=1, level=1).to_numpy())
    out = pd.DataFrame({"patient": both[0, "patient"], **out, "seeds": by_seed})
    return out.dropna(subset="score"), steps.pop()
