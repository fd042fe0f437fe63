"""Protocols: scores reported together, with their settings, and what is done to a map before.

Those of papers follow the authors' published code, which tests write out a second time. No number of a paper was
reproduced: that takes their weights and MS-CXR.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from chestxai.localization import scores
from chestxai.localization.maps import CachedMap, CachedMask, resize
from chestxai.localization.names import SCORES
from chestxai.localization.thresholds import foreground, otsu_threshold
from chestxai.postprocess import min_max, smooth
from chestxai.runs import InputError


@dataclass(frozen=True)
class Protocol:
    """Scores that are reported together.

    Attributes:
        about: What it is.
        scores: Column → function of (heatmap, mask), with its settings.
        prepare: Applied to a map before all scores: (heatmap, shape of the mask) → heatmap.
        blank: Whether every score of a map is 0 where the ``"gmm-majority"`` foreground is empty.
        average: Mean over ``"phrases"``, or over the means of ``"findings"``, so that frequent ones do not dominate.
    """

    about: str
    scores: Mapping[str, Callable[..., float]]
    prepare: Callable[[np.ndarray, tuple[int, int]], np.ndarray] | None = None
    blank: bool = False
    average: Literal["phrases", "findings"] = "phrases"


def scaled(heatmap: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The ``heatmap`` scaled to [0, 1], whatever the ``shape`` of the mask."""
    return min_max(heatmap)


def _vilouras(heatmap: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The map enlarged, smoothed (σ = 2.5 pixels at 512²), scaled to [0, 1], and 0 up to Otsu's threshold."""
    big = min_max(smooth(resize(heatmap, shape), 2.5 * max(shape) / 512))
    return np.where(big > otsu_threshold(big), big, np.float32(0))


_BOOK = {name: getattr(scores, name) for name in SCORES}
_FULL = {
    "average_precision": scores.average_precision,
    "pointing_game_15": partial(scores.pointing_game, tolerance=15),
    "energy": scores.energy,
    "cnr_absolute": partial(scores.cnr, signed=False),
    "cnr_per_box": partial(scores.cnr, per="box"),
    "iou_otsu": partial(scores.iou, threshold="otsu"),
    "iou_area": partial(scores.iou, threshold=("area", 0.1)),
    "iou_oracle": partial(scores.iou, threshold="oracle"),
    "miou_thresholds": partial(scores.miou, meaning="thresholds"),
    "centre_distance_pixels": partial(scores.centre_distance, unit="pixels"),
}
_VOTED = {"threshold": "gmm-majority"}
_PUBLISHED = {
    "auc_roc": scores.auc_roc,
    "pointing_game": partial(scores.pointing_game, ties="first"),
    "cnr": scores.cnr,
    "iou": partial(scores.iou, **_VOTED),
    "miou": partial(scores.miou, **_VOTED),
    "bbox_iou": scores.bbox_mask_iou,
    "bbox_miou": partial(scores.bbox_mask_iou, meaning="classes"),
    "centre_distance_pixels": partial(scores.centre_distance, method="box", unit="pixels", several="nan", **_VOTED),
}
_VILOURAS = {
    "auc_roc": partial(scores.auc_roc, bins=5),
    "cnr": partial(scores.cnr, signed=False, ddof=0, per="box in turn"),
    "cnr_signed": partial(scores.cnr, ddof=0, per="box in turn"),
    "miou": partial(scores.miou, meaning="thresholds"),
}

#: Protocols by name. Pixels are those of the frame of the mask. What the authors' code does besides:
#:
#: ``dombrowski2023`` (github.com/MischaD/chest-distillation) starts the mixture at random, fails without foreground,
#: and draws the mask at the original size before it is resized. Another version halves both variances of the CNR (√2
#: larger); which one the paper used is not documented.
#:
#: ``nuetzel2025`` (github.com/Felix-012/generate_to_ground) is the same on maps scaled to [0, 1]; an empty foreground
#: scores 0 in everything, the distance included. It stores maps in half precision, leaves out constant ones, and also
#: writes a mean weighted by the frequency of findings; which mean the paper prints is not documented.
#:
#: ``vilouras2024`` (github.com/vios-s/ldm-phrase-grounding) scores at the original size, where what the crop cuts off a
#: box is truth no map can reach (see `kept`), and scales each timestep and layer before their mean.
PROTOCOLS: dict[str, Protocol] = {
    "book": Protocol("the scores of this book", _BOOK),
    "full": Protocol("every score, with the conventions beside each other", _BOOK | _FULL),
    "dombrowski2023": Protocol("Dombrowski et al., arXiv:2303.17908", _PUBLISHED),
    "nuetzel2025": Protocol("Nützel et al., arXiv:2507.12236", _PUBLISHED, prepare=scaled, blank=True),
    "vilouras2024": Protocol("Vilouras et al., arXiv:2404.12920", _VILOURAS, prepare=_vilouras, average="findings"),
}


def get_protocol(protocol: str | Protocol) -> Protocol:
    """Look up a protocol by name; a `Protocol` is returned as it is."""
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise InputError(f"there is no protocol {protocol!r}: choose from {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]


def score(heatmap: np.ndarray, mask: np.ndarray, protocol: str | Protocol = "book") -> dict[str, float]:
    """All scores of a protocol, by default `SCORES`; what they share is computed once.

    Args:
        heatmap: Float ``(h, w)``; a `CachedMap` counts as prepared.
        mask: Bool ``(H, W)``, or integer labels of its separate boxes, 0 outside.
        protocol: A name in `PROTOCOLS`, or a `Protocol`.
    """
    protocol, mask = get_protocol(protocol), mask if isinstance(mask, CachedMask) else CachedMask(mask)
    if not isinstance(heatmap, CachedMap):
        heatmap = CachedMap(protocol.prepare(heatmap, mask.shape) if protocol.prepare else heatmap)
    if protocol.blank and not foreground(heatmap, mask.shape, "gmm-majority").any():
        return dict.fromkeys(protocol.scores, 0.0)
    return {name: function(heatmap, mask) for name, function in protocol.scores.items()}
