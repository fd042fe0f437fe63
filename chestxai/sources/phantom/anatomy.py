"""The healthy chest in closed form: how many centimetres of each tissue a ray passes through."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from chestxai.sources.phantom.patients import Patient

#: Linear attenuation coefficients in 1/cm at the effective energy of a chest radiograph (about 60 keV; NIST XCOM:
#: water 0.206, cortical bone 0.6 at 1.9 g/cm³; inflated lung a quarter of water; trabecular bone in between).
MU = {"soft": 0.20, "lung": 0.05, "bone": 0.42, "fluid": 0.21}
#: Image left (the patient's right), image right.
SIDES = (-1, 1)


def chord(u: np.ndarray, v: np.ndarray, depth: np.ndarray | float) -> np.ndarray:
    """Centimetres of an ellipsoid along rays at distances ``u, v`` from its axis, in units of its half axes there.

    ``depth`` is the half axis along the ray, in cm: 2c√(1-u²-v²).
    """
    return 2 * depth * np.sqrt(np.clip(1 - u * u - v * v, 0, None))


def edge(distance: np.ndarray, width: float) -> np.ndarray:
    """A soft step from 0 (``distance`` < 0) to 1, ``width`` cm wide, because surfaces are not parallel to the ray."""
    return (1 / (1 + np.exp(np.clip(-distance / width * 2.2, -30, 30)))).astype(np.float32)


def tube(distance: np.ndarray, radius: float, hollow: float = 0.55) -> np.ndarray:
    """Bone along a ray at ``distance`` from the axis of a tube: a shell from ``hollow`` × ``radius`` to ``radius``."""
    outer = np.sqrt(np.clip(radius**2 - distance**2, 0, None))
    inner = np.sqrt(np.clip((hollow * radius) ** 2 - distance**2, 0, None))
    return 2 * (outer - 0.75 * inner)


class Chest:
    """Coordinates and build of ``n`` patients, float32 arrays that broadcast to ``(n, size, size)``.

    ``x`` and ``y`` are centimetres from the middle of each chest, ``width`` its relative width.
    """

    def __init__(self, patients: Sequence[Patient], size: int) -> None:
        axis = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
        field, across, down = (_column(values) for values in zip(*((p.field, *p.shift) for p in patients), strict=True))
        self.patients, self.size = patients, size
        self.x, self.y = axis[None, None, :] * field - across, axis[None, :, None] * field - down
        self.habitus, self.rotation, self.inspiration, self.heart, self.age = (
            _column([getattr(p, name) for p in patients])
            for name in ("habitus", "rotation", "inspiration", "heart", "age")
        )
        self.female, self.ap = _column([p.sex == "F" for p in patients]), _column([p.view == "AP" for p in patients])
        self.width = 1 + 0.05 * self.habitus - 0.04 * self.female

    def soft(self) -> np.ndarray:
        """Torso, shoulders, neck and breasts, without the air inside."""
        x, y, hab, w = self.x, self.y, self.habitus, self.width
        wall = 15.0 + 1.3 * hab
        torso = chord(x / (wall * 1.12), (y - 4) / 30, 11.0 + 1.2 * hab)
        # Shoulders above, upper arms below.
        along = (y + 17.5) / np.where(y < -17.5, 6.5, 17.0)
        shoulders = sum(chord((x - s * 16.0 * w) / 6.0, along, 6.0) for s in SIDES)
        neck = chord(x / 5.2, (y + 19) / 8, 5.0)
        body = np.maximum(np.maximum(torso * edge(15.5 - np.abs(y + 1.0 + 0.04 * x * x) + 6, 2.0), shoulders), neck)
        depth = 2.0 + 0.7 * np.clip(hab, -1, 2)
        breasts = sum(self.female * chord((x - s * 7.5 * w) / 5.2, (y - 5.5) / 4.6, depth) for s in SIDES)
        return body + 0.8 * breasts

    def lung(self, s: int) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """One lung on side ``s`` (-1 or 1), before heart and mediastinum take their share.

        Returns:
            Its length along each ray; y of the diaphragm's dome; and the coordinates (u, v) inside the lung, u from -1
            (medial) to 1 (lateral), v from -1 (apex) down.
        """
        centre_x, centre_y = s * 6.4 * self.width + 0.25 * self.rotation, -1.6 + 0 * self.inspiration
        a = (5.6 if s < 0 else 5.4) * self.width * (1 + 0.03 * s * self.rotation)
        b = 13.0 * self.inspiration
        u, v = (self.x - centre_x) / a, (self.y - centre_y) / b
        # Exponents above two make the lung boxier than an ellipse, as seen from the front; apices stay round.
        radius = np.abs(u) ** 2.4 + np.where(v < 0, np.abs(v) ** 2.2, np.abs(v) ** 3.2)
        length = 15.5 * (1 + 0.05 * self.habitus) * np.clip(1 - radius, 0, None) ** 0.38
        # An atelectasis at the base raises the dome.
        basal = ("Atelectasis", s, "basal")
        raised = _column(
            [sum(1.0 + 1.2 * m.amount for m in p.lesions if (m.name, m.side, m.zone) == basal) for p in self.patients]
        )
        dome_y = centre_y + b * 0.80 - (0.9 if s < 0 else 0.0) - raised
        # Highest at the dome's centre, falling 3 cm to the costophrenic angle.
        dome = dome_y + 3.0 * np.abs((self.x - centre_x + s * 0.8) / a) ** 2
        return length * edge(dome - self.y, 0.35), dome, (u * s, v)

    def cardiac(self) -> np.ndarray:
        """The heart, enlarged by cardiomegaly."""
        big = _column(
            [
                max([0.0, *(0.28 + 0.30 * m.amount for m in p.lesions if m.name == "Cardiomegaly")])
                for p in self.patients
            ]
        )
        scale = self.heart * (1 + 0.10 * self.ap) * (1 + big)
        cx = 1.9 + 0.35 * self.rotation + 1.6 * (scale - 1)
        cy = 5.3 - 0.8 * (self.inspiration - 1) * 10 * 0.3
        p, q = (self.x - cx) * 0.90 + (self.y - cy) * 0.43, -(self.x - cx) * 0.43 + (self.y - cy) * 0.90
        return chord(p / (6.1 * scale), q / (4.7 * (0.5 + 0.5 * scale)), 5.0 * scale)

    def mediastinum(self) -> np.ndarray:
        """Large vessels and aortic knob."""
        x, y, rot = self.x, self.y, self.rotation
        vessels = chord((x - 0.3 * rot) / (2.7 + 0.3 * self.ap + 0.3 * self.age / 90), (y + 6) / 10, 4.0)
        return np.maximum(vessels, chord((x - 2.7 - 0.3 * rot) / 1.7, (y + 4.9) / 1.9, 2.2))

    def hila(self) -> np.ndarray:
        """Vessels at the roots of the lungs."""
        x, y, w = self.x, self.y, self.width
        return sum(chord((x - s * 3.9 * w) / 1.7, (y + (0.4 if s > 0 else -0.4)) / 2.7, 1.6) for s in SIDES)

    def gas(self, dome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Air in the trachea, and in the stomach below the left ``dome``."""
        across = np.sqrt(np.clip(1 - ((self.x - 0.4 * self.rotation) / 0.95) ** 2, 0, None))
        top = dome.min(axis=2, keepdims=True) + 2.0
        bubble = chord((self.x - 6.2 * self.width) / 2.3, (self.y - top) / 1.3, 1.6)
        return 1.5 * across * edge(-4.2 - self.y, 0.5), bubble

    def bones(self) -> np.ndarray:
        """Ribs, clavicles, spine and scapulae."""
        x, y, w, insp, rot = self.x, self.y, self.width, self.inspiration, self.rotation
        bone = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
        side = np.abs(x)
        for i in range(10):
            top = -13.6 * insp + i * 2.35 * insp
            reach = np.clip(11.6 * w * np.sqrt(np.clip(1 - ((i - 7) / 11.0) ** 2, 0.2, 1)), 3, None)
            u = np.clip(side / reach, 0, 1)
            inside = (side > 1.6) & (side < reach)
            posterior = top - 0.9 * np.sin(np.pi * u * 0.9) + 2.6 * u**2.2
            bone += 1.5 * tube((y - posterior) * 0.93, 0.50) * inside
            if i < 7:
                anterior = top + 2.6 + 4.4 * (1 - u) ** 1.1
                bone += 0.75 * tube((y - anterior) * 0.80, 0.58) * (inside & (side > 3.6))
        for s in SIDES:
            t = np.clip((s * (x - 0.5 * rot) - 1.6) / 11.5, 0, 1)
            line = -12.2 * insp - 2.0 * t - 0.8 * np.sin(2 * np.pi * t)
            bone += 1.9 * tube(y - line, 0.62) * ((s * x > 1.6) & (s * x < 13.5))
        spine = np.sqrt(np.clip(1 - ((x - 0.15 * rot) / 1.9) ** 2, 0, None)) * (1.9 + 0.5 * np.cos(2 * np.pi * y / 2.6))
        bone += spine * (1 - 0.003 * (self.age - 50))
        return bone + sum(chord((x - s * 12.6 * w) / 1.5, (y + 6.5) / 5.5, 0.35) for s in SIDES)

    def markings(self) -> np.ndarray:
        """Lung vessels: filtered noise, stronger near the hila, zero mean; float32 ``(n, size, size)``."""
        coarse = 48
        fields = np.empty((len(self.patients), coarse, coarse), np.float32)
        for i, p in enumerate(self.patients):
            fields[i] = np.random.default_rng([p.noise, 1]).standard_normal((coarse, coarse), dtype=np.float32)
        fields = gaussian_filter(fields, (0, 0.9, 0.7)) - gaussian_filter(fields, (0, 2.4, 2.4))
        fields /= fields.std(axis=(1, 2), keepdims=True)
        grid = (np.arange(self.size) + 0.5) * coarse / self.size - 0.5
        low = np.clip(np.floor(grid).astype(int), 0, coarse - 2)
        f = np.clip(grid - low, 0, 1).astype(np.float32)
        rows = fields[:, low] * (1 - f)[None, :, None] + fields[:, low + 1] * f[None, :, None]
        full = rows[:, :, low] * (1 - f) + rows[:, :, low + 1] * f
        distance = np.sqrt((np.abs(self.x) - 3.5) ** 2 + (0.7 * self.y) ** 2)
        return full * np.exp(-distance / 7.0).astype(np.float32)

    def devices(self) -> np.ndarray:
        """Attenuation (not centimetres) by central lines, tubes and pacemakers."""
        out = np.zeros(np.broadcast_shapes(self.x.shape, self.y.shape), np.float32)
        for i, (p, x, y) in enumerate(zip(self.patients, self.x, self.y, strict=True)):
            step = p.field / self.size
            if p.device == "central line":
                path = -1.3 - 2.2 * np.exp(-((y + 9) ** 2) / 14) * (y < -6)
                out[i] = 0.9 * np.exp(-(((x - path) / max(0.16, 0.4 * step)) ** 2)) * (y < 1.5)
            elif p.device == "endotracheal tube":
                out[i] = 0.8 * np.exp(-(((x - 0.2) / max(0.22, 0.4 * step)) ** 2)) * (y < -6.5)
            elif p.device == "pacemaker":
                inside = ((x - 9.5) / 2.1) ** 4 + ((y + 10.2) / 1.7) ** 4 < 1
                lead = np.exp(-(((x - 2.2 - 4.5 * np.exp(-((y + 10) ** 2) / 22)) / max(0.16, 0.4 * step)) ** 2))
                out[i] = 2.2 * inside + 0.8 * lead * ((y > -10) & (y < 7))
        return out


def _column(values: Sequence[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None, None]
