"""Metrics of a reader: F1 and AUC per finding and on average, with patient-clustered intervals."""

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from chestxai.stats import Interval, bootstrap_statistic


def thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Threshold of ``probabilities`` ``(n, k)`` with the highest F1 for each finding; choose it on val.

    Half-way to the next lower probability; the highest of several equally good ones; 0.5 where ``labels`` are all 0.
    """
    out = np.full(probabilities.shape[1], 0.5)
    for i, (p, y) in enumerate(zip(np.asarray(probabilities, np.float64).T, np.asarray(labels).T > 0.5, strict=True)):
        if not y.any():
            continue
        # From counts, not from precision and recall: equal F1 must compare equal.
        values = np.unique(p)[::-1]
        called = p[:, None] >= values
        best = int(np.argmax(2 * (called & y[:, None]).sum(axis=0) / (called.sum(axis=0) + y.sum())))
        below = values[best + 1] if best + 1 < len(values) else 0.0 if values[best] > 0 else values[best] - 1
        out[i] = (values[best] + below) / 2
    return out


def f1(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """F1 of each finding from ``predicted`` and ``labels`` ``(n, k)``; NaN if neither present nor predicted."""
    # A bootstrap calls this 65,000 times in chapter 11; `sklearn.metrics.f1_score` takes several hundred times as long.
    predicted, labels = np.asarray(predicted) > 0.5, np.asarray(labels) > 0.5
    both, either = (predicted & labels).sum(axis=0), predicted.sum(axis=0) + labels.sum(axis=0)
    return 2 * both / np.where(either > 0, either, np.nan)


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean of `f1` over the findings for which it is defined, NaN if there are none; ``predicted, labels`` as there."""
    values = f1(predicted, labels)
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def scored(
    predicted: np.ndarray, labels: np.ndarray, groups: Sequence[Hashable] | None = None, n: int = 500
) -> Interval:
    """`macro_f1` of ``predicted`` with a clustered interval; ``labels, groups, n`` as of `difference`."""
    return bootstrap_statistic((predicted, labels), macro_f1, groups, n=n)


def difference(
    a: np.ndarray,
    b: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[Hashable] | None = None,
    score: Callable[[np.ndarray, np.ndarray], float] = macro_f1,
    n: int = 500,
) -> Interval:
    """Score of ``a`` minus that of ``b`` on the same rows, with a paired clustered interval of ``n`` resamples.

    ``a``, ``b`` and ``labels`` are ``(n, k)``, ``groups`` the patients, and ``score(predictions, labels)`` the score.
    """
    return bootstrap_statistic((a, b, labels), lambda x, y, z: score(x, z) - score(y, z), groups, n=n)
