"""How often an interval covers the truth, by simulation."""

import warnings
from collections.abc import Callable

import numpy as np
from scipy import stats

from chestxai.stats.intervals import Interval, bootstrap_ci


def clustered_scores(
    rng: np.random.Generator, patients: int, mean: float = 0.85, spread: float = 6.0, agreement: float = 10.0
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate scores in [0, 1] that come in clusters and are skewed like AUCs: ``(rows,)`` scores and ``patients``.

    A patient's level is drawn by ``rng`` from ``Beta(spread · mean, spread · (1 − mean))``, the scores of its phrases,
    one to three, from ``Beta(agreement · level, agreement · (1 − level))``: the smaller ``spread``, the more patients
    differ; the larger ``agreement``, the more phrases of a patient agree; 0 makes the scores hits and misses.
    """
    groups = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    level = rng.beta(spread * mean, spread * (1 - mean), patients)[groups]
    if not agreement:
        return (rng.random(groups.size) < level).astype(np.float64), groups
    # A level that rounds to 0 or 1 is no valid parameter of a beta distribution.
    level = np.clip(level, 1e-9, 1 - 1e-9)
    return rng.beta(agreement * level, agreement * (1 - level)), groups


def coverage(
    generate: Callable[[np.random.Generator], tuple],
    truth: float,
    interval: Callable[..., Interval] = bootstrap_ci,
    runs: int = 1000,
) -> Interval:
    """Simulate how often an ``interval`` covers the ``truth``; one with NaN bounds does not.

    ``generate`` draws one of ``runs`` data sets, the arguments of ``interval``, from a generator. The share has its own
    95 % interval (Clopper & Pearson 1934): with 1,000 the coverage of a 95 % interval is known to ±1.4 %.

    Example:
        >>> print(coverage(lambda rng: clustered_scores(rng, patients=28), 0.85, runs=100))
        0.950 [0.887, 0.984]
    """
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        # Undercoverage with few groups is what the simulation measures.
        warnings.simplefilter("ignore", UserWarning)
        intervals = [interval(*generate(rng)) for _ in range(runs)]
    low, high = np.array([[i.low, i.high] for i in intervals]).T
    covered = int(((low <= truth) & (truth <= high)).sum())
    bounds = stats.binomtest(covered, runs).proportion_ci()
    return Interval(covered / runs, float(bounds.low), float(bounds.high))
