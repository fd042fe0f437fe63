"""Tests of paired differences, what they could detect, and where the variance comes from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from chestxai.stats.intervals import Difference, bootstrap_ci, checked, crossed_variances, group_index


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
    differences: ArrayLike, groups: ArrayLike | None = None, alpha: float = 0.05, patients: int | None = None
) -> float:
    """The true mean difference that a two-sided paired test of this design detects with a power of 80 %.

    Exact for the t-test on patients by the noncentral t distribution (Bloom 1995, "Minimum detectable effects", with
    the clustered standard error), and nearly so for `sign_flip_test`; it depends on the spread of the ``differences``,
    float ``(rows,)``, a − b on the same items of ``groups``, not on their mean. With several seeds, ``(rows, seeds)``,
    it is for the test by `seeds_ci`, and conservative, the more so with few seeds. ``alpha`` is the level of the test
    (``0.05 / findings`` for one of several under `holm`, at worst), ``patients`` the number planned, at least 2.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a probability in (0, 1), got {alpha}")
    differences = checked(np.atleast_2d(np.transpose(differences)).T, 2, "differences")
    index, count = group_index(groups, len(differences))
    planned = count if patients is None else patients
    if min(count, planned) < 2:
        raise ValueError(f"a spread needs at least two patients: there are {count}, and {planned} are planned")
    by_patient, by_seed, crossed = crossed_variances(differences, index, count)

    def shift(freedom: int) -> float:
        return float(special.nctdtrinc(freedom, 1 - 0.8, stats.t.ppf(1 - alpha / 2, freedom)))

    square = shift(planned - 1) ** 2 * max(by_patient - crossed, 0.0) * count / planned
    if differences.shape[1] > 1:
        square += shift(differences.shape[1] - 1) ** 2 * max(by_seed + crossed * (count / planned - 1), 0.0)
    return float(np.sqrt(square))


@dataclass(frozen=True)
class Components:
    """Variance components of a score, in its unit squared, see `variance_components`."""

    seed: float  #: of the mean over all patients, from seed to seed; NaN with one seed
    patient: float  #: of the mean over all seeds, from patient to patient; with one seed it includes the interaction
    interaction: float  #: of what a seed does to single patients beyond the two; NaN with one seed
    seeds: int
    patients: float  #: equally large patients with the same information, ``rows² / Σ rows_of_patient²``

    def standard_error(self, seeds: int | None = None, patients: float | None = None) -> float:
        """Standard error of the mean over other numbers of seeds and patients (None: as many as there were)."""
        seeds, patients = seeds or self.seeds, patients or self.patients
        parts = self.seed / seeds, self.patient / patients, self.interaction / (seeds * patients)
        return float(np.sqrt(np.nansum(parts)))


def variance_components(values: np.ndarray, groups: ArrayLike | None = None) -> Components:
    """Variance between seeds, between patients, and of their interaction, from the mean squares of the crossed table.

    With one row per patient this is the analysis of variance of two random factors without replication (Searle, Casella
    & McCulloch 1992, 4.3); otherwise patients weigh by their rows. Negative components are set to 0. ``values, groups``
    as of `seeds_ci`, with two groups at least.
    """
    values = checked(values, 2, "values")
    index, count = group_index(groups, len(values))
    if count < 2:
        raise ValueError("the variance between patients needs at least two of them")
    seeds, nan = values.shape[1], float("nan")
    by_patient, by_seed, crossed = crossed_variances(values, index, count)
    patients = float(values.shape[0] ** 2 / np.square(np.bincount(index)).sum())
    if seeds == 1:
        return Components(nan, patients * by_patient, nan, seeds, patients)
    by_seed, by_patient = seeds * max(by_seed - crossed, 0.0), patients * max(by_patient - crossed, 0.0)
    return Components(by_seed, by_patient, seeds * patients * crossed, seeds, patients)
