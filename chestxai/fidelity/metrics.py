"""Distances and overlaps of two sets of features, and the similarity of images of one prompt.

KID and MS-SSIM are torchmetrics'; FID is the same formula by singular values; precision, recall, density and coverage
stand on scikit-learn's neighbours. All depend on the feature space, most on the numbers of images: compare only numbers
of the same space and equal counts.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torchmetrics import Metric
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from torchmetrics.image.kid import KernelInceptionDistance

from chestxai.fidelity.arrays import Array, Groups, TooFewError, bootstrap, check_features, check_images
from chestxai.runs import InputError
from chestxai.stats import Difference, Interval, bootstrap_ci

# Wang, Simoncelli & Bovik 2003: exponents of the scales, finest first.
_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
# torchmetrics' Gaussian window (sigma 1.5) in pixels.
_WINDOW = 11


def fid(real: Array, fake: Array) -> float:
    """Fréchet distance of the features ``real`` and ``fake``, ``(n, d)`` and ``(m, d)`` (Heusel et al. 2017), ≥ 0.

    ``|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½)`` in float64; small samples bias it upwards. It equals that of torchmetrics,
    which takes minutes in a bootstrap: with Σ₁ = AᵀA and Σ₂ = BᵀB, the trace of (Σ₁Σ₂)^½ is the sum of the singular
    values of ABᵀ.
    """
    real, fake = check_features(real, fake)
    shift = real.mean(axis=0) - fake.mean(axis=0)
    a, b = ((x - x.mean(axis=0)) / (len(x) - 1) ** 0.5 for x in (real, fake))
    total = float((a**2).sum() + (b**2).sum())
    a, b = (np.linalg.qr(x, "r") if len(x) > x.shape[1] else x for x in (a, b))
    return max(0.0, float(shift @ shift) + total - 2 * float(np.linalg.norm(a @ b.T, "nuc")))


def _distance(metric: type[Metric], real: Array, fake: Array, **options: Any) -> Any:
    """A distance of torchmetrics, which expects images and a network, on features."""
    identity = nn.Identity()
    identity.num_features = real.shape[1]
    state = metric(feature=identity, **options)
    state.update(torch.from_numpy(real), real=True)
    state.update(torch.from_numpy(fake), real=False)
    return state.compute()


def fid_interval(
    real: Array, fake: Array, groups: Groups = None, n: int = 100, seed: int = 0, real_groups: Groups = None
) -> Interval:
    """FID with a 95 % bootstrap interval over both image sets: generated images by prompt, real ones by patient.

    A resample has fewer distinct images, hence a larger FID than its sample. Only the *spread* is used: the bounds are
    the quantiles of the resampled FIDs, shifted so that their mean lies on the estimate. ``real`` and ``fake`` are
    features float ``(n, d)`` and ``(m, d)``, resampled ``n`` times (0 leaves the bounds NaN) from ``seed`` with all of
    one of ``real_groups`` (patients) and ``groups`` (prompts). It is cautious: of Gaussian draws of 8 features, 100
    each, it covered 99 %, and `fid_difference` as well.
    """
    estimate = fid(real, fake)
    if not n:
        return Interval(estimate, math.nan, math.nan)
    real, fake = check_features(real, fake)
    resampled = bootstrap(fid, [(real, real_groups, "real"), (fake, groups, "generated")], n, seed)
    low, high = estimate + np.quantile(resampled, [0.025, 0.975]) - np.mean(resampled)
    return Interval(estimate, float(np.maximum(0.0, low)), float(high))


def fid_difference(
    real: Array, a: Array, b: Array, groups: Groups = None, real_groups: Groups = None, n: int = 200, seed: int = 0
) -> Difference:
    """FID of ``a`` minus FID of ``b``, ``(m, d)`` of the same prompts and noise by row: one bootstrap resamples both.

    What the two share, ``real`` images and the difficulty of the prompts, cancels out; widths of two intervals would
    count it twice. Bounds are shifted as in `fid_interval` (``groups, real_groups, n, seed``); ``p`` is twice the
    smaller tail.
    """
    a, b = check_features(a, b)
    if a.shape != b.shape:
        raise InputError(f"as many images of both models are needed, prompt by prompt: got {len(a)} and {len(b)}")
    width = a.shape[1]

    def difference(reals: Array, both: Array) -> float:
        return fid(reals, both[:, :width]) - fid(reals, both[:, width:])

    estimate = fid(real, a) - fid(real, b)
    both = np.concatenate([a, b], axis=1)
    found = bootstrap(difference, [(np.asarray(real), real_groups, "real"), (both, groups, "generated")], n, seed)
    found = estimate + np.asarray(found) - np.mean(found)
    low, high = np.quantile(found, [0.025, 0.975])
    p = 2 * min(np.mean(~(found > 0)), np.mean(~(found < 0))) + 1 / (n + 1)
    return Difference(estimate, float(low), float(high), min(1.0, float(p)))


def kid(real: Array, fake: Array, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Kernel distance of two feature sets (Bińkowski et al. 2018): mean and standard deviation over random subsets.

    The unbiased squared MMD with the kernel ``(x·y / d + 1)³``, by torchmetrics. On average it does not depend on the
    number of images; it may be slightly negative. ``subsets`` of ``real`` ``(n, d)`` and ``fake`` ``(m, d)`` are drawn
    from ``seed``, of ``subset_size`` images, but at most half of the smaller set, or all would be nearly equal.
    """
    real, fake = check_features(real, fake)
    size = max(2, min(subset_size, min(len(real), len(fake)) // 2))
    with torch.random.fork_rng(), warnings.catch_warnings():
        # torchmetrics warns that it keeps all features, which we hold anyway.
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(seed)
        mean, std = _distance(KernelInceptionDistance, real, fake, subsets=subsets, subset_size=size)
    return float(mean), float(std)


@dataclass(frozen=True)
class Extrapolation:
    """FID against the number of generated images, the line ``FID = estimate + slope / N``."""

    sizes: Array  #: int ``(k,)``, numbers of generated images
    fids: Array  #: float ``(k,)``, the mean FID of random subsets of each
    estimate: float  #: FID∞, the line's value at 1/N = 0; chance may bring it below 0
    slope: float


def fid_infinity(
    real: Array, fake: Array, points: int = 15, smallest: int | None = None, draws: int = 1, seed: int = 0
) -> Extrapolation:
    """The FID that infinitely many generated images would have (Chong & Forsyth 2020, FID∞).

    The bias of FID is about linear in 1/N, so the FIDs of random subsets of ``fake`` ``(m, d)``, ``m ≥ 4``, of evenly
    spaced sizes are extrapolated by least squares to 1/N = 0. As in the paper, ``real`` ``(n, d)`` stays whole and
    keeps its own bias. With no more images than features the bias is not linear; more ``draws`` of each of ``points``
    sizes from ``seed`` then reduce the noise, not the error. The ``smallest`` subset is by default a tenth of the
    images (the paper's 5,000 of 50,000), but at least twice the number of features where half of the images allow it.
    """
    real, fake = check_features(real, fake)
    most, d = len(fake), real.shape[1]
    smallest = max(most // 10, min(2 * d, most // 2), 2) if smallest is None else smallest
    sizes = np.unique(np.linspace(smallest, most, points).round().astype(int)) if smallest < most else np.array([])
    if len(sizes) < 2 or smallest < 2 or draws < 1:
        raise TooFewError(f"FID∞ needs subsets of two or more sizes, each of 2 or more of {most} images, got {sizes}")
    rng = np.random.default_rng(seed)
    fids = np.array([np.mean([fid(real, fake[rng.permutation(most)[:n]]) for _ in range(draws)]) for n in sizes])
    line = stats.linregress(1 / sizes, fids)
    return Extrapolation(sizes, fids, float(line.intercept), float(line.slope))


def precision_recall(real: Array, fake: Array, k: int = 3, **resampling: Any) -> tuple[Interval, Interval]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2): realism and variety, in [0, 1].

    Around each image lies a closed ball up to its ``k``-th nearest neighbour in its own set. Precision is the share of
    generated images in any real ball; recall the share of real images in any generated ball. A single outlier has a
    large ball; `density_coverage` is less sensitive to it.

    ``real`` and ``fake`` are features float ``(n, d)`` and ``(m, d)``, ``n, m > k``; ``resampling`` is ``groups``,
    ``real_groups``, ``n`` (default: 1000) and ``seed`` of `fid_interval`, which does not cover other balls.
    """
    real, fake = check_features(real, fake)
    inside, _ = _balls(real, fake, k, closed=True)
    covered, _ = _balls(fake, real, k, closed=True)
    return _means(inside > 0, covered > 0, **resampling)


def _means(
    fake: Array, real: Array, groups: Groups = None, real_groups: Groups = None, n: int = 1000, seed: int = 0
) -> tuple[Interval, Interval]:
    return bootstrap_ci(fake, groups, n=n, seed=seed), bootstrap_ci(real, real_groups, n=n, seed=seed)


def density_coverage(real: Array, fake: Array, k: int = 5, **resampling: Any) -> tuple[Interval, Interval]:
    """Density (≥ 0) and coverage (in [0, 1]) of Naeem et al. 2020, from balls around the real images only.

    Density is the number of real balls in which a generated image lies, over ``k``: about 1 for real images of other
    patients, above 1 where generated images crowd in the middle. Coverage is the share of real balls with a generated
    image inside. The balls are open, as in the authors' code, so that a set against itself scores exactly 1.

    ``real, fake, k, resampling`` as of `precision_recall`, but only ``n > k``; density is resampled over generated
    images, coverage over real ones.
    """
    real, fake = check_features(real, fake)
    inside, held = _balls(real, fake, k, closed=False)
    return _means(inside / k, held > 0, **resampling)


def _balls(centres: Array, points: Array, k: int, closed: bool) -> tuple[Array, Array]:
    """Number of balls around each point, int ``(m,)``, and of points in the ball of each centre, int ``(n,)``."""
    if not 1 <= k < len(centres):
        raise TooFewError(f"k = {k} neighbours need more than {k} images (and k ≥ 1), got {len(centres)}")
    # Centred, because scikit-learn loses digits of distances far from the origin.
    middle = centres.mean(axis=0)
    centres, points = centres - middle, points - middle
    radii = NearestNeighbors(n_neighbors=k).fit(centres).kneighbors()[0][:, -1]
    # A distance computed twice differs in its last bits, which must not decide a tie.
    slack = 1e-12 * float((centres**2).sum(axis=1).mean())
    limits = radii**2 + (slack if closed else -slack)
    inside, held, start = np.zeros(len(points), int), [], 0
    # In chunks: all distances at once would not fit into memory.
    for squared in pairwise_distances_chunked(centres, points, metric="sqeuclidean", working_memory=64):
        within = squared <= limits[start : start + len(squared), None]
        inside += within.sum(axis=0)
        held.append(within.sum(axis=1))
        start += len(squared)
    return inside, np.concatenate(held)


def ms_ssim(images: Array, groups: Groups = None, pairs: int = 100) -> float:
    """Mean of `ms_ssim_by_group` over ``groups`` of ``images``, with at most that many ``pairs`` of each."""
    return float(np.mean(list(ms_ssim_by_group(images, groups, pairs).values())))


def ms_ssim_by_group(images: Array, groups: Groups = None, pairs: int = 100, seed: int = 0) -> dict[Hashable, float]:
    """Mean multi-scale structural similarity of two images of each group, in [0, 1]: the higher, the less diverse.

    Aim at the value of real images: above it is mode collapse, below it noise. torchmetrics' MS-SSIM (Wang et al. 2003:
    Gaussian window of 11 pixels, sigma 1.5) on a fixed range of 255. Its five scales need 176 pixels; smaller images
    use as many of the finest as fit (64 px: 3, 128 px: 4), with the published exponents scaled to sum to 1. Compare
    only one size. ``images`` are uint8 ``(n, s, s)``, ``s ≥ 11``, with their prompts as ``groups`` (None: all are one);
    at most so many ``pairs`` of a group are compared, drawn from ``seed``. InputError where no group has two.
    """
    images = check_images(images)
    labels = [0] * len(images) if groups is None else list(groups)
    if len(labels) != len(images):
        raise InputError(f"there must be one group for each of {len(images)} images, got {len(labels)}")
    rng, members = np.random.default_rng(seed), defaultdict(list)
    for i, label in enumerate(labels):
        members[label].append(i)
    chosen = {label: np.array(m)[random_pairs(len(m), pairs, rng)] for label, m in members.items() if len(m) > 1}
    if not chosen:
        raise TooFewError("MS-SSIM needs at least two images of one prompt: sample several per prompt")
    # 256 pairs of 64 pixels, and as much memory at any other size.
    batch = max(1, 256 * 64**2 // (images.shape[1] * images.shape[2]))
    tensors, betas = torch.from_numpy(images)[:, None], _scales(min(images.shape[1:]))
    values = [
        multiscale_structural_similarity_index_measure(
            tensors[part[:, 0]].float(), tensors[part[:, 1]].float(), data_range=255.0, betas=betas, reduction="none"
        )
        for part in torch.from_numpy(np.concatenate(list(chosen.values()))).split(batch)
    ]
    by_group = np.split(torch.cat(values).numpy(), np.cumsum([len(p) for p in chosen.values()])[:-1])
    return {label: float(v.mean(dtype=np.float64)) for label, v in zip(chosen, by_group, strict=True)}


def random_pairs(n: int, most: int, rng: np.random.Generator) -> Array:
    """Distinct pairs ``i < j`` of ``n`` items, int ``(p, 2)``: all of them, or ``most`` drawn from ``rng``."""
    count = n * (n - 1) // 2
    if count <= most:
        return np.stack(np.triu_indices(n, 1), axis=1)
    first = np.arange(n) * (np.arange(n) - 1) // 2
    flat = rng.choice(count, size=most, replace=False)
    j = np.searchsorted(first, flat, side="right") - 1
    return np.stack([flat - first[j], j], axis=1)


def _scales(size: int) -> tuple[float, ...]:
    """Exponents of as many scales as fit into images of ``size`` pixels, scaled to sum to 1."""
    if size < _WINDOW:
        raise InputError(f"MS-SSIM needs images of at least {_WINDOW} pixels, got {size}")
    # The first condition is torchmetrics' own; at two scales it would accept images smaller than the window.
    count = max(k for k in range(1, 6) if size // max(1, k - 1) ** 2 >= _WINDOW and size // 2 ** (k - 1) >= _WINDOW)
    return tuple(beta / sum(_BETAS[:count]) for beta in _BETAS[:count])
