"""A digital chest phantom: endless, deterministic, radiograph-like images with exact truth.

Parallel rays run front to back (z) through an analytic torso: soft-tissue ellipsoids, lungs clipped by diaphragm
domes, heart, mediastinum, spine, ribs and clavicles as tubes. The line integral of attenuation along each ray is
known in closed form; Beer–Lambert turns it into photons, a scatter fraction and a point spread blur them, Poisson
noise counts them, and the scanner's response curve displays the logarithm, bone white and air black. A finding is
added fluid (or, for pneumothorax, removed lung) of known thickness, so its mask is exact.

Lengths are centimetres; x runs to the image's right (the patient's left), y down, z away from the viewer. The field
of view is 34 × 34 cm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import gaussian_filter

from chestxai import runs
from chestxai.sources import Card, Studies
from chestxai.studies import FINDINGS, Finding, Study, box_of

CARD = Card(
    title="Digital chest phantom",
    size="endless; the profile says how many",
    reports="English, written with the image by rules",
    findings="all eight, with exact masks; denials are written, too",
    split="by patient, of one to three studies; drawn for each split apart",
    cite=(),
)

FIELD = 34.0
#: Linear attenuation coefficients in 1/cm at the effective energy of a chest radiograph (about 60 keV; NIST XCOM:
#: water 0.206, cortical bone 0.6 at 1.9 g/cm³; inflated lung a quarter of water; trabecular bone in between).
MU = {"soft": 0.20, "lung": 0.05, "bone": 0.42, "fluid": 0.21}
#: A lesion's mask is where it changes the line integral by more than this share of its own peak. What counts is its
#: body: vessels, septal lines and air bronchograms drawn into it would make the outline ragged.
MASK_FRACTION = 0.35
#: Photons per cm² at the detector without a patient in the beam.
PHOTONS = 4e5

_SPLITS = {"train": 0, "val": 1, "test": 2}
_SEVERITY = ("small", "moderate", "large")
_FIXED_ZONES = {"Cardiomegaly": "", "Edema": "perihilar", "Pleural Effusion": "basal", "Pneumothorax": "apical"}
#: Where a zone's middle is, in units of the lung's half height from -1 (apex) to 1.
_HEIGHTS = {"apical": -0.7, "upper": -0.55, "mid": -0.05, "lower": 0.42, "basal": 0.55}


@dataclass(frozen=True)
class Lesion:
    """A finding as drawn: side -1 is the patient's right (image left), +1 the left, 0 both; ``amount`` in [0, 1]."""

    name: str
    side: int
    zone: str
    amount: float
    shape: np.ndarray = field(repr=False, compare=False)

    @property
    def severity(self) -> str:
        """Small, moderate or large, by thirds of ``amount``."""
        return _SEVERITY[min(int(self.amount * 3), 2)]


@dataclass(frozen=True)
class Patient:
    """One exposure: habitus and geometry (cm), technique, and the lesions; ``noise`` seeds texture and quanta."""

    view: str
    sex: str
    age: int
    habitus: float
    rotation: float
    shift: tuple[float, float]
    inspiration: float
    heart: float
    exposure: float
    scanner: int
    device: str
    noise: int
    lesions: tuple[Lesion, ...]


def load(
    root: object = None, split: str = "test", *, n: int = 1000, size: int = 64, seed: int = 0, normal: bool = False
) -> Studies:
    """``n`` phantom studies of ``split`` as uint8 ``(size, size)`` images with report, findings, masks and boxes.

    Deterministic by (seed, split, index): a larger ``n`` only appends. Patients have one to three studies and belong
    to one split. ``normal=True`` gives the same patients without any finding.

    Raises:
        ValueError: unknown split, ``size`` outside 32–1024, ``n`` below 1.
    """
    if split not in _SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(_SPLITS)}")
    if not 32 <= size <= 1024:
        raise ValueError(f"phantom size must be 32 to 1024 pixels, got {size}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    keys: list[tuple[int, int]] = []
    person = 0
    while len(keys) < n:
        visits = int(_rng(seed, split, person).integers(1, 4))
        keys += [(person, visit) for visit in range(visits)]
        person += 1
    keys = keys[:n]
    patients = [patient(seed, split, person, visit, normal) for person, visit in keys]
    studies: list[Study] = []
    chunk = max(1, 64 * 64 * 64 // size**2)
    for i in range(0, n, chunk):
        images, masks = render(patients[i : i + chunk], size)
        for (person, visit), one, image, found in zip(
            keys[i : i + chunk], patients[i : i + chunk], images, masks, strict=True
        ):
            rng = _rng(seed, split, person, visit, 7)
            report, findings = write_report(one, found, rng)
            name = f"phantom-{seed}-{split}-{person:06d}"
            studies.append(
                Study(
                    id=f"{name}-{visit}" + ("-normal" if normal else ""),
                    patient=name,
                    source="phantom",
                    split=split,
                    report=report,
                    size=(size, size),
                    findings=findings,
                    array=image,
                    attributes=_attributes(one),
                )
            )
    # The number rises with every change of images, reports or truth.
    return Studies(studies, fingerprint=runs.fingerprint("phantom", 2, split, n, size, seed, normal))


def _rng(seed: int, split: str, *key: int) -> np.random.Generator:
    return np.random.default_rng([seed, _SPLITS[split], *key])


def _attributes(one: Patient) -> dict[str, str | float]:
    habitus = "slim" if one.habitus < -0.6 else "large" if one.habitus > 0.6 else "average"
    return {
        "view": one.view,
        "sex": one.sex,
        "age": one.age,
        "habitus": habitus,
        "rotation": round(one.rotation, 2),
        "exposure": round(one.exposure, 2),
        "scanner": "AB"[one.scanner],
        "device": one.device,
    }


# --- who is in front of the detector -------------------------------------------------------------------------------


def patient(seed: int, split: str, person: int, visit: int, normal: bool = False) -> Patient:
    """Draw one exposure: what belongs to the person stays over visits, technique and lesions do not."""
    p = _rng(seed, split, person, 1000)
    sex, age, habitus, heart = "FM"[int(p.random() < 0.5)], int(p.integers(20, 90)), p.normal(), p.uniform(0.9, 1.05)
    v = _rng(seed, split, person, visit)
    view = "AP" if v.random() < 0.35 else "PA"
    device = str(v.choice(["", "", "", "central line", "pacemaker", "endotracheal tube"])) if view == "AP" else ""
    exposure = dict(
        view=view,
        sex=sex,
        age=age,
        habitus=float(np.clip(habitus, -2, 2)),
        rotation=float(v.normal(0, 0.5)),
        shift=(float(v.normal(0, 0.5)), float(v.normal(0, 0.6))),
        inspiration=float(v.uniform(0.85, 1.05) * (0.93 if view == "AP" else 1)),
        heart=float(heart),
        exposure=float(v.normal(0, 0.6)),
        scanner=int(v.random() < 0.35),
        device=device,
        noise=int(v.integers(2**31)),
    )
    lesions: list[Lesion] = []
    draws = v.random(), int(v.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))
    if not normal and draws[0] > 0.25:
        for name in v.choice(FINDINGS, size=draws[1], replace=False):
            lesions.append(_lesion(str(name), v, lesions))
    return Patient(**exposure, lesions=tuple(one for one in lesions if one is not None))


def _lesion(name: str, rng: np.random.Generator, others: Sequence[Lesion]) -> Lesion | None:
    side = 0 if name in ("Cardiomegaly", "Edema") else int(rng.choice([-1, 1]))
    if name in _FIXED_ZONES or name == "Atelectasis":
        zone = _FIXED_ZONES.get(name, str(rng.choice(["basal", "mid"], p=[0.75, 0.25])))
    else:
        zone = str(rng.choice(["upper", "mid", "lower"]))
    lesion = Lesion(name, side, zone, float(rng.uniform(0.05, 1)), rng.random(48))
    # Two lesions of one place cannot both be seen: a picture a radiologist could not read teaches nothing.
    taken = {(one.side, one.zone) for one in others if one}
    return None if side and (side, zone) in taken else lesion


# --- physics -------------------------------------------------------------------------------------------------------


def chord(u: np.ndarray, v: np.ndarray, depth: np.ndarray | float) -> np.ndarray:
    """Length (cm) of the ray through an ellipsoid at normalised distances ``u, v`` from its axis: 2c√(1-u²-v²)."""
    return 2 * depth * np.sqrt(np.clip(1 - u * u - v * v, 0, None))


def render(patients: Sequence[Patient], size: int) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Radiographs uint8 ``(n, size, size)`` and, per patient, the bool ``(size, size)`` mask of each lesion."""
    integral, bodies = attenuation(patients, size)
    images = expose(integral, patients, size)
    return images, [[body > MASK_FRACTION * body.max() for body in one] for one in bodies]


def attenuation(patients: Sequence[Patient], size: int) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Line integrals of attenuation (dimensionless), and where every lesion is.

    Returns:
        float32 ``(n, size, size)``, and per patient the body of each lesion, float ``(size, size)`` ≥ 0: the strength
        of what it adds or takes away, without texture, in any unit.
    """
    step = FIELD / size
    axis = ((np.arange(size) + 0.5) * step - FIELD / 2).astype(np.float32)
    column = {
        name: np.array([getattr(p, name) for p in patients], dtype=np.float32)[:, None, None]
        for name in ("habitus", "rotation", "inspiration", "heart", "age")
    }
    shift = np.array([p.shift for p in patients], dtype=np.float32)
    female = np.array([p.sex == "F" for p in patients], dtype=np.float32)[:, None, None]
    ap = np.array([p.view == "AP" for p in patients], dtype=np.float32)[:, None, None]
    x = axis[None, None, :] - shift[:, 0, None, None]
    y = axis[None, :, None] - shift[:, 1, None, None]
    hab, rot, insp = column["habitus"], column["rotation"], column["inspiration"]
    w = 1 + 0.05 * hab - 0.04 * female

    wall = 15.0 + 1.3 * hab
    torso = chord(x / (wall * 1.12), (y - 4) / 30, 11.0 + 1.2 * hab)
    shoulders = sum(chord((x - s * 15.5 * w) / 6.5, (y + 17.5) / 6.5, 6.0) for s in (-1, 1))
    neck = chord(x / 5.2, (y + 19) / 8, 5.0)
    body = np.maximum(np.maximum(torso * _edge(15.5 - np.abs(y + 1.0 + 0.04 * x * x) + 6, 2.0), shoulders), neck)
    breasts = sum(
        female * chord((x - s * 7.5 * w) / 5.2, (y - 5.5) / 4.6, 2.0 + 0.7 * np.clip(hab, -1, 2)) for s in (-1, 1)
    )

    lungs, domes, frames = {}, {}, {}
    for s in (-1, 1):
        centre_x, centre_y = s * 6.4 * w + 0.25 * rot, -1.6 + 0 * insp
        a, b = (5.6 if s < 0 else 5.4) * w * (1 + 0.03 * s * rot), 13.0 * insp
        u, v = (x - centre_x) / a, (y - centre_y) / b
        # Exponents above two make the lung boxier than an ellipse, as seen from the front; apices stay round.
        radius = np.abs(u) ** 2.4 + np.where(v < 0, np.abs(v) ** 2.2, np.abs(v) ** 3.2)
        length = 15.5 * (1 + 0.05 * hab) * np.clip(1 - radius, 0, None) ** 0.38
        raised = np.array(
            [
                sum(
                    1.0 + 1.2 * m.amount
                    for m in p.lesions
                    if m.name == "Atelectasis" and m.side == s and m.zone == "basal"
                )
                for p in patients
            ],
            dtype=np.float32,
        )[:, None, None]
        dome_y = centre_y + b * 0.80 - (0.9 if s < 0 else 0.0) - raised
        # Highest at the dome's centre, falling 3 cm to the costophrenic angle.
        domes[s] = dome_y + 3.0 * np.abs((x - centre_x + s * 0.8) / a) ** 2
        above = _edge(domes[s] - y, 0.35)
        lungs[s] = length * above
        frames[s] = (u * s, v)

    big = np.array(
        [max([0.0, *(0.28 + 0.30 * m.amount for m in p.lesions if m.name == "Cardiomegaly")]) for p in patients],
        dtype=np.float32,
    )[:, None, None]
    size_heart = column["heart"] * (1 + 0.10 * ap)

    def cardiac(scale: np.ndarray) -> np.ndarray:
        cx, cy = 1.9 + 0.35 * rot + 1.6 * (scale - 1), 5.3 - 0.8 * (insp - 1) * 10 * 0.3
        p, q = (x - cx) * 0.90 + (y - cy) * 0.43, -(x - cx) * 0.43 + (y - cy) * 0.90
        return chord(p / (6.1 * scale), q / (4.7 * (0.5 + 0.5 * scale)), 5.0 * scale)

    heart = cardiac(size_heart * (1 + big))
    vessels = chord((x - 0.3 * rot) / (2.7 + 0.3 * ap + 0.3 * column["age"] / 90), (y + 6) / 10, 4.0)
    knob = chord((x - 2.7 - 0.3 * rot) / 1.7, (y + 4.9) / 1.9, 2.2)
    hila = sum(chord((x - s * 3.9 * w) / 1.7, (y + (0.4 if s > 0 else -0.4)) / 2.7, 1.6) for s in (-1, 1))
    mediastinum = np.maximum(vessels, knob)

    trachea = 1.5 * np.sqrt(np.clip(1 - ((x - 0.4 * rot) / 0.95) ** 2, 0, None)) * _edge(-4.2 - y, 0.5)
    bubble = chord((x - 6.2 * w) / 2.3, (y - (domes[1].min(axis=2, keepdims=True) + 2.0)) / 1.3, 1.6)

    lung = {s: np.clip(lungs[s] - heart - mediastinum, 0, None) for s in (-1, 1)}
    bones = _bones(x, y, w, insp, rot, column["age"])
    markings = _markings(patients, x, y, size)
    air = lung[-1] + lung[1]
    total = (
        MU["soft"] * np.clip(body + 0.8 * breasts - air - trachea - bubble, 0, None)
        + MU["lung"] * air * (1 + 0.5 * markings)
        + MU["soft"] * 0.7 * hila
        + (MU["bone"] - MU["soft"]) * bones
    )
    total += _devices(patients, x, y, step)

    bodies: list[list[np.ndarray]] = []
    for i, p in enumerate(patients):
        mine = []
        for lesion in p.lesions:
            if lesion.name == "Cardiomegaly":
                # Already in the integral: the enlarged silhouette is the finding, as a radiologist would box it.
                silhouette = np.broadcast_to(heart[i], total[i].shape)
                mine.append((silhouette > 0.25 * silhouette.max()).astype(np.float32))
                continue
            sides = (-1, 1) if lesion.side == 0 else (lesion.side,)
            change, body = np.zeros_like(total[i]), np.zeros_like(total[i])
            for s in sides:
                u, v = (np.broadcast_to(value[i], total[i].shape) for value in frames[s])
                xi, yi = np.broadcast_to(x[i], total[i].shape), np.broadcast_to(y[i], total[i].shape)
                dome = np.broadcast_to(domes[s][i], total[i].shape)
                drawn, solid = _draw(lesion, s, xi, yi, u, v, lung[s][i], dome, markings[i], step)
                change += drawn
                body += solid
            total[i] += change
            mine.append(body)
        bodies.append(mine)
    return np.clip(total, 0, None).astype(np.float32), bodies


def _edge(distance: np.ndarray, width: float) -> np.ndarray:
    """A soft step: 0 outside, 1 inside, ``width`` cm wide (surfaces are not parallel to the ray)."""
    return (1 / (1 + np.exp(np.clip(-distance / width * 2.2, -30, 30)))).astype(np.float32)


def _tube(distance: np.ndarray, radius: float, hollow: float = 0.55) -> np.ndarray:
    """Bone along a ray through a hollow tube at ``distance`` from its axis: cortical shell of a cylinder."""
    outer = np.sqrt(np.clip(radius**2 - distance**2, 0, None))
    inner = np.sqrt(np.clip((hollow * radius) ** 2 - distance**2, 0, None))
    return 2 * (outer - 0.75 * inner)


def _bones(
    x: np.ndarray, y: np.ndarray, w: np.ndarray, insp: np.ndarray, rot: np.ndarray, age: np.ndarray
) -> np.ndarray:
    bone = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    side = np.abs(x)
    for i in range(10):
        top = -13.6 * insp + i * 2.35 * insp
        reach = np.clip(11.6 * w * np.sqrt(np.clip(1 - ((i - 7) / 11.0) ** 2, 0.2, 1)), 3, None)
        u = np.clip(side / reach, 0, 1)
        inside = (side > 1.6) & (side < reach)
        posterior = top - 0.9 * np.sin(np.pi * u * 0.9) + 2.6 * u**2.2
        bone += 1.5 * _tube((y - posterior) * 0.93, 0.50) * inside
        if i < 7:
            anterior = top + 2.6 + 4.4 * (1 - u) ** 1.1
            bone += 0.75 * _tube((y - anterior) * 0.80, 0.58) * (inside & (side > 3.6))
    for s in (-1, 1):
        t = np.clip((s * (x - 0.5 * rot) - 1.6) / 11.5, 0, 1)
        line = -12.2 * insp - 2.0 * t - 0.8 * np.sin(2 * np.pi * t)
        bone += 1.9 * _tube(y - line, 0.62) * ((s * x > 1.6) & (s * x < 13.5))
    spine = np.sqrt(np.clip(1 - ((x - 0.15 * rot) / 1.9) ** 2, 0, None)) * (1.9 + 0.5 * np.cos(2 * np.pi * y / 2.6))
    bone += spine * (1 - 0.003 * (age - 50))
    scapula = sum(chord((x - s * 12.6 * w) / 1.5, (y + 6.5) / 5.5, 0.35) for s in (-1, 1))
    return bone + scapula


def _markings(patients: Sequence[Patient], x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """Lung vessels: filtered noise, stronger near the hila, zero mean; float32 ``(n, size, size)``."""
    coarse = 48
    fields = np.empty((len(patients), coarse, coarse), np.float32)
    for i, p in enumerate(patients):
        fields[i] = np.random.default_rng([p.noise, 1]).standard_normal((coarse, coarse), dtype=np.float32)
    fields = gaussian_filter(fields, (0, 0.9, 0.7)) - gaussian_filter(fields, (0, 2.4, 2.4))
    fields /= fields.std(axis=(1, 2), keepdims=True)
    grid = (np.arange(size) + 0.5) * coarse / size - 0.5
    low = np.clip(np.floor(grid).astype(int), 0, coarse - 2)
    f = np.clip(grid - low, 0, 1).astype(np.float32)
    rows = fields[:, low] * (1 - f)[None, :, None] + fields[:, low + 1] * f[None, :, None]
    full = rows[:, :, low] * (1 - f) + rows[:, :, low + 1] * f
    distance = np.sqrt((np.abs(x) - 3.5) ** 2 + (0.7 * y) ** 2)
    return full * np.exp(-distance / 7.0).astype(np.float32)


def _devices(patients: Sequence[Patient], x: np.ndarray, y: np.ndarray, step: float) -> np.ndarray:
    out = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    for i, p in enumerate(patients):
        if p.device == "central line":
            path = -1.3 - 2.2 * np.exp(-((y[i] + 9) ** 2) / 14) * (y[i] < -6)
            out[i] = 0.9 * np.exp(-(((x[i] - path) / max(0.16, 0.4 * step)) ** 2)) * (y[i] < 1.5)
        elif p.device == "endotracheal tube":
            out[i] = 0.8 * np.exp(-(((x[i] - 0.2) / max(0.22, 0.4 * step)) ** 2)) * (y[i] < -6.5)
        elif p.device == "pacemaker":
            inside = ((x[i] - 9.5) / 2.1) ** 4 + ((y[i] + 10.2) / 1.7) ** 4 < 1
            lead = np.exp(-(((x[i] - 2.2 - 4.5 * np.exp(-((y[i] + 10) ** 2) / 22)) / max(0.16, 0.4 * step)) ** 2))
            out[i] = 2.2 * inside + 0.8 * lead * ((y[i] > -10) & (y[i] < 7))
    return out


def _draw(
    lesion: Lesion,
    s: int,
    x: np.ndarray,
    y: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    lung: np.ndarray,
    dome: np.ndarray,
    markings: np.ndarray,
    step: float,
) -> tuple[np.ndarray, np.ndarray]:
    """What a lesion adds to the line integral, and its body (the same without texture, in any unit).

    ``u`` runs from -1 (medial) to 1 (lateral), ``v`` from -1 (apex) down.
    """
    r, amount = lesion.shape, lesion.amount
    inside = np.clip(lung / 9.0, 0, 1)
    extra = MU["fluid"] - MU["lung"]
    v0 = _HEIGHTS.get(lesion.zone, 0.0)

    def blob(cu: float, cv: float, ru: float, rv: float, power: float = 2.0) -> np.ndarray:
        return np.exp(-((((u - cu) / ru) ** 2 + ((v - cv) / rv) ** 2) ** (power / 2)))

    cu, cv = -0.05 + 0.5 * (r[0] - 0.4), v0 + 0.16 * (r[1] - 0.5)
    if lesion.name == "Pleural Effusion":
        height = 2.2 + 8.0 * amount
        # The meniscus climbs along the lateral wall; below it fluid takes the lung's place.
        level = dome.min() + 2.0 - height * (0.45 + 0.60 * np.clip((u + 1) / 2, 0, 1.2) ** 2)
        fluid = extra * 0.85 * _edge(y - level, 0.45) * lung
        return fluid, fluid
    if lesion.name == "Pneumothorax":
        f = 0.16 + 0.36 * amount
        # The collapsed lung is a smaller copy drawn towards the hilum; what lies outside it is air.
        radius = np.abs((u + 0.35 * f) / (1 - 0.75 * f)) ** 2.4 + np.abs((v - 0.75 * f) / (1 - 0.55 * f)) ** 2.2
        gone = _edge((radius - 1) * 3.0, 0.55) * inside * _edge(0.35 + 0.5 * amount - v, 0.12)
        line = np.exp(-(((radius - 1) * 5.0 / (1 + step)) ** 2)) * inside * (v < 0.3)
        taken = -MU["lung"] * lung * gone * (1 + 0.5 * markings) - 0.42 * gone * inside + 0.20 * line * (1 - gone)
        return taken, (MU["lung"] * lung + 0.42 * inside) * gone
    if lesion.name == "Atelectasis":
        thick, long = 0.055 + 0.06 * amount, 0.45 + 0.25 * amount
        out = np.zeros_like(lung)
        for k in range(1 + int(amount > 0.5)):
            tilt = 0.5 * (r[4 + k] - 0.5)
            du, dv = u - cu, v - (cv + 0.16 * k) - tilt * 0.35 * (u - cu)
            out = np.maximum(out, np.exp(-(np.abs(du / long) ** 4) - (dv / max(thick, step / 13)) ** 2))
        collapsed = extra * (5.0 + 2.0 * amount) * out * inside
        return collapsed, collapsed
    if lesion.name == "Consolidation":
        ru, rv = 0.42 + 0.25 * amount, 0.17 + 0.17 * amount
        body = blob(cu, cv, ru, rv, 6.0)
        bronchi = np.zeros_like(lung)
        for k in range(3):
            slope = (r[8 + k] - 0.5) * 1.2
            distance = (v - cv) - slope * 0.4 * (u + 0.6) - 0.10 * (k - 1)
            bronchi = np.maximum(bronchi, np.exp(-((distance / 0.025) ** 2)))
        filled = extra * (7.0 + 2.5 * amount) * body * (1 - 0.5 * bronchi * (np.abs(u - cu) < ru)) * inside
        return filled, body * inside
    if lesion.name == "Edema":
        wing = blob(-0.25, 0.02, 0.50 + 0.2 * amount, 0.30 + 0.14 * amount, 2.4)
        kerley = 0.5 + 0.5 * np.cos(v * 48 + 6.28 * r[2])
        wet = extra * (3.0 + 2.6 * amount) * wing * (0.72 + 0.28 * kerley) * (1 + 0.4 * markings) * inside
        return wet, wing * inside
    if lesion.name == "Lung Opacity":
        haze = extra * (3.0 + 2.2 * amount) * blob(cu, cv, 0.36 + 0.28 * amount, 0.15 + 0.13 * amount) * inside
        return haze, haze
    if lesion.name == "Pneumonia":
        out = np.zeros_like(lung)
        for k in range(6 + int(3 * amount)):
            pu, pv = cu + 0.75 * (r[10 + 2 * k] - 0.5), cv + (0.30 + 0.2 * amount) * (r[11 + 2 * k] - 0.5)
            patch = blob(pu, pv, 0.15 + 0.09 * r[30 + k], 0.065 + 0.04 * r[30 + k], 3.0)
            out = np.maximum(out, patch * (0.7 + 0.3 * r[40 - k]))
        patches = extra * (5.5 + 2.5 * amount) * out * inside
        return patches, patches
    raise ValueError(f"no phantom sign for {lesion.name!r}")


def expose(integral: np.ndarray, patients: Sequence[Patient], size: int) -> np.ndarray:
    """From line integrals ``(n, size, size)`` to displayed radiographs, uint8.

    Beer–Lambert ``I = I₀ exp(-∫μ)``, a scatter fraction, the detector's point spread, Poisson quanta, then the
    logarithm through the scanner's sigmoid response, with automatic exposure control up to the patient's own error.
    """
    scanner = np.array([p.scanner for p in patients], dtype=np.float32)[:, None, None]
    primary = np.exp(-integral)
    pixels = FIELD / size
    transmitted = np.empty_like(primary)
    for k in (0, 1):
        rows = scanner[:, 0, 0] == k
        if rows.any():
            sigma = float(np.array([0.35, 0.55])[k] + np.array([0.55, 0.8])[k] * size / 256 * 0.5)
            transmitted[rows] = gaussian_filter(primary[rows], (0, sigma, sigma))
    scatter = 0.25 * transmitted.mean(axis=(1, 2), keepdims=True) * (0.5 + 0.5 * scanner)
    photons = PHOTONS * pixels**2 * (1 - 0.45 * scanner)
    expected = photons * (0.85 * transmitted + 0.15 * scatter)
    counted = np.empty_like(primary)
    for i, p in enumerate(patients):
        counted[i] = np.random.default_rng([p.noise, 2]).poisson(expected[i])
    signal = -np.log(np.maximum(counted, 0.5) / photons)
    # Exposure control meters the central field, as the detector's chambers do.
    lo = slice(int(0.2 * size), int(0.85 * size))
    metered = np.median(signal[:, lo, lo], axis=(1, 2), keepdims=True)
    error = np.array([p.exposure for p in patients], dtype=np.float32)[:, None, None]
    centre, gain = metered + 0.12 * error + 0.05, np.where(scanner > 0, 1.45, 1.7)
    shown = 1 / (1 + np.exp(-gain * (signal - centre)))
    shown = np.where(scanner > 0, 0.06 + 0.88 * shown**1.1, shown)
    out = np.clip(shown * 255 + 0.5, 0, 255).astype(np.uint8)
    edge = max(1, size // 40)
    collimated = [i for i, p in enumerate(patients) if p.scanner and p.noise % 3 == 0]
    for i in collimated:
        out[i, :edge], out[i, -edge:], out[i, :, :edge], out[i, :, -edge:] = 8, 8, 8, 8
    return out


# --- what the radiologist writes -----------------------------------------------------------------------------------

_NAMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Atelectasis": (
        ("atelectasis", "linear atelectasis", "subsegmental atelectasis"),
        ("atelectatic change", "plate-like collapse"),
    ),
    "Cardiomegaly": (("cardiomegaly",), ("enlarged cardiac silhouette", "enlargement of the heart")),
    "Consolidation": (("consolidation", "lobar consolidation"), ("airspace consolidation", "consolidated lung")),
    "Edema": (("pulmonary edema", "edema"), ("interstitial edema", "pulmonary vascular congestion")),
    "Lung Opacity": (("lung opacity", "hazy lung opacity"), ("ill-defined opacity", "infiltrate")),
    "Pleural Effusion": (("pleural effusion",), ("effusion", "pleural fluid")),
    "Pneumonia": (("pneumonia", "patchy pneumonia"), ("bronchopneumonia", "multifocal pneumonia")),
    "Pneumothorax": (("pneumothorax",), ("ptx", "pneumothorax with visible pleural line")),
}
_GRADES = {"small": ("small", "mild", "minimal"), "moderate": ("moderate",), "large": ("large", "severe", "extensive")}
_GRADED = {"Cardiomegaly": {"small": "mild", "moderate": "moderate", "large": "marked"}}
_ZONES = {
    "basal": ("basal", "basilar", "lower"),
    "apical": ("apical", ""),
    "upper": ("upper lobe", "upper zone"),
    "mid": ("mid lung", "midlung zone"),
    "lower": ("lower lobe", "lower zone"),
    "perihilar": ("perihilar", "bilateral", ""),
    "": ("",),
}
_NORMAL = (
    "No acute cardiopulmonary abnormality.",
    "Normal chest radiograph.",
    "No acute disease.",
    "Clear lungs. Normal heart size.",
    "No evidence of active cardiopulmonary process.",
)
_COMPARISONS = (
    "Comparison is made with the prior study.",
    "Stable since XXXX.",
    "Compared to ___, no interval change in the bones.",
)
_DEVICES = {
    "central line": "Right central venous line ends in the superior vena cava.",
    "pacemaker": "Left-sided pacemaker with lead in the right ventricle.",
    "endotracheal tube": "Endotracheal tube in satisfactory position.",
}


def write_report(
    one: Patient, masks: Sequence[np.ndarray], rng: np.random.Generator
) -> tuple[str, tuple[Finding, ...]]:
    """A report of the study and its findings: those it has, then those the text denies.

    A finding's phrase is a verbatim passage of the text; that of a present one stands in the impression too, there
    perhaps capitalised.
    """
    findings, clauses = [], []
    for lesion, mask in zip(one.lesions, masks, strict=True):
        side = {-1: "right", 1: "left", 0: None if lesion.name == "Cardiomegaly" else "bilateral"}[lesion.side]
        canonical, synonyms = _NAMES[lesion.name]
        name = str(rng.choice(canonical if rng.random() < 0.75 else synonyms))
        grade = _GRADED.get(lesion.name, {}).get(lesion.severity) or str(rng.choice(_GRADES[lesion.severity]))
        zone = str(rng.choice(_ZONES[lesion.zone]))
        words = [grade, side if lesion.side else "", zone, name]
        phrase = " ".join(word for word in words if word)
        clauses.append(phrase)
        findings.append((lesion, side, phrase, mask))
    absent = [name for name in FINDINGS if name not in {lesion.name for lesion in one.lesions}]
    # A faint lesion is not a positive proof of absence; reports deny what matters and is not there.
    denied = [str(n) for n in rng.choice(absent, size=int(rng.integers(0, 3)), replace=False)] if absent else []
    numbered, shout = rng.random() < 0.25, rng.random() < 0.15
    if clauses:
        sentences = [_sentence(c) for c in clauses]
        if len(clauses) == 2 and rng.random() < 0.5:
            sentences = [_sentence(f"{clauses[0]} and {clauses[1]}")]
        if numbered and len(sentences) > 1:
            sentences = [f"{i}. {text}" for i, text in enumerate(sentences, 1)]
    else:
        sentences = [str(rng.choice(_NORMAL))]
    if denied and rng.random() < 0.4:
        sentences.append(_sentence(f"no {_NAMES[denied[0]][0][0]}"))
    impression = " ".join(sentences)

    body = []
    if one.device:
        body.append(_DEVICES[one.device])
    if rng.random() < 0.3:
        body.append(str(rng.choice(_COMPARISONS)))
    body += [f"There is {'an' if c[0] in 'aeiou' else 'a'} {c}." for c in clauses]
    body += [f"{'No' if rng.random() < 0.5 else 'There is no evidence of'} {_NAMES[n][0][0]}." for n in denied]
    if not clauses:
        body.append("The lungs are clear. The heart is normal in size.")
    if rng.random() < 0.4:
        body.append("The osseous structures are intact.")
    details = " ".join(body)
    style = rng.random()
    if style < 0.55:
        text = f"INDICATION: {one.age}-year-old with XXXX.\nFINDINGS: {details}\nIMPRESSION: {impression}"
    elif style < 0.75:
        text = f"{one.view} chest radiograph.\n\nFindings: {details}\n\nImpression: {impression}"
    elif style < 0.9:
        text = f"FINDINGS:\n{details}\n\nIMPRESSION:\n{impression}"
    else:
        text = impression
    if shout:
        text = text.upper()
    told = []
    for lesion, side, phrase, mask in findings:
        where = dict(side=side, zone=lesion.zone or None, severity=lesion.severity)
        told.append(Finding(lesion.name, _verbatim(text, phrase), True, **where, boxes=_boxes(mask, lesion), mask=mask))
    for name in denied:
        words = _NAMES[name][0][0]
        phrase = _verbatim(text, f"no evidence of {words}") or _verbatim(text, f"no {words}")
        # Not every style tells all that is denied, and what the text is silent about is not denied.
        if phrase:
            told.append(Finding(name, phrase, present=False))
    return text, tuple(told)


def _verbatim(text: str, words: str) -> str:
    start = text.lower().find(words)
    return text[start : start + len(words)] if start >= 0 else ""


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _boxes(mask: np.ndarray, lesion: Lesion) -> tuple:
    if lesion.name == "Edema":
        half = mask.shape[1] // 2
        left, right = mask.copy(), mask.copy()
        left[:, half:], right[:, :half] = False, False
        return tuple(b for b in (box_of(left), box_of(right)) if b)
    box = box_of(mask)
    return (box,) if box else ()
