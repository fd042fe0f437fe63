"""Does the model copy its training images? Distances to the nearest ones, and planted copies that must be detected."""

import math
from dataclasses import dataclass

import numpy as np
from sklearn.neighbors import NearestNeighbors

from chestxai.fidelity.arrays import Array, Groups, bootstrap, check_features, check_images
from chestxai.runs import InputError
from chestxai.stats import Interval


@dataclass(frozen=True)
class Memory:
    """The result of `memorisation`."""

    distance: Array  #: float ``(m,)``, from each generated image to the nearest training image
    nearest: Array  #: int ``(m,)``, the row of that one
    unseen: Array  #: float ``(u,)``, the same distance for unseen real images
    threshold: float  #: the ``quantile`` of ``unseen``
    closer: Interval  #: share of the generated images below the threshold; chance is ``quantile``
    detected: float | None  #: share of the planted copies below the threshold, if there are any


def memorisation(
    train: Array,
    fake: Array,
    unseen: Array,
    *,
    groups: Groups = None,
    unseen_groups: Groups = None,
    planted: Array | None = None,
    quantile: float = 0.05,
    n: int = 1000,
) -> Memory:
    """How many generated images are closer to a training image than unseen real images are.

    A model that copies has an excellent FID. Real images of patients outside the training set show how close an image
    comes by chance (Meehan et al. 2020). A close image need not be a copy: look at the pairs.

    ``train, fake, unseen`` are features float ``(t, d)``, ``(m, d)``, ``(u, d)`` of training and generated images, and
    real ones that were not trained on (InputError where they were); ``groups`` and ``unseen_groups`` of these, prompts
    and patients, are resampled together ``n`` times. ``planted``, ``(p, d)``, are of `copies`: a feature space that
    misses them cannot clear the model either. ``quantile`` is the share of unseen images that count as close.
    """
    if not 0 < quantile < 1:
        raise InputError(f"quantile must be in (0, 1), got {quantile}")
    train, fake = check_features(train, fake)
    _, unseen = check_features(train, unseen)
    index = NearestNeighbors(n_neighbors=1).fit(train)
    (distance, nearest), (away, _) = ([a[:, 0] for a in index.kneighbors(points)] for points in (fake, unseen))
    threshold = float(np.quantile(away, quantile))
    if threshold <= 1e-5 * float(np.sqrt((train**2).sum(axis=1).mean())):
        raise InputError(
            f"{quantile:.0%} or more of the unseen real images are training images: give real images of other patients"
        )
    samples = [(distance, groups, "generated"), (away, unseen_groups, "unseen")]
    shares = bootstrap(lambda a, b: (a < np.quantile(b, quantile)).mean(), samples, n, seed=0)
    low, high = np.quantile(shares, [0.025, 0.975]) if n else (math.nan, math.nan)
    closer = Interval(float((distance < threshold).mean()), float(low), float(high))
    detected = None if planted is None else float((index.kneighbors(np.asarray(planted, float))[0] < threshold).mean())
    return Memory(distance, nearest, away, threshold, closer, detected)


def copies(images: Array, n: int = 32, noise: float = 4.0) -> Array:
    """The first ``n`` of ``images`` as a model that memorises would draw them, with ``noise`` of that deviation."""
    originals = check_images(images)[:n]
    noisy = originals + np.random.default_rng(0).normal(0, noise, originals.shape)
    return noisy.round().clip(0, 255).astype(np.uint8)
