"""Localization scores: values by hand, invariants, parity with sklearn and torch, protocols, degenerate input."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage, stats
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, roc_auc_score
from sklearn.mixture import GaussianMixture
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from chestxai import localization as loc
from chestxai import runs
from chestxai.localization.maps import CachedMap, CachedMask
from chestxai.localization.references import exact_chance
from chestxai.sources import phantom
from chestxai.studies import Box, Finding, Frame, GroundTruth, Study, phrases


def square(size: int = 8, top: int = 2, left: int = 2, height: int = 4, width: int = 4) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


def blob(size: int, row: float, column: float, width: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size] + 0.5
    return np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * width**2)).astype(np.float32)


# Integers keep sums exact, so that equal values stay equal under the transforms below.
heatmaps = arrays.arrays(np.float32, (6, 7), elements=st.integers(-9, 9).map(float))
masks = arrays.arrays(bool, (6, 7)).filter(lambda m: m.any() and not m.all())


class TestByHand:
    heatmap = np.array([[4.0, 3.0], [2.0, 1.0]], dtype=np.float32)
    mask = np.array([[True, False], [True, False]])

    def test_auc_counts_ordered_pairs(self):
        # inside 4, 2; outside 3, 1: of four pairs, 4>3, 4>1, 2>1 are right and 2>3 is wrong.
        assert loc.auc_roc(self.heatmap, self.mask) == 0.75

    def test_auc_counts_a_tie_one_half(self):
        assert loc.auc_roc(np.array([[1.0, 1.0], [2.0, 0.0]]), np.array([[True, False], [False, True]])) == 0.125

    def test_pointing_game_hits_or_misses(self):
        assert loc.pointing_game(self.heatmap, self.mask) == 1
        assert loc.pointing_game(self.heatmap, ~self.mask) == 0

    def test_pointing_game_breaks_ties_by_expectation(self):
        assert loc.pointing_game(np.array([[5.0, 5.0], [5.0, 0.0]]), np.array([[True, False], [False, False]])) == 1 / 3

    def test_pointing_game_tolerance_is_euclidean(self):
        heatmap, mask = np.zeros((9, 9)), np.zeros((9, 9), dtype=bool)
        heatmap[7, 8], mask[4, 4] = 1, True
        assert loc.pointing_game(heatmap, mask, tolerance=4.9) == 0
        assert loc.pointing_game(heatmap, mask, tolerance=5) == 1

    def test_cnr_signed_and_absolute(self):
        # means 3 and 2, unbiased variances 2 and 2, biased 1 and 1.
        assert loc.cnr(self.heatmap, self.mask) == pytest.approx(1 / 2)
        assert loc.cnr(self.heatmap, ~self.mask) == pytest.approx(-1 / 2)
        assert loc.cnr(self.heatmap, ~self.mask, signed=False) == pytest.approx(1 / 2)
        assert loc.cnr(self.heatmap, self.mask, ddof=0) == pytest.approx(1 / math.sqrt(2))

    def test_average_precision(self):
        # 4 hits (precision 1), 3 misses, 2 hits (precision 2/3); each hit is half of the recall.
        assert loc.average_precision(self.heatmap, self.mask) == pytest.approx((1 + 2 / 3) / 2)

    def test_auc_with_two_thresholds_depends_on_the_maximum_only(self):
        # Above 1: everything (1, 1). Above 4: half of the inside, nothing of the outside, (0, 1/2).
        assert loc.auc_roc(self.heatmap, self.mask, bins=2) == pytest.approx((1 / 2 + 1) / 2)

    def test_energy(self):
        # Of 4, 3, 2, 1 the mask holds 4 and 2; above the minimum of 1 these are 3, 2, 1, 0.
        assert loc.energy(self.heatmap, self.mask) == pytest.approx((3 + 1) / 6)
        assert loc.energy(self.heatmap, self.mask, floor="zero") == pytest.approx((4 + 2) / 10)
        assert loc.energy(self.heatmap - 3, self.mask, floor="zero") == 1  # 1, 0, and negative values that do not count

    def test_pointing_game_by_argmax_takes_the_first(self):
        heatmap, mask = np.array([[5.0, 5.0], [5.0, 0.0]]), np.array([[False, True], [True, False]])
        assert loc.pointing_game(heatmap, mask) == 2 / 3
        assert loc.pointing_game(heatmap, mask, ties="first") == 0

    @pytest.mark.parametrize("many", [False, True])
    def test_pointing_game_of_zhang_et_al_forgives_15_pixels(self, many):
        """A disc of 15 pixels, rim included, with one maximum and with many."""
        heatmap, mask = np.zeros((64, 64)), np.zeros((64, 64), dtype=bool)
        heatmap[20 : 26 if many else 21, 10] = heatmap[20, 10 : 14 if many else 11] = 1
        heatmap[40, 5 : 20 if many else 5] = 1
        hot = heatmap == 1
        mask[32, 19] = True  # from (20, 10): 12 down, 9 right, exactly 15
        far = np.hypot(*(np.argwhere(hot) - (32, 19)).T)
        assert loc.pointing_game(heatmap, mask, tolerance=15) == pytest.approx((far <= 15).mean())
        assert loc.pointing_game(heatmap, mask, tolerance=14.9) < loc.pointing_game(heatmap, mask, tolerance=15)
        assert "pointing_game_15" in loc.PROTOCOLS["full"].scores
        assert loc.score(heatmap, mask, "full")["pointing_game_15"] == loc.pointing_game(heatmap, mask, tolerance=15)

    def test_cnr_per_box(self):
        """Two boxes, and the outside of each."""
        heatmap = np.array([[9.0, 7.0, 0.0, 2.0, 5.0, 3.0]])
        mask = np.array([[1, 1, 0, 0, 2, 2]])
        ratio = lambda a, b: (np.mean(a) - np.mean(b)) / math.sqrt(np.var(a) + np.var(b))  # noqa: E731
        first, second, none = [9, 7], [5, 3], [0, 2]
        options = {"ddof": 0}
        assert loc.cnr(heatmap, mask, **options) == pytest.approx(ratio(first + second, none))
        expected = np.mean([ratio(first, none), ratio(second, none)])
        assert loc.cnr(heatmap, mask, per="box", **options) == pytest.approx(expected)
        expected = np.mean([ratio(first, none + second), ratio(second, none)])
        assert loc.cnr(heatmap, mask, per="box in turn", **options) == pytest.approx(expected)
        # Without labels, the parts that do not touch are the boxes; touching boxes need labels.
        assert loc.cnr(heatmap, mask > 0, per="box") == loc.cnr(heatmap, mask, per="box")
        near = np.array([[1, 1, 2, 2, 0, 0]])
        assert loc.cnr(heatmap, near > 0, per="box") == loc.cnr(heatmap, near > 0) != loc.cnr(heatmap, near, per="box")
        # The absolute value is taken per box: one box above and one below its surroundings do not cancel.
        heatmap = np.array([[2.0, 3.0, 1.0, 1.5, 0.0, -1.0]])
        assert loc.cnr(heatmap, mask, per="box", signed=False) > abs(loc.cnr(heatmap, mask, per="box"))

    def test_otsu_splits_two_clusters_at_the_lower_ones_last_bin(self):
        heatmap = np.array([[0.0, 1.0, 1.98, 10.0, 11.0, 12.0]])
        width = 12 / 256
        assert loc.otsu_threshold(heatmap) == pytest.approx((int(1.98 / width) + 0.5) * width)
        np.testing.assert_array_equal(loc.foreground(heatmap, (1, 6), "otsu"), heatmap > 5)

    def test_a_fixed_area_takes_the_hottest_and_never_more(self):
        heatmap = np.arange(100, dtype=np.float64).reshape(10, 10)
        np.testing.assert_array_equal(loc.foreground(heatmap, (10, 10), ("area", 0.07)), heatmap >= 93)
        assert not loc.foreground(heatmap, (10, 10), ("area", 0.004)).any()
        heatmap[9] = 95  # ten pixels tied where seven are asked for
        assert not loc.foreground(heatmap, (10, 10), ("area", 0.07)).any()
        assert loc.iou(heatmap, heatmap == 95, ("area", 0.1)) == 1

    def test_the_oracle(self):
        heatmap = np.array([[5.0, 4.0, 3.0, 2.0, 1.0]])
        mask = np.array([[True, False, True, False, False]])
        # From the top: 1/2, 1/3, 2/3, 2/4, 2/5.
        assert loc.oracle_threshold(heatmap, mask) == (2, pytest.approx(2 / 3))
        assert loc.iou(heatmap, mask, "oracle") == pytest.approx(2 / 3)
        assert loc.dice(heatmap, mask, "oracle") == pytest.approx(4 / 5)
        # A map that is cold in a large target has one best answer: everything.
        assert loc.oracle_threshold(-heatmap, heatmap > 1) == (-math.inf, pytest.approx(4 / 5))

    def test_the_published_foreground_takes_the_majority_before_it_is_enlarged(self):
        heatmap = np.zeros((7, 7), np.float32)
        heatmap[2:5, 2:5] = 1  # its corners have four hot neighbours of nine, its sides six
        heatmap[0, 6] = heatmap[5, 5] = 1  # a stray pixel on the border stays, one off it goes
        hot = loc.foreground(heatmap, (7, 7), "gmm-majority")
        expected = np.zeros((7, 7), dtype=bool)
        expected[2:5, 3] = expected[3, 2:5] = expected[0, 6] = True
        # (4, 4) has a fifth one in (5, 5).
        expected[4, 4] = True
        np.testing.assert_array_equal(hot, expected)
        # Enlarged as a 0/1 image: a lone pixel of 8 × 8 keeps the pixels nearer to it than to its neighbours.
        lone = np.zeros((8, 8), np.float32)
        lone[0, 0] = 1
        assert (
            loc.foreground(lone, (64, 64), "gmm-majority").sum()
            == (
                torch.nn.functional.interpolate(torch.from_numpy(lone)[None, None], (64, 64), mode="bilinear") > 0.5
            ).sum()
        )

    def test_the_published_box_against_the_mask(self):
        # Rows and columns 2-5, of which the published box keeps 2-4: 9 of 16 pixels.
        heatmap = square().astype(np.float32)
        assert loc.bbox_mask_iou(heatmap, square()) == pytest.approx(9 / 16)
        assert loc.bbox_mask_iou(heatmap, square(), "classes") == pytest.approx((9 / 16 + 48 / 55) / 2)
        assert loc.bbox_mask_iou(np.zeros((8, 8)), square()) == 0

    def test_overlaps(self):
        # Foreground: columns 2-5 of rows 2-3 (8 pixels), all inside the mask: rows 2-5 (16 pixels).
        heatmap, mask = square(height=2).astype(np.float32), square()
        assert loc.iou(heatmap, mask) == 8 / 16
        assert loc.dice(heatmap, mask) == pytest.approx(2 * 8 / (8 + 16))
        assert loc.miou(heatmap, mask) == pytest.approx((8 / 16 + 48 / 56) / 2)
        assert loc.bbox_iou(heatmap, mask) == 8 / 16

    def test_miou_over_thresholds_is_the_mean_iou(self):
        heatmap = np.array([[1.0, 0.25, 0.0, 0.0]])
        mask = np.array([[True, False, False, False]])
        # 0.1 and 0.2 keep two pixels (IoU 1/2), 0.3 to 0.5 keep one (IoU 1).
        assert loc.miou(heatmap, mask, "thresholds") == pytest.approx((2 * 0.5 + 3 * 1) / 5)
        # Thresholds are fractions of the range of the map.
        assert loc.miou(7 * heatmap - 3, mask, "thresholds") == pytest.approx(0.8)

    def test_a_random_map_reaches_two_sevenths_in_the_mean_over_classes(self):
        """The pitfall of (fg + bg) / 2: a random half of the image on a target of 15 %."""
        rng = np.random.default_rng(0)
        mask = np.zeros((100, 100), dtype=bool)
        mask[:, :15] = True
        scores = [loc.miou(rng.standard_normal((100, 100)), mask) for _ in range(10)]
        assert np.mean(scores) == pytest.approx(0.29, abs=0.02)

    def test_bbox_takes_the_largest_part(self):
        heatmap, mask = square().astype(np.float32), square()
        heatmap[0, 7] = 1
        assert loc.bbox_iou(heatmap, mask) == 1

    def test_bbox_parts_touch_at_corners(self):
        heatmap = np.zeros((8, 8))
        heatmap[2:4, 2:4] = heatmap[4:6, 4:6] = 1
        assert loc.bbox_iou(heatmap, square()) == 1

    def test_centre_distance(self):
        heatmap = np.zeros((8, 8))
        heatmap[3:5, 6:8] = 1  # centre (4, 7), three columns right of the mask's (4, 4)
        diagonal = math.hypot(8, 8)
        assert loc.centre_distance(heatmap, square()) == pytest.approx(3 / diagonal)
        assert loc.centre_distance(heatmap, square(), "box") == pytest.approx(3 / diagonal)
        assert loc.centre_distance(heatmap, square(), unit="pixels") == pytest.approx(3)
        two = np.zeros((8, 8), dtype=bool)
        two[4, 0] = two[4, 7] = True
        assert loc.centre_distance(heatmap, two, unit="pixels") == pytest.approx(math.hypot(3, 0.5))
        assert math.isnan(loc.centre_distance(heatmap, two, several="nan"))
        heatmap[3, 7] = 2  # centre of that pixel: (3.5, 7.5)
        assert loc.centre_distance(heatmap, square(), "argmax") == pytest.approx(math.hypot(0.5, 3.5) / diagonal)

    def test_centre_of_mass_and_of_the_box_differ(self):
        heatmap = np.zeros((8, 8))
        heatmap[4, :] = heatmap[:, 0] = 1  # a skewed T: its box is the whole image
        assert loc.centre_distance(heatmap, square(), "box") == 0
        assert loc.centre_distance(heatmap, square(), "mass") > 0.1

    def test_gmm_threshold_of_two_clusters_is_midway(self):
        values = np.concatenate([np.full(90, 1.0), np.full(10, 5.0)]) + np.tile([-0.01, 0.01], 50)
        assert loc.gmm_threshold(values.reshape(10, 10)) == pytest.approx(3, abs=1e-6)


class TestResize:
    @pytest.mark.parametrize(("source", "target"), [((4, 4), (16, 16)), ((16, 12), (50, 64)), ((9, 8), (3, 5))])
    def test_equals_torch(self, source, target):
        heatmap = np.random.default_rng(0).standard_normal(source).astype(np.float32)
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(heatmap)[None, None].double(), target, mode="bilinear", align_corners=False, antialias=True
        )[0, 0]
        np.testing.assert_allclose(loc.resize(heatmap, target), expected, atol=1e-6)

    def test_same_shape_is_untouched(self):
        heatmap = np.random.default_rng(0).standard_normal((5, 5))
        assert loc.resize(heatmap, (5, 5)) is heatmap

    @given(st.floats(-1e3, 1e3, width=32), st.integers(1, 9), st.integers(1, 40))
    def test_a_constant_stays_exactly_constant(self, value, source, target):
        resized = loc.resize(np.full((source, 3), value, np.float32), (target, 11))
        assert (resized == np.float32(value)).all()


class TestParity:
    @given(heatmaps, masks)
    def test_auc_is_sklearns(self, heatmap, mask):
        assert loc.auc_roc(heatmap, mask) == pytest.approx(roc_auc_score(mask.ravel(), heatmap.ravel()), abs=1e-12)

    @given(heatmaps, masks)
    @settings(max_examples=50)
    def test_auc_is_scipys_and_torchmetrics(self, heatmap, mask):
        inside, outside = heatmap[mask], heatmap[~mask]
        u = stats.mannwhitneyu(inside.astype(float), outside.astype(float), method="asymptotic").statistic
        assert loc.auc_roc(heatmap, mask) == pytest.approx(u / inside.size / outside.size, abs=1e-12)
        # torchmetrics treats scores outside of [0, 1] as logits.
        ranks = np.unique(heatmap, return_inverse=True)[1].reshape(-1)
        scores, truth = torch.from_numpy(ranks / 64), torch.from_numpy(mask.ravel().astype(int))
        assert loc.auc_roc(heatmap, mask) == pytest.approx(float(binary_auroc(scores, truth)), abs=1e-6)
        expected = float(binary_average_precision(scores, truth))
        assert loc.average_precision(heatmap, mask) == pytest.approx(expected, abs=1e-6)

    @given(heatmaps, masks)
    def test_average_precision_is_sklearns(self, heatmap, mask):
        expected = average_precision_score(mask.ravel(), heatmap.ravel())
        assert loc.average_precision(heatmap, mask) == pytest.approx(expected, abs=1e-12)

    @given(heatmaps, masks, st.integers(2, 6))
    def test_binned_auc_is_the_curve_through_those_points(self, heatmap, mask, bins):
        low, high = heatmap.min(), heatmap.max()
        points = [(0, 0)]
        for t in np.linspace(1, 0, bins).astype(np.float32):
            hot = heatmap >= low + t * (high - low)
            points.append((hot[~mask].mean(), hot[mask].mean()))
        expected = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
        assert loc.auc_roc(heatmap, mask, bins) == pytest.approx(expected, abs=1e-12)

    @given(heatmaps, masks)
    def test_the_oracle_is_the_best_of_all_thresholds(self, heatmap, mask):
        ious = {t: ((heatmap > t) & mask).sum() / ((heatmap > t) | mask).sum() for t in (-np.inf, *np.unique(heatmap))}
        threshold, best = loc.oracle_threshold(heatmap, mask)
        assert best == pytest.approx(max(ious.values()), abs=1e-12)
        assert threshold == max(t for t, value in ious.items() if value > best - 1e-12)  # the highest of equals

    @given(arrays.arrays(np.float64, 30, elements=st.floats(-1e3, 1e3)))
    @settings(max_examples=50)
    def test_otsu_is_the_best_of_all_splits(self, values):
        """All splits of the histogram by their between-class variance."""
        if np.ptp(values) < 1e-6:
            return
        bins = 256
        counts, edges = np.histogram((values - values.min()) / np.ptp(values), bins, (0, 1))
        centres = (edges[1:] + edges[:-1]) / 2
        apart = []
        for k in range(1, bins):
            below, above = np.repeat(centres[:k], counts[:k]), np.repeat(centres[k:], counts[k:])
            apart.append(below.size * above.size * (below.mean() - above.mean()) ** 2)
        result = (loc.otsu_threshold(values.reshape(5, 6)) - values.min()) / np.ptp(values)
        k = int(np.abs(centres - result).argmin())
        assert result == pytest.approx(centres[k], abs=1e-9)
        assert apart[k] == pytest.approx(max(apart), rel=1e-9)

    @given(heatmaps, masks, st.floats(0, 1))
    def test_overlaps_are_sklearns(self, heatmap, mask, threshold):
        hot = loc.foreground(heatmap, mask.shape, threshold)
        truth, result = mask.ravel(), hot.ravel()
        inside = jaccard_score(truth, result)
        assert loc.iou(heatmap, mask, threshold) == pytest.approx(inside)
        assert loc.dice(heatmap, mask, threshold) == pytest.approx(f1_score(truth, result))
        assert loc.miou(heatmap, mask, threshold=threshold) == pytest.approx(
            (inside + jaccard_score(~truth, ~result, zero_division=0)) / 2
        )

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize(("scale", "standardise"), [(1e-4, True), (1, True), (1e4, True), (1e-3, False)])
    def test_gmm_threshold_is_sklearns(self, seed, scale, standardise):
        """EM takes the same steps from the same split of the same values."""
        rng = np.random.default_rng(seed)
        values = scale * np.concatenate([rng.normal(0, 1, 900), rng.normal(2.5, 0.7, 124)])
        centre, spread = (values.mean(), values.std()) if standardise else (0, 1)
        z = np.sort((values - centre) / spread)
        costs = [z[:i].var() * i + z[i:].var() * (z.size - i) for i in range(1, z.size)]
        i = 1 + int(np.argmin(costs))
        parts = z[:i], z[i:]
        mixture = GaussianMixture(
            2,
            weights_init=[len(p) / z.size for p in parts],
            means_init=[[p.mean()] for p in parts],
            precisions_init=[[[1 / (p.var() + 1e-6)]] for p in parts],
        ).fit(z[:, None])
        expected = centre + spread * mixture.means_.mean()
        result = loc.gmm_threshold(values.reshape(32, 32), standardise=standardise)
        assert result == pytest.approx(expected, rel=1e-6, abs=1e-9 * scale)
        # The regularisation, meant for values of about 1, merges components that differ by thousandths.
        assert standardise or result != pytest.approx(loc.gmm_threshold(values.reshape(32, 32)), rel=1e-3)

    def test_gmm_threshold_of_many_pixels_is_pooled_without_harm(self):
        heatmap = blob(64, 30, 20, 9) + 0.05 * np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
        large = np.kron(heatmap, np.ones((2, 2), np.float32))  # the same distribution, four times the pixels
        assert loc.gmm_threshold(large) == pytest.approx(loc.gmm_threshold(heatmap), abs=1e-4)


class TestInvariants:
    @given(heatmaps, masks)
    def test_rank_scores_ignore_monotone_transforms(self, heatmap, mask):
        moved = np.exp(heatmap.astype(np.float64) / 3)
        for score in (loc.auc_roc, loc.average_precision, lambda h, m: loc.oracle_threshold(h, m)[1]):
            assert score(moved, mask) == score(heatmap, mask)
        assert loc.auc_roc(-heatmap, mask) == pytest.approx(1 - loc.auc_roc(heatmap, mask))

    @given(heatmaps, masks, st.floats(0.01, 100), st.floats(-100, 100))
    def test_cnr_ignores_scale_and_shift(self, heatmap, mask, scale, shift):
        moved = scale * heatmap.astype(np.float64) + shift
        # The shift costs digits where the scale is small.
        for options in ({}, {"signed": False, "ddof": 0}, {"per": "box"}, {"per": "box in turn", "ddof": 0}):
            expected = loc.cnr(heatmap, mask, **options)
            assert loc.cnr(moved, mask, **options) == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert loc.energy(moved, mask) == pytest.approx(loc.energy(heatmap, mask), abs=1e-6)

    @given(heatmaps, masks)
    @settings(max_examples=50)
    def test_transposing_both_changes_nothing(self, heatmap, mask):
        # Transposing changes which of two equal parts comes first.
        book = loc.PROTOCOLS["book"]
        same = replace(book, scores={name: f for name, f in book.scores.items() if name != "bbox_iou"})
        rows = [loc.score(h, m, same) for h, m in ((heatmap, mask), (heatmap.T, mask.T))]
        assert rows[0] == pytest.approx(rows[1])

    @given(heatmaps, masks, st.sampled_from(list(loc.PROTOCOLS)))
    @settings(max_examples=60)
    def test_transposing_both_changes_nothing_under_any_protocol(self, heatmap, mask, name):
        # Without what depends on reading order: the first of equal parts, and boxes in turn.
        heatmap = heatmap + np.arange(42, dtype=np.float32).reshape(6, 7) / 64  # no two are equal
        labels = mask.astype(np.int64)
        rows = [loc.score(heatmap, labels, name), loc.score(heatmap.T, labels.T, name)]
        for row in rows if name in ("book", "full") else ():
            row.pop("bbox_iou")
        assert rows[0] == pytest.approx(rows[1], nan_ok=True, rel=1e-5, abs=1e-6)

    @given(heatmaps, masks)
    @settings(max_examples=50)
    def test_ranges_and_agreement_with_the_single_functions(self, heatmap, mask):
        row = loc.score(heatmap, mask)
        assert tuple(row) == loc.SCORES
        assert all(0 <= row[key] <= 1 for key in loc.SCORES if key != "cnr")
        assert row == {key: getattr(loc, key)(heatmap, mask) for key in loc.SCORES}

    def test_the_single_functions_agree_to_the_last_bit(self):
        # Numpy computes the norm of one vector and the norms of a row of vectors differently.
        heatmap, mask = np.zeros((6, 7), np.float32), np.zeros((6, 7), dtype=bool)
        heatmap[0, 6] = heatmap[1, 0] = heatmap[2, 4] = -1
        mask[2, 6] = True
        assert loc.score(heatmap, mask)["centre_distance"] == loc.centre_distance(heatmap, mask)

    def test_the_mask_itself_is_perfect(self):
        row = loc.score(square().astype(np.float32), square())
        assert row.pop("cnr") == math.inf
        assert row.pop("centre_distance") == 0
        assert set(row.values()) == {1.0}

    @pytest.mark.parametrize("name", loc.PROTOCOLS)
    def test_the_mask_itself_is_perfect_under_every_protocol(self, name):
        mask = square(64, 20, 24, 16, 12)
        row = loc.score(mask.astype(np.float32), mask, name)
        # The majority vote loses the four corners, the published box a row and a column, smoothing an edge.
        voted = 1 - 4 / (16 * 12)
        boxed = 15 * 11 / (16 * 12)
        worst = {"dombrowski2023": min(voted, boxed), "nuetzel2025": min(voted, boxed), "vilouras2024": 0.8}.get(
            name, 1
        )
        for key, value in row.items():
            if key.startswith("cnr"):
                assert value > 3
            elif key in loc.LOWER_IS_BETTER:
                assert value == pytest.approx(0, abs=1e-9)
            elif key == "iou_area":  # the mask, smaller than a tenth, has no ties at its edge
                assert value == 1
            else:
                assert worst - 1e-9 <= value <= 1, key
        assert row["auc_roc"] == pytest.approx(1, abs=0.01)

    @given(heatmaps, masks)
    @settings(max_examples=50)
    def test_ranges_of_every_score(self, heatmap, mask):
        row = loc.score(heatmap, mask, "full")
        assert all(0 <= v <= 1 for k, v in row.items() if not k.startswith("cnr") and k != "centre_distance_pixels")
        assert row["iou_oracle"] >= max(row["iou"], row["iou_otsu"], row["iou_area"], mask.mean())
        assert row["cnr_absolute"] == abs(row["cnr"])
        assert row["centre_distance_pixels"] == pytest.approx(row["centre_distance"] * math.hypot(6, 7))

    @given(heatmaps, st.lists(masks, min_size=3, max_size=3))
    @settings(max_examples=30)
    def test_a_map_scored_on_other_masks_before_scores_the_same(self, heatmap, many):
        """Results kept from mask to mask, as in chance, do not leak from one into another."""
        shared, full = CachedMap(heatmap), loc.PROTOCOLS["full"]
        for mask in (*many, many[0]):
            assert loc.score(shared, mask, full) == loc.score(heatmap, mask, full)

    def test_a_small_map_is_scored_at_the_mask(self):
        heatmap, mask = blob(16, 8, 8, 2), square(64, 22, 22, 20, 20)
        assert loc.score(heatmap, mask)["auc_roc"] > 0.99
        assert loc.score(heatmap, mask)["auc_roc"] == loc.auc_roc(loc.resize(heatmap, (64, 64)), mask)


class TestDegenerate:
    def test_a_constant_map_is_an_uninformed_guess(self):
        mask = square(8, 0, 0, 4, 4)
        for heatmap in (np.zeros((2, 2)), np.full((3, 3), 0.1, np.float32), np.full((8, 8), -1e6)):
            assert loc.score(heatmap, mask) == {
                "auc_roc": 0.5,
                "pointing_game": 0.25,
                "cnr": 0.0,
                "iou": 0.0,
                "dice": 0.0,
                "miou": pytest.approx(0.75 / 2),
                "bbox_iou": 0.0,
                "centre_distance": pytest.approx(0.25),
            }

    def test_a_constant_map_is_an_uninformed_guess_under_any_protocol(self):
        mask = square(8, 0, 0, 4, 4)
        for heatmap in (np.zeros((2, 2)), np.full((3, 3), 0.1, np.float32), np.full((8, 8), -1e6)):
            row = loc.score(heatmap, mask, "full")
            for key in ("average_precision", "pointing_game", "energy", "iou_oracle"):
                assert row[key] == 0.25, key
            for key in ("iou_otsu", "iou_area", "miou_thresholds", "cnr_absolute", "cnr_per_box"):
                assert row[key] == 0, key
            assert row["centre_distance_pixels"] == pytest.approx(math.hypot(2, 2))
            assert loc.energy(heatmap, mask, floor="zero") == 0.25
            assert loc.score(heatmap, mask, "vilouras2024") == {"auc_roc": 0.5, "cnr": 0, "cnr_signed": 0, "miou": 0}
            # Scaling to [0, 1] must not amplify the rounding errors of smoothing.
            large = loc.score(heatmap, square(512, 100, 50, 200, 90), "vilouras2024")
            assert large == {"auc_roc": 0.5, "cnr": 0, "cnr_signed": 0, "miou": 0}
            assert set(loc.score(heatmap, mask, "nuetzel2025").values()) == {0.0}
            published = loc.score(heatmap, mask, "dombrowski2023")
            assert (published["auc_roc"], published["iou"]) == (0.5, 0)
            assert published["centre_distance_pixels"] == pytest.approx(math.hypot(2, 2))

    @pytest.mark.parametrize("name", loc.SCORES)
    def test_nothing_to_localise_is_refused(self, name):
        score, heatmap = getattr(loc, name), np.eye(4)
        with pytest.raises(runs.InputError, match="mask is empty"):
            score(heatmap, np.zeros((4, 4), dtype=bool))
        with pytest.raises(runs.InputError, match="mask is full"):
            score(heatmap, np.ones((4, 4), dtype=bool))
        with pytest.raises(runs.InputError, match="bool"):
            score(heatmap, np.eye(4))
        with pytest.raises(runs.InputError, match="1 values that are NaN"):
            score(np.where(np.eye(4) * np.arange(4) == 2, np.nan, heatmap), np.eye(4, dtype=bool))
        with pytest.raises(runs.InputError, match=r"\(h, w\)"):
            score(np.zeros(4), np.eye(4, dtype=bool))
        with pytest.raises(runs.InputError, match="negative"):
            score(heatmap, -np.eye(4, dtype=np.int8))
        assert score(heatmap, np.eye(4, dtype=np.uint8)) == score(heatmap, np.eye(4, dtype=bool))

    @pytest.mark.parametrize("name", loc.PROTOCOLS)
    def test_nothing_to_localise_is_refused_by_every_protocol(self, name):
        with pytest.raises(runs.InputError, match="mask is empty"):
            loc.score(np.eye(4), np.zeros((4, 4), dtype=np.uint8), name)
        with pytest.raises(runs.InputError, match="1 values that are NaN"):
            loc.score(np.where(np.arange(16).reshape(4, 4) == 7, np.nan, np.eye(4)), np.eye(4, dtype=bool), name)

    def test_one_pixel_has_no_variance(self):
        heatmap = np.array([[3.0, 1.0], [0.0, 2.0]])
        assert loc.cnr(heatmap, heatmap == 3) == pytest.approx((3 - 1) / 1)

    def test_one_pixel_is_a_mask_like_any_other(self):
        pixel = square(8, 2, 5, 1, 1)
        result = loc.score(pixel.astype(np.float32), pixel, "full")
        assert result.pop("cnr") == result.pop("cnr_absolute") == result.pop("cnr_per_box") == math.inf  # no noise
        assert result.pop("centre_distance") == result.pop("centre_distance_pixels") == 0
        assert set(result.values()) == {1.0}
        # Only its neighbour is hotter, which a tolerance of one pixel forgives.
        beside = pixel + 2.0 * np.roll(pixel, 1, axis=1)
        assert loc.auc_roc(beside, pixel) == pytest.approx(62 / 63)
        assert loc.average_precision(beside, pixel) == loc.iou(beside, pixel, "oracle") == 0.5
        assert [loc.pointing_game(beside, pixel, t) for t in (0, 1)] == [0, 1]
        assert loc.chance(pixel, (8, 8), 1)["pointing_game"] == 1 / 64

    def test_wrong_options_name_the_right_ones(self):
        for call in (
            lambda: loc.iou(np.eye(8), square(), 1.5),
            lambda: loc.iou(np.eye(8), square(), "median"),
            lambda: loc.miou(np.eye(8), square(), "both"),
            lambda: loc.centre_distance(np.eye(8), square(), "median"),
            lambda: loc.pointing_game(np.eye(8), square(), -1),
            lambda: loc.pointing_game(np.eye(8), square(), ties="last"),
            lambda: loc.iou(np.eye(8), square(), ("area", 1)),
            lambda: loc.iou(np.eye(8), square(), ["area", 0.5]),
            lambda: loc.foreground(np.eye(8), (8, 8), "oracle"),
            lambda: loc.auc_roc(np.eye(8), square(), bins=1),
            lambda: loc.energy(np.eye(8), square(), floor="mean"),
            lambda: loc.cnr(np.eye(8), square(), per="pixel"),
            lambda: loc.bbox_mask_iou(np.eye(8), square(), meaning="both"),
            lambda: loc.centre_distance(np.eye(8), square(), unit="metres"),
            lambda: loc.centre_distance(np.eye(8), square(), several="first"),
        ):
            with pytest.raises(runs.InputError, match=r"must be|≥ 0"):
                call()


class TestProtocols:
    """The evaluation of each paper written a second time, in torch and loops."""

    def test_dombrowski2023(self):
        rng = np.random.default_rng(1)
        heatmap = (blob(64, 30, 20, 9) + 0.1 * rng.standard_normal((64, 64))).astype(np.float32) / 77
        mask = square(512, 180, 100, 150, 110)
        enlarge = lambda v: torch.nn.functional.interpolate(  # noqa: E731
            torch.as_tensor(v, dtype=torch.float32)[None, None], (512, 512), mode="bilinear", align_corners=False
        )[0, 0]
        hot = torch.from_numpy(heatmap > loc.gmm_threshold(heatmap, standardise=False)).float()
        votes = torch.nn.functional.conv2d(hot[None, None], torch.full((1, 1, 3, 3), 1 / 9))[0, 0]
        hot[1:-1, 1:-1] = (votes >= 0.5).float()
        hot = enlarge(hot).round().bool().numpy()
        scaled = enlarge((heatmap - heatmap.min()) / (heatmap.max() - heatmap.min())).numpy()
        truth, inside, outside = mask.ravel(), *(torch.from_numpy(scaled[m]).double() for m in (mask, ~mask))
        rows, columns = np.flatnonzero(hot.any(axis=1)), np.flatnonzero(hot.any(axis=0))
        box = np.zeros_like(mask)
        box[rows[0] : rows[-1], columns[0] : columns[-1]] = True
        centre = (rows[0] + (rows[-1] - rows[0]) / 2, columns[0] + (columns[-1] - columns[0]) / 2)
        both = lambda a: jaccard_score(~truth, ~a.ravel())  # noqa: E731
        expected = {
            "auc_roc": roc_auc_score(truth, scaled.ravel()),
            "pointing_game": float(mask[np.unravel_index(scaled.argmax(), scaled.shape)]),
            "cnr": float((inside.mean() - outside.mean()) / torch.sqrt(inside.var() + outside.var())),
            "iou": jaccard_score(truth, hot.ravel()),
            "miou": (jaccard_score(truth, hot.ravel()) + both(hot)) / 2,
            "bbox_iou": jaccard_score(truth, box.ravel()),
            "bbox_miou": (jaccard_score(truth, box.ravel()) + both(box)) / 2,
            "centre_distance_pixels": math.hypot(centre[0] - (180 + 149 / 2), centre[1] - (100 + 109 / 2)),
        }
        row = loc.score(heatmap, mask, "dombrowski2023")
        assert row == pytest.approx(expected, abs=1e-6)
        assert 0.1 < row["iou"] < 0.9  # not a trivial overlap, which would test little
        two = mask.astype(np.uint8)
        two[:20, :20] = 2
        assert math.isnan(loc.score(heatmap, two, "dombrowski2023")["centre_distance_pixels"])
        # The mixture depends on the scale of attention in the former, and not in the latter.
        nuetzel = loc.PROTOCOLS["nuetzel2025"]
        assert loc.score(heatmap, mask, nuetzel) == pytest.approx(loc.score(77 * heatmap, mask, nuetzel), abs=1e-5)
        assert loc.score(heatmap / 10, mask, "dombrowski2023") != pytest.approx(row, abs=1e-3)

    def test_vilouras2024(self):
        rng = np.random.default_rng(2)
        heatmap = (blob(64, 20, 18, 7) + 0.2 * rng.standard_normal((64, 64))).astype(np.float32)
        boxes = [(100, 90, 120, 130), (180, 150, 90, 100), (10, 400, 60, 60)]  # y, x, h, w; two of them overlap
        labels = np.zeros((512, 512), np.uint8)
        for i, (y, x, h, w) in enumerate(boxes, start=1):
            region = labels[y : y + h, x : x + w]
            region[region == 0] = i
        big = torch.nn.functional.interpolate(
            torch.from_numpy(heatmap)[None, None], (512, 512), mode="bilinear", align_corners=False
        )[0, 0].numpy()
        big = ndimage.gaussian_filter(big, sigma=(2.5, 2.5), order=0)
        big = (big - big.min()) / (big.max() - big.min())
        big = big * (big > loc.otsu_threshold(big))
        result, left = {True: [], False: []}, big.astype(np.float64)
        for y, x, h, w in boxes:
            inside = left[y : y + h, x : x + w].copy()
            left[y : y + h, x : x + w] = np.nan
            ratio = (np.nanmean(inside) - np.nanmean(left)) / np.sqrt(np.nanvar(inside) + np.nanvar(left))
            result[True].append(ratio)
            result[False].append(abs(ratio))
        truth = labels > 0
        points = [(0, 0), *(((big >= t)[~truth].sum(), (big >= t)[truth].sum()) for t in (1, 0.75, 0.5, 0.25, 0))]
        area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
        expected = {
            "auc_roc": area / points[-1][0] / points[-1][1],
            "cnr": np.mean(result[False]),
            "cnr_signed": np.mean(result[True]),
            "miou": np.mean([jaccard_score(truth.ravel(), (big > t).ravel()) for t in (0.1, 0.2, 0.3, 0.4, 0.5)]),
        }
        row = loc.score(heatmap, labels, "vilouras2024")
        assert row == pytest.approx(expected, abs=1e-6)
        assert row["cnr"] != pytest.approx(row["cnr_signed"])

    def test_a_protocol_is_a_name_or_a_protocol(self):
        own = replace(loc.PROTOCOLS["book"], scores={"ap": loc.average_precision})
        assert loc.score(np.eye(8), square(), own) == {"ap": loc.average_precision(np.eye(8), square())}
        with pytest.raises(runs.InputError, match="no protocol 'vilouras': choose from book, full, dombrowski2023"):
            loc.score(np.eye(8), square(), "vilouras")

    def test_the_books_is_the_default(self):
        assert tuple(loc.PROTOCOLS["book"].scores) == loc.SCORES
        assert set(loc.SCORES) < set(loc.PROTOCOLS["full"].scores)


def test_every_score_has_a_label_and_a_direction():
    scores = {name for protocol in loc.PROTOCOLS.values() for name in protocol.scores}
    assert scores <= set(loc.LABELS)
    assert set(loc.LABELS) > loc.LOWER_IS_BETTER == {c for c, name in loc.NAMES.items() if name.endswith("↓")}
    assert [loc.NAMES[c] for c in ("fid", "ms_ssim", "auc_roc")] == ["FID ↓", "MS-SSIM within a prompt", "AUC-ROC ↑"]


class TestBaselines:
    def test_location_prior_is_the_mean_mask(self):
        prior = loc.location_prior([square(4, 0, 0, 2, 2), square(4, 0, 0, 2, 4)])
        assert prior.dtype == np.float32
        np.testing.assert_array_equal(prior[:2], [[1, 1, 0.5, 0.5]] * 2)
        with pytest.raises(runs.InputError, match="at least one"):
            loc.location_prior([])
        with pytest.raises(runs.InputError, match="differ in shape"):
            loc.location_prior([square(4), square(8)])

    def test_location_priors_of_each_finding(self):
        def truth(name: str, box: Box) -> GroundTruth:
            finding = Finding(name, boxes=(box,))
            return GroundTruth(Study("a", "p", "here", "train", "", (8, 8), (finding,)), finding)

        left, right = Box(0, 0, 4, 8), Box(4, 0, 4, 8)
        priors = loc.location_priors([truth("Edema", left), truth("Edema", right), truth("Atelectasis", left)], 8)
        assert set(priors) == {"Edema", "Atelectasis"}
        np.testing.assert_array_equal(priors["Edema"], np.full((8, 8), 0.5))
        np.testing.assert_array_equal(priors["Atelectasis"], Frame(8, 8, 8).mask(Finding("", boxes=(left,))))
        # A finding without a training mask gets the mean of all masks.
        np.testing.assert_allclose(priors["Pneumonia"][0], [2 / 3] * 4 + [1 / 3] * 4)

    def test_chance_is_what_random_maps_score(self):
        rng, mask = np.random.default_rng(7), square(32, 3, 5, 12, 14)
        rows = [loc.score(rng.standard_normal((16, 16)), mask) for _ in range(200)]
        expected = loc.chance(mask, (16, 16), n=200)
        assert tuple(expected) == loc.SCORES
        for key in loc.SCORES:
            observed = [row[key] for row in rows]
            # Both are sampled, except for the closed forms.
            assert expected[key] == pytest.approx(np.mean(observed), abs=4 * np.std(observed) / math.sqrt(100)), key

    @pytest.mark.parametrize("name", loc.PROTOCOLS)
    def test_chance_is_the_mean_over_its_maps_to_the_last_digit(self, name):
        """A random map that is shared by many masks scores as it does alone."""
        protocol, random = loc.PROTOCOLS[name], np.random.default_rng(0)
        maps = [random.standard_normal((16, 16)).astype(np.float32) for _ in range(4)]
        for mask in (square(48, 5, 9, 20, 14).astype(np.uint8), square(48, 30, 1, 9, 40) + 2 * square(48, 2, 2, 4, 4)):
            result = loc.chance(mask, (16, 16), n=4, protocol=name)
            known = exact_chance(CachedMask(mask), protocol)
            alone = [loc.score(heatmap, mask, name) for heatmap in maps]
            for key in protocol.scores:
                expected = known[key] if key in known else np.mean([row[key] for row in alone])
                assert result[key] == pytest.approx(expected, abs=1e-12, nan_ok=True), key

    def test_chance_is_repeatable(self):
        assert loc.chance(square()) == loc.chance(square())

    def test_a_row_of_the_table_for_each_phrase(self):
        box, other = Box(10, 10, 12, 12), Box(0, 0, 9, 9)
        truths = [case((b,), size=(32, 32)) for b in (box, other)]
        heatmaps, priors = [blob(16, 8, 8, 2), blob(16, 4, 4, 2)], loc.location_priors(truths, 32)
        table = loc.score_truths(heatmaps, truths, priors, 32, text_prior=loc.text_priors(truths, 32))
        for prefix in ("", "prior_", "text_prior_", "chance_"):
            assert {prefix + name for name in loc.SCORES} <= set(table)
        assert table["target"][0] == 144 / 1024
        mask = square(32, 0, 0, 9, 9)
        assert table["auc_roc"][1] == loc.auc_roc(heatmaps[1], mask)
        assert table["prior_iou"][1] == loc.iou(priors["Edema"], mask)
        assert table["chance_dice"][1] == loc.chance(mask, (16, 16))["dice"]
        assert "text_prior_cnr" not in loc.score_truths(heatmaps, truths, priors, 32)

    def test_chance_under_a_protocol_is_what_random_maps_score(self):
        rng, mask = np.random.default_rng(7), square(32, 3, 5, 12, 14)
        rows = [loc.score(rng.standard_normal((16, 16)), mask, "vilouras2024") for _ in range(150)]
        expected = loc.chance(mask, (16, 16), n=150, protocol="vilouras2024")
        for key, value in expected.items():
            observed = [row[key] for row in rows]
            assert value == pytest.approx(np.mean(observed), abs=4 * np.std(observed) / math.sqrt(75)), key
        # The pitfall of the absolute value: chance is not 0.
        assert expected["cnr"] > 0.1 > abs(expected["cnr_signed"])

    def test_chance_is_exact_where_it_can_be(self):
        mask = square(64, 20, 20, 8, 8)
        result = loc.chance(mask, (16, 16), n=3, protocol="full")
        assert (result["auc_roc"], result["cnr"], result["cnr_per_box"]) == (0.5, 0, 0)
        assert result["pointing_game"] == mask.mean()
        far = np.hypot(*(np.maximum(0, np.maximum(20 - i, i - 27)) for i in np.mgrid[:64, :64]))
        assert result["pointing_game_15"] == (far <= 15).mean()
        assert result["cnr_absolute"] > 0
        assert list(result) == list(loc.PROTOCOLS["full"].scores)
        assert loc.chance(mask, (16, 16), n=3, protocol="nuetzel2025")["auc_roc"] == 0.5

    def test_the_bad_phrase_is_named(self):
        cut = case((Box(0, 0, 2, 2),))
        with pytest.raises(runs.InputError, match=r"a/Edema/Edema\.: the mask is empty"):
            loc.score_truths([np.eye(8)], [cut], {"Edema": np.ones((40, 40))}, 40)


def case(boxes: tuple[Box, ...] = (), mask: np.ndarray | None = None, size: tuple[int, int] = (40, 60)) -> GroundTruth:
    finding = Finding("Edema", "Edema.", boxes=boxes, mask=mask)
    return GroundTruth(Study("a", "p", "here", "test", "", size, (finding,)), finding)


class TestTruth:
    def test_boxes_have_labels_and_the_first_one_wins(self):
        truth = case((Box(12, 4, 10, 10), Box(18, 8, 10, 10), Box(0, 0, 5, 5)))
        frame = Frame(40, 60, 40)  # the crop takes ten columns from either side
        labels = loc.box_labels(truth.finding, frame)
        np.testing.assert_array_equal(labels > 0, frame.mask(truth.finding))
        assert labels.dtype == np.uint8
        assert (labels == 1).sum() == 100
        assert (labels == 2).sum() == 100 - 4 * 6
        assert not (labels == 3).any()  # cut away altogether

    def test_parts_of_an_exact_mask(self):
        mask = np.zeros((40, 60), dtype=bool)
        mask[5:9, 15:20] = mask[20:30, 30:40] = True
        assert np.unique(loc.box_labels(case(mask=mask).finding, Frame(40, 60, 40))).tolist() == [0, 1, 2]

    def test_share_that_the_crop_keeps(self):
        frame = Frame(40, 60, 20)
        # Half of 100 pixels, all of 300: 350 of 400.
        boxes = (Box(5, 0, 10, 10), Box(20, 0, 30, 10))
        assert loc.kept(case(boxes).finding, frame) == pytest.approx(350 / 400)
        mask = np.zeros((40, 60), dtype=bool)
        mask[:10, 5:15] = mask[:10, 20:50] = True
        assert loc.kept(case(boxes, mask).finding, frame) == pytest.approx(350 / 400)
        assert loc.kept(case(boxes, np.kron(mask, np.ones((3, 3), bool))).finding, frame) == pytest.approx(350 / 400)
        assert loc.kept(case(boxes).finding, Frame(40, 60, 20, "letterbox")) == pytest.approx(1)
        assert loc.kept(case((Box(0, 0, 10, 40),)).finding, frame) == 0


@pytest.fixture
def run(tmp_path):
    """The folder of a run after chapter 3: two checkpoints on phantoms, with the last phrase not grounded."""
    truths = phrases(phantom.load(n=12))
    grounded, rng = range(len(truths) - 1), np.random.default_rng(0)
    tables = []
    for step in (0, 80):
        maps = rng.standard_normal((len(grounded), 16, 16)).astype(np.float32)
        tensors = {"maps": torch.from_numpy(maps), "rows": torch.tensor(list(grounded))}
        runs.save_tensors(tmp_path / "maps" / f"step-{step}.safetensors", tensors, {"identity": "x"})
        masks = [Frame(*truths[i].study.size, 64).mask(truths[i].finding) for i in grounded]
        about = [
            {"study": t.study.id, "patient": t.study.patient, "finding": t.finding.name, "phrase": t.finding.phrase}
            for t in truths[:-1]
        ]
        scores = [
            {"target": mask.mean(), **loc.score(heatmap, mask)} for heatmap, mask in zip(maps, masks, strict=True)
        ]
        tables.append(pd.DataFrame([{**a, **s, "step": step} for a, s in zip(about, scores, strict=True)]))
    pd.concat(tables).to_csv(tmp_path / "grounding.csv", index=False)
    loc.save_masks(tmp_path / "maps" / "masks.safetensors", truths, 64)
    return tmp_path


class TestScoringAgain:
    def test_the_scores_of_the_book_are_reproduced(self, run):
        old = pd.read_csv(run / "grounding.csv")
        new, skipped = loc.rescore(run, random=2)
        assert not skipped
        assert list(new)[:7] == ["study", "patient", "finding", "phrase", "step", "target", "kept"]
        assert (new["kept"] == 1).all()
        same = ["study", "patient", "finding", "phrase", "step", "target", *loc.SCORES]
        pd.testing.assert_frame_equal(new[same], old[same], check_dtype=False)

    def test_command_line(self, run, capsys):
        assert loc.main([str(run), "--protocol", "vilouras2024", "--random", "2"]) == 0
        table = pd.read_csv(run / "grounding-vilouras2024.csv")
        maps = runs.load_tensors(run / "maps" / "step-80.safetensors")["maps"].numpy()
        masks = runs.load_tensors(run / "maps" / "masks.safetensors")["masks"].numpy()
        again = loc.score(maps[3], masks[3], "vilouras2024")
        row = table[table["step"] == 80].iloc[3]
        assert {key: row[key] for key in again} == pytest.approx(again)
        assert row["chance_cnr"] == pytest.approx(loc.chance(masks[3], (16, 16), 2, protocol="vilouras2024")["cnr"])
        printed = capsys.readouterr().out
        findings = table[table["step"] == 80].groupby("finding")["miou"].mean()
        assert "mean over findings" in printed
        assert f"{findings.mean():.3f}" in printed
        assert loc.main([str(run / "grounding.csv"), "--out", str(run / "here.csv"), "--random", "0"]) == 0
        assert "chance_cnr" not in pd.read_csv(run / "here.csv")

    def test_a_row_that_cannot_be_scored_is_left_out_and_listed(self, run, capsys):
        path = run / "maps" / "step-80.safetensors"
        tensors = runs.load_tensors(path)
        tensors["maps"][2, 0, 0] = math.nan
        runs.save_tensors(path, tensors)
        table, skipped = loc.rescore(run, random=0)
        assert len(table) == len(pd.read_csv(run / "grounding.csv")) - 1
        assert len(skipped) == 1
        assert skipped[0].startswith("step 80, ")
        assert "1 values that are NaN" in skipped[0]
        loc.main([str(run), "--random", "0"])
        assert "1 left out" in capsys.readouterr().out
        tensors["maps"][:] = math.nan
        runs.save_tensors(path, tensors)
        runs.save_tensors(run / "maps" / "step-0.safetensors", tensors)
        with pytest.raises(runs.InputError, match=r"none of .* rows could be scored"):
            loc.rescore(run, random=0)

    def test_files_that_do_not_match_are_named(self, run, tmp_path):
        masks, table = run / "maps" / "masks.safetensors", run / "grounding.csv"
        whole, good = masks.read_bytes(), table.read_text()
        tensors, keys = runs.load_tensors(masks), json.loads(runs.tensor_metadata(masks)["keys"])
        runs.save_tensors(masks, tensors, {"keys": json.dumps(keys[::-1])})
        with pytest.raises(
            runs.InputError, match=r"step-0.safetensors: its \d+ maps and masks are not of the \d+ rows"
        ):
            loc.rescore(run)
        masks.write_bytes(whole[:1000])
        with pytest.raises(runs.InputError, match=r"masks.safetensors: damaged"):
            loc.rescore(run)
        runs.save_tensors(masks, {"masks": tensors["masks"]})
        with pytest.raises(runs.InputError, match=r"masks.safetensors: holds no kept"):
            loc.rescore(run)
        masks.unlink()
        with pytest.raises(runs.InputError, match=r"masks.safetensors is missing: make it with"):
            loc.rescore(run)
        masks.write_bytes(whole)
        table.write_text("".join(good.splitlines(keepends=True)[:-1]))
        with pytest.raises(runs.InputError, match=r"step-80.safetensors: its"):
            loc.rescore(run)
        for text, problem in (("study,step\na,0\n", "lacks the columns patient"), ("", "not a readable table")):
            table.write_text(text)
            with pytest.raises(runs.InputError, match=problem):
                loc.rescore(run)
        table.write_text(good.replace(",80\n", ",last\n"))
        with pytest.raises(runs.InputError, match="step is 'last', not a number"):
            loc.rescore(run)
        with pytest.raises(runs.MissingError, match=r"grounding\.csv is missing"):
            loc.rescore(tmp_path / "elsewhere")

    def test_the_input_table_is_not_overwritten(self, run):
        with pytest.raises(runs.InputError, match="is the table to read"):
            loc.main([str(run), "--out", str(run / "grounding.csv")])
        with pytest.raises(runs.InputError, match="no protocol 'best'"):
            loc.main([str(run), "--protocol", "best"])

    def test_undefined_distances_are_left_out_of_means(self, run):
        table, _ = loc.rescore(run, "dombrowski2023", random=1)
        assert table["centre_distance_pixels"].isna().any()
        means = loc.averages(table, "dombrowski2023")
        assert means.index.tolist() == [(0, "map"), (0, "chance"), (80, "map"), (80, "chance")]
        last = table.loc[table["step"] == 80, "centre_distance_pixels"]
        assert means.loc[(80, "map"), "centre_distance_pixels"] == pytest.approx(np.nanmean(last))
