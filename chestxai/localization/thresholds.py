"""How a heatmap becomes a foreground: mixture, Otsu, fixed area, fraction of the range, and the oracle."""

import math
from typing import Literal

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from chestxai.localization.maps import EIGHT, CachedMask, cuts, levels, once, resize
from chestxai.postprocess import as_heatmap
from chestxai.runs import InputError

#: A way to choose the foreground, see `foreground`.
Threshold = Literal["gmm", "gmm-majority", "otsu", "oracle"] | tuple[Literal["area"], float] | float

# Above this many pixels the mixture is fitted to as many equal bins, each at the mean of its pixels: a 64² map (the
# paper's size) is fitted pixel by pixel, and a 512² map takes no longer.
_NODES = 4096


def gmm_threshold(heatmap: np.ndarray, standardise: bool = True) -> float:
    """Mean of the means of a two-component Gaussian mixture of the values of ``heatmap`` (Dombrowski et al. 2023).

    Takes the steps of ``sklearn.mixture.GaussianMixture(2)``, from the best 2-means split (exact in one dimension)
    instead of a random start. A constant map gives its value. Without ``standardise`` the values are fitted as they
    are: on attention of 0.01 the regularisation of the variances (1e-6) is large, and components closer than 0.001
    merge.
    """
    values = as_heatmap(heatmap).astype(np.float64).ravel()
    centre, scale = values.mean(), values.std()
    if values.min() == values.max() or scale == 0:
        return float(values[0])
    if not standardise:
        centre, scale = 0.0, 1.0
    # Ours, since scikit-learn takes no weights: 13 times slower on 16², 60 times on 512² (scoring: 6 and 20 times).
    x, w = _nodes((values - centre) / scale)
    total, left = (w * x).sum(), np.cumsum(w)[:-1]
    between = (total * left - np.cumsum(w * x)[:-1]) ** 2 / (left * (1 - left))
    upper = np.arange(x.size) > int(between.argmax())
    resp, bound = np.stack([~upper, upper]).astype(np.float64), -math.inf
    for _ in range(100):
        mass = (resp * w).sum(axis=1) + 10 * np.finfo(float).eps
        means = (resp * w) @ x / mass
        away = (x - means[:, None]) ** 2
        variances = (resp * w * away).sum(axis=1) / mass + 1e-6
        log = np.log(mass / mass.sum())[:, None] - 0.5 * np.log(2 * np.pi * variances)[:, None]
        log = log - 0.5 * away / variances[:, None]
        norm = np.logaddexp(*log)
        resp, previous, bound = np.exp(log - norm), bound, float((w * norm).sum())
        if abs(bound - previous) < 1e-3:
            break
    mass = (resp * w).sum(axis=1) + 10 * np.finfo(float).eps
    return float(centre + scale * ((resp * w) @ x / mass).mean())


def _nodes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct values and their weights (sum 1), pooled into bins when there are many."""
    if values.size <= _NODES:
        nodes, counts = np.unique(values, return_counts=True)
        return nodes, counts / values.size
    low, high = values.min(), values.max()
    index = np.minimum(((values - low) * (_NODES / (high - low))).astype(np.intp), _NODES - 1)
    counts, sums = (np.bincount(index, weights, _NODES) for weights in (None, values))
    used = counts > 0
    return sums[used] / counts[used], counts[used] / values.size


def otsu_threshold(heatmap: np.ndarray) -> float:
    """Otsu's threshold in the units of the heatmap, over 256 bins of its range; a constant map gives its value."""
    values = as_heatmap(heatmap).astype(np.float64)
    low, span = values.min(), np.ptp(values)
    # Scaled first: the bin edges of tiny values would not be distinct.
    return float(low + span * threshold_otsu((values - low) / span)) if span else float(low)


@once
def oracle_threshold(heatmap: np.ndarray, mask: np.ndarray, /) -> tuple[float, float]:
    """The best threshold of the resized ``heatmap`` for ``mask`` (−infinity takes all), and its IoU: an upper bound.

    Exact over all thresholds and unchanged by strictly increasing transforms. Of equals it is the highest threshold.
    """
    hits, called, places = cuts(heatmap, mask)
    ious = hits / (hits[-1] + called - hits)
    best = int(ious.argmax())
    # The foreground lies strictly above the threshold, which is therefore the next lower value of the map.
    values, below = levels(heatmap, mask.shape)[0], places[best] + 1
    return float(values[below]) if below < values.size else -math.inf, float(ious[best])


@once
def foreground(heatmap: np.ndarray, shape: tuple[int, int], /, threshold: Threshold = "gmm") -> np.ndarray:
    """Bool of ``shape`` ``(height, width)``, True where the resized ``heatmap`` lies strictly above the ``threshold``.

    It is computed before resizing, as in the paper. One of

    - ``"gmm"``: `gmm_threshold`;
    - ``"gmm-majority"``: the published code of Dombrowski et al. 2023 and Nützel et al. 2025: the mixture of the values
      as they are, the foreground at the size of the map, each pixel off the border replaced by the majority of its 3 ×
      3 neighbourhood, this 0/1 image resized, and cut at one half;
    - ``"otsu"``: `otsu_threshold`;
    - ``("area", f)``: the hottest fraction ``f`` in (0, 1) of the resized pixels, without ties at the edge;
    - a fraction in [0, 1] of the range of the map above its minimum;
    - of a mask instead of a shape, as the scores take it, also ``"oracle"``: `oracle_threshold`.
    """
    if threshold == "oracle":
        if not isinstance(shape, CachedMask):
            raise InputError("threshold must be one that needs no mask; for the oracle call oracle_threshold")
        return resize(heatmap, shape.shape) > oracle_threshold(heatmap, shape)[0]
    if threshold == "gmm-majority":
        hot = heatmap.values > gmm_threshold(heatmap.values, standardise=False)
        votes = ndimage.correlate(hot.astype(np.int8), EIGHT.astype(np.int8))
        hot[1:-1, 1:-1] = (votes >= 5)[1:-1, 1:-1]
        return resize(hot.astype(np.float32), shape) > 0.5
    values = resize(heatmap, shape)
    if threshold in ("gmm", "otsu"):
        return values > (gmm_threshold if threshold == "gmm" else otsu_threshold)(heatmap.values)
    if isinstance(threshold, (int, float)) and 0 <= threshold <= 1:
        low, high = float(heatmap.values.min()), float(heatmap.values.max())
        return values > low + float(threshold) * (high - low)
    if isinstance(threshold, tuple) and len(threshold) == 2 and threshold[0] == "area" and 0 < threshold[1] < 1:
        first = values.size - 1 - round(threshold[1] * values.size)
        return values > (np.partition(values, first, axis=None)[first] if first >= 0 else -math.inf)
    raise InputError(
        "threshold must be 'gmm', 'gmm-majority', 'otsu', 'oracle', ('area', a fraction in (0, 1)) or a fraction in "
        f"[0, 1], got {threshold!r}"
    )


def scope(mask: CachedMask, threshold: Threshold) -> CachedMask | tuple[int, int]:
    """What a foreground by ``threshold`` depends on besides the map: ``mask`` for the oracle, else its shape."""
    return mask if threshold == "oracle" else mask.shape
