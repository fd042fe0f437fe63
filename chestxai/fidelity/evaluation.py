"""All fidelity numbers of one checkpoint, what real images score themselves, and what generated images teach."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chestxai import runs
from chestxai.fidelity.arrays import Array, Groups, check_images, to_json
from chestxai.fidelity.classifier import (
    FindingsClassifier,
    Labelled,
    Training,
    cached_classifier,
    classifier_auc,
    predict,
)
from chestxai.fidelity.metrics import density_coverage, fid_interval, kid, ms_ssim_by_group, precision_recall
from chestxai.fidelity.spaces import features
from chestxai.stats import Interval, bootstrap_ci


def scores(
    real: Array, fake: Array, *, groups: Groups = None, real_groups: Groups = None, resamples: int = 100, seed: int = 0
) -> dict[str, Interval]:
    """``fid``, ``precision``, ``recall``, ``density`` and ``coverage`` of two feature sets, with their default ``k``.

    ``real, fake, groups, real_groups, seed`` as of `fid_interval`; ``resamples`` are the FID's, which are slow.
    """
    clusters = {"groups": groups, "real_groups": real_groups, "seed": seed}
    names = ("fid", "precision", "recall", "density", "coverage")
    overlaps = (*precision_recall(real, fake, **clusters), *density_coverage(real, fake, **clusters))
    return dict(zip(names, (fid_interval(real, fake, n=resamples, **clusters), *overlaps), strict=True))


def evaluate(
    real_images: Array,
    fake_images: Array,
    labels: Array,
    groups: Groups,
    classifier: FindingsClassifier,
    *,
    patients: Groups = None,
    resamples: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """Every fidelity number of one checkpoint, ready for JSON (None where undefined).

    Args:
        real_images, fake_images: uint8 ``(n, s, s)``, held out from training, and ``(m, s, s)``.
        labels: ``(m, 8)``: the findings that each generated image's prompt names.
        groups: prompt of each generated image; equal texts are one group.
        classifier: the feature space.
        patients: of the real images, resampled together.
        resamples: of the FID's bootstrap.
        seed: of subsets, pairs and bootstraps.

    Returns:
        `scores`, ``ms_ssim`` and ``classifier_auc`` (macro), each with ``_low`` and ``_high``; ``kid``, ``kid_std``
        (over subsets); ``classifier_auc_by_finding``; ``images_real`` and ``images_fake``, the counts.
    """
    real, fake = features(classifier, real_images), features(classifier, fake_images)
    mean, std = kid(real, fake, seed=seed)
    auc = classifier_auc(predict(classifier, fake_images), labels, groups, seed=seed)
    intervals = {
        **scores(real, fake, groups=groups, real_groups=patients, resamples=resamples, seed=seed),
        "ms_ssim": _mean_ms_ssim(fake_images, groups, seed),
        "classifier_auc": auc.pop("macro"),
    }
    numbers = {"kid": mean, "kid_std": std, "images_real": len(real), "images_fake": len(fake)}
    return to_json(_flat(intervals) | numbers | {"classifier_auc_by_finding": auc})


def reference(
    real_images: Array,
    labels: Array,
    classifier: FindingsClassifier,
    *,
    others: Array | None = None,
    patients: Groups = None,
    resamples: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """What real images score themselves, ready for JSON: the floor and the ceilings of `evaluate`'s numbers.

    As of `evaluate`, each name with ``_real``: MS-SSIM of two images with the same findings (of any two, where no two
    have the same), AUC and, with ``others``, `scores` and KID.

    Args:
        real_images, classifier, patients, resamples, seed: as of `evaluate`.
        labels: ``(n, 8)``, the findings that the real images show.
        others: uint8 ``(m, s, s)``, real images of other patients, as many as are generated: as a perfect model draws.
    """
    auc = classifier_auc(predict(classifier, real_images), labels, patients, seed=seed)
    findings = [tuple(row) for row in np.asarray(labels).tolist()]
    same = findings if len(set(findings)) < len(findings) else None
    intervals = {"ms_ssim": _mean_ms_ssim(real_images, same, seed), "classifier_auc": auc.pop("macro")}
    numbers: dict[str, Any] = {"classifier_auc_real_by_finding": auc}
    if others is not None:
        real, other = features(classifier, real_images), features(classifier, others)
        intervals |= scores(real, other, real_groups=patients, resamples=resamples, seed=seed)
        numbers["kid_real"], numbers["kid_real_std"] = kid(real, other, seed=seed)
    return to_json(_flat({f"{name}_real": interval for name, interval in intervals.items()}) | numbers)


def _mean_ms_ssim(images: Array, groups: Groups, seed: int) -> Interval:
    return bootstrap_ci(list(ms_ssim_by_group(images, groups, seed=seed).values()), seed=seed)


def _flat(intervals: dict[str, Interval]) -> dict[str, Any]:
    ends = {"": "estimate", "_low": "low", "_high": "high"}
    return {name + end: getattr(i, field) for name, i in intervals.items() for end, field in ends.items()}


def transfer_auc(
    train: Labelled, test: Labelled, folder: Path, training: Training, *, patients: Groups = None, n: int = 300
) -> dict[str, Interval]:
    """AUC of a classifier trained on generated images and tested on real ones (TSTR, Ravuri & Vinyals 2019).

    `classifier_auc` asks a classifier of real images about generated ones and does not notice that they are all alike;
    this does. Compare with as many *real* training images: few images teach little, whoever made them.

    Args:
        train, test: images uint8 ``(n, s, s)`` and labels ``(n, 8)``: what their prompts name (see `asked`) or, for
            images of patients that neither model has seen, what they show.
        folder: where the classifier is kept; a second call with the same arguments reads it.
        training: ``source``, ``epochs`` (a few hundred images need more than the default) and ``seed``, also of the
            bootstrap. The batch is an eighth of the images, 8 to 64, so that few images make enough steps.
        patients: of the test images, resampled together.
        n: bootstrap resamples. They cover other patients, not another training.

    Returns:
        As `classifier_auc`; also NaN for findings of which the training labels have only one class.
    """
    images, labels = check_images(train[0]), np.asarray(train[1], dtype=np.float32)
    real, real_labels = test[0], np.asarray(test[1], dtype=np.float32)
    data = runs.hash_tensors({"images": torch.from_numpy(images), "labels": torch.from_numpy(labels)})
    training = replace(training, data=data, batch=min(64, max(8, len(images) // 8)))
    splits = {"train": (images, labels), "val": (real, real_labels)}
    classifier = cached_classifier(folder, splits.__getitem__, training)
    taught = (labels > 0.5).any(axis=0) & (labels <= 0.5).any(axis=0)
    evaluable = np.where(taught, real_labels, 0)
    return classifier_auc(predict(classifier, real), evaluable, patients, n=n, seed=training.seed)
