"""Does the model copy its training images? Distances to the nearest ones, and planted copies that must be detected."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors

from chestxai.fidelity.arrays import bootstrap, check_features, check_images, group_rows
from chestxai.stats import Interval


@dataclass(frozen=True)
class Memory:
    """The result of `memorisation`.

    Attributes:
        distance: float ``(m,)``, of each generated image to the nearest training image.
        nearest: int ``(m,)``, the row of that training image.
        unseen: float ``(u,)``, the same distance for unseen real images.
        threshold: the ``quantile`` of ``unseen``.
        closer: share of the generated images below the threshold, with a 95 % interval; chance is ``quantile``.
        found: share of the planted copies below the threshold; None if there are none.
    """

    distance: np.ndarray
    nearest: np.ndarray
    unseen: np.ndarray
    threshold: float
    closer: Interval
    found: float | None

    @property
    def suspects(self) -> np.ndarray:
        """Rows of the generated images below the threshold, the closest first."""
        order = np.argsort(self.distance, kind="stable")
        return order[self.distance[order] < self.threshold]


def memorisation(
    train: np.ndarray,
    fake: np.ndarray,
    unseen: np.ndarray,
    *,
    groups: Sequence[Hashable] | None = None,
    unseen_groups: Sequence[Hashable] | None = None,
    planted: np.ndarray | None = None,
    quantile: float = 0.05,
    n: int = 1000,
) -> Memory:
    """How many generated images are closer to a training image than unseen real images are.

    A model that copies has an excellent FID. Real images of patients outside the training set show how close an image
    comes by chance (Meehan et al. 2020). A close image need not be a copy: look at the pairs.

    Args:
        train, fake, unseen: features of training images, generated images and real images that were not trained on,
            float ``(t, d)``, ``(m, d)`` and ``(u, d)``.
        groups, unseen_groups: prompt of each generated and patient of each unseen image, resampled together.
        planted: features float ``(p, d)`` of `copies` of training images: a feature space that does not detect them
            cannot clear the model either.
        quantile: share of the unseen images that count as close, in (0, 1).
        n: bootstrap resamples (seed 0), of generated and unseen images both, because the threshold is an estimate too.

    Raises:
        ValueError: features that do not fit each other; ``quantile`` outside (0, 1); unseen images that were trained
            on.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must be in (0, 1), got {quantile}")
    pairs = [check_features(train, points) for points in (fake, unseen)]
    train = pairs[0][0]
    index = NearestNeighbors(n_neighbors=1).fit(train)
    (distance, nearest), (away, _) = ([a[:, 0] for a in index.kneighbors(points)] for _, points in pairs)
    threshold = float(np.quantile(away, quantile))
    if threshold <= 1e-5 * float(np.sqrt((train**2).sum(axis=1).mean())):
        raise ValueError(
            f"{quantile:.0%} or more of the unseen real images are training images: give real images of other patients"
        )
    rows = group_rows(groups, len(distance), "generated"), group_rows(unseen_groups, len(away), "unseen")
    shares = bootstrap(lambda a, b: (a < np.quantile(b, quantile)).mean(), (distance, away), rows, n, seed=0)
    low, high = np.quantile(shares, [0.025, 0.975]) if n else (math.nan, math.nan)
    closer = Interval(float((distance < threshold).mean()), float(low), float(high))
    found = None
    if planted is not None:
        found = float((index.kneighbors(np.asarray(planted, dtype=np.float64))[0] < threshold).mean())
    return Memory(distance, nearest, away, threshold, closer, found)


def copies(images: np.ndarray, n: int = 32, noise: float = 4.0, seed: int = 0) -> np.ndarray:
    """The first ``n`` images with a little noise, as a model that memorises would draw them: uint8 ``(n, s, s)``.

    Args:
        images: training images, uint8 ``(m, s, s)``.
        n: number of copies.
        noise: standard deviation in grey values of 255.
        seed: of the noise.
    """
    originals = check_images(images)[:n]
    noisy = originals + np.random.default_rng(seed).normal(0, noise, originals.shape)
    return noisy.round().clip(0, 255).astype(np.uint8)
