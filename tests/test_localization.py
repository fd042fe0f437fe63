"""Localization scores: answers worked out by hand, invariants, parity with sklearn and torch, degenerate input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score
from sklearn.mixture import GaussianMixture

from chestxai import localization as loc


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

    def test_overlaps(self):
        # prediction: columns 2-5 of rows 2-3 (8 pixels), truth: rows 2-5 (16 pixels), all of it inside.
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
        # Scaled by the map's own range, wherever that lies.
        assert loc.miou(7 * heatmap - 3, mask, "thresholds") == pytest.approx(0.8)

    def test_a_random_map_reaches_two_sevenths_in_the_mean_over_classes(self):
        """The trap in (fg + bg) / 2: half of the image, picked blindly, on a target of 15 %."""
        rng = np.random.default_rng(0)
        mask = np.zeros((100, 100), dtype=bool)
        mask[:, :15] = True
        scores = [loc.miou(rng.standard_normal((100, 100)), mask) for _ in range(10)]
        assert np.mean(scores) == pytest.approx(0.29, abs=0.02)

    def test_bbox_takes_the_largest_part_or_everything(self):
        heatmap, mask = square().astype(np.float32), square()
        heatmap[0, 7] = 1
        assert loc.bbox_iou(heatmap, mask) == 1
        assert loc.bbox_iou(heatmap, mask, largest=False) == pytest.approx(16 / 36)

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

    @given(heatmaps, masks, st.floats(0, 1))
    def test_overlaps_are_sklearns(self, heatmap, mask, threshold):
        hot = loc.foreground(heatmap, mask.shape, threshold)
        truth, found = mask.ravel(), hot.ravel()
        inside = jaccard_score(truth, found)
        assert loc.iou(heatmap, mask, threshold) == pytest.approx(inside)
        assert loc.dice(heatmap, mask, threshold) == pytest.approx(f1_score(truth, found))
        both = loc._overlaps(hot, mask)["miou"]
        assert both == pytest.approx((inside + jaccard_score(~truth, ~found, zero_division=0)) / 2)

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("scale", [1e-4, 1, 1e4])
    def test_gmm_threshold_is_sklearns(self, seed, scale):
        """Started at the same split, on the same standardised values, EM takes the very same steps."""
        rng = np.random.default_rng(seed)
        values = scale * np.concatenate([rng.normal(0, 1, 900), rng.normal(2.5, 0.7, 124)])
        z = np.sort((values - values.mean()) / values.std())
        costs = [z[:i].var() * i + z[i:].var() * (z.size - i) for i in range(1, z.size)]
        i = 1 + int(np.argmin(costs))
        parts = z[:i], z[i:]
        mixture = GaussianMixture(
            2,
            weights_init=[len(p) / z.size for p in parts],
            means_init=[[p.mean()] for p in parts],
            precisions_init=[[[1 / (p.var() + 1e-6)]] for p in parts],
        ).fit(z[:, None])
        expected = values.mean() + values.std() * mixture.means_.mean()
        assert loc.gmm_threshold(values.reshape(32, 32)) == pytest.approx(expected, rel=1e-6, abs=1e-9 * scale)

    def test_gmm_threshold_of_many_pixels_is_pooled_without_harm(self):
        heatmap = blob(64, 30, 20, 9) + 0.05 * np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
        large = np.kron(heatmap, np.ones((2, 2), np.float32))  # the same distribution, four times the pixels
        assert loc.gmm_threshold(large) == pytest.approx(loc.gmm_threshold(heatmap), abs=1e-4)


class TestInvariants:
    @given(heatmaps, masks)
    def test_auc_is_blind_to_monotone_transforms(self, heatmap, mask):
        assert loc.auc_roc(np.exp(heatmap.astype(np.float64) / 3), mask) == loc.auc_roc(heatmap, mask)
        assert loc.auc_roc(-heatmap, mask) == pytest.approx(1 - loc.auc_roc(heatmap, mask))

    @given(heatmaps, masks, st.floats(0.01, 100), st.floats(-100, 100))
    def test_cnr_is_blind_to_scale_and_shift(self, heatmap, mask, scale, shift):
        moved = scale * heatmap.astype(np.float64) + shift
        # The shift costs digits where the scale is small.
        assert loc.cnr(moved, mask) == pytest.approx(loc.cnr(heatmap, mask), rel=1e-6, abs=1e-6)

    @given(heatmaps, masks)
    @settings(max_examples=50)
    def test_transposing_both_changes_nothing(self, heatmap, mask):
        # Two parts of equal size are told apart by reading order, which transposing changes: compare the whole box.
        rows = [
            {**loc.score(h, m), "bbox_iou": loc.bbox_iou(h, m, largest=False)}
            for h, m in ((heatmap, mask), (heatmap.T, mask.T))
        ]
        assert rows[0] == pytest.approx(rows[1])

    @given(heatmaps, masks)
    @settings(max_examples=50)
    def test_ranges_and_agreement_with_the_single_functions(self, heatmap, mask):
        row = loc.score(heatmap, mask)
        assert tuple(row) == loc.SCORES
        assert all(0 <= row[key] <= 1 for key in loc.SCORES if key != "cnr")
        assert row == {key: getattr(loc, key)(heatmap, mask) for key in loc.SCORES}

    def test_the_single_functions_agree_to_the_last_bit(self):
        # The norm of one vector and the norms of a row of vectors are computed differently: use one of them only.
        heatmap, mask = np.zeros((6, 7), np.float32), np.zeros((6, 7), dtype=bool)
        heatmap[0, 6] = heatmap[1, 0] = heatmap[2, 4] = -1
        mask[2, 6] = True
        assert loc.score(heatmap, mask)["centre_distance"] == loc.centre_distance(heatmap, mask)

    def test_the_truth_itself_is_perfect(self):
        row = loc.score(square().astype(np.float32), square())
        assert row.pop("cnr") == math.inf
        assert row.pop("centre_distance") == 0
        assert set(row.values()) == {1.0}

    def test_a_small_map_is_scored_at_the_mask(self):
        heatmap, mask = blob(16, 8, 8, 2), square(64, 22, 22, 20, 20)
        assert loc.score(heatmap, mask)["auc_roc"] > 0.99
        assert loc.score(heatmap, mask)["auc_roc"] == loc.auc_roc(loc.resize(heatmap, (64, 64)), mask)


class TestDegenerate:
    def test_a_constant_map_knows_nothing(self):
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

    @pytest.mark.parametrize("name", loc.SCORES)
    def test_nothing_to_localise_is_refused(self, name):
        score, heatmap = getattr(loc, name), np.eye(4)
        with pytest.raises(ValueError, match="mask is empty"):
            score(heatmap, np.zeros((4, 4), dtype=bool))
        with pytest.raises(ValueError, match="mask is full"):
            score(heatmap, np.ones((4, 4), dtype=bool))
        with pytest.raises(ValueError, match="bool"):
            score(heatmap, np.eye(4))
        with pytest.raises(ValueError, match="1 values that are NaN"):
            score(np.where(np.eye(4) * np.arange(4) == 2, np.nan, heatmap), np.eye(4, dtype=bool))
        with pytest.raises(ValueError, match=r"\(h, w\)"):
            score(np.zeros(4), np.eye(4, dtype=bool))

    def test_one_pixel_has_no_variance(self):
        heatmap = np.array([[3.0, 1.0], [0.0, 2.0]])
        assert loc.cnr(heatmap, heatmap == 3) == pytest.approx((3 - 1) / 1)

    def test_wrong_options_name_the_right_ones(self):
        for call in (
            lambda: loc.iou(np.eye(8), square(), 1.5),
            lambda: loc.iou(np.eye(8), square(), "median"),
            lambda: loc.miou(np.eye(8), square(), "both"),
            lambda: loc.centre_distance(np.eye(8), square(), "median"),
            lambda: loc.pointing_game(np.eye(8), square(), -1),
        ):
            with pytest.raises(ValueError, match=r"must be|≥ 0"):
                call()


class TestBaselines:
    def test_centre_prior_is_the_mean_mask(self):
        prior = loc.centre_prior([square(4, 0, 0, 2, 2), square(4, 0, 0, 2, 4)])
        assert prior.dtype == np.float32
        np.testing.assert_array_equal(prior[:2], [[1, 1, 0.5, 0.5]] * 2)
        with pytest.raises(ValueError, match="at least one"):
            loc.centre_prior([])
        with pytest.raises(ValueError, match="differ in shape"):
            loc.centre_prior([square(4), square(8)])

    def test_chance_is_what_random_maps_score(self):
        rng, mask = np.random.default_rng(7), square(32, 3, 5, 12, 14)
        rows = [loc.score(rng.standard_normal((16, 16)), mask) for _ in range(200)]
        expected = loc.chance(mask, (16, 16), n=200)
        assert tuple(expected) == loc.SCORES
        for key in loc.SCORES:
            observed = [row[key] for row in rows]
            # Both are sampled: the closed forms for an infinite number of maps, the others with the same spread.
            assert expected[key] == pytest.approx(np.mean(observed), abs=4 * np.std(observed) / math.sqrt(100)), key

    def test_chance_is_repeatable(self):
        assert loc.chance(square()) == loc.chance(square())
        assert loc.chance(square(), seed=1) != loc.chance(square())

    def test_score_table(self):
        heatmaps, masks = [blob(16, 8, 8, 2), blob(16, 4, 4, 2)], [square(32, 10, 10, 12, 12), square(32, 0, 0, 9, 9)]
        rows = loc.score_table(iter(heatmaps), masks, priors=[loc.centre_prior(masks)] * 2)
        assert list(rows[0]) == ["target", *(p + s for p in ("", "prior_", "chance_") for s in loc.SCORES)]
        assert rows[0]["target"] == 144 / 1024
        assert rows[1]["auc_roc"] == loc.auc_roc(heatmaps[1], masks[1])

    def test_score_table_names_the_bad_row(self):
        with pytest.raises(ValueError, match="row 1: the mask is empty"):
            loc.score_table([np.eye(8)] * 2, [square(), np.zeros((8, 8), dtype=bool)])
        with pytest.raises(ValueError, match="1 heatmaps for 2 masks"):
            loc.score_table([np.eye(8)], [square()] * 2)
        with pytest.raises(ValueError, match="no mask or prior for heatmap 1"):
            loc.score_table([np.eye(8)] * 2, [square()])
