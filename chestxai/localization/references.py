"""What a score is compared with: chance, and the location prior."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from operator import attrgetter

import numpy as np

from chestxai.localization import scores
from chestxai.localization.maps import CachedMap, CachedMask, as_mask
from chestxai.localization.protocols import Protocol, get_protocol, scaled, score
from chestxai.runs import InputError
from chestxai.studies import Finding, Fit, Frame, GroundTruth

#: What two findings share that a report puts at the same place.
place = attrgetter("name", "side", "zone")


def location_prior(masks: Iterable[np.ndarray]) -> np.ndarray:
    """Mean of ``masks``, bool ``(H, W)`` each, of training patients: where a finding usually is, float32 in [0, 1]."""
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

    ``truths`` have masks or boxes, of training patients; ``size`` and ``fit`` are of the model's `studies.Frame`.
    """
    overall = location_prior(Frame(*t.study.size, size, fit).mask(t.finding) for t in truths)
    return defaultdict(lambda: overall, _priors(truths, size, fit, attrgetter("name")))


def field(priors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Where any finding of the `location_priors` can lie: bool ``(size, size)``."""
    return np.sum(list(priors.values()), axis=0) > 0


def text_priors(truths: Sequence[GroundTruth], size: int, fit: Fit = "crop") -> Callable[[Finding], np.ndarray]:
    """A prior that reads the prompt and no image: finding → the mean mask of the same finding, side and zone.

    ``truths, size, fit`` as of `location_priors`, which is the prior where side and zone never occur.
    """
    maps, plain = _priors(truths, size, fit, place), location_priors(truths, size, fit)
    return lambda finding: maps.get(place(finding), plain[finding.name])


def _priors(truths: Sequence[GroundTruth], size: int, fit: Fit, key: Callable[[Finding], Hashable]) -> dict:
    """The `location_prior` of all findings with the same ``key``."""
    alike = defaultdict(list)
    for truth in truths:
        alike[key(truth.finding)].append(truth)
    return {
        name: location_prior(Frame(*t.study.size, size, fit).mask(t.finding) for t in some)
        for name, some in alike.items()
    }


def chance(
    mask: np.ndarray | CachedMask, shape: tuple[int, int] = (16, 16), n: int = 32, protocol: str | Protocol = "book"
) -> dict[str, float]:
    """What random maps score on a ``mask``, for each score of a ``protocol``.

    Exact where a closed form exists (`exact_chance`). The other scores depend on the resolution of a map: the mean over
    ``n`` maps of white Gaussian noise, the same for all masks of a size, of the ``shape`` of the heatmaps to compare.
    """
    mask, protocol = as_mask(mask), get_protocol(protocol)
    exact = exact_chance(mask, protocol)
    sampled = replace(protocol, scores={name: f for name, f in protocol.scores.items() if name not in exact})
    rows = [score(noise, mask, sampled) for noise in _noise(mask.shape, tuple(shape), n, protocol.prepare)]
    return {name: exact[name] if name in exact else float(np.mean([r[name] for r in rows])) for name in protocol.scores}


def exact_chance(mask: CachedMask, protocol: Protocol) -> dict[str, float]:
    """Closed forms for ``mask`` in a ``protocol`` that changes no map unevenly: AUC 0.5, signed CNR 0, and for the
    pointing game the area within its tolerance, which a random pixel hits. (Coarse random maps, enlarged, hit less:
    their maxima often lie at the border.)"""
    exact = {}
    for name, part in protocol.scores.items() if protocol.prepare in (None, scaled) else ():
        function, options = part.func, part.keywords
        if function is scores.auc_roc and not options.get("bins"):
            exact[name] = 0.5
        elif function is scores.cnr and options.get("signed", True):
            exact[name] = 0.0
        elif function is scores.pointing_game:
            exact[name] = float(mask.within(options.get("tolerance", 0)).mean())
    return exact


@lru_cache(maxsize=1)
def _noise(shape: tuple[int, int], coarse: tuple[int, int], n: int, prepare: Callable | None) -> list[CachedMap]:
    if n < 1:
        raise InputError(f"chance needs at least one random map, got n={n}")
    rng = np.random.default_rng(0)
    maps = (rng.standard_normal(coarse).astype(np.float32) for _ in range(n))
    return [CachedMap(prepare(noise, shape) if prepare else noise) for noise in maps]
