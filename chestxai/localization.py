"""Scores of a heatmap against a mask, each named by its exact convention, and the protocols of three papers.

Every score is a pure function of a heatmap (float ``(h, w)``, any scale, higher = more of the phrase) and a mask
(the truth ``(H, W)``: bool, or integer labels of its separate boxes, 0 outside; only scores per box tell them apart).
A heatmap of another size is resampled bilinearly to the mask's by `resize`; nothing is normalised, smoothed or clipped
on the way. A pixel is its centre: ``(row + 0.5, column + 0.5)``.

Degenerate input, the same for every function:

- NaN or infinity in the heatmap, an empty mask, a full mask: ``ValueError``. There is nothing to localise in the last
  two; leave such rows out and count them, as `rescore` does.
- A constant heatmap is a guess that knows nothing: AUC 0.5, average precision, pointing game and energy = area of the
  mask, CNR 0, no foreground (so IoU, Dice and box IoU 0), and its centre is the image's. The oracle may also choose the
  whole image, so that its IoU is at least the area of the mask.
- A mask of one pixel is a mask like any other; its variance counts 0 (`cnr`).
- Several boxes count as their union, except where a score says "per box"; the box of several is the one around all.
- A box that the crop cuts is what is left of it. How much that is, is `kept`; a box cut away altogether leaves an empty
  mask.

`PROTOCOLS` holds what is scored together: the book's scores, all of this module's, and those of three papers.

    python -m chestxai.localization runs/demo/frozen/seed-0 --protocol vilouras2024

scores again what a run has stored, without the model or the images; see `rescore` for the files and columns.

Sources: Dombrowski et al., AAAI 2024, arXiv:2303.17908 (2023 below); Nützel et al., MIDL 2025, arXiv:2507.12236;
Vilouras et al. 2024, arXiv:2404.12920; Boecking et al., ECCV 2022, arXiv:2204.09817; Zhang et al., IJCV 2018,
arXiv:1608.00507 (pointing game); Wang et al., CVPR-W 2020, arXiv:1910.01279 (energy); Otsu, IEEE SMC 1979.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from scipy import ndimage

from chestxai import runs
from chestxai.postprocess import min_max, smooth
from chestxai.studies import Box, Finding, Fit, Frame, GroundTruth, box_of

#: The keys of `score`, in the order of a grounding table's columns.
SCORES = ("auc_roc", "pointing_game", "cnr", "iou", "dice", "miou", "bbox_iou", "centre_distance")

#: Scores of which a smaller value is the better one.
LOWER_IS_BETTER = frozenset({"centre_distance", "centre_distance_pixels"})

#: How a map becomes a foreground, see `foreground`.
Threshold = Literal["gmm", "gmm-majority", "otsu", "oracle"] | tuple[Literal["area"], float] | float

# Above this many pixels the mixture is fitted on as many equal-width bins (each at the mean of its pixels): 64² maps,
# the paper's, are fitted pixel by pixel, and a 512² map costs no more than they do.
_NODES = 4096

# Touching at a corner is touching.
_EIGHT = np.ones((3, 3), dtype=bool)


class _Map:
    """A heatmap that keeps what several scores need of it; every function here takes one in place of an array."""

    def __init__(self, heatmap: np.ndarray) -> None:
        self.values = _finite(heatmap)
        self._kept: dict = {}
        self._target, self._met, self._last = None, 0, {}

    def _once(self, key: object, make: Callable):
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def at(self, shape: tuple[int, int]) -> np.ndarray:
        """The map, resampled to ``shape``."""
        return self._once(("at", shape), lambda: resize(self.values, shape))

    def range(self) -> tuple[float, float]:
        """Lowest and highest value, before any resampling."""
        return self._once("range", lambda: (float(self.values.min()), float(self.values.max())))

    def foreground(self, target: _Target, threshold: Threshold) -> np.ndarray:
        """`foreground`, and the oracle's, which needs the truth."""
        return self._of_cut("hot", target, threshold, lambda: _cut(self, target.mask.shape, threshold))

    def box(self, target: _Target, threshold: Threshold, largest: bool) -> Box | None:
        """Of the foreground, or of its largest part."""
        key = ("box", largest)
        return self._of_cut(key, target, threshold, lambda: _box(self.foreground(target, threshold), largest))

    def centre(self, target: _Target, threshold: Threshold, method: str) -> np.ndarray:
        """Of the foreground."""
        key = ("centre", method)
        return self._of_cut(key, target, threshold, lambda: _centre(self.foreground(target, threshold), method))

    def overlaps(self, target: _Target, threshold: Threshold) -> dict[str, float]:
        """IoU, Dice and mIoU over classes of the foreground."""
        key = ("overlaps", repr(threshold))
        return self._for(target, key, lambda: _overlaps(self.foreground(target, threshold), target.mask))

    def _of_cut(self, key: object, target: _Target, threshold: Threshold, make: Callable):
        """What depends on the map and the threshold alone; on the truth as well under the oracle's."""
        if threshold != "oracle":
            return self._once((key, target.mask.shape, repr(threshold)), make)
        if key == "hot":
            return self._for(target, key, lambda: self.at(target.mask.shape) > _best_cut(self, target)[0])
        return make()

    def sides(self, target: _Target) -> tuple[np.ndarray, np.ndarray]:
        """Values inside and outside of the truth, in reading order."""
        values = self.at(target.mask.shape)
        return self._for(target, "sides", lambda: (values.take(target.inside), values.take(target.outside)))

    def split(self, target: _Target) -> tuple[np.ndarray, np.ndarray]:
        """The same, each in ascending order."""
        return self._for(target, "split", lambda: tuple(map(np.sort, self.sides(target))))

    def ranks(self, target: _Target) -> np.ndarray:
        """For each pixel of the truth how many of the image are below it, ascending."""
        return self._for(target, "ranks", lambda: np.sort(self.below(target.mask.shape).take(target.inside)))

    def below(self, shape: tuple[int, int]) -> np.ndarray:
        """How many pixels lie below each pixel: equal ones share the lowest rank."""
        return self._once(("below", shape), lambda: _below(self.at(shape)))

    def smallest(self, target: _Target, n: int) -> float:
        """The largest of the ``n`` smallest values."""
        values = self.at(target.mask.shape)
        if self.met_before(target):
            return float(self._once(("ordered", values.shape), lambda: np.sort(values, axis=None))[n - 1])
        return float(np.partition(values, n - 1, axis=None)[n - 1])

    def met_before(self, target: _Target) -> bool:
        """Whether this is not its first truth: from the second on, ranking the whole map once and for all pays."""
        self._for(target, "met", lambda: None)
        return self._met > 1

    def contrasts(self, target: _Target, ddof: int, per: str) -> list[float]:
        """The signed contrast-to-noise ratio of each inside, see `cnr`."""
        return self._for(target, ("cnr", ddof, per), lambda: _contrasts(self, target, ddof, per))

    def _for(self, target: _Target, key: object, make: Callable):
        # A random map meets thousands of truths: only the last one's is kept.
        if self._target is not target:
            self._target, self._met, self._last = target, self._met + 1, {}
        if key not in self._last:
            self._last[key] = make()
        return self._last[key]


class _Target:
    """A truth that keeps what several scores need of it; every function here takes one in place of an array."""

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = _checked(mask)
        self._given = np.asarray(mask)

    @cached_property
    def labels(self) -> np.ndarray:
        """Integer labels of the separate parts, 0 outside: those given, else the 8-connected parts in reading order."""
        return self._given if self._given.dtype != bool else ndimage.label(self.mask, structure=_EIGHT)[0]

    @cached_property
    def parts(self) -> list[int]:
        """The labels there are, ascending."""
        return np.unique(self.labels[self.mask]).tolist()

    @cached_property
    def inside(self) -> np.ndarray:
        """Flat indices of its pixels."""
        return np.flatnonzero(self.mask)

    @cached_property
    def outside(self) -> np.ndarray:
        """Flat indices of all others."""
        return np.flatnonzero(~self.mask)

    @cached_property
    def box(self) -> Box:
        """The tight box around everything."""
        return box_of(self.mask)


def _map(heatmap: np.ndarray | _Map) -> _Map:
    return heatmap if isinstance(heatmap, _Map) else _Map(heatmap)


def _target(mask: np.ndarray | _Target) -> _Target:
    return mask if isinstance(mask, _Target) else _Target(mask)


def _both(heatmap: np.ndarray | _Map, mask: np.ndarray | _Target) -> tuple[_Map, _Target]:
    target = _target(mask)
    return _map(heatmap), target


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


def auc_roc(heatmap: np.ndarray, mask: np.ndarray, bins: int | None = None) -> float:
    """Area under the pixel-wise ROC curve, in [0, 1]; chance 0.5.

    The probability that a pixel of the mask is hotter than one outside, a tie counting one half (Mann–Whitney U), hence
    exact and unchanged by any strictly increasing transform of the heatmap.

    Args:
        heatmap: float ``(h, w)``.
        mask: the truth ``(H, W)``.
        bins: at least 2: the curve through so many thresholds only, evenly over the map's range with both ends (a pixel
            at a threshold counts as above), joined by straight lines. Coarse, and no longer blind to monotone
            transforms; Vilouras et al. 2024 use 5.
    """
    heatmap, target = _both(heatmap, mask)
    if bins is None:
        inside, outside = heatmap.split(target)
        below = np.searchsorted(outside, inside, "left").sum(dtype=np.float64)
        not_above = np.searchsorted(outside, inside, "right").sum(dtype=np.float64)
        return float((below + not_above) / 2 / inside.size / outside.size)
    if bins < 2:
        raise ValueError(f"bins must be at least 2, the two ends of the range: got {bins}")
    values, (inside, _) = heatmap.at(target.mask.shape), heatmap.sides(target)
    low, high = values.min(), values.max()
    cuts = low + np.linspace(1, 0, bins).astype(values.dtype) * (high - low)
    hits, called = (np.array([0, *(np.count_nonzero(v >= cut) for cut in cuts)]) for v in (inside, values))
    return float(np.trapezoid(hits / inside.size, (called - hits) / (values.size - inside.size)))


def average_precision(heatmap: np.ndarray, mask: np.ndarray) -> float:
    """Average precision: the mean of the precision over the recall it is reached at, in (0, 1]; chance is the area.

    ``Σ (R_k − R_{k−1}) P_k`` over the distinct values of the map from the hottest down, without interpolation: exactly
    ``sklearn.metrics.average_precision_score``. Unchanged by any strictly increasing transform. Unlike AUC it does not
    reward the easy background, so a small target scores low under any map.
    """
    hits, called = _curve(*_both(heatmap, mask))[:2]
    return float((np.diff(hits, prepend=0) * hits / called).sum() / hits[-1])


def pointing_game(
    heatmap: np.ndarray, mask: np.ndarray, tolerance: float = 0, ties: Literal["expected", "first"] = "expected"
) -> float:
    """Top-1: 1 if the hottest pixel lies in the mask, else 0; chance is the mask's area.

    Args:
        heatmap: float ``(h, w)``.
        mask: the truth ``(H, W)``.
        tolerance: a pixel up to and including this far from the mask hits too: Euclidean, from pixel to pixel, in
            pixels of the mask as it is given. It is taken literally, never scaled with the frame. Zhang et al. take 15
            in photographs at their own size, some 500 pixels (TorchRay, which carries on their benchmark, counts what
            is strictly nearer): 3 % of the side there, but nearly a quarter of a frame of 64. The same share of the
            side is ``15 * side / 500``.
        ties: where several pixels share the maximum, ``"expected"`` is the fraction of them that hit: the expected
            score of breaking the tie at random, so that a constant map gets chance and not what the first pixel happens
            to give. ``"first"`` takes the first in reading order, as an argmax does (Dombrowski et al. 2023).
    """
    heatmap, target = _both(heatmap, mask)
    if tolerance < 0:
        raise ValueError(f"tolerance is a distance in pixels, ≥ 0: got {tolerance}")
    if ties not in ("expected", "first"):
        raise ValueError(f"ties must be 'expected' or 'first', got {ties!r}")
    values, truth = heatmap.at(target.mask.shape), target.mask
    hot = np.flatnonzero(values == values.max())[: 1 if ties == "first" else None]
    if tolerance and hot.size > 16:
        truth = ndimage.distance_transform_edt(~truth) <= tolerance
    elif tolerance:  # a few discs are cheaper than all distances
        return float(np.mean([_near(truth, *divmod(int(i), truth.shape[1]), tolerance) for i in hot]))
    return float(truth.ravel()[hot].mean())


def energy(heatmap: np.ndarray, mask: np.ndarray, floor: Literal["min", "zero"] = "min") -> float:
    """Energy-based pointing game: the share of the map's mass that lies in the mask, in [0, 1]; chance is the area.

    Wang et al. 2020 (Score-CAM), whose maps are rectified and scaled to [0, 1].

    Args:
        heatmap: float ``(h, w)``.
        mask: the truth ``(H, W)``.
        floor: what counts as no mass. ``"min"``: the map's minimum, as after min–max scaling; attention never reaches
            0, and its even part would hide the rest. ``"zero"``: 0, and what is negative is left out: the mass as it
            is. A map without mass gets chance.
    """
    heatmap, target = _both(heatmap, mask)
    if floor not in ("min", "zero"):
        raise ValueError(f"floor must be 'min' or 'zero', got {floor!r}")
    values = heatmap.at(target.mask.shape)
    low = heatmap._once(("low", values.shape), lambda: float(values.min())) if floor == "min" else 0.0

    def above(part: np.ndarray) -> float:
        return float(np.maximum(part.astype(np.float64) - low, 0).sum())

    mass = heatmap._once(("mass", values.shape, floor), lambda: above(values))
    return above(heatmap.sides(target)[0]) / mass if mass else float(target.mask.mean())


def cnr(
    heatmap: np.ndarray,
    mask: np.ndarray,
    signed: bool = True,
    ddof: int = 1,
    per: Literal["union", "box", "box in turn"] = "union",
) -> float:
    """Contrast-to-noise ratio ``(mean_in − mean_out) / sqrt(var_in + var_out)``; unbounded, chance 0.

    ``signed=True, ddof=1`` is Dombrowski et al. 2023 (a map hot in the wrong place is negative, unbiased variances);
    ``signed=False`` takes the absolute value, as Vilouras et al. 2024 and Boecking et al. 2022 do, so that random maps
    score above 0. Unchanged by scaling and shifting the heatmap.

    A variance of fewer than ``ddof + 1`` pixels counts 0; no noise at all gives 0 for equal means, else ±infinity.

    Args:
        heatmap: float ``(h, w)``.
        mask: the truth ``(H, W)``.
        signed: False takes the absolute value, of each box before their mean.
        ddof: of the variances: 1 unbiased, 0 as the mean square.
        per: ``"union"``: all boxes are one inside. ``"box"``: the mean over the boxes (the labels of ``mask``, or its
            8-connected parts), each against what lies in none. ``"box in turn"``: the same, but a box is held against
            everything except itself and the boxes before it, as the code of Vilouras et al. 2024 does: the boxes still
            to come are its background, and their order matters. With one box all three are the same.
    """
    heatmap, target = _both(heatmap, mask)
    if per not in ("union", "box", "box in turn"):
        raise ValueError(f"per must be 'union', 'box' or 'box in turn', got {per!r}")
    found = heatmap.contrasts(target, ddof, "union" if len(target.parts) == 1 else per)
    return float(np.mean(found if signed else np.abs(found)))


def gmm_threshold(heatmap: np.ndarray, tol: float = 1e-3, max_iter: int = 100, standardise: bool = True) -> float:
    """The mean of the two means of a two-component Gaussian mixture of the heatmap's values (Dombrowski et al. 2023).

    Expectation–maximisation exactly as ``sklearn.mixture.GaussianMixture(2, tol=…, max_iter=…, reg_covar=1e-6)`` does
    it, with two differences that make it a function of the map alone: values are standardised first (so that
    the regularisation does not depend on the scale of attention), and it starts from the best 2-means split, which in
    one dimension can be found exactly, rather than from a random one.

    ``standardise=False`` fits the values as they are: on attention of 0.01 the regularisation of 1e-6 is no longer
    small, and merges what differs by less than 0.001.

    Returns:
        a threshold in the heatmap's units; foreground is what lies above it. A constant map returns its value.
    """
    values = _finite(heatmap).astype(np.float64).ravel()
    centre, scale = values.mean(), values.std()
    if values.min() == values.max() or scale == 0:
        return float(values[0])
    if not standardise:
        centre, scale = 0.0, 1.0
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


def otsu_threshold(heatmap: np.ndarray, bins: int = 256) -> float:
    """The value that splits the map's histogram into two classes with the largest variance between them (Otsu 1979).

    The histogram has ``bins`` equal bins over the map's range, and the threshold is the centre of the lower class's
    last bin (the first best one, of equals), as in ``skimage.filters.threshold_otsu``; what lies in the upper half of
    that bin is above.

    Returns:
        a threshold in the heatmap's units; foreground is what lies above it. A constant map returns its value.
    """
    heatmap = _map(heatmap)
    low, high = heatmap.range()
    if low == high:
        return low
    if bins < 2:
        raise ValueError(f"bins must be at least 2, one for each class: got {bins}")
    counts, edges = np.histogram((heatmap.values.astype(np.float64) - low) / (high - low), bins, (0.0, 1.0))
    centres = (edges[:-1] + edges[1:]) / 2
    # Neither class is ever empty: the first bin holds the minimum and the last one the maximum.
    n, left, sums = counts.sum(), np.cumsum(counts)[:-1], np.cumsum(counts * centres)
    apart = (sums[-1] * left / n - sums[:-1]) ** 2 / (left / n * (n - left))
    return low + (high - low) * float(centres[int(apart.argmax())])


def oracle_threshold(heatmap: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """The threshold with the highest IoU for this very mask, and that IoU: an upper bound, not a score.

    Exact, over all thresholds there are, in ``O(n log n)``. It knows the truth, so it says what a map could give with a
    perfect threshold and how much of a low IoU the threshold is to blame for. Unchanged by strictly increasing
    transforms, and never below the area of the mask, which a foreground of everything reaches.

    Returns:
        the threshold at the mask's size, in the heatmap's units (the highest of equals; foreground lies strictly above;
        −infinity takes everything), and the IoU in (0, 1].
    """
    return _best_cut(*_both(heatmap, mask))


def foreground(heatmap: np.ndarray, shape: tuple[int, int], threshold: Threshold = "gmm") -> np.ndarray:
    """The thresholded heatmap: bool ``shape``, True where the resized map lies strictly above the threshold.

    Args:
        heatmap: float ``(h, w)``. The threshold is taken from it as it is, before it is resized (as in the paper).
        shape: ``(height, width)`` in pixels.
        threshold: one of

            - ``"gmm"``: `gmm_threshold`;
            - ``"gmm-majority"``: the published code of Dombrowski et al. 2023 and Nützel et al. 2025, step by step: the
              mixture of the values as they are, the foreground at the map's own size, each pixel off the border
              replaced by the majority of its 3 × 3 neighbourhood, this image of 0 and 1 resized, and cut at one half;
            - ``"otsu"``: `otsu_threshold`;
            - ``("area", f)``: the hottest fraction ``f`` in (0, 1) of the resized map's pixels; of pixels tied at the
              edge none, so that it is never more;
            - a fraction in [0, 1] of the map's range above its minimum.

            The scores that take a threshold know ``"oracle"`` too: `oracle_threshold`.
    """
    if threshold == "oracle":
        raise ValueError(
            "threshold must be one that the map alone decides; the oracle needs the mask: oracle_threshold"
        )
    return _cut(_map(heatmap), tuple(shape), threshold)


def iou(heatmap: np.ndarray, mask: np.ndarray, threshold: Threshold = "gmm") -> float:
    """Intersection over union (Jaccard) of the thresholded heatmap and the mask, in [0, 1]; see `foreground`."""
    heatmap, target = _both(heatmap, mask)
    return heatmap.overlaps(target, threshold)["iou"]


def dice(heatmap: np.ndarray, mask: np.ndarray, threshold: Threshold = "gmm") -> float:
    """Dice coefficient of the thresholded heatmap and the mask, in [0, 1]: ``2·IoU / (1 + IoU)``."""
    heatmap, target = _both(heatmap, mask)
    return heatmap.overlaps(target, threshold)["dice"]


def miou(
    heatmap: np.ndarray,
    mask: np.ndarray,
    meaning: Literal["classes", "thresholds"] = "classes",
    thresholds: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5),
    threshold: Threshold = "gmm",
) -> float:
    """Mean IoU, which means two things; in [0, 1].

    Args:
        heatmap: float ``(h, w)``.
        mask: the truth ``(H, W)``.
        meaning: ``"classes"``: ``(IoU of the foreground + IoU of the background) / 2`` after the mixture threshold
            (Dombrowski et al. 2023). The background is easy: random maps reach about 0.29 on a target of 15 %.
            ``"thresholds"``: mean foreground IoU over fixed thresholds of the min-max scaled map (Boecking et al. 2022,
            Vilouras et al. 2024).
        thresholds: fractions in [0, 1] of the second meaning.
        threshold: of the first meaning, see `foreground`.
    """
    heatmap, target = _both(heatmap, mask)
    if meaning == "classes":
        return heatmap.overlaps(target, threshold)["miou"]
    if meaning == "thresholds" and len(thresholds):
        return float(np.mean([iou(heatmap, target, t) for t in thresholds]))
    raise ValueError(f"meaning must be 'classes' or 'thresholds' (with at least one threshold), got {meaning!r}")


def bbox_iou(heatmap: np.ndarray, mask: np.ndarray, threshold: Threshold = "gmm", largest: bool = True) -> float:
    """IoU of two boxes, in [0, 1]: of the thresholded heatmap, and the tight box of the whole mask.

    Args:
        heatmap: float ``(h, w)``.
        mask: the truth ``(H, W)``; several boxes (both lungs, say) count as the one that holds them all.
        threshold: see `foreground`.
        largest: take the box of the foreground's largest 8-connected part (the first in reading order, of equals);
            False takes the box of all foreground: one stray pixel then spoils it. Dombrowski et al. 2023 take that
            box, too, but hold it against the mask and not against the mask's box: that is `bbox_mask_iou`.
    """
    heatmap, target = _both(heatmap, mask)
    return _box_iou(heatmap.box(target, threshold, largest), target.box)


def bbox_mask_iou(
    heatmap: np.ndarray,
    mask: np.ndarray,
    threshold: Threshold = "gmm-majority",
    meaning: Literal["foreground", "classes"] = "foreground",
) -> float:
    """IoU of the foreground's filled box and the mask itself, in [0, 1]: "bboxiou" in Dombrowski et al.'s code.

    The box is that of all foreground, without its last row and column, which that code leaves out; so the truth itself
    scores just below 1. Several boxes of the truth stay several.

    Args:
        heatmap: float ``(h, w)``.
        mask: the truth ``(H, W)``.
        threshold: see `foreground`.
        meaning: ``"classes"`` is the mean with the IoU of the two backgrounds ("bboxmiou").
    """
    heatmap, target = _both(heatmap, mask)
    if meaning not in ("foreground", "classes"):
        raise ValueError(f"meaning must be 'foreground' or 'classes', got {meaning!r}")
    box, filled = heatmap.box(target, threshold, largest=False), np.zeros_like(target.mask)
    if box is not None:
        filled[int(box.y) : int(box.y + box.h) - 1, int(box.x) : int(box.x + box.w) - 1] = True
    return _overlaps(filled, target.mask)["iou" if meaning == "foreground" else "miou"]


def centre_distance(
    heatmap: np.ndarray,
    mask: np.ndarray,
    method: Literal["mass", "box", "argmax"] = "mass",
    threshold: Threshold = "gmm",
    unit: Literal["diagonal", "pixels"] = "diagonal",
    several: Literal["one", "nan"] = "one",
) -> float:
    """Distance from the heatmap's centre to the centre of the mask's box, as a fraction of the image's diagonal.

    In [0, 1], lower is better.

    Args:
        heatmap: float ``(h, w)``.
        mask: the truth ``(H, W)``.
        method: what the heatmap's centre is. ``"mass"``: the mean position of the thresholded map's pixels (all of
            equal weight). ``"box"``: the centre of the box of all foreground, Dombrowski et al. 2023. ``"argmax"``: the
            hottest pixel; of tied ones, the mean of their distances. A map without foreground points at the middle.
        threshold: see `foreground`; unused by ``"argmax"``.
        unit: ``"pixels"`` of the mask instead, up to its diagonal (Dombrowski et al. 2023, in a frame of 512).
        several: of a truth of several boxes, ``"one"`` takes the box around them all; ``"nan"`` gives no distance
            (Dombrowski et al. 2023): the middle between two lungs is no finding's place.
    """
    heatmap, target = _both(heatmap, mask)
    if unit not in ("diagonal", "pixels"):
        raise ValueError(f"unit must be 'diagonal' or 'pixels', got {unit!r}")
    if several not in ("one", "nan"):
        raise ValueError(f"several must be 'one' or 'nan', got {several!r}")
    if method == "argmax":
        big = heatmap.at(target.mask.shape)
        points = np.argwhere(big == big.max()) + 0.5
    elif method in ("mass", "box"):
        points = heatmap.centre(target, threshold, method)
    else:
        raise ValueError(f"method must be 'mass', 'box' or 'argmax', got {method!r}")
    if several == "nan" and len(target.parts) > 1:
        return math.nan
    away = _relative_distance(points, target.mask)
    return away * math.hypot(*target.mask.shape) if unit == "pixels" else away


@dataclass(frozen=True)
class Protocol:
    """What is scored together, and how: the named settings of `PROTOCOLS`.

    Attributes:
        about: one sentence of what it is.
        scores: name of the column → function of (heatmap, mask), with its settings.
        prepare: what is done to a map before all of its scores: (heatmap, shape of the mask) → heatmap.
        blank: whether all scores of a map are 0 where the ``"gmm-majority"`` foreground is empty.
        average: how a table becomes one number: over ``"phrases"``, or first over those of a finding and then over the
            ``"findings"``, so that a rare one counts as much as a frequent one.
    """

    about: str
    scores: Mapping[str, Callable[..., float]]
    prepare: Callable[[np.ndarray, tuple[int, int]], np.ndarray] | None = None
    blank: bool = False
    average: Literal["phrases", "findings"] = "phrases"


def _scaled(heatmap: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return min_max(_finite(heatmap))


def _vilouras(heatmap: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The map as Vilouras et al. 2024 hand it to their scores, see `PROTOCOLS`."""
    big = min_max(smooth(resize(heatmap, shape), 2.5 * max(shape) / 512))
    return np.where(big > otsu_threshold(big), big, np.float32(0))


_PUBLISHED = {
    "auc_roc": auc_roc,
    "pointing_game": partial(pointing_game, ties="first"),
    "cnr": cnr,
    "iou": partial(iou, threshold="gmm-majority"),
    "miou": partial(miou, threshold="gmm-majority"),
    "bbox_iou": bbox_mask_iou,
    "bbox_miou": partial(bbox_mask_iou, meaning="classes"),
    "centre_distance_pixels": partial(
        centre_distance, method="box", threshold="gmm-majority", unit="pixels", several="nan"
    ),
}

#: Protocols by name. ``book`` is what `score` gives by default; ``full`` is every score of this module.
#:
#: Those of papers are read off the authors' published code: what a map goes through, in which order, and with which
#: settings. What is verified: that each equals the same steps written out a second time, in torch and loops
#: (``tests/test_localization.py``). What is not: their code was not run here, and no number of a paper was reproduced,
#: for that takes their weights and MS-CXR. Common to them: a map is brought to the image's size bilinearly, and pixels
#: are those of the frame the truth is in (512 in the first two).
#:
#: ``dombrowski2023`` (github.com/MischaD/chest-distillation). Map: mean attention at 64², nothing done to it (scaling
#: it to [0, 1] for the scores without a threshold, as they do, changes none). Foreground: ``"gmm-majority"``. CNR
#: signed and unbiased, over the union. mIoU over the two classes. Top-1 by argmax. Distance between the centres of two
#: boxes in pixels, none for several boxes. Mean over phrases. Not the same here: their mixture starts at random; they
#: fail on an empty foreground, which here scores as the module's docstring says; their truth is drawn at the original
#: size and then resized as a bool image, ours comes from `studies.Frame`. Not to be found out: another version of
#: their code halves both variances of the CNR, which makes it √2 larger, and which one gave the paper's numbers is not
#: said.
#:
#: ``nuetzel2025`` (github.com/Felix-012/generate_to_ground). The same, but the map is scaled to [0, 1] before the
#: mixture is fitted, and a map whose foreground is empty scores 0 in everything, the distance included. Not the same
#: here: they store maps in half precision, and a map that is constant they leave out. Not to be found out: beside the
#: mean over phrases (as here) they write one that weights each phrase with how often its finding occurs, so that
#: findings count with their square; which one the paper prints is not said.
#:
#: ``vilouras2024`` (github.com/vios-s/ldm-phrase-grounding). The map is enlarged to 512², smoothed (σ = 2.5 pixels;
#: here 2.5/512 of the side), scaled to [0, 1], and set to 0 up to Otsu's threshold. CNR absolute, with biased
#: variances, per box in turn; ``cnr_signed`` is their "non-absolute" one. mIoU over the thresholds .1 to .5, on the
#: union. AUC through 5 thresholds. Mean over findings. Not the same here: they score at the original image's size
#: (nearest neighbour), where the part of a box that the crop cut off is truth no map can reach, while here it is left
#: out (see `kept`); a CNR without noise is the largest number there is and not infinity. Their maps scale each timestep
#: and layer to [0, 1] before the mean, which is the making of a map and not done again here.
PROTOCOLS: dict[str, Protocol] = {
    "book": Protocol(
        "the scores of this book",
        {
            "auc_roc": auc_roc,
            "pointing_game": pointing_game,
            "cnr": cnr,
            "iou": iou,
            "dice": dice,
            "miou": miou,
            "bbox_iou": bbox_iou,
            "centre_distance": centre_distance,
        },
    ),
    "full": Protocol(
        "every score, with the conventions beside each other",
        {
            "auc_roc": auc_roc,
            "average_precision": average_precision,
            "pointing_game": pointing_game,
            "pointing_game_15": partial(pointing_game, tolerance=15),  # literally 15 pixels, whatever the frame
            "energy": energy,
            "cnr": cnr,
            "cnr_absolute": partial(cnr, signed=False),
            "cnr_per_box": partial(cnr, per="box"),
            "iou": iou,
            "iou_otsu": partial(iou, threshold="otsu"),
            "iou_area": partial(iou, threshold=("area", 0.1)),
            "iou_oracle": partial(iou, threshold="oracle"),
            "dice": dice,
            "miou": miou,
            "miou_thresholds": partial(miou, meaning="thresholds"),
            "bbox_iou": bbox_iou,
            "centre_distance": centre_distance,
            "centre_distance_pixels": partial(centre_distance, unit="pixels"),
        },
    ),
    "dombrowski2023": Protocol("Dombrowski et al., arXiv:2303.17908", _PUBLISHED),
    "nuetzel2025": Protocol("Nützel et al., arXiv:2507.12236", _PUBLISHED, prepare=_scaled, blank=True),
    "vilouras2024": Protocol(
        "Vilouras et al., arXiv:2404.12920",
        {
            "auc_roc": partial(auc_roc, bins=5),
            "cnr": partial(cnr, signed=False, ddof=0, per="box in turn"),
            "cnr_signed": partial(cnr, ddof=0, per="box in turn"),
            "miou": partial(miou, meaning="thresholds"),
        },
        prepare=_vilouras,
        average="findings",
    ),
}


def score(heatmap: np.ndarray, mask: np.ndarray, protocol: str | Protocol = "book") -> dict[str, float]:
    """All scores of a protocol, by default `SCORES` with their default conventions; what they share is done once.

    Args:
        heatmap: float ``(h, w)``.
        mask: bool ``(H, W)``, or integer labels of its separate boxes, 0 outside.
        protocol: a name in `PROTOCOLS`, or one of your own.

    Raises:
        ValueError: NaN or infinity in the heatmap; a mask that is empty, full or not 2-D; an unknown protocol.
    """
    chosen, target = _chosen(protocol), _target(mask)
    return _score(_prepared(heatmap, target.mask.shape, chosen.prepare), target, chosen)


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


def chance(
    mask: np.ndarray,
    shape: tuple[int, int] = (16, 16),
    n: int = 32,
    seed: int = 0,
    protocol: str | Protocol = "book",
) -> dict[str, float]:
    """What a random map scores on this mask, for each score of a protocol.

    Exact where a closed form exists: AUC 0.5; signed CNR 0; pointing game = area, with the tolerance around it (the
    maximum may be anywhere). For the others, which depend on how coarse a map is, and for all scores of a protocol that
    changes maps unevenly, the mean over ``n`` maps of white Gaussian noise.

    Args:
        mask: the truth ``(H, W)``.
        shape: size of the noise before it is resized: the size of the heatmaps to compare with.
        n: number of random maps.
        seed: of the noise; the same maps serve all masks of a size.
        protocol: a name in `PROTOCOLS`, or one of your own.
    """
    target, chosen = _target(mask), _chosen(protocol)
    known = _known(target, chosen)
    rest = replace(chosen, scores={key: f for key, f in chosen.scores.items() if key not in known})
    maps = _random_maps(target.mask.shape, tuple(shape), n, seed, chosen.prepare)
    rows = [_score(noise, target, rest) for noise in maps]
    return {key: known[key] if key in known else float(np.mean([row[key] for row in rows])) for key in chosen.scores}


def score_table(
    heatmaps: Iterable[np.ndarray],
    masks: Sequence[np.ndarray],
    priors: Sequence[np.ndarray] | None = None,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
    protocol: str | Protocol = "book",
    random: int = 32,
) -> list[dict[str, float]]:
    """One row per phrase: ``target`` (area of the mask), the scores, and the same with ``prior_`` and ``chance_``.

    Args:
        heatmaps: float ``(h, w)`` each; may be a generator, nothing is kept.
        masks: the truth ``(H, W)``, one for each heatmap.
        priors: the `centre_prior` of each row's finding; without it there are no ``prior_`` keys.
        progress: wraps the loop, e.g. a progress bar.
        protocol: a name in `PROTOCOLS`, or one of your own; by default the scores are `SCORES`.
        random: number of random maps of ``chance_``, see `chance`; 0 leaves these keys out.

    Raises:
        ValueError: what `score` raises, naming the row (from 0); or lengths that differ.
    """
    chosen, rows = _chosen(protocol), []
    for i, heatmap in enumerate(progress(heatmaps)):
        if i >= len(masks) or (priors is not None and i >= len(priors)):
            raise ValueError(f"there is no mask or prior for heatmap {i}")
        try:
            target = _target(masks[i])
            row = {"target": float(np.mean(target.mask)), **score(heatmap, target, chosen)}
            if priors is not None:
                row |= _prefixed("prior_", score(priors[i], target, chosen))
            if random:
                row |= _prefixed("chance_", chance(target, np.shape(heatmap), random, protocol=chosen))
        except ValueError as error:
            raise ValueError(f"row {i}: {error}") from error
        rows.append(row)
    if len(rows) != len(masks):
        raise ValueError(f"{len(rows)} heatmaps for {len(masks)} masks")
    return rows


def box_labels(finding: Finding, frame: Frame) -> np.ndarray:
    """The truth with its boxes told apart: uint8 ``(size, size)``, 0 outside; where it is not 0 is ``frame.mask``.

    Of a finding with an exact mask, the 8-connected parts; else its boxes in their order, a pixel of several boxes
    being the first one's. Beyond 255 parts all further ones share the last label.
    """
    mask = frame.mask(finding)
    if finding.mask is not None:
        return np.minimum(ndimage.label(mask, structure=_EIGHT)[0], 255).astype(np.uint8)
    labels = np.zeros(mask.shape, dtype=np.uint8)
    for i, box in enumerate(finding.boxes, start=1):
        labels[(labels == 0) & frame.mask(replace(finding, boxes=(box,)))] = min(i, 255)
    return labels


def kept(finding: Finding, frame: Frame) -> float:
    """Fraction in [0, 1] of the truth's area that the frame keeps: of its exact mask, else over all of its boxes."""
    if finding.mask is None:
        area = sum(box.area for box in finding.boxes)
        return sum(frame.kept(box) * box.area for box in finding.boxes) / area
    rows, columns = np.nonzero(finding.mask)
    inside = np.ones(rows.size, dtype=bool)
    sides = zip((rows, columns), finding.mask.shape, (frame.height, frame.width), frame.offset[::-1], strict=True)
    for at, stored, length, offset in sides:
        place = (at + 0.5) * length / stored * frame.scale + offset
        inside &= (place > 0) & (place < frame.size)
    return float(inside.mean())


def save_masks(path: Path, truths: Sequence[GroundTruth], size: int, fit: Fit = "crop") -> Path:
    """Write the truths of a data set beside a run's maps, so that anyone can score these again: see `rescore`.

    One safetensors file, written in one step: ``masks`` uint8 ``(n, size, size)`` (`box_labels`), ``kept`` float32
    ``(n,)`` (`kept`), and as metadata the ``keys`` of the rows, a JSON list. Row i is ``truths[i]``: the number that
    the ``rows`` of a file of maps mean.
    """
    frames = [Frame(*t.study.size, size, fit) for t in truths]
    masks = torch.zeros((len(frames), size, size), dtype=torch.uint8)
    for i, (truth, frame) in enumerate(zip(truths, frames, strict=True)):
        masks[i] = torch.from_numpy(box_labels(truth.finding, frame))
    left = [kept(t.finding, f) for t, f in zip(truths, frames, strict=True)]
    keys = json.dumps([t.key for t in truths])
    return runs.save_tensors(path, {"masks": masks, "kept": torch.tensor(left, dtype=torch.float32)}, {"keys": keys})


def rescore(
    table: Path, protocol: str | Protocol = "book", random: int = 32, description: str = "scoring"
) -> tuple[pd.DataFrame, list[str]]:
    """Score what a run has stored once more, under any protocol; neither the model nor the images are needed.

    Read are, in the table's folder,

    - ``grounding.csv``: one row per checkpoint (``step``, 0 being the base) and phrase (``study``, ``patient``,
      ``finding``, ``phrase``, and ``kept``, see below), with ``target`` and the scores of `score_table`;
    - ``maps/step-<step>.safetensors``: ``maps`` float32 ``(n, h, w)`` in the order of that step's rows in the table,
      and ``rows``, their numbers among all phrases;
    - ``maps/masks.safetensors``: the truth of all phrases, of `save_masks`.

    Maps and masks are read one by one: memory does not grow with the data.

    Args:
        table: ``grounding.csv``, or the run's folder.
        protocol: a name in `PROTOCOLS`, or one of your own.
        random: number of random maps of ``chance_``; 0 leaves these columns out.
        description: of the progress bar.

    Returns:
        a table with the columns ``study, patient, finding, phrase, step``; ``target``, the area of the mask in [0, 1];
        ``kept``, the share of the truth's area that the crop left; the protocol's scores; and each once more with
        ``chance_``, what random maps of that size score on that mask. Second, a line for each row left out because its
        map or mask cannot be scored.

    Raises:
        ValueError: a file that is missing, damaged or of other data than the table; names it. Nothing could be scored.
    """
    table = Path(table)
    if table.is_dir():
        table = table / "grounding.csv"
    chosen, about = _chosen(protocol), _read_table(table)
    rows, skipped, luck = [], [], {}
    bar = runs.progress(total=len(about), description=description)
    with _opened(table.parent / "maps" / "masks.safetensors", "masks", "kept") as truth:
        masks, left = truth.get_slice("masks"), truth.get_tensor("kept")
        keys = json.loads((truth.metadata() or {}).get("keys", "[]"))
        for step, group in about.groupby("step", sort=False):
            path = table.parent / "maps" / f"step-{step}.safetensors"
            with _opened(path, "maps", "rows") as stored:
                maps, numbers = stored.get_slice("maps"), stored.get_tensor("rows")
                named = (group["study"] + "/" + group["finding"] + "/" + group["phrase"]).tolist()
                if named != [keys[i] if 0 <= i < len(keys) else None for i in numbers]:
                    raise ValueError(
                        f"{path}: its {len(numbers)} maps and masks are not of the {len(group)} rows of step {step} in "
                        f"{table}{_AGAIN}"
                    )
                for place, number in enumerate(numbers.tolist()):
                    bar.update()
                    try:
                        target, heatmap = _target(masks[number]), maps[place]
                        row = {"target": float(target.mask.mean()), "kept": float(left[number])}
                        row |= score(heatmap, target, chosen)
                        if random and number not in luck:
                            luck[number] = _prefixed("chance_", chance(target, heatmap.shape, random, protocol=chosen))
                    except ValueError as error:
                        skipped.append(f"step {step}, {named[place]}: {error}")
                        continue
                    rows.append({**group.iloc[place].to_dict(), **row, **luck.get(number, {})})
    bar.close()
    if not rows:
        raise ValueError(
            f"{table}: none of {len(about)} rows could be scored; the first: {(skipped or ['no rows'])[0]}"
        )
    return pd.DataFrame(rows), skipped


def averages(scores: pd.DataFrame, protocol: str | Protocol = "book") -> pd.DataFrame:
    """Means of a table of `rescore` for each step, as the protocol takes them; NaN (no distance) is left out.

    Returns:
        one row per step and kind (``map``, and ``chance`` where the table has it), one column per score.
    """
    chosen, parts = _chosen(protocol), {}
    for kind, prefix in (("map", ""), ("chance", "chance_")):
        columns = {prefix + key: key for key in chosen.scores}
        if not set(columns) <= set(scores):
            continue
        if chosen.average == "findings":
            means = scores.groupby(["step", "finding"])[list(columns)].mean().groupby("step").mean()
        else:
            means = scores.groupby("step")[list(columns)].mean()
        parts[kind] = means.rename(columns=columns)
    return pd.concat(parts, names=["kind"]).swaplevel().sort_index(level="step", sort_remaining=False, kind="stable")


_ABOUT = ("study", "patient", "finding", "phrase", "step")


_AGAIN = "; run the attention notebook again, which writes maps, masks and table together"


def _read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ValueError(f"there is no {path}: name a run's folder or its grounding.csv{_AGAIN}")
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(_ABOUT[:-1], str), keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable CSV ({error})") from error
    missing = [name for name in _ABOUT if name not in table]
    if missing:
        raise ValueError(f"{path}: has no column {', '.join(missing)}{_AGAIN}")
    if not len(table) or not pd.api.types.is_integer_dtype(table["step"]):
        raise ValueError(f"{path}: has no rows, or a step that is no whole number{_AGAIN}")
    return table[list(_ABOUT)]


def _opened(path: Path, *names: str) -> safe_open:
    if not path.is_file():
        raise ValueError(f"there is no {path}{_AGAIN}")
    try:
        file = safe_open(path, "numpy")
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged or not a safetensors file ({error}); delete it and run again") from error
    if missing := set(names) - set(file.keys()):
        raise ValueError(f"{path}: holds no {' and no '.join(sorted(missing))}{_AGAIN}")
    return file


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
    if mask.ndim != 2 or not (mask.dtype == bool or np.issubdtype(mask.dtype, np.integer)):
        raise ValueError(f"a mask is bool (H, W), or integer labels of its boxes: got {mask.dtype} {mask.shape}")
    if mask.dtype != bool and mask.size and mask.min() < 0:
        raise ValueError("a mask is bool, or labels of its boxes with 0 outside: got negative ones")
    mask = mask if mask.dtype == bool else mask != 0
    if not mask.any() or mask.all():
        which = "full" if mask.size and mask.all() else "empty"
        raise ValueError(f"the mask is {which}: there is nothing to localise; leave the phrase out")
    return mask


def _chosen(protocol: str | Protocol) -> Protocol:
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"there is no protocol {protocol!r}: choose from {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]


def _prepared(heatmap: np.ndarray, shape: tuple[int, int], prepare: Callable | None) -> _Map:
    return _map(heatmap if prepare is None else prepare(heatmap, shape))


def _score(heatmap: _Map, target: _Target, chosen: Protocol) -> dict[str, float]:
    if chosen.blank and not heatmap.foreground(target, "gmm-majority").any():
        return dict.fromkeys(chosen.scores, 0.0)
    return {key: function(heatmap, target) for key, function in chosen.scores.items()}


def _known(target: _Target, chosen: Protocol) -> dict[str, float]:
    """Those scores of a random map that need no sampling."""
    if chosen.prepare not in (None, _scaled):
        return {}
    found = {}
    for key, function in chosen.scores.items():
        options = getattr(function, "keywords", {})
        function = getattr(function, "func", function)
        if function is auc_roc and not options.get("bins"):
            found[key] = 0.5
        elif function is cnr and options.get("signed", True):
            found[key] = 0.0
        elif function is pointing_game:
            near = options.get("tolerance", 0)
            found[key] = np.count_nonzero(_around(target, near)) / target.mask.size
    return found


def _cut(heatmap: _Map, shape: tuple[int, int], threshold: Threshold) -> np.ndarray:
    low, high = heatmap.range()
    if threshold == "gmm":
        value = gmm_threshold(heatmap.values)
    elif threshold == "otsu":
        value = otsu_threshold(heatmap.values)
    elif threshold == "gmm-majority":
        hot = _majority(heatmap.values > gmm_threshold(heatmap.values, standardise=False))
        return resize(hot.astype(np.float32), shape) > 0.5
    elif isinstance(threshold, tuple) and len(threshold) == 2 and threshold[0] == "area" and 0 < threshold[1] < 1:
        values = heatmap.at(shape)
        first = values.size - 1 - round(threshold[1] * values.size)
        return values > (np.partition(values, first, axis=None)[first] if first >= 0 else -math.inf)
    elif isinstance(threshold, (int, float)) and 0 <= threshold <= 1:
        value = low + float(threshold) * (high - low)
    else:
        raise ValueError(
            "threshold must be 'gmm', 'gmm-majority', 'otsu', 'oracle', ('area', a fraction in (0, 1)) or a fraction "
            f"in [0, 1], got {threshold!r}"
        )
    return heatmap.at(shape) > value


def _majority(hot: np.ndarray) -> np.ndarray:
    """Each pixel off the border becomes the majority of its 3 × 3 neighbourhood."""
    out = hot.copy()
    if min(hot.shape) > 2:
        out[1:-1, 1:-1] = (ndimage.correlate(hot.astype(np.int8), _EIGHT.astype(np.int8)) >= 5)[1:-1, 1:-1]
    return out


def _below(values: np.ndarray) -> np.ndarray:
    """How many pixels lie below each pixel: int32 ``(h, w)``."""
    order = np.argsort(values, axis=None)
    ranked = values.ravel()[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    ranks = np.empty(values.size, dtype=np.int32)
    ranks[order] = np.repeat(starts, np.diff(np.append(starts, values.size)))
    return ranks.reshape(values.shape)


def _curve(heatmap: _Map, target: _Target) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the truth above a cut, and of the image above it, for a cut below each distinct value of the truth.

    From the hottest down. Between two of them a lower cut only adds pixels outside.
    """
    if heatmap.met_before(target):
        below = heatmap.ranks(target)
        starts = np.flatnonzero(np.append(True, below[1:] != below[:-1]))[::-1]
        return below.size - starts, target.mask.size - below[starts]
    inside, outside = heatmap.split(target)
    starts = np.flatnonzero(np.append(True, inside[1:] != inside[:-1]))[::-1]
    hits = inside.size - starts
    return hits, hits + outside.size - np.searchsorted(outside, inside[starts], "left")


def _best_cut(heatmap: _Map, target: _Target) -> tuple[float, float]:
    hits, called = _curve(heatmap, target)
    found = hits / (target.inside.size + called - hits)
    best = int(found.argmax())
    # The next lower value of the map is the lowest cut of the same foreground, and the only one that is sure to be a
    # number of the map's own precision.
    rest = target.mask.size - int(called[best])
    return heatmap.smallest(target, rest) if rest else -math.inf, float(found[best])


def _contrasts(heatmap: _Map, target: _Target, ddof: int, per: str) -> list[float]:
    if per == "union":
        return [_contrast(*heatmap.sides(target), ddof)]
    values, labels = heatmap.at(target.mask.shape), target.labels
    outside, found = ~target.mask if per == "box" else np.ones_like(target.mask), []
    for part in target.parts:
        inside = labels == part
        if per == "box in turn":
            outside &= ~inside
        found.append(_contrast(values[inside], values[outside], ddof))
    return found


def _contrast(inside: np.ndarray, outside: np.ndarray, ddof: int) -> float:
    largest = max(float(max(v.max(), -v.min())) for v in (inside, outside))
    means = [float(v.mean(dtype=np.float64)) for v in (inside, outside)]
    away = [v.astype(np.float64) - mean for v, mean in zip((inside, outside), means, strict=True)]
    contrast = means[0] - means[1]
    noise = math.sqrt(sum(float(v @ v) / (v.size - ddof) if v.size > ddof else 0.0 for v in away))
    # Relative to the map's magnitude: a constant map's mean is off by a rounding error, which is no contrast.
    if abs(contrast) <= 1e-12 * largest:
        return 0.0
    return contrast / noise if noise else math.copysign(math.inf, contrast)


def _around(target: _Target, distance: float) -> np.ndarray:
    """The truth and what lies within a distance of it, bool, in a window that holds all of that."""
    if not distance:
        return target.mask
    box, reach = target.box, int(distance)
    rows = slice(max(int(box.y) - reach, 0), int(box.y + box.h) + reach)
    columns = slice(max(int(box.x) - reach, 0), int(box.x + box.w) + reach)
    return ndimage.distance_transform_edt(~target.mask[rows, columns]) <= distance


def _near(mask: np.ndarray, row: int, column: int, distance: float) -> bool:
    """Whether a pixel of the mask lies within a distance of that one."""
    reach = int(distance)
    top, left = max(row - reach, 0), max(column - reach, 0)
    rows, columns = np.nonzero(mask[top : row + reach + 1, left : column + reach + 1])
    return bool(((rows + top - row) ** 2 + (columns + left - column) ** 2 <= distance**2).any())


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
    both = np.count_nonzero(hot & mask)
    either = np.count_nonzero(hot) + np.count_nonzero(mask) - both
    inside = both / either
    outside = (mask.size - either) / (mask.size - both)
    return {"iou": inside, "dice": 2 * inside / (1 + inside), "miou": (inside + outside) / 2}


def _box(hot: np.ndarray, largest: bool = True) -> Box | None:
    if largest:
        labels, n = ndimage.label(hot, structure=_EIGHT)
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


@lru_cache(maxsize=1)
def _random_maps(
    shape: tuple[int, int], coarse: tuple[int, int], n: int, seed: int, prepare: Callable | None
) -> list[_Map]:
    if n < 1:
        raise ValueError(f"chance needs at least one random map, got n={n}")
    rng = np.random.default_rng(seed)
    return [_prepared(rng.standard_normal(coarse).astype(np.float32), shape, prepare) for _ in range(n)]


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m chestxai.localization``."""
    parser = argparse.ArgumentParser(
        prog="python -m chestxai.localization",
        description="Score the heatmaps that a run has stored once more, under another protocol.",
        epilog="protocols: " + "; ".join(f"{name}: {p.about}" for name, p in PROTOCOLS.items()),
    )
    parser.add_argument("table", type=Path, help="a run's folder, or its grounding.csv")
    parser.add_argument("--protocol", default="book", help=f"{', '.join(PROTOCOLS)} (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, help="the table to write (default: grounding-<protocol>.csv beside the first)"
    )
    parser.add_argument(
        "--random", type=int, default=32, help="random maps that give chance, 0 for none (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    if given.random < 0:
        raise ValueError(f"--random must be at least 0, got {given.random}")
    chosen = _chosen(given.protocol)
    table = given.table / "grounding.csv" if given.table.is_dir() else given.table
    out = given.out or table.with_name(f"grounding-{given.protocol}.csv")
    if out.resolve() == table.resolve():
        raise ValueError(f"--out {out} is the table that is read: choose another name")
    scores, skipped = rescore(table, chosen, given.random, given.protocol)
    runs.write_atomic(out, scores.to_csv(index=False))
    print(f"{given.protocol} ({chosen.about}), mean over {chosen.average}:")
    print(averages(scores, chosen).to_string(float_format="{:.3f}".format))
    print(f"{len(scores)} rows in {out}" + (f"; {len(skipped)} left out:" if skipped else "."))
    for line in skipped[:10]:
        print(f"  {line}")
    if len(skipped) > 10:
        print(f"  and {len(skipped) - 10} more")
    return 0


if __name__ == "__main__":
    runs.command(main)
