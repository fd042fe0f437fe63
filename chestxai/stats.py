"""Intervals and tests for scores that come in clusters: several phrases of one patient are not independent.

What is resampled is always the *group* (the patient), with all of its rows, so that the interval covers a new sample of
patients (Field & Welsh 2007, "Bootstrapping clustered data"). scipy does the resampling. Everything is deterministic by
its seed.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Method = Literal["percentile", "bca"]


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


def bootstrap_ci(
    values: Sequence[float] | np.ndarray,
    groups: Sequence | np.ndarray | None = None,
    statistic: Callable[[np.ndarray], float] = np.mean,
    n: int = 2000,
    level: float = 0.95,
    method: Method = "percentile",
    seed: int = 0,
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

    Returns:
        the interval; of a single group it has no width to tell, so its bounds are NaN.

    Raises:
        ValueError: no rows; NaN or infinity among them; not one group for each row.

    Example:
        >>> str(bootstrap_ci([0.0, 1.0, 1.0, 1.0], groups=["a", "a", "b", "c"]))
        '0.750 [0.500, 1.000]'
    """
    values = _column(values, "values")
    if statistic is not np.mean:
        return bootstrap_statistic((values,), statistic, groups, n=n, level=level, method=method, seed=seed)
    index, count = _groups(groups, values.size)
    sums = np.bincount(index, weights=values, minlength=count)
    sizes = np.bincount(index, minlength=count).astype(np.float64)

    def ratio(total: np.ndarray, size: np.ndarray, axis: int = -1) -> np.ndarray:
        return total.sum(axis=axis) / size.sum(axis=axis)

    return _bootstrap((sums, sizes), ratio, float(values.mean()), n, level, method, seed, vectorized=True)


def bootstrap_statistic(
    columns: Sequence[np.ndarray],
    statistic: Callable[..., float],
    groups: Sequence | np.ndarray | None = None,
    n: int = 500,
    level: float = 0.95,
    method: Method = "percentile",
    seed: int = 0,
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
    return _bootstrap((np.arange(count),), resampled, estimate, n, level, method, seed, vectorized=False)


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    groups: Sequence | np.ndarray | None = None,
    n: int = 2000,
    level: float = 0.95,
    method: Method = "percentile",
    permutations: int = 9999,
    seed: int = 0,
) -> Difference:
    """Mean of ``a − b`` over the same rows, with a clustered interval and a permutation test.

    The test flips the sign of whole groups (a patient's rows keep together): under the null hypothesis the two columns
    are exchangeable within a group. Two-sided; exact when there are few groups (``2**groups ≤ permutations``), else
    Monte Carlo with the usual +1 correction, so never 0.

    Args:
        a: float ``(rows,)``.
        b: float ``(rows,)``, row i on the same item as row i of ``a``.
        groups: the group (patient) of each row.
        n: bootstrap resamples.
        level: confidence level in (0, 1).
        method: of the interval, see `bootstrap_ci`.
        permutations: sign flips drawn.
        seed: of both.
    """
    a, b = _column(a, "a"), _column(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a paired difference needs the same rows in both: got {a.size} and {b.size}")
    interval = bootstrap_ci(a - b, groups, n=n, level=level, method=method, seed=seed)
    index, count = _groups(groups, a.size)
    sums = np.bincount(index, weights=a - b, minlength=count)
    if count < 2 or not sums.any():
        return Difference(interval.estimate, interval.low, interval.high, 1.0)
    test = stats.permutation_test(
        (sums,),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=permutations,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return Difference(interval.estimate, interval.low, interval.high, float(test.pvalue))


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


def _bootstrap(
    data: tuple[np.ndarray, ...],
    statistic: Callable,
    estimate: float,
    n: int,
    level: float,
    method: Method,
    seed: int,
    vectorized: bool,
) -> Interval:
    if method not in ("percentile", "bca"):
        raise ValueError(f"method must be 'percentile' or 'bca', got {method!r}")
    if not 0 < level < 1:
        raise ValueError(f"level is a confidence level in (0, 1), got {level}")
    if data[0].size < 2:
        return Interval(estimate, float("nan"), float("nan"))
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
            batch=max(1, min(n, 1_000_000 // data[0].size)),
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
