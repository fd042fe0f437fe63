"""From patients to radiographs: line integrals of attenuation, the X-ray beam, and the scanner's display."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter

from chestxai.sources.phantom.anatomy import MU, SIDES, Chest
from chestxai.sources.phantom.lesions import Place, draw
from chestxai.sources.phantom.patients import Patient

#: A lesion's mask is where it changes the line integral by more than this share of its own peak. What counts is its
#: body: vessels, septal lines and air bronchograms drawn into it would make the outline ragged.
MASK_FRACTION = 0.35
#: Lesions that displace organs.
_ANATOMIC = {("Cardiomegaly", ""), ("Atelectasis", "basal")}
#: Photons per cm² at the detector without a patient in the beam.
PHOTONS = 4e5


def render(patients: Sequence[Patient], size: int) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Radiographs of ``patients``, uint8 ``(n, size, size)``, and per patient the bool mask of each lesion."""
    integral, bodies, healthy = attenuation(patients, size)
    return expose(integral, patients, size, healthy), [
        [body > MASK_FRACTION * body.max() for body in one] for one in bodies
    ]


def attenuation(patients: Sequence[Patient], size: int) -> tuple[np.ndarray, list[list[np.ndarray]], np.ndarray]:
    """Line integrals of attenuation of ``n`` exposures, ``patients``, in images of ``size`` pixels a side.

    Returns:
        The integrals, dimensionless float32 ``(n, size, size)``; for each patient the body of each lesion, float
        ``(size, size)`` ≥ 0: the strength of what it adds or takes away, without texture, in any unit; and the
        integrals of the same patients without their lesions.
    """
    chest = Chest(patients, size)
    lungs = {s: chest.lung(s) for s in SIDES}
    heart, mediastinum, markings = chest.cardiac(), chest.mediastinum(), chest.markings()
    lung = {s: np.clip(length - heart - mediastinum, 0, None) for s, (length, _, _) in lungs.items()}
    air = lung[-1] + lung[1]
    trachea, bubble = chest.gas(lungs[1][1])
    total = (
        MU["soft"] * np.clip(chest.soft() - air - trachea - bubble, 0, None)
        + MU["lung"] * air * (1 + 0.5 * markings)
        + MU["soft"] * 0.7 * chest.hila()
        + (MU["bone"] - MU["soft"]) * chest.bones()
    )
    total = np.clip(total + chest.devices(), 0, None).astype(np.float32)
    healthy = total.copy()
    # These lesions change the anatomy itself, so the healthy chest has to be built once more.
    changed = [i for i, p in enumerate(patients) if any((m.name, m.zone) in _ANATOMIC for m in p.lesions)]
    if changed:
        healthy[changed] = attenuation([replace(patients[i], lesions=()) for i in changed], size)[0]

    bodies: list[list[np.ndarray]] = []
    for i, p in enumerate(patients):
        bodies_of_patient = []
        for lesion in p.lesions:
            if lesion.name == "Cardiomegaly":
                # Already in the integral: the enlarged silhouette is the finding, as a radiologist would box it.
                silhouette = np.broadcast_to(heart[i], total[i].shape)
                bodies_of_patient.append((silhouette > 0.25 * silhouette.max()).astype(np.float32))
                continue
            change, body = np.zeros_like(total[i]), np.zeros_like(total[i])
            for s in SIDES if lesion.side == 0 else (lesion.side,):
                _, dome, (u, v) = lungs[s]
                y, u, v, dome = (np.broadcast_to(value[i], total[i].shape) for value in (chest.y, u, v, dome))
                drawn, solid = draw(lesion, Place(y, u, v, lung[s][i], dome, markings[i], p.field / size))
                change += drawn
                body += solid
            total[i] += change
            bodies_of_patient.append(body)
        bodies.append(bodies_of_patient)
    return np.clip(total, 0, None).astype(np.float32), bodies, healthy


def expose(integral: np.ndarray, patients: Sequence[Patient], size: int, healthy: np.ndarray) -> np.ndarray:
    """Displayed radiographs, uint8 ``(n, size, size)``.

    Beer–Lambert ``I = I₀ exp(-∫μ)``, a scatter fraction, the detector's point spread, quantum noise, then the logarithm
    through the scanner's sigmoid response, with exposure control up to the patient's own error.

    Scatter and exposure are those of the chest without its lesions, and the noise of a pixel is the same deviate
    whatever the lesions: with and without a lesion a patient's images are equal outside it. Otherwise a disease could
    be read from the brightness of the whole image.

    ``integral`` and ``healthy``, that without lesions, are of `attenuation` for the same ``patients`` and ``size``.
    """
    scanner, field, error = (
        np.array([getattr(p, name) for p in patients], dtype=np.float32)[:, None, None]
        for name in ("scanner", "field", "exposure")
    )
    primary = np.exp(-integral)
    transmitted = np.empty_like(primary)
    for k, (spread, growth) in enumerate(((0.35, 0.55), (0.55, 0.8))):
        rows = scanner[:, 0, 0] == k
        if rows.any():
            sigma = spread + growth * size / 256 * 0.5
            transmitted[rows] = gaussian_filter(primary[rows], (0, sigma, sigma))
    scatter = 0.25 * np.exp(-healthy).mean(axis=(1, 2), keepdims=True) * (0.5 + 0.5 * scanner)
    photons = PHOTONS * (field / size) ** 2 * (1 - 0.45 * scanner)
    expected = photons * (0.85 * transmitted + 0.15 * scatter)
    # A normal deviate scaled to the Poisson variance: Poisson's own generator uses as many random numbers as the
    # expected counts ask for, so a lesion would change the noise of the whole image.
    noise = np.stack([np.random.default_rng([p.noise, 2]).standard_normal((size, size)) for p in patients])
    signal = -np.log(np.maximum(expected + np.sqrt(expected) * noise, 0.5) / photons)
    # Exposure control meters the central field, as the detector's chambers do.
    central = slice(int(0.2 * size), int(0.85 * size))
    metered = np.median(
        -np.log(0.85 * np.exp(-healthy[:, central, central]) + 0.15 * scatter), axis=(1, 2), keepdims=True
    )
    centre, gain = metered + 0.12 * error + 0.05, np.where(scanner > 0, 1.45, 1.7)
    shown = 1 / (1 + np.exp(-gain * (signal - centre)))
    shown = np.where(scanner > 0, 0.06 + 0.88 * shown**1.1, shown)
    out = np.clip(shown * 255 + 0.5, 0, 255).astype(np.uint8)
    rim = max(1, size // 40)
    for i, p in enumerate(patients):
        if p.scanner and p.noise % 3 == 0:  # collimated
            out[i, :rim], out[i, -rim:], out[i, :, :rim], out[i, :, -rim:] = 8, 8, 8, 8
    return out
