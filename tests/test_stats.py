"""Intervals and tests: known answers, agreement with scipy, and whether 95 % intervals hold the truth that often."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from chestxai import stats
from chestxai.stats import Difference, Interval, bootstrap_ci, bootstrap_statistic, paired_difference


def clustered(rng: np.random.Generator, patients: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Values with true mean 0: one to four rows a patient, which share the patient's own level."""
    groups = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    return spread * rng.standard_normal(patients)[groups] + rng.standard_normal(groups.size), groups


class TestPrinting:
    def test_interval(self):
        interval = Interval(0.84216, 0.811, 0.8691)
        assert str(interval) == "0.842 [0.811, 0.869]"
        assert f"{interval}" == str(interval)
        assert f"{interval:.1f}" == "0.8 [0.8, 0.9]"

    def test_difference(self):
        assert str(Difference(0.031, -0.01, 0.052, 0.0042)) == "+0.031 [-0.010, +0.052], p = 0.004"
        assert f"{Difference(0.3, 0.1, 0.5, 0.0001):.1f}" == "0.3 [0.1, 0.5], p < 0.001"


class TestBootstrap:
    def test_two_patients_by_hand(self):
        # Resamples of {0, 0} and {1}: twice the first (mean 0), twice the second (1), or each (1/3): 1/4, 1/4, 1/2.
        interval = bootstrap_ci([0.0, 0.0, 1.0], groups=["a", "a", "b"])
        assert (interval.estimate, interval.low, interval.high) == (pytest.approx(1 / 3), 0, 1)

    @pytest.mark.parametrize(("method", "name"), [("percentile", "percentile"), ("bca", "BCa")])
    def test_without_groups_it_is_scipys(self, method, name):
        values = np.random.default_rng(0).exponential(size=40)
        expected = scipy_stats.bootstrap(
            (values,), np.mean, n_resamples=4000, method=name, rng=np.random.default_rng(1)
        ).confidence_interval
        found = bootstrap_ci(values, n=4000, method=method)
        # The same procedure on other random numbers.
        assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.03)

    def test_the_fast_mean_is_the_slow_mean(self):
        values, groups = clustered(np.random.default_rng(0), 30)
        for method in ("percentile", "bca"):
            fast = bootstrap_ci(values, groups, n=300, method=method)
            slow = bootstrap_ci(values, groups, statistic=lambda v: v.mean(), n=300, method=method)
            assert vars(fast) == pytest.approx(vars(slow), abs=1e-12)

    def test_clusters_widen_the_interval(self):
        """Five copies of every row are no new evidence."""
        values = np.random.default_rng(0).standard_normal(100)
        copies, groups = np.repeat(values, 5), np.repeat(np.arange(100), 5)
        once, ignored, clustered_ = bootstrap_ci(values), bootstrap_ci(copies), bootstrap_ci(copies, groups)
        width = once.high - once.low
        assert clustered_.high - clustered_.low == pytest.approx(width)
        assert ignored.high - ignored.low == pytest.approx(width / math.sqrt(5), rel=0.15)

    @pytest.mark.parametrize("method", ["percentile", "bca"])
    def test_coverage(self, method):
        """Of 95 % intervals on 60 simulated patients, about 95 % hold the true mean."""
        rng, runs = np.random.default_rng(0), 400
        held = 0
        for i in range(runs):
            values, groups = clustered(rng, 60)
            interval = bootstrap_ci(values, groups, n=500, method=method, seed=i)
            held += interval.low <= 0 <= interval.high
        assert held / runs == pytest.approx(0.95, abs=0.03)

    @given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 4)), min_size=2, max_size=12), st.floats(-9, 9))
    def test_order_and_shift(self, rows, shift):
        values, groups = np.array([v for v, _ in rows]), [g for _, g in rows]
        interval = bootstrap_ci(values, groups, n=50)
        if len(set(groups)) == 1:
            assert math.isnan(interval.low)
            return
        assert values.min() - 1e-9 <= interval.low <= interval.high <= values.max() + 1e-9
        moved = bootstrap_ci(values + shift, groups, n=50)
        assert vars(moved) == pytest.approx({k: v + shift for k, v in vars(interval).items()}, abs=1e-9)

    def test_same_seed_same_interval(self):
        values, groups = clustered(np.random.default_rng(0), 20)
        assert bootstrap_ci(values, groups) == bootstrap_ci(values, groups)
        assert bootstrap_ci(values, groups) != bootstrap_ci(values, groups, seed=1)

    @pytest.mark.parametrize("method", ["percentile", "bca"])
    def test_no_variation_is_no_width(self, method):
        assert vars(bootstrap_ci([2.0, 2.0, 2.0], method=method)) == {"estimate": 2, "low": 2, "high": 2}

    def test_bad_input(self):
        with pytest.raises(ValueError, match="at least one row"):
            bootstrap_ci([])
        with pytest.raises(ValueError, match=r"1 rows that are NaN or infinite \(the first: 1\)"):
            bootstrap_ci([0.0, math.nan])
        with pytest.raises(ValueError, match="one group for each of 2 rows"):
            bootstrap_ci([0.0, 1.0], groups=[1])
        with pytest.raises(ValueError, match="method must be"):
            bootstrap_ci([0.0, 1.0], method="basic")
        with pytest.raises(ValueError, match="level"):
            bootstrap_ci([0.0, 1.0], level=95)


class TestBootstrapStatistic:
    def test_a_correlation(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal(80)
        y = x + rng.standard_normal(80)
        interval = bootstrap_statistic((x, y), lambda a, b: np.corrcoef(a, b)[0, 1])
        assert interval.low < interval.estimate == np.corrcoef(x, y)[0, 1] < interval.high
        assert 0.2 < interval.high - interval.low < 0.35

    def test_rows_of_a_patient_stay_together(self):
        groups = np.array(["b", "a", "b", "c"])
        seen = []
        bootstrap_statistic((np.arange(4), groups), lambda rows, names: seen.append((rows, names)) or 0.0, groups, n=50)
        for rows, names in seen:
            assert (groups[rows] == names).all()
            assert (rows == 0).sum() == (rows == 2).sum()

    def test_resamples_without_an_answer_are_left_out(self):
        values = np.array([1.0, 2.0, 3.0])
        interval = bootstrap_statistic((values,), lambda v: math.nan if len(set(v)) == 1 else v.mean())
        assert 1 < interval.low < interval.high < 3
        nowhere = bootstrap_statistic((values,), lambda v: math.nan)
        assert all(map(math.isnan, vars(nowhere).values()))

    def test_columns_of_different_length(self):
        with pytest.raises(ValueError, match="common number of rows"):
            bootstrap_statistic((np.zeros(3), np.zeros(4)), lambda a, b: 0.0)


class TestPairedDifference:
    def test_by_enumeration(self):
        """With four patients, all sixteen sign flips: as many as extreme as the observed one give the p-value."""
        a, b = np.array([3.0, 1.0, 2.0, 5.0, 1.0]), np.array([1.0, 1.5, 1.0, 1.0, 0.0])
        groups = [0, 0, 1, 2, 3]
        sums = np.array([1.5, 1.0, 4.0, 1.0])
        flips = np.array(list(itertools.product([-1, 1], repeat=4))) @ sums
        result = paired_difference(a, b, groups)
        assert result.estimate == pytest.approx((a - b).mean())
        assert result.p == pytest.approx((np.abs(flips) >= sums.sum() - 1e-12).mean())

    def test_antisymmetric(self):
        rng = np.random.default_rng(0)
        values, groups = clustered(rng, 40)
        other = rng.standard_normal(values.size)
        one, two = paired_difference(values, other, groups), paired_difference(other, values, groups)
        assert (one.estimate, one.low, one.high) == pytest.approx((-two.estimate, -two.high, -two.low), abs=0.02)
        assert one.p == pytest.approx(two.p, abs=0.02)

    def test_pairing_removes_what_both_share(self):
        rng = np.random.default_rng(0)
        hard, groups = clustered(rng, 50, spread=5)
        a, b = hard + 0.2 + 0.1 * rng.standard_normal(hard.size), hard
        result = paired_difference(a, b, groups)
        assert result.low > 0.1
        assert result.p < 0.001
        assert bootstrap_ci(a, groups).low < bootstrap_ci(b, groups).high

    def test_p_is_uniform_when_nothing_differs(self):
        rng = np.random.default_rng(1)
        p = []
        for _ in range(150):
            values, groups = clustered(rng, 12)
            p.append(paired_difference(values, np.zeros(values.size), groups, n=10, permutations=400).p)
        assert np.mean(np.array(p) < 0.05) < 0.11
        assert scipy_stats.kstest(p, "uniform").pvalue > 0.01

    def test_equal_columns(self):
        assert str(paired_difference([1.0, 2.0], [1.0, 2.0])) == "+0.000 [+0.000, +0.000], p = 1.000"

    def test_other_rows(self):
        with pytest.raises(ValueError, match="same rows"):
            paired_difference([1.0, 2.0], [1.0])


def test_seed_everything():
    draws = []
    for _ in range(2):
        rng = stats.seed_everything(3)
        draws.append((random.random(), np.random.rand(), torch.rand(1).item(), rng.random()))  # noqa: NPY002
    assert draws[0] == draws[1]
