"""How each finding changes the chest: added fluid, or air in the place of lung.

Each drawing function takes a lesion and its place and returns what the lesion adds to the line integral, and its body:
the strength of that without texture (vessels, septal lines, air bronchograms), in any unit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from chestxai.runs import InputError
from chestxai.sources.phantom.anatomy import MU, edge
from chestxai.sources.phantom.patients import Lesion

#: Where a zone's middle is, in units of the lung's half height from -1 (apex) to 1.
_HEIGHTS = {"apical": -0.7, "upper": -0.55, "mid": -0.05, "lower": 0.42, "basal": 0.55}
_EXTRA = MU["fluid"] - MU["lung"]

Drawn = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Place:
    """One lung of one patient, arrays ``(size, size)``.

    ``y`` is in cm; ``u`` runs from -1 (medial) to 1 (lateral), ``v`` from -1 (apex) down; ``lung`` is the length of
    lung along each ray, ``dome`` the diaphragm's y, ``markings`` the texture of vessels, ``step`` cm per pixel.
    """

    y: np.ndarray
    u: np.ndarray
    v: np.ndarray
    lung: np.ndarray
    dome: np.ndarray
    markings: np.ndarray
    step: float

    @property
    def inside(self) -> np.ndarray:
        """1 in the middle of the lung, falling to 0 at its rim."""
        return np.clip(self.lung / 9.0, 0, 1)

    def blob(self, cu: float, cv: float, ru: float, rv: float, power: float = 2.0) -> np.ndarray:
        """An oval around (``cu``, ``cv``) with radii ``ru`` and ``rv``; its edge is the harder the larger ``power``."""
        return np.exp(-((((self.u - cu) / ru) ** 2 + ((self.v - cv) / rv) ** 2) ** (power / 2)))


def draw(lesion: Lesion, place: Place) -> Drawn:
    """What ``lesion`` (other than cardiomegaly) adds to the line integral of the lung at ``place``, and its body."""
    if lesion.name not in _DRAWINGS:
        raise InputError(f"no phantom sign for {lesion.name!r}")
    return _DRAWINGS[lesion.name](lesion, place)


def _centre(lesion: Lesion) -> tuple[float, float]:
    r = lesion.shape
    return -0.05 + 0.5 * (r[0] - 0.4), _HEIGHTS.get(lesion.zone, 0.0) + 0.16 * (r[1] - 0.5)


def _effusion(lesion: Lesion, place: Place) -> Drawn:
    height = 2.2 + 8.0 * lesion.amount
    # The meniscus climbs along the lateral wall; below it fluid takes the lung's place.
    level = place.dome.min() + 2.0 - height * (0.45 + 0.60 * np.clip((place.u + 1) / 2, 0, 1.2) ** 2)
    fluid = _EXTRA * 0.85 * edge(place.y - level, 0.45) * place.lung
    return fluid, fluid


def _pneumothorax(lesion: Lesion, place: Place) -> Drawn:
    u, v, lung, inside, amount = place.u, place.v, place.lung, place.inside, lesion.amount
    f = 0.16 + 0.36 * amount
    # The collapsed lung is a smaller copy drawn towards the hilum; what lies outside it is air.
    radius = np.abs((u + 0.35 * f) / (1 - 0.75 * f)) ** 2.4 + np.abs((v - 0.75 * f) / (1 - 0.55 * f)) ** 2.2
    gone = edge((radius - 1) * 3.0, 0.55) * inside * edge(0.35 + 0.5 * amount - v, 0.12)
    line = np.exp(-(((radius - 1) * 5.0 / (1 + place.step)) ** 2)) * inside * (v < 0.3)
    taken = -MU["lung"] * lung * gone * (1 + 0.5 * place.markings) - 0.42 * gone * inside + 0.20 * line * (1 - gone)
    return taken, (MU["lung"] * lung + 0.42 * inside) * gone


def _atelectasis(lesion: Lesion, place: Place) -> Drawn:
    (cu, cv), amount = _centre(lesion), lesion.amount
    thick, long = 0.055 + 0.06 * amount, 0.45 + 0.25 * amount
    out = np.zeros_like(place.lung)
    for k in range(1 + int(amount > 0.5)):
        tilt = 0.5 * (lesion.shape[4 + k] - 0.5)
        du, dv = place.u - cu, place.v - (cv + 0.16 * k) - tilt * 0.35 * (place.u - cu)
        out = np.maximum(out, np.exp(-(np.abs(du / long) ** 4) - (dv / max(thick, place.step / 13)) ** 2))
    collapsed = _EXTRA * (5.0 + 2.0 * amount) * out * place.inside
    return collapsed, collapsed


def _consolidation(lesion: Lesion, place: Place) -> Drawn:
    (cu, cv), amount, inside = _centre(lesion), lesion.amount, place.inside
    ru, rv = 0.42 + 0.25 * amount, 0.17 + 0.17 * amount
    body = place.blob(cu, cv, ru, rv, 6.0)
    bronchi = np.zeros_like(place.lung)
    for k in range(3):
        slope = (lesion.shape[8 + k] - 0.5) * 1.2
        distance = (place.v - cv) - slope * 0.4 * (place.u + 0.6) - 0.10 * (k - 1)
        bronchi = np.maximum(bronchi, np.exp(-((distance / 0.025) ** 2)))
    aired = 1 - 0.5 * bronchi * (np.abs(place.u - cu) < ru)
    return _EXTRA * (7.0 + 2.5 * amount) * body * aired * inside, body * inside


def _edema(lesion: Lesion, place: Place) -> Drawn:
    amount, inside = lesion.amount, place.inside
    wing = place.blob(-0.25, 0.02, 0.50 + 0.2 * amount, 0.30 + 0.14 * amount, 2.4)
    kerley = 0.72 + 0.28 * (0.5 + 0.5 * np.cos(place.v * 48 + 6.28 * lesion.shape[2]))
    return _EXTRA * (3.0 + 2.6 * amount) * wing * kerley * (1 + 0.4 * place.markings) * inside, wing * inside


def _opacity(lesion: Lesion, place: Place) -> Drawn:
    (cu, cv), amount = _centre(lesion), lesion.amount
    oval = place.blob(cu, cv, 0.36 + 0.28 * amount, 0.15 + 0.13 * amount)
    haze = _EXTRA * (3.0 + 2.2 * amount) * oval * place.inside
    return haze, haze


def _pneumonia(lesion: Lesion, place: Place) -> Drawn:
    (cu, cv), amount, r = _centre(lesion), lesion.amount, lesion.shape
    out = np.zeros_like(place.lung)
    for k in range(6 + int(3 * amount)):
        pu, pv = cu + 0.75 * (r[10 + 2 * k] - 0.5), cv + (0.30 + 0.2 * amount) * (r[11 + 2 * k] - 0.5)
        patch = place.blob(pu, pv, 0.15 + 0.09 * r[30 + k], 0.065 + 0.04 * r[30 + k], 3.0)
        out = np.maximum(out, patch * (0.7 + 0.3 * r[40 - k]))
    patches = _EXTRA * (5.5 + 2.5 * amount) * out * place.inside
    return patches, patches


_DRAWINGS: dict[str, Callable[[Lesion, Place], Drawn]] = {
    "Atelectasis": _atelectasis,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Lung Opacity": _opacity,
    "Pleural Effusion": _effusion,
    "Pneumonia": _pneumonia,
    "Pneumothorax": _pneumothorax,
}
