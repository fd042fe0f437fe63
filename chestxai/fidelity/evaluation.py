"""All fidelity numbers of one checkpoint, what real images score themselves, and what generated images teach."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from chestxai import runs
from chestxai.fidelity.arrays import Array, Groups, TooFewError, check_images, to_json
from chestxai.fidelity.classifier import (
    FindingsClassifier,
    Labelled,
    Training,
    cached_classifier,
    classifier_auc,
    macro_auc,
    predict,
)
from chestxai.fidelity.metrics import density_coverage, fid_interval, kid, ms_ssim_by_group, precision_recall
from chestxai.fidelity.sampling import stated
from chestxai.fidelity.spaces import features
from chestxai.stats import Interval, bootstrap_ci, bootstrap_statistic
from chestxai.studies import FINDINGS


def scores(
    real: Array, fake: Array, *, groups: Groups = None, real_groups: Groups = None, resamples: int = 100, seed: int = 0
) -> dict[str, Interval]:
    """``fid``, ``precision``, ``recall``, ``density`` and ``coverage`` of two feature sets; NaN where images are few.

    ``real, fake, groups, real_groups, seed`` as of `fid_interval`, ``resamples`` of the FID, which is slow. What needs
    more images is left out with a `TooFewWarning`.
    """
    clusters = {"groups": groups, "real_groups": real_groups, "seed": seed}
    found = _several(1, "FID", lambda: (fid_interval(real, fake, n=resamples, **clusters),))
    found += _several(2, "precision and recall", lambda: precision_recall(real, fake, **clusters))
    found += _several(2, "density and coverage", lambda: density_coverage(real, fake, **clusters))
    return dict(zip(("fid", "precision", "recall", "density", "coverage"), found, strict=True))


class TooFewWarning(UserWarning):
    """A score is left out, as there are too few images for it."""


_MISSING = Interval(math.nan, math.nan, math.nan)


def _several(count: int, name: str, score: Callable[[], Sequence[Any]], missing: Any = _MISSING) -> list[Any]:
    """The results of ``score``, or as many ``missing`` ones where there are too few images for it."""
    try:
        return list(score())
    except TooFewError as error:
        warnings.warn(f"{name} left out: {error}", TooFewWarning, stacklevel=3)
        return [missing] * count


def evaluate(
    real_images: Array,
    fake_images: Array,
    labels: Array,
    groups: Groups,
    classifier: FindingsClassifier,
    *,
    patients: Groups = None,
    resamples: int = 100,
    spaces: Mapping[str, nn.Module] | None = None,
) -> dict[str, Any]:
    """Every fidelity number of one checkpoint, ready for JSON (None where undefined).

    `scores`, ``ms_ssim``, ``classifier_auc`` (macro) and ``top1`` (see `top1`), each with ``_low`` and ``_high``;
    ``kid``, ``kid_std`` (over subsets); `scores` and KID in each of ``spaces``, such as ``fid_inception``;
    ``classifier_auc_by_finding``; ``images_real`` and ``images_fake``, the counts.

    Args:
        real_images, fake_images: uint8 ``(n, s, s)``, held out from training, and ``(m, s, s)``.
        labels, groups: ``(m, 8)``: the findings that each generated image's prompt names; and the prompt.
        classifier, spaces: the feature space and judge, and further feature spaces by name, of `feature_spaces`.
        patients, resamples: of the real images, resampled together, and of the FID's bootstrap.
    """
    numbers = {"images_real": len(real_images), "images_fake": len(fake_images)}
    clusters = {"groups": groups, "real_groups": patients, "resamples": resamples}
    in_spaces = _in_spaces(real_images, fake_images, classifier, spaces, "", clusters)
    return to_json(in_spaces | _judged(fake_images, labels, groups, groups, classifier, "") | numbers)


def _judged(
    images: Array, labels: Array, groups: Groups, alike: Groups, classifier: FindingsClassifier, suffix: str
) -> dict[str, Any]:
    """What the classifier sees in ``images``, and how similar those are that are ``alike``."""
    probabilities = predict(classifier, images)
    auc = classifier_auc(probabilities, labels, groups)
    (pairs,) = _several(1, "MS-SSIM", lambda: [list(ms_ssim_by_group(images, alike).values())], None)
    found = {"ms_ssim": bootstrap_ci(pairs) if pairs else _MISSING, "classifier_auc": auc.pop("macro")}
    found["top1"] = top1(probabilities, labels, groups)
    return _flat({name + suffix: value for name, value in found.items()}) | {f"classifier_auc{suffix}_by_finding": auc}


def _in_spaces(
    real: Array, fake: Array, classifier: nn.Module, spaces: Mapping[str, nn.Module] | None, suffix: str, clusters: dict
) -> dict[str, Any]:
    """`scores` and KID of two sets of images in each feature space, under its name."""
    out: dict[str, Any] = {}
    for name, space in {"": classifier, **(spaces or {})}.items():
        end = f"_{name.replace('-', '_')}{suffix}" if name else suffix
        a, b = features(space, real), features(space, fake)
        out |= _flat({f"{score}{end}": interval for score, interval in scores(a, b, **clusters).items()})
        out[f"kid{end}"], out[f"kid{end}_std"] = _several(2, "KID", lambda a=a, b=b: kid(a, b), math.nan)
    return out


def top1(probabilities: Array, labels: Array, groups: Groups = None) -> Interval:
    """Share of the images asked for one finding alone in which the classifier finds that one the most probable.

    Chance is one in eight; NaN without such an image. ``probabilities, labels, groups`` as of `classifier_auc`.
    """
    labels = np.asarray(labels) > 0.5
    one = np.flatnonzero(labels.sum(axis=1) == 1)
    if not one.size:
        return _MISSING
    right = labels[one, np.asarray(probabilities)[one].argmax(axis=1)]
    return bootstrap_ci(right, None if groups is None else [groups[i] for i in one])


def denied_excess(probabilities: Array, prompts: Sequence[str], n: int = 300) -> Interval:
    """Does "no effusion" draw an effusion? How much more probable a finding is where it is denied than where not named.

    The mean over all findings denied of ``probabilities``, of `predict`, minus the mean probability of the same finding
    in images whose prompt does not name it: 0 if denying does as little as not naming, towards 1 if what is denied is
    drawn. A finding that every prompt names is left out; NaN where none is left. ``prompts`` are what the model reads,
    resampled ``n`` times.
    """

    def excess(scores: Array, said: Array) -> float:
        unnamed = said == 0
        usual = (scores * unnamed).sum(axis=0) / np.maximum(unnamed.sum(axis=0), 1)
        denied = (said < 0) & unnamed.any(axis=0)
        return float((scores - usual)[denied].mean()) if denied.any() else math.nan

    return bootstrap_statistic([np.asarray(probabilities), stated(prompts)], excess, prompts, n=n)


def auc_difference(a: Array, b: Array, labels: Array, groups: Groups = None, n: int = 300) -> Interval:
    """Macro AUC of ``a`` minus that of ``b``, `predict` of two models' images of the same prompts and noise by row.

    ``labels, groups, n`` as of `classifier_auc`; one bootstrap resamples both, so what they share cancels out.
    """
    columns = [np.asarray(a), np.asarray(b), np.asarray(labels)]
    return bootstrap_statistic(columns, lambda x, y, shown: macro_auc(x, shown) - macro_auc(y, shown), groups, n=n)


def by_finding(real: Array, fake: Array, real_labels: Array, labels: Array) -> dict[str, dict[str, float | None]]:
    """FID, KID, precision, recall, density and coverage of the images of each finding, ready for JSON.

    Features ``real`` ``(n, d)`` of images that show it by ``real_labels`` ``(n, 8)`` against ``fake`` ``(m, d)`` of
    those asked for it by ``labels``, six of each at least, else None; and ``images_real`` and ``images_fake``. So few
    images bias the FID upwards: compare models on the same images, not findings with each other.
    """
    out: dict[str, dict[str, float | None]] = {}
    for i, name in enumerate(FINDINGS):
        a, b = (x[np.asarray(y)[:, i] > 0.5] for x, y in ((real, real_labels), (fake, labels)))
        found: dict[str, Any] = dict.fromkeys(("fid", "precision", "recall", "density", "coverage", "kid"))
        if min(len(a), len(b)) >= 6:
            found = {score: interval.estimate for score, interval in scores(a, b, resamples=0).items()}
            found["kid"] = kid(a, b)[0]
        out[name] = to_json(found | {"images_real": len(a), "images_fake": len(b)})
    return out


def reference(
    real_images: Array,
    labels: Array,
    classifier: FindingsClassifier,
    *,
    others: Array | None = None,
    patients: Groups = None,
    others_patients: Groups = None,
    resamples: int = 100,
    spaces: Mapping[str, nn.Module] | None = None,
) -> dict[str, Any]:
    """What real images score themselves, ready for JSON: the floor and the ceilings of `evaluate`'s numbers.

    As of `evaluate`, each name with ``_real``: MS-SSIM of two ``real_images`` with the same ``labels`` (of any two,
    where no two have the same), AUC, top-1 and, with ``others``, real images of other patients, as many as are
    generated, `scores` and KID: as a perfect model draws. ``classifier, patients, resamples, spaces`` as there;
    ``others_patients`` are those of ``others``.
    """
    findings = [tuple(row) for row in np.asarray(labels).tolist()]
    same = findings if len(set(findings)) < len(findings) else None
    numbers = _judged(real_images, labels, patients, same, classifier, "_real")
    if others is not None and len(others):
        clusters = {"real_groups": patients, "groups": others_patients, "resamples": resamples}
        numbers |= _in_spaces(real_images, others, classifier, spaces, "_real", clusters)
    return to_json(numbers)


def _flat(intervals: dict[str, Interval]) -> dict[str, Any]:
    ends = {"": "estimate", "_low": "low", "_high": "high"}
    return {name + end: getattr(i, field) for name, i in intervals.items() for end, field in ends.items()}


def transfer_auc(
    train: Labelled, test: Labelled, folder: Path, training: Training, *, patients: Groups = None, n: int = 300
) -> dict[str, Interval]:
    """AUC of a classifier trained on generated images and tested on real ones (TSTR, Ravuri & Vinyals 2019).

    `classifier_auc` asks a classifier of real images about generated ones and does not notice that they are all alike;
    this does. Compare with as many *real* training images: few images teach little, whoever made them. Findings of
    which the training labels have only one class are NaN, too.

    Args:
        train, test: images uint8 ``(n, s, s)`` and labels ``(n, 8)``: what their prompts name (see `asked`) or, for
            images of patients that neither model has seen, what they show.
        folder, training: where the classifier is kept, to be read by the next call; and its source, epochs (a few
            hundred images need more than the default) and seed. The batch is an eighth of the images, 8 to 64.
        patients, n: of the test images, resampled together ``n`` times: other patients, not another training.
    """
    images, labels = check_images(train[0]), np.asarray(train[1], dtype=np.float32)
    data = runs.hash_tensors({"images": torch.from_numpy(images), "labels": torch.from_numpy(labels)})
    training = replace(training, data=data, batch=min(64, max(8, len(images) // 8)))
    classifier = cached_classifier(folder, {"train": (images, labels), "val": test}.__getitem__, training)
    taught = (labels > 0.5).any(axis=0) & (labels <= 0.5).any(axis=0)
    evaluable = np.where(taught, test[1], 0)
    return classifier_auc(predict(classifier, test[0]), evaluable, patients, n=n, seed=training.seed)
