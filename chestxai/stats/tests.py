"""Tests of paired differences, and what they could detect."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from chestxai.stats.intervals import Difference, bootstrap_ci, checked, crossed_variances, group_index, seeds_ci


def paired_difference(a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None, n: int = 2000) -> Difference:
    """Mean of ``a − b`` over the same rows, with a clustered interval and the p-value of `sign_flip_test`.

    ``a`` and ``b`` are float ``(rows,)``, row i on the same item; ``groups, n`` as of `bootstrap_ci`.
    """
    a, b = checked(a, 1, "a"), checked(b, 1, "b")
    if a.shape != b.shape:
        raise ValueError(f"a paired difference needs the same rows in both: got {a.size} and {b.size}")
    interval = bootstrap_ci(a - b, groups, n=n)
    return Difference(**vars(interval), p=sign_flip_test(a - b, groups))


def sign_flip_test(differences: ArrayLike, groups: ArrayLike | None = None, permutations: int = 9999) -> float:
    """Two-sided p-value of a cluster permutation test that paired differences have mean zero.

    The signs of whole groups are flipped: under the null hypothesis the two columns are exchangeable within a group
    (Fisher 1935; Winkler et al. 2015, "Multi-level block permutation"). Exact when ``2**groups ≤ permutations``, else
    Monte Carlo with the usual +1 correction. No p is below ``2 / 2**groups``: five patients cannot reach 0.05.

    ``differences`` are float ``(rows,)``, finite; ``groups`` as of `bootstrap_ci`.
    """
    differences = checked(differences, 1, "differences")
    index, count = group_index(groups, differences.size)
    sums = np.bincount(index, weights=differences, minlength=count)
    if count < 2 or not sums.any():
        return 1.0
    options = {"permutation_type": "samples", "vectorized": True, "n_resamples": permutations, "batch": 1000}
    rng = np.random.default_rng(0)
    return float(stats.permutation_test((sums,), lambda x, axis: x.sum(axis=axis), rng=rng, **options).pvalue)


def p_above(values: np.ndarray, groups: ArrayLike | None = None, bound: float = 0.0) -> float:
    """One-sided p-value of a mean of at most ``bound``: the tail at which an end of `seeds_ci` meets it.

    ``values, groups`` as of `seeds_ci`; NaN with a single group, which has no interval.
    """
    gap, least = values.mean() - bound, 1e-12  # but for rounding

    def beyond(tail: float) -> float:
        found = seeds_ci(values, groups, 1 - 2 * tail)
        return found.high - found.estimate - max(abs(gap) - least, 0)

    ends = 1e-9, 0.5 - 1e-9
    outer, inner = map(beyond, ends)
    tail = optimize.brentq(beyond, *ends) if outer > 0 > inner else ends[int(outer >= 0)]
    return np.nan if np.isnan(outer) else tail if gap > 0 else 1 - tail


def holm(p: ArrayLike) -> np.ndarray:
    """Adjusted p-values (Holm 1979), in the given order: those ≤ α hold with a family-wise error ≤ α.

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
        [0.03, 0.06, 0.06]
    """
    p = checked(p, 1, "p")
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"p-values lie in [0, 1], got {p.min():g} to {p.max():g}")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return adjusted


def minimal_detectable_difference(
    differences: ArrayLike,
    groups: ArrayLike | None = None,
    alpha: float = 0.05,
    patients: int | None = None,
    seeds: int | None = None,
) -> float:
    """The true mean difference that a two-sided paired test of this design detects with a power of 80 %.

    Exact for the t-test on patients by the noncentral t distribution (Bloom 1995, "Minimum detectable effects", with
    the clustered standard error), and nearly so for `sign_flip_test`; it depends on the spread of the ``differences``,
    float ``(rows,)``, a − b on the same items of ``groups``, not on their mean. With several seeds, ``(rows, seeds)``,
    it is for the test by `seeds_ci`, and conservative, the more so with few seeds. ``alpha`` is the level of the test
    (``0.05 / findings`` for one of several under `holm`, at worst), ``patients`` and ``seeds`` are the numbers planned,
    at least 2 of each. Seeds count only where there are several: of one, the spread between them is unknown.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a probability in (0, 1), got {alpha}")
    differences = checked(np.atleast_2d(np.transpose(differences)).T, 2, "differences")
    index, count = group_index(groups, len(differences))
    planned = count if patients is None else patients
    if min(count, planned, (seeds or 2) + (differences.shape[1] < 2)) < 2:
        about = f"there are {count}, and {planned} are planned"
        raise ValueError(f"a spread needs at least two patients: {about} (and two seeds where there are several)")
    by_patient, by_seed, crossed = crossed_variances(differences, index, count)

    def shift(freedom: int) -> float:
        return float(special.nctdtrinc(freedom, 1 - 0.8, stats.t.ppf(1 - alpha / 2, freedom)))

    square = shift(planned - 1) ** 2 * max(by_patient - crossed, 0.0) * count / planned
    trained = differences.shape[1]
    if trained > 1:
        share = trained / (seeds or trained)
        square += shift((seeds or trained) - 1) ** 2 * max(by_seed + crossed * (count / planned - 1), 0.0) * share
    return float(np.sqrt(square))
