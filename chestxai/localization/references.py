"""What a score is compared with: chance, and the location prior."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from chestxai.localization import scores
from chestxai.localization.maps import CachedMap, CachedMask
from chestxai.localization.protocols import Protocol, get_protocol, scaled, score
from chestxai.runs import InputError
from chestxai.studies import Finding, Fit, Frame, GroundTruth


def location_prior(masks: Iterable[np.ndarray]) -> np.ndarray:
    """Mean mask of a finding, float32 ``(H, W)`` in [0, 1]: where it usually is, whatever the image.

    Args:
        masks: Bool ``(H, W)`` each, of training patients, all of one shape.
    """
    total, n = np.zeros(()), 0
    for n, mask in enumerate(masks, start=1):
        if n > 1 and np.shape(mask) != total.shape:
            raise InputError(f"masks differ in shape: {total.shape} and {np.shape(mask)}; bring them into one frame")
        total = total + np.asarray(mask, dtype=bool)
    if not n:
        raise InputError("a location prior needs at least one training mask of the finding")
    return (total / n).astype(np.float32)


def location_priors(truths: Sequence[GroundTruth], size: int, fit: Fit = "crop") -> dict[str, np.ndarray]:
    """Finding → its `location_prior` ``(size, size)``; a finding without masks gets the mean of all of them.

    Args:
        truths: Findings with masks or boxes, of training patients.
        size, fit: Side of the model's frame in pixels, and how an image is fitted into it, see `studies.Frame`.
    """

    def prior(some: Iterable[GroundTruth]) -> np.ndarray:
        return location_prior(Frame(*truth.study.size, size, fit).mask(truth.finding) for truth in some)

    overall, by_finding = prior(truths), defaultdict(list)
    for truth in truths:
        by_finding[truth.finding.name].append(truth)
    return defaultdict(lambda: overall, {name: prior(some) for name, some in by_finding.items()})


def text_priors(truths: Sequence[GroundTruth], size: int, fit: Fit = "crop") -> Callable[[Finding], np.ndarray]:
    """A prior that reads the prompt and no image: the mean mask of the same finding, side and zone.

    Args:
        truths: Findings with masks or boxes, of training patients.
        size, fit: Side of the model's frame in pixels, and how an image is fitted into it, see `studies.Frame`.

    Returns:
        Finding → float32 ``(size, size)``; where its side and zone never occur, the `location_prior` of its name.
    """
    by_place = defaultdict(list)
    for truth in truths:
        by_place[_place(truth.finding)].append(truth)
    maps = {
        place: location_prior(Frame(*t.study.size, size, fit).mask(t.finding) for t in some)
        for place, some in by_place.items()
    }
    plain = location_priors(truths, size, fit)
    return lambda finding: maps.get(_place(finding), plain[finding.name])


def _place(finding: Finding) -> tuple[str, str | None, str | None]:
    return finding.name, finding.side, finding.zone


def chance(
    mask: np.ndarray, shape: tuple[int, int] = (16, 16), n: int = 32, seed: int = 0, protocol: str | Protocol = "book"
) -> dict[str, float]:
    """What random maps score on a mask, for each score of a protocol.

    Exact where a closed form exists (`exact_chance`). The other scores depend on the resolution of a map: the mean over
    maps of white Gaussian noise.

    Args:
        mask: Bool or integer labels ``(H, W)``.
        shape: Size of the noise before it is resized: the size of the heatmaps to compare with.
        n: Number of random maps.
        seed: Seed of the noise; the same maps serve all masks of a size.
        protocol: A name in `PROTOCOLS`, or a `Protocol`.
    """
    mask, protocol = mask if isinstance(mask, CachedMask) else CachedMask(mask), get_protocol(protocol)
    exact = exact_chance(mask, protocol)
    sampled = replace(protocol, scores={name: f for name, f in protocol.scores.items() if name not in exact})
    rows = [score(noise, mask, sampled) for noise in _noise(mask.shape, tuple(shape), n, seed, protocol.prepare)]
    return {name: exact[name] if name in exact else float(np.mean([r[name] for r in rows])) for name in protocol.scores}


def exact_chance(mask: CachedMask, protocol: Protocol) -> dict[str, float]:
    """Closed forms for ``mask`` in a ``protocol`` that changes no map unevenly: AUC 0.5, signed CNR 0, and for the
    pointing game the area within its tolerance."""
    exact = {}
    for name, function in protocol.scores.items() if protocol.prepare in (None, scaled) else ():
        options, function = getattr(function, "keywords", {}), getattr(function, "func", function)
        if function is scores.auc_roc and not options.get("bins"):
            exact[name] = 0.5
        elif function is scores.cnr and options.get("signed", True):
            exact[name] = 0.0
        elif function is scores.pointing_game:
            exact[name] = float(mask.within(options.get("tolerance", 0)).mean())
    return exact


@lru_cache(maxsize=1)
def _noise(
    shape: tuple[int, int], coarse: tuple[int, int], n: int, seed: int, prepare: Callable | None
) -> list[CachedMap]:
    if n < 1:
        raise InputError(f"chance needs at least one random map, got n={n}")
    rng = np.random.default_rng(seed)
    maps = (rng.standard_normal(coarse).astype(np.float32) for _ in range(n))
    return [CachedMap(prepare(noise, shape) if prepare else noise) for noise in maps]
