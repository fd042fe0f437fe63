"""Feature spaces, and the features of images in memory, in files or from a stream.

A *feature space* is any ``nn.Module`` that maps uint8 ``(n, 1, s, s)`` to float ``(n, d)`` by its ``features`` method
or, without one, by its call. Two attributes are optional: ``description``, one line that names network, weights and
preprocessing, and ``size``, the pixels it was made for.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from chestxai import runs
from chestxai.fidelity.arrays import batched, grey, resize
from chestxai.fidelity.classifier import SHIPPED, load_classifier
from chestxai.studies import Fit, Frame, Study, read_image

# The weights of the published FID (TensorFlow's, converted); a name in torch.hub ends in the start of its SHA-256.
_INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
_INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{_INCEPTION}"
_XRV = "densenet121-res224-all"
_SUFFIXES = (".png", ".jpg", ".jpeg")


class InceptionSpace(nn.Module):
    """The feature space of the published FID (Heusel et al. 2017): 2048 features of Inception-v3.

    Args:
        network: torch-fidelity's ``FeatureExtractorInceptionV3`` for the feature "2048", which takes uint8 RGB,
            resizes it to 299 pixels as TensorFlow 1 did (bilinear, no antialiasing) and scales it by
            ``(pixel − 128) / 128``. Images of 299 pixels are not resized.
    """

    size, num_features = 299, 2048
    description = (
        "Inception-v3 with the weights of the published FID (2015-12-05), 2048 features at 299 px (grey as RGB, "
        "resized bilinearly as by TensorFlow 1, (pixel − 128) / 128)"
    )

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(grey(images).expand(-1, 3, -1, -1))[0]


class XrvSpace(nn.Module):
    """The feature space of FID-XRV: 1024 features of TorchXRayVision's DenseNet-121 (Cohen et al. 2022).

    They are what enters its classifier: the trunk's output, rectified and averaged over the image.

    Args:
        trunk: ``torchxrayvision.models.DenseNet(...).features``, for grey images in [-1024, 1024] at 224 pixels.
    """

    size, num_features = 224, 1024
    description = (
        f"TorchXRayVision DenseNet-121 ({_XRV}), 1024 features at 224 px (grey, resized bilinearly with antialiasing, "
        "black −1024 to white 1024)"
    )

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = resize(grey(images).float(), self.size)
        return self.trunk((2 * (x / 255) - 1) * 1024).relu().mean(dim=(2, 3))


def feature_space(source: str = "phantom", folder: Path | None = None) -> nn.Module:
    """The network in whose features images are compared.

    Args:
        source: ``"inception"`` (the published FID's), ``"xrv"`` (FID-XRV's), or the name of the data source that a
            `FindingsClassifier` was trained on.
        folder: where its weights are. Default: the classifier that ships; for ``"inception"`` torch.hub's folder, for
            ``"xrv"`` ``~/.torchxrayvision/models_data``.

    Raises:
        ValueError: no classifier ships for this source, or the weights are damaged; the message says what to do.
        FileNotFoundError: the weights or the package of the network are missing; the message says how to get them.
    """
    if source == "inception":
        return _inception(Path(folder or Path(torch.hub.get_dir()) / "checkpoints"))
    if source == "xrv":
        return _xrv(Path(folder or Path.home() / ".torchxrayvision" / "models_data"))
    folder = Path(folder or SHIPPED)
    model = load_classifier(folder)
    trained = runs.read_json(folder / "classifier.json")["source"]
    if trained != source:
        raise ValueError(
            f"{folder} was trained on {trained!r}, not on {source!r}: train one with train_classifier(), or with "
            f"'python -m chestxai.fidelity train --source {source} --root FOLDER --out FOLDER'"
        )
    return model


def _inception(folder: Path) -> InceptionSpace:
    path = folder / _INCEPTION
    network = _package(
        "torch_fidelity.feature_extractor_inceptionv3", path, f"the feature space 'inception' needs {path}: "
        f"'pip install torch-fidelity', and download {_INCEPTION_URL} to it"
    )  # fmt: skip
    if not runs.sha256(path).startswith(expected := path.stem.rpartition("-")[2]):
        raise ValueError(f"{path}: damaged, its SHA-256 does not start with {expected}; get it from {_INCEPTION_URL}")
    # torch-fidelity would unpickle the file, which may run code: it gets a copy of the bare tensors in it.
    copy = io.BytesIO()
    torch.save(torch.load(path, map_location="cpu", weights_only=True), copy)
    copy.seek(0)
    return InceptionSpace(network.FeatureExtractorInceptionV3("inception", ["2048"], copy)).eval()


def _xrv(folder: Path) -> XrvSpace:
    path = folder / f"{_XRV}.safetensors"
    # The published file is a pickle, which this package does not open: the user converts it to plain tensors once.
    convert = (
        f"import pathlib, safetensors.torch, torchxrayvision as xrv; path = pathlib.Path({path.as_posix()!r}); "
        "path.parent.mkdir(parents=True, exist_ok=True); "
        f"safetensors.torch.save_file(xrv.models.DenseNet(weights='{_XRV}').state_dict(), path)"
    )
    advice = (
        f"the feature space 'xrv' needs {path}: 'pip install torchxrayvision', then download the weights and turn "
        f'them into safetensors, once, by: python -c "{convert}"'
    )
    network = _package("torchxrayvision", path, advice).models.DenseNet(weights=None).features
    prefix = "features."
    tensors = {k.removeprefix(prefix): v for k, v in runs.load_tensors(path).items() if k.startswith(prefix)}
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path}: not the weights of TorchXRayVision's DenseNet-121 ({error}); {advice}") from error
    return XrvSpace(network).eval()


def _package(name: str, weights: Path, advice: str) -> Any:
    """Import an optional package that is useless without a file of weights."""
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} is missing; {advice}")
    try:
        # torchxrayvision turns all warnings off when it is imported.
        with warnings.catch_warnings():
            return importlib.import_module(name)
    except ImportError as error:
        raise FileNotFoundError(f"{error}; {advice}") from error


def describe(space: nn.Module) -> str:
    """One line that names a feature space: its ``description``, else its class and the hash of its weights."""
    return getattr(space, "description", "") or f"{type(space).__qualname__} (weights sha256 {weights_hash(space)})"


def features(space: nn.Module, images: np.ndarray, batch: int = 256) -> np.ndarray:
    """Features of images in memory, float32 ``(n, d)``. For files or a stream, see `extract`.

    Args:
        space: the feature space.
        images: uint8 ``(n, s, s)``.
        batch: images at a time.
    """
    return batched(space, getattr(space, "features", space), images, batch)


@dataclass(frozen=True)
class Features:
    """The result of `extract`.

    Attributes:
        values: float32 ``(n, d)``, for `fid`, `kid`, `precision_recall`, …
        names: of each row: the file (relative to its folder), the study, or its number in a list or stream.
        skipped: one line for each image that cannot be read.
        space: `describe` of the feature space.
    """

    values: np.ndarray
    names: tuple[str, ...]
    skipped: tuple[str, ...]
    space: str


def extract(
    space: nn.Module,
    images: str | Path | Iterable[np.ndarray | str | Path | Study],
    *,
    size: int | None = None,
    fit: Fit = "crop",
    batch: int = 64,
    cache: Path | None = None,
    identity: str | None = None,
    progress: Callable[[Iterable], Iterable] = lambda items: items,
) -> Features:
    """Features of any number of images in bounded memory: only one batch of images and all features are held.

    Each image is brought to ``size`` pixels by `Frame.image` (bicubic with antialiasing, as Parmar et al. 2022 advise:
    without it, FID measures aliasing).

    Args:
        space: the feature space.
        images: a folder, searched for PNG and JPEG files at any depth (see `image_files`); or a list, array or
            generator of uint8 ``(h, w)``, image files and `Study` records, in any mixture.
        size: pixels; default: the space's own ``size``, else the images' if all are squares of one size.
        fit: "crop" or "letterbox", for images that are not square.
        batch: images at a time.
        cache: folder for the features, one safetensors file for each combination of images, space and framing; a
            repeated call reads it. The key includes the content of the images (files are read in full).
        identity: replaces the content of the images in that key, e.g. the fingerprint of a data set. Needed to cache a
            generator or studies, whose content is unknown in advance.
        progress: wraps the loop over images, e.g. `chestxai.runs.progress`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no image, or none that can be read; an array that is not uint8 ``(h, w)``; a cache for a generator
            without ``identity``; features that are not finite.
    """
    root = None
    if isinstance(images, str | Path):
        root = Path(images)
        images = image_files(root)
    size = size or getattr(space, "size", None)
    if cache is None:
        return _extract(space, progress(images), root, size, fit, batch)
    content = identity if identity is not None else content_hash(images, root)
    path = Path(cache) / f"{runs.fingerprint(content, describe(space), weights_hash(space), size, fit)}.safetensors"
    # A damaged file is replaced.
    with suppress(FileNotFoundError, ValueError, KeyError):
        about = runs.tensor_metadata(path)
        names, skipped = (tuple(json.loads(about[key])) for key in ("names", "skipped"))
        return Features(runs.load_tensors(path)["values"].numpy(), names, skipped, about["space"])
    result = _extract(space, progress(images), root, size, fit, batch)
    about = {"names": json.dumps(result.names), "skipped": json.dumps(result.skipped), "space": result.space}
    runs.save_tensors(path, {"values": torch.from_numpy(result.values)}, about)
    return result


def _extract(
    space: nn.Module, images: Iterable, root: Path | None, size: int | None, fit: Fit, batch: int
) -> Features:
    names, skipped, parts, waiting, any_shape = [], [], [], [], size is not None
    for i, item in enumerate(images):
        try:
            name, shape, pixels = _read(item, i, root)
            size = size or shape[0]
            if not any_shape and shape != (size, size):
                raise ValueError(f"image {name} is {shape[0]} × {shape[1]}, not {size} × {size} as others: give size=")
            waiting.append(_framed(name, shape, pixels, size, fit))
        except _Unreadable as error:
            skipped.append(str(error))
            continue
        names.append(name)
        if len(waiting) == batch:
            parts.append(features(space, np.stack(waiting), batch))
            waiting.clear()
    if waiting:
        parts.append(features(space, np.stack(waiting), batch))
    if not parts:
        reason = f"none of {len(skipped)} images could be read; the first: {skipped[0]}" if skipped else ""
        raise ValueError(reason or "there are no images")
    values = np.concatenate(parts)
    if not np.isfinite(values).all():
        raise ValueError("some features are NaN or infinite: the images or the network are broken")
    return Features(values, tuple(names), tuple(skipped), describe(space))


def image_files(folder: Path) -> list[Path]:
    """The PNG and JPEG files of a folder, at any depth, sorted by path; hidden files are left out.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no such file in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give the one that holds the images")
    paths = (p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))
    files = sorted(p for p in paths if p.is_file())
    if not files:
        raise ValueError(f"{folder} holds no image ({', '.join(_SUFFIXES)})")
    return files


class _Unreadable(OSError):
    """One of many images cannot be read and is skipped; an array of a wrong kind is a ValueError, and fatal."""


def _read(item: np.ndarray | str | Path | Study, i: int, root: Path | None) -> tuple[str, tuple[int, int], np.ndarray]:
    """Name, original height and width, and pixels uint8 ``(h, w)``."""
    if isinstance(item, np.ndarray):
        if item.ndim != 2 or item.dtype != np.uint8 or not item.size:
            raise ValueError(f"image {i}: must be uint8 (h, w), got {item.dtype} {item.shape}")
        return str(i), item.shape, item
    study = isinstance(item, Study)
    try:
        pixels = item.pixels() if study else read_image(Path(item))
    except ValueError as error:
        raise _Unreadable(f"{item.id}: {error}" if study else str(error)) from error
    return (item.id, item.size, pixels) if study else (_name(item, root), pixels.shape, pixels)


def _framed(name: str, shape: tuple[int, int], pixels: np.ndarray, size: int, fit: Fit) -> np.ndarray:
    try:
        return Frame(*shape, size, fit).image(pixels)
    except ValueError as error:
        # A study's file whose size differs from what its data set states.
        raise _Unreadable(f"{name}: {error}") from error


def _name(path: str | Path, root: Path | None) -> str:
    return Path(path).relative_to(root).as_posix() if root else str(path)


def weights_hash(*modules: nn.Module) -> str:
    digest = hashlib.sha256()
    for part in modules:
        for name, tensor in part.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def content_hash(images: Any, root: Path | None = None) -> str:
    """Hex SHA-256 of images that can be read twice: arrays and files, with the names of files in a folder."""
    if isinstance(images, np.ndarray):
        digest = hashlib.sha256(f"{images.dtype} {images.shape}".encode())
        digest.update(np.ascontiguousarray(images).reshape(-1).view(np.uint8))
        return digest.hexdigest()
    if not isinstance(images, Sequence) or any(isinstance(item, Study) for item in images):
        raise ValueError("a cache for a generator or for studies needs identity=: their content is unknown in advance")
    digest = hashlib.sha256()
    for item in images:
        if isinstance(item, np.ndarray):
            digest.update(content_hash(item).encode())
        else:
            # What cannot be opened is skipped later.
            content = runs.sha256(Path(item)) if Path(item).is_file() else "no file"
            digest.update(f"{_name(item, root)}\0{content}\n".encode())
    return digest.hexdigest()
