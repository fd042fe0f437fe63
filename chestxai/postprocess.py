"""What may be done to a heatmap before it is scored: pure functions on float arrays ``(h, w)``.

None of them is applied by default: a heatmap leaves `chestxai.grounding` as it was measured. Each changes what a score
means, so a score is shown with and without.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torchmetrics.functional.image import structural_similarity_index_measure


def min_max(heatmap: np.ndarray) -> np.ndarray:
    """Scale to [0, 1]: float32 of the same shape; a constant map becomes 0."""
    values = np.asarray(heatmap, dtype=np.float32)
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def smooth(heatmap: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    """Gaussian smoothing with ``sigma`` in pixels of the map, mirrored at the border; float32, mean unchanged."""
    return ndimage.gaussian_filter(np.asarray(heatmap, dtype=np.float32), sigma, mode="reflect")


def subtract_background(heatmap: np.ndarray, background: np.ndarray) -> np.ndarray:
    """What a phrase gets more than tokens that say nothing: both scaled by `min_max`, then the difference.

    Args:
        heatmap: of the phrase.
        background: of the begin, end or padding tokens, of the same shape; `grounding.ground_groups` gives them.

    Returns:
        float32 in [-1, 1].
    """
    return min_max(heatmap) - min_max(background)


def merge_biases(heatmap: np.ndarray, image_bias: np.ndarray, text_bias: np.ndarray) -> np.ndarray:
    """Bimodal Bias Merging (Nützel et al., MIDL 2025, arXiv:2507.12236).

    With ``a`` the phrase's map, ``m`` the matrix product of the two biases (both scaled by `min_max`) and ``s`` their
    structural similarity (SSIM, uniform window of 7 pixels, not below 0), the result is

        ``(1 − s)² a + s² m + 2 s (1 − s) (a + m + a m) / 2``.

    So where image and text agree about where something is, their product weighs in; where they do not, the map stays.
    Read off the authors' published code, where the product is taken for each timestep and layer and then averaged; a
    leading axis does the same here.

    Args:
        heatmap: of the phrase on the image, ``(h, w)``; ``h`` and ``w`` are equal.
        image_bias: of the begin token on the image, ``(h, w)`` or ``(n, h, w)``: `grounding.ground_groups`' "begin".
        text_bias: of the phrase while the model draws from the prompt alone (method "generation"), shaped as
            ``image_bias``.

    Returns:
        float32 ``(h, w)`` in [0, 2.5].

    Raises:
        ValueError: shapes that differ or are not square, or maps too small for the window.
    """
    heatmap, one, two = (np.asarray(m, dtype=np.float32) for m in (heatmap, image_bias, text_bias))
    h, w = heatmap.shape
    if h != w or h < 7 or one.shape != two.shape or one.shape[-2:] != (h, w):
        raise ValueError(
            "merging needs three square maps of one size, at least 7 × 7: "
            f"got {heatmap.shape}, {one.shape}, {two.shape}"
        )
    product = min_max((one @ two).reshape(-1, h, w).mean(axis=0))
    scaled = [torch.from_numpy(min_max(m.reshape(-1, h, w).mean(axis=0)))[None, None] for m in (one, two)]
    alike = structural_similarity_index_measure(*scaled, gaussian_kernel=False, kernel_size=7, data_range=1.0)
    s = min(max(float(alike), 0.0), 1.0)
    a = min_max(heatmap)
    return (1 - s) ** 2 * a + s**2 * product + s * (1 - s) * (a + product + a * product)
