"""A digital chest phantom: endless, deterministic, radiograph-like images with exact truth.

Parallel rays run front to back (z) through an analytic torso: soft-tissue ellipsoids, lungs clipped by diaphragm
domes, heart, mediastinum, spine, ribs and clavicles as tubes. The line integral of attenuation along each ray is
known in closed form; Beer–Lambert turns it into photons, a scatter fraction and a point spread blur them, Poisson
noise counts them, and the scanner's response curve displays the logarithm, bone white and air black. A finding is
added fluid (or, for pneumothorax, removed lung) of known thickness, so its mask is exact.

Lengths are centimetres; x runs to the image's right (the patient's left), y down, z away from the viewer. The side
of the field of view differs from patient to patient, and so does the place of the chest in it.
"""

import re
from dataclasses import replace

import numpy as np

from chestxai import runs
from chestxai.runs import InputError
from chestxai.sources.cards import Card
from chestxai.sources.phantom.anatomy import MU, chord
from chestxai.sources.phantom.patients import FIXED_ZONES, SPLITS, Lesion, Patient, generator, patient
from chestxai.sources.phantom.rendering import MASK_FRACTION, PHOTONS, attenuation, expose, render
from chestxai.sources.phantom.texts import write_report
from chestxai.sources.records import Studies, ensure
from chestxai.studies import Study

__all__ = [
    "CARD", "MASK_FRACTION", "MU", "PHOTONS", "Lesion", "Patient", "attenuation", "chord", "counterfactual", "expose",
    "load", "patient", "render", "write_report",
]  # fmt: skip

CARD = Card.read("phantom")


def counterfactual(study: Study, finding: str, change: str) -> tuple[np.ndarray, np.ndarray]:
    """The same patient on the same day, with a lesion removed, on the other side, or of another kind; else the same.

    ``study`` is of `load`, ``finding`` the name of one of its lesions, on one side for "other side". ``change`` is
    "without", "other side", or what takes its place on its side: "Pleural Effusion" or "Pneumothorax". Returns the
    image uint8 ``(size, size)``, and the bool mask of the lesion's new place (all false without it).
    """
    match = re.fullmatch(r"phantom-(\d+)-(train|val|test)-(\d+)-(\d+)", study.id)
    if match is None:
        raise InputError(f"{study.id} is no phantom with lesions: only of a phantom can a lesion be moved")
    one = patient(int(match[1]), match[2], int(match[3]), int(match[4]))
    at = [i for i, lesion in enumerate(one.lesions) if lesion.name == finding and (lesion.side or change == "without")]
    if not at:
        raise InputError(f"{study.id} has no {finding} of which this can be asked")
    lesions, where = list(one.lesions), at[0]
    if change == "without":
        del lesions[where]
    elif change == "other side":
        lesions[where] = replace(lesions[where], side=-lesions[where].side)
    else:
        lesions[where] = replace(lesions[where], name=change, zone=FIXED_ZONES[change])
    images, masks = render([replace(one, lesions=tuple(lesions))], study.size[0])
    return images[0], np.zeros_like(images[0], dtype=bool) if change == "without" else masks[0][where]


def load(
    root: object = None, split: str = "test", *, n: int = 1000, size: int = 64, seed: int = 0, normal: bool = False
) -> Studies:
    """Make phantom studies with report, findings, masks and boxes; patients have one to three studies each.

    Deterministic by ``seed``, ``split`` ("train", "val" or "test") and index: a larger ``n`` (1 or more studies) only
    appends. ``size`` is the side of the images, 32 to 1024 pixels; ``normal`` leaves out all findings of the same
    patients; ``root`` is ignored.
    """
    ensure(split in SPLITS, f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    ensure(32 <= size <= 1024, f"phantom size must be 32 to 1024 pixels, got {size}")
    ensure(n >= 1, f"n must be at least 1, got {n}")
    keys: list[tuple[int, int]] = []
    person = 0
    while len(keys) < n:
        visits = int(generator(seed, split, person).integers(1, 4))
        keys += [(person, visit) for visit in range(visits)]
        person += 1
    keys = keys[:n]
    patients = [patient(seed, split, person, visit, normal) for person, visit in keys]
    studies: list[Study] = []
    chunk = max(1, 24 * 64 * 64 // size**2)  # arrays that fit a core's cache: 30 % faster than 64 at once
    for i in range(0, n, chunk):
        part = slice(i, i + chunk)
        images, masks = render(patients[part], size)
        for (person, visit), one, image, lesion_masks in zip(keys[part], patients[part], images, masks, strict=True):
            report, findings = write_report(one, lesion_masks, generator(seed, split, person, visit, 7))
            name = f"phantom-{seed}-{split}-{person:06d}"
            key = f"{name}-{visit}{'-normal' if normal else ''}"
            about = (key, name, "phantom", split, report, (size, size), findings)
            studies.append(Study(*about, array=image, attributes=one.attributes()))
    # Phantoms are made by code, so their fingerprint names it.
    code = runs.code_fingerprint(__name__, without=("chestxai.runs", "chestxai.sources.records"))
    return Studies(studies, fingerprint=runs.fingerprint("phantom", code, split, n, size, seed, normal))
