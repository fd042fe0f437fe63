"""How often the intervals of `chestxai.stats` cover the truth, by simulation, and how long they take.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_stats.py [--runs 2000] [--resamples 1000]

Three tables. Bootstrap: coverage of 95 % intervals of clustered scores, with the mean width in parentheses; coverage
below 93 or above 97 % is marked. Seeds: `seeds_ci` beside two shorter intervals. Time: processor seconds of one
interval of about 300 rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from chestxai import stats
from chestxai.stats import Interval, bootstrap_ci, clustered_scores, coverage, paired_difference, seeds_ci
from chestxai.stats.intervals import crossed_variances

PATIENTS = (10, 20, 28, 40, 100, 250)
METHODS = {"percentile": {"expand": False}, "percentile, expanded": {"expand": True}}


def difference(rng: np.random.Generator, patients: int) -> tuple[np.ndarray, np.ndarray]:
    """A score minus its square, as if the same phrases were scored twice: skewed, and similar within a patient."""
    scores, groups = clustered_scores(rng, patients, mean=0.7)
    return scores - scores**2, groups


def true_difference(mean: float = 0.7, spread: float = 6.0, agreement: float = 10.0) -> float:
    """True mean of `difference`, from the second moments of the two beta distributions."""
    level = mean * (spread * mean + 1) / (spread + 1)
    return mean - (agreement * level + mean) / (agreement + 1)


#: Name → a function that draws a data set with a number of patients, and the true mean.
SCORES: dict[str, tuple[Callable, float]] = {
    "AUC, mean 0.85": (clustered_scores, 0.85),
    "AUC, mean 0.7": (partial(clustered_scores, mean=0.7, spread=8.0, agreement=20.0), 0.7),
    "hits, mean 0.7": (partial(clustered_scores, mean=0.7, agreement=0.0), 0.7),
    "difference": (difference, true_difference()),
}


def covered(draw: Callable, truth: float, interval: Callable[..., Interval], runs: int) -> tuple[Interval, float]:
    """`coverage`, and the mean width of the intervals."""
    widths = []

    def measured(*data: np.ndarray) -> Interval:
        found = interval(*data)
        widths.append(found.high - found.low)
        return found

    return coverage(draw, truth, measured, runs), float(np.mean(widths))


def bootstrap_table(score: str, runs: int, resamples: int) -> pd.DataFrame:
    draw, truth = SCORES[score]
    rows = []
    for patients in PATIENTS:
        row: dict[str, object] = {"score": score, "patients": patients}
        for method, options in METHODS.items():
            interval = partial(bootstrap_ci, n=resamples, **options)
            result, width = covered(partial(draw, patients=patients), truth, interval, runs)
            mark = "" if 0.93 <= result.estimate <= 0.97 else "*"
            row[method] = f"{100 * result.estimate:.1f}{mark} ({width:.3f})"
        rows.append(row)
    return pd.DataFrame(rows)


def satterthwaite(values: np.ndarray, groups: np.ndarray) -> Interval:
    """t-interval with the same variance and Satterthwaite's (1946) degrees of freedom."""
    by_patient, by_seed, crossed = crossed_variances(values, groups, groups[-1] + 1)
    by_patient = max(by_patient - crossed, 0)
    total = by_patient + by_seed
    freedom = total**2 / (by_seed**2 / (values.shape[1] - 1) + by_patient**2 / groups[-1])
    half = scipy_stats.t.ppf(0.975, freedom) * np.sqrt(total)
    return Interval(values.mean(), values.mean() - half, values.mean() + half)


def pigeonhole(values: np.ndarray, groups: np.ndarray, resamples: int) -> Interval:
    """Seeds and patients resampled independently (Owen 2007), percentile."""
    rng = np.random.default_rng(0)
    sums = np.stack([np.bincount(groups, weights=column) for column in values.T], axis=1)
    sizes = np.bincount(groups)
    patients = rng.integers(0, sizes.size, (resamples, sizes.size))
    seeds = rng.integers(0, values.shape[1], (resamples, values.shape[1]))
    means = sums[patients].sum(axis=1) / sizes[patients].sum(axis=1, keepdims=True)
    drawn = np.take_along_axis(means, seeds, axis=1).mean(axis=1)
    return Interval(values.mean(), *np.quantile(drawn, [0.025, 0.975]))


def seeds_table(runs: int, resamples: int) -> pd.DataFrame:
    methods = {
        "seeds_ci": seeds_ci,
        "Satterthwaite": satterthwaite,
        "pigeonhole": partial(pigeonhole, resamples=resamples),
    }
    rows = []
    for patients in (28, 100):
        for seeds in (2, 3, 5):
            for by_seed, by_both in ((0.0, 0.02), (0.005, 0.05), (0.02, 0.02), (0.02, 0.1), (0.05, 0.05)):

                def draw(rng: np.random.Generator, size=(patients, seeds), sd=(by_seed, by_both)) -> tuple:
                    scores, groups = clustered_scores(rng, size[0])
                    both = sd[1] * rng.standard_normal(size)[groups]
                    return scores[:, None] + sd[0] * rng.standard_normal(size[1]) + both, groups

                row = {"patients": patients, "seeds": seeds, "sd of seeds": by_seed, "sd of both": by_both}
                for name, interval in methods.items():
                    result, width = covered(draw, 0.85, interval, runs)
                    row[name] = f"{100 * result.estimate:.1f} ({width:.3f})"
                rows.append(row)
    return pd.DataFrame(rows)


def time_table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    scores, groups = clustered_scores(rng, 150)
    other = scores + 0.01 * rng.standard_normal(scores.size)
    table = np.stack([scores, other, scores], axis=1)
    calls = {
        "bootstrap_ci, 2,000": lambda: bootstrap_ci(scores, groups),
        "bootstrap_ci of the median, 2,000": lambda: stats.bootstrap_statistic((scores,), np.median, groups, n=2000),
        "paired_difference, 2,000 and 9,999": lambda: paired_difference(scores, other, groups),
        "seeds_ci, 3 seeds": lambda: seeds_ci(table, groups),
    }
    rows = []
    for name, call in calls.items():
        call()
        start = time.process_time()
        for _ in range(5):
            call()
        rows.append({"call": name, "rows": scores.size, "patients": 150, "ms": (time.process_time() - start) * 200})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="simulated data sets per cell")
    parser.add_argument("--resamples", type=int, default=1000)
    args = parser.parse_args()
    error = 196 * np.sqrt(0.95 * 0.05 / args.runs)
    print(f"Coverage in % of {args.runs} data sets, each ± {error:.1f} %; mean width in parentheses\n")
    print(stats.format_table(time_table().round(1)), end="\n\n")
    print(stats.format_table(seeds_table(args.runs, args.resamples)), end="\n\n", flush=True)
    for score in SCORES:
        print(stats.format_table(bootstrap_table(score, args.runs, args.resamples)), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
