"""All fidelity numbers of one checkpoint, what real images score themselves, and what generated images teach."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from chestxai import runs
from chestxai.fidelity.arrays import check_images, to_json
from chestxai.fidelity.classifier import FindingsClassifier, Training, cached_classifier, classifier_auc, predict
from chestxai.fidelity.metrics import density_coverage, fid_interval, kid, ms_ssim_by_group, precision_recall
from chestxai.fidelity.spaces import content_hash, features
from chestxai.stats import Interval, bootstrap_ci


def scores(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    groups: Sequence[Hashable] | None = None,
    real_groups: Sequence[Hashable] | None = None,
    resamples: int = 100,
    seed: int = 0,
) -> dict[str, Interval]:
    """``fid``, ``precision``, ``recall``, ``density`` and ``coverage`` of two feature sets, with their default ``k``.

    Args:
        real, fake: features float ``(n, d)`` and ``(m, d)``, ``n > 5``, ``m > 3``.
        groups, real_groups: prompt of each generated and patient of each real image, resampled together.
        resamples: of the FID's bootstrap, the only slow one; 0 leaves its bounds NaN.
        seed: of all bootstraps.
    """
    clusters = {"groups": groups, "real_groups": real_groups, "seed": seed}
    names = ("precision", "recall", "density", "coverage")
    others = (*precision_recall(real, fake, **clusters), *density_coverage(real, fake, **clusters))
    return {"fid": fid_interval(real, fake, n=resamples, **clusters)} | dict(zip(names, others, strict=True))


def evaluate(
    real_images: np.ndarray,
    fake_images: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[Hashable],
    classifier: FindingsClassifier,
    *,
    patients: Sequence[Hashable] | None = None,
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
        `scores`, ``ms_ssim``, ``classifier_auc`` (macro), each with ``_low`` and ``_high``; ``kid`` with ``kid_std``
        (over subsets); ``classifier_auc_by_finding`` ``{finding: {estimate, low, high}}``; ``images_real``,
        ``images_fake``.
    """
    real, fake = features(classifier, real_images), features(classifier, fake_images)
    mean, std = kid(real, fake, seed=seed)
    auc = classifier_auc(predict(classifier, fake_images), labels, groups, seed=seed)
    intervals = {
        **scores(real, fake, groups=groups, real_groups=patients, resamples=resamples, seed=seed),
        "ms_ssim": _mean_ms_ssim(fake_images, groups, seed),
        "classifier_auc": auc.pop("macro"),
    }
    counts = {"images_real": len(real), "images_fake": len(fake)}
    return _flat(intervals, {"kid": mean, "kid_std": std} | counts) | {"classifier_auc_by_finding": _nested(auc)}


def reference(
    real_images: np.ndarray,
    labels: np.ndarray,
    classifier: FindingsClassifier,
    *,
    others: np.ndarray | None = None,
    patients: Sequence[Hashable] | None = None,
    resamples: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """What real images score themselves, ready for JSON: the floor and the ceilings of `evaluate`'s numbers.

    Args:
        real_images: as in `evaluate`.
        labels: ``(n, 8)``, the findings that they show.
        classifier: the feature space.
        others: uint8 ``(m, s, s)``, real images of other patients, as many as are generated: a model that were right
            would score as they do.
        patients: of the real images, resampled together.
        resamples: of the FID's bootstrap.
        seed: of subsets, pairs and bootstraps.

    Returns:
        ``ms_ssim_real`` of two images with the same findings (of any two, where no two have the same) and
        ``classifier_auc_real`` (macro); with ``others`` also the `scores` as ``fid_real``, ``precision_real``, …; each
        with ``_low`` and ``_high``. ``kid_real`` with ``kid_real_std``; ``classifier_auc_real_by_finding``.
    """
    auc = classifier_auc(predict(classifier, real_images), labels, patients, seed=seed)
    findings = [tuple(row) for row in np.asarray(labels).tolist()]
    same = findings if len(set(findings)) < len(findings) else None
    intervals = {
        "ms_ssim_real": _mean_ms_ssim(real_images, same, seed),
        "classifier_auc_real": auc.pop("macro"),
    }
    numbers: dict[str, float] = {}
    if others is not None:
        real, other = features(classifier, real_images), features(classifier, others)
        floor = scores(real, other, real_groups=patients, resamples=resamples, seed=seed)
        intervals |= {f"{name}_real": interval for name, interval in floor.items()}
        numbers = dict(zip(("kid_real", "kid_real_std"), kid(real, other, seed=seed), strict=True))
    return _flat(intervals, numbers) | {"classifier_auc_real_by_finding": _nested(auc)}


def _mean_ms_ssim(images: np.ndarray, groups: Sequence[Hashable] | None, seed: int) -> Interval:
    return bootstrap_ci(list(ms_ssim_by_group(images, groups, seed=seed).values()), seed=seed)


def _flat(intervals: dict[str, Interval], numbers: dict[str, float]) -> dict[str, Any]:
    out: dict[str, Any] = dict(numbers)
    for name, interval in intervals.items():
        out |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return to_json(out)


def _nested(intervals: dict[str, Interval]) -> dict[str, dict[str, Any]]:
    return {name: to_json(asdict(interval)) for name, interval in intervals.items()}


def transfer_auc(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    folder: Path,
    training: Training = Training(source="generated"),
    *,
    patients: Sequence[Hashable] | None = None,
    n: int = 300,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
) -> dict[str, Interval]:
    """AUC of a classifier trained on generated images and tested on real ones (TSTR, Ravuri & Vinyals 2019).

    `classifier_auc` asks a classifier of real images about generated ones and does not notice that they are all alike;
    this does. Compare with as many *real* training images: few images teach little, whoever made them.

    Args:
        train: images uint8 ``(m, s, s)`` and labels ``(m, 8)`` of what their prompts name (`asked`).
        test: images uint8 ``(n, s, s)`` of patients that neither model has seen, and labels ``(n, 8)`` of what they
            show.
        folder: where the classifier is kept; a second call with the same images, labels and settings reads it.
        training: ``source``, recorded; ``epochs`` (a few hundred images need more than the default); ``seed``, also of
            the bootstrap. ``data`` and ``batch`` are set here: an eighth of the images, 8 to 64, so that few images
            make some steps too.
        patients: of the test images, resampled together.
        n: bootstrap resamples. They cover other patients, not another training.
        progress: wraps the loop over epochs.

    Returns:
        An interval for each finding, and ``"macro"``; NaN, and not in the macro, where only one class is present among
        the training labels or the test labels.
    """
    images, labels = check_images(train[0]), np.asarray(train[1], dtype=np.float32)
    data, batch = runs.fingerprint(content_hash(images), content_hash(labels)), min(64, max(8, len(images) // 8))
    training = replace(training, data=data, batch=batch)
    real, real_labels = test[0], np.asarray(test[1], dtype=np.float32)
    splits = {"train": (images, labels), "val": (real, real_labels)}
    classifier = cached_classifier(folder, splits.__getitem__, training, progress)
    taught = (labels > 0.5).any(axis=0) & (labels <= 0.5).any(axis=0)
    return classifier_auc(
        predict(classifier, real), np.where(taught, real_labels, 0), patients, n=n, seed=training.seed
    )
