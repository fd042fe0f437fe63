"""Intervals and tests for scores that come in clusters: several phrases of one patient are not independent.

What is resampled is always the *group* (the patient), with all of its rows, so that the interval covers a new sample of
patients (Field & Welsh 2007, "Bootstrapping clustered data"). scipy does the resampling. Everything is deterministic by
its seed.

A textbook's bootstrap interval of few patients is too narrow. Of the 95 % intervals of skewed scores in [0, 1], 1 to 3
phrases a patient, the truth is in 88 to 91 % (10 patients), 92 to 95 % (28), 94 to 95 % (100, 250). Expanded, as by
default, it is in 93 to 97 % from 20 patients on; below that, `FewGroupsWarning` says so.
``tests/benchmarks/bench_stats.py`` prints the table.

Patients are one level, training seeds another: all seeds are scored on the same patients, so the two are crossed, and
`seeds_ci` treats seeds as readers are treated in studies of many readers and cases.
"""

from __future__ import annotations

import random
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import special, stats

Method = Literal["percentile", "bca"]

#: Below this number of groups a 95 % interval covers less than 93 % of a skewed mean: as it is, and with ``expand``.
FEW_GROUPS = {False: 40, True: 20}


class FewGroupsWarning(UserWarning):
    """An interval of so few groups holds the truth less often than its level says."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its confidence interval; prints as ``0.842 [0.811, 0.869]``."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return format(self, ".3f")

    def __format__(self, spec: str) -> str:
        """``spec`` applies to each of the three numbers: ``f"{interval:.1f}"``."""
        spec = spec or ".3f"
        return f"{self.estimate:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


@dataclass(frozen=True)
class Difference(Interval):
    """A paired difference, its interval and two-sided p-value; prints as ``+0.031 [+0.010, +0.052], p = 0.004``."""

    p: float

    def __str__(self) -> str:
        return format(self, "+.3f")

    def __format__(self, spec: str) -> str:
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        return f"{super().__format__(spec or '+.3f')}, {p}"


@dataclass(frozen=True)
class SeedInterval(Interval):
    """An interval over seeds and patients; prints as ``0.842 [0.811, 0.869], 3 seeds``."""

    seeds: int
    patients: int

    def __format__(self, spec: str) -> str:
        return f"{super().__format__(spec)}, {self.seeds} seed{'s' * (self.seeds != 1)}"


@dataclass(frozen=True)
class Components:
    """Where the variance of a score comes from, of `variance_components`; all in the score's unit, squared.

    ``seed`` and ``interaction`` are NaN of one seed: ``patient`` then has the interaction in it.
    """

    #: Of one training's mean over all patients, from seed to seed.
    seed: float
    #: Of one patient's mean over all seeds, from patient to patient.
    patient: float
    #: Of what a seed does to one patient beyond the two: which patients a training gets right.
    interaction: float
    seeds: int
    #: Equally large patients that would say as much: ``rows² / Σ rows_of_patient²``.
    patients: float

    def standard_error(self, seeds: int | None = None, patients: float | None = None) -> float:
        """Of the mean over so many seeds and patients (None: as many as there were): are more of either worth it?"""
        seeds, patients = seeds or self.seeds, patients or self.patients
        parts = self.seed / seeds, self.patient / patients, self.interaction / (seeds * patients)
        return float(np.sqrt(np.nansum(parts)))


@dataclass(frozen=True)
class Coverage(Interval):
    """The share of intervals that held the truth, with its own 95 % interval (Clopper & Pearson 1934)."""

    runs: int
    #: Share of intervals that lay wholly below the truth.
    below: float
    #: Share of intervals that lay wholly above it.
    above: float
    #: Mean width of the intervals, in the unit of the score.
    width: float


def bootstrap_ci(
    values: Sequence[float] | np.ndarray,
    groups: Sequence | np.ndarray | None = None,
    statistic: Callable[[np.ndarray], float] = np.mean,
    n: int = 2000,
    level: float = 0.95,
    method: Method = "percentile",
    seed: int = 0,
    expand: bool = True,
) -> Interval:
    """Bootstrap interval of a statistic of one column, resampling groups.

    Args:
        values: float ``(rows,)``, finite.
        groups: the group (patient) of each row, any hashable labels; None makes every row its own.
        statistic: of a float array ``(m,)``; the mean (over rows, not over groups) is computed vectorised.
        n: number of resamples.
        level: confidence level in (0, 1).
        method: ``"percentile"``, or ``"bca"`` (bias-corrected and accelerated, Efron 1987).
        seed: of the resampling.
        expand: take quantiles so far out that the interval of a symmetric mean is as wide as Student's (Hesterberg
            2015, "What teachers should know about the bootstrap", 4.3.3): next to nothing of many groups, and needed
            below 40. False: the textbook's, for comparison.

    Returns:
        the interval; of a single group it has no width to tell, so its bounds are NaN. Rows that are all equal (a
        pointing game that always hits) give one of no width, whatever the truth.

    Raises:
        ValueError: no rows; NaN or infinity among them; not one group for each row.

    Warns:
        FewGroupsWarning: fewer groups than `FEW_GROUPS`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> str(bootstrap_ci(*clustered_scores(rng, patients=40, mean=0.8)))
        '0.778 [0.718, 0.842]'
    """
    values = _column(values, "values")
    if statistic is not np.mean:
        return bootstrap_statistic((values,), statistic, groups, n, level, method, seed, expand)
    index, count = _groups(groups, values.size)
    sums = np.bincount(index, weights=values, minlength=count)
    sizes = np.bincount(index, minlength=count).astype(np.float64)

    def ratio(total: np.ndarray, size: np.ndarray, axis: int = -1) -> np.ndarray:
        return total.sum(axis=axis) / size.sum(axis=axis)

    return _bootstrap((sums, sizes), ratio, float(values.mean()), n, level, method, seed, expand, vectorized=True)


def bootstrap_statistic(
    columns: Sequence[np.ndarray],
    statistic: Callable[..., float],
    groups: Sequence | np.ndarray | None = None,
    n: int = 500,
    level: float = 0.95,
    method: Method = "percentile",
    seed: int = 0,
    expand: bool = True,
) -> Interval:
    """Bootstrap interval of a statistic of several columns, e.g. the AUC of scores and labels, resampling groups.

    Args:
        columns: arrays with the same number of rows (any further axes).
        statistic: ``statistic(*columns) -> float``; may return NaN where a resample leaves it undefined (a single
            class, say): such resamples are left out of a percentile interval.
        groups: the group of each row; None makes every row its own.
        n: number of resamples, each one a call.
        level: confidence level in (0, 1).
        method: ``"percentile"`` or ``"bca"``.
        seed: of the resampling.
        expand: see `bootstrap_ci`.

    Warns:
        FewGroupsWarning: fewer groups than `FEW_GROUPS`.
    """
    columns = [np.asarray(column) for column in columns]
    rows = {len(column) for column in columns}
    if len(rows) != 1 or 0 in rows:
        raise ValueError(f"the columns need one common number of rows, at least 1: got {sorted(rows)}")
    index, count = _groups(groups, rows.pop())
    order = np.argsort(index, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(index, minlength=count))[:-1])

    def resampled(chosen: np.ndarray) -> float:
        picked = np.concatenate([members[g] for g in chosen])
        return float(statistic(*(column[picked] for column in columns)))

    estimate = float(statistic(*columns))
    return _bootstrap((np.arange(count),), resampled, estimate, n, level, method, seed, expand, vectorized=False)


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    groups: Sequence | np.ndarray | None = None,
    n: int = 2000,
    level: float = 0.95,
    method: Method = "percentile",
    permutations: int = 9999,
    seed: int = 0,
    expand: bool = True,
) -> Difference:
    """Mean of ``a − b`` over the same rows, with a clustered interval and the p-value of `sign_flip_test`.

    Args:
        a: float ``(rows,)``.
        b: float ``(rows,)``, row i on the same item as row i of ``a``.
        groups: the group (patient) of each row.
        n: bootstrap resamples.
        level: confidence level in (0, 1).
        method: of the interval, see `bootstrap_ci`.
        permutations: sign flips drawn.
        seed: of both.
        expand: see `bootstrap_ci`.

    Warns:
        FewGroupsWarning: fewer groups than `FEW_GROUPS`; the p-value does not suffer from it.
    """
    a, b = _column(a, "a"), _column(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a paired difference needs the same rows in both: got {a.size} and {b.size}")
    interval = bootstrap_ci(a - b, groups, n=n, level=level, method=method, seed=seed, expand=expand)
    return Difference(interval.estimate, interval.low, interval.high, sign_flip_test(a - b, groups, permutations, seed))


def sign_flip_test(
    differences: Sequence[float] | np.ndarray,
    groups: Sequence | np.ndarray | None = None,
    permutations: int = 9999,
    seed: int = 0,
) -> float:
    """p-value of a cluster permutation test that paired differences are zero in the mean.

    The sign of whole groups is flipped (a patient's rows keep together): under the null hypothesis the two columns are
    exchangeable within a group (Fisher 1935; Winkler et al. 2015, "Multi-level block permutation"). Two-sided. Exact
    when there are few groups (``2**groups ≤ permutations``), else Monte Carlo with the usual +1 correction, so never 0.
    No p-value is below ``2 / 2**groups``: fewer than six patients cannot reach 0.05.

    Args:
        differences: float ``(rows,)``, finite.
        groups: the group (patient) of each row; None makes every row its own.
        permutations: sign flips drawn.
        seed: of the flips.
    """
    differences = _column(differences, "differences")
    index, count = _groups(groups, differences.size)
    sums = np.bincount(index, weights=differences, minlength=count)
    if count < 2 or not sums.any():
        return 1.0
    test = stats.permutation_test(
        (sums,),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=permutations,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values adjusted for their number, in the order given: those ≤ α hold with a family-wise error ≤ α (Holm 1979).

    Args:
        p: float ``(tests,)`` in [0, 1], of one question asked of several findings, say; any dependence.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
        [0.03, 0.06, 0.06]
    """
    p = _column(p, "p")
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"p-values lie in [0, 1], got {p.min():g} to {p.max():g}")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return adjusted


def minimal_detectable_difference(
    differences: Sequence[float] | np.ndarray,
    groups: Sequence | np.ndarray | None = None,
    power: float = 0.8,
    alpha: float = 0.05,
    patients: int | None = None,
) -> float:
    """The true mean difference that a two-sided paired test of this design would find with the given power.

    Of the t-test on patients, exact by the noncentral t distribution (Bloom 1995, "Minimum detectable effects", with
    the clustered standard error); that of `sign_flip_test` is close to it. It tells what a study could have seen,
    from the *spread* of the differences: it does not depend on their mean, and is no statement on the difference found.

    Of several seeds it is for the test that `seeds_ci` is: the shifts of the two parts, by seeds and by patients, add
    as squares, as their t-quantiles do there. Cautious like that one, the more so the fewer seeds.

    Args:
        differences: float ``(rows,)``, a − b on the same items, or ``(rows, seeds)`` as of `seeds_ci`: of a pilot, or
            of the study itself.
        groups: the group (patient) of each row.
        power: probability in (0, 1) of finding it.
        alpha: of the test; ``0.05 / findings`` for one of several findings under `holm`, at worst.
        patients: plan for so many, alike in all but their number; None: as many as there are.

    Returns:
        a positive difference, in the unit of ``differences``; 0 when all are equal.

    Raises:
        ValueError: fewer than two groups or patients, or a probability that is none.
    """
    if np.ndim(differences) < 2:
        differences = _column(differences, "differences")[:, None]
    if not (0 < power < 1 and 0 < alpha < 1):
        raise ValueError(f"power and alpha are probabilities in (0, 1), got {power} and {alpha}")
    differences, index, count = _table(differences, groups)
    planned = count if patients is None else patients
    if min(count, planned) < 2:
        raise ValueError(f"a spread needs at least two patients: there are {count}, and {planned} are planned")
    by_patient, by_seed, crossed = _crossed(differences, index, count)

    def shift(freedom: int) -> float:
        return float(special.nctdtrinc(freedom, 1 - power, stats.t.ppf(1 - alpha / 2, freedom)))

    found = shift(planned - 1) ** 2 * max(by_patient - crossed, 0.0) * count / planned
    if differences.shape[1] > 1:
        found += shift(differences.shape[1] - 1) ** 2 * max(by_seed + crossed * (count / planned - 1), 0.0)
    return float(np.sqrt(found))


def seeds_ci(values: np.ndarray, groups: Sequence | np.ndarray | None = None, level: float = 0.95) -> SeedInterval:
    """Interval of a mean over new seeds *and* new patients, when all seeds are scored on the same rows.

    Seeds and patients are crossed, like readers and cases (Obuchowski & Rockette 1995). With ``V_s`` the estimated
    variance of the mean by its seeds (their mean square, which has the interaction in it) and ``V_p`` that by its
    patients less the interaction, the half-width is ``sqrt(t²_{seeds − 1} V_s + t²_{patients − 1} V_p)`` (Banerjee
    1960, "Approximate confidence interval for linear functions of means of k populations"): of normal effects it covers
    at least ``level`` with however few seeds, be they all alike or all that matters. In simulation with skewed scores
    that is 94 to 99 %. Two shorter ones fall short: a t-interval with Satterthwaite's degrees of freedom covers down to
    88 %, and resampling seeds and patients (Owen 2007, "The pigeonhole bootstrap") down to 76 %, for of two seeds it
    has half of their variance. ``tests/benchmarks/bench_stats.py`` prints all three.

    What it says, honestly. One seed tells nothing of other seeds: the interval covers other patients only, and a
    warning says so. With two, t is 12.7: unless they nearly agree the interval is wide, even wider than the score's
    range (it is not cut). With three, t is 4.3, and with five 2.8: as many as it takes to tell small differences.

    Args:
        values: float ``(rows, seeds)``, finite: row i is the same item (phrase) in every column. For two variants give
            their difference, ``a − b``, column by column; unrelated seeds may be paired too.
        groups: the group (patient) of each row; None makes every row its own.
        level: confidence level in (0, 1).

    Returns:
        the interval, with the numbers of seeds and patients; bounds NaN of a single patient.

    Raises:
        ValueError: not a table; NaN or infinity in it; not one group for each row.

    Warns:
        UserWarning: of one seed.
        FewGroupsWarning: fewer patients than ``FEW_GROUPS[True]``.
    """
    values, index, count = _table(values, groups)
    seeds = values.shape[1]
    if not 0 < level < 1:
        raise ValueError(f"level is a confidence level in (0, 1), got {level}")
    estimate = float(values.mean())
    if count < 2:
        return SeedInterval(estimate, float("nan"), float("nan"), seeds, count)
    _warn_of_few(count, expand=True)
    by_patient, by_seed, crossed = _crossed(values, index, count)
    t = stats.t.ppf((1 + level) / 2, [count - 1, max(seeds - 1, 1)])
    if seeds == 1:
        warnings.warn("one seed: the interval covers other patients, not other seeds", stacklevel=2)
        half = t[0] * np.sqrt(by_patient)
    else:
        half = np.sqrt(t[0] ** 2 * max(by_patient - crossed, 0.0) + t[1] ** 2 * by_seed)
    return SeedInterval(estimate, float(estimate - half), float(estimate + half), seeds, count)


def variance_components(values: np.ndarray, groups: Sequence | np.ndarray | None = None) -> Components:
    """Variance between seeds, between patients, and of their interaction, by the mean squares of the crossed table.

    With one row a patient this is the analysis of variance of two random factors without replication (Searle, Casella &
    McCulloch 1992, 4.3). With several, patients weigh by their rows, as in the mean. Below zero is cut to zero.

    Args:
        values: float ``(rows, seeds)``, as of `seeds_ci`.
        groups: the group (patient) of each row.

    Raises:
        ValueError: as `seeds_ci`; a single patient.
    """
    values, index, count = _table(values, groups)
    if count < 2:
        raise ValueError("the variance between patients needs at least two of them")
    seeds = values.shape[1]
    by_patient, by_seed, crossed = _crossed(values, index, count)
    patients = float(values.shape[0] ** 2 / np.square(np.bincount(index)).sum())
    if seeds == 1:
        return Components(float("nan"), patients * by_patient, float("nan"), seeds, patients)
    return Components(
        seed=seeds * max(by_seed - crossed, 0.0),
        patient=patients * max(by_patient - crossed, 0.0),
        interaction=seeds * patients * crossed,
        seeds=seeds,
        patients=patients,
    )


def clustered_scores(
    rng: np.random.Generator,
    patients: int,
    mean: float = 0.85,
    spread: float = 6.0,
    agreement: float = 10.0,
    phrases: int = 3,
) -> tuple[np.ndarray, np.ndarray]:
    """Simulated scores in [0, 1] that come in clusters, skewed like AUCs, to try an interval on.

    A patient's level is drawn from ``Beta(spread · mean, spread · (1 − mean))`` and the scores of 1 to ``phrases``
    phrases (uniformly) from ``Beta(agreement · level, agreement · (1 − level))``: their true mean is ``mean``.

    Args:
        rng: drawn from.
        patients: their number.
        mean: the true mean in (0, 1).
        spread: the smaller, the more patients differ, > 0.
        agreement: the larger, the more a patient's phrases agree; 0 makes the scores hits and misses, 0.0 or 1.0.
        phrases: the most that a patient has.

    Returns:
        float64 ``(rows,)`` scores and int64 ``(rows,)`` patients.
    """
    groups = np.repeat(np.arange(patients), rng.integers(1, phrases + 1, patients))
    level = rng.beta(spread * mean, spread * (1 - mean), patients)[groups]
    if not agreement:
        return (rng.random(groups.size) < level).astype(np.float64), groups
    # A level that rounds to 0 or 1 is no parameter of a beta distribution.
    level = np.clip(level, 1e-9, 1 - 1e-9)
    return rng.beta(agreement * level, agreement * (1 - level)), groups


def coverage(
    generate: Callable[[np.random.Generator], tuple],
    truth: float,
    interval: Callable[..., Interval] = bootstrap_ci,
    runs: int = 1000,
    seed: int = 0,
) -> Coverage:
    """How often an interval holds the truth, by simulation: what its level promises, and what it does.

    Args:
        generate: draws one data set, the arguments of ``interval``, from the generator it is given.
        truth: what the intervals should hold.
        interval: e.g. ``partial(bootstrap_ci, method="bca")``. With a seed of its own, that is what is judged.
        runs: data sets drawn; of a 95 % interval, 1,000 of them tell ±1.4 %.
        seed: of the data.

    Returns:
        the share that held it. One with NaN bounds did not, and is neither below nor above.

    Example:
        >>> def interval(scores, patients):
        ...     return bootstrap_ci(scores, patients, n=500)
        >>> print(coverage(lambda rng: clustered_scores(rng, patients=28), 0.85, interval, runs=100))
        0.950 [0.887, 0.984]
    """
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings():
        # That few groups are too few is what one is here to measure.
        warnings.simplefilter("ignore", UserWarning)
        found = [interval(*generate(rng)) for _ in range(runs)]
    low, high = np.array([[i.low, i.high] for i in found]).T
    held = int(((low <= truth) & (truth <= high)).sum())
    own = stats.binomtest(held, runs).proportion_ci()
    return Coverage(
        estimate=held / runs,
        low=float(own.low),
        high=float(own.high),
        runs=runs,
        below=float((high < truth).mean()),
        above=float((low > truth).mean()),
        width=float((high - low).mean()),
    )


def format_table(frame: pd.DataFrame, to: Literal["markdown", "latex", "csv"] = "markdown", spec: str = "") -> str:
    r"""A frame with `Interval` objects in it as text for a page, a paper or a program.

    Args:
        frame: cells may be intervals, numbers, text or missing; the index is the first column, unless it only counts.
        to: ``"markdown"`` (a pipe table); ``"latex"`` (with ``\toprule`` of booktabs; text between two ``$`` is left
            as it is); ``"csv"``, where an interval becomes numbers at full precision, its estimate in the column
            itself and the rest beside it: ``auc_low``, ``auc_high``, and ``auc_p``, ``auc_seeds`` where it has them.
        spec: format of the numbers in print; by default that of each interval, and ``".3f"``.

    Example:
        >>> print(format_table(pd.DataFrame({"AUC": [Interval(0.842, 0.811, 0.869)]}, index=["frozen"])))
        |  | AUC |
        |---|---|
        | frozen | 0.842 [0.811, 0.869] |
    """
    if to not in ("markdown", "latex", "csv"):
        raise ValueError(f"a table is written to 'markdown', 'latex' or 'csv', not to {to!r}")
    if not isinstance(frame.index, pd.RangeIndex):
        unnamed = frame.index.nlevels == 1 and frame.index.name is None
        frame = (frame.rename_axis("") if unnamed else frame).reset_index()
    if to == "csv":
        parts = [part for _, column in frame.items() for part in _numbers(column)]
        return pd.concat(parts, axis=1).to_csv(index=False)
    names = [" ".join(map(str, name)).strip() if isinstance(name, tuple) else str(name) for name in frame]
    cells = [[_text(value, spec, to) for value in row] for row in frame.itertuples(index=False)]
    if to == "markdown":
        rows = [[text.replace("|", r"\|").replace("\n", " ") for text in row] for row in [names, *cells]]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([lines[0], "|" + "---|" * len(names), *lines[1:]])
    shown = pd.DataFrame(cells, columns=[_symbols(name) for name in names]).style.hide(axis="index")
    return shown.format(escape="latex-math").format_index(escape="latex-math", axis=1).to_latex(hrules=True)


def seed_everything(seed: int) -> np.random.Generator:
    """Seed Python, numpy and torch (all devices), and return a numpy generator of the same seed to pass on."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - other libraries still draw from the global generator
    torch.manual_seed(seed)
    return np.random.default_rng(seed)


def _column(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"{name} must be one column with at least one row, got shape {values.shape}")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(f"{name} has {bad.size} rows that are NaN or infinite (the first: {bad[0]}); leave them out")
    return values


def _groups(groups: Sequence | np.ndarray | None, rows: int) -> tuple[np.ndarray, int]:
    if groups is None:
        return np.arange(rows), rows
    labels, index = np.unique(np.asarray(groups), return_inverse=True)
    if index.shape != (rows,):
        raise ValueError(f"there must be one group for each of {rows} rows, got {index.shape}")
    return index, labels.size


def _table(values: np.ndarray, groups: Sequence | np.ndarray | None) -> tuple[np.ndarray, np.ndarray, int]:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"values must be a table (rows, seeds) with at least one of each, got shape {values.shape}")
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise ValueError(f"{bad.size} rows are NaN or infinite in some seed (the first: {bad[0]}); leave them out")
    return values, *_groups(groups, values.shape[0])


def _crossed(values: np.ndarray, index: np.ndarray, count: int) -> tuple[float, float, float]:
    """Estimated variances of the mean of ``(rows, seeds)``: of patients, of seeds, and of both crossed.

    The first two have the third in them. They are the mean squares of a two-way table over ``patients · seeds``, with
    patients of unequal size by linearisation (the sandwich of a ratio, with ``patients / (patients − 1)``). Of one seed
    the last two are 0.
    """
    rows, seeds = values.shape
    means = values.mean(axis=0)
    # What each patient adds to the mean of each seed; each column sums to 0.
    share = np.stack([np.bincount(index, weights=column, minlength=count) for column in (values - means).T], 1) / rows
    mean_share = share.mean(axis=1, keepdims=True)
    small = count / (count - 1)
    by_patient = float(small * np.square(mean_share).sum())
    if seeds == 1:
        return by_patient, 0.0, 0.0
    crossed = small * np.square(share - mean_share).sum() / (seeds * (seeds - 1))
    return by_patient, float(means.var(ddof=1) / seeds), float(crossed)


def _warn_of_few(groups: int, expand: bool) -> None:
    if groups < FEW_GROUPS[expand]:
        remedy = "its bounds are too near" if expand else "expand=True widens it"
        # No number in the text: Python shows an equal warning of one place once, not for every finding.
        text = f"fewer than {FEW_GROUPS[expand]} groups: the interval covers less than its level; {remedy}"
        # Where the caller of this module stands.
        frame, depth = sys._getframe(), 1
        while frame.f_back and frame.f_code.co_filename == __file__:
            frame, depth = frame.f_back, depth + 1
        warnings.warn(text, FewGroupsWarning, stacklevel=depth)


def _numbers(column: pd.Series) -> list[pd.Series]:
    cells = list(column)
    if not any(isinstance(cell, Interval) for cell in cells):
        return [column]
    parts = [pd.Series([cell.estimate if isinstance(cell, Interval) else cell for cell in cells], name=column.name)]
    for field in ("low", "high", "p", "seeds"):
        if any(hasattr(cell, field) for cell in cells):
            values = [getattr(cell, field, None) for cell in cells]
            dtype = "Int64" if field == "seeds" else "float64"
            parts.append(pd.Series(values, name=f"{column.name}_{field}", dtype=dtype))
    return parts


def _text(value: object, spec: str, to: str) -> str:
    if value is None or value is pd.NA or value != value:
        return "–"
    text = str(value)
    if isinstance(value, Interval | float | np.floating):
        text = format(value, spec or ("" if isinstance(value, Interval) else ".3f"))
    if to != "latex":
        return text
    # In text a hyphen is no minus.
    return _symbols(text.replace("-", "−") if isinstance(value, Interval | int | float | np.number) else text)


#: What pdflatex lacks or prints as something else, outside of formulas.
_SYMBOLS = str.maketrans({"<": "$<$", ">": "$>$", "−": "$-$", "↑": r"$\uparrow$", "↓": r"$\downarrow$"})


def _symbols(text: str) -> str:
    return "".join(
        part if part.startswith("$") else part.translate(_SYMBOLS) for part in re.split(r"(\$[^$]+\$)", text)
    )


def _bootstrap(
    data: tuple[np.ndarray, ...],
    statistic: Callable,
    estimate: float,
    n: int,
    level: float,
    method: Method,
    seed: int,
    expand: bool,
    vectorized: bool,
) -> Interval:
    if method not in ("percentile", "bca"):
        raise ValueError(f"method must be 'percentile' or 'bca', got {method!r}")
    if not 0 < level < 1:
        raise ValueError(f"level is a confidence level in (0, 1), got {level}")
    count = data[0].size
    if count < 2:
        return Interval(estimate, float("nan"), float("nan"))
    _warn_of_few(count, expand)
    if expand:
        tail = stats.norm.cdf(np.sqrt(count / (count - 1)) * stats.t.ppf((1 - level) / 2, count - 1))
        # Of two or three groups it is next to nothing; BCa takes its normal quantile, so it must not vanish.
        level = 1 - 2 * max(float(tail), 1e-9)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        # NaN bounds say it already, and a percentile interval copes.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            data,
            statistic,
            paired=True,
            vectorized=vectorized,
            n_resamples=n,
            # Bounds the index array that scipy draws to some ten megabytes, whatever the number of groups.
            batch=max(1, min(n, 1_000_000 // count)),
            confidence_level=level,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
        drawn = result.bootstrap_distribution
        if np.nanmin(drawn, initial=np.inf) == np.nanmax(drawn, initial=-np.inf):
            return Interval(estimate, float(np.nanmin(drawn)), float(np.nanmax(drawn)))
        if method == "bca":
            result = stats.bootstrap(
                data,
                statistic,
                paired=True,
                vectorized=vectorized,
                n_resamples=0,
                bootstrap_result=result,
                confidence_level=level,
                method="BCa",
            )
            return Interval(estimate, float(result.confidence_interval.low), float(result.confidence_interval.high))
    tail = (1 - level) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return Interval(estimate, float(low), float(high))
