"""Scores of a heatmap against a mask, each named by its exact convention.

Every score is a pure function of a heatmap (float ``(h, w)``, any scale, higher = more of the phrase) and a mask
(bool ``(H, W)``, the truth). A heatmap of another size is resampled bilinearly to the mask's by `resize`; nothing is
normalised, smoothed or clipped on the way. A pixel is its centre: ``(row + 0.5, column + 0.5)``.

Degenerate input, the same for every function:

- NaN or infinity in the heatmap, an empty mask, a full mask: ``ValueError``. There is nothing to localise in the last
  two; leave such rows out and count them.
- A constant heatmap is a guess that knows nothing: AUC 0.5, pointing game = area of the mask, CNR 0, no foreground (so
  IoU, Dice and box IoU 0), and its centre is the image's.

Sources: Dombrowski et al., AAAI 2024, arXiv:2303.17908 (2023 below); Vilouras et al. 2024, arXiv:2404.12920;
Boecking et al., ECCV 2022, arXiv:2204.09817; Zhang et al., IJCV 2018, arXiv:1608.00507 (pointing game).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import ndimage

from chestxai.studies import Box, box_of

#: The keys of `score`, in the order of a grounding table's columns.
SCORES = ("auc_roc", "pointing_game", "cnr", "iou", "dice", "miou", "bbox_iou", "centre_distance")

#: Scores of which a smaller value is the better one.
LOWER_IS_BETTER = frozenset({"centre_distance"})

Threshold = Literal["gmm"] | float

# Above this many pixels the mixture is fitted on as many equal-width bins (each at the mean of its pixels): 64² maps,
# the paper's, are fitted pixel by pixel, and a 512² map costs no more than they do.
_NODES = 4096


def resize(heatmap: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resample a heatmap bilinearly with half-pixel centres; unchanged when it already has that shape.

    Equal to ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False, antialias=True)``, where
    antialiasing acts on shrinking only.

    Args:
        heatmap: float ``(h, w)``.
        shape: ``(height, width)`` in pixels.

    Returns:
        ``shape``, float32 when resampled; values stay within the heatmap's range and plateaus stay plateaus.
    """
    heatmap = _finite(heatmap)
    if heatmap.shape == tuple(shape):
        return heatmap
    rows, columns = _weights(heatmap.shape[0], shape[0]), _weights(heatmap.shape[1], shape[1])
    # Rounding to float32 also undoes the rounding errors of the products, which would break ties.
    return (rows @ heatmap.astype(np.float64) @ columns.T).astype(np.float32)


def auc_roc(heatmap: np.ndarray, mask: np.ndarray) -> float:
    """Area under the pixel-wise ROC curve, in [0, 1]; chance 0.5.

    The probability that a pixel of the mask is hotter than one outside, a tie counting one half (Mann–Whitney U), hence
    exact and unchanged by any strictly increasing transform of the heatmap.
    """
    heatmap, mask = _same_size(heatmap, mask)
    inside, outside = np.sort(heatmap[mask]), np.sort(heatmap[~mask])
    below = np.searchsorted(outside, inside, "left").sum(dtype=np.float64)
    not_above = np.searchsorted(outside, inside, "right").sum(dtype=np.float64)
    return float((below + not_above) / 2 / inside.size / outside.size)


def pointing_game(heatmap: np.ndarray, mask: np.ndarray, tolerance: float = 0) -> float:
    """Top-1: 1 if the hottest pixel lies in the mask, else 0; chance is the mask's area.

    Where several pixels share the maximum, the fraction of them that hit: the expected score of breaking the tie at
    random, so that a constant map gets chance and not what the first pixel happens to give.

    Args:
        heatmap: float ``(h, w)``.
        mask: bool ``(H, W)``.
        tolerance: a pixel up to this far from the mask (Euclidean, pixels of the mask) hits too; 15 in Zhang et al.
    """
    heatmap, mask = _same_size(heatmap, mask)
    if tolerance < 0:
        raise ValueError(f"tolerance is a distance in pixels, ≥ 0: got {tolerance}")
    if tolerance:
        mask = ndimage.distance_transform_edt(~mask) <= tolerance
    return float(mask[heatmap == heatmap.max()].mean())


def cnr(heatmap: np.ndarray, mask: np.ndarray, signed: bool = True, ddof: int = 1) -> float:
    """Contrast-to-noise ratio ``(mean_in − mean_out) / sqrt(var_in + var_out)``; unbounded, chance 0.

    ``signed=True, ddof=1`` is Dombrowski et al. 2023 (a map hot in the wrong place is negative, unbiased variances);
    ``signed=False`` takes the absolute value, as Vilouras et al. 2024 and Boecking et al. 2022 do, so that random maps
    score above 0. Unchanged by scaling and shifting the heatmap.

    A variance of fewer than ``ddof + 1`` pixels counts 0; no noise at all gives 0 for equal means, else ±infinity.
    """
    heatmap, mask = _same_size(heatmap, mask)
    inside, outside = heatmap[mask].astype(np.float64), heatmap[~mask].astype(np.float64)
    contrast = float(inside.mean() - outside.mean())
    noise = math.sqrt(sum(float(v.var(ddof=ddof)) if v.size > ddof else 0.0 for v in (inside, outside)))
    # Relative to the map's magnitude: a constant map's mean is off by a rounding error, which is no contrast.
    if abs(contrast) <= 1e-12 * float(np.abs(heatmap).max()):
        return 0.0
    ratio = contrast / noise if noise else math.copysign(math.inf, contrast)
    return ratio if signed else abs(ratio)


def gmm_threshold(heatmap: np.ndarray, tol: float = 1e-3, max_iter: int = 100) -> float:
    """The mean of the two means of a two-component Gaussian mixture of the heatmap's values (Dombrowski et al. 2023).

    Expectation–maximisation exactly as ``sklearn.mixture.GaussianMixture(2, tol=…, max_iter=…, reg_covar=1e-6)`` does
    it, with two differences that make it a function of the map alone: values are standardised first (so that
    the regularisation does not depend on the scale of attention), and it starts from the best 2-means split, which in
    one dimension can be found exactly, rather than from a random one.

    Returns:
        a threshold in the heatmap's units; foreground is what lies above it. A constant map returns its value.
    """
    values = _finite(heatmap).astype(np.float64).ravel()
    centre, scale = values.mean(), values.std()
    if values.min() == values.max() or scale == 0:
        return float(values[0])
    x, w = _nodes((values - centre) / scale)

    total, left = (w * x).sum(), np.cumsum(w)[:-1]
    between = (total * left - np.cumsum(w * x)[:-1]) ** 2 / (left * (1 - left))
    upper = np.arange(x.size) > int(between.argmax())
    resp, bound = np.stack([~upper, upper]).astype(np.float64), -math.inf
    for _ in range(max_iter):
        mass = (resp * w).sum(axis=1) + 10 * np.finfo(float).eps
        means = (resp * w) @ x / mass
        variances = (resp * w * (x - means[:, None]) ** 2).sum(axis=1) / mass + 1e-6
        log = (
            np.log(mass / mass.sum())[:, None]
            - 0.5 * np.log(2 * np.pi * variances)[:, None]
            - 0.5 * (x - means[:, None]) ** 2 / variances[:, None]
        )
        norm = np.logaddexp(log[0], log[1])
        resp, previous, bound = np.exp(log - norm), bound, float((w * norm).sum())
        if abs(bound - previous) < tol:
            break
    mass = (resp * w).sum(axis=1) + 10 * np.finfo(float).eps
    return float(centre + scale * ((resp * w) @ x / mass).mean())


def foreground(heatmap: np.ndarray, shape: tuple[int, int], threshold: Threshold = "gmm") -> np.ndarray:
    """The thresholded heatmap: bool ``shape``, True where the resized map lies strictly above the threshold.

    Args:
        heatmap: float ``(h, w)``. The threshold is taken from it as it is, before it is resized (as in the paper).
        shape: ``(height, width)`` in pixels.
        threshold: ``"gmm"`` (`gmm_threshold`), or a fraction in [0, 1] of the map's range above its minimum.
    """
    heatmap = _finite(heatmap)
    if threshold == "gmm":
        value = gmm_threshold(heatmap)
    elif isinstance(threshold, (int, float)) and 0 <= threshold <= 1:
        low, high = float(heatmap.min()), float(heatmap.max())
        value = low + float(threshold) * (high - low)
    else:
        raise ValueError(f"threshold must be 'gmm' or a fraction in [0, 1], got {threshold!r}")
    return resize(heatmap, shape) > value


def iou(heatmap: np.ndarray, mask: np.ndarray, threshold: Threshold = "gmm") -> float:
    """Intersection over union (Jaccard) of the thresholded heatmap and the mask, in [0, 1]; see `foreground`."""
    mask = _checked(mask)
    return _overlaps(foreground(heatmap, mask.shape, threshold), mask)["iou"]


def dice(heatmap: np.ndarray, mask: np.ndarray, threshold: Threshold = "gmm") -> float:
    """Dice coefficient of the thresholded heatmap and the mask, in [0, 1]: ``2·IoU / (1 + IoU)``."""
    mask = _checked(mask)
    return _overlaps(foreground(heatmap, mask.shape, threshold), mask)["dice"]


def miou(
    heatmap: np.ndarray,
    mask: np.ndarray,
    meaning: Literal["classes", "thresholds"] = "classes",
    thresholds: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5),
) -> float:
    """Mean IoU, which means two things; in [0, 1].

    Args:
        heatmap: float ``(h, w)``.
        mask: bool ``(H, W)``.
        meaning: ``"classes"``: ``(IoU of the foreground + IoU of the background) / 2`` after the mixture threshold
            (Dombrowski et al. 2023). The background is easy: random maps reach about 0.29 on a target of 15 %.
            ``"thresholds"``: mean foreground IoU over fixed thresholds of the min-max scaled map (Boecking et al. 2022,
            Vilouras et al. 2024).
        thresholds: fractions in [0, 1] of the second meaning.
    """
    mask = _checked(mask)
    if meaning == "classes":
        return _overlaps(foreground(heatmap, mask.shape), mask)["miou"]
    if meaning == "thresholds" and len(thresholds):
        return float(np.mean([iou(heatmap, mask, t) for t in thresholds]))
    raise ValueError(f"meaning must be 'classes' or 'thresholds' (with at least one threshold), got {meaning!r}")


def bbox_iou(heatmap: np.ndarray, mask: np.ndarray, threshold: Threshold = "gmm", largest: bool = True) -> float:
    """IoU of two boxes, in [0, 1]: of the thresholded heatmap, and the tight box of the whole mask.

    Args:
        heatmap: float ``(h, w)``.
        mask: bool ``(H, W)``; several boxes (both lungs, say) count as the one that holds them all.
        threshold: see `foreground`.
        largest: take the box of the foreground's largest 8-connected part (the first in reading order, of equals);
            False takes the box of all foreground, as Dombrowski et al. 2023 do: one stray pixel then spoils it.
    """
    mask = _checked(mask)
    return _box_iou(_box(foreground(heatmap, mask.shape, threshold), largest), box_of(mask))


def centre_distance(
    heatmap: np.ndarray,
    mask: np.ndarray,
    method: Literal["mass", "box", "argmax"] = "mass",
    threshold: Threshold = "gmm",
) -> float:
    """Distance from the heatmap's centre to the centre of the mask's box, as a fraction of the image's diagonal.

    In [0, 1], lower is better; multiply by ``hypot(*mask.shape)`` for pixels.

    Args:
        heatmap: float ``(h, w)``.
        mask: bool ``(H, W)``.
        method: what the heatmap's centre is. ``"mass"``: the mean position of the thresholded map's pixels (all of
            equal weight). ``"box"``: the centre of the box of all foreground, Dombrowski et al. 2023. ``"argmax"``: the
            hottest pixel; of tied ones, the mean of their distances. A map without foreground points at the middle.
        threshold: see `foreground`; unused by ``"argmax"``.
    """
    mask = _checked(mask)
    if method == "argmax":
        big = resize(heatmap, mask.shape)
        points = np.argwhere(big == big.max()) + 0.5
    elif method in ("mass", "box"):
        points = _centre(foreground(heatmap, mask.shape, threshold), method)
    else:
        raise ValueError(f"method must be 'mass', 'box' or 'argmax', got {method!r}")
    return _relative_distance(points, mask)


def score(heatmap: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """All of `SCORES` with their default conventions; the threshold is fitted once.

    Args:
        heatmap: float ``(h, w)``.
        mask: bool ``(H, W)``.

    Raises:
        ValueError: NaN or infinity in the heatmap; a mask that is empty, full or not 2-D.
    """
    mask = _checked(mask)
    big = resize(heatmap, mask.shape)
    hot = big > gmm_threshold(heatmap)
    return {
        "auc_roc": auc_roc(big, mask),
        "pointing_game": pointing_game(big, mask),
        "cnr": cnr(big, mask),
        **_overlaps(hot, mask),
        "bbox_iou": _box_iou(_box(hot), box_of(mask)),
        "centre_distance": _relative_distance(_centre(hot, "mass"), mask),
    }


def centre_prior(masks: Iterable[np.ndarray]) -> np.ndarray:
    """The mean mask: where a finding usually is, seen without looking at the image.

    Made from the *training* masks of one finding and scored like any heatmap, it is the baseline to beat.

    Args:
        masks: bool ``(H, W)`` each, all of one shape.

    Returns:
        float32 ``(H, W)`` in [0, 1].
    """
    total, n = None, 0
    for mask in masks:
        mask = np.asarray(mask, dtype=bool)
        if total is None:
            total = np.zeros(mask.shape)
        if mask.shape != total.shape:
            raise ValueError(f"masks differ in shape: {total.shape} and {mask.shape}; bring them into one frame first")
        total += mask
        n += 1
    if not n:
        raise ValueError("a centre prior needs at least one training mask of the finding")
    return (total / n).astype(np.float32)


def chance(mask: np.ndarray, shape: tuple[int, int] = (16, 16), n: int = 32, seed: int = 0) -> dict[str, float]:
    """What a random map scores on this mask, for each of `SCORES`.

    Exact where a closed form exists: AUC 0.5; CNR 0; pointing game = area (the maximum may be anywhere). For the
    others, which depend on how coarse a map is, the mean over ``n`` maps of white Gaussian noise.

    Args:
        mask: bool ``(H, W)``.
        shape: size of the noise before it is resized: the size of the heatmaps to compare with.
        n: number of random maps.
        seed: of the noise; the same maps serve all masks of a size.
    """
    mask = _checked(mask)
    random = _random_foregrounds(mask.shape, tuple(shape), n, seed)
    truth = box_of(mask)
    rows = [
        {
            **_overlaps(hot, mask),
            "bbox_iou": _box_iou(box, truth),
            "centre_distance": _relative_distance(centre, mask),
        }
        for hot, box, centre in random
    ]
    known = {"auc_roc": 0.5, "pointing_game": float(mask.mean()), "cnr": 0.0}
    return known | {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def score_table(
    heatmaps: Iterable[np.ndarray],
    masks: Sequence[np.ndarray],
    priors: Sequence[np.ndarray] | None = None,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
) -> list[dict[str, float]]:
    """One row per phrase: ``target`` (area of the mask), `SCORES`, and the same with ``prior_`` and ``chance_``.

    Args:
        heatmaps: float ``(h, w)`` each; may be a generator, nothing is kept.
        masks: bool ``(H, W)``, one for each heatmap.
        priors: the `centre_prior` of each row's finding; without it there are no ``prior_`` keys.
        progress: wraps the loop, e.g. a progress bar.

    Raises:
        ValueError: what `score` raises, naming the row (from 0); or lengths that differ.
    """
    rows = []
    for i, heatmap in enumerate(progress(heatmaps)):
        if i >= len(masks) or (priors is not None and i >= len(priors)):
            raise ValueError(f"there is no mask or prior for heatmap {i}")
        try:
            row = {"target": float(np.mean(masks[i])), **score(heatmap, masks[i])}
            if priors is not None:
                row |= _prefixed("prior_", score(priors[i], masks[i]))
            row |= _prefixed("chance_", chance(masks[i], np.shape(heatmap)))
        except ValueError as error:
            raise ValueError(f"row {i}: {error}") from error
        rows.append(row)
    if len(rows) != len(masks):
        raise ValueError(f"{len(rows)} heatmaps for {len(masks)} masks")
    return rows


def _prefixed(prefix: str, row: Mapping[str, float]) -> dict[str, float]:
    return {prefix + key: value for key, value in row.items()}


def _finite(heatmap: np.ndarray) -> np.ndarray:
    heatmap = np.asarray(heatmap)
    if heatmap.ndim != 2 or not heatmap.size:
        raise ValueError(f"a heatmap is (h, w), got shape {heatmap.shape}")
    if not np.issubdtype(heatmap.dtype, np.floating):
        heatmap = heatmap.astype(np.float32)
    if not np.isfinite(heatmap).all():
        raise ValueError(f"the heatmap has {int((~np.isfinite(heatmap)).sum())} values that are NaN or infinite")
    return heatmap


def _checked(mask: np.ndarray) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != bool:
        raise ValueError(f"a mask is bool (H, W), got {mask.dtype} {mask.shape}")
    if not mask.any() or mask.all():
        which = "full" if mask.size and mask.all() else "empty"
        raise ValueError(f"the mask is {which}: there is nothing to localise; leave the phrase out")
    return mask


def _same_size(heatmap: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask = _checked(mask)
    return resize(heatmap, mask.shape), mask


@lru_cache(maxsize=32)
def _weights(source: int, target: int) -> np.ndarray:
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale - 0.5
    # A triangle as wide as the larger of the two pixels; cutting it off at the border and normalising is clamping.
    weights = np.clip(1 - np.abs(centres[:, None] - np.arange(source)) / max(scale, 1.0), 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


def _nodes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct values and their weights (sum 1), pooled into bins when there are many."""
    if values.size <= _NODES:
        nodes, counts = np.unique(values, return_counts=True)
        return nodes, counts / values.size
    low, high = values.min(), values.max()
    index = np.minimum(((values - low) * (_NODES / (high - low))).astype(np.intp), _NODES - 1)
    counts = np.bincount(index, minlength=_NODES)
    sums = np.bincount(index, weights=values, minlength=_NODES)
    used = counts > 0
    return sums[used] / counts[used], counts[used] / values.size


def _overlaps(hot: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    both, either = int((hot & mask).sum()), int((hot | mask).sum())
    inside = both / either
    outside = (mask.size - either) / (mask.size - both)
    return {"iou": inside, "dice": 2 * inside / (1 + inside), "miou": (inside + outside) / 2}


def _box(hot: np.ndarray, largest: bool = True) -> Box | None:
    if largest:
        labels, n = ndimage.label(hot, structure=np.ones((3, 3)))
        if n > 1:
            hot = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    return box_of(hot)


def _box_iou(a: Box | None, b: Box | None) -> float:
    if a is None or b is None:
        return 0.0
    width = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
    height = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
    both = max(width, 0.0) * max(height, 0.0)
    return both / (a.area + b.area - both)


def _centre(hot: np.ndarray, method: str) -> np.ndarray:
    """(row, column) of a bool image's centre; the middle of the image when it is empty."""
    box = box_of(hot)
    if box is None:
        return np.array(hot.shape) / 2
    if method == "box":
        return np.array([box.y + box.h / 2, box.x + box.w / 2])
    rows, columns = hot.sum(axis=1), hot.sum(axis=0)
    return np.array([np.average(np.arange(v.size) + 0.5, weights=v) for v in (rows, columns)])


def _relative_distance(points: np.ndarray, mask: np.ndarray) -> float:
    """Mean distance of one (row, column) or several to the centre of the mask's box, by the image's diagonal."""
    away = np.atleast_2d(points) - _centre(mask, "box")
    return float(np.hypot(away[:, 0], away[:, 1]).mean() / math.hypot(*mask.shape))


@lru_cache(maxsize=8)
def _random_foregrounds(
    shape: tuple[int, int], coarse: tuple[int, int], n: int, seed: int
) -> list[tuple[np.ndarray, Box | None, np.ndarray]]:
    if n < 1:
        raise ValueError(f"chance needs at least one random map, got n={n}")
    rng = np.random.default_rng(seed)
    maps = [foreground(rng.standard_normal(coarse).astype(np.float32), shape) for _ in range(n)]
    return [(hot, _box(hot), _centre(hot, "mass")) for hot in maps]
