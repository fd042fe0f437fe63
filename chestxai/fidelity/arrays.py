"""Types, checks and array helpers shared by the modules of this package."""

import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import pydantic_core
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chestxai.runs import InputError

Array = np.ndarray
Groups = Sequence[Hashable] | None
Progress = Callable[[Iterable], Iterable]


class TooFewError(InputError):
    """There are too few images, prompts or classes for one score; others may well be computed."""


def check_images(images: Array) -> Array:
    """Return ``images`` as an array; InputError unless they are uint8 ``(n, s, s)`` with ``n ≥ 1``."""
    images = np.asarray(images)
    if images.ndim != 3 or images.dtype != np.uint8 or not images.size:
        raise InputError(f"images must be uint8 (n, s, s) with n ≥ 1, got {images.dtype} {images.shape}")
    return images


def check_features(real: Array, fake: Array) -> tuple[Array, Array]:
    """Return ``real`` ``(n, d)`` and ``fake`` ``(m, d)`` as float64; InputError unless finite and ``n, m ≥ 2``."""
    real, fake = np.asarray(real, dtype=np.float64), np.asarray(fake, dtype=np.float64)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or min(len(real), len(fake)) < 2:
        few = real.ndim == fake.ndim == 2 and real.shape[1] == fake.shape[1]
        error = TooFewError if few else InputError
        raise error(f"features must be (n, d) and (m, d) with n, m ≥ 2, got {real.shape} and {fake.shape}")
    if not (np.isfinite(real).all() and np.isfinite(fake).all()):
        raise InputError("some features are NaN or infinite: the images or the network are broken")
    return real, fake


def grey(images: Tensor) -> Tensor:
    """uint8 ``(n, s, s)`` or ``(n, 1, s, s)`` as ``(n, 1, s, s)``; floats, which may be normalised, are refused."""
    if images.dtype != torch.uint8:
        raise InputError(f"images must be uint8 (0 to 255), got {images.dtype}: the network scales them itself")
    return images.reshape(images.shape[0], 1, *images.shape[-2:])


def resize(x: Tensor, size: int) -> Tensor:
    """Bring ``x``, float ``(n, 1, s, s)``, to ``size`` pixels, bilinear with antialiasing."""
    return x if x.shape[-2:] == (size, size) else F.interpolate(x, (size, size), mode="bilinear", antialias=True)


@torch.inference_mode()
def batched(model: nn.Module, call: Callable[[Tensor], Tensor], images: Array, batch: int = 256) -> Array:
    """Apply ``call`` to uint8 images ``(n, s, s)``, ``batch`` at a time, with ``model`` in evaluation mode."""
    images, training = check_images(images), model.training
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    try:
        parts = torch.from_numpy(images[:, None]).split(batch)
        return np.concatenate([call(part.to(device)).float().cpu().numpy() for part in parts])
    finally:
        model.train(training)


def group_rows(groups: Groups, n: int, what: str = "generated") -> list[Array]:
    """Row numbers of each group; without groups, each of the ``n`` rows is its own. ``what`` names the images."""
    if groups is None:
        return list(np.arange(n)[:, None])
    labels = np.unique(np.asarray(groups), return_inverse=True)[1]
    if labels.shape != (n,):
        raise InputError(f"there must be one group for each of {n} {what} images, got {len(labels)}")
    return [np.flatnonzero(labels == g) for g in range(labels.max() + 1)]


def bootstrap(
    statistic: Callable[..., float], samples: Sequence[tuple[Array, Groups, str]], n: int, seed: int
) -> Array:
    """Bootstrap distribution, float ``(n,)``, of a ``statistic(*values)`` of independent ``samples``, from ``seed``.

    A sample is its values, their groups, and what to call them (see `group_rows`). NaN if each has one group.
    """
    rng = np.random.default_rng(seed)
    rows = [group_rows(groups, len(values), what) for values, groups, what in samples]
    if max(map(len, rows)) < 2:
        return np.full(n, np.nan)

    def drawn(values: Array, members: list[Array]) -> Array:
        return values[np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])]

    return np.array([statistic(*(drawn(s[0], r) for s, r in zip(samples, rows, strict=True))) for _ in range(n)])


def to_json(values: Any) -> Any:
    """Intervals and nested dictionaries for JSON: floats that are NaN or infinite become None."""
    return json.loads(pydantic_core.to_json(values, inf_nan_mode="null"))
