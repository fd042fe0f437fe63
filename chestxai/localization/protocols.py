"""Protocols: scores reported together, with their settings, and what is done to a map before.

Those of papers follow the authors' published code, which tests write out a second time. No number of a paper was
reproduced: that takes their weights and MS-CXR.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from chestxai import runs
from chestxai.localization import scores
from chestxai.localization.maps import CachedMap, CachedMask, as_mask, resize
from chestxai.localization.thresholds import foreground, otsu_threshold
from chestxai.postprocess import min_max, smooth
from chestxai.profiles import DATA
from chestxai.runs import InputError


@dataclass(frozen=True)
class Protocol:
    """Scores that are reported together."""

    about: str
    scores: Mapping[str, Callable[..., float]]  #: column → function of (heatmap, mask), with its settings
    #: Applied to a map before all scores: (heatmap, shape of the mask) → heatmap.
    prepare: Callable[[np.ndarray, tuple[int, int]], np.ndarray] | None = None
    blank: bool = False  #: whether every score is 0 where the ``"gmm-majority"`` foreground is empty
    #: The mean over phrases, or over the means of findings, so that frequent ones do not dominate.
    average: Literal["phrases", "findings"] = "phrases"


def scaled(heatmap: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The ``heatmap`` scaled to [0, 1], whatever the ``shape`` of the mask."""
    return min_max(heatmap)


def peaks(heatmap: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The ``heatmap`` at ``shape``, smoothed (σ = 2.5 pixels at 512²), in [0, 1], and 0 up to Otsu's threshold."""
    big = min_max(smooth(resize(heatmap, shape), 2.5 * max(shape) / 512))
    return np.where(big > otsu_threshold(big), big, np.float32(0))


def _protocol(content: dict[str, Any]) -> Protocol:
    """A protocol as ``data/words/protocols.yaml`` has it."""
    functions = {}
    for column, settings in content["scores"].items():
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items() if name != "score"}
        functions[column] = partial(getattr(scores, settings.get("score", column)), **options)
    prepare = {"scaled": scaled, "peaks": peaks, None: None}[content.get("prepare")]
    return Protocol(**content | {"scores": functions, "prepare": prepare})


#: Protocols by name; what the authors' code does besides is said beside each in the file.
PROTOCOLS = {name: _protocol(content) for name, content in runs.read_yaml(DATA / "words" / "protocols.yaml").items()}


def get_protocol(protocol: str | Protocol) -> Protocol:
    """Look up a protocol by name; a `Protocol` is returned as it is."""
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise InputError(f"there is no protocol {protocol!r}: choose from {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]


def score(heatmap: np.ndarray, mask: np.ndarray | CachedMask, protocol: str | Protocol = "book") -> dict[str, float]:
    """All scores of ``heatmap`` on ``mask`` under a ``protocol`` or one of that name; what they share is computed once.

    A `CachedMap` counts as prepared.
    """
    protocol, mask = get_protocol(protocol), as_mask(mask)
    if not isinstance(heatmap, CachedMap):
        heatmap = CachedMap(protocol.prepare(heatmap, mask.shape) if protocol.prepare else heatmap)
    if protocol.blank and not foreground(heatmap, mask.shape, "gmm-majority").any():
        return dict.fromkeys(protocol.scores, 0.0)
    return {name: function(heatmap, mask) for name, function in protocol.scores.items()}
