"""Heatmaps and masks as the scores take them: checked, resampled, with shared intermediate results computed once."""

from collections.abc import Callable
from functools import cached_property, wraps

import numpy as np
import torch
from scipy import ndimage

from chestxai.postprocess import as_heatmap
from chestxai.runs import InputError
from chestxai.studies import Box, box_of

#: 8-connectivity: pixels that touch at a corner belong to one part.
EIGHT = np.ones((3, 3), dtype=bool)


class CachedMap:
    """A heatmap, in place of an array, that keeps what functions under `once` compute from it and a shape."""

    def __init__(self, heatmap: np.ndarray) -> None:
        self.values, self.results = as_heatmap(heatmap), {}


class CachedMask:
    """A mask, bool or integer labels ``(H, W)``, that keeps what is computed from it, alone or with each heatmap."""

    def __init__(self, mask: np.ndarray) -> None:
        mask = np.asarray(mask)
        if mask.ndim != 2 or not (mask.dtype == bool or np.issubdtype(mask.dtype, np.integer)):
            raise InputError(f"a mask is bool (H, W), or integer labels of its boxes: got {mask.dtype} {mask.shape}")
        if mask.dtype != bool and mask.size and mask.min() < 0:
            raise InputError("a mask is bool, or labels of its boxes with 0 outside: got negative labels")
        self._input, self.shape, self.results = mask, mask.shape, {}
        self.mask = mask if mask.dtype == bool else mask != 0
        if not self.mask.any() or self.mask.all():
            which = "full" if mask.size and self.mask.all() else "empty"
            raise InputError(f"the mask is {which}: there is nothing to localise; leave the phrase out")

    @cached_property
    def labels(self) -> np.ndarray:
        """Integer labels of the boxes, 0 outside; for a bool mask its 8-connected parts in reading order."""
        return self._input if self._input.dtype != bool else ndimage.label(self.mask, structure=EIGHT)[0]

    @cached_property
    def parts(self) -> list[int]:
        """The labels in use, ascending."""
        return np.unique(self.labels[self.mask]).tolist()

    @cached_property
    def box(self) -> Box:
        """The tight box around the whole mask."""
        return box_of(self.mask)

    def within(self, distance: float) -> np.ndarray:
        """The mask and all pixels within a Euclidean distance in pixels."""
        return ndimage.distance_transform_edt(~self.mask) <= distance if distance else self.mask


def as_mask(mask: np.ndarray | CachedMask) -> CachedMask:
    """The mask, checked; a `CachedMask` is returned as it is."""
    return mask if isinstance(mask, CachedMask) else CachedMask(mask)


def once(function: Callable) -> Callable:
    """Compute ``function(heatmap, mask or shape, ...)`` once per heatmap; arrays are checked and wrapped first."""

    @wraps(function)
    def cached(heatmap: np.ndarray | CachedMap, where: np.ndarray | CachedMask | tuple[int, int], /, *more, **options):
        where = where if isinstance(where, tuple) else as_mask(where)
        heatmap = heatmap if isinstance(heatmap, CachedMap) else CachedMap(heatmap)
        # The mask keeps what depends on it: a random map is scored on thousands of masks, and must not grow with them.
        results = heatmap.results if isinstance(where, tuple) else where.results.setdefault(heatmap, {})
        key = function, repr((where, more, options))
        if key not in results:
            results[key] = function(heatmap, where, *more, **options)
        return results[key]

    return cached


@once
def resize(heatmap: np.ndarray, shape: tuple[int, int], /) -> np.ndarray:
    """Resample ``heatmap`` bilinearly to ``shape`` ``(height, width)``, float32, antialiased when it shrinks.

    One of that shape is returned as it is.
    """
    if heatmap.values.shape == shape:
        return heatmap.values
    # In double precision: rounding the result to float32 keeps plateaus flat, so that ties stay ties.
    exact = torch.from_numpy(np.array(heatmap.values, dtype=np.float64, order="C"))[None, None]
    return torch.nn.functional.interpolate(exact, shape, mode="bilinear", antialias=True)[0, 0].float().numpy()


@once
def sides(heatmap: CachedMap, mask: CachedMask, /) -> tuple[np.ndarray, np.ndarray]:
    """Values of ``heatmap`` inside and outside of ``mask``, in reading order."""
    values = resize(heatmap, mask.shape)
    return values[mask.mask], values[~mask.mask]


@once
def levels(heatmap: CachedMap, shape: tuple[int, int], /) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values of ``heatmap`` at ``shape``, hottest first; pixels with at least that value; each pixel's place."""
    values, places, counts = np.unique(-resize(heatmap, shape), return_inverse=True, return_counts=True)
    # int32 halves the memory: chance keeps this for every random map.
    return -values, np.cumsum(counts, dtype=np.int32), places.astype(np.int32)


@once
def cuts(heatmap: CachedMap, mask: CachedMask, /) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each value of ``heatmap`` inside ``mask``, hottest first: pixels of the mask and of the image with at least
    that value, and its place in `levels`. Cuts between two of them only add pixels outside."""
    values, called, places = levels(heatmap, mask.shape)
    inside = np.bincount(places[mask.mask], minlength=values.size)
    used = np.flatnonzero(inside)
    return np.cumsum(inside[used]), called[used], used
