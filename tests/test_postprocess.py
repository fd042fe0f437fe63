from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from chestxai.postprocess import merge_biases, min_max, smooth, subtract_background
from chestxai.runs import InputError

MAPS = arrays.arrays(np.float32, (9, 9), elements=st.floats(0, 1, width=16))


def blob(row: float, column: float, size: int = 16, width: float = 2.0) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 2 / width**2).astype(np.float32)


def test_scaling_by_hand():
    np.testing.assert_array_equal(min_max(np.array([[2.0, 3.0], [6.0, 4.0]])), [[0, 0.25], [1, 0.5]])
    np.testing.assert_array_equal(min_max(np.full((2, 2), 7.0)), 0)
    np.testing.assert_array_equal(min_max(np.array([[2.0, 3.0, 9.0]]), (2, 4)), [[0, 0.5, 1]])
    with pytest.raises(InputError, match="1 values that are NaN"):
        min_max(np.array([[2.0, np.nan]]))
    with pytest.raises(InputError, match=r"\(h, w\)"):
        min_max(np.zeros(3))


@given(MAPS, st.floats(0.5, 3))
def test_smoothing_keeps_the_mean_and_never_widens_the_range(heatmap, sigma):
    smoothed = smooth(heatmap, sigma)
    assert smoothed.dtype == np.float32
    np.testing.assert_allclose(smoothed.mean(), heatmap.mean(), atol=1e-5)
    assert heatmap.min() - 1e-5 <= smoothed.min()
    assert smoothed.max() <= heatmap.max() + 1e-5


def test_the_background_removes_what_all_tokens_share():
    finding, border = blob(4, 4), blob(12, 12)
    heatmap = 0.1 * finding + 0.3 * border
    assert np.unravel_index(heatmap.argmax(), (16, 16)) == (12, 12)
    assert np.unravel_index(subtract_background(heatmap, border).argmax(), (16, 16)) == (4, 4)
    np.testing.assert_allclose(subtract_background(border, border * 5), 0, atol=1e-6)


@given(MAPS, MAPS, MAPS)
def test_merged_biases_are_bounded_and_ignore_the_scale_of_the_map(heatmap, image, text):
    merged = merge_biases(heatmap, image, text)
    assert merged.dtype == np.float32
    assert merged.min() >= -1e-5
    assert merged.max() <= 2.5
    np.testing.assert_allclose(merge_biases(heatmap * np.float32(4), image, text), merged, atol=1e-4)


def test_biases_that_disagree_leave_the_map_alone_and_equal_ones_take_over():
    heatmap = blob(4, 11)
    # The structural similarity of an image and its negative is below zero, which counts as 0.
    np.testing.assert_allclose(merge_biases(heatmap, blob(8, 8), 1 - blob(8, 8)), min_max(heatmap), atol=1e-6)
    agreed = blob(8, 8)
    np.testing.assert_allclose(merge_biases(heatmap, agreed, agreed), min_max(agreed @ agreed), atol=1e-5)


def test_merging_by_hand():
    a, one, two = blob(4, 11), blob(8, 8), blob(9, 8)
    tensors = [torch.from_numpy(min_max(m))[None, None] for m in (one, two)]
    s = float(ssim(*tensors, gaussian_kernel=False, kernel_size=7, data_range=1.0))
    assert 0.2 < s < 0.9
    m, a = min_max(one @ two), min_max(a)
    expected = 2 * (1 - s) * s * ((m + a + m * a) / 2) + (1 - s) ** 2 * a + s**2 * m
    np.testing.assert_allclose(merge_biases(blob(4, 11), one, two), expected, atol=1e-5)


def test_the_product_is_taken_before_the_mean_over_passes():
    one, two = np.stack([blob(4, 4), blob(12, 12)]), np.stack([blob(4, 4), blob(12, 12)])
    alone = merge_biases(blob(4, 11), one, two)
    assert not np.allclose(alone, merge_biases(blob(4, 11), one.mean(axis=0), two.mean(axis=0)), atol=1e-3)


@pytest.mark.parametrize(
    "shapes", [((9, 8),) * 3, ((4, 4),) * 3, ((9, 9), (9, 9), (2, 9, 9)), ((9, 9), (16, 16), (16, 16))]
)
def test_maps_that_cannot_be_merged_are_refused(shapes):
    with pytest.raises(InputError, match="three square maps of one size, at least 7 × 7"):
        merge_biases(*(np.ones(shape) for shape in shapes))
