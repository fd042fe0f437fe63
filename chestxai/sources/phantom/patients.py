"""Who stands in front of the detector: habitus, technique, and findings, drawn at random from a seed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from chestxai.studies import FINDINGS

SPLITS = {"train": 0, "val": 1, "test": 2}
_SEVERITY = ("small", "moderate", "large")
FIXED_ZONES = {"Cardiomegaly": "", "Edema": "perihilar", "Pleural Effusion": "basal", "Pneumothorax": "apical"}


@dataclass(frozen=True)
class Lesion:
    """A finding as drawn: ``side`` -1 is the patient's right (image left), +1 the left, 0 both.

    ``amount`` is in [0, 1]; ``shape`` holds 48 random numbers in [0, 1) for the details.
    """

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
    """One exposure: habitus and geometry in cm, technique, and the lesions.

    ``field`` is the side of the field of view, ``shift`` moves the chest in it to the right and down; ``noise`` seeds
    texture and quanta.
    """

    view: str
    sex: str
    age: int
    habitus: float
    rotation: float
    field: float
    shift: tuple[float, float]
    inspiration: float
    heart: float
    exposure: float
    scanner: int
    device: str
    noise: int
    lesions: tuple[Lesion, ...]

    @property
    def midline(self) -> float:
        """Column of the spine, as a share of the image's width from the left."""
        return 0.5 + self.shift[0] / self.field

    def attributes(self) -> dict[str, str | float]:
        """What a study says about the exposure."""
        habitus = "slim" if self.habitus < -0.6 else "large" if self.habitus > 0.6 else "average"
        person = {"view": self.view, "sex": self.sex, "age": self.age, "habitus": habitus}
        person |= {"midline": round(self.midline, 4), "rotation": round(self.rotation, 2)}
        return person | {"exposure": round(self.exposure, 2), "scanner": "AB"[self.scanner], "device": self.device}


def generator(seed: int, split: str, *key: int) -> np.random.Generator:
    """The random generator of one purpose, named by ``seed``, ``split`` and ``key``."""
    return np.random.default_rng([seed, SPLITS[split], *key])


def patient(seed: int, split: str, person: int, visit: int, normal: bool = False) -> Patient:
    """Draw the exposure of a ``person`` of a ``split`` at a ``visit``; ``normal`` leaves out the lesions.

    It depends on the ``seed`` and on these numbers only. What belongs to the person stays the same over visits;
    technique and lesions do not.
    """
    p = generator(seed, split, person, 1000)
    sex, age, habitus, heart = "FM"[int(p.random() < 0.5)], int(p.integers(20, 90)), p.normal(), p.uniform(0.9, 1.05)
    v = generator(seed, split, person, visit)
    view = "AP" if v.random() < 0.35 else "PA"
    field = v.uniform(32, 44)
    room = (field - 32) / 2 + 1.5
    device = str(v.choice(["", "", "", "central line", "pacemaker", "endotracheal tube"])) if view == "AP" else ""
    return Patient(
        view=view,
        sex=sex,
        age=age,
        habitus=float(np.clip(habitus, -2, 2)),
        rotation=float(v.normal(0, 0.5)),
        # Zoom and position differ as they do between machines and radiographers: where a finding usually is says
        # little about where it is in one image.
        field=float(field),
        shift=(float(v.uniform(-1, 1) * room), float(v.uniform(-1, 1) * room)),
        inspiration=float(v.uniform(0.85, 1.05) * (0.93 if view == "AP" else 1)),
        heart=float(heart),
        exposure=float(v.normal(0, 0.6)),
        scanner=int(v.random() < 0.35),
        device=device,
        noise=int(v.integers(2**31)),
        lesions=_lesions(v, normal),
    )


def _lesions(rng: np.random.Generator, normal: bool) -> tuple[Lesion, ...]:
    lesions: list[Lesion | None] = []
    ill, count = rng.random() > 0.25, int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))
    if ill and not normal:
        for name in rng.choice(FINDINGS, size=count, replace=False):
            lesions.append(_lesion(str(name), rng, lesions))
    return tuple(filter(None, lesions))


def _lesion(name: str, rng: np.random.Generator, others: Sequence[Lesion | None]) -> Lesion | None:
    side = 0 if name in ("Cardiomegaly", "Edema") else int(rng.choice([-1, 1]))
    if name in FIXED_ZONES or name == "Atelectasis":
        zone = FIXED_ZONES.get(name, str(rng.choice(["basal", "mid"], p=[0.75, 0.25])))
    else:
        zone = str(rng.choice(["upper", "mid", "lower"]))
    lesion = Lesion(name, side, zone, float(rng.uniform(0.05, 1)), rng.random(48))
    # Two lesions in one place cannot both be seen: a picture that a radiologist could not read teaches nothing.
    taken = {(one.side, one.zone) for one in others if one}
    return None if side and (side, zone) in taken else lesion
