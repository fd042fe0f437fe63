"""Splits by patient, for data sets without official ones."""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

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
    names, edges = list(fractions), np.cumsum([*fractions.values()])[:-1]
    splits: dict[str, str] = {}
    for patient in patients:
        digest = hashlib.sha256(f"{seed}/{patient}".encode()).digest()
        splits[patient] = names[np.searchsorted(edges, int.from_bytes(digest[:8]) / 2**64, "right")]
    return splits
