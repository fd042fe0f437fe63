"""Splits by patient, for data sets without official ones."""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from chestxai.runs import InputError

#: Shares of the patients without an official split; where only test is official; and of those with a box, who are few.
FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
TRAIN_VAL = {"train": 0.9, "val": 0.1}
BOXED = {"val": 0.2, "test": 0.8}
#: Names of the splits as tables write them.
NAMES = {name: name for name in ("train", "val", "test")} | dict.fromkeys(("validate", "validation"), "val")


def later_split(*splits: str) -> str:
    """The latest of ``splits`` in the order train, val, test, for a patient who is listed in several."""
    return max(splits, key=("train", "val", "test").index)


def split_patients(patients: Iterable[str], fractions: Mapping[str, float], seed: int = 0) -> dict[str, str]:
    """The split of each of the ``patients``, which depends only on its identifier and the ``seed``, not on the others.

    ``fractions`` are the expected shares by split: not negative, and their sum is 1.
    """
    if abs(sum(fractions.values()) - 1) > 1e-9 or min(fractions.values()) < 0:
        raise InputError(f"split fractions must be at least 0 and sum to 1, got {fractions}")
    names, edges = list(fractions), np.cumsum(list(fractions.values()))
    splits: dict[str, str] = {}
    for patient in patients:
        digest = hashlib.sha256(f"{seed}/{patient}".encode()).digest()
        place = int(np.searchsorted(edges, int.from_bytes(digest[:8]) / 2**64, "right"))
        splits[patient] = names[min(place, len(names) - 1)]
    return splits
