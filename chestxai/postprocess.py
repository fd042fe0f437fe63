"""Operations on a heatmap before it is scored: pure functions on float arrays ``(h, w)``.

None is applied by default. Each changes what a score means, so scores are reported with and without it.
"""

import numpy as np
import torch
from scipy import ndimage

from chestxai.runs import InputError


def as_heatmap(heatmap: np.ndarray) -> np.ndarray:
    """The heatmap as a float array ``(h, w)`` without NaN or infinity, else `InputError`; integers become float32."""
    heatmap = np.asarray(heatmap)
    if heatmap.ndim != 2 or not heatmap.size:
        raise InputError(f"a heatmap is (h, w), got shape {heatmap.shape}")
    if not np.issubdtype(heatmap.dtype, np.floating):
        heatmap = heatmap.astype(np.float32)
    if not np.isfinite(heatmap).all():
        bad = np.count_nonzero(~np.isfinite(heatmap))
        raise InputError(f"a heatmap must be finite: it has {bad} values that are NaN or infinite")
    return heatmap


def min_max(heatmap: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Scale a ``heatmap`` ``(h, w)`` to [0, 1]: float32; a constant map becomes 0.

    ``limits`` are the values that become 0 and 1, beyond which values are clipped; default: the map's own.
    """
    values = as_heatmap(heatmap).astype(np.float32, copy=False)
    low, high = limits or (values.min(), values.max())
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def smooth(heatmap: np.ndarray, sigma: float = 1.0) -> np.ndarray:
    """Smooth a ``heatmap`` with a Gaussian of ``sigma`` pixels, mirrored at the border: float32 of the same mean."""
    return ndimage.gaussian_filter(as_heatmap(heatmap).astype(np.float32), sigma, mode="reflect")


def subtract_background(heatmap: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Difference of the phrase's ``heatmap`` and a ``background``, each scaled by `min_max`: float32 in [-1, 1].

    The background is the map of begin, end or padding, from `grounding.ground_groups`. A BERT's begin and end have read
    the phrase (so has CLIP's end), so words are subtracted, too; "empty prompt" has read none.
    """
    return min_max(heatmap) - min_max(background)


def merge_biases(heatmap: np.ndarray, image_bias: np.ndarray, text_bias: np.ndarray) -> np.ndarray:
    """Bimodal Bias Merging (Nützel et al., MIDL 2025, arXiv:2507.12236): float32 ``(h, w)`` in [0, 2.5].

    ``(1 − s)² a + s² m + 2 s (1 − s) (a + m + a m) / 2``, with ``a`` the phrase's map and ``m`` the matrix product of
    the biases, both scaled by `min_max`, and ``s`` the SSIM of the biases (uniform 7 × 7 window, at least 0). Where
    image and text agree on a location their product counts; where they do not, the map is unchanged. The authors' code
    takes the product per timestep and layer and then the mean; a leading axis does the same here.

    Args:
        heatmap: Map of the phrase on the image, ``(h, w)`` with ``h == w``, at least 7.
        image_bias: Map of the begin token on the image, ``(h, w)`` or ``(n, h, w)``, from `grounding.ground_groups`. A
            BERT's begin token has read the phrase: take the "empty prompt" there, the method being made for CLIP.
        text_bias: Map of the phrase in generation from the prompt alone, shaped as ``image_bias``.
    """
    # Its import takes as long as torch's; few need it.
    from torchmetrics.functional.image import structural_similarity_index_measure

    heatmap, one, two = (np.asarray(m, dtype=np.float32) for m in (as_heatmap(heatmap), image_bias, text_bias))
    h, w = heatmap.shape
    if h != w or h < 7 or one.shape != two.shape or one.shape[-2:] != (h, w):
        shapes = f"{heatmap.shape}, {one.shape}, {two.shape}"
        raise InputError(f"merging needs three square maps of one size, at least 7 × 7: got {shapes}")
    product = min_max((one @ two).reshape(-1, h, w).mean(axis=0))
    scaled = [torch.from_numpy(min_max(m.reshape(-1, h, w).mean(axis=0)))[None, None] for m in (one, two)]
    similarity = structural_similarity_index_measure(*scaled, gaussian_kernel=False, kernel_size=7, data_range=1.0)
    s = min(max(float(similarity), 0.0), 1.0)
    a = min_max(heatmap)
    return (1 - s) ** 2 * a + s**2 * product + s * (1 - s) * (a + product + a * product)
